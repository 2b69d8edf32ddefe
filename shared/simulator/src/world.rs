//! AWS, on the other side of the wire.
//!
//! Each call is executed by a task of its own, as in a real service: its caller may be gone by then. Latencies, whether
//! a call arrives, which fault it meets and whether its answer returns, are drawn from the seed in the order of the
//! calls; and that order follows from the same latencies.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dynoxide::Database;
use holdfast_domain::Timestamp;
use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED, NOW};
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use crate::books::Books;
use crate::dynamo::{self, Place};
use crate::faults::{Fault, Faults};
use crate::history::History;
use crate::plan::HOUR_MS;
use crate::planted::{Planted, group, is_end_of_look};
use crate::promises::Promises;
use crate::services::{Made, Message, Queues, Schedules};
use crate::table::{Old, Stop, join, leave_out, sort_keys, split};

/// If `CreateSchedule` takes this long, its environment may give up waiting: less than its limit of a second, because other
/// steps take time too.
pub(crate) const SLOW_MS: u64 = 700;

/// One call over the wire.
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
    /// No answer ever comes.
    Silence,
}

/// All shared state. Clones are the same world.
#[derive(Clone)]
pub(crate) struct World(Arc<Shared>);

struct Shared {
    began: Instant,
    /// Notified when a message was sent.
    mail: Notify,
    /// Notified when a sweep may have something to do.
    sweeps: Notify,
    state: Mutex<State>,
}

/// The state behind the lock.
pub(crate) struct State {
    pub(crate) random: fastrand::Rng,
    pub(crate) faults: Faults,
    pub(crate) database: Database,
    /// A copy of the database's items: reads by key cost nothing here, and most calls are such reads.
    pub(crate) items: BTreeMap<Place, Value>,
    /// What the indexes show: the table as it was some time ago.
    pub(crate) replica: Database,
    pub(crate) replicated: BTreeMap<Place, u64>,
    /// The partition of the index `due` in which it shows each reservation, and the number of reservations in each.
    pub(crate) due: BTreeMap<Place, String>,
    pub(crate) due_keys: BTreeMap<String, usize>,
    pub(crate) writes: u64,
    /// Items that a running transaction is on, with its token.
    pub(crate) locked: BTreeMap<Place, String>,
    /// Items whose old state reads outside of transactions still see, and the time until which they had it.
    pub(crate) unseen: Old,
    /// What the catalogue shows that was changed lately, as it was before.
    pub(crate) lately: Old,
    /// Duplicates of writes that arrive after weeks, and whether each may make a hold without its reminder.
    copies: Vec<(String, Call, bool)>,
    pub(crate) queues: Queues,
    pub(crate) schedules: Schedules,
    pub(crate) made: mpsc::UnboundedSender<Made>,
    pub(crate) books: Books,
    pub(crate) promises: Promises,
    pub(crate) history: History,
    pub(crate) calls: u64,
    /// Of these, transactions that made several reservations.
    pub(crate) groups: u64,
    /// The looks at the shards of a product that is sold out that were made for several environments.
    pub(crate) looks: u64,
    /// Number of background tasks that still run.
    background: usize,
    /// An outage: the service that is away, from when and until when.
    pub(crate) away: Option<(Service, i64, i64)>,
    pub(crate) planted: Option<&'static Planted>,
    /// The first answer to each read of an environment: for one of the planted bugs.
    remembered: BTreeMap<(Arc<str>, String), Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    Dynamo,
    Sqs,
    Scheduler,
}

fn service(operation: &str) -> Service {
    match operation {
        "SendMessage"
        | "ReceiveMessage"
        | "DeleteMessage"
        | "ChangeMessageVisibility"
        | "ChangeMessageVisibilityBatch" => Service::Sqs,
        "CreateSchedule" => Service::Scheduler,
        _ => Service::Dynamo,
    }
}

/// Starts a task that nothing awaits.
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
            items: BTreeMap::new(),
            replica,
            replicated: BTreeMap::new(),
            due: BTreeMap::new(),
            due_keys: BTreeMap::new(),
            writes: 0,
            locked: BTreeMap::new(),
            unseen: Old::new(),
            lately: Old::new(),
            copies: Vec::new(),
            queues: Queues::default(),
            schedules: Schedules::default(),
            made,
            books: Books::default(),
            promises: Promises::default(),
            history: History::new(),
            calls: 0,
            groups: 0,
            looks: 0,
            background: 0,
            away: None,
            planted,
            remembered: BTreeMap::new(),
        };
        let (mail, sweeps) = (Notify::new(), Notify::new());
        Self(Arc::new(Shared { began: Instant::now(), mail, sweeps, state: Mutex::new(state) }))
    }

    /// Waits until a promise is broken.
    pub(crate) async fn broken(&self) {
        let broken = self.lock().books.broken.clone();
        broken.notified().await;
    }

    /// Signals that a message was sent.
    pub(crate) fn posted(&self) {
        self.0.mail.notify_one();
        self.swept();
    }

    /// Waits until a message is sent.
    pub(crate) async fn mail(&self) {
        self.0.mail.notified().await;
    }

    /// Signals that a sweep may have something to do.
    pub(crate) fn swept(&self) {
        self.0.sweeps.notify_one();
    }

    /// Waits until a sweep may have something to do.
    pub(crate) async fn something(&self) {
        self.0.sweeps.notified().await;
    }

    /// Records whether a promise holds.
    pub(crate) fn expect(&self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        let now = self.now();
        self.lock().books.expect(now, holds, invariant, detail);
    }

    pub(crate) fn settle_promises(&self, state: &mut State, now: i64) {
        let State { promises, books, queues, .. } = state;
        promises.check(now, books, queues);
    }

    /// Checks everything that was acknowledged.
    pub(crate) fn check_promises(&self) {
        let now = self.now();
        self.settle_promises(&mut self.lock(), now);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next whole multiple of the period since the history began.
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

    /// The time as shown by a clock with this skew, in milliseconds.
    pub(crate) fn clock(&self, skew_ms: i64) -> Timestamp {
        Timestamp::from_millis(self.now() + skew_ms)
    }

    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        let at = self.at();
        self.lock().history.note(at, what);
    }

    /// Whether a background task still runs.
    pub(crate) fn busy(&self) -> bool {
        self.lock().background > 0
    }

    /// Starts a background task. The history does not end before it does.
    pub(crate) fn start(&self, task: impl Future<Output = ()> + 'static) {
        self.lock().background += 1;
        let world = self.clone();
        go(async move {
            task.await;
            world.lock().background -= 1;
        });
    }

    /// Executes a call, or lets it fail.
    pub(crate) async fn serve(&self, who: &str, mut call: Call) -> Answer {
        sort_keys(&mut call);
        let (fate, travel, carry, back) = {
            let mut state = self.lock();
            state.calls += 1;
            state.groups += u64::from(!group(&call).is_empty());
            state.looks += u64::from(is_end_of_look(&call));
            let fate = state.fate(&call);
            // Also if it only takes long: its environment does not wait.
            if call.operation == "CreateSchedule" && (fate.0.is_some() || fate.1 + fate.2 + fate.3 >= SLOW_MS) {
                state.books.scheduler_fails(self.now(), &call.by);
            }
            fate
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
        if call.operation == "ReceiveMessage" {
            self.wait_for_messages(&call).await;
        }
        let (status, mut body) = match split(&call) {
            // A BatchGetItem is not guaranteed to read all its items at one instant.
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
        {
            let mut state = self.lock();
            if let Some(planted) = state.planted {
                planted.answered(&call, status, &mut body);
                state.not_aged(&call, status, &mut body);
            }
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

    /// Long polling: waits for a message, up to the requested time.
    async fn wait_for_messages(&self, call: &Call) {
        let seconds = call.request["WaitTimeSeconds"].as_u64().unwrap_or_default();
        let until = Instant::now() + Duration::from_secs(seconds);
        while Instant::now() < until && self.lock().queues.would_wait(&call.request, self.now()) {
            sleep(millis(200)).await;
        }
    }

    /// The answer to a call that fails before it is executed, if it does.
    fn before(&self, fate: &Option<Fault>, call: &Call) -> Option<Answer> {
        let now = self.now();
        let mut state = self.lock();
        if let Some((away, from, to)) = state.away
            && away == service(&call.operation)
            && (from..to).contains(&now)
        {
            state.faults.injected[Fault::Away as usize] += 1;
            if call.operation == "CreateSchedule" {
                state.books.scheduler_fails(now, &call.by);
            }
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
            // Either one of the items is throttled, or the whole table.
            Some(Fault::Throttled) if call.operation == "TransactWriteItems" && state.random.bool() => {
                Some(Answer::Of(400, state.conflict(call, Stop::Throttle)))
            }
            Some(Fault::Throttled) => Some(Answer::Of(400, error(throttled(&call.operation)))),
            Some(Fault::Conflict) => Some(Answer::Of(400, state.conflict(call, Stop::Conflict))),
            _ => None,
        }
    }

    pub(crate) fn start_locked(&self, state: &mut State, task: impl Future<Output = ()> + 'static) {
        state.background += 1;
        let world = self.clone();
        go(async move {
            task.await;
            world.lock().background -= 1;
        });
    }

    /// Sends the same write again, when its ClientRequestToken is forgotten: within seconds, after minutes, or after
    /// weeks.
    fn copy_later(&self, who: &str, call: &Call) {
        let mut copy = call.clone();
        if let Some(request) = copy.request.as_object_mut() {
            request.remove("ClientRequestToken");
        }
        let mut state = self.lock();
        let who = format!("{who} (a late copy)");
        // It asks for what its environment could ask for when it was sent.
        let without_scheduler = state.books.is_without_scheduler(self.now(), &call.by);
        let delay = [state.random.u64(1..5_000), state.random.u64(1_000..900_000)][state.random.usize(0..2)];
        if state.random.bool() {
            state.copies.push((who, copy, without_scheduler));
        } else {
            self.arrives(&mut state, who, (copy, without_scheduler), delay);
        }
    }

    /// The duplicates that were delayed for weeks arrive, within seconds.
    pub(crate) fn copies_arrive(&self) {
        let mut state = self.lock();
        for (who, copy, without_scheduler) in std::mem::take(&mut state.copies) {
            let delay = state.random.u64(0..8_000);
            self.arrives(&mut state, who, (copy, without_scheduler), delay);
        }
    }

    fn arrives(&self, state: &mut State, who: String, (copy, without_scheduler): (Call, bool), delay: u64) {
        let world = self.clone();
        self.start_locked(state, async move {
            sleep(millis(delay)).await;
            if without_scheduler {
                world.lock().books.scheduler_fails(world.now(), &copy.by);
            }
            let (status, body) = world.carry_out(&copy, 1).await;
            world.said(&who, &copy, None, &Answer::Of(status, body));
        });
    }
}

impl State {
    /// The fault that a call meets, and how long it takes: to the service, to execute, and back.
    fn fate(&mut self, call: &Call) -> (Option<Fault>, u64, u64, u64) {
        let Self { random, faults, .. } = self;
        let applies = |fault: Fault| match fault {
            Fault::Conflict => dynamo::writes(&call.operation) || call.operation == "TransactGetItems",
            Fault::LateCopy => dynamo::writes(&call.operation),
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

    /// With one of the planted bugs an environment keeps using what it read first, however long ago: its cache's age is
    /// measured by a clock that stops while it is frozen.
    fn not_aged(&mut self, call: &Call, status: u16, body: &mut Value) {
        let bug = self.planted.is_some_and(|planted| planted.name == "cache-does-not-age");
        if bug && status == 200 && call.operation == "BatchGetItem" && call.by.starts_with("reserve") {
            let asked = (call.by.clone(), call.request.to_string());
            *body = self.remembered.entry(asked).or_insert_with(|| body.clone()).clone();
        }
    }

    /// Whether a sweep would find anything.
    pub(crate) fn something_to_sweep(&self, now: i64) -> bool {
        // Longer than any outage. A message that no sweep has ingested by then waits for an admin.
        let fresh = |message: &Message| now - message.arrived_at < 2 * HOUR_MS.cast_signed();
        self.books.held().next().is_some() || self.queues.of(FAILED).any(fresh)
    }

    /// Whether the confirmations queue and the dead-letter queue are empty.
    pub(crate) fn drained(&self) -> bool {
        self.queues.of(CONFIRMATIONS).next().is_none() && self.queues.of(FAILED).next().is_none()
    }
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
