//! Answers under duplicates, races and hidden reasons: none may be contradicted later.

use futures_util::future::join;
use holdfast_domain::{Adjustment, IdempotencyKey, Product, Refusal, Status};
use holdfast_store::{Adjusted, Error, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, limited, payment, product, product_id, reserve, soon,
    stocked, store,
};
use holdfast_testkit::wire::Fault;

use crate::{LATE, hold, pay, refusal, shop, stored};
#[tokio::test]
async fn a_late_payment_gets_the_units_of_an_overdue_hold() {
    for (product, units) in [(product("tee", 1, 1), 1), (limited(product("tee", 4, 1), 2), 2)] {
        let limits = product.counts_per_customer;
        let (wire, shop, _) = shop(product).await;
        let alice = hold(&shop, "alice", units, NOW).await;
        shop.release_overdue(LATE, soon()).await.unwrap();
        // Bob's hold, or Alice's other one that uses up her limit, has been overdue for half a minute; no sweep has run yet.
        let who = if limits { "alice" } else { "bob" };
        reserve(&shop, &basket(who, "k2", &[("tee", units)]), LATE).await.unwrap();
        let then = LATE.plus_seconds(630);
        assert_eq!(pay(&shop, &alice, "pay_1", then).await.unwrap().status, Status::Confirmed);
        let tee = books(&wire).await["tee"];
        assert_eq!((tee.held, tee.sold), (0, u64::from(units)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_payment_for_nothing_is_not_refused_while_an_earlier_try_of_it_may_still_be_applied() {
    let (_, elsewhere, _) = shop(product("tee", 1, 1)).await;
    let unknown = hold(&elsewhere, "alice", 1, NOW).await;
    let (wire, shop, _) = shop(product("tee", 1, 1)).await;
    wire.fail("UpdateItem", 1, Fault::LostBefore);
    // A reservation of this id may be made meanwhile, and that try then makes an order of it.
    let answer = pay(&shop, &unknown, "pay_1", NOW).await;
    assert!(matches!(answer, Err(Error::Unavailable { .. })), "{answer:?}");
    assert_eq!(refusal(pay(&shop, &unknown, "pay_1", NOW).await), Refusal::ReservationNotFound);
}

#[tokio::test]
async fn an_overdue_hold_blocks_nobody() {
    let over = LATE.plus_seconds(30);
    // The customer's own limit.
    let (_, one, two) = shop(limited(product("tee", 4, 1), 1)).await;
    hold(&one, "alice", 1, NOW).await;
    for (at, refused) in [(NOW.plus_seconds(599), true), (LATE, false)] {
        let answer = reserve(&two, &basket("alice", "k2", &[("tee", 1)]), at).await;
        assert_eq!(answer.is_err(), refused, "{answer:?}");
    }
    // An adjustment that takes units away, and what is shown.
    let (wire, one, _) = shop(product("tee", 10, 2)).await;
    hold(&one, "alice", 4, NOW).await;
    let tee = product_id("tee");
    wire.step_clock(599_000);
    assert_eq!(store(&wire, 3).product_with_stock(&tee, soon()).await.unwrap().stock.available, 6);
    wire.step_clock(31_000);
    let shown = store(&wire, 3).product_with_stock(&tee, soon()).await.unwrap().stock;
    assert_eq!((shown.available, shown.reserved, shown.sold), (10, 0, 0));
    let adjusted = one.adjust(&adjustment(-10, None, "admin", "k"), over, soon()).await.unwrap();
    assert_eq!(adjusted.entry.total_after, 0);
    assert_eq!(books(&wire).await["tee"].total, 0);
}

#[tokio::test(start_paused = true)]
async fn a_release_that_a_conflict_keeps_from_seeing_the_end_waits_and_fails_no_reserve() {
    let (wire, one, two) = shop(limited(product("tee", 2, 1), 2)).await;
    hold(&one, "alice", 2, NOW).await;
    // `two` has read the hold; `one` releases it; another transaction is on the reservation when `two` writes.
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
async fn one_broken_hold_does_not_keep_others_from_being_released() {
    let (wire, shop, _) = shop(limited(product("tee", 3, 1), 2)).await;
    for who in ["alice", "bob", "carol"] {
        hold(&shop, who, 1, NOW).await;
    }
    let key = keys::limit(&product_id("tee"), &customer("alice"));
    client(&wire).delete_item().table_name(TABLE).set_key(Some(key.item())).send().await.unwrap();
    let dave = reserve(&shop, &basket("dave", "k", &[("tee", 2)]), LATE).await.unwrap();
    assert_eq!(dave.reservation.status, Status::Held);
    // The sweep reports the one that it cannot release.
    assert!(matches!(shop.release_overdue(LATE, soon()).await, Err(Error::Internal { .. })));
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (0, 3));
}

#[tokio::test(start_paused = true)]
async fn a_copy_of_a_late_confirmation_never_owes_a_refund_for_the_others_order() {
    // Refused for the limit, for the units, and with a conflict that hides the order.
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
async fn an_order_made_while_its_copy_is_being_refused_owes_no_refund() {
    let (wire, one, two) = shop(product("tee", 1, 1)).await;
    let alice = hold(&one, "alice", 1, NOW).await;
    one.release_overdue(LATE, soon()).await.unwrap();
    let bob = hold(&one, "bob", 1, LATE).await;
    // The copy found no free units, and is about to be refused; Bob cancels and the other copy takes his unit.
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
async fn a_payment_owed_back_is_kept_when_its_hold_would_be_deleted() {
    for released_first in [true, false] {
        let (wire, shop, _) = shop(Product { late_payment_seconds: 0, ..product("tee", 1, 1) }).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released_first {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
        // A clock that is behind does not show it as held afterwards.
        let refused = shop.reservation(&alice.reservation_id, &alice.customer, soon()).await.unwrap();
        assert_eq!(refused.status, Status::Expired);
        let item = stored(&wire, &alice).await;
        let ttl = item.get("ttl").map(|ttl| ttl.as_n().unwrap().parse::<i64>().unwrap());
        assert!(ttl.is_none_or(|ttl| ttl > NOW.plus_seconds(1_000 * 365 * 86_400).as_seconds()), "{ttl:?}");
        assert_eq!(books(&wire).await["tee"].available, 1);
    }
}

#[tokio::test]
async fn a_late_payment_is_accepted_until_the_products_time_for_it_ends() {
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
async fn an_unpaid_confirmation_refused_as_expired_makes_no_order_from_the_queue() {
    for released in [true, false] {
        let (wire, shop, _) = shop(product("tee", 2, 1)).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        // In time, but the table did not answer: it waits in the queue. Then the customer asks again and is refused.
        let accepted = NOW.plus_seconds(599);
        assert_eq!(
            refusal(shop.confirm(&confirmation(id, owner, None, LATE), LATE, soon()).await),
            Refusal::HoldExpired
        );
        let queued = shop.confirm(&confirmation(id, owner, None, accepted), LATE.plus_seconds(1), soon()).await;
        assert_eq!(refusal(queued), Refusal::HoldExpired, "{released}");
        // Nor by a clock that is behind.
        let behind = shop.confirm(&confirmation(id, owner, None, accepted), accepted, soon()).await;
        assert_eq!(refusal(behind), Refusal::HoldExpired, "{released}");
        assert_eq!(books(&wire).await["tee"].available, 2);
        // A payment is still honoured.
        assert_eq!(pay(&shop, &alice, "pay_1", LATE.plus_seconds(2)).await.unwrap().status, Status::Confirmed);
    }
}

#[tokio::test]
async fn a_refusal_by_a_clock_that_is_ahead_ends_the_hold_for_one_that_is_behind() {
    let (wire, shop, _) = shop(Product { late_payment_seconds: 0, ..product("tee", 1, 1) }).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let (id, owner) = (&alice.reservation_id, &alice.customer);
    // Accepted by a clock at the end of the hold, and carried out by one that has not come so far.
    let behind = NOW.plus_seconds(594);
    let late = shop.confirm(&confirmation(id, owner, Some(&payment("pay_1")), LATE), behind, soon()).await;
    assert_eq!(refusal(late), Refusal::RefundRequired);
    let unpaid = shop.confirm(&confirmation(id, owner, None, NOW.plus_seconds(570)), behind, soon()).await;
    assert_eq!(refusal(unpaid), Refusal::HoldExpired);
    assert_eq!(books(&wire).await["tee"].available, 1);
}

#[tokio::test]
async fn a_limit_that_was_just_lifted_refuses_no_payment() {
    let (_, shop, admin) = shop(limited(product("tee", 4, 1), 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    shop.release_overdue(LATE, soon()).await.unwrap();
    reserve(&shop, &basket("alice", "k2", &[("tee", 1)]), LATE).await.unwrap();
    // This environment has just read a limit of one, and another environment lifts it.
    let limit = holdfast_domain::ProductChange { max_per_customer: Some(Some(2)), ..Default::default() };
    admin.change_product(&product_id("tee"), 1, limit, soon()).await.unwrap();
    assert_eq!(pay(&shop, &alice, "pay_1", LATE).await.unwrap().status, Status::Confirmed);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_while_an_earlier_try_may_still_be_applied() {
    let (wire, one, two) = shop(product("tee", 5, 1)).await;
    // The answers of all the SDK's tries are lost; then somebody else takes the units.
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
async fn a_hold_shown_as_expired_stays_expired_for_a_clock_that_is_behind() {
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
async fn copies_of_one_adjustment_have_one_answer_in_any_order_of_their_calls() {
    for (delta, expected) in [(5, Some(5)), (-5, None), (-5, Some(5))] {
        // Whatever the copy has read so far, the other is applied before its next call.
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
                // The copy makes fewer calls.
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

/// Ready once all other tasks wait.
async fn idle() {
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_adjustments_key_belongs_to_the_ledger_and_not_to_the_admin() {
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
    // Without counting, a limit cannot be enforced.
    let uncounted = holdfast_domain::ProductChange { max_per_customer: Some(Some(2)), ..Default::default() };
    stocked(&wire, &[product("mug", 9, 1)]).await;
    let refused = shop.change_product(&product_id("mug"), 1, uncounted, soon()).await;
    assert!(matches!(refused, Err(Error::Invalid(invalid)) if invalid.field == "max_per_customer"));
}

#[tokio::test]
async fn a_reservation_hidden_by_a_conflict_is_not_refused_for_the_limit() {
    let (wire, one, two) = shop(limited(product("tee", 4, 1), 2)).await;
    let ask = basket("alice", "k", &[("tee", 2)]);
    let first = reserve(&one, &ask, NOW).await.unwrap().reservation;
    // The copy exceeds her limit, and another transaction is on the reservation.
    wire.fail("TransactWriteItems", 1, Fault::HiddenAt(0));
    let copy = reserve(&two, &ask, NOW).await.unwrap();
    assert_eq!((copy.replayed, copy.reservation), (true, first));
}

#[tokio::test(start_paused = true)]
async fn the_cache_ages_by_the_wall_clock_even_backwards() {
    for step in [5 * 60_000, -5 * 60_000] {
        let (wire, one, two) = shop(product("tee", 1, 1)).await;
        let bob = hold(&two, "bob", 1, NOW).await;
        let sold_out = reserve(&one, &basket("alice", "k1", &[("tee", 1)]), NOW).await;
        assert!(matches!(refusal(sold_out), Refusal::InsufficientStock { .. }));
        two.cancel(&bob.reservation_id, &bob.customer, NOW, soon()).await.unwrap();
        // The environment was frozen, or its clock was set: the runtime's own clock did not advance.
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

#[tokio::test]
async fn after_any_refusal_of_an_ended_hold_an_unpaid_confirmation_in_the_queue_makes_no_order() {
    let requests = ["cancel", "extend", "pay", "reserve"];
    for (asks, released) in requests.into_iter().flat_map(|asks| [(asks, true), (asks, false)]) {
        let (wire, shop, _) = shop(Product { late_payment_seconds: 0, ..product("tee", 2, 1) }).await;
        let alice = hold(&shop, "alice", 1, NOW).await;
        if released {
            shop.release_overdue(LATE, soon()).await.unwrap();
        }
        let (id, owner) = (&alice.reservation_id, &alice.customer);
        let (told, wanted) = match asks {
            // A replay shows it as expired: the function answers `hold_ended`.
            "reserve" => {
                let replay = reserve(&shop, &basket("alice", "k", &[("tee", 1)]), LATE).await.unwrap();
                assert_eq!((replay.replayed, replay.reservation.status), (true, Status::Expired), "{released}");
                (Err(Refusal::HoldExpired.into()), Refusal::HoldExpired)
            }
            "cancel" => (shop.cancel(id, owner, LATE, soon()).await, Refusal::HoldExpired),
            "extend" => {
                let seconds = holdfast_domain::HoldSeconds::DEFAULT;
                let extended = shop.extend(id, owner, seconds, LATE, soon(), |_| async { Ok(()) }).await;
                (extended, Refusal::HoldExpired)
            }
            // Its units may be free again when the queue delivers: an order without a payment, and a refund.
            _ => (pay(&shop, &alice, "pay_1", LATE).await, Refusal::RefundRequired),
        };
        assert_eq!(refusal(told), wanted, "{asks} {released}");
        // Accepted in time by any clock, however long after the refused request began.
        for accepted in [NOW, NOW.plus_seconds(599)] {
            let queued = shop.confirm(&confirmation(id, owner, None, accepted), LATE.plus_seconds(1), soon()).await;
            assert_eq!(refusal(queued), Refusal::HoldExpired, "{asks} {released}");
        }
        assert_eq!(books(&wire).await["tee"].available, 2);
    }
}

#[tokio::test]
async fn a_refusal_that_is_repeated_costs_no_write() {
    let (wire, shop, _) = shop(product("tee", 2, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    for writes in [2, 0] {
        wire.take_calls();
        assert_eq!(
            refusal(shop.cancel(&alice.reservation_id, &alice.customer, LATE, soon()).await),
            Refusal::HoldExpired
        );
        let calls = wire.take_calls();
        assert_eq!(calls.iter().filter(|call| !call.operation.contains("Get")).count(), writes, "{calls:?}");
    }
}

#[tokio::test]
async fn a_hold_that_is_extended_while_it_is_cancelled_is_shown_as_it_ended() {
    let (wire, one, two) = shop(product("tee", 2, 1)).await;
    let alice = hold(&one, "alice", 1, NOW).await;
    let (id, owner) = (&alice.reservation_id, &alice.customer);
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (cancelled, ()) = join(one.cancel(id, owner, NOW, soon()), async {
        gate.arrived().await;
        let longer = holdfast_domain::HoldSeconds::try_from(900).unwrap();
        two.extend(id, owner, longer, NOW, soon(), |_| async { Ok(()) }).await.unwrap();
        gate.open();
    })
    .await;
    let cancelled = cancelled.unwrap();
    assert_eq!((cancelled.status, cancelled.expires_at), (Status::Cancelled, NOW.plus_seconds(900)));
    assert_eq!(two.reservation(id, owner, soon()).await.unwrap(), cancelled);
}

#[tokio::test(start_paused = true)]
async fn nobody_is_refused_while_a_try_of_the_sdk_may_still_be_applied() {
    for fault in [Fault::LostBefore, Fault::ServerError, Fault::Throttled] {
        let (wire, one, two) = shop(product("tee", 5, 1)).await;
        wire.fail("TransactWriteItems", 1, fault);
        let mut writes = 0;
        let gate = wire.gate(move |call| {
            writes += usize::from(call.operation == "TransactWriteItems");
            writes == 2
        });
        let ask = adjustment(-5, None, "admin", "k");
        let (answer, ()) = join(one.adjust(&ask, NOW, soon()), async {
            gate.arrived().await;
            hold(&two, "bob", 1, NOW).await;
            gate.open();
        })
        .await;
        match (fault, answer) {
            // A throttled call was not applied, and will not be.
            (Fault::Throttled, Err(Error::Refused(Refusal::InsufficientStock { .. }))) => {}
            (Fault::LostBefore | Fault::ServerError, Err(Error::Unavailable { .. })) => {}
            (fault, answer) => panic!("{fault:?}: {answer:?}"),
        }
    }
}

#[tokio::test]
async fn a_reservation_is_kept_while_a_try_of_a_refused_confirmation_may_still_be_applied() {
    let days = |days: i64| NOW.plus_seconds(days * 86_400);
    for (closed, lost) in [(false, true), (true, true), (false, false)] {
        let (wire, one, _) = shop(product("tee", 2, 1)).await;
        let alice = hold(&one, "alice", 1, NOW).await;
        one.release_overdue(LATE, soon()).await.unwrap();
        let unpaid = async |at| {
            let asked = confirmation(&alice.reservation_id, &alice.customer, None, at);
            refusal(one.confirm(&asked, at, soon()).await)
        };
        if closed {
            assert_eq!(unpaid(LATE).await, Refusal::HoldExpired);
        }
        // A day before the reservation would be deleted: its key could then be used for another hold, and be confirmed by
        // the try that was lost.
        wire.step_clock(29 * 86_400_000);
        wire.fail("UpdateItem", usize::from(lost), Fault::LostBefore);
        assert_eq!(unpaid(days(29)).await, Refusal::HoldExpired);
        let ttl: i64 = stored(&wire, &alice).await["ttl"].as_n().unwrap().parse().unwrap();
        assert_eq!(ttl >= days(59).as_seconds(), lost, "closed before: {closed}");
    }
}
