//! Group commit: holds of one product that wait in one environment share a transaction, and lookups of reservations a read.
//! How they wait for one another: [`gate`](crate::gate).
//!
//! Of each kind one call is in flight at a time: one transaction for each product that is reserved (of a basket with several,
//! its first), and one read of reservations by id. Whoever comes meanwhile waits, and the next call carries all who wait. A
//! lone request waits for nobody, and its call is what it would be without groups. That serves an environment with many
//! requests at once; with one request at a time every group has one member. A call that takes long holds up nobody.
//!
//! A call that is cancelled has a reason for each of its actions, by position, and each member reads its own. A member
//! without a reason was stopped by another one: it goes again, apart from those that were not tried yet. So whatever others
//! send (replays, a limit that is reached) delays it once.
//!
//! A group belongs to all its members: each of them drives it, and it ends early only if all have given up. It has no
//! deadline of its own, and each member stops waiting at its own one.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::operation::transact_get_items::{TransactGetItemsError, TransactGetItemsOutput};
use aws_sdk_dynamodb::operation::transact_write_items::{TransactWriteItemsError, TransactWriteItemsOutput};
use aws_sdk_dynamodb::types::TransactWriteItem;
use futures_util::FutureExt as _;
use holdfast_domain::{CustomerId, ProductId, Reservation, Take, Timestamp, shards};

use crate::cache::CachedProduct;
use crate::error::{Attempts, CallError, call_error};
use crate::gate::{Call, Company, Fit, Gate, Picked, Turn, Waiting, pick, share};
use crate::keys::{self, Key};
use crate::partitions::Partitions;
use crate::transact::{MAX_ACTIONS, Reason, Transaction, by_position, snapshot_error};
use crate::units::{TakeAction, Wanted, limit_of, take_limit, take_units};
use crate::{Error, Item, Store, items, lock};

/// The gates of a store.
#[derive(Default)]
pub(crate) struct Gates {
    /// By the first product of a basket.
    reserves: Mutex<HashMap<ProductId, Arc<Gate<Wish, Membership>>>>,
    lookups: Gate<Key, Lookup>,
}

impl fmt::Debug for Gates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gates").finish_non_exhaustive()
    }
}

/// A hold to make.
struct Wish {
    /// Its takes are replaced: where the units come from is chosen when the group forms, by what is known then.
    reservation: Reservation,
    /// Of each line's product.
    facts: Vec<Facts>,
    /// From then on it is not made: it would have ended.
    ends_at: Timestamp,
    /// Its actions, once it is a member.
    positions: Vec<(usize, TakeAction)>,
}

#[derive(Debug, Clone, Copy)]
struct Facts {
    version: u64,
    limit: u32,
    /// How many units a shard may have that was not read yet.
    guess: u64,
}

/// A hold in a group.
struct Membership {
    /// With its takes.
    reservation: Reservation,
    /// Its own actions, and those on shards that it takes units from.
    positions: Vec<(usize, TakeAction)>,
    actions: usize,
    alone: bool,
    call: Call<TransactWriteItemsOutput, TransactWriteItemsError>,
}

/// A read in a group.
struct Lookup {
    at: usize,
    alone: bool,
    call: Call<TransactGetItemsOutput, TransactGetItemsError>,
}

/// What came of a hold's group.
pub(crate) enum Committed {
    /// The hold is made.
    Made(Box<Reservation>),
    /// There is no group for it any more: choose units again.
    LeftOut,
    /// Others were why nothing was made: it goes again, with this company.
    Again(Company),
    /// No answer says whether it was made, or all of it was throttled. The backoff is over: try again.
    TryAgain,
    /// Nothing was made, for these reasons: of its own actions, and of shards that it takes units from. If it goes again, then
    /// with this company.
    Cancelled(Vec<(TakeAction, Reason)>, Company),
}

/// An action of a group's transaction.
enum Slot {
    Reservation(Item),
    Limit { key: Key, quantity: u32, limit: u32 },
    Shard { product: ProductId, shard: u32, units: u32, version: u64 },
}

/// A product's stock as it is cached, less what the group takes.
#[derive(Debug, Clone)]
struct Stock {
    version: u64,
    available: Vec<Option<u64>>,
    home: u32,
}

/// A group of holds that forms.
#[derive(Default)]
struct Group {
    slots: Vec<Slot>,
    /// Nobody is in it twice: a transaction may not have two actions on one item, and each customer's limit is an item.
    customers: BTreeSet<CustomerId>,
    stock: BTreeMap<ProductId, Stock>,
    shards: BTreeMap<(ProductId, u32), usize>,
}

impl Group {
    /// Adds a hold's actions, if it fits.
    fn add(
        &mut self,
        wish: &mut Wish,
        cached: &HashMap<ProductId, CachedProduct>,
        now: Timestamp,
        partitions: Partitions,
    ) -> Result<Fit, Error> {
        if now >= wish.ends_at {
            return Ok(Fit::Never);
        }
        if self.customers.contains(&wish.reservation.customer) {
            return Ok(Fit::Later);
        }
        // Whoever finds too few units as the first finds too few in the next group as well.
        let too_few = if self.customers.is_empty() { Fit::Never } else { Fit::Later };
        let mut chosen: Vec<(Stock, Vec<Take>)> = Vec::with_capacity(wish.facts.len());
        for (line, facts) in wish.reservation.lines.iter().zip(&wish.facts) {
            let stock = match self.stock.get(&line.product_id) {
                Some(stock) => stock.clone(),
                None => match cached.get(&line.product_id) {
                    Some(cached) => {
                        let (available, home) = cached.stock();
                        Stock { version: facts.version, available, home }
                    }
                    None => return Ok(Fit::Never),
                },
            };
            // A shard has one condition, with one version.
            if stock.version != facts.version {
                return Ok(Fit::Later);
            }
            match shards::choose(line.quantity, &stock.available, stock.home) {
                Some(takes) => chosen.push((stock, takes)),
                None => return Ok(too_few),
            }
        }
        for (line, (_, takes)) in wish.reservation.lines.iter_mut().zip(&chosen) {
            line.takes.clone_from(takes);
        }
        let lines = &wish.reservation.lines;
        let is_new = |product: &ProductId, take: &Take| !self.shards.contains_key(&(product.clone(), take.shard));
        let new_shards = lines.iter().flat_map(|line| line.takes.iter().filter(|take| is_new(&line.product_id, take)));
        let limits = lines.iter().filter(|line| line.limited).count();
        let actions = 1 + limits + new_shards.count();
        // One more than its own, so that the transaction that gives the order back fits as well.
        let of_its_own = 2 + limits + lines.iter().map(|line| line.takes.len()).sum::<usize>();
        if self.slots.len() + actions > MAX_ACTIONS || of_its_own > MAX_ACTIONS {
            return Ok(too_few);
        }
        let customer = &wish.reservation.customer;
        let item = items::reservation(&wish.reservation, partitions)?;
        self.push(&mut wish.positions, TakeAction::Reservation, Slot::Reservation(item));
        for (at, ((line, facts), (mut stock, _))) in lines.iter().zip(&wish.facts).zip(chosen).enumerate() {
            for &take in &line.takes {
                let means = TakeAction::Shard { line: at, take, home: Some(stock.home) };
                self.take(&mut wish.positions, means, (&line.product_id, take), &stock);
                if let Some(units) = stock.available.get_mut(take.shard as usize) {
                    *units = Some(units.unwrap_or(facts.guess).saturating_sub(u64::from(take.units)));
                }
            }
            self.stock.insert(line.product_id.clone(), stock);
            if line.limited {
                let key = keys::limit(&line.product_id, customer);
                let slot = Slot::Limit { key, quantity: line.quantity, limit: facts.limit };
                self.push(&mut wish.positions, TakeAction::Limit { line: at }, slot);
            }
        }
        self.customers.insert(customer.clone());
        Ok(Fit::Member)
    }

    fn push(&mut self, positions: &mut Vec<(usize, TakeAction)>, means: TakeAction, slot: Slot) {
        positions.push((self.slots.len(), means));
        self.slots.push(slot);
    }

    /// Takes units from a shard: all members' in one action.
    fn take(
        &mut self,
        positions: &mut Vec<(usize, TakeAction)>,
        means: TakeAction,
        (product, take): (&ProductId, Take),
        &Stock { version, .. }: &Stock,
    ) {
        let at = *self.shards.entry((product.clone(), take.shard)).or_insert(self.slots.len());
        match self.slots.get_mut(at) {
            Some(Slot::Shard { units, .. }) => {
                *units += take.units;
                positions.push((at, means));
            }
            _ => {
                let Take { shard, units } = take;
                let slot = Slot::Shard { product: product.clone(), shard, units, version };
                self.push(positions, means, slot);
            }
        }
    }

    /// The units that it takes from each shard.
    fn takes(&self) -> Vec<(ProductId, Take)> {
        let take = |slot: &Slot| match *slot {
            Slot::Shard { ref product, shard, units, .. } => Some((product.clone(), Take { shard, units })),
            _ => None,
        };
        self.slots.iter().filter_map(take).collect()
    }

    /// The transaction. Each condition is one promise: the shard has the units and knows no newer product, the reservation
    /// does not exist, the customer stays within the limit.
    fn transaction(self, table: &str) -> Result<Vec<TransactWriteItem>, Error> {
        let mut transaction = Transaction::new(table);
        for slot in self.slots {
            match slot {
                Slot::Reservation(item) => transaction.put((), item, "attribute_not_exists(#pk)")?,
                Slot::Limit { key, quantity, limit } => transaction.update((), &key, take_limit(quantity, limit))?,
                Slot::Shard { product, shard, units, version } => {
                    transaction.update((), &keys::shard(&product, shard), take_units(units, Some(version)))?;
                }
            }
        }
        Ok(transaction.into_actions())
    }
}

impl Store {
    /// Makes a hold, together with those that wait for the same product. Its takes are chosen again when the group forms;
    /// `wanted` has the product of each line.
    pub(crate) async fn commit(
        &self,
        reservation: Reservation,
        wanted: &[Wanted<'_>],
        ends_at: Timestamp,
        company: Company,
        attempts: &mut Attempts<'_>,
    ) -> Result<Committed, Error> {
        let Some(first) = wanted.first() else { return Ok(Committed::LeftOut) };
        let gate = lock(&self.gates.reserves).entry(first.product.product_id.clone()).or_default().clone();
        let facts = |one: &Wanted<'_>| Facts {
            version: one.product.version,
            limit: limit_of(one.product),
            guess: one.product.total.div_ceil(u64::from(one.product.shards.max(1))),
        };
        let wish = Wish { reservation, facts: wanted.iter().map(facts).collect(), ends_at, positions: Vec::new() };
        let form = |turn, waiting: &mut VecDeque<_>| self.form_holds(turn, waiting);
        let Some(Membership { reservation, positions, actions, alone, call }) =
            attempts.until_deadline(gate.join(wish, company, form)).await??
        else {
            return Ok(Committed::LeftOut);
        };
        let seen = attempts.see(call).await?;
        let Err(error) = &seen.answer else { return Ok(Committed::Made(Box::new(reservation))) };
        if let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() {
            let is_shard = |action: &TakeAction| matches!(action, TakeAction::Shard { .. });
            let shards = positions.iter().filter(|(_, action)| is_shard(action)).count();
            let reasons = by_position(positions, actions, cancelled.cancellation_reasons())?;
            if reasons.is_empty() {
                return Ok(Committed::Again(Company::Innocent));
            }
            // Whoever takes from several shards meets others on them again and again.
            let innocent = shards == 1 && reasons.iter().all(|(action, _)| is_shard(action));
            let company = if innocent { Company::Innocent } else { Company::Untried };
            return Ok(Committed::Cancelled(reasons, company));
        }
        match call_error("TransactWriteItems", error) {
            CallError::Fatal(_) if !alone => Ok(Committed::Again(Company::Nobody)),
            error => {
                attempts.pause(error).await?;
                Ok(Committed::TryAgain)
            }
        }
    }

    /// Forms a group of those who wait, and tells them.
    fn form_holds(&self, turn: Turn, waiting: &mut VecDeque<Waiting<Wish, Membership>>) {
        let now = self.clock.now();
        let mut group = Group::default();
        let picked = {
            let cached = lock(&self.cached);
            pick(waiting, |wish| group.add(wish, &cached, now, self.partitions))
        };
        if picked.is_empty() {
            return;
        }
        let (alone, takes) = (picked.len() == 1, group.takes());
        let transaction = match group.transaction(&self.table) {
            Ok(actions) => actions,
            Err(error) => return tell_all(picked, &error),
        };
        let actions = transaction.len();
        let cached = self.cached.clone();
        // Boxed at once: it is large, and is moved several times.
        let sent = self.transaction_request(transaction).send().boxed();
        let applied = async move {
            let answer = sent.await;
            if answer.is_ok() {
                let mut cached = lock(&cached);
                for (product, take) in takes {
                    if let Some(cached) = cached.get_mut(&product) {
                        cached.subtract(take.shard, take.units);
                    }
                }
            }
            answer
        };
        let call = share(turn, applied.boxed());
        for (Wish { reservation, positions, .. }, membership) in picked {
            // Whoever gave up in this moment does not hear it: for them it is a call without an answer.
            _ = membership.send(Ok(Membership { reservation, positions, actions, alone, call: call.clone() }));
        }
    }

    /// The item under a key as it is at one instant after this call began, read together with what others ask for. Costs what
    /// a [`snapshot`](Store::snapshot) costs.
    pub(crate) async fn latest(&self, key: Key, attempts: &mut Attempts<'_>) -> Result<Option<Item>, Error> {
        let mut company = Company::Untried;
        loop {
            let form = |turn, waiting: &mut VecDeque<_>| self.form_lookups(turn, waiting);
            let joined = attempts.until_deadline(self.gates.lookups.join(key.clone(), company, form)).await??;
            let Some(Lookup { at, alone, call }) = joined else { continue };
            let seen = attempts.see(call).await?;
            company = match &seen.answer {
                Ok(answer) => {
                    let found = answer.responses().get(at).ok_or_else(|| Error::internal("snapshot", "too short"))?;
                    return Ok(found.item.clone().filter(|item| !item.is_empty()));
                }
                Err(error) => match snapshot_error(error, |position| position == at) {
                    None => Company::Innocent,
                    Some(CallError::Fatal(_)) if !alone => Company::Nobody,
                    Some(error) => {
                        attempts.pause(error).await?;
                        Company::Untried
                    }
                },
            };
        }
    }

    /// Forms a group of those who wait, and tells them.
    fn form_lookups(&self, turn: Turn, waiting: &mut VecDeque<Waiting<Key, Lookup>>) {
        let mut keys = Vec::new();
        let picked = pick(waiting, |key| {
            // A transaction may not name an item twice.
            if keys.len() == MAX_ACTIONS || keys.contains(key) {
                return Ok(Fit::Later);
            }
            keys.push(key.clone());
            Ok(Fit::Member)
        });
        if picked.is_empty() {
            return;
        }
        let request = match self.snapshot_request(&keys) {
            Ok(request) => request,
            Err(error) => return tell_all(picked, &error),
        };
        let alone = picked.len() == 1;
        let call = share(turn, request.send().boxed());
        for (at, (_, membership)) in picked.into_iter().enumerate() {
            _ = membership.send(Ok(Lookup { at, alone, call: call.clone() }));
        }
    }
}

/// Tells all that no call can be made for them.
fn tell_all<E, M>(picked: Picked<E, M>, error: &Error) {
    for (_, membership) in picked {
        _ = membership.send(Err(Error::internal("group", error.to_string())));
    }
}
