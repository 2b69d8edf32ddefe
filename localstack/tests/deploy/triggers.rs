//! The cloud's own triggers: schedules, the queue's event source, redrive.

use std::collections::HashMap;

use aws_sdk_dynamodb::types::AttributeValue;
use holdfast_testkit::event::{at, by, event, in_role, names, with_body, with_header};
use serde_json::{Value, json};

use crate::cloud::Cloud;

/// Makes a product, and a hold of one unit of it; answers the reservation.
async fn hold(cloud: &Cloud, product: &str, hold_seconds: u64) -> Value {
    let body = json!({
        "product_id": product, "name": product, "price_minor": 100, "currency": "EUR", "total": 4,
        "hold_seconds": hold_seconds,
    });
    cloud.http("AdminFunction", &with_body(event("admin/create-product"), body)).await.is(201);
    let body = json!({"lines": [{"product_id": product, "quantity": 1}]});
    let create = with_header(with_body(event("reserve/create"), body), "idempotency-key", product);
    cloud.http("ReserveFunction", &by(create, product)).await.is(201).clone()
}

async fn reservation(cloud: &Cloud, customer: &str, id: &str) -> Value {
    let get = by(at(event("reserve/get"), "GET", &format!("/reservations/{id}")), customer);
    cloud.http("ReserveFunction", &get).await.is(200).clone()
}

async fn available(cloud: &Cloud, product: &str) -> Value {
    let get = at(event("catalog/get"), "GET", &format!("/products/{product}"));
    cloud.http("CatalogFunction", &get).await.is(200)["available"].clone()
}

fn id(reservation: &Value) -> String {
    reservation["reservation_id"].as_str().unwrap().to_owned()
}

/// Every event of `events/`, with the deployed function of that name: each succeeds.
pub(crate) async fn every_event_is_answered(cloud: &Cloud) {
    let calls: [(&str, &str, u64); 19] = [
        ("AdminFunction", "admin/create-product", 201),
        ("AdminFunction", "admin/list-products", 200),
        ("AdminFunction", "admin/adjust-stock", 200),
        ("AdminFunction", "admin/get-ledger", 200),
        ("AdminFunction", "admin/audit-product", 200),
        ("CatalogFunction", "catalog/list", 200),
        ("CatalogFunction", "catalog/get", 200),
        ("ReserveFunction", "reserve/create", 201),
        ("ReserveFunction", "reserve/get", 200),
        ("ReserveFunction", "reserve/list", 200),
        ("ReserveFunction", "reserve/extend", 200),
        ("ReserveFunction", "reserve/change-lines", 200),
        ("AdminFunction", "admin/list-reservations", 200),
        ("ConfirmFunction", "confirm/confirm", 200),
        ("ReserveFunction", "reserve/order", 200),
        ("ReserveFunction", "reserve/orders", 200),
        ("AdminFunction", "admin/change-product", 200),
        ("AdminFunction", "admin/list-failed-confirmations", 200),
        ("AdminFunction", "admin/redrive-failed-confirmations", 202),
    ];
    for (function, name, status) in calls {
        let answer = cloud.http(function, &event(name)).await;
        assert_eq!(answer.status, status, "{name}: {answer:#?}");
    }
    // It is an order by now: the one refusal, and a success under another key.
    cloud.http("ReserveFunction", &event("reserve/cancel")).await.is(409);
    let again = with_header(event("reserve/create"), "idempotency-key", "to-be-cancelled");
    let second = cloud.http("ReserveFunction", &again).await.is(201).clone();
    let cancel = at(event("reserve/cancel"), "DELETE", &format!("/reservations/{}", id(&second)));
    assert_eq!(cloud.http("ReserveFunction", &cancel).await.is(200)["status"], "cancelled");
    for name in names("expire") {
        let released = cloud.invoke("ExpireFunction", &event(&format!("expire/{name}"))).await;
        assert_eq!(released["complete"], true, "{name}: {released}");
    }
    // A second payment of the order waits for a person, who settles it.
    let paid_again = json!({"payment_reference": "pay_124", "customer_id": "alice"});
    let other = with_body(event("confirm/confirm"), paid_again);
    cloud.http("ConfirmFunction", &other).await.is(409);
    let failed = cloud.http("AdminFunction", &event("admin/list-failed-confirmations")).await;
    let failed = failed.is(200)["items"].as_array().unwrap().clone();
    let failed = failed.iter().find(|item| item["payment_reference"] == "pay_124").expect("the second payment");
    let path = format!("/admin/failed-confirmations/{}/resolve", failed["failed_confirmation_id"].as_str().unwrap());
    let resolve = at(event("admin/resolve-failed-confirmation"), "POST", &path);
    assert_eq!(cloud.http("AdminFunction", &resolve).await.is(200)["state"], "resolved");
    // Both ways to give it back: the second changes nothing.
    cloud.http("AdminFunction", &event("admin/get-reservation")).await.is(200);
    let given_back = cloud.http("ReserveFunction", &event("reserve/order-cancel")).await.is(200).clone();
    assert_eq!(given_back["status"], "cancelled");
    let again = cloud.http("AdminFunction", &event("admin/cancel-order")).await.is(200).clone();
    assert_eq!(again["cancelled_at"], given_back["cancelled_at"]);
    // A guest's hold becomes Alice's, and an admin releases it, and then whatever else is held.
    let create = |key: &str, customer: &str| {
        let body = json!({"lines": [{"product_id": "tee-black", "quantity": 1}], "customer_id": customer});
        let create = with_header(with_body(event("reserve/create"), body), "idempotency-key", key);
        in_role(by(create, "shop-back-end"), "service")
    };
    let key = event("reserve/create")["headers"]["idempotency-key"].as_str().unwrap().to_owned();
    cloud.http("ReserveFunction", &create(&key, "guest:7")).await.is(201);
    let transferred = cloud.http("ReserveFunction", &event("reserve/transfer")).await.is(200).clone();
    let path = format!("/admin/reservations/{}/release", id(&transferred));
    let release = at(event("admin/release-reservation"), "POST", &path);
    let released = cloud.http("AdminFunction", &release).await.is(200).clone();
    assert_eq!((&released["status"], &released["customer_id"]), (&json!("cancelled"), &json!("alice")));
    cloud.http("ReserveFunction", &create("to-be-released", "alice")).await.is(201);
    let all = cloud.http("AdminFunction", &event("admin/release-holds")).await.is(200).clone();
    assert_eq!(all, json!({"released_holds": 1, "released_units": 1, "complete": true}));
}

/// The schedule that the deployed `reserve` creates calls the deployed `expire`.
pub(crate) async fn a_deployed_schedule_releases_a_hold(cloud: &Cloud) {
    let held = hold(cloud, "left-alone", 10).await;
    let group = cloud.output("ScheduleGroupName");
    let name = format!("slot-{}", slot_of(&held));
    let exists = async || {
        let schedules = cloud.clients.scheduler.list_schedules().group_name(group).send().await.unwrap();
        schedules.schedules.iter().any(|schedule| schedule.name.as_ref() == Some(&name))
    };
    assert!(exists().await, "there is no {name}");
    let called = format!("\"slot\":{},", slot_of(&held));
    cloud
        .until("expire logs that the slot's schedule called it", async || {
            cloud.log("expire").await.iter().any(|line| line.contains(&called)).then_some(())
        })
        .await;
    cloud
        .until("the hold is released", async || {
            let now = reservation(cloud, "left-alone", &id(&held)).await;
            (now["status"] == "expired" && available(cloud, "left-alone").await == 4).then_some(())
        })
        .await;
    cloud.until("the finished schedule is deleted", async || (!exists().await).then_some(())).await;
}

/// The safety net: a hold whose own schedule is gone is released by the recurring one.
pub(crate) async fn the_deployed_sweep_makes_up_for_a_lost_schedule(cloud: &Cloud) {
    // Long enough that nothing else of this test has a hold in the same slot.
    let held = hold(cloud, "reminder-lost", 45).await;
    let group = cloud.output("ScheduleGroupName");
    let name = format!("slot-{}", slot_of(&held));
    cloud.clients.scheduler.delete_schedule().group_name(group).name(&name).send().await.expect("the slot's schedule");
    let sweeps = async || cloud.log("expire").await.iter().filter(|line| line.contains("\"kind\":\"sweep\"")).count();
    let before = sweeps().await;
    cloud.until("the hold is released", async || (available(cloud, "reminder-lost").await == 4).then_some(())).await;
    assert!(sweeps().await > before, "it was released, but not by a sweep");
    let called = format!("\"slot\":{},", slot_of(&held));
    assert!(!cloud.log("expire").await.iter().any(|line| line.contains(&called)), "its schedule was not gone");
    assert_eq!(reservation(cloud, "reminder-lost", &id(&held)).await["status"], "expired");
}

fn millis(time: &Value) -> i64 {
    let format = &time::format_description::well_known::Rfc3339;
    let at = time::OffsetDateTime::parse(time.as_str().unwrap(), format).unwrap();
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).unwrap()
}

/// The end of the ten seconds in which a hold ends, in seconds since the epoch: what its schedule is named by.
fn slot_of(reservation: &Value) -> i64 {
    (millis(&reservation["expires_at"]) + 9_999) / 10_000 * 10
}

fn message(reservation: &Value, customer: &str) -> Value {
    json!({
        "reservation_id": reservation["reservation_id"], "customer": customer,
        "payment_reference": format!("pay-{customer}"), "requested_at_ms": millis(&reservation["server_time"]),
    })
}

async fn send(cloud: &Cloud, body: String) {
    let queue = cloud.output("ConfirmationsQueueUrl");
    cloud.clients.sqs.send_message().queue_url(queue).message_body(body).send().await.unwrap();
}

/// The event source takes a confirmation from the queue and gives it to the deployed `confirm`.
pub(crate) async fn the_event_source_confirms_what_is_in_the_queue(cloud: &Cloud) {
    let held = hold(cloud, "queued", 600).await;
    send(cloud, message(&held, "queued").to_string()).await;
    let order = cloud
        .until("the reservation is confirmed", async || {
            let now = reservation(cloud, "queued", &id(&held)).await;
            (now["status"] == "confirmed").then_some(now)
        })
        .await;
    assert_eq!(order["payment_reference"], "pay-queued");
}

/// An unreadable message becomes a failed confirmation at once; the other message of its batch is confirmed.
pub(crate) async fn a_poison_message_is_a_failed_confirmation_at_once(cloud: &Cloud) {
    let held = hold(cloud, "beside-poison", 600).await;
    send(cloud, "poison: not JSON at all".to_owned()).await;
    send(cloud, message(&held, "beside-poison").to_string()).await;
    let failed = cloud
        .until("an admin finds the poison", async || {
            let list = cloud.http("AdminFunction", &event("admin/list-failed-confirmations")).await;
            let items = list.is(200)["items"].as_array().unwrap().clone();
            items.into_iter().find(|item| item["unreadable_message"] == "poison: not JSON at all")
        })
        .await;
    assert_eq!((&failed["reason"], &failed["state"]), (&json!("unreadable"), &json!("open")));
    cloud
        .until("its neighbour is confirmed", async || {
            let neighbour = reservation(cloud, "beside-poison", &id(&held)).await;
            (neighbour["status"] == "confirmed").then_some(())
        })
        .await;
}

/// The deployed sweep ingests failed confirmations into the table.
pub(crate) async fn the_deployed_sweep_ingests_failed_confirmations(cloud: &Cloud) {
    let (queue, body) = (cloud.output("FailedConfirmationsQueueUrl"), "swept: not JSON");
    cloud.clients.sqs.send_message().queue_url(queue).message_body(body).send().await.unwrap();
    let item = cloud
        .until("the table has the message", async || {
            let scan = cloud.clients.dynamodb.scan().table_name(cloud.output("TableName"));
            let found = scan.send().await.unwrap().items.unwrap_or_default();
            let of = |name: &str, item: &HashMap<String, AttributeValue>| {
                item.get(name).and_then(|value| value.as_s().ok()).cloned()
            };
            found.into_iter().find(|item| of("body", item).as_deref() == Some(body))
        })
        .await;
    assert_eq!(item["state"].as_s().unwrap(), "open");
}
