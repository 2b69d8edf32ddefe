//! Products, their stock and their ledger.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use holdfast_domain::{Adjustment, HoldSeconds, IdempotencyKey, Product, ProductChange, ProductStatus, Refusal, Stock};
use holdfast_store::{Adjusted, Counted, Deadline, Error, Store};
use holdfast_testkit::fixtures::{
    NOW, basket, books, confirmation, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};
use tokio::sync::Notify;
/// The units of each customer are counted: a limit may be set later.
fn counted_tee(total: u64, shards: u32) -> Product {
    Product { counts_per_customer: true, ..product("tee", total, shards) }
}

pub(crate) async fn tee(total: u64, shards: u32) -> (Wire, Store) {
    let wire = table();
    stocked(&wire, &[counted_tee(total, shards)]).await;
    let store = store(&wire, 1);
    (wire, store)
}

fn adjustment(delta: i64, key: &str) -> Adjustment {
    Adjustment {
        product_id: product_id("tee"),
        delta,
        reason: "counted".to_owned(),
        reference: Some("PO-7".to_owned()),
        expected_total: None,
        actor: "admin".to_owned(),
        key: IdempotencyKey::try_from(key).unwrap(),
    }
}

async fn adjust(store: &Store, delta: i64, key: &str) -> Result<Adjusted, Error> {
    store.adjust(&adjustment(delta, key), NOW, soon()).await
}

#[tokio::test]
async fn a_product_is_made_once_with_its_stock_and_its_ledger() {
    let (wire, store) = tee(7, 3).await;
    let exists = store.create_product(&product("tee", 9, 1), "admin", NOW, soon()).await.unwrap_err();
    assert!(matches!(exists, Error::Refused(Refusal::ProductExists { .. })));
    let same = store.create_product(&product("tee", 7, 3), "admin", NOW, soon()).await.unwrap_err();
    assert!(matches!(same, Error::Refused(Refusal::ProductExists { .. })));
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.total), (7, 7));
    let ledger = store.ledger(&product_id("tee"), 10, None, soon()).await.unwrap();
    assert_eq!(ledger.items.iter().map(|entry| (entry.delta, entry.total_after)).collect::<Vec<_>>(), [(7, 7)]);
}

#[tokio::test(start_paused = true)]
async fn a_product_whose_answers_are_lost_is_made_once() {
    for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict] {
        let wire = table();
        let store = store(&wire, 1);
        wire.fail("TransactWriteItems", 5, fault);
        let made = store.create_product(&product("tee", 7, 3), "admin", NOW, soon()).await;
        made.unwrap_or_else(|error| panic!("{fault:?}: {error}"));
        assert_eq!(books(&wire).await["tee"].available, 7);
        // Its answer is lost too, and the stored product is another one.
        wire.fail("TransactWriteItems", 5, fault);
        let other = store.create_product(&product("tee", 9, 3), "admin", NOW, soon()).await;
        assert!(matches!(other, Err(Error::Refused(Refusal::ProductExists { .. }))), "{fault:?}: {other:?}");
    }
}

#[tokio::test]
async fn adjustments_move_the_total_and_the_stock_together() {
    let (wire, store) = tee(10, 4).await;
    assert_eq!(adjust(&store, 50, "k1").await.unwrap().entry.total_after, 60);
    assert_eq!(adjust(&store, -45, "k2").await.unwrap().entry.total_after, 15);
    assert!(adjust(&store, -45, "k2").await.unwrap().replayed, "another request, be it in the same millisecond");
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.total), (15, 15));
    let refused = adjust(&store, -16, "k3").await.unwrap_err();
    let Error::Refused(Refusal::InsufficientStock { shortages }) = refused else { panic!("{refused:?}") };
    assert_eq!((shortages[0].requested, shortages[0].available), (16, 15));
    let ledger = store.ledger(&product_id("tee"), 10, None, soon()).await.unwrap();
    assert_eq!(ledger.items.len(), 3);
}

#[tokio::test]
async fn held_units_cannot_be_taken_away() {
    let (wire, store) = tee(10, 2).await;
    reserve(&store, &basket("alice", "k", &[("tee", 6)]), NOW).await.unwrap();
    assert!(matches!(adjust(&store, -5, "k").await.unwrap_err(), Error::Refused(Refusal::InsufficientStock { .. })));
    adjust(&store, -4, "k").await.unwrap();
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.total), (0, 6, 6));
}

#[tokio::test(start_paused = true)]
async fn an_adjustment_is_applied_once_despite_faults() {
    let faults = [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict];
    for fault in faults {
        for delta in [6, -6] {
            let (wire, store) = tee(10, 2).await;
            wire.fail("TransactWriteItems", 4, fault);
            let first = adjust(&store, delta, "k").await.unwrap();
            assert!(!first.replayed, "{fault:?}");
            let again = store.adjust(&adjustment(delta, "k"), NOW.plus_seconds(3), soon()).await.unwrap();
            assert!(again.replayed);
            assert_eq!(again.entry, first.entry);
            assert_eq!(books(&wire).await["tee"].total, 10_u64.checked_add_signed(delta).unwrap());
            let other = adjust(&store, delta + 1, "k").await.unwrap_err();
            assert!(matches!(other, Error::Refused(Refusal::IdempotencyKeyReused)));
        }
    }
}

#[tokio::test]
async fn an_adjustment_compares_the_total_first() {
    let (wire, store) = tee(10, 2).await;
    let wrong = Adjustment { expected_total: Some(9), ..adjustment(5, "k") };
    let refused = store.adjust(&wrong, NOW, soon()).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::VersionMismatch { current: 10 })));
    let right = Adjustment { expected_total: Some(10), ..adjustment(5, "k") };
    store.adjust(&right, NOW, soon()).await.unwrap();
    assert_eq!(books(&wire).await["tee"].total, 15);
}

#[tokio::test(start_paused = true)]
async fn concurrent_adjustments_all_count() {
    let (wire, _) = tee(10, 2).await;
    let all = (0..20).map(|n| {
        let store = store(&wire, n);
        async move { adjust(&store, 1, &format!("k{n}")).await.unwrap() }
    });
    futures_util::future::join_all(all).await;
    assert_eq!(books(&wire).await["tee"].total, 30);
}

#[tokio::test]
async fn adjustments_past_their_limits_are_refused() {
    let bad: [fn(&mut Adjustment); 7] = [
        |a| a.delta = 0,
        |a| a.delta = 1_000_000_001,
        |a| a.delta = i64::MIN,
        |a| a.reason = String::new(),
        |a| a.reason = "x".repeat(201),
        |a| a.reason = "a\u{7}".to_owned(),
        |a| a.reference = Some(String::new()),
    ];
    for spoil in bad {
        let mut spoiled = adjustment(1, "k");
        spoil(&mut spoiled);
        assert!(spoiled.checked().is_err());
    }
    let good: [fn(&mut Adjustment); 4] = [
        |a| a.delta = 1_000_000_000,
        |a| a.delta = -1_000_000_000,
        |a| a.reason = "é".repeat(200),
        |a| a.reference = None,
    ];
    for vary in good {
        let mut varied = adjustment(1, "k");
        vary(&mut varied);
        assert_eq!(varied.clone().checked(), Ok(varied));
    }
    let (wire, store) = tee(10, 2).await;
    assert!(matches!(adjust(&store, 1_000_000_000, "k").await.unwrap_err(), Error::Invalid(_)));
    assert_eq!(books(&wire).await["tee"].total, 10);
}

#[tokio::test]
async fn units_that_are_added_meanwhile_can_be_taken_away() {
    let (wire, one) = tee(3, 1).await;
    let other = store(&wire, 2);
    // The total is read before the other adjustment, the shards after it.
    let (more, less) = futures_util::future::join(adjust(&one, 4, "k1"), adjust(&other, -4, "k2")).await;
    assert_eq!(more.unwrap().entry.total_after, 7);
    assert_eq!(less.unwrap().entry.total_after, 3);
    assert_eq!(books(&wire).await["tee"].available, 3);
}

#[tokio::test(start_paused = true)]
async fn added_units_are_distributed_over_half_as_many_shards_with_each_try() {
    let (wire, store) = tee(0, 8).await;
    wire.take_calls();
    let mut conflicts = 0;
    wire.script(move |call| {
        conflicts += u32::from(call.operation == "TransactWriteItems");
        (call.operation == "TransactWriteItems" && conflicts <= 4).then_some(Fault::ConflictAt(2))
    });
    adjust(&store, 80, "k").await.unwrap();
    let tries: Vec<Vec<String>> = wire.take_calls().iter().map(Call::transaction_keys).collect();
    let shards = |keys: &Vec<String>| keys.iter().filter(|key| key.starts_with("STOCK#")).count();
    assert_eq!(tries.iter().map(shards).filter(|&count| count > 0).collect::<Vec<_>>(), [8, 4, 2, 1, 1]);
    assert_eq!(books(&wire).await["tee"].available, 80);
}

#[tokio::test]
async fn few_units_are_not_always_added_to_the_same_shard() {
    let (wire, _) = tee(0, 16).await;
    for seed in 0..20 {
        let store = store(&wire, seed);
        store.adjust(&adjustment(1, &format!("k{seed}")), NOW, soon()).await.unwrap();
    }
    let keys: std::collections::BTreeSet<String> =
        wire.take_calls().iter().flat_map(Call::transaction_keys).filter(|key| key.starts_with("STOCK#")).collect();
    assert!(keys.len() >= 8, "{keys:?}");
}

#[tokio::test(start_paused = true)]
async fn an_environment_sells_units_that_it_released_at_once() {
    let (wire, store) = tee(1, 1).await;
    let ask = async |who: &str, key: &str| reserve(&store, &basket(who, key, &[("tee", 1)]), NOW).await;
    let sold_out = |answer| matches!(answer, Err(Error::Refused(Refusal::InsufficientStock { .. })));
    let held = ask("alice", "k").await.unwrap().reservation;
    assert!(sold_out(ask("bob", "k1").await));
    store.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    ask("bob", "k2").await.unwrap();
    assert!(sold_out(ask("carol", "k1").await));
    adjust(&store, 1, "k").await.unwrap();
    ask("carol", "k2").await.unwrap();
    assert_eq!(books(&wire).await["tee"].held, 2);
}

#[tokio::test]
async fn a_change_needs_the_version_that_was_seen() {
    let (_, store) = tee(10, 2).await;
    let change = || ProductChange { price_minor: Some(1), ..ProductChange::default() };
    let changed = store.change_product(&product_id("tee"), 1, change(), soon()).await.unwrap();
    assert_eq!((changed.version, changed.price_minor), (2, 1));
    let stale = store.change_product(&product_id("tee"), 1, change(), soon()).await.unwrap_err();
    assert!(matches!(stale, Error::Refused(Refusal::VersionMismatch { current: 2 })));
    let missing = store.change_product(&product_id("cap"), 1, change(), soon()).await.unwrap_err();
    assert!(matches!(missing, Error::Refused(Refusal::ProductNotFound { .. })));
}

#[tokio::test]
async fn a_change_sets_and_removes_optional_fields() {
    let (_, store) = tee(10, 2).await;
    let id = product_id("tee");
    let all = ProductChange {
        max_per_customer: Some(Some(3)),
        sale_starts_at: Some(Some(NOW)),
        sale_ends_at: Some(Some(NOW.plus_seconds(60))),
        ..ProductChange::default()
    };
    let changed = store.change_product(&id, 1, all, soon()).await.unwrap();
    assert_eq!((changed.max_per_customer, changed.sale_starts_at), (Some(3), Some(NOW)));
    let none = ProductChange {
        max_per_customer: Some(None),
        sale_starts_at: Some(None),
        sale_ends_at: Some(None),
        ..ProductChange::default()
    };
    let changed = store.change_product(&id, 2, none, soon()).await.unwrap();
    assert_eq!(changed, Product { version: 3, ..counted_tee(10, 2) });
}

#[tokio::test]
async fn a_change_of_every_field_is_read_back_as_requested() {
    let (_, store) = tee(10, 2).await;
    let (id, starts, ends) = (product_id("tee"), NOW.plus_seconds(1), NOW.plus_seconds(61));
    // Without `..`, so that a new field must be added here.
    let everything = ProductChange {
        name: Some("Black tee".to_owned()),
        price_minor: Some(1),
        hold_seconds: Some(HoldSeconds::MAX),
        late_payment_seconds: Some(60),
        max_per_customer: Some(Some(3)),
        sale_starts_at: Some(Some(starts)),
        sale_ends_at: Some(Some(ends)),
        status: Some(ProductStatus::Paused),
    };
    let wanted = Product {
        name: "Black tee".to_owned(),
        price_minor: 1,
        hold_seconds: HoldSeconds::MAX,
        late_payment_seconds: 60,
        max_per_customer: Some(3),
        sale_starts_at: Some(starts),
        sale_ends_at: Some(ends),
        status: ProductStatus::Paused,
        version: 2,
        ..counted_tee(10, 2)
    };
    assert_eq!(store.change_product(&id, 1, everything, soon()).await.unwrap(), wanted);
    assert_eq!(store.product(&id, soon()).await.unwrap(), wanted);
}

#[tokio::test]
async fn a_change_of_one_field_leaves_all_others_as_they_were() {
    type Field = (fn(&mut ProductChange), fn(&mut Product));
    let fields: [Field; 11] = [
        (|c| c.late_payment_seconds = Some(0), |p| p.late_payment_seconds = 0),
        (|c| c.name = Some("Black tee".to_owned()), |p| p.name = "Black tee".to_owned()),
        (|c| c.price_minor = Some(1), |p| p.price_minor = 1),
        (|c| c.hold_seconds = Some(HoldSeconds::MAX), |p| p.hold_seconds = HoldSeconds::MAX),
        (|c| c.max_per_customer = Some(Some(3)), |p| p.max_per_customer = Some(3)),
        (|c| c.sale_starts_at = Some(Some(NOW.plus_seconds(1))), |p| p.sale_starts_at = Some(NOW.plus_seconds(1))),
        (|c| c.sale_ends_at = Some(Some(NOW.plus_seconds(61))), |p| p.sale_ends_at = Some(NOW.plus_seconds(61))),
        (|c| c.status = Some(ProductStatus::Paused), |p| p.status = ProductStatus::Paused),
        (|c| c.max_per_customer = Some(None), |p| p.max_per_customer = None),
        (|c| c.sale_starts_at = Some(None), |p| p.sale_starts_at = None),
        (|c| c.sale_ends_at = Some(None), |p| p.sale_ends_at = None),
    ];
    let mut wanted = Product {
        max_per_customer: Some(2),
        counts_per_customer: true,
        sale_starts_at: Some(NOW),
        sale_ends_at: Some(NOW.plus_seconds(60)),
        ..product("tee", 10, 2)
    };
    let wire = table();
    stocked(&wire, std::slice::from_ref(&wanted)).await;
    let store = store(&wire, 1);
    for (ask, follow) in fields {
        let mut change = ProductChange::default();
        ask(&mut change);
        store.change_product(&wanted.product_id, wanted.version, change.clone(), soon()).await.unwrap();
        follow(&mut wanted);
        wanted.version += 1;
        assert_eq!(store.product(&wanted.product_id, soon()).await.unwrap(), wanted, "{change:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answer_is_lost_is_recognised_despite_a_concurrent_adjustment() {
    let (wire, store) = tee(10, 2).await;
    let admin = holdfast_testkit::fixtures::store(&wire, 2);
    let lost = Arc::new(Notify::new());
    let notify = lost.clone();
    let mut updates = 0;
    wire.script(move |call| {
        updates += usize::from(call.operation == "UpdateItem");
        (call.operation == "UpdateItem" && updates == 1).then(|| {
            notify.notify_one();
            Fault::LostAfter
        })
    });
    let (id, change) = (product_id("tee"), ProductChange { price_minor: Some(1), ..ProductChange::default() });
    let (changed, ()) = tokio::join!(store.change_product(&id, 1, change, soon()), async {
        // Before the SDK retries.
        lost.notified().await;
        adjust(&admin, 5, "k").await.unwrap();
    });
    let changed = changed.unwrap();
    assert_eq!((changed.version, changed.price_minor, changed.total), (2, 1, 15));
}

#[tokio::test]
async fn a_change_is_answered_with_its_own_result_despite_a_later_change() {
    let (wire, one) = tee(10, 2).await;
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    let price = |price_minor| ProductChange { price_minor: Some(price_minor), ..ProductChange::default() };
    let id = product_id("tee");
    let mut written = false;
    let gate = wire.gate(move |call| {
        let before = written;
        written |= call.operation == "UpdateItem";
        before
    });
    let (changed, ()) = tokio::join!(one.change_product(&id, 1, price(7), soon()), async {
        gate.arrived().await;
        other.change_product(&id, 2, price(8), soon()).await.unwrap();
        gate.open();
    });
    let changed = changed.unwrap();
    assert_eq!((changed.version, changed.price_minor), (2, 7));
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_answers_are_lost_happens_once_and_reaches_every_shard() {
    // Once or twice, the SDK itself retries the call, and the store does not notice; five times, it does.
    for times in [1, 2, 5] {
        for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict] {
            let (wire, store) = tee(10, 2).await;
            wire.fail("UpdateItem", times, fault);
            let change = ProductChange { price_minor: Some(1), ..ProductChange::default() };
            let changed = store.change_product(&product_id("tee"), 1, change, soon()).await;
            assert_eq!(changed.unwrap_or_else(|error| panic!("{times} {fault:?}: {error}")).version, 2);
            let held = reserve(&store, &basket("alice", "k", &[("tee", 10)]), NOW).await.unwrap().reservation;
            assert_eq!(held.total_price_minor(), 10);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_that_was_interrupted_is_completed_by_its_repetition() {
    let (wire, shop) = tee(10, 1).await;
    reserve(&shop, &basket("alice", "k0", &[("tee", 1)]), NOW).await.unwrap();
    let admin = store(&wire, 9);
    // The product is written; then every call is lost.
    let mut updates = 0;
    wire.script(move |call| {
        updates += usize::from(call.operation == "UpdateItem");
        (updates > 1).then_some(Fault::LostBefore)
    });
    let change = || ProductChange { price_minor: Some(1), ..ProductChange::default() };
    // Soon, so that the cache is still in use.
    let at_once = Deadline::after(Duration::from_secs(1));
    let cut_off = admin.change_product(&product_id("tee"), 1, change(), at_once).await;
    assert!(matches!(cut_off, Err(Error::Unavailable { .. })));
    wire.script(|_| None);
    let again = admin.change_product(&product_id("tee"), 1, change(), soon()).await.unwrap_err();
    assert!(matches!(again, Error::Refused(Refusal::VersionMismatch { current: 2 })));
    let held = reserve(&shop, &basket("alice", "k1", &[("tee", 1)]), NOW).await.unwrap().reservation;
    assert_eq!(held.total_price_minor(), 1, "the shop still sold at the old price");
}

#[tokio::test]
async fn stock_says_where_the_units_are() {
    let (_, store) = tee(10, 2).await;
    let held = reserve(&store, &basket("alice", "k1", &[("tee", 3)]), NOW).await.unwrap().reservation;
    reserve(&store, &basket("alice", "k2", &[("tee", 2)]), NOW).await.unwrap();
    store.confirm(&confirmation(&held.reservation_id, &held.customer, None, NOW), NOW, soon()).await.unwrap();
    let tee = store.product(&product_id("tee"), soon()).await.unwrap();
    let stock = store.stock(&[&tee], soon()).await.unwrap()[&product_id("tee")].stock;
    assert_eq!((stock.available, stock.reserved, stock.sold), (5, 2, 3));
}

#[tokio::test]
async fn with_too_many_holds_to_count_admins_see_what_the_catalogue_shows() {
    let (wire, store) = tee(40, 2).await;
    for n in 0..12 {
        reserve(&store, &basket(&format!("c{n}"), "k", &[("tee", 1)]), NOW).await.unwrap();
    }
    let tee = store.product(&product_id("tee"), soon()).await.unwrap();
    let counted = async || {
        wire.take_calls();
        let counted = store.stock(&[&tee], soon()).await.unwrap()[&product_id("tee")];
        let Counted { stock: Stock { available, reserved, sold }, as_of } = counted;
        let scans = wire.take_calls().iter().filter(|call| call.operation == "Scan").count();
        ((available, reserved, sold), as_of.is_some(), scans)
    };
    assert_eq!(counted().await, ((28, 12, 0), false, 1));
    // One hold a page, so that they need thirteen.
    wire.shorten_pages();
    assert_eq!(counted().await, ((28, 12, 0), true, 10));
    // What an adjustment has just added is not sold, though the catalogue does not show it yet.
    adjust(&store, 5, "k").await.unwrap();
    let tee = store.product(&product_id("tee"), soon()).await.unwrap();
    let Counted { stock, as_of } = store.stock(&[&tee], soon()).await.unwrap()[&product_id("tee")];
    assert_eq!((stock.available, stock.reserved, stock.sold, as_of.is_some()), (33, 12, 0, true));
}

#[tokio::test(start_paused = true)]
async fn a_change_is_not_refused_for_the_version_that_it_made_itself() {
    let (wire, one) = tee(5, 1).await;
    let two = store(&wire, 2);
    let price = |price_minor| holdfast_domain::ProductChange { price_minor: Some(price_minor), ..Default::default() };
    let id = product_id("tee");
    // The answer to the SDK's first try is lost; another admin sees the change, and makes the next one.
    wire.fail("UpdateItem", 1, Fault::LostAfter);
    let mut writes = 0;
    let gate = wire.gate(move |call| {
        writes += usize::from(call.operation == "UpdateItem");
        writes == 2
    });
    let (answer, ()) = join(one.change_product(&id, 1, price(7), soon()), async {
        gate.arrived().await;
        two.change_product(&id, 2, price(8), soon()).await.unwrap();
        gate.open();
    })
    .await;
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
}

#[tokio::test]
async fn a_hold_that_is_extended_between_two_pages_of_the_index_counts_once() {
    let (wire, _) = tee(10, 1).await;
    let [catalog, shop] = [1, 2].map(|seed| store(&wire, seed).with_due_partitions(1, 1));
    let tee = catalog.product(&product_id("tee"), soon()).await.unwrap();
    let first = reserve(&shop, &basket("alice", "k1", &[("tee", 3)]), NOW).await.unwrap().reservation;
    reserve(&shop, &basket("alice", "k2", &[("tee", 2)]), NOW.plus_seconds(1)).await.unwrap();
    wire.shorten_pages();
    let gate = wire.gate(|call| call.request["ExclusiveStartKey"].is_object());
    let products = [&tee];
    let (stock, ()) = join(catalog.stock(&products, soon()), async {
        gate.arrived().await;
        let later = HoldSeconds::try_from(900).unwrap();
        let (id, owner) = (&first.reservation_id, &first.customer);
        shop.extend(id, owner, later, NOW, soon(), |_| async { Ok(()) }).await.unwrap();
        gate.open();
    })
    .await;
    let stock = stock.unwrap()[&product_id("tee")].stock;
    assert_eq!((stock.available, stock.reserved, stock.sold), (5, 5, 0));
}
