//! Single values: ids, keys, references, currencies, times, lengths.

use std::fmt::Display;

use axum::extract::FromRequestParts as _;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use futures_util::FutureExt as _;
use holdfast_domain::text::is_line;
use holdfast_domain::{
    Currency, CustomerId, HoldSeconds, IdempotencyKey, Invalid, PaymentReference, ProductId, ReservationId,
};
use holdfast_http::{ApiTime, Key, etag_matches};
use serde_json::{Value, json};

use crate::answers::{is_printable, is_product_id, is_reservation_id, is_shown_time};

/// The input as every kind of value: accepted exactly where its documentation says so, and then unchanged when it is
/// written and read again.
pub fn values(input: &[u8]) {
    let text = &*String::from_utf8_lossy(input);
    name::<ProductId>(text, is_product_id(text));
    name::<ReservationId>(text, is_reservation_id(text));
    name::<CustomerId>(text, is_printable(text));
    name::<IdempotencyKey>(text, is_printable(text));
    name::<PaymentReference>(text, is_printable(text));

    let capitals = text.len() == 3 && text.chars().all(|c| c.is_ascii_uppercase());
    match (Currency::in_force(text), Currency::try_from(text.to_owned())) {
        (Ok(new), stored) => {
            assert!(capitals && stored == Ok(new), "{text:?} can be given, and not read again");
            assert_eq!((String::from(new).as_str(), new.exponent() <= 4), (text, true));
        }
        (Err(_), Ok(stored)) => assert!(capitals && stored.as_str() == text, "{text:?} as {stored:?}"),
        (Err(refused), Err(_)) => assert_eq!(refused.field, "currency"),
    }
    let line = is_line(text, 200);
    assert!(!line || (!text.trim().is_empty() && text.chars().count() <= 200), "{text:?}");
    assert!(line || !text.chars().all(|c| c.is_ascii_graphic()) || !(1..=200).contains(&text.len()), "{text:?}");

    if let Ok(number) = serde_json::from_str::<Value>(text) {
        let hold: Option<HoldSeconds> = serde_json::from_value(number.clone()).ok();
        let whole = number.as_u64().filter(|seconds| (10..=3_600).contains(seconds));
        assert_eq!(hold.map(|hold| u64::from(u32::from(hold))), whole, "{number}");
    }
    time(text);
    key(input, text);
    tags(input, text);
}

fn name<T>(text: &str, valid: bool)
where
    T: TryFrom<String, Error = Invalid> + Into<String> + Display + Clone,
{
    match T::try_from(text.to_owned()) {
        Ok(name) => {
            assert!(valid, "{text:?} is taken");
            assert_eq!((name.to_string(), name.into()), (text.to_owned(), text.to_owned()));
        }
        Err(invalid) => assert!(!valid, "{text:?} is refused: {invalid}"),
    }
}

/// An accepted time can be shown, and is unchanged then.
fn time(text: &str) {
    if let Ok(time) = serde_json::from_value::<ApiTime>(json!(text)) {
        let shown = serde_json::to_value(time).expect("what is taken can be shown");
        let again: ApiTime = serde_json::from_value(shown.clone()).expect("what is shown can be read");
        assert_eq!(again, time, "{text} as {shown}");
        assert!(shown.as_str().is_some_and(is_shown_time), "{shown}");
    }
}

/// The header `Idempotency-Key`: as a bare word, as a structured field's string, and as two headers.
fn key(input: &[u8], text: &str) {
    let read = |values: &[&[u8]]| -> Option<Option<String>> {
        let mut request = Request::builder();
        for value in values {
            request = request.header("idempotency-key", HeaderValue::from_bytes(value).ok()?);
        }
        let mut parts = request.body(()).expect("a request").into_parts().0;
        let key = Key::from_request_parts(&mut parts, &()).now_or_never().expect("nothing to wait for");
        Some(key.ok().map(|key| key.0.into()))
    };
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    if let Some(Some(key)) = read(&[input]) {
        assert!(is_printable(&key), "{key:?}");
        assert_eq!(read(&[quoted(&key).as_bytes()]), Some(Some(key)));
    }
    if is_printable(text) {
        assert_eq!(read(&[quoted(text).as_bytes()]), Some(Some(text.to_owned())), "in quotes");
        let bare = !text.starts_with('"') && !text.contains(',');
        if bare {
            assert_eq!(read(&[text.as_bytes()]), Some(Some(text.to_owned())), "bare");
        }
        assert_eq!(read(&[input, input]), Some(None), "two of them");
    }
}

/// The header `If-None-Match`: a tag matches if the header names it, and only then.
fn tags(input: &[u8], text: &str) {
    const TAG: &str = "\"a2b3c4\"";
    let Ok(value) = HeaderValue::from_bytes(input) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(header::IF_NONE_MATCH, value);
    let known = etag_matches(&headers, TAG);
    assert!(!known || text.contains(TAG) || text.contains('*'), "{text:?}");
    headers.append(header::IF_NONE_MATCH, HeaderValue::from_static("W/\"x\", W/\"a2b3c4\""));
    assert!(etag_matches(&headers, TAG), "{text:?}");
}
