//! What admins do is written down before, and what came of it afterwards, once.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_domain::Reservation;
use serde_json::Value;

use super::Books;
use crate::dynamo::Place;
use crate::judge::Reply;

const PROMISE: &str = "every_admin_action_is_written_down";

/// The log of what admins do.
#[derive(Debug, Default)]
pub(super) struct Log {
    /// The actions, by their requests.
    by_request: BTreeMap<String, Place>,
    /// How often each action with each target was written down.
    intended: BTreeMap<(String, String), u64>,
    /// How often it was carried out.
    done: BTreeMap<(String, String), u64>,
}

impl Books {
    /// Follows one action: it is written down, and then gets its outcome.
    pub(super) fn action(&mut self, now: i64, place: &Place, before: Option<&Value>, after: Option<&Value>) {
        let right = match (before, after) {
            (None, Some(after)) => {
                let target = after["target"].as_str().unwrap_or_default();
                let key = (after["action"].as_str().unwrap_or_default().to_owned(), target.to_owned());
                *self.log.intended.entry(key).or_default() += 1;
                let request = after["request_id"].as_str().unwrap_or_default().to_owned();
                let first = self.log.by_request.insert(request, place.clone()).is_none();
                let listed = after["made_key"] == "MADE#ACTIONS" && after["created_at"].is_i64();
                first && listed && place.0 == format!("ACTION#{target}") && after["outcome"].is_null()
            }
            (Some(before), Some(after)) => {
                let mut ended = before.clone();
                ended["outcome"] = after["outcome"].clone();
                before["outcome"].is_null() && after["outcome"].is_string() && ended == *after
            }
            _ => false,
        };
        self.check(now, right, PROMISE, || format!("{place:?}: {before:?} became {after:?}"));
    }

    /// Checks that what an admin's request has just done was written down before, as often as it was done.
    pub(super) fn intended(&mut self, now: i64, action: &str, target: &str) {
        let key = (action.to_owned(), target.to_owned());
        let done = self.log.done.entry(key.clone()).or_default();
        *done += 1;
        let (done, intended) = (*done, self.log.intended.get(&key).copied().unwrap_or_default());
        self.check(now, done <= intended, PROMISE, || {
            format!("{action} of {target}: done {done} times, written down {intended} times")
        });
    }

    /// Checks that an admin wrote down that this reservation, or all of one of its products, is to be cancelled.
    pub(super) fn intended_to_cancel(&mut self, now: i64, id: &str, old: &Reservation) {
        let there =
            |action: &str, target: &str| self.log.intended.contains_key(&(action.to_owned(), target.to_owned()));
        let products: BTreeSet<&str> = old.lines.iter().map(|line| line.product_id.as_str()).collect();
        let right = there("release_reservation", id)
            || there("cancel_order", id)
            || products.iter().any(|product| there("release_holds", product));
        self.check(now, right, PROMISE, || format!("{old:?} is cancelled by an admin"));
    }

    /// Checks the action of an admin's request that was answered.
    pub(crate) fn admin_answered(&mut self, now: i64, request: &str, reply: &Reply) {
        let item = self.log.by_request.get(request).and_then(|place| self.items.get(place)).cloned();
        let right = match item.as_ref().map(|item| item["outcome"].as_str()) {
            // Without an answer in time it may have been done all the same.
            Some(Some(outcome)) => {
                let outcome = outcome.strip_suffix(" unchanged").unwrap_or(outcome);
                outcome == format!("{} {}", reply.status, reply.code()).trim() || !reply.clear()
            }
            // The outcome could not be written.
            Some(None) => self.calm_at.is_none(),
            None => !reply.clear(),
        };
        self.check(now, right, PROMISE, || format!("{request} was answered with {reply:?}: {item:?}"));
    }
}
