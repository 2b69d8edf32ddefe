//! What must always hold of the table, checked on the items of every write that was applied.
//!
//! The books follow the table item by item, and know nothing of how the functions came to write what they wrote: only
//! what was there before, what is there now, and what customers and admins had asked for by then.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_domain::{Product, Reservation, Status};
use holdfast_store::LedgerEntry;
use serde_json::Value;
use tokio::sync::Notify;

use crate::dynamo::Place;

/// How far an environment's clock may be off.
pub(crate) const SKEW_MS: i64 = 5_000;
/// How long after its end a hold may still be held, once nothing goes wrong: a sweep's period, the sweep itself, and
/// what a clock may be off.
pub(crate) const BOUND_MS: i64 = 60_000 + 20_000 + SKEW_MS;
/// How long an environment may go on refusing for what it remembers.
const MEMORY_MS: i64 = 1_000;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
    /// When, in milliseconds of the history.
    pub at_ms: i64,
}

/// One item that a write changed.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) place: Place,
    /// What is there now, without type tags.
    pub(crate) after: Option<Value>,
}

#[derive(Debug, Clone, Copy)]
struct Shard {
    available: i64,
    version: u64,
}

/// What somebody asked for, and when they did first.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Confirmations by the owner: reservation to the first one's time.
    pub(crate) confirm: BTreeMap<String, i64>,
    /// Payments named by the owner.
    pub(crate) payments: BTreeSet<(String, String)>,
    /// Cancellations by the owner.
    pub(crate) cancel: BTreeSet<String>,
    /// Failed confirmations that an admin resolved.
    pub(crate) resolve: BTreeSet<String>,
}

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Books {
    pub(crate) items: BTreeMap<Place, Value>,
    pub(crate) reservations: BTreeMap<String, Reservation>,
    /// The products as they were, from when on.
    pub(crate) products: BTreeMap<String, Vec<(i64, Product)>>,
    shards: BTreeMap<(String, u32), Shard>,
    limits: BTreeMap<(String, String), i64>,
    limits_over_time: BTreeMap<(String, String), Vec<(i64, i64)>>,
    /// What lay on each shard, from when on.
    free_over_time: BTreeMap<(String, u32), Vec<(i64, i64)>>,
    /// When a reservation was last no hold any more.
    ended: BTreeMap<String, i64>,
    /// From when on nothing goes wrong any more.
    pub(crate) calm_at: Option<i64>,
    ledger: BTreeMap<String, Vec<LedgerEntry>>,
    pub(crate) asked: Asked,
    /// How many single checks were made.
    pub(crate) checks: u64,
    violations: Vec<Violation>,
    /// Told when a promise is broken.
    pub(crate) broken: Arc<Notify>,
}

impl Books {
    fn check(&mut self, now: i64, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        self.checks += 1;
        if !holds {
            self.violations.push(Violation { invariant, detail: detail(), at_ms: now });
            self.broken.notify_one();
        }
    }

    /// The first promise that was broken.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violations.first()
    }

    /// Notes a promise broken that was checked elsewhere.
    pub(crate) fn expect(&mut self, now: i64, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        self.check(now, holds, invariant, detail);
    }

    /// Follows one write, which changed these items at once; `cleaned_up` says that it was DynamoDB's TTL.
    pub(crate) fn follow(&mut self, now: i64, changed: Vec<Changed>, schedules: &BTreeSet<i64>, cleaned_up: bool) {
        let mut touched = Touched::default();
        for Changed { place, after } in changed {
            let before = match &after {
                Some(item) => self.items.insert(place.clone(), item.clone()),
                None => self.items.remove(&place),
            };
            if before == after {
                continue;
            }
            match place.0.split_once('#').unwrap_or((&place.0, "")) {
                ("CATALOG", _) => self.product(now, &place, after.as_ref(), &mut touched),
                ("STOCK", rest) => self.shard(now, rest, after.as_ref(), &mut touched),
                ("HOLD", _) => self.reservation(now, &place, before, after, cleaned_up, &mut touched),
                ("LIMIT", rest) => self.limit(now, rest, after.as_ref(), &mut touched),
                ("LEDGER", product) => self.entry(now, product, before, after, &mut touched),
                ("FAILED", _) => self.failed(now, &place, before.as_ref(), after.as_ref(), &mut touched),
                ("ADJUST", _) => self.check(now, before.is_none(), "one_key_one_outcome", || {
                    format!("an adjustment is made again: {before:?} became {after:?}")
                }),
                _ => {}
            }
        }
        for id in &touched.made {
            self.made(now, id);
        }
        for id in &touched.ends_anew {
            self.reminded(now, id, schedules);
        }
        for id in &touched.paid {
            self.paid_once(now, id);
        }
        self.balance(now, &touched);
    }

    fn product(&mut self, now: i64, place: &Place, after: Option<&Value>, touched: &mut Touched) {
        let product = after.and_then(|item| serde_json::from_value::<Product>(item.clone()).ok());
        self.check(now, product.is_some(), "item_makes_sense", || format!("{place:?}: {after:?}"));
        let Some(product) = product else { return };
        let id = product.product_id.to_string();
        let before = self.products.get(&id).and_then(|all| all.last()).map(|(_, before)| before.clone());
        if let Some(before) = before {
            let facts = Product { total: before.total, ..product.clone() } != before;
            let next = if facts { before.version + 1 } else { before.version };
            self.check(now, product.version == next, "every_change_is_a_version", || {
                format!("{before:?} became {product:?}")
            });
            if before.total != product.total {
                touched.totals.insert(id.clone());
            }
        } else {
            touched.totals.insert(id.clone());
        }
        touched.products.insert(id.clone());
        self.products.entry(id).or_default().push((now, product));
    }

    fn shard(&mut self, now: i64, rest: &str, after: Option<&Value>, touched: &mut Touched) {
        let Some((product, number)) = rest.rsplit_once('#') else { return };
        let place = (product.to_owned(), number.parse().unwrap_or_default());
        let available = after.and_then(|item| item["available"].as_i64());
        let version = after.and_then(|item| item["product_version"].as_u64());
        self.check(now, available.is_some_and(|units| units >= 0), "nothing_negative", || format!("{rest}: {after:?}"));
        let shard = Shard { available: available.unwrap_or_default(), version: version.unwrap_or_default() };
        let before = self.shards.insert(place.clone(), shard);
        self.free_over_time.entry(place.clone()).or_default().push((now, shard.available));
        let older = before.is_some_and(|before| before.version > shard.version);
        self.check(now, !older, "every_change_is_a_version", || format!("{rest} went back: {after:?}"));
        *touched.on_shard.entry(place.clone()).or_default() +=
            shard.available - before.map_or(0, |before| before.available);
        if before.is_none() {
            touched.totals.insert(place.0.clone());
        }
        touched.products.insert(place.0);
    }

    fn limit(&mut self, now: i64, rest: &str, after: Option<&Value>, touched: &mut Touched) {
        let Some((product, customer)) = rest.split_once('#') else { return };
        let units = after.and_then(|item| item["units"].as_i64()).unwrap_or_default();
        self.check(now, units >= 0, "nothing_negative", || format!("LIMIT#{rest}: {units}"));
        let place = (product.to_owned(), customer.to_owned());
        self.limits.insert(place.clone(), units);
        self.limits_over_time.entry(place.clone()).or_default().push((now, units));
        touched.limits.insert(place);
    }

    fn entry(&mut self, now: i64, product: &str, before: Option<Value>, after: Option<Value>, touched: &mut Touched) {
        let entry = after.and_then(|item| serde_json::from_value::<LedgerEntry>(item).ok());
        self.check(now, before.is_none() && entry.is_some(), "ledger_explains_the_total", || {
            format!("an entry of {product} changed: {before:?}")
        });
        if let Some(entry) = entry {
            *touched.entries.entry(product.to_owned()).or_default() += entry.delta;
            self.ledger.entry(product.to_owned()).or_default().push(entry);
        }
        touched.totals.insert(product.to_owned());
        touched.products.insert(product.to_owned());
    }

    fn failed(
        &mut self,
        now: i64,
        place: &Place,
        before: Option<&Value>,
        after: Option<&Value>,
        touched: &mut Touched,
    ) {
        let settled =
            |item: Option<&Value>| item.is_some_and(|item| item["state"] == "resolved" || item["state"] == "confirmed");
        let changed = settled(before) && before != after;
        self.check(now, !changed, "settled_stays_settled", || format!("{place:?}: {before:?} became {after:?}"));
        self.check(now, after.is_some(), "no_payment_is_lost", || format!("{place:?} is gone"));
        if let Some(item) = after.filter(|item| item["state"] == "resolved") {
            let asked = self.asked.resolve.contains(&place.1);
            self.check(now, asked, "settled_stays_settled", || format!("no admin resolved {item}"));
            touched.paid.extend(item["reservation_id"].as_str().map(str::to_owned));
        }
    }

    /// A payment is an order, or an admin has given it back, and never both.
    fn paid_once(&mut self, now: i64, id: &str) {
        let Some(reservation) = self.reservations.get(id).filter(|found| found.status == Status::Confirmed) else {
            return;
        };
        let Some(payment) = reservation.payment_reference.clone() else { return };
        // What was said before this reservation was made, of none or of one that was cleaned up, nobody knows.
        let of_this_one = |item: &Value| {
            item["settled_at"].as_i64().is_some_and(|at| at + SKEW_MS >= reservation.created_at.as_millis())
        };
        let mut all = self.failed_of(id, payment.as_str());
        let given_back = all.any(|item| item["state"] == "resolved" && of_this_one(item));
        drop(all);
        self.check(now, !given_back, "given_back_or_an_order", || format!("{payment} for {id} is both"));
    }

    /// The failed confirmations of a payment.
    fn failed_of<'a>(&'a self, reservation: &'a str, payment: &'a str) -> impl Iterator<Item = &'a Value> {
        let all = self.failed_confirmations().map(|(_, item)| item);
        all.filter(move |item| item["reservation_id"] == reservation && item["payment_reference"] == payment)
    }

    /// All failed confirmations, by their ids.
    pub(crate) fn failed_confirmations(&self) -> impl Iterator<Item = (&String, &Value)> {
        let from = self.items.range(("FAILED".to_owned(), String::new())..);
        from.take_while(|(place, _)| place.0 == "FAILED").map(|(place, item)| (&place.1, item))
    }

    fn reservation(
        &mut self,
        now: i64,
        place: &Place,
        before: Option<Value>,
        after: Option<Value>,
        cleaned_up: bool,
        touched: &mut Touched,
    ) {
        let id = place.0.trim_start_matches("HOLD#").to_owned();
        let parsed = after.as_ref().map(|item| serde_json::from_value::<Reservation>(item.clone()).ok());
        let sane = parsed.as_ref().is_none_or(Option::is_some);
        self.check(now, sane, "item_makes_sense", || format!("{id}: {after:?}"));
        let new = parsed.flatten();
        let old = match &new {
            Some(new) => self.reservations.insert(id.clone(), new.clone()),
            None => self.reservations.remove(&id),
        };
        for (reservation, sign) in old.iter().map(|old| (old, -1)).chain(new.iter().map(|new| (new, 1))) {
            if matches!(reservation.status, Status::Held | Status::Confirmed) {
                for line in &reservation.lines {
                    touched.products.insert(line.product_id.to_string());
                    for take in &line.takes {
                        let shard = (line.product_id.to_string(), take.shard);
                        *touched.on_shard.entry(shard).or_default() += sign * i64::from(take.units);
                    }
                    if line.limited {
                        touched.limits.insert((line.product_id.to_string(), reservation.customer.to_string()));
                    }
                }
            }
        }
        if let (Some(item), Some(new)) = (&after, &new) {
            let held = new.status == Status::Held;
            let due = item["due_at"].as_i64() == Some(new.expires_at.as_millis()) && item["due_key"].is_string();
            let gone = item["due_at"].is_null() && item["due_key"].is_null();
            self.check(now, if held { due } else { gone }, "index_due_has_the_holds", || format!("{item}"));
            let kept = matches!(new.status, Status::Held | Status::Confirmed);
            let right = if item["ttl"].is_null() { kept || !new.owed_back.is_empty() } else { !kept };
            self.check(now, right, "only_ended_holds_are_cleaned_up", || format!("{item}"));
            for line in &new.lines {
                let taken: u32 = line.takes.iter().map(|take| take.units).sum();
                let mut shards: Vec<u32> = line.takes.iter().map(|take| take.shard).collect();
                shards.dedup();
                let whole = taken == line.quantity && shards.len() == line.takes.len();
                self.check(now, whole, "units_have_their_shard", || format!("{item}"));
            }
        }
        match (old, new) {
            (None, Some(new)) => {
                let held = new.status == Status::Held;
                self.check(now, held, "a_hold_ends_once", || format!("{id} began as {before:?} {new:?}"));
                self.ended.remove(&id);
                touched.made.push(id.clone());
                touched.ends_anew.push(id);
            }
            (Some(old), None) => {
                let ended = matches!(old.status, Status::Cancelled | Status::Expired);
                self.check(now, ended && cleaned_up, "only_ended_holds_are_cleaned_up", || format!("{old:?} is gone"));
            }
            (Some(old), Some(new)) => {
                if old.status == Status::Held && new.status != Status::Held {
                    self.ended.insert(id.clone(), now);
                }
                if old.expires_at != new.expires_at {
                    touched.ends_anew.push(id.clone());
                }
                if old.owed_back == new.owed_back {
                    self.transition(now, &id, &old, &new);
                } else {
                    // An admin's word about a payment, and nothing else.
                    let more = new.owed_back.is_superset(&old.owed_back);
                    let only = Reservation { owed_back: new.owed_back.clone(), ..old.clone() } == new;
                    self.check(now, more && only, "settled_stays_settled", || format!("{old:?} became {new:?}"));
                    let kept = after.as_ref().is_some_and(|item| item["ttl"].is_null());
                    self.check(now, kept, "only_ended_holds_are_cleaned_up", || format!("{after:?}"));
                }
                touched.paid.insert(id);
            }
            (None, None) => {}
        }
    }

    /// What may become of a reservation.
    fn transition(&mut self, now: i64, id: &str, old: &Reservation, new: &Reservation) {
        let same = |a: &Reservation, b: &Reservation| {
            let facts = |r: &Reservation| {
                let lines: Vec<_> = r
                    .lines
                    .iter()
                    .map(|l| (l.product_id.clone(), l.quantity, l.name.clone(), l.unit_price_minor, l.limited))
                    .collect();
                (r.customer.clone(), r.created_at, r.hold_seconds, r.fingerprint.clone(), r.currency, lines)
            };
            facts(a) == facts(b)
        };
        let became = || format!("{old:?} became {new:?}");
        self.check(now, same(old, new), "one_key_one_reservation", became);
        let takes = |r: &Reservation| r.lines.iter().map(|line| line.takes.clone()).collect::<Vec<_>>();
        let asked_at = self.asked.confirm.get(id).copied();
        match (old.status, new.status) {
            (Status::Held, Status::Held) => {
                let latest = old.created_at.plus_seconds(3 * old.hold_seconds.get());
                let longer = new.expires_at > old.expires_at && new.expires_at <= latest;
                self.check(now, longer && takes(old) == takes(new), "an_extension_only_extends", became);
            }
            (Status::Held, Status::Confirmed) => {
                self.check(now, takes(old) == takes(new), "units_have_their_shard", became);
                let in_time = asked_at.is_some_and(|at| at - SKEW_MS < old.expires_at.as_millis());
                let right = in_time || (new.confirmed_late && new.payment_reference.is_some());
                self.check(now, right, "no_confirm_after_the_end", || {
                    format!("first asked at {asked_at:?}: {}", became())
                });
            }
            (Status::Expired, Status::Confirmed) => {
                let right = new.confirmed_late && asked_at.is_some();
                self.check(now, right, "no_confirm_after_the_end", became);
            }
            (Status::Held, Status::Cancelled) => {
                let right = self.asked.cancel.contains(id) && takes(old) == takes(new);
                self.check(now, right, "only_the_owner", became);
            }
            (Status::Held, Status::Expired) => {
                let over = old.expires_at.as_millis() <= now + SKEW_MS;
                self.check(now, over && takes(old) == takes(new), "no_hold_ends_early", became);
                let since = self.calm_at.map(|calm_at| now - old.expires_at.as_millis().max(calm_at));
                let in_time = since.is_none_or(|since| since <= BOUND_MS);
                self.check(now, in_time, "every_hold_ends_within_its_bound", || format!("{since:?} ms: {}", became()));
            }
            (Status::Confirmed, Status::Confirmed) => {
                let attached = Reservation { payment_reference: new.payment_reference.clone(), ..old.clone() };
                let right = old.payment_reference.is_none() && attached == *new;
                self.check(now, right, "no_payment_is_lost", became);
            }
            _ => self.check(now, false, "a_hold_ends_once", became),
        }
        if new.status == Status::Confirmed {
            self.check(now, asked_at.is_some(), "only_the_owner", || format!("nobody asked to confirm {new:?}"));
            let paid = new.payment_reference.as_ref().map(|payment| (id.to_owned(), payment.to_string()));
            let known = paid.is_none_or(|paid| self.asked.payments.contains(&paid));
            self.check(now, known, "only_the_owner", || format!("nobody paid like that: {new:?}"));
        }
    }

    /// A hold that ends at another time than before has its reminder.
    fn reminded(&mut self, now: i64, id: &str, schedules: &BTreeSet<i64>) {
        let Some(hold) = self.reservations.get(id).cloned() else { return };
        let ends = hold.expires_at.as_millis();
        let reminded = schedules.iter().any(|&at| at * 1_000 >= ends && at * 1_000 < ends + 10_000 + 1_000);
        self.check(now, reminded, "no_hold_without_its_reminder", || format!("{hold:?}"));
    }

    /// A new hold: made of one version of each product, that its shards knew no newer one of.
    fn made(&mut self, now: i64, id: &str) {
        let Some(new) = self.reservations.get(id).cloned() else { return };
        let end = new.created_at.plus_seconds(new.hold_seconds.get());
        self.check(now, end == new.expires_at, "one_version_of_each_product", || format!("{new:?}"));
        let mut shortest = None;
        for line in &new.lines {
            let product = line.product_id.as_str();
            let known = line.takes.iter().filter_map(|take| self.shards.get(&(product.to_owned(), take.shard)));
            let newest = known.map(|shard| shard.version).max().unwrap_or(u64::MAX);
            let counted = self.limits.get(&(product.to_owned(), new.customer.to_string())).copied().unwrap_or_default();
            let versions = self.products.get(product).map(Vec::as_slice).unwrap_or_default();
            let fits = |product: &Product| {
                product.version >= newest
                    && product.name == line.name
                    && product.price_minor == line.unit_price_minor
                    && product.on_sale(new.created_at).is_ok()
                    && product.max_per_customer.is_some() == line.limited
                    && product.max_per_customer.is_none_or(|limit| counted <= i64::from(limit))
                    && product.hold_seconds >= new.hold_seconds
            };
            let fitting: Vec<i64> =
                versions.iter().filter(|(_, product)| fits(product)).map(|(_, p)| p.hold_seconds.get()).collect();
            let detail = format!("{line:?} of {new:?}: shards know version {newest}, customer has {counted}");
            self.check(now, !fitting.is_empty(), "one_version_of_each_product", || detail);
            shortest = fitting.into_iter().chain(shortest).min();
        }
        let right = shortest.is_none_or(|shortest| shortest == new.hold_seconds.get());
        self.check(now, right, "one_version_of_each_product", || format!("the shortest hold: {new:?}"));
    }

    fn balance(&mut self, now: i64, touched: &Touched) {
        for id in &touched.products {
            let Some(product) = self.products.get(id).and_then(|all| all.last()).map(|(_, product)| product) else {
                continue;
            };
            let total = i64::try_from(product.total).unwrap_or(i64::MAX);
            let free: i64 = self.shards_of(id).map(|(_, shard)| shard.available).sum();
            let out = |status: Status| -> i64 {
                let there = self.reservations.values().filter(|r| r.status == status);
                there
                    .flat_map(|r| &r.lines)
                    .filter(|l| l.product_id.as_str() == id)
                    .map(|l| i64::from(l.quantity))
                    .sum()
            };
            let (held, sold) = (out(Status::Held), out(Status::Confirmed));
            self.check(now, free + held + sold == total, "every_unit_is_somewhere", || {
                format!("{id}: {free} free, {held} held, {sold} sold, {total} in all")
            });
        }
        let mut by_product: BTreeMap<&str, i64> = BTreeMap::new();
        for ((product, shard), &moved) in &touched.on_shard {
            let adjusted = touched.totals.contains(product);
            *by_product.entry(product).or_default() += moved;
            self.check(now, adjusted || moved == 0, "units_have_their_shard", || {
                format!("{moved} units of {product} moved onto shard {shard}")
            });
        }
        for product in &touched.totals {
            let entries = self.ledger.get(product).map(Vec::as_slice).unwrap_or_default();
            let sum: i64 = entries.iter().map(|entry| entry.delta).sum();
            let last = entries.last().map(|entry| entry.total_after);
            let total = self.products.get(product).and_then(|all| all.last()).map(|(_, product)| product.total);
            let explained = i64::try_from(total.unwrap_or_default()).is_ok_and(|total| total == sum) && last == total;
            let moved = by_product.get(product.as_str()).copied().unwrap_or_default();
            let said = touched.entries.get(product).copied().unwrap_or_default();
            self.check(now, explained && moved == said, "ledger_explains_the_total", || {
                format!("{product}: {sum} by the ledger, {last:?} by its last entry, {total:?} in all; {moved} moved, {said} said")
            });
        }
        for place in &touched.limits {
            let counted = self.limits.get(place).copied().unwrap_or_default();
            let has: i64 = self
                .reservations
                .values()
                .filter(|r| matches!(r.status, Status::Held | Status::Confirmed) && r.customer.as_str() == place.1)
                .flat_map(|r| &r.lines)
                .filter(|line| line.limited && line.product_id.as_str() == place.0)
                .map(|line| i64::from(line.quantity))
                .sum();
            self.check(now, counted == has, "limits_count_what_customers_have", || {
                format!("{place:?}: {counted} counted, {has} held and owned")
            });
        }
    }

    fn shards_of<'a>(&'a self, product: &'a str) -> impl Iterator<Item = (u32, Shard)> + 'a {
        let from = (product.to_owned(), 0)..=(product.to_owned(), u32::MAX);
        self.shards.range(from).map(|((_, number), shard)| (*number, *shard))
    }

    /// Whether every shard of a product knows this version.
    pub(crate) fn all_shards_know(&self, product: &str, version: u64) -> bool {
        self.shards_of(product).all(|(_, shard)| shard.version >= version)
    }

    /// Whether a version of a product is what a change asked for.
    pub(crate) fn has_changed(&self, product: &str, version: u64, asked: &Value) -> bool {
        let versions = self.products.get(product).map(Vec::as_slice).unwrap_or_default();
        let found = versions.iter().find(|(_, product)| product.version == version);
        let Some(found) = found.and_then(|(_, product)| serde_json::to_value(product).ok()) else { return false };
        let asked = asked.as_object().into_iter().flatten().filter(|(name, _)| *name != "version");
        asked.into_iter().all(|(name, value)| found[name] == *value)
    }

    /// The product as it is now.
    pub(crate) fn current(&self, product: &str) -> Option<&Product> {
        self.products.get(product)?.last().map(|(_, product)| product)
    }

    /// The reservations that are held.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().filter(|reservation| reservation.status == Status::Held)
    }

    /// What is free of a product.
    pub(crate) fn free(&self, product: &str) -> i64 {
        self.shards_of(product).map(|(_, shard)| shard.available).sum()
    }

    /// What lay on a product's shards at every moment from `from` (and what an environment may remember) on. Shards are
    /// not read at one instant, so units that wander from one to another meanwhile may be overlooked, and do not count.
    pub(crate) fn least_free(&self, product: &str, from: i64) -> i64 {
        let shards = self.free_over_time.range((product.to_owned(), 0)..=(product.to_owned(), u32::MAX));
        let least = shards.map(|(_, over_time)| within(over_time, from - MEMORY_MS).map(|(_, free)| *free).min());
        least.map(Option::unwrap_or_default).sum()
    }

    /// The most that a customer had of a product at any moment from `from` on.
    pub(crate) fn most_counted(&self, product: &str, customer: &str, from: i64) -> i64 {
        let over_time = self.limits_over_time.get(&(product.to_owned(), customer.to_owned()));
        let over_time = over_time.map(Vec::as_slice).unwrap_or_default();
        within(over_time, from).map(|(_, units)| *units).max().unwrap_or_default()
    }

    /// The versions of a product that were current at any moment from `from` (and what an environment may remember)
    /// on.
    pub(crate) fn versions_since(&self, product: &str, from: i64) -> impl Iterator<Item = &Product> {
        let versions = self.products.get(product).map(Vec::as_slice).unwrap_or_default();
        within(versions, from - MEMORY_MS).map(|(_, product)| product)
    }

    /// Whether a payment for a reservation is the order's, or a failed confirmation.
    pub(crate) fn knows_payment(&self, reservation: &str, payment: &str) -> bool {
        let order = self.reservations.get(reservation).is_some_and(|reservation| {
            let paid = reservation.payment_reference.as_ref().is_some_and(|known| known.as_str() == payment);
            paid && reservation.status == Status::Confirmed
        });
        order || self.failed_of(reservation, payment).next().is_some()
    }

    /// Nothing goes on any more: what a failed confirmation says of itself is so.
    pub(crate) fn failed_at_rest(&mut self, now: i64) {
        let mut wrong = Vec::new();
        for (_, item) in self.failed_confirmations() {
            let found = item["reservation_id"].as_str().and_then(|id| self.reservations.get(id));
            // What is another's is not there.
            let found = found.filter(|found| item["failed_customer"] == found.customer.as_str());
            let order = found.filter(|found| found.status == Status::Confirmed);
            let paid = item["payment_reference"].as_str();
            let ordered = order.is_some_and(|order| {
                paid.is_none_or(|paid| order.payment_reference.as_ref().is_some_and(|known| known.as_str() == paid))
            });
            let right = match item["state"].as_str() {
                // It was tried once more: only what there is no reservation for has no answer.
                Some("open") => (item["reason"] != "not_confirmed" || found.is_none()) && !(paid.is_some() && ordered),
                // Every queue is empty: nobody would look at it again.
                Some("retrying") => false,
                Some("confirmed") => ordered,
                _ => true,
            };
            if !right {
                wrong.push(item.clone());
            }
        }
        self.check(now, wrong.is_empty(), "failed_confirmations_end", || format!("{wrong:?}"));
    }

    /// Whether a reservation was a hold at some moment from `from` on.
    pub(crate) fn held_since(&self, id: &str, from: i64) -> bool {
        self.ended.get(id).is_none_or(|&ended| ended >= from)
    }
}

/// Of values that each held from their time on: those that held at any moment from `from` on.
fn within<T>(over_time: &[(i64, T)], from: i64) -> impl Iterator<Item = &(i64, T)> {
    let later = over_time.partition_point(|(at, _)| *at <= from);
    over_time[later.saturating_sub(1)..].iter()
}

/// What one write touched.
#[derive(Debug, Default)]
struct Touched {
    products: BTreeSet<String>,
    totals: BTreeSet<String>,
    entries: BTreeMap<String, i64>,
    on_shard: BTreeMap<(String, u32), i64>,
    limits: BTreeSet<(String, String)>,
    made: Vec<String>,
    /// Holds that end at another time than before.
    ends_anew: Vec<String>,
    /// Reservations whose payment, or what an admin said of it, may have changed.
    paid: BTreeSet<String>,
}
