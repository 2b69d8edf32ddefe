//! Confirmations through the queues.

use holdfast_local::runner::Event;
use holdfast_wiretap::Tapped as _;
use serde_json::{Value, json};

use crate::api::{Api, PATIENCE, Who};

/// Sends a confirmation; the message's id.
async fn send(api: &Api, body: &str) -> String {
    let url = &api.stack.queue("ConfirmationsQueue").unwrap().url;
    let sent = api.stack.clients().sqs.send_message().queue_url(url).message_body(body).send().await.unwrap();
    sent.message_id.unwrap()
}

/// Now, in milliseconds, as the server tells it.
fn server_millis(answer: &Value) -> i64 {
    let text = answer["server_time"].as_str().unwrap();
    let format = time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(text, &format).unwrap();
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap()
}

pub(crate) async fn a_queued_confirmation_is_carried_out(api: Api) {
    api.product("queued", 5, json!({})).await;
    let held = api.reserve("alice", "queued", &[("queued", 2)]).await;
    let events = api.stack.runner().unwrap().events();
    let message = json!({
        "reservation_id": held.id(), "customer": "alice", "payment_reference": "pay_q",
        "requested_at_ms": server_millis(&held.body),
    });
    // Twice: a queue delivers at least once.
    send(&api, &message.to_string()).await;
    send(&api, &message.to_string()).await;
    let order = api.until_confirmed("alice", &held.id(), events).await;
    assert_eq!(order.body["payment_reference"], "pay_q");
    assert_eq!(order.body["confirmed_late"], false);
    assert_eq!(api.book("queued").await.sold, 2);
}

/// The failed confirmation of a message with this body, once it has been ingested.
async fn failed(api: &Api, body: &str) -> Value {
    let looking = async {
        loop {
            // Each look waits a second for what may lie in the queue: nothing announces that it was taken in.
            let list = api.get("/admin/failed-confirmations?state=open&limit=100", Who::Admin).await;
            list.is(200, "");
            let items = list.body["items"].as_array().unwrap();
            if let Some(item) = items.iter().find(|item| item["unreadable_message"] == body) {
                return item.clone();
            }
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("{body} is nowhere"))
}

pub(crate) async fn a_poison_message_is_a_failed_confirmation_at_once(api: Api) {
    api.product("poison", 5, json!({})).await;
    let held = api.reserve("alice", "poison", &[("poison", 1)]).await;
    let events = api.stack.runner().unwrap().events();
    let mut deliveries = api.stack.runner().unwrap().events();
    let poison = send(&api, "poison: not json at all").await;
    // A valid message is not blocked by it.
    let good = json!({
        "reservation_id": held.id(), "customer": "alice", "payment_reference": "pay_p",
        "requested_at_ms": server_millis(&held.body),
    });
    send(&api, &good.to_string()).await;
    api.until_confirmed("alice", &held.id(), events).await;
    let item = failed(&api, "poison: not json at all").await;
    assert_eq!((&item["reason"], &item["state"]), (&json!("unreadable"), &json!("open")));
    // It used up no attempts: the function handled it at the first delivery.
    let first = async {
        loop {
            if let Event::Delivered { taken, failed, .. } = deliveries.recv().await.unwrap() {
                assert!(!failed.contains(&poison), "it comes back, though nobody will ever read it");
                if taken.contains(&poison) {
                    return;
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, first).await.expect("it was not delivered");
    let resolve = format!("/admin/failed-confirmations/{}/resolve", item["failed_confirmation_id"].as_str().unwrap());
    api.post(&resolve, Who::Admin, json!({"note": "nobody knows who sent this"})).await.is(200, "");
    assert_eq!(api.get(&format!("/orders/{}", held.id()), Who::Customer("alice")).await.status, 200);
    let book = api.book("poison").await;
    assert_eq!((book.available, book.sold), (4, 1));
}

pub(crate) async fn the_sweep_ingests_failed_confirmations(api: Api) {
    let url = &api.stack.queue("FailedConfirmationsQueue").unwrap().url;
    let taken_in = || {
        let needs = api.stack.recorder().unwrap().recorded().needs;
        needs.get("expire").is_some_and(|needs| needs.iter().any(|need| need.action == "sqs:DeleteMessage"))
    };
    let sweeping = async {
        let mut sent = 0;
        // An admin of another test may be quicker than the sweep: then there is another message.
        while !taken_in() {
            let body = format!("swept: {sent}");
            api.stack.clients().sqs.send_message().queue_url(url).message_body(&body).send().await.unwrap();
            api.stack.invoke("expire", &json!({"kind": "sweep"})).await.unwrap();
            sent += 1;
        }
        sent
    };
    let sent = tokio::time::timeout(PATIENCE, sweeping).await.expect("the sweep took nothing in");
    for n in 0..sent {
        assert_eq!(failed(&api, &format!("swept: {n}")).await["reason"], "unreadable");
    }
}

/// The reservation does not exist if it was cleaned up, or belongs to another customer.
pub(crate) async fn a_payment_for_an_unknown_reservation_needs_a_person(api: Api) {
    api.product("not-there", 5, json!({})).await;
    let held = api.reserve("not-there-alice", "not-there", &[("not-there", 1)]).await;
    let answer = api.confirm("not-there-bob", &held.id(), Some("pay_not_there")).await;
    answer.is(404, "reservation_not_found");
    let mine = async || {
        let list = api.get("/admin/failed-confirmations?state=open&limit=100", Who::Admin).await;
        list.is(200, "");
        let items = list.body["items"].as_array().unwrap().clone();
        items.into_iter().find(|item| item["customer_id"] == "not-there-bob")
    };
    let looking = async {
        loop {
            if let Some(item) = mine().await {
                return item;
            }
        }
    };
    let item = tokio::time::timeout(PATIENCE, looking).await.expect("the payment is nowhere");
    assert_eq!(
        (&item["reason"], &item["payment_reference"]),
        (&json!("reservation_not_found"), &json!("pay_not_there"))
    );
    let resolve = format!("/admin/failed-confirmations/{}/resolve", item["failed_confirmation_id"].as_str().unwrap());
    api.post(&resolve, Who::Admin, json!({"note": "refunded"})).await.is(200, "");
    // It was not Alice's.
    assert_eq!(api.confirm("not-there-alice", &held.id(), Some("pay_her_own")).await.status, 200);
}
