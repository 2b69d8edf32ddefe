//! The function `catalog` over the real SDKs: products, caching, and unknown routes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::time::Duration;

use axum::Router;
use catalog::{App, router};
use futures_util::future::join_all;
use holdfast_domain::{Product, ProductChange, ProductStatus, Refusal};
use holdfast_http::{Authenticator, serve};
use holdfast_store::Error;
use holdfast_testkit::event::{Answer, at, event, names, send, with_body, with_header, with_query};
use holdfast_testkit::fixtures::{
    NOW, basket, confirmation, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};
use serde_json::{Value, json};

/// The function, and a shop with 100 tees, 3 of them held and 2 sold, and 7 mugs.
struct Shop {
    wire: Wire,
    router: Router,
}

async fn shop() -> Shop {
    let wire = table();
    let tee = Product { name: "Black tee".to_owned(), ..product("tee-black", 100, 4) };
    stocked(&wire, &[tee, product("mug", 7, 1)]).await;
    let store = store(&wire, 2);
    reserve(&store, &basket("alice", "k1", &[("tee-black", 3)]), NOW).await.unwrap();
    let sold = reserve(&store, &basket("bob", "k2", &[("tee-black", 2)]), NOW).await.unwrap().reservation;
    store.confirm(&confirmation(&sold.reservation_id, &sold.customer, None, NOW), NOW, soon()).await.unwrap();
    let router = function(&wire);
    wire.take_calls();
    Shop { wire, router }
}

fn function(wire: &Wire) -> Router {
    serve(router(App { store: store(wire, 1), clock: wire.clock() }), Authenticator::default())
}

impl Shop {
    async fn send(&self, event: Value) -> Answer {
        send(self.router.clone(), event).await
    }

    async fn get(&self) -> Answer {
        self.send(event("catalog/get")).await
    }
}

/// The calls that read the index of all holds.
fn searches(calls: &[Call]) -> usize {
    calls.iter().filter(|call| call.request["IndexName"] == "due").count()
}

#[tokio::test]
async fn every_event_file_is_answered_with_its_success() {
    for name in names("catalog") {
        let shop = shop().await;
        let answer = shop.send(event(&format!("catalog/{name}"))).await;
        assert_eq!(answer.status, 200, "{name}: {answer:?}");
        let tee = match name.as_str() {
            "get" => answer.body.clone(),
            "list" => {
                assert_eq!(answer.body["items"][0]["product_id"], "mug");
                answer.body["items"][1].clone()
            }
            other => panic!("events/catalog/{other}.json has no test"),
        };
        let units = ["total", "available", "reserved", "sold"].map(|field| tee[field].as_u64().unwrap());
        assert_eq!((tee["name"].as_str(), units), (Some("Black tee"), [100, 95, 3, 2]), "{name}");
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert_eq!(answer.header("cache-control"), Some("public, max-age=1"));
    }
}

#[tokio::test]
async fn a_list_comes_in_pages() {
    let shop = shop().await;
    let first = shop.send(with_query(event("catalog/list"), "limit=1")).await;
    assert_eq!(first.body["items"].as_array().unwrap().len(), 1);
    let cursor = first.body["next_cursor"].as_str().unwrap();
    let second = shop.send(with_query(event("catalog/list"), &format!("limit=100&cursor={cursor}"))).await;
    assert_eq!(second.body["items"][0]["product_id"], "tee-black");
    assert_eq!(second.body["next_cursor"], Value::Null);
    for wrong in ["limit=0", "limit=101", "limit=x", "cursor=x", "limit=1&limit=2"] {
        shop.send(with_query(event("catalog/list"), wrong)).await.problem(400, "invalid_request");
    }
}

/// Others add parameters to links.
#[tokio::test(start_paused = true)]
async fn unknown_parameters_of_public_routes_are_ignored() {
    let shop = shop().await;
    let query = "utm_source=x&_=1&utm_source=y&status=held";
    for name in names("catalog") {
        let event = event(&format!("catalog/{name}"));
        let (plain, with) = (shop.send(event.clone()).await, shop.send(with_query(event, query)).await);
        assert_eq!((with.status, &with.body), (200, &plain.body), "{name}");
    }
    for path in ["/openapi.json", "/docs", "/docs/page.js"] {
        let answer = shop.send(with_query(at(event("catalog/list"), "GET", path), query)).await;
        assert_eq!(answer.status, 200, "{path}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_matching_etag_gets_a_304_without_a_body() {
    for name in names("catalog") {
        let shop = shop().await;
        let event = event(&format!("catalog/{name}"));
        let first = shop.send(event.clone()).await;
        let tag = first.header("etag").unwrap().to_owned();
        // A weak tag: the time of the response is no part of it.
        assert!(tag.starts_with("W/\"") && tag.ends_with('"') && tag.len() > 20, "{tag}");
        shop.wire.step_clock(100);
        for known in [tag.clone(), tag.replace("W/", ""), format!("\"other\", {tag}"), "*".to_owned()] {
            let answer = shop.send(with_header(event.clone(), "if-none-match", &known)).await;
            assert_eq!((answer.status, &answer.body), (304, &Value::Null), "{known}: {answer:?}");
            assert_eq!(answer.header("etag"), Some(tag.as_str()));
            assert_eq!(answer.header("cache-control"), Some("public, max-age=1"));
        }
        for unknown in ["\"other\"", &tag.replace('"', ""), ""] {
            let answer = shop.send(with_header(event.clone(), "if-none-match", unknown)).await;
            let without_time = |answer: &Answer| answer.body.to_string().replace("40:00.100Z", "40:00.000Z");
            assert_eq!((answer.status, without_time(&answer)), (200, without_time(&first)), "{unknown}");
            assert_ne!(answer.body, first.body, "the time of the response");
        }
        // After a unit is taken, the response changes within a second.
        reserve(&store(&shop.wire, 3), &basket("carol", "k", &[("tee-black", 1)]), NOW).await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        let answer = shop.send(with_header(event, "if-none-match", &tag)).await;
        assert_eq!(answer.status, 200);
        assert_ne!(answer.header("etag"), Some(tag.as_str()));
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_readers_read_each_product_once_a_second() {
    let shop = shop().await;
    // The partitions of baskets, and two for each shard: of the tee alone, and then of the mug.
    let (tee, mug) = (16 + 2 * 4, 16 + 2);
    let herd = async || {
        let events = ["get", "list"].into_iter().cycle().take(100).map(|name| event(&format!("catalog/{name}")));
        let answers = join_all(events.map(|event| shop.send(event))).await;
        assert!(answers.iter().all(|answer| answer.status == 200), "{answers:?}");
        answers.into_iter().next().unwrap()
    };
    herd().await;
    let calls = shop.wire.take_calls();
    assert_eq!(searches(&calls), tee + mug);
    // Of each product its view, whether there is one that can have a view, its facts, and its shards; and the page.
    assert_eq!(calls.iter().filter(|call| call.operation == "BatchGetItem").count(), 2 * 4, "{calls:#?}");
    assert_eq!(calls.iter().filter(|call| call.operation == "UpdateItem").count(), 2 * 2, "lease and view");
    assert_eq!(calls.len(), tee + mug + 2 * 4 + 2 * 2 + 1);

    // Within the second nothing is counted again, and the numbers still add up to the total.
    reserve(&store(&shop.wire, 3), &basket("carol", "k", &[("tee-black", 5)]), NOW).await.unwrap();
    shop.wire.take_calls();
    tokio::time::advance(Duration::from_millis(999)).await;
    let stale = shop.get().await;
    assert!(shop.wire.take_calls().is_empty());
    assert_eq!((&stale.body["available"], &stale.body["reserved"]), (&json!(95), &json!(3)));

    tokio::time::advance(Duration::from_millis(1)).await;
    let fresh = herd().await;
    assert_eq!(searches(&shop.wire.take_calls()), tee + mug);
    assert_eq!(
        (&fresh.body["available"], &fresh.body["reserved"], &fresh.body["sold"]),
        (&json!(90), &json!(8), &json!(2))
    );
}

#[tokio::test(start_paused = true)]
async fn a_table_that_does_not_respond_is_a_503_and_is_not_cached() {
    for (fault, status, code) in [
        (Fault::LostBefore, 503, "unavailable"),
        (Fault::Throttled, 503, "unavailable"),
        (Fault::AccessDenied, 500, "internal_error"),
    ] {
        let shop = shop().await;
        for operations in [&["Query"][..], &["BatchGetItem"]] {
            shop.wire.fail_all(operations, fault);
            for name in names("catalog") {
                shop.send(event(&format!("catalog/{name}"))).await.problem(status, code);
            }
            shop.wire.clear_faults();
        }
        // An incomplete read is not cached.
        assert_eq!(shop.get().await.body["available"], 95, "{fault:?}");
    }
}

#[tokio::test]
async fn an_unknown_route_is_a_problem_and_reads_nothing() {
    let shop = shop().await;
    let get = || event("catalog/get");
    for (method, path) in [
        ("GET", "/nowhere"),
        ("POST", "/nowhere"),
        ("GET", "/products/"),
        ("GET", "/products/a/b"),
        ("GET", "/products/%FF"),
        ("DELETE", "/Reservations"),
    ] {
        shop.send(at(get(), method, path)).await.problem(404, "route_not_found");
    }
    for (method, path, allow) in [
        ("POST", "/products", "GET,HEAD"),
        ("DELETE", "/products/tee-black", "GET,HEAD"),
        ("PUT", "/reservations", "GET,POST"),
        ("PATCH", "/reservations/rsv_x", "DELETE,GET"),
        ("GET", "/reservations/rsv_x/confirm", "POST"),
        ("DELETE", "/admin/products/tee-black", "PATCH"),
        ("GET", "/admin/failed-confirmations/redrive", "POST"),
        ("GET", "/admin/failed-confirmations/fc_x/retry", "POST"),
    ] {
        let answer = shop.send(at(get(), method, path)).await;
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
        answer.problem(405, "method_not_allowed");
    }
    let long = with_body(at(get(), "POST", "/nowhere"), "x".repeat(65_537));
    shop.send(long).await.problem(413, "payload_too_large");
    assert!(shop.wire.take_calls().is_empty());
    shop.send(at(get(), "GET", "/products/no-such")).await.problem(404, "product_not_found");
    shop.send(at(get(), "GET", "/products/a b")).await.problem(404, "product_not_found");
}

#[tokio::test]
async fn an_archived_product_is_not_in_the_list_and_keeps_its_page() {
    let shop = shop().await;
    let archive = ProductChange { status: Some(ProductStatus::Archived), ..ProductChange::default() };
    store(&shop.wire, 3).change_product(&product_id("tee-black"), 1, archive, soon()).await.unwrap();
    let list = shop.send(event("catalog/list")).await;
    let ids = list.body["items"].as_array().unwrap().iter().map(|item| item["product_id"].clone());
    assert!(!ids.collect::<Vec<_>>().contains(&json!("tee-black")), "{list:?}");
    let one = shop.send(event("catalog/get")).await;
    assert_eq!((one.status, &one.body["status"]), (200, &json!("archived")));
    let basket = basket("carol", "k", &[("tee-black", 1)]);
    let refused = reserve(&store(&shop.wire, 4), &basket, NOW).await.unwrap_err();
    assert!(matches!(refused, Error::Refused(Refusal::ProductNotOnSale { .. })), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn a_page_that_counts_down_gets_no_304() {
    let shop = shop().await;
    let opens = ProductChange { sale_starts_at: Some(Some(NOW.plus_seconds(60))), ..ProductChange::default() };
    store(&shop.wire, 3).change_product(&product_id("tee-black"), 1, opens, soon()).await.unwrap();
    for (name, seconds, status) in [("get", 0, 200), ("list", 0, 200), ("get", 60, 304), ("list", 60, 304)] {
        let event = event(&format!("catalog/{name}"));
        tokio::time::advance(Duration::from_secs(seconds)).await;
        let tag = shop.send(event.clone()).await.header("etag").unwrap().to_owned();
        shop.wire.step_clock(1);
        // A cache that is told 304 would keep the old time.
        let again = shop.send(with_header(event, "if-none-match", &tag)).await;
        assert_eq!(again.status, status, "{name} {seconds}");
    }
}
