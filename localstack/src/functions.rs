//! The functions: built once, served by `cargo lambda watch`, kept running as Lambda keeps them running.
//!
//! `watch` is started with `--only-lambda-apis`: it routes requests and speaks the Lambda runtime API, and the
//! functions' processes are started here. `watch` 1.9.2 could start them, but
//! - it never replaces a process that died, and the dead one keeps its place among `--concurrency`: when all places
//!   are dead, every request hangs, where Lambda would start another environment;
//! - it gives all functions the same variables, and would hide one that template.yaml forgets to give;
//! - it leads them through `cargo run`, each in a process group of its own, so killing `watch` leaves them behind.
//!
//! Invariant: `concurrency` processes of each function run, and one that dies is restarted; each has the variables of
//! template.yaml, and nothing of the developer's environment.
//!
//! A limitation of `watch`: it never answers a request whose process was killed. The gateway answers it after its time
//! limit.

use crate::error::{Context, Error, Result};
use crate::gateway::{InvokeError, Upstream};
use crate::paths;
use crate::process::{Group, Keeper, cargo};
use crate::progress::Step;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long `watch` may take to read the workspace's metadata and listen.
const WATCH_START: Duration = Duration::from_secs(60);
/// `watch` does not say when it listens, so a connection is tried at this interval.
const WATCH_POLL: Duration = Duration::from_millis(50);
/// How long a function may take to answer for the first time.
const LONGEST_START: Duration = Duration::from_secs(30);
/// A process that lived this long was well: its successor starts at once. Others wait longer each time.
const WELL: Duration = Duration::from_secs(1);
const FIRST_WAIT: Duration = Duration::from_millis(100);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a function needs to run.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The name of its binary, and its own.
    pub name: String,
    /// All its variables beside those of the Lambda runtime.
    pub environment: BTreeMap<String, String>,
    /// The memory that the runtime tells it of.
    pub memory_mb: u64,
    /// An event that changes nothing, to see that it answers; `None` asks over HTTP.
    pub probe: Option<Value>,
}

/// How to serve them.
pub struct Serve<'a> {
    /// The program `cargo-lambda`.
    pub cargo_lambda: &'a Path,
    /// Where `watch` listens.
    pub port: u16,
    /// Processes of each function.
    pub concurrency: usize,
    /// What `watch` and the functions write.
    pub watch_log: &'a Path,
    /// What the functions write.
    pub functions_log: &'a Path,
}

/// The functions, served.
pub struct Functions {
    watch: Group,
    pids: Pids,
    stopping: watch::Sender<bool>,
    /// The last process that ended as soon as it had started.
    stillborn: watch::Sender<Option<String>>,
    supervisors: JoinSet<()>,
}

type Pids = Arc<Mutex<BTreeMap<String, BTreeSet<u32>>>>;

/// Builds the binaries with Cargo and `more` of its arguments; Cargo shows its own progress. Returns where it put them.
///
/// # Errors
/// The build fails.
pub async fn build(binaries: &[String], more: &[String], keeper: &Arc<Keeper>) -> Result<BTreeMap<String, PathBuf>> {
    eprintln!("building the functions {} ...", binaries.join(", "));
    let since = Instant::now();
    // All of the workspace's packages are selected, as in `cargo local`, so that features, and with them the
    // artefacts, are the same and nothing is compiled twice.
    let mut command = Command::from(cargo());
    command.args(["build", "--message-format=json-render-diagnostics"]).args(more);
    for binary in binaries {
        command.args(["--bin", binary]);
    }
    let mut group = keeper.spawn("cargo build", command.stdout(Stdio::piped()))?;
    let out = group.child().stdout.take().ok_or_else(|| Error::new("cargo build's output cannot be read"))?;
    let mut lines = BufReader::new(out).lines();
    let mut built = BTreeMap::new();
    while let Some(line) = lines.next_line().await.context(|| "cannot read cargo build's output".into())? {
        let message: Value = serde_json::from_str(&line).unwrap_or_default();
        if let (Some(name), Some(path)) = (message["target"]["name"].as_str(), message["executable"].as_str()) {
            built.insert(name.to_owned(), PathBuf::from(path));
        }
    }
    let status = group.wait().await?;
    if !status.success() {
        return Err(Error::new("the functions do not compile; Cargo says above why"));
    }
    if let Some(missing) = binaries.iter().find(|name| !built.contains_key(*name)) {
        return Err(Error::new(format!("cargo build made no binary {missing}, which template.yaml names")));
    }
    eprintln!("building the functions: done ({:.1} s)", since.elapsed().as_secs_f64());
    Ok(built)
}

impl Functions {
    /// Starts `watch` and `concurrency` processes of each function.
    ///
    /// # Errors
    /// `watch` or a function cannot be started.
    pub async fn start(
        specs: &[Spec],
        binaries: &BTreeMap<String, PathBuf>,
        serve: &Serve<'_>,
        keeper: &Arc<Keeper>,
    ) -> Result<Self> {
        let watch = start_watch(serve, keeper).await?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(serve.functions_log)
            .context(|| format!("cannot write {}", serve.functions_log.display()))?;
        let pids = Pids::default();
        let (stopping, _) = watch::channel(false);
        let (stillborn, _) = watch::channel(None);
        let mut supervisors = JoinSet::new();
        for spec in specs {
            let binary = binaries
                .get(&spec.name)
                .ok_or_else(|| Error::new(format!("the function {} was not built", spec.name)))?;
            for _ in 0..serve.concurrency {
                let instance = Instance {
                    spec: spec.clone(),
                    binary: binary.clone(),
                    runtime_api: format!("http://127.0.0.1:{}/.rt/{}", serve.port, spec.name),
                    log: log.try_clone().context(|| "cannot share the functions' log".into())?,
                    keeper: Arc::clone(keeper),
                    pids: Arc::clone(&pids),
                    stillborn: stillborn.clone(),
                };
                supervisors.spawn(instance.supervise(stopping.subscribe()));
            }
        }
        Ok(Self { watch, pids, stopping, stillborn, supervisors })
    }

    /// Waits until every function has answered once, so that the first caller meets warm ones.
    ///
    /// # Errors
    /// A function does not answer.
    pub async fn warm(&self, specs: &[Spec], upstream: &Upstream, log: &Path) -> Result<()> {
        let step = Step::start("waiting for the functions to answer");
        for spec in specs {
            step.detail(&spec.name);
            let event = spec.probe.clone().unwrap_or_else(http_probe);
            let mut stillborn = self.stillborn.subscribe();
            let asked_at = Instant::now();
            let answered = async {
                loop {
                    match upstream.invoke(&spec.name, &event).await {
                        // A first request takes longer than the time limit of a test may be.
                        Err(InvokeError::TimedOut) if asked_at.elapsed() < LONGEST_START => {}
                        answer => break answer,
                    }
                }
            };
            let why = tokio::select! {
                answer = answered => match answer {
                    // Any answer shows that it runs, a refusal too.
                    Ok(_) | Err(InvokeError::Function(_)) => continue,
                    Err(why) => format!("the function {} does not answer: {why}", spec.name),
                },
                // Said at once; the request would wait for its time limit.
                Ok(ended) = stillborn.wait_for(Option::is_some) => {
                    format!("the function {}", ended.clone().unwrap_or_default())
                }
            };
            return Err(Error::new(format!("{why}; {}", log_tail(log))));
        }
        step.done("done");
        Ok(())
    }

    /// The ids of a function's processes that run now.
    pub fn pids(&self, function: &str) -> Vec<u32> {
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        pids.get(function).map(|ids| ids.iter().copied().collect()).unwrap_or_default()
    }

    /// The process id of `watch`, which leads its group.
    pub fn watch_id(&self) -> u32 {
        self.watch.id()
    }

    /// Waits until `watch` ends by itself, which it does only if something is wrong; how it ended.
    pub async fn watch_ended(&mut self) -> String {
        self.watch.ended().await
    }

    /// Ends the functions, then `watch`. At once: they keep nothing, and a request that is cut off here is what a
    /// crash in the cloud looks like.
    pub async fn stop(mut self) {
        self.stopping.send_replace(true);
        while self.supervisors.join_next().await.is_some() {}
        self.watch.kill().await;
    }
}

async fn start_watch(serve: &Serve<'_>, keeper: &Arc<Keeper>) -> Result<Group> {
    let mut command = Command::new(serve.cargo_lambda);
    command
        // Neither --timeout, which would also end the functions' wait for their next request, and them with it; nor
        // --concurrency, which would start functions in spite of --only-lambda-apis.
        .args(["lambda", "watch", "--only-lambda-apis", "--ignore-changes", "--disable-cors"])
        .args(["--invoke-address", "127.0.0.1", "--invoke-port", &serve.port.to_string()]);
    watch(&mut command, serve.port, serve.watch_log, keeper).await
}

/// Starts `cargo lambda watch` with the arguments of `command` in the workspace, and waits until it listens at `port`.
///
/// # Errors
/// It cannot be started; the error shows the end of its log.
pub async fn watch(command: &mut Command, port: u16, log: &Path, keeper: &Arc<Keeper>) -> Result<Group> {
    let out = File::create(log).context(|| format!("cannot create {}", log.display()))?;
    let err = out.try_clone().context(|| "cannot share watch's log".into())?;
    command.current_dir(paths::workspace()).stdout(out).stderr(err);
    let mut group = keeper.spawn("cargo lambda watch", command)?;
    let listens = async {
        let mut probe = tokio::time::interval(WATCH_POLL);
        loop {
            probe.tick().await;
            if tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
                return;
            }
        }
    };
    let why = tokio::select! {
        listening = tokio::time::timeout(WATCH_START, listens) => match listening {
            Ok(()) => return Ok(group),
            Err(_) => format!("it did not listen within {WATCH_START:?}"),
        },
        ended = group.ended() => format!("it ended ({ended})"),
    };
    Err(Error::new(format!("cargo lambda watch did not start: {why}; {}", log_tail(log))))
}

/// One place for a process of a function.
struct Instance {
    spec: Spec,
    binary: PathBuf,
    runtime_api: String,
    log: File,
    keeper: Arc<Keeper>,
    pids: Pids,
    stillborn: watch::Sender<Option<String>>,
}

impl Instance {
    /// Keeps a process running until told to stop.
    async fn supervise(mut self, mut stopping: watch::Receiver<bool>) {
        let mut wait = FIRST_WAIT;
        loop {
            let since = Instant::now();
            let ended = match self.spawn() {
                Ok(mut group) => {
                    let id = group.id();
                    self.record(id, true);
                    tokio::select! {
                        ended = group.ended() => {
                            self.record(id, false);
                            format!("pid {id}, {ended}")
                        }
                        () = stopped(&mut stopping) => {
                            group.kill().await;
                            self.record(id, false);
                            return;
                        }
                    }
                }
                Err(error) => error.to_string(),
            };
            wait = if since.elapsed() >= WELL { FIRST_WAIT } else { (wait * 2).min(LONGEST_WAIT) };
            let _ = writeln!(self.log, "holdfast-local: {} ended ({ended}) and is started again", self.spec.name);
            if since.elapsed() >= WELL {
                continue;
            }
            self.stillborn.send_replace(Some(format!("{} ended as it started ({ended})", self.spec.name)));
            // A back-off: a function that cannot start must not take a whole core.
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopped(&mut stopping) => return,
            }
        }
    }

    fn spawn(&self) -> Result<Group> {
        let log = || self.log.try_clone().context(|| "cannot share the functions' log".into());
        let mut command = Command::new(&self.binary);
        command
            .current_dir(paths::workspace())
            .env_clear()
            .envs(&self.spec.environment)
            .env("AWS_LAMBDA_FUNCTION_NAME", &self.spec.name)
            .env("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
            .env("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", self.spec.memory_mb.to_string())
            .env("AWS_LAMBDA_RUNTIME_API", &self.runtime_api)
            .stdout(log()?)
            .stderr(log()?);
        // For a developer who looks for a fault; Lambda sets neither.
        for name in ["RUST_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        self.keeper.spawn(&self.spec.name, &mut command)
    }

    fn record(&self, id: u32, runs: bool) {
        let mut pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        let ids = pids.entry(self.spec.name.clone()).or_default();
        if runs {
            ids.insert(id);
        } else {
            ids.remove(&id);
        }
    }
}

/// Returns when the functions should stop.
async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stop| *stop).await;
}

/// A request for a path that no function has.
fn http_probe() -> Value {
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": "/is-it-there",
        "rawQueryString": "",
        "headers": {},
        "requestContext": {
            "http": { "method": "GET", "path": "/is-it-there", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1" },
            "requestId": "is-it-there",
            "stage": "$default",
            "timeEpoch": 0
        },
        "isBase64Encoded": false
    })
}

/// The path of the log and its last lines.
fn log_tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().filter(|line| !line.trim().is_empty()).take(5).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("its log is {} and ends:\n  {}", paths::shown(log), lines.join("\n  "))
}
