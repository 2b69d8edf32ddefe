//! Audits: of one product by keys and indexes, and of the whole table.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::audit::{Compensation, Kind};
use holdfast_domain::{OrderCancellation, Reservation};
use holdfast_store::keys::Key;
use holdfast_store::{Audited, Deadline, LastAudit, Store, TableAudit, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, client, customer, limited, product, product_id, reserve, soon, store,
};
use holdfast_testkit::wire::{Fault, Wire};

use crate::{LATE, hold, pay, shop};

async fn audit(store: &Store) -> Audited {
    store.audit(&product_id("tee"), soon()).await.unwrap()
}

/// What an audit of the whole table says after two looks: kind, place, what is expected and found.
async fn whole(store: &Store) -> Vec<(Kind, String, String, String)> {
    let audit = twice(store).await;
    assert!(audit.is_final());
    let found = audit.products().flat_map(|audit| audit.verdict().unwrap().findings);
    found.map(|one| (one.kind, one.place, one.expected, one.found)).collect()
}

/// Ten units on two shards: a hold of two, an order of three, and reservations that have ended in each way.
async fn busy() -> (Wire, Store, Reservation, Reservation) {
    let (wire, store, _) = shop(limited(product("tee", 10, 2), 5)).await;
    let held = hold(&store, "alice", 2, LATE).await;
    let order = hold(&store, "bob", 3, NOW).await;
    pay(&store, &order, "pay_1", NOW).await.unwrap();
    let cancelled = hold(&store, "carol", 1, NOW).await;
    store.cancel(&cancelled.reservation_id, &cancelled.customer, NOW, soon()).await.unwrap();
    hold(&store, "dora", 1, NOW).await;
    store.release_overdue(LATE, soon()).await.unwrap();
    // One that is handed on, paid late, and written off.
    let guest = hold(&store, "guest:1", 1, NOW).await;
    store.transfer(&guest.reservation_id, &guest.customer, &customer("erin"), NOW, soon()).await.unwrap();
    store.release_overdue(LATE, soon()).await.unwrap();
    let erins = Reservation { customer: customer("erin"), ..guest };
    pay(&store, &erins, "pay_2", LATE).await.unwrap();
    let (order_id, reason, actor) = (erins.reservation_id, "broken".to_owned(), "root".to_owned());
    let command = OrderCancellation { order_id, customer: None, reason, restock: false, actor };
    store.cancel_order(&command, LATE, soon()).await.unwrap();
    (wire, store, held, order)
}

/// Changes a number of an item behind the functions' back.
async fn add(wire: &Wire, key: &Key, name: &str, delta: i64) {
    let request = client(wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    let request = request.update_expression("ADD #name :delta").expression_attribute_names("#name", name);
    request.expression_attribute_values(":delta", AttributeValue::N(delta.to_string())).send().await.unwrap();
}

async fn delete(wire: &Wire, key: &Key) {
    client(wire).delete_item().table_name(TABLE).set_key(Some(key.item())).send().await.unwrap();
}

#[tokio::test]
async fn the_books_of_every_kind_of_reservation_are_consistent() {
    let (wire, store, ..) = busy().await;
    wire.take_calls();
    let Audited { verdict, complete } = audit(&store).await;
    assert!(complete && verdict.is_final() && verdict.findings.is_empty(), "{verdict:?}");
    assert_eq!((verdict.total, verdict.available, verdict.held, verdict.sold), (9, 4, 2, 3));
    assert_eq!((verdict.ledger_total, verdict.reservations), (9, 5));
    let operations: Vec<_> = wire.take_calls().into_iter().map(|call| call.operation).collect();
    let reads = ["GetItem", "BatchGetItem", "Query", "Scan", "TransactGetItems"];
    assert!(operations.iter().all(|operation| reads.contains(&operation.as_str())), "{operations:?}");
    assert_eq!(whole(&store).await, []);
    wire.shorten_pages();
    assert!(audit(&store).await.verdict.is_final());
}

#[tokio::test(start_paused = true)]
async fn what_is_planted_is_named() {
    let (tee, first) = (product_id("tee"), keys::shard(&product_id("tee"), 0));
    let alice = keys::limit(&tee, &customer("alice"));
    let plant = async |wire: &Wire, n: usize, held: &Reservation, order: &Reservation| -> Vec<(Kind, String)> {
        let reservation = keys::reservation(&held.reservation_id);
        let (units, id) = ((Kind::Units, "tee".to_owned()), held.reservation_id.to_string());
        match n {
            0 => add(wire, &first, "available", -1).await,
            1 => {
                delete(wire, &first).await;
                return vec![units, (Kind::Shard, "0".to_owned())];
            }
            2 => add(wire, &first, "available", 2).await,
            3 => add(wire, &keys::product(&tee), "total", 1).await,
            4 | 5 => {
                add(wire, &alice, "units", if n == 4 { 1 } else { -1 }).await;
                return vec![(Kind::Limit, "alice".to_owned())];
            }
            6 => delete(wire, &keys::reservation(&order.reservation_id)).await,
            7 => {
                let request = client(wire).update_item().table_name(TABLE).set_key(Some(reservation.item()));
                request.update_expression("REMOVE due_key, due_at").send().await.unwrap();
                return vec![(Kind::Reservation, id)];
            }
            8 => {
                add(wire, &reservation, "due_at", 1).await;
                return vec![(Kind::Reservation, id)];
            }
            _ => {
                add(wire, &keys::shard(&tee, 2), "available", 1).await;
                return vec![(Kind::Shard, "2".to_owned())];
            }
        }
        if n == 3 { vec![units, (Kind::Ledger, "tee".to_owned())] } else { vec![units] }
    };
    for n in 0..10 {
        let (wire, store, held, order) = busy().await;
        let mut expected = plant(&wire, n, &held, &order).await;
        let Audited { verdict, complete } = audit(&store).await;
        assert!(complete && verdict.is_final(), "{n}: {verdict:?}");
        let places = |found: &holdfast_domain::audit::Finding| (found.kind, found.place.clone());
        assert_eq!(verdict.findings.iter().map(places).collect::<Vec<_>>(), expected, "{n}");
        if n == 6 {
            // Nothing but the limit knows that Bob had an order, and no index shows it.
            expected.push((Kind::Limit, "bob".to_owned()));
        }
        let found: Vec<_> = whole(&store).await.into_iter().map(|(kind, place, ..)| (kind, place)).collect();
        assert_eq!(found, expected, "{n}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_ledger_is_followed_entry_by_entry() {
    let (wire, store, ..) = busy().await;
    let tee = product_id("tee");
    let entries = store.ledger(&tee, 10, None, soon()).await.unwrap().items;
    let last = keys::ledger(&tee, &entries[0].entry_id);
    add(&wire, &last, "total_after", 1).await;
    let wrong = [(Kind::Ledger, entries[0].entry_id.clone(), "9".to_owned(), "10".to_owned())];
    assert_eq!(whole(&store).await, wrong);
    delete(&wire, &last).await;
    let missing = [(Kind::Ledger, "tee".to_owned(), "9".to_owned(), "10".to_owned())];
    assert_eq!(whole(&store).await, missing);
}

#[tokio::test(start_paused = true)]
async fn what_belongs_to_no_product_is_found_in_the_table() {
    let (wire, store, ..) = busy().await;
    let ghost = product_id("ghost");
    add(&wire, &keys::shard(&ghost, 3), "available", 7).await;
    add(&wire, &keys::limit(&ghost, &customer("zoe")), "units", 2).await;
    add(&wire, &keys::limit(&product_id("tee"), &customer("zoe")), "units", 1).await;
    let found: Vec<_> = whole(&store).await.into_iter().map(|(kind, place, ..)| (kind, place)).collect();
    let named = |kind, place: &str| (kind, place.to_owned());
    assert_eq!(found, [named(Kind::Limit, "zoe"), named(Kind::Shard, "3"), named(Kind::Limit, "zoe")]);
}

#[tokio::test(start_paused = true)]
async fn a_change_during_an_audit_is_no_drift() {
    // Before each read of the audit, in turn, somebody reserves and somebody pays.
    for turn in (0..40).step_by(3) {
        let (wire, store, held, _) = busy().await;
        let other = self::store(&wire, 9);
        let (mut calls, audited) = (0, async { self::audit(&store).await });
        let gate = wire.gate(move |_| {
            calls += 1;
            calls > turn
        });
        let meanwhile = async {
            let waiting = tokio::time::timeout(Duration::from_secs(7), gate.arrived()).await;
            if waiting.is_ok() {
                reserve(&other, &basket("finn", "k", &[("tee", 2)]), LATE).await.unwrap();
                pay(&other, &held, "pay_3", LATE).await.unwrap();
                gate.open();
            }
        };
        let (Audited { verdict, complete }, ()) = tokio::join!(audited, meanwhile);
        assert!(complete && verdict.findings.is_empty() && verdict.is_final(), "{turn}: {verdict:?}");
    }
}

#[tokio::test]
async fn drift_is_not_hidden_by_an_audit_that_is_later_by_its_clock_only() {
    let (_, shop, _) = shop(product("tee", 5, 1)).await;
    let record = async |seconds, consistent| {
        let audited_at = NOW.plus_seconds(seconds);
        let audit = LastAudit { product_id: product_id("tee"), audited_at, actor: "auditor".to_owned(), consistent };
        shop.record_audit(&audit, soon()).await.unwrap();
        shop.last_audits([&product_id("tee")].into_iter(), soon()).await.unwrap()[&product_id("tee")].consistent
    };
    assert!(record(20, true).await);
    // Before the clocks may differ so much, it is the older one.
    assert!(record(9, false).await);
    assert!(!record(10, false).await);
    assert!(!record(9, true).await);
    assert!(record(11, true).await);
}

#[tokio::test(start_paused = true)]
async fn an_audit_without_time_says_so() {
    let (wire, store, ..) = busy().await;
    wire.fail_all(&["BatchGetItem"], Fault::Throttled);
    let audited = store.audit(&product_id("tee"), Deadline::after(Duration::from_secs(3))).await;
    // Even the shards that should not be there cannot be read.
    assert!(audited.is_err());
    let mut reads = 0;
    wire.script(move |call| {
        reads += usize::from(call.operation == "BatchGetItem");
        (call.operation == "BatchGetItem" && reads > 1).then_some(Fault::Throttled)
    });
    let Audited { verdict, complete } =
        store.audit(&product_id("tee"), Deadline::after(Duration::from_secs(3))).await.unwrap();
    assert!(!complete && verdict.in_progress && verdict.findings.is_empty());
    assert_eq!((verdict.total, verdict.available, verdict.ledger_total), (9, 4, 9));
}

#[tokio::test(start_paused = true)]
async fn a_compensation_is_written_once_and_only_for_the_total_that_was_seen() {
    let (wire, store, ..) = busy().await;
    let tee = product_id("tee");
    add(&wire, &keys::shard(&tee, 0), "available", -1).await;
    let mut audit = TableAudit::new(Some(tee.clone()));
    for _ in 0..2 {
        store.scan_for(&mut audit, soon()).await.unwrap();
        store.look_for(&mut audit, soon()).await.unwrap();
        store.scan_for(&mut audit, soon()).await.unwrap();
    }
    let compensation = audit.products().next().unwrap().compensation().unwrap().unwrap();
    assert_eq!((compensation.total_seen, compensation.total_after, compensation.delta), (9, 8, -1));
    let write = async || compensate(&store, compensation, 1).await;
    // Also if the answer is lost.
    wire.fail("TransactWriteItems", 1, Fault::LostAfter);
    assert!(write().await);
    assert!(write().await, "the same at the same time is the same");
    let entries = store.ledger(&tee, 10, None, soon()).await.unwrap().items;
    assert_eq!((entries.len(), entries[0].delta, entries[0].reason.as_str()), (3, -1, "audit: compensates drift"));
    assert_eq!(whole(&store).await, []);
    assert!(!compensate(&store, compensation, 2).await, "another total");
}

/// The audit of a whole table after two looks.
async fn twice(store: &Store) -> TableAudit {
    let mut audit = TableAudit::new(None);
    for _ in 0..2 {
        store.scan_for(&mut audit, soon()).await.unwrap();
        store.look_for(&mut audit, soon()).await.unwrap();
        store.scan_for(&mut audit, soon()).await.unwrap();
    }
    audit
}

#[tokio::test(start_paused = true)]
async fn two_runs_compensate_a_missing_entry_once() {
    let (wire, store, ..) = busy().await;
    let tee = product_id("tee");
    let entries = store.ledger(&tee, 10, None, soon()).await.unwrap().items;
    delete(&wire, &keys::ledger(&tee, &entries[0].entry_id)).await;
    let audit = twice(&store).await;
    let found = audit.compensation(audit.products().next().unwrap()).unwrap().unwrap();
    // The total stays as it is.
    assert_eq!((found.delta, found.total_seen, found.total_after), (-1, 9, 9));
    let other = self::store(&wire, 9);
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let second = async {
        gate.arrived().await;
        let written = compensate(&other, found, 2).await;
        gate.open();
        written
    };
    assert_eq!(tokio::join!(compensate(&store, found, 1), second), (false, true));
    assert!(!compensate(&store, found, 3).await, "the ledger is another");
    assert_eq!(whole(&store).await, []);
    delete(&wire, &keys::product(&tee)).await;
    assert!(!compensate(&store, found, 4).await, "nor without a product");
}

async fn compensate(store: &Store, found: Compensation, seconds: i64) -> bool {
    let now = LATE.plus_seconds(seconds);
    // Boxed: unoptimised, several of these futures are too large for a test's stack.
    Box::pin(store.compensate(&product_id("tee"), found, "auditor", now, soon())).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn nothing_is_compensated_while_a_reservation_cannot_be_read() {
    let (wire, store, held, _) = busy().await;
    let key = keys::reservation(&held.reservation_id);
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    request.update_expression("REMOVE expires_at").send().await.unwrap();
    let audit = twice(&store).await;
    assert_eq!(audit.unreadable().len(), 1);
    let tee = audit.products().next().unwrap();
    assert!(!tee.verdict().unwrap().findings.is_empty());
    assert!(audit.compensation(tee).unwrap_err().contains("read"));
}

#[tokio::test(start_paused = true)]
async fn a_reservation_from_before_the_index_is_right() {
    let (wire, store, _, order) = busy().await;
    let key = keys::reservation(&order.reservation_id);
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    request.update_expression("REMOVE made_key").send().await.unwrap();
    assert_eq!(whole(&store).await, []);
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    let request = request.update_expression("SET made_key = :wrong");
    request.expression_attribute_values(":wrong", AttributeValue::S("MADE#x".to_owned())).send().await.unwrap();
    assert_eq!(whole(&store).await.len(), 1);
}
