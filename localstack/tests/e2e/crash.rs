//! Functions that are killed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_local::stack::{Options, Stack};
use serde_json::json;

use crate::api::{Api, PATIENCE};

pub(crate) async fn peer_case_3_functions_killed_in_the_middle_of_five_hundred_reserves_lose_nothing(_: Api) {
    // Its own stack, because the functions are killed; and a short time limit, after which a request whose function was
    // killed gets its response.
    let options = Options { timeout: Duration::from_secs(3), ..crate::options() };
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    api.product("killed", 1_000, json!({"shards": 4})).await;

    let answered = AtomicUsize::new(0);
    let callers: Vec<String> = (0..500).map(|n| format!("k-{n}")).collect();
    let caller = async |caller: &String| {
        // Retry the same request until there is a response, as any client would.
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
                let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
                // One that is just being started again is not there: the others are.
                if rustix::process::kill_process(pid, rustix::process::Signal::KILL).is_ok() {
                    killed.insert(pid.as_raw_nonzero());
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
    crate::permissions::every_call_is_allowed(&stack).unwrap();
    drop(api);
    if let Some(stack) = Arc::into_inner(stack) {
        stack.stop().await;
    }
}
