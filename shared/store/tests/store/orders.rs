//! Orders that are given back: once, with their units, limit, ledger and payment together.

use futures_util::future::join;
use holdfast_domain::{FailedState, ORDER_CANCELLED, OrderCancellation, Refusal, Reservation, Status, Timestamp};
use holdfast_store::{Error, Listed, Store};
use holdfast_testkit::fixtures::{
    NOW, basket, books, confirmation, customer, limited, payment, product, product_id, reserve, soon,
};
use holdfast_testkit::wire::Fault;

use crate::{LATE, failure_of, hold, pay, refusal, shop};

fn cancellation(order: &Reservation, restock: bool) -> OrderCancellation {
    OrderCancellation {
        order_id: order.reservation_id.clone(),
        customer: None,
        reason: "event called off".to_owned(),
        restock,
        actor: "root".to_owned(),
    }
}

async fn cancel(store: &Store, order: &Reservation, restock: bool, at: Timestamp) -> Result<Reservation, Error> {
    store.cancel_order(&cancellation(order, restock), at, soon()).await
}

#[tokio::test]
async fn an_order_is_given_back_with_its_units_its_limit_and_its_payment() {
    for restock in [true, false] {
        let (wire, shop, other) = shop(limited(product("tee", 5, 2), 2)).await;
        let alice = hold(&shop, "alice", 2, NOW).await;
        pay(&shop, &alice, "pay_1", NOW).await.unwrap();
        let given_back = cancel(&other, &alice, restock, LATE).await.unwrap();
        assert_eq!((given_back.status, given_back.confirmed_at), (Status::Cancelled, Some(NOW)));
        let said = given_back.cancellation.clone().unwrap();
        assert_eq!((said.at, said.by.as_str(), said.reason.as_str()), (LATE, "root", "event called off"));
        assert_eq!(said.restocked, restock);
        assert_eq!(shop.any_reservation(&alice.reservation_id, soon()).await.unwrap(), given_back);

        let tee = books(&wire).await["tee"];
        let left = if restock { 5 } else { 3 };
        assert_eq!((tee.available, tee.held, tee.sold, tee.total), (left, 0, 0, left));
        let ledger = shop.ledger(&product_id("tee"), 10, None, soon()).await.unwrap().items;
        let newest = &ledger[0];
        if restock {
            assert_eq!(ledger.len(), 1);
        } else {
            assert_eq!((newest.delta, newest.total_after, newest.reason.as_str()), (-2, 3, "event called off"));
            assert_eq!(newest.reference.as_deref(), Some(alice.reservation_id.as_str()));
            assert_eq!(newest.actor, "root");
        }

        // Whoever repeats it changes nothing, whatever they say about the units.
        for again in [restock, !restock] {
            assert_eq!(cancel(&shop, &alice, again, LATE.plus_seconds(1)).await.unwrap(), given_back);
        }
        assert_eq!(books(&wire).await["tee"], tee);

        // The limit is free again, and the payment buys nothing.
        reserve(&shop, &basket("alice", "k2", &[("tee", 2)]), NOW).await.unwrap();
        assert_eq!(refusal(pay(&shop, &alice, "pay_1", LATE).await), Refusal::RefundRequired);
        let unpaid = confirmation(&alice.reservation_id, &alice.customer, None, NOW);
        assert_eq!(refusal(shop.confirm(&unpaid, LATE, soon()).await), Refusal::ReservationCancelled);
        let replay = reserve(&shop, &basket("alice", "k", &[("tee", 2)]), LATE).await.unwrap();
        assert_eq!((replay.replayed, replay.reservation.status), (true, Status::Cancelled));

        // It is owed until an admin has resolved it, and no retry makes an order of it.
        let open = shop.failed_confirmations(Some(FailedState::Open), 10, None, LATE, soon()).await.unwrap().items;
        let [owed] = open.as_slice() else { panic!("{open:?}") };
        assert_eq!((owed.reason.as_str(), &owed.payment_reference), (ORDER_CANCELLED, &Some(payment("pay_1"))));
        assert_eq!(refusal(shop.begin_retry(&owed.id, true, soon()).await), Refusal::ReservationCancelled);
        let refused_again = failure_of(&alice, "alice", Some("pay_1"), "refund_required", LATE);
        let recorded = shop.record_failure(&refused_again, LATE, soon()).await.unwrap();
        assert_eq!((recorded.id.as_str(), recorded.reason.as_str()), (owed.id.as_str(), ORDER_CANCELLED));
        shop.resolve_failed(&owed.id, "root", Some("refunded"), LATE, soon()).await.unwrap();
        let open = shop.failed_confirmations(Some(FailedState::Open), 10, None, LATE, soon()).await.unwrap().items;
        assert_eq!(open, []);
    }
}

#[tokio::test]
async fn only_an_order_is_given_back_and_to_its_customer() {
    let (wire, shop, _) = shop(product("tee", 5, 1)).await;
    let held = hold(&shop, "alice", 1, NOW).await;
    assert_eq!(refusal(cancel(&shop, &held, true, NOW).await), Refusal::ReservationNotFound);
    let for_bob = OrderCancellation { customer: Some(customer("bob")), ..cancellation(&held, true) };
    pay(&shop, &held, "pay_1", NOW).await.unwrap();
    assert_eq!(refusal(shop.cancel_order(&for_bob, NOW, soon()).await), Refusal::ReservationNotFound);
    let cancelled = reserve(&shop, &basket("carol", "k", &[("tee", 1)]), NOW).await.unwrap().reservation;
    shop.cancel(&cancelled.reservation_id, &cancelled.customer, NOW, soon()).await.unwrap();
    assert_eq!(refusal(cancel(&shop, &cancelled, true, NOW).await), Refusal::ReservationNotFound);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.sold), (4, 1));
    // Orders are listed as such afterwards; what was never one is not.
    cancel(&shop, &held, true, NOW).await.unwrap();
    let listed = async |who: &str| {
        let page = shop.reservations_of(&customer(who), Listed::Orders, NOW, 10, None, soon()).await.unwrap();
        page.items.into_iter().map(|order| order.status).collect::<Vec<_>>()
    };
    assert_eq!(listed("alice").await, [Status::Cancelled]);
    assert_eq!(listed("carol").await, []);
}

#[tokio::test(start_paused = true)]
async fn an_order_whose_answers_are_lost_is_given_back_once() {
    for (fault, times) in [(Fault::LostAfter, 1), (Fault::LostAfter, 4), (Fault::Conflict, 2), (Fault::LostBefore, 4)] {
        let (wire, shop, _) = shop(product("tee", 3, 1)).await;
        let alice = hold(&shop, "alice", 2, NOW).await;
        let order = shop.confirm(&confirmation(&alice.reservation_id, &alice.customer, None, NOW), NOW, soon()).await;
        wire.fail("TransactWriteItems", times, fault);
        let given_back = cancel(&shop, &order.unwrap(), false, NOW).await.unwrap();
        assert_eq!(given_back.status, Status::Cancelled, "{fault:?} {times}");
        let tee = books(&wire).await["tee"];
        assert_eq!((tee.available, tee.sold, tee.total), (1, 0, 1), "{fault:?} {times}");
        // Nothing was paid, so nothing is owed.
        assert_eq!(shop.failed_confirmations(None, 10, None, NOW, soon()).await.unwrap().items, []);
    }
}

#[tokio::test]
async fn a_payment_that_is_attached_while_its_order_is_given_back_is_owed() {
    let (wire, shop, other) = shop(product("tee", 3, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let order =
        shop.confirm(&confirmation(&alice.reservation_id, &alice.customer, None, NOW), NOW, soon()).await.unwrap();
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let (given_back, ()) = join(cancel(&shop, &order, true, NOW), async {
        gate.arrived().await;
        pay(&other, &order, "pay_1", NOW).await.unwrap();
        gate.open();
    })
    .await;
    assert!(given_back.unwrap().owed_back.contains(&payment("pay_1")));
    let open = shop.failed_confirmations(Some(FailedState::Open), 10, None, NOW, soon()).await.unwrap().items;
    assert_eq!(open.len(), 1);
}

#[tokio::test]
async fn a_late_mark_of_the_order_does_not_hide_that_its_payment_is_owed() {
    // The payment failed first, and was accepted late: that is settled by a call of its own, which may come last.
    let (wire, shop, other) = shop(product("tee", 3, 1)).await;
    let alice = hold(&shop, "alice", 1, NOW).await;
    let failed = failure_of(&alice, "alice", Some("pay_1"), "not_confirmed", NOW);
    shop.record_failure(&failed, NOW, soon()).await.unwrap();
    let paid = confirmation(&alice.reservation_id, &alice.customer, Some(&payment("pay_1")), NOW);
    let order = shop.confirm(&paid, NOW, soon()).await.unwrap();
    let gate = wire.gate(|call| call.operation == "UpdateItem");
    let (settled, ()) = join(shop.settle_as_confirmed(&paid, NOW, soon()), async {
        gate.arrived().await;
        cancel(&other, &order, true, NOW).await.unwrap();
        gate.open();
    })
    .await;
    settled.unwrap();
    let owed = shop.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!((owed.state, owed.reason.as_str()), (FailedState::Open, ORDER_CANCELLED));
    // And what was settled before is open again.
    let bob = hold(&shop, "bob", 1, NOW).await;
    let failed = failure_of(&bob, "bob", Some("pay_2"), "not_confirmed", NOW);
    shop.record_failure(&failed, NOW, soon()).await.unwrap();
    pay(&shop, &bob, "pay_2", NOW).await.unwrap();
    let paid = confirmation(&bob.reservation_id, &bob.customer, Some(&payment("pay_2")), NOW);
    shop.settle_as_confirmed(&paid, NOW, soon()).await.unwrap();
    cancel(&shop, &bob, true, NOW).await.unwrap();
    let owed = shop.failed(&failed.id(), soon()).await.unwrap();
    assert_eq!((owed.state, owed.settled_by, owed.settled_at), (FailedState::Open, None, None));
}
