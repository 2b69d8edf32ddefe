//! An admin's adjustments of the stock, each with its reason in the ledger.

use holdfast_domain::{
    Adjustment, Invalid, MAX_TOTAL, Product, ProductId, Refusal, Shortage, Take, Timestamp, digest_id, shards,
};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::cache::CachedProduct;
use crate::error::Attempts;
use crate::items;
use crate::places::Placed;
use crate::transact::Transaction;
use crate::units::{give_units, take_units, units_on};
use crate::{Cursor, Deadline, Error, Item, Page, Store, keys};

/// One entry of a product's ledger. Never changed, never removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerEntry {
    /// Its id: a ULID, so that entries sort by time.
    pub entry_id: String,
    /// Units added, or taken away where negative.
    pub delta: i64,
    /// The product's total after it.
    pub total_after: u64,
    /// Why.
    pub reason: String,
    /// The document behind it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Who.
    pub actor: String,
    /// When.
    pub created_at: Timestamp,
}

/// The result of an adjustment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Adjusted {
    /// Its entry in the ledger.
    #[serde(flatten)]
    pub entry: LedgerEntry,
    /// Whether an earlier request made it.
    #[serde(skip)]
    pub replayed: bool,
}

/// The record of an adjustment's idempotency key: kept as long as the ledger.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct KeyRecord {
    pub(crate) fingerprint: String,
    pub(crate) entry: LedgerEntry,
}

/// What an adjustment is decided on, read at one instant.
struct AdjustmentSnapshot {
    record: Option<KeyRecord>,
    product: Option<Placed>,
    /// The units of the shards that were read.
    available: Vec<u64>,
}

/// What an adjustment does.
enum AdjustDecision {
    /// It was applied before, with this entry.
    Replay(LedgerEntry),
    /// Apply it to this product.
    Apply(Placed),
}

impl AdjustmentSnapshot {
    fn decide(
        self,
        adjustment: &Adjustment,
        fingerprint: &str,
        attempts: &Attempts<'_>,
    ) -> Result<AdjustDecision, Error> {
        if let Some(record) = self.record {
            return if record.fingerprint == fingerprint {
                Ok(AdjustDecision::Replay(record.entry))
            } else {
                Err(Refusal::IdempotencyKeyReused.into())
            };
        }
        let Some(product) = self.product else {
            return Err(Refusal::ProductNotFound { product_id: adjustment.product_id.clone() }.into());
        };
        match adjustment.expected_total {
            Some(expected) if expected != product.product.total => {
                Err(attempts.refuse(Refusal::VersionMismatch { current: product.product.total }))
            }
            _ => Ok(AdjustDecision::Apply(product)),
        }
    }
}

/// The answer to an adjustment that was applied before.
fn replay(entry: LedgerEntry, now: Timestamp, attempts: &Attempts<'_>) -> Adjusted {
    // An earlier try of this call whose answer was lost is the first answer, not a replay.
    let replayed = !(attempts.ambiguous && entry.created_at == now);
    Adjusted { entry, replayed }
}

impl LedgerEntry {
    /// The first entry of every ledger.
    pub(crate) fn opening(product: &Product, actor: &str, now: Timestamp) -> Self {
        let delta = i64::try_from(product.total).unwrap_or(i64::MAX);
        Self {
            entry_id: entry_id(now, &digest_id("", &[product.product_id.as_str(), "opening"])),
            delta,
            total_after: product.total,
            reason: "opening stock".to_owned(),
            reference: None,
            actor: actor.to_owned(),
            created_at: now,
        }
    }

    pub(crate) fn item(&self, product: &ProductId) -> Result<Item, Error> {
        items::write("ledger", &keys::ledger(product, &self.entry_id), self)
    }
}

/// A ULID of this time whose other half is made of `digest`: the same command has the same id.
pub(crate) fn entry_id(now: Timestamp, digest: &str) -> String {
    let millis = u64::try_from(now.as_millis()).unwrap_or_default();
    let random = digest.bytes().take(16).fold(0_u128, |bits, byte| (bits << 5) | u128::from(byte & 31));
    Ulid::from_parts(millis, random).to_string()
}

impl Store {
    /// Changes a product's total and the stock of its shards together, and records why in the ledger.
    ///
    /// Only free units can be taken away, not those that are held or sold.
    ///
    /// # Errors
    /// [`Refusal::IdempotencyKeyReused`], [`Refusal::ProductNotFound`], [`Refusal::VersionMismatch`] if the total is
    /// not the expected one, [`Refusal::InsufficientStock`].
    pub async fn adjust(&self, adjustment: &Adjustment, now: Timestamp, deadline: Deadline) -> Result<Adjusted, Error> {
        let id = &adjustment.product_id;
        // The key belongs to the ledger, not to the admin: if two admins record one delivery, it is added once.
        let record_id = digest_id("", &[id.as_str(), adjustment.key.as_str()]);
        let fingerprint = adjustment.fingerprint();
        let mut attempts = self.attempts(deadline);
        let mut tries = 0;
        loop {
            // At one instant: a refusal must not be based on a total that a copy of the same adjustment has changed.
            let seen = self.read_adjustment(adjustment, &record_id, 0, &mut attempts).await?;
            let placed = match seen.decide(adjustment, &fingerprint, &attempts)? {
                AdjustDecision::Replay(entry) => return Ok(replay(entry, now, &attempts)),
                AdjustDecision::Apply(placed) => placed,
            };
            let product = &placed.product;
            let mut takes = self.takes(adjustment, product, tries, deadline).await?;
            if takes.is_none() {
                takes = self.takes_after_release(adjustment, &record_id, product.shards, now, &mut attempts).await?;
            }
            let Some(takes) = takes else {
                attempts.count();
                continue;
            };
            tries += 1;
            let total_after = match product.total.checked_add_signed(adjustment.delta) {
                Some(total) if total <= MAX_TOTAL => total,
                Some(_) if attempts.ambiguous => return Err(attempts.unavailable("an earlier try")),
                Some(_) => return Err(Invalid::new("delta", "must leave the total at most 1000000000").into()),
                // The shards have more than the total that was read a moment before: units came in meanwhile.
                None => {
                    attempts.count();
                    continue;
                }
            };
            let entry = LedgerEntry {
                entry_id: entry_id(now, &record_id),
                delta: adjustment.delta,
                total_after,
                reason: adjustment.reason.clone(),
                reference: adjustment.reference.clone(),
                actor: adjustment.actor.clone(),
                created_at: now,
            };
            let record = KeyRecord { fingerprint: fingerprint.clone(), entry };
            let transaction = self.adjustment_transaction(&record_id, &record, &placed, &takes)?;
            // What a condition failed on is read again.
            if self.transact_or_wait("adjust", &transaction, &mut attempts).await? {
                self.with_cached(id, CachedProduct::invalidate_stock);
                return Ok(Adjusted { entry: record.entry, replayed: false });
            }
        }
    }

    /// The key's record, the product and its first `shards` shards, at one instant.
    async fn read_adjustment(
        &self,
        adjustment: &Adjustment,
        record_id: &str,
        shards: u32,
        attempts: &mut Attempts<'_>,
    ) -> Result<AdjustmentSnapshot, Error> {
        let id = &adjustment.product_id;
        let mut others = vec![keys::adjustment(record_id)];
        others.extend((0..shards).map(|shard| keys::shard(id, shard)));
        let (product, others) = self.snapshot_with_product(id, &others, attempts).await?;
        let mut others = others.into_iter();
        let record = others.next().flatten().map(|item| items::read("adjustment", item)).transpose()?;
        let product = product.map(Placed::read).transpose()?;
        Ok(AdjustmentSnapshot { record, product, available: others.map(units_on).collect::<Result<_, _>>()? })
    }

    /// The shards to take units from, by a snapshot after all overdue holds are released. `None` if something has
    /// changed meanwhile: decide again.
    async fn takes_after_release(
        &self,
        adjustment: &Adjustment,
        record_id: &str,
        shards: u32,
        now: Timestamp,
        attempts: &mut Attempts<'_>,
    ) -> Result<Option<Vec<Take>>, Error> {
        let units = adjustment.delta.unsigned_abs();
        let AdjustmentSnapshot { product, .. } = self.read_adjustment(adjustment, record_id, 0, attempts).await?;
        let Some(Placed { product, .. }) = product else { return Ok(None) };
        let (swept, _) = self.release_overdue_of(&[&product], None, true, now, attempts.deadline()).await?;
        let seen = self.read_adjustment(adjustment, record_id, shards, attempts).await?;
        if seen.record.is_some() || seen.product.as_ref().is_none_or(|now| now.product.total != product.total) {
            return Ok(None);
        }
        if let Some(takes) = shards::withdraw(units, &seen.available) {
            return Ok(Some(takes));
        }
        if !swept.complete {
            return Err(Error::Unavailable { during: "release", last: "holds are overdue".to_owned() });
        }
        let shortage = Shortage {
            product_id: adjustment.product_id.clone(),
            requested: u32::try_from(units).unwrap_or(u32::MAX),
            available: seen.available.iter().sum(),
        };
        Err(attempts.refuse(Refusal::InsufficientStock { shortages: vec![shortage] }))
    }

    /// The shards that give or get units; `None` if they seem to have too few. Units are distributed over all shards at
    /// first. Each failed try halves the number of shards: on a busy product, a transaction over many of them keeps
    /// meeting other transactions.
    async fn takes(
        &self,
        adjustment: &Adjustment,
        product: &Product,
        tries: u32,
        deadline: Deadline,
    ) -> Result<Option<Vec<Take>>, Error> {
        let units = adjustment.delta.unsigned_abs();
        if adjustment.delta > 0 {
            let first = self.random_below(product.shards);
            let shards_now = (product.shards >> tries.min(6)).max(1);
            let distributed = shards::distribute(units, shards_now, 0);
            let moved =
                distributed.into_iter().map(|take| Take { shard: (take.shard + first) % product.shards, ..take });
            return Ok(Some(moved.collect()));
        }
        let available = self.shards(&[product], deadline).await?.remove(&product.product_id).unwrap_or_default();
        Ok(shards::withdraw(units, &available))
    }

    fn adjustment_transaction(
        &self,
        record_id: &str,
        record: &KeyRecord,
        placed: &Placed,
        takes: &[Take],
    ) -> Result<Transaction<'_, ()>, Error> {
        let mut transaction = Transaction::new(&self.table);
        let (id, entry) = (&placed.product.product_id, &record.entry);
        let absent = "attribute_not_exists(#pk)";
        let key_item = items::write("adjustment", &keys::adjustment(record_id), record)?;
        transaction.put((), key_item, absent)?;
        placed.set_total(&mut transaction, entry.total_after)?;
        for take in takes {
            let change = if entry.delta > 0 { give_units(take.units.into()) } else { take_units(take.units, None) };
            transaction.update((), &keys::shard(id, take.shard), change)?;
        }
        transaction.put((), entry.item(id)?, absent)?;
        Ok(transaction)
    }

    /// A page of a product's ledger, the newest entry first.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another list, [`Refusal::ProductNotFound`]; [`Error::Unavailable`] without an answer
    /// within the deadline.
    pub async fn ledger(
        &self,
        id: &ProductId,
        limit: u32,
        cursor: Option<Cursor>,
        deadline: Deadline,
    ) -> Result<Page<LedgerEntry>, Error> {
        let request = self.newest_in(keys::ledger(id, "").pk, cursor)?;
        self.product(id, deadline).await?;
        self.page("ledger", request, limit, deadline).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_sort_by_time_and_every_command_has_an_id_of_its_own() {
        let at = Timestamp::from_millis;
        let digest = |text: &str| digest_id("", &[text]);
        assert!(entry_id(at(1), &digest("b")) < entry_id(at(2), &digest("a")));
        assert_eq!(entry_id(at(1), &digest("a")), entry_id(at(1), &digest("a")));
        // Sixteen characters of a digest, five bits each: all eighty random bits of a ULID.
        let bits = |digest: &str| Ulid::from_string(&entry_id(at(0), digest)).unwrap().random();
        assert_eq!(bits("aaaaaaaaaaaaaaaa"), 0x0842_1084_2108_4210_8421);
        assert_eq!(bits("pppppppppppppppp"), 0x8421_0842_1084_2108_4210);
        assert_eq!(bits("qaaaaaaaaaaaaaazrest"), 0x8842_1084_2108_4210_843a);
    }
}
