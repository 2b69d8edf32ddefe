//! The reservation: one customer's units, from the hold to its end.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::{
    CLOCK_TOLERANCE_SECONDS, Cancellation, Currency, CustomerId, HoldSeconds, PaymentReference, ProductId,
    ReservationId, Timestamp,
};

/// The status of a reservation. It leaves `Held` once and never returns. After `Expired` it can still become `Confirmed`: a
/// late payment may take the units again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// Units are held until `expires_at`.
    Held,
    /// Units are sold: the reservation is the order.
    Confirmed,
    /// Cancelled by the customer, released by an admin, or an order that was given back: the units are released, or have left
    /// the stock.
    Cancelled,
    /// Not confirmed in time: the units are released.
    Expired,
}

impl Status {
    /// The name that is stored and sent.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::Confirmed => "confirmed",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
        }
    }
}

/// Units taken from one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Take {
    /// The shard's number, from 0.
    pub shard: u32,
    /// Units, at least 1.
    pub units: u32,
}

/// One product of a reservation, with its price and name at the time of the reservation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// The product.
    pub product_id: ProductId,
    /// Units.
    pub quantity: u32,
    /// The product's name at that time.
    pub name: String,
    /// The price of one unit at that time, in minor units.
    pub unit_price_minor: u64,
    /// Whether the units count against the product's limit for each customer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// The shards that the units were taken from and are released to: `quantity` units in total.
    pub takes: Vec<Take>,
    /// How often the lines or the owner of the hold were changed; the same in every line. The index `due` has the lines, so
    /// whoever read them there can tell whether they are still the hold's.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub revision: u32,
}

impl Line {
    /// This line at another quantity, released to its first shard: what a change leaves of it needs one action of a
    /// transaction, not one for each shard that the units came from.
    fn on_one_shard(&self, quantity: u32) -> Self {
        let shard = self.takes.first().map_or(0, |take| take.shard);
        let takes = if quantity == 0 { Vec::new() } else { vec![Take { shard, units: quantity }] };
        Self { quantity, takes, ..self.clone() }
    }

    /// The part of this line that a change keeps.
    pub(crate) fn kept(&self, quantity: u32) -> Self {
        self.on_one_shard(self.quantity.min(quantity))
    }

    /// The part of this line that a change gives back.
    pub(crate) fn surplus(&self, quantity: u32) -> Option<Self> {
        self.quantity.checked_sub(quantity).filter(|&units| units > 0).map(|units| self.on_one_shard(units))
    }

    /// Adds units of the same product.
    pub fn add(&mut self, takes: &[Take]) {
        for &take in takes {
            self.quantity += take.units;
            match self.takes.iter_mut().find(|known| known.shard == take.shard) {
                Some(known) => known.units += take.units,
                None => self.takes.push(take),
            }
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde requires")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// A reservation as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reservation {
    /// Its id; see [`ReservationId::derive`].
    pub reservation_id: ReservationId,
    /// Its owner.
    pub customer: CustomerId,
    /// Its former owners: a service handed it to another customer. A payment that was begun by a guest still confirms it.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub formerly: BTreeSet<CustomerId>,
    /// One line for each product.
    pub lines: Vec<Line>,
    /// The currency of every line.
    pub currency: Currency,
    /// Its status.
    pub status: Status,
    /// When it was made.
    pub created_at: Timestamp,
    /// When the hold ends: from this moment on it is overdue.
    pub expires_at: Timestamp,
    /// How many seconds after `expires_at` a payment may still make it an order: the shortest of its products' times when it
    /// was made.
    #[serde(default = "default_late_payment_seconds")]
    pub late_payment_seconds: u32,
    /// The length of the first hold.
    pub hold_seconds: HoldSeconds,
    /// A digest of the request that made it: distinguishes a replay from a reused key.
    pub fingerprint: String,
    /// When it was confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmed_at: Option<Timestamp>,
    /// Whether it was confirmed after its hold had expired.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub confirmed_late: bool,
    /// The payment that it was confirmed with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_reference: Option<PaymentReference>,
    /// Payments that are owed back or were refunded: refused as such, or resolved by an admin. They confirm nothing, unless
    /// an admin's retry removes them from here.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub owed_back: BTreeSet<PaymentReference>,
    /// Payments that an admin resolved: refunded, as far as anybody knows. They are owed back, too, and no retry removes
    /// them.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub refunded: BTreeSet<PaymentReference>,
    /// No confirmation without a payment that was accepted until then makes it an order: an admin resolved one, or the
    /// customer was told that the hold has expired.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unpaid_closed_at: Option<Timestamp>,
    /// If it was an order that was given back, or a hold that an admin released: by whom, when and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancellation: Option<Cancellation>,
    /// When its customer cancelled the hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancelled_at: Option<Timestamp>,
}

fn default_late_payment_seconds() -> u32 {
    crate::DEFAULT_LATE_PAYMENT_SECONDS
}

impl Reservation {
    /// A hold that begins at `now`, without a fingerprint and with the default time for late payments.
    pub fn held(
        reservation_id: ReservationId,
        customer: CustomerId,
        lines: Vec<Line>,
        currency: Currency,
        hold_seconds: HoldSeconds,
        now: Timestamp,
    ) -> Self {
        Self {
            reservation_id,
            customer,
            formerly: BTreeSet::new(),
            lines,
            currency,
            status: Status::Held,
            created_at: now,
            expires_at: now.plus_seconds(hold_seconds.get()),
            late_payment_seconds: crate::DEFAULT_LATE_PAYMENT_SECONDS,
            hold_seconds,
            fingerprint: String::new(),
            confirmed_at: None,
            confirmed_late: false,
            payment_reference: None,
            owed_back: BTreeSet::new(),
            refunded: BTreeSet::new(),
            unpaid_closed_at: None,
            cancellation: None,
            cancelled_at: None,
        }
    }

    /// The price of everything, in minor units.
    ///
    /// Cannot overflow for lines within the limits (20 lines x 1,000 units x 10^11); saturates otherwise.
    pub fn total_price_minor(&self) -> u64 {
        self.lines
            .iter()
            .map(|line| line.unit_price_minor.saturating_mul(u64::from(line.quantity)))
            .fold(0, u64::saturating_add)
    }

    /// Its status at `now`: an overdue hold is expired, even if it has not been released yet.
    pub fn status_at(&self, now: Timestamp) -> Status {
        if self.status == Status::Held && self.overdue(now) { Status::Expired } else { self.status }
    }

    /// Whether the hold's time has passed at `now`.
    pub fn overdue(&self, now: Timestamp) -> bool {
        now >= self.expires_at
    }

    /// Whether it is the order of this very payment; without one, whether it is an order.
    pub fn is_order_of(&self, payment: Option<&PaymentReference>) -> bool {
        self.status == Status::Confirmed && (payment.is_none() || self.payment_reference.as_ref() == payment)
    }

    /// Whether it is an order, or was one until it was given back.
    pub fn was_ordered(&self) -> bool {
        self.confirmed_at.is_some()
    }

    /// Whether a confirmation may name this customer: the owner, or the guest who was. No token is a guest's, so only a shop's
    /// back end can name one; a user who handed it to another user has nothing to do with it any more.
    pub fn may_be_confirmed_for(&self, customer: &CustomerId) -> bool {
        self.customer == *customer || customer.is_guest() && self.formerly.contains(customer)
    }

    /// How often its lines or its owner were changed.
    pub fn revision(&self) -> u32 {
        self.lines.first().map_or(0, |line| line.revision)
    }

    /// The hold as it is once it is handed to another customer.
    #[must_use]
    pub fn transferred(&self, to: &CustomerId) -> Self {
        let mut transferred = Self { customer: to.clone(), ..self.clone() };
        transferred.formerly.insert(self.customer.clone());
        transferred.lines.iter_mut().for_each(|line| line.revision += 1);
        transferred
    }

    /// The order as it is once `cancellation` is carried out: its payment is owed back.
    #[must_use]
    pub fn given_back(&self, cancellation: Cancellation) -> Self {
        let mut given_back = Self { status: Status::Cancelled, cancellation: Some(cancellation), ..self.clone() };
        given_back.owed_back.extend(self.payment_reference.clone());
        given_back
    }

    /// The `unpaid_closed_at` that closes it to every confirmation without a payment that was accepted by `at`, whichever
    /// clock dated that: never earlier than it is closed already.
    pub fn unpaid_closed_by(&self, at: Timestamp) -> Timestamp {
        let until = at.plus_seconds(CLOCK_TOLERANCE_SECONDS);
        self.unpaid_closed_at.map_or(until, |closed_at| closed_at.max(until))
    }

    /// Whether, once it has expired, no confirmation without a payment makes it an order any more: all that were accepted in
    /// time were accepted before its end, by whichever clock.
    pub fn closed_to_unpaid(&self) -> bool {
        self.unpaid_closed_at.is_some_and(|closed_at| closed_at >= self.expires_at)
    }

    /// Whether `now` is too late for a payment. If `late_payment_seconds` is 0, it is as soon as the hold is overdue.
    pub fn too_late_to_pay(&self, now: Timestamp) -> bool {
        now >= self.expires_at.plus_seconds(i64::from(self.late_payment_seconds))
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::IdempotencyKey;

    pub(crate) fn held(lines: &[(u32, u64)]) -> Reservation {
        let customer = CustomerId::try_from("alice").unwrap();
        let line = |&(quantity, unit_price_minor): &(u32, u64)| Line {
            product_id: ProductId::try_from("tee").unwrap(),
            quantity,
            name: "Tee".to_owned(),
            unit_price_minor,
            limited: false,
            takes: vec![Take { shard: 0, units: quantity }],
            revision: 0,
        };
        let reservation_id = ReservationId::derive(&customer, &IdempotencyKey::try_from("k").unwrap());
        let currency = "EUR".to_owned().try_into().unwrap();
        let lines = lines.iter().map(line).collect();
        Reservation::held(reservation_id, customer, lines, currency, HoldSeconds::DEFAULT, Timestamp::from_millis(0))
    }

    #[test]
    fn the_total_is_every_unit_at_its_lines_price() {
        assert_eq!(held(&[(2, 2_500), (3, 199), (1, 0)]).total_price_minor(), 5_597);
        assert_eq!(held(&[(2, u64::MAX), (1, 1)]).total_price_minor(), u64::MAX);
    }

    #[test]
    fn only_an_overdue_hold_is_shown_as_expired() {
        let status_at = |status, millis| Reservation { status, ..held(&[]) }.status_at(Timestamp::from_millis(millis));
        assert_eq!(status_at(Status::Held, 599_999), Status::Held);
        assert_eq!(status_at(Status::Held, 600_000), Status::Expired);
        for status in [Status::Confirmed, Status::Cancelled, Status::Expired] {
            assert_eq!((status_at(status, 0), status_at(status, 600_001)), (status, status));
        }
    }

    #[test]
    fn a_status_has_the_name_that_is_stored() {
        let all = [Status::Held, Status::Confirmed, Status::Cancelled, Status::Expired];
        assert_eq!(all.map(Status::as_str), ["held", "confirmed", "cancelled", "expired"]);
    }
}
