//! Products as an admin makes and changes them.

use aws_sdk_dynamodb::operation::query::builders::QueryFluentBuilder;
use futures_util::future::try_join_all;
use holdfast_domain::{Product, ProductChange, ProductId, Refusal, Timestamp, shards};

use crate::cache::ReadTime;
use crate::error::Attempts;
use crate::items::{self, ShardItem, number, text};
use crate::page::Part;
use crate::places::{Placed, new_items};
use crate::stock::LedgerEntry;
use crate::transact::{Outcome, Transaction, any_condition_failed, contention_error};
use crate::update::{Expression, Updated};
use crate::{Cursor, Deadline, Error, Item, Page, Store, keys};

impl Store {
    /// One product, as it is now.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`]; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn product(&self, id: &ProductId, deadline: Deadline) -> Result<Product, Error> {
        Ok(self.placed_product(id, deadline).await?.product)
    }

    /// A page of all products, in the order of their ids.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn products(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Product>, Error> {
        let (entries, next) = self.query(self.directory_page(limit, cursor)?, deadline).await?;
        Ok(Page { items: self.products_of(entries, deadline).await?, next: next.map(Cursor::new) })
    }

    /// The query of a page of the directory.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list.
    pub(crate) fn directory_page(&self, limit: u32, cursor: Option<Cursor>) -> Result<QueryFluentBuilder, Error> {
        let parts = [(keys::PK, Part::Is(keys::CATALOG)), (keys::SK, Part::Begins(keys::PRODUCT_PREFIX))];
        let start = cursor.map(|cursor| cursor.into_key(&parts)).transpose()?;
        Ok(self.directory(start).limit(i32::try_from(limit).unwrap_or(i32::MAX)))
    }

    /// The query of the directory of all products, by consistent reads, from `start` on.
    pub(crate) fn directory(&self, start: Option<Item>) -> QueryFluentBuilder {
        self.client
            .query()
            .key_condition_expression("#pk = :catalog AND begins_with(#sk, :prefix)")
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_names("#sk", keys::SK)
            .expression_attribute_values(":catalog", text(keys::CATALOG))
            .expression_attribute_values(":prefix", text(keys::PRODUCT_PREFIX))
            .consistent_read(true)
            .set_exclusive_start_key(start)
    }

    /// Creates a product with its stock, and the first entry of its ledger.
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
        let distributed = shards::distribute(product.total, product.shards, 0);
        let mut transaction = Transaction::new(&self.table);
        let absent = "attribute_not_exists(#pk)";
        for item in new_items(product, self.partitions.layout)? {
            transaction.put((), item, absent)?;
        }
        for shard in 0..product.shards {
            let units = distributed.iter().find(|take| take.shard == shard).map_or(0, |take| take.units);
            let shard_item = ShardItem { available: units.into(), product_version: product.version };
            transaction.put((), items::write("shard", &keys::shard(id, shard), &shard_item)?, absent)?;
        }
        let entry = LedgerEntry::opening(product, actor, now);
        transaction.put((), entry.item(id)?, absent)?;
        let mut attempts = self.attempts(deadline);
        loop {
            match self.transact(&transaction, &mut attempts).await? {
                Outcome::Applied => return Ok(()),
                Outcome::TryAgain => {}
                Outcome::Cancelled(reasons) if any_condition_failed(&reasons) => break,
                Outcome::Cancelled(reasons) => attempts.pause(contention_error(&reasons)).await?,
            }
        }
        if attempts.ambiguous {
            // An earlier try of this call may have been applied, and its answer lost. The product may have been changed
            // since; the first entry of its ledger never is.
            let opening = self.get("ledger", keys::ledger(id, &entry.entry_id), deadline).await?;
            if opening.is_some_and(|opening: LedgerEntry| opening == entry) {
                return Ok(());
            }
        }
        Err(Refusal::ProductExists { product_id: id.clone() }.into())
    }

    /// Changes a product that is still at version `seen`. When this returns, no reservation is made with the old facts: the
    /// product is written first, and then every shard is raised to its version.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`], [`Refusal::VersionMismatch`], `Invalid`. If the version differs the shards are
    /// raised anyway, so that a change that was interrupted is completed by its repetition.
    pub async fn change_product(
        &self,
        id: &ProductId,
        seen: u64,
        change: ProductChange,
        deadline: Deadline,
    ) -> Result<Product, Error> {
        let Placed { product: current, place } = self.placed_product(id, deadline).await?;
        if current.version != seen {
            self.raise_shards(&current, deadline).await?;
            return Err(Refusal::VersionMismatch { current: current.version }.into());
        }
        let changed = current.changed(change)?;
        // Dated before the write, so that the result is never older than its date.
        let read_at = ReadTime::now(&self.clock);
        let changed = Placed { product: changed, place };
        let changed = self.write_facts(changed, seen, &mut self.attempts(deadline)).await?;
        self.raise_shards(&changed, deadline).await?;
        self.remember(&changed, Some(read_at));
        Ok(changed)
    }

    /// Writes everything of `changed` but its total, which only adjustments change. Returns it with its total at that
    /// moment, and without any later change.
    async fn write_facts(&self, changed: Placed, seen: u64, attempts: &mut Attempts<'_>) -> Result<Product, Error> {
        /// The placeholders of the attributes that a change writes, or removes where the product has none.
        const CHANGED: [&str; 9] = [
            ":name",
            ":price_minor",
            ":hold_seconds",
            ":late_payment_seconds",
            ":status",
            ":version",
            ":max_per_customer",
            ":sale_starts_at",
            ":sale_ends_at",
        ];
        let Placed { product, mut place } = changed;
        let mut item = items::write("product", &place.key(&product.product_id), &product)?;
        let (mut sets, mut removes, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for placeholder in CHANGED {
            let name = &placeholder[1..];
            match item.remove(name) {
                Some(value) => {
                    sets.push(format!("#{name} = {placeholder}"));
                    values.push((placeholder, value));
                }
                None => removes.push(format!("#{name}")),
            }
        }
        let mut update = format!("SET {}", sets.join(", "));
        if !removes.is_empty() {
            update = format!("{update} REMOVE {}", removes.join(", "));
        }
        loop {
            let condition = Expression::new("#version = :seen", vec![(":seen", number(seen))]);
            let change = (Expression::new(update.clone(), values.clone()), condition);
            if let Updated::Applied(item) = self.update(&place.key(&product.product_id), change, attempts).await? {
                return items::read("product", item);
            }
            let current = self.placed_product(&product.product_id, attempts.deadline()).await?;
            // It may be our own write: the SDK repeats a call whose answer was lost, and does not say so. If it is somebody
            // else's, it is the same change of the same version.
            if (Product { total: product.total, ..current.product.clone() }) == product {
                return Ok(current.product);
            }
            if current.product.version == seen {
                // It was moved, and nothing else. An earlier try that is still under way finds no version at the old place.
                place = current.place;
                attempts.count();
                continue;
            }
            self.raise_shards(&current.product, attempts.deadline()).await?;
            // An earlier try may have been applied, and the product changed again since.
            return Err(attempts.refuse(Refusal::VersionMismatch { current: current.product.version }));
        }
    }

    /// Raises every shard to the product's version, so that no reservation on older facts passes its condition.
    async fn raise_shards(&self, product: &Product, deadline: Deadline) -> Result<(), Error> {
        let raise = async |shard: u32| {
            let values = vec![(":v", number(product.version))];
            let update = Expression::new("SET #product_version = :v", values);
            let condition = Expression::new("#product_version < :v", vec![]);
            let key = keys::shard(&product.product_id, shard);
            // Where the condition fails, the shard has this version or a newer one.
            self.update(&key, (update, condition), &mut self.attempts(deadline)).await.map(drop)
        };
        try_join_all((0..product.shards).map(raise)).await.map(drop)
    }
}
