//! What must be true once the system is quiet, read from the table and from the API.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use futures_util::future::join_all;
use reqwest::Method;
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::load::{Counts, LIMIT, PRODUCTS, Told, Visit, pages, patiently};
use crate::api::{Api, Who};

/// A hold ends within a minute and a half of its time, which is ten seconds at most after the last customer.
const BOUND: Duration = Duration::from_secs(100);
/// Polling interval.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Both ways of a confirmation that was not carried out at once.
const QUEUES: [&str; 2] = ["ConfirmationsQueue", "FailedConfirmationsQueue"];

/// Waits until no hold is left and no message, as an admin does who sends what used up its tries on its way again.
pub(super) async fn until_quiet(api: &Api) -> Duration {
    let since = Instant::now();
    let mut tick = interval(LOOK_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let held = Table::read(api).await.reservations.values().filter(|item| item["status"] == "held").count();
        // Also takes in what arrived in the dead-letter queue.
        let failed = pages(api, "/admin/failed-confirmations", Who::Admin).await;
        let unsettled = failed.iter().filter(|item| {
            item["reason"] == "not_confirmed" && (item["state"] == "open" || item["state"] == "retrying")
        });
        let unsettled = unsettled.count();
        if unsettled > 0 {
            let path = "/admin/failed-confirmations/redrive";
            let redrive = async || api.raw(Method::POST, path, Who::Admin, &[], None).await;
            patiently(redrive).await.is(202, "");
        }
        let waiting = join_all(QUEUES.map(|queue| messages(api, queue))).await;
        if held == 0 && unsettled == 0 && waiting.iter().all(|messages| *messages == 0) {
            return since.elapsed();
        }
        let late = since.elapsed() > BOUND;
        assert!(!late || held == 0, "every_hold_ends_within_its_bound: {held} are left");
        assert!(!late, "every_queue_drains: {QUEUES:?} hold {waiting:?}, and {unsettled} are not settled");
    }
}

/// The messages of a queue, visible or not.
async fn messages(api: &Api, queue: &str) -> u64 {
    let url = &api.stack.queue(queue).unwrap().url;
    let request = api.stack.clients().sqs.get_queue_attributes().queue_url(url);
    let answer = request.attribute_names(QueueAttributeName::All).send().await.unwrap();
    let kinds = [
        QueueAttributeName::ApproximateNumberOfMessages,
        QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
        QueueAttributeName::ApproximateNumberOfMessagesDelayed,
    ];
    let attributes = answer.attributes.unwrap();
    kinds.iter().filter_map(|kind| attributes.get(kind)?.parse::<u64>().ok()).sum()
}

/// The table, item by item.
#[derive(Default)]
struct Table {
    /// By their id.
    reservations: BTreeMap<String, Value>,
    totals: BTreeMap<String, i64>,
    shards: Vec<(String, i64)>,
    limits: BTreeMap<(String, String), i64>,
    ledger: BTreeMap<String, i64>,
}

impl Table {
    async fn read(api: &Api) -> Self {
        let request = api.stack.clients().dynamodb.scan().table_name(api.stack.table().unwrap()).consistent_read(true);
        let (mut table, mut scan) = (Self::default(), request.into_paginator().items().send());
        while let Some(item) = scan.next().await {
            table.enter(serde_dynamo::from_item(item.unwrap()).unwrap());
        }
        table
    }

    fn enter(&mut self, item: Value) {
        let number = |name: &str| item[name].as_i64().unwrap_or_else(|| panic!("no {name}: {item}"));
        let (pk, sk) = (item["pk"].as_str().unwrap(), item["sk"].as_str().unwrap());
        match pk.split_once('#').unwrap_or((pk, "")) {
            ("CATALOG", _) => {
                // Bare, its product is under a key of its own.
                if let Some(product) = sk.strip_prefix("PRODUCT#").filter(|_| !item["total"].is_null()) {
                    self.totals.insert(product.to_owned(), number("total"));
                }
            }
            ("PRODUCT", product) => drop(self.totals.insert(product.to_owned(), number("total"))),
            ("STOCK", rest) => {
                self.shards.push((rest.rsplit_once('#').unwrap().0.to_owned(), number("available")));
            }
            ("LIMIT", rest) => {
                let (product, customer) = rest.split_once('#').unwrap();
                self.limits.insert((product.to_owned(), customer.to_owned()), number("units"));
            }
            ("LEDGER", product) => *self.ledger.entry(product.to_owned()).or_default() += number("delta"),
            ("HOLD", id) => {
                let id = id.to_owned();
                self.reservations.insert(id, item);
            }
            _ => {}
        }
    }

    /// The units of a product in reservations of this status.
    fn units(&self, product: &str, status: &str, customer: Option<&str>) -> i64 {
        let reservations = self.reservations.values().filter(|item| item["status"] == status);
        let theirs = reservations.filter(|item| customer.is_none_or(|customer| item["customer"] == customer));
        let lines = theirs.flat_map(|item| item["lines"].as_array().unwrap());
        lines.filter(|line| line["product_id"] == product).map(|line| line["quantity"].as_i64().unwrap()).sum()
    }
}

/// Compares all responses with the table, and returns a summary of the books.
pub(super) async fn check(api: &Api, visits: &[Visit], counts: Counts) -> String {
    let table = Table::read(api).await;
    let failed = pages(api, "/admin/failed-confirmations", Who::Admin).await;
    let mut broken = table.of_products(counts);
    table.of_limits(visits, &mut broken);
    for visit in visits {
        if let Some(why) = of_visit(visit, table.reservations.get(&visit.reservation_id), &failed) {
            broken.push(format!("{why}: {visit:?} {:?}", table.reservations.get(&visit.reservation_id)));
        }
    }
    let asked: BTreeSet<&str> = visits.iter().map(|visit| visit.reservation_id.as_str()).collect();
    assert_eq!(asked.len(), visits.len());
    let of_nobody = table.reservations.keys().filter(|id| !asked.contains(id.as_str()));
    broken.extend(of_nobody.map(|id| format!("one_key_one_reservation: nobody asked for {id}")));
    // Also by the API, to each of the customers.
    let customers: BTreeSet<&str> = visits.iter().map(|visit| visit.customer.as_str()).collect();
    let lists = join_all(customers.iter().map(|customer| async move {
        let who = Who::Customer(customer);
        (customer, pages(api, "/reservations", who).await, pages(api, "/orders", who).await)
    }));
    for (customer, reservations, orders) in lists.await {
        let ids = |list: &[Value]| list.iter().map(|item| item["reservation_id"].to_string()).collect::<BTreeSet<_>>();
        let theirs = |status: Option<&str>| {
            let all = table.reservations.values().filter(|item| item["customer"] == **customer);
            let some = all.filter(|item| status.is_none_or(|status| item["status"] == status));
            some.map(|item| item["reservation_id"].to_string()).collect::<BTreeSet<_>>()
        };
        if ids(&reservations) != theirs(None) {
            broken.push(format!("no_reservation_is_lost: the list of {customer} is not the table's"));
        }
        if ids(&orders) != theirs(Some("confirmed")) {
            broken.push(format!("no_order_is_lost: the orders of {customer} are not the table's"));
        }
    }
    assert!(broken.is_empty(), "{} broken, the first of them: {:#?}", broken.len(), &broken[..broken.len().min(10)]);

    let mut said = Vec::new();
    for (product, _) in PRODUCTS {
        let units = |units: i64| u64::try_from(units).unwrap();
        let (available, sold) = (table.available(product), table.units(product, "confirmed", None));
        api.stock_becomes(product, (units(available), 0, units(sold))).await;
        said.push(format!("{product}: {available} available, {sold} sold"));
    }
    let open = failed.iter().filter(|item| item["state"] == "open").count();
    format!("{}; {open} failed confirmations open; all quiet", said.join(", "))
}

impl Table {
    fn available(&self, product: &str) -> i64 {
        self.shards.iter().filter(|(id, _)| id == product).map(|(_, available)| available).sum()
    }

    fn of_products(&self, counts: Counts) -> Vec<String> {
        let mut broken = Vec::new();
        let negative = self.shards.iter().filter(|(_, available)| *available < 0);
        broken.extend(negative.map(|shard| format!("nothing_negative: {shard:?}")));
        for (product, first) in PRODUCTS {
            let (total, available) = (self.totals[product], self.available(product));
            let [held, sold] = ["held", "confirmed"].map(|status| self.units(product, status, None));
            if available + held + sold != total {
                broken.push(format!(
                    "every_unit_is_somewhere: {product}: {available} available, {held} held, {sold} sold of {total}"
                ));
            }
            if self.ledger.get(product) != Some(&total) {
                broken.push(format!("ledger_explains_the_total: {product}: {:?} of {total}", self.ledger.get(product)));
            }
            let added = if product == "plenty" { counts.added } else { 0 };
            if u64::try_from(total) != Ok(first + added) {
                broken
                    .push(format!("one_key_one_outcome: {product}: {first} and {added} added one by one are {total}"));
            }
        }
        broken
    }

    fn of_limits(&self, visits: &[Visit], broken: &mut Vec<String>) {
        let customers: BTreeSet<&str> = visits.iter().map(|visit| visit.customer.as_str()).collect();
        for customer in customers {
            let counted = self.limits.get(&("limited".to_owned(), customer.to_owned())).copied().unwrap_or(0);
            let has: i64 = ["held", "confirmed"].iter().map(|s| self.units("limited", s, Some(customer))).sum();
            if counted != has || !u64::try_from(has).is_ok_and(|has| has <= LIMIT) {
                broken.push(format!("limits_count_what_customers_have: {customer}: {counted} counted, {has} theirs"));
            }
        }
    }
}

/// What is wrong with a reservation, if anything, for what its customer was told.
fn of_visit(visit: &Visit, item: Option<&Value>, failed: &[Value]) -> Option<&'static str> {
    let status = item.and_then(|item| item["status"].as_str());
    let record = failed.iter().find(|record| {
        let payment = visit.payment.as_deref();
        record["reservation_id"] == visit.reservation_id.as_str() && record["payment_reference"].as_str() == payment
    });
    let state = record.and_then(|record| record["state"].as_str());
    if status == Some("confirmed") {
        if item.is_some_and(|item| item["payment_reference"].as_str() != visit.payment.as_deref()) {
            return Some("no_payment_is_lost: the order is of another payment");
        }
        // Paid back, and delivered all the same.
        if state.is_some_and(|state| state != "confirmed") {
            return Some("settled_stays_settled: an order whose payment is to be given back");
        }
    }
    let right = match visit.told {
        // A try that nobody heard of may have come through after the one that was refused; it ends by itself.
        Told::Refused => matches!(status, None | Some("expired")),
        Told::Held | Told::TooLate => status == Some("expired"),
        Told::Cancelled => status == Some("cancelled"),
        Told::Ordered => status == Some("confirmed"),
        // Paid, it is an order, or a refund is due; not paid, an order, or a person sees that it was too late.
        Told::Queued => status == Some("confirmed") || state == Some("open"),
        Told::RefundDue => status == Some("expired") && state == Some("open"),
    };
    match visit.told {
        _ if right => None,
        Told::Held | Told::Refused => Some("no_reservation_is_lost"),
        Told::Ordered => Some("no_order_is_lost"),
        Told::Queued if visit.payment.is_none() => Some("no_queued_confirmation_is_lost"),
        Told::Queued | Told::RefundDue => Some("no_payment_is_lost"),
        Told::Cancelled | Told::TooLate => Some("a_hold_ends_once"),
    }
}
