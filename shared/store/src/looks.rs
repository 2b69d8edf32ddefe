//! How environments share what they find out about a product that is sold out.
//!
//! Each environment may refuse for a second by what it knows, and must then look at all shards again. With many environments
//! those looks would cost more than the sale. So an environment waits for a look that another one begins, or begins one that
//! serves all who come meanwhile: of each product about one is under way at a time.
//!
//! When the shards were read does not depend on another environment's clock. Looks are numbered when they begin, in an item of
//! the product. An environment reads the last number, and notes when it asked. A look with a greater number began after that,
//! so it has read the shards as if this environment had read them itself when it asked.
//!
//! Which holds were overdue depends on the clock of the one that looked: all that had ended by a time by that clock are released.
//! Each look tells that time, and what it found is taken for that old. A search for overdue holds reads all partitions of the
//! index that may have some, those of baskets among them, which all products share. So the looks that follow do not search
//! again for a while: a product is searched every [`SEARCH_LIFETIME_MS`], however many are refused.

use std::time::Duration;

use holdfast_domain::{Product, ProductId, Shortage, Timestamp};
use serde::Deserialize;
use tokio::time::Instant;

use crate::cache::{REFUSAL_LIFETIME_MS, ReadTime};
use crate::error::Attempts;
use crate::gate::PATIENCE;
use crate::items::{number, time};
use crate::update::{Expression, Updated};
use crate::{Deadline, Error, Store, keys};

/// How long an environment waits at most, in milliseconds, before it asks again whether a look has ended. Shorter than two
/// looks, and different each time, so that not all who wait begin the next one.
const ASK_AGAIN_MS: u32 = 50;

/// How old a search for overdue holds may be that a look relies on, in milliseconds: what a refusal may be based on, without
/// the time that the rest of a look takes, and others need to see it.
pub(crate) const SEARCH_LIFETIME_MS: i64 = REFUSAL_LIFETIME_MS - 250;
/// Which part of the rest of its life, at most, a finding is remembered shorter: those who share one must not all ask again in
/// the same instant.
const SHORTER: i64 = 4;

/// A look that this environment has begun for all.
#[derive(Debug)]
pub(crate) struct Look {
    product: ProductId,
    number: u64,
    /// All holds that had ended by this time are released, by this look or an earlier one.
    searched: Option<ReadTime>,
    /// How many units it has found with these holds released; `None` if it is not certain, or there are enough.
    free: Option<u64>,
}

impl Look {
    /// As of when the product's overdue holds are known to be released, if that is not long ago.
    pub(crate) fn searched(&self) -> Option<ReadTime> {
        self.searched
    }

    /// Notes that all holds of these products are released that had ended by then.
    pub(crate) fn releases(&mut self, products: &[&Product], as_of: ReadTime) {
        if products.iter().any(|product| product.product_id == self.product) {
            self.searched = Some(as_of);
        }
    }

    /// Notes what it has found.
    pub(crate) fn finds(&mut self, shortages: &[Shortage]) {
        let of_it = shortages.iter().find(|short| short.product_id == self.product);
        self.free = of_it.map(|short| short.available);
    }
}

/// The looks at a product's shards.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Looks {
    /// The number of the last one that began.
    #[serde(default)]
    begun: u64,
    /// The number of the last one that ended.
    #[serde(default)]
    ended: u64,
    /// How many units it found, if they were too few.
    #[serde(default)]
    free: Option<u64>,
    /// All holds that had ended by then were released for it, or for an earlier one, by the clock of the environment that
    /// released them.
    #[serde(default)]
    searched: Option<Timestamp>,
}

impl Looks {
    /// The greatest number that any look has had, also if somebody has written to the item.
    fn last(self) -> u64 {
        self.begun.max(self.ended)
    }

    fn is_under_way(self) -> bool {
        self.begun > self.ended
    }
}

impl Store {
    /// Waits for a look of another environment that begins from now on, and remembers what it found. Returns a look if this
    /// environment must carry it out for others, and [end](Self::end_look) it; `None` if another look answered, or if sharing
    /// failed.
    pub(crate) async fn join_look(&self, product: &ProductId, deadline: Deadline) -> Option<Look> {
        // Dated before the read, so that no look with a greater number began before.
        let asked_at = ReadTime::now(&self.clock);
        match self.wait_for_look(product, asked_at, &mut self.attempts(deadline.sooner(3 * PATIENCE))).await {
            Ok(look) => look,
            Err(error) => {
                // It saves reads, and nothing else depends on it.
                tracing::warn!(%error, "sold-out state not shared; the shards are read directly");
                self.with_cached(product, |cached| cached.look_alone(asked_at));
                None
            }
        }
    }

    async fn wait_for_look(
        &self,
        product: &ProductId,
        asked_at: ReadTime,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Look>, Error> {
        let mut seen: Looks = self.looks(product, attempts).await?;
        let mut last = seen.last();
        let mut since = Instant::now();
        loop {
            if seen.ended > last {
                let (Some(free), Some(searched)) = (seen.free, seen.searched) else { return Ok(None) };
                let found_at = asked_at.not_after(searched);
                let age = self.clock.now().as_millis().saturating_sub(found_at.wall().as_millis());
                let left = REFUSAL_LIFETIME_MS.saturating_sub(age);
                if left > 0 {
                    let shorter = self.random_below(u32::try_from(left / SHORTER).unwrap_or_default());
                    let dated = found_at.earlier(shorter.into());
                    self.with_cached(product, |cached| cached.set_exhausted(dated, free));
                    return Ok(None);
                }
                // It came too late. The next one searches again.
                last = seen.last();
            }
            // Another request of this environment may have found it out.
            if self.with_cached(product, |cached| cached.exhausted(&self.clock)).flatten().is_some() {
                return Ok(None);
            }
            let before = seen;
            // Whoever has begun may be frozen.
            if !seen.is_under_way() || since.elapsed() >= PATIENCE {
                match self.begin_look(product, seen, attempts).await?.read("looks")? {
                    Updated::Applied(Looks { begun: number, searched, .. }) => {
                        let now = ReadTime::now(&self.clock);
                        let searched = searched.filter(|at| at.within(SEARCH_LIFETIME_MS, now.wall()));
                        let searched = searched.map(|at| now.not_after(at));
                        return Ok(Some(Look { product: product.clone(), number, searched, free: None }));
                    }
                    Updated::ConditionFailed(instead) => seen = instead.unwrap_or(seen),
                }
            } else {
                let pause = u64::from(self.random_below(ASK_AGAIN_MS));
                tokio::time::sleep(Duration::from_millis(pause)).await;
                seen = self.looks(product, attempts).await?;
            }
            if seen.begun != before.begun {
                since = Instant::now();
            }
        }
    }

    async fn looks(&self, product: &ProductId, attempts: &mut Attempts<'_>) -> Result<Looks, Error> {
        Ok(self.get("looks", keys::looks(product), attempts.deadline()).await?.unwrap_or_default())
    }

    async fn begin_look(
        &self,
        product: &ProductId,
        seen: Looks,
        attempts: &mut Attempts<'_>,
    ) -> Result<Updated, Error> {
        let update = Expression::new("SET #begun = :next", vec![(":next", number(seen.last() + 1))]);
        let condition = match seen.begun {
            0 => Expression::new("attribute_not_exists(#begun)", vec![]),
            begun => Expression::new("#begun = :begun", vec![(":begun", number(begun))]),
        };
        self.update(&keys::looks(product), (update, condition), attempts).await
    }

    /// Tells the other environments what a look has found.
    pub(crate) async fn end_look(&self, look: Look, deadline: Deadline) {
        let Look { product, number: ended, searched, free } = look;
        let mut values = vec![(":ended", number(ended))];
        values.extend(searched.map(|at| (":searched", time(at.wall()))));
        let text = match (searched, free) {
            (Some(_), Some(free)) => {
                values.push((":free", number(free)));
                "SET #ended = :ended, #searched = :searched, #free = :free"
            }
            (Some(_), None) => "SET #ended = :ended, #searched = :searched REMOVE #free",
            (None, _) => "SET #ended = :ended REMOVE #free",
        };
        // Not if a later one has ended before, or if the numbers have gone back because somebody deleted the item.
        let condition = "#begun >= :ended AND (attribute_not_exists(#ended) OR #ended < :ended)";
        let change = (Expression::new(text, values), Expression::new(condition, vec![]));
        let told = self.update(&keys::looks(&product), change, &mut self.attempts(deadline.sooner(PATIENCE))).await;
        if let Err(error) = told {
            // Those who wait for it look for themselves after a while.
            tracing::warn!(%error, "sold-out state not shared; the shards are read directly");
        }
    }
}
