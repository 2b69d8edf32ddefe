//! What a customer sees when a service is away, and what becomes of it once the service is back.
//!
//! The services are there for the other tests: a refusal meets the calls of one reservation only.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_sqs::types::QueueAttributeName;
use holdfast_wiretap::Tapped as _;
use holdfast_wiretap::recorder::{Call, Refusal, Refused};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, PATIENCE, Who};

/// `confirm` meets `how` at these services, for this reservation.
fn away(api: &Api, how: Refusal, services: &'static [&'static str], reservation: &str) -> Refused {
    let reservation = reservation.to_owned();
    api.stack.recorder().unwrap().refuse(how, move |call: &Call<'_>| {
        call.function == "confirm"
            && call.body.contains(&reservation)
            && services.iter().any(|service| call.is_of(service))
    })
}

/// Waits until more than `calls` calls have been refused.
async fn until_met(refused: &Refused, calls: usize) {
    let mut met = refused.met();
    let waiting = met.wait_for(|met| *met > calls);
    tokio::time::timeout(PATIENCE, waiting).await.expect("nobody called").unwrap();
}

#[track_caller]
fn is_unavailable(answer: &Answer) {
    answer.is(503, "unavailable");
    let seconds: u32 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(seconds > 0);
}

#[track_caller]
fn is_queued(answer: &Answer, id: &str) {
    assert_eq!((answer.status, &answer.body), (202, &json!({"reservation_id": id, "status": "queued"})));
}

pub(crate) async fn a_payment_during_an_outage_of_the_table_becomes_an_order(api: Api) {
    api.product("table-away", 5, json!({})).await;
    let held = api.reserve("alice", "table-away", &[("table-away", 2)]).await;
    let table = away(&api, Refusal::Away, &["dynamodb"], &held.id());
    is_queued(&api.confirm("alice", &held.id(), Some("pay_away")).await, &held.id());
    // The queue tries too, and it is not its last try.
    let met = *table.met().borrow();
    until_met(&table, met).await;
    let path = format!("/reservations/{}", held.id());
    assert_eq!(api.get(&path, Who::Customer("alice")).await.body["status"], "held");
    let events = api.stack.runner().unwrap().events();
    drop(table);
    let order = api.until_confirmed("alice", &held.id(), events).await;
    assert_eq!(order.body["payment_reference"], "pay_away");
    assert_eq!(order.body["confirmed_late"], false);
    assert_eq!(api.book("table-away").await.sold, 2);
}

pub(crate) async fn peer_case_4_paid_while_table_and_queue_are_away_is_not_acknowledged(api: Api) {
    api.product("both-away", 5, json!({})).await;
    let held = api.reserve("alice", "both-away", &[("both-away", 2)]).await;
    let both = away(&api, Refusal::Away, &["dynamodb", "sqs"], &held.id());
    is_unavailable(&api.confirm("alice", &held.id(), Some("pay_both")).await);
    assert!(*both.met().borrow() > 1);
    drop(both);
    let book = api.book("both-away").await;
    assert_eq!((book.available, book.held, book.sold), (3, 2, 0));
    // Nothing was kept of it, so the customer's next try is the first.
    let order = api.confirm("alice", &held.id(), Some("pay_both")).await;
    order.is(200, "");
    assert_eq!(order.body["confirmed_late"], false);
    assert_eq!(api.book("both-away").await.sold, 2);
}

/// How often the queue of confirmations is received from before a message goes to a person.
async fn tries(api: &Api) -> usize {
    let url = &api.stack.queue("ConfirmationsQueue").unwrap().url;
    let request = api.stack.clients().sqs.get_queue_attributes().queue_url(url);
    let asked = request.attribute_names(QueueAttributeName::RedrivePolicy).send().await.unwrap();
    let policy = asked.attributes.unwrap_or_default()[&QueueAttributeName::RedrivePolicy].clone();
    let policy: Value = serde_json::from_str(&policy).unwrap();
    let most = &policy["maxReceiveCount"];
    most.as_u64().or_else(|| most.as_str()?.parse().ok()).unwrap().try_into().unwrap()
}

/// More than ten tries: hours, by the delays that the function asks for. Here the runner brings the message back sooner.
pub(crate) async fn a_long_outage_of_the_table_costs_no_order(api: Api) {
    api.product("long-away", 5, json!({})).await;
    let held = api.reserve("alice", "long-away", &[("long-away", 1)]).await;
    let asked = Arc::new(Mutex::new(BTreeSet::new()));
    let seen = Arc::clone(&asked);
    let listening = api.stack.recorder().unwrap().refuse(Refusal::Away, move |call: &Call<'_>| {
        if call.needs.iter().any(|need| need.action == "sqs:ChangeMessageVisibility") {
            let body: Value = serde_json::from_str(call.body).unwrap_or_default();
            seen.lock().unwrap_or_else(PoisonError::into_inner).extend(body["VisibilityTimeout"].as_u64());
        }
        false
    });
    // Each try is over with its first call.
    let denied = away(&api, Refusal::Denied, &["dynamodb"], &held.id());
    is_queued(&api.confirm("alice", &held.id(), Some("pay_long")).await, &held.id());
    until_met(&denied, 10).await;
    drop(listening);
    // Another test's messages may ask for some of these, and for nothing else.
    let asked = asked.lock().unwrap_or_else(PoisonError::into_inner).clone();
    assert_eq!(asked, BTreeSet::from([30, 60, 120, 240, 480, 900]));
    let events = api.stack.runner().unwrap().events();
    drop(denied);
    let order = api.until_confirmed("alice", &held.id(), events).await;
    assert_eq!(order.body["payment_reference"], "pay_long");
    assert_eq!(api.book("long-away").await.sold, 1);
}

pub(crate) async fn a_retry_by_an_admin_confirms_what_used_up_its_attempts(api: Api) {
    api.product("denied", 5, json!({})).await;
    let held = api.reserve("alice", "denied", &[("denied", 1)]).await;
    // An error that no retry fixes, such as a missing permission: each attempt ends with its first call.
    let denied = away(&api, Refusal::Denied, &["dynamodb"], &held.id());
    is_queued(&api.confirm("alice", &held.id(), Some("pay_denied")).await, &held.id());
    let tries = tries(&api).await;
    until_met(&denied, tries).await;
    let mine = async || {
        let list = api.get("/admin/failed-confirmations?limit=100", Who::Admin).await;
        list.is(200, "");
        list.body["items"].as_array().unwrap().iter().find(|item| item["reservation_id"] == held.id()).cloned()
    };
    let arrived = async {
        loop {
            // No event says that the emulator moves a message, a moment after the last try: each look is a request.
            if let Some(failed) = mine().await {
                return failed;
            }
        }
    };
    let failed = tokio::time::timeout(PATIENCE, arrived).await.expect("it is nowhere");
    let of = |failed: &Value, member: &str| failed[member].as_str().unwrap_or_default().to_owned();
    assert_eq!((of(&failed, "reason"), of(&failed, "state")), ("not_confirmed".to_owned(), "open".to_owned()));
    assert_eq!(of(&failed, "payment_reference"), "pay_denied");
    assert_eq!(*denied.met().borrow(), 1 + tries, "one for the customer, the others from the queue");

    drop(denied);
    let events = api.stack.runner().unwrap().events();
    let redrive = api.raw(Method::POST, "/admin/failed-confirmations/redrive", Who::Admin, &[], None).await;
    assert_eq!((redrive.status, &redrive.body["retried"]), (202, &json!(1)), "{redrive:?}");
    let order = api.until_confirmed("alice", &held.id(), events).await;
    assert_eq!(order.body["payment_reference"], "pay_denied");
    let settled = async { while of(&mine().await.unwrap(), "state") != "confirmed" {} };
    tokio::time::timeout(PATIENCE, settled).await.expect("it is not settled");
    assert_eq!(api.book("denied").await.sold, 1);
}
