//! A request as a text that a fuzzer can edit and a person can read, and the event that API Gateway would make of it:
//!
//! ```text
//! POST /reservations?dry=run
//! @sub alice
//! @cognito:groups [service]
//! Idempotency-Key: basket-1
//!
//! {"lines":[]}
//! ```
//!
//! Lines with `@` are claims of a token that the authorizer has checked; without any, there is no token.

use std::sync::LazyLock;

use axum::http::{HeaderName, HeaderValue, Method};
use data_encoding::BASE64;
use holdfast_testkit::event::event;
use serde_json::{Map, Value};

/// A parsed text.
pub(crate) struct Request {
    pub(crate) path: String,
    /// The length of its path and query together.
    pub(crate) target: usize,
    /// The whole event.
    pub(crate) event: Value,
}

/// The request that a text describes. Every text describes one.
pub(crate) fn request(text: &[u8]) -> Request {
    static FRAME: LazyLock<Value> = LazyLock::new(|| event("catalog/list"));
    let (head, body) = match text.windows(2).position(|pair| pair == b"\n\n") {
        Some(at) => (&text[..at], &text[at + 2..]),
        None => (text, &[][..]),
    };
    let head = String::from_utf8_lossy(head);
    let mut lines = head.split('\n');
    let (method, target) = lines.next().unwrap_or_default().split_once(' ').unwrap_or_default();
    let method: Method = method.parse().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));

    let mut event = FRAME.clone();
    let (mut headers, mut claims) = (Map::new(), Map::new());
    for line in lines {
        if let Some((name, value)) = line.strip_prefix('@').and_then(|claim| claim.split_once(' ')) {
            claims.insert(name.to_owned(), value.into());
        } else if let Some((name, value)) = line.split_once(':') {
            let value = value.trim();
            // API Gateway passes only valid headers on, and joins those with the same name.
            if HeaderName::from_bytes(name.as_bytes()).is_ok() && HeaderValue::from_str(value).is_ok() {
                let joined = match headers.get(&name.to_ascii_lowercase()).and_then(Value::as_str) {
                    Some(first) => format!("{first},{value}"),
                    None => value.to_owned(),
                };
                headers.insert(name.to_ascii_lowercase(), joined.into());
            }
        }
    }
    event["rawPath"] = path.into();
    event["rawQueryString"] = query.into();
    event["headers"] = headers.into();
    let context = &mut event["requestContext"];
    context["http"]["path"] = path.into();
    context["http"]["method"] = method.as_str().into();
    context["authorizer"] =
        if claims.is_empty() { Value::Null } else { serde_json::json!({ "jwt": { "claims": claims } }) };
    let (encoded, body) = match str::from_utf8(body) {
        Ok(text) => (false, text.to_owned()),
        Err(_) => (true, BASE64.encode(body)),
    };
    event["isBase64Encoded"] = encoded.into();
    event["body"] = body.into();
    Request { path: path.to_owned(), target: target.len(), event }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_the_event_that_it_describes() {
        let text = b"POST /reservations?a=b&c\n@sub alice\n@cognito:groups [service]\nIdempotency-Key: k\n\
                     idempotency-key:  l\nbad name: x\n\n{\"lines\":[]}\n\nmore";
        let Request { path, target: _, event } = request(text);
        assert_eq!(path, "/reservations");
        assert_eq!(event["requestContext"]["http"]["method"], "POST");
        assert_eq!((&event["rawPath"], &event["rawQueryString"]), (&"/reservations".into(), &"a=b&c".into()));
        assert_eq!(event["headers"], serde_json::json!({ "idempotency-key": "k,l" }));
        let claims = &event["requestContext"]["authorizer"]["jwt"]["claims"];
        assert_eq!(claims, &serde_json::json!({ "sub": "alice", "cognito:groups": "[service]" }));
        assert_eq!(event["body"], "{\"lines\":[]}\n\nmore");
    }

    #[test]
    fn a_body_that_is_not_text_is_encoded() {
        let event = request(b"POST /\n\n\xff\xfe").event;
        assert_eq!((&event["body"], &event["isBase64Encoded"]), (&"//4=".into(), &true.into()));
    }

    #[test]
    fn any_bytes_are_a_request() {
        for text in [&b""[..], b"\n\n", b"GET", b" ", b"\xff \xff?\xff\n@\n:\n\n"] {
            assert!(request(text).event["requestContext"]["authorizer"].is_null(), "{text:?}");
        }
    }
}
