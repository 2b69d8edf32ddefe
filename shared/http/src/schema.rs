//! Schemas of the domain's values in the API description, for `#[schema(value_type = ...)]`.
//!
//! The domain does not depend on HTTP, so its types cannot describe themselves. Invariant: a value matches its schema
//! exactly if the domain accepts it (the tests compare both).

use holdfast_domain::text::INVISIBLE;
use holdfast_domain::{
    FailedState, HoldSeconds, MAX_LATE_PAYMENT_SECONDS, MAX_PRICE_MINOR, MAX_SHARDS, MAX_TOTAL, Status,
};
use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

/// Defines a named schema.
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
    text("The id of a product, chosen by the shop.").pattern(Some("^[A-Za-z0-9_-]{1,64}$")).examples(["tee-black"])
);
schema!(
    /// See [`holdfast_domain::ReservationId`].
    ReservationId,
    text("The id of a reservation, and of the order that it becomes.")
        .pattern(Some("^rsv_[a-z2-7]{52}$"))
        .examples(["rsv_iqd4x2fixzovcounckk76u2lodwabrd3r4lpf2wo5qx36yxf56sa"])
);
schema!(
    /// The id of a failed confirmation.
    FailedConfirmationId,
    text("The id of a failed confirmation.")
        .pattern(Some("^fc_[A-Za-z0-9]{52}$"))
        .examples(["fc_rwk75w2exc5zpnhaezgetcpcjsx4xjt2jowbaoa37yqvdnqi7cmq"])
);
schema!(
    /// See [`holdfast_domain::ActionTarget`].
    ActionTarget,
    text(
        "What an action was about: the id of a product, a reservation or a failed confirmation; for a redrive \
         `failed-confirmations`."
    )
    .pattern(Some("^[A-Za-z0-9_-]{1,64}$"))
    .examples(["tee-black"])
);
schema!(
    /// See [`holdfast_domain::CustomerId`].
    CustomerId,
    text(
        "The id of a customer: the `sub` of their token, or an id that a service chooses for a guest. Guest ids begin with \
         `guest:`, as in `guest:8e03978e`. A token with such a `sub` is refused, so a guest is never a signed-in user. No \
         space at either end."
    )
    .pattern(Some(TRIMMED))
    .examples(["alice"])
);
schema!(
    /// See [`holdfast_domain::PaymentReference`].
    PaymentReference,
    text("The payment provider's id of a payment. No space at either end.")
        .pattern(Some(TRIMMED))
        .examples(["pay_123"])
);
schema!(
    /// See [`crate::Key`].
    IdempotencyKey,
    text(
        "A key for one request, chosen by the caller. A key with a comma must be quoted: `\"a,b\"`. No space at either \
         end."
    )
    // Unquoted without a comma, or a structured field string (RFC 9651).
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
        "An ISO 4217 code that is in force and has a minor unit. Prices are whole numbers of that unit. Cannot be \
         changed."
    )
    // Not an enumeration: generated clients would make a type of each code.
    .pattern(Some(format!("^({})$", domain_currencies().join("|"))))
    .examples(["EUR"])
);
schema!(
    /// See [`holdfast_domain::Currency::exponent`].
    CurrencyExponent,
    whole(
        "Number of decimals of the currency: an amount of 2500 is 25.00 with 2 (EUR), 2500 with 0 (JPY), 2.500 with 3 \
         (KWD).",
        0,
        4
    )
    .examples([2])
);
schema!(
    /// See [`holdfast_domain::HoldSeconds`].
    Seconds,
    whole("A duration in seconds.", HoldSeconds::MIN.get(), HoldSeconds::MAX.get().unsigned_abs()).examples([600])
);
schema!(
    /// See [`holdfast_domain::Product::late_payment_seconds`].
    LatePaymentSeconds,
    whole(
        "Seconds after the end of a hold during which a payment is still accepted, at the hold's price and if enough units \
         are available. A later payment is refused with `refund_required` and recorded. 0: every payment after the end \
         is refused.",
        0,
        u64::from(MAX_LATE_PAYMENT_SECONDS)
    )
    .examples([86_400])
);
schema!(
    /// See [`crate::ApiTime`]: output.
    Time,
    text("A point in time (RFC 3339) in UTC with three decimals. All have the same length, so they sort as strings.")
        .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)))
        .pattern(Some(r"^\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z$"))
        .examples(["2026-11-21T07:06:41.060Z"])
);
schema!(
    /// See [`crate::ApiTime`]: input.
    GivenTime,
    text("A point in time (RFC 3339) with any offset. It is truncated to milliseconds.")
        // No example: a sale that starts and ends at the same time would be refused.
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
    whole("Total number of units: available, reserved and sold.", 0, MAX_TOTAL).examples([100])
);
schema!(
    /// The number of a product's shards, see [`MAX_SHARDS`].
    Shards,
    whole(
        "Number of table items that the stock is split into, so that many customers can reserve at once. Cannot be \
         changed. Default: 16, but at most half the total and at least 1.",
        1,
        u64::from(MAX_SHARDS)
    )
    .examples([16])
);
schema!(
    /// The name of a product.
    Name,
    text("A name. At least one character is visible; control characters are not allowed.")
        .min_length(Some(1))
        .max_length(Some(200))
        .pattern(Some(line_pattern()))
        .examples(["Black tee"])
);
schema!(
    /// The reason or reference of an adjustment.
    FreeText,
    text("A text for people. At least one character is visible; control characters are not allowed.")
        .min_length(Some(1))
        .max_length(Some(200))
        .pattern(Some(line_pattern()))
        .examples(["delivery"])
);
schema!(
    /// An admin's note on a failed confirmation: see [`holdfast_domain::text::is_visible`].
    Note,
    text("What will be done about it, such as a refund, which follows. At least one character is visible.")
        .min_length(Some(1))
        .max_length(Some(1_000))
        .pattern(Some(visible_pattern()))
        .examples(["refund pay_999"])
);
schema!(
    /// See [`holdfast_store::Cursor`].
    Cursor,
    text("Where the page starts: the `next_cursor` of the previous page.")
        .pattern(Some("^[A-Za-z0-9_-]+$"))
);
schema!(
    /// See [`holdfast_domain::Status`].
    ReservationStatus,
    text("The status of a reservation. `confirmed`: it is an order. `expired`: it was not confirmed in time.")
        .enum_values(Some([Status::Held, Status::Confirmed, Status::Cancelled, Status::Expired].map(Status::as_str)))
);
schema!(
    /// See [`holdfast_domain::ProductStatus`].
    ProductStatus,
    text(
        "Whether a product can be reserved. `paused`: it cannot; existing holds stay. `archived`: the same, and it is not \
         in the public list."
    )
    .enum_values(Some(["on_sale", "paused", "archived"]))
);
schema!(
    /// See [`FailedState`].
    FailedConfirmationState,
    text(
        "The state of a failed confirmation. `open`: a person has to look at it. `retrying`: it was re-queued. \
         `confirmed`, `resolved`: it is settled."
    )
    .enum_values(Some(
        [FailedState::Open, FailedState::Retrying, FailedState::Confirmed, FailedState::Resolved]
            .map(FailedState::as_str)
    ))
);

/// 1 to 255 printable ASCII characters, with no space at either end.
const TRIMMED: &str = "^[!-~]([ -~]{0,253}[!-~])?$";

/// Control characters (Unicode's category Cc), in a class of a regular expression.
const CONTROL: &str = r"\u0000-\u001F\u007F-\u009F";
/// White space (Unicode's `White_Space`) without control characters. Not `\s`, which differs between dialects.
const WHITE_SPACE: &str = r"\u0020\u00A0\u1680\u2000-\u200A\u2028\u2029\u202F\u205F\u3000";

/// Texts that [`holdfast_domain::text::is_line`] accepts, except for their length.
fn line_pattern() -> String {
    format!("^[^{CONTROL}]*[^{CONTROL}{WHITE_SPACE}{}][^{CONTROL}]*$", invisible())
}

/// Texts that [`holdfast_domain::text::is_visible`] accepts.
fn visible_pattern() -> String {
    format!("[^{CONTROL}{WHITE_SPACE}{}]", invisible())
}

/// Invisible characters, in a class of a regular expression. Characters past U+FFFF are not escaped, because the escapes
/// differ between dialects.
fn invisible() -> String {
    let escape = |c: char| match u32::from(c) {
        code @ ..=0xFFFF => format!("\\u{code:04X}"),
        _ => c.to_string(),
    };
    INVISIBLE.iter().map(|range| format!("{}-{}", escape(*range.start()), escape(*range.end()))).collect()
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

    /// A key as the value of its header.
    struct HeaderKey;

    impl<'de> serde::Deserialize<'de> for HeaderKey {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let value = String::deserialize(deserializer)?;
            crate::Key::parse(&value).map(|_| Self).ok_or_else(|| serde::de::Error::custom("no key"))
        }
    }

    /// The currency of a new product.
    struct InForce;

    impl<'de> serde::Deserialize<'de> for InForce {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let code = String::deserialize(deserializer)?;
            domain::Currency::in_force(&code).map(|_| Self).map_err(serde::de::Error::custom)
        }
    }

    /// A note, except for its length.
    struct Visible;

    impl<'de> serde::Deserialize<'de> for Visible {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let text = String::deserialize(deserializer)?;
            domain::text::is_visible(&text).then_some(Self).ok_or_else(|| serde::de::Error::custom("not visible"))
        }
    }

    /// Checks that the schema accepts a value exactly if the type does.
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
    fn schemas_accept_exactly_what_the_domain_accepts() {
        agree::<ProductId, domain::ProductId>(texts());
        agree::<ReservationId, domain::ReservationId>(texts());
        agree::<ActionTarget, domain::ActionTarget>(texts());
        agree::<CustomerId, domain::CustomerId>(texts());
        agree::<PaymentReference, domain::PaymentReference>(texts());
        let quoted = ["\"a,b\"", "\"a", "a\"", "\"\"", "\"a\\\"b\"", "\"a\\b\"", "a,b", "\"a\"b\""].map(Value::from);
        agree::<IdempotencyKey, HeaderKey>(texts().into_iter().chain(quoted));
        agree::<PriceCurrency, InForce>(texts());
        let words = ["held", "confirmed", "cancelled", "expired", "paused", "archived", "retrying", "resolved"];
        let words = words.map(Value::from);
        agree::<ReservationStatus, domain::Status>(texts().into_iter().chain(words.clone()));
        agree::<ProductStatus, domain::ProductStatus>(texts().into_iter().chain(words.clone()));
        agree::<FailedConfirmationState, domain::FailedState>(texts().into_iter().chain(words));
        agree::<Seconds, domain::HoldSeconds>([0, 9, 10, 3_600, 3_601, -10].map(Value::from));
    }

    /// White space and invisible characters, and their neighbours: the schema's list is Unicode's.
    #[test]
    fn schemas_and_domain_agree_on_visible_characters() {
        let invisible = INVISIBLE.iter().flat_map(|range| [*range.start(), *range.end()]);
        let blanks = (0..=0x3100).filter_map(char::from_u32).filter(|c| c.is_whitespace());
        let near = |c: char| (-1..=1).filter_map(move |by| char::from_u32(u32::from(c).checked_add_signed(by)?));
        let characters: Vec<Value> = invisible.chain(blanks).flat_map(near).map(|c| json!(c)).collect();
        agree::<Note, Visible>(characters);
    }

    #[test]
    fn a_formatted_time_matches_its_schema() {
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
    fn times_are_accepted_as_in_rfc_3339() {
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
    fn numbers_and_names_are_accepted_up_to_the_limits_of_a_product() {
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
