//! What two large sales write to and read from each key of the table, computed from the constants and the key functions of
//! the code. The test compares it with the table in docs/limits.md.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{
    CustomerId, HoldSeconds, IdempotencyKey, Line, ProductId, Reservation, ReservationId, Take, Timestamp,
};

use crate::cache::{FACTS_LIFETIME_MS, REFUSAL_LIFETIME_MS};
use crate::looks::SEARCH_LIFETIME_MS;
use crate::partitions::{DUE_OF_BASKETS, Partitions};
use crate::places::bare_entry;
use crate::release::HOLDS_PER_TRANSACTION;
use crate::{Item, items, keys};

/// The most write units of a key, and three times as many read units: AWS gives 1,000 and 3,000, and shares are never quite even.
const MOST: f64 = 700.0;

/// The most products of a page.
const MAX_PAGE: usize = 100;

/// A sale in which each hold ends as fast as another one is made: 60 % are paid for, 40 % are released.
struct Sale {
    products: u32,
    /// Holds a second.
    rate: f64,
    /// Holds in one transaction.
    group: f64,
    environments: f64,
    shards: u32,
    /// Environments of `catalog`, each with requests in every second.
    readers: f64,
}

/// How large an item is for DynamoDB: "Item sizes and formats" in its developer guide, with numbers taken for text.
fn bytes(item: &Item) -> usize {
    item.iter().map(|(name, value)| name.len() + bytes_of(value)).sum()
}

fn bytes_of(value: &AttributeValue) -> usize {
    match value {
        AttributeValue::S(text) | AttributeValue::N(text) => text.len(),
        AttributeValue::L(items) => 3 + items.iter().map(|item| 1 + bytes_of(item)).sum::<usize>(),
        AttributeValue::M(item) => 3 + item.len() + bytes(item),
        _ => 1,
    }
}

/// How large a hold of one unit is in the index `due`, with a user's id of a Cognito pool.
fn bytes_of_hold() -> f64 {
    let customer = CustomerId::try_from("1c9e7d2a-0b54-4e0f-9a35-6f7a8f0d2b11").unwrap();
    let id = ReservationId::derive(&customer, &IdempotencyKey::try_from("k").unwrap());
    let lines = vec![line("product-100", 15)];
    let (currency, now) = ("EUR".to_owned().try_into().unwrap(), Timestamp::from_millis(1_800_000_000_000));
    let hold = Reservation::held(id, customer, lines, currency, HoldSeconds::DEFAULT, now);
    let mut item = items::reservation(&hold, Partitions::default()).unwrap();
    let due = keys::INDEXES.iter().find(|index| index.name == keys::DUE_INDEX).unwrap();
    let keys = [keys::PK, keys::SK, keys::DUE_KEY, keys::DUE_AT];
    item.retain(|name, _| keys.contains(&name.as_str()) || due.includes.contains(&name.as_str()));
    bytes(&item) as f64
}

/// A line of one unit from this shard.
fn line(product: &str, shard: u32) -> Line {
    Line {
        product_id: ProductId::try_from(product).unwrap(),
        quantity: 1,
        name: "A name of usual length".to_owned(),
        unit_price_minor: 2_500,
        limited: true,
        takes: vec![Take { shard, units: 1 }],
        revision: 0,
    }
}

impl Sale {
    fn of_a_product(&self) -> f64 {
        self.rate / f64::from(self.products)
    }

    /// Releases a second, of all products.
    fn released(&self) -> f64 {
        self.rate * 0.4
    }

    /// Writes to a shard. A transaction's action on an item below 1 KB takes two units.
    fn shard(&self) -> f64 {
        let shards = f64::from(self.shards);
        let made = self.of_a_product() / self.group / shards;
        // Holds of one shard share a transaction if a sweep finds several of them.
        let released = self.released() / f64::from(self.products) / shards;
        let releases = if released < 1.0 { released } else { released / HOLDS_PER_TRANSACTION as f64 };
        2.0 * (made + releases)
    }

    /// The holds that fall to the fullest partition of an index, of each second's.
    fn fullest(&self, partition: impl Fn(&ReservationId, &[Line]) -> String) -> f64 {
        let customer = CustomerId::try_from("alice").unwrap();
        let holds = 320_000 / self.products;
        let mut partitions = BTreeMap::<String, u32>::new();
        for product in 0..self.products {
            for n in 0..holds {
                let key = IdempotencyKey::try_from(format!("{product}-{n}")).unwrap();
                let line = line(&format!("product-{product}"), n % self.shards);
                let id = ReservationId::derive(&customer, &key);
                *partitions.entry(partition(&id, &[line])).or_default() += 1;
            }
        }
        let fullest = partitions.into_values().max().unwrap_or_default();
        f64::from(fullest) / f64::from(holds * self.products) * self.rate
    }

    /// How often in a second all environments find what they remember of a product older than this: each of them once in that
    /// time, or for each request if those are rarer.
    fn each(&self, lifetime_ms: i64) -> f64 {
        (self.environments * 1_000.0 / lifetime_ms as f64).min(self.of_a_product())
    }

    /// Reads of a product's facts: an environment reads them once in their lifetime, or for each request if those are rarer;
    /// all requests refused for them.
    fn facts(&self) -> f64 {
        self.each(REFUSAL_LIFETIME_MS)
    }

    /// How often a product's overdue holds are searched for while it is sold out, in a second.
    fn searches(&self) -> f64 {
        (1_000.0 / SEARCH_LIFETIME_MS as f64).min(self.of_a_product())
    }

    /// Units of a query for what has ended in the fullest partition of the index `due`: holds of all products that are there, each
    /// since its own product was searched last. Eventually consistent.
    fn query(&self, fullest: f64) -> f64 {
        let ended = fullest * 0.4 / self.searches() / 2.0;
        0.5 * (ended * bytes_of_hold() / 4_096.0).ceil().max(1.0)
    }

    /// The most products that have holds in one partition of the index `due`, without those of baskets.
    fn products_in_one(&self) -> f64 {
        let mut products = BTreeMap::<String, u32>::new();
        for n in 0..self.products {
            let product = holdfast_testkit::fixtures::product(&format!("product-{n}"), 1_000_000, self.shards);
            Partitions::default().due_of(&product).for_each(|due| *products.entry(due).or_default() += 1);
        }
        f64::from(products.into_values().max().unwrap_or_default())
    }

    /// Units of reads of a product's item of looks while it is sold out: about three of them for each environment, as often as
    /// what it remembers is over, or for each request. A shard is read with as many: one in a batch, and two in a snapshot.
    fn looks(&self) -> f64 {
        3.0 * self.each(SEARCH_LIFETIME_MS)
    }

    /// Units of reads of a product's view: each environment of `catalog` reads it once a second, and once more if another one is
    /// about to refresh it. Eventually consistent, of less than 4 KB.
    fn view(&self) -> f64 {
        2.0 * 0.5 * self.readers
    }

    /// Units of reads of a page of the directory with the most and the longest entries: once a second in each environment.
    fn directory(&self) -> f64 {
        let id = ProductId::try_from("x".repeat(64)).unwrap();
        let page = MAX_PAGE * bytes(&bare_entry(&id));
        (page as f64 / 4_096.0).ceil() * 0.5 * self.readers
    }

    /// Write units a second of the table, with a limit for each customer or without; what is refused for a conflict comes on top.
    fn table(&self, limited: bool) -> f64 {
        let own = if limited { 4.0 } else { 2.0 };
        let confirmed = self.rate - self.released();
        let shards = self.shard() * f64::from(self.shards) * f64::from(self.products);
        shards + own * (self.rate + self.released()) + confirmed
    }

    /// A row of the table of what a sale needs.
    fn needs(&self) -> String {
        let Self { products, rate, shards, environments, .. } = self;
        let (paid, due) = (rate - self.released(), 2.0 * rate);
        let (plain, limited) = (self.table(false), self.table(true));
        format!(
            "| {rate} | {products} | {shards} | {environments} | {plain:.0} | {limited:.0} | {due} | {rate} each | {paid} |"
        )
    }

    /// The most units a second of each kind of key.
    fn rows(&self) -> Vec<(&'static str, f64)> {
        let table = Partitions::default();
        let fullest = self.fullest(|id, lines| table.due(id, lines));
        let products = f64::from(self.products);
        // For refusals while everything is sold out, and for views of all products, once a second.
        let searches = self.searches() + 1.0;
        vec![
            ("shard, `STOCK#<product_id>#<shard>`: writes", self.shard()),
            ("shard: reads while it is sold out", self.looks()),
            // Once made, once ended.
            ("index `due`, `DUE#P<k>`: writes", 2.0 * fullest),
            ("index `due`, `DUE#P<k>`: reads", searches * self.query(fullest) * self.products_in_one()),
            ("index `due`, `DUE#<k>` of baskets: reads", searches * self.query(0.0) * products),
            ("index `made`, `MADE#<k>`: writes", self.fullest(|id, _| table.made(id))),
            ("product, `PRODUCT#<product_id>`: reads of facts", self.facts()),
            ("looks, `LOOKS#<product_id>`: reads while it is sold out", self.looks()),
            ("view, `VIEW#<product_id>`: reads", self.view()),
            ("directory, `CATALOG`: reads of pages", self.directory()),
        ]
    }
}

#[test]
fn no_key_takes_more_than_seven_hundred_units_a_second() {
    const { assert!(FACTS_LIFETIME_MS >= REFUSAL_LIFETIME_MS, "facts are read more rarely without refusals") };
    // 16 environments of 64 requests at once, which share transactions; and plain Lambda, which sends one at a time.
    let one = Sale { products: 1, rate: 10_000.0, group: 17.0, environments: 16.0, shards: 16, readers: 100.0 };
    let thousand =
        Sale { products: 1_000, rate: 30_000.0, group: 1.0, environments: 1_500.0, shards: 16, readers: 300.0 };
    let documented = include_str!("../../../docs/limits.md");
    let mut missing = Vec::new();
    for ((key, one), (_, thousand)) in one.rows().into_iter().zip(thousand.rows()) {
        let most = if key.contains("reads") { 3.0 * MOST } else { MOST };
        assert!(one <= most && thousand <= most, "{key}: {one}, {thousand}");
        let row = format!("| {key} | {one:.0} | {thousand:.0} |");
        if !documented.contains(&row) {
            missing.push(row);
        }
    }
    let small = Sale { products: 1, rate: 1_000.0, group: 1.0, environments: 50.0, shards: 40, readers: 10.0 };
    let needs = [small, one, thousand].map(|sale| sale.needs()).into_iter();
    missing.extend(needs.filter(|row| !documented.contains(row)));
    // What baskets of several products may come to.
    let baskets = format!("{:.0} baskets a second", MOST * f64::from(DUE_OF_BASKETS) / 2.0);
    if !documented.contains(&baskets) {
        missing.push(baskets);
    }
    assert!(missing.is_empty(), "docs/limits.md has other figures:\n{}", missing.join("\n"));
}
