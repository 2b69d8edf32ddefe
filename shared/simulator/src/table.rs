//! The table as a service (one DynamoDB, hence the length): conflicts, partial reasons, items that become visible one
//! after another, indexes that lag.
//!
//! A transaction happens at one instant: the books follow it there. Around that instant it is on its items: writes to
//! one of them, and transactional reads of it, are refused with a conflict. Other reads are served, and may see some
//! items in their new state and others in their old one.

use std::collections::BTreeMap;

use holdfast_testkit::fixtures::TABLE;
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::books::Changed;
use crate::dynamo::{self, Place};
use crate::faults::Fault;
use crate::world::{Call, State, World, error, millis};

/// For this long after a transaction, reads outside of transactions may still see the old state of an item.
pub(crate) const PARTLY_MS: u64 = 8;

/// For this long after a write, an eventually consistent read may see the old state.
const EVENTUALLY_MS: i64 = 1_000;

/// Items as they were before a write, with its time.
pub(crate) type Old = BTreeMap<Place, (i64, Option<Value>)>;

/// What stops an action of a transaction, whatever its condition says.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stop {
    Conflict,
    Throttle,
}

impl Stop {
    fn reason(self) -> Value {
        match self {
            Self::Conflict => json!({ "Code": "TransactionConflict", "Message": "another is on it" }),
            Self::Throttle => json!({ "Code": "ThrottlingError", "Message": "too much" }),
        }
    }
}

impl World {
    pub(crate) async fn carry_out(&self, call: &Call, carry: u64) -> (u16, Value) {
        let transaction = call.operation == "TransactWriteItems";
        let places = dynamo::places(&call.operation, &call.request);
        let token = call.request["ClientRequestToken"].as_str().unwrap_or_default();
        if let Some(refused) = self.meets(call, &places, token) {
            return refused;
        }
        if transaction {
            self.lock().locked.extend(places.iter().map(|place| (place.clone(), token.to_owned())));
        }
        sleep(millis(carry)).await;
        let now = self.now();
        if !transaction {
            let mut state = self.lock();
            let snapshot = dynamo::wanted(&call.operation, &call.request);
            let taken = snapshot.iter().map(|place| state.locked.contains_key(place).then_some(Stop::Conflict));
            let taken: Vec<_> = taken.collect();
            if taken.iter().any(Option::is_some) {
                return (400, cancelled(&taken));
            }
            return self.apply(&mut state, call, now);
        }
        let (answer, unseen) = {
            let mut state = self.lock();
            let partly = {
                let State { faults, random, .. } = &mut *state;
                faults.strikes(random, Fault::Partly)
            };
            let before: Vec<Option<Value>> =
                if partly { places.iter().map(|place| state.items.get(place).cloned()).collect() } else { Vec::new() };
            let answer = self.apply(&mut state, call, now);
            let mut unseen: Vec<(u64, Place)> = Vec::new();
            if partly && answer.0 == 200 {
                for (place, before) in places.iter().zip(before) {
                    state.unseen.insert(place.clone(), (now, before));
                    unseen.push((state.random.u64(0..=PARTLY_MS), place.clone()));
                }
            } else {
                places.iter().for_each(|place| _ = state.locked.remove(place));
            }
            (answer, unseen)
        };
        self.come_to_light(unseen).await;
        answer
    }

    /// The answer to a write that meets a running transaction on one of its items.
    fn meets(&self, call: &Call, places: &[Place], token: &str) -> Option<(u16, Value)> {
        let mut state = self.lock();
        let stops: Vec<Option<Stop>> =
            places.iter().map(|place| state.locked.contains_key(place).then_some(Stop::Conflict)).collect();
        if stops.iter().all(Option::is_none) {
            return None;
        }
        let own = places.iter().any(|place| state.locked.get(place).is_some_and(|other| other == token));
        if call.operation == "TransactWriteItems" && own && !token.is_empty() {
            return Some((400, error("TransactionInProgressException")));
        }
        Some((400, state.stopped(call, &stops)))
    }

    /// Makes the items that a transaction has changed visible to all reads, one after another.
    async fn come_to_light(&self, mut unseen: Vec<(u64, Place)>) {
        unseen.sort();
        let mut waited = 0;
        for (after, place) in unseen {
            if after > waited {
                sleep(millis(after - waited)).await;
                waited = after;
            }
            let mut state = self.lock();
            state.unseen.remove(&place);
            state.locked.remove(&place);
        }
    }

    fn apply(&self, state: &mut State, call: &Call, now: i64) -> (u16, Value) {
        let mut with_bug;
        let mut call = call;
        if let Some(planted) = state.planted {
            with_bug = call.clone();
            if let Some(pretended) = planted.asked(&mut with_bug) {
                return pretended;
            }
            call = &with_bug;
        }
        let Call { operation, request, .. } = call;
        let State { queues, random, faults, .. } = state;
        if let Some(answer) = queues.carry_out(operation, request, now, random, faults) {
            // The event source must also notice a changed visibility timeout.
            self.posted();
            self.settle_promises(state, now);
            return answer;
        }
        if operation == "CreateSchedule" {
            let (answer, made) = state.schedules.create(request);
            if let Some(made) = made {
                // The receiver lives as long as the world.
                _ = state.made.send(made);
            }
            return answer;
        }
        let indexed = matches!(operation.as_str(), "Query" | "Scan") && request["IndexName"].is_string();
        let eventual = !indexed && !consistent(operation, request);
        if eventual && !(call.by.starts_with("catalog") && dynamo::is_shown(request)) {
            let detail = || format!("{} {operation} {request}", call.by);
            state.books.expect(now, false, "reads_see_every_write", detail);
        }
        let answer = if indexed {
            state.indexed(operation, request)
        } else if eventual {
            let stale = state.stale(now);
            state.with_old(operation, request, &stale)
        } else {
            state.with_old(operation, request, &state.unseen)
        };
        let Some((status, body)) = answer else { return (400, error("UnknownOperationException")) };
        if status == 200 {
            let places = dynamo::places(operation, request);
            if !places.is_empty() {
                self.written(state, places, now, Some(&call.by));
            }
        }
        (status, body)
    }

    /// Follows a write by this environment, or by DynamoDB's TTL: puts the new state into the books, and sooner or later into the indexes.
    pub(crate) fn written(&self, state: &mut State, places: Vec<Place>, now: i64, by: Option<&str>) {
        let mut changed = Vec::with_capacity(places.len());
        for place in places {
            let item = dynamo::item(&state.database, TABLE, &place);
            if place.0.starts_with("VIEW#") || place.0 == "CATALOG" {
                state.lately.insert(place.clone(), (now, state.items.get(&place).cloned()));
            }
            match &item {
                Some(item) => _ = state.items.insert(place.clone(), item.clone()),
                None => _ = state.items.remove(&place),
            }
            if place.0.starts_with("HOLD#") || place.0 == "FAILED" {
                self.swept();
                self.replicate(state, place.clone(), item.clone());
            } else if place.0.starts_with("ACTION#") {
                self.replicate(state, place.clone(), item.clone());
            }
            changed.push(Changed { place, after: item.as_ref().map(dynamo::plain_item) });
        }
        state.books.follow(now, changed, &state.schedules.made, by);
        self.settle_promises(state, now);
    }

    fn replicate(&self, state: &mut State, place: Place, item: Option<Value>) {
        state.writes += 1;
        let number = state.writes;
        let lag = if state.faults.strikes(&mut state.random, Fault::StaleIndex) {
            state.random.u64(500..30_000)
        } else {
            [0, 0, 0, state.random.u64(1..30)][state.random.usize(0..4)]
        };
        if lag == 0 {
            state.show(&place, item.as_ref(), number);
            return;
        }
        let world = self.clone();
        self.start_locked(state, async move {
            sleep(millis(lag)).await;
            world.lock().show(&place, item.as_ref(), number);
        });
    }

    /// Adds reasons to a cancelled transaction, besides those that stopped it.
    pub(crate) fn more_reasons(&self, body: &mut Value) {
        let mut state = self.lock();
        let Some(reasons) = body["CancellationReasons"].as_array_mut() else { return };
        for reason in reasons.iter_mut() {
            let chance = if reason["Code"] == "None" { 2 } else { 4 };
            if state.random.u32(0..chance) == 0 {
                *reason = [Stop::Conflict, Stop::Throttle][state.random.usize(0..2)].reason();
            }
        }
        state.tell_half(reasons);
    }
}

impl State {
    /// The answer to a write with stopped actions. The results of the other conditions may be reported or not.
    pub(crate) fn stopped(&mut self, call: &Call, stops: &[Option<Stop>]) -> Value {
        if call.operation != "TransactWriteItems" {
            return error("TransactionConflictException");
        }
        let mut body = cancelled(stops);
        // Nothing is applied: each stopped action is replaced by one that fails.
        let mut asked = call.clone();
        asked.request.as_object_mut().map(|request| request.remove("ClientRequestToken"));
        for (action, _) in asked.request["TransactItems"]
            .as_array_mut()
            .into_iter()
            .flatten()
            .zip(stops)
            .filter(|(_, stop)| stop.is_some())
        {
            let nowhere = dynamo::key(&("NOWHERE".to_owned(), "-".to_owned()));
            *action = json!({ "ConditionCheck": {
                "TableName": TABLE, "Key": nowhere, "ConditionExpression": "attribute_exists(pk)",
            }});
        }
        if self.planted.is_some_and(|planted| planted.asked(&mut asked).is_some()) {
            return body;
        }
        let told = dynamo::carry_out(&self.database, &asked.operation, &asked.request);
        let told = told.and_then(|(_, mut told)| told["CancellationReasons"].as_array_mut().map(std::mem::take));
        let reasons = body["CancellationReasons"].as_array_mut();
        if let (Some(reasons), Some(told)) = (reasons, told)
            && told.len() == reasons.len()
        {
            for ((reason, told), _) in reasons.iter_mut().zip(told).zip(stops).filter(|(_, stop)| stop.is_none()) {
                *reason = told;
            }
            self.tell_half(reasons);
        }
        body
    }

    /// If something else stops a transaction, its failed conditions may be reported, or some of them, or none.
    fn tell_half(&mut self, reasons: &mut [Value]) {
        let failed = |reason: &Value| reason["Code"] == "ConditionalCheckFailed";
        let stopped = |reason: &Value| !failed(reason) && reason["Code"] != "None";
        if !reasons.iter().any(stopped) {
            return;
        }
        let hides = [0, 500, 1_000][self.random.usize(0..3)];
        for reason in reasons.iter_mut().filter(|reason| failed(reason)) {
            if self.random.u32(0..1_000) < hides {
                *reason = json!({ "Code": "None" });
            }
        }
    }

    /// The answer to a write, or to a transactional read, that is stopped at one of its items or at several.
    pub(crate) fn conflict(&mut self, call: &Call, stop: Stop) -> Value {
        let actions = dynamo::actions(&call.request).count();
        let hit = self.random.usize(0..actions.max(1));
        let all = self.random.u32(0..4) == 0;
        let stops: Vec<_> = (0..actions).map(|at| (all || at == hit).then_some(stop)).collect();
        if call.operation == "TransactGetItems" { cancelled(&stops) } else { self.stopped(call, &stops) }
    }

    /// When the oldest transaction happened that is not visible to all reads yet.
    pub(crate) fn unseen_since(&self) -> Option<i64> {
        self.unseen.values().map(|(at, _)| *at).min()
    }

    /// A query or a scan of an index. Most queries, such as those for overdue holds, find nothing, and that is known without the
    /// database.
    fn indexed(&self, operation: &str, request: &Value) -> Option<(u16, Value)> {
        let values = request["ExpressionAttributeValues"].as_object();
        let mut asked = values.into_iter().flatten().filter_map(|(_, value)| value["S"].as_str());
        let query = operation == "Query" && request["IndexName"] == "due";
        if query && !asked.any(|value| self.due_keys.contains_key(value)) {
            return Some((200, json!({ "Items": [], "Count": 0, "ScannedCount": 0 })));
        }
        dynamo::carry_out(&self.replica, operation, request)
    }

    /// What an eventually consistent read sees of items that were changed lately: some of them as they were before.
    fn stale(&mut self, now: i64) -> Old {
        self.lately.retain(|_, (at, _)| now - *at < EVENTUALLY_MS);
        let mut stale = self.unseen.clone();
        for (place, before) in &self.lately {
            if self.random.bool() {
                stale.entry(place.clone()).or_insert_with(|| before.clone());
            }
        }
        stale
    }

    /// Executes an operation. Reads outside of transactions see the old state of items that are not visible to all yet.
    fn with_old(&self, operation: &str, request: &Value, old: &Old) -> Option<(u16, Value)> {
        let seen = |place: &Place| match old.get(place) {
            Some((_, before)) => before.as_ref(),
            None => self.items.get(place),
        };
        if let Some(body) = dynamo::by_key(operation, request, seen) {
            return Some((200, body));
        }
        if old.is_empty() || !matches!(operation, "Query" | "Scan") {
            return dynamo::carry_out(&self.database, operation, request);
        }
        old.iter().for_each(|(place, (_, before))| {
            dynamo::put(&self.database, TABLE, place, before.as_ref());
        });
        let answer = dynamo::carry_out(&self.database, operation, request);
        old.keys().for_each(|place| dynamo::put(&self.database, TABLE, place, self.items.get(place)));
        answer
    }

    /// Shows an item in the indexes, unless they show a newer state of it.
    fn show(&mut self, place: &Place, item: Option<&Value>, number: u64) {
        let newest = self.replicated.entry(place.clone()).or_default();
        if *newest >= number {
            return;
        }
        *newest = number;
        self.books.shows(place, item);
        dynamo::put(&self.replica, TABLE, place, item);
        let due_key = item.and_then(|item| item["due_key"]["S"].as_str()).map(str::to_owned);
        let before = match &due_key {
            Some(key) => self.due.insert(place.clone(), key.clone()),
            None => self.due.remove(place),
        };
        if let Some(key) = due_key {
            *self.due_keys.entry(key).or_default() += 1;
        }
        if let Some(key) = before
            && let Some(count) = self.due_keys.get_mut(&key)
        {
            *count -= 1;
            if *count == 0 {
                self.due_keys.remove(&key);
            }
        }
    }
}

/// A transaction that is cancelled for these reasons.
fn cancelled(stops: &[Option<Stop>]) -> Value {
    let mut body = error("TransactionCanceledException");
    let reason = |stop: &Option<Stop>| stop.map_or_else(|| json!({ "Code": "None" }), Stop::reason);
    body["CancellationReasons"] = stops.iter().map(reason).collect();
    body
}

/// Sorts keys: the functions send some in no particular order, which must not change the history.
pub(crate) fn sort_keys(call: &mut Call) {
    let tables = call.request.get_mut("RequestItems").and_then(Value::as_object_mut).into_iter().flatten();
    for keys in tables.filter_map(|(_, wanted)| wanted["Keys"].as_array_mut()) {
        keys.sort_by_cached_key(Value::to_string);
    }
}

/// Whether a read of the table sees every acknowledged write. A write always does.
fn consistent(operation: &str, request: &Value) -> bool {
    match operation {
        "GetItem" | "Query" => request["ConsistentRead"] == true,
        "BatchGetItem" => {
            let mut tables = request["RequestItems"].as_object().into_iter().flatten();
            tables.all(|(_, wanted)| wanted["ConsistentRead"] == true)
        }
        // An admin's list of all reservations: no decision is based on it.
        _ => true,
    }
}

/// Splits a BatchGetItem of several keys in two.
pub(crate) fn split(call: &Call) -> Option<(Call, Call)> {
    let (_, wanted) = call.request.get("RequestItems")?.as_object()?.iter().next()?;
    let mut all = wanted["Keys"].as_array().filter(|keys| keys.len() >= 2)?.clone();
    let (mut first, mut rest) = (call.clone(), call.clone());
    let second = all.split_off(all.len() / 2);
    for (call, keys) in [(&mut first, all), (&mut rest, second)] {
        let (_, wanted) = call.request.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
        wanted["Keys"] = keys.into();
    }
    Some((first, rest))
}

/// Joins the answers to the two halves.
pub(crate) fn join((status, mut body): (u16, Value), (other_status, other): (u16, Value)) -> (u16, Value) {
    if status != 200 {
        return (status, body);
    }
    if other_status != 200 {
        return (other_status, other);
    }
    for (table, items) in other["Responses"].as_object().into_iter().flatten() {
        let items = items.as_array().into_iter().flatten().cloned();
        match body["Responses"][table].as_array_mut() {
            Some(all) => all.extend(items),
            None => body["Responses"][table] = items.collect(),
        }
    }
    (status, body)
}

/// Removes the second half of a BatchGetItem's keys. Returns them as DynamoDB's unprocessed keys.
pub(crate) fn leave_out(call: &mut Call) -> Option<(String, Value)> {
    let (table, wanted) = call.request.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
    let keys = wanted["Keys"].as_array_mut()?;
    let left = keys.split_off(keys.len().div_ceil(2));
    let mut unprocessed = wanted.clone();
    unprocessed["Keys"] = left.into();
    let empty = unprocessed["Keys"].as_array().is_none_or(Vec::is_empty);
    (!empty).then(|| (table.clone(), unprocessed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dynamo::databases;
    use crate::faults::Faults;

    fn place(name: &str) -> Place {
        (name.to_owned(), "-".to_owned())
    }

    fn call(operation: &str, request: Value) -> Call {
        Call { by: "test".into(), operation: operation.to_owned(), request }
    }

    fn put(name: &str, condition: Option<&str>) -> Value {
        let mut put = json!({ "TableName": TABLE, "Item": dynamo::key(&place(name)) });
        if let Some(condition) = condition {
            put["ConditionExpression"] = condition.into();
        }
        json!({ "Put": put })
    }

    fn transaction(actions: &[Value], token: &str) -> Call {
        call("TransactWriteItems", json!({ "TransactItems": actions, "ClientRequestToken": token }))
    }

    /// Runs a test in a world where only this fault occurs, with every call.
    fn in_world<T>(fault: Option<Fault>, test: impl AsyncFnOnce(World) -> T) -> T {
        let mut faults = Faults { per_mille: [0; Fault::ALL.len()], on: true, injected: [0; Fault::ALL.len()] };
        if let Some(fault) = fault {
            faults.per_mille[fault as usize] = 1_000;
        }
        let databases = databases().unwrap();
        let (made, _to_fire) = tokio::sync::mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            test(World::new(fastrand::Rng::with_seed(1), faults, databases, made, None)).await
        })
    }

    #[test]
    fn a_transactions_items_are_seen_one_after_another_and_at_one_instant_only_when_all_are() {
        let (partly, refused, whole) = in_world(Some(Fault::Partly), async |world| {
            let writes = transaction(&[put("A", None), put("B", None)], "one");
            let seen = async {
                let (mut partly, mut refused, mut whole) = (false, false, 0);
                for _ in 0..30 {
                    let there = async |name: &str| {
                        let get =
                            json!({ "TableName": TABLE, "Key": dynamo::key(&place(name)), "ConsistentRead": true });
                        world.carry_out(&call("GetItem", get), 0).await.1["Item"].is_object()
                    };
                    partly |= there("A").await != there("B").await;
                    let gets = ["A", "B"]
                        .map(|name| json!({ "Get": { "TableName": TABLE, "Key": dynamo::key(&place(name)) } }));
                    let (status, body) =
                        world.carry_out(&call("TransactGetItems", json!({ "TransactItems": gets })), 0).await;
                    refused |= status == 400;
                    let responses = body["Responses"].as_array().into_iter().flatten();
                    let count = responses.filter(|one| one["Item"].is_object()).count();
                    assert!(status == 400 || count != 1, "{body}");
                    whole = whole.max(count);
                    sleep(millis(1)).await;
                }
                (partly, refused, whole)
            };
            let ((status, body), seen) = tokio::join!(world.carry_out(&writes, 3), seen);
            assert_eq!(status, 200, "{body}");
            seen
        });
        assert!(partly && refused);
        assert_eq!(whole, 2);
    }

    #[test]
    fn where_transactions_meet_failed_conditions_may_be_told_or_not() {
        let told: Vec<String> = in_world(None, async |world| {
            let there = transaction(&[put("B", None)], "");
            assert_eq!(world.carry_out(&there, 0).await.0, 200);
            let first = transaction(&[put("A", None)], "one");
            let second =
                transaction(&[put("A", None), put("B", Some("attribute_not_exists(pk)")), put("C", None)], "two");
            let meet = async {
                let mut told = Vec::new();
                for _ in 0..20 {
                    let (status, body) = world.carry_out(&second, 1).await;
                    assert_eq!(status, 400);
                    let codes = body["CancellationReasons"].as_array().unwrap().iter();
                    told.push(codes.map(|reason| reason["Code"].as_str().unwrap()).collect::<Vec<_>>().join(" "));
                }
                told
            };
            tokio::join!(world.carry_out(&first, 1_000), meet).1
        });
        for expected in ["TransactionConflict ConditionalCheckFailed None", "TransactionConflict None None"] {
            assert!(told.iter().any(|told| told == expected), "{told:?}");
        }
    }

    #[test]
    fn what_else_stops_a_transaction_may_hide_what_its_conditions_say() {
        let mut seen = std::collections::BTreeSet::new();
        in_world(None, async |world| {
            for _ in 0..200 {
                let mut body =
                    json!({ "CancellationReasons": [{ "Code": "ConditionalCheckFailed" }, { "Code": "None" }] });
                world.more_reasons(&mut body);
                seen.insert(body["CancellationReasons"].to_string().contains("ConditionalCheckFailed"));
            }
        });
        assert_eq!(seen.len(), 2);
    }
}
