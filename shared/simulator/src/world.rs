//! AWS as the functions reach it: the far side of the wire.
//!
//! Every call is carried out by a task of its own, as by a service: whoever sent it may be gone by then. How long it
//! travels, whether it arrives, what it meets there and whether its answer comes back, all of it is drawn from the
//! seed, in the order in which calls are made; and that order is decided by the same delays.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynoxide::Database;
use holdfast_domain::Timestamp;
use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED, NOW, TABLE};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use crate::books::{Books, Changed};
use crate::dynamo::{self, Place};
use crate::faults::{Fault, Faults};
use crate::history::History;
use crate::planted::Planted;
use crate::promises::Promises;
use crate::services::{Made, Queues, Schedules};

/// One call, as it went over the wire.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    /// The environment that makes it.
    pub(crate) by: Arc<str>,
    pub(crate) operation: String,
    pub(crate) request: Value,
}

/// What the caller gets.
#[derive(Debug)]
pub(crate) enum Answer {
    Of(u16, Value),
    /// The connection breaks.
    Broken,
    /// Nothing, ever.
    Silence,
}

/// Everything that is shared. Clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Shared>);

struct Shared {
    began: Instant,
    /// A message was sent.
    mail: Notify,
    holds: Notify,
    state: Mutex<State>,
}

/// What there is, behind the one lock.
pub(crate) struct State {
    pub(crate) random: fastrand::Rng,
    pub(crate) faults: Faults,
    pub(crate) database: Database,
    /// What the indexes show: the table a little or a good while ago.
    replica: Database,
    replicated: BTreeMap<Place, u64>,
    writes: u64,
    /// Items that a running transaction is on, and its token.
    locked: BTreeMap<Place, String>,
    /// Writes that arrive once more after weeks.
    copies: Vec<(String, Call)>,
    pub(crate) queues: Queues,
    pub(crate) schedules: Schedules,
    made: mpsc::UnboundedSender<Made>,
    pub(crate) books: Books,
    pub(crate) promises: Promises,
    pub(crate) history: History,
    pub(crate) calls: u64,
    /// Tasks that go on without anybody waiting for them.
    background: usize,
    /// When which service is away: operations of it between two moments.
    pub(crate) away: Option<(Service, i64, i64)>,
    pub(crate) planted: Option<&'static Planted>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Dynamo,
    Sqs,
    Scheduler,
}

fn service(operation: &str) -> Service {
    match operation {
        "SendMessage" | "ReceiveMessage" | "DeleteMessage" => Service::Sqs,
        "CreateSchedule" => Service::Scheduler,
        _ => Service::Dynamo,
    }
}

/// Starts what nobody waits for.
pub(crate) fn go(task: impl Future<Output = ()> + 'static) {
    drop(tokio::task::spawn_local(task));
}

pub(crate) fn millis(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

impl World {
    pub(crate) fn new(
        random: fastrand::Rng,
        faults: Faults,
        databases: (Database, Database),
        made: mpsc::UnboundedSender<Made>,
        planted: Option<&'static Planted>,
    ) -> Self {
        let (database, replica) = databases;
        let state = State {
            random,
            faults,
            database,
            replica,
            replicated: BTreeMap::new(),
            writes: 0,
            locked: BTreeMap::new(),
            copies: Vec::new(),
            queues: Queues::default(),
            schedules: Schedules::default(),
            made,
            books: Books::default(),
            promises: Promises::default(),
            history: History::new(),
            calls: 0,
            background: 0,
            away: None,
            planted,
        };
        let (mail, holds) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { began: Instant::now(), mail, holds, state: Mutex::new(state) }))
    }

    /// Waits until a promise is broken.
    pub(crate) async fn broken(&self) {
        let broken = self.lock().books.broken.clone();
        broken.notified().await;
    }

    /// Says that a message was sent.
    pub(crate) fn posted(&self) {
        self.0.mail.notify_one();
    }

    /// Waits until a message is sent.
    pub(crate) async fn mail(&self) {
        self.0.mail.notified().await;
    }

    /// Until a reservation is written.
    pub(crate) async fn holds(&self) {
        self.0.holds.notified().await;
    }

    /// Notes whether a promise holds.
    pub(crate) fn expect(&self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        let now = self.now();
        self.lock().books.expect(now, holds, invariant, detail);
    }

    /// Checks everything that was promised.
    pub(crate) fn check_promises(&self) {
        let now = self.now();
        self.settle_promises(&mut self.lock(), now);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next time that is a whole number of periods after the beginning.
    pub(crate) fn next(&self, period_ms: u64) -> Instant {
        let periods = u64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(u64::MAX) / period_ms;
        self.0.began + millis((periods + 1) * period_ms)
    }

    /// Milliseconds since the history began.
    pub(crate) fn at(&self) -> i64 {
        i64::try_from(self.0.began.elapsed().as_millis()).unwrap_or(i64::MAX)
    }

    /// The true time, in milliseconds since the epoch.
    pub(crate) fn now(&self) -> i64 {
        NOW.as_millis() + self.at()
    }

    /// The true time as a clock shows that is off by so many milliseconds.
    pub(crate) fn clock(&self, skew_ms: i64) -> Timestamp {
        Timestamp::from_millis(self.now() + skew_ms)
    }

    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = self.at();
        self.lock().history.note(at, what);
    }

    /// Whether a task still goes on that nobody waits for.
    pub(crate) fn busy(&self) -> bool {
        self.lock().background > 0
    }

    /// Starts a task that the end of the history waits for.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + 'static) {
        self.lock().background += 1;
        let world = self.clone();
        go(async move {
            task.await;
            world.lock().background -= 1;
        });
    }

    /// Carries a call out, or does not.
    pub(crate) async fn serve(&self, who: &str, mut call: Call) -> Answer {
        sort_keys(&mut call);
        let (fate, travel, carry, back) = {
            let mut state = self.lock();
            state.calls += 1;
            let now = self.now();
            state.fate(&call, now)
        };
        sleep(millis(travel)).await;
        if let Some(answer) = self.before(&fate, &call) {
            self.said(who, &call, fate, &answer);
            sleep(millis(back)).await;
            return answer;
        }
        if fate == Some(Fault::ShortPage) {
            let limit = call.request["Limit"].as_u64().unwrap_or(100);
            call.request["Limit"] = (limit / 8).clamp(1, 2).into();
        }
        let left_out = if fate == Some(Fault::Unprocessed) { leave_out(&mut call) } else { None };
        let (status, mut body) = match split(&call) {
            // Nothing says that a BatchGetItem reads all its items at one instant.
            Some((first, rest)) => {
                let one = self.carry_out(&first, carry).await;
                let between = self.lock().random.u64(0..9);
                let other = self.carry_out(&rest, between).await;
                join(one, other)
            }
            None => self.carry_out(&call, carry).await,
        };
        if let Some((table, keys)) = left_out
            && status == 200
        {
            body["UnprocessedKeys"][table] = keys;
        }
        if fate == Some(Fault::Reasons) {
            self.more_reasons(&mut body);
        }
        if fate == Some(Fault::LateCopy) && status == 200 {
            self.copy_later(who, &call);
        }
        if let Some(planted) = self.lock().planted {
            planted.answered(&call, status, &mut body);
        }
        let answer = match fate {
            Some(Fault::ErrorAfter) => Answer::Of(500, error("InternalServerError")),
            Some(Fault::LostAfter) => Answer::Broken,
            Some(Fault::HangAfter) => Answer::Silence,
            _ => Answer::Of(status, body),
        };
        self.said(who, &call, fate, &answer);
        sleep(millis(back)).await;
        answer
    }

    /// What becomes of a call that does not get through.
    fn before(&self, fate: &Option<Fault>, call: &Call) -> Option<Answer> {
        let now = self.now();
        let mut state = self.lock();
        if let Some((away, from, to)) = state.away
            && away == service(&call.operation)
            && (from..to).contains(&now)
        {
            state.faults.injected[Fault::Away as usize] += 1;
            return Some(if state.random.bool() {
                Answer::Broken
            } else {
                Answer::Of(503, error("ServiceUnavailable"))
            });
        }
        match fate {
            Some(Fault::Refused) => Some(Answer::Of(500, error("InternalServerError"))),
            Some(Fault::LostBefore) => Some(Answer::Broken),
            Some(Fault::Hang) => Some(Answer::Silence),
            Some(Fault::Throttled) => Some(Answer::Of(400, error(throttled(&call.operation)))),
            Some(Fault::Conflict) => Some(Answer::Of(400, state.conflict(call))),
            _ => None,
        }
    }

    async fn carry_out(&self, call: &Call, carry: u64) -> (u16, Value) {
        let places = dynamo::places(&call.operation, &call.request);
        let transaction = call.operation == "TransactWriteItems";
        let token = call.request["ClientRequestToken"].as_str().unwrap_or_default().to_owned();
        {
            let mut state = self.lock();
            let others: Vec<bool> = places.iter().map(|place| state.locked.contains_key(place)).collect();
            if others.contains(&true) {
                let own = places.iter().any(|place| state.locked.get(place).is_some_and(|other| *other == token));
                return if transaction && own && !token.is_empty() {
                    (400, error("TransactionInProgressException"))
                } else {
                    (400, conflicts(call, |at| others[at]))
                };
            }
            if transaction {
                state.locked.extend(places.iter().map(|place| (place.clone(), token.clone())));
            }
        }
        sleep(millis(carry)).await;
        let now = self.now();
        let mut state = self.lock();
        if transaction {
            places.iter().for_each(|place| _ = state.locked.remove(place));
        }
        self.apply(&mut state, call.clone(), now)
    }

    fn apply(&self, state: &mut State, mut call: Call, now: i64) -> (u16, Value) {
        if let Some(planted) = state.planted
            && let Some(pretended) = planted.asked(&mut call)
        {
            return pretended;
        }
        let Call { operation, request, .. } = &call;
        let State { queues, random, faults, .. } = state;
        if let Some(answer) = queues.carry_out(operation, request, now, random, faults) {
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
        let indexed = operation == "Query" && request["IndexName"].is_string();
        if !indexed && !consistent(operation, request) {
            let detail = || format!("{} {operation} {request}", call.by);
            state.books.expect(now, false, "reads_see_every_write", detail);
        }
        let database = if indexed { &state.replica } else { &state.database };
        let Some((status, body)) = dynamo::carry_out(database, operation, request) else {
            return (400, error("UnknownOperationException"));
        };
        if status == 200 {
            let places = dynamo::places(operation, request);
            if !places.is_empty() {
                self.written(state, places, now, false);
            }
        }
        (status, body)
    }

    /// Follows a write: what is there now goes into the books, and sooner or later into the indexes.
    pub(crate) fn written(&self, state: &mut State, places: Vec<Place>, now: i64, cleaned_up: bool) {
        let mut changed = Vec::with_capacity(places.len());
        for place in places {
            let item = dynamo::item(&state.database, TABLE, &place);
            if place.0.starts_with("HOLD#") {
                self.0.holds.notify_one();
                self.replicate(state, place.clone(), item.clone());
            }
            changed.push(Changed { place, after: item.as_ref().map(dynamo::plain_item) });
        }
        state.books.follow(now, changed, &state.schedules.made, cleaned_up);
        self.settle_promises(state, now);
    }

    fn settle_promises(&self, state: &mut State, now: i64) {
        let State { promises, books, queues, .. } = state;
        promises.check(now, books, queues);
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

    fn start_locked(&self, state: &mut State, task: impl Future<Output = ()> + 'static) {
        state.background += 1;
        let world = self.clone();
        go(async move {
            task.await;
            world.lock().background -= 1;
        });
    }

    fn more_reasons(&self, body: &mut Value) {
        let mut state = self.lock();
        let Some(reasons) = body["CancellationReasons"].as_array_mut() else { return };
        for reason in reasons.iter_mut().filter(|reason| reason["Code"] == "None") {
            if state.random.bool() {
                let code = ["TransactionConflict", "ThrottlingError"][state.random.usize(0..2)];
                *reason = json!({ "Code": code, "Message": "beside the others" });
            }
        }
    }

    /// The same write arrives again, when nobody remembers its token: soon, after minutes, or after weeks.
    fn copy_later(&self, who: &str, call: &Call) {
        let mut copy = call.clone();
        if let Some(request) = copy.request.as_object_mut() {
            request.remove("ClientRequestToken");
        }
        let mut state = self.lock();
        let who = format!("{who} (a late copy)");
        let delay = [state.random.u64(1..5_000), state.random.u64(1_000..900_000)][state.random.usize(0..2)];
        if state.random.bool() {
            state.copies.push((who, copy));
        } else {
            self.arrives(&mut state, who, copy, delay);
        }
    }

    /// What is on its way for weeks arrives within seconds of their end.
    pub(crate) fn copies_arrive(&self) {
        let mut state = self.lock();
        for (who, copy) in std::mem::take(&mut state.copies) {
            let delay = state.random.u64(0..8_000);
            self.arrives(&mut state, who, copy, delay);
        }
    }

    fn arrives(&self, state: &mut State, who: String, copy: Call, delay: u64) {
        let world = self.clone();
        self.start_locked(state, async move {
            sleep(millis(delay)).await;
            let (status, body) = world.carry_out(&copy, 1).await;
            world.said(&who, &copy, None, &Answer::Of(status, body));
        });
    }

    fn said(&self, who: &str, call: &Call, fate: Option<Fault>, answer: &Answer) {
        let at = self.at();
        let mut state = self.lock();
        let (outcome, body) = match answer {
            Answer::Of(status, body) => (status.to_string(), Some(body)),
            Answer::Broken => ("connection broken".to_owned(), None),
            Answer::Silence => ("no answer".to_owned(), None),
        };
        let mut about: Vec<String> =
            dynamo::places(&call.operation, &call.request).into_iter().map(|(pk, sk)| short(&pk, &sk)).collect();
        if about.is_empty() {
            about.extend(subject(call));
        }
        let reasons = body.map(reasons).unwrap_or_default();
        let fate = fate.map(|fate| format!(" [{fate}]")).unwrap_or_default();
        state
            .history
            .note(at, format_args!("{who} {} {} -> {outcome}{reasons}{fate}", call.operation, about.join(" ")));
        state.history.digest(call.request.to_string().as_bytes());
        if let Some(body) = body {
            state.history.digest(body.to_string().as_bytes());
        }
    }
}

impl State {
    /// What becomes of a call, and how long it takes: there, to carry it out, and back.
    fn fate(&mut self, call: &Call, _now: i64) -> (Option<Fault>, u64, u64, u64) {
        let Self { random, faults, .. } = self;
        let write = !dynamo::places(&call.operation, &call.request).is_empty();
        let applies = |fault: Fault| match fault {
            Fault::Conflict | Fault::LateCopy => write,
            Fault::Reasons => call.operation == "TransactWriteItems",
            Fault::Unprocessed => call.operation == "BatchGetItem",
            Fault::ShortPage => matches!(call.operation.as_str(), "Query" | "Scan"),
            _ => true,
        };
        let mut fate = None;
        for fault in [
            Fault::Refused,
            Fault::ErrorAfter,
            Fault::LostBefore,
            Fault::LostAfter,
            Fault::Hang,
            Fault::HangAfter,
            Fault::Slow,
            Fault::LateCopy,
            Fault::Throttled,
            Fault::Conflict,
            Fault::Reasons,
            Fault::Unprocessed,
            Fault::ShortPage,
        ] {
            if fate.is_none() && applies(fault) && faults.strikes(random, fault) {
                fate = Some(fault);
            }
        }
        let travel = if fate == Some(Fault::Slow) { random.u64(1_900..30_000) } else { random.u64(0..7) };
        let carry = if call.operation == "TransactWriteItems" { random.u64(0..9) } else { random.u64(0..2) };
        (fate, travel, carry, random.u64(0..7))
    }

    /// A write that meets another transaction, at one of its items or at several.
    fn conflict(&mut self, call: &Call) -> Value {
        let actions = dynamo::actions(&call.request).count();
        let hit = self.random.usize(0..actions.max(1));
        let all = self.random.u32(0..4) == 0;
        conflicts(call, |at| all || at == hit)
    }

    /// Lets the indexes see an item, unless they have seen a newer state of it.
    fn show(&mut self, place: &Place, item: Option<&Value>, number: u64) {
        let newest = self.replicated.entry(place.clone()).or_default();
        if *newest >= number {
            return;
        }
        *newest = number;
        self.books.shows(place, item);
        match item {
            Some(item) => dynamo::carry_out(&self.replica, "PutItem", &json!({ "TableName": TABLE, "Item": item })),
            None => dynamo::carry_out(
                &self.replica,
                "DeleteItem",
                &json!({ "TableName": TABLE, "Key": dynamo::key(place) }),
            ),
        };
    }

    /// Whether the confirmations' queues have nothing left.
    pub(crate) fn drained(&self) -> bool {
        self.queues.of(CONFIRMATIONS).next().is_none() && self.queues.of(FAILED).next().is_none()
    }
}

/// The functions put some keys in no particular order, which is of no consequence, and must be of none here.
fn sort_keys(call: &mut Call) {
    let tables = call.request.get_mut("RequestItems").and_then(Value::as_object_mut).into_iter().flatten();
    for keys in tables.filter_map(|(_, wanted)| wanted["Keys"].as_array_mut()) {
        keys.sort_by_cached_key(Value::to_string);
    }
}

/// Whether a read of the table sees every write that was acknowledged; a write does.
fn consistent(operation: &str, request: &Value) -> bool {
    match operation {
        "GetItem" | "Query" => request["ConsistentRead"] == true,
        "BatchGetItem" => {
            let mut tables = request["RequestItems"].as_object().into_iter().flatten();
            tables.all(|(_, wanted)| wanted["ConsistentRead"] == true)
        }
        // An admin's list of all reservations, which nothing is decided on.
        _ => true,
    }
}

/// A BatchGetItem of several keys as two.
fn split(call: &Call) -> Option<(Call, Call)> {
    let (mut first, mut rest) = (call.clone(), call.clone());
    let keys = |call: &mut Call| -> Option<Vec<Value>> {
        let (_, wanted) = call.request.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
        Some(std::mem::take(wanted["Keys"].as_array_mut()?))
    };
    let mut all = keys(&mut first)?;
    keys(&mut rest)?;
    if all.len() < 2 {
        return None;
    }
    let second = all.split_off(all.len() / 2);
    for (call, keys) in [(&mut first, all), (&mut rest, second)] {
        let (_, wanted) = call.request.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
        wanted["Keys"] = keys.into();
    }
    Some((first, rest))
}

/// The two halves' answers as one.
fn join((status, mut body): (u16, Value), (other_status, other): (u16, Value)) -> (u16, Value) {
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

/// Takes the second half of a BatchGetItem's keys out; what DynamoDB then says of them.
fn leave_out(call: &mut Call) -> Option<(String, Value)> {
    let (table, wanted) = call.request.get_mut("RequestItems")?.as_object_mut()?.iter_mut().next()?;
    let keys = wanted["Keys"].as_array_mut()?;
    let left = keys.split_off(keys.len().div_ceil(2));
    let mut unprocessed = wanted.clone();
    unprocessed["Keys"] = left.into();
    let empty = unprocessed["Keys"].as_array().is_none_or(Vec::is_empty);
    (!empty).then(|| (table.clone(), unprocessed))
}

pub(crate) fn error(code: &str) -> Value {
    json!({ "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"), "message": "a fault" })
}

fn throttled(operation: &str) -> &'static str {
    match service(operation) {
        Service::Dynamo => "ProvisionedThroughputExceededException",
        Service::Sqs | Service::Scheduler => "ThrottlingException",
    }
}

fn conflicts(call: &Call, at: impl Fn(usize) -> bool) -> Value {
    let Some(actions) = call.request["TransactItems"].as_array() else { return error("TransactionConflictException") };
    let reason = |n| if at(n) { json!({ "Code": "TransactionConflict" }) } else { json!({ "Code": "None" }) };
    let mut body = error("TransactionCanceledException");
    body["CancellationReasons"] = (0..actions.len()).map(reason).collect();
    body
}

fn reasons(body: &Value) -> String {
    let kind = body["__type"].as_str().and_then(|kind| kind.rsplit('#').next());
    match (body["CancellationReasons"].as_array(), kind) {
        (Some(reasons), _) => {
            let codes: Vec<&str> = reasons.iter().filter_map(|reason| reason["Code"].as_str()).collect();
            format!(" cancelled: {}", codes.join(", "))
        }
        (None, Some(kind)) => format!(" {kind}"),
        (None, None) => String::new(),
    }
}

/// A key as the history shows it.
fn short(pk: &str, sk: &str) -> String {
    let tail = |text: &str| text.get(..16).unwrap_or(text).to_owned();
    match pk.split_once('#') {
        Some(("HOLD", id)) => format!("HOLD#{}", tail(id)),
        Some(("LEDGER" | "ADJUST", _)) => tail(pk),
        Some(_) => pk.to_owned(),
        None => format!("{pk}/{}", tail(sk)),
    }
}

fn subject(call: &Call) -> Option<String> {
    let text = |member: &str| call.request[member].as_str().map(str::to_owned);
    match call.operation.as_str() {
        "GetItem" => Some(short(call.request["Key"]["pk"]["S"].as_str()?, call.request["Key"]["sk"]["S"].as_str()?)),
        "Query" => text("IndexName"),
        "SendMessage" => Some(format!("{} {}", text("QueueUrl")?.rsplit('/').next()?, text("MessageBody")?)),
        "ReceiveMessage" | "DeleteMessage" => Some(text("QueueUrl")?.rsplit('/').next()?.to_owned()),
        "CreateSchedule" => text("Name"),
        _ => None,
    }
}
