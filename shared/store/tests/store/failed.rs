//! Failed confirmations: copies are one, and what is settled stays settled.

use holdfast_domain::Refusal;
use holdfast_store::{Error, FailedState, Failure};
use holdfast_testkit::fixtures::{NOW, basket, customer, payment, soon, store, table};

fn failure(key: &str, paid: &str) -> Failure {
    Failure {
        reservation_id: Some(basket("alice", key, &[("tee", 1)]).reservation_id),
        customer: Some(customer("alice")),
        payment_reference: Some(payment(paid)),
        reason: "refund_required".to_owned(),
        body: "{}".to_owned(),
    }
}

#[tokio::test]
async fn copies_of_one_failure_are_one_and_late_copies_open_nothing() {
    let store = store(&table().await, 1);
    let failed = failure("k", "pay_1");
    for seconds in 0..3 {
        store.record_failure(&failed, NOW.plus_seconds(seconds), soon()).await.unwrap();
    }
    store.record_failure(&failure("k", "pay_2"), NOW, soon()).await.unwrap();
    let listed = store.failed_confirmations(Some(FailedState::Open), 10, None, soon()).await.unwrap().items;
    assert_eq!(listed.len(), 2, "a second payment is a second failure");
    let one = store.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!((one.first_failed_at, one.last_failed_at), (NOW, NOW.plus_seconds(2)));

    let resolved = store.resolve_failed(&one.id, "admin", Some("refunded"), NOW, soon()).await.unwrap();
    assert_eq!((resolved.state, resolved.note.as_deref()), (FailedState::Resolved, Some("refunded")));
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&one.id, soon()).await.unwrap().state, FailedState::Resolved);
    let settled = |answer: Result<_, Error>| matches!(answer, Err(Error::Refused(Refusal::AlreadySettled)));
    assert!(settled(store.resolve_failed(&one.id, "admin", None, NOW, soon()).await));
    assert!(settled(store.failed_is_retrying(&one.id, soon()).await));
    let missing = store.failed_is_retrying("fc_x", soon()).await;
    assert!(matches!(missing, Err(Error::Refused(Refusal::FailedConfirmationNotFound))));
}

#[tokio::test]
async fn a_retry_that_succeeds_settles_and_one_that_fails_opens_again() {
    let store = store(&table().await, 1);
    let failed = failure("k", "pay_1");
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    store.failed_is_retrying(&failed.id(), soon()).await.unwrap();
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&failed.id(), soon()).await.unwrap().state, FailedState::Open);
    store.failed_is_retrying(&failed.id(), soon()).await.unwrap();
    let reservation = failed.reservation_id.as_ref().unwrap();
    store.failed_is_confirmed(reservation, failed.payment_reference.as_ref(), NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&failed.id(), soon()).await.unwrap().state, FailedState::Confirmed);
    // Where there is nothing to settle, nothing is made.
    let other = basket("alice", "other", &[("tee", 1)]).reservation_id;
    store.failed_is_confirmed(&other, None, NOW, soon()).await.unwrap();
    assert_eq!(store.failed_confirmations(None, 10, None, soon()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn the_list_comes_in_pages_of_one_state() {
    let store = store(&table().await, 1);
    for n in 0..7 {
        let failed = failure(&format!("k{n}"), "pay");
        store.record_failure(&failed, NOW, soon()).await.unwrap();
        if n < 2 {
            store.resolve_failed(&failed.id(), "admin", None, NOW, soon()).await.unwrap();
        }
    }
    for (state, count) in [(None, 7), (Some(FailedState::Open), 5), (Some(FailedState::Resolved), 2)] {
        let (mut seen, mut cursor) = (0, None);
        loop {
            let page = store.failed_confirmations(state, 2, cursor, soon()).await.unwrap();
            assert!(page.items.len() <= 2);
            seen += page.items.len();
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(seen, count, "{state:?}");
    }
}
