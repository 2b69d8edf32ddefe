//! A problem of each code, as the API description shows it.

use std::time::Duration;

use holdfast_domain::{
    Currency, CurrentPrice, CustomerId, HoldSeconds, IdempotencyKey, Invalid, Line, ProductId, Refusal, Reservation,
    ReservationId, Shortage, Status, Timestamp,
};
use serde_json::Value;

use crate::codes;
use crate::problem::Unauthenticated;
use crate::{Problem, ReservationView};

/// The bodies of one problem, or several, of each code.
pub fn bodies() -> Vec<Value> {
    let request_id = "0b21ec33-78e6-4b58-b23d-ad6a3ed73adc";
    examples().into_iter().map(|problem| problem.body(request_id)).collect()
}

pub(crate) fn examples() -> Vec<Problem> {
    let mut problems = vec![
        Problem::invalid("lines[0].quantity", "must be a number, not a string"),
        Problem::key_missing(),
        Problem::key_invalid(),
        Problem::unauthenticated(Unauthenticated::Missing),
        Problem::forbidden("only admins may do this"),
        Problem::confirmation_not_allowed(),
        Problem::route_not_found(),
        Problem::method_not_allowed(),
        Problem::too_large(),
        Problem::content_encoding(),
        Problem::rate_limited(Duration::from_millis(1_200)),
        Problem::internal(""),
        Problem::unavailable(""),
        Invalid::new("currency", "must be the code of a currency").into(),
        Problem::not_found(&codes::RESERVATION_NOT_FOUND),
    ];
    problems.extend(ended().map(|reservation| Problem::hold_ended(&reservation)));
    let mut refusal = None;
    while let Some(next) = refusal_after(refusal.as_ref()) {
        problems.push(next.clone().into());
        refusal = Some(next);
    }
    problems
}

/// A reservation that has expired.
fn ended() -> Option<ReservationView> {
    let (customer, key) = (CustomerId::try_from("alice").ok()?, IdempotencyKey::try_from("basket-1").ok()?);
    let line = Line {
        product_id: ProductId::try_from("tee-black").ok()?,
        quantity: 2,
        name: "Black tee".to_owned(),
        unit_price_minor: 2_500,
        limited: true,
        takes: Vec::new(),
        revision: 0,
    };
    let (currency, made) = (Currency::in_force("EUR").ok()?, Timestamp::from_millis(1_795_244_800_428));
    let id = ReservationId::derive(&customer, &key);
    let held = Reservation::held(id, customer, vec![line], currency, HoldSeconds::DEFAULT, made);
    let expired = Reservation { status: Status::Expired, ..held };
    Some(ReservationView::new(expired, made.plus_seconds(700)))
}

/// The refusal after this one. A new refusal does not compile until it is added here.
pub(crate) fn refusal_after(refusal: Option<&Refusal>) -> Option<Refusal> {
    let product_id = ProductId::try_from("tee-black").ok()?;
    let latest = Timestamp::from_millis(1_795_244_800_428);
    let now = Timestamp::from_millis(1_795_244_200_428);
    Some(match refusal {
        None => Refusal::IdempotencyKeyReused,
        Some(Refusal::IdempotencyKeyReused) => Refusal::HoldTransferred,
        Some(Refusal::HoldTransferred) => Refusal::InvalidQuantity { product_id },
        Some(Refusal::InvalidQuantity { .. }) => Refusal::ProductNotFound { product_id },
        Some(Refusal::ProductNotFound { .. }) => Refusal::CurrencyMismatch,
        Some(Refusal::CurrencyMismatch) => Refusal::ProductNotOnSale { product_id },
        Some(Refusal::ProductNotOnSale { .. }) => Refusal::SaleNotOpen { product_id, opens_at: None, now },
        Some(Refusal::SaleNotOpen { opens_at: None, .. }) => {
            Refusal::SaleNotOpen { product_id, opens_at: Some(latest), now }
        }
        Some(Refusal::SaleNotOpen { .. }) => {
            Refusal::PriceChanged { prices: vec![CurrentPrice { product_id, unit_price_minor: 1_900 }] }
        }
        Some(Refusal::PriceChanged { .. }) => Refusal::CustomerLimitReached { product_id, limit: 4 },
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
        Some(Refusal::ProductExists { .. }) => Refusal::VersionMismatch { current: 3 },
        Some(Refusal::VersionMismatch { .. }) => Refusal::FailedConfirmationNotFound,
        Some(Refusal::FailedConfirmationNotFound) => Refusal::AlreadySettled,
        Some(Refusal::AlreadySettled) => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::CODES;

    #[test]
    fn every_code_has_an_example() {
        for code in CODES {
            assert!(examples().iter().any(|problem| problem.code.code == code.code), "{}", code.code);
        }
    }
}
