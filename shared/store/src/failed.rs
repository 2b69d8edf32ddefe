//! Failed confirmations: payments that are no order yet, and may never be.
//!
//! The dead-letter queue is where they arrive and cannot be lost; it has no memory, no order and no way to look at one
//! message. So the admin function takes what has arrived into the table (and only then out of the queue), and works on
//! it here. The id is made of what failed, so the copies that a queue delivers are one failed confirmation.

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue};
use holdfast_domain::{
    CustomerId, PaymentReference, Refusal, Reservation, ReservationId, Status, Timestamp, digest_id,
};
use serde::{Deserialize, Serialize};

use crate::error::fault;
use crate::items::{self, number, text, time};
use crate::page::Part;
use crate::transact::{Cancelled, Expression, Reason, Transaction, names, values, worst};
use crate::{Cursor, Deadline, Error, Item, Page, Store, keys};

/// What arrived in the dead-letter queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The reservation, if the message could be read.
    pub reservation_id: Option<ReservationId>,
    /// Its customer.
    pub customer: Option<CustomerId>,
    /// The payment.
    pub payment_reference: Option<PaymentReference>,
    /// Why it failed: a refusal's code, `not_confirmed` (all retries failed) or `unreadable`.
    pub reason: String,
    /// The message as it arrived.
    pub body: String,
}

/// Where a failed confirmation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailedState {
    /// Somebody has to look at it.
    Open,
    /// It is in the queue again.
    Retrying,
    /// Settled: the reservation is confirmed.
    Confirmed,
    /// Settled: an admin has seen to it, for instance with a refund.
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
    /// Its id.
    pub id: String,
    /// See [`Failure::reservation_id`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_id: Option<ReservationId>,
    /// See [`Failure::customer`].
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "failed_customer")]
    pub customer: Option<CustomerId>,
    /// See [`Failure::payment_reference`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payment_reference: Option<PaymentReference>,
    /// See [`Failure::reason`].
    pub reason: String,
    /// See [`Failure::body`].
    pub body: String,
    /// Where it stands.
    pub state: FailedState,
    /// When it was first seen.
    pub first_failed_at: Timestamp,
    /// When it was last seen.
    pub last_failed_at: Timestamp,
    /// How often it was written down: tells one failure from the next, which no clock can.
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
    /// The id: of the payment for the reservation, or of the body where it could not be read.
    pub fn id(&self) -> String {
        match &self.reservation_id {
            Some(reservation) => failed_id(reservation, self.payment_reference.as_ref()),
            None => digest_id("fc_", &[&self.body]),
        }
    }
}

fn failed_id(reservation: &ReservationId, payment: Option<&PaymentReference>) -> String {
    digest_id("fc_", &[reservation.as_str(), payment.map_or("", PaymentReference::as_str)])
}

const UNSETTLED: &str = "(#state = :open OR #state = :retrying)";

fn unsettled() -> Vec<(&'static str, AttributeValue)> {
    vec![(":open", text(FailedState::Open.as_str())), (":retrying", text(FailedState::Retrying.as_str()))]
}

/// Not settled, and nothing new of it.
fn as_seen(seen: &FailedConfirmation) -> Expression {
    let mut values = unsettled();
    if seen.failures == 0 {
        // Written before failures were counted.
        return Expression::new(format!("{UNSETTLED} AND attribute_not_exists(#failures)"), values);
    }
    values.push((":seen", number(seen.failures)));
    Expression::new(format!("{UNSETTLED} AND #failures = :seen"), values)
}

fn to_resolved(actor: &str, note: Option<&str>, now: Timestamp) -> Expression {
    let mut update = "SET #state = :resolved, #settled_by = :actor, #settled_at = :now".to_owned();
    let mut values =
        vec![(":resolved", text(FailedState::Resolved.as_str())), (":actor", text(actor)), (":now", time(now))];
    if let Some(note) = note {
        update.push_str(", #note = :note");
        values.push((":note", text(note)));
    }
    Expression::new(update, values)
}

impl Store {
    /// Writes a failure down as open. One that was settled stays settled: this is a late copy of it.
    pub async fn record_failure(&self, failure: &Failure, now: Timestamp, deadline: Deadline) -> Result<(), Error> {
        let id = failure.id();
        let mut update = "SET #id = :id, #reason = :reason, #body = :body, #state = :open, #last_failed_at = :now, \
             #first_failed_at = if_not_exists(#first_failed_at, :now), \
             #failures = if_not_exists(#failures, :none) + :one"
            .to_owned();
        let mut update_values = vec![
            (":id", text(&id)),
            (":reason", text(&failure.reason)),
            (":body", text(&failure.body)),
            (":now", time(now)),
            (":none", number(0)),
            (":one", number(1)),
        ];
        if let Some(reservation) = &failure.reservation_id {
            update.push_str(", #reservation_id = :reservation_id");
            update_values.push((":reservation_id", text(reservation.as_str())));
        }
        if let Some(customer) = &failure.customer {
            // Not `customer`: that name would put it into the index of reservations.
            update.push_str(", #failed_customer = :failed_customer");
            update_values.push((":failed_customer", text(customer.as_str())));
        }
        if let Some(payment) = &failure.payment_reference {
            update.push_str(", #payment_reference = :payment_reference");
            update_values.push((":payment_reference", text(payment.as_str())));
        }
        let condition = Expression::new(format!("attribute_not_exists(#pk) OR {UNSETTLED}"), unsettled());
        match self.change_failed(&id, Expression::new(update, update_values), condition, deadline).await {
            Ok(_) | Err(Error::Refused(Refusal::AlreadySettled)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Marks a failed confirmation as on its way through the queue again. One that has failed once more since it was
    /// `seen` stays open: that is the later news of it.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`], [`Refusal::AlreadySettled`].
    pub async fn failed_is_retrying(
        &self,
        seen: &FailedConfirmation,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let update = Expression::new("SET #state = :retrying", vec![]);
        let answer = self.change_failed(&seen.id, update, as_seen(seen), deadline).await;
        let Err(Error::Refused(Refusal::AlreadySettled)) = answer else { return answer };
        let current = self.failed(&seen.id, deadline).await?;
        if current.state.is_settled() { answer } else { Ok(current) }
    }

    /// Settles a failed confirmation on an admin's word. The reservation remembers its payment: it never becomes an
    /// order with that one any more. Where it is one already, that settles it instead.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`], [`Refusal::AlreadySettled`].
    pub async fn resolve_failed(
        &self,
        id: &str,
        actor: &str,
        note: Option<&str>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let mut attempts = self.attempts(deadline);
        loop {
            let seen = self.failed(id, deadline).await?;
            let resolved = FailedConfirmation {
                state: FailedState::Resolved,
                settled_by: Some(actor.to_owned()),
                settled_at: Some(now),
                note: note.map(str::to_owned),
                ..seen.clone()
            };
            if seen == resolved {
                // Our own earlier try, whose answer was lost.
                return Ok(resolved);
            }
            if seen.state.is_settled() {
                return Err(Refusal::AlreadySettled.into());
            }
            let (reservation, payment) = (seen.reservation_id.as_ref(), seen.payment_reference.as_ref());
            let item = match reservation {
                Some(reservation) => self.get(keys::reservation(reservation), deadline).await?,
                None => None,
            };
            let found = item.map(|item| items::read::<Reservation>("reservation", item)).transpose()?;
            // What is another's is none of this payment's.
            let found = found.filter(|found| Some(&found.customer) == seen.customer.as_ref());
            if let Some(found) = &found
                && found.status == Status::Confirmed
                && found.payment_reference.as_ref() == payment
            {
                self.failed_is_confirmed(&found.reservation_id, payment, now, deadline).await?;
                return Err(Refusal::AlreadySettled.into());
            }

            let mut transaction = Transaction::new();
            transaction.update((), &self.table, &keys::failed(id), to_resolved(actor, note, now), as_seen(&seen))?;
            if let (Some(found), Some(payment)) = (&found, payment) {
                transaction.update(
                    (),
                    &self.table,
                    &keys::reservation(&found.reservation_id),
                    Expression::new(
                        // And it stays: once it were cleaned up, its key and this payment could be used anew.
                        "ADD #paid_back :paid_back REMOVE #ttl",
                        vec![(":paid_back", AttributeValue::Ss(vec![payment.to_string()]))],
                    ),
                    Expression::new(
                        "attribute_exists(#pk) AND NOT (#status = :confirmed AND #payment_reference = :payment)",
                        vec![(":confirmed", text(Status::Confirmed.as_str())), (":payment", text(payment.as_str()))],
                    ),
                )?;
            }
            match self.transact(&transaction, &mut attempts).await? {
                Ok(()) => return Ok(resolved),
                Err(Cancelled::Fault(fault)) => attempts.pause(fault).await?,
                // Whatever a condition failed on is read anew; other transactions are waited for.
                Err(Cancelled::Because(reasons)) => {
                    if reasons.iter().any(|(_, reason)| matches!(reason, Reason::Condition(_))) {
                        attempts.count();
                    } else {
                        attempts.pause(worst(&reasons)).await?;
                    }
                }
            }
            if deadline.passed() {
                return Err(attempts.unavailable("resolve"));
            }
        }
    }

    /// Settles the failed confirmation of this payment, if there is one: the reservation has been confirmed with it.
    pub async fn failed_is_confirmed(
        &self,
        reservation: &ReservationId,
        payment: Option<&PaymentReference>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let update = Expression::new(
            "SET #state = :confirmed, #settled_at = :now, #settled_by = :queue",
            vec![(":confirmed", text(FailedState::Confirmed.as_str())), (":now", time(now)), (":queue", text("retry"))],
        );
        let condition = Expression::new(UNSETTLED, unsettled());
        match self.change_failed(&failed_id(reservation, payment), update, condition, deadline).await {
            Ok(_) | Err(Error::Refused(Refusal::FailedConfirmationNotFound | Refusal::AlreadySettled)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// One failed confirmation.
    ///
    /// # Errors
    /// [`Refusal::FailedConfirmationNotFound`].
    pub async fn failed(&self, id: &str, deadline: Deadline) -> Result<FailedConfirmation, Error> {
        match self.get(keys::failed(id), deadline).await? {
            Some(item) => items::read("failed confirmation", item),
            None => Err(Refusal::FailedConfirmationNotFound.into()),
        }
    }

    /// A page of failed confirmations, of one state or of all.
    pub async fn failed_confirmations(
        &self,
        state: Option<FailedState>,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<FailedConfirmation>, Error> {
        let parts = [(keys::PK, Part::Is(keys::FAILED)), (keys::SK, Part::Begins("fc_"))];
        let mut start = cursor.map(|cursor| cursor.over(&parts)).transpose()?;
        let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut filter_values = vec![(":failed".to_owned(), text(keys::FAILED))];
        filter_values.extend(state.map(|state| (":state".to_owned(), text(state.as_str()))));
        let mut request = self
            .client
            .query()
            .key_condition_expression("#pk = :failed")
            .expression_attribute_names("#pk", keys::PK)
            .set_expression_attribute_values(Some(filter_values.into_iter().collect::<Item>()))
            .consistent_read(true);
        if state.is_some() {
            request = request.filter_expression("#state = :state").expression_attribute_names("#state", "state");
        }
        let mut found: Vec<FailedConfirmation> = Vec::new();
        loop {
            // Never more than the page still has room for, so the last key read is the last one shown.
            let room = i32::try_from(wanted.saturating_sub(found.len())).unwrap_or(i32::MAX);
            let (items, next) =
                self.query(request.clone().limit(room).set_exclusive_start_key(start), deadline).await?;
            for item in items {
                found.push(items::read("failed confirmation", item)?);
            }
            if next.is_none() || found.len() >= wanted {
                return Ok(Page { items: found, next: next.map(Cursor::new) });
            }
            start = next;
        }
    }

    async fn change_failed(
        &self,
        id: &str,
        update: Expression,
        condition: Expression,
        deadline: Deadline,
    ) -> Result<FailedConfirmation, Error> {
        let mut attempts = self.attempts(deadline);
        let (update_text, condition_text) = (update.text.clone(), condition.text.clone());
        let values = values([update, condition]);
        loop {
            let request = self
                .client
                .update_item()
                .table_name(&self.table)
                .set_key(Some(keys::failed(id).item()))
                .update_expression(&update_text)
                .condition_expression(&condition_text)
                .set_expression_attribute_names(Some(names(&[&update_text, &condition_text])))
                .set_expression_attribute_values(Some(values.clone()))
                .return_values(ReturnValue::AllNew);
            match attempts.call(request.send()).await? {
                Ok(answer) => return items::read("failed confirmation", answer.attributes.unwrap_or_default()),
                Err(error)
                    if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
                {
                    self.failed(id, deadline).await?;
                    return Err(Refusal::AlreadySettled.into());
                }
                Err(error) => attempts.pause(fault("UpdateItem", &error)).await?,
            }
        }
    }
}
