//! The wire between the SDKs and AWS: the only fake in these tests.
//!
//! The functions, the store and the AWS SDKs above it are the real ones, with their retries, signing and parsing;
//! below is dynoxide for DynamoDB, and a few lines of memory for SQS and Scheduler. In between, a [`Fault`] can meet
//! any call, by the name of its operation. Every call is recorded, with the capacity that it consumed.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use dynoxide::Database;
use holdfast_domain::{Clock, Timestamp};
use holdfast_store::keys::INDEXES;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::database::{carry_out, database};
use crate::fixtures::NOW;
pub use crate::services::Schedule;
use crate::services::Services;

/// What happens to a call instead of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The call never arrives, and no answer comes.
    LostBefore,
    /// The call is applied, and its answer never comes.
    LostAfter,
    /// The call never arrives, and the connection stays open without an answer.
    Silence,
    /// The call never arrives, and the answer is "internal error".
    ServerError,
    /// The call is applied, and the answer is "internal error".
    ServerErrorAfter,
    /// Throttled: not applied.
    Throttled,
    /// Another transaction is on its items: not applied. In a transaction, all actions meet the conflict.
    Conflict,
    /// A transaction whose action at this position meets a conflict; no other action is evaluated.
    ConflictAt(usize),
    /// The call is applied. If the transaction is cancelled, the reason at this position is a conflict in place of its
    /// own: as in DynamoDB, where a conflict hides the result of a condition.
    HiddenAt(usize),
    /// Access denied: not applied.
    AccessDenied,
    /// Of a `BatchGetItem`: nothing is read, and all keys are returned as unprocessed.
    Unprocessed,
}

/// A call over the wire.
#[derive(Debug, Clone)]
pub struct Call {
    /// Such as `TransactWriteItems`.
    pub operation: String,
    /// The request.
    pub request: Value,
    /// The answer, if there was one.
    pub response: Option<Value>,
    /// The fault that it met.
    pub fault: Option<Fault>,
}

impl Call {
    /// The capacity units that it consumed on the table itself, and on its indexes.
    pub fn consumed(&self) -> (f64, f64) {
        let consumed = self.response.as_ref().map_or(&Value::Null, |response| &response["ConsumedCapacity"]);
        let consumed = consumed.as_array().and_then(|parts| parts.first()).unwrap_or(consumed);
        let units = |value: &Value| value["CapacityUnits"].as_f64().unwrap_or_default();
        let indexes = consumed["GlobalSecondaryIndexes"].as_object();
        (units(&consumed["Table"]), indexes.map_or(0.0, |indexes| indexes.values().map(units).sum()))
    }

    /// The keys of a transaction, in order.
    pub fn transaction_keys(&self) -> Vec<String> {
        let actions = self.request["TransactItems"].as_array().cloned().unwrap_or_default();
        let key = |action: &Value| {
            let item = match action {
                action if action["Put"].is_object() => &action["Put"]["Item"],
                action if action["Update"].is_object() => &action["Update"]["Key"],
                action => &action["ConditionCheck"]["Key"],
            };
            item["pk"]["S"].as_str().unwrap_or_default().to_owned()
        };
        actions.iter().map(key).collect()
    }
}

type Script = Box<dyn FnMut(&Call) -> Option<Fault> + Send>;
type Wanted = Box<dyn FnMut(&Call) -> bool + Send>;

/// A point on the wire where the first call that matches waits before it is applied, for tests in which something else
/// must happen first. The order does not depend on time.
#[derive(Debug, Default)]
pub struct Gate {
    arrived: Notify,
    opened: Notify,
}

impl Gate {
    /// Waits until the call is at the gate.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Lets the call go on.
    pub fn open(&self) {
        self.opened.notify_one();
    }
}

struct Inner {
    database: Database,
    began: Instant,
    stepped_ms: AtomicI64,
    short_pages: AtomicBool,
    gate: Slot,
    gate_after: Slot,
    services: Mutex<Services>,
    script: Mutex<Script>,
    calls: Mutex<Vec<Call>>,
}

/// The wire. Clones are the same wire.
#[derive(Clone)]
pub struct Wire(Arc<Inner>);

impl Wire {
    /// A wire to an empty table of this name.
    #[expect(clippy::expect_used, reason = "for tests: without a database there is none")]
    pub fn new(table: &str) -> Self {
        let database = database(table, &INDEXES).expect("a database in memory");
        let script: Script = Box::new(|_| None);
        Self(Arc::new(Inner {
            database,
            began: Instant::now(),
            stepped_ms: AtomicI64::new(0),
            short_pages: AtomicBool::new(false),
            gate: Mutex::default(),
            gate_after: Mutex::default(),
            services: Mutex::default(),
            script: Mutex::new(script),
            calls: Mutex::default(),
        }))
    }

    /// The wall clock of this wire: it starts at [`NOW`](crate::fixtures::NOW), and advances with the runtime's clock.
    pub fn clock(&self) -> Clock {
        let wire = self.clone();
        Clock::new(move || {
            let since = i64::try_from(wire.0.began.elapsed().as_millis()).unwrap_or(i64::MAX);
            let stepped = wire.0.stepped_ms.load(Ordering::SeqCst);
            Timestamp::from_millis(NOW.as_millis().saturating_add(since).saturating_add(stepped))
        })
    }

    /// Moves the wall clock, forwards as after a freeze, or backwards; the runtime's clock is not affected.
    pub fn step_clock(&self, millis: i64) {
        self.0.stepped_ms.fetch_add(millis, Ordering::SeqCst);
    }

    /// From now on, a query returns one item a page, as DynamoDB does when a page would be larger than 1 MB.
    pub fn shorten_pages(&self) {
        self.0.short_pages.store(true, Ordering::SeqCst);
    }

    /// Makes the first call that is `wanted` wait at the gate until it is opened.
    pub fn gate(&self, wanted: impl FnMut(&Call) -> bool + Send + 'static) -> Arc<Gate> {
        set_gate(&self.0.gate, wanted)
    }

    /// The same for its answer: the call is applied before.
    pub fn gate_after(&self, wanted: impl FnMut(&Call) -> bool + Send + 'static) -> Arc<Gate> {
        set_gate(&self.0.gate_after, wanted)
    }

    /// From now on, `script` decides for each call whether a fault meets it.
    pub fn script(&self, script: impl FnMut(&Call) -> Option<Fault> + Send + 'static) {
        *lock(&self.0.script) = Box::new(script);
    }

    /// The next `times` calls of `operation` meet `fault`, and later ones do not.
    pub fn fail(&self, operation: &'static str, times: usize, fault: Fault) {
        let mut left = times;
        self.script(move |call| {
            let hit = left > 0 && call.operation == operation;
            left -= usize::from(hit);
            hit.then_some(fault)
        });
    }

    /// From now on, every call of `operations` meets `fault`.
    pub fn fail_all(&self, operations: &'static [&'static str], fault: Fault) {
        self.script(move |call| operations.contains(&call.operation.as_str()).then_some(fault));
    }

    /// From now on, no call meets a fault.
    pub fn clear_faults(&self) {
        self.script(|_| None);
    }

    /// The bodies in the queue of this URL, including hidden messages that were received.
    pub fn messages(&self, queue_url: &str) -> Vec<String> {
        lock(&self.0.services).messages(queue_url)
    }

    /// Puts a message into a queue.
    pub fn send_message(&self, queue_url: &str, body: &str) {
        lock(&self.0.services).send(queue_url, body);
    }

    /// Ends the visibility timeout of every message that was received and not deleted.
    pub fn show_messages(&self) {
        lock(&self.0.services).show_messages();
    }

    /// The schedules, in the order in which they were made.
    pub fn schedules(&self) -> Vec<Schedule> {
        lock(&self.0.services).schedules()
    }

    /// Carries out a call as it was recorded, as a late copy of it would be: the status and the body of the answer.
    #[expect(clippy::expect_used, reason = "for tests: a call that was recorded is one of this wire")]
    pub fn send(&self, operation: &str, request: &Value) -> (u16, Value) {
        carry_out(&self.0.database, operation, request).expect("an operation of DynamoDB")
    }

    /// All calls since this was last called.
    pub fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut *lock(&self.0.calls))
    }

    /// The client for the SDK.
    pub fn http_client(&self) -> SharedHttpClient {
        SharedHttpClient::new(self.clone())
    }

    /// The answer to a request, or `None` if none will ever come.
    fn answer(&self, request: &HttpRequest) -> Option<Result<HttpResponse, ConnectorError>> {
        let mut call = call(request);
        if matches!(call.operation.as_str(), "Query" | "Scan") && self.0.short_pages.load(Ordering::SeqCst) {
            call.request["Limit"] = 1.into();
        }
        call.fault = lock(&self.0.script)(&call);
        if call.fault == Some(Fault::Silence) {
            lock(&self.0.calls).push(call);
            return None;
        }
        Some(self.answer_to(call))
    }

    fn answer_to(&self, mut call: Call) -> Result<HttpResponse, ConnectorError> {
        let answer = match call.fault {
            None => self.carry_out(&call),
            Some(Fault::LostBefore | Fault::Silence) => Err(lost()),
            Some(Fault::LostAfter) => self.carry_out(&call).and(Err(lost())),
            Some(Fault::ServerError) => Ok((500, error("InternalServerError"))),
            Some(Fault::ServerErrorAfter) => self.carry_out(&call).map(|_| (500, error("InternalServerError"))),
            Some(Fault::Throttled) => Ok((400, error("ProvisionedThroughputExceededException"))),
            Some(Fault::AccessDenied) => Ok((400, error("AccessDeniedException"))),
            Some(Fault::Unprocessed) => {
                Ok((200, json!({ "Responses": {}, "UnprocessedKeys": call.request["RequestItems"] })))
            }
            Some(Fault::HiddenAt(position)) => self.carry_out(&call).map(|(status, mut body)| {
                if let Some(reason) = body["CancellationReasons"].get_mut(position) {
                    *reason = json!({ "Code": "TransactionConflict" });
                }
                (status, body)
            }),
            Some(Fault::Conflict) => Ok((400, conflict(&call, |_| true))),
            Some(Fault::ConflictAt(position)) => Ok((400, conflict(&call, |at| at == position))),
        };
        if let Ok((_, body)) = &answer {
            call.response = Some(body.clone());
        }
        lock(&self.0.calls).push(call);
        let (status, body) = answer?;
        let status = status.try_into().map_err(|error| ConnectorError::other(Box::new(error), None))?;
        let mut response = HttpResponse::new(status, body.to_string().into());
        response.headers_mut().insert("content-type", "application/x-amz-json-1.0");
        Ok(response)
    }

    fn carry_out(&self, call: &Call) -> Result<(u16, Value), ConnectorError> {
        let (database, request) = (&self.0.database, &call.request);
        if let Some(answer) = lock(&self.0.services).carry_out(&call.operation, request) {
            return Ok(answer);
        }
        carry_out(database, &call.operation, request)
            .ok_or_else(|| ConnectorError::user(format!("{} is not on this wire", call.operation).into()))
    }
}

type Slot = Mutex<Option<(Wanted, Arc<Gate>)>>;

fn set_gate(slot: &Slot, wanted: impl FnMut(&Call) -> bool + Send + 'static) -> Arc<Gate> {
    let gate = Arc::new(Gate::default());
    *lock(slot) = Some((Box::new(wanted), gate.clone()));
    gate
}

/// Waits at the gate if it is for this request.
async fn pass(slot: &Slot, request: &HttpRequest) {
    let gate = {
        let mut slot = lock(slot);
        let wanted = slot.as_mut().is_some_and(|(wanted, _)| wanted(&call(request)));
        slot.take_if(|_| wanted)
    };
    if let Some((_, gate)) = gate {
        gate.arrived.notify_one();
        gate.opened.notified().await;
    }
}

/// Names the operation: by a header in the protocols of DynamoDB and SQS, by method and path in Scheduler's.
fn call(request: &HttpRequest) -> Call {
    let mut body: Value = request.body().bytes().and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
    let target = request.headers().get("x-amz-target").and_then(|target| target.rsplit('.').next());
    let operation = match (target, request.uri().rsplit_once("/schedules/")) {
        (Some(operation), _) => operation,
        (None, Some(_)) if request.method() == "GET" => "GetSchedule",
        (None, Some((_, name))) if request.method() == "POST" => {
            body["Name"] = name.into();
            "CreateSchedule"
        }
        (None, _) => "",
    };
    Call { operation: operation.to_owned(), request: body, response: None, fault: None }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lost() -> ConnectorError {
    ConnectorError::timeout("the answer never came".into())
}

/// The SDKs of all three services find the code here, in any namespace.
fn error(code: &str) -> Value {
    json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "a fault" })
}

fn conflict(call: &Call, at: impl Fn(usize) -> bool) -> Value {
    let Some(actions) = call.request["TransactItems"].as_array() else { return error("TransactionConflictException") };
    let reason =
        |position| if at(position) { json!({ "Code": "TransactionConflict" }) } else { json!({ "Code": "None" }) };
    let mut body = error("TransactionCanceledException");
    body["CancellationReasons"] = (0..actions.len()).map(reason).collect();
    body
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl HttpConnector for Wire {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let wire = self.clone();
        HttpConnectorFuture::new(async move {
            // As on a real network, other tasks run between a request and its answer.
            tokio::task::yield_now().await;
            pass(&wire.0.gate, &request).await;
            let Some(answer) = wire.answer(&request) else { return std::future::pending().await };
            pass(&wire.0.gate_after, &request).await;
            answer
        })
    }
}

impl HttpClient for Wire {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
