//! What two large sales write to and read from each key of the table, computed from the constants and the key functions of
//! the code. The test compares it with the table in docs/limits.md.

use std::collections::BTreeMap;

use holdfast_domain::{CustomerId, IdempotencyKey, Line, ProductId, ReservationId, Take};

use crate::Item;
use crate::cache::{FACTS_LIFETIME_MS, REFUSAL_LIFETIME_MS};
use crate::partitions::{DUE_OF_BASKETS, Partitions};
use crate::places::bare_entry;
use crate::release::HOLDS_PER_TRANSACTION;

/// The most that a key may take: AWS gives 1,000 write units and 3,000 read units, and shares are never quite even.
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
                let line = Line {
                    product_id: ProductId::try_from(format!("product-{product}")).unwrap(),
                    quantity: 1,
                    name: String::new(),
                    unit_price_minor: 1,
                    limited: true,
                    takes: vec![Take { shard: n % self.shards, units: 1 }],
                    revision: 0,
                };
                let id = ReservationId::derive(&customer, &key);
                *partitions.entry(partition(&id, &[line])).or_default() += 1;
            }
        }
        let fullest = partitions.into_values().max().unwrap_or_default();
        f64::from(fullest) / f64::from(holds * self.products) * self.rate
    }

    /// Reads of a product's facts: an environment reads them once in their lifetime, or for each request if those are rarer;
    /// all requests refused for them.
    fn facts(&self) -> f64 {
        (self.environments * 1_000.0 / REFUSAL_LIFETIME_MS as f64).min(self.of_a_product())
    }

    /// Units of reads of a product's item of looks while it is sold out: about three of them for each environment, once a
    /// second, or for each request. A shard is read with as many: one in a batch, and two in a snapshot.
    fn looks(&self) -> f64 {
        3.0 * self.facts()
    }

    /// Units of reads of a product's view: each environment of `catalog` reads it once a second, and once more if another one is
    /// about to refresh it. Eventually consistent, of less than 4 KB.
    fn view(&self) -> f64 {
        2.0 * 0.5 * self.readers
    }

    /// Units of reads of a page of the directory with the most and the longest entries: once a second in each environment.
    fn directory(&self) -> f64 {
        let id = ProductId::try_from("x".repeat(64)).unwrap();
        let bytes = |item: Item| -> usize {
            item.iter().map(|(name, value)| name.len() + value.as_s().map_or(0, String::len)).sum()
        };
        let page = MAX_PAGE * bytes(bare_entry(&id));
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
        // Once made, once ended.
        let due = 2.0 * self.fullest(|id, lines| table.due(id, lines));
        vec![
            ("shard, `STOCK#<product_id>#<shard>`: writes", self.shard()),
            ("shard: reads while it is sold out", self.looks()),
            ("index `due`, `DUE#P<k>`: writes", due),
            ("index `made`, `MADE#<k>`: writes", self.fullest(|id, _| table.made(id))),
            ("product, `PRODUCT#<product_id>`: reads of facts", self.facts()),
            ("looks, `LOOKS#<product_id>`: reads while it is sold out", self.looks()),
            // Each product is searched once a second, eventually consistent.
            ("index `due`, `DUE#<k>` of baskets: reads for views", 0.5 * f64::from(self.products)),
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
        assert!(one <= MOST && thousand <= MOST, "{key}: {one}, {thousand}");
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
