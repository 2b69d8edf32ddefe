//! How environments share what they find out about a product that is sold out.
//!
//! Each environment may refuse for a second by what it knows, and must then look at all shards again. With many environments
//! those looks would cost more than the sale. So an environment that has refused before waits for a look that another one
//! begins, or begins one that serves all who come meanwhile: of each product about one is under way at a time.
//!
//! How old a look is does not depend on another environment's clock. Looks are numbered when they begin, in an item of the
//! product. An environment reads the last number, and notes when it asked. A look with a greater number began after that; what
//! it finds is as good as if this environment had looked itself when it asked. Only which holds were overdue depends on the
//! clock of the one that looked: if that is behind this one's, what it found is taken for that much older.

use std::time::Duration;

use holdfast_domain::{ProductId, Shortage, Timestamp};
use serde::Deserialize;
use tokio::time::Instant;

use crate::cache::ReadTime;
use crate::error::Attempts;
use crate::gate::PATIENCE;
use crate::items::number;
use crate::update::{Expression, Updated};
use crate::{Deadline, Error, Store, keys};

/// How long an environment waits at most, in milliseconds, before it asks again whether a look has ended. Shorter than two
/// looks, and different each time, so that not all who wait begin the next one.
const ASK_AGAIN_MS: u32 = 50;

/// A look that this environment has begun for all.
#[derive(Debug)]
pub(crate) struct Look {
    product: ProductId,
    number: u64,
    /// How many units it has found, with all holds released that were overdue at that time; `None` if it is not certain, or
    /// there are enough.
    found: Option<(u64, Timestamp)>,
}

impl Look {
    /// Notes what it has found.
    pub(crate) fn finds(&mut self, shortages: &[Shortage], released_at: impl Fn(&Shortage) -> Option<Timestamp>) {
        let of_it = shortages.iter().find(|short| short.product_id == self.product);
        self.found = of_it.and_then(|short| Some((short.available, released_at(short)?)));
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
    /// How many units it found.
    #[serde(default)]
    free: Option<u64>,
    /// When holds that were overdue were released for it, by the clock of the environment that looked.
    #[serde(default)]
    at: Option<Timestamp>,
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
                tracing::warn!(%error, "what is sold out is not shared");
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
        let last = seen.last();
        let mut since = Instant::now();
        loop {
            if seen.ended > last {
                if let (Some(free), Some(at)) = (seen.free, seen.at) {
                    self.with_cached(product, |cached| cached.set_exhausted(asked_at.not_after(at), free));
                }
                return Ok(None);
            }
            // Another request of this environment may have found it out.
            if self.with_cached(product, |cached| cached.exhausted(&self.clock)).flatten().is_some() {
                return Ok(None);
            }
            let before = seen;
            // Whoever has begun may be frozen.
            if !seen.is_under_way() || since.elapsed() >= PATIENCE {
                match self.begin_look(product, seen, attempts).await?.read("looks")? {
                    Updated::Applied(Looks { begun: number, .. }) => {
                        return Ok(Some(Look { product: product.clone(), number, found: None }));
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
    pub(crate) async fn end_look(&self, Look { product, number: ended, found }: Look, deadline: Deadline) {
        let mut values = vec![(":ended", number(ended))];
        let text = match found {
            Some((free, at)) => {
                values.extend([(":free", number(free)), (":at", number(at.as_millis()))]);
                "SET #ended = :ended, #free = :free, #at = :at"
            }
            None => "SET #ended = :ended REMOVE #free, #at",
        };
        // Not if a later one has ended before, or if the numbers have gone back because somebody deleted the item.
        let condition = "#begun >= :ended AND (attribute_not_exists(#ended) OR #ended < :ended)";
        let change = (Expression::new(text, values), Expression::new(condition, vec![]));
        let told = self.update(&keys::looks(&product), change, &mut self.attempts(deadline.sooner(PATIENCE))).await;
        if let Err(error) = told {
            // Those who wait for it look for themselves after a while.
            tracing::warn!(%error, "what is sold out is not shared");
        }
    }
}
