//! Customers who want to buy, whatever happens: each is one good client, and remembers what it was told.

use std::fmt;
use std::sync::Mutex;
use std::time::Duration;

use futures_util::future::{join, join_all};
use holdfast_domain::{CustomerId, IdempotencyKey, ReservationId};
use reqwest::Method;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::patience;
use crate::api::{Answer, Api, Who};

/// As many as an emulator answers in time that shares two cores with those of two other tests.
const CUSTOMERS: usize = 12;
/// More than are requested; too few for every late payment; many, but limited for each customer.
pub(super) const PRODUCTS: [(&str, u64); 3] = [("plenty", 5_000), ("scarce", 8), ("limited", 1_000)];
pub(super) const LIMIT: u64 = 4;
/// A client that is not told how long to wait (the gateway does not say) waits this long.
const PAUSE: Duration = Duration::from_millis(200);
/// And no longer than this, whatever it is told: the test is to press.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What happened so far.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    pub(super) requests: u64,
    /// Tries that the gateway answered: no function did.
    no_answer: u64,
    /// Tries that a function answered with 503.
    unavailable: u64,
    pub(super) reservations: u64,
    pub(super) orders: u64,
    /// Confirmations that were answered with 202.
    pub(super) queued: u64,
    refunds: u64,
    cancelled: u64,
    /// Reservations that were refused.
    refused: u64,
    /// Units that an admin added to "plenty", one by one.
    pub(super) added: u64,
}

impl Counts {
    pub(super) fn failed(&self) -> u64 {
        self.no_answer + self.unavailable
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { requests, no_answer, unavailable, reservations, orders, queued, refunds, cancelled, refused, added } =
            self;
        write!(
            f,
            "{requests} requests, {no_answer} without an answer, {unavailable} answered with 503; {reservations} \
             reservations, {refused} refused; {orders} orders at once, {queued} queued, {refunds} refunds, {cancelled} \
             cancelled; {added} adjustments"
        )
    }
}

/// The counts, and every change of them; and the tries that failed, as a customer saw them.
pub(super) struct Tally(watch::Sender<Counts>, Mutex<Vec<String>>);

impl Tally {
    pub(super) fn now(&self) -> Counts {
        *self.0.borrow()
    }

    pub(super) async fn until(&self, reached: impl Fn(&Counts) -> bool) {
        let mut counts = self.0.subscribe();
        let waiting = timeout(patience(), counts.wait_for(reached)).await;
        let end = waiting.map(|counts| drop(counts.unwrap()));
        end.unwrap_or_else(|_| panic!("answers_once_faults_stop: nothing goes on: {}", self.now()));
    }

    /// The tries that failed after the first `before` of them.
    pub(super) fn failures_since(&self, before: u64) -> Vec<String> {
        let failures = self.1.lock().unwrap();
        failures.iter().skip(usize::try_from(before).unwrap()).cloned().collect()
    }

    fn count(&self, change: impl FnOnce(&mut Counts)) {
        self.0.send_modify(change);
    }
}

/// What a customer was told of a reservation, in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    /// There is none.
    Refused,
    /// It is held, and nothing else was asked for.
    Held,
    /// It is an order.
    Ordered,
    /// Its confirmation is on its way.
    Queued,
    /// The payment has to be given back.
    RefundDue,
    /// It is cancelled.
    Cancelled,
    /// Its time was over.
    TooLate,
}

/// One customer's one attempt to buy something.
#[derive(Debug, Clone)]
pub(super) struct Visit {
    pub(super) customer: String,
    pub(super) reservation_id: String,
    pub(super) payment: Option<String>,
    pub(super) told: Told,
    /// When the hold ends, as it was told.
    expires_at: Option<OffsetDateTime>,
}

impl Visit {
    #[track_caller]
    fn is_over(&self, answer: &Answer) {
        let over = self.expires_at.is_some_and(|end| OffsetDateTime::now_utc() >= end);
        assert!(over, "no_hold_ends_early: {self:?} {answer:?}");
    }
}

pub(super) struct Load {
    api: Api,
    pub(super) tally: Tally,
    over: watch::Sender<bool>,
}

impl Load {
    pub(super) async fn new(api: &Api) -> Self {
        for (id, total) in PRODUCTS {
            let limit = (id == "limited").then_some(LIMIT);
            let shards = if id == "plenty" { 8 } else { 2 };
            let more = json!({"hold_seconds": 10, "shards": shards, "max_per_customer": limit});
            api.product(id, total, more).await;
        }
        let (counts, over) = (watch::channel(Counts::default()).0, watch::channel(false).0);
        Self { api: api.clone(), tally: Tally(counts, Mutex::default()), over }
    }

    /// No customer comes again, and no admin. Those who are there go on until they have an answer.
    pub(super) fn end(&self) {
        self.over.send_replace(true);
    }

    /// Until [`Load::end`]; what everybody was told.
    pub(super) async fn run(&self) -> Vec<Visit> {
        let customers = join_all((0..CUSTOMERS).map(|number| self.customer(number)));
        join(customers, self.admin()).await.0.into_iter().flatten().collect()
    }

    fn is_over(&self) -> bool {
        *self.over.borrow()
    }

    async fn customer(&self, number: usize) -> Vec<Visit> {
        let name = format!("customer-{number}");
        let mut visits = Vec::new();
        while !self.is_over() {
            visits.push(self.visit(&name, number, visits.len()).await);
        }
        visits
    }

    async fn visit(&self, customer: &str, number: usize, visit: usize) -> Visit {
        let key = format!("visit-{visit}");
        let lines: &[(&str, u32)] = match (number + visit) % 5 {
            0 | 1 => &[("plenty", 2)],
            2 => &[("plenty", 1), ("limited", 1)],
            3 => &[("scarce", 1)],
            _ => &[("scarce", 1), ("limited", 1), ("plenty", 1)],
        };
        let derived = ReservationId::derive(
            &CustomerId::try_from(customer).unwrap(),
            &IdempotencyKey::try_from(key.clone()).unwrap(),
        );
        let mut known = Visit {
            customer: customer.to_owned(),
            reservation_id: derived.to_string(),
            payment: None,
            told: Told::Refused,
            expires_at: None,
        };
        let reserve = || self.patiently(|| self.api.reserve(customer, &key, lines));
        let reserved = reserve().await;
        if reserved.status != 201 && reserved.code() != "hold_ended" {
            let right = ["insufficient_stock", "customer_limit_reached"].contains(&reserved.code());
            assert!(right && reserved.status == 409, "only_true_refusals: {lines:?} {reserved:?}");
            self.tally.count(|counts| counts.refused += 1);
            return known;
        }
        // A retry may come after the end of the hold that an earlier try has made.
        let ended = reserved.code() == "hold_ended";
        let made = if ended { &reserved.body["reservation"] } else { &reserved.body };
        assert_eq!(made["reservation_id"], known.reservation_id.as_str(), "one_key_one_reservation");
        let expires_at = made["expires_at"].as_str().unwrap();
        known.expires_at = Some(OffsetDateTime::parse(expires_at, &Rfc3339).unwrap());
        known.told = Told::Held;
        self.tally.count(|counts| counts.reservations += 1);
        if ended {
            assert_eq!(made["status"], "expired", "a_hold_ends_once");
            return known;
        }
        if visit.is_multiple_of(4) {
            // A customer who pressed twice: the same again, and it has not changed.
            let again = reserve().await;
            let same = if again.code() == "hold_ended" { &again.body["reservation"] } else { &again.body };
            let unchanged = same["reservation_id"] == known.reservation_id.as_str() && same["expires_at"] == expires_at;
            assert!(unchanged, "an_owner_is_never_refused: {known:?} {again:?}");
        }
        if visit.is_multiple_of(5) {
            let path = format!("/products/{}", lines[0].0);
            self.patiently(|| self.api.get(&path, Who::Nobody)).await.is(200, "");
        }
        match (number + visit / 2) % 8 {
            0..=2 => self.pay(&mut known, &reserved, false).await,
            // Twice at once, by an impatient one.
            3 => self.pay(&mut known, &reserved, true).await,
            4 => self.confirm_without_payment(&mut known).await,
            5 => self.cancel(&mut known).await,
            6 if visit.is_multiple_of(2) => {
                self.api.until_overdue(&reserved).await;
                self.pay(&mut known, &reserved, false).await;
            }
            _ => {}
        }
        known
    }

    async fn pay(&self, visit: &mut Visit, reserved: &Answer, twice: bool) {
        let payment = format!("pay-{}", &visit.reservation_id[4..24]);
        visit.payment = Some(payment.clone());
        let (customer, id) = (&visit.customer, &visit.reservation_id);
        let confirm = || self.patiently(|| self.api.confirm(customer, id, Some(&payment)));
        let answers =
            if twice { <[Answer; 2]>::from(join(confirm(), confirm()).await).to_vec() } else { vec![confirm().await] };
        // The last word counts; of two at once that is whichever says more.
        for answer in &answers {
            let told = match (answer.status, answer.code()) {
                (200, _) => {
                    assert_eq!(answer.body["payment_reference"], payment, "one_key_one_outcome: {answer:?}");
                    Told::Ordered
                }
                (202, _) => Told::Queued,
                (409, "refund_required") => {
                    visit.is_over(answer);
                    Told::RefundDue
                }
                (404, _) => panic!("no_reservation_is_lost: {reserved:?} {answer:?}"),
                _ => panic!("no_payment_is_lost: {reserved:?} {answer:?}"),
            };
            if visit.told != Told::Ordered {
                visit.told = told;
            }
        }
        self.tally.count(|counts| match visit.told {
            Told::Ordered => counts.orders += 1,
            Told::Queued => counts.queued += 1,
            _ => counts.refunds += 1,
        });
    }

    async fn confirm_without_payment(&self, visit: &mut Visit) {
        let answer = self.patiently(|| self.api.confirm(&visit.customer, &visit.reservation_id, None)).await;
        visit.told = match (answer.status, answer.code()) {
            (200, _) => {
                self.tally.count(|counts| counts.orders += 1);
                Told::Ordered
            }
            (202, _) => {
                self.tally.count(|counts| counts.queued += 1);
                Told::Queued
            }
            (410, "hold_expired") => {
                visit.is_over(&answer);
                Told::TooLate
            }
            _ => panic!("no_reservation_is_lost: {visit:?} {answer:?}"),
        };
    }

    async fn cancel(&self, visit: &mut Visit) {
        let answer = self.patiently(|| self.api.cancel(&visit.customer, &visit.reservation_id)).await;
        visit.told = match (answer.status, answer.code()) {
            (200, _) => {
                self.tally.count(|counts| counts.cancelled += 1);
                Told::Cancelled
            }
            (410, "hold_expired") => {
                visit.is_over(&answer);
                Told::TooLate
            }
            _ => panic!("no_reservation_is_lost: {visit:?} {answer:?}"),
        };
    }

    /// Adds units one by one, each under a key of its own.
    async fn admin(&self) {
        while !self.is_over() {
            let key = format!("added-{}", self.tally.now().added);
            let headers = [("idempotency-key", key.as_str())];
            let body = json!({"delta": 1, "reason": "found one more"}).to_string();
            let add = || {
                let path = "/admin/products/plenty/stock";
                self.api.raw(Method::POST, path, Who::Admin, &headers, Some(body.clone()))
            };
            self.patiently(add).await.is(200, "");
            self.tally.count(|counts| counts.added += 1);
            sleep(PAUSE).await;
        }
    }

    /// The same request until there is an answer to it, counted.
    async fn patiently<F: Future<Output = Answer>>(&self, request: impl Fn() -> F) -> Answer {
        let counted = async || {
            let answer = request().await;
            if answer.status == 503 {
                self.tally.1.lock().unwrap().push(format!("{}: {}", answer.request, answer.body));
            }
            self.tally.count(|counts| {
                counts.requests += 1;
                match answer.status {
                    503 if answer.code().is_empty() => counts.no_answer += 1,
                    503 => counts.unavailable += 1,
                    _ => {}
                }
            });
            answer
        };
        patiently(counted).await
    }
}

/// The same request until there is an answer to it.
pub(super) async fn patiently(request: impl AsyncFn() -> Answer) -> Answer {
    let since = Instant::now();
    loop {
        let answer = request().await;
        assert!(answer.status < 500 || answer.status == 503, "no_internal_error: {answer:?}");
        if answer.status != 503 {
            return answer;
        }
        assert!(since.elapsed() < patience(), "answers_once_faults_stop: {answer:?}");
        let told = answer.headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
        // The gateway's answer, which has no code, does not say.
        let says = told.is_some() || answer.code().is_empty();
        assert!(says, "a 503 that does not say when to come back: {answer:?}");
        // As any client does that is told to come back later.
        sleep(told.map_or(PAUSE, Duration::from_secs).min(LONGEST_PAUSE)).await;
    }
}

/// The items of all pages of a list.
pub(super) async fn pages(api: &Api, path: &str, who: Who<'_>) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let path = format!("{path}?limit=100{cursor}");
        let page = patiently(async || api.get(&path, who).await).await;
        page.is(200, "");
        items.extend(page.body["items"].as_array().unwrap().iter().cloned());
        let Some(next) = page.body["next_cursor"].as_str() else { return items };
        cursor = format!("&cursor={next}");
    }
}
