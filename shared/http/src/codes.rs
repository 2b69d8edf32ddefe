//! The table of problems: each code with its status, its meaning, and what to do about it.
//!
//! A [`Problem`](crate::Problem) is made from its row, the API description is generated from the table, and the table
//! in docs/api.md is compared with it. Codes are a contract: never rename or reuse one.

use axum::http::StatusCode;

/// A row of the table.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The code.
    pub code: &'static str,
    /// The status of every response with this code.
    pub status: StatusCode,
    /// What it means.
    pub meaning: &'static str,
    /// What the caller can do, as in docs/api.md.
    pub advice: &'static str,
    /// Members of the problem beside those that every problem has.
    pub members: &'static [Member],
}

/// A member that helps the caller to act.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be absent.
    pub optional: bool,
    /// The type of its value.
    pub value: MemberValue,
    /// What it means.
    pub meaning: &'static str,
}

/// The type of a member's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberValue {
    /// The id of a product.
    ProductId,
    /// A string.
    Text,
    /// A point in time.
    Time,
    /// A point in time, or null.
    TimeOrNull,
    /// A whole number from 0.
    Count,
    /// True or false.
    Flag,
    /// Lines that cannot be reserved: `product_id`, `requested`, `available`.
    Shortages,
    /// Products with their price: `product_id`, `unit_price_minor`.
    Prices,
    /// A reservation.
    Reservation,
}

const fn member(name: &'static str, value: MemberValue, meaning: &'static str) -> Member {
    Member { name, optional: false, value, meaning }
}

impl Member {
    const fn optional(self) -> Self {
        Self { optional: true, ..self }
    }
}

const PRODUCT: Member = member("product_id", MemberValue::ProductId, "The product.");
const FIELD: Member = member(
    "field",
    MemberValue::Text,
    "Path of the field, as in `lines[0].quantity`; or the parameter or header; or `body` or `query` as a whole.",
);
const RETRY_AFTER: Member =
    member("retry_after_seconds", MemberValue::Count, "Seconds to wait before a retry, as in `Retry-After`.");

/// Defines a constant for each row, and the table of all.
macro_rules! table {
    ($($name:ident = $code:literal, $status:ident, $meaning:literal, $advice:literal $(, [$($member:expr),+])?;)+) => {
        $(
            #[doc = concat!("`", $code, "`: ", $meaning)]
            pub const $name: Code = Code {
                code: $code,
                status: StatusCode::$status,
                meaning: $meaning,
                advice: $advice,
                members: &[$($($member),+)?],
            };
        )+

        /// All rows, by status and then in the order of docs/api.md.
        pub const CODES: &[Code] = &[$($name),+];
    };
}

table! {
    INVALID_REQUEST = "invalid_request", BAD_REQUEST,
        "The request is not valid.",
        "Fix the `field` that `detail` explains. Unknown fields are refused, and unknown query parameters too, except \
         on public routes.",
        [FIELD];
    IDEMPOTENCY_KEY_MISSING = "idempotency_key_missing", BAD_REQUEST,
        "The header `Idempotency-Key` is missing.",
        "Send an `Idempotency-Key`.",
        [FIELD];
    IDEMPOTENCY_KEY_INVALID = "idempotency_key_invalid", BAD_REQUEST,
        "The `Idempotency-Key` is empty, too long, not printable ASCII or has a space at an end, or there are \
         several.",
        "Send one key of 1 to 255 printable ASCII characters, with no space at either end. Quote a key that has a \
         comma.",
        [FIELD];
    UNAUTHENTICATED = "unauthenticated", UNAUTHORIZED,
        "The token is missing, has expired or is not valid for this API.",
        "Get a valid access token. `WWW-Authenticate` says whether there was one, and `detail` whether it was an ID token.";
    FORBIDDEN = "forbidden", FORBIDDEN,
        "The token's role does not allow this.",
        "Use an admin's token for admin routes; an auditor may only read. Send `customer_id` only with a service's token. \
         Use one to transfer a hold or to cancel an order.";
    CONFIRMATION_NOT_ALLOWED = "confirmation_not_allowed", FORBIDDEN,
        "Customers may not confirm reservations here.",
        "Confirm with a service's token, from the shop's back end, once the payment was taken. This request recorded nothing.";
    ROUTE_NOT_FOUND = "route_not_found", NOT_FOUND,
        "There is no such route.",
        "Fix the path.";
    PRODUCT_NOT_FOUND = "product_not_found", NOT_FOUND,
        "There is no such product.",
        "Check the product's id (`product_id`).",
        [PRODUCT.optional()];
    RESERVATION_NOT_FOUND = "reservation_not_found", NOT_FOUND,
        "There is no such reservation or order, or it belongs to another customer.",
        "Check the id. A payment that was sent with the request is recorded as a failed confirmation.";
    FAILED_CONFIRMATION_NOT_FOUND = "failed_confirmation_not_found", NOT_FOUND,
        "There is no such failed confirmation.",
        "Check the id.";
    METHOD_NOT_ALLOWED = "method_not_allowed", METHOD_NOT_ALLOWED,
        "The path does not support this method.",
        "Use one of the methods in `Allow`.";
    PRODUCT_NOT_ON_SALE = "product_not_on_sale", CONFLICT,
        "The product is paused or archived.",
        "Try again later, if the product (`product_id`) is only paused: its `status` says so.",
        [PRODUCT];
    SALE_NOT_OPEN = "sale_not_open", CONFLICT,
        "The product's sale has not started or is over.",
        "Try again at `sale_starts_at`. If that is null, the sale is over.",
        [PRODUCT,
         member("sale_starts_at", MemberValue::TimeOrNull, "Start of the sale. Null: the sale is over."),
         member("server_time", MemberValue::Time, "The server's time of this response, for a countdown.")];
    PRICE_CHANGED = "price_changed", CONFLICT,
        "A product has another price than the `unit_price_minor` in the request.",
        "Show the customer the new price of each of the `lines`, and ask again. Nothing is held.",
        [member("lines", MemberValue::Prices, "The products whose price differs, with their price now.")];
    CUSTOMER_LIMIT_REACHED = "customer_limit_reached", CONFLICT,
        "The customer would hold and own more units of the product than one customer may.",
        "Reserve fewer units: `max_per_customer` counts all units that the customer holds and owns, including \
         those from before the limit was set.",
        [PRODUCT,
         member("max_per_customer", MemberValue::Count, "Maximum number of units that one customer may hold and own.")];
    INSUFFICIENT_STOCK = "insufficient_stock", CONFLICT,
        "Too few units are available. No units were taken for any line.",
        "Reserve at most `available` units of each of the `lines`, or try again later: holds may expire. An admin \
         gets this when removing more units than are available.",
        [member("lines", MemberValue::Shortages, "The lines with too few units.")];
    ALREADY_CONFIRMED = "already_confirmed", CONFLICT,
        "The reservation is already an order.",
        "Nothing is left to do. With `refund_required: true` the request named another payment, which is recorded \
         for a refund.",
        [member("refund_required", MemberValue::Flag, "Whether the request named another payment, which must be refunded.")];
    REFUND_REQUIRED = "refund_required", CONFLICT,
        "The payment cannot be accepted and must be refunded.",
        "The units are gone, the customer's limit is reached, the reservation was cancelled, or more than \
         `late_payment_seconds` have passed since the hold ended. The payment is recorded as a failed confirmation. This answer is final: the payment \
         makes no order of this reservation afterwards, unless an admin retries it.";
    RESERVATION_CANCELLED = "reservation_cancelled", CONFLICT,
        "The reservation was cancelled.",
        "Create a new reservation with a new key.";
    HOLD_ENDED = "hold_ended", CONFLICT,
        "The reservation of this `Idempotency-Key` has expired or was cancelled.",
        "Nothing is held. To reserve again, use a new key; `reservation` is the one that ended.",
        [member("reservation", MemberValue::Reservation, "The reservation that this key made.")];
    HOLD_TRANSFERRED = "hold_transferred", CONFLICT,
        "The hold of this key was handed to another customer.",
        "No second hold is made. Continue for the new customer, or reserve again with a new key.";
    EXTENSION_LIMIT_REACHED = "extension_limit_reached", CONFLICT,
        "All extensions together may be at most twice the original hold.",
        "Extend the hold until `latest` at most.",
        [member("latest", MemberValue::Time, "The latest time until which the hold can be extended.")];
    PRODUCT_EXISTS = "product_exists", CONFLICT,
        "There is already a product with this id.",
        "Choose another `product_id`, or change the product.",
        [PRODUCT];
    VERSION_MISMATCH = "version_mismatch", CONFLICT,
        "The product has changed since it was read.",
        "Read the product again: `current` is its version, or its total if `expected_total` was sent.",
        [member("current", MemberValue::Count, "The current version or total.")];
    ALREADY_SETTLED = "already_settled", CONFLICT,
        "The failed confirmation is already settled.",
        "Nothing is left to do for this failed confirmation.";
    HOLD_EXPIRED = "hold_expired", GONE,
        "The hold has expired.",
        "Create a new reservation with a new key. If the confirmation of a payment was queued (202), repeat that one first: it may \
         still make the order.";
    PAYLOAD_TOO_LARGE = "payload_too_large", PAYLOAD_TOO_LARGE,
        "The body is too large.",
        "Send at most 65,536 bytes, on every route.";
    UNSUPPORTED_CONTENT_ENCODING = "unsupported_content_encoding", UNSUPPORTED_MEDIA_TYPE,
        "The body is compressed.",
        "Send the body without `Content-Encoding`.";
    IDEMPOTENCY_KEY_REUSED = "idempotency_key_reused", UNPROCESSABLE_ENTITY,
        "The key was used before with a different request.",
        "Use a new key.";
    INVALID_QUANTITY = "invalid_quantity", UNPROCESSABLE_ENTITY,
        "A quantity is not a whole number from 1 to 1,000.",
        "Reserve 1 to 1,000 units of each product (`product_id`). Lines of the same product are added up.",
        [PRODUCT];
    CURRENCY_MISMATCH = "currency_mismatch", UNPROCESSABLE_ENTITY,
        "The products have different currencies.",
        "Reserve products of one currency at a time.";
    RATE_LIMITED = "rate_limited", TOO_MANY_REQUESTS,
        "The customer has sent too many requests that change something.",
        "Nothing was done. Retry the same request, with the same key, after `Retry-After` seconds.",
        [RETRY_AFTER];
    INTERNAL_ERROR = "internal_error", INTERNAL_SERVER_ERROR,
        "Something went wrong in Holdfast.",
        "Report it with its `request_id`. A retry does not help.";
    UNAVAILABLE = "unavailable", SERVICE_UNAVAILABLE,
        "There was no clear result in time.",
        "Nothing was acknowledged. Retry the same request, with the same key, after `Retry-After` seconds.",
        [RETRY_AFTER];
}

/// The row of `code`.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|row| row.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_sorted_by_status() {
        for (n, code) in CODES.iter().enumerate() {
            assert!(CODES[n + 1..].iter().all(|other| other.code != code.code), "{} twice", code.code);
        }
        assert!(CODES.is_sorted_by_key(|code| code.status.as_u16()));
    }
}
