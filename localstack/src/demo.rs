//! `cargo local demo`: a sale from start to end on real components, narrated and checked. (One story, hence the length.)
//!
//! It uses the HTTP API only, as a shop would; the books at the end are read from the table itself, independently of the
//! code that is shown. A failed check is reported, and the demo continues.

use crate::aws::Clients;
use crate::error::{Context, Error, Result};
use crate::runner::Event;
use crate::stack::{Options, Stack};
use crate::token::Role;
use aws_sdk_dynamodb::types::AttributeValue;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio::sync::broadcast::error::TryRecvError;
use tokio::task::JoinSet;

const SHOPPERS: usize = 1_000;
const TICKETS: u64 = 100;
/// Concurrent connections. More would only wait in the gateway, which handles 64 requests at a time.
const CONNECTIONS: usize = 128;
/// The shortest that the API allows.
const SHORT_HOLD_SECONDS: u64 = 10;
const REPLAYS: usize = 20;
const CONFIRMED: usize = 10;
const CANCELLED: usize = 5;
/// Maximum time from a hold's end to its release: its slot, the runner's interval, and a busy machine.
const RELEASE_WITHIN: Duration = Duration::from_secs(45);
/// How long schedules may be late: a slot, which holds that end in it share.
const SCHEDULE_SECONDS: u64 = 10;
/// Polling interval.
const POLL: Duration = Duration::from_millis(500);
/// Maximum age of a response of `GET /products`.
const STALE: Duration = Duration::from_secs(2);
/// Attempts of a request that gets 503 or 429, or whose connection breaks.
const ATTEMPTS: u32 = 8;

/// Runs the demo, prints it, and returns whether all checks passed.
///
/// # Errors
/// The stack does not start or stops answering.
pub async fn run(options: Options) -> Result<bool> {
    play(options, Pace::default(), |line| println!("{line}")).await
}

/// How fast it is played.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// How long a ticket is held: the race, the replays and the confirmations must be over by then.
    pub ticket_hold_seconds: u64,
}

impl Default for Pace {
    /// Long enough for a machine that does nothing else.
    fn default() -> Self {
        Self { ticket_hold_seconds: 40 }
    }
}

/// Runs the demo at this pace, hands each line to `print`, and returns whether all checks passed.
///
/// # Errors
/// The stack does not start or stops answering.
pub async fn play(options: Options, pace: Pace, print: impl FnMut(&str) + Send) -> Result<bool> {
    let stack = Stack::start(options).await?;
    let told = tell(&stack, pace, Box::new(print)).await;
    stack.stop().await;
    told
}

async fn tell(stack: &Stack, pace: Pace, print: Print<'_>) -> Result<bool> {
    let mut story = Story::new(stack, pace, print)?;
    story.say(&format!("\nHoldfast: {SHOPPERS} shoppers, {TICKETS} tickets. API: {}", stack.api_url()));
    story.products().await?;
    let late = story.somebody_forgets_to_pay().await?;
    let winners = story.race().await?;
    story.replays(&winners).await?;
    story.some_confirm_some_cancel(&winners).await?;
    let order = story.paid_too_late(&late).await?;
    story.given_back(&order).await?;
    story.the_rest_expires(&winners).await?;
    story.books().await?;
    Ok(story.end())
}

/// Asks again and again until there is an answer; `None` if there is none in time.
async fn until<T>(within: Duration, ask: impl AsyncFn() -> Result<Option<T>>) -> Result<Option<T>> {
    let limit = Instant::now() + within;
    let mut pause = tokio::time::interval(POLL);
    while Instant::now() < limit {
        pause.tick().await;
        if let Some(found) = ask().await? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

type Print<'a> = Box<dyn FnMut(&str) + Send + 'a>;

struct Story<'a> {
    stack: &'a Stack,
    pace: Pace,
    print: Print<'a>,
    api: Api,
    admin: String,
    shop: String,
    since: Instant,
    events: tokio::sync::broadcast::Receiver<Event>,
    failed: Vec<String>,
}

/// A shopper who holds something.
#[derive(Clone)]
struct Holder {
    customer: String,
    token: String,
    key: String,
    body: Value,
    reservation_id: String,
}

impl<'a> Story<'a> {
    fn new(stack: &'a Stack, pace: Pace, print: Print<'a>) -> Result<Self> {
        let runner = stack.runner().ok_or_else(|| Error::new("the runner does not run"))?;
        Ok(Self {
            stack,
            pace,
            print,
            api: Api::new(stack.api_url())?,
            admin: stack.token("demo-admin", Role::Admin)?,
            shop: stack.token("demo-shop", Role::Service)?,
            since: Instant::now(),
            events: runner.events(),
            failed: Vec::new(),
        })
    }

    async fn products(&mut self) -> Result<()> {
        self.chapter("An admin puts three products on sale");
        let products = [
            ("ticket", "Concert ticket", 4_500, TICKETS, self.pace.ticket_hold_seconds),
            ("print", "Signed print, the only one", 12_000, 1, SHORT_HOLD_SECONDS),
            ("mug", "Mug", 900, 5, SHORT_HOLD_SECONDS),
        ];
        for (id, name, price_minor, total, hold_seconds) in products {
            let body = json!({
                "product_id": id, "name": name, "price_minor": price_minor, "currency": "EUR",
                "total": total, "hold_seconds": hold_seconds,
            });
            let answer = self.api.call(Method::POST, "/admin/products", &self.admin, None, Some(&body)).await?;
            self.check(
                answer.status == StatusCode::CREATED,
                &format!("{name}: {total}, held for {hold_seconds} s"),
                &answer,
            );
        }
        Ok(())
    }

    /// Two holds that lapse while others race, for the chapter on late payments.
    async fn somebody_forgets_to_pay(&mut self) -> Result<(Holder, Holder)> {
        self.chapter("Two customers reserve, and forget to pay");
        let print = self.hold("forgetful", "print").await?;
        let mug = self.hold("dreamy", "mug").await?;
        Ok((print, mug))
    }

    async fn hold(&mut self, who: &str, product: &str) -> Result<Holder> {
        let mut holder = Holder {
            customer: who.to_owned(),
            token: self.stack.token(who, Role::Customer)?,
            key: format!("{who}-basket"),
            body: json!({ "lines": [{ "product_id": product, "quantity": 1 }] }),
            reservation_id: String::new(),
        };
        let answer = self.api.reserve(&holder).await?;
        self.check(answer.status == StatusCode::CREATED, &format!("{who} holds a {product}"), &answer);
        holder.reservation_id = answer.text("reservation_id");
        Ok(holder)
    }

    async fn race(&mut self) -> Result<Vec<Holder>> {
        self.chapter(&format!("{SHOPPERS} shoppers reserve a ticket each, at the same time"));
        let doors = Arc::new(Semaphore::new(CONNECTIONS));
        let mut racing = JoinSet::new();
        let since = Instant::now();
        for number in 1..=SHOPPERS {
            let customer = format!("shopper-{number:04}");
            let holder = Holder {
                token: self.stack.token(&customer, Role::Customer)?,
                customer,
                key: format!("race-{number:04}"),
                body: json!({ "lines": [{ "product_id": "ticket", "quantity": 1 }] }),
                reservation_id: String::new(),
            };
            let (api, doors) = (self.api.clone(), Arc::clone(&doors));
            racing.spawn(async move {
                let _door = doors.acquire().await;
                let begun = Instant::now();
                let answer = api.reserve(&holder).await;
                (holder, answer, begun.elapsed())
            });
        }
        let mut outcomes: BTreeMap<String, usize> = BTreeMap::new();
        let mut winners = Vec::new();
        let mut times = Vec::new();
        while let Some(raced) = racing.join_next().await {
            let (mut holder, answer, took) = raced.context(|| "a shopper was lost".into())?;
            let answer = answer?;
            times.push(took);
            *outcomes.entry(answer.outcome()).or_default() += 1;
            if answer.status == StatusCode::CREATED {
                holder.reservation_id = answer.text("reservation_id");
                winners.push(holder);
            }
        }
        times.sort_unstable();
        let took = since.elapsed().as_secs_f64();
        let percentile = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default();
        self.say(&format!(
            "   it took {took:.1} s; latency: median {:.0?}, 99th percentile {:.0?}",
            percentile(50),
            percentile(99)
        ));
        for (outcome, count) in &outcomes {
            self.say(&format!("   {count:>5}  {outcome}"));
        }
        let tickets = usize::try_from(TICKETS).unwrap_or(usize::MAX);
        self.verdict(
            winners.len() == tickets,
            &format!("exactly {TICKETS} hold a ticket"),
            &format!("{}", winners.len()),
        );
        let refused = outcomes.get("409 insufficient_stock").copied().unwrap_or_default();
        self.verdict(refused == SHOPPERS - tickets, "everybody else gets insufficient_stock", &format!("{outcomes:?}"));
        self.stock("ticket", 0, TICKETS, 0).await?;
        Ok(winners)
    }

    async fn replays(&mut self, winners: &[Holder]) -> Result<()> {
        self.chapter("Some retry with the same key, as after a lost response");
        let mut same = 0;
        for winner in winners.iter().take(REPLAYS) {
            let answer = self.api.reserve(winner).await?;
            let replayed = answer.headers.get("idempotent-replayed").is_some_and(|value| value == "true");
            if replayed && answer.text("reservation_id") == winner.reservation_id {
                same += 1;
            }
        }
        let asked = winners.len().min(REPLAYS);
        self.verdict(same == asked, &format!("{asked} of them get their own reservation again"), &format!("{same}"));
        if let Some(winner) = winners.first() {
            let mut other = winner.clone();
            other.body = json!({ "lines": [{ "product_id": "mug", "quantity": 1 }] });
            let answer = self.api.reserve(&other).await?;
            let refused = answer.outcome() == "422 idempotency_key_reused";
            self.check(refused, "the same key for another basket is refused", &answer);
        }
        self.stock("ticket", 0, TICKETS, 0).await
    }

    /// The shop's back end confirms for the customer, once it knows of the payment.
    async fn confirm(&self, holder: &Holder, payment: Option<&str>) -> Result<Answer> {
        let path = format!("/reservations/{}/confirm", holder.reservation_id);
        let mut body = json!({ "customer_id": holder.customer });
        if let Some(payment) = payment {
            body["payment_reference"] = payment.into();
        }
        self.api.call(Method::POST, &path, &self.shop, None, Some(&body)).await
    }

    async fn some_confirm_some_cancel(&mut self, winners: &[Holder]) -> Result<()> {
        self.chapter(&format!("{CONFIRMED} pay, {CANCELLED} cancel"));
        let (mut confirmed, mut cancelled) = (0, 0);
        for (number, winner) in winners.iter().take(CONFIRMED).enumerate() {
            let answer = self.confirm(winner, Some(&format!("payment-{number}"))).await?;
            confirmed += usize::from(answer.status == StatusCode::OK && answer.text("status") == "confirmed");
        }
        for winner in winners.iter().skip(CONFIRMED).take(CANCELLED) {
            let path = format!("/reservations/{}", winner.reservation_id);
            let answer = self.api.call(Method::DELETE, &path, &winner.token, None, None).await?;
            cancelled += usize::from(answer.status == StatusCode::OK);
        }
        self.verdict(
            confirmed == CONFIRMED,
            &format!("{CONFIRMED} reservations are confirmed: they are orders"),
            &format!("{confirmed}"),
        );
        self.verdict(
            cancelled == CANCELLED,
            &format!("{CANCELLED} are cancelled, and their tickets are available again"),
            &format!("{cancelled}"),
        );
        let (sold, back) = (count(CONFIRMED), count(CANCELLED));
        self.stock("ticket", back, TICKETS - sold - back, sold).await
    }

    /// Returns the order of the only print.
    async fn paid_too_late(&mut self, (print, mug): &(Holder, Holder)) -> Result<Holder> {
        self.chapter("The two who forgot pay late, after their holds have expired");
        for (holder, product, total) in [(print, "print", 1), (mug, "mug", 5)] {
            let left = self.seconds_left(holder).await?;
            self.awaiting(&format!("for the {product}'s hold to expire"), left);
            let back = self.until_available(product, total).await?;
            self.tell_fired();
            let status = self.status(holder).await?;
            self.verdict(
                back && status == "expired",
                &format!("the {product}'s hold has expired, the {product} is available again"),
                &status,
            );
        }

        let answer = self.confirm(mug, Some("payment-dreamy")).await?;
        let rescued = answer.status == StatusCode::OK && answer.body["confirmed_late"] == true;
        self.check(rescued, "mugs are available: the payment is accepted, confirmed_late", &answer);

        let quick = self.hold("quick", "print").await?;
        let answer = self.confirm(&quick, Some("payment-quick")).await?;
        self.check(answer.status == StatusCode::OK, "quick has bought the only print meanwhile", &answer);
        let answer = self.confirm(print, Some("payment-forgetful")).await?;
        let refused = answer.outcome() == "409 refund_required";
        self.check(refused, "forgetful's payment cannot be accepted: refund_required", &answer);
        self.refund(print, "payment-forgetful", "refund_required").await?;
        Ok(quick)
    }

    async fn given_back(&mut self, order: &Holder) -> Result<()> {
        self.chapter("The order of the print is cancelled, and the print is sold again");
        let path = format!("/orders/{}/cancel", order.reservation_id);
        let body = json!({ "reason": "returned unopened", "restock": true, "customer_id": order.customer });
        let answer = self.api.call(Method::POST, &path, &self.shop, None, Some(&body)).await?;
        let cancelled = answer.status == StatusCode::OK && answer.text("status") == "cancelled";
        self.check(cancelled, "the shop cancels quick's order", &answer);
        self.stock("print", 1, 0, 0).await?;
        self.refund(order, "payment-quick", "order_cancelled").await?;

        let patient = self.hold("patient", "print").await?;
        let answer = self.confirm(&patient, Some("payment-patient")).await?;
        self.check(answer.status == StatusCode::OK, "patient has bought the same print", &answer);
        self.stock("print", 0, 0, 1).await
    }

    /// The admin finds a payment that must be refunded, and settles it.
    async fn refund(&mut self, holder: &Holder, payment: &str, reason: &str) -> Result<()> {
        let Some(failed) = self.failed_confirmation(&holder.reservation_id).await? else {
            self.verdict(false, "it is recorded as a failed confirmation, which the admin sees", "it is not there");
            return Ok(());
        };
        let as_paid = failed["payment_reference"] == payment && failed["reason"] == reason;
        self.verdict(as_paid, "it is recorded as a failed confirmation, which the admin sees", &failed.to_string());
        let id = failed["failed_confirmation_id"].as_str().unwrap_or_default();
        let path = format!("/admin/failed-confirmations/{id}/resolve");
        let note = json!({ "note": "Refunded by hand in the demo." });
        let answer = self.api.call(Method::POST, &path, &self.admin, None, Some(&note)).await?;
        self.check(answer.status.is_success(), "the admin resolves it, and refunds the payment", &answer);
        Ok(())
    }

    /// The item of a reservation, once it has come through the queue.
    async fn failed_confirmation(&self, reservation_id: &str) -> Result<Option<Value>> {
        until(RELEASE_WITHIN, async || {
            let answer = self.api.call(Method::GET, "/admin/failed-confirmations", &self.admin, None, None).await?;
            let items = answer.body["items"].as_array().cloned().unwrap_or_default();
            Ok(items.into_iter().find(|item| item["reservation_id"] == reservation_id))
        })
        .await
    }

    async fn the_rest_expires(&mut self, winners: &[Holder]) -> Result<()> {
        let rest = winners.len().saturating_sub(CONFIRMED + CANCELLED);
        self.chapter(&format!("The other {rest} never pay, and their holds expire"));
        let expected = TICKETS - count(CONFIRMED);
        if let Some(last) = winners.last() {
            let left = self.seconds_left(last).await?;
            self.awaiting(&format!("for {rest} holds to expire"), left);
        }
        let back = self.until_available("ticket", expected).await?;
        self.verdict(back, &format!("all {expected} unsold tickets are on sale again"), "they are not");
        self.awaiting("for their schedules to release them", SCHEDULE_SECONDS);
        let released = self.until_released("ticket").await?;
        let fired = self.tell_fired();
        let released = released && fired > 0;
        self.verdict(released, "their schedules released them", &format!("{fired} schedules have fired"));
        if let Some(loser) = winners.last() {
            let answer = self.confirm(loser, None).await?;
            self.check(
                answer.outcome() == "410 hold_expired",
                "confirming one of them without a payment is refused: hold_expired",
                &answer,
            );
        }
        self.stock("ticket", expected, 0, count(CONFIRMED)).await
    }

    /// Waits until `expected` units are available.
    async fn until_available(&self, product: &str, expected: u64) -> Result<bool> {
        let within = Duration::from_secs(self.pace.ticket_hold_seconds) + RELEASE_WITHIN;
        let available = until(within, async || {
            let answer = self.api.call(Method::GET, &format!("/products/{product}"), "", None, None).await?;
            Ok((answer.body["available"].as_u64() == Some(expected)).then_some(()))
        });
        Ok(available.await?.is_some())
    }

    /// Waits until no unit is held in the table. The API shows overdue holds as available before they are released.
    async fn until_released(&self, product: &str) -> Result<bool> {
        let released = until(RELEASE_WITHIN, async || {
            let books = read_books(self.stack).await?;
            Ok(books.get(product).is_some_and(|book| book.held == 0).then_some(()))
        });
        Ok(released.await?.is_some())
    }

    /// Prints and counts the schedules that fired since the last call.
    fn tell_fired(&mut self) -> usize {
        let mut fired = 0;
        loop {
            match self.events.try_recv() {
                Ok(event @ Event::Fired { .. }) => {
                    self.say(&format!("        {event}"));
                    fired += 1;
                }
                Ok(_) | Err(TryRecvError::Lagged(_)) => {}
                Err(TryRecvError::Empty | TryRecvError::Closed) => return fired,
            }
        }
    }

    /// How long a hold still lasts. By the list, because reading one reservation would release an overdue hold.
    async fn seconds_left(&self, holder: &Holder) -> Result<u64> {
        let answer = self.api.call(Method::GET, "/reservations", &holder.token, None, None).await?;
        let items = answer.body["items"].as_array().cloned().unwrap_or_default();
        let item = items.into_iter().find(|item| item["reservation_id"] == holder.reservation_id.as_str());
        Ok(item.and_then(|item| item["expires_in_seconds"].as_u64()).unwrap_or_default())
    }

    async fn status(&self, holder: &Holder) -> Result<String> {
        let path = format!("/reservations/{}", holder.reservation_id);
        Ok(self.api.call(Method::GET, &path, &holder.token, None, None).await?.text("status"))
    }

    /// Checks the stock of a product by the API.
    async fn stock(&mut self, product: &str, available: u64, reserved: u64, sold: u64) -> Result<()> {
        let expected = [available, reserved, sold].map(Some);
        let started = Instant::now();
        let says = loop {
            let answer = self.api.call(Method::GET, &format!("/products/{product}"), "", None, None).await?;
            let says = ["available", "reserved", "sold"].map(|field| answer.body[field].as_u64());
            if says == expected || started.elapsed() > STALE {
                break says;
            }
            tokio::time::sleep(POLL).await;
        };
        let line = format!("GET /products/{product}: available {available}, reserved {reserved}, sold {sold}");
        self.verdict(says == expected, &line, &format!("{says:?}"));
        Ok(())
    }

    async fn books(&mut self) -> Result<()> {
        self.chapter("The books, read from the table");
        let books = read_books(self.stack).await?;
        tokio::time::sleep(STALE).await;
        let listed = self.api.call(Method::GET, "/products", "", None, None).await?;
        let listed = listed.body["items"].as_array().cloned().unwrap_or_default();
        self.say(&format!("   {:<8} {:>9} {:>6} {:>6} {:>7}", "product", "available", "held", "sold", "total"));
        for (product, book) in &books {
            let Book { available, held, sold, total } = book;
            self.say(&format!("   {product:<8} {available:>9} {held:>6} {sold:>6} {total:>7}"));
        }
        for (product, book) in &books {
            let sum = book.available + book.held + book.sold;
            self.verdict(
                sum == book.total,
                &format!("{product}: available + held + sold = total"),
                &format!("{sum} of {}", book.total),
            );
            let item = listed.iter().find(|item| item["product_id"] == product.as_str());
            let says =
                ["available", "reserved", "sold", "total"].map(|field| item.and_then(|item| item[field].as_i64()));
            let agrees = says == [book.available, book.held, book.sold, book.total].map(Some);
            self.verdict(agrees, &format!("{product}: GET /products says the same"), &format!("{says:?}"));
        }
        self.verdict(books.len() == 3, "all three products are in the table", &format!("{}", books.len()));
        Ok(())
    }

    fn say(&mut self, line: &str) {
        (self.print)(line);
    }

    fn chapter(&mut self, title: &str) {
        let seconds = self.since.elapsed().as_secs_f64();
        self.say(&format!("\n[{seconds:>5.1} s] {title}"));
    }

    /// Says what is awaited, unless it is there already.
    fn awaiting(&mut self, what: &str, seconds: u64) {
        if seconds > 0 {
            self.say(&format!("   ...  waiting {what}, about {seconds} s"));
        }
    }

    fn check(&mut self, holds: bool, what: &str, answer: &Answer) {
        self.verdict(holds, what, &format!("{} {}", answer.status.as_u16(), answer.body));
    }

    fn verdict(&mut self, holds: bool, what: &str, actual: &str) {
        if holds {
            self.say(&format!("   ok   {what}"));
        } else {
            self.say(&format!("   FAIL {what}\n        actual: {actual}"));
            self.failed.push(what.to_owned());
        }
    }

    fn end(mut self) -> bool {
        let took = self.since.elapsed().as_secs_f64();
        if self.failed.is_empty() {
            self.say(&format!("\nAll checks passed in {took:.0} s."));
            return true;
        }
        self.say(&format!("\nFailed checks, after {took:.0} s:"));
        for what in std::mem::take(&mut self.failed) {
            self.say(&format!("  - {what}"));
        }
        let log = crate::paths::shown(&self.stack.logs().functions);
        self.say(&format!("Log of the functions: {log}"));
        false
    }
}

/// The API as a shop's front end calls it.
#[derive(Clone)]
struct Api {
    client: reqwest::Client,
    base: String,
}

struct Answer {
    status: StatusCode,
    headers: reqwest::header::HeaderMap,
    body: Value,
}

impl Answer {
    fn text(&self, field: &str) -> String {
        self.body[field].as_str().unwrap_or_default().to_owned()
    }

    /// The status, and the code of a problem.
    fn outcome(&self) -> String {
        format!("{} {}", self.status.as_u16(), self.body["code"].as_str().unwrap_or_default()).trim().to_owned()
    }
}

impl Api {
    fn new(base: &str) -> Result<Self> {
        let client = reqwest::Client::builder().no_proxy().timeout(Duration::from_secs(60)).build();
        Ok(Self { client: client.context(|| "cannot make an HTTP client".into())?, base: base.to_owned() })
    }

    async fn reserve(&self, holder: &Holder) -> Result<Answer> {
        self.call(Method::POST, "/reservations", &holder.token, Some(&holder.key), Some(&holder.body)).await
    }

    /// Sends a request, and retries it after a 503 or 429, when `Retry-After` is over, and after a broken connection.
    /// Every request of the demo is idempotent.
    async fn call(
        &self,
        method: Method,
        path: &str,
        token: &str,
        key: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut attempt = 1;
        loop {
            let mut request = self.client.request(method.clone(), format!("{}{path}", self.base));
            if !token.is_empty() {
                request = request.bearer_auth(token);
            }
            if let Some(key) = key {
                request = request.header("Idempotency-Key", key);
            }
            if let Some(body) = body {
                request = request.json(body);
            }
            let wait = match request.send().await {
                Ok(response) => {
                    let (status, headers) = (response.status(), response.headers().clone());
                    let again = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS);
                    if !again || attempt == ATTEMPTS {
                        let text = response.bytes().await.context(|| format!("{method} {path}"))?;
                        let body = serde_json::from_slice(&text).unwrap_or_default();
                        return Ok(Answer { status, headers, body });
                    }
                    let seconds = headers.get("retry-after").and_then(|after| after.to_str().ok()?.parse().ok());
                    Duration::from_secs(seconds.unwrap_or(1))
                }
                Err(error) if attempt == ATTEMPTS => return Err(error).context(|| format!("{method} {path}")),
                Err(_) => Duration::from_secs(1),
            };
            // What `Retry-After` asks for.
            tokio::time::sleep(wait).await;
            attempt += 1;
        }
    }
}

/// The units of a product in the table.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Book {
    /// Of the product's item.
    pub total: i64,
    /// The sum over its shards.
    pub available: i64,
    /// The units of its reservations that are held.
    pub held: i64,
    /// The units of its reservations that are confirmed.
    pub sold: i64,
}

impl Book {
    /// Whether every unit is in exactly one place.
    pub fn balances(&self) -> bool {
        self.available >= 0 && self.available + self.held + self.sold == self.total
    }
}

/// The books of every product in the stack's table, see [`books_of`].
///
/// # Errors
/// The table cannot be read, or holds an item that is not understood.
pub async fn read_books(stack: &Stack) -> Result<BTreeMap<String, Book>> {
    books_of(stack.clients(), stack.table()?).await
}

/// The books of every product, by a consistent scan of the whole table. Meaningful if nothing is in flight.
///
/// # Errors
/// The table cannot be read, or holds an item that is not understood.
pub async fn books_of(clients: &Clients, table: &str) -> Result<BTreeMap<String, Book>> {
    let mut books = BTreeMap::new();
    let mut pages = clients.dynamodb.scan().table_name(table).consistent_read(true).into_paginator().send();
    while let Some(page) = pages.next().await {
        for item in page.context(|| format!("cannot scan the table {table}"))?.items.unwrap_or_default() {
            enter(&mut books, &item)
                .ok_or_else(|| Error::new(format!("an item of {table} is not understood: {item:?}")))?;
        }
    }
    Ok(books)
}

/// `None` if a required attribute is missing.
fn enter(books: &mut BTreeMap<String, Book>, item: &HashMap<String, AttributeValue>) -> Option<()> {
    let number =
        |map: &HashMap<String, AttributeValue>, name: &str| -> Option<i64> { map.get(name)?.as_n().ok()?.parse().ok() };
    let (pk, sk) = (item.get("pk")?.as_s().ok()?, item.get("sk")?.as_s().ok()?);
    if pk == "CATALOG" {
        // Bare, its product is under a key of its own.
        if let Some(product) = sk.strip_prefix("PRODUCT#").filter(|_| item.contains_key("total")) {
            books.entry(product.to_owned()).or_default().total = number(item, "total")?;
        }
    } else if let Some(product) = pk.strip_prefix("PRODUCT#") {
        books.entry(product.to_owned()).or_default().total = number(item, "total")?;
    } else if let Some(shard) = pk.strip_prefix("STOCK#") {
        let (product, _) = shard.rsplit_once('#')?;
        books.entry(product.to_owned()).or_default().available += number(item, "available")?;
    } else if pk.starts_with("HOLD#") {
        let status = item.get("status")?.as_s().ok()?;
        for line in item.get("lines")?.as_l().ok()? {
            let line = line.as_m().ok()?;
            let book = books.entry(line.get("product_id")?.as_s().ok()?.clone()).or_default();
            match status.as_str() {
                "held" => book.held += number(line, "quantity")?,
                "confirmed" => book.sold += number(line, "quantity")?,
                _ => {}
            }
        }
    }
    Some(())
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}
