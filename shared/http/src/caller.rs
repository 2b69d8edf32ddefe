//! Who calls.
//!
//! Deployed, API Gateway's JWT authorizer has checked the token, and its claims come with the event: nothing that a
//! client sends can put them there. Behind `cargo lambda watch`, which has no authorizer, the function checks the token
//! itself against a key set that only the local stack sets. With neither, nobody gets in.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::{header, request::Parts};
use holdfast_domain::CustomerId;
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use lambda_http::request::RequestContext;
use serde_json::Value;

use crate::Problem;

/// The issuer of local tokens.
pub const LOCAL_ISSUER: &str = "https://holdfast.local";
/// Their audience.
pub const LOCAL_AUDIENCE: &str = "holdfast";
/// The claim that carries the roles, in the way of Cognito.
const GROUPS: &str = "cognito:groups";

/// What a caller may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Their own reservations.
    Customer,
    /// Products, stock, failed confirmations, and everybody's reservations.
    Admin,
}

/// The verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub id: CustomerId,
    /// What they may do.
    pub role: Role,
}

/// The verified caller, who is an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin(pub CustomerId);

/// How callers are verified.
#[derive(Clone, Default)]
pub struct Authenticator {
    local_keys: Option<Arc<JwkSet>>,
}

impl Authenticator {
    /// Believes the authorizer's claims, and where there are none, tokens signed with a key of `local_key_set`.
    ///
    /// # Errors
    /// A key set that is none.
    pub fn new(local_key_set: Option<&str>) -> Result<Self, serde_json::Error> {
        let local_keys = local_key_set.map(serde_json::from_str).transpose()?.map(Arc::new);
        Ok(Self { local_keys })
    }

    fn caller(&self, parts: &Parts) -> Option<Caller> {
        match authorizer_claims(parts) {
            Some(claims) => caller(claims.get("sub")?, &groups_of_text(claims.get(GROUPS).map_or("", String::as_str))),
            None => self.local_caller(parts),
        }
    }

    fn local_caller(&self, parts: &Parts) -> Option<Caller> {
        let keys = self.local_keys.as_ref()?;
        let token = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let token = token.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer "))?.1;
        let key_id = jsonwebtoken::decode_header(token).ok()?.kid?;
        let key = DecodingKey::from_jwk(keys.find(&key_id)?).ok()?;
        // The algorithm is ours, never the token's: "none", or a public key taken for a secret, gets nobody in.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[LOCAL_ISSUER]);
        validation.set_audience(&[LOCAL_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        let claims = jsonwebtoken::decode::<HashMap<String, Value>>(token, &key, &validation).ok()?.claims;
        let groups = claims.get(GROUPS).and_then(Value::as_array).cloned().unwrap_or_default();
        let groups: Vec<&str> = groups.iter().filter_map(Value::as_str).collect();
        caller(claims.get("sub")?.as_str()?, &groups)
    }
}

fn authorizer_claims(parts: &Parts) -> Option<&HashMap<String, String>> {
    match parts.extensions.get::<RequestContext>()? {
        RequestContext::ApiGatewayV2(context) => Some(&context.authorizer.as_ref()?.jwt.as_ref()?.claims),
        _ => None,
    }
}

/// An HTTP API hands a list claim over as text: `[admin shop]`. The name of a group has no space in it, but may have any
/// other sign.
fn groups_of_text(text: &str) -> Vec<&str> {
    text.trim_start_matches('[').trim_end_matches(']').split(' ').filter(|group| !group.is_empty()).collect()
}

fn caller(sub: &str, groups: &[&str]) -> Option<Caller> {
    let role = if groups.contains(&"admin") { Role::Admin } else { Role::Customer };
    Some(Caller { id: CustomerId::try_from(sub).ok()?, role })
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let authenticator = parts.extensions.get::<Authenticator>();
        authenticator.and_then(|authenticator| authenticator.caller(parts)).ok_or_else(Problem::unauthenticated)
    }
}

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        match caller.role {
            Role::Admin => Ok(Self(caller.id)),
            Role::Customer => Err(Problem::forbidden()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jsonwebtoken::{EncodingKey, Header};
    use serde_json::json;

    const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

    fn authenticator() -> Authenticator {
        let key =
            json!({"kty": "oct", "kid": "local", "alg": "HS256", "k": "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY"});
        Authenticator::new(Some(&json!({ "keys": [key] }).to_string())).unwrap()
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
    fn a_token_of_the_local_key_is_believed() {
        let bearer = |claims: &Value| format!("Bearer {}", token(Algorithm::HS256, Some("local"), claims, SECRET));
        let caller = authenticator().caller(&parts(Some(&bearer(&claims())))).unwrap();
        assert_eq!((caller.id.as_str(), caller.role), ("alice", Role::Customer));
        let admin = with(|claims| claims["cognito:groups"] = json!(["admin"]));
        assert_eq!(authenticator().caller(&parts(Some(&bearer(&admin)))).unwrap().role, Role::Admin);
    }

    #[test]
    fn a_token_that_is_wrong_in_any_way_is_nobody() {
        let good = token(Algorithm::HS256, Some("local"), &claims(), SECRET);
        let local = |claims: Value| token(Algorithm::HS256, Some("local"), &claims, SECRET);
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
            assert_eq!(authenticator().caller(&parts(authorization.as_deref())), None, "{what}");
        }
    }

    #[test]
    fn with_no_claims_and_no_key_set_nobody_gets_in() {
        let good = format!("Bearer {}", token(Algorithm::HS256, Some("local"), &claims(), SECRET));
        assert_eq!(Authenticator::default().caller(&parts(Some(&good))), None);
    }

    #[test]
    fn the_authorizers_claims_are_believed_and_nothing_else_then() {
        let event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": "/", "rawQueryString": "", "headers": {},
            "requestContext": {
                "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default",
                "timeEpoch": 0, "http": {"method": "GET", "path": "/", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
                "authorizer": {"jwt": {"claims": {"sub": "bob", "cognito:groups": "[shop admin]"}, "scopes": null}},
            },
            "isBase64Encoded": false,
        });
        let parts = lambda_http::request::from_str(&event.to_string()).unwrap().into_parts().0;
        let caller = Authenticator::default().caller(&parts).unwrap();
        assert_eq!((caller.id.as_str(), caller.role), ("bob", Role::Admin));
    }

    #[test]
    fn only_the_group_admin_makes_an_admin() {
        for (text, admin) in
            [("[admin]", true), ("[a admin]", true), ("[a,admin]", false), ("[administrator]", false), ("", false)]
        {
            assert_eq!(groups_of_text(text).contains(&"admin"), admin, "{text}");
        }
    }
}
