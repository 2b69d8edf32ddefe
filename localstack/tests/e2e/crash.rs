//! Functions that are killed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_local::stack::{Options, Stack};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::api::{Api, PATIENCE};

/// Whether the process was there to get it.
fn signal(pid: u32, signal: Signal) -> bool {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).is_ok()
}

async fn end(api: Api, stack: Arc<Stack>) {
    crate::permissions::every_call_is_allowed(&stack).unwrap();
    drop(api);
    if let Some(stack) = Arc::into_inner(stack) {
        stack.stop().await;
    }
}

pub(crate) async fn peer_case_3_functions_killed_in_the_middle_of_five_hundred_reserves_lose_nothing(_: Api) {
    // A stack of its own, for what is killed here would be missed elsewhere; and a short time limit, for a request
    // whose function was killed is only answered when that is over.
    let options = Options { timeout: Duration::from_secs(3), ..crate::options() };
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    api.product("killed", 1_000, json!({"shards": 4})).await;

    let answered = AtomicUsize::new(0);
    let callers: Vec<String> = (0..500).map(|n| format!("k-{n}")).collect();
    let caller = async |caller: &String| {
        // As any client would: until there is an answer, the same request again.
        let mut tries = 0;
        loop {
            tries += 1;
            let answer = api.reserve(caller, "k", &[("killed", 1)]).await;
            if answer.status != 503 {
                answer.is(201, "");
                answered.fetch_add(1, Ordering::SeqCst);
                return (tries, answer.id());
            }
        }
    };
    let killer = async {
        let mut killed = BTreeSet::new();
        for round in 1..=4 {
            while answered.load(Ordering::SeqCst) < round * 80 {
                tokio::task::yield_now().await;
            }
            for pid in stack.pids("reserve") {
                // One that is just being started again is not there: the others are.
                if signal(pid, Signal::KILL) {
                    killed.insert(pid);
                }
            }
        }
        killed.len()
    };
    let all = async { futures_util::future::join(join_all(callers.iter().map(caller)), killer).await };
    let (outcomes, killed) = tokio::time::timeout(PATIENCE, all).await.expect("somebody never got an answer");
    assert!(killed >= 4, "killed only {killed} processes");
    assert!(outcomes.iter().any(|(tries, _)| *tries > 1), "no kill hit a request");
    let distinct: BTreeSet<&String> = outcomes.iter().map(|(_, id)| id).collect();
    assert_eq!(distinct.len(), 500);
    let book = api.book("killed").await;
    assert_eq!((book.available, book.held, book.sold), (500, 500, 0));
    end(api, stack).await;
}

pub(crate) async fn functions_that_stand_still_under_a_crowd_go_on_where_they_were(_: Api) {
    // A hundred requests that nobody fetches would block `cargo lambda watch` for good.
    let options = Options { timeout: Duration::from_secs(1), ..crate::options() };
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    api.product("still", 1_000, json!({"shards": 4})).await;
    let all_get = |what| {
        let pids = ["reserve", "confirm"].into_iter().flat_map(|function| stack.pids(function));
        pids.for_each(|pid| assert!(signal(pid, what)));
    };
    all_get(Signal::STOP);
    let given_up = AtomicUsize::new(0);
    let callers: Vec<String> = (0..200).map(|n| format!("s-{n}")).collect();
    let caller = async |caller: &String| {
        loop {
            let answer = api.reserve(caller, "k", &[("still", 1)]).await;
            if answer.status != 503 {
                answer.is(201, "");
                return;
            }
            given_up.fetch_add(1, Ordering::SeqCst);
        }
    };
    let keeper = async {
        // Each of these takes a time limit, at another function's queue: the crowd could ask again and again meanwhile.
        for _ in 0..4 {
            assert_eq!(api.confirm("s", "rsv_none", None).await.status, 503);
        }
        all_get(Signal::CONT);
    };
    let all = async { futures_util::future::join(join_all(callers.iter().map(caller)), keeper).await };
    tokio::time::timeout(PATIENCE, all).await.expect("somebody never got an answer");
    assert!(given_up.load(Ordering::SeqCst) > 0);
    let book = api.book("still").await;
    assert_eq!((book.available, book.held, book.sold), (800, 200, 0));
    end(api, stack).await;
}
