//! Turns an event of API Gateway into a request, and the response into the function's result.
//!
//! Invariant: any path, query, headers and body of a client make a request. API Gateway passes most of them on unchanged,
//! `lambda_http` panics if they make no valid URI, and a crash raises an alarm.

use axum::Router;
use axum::http::header;
use data_encoding::BASE64;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Error, LambdaEvent, Service as _};
use serde::Serialize;

/// Answers an event with `router`.
///
/// # Errors
/// API Gateway would not send this event.
pub async fn handle(
    router: Router,
    event: LambdaEvent<ApiGatewayV2httpRequest>,
) -> Result<impl Serialize + use<>, Error> {
    let LambdaEvent { payload, context } = event;
    let request = LambdaEvent::new(LambdaRequest::ApiGatewayV2(sanitize(payload)?), context);
    // The adapter cannot be sent to another thread while it waits; its answer can.
    let answer = Adapter::from(router).call(request);
    Ok(answer.await?)
}

/// Escapes the event so that `lambda_http` can make a request of it.
fn sanitize(mut event: ApiGatewayV2httpRequest) -> Result<ApiGatewayV2httpRequest, Error> {
    // `lambda_http` would put these into the URI, and no handler reads them.
    event.headers.remove(header::HOST);
    event.request_context.domain_name = None;
    // The path has been decoded: these characters do not begin a query or fragment.
    let path = event.raw_path.unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("{slash}{}", path.replace('?', "%3F").replace('#', "%23"));
    let query = event.raw_query_string.as_deref().map(encode_query).unwrap_or_default();
    if path.len() + query.len() > MAX_URI_BYTES {
        return Err("path and query are too long for a URI".into());
    }
    event.raw_path = Some(path);
    event.raw_query_string = Some(query);
    if event.is_base64_encoded {
        let body = BASE64.decode(event.body.unwrap_or_default().as_bytes())?;
        // Encoded again, because `lambda_http` accepts fewer variants of base64.
        event.body = Some(BASE64.encode(&body));
    }
    Ok(event)
}

/// A third of the longest URI, because each byte may become three. API Gateway takes 10,240 bytes, headers included.
const MAX_URI_BYTES: usize = (u16::MAX as usize - 1) / 3;

/// Percent-encodes each byte that a URI must not contain.
fn encode_query(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for byte in query.bytes() {
        match byte {
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => text += &percent_encode(byte),
            byte if byte.is_ascii_graphic() => text.push(char::from(byte)),
            byte => text += &percent_encode(byte),
        }
    }
    text
}

fn percent_encode(byte: u8) -> String {
    format!("%{byte:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Authenticator, Query, serve};
    use axum::extract::Path;
    use axum::routing::get;
    use lambda_http::Context;
    use serde_json::{Value, json};
    use std::collections::BTreeMap;

    fn event(path: &str, query: &str) -> Value {
        json!({
            "version": "2.0", "routeKey": "$default", "rawPath": path, "rawQueryString": query,
            "headers": {"host": "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com", "x-forwarded-proto": "https"},
            "requestContext": {
                "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default",
                "timeEpoch": 0, "domainName": "a1b2c3d4e5.execute-api.eu-west-1.amazonaws.com",
                "http": {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
            },
            "isBase64Encoded": false,
        })
    }

    /// The response of a router that echoes the request.
    async fn ask(event: Value) -> Result<(u64, Value), Error> {
        let echo = async |Path(id): Path<String>, Query(query): Query<BTreeMap<String, String>>, body: String| {
            json!([id, query, body]).to_string()
        };
        let router = serve(Router::new().route("/things/{id}", get(echo)), Authenticator::default());
        let event = LambdaEvent::new(serde_json::from_value(event)?, Context::default());
        let answer = serde_json::to_value(handle(router, event).await?)?;
        let body = serde_json::from_str(answer["body"].as_str().unwrap()).unwrap();
        Ok((answer["statusCode"].as_u64().unwrap(), body))
    }

    #[tokio::test]
    async fn a_query_arrives_unchanged() {
        for (query, meant) in [
            ("", json!({})),
            ("a=b&c=d%20e+f", json!({"a": "b", "c": "d e f"})),
            ("a=<b>", json!({"a": "<b>"})),
            ("a= ", json!({"a": " "})),
            ("a=#b?c", json!({"a": "#b?c"})),
            ("a={\"b\":[1|2]}\\^`", json!({"a": "{\"b\":[1|2]}\\^`"})),
            ("a=\u{e9}\u{1f4a5}", json!({"a": "\u{e9}\u{1f4a5}"})),
            ("a=\u{0}\u{7f}\n", json!({"a": "\u{0}\u{7f}\n"})),
            ("a=%", json!({"a": "%"})),
        ] {
            assert_eq!(ask(event("/things/x", query)).await.unwrap(), (200, json!(["x", meant, ""])), "{query:?}");
        }
    }

    #[tokio::test]
    async fn a_path_stays_a_path() {
        for (path, id) in [
            ("/things/x", "x"),
            ("things/x", "x"),
            ("/things/x?y", "x?y"),
            ("/things/x#y", "x#y"),
            ("/things/a b<c>\"{\u{e9}\u{1f4a5}", "a b<c>\"{\u{e9}\u{1f4a5}"),
        ] {
            assert_eq!(ask(event(path, "")).await.unwrap(), (200, json!([id, {}, ""])), "{path:?}");
        }
        for path in ["", "/", ":80/things", "//[", "\u{0}", "/things/x/y"] {
            assert_eq!(ask(event(path, "")).await.unwrap().1["code"], "route_not_found", "{path:?}");
        }
    }

    #[tokio::test]
    async fn a_clients_headers_are_not_part_of_the_uri() {
        for (name, value) in [("host", "a b"), ("host", ":"), ("host", ""), ("x-forwarded-proto", "?"), ("host", "[")] {
            let mut event = event("/things/x", "");
            event["headers"][name] = value.into();
            assert_eq!(ask(event).await.unwrap().0, 200, "{name}: {value}");
        }
    }

    #[tokio::test]
    async fn an_event_that_api_gateway_never_sends_is_an_error() {
        let long = "x".repeat(MAX_URI_BYTES);
        assert!(ask(event("/things/x", &long)).await.is_err());
        assert!(ask(event(&format!("/{long}"), "")).await.is_err());
        for (body, meant) in [("aGk=", Some("hi")), ("", Some("")), ("?", None), ("aGk", None), ("aGl=", None)] {
            let mut event = event("/things/x", "");
            (event["body"], event["isBase64Encoded"]) = (body.into(), true.into());
            let said = ask(event).await.ok().map(|(_, said)| said);
            assert_eq!(said, meant.map(|meant| json!(["x", {}, meant])), "{body}");
        }
        assert!(ask(json!({})).await.is_err());
    }
}
