//! Which partitions of the indexes holds and reservations are in.
//!
//! One partition takes about a thousand writes a second, and a sale makes more. So a hold of one product is in one of a few
//! partitions of that product, by its shard: the more shards a product has, the more writes it is made for, and the more
//! partitions are searched for its overdue holds. A basket of several products is in partitions that every search reads.

use holdfast_domain::{Line, Product, ProductId, ReservationId, digest_id};

/// The partitions of the index `due` with holds of one product each.
pub(crate) const DUE_OF_PRODUCTS: u32 = 128;
/// The most of them that one product has, since a search for its overdue holds reads them all.
const DUE_OF_PRODUCT: u32 = 64;
/// Those with baskets of several products. Layout 1 had all holds in the first 8 of them.
pub(crate) const DUE_OF_BASKETS: u32 = 16;
/// The partitions of a product's holds for each of its shards.
pub(crate) const DUE_OF_SHARD: u32 = 2;
/// The partitions of the index `made` with reservations.
pub(crate) const MADE: u32 = 64;
/// The partitions of each of both indexes in layout 1.
const LAYOUT_1: u32 = 8;

/// Where new items are written. Both are read, so a table moves from one to the other without a stop: see docs/deploy.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// As earlier versions wrote them, which do not find what is elsewhere: all holds in 8 partitions, all products in one.
    One,
    /// As this version is made for.
    Two,
}

/// The partitions of a table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partitions {
    pub(crate) layout: Layout,
    pub(crate) of_products: u32,
    pub(crate) of_baskets: u32,
}

impl Default for Partitions {
    fn default() -> Self {
        Self { layout: Layout::Two, of_products: DUE_OF_PRODUCTS, of_baskets: DUE_OF_BASKETS }
    }
}

impl Partitions {
    /// The partition of the index `due` for a new hold of these lines.
    pub(crate) fn due(self, id: &ReservationId, lines: &[Line]) -> String {
        let only = lines.first().filter(|first| lines.iter().all(|line| line.product_id == first.product_id));
        match (self.layout, only) {
            (Layout::One, _) | (_, None) => self.due_of_basket(id),
            (Layout::Two, Some(line)) => {
                let shard = line.takes.first().map_or(0, |take| take.shard);
                self.of_product(first_of(&line.product_id), shard * DUE_OF_SHARD + number_of(id) % DUE_OF_SHARD)
            }
        }
    }

    /// The partition of the index `due` for a basket, and for a hold whose lines were changed, whatever they are: it goes there
    /// and stays there, so that whoever reads the partitions of products first, and then these, does not overlook it.
    pub(crate) fn due_of_basket(self, id: &ReservationId) -> String {
        match self.layout {
            Layout::One => format!("DUE#{}", part_in_layout_1(id, LAYOUT_1.min(self.of_baskets))),
            Layout::Two => format!("DUE#{}", number_of(id) % self.of_baskets),
        }
    }

    /// The partitions of the index `due` that have holds of this product alone. Others with its units are in
    /// [those of baskets](Self::due_of_baskets), to be read after these.
    pub(crate) fn due_of(self, product: &Product) -> impl Iterator<Item = String> {
        let own = (product.shards * DUE_OF_SHARD).min(DUE_OF_PRODUCT).min(self.of_products);
        let first = first_of(&product.product_id);
        (0..own).map(move |k| self.of_product(first, k))
    }

    /// The partitions of the index `due` that may have holds of any product, in either layout.
    pub(crate) fn due_of_baskets(self) -> impl Iterator<Item = String> {
        (0..self.of_baskets).map(|k| format!("DUE#{k}"))
    }

    /// All partitions of the index `due` that may have holds, those of baskets last.
    pub(crate) fn all_due(self) -> impl Iterator<Item = String> {
        (0..self.of_products).map(|k| format!("DUE#P{k}")).chain(self.due_of_baskets())
    }

    /// The `k`-th partition of a product that begins at the `first` one.
    fn of_product(self, first: u32, k: u32) -> String {
        format!("DUE#P{}", (first + k % DUE_OF_PRODUCT) % self.of_products)
    }

    /// The partition of the index `made` for a reservation.
    pub(crate) fn made(self, id: &ReservationId) -> String {
        match self.layout {
            Layout::One => format!("MADE#{}", part_in_layout_1(id, LAYOUT_1)),
            Layout::Two => format!("MADE#{}", number_of(id) % MADE),
        }
    }

    /// All partitions of the index `made` that may have reservations.
    pub(crate) fn all_made() -> impl Iterator<Item = String> {
        (0..MADE).map(|k| format!("MADE#{k}"))
    }

    /// The same table, as items of that layout are written.
    pub(crate) fn with_layout(self, layout: Layout) -> Self {
        Self { layout, ..self }
    }
}

/// Where a product's partitions begin: at different ones, so that products with few shards do not all use the same.
fn first_of(id: &ProductId) -> u32 {
    number_in(digest_id("", &[id.as_str()]).bytes())
}

/// A number below 1024 for a reservation, evenly distributed: its id is a digest. (Its last character has one bit only.)
fn number_of(id: &ReservationId) -> u32 {
    number_in(id.as_str().bytes().rev().skip(1))
}

/// The number that the first two characters of a digest are.
fn number_in(digest: impl Iterator<Item = u8>) -> u32 {
    digest.take(2).fold(0, |number, byte| number * 32 + value_of(byte))
}

/// The value of a character of lower-case base32.
fn value_of(byte: u8) -> u32 {
    u32::from(if byte.is_ascii_digit() { byte - b'2' + 26 } else { byte - b'a' })
}

/// As the first layout distributed reservations, not quite evenly.
fn part_in_layout_1(id: &ReservationId, parts: u32) -> u32 {
    u32::from(id.as_str().bytes().rev().nth(1).unwrap_or_default()) % parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::{CustomerId, IdempotencyKey, Take};
    use std::collections::{BTreeMap, BTreeSet};

    fn id(n: u32) -> ReservationId {
        let customer = CustomerId::try_from("alice").unwrap();
        ReservationId::derive(&customer, &IdempotencyKey::try_from(format!("k{n}")).unwrap())
    }

    /// A line of one unit from this shard.
    fn line(product: &str, shard: u32) -> Line {
        Line {
            product_id: product.try_into().unwrap(),
            quantity: 1,
            name: "Tee".to_owned(),
            unit_price_minor: 1,
            limited: false,
            takes: vec![Take { shard, units: 1 }],
            revision: 0,
        }
    }

    fn shares(keys: impl Iterator<Item = String>) -> BTreeMap<String, u32> {
        keys.fold(BTreeMap::new(), |mut shares, key| {
            *shares.entry(key).or_default() += 1;
            shares
        })
    }

    #[test]
    fn holds_and_reservations_are_evenly_distributed() {
        let table = Partitions::default();
        let holds = shares((0..32_000).map(|n| table.due(&id(n), &[line("tee", n % 16)])));
        assert_eq!(holds.len(), 32);
        let baskets = shares((0..16_000).map(|n| table.due(&id(n), &[line("tee", 0), line("cap", 0)])));
        assert_eq!(baskets.len(), 16);
        let made = shares((0..64_000).map(|n| table.made(&id(n))));
        assert_eq!(made.len(), 64);
        // 64 shards have no more partitions than 32.
        let most = shares((0..64_000).map(|n| table.due(&id(n), &[line("tee", n % 64)])));
        assert_eq!(most.len(), 64);
        for shares in [holds, baskets, made, most] {
            assert!(shares.values().all(|count| (850..1_150).contains(count)), "{shares:?}");
        }
    }

    #[test]
    fn a_hold_is_found_wherever_either_layout_has_put_it() {
        for (of_products, of_baskets) in [(DUE_OF_PRODUCTS, DUE_OF_BASKETS), (4, 2), (1, 1)] {
            let table = Partitions { of_products, of_baskets, ..Partitions::default() };
            let all: BTreeSet<String> = table.all_due().collect();
            for (shards, layout) in [(1, Layout::Two), (16, Layout::Two), (64, Layout::Two), (16, Layout::One)] {
                let product = holdfast_testkit::fixtures::product("tee", 100, shards);
                let searched: BTreeSet<String> = table.due_of(&product).chain(table.due_of_baskets()).collect();
                assert!(searched.is_subset(&all));
                for n in 0..1_000 {
                    let lines = [line("tee", n % shards), line("cap", 0)];
                    for lines in [&lines[..1], &lines] {
                        assert!(searched.contains(&table.with_layout(layout).due(&id(n), lines)), "{n}");
                    }
                    let made = table.with_layout(layout).made(&id(n));
                    assert!(Partitions::all_made().any(|partition| partition == made), "{made}");
                }
            }
        }
    }

    #[test]
    fn layout_1_is_what_earlier_versions_wrote() {
        let table = Partitions::default().with_layout(Layout::One);
        // Computed by another program: the last character but one of each id, by its ASCII code, modulo 8.
        let written: Vec<String> =
            (0..4).flat_map(|n| [table.due(&id(n), &[line("tee", 3)]), table.made(&id(n))]).collect();
        assert_eq!(written, ["DUE#1", "MADE#1", "DUE#5", "MADE#5", "DUE#1", "MADE#1", "DUE#2", "MADE#2"]);
    }
}
