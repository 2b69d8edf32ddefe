//! What every response must satisfy.

use holdfast_http::codes;
use holdfast_testkit::wire::Call;
use serde_json::Value;

use crate::shop::{worked, writes};

/// Refusals of the input itself: nothing is stored for them, and no write is even tried.
const OF_INPUT: [&str; 9] = [
    "forbidden",
    "idempotency_key_invalid",
    "idempotency_key_missing",
    "invalid_quantity",
    "invalid_request",
    "method_not_allowed",
    "payload_too_large",
    "route_not_found",
    "unauthenticated",
];

/// Refusals of a confirmation. They record a payment that is owed back, or that the confirmation will never be carried
/// out.
const FINAL: [&str; 4] = ["already_confirmed", "hold_expired", "refund_required", "reservation_not_found"];

/// Checks an answer to API Gateway, and the calls behind it: the store responded, so there is no excuse for a 5xx; a
/// refusal is a documented problem, and changes nothing; what is shown is within its limits.
pub(crate) fn check(answer: &Value, calls: &[Call]) {
    let status = answer["statusCode"].as_u64().expect("a status");
    assert!((200..500).contains(&status), "{answer}");
    let header = |name: &str| answer["headers"][name].as_str().or(answer["multiValueHeaders"][name][0].as_str());
    let content_type = header("content-type").unwrap_or_default();
    let text = answer["body"].as_str().unwrap_or_default();
    let body: Option<Value> = serde_json::from_str(text).ok();
    if status < 400 {
        if let Some(body) = body.filter(|_| content_type == "application/json" && !text.contains("\"openapi\"")) {
            within_limits("", &body);
        }
        return;
    }
    let body = body.unwrap_or_else(|| panic!("a refusal without words: {answer}"));
    let code = body["code"].as_str().expect("a code");
    let promised = codes::find(code).unwrap_or_else(|| panic!("undocumented: {answer}"));
    assert_eq!((u64::from(promised.status.as_u16()), content_type), (status, "application/problem+json"), "{answer}");
    assert_eq!((&body["status"], &body["type"]), (&status.into(), &format!("urn:holdfast:problem:{code}").into()));
    for member in promised.members {
        assert!(member.optional || body.get(member.name).is_some(), "{code} without {}: {answer}", member.name);
    }
    for call in calls.iter().filter(|call| writes(call)) {
        assert!(!OF_INPUT.contains(&code), "refused with {code}, and yet {call:?}");
        // A reminder is created before its hold, which may then be refused: the reminder finds nothing to do. What an admin
        // tries is written down before, and that it was refused afterwards.
        let action = call.request["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("ACTION#"));
        let may = FINAL.contains(&code) || action || call.operation == "CreateSchedule";
        assert!(may || !worked(call), "refused with {code}, and yet {call:?}");
    }
}

/// Checks every field that has limits, at any depth: the limits are those of docs/limits.md.
pub(crate) fn within_limits(name: &str, value: &Value) {
    let characters = |most: usize| value.as_str().is_some_and(|text| (1..=most).contains(&text.chars().count()));
    let number = |least: i64, most: i64| value.as_i64().is_some_and(|number| (least..=most).contains(&number));
    let fits = match (name, value) {
        (_, Value::Null) => true,
        ("lines", Value::Array(lines)) => (1..=20).contains(&lines.len()),
        ("product_id", _) => value.as_str().is_some_and(is_product_id),
        ("reservation_id", _) => value.as_str().is_some_and(is_reservation_id),
        ("customer_id" | "payment_reference" | "actor", _) => value.as_str().is_some_and(is_printable),
        ("name" | "reference", _) => characters(200) && value.as_str().is_some_and(|text| !text.trim().is_empty()),
        ("note", _) => characters(1_000) && value.as_str().is_some_and(|text| !text.trim().is_empty()),
        ("currency", _) => {
            value.as_str().is_some_and(|text| text.len() == 3 && text.bytes().all(|b| b.is_ascii_uppercase()))
        }
        ("currency_exponent", _) => number(0, 4),
        (time, _) if time.ends_with("_at") => value.as_str().is_some_and(is_shown_time),
        ("server_time" | "latest", _) => value.as_str().is_some_and(is_shown_time),
        ("quantity", _) => number(1, 1_000),
        ("price_minor" | "unit_price_minor", _) => number(0, 100_000_000_000),
        ("total" | "total_after" | "available" | "sold", _) => number(0, 1_000_000_000),
        ("delta", _) => number(-1_000_000_000, 1_000_000_000),
        ("hold_seconds", _) => number(10, 3_600),
        ("late_payment_seconds", _) => number(0, 2_592_000),
        ("expires_in_seconds", _) => number(0, 3 * 3_600),
        ("shards", _) => number(1, 64),
        ("max_per_customer", _) => number(1, u32::MAX.into()),
        ("version", _) => number(1, i64::MAX),
        _ => true,
    };
    assert!(fits, "{name} is past its limits: {value}");
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| within_limits(name, value)),
        Value::Array(items) => items.iter().for_each(|item| within_limits("", item)),
        _ => {}
    }
}

/// docs/limits.md: `[A-Za-z0-9_-]{1,64}`.
pub(crate) fn is_product_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
}

/// `rsv_` and 52 characters of lower-case base32.
pub(crate) fn is_reservation_id(text: &str) -> bool {
    text.len() == 56
        && text.strip_prefix("rsv_").is_some_and(|rest| rest.chars().all(|c| matches!(c, 'a'..='z' | '2'..='7')))
}

/// docs/limits.md: 1 to 255 printable ASCII characters, with no space at either end.
pub(crate) fn is_printable(text: &str) -> bool {
    let inside = text.chars().all(|c| matches!(c, ' '..='~'));
    (1..=255).contains(&text.len()) && inside && !text.starts_with(' ') && !text.ends_with(' ')
}

/// `2026-11-21T07:06:41.060Z`: always this length.
pub(crate) fn is_shown_time(text: &str) -> bool {
    text.len() == 24
        && text.bytes().zip(*b"0000-00-00T00:00:00.000Z").all(|(byte, shape)| match shape {
            b'0' => byte.is_ascii_digit(),
            other => byte == other,
        })
}
