//! Bugs, planted on purpose, that the promises must catch. (One list of all bugs, hence the length.)
//!
//! Each bug is applied on the wire: it changes a request, an answer or a response as a function with that bug would. A
//! condition is left out, a reason is read from the wrong position, a message is never sent. So the functions need no
//! switch for it, and one build has all of them.

use serde_json::{Value, json};

use crate::cloud::Function;
use crate::dynamo;
use crate::world::Call;

/// The answer that a function assumes for a call that it never made.
type Pretended = Option<(u16, Value)>;

/// A planted bug.
#[derive(Debug)]
pub struct Planted {
    /// Its name on the command line.
    pub name: &'static str,
    /// The mistake.
    pub what: &'static str,
    asks: Option<fn(&mut Call) -> Pretended>,
    hears: Option<fn(&Call, u16, &mut Value)>,
    says: Option<fn(Function, &Value, &mut Value)>,
    ignores: Option<fn(Function, &Value) -> bool>,
    reads: Option<fn(Function, &mut Value)>,
}

impl Planted {
    /// The bug of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|planted| planted.name == name)
    }

    /// Changes a request as the bug does. If the bug never sends it, returns the answer that the function assumes.
    pub(crate) fn asked(&self, call: &mut Call) -> Pretended {
        self.asks.and_then(|ask| ask(call))
    }

    /// Changes an answer to what the function understands with the bug.
    pub(crate) fn answered(&self, call: &Call, status: u16, body: &mut Value) {
        if let Some(hear) = self.hears {
            hear(call, status, body);
        }
    }

    /// Whether the function ignores this event.
    pub(crate) fn ignored(&self, function: Function, event: &Value) -> bool {
        self.ignores.is_some_and(|ignores| ignores(function, event))
    }

    /// Changes an event to what the function understands with the bug.
    pub(crate) fn read(&self, function: Function, event: &mut Value) {
        if let Some(read) = self.reads {
            read(function, event);
        }
    }

    /// Changes the function's response as the bug does.
    pub(crate) fn replied(&self, function: Function, event: &Value, reply: &mut Value) {
        if let Some(say) = self.says {
            say(function, event, reply);
        }
    }
}

const fn asks(name: &'static str, what: &'static str, ask: fn(&mut Call) -> Pretended) -> Planted {
    Planted { name, what, asks: Some(ask), hears: None, says: None, ignores: None, reads: None }
}

const fn hears(name: &'static str, what: &'static str, hear: fn(&Call, u16, &mut Value)) -> Planted {
    Planted { name, what, asks: None, hears: Some(hear), says: None, ignores: None, reads: None }
}

const fn says(name: &'static str, what: &'static str, say: fn(Function, &Value, &mut Value)) -> Planted {
    Planted { name, what, asks: None, hears: None, says: Some(say), ignores: None, reads: None }
}

const fn ignores(name: &'static str, what: &'static str, ignores: fn(Function, &Value) -> bool) -> Planted {
    Planted { name, what, asks: None, hears: None, says: None, ignores: Some(ignores), reads: None }
}

const fn reads(name: &'static str, what: &'static str, read: fn(Function, &mut Value)) -> Planted {
    Planted { name, what, asks: None, hears: None, says: None, ignores: None, reads: Some(read) }
}

/// The update by which a function closes an ended hold has no effect.
fn closes_nothing(call: &mut Call, by: &str) -> Pretended {
    let closing = call.operation == "UpdateItem"
        && call.by.starts_with(by)
        && call.request["UpdateExpression"]
            .as_str()
            .is_some_and(|update| update.contains("#unpaid_closed_at = :until"));
    if closing {
        call.request["ExpressionAttributeValues"][":until"] = json!({ "N": "0" });
    }
    None
}

/// The purpose of a write, derived from its actions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Deed {
    Reserve,
    Release,
    Retake,
    Adjust,
    Resolve,
    GiveBack,
    ChangeLines,
    HandOver,
    Other,
}

fn deed(call: &Call) -> Deed {
    if call.operation != "TransactWriteItems" {
        return Deed::Other;
    }
    let text = call.request.to_string();
    let begins =
        |prefix: &str| dynamo::places(&call.operation, &call.request).iter().any(|(pk, _)| pk.starts_with(prefix));
    if text.contains("#cancellation = :cancellation") && text.contains("#status = :confirmed") {
        Deed::GiveBack
    } else if text.contains("#formerly :from") {
        Deed::HandOver
    } else if text.contains("SET #lines = :lines") {
        Deed::ChangeLines
    } else if begins("ADJUST#") {
        Deed::Adjust
    } else if begins("FAILED") {
        Deed::Resolve
    } else if !begins("HOLD#") {
        Deed::Other
    } else if text.contains("#confirmed_late") {
        Deed::Retake
    } else if text.contains("#status = :end") {
        Deed::Release
    } else {
        Deed::Reserve
    }
}

/// The parts of a transaction's actions that have the key, condition and update, for keys that begin with `prefix`.
fn parts<'a>(call: &'a mut Call, prefix: &'a str) -> impl Iterator<Item = &'a mut Value> {
    let actions = call.request.get_mut("TransactItems").and_then(Value::as_array_mut);
    let parts = actions.into_iter().flatten().filter_map(|action| action.as_object_mut()?.values_mut().next());
    parts.filter(move |part| {
        let key = if part["Item"].is_object() { &part["Item"] } else { &part["Key"] };
        key["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with(prefix))
    })
}

/// Replaces `old` by `new` in an expression, and removes values and names that no expression uses any more: DynamoDB
/// refuses those.
fn rewrite(part: &mut Value, member: &str, old: &str, new: &str) {
    let Some(text) = part[member].as_str() else { return };
    let changed = text.replace(old, new);
    if changed.is_empty() {
        part.as_object_mut().map(|part| part.remove(member));
    } else {
        part[member] = changed.into();
    }
    let expressions =
        ["UpdateExpression", "ConditionExpression"].map(|name| part[name].as_str().unwrap_or_default()).join(" ");
    for (member, sign) in [("ExpressionAttributeValues", ':'), ("ExpressionAttributeNames", '#')] {
        let used = |name: &str| {
            expressions.split(sign).skip(1).any(|rest| {
                rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next() == name.strip_prefix(sign)
            })
        };
        let empty = part[member].as_object_mut().is_some_and(|names| {
            names.retain(|name, _| used(name));
            names.is_empty()
        });
        if empty {
            part.as_object_mut().map(|part| part.remove(member));
        }
    }
}

fn condition(part: &mut Value, old: &str, new: &str) {
    rewrite(part, "ConditionExpression", old, new);
}

/// In the conditions of such a write, replaces `old` by `new` for items whose key begins with `prefix`.
fn in_condition(call: &mut Call, of: Deed, prefix: &str, old: &str, new: &str) -> Pretended {
    if deed(call) == of {
        parts(call, prefix).for_each(|part| condition(part, old, new));
    }
    None
}

/// The same in its update expressions.
fn in_update(call: &mut Call, of: Deed, prefix: &str, old: &str, new: &str) -> Pretended {
    if deed(call) == of {
        parts(call, prefix).for_each(|part| rewrite(part, "UpdateExpression", old, new));
    }
    None
}

/// Whether a call is about the looks at a product that is sold out.
fn is_of_looks(call: &Call) -> bool {
    call.request["Key"]["sk"]["S"] == "LOOKS"
}

/// Whether it tells others what a look has found.
pub(crate) fn is_end_of_look(call: &Call) -> bool {
    is_of_looks(call) && call.request["ExpressionAttributeValues"][":ended"].is_object()
}

/// The positions of the reservations that a transaction makes, if it is a group's.
pub(crate) fn group(call: &Call) -> Vec<usize> {
    let actions = call.request["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
    let made = |action: &Value| action["Put"]["Item"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("HOLD#"));
    let made: Vec<usize> = (0..actions.len()).filter(|&at| made(&actions[at])).collect();
    if made.len() > 1 { made } else { Vec::new() }
}

/// Removes actions from a transaction.
fn without(call: &mut Call, of: Deed, prefix: &str) -> Pretended {
    if deed(call) == of
        && let Some(actions) = call.request["TransactItems"].as_array_mut()
    {
        actions.retain(|action| {
            let part = action.as_object().and_then(|action| action.values().next());
            let pk = part.and_then(|part| part["Key"]["pk"]["S"].as_str());
            !pk.is_some_and(|pk| pk.starts_with(prefix))
        });
    }
    None
}

/// Removes the actions whose update contains `marker`, for keys that begin with `prefix`.
fn without_update(call: &mut Call, of: Deed, prefix: &str, marker: &str) -> Pretended {
    if deed(call) == of
        && let Some(actions) = call.request["TransactItems"].as_array_mut()
    {
        actions.retain(|action| {
            let update = &action["Update"];
            let there = update["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with(prefix));
            !(there && update["UpdateExpression"].as_str().is_some_and(|update| update.contains(marker)))
        });
    }
    None
}

/// The condition that a hold's lines and owner are still those that were read: of one that never changed, and of another.
const UNCHANGED: [&str; 2] = [" AND attribute_not_exists(#lines[0].#revision)", " AND #lines[0].#revision = :revision"];

/// Such a write does not ask whether the hold's lines and owner are still those that were read. Nor whether the limit that
/// it gives back is counted, which would stop it as well.
fn without_revision(call: &mut Call, of: Deed) -> Pretended {
    if deed(call) == of {
        parts(call, "LIMIT#").for_each(|part| condition(part, "#units >= :q", "attribute_exists(#units)"));
        for unchanged in UNCHANGED {
            parts(call, "HOLD#").for_each(|part| condition(part, unchanged, ""));
        }
    }
    None
}

/// Rewrites the condition of a plain update whose update expression contains `marker`.
fn plain(call: &mut Call, marker: &str, old: &str, new: &str) -> Pretended {
    let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
    if call.operation == "UpdateItem" && update.contains(marker) {
        condition(&mut call.request, old, new);
    }
    None
}

/// The same for its update expression.
fn plain_update(call: &mut Call, marker: &str, old: &str, new: &str) -> Pretended {
    let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
    if call.operation == "UpdateItem" && update.contains(marker) {
        rewrite(&mut call.request, "UpdateExpression", old, new);
    }
    None
}

fn body(reply: &Value) -> Value {
    reply["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default()
}

fn number(part: &mut Value, name: &str, change: impl Fn(i64) -> i64) {
    let value = &mut part["ExpressionAttributeValues"][name]["N"];
    if let Some(number) = value.as_str().and_then(|digits| digits.parse().ok()) {
        *value = change(number).to_string().into();
    }
}

/// Makes a function read this number of units on every shard.
fn stock(call: &Call, function: &str, body: &mut Value, units: u32) {
    let items: Vec<&mut Value> = match &mut body["Responses"] {
        // BatchGetItem answers by table, TransactGetItems by position.
        Value::Object(tables) => tables.values_mut().filter_map(Value::as_array_mut).flatten().collect(),
        Value::Array(found) => found.iter_mut().filter_map(|found| found.get_mut("Item")).collect(),
        _ => return,
    };
    for item in items {
        if call.by.starts_with(function) && item["available"].is_object() {
            item["available"] = json!({ "N": units.to_string() });
        }
    }
}

/// A function's query for overdue holds finds nothing.
fn nothing_is_due(call: &Call, function: &str, body: &mut Value) {
    let due = call.operation == "Query" && call.request["IndexName"] == "due";
    if due && call.by.starts_with(function) {
        body["Items"] = json!([]);
        body.as_object_mut().map(|body| body.remove("LastEvaluatedKey"));
    }
}

/// A function's snapshot misses the items that its answer must be based on.
fn forgets(call: &Call, function: &str, prefix: &str, body: &mut Value) {
    if call.operation != "TransactGetItems" || !call.by.starts_with(function) {
        return;
    }
    let wanted = call.request["TransactItems"].as_array().into_iter().flatten();
    let found = body["Responses"].as_array_mut().into_iter().flatten();
    for (wanted, found) in wanted.zip(found) {
        if wanted["Get"]["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with(prefix)) {
            *found = json!({});
        }
    }
}

/// Whether a write only moves units between shards.
fn gathers(call: &Call) -> bool {
    let places = dynamo::places(&call.operation, &call.request);
    call.operation == "TransactWriteItems" && places.iter().all(|(pk, _)| pk.starts_with("STOCK#"))
}

/// Replaces a response by a refusal.
fn refuse(reply: &mut Value, code: &str, more: Value) {
    let mut problem = more;
    problem["code"] = code.into();
    reply["statusCode"] = 409.into();
    reply["body"] = problem.to_string().into();
}

/// Identifies the update of a confirmation in time.
const CONFIRMS: &str = "#confirmed_at = :now";

/// All planted bugs.
pub static ALL: &[Planted] = &[
    // ---- reserve
    asks("reserve-without-stock-condition", "reserve takes units without `available >= :q`", |call| {
        in_condition(call, Deed::Reserve, "STOCK#", "#available >= :q AND ", "")
    }),
    asks("reserve-without-version-condition", "reserve does not ask the shard for a newer product", |call| {
        in_condition(call, Deed::Reserve, "STOCK#", " AND #product_version <= :v", "")
    }),
    asks("reserve-over-existing", "reserve puts the reservation without `attribute_not_exists`", |call| {
        in_condition(call, Deed::Reserve, "HOLD#", "attribute_not_exists(#pk)", "")
    }),
    asks(
        "reserve-without-limit-condition",
        "reserve counts the customer's units and does not look at the limit",
        |call| in_condition(call, Deed::Reserve, "LIMIT#", "attribute_not_exists(#units) OR #units <= :room", ""),
    ),
    asks("reserve-without-limit", "reserve does not count the customer's units", |call| {
        without(call, Deed::Reserve, "LIMIT#")
    }),
    asks("reserve-without-stock", "reserve makes the reservation and takes no units", |call| {
        without(call, Deed::Reserve, "STOCK#")
    }),
    asks("reserve-in-two-steps", "reserve takes the units first and makes the reservation in a second call", |call| {
        if deed(call) == Deed::Reserve {
            let actions = call.request["TransactItems"].as_array_mut()?;
            actions.retain(|action| !action["Put"].is_object());
        }
        None
    }),
    asks("reserve-takes-one-too-few", "reserve takes one unit less than it promises", |call| {
        if deed(call) == Deed::Reserve {
            parts(call, "STOCK#").for_each(|part| number(part, ":q", |units| (units - 1).max(1)));
        }
        None
    }),
    asks("reserve-due-too-late", "the index of holds shows a new hold a minute after it ends", |call| {
        if deed(call) == Deed::Reserve {
            for part in parts(call, "HOLD#") {
                let due = part["Item"]["due_at"]["N"].as_str().and_then(|due| due.parse::<i64>().ok());
                part["Item"]["due_at"]["N"] = (due.unwrap_or_default() + 60_000).to_string().into();
            }
        }
        None
    }),
    asks("holds-are-cleaned-up", "a hold has a `ttl` from the start", |call| {
        if deed(call) == Deed::Reserve {
            parts(call, "HOLD#").for_each(|part| part["Item"]["ttl"] = json!({ "N": "1763700600" }));
        }
        None
    }),
    // ---- many reserves in one call
    asks("group-takes-one-share", "a group of reserves takes the units of all but one from a shard", |call| {
        if !group(call).is_empty() {
            parts(call, "STOCK#").for_each(|part| number(part, ":q", |units| (units - 1).max(1)));
        }
        None
    }),
    asks("group-forgets-a-member", "a group of reserves leaves its second reservation out", |call| {
        let &[_, forgotten, ..] = group(call).as_slice() else { return None };
        let action = &mut call.request["TransactItems"][forgotten];
        let key = json!({ "pk": action["Put"]["Item"]["pk"], "sk": action["Put"]["Item"]["sk"] });
        *action = json!({ "ConditionCheck": {
            "TableName": action["Put"]["TableName"], "Key": key, "ConditionExpression": "attribute_not_exists(pk)",
        } });
        None
    }),
    hears(
        "group-reads-the-reason-of-another",
        "a member of a group reads the reason of another member",
        |call, _, body| {
            let &[first, second, ..] = group(call).as_slice() else { return };
            if let Some(reasons) = body["CancellationReasons"].as_array_mut() {
                reasons.swap(first, second);
            }
        },
    ),
    hears(
        "group-reads-the-item-of-another",
        "of reservations that are read together, one takes another",
        |call, _, body| {
            let gets = call.request["TransactItems"].as_array().map(Vec::as_slice).unwrap_or_default();
            let hold = |get: &Value| get["Get"]["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("HOLD#"));
            if call.operation == "TransactGetItems" && gets.len() > 1 && gets.iter().all(hold) {
                _ = body["Responses"].as_array_mut().map(|found| found.rotate_left(1));
            }
        },
    ),
    // ---- what environments tell one another about a product that is sold out
    hears(
        "look-of-before",
        "a look that ended before an environment asked is taken for one that began since",
        |call, _, body| {
            if !is_of_looks(call) || !body["Item"].is_object() {
                return;
            }
            // Before it asks, it sees no look; then it is refused the beginning of one, and sees those that there were.
            if call.operation == "GetItem" {
                body["Item"]["begun"] = json!({ "N": "0" });
                body["Item"]["ended"] = json!({ "N": "0" });
            }
            // Dated by a clock that is ahead.
            if body["Item"]["searched"].is_object() {
                body["Item"]["searched"] = json!({ "N": "9000000000000" });
            }
        },
    ),
    asks("look-finds-nothing", "whoever has looked tells others that nothing is free, whatever there is", |call| {
        if is_end_of_look(call) && call.request["ExpressionAttributeValues"][":searched"].is_object() {
            call.request["UpdateExpression"] = "SET #ended = :ended, #searched = :searched, #free = :free".into();
            call.request["ExpressionAttributeValues"][":free"] = json!({ "N": "0" });
            call.request["ExpressionAttributeNames"]["#free"] = "free".into();
        }
        None
    }),
    asks("search-dated-later", "a search for overdue holds is relied on for longer", |call| {
        let values = &mut call.request["ExpressionAttributeValues"];
        if let Some(searched) = values[":searched"]["N"].as_str().and_then(|at| at.parse::<i64>().ok()) {
            values[":searched"]["N"] = (searched + 1_500).to_string().into();
        }
        None
    }),
    // ---- the end of a hold
    asks("release-without-status", "a release does not ask whether the hold is still held", |call| {
        in_condition(call, Deed::Release, "HOLD#", " AND #status = :held", "")
    }),
    asks("expiry-checked-only-on-read", "expire looks at the time when it reads, and not when it writes", |call| {
        in_condition(call, Deed::Release, "HOLD#", " AND #expires_at <= :now", "")
    }),
    asks("restore-twice", "a release gives twice the units back", |call| {
        if deed(call) == Deed::Release {
            parts(call, "STOCK#").for_each(|part| number(part, ":q", |units| units * 2));
        }
        None
    }),
    asks("restore-nothing", "a release ends the hold and gives nothing back", |call| {
        without(call, Deed::Release, "STOCK#")
    }),
    asks("restore-to-the-first-shard", "a release gives all units back to the first shard", |call| {
        if deed(call) == Deed::Release {
            let first = parts(call, "STOCK#").next()?["Key"]["pk"]["S"].as_str()?.rsplit_once('#')?.0.to_owned();
            let mut seen = false;
            for part in parts(call, "STOCK#") {
                if !seen {
                    part["Key"]["pk"]["S"] = format!("{first}#0").into();
                    seen = true;
                }
            }
        }
        None
    }),
    asks("restore-without-limit", "a release does not give the customer's limit back", |call| {
        without(call, Deed::Release, "LIMIT#")
    }),
    asks("released-stays-due", "a released hold stays in the index of holds", |call| {
        in_update(call, Deed::Release, "HOLD#", " REMOVE #due_key, #due_at", "")
    }),
    hears(
        "sweep-reads-one-partition",
        "expire reads one partition of the index and forgets the others",
        |call, _, body| {
            let key = call.request["ExpressionAttributeValues"][":key"]["S"].as_str();
            if call.operation == "Query" && key.is_some_and(|key| key.starts_with("DUE#") && key != "DUE#0") {
                body["Items"] = json!([]);
                body.as_object_mut().map(|body| body.remove("LastEvaluatedKey"));
            }
        },
    ),
    hears("pages-forgotten", "a query ends with its first page", |call, _, body| {
        if call.operation == "Query" {
            body.as_object_mut().map(|body| body.remove("LastEvaluatedKey"));
        }
    }),
    // ---- confirm
    asks("confirm-without-status", "confirm does not ask whether the hold is still held", |call| {
        plain(call, CONFIRMS, " AND #status = :held", "")
    }),
    asks("confirm-without-time", "confirm does not ask whether the hold's time is over", |call| {
        plain(call, CONFIRMS, " AND #expires_at > :at", "")
    }),
    asks("confirm-without-owner", "confirm does not ask whose reservation it is", |call| {
        plain(call, CONFIRMS, "(#customer = :customer OR contains(#formerly, :customer)) AND ", "");
        plain(call, CONFIRMS, "#customer = :customer AND ", "")
    }),
    asks("confirmed-stays-due", "an order stays in the index of holds", |call| {
        plain_update(call, CONFIRMS, "#due_key, #due_at, ", "")
    }),
    asks("payment-not-written", "confirm forgets to write the payment down", |call| {
        plain_update(call, CONFIRMS, ", #payment_reference = :payment", "")
    }),
    asks("payment-overwritten", "a second payment takes the first one's place", |call| {
        plain(call, "SET #payment_reference = :payment", " AND attribute_not_exists(#payment_reference)", "")
    }),
    asks("retake-without-status", "a late confirmation does not ask whether the hold has expired", |call| {
        in_condition(call, Deed::Retake, "HOLD#", "#status = :expired AND ", "")
    }),
    asks("retake-without-units", "a late confirmation does not take the units again", |call| {
        without(call, Deed::Retake, "STOCK#")
    }),
    Planted {
        name: "retake-without-stock-condition",
        what: "a late confirmation does not look at the stock, and takes units that are not there",
        asks: Some(|call| in_condition(call, Deed::Retake, "STOCK#", "#available >= :q", "")),
        hears: Some(|call, _, body| stock(call, "confirm", body, 1_000)),
        says: None,
        ignores: None,
        reads: None,
    },
    asks("retake-without-limit", "a late confirmation does not count against the limit", |call| {
        without(call, Deed::Retake, "LIMIT#")
    }),
    asks("extend-without-status", "extend does not ask whether the hold is still held", |call| {
        plain(call, "#due_at = :until", "#status = :held AND ", "")
    }),
    asks("extend-on-old-news", "extend does not ask whether the hold still ends when it did", |call| {
        plain(call, "#due_at = :until", " AND #expires_at = :seen", "")
    }),
    asks("extend-forgets-the-index", "extend leaves the index of holds as it was", |call| {
        plain_update(call, "#due_at = :until", ", #due_at = :until", "")
    }),
    says("extend-promises-more", "extend answers with an end that it did not write", |_, event, reply| {
        let extends = event["rawPath"].as_str().is_some_and(|path| path.ends_with("/extend"));
        if extends && reply["statusCode"] == 200 {
            let mut body = body(reply);
            body["expires_at"] = "2031-01-01T00:00:00Z".into();
            reply["body"] = body.to_string().into();
        }
    }),
    hears("retake-sees-nothing", "a late confirmation owes a refund although units are free", |call, _, body| {
        stock(call, "confirm", body, 0);
    }),
    // ---- final refusals, and the reads before them
    asks("refund-not-noted", "a refund is due, and the reservation does not note it", |call| {
        plain_update(call, "ADD #owed_back", " ADD #owed_back :owed_back", "")
    }),
    asks("refund-noted-whatever-it-is", "a refund is noted without asking what the reservation is by now", |call| {
        plain(call, "ADD #owed_back", "#status = :status AND ", "")
    }),
    says("refund-beside-an-order", "a copy of a late confirmation is told that a refund is due", |_, event, reply| {
        let order = body(reply);
        let copy = order["confirmed_late"] == true && order["confirmed_at"] != order["server_time"];
        if event["rawPath"].as_str().is_some_and(|path| path.ends_with("/confirm")) && copy {
            refuse(reply, "refund_required", json!({}));
        }
    }),
    asks("retry-does-not-lift", "a retry sends the payment through the queue, and lifts no refusal", |call| {
        for part in parts(call, "HOLD#") {
            if part["UpdateExpression"] == "DELETE #owed_back :owed_back" {
                part["ExpressionAttributeNames"]["#nothing"] = "nothing".into();
                rewrite(part, "UpdateExpression", "DELETE #owed_back :owed_back", "REMOVE #nothing");
            }
        }
        None
    }),
    asks(
        "closed-and-not-remembered",
        "an admin settles what had no payment, and its reservation does not know",
        |call| {
            if deed(call) == Deed::Resolve && call.request.to_string().contains("#unpaid_closed_at") {
                return without(call, Deed::Resolve, "HOLD#");
            }
            None
        },
    ),
    asks(
        "resolved-like-any-refusal",
        "a payment that an admin resolved is noted as one that was only refused",
        |call| in_update(call, Deed::Resolve, "HOLD#", ", #refunded :owed_back", ""),
    ),
    asks("told-and-not-closed", "who is told that a hold has ended leaves what waits in the queue open", |call| {
        closes_nothing(call, "reserve")
    }),
    asks(
        "refunded-and-not-closed",
        "a payment is owed back, and what waits in the queue still makes an order",
        |call| closes_nothing(call, "confirm"),
    ),
    hears("late-for-ever", "a payment makes an order however late it comes", |call, _, body| {
        let items = [&["Item"][..], &["Attributes"][..]];
        for path in items {
            let item = &mut body[path[0]];
            if call.by.starts_with("confirm") && item["late_payment_seconds"].is_object() {
                item["late_payment_seconds"] = json!({ "N": "2592000000" });
            }
        }
    }),
    hears("overdue-is-the-sweeps", "a reserve refuses before it has released what is overdue", |call, _, body| {
        nothing_is_due(call, "reserve", body);
    }),
    hears("late-payer-loses", "a late confirmation is refused before what is overdue is released", |call, _, body| {
        nothing_is_due(call, "confirm", body);
    }),
    hears("adjust-before-release", "an adjustment is refused before what is overdue is released", |call, _, body| {
        nothing_is_due(call, "admin", body);
    }),
    hears("shown-as-reserved", "the catalogue shows units of holds that are over as reserved", |call, _, body| {
        if call.by.starts_with("catalog") && call.request["IndexName"] == "due" {
            for item in body["Items"].as_array_mut().into_iter().flatten() {
                item["due_at"] = json!({ "N": "4000000000000" });
            }
        }
    }),
    asks("free-as-at-first", "the free units of a view are those that were found first", |call| {
        let update = call.request["UpdateExpression"].as_str()?;
        if call.by.starts_with("catalog") && update.contains("#free = :free") {
            let first = update.replace("#free = :free", "#free = if_not_exists(#free, :free)");
            call.request["UpdateExpression"] = Value::from(first);
        }
        None
    }),
    hears("refused-without-its-key", "a reserve is refused without another look whether it exists", |call, _, body| {
        forgets(call, "reserve", "HOLD#", body);
    }),
    hears("adjusted-without-its-key", "an adjustment is refused without another look at its key", |call, _, body| {
        forgets(call, "admin", "ADJUST#", body);
    }),
    asks("counts-only-under-a-limit", "units are counted only while there is a limit", |call| {
        if deed(call) == Deed::Reserve {
            let unlimited = |part: &Value| {
                let limit = part["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("LIMIT#"));
                let room = part["ExpressionAttributeValues"][":room"]["N"].as_str();
                limit && room.and_then(|room| room.parse().ok()).is_none_or(|room: i64| room > 1_000_000)
            };
            let actions = call.request["TransactItems"].as_array_mut()?;
            actions.retain(|action| !action["Update"].is_object() || !unlimited(&action["Update"]));
        }
        None
    }),
    asks("worse-news-wins", "that there was no answer takes the place of a refusal", |call| {
        let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
        let again = call.request["ExpressionAttributeValues"][":failures"]["N"].as_str().is_some_and(|n| n != "1");
        if call.operation == "UpdateItem" && update.contains("#first_failed_at") && again {
            call.request["ExpressionAttributeValues"][":reason"] = json!({ "S": "not_confirmed" });
        }
        None
    }),
    asks("a-later-request-counts", "the time of a later request takes the place of the first one's", |call| {
        let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
        if call.operation == "UpdateItem" && update.contains("#first_failed_at") {
            number(&mut call.request, ":requested_at", |at| at + 1_000);
        }
        None
    }),
    hears(
        "an-order-shown-as-open",
        "the list of failed confirmations does not look at the reservations",
        |call, _, body| {
            let holds = call.request["RequestItems"].to_string().contains("HOLD#");
            if call.by.starts_with("admin") && call.operation == "BatchGetItem" && holds {
                for (_, items) in body["Responses"].as_object_mut().into_iter().flatten() {
                    *items = json!([]);
                }
            }
        },
    ),
    Planted {
        name: "crumbs-are-sold-out",
        what: "what lies in too many crumbs for one transaction is said to be sold out",
        asks: Some(|call| gathers(call).then(|| (400, crate::world::error("TransactionConflictException")))),
        hears: None,
        says: Some(|function, event, reply| {
            let creates = event["rawPath"] == "/reservations" && event["requestContext"]["http"]["method"] == "POST";
            if function == Function::Reserve && creates && reply["statusCode"] == 503 {
                let asked = event["body"].as_str().and_then(|body| serde_json::from_str::<Value>(body).ok());
                let lines = asked.as_ref().and_then(|asked| asked["lines"].as_array()).cloned().unwrap_or_default();
                let short = |line: &Value| json!({ "product_id": line["product_id"], "requested": line["quantity"], "available": 0 });
                refuse(reply, "insufficient_stock", json!({ "lines": lines.iter().map(short).collect::<Vec<_>>() }));
            }
        }),
        ignores: None,
        reads: None,
    },
    says(
        "already-confirmed-without-a-refund",
        "a second payment for an order is told that none is due",
        |_, _, reply| {
            let mut problem = body(reply);
            if problem["refund_required"] == true {
                problem["refund_required"] = false.into();
                reply["body"] = problem.to_string().into();
            }
        },
    ),
    // ---- queues
    asks("forgets-the-queue", "confirm says that the queue has it, and never sent it", |call| {
        let sends = call.operation == "SendMessage" && call.request["QueueUrl"].as_str()?.ends_with("/confirmations");
        sends.then(|| (200, json!({ "MessageId": "none" })))
    }),
    asks("forgets-the-refund", "confirm says that a refund is due, and writes it nowhere", |call| {
        let sends =
            call.operation == "SendMessage" && call.request["QueueUrl"].as_str()?.ends_with("/failed-confirmations");
        sends.then(|| (200, json!({ "MessageId": "none" })))
    }),
    asks("deleted-before-recorded", "a failed confirmation leaves the queue and is written down nowhere", |call| {
        let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
        (call.operation == "UpdateItem" && update.contains("#first_failed_at"))
            .then(|| (200, json!({ "Attributes": failed_item(&call.request) })))
    }),
    asks("given-back-and-not-noted", "a payment is given back, and its reservation does not know", |call| {
        without(call, Deed::Resolve, "HOLD#")
    }),
    asks("given-back-though-an-order", "a payment is given back although it has become an order meanwhile", |call| {
        let order = " AND NOT (#status = :confirmed AND #payment_reference = :payment)";
        in_condition(call, Deed::Resolve, "HOLD#", order, "")
    }),
    asks("confirm-with-what-was-given-back", "confirm does not ask whether the payment was given back", |call| {
        let given_back = " AND (attribute_not_exists(#owed_back) OR NOT contains(#owed_back, :payment))";
        plain(call, CONFIRMS, given_back, "");
        in_condition(call, Deed::Retake, "HOLD#", given_back, "")
    }),
    asks("retrying-for-ever", "a retry is marked although it has failed again meanwhile", |call| {
        plain(call, "SET #state = :retrying", " AND #failures = :seen", "")
    }),
    asks("settled-opens-again", "a late copy opens a failed confirmation that was settled", |call| {
        let update = call.request["UpdateExpression"].as_str().unwrap_or_default();
        if call.operation == "UpdateItem" && update.contains("#first_failed_at") {
            call.request["ConditionExpression"] =
                "attribute_not_exists(#pk) OR #state = :open OR #state = :retrying OR attribute_exists(#pk)".into();
        }
        None
    }),
    says("batch-failures-forgotten", "confirm does not name the messages of a batch that failed", |_, event, reply| {
        if event["Records"].is_array() {
            reply["batchItemFailures"] = json!([]);
        }
    }),
    says(
        "acknowledged-before-durable",
        "confirm answers 202 although the queue did not answer",
        |function, _, reply| {
            if function == Function::Confirm && reply["statusCode"] == 503 {
                reply["statusCode"] = 202.into();
                reply["body"] = r#"{"status":"queued"}"#.into();
            }
        },
    ),
    // ---- schedules
    asks("trusts-the-environment", "reserve believes that the schedule exists, and never made it", |call| {
        (call.operation == "CreateSchedule").then(|| (200, json!({ "ScheduleArn": "none" })))
    }),
    asks("reminder-too-early", "the schedule fires a minute before the hold ends", |call| {
        if call.operation == "CreateSchedule" {
            let name = call.request["Name"].as_str().unwrap_or_default().to_owned();
            let slot: i64 = name.rsplit('-').next().and_then(|slot| slot.parse().ok()).unwrap_or_default();
            let at = slot - 60;
            let (day, second) = (at.div_euclid(86_400), at.rem_euclid(86_400));
            // 2025-11-21 is day 20,413 since the epoch.
            if day == 20_413 {
                let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
                call.request["ScheduleExpression"] = format!("at(2025-11-21T{hour:02}:{minute:02}:{second:02})").into();
            }
        }
        None
    }),
    ignores("trusts-the-schedule", "the sweep does nothing: the one-time schedules will do", |_, event| {
        event["kind"] == "sweep"
    }),
    // ---- products and stock
    asks("shards-not-raised", "a change of a product does not reach its shards", |call| {
        let raises = call.operation == "UpdateItem" && call.request["UpdateExpression"] == "SET #product_version = :v";
        raises.then(|| (200, json!({})))
    }),
    asks("change-on-old-news", "a change of a product does not ask for its version", |call| {
        plain(call, "#price_minor = :price_minor", "#version = :seen", "")
    }),
    asks("change-forgets-a-field", "a change of a product does not write the length of its holds", |call| {
        plain_update(call, "#price_minor = :price_minor", "#hold_seconds = :hold_seconds, ", "")
    }),
    asks("adjust-without-key", "an adjustment does not remember its Idempotency-Key", |call| {
        in_condition(call, Deed::Adjust, "ADJUST#", "attribute_not_exists(#pk)", "")
    }),
    asks("adjust-on-old-total", "an adjustment does not ask whether the total is still what it read", |call| {
        in_condition(call, Deed::Adjust, "CATALOG", "#total = :seen", "");
        in_condition(call, Deed::Adjust, "PRODUCT#", "#total = :seen", "")
    }),
    asks(
        "moved-as-it-was-read",
        "a product is moved without asking whether its total is still what was read",
        |call| {
            if call.operation == "TransactWriteItems" {
                parts(call, "CATALOG").for_each(|part| condition(part, " AND #total = :total", ""));
            }
            None
        },
    ),
    Planted {
        name: "adjust-takes-held-units",
        what: "an adjustment does not look at what is free, and takes units away that are held",
        asks: Some(|call| in_condition(call, Deed::Adjust, "STOCK#", "#available >= :q", "")),
        hears: Some(|call, _, body| stock(call, "admin", body, 1_000)),
        says: None,
        ignores: None,
        reads: None,
    },
    asks("adjust-without-ledger", "an adjustment leaves nothing in the ledger", |call| {
        if deed(call) == Deed::Adjust {
            let actions = call.request["TransactItems"].as_array_mut()?;
            actions.retain(|action| {
                let pk = action["Put"]["Item"]["pk"]["S"].as_str();
                !pk.is_some_and(|pk| pk.starts_with("LEDGER#"))
            });
        }
        None
    }),
    // Implemented in `world`, which knows what was read before and checks for this name.
    ignores("cache-does-not-age", "the cache ages by a clock that stops while the environment is frozen", |_, _| false),
    // ---- the log of what admins do
    asks("done-and-not-written-down", "an admin's action is carried out, and was not written down", |call| {
        let intent =
            call.request["UpdateExpression"].as_str().is_some_and(|update| update.contains("#action_id = :id"));
        (call.operation == "UpdateItem" && intent).then(|| (200, json!({})))
    }),
    asks("written-down-without-outcome", "an admin's action is written down, and never what came of it", |call| {
        let outcome = call.operation == "UpdateItem" && call.request["UpdateExpression"] == "SET #outcome = :outcome";
        outcome.then(|| (200, json!({})))
    }),
    // ---- reads, and misread answers
    asks("reads-eventually", "an item is read as it was a while ago", |call| {
        if call.operation == "GetItem" {
            call.request.as_object_mut().map(|request| request.remove("ConsistentRead"));
        }
        None
    }),
    hears("reasons-shifted", "the reasons of a cancelled transaction are read one position too far", |_, _, body| {
        if let Some(reasons) = body["CancellationReasons"].as_array_mut()
            && !reasons.is_empty()
        {
            reasons.rotate_right(1);
        }
    }),
    hears(
        "unprocessed-keys-forgotten",
        "keys that DynamoDB left unprocessed are taken for items that are not there",
        |_, _, body| {
            if body["UnprocessedKeys"].is_object() {
                body["UnprocessedKeys"] = json!({});
            }
        },
    ),
    hears(
        "reasons-not-read",
        "a transaction that a condition stopped is taken for one that met another",
        |_, _, body| {
            for reason in body["CancellationReasons"].as_array_mut().into_iter().flatten() {
                if reason["Code"] == "ConditionalCheckFailed" {
                    *reason = json!({ "Code": "TransactionConflict" });
                }
            }
        },
    ),
    says("reserve-says-yes", "reserve answers 201 whatever the table said", |function, event, reply| {
        let creates = event["rawPath"] == "/reservations" && event["requestContext"]["http"]["method"] == "POST";
        if function == Function::Reserve && creates && reply["statusCode"] == 409 {
            reply["statusCode"] = 201.into();
        }
    }),
    // ---- orders that are given back
    asks("given-back-without-status", "an order is given back without asking whether it is one still", |call| {
        if deed(call) == Deed::GiveBack {
            parts(call, "LIMIT#").for_each(|part| condition(part, "#units >= :q", "attribute_exists(#units)"));
            parts(call, "FAILED").for_each(|part| {
                condition(part, "attribute_not_exists(#pk)", "");
                condition(part, "#failures = :seen", "");
            });
        }
        in_condition(call, Deed::GiveBack, "HOLD#", "#status = :confirmed AND ", "")
    }),
    asks(
        "given-back-though-paid-since",
        "an order is given back, and a payment that was attached meanwhile is lost",
        |call| in_condition(call, Deed::GiveBack, "HOLD#", " AND attribute_not_exists(#payment_reference)", ""),
    ),
    asks(
        "order-given-back-and-not-noted",
        "an order is given back, and its payment is not noted as owed back",
        |call| in_update(call, Deed::GiveBack, "HOLD#", " ADD #owed_back :owed_back", ""),
    ),
    asks("settled-though-given-back", "a late mark of the order hides that its payment is owed", |call| {
        plain(call, "#settled_by = :by", " AND #reason <> :given_back", "")
    }),
    asks("given-back-and-not-listed", "an order is given back, and no admin sees that its payment is owed", |call| {
        without(call, Deed::GiveBack, "FAILED")
    }),
    asks("given-back-without-limit", "an order is given back, and still counts against the limit", |call| {
        without(call, Deed::GiveBack, "LIMIT#")
    }),
    asks("given-back-without-units", "an order is given back, and its units are on no shard", |call| {
        without(call, Deed::GiveBack, "STOCK#")
    }),
    asks("written-off-without-entry", "units leave the stock with an order, and the ledger does not say so", |call| {
        if deed(call) == Deed::GiveBack
            && let Some(actions) = call.request["TransactItems"].as_array_mut()
        {
            let entry =
                |action: &Value| action["Put"]["Item"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("LEDGER#"));
            actions.retain(|action| !entry(action));
        }
        None
    }),
    // ---- holds that change, or that an admin releases
    asks("released-as-it-was-read", "a release gives back the units that the hold had when it was read", |call| {
        without_revision(call, Deed::Release)
    }),
    asks("late-with-the-lines-that-were-read", "a late confirmation undoes a change of lines", |call| {
        for unchanged in UNCHANGED {
            plain(call, "#confirmed_late = :late", unchanged, "");
        }
        None
    }),
    asks("changed-as-it-was-read", "a change of lines does not ask whether there was another one meanwhile", |call| {
        without_revision(call, Deed::ChangeLines)
    }),
    asks("changed-though-ended", "the lines of a hold are changed although it has ended meanwhile", |call| {
        in_condition(call, Deed::ChangeLines, "HOLD#", " AND #status = :held", "")
    }),
    asks("changed-without-limit", "a change of lines does not count the units that it takes and gives back", |call| {
        without(call, Deed::ChangeLines, "LIMIT#")
    }),
    asks(
        "changed-and-nothing-given-back",
        "a change of lines keeps the units that the hold does not have any more",
        |call| without_update(call, Deed::ChangeLines, "STOCK#", "#available + :q"),
    ),
    asks("changed-and-nothing-taken", "a change of lines adds units that it does not take from the stock", |call| {
        without_update(call, Deed::ChangeLines, "STOCK#", "#available - :q")
    }),
    asks("changed-and-takes-more-than-there-is", "a change of lines takes units without `available >= :q`", |call| {
        in_condition(call, Deed::ChangeLines, "STOCK#", "#available >= :q AND ", "")
    }),
    asks(
        "changed-and-not-found",
        "a change of lines leaves the hold where its former lines were searched for",
        |call| in_update(call, Deed::ChangeLines, "HOLD#", ", #due_key = :due", ""),
    ),
    asks("changed-and-payable-for-longer", "a change of lines gives payments more time than the hold had", |call| {
        if deed(call) == Deed::ChangeLines {
            parts(call, "HOLD#").for_each(|part| number(part, ":late", |seconds| seconds + 1));
        }
        None
    }),
    says("change-says-yes", "a change of lines that is refused is answered with 200", |function, event, reply| {
        let changes = event["rawPath"].as_str().is_some_and(|path| path.ends_with("/lines"));
        if function == Function::Reserve && changes && reply["statusCode"] == 409 {
            reply["statusCode"] = 200.into();
        }
    }),
    asks("handed-over-as-it-was-read", "a hold is handed over although it has changed meanwhile", |call| {
        without_revision(call, Deed::HandOver)
    }),
    asks("handed-over-though-ended", "a hold is handed over although it has ended meanwhile", |call| {
        in_condition(call, Deed::HandOver, "HOLD#", " AND #status = :held", "")
    }),
    asks("handed-over-and-still-counted", "a hold that was handed over counts for its former customer, too", |call| {
        without_update(call, Deed::HandOver, "LIMIT#", "#units - :q")
    }),
    asks("handed-over-and-not-counted", "a hold that was handed over does not count for its new customer", |call| {
        without_update(call, Deed::HandOver, "LIMIT#", "ADD #units :q")
    }),
    asks("handed-over-and-forgotten", "a hold that was handed over does not know its former customer", |call| {
        in_update(call, Deed::HandOver, "HOLD#", " ADD #formerly :from", "")
    }),
    asks("expired-and-not-released", "an admin releases an expired hold, and nothing is written", |call| {
        let closes = "SET #status = :cancelled, #cancellation = :cancellation";
        plain_update(call, closes, closes, "SET #status = :expired")
    }),
    Planted {
        name: "released-and-confirmed",
        what: "a late payment makes an order of a hold that an admin released",
        asks: Some(|call| in_condition(call, Deed::Retake, "HOLD#", "#status = :expired AND ", "")),
        hears: Some(|call, _, body| {
            if let Some(item) = body.get_mut("Item")
                && call.by.starts_with("confirm")
                && item["cancellation"].is_object()
                && item["confirmed_at"].is_null()
            {
                item["status"] = json!({ "S": "expired" });
            }
        }),
        says: None,
        ignores: None,
        reads: None,
    },
    hears(
        "released-by-whoever-it-was",
        "two requests of admins each count a hold that one of them released",
        |call, _, body| {
            let actions = call.request["TransactItems"].as_array();
            let mut tokens =
                actions.into_iter().flatten().map(|action| &action["Update"]["ExpressionAttributeValues"][":token"]);
            let Some(token) = tokens.find(|token| token.is_object()) else { return };
            for reason in body["CancellationReasons"].as_array_mut().into_iter().flatten() {
                if let Some(by) = reason["Item"].get_mut("released_by") {
                    *by = token.clone();
                }
            }
        },
    ),
    hears("released-but-for-the-others", "a release of all holds finds only the first of them", |call, _, body| {
        let all = call.by.starts_with("admin") && call.request["IndexName"] == "due";
        if all && let Some(items) = body["Items"].as_array_mut() {
            items.truncate(1);
        }
    }),
    hears("listed-from-one-partition", "a list of reservations reads one partition of its index", |call, _, body| {
        let values = call.request["ExpressionAttributeValues"].as_object();
        let mut values = values.into_iter().flatten().filter_map(|(_, value)| value["S"].as_str());
        if call.operation == "Query" && values.any(|value| value.starts_with("MADE#") && value != "MADE#0") {
            body["Items"] = json!([]);
            body.as_object_mut().map(|body| body.remove("LastEvaluatedKey"));
        }
    }),
    says("ended-hold-as-made", "a replay of a hold that has ended is answered with 201", |_, _, reply| {
        let problem = body(reply);
        if problem["code"] == "hold_ended" {
            reply["statusCode"] = 201.into();
            reply["body"] = problem["reservation"].to_string().into();
        }
    }),
    reads("price-not-compared", "reserve ignores the price that the customer saw", |function, event| {
        let Some(text) = event["body"].as_str().filter(|_| function == Function::Reserve) else { return };
        let Ok(mut body) = serde_json::from_str::<Value>(text) else { return };
        for line in body["lines"].as_array_mut().into_iter().flatten() {
            line.as_object_mut().map(|line| line.remove("unit_price_minor"));
        }
        event["body"] = body.to_string().into();
    }),
    says("confirm-says-yes", "confirm answers 200 where it should say that a refund is due", |function, _, reply| {
        if function == Function::Confirm && reply["statusCode"] == 409 && body(reply)["code"] == "refund_required" {
            reply["statusCode"] = 200.into();
        }
    }),
];

/// The item that the record of a failure would have made.
fn failed_item(request: &Value) -> Value {
    let values = &request["ExpressionAttributeValues"];
    let mut item = json!({
        "pk": request["Key"]["pk"], "sk": request["Key"]["sk"],
        "state": { "S": "open" }, "first_failed_at": values[":now"], "last_failed_at": values[":now"],
    });
    for name in ["id", "reason", "body", "reservation_id", "failed_customer", "payment_reference"] {
        let value = &values[format!(":{name}")];
        if !value.is_null() {
            item[name] = value.clone();
        }
    }
    item
}
