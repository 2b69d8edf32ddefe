//! Counting a customer's requests, in an item of its own: no other command reads or writes it.
//!
//! DynamoDB's expressions have no maximum, so the two ways that a request is admitted are two updates: from now, or one
//! interval after the last. The first is tried first, since most customers have not asked for a while. Where its
//! condition fails the answer carries the item, and that is enough to refuse. So an idle customer and one who asks too
//! often cost one round trip, and one within their burst two.
//!
//! It is right under any concurrency: each update repeats in its condition what the decision assumed, and a TAT never
//! falls. An update whose answer was lost and that is sent again may count twice, which only makes the limit stricter.

use std::time::Duration;

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::ReturnValuesOnConditionCheckFailure;
use holdfast_domain::{Admission, CustomerId, Micros, RateLimit, Timestamp};
use serde::Deserialize;

use crate::error::fault;
use crate::items::{self, number};
use crate::transact::{Expression, names, values};
use crate::{Deadline, Error, Store, keys};

/// How long after its last use an item may be cleaned up, beyond the time that it means anything.
const KEPT_SECONDS: i64 = 3_600;

#[derive(Deserialize)]
struct RateItem {
    tat: Micros,
}

impl Store {
    /// Counts one request of the customer, or says for how long none will be admitted.
    pub async fn admit(
        &self,
        customer: &CustomerId,
        limit: RateLimit,
        now: Timestamp,
        deadline: Deadline,
    ) -> Result<Result<(), Duration>, Error> {
        let now = now.as_millis() * 1_000;
        let mut admission = Admission::Idle;
        let mut attempts = self.attempts(deadline);
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
                    // Not lower than now either: others may only have raised it.
                    Expression::new("#tat <= :latest", vec![(":latest", number(limit.latest(now)))]),
                ),
                Admission::Refused(wait) => return Ok(Err(wait)),
            };
            let request = self
                .client
                .update_item()
                .table_name(&self.table)
                .set_key(Some(keys::rate(customer).item()))
                .update_expression(&update.text)
                .condition_expression(&condition.text)
                .set_expression_attribute_names(Some(names(&[&update.text, &condition.text])))
                .set_expression_attribute_values(Some(values([update, condition])))
                .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld);
            let error = match attempts.call(request.send()).await? {
                Ok(_) => return Ok(Ok(())),
                Err(error) => error,
            };
            if let Some(UpdateItemError::ConditionalCheckFailedException(failed)) = error.as_service_error() {
                // None: it was cleaned up between the two updates.
                let old = failed.item().filter(|item| !item.is_empty()).cloned();
                let old = old.map(|item| items::read::<RateItem>("rate", item)).transpose()?;
                admission = limit.decide(old.map(|old| old.tat), now);
                continue;
            }
            attempts.pause(fault("UpdateItem", &error)).await?;
        }
    }
}

fn ttl(limit: RateLimit, now: Micros) -> aws_sdk_dynamodb::types::AttributeValue {
    number((limit.latest(now) + limit.interval()) / 1_000_000 + KEPT_SECONDS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_is_kept_for_an_hour_after_it_has_lost_its_meaning() {
        // One a second and nine at once: the latest TAT that an admitted request can leave is nine seconds on.
        let limit = RateLimit::new(1, 9).unwrap();
        assert_eq!(ttl(limit, 1_763_700_000_000_000), number(1_763_700_000 + 9 + 3_600));
    }
}
