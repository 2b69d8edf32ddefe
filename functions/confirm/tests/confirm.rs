//! The function `confirm` over the real SDKs, also while a service is away. (One shop fixture for all tests, hence the length.)
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use axum::Router;
use confirm::{App, handle, router};
use holdfast_aws::queues::DeadLetter;
use holdfast_domain::{
    Clock, Confirmation, Failure, PaymentReference, RateLimit, Refusal, RequestIds, Reservation, Status, Timestamp,
};
use holdfast_http::{Authenticator, Limiter, limited, serve};
use holdfast_testkit::event::{Answer, at, by, event, in_role, names, with_body, with_header};
use holdfast_testkit::fixtures::{
    CONFIRMATIONS, FAILED, NOW, TestClock, basket, books, customer, payment, product, queues, reserve, soon, stocked,
    store, table,
};
use holdfast_testkit::log::Log;
use holdfast_testkit::wire::{Call, Fault, Wire};
use lambda_runtime::{Context, Error, LambdaEvent};
use serde_json::{Value, json};
use tokio::time::Instant;

/// After the end of a hold that was created at `NOW`.
const LATE: Timestamp = NOW.plus_seconds(600);
/// The Idempotency-Key behind the reservation of the event files.
const KEY: &str = "6f1c2e0a-4b0e-4c53-9a8e-0d7f3b1f5a21";
/// The operations with which `confirm` writes to the table.
const WRITES: &[&str] = &["UpdateItem", "TransactWriteItems"];

/// The function, and a shop with 3 tees.
struct Shop {
    wire: Wire,
    hands: TestClock,
    app: Arc<App>,
    router: Router,
}

async fn shop() -> Shop {
    let (wire, hands) = (table(), TestClock::new());
    stocked(&wire, &[product("tee-black", 3, 1)]).await;
    let app =
        Arc::new(App { store: store(&wire, 1), queues: queues(&wire), clock: hands.clock(), customers_confirm: true });
    let router = serve(router(app.clone()), Authenticator::default());
    Shop { wire, hands, app, router }
}

impl Shop {
    /// Holds one tee, or as many.
    async fn hold(&self, who: &str, key: &str, quantity: u32) -> Reservation {
        let basket = basket(who, key, &[("tee-black", quantity)]);
        let held = reserve(&store(&self.wire, 2), &basket, self.app.clock.now()).await.unwrap().reservation;
        self.wire.take_calls();
        held
    }

    /// The hold expires and is released, and Bob gets all three units.
    async fn sold_to_another(&self) {
        self.hands.set(LATE);
        store(&self.wire, 3).release_overdue(LATE, soon()).await.unwrap();
        self.hold("bob", "k", 3).await;
    }

    async fn call(&self, event: Value) -> Result<Value, Error> {
        let mut context = Context::default();
        context.xray_trace_id = Some(format!("Root={TRACE};Parent=53995c3f42cd8ad8;Sampled=1"));
        handle(&self.app, self.router.clone(), LambdaEvent::new(event, context)).await
    }

    async fn http(&self, event: Value) -> Answer {
        Answer::of(self.call(event).await.unwrap())
    }

    /// Alice pays for a reservation.
    async fn pay(&self, held: &Reservation, payment: &str) -> Answer {
        let path = format!("/reservations/{}/confirm", held.reservation_id);
        self.http(with_body(at(own(), "POST", &path), json!({ "payment_reference": payment }))).await
    }

    /// The ids of the messages that stay in the queue after this batch. The n-th message's id is `m<n>`.
    async fn batch(&self, bodies: &[String]) -> Vec<String> {
        let answer = self.call(batch(bodies)).await.unwrap();
        let failures = answer["batchItemFailures"].as_array().unwrap().clone();
        failures.iter().map(|failure| failure["itemIdentifier"].as_str().unwrap().to_owned()).collect()
    }

    async fn stored(&self, held: &Reservation) -> Reservation {
        self.wire.clear_faults();
        store(&self.wire, 4).reservation(&held.reservation_id, &held.customer, soon()).await.unwrap()
    }

    fn queued(&self, url: &str) -> Vec<DeadLetter> {
        self.wire.messages(url).iter().map(|body| serde_json::from_str(body).unwrap()).collect()
    }
}

/// The trace of every invocation.
const TRACE: &str = "1-5759e988-bd862e3fe1be46a994272793";

/// The event file's confirmation, sent by the customer herself.
fn own() -> Value {
    let mut event = with_body(by(event("confirm/confirm"), "alice"), json!({ "payment_reference": "pay_123" }));
    event["requestContext"]["authorizer"]["jwt"]["claims"].as_object_mut().unwrap().remove("cognito:groups");
    event
}

/// A batch of the queue's, made of the event file's first record.
fn batch(bodies: &[String]) -> Value {
    let record = event("confirm/queue")["Records"][0].clone();
    let records = bodies.iter().enumerate().map(|(n, body)| {
        let mut record = record.clone();
        record["messageId"] = format!("m{n}").into();
        record["body"] = body.as_str().into();
        record
    });
    json!({ "Records": records.collect::<Vec<_>>() })
}

fn message(held: &Reservation, payment_reference: Option<PaymentReference>) -> String {
    let (reservation_id, customer) = (held.reservation_id.clone(), held.customer.clone());
    let confirmation = Confirmation { reservation_id, customer, payment_reference, requested_at: NOW, request: None };
    serde_json::to_string(&confirmation).unwrap()
}

#[tokio::test]
async fn every_event_file_is_answered_with_its_success() {
    for name in names("confirm") {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        let event = event(&format!("confirm/{name}"));
        match name.as_str() {
            "confirm" => {
                let answer = shop.http(event).await;
                assert_eq!((answer.status, &answer.body["status"]), (200, &json!("confirmed")));
                assert_eq!(answer.body["payment_reference"], "pay_123");
                assert_eq!(answer.body["confirmed_late"], false);
            }
            "queue" => {
                let body: Confirmation = serde_json::from_str(event["Records"][1]["body"].as_str().unwrap()).unwrap();
                let mut other = basket("alice", "k", &[("tee-black", 1)]);
                other.reservation_id = body.reservation_id;
                reserve(&store(&shop.wire, 2), &other, NOW).await.unwrap();
                assert_eq!(shop.call(event).await.unwrap(), json!({ "batchItemFailures": [] }));
                assert_eq!(books(&shop.wire).await["tee-black"].sold, 2);
            }
            "queue-poison" => {
                let poison = event["Records"][1]["body"].clone();
                assert_eq!(shop.call(event).await.unwrap(), json!({ "batchItemFailures": [] }));
                assert_eq!(json!(shop.wire.messages(FAILED)), json!([poison]));
            }
            other => panic!("events/confirm/{other}.json has no test"),
        }
        assert_eq!(shop.stored(&held).await.status, Status::Confirmed, "{name}");
        assert_eq!(shop.stored(&held).await.payment_reference, Some(payment("pay_123")), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_table_is_away_the_payment_is_queued_with_its_time() {
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::ServerError, Fault::Throttled, Fault::AccessDenied] {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        shop.wire.fail_all(WRITES, fault);
        let answer = shop.pay(&held, "pay_123").await;
        assert_eq!((answer.status, &answer.body["status"]), (202, &json!("queued")), "{fault:?}");
        assert_eq!(answer.body["reservation_id"], held.reservation_id.as_str());
        let queued = shop.wire.messages(CONFIRMATIONS);
        let asked: Confirmation = serde_json::from_str(&queued[0]).unwrap();
        let request_id = own()["requestContext"]["requestId"].as_str().unwrap().to_owned();
        let request = Some(RequestIds { request_id, trace_id: Some(TRACE.to_owned()) });
        let expected =
            Confirmation { request, ..serde_json::from_str(&message(&held, Some(payment("pay_123")))).unwrap() };
        assert_eq!((asked, queued.len()), (expected, 1), "{fault:?}");

        // While the table is away, the message stays.
        assert_eq!(shop.batch(&queued).await, ["m0"], "{fault:?}");
        shop.wire.clear_faults();
        // It was in time when it was accepted, so it is confirmed although it is processed late.
        shop.hands.set(LATE);
        assert!(shop.batch(&queued).await.is_empty(), "{fault:?}");
        // A queue delivers at least once.
        assert!(shop.batch(&queued).await.is_empty(), "{fault:?}");
        let order = shop.stored(&held).await;
        assert_eq!((order.status, order.confirmed_late), (Status::Confirmed, false), "{fault:?}");
        assert_eq!(order.payment_reference, Some(payment("pay_123")), "{fault:?}");
        assert!(shop.wire.messages(FAILED).is_empty(), "{fault:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_202_only_the_same_confirmation_tells_how_a_payment_ends() {
    // What docs/api.md says of a 202: a cancellation that is refused does not end a queued payment.
    for (asked_again, sold, orders) in [(false, false, true), (true, false, true), (true, true, false)] {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        shop.wire.fail_all(WRITES, Fault::LostBefore);
        assert_eq!(shop.pay(&held, "pay_123").await.status, 202);
        shop.wire.clear_faults();
        let queued = shop.wire.messages(CONFIRMATIONS);
        shop.hands.set(LATE);
        let cancelled = store(&shop.wire, 5).cancel(&held.reservation_id, &held.customer, LATE, soon()).await;
        assert!(matches!(cancelled, Err(holdfast_store::Error::Refused(Refusal::HoldExpired))), "{cancelled:?}");
        if sold {
            shop.sold_to_another().await;
        }
        if asked_again {
            let again = shop.pay(&held, "pay_123").await;
            assert_eq!(again.status, if sold { 409 } else { 200 }, "{again:?}");
            assert!(!sold || again.body["code"] == "refund_required", "{again:?}");
            // The units come back: what was said stays true.
            store(&shop.wire, 6).release_overdue(LATE.plus_seconds(600), soon()).await.unwrap();
        }
        assert!(shop.batch(&queued).await.is_empty());
        assert_eq!(shop.stored(&held).await.status == Status::Confirmed, orders, "{asked_again} {sold}");
    }
}

#[tokio::test(start_paused = true)]
async fn peer_case_4_a_payment_is_never_acknowledged_before_it_is_durable() {
    const AWAY: &[&str] = &["UpdateItem", "TransactWriteItems", "SendMessage"];
    for fault in [Fault::LostBefore, Fault::ServerError, Fault::Throttled, Fault::AccessDenied] {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        shop.wire.fail_all(AWAY, fault);
        shop.pay(&held, "pay_123").await.problem(503, "unavailable");
        assert!(shop.wire.messages(CONFIRMATIONS).is_empty() && shop.wire.messages(FAILED).is_empty(), "{fault:?}");
        assert_eq!(shop.stored(&held).await.status, Status::Held, "{fault:?}");
        // Nothing was acknowledged, so the caller retries.
        let answer = shop.pay(&held, "pay_123").await;
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!("confirmed")), "{fault:?}");
        assert_eq!(books(&shop.wire).await["tee-black"].sold, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_late_payment_without_units_is_recorded_before_the_response() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    shop.sold_to_another().await;

    shop.wire.fail_all(&["SendMessage"], Fault::LostBefore);
    shop.pay(&held, "pay_123").await.problem(503, "unavailable");
    assert!(shop.wire.messages(FAILED).is_empty());

    shop.wire.clear_faults();
    shop.pay(&held, "pay_123").await.problem(409, "refund_required");
    let failed = shop.queued(FAILED);
    assert_eq!(failed.len(), 1);
    assert_eq!(
        (&failed[0].confirmation.reservation_id, &failed[0].confirmation.customer),
        (&held.reservation_id, &held.customer)
    );
    assert_eq!(failed[0].confirmation.payment_reference, Some(payment("pay_123")));
    assert_eq!(failed[0].reason.as_deref(), Some("refund_required"));
    assert_eq!(books(&shop.wire).await["tee-black"].held, 3, "Bob keeps his");
}

#[tokio::test(start_paused = true)]
async fn a_second_payment_for_an_order_is_recorded_and_a_repeated_one_is_not() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    for _ in 0..2 {
        assert_eq!(shop.pay(&held, "pay_123").await.status, 200);
    }
    assert!(shop.wire.messages(FAILED).is_empty());

    shop.wire.fail_all(&["SendMessage"], Fault::LostBefore);
    shop.pay(&held, "pay_456").await.problem(503, "unavailable");
    shop.wire.clear_faults();
    let problem = shop.pay(&held, "pay_456").await.problem(409, "already_confirmed");
    assert_eq!(problem["refund_required"], true);
    let failed = shop.queued(FAILED);
    assert_eq!((failed.len(), &failed[0].confirmation.payment_reference), (1, &Some(payment("pay_456"))));
    assert_eq!(failed[0].reason.as_deref(), Some("already_confirmed"));
    assert_eq!(shop.stored(&held).await.payment_reference, Some(payment("pay_123")));
}

#[tokio::test]
async fn without_a_payment_nothing_is_recorded() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    shop.hands.set(LATE);
    shop.http(with_body(own(), "{}")).await.problem(410, "hold_expired");
    store(&shop.wire, 3).release_overdue(LATE, soon()).await.unwrap();
    shop.http(with_body(own(), "")).await.problem(410, "hold_expired");
    assert!(shop.wire.messages(FAILED).is_empty() && shop.wire.messages(CONFIRMATIONS).is_empty());
    assert_eq!(shop.stored(&held).await.status, Status::Expired);
}

#[tokio::test]
async fn only_unreadable_messages_of_a_batch_need_a_person_at_once() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let nobodys =
        Reservation { reservation_id: basket("alice", "never", &[("tee-black", 1)]).reservation_id, ..held.clone() };
    let strangers = Reservation { customer: customer("mallory"), ..held.clone() };
    let malformed = message(&held, None).replace("rsv_", "rsv-");
    let bodies = [
        "not JSON".to_owned(),
        message(&nobodys, Some(payment("pay_1"))),
        message(&held, Some(payment("pay_123"))),
        "{}".to_owned(),
        // SQS neither accepts nor delivers an empty message.
        String::new(),
        message(&strangers, Some(payment("pay_2"))),
        malformed.clone(),
        message(&nobodys, None),
    ];
    assert_eq!(shop.batch(&bodies).await, ["m4"]);
    assert_eq!(shop.stored(&held).await.payment_reference, Some(payment("pay_123")));
    let (mut unreadable, mut refused) = (Vec::new(), Vec::new());
    for body in shop.wire.messages(FAILED) {
        match serde_json::from_str::<DeadLetter>(&body) {
            Ok(DeadLetter { confirmation, reason }) => {
                refused.push((confirmation.customer.to_string(), confirmation.payment_reference, reason));
            }
            Err(_) => unreadable.push(body),
        }
    }
    assert_eq!(unreadable, ["not JSON", "{}", &malformed], "as they came");
    let not_found = || Some("reservation_not_found".to_owned());
    refused.sort_by_key(|(customer, payment, _)| (customer.clone(), payment.is_some()));
    assert_eq!(
        refused,
        [
            ("alice".to_owned(), None, not_found()),
            ("alice".to_owned(), Some(payment("pay_1")), not_found()),
            ("mallory".to_owned(), Some(payment("pay_2")), not_found()),
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn unreadable_messages_stay_while_the_dead_letter_queue_is_away() {
    let shop = shop().await;
    for fault in [Fault::LostBefore, Fault::ServerError, Fault::AccessDenied, Fault::Silence] {
        shop.wire.fail_all(&["SendMessage"], fault);
        assert_eq!(shop.batch(&["not JSON".to_owned()]).await, ["m0"], "{fault:?}");
    }
    shop.wire.clear_faults();
    assert!(shop.batch(&["not JSON".to_owned()]).await.is_empty());
    assert_eq!(shop.wire.messages(FAILED), ["not JSON"]);
}

/// The delays that were set, each by the receipt that it was set for.
fn delays(shop: &Shop) -> Vec<(String, u64)> {
    let calls = shop.wire.take_calls().into_iter().filter(|call| call.operation == "ChangeMessageVisibility");
    let delay = |call: Call| {
        assert_eq!(call.request["QueueUrl"], CONFIRMATIONS);
        (
            call.request["ReceiptHandle"].as_str().unwrap().to_owned(),
            call.request["VisibilityTimeout"].as_u64().unwrap(),
        )
    };
    let mut delays: Vec<_> = calls.map(delay).collect();
    delays.sort();
    delays
}

#[tokio::test(start_paused = true)]
async fn only_failed_messages_are_delayed_with_backoff() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let paid = message(&held, Some(payment("pay_123")));
    let counts =
        [json!("1"), json!("2"), json!("3"), json!("4"), json!("5"), json!("6"), json!("29"), json!(null), json!("?")];
    let seconds = [30, 60, 120, 240, 480, 900, 900, 30, 30];
    let mut event = batch(&vec![paid.clone(); counts.len()]);
    for (n, (record, count)) in event["Records"].as_array_mut().unwrap().iter_mut().zip(counts).enumerate() {
        record["receiptHandle"] = format!("r{n}").into();
        record["attributes"].as_object_mut().unwrap().remove("ApproximateReceiveCount");
        if !count.is_null() {
            record["attributes"]["ApproximateReceiveCount"] = count;
        }
    }
    shop.wire.fail_all(WRITES, Fault::LostBefore);
    let answer = shop.call(event.clone()).await.unwrap();
    assert_eq!(answer["batchItemFailures"].as_array().unwrap().len(), seconds.len());
    let expected: Vec<_> = seconds.iter().enumerate().map(|(n, seconds)| (format!("r{n}"), *seconds)).collect();
    assert_eq!(delays(&shop), expected);
    // Confirmed and unreadable messages do not come back, so no delay is set.
    shop.wire.clear_faults();
    event["Records"][0]["body"] = "not JSON".into();
    assert_eq!(shop.call(event).await.unwrap(), json!({ "batchItemFailures": [] }));
    assert_eq!(delays(&shop), []);
}

#[tokio::test(start_paused = true)]
async fn a_delay_that_cannot_be_set_is_ignored() {
    for fault in [Fault::LostBefore, Fault::LostAfter, Fault::ServerError, Fault::AccessDenied, Fault::Silence] {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        let away =
            Reservation { reservation_id: basket("alice", "k", &[("tee-black", 1)]).reservation_id, ..held.clone() };
        let id = away.reservation_id.to_string();
        shop.wire.script(move |call| match call.operation.as_str() {
            "ChangeMessageVisibility" => Some(fault),
            _ => call.request.to_string().contains(&id).then_some(Fault::LostBefore),
        });
        let bodies = [message(&away, Some(payment("pay_1"))), message(&held, Some(payment("pay_123")))];
        assert_eq!(shop.batch(&bodies).await, ["m0"], "{fault:?}");
        assert_eq!(shop.stored(&held).await.status, Status::Confirmed, "{fault:?}");
    }
}

/// The function's timeout in `template.yaml`.
const TIMEOUT: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_slow_message_fails_alone_and_the_batch_ends_before_the_functions_timeout() {
    let shop = shop().await;
    let (held, slow) = (shop.hold("alice", KEY, 1).await, shop.hold("alice", "slow", 1).await);
    let refused = shop.hold("alice", "refused", 1).await;
    store(&shop.wire, 3).cancel(&refused.reservation_id, &refused.customer, NOW, soon()).await.unwrap();
    let bodies = [
        message(&slow, Some(payment("pay_1"))),
        message(&held, Some(payment("pay_123"))),
        message(&refused, Some(payment("pay_2"))),
        "not JSON".to_owned(),
    ];
    // The table does not respond for one of them, refuses another after a while; and SQS does not respond at all.
    let (slow_id, refused_id) = (slow.reservation_id.to_string(), refused.reservation_id.to_string());
    let started = Instant::now();
    shop.wire.script(move |call| {
        let (sqs, request) = (call.request["QueueUrl"].is_string(), call.request.to_string());
        let late = request.contains(&refused_id) && started.elapsed() < Duration::from_millis(2_500);
        if sqs || request.contains(&slow_id) { Some(Fault::Silence) } else { late.then_some(Fault::Throttled) }
    });
    assert_eq!(shop.batch(&bodies).await, ["m0", "m2", "m3"]);
    assert!(started.elapsed() + Duration::from_millis(500) < TIMEOUT, "{:?}", started.elapsed());
    assert_eq!(shop.stored(&held).await.status, Status::Confirmed);
    // Everything for all of them.
    shop.wire.script(|_| Some(Fault::Silence));
    let started = Instant::now();
    assert_eq!(shop.batch(&bodies).await, ["m0", "m1", "m2", "m3"]);
    assert!(started.elapsed() + Duration::from_millis(500) < TIMEOUT, "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_in_time_with_any_slow_call() {
    const DYNAMODB: &[&str] =
        &["GetItem", "BatchGetItem", "Query", "UpdateItem", "TransactGetItems", "TransactWriteItems"];
    for sqs_too in [false, true] {
        let shop = shop().await;
        let held = shop.hold("alice", KEY, 1).await;
        shop.wire
            .script(move |call| (sqs_too || DYNAMODB.contains(&call.operation.as_str())).then_some(Fault::Silence));
        let started = Instant::now();
        let answer = shop.pay(&held, "pay_123").await;
        // One of these ten seconds belongs to the rate limit.
        assert!(started.elapsed() <= Duration::from_secs(8), "{sqs_too}: {:?}", started.elapsed());
        if sqs_too {
            answer.problem(503, "unavailable");
        } else {
            assert_eq!(answer.status, 202, "{answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_payment_for_an_unknown_reservation_is_recorded_before_the_response() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let nobodys =
        Reservation { reservation_id: basket("alice", "never", &[("tee-black", 1)]).reservation_id, ..held.clone() };
    shop.wire.fail_all(&["SendMessage"], Fault::LostBefore);
    shop.pay(&nobodys, "pay_1").await.problem(503, "unavailable");
    shop.wire.clear_faults();
    shop.pay(&nobodys, "pay_1").await.problem(404, "reservation_not_found");
    // A payment for another customer's reservation is recorded too.
    shop.http(by(own(), "bob")).await.problem(404, "reservation_not_found");
    let failed = shop.queued(FAILED);
    let said: Vec<_> =
        failed.iter().map(|one| (one.confirmation.customer.as_str(), one.reason.as_deref().unwrap())).collect();
    assert_eq!(said, [("alice", "reservation_not_found"), ("bob", "reservation_not_found")]);
    assert_eq!(failed[0].confirmation.payment_reference, Some(payment("pay_1")));
    // With an invalid id the payment cannot be recorded, so the response does not promise it.
    let broken = |body| with_body(at(own(), "POST", "/reservations/rsv_cut/confirm"), body);
    shop.http(broken(json!({ "payment_reference": "pay_1" }).to_string())).await.problem(400, "invalid_request");
    shop.http(broken("{}".to_owned())).await.problem(404, "reservation_not_found");
    // Without a payment, nothing is recorded.
    let path = format!("/reservations/{}/confirm", nobodys.reservation_id);
    let unpaid = with_body(at(own(), "POST", &path), "{}");
    shop.http(unpaid).await.problem(404, "reservation_not_found");
    assert_eq!(shop.queued(FAILED).len(), 2);
}

#[tokio::test]
async fn resolving_without_a_payment_stops_queued_confirmations_only() {
    let mut shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let store = store(&shop.wire, 3);
    let failure = Failure {
        confirmation: Some(Confirmation {
            reservation_id: held.reservation_id.clone(),
            customer: held.customer.clone(),
            payment_reference: None,
            requested_at: NOW,
            request: None,
        }),
        reason: "not_confirmed".to_owned(),
        body: message(&held, None),
    };
    let failed = store.record_failure(&failure, NOW, soon()).await.unwrap();
    store.resolve_failed(&failed.id, "root", Some("nothing was paid"), NOW.plus_seconds(60), soon()).await.unwrap();
    shop.hands.set(NOW.plus_seconds(2));
    // Too close to the resolution for the queue: it would count as accepted before. A later request is carried out.
    shop.http(with_body(own(), "{}")).await.problem(503, "unavailable");
    assert!(shop.queued(CONFIRMATIONS).is_empty());
    assert!(shop.batch(&[message(&held, None)]).await.is_empty());
    assert_eq!(shop.queued(FAILED)[0].reason.as_deref(), Some("hold_expired"));
    // Beyond the clock skew. The clock advances while a request is served, but the request counts as one moment.
    let ticks = AtomicI64::new(NOW.plus_seconds(71).as_millis());
    let clock = Clock::new(move || Timestamp::from_millis(ticks.fetch_add(1, Ordering::SeqCst)));
    let app =
        Arc::new(App { store: self::store(&shop.wire, 1), queues: queues(&shop.wire), clock, customers_confirm: true });
    shop.router = serve(router(app.clone()), Authenticator::default());
    shop.app = app;
    let answer = shop.http(with_body(own(), "{}")).await;
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("confirmed")), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_queued_confirmation_that_fails_stays_or_needs_a_person() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    store(&shop.wire, 3).cancel(&held.reservation_id, &held.customer, NOW, soon()).await.unwrap();
    let paid = [message(&held, Some(payment("pay_123")))];
    shop.wire.fail_all(&["SendMessage"], Fault::LostBefore);
    assert_eq!(shop.batch(&paid).await, ["m0"]);
    shop.wire.clear_faults();
    assert!(shop.batch(&paid).await.is_empty());
    let failed = shop.queued(FAILED);
    assert_eq!((failed.len(), failed[0].reason.as_deref()), (1, Some("refund_required")));
    // The caller was told 202, with or without a payment.
    assert!(shop.batch(&[message(&held, None)]).await.is_empty());
    assert_eq!(shop.queued(FAILED)[1].reason.as_deref(), Some("reservation_cancelled"));
}

#[tokio::test]
async fn a_failed_message_without_an_id_fails_the_batch() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let nameless = |body: String| {
        let mut batch = batch(&[message(&held, None), body]);
        batch["Records"][1].as_object_mut().unwrap().remove("messageId");
        batch
    };
    // Lambda reads an empty list of failures as success, and would delete the message.
    assert!(shop.call(nameless(String::new())).await.is_err());
    assert!(shop.call(nameless(message(&held, None))).await.is_ok());
    assert!(shop.call(nameless("not JSON".to_owned())).await.is_ok());
    for neither in [json!({}), json!(null), json!([]), json!({ "Records": 1 })] {
        assert!(shop.call(neither.clone()).await.is_err(), "{neither}");
    }
}

#[tokio::test]
async fn reservations_of_others_do_not_exist() {
    let shop = shop().await;
    shop.hold("alice", KEY, 1).await;
    shop.http(by(own(), "bob")).await.problem(404, "reservation_not_found");
    for path in ["/reservations/rsv_x/confirm", "/reservations/%FF/confirm", "/reservations/a b/confirm"] {
        let answer = shop.http(with_body(at(own(), "POST", path), "{}")).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        let code = answer.body["code"].as_str().unwrap().to_owned();
        answer.problem(404, &code);
    }
    let mut anonymous = own();
    anonymous["requestContext"].as_object_mut().unwrap().remove("authorizer");
    shop.http(anonymous).await.problem(401, "unauthenticated");
}

#[tokio::test]
async fn a_service_confirms_for_the_customer_that_it_names() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let service = || in_role(by(own(), "shop-back-end"), "service");
    let named =
        |event, customer: &str| with_body(event, json!({ "payment_reference": "pay_123", "customer_id": customer }));
    let problem = shop.http(service()).await.problem(400, "invalid_request");
    assert_eq!(problem["field"], "customer_id");
    for customer in ["alice", "bob"] {
        shop.http(named(by(own(), "bob"), customer)).await.problem(403, "forbidden");
    }
    shop.http(named(service(), "bob")).await.problem(404, "reservation_not_found");
    assert_eq!(shop.stored(&held).await.status, Status::Held);
    assert_eq!(shop.http(named(service(), "alice")).await.body["status"], "confirmed");
    let order = shop.stored(&held).await;
    assert_eq!((order.customer, order.payment_reference), (held.customer, Some(payment("pay_123"))));
    // A queued payment names the customer.
    let other = shop.hold("alice", "waits", 1).await;
    shop.wire.fail_all(WRITES, Fault::LostBefore);
    let path = format!("/reservations/{}/confirm", other.reservation_id);
    assert_eq!(shop.http(at(named(service(), "alice"), "POST", &path)).await.status, 202);
    assert_eq!(shop.queued(CONFIRMATIONS)[0].confirmation.customer, customer("alice"));
}

#[tokio::test]
async fn by_default_only_a_service_confirms() {
    let mut shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let services_only = App {
        store: store(&shop.wire, 1),
        queues: queues(&shop.wire),
        clock: shop.hands.clock(),
        customers_confirm: false,
    };
    shop.app = Arc::new(services_only);
    shop.router = serve(router(shop.app.clone()), Authenticator::default());
    let unknown = at(own(), "POST", "/reservations/rsv_x/confirm");
    for refused in [own(), in_role(own(), "admin"), with_body(own(), "{}"), unknown] {
        shop.http(refused).await.problem(403, "confirmation_not_allowed");
    }
    assert!(shop.wire.take_calls().is_empty(), "nothing is read, noted or recorded");
    assert_eq!(shop.http(event("confirm/confirm")).await.body["status"], "confirmed");
    assert_eq!(shop.stored(&held).await.payment_reference, Some(payment("pay_123")));
}

#[tokio::test]
async fn an_invalid_request_is_a_problem_with_its_request_id() {
    let shop = shop().await;
    shop.hold("alice", KEY, 1).await;
    let confirm = || own();
    let path = confirm()["rawPath"].as_str().unwrap().to_owned();
    let problem = shop.http(at(confirm(), "POST", "/nowhere")).await.problem(404, "route_not_found");
    assert_eq!(problem["request_id"], confirm()["requestContext"]["requestId"]);
    let answer = shop.http(at(confirm(), "GET", &path)).await;
    assert_eq!(answer.header("allow"), Some("POST"));
    answer.problem(405, "method_not_allowed");
    let long = with_body(confirm(), json!({ "payment_reference": "p".repeat(65_536) }));
    shop.http(long).await.problem(413, "payload_too_large");
    for bad in [
        json!("not an object"),
        json!({ "payment_reference": 7 }),
        json!({ "payment_reference": "" }),
        json!({ "payment_reference": "pay_123", "amount": 1 }),
    ] {
        shop.http(with_body(confirm(), bad)).await.problem(400, "invalid_request");
    }
    shop.http(with_body(confirm(), "{")).await.problem(400, "invalid_request");
    assert_eq!(books(&shop.wire).await["tee-black"].held, 1);
}

#[tokio::test(start_paused = true)]
async fn the_log_has_the_reservation_and_no_payment_or_token() {
    // The log includes the payments of other tests.
    let log = Log::capture();

    let shop = shop().await;
    let held = shop.hold("alice", "logged", 1).await;
    let path = format!("/reservations/{}/confirm", held.reservation_id);
    let confirm = at(own(), "POST", &path);
    let confirm = with_header(confirm, "authorization", "Bearer eyJhbGciOiJSUzI1NiJ9.c2VjcmV0.c2lnbmF0dXJl");
    // With every outcome of a payment: both services away, the queue, the table, and a refusal.
    for (away, status) in [(&["UpdateItem", "SendMessage"][..], 503), (&["UpdateItem"], 202), (&[], 200)] {
        shop.wire.fail_all(away, Fault::LostBefore);
        assert_eq!(shop.http(confirm.clone()).await.status, status);
    }
    assert!(shop.batch(&shop.wire.messages(CONFIRMATIONS)).await.is_empty());
    assert_eq!(shop.pay(&held, "pay_456").await.status, 409);
    // A payment in a wrong field, and an unreadable one.
    for bad in [json!({ "payment": "pay_123" }), json!({ "payment_reference": ["pay_123"] }), json!("pay_123")] {
        shop.http(with_body(confirm.clone(), bad)).await.problem(400, "invalid_request");
    }

    log.is_free_of(&["pay_", "eyJhbGci", "c2VjcmV0", "Bearer"]);
    let lines = log.lines();
    let ours = |line: &&Value| line["span"]["reservation_id"] == held.reservation_id.as_str();
    let answers: Vec<&Value> = lines.iter().filter(ours).filter(|line| line["message"] == "answered").collect();
    let told: Vec<_> = answers.iter().map(|line| (line["status"].as_u64().unwrap(), line["outcome"].clone())).collect();
    let expected = [(503, "failed"), (202, "queued"), (200, "confirmed"), (409, "refused")];
    let expected: Vec<_> = expected.into_iter().map(|(status, outcome)| (status, json!(outcome))).collect();
    assert_eq!(told, expected, "each request is logged once, where it is answered");
    assert!(lines.iter().filter(ours).any(|line| line["message"] == "confirmed from the queue"), "{lines:?}");
    let refused = lines.iter().filter(|line| line["status"] == 400).map(|line| line["field"].as_str().unwrap());
    assert_eq!(refused.collect::<Vec<_>>(), ["payment", "payment_reference", "body"]);
    for answer in answers {
        assert!(answer["duration_ms"].is_u64() && answer["timestamp"].is_string(), "{answer}");
        assert!(!answer["span"]["request_id"].as_str().unwrap().is_empty(), "{answer}");
    }
    log.has_measured(&[
        ("failed", "unavailable"),
        ("queued", ""),
        ("confirmed", ""),
        ("refused", "already_confirmed"),
        ("retries", ""),
        ("latency", "POST /reservations/{reservation_id}/confirm"),
        ("call_latency", "SendMessage"),
        ("call_latency", "UpdateItem"),
    ]);
}

#[tokio::test]
async fn confirming_again_returns_the_same_response_without_a_key() {
    let shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let first = shop.http(own()).await;
    let order = shop.stored(&held).await;
    for _ in 0..2 {
        let again = shop.http(own()).await;
        assert_eq!((again.status, &again.body), (200, &first.body));
    }
    // Also later: the order does not change.
    shop.hands.set(LATE);
    let again = shop.http(own()).await;
    assert_eq!((again.status, &again.body["confirmed_at"]), (200, &first.body["confirmed_at"]));
    assert_eq!(shop.stored(&held).await, order);
    assert!(shop.queued(CONFIRMATIONS).is_empty() && shop.queued(FAILED).is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_payment_that_cannot_be_counted_is_admitted() {
    let mut shop = shop().await;
    let held = shop.hold("alice", KEY, 1).await;
    let limiter = Limiter::new(store(&shop.wire, 9), shop.hands.clock(), RateLimit::new(1, 1).unwrap());
    shop.router = serve(limited(router(shop.app.clone()), Some(limiter)), Authenticator::default());
    let started = tokio::time::Instant::now();
    shop.wire.fail_all(WRITES, Fault::LostBefore);
    assert_eq!(shop.http(own()).await.status, 202);
    assert!(started.elapsed().as_secs() < 9, "{:?}", started.elapsed());
    assert_eq!(shop.queued(CONFIRMATIONS).len(), 1);
    // Once the table counts again, so does the limit.
    shop.wire.clear_faults();
    assert_eq!(shop.http(own()).await.status, 200);
    shop.http(own()).await.problem(429, "rate_limited");
    assert_eq!(shop.stored(&held).await.status, Status::Confirmed);
}
