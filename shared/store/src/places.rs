//! Where the item of a product is: under its own key, or, as layout 1 writes it, in the directory of all products.
//!
//! One partition key takes 3,000 reads a second, and every environment reads the facts of what it sells. So each product has a
//! key of its own, and its entry in the directory only names it. A product of layout 1 is moved there once, and never back: so
//! whoever finds it under its own key has found it. Whoever finds nothing there may come between the two writes of a transaction
//! that moves or creates it, which other reads may see one after the other. So they read both places in a snapshot, which waits
//! for the whole transaction.
//!
//! A write names the place where the product was read, and a condition on an attribute that a bare entry does not have. So a
//! write that comes after the move changes nothing, however late it is, and what was read is read again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{Product, ProductId, Refusal};

use crate::cache::ReadTime;
use crate::error::Attempts;
use crate::items::{self, number, text};
use crate::keys::{self, Key};
use crate::transact::{MAX_ACTIONS, Outcome, Transaction};
use crate::update::Expression;
use crate::{Deadline, Error, Item, Layout, Store, lock};

/// How long an environment does not look for products that have to be moved, once there was none, in milliseconds. Not for
/// ever: environments of layout 1 may still create some.
const ALL_MOVED_LIFETIME_MS: i64 = 3_600_000;
/// The entries of the directory that are read at once.
const MOVED_AT_ONCE: i32 = 100;
/// What a bare entry of the directory has besides its key.
const PRODUCT_ID: &str = "product_id";

/// Where the item of a product is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Under its own key.
    Own,
    /// In the directory.
    Directory,
}

impl Place {
    /// The key of the product there.
    pub(crate) fn key(self, id: &ProductId) -> Key {
        match self {
            Self::Own => keys::product(id),
            Self::Directory => keys::directory_entry(id),
        }
    }

    /// Where a product is whose item has this key.
    fn of(item: &Item) -> Self {
        let pk = item.get(keys::PK).and_then(|pk| pk.as_s().ok());
        if pk.is_some_and(|pk| pk == keys::CATALOG) { Self::Directory } else { Self::Own }
    }
}

/// A product as it was read, and where.
#[derive(Debug, Clone)]
pub(crate) struct Placed {
    pub(crate) product: Product,
    pub(crate) place: Place,
}

impl Placed {
    /// Of the item of a product, which is no bare entry.
    pub(crate) fn read(item: Item) -> Result<Self, Error> {
        let place = Place::of(&item);
        Ok(Self { product: items::read("product", item)?, place })
    }

    /// Its key.
    pub(crate) fn key(&self) -> Key {
        self.place.key(&self.product.product_id)
    }

    /// Adds the update of its total, if that is still what was read.
    pub(crate) fn set_total(&self, transaction: &mut Transaction<'_, ()>, total: u64) -> Result<(), Error> {
        let update = Expression::new("SET #total = :after", vec![(":after", number(total))]);
        let condition = Expression::new("#total = :seen", vec![(":seen", number(self.product.total))]);
        transaction.update((), &self.key(), (update, condition))
    }
}

/// Whether it is an entry of the directory whose product is under its own key. (Not by what is missing: an item that lacks
/// something is an error, and no entry.)
pub(crate) fn is_bare(item: &Item) -> bool {
    item.keys().all(|name| [keys::PK, keys::SK, PRODUCT_ID].contains(&name.as_str()))
}

/// The items of a new product: with its entry in the directory, where that is not the product itself.
pub(crate) fn new_items(product: &Product, layout: Layout) -> Result<Vec<Item>, Error> {
    let id = &product.product_id;
    let write = |place: Place| items::write("product", &place.key(id), product);
    Ok(match layout {
        Layout::One => vec![write(Place::Directory)?],
        Layout::Two => vec![bare_entry(id), write(Place::Own)?],
    })
}

/// The entry in the directory of a product that is under its own key.
pub(crate) fn bare_entry(id: &ProductId) -> Item {
    let mut entry = keys::directory_entry(id).item();
    entry.insert(PRODUCT_ID.to_owned(), text(id.as_str()));
    entry
}

impl Store {
    /// Products as they are now, in any order; unknown ones are left out.
    pub(crate) async fn placed<'a>(
        &self,
        ids: impl Iterator<Item = &'a ProductId>,
        deadline: Deadline,
    ) -> Result<Vec<Placed>, Error> {
        let mut wanted: BTreeSet<ProductId> = ids.cloned().collect();
        let own = self.get_many(wanted.iter().map(keys::product).collect(), deadline).await?;
        let mut found = own.into_iter().map(Placed::read).collect::<Result<Vec<_>, _>>()?;
        found.iter().for_each(|placed| _ = wanted.remove(&placed.product.product_id));
        found.extend(self.in_either_place(&wanted, deadline).await?);
        Ok(found)
    }

    /// The products of these entries of the directory, in the order of their ids.
    pub(crate) async fn products_of(&self, entries: Vec<Item>, deadline: Deadline) -> Result<Vec<Product>, Error> {
        let (bare, whole): (Vec<Item>, Vec<Item>) = entries.into_iter().partition(is_bare);
        let wanted = bare.iter().map(named).collect::<Result<Vec<_>, _>>()?;
        let mut found = whole.into_iter().map(Placed::read).collect::<Result<Vec<_>, _>>()?;
        found.extend(self.placed(wanted.iter(), deadline).await?);
        let by_id: BTreeMap<_, _> =
            found.into_iter().map(|Placed { product, .. }| (product.product_id.clone(), product)).collect();
        Ok(by_id.into_values().collect())
    }

    /// Products that were not found under their own keys a moment before, by a snapshot of both places: one that is moved, created
    /// or changed meanwhile is found as it is. Unknown ones are left out.
    async fn in_either_place(&self, ids: &BTreeSet<ProductId>, deadline: Deadline) -> Result<Vec<Placed>, Error> {
        let ids: Vec<&ProductId> = ids.iter().collect();
        let mut found = Vec::with_capacity(ids.len());
        for ids in ids.chunks(MAX_ACTIONS / 2) {
            let keys: Vec<Key> =
                ids.iter().flat_map(|id| [Place::Own, Place::Directory].map(|place| place.key(id))).collect();
            let items = self.snapshot(&keys, &mut self.attempts(deadline)).await?;
            let items = items.into_iter().flatten().filter(|item| !is_bare(item));
            found.extend(items.map(Placed::read).collect::<Result<Vec<_>, _>>()?);
        }
        Ok(found)
    }

    /// One product as it is now.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`]; [`Error::Unavailable`] without an answer within the deadline.
    pub(crate) async fn placed_product(&self, id: &ProductId, deadline: Deadline) -> Result<Placed, Error> {
        let found = self.find_product(id, deadline).await?;
        found.ok_or_else(|| Refusal::ProductNotFound { product_id: id.clone() }.into())
    }

    /// The same; `None` if there is none.
    pub(crate) async fn find_product(&self, id: &ProductId, deadline: Deadline) -> Result<Option<Placed>, Error> {
        if let Some(found) = self.get_item(keys::product(id), deadline).await? {
            return Placed::read(found).map(Some);
        }
        Ok(self.in_either_place(&BTreeSet::from([id.clone()]), deadline).await?.pop())
    }

    /// A product's item and these others as they were together at one instant: see [`Store::snapshot`].
    pub(crate) async fn snapshot_with_product(
        &self,
        id: &ProductId,
        others: &[Key],
        attempts: &mut Attempts<'_>,
    ) -> Result<(Option<Item>, Vec<Option<Item>>), Error> {
        let mut places = vec![Place::Own];
        loop {
            let mut keys = others.to_vec();
            keys.extend(places.iter().map(|place| place.key(id)));
            let mut items = self.snapshot(&keys, attempts).await?;
            let product = items.split_off(others.len()).into_iter().flatten().find(|item| !is_bare(item));
            if product.is_some() || places.contains(&Place::Directory) {
                return Ok((product, items));
            }
            // The directory only if it is needed: all products have its partition in common.
            places.push(Place::Directory);
        }
    }

    /// Moves products of layout 1 to keys of their own, and returns how many. What does not fit into the
    /// deadline, or meets another write, is left to the next call. Nothing about the products changes.
    ///
    /// # Errors
    /// The directory cannot be read, or has an item that cannot; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn move_products(&self, deadline: Deadline) -> Result<u64, Error> {
        let lately = |at: ReadTime| at.within(ALL_MOVED_LIFETIME_MS, &self.clock);
        if lock(&self.all_moved).is_some_and(lately) {
            return Ok(0);
        }
        // Dated before the read, so that the result is never older than its date.
        let began = ReadTime::now(&self.clock);
        let (mut moved, mut found, mut start, mut failed) = (0, false, None, None);
        while !deadline.passed() {
            let request = self.directory(start).limit(MOVED_AT_ONCE);
            let (entries, next) = self.query(request, deadline).await?;
            for product in entries.into_iter().filter(|entry| !is_bare(entry)) {
                found = true;
                if deadline.passed() {
                    break;
                }
                match self.move_product(product, deadline).await {
                    Ok(done) => moved += u64::from(done),
                    // Out of time, which is no failure if some were moved: the next call does the rest.
                    Err(Error::Unavailable { .. }) if moved > 0 => {}
                    // One that cannot be read does not keep the others.
                    Err(error) => _ = failed.get_or_insert(error),
                }
            }
            if next.is_none() {
                if !found {
                    *lock(&self.all_moved) = Some(began);
                }
                break;
            }
            start = next;
        }
        failed.map_or(Ok(moved), Err)
    }

    /// Moves a product that was read in the directory, and returns whether it did: not if it has changed since.
    async fn move_product(&self, item: Item, deadline: Deadline) -> Result<bool, Error> {
        let Product { product_id, version, total, .. } = items::read("product", item.clone())?;
        // Updates, as all that the function `expire` writes: so its role needs no other permission. Of the whole item, whatever
        // it has.
        let attributes = item.into_iter().filter(|(name, _)| ![keys::PK, keys::SK].contains(&name.as_str()));
        // In one order, so that a simulated history can be repeated.
        let attributes: BTreeMap<String, AttributeValue> = attributes.collect();
        let (mut sets, mut removes) = (Vec::new(), Vec::new());
        let (mut names, mut values, mut removed) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (n, (name, value)) in attributes.into_iter().enumerate() {
            let placeholder = format!("#a{n}");
            if name != PRODUCT_ID {
                removes.push(placeholder.clone());
                removed.insert(placeholder.clone(), name.clone());
            }
            sets.push(format!("{placeholder} = :a{n}"));
            names.insert(placeholder, name);
            values.insert(format!(":a{n}"), value);
        }
        let mut transaction = Transaction::new(&self.table);
        // Enough for the item to be what was read: each change of its facts raises the version, and all else that changes it
        // changes the total, and nothing but the total. One that was changed and changed back is the same item again.
        let unchanged = ["version", "total"].map(|name| (format!("#{name}"), name.to_owned()));
        removed.extend(unchanged);
        let read = HashMap::from([(":version".to_owned(), number(version)), (":total".to_owned(), number(total))]);
        let texts = [format!("REMOVE {}", removes.join(", ")), "#version = :version AND #total = :total".to_owned()];
        transaction.update_named((), &keys::directory_entry(&product_id), texts, removed, read)?;
        names.insert("#pk".to_owned(), keys::PK.to_owned());
        let texts = [format!("SET {}", sets.join(", ")), "attribute_not_exists(#pk)".to_owned()];
        transaction.update_named((), &keys::product(&product_id), texts, names, values)?;
        let mut attempts = self.attempts(deadline);
        loop {
            match self.transact(&transaction, &mut attempts).await? {
                Outcome::Applied => return Ok(true),
                Outcome::Cancelled(_) => return Ok(false),
                Outcome::TryAgain => {}
            }
        }
    }
}

/// The product that a bare entry of the directory names.
fn named(entry: &Item) -> Result<ProductId, Error> {
    #[derive(serde::Deserialize)]
    struct Entry {
        product_id: ProductId,
    }
    items::read("directory", entry.clone()).map(|Entry { product_id }| product_id)
}
