//! Customers and admins: what they ask, how often they ask again, and what they make of the answers.
//!
//! Each answer is checked against the books: against what the table was like at some moment between question and
//! answer, with what the documentation allows in between.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use holdfast_domain::{CustomerId, IdempotencyKey, ProductStatus, Reservation, ReservationId, Status};
use holdfast_testkit::fixtures::NOW;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::books::{Books, SKEW_MS};
use crate::cloud::{Cloud, Function};
use crate::plan::{Actor, Change, Moment, ProductPlan, Settle, Step};
use crate::world::millis;

/// How long API Gateway waits for a function.
const GATEWAY_MS: u64 = 29_000;

/// An answer over HTTP.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u64,
    pub(crate) body: Value,
}

impl Reply {
    fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    /// Whether it says anything at all about the request.
    fn clear(&self) -> bool {
        self.status < 500 && self.status != 429
    }
}

/// One customer or admin.
pub(crate) struct Client<'a> {
    pub(crate) cloud: &'a Cloud,
    pub(crate) actor: &'a Actor,
    pub(crate) products: &'a [ProductPlan],
    memory: Mutex<Memory>,
}

/// What a client remembers.
#[derive(Default)]
struct Memory {
    /// When the hold of a key ends, in milliseconds since the epoch.
    expires_at: BTreeMap<u8, i64>,
    /// Payments that were taken, and of which nobody has said yet that they arrived.
    unanswered: Vec<(u8, String)>,
    /// Bodies that were sent under each key.
    bodies: BTreeMap<u8, Vec<Vec<(usize, u32)>>>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(cloud: &'a Cloud, actor: &'a Actor, products: &'a [ProductPlan]) -> Self {
        Self { cloud, actor, products, memory: Mutex::default() }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn expect(&self, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
        self.cloud.world.expect(holds, invariant, detail);
    }

    /// Lives through these moments.
    pub(crate) async fn live(&self, moments: &[Moment]) {
        for moment in moments {
            sleep(millis(moment.wait_ms)).await;
            join_all(moment.steps.iter().map(|step| self.take(step, moment.patience))).await;
        }
    }

    async fn take(&self, step: &Step, patience: u32) {
        match step {
            Step::Reserve { key, body } => _ = self.reserve(*key, body, patience).await,
            Step::Confirm { key, payment } => _ = self.confirm(*key, *payment, patience).await,
            Step::Cancel { key } => self.cancel(*key, patience).await,
            Step::Extend { key, seconds } => self.extend(*key, *seconds, patience).await,
            Step::Get { key } => self.get(*key).await,
            Step::List { orders } => {
                let path = if *orders { "/orders" } else { "/reservations" };
                self.ask(patience, Function::Reserve, "GET", path, None, None).await;
            }
            Step::Look { product } => {
                let path = format!("/products/{}", self.products[*product].id);
                self.ask(patience, Function::Catalog, "GET", &path, None, None).await;
            }
            Step::Trespass { victim, key } => self.trespass(*victim, *key).await,
            Step::AroundExpiry { key, offset_ms, then } => {
                let ends = self.memory().expires_at.get(key).copied();
                let wait = ends.map_or(0, |ends| ends + offset_ms - self.cloud.world.now());
                sleep(millis(wait.clamp(0, 120_000).unsigned_abs())).await;
                // Boxed: a step within a step.
                join_all(then.iter().map(|step| Box::pin(self.take(step, patience)))).await;
            }
            Step::Meet { then } => {
                let past = self.cloud.world.at().rem_euclid(10_000).unsigned_abs();
                sleep(millis(10_000 - past)).await;
                join_all(then.iter().map(|step| Box::pin(self.take(step, patience)))).await;
            }
            Step::Adjust { key, product, delta, expecting } => {
                self.adjust(*key, *product, *delta, *expecting, patience).await;
            }
            Step::Change { product, what } => self.change(*product, *what, patience).await,
            Step::Failed { then } => self.failed(*then).await,
            Step::Audit { ledger } => {
                let path = match ledger {
                    Some(product) => format!("/admin/products/{}/ledger", self.products[*product].id),
                    None => "/admin/reservations".to_owned(),
                };
                self.ask(patience, Function::Admin, "GET", &path, None, None).await;
            }
        }
    }

    /// Asks until there is a clear answer, or patience ends: with the same request each time.
    pub(crate) async fn ask(
        &self,
        patience: u32,
        function: Function,
        method: &str,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<Reply> {
        for tries in 0..=patience {
            let event = event(&self.actor.name, self.actor.admin, method, path, key, body);
            let answer = timeout(millis(GATEWAY_MS), self.cloud.invoke(function, event)).await;
            let reply = answer.ok().flatten().map(|answer| Reply {
                status: answer["statusCode"].as_u64().unwrap_or_default(),
                body: answer["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default(),
            });
            let said = reply.as_ref().map_or("no answer".to_owned(), |reply| {
                format!("{} {} {}", reply.status, reply.code(), reply.body["status"].as_str().unwrap_or_default())
            });
            let sent = body.map(Value::to_string).unwrap_or_default();
            let key = key.map(|key| format!(" key {key}")).unwrap_or_default();
            self.cloud.world.note(format_args!("{}: {method} {path}{key} {sent} => {said}", self.actor.name));
            if let Some(reply) = reply {
                // A planted bug has to break more than an answer.
                let right = reply.status != 500 || self.cloud.world.lock().planted.is_some();
                self.expect(right, "no_internal_error", || format!("{method} {path}: {reply:?}"));
                if reply.clear() || tries == patience {
                    return Some(reply);
                }
            }
            let wait = 200 << tries.min(5);
            sleep(millis(wait)).await;
        }
        None
    }

    fn key(&self, key: u8) -> String {
        format!("key-{key}")
    }

    pub(crate) fn reservation_id(&self, key: u8) -> String {
        reservation_id(&self.actor.name, key)
    }

    /// Reserves. Whether there was a clear answer.
    async fn reserve(&self, key: u8, body: &[(usize, u32)], patience: u32) -> bool {
        let lines: Vec<Value> = body
            .iter()
            .map(|&(product, quantity)| json!({ "product_id": self.products[product].id, "quantity": quantity }))
            .collect();
        let world = &self.cloud.world;
        let (began, id) = (world.now(), self.reservation_id(key));
        let before = world.lock().books.reservations.get(&id).cloned();
        self.memory().bodies.entry(key).or_default().push(body.to_vec());
        let sent = json!({ "lines": lines });
        let (method, path, name) = ("POST", "/reservations", self.key(key));
        let Some(reply) = self.ask(patience, Function::Reserve, method, path, Some(&name), Some(&sent)).await else {
            return false;
        };
        let said = || format!("{id} {sent}: {reply:?}");
        match (reply.status, reply.code()) {
            (201, _) => {
                self.expect(reply.body["reservation_id"] == id.as_str(), "one_key_one_reservation", said);
                let made = reply.body["created_at"].as_str().unwrap_or_default().to_owned();
                let mut wanted: Vec<(String, u64)> = body
                    .iter()
                    .map(|&(product, quantity)| (self.products[product].id.clone(), quantity.into()))
                    .collect();
                wanted.sort();
                let got: Vec<(String, u64)> = reply.body["lines"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|line| {
                        (
                            line["product_id"].as_str().unwrap_or_default().to_owned(),
                            line["quantity"].as_u64().unwrap_or(0),
                        )
                    })
                    .collect();
                self.expect(wanted == got, "one_key_one_outcome", said);
                let mut state = world.lock();
                let first = state.promises.reserved.insert(id.clone(), made.clone());
                let anew = state.promises.cleaned_up.contains(&id);
                let right = anew || first.is_none_or(|first| first == made);
                state.books.expect(world.now(), right, "one_key_one_outcome", said);
                let stored = state.books.reservations.get(&id);
                if let Some(stored) = stored.cloned() {
                    let expires_at = stored.expires_at.as_millis();
                    self.memory().expires_at.insert(key, expires_at);
                    let shown_end = shown(&reply.body["expires_at"]);
                    let right = reply.body["total_price_minor"].as_u64() == Some(stored.total_price_minor())
                        && shown_end.is_some_and(|shown| shown <= expires_at)
                        && (reply.body["status"] != "held" || state.books.held_since(&id, began));
                    state
                        .books
                        .expect(world.now(), right, "answers_are_the_table", || format!("{stored:?}: {}", said()));
                }
            }
            (422, "idempotency_key_reused") => {
                let differ =
                    self.memory().bodies.get(&key).is_some_and(|bodies| bodies.iter().any(|other| other != body));
                self.expect(differ, "one_key_one_outcome", said);
            }
            (409 | 404, code) => {
                // An existing reservation outranks whatever else stands against a request.
                let same = before.as_ref().is_some_and(|_| !world.lock().promises.cleaned_up.contains(&id));
                self.expect(!same, "an_owner_is_never_refused", || format!("{before:?}: {}", said()));
                self.refused(code, body, began, &reply);
            }
            _ => self.expect(!reply.clear(), "only_documented_refusals", said),
        }
        reply.clear()
    }

    /// Whether a refusal was true at some moment between question and answer.
    fn refused(&self, code: &str, body: &[(usize, u32)], began: i64, reply: &Reply) {
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let books = &mut state.books;
        let body: Vec<(&str, u32)> =
            body.iter().map(|&(product, quantity)| (self.products[product].id.as_str(), quantity)).collect();
        let stands = standing(books, &self.actor.name, &body, began);
        match code {
            "insufficient_stock" => {
                books.expect(now, stands.short, "never_sold_out_while_units_are_free", || {
                    format!("{stands:?}; {reply:?}")
                });
            }
            "product_not_on_sale" => {
                books.expect(now, stands.paused, "only_true_refusals", || format!("{reply:?}"));
            }
            "customer_limit_reached" => {
                books.expect(now, stands.limited, "only_true_refusals", || format!("{reply:?}"));
            }
            _ => books.expect(now, false, "only_documented_refusals", || format!("{reply:?}")),
        }
    }

    /// Confirms, after taking a payment if there is one. Whether there was a clear answer.
    async fn confirm(&self, key: u8, payment: Option<u8>, patience: u32) -> bool {
        let id = self.reservation_id(key);
        let payment = payment.map(|n| format!("pay-{}-{key}-{n}", self.actor.name));
        let world = &self.cloud.world;
        {
            let now = world.now();
            let mut state = world.lock();
            let asked = &mut state.books.asked;
            asked.confirm.entry(id.clone()).or_insert(now);
            if let Some(payment) = &payment {
                asked.payments.insert((id.clone(), payment.clone()));
                let taken = (key, payment.clone());
                let mut memory = self.memory();
                if !memory.unanswered.contains(&taken) {
                    memory.unanswered.push(taken);
                }
            }
        }
        let (began, before) = (world.now(), self.ends(&id));
        let existed = before.is_some();
        let body = payment.as_ref().map_or(json!({}), |payment| json!({ "payment_reference": payment }));
        let path = format!("/reservations/{id}/confirm");
        let reply = self.ask(patience, Function::Confirm, "POST", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return false };
        let said = || format!("{id} {body}: {reply:?}");
        let now = world.now();
        let mut state = world.lock();
        let stored = state.books.reservations.get(&id).cloned();
        let status = stored.as_ref().map(|stored| stored.status);
        let mut arrived = true;
        match (reply.status, reply.code()) {
            (200, _) => {
                let right = status == Some(Status::Confirmed);
                state.books.expect(now, right, "no_order_is_lost", || format!("{status:?}: {}", said()));
                state.promises.ordered.insert(id.clone());
            }
            (202, _) => {
                if payment.is_none() {
                    state.promises.queued.insert(id.clone());
                }
            }
            (409, "refund_required") => {
                let gone = stored.as_ref().is_none_or(|stored| stored.status == Status::Cancelled);
                let given_back = stored.as_ref().is_some_and(|stored| {
                    stored.owed_back.iter().any(|paid| Some(paid.as_str()) == payment.as_deref())
                });
                let body: Vec<(&str, u32)> = stored
                    .iter()
                    .flat_map(|stored| &stored.lines)
                    .map(|line| (line.product_id.as_str(), line.quantity))
                    .collect();
                let stands = standing(&state.books, &self.actor.name, &body, began);
                let right = payment.is_some() && (gone || given_back || stands.short || stands.limited);
                state.books.expect(now, right, "only_true_refusals", || format!("{stands:?}: {}", said()));
            }
            (409, "already_confirmed") => {
                let right = payment.is_some() && status == Some(Status::Confirmed);
                state.books.expect(now, right, "only_true_refusals", said);
            }
            (409, "reservation_cancelled") => {
                let right = payment.is_none() && status.is_none_or(|status| status == Status::Cancelled);
                state.books.expect(now, right, "only_true_refusals", said);
            }
            (410, _) => {
                let right = over(before, stored.as_ref(), now) && payment.is_none();
                state.books.expect(now, right, "only_true_refusals", said);
            }
            (404, _) => {
                arrived = false;
                let gone = !existed || status.is_none();
                state.books.expect(now, gone, "no_reservation_is_lost", said);
            }
            _ => state.books.expect(now, false, "only_documented_refusals", said),
        }
        if let Some(payment) = payment {
            self.memory().unanswered.retain(|(_, unanswered)| *unanswered != payment);
            if arrived {
                state.promises.payments.insert((id, payment));
            }
        }
        drop(state);
        world.check_promises();
        true
    }

    /// Names again every payment of which nobody has said that it arrived. Whether all are answered now.
    pub(crate) async fn insist(&self) -> bool {
        let unanswered = self.memory().unanswered.clone();
        let mut all = true;
        for (key, payment) in unanswered {
            let number = payment.rsplit('-').next().and_then(|number| number.parse().ok());
            all &= self.confirm(key, number, 2).await;
        }
        all
    }

    /// Names every payment once more.
    pub(crate) async fn pay_again(&self) {
        let all: Vec<(u8, u8)> = {
            let state = self.cloud.world.lock();
            let own = format!("pay-{}-", self.actor.name);
            let payments = state.books.asked.payments.iter().filter_map(|(_, payment)| payment.strip_prefix(&own));
            payments
                .filter_map(|rest| rest.split_once('-'))
                .filter_map(|(key, n)| Some((key.parse().ok()?, n.parse().ok()?)))
                .collect()
        };
        for (key, payment) in all {
            self.confirm(key, Some(payment), 0).await;
        }
    }

    /// Resolves every failed confirmation that is open. Whether each was answered.
    pub(crate) async fn give_everything_back(&self) -> bool {
        let open: Vec<String> = {
            let state = self.cloud.world.lock();
            let open = state.books.failed_confirmations().filter(|(_, failed)| failed["state"] == "open");
            open.map(|(id, _)| id.clone()).collect()
        };
        let mut all = true;
        for id in open {
            all &= self
                .resolve(&id)
                .await
                .is_some_and(|reply| matches!((reply.status, reply.code()), (200, _) | (409, "already_settled")));
        }
        all
    }

    async fn resolve(&self, id: &str) -> Option<Reply> {
        self.cloud.world.lock().books.asked.resolve.insert(id.to_owned());
        let (path, note) = (format!("/admin/failed-confirmations/{id}/resolve"), json!({ "note": "paid back" }));
        self.ask(0, Function::Admin, "POST", &path, None, Some(&note)).await
    }

    /// When the hold of a reservation ends, by the table.
    fn ends(&self, id: &str) -> Option<i64> {
        self.cloud.world.lock().books.reservations.get(id).map(|reservation| reservation.expires_at.as_millis())
    }

    /// Asks for everything once more, as it was first asked for. Whether all of it is answered.
    pub(crate) async fn repeat(&self) -> bool {
        let first: Vec<_> = self.memory().bodies.iter().map(|(key, bodies)| (*key, bodies[0].clone())).collect();
        let mut all = true;
        for (key, body) in first {
            all &= self.reserve(key, &body, 0).await;
        }
        all
    }

    async fn cancel(&self, key: u8, patience: u32) {
        let id = self.reservation_id(key);
        self.cloud.world.lock().books.asked.cancel.insert(id.clone());
        let before = self.ends(&id);
        let path = format!("/reservations/{id}");
        let Some(reply) = self.ask(patience, Function::Reserve, "DELETE", &path, None, None).await else { return };
        if !reply.clear() {
            return;
        }
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let stored = state.books.reservations.get(&id).cloned();
        let status = stored.as_ref().map(|stored| stored.status);
        let right = match (reply.status, reply.code()) {
            (200, _) => {
                if status.is_some() {
                    state.promises.cancelled.insert(id.clone());
                }
                status.is_none_or(|status| status == Status::Cancelled)
            }
            (410, _) => over(before, stored.as_ref(), now),
            (409, "already_confirmed") => status == Some(Status::Confirmed),
            (404, _) => before.is_none() || stored.is_none(),
            _ => false,
        };
        state.books.expect(now, right, "only_true_refusals", || format!("{id} is {status:?}: {reply:?}"));
    }

    async fn extend(&self, key: u8, seconds: u32, patience: u32) {
        let id = self.reservation_id(key);
        let (began, before) = (self.cloud.world.now(), self.ends(&id));
        let path = format!("/reservations/{id}/extend");
        let body = json!({ "hold_seconds": seconds });
        let reply = self.ask(patience, Function::Reserve, "POST", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return };
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let stored = state.books.reservations.get(&id).cloned();
        let status = stored.as_ref().map(|stored| stored.status);
        let right = match (reply.status, reply.code()) {
            (200, _) => {
                let until = shown(&reply.body["expires_at"]).unwrap_or_default();
                let asked = began - SKEW_MS + i64::from(seconds) * 1_000;
                let kept = stored.as_ref().is_none_or(|stored| stored.expires_at.as_millis() >= until);
                if stored.is_some() {
                    self.memory().expires_at.insert(key, until);
                    let promised = state.promises.extended.entry(id.clone()).or_default();
                    *promised = until.max(*promised);
                }
                reply.body["status"] == "held" && until >= asked && kept && state.books.held_since(&id, began)
            }
            (410, _) => over(before, stored.as_ref(), now),
            (409, "already_confirmed") => status == Some(Status::Confirmed),
            (409, "reservation_cancelled") => status.is_none_or(|status| status == Status::Cancelled),
            (409, "extension_limit_reached") => stored.is_none_or(|stored| {
                let latest = stored.created_at.plus_seconds(3 * stored.hold_seconds.get()).as_millis();
                now + SKEW_MS + i64::from(seconds) * 1_000 > latest
            }),
            (404, _) => before.is_none() || stored.is_none(),
            _ => false,
        };
        state.books.expect(now, right, "only_true_refusals", || format!("{id} is {status:?}: {reply:?}"));
    }

    async fn get(&self, key: u8) {
        let id = self.reservation_id(key);
        let began = self.cloud.world.now();
        let existed = self.cloud.world.lock().books.reservations.contains_key(&id);
        let path = format!("/reservations/{id}");
        let reply = self.ask(1, Function::Reserve, "GET", &path, None, None).await;
        let Some(reply) = reply.filter(Reply::clear) else { return };
        let (there, held) = {
            let state = self.cloud.world.lock();
            (state.books.reservations.contains_key(&id), state.books.held_since(&id, began))
        };
        let right = if reply.status == 404 { !existed || !there } else { reply.body["reservation_id"] == id.as_str() };
        self.expect(right, "no_reservation_is_lost", || format!("{id}: {reply:?}"));
        let right = reply.body["status"] != "held" || held || !there;
        self.expect(right, "answers_are_the_table", || format!("{id}: {reply:?}"));
    }

    /// Another's reservation does not exist for anybody else, whatever they try.
    async fn trespass(&self, victim: usize, key: u8) {
        let victim = format!("customer-{victim}");
        if victim == self.actor.name {
            return;
        }
        let path = format!("/reservations/{}", reservation_id(&victim, key));
        let (confirm, extend) = (format!("{path}/confirm"), format!("{path}/extend"));
        let body = json!({ "hold_seconds": 60 });
        let replies = [
            self.ask(0, Function::Confirm, "POST", &confirm, None, Some(&json!({}))).await,
            self.ask(0, Function::Reserve, "POST", &extend, None, Some(&body)).await,
            self.ask(0, Function::Reserve, "GET", &path, None, None).await,
            self.ask(0, Function::Reserve, "DELETE", &path, None, None).await,
        ];
        for reply in replies.into_iter().flatten() {
            let right = !reply.clear() || reply.status == 404 || reply.status == 202;
            self.expect(right, "only_the_owner", || format!("{} of {victim}: {reply:?}", self.actor.name));
        }
    }

    async fn adjust(&self, key: u8, product: usize, delta: i64, expecting: bool, patience: u32) {
        let id = &self.products[product].id;
        let name = format!("adjust-{key}");
        let total = self.cloud.world.lock().books.current(id).map(|product| product.total);
        let mut body = json!({ "delta": delta, "reason": "count" });
        if expecting {
            body["expected_total"] = json!(total);
        }
        let path = format!("/admin/products/{id}/stock");
        let began = self.cloud.world.now();
        let reply = self.ask(patience, Function::Admin, "POST", &path, Some(&name), Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return };
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let right = match (reply.status, reply.code()) {
            (200, _) => {
                let entry = reply.body["entry_id"].as_str().unwrap_or_default().to_owned();
                let there = state.books.items.contains_key(&(format!("LEDGER#{id}"), entry.clone()));
                let first = state.promises.adjusted.insert(name, entry.clone());
                there && first.is_none_or(|first| first == entry) && reply.body["delta"] == delta
            }
            (409, "insufficient_stock") => state.books.least_free(id, began) < -delta,
            (409, "version_mismatch") => expecting,
            (422, _) => true,
            _ => false,
        };
        state.books.expect(now, right, "one_key_one_outcome", || format!("{body}: {reply:?}"));
    }

    async fn change(&self, product: usize, what: Change, patience: u32) {
        let id = &self.products[product].id;
        let path = format!("/products/{id}");
        let Some(now) = self.ask(patience, Function::Catalog, "GET", &path, None, None).await else { return };
        let Some(version) = now.body["version"].as_u64() else { return };
        let mut body = match what {
            Change::Price(price) => json!({ "price_minor": price }),
            Change::Limit(limit) => json!({ "max_per_customer": limit }),
            Change::Pause => json!({ "status": "paused" }),
            Change::OnSale => json!({ "status": "on_sale" }),
            Change::Hold(seconds) => json!({ "hold_seconds": seconds }),
            Change::Name(number) => json!({ "name": format!("Name {number}") }),
        };
        body["version"] = version.into();
        let path = format!("/admin{path}");
        let reply = self.ask(patience, Function::Admin, "PATCH", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return };
        let at = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let right = match (reply.status, reply.code()) {
            // Once the call returns, nobody reserves on the old facts.
            (200, _) => state.books.all_shards_know(id, version + 1) && state.books.has_changed(id, version + 1, &body),
            (409, "version_mismatch") => {
                let current = reply.body["current"].as_u64().unwrap_or_default();
                current > version && state.books.all_shards_know(id, current)
            }
            _ => false,
        };
        state.books.expect(at, right, "a_change_counts_once_it_returns", || format!("{body}: {reply:?}"));
    }

    async fn failed(&self, then: Settle) {
        let path = "/admin/failed-confirmations";
        let Some(list) = self.ask(1, Function::Admin, "GET", path, None, None).await else { return };
        let ids: Vec<String> = list.body["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|failed| failed["id"].as_str().map(str::to_owned))
            .collect();
        match then {
            Settle::Nothing => {}
            Settle::Redrive => {
                let path = format!("{path}/redrive");
                // Twice at once: two admins who both press the button.
                let (one, two) = tokio::join!(
                    self.ask(0, Function::Admin, "POST", &path, None, None),
                    self.ask(0, Function::Admin, "POST", &path, None, None)
                );
                drop((one, two));
            }
            Settle::Retry => {
                for id in ids {
                    self.ask(0, Function::Admin, "POST", &format!("{path}/{id}/retry"), None, None).await;
                }
                // Whoever does this looks a moment later whether it helped.
                sleep(millis(5_000)).await;
                self.ask(1, Function::Admin, "GET", path, None, None).await;
            }
            Settle::Resolve => {
                let Some(id) = ids.first() else { return };
                self.resolve(id).await;
            }
        }
    }
}

/// What stood against taking these units at some moment of a request.
#[derive(Debug)]
struct Standing {
    short: bool,
    paused: bool,
    limited: bool,
    /// Product, units asked for, units free all the time.
    least: Vec<(String, u32, i64)>,
}

fn standing(books: &Books, customer: &str, body: &[(&str, u32)], began: i64) -> Standing {
    let mut stands = Standing { short: false, paused: false, limited: false, least: Vec::new() };
    for &(id, quantity) in body {
        let least = books.least_free(id, began);
        stands.short |= least < i64::from(quantity);
        stands.paused |= books.versions_since(id, began).any(|version| version.status == ProductStatus::Paused);
        let counted = books.most_counted(id, customer, began);
        stands.limited |= books.versions_since(id, began).any(|version| {
            version.max_per_customer.is_some_and(|limit| counted + i64::from(quantity) > i64::from(limit))
        });
        stands.least.push((id.to_owned(), quantity, least));
    }
    stands
}

/// A time as an answer shows it, in milliseconds since the epoch.
fn shown(time: &Value) -> Option<i64> {
    let time = time::OffsetDateTime::parse(time.as_str()?, &time::format_description::well_known::Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// Whether a hold's time was over at some moment of a request: it may have been extended meanwhile.
fn over(before: Option<i64>, after: Option<&Reservation>, now: i64) -> bool {
    let after = after.map(|reservation| reservation.expires_at.as_millis());
    before.is_none() || after.is_none() || before.min(after).is_some_and(|ends| ends <= now + SKEW_MS)
}

fn reservation_id(customer: &str, key: u8) -> String {
    let customer = CustomerId::try_from(customer);
    let key = IdempotencyKey::try_from(format!("key-{key}"));
    match (customer, key) {
        (Ok(customer), Ok(key)) => ReservationId::derive(&customer, &key).to_string(),
        _ => String::new(),
    }
}

/// API Gateway's event.
fn event(who: &str, admin: bool, method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> Value {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut headers = json!({ "content-type": "application/json", "host": "holdfast.test" });
    if let Some(key) = key {
        headers["idempotency-key"] = key.into();
    }
    let groups = if admin { "[admin]" } else { "[]" };
    json!({
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": headers,
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "authorizer": { "jwt": { "claims": { "sub": who, "cognito:groups": groups }, "scopes": null } },
            "domainName": "holdfast.test",
            "domainPrefix": "holdfast",
            "http": { "method": method, "path": path, "protocol": "HTTP/1.1", "sourceIp": "203.0.113.7", "userAgent": "s" },
            "requestId": "request",
            "routeKey": "$default",
            "stage": "$default",
            "time": "21/Nov/2025:04:40:00 +0000",
            "timeEpoch": NOW.as_millis(),
        },
        "body": body.map(Value::to_string),
        "isBase64Encoded": false,
    })
}
