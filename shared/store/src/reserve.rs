//! Making a hold: one transaction, and nothing before it if the cache is warm.

use holdfast_domain::{
    Basket, CustomerId, Product, ProductId, Refusal, Reservation, ReservationId, Status, Timestamp, draft,
};
use serde::Deserialize;

use crate::cache::{FACTS_LIFETIME_MS, REFUSAL_LIFETIME_MS};
use crate::error::Attempts;
use crate::gate::Company;
use crate::group::Committed;
use crate::items::{self, ShardItem};
use crate::transact::{Reason, contention_error};
use crate::units::{Allocation, RefusalBasis, TakeAction, Wanted};
use crate::{Deadline, Error, Item, Store, keys};

/// A reservation that was made, by this request or by an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserved {
    /// The reservation as it is now.
    pub reservation: Reservation,
    /// Whether an earlier request made it.
    pub replayed: bool,
}

/// What a cancelled transaction that takes units means, in order of precedence.
pub(crate) enum Verdict {
    /// The reservation exists, or has changed: that has precedence over everything.
    Exists(Option<Item>),
    /// The facts behind the draft are out of date.
    Stale,
    /// The customer's limit is exceeded.
    Limit { line: usize },
    /// A shard has too few units.
    Short,
    /// Only other transactions were in the way.
    Contention,
}

impl Store {
    /// Makes the hold of `basket`, or finds the one that it made before.
    ///
    /// `remind` asks for a reminder of the hold's end. It is awaited before the transaction, and if it returns an error no hold
    /// is made. That of the function `reserve` never does: without a reminder, the sweep releases the hold.
    ///
    /// # Errors
    /// Every refusal of a reserve, and [`Error::Unavailable`] if contention or lost answers outlast the deadline: the
    /// hold may exist then, and the same key finds it.
    pub async fn reserve<F>(
        &self,
        basket: &Basket,
        now: Timestamp,
        deadline: Deadline,
        remind: impl Fn(Timestamp) -> F,
    ) -> Result<Reserved, Error>
    where
        F: Future<Output = Result<(), Error>>,
    {
        let began = self.clock.now();
        let mut attempts = self.attempts(deadline);
        let mut facts_age = FACTS_LIFETIME_MS;
        let mut company = Company::Untried;
        loop {
            let facts = self.facts(basket.products(), facts_age, deadline).await?;
            let draft = match draft(basket, &facts, now) {
                Ok(draft) => draft,
                // A customer may have seen a price that is newer than the cache.
                Err(Refusal::PriceChanged { .. }) if facts_age > 0 => {
                    facts_age = 0;
                    continue;
                }
                Err(_) if facts_age > REFUSAL_LIFETIME_MS => {
                    facts_age = REFUSAL_LIFETIME_MS;
                    continue;
                }
                // Boxed, like all that is rare: it would make the future of every reserve large.
                Err(refusal) => return Box::pin(self.replay_or(basket, refusal, now, &mut attempts)).await,
            };
            let wanted: Vec<Wanted<'_>> =
                draft.lines.iter().map(|line| Wanted { product: &line.product, quantity: line.quantity }).collect();
            // The reservation and each limit; and one more, so that the transaction that gives the order back fits as well.
            let others = 2 + draft.lines.iter().filter(|line| line.product.counts_per_customer).count();
            let takes = match self.allocate_units(&wanted, others, RefusalBasis::Cache, now, deadline).await? {
                Allocation::Takes(takes) => takes,
                Allocation::Short(shortages) => {
                    let refusal = Refusal::InsufficientStock { shortages };
                    return Box::pin(self.replay_or(basket, refusal, now, &mut attempts)).await;
                }
            };
            remind(draft.expires_at).await?;
            let ends_at = began.plus_seconds(draft.hold_seconds.get());
            if self.clock.now() >= ends_at {
                // The environment was frozen meanwhile: do not make a hold that has ended.
                return Err(attempts.unavailable("reserve"));
            }
            let reservation = draft.hold(basket, takes, now);
            let (reasons, next) = match self.commit(reservation, &wanted, ends_at, company, &mut attempts).await? {
                Committed::Made(made) => return Ok(Reserved { reservation: *made, replayed: false }),
                Committed::TryAgain => continue,
                Committed::Again(next) => {
                    company = next;
                    continue;
                }
                Committed::LeftOut => {
                    attempts.count();
                    continue;
                }
                Committed::Cancelled(reasons, company) => (reasons, company),
            };
            company = next;
            let answer = Box::pin(self.answer_cancelled(basket, &wanted, &reasons, now, &mut attempts));
            if let Some(found) = answer.await? {
                return Ok(found);
            }
            if deadline.passed() {
                return Err(attempts.unavailable("reserve"));
            }
        }
    }

    /// The answer after a cancelled transaction: a replay or a refusal. `None` means try again; if other transactions
    /// were in the way, after a pause.
    async fn answer_cancelled(
        &self,
        basket: &Basket,
        wanted: &[Wanted<'_>],
        reasons: &[(TakeAction, Reason)],
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reserved>, Error> {
        match self.interpret(wanted, reasons)? {
            Verdict::Exists(item) => {
                let found = match item {
                    Some(item) => Some(items::read("reservation", item)?),
                    // Some emulators leave the old item out.
                    None => self.latest_reservation(&basket.reservation_id, attempts).await?,
                };
                if let Some(reservation) = found {
                    return self.replay(basket, reservation, now, attempts).await.map(Some);
                }
                attempts.count();
            }
            Verdict::Stale => {
                wanted.iter().for_each(|one| self.forget(&one.product.product_id));
                attempts.count();
            }
            Verdict::Limit { line } => {
                if let Some(found) = self.refuse_for_limit(basket, wanted[line], now, attempts).await? {
                    return Ok(Some(found));
                }
                attempts.count();
            }
            Verdict::Short => attempts.count(),
            Verdict::Contention => attempts.pause(contention_error(reasons)).await?,
        }
        Ok(None)
    }

    /// Refuses for the customer's limit if it is exceeded by the product as it is now, with all overdue holds released,
    /// and if the reservation does not exist. Returns the reservation if it does, and `None` if there is room now.
    async fn refuse_for_limit(
        &self,
        basket: &Basket,
        wanted: Wanted<'_>,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Reserved>, Error> {
        let (product_id, deadline) = (&wanted.product.product_id, attempts.deadline());
        if self.released_for(wanted.product, &basket.customer, now, deadline).await? {
            return Ok(None);
        }
        let seen = self.limit_snapshot(&basket.reservation_id, product_id, &basket.customer, attempts).await?;
        // A change that has not reached the shards yet may have lifted the limit.
        let stale = seen.product.as_ref().is_none_or(|product| product.version != wanted.product.version);
        let limit = seen.limit_exceeded_by(wanted.quantity);
        if let Some(reservation) = seen.reservation {
            return self.replay(basket, reservation, now, attempts).await.map(Some);
        }
        match limit {
            _ if stale => {
                self.forget(product_id);
                Ok(None)
            }
            None => Ok(None),
            Some(limit) => {
                let refusal = Refusal::CustomerLimitReached { product_id: product_id.clone(), limit };
                Err(attempts.refuse(refusal))
            }
        }
    }

    /// Releases the customer's overdue holds of a product before a refusal for its limit. Returns whether there were any, so
    /// that there may be room now.
    async fn released_for(
        &self,
        product: &Product,
        customer: &CustomerId,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        let (swept, _) = self.release_overdue_of(&[product], Some(customer), true, now, deadline).await?;
        if swept.holds == 0 && !swept.complete {
            return Err(Error::Unavailable { during: "release", last: "holds are overdue".to_owned() });
        }
        Ok(swept.holds > 0)
    }

    /// The limit that `customer` would exceed with these units of a reservation, all overdue holds released, if that has not
    /// changed since it was `seen`.
    pub(crate) async fn over_limit(
        &self,
        seen: &Reservation,
        customer: &CustomerId,
        wanted: Wanted<'_>,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<u32>, Error> {
        if self.released_for(wanted.product, customer, now, attempts.deadline()).await? {
            return Ok(None);
        }
        let now = self.limit_snapshot(&seen.reservation_id, &wanted.product.product_id, customer, attempts).await?;
        let unchanged = now.reservation.as_ref() == Some(seen);
        Ok(now.limit_exceeded_by(wanted.quantity).filter(|_| unchanged))
    }

    /// What a refusal for a customer's limit is based on, at one instant.
    async fn limit_snapshot(
        &self,
        id: &ReservationId,
        product: &ProductId,
        customer: &CustomerId,
        attempts: &mut Attempts<'_>,
    ) -> Result<LimitSnapshot, Error> {
        let others = [keys::reservation(id), keys::limit(product, customer)];
        let (product, others) = self.snapshot_with_product(product, &others, attempts).await?;
        LimitSnapshot::read(product, others)
    }

    /// What the reasons mean, in order of precedence. What they say about the stock goes into the cache.
    pub(crate) fn interpret(&self, wanted: &[Wanted<'_>], reasons: &[(TakeAction, Reason)]) -> Result<Verdict, Error> {
        let mut stale = false;
        let mut short = false;
        let mut limit = None;
        let mut exists = None;
        let mut hidden = false;
        for (action, reason) in reasons {
            match (action, reason) {
                (TakeAction::Reservation, Reason::Condition(item)) => exists = Some(item.clone()),
                (&TakeAction::Limit { line }, Reason::Condition(_)) => limit = limit.or(Some(line)),
                (&TakeAction::Shard { line, take, home: _ }, Reason::Condition(item)) => {
                    let product = wanted[line].product;
                    let shard = item.clone().map(|item| items::read::<ShardItem>("shard", item)).transpose()?;
                    // A shard whose reason has no item is read instead.
                    let (available, version) = shard.map_or((0, 0), |shard| (shard.available, shard.product_version));
                    stale |= version > product.version;
                    short |= version <= product.version;
                    self.with_cached(&product.product_id, |cached| {
                        cached.set_shard(take.shard, available);
                        cached.invalidate_stock();
                    });
                }
                (&TakeAction::Shard { line, take: _, home: from }, Reason::Conflict) => {
                    // Another environment uses this shard: choose another home, to avoid further conflicts.
                    let product = wanted[line].product;
                    let home = self.random_below(product.shards);
                    self.with_cached(&product.product_id, |cached| cached.move_home(from, home));
                }
                // It may exist, or have changed: the other reasons are not enough for a refusal.
                (TakeAction::Reservation, Reason::Conflict | Reason::Throttled)
                | (TakeAction::Given, Reason::Condition(_)) => hidden = true,
                (_, Reason::Conflict | Reason::Throttled) => {}
            }
        }
        Ok(match (exists, limit) {
            (Some(item), _) => Verdict::Exists(item),
            _ if hidden => Verdict::Contention,
            // A limit from stale facts is not enough for a refusal.
            _ if stale => Verdict::Stale,
            (None, Some(line)) => Verdict::Limit { line },
            (None, None) if short => Verdict::Short,
            (None, None) => Verdict::Contention,
        })
    }

    /// The reservation that this key made before, else `refusal`: the owner of a hold is never told "sold out". The
    /// refusal is based on earlier reads, so a transaction of the same key that changed what they saw is waited for.
    async fn replay_or(
        &self,
        basket: &Basket,
        refusal: Refusal,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Reserved, Error> {
        match self.latest_reservation(&basket.reservation_id, attempts).await? {
            Some(reservation) => self.replay(basket, reservation, now, attempts).await,
            None => Err(attempts.refuse(refusal)),
        }
    }

    /// Repeats the first answer, if this is the same request. If its hold has expired, only a payment can still make an
    /// order of it: whoever is told may reserve the same again.
    async fn replay(
        &self,
        basket: &Basket,
        mut reservation: Reservation,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Reserved, Error> {
        // Made by an earlier try of this call, whose answer was lost: for the caller it is the first answer.
        let replayed = !(attempts.ambiguous && reservation.created_at == now);
        let deadline = attempts.deadline();
        loop {
            if reservation.fingerprint != basket.fingerprint {
                return Err(Refusal::IdempotencyKeyReused.into());
            }
            if reservation.customer != basket.customer {
                return Err(Refusal::HoldTransferred.into());
            }
            let over = reservation.status_at(now) == Status::Expired;
            if !over || self.end_for_good(&reservation, now, deadline).await? {
                return Ok(Reserved { reservation, replayed });
            }
            // It changed meanwhile; or it was deleted, weeks after its end.
            let found = self.latest_reservation(&basket.reservation_id, attempts).await?;
            reservation = found.ok_or_else(|| attempts.unavailable("reserve"))?;
        }
    }
}

/// What a refusal for a customer's limit is based on, at one instant.
struct LimitSnapshot {
    reservation: Option<Reservation>,
    product: Option<Product>,
    counted: u64,
}

impl LimitSnapshot {
    fn read(product: Option<Item>, others: Vec<Option<Item>>) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct LimitItem {
            units: u64,
        }
        let [reservation, counted] = <[Option<Item>; 2]>::try_from(others)
            .map_err(|others| Error::internal("snapshot", format!("{} items, not 2", others.len())))?;
        let counted = counted.map(|item| items::read::<LimitItem>("limit", item)).transpose()?;
        Ok(Self {
            reservation: reservation.map(|item| items::read("reservation", item)).transpose()?,
            product: product.map(|item| items::read("product", item)).transpose()?,
            counted: counted.map_or(0, |counted| counted.units),
        })
    }

    /// The limit, if `quantity` more would exceed it.
    fn limit_exceeded_by(&self, quantity: u32) -> Option<u32> {
        let limit = self.product.as_ref()?.max_per_customer?;
        (self.counted + u64::from(quantity) > u64::from(limit)).then_some(limit)
    }
}
