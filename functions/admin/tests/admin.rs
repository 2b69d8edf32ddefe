//! The function `admin` over the real SDKs: failed confirmations and its routes. (One shop fixture for all, hence the length.)
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use admin::{App, router};
use axum::Router;
use holdfast_aws::queues::DeadLetter;
use holdfast_domain::{Product, Refusal, Reservation, Timestamp};
use holdfast_http::{Authenticator, serve};
use holdfast_store::Error;
use holdfast_testkit::event::{Answer, at, event, in_role, names, send, with_body, with_header, with_query};
use holdfast_testkit::fixtures::{
    CONFIRMATIONS, FAILED, NOW, TestClock, basket, books, confirmation, payment, product, queues, reserve, soon,
    stocked, store, table,
};
use holdfast_testkit::log::Log;
use holdfast_testkit::wire::{Call, Fault, Wire};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The Idempotency-Key behind the reservation of the event files.
const KEY: &str = "6f1c2e0a-4b0e-4c53-9a8e-0d7f3b1f5a21";
/// The failed confirmation of the event files: of that reservation and `pay_123`.
const ID: &str = "fc_tnqasma42g6deyrnhohtjhw5p2bpilehf5uxhenojrkzar4y2gxa";
/// After the end of a hold that was created at `NOW`.
const LATE: Timestamp = NOW.plus_seconds(600);

/// The function, and a shop with 100 tees, two of them held by Alice.
struct Shop {
    wire: Wire,
    hands: TestClock,
    router: Router,
    held: Reservation,
}

async fn shop() -> Shop {
    let wire = table();
    let tee = Product { name: "Black tee".to_owned(), ..product("tee-black", 100, 16) };
    stocked(&wire, &[tee]).await;
    let held = reserve(&store(&wire, 2), &basket("alice", KEY, &[("tee-black", 2)]), NOW).await.unwrap().reservation;
    let (hands, router) = function(&wire);
    wire.take_calls();
    Shop { wire, hands, router, held }
}

fn function(wire: &Wire) -> (TestClock, Router) {
    let hands = TestClock::new();
    let app =
        App { store: store(wire, 1), queues: queues(wire), clock: hands.clock(), default_max_per_customer: Some(10) };
    (hands, serve(router(app), Authenticator::default()))
}

impl Shop {
    async fn send(&self, event: Value) -> Answer {
        send(self.router.clone(), event).await
    }

    /// The list, of one state or all.
    async fn listed(&self, state: &str) -> Vec<Value> {
        let mut event = event("admin/list-failed-confirmations");
        event["rawQueryString"] = if state.is_empty() { "".into() } else { format!("state={state}").into() };
        let answer = self.send(event).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body["items"].as_array().unwrap().clone()
    }

    async fn resolve(&self, id: &str, note: Value) -> Answer {
        let path = format!("/admin/failed-confirmations/{id}/resolve");
        let event = at(event("admin/resolve-failed-confirmation"), "POST", &path);
        self.send(with_body(event, json!({ "note": note }))).await
    }

    /// A message as `confirm` sends it for a refund.
    fn refund_is_owed(&self, paid: &str) {
        self.wire.send_message(FAILED, &self.message(paid, Some("refund_required")));
    }

    fn message(&self, paid: &str, reason: Option<&str>) -> String {
        let (id, customer) = (&self.held.reservation_id, &self.held.customer);
        let confirmation = confirmation(id, customer, Some(&payment(paid)), NOW);
        serde_json::to_string(&DeadLetter { confirmation, reason: reason.map(str::to_owned) }).unwrap()
    }

    /// The hold expires and is released, then a late payment confirms it.
    async fn confirm_late(&self, paid: &str) {
        self.hands.set(LATE);
        let (store, held) = (store(&self.wire, 5), &self.held);
        store.release_overdue(LATE, soon()).await.unwrap();
        let (id, customer, payment) = (&held.reservation_id, &held.customer, payment(paid));
        let order = store.confirm(&confirmation(id, customer, Some(&payment), LATE), LATE, soon()).await.unwrap();
        assert!(order.confirmed_late);
    }
}

#[tokio::test]
async fn every_event_file_is_answered_with_its_success() {
    for name in names("admin") {
        let shop = shop().await;
        shop.refund_is_owed("pay_123");
        let event = event(&format!("admin/{name}"));
        match name.as_str() {
            "create-product" => {
                let (_, router) = function(&table());
                let answer = send(router, event).await;
                assert_eq!((answer.status, &answer.body["available"]), (201, &json!(100)), "{answer:?}");
            }
            "list-products" => {
                let answer = shop.send(event).await;
                let tee = &answer.body["items"][0];
                assert_eq!((answer.status, &tee["product_id"]), (200, &json!("tee-black")), "{answer:?}");
                assert_eq!((&tee["available"], &tee["reserved"], &tee["sold"]), (&json!(98), &json!(2), &json!(0)));
            }
            "change-product" => {
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["price_minor"]), (200, &json!(2_000)), "{answer:?}");
                assert_eq!(answer.body["version"], 2);
            }
            "adjust-stock" => {
                let first = shop.send(event.clone()).await;
                assert_eq!((first.status, &first.body["total_after"]), (200, &json!(150)), "{first:?}");
                let again = shop.send(event).await;
                assert_eq!((again.header("idempotent-replayed"), &again.body), (Some("true"), &first.body));
                assert_eq!(books(&shop.wire).await["tee-black"].total, 150);
            }
            "get-ledger" => {
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["items"][0]["delta"]), (200, &json!(100)), "{answer:?}");
            }
            "audit-product" => {
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["consistent"]), (200, &json!(true)), "{answer:?}");
                let units = ["total", "available", "held", "sold", "ledger_total"].map(|name| &answer.body[name]);
                assert_eq!(units, [&json!(100), &json!(98), &json!(2), &json!(0), &json!(100)]);
                assert_eq!((&answer.body["complete"], &answer.body["in_progress"]), (&json!(true), &json!(false)));
                assert_eq!((&answer.body["findings"], &answer.body["checked_reservations"]), (&json!([]), &json!(1)));
            }
            "list-reservations" => {
                let answer = shop.send(event).await;
                let held = &answer.body["items"][0];
                assert_eq!((answer.status, &held["customer_id"]), (200, &json!("alice")), "{answer:?}");
                assert_eq!(held["reservation_id"], shop.held.reservation_id.as_str());
            }
            "get-reservation" => {
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["customer_id"]), (200, &json!("alice")), "{answer:?}");
            }
            "cancel-order" => {
                shop.send(event.clone()).await.problem(404, "reservation_not_found");
                let (id, owner) = (&shop.held.reservation_id, &shop.held.customer);
                let paid = confirmation(id, owner, Some(&payment("pay_1")), NOW);
                store(&shop.wire, 2).confirm(&paid, NOW, soon()).await.unwrap();
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["status"]), (200, &json!("cancelled")), "{answer:?}");
                assert_eq!((&answer.body["restocked"], &answer.body["customer_id"]), (&json!(false), &json!("alice")));
                let tee = books(&shop.wire).await["tee-black"];
                assert_eq!((tee.available, tee.sold, tee.total), (98, 0, 98));
            }
            "release-reservation" => {
                let answer = shop.send(event.clone()).await;
                let released = &answer.body;
                assert_eq!((answer.status, &released["status"]), (200, &json!("cancelled")), "{answer:?}");
                assert_eq!(
                    (&released["cancel_reason"], &released["restocked"], &released["customer_id"]),
                    (&json!("event called off"), &json!(true), &json!("alice"))
                );
                assert_eq!(shop.send(event).await.body, answer.body);
                assert_eq!(books(&shop.wire).await["tee-black"].available, 100);
            }
            "release-holds" => {
                for (holds, units) in [(1, 2), (0, 0)] {
                    let answer = shop.send(event.clone()).await;
                    let expected = json!({ "released_holds": holds, "released_units": units, "complete": true });
                    assert_eq!((answer.status, &answer.body), (200, &expected), "{answer:?}");
                }
                assert_eq!(books(&shop.wire).await["tee-black"].available, 100);
            }
            "list-actions" => {
                assert_eq!(shop.send(self::event("admin/adjust-stock")).await.status, 200);
                let answer = shop.send(event).await;
                let action = &answer.body["items"][0];
                assert_eq!((answer.status, &action["action"]), (200, &json!("adjust_stock")), "{answer:?}");
                assert_eq!((&action["outcome"], &action["actor"]), (&json!("200"), &json!("admin-1")));
            }
            "list-failed-confirmations" => {
                let answer = shop.send(event).await;
                let failed = &answer.body["items"][0];
                assert_eq!((answer.status, &failed["failed_confirmation_id"]), (200, &json!(ID)), "{answer:?}");
                assert_eq!((&failed["state"], &failed["reason"]), (&json!("open"), &json!("refund_required")));
                assert_eq!(
                    (&failed["customer_id"], &failed["payment_reference"]),
                    (&json!("alice"), &json!("pay_123"))
                );
            }
            "redrive-failed-confirmations" => {
                shop.wire.send_message(FAILED, &shop.message("pay_124", None));
                let answer = shop.send(event).await;
                let expected = json!({ "retried": 1, "next_cursor": null, "complete": false });
                assert_eq!((answer.status, &answer.body), (202, &expected));
            }
            "retry-failed-confirmation" => {
                assert_eq!(shop.listed("").await.len(), 1);
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["state"]), (202, &json!("retrying")), "{answer:?}");
            }
            "resolve-failed-confirmation" => {
                assert_eq!(shop.listed("").await.len(), 1);
                let answer = shop.send(event).await;
                assert_eq!((answer.status, &answer.body["state"]), (200, &json!("resolved")), "{answer:?}");
                assert_eq!(answer.body["note"], "refunded by hand");
                assert_eq!(answer.body["settled_by"], "admin-1");
            }
            other => panic!("events/admin/{other}.json has no test"),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_is_deleted_only_after_it_is_in_the_table() {
    for fault in [Fault::LostBefore, Fault::ServerError, Fault::Throttled, Fault::AccessDenied] {
        let shop = shop().await;
        shop.refund_is_owed("pay_123");
        shop.wire.fail_all(&["UpdateItem"], fault);
        let answer = shop.send(event("admin/list-failed-confirmations")).await;
        let code = if fault == Fault::AccessDenied { "internal_error" } else { "unavailable" };
        answer.problem(if fault == Fault::AccessDenied { 500 } else { 503 }, code);
        assert_eq!(shop.wire.messages(FAILED).len(), 1, "{fault:?}");
        shop.wire.clear_faults();
        shop.wire.show_messages();
        assert_eq!(shop.listed("open").await.len(), 1, "{fault:?}");
        assert!(shop.wire.messages(FAILED).is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_not_deleted_is_listed_once() {
    for fault in [Fault::LostBefore, Fault::LostAfter] {
        let shop = shop().await;
        shop.refund_is_owed("pay_123");
        shop.wire.fail_all(&["DeleteMessage"], fault);
        shop.send(event("admin/list-failed-confirmations")).await.problem(503, "unavailable");
        // It is in the table: the list does not need the queue.
        assert_eq!(shop.listed("open").await.len(), 1, "{fault:?}");
        shop.wire.clear_faults();
        shop.wire.show_messages();
        assert_eq!(shop.listed("").await.len(), 1, "{fault:?}");
        assert!(shop.wire.messages(FAILED).is_empty(), "{fault:?}");
    }
}

#[tokio::test]
async fn a_cursor_of_another_list_ingests_nothing() {
    let shop = shop().await;
    shop.refund_is_owed("pay_123");
    let asking = |name: &str, query: String| {
        let mut event = event(name);
        event["rawQueryString"] = query.into();
        event
    };
    assert_eq!(shop.send(event("admin/adjust-stock")).await.status, 200);
    let ledger = shop.send(asking("admin/get-ledger", "limit=1".to_owned())).await;
    let cursor = ledger.body["next_cursor"].as_str().unwrap();
    shop.wire.take_calls();
    let list = asking("admin/list-failed-confirmations", format!("cursor={cursor}"));
    shop.send(list).await.problem(400, "invalid_request");
    assert!(shop.wire.take_calls().is_empty());
    assert_eq!(shop.wire.messages(FAILED).len(), 1);
}

#[tokio::test]
async fn unreadable_messages_are_listed_and_several_receives_are_ingested() {
    let shop = shop().await;
    let poison = ["not JSON", "{}", "[1]", "\u{1F9E8}", r#"{"reservation_id":"rsv_x","customer":"alice"}"#];
    poison.iter().for_each(|body| shop.wire.send_message(FAILED, body));
    for n in 0..21 {
        shop.wire.send_message(FAILED, &shop.message(&format!("pay_{n}"), None));
    }
    let listed = shop.listed("open").await;
    let of = |reason: &str| listed.iter().filter(|failed| failed["reason"] == reason).collect::<Vec<_>>();
    assert_eq!((of("unreadable").len(), of("not_confirmed").len()), (poison.len(), 21));
    let mut messages: Vec<&str> =
        of("unreadable").iter().map(|failed| failed["unreadable_message"].as_str().unwrap()).collect();
    let mut expected = poison.to_vec();
    messages.sort_unstable();
    expected.sort_unstable();
    assert_eq!(messages, expected);
    assert!(of("unreadable").iter().all(|failed| failed["reservation_id"].is_null()));
    assert!(shop.wire.messages(FAILED).is_empty());
    // One that does not wait asks some of the queue's servers, and may end the ingestion too early.
    let receives: Vec<Call> =
        shop.wire.take_calls().into_iter().filter(|call| call.operation == "ReceiveMessage").collect();
    assert!(receives.len() > 3 && receives.iter().all(|call| call.request["WaitTimeSeconds"].as_u64() >= Some(1)));
}

#[tokio::test]
async fn a_failed_confirmation_names_the_request_that_asked_for_it() {
    let shop = shop().await;
    let mut message: Value = serde_json::from_str(&shop.message("pay_1", Some("refund_required"))).unwrap();
    message["request"] = json!({"request_id": "UYdGk15TDoEEM6g=", "trace_id": "1-5759e988-bd862e3fe1be46a994272793"});
    shop.wire.send_message(FAILED, &message.to_string());
    // A copy that was accepted later says nothing new.
    message["request"] = json!({"request_id": "later"});
    message["requested_at_ms"] = (NOW.as_millis() + 1).into();
    shop.wire.send_message(FAILED, &message.to_string());
    shop.refund_is_owed("pay_2");
    let ids = |failed: &Value| (failed["request_id"].clone(), failed["trace_id"].clone());
    let listed: BTreeMap<String, _> = shop
        .listed("open")
        .await
        .iter()
        .map(|failed| (failed["payment_reference"].as_str().unwrap().to_owned(), ids(failed)))
        .collect();
    assert_eq!(listed["pay_1"], (json!("UYdGk15TDoEEM6g="), json!("1-5759e988-bd862e3fe1be46a994272793")));
    assert_eq!(listed["pay_2"], (Value::Null, Value::Null));
}

#[tokio::test(start_paused = true)]
async fn a_retry_is_sent_before_it_is_marked() {
    let shop = shop().await;
    shop.refund_is_owed("pay_123");
    assert_eq!(shop.listed("open").await.len(), 1);
    let retry = || event("admin/retry-failed-confirmation");

    shop.wire.fail_all(&["SendMessage"], Fault::LostBefore);
    shop.send(retry()).await.problem(503, "unavailable");
    assert_eq!(shop.listed("open").await.len(), 1, "never sent, never marked");

    shop.wire.script(|call| {
        let mark = call.operation == "UpdateItem" && call.request["Key"]["pk"]["S"] == "FAILED";
        mark.then_some(Fault::LostBefore)
    });
    shop.send(retry()).await.problem(503, "unavailable");
    assert_eq!(shop.wire.messages(CONFIRMATIONS).len(), 1, "sent, if not marked");

    shop.wire.clear_faults();
    assert_eq!(shop.send(retry()).await.body["state"], "retrying");
    // It is sent without the reason of the dead-letter queue, as an ordinary confirmation.
    for sent in shop.wire.messages(CONFIRMATIONS) {
        assert_eq!(sent, shop.message("pay_123", None));
    }
    assert!(shop.listed("open").await.is_empty());
    assert_eq!(shop.listed("retrying").await.len(), 1);

    // It failed again, and is open again, under the same id.
    shop.refund_is_owed("pay_123");
    let open = shop.listed("open").await;
    assert_eq!((open.len(), &open[0]["failed_confirmation_id"]), (1, &json!(ID)));
}

#[tokio::test]
async fn what_is_settled_stays_settled() {
    let shop = shop().await;
    shop.refund_is_owed("pay_123");
    assert_eq!(shop.listed("open").await.len(), 1);
    for note in [json!(""), json!("  \n"), json!("x".repeat(1_001)), json!(null), json!(7)] {
        shop.resolve(ID, note).await.problem(400, "invalid_request");
    }
    assert_eq!(shop.listed("open").await.len(), 1);
    assert_eq!(shop.resolve(ID, json!("x".repeat(1_000))).await.status, 200);
    shop.resolve(ID, json!("again")).await.problem(409, "already_settled");
    shop.send(event("admin/retry-failed-confirmation")).await.problem(409, "already_settled");
    // A late copy of the message does not open it again.
    shop.refund_is_owed("pay_123");
    assert!(shop.listed("open").await.is_empty());
    assert_eq!(shop.listed("resolved").await[0]["note"], "x".repeat(1_000));
    assert!(shop.wire.messages(CONFIRMATIONS).is_empty());
    let answer = shop.send(event("admin/redrive-failed-confirmations")).await;
    assert_eq!(answer.body, json!({ "retried": 0, "next_cursor": null, "complete": true }));

    for id in ["fc_x", "FAILED", "..%2F", &ID.to_uppercase(), &format!("fc_{}", "a".repeat(52))] {
        let answer = shop.resolve(id, json!("note")).await;
        answer.problem(404, "failed_confirmation_not_found");
    }
}

#[tokio::test]
async fn a_payment_that_was_confirmed_late_before_the_message_was_read_is_not_open() {
    let shop = shop().await;
    shop.refund_is_owed("pay_123");
    shop.refund_is_owed("pay_456");
    shop.confirm_late("pay_123").await;
    let open = shop.listed("open").await;
    assert_eq!(open.len(), 1, "the other payment is still owed: {open:?}");
    assert_eq!(open[0]["payment_reference"], "pay_456");
    let confirmed = shop.listed("confirmed").await;
    assert_eq!((confirmed.len(), &confirmed[0]["payment_reference"]), (1, &json!("pay_123")));
    shop.resolve(ID, json!("refunded")).await.problem(409, "already_settled");
}

#[tokio::test]
async fn what_has_become_an_order_is_not_listed_for_a_refund() {
    let shop = shop().await;
    // Its attempts are used up and an admin sees it; then the customer retries in time, and it is an order.
    shop.wire.send_message(FAILED, &shop.message("pay_123", None));
    assert_eq!(shop.listed("open").await.len(), 1);
    let (held, paid) = (&shop.held, payment("pay_123"));
    let store = store(&shop.wire, 5);
    store.confirm(&confirmation(&held.reservation_id, &held.customer, Some(&paid), NOW), NOW, soon()).await.unwrap();
    shop.resolve(ID, json!("refunded")).await.problem(409, "already_settled");
    assert_eq!(shop.listed("confirmed").await.len(), 1);
}

#[tokio::test]
async fn a_hold_that_is_extended_while_its_answer_is_on_the_way_is_not_shown_as_expired() {
    let shop = shop().await;
    let gate = shop.wire.gate_after(|call| call.operation == "GetItem");
    let (answer, ()) = tokio::join!(shop.send(event("admin/get-reservation")), async {
        gate.arrived().await;
        shop.hands.set(LATE);
        gate.open();
    });
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("held")), "{answer:?}");
}

#[tokio::test]
async fn redrive_retries_once_what_got_no_answer_and_resumes_at_its_cursor() {
    let shop = shop().await;
    shop.wire.send_message(FAILED, "not JSON");
    for n in 0..130 {
        shop.refund_is_owed(&format!("refused_{n}"));
        shop.wire.send_message(FAILED, &shop.message(&format!("unanswered_{n}"), None));
    }
    // Ingesting is bounded, and each response has the cursor of the next request.
    assert!(!shop.listed("open").await.is_empty());
    let redrive = |query: String| with_query(event("admin/redrive-failed-confirmations"), &query);
    let (mut query, mut retried, mut pages) = (String::new(), Vec::new(), Vec::new());
    loop {
        shop.wire.take_calls();
        let answer = shop.send(redrive(query)).await;
        assert_eq!(answer.status, 202, "{answer:?}");
        retried.push(answer.body["retried"].as_u64().unwrap());
        let calls = shop.wire.take_calls();
        let starts = calls
            .iter()
            .filter(|call| call.operation == "Query")
            .map(|call| call.request["ExclusiveStartKey"].to_string());
        pages.extend(starts);
        let Some(next) = answer.body["next_cursor"].as_str() else { break };
        query = format!("cursor={next}");
        assert!(retried.len() < 10, "it comes to no end: {retried:?}");
    }
    assert_eq!(retried.iter().sum::<u64>(), 130, "{retried:?}");
    assert!(retried.len() > 1 && retried.iter().all(|&retried| retried < 125), "{retried:?}");
    let read = pages.len();
    pages.sort_unstable();
    pages.dedup();
    assert_eq!(pages.len(), read, "no page is read twice");
    let mut sent = shop.wire.messages(CONFIRMATIONS);
    sent.sort_unstable();
    sent.dedup();
    assert_eq!(sent.len(), 130);
    assert!(sent.iter().all(|message| message.contains("unanswered_")));
    let answer = shop.send(event("admin/redrive-failed-confirmations")).await;
    assert_eq!(answer.body, json!({ "retried": 0, "next_cursor": null, "complete": true }));
    // More than one request ingests: the last page says that there is more.
    for n in 0..250 {
        shop.wire.send_message(FAILED, &shop.message(&format!("later_{n}"), None));
    }
    let (mut query, mut later) = (String::new(), 0);
    loop {
        let answer = shop.send(redrive(query)).await;
        later += answer.body["retried"].as_u64().unwrap();
        if answer.body["complete"] == true {
            break;
        }
        query = answer.body["next_cursor"].as_str().map(|next| format!("cursor={next}")).unwrap_or_default();
    }
    assert_eq!((later, shop.wire.messages(FAILED).len()), (250, 0));
    for wrong in ["cursor=x", "cursor=", "limit=1"] {
        shop.send(redrive(wrong.to_owned())).await.problem(400, "invalid_request");
    }
}

#[tokio::test]
async fn settled_ones_cost_the_list_of_open_ones_nothing() {
    let shop = shop().await;
    for n in 0..60 {
        shop.refund_is_owed(&format!("settled_{n}"));
    }
    let mut event = event("admin/list-failed-confirmations");
    event["rawQueryString"] = "state=open&limit=100".into();
    let settled = shop.send(event.clone()).await.body["items"].as_array().unwrap().clone();
    assert_eq!(settled.len(), 60);
    for failed in settled {
        assert_eq!(
            shop.resolve(failed["failed_confirmation_id"].as_str().unwrap(), json!("refunded")).await.status,
            200
        );
    }
    shop.refund_is_owed("open");
    event["rawQueryString"] = "state=open&limit=1".into();
    shop.wire.take_calls();
    let answer = shop.send(event).await;
    assert_eq!(answer.body["items"][0]["payment_reference"], "open");
    let queries = shop.wire.take_calls().into_iter().filter(|call| call.operation == "Query").count();
    assert!(queries <= 2, "{queries} queries for one open failed confirmation");
}

#[tokio::test]
async fn only_a_retry_lifts_the_refusal() {
    let shop = shop().await;
    let (held, paid) = (&shop.held, payment("pay_123"));
    let store = store(&shop.wire, 5);
    let confirm = async || {
        let (id, customer) = (&held.reservation_id, &held.customer);
        store.confirm(&confirmation(id, customer, Some(&paid), LATE), LATE.plus_seconds(1), soon()).await
    };
    let refused = |answer| matches!(answer, Err(Error::Refused(Refusal::RefundRequired)));
    // The hold is over, and another customer has all 100 tees.
    shop.hands.set(LATE);
    store.release_overdue(LATE, soon()).await.unwrap();
    let bobs = reserve(&store, &basket("bob", "k", &[("tee-black", 100)]), LATE).await.unwrap().reservation;
    assert!(refused(confirm().await));
    shop.refund_is_owed("pay_123");
    // They are available again, but the refusal stays: the customer may have been told about it.
    store.cancel(&bobs.reservation_id, &bobs.customer, LATE, soon()).await.unwrap();
    assert!(refused(confirm().await));
    assert_eq!(shop.listed("open").await.len(), 1);
    shop.send(event("admin/redrive-failed-confirmations")).await;
    assert!(refused(confirm().await), "a redrive is for those that got no answer");
    let answer = shop.send(event("admin/retry-failed-confirmation")).await;
    assert_eq!((answer.status, &answer.body["state"]), (202, &json!("retrying")));
    assert_eq!(shop.wire.messages(CONFIRMATIONS), [shop.message("pay_123", None)]);
    assert!(confirm().await.unwrap().confirmed_late);
    // The list shows that it is an order.
    assert_eq!(shop.listed("retrying").await.len(), 0);
    assert_eq!(shop.listed("confirmed").await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_table_refuses_blocks_no_other() {
    let shop = shop().await;
    for n in 0..12 {
        shop.refund_is_owed(&format!("pay_{n}"));
    }
    shop.wire.script(|call| {
        let poison = call.operation == "UpdateItem" && call.request.to_string().contains("\"pay_4\"");
        poison.then_some(Fault::AccessDenied)
    });
    shop.send(event("admin/list-failed-confirmations")).await.problem(500, "internal_error");
    let left = shop.wire.messages(FAILED);
    assert_eq!(left.iter().filter(|body| body.contains("\"pay_4\"")).count(), 1);
    assert!(left.len() <= 3, "the nine beside it were taken in: {left:?}");
    shop.wire.clear_faults();
    shop.wire.show_messages();
    assert_eq!(shop.listed("open").await.len(), 12);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_hangs_leaves_time_for_an_answer() {
    let shop = shop().await;
    shop.wire.fail_all(&["ReceiveMessage"], Fault::Silence);
    let started = tokio::time::Instant::now();
    shop.send(event("admin/list-failed-confirmations")).await.problem(503, "unavailable");
    assert!(started.elapsed().as_secs() < 8, "{:?}", started.elapsed());
}

#[tokio::test]
async fn units_are_counted_unless_the_limit_is_null() {
    let shop = shop().await;
    let create = async |id: &str, more: Value| {
        let mut body = json!({ "product_id": id, "name": "x", "price_minor": 1, "currency": "EUR", "total": 1 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        shop.send(with_body(event("admin/create-product"), body)).await
    };
    let change = async |id: &str, body: Value| {
        shop.send(with_body(at(event("admin/change-product"), "PATCH", &format!("/admin/products/{id}")), body)).await
    };
    for (id, more, limit, counts) in [
        ("absent", json!({}), json!(10), true),
        ("null", json!({ "max_per_customer": null }), Value::Null, false),
        ("three", json!({ "max_per_customer": 3 }), json!(3), true),
    ] {
        let made = create(id, more).await;
        let shown = (made.status, &made.body["max_per_customer"], &made.body["counts_per_customer"]);
        assert_eq!(shown, (201, &limit, &json!(counts)), "{id}");
        let limited = change(id, json!({ "version": 1, "max_per_customer": 2 })).await;
        if counts {
            assert_eq!((limited.status, &limited.body["max_per_customer"]), (200, &json!(2)), "{id}");
            let unlimited = change(id, json!({ "version": 2, "max_per_customer": null })).await;
            assert_eq!((unlimited.status, &unlimited.body["counts_per_customer"]), (200, &json!(true)), "{id}");
        } else {
            assert_eq!((limited.status, &limited.body["field"]), (400, &json!("max_per_customer")), "{id}");
            // An update with the same values changes nothing.
            let same = change(id, json!({ "version": 1, "max_per_customer": null })).await;
            assert_eq!((same.status, &same.body["counts_per_customer"]), (200, &json!(false)), "{id}");
        }
    }
}

#[tokio::test]
async fn a_product_sets_how_late_a_payment_may_be() {
    let shop = shop().await;
    for (id, given, shown) in
        [("day", Value::Null, 86_400), ("never", json!(0), 0), ("month", json!(2_592_000), 2_592_000)]
    {
        let mut body = json!({ "product_id": id, "name": "x", "price_minor": 1, "currency": "EUR", "total": 1 });
        if !given.is_null() {
            body["late_payment_seconds"] = given;
        }
        let made = shop.send(with_body(event("admin/create-product"), body)).await;
        assert_eq!((made.status, &made.body["late_payment_seconds"]), (201, &json!(shown)), "{id}");
        let change = at(event("admin/change-product"), "PATCH", &format!("/admin/products/{id}"));
        let changed = shop.send(with_body(change, json!({ "version": 1, "late_payment_seconds": 60 }))).await;
        assert_eq!((changed.status, &changed.body["late_payment_seconds"]), (200, &json!(60)), "{id}");
    }
}

#[tokio::test]
async fn prices_have_an_exponent() {
    let shop = shop().await;
    for (currency, exponent) in [("JPY", 0), ("EUR", 2), ("KWD", 3), ("CLF", 4)] {
        let body =
            json!({ "product_id": currency, "name": "x", "price_minor": 2_500, "currency": currency, "total": 1 });
        let made = shop.send(with_body(event("admin/create-product"), body)).await;
        assert_eq!((made.status, &made.body["currency_exponent"]), (201, &json!(exponent)), "{currency}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalid_request_is_a_problem() {
    let shop = shop().await;
    let create = || event("admin/create-product");
    let change = |body: Value| with_body(event("admin/change-product"), body);
    let adjust = |body: Value| with_body(event("admin/adjust-stock"), body);
    let product = |changes: Value| {
        let mut body = json!({ "product_id": "new", "name": "New", "price_minor": 1, "currency": "EUR", "total": 1 });
        body.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        with_body(create(), body)
    };
    let unknown = shop.send(product(json!({ "currency": "XYZ" }))).await;
    assert_eq!(unknown.body["field"], "currency");
    for name in names("admin") {
        let with = shop.send(with_query(event(&format!("admin/{name}")), "utm_source=x")).await;
        with.problem(400, "invalid_request");
    }
    for (what, event, status, code) in [
        ("no such route", at(create(), "GET", "/admin/nowhere"), 404, "route_not_found"),
        ("no such method", at(create(), "DELETE", "/admin/products"), 405, "method_not_allowed"),
        ("too long", with_body(create(), "x".repeat(65_537)), 413, "payload_too_large"),
        ("not UTF-8", at(adjust(json!({})), "POST", "/admin/products/%FF/stock"), 404, "route_not_found"),
        ("there already", create(), 409, "product_exists"),
        ("no id", with_body(create(), "{}"), 400, "invalid_request"),
        ("a name of blanks", product(json!({ "name": "   " })), 400, "invalid_request"),
        ("a name of what does not show", product(json!({ "name": "\u{3000}\u{200b}" })), 400, "invalid_request"),
        ("no currency that there is", product(json!({ "currency": "XYZ" })), 400, "invalid_request"),
        ("no currency any more", product(json!({ "currency": "HRK" })), 400, "invalid_request"),
        ("no currency but gold", product(json!({ "currency": "XAU" })), 400, "invalid_request"),
        ("a currency in small letters", product(json!({ "currency": "eur" })), 400, "invalid_request"),
        ("a late payment past 30 days", product(json!({ "late_payment_seconds": 2_592_001 })), 400, "invalid_request"),
        (
            "a change to a late payment past 30 days",
            change(json!({ "version": 1, "late_payment_seconds": 2_592_001 })),
            400,
            "invalid_request",
        ),
        ("a change to a name of blanks", change(json!({ "version": 1, "name": " " })), 400, "invalid_request"),
        ("a reason of blanks", adjust(json!({ "delta": 1, "reason": " " })), 400, "invalid_request"),
        (
            "a reference of blanks",
            adjust(json!({ "delta": 1, "reason": "x", "reference": "\u{2003}" })),
            400,
            "invalid_request",
        ),
        ("an old version", change(json!({ "version": 7, "price_minor": 1 })), 409, "version_mismatch"),
        ("a field that is set once", change(json!({ "version": 1, "shards": 2 })), 400, "invalid_request"),
        ("more than is free", adjust(json!({ "delta": -99, "reason": "lost" })), 409, "insufficient_stock"),
        ("another total", adjust(json!({ "delta": 1, "reason": "x", "expected_total": 7 })), 409, "version_mismatch"),
        ("no reason", adjust(json!({ "delta": 1 })), 400, "invalid_request"),
        ("nothing", adjust(json!({ "delta": 0, "reason": "x" })), 400, "invalid_request"),
    ] {
        let answer = shop.send(event).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{what}: {answer:?}");
        answer.problem(status, code);
    }
    assert_eq!(books(&shop.wire).await["tee-black"].total, 100);

    for name in names("admin") {
        let event = event(&format!("admin/{name}"));
        let mut customers = event.clone();
        customers["requestContext"]["authorizer"]["jwt"]["claims"]["cognito:groups"] = "[customer]".into();
        shop.send(customers.clone()).await.problem(403, "forbidden");
        shop.send(in_role(customers.clone(), "service")).await.problem(403, "forbidden");
        let reads = customers["requestContext"]["http"]["method"] == "GET";
        let auditors = shop.send(in_role(customers, "auditor")).await;
        if reads {
            assert_eq!(auditors.status, 200, "{name}: {auditors:?}");
        } else {
            let refused = auditors.problem(403, "forbidden");
            assert!(refused["detail"].as_str().unwrap().contains("auditor"), "{refused}");
        }
        // A header is not a claim.
        let mut nobodys = with_header(event, "x-cognito-groups", "[admin]");
        nobodys["requestContext"].as_object_mut().unwrap().remove("authorizer");
        shop.send(nobodys).await.problem(401, "unauthenticated");
    }

    // A failed query is not an empty list.
    const ALL: &[&str] = &["GetItem", "BatchGetItem", "Query", "Scan", "UpdateItem", "TransactWriteItems"];
    for (fault, status, code) in [(Fault::LostBefore, 503, "unavailable"), (Fault::AccessDenied, 500, "internal_error")]
    {
        shop.wire.fail_all(ALL, fault);
        for name in names("admin") {
            let answer = shop.send(event(&format!("admin/{name}"))).await;
            assert_eq!(answer.status, status, "{name} {fault:?}: {answer:?}");
            answer.problem(status, code);
        }
    }
    shop.wire.fail_all(&["ReceiveMessage"], Fault::AccessDenied);
    shop.send(event("admin/list-failed-confirmations")).await.problem(503, "unavailable");
}

/// In the words of draft-ietf-httpapi-idempotency-key-header, section 2.7: "missing", "reused with a different request
/// payload", and the first answer again. Its third error, 409 for a request that is still "being processed", has no
/// place here: the transaction that adjusts also writes the key, so there is no time between the two.
#[tokio::test]
async fn an_adjustment_is_made_once_per_key() {
    let shop = shop().await;
    let adjust = || event("admin/adjust-stock");
    let mut keyless = adjust();
    keyless["headers"].as_object_mut().unwrap().remove("idempotency-key");
    shop.send(keyless).await.problem(400, "idempotency_key_missing");
    for invalid in ["", "a,b", "\"a", &"k".repeat(256)] {
        let answer = shop.send(with_header(adjust(), "idempotency-key", invalid)).await;
        answer.problem(400, "idempotency_key_invalid");
    }
    assert_eq!(books(&shop.wire).await["tee-black"].total, 100);

    let first = shop.send(adjust()).await;
    assert_eq!((first.status, first.header("idempotent-replayed")), (200, None));
    let key = adjust()["headers"]["idempotency-key"].as_str().unwrap().to_owned();
    for same in [key.clone(), format!("\"{key}\"")] {
        let again = shop.send(with_header(adjust(), "idempotency-key", &same)).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (200, Some("true")));
        assert_eq!(again.body, first.body);
    }
    let other = with_body(adjust(), json!({ "delta": 7, "reason": "delivery" }));
    shop.send(other).await.problem(422, "idempotency_key_reused");
    assert_eq!(books(&shop.wire).await["tee-black"].total, 150);
    assert_eq!(shop.send(event("admin/get-ledger")).await.body["items"].as_array().unwrap().len(), 2);
}

/// The writes that an event makes: to the log of actions, and others.
async fn writes(shop: &Shop, event: Value) -> (Answer, Vec<String>) {
    shop.wire.take_calls();
    let answer = shop.send(event).await;
    let writes = shop.wire.take_calls().into_iter().filter_map(|call| match call.operation.as_str() {
        "UpdateItem" => Some(call.request["Key"]["pk"]["S"].as_str()?.split('#').next()?.to_owned()),
        "TransactWriteItems" | "SendMessage" => Some(call.operation),
        _ => None,
    });
    (answer, writes.collect())
}

#[tokio::test(start_paused = true)]
async fn every_change_is_written_down_before_it_is_made_and_its_outcome_after_it() {
    for name in names("admin") {
        let shop = shop().await;
        shop.wire.send_message(FAILED, &shop.message("pay_123", None));
        assert_eq!(shop.listed("").await.len(), 1);
        let event = event(&format!("admin/{name}"));
        let http = event["requestContext"]["http"].clone();
        let mut sent: Value = event["body"].as_str().map_or(json!({}), |body| serde_json::from_str(body).unwrap());
        if name == "adjust-stock" {
            sent["idempotency_key"] = event["headers"]["idempotency-key"].clone();
        }
        let (answer, writes) = writes(&shop, event).await;
        let listed = shop.send(self::event("admin/list-actions")).await;
        let all = with_query(self::event("admin/list-actions"), "");
        let listed = if listed.body["items"] == json!([]) { shop.send(all).await } else { listed };
        let actions = listed.body["items"].as_array().unwrap();
        if http["method"] == "GET" {
            assert!(actions.is_empty() && !writes.iter().any(|write| write == "ACTION"), "{name}: {writes:?}");
            continue;
        }
        let ends = [writes.first(), writes.last()].map(|write| write.map(String::as_str));
        assert_eq!(ends, [Some("ACTION"); 2], "{name}: {writes:?}");
        assert_eq!(writes.iter().filter(|write| *write == "ACTION").count(), 2, "{name}: {writes:?}");
        let [action] = actions.as_slice() else { panic!("{name}: {actions:?}") };
        let outcome = match answer.body["code"].as_str() {
            Some(code) => format!("{} {code}", answer.status),
            None => answer.status.to_string(),
        };
        assert_eq!((&action["outcome"], &action["actor"]), (&json!(outcome), &json!("admin-1")), "{name}");
        assert_eq!((&action["detail"], &action["at"]), (&sent, &json!("2025-11-21T04:40:00.000Z")), "{name}");
        assert_eq!(action["request_id"].as_str(), answer.header("x-request-id"), "{name}");
        let (path, target) = (http["path"].as_str().unwrap(), action["target"].as_str().unwrap());
        assert!(path.contains(target) || sent["product_id"] == target, "{name}: {target}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_done() {
    for name in names("admin") {
        let shop = shop().await;
        shop.refund_is_owed("pay_123");
        assert_eq!(shop.listed("").await.len(), 1);
        let event = event(&format!("admin/{name}"));
        if event["requestContext"]["http"]["method"] == "GET" {
            continue;
        }
        let of_log = |call: &Call| call.request["Key"]["pk"]["S"].as_str().is_some_and(|pk| pk.starts_with("ACTION#"));
        shop.wire.script(move |call| of_log(call).then_some(Fault::LostBefore));
        let (answer, writes) = writes(&shop, event.clone()).await;
        answer.problem(503, "unavailable");
        assert!(writes.iter().all(|write| write == "ACTION"), "{name}: {writes:?}");
        // If only the outcome cannot be written, the change was made all the same, and its answer says so.
        shop.wire.script(move |call| {
            let outcome = of_log(call) && call.request["UpdateExpression"] == "SET #outcome = :outcome";
            outcome.then_some(Fault::LostBefore)
        });
        let (answer, _) = self::writes(&shop, event).await;
        assert!(answer.status < 500, "{name}: {answer:?}");
        shop.wire.clear_faults();
        let all = shop.send(with_query(self::event("admin/list-actions"), "")).await;
        assert_eq!(all.body["items"][0]["outcome"], "unknown", "{name}: {all:?}");
    }
}

#[tokio::test]
async fn an_invalid_request_is_no_action() {
    let shop = shop().await;
    for (name, body) in [
        ("adjust-stock", json!({ "delta": 0, "reason": "x" })),
        ("create-product", json!({ "product_id": "x", "name": "", "price_minor": 1, "currency": "EUR", "total": 1 })),
        ("release-holds", json!({ "reason": "" })),
        ("cancel-order", json!({ "reason": " ", "restock": true })),
        ("resolve-failed-confirmation", json!({ "note": "" })),
    ] {
        let event = with_body(event(&format!("admin/{name}")), body);
        shop.send(event.clone()).await.problem(400, "invalid_request");
        shop.send(in_role(event, "auditor")).await.problem(403, "forbidden");
    }
    let all = with_query(event("admin/list-actions"), "");
    assert_eq!(shop.send(all).await.body["items"], json!([]));
    for query in ["target=", "target=a%20b", "limit=0", "limit=101", "cursor=x", "action=x"] {
        shop.send(with_query(event("admin/list-actions"), query)).await.problem(400, "invalid_request");
    }
}

#[tokio::test]
async fn a_cancelled_reservation_says_when_and_by_whom() {
    let shop = shop().await;
    let (store, held) = (store(&shop.wire, 5), &shop.held);
    let bobs = reserve(&store, &basket("bob", "k", &[("tee-black", 1)]), NOW).await.unwrap().reservation;
    store.cancel(&bobs.reservation_id, &bobs.customer, NOW.plus_seconds(5), soon()).await.unwrap();
    let get = async |id: &str| {
        shop.send(at(event("admin/get-reservation"), "GET", &format!("/admin/reservations/{id}"))).await.body
    };
    let read = get(held.reservation_id.as_str()).await;
    assert_eq!((&read["cancelled_at"], read.get("cancelled_by")), (&json!(null), None));
    assert_eq!(shop.send(event("admin/release-reservation")).await.status, 200);
    for (id, by, at) in
        [(&held.reservation_id, "admin-1", "04:40:00.000Z"), (&bobs.reservation_id, "customer", "04:40:05.000Z")]
    {
        let read = get(id.as_str()).await;
        let shown = (&read["cancelled_by"], &read["cancelled_at"]);
        assert_eq!(shown, (&json!(by), &json!(format!("2025-11-21T{at}"))), "{read}");
    }
}

#[tokio::test]
async fn failed_confirmations_are_found_by_their_reservation() {
    let shop = shop().await;
    shop.refund_is_owed("pay_123");
    let list = |query: &str| with_query(event("admin/list-failed-confirmations"), query);
    let found = async |query: &str| shop.send(list(query)).await.body["items"].as_array().unwrap().len();
    let id = &shop.held.reservation_id;
    assert_eq!(found(&format!("reservation_id={id}")).await, 1);
    assert_eq!(found(&format!("reservation_id={id}&state=open")).await, 1);
    assert_eq!(found(&format!("reservation_id={id}&state=resolved")).await, 0);
    let other = basket("bob", "k", &[("tee-black", 1)]).reservation_id;
    assert_eq!(found(&format!("reservation_id={other}")).await, 0);
    shop.send(list("reservation_id=rsv_x")).await.problem(400, "invalid_request");
}

#[tokio::test]
async fn requests_without_a_key_are_idempotent() {
    let shop = shop().await;
    // The caller chooses the product's id: a second product with it is refused.
    let products = shop.send(event("admin/list-products")).await.body;
    shop.send(event("admin/create-product")).await.problem(409, "product_exists");
    assert_eq!(shop.send(event("admin/list-products")).await.body, products);
    // The first change has used up the version.
    assert_eq!(shop.send(event("admin/change-product")).await.body["version"], 2);
    let products = shop.send(event("admin/list-products")).await.body;
    assert_eq!(shop.send(event("admin/change-product")).await.problem(409, "version_mismatch")["current"], 2);
    assert_eq!(shop.send(event("admin/list-products")).await.body, products);
    // A confirmation that is sent twice is confirmed once, by `confirm`.
    shop.wire.send_message(FAILED, &shop.message("pay_123", None));
    let redrive = async || shop.send(event("admin/redrive-failed-confirmations")).await.body;
    assert_eq!(redrive().await, json!({ "retried": 1, "next_cursor": null, "complete": false }));
    assert_eq!(redrive().await, json!({ "retried": 0, "next_cursor": null, "complete": true }));
    let retried = shop.send(event("admin/retry-failed-confirmation")).await;
    let again = shop.send(event("admin/retry-failed-confirmation")).await;
    assert_eq!((retried.status, again.status, &again.body), (202, 202, &retried.body));
    let mut sent = shop.wire.messages(CONFIRMATIONS);
    sent.dedup();
    assert_eq!(sent, [shop.message("pay_123", None)]);
    // The first settlement is final: a second one is refused.
    assert_eq!(shop.resolve(ID, json!("first")).await.status, 200);
    shop.resolve(ID, json!("second")).await.problem(409, "already_settled");
    assert_eq!(shop.listed("resolved").await[0]["note"], "first");
}

#[tokio::test(start_paused = true)]
async fn logs_have_no_token_payment_or_key() {
    const TOKEN: &str = "Bearer eyJhbGciOiJSUzI1NiJ9.YWRtaW4.c2lnbmVk";
    const KEY: &str = "a-key-that-nobody-may-read";
    let log = Log::capture();
    // Without faults, and with each kind of outage of the table and the queues.
    for fault in [None, Some(Fault::LostBefore), Some(Fault::AccessDenied), Some(Fault::Conflict)] {
        for name in names("admin") {
            let shop = shop().await;
            shop.refund_is_owed("pay_123");
            assert_eq!(shop.listed("").await.len(), 1);
            shop.wire.script(move |_| fault);
            let event = with_header(event(&format!("admin/{name}")), "authorization", TOKEN);
            let event = with_header(event, "idempotency-key", KEY);
            shop.send(event.clone()).await;
            shop.send(with_body(event.clone(), json!({ "payment_reference": "pay_123" }))).await;
            shop.send(with_body(event, "pay_123")).await;
        }
    }
    log.is_free_of(&["eyJhbGci", "YWRtaW4", "Bearer", "pay_123", KEY]);
    assert!(log.lines().iter().any(|line| line["status"] == 500 && line["level"] == "ERROR"));
    let measured = log.measured();
    assert!(measured.contains(&("drift".to_owned(), String::new(), vec![0])), "{measured:?}");
}
