//! Turning holds into orders: in time, late, twice, and with answers lost.

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{
    Adjustment, Confirmation, FailedConfirmation, FailedState, Failure, HoldSeconds, IdempotencyKey, Product, Refusal,
    Reservation, Status, Timestamp,
};
use holdfast_store::{Error, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, books, client, confirmation, customer, payment, product, product_id, reserve, soon, stocked,
    store, table,
};
use holdfast_testkit::wire::{Fault, Wire};

use crate::stored;

const LATE: Timestamp = Timestamp::from_millis(NOW.as_millis() + 600_000);

/// Alice holds 2 of 3.
async fn held() -> (Wire, Store, Reservation) {
    let wire = table();
    stocked(&wire, &[Product { counts_per_customer: true, max_per_customer: Some(3), ..product("tee", 3, 1) }]).await;
    let store = store(&wire, 1);
    let reservation = reserve(&store, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    wire.take_calls();
    (wire, store, reservation)
}

async fn confirm(store: &Store, held: &Reservation, paid: Option<&str>, at: Timestamp) -> Result<Reservation, Error> {
    let payment = paid.map(payment);
    store.confirm(&confirmation(&held.reservation_id, &held.customer, payment.as_ref(), at), at, soon()).await
}

fn refusal(answer: Result<Reservation, Error>) -> Refusal {
    match answer.unwrap_err() {
        Error::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn in_time_is_one_call_and_repeating_it_changes_nothing() {
    let (wire, store, held) = held().await;
    let order = confirm(&store, &held, Some("pay_1"), NOW).await.unwrap();
    let calls = wire.take_calls();
    assert_eq!(calls.iter().map(|call| call.operation.as_str()).collect::<Vec<_>>(), ["UpdateItem"]);
    assert_eq!((order.status, order.confirmed_at, order.confirmed_late), (Status::Confirmed, Some(NOW), false));
    for at in [NOW, LATE] {
        assert_eq!(confirm(&store, &held, Some("pay_1"), at).await.unwrap(), order);
        assert_eq!(confirm(&store, &held, None, at).await.unwrap(), order);
    }
    let calls = wire.take_calls();
    assert_eq!(calls.len(), 4, "the answer that refuses says what the reservation is: {calls:?}");
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.held, tee.sold), (0, 2));
}

#[tokio::test]
async fn another_payment_for_an_order_owes_a_refund() {
    let (_, store, held) = held().await;
    confirm(&store, &held, Some("pay_1"), NOW).await.unwrap();
    let refused = refusal(confirm(&store, &held, Some("pay_2"), NOW).await);
    assert!(refused.owes_refund());
    assert_eq!(refused.code(), "already_confirmed");
}

/// As an admin does after a refund.
async fn pay_back(store: &Store, held: &Reservation, paid: &str) -> Result<FailedConfirmation, Error> {
    let failure = Failure {
        confirmation: Some(Confirmation {
            reservation_id: held.reservation_id.clone(),
            customer: held.customer.clone(),
            payment_reference: Some(payment(paid)),
            requested_at: NOW,
            request: None,
        }),
        reason: "not_confirmed".to_owned(),
        body: "{}".to_owned(),
    };
    store.record_failure(&failure, NOW, soon()).await.unwrap();
    store.resolve_failed(&failure.id(), "admin", Some("paid back"), NOW, soon()).await
}

#[tokio::test]
async fn a_refunded_payment_buys_nothing_in_any_status_of_the_reservation() {
    for state in ["held", "overdue", "expired", "confirmed"] {
        let (wire, store, held) = held().await;
        let at = if state == "held" { NOW } else { LATE };
        match state {
            "expired" => _ = store.release_overdue(LATE, soon()).await.unwrap(),
            "confirmed" => _ = confirm(&store, &held, None, NOW).await.unwrap(),
            _ => {}
        }
        pay_back(&store, &held, "pay_1").await.unwrap();
        assert!(
            !stored(&wire, &held).await.contains_key("ttl"),
            "{state}: if it were deleted, its key could be used again"
        );
        let before = books(&wire).await["tee"];
        assert_eq!(refusal(confirm(&store, &held, Some("pay_1"), at).await), Refusal::RefundRequired, "{state}");
        let tee = books(&wire).await["tee"];
        // Nobody can be told that an overdue hold is still held, or confirm it, afterwards.
        let released = if state == "overdue" { before.held } else { 0 };
        let expected = (before.available + released, before.held - released, before.sold);
        assert_eq!((tee.available, tee.held, tee.sold), expected, "{state}");
        // Another payment is not affected.
        let order = confirm(&store, &held, Some("pay_2"), at).await.unwrap();
        assert_eq!(order.payment_reference, Some(payment("pay_2")), "{state}");
        assert_eq!(books(&wire).await["tee"].sold, 2, "{state}");
    }
}

#[tokio::test]
async fn a_payment_is_either_refunded_or_an_order_whichever_comes_first() {
    for (state, write) in [("held", "UpdateItem"), ("expired", "TransactWriteItems")] {
        let (wire, store, held) = held().await;
        let at = if state == "held" { NOW } else { LATE };
        if state == "expired" {
            store.release_overdue(LATE, soon()).await.unwrap();
        }
        // The confirmation has made all its reads, and its write is in flight: the resolution arrives before it.
        let gate = wire.gate(move |call| call.operation == write);
        let admin = async {
            gate.arrived().await;
            pay_back(&store, &held, "pay_1").await.unwrap();
            gate.open();
        };
        let (answer, ()) = futures_util::future::join(confirm(&store, &held, Some("pay_1"), at), admin).await;
        assert_eq!(refusal(answer), Refusal::RefundRequired, "{state}");
        assert_eq!(books(&wire).await["tee"].sold, 0);
    }
}

#[tokio::test]
async fn an_order_is_not_released() {
    let (_, store, held) = held().await;
    confirm(&store, &held, Some("pay_1"), NOW).await.unwrap();
    let refused = pay_back(&store, &held, "pay_1").await;
    assert!(matches!(refused, Err(Error::Refused(Refusal::AlreadySettled))), "{refused:?}");
    let listed = store.failed_confirmations(None, 10, None, NOW, soon()).await.unwrap().items;
    assert_eq!(listed.iter().map(|failed| failed.state).collect::<Vec<_>>(), [FailedState::Confirmed]);
    // A payment with another customer's name is refunded too, and buys nothing here afterwards.
    let theirs = Failure {
        confirmation: Some(Confirmation {
            reservation_id: held.reservation_id.clone(),
            customer: customer("bob"),
            payment_reference: Some(payment("pay_3")),
            requested_at: NOW,
            request: None,
        }),
        reason: "not_confirmed".to_owned(),
        body: "{}".to_owned(),
    };
    store.record_failure(&theirs, NOW, soon()).await.unwrap();
    store.resolve_failed(&theirs.id(), "admin", Some("no such order"), NOW, soon()).await.unwrap();
    let own = store.reservation(&held.reservation_id, &held.customer, soon()).await.unwrap();
    assert_eq!(own.owed_back.into_iter().collect::<Vec<_>>(), [payment("pay_3")]);
    // A second payment for it is.
    pay_back(&store, &held, "pay_2").await.unwrap();
    assert_eq!(confirm(&store, &held, Some("pay_1"), NOW).await.unwrap().status, Status::Confirmed);
}

#[tokio::test]
async fn a_payment_after_an_unpaid_confirmation_is_recorded() {
    let (_, store, held) = held().await;
    confirm(&store, &held, None, NOW).await.unwrap();
    let order = confirm(&store, &held, Some("pay_1"), LATE).await.unwrap();
    assert_eq!(order.payment_reference, Some(payment("pay_1")));
    assert!(refusal(confirm(&store, &held, Some("pay_2"), NOW).await).owes_refund());
}

#[tokio::test]
async fn too_late_without_a_payment_is_refused_even_before_the_release() {
    let (wire, store, held) = held().await;
    assert_eq!(refusal(confirm(&store, &held, None, LATE).await), Refusal::HoldExpired);
    store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!(refusal(confirm(&store, &held, None, LATE).await), Refusal::HoldExpired);
    assert_eq!(books(&wire).await["tee"].available, 3);
}

#[tokio::test]
async fn a_late_payment_keeps_units_that_were_not_released() {
    let (wire, store, held) = held().await;
    let order = confirm(&store, &held, Some("pay_1"), LATE).await.unwrap();
    assert!(order.confirmed_late);
    assert_eq!(books(&wire).await["tee"].sold, 2);
    assert_eq!(store.release_overdue(LATE, soon()).await.unwrap().holds, 0);
}

#[tokio::test]
async fn a_late_payment_takes_the_units_again_and_counts_them_against_the_limit() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    assert_eq!(books(&wire).await["tee"].available, 3);
    let order = confirm(&store, &held, Some("pay_1"), LATE).await.unwrap();
    assert!(order.confirmed_late && order.status == Status::Confirmed);
    let stored = store.reservation(&held.reservation_id, &held.customer, soon()).await.unwrap();
    assert_eq!(stored, order);
    assert_eq!(books(&wire).await["tee"].sold, 2);
    let more = reserve(&store, &basket("alice", "k2", &[("tee", 1)]), LATE).await.unwrap();
    assert_eq!(more.reservation.status, Status::Held);
    let limit = reserve(&store, &basket("alice", "k3", &[("tee", 1)]), LATE).await.unwrap_err();
    assert!(matches!(limit, Error::Refused(Refusal::CustomerLimitReached { .. })), "{limit:?}");
}

#[tokio::test]
async fn a_late_payment_without_units_owes_a_refund_and_takes_nothing() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    reserve(&store, &basket("bob", "k", &[("tee", 2)]), LATE).await.unwrap();
    assert_eq!(refusal(confirm(&store, &held, Some("pay_1"), LATE).await), Refusal::RefundRequired);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.sold), (1, 2, 0));
}

#[tokio::test]
async fn a_late_payment_takes_units_from_any_shard() {
    let wire = table();
    stocked(&wire, &[product("tee", 8, 4)]).await;
    let store = store(&wire, 1);
    let held = reserve(&store, &basket("alice", "k", &[("tee", 7)]), NOW).await.unwrap().reservation;
    store.release_overdue(LATE, soon()).await.unwrap();
    let order = confirm(&store, &held, Some("pay_1"), LATE).await.unwrap();
    assert_eq!(order.lines[0].takes.len(), 4);
    assert_eq!(store.reservation(&held.reservation_id, &held.customer, soon()).await.unwrap(), order);
    assert_eq!(books(&wire).await["tee"].sold, 7);
}

#[tokio::test]
async fn a_late_payment_never_takes_units_that_were_just_taken() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    // After the stock was read and before the transaction, bob takes all of it.
    let gate = wire.gate(|call| call.operation == "TransactWriteItems");
    let bob = holdfast_testkit::fixtures::store(&wire, 2);
    let bob = async {
        gate.arrived().await;
        reserve(&bob, &basket("bob", "k", &[("tee", 3)]), LATE).await.unwrap();
        gate.open();
    };
    let (answer, ()) = futures_util::future::join(confirm(&store, &held, Some("pay_1"), LATE), bob).await;
    assert_eq!(refusal(answer), Refusal::RefundRequired);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.sold), (0, 3, 0));
}

#[tokio::test]
async fn a_confirmation_accepted_in_time_is_honoured_when_it_leaves_the_queue_late() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    let order =
        store.confirm(&confirmation(&held.reservation_id, &held.customer, None, NOW), LATE, soon()).await.unwrap();
    assert_eq!(order.status, Status::Confirmed);
    assert_eq!(books(&wire).await["tee"].sold, 2);
}

#[tokio::test]
async fn an_unpaid_confirmation_in_time_whose_units_are_gone_owes_nothing() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    reserve(&store, &basket("bob", "k", &[("tee", 3)]), LATE).await.unwrap();
    // In time by the clock that accepted it; another clock was ahead, and its environment has released the hold.
    assert_eq!(refusal(confirm(&store, &held, None, NOW).await), Refusal::HoldExpired);
    assert_eq!(books(&wire).await["tee"].held, 3);
}

#[tokio::test]
async fn an_unpaid_confirmation_that_was_refused_for_want_of_units_makes_no_order_when_its_message_comes_again() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    let bobs = basket("bob", "k", &[("tee", 3)]);
    reserve(&store, &bobs, LATE).await.unwrap();
    // From the queue: accepted in time, carried out late.
    let queued = confirmation(&held.reservation_id, &held.customer, None, NOW);
    assert_eq!(refusal(store.confirm(&queued, LATE, soon()).await), Refusal::HoldExpired);
    store.cancel(&bobs.reservation_id, &customer("bob"), LATE, soon()).await.unwrap();
    assert_eq!(refusal(store.confirm(&queued, LATE, soon()).await), Refusal::HoldExpired);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.sold), (3, 0, 0));
}

#[tokio::test]
async fn a_confirmation_of_a_hold_that_is_extended_meanwhile_is_not_late() {
    let (wire, store, held) = held().await;
    let (before, after) = (held.expires_at.plus_seconds(-1), held.expires_at.plus_seconds(1));
    // After the hold was read as ended and before the order is written, an extension that was decided in time is.
    let mut updates = 0;
    let gate = wire.gate(move |call| {
        updates += usize::from(call.operation == "UpdateItem");
        updates == 2
    });
    let two = holdfast_testkit::fixtures::store(&wire, 2);
    let extend = async {
        gate.arrived().await;
        let seconds = HoldSeconds::try_from(900).unwrap();
        let extended = two.extend(&held.reservation_id, &held.customer, seconds, before, soon(), |_| async { Ok(()) });
        let extended = extended.await.unwrap();
        gate.open();
        extended
    };
    let (order, extended) = futures_util::future::join(confirm(&store, &held, Some("pay_1"), after), extend).await;
    let order = order.unwrap();
    assert!(extended.expires_at > after);
    assert_eq!((order.status, order.confirmed_late), (Status::Confirmed, false));
}

#[tokio::test]
async fn cancelled_and_paid_owes_a_refund() {
    let (_, store, held) = held().await;
    store.cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    assert_eq!(refusal(confirm(&store, &held, None, NOW).await), Refusal::ReservationCancelled);
    assert_eq!(refusal(confirm(&store, &held, Some("pay_1"), NOW).await), Refusal::RefundRequired);
}

#[tokio::test]
async fn another_customers_reservation_does_not_exist() {
    let (wire, store, held) = held().await;
    let (bob, pay) = (customer("bob"), payment("pay_1"));
    for at in [NOW, LATE] {
        let answer = store.confirm(&confirmation(&held.reservation_id, &bob, Some(&pay), at), at, soon()).await;
        assert_eq!(refusal(answer), Refusal::ReservationNotFound);
        assert_eq!(refusal(store.cancel(&held.reservation_id, &bob, at, soon()).await), Refusal::ReservationNotFound);
        assert_eq!(refusal(store.reservation(&held.reservation_id, &bob, soon()).await), Refusal::ReservationNotFound);
    }
    assert_eq!(books(&wire).await["tee"].held, 2);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_make_one_order() {
    for fault in [Fault::LostAfter, Fault::ServerErrorAfter, Fault::LostBefore, Fault::Throttled, Fault::Conflict] {
        for operation in ["UpdateItem", "TransactWriteItems"] {
            let (wire, store, held) = held().await;
            let at = if operation == "UpdateItem" { NOW } else { LATE };
            if at == LATE {
                store.release_overdue(LATE, soon()).await.unwrap();
            }
            wire.fail(operation, 4, fault);
            let order = confirm(&store, &held, Some("pay_1"), at).await;
            let order = order.unwrap_or_else(|error| panic!("{fault:?} {operation}: {error}"));
            assert_eq!(order.status, Status::Confirmed);
            assert_eq!(books(&wire).await["tee"].sold, 2, "{fault:?} {operation}");
        }
    }
}

#[tokio::test]
async fn a_late_payment_over_the_limit_owes_a_refund() {
    let (wire, store, held) = held().await;
    store.release_overdue(LATE, soon()).await.unwrap();
    reserve(&store, &basket("alice", "k2", &[("tee", 2)]), LATE).await.unwrap();
    // One unit is free and she has two of at most three: two more are neither free nor allowed.
    let more = Adjustment {
        product_id: product_id("tee"),
        delta: 5,
        reason: "found".to_owned(),
        reference: None,
        expected_total: None,
        actor: "admin".to_owned(),
        key: IdempotencyKey::try_from("k").unwrap(),
    };
    store.adjust(&more, LATE, soon()).await.unwrap();
    wire.take_calls();
    assert_eq!(refusal(confirm(&store, &held, Some("pay_1"), LATE).await), Refusal::RefundRequired);
    let tries = wire.take_calls().iter().filter(|call| call.operation == "TransactWriteItems").count();
    assert_eq!(tries, 1, "it cannot be retried");
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held, tee.sold), (6, 2, 0));
}

/// Leaves one unit on each of the product's shards.
async fn crumble(wire: &Wire, id: &str, shards: u32) {
    let id = product_id(id);
    let of_shards = (0..shards).map(|shard| (keys::shard(&id, shard), "available", 1));
    for (key, name, value) in of_shards.chain([(keys::product(&id), "total", shards)]) {
        client(wire)
            .update_item()
            .table_name(TABLE)
            .set_key(Some(key.item()))
            .update_expression("SET #name = :value")
            .expression_attribute_names("#name", name)
            .expression_attribute_values(":value", AttributeValue::N(value.to_string()))
            .send()
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn a_late_payment_on_more_shards_than_one_transaction_can_have_consolidates_them_first() {
    // Each unit is alone on its shard, so each is one action. With the reservation's, and one that giving the order back
    // needs, a hundred are the most.
    for (shards, takes) in [(34, 98), (35, 36)] {
        let wire = table();
        stocked(&wire, &[product("a", 64, 64), product("b", 72, shards)]).await;
        let store = store(&wire, 1);
        let ask = basket("alice", "k", &[("a", 64), ("b", shards)]);
        let held = reserve(&store, &ask, NOW).await.unwrap().reservation;
        store.release_overdue(LATE, soon()).await.unwrap();
        crumble(&wire, "b", shards).await;
        let order = confirm(&store, &held, Some("pay_1"), LATE).await.unwrap();
        assert_eq!(order.lines.iter().map(|line| line.takes.len()).sum::<usize>(), takes);
        assert_eq!(books(&wire).await["a"].sold, 64);
    }
}
