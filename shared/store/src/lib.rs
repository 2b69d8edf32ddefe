//! Holdfast's one DynamoDB table: what is stored, under which conditions it changes, and what each failure means.
//!
//! What must always hold, at every instant and for every product: the units of all shards, of all held reservations
//! and of all orders add up to the product's total. So units only ever move inside one transaction that also moves
//! the reservation (or the total) that explains them; there is no crash point in between.
//!
//! Decisions are made by `holdfast_domain`. A write repeats in its condition what the decision assumed. When the condition
//! fails, the answer carries what is stored instead, and the decision is made again.
//!
//! - [`keys`]: every key, index and attribute name
//! - `items`: domain values to items and back
//! - `update`, `transact`: conditional updates of one item, and transactions with their cancellation reasons by position
//! - `units`: taking units from shards and giving them back, and when it is certain that too few are free
//! - [`measure`]: what an invocation did, in numbers
//! - `gate`, `group`: requests that wait in one environment share a call
//! - `looks`: environments share what they find out about a product that is sold out
//! - `partitions`: which partitions of the indexes holds and reservations are in
//! - `places`: where the item of a product is, and moving it
//! - `cache`: what an environment remembers of products and their stock
//! - `views`: what the catalogue shows, which all environments read
//! - `audit`: reading what must add up, of a table in use
//! - `reserve`, `changes`, `confirm`, `release`, `orders`, `reservations`, `products`, `catalog`, `stock`, `failed`, `rate`: one command each,
//!   or a few related ones
//! - `actions`: the log of what admins do
#![warn(clippy::missing_errors_doc)]

mod actions;
mod audit;
mod cache;
mod catalog;
mod changes;
mod confirm;
mod error;
mod failed;
mod gate;
mod group;
mod items;
pub mod keys;
mod looks;
pub mod measure;
mod orders;
mod page;
mod partitions;
mod places;
mod products;
mod rate;
#[cfg(test)]
mod rates;
mod release;
mod reservations;
mod reserve;
mod stock;
mod transact;
mod units;
mod update;
mod views;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use aws_sdk_dynamodb::operation::scan::builders::ScanFluentBuilder;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use holdfast_domain::{Clock, ProductId};
use serde::de::{DeserializeOwned, IgnoredAny};

pub use actions::{Action, Intent};
pub use audit::{Audited, LastAudit, TableAudit};
pub use cache::ReadTime;
pub use catalog::Counted;
pub use error::{Deadline, Error};
pub use failed::FailedSearch;
pub use gate::PATIENCE;
pub use page::{Cursor, Page};
pub use partitions::Layout;
pub use rate::Admitted;
pub use release::Swept;
pub use reservations::{Listed, Search};
pub use reserve::Reserved;
pub use stock::{Adjusted, LedgerEntry};
pub use views::Shown;

use error::{Attempts, LostWrites, call_error};
use page::Part;
use partitions::Partitions;

/// The most items of one BatchGetItem.
const BATCH: usize = 100;

/// The most queries of one request at once: each that waits has a connection of its own.
const QUERIES_AT_ONCE: usize = 16;

/// A stored item.
pub(crate) type Item = HashMap<String, AttributeValue>;

/// The table, and this environment's cache of its products.
///
/// Make one at start and share it: with a warm cache a reserve takes one round trip.
#[derive(Debug)]
pub struct Store {
    client: Client,
    table: String,
    clock: Clock,
    cached: Arc<Mutex<HashMap<ProductId, cache::CachedProduct>>>,
    gates: group::Gates,
    /// Of requests that read a product's facts.
    reads: gate::Turns,
    /// Of requests that find out whether a product is sold out.
    searches: gate::Turns,
    /// Of the catalogue.
    remembered: tokio::sync::Mutex<views::Remembered>,
    random: Mutex<fastrand::Rng>,
    partitions: Partitions,
    /// When it was last certain that no product has to be moved.
    all_moved: Mutex<Option<ReadTime>>,
}

impl Store {
    /// A store over `table`. `clock` dates what is cached, and what an admin settles while a request is running; otherwise
    /// every command has its own `now`.
    pub fn new(client: Client, table: impl Into<String>, clock: Clock) -> Self {
        let watched = client.config().to_builder().interceptor(LostWrites).build();
        Self {
            client: Client::from_conf(watched),
            table: table.into(),
            clock,
            cached: Arc::default(),
            gates: group::Gates::default(),
            reads: gate::Turns::default(),
            searches: gate::Turns::default(),
            remembered: tokio::sync::Mutex::default(),
            random: Mutex::new(fastrand::Rng::new()),
            partitions: Partitions::default(),
            all_moved: Mutex::default(),
        }
    }

    /// The same with its jitter and its choice of the home shard decided by `seed`, so that a run can be repeated.
    #[must_use]
    pub fn seeded(self, seed: u64) -> Self {
        Self { random: Mutex::new(fastrand::Rng::with_seed(seed)), ..self }
    }

    /// The same, but new items are written as in `layout`.
    #[must_use]
    pub fn with_layout(self, layout: Layout) -> Self {
        Self { partitions: self.partitions.with_layout(layout), ..self }
    }

    /// The same with fewer partitions of the index `due`, each of which a sweep queries: for simulations of hours. All stores
    /// over one table must agree, or holds are overlooked.
    #[must_use]
    pub fn with_due_partitions(self, of_products: u32, of_baskets: u32) -> Self {
        Self { partitions: Partitions { of_products, of_baskets, ..self.partitions }, ..self }
    }

    /// Opens the connection to the table and prepares the client, by a read of an item that never exists. Otherwise the first
    /// request does so; Lambda gives the start of an environment a whole core, and its requests their share of one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline, [`Error::Internal`] for a refusal.
    pub async fn connect(&self, deadline: Deadline) -> Result<(), Error> {
        self.get::<IgnoredAny>("connection", keys::connection(), deadline).await.map(drop)
    }

    fn attempts(&self, deadline: Deadline) -> Attempts<'_> {
        Attempts::new(deadline, &self.random)
    }

    fn random_below(&self, bound: u32) -> u32 {
        lock(&self.random).u32(0..bound.max(1))
    }

    /// A token that no other request has.
    fn random_token(&self) -> String {
        format!("{:016x}", lock(&self.random).u64(..))
    }

    /// One item, by a consistent read.
    async fn get<T: DeserializeOwned>(
        &self,
        what: &'static str,
        key: keys::Key,
        deadline: Deadline,
    ) -> Result<Option<T>, Error> {
        self.get_item(key, deadline).await?.map(|item| items::read(what, item)).transpose()
    }

    /// The same, as it is stored.
    async fn get_item(&self, key: keys::Key, deadline: Deadline) -> Result<Option<Item>, Error> {
        let mut attempts = self.attempts(deadline);
        loop {
            let request =
                self.client.get_item().table_name(&self.table).set_key(Some(key.item())).consistent_read(true);
            match attempts.call(request.send()).await? {
                Ok(answer) => return Ok(answer.item),
                Err(error) => attempts.pause(call_error("GetItem", &error)).await?,
            }
        }
    }

    /// A page of a list that is one query.
    async fn page<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: QueryFluentBuilder,
        limit: u32,
        deadline: Deadline,
    ) -> Result<Page<T>, Error> {
        let request = request.limit(i32::try_from(limit).unwrap_or(i32::MAX));
        let (found, next) = self.query(request, deadline).await?;
        let items = found.into_iter().map(|item| items::read(what, item)).collect::<Result<_, _>>()?;
        Ok(Page { items, next: next.map(Cursor::new) })
    }

    /// One page of a query, and where the next one starts.
    async fn query(&self, request: QueryFluentBuilder, deadline: Deadline) -> Result<(Vec<Item>, Option<Item>), Error> {
        let request = request.table_name(&self.table);
        let mut attempts = self.attempts(deadline);
        loop {
            match attempts.call(request.clone().send()).await? {
                Ok(answer) => return Ok((answer.items.unwrap_or_default(), answer.last_evaluated_key)),
                Err(error) => attempts.pause(call_error("Query", &error)).await?,
            }
        }
    }

    /// Every item of a query, page by page.
    async fn query_each(
        &self,
        request: QueryFluentBuilder,
        deadline: Deadline,
        mut each: impl FnMut(Item) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = None;
        loop {
            let (items, next) = self.query(request.clone().set_exclusive_start_key(start), deadline).await?;
            items.into_iter().try_for_each(&mut each)?;
            if next.is_none() {
                return Ok(());
            }
            start = next;
        }
    }

    /// Every item of a scan, page by page.
    async fn scan_each(
        &self,
        request: ScanFluentBuilder,
        deadline: Deadline,
        mut each: impl FnMut(Item) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut start = None;
        loop {
            let (items, next) = self.scan(request.clone().set_exclusive_start_key(start), deadline).await?;
            items.into_iter().try_for_each(&mut each)?;
            if next.is_none() {
                return Ok(());
            }
            start = next;
        }
    }

    /// A page of a scan, and the key after which the next one starts.
    async fn scan(&self, request: ScanFluentBuilder, deadline: Deadline) -> Result<(Vec<Item>, Option<Item>), Error> {
        let request = request.table_name(&self.table);
        let mut attempts = self.attempts(deadline);
        loop {
            match attempts.call(request.clone().send()).await? {
                Ok(answer) => return Ok((answer.items.unwrap_or_default(), answer.last_evaluated_key)),
                Err(error) => attempts.pause(call_error("Scan", &error)).await?,
            }
        }
    }

    /// A query of one partition of the table, by consistent reads, from `cursor` on. Its sort keys are ULIDs: the newest comes
    /// first.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list.
    fn newest_in(&self, partition: String, cursor: Option<Cursor>) -> Result<QueryFluentBuilder, Error> {
        let parts = [(keys::PK, Part::Is(&partition)), (keys::SK, Part::Begins(""))];
        let start = cursor.map(|cursor| cursor.into_key(&parts)).transpose()?;
        let request = self
            .client
            .query()
            .key_condition_expression("#pk = :partition")
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_values(":partition", items::text(partition))
            .consistent_read(true)
            .scan_index_forward(false)
            .set_exclusive_start_key(start);
        Ok(request)
    }

    /// Several items, by consistent reads, in any order; those that do not exist are left out.
    async fn get_many(&self, keys: Vec<keys::Key>, deadline: Deadline) -> Result<Vec<Item>, Error> {
        self.get_many_by(true, keys, deadline).await
    }

    /// The same, by reads that are `consistent` or, for half the units, eventually consistent.
    async fn get_many_by(
        &self,
        consistent: bool,
        keys: Vec<keys::Key>,
        deadline: Deadline,
    ) -> Result<Vec<Item>, Error> {
        let mut items = Vec::with_capacity(keys.len());
        // DynamoDB refuses a batch that names an item twice, and an index that lags may return one twice.
        let unique: BTreeSet<(String, String)> = keys.into_iter().map(|key| (key.pk, key.sk)).collect();
        let mut left: Vec<Item> = unique.into_iter().map(|(pk, sk)| keys::Key { pk, sk }.item()).collect();
        let mut attempts = self.attempts(deadline);
        while !left.is_empty() {
            let batch = left.split_off(left.len().saturating_sub(BATCH));
            let wanted = KeysAndAttributes::builder().set_keys(Some(batch.clone())).consistent_read(consistent).build();
            let wanted = wanted.map_err(|error| Error::internal("BatchGetItem", error))?;
            match attempts.call(self.client.batch_get_item().request_items(&self.table, wanted).send()).await? {
                Ok(answer) => {
                    items.extend(answer.responses.unwrap_or_default().into_values().flatten());
                    let unprocessed = answer.unprocessed_keys.unwrap_or_default().into_values();
                    let before = left.len();
                    left.extend(unprocessed.flat_map(|keys| keys.keys));
                    if left.len() > before {
                        attempts.pause(error::CallError::Throttled).await?;
                    }
                }
                Err(error) => {
                    left.extend(batch);
                    attempts.pause(call_error("BatchGetItem", &error)).await?;
                }
            }
        }
        Ok(items)
    }
}

/// What these queries find, in their order; some of them at once.
async fn side_by_side<T>(queries: Vec<impl Future<Output = Result<T, Error>>>) -> Result<Vec<T>, Error> {
    stream::iter(queries).buffered(QUERIES_AT_ONCE).try_collect().await
}

/// The guarded value, even if a thread panicked with the lock: these values are only ever replaced as a whole.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
