//! Authentication: the authorizer's claims, and bearer tokens on the local stack.

use std::sync::LazyLock;

use axum::extract::FromRequestParts as _;
use axum::http::{HeaderValue, Request, header, request::Parts};
use data_encoding::BASE64URL_NOPAD;
use holdfast_http::{Authenticator, Caller, LOCAL_AUDIENCE, LOCAL_ISSUER};
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use serde_json::{Value, json};

use crate::answers::is_printable;
use crate::request::request;

/// The key that signs the tokens. No input contains a signature made with it, unless somebody adds one.
const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

static AUTHENTICATOR: LazyLock<Authenticator> = LazyLock::new(|| {
    let key = json!({"kty": "oct", "kid": "local", "alg": "HS256", "k": BASE64URL_NOPAD.encode(SECRET)});
    Authenticator::default().with_local_keys(&json!({ "keys": [key] }).to_string()).expect("a key set")
});

/// The input as claims from the authorizer (lines with `@`, as in `src/request.rs`), as an `Authorization` header, and
/// as the claims of a correctly signed token. The caller and their roles must be those of the claims.
pub fn callers(input: &[u8]) {
    of_the_authorizer(input);
    of_a_header(input);
    of_a_signed_token(input);
}

fn of_the_authorizer(input: &[u8]) {
    let event = request(&[b"GET /\n", input].concat()).event;
    let claims = event["requestContext"]["authorizer"]["jwt"]["claims"].clone();
    let parts = lambda_http::request::from_str(&event.to_string()).expect("an event").into_parts().0;
    let caller = caller(parts);
    let Some(sub) = claims["sub"].as_str().filter(|sub| is_name(sub)) else {
        assert_eq!(caller, None, "without a name: {claims}");
        return;
    };
    let caller = caller.unwrap_or_else(|| panic!("nobody: {claims}"));
    let roles = claims["cognito:groups"].as_str().unwrap_or_default();
    let list = roles.strip_prefix('[').and_then(|roles| roles.strip_suffix(']')).unwrap_or(roles);
    let flat = !list.contains(['[', ']', '{', '}', '"', '\'', ',']);
    // Other characters may separate words too, and are not part of a word.
    let plain = flat && list.split(' ').all(|word| !word.contains(divides));
    let is = |role| plain && list.split(' ').any(|word| word == role);
    let roles = (caller.service, caller.admin, caller.auditor);
    assert_eq!((caller.id.as_str(), roles), (sub, (is("service"), is("admin"), is("auditor"))), "{claims}");
}

fn of_a_header(input: &[u8]) {
    for scheme in [&b""[..], b"Bearer "] {
        let Ok(value) = HeaderValue::from_bytes(&[scheme, input].concat()) else { continue };
        let Some(caller) = bearer(&value) else { continue };
        let token = value.to_str().expect("what got in is text").get(7..).expect("a token");
        let (message, signature) = token.rsplit_once('.').expect("a token");
        assert_eq!(signature, sign(message), "a token that nobody signed: {token}");
        let claims = message.split('.').nth(1).and_then(|claims| BASE64URL_NOPAD.decode(claims.as_bytes()).ok());
        is_as_claimed(&caller, &claims.expect("claims"));
    }
}

fn of_a_signed_token(input: &[u8]) {
    let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","kid":"local"}"#);
    let message = format!("{header}.{}", BASE64URL_NOPAD.encode(input));
    let value = HeaderValue::from_str(&format!("Bearer {message}.{}", sign(&message))).expect("a header");
    if let Some(caller) = bearer(&value) {
        is_as_claimed(&caller, input);
    }
}

fn sign(message: &str) -> String {
    crypto::sign(message.as_bytes(), &EncodingKey::from_secret(SECRET), Algorithm::HS256).expect("a signature")
}

fn is_as_claimed(caller: &Caller, claims: &[u8]) {
    let claims: Value = serde_json::from_slice(claims).expect("claims");
    assert_eq!(claims["sub"], caller.id.as_str(), "{claims}");
    assert!(is_name(caller.id.as_str()), "{claims}");
    let names = |claim: &Value, wanted: &str| {
        claim == wanted || claim.as_array().is_some_and(|list| list.iter().any(|one| one == wanted))
    };
    assert!(names(&claims["iss"], LOCAL_ISSUER) && names(&claims["aud"], LOCAL_AUDIENCE), "{claims}");
    // In any case later than this file was written.
    assert!(claims["exp"].as_f64().is_some_and(|at| at > 1_700_000_000.0), "{claims}");
    // A token that is valid only from the year 2100 on is not accepted yet.
    assert!(claims.get("nbf").is_none_or(|at| at.as_f64().is_some_and(|at| at < 4_102_444_800.0)), "{claims}");
    for (role, has) in [("service", caller.service), ("admin", caller.admin), ("auditor", caller.auditor)] {
        let roles = &claims["cognito:groups"];
        let said = match roles {
            Value::Array(roles) => roles.iter().any(|one| one == role) && roles.iter().all(Value::is_string),
            Value::String(roles) => roles.split([' ', '[', ']']).any(|one| one == role),
            _ => false,
        };
        assert!(said || !has, "{claims}");
    }
}

/// A valid `sub`: not a guest's.
fn is_name(text: &str) -> bool {
    is_printable(text) && !text.starts_with("guest:")
}

/// Characters that may separate words, apart from the space.
fn divides(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "()<>`;\\".contains(c)
}

fn bearer(value: &HeaderValue) -> Option<Caller> {
    let request = Request::builder().header(header::AUTHORIZATION, value).body(()).expect("a request");
    caller(request.into_parts().0)
}

fn caller(mut parts: Parts) -> Option<Caller> {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime =
            tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    }
    parts.extensions.insert(AUTHENTICATOR.clone());
    RUNTIME.with(|runtime| runtime.block_on(Caller::from_request_parts(&mut parts, &())).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Otherwise the target could pass by refusing every caller.
    #[test]
    fn a_token_with_valid_claims_is_accepted() {
        let claims = json!({"iss": LOCAL_ISSUER, "aud": LOCAL_AUDIENCE, "sub": "alice", "exp": 4_102_444_800_u64,
            "cognito:groups": ["admin"]});
        let header = BASE64URL_NOPAD.encode(br#"{"alg":"HS256","kid":"local"}"#);
        let message = format!("{header}.{}", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let token = format!("Bearer {message}.{}", sign(&message));
        let caller = bearer(&HeaderValue::from_str(&token).unwrap()).unwrap();
        assert_eq!((caller.id.as_str(), caller.service, caller.admin), ("alice", false, true));
        callers(token.as_bytes());
        callers(claims.to_string().as_bytes());
    }
}
