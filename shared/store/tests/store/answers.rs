//! Answers that somebody acts on, under duplicates, races and hidden reasons: none may be contradicted later.

use futures_util::future::join;
use holdfast_domain::{
    Adjustment, Confirmation, FailedState, Failure, IdempotencyKey, NOT_CONFIRMED, PaymentReference, Product, Refusal,
    Reservation, Status, Timestamp,
};
use holdfast_store::{Adjusted, Error, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, limited, payment, product, product_id, reserve, soon,
    stocked, store, table,
};
use holdfast_testkit::wire::{Fault, Wire};

const LATE: Timestamp = Timestamp::from_millis(NOW.as_millis() + 600_000);

fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> Refusal {
    match answer.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

async fn hold(store: &Store, who: &str, units: u32, at: Timestamp) -> Reservation {
    reserve(store, &basket(who, "k", &[("tee", units)]), at).await.unwrap().reservation
}

async fn pay(store: &Store, held: &Reservation, paid: &str, at: Timestamp) -> Result<Reservation, Error> {
    store.confirm(&confirmation(&held.reservation_id, &held.customer, Some(&payment(paid)), at), at, soon()).await
}

async fn shop(product: Product) -> (Wire, Store, Store) {
    let wire = table().await;
    stocked(&wire, &[product]).await;
    let (one, two) = (store(&wire, 1), store(&wire, 2));
    (wire, one, two)
}

fn failure(held: &Reservation, who: &str, paid: Option<&str>, reason: &str, at: Timestamp) -> Failure {
    Failure {
        confirmation: Some(Confirmation {
            reservation_id: held.reservation_id.clone(),
            customer: customer(who),
            payment_reference: paid.map(payment),
            requested_at: at,
        }),
        reason: reason.to_owned(),
        body: format!("{who} {}", at.as_millis()),
    }
}

#[tokio::test]
async fn whoever_paid_late_gets_what_an_overdue_hold_keeps() {
    for (product, units) in [(product("tee", 1, 1), 1), (limited(product("tee", 4, 1), 2), 2)] {
        let limits = product.counts_per_customer;
        let (wire, shop, _) = shop(product).await;
        let alice = hold(&shop, "alice", units, NOW).await;
        shop.release_overdue(LATE, soon()).await.unwrap();
        // Somebody's hold, or her own other one that fills her limit, is over since half a minute; no sweep has come yet.
        let who = if limits { "alice" } else { "bob" };
        reserve(&shop, &basket(who, "k2", &[("tee", units)]), LATE).await.unwrap();
        let then = LATE.plus_seconds(630);
        assert_eq!(pay(&shop, &alice, "pay_1", then).await.unwrap().status, Status::Confirmed);
        let tee = books(&wire).await["tee"];
        assert_eq!((tee.held, tee.sold), (0, u64::from(units)));
    }
}

#[tokio::test]
async fn an_overdue_hold_stands_in_nobodys_way() {
    let over = LATE.plus_seconds(30);
    // The customer's own limit.
    let (_, one, two) = shop(limited(product("tee", 4, 1), 1)).await;
    hold(&one, "alice", 1, NOW).await;
    for (at, refused) in [(NOW.plus_seconds(599), true), (LATE, false)] {
        let answer = reserve(&two, &basket("alice", "k2", &[("tee", 1)]), at).await;
        assert_eq!(answer.is_err(), refused, "{answer:?}");
    }
    // An adjustment that takes away, and what is shown.
    let (wire, one, _) = shop(product("tee", 10, 2)).await;
    hold(&one, "alice", 4, NOW).await;
    let tee = product_id("tee");
    wire.step_clock(599_000);
    assert_eq!(store(&wire, 3).product_with_stock(&tee, soon()).await.unwrap().1.available, 6);
    wire.step_clock(31_000);
    let shown = store(&wire, 3).product_with_stock(&tee, soon()).await.unwrap().1;
    assert_eq!((shown.available, shown.reserved, shown.sold), (10, 0, 0));
    let adjusted = one.adjust(&adjustment(-10, None, "admin", "k"), over, soon()).await.unwrap();
    assert_eq!(adjusted.entry.total_after, 0);
    assert_eq!(books(&wire).await["tee"].total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_cannot_see_that_the_hold_has_ended_waits_and_breaks_nobodys_reserve() {
    let (wire, one, two) = shop(limited(product("tee", 2, 1), 2)).await;
    hold(&one, "alice", 2, NOW).await;
    // `two` has read the hold; `one` ends it; another transaction is on the reservation as `two` writes.
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (bob, ()) = join(reserve(&two, &basket("bob", "k", &[("tee", 2)]), LATE), async {
        gate.arrived().await;
        assert_eq!(one.release_overdue(LATE, soon()).await.unwrap().holds, 1);
        wire.fail("TransactWriteItems", 1, Fault::HiddenAt(0));
        gate.open();
    })
    .await;
    assert_eq!(bob.unwrap().reservation.status, Status::Held);
    assert_eq!(books(&wire).await["tee"].held, 2);
}

#[tokio::test]
async fn one_broken_hold_keeps_no_other_from_being_released() {
    let (wire, shop, _) = shop(limited(product("tee", 3, 1), 2)).await;
    for who in ["alice", "bob", "carol"] {
        hold(&shop, who, 1, NOW).await;
    }
    let key = keys::limit(&product_id("tee"), &customer("alice"));
    client(&wire).delete_item().table_name(TABLE).set_key(Some(key.item())).send().await.unwrap();
    let dave = reserve(&shop, &basket("dave", "k", &[("tee", 2)]), LATE).await.unwrap();
    assert_eq!(dave.reservation.status, Status::Held);
    // The sweep says that there is one that it cannot release.
    assert!(matches!(shop.release_overdue(LATE, soon()).await, Err(Error::Internal { .. })));
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_late_confirmation_never_owes_what_the_other_made_an_order_of() {
    // By the limit, by the units, and by a conflict that hides that the order is there.
    for (product, hidden) in [
        (limited(product("tee", 4, 1), 2), true),
        (limited(product("tee", 4, 1), 2), false),
        (product("tee", 2, 1), true),
        (product("tee", 2, 1), false),
    ] {
        let (wire, one, two) = shop(product).await;
        let alice = hold(&one, "alice", 2, NOW).await;
        one.release_overdue(LATE, soon()).await.unwrap();
        let gate = wire.gate(|call| call.operation == "TransactWriteItems");
        let (copy, ()) = join(pay(&two, &alice, "pay_1", LATE), async {
            gate.arrived().await;
            pay(&one, &alice, "pay_1", LATE).await.unwrap();
            if hidden {
                wire.fail("TransactWriteItems", 1, Fault::HiddenAt(0));
            }
            gate.open();
        })
        .await;
        assert_eq!(copy.unwrap().status, Status::Confirmed);
        let stored = one.reservation(&alice.reservation_id, &alice.customer, soon()).await.unwrap();
        assert!(stored.owed_back.is_empty());
    }
}

#[tokio::test]
async fn an_order_made_while_its_copy_is_being_refused_is_no_refund() {
    let (wire, one, two) = shop(product("tee", 1, 1)).await;
    let alice = hold(&one, "alice", 1, NOW).await;
    one.release_overdue(LATE, soon()).await.unwrap();
    let bob = hold(&one, "bob", 1, LATE).await;
    // The copy found nothing free, and is about to say so; bob gives his unit back and the other copy takes it.
    let gate =
        wire.gate(|call| call.operation == "UpdateItem" && call.request.to_string().contains("#owed_back :owed"));
    let (copy, ()) = join(pay(&two, &alice, "pay_1", LATE), async {
        gate.arrived().await;
        one.cancel(&bob.reservation_id, &bob.customer, LATE, soon()).await.unwrap();
        pay(&one, &alice, "pay_1", LATE).await.unwrap();
        gate.open();
    })
    .await;
    assert_eq!(copy.unwrap().status, Status::Confirmed);
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
    let failed = failure(&alice, "alice", Some("pay_1"), "refund_required", LATE);
    shop.record_failure(&failed, LATE, soon()).await.unwrap();
    shop.begin_retry(&failed.id(), true, soon()).await.unwrap();
    assert_eq!(pay(&shop, &alice, "pay_1", later).await.unwrap().status, Status::Confirmed);
    assert_eq!(books(&wire).await["tee"].sold, 1);
    // And it is settled, as a late copy of the failure finds out.
    let settled = shop.record_failure(&failed, later, soon()).await.unwrap();
    assert_eq!(settled.state, FailedState::Confirmed);
    assert_eq!(refusal(shop.begin_retry(&failed.id(), true, soon()).await), Refusal::AlreadySettled);
}

#[tokio::test]
async fn what_is_owed_back_outlives_the_clean_up_of_its_hold() {
    for released_first in [true, false] {
        let (wire, shop, _) = shop(Product { late_payment_seconds: 0, ..product("tee", 1, 1) }).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released_first {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
        // No clock that is behind shows it as held afterwards.
        let refused = shop.reservation(&alice.reservation_id, &alice.customer, soon()).await.unwrap();
        assert_eq!(refused.status, Status::Expired);
        let key = keys::reservation(&alice.reservation_id).item();
        let item = client(&wire).get_item().table_name(TABLE).set_key(Some(key)).send().await.unwrap().item.unwrap();
        let ttl = item.get("ttl").map(|ttl| ttl.as_n().unwrap().parse::<i64>().unwrap());
        assert!(ttl.is_none_or(|ttl| ttl > NOW.plus_seconds(1_000 * 365 * 86_400).as_seconds()), "{ttl:?}");
        assert_eq!(books(&wire).await["tee"].available, 1);
    }
}

#[tokio::test]
async fn a_payment_is_late_until_the_products_time_for_it_ends() {
    for (seconds, after, ok) in [(60, 59, true), (60, 60, false), (0, 0, false)] {
        for released in [true, false] {
            let (wire, shop, _) = shop(Product { late_payment_seconds: seconds, ..product("tee", 1, 1) }).await;
            let alice = hold(&shop, "alice", 1, NOW).await;
            if released {
                shop.release_overdue(LATE, soon()).await.unwrap();
            }
            let answer = pay(&shop, &alice, "pay_1", LATE.plus_seconds(after)).await;
            assert_eq!(answer.is_ok(), ok, "{seconds} {after} {released}: {answer:?}");
            assert_eq!(books(&wire).await["tee"].sold, u64::from(ok));
        }
    }
}

#[tokio::test]
async fn a_strangers_failure_is_another_one() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let own = failure(&alice, "alice", Some("pay_1"), "refund_required", NOW);
    let strangers = failure(&alice, "mallory", Some("pay_1"), NOT_CONFIRMED, NOW);
    for failed in [&own, &strangers] {
        shop.record_failure(failed, NOW, soon()).await.unwrap();
    }
    let seen = shop.failed(&own.id(), soon()).await.unwrap();
    assert_eq!((seen.customer, seen.reason.as_str()), (Some(customer("alice")), "refund_required"));
    // What an admin says of the stranger's says nothing of the owner's.
    shop.resolve_failed(&strangers.id(), "admin", Some("no such order"), NOW, soon()).await.unwrap();
    assert_eq!(shop.failed(&own.id(), soon()).await.unwrap().state, FailedState::Open);
    shop.resolve_failed(&own.id(), "admin", Some("refunded"), NOW, soon()).await.unwrap();
    assert_eq!(refusal(pay(&shop, &alice, "pay_1", NOW).await), Refusal::RefundRequired);
}

#[tokio::test]
async fn later_news_of_a_failure_overwrites_no_better_news() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let (early, late) = (NOW.plus_seconds(1), LATE);
    let news = |reason, at| failure(&alice, "alice", Some("pay_1"), reason, at);
    shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    let seen = shop.record_failure(&news("refund_required", early), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at), ("refund_required", Some(early)));
    let seen = shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at, seen.failures), ("refund_required", Some(early), 3));
    assert_eq!(seen.body, news("", early).body, "what is sent again says when it was asked for first");
    // Once an admin has it retried, the old reason does not count any more.
    shop.mark_retrying(&seen, soon()).await.unwrap();
    let seen = shop.record_failure(&news(NOT_CONFIRMED, late), NOW, soon()).await.unwrap();
    assert_eq!((seen.reason.as_str(), seen.requested_at), (NOT_CONFIRMED, Some(early)));
}

#[tokio::test]
async fn what_was_resolved_without_a_payment_is_no_order_by_a_retry_that_is_still_on_its_way() {
    for released in [true, false] {
        let (wire, shop, _) = shop(product("tee", 2, 1)).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let failed = failure(&alice, "alice", None, NOT_CONFIRMED, NOW);
        let open = shop.record_failure(&failed, NOW, soon()).await.unwrap();
        shop.mark_retrying(&open, soon()).await.unwrap();
        let settled = NOW.plus_seconds(5);
        shop.resolve_failed(&failed.id(), "admin", Some("not wanted any more"), settled, soon()).await.unwrap();
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        let retried = shop.confirm(&confirmation(id, owner, None, NOW), NOW.plus_seconds(6), soon()).await;
        assert_eq!(refusal(retried), Refusal::HoldExpired, "{released}");
        assert_eq!(books(&wire).await["tee"].sold, 0);
        // Too close to the admin's word to tell which came first: nobody is told anything yet.
        let now = NOW.plus_seconds(7);
        let close = shop.confirm(&confirmation(id, owner, None, now), now, soon()).await;
        match close {
            Err(Error::Unavailable { .. }) if !released => {}
            Err(Error::Refused(Refusal::HoldExpired)) if released => {}
            other => panic!("{other:?}"),
        }
        // Whoever asks later, while it is held, is another matter.
        let later = settled.plus_seconds(11);
        assert_eq!(shop.confirm(&confirmation(id, owner, None, later), later, soon()).await.is_ok(), !released);
    }
}

#[tokio::test]
async fn an_unpaid_confirmation_that_was_told_hold_expired_makes_no_order_by_its_queued_copy() {
    for released in [true, false] {
        let (wire, shop, _) = shop(product("tee", 2, 1)).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        // In time, but the table was away: it waits in the queue. Then the customer asks again, and is told.
        let accepted = NOW.plus_seconds(599);
        assert_eq!(
            refusal(shop.confirm(&confirmation(id, owner, None, LATE), LATE, soon()).await),
            Refusal::HoldExpired
        );
        let queued = shop.confirm(&confirmation(id, owner, None, accepted), LATE.plus_seconds(1), soon()).await;
        assert_eq!(refusal(queued), Refusal::HoldExpired, "{released}");
        // Neither by a clock that is behind.
        let behind = shop.confirm(&confirmation(id, owner, None, accepted), accepted, soon()).await;
        assert_eq!(refusal(behind), Refusal::HoldExpired, "{released}");
        assert_eq!(books(&wire).await["tee"].available, 2);
        // A payment is honoured all the same.
        assert_eq!(pay(&shop, &alice, "pay_1", LATE.plus_seconds(2)).await.unwrap().status, Status::Confirmed);
    }
}

#[tokio::test]
async fn an_unpaid_confirmation_that_fails_again_after_it_was_settled_is_another_one() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let first = failure(&alice, "alice", None, NOT_CONFIRMED, NOW);
    shop.record_failure(&first, NOW, soon()).await.unwrap();
    shop.resolve_failed(&first.id(), "admin", Some("not wanted"), NOW, soon()).await.unwrap();
    let again = failure(&alice, "alice", None, NOT_CONFIRMED, NOW.plus_seconds(60));
    let recorded = shop.record_failure(&again, NOW.plus_seconds(60), soon()).await.unwrap();
    assert_eq!(recorded.state, FailedState::Open);
    assert_ne!(recorded.id, first.id());
}

#[tokio::test]
async fn an_unpaid_confirmation_of_an_earlier_hold_is_settled_without_the_later_one() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let month = NOW.plus_seconds(31 * 86_400);
    let alice = hold(&shop, "alice", 1, month).await;
    let earlier = failure(&alice, "alice", None, NOT_CONFIRMED, NOW);
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
    // The record says no more than that there was no answer: what was refused since is not lifted.
    let unanswered = failure(&alice, "alice", Some("pay_1"), NOT_CONFIRMED, LATE);
    let seen = shop.record_failure(&unanswered, LATE, soon()).await.unwrap();
    let retried = shop.begin_retry(&seen.id, true, soon()).await.unwrap();
    assert!(owed().await && retried.failures > seen.failures);
    // Nor by a redrive, whatever it says.
    let refused = failure(&alice, "alice", Some("pay_1"), "refund_required", LATE);
    let seen = shop.record_failure(&refused, LATE, soon()).await.unwrap();
    shop.begin_retry(&seen.id, false, soon()).await.unwrap();
    assert!(owed().await);
    let lifted = shop.begin_retry(&seen.id, true, soon()).await.unwrap();
    assert!(!owed().await);
    // What an admin began before has no effect any more.
    assert_eq!(shop.mark_retrying(&seen, soon()).await.unwrap().state, FailedState::Open);
    assert_eq!(shop.mark_retrying(&lifted, soon()).await.unwrap().state, FailedState::Retrying);
}

#[tokio::test]
async fn a_limit_that_was_lifted_a_moment_ago_refuses_no_payment() {
    let (_, shop, admin) = shop(limited(product("tee", 4, 1), 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    reserve(&shop, &basket("alice", "k2", &[("tee", 1)]), LATE).await.unwrap();
    // This environment has just read a limit of one, and another one lifts it.
    let limit = holdfast_domain::ProductChange { max_per_customer: Some(Some(2)), ..Default::default() };
    admin.change_product(&product_id("tee"), 1, limit, soon()).await.unwrap();
    assert_eq!(pay(&shop, &alice, "pay_1", LATE).await.unwrap().status, Status::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_while_an_earlier_try_may_still_be_carried_out() {
    let (wire, one, two) = shop(product("tee", 5, 1)).await;
    // The answer is lost, all tries of the SDK; then somebody takes the units.
    wire.fail("TransactWriteItems", 3, Fault::LostBefore);
    let mut failed = 0;
    let gate = wire.gate(move |call| {
        failed += usize::from(call.operation == "TransactWriteItems");
        failed == 3
    });
    let ask = adjustment(-5, None, "admin", "k");
    let (answer, ()) = join(one.adjust(&ask, NOW, soon()), async {
        gate.arrived().await;
        wire.clear_faults();
        wire.fail("TransactWriteItems", 0, Fault::LostBefore);
        hold(&two, "bob", 1, NOW).await;
        wire.fail("TransactWriteItems", 1, Fault::LostBefore);
        gate.open();
    })
    .await;
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
}

#[tokio::test]
async fn what_is_shown_as_expired_stays_so_for_a_clock_that_is_behind() {
    let (wire, one, two) = shop(product("tee", 1, 1)).await;
    let alice = hold(&one, "alice", 1, NOW).await;
    let (id, owner) = (&alice.reservation_id, &alice.customer);
    let shown = one.current_reservation(id, owner, LATE, soon()).await.unwrap();
    assert_eq!(shown.status, Status::Expired);
    let behind = NOW.plus_seconds(599);
    let seconds = holdfast_domain::HoldSeconds::DEFAULT;
    let extended = two.extend(id, owner, seconds, behind, soon(), |_| async { Ok(()) }).await;
    assert_eq!(refusal(extended), Refusal::HoldExpired);
    let again = reserve(&two, &basket("alice", "k", &[("tee", 1)]), behind).await.unwrap();
    assert_eq!((again.replayed, again.reservation.status), (true, Status::Expired));
    assert_eq!(books(&wire).await["tee"].available, 1);
}

#[tokio::test]
async fn an_order_leaves_no_failure_of_its_own_open() {
    let (_, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let (paid, unpaid) = (
        failure(&alice, "alice", Some("pay_1"), NOT_CONFIRMED, NOW),
        failure(&alice, "alice", None, NOT_CONFIRMED, NOW),
    );
    let second = failure(&alice, "alice", Some("pay_2"), "already_confirmed", NOW);
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
async fn a_payment_confirms_the_hold_that_was_paid_and_no_later_one_under_its_key() {
    let (wire, shop, _) = shop(product("tee", 2, 1)).await;
    let month = NOW.plus_seconds(31 * 86_400);
    // The first was cleaned up; this is another one of the same id.
    let alice = hold(&shop, "alice", 1, month).await;
    let then = month.plus_seconds(1);
    let (id, owner, pay_1) = (&alice.reservation_id, &alice.customer, payment("pay_1"));
    let retried = shop.confirm(&confirmation(id, owner, Some(&pay_1), NOW), then, soon()).await;
    assert_eq!(refusal(retried), Refusal::ReservationNotFound);
    assert_eq!(books(&wire).await["tee"].held, 1);
    assert!(Refusal::ReservationNotFound.owes_refund());
}

#[tokio::test]
async fn one_open_failure_is_found_among_hundreds_of_settled_ones_by_key() {
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

fn adjustment(delta: i64, expected_total: Option<u64>, actor: &str, key: &str) -> Adjustment {
    Adjustment {
        product_id: product_id("tee"),
        delta,
        reason: "counted".to_owned(),
        reference: None,
        expected_total,
        actor: actor.to_owned(),
        key: IdempotencyKey::try_from(key).unwrap(),
    }
}

#[tokio::test]
async fn copies_of_one_adjustment_have_one_answer_whichever_call_the_other_overtakes() {
    for (delta, expected) in [(5, Some(5)), (-5, None), (-5, Some(5))] {
        // Whatever the copy has read so far, the other is carried out before its next call.
        for nth in 1.. {
            let (wire, one, two) = shop(product("tee", 5, 1)).await;
            let ask = adjustment(delta, expected, "admin", "k");
            let mut calls = 0;
            let gate = wire.gate(move |_| {
                calls += 1;
                calls == nth
            });
            let copy = two.adjust(&ask, NOW, soon());
            let other = async {
                gate.arrived().await;
                let first = one.adjust(&ask, NOW, soon()).await;
                gate.open();
                first
            };
            let both = tokio::select! {
                biased;
                both = join(copy, other) => Some(both),
                // The copy makes fewer calls than that.
                () = idle() => None,
            };
            let Some((copy, first)) = both else { break };
            let entry =
                |answer: Result<Adjusted, Error>| answer.unwrap_or_else(|error| panic!("{delta} {nth}: {error}")).entry;
            assert_eq!(entry(copy), entry(first), "{delta} {nth}");
            assert_eq!(books(&wire).await["tee"].total, 5_u64.saturating_add_signed(delta));
            assert!(nth < 50);
        }
    }
}

/// Ready once nobody else has anything to do.
async fn idle() {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_adjustments_key_belongs_to_the_ledger_and_not_to_the_person() {
    let (wire, shop, _) = shop(product("tee", 5, 1)).await;
    let first = shop.adjust(&adjustment(10, None, "anne", "k"), NOW, soon()).await.unwrap();
    let again = shop.adjust(&adjustment(10, None, "bert", "k"), NOW.plus_seconds(1), soon()).await.unwrap();
    assert_eq!((again.replayed, &again.entry), (true, &first.entry));
    let other = shop.adjust(&adjustment(11, None, "bert", "k"), NOW, soon()).await;
    assert_eq!(refusal(other), Refusal::IdempotencyKeyReused);
    assert_eq!(books(&wire).await["tee"].total, 15);
}

#[tokio::test]
async fn a_limit_that_is_set_later_counts_what_was_bought_before() {
    let (wire, shop, _) = shop(Product { counts_per_customer: true, ..product("tee", 9, 1) }).await;
    let alice = hold(&shop, "alice", 5, NOW).await;
    pay(&shop, &alice, "pay_1", NOW).await.unwrap();
    let limit = holdfast_domain::ProductChange { max_per_customer: Some(Some(2)), ..Default::default() };
    shop.change_product(&product_id("tee"), 1, limit, soon()).await.unwrap();
    let more = async |who: &str, units| reserve(&shop, &basket(who, "more", &[("tee", units)]), NOW).await;
    assert!(matches!(refusal(more("alice", 1).await), Refusal::CustomerLimitReached { limit: 2, .. }));
    more("bob", 2).await.unwrap();
    assert_eq!(books(&wire).await["tee"].sold, 5);
    // Where nobody counts, a limit cannot be promised.
    let uncounted = holdfast_domain::ProductChange { max_per_customer: Some(Some(2)), ..Default::default() };
    stocked(&wire, &[product("mug", 9, 1)]).await;
    let refused = shop.change_product(&product_id("mug"), 1, uncounted, soon()).await;
    assert!(matches!(refused, Err(Error::Invalid(invalid)) if invalid.field == "max_per_customer"));
}

#[tokio::test]
async fn a_hidden_reservation_is_no_reason_to_name_its_owners_limit() {
    let (wire, one, two) = shop(limited(product("tee", 4, 1), 2)).await;
    let ask = basket("alice", "k", &[("tee", 2)]);
    let first = reserve(&one, &ask, NOW).await.unwrap().reservation;
    // The copy meets her limit, and another transaction on the reservation.
    wire.fail("TransactWriteItems", 1, Fault::HiddenAt(0));
    let copy = reserve(&two, &ask, NOW).await.unwrap();
    assert_eq!((copy.replayed, copy.reservation), (true, first));
}

#[tokio::test(start_paused = true)]
async fn memory_ages_by_the_wall_clock_also_backwards() {
    for step in [5 * 60_000, -5 * 60_000] {
        let (wire, one, two) = shop(product("tee", 1, 1)).await;
        let bob = hold(&two, "bob", 1, NOW).await;
        let sold_out = reserve(&one, &basket("alice", "k1", &[("tee", 1)]), NOW).await;
        assert!(matches!(refusal(sold_out), Refusal::InsufficientStock { .. }));
        two.cancel(&bob.reservation_id, &bob.customer, NOW, soon()).await.unwrap();
        // The environment was frozen, or its clock set: the runtime's own clock did not move.
        wire.step_clock(step);
        reserve(&one, &basket("alice", "k2", &[("tee", 1)]), NOW).await.unwrap();
    }
}

#[tokio::test]
async fn an_expired_hold_stays_expired_for_a_clock_that_is_behind() {
    for ask in ["confirm", "cancel", "extend"] {
        let (wire, one, two) = shop(product("tee", 1, 1)).await;
        let alice = hold(&one, "alice", 1, NOW).await;
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        let told = match ask {
            "confirm" => one.confirm(&confirmation(id, owner, None, LATE), LATE, soon()).await,
            "cancel" => one.cancel(id, owner, LATE, soon()).await,
            _ => {
                let seconds = holdfast_domain::HoldSeconds::DEFAULT;
                one.extend(id, owner, seconds, LATE, soon(), |_| async { Ok(()) }).await
            }
        };
        assert_eq!(refusal(told), Refusal::HoldExpired, "{ask}");
        let behind = NOW.plus_seconds(599);
        let later = two.cancel(id, owner, behind, soon()).await;
        assert_eq!(refusal(later), Refusal::HoldExpired, "{ask}");
        assert_eq!(books(&wire).await["tee"].available, 1, "{ask}");
    }
}
