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
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use dynoxide::Database;
use dynoxide::types::{Item, TRANSACTIONAL_CAPACITY_FACTOR, item_size, write_capacity_units};
use holdfast_store::keys::INDEXES;
use holdfast_testkit::database::{carry_out, database};
use holdfast_testkit::fixtures::TABLE;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

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
    async fn carry_out(&self, operation: &str, request: &Value) -> Option<(u16, Value)> {
        let keys = if self.options.conflicts { keys(request) } else { Vec::new() };
        let writes = operation == "TransactWriteItems";
        let answer = {
            let mut busy = lock(&self.busy);
            let refused = conflict(request, &keys, &busy);
            if refused.is_none() && writes {
                busy.extend(keys.iter().cloned());
            }
            refused
        };
        let is_refused = answer.is_some();
        // Blocks this thread for the time of the operation, as dynoxide's own server does.
        let answer = answer.or_else(|| carry_out(&self.database, operation, request));
        if !self.options.delay.is_zero() {
            // The time that is simulated.
            tokio::time::sleep(self.options.delay).await;
        }
        if writes && !is_refused {
            let mut busy = lock(&self.busy);
            keys.iter().for_each(|key| _ = busy.remove(key));
        }
        answer
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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
fn conflict(request: &Value, keys: &[String], busy: &BTreeSet<String>) -> Option<(u16, Value)> {
    if !keys.iter().any(|key| busy.contains(key)) {
        return None;
    }
    let error = |code: &str| json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "busy" });
    if request["TransactItems"].is_null() {
        return Some((400, error("TransactionConflictException")));
    }
    let reason = |key| json!({ "Code": if busy.contains(key) { "TransactionConflict" } else { "None" } });
    let mut cancelled = error("TransactionCanceledException");
    cancelled["CancellationReasons"] = keys.iter().map(reason).collect();
    Some((400, cancelled))
}

/// Serves until this process ends.
///
/// # Errors
/// There is no database, or no port.
pub(crate) async fn run(options: Options) -> Result<()> {
    let cloud = Cloud::new(options)?;
    let router = Router::new()
        .route("/counts", get(async |State(cloud): State<Arc<Cloud>>| axum::Json(cloud.counts().clone())))
        .fallback(answer)
        .with_state(Arc::new(cloud));
    axum::serve(announce().await?, router).await?;
    Ok(())
}

/// The operation is named by a header in the protocols of DynamoDB and SQS, and by the path in Scheduler's.
async fn answer(State(cloud): State<Arc<Cloud>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Response {
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
            amazon_json(StatusCode::OK, &said)
        }
        // The only server remembers the slots that it has made, so none is made twice.
        None if uri.path().starts_with("/schedules/") => {
            cloud.counts().add("CreateSchedule", Units::default());
            axum::Json(json!({ "ScheduleArn": "arn:aws:scheduler:us-east-1:000000000000:schedule/holds/slot" }))
                .into_response()
        }
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

async fn dynamodb(cloud: &Cloud, operation: &str, body: &[u8]) -> Response {
    let Ok(mut request) = serde_json::from_slice::<Value>(body) else {
        return amazon_json(StatusCode::BAD_REQUEST, &json!({ "__type": "SerializationException" }));
    };
    let asked = request.get("ReturnConsumedCapacity").is_some();
    if let Some(request) = request.as_object_mut() {
        request.insert("ReturnConsumedCapacity".to_owned(), "INDEXES".into());
    }
    let Some((status, mut said)) = cloud.carry_out(operation, &request).await else {
        return amazon_json(StatusCode::BAD_REQUEST, &json!({ "__type": "UnknownOperationException" }));
    };
    cloud.counts().add(operation, units(operation, &request, &said));
    if !asked && let Some(said) = said.as_object_mut() {
        said.remove("ConsumedCapacity");
    }
    amazon_json(StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR), &said)
}

fn amazon_json(status: StatusCode, body: &Value) -> Response {
    (status, [(header::CONTENT_TYPE, "application/x-amz-json-1.0")], body.to_string()).into_response()
}

/// The units of an operation, by the request and its answer.
fn units(operation: &str, request: &Value, said: &Value) -> Units {
    let reported = match &said["ConsumedCapacity"] {
        Value::Array(tables) => tables.as_slice(),
        Value::Null => &[],
        one => std::slice::from_ref(one),
    };
    let sum = |of: fn(&Value) -> &Value| reported.iter().filter_map(|table| of(table).as_f64()).sum::<f64>();
    let all = sum(|table| &table["CapacityUnits"]);
    match operation {
        "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems" if reported.is_empty() => {
            Units { table_writes: failed_condition(request, said), ..Units::default() }
        }
        "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems" => {
            let table_writes = sum(|table| &table["Table"]["CapacityUnits"]);
            Units { table_writes, index_writes: all - table_writes, reads: 0.0 }
        }
        _ => Units { reads: all, ..Units::default() },
    }
}

/// The units of a write whose condition failed, or that was refused for another reason that is billed the same.
fn failed_condition(request: &Value, said: &Value) -> f64 {
    let size = |item: &Value| serde_json::from_value::<Item>(item.clone()).map_or(0, |item| item_size(&item));
    let of = |new: &Value, old: &Value| write_capacity_units(size(new).max(size(old)));
    match request["TransactItems"].as_array() {
        None => of(&request["Item"], &said["Item"]),
        Some(actions) => {
            let old = |at: usize| &said["CancellationReasons"][at]["Item"];
            let each = actions.iter().enumerate().map(|(at, action)| of(&action["Put"]["Item"], old(at)));
            TRANSACTIONAL_CAPACITY_FACTOR * each.sum::<f64>()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(database: &Database, operation: &str, mut request: Value) -> Units {
        request["ReturnConsumedCapacity"] = "INDEXES".into();
        let (_, said) = carry_out(database, operation, &request).unwrap();
        units(operation, &request, &said)
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
        let (first, second, third) = (two("a", "b"), two("c", "a"), two("c", "d"));
        let call = |request| cloud.carry_out("TransactWriteItems", request);
        let (first, second, third) = tokio::join!(call(&first), call(&second), call(&third));
        assert_eq!((first.unwrap().0, third.unwrap().0), (200, 200));
        let (status, said) = second.unwrap();
        let codes: Vec<&Value> =
            said["CancellationReasons"].as_array().unwrap().iter().map(|one| &one["Code"]).collect();
        assert_eq!((status, codes), (400, vec![&json!("None"), &json!("TransactionConflict")]));
        assert_eq!(cloud.carry_out("TransactWriteItems", &two("c", "a")).await.unwrap().0, 200);
        assert!(lock(&cloud.busy).is_empty());
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
