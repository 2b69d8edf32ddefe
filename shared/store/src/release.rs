//! Ending holds and giving their units back: by the customer, or by the clock.
//!
//! A hold ends once: its reservation leaves `held` in the transaction that moves the units, under the condition that
//! it is held and is the very hold that was read (`created_at`): without that, a late copy of a release could meet a
//! hold made anew under the same key after the first was cleaned up.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::try_join_all;
use holdfast_domain::{Cancel, CustomerId, Product, Reservation, ReservationId, Status, Timestamp, cancel};

use crate::items::{self, Hold, number, text, time, ttl};
use crate::keys::Key;
use crate::transact::{Cancelled, Expression, MAX_ACTIONS, Reason, Transaction, worst};
use crate::{Deadline, Error, Item, Store, keys};

/// The most holds that share a transaction. More would save more writes (the shard's are shared), but a transaction
/// that large keeps its shard busy for longer, and reserves go on beside it.
const HOLDS_PER_TRANSACTION: usize = 25;
/// How long one batch may take: a busy shard must not keep the others' holds from being released.
const BATCH_BUDGET: Duration = Duration::from_secs(4);
/// The holds read in one go.
const HOLDS_PER_PAGE: i32 = 200;

/// What one sweep did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Holds released by this sweep.
    pub holds: u64,
    /// Units given back.
    pub units: u64,
    /// Holds that somebody else ended first: confirmed, cancelled, extended, or released by another sweep.
    pub ended_before: u64,
    /// Whether all that was overdue was dealt with. If not, the next sweep goes on.
    pub complete: bool,
}

/// How a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Cancelled,
    Expired,
}

/// What an action of the transaction stands for.
#[derive(Debug, Clone, Copy)]
enum Action {
    Hold(usize),
    Units,
}

impl Store {
    /// Gives a hold back on its owner's word. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`Refusal::ReservationNotFound`], [`Refusal::HoldExpired`], [`Refusal::AlreadyConfirmed`].
    pub async fn cancel(
        &self,
        id: &ReservationId,
        customer: &CustomerId,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Reservation, Error> {
        loop {
            let reservation = self.reservation(id, customer, deadline).await?;
            match cancel(&reservation, now) {
                Cancel::Refuse(refusal) => return Err(refusal.into()),
                Cancel::Done => return Ok(reservation),
                Cancel::Release => {}
            }
            let released = self.release(vec![Hold::from(&reservation)], End::Cancelled, now, deadline).await?;
            if released.holds == 1 {
                // Units are free again: this environment must not go on saying "sold out".
                for line in &reservation.lines {
                    self.with_known(&line.product_id, super::products::Known::doubt);
                }
                return Ok(Reservation { status: Status::Cancelled, ..reservation });
            }
            // It ended meanwhile, one way or another: decide again on what it is now.
            if deadline.passed() {
                return Err(self.attempts(deadline).unavailable("cancel"));
            }
        }
    }

    /// Releases every hold that is overdue at `now`. Safe to run twice, late, or beside itself.
    ///
    /// A batch that fails, or a hold that cannot be read, does not keep the others from being released; its error is
    /// returned in the end.
    ///
    /// # Errors
    /// Only what stopped the reading, or the first error of a hold or a batch. Running out of time is none: see
    /// [`Swept::complete`].
    pub async fn release_overdue(&self, now: Timestamp, deadline: Deadline) -> Result<Swept, Error> {
        let mut swept = Swept { complete: true, ..Swept::default() };
        let mut failed = None;
        // Wherever the time runs out, the same holds must not be left behind each time.
        let first = self.random_below(self.due_partitions);
        'sweep: for k in 0..self.due_partitions {
            let mut start = None;
            loop {
                if deadline.passed() {
                    swept.complete = false;
                    break 'sweep;
                }
                let page = self.overdue((first + k) % self.due_partitions, now, start, deadline).await?;
                if let Some(error) = page.unreadable {
                    swept.complete = false;
                    failed.get_or_insert(error);
                }
                for batch in batches(page.holds) {
                    if deadline.passed() {
                        swept.complete = false;
                        break 'sweep;
                    }
                    match self.release(batch, End::Expired, now, deadline.sooner(BATCH_BUDGET)).await {
                        Ok(part) => swept.add(part),
                        Err(error) => {
                            swept.complete = false;
                            failed.get_or_insert(error);
                        }
                    }
                }
                start = page.next;
                if start.is_none() {
                    break;
                }
            }
        }
        failed.map_or(Ok(swept), Err)
    }

    /// Releases overdue holds of these products, one page of each partition; how many holds.
    ///
    /// Helps a reserve that found too little. That it runs out of time is no error of the reserve's.
    pub(crate) async fn release_overdue_of(
        &self,
        products: &[&Product],
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<u64, Error> {
        let pages = (0..self.due_partitions).map(|k| self.overdue(k, now, None, deadline));
        let pages = match try_join_all(pages).await {
            Ok(pages) => pages,
            Err(Error::Unavailable { .. }) => return Ok(0),
            Err(error) => return Err(error),
        };
        let wanted = |hold: &Hold| {
            hold.lines.iter().any(|line| products.iter().any(|product| product.product_id == line.product_id))
        };
        // One that cannot be read is the sweep's to report.
        let holds = pages.into_iter().flat_map(|page| page.holds).filter(wanted).collect();
        let mut released = 0;
        for batch in batches(holds) {
            match self.release(batch, End::Expired, now, deadline).await {
                Ok(part) => released += part.holds,
                Err(Error::Unavailable { .. }) => break,
                Err(error) => return Err(error),
            }
        }
        Ok(released)
    }

    /// A page of what is overdue in one partition of the index.
    async fn overdue(&self, k: u32, now: Timestamp, start: Option<Item>, deadline: Deadline) -> Result<Overdue, Error> {
        let request = self
            .client
            .query()
            .index_name(keys::DUE_INDEX)
            .key_condition_expression("#due_key = :key AND #due_at <= :now")
            .expression_attribute_names("#due_key", keys::DUE_KEY)
            .expression_attribute_names("#due_at", keys::DUE_AT)
            .expression_attribute_values(":key", text(keys::due_key(k)))
            .expression_attribute_values(":now", time(now))
            .limit(HOLDS_PER_PAGE)
            .set_exclusive_start_key(start);
        let (found, next) = self.query(request, deadline).await?;
        let mut page = Overdue { holds: Vec::with_capacity(found.len()), unreadable: None, next };
        for item in found {
            match items::read("hold", item) {
                Ok(hold) => page.holds.push(hold),
                Err(error) => _ = page.unreadable.get_or_insert(error),
            }
        }
        Ok(page)
    }

    /// Ends these holds in one transaction; those that have ended already drop out, alone.
    async fn release(
        &self,
        mut holds: Vec<Hold>,
        end: End,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Swept, Error> {
        let mut attempts = self.attempts(deadline);
        let mut swept = Swept::default();
        while !holds.is_empty() {
            let transaction = self.release_transaction(&holds, end, now)?;
            match self.transact(&transaction, &mut attempts).await? {
                Ok(()) => {
                    swept.holds += holds.len() as u64;
                    swept.units += units(&holds);
                    break;
                }
                Err(Cancelled::Fault(fault)) => attempts.pause(fault).await?,
                Err(Cancelled::Because(reasons)) => {
                    let mut ended = vec![false; holds.len()];
                    let mut lacking = false;
                    for (action, reason) in &reasons {
                        match (action, reason) {
                            (&Action::Hold(at), Reason::Condition(_)) => ended[at] = true,
                            (Action::Units, Reason::Condition(_)) => lacking = true,
                            (_, Reason::Conflict | Reason::Throttled) => {}
                        }
                    }
                    if !ended.contains(&true) {
                        // One that has ended gave its units back already: only where none has, units that cannot be
                        // given back are a fault.
                        if lacking {
                            return Err(Error::internal("release", "a shard or a limit of the hold does not exist"));
                        }
                        attempts.pause(worst(&reasons)).await?;
                    }
                    swept.ended_before += ended.iter().filter(|&&ended| ended).count() as u64;
                    let mut ended = ended.into_iter();
                    holds.retain(|_| !ended.next().unwrap_or(false));
                }
            }
        }
        Ok(swept)
    }

    fn release_transaction(&self, holds: &[Hold], end: End, now: Timestamp) -> Result<Transaction<Action>, Error> {
        let mut transaction = Transaction::new();
        for (at, hold) in holds.iter().enumerate() {
            let status = match end {
                End::Cancelled => Status::Cancelled,
                End::Expired => Status::Expired,
            };
            let mut condition = "#status = :held AND #created_at = :seen".to_owned();
            let mut values = vec![(":held", text(Status::Held.as_str())), (":seen", time(hold.created_at))];
            if end == End::Expired {
                // It may have been extended since the index was read.
                condition.push_str(" AND #expires_at <= :now");
                values.push((":now", time(now)));
            }
            transaction.update(
                Action::Hold(at),
                &self.table,
                &keys::reservation(&hold.reservation_id()?),
                Expression::new(
                    "SET #status = :end, #ttl = :ttl REMOVE #due_key, #due_at",
                    vec![(":end", text(status.as_str())), (":ttl", ttl(now))],
                ),
                Expression::new(condition, values),
            )?;
        }
        for (key, amount) in given_back(holds) {
            let (update, condition) = match amount {
                Amount::Shard(units) => ("SET #available = #available + :q", ("attribute_exists(#pk)", number(units))),
                Amount::Limit(units) => ("SET #units = #units - :q", ("#units >= :q", number(units))),
            };
            let (condition, quantity) = condition;
            let update = Expression::new(update, vec![(":q", quantity)]);
            transaction.update(Action::Units, &self.table, &key, update, Expression::new(condition, vec![]))?;
        }
        Ok(transaction)
    }
}

/// A page of overdue holds.
struct Overdue {
    holds: Vec<Hold>,
    /// Why one of them cannot be read, where one cannot: as after a step back to an older version of this program.
    unreadable: Option<Error>,
    /// Where the next page starts.
    next: Option<Item>,
}

impl Swept {
    fn add(&mut self, part: Self) {
        self.holds += part.holds;
        self.units += part.units;
        self.ended_before += part.ended_before;
    }
}

/// What one item gets back.
enum Amount {
    Shard(u64),
    Limit(u64),
}

/// What each shard and each customer's limit gets back from these holds: one action an item.
fn given_back(holds: &[Hold]) -> Vec<(Key, Amount)> {
    let mut shards: BTreeMap<_, u64> = BTreeMap::new();
    let mut limits: BTreeMap<_, u64> = BTreeMap::new();
    for hold in holds {
        for line in &hold.lines {
            for take in &line.takes {
                *shards.entry((&line.product_id, take.shard)).or_default() += u64::from(take.units);
            }
            if line.limited {
                *limits.entry((&line.product_id, &hold.customer)).or_default() += u64::from(line.quantity);
            }
        }
    }
    let shards = shards.into_iter().map(|((id, shard), units)| (keys::shard(id, shard), Amount::Shard(units)));
    let limits = limits.into_iter().map(|((id, customer), units)| (keys::limit(id, customer), Amount::Limit(units)));
    shards.chain(limits).collect()
}

fn units(holds: &[Hold]) -> u64 {
    holds.iter().flat_map(|hold| &hold.lines).map(|line| u64::from(line.quantity)).sum()
}

/// Holds dealt into transactions, those of one shard together, none with more actions than a transaction may have.
fn batches(mut holds: Vec<Hold>) -> Vec<Vec<Hold>> {
    let home = |hold: &Hold| {
        hold.lines.first().map(|line| (line.product_id.clone(), line.takes.first().map(|take| take.shard)))
    };
    holds.sort_by_cached_key(home);
    let mut batches: Vec<Vec<Hold>> = Vec::new();
    for hold in holds {
        let fits = batches.last().is_some_and(|batch: &Vec<Hold>| {
            let together: Vec<Hold> = batch.iter().chain([&hold]).cloned().collect();
            batch.len() < HOLDS_PER_TRANSACTION
                && home(&batch[0]) == home(&hold)
                && together.len() + given_back(&together).len() <= MAX_ACTIONS
        });
        match batches.last_mut().filter(|_| fits) {
            Some(batch) => batch.push(hold),
            None => batches.push(vec![hold]),
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::{HoldSeconds, IdempotencyKey, Line, Take};
    use std::collections::BTreeSet;

    /// A hold of one unit from each of these shards of a product.
    fn hold(n: usize, product: &str, shards: impl IntoIterator<Item = u32>) -> Hold {
        let customer = CustomerId::try_from("alice").unwrap();
        let takes: Vec<Take> = shards.into_iter().map(|shard| Take { shard, units: 1 }).collect();
        let line = Line {
            product_id: product.try_into().unwrap(),
            quantity: takes.iter().map(|take| take.units).sum(),
            name: "Tee".to_owned(),
            unit_price_minor: 1,
            limited: false,
            takes,
        };
        Hold::from(&Reservation {
            reservation_id: ReservationId::derive(&customer, &IdempotencyKey::try_from(format!("k{n}")).unwrap()),
            customer,
            lines: vec![line],
            currency: "EUR".to_owned().try_into().unwrap(),
            status: Status::Held,
            created_at: Timestamp::from_millis(0),
            expires_at: Timestamp::from_millis(600_000),
            hold_seconds: HoldSeconds::DEFAULT,
            fingerprint: String::new(),
            confirmed_at: None,
            confirmed_late: false,
            payment_reference: None,
            paid_back: BTreeSet::new(),
        })
    }

    fn sizes(holds: Vec<Hold>) -> Vec<usize> {
        batches(holds).iter().map(Vec::len).collect()
    }

    #[test]
    fn holds_of_one_shard_share_a_transaction_up_to_twenty_five() {
        assert_eq!(sizes((0..60).map(|n| hold(n, "tee", [3])).collect()), [25, 25, 10]);
        // However they are mixed, those of another shard or product are apart.
        let mixed = (0..30).map(|n| hold(n, if n % 3 == 0 { "cap" } else { "tee" }, [u32::from(n % 3 == 1)]));
        assert_eq!(sizes(mixed.collect()), [10, 10, 10]);
    }

    #[test]
    fn a_batch_fits_a_transaction() {
        // Each is one action, and each shard that gets units back is one, however many holds give it some.
        assert_eq!(sizes((0..3).map(|n| hold(n, "tee", 0..64)).collect()), [3]);
        // 2 holds and 98 shards are a hundred actions, one shard more is one too many.
        let together = |more: u32| vec![hold(0, "tee", 0..60), hold(1, "tee", [0].into_iter().chain(60..98 + more))];
        assert_eq!(sizes(together(0)), [2]);
        assert_eq!(sizes(together(1)), [1, 1]);
        assert_eq!(given_back(&together(0)).len(), 98);
    }
}
