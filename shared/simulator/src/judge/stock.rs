//! Answers about units: what is free, what a customer may have, a product's facts, and changes of its total.

use serde_json::Value;

use super::changes::counted;
use super::{Case, Ruling, hold, lines, shown};
use crate::books::SKEW_MS;
use crate::dynamo::Place;
use crate::past::{MEMORY_MS, Moment, VIEW_MS};
use crate::table::PARTLY_MS;

/// A product's own key. The books know it there also while it is in the directory.
pub(crate) fn product_place(id: &str) -> Place {
    (format!("PRODUCT#{id}"), "PRODUCT".to_owned())
}

/// The least and the most that an answer may say about a number that is read at several instants.
type Bounds = (i64, i64);

/// When an answer has read what it shows: not before a moment, and with a clock that showed a time in between.
///
/// Not only a moment, because a second in which nothing is written is no time for moments, and yet holds end in it.
#[derive(Clone, Copy)]
struct Read {
    from: Moment,
    first: i64,
    last: i64,
}

impl<'a> Case<'a> {
    /// The versions of a product that an environment may use.
    fn facts(&self, id: &str, from: Moment) -> Vec<&'a Value> {
        let place = product_place(id);
        let moments = self.books.past.moments([&place], from, self.window.answered);
        moments.into_iter().filter_map(|at| self.item(&place, at)).collect()
    }

    /// Whether every line that the answer names, or any line if it names none, asks for more units than were free when
    /// the shards were read, after overdue holds were released.
    pub(super) fn sold_out(&self, wanted: &[(String, u64)], told: Option<&Value>) -> bool {
        let short = |id: &str, quantity: i64| self.least_in_reach(id, self.window.remembered) < quantity;
        let Some(told) = told else {
            return wanted.iter().any(|(id, quantity)| short(id, units(*quantity)));
        };
        let told = told.as_array().map(Vec::as_slice).unwrap_or_default();
        !told.is_empty()
            && told.iter().all(|line| {
                let (id, requested) = (line["product_id"].as_str().unwrap_or_default(), line["requested"].as_i64());
                let available = line["available"].as_i64().unwrap_or(-1);
                let (least, most) = self.on_shards(id, self.window.remembered);
                let asked = wanted.iter().any(|(other, quantity)| other == id && requested == Some(units(*quantity)));
                let requested = requested.unwrap_or_default();
                asked && available < requested && (least..=most).contains(&available) && short(id, requested)
            })
    }

    /// Whether what an expired reservation would need is not available: units, or room under its customer's limit.
    pub(super) fn out_of_reach(&self, item: &Value) -> bool {
        let owner = item["customer"].as_str().unwrap_or_default();
        let limited = counted(item).iter().any(|(id, quantity)| self.over_limit(id, owner, units(*quantity), None));
        limited || self.sold_out(&lines(item), None)
    }

    /// The fewest units available at any one moment: those on the shards, and those that must be released first.
    fn least_in_reach(&self, product: &str, from: Moment) -> i64 {
        let shards = self.books.shard_places(product);
        let holds: Vec<Place> = self.books.holds_of(product).map(hold).collect();
        let moments = self.books.past.moments(shards.iter().chain(&holds), from, self.window.answered);
        let free =
            |at: Moment| -> i64 { shards.iter().filter_map(|shard| self.item(shard, at)?["available"].as_i64()).sum() };
        moments.into_iter().map(|at| free(at) + self.overdue(product, None, at)).min().unwrap_or_default()
    }

    /// Units of a product at a moment, in holds that were overdue when the window began and that the index showed as
    /// such then: a refusal must release them first. Of one customer, or of all.
    fn overdue(&self, product: &str, customer: Option<&str>, at: Moment) -> i64 {
        let over_at = self.clock().0 - MEMORY_MS;
        let overdue = self.books.holds_of(product).filter_map(|id| {
            let item = self.item(&hold(id), at)?;
            let over = item["status"] == "held" && item["expires_at"].as_i64()? <= over_at;
            let own = customer.is_none_or(|customer| item["customer"] == customer);
            let due = self.books.due(id, item, self.window.remembered);
            (over && own && due.is_some_and(|due| due <= over_at)).then_some(item)
        });
        overdue.map(|item| taken(item, product)).sum()
    }

    /// The least and the most units on a product's shards, each shard at an instant of its own.
    fn on_shards(&self, product: &str, from: Moment) -> Bounds {
        let bounds = self.books.shard_places(product).into_iter().map(|shard| {
            let moments = self.books.past.moments([&shard], from, self.window.answered).into_iter();
            let free = moments.map(|at| self.item(&shard, at).and_then(|item| item["available"].as_i64()).unwrap_or(0));
            free.fold((i64::MAX, 0), |(least, most), free| (least.min(free), most.max(free)))
        });
        bounds.fold((0, 0), |(least, most), (l, m)| (least + l, most + m))
    }

    /// Whether a customer's units, without those that are overdue, plus this quantity exceed a limit that the product
    /// had (`told`, if the answer names it).
    fn over_limit(&self, product: &str, customer: &str, quantity: i64, told: Option<i64>) -> bool {
        let place = (format!("LIMIT#{product}#{customer}"), "LIMIT".to_owned());
        let limits = self.facts(product, self.window.remembered);
        let limits = limits.iter().filter_map(|facts| facts["max_per_customer"].as_i64());
        let mut limits = limits.filter(|limit| told.is_none_or(|told| told == *limit)).peekable();
        limits.peek().is_some()
            && limits.any(|limit| {
                let holds: Vec<Place> = self.books.holds_of(product).map(hold).collect();
                self.once(holds.iter().chain([&place]), |at| {
                    let counted = self.item(&place, at).and_then(|item| item["units"].as_i64()).unwrap_or_default();
                    counted - self.overdue(product, Some(customer), at) + quantity > limit
                })
            })
    }

    /// The bounds of the answer's numbers, to explain a violation.
    pub(super) fn bounds(&self) -> String {
        let body = &self.reply.body;
        let lines = body["lines"].as_array().map_or(std::slice::from_ref(body), Vec::as_slice);
        let of = |body: &Value| {
            let id = body["product_id"].as_str()?;
            let (remembered, now) = (self.window.remembered, self.read_now());
            let (told, counted) = self.read_as_told(body).unzip();
            Some(format!(
                "{id}: {:?} available, {:?} reserved; {} in reach, {:?} on shards since a second ago; at once {:?}, {:?}",
                self.in_reach(id, told.unwrap_or(now)),
                self.reserved(id, counted.unwrap_or(now)),
                self.least_in_reach(id, remembered),
                self.on_shards(id, remembered),
                self.in_reach(id, now),
                self.reserved(id, now)
            ))
        };
        lines.iter().filter_map(of).collect::<Vec<_>>().join("; ")
    }

    /// Whether these units would exceed the limit that the answer names.
    pub(super) fn limited(&self, wanted: &[(String, u64)], customer: &str) -> bool {
        let (product, limit) = (self.reply.body["product_id"].as_str(), self.reply.body["max_per_customer"].as_i64());
        let (Some(product), Some(limit)) = (product, limit) else { return false };
        let quantity = wanted.iter().find(|(other, _)| other == product).map(|(_, quantity)| units(*quantity));
        quantity.is_some_and(|quantity| self.over_limit(product, customer, quantity, Some(limit)))
    }

    /// Whether the product that the answer names is one of these, and did not exist.
    pub(super) fn unknown(&self, wanted: &[(String, u64)]) -> bool {
        let Some(id) = self.reply.body["product_id"].as_str() else { return false };
        let place = product_place(id);
        wanted.iter().any(|(other, _)| other == id) && self.once([&place], |at| self.item(&place, at).is_none())
    }

    /// Whether the product that the answer names was not on sale, by facts at most a second old.
    pub(super) fn not_on_sale(&self, wanted: &[(String, u64)]) -> bool {
        let body = &self.reply.body;
        let Some(id) = body["product_id"].as_str().filter(|id| wanted.iter().any(|(other, _)| other == id)) else {
            return false;
        };
        let (least, most) = self.clock();
        self.facts(id, self.window.remembered).iter().any(|facts| {
            let (starts, ends) = (facts["sale_starts_at"].as_i64(), facts["sale_ends_at"].as_i64());
            if self.reply.code() == "product_not_on_sale" {
                return facts["status"] != "on_sale";
            }
            let early = starts.is_some_and(|starts| least < starts && shown(&body["sale_starts_at"]) == Some(starts));
            early || ends.is_some_and(|ends| most >= ends && body["sale_starts_at"].is_null())
        })
    }

    /// Whether the answer names a product whose price differs from the one that the customer saw, each with the price that it
    /// had during the request: a price is never refused on cached facts. `kept`: the price of a line that keeps it.
    pub(super) fn another_price(&self, kept: impl Fn(&str) -> Option<u64>) -> bool {
        let asked = |id: &Value| {
            let lines = self.asked.body["lines"].as_array().into_iter().flatten();
            lines.filter(|line| line["product_id"] == *id).find_map(|line| line["unit_price_minor"].as_u64())
        };
        let differs = |told: &Value| {
            let (id, price) = (told["product_id"].as_str().unwrap_or_default(), told["unit_price_minor"].as_u64());
            let facts = self.facts(id, self.window.sent);
            let right = match kept(id) {
                Some(kept) => Some(kept) == price,
                None => facts.iter().any(|facts| facts["price_minor"].as_u64() == price),
            };
            price.is_some() && right && asked(&told["product_id"]).is_some_and(|seen| Some(seen) != price)
        };
        self.reply.body["lines"].as_array().is_some_and(|told| !told.is_empty() && told.iter().all(differs))
    }

    /// Whether these products, and a hold in `currency` if there is one, have more than one currency.
    pub(super) fn mixed(&self, wanted: &[(String, u64)], currency: Option<&str>) -> bool {
        let currencies = wanted.iter().flat_map(|(id, _)| self.facts(id, self.window.remembered));
        let currencies: std::collections::BTreeSet<_> =
            currencies.filter_map(|facts| facts["currency"].as_str()).chain(currency).collect();
        currencies.len() > 1
    }

    pub(super) fn product(&self, id: &str) -> Ruling {
        let place = product_place(id);
        match self.reply.status {
            200 => (self.shows_view(&self.reply.body), "the_catalogue_is_right"),
            404 => (self.once([&place], |at| self.item(&place, at).is_none()), "only_true_refusals"),
            _ => (false, "only_documented_refusals"),
        }
    }

    pub(super) fn products(&self) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            return (false, "only_documented_refusals");
        };
        let admin = self.asked.path.starts_with("/admin");
        // The public list has no archived products.
        let belongs = |body: &Value| admin || body["status"] != "archived";
        let right = |body: &Value| if admin { self.shows_product(body) } else { self.shows_view(body) };
        if !items.iter().all(|body| belongs(body) && right(body)) {
            return (false, "the_catalogue_is_right");
        }
        let whole = self.asked.query("cursor").is_none() && self.reply.body["next_cursor"].is_null();
        let listed = |id: &str| items.iter().any(|body| body["product_id"] == id);
        let missing = self.books.product_ids().any(|id| {
            let place = product_place(id);
            // The public list may be a page that was remembered, with old views.
            let from = if admin { self.window.sent } else { self.window.shown };
            let archived = || !admin && self.facts(id, from).iter().any(|facts| facts["status"] == "archived");
            let moments = self.books.past.moments([&place], from, self.window.answered);
            !listed(id) && moments.into_iter().all(|at| self.item(&place, at).is_some()) && !archived()
        });
        (!whole || !missing, "the_lists_are_the_table")
    }

    /// What an answer has read for itself.
    fn read_now(&self) -> Read {
        let (first, last) = self.clock();
        Read { from: self.window.sent, first, last }
    }

    /// When the units of a view were read, and when its holds were counted, as the answer tells it: not too old, and by the clock
    /// of any environment.
    fn read_as_told(&self, body: &Value) -> Option<(Read, Read)> {
        let (stock_at, reserved_at) = (shown(&body["stock_at"])?, shown(&body["reserved_at"])?);
        let (first, last) = self.clock();
        let from = |at: i64| self.books.past.at(at - SKEW_MS - i64::try_from(PARTLY_MS).unwrap_or_default());
        let told = stock_at > first - VIEW_MS && stock_at <= last && reserved_at <= stock_at;
        let read = |at: i64| Read { from: from(at), first: at, last: stock_at };
        told.then(|| (read(stock_at), read(reserved_at)))
    }

    /// Whether an answer shows a product as it was at the time that it tells, which is not too long ago.
    fn shows_view(&self, body: &Value) -> bool {
        self.read_as_told(body).is_some_and(|(read, counted)| self.shows_units(body, read, counted))
    }

    /// Whether an answer shows a product as it was during the request.
    fn shows_product(&self, body: &Value) -> bool {
        let untold = body["stock_at"].is_null() && body["reserved_at"].is_null();
        untold && self.shows_units(body, self.read_now(), self.read_now())
    }

    /// Whether an answer shows a product as it was when it was read, with numbers that may have been read.
    fn shows_units(&self, body: &Value, read: Read, counted: Read) -> bool {
        let id = body["product_id"].as_str().unwrap_or_default();
        let number = |name: &str| body[name].as_i64().unwrap_or(-1);
        let (available, reserved, sold, total) =
            (number("available"), number("reserved"), number("sold"), number("total"));
        let whole = sold == (total - available - reserved).max(0);
        // No more than there is room for: holds may have been counted before.
        let (least, most) = self.reserved(id, counted);
        let counted = if body["stock_at"].is_null() { (least, most) } else { (least.min(total - available), most) };
        whole
            && self.facts(id, read.from).iter().any(|facts| same_facts(facts, body))
            && within(available, self.in_reach(id, read))
            && within(reserved, counted)
    }

    /// The bounds of a product's available units: those on its shards, and those in overdue holds.
    fn in_reach(&self, product: &str, read: Read) -> Bounds {
        let (least, most) = self.on_shards(product, read.from);
        let (always, ever) = self.in_holds(product, read, true);
        (least + always, most + ever)
    }

    /// The bounds of the units in holds that are not overdue.
    fn reserved(&self, product: &str, read: Read) -> Bounds {
        self.in_holds(product, read, false)
    }

    /// The units in holds that are overdue, or are not, by the index: at every moment since it was read, and at any.
    fn in_holds(&self, product: &str, Read { from, first, last }: Read, over: bool) -> Bounds {
        let mut bounds = (0, 0);
        for id in self.books.holds_of(product) {
            let place = hold(id);
            let moments = self.books.past.moments([&place], from, self.window.answered);
            let held = |at: &Moment| self.item(&place, *at).filter(|item| item["status"] == "held");
            let right = |ends: i64, at: i64| if over { ends <= at } else { ends > at };
            let by_clock = |item: &Value, at: i64| item["expires_at"].as_i64().is_some_and(|ends| right(ends, at));
            // Overdue at its start means overdue all the time, and not overdue at its end means not overdue before.
            let always = moments.iter().all(|at| {
                held(at).is_some_and(|item| {
                    by_clock(item, if over { first } else { last })
                        && self.books.due(id, item, from) == item["expires_at"].as_i64()
                })
            });
            // With the lines that it had then: they may have been changed since.
            let ends = self.books.dues(id, product, from, self.window.answered).into_iter();
            let ever = ends.filter(|(due, _)| right(*due, if over { last } else { first })).map(|(_, units)| units);
            let units =
                moments.iter().rev().find_map(|at| self.item(&place, *at)).map_or(0, |item| taken(item, product));
            bounds.0 += if always { units } else { 0 };
            bounds.1 += ever.max().unwrap_or_default();
        }
        bounds
    }

    pub(super) fn create(&self) -> Ruling {
        let body = &self.reply.body;
        let id = self.asked.body["product_id"].as_str().unwrap_or_default();
        let place = product_place(id);
        match (self.reply.status, self.reply.code()) {
            (201, _) => {
                let fresh = body["available"] == body["total"] && body["reserved"] == 0 && body["sold"] == 0;
                let right = fresh && self.facts(id, self.window.sent).iter().any(|facts| same_facts(facts, body));
                (right, "answers_are_the_table")
            }
            (409, "product_exists") => {
                let right = body["product_id"] == id && self.once([&place], |at| self.item(&place, at).is_some());
                (right, "only_true_refusals")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    pub(super) fn change(&self, id: &str) -> Ruling {
        let (body, asked) = (&self.reply.body, &self.asked.body);
        let place = product_place(id);
        let version = asked["version"].as_u64().unwrap_or_default();
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let changes = asked.as_object().into_iter().flatten().filter(|(name, _)| *name != "version");
                let made = changes.into_iter().all(|(name, value)| {
                    body[name] == *value || shown(value).is_some_and(|at| shown(&body[name]) == Some(at))
                });
                let right = made && body["version"] == version + 1 && self.shows_product(body);
                // Once the call returns, no reservation uses the old facts.
                (right && self.books.all_shards_know(id, version + 1), "a_change_counts_once_it_returns")
            }
            (409, "version_mismatch") => {
                let current = body["current"].as_u64();
                let right = current != Some(version)
                    && self.once([&place], |at| {
                        self.item(&place, at).is_some_and(|item| item["version"].as_u64() == current)
                    })
                    && current.is_some_and(|current| self.books.all_shards_know(id, current));
                (right, "a_change_counts_once_it_returns")
            }
            (404, "product_not_found") => {
                (self.once([&place], |at| self.item(&place, at).is_none()), "only_true_refusals")
            }
            // A limit is only for products that have counted each customer's units from the start.
            (400, "invalid_request") => {
                let uncounted = |facts: &&Value| facts["counts_per_customer"] != true;
                let right = body["field"] == "max_per_customer"
                    && asked["max_per_customer"].is_u64()
                    && self.facts(id, self.window.sent).iter().any(uncounted);
                (right, "only_true_refusals")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    pub(super) fn adjust(&self, id: &str) -> Ruling {
        let (body, asked) = (&self.reply.body, &self.asked.body);
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let place = (format!("LEDGER#{id}"), body["entry_id"].as_str().unwrap_or_default().to_owned());
                let right = ["delta", "reason", "reference"].iter().all(|name| body[*name] == asked[*name])
                    && self.once([&place], |at| self.item(&place, at).is_some_and(|item| same_entry(item, body)));
                (right, "one_key_one_outcome")
            }
            // The reference model checks which body the key belongs to.
            (422, "idempotency_key_reused") => (true, "one_key_one_outcome"),
            (404, "product_not_found") => {
                let place = product_place(id);
                (self.once([&place], |at| self.item(&place, at).is_none()), "only_true_refusals")
            }
            (409, "insufficient_stock" | "version_mismatch") => {
                (self.not_adjusted(id).is_some(), "one_key_one_outcome")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    /// The first moment at which an adjustment's refusal was true of the product and its shards together.
    pub(crate) fn not_adjusted(&self, id: &str) -> Option<Moment> {
        let (body, asked) = (&self.reply.body, &self.asked.body);
        let place = product_place(id);
        let shards = self.books.shard_places(id);
        let holds: Vec<Place> = self.books.holds_of(id).map(hold).collect();
        let places = shards.iter().chain(&holds).chain([&place]);
        let moments = self.books.past.moments(places, self.window.sent, self.window.answered);
        moments.into_iter().find(|&at| {
            if self.reply.code() == "version_mismatch" {
                let total = self.item(&place, at).and_then(|item| item["total"].as_i64());
                return total == body["current"].as_i64()
                    && asked["expected_total"].as_i64().is_some_and(|expected| Some(expected) != total);
            }
            let line = &body["lines"][0];
            let free: i64 = shards.iter().filter_map(|shard| self.item(shard, at)?["available"].as_i64()).sum();
            let requested = asked["delta"].as_i64().map(|delta| -delta);
            line["product_id"] == id
                && line["requested"].as_i64() == requested
                && line["available"].as_i64() == Some(free)
                && requested.is_some_and(|requested| free + self.overdue(id, None, at) < requested)
        })
    }

    pub(super) fn ledger(&self, id: &str) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            let place = product_place(id);
            let right = self.reply.status == 404 && self.once([&place], |at| self.item(&place, at).is_none());
            return (right, "only_documented_refusals");
        };
        // Entries never change: the ledger now tells what it was, except for the newest ones.
        let partition = format!("LEDGER#{id}");
        let entries: Vec<_> = self.books.partition(&partition).collect();
        let there =
            |body: &&Value| entries.iter().any(|(entry, item)| body["entry_id"] == **entry && same_entry(item, body));
        let sorted = items.windows(2).all(|two| two[0]["entry_id"].as_str() > two[1]["entry_id"].as_str());
        let whole = self.asked.query("cursor").is_none() && self.reply.body["next_cursor"].is_null();
        let missing = entries.iter().any(|(entry, _)| {
            let place = (partition.clone(), (*entry).clone());
            let old = self.item(&place, self.window.sent).is_some();
            old && !items.iter().any(|body| body["entry_id"] == **entry)
        });
        let right = items.iter().filter(there).count() == items.len() && sorted && !(whole && missing);
        (right, "the_lists_are_the_table")
    }
}

fn units(quantity: u64) -> i64 {
    i64::try_from(quantity).unwrap_or(i64::MAX)
}

fn within(number: i64, (least, most): Bounds) -> bool {
    (least..=most).contains(&number)
}

/// Units of a product in a reservation.
fn taken(item: &Value, product: &str) -> i64 {
    let lines = item["lines"].as_array().into_iter().flatten();
    lines.filter(|line| line["product_id"] == product).filter_map(|line| line["quantity"].as_i64()).sum()
}

/// Whether an answer shows these facts of a product.
fn same_facts(facts: &Value, body: &Value) -> bool {
    let plain = [
        "product_id",
        "name",
        "price_minor",
        "currency",
        "total",
        "status",
        "hold_seconds",
        "max_per_customer",
        "shards",
        "version",
    ];
    plain.iter().all(|name| body[*name] == facts[*name])
        && ["sale_starts_at", "sale_ends_at"].iter().all(|name| shown(&body[*name]) == facts[*name].as_i64())
}

/// Whether an answer shows this entry of a ledger.
fn same_entry(item: &Value, body: &Value) -> bool {
    ["entry_id", "delta", "total_after", "reason", "reference", "actor"].iter().all(|name| body[*name] == item[*name])
        && shown(&body["created_at"]) == item["created_at"].as_i64()
}
