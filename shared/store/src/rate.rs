//! Counting a customer's requests, in an item that no other command reads or writes.
//!
//! DynamoDB's expressions have no maximum, so the two ways to admit a request are two updates: from now, or one
//! interval after the last TAT. The first is tried first, since most customers have not sent a request for a while. If
//! its condition fails the answer carries the item, which is enough to refuse. So an idle customer and one who is
//! refused cost one round trip, and one within their burst two.
//!
//! An item takes about a thousand writes a second, and then throttles. Only its own customer writes to it, so a
//! throttle of the item means that this customer sends far too many requests, and refuses them. A missing answer
//! refuses nobody.
//!
//! It is correct under any concurrency: each update repeats in its condition what the decision assumed, and a TAT never
//! falls. An update that is repeated after a lost answer may count twice, which only makes the limit stricter.

use std::time::Duration;

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::ThrottlingReason;
use holdfast_domain::{Admission, CustomerId, Micros, RateLimit, Timestamp};
use serde::Deserialize;

use crate::error::call_error;
use crate::items::{self, number};
use crate::update::{Expression, condition_failed};
use crate::{Deadline, Error, Store, keys};

/// How long a customer whose item throttles is refused. Their TAT is unknown; DynamoDB counts by the second.
const THROTTLED_WAIT: Duration = Duration::from_secs(1);

/// How long an item is kept after it has no effect any more.
const KEPT_SECONDS: i64 = 3_600;

/// Whether a request is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admitted {
    /// Yes, and it is counted.
    Yes,
    /// No, and no request will be before this time has passed.
    RetryAfter(Duration),
}

#[derive(Deserialize)]
struct RateItem {
    tat: Micros,
}

impl Store {
    /// Counts one request of the customer, or says how long none will be admitted.
    ///
    /// A customer whose own item throttles until the deadline is refused. A throttle of the whole table or account, or
    /// a missing answer, says nothing about the customer, and is an error.
    ///
    /// # Errors
    /// [`Error::Unavailable`] without an answer within the deadline that says something about the customer.
    pub async fn admit(
        &self,
        customer: &CustomerId,
        limit: RateLimit,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Admitted, Error> {
        let now = now.as_millis() * 1_000;
        let mut admission = Admission::Idle;
        let mut attempts = self.attempts(deadline);
        let mut throttled = false;
        loop {
            let (update, condition) = match admission {
                Admission::Idle => (
                    Expression::new(
                        "SET #tat = :next, #ttl = :ttl",
                        vec![(":next", number(now + limit.interval())), (":ttl", ttl(limit, now))],
                    ),
                    Expression::new("attribute_not_exists(#tat) OR #tat <= :now", vec![(":now", number(now))]),
                ),
                Admission::Within => (
                    Expression::new(
                        "SET #tat = #tat + :interval, #ttl = :ttl",
                        vec![(":interval", number(limit.interval())), (":ttl", ttl(limit, now))],
                    ),
                    // Not lower than now either: others can only have raised it.
                    Expression::new("#tat <= :latest", vec![(":latest", number(limit.latest(now)))]),
                ),
                Admission::Refused(wait) => return Ok(Admitted::RetryAfter(wait)),
            };
            let request = self.update_request(&keys::rate(customer), update, condition);
            let error = match attempts.call(request.send()).await {
                Ok(Ok(_)) => return Ok(Admitted::Yes),
                Ok(Err(error)) => error,
                Err(_) if throttled => return Ok(Admitted::RetryAfter(THROTTLED_WAIT)),
                Err(error) => return Err(error),
            };
            // No item: it was deleted between the two updates.
            if let Some(old) = error.as_service_error().and_then(condition_failed) {
                let old = old.map(|item| items::read::<RateItem>("rate", item)).transpose()?;
                admission = limit.decide(old.map(|old| old.tat), now);
                continue;
            }
            throttled |= error.as_service_error().is_some_and(is_flood);
            match attempts.pause(call_error("UpdateItem", &error)).await {
                Ok(()) => {}
                Err(Error::Unavailable { .. }) if throttled => return Ok(Admitted::RetryAfter(THROTTLED_WAIT)),
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the error says that this item is throttled, rather than the table or the account.
fn is_flood(error: &UpdateItemError) -> bool {
    let reasons = match error {
        UpdateItemError::ProvisionedThroughputExceededException(error) => error.throttling_reasons(),
        UpdateItemError::ThrottlingException(error) => error.throttling_reasons(),
        // The account's own limit.
        _ => return false,
    };
    let of_item = |reason: &ThrottlingReason| reason.reason().is_none_or(|reason| reason.contains("KeyRange"));
    reasons.is_empty() || reasons.iter().any(of_item)
}

fn ttl(limit: RateLimit, now: Micros) -> aws_sdk_dynamodb::types::AttributeValue {
    number((limit.latest(now) + limit.interval()) / 1_000_000 + KEPT_SECONDS)
}

#[cfg(test)]
mod tests {
    use aws_sdk_dynamodb::types::error::{
        ProvisionedThroughputExceededException, RequestLimitExceeded, ThrottlingException,
    };

    use super::*;

    #[test]
    fn a_throttle_of_the_item_refuses_its_customer_and_one_of_the_table_does_not() {
        let reason = |text: &str| ThrottlingReason::builder().reason(text).build();
        let provisioned = |reasons: &[&str]| {
            let error = ProvisionedThroughputExceededException::builder();
            let error = error.set_throttling_reasons(Some(reasons.iter().map(|text| reason(text)).collect()));
            UpdateItemError::ProvisionedThroughputExceededException(error.build())
        };
        let on_demand = |text: &str| {
            let error = ThrottlingException::builder().throttling_reasons(reason(text)).build();
            UpdateItemError::ThrottlingException(error)
        };
        let account = UpdateItemError::RequestLimitExceeded(RequestLimitExceeded::builder().build());
        for (error, own) in [
            (provisioned(&[]), true),
            (provisioned(&["TableWriteKeyRangeThroughputExceeded"]), true),
            (provisioned(&["TableWriteProvisionedThroughputExceeded"]), false),
            (on_demand("TableWriteKeyRangeThroughputExceeded"), true),
            (on_demand("TableWriteMaxOnDemandThroughputExceeded"), false),
            (on_demand("TableWriteAccountLimitExceeded"), false),
            (account, false),
        ] {
            assert_eq!(is_flood(&error), own, "{error:?}");
        }
    }

    #[test]
    fn an_item_is_kept_for_an_hour_after_it_has_no_effect_any_more() {
        // One a second and nine at once: an admitted request leaves a TAT of at most nine seconds from now.
        let limit = RateLimit::new(1, 9).unwrap();
        assert_eq!(ttl(limit, 1_763_700_000_000_000), number(1_763_700_000 + 9 + 3_600));
    }
}
