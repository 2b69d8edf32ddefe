//! What admins do: written down before, with its outcome once, and listed.

use holdfast_domain::{Refusal, Timestamp};
use holdfast_store::{Action, Cursor, Error, Intent, Search, Store};
use holdfast_testkit::fixtures::{NOW, product, soon, store, table};
use holdfast_testkit::wire::{Fault, Wire};
use serde_json::{Value, json};

use crate::{hold, refusal, shop};

fn intent(action: &str, target: &str) -> Intent {
    Intent {
        actor: "root".to_owned(),
        action: action.to_owned(),
        target: target.to_owned(),
        detail: json!({ "delta": -5, "reason": "lost", "reference": null, "restock": true }),
        request_id: "UYdGk15TDoEEM6g=".to_owned(),
    }
}

async fn listed(store: &Store, target: Option<&str>, limit: u32) -> Vec<Action> {
    let (mut all, mut cursor) = (Vec::new(), None);
    loop {
        let page = store.actions(target, limit, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= limit as usize);
        all.extend(page.items);
        cursor = page.next.map(|next| Cursor::decode(&next.encode()).unwrap());
        if cursor.is_none() {
            return all;
        }
    }
}

/// The calls of these operations since the last look.
fn calls(wire: &Wire, operation: &str) -> Vec<Value> {
    wire.take_calls().into_iter().filter(|call| call.operation == operation).map(|call| call.request).collect()
}

#[tokio::test]
async fn an_action_is_written_down_and_gets_its_outcome_once() {
    let store = store(&table(), 1);
    let begun = store.begin_action(intent("adjust_stock", "tee"), NOW, soon()).await.unwrap();
    // Nobody knows yet what came of it, nor after a crash.
    assert_eq!(listed(&store, Some("tee"), 10).await, std::slice::from_ref(&begun));
    assert_eq!((begun.created_at, begun.outcome.as_deref()), (NOW, None));
    store.finish_action(&begun, "409 insufficient_stock", soon()).await.unwrap();
    store.finish_action(&begun, "200", soon()).await.unwrap();
    let ended = Action { outcome: Some("409 insufficient_stock".to_owned()), ..begun };
    for target in [None, Some("tee")] {
        assert_eq!(listed(&store, target, 10).await, std::slice::from_ref(&ended));
    }
    // One that was never written down gets none.
    let other = Action { action_id: "01M7YEVF14SFM3QJ869M98QS76".to_owned(), ..ended.clone() };
    store.finish_action(&other, "200", soon()).await.unwrap();
    assert_eq!(listed(&store, Some("tee"), 10).await, [ended]);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_make_no_second_action_and_no_second_outcome() {
    let faults = [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict];
    // Once or twice, the SDK itself retries the call; five times, the store does.
    for (fault, times) in faults.into_iter().flat_map(|fault| [1, 2, 5].map(|times| (fault, times))) {
        let wire = table();
        let store = store(&wire, 1);
        wire.fail("UpdateItem", times, fault);
        let begun = store.begin_action(intent("adjust_stock", "tee"), NOW, soon()).await.unwrap();
        wire.fail("UpdateItem", times, fault);
        store.finish_action(&begun, "200", soon()).await.unwrap();
        let ended = Action { outcome: Some("200".to_owned()), ..begun };
        assert_eq!(listed(&store, None, 10).await, [ended], "{fault:?} {times}");
    }
}

/// The intent reaches the table after its outcome, as a late copy of it would.
#[tokio::test]
async fn a_late_copy_of_an_intent_does_not_take_the_outcome_away() {
    let wire = table();
    let store = store(&wire, 1);
    let begun = store.begin_action(intent("adjust_stock", "tee"), NOW, soon()).await.unwrap();
    store.finish_action(&begun, "200", soon()).await.unwrap();
    let late = calls(&wire, "UpdateItem").remove(0);
    let (status, answer) = wire.send("UpdateItem", &late);
    assert_eq!(status, 400, "{answer}");
    assert_eq!(listed(&store, None, 10).await[0].outcome.as_deref(), Some("200"));
}

#[tokio::test(start_paused = true)]
async fn without_an_answer_it_is_not_begun() {
    let wire = table();
    let store = store(&wire, 1);
    wire.fail_all(&["UpdateItem"], Fault::LostBefore);
    let begun = store.begin_action(intent("adjust_stock", "tee"), NOW, soon()).await;
    assert!(matches!(begun, Err(Error::Unavailable { .. })), "{begun:?}");
    wire.clear_faults();
    assert!(listed(&store, None, 10).await.is_empty());
}

#[tokio::test]
async fn actions_are_listed_by_target_and_all_newest_first_in_pages() {
    let wire = table();
    let store = store(&wire, 1);
    let mut all = Vec::new();
    for n in 0..7_i64 {
        // Some in the same millisecond.
        let at = Timestamp::from_millis(NOW.as_millis() + n / 2);
        let target = if n % 3 == 0 { "cap" } else { "tee" };
        all.push(store.begin_action(intent(&format!("action_{n}"), target), at, soon()).await.unwrap());
    }
    all.sort_by(|a, b| b.action_id.cmp(&a.action_id));
    let of = |target: &str| all.iter().filter(|action| action.intent.target == target).cloned().collect::<Vec<_>>();
    for short in [false, true] {
        if short {
            wire.shorten_pages();
        }
        wire.take_calls();
        assert_eq!(listed(&store, None, 100).await.len(), 7);
        for limit in [1, 2, 100] {
            for target in ["tee", "cap", "mug"] {
                assert_eq!(listed(&store, Some(target), limit).await, of(target), "{target} by {limit}");
            }
            // The index knows no order within a millisecond.
            let mut found = listed(&store, None, limit).await;
            assert!(found.is_sorted_by(|newer, older| newer.created_at >= older.created_at), "by {limit}");
            found.sort_by(|a, b| b.action_id.cmp(&a.action_id));
            assert_eq!(found, all, "by {limit}");
        }
        assert!(calls(&wire, "Scan").is_empty());
    }
}

#[tokio::test]
async fn neither_list_shows_what_is_in_the_other() {
    let (_, one, _) = shop(product("tee", 2, 1)).await;
    let held = hold(&one, "alice", 1, NOW).await;
    let begun =
        one.begin_action(intent("release_reservation", held.reservation_id.as_str()), NOW, soon()).await.unwrap();
    let search = Search::default();
    let reservations = one.reservations(&search, NOW, 10, None, soon()).await.unwrap();
    assert_eq!(reservations.items, [held]);
    assert_eq!(listed(&one, None, 10).await, [begun]);
    assert_eq!(one.products(10, None, soon()).await.unwrap().items.len(), 1);
    // Nor does a cursor of one work in the other.
    for _ in 0..2 {
        one.begin_action(intent("release_reservation", "x"), NOW, soon()).await.unwrap();
    }
    hold(&one, "bob", 1, NOW).await;
    let theirs = one.reservations(&search, NOW, 1, None, soon()).await.unwrap().next;
    let of_all = one.actions(None, 1, None, soon()).await.unwrap().next;
    let of_one = one.actions(Some("x"), 1, None, soon()).await.unwrap().next;
    assert!(theirs.is_some() && of_all.is_some() && of_one.is_some());
    let wrong = |error: Error| matches!(error, Error::Invalid(invalid) if invalid.field == "cursor");
    for (target, cursor) in
        [(None, &theirs), (Some("x"), &theirs), (None, &of_one), (Some("x"), &of_all), (Some("y"), &of_one)]
    {
        assert!(wrong(one.actions(target, 1, cursor.clone(), soon()).await.unwrap_err()), "{target:?}");
    }
    for cursor in [of_all, of_one] {
        assert!(wrong(one.reservations(&search, NOW, 1, cursor, soon()).await.unwrap_err()));
    }
}

#[tokio::test]
async fn a_cancelled_hold_says_when() {
    let (_, one, two) = shop(product("tee", 2, 1)).await;
    let held = hold(&one, "alice", 1, NOW).await;
    let at = NOW.plus_seconds(7);
    let cancelled = one.cancel(&held.reservation_id, &held.customer, at, soon()).await.unwrap();
    assert_eq!((cancelled.cancelled_at, &cancelled.cancellation), (Some(at), &None));
    // Repeated, the first time stays.
    let again = two.cancel(&held.reservation_id, &held.customer, at.plus_seconds(1), soon()).await.unwrap();
    assert_eq!(again, cancelled);
    let unknown = hold(&one, "bob", 1, NOW).await;
    assert_eq!(
        refusal(one.cancel(&unknown.reservation_id, &held.customer, at, soon()).await),
        Refusal::ReservationNotFound
    );
}
