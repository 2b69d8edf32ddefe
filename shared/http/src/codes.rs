//! Every problem code: its status, what it means, and what to do about it.
//!
//! The one list: the API's description is made of it, README's table is compared with it, and a debug build refuses
//! to make a [`Problem`](crate::Problem) that is not on it. Codes are a contract: never renamed, never reused.

/// What is promised of one code.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    /// The code.
    pub code: &'static str,
    /// The one status that it comes with.
    pub status: u16,
    /// What it means.
    pub meaning: &'static str,
    /// What the caller can do, as in README.
    pub advice: &'static str,
    /// The members that it has beside those of every problem.
    pub members: &'static [Member],
}

/// A member that helps the caller to act.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its name.
    pub name: &'static str,
    /// Whether it may be absent.
    pub optional: bool,
    /// What it holds.
    pub value: MemberValue,
    /// What it means.
    pub meaning: &'static str,
}

/// What a member holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberValue {
    /// The id of a product.
    ProductId,
    /// A text.
    Text,
    /// A point in time.
    Time,
    /// A point in time, or null.
    TimeOrNull,
    /// A whole number from 0.
    Count,
    /// True or false.
    Flag,
    /// Lines that cannot be served: `product_id`, `requested`, `available`.
    Shortages,
}

const fn member(name: &'static str, value: MemberValue, meaning: &'static str) -> Member {
    Member { name, optional: false, value, meaning }
}

const fn code(code: &'static str, status: u16, meaning: &'static str, advice: &'static str) -> Code {
    Code { code, status, meaning, advice, members: &[] }
}

impl Code {
    const fn with(self, members: &'static [Member]) -> Self {
        Self { members, ..self }
    }
}

const PRODUCT: Member = member("product_id", MemberValue::ProductId, "The product that it is about.");
const RETRY_AFTER: Member =
    member("retry_after_seconds", MemberValue::Count, "After how many seconds to try again, as in `Retry-After`.");

/// All codes, by status and then in README's order.
pub const CODES: &[Code] = &[
    code(
        "invalid_request",
        400,
        "The request breaks a rule of this description.",
        "Fix the request; `detail` (and often `field`) says what is wrong. Unknown fields are refused, and unknown query \
         parameters wherever a token is needed.",
    )
    .with(&[Member {
        optional: true,
        ..member("field", MemberValue::Text, "The field that is wrong, where it is a single one.")
    }]),
    code("idempotency_key_missing", 400, "The header is not there.", "Send an `Idempotency-Key`."),
    code(
        "idempotency_key_invalid",
        400,
        "The `Idempotency-Key` is empty, too long, not plain text or has a blank at an end, or there is more than one.",
        "One key of 1 to 255 printable ASCII characters, with no blank at either end; one with a comma in quotes.",
    ),
    code("unauthenticated", 401, "There is no token, or not one that can be believed.", "Get a valid token."),
    code(
        "forbidden",
        403,
        "The token is good, and its role does not allow this.",
        "The token is no admin's; or it is no service's, and names a `customer_id`.",
    ),
    code("route_not_found", 404, "There is nothing at this path.", "Fix the path."),
    code("product_not_found", 404, "There is no such product.", "No product of that id (`product_id`).")
        .with(&[Member { optional: true, ..PRODUCT }]),
    code(
        "reservation_not_found",
        404,
        "There is no such reservation, or it is not the caller's.",
        "No such reservation or order, or another customer's. A payment that was named with it bought nothing: it is \
         recorded as a failed confirmation.",
    ),
    code(
        "failed_confirmation_not_found",
        404,
        "There is no such failed confirmation.",
        "No failed confirmation of that id.",
    ),
    code(
        "method_not_allowed",
        405,
        "The path is there, and does not answer to this method.",
        "Use a method that the path has: see `Allow`.",
    ),
    code("product_not_on_sale", 409, "The product is paused.", "The product (`product_id`) is paused. Try later.")
        .with(&[PRODUCT]),
    code(
        "sale_not_open",
        409,
        "It is too early or too late: outside the product's sale.",
        "Come back at `sale_starts_at`; if that is null, the sale is over.",
    )
    .with(&[PRODUCT, member("sale_starts_at", MemberValue::TimeOrNull, "When the sale opens. Null: it is over.")]),
    code(
        "customer_limit_reached",
        409,
        "The customer would hold and own more of the product than one customer may.",
        "Ask for less: `max_per_customer` counts all units that the customer holds and owns, including those from \
         before the limit was set.",
    )
    .with(&[
        PRODUCT,
        member("max_per_customer", MemberValue::Count, "The most units that one customer may hold and own."),
    ]),
    code(
        "insufficient_stock",
        409,
        "Fewer units are free than were asked for. Nothing was taken, of any line.",
        "Ask for at most `available` of each of the `lines`, or later: holds may end. Also when an admin takes away \
         more than is free.",
    )
    .with(&[member("lines", MemberValue::Shortages, "The lines that fall short.")]),
    code(
        "already_confirmed",
        409,
        "The reservation is an order already.",
        "It is an order. With `refund_required: true` the payment was another one: it is recorded for a refund.",
    )
    .with(&[member(
        "refund_required",
        MemberValue::Flag,
        "Whether the request brought another payment, which has to be given back.",
    )]),
    code(
        "refund_required",
        409,
        "A payment was taken, and there is nothing to give for it.",
        "The payment bought nothing: the units are gone, the reservation was cancelled, or more than \
         `late_payment_seconds` have passed since the hold ended. It is recorded as a failed confirmation. This answer \
         is final: the payment makes no order afterwards, unless an admin retries it.",
    ),
    code("reservation_cancelled", 409, "The reservation was cancelled.", "Create a new reservation with a new key."),
    code(
        "extension_limit_reached",
        409,
        "All extensions together may be at most twice the first hold.",
        "The hold can last until `latest`, and no longer.",
    )
    .with(&[member("latest", MemberValue::Time, "Until when the hold could be extended.")]),
    code(
        "product_exists",
        409,
        "There is a product of that id already.",
        "Choose another `product_id`, or change the product.",
    )
    .with(&[PRODUCT]),
    code(
        "version_mismatch",
        409,
        "Somebody else changed it since it was read.",
        "Read again: `current` is the product's version (or its total, where `expected_total` was given).",
    )
    .with(&[member("current", MemberValue::Count, "The version, or the total, as it is now.")]),
    code(
        "already_settled",
        409,
        "The failed confirmation was settled before.",
        "Nothing is left to do for this failed confirmation.",
    ),
    code("hold_expired", 410, "The hold's time is over.", "Create a new reservation with a new key."),
    code("payload_too_large", 413, "The body is too long.", "At most 65,536 bytes, on every route."),
    code(
        "idempotency_key_reused",
        422,
        "The key was used before, with another request.",
        "The key belongs to another request: use a new one.",
    ),
    code(
        "invalid_quantity",
        422,
        "A quantity is not a whole number from 1 to 1,000.",
        "A whole number from 1 to 1,000 for each product (`product_id`), after lines of one product were merged.",
    )
    .with(&[PRODUCT]),
    code("currency_mismatch", 422, "The products have different currencies.", "One currency a reservation."),
    code(
        "rate_limited",
        429,
        "The customer has sent too many requests that change something, or so many that they could not be counted.",
        "Nothing was done. Send the same request, with the same key, after `Retry-After` seconds.",
    )
    .with(&[RETRY_AFTER]),
    code(
        "internal_error",
        500,
        "Something is wrong on this side.",
        "Report it with its `request_id`. Repeating it does not help.",
    ),
    code(
        "unavailable",
        503,
        "There was no clear answer in time.",
        "Nothing was acknowledged. Send the same request, with the same key, after `Retry-After` seconds.",
    )
    .with(&[RETRY_AFTER]),
];

/// What is promised of `code`.
pub fn find(code: &str) -> Option<&'static Code> {
    CODES.iter().find(|known| known.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_stands_once_and_the_list_is_in_order() {
        for (n, code) in CODES.iter().enumerate() {
            assert!(CODES[n + 1..].iter().all(|other| other.code != code.code), "{} twice", code.code);
        }
        assert!(CODES.is_sorted_by_key(|code| code.status));
    }
}
