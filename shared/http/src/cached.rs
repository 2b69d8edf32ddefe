//! Cacheable responses: `Cache-Control`, `ETag`, `If-None-Match` (RFC 9110, RFC 9111).

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_domain::digest_id;
use serde::Serialize;

use crate::Problem;

/// What precedes the time of a response in its body, and the times of what it shows. Within a string of the body its quotes
/// would be escaped.
const TIMES: [&str; 3] = ["\"server_time\":\"", "\"stock_at\":\"", "\"reserved_at\":\""];
/// The length of such a time: all have the same.
const TIME_LENGTH: usize = "2026-11-21T07:06:40.428Z".len();

/// `body` as JSON, cacheable for `seconds`; or 304 if `If-None-Match` in the request's `headers` matches.
///
/// The tag is a digest of the body without any `server_time`, `stock_at` and `reserved_at`, and so a weak one: a body that
/// differs in nothing but its times has not changed. Unless it `counts_down`: a cache that is told 304 keeps the old body, and
/// a page would count down from its time.
///
/// # Errors
/// JSON cannot express the value.
pub fn cached(
    headers: &HeaderMap,
    seconds: u64,
    counts_down: bool,
    body: &impl Serialize,
) -> Result<Response, Problem> {
    let body = serde_json::to_string(body).map_err(|error| Problem::internal(error.to_string()))?;
    let digested = if counts_down { vec![body.as_str()] } else { without_times(&body) };
    let tag = format!("\"{}\"", digest_id("", &digested));
    let not_modified = etag_matches(headers, &tag);
    let tag = format!("W/{tag}");
    let cache_headers = [(header::CACHE_CONTROL, format!("public, max-age={seconds}")), (header::ETAG, tag)];
    Ok(if not_modified {
        (StatusCode::NOT_MODIFIED, cache_headers).into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], cache_headers, body).into_response()
    })
}

fn without_times(body: &str) -> Vec<&str> {
    TIMES.iter().fold(vec![body], |parts, name| {
        let parts = parts.into_iter().flat_map(|part| {
            let mut parts = part.split(name);
            let first = parts.next();
            first.into_iter().chain(parts.map(|part| part.get(TIME_LENGTH..).unwrap_or(part)))
        });
        parts.collect()
    })
}

/// Whether `If-None-Match` matches the tag, by weak comparison as the RFC requires: a proxy that compresses the body may
/// have made the tag weak.
pub fn etag_matches(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Tags of this API have no comma.
    let mut given = values.flat_map(|value| value.split(',')).map(str::trim);
    given.any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_the_same_at_another_time_and_not_with_another_name() {
        let body = |name: &str, second: u32| {
            let time = format!("2026-11-21T07:06:{second:02}.428Z");
            let item = serde_json::json!({ "name": name, "server_time": time, "stock_at": time, "reserved_at": time, "version": 1 });
            serde_json::json!({ "items": [item] }).to_string()
        };
        assert_eq!(without_times(&body("a", 1)), without_times(&body("a", 2)));
        assert_ne!(without_times(&body("a", 1)), without_times(&body("b", 1)));
        // A name that looks like the field.
        let tricky = |second: u32| format!("\"server_time\":\"2026-11-21T07:06:{second:02}.428Z");
        assert_ne!(without_times(&body(&tricky(1), 1)), without_times(&body(&tricky(2), 1)));
    }
}
