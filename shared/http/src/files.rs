//! The files of a page, compiled into the binary: revalidated each time, with headers that let the page do no more than it
//! needs.

use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use holdfast_domain::digest_id;

use crate::etag_matches;

/// The files of one page.
#[derive(Debug, Clone)]
pub struct Files {
    tag: String,
    policy: String,
}

impl Files {
    /// Of a page that may load its own files, call this API and `host`, which is empty or an origin. It cannot be framed
    /// (clickjacking), and injected scripts do not run. `contents` are all that can differ between two versions.
    pub fn new(contents: &[&str], host: &str) -> Self {
        let connect = format!("'self' {host}");
        let policy = format!(
            "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src {}; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
            connect.trim_end()
        );
        Self { tag: format!("\"{}\"", digest_id("", contents)), policy }
    }

    /// A file, or 304 if the caller has it already. `encoding` is how `body` is compressed, if it is.
    pub fn serve(
        &self,
        request_headers: &HeaderMap,
        content_type: &'static str,
        encoding: Option<&'static str>,
        body: impl Into<Body>,
    ) -> Response {
        let not_modified = etag_matches(request_headers, &self.tag);
        let mut response =
            if not_modified { StatusCode::NOT_MODIFIED.into_response() } else { Response::new(body.into()) };
        let headers = response.headers_mut();
        let mut set = |name, value: &str| {
            // Tag and policy are of ASCII.
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        if !not_modified {
            set(header::CONTENT_TYPE, content_type);
        }
        if let Some(encoding) = encoding.filter(|_| !not_modified) {
            set(header::CONTENT_ENCODING, encoding);
        }
        set(header::ETAG, &self.tag);
        // Cached, but revalidated each time, so that a deployment shows at once.
        set(header::CACHE_CONTROL, "public, no-cache");
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        set(header::REFERRER_POLICY, "no-referrer");
        set(header::CONTENT_SECURITY_POLICY, &self.policy);
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matching_etag_is_answered_with_304() {
        let files = Files { tag: "\"a\"".to_owned(), policy: String::new() };
        let ask = |tags: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::IF_NONE_MATCH, HeaderValue::from_static(tags));
            files.serve(&headers, "text/css", Some("gzip"), "body")
        };
        for tags in ["\"a\"", "W/\"a\"", "\"b\", \"a\""] {
            let answer = ask(tags);
            assert_eq!(answer.status(), StatusCode::NOT_MODIFIED, "{tags}");
            assert!(!answer.headers().contains_key(header::CONTENT_ENCODING));
        }
        assert_eq!(ask("\"b\"").status(), StatusCode::OK);
        assert_eq!(ask("\"b\"").headers()[header::CONTENT_ENCODING], "gzip");
    }
}
