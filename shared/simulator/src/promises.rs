//! What was acknowledged to customers and admins, and that it stays true.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain::{Reservation, Status};

use crate::books::Books;
use crate::services::Queues;

/// Everything that was acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Promises {
    /// Reservations, each with its `created_at`.
    pub(crate) reserved: BTreeMap<String, String>,
    /// Orders.
    pub(crate) ordered: BTreeSet<String>,
    /// Cancellations.
    pub(crate) cancelled: BTreeSet<String>,
    /// Holds that an admin released.
    pub(crate) released: BTreeSet<String>,
    /// The number of holds that admins who released all of a product's were told of.
    pub(crate) released_holds: u64,
    /// Extended holds, each with its earliest end.
    pub(crate) extended: BTreeMap<String, i64>,
    /// Payments whose receipt was acknowledged to the customer.
    pub(crate) payments: BTreeSet<(String, String)>,
    /// Confirmations without a payment that were answered with 202.
    pub(crate) queued: BTreeSet<String>,
    /// Adjustments: the key, and the ledger entry that it made.
    pub(crate) adjusted: BTreeMap<String, String>,
    /// Unreadable messages in the queue.
    pub(crate) poison: BTreeSet<String>,
    /// Reservations that DynamoDB's TTL deleted.
    pub(crate) cleaned_up: BTreeSet<String>,
}

impl Promises {
    /// Checks all of them against the table and the queues.
    pub(crate) fn check(&self, now: i64, books: &mut Books, queues: &Queues) {
        for id in self.reserved.keys().filter(|id| !self.cleaned_up.contains(*id)) {
            let there = books.reservations.contains_key(id);
            books.expect(now, there, "no_reservation_is_lost", || format!("{id} was acknowledged"));
        }
        for id in &self.ordered {
            let status = books.reservations.get(id).map(|reservation| reservation.status);
            let given_back = status == Some(Status::Cancelled) && books.asked.give_back.contains(id);
            let right = status == Some(Status::Confirmed) || given_back;
            books.expect(now, right, "no_order_is_lost", || format!("{id} was acknowledged, and is {status:?}"));
        }
        for id in self.cancelled.iter().filter(|id| !self.cleaned_up.contains(*id)) {
            let status = books.reservations.get(id).map(|reservation| reservation.status);
            let right = status == Some(Status::Cancelled);
            books.expect(now, right, "a_hold_ends_once", || format!("{id} was cancelled, and is {status:?}"));
        }
        for id in self.released.iter().filter(|id| !self.cleaned_up.contains(*id)) {
            let status = books.reservations.get(id).map(|reservation| reservation.status);
            let right = status == Some(Status::Cancelled);
            books.expect(now, right, "a_released_hold_never_confirms", || {
                format!("{id} was released, and is {status:?}")
            });
        }
        for (id, &until) in &self.extended {
            let Some(reservation) = books.reservations.get(id) else { continue };
            let expires_at = reservation.expires_at.as_millis();
            let right = expires_at >= until;
            books.expect(now, right, "an_extension_only_extends", || {
                format!("{id} was extended to {until}, and ends at {expires_at}")
            });
        }
        for (id, payment) in &self.payments {
            let safe = books.knows_payment(id, payment)
                || queues.messages.iter().any(|message| names(&message.body, id, Some(payment)));
            books.expect(now, safe, "no_payment_is_lost", || format!("{payment} for {id} was acknowledged"));
        }
        for id in &self.queued {
            let confirmed = books.reservations.get(id).is_some_and(Reservation::was_ordered);
            let safe = confirmed
                || books.items.iter().any(|((pk, _), item)| pk == "FAILED" && item["reservation_id"] == id.as_str())
                || queues.messages.iter().any(|message| names(&message.body, id, None));
            books.expect(now, safe, "no_queued_confirmation_is_lost", || format!("{id} was answered with 202"));
        }
        for body in &self.poison {
            let safe = queues.messages.iter().any(|message| message.body == *body)
                || books.items.iter().any(|((pk, _), item)| pk == "FAILED" && item["body"] == body.as_str());
            books.expect(now, safe, "poison_is_kept", || body.clone());
        }
    }
}

/// Whether a message is a confirmation of this reservation, with this payment if one is given.
fn names(body: &str, reservation: &str, payment: Option<&str>) -> bool {
    // Ids have only letters and digits, and are quoted: no other text can look like them.
    let quoted = |text: &str| body.contains(&format!("\"{text}\""));
    quoted(reservation) && payment.is_none_or(quoted)
}
