//! Changes of a live hold: what it holds, and for whom.
//!
//! Each is one transaction under the condition that the hold is what was read. It counts itself in the lines' `revision`, on
//! which every write conditions that gives their units back.

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{CustomerId, Line, Refusal, RequestedLines, Reservation, ReservationId, Status, Timestamp};
use holdfast_domain::{change_lines, decide};

use crate::cache::CachedProduct;
use crate::confirm;
use crate::error::Attempts;
use crate::items::{self, Hold, number, text, time, unchanged};
use crate::reserve::Verdict;
use crate::transact::{Outcome, Transaction, contention_error};
use crate::units::{Allocation, RefusalBasis, TakeAction, Wanted, given_back, limits_given_back};
use crate::update::Expression;
use crate::{Deadline, Error, Store, keys};

impl Store {
    /// Gives a hold these lines. Its time goes on, and it keeps what it has until it gets all of it. Repeating it changes
    /// nothing.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::HoldExpired`], [`Refusal::ReservationCancelled`],
    /// [`Refusal::AlreadyConfirmed`], and those of a reserve that are about products, the limit and stock.
    pub async fn change_lines(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        lines: &RequestedLines,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let mut attempts = self.attempts(deadline);
        let mut tried = None;
        loop {
            let seen = self.reservation(id, customer, deadline).await.map_err(|error| attempts.error(error))?;
            if !self.may_change(&seen, now, &attempts).await? {
                continue;
            }
            // Read now: a customer may have seen a price that is newer than the cache.
            let facts = self.facts(lines.products(), 0, deadline).await?;
            let change = match change_lines(&seen, lines, &facts, now) {
                Ok(Some(change)) => change,
                Ok(None) => return Ok(seen),
                Err(refusal) => {
                    self.refuse_unless_changed(&seen, refusal, &mut attempts).await?;
                    continue;
                }
            };
            let wanted: Vec<Wanted<'_>> =
                change.more.iter().map(|line| Wanted { product: &line.product, quantity: line.quantity }).collect();
            let given = given_back(&[Hold::part(&seen, change.fewer.clone())]);
            // The transaction must fit, and so must those that end the hold as it is then, or give the order back, which
            // needs one more.
            let kept = change.hold(&[]).lines;
            let counted = change.more.iter().filter(|line| line.product.counts_per_customer).count();
            let of_kept = kept.iter().map(|line| line.takes.len() + usize::from(line.limited)).sum::<usize>();
            let others = (1 + given.len() + counted).max(2 + of_kept);
            let takes = match self.allocate_units(&wanted, others, RefusalBasis::Read, now, deadline).await? {
                Allocation::Takes(takes) => takes,
                Allocation::Short(mut shortages) => {
                    // In the terms of the request: with what the hold has.
                    for line in &seen.lines {
                        for short in shortages.iter_mut().filter(|short| short.product_id == line.product_id) {
                            short.requested += line.quantity;
                            short.available += u64::from(line.quantity);
                        }
                    }
                    let refusal = Refusal::InsufficientStock { shortages };
                    self.refuse_unless_changed(&seen, refusal, &mut attempts).await?;
                    continue;
                }
            };
            Self::only_once(&mut tried, &seen, &attempts)?;
            let changed = change.hold(&takes);
            let mut transaction = Transaction::new(&self.table);
            // Where it is found by those who search for holds of any product.
            let due = self.partitions.due_of_basket(id);
            let set = "SET #lines = :lines, #late_payment_seconds = :late, #due_key = :due";
            let values = vec![(":late", number(changed.late_payment_seconds)), (":due", text(due))];
            Self::revise(&mut transaction, &seen, &changed, Expression::new(set, values))?;
            let taken = |(more, takes): (&Wanted<'_>, _)| {
                let line = changed.lines.iter().find(|line| line.product_id == more.product.product_id)?;
                Some(Line { quantity: more.quantity, takes, ..line.clone() })
            };
            let taken: Vec<Line> = wanted.iter().zip(takes).filter_map(taken).collect();
            Self::take_lines(&mut transaction, customer, &taken, &wanted, |_| true)?;
            for (key, change) in given {
                transaction.update(TakeAction::Given, &key, change)?;
            }
            if self.apply(&transaction, &seen, customer, &wanted, now, &mut attempts).await? {
                for line in &taken {
                    self.with_cached(&line.product_id, |cached| {
                        line.takes.iter().for_each(|take| cached.subtract(take.shard, take.units));
                    });
                }
                for line in &change.fewer {
                    // Units are free: this environment must not answer "sold out" from its cache.
                    self.with_cached(&line.product_id, CachedProduct::invalidate_stock);
                }
                return Ok(changed);
            }
        }
    }

    /// Hands a hold to another customer, whose limits count it from now on. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::HoldExpired`], [`Refusal::ReservationCancelled`],
    /// [`Refusal::AlreadyConfirmed`], [`Refusal::CustomerLimitReached`].
    pub async fn transfer(
        &self,
        id: &ReservationId,
        from: &CustomerId,
        to: &CustomerId,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        let mut attempts = self.attempts(deadline);
        let mut tried = None;
        loop {
            let seen = self.any_reservation(id, deadline).await.map_err(|error| attempts.error(error))?;
            if seen.customer == *to && seen.formerly.contains(from) {
                return self.end_if_overdue(seen, now, deadline).await;
            }
            if seen.customer != *from {
                return Err(attempts.refuse(Refusal::ReservationNotFound));
            }
            if !self.may_change(&seen, now, &attempts).await? {
                continue;
            }
            let counted: Vec<Line> = seen.lines.iter().filter(|line| line.limited).cloned().collect();
            let facts = self.facts(counted.iter().map(|line| &line.product_id), 0, deadline).await?;
            let wanted = counted.iter().map(|line| confirm::wanted(&facts, line)).collect::<Result<Vec<_>, Error>>()?;
            Self::only_once(&mut tried, &seen, &attempts)?;
            let transferred = seen.transferred(to);
            let mut transaction = Transaction::new(&self.table);
            let set = "SET #lines = :lines, #customer = :to ADD #formerly :from";
            let former = AttributeValue::Ss(vec![from.to_string()]);
            let values = vec![(":to", text(to.as_str())), (":from", former)];
            Self::revise(&mut transaction, &seen, &transferred, Expression::new(set, values))?;
            // Its units stay where they are. A shard knows whether an admin has changed the limit since.
            for (line, wanted) in counted.iter().zip(&wanted) {
                if let Some(take) = line.takes.first() {
                    let known = vec![(":v", number(wanted.product.version))];
                    let condition = Expression::new("#product_version <= :v", known);
                    transaction.check(TakeAction::Given, &keys::shard(&line.product_id, take.shard), condition)?;
                }
            }
            let counted: Vec<Line> = counted.iter().map(|line| Line { takes: Vec::new(), ..line.clone() }).collect();
            Self::take_lines(&mut transaction, to, &counted, &wanted, |_| false)?;
            for (key, change) in limits_given_back(&[Hold::from(&seen)]) {
                transaction.update(TakeAction::Given, &key, change)?;
            }
            if self.apply(&transaction, &seen, to, &wanted, now, &mut attempts).await? {
                return Ok(transferred);
            }
        }
    }

    /// Stops a change of which an earlier try may have been applied, and another change since: once more, it would undo that
    /// one. `tried` has the revision that the earlier try was based on.
    fn only_once(tried: &mut Option<u32>, seen: &Reservation, attempts: &Attempts<'_>) -> Result<(), Error> {
        let before = tried.replace(seen.revision());
        if attempts.ambiguous && before.is_some_and(|before| before != seen.revision()) {
            return Err(attempts.unavailable("change"));
        }
        Ok(())
    }

    /// Whether a hold may be changed; if not, it is refused, or has to be read again. It is not refused if an earlier try may have
    /// changed it before it became what it is.
    async fn may_change(&self, seen: &Reservation, now: Timestamp, attempts: &Attempts<'_>) -> Result<bool, Error> {
        match decide::change(seen, now) {
            Ok(()) => Ok(true),
            Err(Refusal::HoldExpired) if !self.end_for_good(seen, now, attempts.deadline()).await? => Ok(false),
            Err(refusal) => Err(attempts.refuse(refusal)),
        }
    }

    /// Adds the update of the hold itself: `set`, with the lines as they are then.
    fn revise(
        transaction: &mut Transaction<'_, TakeAction>,
        seen: &Reservation,
        changed: &Reservation,
        mut set: Expression,
    ) -> Result<(), Error> {
        set.values.push((":lines", items::value("lines", &changed.lines)?));
        let mut condition = unchanged(seen.created_at, seen.revision());
        // It may have been extended since it was read: the answer shows its end.
        condition.text.push_str(" AND #status = :held AND #expires_at = :expires");
        condition.values.extend([(":held", text(Status::Held.as_str())), (":expires", time(seen.expires_at))]);
        transaction.update(TakeAction::Reservation, &keys::reservation(&seen.reservation_id), (set, condition))
    }

    /// Applies a change of a hold, and returns whether it was applied. If not, decide again.
    async fn apply(
        &self,
        transaction: &Transaction<'_, TakeAction>,
        seen: &Reservation,
        customer: &CustomerId,
        wanted: &[Wanted<'_>],
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<bool, Error> {
        match self.transact(transaction, attempts).await? {
            Outcome::Applied => return Ok(true),
            Outcome::TryAgain => {}
            Outcome::Cancelled(reasons) => match self.interpret(wanted, &reasons)? {
                Verdict::Limit { line } => {
                    let wanted = wanted[line];
                    if let Some(limit) = self.over_limit(seen, customer, wanted, now, attempts).await? {
                        let product_id = wanted.product.product_id.clone();
                        return Err(attempts.refuse(Refusal::CustomerLimitReached { product_id, limit }));
                    }
                    attempts.count();
                }
                Verdict::Contention => attempts.pause(contention_error(&reasons)).await?,
                Verdict::Exists(_) | Verdict::Stale | Verdict::Short => attempts.count(),
            },
        }
        if attempts.deadline().passed() { Err(attempts.unavailable("change")) } else { Ok(false) }
    }

    /// Refuses a change, if the hold is still what the refusal is based on; else it is decided again.
    async fn refuse_unless_changed(
        &self,
        seen: &Reservation,
        refusal: Refusal,
        attempts: &mut Attempts<'_>,
    ) -> Result<(), Error> {
        if self.latest_reservation(&seen.reservation_id, attempts).await?.as_ref() == Some(seen) {
            return Err(attempts.refuse(refusal));
        }
        attempts.count();
        if attempts.deadline().passed() { Err(attempts.unavailable("change")) } else { Ok(()) }
    }
}
