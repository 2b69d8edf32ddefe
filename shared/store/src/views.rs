//! What the catalogue shows: products with their stock, for many readers. (One protocol and its arithmetic, hence the length.)
//!
//! To know a product's stock takes a read of all its shards and a search of the index `due`. So it is written down, in one item
//! of the product (its view), and whoever finds a view that is older than a second refreshes it under a short lease, for all
//! environments. What is shown says how old it is. No reservation is decided on it.
//!
//! What a refresh costs does not grow with the holds that are open. Which units are available depends on the holds that are over
//! and not yet released, which are found by their ends. How many units are in other holds is counted partition by partition, a
//! certain number of holds a second, so with many holds that count is older.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use holdfast_domain::{Product, ProductId, ProductStatus, Refusal, Stock, Timestamp};
use serde::{Deserialize, Serialize};

use crate::cache::ReadTime;
use crate::catalog::{Counted, DueHold};
use crate::gate::PATIENCE;
use crate::items::time;
use crate::keys::Key;
use crate::partitions::Partitions;
use crate::places::Placed;
use crate::update::{Expression, Updated};
use crate::{Cursor, Deadline, Error, Item, Page, Store, items, keys, side_by_side};

/// How old a view may be to be shown without a refresh, in milliseconds.
const VIEW_LIFETIME_MS: i64 = 1_000;
/// How old it may be while another environment refreshes it, in milliseconds: two seconds, with [`SHOWN_AGAIN_MS`].
const REFRESHED_VIEW_LIFETIME_MS: i64 = 2 * VIEW_LIFETIME_MS - SHOWN_AGAIN_MS;
/// How long an environment shows a view again that another one refreshes, in milliseconds, before it looks for the new one.
const SHOWN_AGAIN_MS: i64 = 50;
/// How long one environment refreshes alone, in milliseconds. After that it may be frozen.
const LEASE_MS: i64 = 500;
/// How long an environment waits at most, in milliseconds, before it looks again for a view that another one refreshes.
const ASK_AGAIN_MS: u32 = 50;
/// How many holds are counted again in a second.
const COUNTED_PER_SECOND: u64 = 100;
/// From how many holds on that are over no further page of a partition is read: about half of a page of one megabyte.
const MOST_OVERDUE: usize = 1_000;
/// How long holds are counted. What is not counted then keeps its last count.
const COUNT_BUDGET: Duration = Duration::from_secs(2);

/// A product as the catalogue shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The product.
    pub product: Product,
    /// Where its units are.
    pub stock: Stock,
    /// When the product and its available units were read: at most two seconds before they were asked for.
    pub stock_at: Timestamp,
    /// When its holds were counted: with many of them, some may have been counted a while before, or (1970) not yet.
    pub reserved_at: Timestamp,
}

/// What was found out about a product, for all environments.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct View {
    product: Product,
    /// Units on its shards.
    free: u64,
    /// Units in holds that are over and not yet released.
    overdue: u64,
    /// When this was read, by the clock of the environment that did it.
    read_at: Timestamp,
    /// Its holds in each partition of the index `due` that may have some: its own, then those of baskets.
    parts: Vec<Part>,
}

/// What is known of one partition of the index `due`.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
#[serde(from = "(u64, u64, Timestamp)", into = "(u64, u64, Timestamp)")]
struct Part {
    /// Units of the product in holds that were not over, when they were counted.
    units: u64,
    /// All holds there at that time.
    holds: u64,
    counted_at: Timestamp,
}

impl Part {
    /// One that was never counted.
    const UNKNOWN: Self = Self { units: 0, holds: 0, counted_at: Timestamp::from_millis(0) };
}

impl From<(u64, u64, Timestamp)> for Part {
    fn from((units, holds, counted_at): (u64, u64, Timestamp)) -> Self {
        Self { units, holds, counted_at }
    }
}

impl From<Part> for (u64, u64, Timestamp) {
    fn from(part: Part) -> Self {
        (part.units, part.holds, part.counted_at)
    }
}

/// What an environment remembers, for a second.
#[derive(Debug, Default)]
pub(crate) struct Remembered {
    views: HashMap<ProductId, (ReadTime, View)>,
    pages: HashMap<(u32, Option<String>), (ReadTime, Page<ProductId>)>,
}

impl View {
    fn shown(&self) -> Shown {
        let Self { product, free, overdue, read_at, parts } = self;
        let available = free.saturating_add(*overdue).min(product.total);
        let counted: u64 = parts.iter().map(|part| part.units).sum();
        let reserved = counted.min(product.total - available);
        let sold = product.total - available - reserved;
        Shown {
            product: product.clone(),
            stock: Stock { available, reserved, sold },
            stock_at: *read_at,
            // Another environment, whose clock is ahead, may have counted.
            reserved_at: parts.iter().map(|part| part.counted_at).fold(*read_at, Timestamp::min),
        }
    }
}

impl Store {
    /// One product with its stock, as it was at most two seconds ago.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`]; [`Error::Unavailable`] without an answer within the deadline.
    pub async fn product_with_stock(&self, id: &ProductId, deadline: Deadline) -> Result<Shown, Error> {
        let asked_at = self.clock.now();
        let mut remembered = self.remembered(deadline).await?;
        let mut shown = self.show(&mut remembered, std::slice::from_ref(id), asked_at, deadline).await?;
        shown.pop().ok_or_else(|| Refusal::ProductNotFound { product_id: id.clone() }.into())
    }

    /// A page of all products that are not archived, in the order of their ids, each with its stock, as they were at most two
    /// seconds ago.
    ///
    /// # Errors
    /// As [`Store::products`].
    pub async fn products_with_stock(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<Shown>, Error> {
        let asked_at = self.clock.now();
        let mut remembered = self.remembered(deadline).await?;
        let place = (limit, cursor.as_ref().map(Cursor::encode));
        let page = match remembered.pages.get(&place) {
            Some((_, page)) => page.clone(),
            None => {
                // Dated before the read, so that the result is never older than its date.
                let read_at = ReadTime::now(&self.clock);
                let page = self.listed_products(limit, cursor, deadline).await?;
                remembered.pages.insert(place, (read_at, page.clone()));
                page
            }
        };
        let mut items = self.show(&mut remembered, &page.items, asked_at, deadline).await?;
        items.retain(|shown| shown.product.status != ProductStatus::Archived);
        Ok(Page { items, next: page.next })
    }

    /// The stock of these products as the catalogue shows it.
    pub(crate) async fn stock_as_shown(
        &self,
        products: &[&Product],
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Counted>, Error> {
        let mut views = self.views(&products.iter().map(|product| &product.product_id).collect(), deadline).await?;
        // A view from before an adjustment would count its units as sold.
        let adjusted =
            |product: &&Product| views.get(&product.product_id).is_some_and(|view| view.product.total != product.total);
        let adjusted: BTreeSet<_> =
            products.iter().copied().filter(adjusted).map(|product| &product.product_id).collect();
        if !adjusted.is_empty() {
            views.extend(self.refresh(&adjusted, &views, deadline).await?);
        }
        let counted = products.iter().filter_map(|&product| {
            // Of the product as it was read for this answer: its total may have changed since.
            let view = View { product: product.clone(), ..views.remove(&product.product_id)? };
            let Shown { stock, stock_at, reserved_at, .. } = view.shown();
            Some((product.product_id.clone(), Counted { stock, as_of: Some((stock_at, reserved_at)) }))
        });
        Ok(counted.collect())
    }

    /// What this environment remembers of the last second. While one request reads, the others wait for what it finds.
    async fn remembered(&self, deadline: Deadline) -> Result<tokio::sync::MutexGuard<'_, Remembered>, Error> {
        let mut remembered = self.attempts(deadline).call(self.remembered.lock()).await?;
        remembered.pages.retain(|_, (read_at, _)| read_at.within(VIEW_LIFETIME_MS, &self.clock));
        remembered.views.retain(|_, (read_at, _)| read_at.within(VIEW_LIFETIME_MS, &self.clock));
        Ok(remembered)
    }

    /// A page of the directory, by an eventually consistent read.
    async fn listed_products(
        &self,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<ProductId>, Error> {
        let request = self.directory_page(limit, cursor)?.consistent_read(false);
        let (entries, next) = self.query(request, deadline).await?;
        let id = |entry: &Item| {
            let key = Key::of(entry).unwrap_or_else(keys::connection);
            let id = key.sk.strip_prefix(keys::PRODUCT_PREFIX).unwrap_or_default();
            ProductId::try_from(id).map_err(|error| Error::internal("directory", error))
        };
        let items = entries.iter().map(id).collect::<Result<Vec<_>, _>>()?;
        Ok(Page { items, next: next.map(Cursor::new) })
    }

    /// These products as they are shown, in this order; unknown ones are left out.
    async fn show(
        &self,
        remembered: &mut Remembered,
        ids: &[ProductId],
        asked_at: Timestamp,
        deadline: Deadline,
    ) -> Result<Vec<Shown>, Error> {
        // A refresh may take longer than two seconds. It is for those who asked before it ended.
        let oldest = asked_at.as_millis().saturating_sub(2 * VIEW_LIFETIME_MS);
        let is_known = |id| remembered.views.get(id).is_some_and(|(_, view)| view.read_at.as_millis() > oldest);
        let unknown: BTreeSet<&ProductId> = ids.iter().filter(|&id| !is_known(id)).collect();
        let mut read = if unknown.is_empty() { BTreeMap::new() } else { self.views(&unknown, deadline).await? };
        let view_of = |id| read.get(id).or_else(|| remembered.views.get(id).map(|(_, view)| view));
        let shown = ids.iter().filter_map(view_of).map(View::shown).collect();
        let now = ReadTime::now(&self.clock);
        // One that is old, since another environment refreshes it, not for long.
        let again = Timestamp::from_millis(now.wall().as_millis() - (VIEW_LIFETIME_MS - SHOWN_AGAIN_MS));
        while let Some((id, view)) = read.pop_first() {
            remembered.views.insert(id, (now.not_after(view.read_at.max(again)), view));
        }
        Ok(shown)
    }

    /// The views of these products, those refreshed that are older than a second. Unknown products are left out.
    async fn views(&self, ids: &BTreeSet<&ProductId>, deadline: Deadline) -> Result<BTreeMap<ProductId, View>, Error> {
        loop {
            let (mut views, leases) = self.stored_views(ids, deadline).await?;
            let is_within = |id: &ProductId, millis| {
                views.get(id).is_some_and(|view| view.read_at.within(millis, self.clock.now()))
            };
            let old: BTreeSet<&ProductId> = ids.iter().filter(|id| !is_within(id, VIEW_LIFETIME_MS)).copied().collect();
            // One lease for all of them.
            let first = match old.iter().find(|id| views.contains_key(**id)) {
                Some(first) => Some((*first).clone()),
                None if old.is_empty() => None,
                // Whatever anybody asks for must not be written down.
                None => self.placed(old.iter().copied(), deadline).await?.pop().map(|placed| placed.product.product_id),
            };
            let Some(first) = first else { return Ok(views) };
            if self.lease(&first, views.get(&first), leases.get(&first).copied(), deadline).await {
                views.extend(self.refresh(&old, &views, deadline).await?);
                return Ok(views);
            }
            if old.iter().all(|id| is_within(id, REFRESHED_VIEW_LIFETIME_MS)) {
                return Ok(views);
            }
            let pause = Duration::from_millis(self.random_below(ASK_AGAIN_MS).into());
            self.attempts(deadline).call(tokio::time::sleep(pause)).await?;
        }
    }

    /// The views that there are, and until when somebody refreshes or makes one, by eventually consistent reads.
    async fn stored_views(
        &self,
        ids: &BTreeSet<&ProductId>,
        deadline: Deadline,
    ) -> Result<(BTreeMap<ProductId, View>, BTreeMap<ProductId, Timestamp>), Error> {
        #[derive(Deserialize)]
        struct Lease {
            lease: Option<Timestamp>,
        }
        let by_key: HashMap<String, &ProductId> = ids.iter().map(|id| (keys::view(id).pk, *id)).collect();
        let wanted = ids.iter().map(|id| keys::view(id)).collect();
        let (mut views, mut leases) = (BTreeMap::new(), BTreeMap::new());
        for item in self.get_many_by(false, wanted, deadline).await? {
            let Some(id) = Key::of(&item).and_then(|key| by_key.get(&key.pk).copied()) else { continue };
            if let Ok(Lease { lease: Some(lease) }) = items::read("view", item.clone()) {
                leases.insert(id.clone(), lease);
            }
            if !item.contains_key("read_at") {
                // Somebody makes the first one.
                continue;
            }
            match items::read("view", item) {
                Ok(view) => _ = views.insert(id.clone(), view),
                // Another version of this program may have written it, and a refresh writes a new one.
                Err(error) => tracing::warn!(%error, "the view of a product cannot be read"),
            }
        }
        Ok((views, leases))
    }

    /// Takes the lease to refresh this view and those that are shown with it. Returns false if another environment has it.
    async fn lease(&self, id: &ProductId, seen: Option<&View>, lease: Option<Timestamp>, deadline: Deadline) -> bool {
        let now = self.clock.now();
        let until = Timestamp::from_millis(now.as_millis().saturating_add(LEASE_MS));
        // No lease is longer than one that begins now.
        if lease.is_some_and(|lease| now < lease && lease <= until) {
            return false;
        }
        let update = Expression::new("SET #lease = :until", vec![(":until", time(until))]);
        let mut values = vec![(":now", time(now))];
        let mut condition = "(attribute_not_exists(#lease) OR #lease <= :now OR #lease > :until)".to_owned();
        if let Some(seen) = seen {
            // Nobody has refreshed it since it was read.
            values.push((":seen", time(seen.read_at)));
            condition.push_str(" AND #read_at = :seen");
        }
        let condition = Expression::new(condition, values);
        match self.update(&keys::view(id), (update, condition), &mut self.attempts(deadline.sooner(PATIENCE))).await {
            Ok(Updated::Applied(_)) => true,
            Ok(Updated::ConditionFailed(_)) => false,
            Err(error) => {
                // It saves reads, and nothing else depends on it.
                tracing::warn!(%error, "catalogue snapshot not stored; the product is read directly");
                true
            }
        }
    }

    /// Reads these products and their stock, and writes their views, for all environments.
    async fn refresh(
        &self,
        ids: &BTreeSet<&ProductId>,
        seen: &BTreeMap<ProductId, View>,
        deadline: Deadline,
    ) -> Result<Vec<(ProductId, View)>, Error> {
        // Dated before the reads, so that what they find is never older than its date.
        let now = self.clock.now();
        let placed = self.placed(ids.iter().copied(), deadline).await?;
        let products: Vec<Product> = placed.into_iter().map(|Placed { product, .. }| product).collect();
        let searches = searches(self.partitions, &products, seen, now);
        // Holds before shards: what is released meanwhile counts twice, and is not missing. Partitions of baskets come last: a
        // hold that gets other lines meanwhile is found there, and is the later one where it is found in both.
        let counted_until = deadline.sooner(COUNT_BUDGET);
        let mut searched: BTreeMap<String, Searched> = BTreeMap::new();
        for searches in searches {
            let found = searches.into_iter().map(async |(due, counts)| {
                let found = match self.holds_in(&due, counts.then_some(counted_until), now, deadline).await {
                    Err(Error::Unavailable { .. }) if counts && !deadline.passed() => {
                        self.holds_in(&due, None, now, deadline).await
                    }
                    found => found,
                };
                Ok((due, found?))
            });
            let found = side_by_side(found.collect()).await?;
            for pk in found.iter().flat_map(|(_, found)| found.holds.keys()) {
                searched.values_mut().for_each(|before| _ = before.holds.remove(pk));
            }
            searched.extend(found);
        }
        let overdue: BTreeMap<&str, &DueHold> = searched
            .values()
            .flat_map(|found| &found.holds)
            .filter(|(_, hold)| hold.due_at <= now)
            .map(|(pk, hold)| (pk.as_str(), hold))
            .collect();
        let shards = self.shards(&products.iter().collect::<Vec<_>>(), deadline).await?;
        let views = products.into_iter().map(|product| {
            let id = product.product_id.clone();
            let known = known_parts(self.partitions, &product, seen.get(&id));
            let parts = known.map(|(due, before)| match searched.get(&due).filter(|found| found.whole) {
                Some(found) => Part {
                    units: found.holds.values().filter(|hold| hold.due_at > now).map(|hold| hold.units_of(&id)).sum(),
                    holds: found.holds.len() as u64,
                    counted_at: now,
                },
                // A count by a clock that is ahead leaves out holds that are not over by this one.
                None => before.filter(|part| part.counted_at <= now).unwrap_or(Part::UNKNOWN),
            });
            let parts = parts.collect();
            let free = shards.get(&id).map(|units| units.iter().sum()).unwrap_or_default();
            let overdue = overdue.values().map(|hold| hold.units_of(&id)).sum();
            (id, View { product, free, overdue, read_at: now, parts })
        });
        let views: Vec<(ProductId, View)> = views.collect();
        let patience = deadline.sooner(PATIENCE);
        let written = views.iter().map(async |(id, view)| {
            if let Err(error) = self.write_view(view, seen.get(id), patience).await {
                // The others read for themselves.
                tracing::warn!(%error, "catalogue snapshot not stored; the product is read directly");
            }
            Ok(())
        });
        side_by_side(written.collect()).await?;
        Ok(views)
    }

    /// Writes a view for all environments, unless one that was read later is there.
    async fn write_view(&self, view: &View, seen: Option<&View>, deadline: Deadline) -> Result<(), Error> {
        /// The placeholders of its attributes.
        const ATTRIBUTES: [&str; 5] = [":product", ":free", ":overdue", ":read_at", ":parts"];
        let key = keys::view(&view.product.product_id);
        let mut item = items::write("view", &key, view)?;
        let values = ATTRIBUTES.into_iter().filter_map(|name| Some((name, item.remove(&name[1..])?))).collect();
        let sets = ATTRIBUTES.map(|name| format!("#{} = {name}", &name[1..])).join(", ");
        let update = Expression::new(format!("SET {sets} REMOVE #lease"), values);
        // An environment that was frozen may come late. A view from a clock that is ahead gives way to whoever has seen it.
        let condition = match seen {
            Some(seen) => {
                Expression::new("#read_at <= :read_at OR #read_at = :seen", vec![(":seen", time(seen.read_at))])
            }
            None => Expression::new("attribute_not_exists(#read_at) OR #read_at <= :read_at", vec![]),
        };
        self.update(&key, (update, condition), &mut self.attempts(deadline)).await.map(drop)
    }

    /// Holds in one partition of the index `due`: all of them, if they are `counted` by a time; otherwise those that are over.
    async fn holds_in(
        &self,
        due: &str,
        counted: Option<Deadline>,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Searched, Error> {
        let request = self
            .due_query(due, counted.is_none().then_some(now))
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_names("#lines", "lines")
            .projection_expression("#pk, #due_at, #lines");
        let mut found = Searched { whole: counted.is_some(), holds: BTreeMap::new() };
        let mut start = None;
        loop {
            let page = self.query(request.clone().set_exclusive_start_key(start), counted.unwrap_or(deadline)).await?;
            for item in page.0 {
                match items::read::<DueHold>("hold", item) {
                    // One that is extended between two pages is on both, and its later end is the newer.
                    Ok(hold) => _ = found.holds.insert(hold.pk.clone(), hold),
                    // As after a rollback to an older version of this program.
                    Err(error) => tracing::warn!(%error, "a hold that cannot be read is not shown"),
                }
            }
            start = page.1;
            // Units of expired holds on later pages are not shown as available yet.
            if start.is_none() || counted.is_none() && found.holds.len() >= MOST_OVERDUE {
                return Ok(found);
            }
        }
    }
}

/// What was found in a partition of the index `due`.
struct Searched {
    /// Whether it was all that there is.
    whole: bool,
    /// By their keys.
    holds: BTreeMap<String, DueHold>,
}

/// The partitions of the index `due` that may have holds of a product, and what its view says of them.
fn known_parts(
    partitions: Partitions,
    product: &Product,
    seen: Option<&View>,
) -> impl Iterator<Item = (String, Option<Part>)> {
    let all: Vec<String> = partitions.due_of(product).chain(partitions.due_of_baskets()).collect();
    // Another version of this program may have other partitions.
    let parts = seen.map(|view| &view.parts).filter(|parts| parts.len() == all.len());
    all.into_iter().enumerate().map(move |(k, due)| (due, parts.map(|parts| parts[k])))
}

/// The partitions of the index `due` that a refresh of these products searches for holds that are over, those of baskets last,
/// each with whether all of its holds are counted: a hundred a second, in equal shares of those partitions that have some, the
/// oldest counts first.
fn searches(
    partitions: Partitions,
    products: &[Product],
    seen: &BTreeMap<ProductId, View>,
    now: Timestamp,
) -> [BTreeMap<String, bool>; 2] {
    let mut known: BTreeMap<String, (Timestamp, u64)> = BTreeMap::new();
    for product in products {
        for (due, part) in known_parts(partitions, product, seen.get(&product.product_id)) {
            let Part { holds, counted_at, .. } = part.unwrap_or(Part::UNKNOWN);
            let (at, most) = known.entry(due).or_insert((counted_at, holds));
            (*at, *most) = (counted_at.min(*at), holds.max(*most));
        }
    }
    let holds: u64 = known.values().map(|(_, holds)| holds).sum();
    let shares = known.values().filter(|(_, holds)| *holds > 0).count() as u64;
    let is_due = |at: Timestamp, of_it: u64| {
        let lasts_ms = of_it.saturating_mul(shares).saturating_mul(1_000) / COUNTED_PER_SECOND;
        holds <= COUNTED_PER_SECOND || !at.within(i64::try_from(lasts_ms).unwrap_or(i64::MAX), now)
    };
    let mut oldest_first: Vec<(Timestamp, u64, &str)> =
        known.iter().map(|(due, (at, of_it))| (*at, *of_it, due.as_str())).collect();
    oldest_first.retain(|&(at, of_it, _)| is_due(at, of_it));
    oldest_first.sort_unstable();
    let mut sum = 0;
    let counted: BTreeSet<&str> = oldest_first
        .into_iter()
        // Not those of many holds at once, that were counted at once.
        .take_while(|(_, of_it, _)| {
            let first = sum == 0;
            sum += of_it;
            first || sum <= COUNTED_PER_SECOND
        })
        .map(|(_, _, due)| due)
        .collect();
    let baskets: BTreeSet<String> = partitions.due_of_baskets().collect();
    let searches = known.keys().map(|due| (due.clone(), counted.contains(due.as_str())));
    let (baskets, own) = searches.partition(|(due, _)| baskets.contains(due));
    [own, baskets]
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_testkit::fixtures::product;

    /// Refreshes a product of this many shards once a second for ten minutes, whose partitions have these holds. Returns the holds
    /// that were counted, the most of one refresh, and the age of the oldest count at the end, in seconds.
    fn refreshed(shards: u32, holds: impl Fn(usize) -> u64) -> (u64, u64, i64) {
        let (partitions, product) = (Partitions::default(), product("tee", 1_000_000, shards));
        let parts: Vec<String> = known_parts(partitions, &product, None).map(|(due, _)| due).collect();
        let at = |second: i64| Timestamp::from_millis(1_000_000_000 + second * 1_000);
        let mut view = View {
            product: product.clone(),
            free: 0,
            overdue: 0,
            read_at: at(0),
            parts: (0..parts.len()).map(|k| Part { units: 0, holds: holds(k), counted_at: at(0) }).collect(),
        };
        let (mut all, mut most) = (0, 0);
        for second in 1..=600 {
            let seen = BTreeMap::from([(product.product_id.clone(), view.clone())]);
            let [own, baskets] = searches(partitions, std::slice::from_ref(&product), &seen, at(second));
            assert_eq!((own.len() + baskets.len(), baskets.len()), (parts.len(), 16), "each is searched");
            let mut once = 0;
            for (due, part) in parts.iter().zip(&mut view.parts) {
                if own.get(due).or(baskets.get(due)) == Some(&true) {
                    part.counted_at = at(second);
                    once += part.holds;
                }
            }
            all += once;
            most = most.max(once);
        }
        let oldest = view.parts.iter().map(|part| part.counted_at.as_millis()).min().unwrap_or_default();
        (all, most, 600 - (oldest - at(0).as_millis()) / 1_000)
    }

    #[test]
    fn a_hundred_holds_a_second_are_counted_however_many_there_are() {
        // Up to that many: all of them, each second.
        assert_eq!(refreshed(16, |_| 2), (600 * 96, 96, 0));
        assert_eq!(refreshed(1, |k| if k == 0 { 100 } else { 0 }), (600 * 100, 100, 0));
        for (shards, holds) in [(16, 625), (16, 62), (1, 30_000), (64, 1_500)] {
            let own = usize::try_from(shards * 2).unwrap().min(64);
            let (all, most, oldest) = refreshed(shards, |k| if k < own { holds } else { 0 });
            assert!(all <= 600 * COUNTED_PER_SECOND + holds && most <= holds.max(COUNTED_PER_SECOND), "{all}, {most}");
            // And nothing is forgotten.
            let cycle = holds * own as u64 / COUNTED_PER_SECOND;
            assert!(oldest <= 600.min(i64::try_from(cycle).unwrap() + 70), "{shards}: {oldest} of {cycle}");
        }
        // A partition with many holds does not keep the others from being counted.
        let (all, _, oldest) = refreshed(16, |k| if k == 0 { 5_000 } else { 1 });
        assert!(all <= 600 * COUNTED_PER_SECOND + 5_000, "{all}");
        assert!(oldest <= 600, "{oldest}");
    }
}
