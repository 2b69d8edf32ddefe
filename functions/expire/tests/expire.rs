//! The function `expire` over the real SDK: the clock decides, not the event.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use expire::{App, Released, handle};
use holdfast_domain::{FailedConfirmation, FailedState, Status, Timestamp};
use holdfast_store::{Error, Layout};
use holdfast_testkit::event::{event, names};
use holdfast_testkit::fixtures::{
    FAILED, NOW, TestClock, basket, books, confirmation, payment, product, queues, reserve, soon, stocked, store, table,
};
use holdfast_testkit::log::Log;
use holdfast_testkit::wire::{Call, Fault, Wire};
use serde_json::{Value, json};
use tokio::time::Instant;

/// After the end of a hold that was created at `NOW`.
const LATE: Timestamp = NOW.plus_seconds(600);
const NOTHING: Released = Released { holds: 0, units: 0, complete: true };

/// Three holds of two units each at `NOW`, one of them an order, and one hold that is made 300 s later.
async fn shop() -> (Wire, TestClock, App) {
    let (wire, hands) = (table(), TestClock::new());
    stocked(&wire, &[product("tee-black", 20, 2)]).await;
    let store = store(&wire, 1);
    for (key, at) in [("a", NOW), ("b", NOW), ("paid", NOW), ("later", NOW.plus_seconds(300))] {
        reserve(&store, &basket("alice", key, &[("tee-black", 2)]), at).await.unwrap();
    }
    let paid = basket("alice", "paid", &[("tee-black", 2)]);
    store.confirm(&confirmation(&paid.reservation_id, &paid.customer, None, NOW), NOW, soon()).await.unwrap();
    let app = App { store, failed: queues(&wire).failed().clone(), clock: hands.clock(), moves_products: true };
    (wire, hands, app)
}

async fn where_they_are(wire: &Wire) -> (u64, u64, u64) {
    let tee = books(wire).await["tee-black"];
    (tee.available, tee.held, tee.sold)
}

/// A product of layout 1.
async fn create_as_before(wire: &Wire, id: &str) {
    let earlier = store(wire, 8).with_layout(Layout::One);
    earlier.create_product(&product(id, 3, 1), "admin", NOW, soon()).await.unwrap();
}

#[tokio::test]
async fn any_event_releases_exactly_what_is_overdue() {
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
        // Early: the schedule does not decide.
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
    let other = App {
        store: store(&wire, 2),
        failed: queues(&wire).failed().clone(),
        clock: hands.clock(),
        moves_products: true,
    };
    hands.set(LATE);
    let sweep = event("expire/sweep");
    let (one, two) = tokio::join!(handle(&app, &sweep), handle(&other, &sweep));
    assert_eq!(one.unwrap().units + two.unwrap().units, 4);
    assert_eq!(where_they_are(&wire).await, (16, 2, 2));
}

#[tokio::test(start_paused = true)]
async fn while_the_table_is_away_the_call_fails_and_scheduler_retries() {
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
            wire.clear_faults();
            handle(&app, &event("expire/slot")).await.unwrap();
            assert_eq!(where_they_are(&wire).await, (16, 2, 2), "{operation:?} {fault:?}");
            let a = basket("alice", "a", &[("tee-black", 2)]);
            let a = app.store.reservation(&a.reservation_id, &a.customer, soon()).await.unwrap();
            assert_eq!(a.status, Status::Expired);
        }
    }
}

/// A confirmation in the dead-letter queue after its last attempt.
fn dead_letter(wire: &Wire) -> String {
    let body = json!({
        "reservation_id": basket("alice", "a", &[("tee-black", 2)]).reservation_id, "customer": "alice",
        "payment_reference": "pay_1", "requested_at_ms": NOW.as_millis(),
    });
    wire.send_message(FAILED, &body.to_string());
    body.to_string()
}

async fn open(app: &App) -> Vec<FailedConfirmation> {
    app.store.failed_confirmations(Some(FailedState::Open), 100, None, NOW, soon()).await.unwrap().items
}

#[tokio::test]
async fn a_sweep_ingests_failed_confirmations_after_the_release() {
    for name in ["sweep", "slot"] {
        let (wire, hands, app) = shop().await;
        dead_letter(&wire);
        wire.send_message(FAILED, "not JSON");
        hands.set(LATE);
        wire.take_calls();
        assert_eq!(handle(&app, &event(&format!("expire/{name}"))).await.unwrap().holds, 2);
        let calls: Vec<String> = wire.take_calls().into_iter().map(|call| call.operation).collect();
        let first = calls.iter().position(|operation| operation == "ReceiveMessage");
        if name == "slot" {
            // Slots may end every second, and the sweep comes every minute.
            assert_eq!((first, wire.messages(FAILED).len()), (None, 2));
            continue;
        }
        let released = calls.iter().rposition(|operation| operation == "TransactWriteItems").unwrap();
        assert!(first.unwrap() > released, "{calls:?}");
        assert!(wire.messages(FAILED).is_empty());
        let open = open(&app).await;
        assert_eq!(open.len(), 2);
        assert!(
            open.iter()
                .any(|failed| failed.payment_reference == Some(payment("pay_1")) && failed.reason == "not_confirmed"),
            "{open:?}"
        );
        assert!(open.iter().any(|failed| failed.body == "not JSON" && failed.reason == "unreadable"), "{open:?}");
    }
}

#[tokio::test]
async fn a_sweep_is_measured_with_what_it_released_and_what_is_open() {
    let log = Log::capture();
    let (wire, hands, app) = shop().await;
    dead_letter(&wire);
    wire.send_message(FAILED, "not JSON");
    // No other test has this delay.
    hands.set(LATE.plus_seconds(77));
    create_as_before(&wire, "mug").await;
    handle(&app, &event("expire/sweep")).await.unwrap();
    assert!(log.lines().iter().any(|line| line["message"] == "products moved" && line["products"] == 1));
    let measured = log.measured();
    let has = |metric: &str, numbers: &[u64]| {
        measured.iter().any(|(name, label, noted)| (name.as_str(), label.as_str()) == (metric, "") && noted == numbers)
    };
    assert!(has("release_lag", &[77_000, 77_000]), "{measured:?}");
    assert!(has("expired", &[2]) && has("sweeps", &[1]) && has("open_failed_confirmations", &[2]), "{measured:?}");
    log.has_measured(&[("call_latency", "ReceiveMessage")]);
}

#[tokio::test(start_paused = true)]
async fn holds_are_released_and_messages_kept_with_any_failure_of_the_queue() {
    const SQS: [&[&str]; 3] = [&["ReceiveMessage"], &["DeleteMessage"], &["ReceiveMessage", "DeleteMessage"]];
    for operations in SQS {
        for fault in [Fault::LostBefore, Fault::ServerError, Fault::AccessDenied, Fault::Silence] {
            let (wire, hands, app) = shop().await;
            let body = dead_letter(&wire);
            hands.set(LATE);
            wire.fail_all(operations, fault);
            let started = Instant::now();
            let released = Released { holds: 2, units: 4, complete: true };
            assert_eq!(handle(&app, &event("expire/sweep")).await.unwrap(), released, "{operations:?} {fault:?}");
            // The function's timeout in template.yaml is 30 s.
            assert!(started.elapsed().as_secs() < 28, "{operations:?} {fault:?}: {:?}", started.elapsed());
            assert_eq!(wire.messages(FAILED), [body], "{operations:?} {fault:?}");
            // The next sweep does it.
            wire.clear_faults();
            wire.show_messages();
            handle(&app, &event("expire/sweep")).await.unwrap();
            assert!(wire.messages(FAILED).is_empty(), "{operations:?} {fault:?}");
            assert_eq!(open(&app).await.len(), 1, "{operations:?} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_release_is_reported_and_does_not_block_the_queue() {
    let (wire, hands, app) = shop().await;
    dead_letter(&wire);
    hands.set(LATE);
    wire.fail_all(&["Query"], Fault::Silence);
    let started = Instant::now();
    assert!(handle(&app, &event("expire/sweep")).await.is_err());
    assert!(started.elapsed().as_secs() < 28, "{:?}", started.elapsed());
    wire.clear_faults();
    assert!(wire.messages(FAILED).is_empty());
    assert_eq!(open(&app).await.len(), 1);
}

#[tokio::test]
async fn a_sweep_moves_products_in_the_end_and_only_a_sweep_does() {
    let (wire, hands, app) = shop().await;
    create_as_before(&wire, "mug-moved").await;
    hands.set(LATE);
    let moves = |wire: &Wire| {
        let keys: Vec<Vec<String>> = wire.take_calls().iter().map(Call::transaction_keys).collect();
        keys.iter().position(|keys| *keys == ["CATALOG", "PRODUCT#mug-moved"]).map(|at| at + 1 == keys.len())
    };
    wire.take_calls();
    handle(&app, &event("expire/slot")).await.unwrap();
    assert_eq!(moves(&wire), None);
    handle(&app, &event("expire/sweep")).await.unwrap();
    assert_eq!(moves(&wire), Some(true), "last of all");
    handle(&app, &event("expire/sweep")).await.unwrap();
    assert_eq!(moves(&wire), None);
    assert_eq!(books(&wire).await["mug-moved"].total, 3);
}

#[tokio::test]
async fn a_product_that_cannot_be_moved_holds_up_nothing() {
    let (wire, hands, app) = shop().await;
    create_as_before(&wire, "mug").await;
    hands.set(LATE);
    wire.script(|call| (call.transaction_keys() == ["CATALOG", "PRODUCT#mug"]).then_some(Fault::AccessDenied));
    assert_eq!(handle(&app, &event("expire/sweep")).await.unwrap().holds, 2);
    wire.clear_faults();
    handle(&app, &event("expire/sweep")).await.unwrap();
    assert_eq!(app.store.move_products(soon()).await.unwrap(), 0, "the next sweep has moved it");
}
