//! `--cold`: how long a new environment takes to its first answer.
//!
//! A program, such as the release of `reserve`, is started with the variables that Lambda and template.yaml give it. The
//! runtime API is here, and DynamoDB and Scheduler answer over TLS in another process. What AWS adds is not measured: the
//! download of the code, the sandbox, and the distance.
//!
//! With less than one core, the limit begins when the program asks for its first event: Lambda gives the start of an
//! environment a whole core, and its requests their share.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use holdfast_aws::clock;
use holdfast_aws::config::Environment;
use holdfast_store::{Deadline, Store};
use holdfast_testkit::event::{by, event, with_body, with_header};
use holdfast_testkit::fixtures::{TABLE, product};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::process::{Child, time_of};
use crate::{Result, SETUP, server};

/// Events of a run. The first one is the cold one; of the others the median is shown.
const EVENTS: usize = 21;
/// How long a run may take.
const LONGEST: Duration = Duration::from_secs(60);
/// The period of the limit of processor time, as in Lambda: 20 ms.
const PERIOD_US: f64 = 20_000.0;
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

/// A program with a share of a core, and its starts.
type Row<'a> = (&'a Program, f64, Vec<Start>);

async fn measure<'a>(programs: &'a [Program], cores: &[f64], runs: usize, folder: &Path) -> Result<Vec<Row<'a>>> {
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
            let number = run * 1_000 + at;
            starts.push(start(program, *share, number, &tls, &certificate, &trusted).await?);
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

/// What has happened so far.
#[derive(Default)]
struct Progress {
    pid: Option<u32>,
    limit: Option<Limit>,
    /// When each event was given, and answered, with the processor time until then of the first.
    given: Vec<Instant>,
    answered: Vec<Instant>,
    cpu: Vec<Duration>,
    problem: Option<String>,
    done: Option<oneshot::Sender<()>>,
}

struct Run {
    number: usize,
    progress: Mutex<Progress>,
}

async fn start(
    program: &Program,
    share: f64,
    number: usize,
    tls: &str,
    certificate: &Path,
    trusted: &Path,
) -> Result<Start> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let address = listener.local_addr()?.to_string();
    let (done, is_done) = oneshot::channel();
    let limit = (share < 1.0).then(|| Limit::new(share)).transpose()?;
    let progress = Progress { done: Some(done), limit, ..Progress::default() };
    let run = Arc::new(Run { number, progress: Mutex::new(progress) });
    let runtime = axum::serve(listener, Router::new().fallback(answer).with_state(run.clone())).into_future();
    let mut command = Command::new("sh");
    command
        .args(["-c", &format!("exec {}", program.command)])
        .envs(server::VARIABLES.iter().copied())
        .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "256")
        .env("AWS_LAMBDA_FUNCTION_VERSION", "1")
        .env("AWS_LAMBDA_RUNTIME_API", &address)
        .env("AWS_ENDPOINT_URL", tls)
        .env("SSL_CERT_FILE", trusted)
        .env_remove("SSL_CERT_DIR")
        .env("NODE_EXTRA_CA_CERTS", certificate)
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let began = Instant::now();
    let mut process = command.spawn()?;
    lock(&run.progress).pid = Some(process.id());
    let outcome = tokio::time::timeout(LONGEST, async {
        tokio::select! {
            served = runtime => served.map_err(crate::Error::from),
            done = is_done => done.map_err(crate::Error::from),
        }
    });
    let outcome = outcome.await.map_err(|_| crate::Error::from(format!("it takes longer than {LONGEST:?}")));
    // It may have ended by itself.
    _ = process.kill();
    process.wait()?;
    let mut progress = lock(&run.progress);
    // Only an empty group can be removed.
    drop(progress.limit.take());
    outcome.and_then(|served| served).map_err(|error| format!("{}: {error}", program.name))?;
    if let Some(problem) = &progress.problem {
        return Err(format!("{}: {problem}", program.name).into());
    }
    let took = |at: usize| progress.answered[at] - progress.given[at];
    let mut later: Vec<Duration> = (1..EVENTS).map(took).collect();
    later.sort();
    Ok(Start {
        ready: progress.given[0] - began,
        ready_cpu: progress.cpu[0],
        first: took(0),
        first_cpu: progress.cpu[1].saturating_sub(progress.cpu[0]),
        later: later[later.len() / 2],
    })
}

/// The runtime API of Lambda.
async fn answer(State(run): State<Arc<Run>>, uri: Uri, body: Bytes) -> Response {
    let path = uri.path();
    if path.ends_with("/invocation/next") {
        let Some(event) = run.next() else { return std::future::pending().await };
        let headers = [
            ("lambda-runtime-aws-request-id", "8476a536-e9f4-11e8-9739-2dfe598c3fcd"),
            ("lambda-runtime-deadline-ms", "4102444800000"),
            ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:000000000000:function:reserve"),
        ];
        return (headers, event.to_string()).into_response();
    }
    run.answered(path, &body);
    StatusCode::ACCEPTED.into_response()
}

impl Run {
    /// The next event, or `None` after the last one.
    fn next(&self) -> Option<Value> {
        let mut progress = lock(&self.progress);
        let at = progress.given.len();
        if at == 0 {
            let now = Instant::now();
            let pid = progress.pid?;
            progress.cpu.extend(time_of(pid));
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
        let key = format!("cold-{}-{at}", self.number);
        let body = json!({ "lines": [{ "product_id": "tee-black", "quantity": 2 }] });
        let event = with_header(with_body(event("reserve/create"), body), "idempotency-key", &key);
        Some(by(event, &format!("customer-{}-{at}", self.number)))
    }

    fn answered(&self, path: &str, body: &[u8]) {
        let mut progress = lock(&self.progress);
        progress.answered.push(Instant::now());
        if progress.answered.len() == 1
            && let Some(pid) = progress.pid
        {
            progress.cpu.extend(time_of(pid));
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
        let second = root.join("cgroup.controllers").exists();
        let folder = if second { root.to_owned() } else { root.join("cpu") };
        let folder = folder.join(format!("holdfast-bench-{}", std::process::id()));
        let quota = format!("{:.0}", (share * PERIOD_US).max(1_000.0));
        let wrong = |error| format!("no control of processor time in {}, which takes root: {error}", folder.display());
        std::fs::create_dir_all(&folder).map_err(wrong)?;
        let limit = Self(folder.clone());
        let period = format!("{PERIOD_US:.0}");
        let write = |file: &str, text: &str| std::fs::write(folder.join(file), text).map_err(wrong);
        if second {
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The medians of each row, in milliseconds.
fn table(rows: &[Row<'_>]) -> String {
    let mut text = format!(
        "{:<16} {:>6} {:>10} {:>10} {:>10} {:>10} {:>12} {:>12}\n",
        "program", "cores", "total ms", "ready ms", "first ms", "later ms", "ready CPU ms", "first CPU ms"
    );
    for (program, share, starts) in rows {
        let median = |figure: fn(&Start) -> Duration| {
            let mut all: Vec<Duration> = starts.iter().map(figure).collect();
            all.sort();
            all.get(all.len() / 2).map_or(f64::NAN, |middle| middle.as_secs_f64() * 1e3)
        };
        // Writing to a string does not fail.
        _ = writeln!(
            text,
            "{:<16} {:>6} {:>10.1} {:>10.1} {:>10.1} {:>10.1} {:>12.1} {:>12.1}",
            program.name,
            share,
            median(|start| start.ready + start.first),
            median(|start| start.ready),
            median(|start| start.first),
            median(|start| start.later),
            median(|start| start.ready_cpu),
            median(|start| start.first_cpu),
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
