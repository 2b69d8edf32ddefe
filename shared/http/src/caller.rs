//! The verified caller of a request.
//!
//! Deployed, API Gateway's JWT authorizer has verified the token, and the event carries its claims: a client cannot put
//! them there. The local stack has no authorizer; see `local_sign_in`, which no release build contains. Without either,
//! every request is unauthenticated.
//!
//! A role is a word in one claim of the token, which only the issuer can set.
//!
//! A customer is identified by the token's `sub`. A shop's back end chooses ids for guests, `guest:...`: a `sub` with that
//! prefix is refused, so that no user can act as a guest.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::{header, request::Parts};
use holdfast_domain::{CustomerId, Invalid};
use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use lambda_http::request::RequestContext;
use serde::Deserialize;
use serde_json::Value;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use crate::{Problem, Query};

/// The issuer of local tokens.
pub const LOCAL_ISSUER: &str = "https://holdfast.local";
/// Their audience.
pub const LOCAL_AUDIENCE: &str = "holdfast";
/// The claim that carries Cognito's groups.
const GROUPS: &str = "cognito:groups";

/// The verified caller. Every caller is a customer; some have more roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub id: CustomerId,
    /// A shop's back end, which acts for customers.
    pub service: bool,
    /// An admin: products, stock, failed confirmations, and all customers' reservations.
    pub admin: bool,
}

/// The result of the verification, as an extension of the request.
#[derive(Clone)]
struct Verified(Option<Caller>);

impl Caller {
    /// The caller of the request, verified once however often it is asked for.
    pub(crate) fn verified(parts: &mut Parts) -> Option<Self> {
        if let Some(Verified(caller)) = parts.extensions.get() {
            return caller.clone();
        }
        let authenticator = parts.extensions.get::<Authenticator>();
        let caller = authenticator.and_then(|authenticator| authenticator.caller(parts));
        parts.extensions.insert(Verified(caller.clone()));
        caller
    }

    /// The customer that the request is about, given its `customer_id`.
    ///
    /// A service must name a customer, and can then do what that customer can, and no more: a service that mixes up two
    /// customers gets a 404, not another customer's order. Others must not name one, not even themselves, so that a shop
    /// that sends a customer's token by mistake notices at its first request.
    ///
    /// # Errors
    /// A service names no customer, or another caller names one.
    pub fn customer(self, named: Option<CustomerId>) -> Result<CustomerId, Problem> {
        match (self.service, named) {
            (true, Some(customer)) => Ok(customer),
            (true, None) => Err(Invalid::new("customer_id", "is required for service tokens").into()),
            (false, Some(_)) => Err(Problem::forbidden("customer_id is only allowed for service tokens")),
            (false, None) => Ok(self.id),
        }
    }
}

/// The customer that a request without a body is about. Such a request takes no other query parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Customer(pub CustomerId);

/// The verified caller, who is an admin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin(pub CustomerId);

/// How callers are verified.
#[derive(Clone)]
pub struct Authenticator {
    local_keys: Option<Arc<JwkSet>>,
    roles_claim: Arc<str>,
}

impl Default for Authenticator {
    /// Believes the authorizer only, and takes roles from Cognito's groups.
    fn default() -> Self {
        Self { local_keys: None, roles_claim: GROUPS.into() }
    }
}

impl Authenticator {
    /// Believes the authorizer's claims, and where there are none, tokens signed with a key of `local_key_set`.
    ///
    /// # Errors
    /// A key set that is none.
    pub fn new(local_key_set: Option<&str>) -> Result<Self, serde_json::Error> {
        let local_keys = local_key_set.map(serde_json::from_str).transpose()?.map(Arc::new);
        Ok(Self { local_keys, ..Self::default() })
    }

    /// The same with the roles in another claim.
    #[must_use]
    pub fn roles_in(self, claim: &str) -> Self {
        Self { roles_claim: claim.into(), ..self }
    }

    pub(crate) fn caller(&self, parts: &Parts) -> Option<Caller> {
        match authorizer_claims(parts) {
            Some(claims) => {
                let roles = claims.get(&*self.roles_claim).map_or("", String::as_str);
                caller(claims.get("sub")?, &roles_of_text(roles))
            }
            None => self.local_caller(parts),
        }
    }

    fn local_caller(&self, parts: &Parts) -> Option<Caller> {
        let keys = self.local_keys.as_ref()?;
        let token = parts.headers.get(header::AUTHORIZATION)?.to_str().ok()?;
        let token = token.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer "))?.1;
        let header = jsonwebtoken::decode_header(token).ok()?;
        // What whoever reads the token must understand (RFC 7515, 4.1.11), and nothing here does.
        if header.crit.is_some() {
            return None;
        }
        let key = DecodingKey::from_jwk(keys.find(&header.kid?)?).ok()?;
        // The algorithm is ours, never the token's: "none", or a public key taken for a secret, gets nobody in.
        let mut validation = Validation::new(Algorithm::HS256);
        validation.set_issuer(&[LOCAL_ISSUER]);
        validation.set_audience(&[LOCAL_AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        let claims = jsonwebtoken::decode::<HashMap<String, Value>>(token, &key, &validation).ok()?.claims;
        let roles = match claims.get(&*self.roles_claim) {
            Some(Value::Array(roles)) => {
                let words: Option<Vec<&str>> = roles.iter().map(Value::as_str).collect();
                words.filter(|words| words.iter().all(|word| is_plain(word))).unwrap_or_default()
            }
            Some(Value::String(roles)) => roles_of_text(roles),
            _ => Vec::new(),
        };
        caller(claims.get("sub")?.as_str()?, &roles)
    }
}

fn authorizer_claims(parts: &Parts) -> Option<&HashMap<String, String>> {
    match parts.extensions.get::<RequestContext>()? {
        RequestContext::ApiGatewayV2(context) => Some(&context.authorizer.as_ref()?.jwt.as_ref()?.claims),
        _ => None,
    }
}

/// An HTTP API passes a list claim on as text: `[admin shop]`. AWS does not document what nested or JSON lists look like,
/// so a claim with anything but plain words gives no roles at all. Names of Cognito groups have no spaces, and
/// `template.yaml` requires the same of other issuers.
fn roles_of_text(text: &str) -> Vec<&str> {
    let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let words: Vec<&str> = list.split(' ').filter(|role| !role.is_empty()).collect();
    if words.iter().all(|word| is_plain(word)) { words } else { Vec::new() }
}

/// Whether it is one word of a flat list.
fn is_plain(word: &str) -> bool {
    let divides = |c: char| c.is_whitespace() || c.is_control() || "[]{}()<>\"'`,;\\".contains(c);
    !word.is_empty() && !word.contains(divides)
}

fn caller(sub: &str, roles: &[&str]) -> Option<Caller> {
    let id = CustomerId::try_from(sub).ok().filter(|id| !id.is_guest())?;
    Some(Caller { id, service: roles.contains(&"service"), admin: roles.contains(&"admin") })
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::verified(parts).ok_or_else(Problem::unauthenticated)
    }
}

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        if caller.admin { Ok(Self(caller.id)) } else { Err(Problem::forbidden("only admins may do this")) }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    customer_id: Option<CustomerId>,
}

impl IntoParams for Customer {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let customer = ParameterBuilder::new().name("customer_id").parameter_in(ParameterIn::Query);
        let meaning = "The customer to act for. Required for service tokens; forbidden for others.";
        let customer = customer.required(Required::False).description(Some(meaning));
        vec![customer.schema(Some(Ref::from_schema_name("CustomerId"))).build()]
    }
}

impl<S: Sync> FromRequestParts<S> for Customer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let Query(Named { customer_id }) = Query::from_request_parts(parts, state).await?;
        caller.customer(customer_id).map(Self)
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
            ("good from a day that is none", Some(format!("Bearer {}", local(with(|c| c["nbf"] = json!("tomorrow")))))),
            ("a guest", Some(format!("Bearer {}", local(with(|c| c["sub"] = json!("guest:alice")))))),
            ("a sub with blanks", Some(format!("Bearer {}", local(with(|c| c["sub"] = json!("alice ")))))),
            ("with what must be understood", Some(format!("Bearer {}", critical(&["b64"])))),
            ("with what nobody knows", Some(format!("Bearer {}", critical(&["urn:example:shop"])))),
            ("with an empty list of it", Some(format!("Bearer {}", critical(&[])))),
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
    fn without_claims_and_key_set_every_caller_is_unauthenticated() {
        let good = format!("Bearer {}", token(Algorithm::HS256, Some("local"), &claims(), SECRET));
        assert_eq!(Authenticator::default().caller(&parts(Some(&good))), None);
    }

    /// A request with claims as API Gateway's authorizer passes them on.
    fn authorized(claims: &Value) -> Parts {
        let event = json!({
            "version": "2.0", "routeKey": "$default", "rawPath": "/", "rawQueryString": "", "headers": {},
            "requestContext": {
                "accountId": "1", "apiId": "a", "stage": "$default", "requestId": "r", "routeKey": "$default",
                "timeEpoch": 0, "http": {"method": "GET", "path": "/", "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"},
                "authorizer": {"jwt": {"claims": claims, "scopes": null}},
            },
            "isBase64Encoded": false,
        });
        lambda_http::request::from_str(&event.to_string()).unwrap().into_parts().0
    }

    #[test]
    fn a_guest_id_cannot_sign_in() {
        for (sub, gets_in) in [("guest:1", false), ("guest:", false), ("guest", true), ("a guest:1", true)] {
            let caller =
                Authenticator::default().caller(&authorized(&json!({"sub": sub, "cognito:groups": "[admin]"})));
            assert_eq!(caller.is_some(), gets_in, "{sub}");
        }
        let named = CustomerId::try_from("guest:1").unwrap();
        let service = Caller { id: CustomerId::try_from("shop").unwrap(), service: true, admin: false };
        assert_eq!(service.customer(Some(named.clone())).unwrap(), named);
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

    #[test]
    fn a_role_is_exactly_one_plain_word() {
        for (text, service, admin) in [
            ("[admin]", false, true),
            ("[a admin]", false, true),
            ("[service]", true, false),
            ("[admin service]", true, true),
            ("service", true, false),
            ("[a,admin]", false, false),
            ("[administrator services]", false, false),
            ("[[admin]]", false, false),
            ("[[x admin y]]", false, false),
            ("[[x] admin]", false, false),
            ("[[\"x\",\"admin\",\"y\"]]", false, false),
            ("[\"x\", \"admin\" admin]", false, false),
            ("[\"x, admin ,y\"]", false, false),
            ("[map[a:b] admin]", false, false),
            ("{a admin b}", false, false),
            ("[admin", false, false),
            ("admin]", false, false),
            ("[x\tadmin admin]", false, false),
            ("[eu:shop#1 admin]", false, true),
            ("ADMIN", false, false),
            ("", false, false),
        ] {
            let caller = Authenticator::default().caller(&authorized(&json!({"sub": "a", "cognito:groups": text})));
            let caller = caller.unwrap();
            assert_eq!((caller.service, caller.admin), (service, admin), "{text}");
        }
    }

    #[test]
    fn roles_are_read_from_the_configured_claim_only() {
        let claim = "https://shop.example/roles";
        let authenticator = Authenticator::default().roles_in(claim);
        let claims = json!({"sub": "a", claim: "[service]", "cognito:groups": "[admin]", "roles": "[admin]"});
        let caller = authenticator.caller(&authorized(&claims)).unwrap();
        assert_eq!((caller.service, caller.admin), (true, false));
        let caller = authenticator.caller(&authorized(&json!({"sub": "a", "cognito:groups": "[admin]"}))).unwrap();
        assert_eq!((caller.service, caller.admin), (false, false));
    }

    #[test]
    fn only_a_service_names_a_customer() {
        let customer = |id: &str| CustomerId::try_from(id).unwrap();
        let caller = |service| Caller { id: customer("me"), service, admin: true };
        assert_eq!(caller(true).customer(Some(customer("alice"))).unwrap(), customer("alice"));
        assert_eq!(caller(true).customer(None).unwrap_err().code.code, "invalid_request");
        assert_eq!(caller(false).customer(None).unwrap(), customer("me"));
        for other in ["alice", "me"] {
            assert_eq!(caller(false).customer(Some(customer(other))).unwrap_err().code.code, "forbidden");
        }
    }
}
