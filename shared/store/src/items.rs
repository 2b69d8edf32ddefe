//! Conversions between domain values and items, and the types that exist only in the table.

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_domain::{CustomerId, Line, Reservation, ReservationId, Status, Timestamp};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::keys::{self, Key};
use crate::partitions::Partitions;
use crate::update::Expression;
use crate::{Error, Item};

/// How long an ended hold, and with it its Idempotency-Key, is kept before DynamoDB may delete it. Orders are kept forever.
pub(crate) const RETENTION_DAYS: i64 = 30;

/// A shard of a product's stock.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ShardItem {
    pub(crate) available: u64,
    pub(crate) product_version: u64,
}

/// A hold as projected by the index `due`: all that its release needs. An index lags, so the hold may have ended or changed;
/// the conditions of the release check that.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Hold {
    pub(crate) pk: String,
    pub(crate) customer: CustomerId,
    pub(crate) lines: Vec<Line>,
    pub(crate) created_at: Timestamp,
    /// When it ends.
    pub(crate) due_at: Timestamp,
}

/// The condition, besides those on its status and time, that a reservation is the one that was read: the same hold (another
/// one may have its key, once DynamoDB has deleted it) with the same lines and owner.
pub(crate) fn unchanged(created_at: Timestamp, revision: u32) -> Expression {
    let mut values = vec![(":created", time(created_at))];
    let revised = match revision {
        0 => "attribute_not_exists(#lines[0].#revision)",
        _ => {
            values.push((":revision", number(revision)));
            "#lines[0].#revision = :revision"
        }
    };
    Expression::new(format!("#created_at = :created AND {revised}"), values)
}

impl Hold {
    /// How often its lines or its owner were changed.
    pub(crate) fn revision(&self) -> u32 {
        self.lines.first().map_or(0, |line| line.revision)
    }

    /// This much of a reservation.
    pub(crate) fn part(reservation: &Reservation, lines: Vec<Line>) -> Self {
        Self { lines, ..Self::from(reservation) }
    }

    pub(crate) fn reservation_id(&self) -> Result<ReservationId, Error> {
        self.pk
            .strip_prefix(keys::HOLD_PREFIX)
            .ok_or_else(|| Error::internal("index due", format!("{} is no reservation", self.pk)))
            .and_then(|id| ReservationId::try_from(id).map_err(|error| Error::internal("index due", error)))
    }
}

impl From<&Reservation> for Hold {
    fn from(reservation: &Reservation) -> Self {
        Self {
            pk: keys::reservation(&reservation.reservation_id).pk,
            customer: reservation.customer.clone(),
            lines: reservation.lines.clone(),
            created_at: reservation.created_at,
            due_at: reservation.expires_at,
        }
    }
}

/// A value from its item.
pub(crate) fn read<T: DeserializeOwned>(what: &'static str, item: Item) -> Result<T, Error> {
    serde_dynamo::from_item(item).map_err(|error| Error::internal(what, error))
}

/// The item of `value` under `key`.
pub(crate) fn write<T: Serialize>(what: &'static str, key: &Key, value: &T) -> Result<Item, Error> {
    let mut item: Item = serde_dynamo::to_item(value).map_err(|error| Error::internal(what, error))?;
    item.extend(key.item());
    Ok(item)
}

/// The attribute value of anything serialisable.
pub(crate) fn value<T: Serialize>(what: &'static str, value: &T) -> Result<AttributeValue, Error> {
    serde_dynamo::to_attribute_value(value).map_err(|error| Error::internal(what, error))
}

/// A number.
pub(crate) fn number(number: impl ToString) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

/// A text.
pub(crate) fn text(text: impl Into<String>) -> AttributeValue {
    AttributeValue::S(text.into())
}

/// A point in time, in milliseconds.
pub(crate) fn time(at: Timestamp) -> AttributeValue {
    number(at.as_millis())
}

/// The `kept_until` of a reservation that must be kept forever, because it records payments that are owed back: in the year
/// 9999. It becomes the reservation's `ttl` when that ends.
pub(crate) fn forever() -> AttributeValue {
    number(253_370_764_800_i64)
}

/// The `ttl` of a hold that ended at `now`.
pub(crate) fn ttl(now: Timestamp) -> AttributeValue {
    number(now.plus_seconds(RETENTION_DAYS * 86_400).as_seconds())
}

/// A reservation's item. It is in the index `made`, and only while it is held in the index `due`.
pub(crate) fn reservation(reservation: &Reservation, partitions: Partitions) -> Result<Item, Error> {
    let id = &reservation.reservation_id;
    let mut item = write("reservation", &keys::reservation(id), reservation)?;
    item.insert(keys::MADE_KEY.to_owned(), text(partitions.made(id)));
    if reservation.status == Status::Held {
        item.insert(keys::DUE_KEY.to_owned(), text(partitions.due(id, &reservation.lines)));
        item.insert(keys::DUE_AT.to_owned(), time(reservation.expires_at));
    }
    Ok(item)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::{HoldSeconds, IdempotencyKey, Take};

    fn held() -> Reservation {
        let customer = CustomerId::try_from("alice").unwrap();
        let reservation_id = ReservationId::derive(&customer, &IdempotencyKey::try_from("k").unwrap());
        let line = Line {
            product_id: "tee-black".try_into().unwrap(),
            quantity: 2,
            name: "Black tee".to_owned(),
            unit_price_minor: 2_500,
            limited: false,
            takes: vec![Take { shard: 3, units: 2 }],
            revision: 0,
        };
        let (currency, now) = ("EUR".to_owned().try_into().unwrap(), Timestamp::from_millis(1_763_700_000_123));
        Reservation {
            late_payment_seconds: 0,
            fingerprint: "f".repeat(52),
            ..Reservation::held(reservation_id, customer, vec![line], currency, HoldSeconds::DEFAULT, now)
        }
    }

    #[test]
    fn a_reservation_survives_the_table() {
        for status in [Status::Held, Status::Confirmed, Status::Cancelled, Status::Expired] {
            let before = Reservation { status, ..held() };
            assert_eq!(
                read::<Reservation>("test", reservation(&before, Partitions::default()).unwrap()).unwrap(),
                before
            );
        }
    }

    #[test]
    fn only_a_held_reservation_is_in_the_index_due() {
        let item = reservation(&held(), Partitions::default()).unwrap();
        assert_eq!(item["pk"], text(format!("HOLD#{}", held().reservation_id)));
        assert_eq!(item["sk"], text("HOLD"));
        assert_eq!(item["due_at"], number(1_763_700_600_123_i64));
        assert!(!item.contains_key("ttl"), "a hold is never cleaned up: its units would be lost");
        let ended = reservation(&Reservation { status: Status::Confirmed, ..held() }, Partitions::default()).unwrap();
        assert!(!ended.contains_key("due_key") && !ended.contains_key("due_at"));
    }

    #[test]
    fn an_ended_hold_is_kept_for_thirty_days() {
        assert_eq!(ttl(Timestamp::from_millis(1_763_700_000_999)), number(1_763_700_000_i64 + 30 * 24 * 60 * 60));
    }

    #[test]
    fn an_item_that_cannot_be_read_is_an_error_and_no_panic() {
        let mut item = reservation(&held(), Partitions::default()).unwrap();
        item.insert("status".to_owned(), text("half-confirmed"));
        assert!(matches!(read::<Reservation>("test", item), Err(Error::Internal { .. })));
    }
}
