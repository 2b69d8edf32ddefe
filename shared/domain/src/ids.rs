//! Identifiers. Each is checked when it is made, and trusted afterwards.

use std::fmt;

use data_encoding::{BASE32_NOPAD, Encoding};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Invalid;

/// A string newtype whose constructor checks it.
macro_rules! checked_string {
    ($(#[$doc:meta])* $name:ident, $field:literal, $rule:literal, $check:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Invalid;

            fn try_from(text: String) -> Result<Self, Invalid> {
                let check: fn(&str) -> bool = $check;
                if check(&text) { Ok(Self(text)) } else { Err(Invalid::new($field, $rule)) }
            }
        }

        impl TryFrom<&str> for $name {
            type Error = Invalid;

            fn try_from(text: &str) -> Result<Self, Invalid> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
}

/// No blank at either end: `pay_1` and `pay_1 ` would be two payments that look like one.
fn is_printable_ascii(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && text.bytes().all(|b| (0x20..=0x7e).contains(&b)) && text.trim() == text
}

checked_string!(
    /// A product's name in the shop's own system: `[A-Za-z0-9_-]{1,64}`.
    ProductId, "product_id", "must be 1 to 64 of A-Z a-z 0-9 _ -", is_id
);

checked_string!(
    /// A customer: the `sub` of the verified token, which in OIDC has up to 255 ASCII characters; or a guest, named by the
    /// shop's back end, see [`CustomerId::is_guest`].
    CustomerId, "customer_id", "must be 1 to 255 printable ASCII characters, with no blank at either end", |text| is_printable_ascii(text, 255)
);

checked_string!(
    /// The caller's key for one request and its retries, as in the IETF Idempotency-Key draft.
    IdempotencyKey, "Idempotency-Key", "must be 1 to 255 printable ASCII characters, with no blank at either end",
    |text| is_printable_ascii(text, 255)
);

checked_string!(
    /// The payment provider's name for one payment.
    PaymentReference, "payment_reference", "must be 1 to 255 printable ASCII characters, with no blank at either end",
    |text| is_printable_ascii(text, 255)
);

checked_string!(
    /// A reservation: `rsv_` and 52 characters of lower-case base32.
    ReservationId, "reservation_id", "must be an id that a reservation was given",
    |text| text.strip_prefix("rsv_").is_some_and(|rest| {
        rest.len() == 52 && rest.bytes().all(|b| matches!(b, b'a'..=b'z' | b'2'..=b'7'))
    })
);

checked_string!(
    /// What an admin's action was about: the id of a product, a reservation or a failed confirmation.
    ActionTarget, "target", "must be 1 to 64 of A-Z a-z 0-9 _ -", is_id
);

impl CustomerId {
    /// Whether it is a guest: `guest:` and an id chosen by the shop. No token's `sub` may begin like this, so a guest's id
    /// never collides with a user's.
    pub fn is_guest(&self) -> bool {
        self.0.starts_with("guest:")
    }
}

impl ReservationId {
    /// The reservation of this customer under this key. The same pair always gives the same id. So the reservation's own
    /// item is the record of its idempotency key, and nothing else has to be kept consistent with it.
    pub fn derive(customer: &CustomerId, key: &IdempotencyKey) -> Self {
        Self(digest_id("rsv_", &[customer.as_str(), key.as_str()]))
    }
}

/// `prefix` and the SHA-256 of `parts` in lower-case base32.
///
/// Each part is preceded by its length, so that ("ab", "c") and ("a", "bc") differ.
pub fn digest_id(prefix: &str, parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let encoding: Encoding = BASE32_NOPAD;
    let mut id = prefix.to_owned();
    id.push_str(&encoding.encode(&hash.finalize()).to_ascii_lowercase());
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_refused_past_their_limits() {
        let longest = "a".repeat(64);
        let too_long = "a".repeat(65);
        for (text, valid) in [
            ("tee-black_XL", true),
            (longest.as_str(), true),
            ("", false),
            (too_long.as_str(), false),
            ("a b", false),
            ("a/b", false),
            ("a#b", false),
            ("é", false),
        ] {
            assert_eq!(ProductId::try_from(text).is_ok(), valid, "{text:?}");
        }
    }

    #[test]
    fn keys_references_and_customers_are_printable_ascii_up_to_255_without_blanks_around_it() {
        for text in ["k", "a b", "a  b", &"k".repeat(255)] {
            assert!(IdempotencyKey::try_from(text).is_ok(), "{text:?}");
            assert!(PaymentReference::try_from(text).is_ok(), "{text:?}");
            assert!(CustomerId::try_from(text).is_ok(), "{text:?}");
        }
        for text in ["", "a\nb", "ü", " ", "pay_1 ", " pay_1", "   pay_1   ", &"k".repeat(256)] {
            assert!(IdempotencyKey::try_from(text).is_err(), "{text:?}");
            assert!(CustomerId::try_from(text).is_err(), "{text:?}");
            let refused = PaymentReference::try_from(text).unwrap_err();
            assert!(
                refused.field == "payment_reference" && refused.rule.contains("no blank at either end"),
                "{text:?}"
            );
        }
    }

    #[test]
    fn a_reservation_is_named_by_customer_and_key_together() {
        let id = |customer: &str, key: &str| {
            ReservationId::derive(&CustomerId::try_from(customer).unwrap(), &IdempotencyKey::try_from(key).unwrap())
        };
        assert_eq!(id("alice", "k"), id("alice", "k"));
        assert_ne!(id("alice", "k"), id("bob", "k"));
        assert_ne!(id("ab", "c"), id("a", "bc"));
        assert!(ReservationId::try_from(id("alice", "k").as_str()).is_ok());
    }

    #[test]
    fn a_reservation_id_that_was_never_given_is_refused() {
        for text in ["", "rsv_", "tee-black", "rsv_../../etc", &format!("rsv_{}", "A".repeat(52))] {
            assert!(ReservationId::try_from(text).is_err(), "{text:?}");
        }
    }
}
