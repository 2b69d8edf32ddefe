//! `application/problem+json` (RFC 9457): the one place where a refusal becomes a status.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_aws::Unanswered;
use holdfast_domain::{Invalid, Refusal};
use holdfast_store::Error;
use serde_json::{Map, Value, json};

use crate::ApiTime;

/// After how many seconds a caller who met a 503 may ask again.
const RETRY_AFTER_SECONDS: u64 = 1;

/// An answer that is not the one that was asked for.
///
/// It has two messages: what the caller may know (everything but `inside`), and what the log keeps.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    detail: String,
    more: Map<String, Value>,
    pub(crate) inside: Option<String>,
}

impl Problem {
    /// A problem of this status, stable code and explanation.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let promised = crate::codes::find(code).is_some_and(|promised| promised.status == status.as_u16());
        debug_assert!(promised, "{code} with status {status} is not in codes.rs");
        Self { status, code, detail: detail.into(), more: Map::new(), inside: None }
    }

    /// 404: there is nothing of that id, nor can there be.
    pub fn not_found(code: &'static str) -> Self {
        Self::new(StatusCode::NOT_FOUND, code, "there is nothing of that id")
    }

    /// 400: the request breaks a rule of the contract.
    pub fn invalid_request(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request", detail)
    }

    /// 401: nobody that can be believed.
    pub fn unauthenticated() -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "a valid bearer token is needed")
    }

    /// 403: not for a token of this role.
    pub fn forbidden(detail: &'static str) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail)
    }

    /// 405: the path is there, and answers to other methods.
    pub fn method_not_allowed() -> Self {
        let detail = "this path does not answer to this method";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", detail)
    }

    /// 413: longer than [`MAX_BODY_BYTES`](crate::MAX_BODY_BYTES).
    pub(crate) fn too_long() -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "the body must not exceed 65536 bytes")
    }

    /// 429: this customer asks too often.
    pub(crate) fn rate_limited(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1_000).max(1);
        let detail = "too many requests of this customer; this one was not carried out";
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limited", detail)
            .with("retry_after_seconds", u64::try_from(seconds).unwrap_or(u64::MAX))
    }

    /// 503: nothing was acknowledged; the same request may be sent again. `inside` goes to the log.
    pub fn unavailable(inside: impl Into<String>) -> Self {
        let detail = "no clear answer in time; nothing is acknowledged, and the same request may be sent again";
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        problem.with("retry_after_seconds", RETRY_AFTER_SECONDS).inside(inside)
    }

    /// 500: a fault of ours that no repetition mends. `inside` goes to the log.
    pub fn internal(inside: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "something is wrong on our side").inside(inside)
    }

    /// Adds a member that helps the caller to act.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.more.insert(name.to_owned(), value.into());
        self
    }

    fn inside(mut self, inside: impl Into<String>) -> Self {
        self.inside = Some(inside.into());
        self
    }

    pub(crate) fn render(self, request_id: &str) -> Response {
        let mut body = Map::new();
        body.insert("type".to_owned(), format!("urn:holdfast:problem:{}", self.code).into());
        body.insert("title".to_owned(), self.code.replace('_', " ").into());
        body.insert("status".to_owned(), self.status.as_u16().into());
        body.insert("detail".to_owned(), self.detail.into());
        body.insert("code".to_owned(), self.code.into());
        body.insert("request_id".to_owned(), request_id.into());
        let retry_after = self.more.get("retry_after_seconds").and_then(Value::as_u64);
        body.extend(self.more);
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (self.status, [content_type], Value::Object(body).to_string()).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// The problem travels as an extension: the layer of [`crate::serve`] knows the request's id, and renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match &refusal {
            Refusal::ProductNotFound { .. } | Refusal::ReservationNotFound | Refusal::FailedConfirmationNotFound => {
                StatusCode::NOT_FOUND
            }
            Refusal::ProductNotOnSale { .. }
            | Refusal::SaleNotOpen { .. }
            | Refusal::CustomerLimitReached { .. }
            | Refusal::InsufficientStock { .. }
            | Refusal::AlreadyConfirmed { .. }
            | Refusal::RefundRequired
            | Refusal::ReservationCancelled
            | Refusal::ExtensionLimitReached { .. }
            | Refusal::ProductExists { .. }
            | Refusal::VersionMismatch { .. }
            | Refusal::AlreadySettled => StatusCode::CONFLICT,
            Refusal::HoldExpired => StatusCode::GONE,
            Refusal::IdempotencyKeyReused | Refusal::InvalidQuantity { .. } | Refusal::CurrencyMismatch => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
        };
        let problem = Self::new(status, refusal.code(), refusal.to_string());
        match &refusal {
            Refusal::InvalidQuantity { product_id }
            | Refusal::ProductNotFound { product_id }
            | Refusal::ProductNotOnSale { product_id }
            | Refusal::ProductExists { product_id } => problem.with("product_id", product_id.as_str()),
            Refusal::SaleNotOpen { product_id, opens_at } => {
                let opens_at = opens_at.map_or(Value::Null, |at| json!(ApiTime(at)));
                problem.with("product_id", product_id.as_str()).with("sale_starts_at", opens_at)
            }
            Refusal::CustomerLimitReached { product_id, limit } => {
                problem.with("product_id", product_id.as_str()).with("max_per_customer", *limit)
            }
            Refusal::InsufficientStock { shortages } => {
                let lines = shortages.iter().map(|shortage| {
                    json!({
                        "product_id": shortage.product_id,
                        "requested": shortage.requested,
                        "available": shortage.available,
                    })
                });
                problem.with("lines", lines.collect::<Vec<_>>())
            }
            Refusal::AlreadyConfirmed { other_payment } => problem.with("refund_required", *other_payment),
            Refusal::ExtensionLimitReached { latest } => problem.with("latest", json!(ApiTime(*latest))),
            Refusal::VersionMismatch { current } => problem.with("current", *current),
            Refusal::IdempotencyKeyReused
            | Refusal::CurrencyMismatch
            | Refusal::ReservationNotFound
            | Refusal::RefundRequired
            | Refusal::ReservationCancelled
            | Refusal::HoldExpired
            | Refusal::FailedConfirmationNotFound
            | Refusal::AlreadySettled => problem,
        }
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::invalid_request(invalid.to_string()).with("field", invalid.field)
    }
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        match error {
            Error::Refused(refusal) => refusal.into(),
            Error::Invalid(invalid) => invalid.into(),
            unavailable @ (Error::Unavailable { .. } | Error::TryLater { .. }) => {
                Self::unavailable(unavailable.to_string())
            }
            internal @ Error::Internal { .. } => Self::internal(internal.to_string()),
        }
    }
}

impl From<Unanswered> for Problem {
    fn from(unanswered: Unanswered) -> Self {
        Self::unavailable(unanswered.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::{CODES, MemberValue};
    use holdfast_domain::{ProductId, Shortage, Timestamp};

    /// Every refusal, one after the other: a new one does not compile until it has its place here.
    fn after(refusal: Option<&Refusal>) -> Option<Refusal> {
        let product_id = ProductId::try_from("tee").unwrap();
        let latest = Timestamp::from_millis(0);
        Some(match refusal {
            None => Refusal::IdempotencyKeyReused,
            Some(Refusal::IdempotencyKeyReused) => Refusal::InvalidQuantity { product_id },
            Some(Refusal::InvalidQuantity { .. }) => Refusal::ProductNotFound { product_id },
            Some(Refusal::ProductNotFound { .. }) => Refusal::CurrencyMismatch,
            Some(Refusal::CurrencyMismatch) => Refusal::ProductNotOnSale { product_id },
            Some(Refusal::ProductNotOnSale { .. }) => Refusal::SaleNotOpen { product_id, opens_at: None },
            Some(Refusal::SaleNotOpen { opens_at: None, .. }) => {
                Refusal::SaleNotOpen { product_id, opens_at: Some(latest) }
            }
            Some(Refusal::SaleNotOpen { .. }) => Refusal::CustomerLimitReached { product_id, limit: 1 },
            Some(Refusal::CustomerLimitReached { .. }) => {
                Refusal::InsufficientStock { shortages: vec![Shortage { product_id, requested: 2, available: 1 }] }
            }
            Some(Refusal::InsufficientStock { .. }) => Refusal::ReservationNotFound,
            Some(Refusal::ReservationNotFound) => Refusal::AlreadyConfirmed { other_payment: true },
            Some(Refusal::AlreadyConfirmed { .. }) => Refusal::RefundRequired,
            Some(Refusal::RefundRequired) => Refusal::ReservationCancelled,
            Some(Refusal::ReservationCancelled) => Refusal::HoldExpired,
            Some(Refusal::HoldExpired) => Refusal::ExtensionLimitReached { latest },
            Some(Refusal::ExtensionLimitReached { .. }) => Refusal::ProductExists { product_id },
            Some(Refusal::ProductExists { .. }) => Refusal::VersionMismatch { current: 1 },
            Some(Refusal::VersionMismatch { .. }) => Refusal::FailedConfirmationNotFound,
            Some(Refusal::FailedConfirmationNotFound) => Refusal::AlreadySettled,
            Some(Refusal::AlreadySettled) => return None,
        })
    }

    #[test]
    fn every_problem_is_what_its_code_promises() {
        let mut problems =
            vec![Problem::unauthenticated(), Problem::forbidden(""), Problem::unavailable(""), Problem::internal("")];
        problems.extend([Problem::invalid_request(""), Invalid::new("field", "rule").into()]);
        let mut refusal = after(None);
        while let Some(next) = refusal {
            refusal = after(Some(&next));
            problems.push(next.into());
        }
        for problem in &problems {
            let promised = crate::codes::find(problem.code).unwrap();
            assert_eq!(problem.status.as_u16(), promised.status, "{}", problem.code);
            for member in promised.members {
                let fits = match (problem.more.get(member.name), member.value) {
                    (None, _) => member.optional,
                    (Some(Value::String(_)), MemberValue::ProductId | MemberValue::Text)
                    | (Some(Value::Bool(_)), MemberValue::Flag)
                    | (Some(Value::Null), MemberValue::TimeOrNull)
                    | (Some(Value::Array(_)), MemberValue::Shortages) => true,
                    (Some(Value::String(time)), MemberValue::Time | MemberValue::TimeOrNull) => time.ends_with('Z'),
                    (Some(Value::Number(number)), MemberValue::Count) => number.is_u64(),
                    _ => false,
                };
                assert!(fits, "{}: {}: {:?}", problem.code, member.name, problem.more);
            }
            let known = |name: &String| promised.members.iter().any(|member| member.name == name);
            assert!(problem.more.keys().all(known), "{}: {:?}", problem.code, problem.more);
        }
        // What is promised and no refusal is made somewhere in this crate.
        let sources = [include_str!("problem.rs"), include_str!("input.rs"), include_str!("serve.rs")].concat();
        for code in CODES {
            let refused = problems.iter().any(|problem| problem.code == code.code);
            assert!(refused || sources.contains(&format!("\"{}\"", code.code)), "nothing makes {}", code.code);
        }
    }
}
