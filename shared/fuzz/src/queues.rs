//! Messages: what `confirm` receives from its queue, and what `admin` ingests from the dead-letter queue.

use holdfast_aws::queues::DeadLetter;
use holdfast_domain::{Confirmation, Failure};
use holdfast_store::keys;
use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED, NOW, soon};
use lambda_runtime::{Context, LambdaEvent};
use serde_json::{Value, json};

use crate::answers::within_limits;
use crate::events::ask;
use crate::request::request;
use crate::shop::{Known, PAID, Shop, in_shop};

/// The maximum number of messages in a batch.
const MOST: usize = 10;

/// A batch for `confirm`: each line of the input is a message, and a valid one is among them. Whatever the others are,
/// each message is reported as failed, is an order, or waits for a person. An unreadable one waits for a person.
pub fn messages(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    let mut bodies: Vec<&str> = text.split('\n').take(MOST - 1).collect();
    let good = json!({"reservation_id": Known::Confirmed.id(), "customer": "alice", "payment_reference": PAID,
        "requested_at_ms": NOW.as_millis()});
    let good_body = good.to_string();
    // Its position depends on the input.
    let at = text.len() % (bodies.len() + 1);
    bodies.insert(at, &good_body);
    let records: Vec<Value> = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| json!({"messageId": format!("m{n}"), "body": body, "eventSource": "aws:sqs"}))
        .collect();
    in_shop(async |shop| {
        let event = LambdaEvent::new(json!({ "Records": records }), Context::default());
        let answer = confirm::handle(&shop.confirm.0, shop.confirm.1.clone(), event).await.expect("a batch");
        let calls = shop.calls();
        let failures = answer["batchItemFailures"].as_array().expect("a list");
        let failed: Vec<&str> = failures.iter().map(|one| one["itemIdentifier"].as_str().expect("an id")).collect();
        for (n, body) in bodies.iter().enumerate() {
            let id = format!("m{n}");
            let reported = failed.iter().filter(|failed| **failed == id).count();
            match serde_json::from_str::<Confirmation>(body) {
                // SQS accepts no empty message, so this one has to stay in its queue.
                Err(_) if body.is_empty() => assert_eq!(reported, 1, "empty, and not reported"),
                Err(_) => {
                    assert_eq!(reported, 0, "unreadable, and to be read once more: {body}");
                    let kept = shop.wire.messages(FAILED).iter().any(|kept| kept == body);
                    assert!(kept, "unreadable, and not kept: {body}");
                }
                Ok(_) if n == at => {
                    assert_eq!(reported, 0, "in order, and reported: {answer}");
                    let hold = keys::reservation(&Known::Confirmed.id()).pk;
                    let tried = calls.iter().any(|call| call.request["Key"]["pk"]["S"] == hold);
                    assert!(tried, "in order, and dropped: {answer}");
                }
                Ok(_) if reported == 1 => {}
                Ok(confirmation) => assert!(kept(shop, &confirmation).await, "neither done nor kept: {body}"),
            }
        }
        let known =
            |id: &str| id.strip_prefix('m').and_then(|n| n.parse::<usize>().ok()).is_some_and(|n| n < bodies.len());
        assert!(failed.iter().all(|id| known(id)), "{answer}");
    });
}

/// Whether a confirmation is an order with this payment, or waits for a person.
async fn kept(shop: &Shop, confirmation: &Confirmation) -> bool {
    let Confirmation { reservation_id, customer, payment_reference, .. } = confirmation;
    let order = shop.store.reservation(reservation_id, customer, soon()).await;
    let done = order.is_ok_and(|order| order.is_order_of(payment_reference.as_ref()));
    done || shop.wire.messages(FAILED).iter().any(|kept| {
        serde_json::from_str::<Confirmation>(kept).is_ok_and(|kept| {
            (&kept.reservation_id, &kept.customer, &kept.payment_reference)
                == (reservation_id, customer, payment_reference)
        })
    })
}

/// Each line of the input is a message of the dead-letter queue. An admin lists, retries and resolves: every message is
/// in the list, and none breaks an answer.
pub fn letters(input: &[u8]) {
    let text = String::from_utf8_lossy(input);
    // SQS accepts no empty message.
    let bodies: Vec<&str> = text.split('\n').filter(|body| !body.is_empty()).take(MOST).collect();
    if bodies.is_empty() {
        return;
    }
    in_shop(async |shop| {
        for body in &bodies {
            shop.send_message(FAILED, body);
        }
        let admin = async |line: &str, said: &str| {
            let text = format!("{line}\n@sub root\n@cognito:groups [admin]\n\n{said}");
            let answer = ask(shop, &shop.admin, &request(text.as_bytes()).event).await.expect("an answer");
            let body: Value = serde_json::from_str(answer["body"].as_str().unwrap_or_default()).expect("JSON");
            (answer["statusCode"].as_u64().unwrap_or_default(), body)
        };
        let (status, listed) = admin("GET /admin/failed-confirmations?limit=100", "").await;
        assert_eq!((status, &listed["next_cursor"]), (200, &Value::Null), "{listed}");
        assert_eq!(shop.wire.messages(FAILED), Vec::<String>::new(), "taken in, and still there");
        let listed = listed["items"].as_array().expect("a list");
        for body in &bodies {
            let id = id_of(body);
            let found = listed.iter().find(|item| item["failed_confirmation_id"] == id.as_str());
            let found = found.unwrap_or_else(|| panic!("missing: {body} in {listed:?}"));
            if found["reservation_id"].is_null() {
                assert_eq!((&found["unreadable_message"], &found["reason"]), (&json!(body), &json!("unreadable")));
            }
            let path = format!("POST /admin/failed-confirmations/{id}");
            let (retried, said) = admin(&format!("{path}/retry"), "").await;
            let settled = said["code"] == "already_settled";
            assert!(retried == 202 || settled, "{said}");
            let sent = shop.wire.messages(CONFIRMATIONS).iter().any(|message| match said["reservation_id"].as_str() {
                Some(reservation_id) => message.contains(reservation_id),
                None => said["unreadable_message"] == message.as_str(),
            });
            assert!(settled || sent, "{said}");
            let (resolved, said) = admin(&format!("{path}/resolve"), r#"{"note":"seen to"}"#).await;
            assert!(resolved == 200 || said["code"] == "already_settled", "{said}");
            within_limits("", &said);
        }
    });
}

/// The id of a message's failed confirmation.
fn id_of(body: &str) -> String {
    let confirmation = serde_json::from_str(body).ok().map(|letter: DeadLetter| letter.confirmation);
    Failure { confirmation, reason: String::new(), body: body.to_owned() }.id()
}
