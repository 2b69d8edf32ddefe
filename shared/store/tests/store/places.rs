//! Where the item of a product is: in both layouts, and while it is moved. (Every command meets a move, hence the length.)

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join;
use holdfast_domain::audit::Compensation;
use holdfast_domain::{Adjustment, IdempotencyKey, OrderCancellation, Product, ProductChange, Refusal, Reservation};
use holdfast_store::{Deadline, Error, Layout, Store, TableAudit, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, limited, product, product_id, reserve, soon, store, table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};
use serde_json::{Value, json};

use crate::{LATE, hold, pay, refusal};

/// All items whose partition key begins like this, by their keys.
async fn items(wire: &Wire, prefix: &str) -> BTreeMap<(String, String), Value> {
    let mut scan = client(wire).scan().table_name(TABLE).consistent_read(true).into_paginator().items().send();
    let mut found = BTreeMap::new();
    while let Some(item) = scan.next().await {
        let item: Value = serde_dynamo::from_item(item.unwrap()).unwrap();
        let key = ["pk", "sk"].map(|name| item[name].as_str().unwrap().to_owned());
        if key[0].starts_with(prefix) {
            found.insert(key.into(), item);
        }
    }
    found
}

/// A table, and an environment of each layout.
fn both() -> (Wire, Store, Store) {
    let wire = table();
    let (one, two) = (store(&wire, 1).with_layout(Layout::One), store(&wire, 2).with_layout(Layout::Two));
    (wire, one, two)
}

async fn create(store: &Store, product: &Product) {
    store.create_product(product, "admin", NOW, soon()).await.unwrap();
}

/// The same with ten tees on two shards, created in layout 1.
async fn unmoved() -> (Wire, Store, Store) {
    let (wire, one, two) = both();
    create(&one, &limited(product("tee", 10, 2), 5)).await;
    wire.take_calls();
    (wire, one, two)
}

async fn moved(store: &Store) -> u64 {
    store.move_products(soon()).await.unwrap()
}

fn operations(wire: &Wire) -> Vec<String> {
    wire.take_calls().into_iter().map(|call| call.operation).collect()
}

fn adjustment(id: &str, delta: i64, key: &str) -> Adjustment {
    Adjustment {
        product_id: product_id(id),
        delta,
        reason: "counted".to_owned(),
        reference: None,
        expected_total: None,
        actor: "admin".to_owned(),
        key: IdempotencyKey::try_from(key).unwrap(),
    }
}

async fn adjust(store: &Store, delta: i64, key: &str) -> u64 {
    store.adjust(&adjustment("tee", delta, key), NOW, soon()).await.unwrap().entry.total_after
}

fn price(price_minor: u64) -> ProductChange {
    ProductChange { price_minor: Some(price_minor), ..ProductChange::default() }
}

/// Whether a call moves a product.
fn moves(call: &Call) -> bool {
    call.operation == "TransactWriteItems" && call.transaction_keys() == ["CATALOG", "PRODUCT#tee"]
}

#[tokio::test]
async fn a_product_has_a_key_of_its_own_and_an_entry_in_the_directory() {
    let (wire, one, two) = both();
    create(&two, &product("tee", 3, 1)).await;
    let mut item = json!({
        "pk": "PRODUCT#tee", "sk": "PRODUCT", "product_id": "tee", "name": "Product tee", "price_minor": 2_500,
        "currency": "EUR", "total": 3, "shards": 1, "hold_seconds": 600, "late_payment_seconds": 86_400,
        "status": "on_sale", "version": 1,
    });
    let entry = json!({ "pk": "CATALOG", "sk": "PRODUCT#tee", "product_id": "tee" });
    assert_eq!(items(&wire, "PRODUCT#").await.values().collect::<Vec<_>>(), [&item]);
    assert_eq!(items(&wire, "CATALOG").await.values().collect::<Vec<_>>(), [&entry]);

    // In layout 1 it is what earlier versions read: one item, in the directory.
    create(&one, &product("cap", 3, 1)).await;
    for (name, value) in [("pk", "CATALOG"), ("sk", "PRODUCT#cap"), ("product_id", "cap"), ("name", "Product cap")] {
        item[name] = value.into();
    }
    assert_eq!(items(&wire, "PRODUCT#").await.len(), 1);
    assert_eq!(items(&wire, "CATALOG").await.into_values().next().unwrap(), item);
}

#[tokio::test]
async fn an_id_is_unique_in_both_layouts() {
    let (wire, one, two) = both();
    create(&one, &product("cap", 3, 1)).await;
    create(&two, &product("tee", 3, 1)).await;
    for store in [&one, &two] {
        for id in ["cap", "tee"] {
            let again = store.create_product(&product(id, 9, 2), "admin", NOW, soon()).await;
            assert_eq!(refusal(again), Refusal::ProductExists { product_id: product_id(id) });
        }
    }
    // Also while both are created.
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let mug = product("mug", 3, 1);
    let late = async {
        gate.arrived().await;
        create(&two, &mug).await;
        gate.open();
    };
    let (exists, ()) = join(one.create_product(&mug, "another", NOW, soon()), late).await;
    assert_eq!(refusal(exists), Refusal::ProductExists { product_id: product_id("mug") });
    assert_eq!(books(&wire).await.len(), 3);
}

#[tokio::test(start_paused = true)]
async fn every_product_is_read_and_written_in_either_layout() {
    let (wire, one, two) = both();
    // In turns, so that the lists have both kinds on each page.
    for (id, layout) in [("a", &one), ("b", &two), ("c", &one), ("d", &two), ("e", &one)] {
        create(layout, &limited(product(id, 10, 2), 2)).await;
    }
    for (n, store) in [&one, &two].into_iter().enumerate() {
        let (mut listed, mut cursor) = (Vec::new(), None);
        loop {
            let page = store.products(2, cursor, soon()).await.unwrap();
            assert!(page.items.len() <= 2);
            listed.extend(page.items.into_iter().map(|product| product.product_id.to_string()));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(listed, ["a", "b", "c", "d", "e"]);
        let seen = 1 + n as u64;
        for id in ["a", "b"] {
            let read = store.product(&product_id(id), soon()).await.unwrap();
            assert_eq!((read.product_id.as_str(), read.version), (id, seen));
            let changed = store.change_product(&product_id(id), seen, price(seen), soon()).await.unwrap();
            assert_eq!((changed.version, changed.price_minor), (seen + 1, seen));
            let stale = store.change_product(&product_id(id), seen, price(9), soon()).await;
            assert_eq!(refusal(stale), Refusal::VersionMismatch { current: seen + 1 });
            let more = store.adjust(&adjustment(id, 1, &format!("k{n}")), NOW, soon()).await.unwrap();
            assert_eq!(more.entry.total_after, 11 + n as u64);
            let wrong = Adjustment { expected_total: Some(1), ..adjustment(id, 1, "wrong") };
            let wrong = refusal(store.adjust(&wrong, NOW, soon()).await);
            assert_eq!(wrong, Refusal::VersionMismatch { current: 11 + n as u64 });
            let who = format!("alice-{n}");
            let ask = |key: &str, units| basket(&who, key, &[(id, units)]);
            reserve(store, &ask(&format!("k1-{id}"), 2), NOW).await.unwrap();
            let limit = refusal(reserve(store, &ask(&format!("k2-{id}"), 1), NOW).await);
            assert_eq!(limit, Refusal::CustomerLimitReached { product_id: product_id(id), limit: 2 });
            let audited = Box::pin(store.audit(&product_id(id), soon())).await.unwrap();
            assert!(audited.complete && audited.verdict.is_final() && audited.verdict.findings.is_empty());
            assert_eq!(audited.verdict.total, 11 + n as i64);
        }
        let missing = store.product(&product_id("none"), soon()).await;
        assert_eq!(refusal(missing), Refusal::ProductNotFound { product_id: product_id("none") });
        let missing = refusal(store.adjust(&adjustment("none", 1, "k"), NOW, soon()).await);
        assert_eq!(missing, Refusal::ProductNotFound { product_id: product_id("none") });
    }
    // Each product once.
    let mut audit = TableAudit::new(None);
    for _ in 0..2 {
        two.scan_for(&mut audit, soon()).await.unwrap();
        Box::pin(two.look_for(&mut audit, soon())).await.unwrap();
        two.scan_for(&mut audit, soon()).await.unwrap();
    }
    let audited: Vec<&str> = audit.products().map(|audit| audit.product().as_str()).collect();
    assert_eq!(audited, ["a", "b", "c", "d", "e"]);
    assert!(audit.is_final() && audit.products().all(|audit| audit.verdict().unwrap().findings.is_empty()));
    books(&wire).await;
}

#[tokio::test]
async fn a_reserve_reads_the_directory_only_for_what_is_not_under_its_own_key() {
    let (wire, one, two) = both();
    create(&one, &product("cap", 9, 1)).await;
    create(&two, &product("tee", 9, 1)).await;
    create(&two, &product("mug", 9, 1)).await;
    let calls_of = async |seed: u64, ids: &[&str]| {
        wire.take_calls();
        let lines: Vec<_> = ids.iter().map(|id| (*id, 1)).collect();
        let made = reserve(&store(&wire, seed), &basket("alice", &format!("k{seed}"), &lines), NOW).await;
        let keys: Vec<Vec<String>> = wire.take_calls().iter().map(keys_of).collect();
        (made.is_ok(), keys.into_iter().map(|keys| keys.join(" ")).collect::<Vec<_>>())
    };
    let (made, calls) = calls_of(11, &["tee", "mug"]).await;
    assert!(made && calls[0] == "PRODUCT#mug PRODUCT#tee" && calls.len() == 2, "{calls:?}");
    let (made, calls) = calls_of(12, &["tee", "cap"]).await;
    assert!(made && calls[..2] == ["PRODUCT#cap PRODUCT#tee", "CATALOG PRODUCT#cap"] && calls.len() == 3, "{calls:?}");
    let (made, calls) = calls_of(13, &["none"]).await;
    assert!(!made && calls[..2] == ["PRODUCT#none", "CATALOG PRODUCT#none"], "{calls:?}");
    // Of one product, the same.
    let reader = store(&wire, 14);
    for (id, calls) in [("tee", &["GetItem"][..]), ("cap", &["GetItem", "TransactGetItems"])] {
        reader.product(&product_id(id), soon()).await.unwrap();
        assert_eq!(operations(&wire), calls);
    }
}

#[tokio::test]
async fn a_product_that_is_moved_and_changed_between_two_reads_is_found_as_it_is() {
    let (wire, one, two) = unmoved().await;
    let gate = wire.gate(|call| call.operation == "TransactGetItems");
    // The reader has not found it under its own key.
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        let change = ProductChange { price_minor: Some(9), ..ProductChange::default() };
        two.change_product(&product_id("tee"), 1, change, soon()).await.unwrap();
        gate.open();
    };
    let (id, reader) = (product_id("tee"), store(&wire, 15));
    let (found, ()) = join(reader.product(&id, soon()), meanwhile).await;
    assert_eq!((found.unwrap().price_minor, one.product(&id, soon()).await.unwrap().price_minor), (9, 9));
}

/// The partition keys that a call reads by key or writes, sorted.
fn keys_of(call: &Call) -> Vec<String> {
    let read = call.request["RequestItems"][TABLE]["Keys"].as_array().into_iter().flatten();
    let together = call.request["TransactItems"].as_array().into_iter().flatten().map(|action| &action["Get"]["Key"]);
    let mut keys: Vec<String> =
        read.chain(together).filter_map(|key| key["pk"]["S"].as_str().map(str::to_owned)).collect();
    keys.sort();
    keys
}

#[tokio::test(start_paused = true)]
async fn a_product_is_moved_once_and_is_the_same() {
    let (wire, one, two) = unmoved().await;
    create(&two, &product("mug", 3, 1)).await;
    create(&one, &product("cap", 3, 1)).await;
    // Also with an attribute that this version does not know.
    let request =
        client(&wire).update_item().table_name(TABLE).set_key(Some(keys::directory_entry(&product_id("cap")).item()));
    let known = aws_sdk_dynamodb::types::AttributeValue::S("yes".to_owned());
    request.update_expression("SET later = :yes").expression_attribute_values(":yes", known).send().await.unwrap();
    let before = one.products(10, None, soon()).await.unwrap();
    let items_before = items(&wire, "CATALOG").await;
    assert_eq!(moved(&two).await, 2);
    assert_eq!(one.products(10, None, soon()).await.unwrap(), before);
    let entries: Vec<Value> = items(&wire, "CATALOG").await.into_values().collect();
    let bare = |id: &str| json!({ "pk": "CATALOG", "sk": format!("PRODUCT#{id}"), "product_id": id });
    assert_eq!(entries, ["cap", "mug", "tee"].map(bare));
    for id in ["cap", "tee"] {
        let mut item = items_before[&("CATALOG".to_owned(), format!("PRODUCT#{id}"))].clone();
        (item["pk"], item["sk"]) = (format!("PRODUCT#{id}").into(), "PRODUCT".into());
        assert_eq!(items(&wire, "PRODUCT#").await[&(format!("PRODUCT#{id}"), "PRODUCT".to_owned())], item);
    }
    // One more look, and then none for an hour.
    wire.take_calls();
    assert_eq!((moved(&two).await, operations(&wire)), (0, vec!["Query".to_owned()]));
    create(&one, &product("new", 3, 1)).await;
    wire.take_calls();
    tokio::time::advance(Duration::from_millis(3_599_999)).await;
    assert_eq!((moved(&two).await, operations(&wire)), (0, vec![]));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(moved(&two).await, 1);
    wire.shorten_pages();
    create(&one, &product("newer", 3, 1)).await;
    assert_eq!(moved(&store(&wire, 9)).await, 1, "page by page");
    books(&wire).await;
}

#[tokio::test]
async fn facts_that_were_cached_before_a_move_are_used_after_it() {
    let (wire, one, two) = unmoved().await;
    reserve(&one, &basket("alice", "k1", &[("tee", 1)]), NOW).await.unwrap();
    assert_eq!(moved(&two).await, 1);
    wire.take_calls();
    reserve(&one, &basket("alice", "k2", &[("tee", 1)]), NOW).await.unwrap();
    assert_eq!(operations(&wire), ["TransactWriteItems"]);
}

#[tokio::test]
async fn an_adjustment_or_a_change_during_a_move_is_not_lost() {
    for changes in [false, true] {
        let (wire, one, two) = unmoved().await;
        let gate = wire.gate(moves);
        let meanwhile = async {
            gate.arrived().await;
            if changes {
                one.change_product(&product_id("tee"), 1, price(7), soon()).await.unwrap();
            } else {
                adjust(&one, 5, "k").await;
            }
            gate.open();
        };
        let (count, ()) = join(moved(&two), meanwhile).await;
        assert_eq!(count, 0, "it is another item than was read");
        assert_eq!(moved(&two).await, 1);
        let tee = two.product(&product_id("tee"), soon()).await.unwrap();
        let expected = if changes { (2, 7, 10) } else { (1, 2_500, 15) };
        assert_eq!((tee.version, tee.price_minor, tee.total), expected);
        books(&wire).await;
    }
}

#[tokio::test]
async fn a_move_during_an_adjustment_is_no_failure_of_it() {
    for delta in [5, -5] {
        let (wire, one, two) = unmoved().await;
        let gate = wire.gate(|call| call.operation == "TransactWriteItems");
        let meanwhile = async {
            gate.arrived().await;
            assert_eq!(moved(&two).await, 1);
            gate.open();
        };
        let exact = Adjustment { expected_total: Some(10), ..adjustment("tee", delta, "k") };
        let (adjusted, ()) = join(one.adjust(&exact, NOW, soon()), meanwhile).await;
        let adjusted = adjusted.unwrap();
        assert_eq!((adjusted.entry.total_after, adjusted.replayed), (10_u64.saturating_add_signed(delta), false));
        assert!(two.adjust(&exact, NOW, soon()).await.unwrap().replayed);
        assert_eq!(books(&wire).await["tee"].total, 10_u64.saturating_add_signed(delta));
    }
}

#[tokio::test]
async fn a_move_during_a_change_is_no_other_version() {
    let (wire, one, two) = unmoved().await;
    let gate = wire.gate(|call| call.operation == "UpdateItem");
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        gate.open();
    };
    let (changed, ()) = join(one.change_product(&product_id("tee"), 1, price(7), soon()), meanwhile).await;
    let changed = changed.unwrap();
    assert_eq!((changed.version, changed.price_minor, changed.total), (2, 7, 10));
    assert_eq!(two.product(&product_id("tee"), soon()).await.unwrap(), changed);

    // But a change after the move is one.
    let (wire, one, two) = unmoved().await;
    let gate = wire.gate(|call| call.operation == "UpdateItem");
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        two.change_product(&product_id("tee"), 1, price(8), soon()).await.unwrap();
        gate.open();
    };
    let (changed, ()) = join(one.change_product(&product_id("tee"), 1, price(7), soon()), meanwhile).await;
    assert_eq!(refusal(changed), Refusal::VersionMismatch { current: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_is_recognised_after_a_move() {
    for times in [1, 2, 5] {
        let (wire, one, two) = unmoved().await;
        wire.fail("UpdateItem", times, Fault::LostAfter);
        let mut tries = 0;
        let gate = wire.gate(move |call| {
            tries += usize::from(call.operation == "UpdateItem");
            tries == 2
        });
        let meanwhile = async {
            gate.arrived().await;
            assert_eq!(moved(&two).await, 1);
            gate.open();
        };
        let (changed, ()) = join(one.change_product(&product_id("tee"), 1, price(7), soon()), meanwhile).await;
        let changed = changed.unwrap_or_else(|error| panic!("{times}: {error}"));
        assert_eq!((changed.version, changed.price_minor), (2, 7));
        assert_eq!(two.product(&product_id("tee"), soon()).await.unwrap(), changed);
    }
}

#[tokio::test]
async fn a_late_copy_of_an_earlier_write_changes_nothing() {
    let (wire, one, two) = unmoved().await;
    one.change_product(&product_id("tee"), 1, price(7), soon()).await.unwrap();
    adjust(&one, 5, "k").await;
    assert_eq!(moved(&two).await, 1);
    let calls = wire.take_calls();
    let before = items(&wire, "").await;
    for call in calls.iter().filter(|call| ["UpdateItem", "TransactWriteItems"].contains(&call.operation.as_str())) {
        let mut copy = call.request.clone();
        copy.as_object_mut().unwrap().remove("ClientRequestToken");
        let (status, _) = wire.send(&call.operation, &copy);
        assert_eq!(status, 400, "{call:?}");
    }
    assert_eq!(items(&wire, "").await, before);
}

#[tokio::test]
async fn two_moves_at_once_are_one() {
    let (wire, _, two) = unmoved().await;
    let other = store(&wire, 3);
    let gate = wire.gate(moves);
    let meanwhile = async {
        gate.arrived().await;
        let count = moved(&other).await;
        gate.open();
        count
    };
    assert_eq!(join(moved(&two), meanwhile).await, (0, 1));
    assert_eq!((moved(&two).await, moved(&other).await), (0, 0));
    assert_eq!(books(&wire).await["tee"].total, 10);
}

#[tokio::test(start_paused = true)]
async fn a_move_whose_answers_are_lost_happens_once() {
    for times in [1, 2, 5] {
        for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict] {
            let (wire, one, two) = unmoved().await;
            wire.fail("TransactWriteItems", times, fault);
            two.move_products(soon()).await.unwrap_or_else(|error| panic!("{times} {fault:?}: {error}"));
            // What met a conflict is left to the next call.
            for _ in 0..times {
                moved(&two).await;
            }
            assert_eq!(items(&wire, "PRODUCT#").await.len(), 1, "{times} {fault:?}");
            assert_eq!(one.product(&product_id("tee"), soon()).await.unwrap().total, 10);
            assert_eq!(books(&wire).await["tee"].total, 10);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_ends_with_its_time_and_says_what_failed() {
    let (wire, one, two) = unmoved().await;
    create(&one, &product("cap", 3, 1)).await;
    assert_eq!(two.move_products(Deadline::after(Duration::ZERO)).await.unwrap(), 0);
    let mut writes = 0;
    wire.script(move |call| {
        writes += usize::from(call.operation == "TransactWriteItems");
        (writes > 1).then_some(Fault::LostBefore)
    });
    assert_eq!(two.move_products(soon()).await.unwrap(), 1, "the other is left");
    let error = two.move_products(soon()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    wire.fail_all(&["TransactWriteItems"], Fault::AccessDenied);
    let error = two.move_products(soon()).await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    wire.clear_faults();
    assert_eq!(moved(&two).await, 1);
}

/// An order of three tees, of products that are not moved.
async fn ordered(one: &Store) -> Reservation {
    let held = hold(one, "alice", 3, NOW).await;
    pay(one, &held, "pay_1", NOW).await.unwrap()
}

#[tokio::test]
async fn a_move_while_an_order_is_written_off_is_no_failure_of_it() {
    let (wire, one, two) = unmoved().await;
    let order = ordered(&one).await;
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        gate.open();
    };
    let command = OrderCancellation {
        order_id: order.reservation_id,
        customer: None,
        reason: "broken".to_owned(),
        restock: false,
        actor: "root".to_owned(),
    };
    let (given_back, ()) = join(Box::pin(one.cancel_order(&command, LATE, soon())), meanwhile).await;
    given_back.unwrap();
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.total, tee.sold), (7, 0));
    assert_eq!(two.ledger(&product_id("tee"), 10, None, soon()).await.unwrap().items.len(), 2);
}

#[tokio::test]
async fn a_move_while_drift_is_compensated_is_no_failure_of_it() {
    let (wire, one, two) = unmoved().await;
    // A unit is missing on a shard: the total is what is there.
    let shard = keys::shard(&product_id("tee"), 0).item();
    let less = aws_sdk_dynamodb::types::AttributeValue::N("-1".to_owned());
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(shard));
    let request = request.update_expression("ADD available :less").expression_attribute_values(":less", less);
    request.send().await.unwrap();
    let found = Compensation { total_seen: 10, entries_seen: 1, ledger_seen: 10, total_after: 9, delta: -1 };
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        gate.open();
    };
    let id = product_id("tee");
    let compensating = Box::pin(one.compensate(&id, found, "auditor", LATE, soon()));
    let (written, ()) = join(compensating, meanwhile).await;
    assert!(written.unwrap());
    assert_eq!(books(&wire).await["tee"].total, 9);
}

#[tokio::test]
async fn a_product_is_found_between_the_two_writes_of_its_move() {
    let (wire, one, two) = unmoved().await;
    let own = keys::product(&product_id("tee")).item();
    assert_eq!(moved(&two).await, 1);
    let get = client(&wire).get_item().table_name(TABLE).set_key(Some(own.clone()));
    let item = get.send().await.unwrap().item.unwrap();
    // A read may see the entry as the transaction has left it, and the product not yet.
    let hide = async || client(&wire).delete_item().table_name(TABLE).set_key(Some(own.clone())).send().await.unwrap();
    for way in 0..3 {
        hide().await;
        let gate = wire.gate(|call| call.operation == "TransactGetItems");
        let appears = async {
            gate.arrived().await;
            client(&wire).put_item().table_name(TABLE).set_item(Some(item.clone())).send().await.unwrap();
            gate.open();
        };
        let found = async {
            match way {
                0 => one.product(&product_id("tee"), soon()).await.map(drop),
                1 => one.products(10, None, soon()).await.map(|page| assert_eq!(page.items.len(), 1)),
                _ => reserve(&one, &basket("alice", "k", &[("tee", 1)]), NOW).await.map(drop),
            }
        };
        join(found, appears).await.0.unwrap();
    }
    hide().await;
    assert!(matches!(refusal(one.product(&product_id("tee"), soon()).await), Refusal::ProductNotFound { .. }));
    assert_eq!(one.products(10, None, soon()).await.unwrap().items, []);
}

#[tokio::test]
async fn a_limit_refuses_by_a_product_that_is_moved_meanwhile() {
    let (wire, one, two) = unmoved().await;
    let ask = |key: &str, units| basket("alice", key, &[("tee", units)]);
    reserve(&one, &ask("k1", 5), NOW).await.unwrap();
    let gate = wire.gate(|call| call.operation == "TransactGetItems");
    let meanwhile = async {
        gate.arrived().await;
        assert_eq!(moved(&two).await, 1);
        gate.open();
    };
    let over = ask("k2", 1);
    let (refused, ()) = join(reserve(&one, &over, NOW), meanwhile).await;
    assert_eq!(refusal(refused), Refusal::CustomerLimitReached { product_id: product_id("tee"), limit: 5 });
}
