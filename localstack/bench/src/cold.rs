//! `--cold`: how long a new environment takes to its first answer.
//!
//! A program, such as the release of `reserve`, is started with the variables that Lambda and template.yaml give it. The
//! runtime API is here, and DynamoDB and Scheduler answer over TLS in another process. What AWS adds is not measured: the
//! download of the code, the sandbox, and the distance.
//!
//! With less than one core, the limit begins when the program asks for its first event. So it is in Lambda by all that
//! others have measured, though AWS does not document it: the start of an environment has a whole core, and its requests have
//! their share, which is 256 MB of 1,769 MB with 256 MB.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use holdfast_aws::clock;
use holdfast_aws::config::Environment;
use holdfast_store::{Deadline, Store};
use holdfast_testkit::event::{by, event, invocation, with_body, with_header};
use holdfast_testkit::fixtures::{TABLE, product};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::oneshot;

use crate::cloud::lock;
use crate::process::{Child, cpu_time_of};
use crate::report::median;
use crate::{Result, SETUP, server};

/// Events of a run. The first one is the cold one; of the others the median is shown.
const EVENTS: usize = 21;
/// How long a start and its events may take.
const LONGEST: Duration = Duration::from_secs(60);
/// The period of the limit of processor time. A short one: with less than a seventh of a core, the default of 100 ms would
/// make one event fast and the next one slow.
const PERIOD_US: f64 = 20_000.0;
/// The least time in a period that Linux accepts.
const LEAST_QUOTA_US: f64 = 1_000.0;
/// The certificates that a program trusts, where Linux distributions have them. They are read at the start.
const BUNDLES: [&str; 2] = ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];

/// A program that is started.
#[derive(Debug, Clone)]
pub(crate) struct Program {
    pub(crate) name: String,
    /// For the shell.
    pub(crate) command: String,
}

/// One start.
#[derive(Debug, Clone, Copy)]
struct Start {
    /// From the start until it asks for the first event, and its processor time.
    ready: Duration,
    ready_cpu: Duration,
    /// From the first event to its answer, and its processor time.
    first: Duration,
    first_cpu: Duration,
    /// The median of the others.
    later: Duration,
}

/// Starts each program `runs` times with each share of a core, in turn, and prints the medians.
///
/// # Errors
/// A program does not start, or does not make a reservation; or there is no control of processor time.
pub(crate) async fn run(programs: &[Program], cores: &[f64], runs: usize) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("holdfast-cold-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let measured = measure(programs, cores, runs, &folder).await;
    std::fs::remove_dir_all(&folder)?;
    println!("\n{}", table(&measured?));
    Ok(())
}

/// A program with a share of a core for its requests, and its starts.
type Row<'a> = (&'a Program, f64, Vec<Start>);

async fn measure<'a>(programs: &'a [Program], cores: &[f64], runs: usize, folder: &Path) -> Result<Vec<Row<'a>>> {
    // Before anything takes time.
    for &share in cores.iter().filter(|share| **share < 1.0) {
        Limit::new(share)?;
    }
    let certificate = folder.join("certificate.pem");
    let cloud = Child::start(&["cloud", "--certificate", &certificate.display().to_string()], &[])?;
    let tls = cloud.tls_url.clone().ok_or("the cloud has no address for TLS")?;
    let store = Store::new(Environment::of_emulator("us-east-1", &cloud.url).dynamodb(), TABLE, clock::system());
    let tees = product("tee-black", 1_000_000, 16);
    store.create_product(&tees, "bench", clock::system().now(), Deadline::after(SETUP)).await?;
    let trusted = trusted(&certificate, folder)?;

    let mut rows: Vec<Row<'a>> = Vec::new();
    for &share in cores {
        rows.extend(programs.iter().map(|program| (program, share, Vec::new())));
    }
    for run in 1..=runs {
        for (at, (program, share, starts)) in rows.iter_mut().enumerate() {
            let id = run * 1_000 + at;
            starts.push(start(program, *share, id, &tls, &certificate, &trusted).await?);
        }
        eprintln!("run {run} of {runs}");
    }
    Ok(rows)
}

/// What a program trusts: the certificates of this machine, which it reads as it would in Lambda, and that of the cloud.
fn trusted(certificate: &Path, folder: &Path) -> Result<PathBuf> {
    let system = BUNDLES.iter().find_map(|path| std::fs::read_to_string(path).ok());
    let system = system.ok_or_else(|| format!("no certificates of this machine: {}", BUNDLES.join(", ")))?;
    let trusted = folder.join("trusted.pem");
    std::fs::write(&trusted, format!("{system}\n{}", std::fs::read_to_string(certificate)?))?;
    Ok(trusted)
}

/// What has happened so far in one start.
#[derive(Default)]
struct Progress {
    pid: Option<u32>,
    limit: Option<Limit>,
    /// When each event was given.
    given: Vec<Instant>,
    /// When each event was answered.
    answered: Vec<Instant>,
    /// Its processor time when it asked for the first event, and when it had answered that.
    cpu: Vec<Duration>,
    problem: Option<String>,
    done: Option<oneshot::Sender<()>>,
}

/// One start of a program.
struct Started {
    /// Its customers and keys have this number, so that they are its own.
    id: usize,
    progress: Mutex<Progress>,
}

async fn start(
    program: &Program,
    share: f64,
    id: usize,
    tls: &str,
    certificate: &Path,
    trusted: &Path,
) -> Result<Start> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?.to_string();
    let (done, is_done) = oneshot::channel();
    let limit = (share < 1.0).then(|| Limit::new(share)).transpose()?;
    let progress = Progress { done: Some(done), limit, ..Progress::default() };
    let started = Arc::new(Started { id, progress: Mutex::new(progress) });
    let runtime = axum::serve(listener, Router::new().fallback(answer).with_state(started.clone())).into_future();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec {}", program.command)])
        .envs(server::VARIABLES.iter().copied())
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_LAMBDA_RUNTIME_API", &address)
        .env("AWS_ENDPOINT_URL", tls)
        .env("SSL_CERT_FILE", trusted)
        // It would be read as well.
        .env_remove("SSL_CERT_DIR")
        .env("NODE_EXTRA_CA_CERTS", certificate)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    let began = Instant::now();
    let mut process = command.spawn()?;
    lock(&started.progress).pid = process.id();
    let outcome = tokio::time::timeout(LONGEST, async {
        tokio::select! {
            served = runtime => served.map_err(crate::Error::from),
            done = is_done => done.map_err(crate::Error::from),
            ended = process.wait() => Err(format!("it has ended: {}", ended?).into()),
        }
    });
    let outcome = outcome.await.map_err(|_| crate::Error::from(format!("it takes longer than {LONGEST:?}")));
    process.kill().await?;
    let mut progress = lock(&started.progress);
    // Only an empty group can be removed.
    drop(progress.limit.take());
    outcome.and_then(|served| served).map_err(|error| format!("{}: {error}", program.name))?;
    if let Some(problem) = &progress.problem {
        return Err(format!("{}: {problem}", program.name).into());
    }
    let took = |at: usize| progress.answered[at] - progress.given[at];
    let later = median((1..EVENTS).map(|at| took(at).as_secs_f64()).collect()).ok_or("no event after the first")?;
    Ok(Start {
        ready: progress.given[0] - began,
        ready_cpu: progress.cpu[0],
        first: took(0),
        first_cpu: progress.cpu[1].saturating_sub(progress.cpu[0]),
        later: Duration::from_secs_f64(later),
    })
}

/// The runtime API of Lambda.
async fn answer(State(started): State<Arc<Started>>, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    if path.ends_with("/invocation/next") {
        // After the last event, as in an environment that is idle.
        let Some(event) = started.next() else { return std::future::pending().await };
        return (invocation("8476a536-e9f4-11e8-9739-2dfe598c3fcd"), event.to_string()).into_response();
    }
    started.answered(path, &body);
    StatusCode::ACCEPTED.into_response()
}

impl Started {
    /// The next event, or `None` after the last one.
    fn next(&self) -> Option<Value> {
        let mut progress = lock(&self.progress);
        let at = progress.given.len();
        if at == 0 {
            let now = Instant::now();
            let pid = progress.pid?;
            progress.cpu.extend(cpu_time_of(pid));
            if let Some(Err(error)) = progress.limit.as_ref().map(|limit| limit.add(pid)) {
                progress.fail(error.to_string());
            }
            // What this took is not the program's.
            let spent = now.elapsed();
            progress.given.push(Instant::now().checked_sub(spent)?);
        } else if at < EVENTS {
            progress.given.push(Instant::now());
        } else {
            return None;
        }
        let key = format!("cold-{}-{at}", self.id);
        let body = json!({ "lines": [{ "product_id": "tee-black", "quantity": 2 }] });
        let event = with_header(with_body(event("reserve/create"), body), "idempotency-key", &key);
        Some(by(event, &format!("customer-{}-{at}", self.id)))
    }

    fn answered(&self, path: &str, body: &[u8]) {
        let mut progress = lock(&self.progress);
        progress.answered.push(Instant::now());
        if progress.answered.len() == 1
            && let Some(pid) = progress.pid
        {
            progress.cpu.extend(cpu_time_of(pid));
        }
        let said: Value = serde_json::from_slice(body).unwrap_or_default();
        if !path.ends_with("/response") || said["statusCode"] != 201 {
            progress.fail(format!("no reservation: {said}"));
        } else if progress.answered.len() == EVENTS {
            progress.finish();
        }
    }
}

impl Progress {
    fn fail(&mut self, problem: String) {
        self.problem.get_or_insert(problem);
        self.finish();
    }

    fn finish(&mut self) {
        // Nobody waits for it any more if the time is over.
        self.done.take().map(|done| done.send(()));
    }
}

/// A control group of Linux with a share of one core. Removed when it is dropped.
struct Limit(PathBuf);

impl Limit {
    fn new(share: f64) -> Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let version_2 = root.join("cgroup.controllers").exists();
        let folder = if version_2 { root.to_owned() } else { root.join("cpu") };
        let folder = folder.join(format!("holdfast-bench-{}", std::process::id()));
        let quota = format!("{:.0}", (share * PERIOD_US).max(LEAST_QUOTA_US));
        let wrong = |error| {
            format!("no limit of processor time in {}, which takes root; --cores 1 has none: {error}", folder.display())
        };
        std::fs::create_dir_all(&folder).map_err(wrong)?;
        let limit = Self(folder.clone());
        let period = format!("{PERIOD_US:.0}");
        let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).map_err(wrong);
        if version_2 {
            write("cpu.max", &format!("{quota} {period}"))?;
        } else {
            write("cpu.cfs_period_us", &period)?;
            write("cpu.cfs_quota_us", &quota)?;
        }
        Ok(limit)
    }

    fn add(&self, pid: u32) -> std::io::Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir(&self.0) {
            eprintln!("{} is left: {error}", self.0.display());
        }
    }
}

/// The medians of each row, in milliseconds.
fn table(rows: &[Row<'_>]) -> String {
    let mut text = format!(
        "{:<16} {:>6} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}\n",
        "program", "cores", "total ms", "ready ms", "first ms", "later ms", "ready CPU ms", "first CPU ms"
    );
    for (program, share, starts) in rows {
        let of = |figure: fn(&Start) -> Duration| {
            median(starts.iter().map(|start| figure(start).as_secs_f64() * 1e3).collect()).unwrap_or(f64::NAN)
        };
        // Writing to a string does not fail.
        _ = writeln!(
            text,
            "{:<16} {:>6} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>12.1} {:>12.1}",
            program.name,
            share,
            of(|start| start.ready + start.first),
            of(|start| start.ready),
            of(|start| start.first),
            of(|start| start.later),
            of(|start| start.ready_cpu),
            of(|start| start.first_cpu),
        );
    }
    text + "total: from the start to the answer of the first event; ready: to the request for it; later: each event after it"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_the_median_of_each_figure() {
        let program = Program { name: "reserve".to_owned(), command: String::new() };
        let start = |ms: u64| {
            let time = Duration::from_millis(ms);
            Start { ready: time, ready_cpu: time, first: time * 2, first_cpu: time, later: time }
        };
        let told = table(&[(&program, 0.15, vec![start(9), start(1), start(3)])]);
        let row: Vec<&str> = told.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["reserve", "0.15", "9.0", "3.0", "6.0", "3.0", "3.0", "3.0"]);
    }
}
