//! The whole local stack: emulator, resources, functions, gateway and runner, started in this order and stopped in
//! the other. `cargo local` and the end-to-end tests use the same one.
//!
//! Invariant: after a stack has stopped, was dropped in a panic, or its process was killed, none of its processes is left,
//! and nothing else was touched.

use crate::app::{App, Around};
use crate::aws::Clients;
use crate::bootstrap::{Queue, Resources};
use crate::cors;
use crate::emulator::{Choice, Emulator};
use crate::error::{Error, Result};
use crate::functions::{self, Functions, Serve};
use crate::gateway::{Gateway, InvokeError, Served, Upstream, free_port};
use crate::paths;
use crate::process::Keeper;
use crate::progress::Step;
use crate::routes::Routes;
use crate::runner::{self, Runner};
use crate::template::{Scope, Template};
use crate::token::{Role, Signer};
use crate::tools;
use futures_util::future::BoxFuture;
use rustix::process::{Resource as Limit, getrlimit, setrlimit};
use serde_json::Value;
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// Logs of stacks that stopped this long ago are deleted when another starts.
const LOGS_KEPT: Duration = Duration::from_secs(7 * 24 * 3_600);

/// The options of a stack.
#[derive(Clone, Debug)]
pub struct Options {
    /// The emulator.
    pub emulator: Choice,
    /// Port of the API; any free port if `None`.
    pub port: Option<u16>,
    /// Port of an emulator that the stack starts; any free port if `None`.
    pub emulator_port: Option<u16>,
    /// Whether ministack writes its state when it ends, so that it can be started again.
    pub emulator_keeps_state: bool,
    /// Processes of each function.
    pub concurrency: usize,
    /// Time limit of a request, also if its function was killed.
    pub timeout: Duration,
    /// Template parameters that differ from their defaults.
    pub parameters: BTreeMap<String, String>,
    /// Variables for every function, over those of the template.
    pub environment: BTreeMap<String, String>,
    /// More arguments for the `cargo build` of the functions.
    pub build_arguments: Vec<String>,
    /// Which of the cloud's triggers the runner plays.
    pub runner: runner::Options,
    /// What the functions' AWS calls go through.
    pub proxy: Option<Arc<dyn Proxy>>,
}

/// Something between the functions and the emulator, such as the tests' `holdfast-wiretap`.
pub trait Proxy: Any + fmt::Debug + Send + Sync {
    /// Starts to pass calls on, and returns the URL for the functions. Each function signs with an access key id that is
    /// its own name.
    fn start<'a>(&'a self, deployed: Deployed<'a>) -> BoxFuture<'a, Result<String>>;
}

/// What a proxy may know about the stack.
#[derive(Debug)]
pub struct Deployed<'a> {
    /// The template.
    pub template: &'a Template,
    /// The resources on the emulator.
    pub resources: &'a Resources,
    /// The emulator.
    pub endpoint_url: &'a str,
    /// The functions' names.
    pub functions: BTreeSet<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            emulator: Choice::Ministack,
            port: None,
            emulator_port: None,
            emulator_keeps_state: false,
            concurrency: 4,
            // API Gateway's own limit.
            timeout: Duration::from_secs(30),
            parameters: BTreeMap::new(),
            environment: BTreeMap::new(),
            runner: runner::Options::default(),
            build_arguments: Vec::new(),
            proxy: None,
        }
    }
}

/// A running stack.
pub struct Stack {
    name: String,
    clients: Clients,
    resources: Resources,
    upstream: Upstream,
    signer: Signer,
    logs: Logs,
    // In the order in which they are stopped. `None` only while stopping.
    runner: Option<Runner>,
    gateway: Option<Gateway>,
    functions: Option<Functions>,
    proxy: Option<Arc<dyn Proxy>>,
    emulator: Option<Emulator>,
    keeper: Arc<Keeper>,
}

/// What is ready before there is anything to clean up.
struct Parts {
    app: App,
    routes: Routes,
    listener: TcpListener,
    binaries: BTreeMap<String, PathBuf>,
    cargo_lambda: PathBuf,
    watch_port: u16,
}

/// Where each part writes.
#[derive(Clone, Debug)]
pub struct Logs {
    /// The emulator.
    pub emulator: PathBuf,
    /// `cargo lambda watch`.
    pub watch: PathBuf,
    /// The functions: their own structured lines.
    pub functions: PathBuf,
}

impl Stack {
    /// Starts everything and waits until every function answers.
    ///
    /// # Errors
    /// A part does not start; those that did are stopped again.
    pub async fn start(options: Options) -> Result<Self> {
        if options.concurrency == 0 {
            return Err(Error::new("concurrency must be at least 1"));
        }
        raise_file_limit();
        // What can be refused at once comes before what takes long.
        let listener = Gateway::listen(options.port).await?;
        options.emulator.check(options.emulator_port).await?;
        let name = format!("holdfast-{:08x}", fastrand::u32(..));
        // A first look, for the names of the binaries only; references resolve once the resources are there.
        let blank = |region: &str| Scope {
            stack: name.clone(),
            region: region.to_owned(),
            parameters: options.parameters.clone(),
            resources: BTreeMap::new(),
        };
        let app = App::load(&blank(""))?;
        let signer = Signer::load()?;
        let keeper = Keeper::start()?;
        let logs = Logs::new(&name)?;

        let cargo_lambda = tools::ensure(tools::CARGO_LAMBDA, &keeper).await?;
        let routes = app.routes(&blank("")).await?;
        let names: Vec<String> = app.names().into_iter().collect();
        let binaries = functions::build(&names, &options.build_arguments, &keeper).await?;

        let emulator_port = options.emulator_port.map_or_else(free_port, Ok)?;
        let emulator =
            Emulator::start(&options.emulator, options.emulator_keeps_state, emulator_port, &logs.emulator, &keeper);
        let emulator = emulator.await?;
        let clients = Clients::new(emulator.url());
        let resources = Resources::new(blank(&clients.region));
        let watch_port = free_port()?;
        let upstream = Upstream::new(format!("http://127.0.0.1:{watch_port}"), options.timeout)?;
        let mut stack = Self {
            name,
            clients,
            resources,
            upstream,
            signer,
            logs,
            runner: None,
            gateway: None,
            functions: None,
            proxy: options.proxy.clone(),
            emulator: Some(emulator),
            keeper,
        };
        // From here on there may be something to clean up on an emulator that others use too.
        let parts = Parts { app, routes, listener, binaries, cargo_lambda, watch_port };
        match stack.start_rest(parts, &options).await {
            Ok(()) => Ok(stack),
            Err(error) => {
                stack.stop().await;
                Err(error)
            }
        }
    }

    async fn start_rest(&mut self, parts: Parts, options: &Options) -> Result<()> {
        let Parts { app, routes, listener, binaries, cargo_lambda, watch_port } = parts;
        let step = Step::start("making the table, queues and schedule group of template.yaml");
        self.resources.create(&app.template, &self.clients).await?;
        step.done(&self.name);
        let proxy_url = match &self.proxy {
            Some(proxy) => {
                let (resources, endpoint_url) = (&self.resources, self.endpoint_url());
                let functions = app.names();
                Some(proxy.start(Deployed { template: &app.template, resources, endpoint_url, functions }).await?)
            }
            None => None,
        };
        let mut environment = options.environment.clone();
        // Of the gateway: a bare `cargo lambda watch` has none.
        environment.insert("HOLDFAST_LOCAL_SIGN_IN".to_owned(), "true".to_owned());
        let specs = app.specs(
            &self.resources,
            &Around {
                endpoint_url: proxy_url.as_deref().unwrap_or(self.endpoint_url()),
                region: &self.clients.region,
                own_access_keys: proxy_url.is_some(),
                key_set: self.signer.key_set(),
                environment: &environment,
            },
        )?;
        let serve = Serve {
            cargo_lambda: &cargo_lambda,
            port: watch_port,
            concurrency: options.concurrency,
            watch_log: &self.logs.watch,
            functions_log: &self.logs.functions,
        };
        let functions = self.functions.insert(Functions::start(&specs, &binaries, &serve, &self.keeper).await?);
        functions.warm(&specs, &self.upstream, &self.logs.functions).await?;
        let cors = cors::layer(&app.template, &self.resources.scope)?;
        let served = Served { routes, functions: app.names(), cors, signer: self.signer.clone() };
        self.gateway = Some(Gateway::open(listener, self.upstream.clone(), served)?);
        let work = app.work(&self.resources, &self.clients, &self.upstream)?;
        self.runner = Some(Runner::start(work, &options.runner));
        Ok(())
    }

    /// Its name, which every resource's name starts with.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the API is.
    pub fn api_url(&self) -> &str {
        self.gateway.as_ref().map_or("", Gateway::url)
    }

    /// Where the emulator is.
    pub fn endpoint_url(&self) -> &str {
        &self.clients.endpoint_url
    }

    /// The AWS clients for the emulator.
    pub fn clients(&self) -> &Clients {
        &self.clients
    }

    /// The name of the table.
    ///
    /// # Errors
    /// The template has not exactly one.
    pub fn table(&self) -> Result<&str> {
        self.resources.table()
    }

    /// A queue by its name in the template.
    ///
    /// # Errors
    /// The template has none of that name.
    pub fn queue(&self, id: &str) -> Result<&Queue> {
        self.resources.queue(id)
    }

    /// The schedule groups' names on the emulator.
    pub fn schedule_groups(&self) -> impl Iterator<Item = &str> {
        self.resources.groups.values().map(String::as_str)
    }

    /// A token for a caller.
    ///
    /// # Errors
    /// Signing fails.
    pub fn token(&self, sub: &str, role: Role) -> Result<String> {
        self.signer.token(sub, role)
    }

    /// Calls a function with an event, as Lambda's Invoke does.
    ///
    /// # Errors
    /// The function failed, or did not answer.
    pub async fn invoke(&self, function: &str, event: &Value) -> std::result::Result<Value, InvokeError> {
        self.upstream.invoke(function, event).await
    }

    /// The ids of a function's processes that run now. One that is killed is replaced at once.
    pub fn pids(&self, function: &str) -> Vec<u32> {
        self.functions.as_ref().map(|functions| functions.pids(function)).unwrap_or_default()
    }

    /// The process id of `cargo lambda watch`, which leads its group.
    pub fn watch_id(&self) -> Option<u32> {
        self.functions.as_ref().map(Functions::watch_id)
    }

    /// What plays the cloud: its events and counters.
    pub fn runner(&self) -> Option<&Runner> {
        self.runner.as_ref()
    }

    /// What the functions' AWS calls go through.
    pub fn proxy(&self) -> Option<&dyn Proxy> {
        self.proxy.as_deref()
    }

    /// The emulator.
    pub fn emulator(&self) -> Option<&Emulator> {
        self.emulator.as_ref()
    }

    /// Where each part writes.
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// Waits until a part that must run ends by itself; which one, and how. (A function that ends is started again.)
    pub async fn ended(&mut self) -> String {
        let watch_log = &self.logs.watch;
        let watch = async {
            match self.functions.as_mut() {
                Some(functions) => functions.watch_ended().await,
                None => std::future::pending().await,
            }
        };
        let emulator = async {
            match &self.emulator {
                Some(emulator) => emulator.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = watch => format!("cargo lambda watch ended ({ended}); its log is {}", paths::shown(watch_log)),
            ended = emulator => format!("the emulator is gone: {ended}"),
        }
    }

    /// Stops all that was started, and deletes what was made on an emulator that was not.
    pub async fn stop(mut self) {
        if let Some(runner) = self.runner.take() {
            runner.stop().await;
        }
        drop(self.gateway.take());
        if let Some(functions) = self.functions.take() {
            functions.stop().await;
        }
        drop(self.proxy.take());
        if let Some(emulator) = self.emulator.take() {
            if emulator.is_shared() {
                self.resources.delete(&self.clients).await;
            }
            emulator.stop().await;
        }
    }
}

impl Drop for Stack {
    /// The way out of a panic. [`Stack::stop`] has left nothing to do here.
    fn drop(&mut self) {
        if self.emulator.as_ref().is_some_and(Emulator::is_shared) {
            self.delete_from_outside();
        }
        self.keeper.kill_all();
    }
}

impl Stack {
    /// Deletes the resources in a thread with a runtime of its own: a drop cannot wait on the runtime that it may be
    /// running in.
    fn delete_from_outside(&mut self) {
        let clients = Clients::new(&self.clients.endpoint_url);
        let resources = &mut self.resources;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                if let Ok(runtime) = runtime {
                    runtime.block_on(resources.delete(&clients));
                }
            });
        });
    }
}

impl Logs {
    fn new(stack: &str) -> Result<Self> {
        let folder = paths::local("logs")?;
        remove_old(&folder);
        let log = |part: &str| folder.join(format!("{stack}.{part}.log"));
        Ok(Self { emulator: log("emulator"), watch: log("watch"), functions: log("functions") })
    }
}

fn remove_old(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let modified = entry.metadata().and_then(|data| data.modified());
        if modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > LOGS_KEPT)) {
            // Another stack may just have removed it.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// A thousand shoppers are two thousand sockets here, callers' and gateway's; the usual soft limit is half of that.
fn raise_file_limit() {
    let limit = getrlimit(Limit::Nofile);
    // Where it cannot be raised, a large load fails with a clear "too many open files".
    let _ = setrlimit(Limit::Nofile, rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum });
}
