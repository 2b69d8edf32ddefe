//! The AWS emulator: ministack (the default, no Docker), LocalStack in Docker, or whatever answers at an endpoint.
//!
//! Invariants: it binds to 127.0.0.1, it keeps nothing after the stack has stopped, and an emulator that was not started
//! here is not stopped here.

use crate::error::{Context, Error, Result};
use crate::paths;
use crate::process::{Group, Keeper};
use crate::progress::Step;
use crate::tools::{self, Tool};
use rustix::process::Signal;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::Mutex;

/// The services that the template needs.
const SERVICES: &str = "dynamodb,sqs,scheduler";
/// The health page that LocalStack defined and ministack answers too.
const HEALTH: &str = "_localstack/health";
/// Neither emulator says when it is ready, so its health page is asked at this interval.
const HEALTH_POLL: Duration = Duration::from_millis(100);
/// How long a start may take: seconds for ministack, longer for LocalStack on a slow disk.
const START: Duration = Duration::from_secs(90);
/// How often an emulator that was not started here is asked whether it still listens.
const LISTENS_POLL: Duration = Duration::from_millis(500);
/// Whether ministack writes its state when it ends: no, and yes.
const KEEPS: [(&str, &str); 2] = [("PERSIST_STATE", "0"), ("PERSIST_STATE", "1")];

/// Which emulator.
#[derive(Clone, Debug)]
pub enum Choice {
    /// The Python package, installed on first use.
    Ministack,
    /// `localstack/compose.yaml`.
    LocalStack,
    /// Anything that runs already.
    Endpoint(String),
}

impl Choice {
    /// Whether it can be started, on `port` if one is given, or answers.
    ///
    /// # Errors
    /// The port is taken, there is no Docker for LocalStack, or nothing at the endpoint.
    pub async fn check(&self, port: Option<u16>) -> Result<()> {
        if let Self::Endpoint(url) = self {
            return answers(url).await;
        }
        port.map_or(Ok(()), is_free)?;
        if matches!(self, Self::LocalStack) { docker_is_there().await } else { Ok(()) }
    }
}

/// An emulator that answers.
pub struct Emulator {
    url: String,
    started: Started,
}

enum Started {
    Ministack(Box<Ministack>),
    Compose(Compose),
    Nothing,
}

impl Emulator {
    /// Starts the emulator and waits until it answers, or uses the one that runs. With `keeps_state` ministack writes its
    /// state when it ends.
    ///
    /// # Errors
    /// It cannot be installed or started.
    pub async fn start(
        choice: &Choice,
        keeps_state: bool,
        port: u16,
        log: &Path,
        keeper: &Arc<Keeper>,
    ) -> Result<Self> {
        match choice {
            Choice::Ministack => {
                let settings = [("SERVICES", SERVICES), KEEPS[usize::from(keeps_state)]];
                ministack(tools::MINISTACK, port, log, keeper, &settings).await
            }
            Choice::LocalStack => localstack(port, keeper).await,
            Choice::Endpoint(url) => Ok(Self { url: url.trim_end_matches('/').to_owned(), started: Started::Nothing }),
        }
    }

    /// Starts ministack as a cloud that can be deployed to: all services, functions that it runs itself, and roles that
    /// are enforced. Only the root credentials ([`crate::aws::CREDENTIAL`]) may do everything.
    ///
    /// # Errors
    /// It cannot be installed or started.
    pub async fn start_cloud(port: u16, log: &Path, keeper: &Arc<Keeper>) -> Result<Self> {
        let settings = [("LAMBDA_EXECUTOR", "local"), ("AUTH", "true"), KEEPS[0]];
        ministack(tools::MINISTACK_CLOUD, port, log, keeper, &settings).await
    }

    /// Its one endpoint.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Whether others may use it too.
    pub fn is_shared(&self) -> bool {
        matches!(self.started, Started::Nothing)
    }

    /// The ministack, if it is one that was started here.
    pub fn ministack(&self) -> Option<&Ministack> {
        match &self.started {
            Started::Ministack(ministack) => Some(ministack),
            Started::Compose(_) | Started::Nothing => None,
        }
    }

    /// Waits until it ends by itself; how, and where its log is. Nobody may end or start it meanwhile.
    pub async fn ended(&self) -> String {
        match &self.started {
            Started::Ministack(ministack) => ministack.ended().await,
            Started::Compose(_) | Started::Nothing => {
                until_nobody_listens(&self.url).await;
                format!("nothing answers at {} any more", self.url)
            }
        }
    }

    /// Stops what [`Emulator::start`] started.
    pub async fn stop(self) {
        match self.started {
            Started::Ministack(ministack) => ministack.stop().await,
            Started::Compose(compose) => compose.down().await,
            Started::Nothing => {}
        }
    }
}

/// A ministack that the stack started, and what it takes to start it again.
pub struct Ministack {
    program: PathBuf,
    folder: PathBuf,
    port: u16,
    log: PathBuf,
    settings: Vec<(&'static str, &'static str)>,
    keeper: Arc<Keeper>,
    /// `None` while it is halted.
    process: Mutex<Option<Group>>,
}

async fn ministack(
    tool: Tool,
    port: u16,
    log: &Path,
    keeper: &Arc<Keeper>,
    settings: &[(&'static str, &'static str)],
) -> Result<Emulator> {
    let program = tools::ensure(tool, keeper).await?;
    let step = Step::start("starting ministack");
    let ministack = Ministack {
        program,
        folder: paths::local("ministack")?,
        port,
        log: log.to_owned(),
        settings: settings.to_vec(),
        keeper: Arc::clone(keeper),
        process: Mutex::default(),
    };
    File::create(log).context(|| format!("cannot create {}", log.display()))?;
    // The state of an emulator that was killed at the same port.
    ministack.forget();
    ministack.run().await?;
    let url = ministack.url();
    step.done(&url);
    Ok(Emulator { url, started: Started::Ministack(Box::new(ministack)) })
}

impl Ministack {
    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The directory of its state.
    fn state(&self) -> PathBuf {
        self.folder.join(format!("state-{}", self.port))
    }

    async fn spawn(&self) -> Result<Group> {
        let log = || {
            let opened = OpenOptions::new().append(true).open(&self.log);
            opened.context(|| format!("cannot write to {}", self.log.display()))
        };
        let mut command = Command::new(&self.program);
        command
            .current_dir(&self.folder)
            .stdout(log()?)
            .stderr(log()?)
            .env("BIND_HOST", "127.0.0.1")
            .env("GATEWAY_PORT", self.port.to_string())
            .env("LOG_LEVEL", "WARNING")
            // What it writes (a file with its process id) goes into its own folder, not into /tmp.
            .env("TMPDIR", &self.folder)
            .env("STATE_DIR", self.state())
            .env("S3_DATA_DIR", self.folder.join("s3"))
            // Beside its one port it would listen on others.
            .env("IOT_MTLS_ENABLED", "0")
            .env("SFTP_ENABLED", "0")
            // It would look for containers of its own to remove.
            .env("DOCKER_HOST", format!("unix://{}", self.folder.join("no-docker").display()))
            // What a developer set for other work must not change what runs here.
            .env_remove("AUTH")
            .env_remove("USE_SSL")
            .env_remove("MINISTACK_HOST")
            .env_remove("MINISTACK_ACCOUNT_ID")
            .env_remove("LOCALSTACK_PERSISTENCE")
            .envs(self.settings.iter().copied());
        let mut group = self.keeper.spawn("ministack", &mut command)?;
        let url = self.url();
        let ready = tokio::select! {
            healthy = until_healthy(&url) => healthy,
            ended = group.ended() => Err(Error::new(format!("it ended at once ({ended})"))),
        };
        ready.map_err(|why| {
            Error::new(format!("ministack did not start: {why}; its log is {}", paths::shown(&self.log)))
        })?;
        Ok(group)
    }

    /// Starts its process and waits until it answers.
    ///
    /// # Errors
    /// It cannot be started.
    pub async fn run(&self) -> Result<()> {
        let group = self.spawn().await?;
        *self.process.lock().await = Some(group);
        Ok(())
    }

    /// Whether it writes its state when it ends.
    pub fn keeps_state(&self) -> bool {
        self.settings.contains(&KEEPS[1])
    }

    /// Its process, for the caller to end; `None` if it does not run.
    pub async fn take_process(&self) -> Option<Group> {
        self.process.lock().await.take()
    }

    /// Sends a signal to its process.
    ///
    /// # Errors
    /// It does not run.
    pub async fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process.lock().await;
        process.as_ref().ok_or_else(|| Error::new("ministack does not run"))?.signal(signal);
        Ok(())
    }

    async fn ended(&self) -> String {
        match self.process.lock().await.as_mut() {
            Some(group) => format!("ministack ended ({}); its log is {}", group.ended().await, paths::shown(&self.log)),
            None => "ministack does not run".to_owned(),
        }
    }

    /// Immediately: its state is not needed any more.
    async fn stop(self) {
        if let Some(group) = self.take_process().await {
            group.kill().await;
        }
        let _ = std::fs::remove_file(self.folder.join(format!("ministack-{}.pid", self.port)));
        self.forget();
    }

    fn forget(&self) {
        // Most never wrote any.
        let _ = std::fs::remove_dir_all(self.state());
    }
}

async fn localstack(port: u16, keeper: &Arc<Keeper>) -> Result<Emulator> {
    let step = Step::start("starting LocalStack in Docker (the first time, its image is fetched)");
    // A project of its own: another LocalStack of the same user is not touched.
    let compose = Compose {
        file: paths::workspace().join("localstack").join("compose.yaml"),
        project: format!("holdfast-{port}"),
        port,
        down: false,
    };
    let mut command = compose.command(&["up", "--detach"]);
    let mut group = keeper.spawn("docker compose", command.stdout(Stdio::null()).stderr(Stdio::inherit()))?;
    let status = group.wait().await?;
    if !status.success() {
        compose.down().await;
        return Err(Error::new(format!("docker compose could not start LocalStack ({status})")));
    }
    let url = format!("http://127.0.0.1:{port}");
    if let Err(why) = until_healthy(&url).await {
        compose.down().await;
        return Err(Error::new(format!("LocalStack did not start: {why}")));
    }
    step.done(&url);
    Ok(Emulator { url, started: Started::Compose(compose) })
}

/// Returns when a connection is refused. Its process is not this one's child, so there is nothing to wait for.
async fn until_nobody_listens(url: &str) {
    let address = reqwest::Url::parse(url).ok().and_then(|url| {
        let port = url.port_or_known_default()?;
        Some((url.host_str()?.trim_matches(['[', ']']).to_owned(), port))
    });
    let Some(address) = address else { return };
    let mut probe = tokio::time::interval(LISTENS_POLL);
    loop {
        probe.tick().await;
        if tokio::net::TcpStream::connect(&address).await.is_err() {
            return;
        }
    }
}

/// The URL of an endpoint: with its scheme, without a path.
///
/// # Errors
/// It is not one; the error is a sentence.
pub fn endpoint(text: &str) -> Result<String> {
    let wrong = || Error::new("a URL with a scheme and a host is needed, such as http://127.0.0.1:4566");
    let url = reqwest::Url::parse(text).map_err(|_| wrong())?;
    let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() || !plain {
        return Err(wrong());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Asks for tables and not for the health page: anything that speaks DynamoDB will do.
async fn answers(url: &str) -> Result<()> {
    let endpoint = endpoint(url).map_err(|why| Error::new(format!("{url:?}: {why}")))?;
    let asked = crate::aws::Clients::new(&endpoint).dynamodb.list_tables().limit(1).send().await;
    asked.map_err(|error| {
        Error::new(format!("no AWS emulator answers at {url} (asked for its tables): {}", crate::error::root(&error)))
    })?;
    Ok(())
}

/// A port that somebody asked for must be free. ministack and Docker only say it in their logs.
fn is_free(port: u16) -> Result<()> {
    let taken = std::net::TcpListener::bind(("127.0.0.1", port)).map(drop);
    taken.context(|| format!("the emulator cannot listen on 127.0.0.1:{port} (`--emulator-port` names another)"))
}

async fn docker_is_there() -> Result<()> {
    let asked =
        Command::new("docker").args(["version", "--format", "{{.Server.Version}}"]).stdin(Stdio::null()).output().await;
    if asked.is_ok_and(|output| output.status.success()) {
        return Ok(());
    }
    Err(Error::new(
        "no Docker daemon answers, and LocalStack runs in Docker: use `--emulator ministack`, which needs no Docker, \
         or `--endpoint URL` for an emulator that runs already",
    ))
}

async fn until_healthy(url: &str) -> Result<()> {
    let client = reqwest::Client::builder().no_proxy().build().context(|| "cannot make an HTTP client".into())?;
    let healthy = async {
        let mut probe = tokio::time::interval(HEALTH_POLL);
        loop {
            probe.tick().await;
            let asked = client.get(format!("{url}/{HEALTH}")).send().await;
            if asked.is_ok_and(|response| response.status().is_success()) {
                return;
            }
        }
    };
    tokio::time::timeout(START, healthy)
        .await
        .map_err(|_| Error::new(format!("{url}/{HEALTH} did not answer within {START:?}")))
}

/// A Compose project. Its containers are the Docker daemon's children, so no process group ends them.
struct Compose {
    file: PathBuf,
    project: String,
    port: u16,
    down: bool,
}

impl Compose {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.arg("compose").arg("--file").arg(&self.file).args(["--project-name", &self.project]);
        command.args(arguments).env("HOLDFAST_LOCALSTACK_PORT", self.port.to_string());
        command
    }

    fn down_command(&self) -> Command {
        let mut command = self.command(&["down", "--volumes", "--timeout", "5"]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    async fn down(mut self) {
        self.down = true;
        if !self.down_command().status().await.is_ok_and(|status| status.success()) {
            eprintln!("LocalStack could not be stopped: docker compose --project-name {} down", self.project);
        }
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        if !self.down {
            // The way out of a panic: there is no runtime left to wait with.
            let _ = self.down_command().into_std().status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_whole_url() {
        for good in ["http://127.0.0.1:4566", "https://localstack.example", "http://[::1]:4566", "http://h:1/"] {
            assert_eq!(endpoint(good).unwrap(), good.trim_end_matches('/'));
        }
        for bad in ["127.0.0.1:4566", "localhost:4566", "localhost", "", "http://", "ftp://h:1", "http://h:1/path"] {
            let why = endpoint(bad).unwrap_err().to_string();
            assert!(why.contains("http://127.0.0.1:4566"), "{bad}: {why}");
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_refused_at_once() {
        let taken = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = taken.local_addr().unwrap().port();
        let why = Choice::Ministack.check(Some(port)).await.unwrap_err().to_string();
        assert!(why.contains(&format!("127.0.0.1:{port}")) && why.contains("--emulator-port"), "{why}");
        drop(taken);
        Choice::Ministack.check(Some(port)).await.unwrap();
    }

    #[tokio::test]
    async fn the_end_of_an_emulator_that_was_not_started_here_is_noticed() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let emulator = Emulator { url: url.clone(), started: Started::Nothing };
        let mut ended = std::pin::pin!(emulator.ended());
        let accept = async {
            listener.accept().await.unwrap();
            drop(listener);
        };
        tokio::select! {
            () = accept => {}
            why = &mut ended => panic!("it listens: {why}"),
        }
        let why = tokio::time::timeout(START, ended).await.unwrap();
        assert!(why.contains(&url), "{why}");
    }
}
