//! Answers about failed confirmations.

use serde_json::Value;

use super::{Case, Ruling, hold, may_be_confirmed_for, owed, shown};
use crate::dynamo::Place;
use crate::past::Moment;

/// The key of a failed confirmation's item.
pub(crate) fn failed_place(id: &str) -> Place {
    ("FAILED".to_owned(), id.to_owned())
}

pub(crate) fn settled(item: &Value) -> bool {
    item["state"] == "resolved" || item["state"] == "confirmed"
}

impl<'a> Case<'a> {
    /// The reservation of a failed confirmation: with a payment, whichever customer was named; else only that
    /// customer's own, or one that was.
    fn about(&self, item: &Value, at: Moment) -> Option<&'a Value> {
        let found = self.item(&hold(item["reservation_id"].as_str()?), at)?;
        (item["payment_reference"].is_string() || names_an_owner(item, found)).then_some(found)
    }

    /// Whether the reservation is the order that was requested: then there is nothing left to settle. Without a
    /// payment, a request that is older than the hold, by ten seconds or more, was for an earlier hold with the same
    /// key.
    fn is_order(&self, item: &Value, at: Moment) -> bool {
        self.about(item, at).is_some_and(|found| {
            let its_own = match item["payment_reference"].as_str() {
                Some(paid) => found["payment_reference"] == paid,
                None => Self::its_hold(item, found),
            };
            found["status"] == "confirmed" && its_own
        })
    }

    fn its_hold(item: &Value, found: &Value) -> bool {
        let made = found["created_at"].as_i64().unwrap_or_default();
        item["requested_at"].as_i64().is_none_or(|asked| made <= asked + 10_000)
    }

    /// Whether this holds for a failed confirmation and its reservation at one moment of the window.
    fn failed_once(&self, id: &str, so: impl Fn(Option<&Value>, Moment) -> bool) -> bool {
        let place = failed_place(id);
        let about = self.books.items.get(&place).and_then(|item| item["reservation_id"].as_str()).map(hold);
        self.once([&place].into_iter().chain(&about), |at| so(self.item(&place, at), at))
    }

    pub(super) fn failed_list(&self) -> Ruling {
        let Some(items) = self.reply.body["items"].as_array().filter(|_| self.reply.status == 200) else {
            return (false, "only_documented_refusals");
        };
        let state = self.asked.query("state");
        let right = items.iter().all(|body| {
            let id = body["failed_confirmation_id"].as_str().unwrap_or_default();
            state.is_none_or(|state| body["state"] == state)
                && self.failed_once(id, |item, at| {
                    item.is_some_and(|item| shows(item, body) && (settled(item) || !self.is_order(item, at)))
                })
        });
        if !right {
            return (false, "answers_are_the_table");
        }
        // With a state, the list comes from an index, which may lag.
        let whole = state.is_none() && self.asked.query("cursor").is_none() && self.reply.body["next_cursor"].is_null();
        let missing = self.books.failed_confirmations().any(|(id, _)| {
            let place = failed_place(id);
            self.item(&place, self.window.sent).is_some()
                && !items.iter().any(|body| body["failed_confirmation_id"] == id.as_str())
        });
        (!whole || !missing, "no_payment_is_lost")
    }

    pub(super) fn retry(&self, id: &str) -> Ruling {
        if self.reply.status != 202 {
            return self.not_settled(id);
        }
        let shown = self.failed_once(id, |item, _| item.is_some_and(|item| shows(item, &self.reply.body)));
        // It may be refused again at once, but the refusal was lifted. One without an answer was never refused.
        let lifted = self.failed_once(id, |item, at| {
            let refused = item.filter(|item| item["reason"] != "not_confirmed");
            let owing =
                refused.and_then(|item| Some((item, self.about(item, at)?, item["payment_reference"].as_str()?)));
            owing.is_none_or(|(item, found, payment)| {
                // One that names another customer lifts nothing of the owner's.
                !names_an_owner(item, found) || !owed(found, payment)
            })
        });
        if lifted { (shown, "answers_are_the_table") } else { (false, "a_retry_lifts_the_refusal") }
    }

    pub(super) fn resolve(&self, id: &str) -> Ruling {
        let body = &self.reply.body;
        match (self.reply.status, self.reply.code()) {
            (200, _) => {
                let right = self.failed_once(id, |item, at| {
                    let Some(item) = item.filter(|item| item["state"] == "resolved" && shows(item, body)) else {
                        return false;
                    };
                    let word = self.is_own(item);
                    // What an admin has resolved confirms nothing any more.
                    let known = match (self.about(item, at), item["payment_reference"].as_str()) {
                        (Some(found), Some(payment)) => {
                            // Or it would be refunded twice.
                            owed(found, payment) && !self.books.resolved_elsewhere(id, found, payment)
                        }
                        // One that is about an earlier hold closes nothing of this one.
                        (Some(found), None) => found["unpaid_closed_at"].is_i64() || !Self::its_hold(item, found),
                        (None, _) => true,
                    };
                    word && known
                });
                (right, "given_back_or_an_order")
            }
            // An admin who repeats their own resolution is not refused, unless the payment has become an order of a hold
            // that was made afterwards.
            (409, _)
                if !self.failed_once(id, |item, at| {
                    let ordered =
                        |item| self.is_own(item) && item["payment_reference"].is_string() && self.is_order(item, at);
                    item.is_none_or(|item| !self.is_own(item) || ordered(item))
                }) =>
            {
                (false, "only_true_refusals")
            }
            _ => self.not_settled(id),
        }
    }

    /// Whether it was resolved by this admin with this note.
    fn is_own(&self, item: &Value) -> bool {
        item["state"] == "resolved"
            && item["note"] == self.asked.body["note"]
            && item["settled_by"] == self.asked.who.as_str()
    }

    /// The refusals of a retry and of a resolution.
    fn not_settled(&self, id: &str) -> Ruling {
        let right = match (self.reply.status, self.reply.code()) {
            (404, "failed_confirmation_not_found") => self.failed_once(id, |item, _| item.is_none()),
            (409, "already_settled") => {
                self.failed_once(id, |item, at| item.is_some_and(|item| settled(item) || self.is_order(item, at)))
            }
            (409, "reservation_cancelled") => self.failed_once(id, |item, at| {
                let given_back = |item: &Value| {
                    let place = hold(item["reservation_id"].as_str().unwrap_or_default());
                    let found = self.item(&place, at);
                    found.is_some_and(|found| found["status"] == "cancelled" && super::was_ordered(found))
                };
                item.is_some_and(|item| item["reason"] == "order_cancelled" || given_back(item))
            }),
            _ => return (false, "only_documented_refusals"),
        };
        (right, "only_true_refusals")
    }

    pub(super) fn redrive(&self) -> Ruling {
        let body = &self.reply.body;
        let Some(retried) = body["retried"].as_u64().filter(|_| self.reply.status == 202) else {
            return (false, "only_documented_refusals");
        };
        let read = body["next_cursor"].is_null();
        let more = !read || self.asked.query("cursor").is_some();
        let all: Vec<&String> = self.books.failed_confirmations().map(|(id, _)| id).collect();
        // None may be skipped that was open without an answer before the request, and still is.
        let over = all.iter().filter(|id| {
            let unanswered = |item: &Value| item["state"] == "open" && item["reason"] == "not_confirmed";
            let place = failed_place(id);
            let always = !self.once([&place], |at| !self.item(&place, at).is_some_and(unanswered));
            always && self.books.indexed_since("FAILED", self.window.sent, |_, _| true).any(|shown| *shown == place)
        });
        // One that another admin retries at the same time may be open all the time.
        let skipped = |retried: usize| over.count() > retried;
        let right = usize::try_from(retried).is_ok_and(|retried| retried <= all.len() && (more || !skipped(retried)));
        (right && (read || body["complete"] == false), "answers_are_the_table")
    }
}

/// Whether a failed confirmation names a reservation's customer, or a former one.
fn names_an_owner(item: &Value, found: &Value) -> bool {
    item["failed_customer"].as_str().is_some_and(|customer| may_be_confirmed_for(found, customer))
}

/// Whether an answer shows this failed confirmation in every field.
fn shows(item: &Value, body: &Value) -> bool {
    let same = ["reservation_id", "payment_reference", "reason", "state", "settled_by", "note"];
    same.iter().all(|name| body[*name] == item[*name])
        && body["failed_confirmation_id"] == item["id"]
        && body["customer_id"] == item["failed_customer"]
        && if item["reservation_id"].is_null() {
            body["unreadable_message"] == item["body"]
        } else {
            body["unreadable_message"].is_null()
        }
        && ["first_failed_at", "last_failed_at", "settled_at"]
            .iter()
            .all(|name| shown(&body[*name]) == item[*name].as_i64())
}
