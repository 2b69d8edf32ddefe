//! Cacheable responses: `Cache-Control`, `ETag`, `If-None-Match` (RFC 9110, RFC 9111).

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_domain::digest_id;
use serde::Serialize;

use crate::Problem;

/// `body` as JSON, cacheable for `seconds`; or 304 if `If-None-Match` in the request's `headers` matches.
///
/// The tag is a digest of the body, and so a strong one.
///
/// # Errors
/// JSON cannot express the value.
pub fn cached(headers: &HeaderMap, seconds: u64, body: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_string(body).map_err(|error| Problem::internal(error.to_string()))?;
    let tag = format!("\"{}\"", digest_id("", &[&body]));
    let not_modified = etag_matches(headers, &tag);
    let cache_headers = [(header::CACHE_CONTROL, format!("public, max-age={seconds}")), (header::ETAG, tag)];
    Ok(if not_modified {
        (StatusCode::NOT_MODIFIED, cache_headers).into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], cache_headers, body).into_response()
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
