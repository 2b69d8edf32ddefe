//! Environments that share what they find out about a product that is sold out.

use std::time::Duration;

use futures_util::future::join_all;
use holdfast_domain::Refusal;
use holdfast_store::{Error, Reserved, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, client, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};
use tokio::time::Instant;

/// A product on four shards that is sold out, and this many environments, each of which has found that out some seconds ago.
async fn sold_out(environments: usize) -> (Wire, Vec<Store>, Reserved) {
    let wire = table();
    stocked(&wire, &[product("tee", 4, 4)]).await;
    let stores: Vec<Store> = (1..=environments).map(|n| store(&wire, n as u64)).collect();
    let held = reserve(&stores[0], &basket("owner", "k", &[("tee", 4)]), NOW).await.unwrap();
    for store in &stores {
        assert_eq!(ask(store, "early").await, "insufficient_stock");
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    wire.take_calls();
    (wire, stores, held)
}

async fn ask(store: &Store, key: &str) -> &'static str {
    match reserve(store, &basket("guest", key, &[("tee", 1)]), NOW.plus_seconds(2)).await {
        Ok(reserved) if reserved.replayed => "replayed",
        Ok(_) => "reserved",
        Err(Error::Refused(Refusal::InsufficientStock { .. })) => "insufficient_stock",
        Err(error) => panic!("{error:?}"),
    }
}

async fn give_back(store: &Store, Reserved { reservation, .. }: &Reserved) {
    store.cancel(&reservation.reservation_id, &reservation.customer, NOW.plus_seconds(2), soon()).await.unwrap();
}

/// How often all shards were read at one instant.
fn looks(calls: &[Call]) -> usize {
    let is_look = |call: &&Call| {
        call.operation == "TransactGetItems"
            && call.request["TransactItems"].as_array().is_some_and(|all| all.len() == 4)
    };
    calls.iter().filter(is_look).count()
}

fn of_looks(call: &Call, operation: &str) -> bool {
    call.operation == operation && call.request["Key"]["sk"]["S"] == "LOOKS"
}

#[tokio::test(start_paused = true)]
async fn many_environments_share_a_look() {
    let (wire, stores, _) = sold_out(40).await;
    let answers = join_all(stores.iter().map(|store| ask(store, "k"))).await;
    assert!(answers.iter().all(|&answer| answer == "insufficient_stock"), "{answers:?}");
    let calls = wire.take_calls();
    // One that those share who asked before it began, and one for those who asked while it was under way.
    assert!((1..=2).contains(&looks(&calls)), "{}", looks(&calls));
    // Each remembers it for a second.
    let answers = join_all(stores.iter().map(|store| ask(store, "again"))).await;
    assert!(answers.iter().all(|&answer| answer == "insufficient_stock"), "{answers:?}");
    assert_eq!(looks(&wire.take_calls()), 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_began_before_is_not_enough() {
    let (_wire, stores, held) = sold_out(3).await;
    assert_eq!(ask(&stores[0], "k").await, "insufficient_stock");
    give_back(&stores[2], &held).await;
    assert_eq!(ask(&stores[1], "k").await, "reserved", "the last look ended before the units came back");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_is_under_way_is_not_enough() {
    let (wire, stores, held) = sold_out(3).await;
    // The first has looked, and has not said so, when the units come back and the second asks.
    let gate = wire.gate(|call| of_looks(call, "UpdateItem") && call.request.to_string().contains("ended"));
    let second = async {
        gate.arrived().await;
        give_back(&stores[2], &held).await;
        wire.take_calls();
        let asked = async {
            // The second one has read what is under way.
            while !wire.take_calls().iter().any(|call| of_looks(call, "GetItem")) {
                tokio::task::yield_now().await;
            }
            gate.open();
        };
        tokio::join!(ask(&stores[1], "k"), asked).0
    };
    let answers = tokio::join!(ask(&stores[0], "k"), second);
    assert_eq!(answers, ("insufficient_stock", "reserved"));
}

#[tokio::test(start_paused = true)]
async fn whoever_is_frozen_while_it_looks_stops_nobody() {
    let (wire, stores, held) = sold_out(2).await;
    let gate = wire.gate(|call| call.operation == "BatchGetItem");
    let second = async {
        gate.arrived().await;
        let began = Instant::now();
        let answer = ask(&stores[1], "k").await;
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
        assert_eq!(answer, "insufficient_stock");
        give_back(&stores[1], &held).await;
        gate.open();
    };
    let (first, ()) = tokio::join!(ask(&stores[0], "k"), second);
    // It looks when it is back.
    assert_eq!(first, "reserved");
    // What it says then of its own look comes too late: the other one's has a greater number.
    let item = wire.take_calls().into_iter().rev().find(|call| of_looks(call, "UpdateItem")).unwrap();
    assert_eq!(
        item.response.unwrap()["__type"].as_str().unwrap().rsplit('#').next(),
        Some("ConditionalCheckFailedException")
    );
}

#[tokio::test(start_paused = true)]
async fn without_the_item_each_environment_looks_for_itself() {
    for operation in ["GetItem", "UpdateItem"] {
        for fault in [Fault::Throttled, Fault::LostBefore, Fault::LostAfter, Fault::Silence, Fault::AccessDenied] {
            let (wire, stores, _) = sold_out(2).await;
            wire.script(move |call| of_looks(call, operation).then_some(fault));
            for store in &stores {
                assert_eq!(ask(store, "k").await, "insufficient_stock", "{operation} {fault:?}");
            }
            assert_eq!(looks(&wire.take_calls()), 2, "{operation} {fault:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_item_whose_numbers_went_back_is_not_believed() {
    let (wire, stores, held) = sold_out(3).await;
    // Somebody deletes it while the first one looks, and restores it: its look says that nothing is free.
    let gate = wire.gate(|call| call.operation == "BatchGetItem");
    let meanwhile = async {
        gate.arrived().await;
        let key = keys::looks(&product_id("tee")).item();
        client(&wire).delete_item().table_name(TABLE).set_key(Some(key)).send().await.unwrap();
        gate.open();
    };
    assert_eq!(tokio::join!(ask(&stores[0], "k"), meanwhile).0, "insufficient_stock");
    give_back(&stores[2], &held).await;
    assert_eq!(ask(&stores[1], "k").await, "reserved");
}

#[tokio::test(start_paused = true)]
async fn a_look_that_finds_enough_or_fails_is_ended_as_well() {
    let (wire, stores, held) = sold_out(2).await;
    wire.script(|call| (call.operation == "Query").then_some(Fault::AccessDenied));
    let failed = reserve(&stores[0], &basket("guest", "k", &[("tee", 1)]), NOW.plus_seconds(2)).await;
    assert!(matches!(failed, Err(Error::Internal { .. })), "{failed:?}");
    wire.script(|_| None);
    // Nobody waits for it.
    let began = Instant::now();
    assert_eq!(ask(&stores[1], "k").await, "insufficient_stock");
    give_back(&stores[1], &held).await;
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&stores[0], "again").await, "reserved");
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask(&stores[1], "last").await, "reserved");
    assert!(began.elapsed() < Duration::from_millis(2_050), "{:?}", began.elapsed());
}

/// How many partitions of the index `due` were searched.
fn searched(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.operation == "Query").count()
}

/// Two for each of four shards, and those of baskets.
const PARTITIONS: usize = 2 * 4 + 16;

#[tokio::test(start_paused = true)]
async fn overdue_holds_are_searched_for_once_a_second_for_all() {
    let (wire, stores, _) = sold_out(80).await;
    // One after another, so that each begins a look.
    for (n, store) in stores.iter().enumerate() {
        assert_eq!(ask(store, &format!("k{n}")).await, "insufficient_stock");
        tokio::time::advance(Duration::from_millis(25)).await;
    }
    let calls = wire.take_calls();
    assert_eq!(looks(&calls), 80);
    // In two seconds.
    assert!((2..=3).contains(&(searched(&calls) / PARTITIONS)), "{}", searched(&calls));
    assert_eq!(searched(&calls) % PARTITIONS, 0);
}

#[tokio::test(start_paused = true)]
async fn a_look_that_finds_enough_does_not_end_the_search() {
    let (wire, stores, held) = sold_out(3).await;
    assert_eq!(ask(&stores[0], "k").await, "insufficient_stock");
    give_back(&stores[2], &held).await;
    wire.take_calls();
    assert_eq!(ask(&stores[1], "k").await, "reserved");
    let refused = reserve(&stores[2], &basket("greedy", "k", &[("tee", 4)]), NOW.plus_seconds(2)).await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::InsufficientStock { .. }))), "{refused:?}");
    assert_eq!(searched(&wire.take_calls()), 0);
}

#[tokio::test(start_paused = true)]
async fn what_has_ended_is_found_within_a_second() {
    let (_wire, stores, held) = sold_out(3).await;
    let left = held.reservation.expires_at.as_millis() - NOW.plus_seconds(2).as_millis();
    tokio::time::advance(Duration::from_millis(u64::try_from(left).unwrap() - 200)).await;
    assert_eq!(ask(&stores[0], "before").await, "insufficient_stock");
    tokio::time::advance(Duration::from_millis(300)).await;
    // The search is so new that nobody makes another one.
    assert_eq!(ask(&stores[1], "just over").await, "insufficient_stock");
    tokio::time::advance(Duration::from_millis(700)).await;
    // What it says now is not older than a second: neither by the first environment's memory nor by the last one's search.
    assert_eq!(ask(&stores[2], "another environment").await, "reserved");
}

#[tokio::test(start_paused = true)]
async fn a_search_that_another_clock_dates_is_not_believed_for_longer() {
    for ahead_ms in [-2_000, 2_000] {
        let (wire, stores, _) = sold_out(2).await;
        wire.step_clock(ahead_ms);
        assert_eq!(ask(&stores[0], "k").await, "insufficient_stock");
        wire.step_clock(-ahead_ms);
        wire.take_calls();
        assert_eq!(ask(&stores[1], "k").await, "insufficient_stock");
        assert_eq!(searched(&wire.take_calls()), PARTITIONS, "{ahead_ms}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_comes_too_late_is_not_taken_and_not_looked_for_alone() {
    let (wire, stores, _) = sold_out(41).await;
    assert_eq!(ask(&stores[0], "searches").await, "insufficient_stock");
    tokio::time::advance(Duration::from_millis(700)).await;
    wire.take_calls();
    // It relies on that search, and tells what it has found when that is a second old.
    let gate = wire.gate(|call| of_looks(call, "UpdateItem") && call.request.to_string().contains("ended"));
    let late = async {
        gate.arrived().await;
        tokio::time::advance(Duration::from_millis(240)).await;
        let waiting = join_all(stores[2..].iter().map(|store| ask(store, "k")));
        let told = async {
            tokio::time::sleep(Duration::from_millis(80)).await;
            gate.open();
        };
        tokio::join!(waiting, told).0
    };
    let (first, others) = tokio::join!(ask(&stores[1], "k"), late);
    assert!(others.iter().chain([&first]).all(|&answer| answer == "insufficient_stock"), "{first} {others:?}");
    let calls = wire.take_calls();
    assert_eq!(searched(&calls), PARTITIONS, "one of those who waited has searched for all");
    assert!((2..=4).contains(&looks(&calls)), "{}", looks(&calls));
}

#[tokio::test(start_paused = true)]
async fn the_first_refusal_shares_its_look_as_well() {
    let wire = table();
    stocked(&wire, &[product("tee", 4, 4)]).await;
    let stores: Vec<Store> = (1..=40).map(|n| store(&wire, n)).collect();
    reserve(&stores[0], &basket("owner", "k", &[("tee", 4)]), NOW).await.unwrap();
    wire.take_calls();
    let answers = join_all(stores.iter().map(|store| ask(store, "k"))).await;
    assert!(answers.iter().all(|&answer| answer == "insufficient_stock"), "{answers:?}");
    let calls = wire.take_calls();
    assert!((1..=3).contains(&looks(&calls)), "{}", looks(&calls));
    assert_eq!(searched(&calls), PARTITIONS);
}

#[tokio::test(start_paused = true)]
async fn with_few_shards_nobody_asks() {
    let (wire, stores, _) = sold_out(1).await;
    stocked(&wire, &[product("mug", 1, 3)]).await;
    reserve(&stores[0], &basket("owner", "mug", &[("mug", 1)]), NOW).await.unwrap();
    for _ in 0..3 {
        let refused = reserve(&stores[0], &basket("guest", "mug", &[("mug", 1)]), NOW).await;
        assert!(matches!(refused, Err(Error::Refused(Refusal::InsufficientStock { .. }))), "{refused:?}");
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    assert_eq!(wire.take_calls().iter().filter(|call| of_looks(call, "GetItem")).count(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_longer_than_a_second_ago_refuses_nobody() {
    let (wire, stores, held) = sold_out(2).await;
    // The environment is frozen when the answer of its look arrives.
    let gate = wire.gate_after(|call| call.operation == "TransactGetItems");
    let meanwhile = async {
        gate.arrived().await;
        give_back(&stores[1], &held).await;
        wire.step_clock(1_000);
        gate.open();
    };
    assert_eq!(tokio::join!(ask(&stores[0], "k"), meanwhile).0, "reserved");
}
