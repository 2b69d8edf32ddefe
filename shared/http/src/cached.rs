//! Answers that may be kept, and asked after: `Cache-Control`, `ETag`, `If-None-Match` (RFC 9110, RFC 9111).

use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_domain::digest_id;
use serde::Serialize;

use crate::Problem;

/// `body` as JSON, good for `seconds`; or 304 without a body, where the caller of `headers` has this very answer.
///
/// The tag is a digest of the body's bytes, and so a strong one: it changes whenever anything in the answer does, and
/// with nothing else.
///
/// # Errors
/// A value that JSON cannot express.
pub fn cached(headers: &HeaderMap, seconds: u64, body: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_string(body).map_err(|error| Problem::internal(error.to_string()))?;
    let tag = format!("\"{}\"", digest_id("", &[&body]));
    let known = knows(headers, &tag);
    let about = [(header::CACHE_CONTROL, format!("public, max-age={seconds}")), (header::ETAG, tag)];
    Ok(if known {
        (StatusCode::NOT_MODIFIED, about).into_response()
    } else {
        ([(header::CONTENT_TYPE, "application/json")], about, body).into_response()
    })
}

/// Whether `If-None-Match` names the tag: by the weak comparison, as it must be done there. A proxy may have made the
/// tag weak when it compressed the body.
pub fn knows(headers: &HeaderMap, tag: &str) -> bool {
    let values = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    // Our own tags have no comma.
    let mut given = values.flat_map(|value| value.split(',')).map(str::trim);
    given.any(|given| given == "*" || given.strip_prefix("W/").unwrap_or(given) == tag)
}
