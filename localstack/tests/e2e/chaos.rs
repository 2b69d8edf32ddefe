//! Chaos: the emulator, the functions and services are frozen, stopped, killed or away while customers keep buying.
//!
//! Each test has its own stack and the same load (`load`): a dozen clients, which retry with the same key until there
//! is a response, and record the responses. Once the fault is over and the system is quiet, the books must be correct
//! (`books`), by the promises' names in docs/reliability.md. A fault that affects no request fails the test.
//!
//! `HOLDFAST_CHAOS_SECONDS=60 cargo test -p holdfast-local --test e2e chaos` makes each fault last that long; by
//! default, long enough to affect many requests. Each test prints a summary.

mod books;
mod load;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use holdfast_local::emulator::Choice;
use holdfast_local::runner::Event;
use holdfast_local::stack::{Options, Stack};
use holdfast_wiretap::recorder::{Call, Refusal, Refused};
use holdfast_wiretap::{Halts as _, Tapped as _};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};

use crate::api::{Api, PATIENCE};
use load::{Load, Tally};

/// A process that lived for less is restarted with a growing delay, and could not be killed again.
const BETWEEN_KILLS: Duration = Duration::from_millis(1_100);
/// Longer than any request waits for its turn and its function takes to give up and say so. The functions answer
/// themselves here; a request that the gateway gave up on would stay in the queue of `cargo lambda watch` (see `gateway`).
const FUNCTIONS_ANSWER: Duration = PATIENCE;

/// How long a fault lasts.
fn lasting(seconds: u64) -> Duration {
    #[expect(clippy::disallowed_methods, reason = "a test binary has no other way to be told")]
    let asked = std::env::var("HOLDFAST_CHAOS_SECONDS").ok();
    let seconds = asked.map_or(seconds, |text| text.parse().expect("HOLDFAST_CHAOS_SECONDS is a number of seconds"));
    Duration::from_secs(seconds)
}

/// Starts a stack, injects `trouble` under load, and checks the books.
async fn chaos(name: &str, options: Options, trouble: impl AsyncFnOnce(&Api, &Tally) -> String) {
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    let load = Load::new(&api).await;
    let breaking = async {
        // In the middle of it, and not before anything was sold.
        load.tally.until(|counts| counts.orders >= 5 && counts.reservations >= 20).await;
        let done = trouble(&api, &load.tally).await;
        // The load continues for a while.
        let before = load.tally.now();
        load.tally.until(|counts| counts.orders >= before.orders + 5).await;
        load.end();
        done
    };
    let (done, visits) = join(breaking, load.run()).await;
    let quiet = books::until_quiet(&api).await;
    let counts = load.tally.now();
    let found = books::check(&api, &visits, counts).await;
    eprintln!("chaos, {name}: {done}; {counts}; {found}, {:.0} s after the last customer", quiet.as_secs_f64());
    crate::permissions::every_call_is_allowed(&stack).unwrap();
    drop((load, api));
    if let Some(stack) = Arc::into_inner(stack) {
        stack.stop().await;
    }
}

/// Waits for the fault to end, and returns the number of failures.
async fn lasts(tally: &Tally, length: Duration) -> u64 {
    let before = tally.now();
    // The length is what the test is about.
    sleep(length).await;
    tally.now().failed() - before.failed()
}

pub(crate) async fn the_emulator_frozen_and_stopped_and_answers_cut_off(_: Api) {
    // An emulator of the stack, which can be stopped.
    let options = Options {
        emulator: Choice::Ministack,
        emulator_keeps_state: true,
        timeout: FUNCTIONS_ANSWER,
        ..crate::options()
    };
    chaos("the emulator", options, async |api, tally| {
        let emulator = api.stack.emulator().unwrap();
        // Every third response is cut off in the middle, after the call was carried out.
        let cut = api.stack.recorder().unwrap().refuse(Refusal::Cut, |_| fastrand::u8(..3) == 0);
        sleep(lasting(3)).await;
        let cut_off = *cut.met().borrow();
        drop(cut);
        assert!(cut_off > 5, "only {cut_off} answers were cut off");

        let again = async |what: &str, failed: u64| {
            assert!(failed > 0, "nobody noticed that the emulator was {what}");
            let before = tally.now();
            tally.until(|counts| counts.reservations >= before.reservations + 10).await;
        };
        emulator.freeze().await.unwrap();
        let frozen = lasts(tally, lasting(10)).await;
        emulator.thaw().await.unwrap();
        again("frozen", frozen).await;
        let before = tally.now();
        emulator.halt().await.unwrap();
        let halting = tally.now().failed() - before.failed();
        let halted = halting + lasts(tally, lasting(9)).await;
        emulator.restart().await.unwrap();
        again("stopped", halted).await;
        format!("{cut_off} answers cut off, {frozen} tries failed while it was frozen, {halted} while it was stopped")
    })
    .await;
}

pub(crate) async fn functions_killed_again_and_again(_: Api) {
    // A request whose function was killed is only answered when its time limit is over.
    let options = Options { timeout: Duration::from_secs(3), ..crate::options() };
    chaos("functions killed", options, async |api, tally| {
        // Every call is reported before it is passed on, so that a kill can hit it.
        let (calls, mut heard) = mpsc::unbounded_channel();
        let ear = api.stack.recorder().unwrap().refuse(Refusal::Away, move |call: &Call<'_>| {
            let writes = ["Put", "Update", "Delete", "Send", "Create"];
            let is_write = call.needs.iter().any(|need| writes.iter().any(|verb| need.action.contains(verb)));
            if is_write || call.function == "catalog" {
                // Nobody listens once it is over.
                let _ = calls.send(call.function.to_owned());
            }
            false
        });
        // Some payments go through the queue, so that kills hit deliveries too.
        let queued = table_denied(api, "abcd");
        let mut events = api.stack.runner().unwrap().events();
        let (before, end) = (tally.now(), Instant::now() + lasting(15));
        let mut killed: BTreeMap<String, usize> = BTreeMap::new();
        let mut last: BTreeMap<String, Instant> = BTreeMap::new();
        let killer = async {
            while let Ok(Some(function)) = timeout_at(end, heard.recv()).await {
                if last.get(&function).is_some_and(|last| last.elapsed() < BETWEEN_KILLS) {
                    continue;
                }
                // The first time at once: before the call arrives. Then while it is carried out, or after its answer.
                let wait = last.get(&function).map_or(0, |_| fastrand::u64(..20));
                sleep(Duration::from_millis(wait)).await;
                for pid in api.stack.pids(&function) {
                    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                    // One that is just being started again is not there.
                    if kill_process(pid, Signal::KILL).is_ok() {
                        *killed.entry(function.clone()).or_default() += 1;
                    }
                }
                last.insert(function, Instant::now());
            }
        };
        // Beside the schedules, so that releases are under way all the time.
        let sweeps = async {
            let (mut answered, mut failed, sweep) = (0, 0, json!({"kind": "sweep"}));
            while Instant::now() < end {
                match api.stack.invoke("expire", &sweep).await {
                    Ok(_) => answered += 1,
                    Err(_) => failed += 1,
                }
            }
            (answered, failed)
        };
        let ((), (swept, cut_off)) = join(killer, sweeps).await;
        drop((ear, queued));
        let events = std::iter::from_fn(|| events.try_recv().ok());
        let cut_off = cut_off + events.filter(|event| matches!(event, Event::FireFailed { .. })).count();
        let failed = tally.now().failed() - before.failed();
        assert!(failed > 0, "no kill hit a customer");
        for function in ["reserve", "confirm", "expire", "admin", "catalog"] {
            assert!(killed.contains_key(function), "{function} was never killed: {killed:?}");
        }
        assert!(cut_off > 0, "no kill hit a release, and {swept} sweeps ended well");
        format!("killed {killed:?} in the middle of a call, {failed} tries failed and {cut_off} calls to release")
    })
    .await;
}

/// The table refuses `confirm` the reservations whose ids begin with one of these letters: their confirmations are queued.
fn table_denied(api: &Api, letters: &'static str) -> Refused {
    api.stack.recorder().unwrap().refuse(Refusal::Denied, move |call: &Call<'_>| {
        let id = call.body.split_once("HOLD#rsv_").map(|(_, id)| id);
        let meant = id.is_some_and(|id| id.starts_with(|letter| letters.contains(letter)));
        meant && call.function == "confirm" && call.is_of("dynamodb")
    })
}

pub(crate) async fn queue_and_scheduler_away(_: Api) {
    let options = Options { timeout: FUNCTIONS_ANSWER, ..crate::options() };
    chaos("queue and Scheduler away", options, async |api, tally| {
        let recorder = api.stack.recorder().unwrap();
        // The queue is used if the table is away too, which it is for every second reservation.
        let table = table_denied(api, "abcdefghijklmnop");
        let queue = recorder.refuse(Refusal::Away, |call: &Call<'_>| call.is_of("sqs"));
        let before = tally.now();
        let queue_away = lasts(tally, lasting(7)).await;
        let queued = tally.now().queued - before.queued;
        assert_eq!(queued, 0, "no_payment_is_lost: told that a queue has them that is away");
        assert!(queue_away > 0, "nobody noticed that the queue was away");
        let refused = *queue.met().borrow();
        drop(queue);
        tally.until(|counts| counts.queued >= before.queued + 5).await;
        drop(table);

        // A hold's slot is ten seconds long, and a slot that has its schedule needs Scheduler no more.
        let scheduler = recorder.refuse(Refusal::Away, |call: &Call<'_>| call.is_of("scheduler"));
        let before = tally.now().failed();
        sleep(lasting(12)).await;
        let failures = tally.failures_since(before);
        assert!(*scheduler.met().borrow() > 0, "nobody called Scheduler while it was away");
        assert!(failures.is_empty(), "a sale failed because Scheduler was away: {failures:#?}");
        let unscheduled = *scheduler.met().borrow();
        drop(scheduler);
        format!(
            "{refused} calls of the queue refused and {queue_away} tries failed, {unscheduled} calls of Scheduler \
             refused"
        )
    })
    .await;
}

/// The maximum wait for the end of the fault.
fn patience() -> Duration {
    PATIENCE + 3 * lasting(15)
}
