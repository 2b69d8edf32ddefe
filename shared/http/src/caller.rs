//! The verified caller of a request.
//!
//! Deployed, API Gateway's JWT authorizer has verified the token, and the event carries its claims: a client cannot put
//! them there. The local stack has no authorizer; see `local_sign_in`, which no release build contains. Without either,
//! every request is unauthenticated.
//!
//! A role is a word in one claim of the token, which only the issuer can set. A back end that signs in by client
//! credentials has no such claim: its role is a scope.
//!
//! A customer is identified by the token's `sub`. A shop's back end chooses ids for guests, `guest:...`: a `sub` with that
//! prefix is refused, so that no user can act as a guest.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use holdfast_aws::config::{ConfigError, roles_claim};
use holdfast_domain::{CustomerId, Invalid};
use lambda_http::request::RequestContext;
use serde::Deserialize;
use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use crate::problem::Unauthenticated;
use crate::serve::request_id;
use crate::{Problem, Query};

/// The claim that carries Cognito's groups.
const GROUPS: &str = "cognito:groups";
/// The scope that makes a back end a service, as template.yaml defines it.
pub const SERVICE_SCOPE: &str = "holdfast/service";

/// The verified caller. Every caller is a customer; some have more roles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The token's `sub`.
    pub id: CustomerId,
    /// A shop's back end, which acts for customers.
    pub service: bool,
    /// An admin: products, stock, failed confirmations, and all customers' reservations.
    pub admin: bool,
    /// An auditor: reads what an admin reads, and changes nothing.
    pub auditor: bool,
}

/// The result of the verification, as an extension of the request.
#[derive(Clone)]
struct Verified(Result<Caller, Unauthenticated>);

impl Caller {
    /// The caller of the request, verified once however often it is asked for.
    pub(crate) fn verified(parts: &mut Parts) -> Result<Self, Unauthenticated> {
        if let Some(Verified(caller)) = parts.extensions.get() {
            return caller.clone();
        }
        let authenticator = parts.extensions.get::<Authenticator>();
        let caller =
            authenticator.ok_or(Unauthenticated::Missing).and_then(|authenticator| authenticator.caller(parts));
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

/// The verified caller, who is an admin: for every request under `/admin` that changes something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// The token's `sub`.
    pub id: CustomerId,
    /// The id of the request in the logs: what an admin does is written down with it.
    pub request_id: String,
}

/// A verified caller who may read what admins read: an admin or an auditor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    /// Whose.
    pub id: CustomerId,
}

/// How callers are verified.
#[derive(Clone)]
pub struct Authenticator {
    pub(crate) roles_claim: Arc<str>,
    #[cfg(feature = "local-sign-in")]
    pub(crate) local_keys: Option<crate::local_sign_in::LocalKeys>,
}

impl Default for Authenticator {
    /// Accepts the authorizer's claims only, with the roles in Cognito's groups.
    fn default() -> Self {
        Self::with_roles_in(GROUPS)
    }
}

impl Authenticator {
    /// As the function's environment says.
    ///
    /// # Errors
    /// A variable is missing or invalid.
    pub fn from_environment() -> Result<Self, ConfigError> {
        let authenticator = Self::with_roles_in(&roles_claim()?);
        #[cfg(feature = "local-sign-in")]
        let authenticator = authenticator.with_keys_of_environment()?;
        Ok(authenticator)
    }

    /// Accepts the authorizer's claims, with the roles in `claim`.
    pub fn with_roles_in(claim: &str) -> Self {
        Self {
            roles_claim: claim.into(),
            #[cfg(feature = "local-sign-in")]
            local_keys: None,
        }
    }

    pub(crate) fn caller(&self, parts: &Parts) -> Result<Caller, Unauthenticated> {
        match authorizer_claims(parts) {
            Some(claims) => {
                let text = |name: &str| claims.get(name).map(String::as_str);
                caller_of(text, &roles_of_text(text(&self.roles_claim).unwrap_or_default()))
            }
            #[cfg(feature = "local-sign-in")]
            None => match &self.local_keys {
                Some(keys) => keys.caller(parts, &self.roles_claim),
                None => Err(Unauthenticated::Missing),
            },
            #[cfg(not(feature = "local-sign-in"))]
            None => Err(Unauthenticated::Missing),
        }
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
pub(crate) fn roles_of_text(text: &str) -> Vec<&str> {
    let list = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    let words: Vec<&str> = list.split(' ').filter(|role| !role.is_empty()).collect();
    if words.iter().all(|word| is_plain(word)) { words } else { Vec::new() }
}

/// Whether it is one word of a flat list.
pub(crate) fn is_plain(word: &str) -> bool {
    let divides = |c: char| c.is_whitespace() || c.is_control() || "[]{}()<>\"'`,;\\".contains(c);
    !word.is_empty() && !word.contains(divides)
}

/// The caller by the claims of a verified token that are text, and by its roles.
pub(crate) fn caller_of<'a>(text: impl Fn(&str) -> Option<&'a str>, roles: &[&str]) -> Result<Caller, Unauthenticated> {
    // Cognito's name for a token's purpose. API Gateway accepts ID tokens too, which are made for the page that signs
    // in: they carry an address, and no scopes.
    if text("token_use") == Some("id") {
        return Err(Unauthenticated::IdToken);
    }
    let sub = text("sub").ok_or(Unauthenticated::Invalid)?;
    let id = CustomerId::try_from(sub).ok().filter(|id| !id.is_guest()).ok_or(Unauthenticated::Invalid)?;
    // Only of a token that a client got for itself (RFC 9068, section 2.2): a user may get any scope that their client
    // may ask for.
    let scopes = text("scope").filter(|_| text("client_id") == Some(sub)).unwrap_or_default();
    let has = |role| roles.contains(&role);
    let service = has("service") || scopes.split(' ').any(|scope| scope == SERVICE_SCOPE);
    Ok(Caller { id, service, admin: has("admin"), auditor: has("auditor") })
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::verified(parts).map_err(Problem::unauthenticated)
    }
}

impl<S: Sync> FromRequestParts<S> for Admin {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        match caller {
            Caller { admin: true, id, .. } => Ok(Self { id, request_id: request_id(&parts.extensions) }),
            Caller { auditor: true, .. } => Err(Problem::forbidden("an auditor may read, and change nothing")),
            _ => Err(Problem::forbidden("only admins may do this")),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Reader {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let caller = Caller::from_request_parts(parts, state).await?;
        let reads = caller.admin || caller.auditor;
        if reads { Ok(Self { id: caller.id }) } else { Err(Problem::forbidden("only admins and auditors may do this")) }
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
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A request with claims as API Gateway's authorizer passes them on.
    pub(crate) fn authorized(claims: &Value) -> Parts {
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
            assert_eq!(caller.is_ok(), gets_in, "{sub}");
        }
        let named = CustomerId::try_from("guest:1").unwrap();
        let service = Caller { id: CustomerId::try_from("shop").unwrap(), service: true, admin: false, auditor: false };
        assert_eq!(service.customer(Some(named.clone())).unwrap(), named);
    }

    #[tokio::test]
    async fn an_auditor_reads_and_changes_nothing() {
        for (roles, reads, changes) in [
            ("[admin]", true, true),
            ("[auditor]", true, false),
            ("[admin auditor]", true, true),
            ("[service]", false, false),
        ] {
            let mut parts = authorized(&json!({"sub": "a", "cognito:groups": roles}));
            parts.extensions.insert(Authenticator::default());
            assert_eq!(Reader::from_request_parts(&mut parts, &()).await.is_ok(), reads, "{roles}");
            let admin = Admin::from_request_parts(&mut parts, &()).await.map(|admin| admin.request_id);
            let wanted = if changes { Ok("r".to_owned()) } else { Err("forbidden") };
            assert_eq!(admin.map_err(|problem| problem.code.code), wanted, "{roles}");
        }
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
        let authenticator = Authenticator::with_roles_in(claim);
        let claims = json!({"sub": "a", claim: "[service]", "cognito:groups": "[admin]", "roles": "[admin]"});
        let caller = authenticator.caller(&authorized(&claims)).unwrap();
        assert_eq!((caller.service, caller.admin), (true, false));
        let caller = authenticator.caller(&authorized(&json!({"sub": "a", "cognito:groups": "[admin]"}))).unwrap();
        assert_eq!((caller.service, caller.admin), (false, false));
    }

    #[test]
    fn an_id_token_is_refused() {
        for (token_use, refused) in [(json!("id"), true), (json!("access"), false), (json!("ID"), false)] {
            let claims = json!({"sub": "a", "token_use": token_use, "cognito:groups": "[admin]"});
            let caller = Authenticator::default().caller(&authorized(&claims));
            assert_eq!(caller.err(), refused.then_some(Unauthenticated::IdToken), "{token_use}");
        }
    }

    #[test]
    fn a_back_end_is_a_service_by_its_scope() {
        for (client, scope, service) in [
            ("shop", "holdfast/service", true),
            ("shop", "openid holdfast/service", true),
            ("shop", "holdfast/services", false),
            ("shop", "service", false),
            ("shop", "[holdfast/service]", false),
            ("shop", "holdfast/service\t", false),
            ("shop", "", false),
            // A user's token, of whatever client.
            ("page", "holdfast/service", false),
            ("", "holdfast/service", false),
        ] {
            let claims = json!({"sub": "shop", "client_id": client, "token_use": "access", "scope": scope});
            let caller = Authenticator::default().caller(&authorized(&claims)).unwrap();
            assert_eq!(
                (caller.id.as_str(), caller.service, caller.admin),
                ("shop", service, false),
                "{client} {scope}"
            );
        }
        let without_client = json!({"sub": "shop", "scope": "holdfast/service"});
        assert!(!Authenticator::default().caller(&authorized(&without_client)).unwrap().service);
    }

    #[test]
    fn only_a_service_names_a_customer() {
        let customer = |id: &str| CustomerId::try_from(id).unwrap();
        let caller = |service| Caller { id: customer("me"), service, admin: true, auditor: false };
        assert_eq!(caller(true).customer(Some(customer("alice"))).unwrap(), customer("alice"));
        assert_eq!(caller(true).customer(None).unwrap_err().code.code, "invalid_request");
        assert_eq!(caller(false).customer(None).unwrap(), customer("me"));
        for other in ["alice", "me"] {
            assert_eq!(caller(false).customer(Some(customer(other))).unwrap_err().code.code, "forbidden");
        }
    }
}
