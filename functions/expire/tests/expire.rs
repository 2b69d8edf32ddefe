//! The function `expire` over the real SDK: whatever the event says, the clock decides.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use expire::{App, Released, handle};
use holdfast_domain::{Status, Timestamp};
use holdfast_store::Error;
use holdfast_testkit::event::{event, names};
use holdfast_testkit::fixtures::{Hands, NOW, basket, books, product, queues, reserve, soon, stocked, store, table};
use holdfast_testkit::wire::{Fault, Wire};
use serde_json::{Value, json};

/// When a hold made at `NOW` is over.
const LATE: Timestamp = NOW.plus_seconds(600);
const NOTHING: Released = Released { holds: 0, units: 0, complete: true };

/// Three holds of two units each at `NOW`, one of them an order, and one hold that is made 300 s later.
async fn shop() -> (Wire, Hands, App) {
    let (wire, hands) = (table().await, Hands::new());
    stocked(&wire, &[product("tee-black", 20, 2)]).await;
    let store = store(&wire, 1);
    for (key, at) in [("a", NOW), ("b", NOW), ("paid", NOW), ("later", NOW.plus_seconds(300))] {
        reserve(&store, &basket("alice", key, &[("tee-black", 2)]), at).await.unwrap();
    }
    let paid = basket("alice", "paid", &[("tee-black", 2)]);
    store.confirm(&paid.reservation_id, &paid.customer, None, NOW, NOW, soon()).await.unwrap();
    let app = App { store, failed: queues(&wire).failed().clone(), clock: hands.clock() };
    (wire, hands, app)
}

async fn where_they_are(wire: &Wire) -> (u64, u64, u64) {
    let tee = books(wire).await["tee-black"];
    (tee.available, tee.held, tee.sold)
}

#[tokio::test]
async fn whatever_the_event_says_what_is_overdue_is_released_and_nothing_else() {
    let files = names("expire");
    assert_eq!(files, ["slot", "sweep"]);
    let mut events: Vec<Value> = files.iter().map(|name| event(&format!("expire/{name}"))).collect();
    events.extend([
        json!({}),
        json!([]),
        json!("sweep"),
        json!(null),
        json!({ "kind": "slot" }),
        json!({ "kind": "slot", "slot": -1 }),
        json!({ "kind": "slot", "slot": "1763700600" }),
        json!({ "kind": "another", "holds": ["HOLD#1"] }),
    ]);
    for event in events {
        let (wire, hands, app) = shop().await;
        // Early: a reminder reminds, it does not decide.
        assert_eq!(handle(&app, &event).await.unwrap(), NOTHING, "{event}");
        hands.set(Timestamp::from_millis(LATE.as_millis() - 1));
        assert_eq!(handle(&app, &event).await.unwrap(), NOTHING, "{event}");
        assert_eq!(where_they_are(&wire).await, (12, 6, 2), "{event}");

        hands.set(LATE);
        let released = Released { holds: 2, units: 4, complete: true };
        assert_eq!(handle(&app, &event).await.unwrap(), released, "{event}");
        // Twice, and late.
        assert_eq!(handle(&app, &event).await.unwrap(), NOTHING, "{event}");
        assert_eq!(where_they_are(&wire).await, (16, 2, 2), "{event}");
        hands.set(NOW.plus_seconds(100_000));
        assert_eq!(handle(&app, &event).await.unwrap().holds, 1, "{event}");
        assert_eq!(where_they_are(&wire).await, (18, 0, 2), "{event}");
    }
}

#[tokio::test]
async fn two_at_once_release_once() {
    let (wire, hands, app) = shop().await;
    let other = App { store: store(&wire, 2), failed: queues(&wire).failed().clone(), clock: hands.clock() };
    hands.set(LATE);
    let sweep = event("expire/sweep");
    let (one, two) = tokio::join!(handle(&app, &sweep), handle(&other, &sweep));
    assert_eq!(one.unwrap().units + two.unwrap().units, 4);
    assert_eq!(where_they_are(&wire).await, (16, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn while_the_table_is_away_the_call_fails_so_that_scheduler_calls_again() {
    for operation in [&["Query"], &["TransactWriteItems"]] {
        for fault in [Fault::LostBefore, Fault::LostAfter, Fault::Throttled, Fault::AccessDenied] {
            let (wire, hands, app) = shop().await;
            hands.set(LATE);
            wire.fail_all(operation, fault);
            let failed = handle(&app, &event("expire/slot")).await;
            assert!(
                matches!(failed, Err(Error::Unavailable { .. } | Error::Internal { .. })),
                "{operation:?} {fault:?}"
            );
            wire.mend();
            handle(&app, &event("expire/slot")).await.unwrap();
            assert_eq!(where_they_are(&wire).await, (16, 2, 2), "{operation:?} {fault:?}");
            let a = basket("alice", "a", &[("tee-black", 2)]);
            let a = app.store.reservation(&a.reservation_id, &a.customer, soon()).await.unwrap();
            assert_eq!(a.status, Status::Expired);
        }
    }
}
