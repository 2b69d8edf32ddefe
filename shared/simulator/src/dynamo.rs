//! DynamoDB's JSON, and calls to the database behind the wire.

use dynoxide::{Database, DynoxideError};
use holdfast_store::keys::INDEXES;
pub(crate) use holdfast_testkit::database::carry_out;
use holdfast_testkit::database::database;
use holdfast_testkit::fixtures::TABLE;
use serde_json::{Map, Value, json};

/// An item's key: partition key, sort key.
pub(crate) type Place = (String, String);

/// An empty table, and a lagging replica that answers queries of the indexes: the table itself needs no index.
pub(crate) fn databases() -> Result<(Database, Database), DynoxideError> {
    Ok((database(TABLE, &[])?, database(TABLE, &INDEXES)?))
}

/// The answer to a read of whole items by key, from the items that it sees; `None` for any other operation.
pub(crate) fn by_key<'a>(
    operation: &str,
    request: &Value,
    seen: impl Fn(&Place) -> Option<&'a Value>,
) -> Option<Value> {
    let whole = |of: &Value| of["ProjectionExpression"].is_null() && of["AttributesToGet"].is_null();
    let found = |key: &Value| place(key).and_then(|place| seen(&place).cloned());
    let answer = |item: Option<Value>| item.map_or_else(|| json!({}), |item| json!({ "Item": item }));
    match operation {
        "GetItem" if whole(request) => Some(answer(found(&request["Key"]))),
        "BatchGetItem" => {
            let mut responses = Map::new();
            for (table, wanted) in request["RequestItems"].as_object()? {
                if !whole(wanted) {
                    return None;
                }
                responses.insert(table.clone(), wanted["Keys"].as_array()?.iter().filter_map(found).collect());
            }
            Some(json!({ "Responses": responses, "UnprocessedKeys": {} }))
        }
        "TransactGetItems" => {
            let gets = actions(request).map(|action| &action["Get"]);
            let answers = gets.map(|get| whole(get).then(|| answer(found(&get["Key"])))).collect::<Option<Vec<_>>>()?;
            Some(json!({ "Responses": answers }))
        }
        _ => None,
    }
}

/// Whether a read is of the directory, or of what the catalogue shows of products.
pub(crate) fn is_shown(request: &Value) -> bool {
    let tables = request["RequestItems"].as_object().into_iter().flatten();
    let mut keys = tables.flat_map(|(_, wanted)| wanted["Keys"].as_array().into_iter().flatten());
    let views = request["RequestItems"].is_object()
        && keys.all(|key| key["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("VIEW#")));
    views || request["ExpressionAttributeValues"][":catalog"]["S"] == "CATALOG"
}

/// The item with this key, as it is now.
pub(crate) fn item(database: &Database, table: &str, place: &Place) -> Option<Value> {
    let request = json!({ "TableName": table, "Key": key(place), "ConsistentRead": true });
    let (_, mut answer) = carry_out(database, "GetItem", &request)?;
    answer.get_mut("Item").map(Value::take)
}

pub(crate) fn key(place: &Place) -> Value {
    json!({ "pk": { "S": place.0 }, "sk": { "S": place.1 } })
}

/// The keys that a write touches, each once, in the order of its actions.
pub(crate) fn places(operation: &str, request: &Value) -> Vec<Place> {
    match operation {
        "PutItem" => place(&request["Item"]).into_iter().collect(),
        "UpdateItem" | "DeleteItem" => place(&request["Key"]).into_iter().collect(),
        "TransactWriteItems" => actions(request).filter_map(|action| place(target(action))).collect(),
        _ => Vec::new(),
    }
}

/// Whether an operation writes to the table.
pub(crate) fn writes(operation: &str) -> bool {
    matches!(operation, "PutItem" | "UpdateItem" | "DeleteItem" | "TransactWriteItems")
}

/// The keys that a transactional read reads at one instant; none for any other operation.
pub(crate) fn wanted(operation: &str, request: &Value) -> Vec<Place> {
    if operation != "TransactGetItems" {
        return Vec::new();
    }
    let keys = actions(request).map(|action| &action["Get"]["Key"]);
    keys.filter_map(place).collect()
}

/// Stores an item under its key, or deletes it, unconditionally.
pub(crate) fn put(database: &Database, table: &str, place: &Place, item: Option<&Value>) {
    match item {
        Some(item) => carry_out(database, "PutItem", &json!({ "TableName": table, "Item": item })),
        None => carry_out(database, "DeleteItem", &json!({ "TableName": table, "Key": key(place) })),
    };
}

fn place(item: &Value) -> Option<Place> {
    Some((item["pk"]["S"].as_str()?.to_owned(), item["sk"]["S"].as_str()?.to_owned()))
}

/// A transaction's actions.
pub(crate) fn actions(request: &Value) -> impl Iterator<Item = &Value> {
    request["TransactItems"].as_array().into_iter().flatten()
}

fn target(action: &Value) -> &Value {
    let (kind, inner) =
        action.as_object().and_then(|action| action.iter().next()).map_or(("", action), |(k, v)| (k, v));
    if kind == "Put" { &inner["Item"] } else { &inner["Key"] }
}

/// An item without DynamoDB's type tags: numbers as integers, since the table has no others.
pub(crate) fn plain_item(item: &Value) -> Value {
    let attributes = item.as_object().into_iter().flatten();
    Value::Object(attributes.map(|(name, value)| (name.clone(), plain(value))).collect::<Map<_, _>>())
}

fn plain(value: &Value) -> Value {
    let Some((kind, inner)) = value.as_object().and_then(|value| value.iter().next()) else { return Value::Null };
    match (kind.as_str(), inner) {
        ("S" | "BOOL", inner) => inner.clone(),
        ("N", Value::String(digits)) => digits.parse::<i64>().map_or(Value::Null, Value::from),
        ("L", Value::Array(values)) => values.iter().map(plain).collect(),
        ("SS", inner) => inner.clone(),
        ("M", inner) => plain_item(inner),
        _ => Value::Null,
    }
}
