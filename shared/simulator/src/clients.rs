//! Customers and admins: what they request, how they retry, and how they react to responses. (One client for all of
//! their actions, hence the length.)
//!
//! Each answer is judged by the states of the table between request and answer (`judge`) and recorded for the reference
//! model (`journal`), and what it acknowledges must hold from then on (`promises`).

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures_util::future::join_all;
use holdfast_domain::{CustomerId, IdempotencyKey, ReservationId};
use holdfast_testkit::fixtures::NOW;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};

use crate::cloud::{Cloud, Function};
pub(crate) use crate::judge::Reply;
use crate::judge::{Case, Question, Route, judge, shown, wanted};
use crate::past::Window;
use crate::plan::{Actor, Change, Moment, ProductPlan, SHARED, Search, Settle, Step};
use crate::world::millis;

/// How often a page asks for a product again, and how long after, in milliseconds: sooner than what it saw is too old.
const LOOKS: usize = 3;
const LOOK_AGAIN_MS: u64 = 600;
/// How long API Gateway waits for a function, in milliseconds.
const GATEWAY_MS: u64 = 29_000;

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
    /// Payments that were made and are not acknowledged yet.
    unanswered: Vec<(u8, String)>,
    /// The bodies that were sent with each key.
    bodies: BTreeMap<u8, Vec<Vec<(usize, u32)>>>,
    /// The customer that the hold of a key was handed to.
    handed: BTreeMap<u8, String>,
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

    /// Plays these moments, one after another.
    pub(crate) async fn live(&self, moments: &[Moment]) {
        for moment in moments {
            sleep(millis(moment.wait_ms)).await;
            self.take_all(&moment.steps, moment.patience).await;
        }
    }

    /// Takes these steps, all at once.
    async fn take_all(&self, steps: &[Step], patience: u32) {
        // Boxed, since a step may have steps of its own.
        join_all(steps.iter().map(|step| Box::pin(self.take(step, patience)))).await;
    }

    async fn take(&self, step: &Step, patience: u32) {
        match step {
            Step::Reserve { key, body } => _ = self.reserve(*key, body, patience).await,
            Step::Then { first, then } => {
                self.take_all(std::slice::from_ref(first), patience).await;
                self.take_all(then, patience).await;
            }
            Step::Confirm { key, payment } => _ = self.confirm(*key, *payment, patience).await,
            Step::Cancel { key } => self.cancel(*key, patience).await,
            Step::GiveBack { key, restock } => self.give_order_back(*key, *restock, patience).await,
            Step::Extend { key, seconds } => self.extend(*key, *seconds, patience).await,
            Step::ChangeLines { key, body } => self.change_lines(*key, body, patience).await,
            Step::HandOver { key, to } => self.hand_over(*key, to, patience).await,
            Step::Release { victim, key } => self.release(victim, *key, patience).await,
            Step::ReleaseAll { product } => self.release_all(*product, patience).await,
            Step::Get { key } => self.get(*key).await,
            Step::List { orders } => {
                let path = if *orders { "/orders" } else { "/reservations" };
                self.ask(patience, Function::Reserve, "GET", path, None, None).await;
            }
            Step::Look { product } => {
                // As pages do that show how the stock goes down: two at once, so that two environments answer, and one shows what
                // the other has found.
                let path = format!("/products/{}", self.products[*product].id);
                let look = || self.ask(patience, Function::Catalog, "GET", &path, None, None);
                for _ in 0..LOOKS {
                    tokio::join!(look(), look());
                    sleep(millis(LOOK_AGAIN_MS)).await;
                }
            }
            Step::Trespass { victim, key } => self.trespass(victim, *key).await,
            Step::Mistake { key, payment, instead } => self.mistake(*key, *payment, instead, patience).await,
            Step::AroundExpiry { key, offset_ms, then } => {
                let ends = self.memory().expires_at.get(key).copied();
                let wait = ends.map_or(0, |ends| ends + offset_ms - self.cloud.world.now());
                sleep(millis(wait.clamp(0, 120_000).unsigned_abs())).await;
                self.take_all(then, patience).await;
            }
            Step::Meet { then } => {
                let past = self.cloud.world.at().rem_euclid(10_000).unsigned_abs();
                sleep(millis(10_000 - past)).await;
                self.take_all(then, patience).await;
            }
            Step::Make { product } => _ = self.make(&self.products[*product], patience).await,
            Step::Adjust { key, product, delta, expecting } => {
                self.adjust(*key, *product, *delta, *expecting, patience).await;
            }
            Step::Change { product, what } => self.change(*product, *what, patience).await,
            Step::Failed { then } => Client::new(self.cloud, &self.admin(), self.products).failed(*then).await,
            Step::Audit { ledger } => {
                let path = format!("/admin/products/{}/ledger", self.products[*ledger].id);
                self.ask(patience, Function::Admin, "GET", &path, None, None).await;
                for path in
                    [format!("/admin/actions?target={}", self.products[*ledger].id), "/admin/actions".to_owned()]
                {
                    self.ask(patience, Function::Admin, "GET", &path, None, None).await;
                }
            }
            Step::Find { search } => {
                self.ask(patience, Function::Admin, "GET", &self.search(search), None, None).await;
            }
        }
    }

    /// Sends a request until there is a clear answer or the retries are used up: the same request each time.
    pub(crate) async fn ask(
        &self,
        patience: u32,
        function: Function,
        method: &'static str,
        path: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Option<Reply> {
        let asked = Question {
            who: self.actor.name.clone(),
            method,
            path: path.to_owned(),
            key: key.map(str::to_owned),
            body: body.cloned().unwrap_or_default(),
        };
        for tries in 0..=patience {
            let (mut window, tick) = self.asks(&asked);
            let event = event(self.actor, &request_id(tick), method, path, key, body);
            let answer = timeout(millis(GATEWAY_MS), self.cloud.invoke_by(function, event)).await.ok().flatten();
            let skew = answer.as_ref().map(|(_, skew)| *skew);
            let reply = answer.map(|(answer, _)| Reply {
                status: answer["statusCode"].as_u64().unwrap_or_default(),
                body: answer["body"].as_str().and_then(|body| serde_json::from_str(body).ok()).unwrap_or_default(),
            });
            let reply = reply.map(|reply| self.if_ended(&asked, reply));
            let said = reply.as_ref().map_or("no answer".to_owned(), |reply| {
                format!("{} {} {}", reply.status, reply.code(), reply.body["status"].as_str().unwrap_or_default())
            });
            let sent = body.map(Value::to_string).unwrap_or_default();
            let under = key.map(|key| format!(" key {key}")).unwrap_or_default();
            self.cloud.world.note(format_args!("{}: {method} {path}{under} {sent} => {said}", self.actor.name));
            self.hears(&asked, &mut window, tick, reply.as_ref(), skew);
            if let Some(reply) = reply {
                // With a planted bug a 500 is no violation: the bug has to break something else.
                let right = reply.status != 500 || self.cloud.world.lock().planted.is_some();
                self.expect(right, "no_internal_error", || format!("{method} {path}: {reply:?}"));
                let limited = self.cloud.rate.is_some() && !self.actor.admin && !self.actor.served && method != "GET";
                self.expect(reply.status != 429 || limited, "only_true_refusals", || {
                    format!("{method} {path}: {reply:?}")
                });
                if reply.status == 429 && self.at_rest() {
                    // Faults have stopped: wait for as long as the answer says.
                    let seconds = reply.body["retry_after_seconds"].as_u64().unwrap_or(1);
                    sleep(millis(seconds * 1_000)).await;
                    return Box::pin(self.ask(patience, function, method, path, key, body)).await;
                }
                if reply.clear() || tries == patience {
                    return Some(reply);
                }
            }
            let wait = 200 << tries.min(5);
            sleep(millis(wait)).await;
        }
        None
    }

    /// An answer to a reserve as its status says: a hold that has ended is no success, and the problem that says so has the
    /// whole reservation, which is judged like any other.
    fn if_ended(&self, asked: &Question, reply: Reply) -> Reply {
        if asked.route() != Route::Reserve || !matches!(reply.status, 201 | 409) {
            return reply;
        }
        let told = reply.code() == "hold_ended";
        let body = if told { reply.body["reservation"].clone() } else { reply.body.clone() };
        let ended = matches!(body["status"].as_str(), Some("expired" | "cancelled"));
        self.expect(told == ended, "an_ended_hold_is_no_success", || format!("{asked:?}: {reply:?}"));
        if told { Reply { status: 201, body } } else { reply }
    }

    /// Whether faults have stopped.
    fn at_rest(&self) -> bool {
        self.cloud.world.lock().books.calm_at.is_some()
    }

    /// Records that a request is sent: from now on, the states of the table are kept for it.
    fn asks(&self, asked: &Question) -> (Window, u64) {
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let unseen_since = state.unseen_since();
        let books = &mut state.books;
        let window = books.past.ask(now, unseen_since);
        if let (Route::Confirm(id), Some(payment)) = (asked.route(), asked.body["payment_reference"].as_str()) {
            books.asked.first_paid.entry((id.to_owned(), payment.to_owned())).or_insert(now);
        }
        for failed in books.tried_again(asked) {
            books.asked.retry.insert(failed.clone());
            if let Some(payment) = books.payment_of(&failed) {
                books.finality.lift(payment, window.sent);
            }
        }
        (window, books.journal.tick())
    }

    /// Judges the answer, if there is one, and adds it to the journal.
    fn hears(&self, asked: &Question, window: &mut Window, tick: u64, reply: Option<&Reply>, skew: Option<i64>) {
        let now = self.cloud.world.now();
        let mut state = self.cloud.world.lock();
        let books = &mut state.books;
        books.past.answer(window, now);
        if let Some(reply) = reply.filter(|_| asked.route().is_action()) {
            books.admin_answered(now, &request_id(tick), reply);
        }
        if let Some(reply) = reply {
            let case = Case { books, asked, reply, window: *window, skew };
            let mut broken = judge(&case);
            let refused = match asked.route() {
                Route::Adjust(id) if reply.status == 409 => case.not_adjusted(id).map(|at| (id.to_owned(), at)),
                _ => None,
            };
            if broken.is_none() && reply.clear() {
                let mut finality = std::mem::take(&mut state.books.finality);
                let case = Case { books: &state.books, asked, reply, window: *window, skew };
                broken = finality.judge(&case);
                state.books.finality = finality;
            }
            if let Some((product, at)) = refused {
                let key = asked.key.as_deref().unwrap_or_default();
                state.books.journal.refused(&product, key, at, format!("{asked:?}: {reply:?}"));
            }
            if let Some((promise, detail)) = broken {
                state.books.expect(now, false, promise, || detail);
            } else {
                state.books.expect(now, true, "answers_are_the_table", String::new);
            }
        }
        let books = &mut state.books;
        if reply.is_some_and(Reply::clear) {
            for failed in books.tried_again(asked) {
                if let Some(payment) = books.payment_of(&failed) {
                    let at = books.past.now();
                    books.finality.lifted(&payment, window.sent, at);
                }
            }
        }
        let about = match asked.route() {
            Route::Retry(id) | Route::Resolve(id) => books.about(id),
            _ => None,
        };
        books.journal.note(asked, tick, reply.map(|reply| (now, reply)), about);
        books.past.close(window);
    }

    fn key(&self, key: u8) -> String {
        format!("key-{key}")
    }

    pub(crate) fn reservation_id(&self, key: u8) -> String {
        reservation_id(&self.actor.name, key)
    }

    /// Who acts for the hold of a key: once it was handed to another customer, the shop's back end in their name.
    fn owner(&self, key: u8) -> Actor {
        match self.memory().handed.get(&key) {
            Some(to) => Actor { name: to.clone(), served: true, ..self.actor.clone() },
            None => self.actor.clone(),
        }
    }

    /// An admin, whoever this is.
    fn admin(&self) -> Actor {
        if self.actor.admin {
            return self.actor.clone();
        }
        Actor { name: "admin".to_owned(), admin: true, served: false, ..self.actor.clone() }
    }

    /// The lines of a request about the hold of a key.
    fn lines(&self, key: u8, body: &[(usize, u32)]) -> Value {
        let line = |&(product, quantity): &(usize, u32)| {
            let product = &self.products[product];
            let mut line = json!({ "product_id": product.id, "quantity": quantity });
            // With one of the keys, the price that the product had at first, which an admin may have changed.
            if key == 1 {
                line["unit_price_minor"] = product.price_minor.into();
            }
            line
        };
        json!({ "lines": body.iter().map(line).collect::<Vec<_>>() })
    }

    /// Reserves. Returns whether there was a clear answer.
    async fn reserve(&self, key: u8, body: &[(usize, u32)], patience: u32) -> bool {
        let id = self.reservation_id(key);
        self.memory().bodies.entry(key).or_default().push(body.to_vec());
        let sent = self.lines(key, body);
        let (method, path, name) = ("POST", "/reservations", self.key(key));
        let Some(reply) = self.ask(patience, Function::Reserve, method, path, Some(&name), Some(&sent)).await else {
            return false;
        };
        if reply.status == 201 {
            let made = reply.body["created_at"].as_str().unwrap_or_default().to_owned();
            if let Some(ends) = shown(&reply.body["expires_at"]) {
                self.memory().expires_at.insert(key, ends);
            }
            // Only its customer is told so.
            self.memory().handed.remove(&key);
            let mut state = self.cloud.world.lock();
            let first = state.promises.reserved.insert(id.clone(), made.clone());
            let recreated = state.promises.cleaned_up.contains(&id);
            let right = recreated || first.is_none_or(|first| first == made);
            state.books.expect(self.cloud.world.now(), right, "one_key_one_outcome", || format!("{id}: {reply:?}"));
        }
        reply.clear()
    }

    /// The `n`-th payment for the reservation of a key.
    fn payment(&self, key: u8, n: u8) -> String {
        payment(&self.actor.name, key, n)
    }

    /// The shop's back end confirms with this customer's payment, and names another customer: the reservation is not
    /// found, and the payment is recorded nevertheless.
    async fn mistake(&self, key: u8, payment: u8, instead: &str, patience: u32) {
        if instead == self.actor.name {
            return;
        }
        let (id, payment) = (self.reservation_id(key), self.payment(key, payment));
        {
            let now = self.cloud.world.now();
            let mut state = self.cloud.world.lock();
            state.books.asked.payments.insert((id.clone(), payment.clone()));
            state.books.asked.confirmed_by(&id, instead, now);
        }
        let wrong = Actor { name: instead.to_owned(), served: true, ..self.actor.clone() };
        let client = Client::new(self.cloud, &wrong, self.products);
        let path = format!("/reservations/{id}/confirm");
        let body = json!({ "payment_reference": payment });
        let reply = client.ask(patience, Function::Confirm, "POST", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return };
        let mut state = self.cloud.world.lock();
        state.promises.payments.insert((id.clone(), payment));
        // Unless the shop handed it to that customer.
        let right = matches!(reply.status, 404 | 202) || state.books.asked.handed_to(&id, instead);
        drop(state);
        self.expect(right, "only_the_owner", || format!("in the name of {instead}: {reply:?}"));
    }

    /// Confirms, after making a payment if there is one. Returns whether there was a clear answer.
    async fn confirm(&self, key: u8, payment: Option<u8>, patience: u32) -> bool {
        let id = self.reservation_id(key);
        // Of a hold that was handed over, half of the payments were begun before, in the former customer's name.
        let begun_before = payment.map_or(key > 0, |n| n.is_multiple_of(2));
        let actor = if begun_before { self.actor.clone() } else { self.owner(key) };
        let client = Client::new(self.cloud, &actor, self.products);
        let payment = payment.map(|n| self.payment(key, n));
        let world = &self.cloud.world;
        {
            let now = world.now();
            let mut state = world.lock();
            let asked = &mut state.books.asked;
            asked.confirmed_by(&id, &actor.name, now);
            if let Some(payment) = &payment {
                asked.payments.insert((id.clone(), payment.clone()));
                let taken = (key, payment.clone());
                let mut memory = self.memory();
                if !memory.unanswered.contains(&taken) {
                    memory.unanswered.push(taken);
                }
            }
        }
        let body = payment.as_ref().map_or(json!({}), |payment| json!({ "payment_reference": payment }));
        let path = format!("/reservations/{id}/confirm");
        let reply = client.ask(patience, Function::Confirm, "POST", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(Reply::clear) else { return false };
        let mut state = world.lock();
        match reply.status {
            200 if !state.books.asked.give_back.contains(&id) => _ = state.promises.ordered.insert(id.clone()),
            202 if payment.is_none() => _ = state.promises.queued.insert(id.clone()),
            _ => {}
        }
        if let Some(payment) = payment {
            self.memory().unanswered.retain(|(_, unanswered)| *unanswered != payment);
            // Any clear answer, even a refusal, acknowledges the payment.
            state.promises.payments.insert((id, payment));
        }
        drop(state);
        world.check_promises();
        true
    }

    /// Confirms again with every payment that is not acknowledged. Returns whether all of them are now.
    pub(crate) async fn insist(&self) -> bool {
        let unanswered = self.memory().unanswered.clone();
        let mut all = true;
        for (key, payment) in unanswered {
            let number = payment.rsplit('-').next().and_then(|number| number.parse().ok());
            all &= self.confirm(key, number, 2).await;
        }
        all
    }

    /// Confirms once more with every payment.
    pub(crate) async fn pay_again(&self) {
        let all: Vec<(u8, u8)> = {
            let state = self.cloud.world.lock();
            let ids: Vec<String> = (0..4).map(|key| self.reservation_id(key)).collect();
            let payments = state.books.asked.payments.iter();
            let own = payments.filter_map(|(of, payment)| {
                let key = ids.iter().position(|id| id == of)?;
                Some((u8::try_from(key).ok()?, payment.rsplit('-').next()?.parse().ok()?))
            });
            own.collect()
        };
        for (key, payment) in all {
            self.confirm(key, Some(payment), 0).await;
        }
    }

    /// Resolves every open failed confirmation. Returns whether each was answered.
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

    /// Repeats every reserve with its first body. Returns whether each was answered.
    pub(crate) async fn repeat(&self) -> bool {
        let first: Vec<_> = self.memory().bodies.iter().map(|(key, bodies)| (*key, bodies[0].clone())).collect();
        let mut all = true;
        for (key, body) in first {
            all &= self.reserve(key, &body, 0).await;
        }
        all
    }

    /// The shop's back end gives an order of this customer back.
    async fn give_order_back(&self, key: u8, restock: bool, patience: u32) {
        let id = self.reservation_id(key);
        {
            let mut state = self.cloud.world.lock();
            state.books.asked.give_back.insert(id.clone());
            // From now on it may be cancelled at any time.
            state.promises.ordered.remove(&id);
        }
        let shop = Actor { served: true, ..self.owner(key) };
        let client = Client::new(self.cloud, &shop, self.products);
        let path = format!("/orders/{id}/cancel");
        let body = json!({ "reason": "event called off", "restock": restock });
        client.ask(patience, Function::Reserve, "POST", &path, None, Some(&body)).await;
    }

    async fn cancel(&self, key: u8, patience: u32) {
        let (id, owner) = (self.reservation_id(key), self.owner(key));
        let client = Client::new(self.cloud, &owner, self.products);
        self.cloud.world.lock().books.asked.cancel.insert((id.clone(), owner.name.clone()));
        let path = format!("/reservations/{id}");
        let reply = client.ask(patience, Function::Reserve, "DELETE", &path, None, None).await;
        let mut state = self.cloud.world.lock();
        if reply.is_some_and(|reply| reply.status == 200) && state.books.reservations.contains_key(&id) {
            state.promises.cancelled.insert(id);
        }
    }

    async fn extend(&self, key: u8, seconds: u32, patience: u32) {
        let (id, owner) = (self.reservation_id(key), self.owner(key));
        let client = Client::new(self.cloud, &owner, self.products);
        let path = format!("/reservations/{id}/extend");
        let body = json!({ "hold_seconds": seconds });
        let reply = client.ask(patience, Function::Reserve, "POST", &path, None, Some(&body)).await;
        let Some(reply) = reply.filter(|reply| reply.status == 200) else { return };
        let until = shown(&reply.body["expires_at"]).unwrap_or_default();
        let mut state = self.cloud.world.lock();
        if state.books.reservations.contains_key(&id) {
            self.memory().expires_at.insert(key, until);
            let promised = state.promises.extended.entry(id).or_default();
            *promised = until.max(*promised);
        }
    }

    /// Gives the hold these lines.
    async fn change_lines(&self, key: u8, body: &[(usize, u32)], patience: u32) {
        let (id, owner) = (self.reservation_id(key), self.owner(key));
        let client = Client::new(self.cloud, &owner, self.products);
        let sent = self.lines(key, body);
        self.cloud.world.lock().books.asked.lines.insert((id.clone(), owner.name.clone(), wanted(&sent)));
        let path = format!("/reservations/{id}/lines");
        client.ask(patience, Function::Reserve, "PUT", &path, None, Some(&sent)).await;
    }

    /// The shop's back end hands the hold to another customer, as when a guest signs in.
    async fn hand_over(&self, key: u8, to: &str, patience: u32) {
        let (id, shop) = (self.reservation_id(key), Actor { served: true, ..self.owner(key) });
        if shop.name == to {
            return;
        }
        let client = Client::new(self.cloud, &shop, self.products);
        self.cloud.world.lock().books.asked.hand_over.insert((id.clone(), shop.name.clone(), to.to_owned()));
        let path = format!("/reservations/{id}/transfer");
        let body = json!({ "to_customer_id": to });
        let reply = client.ask(patience, Function::Reserve, "POST", &path, None, Some(&body)).await;
        if reply.is_some_and(|reply| reply.status == 200) {
            self.memory().handed.insert(key, to.to_owned());
        }
    }

    /// An admin releases a customer's hold, and then reads it.
    async fn release(&self, victim: &str, key: u8, patience: u32) {
        let (id, admin) = (reservation_id(victim, key), self.admin());
        let client = Client::new(self.cloud, &admin, self.products);
        self.cloud.world.lock().books.asked.release.insert(id.clone());
        let path = format!("/admin/reservations/{id}");
        let (release, body) = (format!("{path}/release"), json!({ "reason": "event called off" }));
        let reply = client.ask(patience, Function::Admin, "POST", &release, None, Some(&body)).await;
        {
            let mut state = self.cloud.world.lock();
            if reply.is_some_and(|reply| reply.status == 200) && state.books.reservations.contains_key(&id) {
                state.promises.released.insert(id);
            }
        }
        client.ask(0, Function::Admin, "GET", &path, None, None).await;
    }

    /// An admin releases all holds of a product, until it is complete.
    async fn release_all(&self, product: usize, patience: u32) {
        let (id, admin) = (&self.products[product].id, self.admin());
        let client = Client::new(self.cloud, &admin, self.products);
        self.cloud.world.lock().books.asked.release_all.insert(id.clone());
        let path = format!("/admin/products/{id}/release-holds");
        let body = json!({ "reason": "event called off" });
        for _ in 0..=patience {
            let reply = client.ask(patience, Function::Admin, "POST", &path, None, Some(&body)).await;
            if let Some(holds) = reply.as_ref().and_then(|reply| reply.body["released_holds"].as_u64()) {
                let mut state = self.cloud.world.lock();
                state.promises.released_holds += holds;
                let (told, done) = (state.promises.released_holds, state.books.released_holds);
                state.books.expect(self.cloud.world.now(), told <= done, "a_hold_ends_once", || {
                    format!("admins were told of {told} released holds, and there were {done}")
                });
            }
            if reply.is_none_or(|reply| reply.body["complete"] != false) {
                return;
            }
        }
    }

    /// The path of a list of reservations.
    fn search(&self, search: &Search) -> String {
        let text = |name: &str, text: &str| format!("{name}={text}");
        let at = |name: &str, ms: i64| instant(NOW.as_millis() + ms).map(|at| text(name, &at));
        let filters = [
            search.customer.as_ref().map(|customer| text("customer_id", customer)),
            search.payment.as_ref().map(|(name, key, n)| text("payment_reference", &payment(name, *key, *n))),
            search.status.map(|status| text("status", status)),
            search.product.map(|product| text("product_id", &self.products[product].id)),
            search.made.and_then(|(from, _)| at("from", from)),
            search.made.and_then(|(_, to)| at("to", to)),
        ];
        let filters: Vec<String> = filters.into_iter().flatten().collect();
        let sign = if filters.is_empty() { "" } else { "?" };
        format!("/admin/reservations{sign}{}", filters.join("&"))
    }

    /// Reads it, also in the name of the customer that it was handed to.
    async fn get(&self, key: u8) {
        let (id, owner) = (self.reservation_id(key), self.owner(key));
        let other = Client::new(self.cloud, &owner, self.products);
        for path in [format!("/reservations/{id}"), format!("/orders/{id}")] {
            self.ask(1, Function::Reserve, "GET", &path, None, None).await;
            if owner.name != self.actor.name {
                other.ask(1, Function::Reserve, "GET", &path, None, None).await;
            }
        }
    }

    /// Tries everything with another customer's reservation, which must not exist for this one.
    async fn trespass(&self, victim: &str, key: u8) {
        if victim == self.actor.name {
            return;
        }
        let (id, me) = (reservation_id(victim, key), &self.actor.name);
        let path = format!("/reservations/{id}");
        let (confirm, extend, change) = (format!("{path}/confirm"), format!("{path}/extend"), format!("{path}/lines"));
        let (body, lines) = (json!({ "hold_seconds": 60 }), self.lines(0, &[(0, 1)]));
        {
            let now = self.cloud.world.now();
            let mut state = self.cloud.world.lock();
            let asked = &mut state.books.asked;
            // The shop may hand it to this customer while a request is on its way.
            asked.confirmed_by(&id, me, now);
            asked.cancel.insert((id.clone(), me.clone()));
            asked.lines.insert((id.clone(), me.clone(), wanted(&lines)));
        }
        let replies = [
            self.ask(0, Function::Confirm, "POST", &confirm, None, Some(&json!({}))).await,
            self.ask(0, Function::Reserve, "POST", &extend, None, Some(&body)).await,
            self.ask(0, Function::Reserve, "PUT", &change, None, Some(&lines)).await,
            self.ask(0, Function::Reserve, "GET", &path, None, None).await,
            self.ask(0, Function::Reserve, "DELETE", &path, None, None).await,
        ];
        if self.cloud.world.lock().books.asked.handed_to(&id, me) {
            return;
        }
        for reply in replies.into_iter().flatten() {
            let right = !reply.clear() || reply.status == 404 || reply.status == 202;
            self.expect(right, "only_the_owner", || format!("{me} of {victim}: {reply:?}"));
        }
    }

    /// Creates a product.
    pub(crate) async fn make(&self, product: &ProductPlan, patience: u32) -> Option<Reply> {
        let at = |ms: Option<i64>| ms.and_then(|ms| instant(NOW.as_millis() + ms));
        let mut body = json!({
            "product_id": product.id, "name": format!("Product {}", product.id), "price_minor": product.price_minor,
            "currency": product.currency, "total": product.total, "shards": product.shards,
            "hold_seconds": product.hold_seconds, "sale_starts_at": at(product.sale.0), "sale_ends_at": at(product.sale.1),
        });
        // Null means that there will never be a limit.
        if product.limit.is_some() || !product.counted {
            body["max_per_customer"] = json!(product.limit);
        }
        if let Some(seconds) = product.late_payment_seconds {
            body["late_payment_seconds"] = json!(seconds);
        }
        self.ask(patience, Function::Admin, "POST", "/admin/products", None, Some(&body)).await
    }

    async fn adjust(&self, key: u8, product: usize, delta: i64, expecting: bool, patience: u32) {
        let id = &self.products[product].id;
        let name = format!("adjust-{key}");
        let total = self.cloud.world.lock().books.current(id).map(|product| product.total);
        let mut body = json!({ "delta": delta, "reason": "count" });
        // Without a product there is nothing to expect; null is the same request as leaving it out.
        if let Some(total) = total.filter(|_| expecting) {
            body["expected_total"] = json!(total);
        }
        let path = format!("/admin/products/{id}/stock");
        let reply = self.ask(patience, Function::Admin, "POST", &path, Some(&name), Some(&body)).await;
        if let Some(reply) = reply.filter(|reply| reply.status == 200) {
            let entry = reply.body["entry_id"].as_str().unwrap_or_default().to_owned();
            let mut state = self.cloud.world.lock();
            let first = state.promises.adjusted.insert(format!("{id} {name}"), entry.clone());
            let right = first.is_none_or(|first| first == entry);
            state.books.expect(self.cloud.world.now(), right, "one_key_one_outcome", || format!("{body}: {reply:?}"));
        }
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
            Change::Archive => json!({ "status": "archived" }),
            Change::OnSale => json!({ "status": "on_sale" }),
            Change::Hold(seconds) => json!({ "hold_seconds": seconds }),
            Change::Name(number) => json!({ "name": format!("Name {number}") }),
            Change::LatePayment(seconds) => json!({ "late_payment_seconds": seconds }),
            Change::SaleEnds(ends) => {
                json!({ "sale_ends_at": ends.and_then(|ends| instant(NOW.as_millis() + ends)) })
            }
        };
        body["version"] = version.into();
        let path = format!("/admin{path}");
        self.ask(patience, Function::Admin, "PATCH", &path, None, Some(&body)).await;
    }

    async fn failed(&self, then: Settle) {
        let path = "/admin/failed-confirmations";
        let Some(list) = self.ask(1, Function::Admin, "GET", path, None, None).await else { return };
        let ids: Vec<String> = list.body["items"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|failed| failed["failed_confirmation_id"].as_str().map(str::to_owned))
            .collect();
        match then {
            Settle::Nothing => {}
            Settle::Redrive => {
                let path = format!("{path}/redrive");
                // Twice at once, as by two admins.
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
                // An admin checks a moment later whether it helped.
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

/// A time in the format of requests.
fn instant(ms: i64) -> Option<String> {
    let time = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?;
    time.format(&time::format_description::well_known::Rfc3339).ok()
}

/// A customer's `n`-th payment for the reservation of a key.
fn payment(customer: &str, key: u8, n: u8) -> String {
    let of = if n < SHARED { key.to_string() } else { "all".to_owned() };
    format!("pay-{customer}-{of}-{n}")
}

fn reservation_id(customer: &str, key: u8) -> String {
    let customer = CustomerId::try_from(customer);
    let key = IdempotencyKey::try_from(format!("key-{key}"));
    match (customer, key) {
        (Ok(customer), Ok(key)) => ReservationId::derive(&customer, &key).to_string(),
        _ => String::new(),
    }
}

/// The id of the request that was sent at this tick.
fn request_id(tick: u64) -> String {
    format!("request-{tick}")
}

/// API Gateway's event.
fn event(actor: &Actor, request_id: &str, method: &str, path: &str, key: Option<&str>, body: Option<&Value>) -> Value {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut headers = json!({ "content-type": "application/json", "host": "holdfast.test" });
    if let Some(key) = key {
        headers["idempotency-key"] = key.into();
    }
    let (mut query, mut body) = (query.to_owned(), body.cloned());
    let who = if actor.served {
        // The back end has a token of its own, and names the customer.
        match &mut body {
            Some(body) => body["customer_id"] = actor.name.as_str().into(),
            None => {
                let sign = if query.is_empty() { "" } else { "&" };
                query = format!("{query}{sign}customer_id={}", actor.name);
            }
        }
        "shop"
    } else {
        actor.name.as_str()
    };
    let groups = if actor.admin {
        "[admin]"
    } else if actor.served {
        "[service]"
    } else {
        "[]"
    };
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
            "requestId": request_id,
            "routeKey": "$default",
            "stage": "$default",
            "time": "21/Nov/2025:04:40:00 +0000",
            "timeEpoch": NOW.as_millis(),
        },
        "body": body.map(|body| body.to_string()),
        "isBase64Encoded": false,
    })
}
