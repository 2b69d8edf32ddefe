//! The stock of products for admins: as it is now, with all holds counted, or, with too many of them, as the catalogue shows it.
//! What many read is in `views`.

use std::collections::{BTreeMap, HashMap};

use holdfast_domain::{Product, ProductId, Stock, Timestamp};
use serde::Deserialize;

use crate::items::text;
use crate::{Deadline, Error, Store, items, keys};

/// How many pages of the index `due`, of a megabyte each, are read to count all holds: about 20,000 holds, if there are few failed
/// confirmations, which are in it too.
const PAGES_OF_HOLDS: usize = 10;

/// The stock of a product.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counted {
    /// Where its units are.
    pub stock: Stock,
    /// If there are too many holds to count them now: when its available units were read, and when its holds were counted, as
    /// in [`Shown`](crate::Shown).
    pub as_of: Option<(Timestamp, Timestamp)>,
}

/// The part of a hold in the index `due` that says where units are.
#[derive(Debug, Deserialize)]
pub(crate) struct DueHold {
    pub(crate) pk: String,
    pub(crate) due_at: Timestamp,
    lines: Vec<DueLine>,
}

#[derive(Debug, Deserialize)]
struct DueLine {
    product_id: ProductId,
    quantity: u32,
}

impl DueHold {
    /// How many units of a product it has.
    pub(crate) fn units_of(&self, product: &ProductId) -> u64 {
        self.lines.iter().filter(|line| line.product_id == *product).map(|line| u64::from(line.quantity)).sum()
    }
}

/// Units of a product in holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Not overdue.
    reserved: u64,
    /// Overdue, and not yet released.
    overdue: u64,
}

impl Store {
    /// The stock of these products. Its parts are read one after another, so concurrent sales may be counted twice or not at
    /// all; `sold` is the rest of the total, and never negative. If the index of holds has more than ten megabytes, it is as the
    /// catalogue shows it, so that its cost does not grow with them.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn stock(
        &self,
        products: &[&Product],
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Counted>, Error> {
        let Some(held) = self.held(deadline).await? else {
            return self.stock_as_shown(products, deadline).await;
        };
        let shards = self.shards(products, deadline).await?;
        let stock = products.iter().map(|product| {
            let id = &product.product_id;
            let free: u64 = shards.get(id).map(|units| units.iter().sum()).unwrap_or_default();
            let Held { reserved, overdue } = held.get(id).copied().unwrap_or_default();
            let available = free.saturating_add(overdue).min(product.total);
            let sold = product.total.saturating_sub(available).saturating_sub(reserved);
            (id.clone(), Counted { stock: Stock { available, reserved, sold }, as_of: None })
        });
        Ok(stock.collect())
    }

    /// The units of all holds, by product: everything in the index `due`, by a scan, which needs a call for each megabyte instead of
    /// one for each partition. `None` if it is more than [`PAGES_OF_HOLDS`].
    async fn held(&self, deadline: Deadline) -> Result<Option<HashMap<ProductId, Held>>, Error> {
        let request = self
            .client
            .scan()
            .index_name(keys::DUE_INDEX)
            // Not failed confirmations.
            .filter_expression("begins_with(#due_key, :holds)")
            .expression_attribute_names("#due_key", keys::DUE_KEY)
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_names("#due_at", keys::DUE_AT)
            .expression_attribute_names("#lines", "lines")
            .expression_attribute_values(":holds", text("DUE#"))
            .projection_expression("#pk, #due_at, #lines");
        let mut units: HashMap<ProductId, Held> = HashMap::new();
        // By reservation: one that is extended between two pages is on both, and its later end is the newer.
        let mut holds: HashMap<String, DueHold> = HashMap::new();
        let (mut start, mut pages) = (None, 0);
        loop {
            let (found, next) = self.scan(request.clone().set_exclusive_start_key(start), deadline).await?;
            for item in found {
                let hold: DueHold = items::read("hold", item)?;
                holds.insert(hold.pk.clone(), hold);
            }
            pages += 1;
            if next.is_none() {
                break;
            }
            if pages == PAGES_OF_HOLDS {
                return Ok(None);
            }
            start = next;
        }
        let now = self.clock.now();
        for hold in holds.into_values() {
            for line in hold.lines {
                let held = units.entry(line.product_id).or_default();
                let quantity = u64::from(line.quantity);
                if hold.due_at <= now {
                    held.overdue += quantity;
                } else {
                    held.reserved += quantity;
                }
            }
        }
        Ok(Some(units))
    }
}
