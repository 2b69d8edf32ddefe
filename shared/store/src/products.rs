//! Products, what is remembered of them, and how much of each is free and held.

use std::collections::{BTreeMap, HashMap};

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValue, ReturnValuesOnConditionCheckFailure};
use futures_util::future::try_join_all;
use holdfast_domain::{Clock, Product, ProductChange, ProductId, Refusal, Timestamp, shards};
use serde::Deserialize;
use tokio::time::Instant;

use crate::error::{Fault, fault};
use crate::items::{self, number, text};
use crate::page::Part;
use crate::stock::LedgerEntry;
use crate::transact::{Cancelled, Reason, Transaction, contention_fault};
use crate::{Cursor, Deadline, Error, Page, Store, keys, lock};

/// How long an environment trusts the facts of a product without reading them, in milliseconds. A newer version on a
/// shard overrules them at once, so this only bounds how often they are read.
pub(crate) const FACTS_LIFETIME_MS: i64 = 5_000;
/// How old what an environment remembers may be where somebody is refused for it, in milliseconds: no shard is asked
/// then. It applies to facts ("not on sale") as to stock ("sold out"), and keeps a herd from reading.
pub(crate) const REFUSAL_LIFETIME_MS: i64 = 1_000;

/// When something was read. Its age is the greater one by two clocks: the wall clock may be set back, and a monotonic one
/// stands still while Lambda freezes the environment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dated {
    wall: Timestamp,
    monotonic: Instant,
}

impl Dated {
    pub(crate) fn now(clock: &Clock) -> Self {
        Self { wall: clock.now(), monotonic: Instant::now() }
    }

    /// Whether it is less than so many milliseconds old.
    pub(crate) fn within(self, millis: i64, clock: &Clock) -> bool {
        let elapsed = i64::try_from(self.monotonic.elapsed().as_millis()).unwrap_or(i64::MAX);
        elapsed < millis && self.wall.within(millis, clock.now())
    }
}

/// What an environment remembers of a product.
#[derive(Debug)]
pub(crate) struct CachedProduct {
    product: Product,
    /// When its facts were read; nothing where they have to be read before they count.
    read_at: Option<Dated>,
    home: u32,
    available: Vec<Option<u64>>,
    /// When all shards were last seen to have no more than is remembered, after all that was overdue was released.
    pub(crate) exhausted_at: Option<Dated>,
    /// When overdue holds of it were looked for, and until when none ends.
    pub(crate) no_overdue: Option<(Dated, Timestamp)>,
}

impl CachedProduct {
    pub(crate) fn choose(&self, quantity: u32) -> Option<Vec<holdfast_domain::Take>> {
        shards::choose(quantity, &self.available, self.home)
    }

    pub(crate) fn free(&self) -> u64 {
        self.available.iter().flatten().sum()
    }

    pub(crate) fn set_stock(&mut self, available: Vec<u64>) {
        self.available = available.into_iter().map(Some).collect();
    }

    pub(crate) fn saw(&mut self, shard: u32, available: u64) {
        if let Some(units) = self.available.get_mut(shard as usize) {
            *units = Some(available);
        }
    }

    pub(crate) fn took(&mut self, shard: u32, units: u32) {
        if let Some(Some(available)) = self.available.get_mut(shard as usize) {
            *available = available.saturating_sub(u64::from(units));
        }
    }

    /// "Sold out" is no longer certain: the next one has to read the shards.
    pub(crate) fn invalidate_stock(&mut self) {
        self.exhausted_at = None;
    }

    pub(crate) fn move_home(&mut self, home: u32) {
        self.home = home;
    }
}

/// How much of a product is where, by the clock: units of a hold whose time is over are available, also where nobody has
/// released it yet, since whoever asks for them gets them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stock {
    /// Units that may be reserved.
    pub available: u64,
    /// Units in holds.
    pub reserved: u64,
    /// Units in orders.
    pub sold: u64,
}

/// How old what [`Store::product_lately`] and [`Store::products_lately`] say may be, in milliseconds.
const SNAPSHOT_LIFETIME_MS: i64 = 1_000;

/// Units of a product in holds.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    /// Their time is not over.
    reserved: u64,
    /// Their time is over, and nobody has released them yet.
    overdue: u64,
}

/// What an environment read of the products and their stock at one time, and since then: for those who only look. A
/// product is kept together with its stock, so that the units add up to the total that is shown with them.
#[derive(Debug, Default)]
pub(crate) struct CatalogSnapshot {
    read_at: Option<Dated>,
    held: HashMap<ProductId, Held>,
    products: HashMap<ProductId, (Product, Stock)>,
}

impl Store {
    /// The facts of these products, read where they are not remembered or older than `max_age_ms`. Unknown ones are left
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
        // Before the reading: what it says may be as old as that.
        let read_at = Dated::now(&self.clock);
        for item in self.get_many(missing, deadline).await? {
            let product: Product = items::read("product", item)?;
            self.remember(&product, Some(read_at));
            facts.insert(product.product_id.clone(), product);
        }
        Ok(facts)
    }

    fn remember(&self, product: &Product, read_at: Option<Dated>) {
        let home = self.random_below(product.shards);
        let mut cached = lock(&self.cached);
        let entry = cached.entry(product.product_id.clone()).or_insert_with(|| CachedProduct {
            product: product.clone(),
            read_at,
            home,
            available: vec![None; product.shards as usize],
            exhausted_at: None,
            no_overdue: None,
        });
        entry.product = product.clone();
        entry.read_at = read_at;
    }

    /// Makes sure that something is remembered of a product, if only that it exists: its facts are read when they count.
    pub(crate) fn ensure_cached(&self, product: &Product) {
        if !lock(&self.cached).contains_key(&product.product_id) {
            self.remember(product, None);
        }
    }

    /// Forgets a product: the next request reads its facts.
    pub(crate) fn forget(&self, id: &ProductId) {
        lock(&self.cached).remove(id);
    }

    /// What is remembered of a product whose facts were just read.
    pub(crate) fn with_cached<T>(&self, id: &ProductId, look: impl FnOnce(&mut CachedProduct) -> T) -> Option<T> {
        lock(&self.cached).get_mut(id).map(look)
    }

    /// One product, as it is now.
    pub async fn product(&self, id: &ProductId, deadline: Deadline) -> Result<Product, Error> {
        match self.get(keys::product(id), deadline).await? {
            Some(item) => items::read("product", item),
            None => Err(Refusal::ProductNotFound { product_id: id.clone() }.into()),
        }
    }

    /// A page of all products, in the order of their ids.
    pub async fn products(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Product>, Error> {
        let parts = [(keys::PK, Part::Is(keys::CATALOG)), (keys::SK, Part::Begins(keys::PRODUCT_PREFIX))];
        let start = cursor.map(|cursor| cursor.over(&parts)).transpose()?;
        let request = self
            .client
            .query()
            .key_condition_expression("#pk = :catalog AND begins_with(#sk, :prefix)")
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_names("#sk", keys::SK)
            .expression_attribute_values(":catalog", text(keys::CATALOG))
            .expression_attribute_values(":prefix", text(keys::PRODUCT_PREFIX))
            .consistent_read(true)
            .limit(i32::try_from(limit).unwrap_or(i32::MAX))
            .set_exclusive_start_key(start);
        let (found, next) = self.query(request, deadline).await?;
        let products = found.into_iter().map(|item| items::read("product", item));
        Ok(Page { items: products.collect::<Result<_, _>>()?, next: next.map(Cursor::new) })
    }

    /// One product and its stock, as they were at most a second ago.
    pub async fn product_lately(&self, id: &ProductId, deadline: Deadline) -> Result<(Product, Stock), Error> {
        let mut lately = self.lately(deadline).await?;
        if let Some(known) = lately.products.get(id) {
            return Ok(known.clone());
        }
        let product = self.product(id, deadline).await?;
        let mut read = self.read_lately(&mut lately, vec![product], deadline).await?;
        read.pop().ok_or_else(|| Error::internal("product", "it was read, and is not there"))
    }

    /// A page of all products, in the order of their ids, each with its stock, as they were at most a second ago.
    pub async fn products_lately(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<(Product, Stock)>, Error> {
        let (page, mut lately) = loop {
            let read_at = Dated::now(&self.clock);
            let page = self.products(limit, cursor.clone(), deadline).await?;
            let lately = self.lately(deadline).await?;
            // Where the environment was frozen in between, the page is older than what it would be remembered with.
            if read_at.within(SNAPSHOT_LIFETIME_MS, &self.clock) || deadline.passed() {
                break (page, lately);
            }
        };
        Ok(Page { items: self.read_lately(&mut lately, page.items, deadline).await?, next: page.next })
    }

    /// What is remembered, with all holds counted within the last second. While one request counts them the others of
    /// this environment wait for its count: a herd of readers reads once.
    async fn lately(&self, deadline: Deadline) -> Result<tokio::sync::MutexGuard<'_, CatalogSnapshot>, Error> {
        let mut lately = self.attempts(deadline).call(self.catalog.lock()).await?;
        if lately.read_at.is_none_or(|at| !at.within(SNAPSHOT_LIFETIME_MS, &self.clock)) {
            // Before the reading: what it says may be as old as that.
            let read_at = Some(Dated::now(&self.clock));
            *lately = CatalogSnapshot { held: self.held(deadline).await?, products: HashMap::new(), read_at };
        }
        Ok(lately)
    }

    /// These products with their stock: remembered, or read now and remembered.
    async fn read_lately(
        &self,
        lately: &mut CatalogSnapshot,
        products: Vec<Product>,
        deadline: Deadline,
    ) -> Result<Vec<(Product, Stock)>, Error> {
        let missing: Vec<&Product> =
            products.iter().filter(|product| !lately.products.contains_key(&product.product_id)).collect();
        if !missing.is_empty() {
            let mut stock = self.stock_beside(&lately.held, &missing, deadline).await?;
            for product in missing {
                let stock = stock.remove(&product.product_id).unwrap_or_default();
                lately.products.insert(product.product_id.clone(), (product.clone(), stock));
            }
        }
        Ok(products.iter().filter_map(|product| lately.products.get(&product.product_id).cloned()).collect())
    }

    /// Where the units of these products are. The parts are read one after another while sales go on, so under way
    /// they may be a moment apart; `sold` is what is left of the total, and never negative.
    pub async fn stock(&self, products: &[&Product], deadline: Deadline) -> Result<BTreeMap<ProductId, Stock>, Error> {
        self.stock_beside(&self.held(deadline).await?, products, deadline).await
    }

    /// Where the units are that are not in these holds.
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

    /// The units of all holds, by product: everything in the index `due`.
    async fn held(&self, deadline: Deadline) -> Result<HashMap<ProductId, Held>, Error> {
        /// Only the part of a hold that counts here.
        #[derive(Deserialize)]
        struct DueHold {
            due_at: Timestamp,
            lines: Vec<DueLine>,
        }
        #[derive(Deserialize)]
        struct DueLine {
            product_id: ProductId,
            quantity: u32,
        }
        let partition = async |k: u32| -> Result<Vec<DueHold>, Error> {
            let request = self
                .client
                .query()
                .index_name(keys::DUE_INDEX)
                .key_condition_expression("#due_key = :key")
                .expression_attribute_names("#due_key", keys::DUE_KEY)
                .expression_attribute_names("#due_at", keys::DUE_AT)
                .expression_attribute_names("#lines", "lines")
                .expression_attribute_values(":key", text(keys::due_key(k)))
                .projection_expression("#due_at, #lines");
            let mut start = None;
            let mut found = Vec::new();
            loop {
                let (items, next) = self.query(request.clone().set_exclusive_start_key(start), deadline).await?;
                for item in items {
                    found.push(items::read("hold", item)?);
                }
                if next.is_none() {
                    return Ok(found);
                }
                start = next;
            }
        };
        let mut units: HashMap<ProductId, Held> = HashMap::new();
        let holds = try_join_all((0..self.due_partitions).map(partition)).await?;
        let now = self.clock.now();
        for hold in holds.into_iter().flatten() {
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

    /// Makes a product with its stock, and the first entry of its ledger.
    ///
    /// # Errors
    /// [`Refusal::ProductExists`].
    pub async fn create_product(
        &self,
        product: &Product,
        actor: &str,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<(), Error> {
        let id = &product.product_id;
        let dealt = shards::deal(product.total, product.shards, 0);
        let mut transaction = Transaction::new();
        let absent = "attribute_not_exists(#pk)";
        transaction.put((), &self.table, items::product(product)?, absent)?;
        for shard in 0..product.shards {
            let units = dealt.iter().find(|take| take.shard == shard).map_or(0, |take| take.units);
            let mut item = keys::shard(id, shard).item();
            item.insert("available".to_owned(), number(units));
            item.insert("product_version".to_owned(), number(product.version));
            transaction.put((), &self.table, item, absent)?;
        }
        let entry = LedgerEntry::opening(product, actor, now);
        transaction.put((), &self.table, entry.item(id)?, absent)?;
        let mut attempts = self.attempts(deadline);
        loop {
            match self.transact(&transaction, &mut attempts).await? {
                Ok(()) => return Ok(()),
                Err(Cancelled::Fault(fault)) => attempts.pause(fault).await?,
                Err(Cancelled::Because(reasons)) => {
                    let exists = reasons.iter().any(|(_, reason)| matches!(reason, Reason::Condition(_)));
                    if !exists {
                        attempts.pause(contention_fault(&reasons)).await?;
                    } else if attempts.ambiguous {
                        // Our own earlier try may have been applied, and its answer lost. The product may have been
                        // changed since; the first entry of its ledger never is.
                        let opening = self.get(keys::ledger(id, &entry.entry_id), deadline).await?;
                        let opening = opening.map(|item| items::read::<LedgerEntry>("ledger", item)).transpose()?;
                        if opening.is_some_and(|opening| opening == entry) {
                            return Ok(());
                        }
                        return Err(Refusal::ProductExists { product_id: id.clone() }.into());
                    } else {
                        return Err(Refusal::ProductExists { product_id: id.clone() }.into());
                    }
                }
            }
        }
    }

    /// Changes a product that is still at version `seen`. When this returns, nobody reserves on the old facts: the
    /// product is written first, and then every shard is raised to its version.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`], [`Refusal::VersionMismatch`], `Invalid`. Where the version differs the shards are
    /// raised all the same, so that a change that was cut off half-way is completed by its repetition.
    pub async fn change_product(
        &self,
        id: &ProductId,
        seen: u64,
        change: ProductChange,
        deadline: Deadline,
    ) -> Result<Product, Error> {
        let current = self.product(id, deadline).await?;
        if current.version != seen {
            self.raise_shards(&current, deadline).await?;
            return Err(Refusal::VersionMismatch { current: current.version }.into());
        }
        let changed = current.changed(change)?;
        let mut attempts = self.attempts(deadline);
        let (changed, read_at) = loop {
            let read_at = Dated::now(&self.clock);
            match self.write_facts(&changed, seen, &mut attempts).await? {
                Ok(changed) => break (changed, read_at),
                Err(fault) => attempts.pause(fault).await?,
            }
        };
        self.raise_shards(&changed, deadline).await?;
        self.remember(&changed, Some(read_at));
        Ok(changed)
    }

    /// Writes everything of `product` but its total, which only adjustments touch. Returns it with the total that it has at
    /// that moment, and never with what somebody else has changed since.
    async fn write_facts(
        &self,
        product: &Product,
        seen: u64,
        attempts: &mut crate::error::Attempts<'_>,
    ) -> Result<Result<Product, Fault>, Error> {
        const OPTIONAL: [&str; 3] = ["max_per_customer", "sale_starts_at", "sale_ends_at"];
        const ALWAYS: [&str; 6] = ["name", "price_minor", "hold_seconds", "late_payment_seconds", "status", "version"];
        let item = items::product(product)?;
        let (set, remove): (Vec<&str>, Vec<&str>) =
            ALWAYS.iter().chain(&OPTIONAL).partition(|&&name| item.contains_key(name));
        let sets: Vec<String> = set.iter().map(|name| format!("#{name} = :{name}")).collect();
        let mut update = format!("SET {}", sets.join(", "));
        if !remove.is_empty() {
            let removes: Vec<String> = remove.iter().map(|name| format!("#{name}")).collect();
            update = format!("{update} REMOVE {}", removes.join(", "));
        }
        let condition = "#version = :seen";
        let mut values: HashMap<String, AttributeValue> =
            set.iter().filter_map(|&name| Some((format!(":{name}"), item.get(name)?.clone()))).collect();
        values.insert(":seen".to_owned(), number(seen));
        let request = self
            .client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(keys::product(&product.product_id).item()))
            .update_expression(&update)
            .condition_expression(condition)
            .set_expression_attribute_names(Some(crate::transact::names(&[&update, condition])))
            .set_expression_attribute_values(Some(values))
            .return_values(ReturnValue::AllNew);
        match attempts.call(request.send()).await? {
            Ok(updated) => {
                let item = updated.attributes.ok_or_else(|| Error::internal("UpdateItem", "it has no attributes"))?;
                Ok(Ok(items::read("product", item)?))
            }
            Err(error)
                if error.as_service_error().is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
            {
                let current = self.product(&product.product_id, attempts.deadline()).await?;
                // It may be our own write: the SDK repeats a call whose answer was lost, and says nothing of it. If it
                // is another's, it is the very same change, made on the same version.
                if (Product { total: product.total, ..current.clone() }) == *product {
                    return Ok(Ok(current));
                }
                self.raise_shards(&current, attempts.deadline()).await?;
                if attempts.ambiguous {
                    // An earlier try may have been applied, and changed again by somebody else.
                    return Err(attempts.unavailable("change product"));
                }
                Err(Refusal::VersionMismatch { current: current.version }.into())
            }
            Err(error) => Ok(Err(fault("UpdateItem", &error))),
        }
    }

    /// Raises every shard to the product's version, so that no reservation on older facts passes its condition.
    async fn raise_shards(&self, product: &Product, deadline: Deadline) -> Result<(), Error> {
        let raise = async |shard: u32| -> Result<(), Error> {
            let mut attempts = self.attempts(deadline);
            let (update, condition) = ("SET #product_version = :v", "#product_version < :v");
            loop {
                let request = self
                    .client
                    .update_item()
                    .table_name(&self.table)
                    .set_key(Some(keys::shard(&product.product_id, shard).item()))
                    .update_expression(update)
                    .condition_expression(condition)
                    .set_expression_attribute_names(Some(crate::transact::names(&[update])))
                    .expression_attribute_values(":v", number(product.version))
                    .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::None);
                match attempts.call(request.send()).await? {
                    Ok(_) => return Ok(()),
                    Err(error)
                        if error
                            .as_service_error()
                            .is_some_and(UpdateItemError::is_conditional_check_failed_exception) =>
                    {
                        return Ok(());
                    }
                    Err(error) => attempts.pause(fault("UpdateItem", &error)).await?,
                }
            }
        };
        try_join_all((0..product.shards).map(raise)).await.map(drop)
    }
}
