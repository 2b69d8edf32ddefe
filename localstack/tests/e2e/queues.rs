//! Confirmations by way of the queues.

use holdfast_local::runner::Event;
use serde_json::{Value, json};

use crate::api::{Api, PATIENCE, Who};

async fn send(api: &Api, body: &str) {
    let url = &api.stack.queue("ConfirmationsQueue").unwrap().url;
    api.stack.clients().sqs.send_message().queue_url(url).message_body(body).send().await.unwrap();
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

pub(crate) async fn a_poison_message_reaches_the_dead_letter_queue(api: Api) {
    api.product("poison", 5, json!({})).await;
    let held = api.reserve("alice", "poison", &[("poison", 1)]).await;
    let mut events = api.stack.runner().unwrap().events();
    send(&api, "poison: not json at all").await;
    // A good one beside it is not held up by it.
    let good = json!({
        "reservation_id": held.id(), "customer": "alice", "payment_reference": "pay_p",
        "requested_at_ms": server_millis(&held.body),
    });
    send(&api, &good.to_string()).await;
    let arrived = async {
        loop {
            let list = api.get("/admin/failed-confirmations?state=open&limit=100", Who::Admin).await;
            let items = list.body["items"].as_array().unwrap();
            if let Some(item) = items.iter().find(|item| item["message"] == "poison: not json at all") {
                return item.clone();
            }
            while !matches!(events.recv().await, Ok(Event::Delivered { .. } | Event::DeliveryFailed { .. })) {}
            // The emulator moves a message when it is asked for one after the last try: the next receive does that.
            tokio::task::yield_now().await;
        }
    };
    // Keeps the queue busy, so that there is always a next event to look at.
    let poked = async {
        loop {
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            send(&api, &good.to_string()).await;
        }
    };
    let waiting = async {
        tokio::select! { item = arrived => item, () = poked => Value::Null }
    };
    let item = tokio::time::timeout(PATIENCE, waiting).await.expect("the poison never got there");
    assert_eq!((&item["reason"], &item["state"]), (&json!("unreadable"), &json!("open")));
    let resolve = format!("/admin/failed-confirmations/{}/resolve", item["id"].as_str().unwrap());
    api.post(&resolve, Who::Admin, json!({"note": "nobody knows who sent this"})).await.is(200, "");
    assert_eq!(api.get(&format!("/orders/{}", held.id()), Who::Customer("alice")).await.status, 200);
    let book = api.book("poison").await;
    assert_eq!((book.available, book.sold), (4, 1));
}
