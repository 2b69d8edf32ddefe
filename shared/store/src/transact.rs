//! Transactions, and what a cancelled one says.
//!
//! DynamoDB answers a cancelled transaction with one reason for each action, in the order of the actions. That order is
//! the only link between the two, so an action and its meaning are added together.
//!
//! Two rules for reading such an answer. If an action met a conflict or was throttled, its condition was not evaluated:
//! nothing is concluded from it. And the conditions of a transaction are not evaluated at one instant, so a refusal about
//! an item reads that item last, in a [`snapshot`](Store::snapshot) with everything else the refusal is based on.

use std::collections::HashMap;

use aws_sdk_dynamodb::error::{BuildError, SdkError};
use aws_sdk_dynamodb::operation::transact_get_items::TransactGetItemsError;
use aws_sdk_dynamodb::operation::transact_get_items::builders::TransactGetItemsFluentBuilder;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::transact_write_items::builders::TransactWriteItemsFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, CancellationReason, ConditionCheck, Get, Put, ReturnConsumedCapacity,
    ReturnValuesOnConditionCheckFailure, TransactGetItem, TransactWriteItem, Update,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;

use crate::error::{Attempts, CallError, call_error};
use crate::keys::Key;
use crate::update::{Change, Expression, names, values};
use crate::{Error, Item, Store};

/// The code of a reason: another transaction was on the item.
const CONFLICT: &str = "TransactionConflict";
/// The codes of a reason: throttled.
const THROTTLED: [&str; 2] = ["ThrottlingError", "ProvisionedThroughputExceeded"];

/// The most actions of one transaction.
pub(crate) const MAX_ACTIONS: usize = 100;

/// Actions that are applied together or not at all, each with its meaning for the caller.
pub(crate) struct Transaction<'a, A> {
    table: &'a str,
    actions: Vec<(A, TransactWriteItem)>,
}

impl Reason {
    /// Whether the action's condition was not evaluated.
    pub(crate) fn hides_condition(&self) -> bool {
        matches!(self, Self::Conflict | Self::Throttled)
    }
}

/// Why one action stopped its transaction.
#[derive(Debug)]
pub(crate) enum Reason {
    /// Its condition failed; on this item, if there is one.
    Condition(Option<Item>),
    /// Another transaction was on its item.
    Conflict,
    /// It was throttled.
    Throttled,
}

/// What came of a transaction.
pub(crate) enum Outcome<A> {
    /// All of it was applied.
    Applied,
    /// No answer says whether it was applied, or it was throttled. The backoff is over: try again.
    TryAgain,
    /// Nothing was applied. These actions stopped it: at least one.
    Cancelled(Vec<(A, Reason)>),
}

impl<'a, A: Clone> Transaction<'a, A> {
    pub(crate) fn new(table: &'a str) -> Self {
        Self { table, actions: Vec::new() }
    }

    /// Puts a whole item where `condition` holds.
    pub(crate) fn put(&mut self, means: A, item: Item, condition: &str) -> Result<(), Error> {
        let put = Put::builder()
            .table_name(self.table)
            .set_item(Some(item))
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names(&[condition])))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
            .map_err(incomplete)?;
        self.actions.push((means, TransactWriteItem::builder().put(put).build()));
        Ok(())
    }

    /// Updates an item where the condition holds.
    pub(crate) fn update(&mut self, means: A, key: &Key, (update, condition): Change) -> Result<(), Error> {
        let texts = [update.text.clone(), condition.text.clone()];
        let names = names(&texts.each_ref().map(String::as_str));
        self.update_named(means, key, texts, names, values([update, condition]))
    }

    /// The same with names and values for all that these expressions have: the update, and the condition.
    pub(crate) fn update_named(
        &mut self,
        means: A,
        key: &Key,
        [update, condition]: [String; 2],
        names: HashMap<String, String>,
        values: HashMap<String, AttributeValue>,
    ) -> Result<(), Error> {
        let action = Update::builder()
            .table_name(self.table)
            .set_key(Some(key.item()))
            .update_expression(update)
            .condition_expression(condition)
            .set_expression_attribute_names(Some(names))
            .set_expression_attribute_values(Some(values))
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .build()
            .map_err(incomplete)?;
        self.actions.push((means, TransactWriteItem::builder().update(action).build()));
        Ok(())
    }

    /// Stops the transaction unless the condition holds for the item with this key.
    pub(crate) fn check(&mut self, means: A, key: &Key, condition: Expression) -> Result<(), Error> {
        let check = ConditionCheck::builder()
            .table_name(self.table)
            .set_key(Some(key.item()))
            .condition_expression(&condition.text)
            .set_expression_attribute_names(Some(names(&[&condition.text])))
            .set_expression_attribute_values(Some(values([condition])).filter(|values| !values.is_empty()))
            .build()
            .map_err(incomplete)?;
        self.actions.push((means, TransactWriteItem::builder().condition_check(check).build()));
        Ok(())
    }
}

impl Transaction<'_, ()> {
    /// The actions alone, of a transaction that is sent once.
    pub(crate) fn into_actions(self) -> Vec<TransactWriteItem> {
        self.actions.into_iter().map(|((), action)| action).collect()
    }
}

fn incomplete(error: BuildError) -> Error {
    Error::internal("transaction", error)
}

impl Store {
    /// These items as they were together at one instant, each in the place of its key; `None` where there is none. At most
    /// [`MAX_ACTIONS`] keys, each of them once.
    ///
    /// Costs twice as much as a consistent read, and waits while a transaction is on one of the items: for answers that must
    /// be true as a whole.
    pub(crate) async fn snapshot(&self, keys: &[Key], attempts: &mut Attempts<'_>) -> Result<Vec<Option<Item>>, Error> {
        let request = self.snapshot_request(keys)?;
        loop {
            let error = match attempts.call(request.clone().send()).await? {
                Ok(answer) => {
                    let found = answer.responses.unwrap_or_default();
                    if found.len() != keys.len() {
                        return Err(Error::internal("snapshot", format!("{} for {}", found.len(), keys.len())));
                    }
                    return Ok(found.into_iter().map(|one| one.item.filter(|item| !item.is_empty())).collect());
                }
                Err(error) => error,
            };
            attempts.pause(snapshot_error(&error, |_| true).unwrap_or_else(unexplained)).await?;
        }
    }

    /// The read of these items at one instant.
    pub(crate) fn snapshot_request(&self, keys: &[Key]) -> Result<TransactGetItemsFluentBuilder, Error> {
        let get = |key: &Key| {
            let get = Get::builder().table_name(&self.table).set_key(Some(key.item())).build().map_err(incomplete)?;
            Ok(TransactGetItem::builder().get(get).build())
        };
        let gets = keys.iter().map(get).collect::<Result<Vec<_>, Error>>()?;
        Ok(self.client.transact_get_items().set_transact_items(Some(gets)))
    }

    /// The call of a transaction. The SDK gives each call one ClientRequestToken and keeps it over its own retries, so a retry
    /// after a lost answer cannot apply it twice.
    pub(crate) fn transaction_request(&self, actions: Vec<TransactWriteItem>) -> TransactWriteItemsFluentBuilder {
        let request = self.client.transact_write_items().set_transact_items(Some(actions));
        request.return_consumed_capacity(ReturnConsumedCapacity::Indexes)
    }

    /// Applies the transaction, or says what stopped it.
    pub(crate) async fn transact<A: Clone>(
        &self,
        transaction: &Transaction<'_, A>,
        attempts: &mut Attempts<'_>,
    ) -> Result<Outcome<A>, Error> {
        let actions = transaction.actions.iter().map(|(_, action)| action.clone()).collect();
        let error = match attempts.call(self.transaction_request(actions).send()).await? {
            Ok(_) => return Ok(Outcome::Applied),
            Err(error) => error,
        };
        if let Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() {
            let actions = &transaction.actions;
            let positions = actions.iter().map(|(means, _)| means.clone()).enumerate();
            return Ok(Outcome::Cancelled(by_position(positions, actions.len(), cancelled.cancellation_reasons())?));
        }
        attempts.pause(call_error("TransactWriteItems", &error)).await?;
        Ok(Outcome::TryAgain)
    }

    /// Applies the transaction if its conditions hold, and returns whether it was applied. If not, what it was decided on
    /// may have changed, or another transaction was on one of its items and has been waited for: read and decide again.
    pub(crate) async fn transact_or_wait<A: Clone>(
        &self,
        during: &'static str,
        transaction: &Transaction<'_, A>,
        attempts: &mut Attempts<'_>,
    ) -> Result<bool, Error> {
        match self.transact(transaction, attempts).await? {
            Outcome::Applied => return Ok(true),
            Outcome::TryAgain => {}
            Outcome::Cancelled(reasons) if any_condition_failed(&reasons) => attempts.count(),
            Outcome::Cancelled(reasons) => attempts.pause(contention_error(&reasons)).await?,
        }
        if attempts.deadline().passed() { Err(attempts.unavailable(during)) } else { Ok(false) }
    }
}

/// What a cancelled snapshot says about the items at these positions: `None` if it was others that stopped it.
pub(crate) fn snapshot_error(
    error: &SdkError<TransactGetItemsError, HttpResponse>,
    at: impl Fn(usize) -> bool,
) -> Option<CallError> {
    let Some(TransactGetItemsError::TransactionCanceledException(cancelled)) = error.as_service_error() else {
        return Some(call_error("TransactGetItems", error));
    };
    let reasons = cancelled.cancellation_reasons();
    if reasons.iter().all(is_none) {
        return Some(unexplained());
    }
    let own = reasons.iter().enumerate().filter(|&(position, reason)| at(position) && !is_none(reason));
    let codes: Vec<&str> = own.filter_map(|(_, reason)| reason.code()).collect();
    if codes.is_empty() {
        return None;
    }
    Some(if codes.iter().any(|code| THROTTLED.contains(code)) {
        CallError::Throttled
    } else if codes.contains(&CONFLICT) {
        CallError::Conflict
    } else {
        CallError::Fatal(Error::internal("cancelled snapshot", codes.join(", ")))
    })
}

/// A cancelled snapshot without any reason.
fn unexplained() -> CallError {
    CallError::Fatal(Error::internal("cancelled snapshot", "no reason given"))
}

fn is_none(reason: &CancellationReason) -> bool {
    matches!(reason.code(), None | Some("None"))
}

/// The reasons at these positions of a transaction of that many `actions`. It was stopped by at least one action, perhaps at
/// another position.
pub(crate) fn by_position<A>(
    positions: impl IntoIterator<Item = (usize, A)>,
    actions: usize,
    reasons: &[CancellationReason],
) -> Result<Vec<(A, Reason)>, Error> {
    if actions != reasons.len() {
        return Err(Error::internal("cancellation reasons", format!("{} for {actions}", reasons.len())));
    }
    if reasons.iter().all(is_none) {
        return Err(Error::internal("cancelled transaction", "no reason given"));
    }
    let mut stopped = Vec::new();
    for (at, means) in positions {
        let Some(reason) = reasons.get(at) else { continue };
        let reason = match reason.code() {
            None | Some("None") => continue,
            Some("ConditionalCheckFailed") => Reason::Condition(reason.item().filter(|i| !i.is_empty()).cloned()),
            Some(CONFLICT) => Reason::Conflict,
            Some(code) if THROTTLED.contains(&code) => Reason::Throttled,
            Some(other) => return Err(Error::internal("cancelled transaction", other.to_owned())),
        };
        stopped.push((means, reason));
    }
    Ok(stopped)
}

/// Whether the condition of an action is known to have failed.
pub(crate) fn any_condition_failed<A>(reasons: &[(A, Reason)]) -> bool {
    reasons.iter().any(|(_, reason)| matches!(reason, Reason::Condition(_)))
}

/// The error of a transaction that was stopped by contention.
pub(crate) fn contention_error<A>(reasons: &[(A, Reason)]) -> CallError {
    if reasons.iter().any(|(_, reason)| matches!(reason, Reason::Throttled)) {
        CallError::Throttled
    } else {
        CallError::Conflict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(code: &str) -> CancellationReason {
        CancellationReason::builder().code(code).build()
    }

    #[test]
    fn reasons_belong_to_actions_by_position() {
        let reasons = [reason("None"), reason("TransactionConflict"), reason("ConditionalCheckFailed"), reason("None")];
        let stopped_at = |positions: &[usize]| {
            let stopped = by_position(positions.iter().map(|&at| (at, at)), 4, &reasons).unwrap();
            stopped.iter().map(|(means, reason)| (*means, format!("{reason:?}"))).collect::<Vec<_>>()
        };
        assert_eq!(stopped_at(&[0, 1, 2, 3]), [(1, "Conflict".to_owned()), (2, "Condition(None)".to_owned())]);
        // Of two members of a group, one stopped it.
        assert_eq!(stopped_at(&[0, 1]), [(1, "Conflict".to_owned())]);
        assert_eq!(stopped_at(&[0, 3]), []);
    }

    #[test]
    fn reasons_that_cannot_be_matched_are_an_error() {
        assert!(by_position([(0, ())], 2, &[reason("ConditionalCheckFailed")]).is_err());
        assert!(by_position([(0, ())], 1, &[reason("None")]).is_err());
        assert!(by_position([(0, ())], 1, &[reason("ItemCollectionSizeLimitExceeded")]).is_err());
    }
}
