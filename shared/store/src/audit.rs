//! Reading what an audit compares: one product by its keys and the indexes, or the whole table.
//!
//! Only consistent reads count. The indexes are used to find reservations, which are then read themselves; that a hold is in
//! the index `due` is checked by its own keys, from which DynamoDB makes the index. What makes a difference out of reads that
//! are not at one instant is in [`holdfast_domain::audit`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::{try_join, try_join_all};
use holdfast_domain::audit::{
    Audit, COMPENSATION_REASON, Compensation, Entry, Fault, Look, Seen, Verdict, Version, swaps,
};
use holdfast_domain::{
    CLOCK_TOLERANCE_SECONDS, CustomerId, MAX_SHARDS, ProductId, Reservation, ReservationId, Status, Timestamp,
    digest_id,
};
use serde::{Deserialize, Serialize};

use crate::items::{self, text, time};
use crate::keys::{self, Key, Owner};
use crate::partitions::Layout;
use crate::stock::{KeyRecord, LedgerEntry, entry_id};
use crate::transact::Transaction;
use crate::update::Expression;
use crate::{BATCH, Deadline, Error, Item, Store};

/// Time between two looks, for the indexes to catch up. Nothing is concluded from it.
const PAUSE: Duration = Duration::from_secs(1);
/// The most looks of one request.
const MAX_LOOKS: usize = 4;
/// Batches that are read at once.
const BATCHES_AT_ONCE: usize = 8;
/// How often a ledger that changes while it is read is read again.
const LEDGER_TRIES: u32 = 3;
/// The parts of the table, or of an index, that are scanned at once.
const SEGMENTS: i32 = 8;

/// What [`Store::audit`] has come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audited {
    /// What was read says this.
    pub verdict: Verdict,
    /// Whether every reservation was read within the deadline. If not, only `total`, `available` and `ledger_total` are known.
    pub complete: bool,
}

/// The last audit of a product that was certain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastAudit {
    /// The product.
    pub product_id: ProductId,
    /// When it began.
    pub audited_at: Timestamp,
    /// Who asked for it.
    pub actor: String,
    /// Whether the books agreed.
    pub consistent: bool,
}

/// A reservation's item with its place in the indexes.
struct Stored {
    reservation: Reservation,
    faults: Vec<Fault>,
}

/// What one pass over the table found.
#[derive(Debug, Default)]
struct Scanned {
    reservations: BTreeMap<ProductId, BTreeMap<ReservationId, Seen>>,
    versions: BTreeMap<ReservationId, Version>,
    limits: BTreeMap<ProductId, BTreeSet<CustomerId>>,
    shards: BTreeMap<ProductId, BTreeSet<u32>>,
    unreadable: BTreeMap<String, String>,
}

/// What the passes over one product's reservations know of all reservations.
#[derive(Default)]
struct Known {
    /// Whether each one in the indexes has to be read again: one that ended without a line of the product never gets one.
    again: BTreeMap<Position, bool>,
    versions: BTreeMap<ReservationId, Version>,
}

/// The audit of a whole table, pass by pass.
#[derive(Debug, Default)]
pub struct TableAudit {
    only: Option<ProductId>,
    audits: BTreeMap<ProductId, Audit>,
    scanned: Scanned,
}

impl TableAudit {
    /// An audit of all products, or of one.
    pub fn new(only: Option<ProductId>) -> Self {
        Self { only, ..Self::default() }
    }

    /// The products that it knows, each with what is known of it.
    pub fn products(&self) -> impl Iterator<Item = &Audit> {
        self.audits.values()
    }

    /// Reservations that cannot be read, with the reason: they may be of any product.
    pub fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.scanned.unreadable
    }

    /// What makes the books of one of its products agree again: see [`Audit::compensation`].
    ///
    /// # Errors
    /// Also if a reservation cannot be read: it may have the units that are missing.
    pub fn compensation(&self, audit: &Audit) -> Result<Option<Compensation>, String> {
        let off = audit.verdict().is_some_and(|verdict| !verdict.findings.is_empty());
        if off && !self.scanned.unreadable.is_empty() {
            return Err("reservations that cannot be read may have its units: repair them first".to_owned());
        }
        audit.compensation()
    }

    /// Whether nothing is left that another look could tell.
    pub fn is_final(&self) -> bool {
        self.audits.values().all(|audit| audit.verdict().is_some_and(|verdict| verdict.is_final()))
    }
}

impl Store {
    /// Audits one product, within the deadline: it looks again until it is certain, or out of time.
    ///
    /// # Errors
    /// [`Refusal::ProductNotFound`](holdfast_domain::Refusal::ProductNotFound); [`Error::Unavailable`] without an answer
    /// within the deadline. Running out of time later
    /// is not an error: see [`Audited::complete`] and [`Verdict::in_progress`].
    pub async fn audit(&self, id: &ProductId, deadline: Deadline) -> Result<Audited, Error> {
        self.product(id, deadline).await?;
        let first = self.look(id, &BTreeSet::new(), &BTreeSet::new(), deadline).await?;
        // What is known if nothing more can be read in time.
        let mut unread = Audit::new(id.clone());
        unread.add_pass([], [].into(), BTreeMap::new());
        unread.add_look(first);
        unread.add_pass([], [].into(), BTreeMap::new());
        let verdict = unread.verdict().ok_or_else(|| Error::internal("audit", "a look without a verdict"))?;
        let mut audited =
            Audited { verdict: Verdict { findings: Vec::new(), in_progress: true, ..verdict }, complete: false };

        let (mut audit, mut known) = (Audit::new(id.clone()), Known::default());
        let mut took = Duration::ZERO;
        for looks in 1..=MAX_LOOKS {
            let before = deadline.left();
            match self.look_once(&mut audit, &mut known, deadline).await {
                Ok(()) => {}
                // What the earlier looks say is still true.
                Err(Error::Unavailable { .. }) => break,
                Err(error) => return Err(error),
            }
            if let Some(verdict) = audit.verdict() {
                audited = Audited { verdict, complete: true };
            }
            took = took.max(before.saturating_sub(deadline.left()));
            if audited.verdict.is_final() || looks == MAX_LOOKS || deadline.left() < took + PAUSE {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(audited)
    }

    /// Records the outcome of an audit, unless that of a later one is recorded. Drift is recorded too if the other one may only
    /// be later by its clock.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn record_audit(&self, audit: &LastAudit, deadline: Deadline) -> Result<(), Error> {
        let tolerance = if audit.consistent { 0 } else { CLOCK_TOLERANCE_SECONDS };
        let update = Expression::new(
            "SET #product_id = :id, #audited_at = :at, #actor = :actor, #consistent = :consistent",
            vec![
                (":id", text(audit.product_id.as_str())),
                (":at", time(audit.audited_at)),
                (":actor", text(&audit.actor)),
                (":consistent", AttributeValue::Bool(audit.consistent)),
            ],
        );
        let latest = Expression::new(
            "attribute_not_exists(#pk) OR #audited_at <= :latest",
            vec![(":latest", time(audit.audited_at.plus_seconds(tolerance)))],
        );
        let key = keys::audit(&audit.product_id);
        self.update(&key, (update, latest), &mut self.attempts(deadline)).await.map(drop)
    }

    /// The last audits of these products, where there was one.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn last_audits(
        &self,
        products: impl Iterator<Item = &ProductId>,
        deadline: Deadline,
    ) -> Result<BTreeMap<ProductId, LastAudit>, Error> {
        let found = self.get_many(products.map(keys::audit).collect(), deadline).await?;
        let read = |item| items::read("audit", item).map(|audit: LastAudit| (audit.product_id.clone(), audit));
        found.into_iter().map(read).collect()
    }

    /// A pass, a look and another pass.
    async fn look_once(&self, audit: &mut Audit, known: &mut Known, deadline: Deadline) -> Result<(), Error> {
        self.pass(audit, known, deadline).await?;
        let look = self.look(audit.product(), &audit.customers(), &BTreeSet::new(), deadline).await?;
        audit.add_look(look);
        self.pass(audit, known, deadline).await
    }

    /// Reads every reservation that has, or may get, units of the product.
    async fn pass(&self, audit: &mut Audit, known: &mut Known, deadline: Deadline) -> Result<(), Error> {
        // Both: each lags by itself.
        let indexes = [keys::MADE_INDEX, keys::DUE_INDEX].into_iter();
        let parts =
            indexes.flat_map(|index| (0..SEGMENTS).map(move |segment| self.index_segment(index, segment, deadline)));
        for position in try_join_all(parts).await?.into_iter().flatten() {
            known.again.entry(position).or_insert(true);
        }
        let wanted = known.again.iter().filter(|(_, again)| **again).map(|((pk, _), _)| pk.clone());
        let wanted: BTreeSet<String> = wanted.collect();
        let keys = wanted.into_iter().map(|pk| Key { pk, sk: keys::HOLD.to_owned() }).collect();
        let (mut seen, mut versions, mut unreadable) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for item in self.get_all(keys, deadline).await? {
            let pk = item.get(keys::PK).and_then(|pk| pk.as_s().ok()).cloned().unwrap_or_default();
            match self.stored(item) {
                Ok(Stored { reservation, faults }) => {
                    versions.insert(reservation.reservation_id.clone(), Version::of(&reservation));
                    let has_it = reservation.lines.iter().any(|line| line.product_id == *audit.product());
                    if has_it {
                        let one = Seen::new(&reservation, audit.product(), faults);
                        seen.insert(reservation.reservation_id.clone(), one);
                    }
                    let again = has_it || reservation.status == Status::Held;
                    known.again.insert((pk, reservation.created_at.as_millis()), again);
                }
                Err(why) => drop(unreadable.insert(pk, why.to_string())),
            }
        }
        audit.add_pass(seen, swaps(&known.versions, &versions).into(), unreadable);
        known.versions.extend(versions);
        Ok(())
    }

    /// The reservations in one part of an index.
    async fn index_segment(
        &self,
        index: &'static str,
        segment: i32,
        deadline: Deadline,
    ) -> Result<Vec<Position>, Error> {
        #[derive(Deserialize)]
        struct Keys {
            pk: String,
            created_at: i64,
        }
        let request = self
            .client
            .scan()
            .index_name(index)
            .segment(segment)
            .total_segments(SEGMENTS)
            // Not failed confirmations.
            .filter_expression("begins_with(#pk, :reservations)")
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_names("#created_at", keys::CREATED_AT)
            .expression_attribute_values(":reservations", text(keys::HOLD_PREFIX))
            .projection_expression("#pk, #created_at");
        let mut found = Vec::new();
        let add = |item| {
            let Keys { pk, created_at } = items::read("index", item)?;
            found.push((pk, created_at));
            Ok(())
        };
        self.scan_each(request, deadline, add).await?;
        Ok(found)
    }

    /// A reservation, and what is wrong with the keys that put it into the indexes.
    fn stored(&self, item: Item) -> Result<Stored, Error> {
        let attribute = |name: &str| match item.get(name) {
            None => format!("no {name}"),
            Some(value) => {
                let value = value.as_s().or_else(|_| value.as_n()).map_or("?", String::as_str);
                format!("{name} {value}")
            }
        };
        let due = format!("{}, {}", attribute(keys::DUE_KEY), attribute(keys::DUE_AT));
        let (is_made, made) = (item.contains_key(keys::MADE_KEY), attribute(keys::MADE_KEY));
        let reservation: Reservation = items::read("reservation", item)?;
        let id = &reservation.reservation_id;
        // In the order in which they are preferred.
        let layouts = [Layout::Two, Layout::One].map(|layout| self.partitions.with_layout(layout));
        let expected_due: Vec<String> = if reservation.status == Status::Held {
            let at = reservation.expires_at.as_millis();
            // The lines may have been changed.
            let places = layouts.iter().flat_map(|one| [one.due(id, &reservation.lines), one.due_of_basket(id)]);
            places.map(|due| format!("{} {due}, {} {at}", keys::DUE_KEY, keys::DUE_AT)).collect()
        } else {
            vec![format!("no {}, no {}", keys::DUE_KEY, keys::DUE_AT)]
        };
        let expected_made = layouts.iter().map(|one| format!("{} {}", keys::MADE_KEY, one.made(id))).collect();
        // One from before that index has no key of it.
        let made = is_made.then_some((expected_made, made));
        let pairs = [(expected_due, due)].into_iter().chain(made);
        let faults = pairs.filter(|(expected, found)| !expected.contains(found));
        let first = |expected: Vec<String>| expected.into_iter().next().unwrap_or_default();
        let faults = faults.map(|(expected, found)| Fault { expected: first(expected), found }).collect();
        Ok(Stored { reservation, faults })
    }

    /// Total, shards and ledger of a product, and the limits of these customers. `others` are shards that it should not have.
    async fn look(
        &self,
        id: &ProductId,
        customers: &BTreeSet<CustomerId>,
        others: &BTreeSet<u32>,
        deadline: Deadline,
    ) -> Result<Look, Error> {
        let product = self.find_product(id, deadline).await?;
        // The number of shards never changes.
        let shards = product.map_or(0, |placed| placed.product.shards);
        let (mut total, mut stock, mut ledger) = (0, BTreeMap::new(), None);
        for _ in 0..LEDGER_TRIES {
            let before = self.whole_ledger(id, deadline).await?;
            let wanted: Vec<Key> = (0..shards).map(|shard| keys::shard(id, shard)).collect();
            // At one instant, or units that move from shard to shard would be counted twice or not at all.
            let mut attempts = self.attempts(deadline);
            let (product, found) = self.snapshot_with_product(id, &wanted, &mut attempts).await?;
            total = number_of(product.as_ref(), "total").unwrap_or_default();
            stock =
                (0..).zip(found).filter_map(|(n, item)| Some((n, number_of(item.as_ref(), "available")?))).collect();
            // Entries are only added, so the same ledger before and after is that of the instant in between.
            if self.whole_ledger(id, deadline).await? == before {
                ledger = Some(before);
                break;
            }
        }
        let others = (shards..MAX_SHARDS).chain(others.range(shards.max(MAX_SHARDS)..).copied());
        let others: Vec<Key> = others.map(|shard| keys::shard(id, shard)).collect();
        let limits: Vec<Key> = customers.iter().map(|customer| keys::limit(id, customer)).collect();
        let (others, counted) = try_join(self.get_all(others, deadline), self.get_all(limits, deadline)).await?;
        let mut limits: BTreeMap<CustomerId, i64> = customers.iter().map(|customer| (customer.clone(), 0)).collect();
        for item in others.iter().chain(&counted) {
            match owner(item) {
                Owner::Shard(_, n) => drop(stock.insert(n, number_of(Some(item), "available").unwrap_or_default())),
                Owner::Limit(_, customer) => {
                    limits.insert(customer, number_of(Some(item), "units").unwrap_or_default());
                }
                _ => {}
            }
        }
        Ok(Look { total, shards, stock, ledger, limits })
    }

    /// A product's ledger, the oldest entry first.
    async fn whole_ledger(&self, id: &ProductId, deadline: Deadline) -> Result<Vec<Entry>, Error> {
        let request = self
            .client
            .query()
            .key_condition_expression("#pk = :ledger")
            .expression_attribute_names("#pk", keys::PK)
            .expression_attribute_values(":ledger", text(keys::ledger(id, "").pk))
            .consistent_read(true);
        let mut entries = Vec::new();
        let add = |item| {
            let entry: LedgerEntry = items::read("ledger", item)?;
            entries.push(Entry {
                compensates: entry.reason == COMPENSATION_REASON,
                total_after: i64::try_from(entry.total_after).unwrap_or(i64::MAX),
                entry_id: entry.entry_id,
                delta: entry.delta,
            });
            Ok(())
        };
        self.query_each(request, deadline, add).await?;
        Ok(entries)
    }

    /// Any number of items, several batches at once.
    async fn get_all(&self, keys: Vec<Key>, deadline: Deadline) -> Result<Vec<Item>, Error> {
        let mut read = Vec::with_capacity(keys.len());
        for group in keys.chunks(BATCH * BATCHES_AT_ONCE) {
            let batches = group.chunks(BATCH).map(|batch| self.get_many(batch.to_vec(), deadline));
            read.extend(try_join_all(batches).await?.into_iter().flatten());
        }
        Ok(read)
    }

    /// Reads the whole table for an audit, in parts at once; returns the number of items.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn scan_for(&self, audit: &mut TableAudit, deadline: Deadline) -> Result<u64, Error> {
        let parts = try_join_all((0..SEGMENTS).map(|segment| self.scan_segment(segment, deadline))).await?;
        let (mut count, mut scanned) = (0, Scanned::default());
        for (items, part) in parts {
            count += items;
            scanned.unreadable.extend(part.unreadable);
            scanned.versions.extend(part.versions);
            for (id, seen) in part.reservations {
                scanned.reservations.entry(id).or_default().extend(seen);
            }
            for (id, customers) in part.limits {
                scanned.limits.entry(id).or_default().extend(customers);
            }
            for (id, shards) in part.shards {
                scanned.shards.entry(id).or_default().extend(shards);
            }
        }
        let wanted = |id: &&ProductId| audit.only.as_ref().is_none_or(|only| only == *id);
        for id in scanned.shards.keys().filter(wanted) {
            audit.audits.entry(id.clone()).or_insert_with(|| Audit::new(id.clone()));
        }
        let swaps: Arc<[_]> = swaps(&audit.scanned.versions, &scanned.versions).into();
        for (id, audit) in &mut audit.audits {
            let seen = scanned.reservations.remove(id).unwrap_or_default();
            audit.add_pass(seen, Arc::clone(&swaps), BTreeMap::new());
        }
        audit.scanned = scanned;
        Ok(count)
    }

    /// Looks at every product between two scans.
    ///
    /// # Errors
    /// As [`Store::scan_for`].
    pub async fn look_for(&self, audit: &mut TableAudit, deadline: Deadline) -> Result<(), Error> {
        let none = BTreeSet::new();
        for (id, one) in &mut audit.audits {
            let mut customers = one.customers();
            // Also those of whom no reservation is left.
            customers.extend(audit.scanned.limits.get(id).into_iter().flatten().cloned());
            let shards = audit.scanned.shards.get(id).unwrap_or(&none);
            let look = self.look(id, &customers, shards, deadline).await?;
            one.add_look(look);
        }
        Ok(())
    }

    async fn scan_segment(&self, segment: i32, deadline: Deadline) -> Result<(u64, Scanned), Error> {
        let request = self.client.scan().consistent_read(true).segment(segment).total_segments(SEGMENTS);
        let (mut scanned, mut count) = (Scanned::default(), 0);
        let enter = |item| {
            count += 1;
            self.enter(&mut scanned, item);
            Ok(())
        };
        self.scan_each(request, deadline, enter).await?;
        Ok((count, scanned))
    }

    fn enter(&self, scanned: &mut Scanned, item: Item) {
        match owner(&item) {
            // Whatever names a product makes it one to audit.
            Owner::Product(id) | Owner::Ledger(id) => drop(scanned.shards.entry(id).or_default()),
            Owner::Shard(id, shard) => drop(scanned.shards.entry(id).or_default().insert(shard)),
            Owner::Limit(id, customer) => {
                scanned.shards.entry(id.clone()).or_default();
                scanned.limits.entry(id).or_default().insert(customer);
            }
            Owner::Reservation(id) => match self.stored(item) {
                Ok(Stored { reservation, faults }) => {
                    scanned.versions.insert(id.clone(), Version::of(&reservation));
                    let products: BTreeSet<_> = reservation.lines.iter().map(|line| line.product_id.clone()).collect();
                    for product in products {
                        let seen = Seen::new(&reservation, &product, faults.clone());
                        scanned.shards.entry(product.clone()).or_default();
                        scanned.reservations.entry(product).or_default().insert(id.clone(), seen);
                    }
                }
                Err(why) => drop(scanned.unreadable.insert(id.to_string(), why.to_string())),
            },
            Owner::Other => {}
        }
    }

    /// Writes a compensation: an entry of the ledger and the product's total, together. Returns whether it was written; if
    /// not, total or ledger are not what the compensation was decided on, or somebody has written it already.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline.
    pub async fn compensate(
        &self,
        id: &ProductId,
        compensation: Compensation,
        actor: &str,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<bool, Error> {
        let Compensation { total_seen, entries_seen, ledger_seen, total_after, delta } = compensation;
        let entry = LedgerEntry {
            entry_id: entry_id(now, &digest_id("", &[id.as_str(), "compensation"])),
            delta,
            total_after,
            reason: COMPENSATION_REASON.to_owned(),
            reference: None,
            actor: actor.to_owned(),
            created_at: now,
        };
        // One of these books only, also if two runs have found the same.
        let books = [entries_seen.to_string(), ledger_seen.to_string(), total_seen.to_string()];
        let [entries, ledger, total] = books.each_ref().map(String::as_str);
        let once = keys::adjustment(&digest_id("", &[id.as_str(), "compensation", entries, ledger, total]));
        let record = KeyRecord { fingerprint: String::new(), entry: entry.clone() };
        let mut attempts = self.attempts(deadline);
        loop {
            // It may be this call's own write whose answer was lost.
            if let Some(written) = self.get::<KeyRecord>("adjustment", once.clone(), deadline).await? {
                return Ok(written.entry == entry);
            }
            let product = self.find_product(id, deadline).await?;
            let ledger = self.whole_ledger(id, deadline).await?;
            let sum: i64 = ledger.iter().map(|entry| entry.delta).sum();
            let as_seen = (ledger.len(), sum) == (entries_seen, ledger_seen);
            let Some(placed) = product.filter(|placed| as_seen && placed.product.total == total_seen) else {
                // They may be so because it was written meanwhile.
                let written: Option<KeyRecord> = self.get("adjustment", once, deadline).await?;
                return Ok(written.is_some_and(|written| written.entry == entry));
            };
            let mut transaction = Transaction::new(&self.table);
            // Enough: units that move leave the difference as it is, and an adjustment changes the total.
            placed.set_total(&mut transaction, total_after)?;
            transaction.put((), entry.item(id)?, "attribute_not_exists(#pk)")?;
            transaction.put((), items::write("adjustment", &once, &record)?, "attribute_not_exists(#pk)")?;
            if self.transact_or_wait("compensate", &transaction, &mut attempts).await? {
                return Ok(true);
            }
        }
    }
}

/// A reservation in an index: its key, and when it was made. Another one may have its key, once DynamoDB has deleted it.
type Position = (String, i64);

/// What an item is.
fn owner(item: &Item) -> Owner {
    let part = |name: &str| item.get(name).and_then(|part| part.as_s().ok()).map_or("", String::as_str);
    Owner::of(part(keys::PK), part(keys::SK))
}

/// A number of an item. Not as the functions read it: what they would not write is what an audit looks for.
fn number_of(item: Option<&Item>, name: &str) -> Option<i64> {
    item?.get(name)?.as_n().ok()?.parse().ok()
}
