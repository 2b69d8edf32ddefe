//! What the deployed build costs, in counts, which hardly depend on what else the machine does: instructions of a
//! request, and the sizes of the zips. Each has a budget.
//!
//! The binary runs under valgrind's `cachegrind`, which counts instructions and writes them to stderr as it ends. What
//! Lambda and AWS are to it, with a table in memory, is here, at one address.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use holdfast_aws::clock;
use holdfast_local::process::Keeper;
use holdfast_local::progress::Step;
use holdfast_testkit::event::{Answer, at, event, invocation, with_body, with_header};
use holdfast_testkit::fixtures::{TABLE, basket, product, reserve, stocked, store, table};
use holdfast_testkit::wire::Wire;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::Notify;

use crate::cloud::{Cloud, PATIENCE};
use crate::variables::OF_LAMBDA;

/// An operation in a warm environment: each request makes one call, of the table.
struct Operation {
    name: &'static str,
    function: &'static str,
    /// The call.
    call: &'static str,
    /// The answer: its status, and its `code` if it is a refusal.
    answer: (u64, Option<&'static str>),
    /// Whether the answer says that it is a replay.
    replayed: bool,
    /// Number of requests that are counted: enough that what differs between two starts does not matter, and few enough of
    /// refusals that they are done before their cache ends, after a second.
    counted: usize,
    /// The most instructions of a request, runtime, SDK, log and metrics included: 10 % above what was measured.
    budget: u64,
    /// The request of this number.
    request: fn(usize) -> Value,
}

/// Measured on x86_64 with valgrind 3.19. Repeated runs differ by up to 0.5 %, and by up to 1.5 % on a busy machine. Another
/// compiler, another valgrind or a processor with other extensions makes other figures.
const OPERATIONS: [Operation; 4] = [
    Operation {
        name: "reserve",
        function: "ReserveFunction",
        call: "TransactWriteItems",
        answer: (201, None),
        replayed: false,
        counted: 20,
        // Measured: 1,110,000.
        budget: 1_220_000,
        request: |number| reserves("tee-black", &key(number)),
    },
    Operation {
        name: "replay",
        function: "ReserveFunction",
        call: "TransactWriteItems",
        answer: (201, None),
        replayed: true,
        counted: 20,
        // Measured: 1,286,000.
        budget: 1_415_000,
        request: |_| reserves("tee-black", &key(0)),
    },
    Operation {
        name: "refusal",
        function: "ReserveFunction",
        call: "TransactGetItems",
        answer: (409, Some("insufficient_stock")),
        replayed: false,
        counted: 8,
        // Measured: 907,000.
        budget: 1_000_000,
        request: |number| reserves("print", &key(number)),
    },
    Operation {
        name: "confirm",
        function: "ConfirmFunction",
        call: "UpdateItem",
        answer: (200, None),
        replayed: false,
        counted: 20,
        // Measured: 1,176,000.
        budget: 1_294_000,
        request: confirms,
    },
];

/// A new environment of `reserve`, until it asks for its first request, and the most instructions of that: 10 % above what was
/// measured.
///
/// The start includes reading the certificates of the machine, for TLS. Measured: 22,011,000.
const START: (&str, u64) = ("start of reserve", 24_212_000);
/// Measured: 2,150,000.
const FIRST: (&str, u64) = ("first reserve", 2_365_000);

/// Requests before those that are counted: they fill the caches and open the connections.
const WARM_UP: usize = 3;
/// On a busy machine a cache may end meanwhile, or a call may take too long. Such a run does not count, and goes again.
const TRIES: usize = 5;

fn key(number: usize) -> String {
    format!("6f1c2e0a-4b0e-4c53-9a8e-{number:012}")
}

fn reserves(product: &str, key: &str) -> Value {
    let body = json!({ "lines": [{ "product_id": product, "quantity": 2 }] });
    with_header(with_body(event("reserve/create"), body), "idempotency-key", key)
}

fn confirms(number: usize) -> Value {
    let id = basket("alice", &key(number), &[("tee-black", 2)]).reservation_id;
    let body = json!({ "payment_reference": format!("pay_{number:04}"), "customer_id": "alice" });
    at(with_body(event("confirm/confirm"), body), "POST", &format!("/reservations/{id}/confirm"))
}

/// What Lambda and AWS are to the binary: the runtime API, DynamoDB and Scheduler.
struct Outside {
    wire: Wire,
    requests: Mutex<std::vec::IntoIter<Value>>,
    answers: Mutex<Vec<Value>>,
    /// The operations of the calls of the table, and of the queue.
    calls: Mutex<Vec<String>>,
    /// The function asks for a request, and there is none.
    idle: Notify,
}

async fn outside(State(outside): State<Arc<Outside>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let path = head.uri.path();
    if path.ends_with("/invocation/next") {
        let next = outside.requests.lock().unwrap().next();
        let Some(event) = next else {
            outside.idle.notify_one();
            return std::future::pending().await;
        };
        return (invocation("8476a536-e9f4-11e8-9739-2dfe598c3fcd"), event.to_string()).into_response();
    }
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    // The question for a schedule has no body.
    let body: Value = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() };
    if path.starts_with("/2018-06-01/") {
        outside.answers.lock().unwrap().push(body);
        return StatusCode::ACCEPTED.into_response();
    }
    // The table and the queue name their operation, Scheduler does not.
    if let Some(target) = head.headers.get("x-amz-target") {
        let (service, operation) = target.to_str().unwrap().split_once('.').unwrap();
        outside.calls.lock().unwrap().push(operation.to_owned());
        if service.starts_with("DynamoDB") {
            let (status, body) = outside.wire.send(operation, &body);
            return (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response();
        }
    }
    json!({ "ScheduleArn": "arn:aws:scheduler:us-east-1:123456789012:schedule/1/1" }).to_string().into_response()
}

/// What counts, and what is counted.
pub(crate) struct Counter<'a> {
    pub(crate) valgrind: &'a Path,
    /// The build: `<logical id>/bootstrap` for each function.
    pub(crate) built: &'a Path,
    pub(crate) keeper: &'a Arc<Keeper>,
}

impl Counter<'_> {
    /// What takes more instructions than its budget. One after another: they would slow each other down.
    pub(crate) async fn over_budget(&self) -> Vec<String> {
        let mut over = Vec::new();
        let mut compare = |step: Step, (name, budget): (&str, u64), counted: Result<u64, String>| match counted {
            Ok(measured) => {
                step.done(&format!("{measured}, budget {budget}"));
                if measured > budget {
                    over.push(format!("a {name} takes {measured} instructions, budget {budget}"));
                }
            }
            Err(reason) => over.push(format!("a {name} cannot be counted: {reason}")),
        };
        for operation in &OPERATIONS {
            let step = Step::start(format!("instructions of a {}", operation.name));
            compare(step, (operation.name, operation.budget), self.instructions(operation).await);
        }
        let step = Step::start(format!("instructions of a {}", START.0));
        let start = self.run(&OPERATIONS[0], 0).await.map(|(start, _)| start);
        compare(step, START, start.clone());
        let step = Step::start(format!("instructions of a {}", FIRST.0));
        let both = self.run(&OPERATIONS[0], 1).await.map(|(both, _)| both);
        compare(step, FIRST, start.and_then(|start| both.map(|both| both.saturating_sub(start))));
        over
    }

    /// Instructions for each request of an operation, or why no try counts.
    async fn instructions(&self, operation: &Operation) -> Result<u64, String> {
        let mut reason = String::new();
        for _ in 0..TRIES {
            match self.count(operation).await {
                Ok(instructions) => return Ok(instructions),
                Err(disturbed) => reason = disturbed,
            }
        }
        Err(reason)
    }

    async fn count(&self, operation: &Operation) -> Result<u64, String> {
        let (warm, before) = self.run(operation, WARM_UP).await?;
        let (all, calls) = self.run(operation, WARM_UP + operation.counted).await?;
        match calls.strip_prefix(&before[..]) {
            Some(counted) if counted == vec![operation.call; operation.counted] => {
                Ok(all.checked_sub(warm).ok_or("more requests took less")? / operation.counted as u64)
            }
            _ => Err(format!("the calls are not one {} for each request: {before:?}, then {calls:?}", operation.call)),
        }
    }

    /// The instructions of a whole run of this number of requests, and its calls. It counts if each answer is the expected one.
    async fn run(&self, operation: &Operation, requests: usize) -> Result<(u64, Vec<String>), String> {
        let outside = Arc::new(Outside {
            wire: shop(operation).await,
            requests: Mutex::new((0..requests).map(operation.request).collect::<Vec<_>>().into_iter()),
            answers: Mutex::default(),
            calls: Mutex::default(),
            idle: Notify::new(),
        });
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = axum::serve(listener, Router::new().fallback(self::outside).with_state(outside.clone()));
        let said = tokio::time::timeout(PATIENCE, async {
            tokio::select! {
                _ = server.into_future() => unreachable!("it serves without end"),
                said = self.start_and_stop(operation, &address, &outside.idle) => said,
            }
        });
        let said = said.await.map_err(|_| format!("it takes longer than {PATIENCE:?}"))??;
        let answers = std::mem::take(&mut *outside.answers.lock().unwrap());
        if answers.len() != requests {
            return Err(format!("{requests} requests, {} answers: {said}", answers.len()));
        }
        for (number, answer) in answers.into_iter().enumerate() {
            let answer = Answer::of(answer);
            // The first request makes what the others replay.
            let replayed = operation.replayed && number > 0;
            let is = (answer.status, answer.body["code"].as_str());
            if is != operation.answer || replayed != (answer.header("idempotent-replayed") == Some("true")) {
                return Err(format!("request {number}: {answer:?}"));
            }
        }
        // Of any version: `==1== I   refs:      1,234`.
        let counts = said.lines().filter_map(|line| line.split_once("refs:"));
        let count = counts.filter(|(what, _)| what.trim_end().ends_with(" I")).map(|(_, count)| count).next();
        let count = count.and_then(|count| count.trim().replace(',', "").parse().ok());
        let calls = std::mem::take(&mut *outside.calls.lock().unwrap());
        Ok((count.ok_or_else(|| format!("valgrind has counted nothing: {said}"))?, calls))
    }

    /// Starts the function, and ends it once it has answered all requests: what valgrind says then, or the log if something
    /// went wrong, since the function then took another path.
    async fn start_and_stop(&self, operation: &Operation, address: &str, idle: &Notify) -> Result<String, String> {
        let mut command = Command::new(self.valgrind);
        command
            .args(["--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"])
            .arg(self.built.join(operation.function).join("bootstrap"))
            .env_clear()
            .envs(OF_LAMBDA)
            .envs([
                ("AWS_LAMBDA_RUNTIME_API", address),
                ("AWS_ENDPOINT_URL", &format!("http://{address}")),
                ("STACK_NAME", "holdfast"),
                ("TABLE_NAME", TABLE),
                ("CONFIRMATIONS_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/123456789012/confirmations"),
                ("FAILED_CONFIRMATIONS_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/123456789012/failed"),
                ("CONFIRMED_BY", "service"),
                ("SCHEDULE_GROUP", "holds"),
                ("SCHEDULE_ROLE_ARN", "arn:aws:iam::123456789012:role/schedule"),
                ("SCHEDULE_DLQ_ARN", "arn:aws:sqs:us-east-1:123456789012:schedule-failures"),
                ("EXPIRE_FUNCTION_ARN", "arn:aws:lambda:us-east-1:123456789012:function:expire:live"),
                // One schedule for all holds of a run.
                ("EXPIRY_SLOT_SECONDS", "3600"),
                ("TABLE_LAYOUT", "2"),
                ("ROLES_CLAIM", "cognito:groups"),
                ("RATE_LIMIT_PER_SECOND", "0"),
                ("RATE_LIMIT_BURST", "20"),
            ])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut group = self.keeper.spawn("valgrind", &mut command).unwrap_or_else(|error| panic!("{error}"));
        let mut stderr = group.child().stderr.take().expect("its stderr");
        let mut stdout = group.child().stdout.take().expect("its stdout");
        let (mut said, mut logged) = (String::new(), String::new());
        let ended = {
            let ended = async {
                let ended = tokio::join!(stderr.read_to_string(&mut said), stdout.read_to_string(&mut logged));
                ended.0.and(ended.1)
            };
            tokio::pin!(ended);
            tokio::select! {
                ended = &mut ended => ended,
                () = idle.notified() => {
                    // It waits for a request, and so does nothing.
                    group.signal(Signal::TERM);
                    ended.await
                }
            }
        };
        ended.expect("what it says is text");
        group.wait().await.unwrap_or_else(|error| panic!("{error}"));
        if logged.contains("\"WARN\"") || logged.contains("\"ERROR\"") { Err(logged) } else { Ok(said) }
    }
}

/// The table that the requests find.
async fn shop(operation: &Operation) -> Wire {
    let wire = table();
    stocked(&wire, &[product("tee-black", 1_000, 4), product("print", 1, 1)]).await;
    if operation.function == "ConfirmFunction" {
        let (store, now) = (store(&wire, 1), clock::system().now());
        for number in 0..WARM_UP + operation.counted {
            reserve(&store, &basket("alice", &key(number), &[("tee-black", 2)]), now).await.expect("a hold");
        }
    }
    wire
}

/// Valgrind on the `PATH`. Without it the instructions are not counted, unless `VALGRIND_REQUIRED` is set, as in `.ci/run`.
pub(crate) fn valgrind() -> Result<Option<PathBuf>, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("valgrind")).find(|file| file.is_file());
    let missing = found.is_none() && std::env::var_os("VALGRIND_REQUIRED").is_some();
    if missing { Err("there is no valgrind".into()) } else { Ok(found) }
}

/// The most bytes that a function's zip may have, as `sam deploy` makes it: 1 to 2 % more than measured on x86_64. On arm64
/// `ReserveFunction` is 8 % smaller; the others were not measured there.
const ZIPS: [(&str, u64); 5] = [
    ("AdminFunction", 3_157_000),   // 3,125,624
    ("CatalogFunction", 3_025_000), // 2,993,472
    ("ConfirmFunction", 2_704_000), // 2,642,482
    ("ExpireFunction", 2_256_000),  // 2,212,617
    ("ReserveFunction", 2_828_000), // 2,765,351
];

/// A larger zip is a slower cold start.
pub(crate) async fn each_zip_is_within_its_budget(cloud: &Cloud) {
    let mut over = Vec::new();
    for function in cloud.functions() {
        let budget = ZIPS.iter().find(|(name, _)| *name == function).map_or(0, |(_, budget)| *budget);
        let size = cloud.configuration(function).await["CodeSize"].as_u64().expect("a size");
        eprintln!("zip of {function}: {size} bytes, budget {budget}");
        if size > budget {
            over.push(format!("the zip of {function} has {size} bytes, budget {budget}"));
        }
    }
    assert!(over.is_empty(), "{}", over.join("\n"));
}
