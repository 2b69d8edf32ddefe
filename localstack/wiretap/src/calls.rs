//! AWS calls as IAM sees them: the actions and resources that a request must be allowed.
//!
//! Invariant: a request is understood completely, or it is an error that names what is not understood. A request that
//! was guessed at, or skipped, would make every check of the permissions worthless.
//!
//! From AWS's Service Authorization Reference, which says how each operation is authorised:
//! <https://docs.aws.amazon.com/service-authorization/latest/reference/list_dynamodb.html>, `list_sqs.html` and
//! `list_scheduler.html`. A transaction is authorised as the actions in it:
//! <https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/transaction-apis-iam.html>. A batch of messages is
//! authorised as one message:
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html>.

use holdfast_local::bootstrap::Resources;
use holdfast_local::error::{Error, Result};
use holdfast_local::template::ACCOUNT;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// The table's partition key.
const PARTITION_KEY: &str = "pk";

/// A permission that a caller needs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// Such as `dynamodb:PutItem`.
    pub action: String,
    /// The ARN of the resource.
    pub resource: String,
    /// For `iam:PassRole`: the service that will use the role.
    pub passed_to_service: Option<String>,
    /// For DynamoDB: which items, by the kind of their partition key: all of it, or up to its first `#`. A call for items
    /// of several kinds is several needs. `None` if the call names no key.
    pub leading_key: Option<String>,
}

impl Need {
    fn new(action: String, resource: String) -> Self {
        Self { action, resource, passed_to_service: None, leading_key: None }
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)?;
        self.leading_key.iter().try_for_each(|key| write!(f, " of {key}"))?;
        self.passed_to_service.iter().try_for_each(|service| write!(f, " for {service}"))
    }
}

/// The parts of a request that its permissions depend on.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The HTTP method.
    pub method: &'a str,
    /// The path, with its query.
    pub path: &'a str,
    /// The header `X-Amz-Target`, which names the operation of DynamoDB and SQS.
    pub target: Option<&'a str>,
    /// The body; `Null` without one.
    pub body: &'a Value,
}

/// The stack's resources, by the names that requests use.
#[derive(Debug)]
pub struct Names {
    /// Tables: name to ARN.
    tables: BTreeMap<String, String>,
    /// Queues: URL to ARN.
    queues: BTreeMap<String, String>,
    /// Schedule groups by name.
    groups: BTreeSet<String>,
    /// The prefix of the ARNs of schedules.
    schedules: String,
}

impl Names {
    /// The names of the stack's resources.
    ///
    /// # Errors
    /// A table has no ARN.
    pub fn new(resources: &Resources) -> Result<Self> {
        let mut tables = BTreeMap::new();
        for (id, name) in &resources.tables {
            let arn = resources.scope.resources.get(id).and_then(|table| table.attributes.get("Arn"));
            let arn = arn.ok_or_else(|| Error::new(format!("the table {id} has no ARN")))?;
            tables.insert(name.clone(), arn.clone());
        }
        let queues = resources.queues.values().map(|queue| (queue.url.clone(), queue.arn.clone())).collect();
        let groups = resources.groups.values().cloned().collect();
        let schedules = format!("arn:aws:scheduler:{}:{ACCOUNT}:schedule/", resources.scope.region);
        Ok(Self { tables, queues, groups, schedules })
    }

    /// What the sender of `request` must be allowed; never empty.
    ///
    /// # Errors
    /// The request, or a part of it, is not understood.
    pub fn needs(&self, request: Request<'_>) -> Result<Vec<Need>> {
        let Request { method, path, target, body } = request;
        let needs = match target.and_then(|target| target.split_once('.')) {
            Some(("DynamoDB_20120810", operation)) => self.dynamodb(operation, body),
            Some(("AmazonSQS", operation)) => self.sqs(operation, body),
            None if target.is_none() => self.scheduler(method, path, body),
            _ => Err(unknown("the operation")),
        };
        let what = || target.map_or_else(|| format!("{method} {path}"), str::to_owned);
        let mut needs = needs.map_err(|why| Error::new(format!("{}: {why}", what())))?;
        needs.sort();
        needs.dedup();
        if needs.is_empty() { Err(Error::new(format!("{}: it asks for nothing", what()))) } else { Ok(needs) }
    }

    fn dynamodb(&self, operation: &str, body: &Value) -> Result<Vec<Need>> {
        match operation {
            "GetItem" | "PutItem" | "UpdateItem" | "DeleteItem" => Ok(vec![self.on_item(operation, body)?]),
            // The resource is the index, not its table.
            "Query" | "Scan" => {
                let mut need = self.on_table(operation, body)?;
                match &body["IndexName"] {
                    Value::Null => {}
                    Value::String(index) => need.resource.push_str(&format!("/index/{index}")),
                    _ => return Err(unknown("IndexName")),
                }
                if operation == "Query" {
                    need.leading_key = Some(queried(body)?);
                }
                Ok(vec![need])
            }
            "BatchGetItem" => {
                let mut needs = Vec::new();
                for (name, wanted) in body["RequestItems"].as_object().ok_or_else(|| unknown("RequestItems"))? {
                    let table = self.table(name)?;
                    for key in wanted["Keys"].as_array().ok_or_else(|| unknown("Keys"))? {
                        let leading_key = Some(kind(&key[PARTITION_KEY])?);
                        needs.push(Need { leading_key, ..Need::new(dynamodb(operation), table.clone()) });
                    }
                }
                Ok(needs)
            }
            "TransactGetItems" | "TransactWriteItems" => {
                let actions = body["TransactItems"].as_array().ok_or_else(|| unknown("TransactItems"))?;
                actions.iter().map(|action| self.in_transaction(operation, action)).collect()
            }
            _ => Err(unknown("the operation")),
        }
    }

    /// One action of a transaction: `{"Put": {"TableName": .., ..}}`.
    fn in_transaction(&self, operation: &str, action: &Value) -> Result<Need> {
        let parts: Vec<(&String, &Value)> = action.as_object().into_iter().flatten().collect();
        let [(kind, parameters)] = parts.as_slice() else { return Err(unknown("an action of the transaction")) };
        match (operation, kind.as_str()) {
            ("TransactGetItems", "Get") => self.on_item("GetItem", parameters),
            ("TransactWriteItems", "Put") => self.on_item("PutItem", parameters),
            ("TransactWriteItems", "Update") => self.on_item("UpdateItem", parameters),
            ("TransactWriteItems", "Delete") => self.on_item("DeleteItem", parameters),
            ("TransactWriteItems", "ConditionCheck") => self.on_item("ConditionCheckItem", parameters),
            (_, kind) => Err(unknown(&format!("the action {kind} of the transaction"))),
        }
    }

    /// An action on one item, which is given whole or by its key.
    fn on_item(&self, action: &str, parameters: &Value) -> Result<Need> {
        let need = self.on_table(action, parameters)?;
        let item = if action == "PutItem" { &parameters["Item"] } else { &parameters["Key"] };
        Ok(Need { leading_key: Some(kind(&item[PARTITION_KEY])?), ..need })
    }

    fn on_table(&self, action: &str, parameters: &Value) -> Result<Need> {
        let name = parameters["TableName"].as_str().ok_or_else(|| unknown("TableName"))?;
        Ok(Need::new(dynamodb(action), self.table(name)?))
    }

    fn table(&self, name: &str) -> Result<String> {
        let arn = self.tables.get(name);
        arn.cloned().ok_or_else(|| Error::new(format!("the stack has no table {name}")))
    }

    fn sqs(&self, operation: &str, body: &Value) -> Result<Vec<Need>> {
        let action = match operation {
            "SendMessage" | "SendMessageBatch" => "sqs:SendMessage",
            "ReceiveMessage" => "sqs:ReceiveMessage",
            "DeleteMessage" | "DeleteMessageBatch" => "sqs:DeleteMessage",
            "ChangeMessageVisibility" | "ChangeMessageVisibilityBatch" => "sqs:ChangeMessageVisibility",
            "GetQueueAttributes" => "sqs:GetQueueAttributes",
            _ => return Err(unknown("the operation")),
        };
        let url = body["QueueUrl"].as_str().ok_or_else(|| unknown("QueueUrl"))?;
        let arn = self.queues.get(url).ok_or_else(|| Error::new(format!("the stack has no queue {url}")))?;
        Ok(vec![Need::new(action.to_owned(), arn.clone())])
    }

    fn scheduler(&self, method: &str, path: &str, body: &Value) -> Result<Vec<Need>> {
        // The characters of a valid name, which is not escaped in the path.
        let is_name = |text: &&str| text.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
        let (path, query) = path.split_once('?').unwrap_or((path, ""));
        let name =
            path.strip_prefix("/schedules/").filter(|text| ["GET", "POST"].contains(&method) && !text.is_empty());
        let name = name.filter(is_name).ok_or_else(|| unknown("the operation"))?;
        let group = if method == "GET" { query.strip_prefix("groupName=") } else { body["GroupName"].as_str() };
        let group = group.ok_or_else(|| unknown("GroupName"))?;
        if !self.groups.contains(group) {
            return Err(Error::new(format!("the stack has no schedule group {group}")));
        }
        let on_schedule =
            |action: &str| Need::new(format!("scheduler:{action}"), format!("{}{group}/{name}", self.schedules));
        if method == "GET" {
            return Ok(vec![on_schedule("GetSchedule")]);
        }
        let role = body["Target"]["RoleArn"].as_str().ok_or_else(|| unknown("Target.RoleArn"))?;
        Ok(vec![
            on_schedule("CreateSchedule"),
            Need {
                action: "iam:PassRole".to_owned(),
                resource: role.to_owned(),
                passed_to_service: Some("scheduler.amazonaws.com".to_owned()),
                leading_key: None,
            },
        ])
    }
}

/// Who signed a request: the access key id in its `Authorization` header.
pub fn caller(authorization: &str) -> Option<&str> {
    let credential = authorization.strip_prefix("AWS4-HMAC-SHA256 ")?.split_once("Credential=")?.1;
    credential.split_once('/').map(|(key, _)| key).filter(|key| !key.is_empty())
}

/// The kind of a partition key's value: all of it, or up to its first `#`.
fn kind(value: &Value) -> Result<String> {
    let text = value["S"].as_str().ok_or_else(|| unknown("the partition key"))?;
    Ok(text.split_inclusive('#').next().unwrap_or_default().to_owned())
}

/// The kind of the partition that a query reads: of its table or index, whose key comes first in the condition.
fn queried(body: &Value) -> Result<String> {
    let condition = body["KeyConditionExpression"].as_str().and_then(|condition| condition.split_once(" = "));
    let (_, rest) = condition.ok_or_else(|| unknown("KeyConditionExpression"))?;
    let name = rest.split(' ').next().unwrap_or_default();
    kind(&body["ExpressionAttributeValues"][name])
}

fn dynamodb(action: &str) -> String {
    format!("dynamodb:{action}")
}

fn unknown(what: &str) -> Error {
    Error::new(format!("{what} is not understood"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const TABLE: &str = "arn:aws:dynamodb:r:000000000000:table/s-Table";

    fn names() -> Names {
        Names {
            tables: BTreeMap::from([("s-Table".to_owned(), TABLE.to_owned())]),
            queues: BTreeMap::from([("http://q".to_owned(), "arn:aws:sqs:r:000000000000:s-Queue".to_owned())]),
            groups: BTreeSet::from(["s-Schedules".to_owned()]),
            schedules: "arn:aws:scheduler:r:000000000000:schedule/".to_owned(),
        }
    }

    fn shown(target: Option<&str>, path: &str, body: &Value) -> std::result::Result<Vec<String>, String> {
        let request = Request { method: "POST", path, target, body };
        let needs = names().needs(request).map_err(|error| error.to_string())?;
        Ok(needs.iter().map(ToString::to_string).collect())
    }

    fn dynamodb(operation: &str, body: &Value) -> std::result::Result<Vec<String>, String> {
        shown(Some(&format!("DynamoDB_20120810.{operation}")), "/", body)
    }

    fn key(pk: &str) -> Value {
        json!({"pk": {"S": pk}, "sk": {"S": "x"}})
    }

    #[test]
    fn an_operation_on_items_is_an_action_on_the_table() {
        for operation in ["GetItem", "PutItem", "UpdateItem", "DeleteItem"] {
            let part = if operation == "PutItem" { "Item" } else { "Key" };
            let needs = dynamodb(operation, &json!({"TableName": "s-Table", part: key("HOLD#1#2")}));
            assert_eq!(needs.unwrap(), [format!("dynamodb:{operation} on {TABLE} of HOLD#")]);
        }
        let needs = dynamodb("Scan", &json!({"TableName": "s-Table"}));
        assert_eq!(needs.unwrap(), [format!("dynamodb:Scan on {TABLE}")]);
        let keys = ["STOCK#a#0", "CATALOG", "STOCK#b#0"].map(key);
        let needs = dynamodb("BatchGetItem", &json!({"RequestItems": {"s-Table": {"Keys": keys}}}));
        assert_eq!(
            needs.unwrap(),
            ["CATALOG", "STOCK#"].map(|key| format!("dynamodb:BatchGetItem on {TABLE} of {key}"))
        );
    }

    #[test]
    fn on_an_index_the_index_is_the_resource() {
        let needs = dynamodb("Scan", &json!({"TableName": "s-Table", "IndexName": "due"}));
        assert_eq!(needs.unwrap(), [format!("dynamodb:Scan on {TABLE}/index/due")]);
        let query = |condition: &str| {
            json!({
                "TableName": "s-Table", "IndexName": "due", "KeyConditionExpression": condition,
                "ExpressionAttributeValues": {":key": {"S": "DUE#3"}, ":now": {"N": "1"}},
            })
        };
        for condition in ["#due_key = :key", "#due_key = :key AND #due_at <= :now"] {
            let needs = dynamodb("Query", &query(condition));
            assert_eq!(needs.unwrap(), [format!("dynamodb:Query on {TABLE}/index/due of DUE#")]);
        }
    }

    #[test]
    fn a_transaction_is_the_actions_in_it() {
        let on_item = |kind: &str, part: &str| json!({ kind: {"TableName": "s-Table", part: key("CATALOG")} });
        let mut write = ["Update", "Update", "ConditionCheck", "Delete"].map(|kind| on_item(kind, "Key")).to_vec();
        write.push(on_item("Put", "Item"));
        let needs = dynamodb("TransactWriteItems", &json!({ "TransactItems": write })).unwrap();
        let expected = ["ConditionCheckItem", "DeleteItem", "PutItem", "UpdateItem"];
        assert_eq!(needs, expected.map(|action| format!("dynamodb:{action} on {TABLE} of CATALOG")));
        let read = dynamodb("TransactGetItems", &json!({ "TransactItems": [on_item("Get", "Key")] }));
        assert_eq!(read.unwrap(), [format!("dynamodb:GetItem on {TABLE} of CATALOG")]);
    }

    #[test]
    fn a_batch_of_messages_is_one_message() {
        for (operation, action) in [
            ("SendMessage", "SendMessage"),
            ("SendMessageBatch", "SendMessage"),
            ("ReceiveMessage", "ReceiveMessage"),
            ("DeleteMessage", "DeleteMessage"),
            ("DeleteMessageBatch", "DeleteMessage"),
            ("ChangeMessageVisibilityBatch", "ChangeMessageVisibility"),
            ("GetQueueAttributes", "GetQueueAttributes"),
        ] {
            let needs = shown(Some(&format!("AmazonSQS.{operation}")), "/", &json!({"QueueUrl": "http://q"}));
            assert_eq!(needs.unwrap(), [format!("sqs:{action} on arn:aws:sqs:r:000000000000:s-Queue")]);
        }
    }

    #[test]
    fn making_a_schedule_hands_a_role_over_too() {
        let body = json!({"GroupName": "s-Schedules", "Target": {"RoleArn": "arn:aws:iam::0:role/s-Role"}});
        let expected = [
            "iam:PassRole on arn:aws:iam::0:role/s-Role for scheduler.amazonaws.com",
            "scheduler:CreateSchedule on arn:aws:scheduler:r:000000000000:schedule/s-Schedules/slot-1",
        ];
        assert_eq!(shown(None, "/schedules/slot-1", &body).unwrap(), expected);
    }

    #[test]
    fn a_question_for_a_schedule_names_its_group_in_the_query() {
        let asked = |path| {
            let request = Request { method: "GET", path, target: None, body: &Value::Null };
            names().needs(request).map_err(|error| error.to_string())
        };
        let needs = asked("/schedules/connection?groupName=s-Schedules").unwrap();
        let expected = "scheduler:GetSchedule on arn:aws:scheduler:r:000000000000:schedule/s-Schedules/connection";
        assert_eq!(needs.iter().map(ToString::to_string).collect::<Vec<_>>(), [expected]);
        assert!(asked("/schedules/connection?groupName=default").unwrap_err().contains("default"));
        assert!(asked("/schedules/connection").unwrap_err().contains("GroupName"));
    }

    #[test]
    fn what_is_not_understood_is_named_and_never_nothing() {
        let table = json!({"TableName": "s-Table"});
        let schedule = json!({"GroupName": "s-Schedules", "Target": {"RoleArn": "arn:r"}});
        for (target, path, body, named) in [
            (Some("DynamoDB_20120810.ExecuteStatement"), "/", &table, "ExecuteStatement"),
            (Some("DynamoDB_20120810.GetItem"), "/", &json!({"TableName": "other", "Key": key("A")}), "other"),
            (Some("DynamoDB_20120810.GetItem"), "/", &json!({ "Key": key("A") }), "TableName"),
            (Some("DynamoDB_20120810.GetItem"), "/", &table, "the partition key"),
            (Some("DynamoDB_20120810.Query"), "/", &table, "KeyConditionExpression"),
            (Some("DynamoDB_20120810.BatchWriteItem"), "/", &table, "BatchWriteItem"),
            (Some("DynamoDB_20120810.Query"), "/", &json!({"TableName": "s-Table", "IndexName": 1}), "IndexName"),
            (Some("DynamoDB_20120810.BatchGetItem"), "/", &json!({"RequestItems": {}}), "nothing"),
            (Some("DynamoDB_20120810.BatchGetItem"), "/", &table, "RequestItems"),
            (Some("DynamoDB_20120810.TransactWriteItems"), "/", &json!({"TransactItems": []}), "nothing"),
            (
                Some("DynamoDB_20120810.TransactWriteItems"),
                "/",
                &json!({"TransactItems": [{"Merge": {"TableName": "s-Table"}}]}),
                "Merge",
            ),
            (
                Some("DynamoDB_20120810.TransactWriteItems"),
                "/",
                &json!({"TransactItems": [{"Put": {"TableName": "s-Table"}, "Get": {}}]}),
                "an action",
            ),
            (Some("AmazonSQS.PurgeQueue"), "/", &json!({"QueueUrl": "http://q"}), "PurgeQueue"),
            (Some("AmazonSQS.SendMessage"), "/", &json!({"QueueUrl": "http://other"}), "http://other"),
            (Some("Kinesis_20131202.PutRecord"), "/", &Value::Null, "Kinesis"),
            (Some("GetItem"), "/schedules/slot-1", &schedule, "GetItem"),
            (None, "/schedules", &schedule, "POST /schedules"),
            (None, "/schedules/a%2Fb", &schedule, "a%2Fb"),
            (None, "/schedules/slot-1", &json!({"GroupName": "default"}), "default"),
            (None, "/schedules/slot-1", &json!({"GroupName": "s-Schedules"}), "RoleArn"),
        ] {
            let why = shown(target, path, body).unwrap_err();
            assert!(why.contains(named), "{why}");
        }
        let update = Request { method: "PUT", path: "/schedules/slot-1", target: None, body: &schedule };
        assert!(names().needs(update).is_err());
    }

    #[test]
    fn the_access_key_says_who_calls() {
        let header = "AWS4-HMAC-SHA256 Credential=reserve/20261121/r/sqs/aws4_request, SignedHeaders=host, Signature=0";
        assert_eq!(caller(header), Some("reserve"));
        for other in ["", "Bearer x", "AWS4-HMAC-SHA256 Credential=/x", "AWS4-HMAC-SHA256 SignedHeaders=host"] {
            assert_eq!(caller(other), None, "{other}");
        }
    }
}
