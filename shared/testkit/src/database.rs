//! The database behind a wire: dynoxide with the table of `template.yaml`, called by DynamoDB's JSON.

use std::collections::BTreeMap;

use dynoxide::{Database, DynoxideError};
use holdfast_store::keys::{self, Index};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

/// An empty table of this name in memory, with these indexes.
///
/// # Errors
/// Those of the database.
pub fn database(table: &str, indexes: &[Index]) -> Result<Database, DynoxideError> {
    let key = |partition_key: &str, sort_key: &str| {
        json!([
            { "AttributeName": partition_key, "KeyType": "HASH" },
            { "AttributeName": sort_key, "KeyType": "RANGE" },
        ])
    };
    // Each once, also one that several indexes use.
    let mut attributes = BTreeMap::from([(keys::PK, "S"), (keys::SK, "S")]);
    attributes.extend(indexes.iter().flat_map(|index| [(index.partition_key, "S"), (index.sort_key, "N")]));
    let attribute = |(name, kind): (&str, &str)| json!({ "AttributeName": name, "AttributeType": kind });
    let mut request = json!({
        "TableName": table, "BillingMode": "PAY_PER_REQUEST", "KeySchema": key(keys::PK, keys::SK),
        "AttributeDefinitions": attributes.into_iter().map(attribute).collect::<Vec<_>>(),
    });
    if !indexes.is_empty() {
        request["GlobalSecondaryIndexes"] = indexes
            .iter()
            .map(|index| {
                json!({
                    "IndexName": index.name, "KeySchema": key(index.partition_key, index.sort_key),
                    "Projection": projection(index),
                })
            })
            .collect();
    }
    let database = Database::memory()?;
    run(&request, |request| database.create_table(request))?;
    Ok(database)
}

/// The projection of an index, as in `CreateTable` and CloudFormation.
pub fn projection(index: &Index) -> Value {
    match index.includes {
        [] => json!({ "ProjectionType": "KEYS_ONLY" }),
        includes => json!({ "ProjectionType": "INCLUDE", "NonKeyAttributes": includes }),
    }
}

/// Executes an operation: the status and the body of the response, or `None` if it is not one of DynamoDB.
pub fn carry_out(database: &Database, operation: &str, request: &Value) -> Option<(u16, Value)> {
    let answer = match operation {
        "GetItem" => run(request, |request| database.get_item(request)),
        "BatchGetItem" => run(request, |request| database.batch_get_item(request)),
        "Query" => run(request, |request| database.query(request)),
        "Scan" => run(request, |request| database.scan(request)),
        "PutItem" => run(request, |request| database.put_item(request)),
        "UpdateItem" => run(request, |request| database.update_item(request)),
        "DeleteItem" => run(request, |request| database.delete_item(request)),
        "TransactGetItems" => run(request, |request| database.transact_get_items(request)),
        "TransactWriteItems" => run(request, |request| database.transact_write_items(request)),
        _ => return None,
    };
    Some(match answer {
        Ok(body) => (200, body),
        Err(error) => (error.status_code(), serde_json::from_str(&error.to_json()).unwrap_or_default()),
    })
}

fn run<Q: DeserializeOwned, A: Serialize>(
    request: &Value,
    operation: impl FnOnce(Q) -> Result<A, DynoxideError>,
) -> Result<Value, DynoxideError> {
    let request = Q::deserialize(request).map_err(|error| DynoxideError::SerializationException(error.to_string()))?;
    let answer = operation(request)?;
    serde_json::to_value(answer).map_err(|error| DynoxideError::InternalServerError(error.to_string()))
}
