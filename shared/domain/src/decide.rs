//! What a command does to a reservation: one function for each command, which handles every status.
//!
//! A function only decides what *should* happen. The store then carries it out under a condition that repeats what was
//! assumed here, and decides again when the condition fails. So a decision on stale data is never applied.

use crate::{Confirmation, HoldSeconds, Refusal, Reservation, Status, Timestamp};

/// All extensions together are at most this many times the first hold.
pub const MAX_EXTENSIONS_OF_FIRST_HOLD: i64 = 2;

/// How far the clock that accepted a confirmation may be behind the one that dated the hold.
pub const CLOCK_TOLERANCE_SECONDS: i64 = 10;

/// What a confirmation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfirmDecision {
    /// Held, and requested in time: make it an order.
    InTime,
    /// Paid after the hold ended, but the hold has not been released yet: make it an order and keep the units.
    LateStillHeld,
    /// The hold was released, and the payment came late or the request was in time: take the units again and make it an
    /// order.
    LateRetake,
    /// Confirmed before, without a payment: record the payment.
    AttachPayment,
    /// Confirmed before by the same command: nothing to do.
    Done,
    /// The payment can buy nothing: record on the reservation that it is owed back, and refuse it for good.
    OweBack,
    /// Without a payment, and the hold has expired: record that no confirmation without a payment that was accepted until
    /// now makes it an order, and refuse this one.
    CloseUnpaid,
    /// Without a payment, and an admin settled an earlier one so recently that no clock can tell which came first.
    RetryLater,
    /// Refused.
    Refuse(Refusal),
}

/// The most payments that a reservation records as owed back: each has up to 255 bytes, and a DynamoDB item up to 400 KB.
/// A reservation that has ended and has this many accepts no other payment, since that refusal could not be recorded.
pub const MAX_OWED_BACK: usize = 500;

/// Decides a confirmation that is carried out at `now`: the moment of the request, or later if it comes from the queue.
///
/// A confirmation accepted in time is a promise, and is kept even if the units were released meanwhile; but not with a
/// payment that is owed back, nor without a payment where that was settled otherwise since: by an admin, or because
/// the customer was told that the hold has expired. A caller who waits for the answer was promised nothing: without a
/// payment, a hold that was released stays released for them, whatever their clock says. A confirmation that was accepted
/// before the hold was made is about an earlier hold under the same key, which has been cleaned up.
pub fn confirmation(reservation: &Reservation, confirmation: &Confirmation, now: Timestamp) -> ConfirmDecision {
    let (payment, at) = (confirmation.payment_reference.as_ref(), confirmation.requested_at);
    let queued = at != now;
    if reservation.created_at > at.plus_seconds(CLOCK_TOLERANCE_SECONDS) {
        return ConfirmDecision::Refuse(Refusal::ReservationNotFound);
    }
    if payment.is_some_and(|payment| reservation.owed_back.contains(payment)) {
        return ConfirmDecision::Refuse(Refusal::RefundRequired);
    }
    let ended = matches!(reservation.status, Status::Expired | Status::Cancelled);
    if payment.is_some() && ended && reservation.owed_back.len() >= MAX_OWED_BACK {
        return ConfirmDecision::Refuse(Refusal::RefundRequired);
    }
    let closed = payment.is_none() && reservation.unpaid_closed_at.is_some_and(|closed_at| at <= closed_at);
    let in_time = !reservation.overdue(at);
    match (reservation.status, payment) {
        (Status::Confirmed, _) if reservation.is_order_of(payment) => ConfirmDecision::Done,
        (Status::Confirmed, _) if reservation.payment_reference.is_none() => ConfirmDecision::AttachPayment,
        (Status::Confirmed, _) => ConfirmDecision::Refuse(Refusal::AlreadyConfirmed { other_payment: true }),
        (Status::Cancelled, None) => ConfirmDecision::Refuse(Refusal::ReservationCancelled),
        (Status::Cancelled, Some(_)) => ConfirmDecision::OweBack,
        (Status::Held, None) if closed && in_time && !queued => ConfirmDecision::RetryLater,
        (Status::Expired, None) if !queued && !reservation.closed_to_unpaid() => ConfirmDecision::CloseUnpaid,
        (Status::Held | Status::Expired, None) if closed => ConfirmDecision::Refuse(Refusal::HoldExpired),
        (Status::Held, _) if in_time => ConfirmDecision::InTime,
        (Status::Expired, _) if in_time => ConfirmDecision::LateRetake,
        (Status::Held | Status::Expired, None) => ConfirmDecision::Refuse(Refusal::HoldExpired),
        (Status::Held | Status::Expired, Some(_)) if reservation.too_late_to_pay(at) => ConfirmDecision::OweBack,
        (Status::Held, Some(_)) => ConfirmDecision::LateStillHeld,
        (Status::Expired, Some(_)) => ConfirmDecision::LateRetake,
    }
}

/// What a cancellation does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CancelDecision {
    /// Release the units.
    Release,
    /// Cancelled before: nothing to do.
    Done,
    /// Refused.
    Refuse(Refusal),
}

/// Decides a customer's cancellation at `now`.
pub fn cancellation(reservation: &Reservation, now: Timestamp) -> CancelDecision {
    match reservation.status {
        Status::Held if !reservation.overdue(now) => CancelDecision::Release,
        Status::Held | Status::Expired => CancelDecision::Refuse(Refusal::HoldExpired),
        Status::Cancelled => CancelDecision::Done,
        Status::Confirmed => CancelDecision::Refuse(Refusal::AlreadyConfirmed { other_payment: false }),
    }
}

/// What the cancellation of an order does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OrderCancelDecision {
    /// Give it back.
    GiveBack,
    /// It was given back before: nothing to do.
    Done,
    /// Refused.
    Refuse(Refusal),
}

/// Decides whether an order is given back. What was never an order is not found.
pub fn order_cancellation(reservation: &Reservation) -> OrderCancelDecision {
    match reservation.status {
        Status::Confirmed => OrderCancelDecision::GiveBack,
        Status::Cancelled if reservation.was_ordered() => OrderCancelDecision::Done,
        Status::Held | Status::Cancelled | Status::Expired => OrderCancelDecision::Refuse(Refusal::ReservationNotFound),
    }
}

/// What the release of a hold by an admin does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseDecision {
    /// Release the units.
    Release,
    /// It has expired, so its units are free; but a late payment could still make an order of it: cancel it.
    Close,
    /// It has been cancelled before: nothing to do.
    Done,
    /// Refused.
    Refuse(Refusal),
}

/// Decides whether an admin may release a hold. They need not wait for its end, and it never becomes an order afterwards.
pub fn release(reservation: &Reservation) -> ReleaseDecision {
    match reservation.status {
        Status::Held => ReleaseDecision::Release,
        Status::Expired => ReleaseDecision::Close,
        Status::Cancelled => ReleaseDecision::Done,
        Status::Confirmed => ReleaseDecision::Refuse(Refusal::AlreadyConfirmed { other_payment: false }),
    }
}

/// Decides whether the lines or the owner of a hold may be changed at `now`.
///
/// # Errors
/// [`Refusal::HoldExpired`], [`Refusal::ReservationCancelled`], [`Refusal::AlreadyConfirmed`].
pub fn change(reservation: &Reservation, now: Timestamp) -> Result<(), Refusal> {
    match reservation.status {
        Status::Held if !reservation.overdue(now) => Ok(()),
        Status::Held | Status::Expired => Err(Refusal::HoldExpired),
        Status::Cancelled => Err(Refusal::ReservationCancelled),
        Status::Confirmed => Err(Refusal::AlreadyConfirmed { other_payment: false }),
    }
}

/// What an extension does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtendDecision {
    /// Extend the hold until then.
    Until(Timestamp),
    /// The hold already lasts that long: nothing to do.
    Done,
    /// Refused.
    Refuse(Refusal),
}

/// Decides an extension requested at `now`: the hold must last at least `hold_seconds` from now. It is never made
/// shorter, so a repeated request changes nothing; and it lasts at most three times the first hold in total, so that
/// nobody can keep stock from others forever.
pub fn extension(reservation: &Reservation, hold_seconds: HoldSeconds, now: Timestamp) -> ExtendDecision {
    match reservation.status {
        Status::Held if !reservation.overdue(now) => {
            let first = reservation.hold_seconds.get();
            let latest = reservation.created_at.plus_seconds(first * (1 + MAX_EXTENSIONS_OF_FIRST_HOLD));
            let wanted = now.plus_seconds(hold_seconds.get());
            if wanted <= reservation.expires_at {
                ExtendDecision::Done
            } else if wanted > latest {
                ExtendDecision::Refuse(Refusal::ExtensionLimitReached { latest })
            } else {
                ExtendDecision::Until(wanted)
            }
        }
        Status::Held | Status::Expired => ExtendDecision::Refuse(Refusal::HoldExpired),
        Status::Cancelled => ExtendDecision::Refuse(Refusal::ReservationCancelled),
        Status::Confirmed => ExtendDecision::Refuse(Refusal::AlreadyConfirmed { other_payment: false }),
    }
}

/// What the end of a hold's time does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpireDecision {
    /// Release the units.
    Release,
    /// The hold has time left.
    NotYet,
    /// The hold ended before.
    Ended,
}

/// Decides whether a reservation has to be released at `now`.
pub fn expiry(reservation: &Reservation, now: Timestamp) -> ExpireDecision {
    match reservation.status {
        Status::Held if reservation.overdue(now) => ExpireDecision::Release,
        Status::Held => ExpireDecision::NotYet,
        Status::Confirmed | Status::Cancelled | Status::Expired => ExpireDecision::Ended,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PaymentReference, reservation};
    use std::collections::BTreeSet;

    const CREATED: Timestamp = Timestamp::from_millis(0);

    fn reservation(status: Status, paid_with: Option<&str>) -> Reservation {
        Reservation {
            status,
            late_payment_seconds: 3_600,
            payment_reference: paid_with.map(|text| text.try_into().unwrap()),
            ..reservation::tests::held(&[])
        }
    }

    /// The decision on a confirmation that was accepted `at`, at once or, if `queued`, from the queue a moment later.
    fn confirm(
        found: &Reservation,
        payment: Option<&PaymentReference>,
        at: Timestamp,
        queued: bool,
    ) -> ConfirmDecision {
        let command = Confirmation {
            reservation_id: found.reservation_id.clone(),
            customer: found.customer.clone(),
            payment_reference: payment.cloned(),
            requested_at: at,
            request: None,
        };
        confirmation(found, &command, Timestamp::from_millis(at.as_millis() + i64::from(queued)))
    }

    /// Before, at and after expiry.
    const TIMES: [(i64, bool); 3] = [(599_999, false), (600_000, true), (600_001, true)];

    #[test]
    fn every_status_by_confirm_before_at_and_after_expiry() {
        use ConfirmDecision::{AttachPayment, CloseUnpaid, Done, InTime, LateRetake, LateStillHeld, OweBack, Refuse};
        let pay: PaymentReference = "pay_1".try_into().unwrap();
        let refuse = |refusal: &Refusal| Refuse(refusal.clone());
        let expired = refuse(&Refusal::HoldExpired);
        let other = refuse(&Refusal::AlreadyConfirmed { other_payment: true });
        // status, paid with before, pays now, in time -> , overdue ->
        let table = [
            (Status::Held, None, false, InTime, expired.clone()),
            (Status::Held, None, true, InTime, LateStillHeld),
            (Status::Expired, None, false, LateRetake, expired.clone()),
            (Status::Expired, None, true, LateRetake, LateRetake),
            (
                Status::Cancelled,
                None,
                false,
                refuse(&Refusal::ReservationCancelled),
                refuse(&Refusal::ReservationCancelled),
            ),
            (Status::Cancelled, None, true, OweBack, OweBack),
            (Status::Confirmed, None, false, Done, Done),
            (Status::Confirmed, None, true, AttachPayment, AttachPayment),
            (Status::Confirmed, Some("pay_1"), false, Done, Done),
            (Status::Confirmed, Some("pay_1"), true, Done, Done),
            (Status::Confirmed, Some("pay_2"), false, Done, Done),
            (Status::Confirmed, Some("pay_2"), true, other.clone(), other),
        ];
        for (status, paid_with, pays, in_time, late) in table {
            for (now, overdue) in TIMES {
                let wanted = if overdue { late.clone() } else { in_time.clone() };
                for queued in [false, true] {
                    let found = reservation(status, paid_with);
                    // A caller who waits for the answer was promised nothing without a payment.
                    let direct = status == Status::Expired && !pays && !queued;
                    let wanted = if direct { CloseUnpaid } else { wanted.clone() };
                    let decision = confirm(&found, pays.then_some(&pay), Timestamp::from_millis(now), queued);
                    assert_eq!(decision, wanted, "{status:?} {paid_with:?} {pays} {now}");
                }
            }
        }
    }

    const STATUSES: [Status; 4] = [Status::Held, Status::Confirmed, Status::Cancelled, Status::Expired];

    #[test]
    fn a_payment_that_is_owed_back_confirms_nothing_in_any_status_and_another_one_does() {
        let (owed, other): (PaymentReference, _) = ("pay_1".try_into().unwrap(), "pay_2".try_into().unwrap());
        for status in STATUSES {
            let found = Reservation { owed_back: BTreeSet::from([owed.clone()]), ..reservation(status, None) };
            for now in TIMES.map(|(now, _)| Timestamp::from_millis(now)) {
                let decide = |payment| confirm(&found, Some(payment), now, false);
                assert_eq!(decide(&owed), ConfirmDecision::Refuse(Refusal::RefundRequired), "{status:?}");
                assert_eq!(decide(&other), confirm(&reservation(status, None), Some(&other), now, false), "{status:?}");
            }
        }
    }

    #[test]
    fn an_ended_reservation_with_the_most_payments_owed_back_accepts_no_other() {
        let pay: PaymentReference = "pay".try_into().unwrap();
        let owed_back: BTreeSet<PaymentReference> =
            (0..MAX_OWED_BACK).map(|n| format!("pay_{n}").as_str().try_into().unwrap()).collect();
        for status in STATUSES {
            let full = Reservation { owed_back: owed_back.clone(), ..reservation(status, None) };
            let one_less = Reservation { owed_back: owed_back.iter().skip(1).cloned().collect(), ..full.clone() };
            for now in TIMES.map(|(now, _)| Timestamp::from_millis(now)) {
                let usual = confirm(&one_less, Some(&pay), now, true);
                let ended = matches!(status, Status::Expired | Status::Cancelled);
                let wanted = if ended { ConfirmDecision::Refuse(Refusal::RefundRequired) } else { usual.clone() };
                assert_ne!(usual, ConfirmDecision::Refuse(Refusal::RefundRequired));
                assert_eq!(confirm(&full, Some(&pay), now, true), wanted, "{status:?}");
            }
        }
    }

    #[test]
    fn a_payment_is_too_late_from_the_end_of_the_time_for_late_payments() {
        let pay: PaymentReference = "pay_1".try_into().unwrap();
        for (seconds, late_by_ms, too_late) in [
            (3_600, 0, false),
            (3_600, 3_599_999, false),
            (3_600, 3_600_000, true),
            (3_600, i64::MAX / 2, true),
            (0, -1, false),
            (0, 0, true),
        ] {
            let at = Timestamp::from_millis(600_000 + late_by_ms);
            for (status, in_time, late) in [
                (Status::Held, ConfirmDecision::InTime, ConfirmDecision::LateStillHeld),
                (Status::Expired, ConfirmDecision::LateRetake, ConfirmDecision::LateRetake),
            ] {
                let found = Reservation { late_payment_seconds: seconds, ..reservation(status, None) };
                let wanted = if late_by_ms < 0 { in_time } else { late };
                let wanted = if too_late { ConfirmDecision::OweBack } else { wanted };
                assert_eq!(confirm(&found, Some(&pay), at, true), wanted, "{status:?} {seconds} {late_by_ms}");
            }
        }
    }

    #[test]
    fn an_unpaid_settlement_closes_the_reservation_to_earlier_unpaid_confirmations() {
        let (closed_at, pay): (_, PaymentReference) = (Timestamp::from_millis(5_000), "pay_1".try_into().unwrap());
        let refused = ConfirmDecision::Refuse(Refusal::HoldExpired);
        for (status, open, direct) in [
            (Status::Held, ConfirmDecision::InTime, ConfirmDecision::RetryLater),
            (Status::Expired, ConfirmDecision::LateRetake, ConfirmDecision::CloseUnpaid),
        ] {
            let found = Reservation { unpaid_closed_at: Some(closed_at), ..reservation(status, None) };
            let at = |millis, payment, queued| confirm(&found, payment, Timestamp::from_millis(millis), queued);
            assert_eq!(at(5_000, None, true), refused, "{status:?}");
            assert_eq!(at(5_001, None, true), open, "{status:?}");
            assert_eq!(at(5_000, None, false), direct, "{status:?}");
            assert_eq!(at(5_000, Some(&pay), true), open, "{status:?}");
        }
        let held = Reservation { unpaid_closed_at: Some(closed_at), ..reservation(Status::Held, None) };
        assert_eq!(confirm(&held, None, Timestamp::from_millis(5_001), false), ConfirmDecision::InTime);
        let order = Reservation { unpaid_closed_at: Some(closed_at), ..reservation(Status::Confirmed, None) };
        assert_eq!(confirm(&order, None, CREATED, true), ConfirmDecision::Done);
    }

    #[test]
    fn a_confirmation_is_never_about_a_hold_that_was_made_after_it() {
        let pay: PaymentReference = "pay_1".try_into().unwrap();
        for status in STATUSES {
            let found = Reservation { created_at: Timestamp::from_millis(20_000), ..reservation(status, None) };
            for payment in [None, Some(&pay)] {
                let at = |millis| confirm(&found, payment, Timestamp::from_millis(millis), true);
                assert_eq!(at(9_999), ConfirmDecision::Refuse(Refusal::ReservationNotFound), "{status:?}");
                assert_ne!(at(10_000), ConfirmDecision::Refuse(Refusal::ReservationNotFound), "{status:?}");
            }
        }
    }

    #[test]
    fn every_status_by_cancel_extend_and_expire_before_at_and_after_expiry() {
        let confirmed = Refusal::AlreadyConfirmed { other_payment: false };
        for (now, overdue) in TIMES {
            let now = Timestamp::from_millis(now);
            let decide = |status| {
                let held = reservation(status, None);
                (cancellation(&held, now), extension(&held, HoldSeconds::DEFAULT, now), expiry(&held, now))
            };
            let expired = (CancelDecision::Refuse(Refusal::HoldExpired), ExtendDecision::Refuse(Refusal::HoldExpired));
            if overdue {
                assert_eq!(decide(Status::Held), (expired.0.clone(), expired.1.clone(), ExpireDecision::Release));
            } else {
                let until = now.plus_seconds(600);
                assert_eq!(
                    decide(Status::Held),
                    (CancelDecision::Release, ExtendDecision::Until(until), ExpireDecision::NotYet)
                );
            }
            assert_eq!(decide(Status::Expired), (expired.0, expired.1, ExpireDecision::Ended));
            let cancelled = ExtendDecision::Refuse(Refusal::ReservationCancelled);
            assert_eq!(decide(Status::Cancelled), (CancelDecision::Done, cancelled, ExpireDecision::Ended));
            let (no_cancel, no_extend) =
                (CancelDecision::Refuse(confirmed.clone()), ExtendDecision::Refuse(confirmed.clone()));
            assert_eq!(decide(Status::Confirmed), (no_cancel, no_extend, ExpireDecision::Ended));
        }
    }

    #[test]
    fn every_status_by_release_and_change_before_at_and_after_expiry() {
        let confirmed = Refusal::AlreadyConfirmed { other_payment: false };
        for (now, overdue) in TIMES {
            for (status, released, changed) in [
                (Status::Held, ReleaseDecision::Release, if overdue { Err(Refusal::HoldExpired) } else { Ok(()) }),
                (Status::Expired, ReleaseDecision::Close, Err(Refusal::HoldExpired)),
                (Status::Cancelled, ReleaseDecision::Done, Err(Refusal::ReservationCancelled)),
                (Status::Confirmed, ReleaseDecision::Refuse(confirmed.clone()), Err(confirmed.clone())),
            ] {
                let found = reservation(status, None);
                assert_eq!(release(&found), released, "{status:?}");
                assert_eq!(change(&found, Timestamp::from_millis(now)), changed, "{status:?} {now}");
            }
        }
    }

    #[test]
    fn extensions_together_are_at_most_twice_the_first_hold() {
        let mut held = reservation(Status::Held, None);
        let hour = HoldSeconds::MAX;
        let latest = CREATED.plus_seconds(1_800);
        assert_eq!(extension(&held, hour, CREATED), ExtendDecision::Refuse(Refusal::ExtensionLimitReached { latest }));
        // Nothing is longer than what is left: a repeat changes nothing.
        assert_eq!(extension(&held, HoldSeconds::DEFAULT, CREATED), ExtendDecision::Done);
        // Renewed every 400 s, it lasts until 600 s after the last renewal that ends by 1,800 s: the one at 1,200 s.
        for now in [400, 800, 1_200] {
            let now = CREATED.plus_seconds(now);
            let until = now.plus_seconds(600);
            assert_eq!(extension(&held, HoldSeconds::DEFAULT, now), ExtendDecision::Until(until));
            held.expires_at = until;
        }
        let next = CREATED.plus_seconds(1_201);
        assert_eq!(
            extension(&held, HoldSeconds::DEFAULT, next),
            ExtendDecision::Refuse(Refusal::ExtensionLimitReached { latest })
        );
    }
}
