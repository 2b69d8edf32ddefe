//! The function `reserve` over the real SDKs: its routes, and the schedule before every hold. (One shop fixture for all, hence
//! the length.)
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use holdfast_aws::connections;
use holdfast_domain::{ProductChange, Timestamp};
use holdfast_http::{Authenticator, serve};
use holdfast_testkit::event::{
    Answer, at, by, event, in_role, invocation, names, send, with_body, with_header, with_query,
};
use holdfast_testkit::fixtures::{
    NOW, TestClock, basket, books, confirmation, product, product_id, schedules, soon, stocked, store, table,
};
use holdfast_testkit::log::Log;
use holdfast_testkit::wire::{Fault, Wire};
use reserve::{App, router};
use serde_json::{Value, json};

/// The Idempotency-Key behind the reservation of the event files.
const KEY: &str = "6f1c2e0a-4b0e-4c53-9a8e-0d7f3b1f5a21";

/// The function in one environment, over a shop with 100 tees.
struct Shop {
    wire: Wire,
    hands: TestClock,
    router: Router,
}

async fn shop() -> Shop {
    let wire = table();
    stocked(&wire, &[product("tee-black", 100, 4)]).await;
    environment(&wire, 1)
}

/// Another environment of the function, with its own caches.
fn environment(wire: &Wire, seed: u64) -> Shop {
    let hands = TestClock::new();
    let app = App { store: store(wire, seed), schedules: schedules(wire), clock: hands.clock() };
    Shop { wire: wire.clone(), hands, router: serve(router(app), Authenticator::default()) }
}

impl Shop {
    async fn send(&self, event: Value) -> Answer {
        send(self.router.clone(), event).await
    }

    /// Reserves two tees under `key`.
    async fn create(&self, key: &str) -> Answer {
        self.send(with_header(event("reserve/create"), "idempotency-key", key)).await
    }

    async fn free(&self) -> u64 {
        books(&self.wire).await["tee-black"].available
    }
}

/// The operations that went over the wire.
fn operations(wire: &Wire) -> Vec<String> {
    wire.take_calls().into_iter().map(|call| call.operation).collect()
}

#[tokio::test]
async fn every_event_file_is_answered_with_its_success() {
    for name in names("reserve") {
        let shop = shop().await;
        let owner = if name == "transfer" { "guest:7" } else { "alice" };
        let id = basket(owner, KEY, &[("tee-black", 2)]).reservation_id;
        if name == "transfer" {
            let body = json!({ "lines": [{ "product_id": "tee-black", "quantity": 2 }], "customer_id": owner });
            let create = in_role(with_body(event("reserve/create"), body), "service");
            assert_eq!(shop.send(create).await.status, 201);
        } else if name != "create" {
            assert_eq!(shop.create(KEY).await.status, 201);
        }
        if name.starts_with("order") {
            let alice = basket("alice", KEY, &[("tee-black", 2)]).customer;
            store(&shop.wire, 2).confirm(&confirmation(&id, &alice, None, NOW), NOW, soon()).await.unwrap();
        }
        if name == "extend" {
            shop.hands.set(NOW.plus_seconds(60));
        }
        let answer = shop.send(event(&format!("reserve/{name}"))).await;
        let of_list = |answer: &Answer| answer.body["items"][0].clone();
        let (status, reservation, expected) = match name.as_str() {
            "create" => (201, answer.body.clone(), "held"),
            "get" => (200, answer.body.clone(), "held"),
            "list" => (200, of_list(&answer), "held"),
            "order" => (200, answer.body.clone(), "confirmed"),
            "orders" => (200, of_list(&answer), "confirmed"),
            "cancel" => (200, answer.body.clone(), "cancelled"),
            "order-cancel" => {
                assert_eq!((&answer.body["restocked"], shop.free().await), (&json!(true), 100));
                (200, answer.body.clone(), "cancelled")
            }
            "extend" => {
                assert_eq!(answer.body["expires_at"], "2025-11-21T04:51:00.000Z");
                (200, answer.body.clone(), "held")
            }
            "change-lines" => {
                assert_eq!((&answer.body["lines"][0]["quantity"], shop.free().await), (&json!(3), 97));
                (200, answer.body.clone(), "held")
            }
            "transfer" => (200, answer.body.clone(), "held"),
            other => panic!("events/reserve/{other}.json has no test"),
        };
        assert_eq!(answer.status, status, "{name}: {answer:?}");
        assert_eq!(reservation["reservation_id"], id.as_str(), "{name}: {answer:?}");
        assert_eq!(reservation["status"], expected, "{name}");
        let total = if name == "change-lines" { 7_500 } else { 5_000 };
        assert_eq!((&reservation["total_price_minor"], &reservation["currency"]), (&json!(total), &json!("EUR")));
    }
}

#[tokio::test]
async fn a_replay_returns_the_same_response_and_is_marked() {
    let shop = shop().await;
    let first = shop.create(KEY).await;
    let location = format!("/reservations/{}", first.body["reservation_id"].as_str().unwrap());
    assert_eq!((first.status, first.header("location")), (201, Some(location.as_str())));
    assert_eq!(first.header("idempotent-replayed"), None);
    // Also if another environment created it.
    for shop in [environment(&shop.wire, 2), shop] {
        let again = shop.create(KEY).await;
        assert_eq!((again.status, again.header("idempotent-replayed")), (201, Some("true")));
        assert_eq!(again.body, first.body);
        assert_eq!(shop.free().await, 98);
    }
}

#[tokio::test(start_paused = true)]
async fn peer_case_8_when_the_scheduler_is_away_units_are_held_all_the_same() {
    let faults = [
        Fault::LostBefore,
        Fault::LostAfter,
        Fault::ServerError,
        Fault::Throttled,
        Fault::AccessDenied,
        Fault::Silence,
    ];
    for fault in faults {
        let shop = shop().await;
        shop.wire.fail_all(&["CreateSchedule"], fault);
        let began = tokio::time::Instant::now();
        assert_eq!(shop.create(KEY).await.status, 201, "{fault:?}");
        assert!(began.elapsed() <= Duration::from_secs(1), "{fault:?}: {:?}", began.elapsed());
        // The next holds do not wait for it.
        shop.wire.take_calls();
        let began = tokio::time::Instant::now();
        for n in 0..10 {
            assert_eq!(shop.create(&format!("k{n}")).await.status, 201, "{fault:?}");
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "{fault:?}");
        assert_eq!(operations(&shop.wire), ["TransactWriteItems"; 10], "{fault:?}");
        assert_eq!(shop.free().await, 100 - 22, "{fault:?}");

        // Ten seconds later it is tried again.
        shop.wire.clear_faults();
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(shop.create("later").await.status, 201, "{fault:?}");
        assert_eq!(shop.wire.schedules().len(), 1, "{fault:?}");

        // What no schedule releases, the sweep does.
        let store = store(&shop.wire, 3);
        let swept = store.release_overdue(NOW.plus_seconds(600), soon()).await.unwrap();
        assert_eq!((swept.holds, shop.free().await), (12, 100), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_pause_after_a_failure_of_scheduler_ends_by_either_clock() {
    // By how much the wall clock goes on or is set back, and how much time goes by on the monotonic one.
    for (stepped_ms, elapsed_ms, called) in
        [(0, 9_999, false), (10_000, 0, true), (-1, 0, true), (-10_000, 10_000, true), (9_999, 0, false)]
    {
        let shop = shop().await;
        shop.wire.fail_all(&["CreateSchedule"], Fault::ServerError);
        assert_eq!(shop.create("k1").await.status, 201);
        shop.wire.step_clock(stepped_ms);
        tokio::time::advance(Duration::from_millis(elapsed_ms)).await;
        shop.wire.take_calls();
        assert_eq!(shop.create("k2").await.status, 201);
        let calls = operations(&shop.wire);
        assert_eq!(calls.contains(&"CreateSchedule".to_owned()), called, "{stepped_ms} {elapsed_ms}: {calls:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_stops_while_it_creates_a_schedule_keeps_nobody_else_waiting_for_long() {
    let shop = shop().await;
    let gate = shop.wire.gate(|call| call.operation == "CreateSchedule");
    let mut stopped = Box::pin(shop.create("k1"));
    tokio::select! {
        answer = &mut stopped => panic!("{answer:?}"),
        () = gate.arrived() => {}
    }
    // It has the turn, and nobody drives it any more.
    let began = tokio::time::Instant::now();
    assert_eq!(shop.create("k2").await.status, 201);
    assert!(began.elapsed() < Duration::from_millis(300), "{:?}", began.elapsed());
    gate.open();
    assert_eq!(stopped.await.status, 201);
}

#[tokio::test(start_paused = true)]
async fn a_hold_is_extended_though_scheduler_is_away() {
    let shop = shop().await;
    shop.create(KEY).await;
    shop.hands.set(NOW.plus_seconds(60));
    shop.wire.fail_all(&["CreateSchedule"], Fault::LostBefore);
    assert_eq!(shop.send(event("reserve/extend")).await.status, 200);
    assert_eq!(shop.wire.schedules().len(), 1);
}

#[tokio::test]
async fn the_schedule_is_created_before_the_hold_once_per_slot() {
    let shop = shop().await;
    // Fifty holds within one slot: 600 s after 04:40:00.001 to 04:40:09.801.
    for n in 0..50 {
        shop.hands.set(Timestamp::from_millis(NOW.as_millis() + 1 + 200 * n));
        assert_eq!(shop.create(&format!("k{n}")).await.status, 201);
    }
    let operations = operations(&shop.wire);
    let first = |operation: &str| operations.iter().position(|other| other == operation).unwrap();
    assert!(first("CreateSchedule") < first("TransactWriteItems"), "{operations:?}");
    assert_eq!(operations.iter().filter(|operation| *operation == "CreateSchedule").count(), 1);

    let schedules = shop.wire.schedules();
    let schedule = &schedules[0];
    let slot = NOW.plus_seconds(610).as_seconds();
    assert_eq!((schedule.group.as_str(), schedule.name.as_str()), ("holds", format!("slot-{slot}").as_str()));
    // At the end of the slot, when all of them are over.
    assert_eq!(schedule.expression, "at(2025-11-21T04:50:10)");
    assert_eq!(schedule.request["ActionAfterCompletion"], "DELETE");
    assert_eq!(schedule.request["FlexibleTimeWindow"]["Mode"], "OFF");
    let target = &schedule.request["Target"];
    assert_eq!(target["Input"], json!({ "kind": "slot", "slot": slot }).to_string());
    assert!(target["DeadLetterConfig"]["Arn"].is_string() && target["RetryPolicy"].is_object(), "{target}");
}

#[tokio::test]
async fn the_first_requests_of_an_environment_share_the_read_of_the_product_and_the_schedule() {
    let shop = shop().await;
    let keys: Vec<String> = (0..20).map(|n| format!("k{n}")).collect();
    for operation in ["BatchGetItem", "CreateSchedule"] {
        // Another environment, that has neither; twenty requests come while its first call is on its way.
        let other = environment(&shop.wire, 2);
        let gate = shop.wire.gate(move |call| call.operation == operation);
        let open = async {
            gate.arrived().await;
            // Everybody has come by then: nothing else is ready to run.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            gate.open();
        };
        let requests = futures_util::future::join_all(keys.iter().map(|key| other.create(key)));
        let (answers, ()) = tokio::join!(requests, open);
        assert!(answers.iter().all(|answer| answer.status == 201), "{answers:?}");
        let operations = operations(&shop.wire);
        let count = |name: &str| operations.iter().filter(|operation| *operation == name).count();
        assert_eq!((count("BatchGetItem"), count("CreateSchedule")), (1, 1), "{operations:?}");
    }
}

#[tokio::test]
async fn a_schedule_of_another_environment_is_used() {
    let shop = shop().await;
    let other = environment(&shop.wire, 2);
    assert_eq!(shop.create("k1").await.status, 201);
    shop.wire.take_calls();
    assert_eq!(other.create("k2").await.status, 201);
    let calls = shop.wire.take_calls();
    let conflict = calls.iter().find(|call| call.operation == "CreateSchedule").unwrap();
    assert_eq!(conflict.response.as_ref().unwrap()["__type"], "ConflictException");
    // It is cached like its own.
    assert_eq!(other.create("k3").await.status, 201);
    assert!(!operations(&shop.wire).contains(&"CreateSchedule".to_owned()));
    assert_eq!((shop.wire.schedules().len(), shop.free().await), (1, 94));
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_respond_is_a_503_and_one_that_refuses_a_500_without_internals() {
    let writes: &[&str] = &["TransactWriteItems"];
    let reads: &[&str] = &["GetItem", "BatchGetItem", "Query"];
    for operations in [writes, reads] {
        for (fault, status, code) in [
            (Fault::LostBefore, 503, "unavailable"),
            (Fault::ServerError, 503, "unavailable"),
            (Fault::Throttled, 503, "unavailable"),
            (Fault::AccessDenied, 500, "internal_error"),
        ] {
            let shop = shop().await;
            shop.wire.fail_all(operations, fault);
            shop.create(KEY).await.problem(status, code);
            if operations == reads {
                for name in ["reserve/get", "reserve/list"] {
                    shop.send(event(name)).await.problem(status, code);
                }
            }
            assert_eq!(shop.free().await, 100, "{fault:?}");
        }
    }
}

#[tokio::test]
async fn anothers_reservation_does_not_exist_and_their_key_is_their_own() {
    let shop = shop().await;
    let alices = shop.create(KEY).await;
    for name in ["get", "cancel", "extend", "order"] {
        let answer = shop.send(by(event(&format!("reserve/{name}")), "bob")).await;
        answer.problem(404, "reservation_not_found");
    }
    // A hold is not an order.
    shop.send(event("reserve/order")).await.problem(404, "reservation_not_found");
    assert_eq!(shop.send(by(event("reserve/list"), "bob")).await.body["items"], json!([]));
    let bobs = shop.send(by(event("reserve/create"), "bob")).await;
    assert_eq!((bobs.status, bobs.header("idempotent-replayed")), (201, None));
    assert_ne!(bobs.body["reservation_id"], alices.body["reservation_id"]);
}

/// The shop's back end, acting for this customer.
fn service(name: &str, customer: &str) -> Value {
    let event = in_role(by(event(&format!("reserve/{name}")), "shop-back-end"), "service");
    match event["body"].as_str().map(|body| serde_json::from_str::<Value>(body).unwrap()) {
        Some(mut body) => {
            body["customer_id"] = customer.into();
            with_body(event, body)
        }
        None => with_query(event, &format!("customer_id={customer}")),
    }
}

#[tokio::test]
async fn a_service_acts_for_the_customer_that_it_names() {
    for name in names("reserve").into_iter().filter(|name| name != "transfer") {
        let shop = shop().await;
        let id = basket("alice", KEY, &[("tee-black", 2)]).reservation_id;
        if name != "create" {
            // The service's reservation is the customer's own: both find it.
            assert_eq!(shop.send(service("create", "alice")).await.status, 201);
            assert_eq!(shop.send(event("reserve/get")).await.body["reservation_id"], id.as_str());
        }
        if name.starts_with("order") {
            let alice = basket("alice", KEY, &[("tee-black", 2)]).customer;
            store(&shop.wire, 2).confirm(&confirmation(&id, &alice, None, NOW), NOW, soon()).await.unwrap();
        }
        // For the wrong customer it gets 404, and nothing is changed.
        let wrong = shop.send(service(&name, "bob")).await;
        match name.as_str() {
            "create" => assert_eq!((wrong.status, shop.free().await), (201, 98)),
            "list" | "orders" => assert_eq!((wrong.status, &wrong.body["items"]), (200, &json!([]))),
            _ => _ = wrong.problem(404, "reservation_not_found"),
        }
        let right = shop.send(service(&name, "alice")).await;
        assert_eq!(right.status, if name == "create" { 201 } else { 200 }, "{name}: {right:?}");
        let found = if right.body["items"].is_array() { &right.body["items"][0] } else { &right.body };
        assert_eq!(found["reservation_id"], id.as_str(), "{name}");
    }
}

#[tokio::test]
async fn a_service_must_name_a_customer_and_others_must_not() {
    let shop = shop().await;
    assert_eq!(shop.create(KEY).await.status, 201);
    let before = shop.free().await;
    for name in names("reserve").into_iter().filter(|name| name != "transfer") {
        let mut nobody = service(&name, "alice");
        match nobody["body"].as_str().map(|body| serde_json::from_str::<Value>(body).unwrap()) {
            Some(mut body) => {
                body.as_object_mut().unwrap().remove("customer_id");
                nobody = with_body(nobody, body);
            }
            None => nobody = with_query(nobody, ""),
        }
        let problem = shop.send(nobody).await.problem(400, "invalid_request");
        assert_eq!(problem["field"], "customer_id", "{name}");
        for (who, role) in [("alice", ""), ("bob", ""), ("root", "admin"), ("mallory", "services")] {
            let named = in_role(by(service(&name, "alice"), who), role);
            shop.send(named).await.problem(403, "forbidden");
        }
        for no_customer in ["", "a%0Ab"] {
            let mut event = service(&name, "alice");
            if event["body"].is_null() {
                event = with_query(event, &format!("customer_id={no_customer}"));
            } else {
                let mut body: Value = serde_json::from_str(event["body"].as_str().unwrap()).unwrap();
                body["customer_id"] = no_customer.replace("%0A", "\n").into();
                event = with_body(event, body);
            }
            shop.send(event).await.problem(400, "invalid_request");
        }
    }
    assert_eq!(shop.free().await, before);
    assert_eq!(shop.send(event("reserve/get")).await.body["status"], "held");
}

#[tokio::test]
async fn only_a_service_hands_a_hold_over_and_to_another_customer() {
    let shop = shop().await;
    let held = shop.create(KEY).await;
    let path = format!("/reservations/{}/transfer", held.body["reservation_id"].as_str().unwrap());
    let ask = |role: &str, body: Value| {
        let mut event = with_body(in_role(by(event("reserve/transfer"), "alice"), role), body);
        event["rawPath"] = path.as_str().into();
        event["requestContext"]["http"]["path"] = path.as_str().into();
        event
    };
    let to = |from: &str, to: &str| json!({ "customer_id": from, "to_customer_id": to });
    for role in ["", "admin", "services"] {
        shop.send(ask(role, to("alice", "bob"))).await.problem(403, "forbidden");
    }
    let problem = shop.send(ask("service", to("alice", "alice"))).await.problem(400, "invalid_request");
    assert_eq!(problem["field"], "to_customer_id");
    shop.send(ask("service", json!({ "customer_id": "alice" }))).await.problem(400, "invalid_request");
    shop.send(ask("service", to("bob", "carol"))).await.problem(404, "reservation_not_found");
    assert_eq!(shop.send(event("reserve/get")).await.body["status"], "held");
    assert_eq!(shop.send(ask("service", to("alice", "bob"))).await.status, 200);
    shop.send(event("reserve/get")).await.problem(404, "reservation_not_found");
    shop.create(KEY).await.problem(409, "hold_transferred");
}

#[tokio::test]
async fn an_invalid_request_is_a_problem_and_reserves_nothing() {
    let shop = shop().await;
    let create = || event("reserve/create");
    let lines = |lines: Value| with_body(create(), json!({ "lines": lines }));
    let line = |quantity: Value| lines(json!([{ "product_id": "tee-black", "quantity": quantity }]));
    let keyed = |key: &str| with_header(create(), "idempotency-key", key);
    let mut keyless = create();
    keyless["headers"].as_object_mut().unwrap().remove("idempotency-key");
    let mut anonymous = create();
    anonymous["requestContext"].as_object_mut().unwrap().remove("authorizer");
    let twenty_one: Vec<Value> = (0..21).map(|n| json!({ "product_id": format!("p{n}"), "quantity": 1 })).collect();

    for (what, event, status, code) in [
        ("no such route", at(create(), "POST", "/nowhere"), 404, "route_not_found"),
        ("no such method", at(create(), "PUT", "/reservations"), 405, "method_not_allowed"),
        ("too long", with_body(create(), "x".repeat(65_537)), 413, "payload_too_large"),
        ("as long as may be", with_body(create(), "x".repeat(65_536)), 400, "invalid_request"),
        ("nobody", anonymous, 401, "unauthenticated"),
        ("no key", keyless, 400, "idempotency_key_missing"),
        ("an empty key", keyed(""), 400, "idempotency_key_invalid"),
        ("too long a key", keyed(&"k".repeat(256)), 400, "idempotency_key_invalid"),
        ("a key with a blank behind it", keyed("k1 "), 400, "idempotency_key_invalid"),
        ("a quoted key with a blank before it", keyed("\" k1\""), 400, "idempotency_key_invalid"),
        ("a parameter", with_query(create(), "dry_run=1"), 400, "invalid_request"),
        ("a parameter of another route", with_query(event("reserve/get"), "limit=1"), 400, "invalid_request"),
        ("a parameter of a cancellation", with_query(event("reserve/cancel"), "force=1"), 400, "invalid_request"),
        ("a parameter of an extension", with_query(event("reserve/extend"), "a"), 400, "invalid_request"),
        ("a parameter that no list has", with_query(event("reserve/list"), "page=2"), 400, "invalid_request"),
        ("two keys, as API Gateway joins them", keyed("k1,k2"), 400, "idempotency_key_invalid"),
        ("a key that is quoted at one end", keyed("\"k1"), 400, "idempotency_key_invalid"),
        ("not JSON", with_body(create(), "{\"lines\":"), 400, "invalid_request"),
        ("no body", with_body(create(), ""), 400, "invalid_request"),
        ("an unknown field", with_body(create(), json!({ "lines": [], "customer": "bob" })), 400, "invalid_request"),
        ("another's name", with_body(create(), json!({ "lines": [], "customer_id": "bob" })), 403, "forbidden"),
        ("their own name", with_body(create(), json!({ "lines": [], "customer_id": "alice" })), 403, "forbidden"),
        ("no lines", lines(json!([])), 400, "invalid_request"),
        ("21 lines", lines(twenty_one.into()), 400, "invalid_request"),
        ("an invalid id", lines(json!([{ "product_id": "a b", "quantity": 1 }])), 400, "invalid_request"),
        ("no such product", lines(json!([{ "product_id": "hat", "quantity": 1 }])), 404, "product_not_found"),
        ("text for a number", line(json!("2")), 400, "invalid_request"),
        ("zero", line(json!(0)), 422, "invalid_quantity"),
        ("negative", line(json!(-1)), 422, "invalid_quantity"),
        ("a fraction", line(json!(1.5)), 422, "invalid_quantity"),
        ("1,001", line(json!(1_001)), 422, "invalid_quantity"),
        ("huge", line(json!(u64::MAX)), 422, "invalid_quantity"),
        ("more than there is", line(json!(101)), 409, "insufficient_stock"),
        ("a path that is not UTF-8", at(event("reserve/get"), "GET", "/reservations/%FF"), 404, "route_not_found"),
        ("no id at all", at(event("reserve/get"), "GET", "/reservations/tee"), 404, "reservation_not_found"),
    ] {
        let answer = shop.send(event).await;
        assert_eq!((answer.status, &answer.body["code"]), (status, &json!(code)), "{what}: {answer:?}");
        answer.problem(status, code);
    }
    assert_eq!(shop.free().await, 100);

    // The same key with a different body.
    assert_eq!(shop.create(KEY).await.status, 201);
    shop.send(line(json!(3))).await.problem(422, "idempotency_key_reused");
    // Lines of the same product are added up.
    let twice = json!([{ "product_id": "tee-black", "quantity": 1 }, { "product_id": "tee-black", "quantity": 1 }]);
    assert_eq!(shop.send(lines(twice)).await.header("idempotent-replayed"), Some("true"));
    assert_eq!(shop.free().await, 98);
}

#[tokio::test]
async fn a_quoted_key_equals_the_unquoted_one_and_content_type_is_ignored() {
    let shop = shop().await;
    let first = shop.create(KEY).await;
    let again = shop.create(&format!("\"{KEY}\"")).await;
    assert_eq!((again.status, again.header("idempotent-replayed"), &again.body), (201, Some("true"), &first.body));
    for content_type in ["text/plain", "application/x-www-form-urlencoded", "nonsense"] {
        let answer = shop.send(with_header(event("reserve/create"), "content-type", content_type)).await;
        assert_eq!((answer.status, answer.header("idempotent-replayed")), (201, Some("true")), "{content_type}");
    }
    assert_eq!(shop.free().await, 98);
}

#[tokio::test]
async fn extensions_do_not_add_up_and_a_cancellation_releases_once() {
    let shop = shop().await;
    shop.create(KEY).await;
    shop.hands.set(NOW.plus_seconds(60));
    let first = shop.send(event("reserve/extend")).await;
    assert_eq!(first.status, 200);
    for _ in 0..3 {
        let again = shop.send(event("reserve/extend")).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
    }
    // Later, the minimum counts from now: only the time that has passed is added.
    shop.hands.set(NOW.plus_seconds(65));
    let later = shop.send(event("reserve/extend")).await;
    assert_eq!(later.body["expires_in_seconds"], first.body["expires_in_seconds"]);

    let first = shop.send(event("reserve/cancel")).await;
    assert_eq!(shop.free().await, 100);
    for _ in 0..3 {
        let again = shop.send(event("reserve/cancel")).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
        assert_eq!(shop.free().await, 100);
    }
}

#[tokio::test(start_paused = true)]
async fn logs_have_the_reservation_and_no_token_or_key() {
    const TOKEN: &str = "Bearer eyJhbGciOiJSUzI1NiJ9.Y3VzdG9tZXI.c2lnbmVk";
    const SECRET_KEY: &str = "a-key-that-nobody-may-read";
    let log = Log::capture();
    for fault in [None, Some(Fault::LostBefore), Some(Fault::AccessDenied), Some(Fault::Conflict)] {
        for name in names("reserve") {
            let shop = shop().await;
            assert_eq!(shop.create(KEY).await.status, 201);
            shop.wire.script(move |_| fault);
            let event = with_header(event(&format!("reserve/{name}")), "authorization", TOKEN);
            let event = with_header(event, "idempotency-key", SECRET_KEY);
            shop.send(event.clone()).await;
            shop.send(with_header(event.clone(), "idempotency-key", &format!("\"{SECRET_KEY}"))).await;
            shop.send(with_body(event, json!({ "payment_reference": "pay_123", "key": SECRET_KEY }))).await;
        }
    }
    let shop = shop().await;
    shop.wire.fail_all(&["CreateSchedule"], Fault::AccessDenied);
    assert_eq!(shop.create(KEY).await.status, 201);
    log.is_free_of(&["eyJhbGci", "Y3VzdG9tZXI", "Bearer", "pay_123", SECRET_KEY]);
    let id = basket("alice", SECRET_KEY, &[("tee-black", 2)]).reservation_id;
    assert!(log.lines().iter().any(|line| line["span"]["reservation_id"] == id.as_str()));
    log.has_measured(&[
        ("reserved", ""),
        ("refused", "invalid_request"),
        ("given_back", ""),
        ("unscheduled", ""),
        ("conflicts", ""),
        ("latency", "POST /reservations"),
        ("call_latency", "TransactWriteItems"),
        ("call_latency", "CreateSchedule"),
    ]);
}

#[tokio::test]
async fn a_replay_of_a_hold_that_has_ended_is_a_problem_with_the_reservation() {
    for end in ["expired", "cancelled"] {
        let shop = shop().await;
        let first = shop.create(KEY).await;
        match end {
            "cancelled" => assert_eq!(shop.send(event("reserve/cancel")).await.status, 200),
            _ => shop.hands.set(NOW.plus_seconds(600)),
        }
        for _ in 0..2 {
            let problem = shop.create(KEY).await.problem(409, "hold_ended");
            let ended = &problem["reservation"];
            assert_eq!((&ended["status"], &ended["expires_in_seconds"]), (&json!(end), &json!(0)));
            assert_eq!(ended["reservation_id"], first.body["reservation_id"]);
            assert_eq!(ended["created_at"], first.body["created_at"]);
        }
        assert_eq!(shop.free().await, 100, "{end}: nothing is held");
        assert_eq!(shop.create("a-new-key").await.status, 201);
        // Another body is another request, whatever has become of the hold.
        let other = json!({ "lines": [{ "product_id": "tee-black", "quantity": 1 }] });
        let other = with_body(with_header(event("reserve/create"), "idempotency-key", KEY), other);
        shop.send(other).await.problem(422, "idempotency_key_reused");
    }
}

#[tokio::test]
async fn nothing_is_held_at_another_price_than_the_customer_saw() {
    let shop = shop().await;
    let ask = async |shop: &Shop, key: &str, price: Value| {
        let body = json!({ "lines": [{ "product_id": "tee-black", "quantity": 1, "unit_price_minor": price }] });
        shop.send(with_body(with_header(event("reserve/create"), "idempotency-key", key), body)).await
    };
    let problem = ask(&shop, "k1", json!(2_499)).await.problem(409, "price_changed");
    assert_eq!(problem["lines"], json!([{ "product_id": "tee-black", "unit_price_minor": 2_500 }]));
    assert_eq!(ask(&shop, "k1", json!(2_500)).await.status, 201);
    assert_eq!(ask(&shop, "k1", json!(2_500)).await.header("idempotent-replayed"), Some("true"));
    // A replay has the price at which it was made.
    for price in [json!(2_499), json!(null)] {
        let again = ask(&shop, "k1", price).await;
        assert_eq!((again.status, &again.body["total_price_minor"]), (201, &json!(2_500)));
    }
    // An admin changes the price. The customer has seen the new one, and this environment has not.
    let change = ProductChange { price_minor: Some(1_900), ..ProductChange::default() };
    store(&shop.wire, 7).change_product(&product_id("tee-black"), 1, change, soon()).await.unwrap();
    assert_eq!(ask(&shop, "k2", json!(1_900)).await.body["total_price_minor"], 1_900);
    ask(&environment(&shop.wire, 2), "k3", json!(2_500)).await.problem(409, "price_changed");
    for (bad, field) in [
        (json!(-1), "lines[0].unit_price_minor"),
        (json!("2500"), "lines[0].unit_price_minor"),
        (json!(1.5), "lines[0].unit_price_minor"),
        (json!(100_000_000_001_u64), "lines"),
    ] {
        let problem = ask(&shop, "k4", bad).await.problem(400, "invalid_request");
        assert_eq!(problem["field"], field);
    }
    assert_eq!(shop.free().await, 98);
}

#[tokio::test]
async fn a_countdown_has_the_servers_time() {
    let shop = shop().await;
    let change = ProductChange { sale_starts_at: Some(Some(NOW.plus_seconds(90))), ..ProductChange::default() };
    store(&shop.wire, 7).change_product(&product_id("tee-black"), 1, change, soon()).await.unwrap();
    let problem = shop.create(KEY).await.problem(409, "sale_not_open");
    assert_eq!(problem["sale_starts_at"], "2025-11-21T04:41:30.000Z");
    assert_eq!(problem["server_time"], "2025-11-21T04:40:00.000Z");
}

#[tokio::test]
async fn only_a_service_gives_a_customers_order_back_and_with_a_reason() {
    let shop = shop().await;
    shop.create(KEY).await;
    let id = basket("alice", KEY, &[("tee-black", 2)]).reservation_id;
    let alice = basket("alice", KEY, &[("tee-black", 2)]).customer;
    shop.send(event("reserve/order-cancel")).await.problem(404, "reservation_not_found");
    store(&shop.wire, 2).confirm(&confirmation(&id, &alice, None, NOW), NOW, soon()).await.unwrap();
    for role in ["", "admin"] {
        shop.send(in_role(by(event("reserve/order-cancel"), "alice"), role)).await.problem(403, "forbidden");
    }
    for body in [
        json!({ "restock": true, "customer_id": "alice" }),
        json!({ "reason": "", "restock": true, "customer_id": "alice" }),
        json!({ "reason": "x", "customer_id": "alice" }),
        json!({ "reason": "x", "restock": true }),
        json!({ "reason": "x".repeat(201), "restock": true, "customer_id": "alice" }),
    ] {
        shop.send(with_body(event("reserve/order-cancel"), body)).await.problem(400, "invalid_request");
    }
    let other = json!({ "reason": "x", "restock": true, "customer_id": "bob" });
    shop.send(with_body(event("reserve/order-cancel"), other)).await.problem(404, "reservation_not_found");
    assert_eq!(shop.free().await, 98);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_fails_delays_the_start_by_a_second_at_most() {
    for fault in [None, Some(Fault::Silence), Some(Fault::ServerError), Some(Fault::AccessDenied)] {
        let wire = table();
        wire.script(move |_| fault);
        let started = tokio::time::Instant::now();
        connections::open(&store(&wire, 1), Some(&schedules(&wire))).await;
        assert!(started.elapsed() <= Duration::from_secs(1), "{fault:?}: {:?}", started.elapsed());
        let calls: std::collections::BTreeSet<String> =
            wire.take_calls().into_iter().map(|call| call.operation).collect();
        assert_eq!(calls.iter().map(String::as_str).collect::<Vec<_>>(), ["GetItem", "GetSchedule"], "{fault:?}");
    }
}

/// What Lambda and AWS are to the function's binary: the runtime API, DynamoDB and Scheduler, at one address.
struct Outside {
    wire: Wire,
    /// The requests to hand out.
    events: tokio::sync::Mutex<tokio::sync::mpsc::Receiver<Value>>,
    answers: tokio::sync::mpsc::Sender<Value>,
    /// A transaction that arrives is announced here, and waits there.
    transactions: tokio::sync::mpsc::Sender<tokio::sync::oneshot::Sender<()>>,
    invocations: std::sync::atomic::AtomicU64,
    /// The services that were called before the first request for an event.
    at_start: std::sync::Mutex<std::collections::BTreeSet<&'static str>>,
}

async fn outside(State(outside): State<Arc<Outside>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let target = request.headers().get("x-amz-target").and_then(|target| target.to_str().ok()).map(str::to_owned);
    let body = axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path.ends_with("/invocation/next") {
        let Some(event) = outside.events.lock().await.recv().await else { return std::future::pending().await };
        let id = outside.invocations.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        return (invocation(&format!("invocation-{id}")), event.to_string()).into_response();
    }
    if path.contains("/invocation/") {
        outside.answers.send(body).await.unwrap();
        return StatusCode::ACCEPTED.into_response();
    }
    if outside.invocations.load(std::sync::atomic::Ordering::Relaxed) == 0 {
        let service = if target.is_some() { "DynamoDB" } else { "Scheduler" };
        outside.at_start.lock().unwrap().insert(service);
    }
    let Some(operation) = target.as_deref().and_then(|target| target.rsplit('.').next()) else {
        return json!({ "ScheduleArn": "arn:aws:scheduler:::schedule/holds/slot" }).to_string().into_response();
    };
    if operation == "TransactWriteItems" {
        let (open, opened) = tokio::sync::oneshot::channel();
        outside.transactions.send(open).await.unwrap();
        opened.await.unwrap();
    }
    let (status, body) = outside.wire.send(operation, &body);
    (StatusCode::from_u16(status).unwrap(), body.to_string()).into_response()
}

#[tokio::test]
async fn the_binary_opens_its_connections_first_and_serves_as_many_requests_at_once_as_lambda_sends() {
    let wire = table();
    stocked(&wire, &[product("tee-black", 100, 4)]).await;
    let (to_serve, events) = tokio::sync::mpsc::channel(9);
    let (answers, mut answered) = tokio::sync::mpsc::channel(9);
    let (transactions, mut arrived) = tokio::sync::mpsc::channel(9);
    let events = tokio::sync::Mutex::new(events);
    let invocations = std::sync::atomic::AtomicU64::new(0);
    let at_start = std::sync::Mutex::default();
    let state = Arc::new(Outside { wire: wire.clone(), events, answers, transactions, invocations, at_start });
    let outside = state.clone();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    #[expect(clippy::disallowed_methods, reason = "for tests: it serves until the test ends")]
    tokio::spawn(axum::serve(listener, Router::new().fallback(self::outside).with_state(state)).into_future());
    let endpoint = format!("http://{address}");
    let variables = [
        ("AWS_LAMBDA_RUNTIME_API", address.as_str()),
        ("AWS_LAMBDA_MAX_CONCURRENCY", "8"),
        ("AWS_LAMBDA_FUNCTION_NAME", "reserve"),
        ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "2048"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ENDPOINT_URL", endpoint.as_str()),
        ("STACK_NAME", "test"),
        ("TABLE_NAME", holdfast_testkit::fixtures::TABLE),
        ("SCHEDULE_GROUP", "holds"),
        ("SCHEDULE_ROLE_ARN", "arn:aws:iam::123456789012:role/schedule"),
        ("SCHEDULE_DLQ_ARN", "arn:aws:sqs:us-east-1:123456789012:schedule-failures"),
        ("EXPIRE_FUNCTION_ARN", "arn:aws:lambda:us-east-1:123456789012:function:expire:live"),
        ("EXPIRY_SLOT_SECONDS", "10"),
        ("TABLE_LAYOUT", "2"),
        ("ROLES_CLAIM", "cognito:groups"),
        ("RATE_LIMIT_PER_SECOND", "0"),
        ("RATE_LIMIT_BURST", "20"),
    ];
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_reserve"));
    command.env_clear().envs(variables).stdout(std::process::Stdio::null());
    let mut binary = command.spawn().unwrap();
    let served = async {
        let reserve = |who: &str| by(event("reserve/create"), who);
        to_serve.send(reserve("alice")).await.unwrap();
        let first = arrived.recv().await.unwrap();
        // Hers has no answer yet.
        to_serve.send(with_body(reserve("mallory"), "not json")).await.unwrap();
        assert_eq!(answered.recv().await.unwrap()["statusCode"], 400);
        first.send(()).unwrap();
        assert_eq!(answered.recv().await.unwrap()["statusCode"], 201);
    };
    let served = tokio::time::timeout(std::time::Duration::from_secs(30), served).await;
    binary.kill().unwrap();
    binary.wait().unwrap();
    served.unwrap();
    assert_eq!(books(&wire).await["tee-black"].held, 2);
    assert_eq!(outside.at_start.lock().unwrap().iter().copied().collect::<Vec<_>>(), ["DynamoDB", "Scheduler"]);
}
