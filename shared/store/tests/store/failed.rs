//! Failed confirmations: copies are one, and what is settled stays settled.

use holdfast_domain::{Confirmation, FailedConfirmation, FailedState, Failure, Refusal};
use holdfast_store::Error;
use holdfast_testkit::fixtures::{NOW, basket, confirmation, customer, payment, soon, store, table};
use holdfast_testkit::wire::Fault;

fn failure(key: &str, paid: &str) -> Failure {
    Failure {
        confirmation: Some(Confirmation {
            reservation_id: basket("alice", key, &[("tee", 1)]).reservation_id,
            customer: customer("alice"),
            payment_reference: Some(payment(paid)),
            requested_at: NOW,
        }),
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
    let listed = store.failed_confirmations(Some(FailedState::Open), 10, None, NOW, soon()).await.unwrap().items;
    assert_eq!(listed.len(), 2, "a second payment is a second failure");
    let one = store.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!((one.first_failed_at, one.last_failed_at), (NOW, NOW.plus_seconds(2)));

    let resolved = store.resolve_failed(&one.id, "admin", Some("refunded"), NOW, soon()).await.unwrap();
    assert_eq!((resolved.state, resolved.note.as_deref()), (FailedState::Resolved, Some("refunded")));
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&one.id, soon()).await.unwrap().state, FailedState::Resolved);
    let settled = |answer: Result<_, Error>| matches!(answer, Err(Error::Refused(Refusal::AlreadySettled)));
    assert!(settled(store.resolve_failed(&one.id, "admin", None, NOW, soon()).await));
    assert!(settled(store.mark_retrying(&one, soon()).await));
    let missing = FailedConfirmation { id: "fc_x".to_owned(), ..one };
    let missing = store.mark_retrying(&missing, soon()).await;
    assert!(matches!(missing, Err(Error::Refused(Refusal::FailedConfirmationNotFound))));
}

#[tokio::test]
async fn a_retry_that_succeeds_settles_and_one_that_fails_opens_again() {
    let store = store(&table().await, 1);
    let failed = failure("k", "pay_1");
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    let first = store.failed(&failed.id(), soon()).await.unwrap();
    store.mark_retrying(&first, soon()).await.unwrap();
    store.record_failure(&failed, NOW.plus_seconds(1), soon()).await.unwrap();
    let again = store.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!(again.state, FailedState::Open);
    // It came back before it was marked, or a copy of the mark comes late: nothing of it is in the queue any more.
    assert_eq!(store.mark_retrying(&first, soon()).await.unwrap(), again);
    // Also where a copy of the first failure comes late, and so the mark of its retry.
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    assert_eq!(store.mark_retrying(&first, soon()).await.unwrap().state, FailedState::Open);
    let again = store.failed(&failed.id(), soon()).await.unwrap();
    store.mark_retrying(&again, soon()).await.unwrap();
    store.settle_as_confirmed(failed.confirmation.as_ref().unwrap(), NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&failed.id(), soon()).await.unwrap().state, FailedState::Confirmed);
    // An admin of the name that the queue settles under has not settled it.
    let resolved = store.resolve_failed(&failed.id(), "retry", None, NOW, soon()).await;
    assert!(matches!(resolved, Err(Error::Refused(Refusal::AlreadySettled))), "{resolved:?}");
    // Where there is nothing to settle, nothing is made.
    let other = basket("alice", "other", &[("tee", 1)]).reservation_id;
    store.settle_as_confirmed(&confirmation(&other, &customer("alice"), None, NOW), NOW, soon()).await.unwrap();
    assert_eq!(store.failed_confirmations(None, 10, None, NOW, soon()).await.unwrap().items.len(), 1);
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
            let page = store.failed_confirmations(state, 2, cursor, NOW, soon()).await.unwrap();
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

#[tokio::test(start_paused = true)]
async fn a_failure_is_recorded_retried_and_settled_whatever_the_wire_does() {
    let faults = [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled];
    // Once or twice, the SDK itself repeats the call, and the store never hears of it; five times, it does.
    for (fault, times) in faults.into_iter().flat_map(|fault| [1, 2, 5].map(|times| (fault, times))) {
        let wire = table().await;
        let store = store(&wire, 1);
        let failed = failure("k", "pay_1");
        wire.fail("UpdateItem", times, fault);
        store.record_failure(&failed, NOW, soon()).await.unwrap();
        let open = store.failed(&failed.id(), soon()).await.unwrap();
        wire.fail("UpdateItem", times, fault);
        let retrying = store.mark_retrying(&open, soon()).await.unwrap();
        assert_eq!(retrying.state, FailedState::Retrying, "{fault:?} {times}");
        wire.fail("TransactWriteItems", times, fault);
        let resolved = store.resolve_failed(&failed.id(), "admin", Some("refunded"), NOW, soon()).await;
        let resolved = resolved.unwrap_or_else(|error| panic!("{fault:?} {times}: {error}"));
        assert_eq!((resolved.state, resolved.settled_at), (FailedState::Resolved, Some(NOW)));
        assert_eq!(store.failed(&failed.id(), soon()).await.unwrap(), resolved);
        // Another admin, another moment, another note: that is not the answer that was lost.
        for (actor, note, at) in
            [("other", Some("refunded"), NOW), ("admin", None, NOW), ("admin", Some("refunded"), NOW.plus_seconds(1))]
        {
            let again = store.resolve_failed(&failed.id(), actor, note, at, soon()).await;
            assert!(matches!(again, Err(Error::Refused(Refusal::AlreadySettled))), "{actor} {note:?} {at:?}");
        }
    }
}

#[tokio::test]
async fn a_page_of_one_state_is_full_while_there_is_more_of_it() {
    let store = store(&table().await, 1);
    for n in 0..12 {
        let failed = failure(&format!("k{n}"), "pay");
        store.record_failure(&failed, NOW, soon()).await.unwrap();
        if n % 3 != 0 {
            store.resolve_failed(&failed.id(), "admin", None, NOW, soon()).await.unwrap();
        }
    }
    let first = store.failed_confirmations(Some(FailedState::Open), 3, None, NOW, soon()).await.unwrap();
    assert_eq!((first.items.len(), first.next.is_some()), (3, true));
    let last = store.failed_confirmations(Some(FailedState::Open), 3, first.next, NOW, soon()).await.unwrap();
    assert_eq!((last.items.len(), last.next), (1, None));
}
