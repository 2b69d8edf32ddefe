//! From an event of API Gateway's to a request, and to the answer.
//!
//! What must always hold: whatever a client puts into its path, query, headers and body, a request comes of it. API
//! Gateway hands most of that over as it came, `lambda_http` panics where it is no URI, and a crash is what alarms are
//! for.

use axum::Router;
use axum::http::header;
use data_encoding::BASE64;
use lambda_http::aws_lambda_events::apigw::ApiGatewayV2httpRequest;
use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Error, LambdaEvent, Service as _};
use serde::Serialize;

/// The answer of `router` to an event.
///
/// # Errors
/// An event that API Gateway does not send.
pub async fn handle(
    router: Router,
    event: LambdaEvent<ApiGatewayV2httpRequest>,
) -> Result<impl Serialize + use<>, Error> {
    let LambdaEvent { payload, context } = event;
    let request = LambdaEvent::new(LambdaRequest::ApiGatewayV2(presentable(payload)?), context);
    Ok(Adapter::from(router).call(request).await?)
}

/// The same event, such that `lambda_http` can make a request of it.
fn presentable(mut event: ApiGatewayV2httpRequest) -> Result<ApiGatewayV2httpRequest, Error> {
    // The URI would begin with these, and nothing here asks for it.
    event.headers.remove(header::HOST);
    event.request_context.domain_name = None;
    // A path has been decoded: there it is no query and no fragment that begins with these signs.
    let path = event.raw_path.unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let path = format!("{slash}{}", path.replace('?', "%3F").replace('#', "%23"));
    let query = event.raw_query_string.as_deref().map(encoded).unwrap_or_default();
    if path.len() + query.len() > LONGEST {
        return Err("a path and a query that are too long for a URI".into());
    }
    event.raw_path = Some(path);
    event.raw_query_string = Some(query);
    if event.is_base64_encoded {
        let body = BASE64.decode(event.body.unwrap_or_default().as_bytes())?;
        // Written anew: of what counts as base64, `lambda_http` knows less than others.
        event.body = Some(BASE64.encode(&body));
    }
    Ok(event)
}

/// A third of the longest URI: its signs may become three each. API Gateway takes 10,240 bytes, headers included.
const LONGEST: usize = (u16::MAX as usize - 1) / 3;

/// A query with every sign encoded that a URI does not take. It says the same.
fn encoded(query: &str) -> String {
    let mut text = String::with_capacity(query.len());
    for byte in query.bytes() {
        match byte {
            b'"' | b'#' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => text.push_str(&percent(byte)),
            byte if byte.is_ascii_graphic() => text.push(char::from(byte)),
            byte => text.push_str(&percent(byte)),
        }
    }
    text
}

fn percent(byte: u8) -> String {
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

    /// A router that says what it was asked.
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
    async fn whatever_stands_in_a_query_arrives() {
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
    async fn whatever_stands_in_a_path_is_a_path() {
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
    async fn no_header_of_a_client_is_part_of_the_address() {
        for (name, value) in [("host", "a b"), ("host", ":"), ("host", ""), ("x-forwarded-proto", "?"), ("host", "[")] {
            let mut event = event("/things/x", "");
            event["headers"][name] = value.into();
            assert_eq!(ask(event).await.unwrap().0, 200, "{name}: {value}");
        }
    }

    #[tokio::test]
    async fn what_api_gateway_never_sends_is_an_error_and_no_crash() {
        let long = "x".repeat(LONGEST);
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
