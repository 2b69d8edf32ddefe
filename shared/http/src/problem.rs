//! `application/problem+json` (RFC 9457): the one place where a refusal becomes a response.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use holdfast_aws::Unanswered;
use holdfast_domain::{CurrentPrice, Invalid, ProductId, Refusal, Shortage};
use holdfast_store::Error;
use serde_json::{Map, Value, json};

use crate::codes::{self, Code};
use crate::{ApiTime, ReservationView};

/// Seconds after which a caller may retry after a 503.
const RETRY_AFTER_SECONDS: u64 = 1;

/// A response other than the one that was asked for.
///
/// It has two messages: the external one (`detail`) is safe to show, the internal one is for the log.
#[derive(Debug, Clone)]
pub struct Problem {
    pub(crate) code: &'static Code,
    pub(crate) detail: String,
    pub(crate) members: Map<String, Value>,
    pub(crate) internal_message: Option<String>,
    unauthenticated: Option<Unauthenticated>,
}

/// Why there is no caller. No more is said of a token than what its sender can act on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unauthenticated {
    /// There is no bearer token.
    Missing,
    /// It has expired.
    #[cfg(feature = "local-sign-in")]
    Expired,
    /// It is an ID token, which is for the page that signs in.
    IdToken,
    /// It is not a token for this API: malformed, of another issuer or audience, or without a usable `sub`.
    Invalid,
}

impl Unauthenticated {
    const fn detail(self) -> &'static str {
        match self {
            Self::Missing => "a bearer token is required",
            #[cfg(feature = "local-sign-in")]
            Self::Expired => "the token has expired",
            Self::IdToken => "this is an ID token; send the access token",
            Self::Invalid => "the token is not valid for this API",
        }
    }

    /// The header `WWW-Authenticate` (RFC 6750, section 3): without a token, no error.
    const fn challenge(self) -> &'static str {
        match self {
            Self::Missing => "Bearer",
            #[cfg(feature = "local-sign-in")]
            Self::Expired => r#"Bearer error="invalid_token", error_description="the token has expired""#,
            Self::IdToken => {
                r#"Bearer error="invalid_token", error_description="this is an ID token; send the access token""#
            }
            Self::Invalid => r#"Bearer error="invalid_token", error_description="the token is not valid for this API""#,
        }
    }
}

impl Problem {
    /// A problem of this code, explained by `detail`.
    pub fn new(code: &'static Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), members: Map::new(), internal_message: None, unauthenticated: None }
    }

    /// 400: `field` of the request breaks `rule`.
    pub(crate) fn invalid(field: &str, rule: &str) -> Self {
        Self::new(&codes::INVALID_REQUEST, format!("{field}: {rule}")).with("field", field)
    }

    /// 400: there is no `Idempotency-Key`.
    pub(crate) fn key_missing() -> Self {
        Self::new(&codes::IDEMPOTENCY_KEY_MISSING, "this request requires an Idempotency-Key header")
            .with("field", "Idempotency-Key")
    }

    /// 400: the `Idempotency-Key` is not one key of the documented form.
    pub(crate) fn key_invalid() -> Self {
        Self::new(
            &codes::IDEMPOTENCY_KEY_INVALID,
            "Idempotency-Key must be one key of 1 to 255 printable ASCII characters, with no space at either end; a key \
             with a comma must be quoted",
        )
        .with("field", "Idempotency-Key")
    }

    /// 401: no valid token.
    pub(crate) fn unauthenticated(why: Unauthenticated) -> Self {
        Self { unauthenticated: Some(why), ..Self::new(&codes::UNAUTHENTICATED, why.detail()) }
    }

    /// 403: the token's role does not allow this.
    pub fn forbidden(detail: &'static str) -> Self {
        Self::new(&codes::FORBIDDEN, detail)
    }

    /// 403: only services confirm.
    pub fn confirmation_not_allowed() -> Self {
        Self::new(&codes::CONFIRMATION_NOT_ALLOWED, "only a service may confirm a reservation")
    }

    /// 404: no such route.
    pub fn route_not_found() -> Self {
        Self::new(&codes::ROUTE_NOT_FOUND, "no such route")
    }

    /// 404: nothing has this id, and nothing can have it.
    pub fn not_found(code: &'static Code) -> Self {
        Self::new(code, "there is nothing with this id")
    }

    /// 405: the path supports other methods only.
    pub fn method_not_allowed() -> Self {
        Self::new(&codes::METHOD_NOT_ALLOWED, "this path does not support this method")
    }

    /// 409: the hold that this key made has ended.
    ///
    /// Not a success: a client that keys its requests by cart would go on to take a payment for nothing.
    pub fn hold_ended(reservation: &ReservationView) -> Self {
        match serde_json::to_value(reservation) {
            Ok(reservation) => Self::new(&codes::HOLD_ENDED, "the hold of this Idempotency-Key has ended")
                .with("reservation", reservation),
            Err(error) => Self::internal(error.to_string()),
        }
    }

    /// 413: longer than [`MAX_BODY_BYTES`](crate::MAX_BODY_BYTES).
    pub(crate) fn too_large() -> Self {
        Self::new(&codes::PAYLOAD_TOO_LARGE, "the body must not exceed 65536 bytes")
    }

    /// 415: the body is compressed.
    pub(crate) fn content_encoding() -> Self {
        Self::new(&codes::UNSUPPORTED_CONTENT_ENCODING, "the body must not be compressed")
    }

    /// 429: too many requests by this customer.
    pub(crate) fn rate_limited(wait: Duration) -> Self {
        let seconds = wait.as_millis().div_ceil(1_000).max(1);
        Self::new(&codes::RATE_LIMITED, "too many requests by this customer; this one was not carried out")
            .with("retry_after_seconds", u64::try_from(seconds).unwrap_or(u64::MAX))
    }

    /// 503: nothing was acknowledged, and the same request may be sent again.
    pub fn unavailable(internal_message: impl Into<String>) -> Self {
        Self::new(&codes::UNAVAILABLE, "no clear result in time; nothing was acknowledged, retry the same request")
            .with("retry_after_seconds", RETRY_AFTER_SECONDS)
            .internal_message(internal_message)
    }

    /// 500: a defect that no retry fixes.
    pub fn internal(internal_message: impl Into<String>) -> Self {
        Self::new(&codes::INTERNAL_ERROR, "something went wrong").internal_message(internal_message)
    }

    /// Its status and code, as in `409 insufficient_stock`.
    pub fn outcome(&self) -> String {
        format!("{} {}", self.code.status.as_u16(), self.code.code)
    }

    /// Adds a member that helps the caller to act.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.members.insert(name.to_owned(), value.into());
        self
    }

    fn about(self, product_id: &ProductId) -> Self {
        self.with("product_id", product_id.as_str())
    }

    fn internal_message(self, message: impl Into<String>) -> Self {
        Self { internal_message: Some(message.into()), ..self }
    }

    /// The body of the response.
    pub(crate) fn body(self, request_id: &str) -> Value {
        let Code { code, status, .. } = *self.code;
        let mut body = Map::new();
        body.insert("type".to_owned(), format!("urn:holdfast:problem:{code}").into());
        body.insert("title".to_owned(), code.replace('_', " ").into());
        body.insert("status".to_owned(), status.as_u16().into());
        body.insert("detail".to_owned(), self.detail.into());
        body.insert("code".to_owned(), code.into());
        body.insert("request_id".to_owned(), request_id.into());
        body.extend(self.members);
        Value::Object(body)
    }

    pub(crate) fn render(self, request_id: &str) -> Response {
        let (status, unauthenticated) = (self.code.status, self.unauthenticated);
        let retry_after = self.members.get("retry_after_seconds").and_then(Value::as_u64);
        let content_type = (header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        let mut response = (status, [content_type], self.body(request_id).to_string()).into_response();
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(why) = unauthenticated {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static(why.challenge()));
        }
        if status == StatusCode::UNSUPPORTED_MEDIA_TYPE {
            // What is accepted (RFC 9110, section 12.5.3).
            response.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        response
    }
}

/// The problem travels as an extension: the layer of [`crate::serve`] knows the request's id, and renders it.
impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = self.code.status.into_response();
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let problem = |code| Self::new(code, refusal.to_string());
        match &refusal {
            Refusal::IdempotencyKeyReused => problem(&codes::IDEMPOTENCY_KEY_REUSED),
            Refusal::HoldTransferred => problem(&codes::HOLD_TRANSFERRED),
            Refusal::InvalidQuantity { product_id } => problem(&codes::INVALID_QUANTITY).about(product_id),
            Refusal::ProductNotFound { product_id } => problem(&codes::PRODUCT_NOT_FOUND).about(product_id),
            Refusal::CurrencyMismatch => problem(&codes::CURRENCY_MISMATCH),
            Refusal::ProductNotOnSale { product_id } => problem(&codes::PRODUCT_NOT_ON_SALE).about(product_id),
            Refusal::SaleNotOpen { product_id, opens_at, now } => {
                let opens_at = opens_at.map_or(Value::Null, |at| json!(ApiTime(at)));
                let problem = problem(&codes::SALE_NOT_OPEN).about(product_id).with("sale_starts_at", opens_at);
                problem.with("server_time", json!(ApiTime(*now)))
            }
            Refusal::PriceChanged { prices } => {
                let line = |CurrentPrice { product_id, unit_price_minor }: &CurrentPrice| json!({"product_id": product_id, "unit_price_minor": unit_price_minor});
                problem(&codes::PRICE_CHANGED).with("lines", prices.iter().map(line).collect::<Vec<_>>())
            }
            Refusal::CustomerLimitReached { product_id, limit } => {
                problem(&codes::CUSTOMER_LIMIT_REACHED).about(product_id).with("max_per_customer", *limit)
            }
            Refusal::InsufficientStock { shortages } => {
                let line = |Shortage { product_id, requested, available }: &Shortage| json!({"product_id": product_id, "requested": requested, "available": available});
                let lines: Vec<Value> = shortages.iter().map(line).collect();
                problem(&codes::INSUFFICIENT_STOCK).with("lines", lines)
            }
            Refusal::ReservationNotFound => problem(&codes::RESERVATION_NOT_FOUND),
            Refusal::AlreadyConfirmed { other_payment } => {
                problem(&codes::ALREADY_CONFIRMED).with("refund_required", *other_payment)
            }
            Refusal::RefundRequired => problem(&codes::REFUND_REQUIRED),
            Refusal::ReservationCancelled => problem(&codes::RESERVATION_CANCELLED),
            Refusal::HoldExpired => problem(&codes::HOLD_EXPIRED),
            Refusal::ExtensionLimitReached { latest } => {
                problem(&codes::EXTENSION_LIMIT_REACHED).with("latest", json!(ApiTime(*latest)))
            }
            Refusal::ProductExists { product_id } => problem(&codes::PRODUCT_EXISTS).about(product_id),
            Refusal::VersionMismatch { current } => problem(&codes::VERSION_MISMATCH).with("current", *current),
            Refusal::FailedConfirmationNotFound => problem(&codes::FAILED_CONFIRMATION_NOT_FOUND),
            Refusal::AlreadySettled => problem(&codes::ALREADY_SETTLED),
        }
    }
}

impl From<Invalid> for Problem {
    fn from(invalid: Invalid) -> Self {
        Self::invalid(invalid.field, invalid.rule)
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
    use crate::codes::MemberValue;
    use crate::examples::{examples, refusal_after};

    #[test]
    fn a_problem_has_the_members_of_its_row() {
        let mut refusal = None;
        while let Some(next) = refusal_after(refusal.as_ref()) {
            // Failed confirmations store the domain's code: it must be the published one.
            assert_eq!(Problem::from(next.clone()).code.code, next.code());
            refusal = Some(next);
        }
        for Problem { code, members, .. } in &examples() {
            for member in code.members {
                let fits = match (members.get(member.name), member.value) {
                    (None, _) => member.optional,
                    (Some(Value::String(_)), MemberValue::ProductId | MemberValue::Text)
                    | (Some(Value::Bool(_)), MemberValue::Flag)
                    | (Some(Value::Null), MemberValue::TimeOrNull)
                    | (Some(Value::Array(_)), MemberValue::Shortages | MemberValue::Prices)
                    | (Some(Value::Object(_)), MemberValue::Reservation) => true,
                    (Some(Value::String(time)), MemberValue::Time | MemberValue::TimeOrNull) => time.ends_with('Z'),
                    (Some(Value::Number(number)), MemberValue::Count) => number.is_u64(),
                    _ => false,
                };
                assert!(fits, "{}: {}: {members:?}", code.code, member.name);
            }
            let known = |name: &String| code.members.iter().any(|member| member.name == name);
            assert!(members.keys().all(known), "{}: {members:?}", code.code);
        }
    }
}
