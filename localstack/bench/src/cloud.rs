//! The AWS of a run, a process of its own: DynamoDB in memory with the table of template.yaml, and as much of Scheduler and
//! SQS as the functions call. It counts every call, and what DynamoDB would bill for it.
//!
//! Units are those that dynoxide reports as `ConsumedCapacity`. DynamoDB reports none for a write whose condition fails, and
//! bills it all the same, so that is counted here: a unit for each begun KB of each item that is named, twice that in a
//! transaction, and none for indexes. An item whose size the answer does not show counts as one that is below 1 KB.
//!
//! dynoxide carries out one operation at a time, so no transaction meets another one. With [`Options::conflicts`] a
//! transaction is on its items until its delayed answer, and refuses others there, as in DynamoDB.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use dynoxide::actions::batch_get_item::BatchGetItemRequest;
use dynoxide::actions::delete_item::DeleteItemRequest;
use dynoxide::actions::get_item::GetItemRequest;
use dynoxide::actions::put_item::PutItemRequest;
use dynoxide::actions::query::QueryRequest;
use dynoxide::actions::scan::ScanRequest;
use dynoxide::actions::transact_get_items::TransactGetItemsRequest;
use dynoxide::actions::transact_write_items::TransactWriteItemsRequest;
use dynoxide::actions::update_item::UpdateItemRequest;
use dynoxide::types::{ConsumedCapacity, Item, TRANSACTIONAL_CAPACITY_FACTOR, item_size, write_capacity_units};
use dynoxide::{Database, DynoxideError};
use holdfast_store::keys::INDEXES;
use holdfast_testkit::database::database;
use holdfast_testkit::fixtures::TABLE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::server::TlsStream;

use crate::Result;
use crate::process::announce;

/// What was called, and what DynamoDB would bill for it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// Calls by the name of the operation.
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) units: Units,
}

/// Units that DynamoDB would bill.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Units {
    /// Write units of the table.
    pub(crate) table_writes: f64,
    /// Write units of its indexes.
    pub(crate) index_writes: f64,
    /// Read units of both.
    pub(crate) reads: f64,
}

impl Counts {
    /// What was counted since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let earlier = |name: &str| before.calls.get(name).copied().unwrap_or_default();
        let calls = self.calls.iter().map(|(name, calls)| (name.clone(), calls - earlier(name)));
        Self {
            calls: calls.filter(|(_, calls)| *calls > 0).collect(),
            units: Units {
                table_writes: self.units.table_writes - before.units.table_writes,
                index_writes: self.units.index_writes - before.units.index_writes,
                reads: self.units.reads - before.units.reads,
            },
        }
    }

    fn add(&mut self, operation: &str, units: Units) {
        // Without an allocation, but for the first call of each operation.
        match self.calls.get_mut(operation) {
            Some(calls) => *calls += 1,
            None => _ = self.calls.insert(operation.to_owned(), 1),
        }
        self.units.table_writes += units.table_writes;
        self.units.index_writes += units.index_writes;
        self.units.reads += units.reads;
    }
}

/// How it behaves.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Options {
    /// Each answer of DynamoDB is delayed by this time.
    pub(crate) delay: Duration,
    /// Whether a transaction is refused while another one is on one of its items.
    pub(crate) conflicts: bool,
}

struct Cloud {
    database: Database,
    options: Options,
    counts: Mutex<Counts>,
    /// The items that transactions are on.
    busy: Mutex<BTreeSet<String>>,
}

impl Cloud {
    fn new(options: Options) -> Result<Self> {
        let database = database(TABLE, &INDEXES)?;
        Ok(Self { database, options, counts: Mutex::default(), busy: Mutex::default() })
    }

    fn counts(&self) -> MutexGuard<'_, Counts> {
        lock(&self.counts)
    }

    /// The answer to an operation, or `None` if it is not one of DynamoDB.
    async fn carry_out(&self, operation: &str, body: &[u8]) -> Option<Answer> {
        let keys = if self.options.conflicts { keys(&parse(body)) } else { Vec::new() };
        let writes = operation == "TransactWriteItems";
        let answer = {
            let mut busy = lock(&self.busy);
            let refused = conflict(operation, body, &keys, &busy);
            if refused.is_none() && writes {
                busy.extend(keys.iter().cloned());
            }
            refused
        };
        let _held = (answer.is_none() && writes).then_some(Held { busy: &self.busy, keys: &keys });
        // Blocks this thread for the time of the operation, as dynoxide's own server does.
        let answer = answer.or_else(|| carry_out(&self.database, operation, body));
        if !self.options.delay.is_zero() {
            // The time that is simulated.
            tokio::time::sleep(self.options.delay).await;
        }
        answer
    }
}

/// The items that a transaction is on, until its answer; also if its caller gives up.
struct Held<'a> {
    busy: &'a Mutex<BTreeSet<String>>,
    keys: &'a [String],
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut busy = lock(self.busy);
        self.keys.iter().for_each(|key| _ = busy.remove(key));
    }
}

/// An answer, and what it costs.
struct Answer {
    status: u16,
    body: String,
    units: Units,
}

/// The answer of dynoxide, or `None` if the operation is none that the functions call. Requests and answers are read and
/// written in its own types, without a `Value` in between, which takes less time.
fn carry_out(database: &Database, operation: &str, body: &[u8]) -> Option<Answer> {
    let refuse = |error: &DynoxideError| {
        let said = error.to_json();
        let units = failed_condition(operation, body, &said);
        Answer { status: error.status_code(), body: said, units }
    };
    // The types of requests and answers are alike, and have no trait in common.
    macro_rules! typed {
        ($request:ty, $call:ident) => {{
            let mut request: $request = match serde_json::from_slice(body) {
                Ok(request) => request,
                Err(error) => return Some(refuse(&DynoxideError::SerializationException(error.to_string()))),
            };
            let asked = request.return_consumed_capacity.replace("INDEXES".to_owned());
            match database.$call(request) {
                Ok(mut answer) => {
                    let units = units(operation, reported(&answer.consumed_capacity));
                    answer.consumed_capacity = answer.consumed_capacity.filter(|_| asked.is_some());
                    match serde_json::to_string(&answer) {
                        Ok(body) => Answer { status: 200, body, units },
                        Err(error) => refuse(&DynoxideError::InternalServerError(error.to_string())),
                    }
                }
                Err(error) => refuse(&error),
            }
        }};
    }
    Some(match operation {
        "GetItem" => typed!(GetItemRequest, get_item),
        "BatchGetItem" => typed!(BatchGetItemRequest, batch_get_item),
        "Query" => typed!(QueryRequest, query),
        "Scan" => typed!(ScanRequest, scan),
        "PutItem" => typed!(PutItemRequest, put_item),
        "UpdateItem" => typed!(UpdateItemRequest, update_item),
        "DeleteItem" => typed!(DeleteItemRequest, delete_item),
        "TransactGetItems" => typed!(TransactGetItemsRequest, transact_get_items),
        "TransactWriteItems" => typed!(TransactWriteItemsRequest, transact_write_items),
        _ => return None,
    })
}

/// What an answer says of its capacity: of one table, or of several.
trait Reported {
    fn tables(&self) -> &[ConsumedCapacity];
}

impl Reported for ConsumedCapacity {
    fn tables(&self) -> &[ConsumedCapacity] {
        std::slice::from_ref(self)
    }
}

impl Reported for Vec<ConsumedCapacity> {
    fn tables(&self) -> &[ConsumedCapacity] {
        self
    }
}

fn reported<R: Reported>(capacity: &Option<R>) -> &[ConsumedCapacity] {
    capacity.as_ref().map(Reported::tables).unwrap_or_default()
}

/// A body as it came; null if it is no JSON.
fn parse(body: &[u8]) -> Value {
    serde_json::from_slice(body).unwrap_or_default()
}

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The items that a request names by key, each as text: of a transaction in the order of its actions.
fn keys(request: &Value) -> Vec<String> {
    let key = |action: &Value| {
        let of = if action["Key"].is_null() { &action["Item"] } else { &action["Key"] };
        format!("{} {}", of["pk"]["S"], of["sk"]["S"])
    };
    match request["TransactItems"].as_array() {
        Some(actions) => actions.iter().filter_map(|action| action.as_object()?.values().next().map(key)).collect(),
        None => vec![key(request)],
    }
}

/// DynamoDB's refusal of a request if one of its items is busy.
fn conflict(operation: &str, body: &[u8], keys: &[String], busy: &BTreeSet<String>) -> Option<Answer> {
    // A read of one item sees it as it was before.
    if operation == "GetItem" || !keys.iter().any(|key| busy.contains(key)) {
        return None;
    }
    let error = |code: &str| json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "busy" });
    let said = if operation.starts_with("Transact") {
        let reason = |key| json!({ "Code": if busy.contains(key) { "TransactionConflict" } else { "None" } });
        let mut cancelled = error("TransactionCanceledException");
        cancelled["CancellationReasons"] = keys.iter().map(reason).collect();
        cancelled.to_string()
    } else {
        error("TransactionConflictException").to_string()
    };
    let units = failed_condition(operation, body, &said);
    Some(Answer { status: 400, body: said, units })
}

/// Serves until this process ends: over HTTP and, with a file to write the `certificate` to, over TLS as well.
///
/// # Errors
/// There is no database, no port, or no such file.
pub(crate) async fn run(options: Options, certificate: Option<&Path>) -> Result<()> {
    let cloud = Cloud::new(options)?;
    let router = Router::new()
        .route("/counts", get(async |State(cloud): State<Arc<Cloud>>| axum::Json(cloud.counts().clone())))
        .fallback(answer)
        .with_state(Arc::new(cloud));
    let plain = axum::serve(announce().await?, router.clone()).into_future();
    match certificate {
        None => plain.await?,
        Some(certificate) => {
            let tls = axum::serve(Tls::new(certificate).await?, router).into_future();
            tokio::try_join!(plain, tls)?;
        }
    }
    Ok(())
}

/// A port with TLS. One handshake at a time.
struct Tls {
    port: TcpListener,
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Writes its certificate to this file, and says its address.
    async fn new(certificate: &Path) -> Result<Self> {
        let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()])?;
        std::fs::write(certificate, made.cert.pem())?;
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der())?;
        let provider = Arc::new(ring::default_provider());
        let versions = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
        let mut config = versions.with_no_client_auth().with_single_cert(vec![made.cert.into()], key)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let port = TcpListener::bind(("127.0.0.1", 0)).await?;
        eprintln!("https://{}", port.local_addr()?);
        Ok(Self { port, acceptor: TlsAcceptor::from(Arc::new(config)) })
    }
}

impl Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.port).await;
            let nodelay = stream.set_nodelay(true);
            match self.acceptor.accept(stream).await {
                Ok(stream) if nodelay.is_ok() => return (stream, address),
                refused => eprintln!("no TLS with {address}: {:?}, {nodelay:?}", refused.err()),
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.port.local_addr()
    }
}

/// The operation is named by a header in the protocols of DynamoDB and SQS, and by the path in Scheduler's.
async fn answer(
    State(cloud): State<Arc<Cloud>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|target| target.to_str().ok()).unwrap_or_default();
    match target.split_once('.') {
        Some(("DynamoDB_20120810", operation)) => dynamodb(&cloud, operation, &body).await,
        Some((_, operation)) => {
            cloud.counts().add(operation, Units::default());
            let said = match operation {
                "SendMessage" => json!({ "MessageId": "message" }),
                "ReceiveMessage" => json!({ "Messages": [] }),
                _ => json!({}),
            };
            amazon_json(StatusCode::OK, said.to_string())
        }
        // The only server remembers the slots that it has made, so none is made twice.
        None if uri.path().starts_with("/schedules/") && method == Method::POST => {
            cloud.counts().add("CreateSchedule", Units::default());
            axum::Json(json!({ "ScheduleArn": "arn:aws:scheduler:us-east-1:000000000000:schedule/holds/slot" }))
                .into_response()
        }
        // `reserve` asks for one as it starts.
        None => {
            let error = [("x-amzn-errortype", "ResourceNotFoundException")];
            (StatusCode::NOT_FOUND, error, axum::Json(json!({ "Message": "there is none" }))).into_response()
        }
    }
}

async fn dynamodb(cloud: &Cloud, operation: &str, body: &[u8]) -> Response {
    let Some(Answer { status, body, units }) = cloud.carry_out(operation, body).await else {
        return amazon_json(StatusCode::BAD_REQUEST, json!({ "__type": "UnknownOperationException" }).to_string());
    };
    cloud.counts().add(operation, units);
    amazon_json(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), body)
}

fn amazon_json(status: StatusCode, body: String) -> Response {
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body).into_response()
}

/// The units of an operation, by what its answer reports.
fn units(operation: &str, reported: &[ConsumedCapacity]) -> Units {
    let all = reported.iter().map(|table| table.capacity_units).sum::<f64>();
    match operation {
        "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems" => {
            let table_writes = reported.iter().filter_map(|all| Some(all.table.as_ref()?.capacity_units)).sum::<f64>();
            Units { table_writes, index_writes: all - table_writes, reads: 0.0 }
        }
        _ => Units { reads: all, ..Units::default() },
    }
}

/// The units of a write whose condition failed, or that was refused for another reason that is billed the same.
fn failed_condition(operation: &str, body: &[u8], said: &str) -> Units {
    let (request, said) = (parse(body), parse(said.as_bytes()));
    let size = |item: &Value| serde_json::from_value::<Item>(item.clone()).map_or(0, |item| item_size(&item));
    let of = |new: &Value, old: &Value| write_capacity_units(size(new).max(size(old)));
    let table_writes = match operation {
        "PutItem" | "UpdateItem" | "DeleteItem" => of(&request["Item"], &said["Item"]),
        "TransactWriteItems" => {
            let old = |at: usize| &said["CancellationReasons"][at]["Item"];
            let actions = request["TransactItems"].as_array().into_iter().flatten().enumerate();
            TRANSACTIONAL_CAPACITY_FACTOR * actions.map(|(at, action)| of(&action["Put"]["Item"], old(at))).sum::<f64>()
        }
        _ => 0.0,
    };
    Units { table_writes, ..Units::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(database: &Database, operation: &str, request: Value) -> Units {
        carry_out(database, operation, request.to_string().as_bytes()).unwrap().units
    }

    fn writes(table_writes: f64, index_writes: f64) -> Units {
        Units { table_writes, index_writes, reads: 0.0 }
    }

    fn put(pk: &str, name: &str, condition: &str) -> Value {
        let item = json!({
            "pk": { "S": pk }, "sk": { "S": "x" }, "name": { "S": name },
            "customer": { "S": "alice" }, "created_at": { "N": "1" },
        });
        let mut put = json!({ "TableName": TABLE, "Item": item });
        if !condition.is_empty() {
            put["ConditionExpression"] = condition.into();
            put["ReturnValuesOnConditionCheckFailure"] = "ALL_OLD".into();
        }
        put
    }

    #[test]
    fn a_write_costs_a_unit_a_kilobyte_and_twice_that_in_a_transaction_and_one_in_its_index() {
        let database = database(TABLE, &INDEXES).unwrap();
        let long = "x".repeat(1_500);
        assert_eq!(call(&database, "PutItem", put("a", "short", "")), writes(1.0, 1.0));
        assert_eq!(call(&database, "PutItem", put("b", &long, "")), writes(2.0, 1.0));
        let two = json!({ "TransactItems": [{ "Put": put("c", "short", "") }, { "Put": put("d", &long, "") }] });
        assert_eq!(call(&database, "TransactWriteItems", two), writes(6.0, 2.0));
    }

    #[test]
    fn a_failed_condition_costs_what_it_would_have_written_or_what_is_there_but_no_index() {
        let database = database(TABLE, &INDEXES).unwrap();
        let (long, new) = ("x".repeat(1_500), "attribute_not_exists(pk)");
        call(&database, "PutItem", put("a", "short", ""));
        call(&database, "PutItem", put("b", &long, ""));
        assert_eq!(call(&database, "PutItem", put("a", "short", new)), writes(1.0, 0.0));
        assert_eq!(call(&database, "PutItem", put("a", &long, new)), writes(2.0, 0.0));
        assert_eq!(call(&database, "PutItem", put("b", "short", new)), writes(2.0, 0.0));
        let two = json!({ "TransactItems": [{ "Put": put("c", "short", "") }, { "Put": put("b", "short", new) }] });
        assert_eq!(call(&database, "TransactWriteItems", two), writes(6.0, 0.0));
    }

    #[test]
    fn reads_are_counted_apart_and_half_if_they_need_not_be_consistent() {
        let database = database(TABLE, &INDEXES).unwrap();
        call(&database, "PutItem", put("a", "short", ""));
        let key = json!({ "pk": { "S": "a" }, "sk": { "S": "x" } });
        let get = |consistent: bool| json!({ "TableName": TABLE, "Key": key, "ConsistentRead": consistent });
        assert_eq!(call(&database, "GetItem", get(true)), Units { reads: 1.0, ..Units::default() });
        assert_eq!(call(&database, "GetItem", get(false)), Units { reads: 0.5, ..Units::default() });
        let batch = json!({ "RequestItems": { TABLE: { "Keys": [key], "ConsistentRead": true } } });
        assert_eq!(call(&database, "BatchGetItem", batch), Units { reads: 1.0, ..Units::default() });
    }

    #[tokio::test]
    async fn a_transaction_refuses_others_on_its_items_until_its_answer() {
        let cloud = Cloud::new(Options { delay: Duration::from_millis(20), conflicts: true }).unwrap();
        let two =
            |a: &str, b: &str| json!({ "TransactItems": [{ "Put": put(a, "x", "") }, { "Put": put(b, "x", "") }] });
        let call =
            async |request: Value| cloud.carry_out("TransactWriteItems", request.to_string().as_bytes()).await.unwrap();
        let (first, second, third) = tokio::join!(call(two("a", "b")), call(two("c", "a")), call(two("c", "d")));
        assert_eq!((first.status, third.status), (200, 200));
        let said = parse(second.body.as_bytes());
        let codes: Vec<&Value> =
            said["CancellationReasons"].as_array().unwrap().iter().map(|one| &one["Code"]).collect();
        assert_eq!((second.status, codes), (400, vec![&json!("None"), &json!("TransactionConflict")]));
        assert_eq!(call(two("c", "a")).await.status, 200);
        assert!(lock(&cloud.busy).is_empty());
        let abandoned = tokio::time::timeout(Duration::from_millis(1), call(two("e", "f"))).await;
        assert!(abandoned.is_err() && lock(&cloud.busy).is_empty());
    }

    #[test]
    fn what_was_counted_before_is_not_counted_again() {
        let mut counts = Counts::default();
        counts.add("GetItem", Units { reads: 1.0, ..Units::default() });
        counts.add("PutItem", writes(1.0, 1.0));
        let before = counts.clone();
        counts.add("PutItem", writes(2.0, 1.0));
        let calls = BTreeMap::from([("PutItem".to_owned(), 1)]);
        assert_eq!(counts.since(&before), Counts { calls, units: writes(2.0, 1.0) });
    }
}
