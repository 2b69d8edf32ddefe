//! Failed confirmations: payments that are no order yet, and may never be.
//!
//! What must always hold: one that is settled stays settled; one that is not settled is not the payment of an order; and a
//! payment that an admin has resolved makes no order afterwards.

use serde::{Deserialize, Serialize};

use crate::{
    CLOCK_TOLERANCE_SECONDS, Confirmation, CustomerId, PaymentReference, Refusal, Reservation, ReservationId,
    Timestamp, digest_id,
};

/// The reason of a confirmation that used up its tries without an answer. Every other reason is the code of a refusal, or
/// `unreadable`.
pub const NOT_CONFIRMED: &str = "not_confirmed";

/// The reason of a payment whose order was given back. It stays, whatever is recorded of that payment afterwards.
pub const ORDER_CANCELLED: &str = "order_cancelled";

/// A message of the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The confirmation, if the message could be read.
    pub confirmation: Option<Confirmation>,
    /// Why it failed: a refusal's code, [`NOT_CONFIRMED`] or `unreadable`.
    pub reason: String,
    /// The message as it arrived.
    pub body: String,
}

/// The state of a failed confirmation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedState {
    /// A person has to look at it.
    Open,
    /// It is in the queue again.
    Retrying,
    /// Settled: the reservation is confirmed.
    Confirmed,
    /// Settled: an admin has dealt with it, for instance with a refund.
    Resolved,
}

impl FailedState {
    /// The name that is stored and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Retrying => "retrying",
            Self::Confirmed => "confirmed",
            Self::Resolved => "resolved",
        }
    }

    /// Whether nothing is left to do.
    pub const fn is_settled(self) -> bool {
        matches!(self, Self::Confirmed | Self::Resolved)
    }
}

/// A failed confirmation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedConfirmation {
    /// Its id; see [`Failure::id`].
    pub id: String,
    /// The reservation, if the message could be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_id: Option<ReservationId>,
    /// Its customer. Not stored as `customer`, the key of the index of reservations.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "failed_customer")]
    pub customer: Option<CustomerId>,
    /// The payment, if one was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_reference: Option<PaymentReference>,
    /// When the confirmation was accepted: the earliest of its copies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_at: Option<Timestamp>,
    /// See [`Failure::reason`].
    pub reason: String,
    /// See [`Failure::body`].
    pub body: String,
    /// Its state.
    pub state: FailedState,
    /// When it was first recorded.
    pub first_failed_at: Timestamp,
    /// When it was last recorded.
    pub last_failed_at: Timestamp,
    /// How often it was recorded or retried: tells one failure from the next, which no clock can.
    #[serde(default)]
    pub failures: u64,
    /// Who settled it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_by: Option<String>,
    /// When it was settled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Timestamp>,
    /// What the admin wrote about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Failure {
    /// The id of its failed confirmation: of the confirmation, or of the body where that could not be read. So the copies
    /// that a queue delivers are one failed confirmation, and nobody overwrites another customer's.
    pub fn id(&self) -> String {
        self.confirmation.as_ref().map_or_else(|| digest_id("fc_", &[&self.body]), Confirmation::failed_id)
    }

    /// Decides what to record of this failure, given what is stored of it.
    ///
    /// What is known already is kept where it says more: the code of a refusal says more than that there was no answer, and
    /// the earliest time decides whether the confirmation was in time.
    pub fn record(&self, stored: Option<FailedConfirmation>, now: Timestamp) -> RecordDecision {
        let requested_at = self.confirmation.as_ref().map(|confirmation| confirmation.requested_at);
        let Some(stored) = stored else {
            let confirmation = self.confirmation.clone();
            return RecordDecision::Record(FailedConfirmation {
                id: self.id(),
                reservation_id: confirmation.as_ref().map(|confirmation| confirmation.reservation_id.clone()),
                customer: confirmation.as_ref().map(|confirmation| confirmation.customer.clone()),
                payment_reference: confirmation.and_then(|confirmation| confirmation.payment_reference),
                requested_at,
                reason: self.reason.clone(),
                body: self.body.clone(),
                state: FailedState::Open,
                first_failed_at: now,
                last_failed_at: now,
                failures: 1,
                settled_by: None,
                settled_at: None,
                note: None,
            });
        };
        if stored.state.is_settled() {
            return RecordDecision::Settled(stored);
        }
        // While it is being retried, the refusal from before does not count any more.
        let says_less =
            self.reason == NOT_CONFIRMED && stored.state == FailedState::Open || stored.reason == ORDER_CANCELLED;
        let reason = if says_less { stored.reason } else { self.reason.clone() };
        let earlier = match (requested_at, stored.requested_at) {
            (Some(this), Some(other)) => this < other,
            (this, None) => this.is_some(),
            (None, Some(_)) => false,
        };
        let (requested_at, body) =
            if earlier { (requested_at, self.body.clone()) } else { (stored.requested_at, stored.body) };
        let (state, failures) = (FailedState::Open, stored.failures + 1);
        RecordDecision::Record(FailedConfirmation {
            requested_at,
            reason,
            body,
            state,
            failures,
            last_failed_at: now,
            ..stored
        })
    }
}

impl Failure {
    /// The payment of an order that is given back, which must be refunded; `None` if nothing was paid.
    pub fn of_cancelled_order(order: &Reservation, now: Timestamp) -> Option<Self> {
        let confirmation = Confirmation {
            reservation_id: order.reservation_id.clone(),
            customer: order.customer.clone(),
            payment_reference: Some(order.payment_reference.clone()?),
            requested_at: now,
            request: None,
        };
        Some(Self { confirmation: Some(confirmation), reason: ORDER_CANCELLED.to_owned(), body: String::new() })
    }

    /// What to record of it although it was settled before: it had become the order that is given back now. `None` if an
    /// admin has resolved it, before there was a reservation: it was refunded.
    pub fn reopened(&self, stored: Option<FailedConfirmation>, now: Timestamp) -> Option<FailedConfirmation> {
        if stored.as_ref().is_some_and(|stored| stored.state == FailedState::Resolved) {
            return None;
        }
        let unsettled = stored.map(|stored| FailedConfirmation {
            state: FailedState::Open,
            settled_by: None,
            settled_at: None,
            note: None,
            ..stored
        });
        match self.record(unsettled, now) {
            RecordDecision::Record(record) | RecordDecision::Settled(record) => Some(record),
        }
    }
}

/// What recording a failure means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecordDecision {
    /// Write this.
    Record(FailedConfirmation),
    /// It was settled: this is a late copy of it, and changes nothing.
    Settled(FailedConfirmation),
}

/// What an admin's retry means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RetryDecision {
    /// Send it again. The payment, if there is one here, is no longer owed back.
    Retry {
        /// Whose refusal is lifted.
        lift: Option<PaymentReference>,
    },
    /// Its payment was resolved with another customer's name: that settles it, and the retry is refused.
    SettleAsDuplicate,
    /// No.
    Refuse(Refusal),
}

/// What an admin's resolution means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResolveDecision {
    /// Write this, and on the reservation that its payment makes no order any more.
    Resolve(Box<FailedConfirmation>),
    /// The same admin has resolved it with the same note, and the answer was lost: nothing to do.
    Done,
    /// The same, but its reservation was made afterwards and does not record it: write it there.
    Note,
    /// The reservation is the order that it asked for: that settles it, and the resolution is refused.
    SettleAsConfirmed,
    /// Its payment was resolved with another customer's name: that settles it, and the resolution is refused, or the
    /// payment could be refunded twice.
    SettleAsDuplicate,
    /// No.
    Refuse(Refusal),
}

impl FailedConfirmation {
    /// Whether it is about this reservation. One with a payment is, whichever customer was named with it: the payment makes
    /// an order of this reservation under its owner's name, or is owed back. Without a payment, only its owner's is, and
    /// not one that was accepted before the hold was made: that is about an earlier hold under the same key.
    pub fn is_about(&self, reservation: &Reservation) -> bool {
        let made = reservation.created_at;
        let its_hold = self.requested_at.is_none_or(|at| made <= at.plus_seconds(CLOCK_TOLERANCE_SECONDS));
        self.payment_reference.is_some() || (self.is_of_owner(reservation) && its_hold)
    }

    /// Whether the customer who was named in the confirmation owns the reservation, or is the guest who did.
    fn is_of_owner(&self, reservation: &Reservation) -> bool {
        self.customer.as_ref().is_some_and(|customer| reservation.may_be_confirmed_for(customer))
    }

    /// Whether its payment was resolved by another failed confirmation of this reservation.
    pub fn is_refunded_in(&self, reservation: &Reservation) -> bool {
        self.payment_reference.as_ref().is_some_and(|payment| reservation.refunded.contains(payment))
    }

    /// Whether it was resolved by the same admin with the same note.
    fn is_resolution_of(&self, other: &Self) -> bool {
        self.state == FailedState::Resolved && self.settled_by == other.settled_by && self.note == other.note
    }

    /// Whether this reservation is the order that it asked for, so that nothing has failed any more. Not if that order was
    /// given back, whatever an earlier read shows.
    pub fn is_settled_by(&self, reservation: &Reservation) -> bool {
        self.reason != ORDER_CANCELLED
            && self.is_about(reservation)
            && reservation.is_order_of(self.payment_reference.as_ref())
    }

    /// Decides an admin's retry. With `lift`, a payment that was refused as owed back is not owed any more: only for an
    /// admin who has seen that refusal. Where no more is known than that there was no answer, nobody has seen one.
    /// `reservation` is the one it names, if there is one; it is not needed where this is settled. What names another
    /// customer lifts nothing of the owner's.
    pub fn retry(&self, reservation: Option<&Reservation>, lift: bool) -> RetryDecision {
        if self.state.is_settled() {
            return RetryDecision::Refuse(Refusal::AlreadySettled);
        }
        if reservation.is_some_and(|found| self.is_refunded_in(found)) {
            return RetryDecision::SettleAsDuplicate;
        }
        let given_back = |found: &Reservation| found.status == crate::Status::Cancelled && found.was_ordered();
        if self.reason == ORDER_CANCELLED || reservation.is_some_and(given_back) {
            // Nothing makes an order of it again.
            return RetryDecision::Refuse(Refusal::ReservationCancelled);
        }
        let own = reservation.filter(|found| lift && self.reason != NOT_CONFIRMED && self.is_of_owner(found));
        let owed = |payment: &&PaymentReference| own.is_some_and(|found| found.owed_back.contains(*payment));
        RetryDecision::Retry { lift: self.payment_reference.as_ref().filter(owed).cloned() }
    }

    /// Decides the resolution by `actor` at `now`. `reservation` is the one it names, if there is one; it is not needed
    /// where this has become an order.
    pub fn resolve(
        &self,
        reservation: Option<&Reservation>,
        actor: &str,
        note: Option<&str>,
        now: Timestamp,
    ) -> ResolveDecision {
        let resolved = Self {
            state: FailedState::Resolved,
            settled_by: Some(actor.to_owned()),
            settled_at: Some(now),
            note: note.map(str::to_owned),
            ..self.clone()
        };
        if self.is_resolution_of(&resolved) {
            return match reservation.filter(|_| self.payment_reference.is_some()) {
                Some(made_since) if self.is_settled_by(made_since) => ResolveDecision::Refuse(Refusal::AlreadySettled),
                Some(made_since) if !self.is_refunded_in(made_since) => ResolveDecision::Note,
                _ => ResolveDecision::Done,
            };
        }
        if self.state.is_settled() {
            return ResolveDecision::Refuse(Refusal::AlreadySettled);
        }
        if reservation.is_some_and(|found| self.is_settled_by(found)) {
            return ResolveDecision::SettleAsConfirmed;
        }
        if reservation.is_some_and(|found| self.is_refunded_in(found)) {
            return ResolveDecision::SettleAsDuplicate;
        }
        ResolveDecision::Resolve(Box::new(resolved))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reservation::tests::held;
    use crate::{IdempotencyKey, Status};

    const NOW: Timestamp = Timestamp::from_millis(1_000_000);

    fn confirmation(payment: Option<&str>) -> Confirmation {
        let customer = CustomerId::try_from("alice").unwrap();
        Confirmation {
            reservation_id: ReservationId::derive(&customer, &IdempotencyKey::try_from("k").unwrap()),
            customer,
            payment_reference: payment.map(|text| text.try_into().unwrap()),
            requested_at: NOW,
            request: None,
        }
    }

    fn failed(payment: Option<&str>, reason: &str) -> FailedConfirmation {
        let confirmation = Some(confirmation(payment));
        match (Failure { confirmation, reason: reason.to_owned(), body: String::new() }).record(None, NOW) {
            RecordDecision::Record(failed) => failed,
            RecordDecision::Settled(failed) => panic!("{failed:?}"),
        }
    }

    #[test]
    fn copies_have_one_id_and_each_payment_and_each_unpaid_request_has_its_own() {
        let (paid, unpaid) = (confirmation(Some("pay_1")), confirmation(None));
        let later =
            |confirmation: &Confirmation| Confirmation { requested_at: NOW.plus_seconds(1), ..confirmation.clone() };
        assert_eq!(paid.failed_id(), later(&paid).failed_id());
        assert_ne!(unpaid.failed_id(), later(&unpaid).failed_id());
        assert_ne!(paid.failed_id(), confirmation(Some("pay_2")).failed_id());
        let other = Confirmation { customer: CustomerId::try_from("bob").unwrap(), ..paid.clone() };
        assert_ne!(paid.failed_id(), other.failed_id());
    }

    #[test]
    fn a_retry_lifts_a_refusal_that_the_admin_has_seen_and_no_other() {
        let owing = Reservation { owed_back: ["pay_1".try_into().unwrap()].into(), ..held(&[]) };
        let lifted = |reason: &str, lift| failed(Some("pay_1"), reason).retry(Some(&owing), lift);
        let payment = Some("pay_1".try_into().unwrap());
        assert_eq!(lifted("refund_required", true), RetryDecision::Retry { lift: payment });
        assert_eq!(lifted("refund_required", false), RetryDecision::Retry { lift: None });
        assert_eq!(lifted(NOT_CONFIRMED, true), RetryDecision::Retry { lift: None });
        assert_eq!(failed(None, "hold_expired").retry(Some(&owing), true), RetryDecision::Retry { lift: None });
        let strangers = Reservation { customer: "bob".try_into().unwrap(), ..owing.clone() };
        let refused = failed(Some("pay_1"), "refund_required");
        assert_eq!(refused.retry(Some(&strangers), true), RetryDecision::Retry { lift: None });
        let refunded = Reservation { refunded: owing.owed_back.clone(), ..owing };
        assert_eq!(refused.retry(Some(&refunded), true), RetryDecision::SettleAsDuplicate);
        for state in [FailedState::Confirmed, FailedState::Resolved] {
            let settled = FailedConfirmation { state, ..failed(None, NOT_CONFIRMED) };
            assert_eq!(settled.retry(None, true), RetryDecision::Refuse(Refusal::AlreadySettled));
        }
    }

    #[test]
    fn an_order_of_another_payment_or_of_an_earlier_hold_settles_nothing() {
        let order = |paid: &str, created_at| Reservation {
            status: Status::Confirmed,
            payment_reference: Some(paid.try_into().unwrap()),
            created_at,
            ..held(&[])
        };
        let (paid, unpaid) = (failed(Some("pay_1"), NOT_CONFIRMED), failed(None, NOT_CONFIRMED));
        let later = NOW.plus_seconds(CLOCK_TOLERANCE_SECONDS + 1);
        for (failed, order, settles) in [
            (&paid, order("pay_1", NOW), true),
            (&paid, order("pay_2", NOW), false),
            (&paid, order("pay_1", later), true),
            (&unpaid, order("pay_2", NOW), true),
            (&unpaid, order("pay_2", later), false),
        ] {
            assert_eq!(failed.is_settled_by(&order), settles, "{failed:?} {order:?}");
            let decision = failed.resolve(Some(&order), "admin", None, NOW);
            assert_eq!(decision == ResolveDecision::SettleAsConfirmed, settles);
        }
        let held = Reservation { status: Status::Held, ..order("pay_1", NOW) };
        assert!(!paid.is_settled_by(&held) && !unpaid.is_settled_by(&held));
    }

    #[test]
    fn a_resolution_that_is_repeated_is_done_and_another_one_is_refused() {
        let open = failed(Some("pay_1"), "refund_required");
        let ResolveDecision::Resolve(resolved) = open.resolve(None, "admin", Some("refunded"), NOW) else {
            panic!("not resolved");
        };
        for at in [NOW, NOW.plus_seconds(1)] {
            assert_eq!(resolved.resolve(None, "admin", Some("refunded"), at), ResolveDecision::Done);
        }
        let refused = ResolveDecision::Refuse(Refusal::AlreadySettled);
        assert_eq!(resolved.resolve(None, "other", Some("refunded"), NOW), refused);
        assert_eq!(resolved.resolve(None, "admin", Some("sent back"), NOW), refused);
    }
}
