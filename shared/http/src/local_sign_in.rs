//! Sign-in on the local stack, which has no authorizer: the functions verify bearer tokens against the key set in
//! `HOLDFAST_LOCAL_KEY_SET`. The feature `local-sign-in` compiles it in, which only the local stack and tests enable.

use std::collections::HashMap;
use std::sync::Arc;

use axum::http::{header, request::Parts};
use holdfast_aws::config::{ConfigError, local_key_set};
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use crate::caller::{Authenticator, Caller, caller_of, is_plain, roles_of_text};
use crate::problem::Unauthenticated;

#[cfg(not(debug_assertions))]
compile_error!(
    "a release must not accept local tokens: build the package of the function alone, without `local-sign-in`"
);

/// The issuer of local tokens.
pub const LOCAL_ISSUER: &str = "https://holdfast.local";
/// Their audience.
pub const LOCAL_AUDIENCE: &str = "holdfast";

/// The keys of local tokens.
#[derive(Clone)]
pub(crate) struct LocalKeys(Arc<JwkSet>);

impl Authenticator {
    /// Also accepts tokens signed with a key of this JSON Web Key Set, if the request has no authorizer's claims.
    ///
    /// # Errors
    /// The text is not a key set.
    pub fn with_local_keys(self, key_set: &str) -> Result<Self, serde_json::Error> {
        Ok(Self { local_keys: Some(LocalKeys(Arc::new(serde_json::from_str(key_set)?))), ..self })
    }

    pub(crate) fn with_keys_of_environment(self) -> Result<Self, ConfigError> {
        let Some(key_set) = local_key_set() else { return Ok(self) };
        let problem = "is not a JSON Web Key Set";
        self.with_local_keys(&key_set).map_err(|_| ConfigError { name: "HOLDFAST_LOCAL_KEY_SET", problem })
    }
}

impl LocalKeys {
    /// The caller by the bearer token, with the roles in `roles_claim`.
    pub(crate) fn caller(&self, parts: &Parts, roles_claim: &str) -> Result<Caller, Unauthenticated> {
        let token = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token = token.and_then(|token| token.split_at_checked(7));
        let token = token.filter(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer ") && !token.is_empty());
        let (_, token) = token.ok_or(Unauthenticated::Missing)?;
        match self.claims(token) {
            Some(Ok(claims)) => caller_of_claims(&claims, roles_claim),
            Some(Err(error)) if *error.kind() == ErrorKind::ExpiredSignature => Err(Unauthenticated::Expired),
            Some(Err(_)) | None => Err(Unauthenticated::Invalid),
        }
    }

    /// The verified claims; `None` if no key of the set could have signed the token.
    fn claims(&self, token: &str) -> Option<jsonwebtoken::errors::Result<HashMap<String, Value>>> {
        let header = jsonwebtoken::decode_header(token).ok()?;
        // Extensions that a recipient must understand (RFC 7515, 4.1.11); none is supported.
        if header.crit.is_some() {
            return None;
        }
        let key = DecodingKey::from_jwk(self.0.find(&header.kid?)?).ok()?;
        // A fixed algorithm, never the token's own: it may say "none", or use a public key as a secret.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[LOCAL_ISSUER]);
        validation.set_audience(&[LOCAL_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        Some(jsonwebtoken::decode(token, &key, &validation).map(|token| token.claims))
    }
}

fn caller_of_claims(claims: &HashMap<String, Value>, roles_claim: &str) -> Result<Caller, Unauthenticated> {
    let roles = match claims.get(roles_claim) {
        Some(Value::Array(roles)) => {
            let words: Option<Vec<&str>> = roles.iter().map(Value::as_str).collect();
            words.filter(|words| words.iter().all(|word| is_plain(word))).unwrap_or_default()
        }
        Some(Value::String(roles)) => roles_of_text(roles),
        _ => Vec::new(),
    };
    caller_of(|name| claims.get(name).and_then(Value::as_str), &roles)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::tests::authorized;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn authenticator() -> Authenticator {
        let key =
            json!({"kty": "oct", "kid": "local", "alg": "HS256", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"});
        Authenticator::default().with_local_keys(&json!({ "keys": [key] }).to_string()).unwrap()
    }

    fn claims() -> Value {
        json!({"iss": LOCAL_ISSUER, "aud": LOCAL_AUDIENCE, "sub": "alice", "exp": 4_102_444_800_u64})
    }

    fn token(algorithm: Algorithm, kid: Option<&str>, claims: &Value, secret: &[u8]) -> String {
        let header = Header { kid: kid.map(str::to_owned), ..Header::new(algorithm) };
        jsonwebtoken::encode(&header, claims, &EncodingKey::from_secret(secret)).unwrap()
    }

    fn parts(authorization: Option<&str>) -> Parts {
        let mut request = axum::http::Request::builder();
        if let Some(value) = authorization {
            request = request.header("authorization", value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn with(change: impl Fn(&mut Value)) -> Value {
        let mut claims = claims();
        change(&mut claims);
        claims
    }

    #[test]
    fn a_token_of_the_local_key_is_accepted() {
        let bearer = |claims: &Value| format!("Bearer {}", token(Algorithm::HS256, Some("local"), claims, SECRET));
        let caller = authenticator().caller(&parts(Some(&bearer(&claims())))).unwrap();
        assert_eq!((caller.id.as_str(), caller.service, caller.admin), ("alice", false, false));
        for (groups, service, admin) in [
            (json!(["admin"]), false, true),
            (json!(["service"]), true, false),
            (json!(["x", "service", "admin"]), true, true),
            (json!(["Admin", "administrator", "service admin"]), false, false),
            (json!(["x", ["admin"], "admin"]), false, false),
            (json!([["x", "admin", "y"]]), false, false),
            (json!(["admin", 1]), false, false),
            (json!(["admin", null]), false, false),
            (json!(["admin", "a,b"]), false, false),
            (json!(["admin", "\"x\""]), false, false),
            (json!(["admin", ""]), false, false),
            (json!("[[x admin y]]"), false, false),
            (json!("x admin"), false, true),
            (json!({ "admin": true }), false, false),
            (json!(true), false, false),
        ] {
            let token = bearer(&with(|claims| claims["cognito:groups"] = groups.clone()));
            let caller = authenticator().caller(&parts(Some(&token))).unwrap();
            assert_eq!((caller.service, caller.admin), (service, admin), "{groups}");
        }
    }

    #[test]
    fn an_invalid_token_is_refused() {
        let good = token(Algorithm::HS256, Some("local"), &claims(), SECRET);
        let local = |claims: Value| token(Algorithm::HS256, Some("local"), &claims, SECRET);
        let critical = |names: &[&str]| {
            let crit = Some(names.iter().map(|name| (*name).to_owned()).collect());
            let header = Header { kid: Some("local".to_owned()), crit, ..Header::new(Algorithm::HS256) };
            jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(SECRET)).unwrap()
        };
        let unsigned = {
            let mut pieces = good.split('.');
            // {"alg":"none","kid":"local"}
            format!("eyJhbGciOiJub25lIiwia2lkIjoibG9jYWwifQ.{}.", pieces.nth(1).unwrap())
        };
        let tampered = format!("{}x", &good[..good.len() - 1]);
        let wrong = [
            ("no token", None),
            ("no scheme", Some(good.clone())),
            ("another scheme", Some(format!("Basic {good}"))),
            ("nothing behind the scheme", Some("Bearer ".to_owned())),
            ("no token at all", Some("Bearer a.b.c".to_owned())),
            ("expired", Some(format!("Bearer {}", local(with(|c| c["exp"] = json!(1_000_000_000)))))),
            (
                "without expiry",
                Some(format!("Bearer {}", local(with(|c| _ = c.as_object_mut().unwrap().remove("exp"))))),
            ),
            ("another issuer", Some(format!("Bearer {}", local(with(|c| c["iss"] = json!("https://evil.example")))))),
            ("another audience", Some(format!("Bearer {}", local(with(|c| c["aud"] = json!("other")))))),
            ("without sub", Some(format!("Bearer {}", local(with(|c| _ = c.as_object_mut().unwrap().remove("sub")))))),
            ("not yet good", Some(format!("Bearer {}", local(with(|c| c["nbf"] = json!(4_102_444_000_u64)))))),
            ("valid from an invalid date", Some(format!("Bearer {}", local(with(|c| c["nbf"] = json!("tomorrow")))))),
            ("a guest", Some(format!("Bearer {}", local(with(|c| c["sub"] = json!("guest:alice")))))),
            ("a sub with blanks", Some(format!("Bearer {}", local(with(|c| c["sub"] = json!("alice ")))))),
            ("with what must be understood", Some(format!("Bearer {}", critical(&["b64"])))),
            ("with what nobody knows", Some(format!("Bearer {}", critical(&["urn:example:shop"])))),
            ("with an empty list of it", Some(format!("Bearer {}", critical(&[])))),
            ("an ID token", Some(format!("Bearer {}", local(with(|c| c["token_use"] = json!("id")))))),
            ("an empty sub", Some(format!("Bearer {}", local(with(|c| c["sub"] = json!("")))))),
            ("another key", Some(format!("Bearer {}", token(Algorithm::HS256, Some("local"), &claims(), b"another")))),
            ("an unknown key id", Some(format!("Bearer {}", token(Algorithm::HS256, Some("x"), &claims(), SECRET)))),
            ("no key id", Some(format!("Bearer {}", token(Algorithm::HS256, None, &claims(), SECRET)))),
            (
                "another algorithm",
                Some(format!("Bearer {}", token(Algorithm::HS512, Some("local"), &claims(), SECRET))),
            ),
            ("unsigned", Some(format!("Bearer {unsigned}"))),
            ("tampered with", Some(format!("Bearer {tampered}"))),
        ];
        for (what, authorization) in wrong {
            let why = match what {
                "no token" | "no scheme" | "another scheme" | "nothing behind the scheme" => Unauthenticated::Missing,
                "expired" => Unauthenticated::Expired,
                "an ID token" => Unauthenticated::IdToken,
                _ => Unauthenticated::Invalid,
            };
            assert_eq!(authenticator().caller(&parts(authorization.as_deref())), Err(why), "{what}");
        }
    }

    #[test]
    fn without_claims_and_key_set_every_caller_is_unauthenticated() {
        let good = format!("Bearer {}", token(Algorithm::HS256, Some("local"), &claims(), SECRET));
        assert_eq!(Authenticator::default().caller(&parts(Some(&good))), Err(Unauthenticated::Missing));
    }

    #[test]
    fn the_authorizers_claims_take_precedence_over_a_token() {
        let mut parts = authorized(&json!({"sub": "bob", "cognito:groups": "[shop admin]"}));
        let caller = Authenticator::default().caller(&parts).unwrap();
        assert_eq!((caller.id.as_str(), caller.service, caller.admin), ("bob", false, true));
        // Even if the request also has a token of the local key.
        let local = token(Algorithm::HS256, Some("local"), &claims(), SECRET);
        parts.headers.insert("authorization", format!("Bearer {local}").parse().unwrap());
        assert_eq!(authenticator().caller(&parts).unwrap().id.as_str(), "bob");
    }
}
