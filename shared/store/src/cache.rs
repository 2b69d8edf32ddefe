//! An environment's cache of products: their facts, and what it last read of their stock.
//!
//! With a warm cache a reserve takes one round trip. What is cached may be stale: the condition on the write decides.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_domain::{Clock, Product, ProductId, Take, Timestamp, shards};
use tokio::time::Instant;

use crate::places::Placed;
use crate::{Deadline, Error, Store, lock};

/// How long the facts of a product are used without reading them again, in milliseconds. A newer version on a shard
/// invalidates them at once, so this only bounds how often they are read.
pub(crate) const FACTS_LIFETIME_MS: i64 = 5_000;
/// How old cached data may be for a refusal, in milliseconds, since no shard checks it then. Applies to facts ("not on
/// sale") and to stock ("sold out"), and saves reads when many requests are refused.
pub(crate) const REFUSAL_LIFETIME_MS: i64 = 1_000;

/// From how many shards on environments share their looks at them. Below, a look costs no more than to ask for one.
const SHARED_SHARDS: u32 = 4;
/// How long an environment does without the looks of others, in milliseconds, if they cannot be asked for.
const ALONE_MS: i64 = 10_000;

/// When something was read, by two clocks: the wall clock may be set back, and the monotonic clock stops while Lambda
/// freezes the environment. The greater age counts.
#[derive(Debug, Clone, Copy)]
pub struct ReadTime {
    wall: Timestamp,
    monotonic: Instant,
}

impl ReadTime {
    /// Now, by `clock` and by the monotonic one.
    pub fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), monotonic: Instant::now() }
    }

    /// Whether it is less than `millis` milliseconds old.
    pub fn within(self, millis: i64, clock: &Clock) -> bool {
        let elapsed = i64::try_from(self.monotonic.elapsed().as_millis()).unwrap_or(i64::MAX);
        elapsed < millis && self.wall.within(millis, clock.now())
    }

    /// By the wall clock.
    pub(crate) fn wall(self) -> Timestamp {
        self.wall
    }

    /// The same, or as old as that by the wall clock.
    pub(crate) fn not_after(self, wall: Timestamp) -> Self {
        self.earlier(self.wall.as_millis().saturating_sub(wall.as_millis()).max(0))
    }

    /// The same, but this many milliseconds earlier by both clocks.
    pub(crate) fn earlier(self, millis: i64) -> Self {
        let wall = Timestamp::from_millis(self.wall.as_millis().saturating_sub(millis));
        let by = Duration::from_millis(u64::try_from(millis).unwrap_or_default());
        Self { wall, monotonic: self.monotonic.checked_sub(by).unwrap_or(self.monotonic) }
    }

    /// The earlier of both, by each clock.
    pub(crate) fn or_before(self, other: Self) -> Self {
        Self { wall: self.wall.min(other.wall), monotonic: self.monotonic.min(other.monotonic) }
    }

    /// Whether it was not read before `other`.
    pub(crate) fn is_since(self, other: Self) -> bool {
        self.monotonic >= other.monotonic
    }
}

/// A cached product.
#[derive(Debug)]
pub(crate) struct CachedProduct {
    product: Product,
    /// When its facts were read; `None` if they must be read again before they are used.
    read_at: Option<ReadTime>,
    home: u32,
    available: Vec<Option<u64>>,
    /// After when all shards were last read at one instant, with all holds released that were overdue at that time, and how
    /// many units were free. What is cached may be less: a transaction that the read had seen may be subtracted after it.
    exhausted: Option<(ReadTime, u64)>,
    /// When another environment's look could not be asked for.
    alone_since: Option<ReadTime>,
    /// When its overdue holds were last searched for, and the time until which no other hold ends.
    pub(crate) no_overdue: Option<(ReadTime, Timestamp)>,
}

impl CachedProduct {
    pub(crate) fn choose(&self, quantity: u32) -> Option<Vec<Take>> {
        shards::choose(quantity, &self.available, self.home)
    }

    /// The units of each shard, and the home shard.
    pub(crate) fn stock(&self) -> (Vec<Option<u64>>, u32) {
        (self.available.clone(), self.home)
    }

    pub(crate) fn set_stock(&mut self, available: Vec<u64>) {
        self.available = available.into_iter().map(Some).collect();
    }

    pub(crate) fn set_shard(&mut self, shard: u32, available: u64) {
        if let Some(units) = self.available.get_mut(shard as usize) {
            *units = Some(available);
        }
    }

    /// Notes how many units were free after this time, with all holds released that were overdue then: too few for a request.
    pub(crate) fn set_exhausted(&mut self, at: ReadTime, free: u64) {
        self.exhausted = Some((at, free));
    }

    /// Whether its looks are shared with other environments.
    pub(crate) fn shares_looks(&self, clock: &Clock) -> bool {
        let alone = self.alone_since.is_some_and(|since| since.within(ALONE_MS, clock));
        self.product.shards >= SHARED_SHARDS && !alone
    }

    /// Notes that another environment's look cannot be asked for: do without for a while.
    pub(crate) fn look_alone(&mut self, since: ReadTime) {
        self.alone_since = Some(since);
    }

    /// Notes what all shards had at one instant; if that is all that there is, after when that was certain.
    pub(crate) fn set_snapshot(&mut self, available: Vec<u64>, exhausted_at: Option<ReadTime>) {
        self.exhausted = exhausted_at.map(|at| (at, available.iter().sum()));
        self.set_stock(available);
    }

    /// How many units are free, if that was found to be too few within the last second.
    pub(crate) fn exhausted(&self, clock: &Clock) -> Option<u64> {
        self.exhausted.filter(|(at, _)| at.within(REFUSAL_LIFETIME_MS, clock)).map(|(_, free)| free)
    }

    pub(crate) fn subtract(&mut self, shard: u32, units: u32) {
        if let Some(Some(available)) = self.available.get_mut(shard as usize) {
            *available = available.saturating_sub(u64::from(units));
        }
    }

    /// "Sold out" is no longer certain: the next refusal has to read the shards.
    pub(crate) fn invalidate_stock(&mut self) {
        self.exhausted = None;
    }

    /// Moves to another home; if it is known `from` which one, unless another request has moved since.
    pub(crate) fn move_home(&mut self, from: Option<u32>, to: u32) {
        if from.is_none_or(|from| from == self.home) {
            self.home = to;
        }
    }
}

impl Store {
    /// The facts of these products, read again if they are not cached or older than `max_age_ms`; one request reads for all
    /// that wait. Unknown products are left out.
    pub(crate) async fn facts(
        &self,
        ids: impl Iterator<Item = &ProductId> + Clone,
        max_age_ms: i64,
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Product>, Error> {
        let (facts, missing) = self.cached_facts(ids.clone(), |read_at| read_at.within(max_age_ms, &self.clock));
        let Some(first) = missing.first() else { return Ok(facts) };
        let asked_at = ReadTime::now(&self.clock);
        let (turn, after_another) = self.reads.wait(first).await;
        let (mut facts, missing) =
            self.cached_facts(ids, |read_at| read_at.is_since(asked_at) || read_at.within(max_age_ms, &self.clock));
        if missing.is_empty() {
            return Ok(facts);
        }
        // What the one before has not found does not exist: no reason for the others to wait for one another.
        let _turn = turn.filter(|_| !after_another);
        // Dated before the read, so that the result is never older than its date.
        let read_at = ReadTime::now(&self.clock);
        for Placed { product, .. } in self.placed(missing.into_iter(), deadline).await? {
            self.remember(&product, Some(read_at));
            facts.insert(product.product_id.clone(), product);
        }
        Ok(facts)
    }

    /// The cached facts of these products, as far as they are fresh, and those that have to be read.
    fn cached_facts<'a>(
        &self,
        ids: impl Iterator<Item = &'a ProductId>,
        is_fresh: impl Fn(ReadTime) -> bool,
    ) -> (BTreeMap<ProductId, Product>, Vec<&'a ProductId>) {
        let (mut facts, mut missing) = (BTreeMap::new(), Vec::new());
        let cached = lock(&self.cached);
        for id in ids {
            match cached.get(id).filter(|cached| cached.read_at.is_some_and(&is_fresh)) {
                Some(cached) => _ = facts.insert(id.clone(), cached.product.clone()),
                None => missing.push(id),
            }
        }
        (facts, missing)
    }

    pub(crate) fn remember(&self, product: &Product, read_at: Option<ReadTime>) {
        let home = self.random_below(product.shards);
        let mut cached = lock(&self.cached);
        let entry = cached.entry(product.product_id.clone()).or_insert_with(|| CachedProduct {
            product: product.clone(),
            read_at,
            home,
            available: vec![None; product.shards as usize],
            exhausted: None,
            alone_since: None,
            no_overdue: None,
        });
        entry.product = product.clone();
        entry.read_at = read_at;
    }

    /// Makes sure that a product is in the cache. If it was not, its facts are read again before they are used.
    pub(crate) fn ensure_cached(&self, product: &Product) {
        if !lock(&self.cached).contains_key(&product.product_id) {
            self.remember(product, None);
        }
    }

    /// Removes a product from the cache: the next request reads its facts.
    pub(crate) fn forget(&self, id: &ProductId) {
        lock(&self.cached).remove(id);
    }

    /// Calls `look` with a cached product, if it is there.
    pub(crate) fn with_cached<T>(&self, id: &ProductId, look: impl FnOnce(&mut CachedProduct) -> T) -> Option<T> {
        lock(&self.cached).get_mut(id).map(look)
    }
}
