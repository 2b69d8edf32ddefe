//! Products, their stock and their ledger; and lists.

use holdfast_domain::{IdempotencyKey, ProductChange, Refusal, Status};
use holdfast_store::{Adjusted, Adjustment, Cursor, Deadline, Error, Store};
use holdfast_testkit::fixtures::{
    NOW, basket, books, customer, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::{Fault, Wire};

async fn tee(total: u64, shards: u32) -> (Wire, Store) {
    let wire = table().await;
    stocked(&wire, &[product("tee", total, shards)]).await;
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
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.total), (7, 7));
    let ledger = store.ledger(&product_id("tee"), 10, None, soon()).await.unwrap();
    assert_eq!(ledger.items.iter().map(|entry| (entry.delta, entry.total_after)).collect::<Vec<_>>(), [(7, 7)]);
}

#[tokio::test]
async fn adjustments_move_the_total_and_the_stock_together() {
    let (wire, store) = tee(10, 4).await;
    assert_eq!(adjust(&store, 50, "k1").await.unwrap().entry.total_after, 60);
    assert_eq!(adjust(&store, -45, "k2").await.unwrap().entry.total_after, 15);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.total), (15, 15));
    let refused = adjust(&store, -16, "k3").await.unwrap_err();
    let Error::Refused(Refusal::InsufficientStock { shortages }) = refused else { panic!("{refused:?}") };
    assert_eq!((shortages[0].requested, shortages[0].available), (16, 15));
    let ledger = store.ledger(&product_id("tee"), 10, None, soon()).await.unwrap();
    assert_eq!(ledger.items.len(), 3);
}

#[tokio::test]
async fn what_is_held_cannot_be_taken_away() {
    let (wire, store) = tee(10, 2).await;
    reserve(&store, &basket("alice", "k", &[("tee", 6)]), NOW).await.unwrap();
    assert!(matches!(adjust(&store, -5, "k").await.unwrap_err(), Error::Refused(Refusal::InsufficientStock { .. })));
    adjust(&store, -4, "k").await.unwrap();
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.total), (0, 6, 6));
}

#[tokio::test(start_paused = true)]
async fn an_adjustment_happens_once_whatever_the_wire_does() {
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

#[tokio::test]
async fn adjustments_beside_one_another_all_count() {
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
    let (wire, store) = tee(10, 2).await;
    assert!(matches!(adjust(&store, 1_000_000_000, "k").await.unwrap_err(), Error::Invalid(_)));
    assert_eq!(books(&wire).await["tee"].total, 10);
}

#[tokio::test]
async fn units_that_come_in_meanwhile_can_be_taken_away() {
    let (wire, one) = tee(3, 1).await;
    let other = store(&wire, 2);
    // The total is read before the other adjustment, the shards after it.
    let (more, less) = futures_util::future::join(adjust(&one, 4, "k1"), adjust(&other, -4, "k2")).await;
    assert_eq!(more.unwrap().entry.total_after, 7);
    assert_eq!(less.unwrap().entry.total_after, 3);
    assert_eq!(books(&wire).await["tee"].available, 3);
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

#[tokio::test(start_paused = true)]
async fn a_change_whose_answers_are_lost_happens_once_and_reaches_every_shard() {
    // Once or twice, the SDK itself repeats the call, and the store never hears of it; five times, it does.
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
async fn a_change_that_was_cut_off_half_way_is_completed_by_its_repetition() {
    let (wire, shop) = tee(10, 1).await;
    reserve(&shop, &basket("alice", "k0", &[("tee", 1)]), NOW).await.unwrap();
    let admin = store(&wire, 9);
    // The product is written; then the wire is cut.
    let mut updates = 0;
    wire.script(move |call| {
        updates += usize::from(call.operation == "UpdateItem");
        (updates > 1).then_some(Fault::LostBefore)
    });
    let change = || ProductChange { price_minor: Some(1), ..ProductChange::default() };
    // Soon, so that the shop still remembers what it knew before.
    let at_once = Deadline::after(std::time::Duration::from_secs(1));
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
    store.confirm(&held.reservation_id, &held.customer, None, NOW, NOW, soon()).await.unwrap();
    let tee = store.product(&product_id("tee"), soon()).await.unwrap();
    let stock = store.stock(&[&tee], soon()).await.unwrap()[&product_id("tee")];
    assert_eq!((stock.available, stock.reserved, stock.sold), (5, 2, 3));
}

#[tokio::test]
async fn lists_come_in_pages_and_miss_nothing() {
    let wire = table().await;
    let names: Vec<String> = (0..7).map(|n| format!("p{n}")).collect();
    let products: Vec<_> = names.iter().map(|name| product(name, 10, 1)).collect();
    stocked(&wire, &products).await;
    let store = store(&wire, 1);
    let mut seen = Vec::new();
    let mut cursor: Option<Cursor> = None;
    loop {
        let page = store.products(3, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items.into_iter().map(|product| product.product_id.to_string()));
        // As a caller would send it back.
        cursor = page.next.map(|next| Cursor::decode(&next.encode()).unwrap());
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(seen, names);

    for (n, name) in names.iter().enumerate() {
        let at = NOW.plus_seconds(i64::try_from(n).unwrap());
        let held = reserve(&store, &basket("alice", &format!("k{n}"), &[(name, 1)]), at).await.unwrap().reservation;
        reserve(&store, &basket("bob", &format!("k{n}"), &[(name, 1)]), at).await.unwrap();
        if n % 2 == 0 {
            store.cancel(&held.reservation_id, &held.customer, at, soon()).await.unwrap();
        }
    }
    for (status, count) in
        [(None, 7), (Some(Status::Cancelled), 4), (Some(Status::Held), 3), (Some(Status::Expired), 0)]
    {
        let mut seen = Vec::new();
        let mut cursor = None;
        loop {
            let page = store.reservations_of(&customer("alice"), status, NOW, 2, cursor, soon()).await.unwrap();
            assert!(page.items.len() <= 2);
            seen.extend(
                page.items.iter().map(|found| (std::cmp::Reverse(found.created_at), found.customer.to_string())),
            );
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), count, "{status:?}");
        assert!(seen.is_sorted() && seen.iter().all(|(_, owner)| owner == "alice"));
    }
    let later = NOW.plus_seconds(10_000);
    let overdue =
        store.reservations_of(&customer("alice"), Some(Status::Expired), later, 50, None, soon()).await.unwrap();
    assert_eq!(overdue.items.len(), 3, "by the clock they have expired, though nobody has released them");
    let bobs = store.reservations_of(&customer("bob"), None, NOW, 2, None, soon()).await.unwrap().next.unwrap();
    let stolen = store.reservations_of(&customer("alice"), None, NOW, 2, Some(bobs), soon()).await.unwrap_err();
    assert!(matches!(stolen, Error::Invalid(_)));

    let mut all = 0;
    let mut cursor = None;
    loop {
        let page = store.reservations(Some(Status::Held), None, NOW, 3, cursor, soon()).await.unwrap();
        assert!(page.items.len() <= 3);
        all += page.items.len();
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!(all, 10);
    let of_one = store.reservations(None, Some(&product_id("p3")), NOW, 50, None, soon()).await.unwrap();
    assert_eq!(of_one.items.len(), 2);
}
