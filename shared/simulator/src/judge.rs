//! Whether a response was true: its status and its body, as a whole, at one moment between request and response. (One
//! match over all routes, hence the length.)
//!
//! A judge knows the table as it was at each moment of that window, and what the documentation says about each answer;
//! it does not know how the functions work. The time is known from the answer (`server_time`), or as exactly as the
//! clock of the environment that answered. Two things may be a second older than the request, because docs/api.md says
//! so: "sold out", and what a product's facts forbid. Nothing else is excused.

mod actions;
mod changes;
pub(crate) mod failed;
pub(crate) mod finality;
pub(crate) mod stock;

use std::cmp::Reverse;
use std::collections::BTreeSet;

use holdfast_domain::{CustomerId, IdempotencyKey, ReservationId};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::books::{Books, SKEW_MS, Shown};
use crate::dynamo::Place;
use crate::past::{IN_FLIGHT_MS, Moment, Window};

/// An answer over HTTP.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u64,
    pub(crate) body: Value,
}

impl Reply {
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Whether it says anything about the request.
    pub(crate) fn clear(&self) -> bool {
        self.status < 500 && self.status != 429
    }
}

/// A request, and who sent it.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// The customer, even if a service acts for them; or the admin.
    pub(crate) who: String,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

/// A request with its answer.
pub(crate) struct Case<'a> {
    pub(crate) books: &'a Books,
    pub(crate) asked: &'a Question,
    pub(crate) reply: &'a Reply,
    pub(crate) window: Window,
    /// The clock skew of the environment that answered, if known.
    pub(crate) skew: Option<i64>,
}

/// The promise that an answer breaks, and how.
pub(crate) type Broken = Option<(&'static str, String)>;

/// The routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    Reserve,
    Confirm(&'a str),
    Extend(&'a str),
    Cancel(&'a str),
    ChangeLines(&'a str),
    HandOver(&'a str),
    Release(&'a str),
    ReleaseAll(&'a str),
    GiveBack(&'a str),
    Get(&'a str),
    Order(&'a str),
    Reservations,
    Orders,
    Product(&'a str),
    Products,
    Create,
    Change(&'a str),
    Adjust(&'a str),
    Ledger(&'a str),
    AllReservations,
    AnyReservation(&'a str),
    Actions,
    Failed,
    Retry(&'a str),
    Resolve(&'a str),
    Redrive,
    Unknown,
}

impl Route<'_> {
    /// Whether it is an admin's request that changes something.
    pub(crate) fn is_action(self) -> bool {
        use Route::{Adjust, Change, Create, Redrive, Release, ReleaseAll, Resolve, Retry};
        matches!(self, Create | Change(_) | Adjust(_) | Release(_) | ReleaseAll(_) | Retry(_) | Resolve(_) | Redrive)
    }
}

impl Question {
    /// The route, by the method and the path without its query.
    pub(crate) fn route(&self) -> Route<'_> {
        let path = self.path.split('?').next().unwrap_or_default();
        let parts: Vec<&str> = path.split('/').skip(1).collect();
        match (self.method, parts.as_slice()) {
            ("POST", ["reservations"]) => Route::Reserve,
            ("GET", ["reservations"]) => Route::Reservations,
            ("GET", ["orders"]) => Route::Orders,
            ("GET", ["orders", id]) => Route::Order(id),
            ("POST", ["orders", id, "cancel"]) => Route::GiveBack(id),
            ("GET", ["reservations", id]) => Route::Get(id),
            ("DELETE", ["reservations", id]) => Route::Cancel(id),
            ("POST", ["reservations", id, "confirm"]) => Route::Confirm(id),
            ("POST", ["reservations", id, "extend"]) => Route::Extend(id),
            ("PUT", ["reservations", id, "lines"]) => Route::ChangeLines(id),
            ("POST", ["reservations", id, "transfer"]) => Route::HandOver(id),
            ("GET", ["products"] | ["admin", "products"]) => Route::Products,
            ("GET", ["products", id]) => Route::Product(id),
            ("POST", ["admin", "products"]) => Route::Create,
            ("PATCH", ["admin", "products", id]) => Route::Change(id),
            ("POST", ["admin", "products", id, "stock"]) => Route::Adjust(id),
            ("GET", ["admin", "products", id, "ledger"]) => Route::Ledger(id),
            ("POST", ["admin", "products", id, "release-holds"]) => Route::ReleaseAll(id),
            ("GET", ["admin", "reservations"]) => Route::AllReservations,
            ("GET", ["admin", "reservations", id]) => Route::AnyReservation(id),
            ("POST", ["admin", "reservations", id, "release"]) => Route::Release(id),
            ("GET", ["admin", "actions"]) => Route::Actions,
            ("GET", ["admin", "failed-confirmations"]) => Route::Failed,
            ("POST", ["admin", "failed-confirmations", "redrive"]) => Route::Redrive,
            ("POST", ["admin", "failed-confirmations", id, "retry"]) => Route::Retry(id),
            ("POST", ["admin", "failed-confirmations", id, "resolve"]) => Route::Resolve(id),
            _ => Route::Unknown,
        }
    }

    /// A query parameter.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        let (_, query) = self.path.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// The id of the reservation for this customer and key.
    pub(crate) fn reservation_id(&self) -> Option<String> {
        let customer = CustomerId::try_from(self.who.as_str()).ok()?;
        let key = IdempotencyKey::try_from(self.key.clone()?.as_str()).ok()?;
        Some(ReservationId::derive(&customer, &key).to_string())
    }
}

/// The key of a reservation's item.
pub(crate) fn hold(id: &str) -> Place {
    (format!("HOLD#{id}"), "HOLD".to_owned())
}

/// A time as an answer shows it, in milliseconds since the epoch.
pub(crate) fn shown(time: &Value) -> Option<i64> {
    let time = OffsetDateTime::parse(time.as_str()?, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// What is wrong with an answer; `None` if nothing is, or if it says nothing about the request.
pub(crate) fn judge(case: &Case<'_>) -> Broken {
    if !case.reply.clear() {
        return None;
    }
    let (truth, promise) = match case.asked.route() {
        Route::Reserve => case.reserve(),
        Route::Confirm(id) => case.confirm(id),
        Route::Extend(id) => case.extend(id),
        Route::Cancel(id) => case.cancel(id),
        Route::ChangeLines(id) => case.change_lines(id),
        Route::HandOver(id) => case.hand_over(id),
        Route::Release(id) => case.release(id),
        Route::ReleaseAll(id) => case.release_all(id),
        Route::GiveBack(id) => case.give_back(id),
        Route::Get(id) => case.get(id, false),
        Route::Order(id) => case.get(id, true),
        Route::Reservations => case.list(false),
        Route::Orders => case.list(true),
        Route::AllReservations => case.all_reservations(),
        Route::AnyReservation(id) => case.any_reservation(id),
        Route::Product(id) => case.product(id),
        Route::Products => case.products(),
        Route::Create => case.create(),
        Route::Change(id) => case.change(id),
        Route::Adjust(id) => case.adjust(id),
        Route::Ledger(id) => case.ledger(id),
        Route::Actions => case.actions(),
        Route::Failed => case.failed_list(),
        Route::Retry(id) => case.retry(id),
        Route::Resolve(id) => case.resolve(id),
        Route::Redrive => case.redrive(),
        Route::Unknown => (false, "only_documented_refusals"),
    };
    (!truth).then(|| (promise, case.told()))
}

/// Whether an answer is true, and the promise that is broken if not.
type Ruling = (bool, &'static str);

impl<'a> Case<'a> {
    pub(crate) fn item(&self, place: &Place, at: Moment) -> Option<&'a Value> {
        self.books.item_at(place, at)
    }

    /// Whether this holds at any moment between request and answer at which these items differ.
    pub(crate) fn once<'p>(&self, places: impl IntoIterator<Item = &'p Place>, so: impl Fn(Moment) -> bool) -> bool {
        self.books.past.moments(places, self.window.sent, self.window.answered).into_iter().any(so)
    }

    /// Whether this holds for a reservation of any customer at a moment of the window; `None`: there is none.
    fn any_once(&self, id: &str, so: impl Fn(Option<&Value>) -> bool) -> bool {
        let place = hold(id);
        self.once([&place], |at| so(self.item(&place, at)))
    }

    /// The same for the caller; `None`: there is none, or it is another customer's.
    fn hold_once(&self, id: &str, so: impl Fn(Option<&Value>) -> bool) -> bool {
        self.any_once(id, |item| so(item.filter(|item| item["customer"] == self.asked.who.as_str())))
    }

    /// The same for a confirmation: a payment that was begun before the hold was handed over names the former customer.
    fn payable_once(&self, id: &str, so: impl Fn(Option<&Value>) -> bool) -> bool {
        self.any_once(id, |item| so(item.filter(|item| may_be_confirmed_for(item, &self.asked.who))))
    }

    /// The earliest and the latest time that the environment may have read from its clock for this request.
    pub(crate) fn clock(&self) -> (i64, i64) {
        let (least, most) = self.skew.map_or((-SKEW_MS, SKEW_MS), |skew| (skew, skew));
        (self.window.sent_ms + least, self.window.answered_ms + most)
    }

    /// The time that an answer states, if it is possible.
    pub(crate) fn server_time(&self, body: &Value) -> Option<i64> {
        let (least, most) = self.clock();
        shown(&body["server_time"]).filter(|now| (least..=most).contains(now))
    }

    fn told(&self) -> String {
        let Self { asked, reply, window, skew, .. } = self;
        let id = match asked.route() {
            Route::Reserve => asked.reservation_id(),
            Route::Confirm(id)
            | Route::Extend(id)
            | Route::Cancel(id)
            | Route::ChangeLines(id)
            | Route::HandOver(id)
            | Route::Release(id)
            | Route::GiveBack(id)
            | Route::Get(id)
            | Route::AnyReservation(id) => Some(id.to_owned()),
            _ => None,
        };
        let place = id.map(|id| hold(&id));
        let states = place.iter().flat_map(|place| {
            let moments = self.books.past.moments([place], window.sent, window.answered);
            moments.into_iter().map(move |at| self.item(place, at).map(Value::to_string))
        });
        format!(
            "{}: {} {} {} => {} {}, asked at {} and answered at {} (clock off by {skew:?}); it was {:?} {}",
            asked.who,
            asked.method,
            asked.path,
            asked.body,
            reply.status,
            reply.body,
            window.sent_ms,
            window.answered_ms,
            states.collect::<Vec<_>>(),
            self.bounds()
        )
    }

    /// Whether an answer shows this reservation in every field, as it is at the time that the answer states.
    fn shows(&self, item: &Value, body: &Value) -> bool {
        self.server_time(body).is_some_and(|now| view(item, body, now))
    }

    /// The same for an answer to an admin, which names the customer.
    fn shows_admin(&self, item: &Value, body: &Value) -> bool {
        let by = if item["cancellation"].is_object() { item["cancellation"]["by"].clone() } else { "customer".into() };
        let by = if item["status"] == "cancelled" { by } else { Value::Null };
        item["customer"] == body["customer_id"] && body["cancelled_by"] == by && self.shows(item, body)
    }

    fn reserve(&self) -> Ruling {
        let Some(id) = self.asked.reservation_id() else { return (false, "only_documented_refusals") };
        let wanted = wanted(&self.asked.body);
        let code = self.reply.code();
        match (self.reply.status, code) {
            (201, _) => {
                let body = &self.reply.body;
                let so = |item: &Value| self.is_request_of(item, &wanted) && self.shows(item, body);
                let right = self.hold_once(&id, |item| item.is_some_and(so));
                // Lines that were changed since have the prices of then.
                let as_made = |item: &Value| revision(item) == 0 && self.shows(item, body);
                if right
                    && self.hold_once(&id, |item| item.is_some_and(as_made))
                    && !at_the_price_seen(&self.asked.body, body)
                {
                    return (false, "a_hold_has_the_price_that_the_customer_saw");
                }
                (right, "answers_are_the_table")
            }
            (422, "idempotency_key_reused") => {
                let right = self.any_once(&id, |item| item.is_some_and(|item| !self.is_request_of(item, &wanted)));
                (right, "one_key_one_outcome")
            }
            (409, "hold_transferred") => {
                let who = self.asked.who.as_str();
                let handed = |item: &Value| {
                    item["customer"] != who && has_been_of(item, who) && self.is_request_of(item, &wanted)
                };
                (self.any_once(&id, |item| item.is_some_and(handed)), "one_key_one_outcome")
            }
            // An existing reservation takes precedence over any other reason to refuse a request.
            _ if !self.any_once(&id, |item| item.is_none()) => (false, "an_owner_is_never_refused"),
            (409, "insufficient_stock") => {
                (self.sold_out(&wanted, Some(&self.reply.body["lines"])), "never_sold_out_while_units_are_free")
            }
            (409, "customer_limit_reached") => (self.limited(&wanted, &self.asked.who), "only_true_refusals"),
            (409, "product_not_on_sale" | "sale_not_open") => (self.not_on_sale(&wanted), "only_true_refusals"),
            (404, "product_not_found") => (self.unknown(&wanted), "only_true_refusals"),
            (409, "price_changed") => (self.another_price(|_| None), "only_true_refusals"),
            (422, "currency_mismatch") => (self.mixed(&wanted, None), "only_true_refusals"),
            _ => (false, "only_documented_refusals"),
        }
    }

    /// Whether a reservation was made by a request for these lines, whatever its lines are now.
    fn is_request_of(&self, item: &Value, wanted: &[(String, u64)]) -> bool {
        self.books.first_lines(item) == Some(wanted)
    }

    fn confirm(&self, id: &str) -> Ruling {
        let payment = self.asked.body["payment_reference"].as_str();
        let body = &self.reply.body;
        let (_, most) = self.clock();
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let paid = |item: &Value| payment.is_none_or(|payment| item["payment_reference"] == payment);
                let so = |item: &Value| item["status"] == "confirmed" && paid(item) && self.shows(item, body);
                (self.payable_once(id, |item| item.is_some_and(so)), "answers_are_the_table")
            }
            // The promises check that it is kept somewhere.
            (202, _) => (body["status"] == "queued" && body["reservation_id"] == id, "answers_are_the_table"),
            (404, "reservation_not_found") => (self.payable_once(id, |item| item.is_none()), "no_reservation_is_lost"),
            (409, "refund_required") => {
                let Some(payment) = payment else { return (false, "only_true_refusals") };
                if !self.payable_once(id, |item| item.is_some_and(|item| owed(item, payment))) {
                    return (false, "a_refund_is_written_down_first");
                }
                (self.owed_for_a_reason(id, payment), "only_true_refusals")
            }
            (409, "already_confirmed") => {
                let other = |item: &Value| {
                    let known = item["payment_reference"].as_str();
                    item["status"] == "confirmed" && payment.is_some() && known.is_some() && known != payment
                };
                let right = body["refund_required"] == true && self.payable_once(id, |item| item.is_some_and(other));
                (right, "only_true_refusals")
            }
            (409, "reservation_cancelled") => {
                let cancelled = |item: &Value| item["status"] == "cancelled";
                (payment.is_none() && self.payable_once(id, |item| item.is_some_and(cancelled)), "only_true_refusals")
            }
            (410, "hold_expired") => {
                let expired = |item: &Value| {
                    let ends = item["expires_at"].as_i64().unwrap_or(i64::MAX);
                    match item["status"].as_str() {
                        Some("held") => ends <= most,
                        // Released, by whatever clock: it stays expired for a caller who has not paid.
                        Some("expired") => true,
                        _ => false,
                    }
                };
                (payment.is_none() && self.payable_once(id, |item| item.is_some_and(expired)), "only_true_refusals")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    /// Whether a payment that is owed back was so before, or a reason for it arose during the request.
    fn owed_for_a_reason(&self, id: &str, payment: &str) -> bool {
        let place = hold(id);
        let resolved = |(_, item): (&String, &Value)| {
            item["state"] == "resolved" && item["reservation_id"] == id && item["payment_reference"] == payment
        };
        // Known before; or an admin has just resolved it.
        if self.item(&place, self.window.sent).is_some_and(|item| owed(item, payment))
            || self.books.failed_confirmations().any(resolved)
        {
            return true;
        }
        // A copy of the request may have noted it, for a reason that is gone since, and by the clock of another
        // environment: other holds are over for one clock and not for another.
        let copies = Case { skew: None, window: self.since_its_first_copy(id, payment), ..*self };
        let (least, most) = self.clock();
        let least = least.min(copies.clock().0);
        copies.payable_once(id, |item| {
            let Some(item) = item else { return false };
            let ends = item["expires_at"].as_i64().unwrap_or(i64::MAX);
            let late = item["late_payment_seconds"].as_i64().unwrap_or_default() * 1_000;
            let too_late = ends + late <= self.window.answered_ms + SKEW_MS;
            match item["status"].as_str() {
                Some("cancelled") => true,
                Some("expired") => too_late || (ends > least || ends <= most) && copies.out_of_reach(item),
                Some("held") => too_late,
                _ => false,
            }
        })
    }

    /// The window of the first copy of a payment and of all later ones up to this request, as far back as a write that
    /// lands in the window of this request can have been sent.
    fn since_its_first_copy(&self, id: &str, payment: &str) -> Window {
        let Window { sent_ms, sent, remembered, .. } = self.window;
        let first = self.books.asked.first_paid.get(&(id.to_owned(), payment.to_owned())).copied().unwrap_or(sent_ms);
        let from_ms = first.max(sent_ms - IN_FLIGHT_MS).min(sent_ms);
        let from = self.books.past.at(from_ms - 1);
        Window { sent_ms: from_ms, sent: sent.min(from), remembered: remembered.min(from), ..self.window }
    }

    fn extend(&self, id: &str) -> Ruling {
        let body = &self.reply.body;
        let seconds = self.asked.body["hold_seconds"].as_i64().unwrap_or_default();
        let (least, most) = self.clock();
        let so: Box<dyn Fn(&Value) -> bool> = match (self.reply.status, self.reply.code()) {
            (200, _) => Box::new(|item| {
                let until = shown(&body["server_time"]).map(|now| now + seconds * 1_000);
                body["status"] == "held"
                    && until.is_some_and(|until| item["expires_at"].as_i64() >= Some(until))
                    && self.shows(item, body)
            }),
            (409, "extension_limit_reached") => Box::new(|item| {
                let hold = item["hold_seconds"].as_i64().unwrap_or_default();
                let latest = item["created_at"].as_i64().unwrap_or_default() + 3 * hold * 1_000;
                // The request was for a later end than the hold already had, and the hold was not over.
                let ends = item["expires_at"].as_i64().unwrap_or_default();
                item["status"] == "held"
                    && shown(&body["latest"]) == Some(latest)
                    && most + seconds * 1_000 > latest.max(ends)
                    && ends > least
            }),
            _ => return self.ended(id, false),
        };
        (self.hold_once(id, |item| item.is_some_and(&so)), "answers_are_the_table")
    }

    fn cancel(&self, id: &str) -> Ruling {
        if self.reply.status == 200 {
            let so = |item: &Value| item["status"] == "cancelled" && self.shows(item, &self.reply.body);
            return (self.hold_once(id, |item| item.is_some_and(so)), "answers_are_the_table");
        }
        self.ended(id, true)
    }

    fn give_back(&self, id: &str) -> Ruling {
        let so =
            |item: &Value| was_ordered(item) && item["cancellation"].is_object() && self.shows(item, &self.reply.body);
        match (self.reply.status, self.reply.code()) {
            (200, _) => (self.hold_once(id, |item| item.is_some_and(so)), "answers_are_the_table"),
            (404, "reservation_not_found") => {
                (self.hold_once(id, |item| !item.is_some_and(was_ordered)), "no_order_is_lost")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    /// The refusals of an extension and of a cancellation.
    fn ended(&self, id: &str, cancels: bool) -> Ruling {
        let (_, most) = self.clock();
        match (self.reply.status, self.reply.code()) {
            (404, "reservation_not_found") => (self.hold_once(id, |item| item.is_none()), "no_reservation_is_lost"),
            (409, "already_confirmed") => {
                let right = self.reply.body["refund_required"] == false
                    && self.hold_once(id, |item| item.is_some_and(|item| item["status"] == "confirmed"));
                (right, "only_true_refusals")
            }
            (409, "reservation_cancelled") if !cancels => {
                let right = self.hold_once(id, |item| item.is_some_and(|item| item["status"] == "cancelled"));
                (right, "only_true_refusals")
            }
            (410, "hold_expired") => {
                let over = |item: &Value| {
                    item["status"] == "expired"
                        || item["status"] == "held" && item["expires_at"].as_i64().is_some_and(|ends| ends <= most)
                };
                (self.hold_once(id, |item| item.is_some_and(over)), "only_true_refusals")
            }
            _ => (false, "only_documented_refusals"),
        }
    }

    fn get(&self, id: &str, order: bool) -> Ruling {
        let body = &self.reply.body;
        let is = |item: &Value| !order || was_ordered(item);
        match self.reply.status {
            200 => {
                let right = self.hold_once(id, |item| item.is_some_and(|item| is(item) && self.shows(item, body)));
                (right, "answers_are_the_table")
            }
            404 => (self.hold_once(id, |item| !item.is_some_and(is)), "no_reservation_is_lost"),
            _ => (false, "only_documented_refusals"),
        }
    }

    /// A customer's own reservations, or orders.
    fn list(&self, orders: bool) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            return (false, "only_documented_refusals");
        };
        let right = items.iter().all(|body| {
            let id = body["reservation_id"].as_str().unwrap_or_default();
            let is = |item: &Value| (!orders || was_ordered(item)) && self.shows(item, body);
            self.hold_once(id, |item| item.is_some_and(is))
        });
        if !right || !newest_first(items) {
            return (false, "answers_are_the_table");
        }
        let who = self.asked.who.as_str();
        let own = |item: &Value| item["customer"] == who && (!orders || was_ordered(item));
        let missing = self.leaves_out(items, own, |shown| shown.customer.as_deref() == Some(who));
        (!missing, "no_reservation_is_lost")
    }

    /// All reservations, or those for which every filter holds.
    fn all_reservations(&self) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            return (false, "only_documented_refusals");
        };
        let filter = |name: &str| self.asked.query(name);
        let (customer, payment, product) = (filter("customer_id"), filter("payment_reference"), filter("product_id"));
        let time = |name: &str| filter(name).and_then(|text| shown(&Value::from(text)));
        let (status, from, to) = (filter("status"), time("from"), time("to"));
        let matches = |item: &Value| {
            let made = item["created_at"].as_i64();
            customer.is_none_or(|customer| item["customer"] == customer)
                && payment.is_none_or(|payment| item["payment_reference"] == payment)
                && product.is_none_or(|product| lines(item).iter().any(|(id, _)| id == product))
                && from.is_none_or(|from| made >= Some(from))
                && to.is_none_or(|to| made < Some(to))
        };
        let right = items.iter().all(|body| {
            let id = body["reservation_id"].as_str().unwrap_or_default();
            let so = |item: &Value| matches(item) && self.shows_admin(item, body);
            status.is_none_or(|status| body["status"] == status) && self.any_once(id, |item| item.is_some_and(so))
        });
        if !right || !newest_first(items) {
            return (false, "answers_are_the_table");
        }
        let sought = |item: &Value| matches(item) && status.is_none_or(|status| self.surely_is(item, status));
        let missing = self.leaves_out(items, sought, |shown| {
            customer.is_none_or(|customer| shown.customer.as_deref() == Some(customer))
                && payment.is_none_or(|payment| shown.payment.as_deref() == Some(payment))
        });
        (!missing, "the_lists_are_the_table")
    }

    /// Whether a list that says that it is whole lacks a reservation that belonged to it all the time, so also when the list
    /// was made, and that its index has shown `by` the list's key.
    fn leaves_out(&self, items: &[Value], belongs: impl Fn(&Value) -> bool, by: impl Fn(&Shown) -> bool) -> bool {
        let whole = self.asked.query("cursor").is_none() && self.reply.body["next_cursor"].is_null();
        let sent = self.window.sent;
        let shows = |place: &Place, shown: &Shown| {
            // Not an earlier one under its key, which was deleted.
            let made = self.item(place, sent).and_then(|item| item["created_at"].as_i64());
            by(shown) && shown.created_at == made
        };
        whole
            && self.books.indexed_since("HOLD#", sent, shows).any(|place| {
                let there = !self.once([place], |at| !self.item(place, at).is_some_and(&belongs));
                there && !items.iter().any(|body| body["reservation_id"].as_str() == place.0.strip_prefix("HOLD#"))
            })
    }

    /// Whether a reservation has this status by every clock that may have been asked.
    fn surely_is(&self, item: &Value, status: &str) -> bool {
        let (least, most) = self.clock();
        let ends = item["expires_at"].as_i64().unwrap_or_default();
        match status {
            "held" => item["status"] == "held" && ends > most,
            "expired" => item["status"] == "expired" || item["status"] == "held" && ends <= least,
            _ => item["status"] == status,
        }
    }
}

/// Whether it is an order, or was one until it was given back.
fn was_ordered(item: &Value) -> bool {
    item["confirmed_at"].is_i64()
}

/// Whether a reservation is this customer's, or was until it was handed to another one.
pub(crate) fn has_been_of(item: &Value, customer: &str) -> bool {
    owners(item).any(|owner| owner == customer)
}

/// Whether a confirmation may name this customer: the owner, or the guest who was.
pub(crate) fn may_be_confirmed_for(item: &Value, customer: &str) -> bool {
    item["customer"] == customer || customer.starts_with("guest:") && has_been_of(item, customer)
}

/// A reservation's customer, and its former ones.
pub(crate) fn owners(item: &Value) -> impl Iterator<Item = &str> {
    let former = item["formerly"].as_array().into_iter().flatten().filter_map(Value::as_str);
    item["customer"].as_str().into_iter().chain(former)
}

/// How often a reservation's lines or its owner were changed.
pub(crate) fn revision(item: &Value) -> i64 {
    item["lines"][0]["revision"].as_i64().unwrap_or_default()
}

fn newest_first(items: &[Value]) -> bool {
    let place =
        |body: &Value| (Reverse(shown(&body["created_at"])), body["reservation_id"].as_str().map(str::to_owned));
    items.windows(2).all(|two| place(&two[0]) < place(&two[1]))
}

/// Whether a payment is noted on its reservation as owed back.
pub(crate) fn owed(item: &Value, payment: &str) -> bool {
    owed_back(item).contains(payment)
}

/// All payments that are owed back.
pub(crate) fn owed_back(item: &Value) -> BTreeSet<&str> {
    item["owed_back"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The requested products and quantities, each product once.
pub(crate) fn wanted(body: &Value) -> Vec<(String, u64)> {
    let mut merged = std::collections::BTreeMap::<String, u64>::new();
    for line in body["lines"].as_array().into_iter().flatten() {
        let product = line["product_id"].as_str().unwrap_or_default().to_owned();
        *merged.entry(product).or_default() += line["quantity"].as_u64().unwrap_or_default();
    }
    merged.into_iter().collect()
}

/// Whether each line of a reservation has the price that its request names, if it names one.
fn at_the_price_seen(asked: &Value, body: &Value) -> bool {
    let lines = |body: &Value| body["lines"].as_array().cloned().unwrap_or_default();
    let made = lines(body);
    lines(asked).iter().filter(|line| line["unit_price_minor"].is_u64()).all(|seen| {
        let same = |line: &&Value| line["product_id"] == seen["product_id"];
        made.iter().find(same).is_some_and(|line| line["unit_price_minor"] == seen["unit_price_minor"])
    })
}

/// The same for a reservation.
pub(crate) fn lines(item: &Value) -> Vec<(String, u64)> {
    wanted(item)
}

/// Whether an answer shows this reservation in every field, at that time.
fn view(item: &Value, body: &Value, now: i64) -> bool {
    let ends = item["expires_at"].as_i64().unwrap_or_default();
    let held = item["status"] == "held" && now < ends;
    let status = if item["status"] == "held" && !held { "expired" } else { item["status"].as_str().unwrap_or("?") };
    let left = if held { (ends - now + 999).div_euclid(1_000) } else { 0 };
    let time = |name: &str| shown(&body[name]) == item[name].as_i64();
    let (told, kept) = (body["lines"].as_array(), item["lines"].as_array());
    let (told, kept) = (told.map(Vec::as_slice).unwrap_or_default(), kept.map(Vec::as_slice).unwrap_or_default());
    let same = told.len() == kept.len()
        && told.iter().zip(kept).all(|(told, kept)| {
            ["product_id", "quantity", "name", "unit_price_minor"].iter().all(|name| told[*name] == kept[*name])
        });
    let price = |line: &Value| {
        line["unit_price_minor"].as_u64().unwrap_or_default() * line["quantity"].as_u64().unwrap_or_default()
    };
    let total: u64 = kept.iter().map(price).sum();
    same && body["reservation_id"] == item["reservation_id"]
        && body["status"] == status
        && body["total_price_minor"] == total
        && body["currency"] == item["currency"]
        && body["expires_in_seconds"] == left
        && body["confirmed_late"] == (item["confirmed_late"] == true)
        && body["payment_reference"] == item["payment_reference"]
        && body["cancel_reason"] == item["cancellation"]["reason"]
        && body["restocked"] == item["cancellation"]["restocked"]
        && shown(&body["cancelled_at"]) == item["cancellation"]["at"].as_i64().or(item["cancelled_at"].as_i64())
        && time("created_at")
        && time("expires_at")
        && time("confirmed_at")
}
