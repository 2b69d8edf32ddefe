//! A table, queues, schedules, a clock, products, baskets, and the books.
#![expect(clippy::expect_used, clippy::unwrap_used, reason = "for tests: a broken fixture is a failed test")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use holdfast_aws::clock::Clock;
use holdfast_aws::config::Environment;
use holdfast_aws::queues::Queues;
use holdfast_aws::schedules::{Schedules, Target};
use holdfast_domain::{
    Basket, Confirmation, CustomerId, DEFAULT_LATE_PAYMENT_SECONDS, HoldSeconds, IdempotencyKey, PaymentReference,
    Product, ProductId, ProductStatus, Reservation, ReservationId, Status, Timestamp,
};
use holdfast_store::{Deadline, Error, Reserved, Store, keys};

use crate::wire::Wire;

/// The table of the fixtures.
pub const TABLE: &str = "holdfast";
/// The time at which tests begin.
pub const NOW: Timestamp = Timestamp::from_millis(1_763_700_000_000);

/// The queue of confirmations.
pub const CONFIRMATIONS: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/confirmations";
/// The dead-letter queue behind it.
pub const FAILED: &str = "https://sqs.us-east-1.amazonaws.com/123456789012/failed-confirmations";

fn environment(wire: &Wire) -> Environment {
    Environment::of_emulator("us-east-1", "http://aws.test").with_http_client(wire.http_client())
}

/// A client over the wire.
pub fn client(wire: &Wire) -> Client {
    environment(wire).dynamodb()
}

/// Both queues over the wire.
pub fn queues(wire: &Wire) -> Queues {
    Queues::new(environment(wire).sqs(), CONFIRMATIONS.to_owned(), FAILED.to_owned())
}

/// The schedules of another environment over the wire, in slots of 10 s.
pub fn schedules(wire: &Wire) -> Schedules {
    let target = Target {
        group: "holds".to_owned(),
        function_arn: "arn:aws:lambda:us-east-1:123456789012:function:expire".to_owned(),
        role_arn: "arn:aws:iam::123456789012:role/schedule".to_owned(),
        dead_letter_arn: "arn:aws:sqs:us-east-1:123456789012:schedule-failures".to_owned(),
    };
    Schedules::new(environment(wire).scheduler(), target, 10, wire.clock())
}

/// A clock that a test sets. It starts at [`NOW`].
#[derive(Debug, Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    /// A clock at [`NOW`].
    pub fn new() -> Self {
        Self(Arc::new(AtomicI64::new(NOW.as_millis())))
    }

    /// Sets the time.
    pub fn set(&self, now: Timestamp) {
        self.0.store(now.as_millis(), Ordering::Relaxed);
    }

    /// The clock for what is tested.
    pub fn clock(&self) -> Clock {
        let hands = self.0.clone();
        Clock::new(move || Timestamp::from_millis(hands.load(Ordering::Relaxed)))
    }
}

impl Default for TestClock {
    fn default() -> Self {
        Self::new()
    }
}

/// A wire to an empty table.
pub fn table() -> Wire {
    Wire::new(TABLE)
}

/// Another environment over the same table, with its own cache and random numbers.
pub fn store(wire: &Wire, seed: u64) -> Store {
    Store::new(client(wire), TABLE, wire.clock()).seeded(seed)
}

/// The deadline of an ordinary request.
pub fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(8))
}

/// A product of `total` units on `shards` shards, held for 600 s. Customers' units are not counted: see [`limited`].
pub fn product(id: &str, total: u64, shards: u32) -> Product {
    Product {
        product_id: product_id(id),
        name: format!("Product {id}"),
        price_minor: 2_500,
        currency: "EUR".to_owned().try_into().unwrap(),
        total,
        shards,
        hold_seconds: HoldSeconds::DEFAULT,
        late_payment_seconds: DEFAULT_LATE_PAYMENT_SECONDS,
        max_per_customer: None,
        counts_per_customer: false,
        sale_starts_at: None,
        sale_ends_at: None,
        status: ProductStatus::OnSale,
        version: 1,
    }
}

/// The same with a limit for each customer.
pub fn limited(product: Product, max_per_customer: u32) -> Product {
    Product { max_per_customer: Some(max_per_customer), counts_per_customer: true, ..product }
}

/// A product's id.
pub fn product_id(id: &str) -> ProductId {
    ProductId::try_from(id).unwrap()
}

/// A customer.
pub fn customer(id: &str) -> CustomerId {
    CustomerId::try_from(id).unwrap()
}

/// A payment.
pub fn payment(reference: &str) -> PaymentReference {
    PaymentReference::try_from(reference).unwrap()
}

/// The basket of `who` under `key`.
pub fn basket(who: &str, key: &str, lines: &[(&str, u32)]) -> Basket {
    let lines = lines.iter().map(|&(id, quantity)| (product_id(id), Some(quantity))).collect();
    Basket::new(customer(who), &IdempotencyKey::try_from(key).unwrap(), lines).unwrap()
}

/// A confirmation that was requested at `at`.
pub fn confirmation(
    reservation_id: &ReservationId,
    customer: &CustomerId,
    payment: Option<&PaymentReference>,
    at: Timestamp,
) -> Confirmation {
    Confirmation {
        reservation_id: reservation_id.clone(),
        customer: customer.clone(),
        payment_reference: payment.cloned(),
        requested_at: at,
        request: None,
    }
}

/// Creates products.
pub async fn stocked(wire: &Wire, products: &[Product]) {
    let store = store(wire, 0);
    for product in products {
        store.create_product(product, "admin", NOW, soon()).await.expect("a product");
    }
    wire.take_calls();
}

/// Reserves, with reminders that always succeed.
///
/// # Errors
/// As [`Store::reserve`].
pub async fn reserve(store: &Store, basket: &Basket, now: Timestamp) -> Result<Reserved, Error> {
    store.reserve(basket, now, soon(), |_| async { Ok(()) }).await
}

/// Where the units of one product are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Books {
    /// On the shards.
    pub available: u64,
    /// In held reservations.
    pub held: u64,
    /// In orders.
    pub sold: u64,
    /// The product's total.
    pub total: u64,
}

impl Books {
    /// Whether every unit is in exactly one place.
    pub fn balance(&self) -> bool {
        self.available + self.held + self.sold == self.total
    }
}

/// The books of every product, read from the items themselves.
///
/// # Panics
/// If the books of a product do not balance.
pub async fn books(wire: &Wire) -> BTreeMap<String, Books> {
    wire.script(|_| None);
    let books = books_of(&client(wire), TABLE).await;
    for (id, books) in &books {
        assert!(books.balance(), "{id}: {books:?}");
    }
    books
}

/// The same for any table, balanced or not.
pub async fn books_of(client: &Client, table: &str) -> BTreeMap<String, Books> {
    let mut books: BTreeMap<String, Books> = BTreeMap::new();
    let mut items = client.scan().table_name(table).consistent_read(true).into_paginator().items().send();
    while let Some(item) = items.next().await {
        let item = item.expect("an item");
        let text = |name: &str| item.get(name).and_then(|value| value.as_s().ok()).cloned().unwrap_or_default();
        let number = |name: &str| -> u64 { item[name].as_n().unwrap().parse().expect("no negative number") };
        let pk = text(keys::PK);
        if pk == keys::CATALOG || pk.starts_with(keys::PRODUCT_PREFIX) {
            // The entry of the directory alone has no total.
            let books = books.entry(text("product_id")).or_default();
            books.total = if item.contains_key("total") { number("total") } else { books.total };
        } else if pk.starts_with("STOCK#") {
            let id = pk.split('#').nth(1).unwrap().to_owned();
            books.entry(id).or_default().available += number("available");
        } else if pk.starts_with(keys::HOLD_PREFIX) {
            let reservation: Reservation = serde_dynamo_from(item);
            for line in &reservation.lines {
                let taken: u32 = line.takes.iter().map(|take| take.units).sum();
                assert_eq!(taken, line.quantity, "{reservation:?}");
                let books = books.entry(line.product_id.to_string()).or_default();
                match reservation.status {
                    Status::Held => books.held += u64::from(line.quantity),
                    Status::Confirmed => books.sold += u64::from(line.quantity),
                    Status::Cancelled | Status::Expired => {}
                }
            }
        }
    }
    books
}

fn serde_dynamo_from(item: std::collections::HashMap<String, aws_sdk_dynamodb::types::AttributeValue>) -> Reservation {
    serde_dynamo::from_item(item).expect("a reservation")
}
