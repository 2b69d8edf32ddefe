//! Every key, index name and key attribute of the table.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{CustomerId, ProductId, ReservationId};

/// The table's partition key.
pub const PK: &str = "pk";
/// The table's sort key.
pub const SK: &str = "sk";

/// The sparse index of holds, by when they end, and of failed confirmations, by their reservations: see [`failed_partition`].
pub const DUE_INDEX: &str = "due";
/// Its partition key.
pub const DUE_KEY: &str = "due_key";
/// Its sort key: `expires_at` in milliseconds.
pub const DUE_AT: &str = "due_at";

/// The index of each customer's reservations, by when they were made.
pub const CUSTOMER_INDEX: &str = "customer";
/// Its partition key.
pub const CUSTOMER: &str = "customer";
/// Its sort key.
pub const CREATED_AT: &str = "created_at";

/// The index of all reservations, by when they were made, and of all actions of admins.
pub const MADE_INDEX: &str = "made";
/// Its partition key. Its sort key is [`CREATED_AT`].
pub const MADE_KEY: &str = "made_key";
/// Its partition with the actions of all admins.
pub const MADE_ACTIONS: &str = "MADE#ACTIONS";

/// The index of the orders of each payment, by when they were made. Its sort key is [`CREATED_AT`].
pub const PAYMENT_INDEX: &str = "payment";
/// Its partition key.
pub const PAYMENT: &str = "payment_reference";

/// The index of failed confirmations, by state and age.
pub const FAILED_INDEX: &str = "failed";
/// Its partition key: an attribute that only failed confirmations have.
pub const FAILED_STATE: &str = "state";
/// Its sort key.
pub const FIRST_FAILED_AT: &str = "first_failed_at";

/// A global secondary index of the table. Partition keys are strings, sort keys are numbers.
#[derive(Debug, Clone, Copy)]
pub struct Index {
    /// Its name.
    pub name: &'static str,
    /// The attribute that is its partition key.
    pub partition_key: &'static str,
    /// The attribute that is its sort key.
    pub sort_key: &'static str,
    /// The attributes that it has besides all keys.
    pub includes: &'static [&'static str],
}

/// All of them. Tests compare `template.yaml` with this, and create their tables by it.
pub const INDEXES: [Index; 5] = [
    Index {
        name: DUE_INDEX,
        partition_key: DUE_KEY,
        sort_key: DUE_AT,
        // What a release needs.
        includes: &[CUSTOMER, "lines", CREATED_AT, "expires_at", "status"],
    },
    Index { name: CUSTOMER_INDEX, partition_key: CUSTOMER, sort_key: CREATED_AT, includes: &[] },
    Index { name: MADE_INDEX, partition_key: MADE_KEY, sort_key: CREATED_AT, includes: &[] },
    Index { name: PAYMENT_INDEX, partition_key: PAYMENT, sort_key: CREATED_AT, includes: &[] },
    Index { name: FAILED_INDEX, partition_key: FAILED_STATE, sort_key: FIRST_FAILED_AT, includes: &[] },
];

/// When DynamoDB may delete an item, in seconds since the epoch. It does so up to days later, so no rule relies on it.
pub const TTL: &str = "ttl";

/// The partition of the directory of all products.
pub const CATALOG: &str = "CATALOG";
/// The partition of all failed confirmations.
pub const FAILED: &str = "FAILED";
/// The prefix of a reservation's partition key.
pub const HOLD_PREFIX: &str = "HOLD#";
/// The prefix of a product's partition key, and of the sort key of its entry in the directory.
pub const PRODUCT_PREFIX: &str = "PRODUCT#";
/// The prefix of the partition key of what the catalogue shows of a product.
pub const VIEW_PREFIX: &str = "VIEW#";
/// A product's sort key.
pub const PRODUCT: &str = "PRODUCT";
/// A reservation's sort key.
pub const HOLD: &str = "HOLD";
/// The prefix of the partition key of an admin's action.
pub const ACTION_PREFIX: &str = "ACTION#";

/// The key of one item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The partition key.
    pub pk: String,
    /// The sort key.
    pub sk: String,
}

impl Key {
    /// The key of an item, or of what an index shows of it.
    pub(crate) fn of(item: &HashMap<String, AttributeValue>) -> Option<Self> {
        let part = |name: &str| item.get(name)?.as_s().ok().cloned();
        Some(Self { pk: part(PK)?, sk: part(SK)? })
    }

    /// As DynamoDB takes it.
    pub fn item(&self) -> HashMap<String, AttributeValue> {
        HashMap::from([
            (PK.to_owned(), AttributeValue::S(self.pk.clone())),
            (SK.to_owned(), AttributeValue::S(self.sk.clone())),
        ])
    }
}

/// No item: what [`Store::connect`](crate::Store::connect) reads. Under a key that all functions may read, and that no product
/// has: an id has no dot.
pub fn connection() -> Key {
    Key { pk: format!("{PRODUCT_PREFIX}."), sk: "CONNECTION".to_owned() }
}

/// A product. Each has its own partition key, so that DynamoDB can distribute them. One that was created in layout 1 is in its
/// [`directory_entry`] until it is moved here.
pub fn product(id: &ProductId) -> Key {
    Key { pk: format!("{PRODUCT_PREFIX}{id}"), sk: PRODUCT.to_owned() }
}

/// A product's entry in the directory: what lists the products in the order of their ids, and what makes an id unique. In
/// layout 1 it is the product itself.
pub fn directory_entry(id: &ProductId) -> Key {
    Key { pk: CATALOG.to_owned(), sk: format!("{PRODUCT_PREFIX}{id}") }
}

/// One shard of a product's stock. Each has its own partition key, so that DynamoDB can distribute them.
pub fn shard(id: &ProductId, shard: u32) -> Key {
    Key { pk: format!("STOCK#{id}#{shard}"), sk: "STOCK".to_owned() }
}

/// The environments' looks at a product's shards while it is sold out.
pub fn looks(id: &ProductId) -> Key {
    Key { pk: format!("LOOKS#{id}"), sk: "LOOKS".to_owned() }
}

/// What the catalogue shows of a product.
pub fn view(id: &ProductId) -> Key {
    Key { pk: format!("{VIEW_PREFIX}{id}"), sk: "VIEW".to_owned() }
}

/// A reservation, which is also the record of its idempotency key.
pub fn reservation(id: &ReservationId) -> Key {
    Key { pk: format!("{HOLD_PREFIX}{id}"), sk: HOLD.to_owned() }
}

/// How many units of a product a customer holds and owns.
pub fn limit(product: &ProductId, customer: &CustomerId) -> Key {
    Key { pk: format!("LIMIT#{product}#{customer}"), sk: "LIMIT".to_owned() }
}

/// How far a customer has used up their rate.
pub fn rate(customer: &CustomerId) -> Key {
    Key { pk: format!("RATE#{customer}"), sk: "RATE".to_owned() }
}

/// One entry of a product's ledger.
pub fn ledger(product: &ProductId, entry_id: &str) -> Key {
    Key { pk: format!("LEDGER#{product}"), sk: entry_id.to_owned() }
}

/// The record of one adjustment's idempotency key.
pub fn adjustment(adjustment_id: &str) -> Key {
    Key { pk: format!("ADJUST#{adjustment_id}"), sk: "ADJUST".to_owned() }
}

/// A failed confirmation.
pub fn failed(id: &str) -> Key {
    Key { pk: FAILED.to_owned(), sk: id.to_owned() }
}

/// The last audit of a product.
pub fn audit(product: &ProductId) -> Key {
    Key { pk: format!("AUDIT#{product}"), sk: "AUDIT".to_owned() }
}

/// One action of an admin with this target.
pub fn action(target: &str, action_id: &str) -> Key {
    Key { pk: format!("{ACTION_PREFIX}{target}"), sk: action_id.to_owned() }
}

/// The partition of the index `due` with the failed confirmations of a reservation. Of the indexes it is the one whose keys
/// they can have and be in no other list: `made` has its sort key in common with `payment`.
pub fn failed_partition(id: &ReservationId) -> String {
    format!("{FAILED}#{id}")
}

/// What an item is, by its key: for whoever reads the whole table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// A product, or its entry in the directory.
    Product(ProductId),
    /// A shard of this product, with its number.
    Shard(ProductId, u32),
    /// A reservation.
    Reservation(ReservationId),
    /// The limit of this customer for this product.
    Limit(ProductId, CustomerId),
    /// An entry of this product's ledger.
    Ledger(ProductId),
    /// Something else.
    Other,
}

impl Owner {
    /// What the item with this key is. A key that none of the functions above makes is [`Owner::Other`].
    pub fn of(pk: &str, sk: &str) -> Self {
        let product = |id: &str| ProductId::try_from(id).ok();
        let owner = match pk.split_once('#').unwrap_or((pk, "")) {
            (CATALOG, "") => sk.strip_prefix(PRODUCT_PREFIX).and_then(product).map(Self::Product),
            (PRODUCT, id) if sk == PRODUCT => product(id).map(Self::Product),
            ("STOCK", rest) => {
                rest.rsplit_once('#').and_then(|(id, shard)| Some(Self::Shard(product(id)?, shard.parse().ok()?)))
            }
            ("HOLD", id) => ReservationId::try_from(id).ok().map(Self::Reservation),
            // A customer's id may have any character.
            ("LIMIT", rest) => rest
                .split_once('#')
                .and_then(|(id, customer)| Some(Self::Limit(product(id)?, CustomerId::try_from(customer).ok()?))),
            ("LEDGER", id) => product(id).map(Self::Ledger),
            _ => None,
        };
        owner.unwrap_or(Self::Other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::IdempotencyKey;

    #[test]
    fn a_key_tells_what_its_item_is() {
        let product = || ProductId::try_from("tee-black").unwrap();
        // Customers' ids come from an identity provider, and may look like anything.
        let customer = CustomerId::try_from("auth0|1#2").unwrap();
        let reservation = ReservationId::derive(&customer, &IdempotencyKey::try_from("k").unwrap());
        for (key, owner) in [
            (super::product(&product()), Owner::Product(product())),
            (directory_entry(&product()), Owner::Product(product())),
            (connection(), Owner::Other),
            (shard(&product(), 12), Owner::Shard(product(), 12)),
            (super::reservation(&reservation), Owner::Reservation(reservation)),
            (limit(&product(), &customer), Owner::Limit(product(), customer.clone())),
            (ledger(&product(), "01M7"), Owner::Ledger(product())),
            (rate(&customer), Owner::Other),
            (adjustment("a"), Owner::Other),
            (failed("fc_x"), Owner::Other),
            (audit(&product()), Owner::Other),
            (looks(&product()), Owner::Other),
            (view(&product()), Owner::Other),
            (Key { pk: "STOCK#tee-black".to_owned(), sk: "STOCK".to_owned() }, Owner::Other),
        ] {
            assert_eq!(Owner::of(&key.pk, &key.sk), owner, "{key:?}");
        }
    }
}
