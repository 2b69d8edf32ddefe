//! Expressions, and the update of one item under a condition.

use std::collections::HashMap;

use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::operation::update_item::builders::UpdateItemFluentBuilder;
use aws_sdk_dynamodb::types::{
    AttributeValue, ReturnConsumedCapacity, ReturnValue, ReturnValuesOnConditionCheckFailure,
};

use serde::de::DeserializeOwned;

use crate::error::{Attempts, call_error};
use crate::keys::Key;
use crate::{Error, Item, Store, items};

/// An expression with its values. It names attributes as `#name`; see [`names`].
#[derive(Debug)]
pub(crate) struct Expression {
    pub(crate) text: String,
    pub(crate) values: Vec<(&'static str, AttributeValue)>,
}

impl Expression {
    pub(crate) fn new(text: impl Into<String>, values: Vec<(&'static str, AttributeValue)>) -> Self {
        Self { text: text.into(), values }
    }
}

/// The attribute name for every `#name` in the expressions. All names are written like this, so that none can be one of
/// DynamoDB's reserved words.
pub(crate) fn names(expressions: &[&str]) -> HashMap<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    expressions
        .iter()
        .flat_map(|text| text.split('#').skip(1))
        .map(|rest| rest.split(|c| !is_name(c)).next().unwrap_or_default())
        .map(|name| (format!("#{name}"), name.to_owned()))
        .collect()
}

/// The values of several expressions.
pub(crate) fn values(expressions: impl IntoIterator<Item = Expression>) -> HashMap<String, AttributeValue> {
    expressions.into_iter().flat_map(|e| e.values).map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What came of an update under a condition.
pub(crate) enum Updated<T = Item> {
    /// The condition held: what is stored now.
    Applied(T),
    /// It did not hold: what is stored instead, if the answer carries it.
    ConditionFailed(Option<T>),
}

impl Updated {
    pub(crate) fn read<T: DeserializeOwned>(self, what: &'static str) -> Result<Updated<T>, Error> {
        Ok(match self {
            Self::Applied(item) => Updated::Applied(items::read(what, item)?),
            Self::ConditionFailed(item) => {
                Updated::ConditionFailed(item.map(|item| items::read(what, item)).transpose()?)
            }
        })
    }
}

impl Store {
    /// Updates one item under a condition, in one round trip, and repeats the call until there is an answer.
    pub(crate) async fn update(
        &self,
        key: &Key,
        update: Expression,
        condition: Expression,
        attempts: &mut Attempts<'_>,
    ) -> Result<Updated, Error> {
        let request = self.update_request(key, update, condition);
        loop {
            let error = match attempts.call(request.clone().send()).await? {
                Ok(answer) => return Ok(Updated::Applied(answer.attributes.unwrap_or_default())),
                Err(error) => error,
            };
            if let Some(old) = error.as_service_error().and_then(condition_failed) {
                return Ok(Updated::ConditionFailed(old));
            }
            attempts.pause(call_error("UpdateItem", &error)).await?;
        }
    }

    pub(crate) fn update_request(
        &self,
        key: &Key,
        update: Expression,
        condition: Expression,
    ) -> UpdateItemFluentBuilder {
        self.client
            .update_item()
            .table_name(&self.table)
            .set_key(Some(key.item()))
            .update_expression(&update.text)
            .condition_expression(&condition.text)
            .set_expression_attribute_names(Some(names(&[&update.text, &condition.text])))
            .set_expression_attribute_values(Some(values([update, condition])))
            .return_values(ReturnValue::AllNew)
            .return_values_on_condition_check_failure(ReturnValuesOnConditionCheckFailure::AllOld)
            .return_consumed_capacity(ReturnConsumedCapacity::Indexes)
    }
}

/// The item whose condition failed, if that is the error and the answer carries it.
pub(crate) fn condition_failed(error: &UpdateItemError) -> Option<Option<Item>> {
    match error {
        UpdateItemError::ConditionalCheckFailedException(failed) => {
            Some(failed.item().filter(|item| !item.is_empty()).cloned())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_from_the_expressions() {
        let found = names(&["SET #status = :a, #due_at=:b REMOVE #ttl", "attribute_not_exists(#pk)"]);
        let mut found: Vec<_> = found.into_values().collect();
        found.sort();
        assert_eq!(found, ["due_at", "pk", "status", "ttl"]);
    }
}
