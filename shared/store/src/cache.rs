//! An environment's cache of products: their facts, and what it last read of their stock.
//!
//! With a warm cache a reserve takes one round trip. What is cached may be stale: the condition on the write decides.

use std::collections::BTreeMap;
use std::sync::Arc;

use holdfast_domain::{Clock, Product, ProductId, Take, Timestamp, shards};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::{Deadline, Error, Store, items, keys, lock};

/// How long the facts of a product are used without reading them again, in milliseconds. A newer version on a shard
/// invalidates them at once, so this only bounds how often they are read.
pub(crate) const FACTS_LIFETIME_MS: i64 = 5_000;
/// How old cached data may be for a refusal, in milliseconds, since no shard checks it then. Applies to facts ("not on
/// sale") and to stock ("sold out"), and saves reads when many requests are refused.
pub(crate) const REFUSAL_LIFETIME_MS: i64 = 1_000;

/// When something was read, by two clocks: the wall clock may be set back, and the monotonic clock stops while Lambda
/// freezes the environment. The greater age counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ReadTime {
    wall: Timestamp,
    monotonic: Instant,
}

impl ReadTime {
    pub(crate) fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), monotonic: Instant::now() }
    }

    /// Whether it is less than `millis` milliseconds old.
    pub(crate) fn within(self, millis: i64, clock: &Clock) -> bool {
        let elapsed = i64::try_from(self.monotonic.elapsed().as_millis()).unwrap_or(i64::MAX);
        elapsed < millis && self.wall.within(millis, clock.now())
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
    /// When all shards were last read at one instant, after all overdue holds were released, and how many units are left of
    /// those that were free then. What is cached may be less: a transaction that the read had seen may be subtracted after it.
    exhausted: Option<(ReadTime, u64)>,
    /// How often that was read.
    snapshots: u64,
    /// When its overdue holds were last searched for, and the time until which no other hold ends.
    pub(crate) no_overdue: Option<(ReadTime, Timestamp)>,
    /// Held by the request that finds out whether there are units: what it finds serves all who wait.
    pub(crate) search: Arc<Mutex<()>>,
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

    /// Notes what all shards had at one instant, and whether that is all that there is.
    pub(crate) fn set_snapshot(&mut self, available: Vec<u64>, at: ReadTime, is_all: bool) {
        self.exhausted = is_all.then(|| (at, available.iter().sum()));
        self.snapshots += 1;
        self.set_stock(available);
    }

    /// When it was certain that no more units were free than these.
    pub(crate) fn exhausted(&self) -> Option<(ReadTime, u64)> {
        self.exhausted
    }

    /// The number of the last snapshot.
    pub(crate) fn snapshots(&self) -> u64 {
        self.snapshots
    }

    /// Notes that a transaction took units that was sent after the snapshot of this number and before any other.
    pub(crate) fn subtract_since(&mut self, snapshot: u64, shard: u32, units: u32) {
        if let Some((_, free)) = self.exhausted.as_mut().filter(|_| self.snapshots == snapshot) {
            *free = free.saturating_sub(u64::from(units));
        }
        self.subtract(shard, units);
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
    /// The facts of these products, read again if they are not cached or older than `max_age_ms`. Unknown products are left
    /// out.
    pub(crate) async fn facts(
        &self,
        ids: impl Iterator<Item = &ProductId>,
        max_age_ms: i64,
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Product>, Error> {
        let mut facts = BTreeMap::new();
        let mut missing = Vec::new();
        {
            let cached = lock(&self.cached);
            for id in ids {
                let fresh = |cached: &&CachedProduct| {
                    cached.read_at.is_some_and(|read_at| read_at.within(max_age_ms, &self.clock))
                };
                match cached.get(id).filter(fresh) {
                    Some(cached) => _ = facts.insert(id.clone(), cached.product.clone()),
                    None => missing.push(keys::product(id)),
                }
            }
        }
        if missing.is_empty() {
            return Ok(facts);
        }
        // Dated before the read, so that the result is never older than its date.
        let read_at = ReadTime::now(&self.clock);
        for item in self.get_many(missing, deadline).await? {
            let product: Product = items::read("product", item)?;
            self.remember(&product, Some(read_at));
            facts.insert(product.product_id.clone(), product);
        }
        Ok(facts)
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
            snapshots: 0,
            no_overdue: None,
            search: Arc::default(),
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
