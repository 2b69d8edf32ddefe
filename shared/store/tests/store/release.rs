//! Releasing units: once, however often and by whom it is requested.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::FutureExt;
use holdfast_domain::{HoldSeconds, Product, Refusal, ReservationId, Status, Timestamp};
use holdfast_store::{Deadline, Error, Layout, Search, Store, Swept, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, product, product_id, reserve, soon, stocked, store,
    table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};

const LATE: Timestamp = Timestamp::from_millis(NOW.as_millis() + 600_000);

async fn tee(total: u64, shards: u32) -> Wire {
    let wire = table();
    stocked(&wire, &[product("tee", total, shards)]).await;
    wire
}

#[tokio::test]
async fn cancelling_gives_back_once_and_may_be_repeated() {
    let wire = tee(10, 2).await;
    let store = store(&wire, 1);
    let held = reserve(&store, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap().reservation;
    for _ in 0..3 {
        let ended = store.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
        assert_eq!(ended.status, Status::Cancelled);
        assert_eq!(books(&wire).await["tee"].available, 10);
    }
}

#[tokio::test]
async fn a_release_is_one_transaction_and_four_write_units() {
    let wire = tee(10, 1).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap();
    wire.take_calls();
    store.release_overdue(LATE, soon()).await.unwrap();
    let calls = wire.take_calls();
    let writes: Vec<_> = calls.iter().filter(|call| call.operation == "TransactWriteItems").collect();
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].consumed().0, 4.0);
}

#[tokio::test]
async fn only_what_is_overdue_is_released() {
    let wire = tee(10, 2).await;
    let store = store(&wire, 1);
    let held = reserve(&store, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap().reservation;
    let almost = Timestamp::from_millis(LATE.as_millis() - 1);
    assert_eq!(store.release_overdue(almost, soon()).await.unwrap().holds, 0);
    let hold = HoldSeconds::DEFAULT;
    let extended =
        store.extend(&held.reservation_id, &held.customer, hold, almost, soon(), |_| async { Ok(()) }).await.unwrap();
    assert_eq!(extended.expires_at, almost.plus_seconds(600));
    let swept = store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.ended_before), (0, 0), "the index knows of the extension");
    let swept = store.release_overdue(extended.expires_at, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.units, swept.complete), (1, 4, true));
}

#[tokio::test(start_paused = true)]
async fn the_event_may_come_twice_late_and_concurrently() {
    let wire = tee(60, 3).await;
    let store = store(&wire, 1);
    for n in 0..40 {
        reserve(&store, &basket(&format!("c{n}"), "k", &[("tee", 1)]), NOW).await.unwrap();
    }
    let sweeps = (0..8).map(|seed| {
        let store = holdfast_testkit::fixtures::store(&wire, seed);
        async move { store.release_overdue(LATE.plus_seconds(86_400), soon()).await.unwrap() }
    });
    let swept = futures_util::future::join_all(sweeps).await;
    assert_eq!(swept.iter().map(|swept| swept.holds).sum::<u64>(), 40);
    assert_eq!(books(&wire).await["tee"].available, 60);
    assert_eq!(store.release_overdue(LATE, soon()).await.unwrap().holds, 0);
}

#[tokio::test]
async fn two_concurrent_releases_give_a_customers_limit_back_once() {
    let wire = table();
    stocked(&wire, &[Product { counts_per_customer: true, max_per_customer: Some(4), ..product("tee", 10, 1) }]).await;
    // One partition of the index: both start with it.
    let (one, other) = (store(&wire, 1).with_due_partitions(1, 1), store(&wire, 2).with_due_partitions(1, 1));
    reserve(&one, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap();
    // Both read the hold; the second then finds it ended, and the limit already given back.
    let (one, other) =
        futures_util::future::join(one.release_overdue(LATE, soon()), other.release_overdue(LATE, soon())).await;
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!((one.holds + other.holds, one.ended_before + other.ended_before), (1, 1));
    assert_eq!(books(&wire).await["tee"].available, 10);
    reserve(&store(&wire, 3), &basket("alice", "k2", &[("tee", 4)]), LATE).await.unwrap();
}

#[tokio::test]
async fn only_the_hold_that_was_confirmed_meanwhile_is_left_out() {
    let wire = tee(60, 1).await;
    let store = store(&wire, 1);
    let mut holds = Vec::new();
    for n in 0..10 {
        holds.push(reserve(&store, &basket(&format!("c{n}"), "k", &[("tee", 1)]), NOW).await.unwrap().reservation);
    }
    // Three are paid, and the index, which lags, still shows them.
    for hold in &holds[..3] {
        let due_key = crate::stored(&wire, hold).await["due_key"].clone();
        store.confirm(&confirmation(&hold.reservation_id, &hold.customer, None, NOW), NOW, soon()).await.unwrap();
        client(&wire)
            .update_item()
            .table_name(TABLE)
            .set_key(Some(keys::reservation(&hold.reservation_id).item()))
            .update_expression("SET due_key = :key, due_at = :at")
            .expression_attribute_values(":key", due_key)
            .expression_attribute_values(":at", AttributeValue::N("0".to_owned()))
            .send()
            .await
            .unwrap();
    }
    let swept = store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.ended_before), (7, 3));
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.sold), (57, 3));
}

/// A sweep at `LATE` whose first transaction is lost on the way, with `meanwhile` done to the hold before the next try.
async fn sweep_while(wire: &Wire, hold: &ReservationId, meanwhile: &str, value: i64) -> Swept {
    let lost = Arc::new(AtomicBool::new(false));
    let on_the_wire = lost.clone();
    wire.script(move |call| {
        let first_try = call.operation == "TransactWriteItems" && !on_the_wire.swap(true, Ordering::SeqCst);
        first_try.then_some(Fault::LostBefore)
    });
    let change = async {
        while !lost.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        client(wire)
            .update_item()
            .table_name(TABLE)
            .set_key(Some(keys::reservation(hold).item()))
            .update_expression(format!("SET {meanwhile} = :value"))
            .expression_attribute_values(":value", AttributeValue::N(value.to_string()))
            .send()
            .await
            .unwrap();
    };
    let store = store(wire, 7);
    futures_util::future::join(store.release_overdue(LATE, soon()), change).await.0.unwrap()
}

#[tokio::test]
async fn a_late_copy_of_a_release_does_not_end_a_new_hold_under_the_same_key() {
    let wire = tee(5, 1).await;
    let first = reserve(&store(&wire, 1), &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    // There is another hold under this key now: the first ended and was deleted.
    let swept = sweep_while(&wire, &first.reservation_id, "created_at", NOW.as_millis() + 1).await;
    assert_eq!((swept.holds, swept.ended_before), (0, 1));
    assert_eq!(books(&wire).await["tee"].held, 2);
}

#[tokio::test]
async fn a_hold_that_was_extended_since_the_index_was_read_stays() {
    let wire = tee(5, 1).await;
    let held = reserve(&store(&wire, 1), &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    let swept = sweep_while(&wire, &held.reservation_id, "expires_at", LATE.as_millis() + 1).await;
    assert_eq!((swept.holds, swept.ended_before), (0, 1));
    assert_eq!(books(&wire).await["tee"].held, 2);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_and_conflicts_give_back_once() {
    for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict] {
        let wire = table();
        let limited = Product { counts_per_customer: true, max_per_customer: Some(9), ..product("tee", 30, 2) };
        stocked(&wire, &[limited, product("cap", 30, 3)]).await;
        let store = store(&wire, 1);
        for n in 0..12 {
            let lines = [("tee", 1), ("cap", 2)];
            reserve(&store, &basket(&format!("c{}", n % 4), &format!("k{n}"), &lines), NOW).await.unwrap();
        }
        wire.fail("TransactWriteItems", 5, fault);
        store.release_overdue(LATE, soon()).await.unwrap();
        let books = books(&wire).await;
        assert_eq!((books["tee"].available, books["cap"].available), (30, 30), "{fault:?}");
        // The limit's units are back too: each customer may take all nine again.
        for n in 0..3 {
            reserve(&store, &basket(&format!("c{n}"), "again", &[("tee", 9)]), LATE).await.unwrap();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn holds_that_are_not_released_in_time_are_left_for_the_next_sweep() {
    let wire = tee(10, 1).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap();
    wire.fail("TransactWriteItems", usize::MAX, Fault::Throttled);
    let error = store.release_overdue(LATE, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(books(&wire).await["tee"].held, 4);
    assert_eq!(store.release_overdue(LATE, soon()).await.unwrap().holds, 1);
}

/// One unit held on each of three shards. Their batches come in this order: cap 0, tee 0, tee 1.
async fn three_batches() -> (Wire, Store) {
    let wire = table();
    stocked(&wire, &[product("cap", 1, 1), product("tee", 2, 2)]).await;
    // One partition of the index, so that all holds are on one page.
    let store = store(&wire, 1).with_due_partitions(1, 1);
    for (key, id) in [("k0", "cap"), ("k1", "tee"), ("k2", "tee")] {
        reserve(&store, &basket("alice", key, &[(id, 1)]), NOW).await.unwrap();
    }
    (wire, store)
}

/// Tees of which each unit is held by a customer of its own, evenly distributed over the shards.
async fn all_held(units: u64, shards: u32) -> (Wire, Store) {
    let wire = tee(units, shards).await;
    // No more partitions of the index than four shards need.
    let store = store(&wire, 1).with_due_partitions(8, 1);
    for n in 0..units {
        reserve(&store, &basket(&format!("c{n}"), "k", &[("tee", 1)]), NOW).await.unwrap();
    }
    (wire, store)
}

fn touches(call: &Call, id: &str, shard: u32) -> bool {
    call.transaction_keys().contains(&keys::shard(&product_id(id), shard).pk)
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_always_fails_does_not_keep_the_others_from_being_released() {
    for (id, shard) in [("cap", 0), ("tee", 0), ("tee", 1)] {
        let (wire, store) = three_batches().await;
        wire.script(move |call| touches(call, id, shard).then_some(Fault::Conflict));
        let error = store.release_overdue(LATE, soon()).await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{id} {shard}: {error:?}");
        let held: u64 = books(&wire).await.values().map(|books| books.held).sum();
        assert_eq!(held, 1, "{id} {shard}");
        let swept = store.release_overdue(LATE, soon()).await.unwrap();
        assert_eq!(swept, Swept { holds: 1, units: 1, ended_before: 0, complete: true });
    }
}

#[tokio::test]
async fn a_hold_that_cannot_be_read_does_not_keep_the_others_from_being_released() {
    let (wire, store) = three_batches().await;
    let unreadable = keys::reservation(&basket("alice", "k0", &[("cap", 1)]).reservation_id);
    client(&wire)
        .update_item()
        .table_name(TABLE)
        .set_key(Some(unreadable.item()))
        .update_expression("SET #lines = :lines")
        .expression_attribute_names("#lines", "lines")
        .expression_attribute_values(":lines", AttributeValue::S("of another version".to_owned()))
        .send()
        .await
        .unwrap();
    let error = store.release_overdue(LATE, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    let left = store.release_overdue(LATE, soon()).await.unwrap_err();
    assert!(matches!(left, Error::Internal { .. }), "it is reported as long as it is there: {left:?}");
    // A reserve that finds too few units gets those that can be released.
    let reserved = reserve(&store, &basket("bob", "k", &[("tee", 2)]), LATE).await.unwrap();
    assert_eq!(reserved.reservation.status, Status::Held);
}

#[tokio::test(start_paused = true)]
async fn the_sweep_returns_the_first_error_of_its_batches() {
    let (wire, store) = three_batches().await;
    wire.script(|call| {
        let denied = touches(call, "cap", 0).then_some(Fault::AccessDenied);
        denied.or_else(|| touches(call, "tee", 0).then_some(Fault::Conflict))
    });
    let error = store.release_overdue(LATE, soon()).await.unwrap_err();
    assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    let books = books(&wire).await;
    assert_eq!((books["cap"].held, books["tee"].held), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_is_cut_short_says_that_there_is_more_and_is_no_failure() {
    // More than one transaction of a shard.
    let (wire, store) = all_held(60, 1).await;
    let mut writes = 0;
    wire.script(move |call| {
        writes += u32::from(call.operation == "TransactWriteItems");
        (writes > 1 && call.operation == "TransactWriteItems").then_some(Fault::Silence)
    });
    let in_time = Deadline::after(Duration::from_secs(3));
    let swept = store.release_overdue(LATE, in_time).await.unwrap();
    assert_eq!((swept.holds, swept.complete), (49, false));
    // Nothing done at all is a failure.
    let error = store.release_overdue(LATE, Deadline::after(Duration::from_secs(3))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    wire.clear_faults();
    let swept = store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.complete), (11, true));
}

#[tokio::test(start_paused = true)]
async fn a_shard_that_refuses_everything_does_not_keep_the_others_waiting() {
    // Each shard has three transactions' worth of holds; one of them refuses all.
    let (wire, store) = all_held(400, 4).await;
    wire.script(|call| touches(call, "tee", 2).then_some(Fault::Conflict));
    let started = tokio::time::Instant::now();
    let error = store.release_overdue(LATE, Deadline::after(Duration::from_secs(20))).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    // The time of one transaction, not of three.
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert_eq!(books(&wire).await["tee"].held, 100);
}

#[tokio::test(start_paused = true)]
async fn shards_are_released_side_by_side_and_each_one_transaction_after_another() {
    // Sixty holds on each of four shards.
    let (wire, store) = all_held(240, 4).await;
    wire.take_calls();
    let shards = |calls: Vec<Call>| -> Vec<String> {
        let done = calls.iter().filter(|call| call.operation == "TransactWriteItems" && call.response.is_some());
        done.flat_map(Call::transaction_keys).filter(|key| key.contains("STOCK#")).collect()
    };
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let meanwhile = async {
        gate.arrived().await;
        // Time passes once nothing else can go on.
        tokio::time::sleep(Duration::from_millis(1)).await;
        let others = shards(wire.take_calls());
        gate.open();
        others
    };
    let (swept, others) = tokio::join!(store.release_overdue(LATE, soon()), meanwhile);
    let swept = swept.unwrap();
    assert_eq!((swept.holds, swept.units, swept.complete), (240, 240, true));
    // Two transactions of each of the others, none on the same shard as the one before, and then the two of the shard that waited.
    let different: BTreeSet<&String> = others.iter().collect();
    assert_eq!((others.len(), different.len()), (6, 3), "{others:?}");
    assert!(others.windows(2).all(|two| two[0] != two[1]), "{others:?}");
    let waited = shards(wire.take_calls());
    assert!(waited.len() == 2 && waited[0] == waited[1] && !others.contains(&waited[0]), "{waited:?}, {others:?}");
    assert_eq!(books(&wire).await["tee"].available, 240);
}

#[tokio::test(start_paused = true)]
async fn a_shard_rests_between_two_transactions_if_there_is_no_other() {
    for (holds, rests) in [(49, 0), (98, 1), (147, 2)] {
        let (_, store) = all_held(holds, 1).await;
        let began = tokio::time::Instant::now();
        assert_eq!(store.release_overdue(LATE, soon()).await.unwrap().holds, holds);
        assert_eq!(began.elapsed(), Duration::from_millis(5) * rests, "{holds}");
    }
}

#[tokio::test]
async fn ended_holds_cannot_be_cancelled_or_extended() {
    let wire = tee(10, 1).await;
    let store = store(&wire, 1);
    let alice = customer("alice");
    let held = reserve(&store, &basket("alice", "k", &[("tee", 4)]), NOW).await.unwrap().reservation;
    let extend = async |at| {
        let hold = HoldSeconds::DEFAULT;
        store.extend(&held.reservation_id, &alice, hold, at, soon(), |_| async { Ok(()) }).await
    };
    let expired = |answer: Result<_, Error>| matches!(answer.unwrap_err(), Error::Refused(Refusal::HoldExpired));
    assert!(expired(store.cancel(&held.reservation_id, &alice, LATE, soon()).await.map(drop)));
    assert!(expired(extend(LATE).await.map(drop)));
    store.release_overdue(LATE, soon()).await.unwrap();
    assert!(expired(store.cancel(&held.reservation_id, &alice, NOW, soon()).await.map(drop)));
    assert!(expired(extend(NOW).await.map(drop)));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_whose_time_is_over_stops_and_says_that_there_is_more() {
    // One more than fit a transaction.
    let (wire, store) = all_held(50, 1).await;
    wire.take_calls();
    let swept = store.release_overdue(LATE, Deadline::after(Duration::ZERO)).await.unwrap();
    assert_eq!(swept, Swept::default());
    assert!(wire.take_calls().is_empty());
    // The environment is frozen while the first transaction is in flight, and thawed too late for the second.
    wire.script(|call| {
        if call.operation == "TransactWriteItems" {
            assert!(tokio::time::advance(Duration::from_secs(60)).now_or_never().is_none());
        }
        None
    });
    let swept = store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.units, swept.complete), (49, 49, false));
    wire.clear_faults();
    wire.take_calls();
    let swept = store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.complete), (1, true));
    let calls = wire.take_calls();
    // Each partition once.
    assert_eq!(calls.iter().filter(|call| call.operation == "Query").count(), 9);
}

#[tokio::test]
async fn a_table_of_both_layouts_is_one_table() {
    let wire = table();
    stocked(&wire, &[product("cap", 40, 4), product("tee", 40, 4)]).await;
    // As during an upgrade: environments that write layout 1, and others that write layout 2.
    let (one, two) = (store(&wire, 1).with_layout(Layout::One), store(&wire, 2));
    let mut keys = BTreeSet::new();
    for n in 0..20 {
        for (store, key) in [(&one, "k1"), (&two, "k2")] {
            let lines: &[(&str, u32)] = if n % 2 == 0 { &[("tee", 1)] } else { &[("cap", 1), ("tee", 1)] };
            let held = reserve(store, &basket(&format!("c{n}"), key, lines), NOW).await.unwrap().reservation;
            let item = crate::stored(&wire, &held).await;
            let [due, made] = ["due_key", "made_key"].map(|name| item[name].as_s().unwrap().clone());
            let number = |key: &str| key.split_once('#').unwrap().1.parse::<u32>();
            match (key, lines.len()) {
                ("k1", _) => assert!(number(&due).unwrap() < 8 && number(&made).unwrap() < 8, "{due}, {made}"),
                (_, 1) => assert!(due.starts_with("DUE#P") && number(&made).unwrap() < 64, "{due}, {made}"),
                _ => assert!(number(&due).unwrap() < 16, "{due}"),
            }
            keys.insert(due);
        }
    }
    assert!(keys.len() > 12, "{keys:?}");
    // All lists show all of them, and the books agree.
    for store in [&one, &two] {
        let found = store.reservations(&Search::default(), NOW, 100, None, soon()).await.unwrap().items;
        assert_eq!(found.len(), 40);
        let audited = store.audit(&product_id("tee"), soon()).await.unwrap();
        assert!(audited.complete && audited.verdict.findings.is_empty(), "{audited:?}");
    }
    // A search for one product's overdue holds finds those of both, and so does a sweep.
    let units = |n| basket(&format!("late{n}"), "k", &[("cap", 30)]);
    reserve(&one, &units(1), LATE).await.unwrap();
    assert_eq!(books(&wire).await["cap"].available, 10);
    let swept = two.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!((swept.holds, swept.complete), (20, true));
    assert_eq!((books(&wire).await["tee"].available, books(&wire).await["cap"].available), (40, 10));
}

#[tokio::test]
async fn a_hold_with_other_lines_is_found_by_who_searches_for_those() {
    let wire = table();
    stocked(&wire, &[product("cap", 10, 4), product("tee", 10, 4)]).await;
    for layout in [Layout::One, Layout::Two] {
        let shop = store(&wire, 1).with_layout(layout);
        for (n, changed) in [&[("cap", 10)][..], &[("tee", 1), ("cap", 9)]].into_iter().enumerate() {
            let owner = format!("{layout:?}{n}");
            let held = reserve(&store(&wire, 2), &basket(&owner, "k", &[("tee", 1)]), NOW).await.unwrap().reservation;
            crate::changes::change(&shop, &held, changed).await.unwrap();
            // All units of the cap are in a hold that is over: whoever wants them releases it, whatever it was before.
            let (shop, other) = (store(&wire, 3), format!("other{layout:?}{n}"));
            let taken = reserve(&shop, &basket(&other, "k", &[("cap", 9)]), LATE).await.unwrap().reservation;
            shop.cancel(&taken.reservation_id, &taken.customer, LATE, soon()).await.unwrap();
            // The next one does not rely on this search.
            wire.step_clock(1_000);
        }
    }
}
