//! A caller of the HTTP API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::demo::{Book, read_books};
use holdfast_local::runner::Event;
use holdfast_local::stack::Stack;
use holdfast_local::token::Role;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use crate::described;

/// How long anything that will happen may take to happen. Nothing waits this long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The API of one stack.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) stack: Arc<Stack>,
    http: reqwest::Client,
}

/// Who calls.
#[derive(Clone, Copy)]
pub(crate) enum Who<'a> {
    Nobody,
    Customer(&'a str),
    Service(&'a str),
    Admin,
    Auditor,
    Token(&'a str),
}

/// An answer, whole, and to what.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Its method and path.
    pub(crate) request: String,
    pub(crate) status: u16,
    pub(crate) headers: reqwest::header::HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    /// The problem's code; empty for a response that is not a problem.
    pub(crate) fn code(&self) -> &str {
        self.body["code"].as_str().unwrap_or_default()
    }

    pub(crate) fn id(&self) -> String {
        self.body["reservation_id"].as_str().unwrap_or_else(|| panic!("no reservation: {self:?}")).to_owned()
    }

    /// Checks status and code, and that a problem has the shape of every problem.
    #[track_caller]
    pub(crate) fn is(&self, status: u16, code: &str) -> &Self {
        assert_eq!((self.status, self.code()), (status, code), "{self:#?}");
        if !code.is_empty() {
            assert_eq!(self.headers["content-type"], "application/problem+json");
            assert_eq!(self.body["type"], format!("urn:holdfast:problem:{code}"));
            assert_eq!(self.body["status"], status);
            for member in ["title", "detail", "request_id"] {
                assert!(self.body[member].as_str().is_some_and(|text| !text.is_empty()), "{member}: {self:#?}");
            }
            assert_eq!(self.headers["x-request-id"], self.body["request_id"].as_str().unwrap());
            if status == 400 {
                assert!(self.body["field"].as_str().is_some_and(|field| !field.is_empty()), "{self:#?}");
            }
        }
        self
    }
}

impl Api {
    pub(crate) fn new(stack: &Arc<Stack>) -> Self {
        Self { stack: stack.clone(), http: reqwest::Client::new() }
    }

    /// Any request, as raw as need be. Its answer is as the API's description says.
    pub(crate) async fn raw(
        &self,
        method: Method,
        path: &str,
        who: Who<'_>,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> Answer {
        let mut request = self.http.request(method.clone(), format!("{}{path}", self.stack.api_url()));
        let token = match who {
            Who::Nobody => None,
            Who::Customer(sub) => Some(self.stack.token(sub, Role::Customer).unwrap()),
            Who::Service(sub) => Some(self.stack.token(sub, Role::Service).unwrap()),
            Who::Admin => Some(self.stack.token("root", Role::Admin).unwrap()),
            Who::Auditor => Some(self.stack.token("auditor", Role::Auditor).unwrap()),
            Who::Token(token) => Some(token.to_owned()),
        };
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if let Some(body) = body {
            request = request.header("content-type", "application/json").body(body);
        }
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let text = response.text().await.unwrap();
        let body = serde_json::from_str(&text).unwrap_or(Value::String(text));
        let answer = Answer { request: format!("{method} {path}"), status, headers, body };
        described::check(method.as_str(), path, &answer);
        answer
    }

    pub(crate) async fn get(&self, path: &str, who: Who<'_>) -> Answer {
        self.raw(Method::GET, path, who, &[], None).await
    }

    pub(crate) async fn put(&self, path: &str, who: Who<'_>, body: Value) -> Answer {
        self.raw(Method::PUT, path, who, &[], Some(body.to_string())).await
    }

    pub(crate) async fn post(&self, path: &str, who: Who<'_>, body: Value) -> Answer {
        self.raw(Method::POST, path, who, &[], Some(body.to_string())).await
    }

    /// Makes a product of `total` units with these other fields.
    pub(crate) async fn product(&self, id: &str, total: u64, more: Value) -> Answer {
        let mut body = json!({"product_id": id, "name": id, "price_minor": 2_500, "currency": "EUR", "total": total});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let answer = self.post("/admin/products", Who::Admin, body).await;
        answer.is(201, "");
        answer
    }

    /// Changes some fields of a product that has this version.
    pub(crate) async fn patch(&self, id: &str, version: u64, mut change: Value) -> Answer {
        change["version"] = version.into();
        self.raw(Method::PATCH, &format!("/admin/products/{id}"), Who::Admin, &[], Some(change.to_string())).await
    }

    pub(crate) async fn reserve(&self, customer: &str, key: &str, lines: &[(&str, u32)]) -> Answer {
        let body = json!({ "lines": basket(lines) }).to_string();
        let who = Who::Customer(customer);
        self.raw(Method::POST, "/reservations", who, &[("idempotency-key", key)], Some(body)).await
    }

    /// Makes these the lines of a hold.
    pub(crate) async fn change(&self, customer: &str, id: &str, lines: &[(&str, u32)]) -> Answer {
        self.put(&format!("/reservations/{id}/lines"), Who::Customer(customer), json!({ "lines": basket(lines) })).await
    }

    /// The shop's back end confirms for the customer.
    pub(crate) async fn confirm(&self, customer: &str, id: &str, payment: Option<&str>) -> Answer {
        let mut body = json!({ "customer_id": customer });
        if let Some(payment) = payment {
            body["payment_reference"] = payment.into();
        }
        self.post(&format!("/reservations/{id}/confirm"), Who::Service("shop"), body).await
    }

    /// An admin releases a hold.
    pub(crate) async fn release(&self, id: &str, reason: &str) -> Answer {
        self.post(&format!("/admin/reservations/{id}/release"), Who::Admin, json!({ "reason": reason })).await
    }

    /// An admin releases all holds of a product.
    pub(crate) async fn release_holds(&self, product: &str, reason: &str) -> Answer {
        self.post(&format!("/admin/products/{product}/release-holds"), Who::Admin, json!({ "reason": reason })).await
    }

    pub(crate) async fn cancel(&self, customer: &str, id: &str) -> Answer {
        self.raw(Method::DELETE, &format!("/reservations/{id}"), Who::Customer(customer), &[], None).await
    }

    /// Asks `GET /products/{id}` until it says this: available, reserved, sold. It may be two seconds behind.
    pub(crate) async fn stock_becomes(&self, id: &str, expected: (u64, u64, u64)) {
        let started = tokio::time::Instant::now();
        loop {
            let product = self.get(&format!("/products/{id}"), Who::Nobody).await;
            product.is(200, "");
            let units = |name: &str| product.body[name].as_u64().unwrap();
            let says = (units("available"), units("reserved"), units("sold"));
            if says == expected {
                return;
            }
            assert!(started.elapsed() < Duration::from_secs(5), "{id}: {says:?} is not {expected:?}");
        }
    }

    /// The books of one product, read from the table; they balance.
    pub(crate) async fn book(&self, id: &str) -> Book {
        let mut books: BTreeMap<String, Book> = read_books(&self.stack).await.unwrap();
        let book = books.remove(id).unwrap_or_else(|| panic!("no product {id}"));
        assert!(book.balances(), "{id}: {book:?}");
        book
    }

    /// Waits for schedules to call `expire` until `done`.
    pub(crate) async fn until_expired<F: Future<Output = bool>>(&self, done: impl Fn() -> F) {
        let mut events = self.stack.runner().unwrap().events();
        let waiting = async {
            while !done().await {
                while !matches!(events.recv().await, Ok(Event::Fired { function, .. }) if function == "expire") {}
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the schedule released nothing");
    }

    /// Waits for the queue to make an order of this reservation; the order. `events` began before the message was sent.
    pub(crate) async fn until_confirmed(
        &self,
        customer: &str,
        id: &str,
        mut events: broadcast::Receiver<Event>,
    ) -> Answer {
        let path = format!("/reservations/{id}");
        let confirmed = async {
            loop {
                let reservation = self.get(&path, Who::Customer(customer)).await;
                if reservation.body["status"] == "confirmed" {
                    return reservation;
                }
                while !matches!(events.recv().await, Ok(Event::Delivered { .. })) {}
            }
        };
        tokio::time::timeout(PATIENCE, confirmed).await.expect("the queue delivered nothing")
    }

    /// The failed confirmations of a payment, from all pages: other tests leave some too.
    pub(crate) async fn failed(&self, payment: &str) -> Vec<Value> {
        let mut failed = self.listed("/admin/failed-confirmations?limit=100").await;
        failed.retain(|item| item["payment_reference"] == payment);
        failed
    }

    /// The same, once there are any: whoever lists them takes them in from the queue, and another test may just do so.
    pub(crate) async fn owed(&self, payment: &str) -> Vec<Value> {
        let looking = async {
            loop {
                let failed = self.failed(payment).await;
                if !failed.is_empty() {
                    return failed;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{payment} is nowhere"))
    }

    /// All pages of an admin's list. `path` has a query.
    pub(crate) async fn listed(&self, path: &str) -> Vec<Value> {
        let (mut found, mut cursor) = (Vec::new(), String::new());
        loop {
            let mut page = self.get(&format!("{path}{cursor}"), Who::Admin).await;
            // A list takes in what other tests have sent to the queue, and may have too little time for all of it.
            for _ in 0..4 {
                if page.status == 503 {
                    page = self.get(&format!("{path}{cursor}"), Who::Admin).await;
                }
            }
            found.extend(page.is(200, "").body["items"].as_array().unwrap().iter().cloned());
            let Some(next) = page.body["next_cursor"].as_str() else { return found };
            cursor = format!("&cursor={next}");
        }
    }

    /// Waits until the reservation's own time is over, by the clock that it was given.
    pub(crate) async fn until_overdue(&self, reservation: &Answer) {
        let seconds = reservation.body["expires_in_seconds"].as_u64().unwrap();
        // Nothing announces that a moment has come; the extra tenth is for the round-up of the countdown.
        tokio::time::sleep(Duration::from_millis(seconds * 1_000 + 100)).await;
    }
}

/// Lines as the API takes them.
fn basket(lines: &[(&str, u32)]) -> Vec<Value> {
    lines.iter().map(|(id, units)| json!({"product_id": id, "quantity": units})).collect()
}
