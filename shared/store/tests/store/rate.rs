//! The count of a customer's requests.

use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::join_all;
use holdfast_domain::{RateLimit, Timestamp};
use holdfast_store::{Admitted, Deadline, Error, Store, keys};
use holdfast_testkit::fixtures::{NOW, TABLE, client, customer, soon, store, table};
use holdfast_testkit::wire::{Fault, Wire};
use tokio::sync::Notify;

/// Ten a second, five at once.
fn limit() -> RateLimit {
    RateLimit::new(10, 5).unwrap()
}

fn later(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOW.as_millis() + millis)
}

async fn ask(store: &Store, who: &str, now: Timestamp) -> Result<(), Duration> {
    match store.admit(&customer(who), limit(), now, soon()).await.unwrap() {
        Admitted::Yes => Ok(()),
        Admitted::RetryAfter(wait) => Err(wait),
    }
}

fn calls(wire: &Wire) -> usize {
    wire.take_calls().len()
}

#[tokio::test]
async fn a_burst_is_admitted_and_requests_beyond_it_are_told_how_long_to_wait() {
    let wire = table();
    let store = store(&wire, 1);
    for nth in 0..5 {
        assert_eq!(ask(&store, "alice", NOW).await, Ok(()), "{nth}");
    }
    assert_eq!(ask(&store, "alice", NOW).await, Err(Duration::from_millis(100)));
    assert_eq!(ask(&store, "alice", later(60)).await, Err(Duration::from_millis(40)));
    // Other customers are not affected.
    assert_eq!(ask(&store, "bob", NOW).await, Ok(()));
    assert_eq!(ask(&store, "alice", later(100)).await, Ok(()));
    assert_eq!(ask(&store, "alice", later(100)).await, Err(Duration::from_millis(100)));
    // A whole burst again, once the time of the last one is over.
    for nth in 0..5 {
        assert_eq!(ask(&store, "alice", later(700)).await, Ok(()), "{nth}");
    }
    assert!(ask(&store, "alice", later(700)).await.is_err());
}

#[tokio::test]
async fn it_costs_one_call_for_the_idle_and_the_refused_and_two_within_a_burst() {
    let wire = table();
    let store = store(&wire, 1);
    ask(&store, "alice", NOW).await.unwrap();
    assert_eq!(calls(&wire), 1);
    for _ in 0..4 {
        ask(&store, "alice", NOW).await.unwrap();
        assert_eq!(calls(&wire), 2);
    }
    ask(&store, "alice", NOW).await.unwrap_err();
    assert_eq!(calls(&wire), 1);
    ask(&store, "alice", later(10_000)).await.unwrap();
    assert_eq!(calls(&wire), 1);
}

#[tokio::test(start_paused = true)]
async fn forty_environments_admit_only_the_burst_of_two_hundred_requests() {
    let wire = table();
    let stores: Vec<Store> = (0..40).map(|seed| store(&wire, seed)).collect();
    let answers = join_all((0..200).map(|n| ask(&stores[n % stores.len()], "alice", NOW))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
    // A second later the burst is available again: five at once, and no more.
    let answers = join_all((0..200).map(|n| ask(&stores[n % stores.len()], "alice", later(1_000)))).await;
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 5);
}

#[tokio::test(start_paused = true)]
async fn its_item_expires_but_not_before_it_has_no_effect() {
    let wire = table();
    ask(&store(&wire, 1), "alice", NOW).await.unwrap();
    let key = keys::rate(&customer("alice")).item();
    let item =
        client(&wire).get_item().table_name(TABLE).set_key(Some(key.clone())).send().await.unwrap().item.unwrap();
    let ttl: i64 = item[keys::TTL].as_n().unwrap().parse().unwrap();
    assert!((NOW.as_seconds() + 600..NOW.as_seconds() + 86_400).contains(&ttl), "{ttl}");
    assert!(!item.contains_key(keys::DUE_KEY) && !item.contains_key(keys::CUSTOMER), "in no index: {item:?}");

    // Deleted between the two updates of one request: counting starts again.
    wire.take_calls();
    let refused_once = Arc::new(Notify::new());
    let (mut updates, notify) = (0, refused_once.clone());
    wire.script(move |call| {
        updates += usize::from(call.operation == "UpdateItem");
        // The first update finds "within a burst". The second waits at the gate, and meanwhile the item is deleted.
        let second = call.operation == "UpdateItem" && updates == 2;
        second.then(|| notify.notify_one()).map(|()| Fault::Throttled)
    });
    let store = store(&wire, 2);
    let (asked, ()) = tokio::join!(ask(&store, "alice", NOW), async {
        refused_once.notified().await;
        client(&wire).delete_item().table_name(TABLE).set_key(Some(key)).send().await.unwrap();
    });
    assert_eq!(asked, Ok(()));
    // Within a burst; throttled; the item is gone; counting starts again.
    assert_eq!(wire.take_calls().iter().filter(|call| call.operation == "UpdateItem").count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_admits_no_more_than_the_limit_and_an_outage_is_an_error() {
    let wire = table();
    let store = store(&wire, 1);
    wire.fail("UpdateItem", 1, Fault::LostAfter);
    let mut admitted = 0;
    for _ in 0..10 {
        admitted += usize::from(ask(&store, "alice", NOW).await.is_ok());
    }
    assert!((4..=5).contains(&admitted), "{admitted}");
    for fault in [Fault::LostBefore, Fault::ServerError] {
        wire.fail_all(&["UpdateItem"], fault);
        let deadline = Deadline::after(Duration::from_secs(1));
        let away = store.admit(&customer("bob"), limit(), NOW, deadline).await;
        assert!(matches!(away, Err(Error::Unavailable { .. })), "{fault:?}: {away:?}");
    }
    // Their own item throttles: they are refused.
    wire.fail_all(&["UpdateItem"], Fault::Throttled);
    let throttled = store.admit(&customer("bob"), limit(), NOW, Deadline::after(Duration::from_secs(1))).await;
    assert!(matches!(throttled, Ok(Admitted::RetryAfter(wait)) if wait == Duration::from_secs(1)), "{throttled:?}");
    wire.fail_all(&["UpdateItem"], Fault::AccessDenied);
    assert!(matches!(store.admit(&customer("bob"), limit(), NOW, soon()).await, Err(Error::Internal { .. })));
    let value = AttributeValue::S("no number".to_owned());
    wire.clear_faults();
    let mut item = keys::rate(&customer("carol")).item();
    item.insert("tat".to_owned(), value);
    client(&wire).put_item().table_name(TABLE).set_item(Some(item)).send().await.unwrap();
    assert!(matches!(store.admit(&customer("carol"), limit(), NOW, soon()).await, Err(Error::Internal { .. })));
}
