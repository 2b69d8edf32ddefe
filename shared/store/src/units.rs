//! Taking units from shards and giving them back: which shards serve a quantity, and what must be done before a request is
//! refused for lack of units.
//!
//! Cached stock is enough to *try*: the condition on the write decides. It is not enough to *refuse*. Before that, the
//! shards are read; then overdue holds are released; then the shards are read again, all at one instant, since units that
//! move from one shard to another may be missed by reads one after another.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use holdfast_domain::{CustomerId, Line, Product, ProductId, Shortage, Take, Timestamp};

use crate::cache::{REFUSAL_LIFETIME_MS, ReadTime};
use crate::items::{self, Hold, ShardItem, number};
use crate::keys::Key;
use crate::looks::Look;
use crate::transact::{MAX_ACTIONS, Transaction};
use crate::update::{Change, Expression};
use crate::{Deadline, Error, Item, Store, keys};

/// How long a request that found too few units may spend on releasing overdue holds.
const RELEASE_BUDGET: Duration = Duration::from_secs(2);

/// A quantity of one product that is requested.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) product: &'a Product,
    pub(crate) quantity: u32,
}

/// The units for a basket.
#[derive(Debug)]
pub(crate) enum Allocation {
    /// The shards to take from, in the order of the wanted quantities.
    Takes(Vec<Vec<Take>>),
    /// These have too few, all of them at one instant.
    Short(Vec<Shortage>),
}

/// What a refusal may be based on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusalBasis {
    /// What this environment, or another one whose look it waited for, found within the last second: many requests that are
    /// told "sold out" cost no reads.
    Cache,
    /// Only what was read for this request: a payment depends on it.
    Read,
}

/// The meaning of an action in a transaction that takes units for a reservation.
#[derive(Debug, Clone, Copy)]
pub(crate) enum TakeAction {
    Reservation,
    Shard {
        line: usize,
        take: Take,
        /// The home shard for which it was chosen, if known.
        home: Option<u32>,
    },
    Limit {
        line: usize,
    },
    /// Units or a limit that the reservation gives back in the same transaction.
    Given,
}

/// What the cached stock says about a basket.
enum Choice<'a> {
    Takes(Vec<Vec<Take>>),
    /// Enough units, but on more shards than one transaction can have; most of these shards are of this product.
    Fragmented(Wanted<'a>),
    /// These have too few.
    Short(Vec<Wanted<'a>>),
}

impl Store {
    /// Units for a basket whose transaction has `other_actions` in addition to those on shards.
    ///
    /// # Errors
    /// [`Error::Unavailable`] where time runs out before it is certain that there are too few.
    pub(crate) async fn allocate_units(
        &self,
        wanted: &[Wanted<'_>],
        other_actions: usize,
        basis: RefusalBasis,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Allocation, Error> {
        let mut look = None;
        let allocation = self.search_units(wanted, other_actions, basis, (now, deadline), &mut look).await;
        if let Some(look) = look {
            // Whatever came of it: others wait for it.
            Box::pin(self.end_look(look, deadline)).await;
        }
        allocation
    }

    async fn search_units(
        &self,
        wanted: &[Wanted<'_>],
        other_actions: usize,
        basis: RefusalBasis,
        (now, deadline): (Timestamp, Deadline),
        look: &mut Option<Look>,
    ) -> Result<Allocation, Error> {
        let mut attempts = self.attempts(deadline);
        let (mut turn, mut asked) = (None, false);
        let (mut read, mut released) = (BTreeSet::new(), BTreeMap::new());
        loop {
            // Another request of this environment may have removed them from the cache.
            wanted.iter().for_each(|one| self.ensure_cached(one.product));
            let short = match self.choose(wanted, other_actions) {
                Choice::Takes(takes) => return Ok(Allocation::Takes(takes)),
                Choice::Fragmented(one) => {
                    Box::pin(self.consolidate(one, deadline)).await?;
                    attempts.count();
                    if deadline.passed() {
                        return Err(attempts.unavailable("consolidate"));
                    }
                    continue;
                }
                Choice::Short(short) => short,
            };
            if basis == RefusalBasis::Cache {
                let known: Vec<Shortage> = short.iter().filter_map(|one| self.remembered_shortage(one)).collect();
                let is_known = |id: &ProductId| known.iter().any(|short| short.product_id == *id);
                let mut unknown = short.iter().map(|one| &one.product.product_id).filter(|id| !is_known(id));
                let Some(first) = unknown.next() else { return Ok(Allocation::Short(known)) };
                if turn.is_none() {
                    // Another request of this environment may be searching: what it finds serves this one, unless it takes
                    // long.
                    turn = Some(self.searches.wait(first).await);
                    continue;
                }
                if !asked {
                    asked = true;
                    // So may another environment.
                    let shared = self.with_cached(first, |cached| cached.shares_looks(&self.clock)).unwrap_or_default();
                    if shared && unknown.next().is_none() {
                        *look = Box::pin(self.join_look(first, deadline)).await;
                        if let Some(at) = look.as_ref().and_then(Look::searched) {
                            released.insert(first.clone(), Some(at));
                        }
                        continue;
                    }
                }
            }
            let products = || short.iter().map(|one| one.product);
            let unread: Vec<&Product> = products().filter(|product| !read.contains(&product.product_id)).collect();
            if !unread.is_empty() {
                self.refresh_stock(&unread, deadline).await?;
                read.extend(unread.iter().map(|product| product.product_id.clone()));
                continue;
            }
            let overdue: Vec<&Product> =
                products().filter(|product| !released.contains_key(&product.product_id)).collect();
            if !overdue.is_empty() {
                let released_by = deadline.sooner(RELEASE_BUDGET);
                // What a look finds is remembered for all; then there is no need to know what ends next.
                let ahead = look.is_none();
                let search = self.release_overdue_of(&overdue, None, ahead, now, released_by);
                let (part, as_of) = Box::pin(search).await?;
                if part.holds > 0 {
                    self.refresh_stock(&overdue, deadline).await?;
                }
                let complete = part.complete.then_some(as_of);
                if let (Some(look), Some(as_of)) = (look.as_mut(), complete) {
                    look.releases(&overdue, as_of);
                }
                released.extend(overdue.iter().map(|product| (product.product_id.clone(), complete)));
                continue;
            }
            let shortages = self.read_stock_at_one_instant(&short, &released, deadline).await?;
            if !shortages.is_empty() {
                let released_at = |short: &Shortage| released.get(&short.product_id).copied().flatten();
                if !shortages.iter().all(|short| released_at(short).is_some()) {
                    return Err(Error::Unavailable { during: "release", last: "holds are overdue".to_owned() });
                }
                // If the environment was frozen meanwhile, or a call took long, it is not true any more.
                let fresh = |short| released_at(short).is_some_and(|at| at.within(REFUSAL_LIFETIME_MS, &self.clock));
                if shortages.iter().all(fresh) {
                    if let Some(look) = look {
                        look.finds(&shortages);
                    }
                    return Ok(Allocation::Short(shortages));
                }
                released.clear();
            }
            attempts.count();
            if deadline.passed() {
                return Err(attempts.unavailable("stock"));
            }
        }
    }

    /// Chooses shards for a basket by the cached stock. An unknown shard is assumed to have enough.
    fn choose<'a>(&self, wanted: &[Wanted<'a>], other_actions: usize) -> Choice<'a> {
        let mut takes = Vec::with_capacity(wanted.len());
        let mut short = Vec::new();
        for one in wanted {
            match self.with_cached(&one.product.product_id, |cached| cached.choose(one.quantity)).flatten() {
                Some(chosen) => takes.push(chosen),
                None => short.push(*one),
            }
        }
        if !short.is_empty() {
            return Choice::Short(short);
        }
        if other_actions + takes.iter().map(Vec::len).sum::<usize>() > MAX_ACTIONS
            && let Some((_, fragmented)) = takes.iter().zip(wanted).max_by_key(|(takes, _)| takes.len())
        {
            return Choice::Fragmented(*fragmented);
        }
        Choice::Takes(takes)
    }

    /// Reads all shards of these products into the cache.
    pub(crate) async fn refresh_stock(&self, products: &[&Product], deadline: Deadline) -> Result<(), Error> {
        for (id, available) in self.shards(products, deadline).await? {
            self.with_cached(&id, |cached| cached.set_stock(available));
        }
        Ok(())
    }

    /// Reads all shards of the products that had too few, of as many as fit into one snapshot, into the cache. Returns those
    /// that still have too few; they are known to be exhausted since all their overdue holds were `released`.
    async fn read_stock_at_one_instant(
        &self,
        short: &[Wanted<'_>],
        released: &BTreeMap<ProductId, Option<ReadTime>>,
        deadline: Deadline,
    ) -> Result<Vec<Shortage>, Error> {
        let mut keys = Vec::new();
        let mut part = Vec::new();
        for one in short {
            let shards = one.product.shards as usize;
            if keys.len() + shards <= MAX_ACTIONS {
                keys.extend((0..one.product.shards).map(|shard| keys::shard(&one.product.product_id, shard)));
                part.push(one);
            }
        }
        let mut items = self.snapshot(&keys, &mut self.attempts(deadline)).await?.into_iter();
        let mut shortages = Vec::new();
        for one in part {
            let id = &one.product.product_id;
            let shards = items.by_ref().take(one.product.shards as usize);
            let available = shards.map(units_on).collect::<Result<Vec<u64>, Error>>()?;
            let free = available.iter().sum();
            let falls_short = free < u64::from(one.quantity);
            if falls_short {
                shortages.push(shortage(one, free));
            }
            let exhausted_at = released.get(id).copied().flatten().filter(|_| falls_short);
            self.with_cached(id, |cached| cached.set_snapshot(available, exhausted_at));
        }
        Ok(shortages)
    }

    /// The units of every shard of these products.
    pub(crate) async fn shards(
        &self,
        products: &[&Product],
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, Vec<u64>>, Error> {
        let places: HashMap<String, (&ProductId, u32)> = products
            .iter()
            .flat_map(|product| (0..product.shards).map(|shard| (&product.product_id, shard)))
            .map(|(id, shard)| (keys::shard(id, shard).pk, (id, shard)))
            .collect();
        let wanted = places.values().map(|&(id, shard)| keys::shard(id, shard)).collect();
        let mut found: BTreeMap<ProductId, Vec<u64>> =
            products.iter().map(|p| (p.product_id.clone(), vec![0; p.shards as usize])).collect();
        for item in self.get_many(wanted, deadline).await? {
            let place = item.get(keys::PK).and_then(|pk| pk.as_s().ok()).and_then(|pk| places.get(pk)).copied();
            if let Some((id, shard)) = place
                && let Some(units) = found.get_mut(id).and_then(|shards| shards.get_mut(shard as usize))
            {
                *units = units_on(Some(item))?;
            }
        }
        Ok(found)
    }

    /// Moves units of a product into one shard until it has the wanted quantity: a basket of many fragmented products would
    /// need more shards than one transaction can have. Moves nothing where there are too few units.
    async fn consolidate(&self, wanted: Wanted<'_>, deadline: Deadline) -> Result<(), Error> {
        let id = &wanted.product.product_id;
        let mut attempts = self.attempts(deadline);
        loop {
            let available = self.shards(&[wanted.product], deadline).await?.remove(id).unwrap_or_default();
            self.with_cached(id, |cached| cached.set_stock(available.clone()));
            let Some(takes) = holdfast_domain::shards::withdraw(u64::from(wanted.quantity), &available) else {
                return Ok(());
            };
            let [target, sources @ ..] = takes.as_slice() else { return Ok(()) };
            if sources.is_empty() {
                return Ok(());
            }
            let moved: u64 = sources.iter().map(|take| u64::from(take.units)).sum();
            let mut transaction = Transaction::new(&self.table);
            let target = keys::shard(id, target.shard);
            transaction.update((), &target, give_units(moved))?;
            for take in sources {
                transaction.update((), &keys::shard(id, take.shard), take_units(take.units, None))?;
            }
            if self.transact_or_wait("consolidate", &transaction, &mut attempts).await? {
                return self.refresh_stock(&[wanted.product], deadline).await;
            }
        }
    }

    /// Adds the actions that take the units of `lines` and count them for the customer; `wanted` has the product of each
    /// line. Where `of_version` says so, only from shards that know no newer version of it.
    pub(crate) fn take_lines(
        transaction: &mut Transaction<'_, TakeAction>,
        customer: &CustomerId,
        lines: &[Line],
        wanted: &[Wanted<'_>],
        of_version: impl Fn(&Line) -> bool,
    ) -> Result<(), Error> {
        for (at, (line, wanted)) in lines.iter().zip(wanted).enumerate() {
            let version = of_version(line).then_some(wanted.product.version);
            for &take in &line.takes {
                let key = keys::shard(&line.product_id, take.shard);
                transaction.update(
                    TakeAction::Shard { line: at, take, home: None },
                    &key,
                    take_units(take.units, version),
                )?;
            }
            if line.limited {
                let limit = limit_of(wanted.product);
                let key = keys::limit(&line.product_id, customer);
                transaction.update(TakeAction::Limit { line: at }, &key, take_limit(line.quantity, limit))?;
            }
        }
        Ok(())
    }

    /// What is missing, if it was found within the last second, after all overdue holds were released, that too few units are
    /// free.
    fn remembered_shortage(&self, wanted: &Wanted<'_>) -> Option<Shortage> {
        let free = self.with_cached(&wanted.product.product_id, |cached| cached.exhausted(&self.clock)).flatten()?;
        (free < u64::from(wanted.quantity)).then(|| shortage(wanted, free))
    }
}

/// How many units of it each customer may have. They are counted also without a limit: one that is set later counts these,
/// and a release gives them back.
pub(crate) fn limit_of(product: &Product) -> u32 {
    product.max_per_customer.unwrap_or(u32::MAX)
}

fn shortage(wanted: &Wanted<'_>, available: u64) -> Shortage {
    Shortage { product_id: wanted.product.product_id.clone(), requested: wanted.quantity, available }
}

/// The units of a shard. One that does not exist has none.
pub(crate) fn units_on(item: Option<Item>) -> Result<u64, Error> {
    item.map_or(Ok(0), |item| Ok(items::read::<ShardItem>("shard", item)?.available))
}

/// The update that gives units to a shard, and the condition that there is one.
pub(crate) fn give_units(units: u64) -> Change {
    (
        Expression::new("SET #available = #available + :q", vec![(":q", number(units))]),
        Expression::new("attribute_exists(#pk)", vec![]),
    )
}

/// The update that takes units from a shard, and the condition that it has them; with `version`, also that the shard has
/// not been raised to a newer version of its product.
pub(crate) fn take_units(units: u32, version: Option<u64>) -> Change {
    let update = Expression::new("SET #available = #available - :q", vec![(":q", number(units))]);
    let condition = match version {
        None => Expression::new("#available >= :q", vec![]),
        Some(version) => Expression::new("#available >= :q AND #product_version <= :v", vec![(":v", number(version))]),
    };
    (update, condition)
}

/// The update that counts `quantity` more units of a customer, and the condition that they stay within `limit`.
pub(crate) fn take_limit(quantity: u32, limit: u32) -> Change {
    let room = number(i64::from(limit) - i64::from(quantity));
    // Whoever has none yet may still want too many.
    let condition =
        if quantity > limit { "#units <= :room" } else { "attribute_not_exists(#units) OR #units <= :room" };
    (
        Expression::new("ADD #units :q", vec![(":q", number(quantity))]),
        Expression::new(condition, vec![(":room", room)]),
    )
}

/// The update that counts `quantity` fewer units of a customer, and the condition that at least that many are counted.
fn give_limit(quantity: u64) -> Change {
    (
        Expression::new("SET #units = #units - :q", vec![(":q", number(quantity))]),
        Expression::new("#units >= :q", vec![]),
    )
}

/// What these holds give back to each shard and each customer's limit: one action for each item.
pub(crate) fn given_back(holds: &[Hold]) -> Vec<(Key, Change)> {
    let mut shards: BTreeMap<_, u64> = BTreeMap::new();
    let mut limits: BTreeMap<_, u64> = BTreeMap::new();
    for hold in holds {
        for line in &hold.lines {
            for take in &line.takes {
                *shards.entry((&line.product_id, take.shard)).or_default() += u64::from(take.units);
            }
            if line.limited {
                *limits.entry((&line.product_id, &hold.customer)).or_default() += u64::from(line.quantity);
            }
        }
    }
    let shards = shards.into_iter().map(|((id, shard), units)| (keys::shard(id, shard), give_units(units)));
    let limits = limits.into_iter().map(|((id, customer), units)| (keys::limit(id, customer), give_limit(units)));
    shards.chain(limits).collect()
}

/// What these give back to each customer's limit, and nothing to the shards.
pub(crate) fn limits_given_back(holds: &[Hold]) -> Vec<(Key, Change)> {
    let mut holds = holds.to_vec();
    holds.iter_mut().flat_map(|hold| &mut hold.lines).for_each(|line| line.takes.clear());
    given_back(&holds)
}
