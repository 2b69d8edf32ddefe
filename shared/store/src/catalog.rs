//! The catalogue: products with their stock, for readers.
//!
//! What is shown may be a second old, so that many readers cost one read of the table. No reservation is decided on it.

use std::collections::{BTreeMap, HashMap};

use holdfast_domain::{Product, ProductId, ProductStatus, Stock, Timestamp};
use serde::Deserialize;

use crate::cache::ReadTime;
use crate::items::text;
use crate::{Cursor, Deadline, Error, Page, Store, items, keys};

/// How old the answers of [`Store::product_with_stock`] and [`Store::products_with_stock`] may be, in milliseconds.
const SNAPSHOT_LIFETIME_MS: i64 = 1_000;

/// Units of a product in holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Not overdue.
    reserved: u64,
    /// Overdue, and not yet released.
    overdue: u64,
}

/// All holds as an environment counted them at one time, and the products that it has read since then. A product is kept
/// together with its stock, so that the units add up to the total that is shown with them.
#[derive(Debug, Default)]
pub(crate) struct CatalogSnapshot {
    read_at: Option<ReadTime>,
    held: HashMap<ProductId, Held>,
    products: HashMap<ProductId, (Product, Stock)>,
}

impl Store {
    /// One product and its stock, as they were at most a second ago.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`](holdfast_domain::Refusal::ProductNotFound); [`Error::Unavailable`] without an answer within the deadline.
    pub async fn product_with_stock(&self, id: &ProductId, deadline: Deadline) -> Result<(Product, Stock), Error> {
        let mut snapshot = self.catalog_snapshot(deadline).await?;
        if let Some(known) = snapshot.products.get(id) {
            return Ok(known.clone());
        }
        let product = self.product(id, deadline).await?;
        let mut read = self.add_stock(&mut snapshot, vec![product], deadline).await?;
        read.pop().ok_or_else(|| Error::internal("product", "it was read, and is not there"))
    }

    /// A page of all products that are not archived, in the order of their ids, each with its stock, as they were at most a
    /// second ago.
    ///
    /// # Errors
    /// As [`Store::products`].
    pub async fn products_with_stock(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<(Product, Stock)>, Error> {
        let (page, mut snapshot) = loop {
            let read_at = ReadTime::now(&self.clock);
            let page = self.products(limit, cursor.clone(), deadline).await?;
            let snapshot = self.catalog_snapshot(deadline).await?;
            // If the environment was frozen in between, the page is too old for the snapshot.
            if read_at.within(SNAPSHOT_LIFETIME_MS, &self.clock) || deadline.passed() {
                break (page, snapshot);
            }
        };
        let mut items = self.add_stock(&mut snapshot, page.items, deadline).await?;
        items.retain(|(product, _)| product.status != ProductStatus::Archived);
        Ok(Page { items, next: page.next })
    }

    /// The snapshot, with all holds counted within the last second. While one request counts them, the others of this
    /// environment wait for the result.
    async fn catalog_snapshot(
        &self,
        deadline: Deadline,
    ) -> Result<tokio::sync::MutexGuard<'_, CatalogSnapshot>, Error> {
        let mut snapshot = self.attempts(deadline).call(self.catalog.lock()).await?;
        if snapshot.read_at.is_none_or(|at| !at.within(SNAPSHOT_LIFETIME_MS, &self.clock)) {
            // Dated before the read, so that the result is never older than its date.
            let read_at = Some(ReadTime::now(&self.clock));
            *snapshot = CatalogSnapshot { held: self.held(deadline).await?, products: HashMap::new(), read_at };
        }
        Ok(snapshot)
    }

    /// These products with their stock: from the snapshot, or read now and added to it.
    async fn add_stock(
        &self,
        snapshot: &mut CatalogSnapshot,
        products: Vec<Product>,
        deadline: Deadline,
    ) -> Result<Vec<(Product, Stock)>, Error> {
        let missing: Vec<&Product> =
            products.iter().filter(|product| !snapshot.products.contains_key(&product.product_id)).collect();
        if !missing.is_empty() {
            let mut stock = self.stock_beside(&snapshot.held, &missing, deadline).await?;
            for product in missing {
                let stock = stock.remove(&product.product_id).unwrap_or_default();
                snapshot.products.insert(product.product_id.clone(), (product.clone(), stock));
            }
        }
        Ok(products.iter().filter_map(|product| snapshot.products.get(&product.product_id).cloned()).collect())
    }

    /// The stock of these products. Its parts are read one after another, so concurrent sales may be counted twice or not at
    /// all; `sold` is the rest of the total, and never negative.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn stock(&self, products: &[&Product], deadline: Deadline) -> Result<BTreeMap<ProductId, Stock>, Error> {
        self.stock_beside(&self.held(deadline).await?, products, deadline).await
    }

    /// The stock of these products, given all holds.
    async fn stock_beside(
        &self,
        held: &HashMap<ProductId, Held>,
        products: &[&Product],
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Stock>, Error> {
        let shards = self.shards(products, deadline).await?;
        let stock = products.iter().map(|product| {
            let id = &product.product_id;
            let free: u64 = shards.get(id).map(|units| units.iter().sum()).unwrap_or_default();
            let Held { reserved, overdue } = held.get(id).copied().unwrap_or_default();
            let available = free.saturating_add(overdue).min(product.total);
            let sold = product.total.saturating_sub(available).saturating_sub(reserved);
            (id.clone(), Stock { available, reserved, sold })
        });
        Ok(stock.collect())
    }

    /// The units of all holds, by product: everything in the index `due`, by a scan, which needs a call for each megabyte instead of
    /// one for each partition.
    async fn held(&self, deadline: Deadline) -> Result<HashMap<ProductId, Held>, Error> {
        /// The part of a hold that is needed here.
        #[derive(Deserialize)]
        struct DueHold {
            pk: String,
            due_at: Timestamp,
            lines: Vec<DueLine>,
        }
        #[derive(Deserialize)]
        struct DueLine {
            product_id: ProductId,
            quantity: u32,
        }
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
        let add = |item| {
            let hold: DueHold = items::read("hold", item)?;
            holds.insert(hold.pk.clone(), hold);
            Ok(())
        };
        self.scan_each(request, deadline, add).await?;
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
        Ok(units)
    }
}
