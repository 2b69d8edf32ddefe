//! An answer that ends something is final: no later answer contradicts it, unless an admin acts.

use std::collections::BTreeMap;

use serde_json::Value;

use super::{Broken, Case, Route, has_been_of, hold, owners, shown};
use crate::past::Moment;

/// The final answers so far.
#[derive(Debug, Default)]
pub(crate) struct Finality {
    /// Holds that an answer reported as over, by reservation and creation time: when it was answered.
    over: BTreeMap<(String, i64), Moment>,
    /// Payments that an answer reported as owed back, by reservation, customer and payment: when the request was sent,
    /// and the promise that an order would break.
    owed: BTreeMap<(String, String, String), (Moment, &'static str)>,
    /// When admins requested a retry of such a payment, and when that was over; without an answer, it may still happen
    /// at any time.
    lifted: BTreeMap<Payment, Vec<Lifted>>,
}

/// A payment: its reservation, its customer and its reference.
pub(crate) type Payment = (String, String, String);
/// When an admin requested a retry of a payment, and when that was over.
type Lifted = (Moment, Option<Moment>);

impl Finality {
    /// An admin requests a retry of a payment.
    pub(crate) fn lift(&mut self, payment: Payment, at: Moment) {
        self.lifted.entry(payment).or_default().push((at, None));
    }

    /// The request is answered: it was executed, or never will be.
    pub(crate) fn lifted(&mut self, payment: &Payment, asked: Moment, at: Moment) {
        let lifts = self.lifted.get_mut(payment).into_iter().flatten();
        lifts.filter(|(since, _)| *since == asked).for_each(|(_, until)| *until = Some(at));
    }

    /// The latest answer that a payment is owed back, in whichever of these customers' names.
    fn owed(&self, id: &str, payment: &str, owners: &[&str]) -> Option<(Moment, &'static str)> {
        keys(id, payment, owners).filter_map(|key| self.owed.get(&key)).max_by_key(|(asked, _)| *asked).copied()
    }

    /// Why a payment must not make an order of a reservation now, and the promise that an order would break. `owners`: the
    /// customer, and the former ones.
    pub(crate) fn must_not_buy(&self, id: &str, payment: &str, owners: &[&str]) -> Broken {
        let (asked, promise) = self.owed(id, payment, owners)?;
        let mut lifts = keys(id, payment, owners).filter_map(|key| self.lifted.get(&key)).flatten();
        let lifted = lifts.any(|(_, until)| until.is_none_or(|until| until >= asked));
        (!lifted).then(|| {
            let detail = format!("{payment} for {id} was to be given back, and no admin had it tried again");
            (promise, detail)
        })
    }

    /// Judges an answer by earlier ones, and records what is final in it.
    pub(crate) fn judge(&mut self, case: &Case<'_>) -> Broken {
        self.hold(case).or_else(|| self.payment(case))
    }

    fn hold(&mut self, case: &Case<'_>) -> Broken {
        let body = &case.reply.body;
        let bodies = body["items"].as_array().map_or(std::slice::from_ref(body), Vec::as_slice);
        for body in bodies.iter().filter(|_| case.reply.status < 300) {
            let (Some(id), Some(made)) = (body["reservation_id"].as_str(), shown(&body["created_at"])) else {
                continue;
            };
            let key = (id.to_owned(), made);
            if body["status"] == "held" && self.over.get(&key).is_some_and(|over| *over <= case.window.sent) {
                return Some(("what_has_ended_stays_ended", format!("it was over: {}", case.told())));
            }
            // A read ends nothing. A hold may be over by the reader's clock, and not yet by another's: docs/api.md and
            // the assumption about clocks say so. If it is over in the table, it is over for everybody.
            let ended = case.books.items.get(&hold(id)).is_some_and(|item| item["status"] != "held");
            if ended && (body["status"] == "expired" || body["status"] == "cancelled") {
                self.over.entry(key).or_insert(case.window.answered);
            }
        }
        let (Route::Confirm(id) | Route::Extend(id) | Route::Cancel(id) | Route::ChangeLines(id) | Route::HandOver(id)) =
            case.asked.route()
        else {
            return None;
        };
        if matches!(case.reply.code(), "hold_expired" | "reservation_cancelled") {
            let place = hold(id);
            let moments = case.books.past.moments([&place], case.window.sent, case.window.answered);
            let mut made: Vec<i64> =
                moments.iter().filter_map(|at| case.item(&place, *at)?["created_at"].as_i64()).collect();
            made.dedup();
            // If it was deleted and made again meanwhile, it is unknown which of the two the answer is about.
            if let [made] = made[..] {
                self.over.entry((id.to_owned(), made)).or_insert(case.window.answered);
            }
        }
        None
    }

    fn payment(&mut self, case: &Case<'_>) -> Broken {
        let Route::Confirm(id) = case.asked.route() else { return None };
        let payment = case.asked.body["payment_reference"].as_str()?;
        let key = (id.to_owned(), case.asked.who.clone(), payment.to_owned());
        let promise = match (case.reply.status, case.reply.code()) {
            (409, "refund_required" | "already_confirmed") => Some("what_is_owed_back_buys_nothing"),
            // Not 404: it says that there is no such reservation, and one may be made later. The payment is recorded,
            // and settled if it becomes an order then; docs/api.md says when to refund it.
            _ => None,
        };
        let item = case.books.items.get(&hold(id));
        let all: Vec<&str> = item.into_iter().flat_map(owners).chain([case.asked.who.as_str()]).collect();
        if case.reply.status == 200 && self.owed(id, payment, &all).is_some_and(|(asked, _)| asked < case.window.sent) {
            let (promise, broken) = self.must_not_buy(id, payment, &all)?;
            return Some((promise, format!("{broken}: {}", case.told())));
        }
        if let Some(promise) = promise {
            self.owed.insert(key.clone(), (case.window.sent, promise));
            let order = item.filter(|item| is_order_of(item, &key));
            if order.is_some()
                && let Some((promise, broken)) = self.must_not_buy(id, payment, &all)
            {
                return Some((promise, format!("{broken}, and it is an order: {}", case.told())));
            }
        }
        None
    }
}

/// A payment for a reservation, in each of these customers' names.
fn keys<'a>(id: &'a str, payment: &'a str, owners: &'a [&'a str]) -> impl Iterator<Item = Payment> + 'a {
    owners.iter().map(move |owner| (id.to_owned(), (*owner).to_owned(), payment.to_owned()))
}

/// Whether a reservation is the order of a payment, in whichever of its customers' names.
pub(crate) fn is_order_of(item: &Value, (_, customer, payment): &Payment) -> bool {
    item["status"] == "confirmed" && has_been_of(item, customer) && item["payment_reference"] == payment.as_str()
}
