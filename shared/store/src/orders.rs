//! Orders that are given back.
//!
//! One transaction ends the order, gives its units back to their shards or takes them out of the stock with an entry of the
//! ledger, frees the customer's limit, notes the payment on the reservation as owed back, and records it as a failed
//! confirmation until an admin has refunded it. So none of these can be true without the others.

use std::collections::BTreeMap;

use holdfast_domain::decide::{self, OrderCancelDecision};
use holdfast_domain::{
    FailedConfirmation, Failure, OrderCancellation, ProductId, Reservation, Status, Timestamp, digest_id,
};

use crate::cache::CachedProduct;
use crate::confirm::owe_back_update;
use crate::failed::{record_update, seen_failures};
use crate::items::{self, Hold, text, time};
use crate::places::Placed;
use crate::stock::{LedgerEntry, entry_id};
use crate::transact::Transaction;
use crate::units::{given_back, limits_given_back};
use crate::update::Expression;
use crate::{Deadline, Error, Store, keys, measure};

impl Store {
    /// Cancels an order. Repeating it changes nothing: the first reason, and what became of the units, stay.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`](holdfast_domain::Refusal::ReservationNotFound) if it is no order, or another
    /// customer's; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn cancel_order(
        &self,
        command: &OrderCancellation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let mut attempts = self.attempts(deadline);
        loop {
            let seen = match &command.customer {
                Some(customer) => self.reservation(&command.order_id, customer, deadline).await?,
                None => self.any_reservation(&command.order_id, deadline).await?,
            };
            match decide::order_cancellation(&seen) {
                OrderCancelDecision::GiveBack => {}
                OrderCancelDecision::Done => return Ok(seen),
                OrderCancelDecision::Refuse(refusal) => return Err(refusal.into()),
            }
            let Some(transaction) = self.order_cancellation_transaction(command, &seen, now, deadline).await? else {
                if deadline.passed() {
                    return Err(attempts.unavailable("cancel order"));
                }
                attempts.count();
                continue;
            };
            if self.transact_or_wait("cancel order", &transaction, &mut attempts).await? {
                measure::note(measure::GIVEN_BACK, 1);
                for line in &seen.lines {
                    // Units are free: this environment must not answer "sold out" from its cache.
                    self.with_cached(&line.product_id, CachedProduct::invalidate_stock);
                }
                return Ok(seen.given_back(command.record(now)));
            }
        }
    }

    /// The transaction; `None` if what was read does not fit together, since a copy of the command was faster: decide again.
    async fn order_cancellation_transaction(
        &self,
        command: &OrderCancellation,
        order: &Reservation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Option<Transaction<'_, ()>>, Error> {
        let mut transaction = Transaction::new(&self.table);
        let mut condition = Expression::new(
            "#status = :confirmed AND #created_at = :created",
            vec![(":confirmed", text(Status::Confirmed.as_str())), (":created", time(order.created_at))],
        );
        let ends = "#status = :cancelled, #cancellation = :cancellation";
        let mut update = match &order.payment_reference {
            Some(payment) => {
                condition.text.push_str(" AND #payment_reference = :payment");
                condition.values.push((":payment", text(payment.as_str())));
                let mut update = owe_back_update(payment, None);
                update.text = update.text.replacen("SET ", &format!("SET {ends}, "), 1);
                update
            }
            None => {
                // One that is attached meanwhile would not be refunded.
                condition.text.push_str(" AND attribute_not_exists(#payment_reference)");
                Expression::new(format!("SET {ends}"), vec![])
            }
        };
        update.values.push((":cancelled", text(Status::Cancelled.as_str())));
        update.values.push((":cancellation", items::value("cancellation", &command.record(now))?));
        transaction.update((), &keys::reservation(&order.reservation_id), (update, condition))?;

        let hold = [Hold::from(order)];
        if command.restock {
            for (key, change) in given_back(&hold) {
                transaction.update((), &key, change)?;
            }
        } else {
            for (key, change) in limits_given_back(&hold) {
                transaction.update((), &key, change)?;
            }
            if !self.write_off(&mut transaction, command, order, now, deadline).await? {
                return Ok(None);
            }
        }
        if let Some(owed) = Failure::of_cancelled_order(order, now) {
            let key = keys::failed(&owed.id());
            let stored: Option<FailedConfirmation> = self.get("failed confirmation", key.clone(), deadline).await?;
            let unchanged = seen_failures(stored.as_ref());
            // One that an admin resolved, before there was a reservation, was refunded: it says so for ever. So does one that
            // names a former owner.
            let mut open = owed.reopened(stored, now);
            for former in &order.formerly {
                let named = Reservation { customer: former.clone(), ..order.clone() };
                let Some(failure) = Failure::of_cancelled_order(&named, now) else { continue };
                let key = keys::failed(&failure.id());
                let stored: Option<FailedConfirmation> = self.get("failed confirmation", key, deadline).await?;
                open = open.filter(|_| failure.reopened(stored, now).is_some());
            }
            if let Some(open) = open {
                let mut update = record_update(&open);
                update.text.push_str(" REMOVE #settled_by, #settled_at, #note");
                transaction.update((), &key, (update, unchanged))?;
            }
        }
        Ok(Some(transaction))
    }

    /// Takes the units of an order out of the stock: each product's total is less, and its ledger says why. Returns whether
    /// the totals are those of an order that is still one.
    async fn write_off(
        &self,
        transaction: &mut Transaction<'_, ()>,
        command: &OrderCancellation,
        order: &Reservation,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        let ids = order.lines.iter().map(|line| &line.product_id);
        let products = self.placed(ids, deadline).await?.into_iter();
        let products: BTreeMap<ProductId, Placed> =
            products.map(|placed| (placed.product.product_id.clone(), placed)).collect();
        for line in &order.lines {
            let id = &line.product_id;
            let placed = products.get(id).ok_or_else(|| Error::internal("product", "it is not there"))?;
            let product = &placed.product;
            let Some(total_after) = product.total.checked_sub(u64::from(line.quantity)) else { return Ok(false) };
            let entry = LedgerEntry {
                entry_id: entry_id(now, &digest_id("", &[order.reservation_id.as_str(), id.as_str()])),
                delta: -i64::from(line.quantity),
                total_after,
                reason: command.reason.clone(),
                reference: Some(order.reservation_id.to_string()),
                actor: command.actor.clone(),
                created_at: now,
            };
            placed.set_total(transaction, total_after)?;
            transaction.put((), entry.item(id)?, "attribute_not_exists(#pk)")?;
        }
        Ok(true)
    }
}
