//! The rate limit per customer, before the routes of `reserve`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use axum::Router;
use futures_util::future::join_all;
use holdfast_domain::{RateLimit, Timestamp};
use holdfast_http::{Authenticator, Limiter, limited, serve};
use holdfast_testkit::event::{Answer, at, by, event, in_role, send, with_body, with_header};
use holdfast_testkit::fixtures::{NOW, TestClock, books, product, schedules, stocked, store, table};
use holdfast_testkit::wire::{Fault, Wire};
use reserve::{App, router};
use serde_json::{Value, json};

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

/// Two a second, three at once.
fn environment(wire: &Wire, seed: u64) -> Shop {
    let hands = TestClock::new();
    let app = App { store: store(wire, seed), schedules: schedules(wire), clock: hands.clock() };
    let limiter = Limiter::new(store(wire, seed), hands.clock(), RateLimit::new(2, 3).unwrap());
    let router = serve(limited(router(app), Some(limiter)), Authenticator::default());
    Shop { wire: wire.clone(), hands, router }
}

fn create(who: &str, key: &str) -> Value {
    with_header(by(event("reserve/create"), who), "idempotency-key", key)
}

impl Shop {
    async fn send(&self, event: Value) -> Answer {
        send(self.router.clone(), event).await
    }

    async fn statuses(&self, events: impl IntoIterator<Item = Value>) -> Vec<u64> {
        let mut statuses = Vec::new();
        for event in events {
            statuses.push(self.send(event).await.status);
        }
        statuses
    }
}

fn later(millis: i64) -> Timestamp {
    Timestamp::from_millis(NOW.as_millis() + millis)
}

#[tokio::test]
async fn after_the_burst_requests_get_429_and_change_nothing() {
    let shop = shop().await;
    let mine = |n: u32| create("alice", &format!("k{n}"));
    assert_eq!(shop.statuses((0..3).map(mine)).await, [201, 201, 201]);
    let refused = shop.send(mine(3)).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    assert_eq!(refused.problem(429, "rate_limited")["retry_after_seconds"], 1);
    // Invalid requests count too; other customers' requests do not.
    shop.send(with_body(mine(4), "{")).await.problem(429, "rate_limited");
    assert_eq!(shop.send(create("bob", "k")).await.status, 201);
    assert_eq!(books(&shop.wire).await["tee-black"].held, 8);
    // After `Retry-After`, the same request with the same key succeeds.
    shop.hands.set(later(1_000));
    let made = shop.send(mine(3)).await;
    assert_eq!((made.status, made.header("idempotent-replayed")), (201, None));
}

#[tokio::test]
async fn all_environments_together_admit_no_more_than_the_limit() {
    let shop = shop().await;
    let environments: Vec<Shop> = (2..12).map(|seed| environment(&shop.wire, seed)).collect();
    let herd = (0..100).map(|n| environments[n % 10].send(create("alice", &format!("k{n}"))));
    let answers = join_all(herd).await;
    let count = |status| answers.iter().filter(|answer| answer.status == status).count();
    assert_eq!((count(201), count(429)), (3, 97));
    assert_eq!(books(&shop.wire).await["tee-black"].held, 6);
}

#[tokio::test]
async fn a_refusal_is_cached_until_its_time_is_over() {
    let shop = shop().await;
    assert_eq!(shop.statuses((0..4).map(|n| create("alice", &format!("k{n}")))).await, [201, 201, 201, 429]);
    shop.wire.take_calls();
    assert_eq!(shop.statuses((0..50).map(|n| create("alice", &format!("h{n}")))).await, [429; 50]);
    shop.hands.set(later(499));
    shop.send(create("alice", "k4")).await.problem(429, "rate_limited");
    assert!(shop.wire.take_calls().is_empty());
    shop.hands.set(later(500));
    assert_eq!(shop.send(create("alice", "k4")).await.status, 201);
}

#[tokio::test]
async fn reads_services_admins_and_unauthenticated_requests_are_not_counted() {
    let shop = shop().await;
    let service = || in_role(create("shop-back-end", "k"), "service");
    let service = || {
        with_body(service(), json!({ "lines": [{ "product_id": "tee-black", "quantity": 1 }], "customer_id": "alice" }))
    };
    let mut anonymous = create("alice", "k");
    anonymous["requestContext"].as_object_mut().unwrap().remove("authorizer");
    for _ in 0..5 {
        assert_eq!(shop.send(event("reserve/list")).await.status, 200);
        assert_eq!(shop.send(service()).await.status, 201);
        assert_eq!(shop.send(in_role(create("root", "k"), "admin")).await.status, 201);
        shop.send(anonymous.clone()).await.problem(401, "unauthenticated");
        shop.send(at(create("alice", "k"), "PUT", "/reservations")).await.problem(405, "method_not_allowed");
        shop.send(at(create("alice", "k"), "POST", "/nowhere")).await.problem(404, "route_not_found");
    }
    let rates = shop.wire.take_calls().into_iter().filter(|call| call.request.to_string().contains("RATE#")).count();
    assert_eq!(rates, 0);
    // Any other role is a customer.
    let others = (0..4).map(|n| in_role(create("mallory", &format!("k{n}")), "vip services"));
    assert_eq!(shop.statuses(others).await, [201, 201, 201, 429]);
}

#[tokio::test(start_paused = true)]
async fn without_a_count_the_request_is_admitted() {
    for fault in [Fault::LostBefore, Fault::ServerError, Fault::AccessDenied] {
        let shop = shop().await;
        shop.wire.script(move |call| call.request.to_string().contains("RATE#").then_some(fault));
        let started = tokio::time::Instant::now();
        assert_eq!(shop.statuses((0..5).map(|n| create("alice", &format!("k{n}")))).await, [201; 5], "{fault:?}");
        assert!(started.elapsed().as_secs() <= 5, "{fault:?}: a second each at most");
    }
}

/// A flood throttles the customer's own item long before all of it is counted.
#[tokio::test(start_paused = true)]
async fn a_throttled_count_refuses_its_customer_only() {
    let shop = shop().await;
    let throttled = |call: &holdfast_testkit::wire::Call| call.request.to_string().contains("RATE#alice");
    shop.wire.script(move |call| throttled(call).then_some(Fault::Throttled));
    let started = tokio::time::Instant::now();
    let refused = shop.send(create("alice", "k0")).await;
    assert_eq!(refused.header("retry-after"), Some("1"));
    refused.problem(429, "rate_limited");
    assert!(started.elapsed().as_secs() <= 1, "{:?}", started.elapsed());
    assert_eq!(shop.send(create("bob", "k")).await.status, 201);
    // It is cached: further requests cost no call until the second is over.
    shop.wire.take_calls();
    assert_eq!(shop.statuses((0..50).map(|n| create("alice", &format!("h{n}")))).await, [429; 50]);
    assert!(shop.wire.take_calls().is_empty());
    // A short throttle is waited for.
    shop.hands.set(later(1_000));
    let mut left = 2;
    shop.wire.script(move |call| {
        let throttle = throttled(call) && left > 0;
        left -= u32::from(throttle);
        throttle.then_some(Fault::Throttled)
    });
    assert_eq!(shop.send(create("alice", "k0")).await.status, 201);
    assert_eq!(books(&shop.wire).await["tee-black"].held, 4);
}

#[tokio::test]
async fn without_a_limit_there_is_no_call() {
    let shop = shop().await;
    let hands = TestClock::new();
    let app = App { store: store(&shop.wire, 2), schedules: schedules(&shop.wire), clock: hands.clock() };
    let router = serve(limited(router(app), None), Authenticator::default());
    for n in 0..10 {
        assert_eq!(send(router.clone(), create("alice", &format!("k{n}"))).await.status, 201);
    }
    assert!(!shop.wire.take_calls().iter().any(|call| call.request.to_string().contains("RATE#")));
}
