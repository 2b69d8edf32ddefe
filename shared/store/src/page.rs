//! Pages of a list, and the cursors between them.

use std::collections::BTreeMap;

use aws_sdk_dynamodb::types::AttributeValue;
use data_encoding::BASE64URL_NOPAD;
use holdfast_domain::Invalid;

use crate::Item;

/// One page of a list.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    /// Its items.
    pub items: Vec<T>,
    /// The start of the next page; absent on the last one.
    pub next: Option<Cursor>,
}

/// DynamoDB's limit on a sort key, in bytes.
const MAX_KEY_BYTES: usize = 1_024;

/// The form of one attribute of a list's keys.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Part<'a> {
    /// This text.
    Is(&'a str),
    /// A text with this prefix.
    Begins(&'a str),
    /// A number.
    Number,
}

/// Where a list continues: the key of the last item seen. Opaque to the caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Cursor(Item);

impl Cursor {
    pub(crate) fn new(key: Item) -> Self {
        Self(key)
    }

    /// The key, if it could be one of a list whose keys have these `parts`: a cursor of another list is invalid.
    /// DynamoDB refuses a key from outside the list like a malformed query, which would look like an internal error.
    pub(crate) fn into_key(self, parts: &[(&str, Part<'_>)]) -> Result<Item, Invalid> {
        let fits = |&(name, part): &(&str, Part<'_>)| match (self.0.get(name), part) {
            (Some(AttributeValue::S(text)), Part::Is(wanted)) => text == wanted,
            (Some(AttributeValue::S(text)), Part::Begins(prefix)) => {
                text.starts_with(prefix) && text.len() <= MAX_KEY_BYTES
            }
            (Some(AttributeValue::N(_)), Part::Number) => true,
            _ => false,
        };
        if self.0.len() == parts.len() && parts.iter().all(fits) { Ok(self.0) } else { Err(Self::invalid()) }
    }

    pub(crate) const fn invalid() -> Invalid {
        Invalid::new("cursor", "must be the next_cursor of an earlier page of this list")
    }

    /// The text for the caller.
    pub fn encode(&self) -> String {
        let parts: BTreeMap<&str, String> = self
            .0
            .iter()
            .filter_map(|(name, value)| match value {
                AttributeValue::S(text) => Some((name.as_str(), format!("S{text}"))),
                AttributeValue::N(number) => Some((name.as_str(), format!("N{number}"))),
                _ => None,
            })
            .collect();
        // A map of texts can always be serialised; an empty cursor would be refused when it is used.
        BASE64URL_NOPAD.encode(serde_json::to_string(&parts).unwrap_or_default().as_bytes())
    }

    /// The cursor of a text from the caller.
    ///
    /// # Errors
    /// [`Invalid`] for a text that no page returned.
    pub fn decode(text: &str) -> Result<Self, Invalid> {
        let parse = || {
            let bytes = BASE64URL_NOPAD.decode(text.as_bytes()).ok()?;
            let parts: BTreeMap<String, String> = serde_json::from_slice(&bytes).ok()?;
            parts
                .into_iter()
                .map(|(name, value)| match value.split_at_checked(1)? {
                    ("S", text) if !text.is_empty() => Some((name, AttributeValue::S(text.to_owned()))),
                    ("N", number) => {
                        number.parse::<i64>().ok()?;
                        Some((name, AttributeValue::N(number.to_owned())))
                    }
                    _ => None,
                })
                .collect::<Option<Item>>()
        };
        parse().map(Self).ok_or(Self::invalid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_survives_encoding_and_decoding() {
        let cursor = Cursor(Item::from([
            ("pk".to_owned(), AttributeValue::S("HOLD#é".to_owned())),
            ("created_at".to_owned(), AttributeValue::N("-5".to_owned())),
        ]));
        assert_eq!(Cursor::decode(&cursor.encode()).unwrap(), cursor);
        assert!(cursor.into_key(&[("pk", Part::Begins("HOLD#")), ("created_at", Part::Number)]).is_ok());
    }

    #[test]
    fn a_cursor_of_another_list_is_refused() {
        let cursor = |sk: &str| {
            Cursor(Item::from([
                ("pk".to_owned(), AttributeValue::S("CATALOG".to_owned())),
                ("sk".to_owned(), AttributeValue::S(sk.to_owned())),
            ]))
        };
        let products = [("pk", Part::Is("CATALOG")), ("sk", Part::Begins("PRODUCT#"))];
        assert!(cursor("PRODUCT#a").into_key(&products).is_ok());
        let others: [&[(&str, Part<'_>)]; 6] = [
            &[("pk", Part::Is("FAILED")), ("sk", Part::Begins("PRODUCT#"))],
            &[("pk", Part::Is("CATALOG")), ("sk", Part::Begins("HOLD#"))],
            &[("pk", Part::Is("CATALOG")), ("sk", Part::Number)],
            &[("pk", Part::Is("CATALOG"))],
            &[("pk", Part::Is("CATALOG")), ("created_at", Part::Number)],
            &[("pk", Part::Is("CATALOG")), ("sk", Part::Begins("PRODUCT#")), ("created_at", Part::Number)],
        ];
        for other in others {
            assert_eq!(cursor("PRODUCT#a").into_key(other).unwrap_err().field, "cursor", "{other:?}");
        }
        assert!(cursor(&format!("PRODUCT#{}", "a".repeat(1_024))).into_key(&products).is_err());
    }

    #[test]
    fn a_text_that_is_not_a_cursor_is_refused() {
        let forged = [
            "",
            "?",
            "bm90IGpzb24",
            &BASE64URL_NOPAD.encode(br#"{"pk":"X"}"#),
            &BASE64URL_NOPAD.encode(br#"{"pk":"S"}"#),
            &BASE64URL_NOPAD.encode(br#"{"pk":"N1e9"}"#),
            &BASE64URL_NOPAD.encode(br#"{"pk":1}"#),
            &BASE64URL_NOPAD.encode("{\"pk\":\"é\"}".as_bytes()),
        ];
        for text in forged {
            assert_eq!(Cursor::decode(text).unwrap_err().field, "cursor", "{text}");
        }
    }
}
