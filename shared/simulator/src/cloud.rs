//! Lambda: environments of the real functions that come and go, each with its own cache, clock and connections.

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use aws_sdk_dynamodb::config::StalledStreamProtectionConfig;
use aws_sdk_dynamodb::config::retry::RetryPartition;
use aws_smithy_runtime_api::client::auth::AuthSchemeId;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use axum::Router;
use holdfast_aws::clock::Clock;
use holdfast_aws::config::Environment as AwsEnvironment;
use holdfast_aws::queues::Queues;
use holdfast_aws::schedules::{Schedules, Target};
use holdfast_domain::RateLimit;
use holdfast_http::{Authenticator, Limiter, limited, serve};
use holdfast_store::{Layout, Store};
use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED, TABLE};
use lambda_http::LambdaEvent;
use lambda_runtime::Context as LambdaContext;
use serde_json::Value;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep, sleep_until, timeout};

use crate::books::SKEW_MS;
use crate::faults::Fault;
use crate::plan::Plan;
use crate::world::{Answer, Call, SLOW_MS, World, go, millis};

/// The functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Function {
    Catalog,
    Reserve,
    Confirm,
    Expire,
    Admin,
}

impl Function {
    fn name(self) -> &'static str {
        match self {
            Self::Catalog => "catalog",
            Self::Reserve => "reserve",
            Self::Confirm => "confirm",
            Self::Expire => "expire",
            Self::Admin => "admin",
        }
    }

    /// As in template.yaml.
    fn timeout_ms(self) -> u64 {
        if self == Self::Expire { 30_000 } else { 10_000 }
    }
}

/// What will happen to an environment at one of its calls.
#[derive(Debug, Clone, Copy)]
enum Doom {
    KilledBefore,
    KilledAfter,
    FrozenBefore(u64),
    FrozenAfter(u64),
}

/// The state of an environment that its connections and the futures that run it share.
#[derive(Debug, Default)]
struct Vitals {
    killed: bool,
    /// Those who wait in it when it is killed.
    wakers: Vec<Waker>,
    /// How many requests it serves.
    running: usize,
    frozen_until: Option<Instant>,
    /// After how many more calls something happens to it, and what.
    doom: Option<(u32, Doom)>,
    /// The skew of its wall clock.
    skew_ms: i64,
}

/// An environment's connection to AWS.
#[derive(Clone)]
struct Connection {
    world: World,
    name: Arc<str>,
    vitals: Arc<Mutex<Vitals>>,
}

impl Vitals {
    fn kill(&mut self) {
        self.killed = true;
        self.wakers.drain(..).for_each(Waker::wake);
    }
}

fn lock(vitals: &Mutex<Vitals>) -> MutexGuard<'_, Vitals> {
    vitals.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
enum Handler {
    Http(Router),
    Confirm(Arc<confirm::App>, Router),
    Expire(Arc<expire::App>),
}

#[derive(Clone)]
struct Environment {
    name: Arc<str>,
    /// The skew of its clock, until the clock is set.
    skew_ms: i64,
    vitals: Arc<Mutex<Vitals>>,
    handler: Handler,
}

/// All environments. Clones are the same cloud.
#[derive(Clone)]
pub(crate) struct Cloud {
    pub(crate) world: World,
    /// Those that can serve another request.
    free: Arc<Mutex<BTreeMap<Function, Vec<Environment>>>>,
    /// How many requests one environment of `reserve` serves at once.
    at_once: usize,
    /// The rate limit on each customer's changes, if any.
    pub(crate) rate: Option<RateLimit>,
    due_partitions: (u32, u32),
    mixed_layouts: bool,
}

impl Cloud {
    /// As a plan has it.
    pub(crate) fn new(world: World, plan: &Plan) -> Self {
        let rate = plan.rate.and_then(|(per_second, burst)| RateLimit::new(per_second, burst));
        Self {
            world,
            free: Arc::default(),
            at_once: plan.at_once,
            rate,
            due_partitions: plan.due_partitions,
            mixed_layouts: plan.mixed_layouts,
        }
    }

    fn free(&self) -> MutexGuard<'_, BTreeMap<Function, Vec<Environment>>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls a function. `None` without an answer: it failed, ran out of time, or was killed.
    pub(crate) async fn invoke(&self, function: Function, event: Value) -> Option<Value> {
        self.invoke_by(function, event).await.map(|(answer, _)| answer)
    }

    /// The same, with the clock skew of the environment that answered.
    pub(crate) async fn invoke_by(&self, function: Function, event: Value) -> Option<(Value, i64)> {
        let mut event = event;
        let planted = self.world.lock().planted;
        if let Some(planted) = planted {
            if planted.ignored(function, &event) {
                return Some((Value::Null, 0));
            }
            planted.read(function, &mut event);
        }
        let environment = self.environment(function);
        self.starts(function, &environment);
        let kill_after = self.doom(function, &environment);
        let skew_ms = environment.skew_ms;
        let work = run(&environment.handler, event.clone());
        let alive = Alive { vitals: &environment.vitals, thaw: None, work: Box::pin(work) };
        let time = kill_after.unwrap_or(function.timeout_ms()).min(function.timeout_ms());
        let outcome = timeout(millis(time), alive).await;
        let (answer, survives) = match outcome {
            Ok(Some(Ok(answer))) => (Some(answer), true),
            Ok(Some(Err(error))) => {
                self.world.note(format_args!("{} failed: {error}", environment.name));
                (None, true)
            }
            Ok(None) | Err(_) => {
                self.world.note(format_args!("{} is killed", environment.name));
                (None, false)
            }
        };
        self.ends(function, environment, survives);
        let mut answer = answer?;
        if let Some(planted) = planted {
            planted.replied(function, &event, &mut answer);
        }
        Some((answer, skew_ms))
    }

    fn at_once(&self, function: Function) -> usize {
        if function == Function::Reserve { self.at_once } else { 1 }
    }

    /// Counts a request of an environment, which stays free for others while it has room.
    fn starts(&self, function: Function, environment: &Environment) {
        let mut vitals = lock(&environment.vitals);
        vitals.running += 1;
        if vitals.running < self.at_once(function) {
            self.free().entry(function).or_default().push(environment.clone());
        }
    }

    /// Counts the end of a request. If the environment was killed, so were its other requests.
    fn ends(&self, function: Function, environment: Environment, survives: bool) {
        let mut free = self.free();
        let free = free.entry(function).or_default();
        let mut vitals = lock(&environment.vitals);
        let had_room = vitals.running < self.at_once(function);
        vitals.running -= 1;
        if !survives {
            vitals.kill();
            free.retain(|other| !Arc::ptr_eq(&other.vitals, &environment.vitals));
            return;
        }
        if vitals.running == 0 {
            vitals.doom = None;
        }
        drop(vitals);
        if !had_room {
            free.push(environment);
        }
    }

    fn environment(&self, function: Function) -> Environment {
        let mut free = self.free();
        let idle = free.entry(function).or_default();
        let mut state = self.world.lock();
        let crate::world::State { random, faults, .. } = &mut *state;
        let cold = faults.strikes(random, Fault::ColdStart);
        if !cold && !idle.is_empty() {
            let at = random.usize(0..idle.len());
            let mut environment = idle.swap_remove(at);
            // One that is set while a request runs is another fault: a clock that jumps.
            let rests = lock(&environment.vitals).running == 0;
            if rests && faults.strikes(random, Fault::ClockSet) {
                environment.skew_ms = skew(random);
                state.history.note(
                    self.world.at(),
                    format_args!("{} has its clock set: it is off by {} ms", environment.name, environment.skew_ms),
                );
            }
            let mut vitals = lock(&environment.vitals);
            vitals.skew_ms = environment.skew_ms;
            drop(vitals);
            return environment;
        }
        let skew_ms = skew(random);
        let (number, seed) = (random.u16(..), random.u64(..));
        drop(state);
        Environment::start(self, function, number, skew_ms, seed)
    }

    /// Draws what will happen to an environment during its next invocation. Returns after how long it is killed, if it
    /// is.
    fn doom(&self, function: Function, environment: &Environment) -> Option<u64> {
        let mut state = self.world.lock();
        let crate::world::State { random, faults, .. } = &mut *state;
        // Most invocations make a handful of calls; one that keeps retrying makes dozens.
        let at = [random.u32(0..6), random.u32(0..40)][random.usize(0..2)];
        let frozen_ms = [random.u64(50..2_000), random.u64(1_000..9_000)][random.usize(0..2)];
        let doom = if faults.strikes(random, Fault::KilledBefore) {
            Some(Doom::KilledBefore)
        } else if faults.strikes(random, Fault::KilledAfter) {
            Some(Doom::KilledAfter)
        } else if faults.strikes(random, Fault::Frozen) {
            Some(if random.bool() { Doom::FrozenBefore(frozen_ms) } else { Doom::FrozenAfter(frozen_ms) })
        } else {
            None
        };
        if let Some(doom) = doom {
            lock(&environment.vitals).doom = Some((at, doom));
        }
        let kill_after = [random.u64(1..200), random.u64(1..function.timeout_ms())][random.usize(0..2)];
        faults.strikes(random, Fault::KilledAnytime).then_some(kill_after)
    }
}

/// Clocks are right, or off by up to the allowed skew.
fn skew(random: &mut fastrand::Rng) -> i64 {
    if random.bool() { 0 } else { random.i64(-SKEW_MS..=SKEW_MS) }
}

/// An environment's wall clock.
fn wall_clock(world: &World, vitals: &Arc<Mutex<Vitals>>) -> Clock {
    let (world, vitals) = (world.clone(), vitals.clone());
    Clock::new(move || world.clock(lock(&vitals).skew_ms))
}

impl Environment {
    fn start(cloud: &Cloud, function: Function, number: u16, skew_ms: i64, seed: u64) -> Self {
        let (world, rate, (of_products, of_baskets)) = (&cloud.world, cloud.rate, cloud.due_partitions);
        let layout = if cloud.mixed_layouts && number % 2 == 1 { Layout::One } else { Layout::Two };
        let name: Arc<str> = format!("{}-{number:04x}", function.name()).into();
        let vitals = Arc::new(Mutex::new(Vitals { skew_ms, ..Vitals::default() }));
        let connection = Connection { world: world.clone(), name: name.clone(), vitals: vitals.clone() };
        let aws = AwsEnvironment::of_emulator("us-east-1", "http://aws.test")
            .with_http_client(SharedHttpClient::new(connection));
        // Within a process, the SDKs share their retry quota, and draw tokens by the thread's random numbers; an
        // environment is a process of its own.
        // They do not sign, and do not watch the throughput of a body: nothing here checks a signature, a body arrives
        // at once, and both cost time with every call.
        macro_rules! own {
            ($client:expr, $sdk:ident) => {
                $sdk::Client::from_conf(
                    $client
                        .config()
                        .to_builder()
                        .retry_partition(RetryPartition::custom("own").build())
                        .allow_no_auth()
                        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
                        .auth_scheme_preference([AuthSchemeId::from("no_auth")])
                        .build(),
                )
            };
        }
        let queues = || Queues::new(own!(aws.sqs(), aws_sdk_sqs), CONFIRMATIONS.to_owned(), FAILED.to_owned());
        let clock = wall_clock(world, &vitals);
        let store = || {
            Store::new(own!(aws.dynamodb(), aws_sdk_dynamodb), TABLE, clock.clone())
                .seeded(seed)
                .with_due_partitions(of_products, of_baskets)
                .with_layout(layout)
        };
        let http = |router| serve(router, Authenticator::default());
        let limiter = || rate.map(|rate| Limiter::new(store(), clock.clone(), rate));
        let handler = match function {
            Function::Catalog => {
                Handler::Http(http(catalog::router(catalog::App { store: store(), clock: clock.clone() })))
            }
            Function::Reserve => {
                let schedules = Schedules::new(own!(aws.scheduler(), aws_sdk_scheduler), target(), 10, clock.clone());
                let app = reserve::App { store: store(), schedules, clock: clock.clone() };
                Handler::Http(http(limited(reserve::router(app), limiter())))
            }
            Function::Confirm => {
                let app = Arc::new(confirm::App {
                    store: store(),
                    queues: queues(),
                    clock: clock.clone(),
                    customers_confirm: true,
                });
                let router = http(limited(confirm::router(app.clone()), limiter()));
                Handler::Confirm(app, router)
            }
            Function::Expire => {
                let failed = queues().failed().clone();
                Handler::Expire(Arc::new(expire::App {
                    store: store(),
                    failed,
                    clock: clock.clone(),
                    moves_products: layout == Layout::Two,
                }))
            }
            Function::Admin => {
                let app = admin::App {
                    store: store(),
                    queues: queues(),
                    clock: clock.clone(),
                    default_max_per_customer: None,
                };
                Handler::Http(http(admin::router(app)))
            }
        };
        world.note(format_args!("{name} starts, its clock off by {skew_ms} ms"));
        Self { name, skew_ms, vitals, handler }
    }
}

fn target() -> Target {
    Target {
        group: "holds".to_owned(),
        function_arn: "arn:aws:lambda:us-east-1:123456789012:function:expire".to_owned(),
        role_arn: "arn:aws:iam::123456789012:role/schedule".to_owned(),
        dead_letter_arn: "arn:aws:sqs:us-east-1:123456789012:schedule-failures".to_owned(),
    }
}

/// Calls the function as its `main.rs` does.
async fn run(handler: &Handler, event: Value) -> Result<Value, lambda_http::Error> {
    let context = LambdaContext::default();
    match handler {
        Handler::Http(router) => {
            let event = LambdaEvent::new(serde_json::from_value(event)?, context);
            Ok(serde_json::to_value(holdfast_http::handle(router.clone(), event).await?)?)
        }
        Handler::Confirm(app, router) => confirm::handle(app, router.clone(), LambdaEvent::new(event, context)).await,
        Handler::Expire(app) => Ok(serde_json::to_value(expire::handle(app, &event).await?)?),
    }
}

/// Work in an environment that may be killed or frozen meanwhile.
struct Alive<'a, T> {
    vitals: &'a Mutex<Vitals>,
    thaw: Option<Pin<Box<Sleep>>>,
    work: Pin<Box<dyn Future<Output = T> + 'a>>,
}

impl<T> Future for Alive<'_, T> {
    /// `None` if it was killed.
    type Output = Option<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<T>> {
        loop {
            let frozen_until = {
                let vitals = lock(self.vitals);
                if vitals.killed {
                    return Poll::Ready(None);
                }
                vitals.frozen_until
            };
            if let Some(until) = frozen_until {
                // Frozen: nothing in it runs, and timers that expire meanwhile fire at once when it thaws.
                let thaw = self.thaw.get_or_insert_with(|| Box::pin(sleep_until(until)));
                if thaw.as_mut().poll(context).is_pending() {
                    return Poll::Pending;
                }
                self.thaw = None;
                lock(self.vitals).frozen_until = None;
            }
            if let Poll::Ready(done) = self.work.as_mut().poll(context) {
                return Poll::Ready(Some(done));
            }
            let mut vitals = lock(self.vitals);
            if !vitals.killed && vitals.frozen_until.is_none() {
                if vitals.running > 1 && !vitals.wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                    vitals.wakers.push(context.waker().clone());
                }
                return Poll::Pending;
            }
        }
    }
}

impl Connection {
    /// Kills or freezes the environment if that is drawn for this call: `before` it is sent, or when its answer
    /// arrives.
    async fn meet(&self, before: bool) {
        let meets = {
            let mut vitals = lock(&self.vitals);
            let Some((calls, doom)) = vitals.doom else { return };
            let now = before == matches!(doom, Doom::KilledBefore | Doom::FrozenBefore(_));
            if !now {
                return;
            }
            if calls > 0 {
                vitals.doom = Some((calls - 1, doom));
                return;
            }
            vitals.doom = None;
            match doom {
                Doom::KilledBefore | Doom::KilledAfter => vitals.kill(),
                Doom::FrozenBefore(ms) | Doom::FrozenAfter(ms) => {
                    vitals.frozen_until = Some(Instant::now() + millis(ms));
                }
            }
            doom
        };
        self.world.note(format_args!("{} meets {meets:?}", self.name));
        match meets {
            Doom::KilledBefore | Doom::KilledAfter => std::future::pending().await,
            // Pending once, so that `Alive` sees it.
            Doom::FrozenBefore(_) | Doom::FrozenAfter(_) => tokio::task::yield_now().await,
        }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({})", self.name)
    }
}

impl HttpConnector for Connection {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let connection = self.clone();
        HttpConnectorFuture::new(async move {
            let call = call(connection.name.clone(), &request);
            let began = Instant::now();
            connection.meet(true).await;
            if call.operation == "CreateSchedule" && began.elapsed() >= millis(SLOW_MS) {
                // Frozen before it was sent: its environment does not wait for the answer.
                let now = connection.world.now();
                connection.world.lock().books.scheduler_fails(now, &call.by);
            }
            let (answer, answered) = oneshot::channel();
            let (world, name) = (connection.world.clone(), connection.name.clone());
            go(async move {
                // The caller may be gone.
                _ = answer.send(world.serve(&name, call).await);
            });
            let answer = answered.await.unwrap_or(Answer::Broken);
            connection.meet(false).await;
            match answer {
                Answer::Of(status, body) => response(status, &body),
                Answer::Broken => Err(ConnectorError::io("the connection broke".into())),
                Answer::Silence => std::future::pending().await,
            }
        })
    }
}

impl HttpClient for Connection {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// Names the operation: by a header in the protocols of DynamoDB and SQS, by method and path in Scheduler's.
fn call(by: Arc<str>, request: &HttpRequest) -> Call {
    let body = request.body().bytes().and_then(|body| serde_json::from_slice(body).ok());
    let mut body: Value = body.unwrap_or_default();
    let target = request.headers().get("x-amz-target").and_then(|target| target.rsplit('.').next());
    let operation = match (target, request.uri().rsplit_once("/schedules/")) {
        (Some(operation), _) => operation,
        (None, Some((_, name))) if request.method() == "POST" => {
            body["Name"] = name.into();
            "CreateSchedule"
        }
        (None, _) => "",
    };
    Call { by, operation: operation.to_owned(), request: body }
}

fn response(status: u16, body: &Value) -> Result<HttpResponse, ConnectorError> {
    let status = status.try_into().map_err(|error| ConnectorError::other(Box::new(error), None))?;
    let mut response = HttpResponse::new(status, body.to_string().into());
    response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
    Ok(response)
}
