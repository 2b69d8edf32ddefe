//! The domain's values as the API's description shows them, for `#[schema(value_type = ...)]`.
//!
//! The domain knows nothing of HTTP, so its types cannot describe themselves. What must always hold: a text or number
//! fits its schema here exactly if its type in the domain takes it (the tests ask both).

use holdfast_domain::text::INVISIBLE;
use holdfast_domain::{
    FailedState, HoldSeconds, MAX_LATE_PAYMENT_SECONDS, MAX_PRICE_MINOR, MAX_SHARDS, MAX_TOTAL, Status,
};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// A named schema that is built by hand.
macro_rules! schema {
    ($(#[$doc:meta])* $name:ident, $builder:expr) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub enum $name {}

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                $builder.build().into()
            }
        }

        impl ToSchema for $name {}
    };
}

fn text(description: &str) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(Type::String).description(Some(description))
}

fn whole(description: &str, minimum: i64, maximum: u64) -> ObjectBuilder {
    let maximum = i64::try_from(maximum).unwrap_or(i64::MAX);
    ObjectBuilder::new()
        .schema_type(Type::Integer)
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
        .description(Some(description))
        .minimum(Some(minimum))
        .maximum(Some(maximum))
}

schema!(
    /// See [`holdfast_domain::ProductId`].
    ProductId,
    text("A product, in the shop's own words.").pattern(Some("^[A-Za-z0-9_-]{1,64}$")).examples(["tee-black"])
);
schema!(
    /// See [`holdfast_domain::ReservationId`].
    ReservationId,
    text("A reservation, and the order that it becomes.")
        .pattern(Some("^rsv_[a-z2-7]{52}$"))
        .examples(["rsv_iqd4x2fixzovcounckk76u2lodwabrd3r4lpf2wo5qx36yxf56sa"])
);
schema!(
    /// The id of a failed confirmation.
    FailedConfirmationId,
    text("A failed confirmation.")
        .pattern(Some("^fc_[A-Za-z0-9]{52}$"))
        .examples(["fc_rwk75w2exc5zpnhaezgetcpcjsx4xjt2jowbaoa37yqvdnqi7cmq"])
);
schema!(
    /// See [`holdfast_domain::CustomerId`].
    CustomerId,
    text(
        "A customer: the `sub` of their token, or a guest whom a service names. A service's own ids begin with `guest:`, \
         as in `guest:8e03978e`: a token whose `sub` begins so is refused, so a guest never is somebody who signed up. \
         No blank at either end."
    )
    .pattern(Some(TRIMMED))
    .examples(["alice"])
);
schema!(
    /// See [`holdfast_domain::PaymentReference`].
    PaymentReference,
    text("The payment provider's name for one payment. No blank at either end.")
        .pattern(Some(TRIMMED))
        .examples(["pay_123"])
);
schema!(
    /// See [`crate::Key`].
    IdempotencyKey,
    text(
        "The caller's own name for one attempt. One with a comma has to be quoted, as the draft says: `\"a,b\"`. No blank \
         at either end."
    )
    // Bare without a comma; or a structured field's string (RFC 9651).
    .pattern(Some(
        r##"^([!#-+\--~]([ -+\--~]{0,253}[!-+\--~])?|"([!#-\[\]-~]|\\["\\])(([ !#-\[\]-~]|\\["\\]){0,253}([!#-\[\]-~]|\\["\\]))?")$"##
    ))
        .examples(["basket-1"])
);
schema!(
    /// See [`holdfast_domain::Currency`].
    Currency,
    text("An ISO 4217 code. Prices are whole numbers of its minor unit.")
        .pattern(Some("^[A-Z]{3}$"))
        .examples(["EUR"])
);
schema!(
    /// See [`holdfast_domain::Currency::in_force`].
    PriceCurrency,
    text(
        "The code of a currency that ISO 4217 has in force and that has a minor unit. Prices are whole numbers of that \
         unit. Set once."
    )
    // No enumeration: a client made of this description would turn each code into a type of its own.
    .pattern(Some(format!("^({})$", domain_currencies().join("|"))))
    .examples(["EUR"])
);
schema!(
    /// See [`holdfast_domain::Currency::exponent`].
    CurrencyExponent,
    whole(
        "How many decimals the currency has: an amount of 2500 is 25.00 where it is 2 (EUR), 2500 where it is 0 (JPY), \
         2.500 where it is 3 (KWD).",
        0,
        4
    )
    .examples([2])
);
schema!(
    /// See [`holdfast_domain::HoldSeconds`].
    Seconds,
    whole("A length in seconds.", HoldSeconds::MIN.get(), HoldSeconds::MAX.get().unsigned_abs()).examples([600])
);
schema!(
    /// See [`holdfast_domain::Product::late_payment_seconds`].
    LatePaymentSeconds,
    whole(
        "For how many seconds after a hold's end a payment can still make an order of it, at the hold's price and while \
         the units are free. A later one is refused with `refund_required` and recorded. 0: every payment after the \
         hold's end is.",
        0,
        u64::from(MAX_LATE_PAYMENT_SECONDS)
    )
    .examples([86_400])
);
schema!(
    /// See [`crate::ApiTime`]: as it is shown.
    Time,
    text("A point in time as in RFC 3339, in UTC and with three decimals: all have the same length, and sort as texts.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .pattern(Some(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$"))
        .examples(["2026-11-21T07:06:41.060Z"])
);
schema!(
    /// See [`crate::ApiTime`]: as it is taken.
    GivenTime,
    text("A point in time as in RFC 3339, with any offset. What is finer than a millisecond is cut off.")
        // No example: a sale that starts and ends at one and the same would be refused.
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
);
schema!(
    /// A price, see [`MAX_PRICE_MINOR`].
    Price,
    whole("A price in the currency's minor unit: 2500 is 25.00 EUR.", 0, MAX_PRICE_MINOR).examples([2_500])
);
schema!(
    /// A product's total, see [`MAX_TOTAL`].
    Total,
    whole("Units of a product: free, held and sold together.", 0, MAX_TOTAL).examples([100])
);
schema!(
    /// The number of a product's shards, see [`MAX_SHARDS`].
    Shards,
    whole(
        "Into how many items of the table the stock is cut, so that many can reserve at once. Set once. Unless given: \
         16, at most half the total, at least 1.",
        1,
        u64::from(MAX_SHARDS)
    )
    .examples([16])
);
schema!(
    /// The name of a product.
    Name,
    text("A name: some of its characters are visible, none is a control character.")
        .min_length(Some(1))
        .max_length(Some(200))
        .pattern(Some(line_pattern()))
        .examples(["Black tee"])
);
schema!(
    /// A reason, and the reference of an adjustment.
    Words,
    text("A text for other people: some of its characters are visible, none is a control character.")
        .min_length(Some(1))
        .max_length(Some(200))
        .pattern(Some(line_pattern()))
        .examples(["delivery"])
);
schema!(
    /// What an admin writes about a failed confirmation: see [`holdfast_domain::text::is_visible`].
    Note,
    text("What was done about it, such as how the money was given back. Some of its characters are visible.")
        .min_length(Some(1))
        .max_length(Some(1_000))
        .pattern(Some(visible_pattern()))
        .examples(["pay_999 refunded"])
);
schema!(
    /// See [`holdfast_store::Cursor`].
    Cursor,
    text("Where a page starts: the `next_cursor` of the page before, as it was given.")
        .pattern(Some("^[A-Za-z0-9_-]+$"))
);
schema!(
    /// See [`holdfast_domain::Status`].
    ReservationStatus,
    text("Where a reservation stands. `confirmed`: it is an order. `expired`: its time was over before it was paid.")
        .enum_values(Some([Status::Held, Status::Confirmed, Status::Cancelled, Status::Expired].map(Status::as_str)))
);
schema!(
    /// See [`holdfast_domain::ProductStatus`].
    ProductStatus,
    text("Whether a product may be reserved. `paused`: it may not; holds that were made before stay.")
        .enum_values(Some(["on_sale", "paused"]))
);
schema!(
    /// See [`FailedState`].
    FailedConfirmationState,
    text(
        "Where a failed confirmation stands. `open`: somebody has to look at it. `retrying`: it is in the queue again. \
         `confirmed`, `resolved`: it is settled."
    )
    .enum_values(Some(
        [FailedState::Open, FailedState::Retrying, FailedState::Confirmed, FailedState::Resolved]
            .map(FailedState::as_str)
    ))
);

/// 1 to 255 printable ASCII characters, with no blank at either end.
const TRIMMED: &str = "^[!-~]([ -~]{0,253}[!-~])?$";

/// Control characters (Unicode's category Cc), in a class of a regular expression.
const CONTROL: &str = r"\u0000-\u001F\u007F-\u009F";
/// Blanks (Unicode's `White_Space`) that are no control characters. Not `\s`: each dialect has its own.
const BLANK: &str = r"\u0020\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000";

/// The texts that [`holdfast_domain::text::is_line`] takes, apart from their length.
fn line_pattern() -> String {
    format!("^[^{CONTROL}]*[^{CONTROL}{BLANK}{}][^{CONTROL}]*$", invisible())
}

/// The texts that [`holdfast_domain::text::is_visible`] takes.
fn visible_pattern() -> String {
    format!("[^{CONTROL}{BLANK}{}]", invisible())
}

/// What does not show, in a class of a regular expression. No dialect's escape for what is past U+FFFF is another's, so
/// such a character stands for itself.
fn invisible() -> String {
    let sign = |sign: char| match u32::from(sign) {
        code @ ..=0xFFFF => format!("\\u{code:04X}"),
        _ => sign.to_string(),
    };
    INVISIBLE.iter().map(|range| format!("{}-{}", sign(*range.start()), sign(*range.end()))).collect()
}

fn domain_currencies() -> Vec<&'static str> {
    holdfast_domain::Currency::all_in_force().map(holdfast_domain::Currency::as_str).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ApiTime;
    use holdfast_domain as domain;
    use serde_json::{Value, json};

    /// A key as its header gives it.
    struct HeaderKey;

    impl<'de> serde::Deserialize<'de> for HeaderKey {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let value = String::deserialize(deserializer)?;
            crate::Key::parse(&value).map(|_| Self).ok_or_else(|| serde::de::Error::custom("no key"))
        }
    }

    /// A currency as a new product gives it.
    struct InForce;

    impl<'de> serde::Deserialize<'de> for InForce {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let code = String::deserialize(deserializer)?;
            domain::Currency::in_force(&code).map(|_| Self).map_err(serde::de::Error::custom)
        }
    }

    /// A note as an admin gives it, apart from its length.
    struct Visible;

    impl<'de> serde::Deserialize<'de> for Visible {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            domain::text::is_visible(&text).then_some(Self).ok_or_else(|| serde::de::Error::custom("not visible"))
        }
    }

    /// Whether the schema takes a value exactly if the type does.
    #[track_caller]
    fn agree<S: PartialSchema, T: serde::de::DeserializeOwned>(values: impl IntoIterator<Item = Value>) {
        let schema = serde_json::to_value(S::schema()).unwrap();
        let schema = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        let (mut taken, mut refused) = (0, 0);
        for value in values {
            let parsed = serde_json::from_value::<T>(value.clone()).is_ok();
            assert_eq!(schema.is_valid(&value), parsed, "{value}");
            if parsed { taken += 1 } else { refused += 1 }
        }
        assert!(taken > 0 && refused > 0, "{taken} taken, {refused} refused: nothing was compared");
    }

    fn texts() -> Vec<Value> {
        let long = |n| "a".repeat(n);
        let mut texts: Vec<String> = ["", "a", "tee-black_XL", "a b", "a/b", "é", "a\n", "\n", "a\u{7f}", "~", "EUR"]
            .into_iter()
            .chain(["eur", "EU", "EURO", "E1R", "EUR\n", "rsv_", "held", "on_sale", "open", "Held", "{\"x\"}"])
            .map(str::to_owned)
            .collect();
        texts.extend([long(64), long(65), long(255), long(256), format!("rsv_{}", long(52))]);
        texts.extend([format!("rsv_{}", long(51)), format!("rsv_{}", "A".repeat(52)), format!("rsv_{}1", long(51))]);
        texts.extend((0..=255_u8).map(|code| char::from(code).to_string()));
        texts.extend([" ", "  ", " a", "a ", "a  b", "\" a\"", "\"a \"", "\"a b\"", "\" \""].map(str::to_owned));
        texts.extend([format!("a{}b", " ".repeat(253)), format!("a{}b", " ".repeat(254))]);
        texts.extend(["XYZ", "XAU", "XXX", "HRK", "JPY", "KWD", "VES"].map(str::to_owned));
        texts.extend(
            ["\u{200b}", "\u{3000}\u{2003}", "\u{feff}a", "\u{e0020}", "\u{e0020}a", "名前"].map(str::to_owned),
        );
        let mut values: Vec<Value> = texts.into_iter().map(Value::from).collect();
        values.extend([json!(null), json!(1), json!([]), json!({})]);
        values
    }

    #[test]
    fn schemas_take_what_the_domain_takes_and_nothing_else() {
        agree::<ProductId, domain::ProductId>(texts());
        agree::<ReservationId, domain::ReservationId>(texts());
        agree::<CustomerId, domain::CustomerId>(texts());
        agree::<PaymentReference, domain::PaymentReference>(texts());
        let quoted = ["\"a,b\"", "\"a", "a\"", "\"\"", "\"a\\\"b\"", "\"a\\b\"", "a,b", "\"a\"b\""].map(Value::from);
        agree::<IdempotencyKey, HeaderKey>(texts().into_iter().chain(quoted));
        agree::<PriceCurrency, InForce>(texts());
        let words = ["held", "confirmed", "cancelled", "expired", "paused", "retrying", "resolved"].map(Value::from);
        agree::<ReservationStatus, domain::Status>(texts().into_iter().chain(words.clone()));
        agree::<ProductStatus, domain::ProductStatus>(texts().into_iter().chain(words.clone()));
        agree::<FailedConfirmationState, domain::FailedState>(texts().into_iter().chain(words));
        agree::<Seconds, domain::HoldSeconds>([0, 9, 10, 3_600, 3_601, -10].map(Value::from));
    }

    /// Each blank and each sign that does not show, and its neighbours: the schema's list is Unicode's.
    #[test]
    fn notes_and_names_are_visible_by_the_same_rule() {
        let invisible = INVISIBLE.iter().flat_map(|range| [*range.start(), *range.end()]);
        let blanks = (0..=0x3100).filter_map(char::from_u32).filter(|sign| sign.is_whitespace());
        let near = |sign: char| (-1..=1).filter_map(move |by| char::from_u32(u32::from(sign).checked_add_signed(by)?));
        let signs: Vec<Value> = invisible.chain(blanks).flat_map(near).map(|sign| json!(sign)).collect();
        agree::<Note, Visible>(signs);
    }

    #[test]
    fn a_time_that_is_shown_is_as_its_schema_says() {
        let schema = serde_json::to_value(Time::schema()).unwrap();
        let schema = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
        for millis in [0, 1, 60, 999, 1_000, 1_795_244_800_060, -1, 253_402_300_799_999] {
            let shown = json!(ApiTime(domain::Timestamp::from_millis(millis)));
            assert!(schema.is_valid(&shown), "{shown}");
        }
        for other in ["2026-11-21T07:06:41Z", "2026-11-21T07:06:41.06Z", "2026-11-21T07:06:41.060+00:00"] {
            assert!(!schema.is_valid(&json!(other)), "{other}");
        }
    }

    #[test]
    fn times_are_taken_as_rfc_3339_says() {
        agree::<GivenTime, ApiTime>(
            [
                "2030-01-02T03:04:05Z",
                "2030-01-02T03:04:05.678+02:00",
                "9999-12-31T23:59:59Z",
                "0000-01-01T00:00:00Z",
                "2030-01-02",
                "2030-01-02T03:04:05",
                "2030-13-02T03:04:05Z",
                "2030-02-30T03:04:05Z",
                "tomorrow",
                "",
            ]
            .map(Value::from),
        );
    }

    #[test]
    fn numbers_and_names_are_taken_up_to_the_limits_of_a_product() {
        type Change = fn(&mut domain::Product, &Value);
        let numbers = |most: u64| vec![json!(0), json!(1), json!(most), json!(most + 1)];
        let names =
            texts().into_iter().filter(Value::is_string).chain([json!("ü".repeat(200)), json!("ü".repeat(201))]);
        let cases: [(RefOr<Schema>, Vec<Value>, Change); 5] = [
            (LatePaymentSeconds::schema(), numbers(MAX_LATE_PAYMENT_SECONDS.into()), |product, value| {
                product.late_payment_seconds = u32::try_from(value.as_u64().unwrap()).unwrap();
            }),
            (Price::schema(), numbers(MAX_PRICE_MINOR), |product, value| product.price_minor = value.as_u64().unwrap()),
            (Total::schema(), numbers(MAX_TOTAL), |product, value| product.total = value.as_u64().unwrap()),
            (Shards::schema(), numbers(u64::from(MAX_SHARDS)), |product, value| {
                product.shards = u32::try_from(value.as_u64().unwrap()).unwrap();
            }),
            (Name::schema(), names.collect(), |product, value| product.name = value.as_str().unwrap().to_owned()),
        ];
        for (schema, values, change) in cases {
            let schema = jsonschema::validator_for(&serde_json::to_value(schema).unwrap()).unwrap();
            for value in values {
                let mut product = domain::Product {
                    product_id: domain::ProductId::try_from("a").unwrap(),
                    name: "a".to_owned(),
                    price_minor: 1,
                    currency: domain::Currency::try_from("EUR".to_owned()).unwrap(),
                    total: 1,
                    shards: 1,
                    hold_seconds: HoldSeconds::DEFAULT,
                    late_payment_seconds: 0,
                    max_per_customer: None,
                    counts_per_customer: true,
                    sale_starts_at: None,
                    sale_ends_at: None,
                    status: domain::ProductStatus::OnSale,
                    version: 1,
                };
                change(&mut product, &value);
                assert_eq!(schema.is_valid(&value), product.checked().is_ok(), "{value}");
            }
        }
    }
}
