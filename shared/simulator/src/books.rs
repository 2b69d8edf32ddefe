//! Invariants of the table, checked on the items of every applied write. (Each promise needs all of the state below,
//! hence the length.)
//!
//! The books follow the table item by item, and do not know why the functions wrote something: only the state before,
//! the state after, and what customers and admins had requested by then.

mod actions;
mod changes;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use holdfast_domain::{CustomerId, Line, PaymentReference, Product, Reservation, Status};
use holdfast_store::LedgerEntry;
use serde_json::Value;
use tokio::sync::Notify;

use crate::dynamo::{Place, plain_item};
use crate::journal::Journal;
use crate::judge::failed::failed_place;
use crate::judge::finality::{Finality, Payment};
use crate::judge::stock::product_place;
use crate::judge::{Question, Route, hold, lines, owed_back, revision};
use crate::past::{Moment, Past};

/// The maximum skew of an environment's clock.
pub(crate) const SKEW_MS: i64 = 5_000;
/// How long after its end a hold may still be held, once faults have stopped: a sweep's period, the sweep itself, and
/// the clock skew.
pub(crate) const BOUND_MS: i64 = 60_000 + 20_000 + SKEW_MS;

/// A `ttl` that means forever, in seconds since the epoch.
const YEAR_9999: i64 = 253_370_764_800;

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which promise.
    pub invariant: &'static str,
    /// What was observed.
    pub detail: String,
    /// When, in milliseconds since the epoch.
    pub at_ms: i64,
}

/// One item that a write changed.
#[derive(Debug)]
pub(crate) struct Changed {
    pub(crate) place: Place,
    /// The item after the write, without type tags; `None` if there is none.
    pub(crate) after: Option<Value>,
}

#[derive(Debug, Clone, Copy)]
struct Shard {
    available: i64,
    version: u64,
}

/// What an index shows of an item.
#[derive(Debug)]
pub(crate) struct Shown {
    due_at: Option<i64>,
    pub(crate) created_at: Option<i64>,
    revision: i64,
    pub(crate) customer: Option<String>,
    pub(crate) payment: Option<String>,
    /// The units of each product.
    units: BTreeMap<String, i64>,
}

impl Shown {
    fn of(item: &Value) -> Self {
        let item = plain_item(item);
        let text = |name: &str| item[name].as_str().map(str::to_owned);
        let units = lines(&item).into_iter().map(|(id, units)| (id, i64::try_from(units).unwrap_or(i64::MAX)));
        Self {
            due_at: item["due_at"].as_i64(),
            created_at: item["created_at"].as_i64(),
            revision: revision(&item),
            customer: text("customer"),
            payment: text("payment_reference"),
            units: units.collect(),
        }
    }
}

/// What was requested so far.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// Confirmations: the reservation and the customer who was named, and the time of the first request.
    confirm: BTreeMap<(String, String), i64>,
    /// Payments that the owner named: reservation and payment.
    pub(crate) payments: BTreeSet<(String, String)>,
    /// When a payment was first sent for a reservation, whoever named it.
    pub(crate) first_paid: BTreeMap<(String, String), i64>,
    /// Cancellations of holds: the reservation and the customer.
    pub(crate) cancel: BTreeSet<(String, String)>,
    /// Changes of lines.
    pub(crate) lines: BTreeSet<AskedLines>,
    /// Holds that the shop handed over: the reservation, from whom, and to whom.
    pub(crate) hand_over: BTreeSet<(String, String, String)>,
    /// Holds that an admin released.
    pub(crate) release: BTreeSet<String>,
    /// Products whose holds an admin released.
    pub(crate) release_all: BTreeSet<String>,
    /// Orders that the shop gave back.
    pub(crate) give_back: BTreeSet<String>,
    /// Failed confirmations that an admin asked to resolve.
    pub(crate) resolve: BTreeSet<String>,
    /// Failed confirmations that an admin asked to retry.
    pub(crate) retry: BTreeSet<String>,
}

/// A change of lines: the reservation, the customer, and each product with its units.
pub(crate) type AskedLines = (String, String, Vec<(String, u64)>);

impl Asked {
    /// Records a confirmation in a customer's name.
    pub(crate) fn confirmed_by(&mut self, id: &str, customer: &str, now: i64) {
        self.confirm.entry((id.to_owned(), customer.to_owned())).or_insert(now);
    }

    /// Whether the shop handed a hold to this customer, or tried to.
    pub(crate) fn handed_to(&self, id: &str, customer: &str) -> bool {
        self.hand_over.iter().any(|(of, _, to)| of == id && to == customer)
    }

    /// When a reservation was first confirmed in the name of its customer or of a former one.
    fn first_confirmed(&self, id: &str, reservation: &Reservation) -> Option<i64> {
        let asked = |owner: &str| self.confirm.get(&(id.to_owned(), owner.to_owned())).copied();
        owners(reservation).filter_map(asked).min()
    }

    /// Whether an admin released a hold, alone or with all others of one of its products.
    fn released(&self, id: &str, reservation: &Reservation) -> bool {
        self.release.contains(id)
            || reservation.lines.iter().any(|line| self.release_all.contains(line.product_id.as_str()))
    }
}

/// A reservation's customer, and its former ones.
fn owners(reservation: &Reservation) -> impl Iterator<Item = &str> {
    [&reservation.customer].into_iter().chain(&reservation.formerly).map(CustomerId::as_str)
}

/// The products and quantities of a reservation.
fn quantities(reservation: &Reservation) -> Vec<(String, u64)> {
    let line = |line: &Line| (line.product_id.to_string(), u64::from(line.quantity));
    reservation.lines.iter().map(line).collect::<BTreeMap<_, _>>().into_iter().collect()
}

/// The books.
#[derive(Debug, Default)]
pub(crate) struct Books {
    /// When Scheduler failed each environment last.
    scheduler_failed: BTreeMap<String, i64>,
    pub(crate) items: BTreeMap<Place, Value>,
    pub(crate) reservations: BTreeMap<String, Reservation>,
    /// Every state of each product, with the time at which it began.
    pub(crate) products: BTreeMap<String, Vec<(i64, Product)>>,
    /// The item of each product as if it were under its own key, wherever it is: see [`product_place`].
    product_items: BTreeMap<Place, Value>,
    shards: BTreeMap<(String, u32), Shard>,
    limits: BTreeMap<(String, String), i64>,
    /// Whether a product counts each customer's units, if it says so.
    counts: BTreeMap<String, bool>,
    /// Earlier states of the table.
    pub(crate) past: Past,
    /// What the indexes show of each item, with the moment at which that began.
    shown: BTreeMap<Place, Vec<(Moment, Option<Shown>)>>,
    /// Every reservation that a product ever had.
    holds: BTreeMap<String, BTreeSet<String>>,
    /// The lines of the request that made each reservation, by its id and when it was made.
    first: BTreeMap<(String, i64), Vec<(String, u64)>>,
    /// Payments that an admin refunded: reservation, when it was made, payment.
    given_back: BTreeSet<(String, i64, String)>,
    /// The failed confirmations that an admin resolved while there was this reservation: by reservation, when it was made,
    /// and payment. The order is that of the writes, since the clocks that date both differ.
    resolved: BTreeMap<(String, i64, String), BTreeSet<String>>,
    /// What admins have written down.
    log: actions::Log,
    /// The final answers.
    pub(crate) finality: Finality,
    /// All requests and answers.
    pub(crate) journal: Journal,
    /// When faults stopped.
    pub(crate) calm_at: Option<i64>,
    ledger: BTreeMap<String, Vec<LedgerEntry>>,
    /// The number of holds that admins released.
    pub(crate) released_holds: u64,
    pub(crate) asked: Asked,
    /// Number of single checks.
    pub(crate) checks: u64,
    /// How often the reference model gave up: see [`Outcome`](crate::Outcome).
    pub(crate) given_up: u64,
    violations: Vec<Violation>,
    /// Notified when a promise is broken.
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

    /// The first broken promise.
    pub(crate) fn violation(&self) -> Option<&Violation> {
        self.violations.first()
    }

    /// Records a check that was made elsewhere.
    pub(crate) fn expect(&mut self, now: i64, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        self.check(now, holds, invariant, detail);
    }

    /// Follows one write by this environment, which changed these items at once; `None`: by DynamoDB's TTL.
    pub(crate) fn follow(&mut self, now: i64, changed: Vec<Changed>, schedules: &BTreeSet<i64>, by: Option<&str>) {
        let by_admin = by.is_some_and(|by| by.starts_with("admin"));
        let mut touched = Touched { by_admin, ..Touched::default() };
        self.past.written(now);
        for Changed { place, after } in changed {
            let before = match &after {
                Some(item) => self.items.insert(place.clone(), item.clone()),
                None => self.items.remove(&place),
            };
            if before == after {
                continue;
            }
            let was = before;
            let before = was.as_ref();
            match place.0.split_once('#').unwrap_or((&place.0, "")) {
                // When all of the write is known: it may move a product.
                ("CATALOG" | "PRODUCT", id) => {
                    let id = if id.is_empty() { place.1.trim_start_matches("PRODUCT#") } else { id };
                    touched.placed.insert(id.to_owned());
                    continue;
                }
                ("STOCK", rest) => self.shard(now, rest, after.as_ref(), &mut touched),
                ("HOLD", _) => self.reservation(now, &place, before, after.as_ref(), by.is_none(), &mut touched),
                ("LIMIT", rest) => self.limit(now, rest, after.as_ref(), &mut touched),
                ("LEDGER", product) => self.entry(now, product, before, after.as_ref(), &mut touched),
                ("FAILED", _) => self.failed(now, &place, before, after.as_ref(), &mut touched),
                ("ACTION", _) => self.action(now, &place, before, after.as_ref()),
                ("ADJUST", _) => self.check(now, before.is_none(), "one_key_one_outcome", || {
                    format!("an adjustment is made again: {before:?} became {after:?}")
                }),
                _ => {}
            }
            self.past.was(place, was);
        }
        for id in std::mem::take(&mut touched.placed) {
            self.product(now, &id, &mut touched);
        }
        for id in &touched.made {
            self.made(now, id);
        }
        for (id, old) in &touched.revised {
            self.revised(now, id, old);
        }
        for id in &touched.ends_later {
            self.reminded(now, id, schedules, by);
        }
        for id in &touched.paid {
            self.paid_once(now, id);
        }
        self.balance(now, &touched);
    }

    /// Follows a product, which is under its own key or in the directory. That it is moved is no change.
    fn product(&mut self, now: i64, id: &str, touched: &mut Touched) {
        let own = self.items.get(&product_place(id)).cloned();
        let entry = self.items.get(&("CATALOG".to_owned(), format!("PRODUCT#{id}"))).cloned();
        let is_bare = entry.as_ref().is_some_and(|entry| entry["version"].is_null() && entry["product_id"] == id);
        self.check(now, entry.is_some() && is_bare == own.is_some(), "a_product_is_in_one_place", || {
            format!("{id}: {own:?}, and in the directory {entry:?}")
        });
        let mut after = own.or(entry);
        if let Some(item) = &mut after {
            let place = product_place(id);
            (item["pk"], item["sk"]) = (place.0.clone().into(), place.1.clone().into());
            let before = self.product_items.insert(place.clone(), item.clone());
            if before.as_ref() == Some(item) {
                return;
            }
            self.past.was(place, before);
        }
        let product = after.as_ref().and_then(|item| serde_json::from_value::<Product>(item.clone()).ok());
        self.check(now, product.is_some(), "item_makes_sense", || format!("{id}: {after:?}"));
        let Some(product) = product else { return };
        let id = product.product_id.to_string();
        if let Some(counts) = after.as_ref().and_then(|item| item["counts_per_customer"].as_bool()) {
            let same = self.counts.insert(id.clone(), counts).is_none_or(|before| before == counts);
            self.check(now, same, "limits_count_what_customers_have", || {
                format!("{id} counts now, or no more: {after:?}")
            });
        }
        let before = self.products.get(&id).and_then(|all| all.last()).map(|(_, before)| before.clone());
        if let Some(before) = before {
            let facts = Product { total: before.total, ..product.clone() } != before;
            let next = if facts { before.version + 1 } else { before.version };
            self.check(now, product.version == next, "every_change_is_a_version", || {
                format!("{before:?} became {product:?}")
            });
            if facts && touched.by_admin {
                self.intended(now, "change_product", &id);
            }
            if before.total != product.total {
                touched.totals.insert(id.clone());
                if touched.by_admin {
                    self.intended(now, "adjust_stock", &id);
                }
            }
        } else {
            touched.totals.insert(id.clone());
            self.intended(now, "create_product", &id);
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
        touched.limits.insert(place);
    }

    fn entry(&mut self, now: i64, product: &str, before: Option<&Value>, after: Option<&Value>, touched: &mut Touched) {
        let entry = after.and_then(|item| serde_json::from_value::<LedgerEntry>(item.clone()).ok());
        self.check(now, before.is_none() && entry.is_some(), "ledger_explains_the_total", || {
            format!("an entry of {product} changed: {before:?}")
        });
        if let Some(entry) = entry {
            *touched.entries.entry(product.to_owned()).or_default() += entry.delta;
            self.journal.entry(&entry.entry_id, self.past.now());
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
        // The payment of an order that is given back is open again.
        let reopened = before.is_some_and(|item| item["state"] == "confirmed")
            && after.is_some_and(|item| item["state"] == "open" && item["reason"] == "order_cancelled");
        let changed = settled(before) && before != after && !reopened;
        self.check(now, !changed, "settled_stays_settled", || format!("{place:?}: {before:?} became {after:?}"));
        self.check(now, after.is_some(), "no_payment_is_lost", || format!("{place:?} is gone"));
        if let (Some(before), Some(after)) = (before, after) {
            let became = || format!("{before} became {after}");
            // A refusal is not replaced by "no answer", and the earliest request is the one that counts.
            let open = before["state"] == "open";
            let worse = open && before["reason"] != "not_confirmed" && after["reason"] == "not_confirmed";
            self.check(now, !worse, "better_news_stays", became);
            let asked = |item: &Value| item["requested_at"].as_i64().unwrap_or(i64::MAX);
            self.check(now, asked(after) <= asked(before), "better_news_stays", became);
            let owner = before["failed_customer"] == after["failed_customer"];
            self.check(now, owner, "better_news_stays", became);
        }
        let resolved = |item: &&Value| item["state"] == "resolved" && item["settled_by"] != "duplicate";
        if after.filter(resolved).is_some() && before.filter(resolved).is_none() {
            self.intended(now, "resolve_failed_confirmation", &place.1);
        }
        if let Some(item) = after.filter(|item| item["state"] == "resolved") {
            // A resolution made while there was no such reservation, or an earlier one, is not noted on this one.
            if let Some((id, Some(payment))) = self.about(&place.1)
                && let Some(found) = self.reservations.get(&id)
            {
                let key = (id, found.created_at.as_millis(), payment);
                if owners(found).any(|owner| item["failed_customer"] == owner) {
                    self.given_back.insert(key.clone());
                }
                if item["settled_by"] != "duplicate" {
                    self.resolved.entry(key).or_default().insert(place.1.clone());
                }
            }
            // A duplicate is settled by whatever reads it, once an admin has resolved another of the same payment.
            let resolved_elsewhere = || {
                let (Some(id), Some(payment)) = (item["reservation_id"].as_str(), item["payment_reference"].as_str())
                else {
                    return false;
                };
                self.failed_of(id, payment).any(|other| other["state"] == "resolved" && other["id"] != item["id"])
            };
            let duplicate = item["settled_by"] == "duplicate" && resolved_elsewhere();
            let asked = self.asked.resolve.contains(&place.1) || duplicate;
            self.check(now, asked, "settled_stays_settled", || format!("no admin resolved {item}"));
            touched.paid.extend(item["reservation_id"].as_str().map(str::to_owned));
        }
    }

    /// A payment makes an order, or an admin has refunded it, but never both.
    fn paid_once(&mut self, now: i64, id: &str) {
        let Some(reservation) = self.reservations.get(id).filter(|found| found.status == Status::Confirmed) else {
            return;
        };
        let Some(payment) = reservation.payment_reference.clone() else { return };
        let key = (id.to_owned(), reservation.created_at.as_millis(), payment.to_string());
        let given_back = self.given_back.contains(&key);
        self.check(now, !given_back, "given_back_or_an_order", || format!("{payment} for {id} is both"));
        let owed = self.items.get(&hold(id)).is_some_and(|item| owed_back(item).contains(payment.as_str()));
        self.check(now, !owed, "given_back_or_an_order", || format!("{payment} for {id} is to be given back"));
        self.check(now, !given_back, "given_back_or_an_order", || format!("{payment} for {id} is both"));
    }

    /// The failed confirmations of a payment.
    fn failed_of<'a>(&'a self, reservation: &'a str, payment: &'a str) -> impl Iterator<Item = &'a Value> {
        let all = self.failed_confirmations().map(|(_, item)| item);
        all.filter(move |item| item["reservation_id"] == reservation && item["payment_reference"] == payment)
    }

    /// Whether an admin resolved this payment of this very reservation in another failed confirmation than `failed`.
    pub(crate) fn resolved_elsewhere(&self, failed: &str, reservation: &Value, payment: &str) -> bool {
        let (id, made) = (reservation["reservation_id"].as_str(), reservation["created_at"].as_i64());
        let key = (id.unwrap_or_default().to_owned(), made.unwrap_or_default(), payment.to_owned());
        self.resolved.get(&key).is_some_and(|all| all.iter().any(|id| id != failed))
    }

    /// The failed confirmations that a request retries.
    pub(crate) fn tried_again(&self, asked: &Question) -> Vec<String> {
        match asked.route() {
            Route::Retry(id) => vec![id.to_owned()],
            // Those that were refused are left to a person.
            Route::Redrive => {
                let all = self.failed_confirmations().filter(|(_, item)| item["reason"] == "not_confirmed");
                all.map(|(id, _)| id.clone()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// The reservation and the payment of a failed confirmation.
    pub(crate) fn about(&self, failed: &str) -> Option<(String, Option<String>)> {
        let item = self.items.get(&failed_place(failed))?;
        let reservation = item["reservation_id"].as_str()?.to_owned();
        Some((reservation, item["payment_reference"].as_str().map(str::to_owned)))
    }

    /// The payment of a failed confirmation.
    pub(crate) fn payment_of(&self, failed: &str) -> Option<Payment> {
        let item = self.items.get(&failed_place(failed))?;
        let text = |name: &str| item[name].as_str().map(str::to_owned);
        Some((text("reservation_id")?, text("failed_customer")?, text("payment_reference")?))
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
        before: Option<&Value>,
        after: Option<&Value>,
        cleaned_up: bool,
        touched: &mut Touched,
    ) {
        let id = place.0.trim_start_matches("HOLD#").to_owned();
        touched.reservations += 1;
        let parsed = after.map(|item| serde_json::from_value::<Reservation>(item.clone()).ok());
        let sane = parsed.as_ref().is_none_or(Option::is_some);
        self.check(now, sane, "item_makes_sense", || format!("{id}: {after:?}"));
        let new = parsed.flatten();
        // A hold that its customer cancelled says when; one that somebody else did, in its cancellation.
        let dated = |new: &Reservation| {
            new.cancelled_at.is_some() == (new.status == Status::Cancelled && new.cancellation.is_none())
        };
        self.check(now, new.as_ref().is_none_or(dated), "item_makes_sense", || format!("{id}: {after:?}"));
        let old = match &new {
            Some(new) => self.reservations.insert(id.clone(), new.clone()),
            None => self.reservations.remove(&id),
        };
        for (reservation, sign) in old.iter().map(|old| (old, -1)).chain(new.iter().map(|new| (new, 1))) {
            if matches!(reservation.status, Status::Held | Status::Confirmed) {
                for line in &reservation.lines {
                    self.holds.entry(line.product_id.to_string()).or_default().insert(id.clone());
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
        if let (Some(item), Some(new)) = (after, &new) {
            let held = new.status == Status::Held;
            // Who searches for one product's holds reads its own partitions, and those of baskets.
            let of_one = new.lines.iter().all(|line| line.product_id == new.lines[0].product_id);
            let of_baskets = |key: &str| key.bytes().all(|byte| byte.is_ascii_digit());
            let key = item["due_key"].as_str().and_then(|key| key.strip_prefix("DUE#"));
            let searched = key.is_some_and(|key| of_one || of_baskets(key));
            let due = item["due_at"].as_i64() == Some(new.expires_at.as_millis()) && searched;
            let gone = item["due_at"].is_null() && item["due_key"].is_null();
            self.check(now, if held { due } else { gone }, "index_due_has_the_holds", || format!("{item}"));
            let kept = new.status == Status::Held || new.was_ordered();
            // One whose notes were removed again may be kept as well.
            let noted = item["kept_until"].is_i64();
            let right = if item["ttl"].is_null() { kept || noted } else { !kept && remembered(item) };
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
                self.first.insert((id.clone(), new.created_at.as_millis()), quantities(&new));
                touched.made.push(id.clone());
                touched.ends_later.push(id);
            }
            (Some(old), None) => {
                let ended = matches!(old.status, Status::Cancelled | Status::Expired);
                self.check(now, ended && cleaned_up, "only_ended_holds_are_cleaned_up", || format!("{old:?} is gone"));
                self.journal.cleaned_up(&id, now);
            }
            (Some(old), Some(new)) => {
                if touched.by_admin && old.cancellation.is_none() && new.cancellation.is_some() {
                    self.intended_to_cancel(now, &id, &old);
                }
                if old.expires_at != new.expires_at {
                    touched.ends_later.push(id.clone());
                }
                if changes::is_revision(&old, &new) {
                    let products = old.lines.iter().chain(&new.lines).map(|line| line.product_id.to_string());
                    touched.relined.extend(products);
                    touched.revised.push((id.clone(), old.clone()));
                }
                if let (Some(before), Some(after)) = (before, after) {
                    if without_notes(before) == without_notes(after) {
                        self.noted(now, &id, before, after);
                    } else {
                        let mut owed = owed_back(before);
                        if old.status == Status::Confirmed && new.status == Status::Cancelled {
                            // What paid for an order that is given back.
                            owed.extend(old.payment_reference.as_ref().map(PaymentReference::as_str));
                        }
                        let same = owed == owed_back(after);
                        self.check(now, same, "settled_stays_settled", || format!("{before} became {after}"));
                        self.transition(now, &id, &old, &new);
                    }
                }
                touched.paid.insert(id);
            }
            (None, None) => {}
        }
    }

    /// Checks the notes on a reservation: payments that are owed back, and what an admin has closed.
    fn noted(&mut self, now: i64, id: &str, before: &Value, after: &Value) {
        let became = || format!("{before} became {after}");
        let (old, new) = (owed_back(before), owed_back(after));
        for payment in new.difference(&old) {
            let paid = self.asked.payments.contains(&(id.to_owned(), (*payment).to_owned()));
            self.check(now, paid, "only_the_owner", || format!("nobody paid with {payment}: {}", became()));
        }
        for payment in old.difference(&new) {
            let all = self.failed_of(id, payment).filter_map(|item| item["id"].as_str());
            let asked = all.into_iter().any(|id| self.asked.retry.contains(id));
            self.check(now, asked, "settled_stays_settled", || format!("no admin retried {payment}: {}", became()));
        }
        let closed = |item: &Value| item["unpaid_closed_at"].as_i64();
        self.check(now, closed(before) <= closed(after), "settled_stays_settled", became);
    }

    /// Checks how a reservation changed.
    fn transition(&mut self, now: i64, id: &str, old: &Reservation, new: &Reservation) {
        let same = |a: &Reservation, b: &Reservation| {
            let facts = |r: &Reservation| {
                let lines: Vec<_> = r
                    .lines
                    .iter()
                    .map(|l| {
                        (l.product_id.clone(), l.quantity, l.name.clone(), l.unit_price_minor, l.limited, l.revision)
                    })
                    .collect();
                let owners: Vec<&str> = owners(r).collect();
                let owners = owners.join(" ");
                (owners, r.created_at, r.hold_seconds, r.fingerprint.clone(), r.currency, lines)
            };
            facts(a) == facts(b)
        };
        let became = || format!("{old:?} became {new:?}");
        let revised = changes::is_revision(old, new);
        self.check(now, revised || same(old, new), "one_key_one_reservation", became);
        let takes = |r: &Reservation| r.lines.iter().map(|line| line.takes.clone()).collect::<Vec<_>>();
        let asked_at = self.asked.first_confirmed(id, new);
        match (old.status, new.status) {
            // Checked once the rest of the write is known.
            (Status::Held, Status::Held) if revised => {}
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
                // No later than the product allows, by the clock of the environment that accepted it.
                let latest = old.expires_at.plus_seconds(i64::from(old.late_payment_seconds)).as_millis();
                let allowed = asked_at.is_some_and(|at| at - SKEW_MS < latest);
                let right = new.confirmed_late && allowed;
                self.check(now, right, "no_confirm_after_the_end", became);
            }
            (Status::Held, Status::Cancelled) => {
                let asked = match &new.cancellation {
                    None => self.asked.cancel.contains(&(id.to_owned(), old.customer.to_string())),
                    Some(_) => self.asked.released(id, old),
                };
                self.check(now, asked && takes(old) == takes(new), "only_the_owner", became);
                self.released_holds += u64::from(new.cancellation.is_some());
            }
            // An admin released a hold that had expired: no late payment makes an order of it any more.
            (Status::Expired, Status::Cancelled) => {
                let asked = new.cancellation.is_some() && self.asked.release.contains(id);
                self.check(now, asked && takes(old) == takes(new), "only_the_owner", became);
            }
            (Status::Cancelled, Status::Confirmed) if old.cancellation.is_some() && !old.was_ordered() => {
                self.check(now, false, "a_released_hold_never_confirms", became);
            }
            (Status::Held, Status::Expired) => {
                let over = old.expires_at.as_millis() <= now + SKEW_MS;
                self.check(now, over && takes(old) == takes(new), "no_hold_ends_early", became);
                let since = self.calm_at.map(|calm_at| now - old.expires_at.as_millis().max(calm_at));
                let in_time = since.is_none_or(|since| since <= BOUND_MS);
                self.check(now, in_time, "every_hold_ends_within_its_bound", || format!("{since:?} ms: {}", became()));
            }
            (Status::Confirmed, Status::Cancelled) => {
                let said = new.cancellation.is_some() && self.asked.give_back.contains(id);
                self.check(now, said && takes(old) == takes(new), "only_the_owner", became);
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
            let known = paid.clone().is_none_or(|paid| self.asked.payments.contains(&paid));
            self.check(now, known, "only_the_owner", || format!("nobody paid like that: {new:?}"));
            if let Some((id, payment)) = paid {
                let owners: Vec<&str> = owners(new).collect();
                let broken = self.finality.must_not_buy(&id, &payment, &owners);
                let promise = broken.as_ref().map_or("what_is_owed_back_buys_nothing", |(promise, _)| *promise);
                self.check(now, broken.is_none(), promise, || format!("{broken:?}: {}", became()));
            }
        }
    }

    /// Notes that Scheduler failed this environment.
    pub(crate) fn scheduler_fails(&mut self, now: i64, by: &str) {
        self.scheduler_failed.insert(by.to_owned(), now);
    }

    /// Whether this environment may write a hold without its reminder.
    pub(crate) fn is_without_scheduler(&self, now: i64, by: &str) -> bool {
        /// An environment does without for ten seconds; a request that has begun meanwhile may take another nine, and be frozen
        /// for as long.
        const WITHOUT_MS: i64 = 40_000;
        self.scheduler_failed.get(by).is_some_and(|&at| now - at < WITHOUT_MS)
    }

    /// Checks that a hold with a new end has its reminder, unless Scheduler failed its environment a short time ago.
    fn reminded(&mut self, now: i64, id: &str, schedules: &BTreeSet<i64>, by: Option<&str>) {
        if by.is_some_and(|by| self.is_without_scheduler(now, by)) {
            return;
        }
        let Some(hold) = self.reservations.get(id).cloned() else { return };
        let ends = hold.expires_at.as_millis();
        let reminded = schedules.iter().any(|&at| at * 1_000 >= ends && at * 1_000 < ends + 10_000 + 1_000);
        self.check(now, reminded, "no_hold_without_its_reminder", || format!("{hold:?}"));
    }

    /// Checks a new hold: made of one version of each product, and its shards knew no newer one.
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
            let counts = self.counts.get(product).copied();
            let fits = |product: &Product| {
                product.version >= newest
                    && product.name == line.name
                    && product.price_minor == line.unit_price_minor
                    && product.on_sale(new.created_at).is_ok()
                    && counts.unwrap_or(product.max_per_customer.is_some()) == line.limited
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
            // Consolidation moves units between shards, while nothing else of the product changes.
            let gathered = touched.reservations == 0 && touched.moved(product) == 0;
            // A change of lines releases what a line keeps to its first shard.
            let relined = touched.relined.contains(product) && touched.moved(product) == 0;
            let adjusted = touched.totals.contains(product) || gathered || relined;
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

    /// Whether every shard of a product has at least this version.
    pub(crate) fn all_shards_know(&self, product: &str, version: u64) -> bool {
        self.shards_of(product).all(|(_, shard)| shard.version >= version)
    }

    /// The product as it is now.
    pub(crate) fn current(&self, product: &str) -> Option<&Product> {
        self.products.get(product)?.last().map(|(_, product)| product)
    }

    /// The reservations that are held.
    pub(crate) fn held(&self) -> impl Iterator<Item = &Reservation> {
        self.reservations.values().filter(|reservation| reservation.status == Status::Held)
    }

    /// The free units of a product.
    pub(crate) fn free(&self, product: &str) -> i64 {
        self.shards_of(product).map(|(_, shard)| shard.available).sum()
    }

    /// The item with this key at a moment.
    pub(crate) fn item_at(&self, place: &Place, at: Moment) -> Option<&Value> {
        self.past.lay(place, at).unwrap_or_else(|| self.product_items.get(place).or_else(|| self.items.get(place)))
    }

    /// The keys of a product's shards.
    pub(crate) fn shard_places(&self, product: &str) -> Vec<Place> {
        let shards = self.shards_of(product);
        shards.map(|(number, _)| (format!("STOCK#{product}#{number}"), "STOCK".to_owned())).collect()
    }

    /// The lines of the request that made this reservation.
    pub(crate) fn first_lines(&self, item: &Value) -> Option<&[(String, u64)]> {
        let made = (item["reservation_id"].as_str()?.to_owned(), item["created_at"].as_i64()?);
        self.first.get(&made).map(Vec::as_slice)
    }

    /// Every reservation that a product ever had.
    pub(crate) fn holds_of(&self, product: &str) -> impl Iterator<Item = &str> {
        self.holds.get(product).into_iter().flatten().map(String::as_str)
    }

    /// The ids of all products.
    pub(crate) fn product_ids(&self) -> impl Iterator<Item = &String> {
        self.products.keys()
    }

    /// All items of one partition, by sort key.
    pub(crate) fn partition<'a>(&'a self, pk: &'a str) -> impl Iterator<Item = (&'a String, &'a Value)> {
        let from = self.items.range((pk.to_owned(), String::new())..);
        from.take_while(move |(place, _)| place.0 == pk).map(|(place, item)| (&place.1, item))
    }

    /// Records that the indexes show an item from now on, or not any more.
    pub(crate) fn shows(&mut self, place: &Place, item: Option<&Value>) {
        let at = self.past.now();
        self.shown.entry(place.clone()).or_default().push((at, item.map(Shown::of)));
    }

    /// What the indexes showed of an item at any of these moments, including changes within the first one.
    fn shown(&self, place: &Place, from: Moment, to: Moment) -> impl Iterator<Item = Option<&Shown>> {
        let all = self.shown.get(place).map(Vec::as_slice).unwrap_or_default();
        let first = all.partition_point(|(at, _)| *at < from).saturating_sub(1);
        all[first..].iter().take_while(move |(at, _)| *at <= to).map(|(_, shown)| shown.as_ref())
    }

    /// The items of a kind that the indexes have shown since a moment, without interruption, and always so that this holds.
    pub(crate) fn indexed_since<'a>(
        &'a self,
        kind: &'a str,
        at: Moment,
        so: impl Fn(&Place, &Shown) -> bool,
    ) -> impl Iterator<Item = &'a Place> {
        let all = self.shown.range((kind.to_owned(), String::new())..);
        let of_kind = all.take_while(move |(place, _)| place.0.starts_with(kind));
        of_kind
            .filter(move |(place, shown)| {
                // A change within that moment may have come after the request.
                let first = shown.partition_point(|(since, _)| *since < at);
                first > 0
                    && shown[first - 1..].iter().all(|(_, shown)| shown.as_ref().is_some_and(|shown| so(place, shown)))
            })
            .map(|(place, _)| place)
    }

    /// The end that the index `due` showed for this very hold, with its lines and for its customer, during a whole moment,
    /// if it did throughout.
    pub(crate) fn due(&self, id: &str, item: &Value, at: Moment) -> Option<i64> {
        let due = |shown: Option<&Shown>| {
            let made = item["created_at"].as_i64();
            let shown = shown.filter(|shown| shown.created_at == made && shown.revision == revision(item))?;
            shown.due_at
        };
        let before = self.shown.get(&hold(id))?.first().is_some_and(|(since, _)| *since < at);
        let all: Option<Vec<i64>> = self.shown(&hold(id), at, at).map(due).collect();
        all.filter(|_| before)?.into_iter().max()
    }

    /// The ends that the index `due` showed for it at any of these moments, each with its units of a product then.
    pub(crate) fn dues(&self, id: &str, product: &str, from: Moment, to: Moment) -> Vec<(i64, i64)> {
        let due = |shown: Option<&Shown>| {
            let shown = shown?;
            Some((shown.due_at?, shown.units.get(product).copied().unwrap_or_default()))
        };
        self.shown(&hold(id), from, to).filter_map(due).collect()
    }

    /// Whether a payment for a reservation belongs to its order, or to a failed confirmation.
    pub(crate) fn knows_payment(&self, reservation: &str, payment: &str) -> bool {
        let order = self.reservations.get(reservation).is_some_and(|reservation| {
            let paid = reservation.payment_reference.as_ref().is_some_and(|known| known.as_str() == payment);
            paid && reservation.status == Status::Confirmed
        });
        order || self.failed_of(reservation, payment).next().is_some()
    }

    /// Nothing runs any more: checks that the state of every failed confirmation is right.
    pub(crate) fn failed_at_rest(&mut self, now: i64) {
        let mut wrong = Vec::new();
        for (_, item) in self.failed_confirmations() {
            let found = item["reservation_id"].as_str().and_then(|id| self.reservations.get(id));
            let paid = item["payment_reference"].as_str();
            // A payment belongs to its reservation, whichever customer was named with it; a confirmation without one, to
            // that of its customer, or of a former one.
            let own = found.filter(|found| owners(found).any(|owner| item["failed_customer"] == owner));
            let order = found.filter(|found| (paid.is_some() || own.is_some()) && found.status == Status::Confirmed);
            let ordered = order.is_some_and(|order| {
                paid.is_none_or(|paid| order.payment_reference.as_ref().is_some_and(|known| known.as_str() == paid))
            });
            let right = match item["state"].as_str() {
                // It was retried: only one without a reservation still has no answer.
                Some("open") => (item["reason"] != "not_confirmed" || own.is_none()) && !(paid.is_some() && ordered),
                // Every queue is empty: nothing would process it again.
                Some("retrying") => false,
                // Its order may have been given back since: then only what was paid in its customer's name is owed there.
                Some("confirmed") => {
                    let named = found.is_some_and(|found| item["failed_customer"] == found.customer.as_str());
                    let given_back =
                        found.is_some_and(|found| found.status == Status::Cancelled && found.was_ordered());
                    ordered || (paid.is_none() || !named) && given_back
                }
                _ => true,
            };
            if !right {
                wrong.push(item.clone());
            }
        }
        self.check(now, wrong.is_empty(), "failed_confirmations_end", || format!("{wrong:?}"));
    }
}

/// Whether an ended reservation is kept for as long as it matters: forever if it owes a payment back.
fn remembered(item: &Value) -> bool {
    owed_back(item).is_empty() || item["ttl"].as_i64() >= Some(YEAR_9999)
}

/// A reservation without its notes.
fn without_notes(item: &Value) -> Value {
    let mut item = item.clone();
    if let Some(item) = item.as_object_mut() {
        for name in ["owed_back", "refunded", "unpaid_closed_at", "kept_until", "ttl"] {
            item.remove(name);
        }
    }
    item
}

/// What one write touched.
#[derive(Debug, Default)]
struct Touched {
    /// Whether the function `admin` made it.
    by_admin: bool,
    /// Products whose items, or entries in the directory, have changed.
    placed: BTreeSet<String>,
    products: BTreeSet<String>,
    totals: BTreeSet<String>,
    entries: BTreeMap<String, i64>,
    on_shard: BTreeMap<(String, u32), i64>,
    limits: BTreeSet<(String, String)>,
    /// Number of reservations.
    reservations: usize,
    made: Vec<String>,
    /// Holds whose lines or owner have changed, each as it was.
    revised: Vec<(String, Reservation)>,
    /// The products of those, before and after.
    relined: BTreeSet<String>,
    /// Holds whose end is new or has changed.
    ends_later: Vec<String>,
    /// Reservations whose payment, or an admin's decision about it, may have changed.
    paid: BTreeSet<String>,
}

impl Touched {
    /// How many units a product gained, on its shards and in its reservations together.
    fn moved(&self, product: &str) -> i64 {
        self.on_shard.iter().filter(|((of, _), _)| of == product).map(|(_, moved)| moved).sum()
    }
}
