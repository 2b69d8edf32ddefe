//! Every business "no", by name.

use crate::{ProductId, Timestamp};

/// Why a command changed nothing.
///
/// The variants stand in the order of precedence: where several hold at once, the caller is told the first. An
/// existing reservation outranks everything that stock or product could say, so the owner of a hold is never told
/// "sold out". Each has one stable [`code`](Self::code); `holdfast-http` is the one place that gives it a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was used before, with another request.
    #[error("this Idempotency-Key was used before with another request")]
    IdempotencyKeyReused,
    /// A quantity that is not a whole number from 1 to 1,000, after lines of one product were merged.
    #[error("the quantity of {product_id} must be a whole number from 1 to 1000")]
    InvalidQuantity {
        /// Whose quantity.
        product_id: ProductId,
    },
    /// No such product.
    #[error("there is no product {product_id}")]
    ProductNotFound {
        /// The product asked for.
        product_id: ProductId,
    },
    /// Products of different currencies in one reservation.
    #[error("all products of one reservation must have the same currency")]
    CurrencyMismatch,
    /// The product is paused.
    #[error("{product_id} is not on sale")]
    ProductNotOnSale {
        /// The paused product.
        product_id: ProductId,
    },
    /// Outside the product's sale window.
    #[error("the sale of {product_id} is not open")]
    SaleNotOpen {
        /// The product.
        product_id: ProductId,
        /// When the sale opens, if that is still to come.
        opens_at: Option<Timestamp>,
    },
    /// The customer would hold or own more of the product than its limit allows.
    #[error("at most {limit} of {product_id} for each customer")]
    CustomerLimitReached {
        /// The product.
        product_id: ProductId,
        /// The most units that one customer may hold and own together.
        limit: u32,
    },
    /// Not enough units are free.
    #[error("not enough stock")]
    InsufficientStock {
        /// The lines that fall short.
        shortages: Vec<Shortage>,
    },
    /// No such reservation, or another customer's.
    #[error("there is no such reservation")]
    ReservationNotFound,
    /// The reservation is an order already.
    #[error("the reservation is confirmed already")]
    AlreadyConfirmed {
        /// A payment came in that is not the one that the order was confirmed with: somebody is owed a refund.
        other_payment: bool,
    },
    /// A payment was taken, and the units are gone.
    #[error("the units are no longer available, and the payment must be refunded")]
    RefundRequired,
    /// The customer gave the hold up.
    #[error("the reservation was cancelled")]
    ReservationCancelled,
    /// The hold's time is over.
    #[error("the hold has expired")]
    HoldExpired,
    /// All extensions together would exceed twice the first hold.
    #[error("the hold cannot be extended that far")]
    ExtensionLimitReached {
        /// The latest time that the hold can be extended to.
        latest: Timestamp,
    },
    /// A product of that id exists.
    #[error("there is a product {product_id} already")]
    ProductExists {
        /// The id.
        product_id: ProductId,
    },
    /// The caller's idea of the current value is out of date.
    #[error("the current value is another: {current}")]
    VersionMismatch {
        /// The product's version, or its total where `expected_total` was compared.
        current: u64,
    },
    /// No such failed confirmation.
    #[error("there is no such failed confirmation")]
    FailedConfirmationNotFound,
    /// The failed confirmation was settled before.
    #[error("the failed confirmation is settled already")]
    AlreadySettled,
}

/// One line that cannot be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The product.
    pub product_id: ProductId,
    /// Units asked for.
    pub requested: u32,
    /// Units free when they were last counted.
    pub available: u64,
}

impl Refusal {
    /// The stable code that callers branch on. Codes are never renamed and never reused.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::InvalidQuantity { .. } => "invalid_quantity",
            Self::ProductNotFound { .. } => "product_not_found",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::ProductNotOnSale { .. } => "product_not_on_sale",
            Self::SaleNotOpen { .. } => "sale_not_open",
            Self::CustomerLimitReached { .. } => "customer_limit_reached",
            Self::InsufficientStock { .. } => "insufficient_stock",
            Self::ReservationNotFound => "reservation_not_found",
            Self::AlreadyConfirmed { .. } => "already_confirmed",
            Self::RefundRequired => "refund_required",
            Self::ReservationCancelled => "reservation_cancelled",
            Self::HoldExpired => "hold_expired",
            Self::ExtensionLimitReached { .. } => "extension_limit_reached",
            Self::ProductExists { .. } => "product_exists",
            Self::VersionMismatch { .. } => "version_mismatch",
            Self::FailedConfirmationNotFound => "failed_confirmation_not_found",
            Self::AlreadySettled => "already_settled",
        }
    }

    /// Whether a payment that came with the command must be given back, so that it has to be recorded somewhere
    /// durable before this refusal is spoken. One for a reservation that does not exist, or is another customer's, bought
    /// nothing either.
    pub const fn owes_refund(&self) -> bool {
        matches!(
            self,
            Self::RefundRequired | Self::AlreadyConfirmed { other_payment: true } | Self::ReservationNotFound
        )
    }
}
