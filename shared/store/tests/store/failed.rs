//! Failed confirmations: copies are one, and what is settled stays settled.

use futures_util::future::join;
use holdfast_domain::{
    Confirmation, FailedConfirmation, FailedState, Failure, NOT_CONFIRMED, PaymentReference, Product, Refusal, Status,
};
use holdfast_store::{Error, FailedSearch, Search, Store};
use holdfast_testkit::fixtures::{
    NOW, basket, books, confirmation, customer, payment, product, reserve, soon, store, table,
};
use holdfast_testkit::wire::Fault;

use crate::changes::with_its_answer_lost;
use crate::{LATE, failure_of, hold, pay, refusal, shop};

fn failure(key: &str, paid: &str) -> Failure {
    Failure {
        confirmation: Some(Confirmation {
            reservation_id: basket("alice", key, &[("tee", 1)]).reservation_id,
            customer: customer("alice"),
            payment_reference: Some(payment(paid)),
            requested_at: NOW,
            request: None,
        }),
        reason: "refund_required".to_owned(),
        body: "{}".to_owned(),
    }
}

#[tokio::test]
async fn copies_of_one_failure_are_one_and_late_copies_open_nothing() {
    let store = store(&table(), 1);
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
    assert_eq!(store.mark_retrying(&one, soon()).await.unwrap().state, FailedState::Resolved);
    let missing = FailedConfirmation { id: "fc_x".to_owned(), ..one };
    let missing = store.mark_retrying(&missing, soon()).await;
    assert!(matches!(missing, Err(Error::Refused(Refusal::FailedConfirmationNotFound))));
}

#[tokio::test]
async fn a_retry_that_succeeds_settles_and_one_that_fails_opens_again() {
    let store = store(&table(), 1);
    let failed = failure("k", "pay_1");
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    let first = store.failed(&failed.id(), soon()).await.unwrap();
    store.mark_retrying(&first, soon()).await.unwrap();
    store.record_failure(&failed, NOW.plus_seconds(1), soon()).await.unwrap();
    let again = store.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!(again.state, FailedState::Open);
    // It failed again before it was marked, or a copy of the mark comes late: nothing of it is in the queue any more.
    assert_eq!(store.mark_retrying(&first, soon()).await.unwrap(), again);
    // Also if a copy of the first failure comes late, and then the mark of its retry.
    store.record_failure(&failed, NOW, soon()).await.unwrap();
    assert_eq!(store.mark_retrying(&first, soon()).await.unwrap().state, FailedState::Open);
    let again = store.failed(&failed.id(), soon()).await.unwrap();
    store.mark_retrying(&again, soon()).await.unwrap();
    store.settle_as_confirmed(failed.confirmation.as_ref().unwrap(), NOW, soon()).await.unwrap();
    assert_eq!(store.failed(&failed.id(), soon()).await.unwrap().state, FailedState::Confirmed);
    // An admin whose name is the one that the queue settles under has not settled it.
    let resolved = store.resolve_failed(&failed.id(), "retry", None, NOW, soon()).await;
    assert!(matches!(resolved, Err(Error::Refused(Refusal::AlreadySettled))), "{resolved:?}");
    // If there is nothing to settle, nothing is created.
    let other = basket("alice", "other", &[("tee", 1)]).reservation_id;
    store.settle_as_confirmed(&confirmation(&other, &customer("alice"), None, NOW), NOW, soon()).await.unwrap();
    assert_eq!(store.failed_confirmations(None, 10, None, NOW, soon()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn the_list_comes_in_pages_of_one_state() {
    let store = store(&table(), 1);
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
async fn a_failure_is_recorded_retried_and_settled_despite_faults() {
    let faults = [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled];
    // Once or twice, the SDK itself retries the call, and the store does not notice; five times, it does.
    for (fault, times) in faults.into_iter().flat_map(|fault| [1, 2, 5].map(|times| (fault, times))) {
        let wire = table();
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
        // A repetition gets the answer that was lost. Another admin or another note does not.
        let again = store.resolve_failed(&failed.id(), "admin", Some("refunded"), NOW.plus_seconds(1), soon()).await;
        assert_eq!(again.unwrap(), resolved);
        for (actor, note) in [("other", Some("refunded")), ("admin", None)] {
            let again = store.resolve_failed(&failed.id(), actor, note, NOW, soon()).await;
            assert!(matches!(again, Err(Error::Refused(Refusal::AlreadySettled))), "{actor} {note:?}");
        }
    }
}

#[tokio::test]
async fn a_page_of_one_state_is_full_while_there_is_more_of_it() {
    let store = store(&table(), 1);
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

#[tokio::test]
async fn a_payment_that_is_owed_back_makes_no_order_until_an_admin_retries_it() {
    let (wire, shop, _) = shop(product("tee", 1, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    let bob = hold(&shop, "bob", 1, LATE).await;
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
    shop.cancel(&bob.reservation_id, &bob.customer, LATE, soon()).await.unwrap();
    // The provider sends its webhook again, days later, and the unit is free.
    let later = LATE.plus_seconds(3_600);
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", later).await), Refusal::RefundRequired);
    assert_eq!(books(&wire).await["tee"].available, 1);
    let failed = failure_of(&alice, "alice", Some("pay_1"), "refund_required", LATE);
    shop.record_failure(&failed, LATE, soon()).await.unwrap();
    shop.begin_retry(&failed.id(), true, soon()).await.unwrap();
    assert_eq!(pay(&shop, &alice, "pay_1", later).await.unwrap().status, Status::Confirmed);
    assert_eq!(books(&wire).await["tee"].sold, 1);
    // And it is settled, as recording a late copy of the failure shows.
    let settled = shop.record_failure(&failed, later, soon()).await.unwrap();
    assert_eq!(settled.state, FailedState::Confirmed);
    assert_eq!(refusal(shop.begin_retry(&failed.id(), true, soon()).await), Refusal::AlreadySettled);
}

#[tokio::test]
async fn those_of_one_reservation_are_found_by_an_index_and_are_in_no_other_list() {
    let (wire, shop, _) = shop(product("tee", 9, 1)).await;
    let (alice, bob) = (hold(&shop, "alice", 1, NOW).await, hold(&shop, "bob", 1, NOW).await);
    let unreadable = Failure { confirmation: None, reason: "unreadable".to_owned(), body: "?".to_owned() };
    shop.record_failure(&unreadable, NOW, soon()).await.unwrap();
    // Also those that another customer named, and that no attempt got an answer for: the reservation knows neither.
    let mut own = Vec::new();
    for (n, who) in ["alice", "mallory", "alice", "alice", "alice"].into_iter().enumerate() {
        let failed = failure_of(&alice, who, Some(&format!("pay_{n}")), NOT_CONFIRMED, NOW);
        own.push(shop.record_failure(&failed, NOW.plus_seconds(n as i64), soon()).await.unwrap());
    }
    let failed = failure_of(&bob, "bob", Some("pay_0"), NOT_CONFIRMED, NOW);
    shop.record_failure(&failed, NOW, soon()).await.unwrap();
    own[4] = shop.resolve_failed(&own[4].id, "admin", Some("refunded"), NOW, soon()).await.unwrap();
    // A copy that comes later changes nothing about that.
    let again = failure_of(&alice, "alice", Some("pay_0"), NOT_CONFIRMED, NOW);
    own[0] = shop.record_failure(&again, NOW.plus_seconds(9), soon()).await.unwrap();

    let of = |state| FailedSearch { state, reservation: Some(alice.reservation_id.clone()) };
    for limit in [1, 2, 100] {
        for state in [None, Some(FailedState::Open), Some(FailedState::Resolved)] {
            let (mut found, mut cursor) = (Vec::new(), None);
            wire.take_calls();
            loop {
                let page = shop.failed_confirmations(of(state), limit, cursor, NOW, soon()).await.unwrap();
                found.extend(page.items);
                cursor = page.next;
                if cursor.is_none() {
                    break;
                }
            }
            let expected: Vec<_> = own.iter().filter(|one| state.is_none_or(|state| state == one.state)).collect();
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{state:?} by {limit}");
            let calls = wire.take_calls();
            let index = |call: &holdfast_testkit::wire::Call| call.request["IndexName"] == "due";
            assert!(calls.iter().all(|call| call.operation == "BatchGetItem" || index(call)));
        }
    }
    let cursor = shop.failed_confirmations(of(None), 1, None, NOW, soon()).await.unwrap().next;
    let others = FailedSearch { state: None, reservation: Some(bob.reservation_id.clone()) };
    for search in [others, None.into(), Some(FailedState::Open).into()] {
        let answer = shop.failed_confirmations(search, 1, cursor.clone(), NOW, soon()).await;
        assert!(matches!(answer, Err(Error::Invalid(_))));
    }
    // The sweep and the lists of reservations do not take them for holds.
    assert_eq!(shop.release_overdue(LATE, soon()).await.unwrap().holds, 2);
    let paid = Search { payment: Some(payment("pay_0")), ..Search::default() };
    assert!(shop.reservations(&paid, NOW, 10, None, soon()).await.unwrap().items.is_empty());
}

#[tokio::test]
async fn a_failure_of_another_customer_is_a_separate_one() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let own = failure_of(&alice, "alice", Some("pay_1"), "refund_required", NOW);
    let strangers = failure_of(&alice, "mallory", Some("pay_1"), NOT_CONFIRMED, NOW);
    for failed in [&own, &strangers] {
        shop.record_failure(failed, NOW, soon()).await.unwrap();
    }
    let seen = shop.failed(&own.id(), soon()).await.unwrap();
    assert_eq!((seen.customer, seen.reason.as_str()), (Some(customer("alice")), "refund_required"));
    // A resolution of the stranger's does not change the owner's, but the payment is not resolved twice.
    shop.resolve_failed(&strangers.id(), "admin", Some("no such order"), NOW, soon()).await.unwrap();
    assert_eq!(shop.failed(&own.id(), soon()).await.unwrap().state, FailedState::Open);
    let again = shop.resolve_failed(&own.id(), "admin", Some("refunded"), NOW, soon()).await;
    assert_eq!(refusal(again), Refusal::AlreadySettled);
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", NOW).await), Refusal::RefundRequired);
}

#[tokio::test]
async fn a_later_failure_does_not_overwrite_better_information() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let (early, late) = (NOW.plus_seconds(1), LATE);
    let news = |reason, at| failure_of(&alice, "alice", Some("pay_1"), reason, at);
    shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    let seen = shop.record_failure(&news("refund_required", early), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at), ("refund_required", Some(early)));
    let seen = shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at, seen.failures), ("refund_required", Some(early), 3));
    assert_eq!(seen.body, news("", early).body, "what is sent again says when it was asked for first");
    // Once it is being retried, the old reason does not count any more.
    shop.mark_retrying(&seen, soon()).await.unwrap();
    let seen = shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at), (NOT_CONFIRMED, Some(early)));
}

#[tokio::test]
async fn an_unpaid_confirmation_that_was_resolved_makes_no_order_by_a_retry_in_flight() {
    for released in [true, false] {
        let (wire, shop, _) = shop(product("tee", 2, 1)).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let failed = failure_of(&alice, "alice", None, NOT_CONFIRMED, NOW);
        let open = shop.record_failure(&failed, NOW, soon()).await.unwrap();
        shop.mark_retrying(&open, soon()).await.unwrap();
        let settled = NOW.plus_seconds(5);
        shop.resolve_failed(&failed.id(), "admin", Some("not wanted any more"), settled, soon()).await.unwrap();
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        let retried = shop.confirm(&confirmation(id, owner, None, NOW), NOW.plus_seconds(6), soon()).await;
        assert_eq!(refusal(retried), Refusal::HoldExpired, "{released}");
        assert_eq!(books(&wire).await["tee"].sold, 0);
        // Too close to the resolution to tell which came first: no final answer yet.
        let now = NOW.plus_seconds(7);
        let close = shop.confirm(&confirmation(id, owner, None, now), now, soon()).await;
        match close {
            Err(Error::TryLater { .. }) if !released => {}
            Err(Error::Refused(Refusal::HoldExpired)) if released => {}
            other => panic!("{other:?}"),
        }
        // A later request, while it is held, is not affected.
        let later = settled.plus_seconds(11);
        assert_eq!(shop.confirm(&confirmation(id, owner, None, later), later, soon()).await.is_ok(), !released);
    }
}

#[tokio::test]
async fn an_unpaid_confirmation_that_fails_again_after_it_was_settled_is_a_new_failure() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let first = failure_of(&alice, "alice", None, NOT_CONFIRMED, NOW);
    shop.record_failure(&first, NOW, soon()).await.unwrap();
    shop.resolve_failed(&first.id(), "admin", Some("not wanted"), NOW, soon()).await.unwrap();
    let again = failure_of(&alice, "alice", None, NOT_CONFIRMED, NOW.plus_seconds(60));
    let recorded = shop.record_failure(&again, NOW.plus_seconds(60), soon()).await.unwrap();
    assert_eq!(recorded.state, FailedState::Open);
    assert_ne!(recorded.id, first.id());
}

#[tokio::test]
async fn an_unpaid_confirmation_of_an_earlier_hold_is_settled_without_the_later_one() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let month = NOW.plus_seconds(31 * 86_400);
    let alice = hold(&shop, "alice", 1, month).await;
    let earlier = failure_of(&alice, "alice", None, NOT_CONFIRMED, NOW);
    shop.record_failure(&earlier, month, soon()).await.unwrap();
    let order =
        shop.confirm(&confirmation(&alice.reservation_id, &alice.customer, None, month), month, soon()).await.unwrap();
    assert_eq!(shop.failed(&earlier.id(), soon()).await.unwrap().state, FailedState::Open);
    let resolved = shop.resolve_failed(&earlier.id(), "admin", Some("long gone"), month, soon()).await.unwrap();
    assert_eq!(resolved.state, FailedState::Resolved);
    assert_eq!(shop.reservation(&alice.reservation_id, &alice.customer, soon()).await.unwrap(), order);
}

#[tokio::test]
async fn a_retry_lifts_only_a_refusal_that_the_admin_has_seen_and_counts_as_news() {
    let (_, shop, _) = shop(Product { late_payment_seconds: 0, ..product("tee", 1, 1) }).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
    let owed =
        async || !shop.reservation(&alice.reservation_id, &alice.customer, soon()).await.unwrap().owed_back.is_empty();
    // The record only says that there was no answer: a later refusal is not lifted.
    let unanswered = failure_of(&alice, "alice", Some("pay_1"), NOT_CONFIRMED, LATE);
    let seen = shop.record_failure(&unanswered, LATE, soon()).await.unwrap();
    let retried = shop.begin_retry(&seen.id, true, soon()).await.unwrap();
    assert!(owed().await && retried.failures > seen.failures);
    // Nor by a redrive, whatever the record says.
    let refused = failure_of(&alice, "alice", Some("pay_1"), "refund_required", LATE);
    let seen = shop.record_failure(&refused, LATE, soon()).await.unwrap();
    shop.begin_retry(&seen.id, false, soon()).await.unwrap();
    assert!(owed().await);
    let lifted = shop.begin_retry(&seen.id, true, soon()).await.unwrap();
    assert!(!owed().await);
    // An earlier retry has no effect any more.
    assert_eq!(shop.mark_retrying(&seen, soon()).await.unwrap().state, FailedState::Open);
    assert_eq!(shop.mark_retrying(&lifted, soon()).await.unwrap().state, FailedState::Retrying);
}

#[tokio::test]
async fn a_retry_that_was_applied_is_not_refused_for_the_order_that_it_made_possible() {
    let (wire, shop, other) = shop(product("tee", 1, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    let bob = hold(&shop, "bob", 1, LATE).await;
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
    shop.cancel(&bob.reservation_id, &bob.customer, LATE, soon()).await.unwrap();
    let refused = failure_of(&alice, "alice", Some("pay_1"), "refund_required", LATE);
    let seen = shop.record_failure(&refused, LATE, soon()).await.unwrap();
    let meanwhile = async {
        pay(&other, &alice, "pay_1", LATE).await.unwrap();
        // Whoever lists it settles it.
        other.failed_confirmations(None, 10, None, LATE, soon()).await.unwrap();
    };
    let first = with_its_answer_lost(&wire, "FAILED", shop.begin_retry(&seen.id, true, soon()), meanwhile).await;
    assert!(matches!(first, Err(Error::Unavailable { .. })), "{first:?}");
    // Asked once more, it is the refusal: this request changes nothing.
    assert_eq!(refusal(shop.begin_retry(&seen.id, true, soon()).await), Refusal::AlreadySettled);
}

#[tokio::test]
async fn a_list_that_finds_little_ends_after_ten_reads_and_continues_in_the_next_request() {
    let (wire, shop, _) = shop(product("tee", 1, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    for n in 0..15 {
        let failed = failure_of(&alice, "alice", Some(&format!("pay_{n}")), NOT_CONFIRMED, NOW);
        shop.record_failure(&failed, NOW.plus_seconds(n), soon()).await.unwrap();
        if n < 14 {
            shop.resolve_failed(&failed.id(), "admin", None, NOW, soon()).await.unwrap();
        }
    }
    let open = FailedSearch { state: Some(FailedState::Open), reservation: Some(alice.reservation_id.clone()) };
    wire.take_calls();
    let first = shop.failed_confirmations(open.clone(), 1, None, NOW, soon()).await.unwrap();
    let queries = wire.take_calls().iter().filter(|call| call.operation == "Query").count();
    assert_eq!((first.items.len(), first.next.is_some(), queries), (0, true, 10));
    let next = shop.failed_confirmations(open, 1, first.next, NOW, soon()).await.unwrap();
    assert_eq!(next.items.len(), 1);
}

#[tokio::test]
async fn an_order_leaves_no_failure_of_its_own_open() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let (paid, unpaid) = (
        failure_of(&alice, "alice", Some("pay_1"), NOT_CONFIRMED, NOW),
        failure_of(&alice, "alice", None, NOT_CONFIRMED, NOW),
    );
    let second = failure_of(&alice, "alice", Some("pay_2"), "already_confirmed", NOW);
    shop.record_failure(&paid, NOW, soon()).await.unwrap();
    shop.record_failure(&unpaid, NOW, soon()).await.unwrap();
    pay(&shop, &alice, "pay_1", NOW).await.unwrap();
    shop.record_failure(&second, NOW, soon()).await.unwrap();
    let open = async |state| {
        let listed = shop.failed_confirmations(state, 10, None, NOW, soon()).await.unwrap().items;
        let mut open: Vec<_> =
            listed.into_iter().filter(|one| one.state == FailedState::Open).map(|one| one.id).collect();
        open.sort();
        open
    };
    assert_eq!(open(Some(FailedState::Open)).await, [second.id()]);
    assert_eq!(open(None).await, [second.id()]);
    for settled in [paid, unpaid] {
        assert_eq!(shop.failed(&settled.id(), soon()).await.unwrap().state, FailedState::Confirmed);
    }
}

#[tokio::test]
async fn one_open_failure_is_found_among_hundreds_of_settled_ones() {
    let (wire, shop, _) = shop(product("tee", 2, 1)).await;
    let mut last = None;
    for n in 0..120 {
        let held = basket("alice", &format!("k{n}"), &[("tee", 1)]);
        let failed = Failure {
            confirmation: Some(Confirmation {
                reservation_id: held.reservation_id,
                customer: customer("alice"),
                payment_reference: Some(PaymentReference::try_from("pay_1").unwrap()),
                requested_at: NOW,
                request: None,
            }),
            reason: "refund_required".to_owned(),
            body: String::new(),
        };
        shop.record_failure(&failed, NOW.plus_seconds(n), soon()).await.unwrap();
        if n < 119 {
            shop.resolve_failed(&failed.id(), "admin", Some("refunded"), NOW, soon()).await.unwrap();
        }
        last = Some(failed.id());
    }
    wire.take_calls();
    let page = shop.failed_confirmations(Some(FailedState::Open), 1, None, NOW, soon()).await.unwrap();
    assert_eq!(page.items.into_iter().map(|one| one.id).collect::<Vec<_>>(), [last.unwrap()]);
    let queries = wire.take_calls().iter().filter(|call| call.operation == "Query").count();
    assert!(queries <= 2, "{queries}");
}

#[tokio::test]
async fn a_payment_is_refunded_or_an_order_whichever_customer_was_named() {
    // First recorded for a customer who was named by mistake, then an order of its owner's.
    let (_, shop, _) = crate::shop(product("tee", 3, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let mistaken = failure_of(&alice, "bob", Some("pay_1"), "reservation_not_found", NOW);
    shop.record_failure(&mistaken, NOW, soon()).await.unwrap();
    pay(&shop, &alice, "pay_1", NOW).await.unwrap();
    let resolved = shop.resolve_failed(&mistaken.id(), "admin", Some("refunded"), NOW, soon()).await;
    assert_eq!(refusal(resolved), Refusal::AlreadySettled);
    assert_eq!(shop.failed(&mistaken.id(), soon()).await.unwrap().state, FailedState::Confirmed);
    // First refunded.
    let carol = hold(&shop, "carol", 1, NOW).await;
    let mistaken = failure_of(&carol, "bob", Some("pay_2"), "reservation_not_found", NOW);
    shop.record_failure(&mistaken, NOW, soon()).await.unwrap();
    shop.resolve_failed(&mistaken.id(), "admin", Some("refunded"), NOW, soon()).await.unwrap();
    assert_eq!(refusal(pay(&shop, &carol, "pay_2", NOW).await), Refusal::RefundRequired);
    // It was refunded once: nobody is told to refund it again, and no retry lifts that.
    for (who, reason, retries) in [("carol", "refund_required", true), ("dave", "reservation_not_found", false)] {
        let again = failure_of(&carol, who, Some("pay_2"), reason, NOW);
        shop.record_failure(&again, NOW, soon()).await.unwrap();
        let answer = if retries {
            shop.begin_retry(&again.id(), true, soon()).await
        } else {
            shop.resolve_failed(&again.id(), "other", Some("refunded"), NOW, soon()).await
        };
        assert_eq!(refusal(answer), Refusal::AlreadySettled);
        let settled = shop.failed(&again.id(), soon()).await.unwrap();
        assert_eq!((settled.state, settled.settled_by.as_deref()), (FailedState::Resolved, Some("duplicate")));
    }
    assert_eq!(refusal(pay(&shop, &carol, "pay_2", NOW).await), Refusal::RefundRequired);
    // Without a resolution, a retry of a failure with the wrong customer lifts nothing of the owner's.
    let erin = hold(&shop, "erin", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    let too_late = LATE.plus_seconds(31 * 86_400);
    assert_eq!(refusal(pay(&shop, &erin, "pay_3", too_late).await), Refusal::RefundRequired);
    let mistaken = failure_of(&erin, "bob", Some("pay_3"), "reservation_not_found", NOW);
    shop.record_failure(&mistaken, NOW, soon()).await.unwrap();
    shop.begin_retry(&mistaken.id(), true, soon()).await.unwrap();
    assert_eq!(refusal(pay(&shop, &erin, "pay_3", LATE).await), Refusal::RefundRequired);
}

#[tokio::test]
async fn a_resolution_is_recorded_by_a_hold_that_is_made_afterwards_once_it_is_repeated() {
    let (_, shop, _) = crate::shop(product("tee", 3, 1)).await;
    for (n, ordered) in [("1", false), ("2", true)] {
        let paid = &format!("pay_{n}");
        let early = failure(n, paid);
        shop.record_failure(&early, NOW, soon()).await.unwrap();
        let resolve =
            async |store: &Store| store.resolve_failed(&early.id(), "admin", Some("refunded"), NOW, soon()).await;
        let first = resolve(&shop).await.unwrap();
        let made = reserve(&shop, &basket("alice", n, &[("tee", 1)]), NOW).await.unwrap().reservation;
        if ordered {
            // Documented: the new hold knows nothing of the payment. But nobody is told again to refund it.
            pay(&shop, &made, paid, NOW).await.unwrap();
            assert_eq!(refusal(resolve(&shop).await), Refusal::AlreadySettled);
        } else {
            assert_eq!(resolve(&shop).await.unwrap(), first);
            assert_eq!(refusal(pay(&shop, &made, paid, NOW).await), Refusal::RefundRequired);
            assert_eq!(resolve(&shop).await.unwrap(), first, "there is nothing left to record");
        }
    }
}

#[tokio::test]
async fn a_hold_that_is_made_during_a_resolution_records_it() {
    let (wire, one, two) = crate::shop(product("tee", 3, 1)).await;
    let early = failure("k", "pay_1");
    one.record_failure(&early, NOW, soon()).await.unwrap();
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (resolved, made) = join(one.resolve_failed(&early.id(), "admin", Some("refunded"), NOW, soon()), async {
        gate.arrived().await;
        let made = hold(&two, "alice", 1, NOW).await;
        gate.open();
        made
    })
    .await;
    assert_eq!(resolved.unwrap().state, FailedState::Resolved);
    assert_eq!(refusal(pay(&two, &made, "pay_1", NOW).await), Refusal::RefundRequired);
}
