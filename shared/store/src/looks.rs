//! How environments share what they find out about a product that is sold out.
//!
//! Each environment may refuse for a second by what it knows, and must then look at all shards again. With many environments
//! those looks would cost more than the sale. So an environment that has refused before waits for a look that another one
//! begins, or begins one that serves all who come meanwhile: of each product about one is under way at a time.
//!
//! How old a look is does not depend on another environment's clock. Looks are numbered when they begin, in an item of the
//! product. An environment reads the last number, and notes when it asked. A look with a greater number began after that; what
//! it finds is as good as if this environment had looked itself when it asked. Only which holds were overdue depends on the
//! clock of the one that looked: if that is far behind this one's, what it found is not used.

use std::time::Duration;

use holdfast_domain::{ProductId, Timestamp};
use serde::Deserialize;

use crate::cache::{REFUSAL_LIFETIME_MS, ReadTime};
use crate::error::Attempts;
use crate::gate::PATIENCE;
use crate::items::number;
use crate::update::{Expression, Updated};
use crate::{Deadline, Error, Store, keys};

/// How often an environment asks whether the look that it waits for has ended: some looks of 30 ms a read.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// A look that this environment has begun for all.
#[derive(Debug)]
pub(crate) struct Look {
    product: ProductId,
    number: u64,
}

impl Look {
    /// At whose shards.
    pub(crate) fn product(&self) -> &ProductId {
        &self.product
    }
}

/// The looks at a product's shards.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
struct Looks {
    /// The number of the last one that began.
    begun: u64,
    /// The number of the last one that ended.
    #[serde(default)]
    ended: u64,
    /// How many units it found, with all overdue holds released; `None` if it was not certain, or there were enough.
    #[serde(default)]
    free: Option<u64>,
    /// The time by the clock of the environment that looked.
    #[serde(default)]
    at: Option<Timestamp>,
}

impl Looks {
    /// How many units were free after `asked_at`, if that is certain.
    fn free_after(self, asked: Self, asked_at: ReadTime) -> Option<u64> {
        let in_time = self.at.is_some_and(|at| !asked_at.is_after(at, REFUSAL_LIFETIME_MS));
        self.free.filter(|_| self.ended > asked.begun && in_time)
    }
}

impl Store {
    /// Waits for a look of another environment that begins from now on, and remembers what it found; or begins one. `None` if
    /// there is none to carry out for others.
    pub(crate) async fn join_look(&self, product: &ProductId, deadline: Deadline) -> Result<Option<Look>, Error> {
        let mut attempts = self.attempts(deadline.sooner(2 * PATIENCE));
        match self.wait_for_look(product, &mut attempts).await {
            // Sharing is a courtesy: without an answer this environment looks for itself.
            Err(Error::Unavailable { .. }) => Ok(None),
            other => other,
        }
    }

    async fn wait_for_look(&self, product: &ProductId, attempts: &mut Attempts<'_>) -> Result<Option<Look>, Error> {
        // Dated before the read, so that no look with a greater number began before.
        let asked_at = ReadTime::now(&self.clock);
        let asked = self.looks(product, attempts).await?;
        let mut seen = asked;
        loop {
            if seen.ended > asked.begun {
                if let Some(free) = seen.free_after(asked, asked_at) {
                    self.with_cached(product, |cached| cached.set_exhausted(asked_at, free));
                }
                return Ok(None);
            }
            // Whoever has begun may be frozen.
            let late = attempts.deadline().left() < PATIENCE;
            if seen.begun == seen.ended || late {
                match self.begin_look(product, seen.begun, attempts).await? {
                    Updated::Applied(_) => {
                        return Ok(Some(Look { product: product.clone(), number: seen.begun + 1 }));
                    }
                    Updated::ConditionFailed(_) if late => return Ok(None),
                    // Another environment has begun.
                    Updated::ConditionFailed(_) => {}
                }
            }
            tokio::time::sleep(ASK_EVERY).await;
            seen = self.looks(product, attempts).await?;
        }
    }

    async fn looks(&self, product: &ProductId, attempts: &mut Attempts<'_>) -> Result<Looks, Error> {
        Ok(self.get("looks", keys::looks(product), attempts.deadline()).await?.unwrap_or_default())
    }

    async fn begin_look(&self, product: &ProductId, last: u64, attempts: &mut Attempts<'_>) -> Result<Updated, Error> {
        let update = Expression::new("SET #begun = :next", vec![(":next", number(last + 1))]);
        let condition = if last == 0 {
            Expression::new("attribute_not_exists(#pk)", vec![])
        } else {
            Expression::new("#begun = :last", vec![(":last", number(last))])
        };
        self.update(&keys::looks(product), (update, condition), attempts).await
    }

    /// Tells the other environments how many units a look has found; `None` if that is not certain, or if there were enough.
    pub(crate) async fn end_look(
        &self,
        Look { product, number: ended }: Look,
        free: Option<u64>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let mut values = vec![(":ended", number(ended)), (":at", number(now.as_millis()))];
        let text = match free {
            Some(free) => {
                values.push((":free", number(free)));
                "SET #ended = :ended, #at = :at, #free = :free"
            }
            None => "SET #ended = :ended, #at = :at REMOVE #free",
        };
        let condition = Expression::new("attribute_not_exists(#ended) OR #ended < :ended", vec![]);
        let change = (Expression::new(text, values), condition);
        // If the condition fails, a later look has ended before this one.
        let told = self.update(&keys::looks(&product), change, &mut self.attempts(deadline.sooner(PATIENCE))).await;
        match told {
            // Those who wait look for themselves.
            Ok(_) | Err(Error::Unavailable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
