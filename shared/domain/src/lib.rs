//! The rules of Holdfast, and nothing else: no AWS, no HTTP, no async, no clock (`now` is an argument).
//!
//! Outside input becomes one of these types once, at the edge; that a value exists proves that it is valid.
//! Every branch of the business is decided here, so the adapters around it are straight lines:
//!
//! - [`draft`](fn@draft) decides whether a hold may be made, and at what price,
//! - [`shards::choose`] decides from which slices of the stock,
//! - [`decide`] has what a command does to a reservation: one function for each command,
//! - [`Failure::record`], [`FailedConfirmation::retry`] and [`FailedConfirmation::resolve`] decide what becomes of a
//!   confirmation that failed,
//! - [`RateLimit`] decides whether a customer asks too often,
//! - [`Refusal`] names every "no", in the order in which they outrank one another.
#![warn(clippy::missing_errors_doc)]

mod adjustment;
mod confirmation;
pub mod decide;
mod draft;
mod failed;
mod ids;
mod product;
mod rate;
mod refusal;
mod reservation;
pub mod shards;
pub mod text;
mod time;

pub use adjustment::Adjustment;
pub use confirmation::Confirmation;
pub use decide::{CLOCK_TOLERANCE_SECONDS, MAX_EXTENSIONS_OF_FIRST_HOLD, MAX_OWED_BACK};
pub use draft::{Basket, BasketError, Draft, DraftLine, MAX_LINES, MAX_QUANTITY, draft};
pub use failed::{
    FailedConfirmation, FailedState, Failure, NOT_CONFIRMED, RecordDecision, ResolveDecision, RetryDecision,
};
pub use ids::{CustomerId, IdempotencyKey, PaymentReference, ProductId, ReservationId, digest_id};
pub use product::{
    Currency, DEFAULT_LATE_PAYMENT_SECONDS, MAX_LATE_PAYMENT_SECONDS, MAX_PRICE_MINOR, MAX_SHARDS, MAX_TOTAL, Product,
    ProductChange, ProductStatus,
};
pub use rate::{Admission, Micros, RateLimit};
pub use refusal::{Refusal, Shortage};
pub use reservation::{Line, Reservation, Status, Take};
pub use time::{Clock, HoldSeconds, Timestamp};

/// Outside input that is not a value of the type it should become. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field as the caller names it.
    pub field: &'static str,
    /// What the field must be, in a sentence for the caller.
    pub rule: &'static str,
}

impl Invalid {
    /// An input `field` that broke `rule`.
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}
