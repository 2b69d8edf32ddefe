//! Turning a hold into an order: one conditional update, and what to do when it is too late for that.
//!
//! What must always hold: a payment that was refused as owed back never makes an order afterwards, unless an admin's
//! retry lifts the refusal. So the refusal is a write: it is recorded on the reservation, under the condition that the
//! reservation has not changed since the decision, and every confirmation checks that record.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::decide::{self, ConfirmDecision};
use holdfast_domain::{
    CLOCK_TOLERANCE_SECONDS, Confirmation, Line, PaymentReference, Product, ProductId, Refusal, Reservation, Status,
    Take, Timestamp,
};

use crate::cache::CachedProduct;
use crate::error::Attempts;
use crate::items::{self, forever, text, time, ttl};
use crate::transact::{Outcome, Reason, Transaction, contention_error};
use crate::units::{Allocation, RefusalBasis, TakeAction, Wanted};
use crate::update::{Expression, Updated};
use crate::{Deadline, Error, Store, keys};

/// A confirmation, and when it is carried out.
#[derive(Debug, Clone, Copy)]
struct Command<'a> {
    confirmation: &'a Confirmation,
    now: Timestamp,
}

impl Command<'_> {
    fn payment(&self) -> Option<&PaymentReference> {
        self.confirmation.payment_reference.as_ref()
    }

    /// When it was accepted or is carried out, whichever clock is ahead.
    fn latest(&self) -> Timestamp {
        self.now.max(self.confirmation.requested_at)
    }
}

/// The outcome of one try.
enum ConfirmOutcome {
    Confirmed(Reservation),
    /// The reservation has changed, to this if the answer says so: decide again.
    Changed(Option<Reservation>),
}

impl From<Updated<Reservation>> for ConfirmOutcome {
    fn from(updated: Updated<Reservation>) -> Self {
        match updated {
            Updated::Applied(order) => Self::Confirmed(order),
            Updated::ConditionFailed(newer) => Self::Changed(newer),
        }
    }
}

impl Store {
    /// Makes an order of a hold. Repeating it with the same payment changes nothing.
    ///
    /// `now` is when the confirmation is carried out: later than `requested_at` if it comes from the queue, and the
    /// same if the caller waits for the answer.
    ///
    /// # Errors
    /// Every refusal of a confirmation. If [`Refusal::owes_refund`], the caller records that before it answers.
    pub async fn confirm(
        &self,
        confirmation: &Confirmation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let command = Command { confirmation, now };
        let Confirmation { reservation_id: id, customer, .. } = confirmation;
        let mut attempts = self.attempts(deadline);
        // The usual case takes one round trip: the condition repeats what the decision requires of a reservation.
        let mut outcome = self.confirm_in_time(command, &mut attempts).await?;
        loop {
            let seen = match outcome {
                ConfirmOutcome::Confirmed(order) => return Ok(order),
                ConfirmOutcome::Changed(seen) => seen,
            };
            // It has changed: decide again.
            if deadline.passed() {
                return Err(attempts.unavailable("confirm"));
            }
            let reservation = match seen {
                Some(reservation) => reservation,
                None => self.any_reservation(id, deadline).await.map_err(|error| attempts.error(error))?,
            };
            if !reservation.may_be_confirmed_for(customer) {
                // It may become theirs, before an earlier try is applied.
                return Err(attempts.refuse(Refusal::ReservationNotFound));
            }
            outcome = match (decide::confirmation(&reservation, confirmation, now), command.payment()) {
                (ConfirmDecision::Done, _) => return Ok(reservation),
                // Release it first: no clock that is behind can show it as held, or confirm it, afterwards.
                (
                    ConfirmDecision::Refuse(Refusal::HoldExpired | Refusal::RefundRequired) | ConfirmDecision::OweBack,
                    _,
                ) if reservation.status == Status::Held && reservation.overdue(command.latest()) => {
                    self.end_overdue(&reservation, command.latest(), deadline).await?;
                    ConfirmOutcome::Changed(None)
                }
                // Its payment was refused before, perhaps by an admin's resolution, which closes nothing.
                (ConfirmDecision::Refuse(refusal @ Refusal::RefundRequired), _)
                    if reservation.status == Status::Expired =>
                {
                    self.refuse_expired(refusal, &reservation, &mut attempts).await?
                }
                (ConfirmDecision::Refuse(refusal), None)
                    if attempts.ambiguous
                        && matches!(reservation.status, Status::Expired | Status::Cancelled)
                        // What was an order is kept for ever.
                        && !reservation.was_ordered() =>
                {
                    self.refuse_and_keep(refusal, &reservation, &mut attempts).await?
                }
                (ConfirmDecision::Refuse(refusal), _) => return Err(refusal.into()),
                (ConfirmDecision::CloseUnpaid, _) => {
                    self.refuse_expired(Refusal::HoldExpired, &reservation, &mut attempts).await?
                }
                (ConfirmDecision::RetryLater, _) => {
                    return Err(Error::TryLater { why: "an admin has just settled an earlier confirmation" });
                }
                (ConfirmDecision::InTime, _) => self.confirm_in_time(command, &mut attempts).await?,
                (ConfirmDecision::LateStillHeld, _) => {
                    self.confirm_still_held(&reservation, command, &mut attempts).await?
                }
                (ConfirmDecision::LateRetake, _) => self.retake(&reservation, command, &mut attempts).await?,
                (ConfirmDecision::AttachPayment, Some(payment)) => {
                    self.attach_payment(&reservation, payment, &mut attempts).await?
                }
                (ConfirmDecision::OweBack, Some(payment)) => {
                    self.owe_back(&reservation, payment, &mut attempts).await?
                }
                (decision @ (ConfirmDecision::AttachPayment | ConfirmDecision::OweBack), None) => {
                    return Err(Error::internal("confirm", format!("{decision:?} without a payment")));
                }
            };
        }
    }

    /// Confirms a hold that has not ended.
    async fn confirm_in_time(
        &self,
        command: Command<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let id = &command.confirmation.reservation_id;
        // See `Reservation::may_be_confirmed_for`.
        let owner = if command.confirmation.customer.is_guest() {
            "(#customer = :customer OR contains(#formerly, :customer))"
        } else {
            "#customer = :customer"
        };
        let condition = unless_settled(
            &format!("{owner} AND #status = :held AND #expires_at > :at AND #created_at <= :latest"),
            vec![
                (":customer", text(command.confirmation.customer.as_str())),
                (":held", text(Status::Held.as_str())),
                (":at", time(command.confirmation.requested_at)),
                (":latest", time(command.confirmation.requested_at.plus_seconds(CLOCK_TOLERANCE_SECONDS))),
            ],
            command,
        );
        let updated = self.update_reservation(id, (confirm_update(command, None)?, condition), attempts).await?;
        Ok(updated.into())
    }

    /// Confirms a hold that has ended and was not released: the units stay where they are.
    async fn confirm_still_held(
        &self,
        seen: &Reservation,
        command: Command<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let Expression { text: unchanged, mut values } = items::unchanged(seen.created_at, seen.revision());
        values.extend([(":held", text(Status::Held.as_str())), (":expires", time(seen.expires_at))]);
        // If it was extended meanwhile, the confirmation is in time.
        let condition = format!("#status = :held AND #expires_at = :expires AND {unchanged}");
        let condition = unless_settled(&condition, values, command);
        let update = confirm_update(command, Some(&seen.lines))?;
        let updated = self.update_reservation(&seen.reservation_id, (update, condition), attempts).await?;
        Ok(updated.into())
    }

    /// Records the payment of an order that was confirmed without one.
    async fn attach_payment(
        &self,
        seen: &Reservation,
        payment: &PaymentReference,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let update = Expression::new("SET #payment_reference = :payment", vec![(":payment", text(payment.as_str()))]);
        let condition = Expression::new(
            format!("#status = :confirmed AND attribute_not_exists(#payment_reference) AND {NOT_OWED_BACK}"),
            vec![(":confirmed", text(Status::Confirmed.as_str())), (":payment", text(payment.as_str()))],
        );
        let updated = self.update_reservation(&seen.reservation_id, (update, condition), attempts).await?;
        Ok(updated.into())
    }

    /// Refuses a payment that can buy nothing, for good: records it on the reservation, if that has not changed.
    async fn owe_back(
        &self,
        seen: &Reservation,
        payment: &PaymentReference,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let mut condition = Expression::new(
            "#status = :status AND #created_at = :created AND #expires_at = :expires",
            vec![
                (":status", text(seen.status.as_str())),
                (":created", time(seen.created_at)),
                (":expires", time(seen.expires_at)),
            ],
        );
        // Nor must it become an order without a payment, by a confirmation that waits in the queue.
        let closes = seen.status == Status::Expired && !seen.closed_to_unpaid();
        if closes {
            condition.text = format!("{} AND {CLOSED_EARLIER}", condition.text);
        }
        let update = owe_back_update(payment, closes.then_some(seen.expires_at));
        let noted = self.update_reservation(&seen.reservation_id, (update, condition), attempts).await?;
        refuse_once(noted, Refusal::RefundRequired)
    }

    /// Refuses a confirmation of an expired hold, and closes it to those without a payment.
    async fn refuse_expired(
        &self,
        refusal: Refusal,
        seen: &Reservation,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        match self.close_unpaid(seen, attempts).await? {
            Updated::Applied(()) if attempts.ambiguous => self.refuse_and_keep(refusal, seen, attempts).await,
            closed => refuse_once(closed, refusal),
        }
    }

    /// Refuses a confirmation of which an earlier try may still be applied: the ended reservation is kept for as long as
    /// if it had ended now. DynamoDB might delete it, and that try would find a new hold under its key.
    async fn refuse_and_keep(
        &self,
        refusal: Refusal,
        seen: &Reservation,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let update =
            Expression::new("SET #ttl = if_not_exists(#kept_until, :ttl)", vec![(":ttl", ttl(self.clock.now()))]);
        let condition = Expression::new(
            "#status = :status AND #created_at = :created",
            vec![(":status", text(seen.status.as_str())), (":created", time(seen.created_at))],
        );
        let kept = self.update_reservation(&seen.reservation_id, (update, condition), attempts).await?;
        refuse_once(kept, refusal)
    }

    /// Closes an expired hold to confirmations without a payment, before its customer is told that it has expired: one that
    /// was accepted in time and waits in the queue makes no order afterwards.
    pub(crate) async fn close_unpaid(
        &self,
        seen: &Reservation,
        attempts: &mut Attempts<'_>,
    ) -> Result<Updated<(), Reservation>, Error> {
        if seen.closed_to_unpaid() {
            return Ok(Updated::Applied(()));
        }
        let condition = Expression::new(
            format!("#status = :expired AND #created_at = :created AND {CLOSED_EARLIER}"),
            vec![(":expired", text(Status::Expired.as_str())), (":created", time(seen.created_at))],
        );
        let change = (close_unpaid_update(seen.expires_at), condition);
        Ok(match self.update_reservation(&seen.reservation_id, change, attempts).await? {
            Updated::Applied(_) => Updated::Applied(()),
            Updated::ConditionFailed(newer) => Updated::ConditionFailed(newer),
        })
    }

    /// Refuses a confirmation whose units are gone, if the reservation has not changed.
    async fn refuse_retake(
        &self,
        seen: &Reservation,
        command: Command<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        if let Some(payment) = command.payment() {
            return self.owe_back(seen, payment, attempts).await;
        }
        // Accepted in time and without a payment: no refund is due. The refusal is a write, so that neither a copy of this
        // message nor a transaction whose response was lost makes an order afterwards.
        self.refuse_expired(Refusal::HoldExpired, seen, attempts).await
    }

    /// Takes the units of a released hold again and makes the order, in one transaction.
    async fn retake(
        &self,
        seen: &Reservation,
        command: Command<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        let deadline = attempts.deadline();
        let ids = seen.lines.iter().map(|line| &line.product_id);
        // Read now: a payment must not be refused for good by a limit that was just lifted.
        let facts = self.facts(ids, 0, deadline).await?;
        let wanted = seen.lines.iter().map(|line| wanted(&facts, line)).collect::<Result<Vec<_>, Error>>()?;
        // One more, so that the transaction that gives the order back fits as well.
        let others = 2 + seen.lines.iter().filter(|line| line.limited).count();
        let takes = match self.allocate_units(&wanted, others, RefusalBasis::Read, command.now, deadline).await? {
            Allocation::Takes(takes) => takes,
            Allocation::Short(_) => return self.refuse_retake(seen, command, attempts).await,
        };
        let with = |(line, takes): (&Line, Vec<Take>)| Line { takes, ..line.clone() };
        let lines: Vec<Line> = seen.lines.iter().zip(takes).map(with).collect();
        let transaction = self.retake_transaction(seen, &lines, &wanted, command)?;
        let reasons = match self.transact(&transaction, attempts).await? {
            Outcome::Applied => {
                return Ok(ConfirmOutcome::Confirmed(Reservation {
                    lines,
                    status: Status::Confirmed,
                    confirmed_at: Some(command.now),
                    confirmed_late: true,
                    payment_reference: command.payment().cloned(),
                    ..seen.clone()
                }));
            }
            Outcome::TryAgain => return Ok(ConfirmOutcome::Changed(None)),
            Outcome::Cancelled(reasons) => reasons,
        };
        for line in &lines {
            self.with_cached(&line.product_id, CachedProduct::invalidate_stock);
        }
        let of_reservation = reasons.iter().find(|(action, _)| matches!(action, TakeAction::Reservation));
        match of_reservation {
            Some((_, Reason::Condition(_))) => return Ok(ConfirmOutcome::Changed(None)),
            // It may be an order now: the other reasons are not enough for a refusal.
            Some((_, Reason::Conflict | Reason::Throttled)) => {
                attempts.pause(contention_error(&reasons)).await?;
                return Ok(ConfirmOutcome::Changed(None));
            }
            None => {}
        }
        let over_limit = reasons.iter().find_map(|(action, reason)| match (action, reason) {
            (&TakeAction::Limit { line }, Reason::Condition(_)) => Some(line),
            _ => None,
        });
        if let Some(line) = over_limit {
            return self.refuse_retake_for_limit(seen, wanted[line], command, attempts).await;
        }
        if reasons
            .iter()
            .any(|(action, reason)| matches!((action, reason), (TakeAction::Shard { .. }, Reason::Condition(_))))
        {
            let products: Vec<&Product> = facts.values().collect();
            self.refresh_stock(&products, deadline).await?;
            attempts.count();
        } else {
            attempts.pause(contention_error(&reasons)).await?;
        }
        Ok(ConfirmOutcome::Changed(None))
    }

    /// Refuses a late confirmation for the customer's limit, if it is still exceeded once all overdue holds are
    /// released.
    async fn refuse_retake_for_limit(
        &self,
        seen: &Reservation,
        wanted: Wanted<'_>,
        command: Command<'_>,
        attempts: &mut Attempts<'_>,
    ) -> Result<ConfirmOutcome, Error> {
        if self.over_limit(seen, &seen.customer, wanted, command.now, attempts).await?.is_none() {
            attempts.count();
            return Ok(ConfirmOutcome::Changed(None));
        }
        self.refuse_retake(seen, command, attempts).await
    }

    fn retake_transaction(
        &self,
        seen: &Reservation,
        lines: &[Line],
        wanted: &[Wanted<'_>],
        command: Command<'_>,
    ) -> Result<Transaction<'_, TakeAction>, Error> {
        let mut transaction = Transaction::new(&self.table);
        let condition = unless_settled(
            "#status = :expired AND #created_at = :seen",
            vec![(":expired", text(Status::Expired.as_str())), (":seen", time(seen.created_at))],
            command,
        );
        let change = (confirm_update(command, Some(lines))?, condition);
        transaction.update(TakeAction::Reservation, &keys::reservation(&seen.reservation_id), change)?;
        // The price was fixed when the hold was made; the limit is the current one.
        Self::take_lines(&mut transaction, &seen.customer, lines, wanted, |line| line.limited)?;
        Ok(transaction)
    }
}

/// The refusal, once the write that makes it final is applied; if the reservation has changed, it is decided again.
fn refuse_once<T>(written: Updated<T, Reservation>, refusal: Refusal) -> Result<ConfirmOutcome, Error> {
    match written {
        Updated::Applied(_) => Err(refusal.into()),
        Updated::ConditionFailed(newer) => Ok(ConfirmOutcome::Changed(newer)),
    }
}

/// The units of a line that must be taken again, or counted for another customer.
pub(crate) fn wanted<'a>(facts: &'a BTreeMap<ProductId, Product>, line: &Line) -> Result<Wanted<'a>, Error> {
    let product = facts.get(&line.product_id).ok_or_else(|| Error::internal("product", "it is not there"))?;
    Ok(Wanted { product, quantity: line.quantity })
}

/// Part of a condition: the reservation is not yet closed for longer than `:until`.
pub(crate) const CLOSED_EARLIER: &str = "(attribute_not_exists(#unpaid_closed_at) OR #unpaid_closed_at <= :until)";

/// Part of a condition: `:payment` is not owed back.
const NOT_OWED_BACK: &str = "(attribute_not_exists(#owed_back) OR NOT contains(#owed_back, :payment))";

/// `condition`, and that this confirmation was not settled otherwise, by a final refusal or by an admin. So a
/// resolution and an order exclude each other, whichever comes first.
fn unless_settled(
    condition: &str,
    mut values: Vec<(&'static str, AttributeValue)>,
    command: Command<'_>,
) -> Expression {
    match command.payment() {
        Some(payment) => {
            values.push((":payment", text(payment.as_str())));
            Expression::new(format!("{condition} AND {NOT_OWED_BACK}"), values)
        }
        None => {
            values.push((":accepted", time(command.confirmation.requested_at)));
            let open = "(attribute_not_exists(#unpaid_closed_at) OR #unpaid_closed_at < :accepted)";
            Expression::new(format!("{condition} AND {open}"), values)
        }
    }
}

/// The update that records a payment as owed back. The reservation is kept forever then: if it were deleted, its key
/// and this payment could be used again. With `until`, the update also closes it to confirmations without a payment.
pub(crate) fn owe_back_update(payment: &PaymentReference, until: Option<Timestamp>) -> Expression {
    let mut values = vec![(":for_ever", forever()), (":owed_back", AttributeValue::Ss(vec![payment.to_string()]))];
    let mut set = "SET #kept_until = :for_ever".to_owned();
    if let Some(until) = until {
        set.push_str(", #unpaid_closed_at = :until");
        values.push((":until", time(until)));
    }
    Expression::new(format!("{set} REMOVE #ttl ADD #owed_back :owed_back"), values)
}

/// The update that closes a reservation to confirmations without a payment that were accepted until then.
pub(crate) fn close_unpaid_update(until: Timestamp) -> Expression {
    Expression::new("SET #unpaid_closed_at = :until", vec![(":until", time(until))])
}

/// The update that makes an order. `late` has the lines of an order that is confirmed after its hold ended.
fn confirm_update(command: Command<'_>, late: Option<&[Line]>) -> Result<Expression, Error> {
    let mut update = "SET #status = :confirmed, #confirmed_at = :now".to_owned();
    let mut values = vec![(":confirmed", text(Status::Confirmed.as_str())), (":now", time(command.now))];
    if let Some(payment) = command.payment() {
        update.push_str(", #payment_reference = :payment");
        values.push((":payment", text(payment.as_str())));
    }
    if let Some(lines) = late {
        update.push_str(", #confirmed_late = :late, #lines = :lines");
        values.extend([(":late", AttributeValue::Bool(true)), (":lines", items::value("lines", &lines)?)]);
    }
    // An order is not in the index of holds, and is never deleted.
    update.push_str(" REMOVE #due_key, #due_at, #ttl");
    Ok(Expression::new(update, values))
}
