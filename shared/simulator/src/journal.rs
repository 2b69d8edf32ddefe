//! Every request and its answer, by the reservation or adjustment that it is about, for the reference model.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::books::Books;
use crate::judge::{Question, Reply, Route, hold, wanted};
use crate::model::{self, Act, GivenUp, Request};
use crate::past::Moment;

/// All requests with one adjustment's idempotency key.
#[derive(Debug, Default)]
struct Key {
    requests: Vec<Request<Value>>,
    /// Refusals, each with the first moment at which it was true.
    refused: Vec<(Moment, String)>,
}

/// The journal.
#[derive(Debug, Default)]
pub(crate) struct Journal {
    tick: u64,
    reservations: BTreeMap<String, Vec<Request<Act>>>,
    /// The products whose holds an admin released, each with the tick of the request.
    released: Vec<(u64, String)>,
    /// By product and key.
    adjustments: BTreeMap<(String, String), Key>,
    /// When each ledger entry was written.
    entries: BTreeMap<String, Moment>,
}

/// The answer to a request, with its time.
pub(crate) type Answer<'a> = Option<(i64, &'a Reply)>;

impl Journal {
    /// The next tick of a logical clock: an event with a smaller tick was earlier.
    pub(crate) fn tick(&mut self) -> u64 {
        self.tick += 1;
        self.tick
    }

    /// Records a request that was sent at that tick, and its answer if there was one. `about`: the reservation and the
    /// payment of a failed confirmation.
    pub(crate) fn note(
        &mut self,
        asked: &Question,
        sent: u64,
        answer: Answer<'_>,
        about: Option<(String, Option<String>)>,
    ) {
        let tick = self.tick();
        let answered = |reply: &Reply| answer.map(|(now, _)| (tick, now, reply.clone()));
        let body = &asked.body;
        let who = || asked.who.clone();
        let single =
            |act: Act| Request { who: who(), act, sent, answered: answer.and_then(|(_, reply)| answered(reply)) };
        match asked.route() {
            Route::Reserve => {
                let Some(id) = asked.reservation_id() else { return };
                self.about(id, single(Act::Reserve(wanted(body))));
            }
            Route::Confirm(id) => {
                let payment = body["payment_reference"].as_str().map(str::to_owned);
                self.about(id.to_owned(), single(Act::Confirm(payment)));
            }
            Route::Extend(id) => self.about(id.to_owned(), single(Act::Extend)),
            Route::Cancel(id) => self.about(id.to_owned(), single(Act::Cancel)),
            Route::ChangeLines(id) => self.about(id.to_owned(), single(Act::ChangeLines(wanted(body)))),
            Route::HandOver(id) => {
                let to = body["to_customer_id"].as_str().unwrap_or_default().to_owned();
                self.about(id.to_owned(), single(Act::HandOver(to)));
            }
            Route::Release(id) => self.about(id.to_owned(), single(Act::Release)),
            Route::ReleaseAll(product) => self.released.push((sent, product.to_owned())),
            Route::GiveBack(id) => self.about(id.to_owned(), single(Act::GiveBack)),
            Route::Get(id) => self.about(id.to_owned(), single(Act::Get { order: false })),
            Route::Order(id) => self.about(id.to_owned(), single(Act::Get { order: true })),
            Route::AnyReservation(id) => self.about(id.to_owned(), single(Act::Look)),
            Route::Reservations | Route::Orders | Route::AllReservations => {
                let by_admin = asked.route() == Route::AllReservations;
                let items = answer.iter().flat_map(|(_, reply)| reply.body["items"].as_array()).flatten();
                let looks: Vec<_> =
                    items.filter_map(|item| Some((item["reservation_id"].as_str()?.to_owned(), item))).collect();
                for (id, item) in looks {
                    let answered = answered(&Reply { status: 200, body: item.clone() });
                    let act = if by_admin { Act::Look } else { Act::Get { order: false } };
                    self.about(id, Request { who: who(), act, sent, answered });
                }
            }
            Route::Retry(_) | Route::Resolve(_) => {
                let Some((id, payment)) = about else { return };
                let retry = matches!(asked.route(), Route::Retry(_));
                self.about(id, single(if retry { Act::Retry(payment) } else { Act::Resolve(payment) }));
            }
            Route::Adjust(product) => {
                let key = (product.to_owned(), asked.key.clone().unwrap_or_default());
                let answered = answer.and_then(|(_, reply)| answered(reply));
                let request = Request { who: who(), act: body.clone(), sent, answered };
                self.adjustments.entry(key).or_default().requests.push(request);
            }
            _ => {}
        }
    }

    fn about(&mut self, id: String, request: Request<Act>) {
        self.reservations.entry(id).or_default().push(request);
    }

    /// Records that an adjustment was refused, and the moment at which that was true.
    pub(crate) fn refused(&mut self, product: &str, key: &str, at: Moment, detail: String) {
        let key = (product.to_owned(), key.to_owned());
        self.adjustments.entry(key).or_default().refused.push((at, detail));
    }

    /// Records that a ledger entry was written.
    pub(crate) fn entry(&mut self, entry: &str, at: Moment) {
        self.entries.insert(entry.to_owned(), at);
    }

    /// Records that DynamoDB's TTL deleted a reservation.
    pub(crate) fn cleaned_up(&mut self, id: &str, now: i64) {
        let (sent, tick) = (self.tick(), self.tick());
        let reply = Reply { status: 200, body: Value::Null };
        let answered = Some((tick, now, reply));
        self.about(id.to_owned(), Request { who: String::new(), act: Act::CleanUp, sent, answered });
    }

    /// At the end, when nothing runs any more: reads the table, and checks that the model explains every answer. Returns what it
    /// does not explain, and the number of reservations and keys for which it has given up.
    pub(crate) fn at_rest(&mut self, books: &Books, now: i64) -> (Vec<String>, u64) {
        let (mut wrong, mut given_up) = (Vec::new(), 0);
        let (sent, tick) = (self.tick(), self.tick());
        for (id, requests) in &mut self.reservations {
            let reply = match books.items.get(&hold(id)) {
                Some(item) => Reply { status: 200, body: told(item) },
                None => Reply { status: 404, body: json!({ "code": "reservation_not_found" }) },
            };
            // As a request without an answer: it released some of the holds, at any time.
            let released = self.released.iter().map(|(sent, product)| {
                let act = Act::ReleaseAll(product.clone());
                Request { who: String::new(), act, sent: *sent, answered: None }
            });
            requests.extend(released);
            let answered = Some((tick, now, reply));
            requests.push(Request { who: String::new(), act: Act::Look, sent, answered });
            match model::reservation(requests) {
                Ok(None) => {}
                Ok(Some(at)) => {
                    wrong.push(format!("{id}: no order explains {:?} after {:?}", requests[at], &requests[..at]));
                }
                Err(GivenUp) => given_up += 1,
            }
        }
        for ((product, key), Key { requests, refused }) in &self.adjustments {
            match model::adjustment(requests) {
                Ok(None) => {}
                Ok(Some(at)) => {
                    wrong.push(format!("{key} of {product}: no order explains {:?} among {requests:?}", requests[at]));
                }
                Err(GivenUp) => given_up += 1,
            }
            let made: BTreeSet<_> = requests
                .iter()
                .filter_map(|request| request.answered.as_ref()?.2.body["entry_id"].as_str())
                .filter_map(|entry| self.entries.get(entry))
                .collect();
            for (at, detail) in refused {
                // A refusal means that no copy of the request has been applied.
                if made.iter().any(|made| *made <= at) {
                    wrong.push(format!("{key} of {product} was carried out before: {detail}"));
                }
            }
        }
        (wrong, given_up)
    }
}

/// A reservation as an answer would show it.
fn told(item: &Value) -> Value {
    let time = |name: &str| {
        let nanos = i128::from(item[name].as_i64()?) * 1_000_000;
        OffsetDateTime::from_unix_timestamp_nanos(nanos).ok()?.format(&Rfc3339).ok()
    };
    let mut body = item.clone();
    body["confirmed_late"] = (item["confirmed_late"] == true).into();
    for name in ["created_at", "expires_at", "confirmed_at"] {
        body[name] = time(name).into();
    }
    body["customer_id"] = item["customer"].clone();
    body["cancel_reason"] = item["cancellation"]["reason"].clone();
    body
}
