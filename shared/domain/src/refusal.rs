//! Every refusal, by name.

use crate::{ProductId, Timestamp};

/// Why a command changed nothing.
///
/// The variants are in order of precedence: if several apply, the caller is told the first. An existing reservation has
/// precedence over all that depends on products and stock, so the owner of a hold is never told "sold out". Each refusal
/// has one stable [`code`](Self::code); `holdfast-http` gives it a status.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The key was used before, with another request.
    #[error("this Idempotency-Key was used before with another request")]
    IdempotencyKeyReused,
    /// The hold of this key was handed to another customer.
    #[error("the hold of this Idempotency-Key was handed to another customer")]
    HoldTransferred,
    /// A quantity that is not a whole number from 1 to 1,000, after lines of one product were merged.
    #[error("the quantity of {product_id} must be a whole number from 1 to 1000")]
    InvalidQuantity {
        /// The product.
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
    /// The product is paused or archived.
    #[error("{product_id} is not on sale")]
    ProductNotOnSale {
        /// The product.
        product_id: ProductId,
    },
    /// Outside the product's sale window.
    #[error("the sale of {product_id} is not open")]
    SaleNotOpen {
        /// The product.
        product_id: ProductId,
        /// When the sale opens, if that is still to come.
        opens_at: Option<Timestamp>,
        /// The time by which this was decided.
        now: Timestamp,
    },
    /// A product has another price than the one that the customer saw.
    #[error("the price has changed")]
    PriceChanged {
        /// The products whose price differs, with their price now.
        prices: Vec<CurrentPrice>,
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
    /// There is no such reservation, or it is another customer's.
    #[error("there is no such reservation")]
    ReservationNotFound,
    /// The reservation is an order already.
    #[error("the reservation is confirmed already")]
    AlreadyConfirmed {
        /// The confirmation has another payment than the order: a refund is due.
        other_payment: bool,
    },
    /// A payment was taken, and can buy nothing: a refund is due.
    #[error("the payment cannot be accepted and must be refunded")]
    RefundRequired,
    /// The customer cancelled the reservation.
    #[error("the reservation was cancelled")]
    ReservationCancelled,
    /// The hold has expired.
    #[error("the hold has expired")]
    HoldExpired,
    /// All extensions together would exceed twice the first hold.
    #[error("the hold cannot be extended that far")]
    ExtensionLimitReached {
        /// The latest time that the hold can be extended to.
        latest: Timestamp,
    },
    /// A product with that id exists.
    #[error("there is a product {product_id} already")]
    ProductExists {
        /// The id.
        product_id: ProductId,
    },
    /// The caller's version or total is out of date.
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

/// The price of a product now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CurrentPrice {
    /// The product.
    pub product_id: ProductId,
    /// The price of one unit, in the currency's minor unit.
    pub unit_price_minor: u64,
}

/// A line with too few free units.
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
    /// The stable code for callers to branch on. Codes are never renamed or reused.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::IdempotencyKeyReused => "idempotency_key_reused",
            Self::HoldTransferred => "hold_transferred",
            Self::InvalidQuantity { .. } => "invalid_quantity",
            Self::ProductNotFound { .. } => "product_not_found",
            Self::CurrencyMismatch => "currency_mismatch",
            Self::ProductNotOnSale { .. } => "product_not_on_sale",
            Self::SaleNotOpen { .. } => "sale_not_open",
            Self::PriceChanged { .. } => "price_changed",
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

    /// Whether a payment in the command must be refunded. It must then be recorded durably before the caller is told. A
    /// payment for a reservation that does not exist, or is another customer's, has bought nothing either.
    pub const fn owes_refund(&self) -> bool {
        match self {
            Self::RefundRequired | Self::AlreadyConfirmed { other_payment: true } | Self::ReservationNotFound => true,
            Self::IdempotencyKeyReused
            | Self::HoldTransferred
            | Self::InvalidQuantity { .. }
            | Self::ProductNotFound { .. }
            | Self::CurrencyMismatch
            | Self::ProductNotOnSale { .. }
            | Self::SaleNotOpen { .. }
            | Self::PriceChanged { .. }
            | Self::CustomerLimitReached { .. }
            | Self::InsufficientStock { .. }
            | Self::AlreadyConfirmed { other_payment: false }
            | Self::ReservationCancelled
            | Self::HoldExpired
            | Self::ExtensionLimitReached { .. }
            | Self::ProductExists { .. }
            | Self::VersionMismatch { .. }
            | Self::FailedConfirmationNotFound
            | Self::AlreadySettled => false,
        }
    }
}
