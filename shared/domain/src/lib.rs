//! The rules of Holdfast, and nothing else: no AWS, no HTTP, no async, no clock (`now` is an argument).
//!
//! Outside input is parsed once, at the edge, into one of these types: that a value exists proves that it is valid. Every
//! business decision is made here, so the adapters around it are straight lines:
//!
//! - [`draft`](fn@draft) decides whether a hold may be made, and at what price; [`change_lines`], what it keeps and takes
//!   when its lines change,
//! - [`shards::choose`] decides which shards of the stock serve a quantity,
//! - [`decide`] has what a command does to a reservation: one function for each command,
//! - [`Failure::record`], [`FailedConfirmation::retry`] and [`FailedConfirmation::resolve`] decide what becomes of a
//!   confirmation that failed,
//! - [`audit`] judges whether a product's books agree, by what was read of a table in use,
//! - [`RateLimit`] decides whether a customer sends too many requests,
//! - [`Refusal`] names every refusal, in order of precedence.
#![warn(clippy::missing_errors_doc)]

mod adjustment;
pub mod audit;
mod cancellation;
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
pub use cancellation::{Cancellation, HoldRelease, OrderCancellation};
pub use confirmation::{Confirmation, RequestIds};
pub use decide::{CLOCK_TOLERANCE_SECONDS, MAX_EXTENSIONS_OF_FIRST_HOLD, MAX_OWED_BACK};
pub use draft::{
    Basket, BasketError, Draft, DraftLine, LinesChange, MAX_LINES, MAX_QUANTITY, RequestedLine, RequestedLines,
    change_lines, draft,
};
pub use failed::{
    FailedConfirmation, FailedState, Failure, NOT_CONFIRMED, ORDER_CANCELLED, RecordDecision, ResolveDecision,
    RetryDecision,
};
pub use ids::{ActionTarget, CustomerId, IdempotencyKey, PaymentReference, ProductId, ReservationId, digest_id};
pub use product::{
    Currency, DEFAULT_LATE_PAYMENT_SECONDS, MAX_LATE_PAYMENT_SECONDS, MAX_PRICE_MINOR, MAX_SHARDS, MAX_TOTAL, Product,
    ProductChange, ProductStatus, Stock,
};
pub use rate::{Admission, Micros, RateLimit};
pub use refusal::{CurrentPrice, Refusal, Shortage};
pub use reservation::{Line, Reservation, Status, Take};
pub use time::{Clock, HoldSeconds, Timestamp};

/// Outside input that breaks a rule. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct Invalid {
    /// The field as the caller names it.
    pub field: &'static str,
    /// What the field must be, in a sentence for the caller.
    pub rule: &'static str,
}

impl Invalid {
    /// Input in `field` that breaks `rule`.
    pub const fn new(field: &'static str, rule: &'static str) -> Self {
        Self { field, rule }
    }
}
