//! Turning a hold into an order: one conditional update, and what to do when it is too late for that.

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{
    Confirm, CustomerId, Line, PaymentReference, Product, Refusal, Reservation, ReservationId, Status, Timestamp,
    confirm,
};

use crate::error::Attempts;
use crate::items::{self, text, time};
use crate::products::REFUSAL_LIFETIME;
use crate::reserve::take_limit;
use crate::transact::{Cancelled, Expression, Reason, Transaction, worst};
use crate::{Deadline, Error, Store, keys};

/// What an action of a late confirmation stands for.
#[derive(Debug, Clone, Copy)]
enum Action {
    Reservation,
    Shard,
    Limit,
}

impl Store {
    /// Makes an order of a hold. Repeating it with the same payment changes nothing.
    ///
    /// `at` is when the confirmation was accepted, and decides whether it was in time; `now` is when it is carried
    /// out. They differ where a queue lies between.
    ///
    /// # Errors
    /// Every refusal that confirming can meet. Where [`Refusal::owes_refund`], the caller records that before it
    /// answers.
    pub async fn confirm(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        payment: Option<&PaymentReference>,
        at: Timestamp,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let mut attempts = self.attempts(deadline);
        // The usual case takes one round trip: the condition repeats what `decide` would ask of a reservation.
        let mut seen = match self.confirm_in_time(id, customer, payment, at, now, &mut attempts).await? {
            Ok(confirmed) => return Ok(confirmed),
            Err(seen) => seen,
        };
        loop {
            let reservation = match seen.take() {
                Some(reservation) => reservation,
                None => self.reservation(id, customer, deadline).await?,
            };
            if reservation.customer != *customer {
                return Err(Refusal::ReservationNotFound.into());
            }
            let confirmed = match confirm(&reservation, payment, at) {
                Confirm::Refuse(refusal) => return Err(refusal.into()),
                Confirm::Done => return Ok(reservation),
                Confirm::InTime => match self.confirm_in_time(id, customer, payment, at, now, &mut attempts).await? {
                    Ok(confirmed) => Some(confirmed),
                    Err(newer) => {
                        seen = newer;
                        None
                    }
                },
                Confirm::LateStillHeld => self.confirm_still_held(&reservation, payment, now, &mut attempts).await?,
                Confirm::LateRetake => self.retake(&reservation, payment, now, &mut attempts).await?,
                Confirm::AttachPayment => self.attach_payment(&reservation, payment, &mut attempts).await?,
            };
            if let Some(confirmed) = confirmed {
                return Ok(confirmed);
            }
            // It changed meanwhile: decide again on what it is now.
            if deadline.passed() {
                return Err(attempts.unavailable("confirm"));
            }
        }
    }

    /// The order, or what the reservation is instead, as far as the answer says.
    async fn confirm_in_time(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        payment: Option<&PaymentReference>,
        at: Timestamp,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Result<Reservation, Option<Reservation>>, Error> {
        let condition = not_paid_back(
            "#customer = :customer AND #status = :held AND #expires_at > :at",
            vec![(":customer", text(customer.as_str())), (":held", text(Status::Held.as_str())), (":at", time(at))],
            payment,
        );
        self.update_reservation(id, to_confirmed(payment, now, None)?, condition, attempts).await
    }

    /// Paid late, and nobody has given the units back: they stay.
    async fn confirm_still_held(
        &self,
        seen: &Reservation,
        payment: Option<&PaymentReference>,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reservation>, Error> {
        let condition = not_paid_back(
            "#status = :held AND #created_at = :seen",
            vec![(":held", text(Status::Held.as_str())), (":seen", time(seen.created_at))],
            payment,
        );
        let update = to_confirmed(payment, now, Some(&seen.lines))?;
        Ok(self.update_reservation(&seen.reservation_id, update, condition, attempts).await?.ok())
    }

    /// Confirmed without a payment, and now there is one: write it down.
    async fn attach_payment(
        &self,
        seen: &Reservation,
        payment: Option<&PaymentReference>,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reservation>, Error> {
        let Some(payment) = payment else { return Ok(Some(seen.clone())) };
        let update = Expression::new("SET #payment_reference = :payment", vec![(":payment", text(payment.as_str()))]);
        let condition = not_paid_back(
            "#status = :confirmed AND attribute_not_exists(#payment_reference)",
            vec![(":confirmed", text(Status::Confirmed.as_str()))],
            Some(payment),
        );
        Ok(self.update_reservation(&seen.reservation_id, update, condition, attempts).await?.ok())
    }

    /// Paid late, or accepted in time, and the units went back: takes them again and makes the order, in one transaction.
    async fn retake(
        &self,
        seen: &Reservation,
        payment: Option<&PaymentReference>,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reservation>, Error> {
        let deadline = attempts.deadline();
        // Also a confirmation without a payment comes here, where it was accepted in time: nothing is owed then.
        let gone = || if payment.is_some() { Refusal::RefundRequired } else { Refusal::HoldExpired };
        let facts = self.facts(seen.lines.iter().map(|line| &line.product_id), REFUSAL_LIFETIME, deadline).await?;
        let products: Vec<&Product> = facts.values().collect();
        self.look(&products, deadline).await?;
        let mut lines = seen.lines.clone();
        for line in &mut lines {
            let takes = self.with_known(&line.product_id, |known| known.choose(line.quantity)).flatten();
            line.takes = takes.ok_or_else(gone)?;
        }

        let mut transaction = Transaction::new();
        transaction.update(
            Action::Reservation,
            &self.table,
            &keys::reservation(&seen.reservation_id),
            to_confirmed(payment, now, Some(&lines))?,
            not_paid_back(
                "#status = :expired AND #created_at = :seen",
                vec![(":expired", text(Status::Expired.as_str())), (":seen", time(seen.created_at))],
                payment,
            ),
        )?;
        for line in &lines {
            for take in &line.takes {
                transaction.update(
                    Action::Shard,
                    &self.table,
                    &keys::shard(&line.product_id, take.shard),
                    Expression::new("SET #available = #available - :q", vec![(":q", items::number(take.units))]),
                    // The price was settled when the hold was made: the product's version does not matter here.
                    Expression::new("#available >= :q", vec![]),
                )?;
            }
            if line.limited {
                let limit = facts.get(&line.product_id).and_then(|product| product.max_per_customer);
                // A limit that was lifted meanwhile still has to count what a later release will give back.
                let (update, condition) = take_limit(line.quantity, limit.unwrap_or(u32::MAX));
                let key = keys::limit(&line.product_id, &seen.customer);
                transaction.update(Action::Limit, &self.table, &key, update, condition)?;
            }
        }
        if transaction.len() > crate::transact::MAX_ACTIONS {
            return Err(gone().into());
        }
        let Err(cancelled) = self.transact(&transaction, attempts).await? else {
            return Ok(Some(Reservation {
                lines,
                status: Status::Confirmed,
                confirmed_at: Some(now),
                confirmed_late: true,
                payment_reference: payment.cloned(),
                ..seen.clone()
            }));
        };
        match cancelled {
            Cancelled::Fault(fault) => attempts.pause(fault).await?,
            Cancelled::Because(reasons) => {
                let stopped = |wanted: fn(&Action) -> bool| {
                    reasons.iter().any(|(action, reason)| wanted(action) && matches!(reason, Reason::Condition(_)))
                };
                if stopped(|action| matches!(action, Action::Reservation)) {
                    return Ok(None);
                }
                if stopped(|action| matches!(action, Action::Limit)) {
                    return Err(gone().into());
                }
                if stopped(|action| matches!(action, Action::Shard)) {
                    attempts.count();
                } else {
                    attempts.pause(worst(&reasons)).await?;
                }
            }
        }
        Ok(None)
    }
}

/// `condition`, and that the payment, if there is one, has not been given back: an admin's word and an order exclude
/// one another, whichever comes first.
fn not_paid_back(
    condition: &str,
    mut values: Vec<(&'static str, AttributeValue)>,
    payment: Option<&PaymentReference>,
) -> Expression {
    let Some(payment) = payment else { return Expression::new(condition, values) };
    values.push((":payment", text(payment.as_str())));
    Expression::new(
        format!("{condition} AND (attribute_not_exists(#paid_back) OR NOT contains(#paid_back, :payment))"),
        values,
    )
}

/// The update that makes an order. `late` is given for a confirmation that came too late: the lines that it has now.
fn to_confirmed(
    payment: Option<&PaymentReference>,
    now: Timestamp,
    late: Option<&[Line]>,
) -> Result<Expression, Error> {
    let mut update = "SET #status = :confirmed, #confirmed_at = :now".to_owned();
    let mut values = vec![(":confirmed", text(Status::Confirmed.as_str())), (":now", time(now))];
    if let Some(payment) = payment {
        update.push_str(", #payment_reference = :payment");
        values.push((":payment", text(payment.as_str())));
    }
    if let Some(lines) = late {
        update.push_str(", #confirmed_late = :late, #lines = :lines");
        values.extend([(":late", AttributeValue::Bool(true)), (":lines", items::value("lines", &lines)?)]);
    }
    // Out of the index of holds, and never cleaned up: it is an order now.
    update.push_str(" REMOVE #due_key, #due_at, #ttl");
    Ok(Expression::new(update, values))
}
