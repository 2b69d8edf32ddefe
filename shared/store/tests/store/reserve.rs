//! Making holds: promises, precedence, and faults on the wire.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{Product, ProductChange, ProductStatus, Refusal, Status};
use holdfast_store::{Error, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, limited, product, product_id, reserve, soon, stocked,
    store, table,
};
use holdfast_testkit::wire::{Fault, Wire};

async fn tee(total: u64, shards: u32) -> Wire {
    let wire = table();
    stocked(&wire, &[product("tee", total, shards)]).await;
    wire
}

fn code(error: &Error) -> &'static str {
    match error {
        Error::Refused(refusal) => refusal.code(),
        Error::Invalid(_) => "invalid",
        Error::Unavailable { .. } | Error::TryLater { .. } => "unavailable",
        Error::Internal { .. } => "internal",
    }
}

/// The operations that were called since this was last called.
fn operations(wire: &Wire) -> Vec<String> {
    wire.take_calls().into_iter().map(|call| call.operation).collect()
}

#[tokio::test]
async fn a_warm_reserve_is_one_call_and_four_write_units() {
    let wire = tee(100, 4).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("alice", "warm-up", &[("tee", 1)]), NOW).await.unwrap();
    wire.take_calls();
    let reserved = reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap();
    let calls = wire.take_calls();
    assert_eq!(calls.len(), 1, "{calls:?}");
    assert_eq!(calls[0].operation, "TransactWriteItems");
    assert_eq!(calls[0].consumed().0, 4.0, "{:?}", calls[0].response);
    assert_eq!(reserved.reservation.total_price_minor(), 5_000);
    assert_eq!(reserved.reservation.expires_at, NOW.plus_seconds(600));
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.sold), (97, 3, 0));
}

#[tokio::test]
async fn the_same_key_gives_the_same_reservation_and_another_body_is_refused() {
    let wire = tee(10, 2).await;
    let (one, two) = (store(&wire, 1), store(&wire, 2));
    let first = reserve(&one, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap();
    for environment in [&one, &two] {
        let again =
            reserve(environment, &basket("alice", "k", &[("tee", 1), ("tee", 1)]), NOW.plus_seconds(5)).await.unwrap();
        assert!(again.replayed && !first.replayed);
        assert_eq!(again.reservation, first.reservation);
        let other = reserve(environment, &basket("alice", "k", &[("tee", 3)]), NOW).await.unwrap_err();
        assert_eq!(code(&other), "idempotency_key_reused");
    }
    // The same key of another customer is a different key.
    let bobs = reserve(&two, &basket("bob", "k", &[("tee", 2)]), NOW).await.unwrap();
    assert!(!bobs.replayed);
    assert_eq!(books(&wire).await["tee"].held, 4);
}

#[tokio::test]
async fn several_lines_are_held_together_or_not_at_all() {
    let wire = table();
    stocked(&wire, &[product("a", 10, 2), product("b", 1, 1)]).await;
    let store = store(&wire, 1);
    let refused = reserve(&store, &basket("alice", "k", &[("a", 2), ("b", 2)]), NOW).await.unwrap_err();
    let Error::Refused(Refusal::InsufficientStock { shortages }) = refused else { panic!("{refused:?}") };
    assert_eq!(shortages.len(), 1);
    assert_eq!((shortages[0].product_id.as_str(), shortages[0].requested, shortages[0].available), ("b", 2, 1));
    assert_eq!(books(&wire).await["a"].held, 0);
    reserve(&store, &basket("alice", "k", &[("a", 2), ("b", 1)]), NOW).await.unwrap();
    let books = books(&wire).await;
    assert_eq!((books["a"].held, books["b"].held), (2, 1));
}

#[tokio::test]
async fn one_line_takes_from_several_shards() {
    let wire = tee(10, 5).await;
    let reserved = reserve(&store(&wire, 1), &basket("alice", "k", &[("tee", 9)]), NOW).await.unwrap();
    assert!(reserved.reservation.lines[0].takes.len() >= 5);
    let refused = reserve(&store(&wire, 2), &basket("bob", "k", &[("tee", 2)]), NOW).await.unwrap_err();
    assert_eq!(code(&refused), "insufficient_stock");
    assert_eq!(books(&wire).await["tee"].available, 1);
}

#[tokio::test]
async fn the_owner_of_a_hold_is_never_told_sold_out() {
    let wire = tee(1, 1).await;
    let store = store(&wire, 1);
    let first = reserve(&store, &basket("alice", "k", &[("tee", 1)]), NOW).await.unwrap();
    // The environment has "sold out" in its cache, and Alice sends her request again.
    assert_eq!(
        code(&reserve(&store, &basket("bob", "k", &[("tee", 1)]), NOW).await.unwrap_err()),
        "insufficient_stock"
    );
    let again = reserve(&store, &basket("alice", "k", &[("tee", 1)]), NOW).await.unwrap();
    assert!(again.replayed);
    assert_eq!(again.reservation.reservation_id, first.reservation.reservation_id);
    // Another environment learns both from one answer, that no unit is left and that she has hers: no further reads.
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    wire.take_calls();
    assert!(reserve(&other, &basket("alice", "k", &[("tee", 1)]), NOW).await.unwrap().replayed);
    assert_eq!(operations(&wire), ["BatchGetItem", "TransactWriteItems"]);
    // Also if the product has been paused meanwhile.
    let change = ProductChange { status: Some(ProductStatus::Paused), ..ProductChange::default() };
    store.change_product(&product_id("tee"), 1, change, soon()).await.unwrap();
    assert!(reserve(&store, &basket("alice", "k", &[("tee", 1)]), NOW).await.unwrap().replayed);
    assert_eq!(
        code(&reserve(&store, &basket("bob", "k2", &[("tee", 1)]), NOW).await.unwrap_err()),
        "product_not_on_sale"
    );
}

#[tokio::test]
async fn many_requests_that_find_no_units_write_nothing() {
    let wire = tee(1, 1).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("alice", "k", &[("tee", 1)]), NOW).await.unwrap();
    let _ = reserve(&store, &basket("bob", "first", &[("tee", 1)]), NOW).await.unwrap_err();
    wire.take_calls();
    for n in 0..50 {
        let refused = reserve(&store, &basket("bob", &format!("k{n}"), &[("tee", 1)]), NOW).await.unwrap_err();
        assert_eq!(code(&refused), "insufficient_stock");
    }
    let calls = wire.take_calls();
    // One read of the caller's own key, which is what keeps the owner of a hold from being told "sold out".
    assert!(calls.iter().all(|call| call.operation == "TransactGetItems"), "{calls:?}");
    assert_eq!(calls.len(), 50);
}

#[tokio::test]
async fn a_limit_counts_live_holds_and_orders_of_one_customer() {
    let wire = table();
    stocked(&wire, &[Product { counts_per_customer: true, max_per_customer: Some(3), ..product("tee", 100, 4) }]).await;
    let store = store(&wire, 1);
    let two = reserve(&store, &basket("alice", "k1", &[("tee", 2)]), NOW).await.unwrap().reservation;
    assert_eq!(
        code(&reserve(&store, &basket("alice", "k2", &[("tee", 2)]), NOW).await.unwrap_err()),
        "customer_limit_reached"
    );
    reserve(&store, &basket("bob", "k2", &[("tee", 3)]), NOW).await.unwrap();
    assert_eq!(
        code(&reserve(&store, &basket("bob", "k3", &[("tee", 1)]), NOW).await.unwrap_err()),
        "customer_limit_reached"
    );
    let one = reserve(&store, &basket("alice", "k3", &[("tee", 1)]), NOW).await.unwrap().reservation;
    // An order counts, a released hold does not.
    let alice = customer("alice");
    store.confirm(&confirmation(&two.reservation_id, &alice, None, NOW), NOW, soon()).await.unwrap();
    store.cancel(&one.reservation_id, &alice, NOW, soon()).await.unwrap();
    assert_eq!(
        code(&reserve(&store, &basket("alice", "k4", &[("tee", 2)]), NOW).await.unwrap_err()),
        "customer_limit_reached"
    );
    reserve(&store, &basket("alice", "k5", &[("tee", 1)]), NOW).await.unwrap();
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.held, tee.sold), (4, 2));
}

#[tokio::test]
async fn nobody_reserves_on_facts_that_an_admin_has_changed() {
    let wire = tee(100, 4).await;
    let (shop, admin) = (store(&wire, 1), store(&wire, 2));
    reserve(&shop, &basket("alice", "k1", &[("tee", 1)]), NOW).await.unwrap();
    let change = ProductChange { price_minor: Some(9_900), ..ProductChange::default() };
    admin.change_product(&product_id("tee"), 1, change, soon()).await.unwrap();
    // The environment still has the old price in its cache; the shard's version refuses it, and the facts are read.
    wire.take_calls();
    let reserved = reserve(&shop, &basket("alice", "k2", &[("tee", 1)]), NOW).await.unwrap();
    assert_eq!(reserved.reservation.lines[0].unit_price_minor, 9_900);
    assert_eq!(operations(&wire), ["TransactWriteItems", "BatchGetItem", "TransactWriteItems"]);
    let pause = ProductChange { status: Some(ProductStatus::Paused), ..ProductChange::default() };
    admin.change_product(&product_id("tee"), 2, pause, soon()).await.unwrap();
    assert_eq!(
        code(&reserve(&shop, &basket("alice", "k3", &[("tee", 1)]), NOW).await.unwrap_err()),
        "product_not_on_sale"
    );
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_is_one_reservation_and_the_first_answer() {
    for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::ServerError, Fault::Throttled] {
        // Fewer faults than the SDK retries, and more, so that the store's own loop retries.
        for times in [1, 2, 4] {
            let wire = tee(10, 2).await;
            let store = store(&wire, 1);
            wire.fail("TransactWriteItems", times, fault);
            let reserved = reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await;
            let reserved = reserved.unwrap_or_else(|error| panic!("{fault:?} {times}: {error}"));
            assert!(!reserved.replayed, "{fault:?} {times}");
            assert_eq!(books(&wire).await["tee"].held, 2, "{fault:?} {times}");
            assert!(reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW.plus_seconds(1)).await.unwrap().replayed);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_conflict_moves_to_another_shard_at_once() {
    let wire = tee(100, 8).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("alice", "k0", &[("tee", 1)]), NOW).await.unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let shards = seen.clone();
    wire.script(move |call| {
        let mut shards = shards.lock().unwrap();
        shards.push(call.transaction_keys()[1].clone());
        (shards.len() <= 3).then_some(Fault::ConflictAt(1))
    });
    let started = tokio::time::Instant::now();
    reserve(&store, &basket("alice", "k1", &[("tee", 1)]), NOW).await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 4);
    assert!(seen.iter().collect::<std::collections::BTreeSet<_>>().len() > 1, "never moved: {seen:?}");
    assert!(started.elapsed().as_millis() < 200, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_reserve_without_an_answer_acknowledges_nothing() {
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::Throttled, Fault::Conflict, Fault::ServerError] {
        let wire = tee(10, 2).await;
        let store = store(&wire, 1);
        wire.fail("TransactWriteItems", usize::MAX, fault);
        let started = tokio::time::Instant::now();
        let error = reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap_err();
        assert_eq!(code(&error), "unavailable", "{fault:?}: {error}");
        assert!(started.elapsed().as_secs() <= 8, "{fault:?}: {:?}", started.elapsed());
        // Whatever happened, the books balance, and the same key gets the outcome.
        books(&wire).await;
        reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap();
        assert_eq!(books(&wire).await["tee"].held, 2);
    }
}

#[tokio::test]
async fn errors_that_cannot_be_retried_are_not_retried() {
    let wire = tee(10, 2).await;
    let store = store(&wire, 1);
    wire.fail("TransactWriteItems", usize::MAX, Fault::AccessDenied);
    wire.take_calls();
    let error = reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap_err();
    assert_eq!(code(&error), "internal");
    let tries = wire.take_calls().iter().filter(|call| call.operation == "TransactWriteItems").count();
    assert_eq!(tries, 1);
}

#[tokio::test]
async fn no_hold_without_its_reminder() {
    let wire = tee(10, 2).await;
    let store = store(&wire, 1);
    let away = |_| async { Err(Error::Unavailable { during: "CreateSchedule", last: "away".to_owned() }) };
    let error = store.reserve(&basket("alice", "k", &[("tee", 2)]), NOW, soon(), away).await.unwrap_err();
    assert_eq!(code(&error), "unavailable");
    assert_eq!(books(&wire).await["tee"].held, 0);
    // And it is called with the time at which the hold ends, before the transaction.
    let asked = AtomicUsize::new(0);
    wire.take_calls();
    let remind = |at| {
        assert_eq!(at, NOW.plus_seconds(600));
        assert!(wire.take_calls().iter().all(|call| call.operation != "TransactWriteItems"));
        asked.fetch_add(1, Ordering::SeqCst);
        async { Ok(()) }
    };
    store.reserve(&basket("alice", "k", &[("tee", 2)]), NOW, soon(), remind).await.unwrap();
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_reserve_that_finds_too_few_units_releases_overdue_holds_first() {
    let wire = tee(3, 1).await;
    let store = store(&wire, 1);
    let old = reserve(&store, &basket("alice", "k", &[("tee", 3)]), NOW).await.unwrap().reservation;
    let later = NOW.plus_seconds(600);
    let new = reserve(&store, &basket("bob", "k", &[("tee", 2)]), later).await.unwrap().reservation;
    assert_eq!(new.status, Status::Held);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (1, 2));
    let old = store.reservation(&old.reservation_id, &customer("alice"), soon()).await.unwrap();
    assert_eq!(old.status, Status::Expired);
}

// Paused time advances only while all tasks wait: however busy the machine is, no deadline passes.
#[tokio::test(start_paused = true)]
async fn two_hundred_environments_race_for_the_last_units() {
    let wire = tee(5, 2).await;
    let race = (0..200).map(|n| {
        let store = store(&wire, n);
        async move { reserve(&store, &basket(&format!("c{n}"), "k", &[("tee", 1)]), NOW).await }
    });
    let outcomes = futures_util::future::join_all(race).await;
    let held = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
    let sold_out =
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).filter(|e| code(e) == "insufficient_stock");
    assert_eq!((held, sold_out.count()), (5, 195));
    assert_eq!(books(&wire).await["tee"].available, 0);
}

#[tokio::test]
async fn unknown_products_are_named() {
    let wire = tee(5, 2).await;
    let refused = reserve(&store(&wire, 1), &basket("alice", "k", &[("tee", 1), ("zebra", 1)]), NOW).await.unwrap_err();
    let Error::Refused(Refusal::ProductNotFound { product_id }) = refused else { panic!("{refused:?}") };
    assert_eq!(product_id.as_str(), "zebra");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_for_long_on_facts_that_an_admin_has_changed() {
    let wire = table();
    stocked(&wire, &[Product { status: ProductStatus::Paused, ..product("tee", 10, 2) }]).await;
    let (shop, admin) = (store(&wire, 1), store(&wire, 2));
    let ask = basket("alice", "k", &[("tee", 1)]);
    assert_eq!(code(&reserve(&shop, &ask, NOW).await.unwrap_err()), "product_not_on_sale");
    let open = ProductChange { status: Some(ProductStatus::OnSale), ..ProductChange::default() };
    admin.change_product(&product_id("tee"), 1, open, soon()).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    reserve(&shop, &ask, NOW).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lifted_limit_refuses_nobody_even_before_it_reaches_the_shards() {
    let wire = table();
    stocked(&wire, &[Product { counts_per_customer: true, max_per_customer: Some(2), ..product("tee", 10, 1) }]).await;
    let shop = store(&wire, 1);
    reserve(&shop, &basket("alice", "k1", &[("tee", 2)]), NOW).await.unwrap();
    // The product was changed, and the process was killed before it raised the shards.
    client(&wire)
        .update_item()
        .table_name(TABLE)
        .set_key(Some(keys::product(&product_id("tee")).item()))
        .update_expression("SET #version = #version + :one REMOVE #limit")
        .expression_attribute_names("#version", "version")
        .expression_attribute_names("#limit", "max_per_customer")
        .expression_attribute_values(":one", AttributeValue::N("1".to_owned()))
        .send()
        .await
        .unwrap();
    wire.take_calls();
    reserve(&shop, &basket("alice", "k2", &[("tee", 1)]), NOW).await.unwrap();
    // The try, the overdue holds in the partitions of its shard and of baskets, the snapshot of key, limit and product; and again.
    let calls = operations(&wire);
    assert_eq!(calls[0], "TransactWriteItems");
    assert!(calls[1..19].iter().all(|call| call == "Query"), "{calls:?}");
    assert_eq!(calls[19..], ["TransactGetItems", "BatchGetItem", "TransactWriteItems"]);
}

#[tokio::test(start_paused = true)]
async fn sold_out_is_cached_for_a_second() {
    let wire = tee(4, 1).await;
    let (shop, other) = (store(&wire, 1), store(&wire, 2));
    let held = reserve(&other, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    wire.take_calls();
    let refused = reserve(&shop, &basket("bob", "k1", &[("tee", 3)]), NOW).await.unwrap_err();
    let Error::Refused(Refusal::InsufficientStock { shortages }) = refused else { panic!("{refused:?}") };
    assert_eq!((shortages[0].requested, shortages[0].available), (3, 2));
    // The facts, a try, the shards, what is overdue in the partitions of its shard and of baskets, the shards at one instant,
    // and bob's own key.
    let calls = operations(&wire);
    assert_eq!(calls[..3], ["BatchGetItem", "TransactWriteItems", "BatchGetItem"]);
    assert!(calls[3..21].iter().all(|call| call == "Query"), "{calls:?}");
    assert_eq!(calls[21..], ["TransactGetItems", "TransactGetItems"]);

    other.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    tokio::time::advance(Duration::from_millis(999)).await;
    let refused = reserve(&shop, &basket("bob", "k2", &[("tee", 3)]), NOW).await.unwrap_err();
    assert_eq!(code(&refused), "insufficient_stock");
    tokio::time::advance(Duration::from_millis(1)).await;
    wire.take_calls();
    reserve(&shop, &basket("bob", "k3", &[("tee", 3)]), NOW).await.unwrap();
    assert_eq!(operations(&wire), ["BatchGetItem", "TransactWriteItems"], "a look that finds enough is enough");
}

#[tokio::test]
async fn an_environment_does_not_try_to_take_units_again_that_it_took() {
    let wire = tee(2, 1).await;
    let store = store(&wire, 1);
    // From this refusal it knows that there are two.
    assert_eq!(
        code(&reserve(&store, &basket("bob", "k1", &[("tee", 3)]), NOW).await.unwrap_err()),
        "insufficient_stock"
    );
    reserve(&store, &basket("bob", "k2", &[("tee", 2)]), NOW).await.unwrap();
    wire.take_calls();
    for key in ["k3", "k4"] {
        assert_eq!(
            code(&reserve(&store, &basket("bob", key, &[("tee", 1)]), NOW).await.unwrap_err()),
            "insufficient_stock"
        );
    }
    // It looks once, since units may have come back, and takes none: the shards twice, and the key of each request.
    assert_eq!(operations(&wire), ["BatchGetItem", "TransactGetItems", "TransactGetItems", "TransactGetItems"]);
}

#[tokio::test(start_paused = true)]
async fn what_was_free_is_not_reduced_by_what_was_sold_since() {
    let wire = tee(7, 1).await;
    let (shop, other) = (store(&wire, 1), store(&wire, 2));
    let held = reserve(&other, &basket("alice", "k", &[("tee", 5)]), NOW).await.unwrap().reservation;
    // It knows that two are free; five come back, and it sells one.
    assert_eq!(
        code(&reserve(&shop, &basket("bob", "k1", &[("tee", 3)]), NOW).await.unwrap_err()),
        "insufficient_stock"
    );
    other.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    reserve(&shop, &basket("bob", "k2", &[("tee", 1)]), NOW).await.unwrap();
    // Fewer than two were never free.
    reserve(&shop, &basket("bob", "k3", &[("tee", 2)]), NOW).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn only_contention_and_faults_are_waited_for() {
    let wire = tee(6, 6).await;
    let started = tokio::time::Instant::now();
    let reserved = reserve(&store(&wire, 1), &basket("alice", "k", &[("tee", 6)]), NOW).await.unwrap();
    assert_eq!(reserved.reservation.lines[0].takes.len(), 6, "every shard was found to hold too little first");
    assert_eq!(started.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn keys_that_were_not_processed_are_asked_for_again_after_a_pause() {
    let wire = tee(10, 2).await;
    let store = store(&wire, 1);
    wire.fail("BatchGetItem", 3, Fault::Unprocessed);
    let started = tokio::time::Instant::now();
    reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap();
    assert!(started.elapsed() > Duration::ZERO);
    assert_eq!(
        operations(&wire),
        ["BatchGetItem", "BatchGetItem", "BatchGetItem", "BatchGetItem", "TransactWriteItems"]
    );
}

#[tokio::test]
async fn environments_start_at_different_shards_and_one_seed_always_at_the_same() {
    let wire = tee(1_600, 16).await;
    let mut homes = std::collections::BTreeSet::new();
    for seed in 0..20 {
        let home = async |key: &str| {
            let basket = basket("alice", &format!("{key}{seed}"), &[("tee", 1)]);
            reserve(&store(&wire, seed), &basket, NOW).await.unwrap().reservation.lines[0].takes[0].shard
        };
        let (one, other) = (home("k").await, home("again").await);
        assert_eq!(one, other, "{seed}");
        homes.insert(one);
    }
    assert!(homes.len() >= 8, "{homes:?}");
}

#[tokio::test]
async fn lines_on_more_shards_than_one_transaction_can_have_are_consolidated_first() {
    // With the reservation's own, and one that giving the order back needs, a hundred actions are the most; a limit is one
    // of them.
    for (other, gathers) in [(("b", 35), true), (("b", 34), false), (("c", 34), true), (("c", 33), false)] {
        let wire = table();
        let c = limited(product("c", 35, 35), 100);
        stocked(&wire, &[product("a", 64, 64), product("b", 36, 36), c]).await;
        let store = store(&wire, 1);
        wire.take_calls();
        let reserved = reserve(&store, &basket("alice", "k", &[("a", 64), other]), NOW).await.unwrap();
        let gathered = wire.take_calls().iter().any(|call| {
            call.operation == "TransactWriteItems"
                && call.transaction_keys().iter().all(|key| key.starts_with("STOCK#a#"))
        });
        assert_eq!(gathered, gathers, "{other:?}");
        let units = |line: &holdfast_domain::Line| line.takes.iter().map(|take| take.units).sum::<u32>();
        let lines = &reserved.reservation.lines;
        assert_eq!(lines.iter().map(units).collect::<Vec<_>>(), [64, other.1], "{other:?}");
        assert_eq!(books(&wire).await["a"].held, 64);
    }
}

#[tokio::test(start_paused = true)]
async fn two_fragmented_products_are_sold_together_and_a_shortage_says_what_is_free() {
    let wire = table();
    stocked(&wire, &[product("a", 64, 64), product("b", 64, 64)]).await;
    let store = store(&wire, 1);
    let refused = reserve(&store, &basket("alice", "k", &[("a", 50), ("b", 65)]), NOW).await.unwrap_err();
    let Error::Refused(Refusal::InsufficientStock { shortages }) = refused else { panic!("{refused:?}") };
    let told: Vec<_> = shortages.iter().map(|s| (s.product_id.as_str(), s.requested, s.available)).collect();
    assert_eq!(told, [("b", 65, 64)]);
    // Another reserve is on one of the shards meanwhile, and takes one of its units.
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let ask = basket("alice", "k2", &[("a", 50), ("b", 50)]);
    let (answer, ()) = futures_util::future::join(reserve(&store, &ask, NOW), async {
        gate.arrived().await;
        reserve(&holdfast_testkit::fixtures::store(&wire, 2), &basket("bob", "k", &[("a", 1)]), NOW).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(answer.unwrap().reservation.lines.len(), 2);
    assert_eq!((books(&wire).await["a"].held, books(&wire).await["b"].held), (51, 50));
}
