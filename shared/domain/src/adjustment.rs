//! The command to adjust a product's stock.

use crate::audit::check_reason;
use crate::text::check_line;
use crate::{IdempotencyKey, Invalid, MAX_TOTAL, ProductId, digest_id};

/// Change a product's total: stock came in, or was lost, or was counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adjustment {
    /// The product.
    pub product_id: ProductId,
    /// Units added, or taken away where negative. Not 0.
    pub delta: i64,
    /// Why: 1 to 200 characters.
    pub reason: String,
    /// The document behind it, up to 200 characters.
    pub reference: Option<String>,
    /// The total that the caller expects: if it is another, nothing happens.
    pub expected_total: Option<u64>,
    /// Who adjusts: the `sub` of the verified token.
    pub actor: String,
    /// The caller's key for this adjustment.
    pub key: IdempotencyKey,
}

impl Adjustment {
    /// The adjustment itself, if every field is within its limits.
    ///
    /// # Errors
    /// [`Invalid`] for the first field that is not.
    pub fn checked(self) -> Result<Self, Invalid> {
        if self.delta == 0 || self.delta.unsigned_abs() > MAX_TOTAL {
            return Err(Invalid::new("delta", "must be a whole number from -1000000000 to 1000000000, and not 0"));
        }
        check_line("reason", &self.reason)?;
        check_reason(&self.reason)?;
        if let Some(reference) = &self.reference {
            check_line("reference", reference)?;
        }
        Ok(self)
    }

    /// A digest of what it asks for: tells a replay from a reused key.
    pub fn fingerprint(&self) -> String {
        let (delta, expected) = (self.delta.to_string(), self.expected_total.map(|total| total.to_string()));
        let part = |text: Option<&str>| text.map_or_else(String::new, |text| format!("={text}"));
        let (reference, expected) = (part(self.reference.as_deref()), part(expected.as_deref()));
        digest_id("", &[self.product_id.as_str(), &delta, &self.reason, &reference, &expected])
    }
}
