//! Products and stock.

use reqwest::Method;
use serde_json::json;

use crate::api::{Api, Who};

pub(crate) async fn products_are_created_changed_and_listed(api: Api) {
    let made =
        api.product("catalog-1", 40, json!({"max_per_customer": 5, "sale_ends_at": "2999-01-01T00:00:00Z"})).await;
    assert_eq!(
        (&made.body["version"], &made.body["shards"], &made.body["available"]),
        (&json!(1), &json!(16), &json!(40))
    );
    let patch = async |body: serde_json::Value| {
        api.raw(Method::PATCH, "/admin/products/catalog-1", Who::Admin, &[], Some(body.to_string())).await
    };
    let held = api.reserve("alice", "catalog-1", &[("catalog-1", 2)]).await;
    let changed = patch(json!({"version": 1, "price_minor": 9_900, "max_per_customer": null, "name": "Dearer"})).await;
    changed.is(200, "");
    assert_eq!((&changed.body["version"], &changed.body["max_per_customer"]), (&json!(2), &json!(null)));
    assert_eq!(changed.body["sale_ends_at"], "2999-01-01T00:00:00.000Z", "what is not named stays");
    patch(json!({"version": 1, "price_minor": 1})).await.is(409, "version_mismatch");
    // The hold keeps its price; the next one has the new.
    let old = api.get(&format!("/reservations/{}", held.id()), Who::Customer("alice")).await;
    assert_eq!(old.body["total_price_minor"], 5_000);
    // An environment may refuse for what it knew a second ago (the limit of five), and no longer.
    let started = tokio::time::Instant::now();
    let new = loop {
        let new = api.reserve("alice", "catalog-1-new", &[("catalog-1", 6)]).await;
        if new.status == 201 || started.elapsed().as_secs() >= 5 {
            break new;
        }
        new.is(409, "customer_limit_reached");
    };
    assert_eq!(new.body["total_price_minor"], 6 * 9_900);
    // A price that a page showed before the change.
    let line = |price: u64| json!({"product_id": "catalog-1", "quantity": 1, "unit_price_minor": price});
    let ask = async |price: u64| {
        let body = json!({"lines": [line(price)]}).to_string();
        api.raw(Method::POST, "/reservations", Who::Customer("bob"), &[("idempotency-key", "seen")], Some(body)).await
    };
    let stale = ask(2_500).await;
    let told = json!([{"product_id": "catalog-1", "unit_price_minor": 9_900}]);
    assert_eq!(stale.is(409, "price_changed").body["lines"], told);
    let now = ask(9_900).await;
    assert_eq!(now.is(201, "").body["total_price_minor"], 9_900);
    api.cancel("bob", &now.id()).await.is(200, "");
    patch(json!({"version": 2, "status": "paused"})).await.is(200, "");
    api.reserve("alice", "catalog-1-paused", &[("catalog-1", 1)]).await.is(409, "product_not_on_sale");

    api.stock_becomes("catalog-1", (32, 8, 0)).await;
    let one = api.get("/products/catalog-1", Who::Nobody).await;
    assert_eq!(
        (&one.headers["cache-control"], &one.body["total"]),
        (&"public, max-age=1".parse().unwrap(), &json!(40))
    );
    for (path, who) in [("/products", Who::Nobody), ("/admin/products", Who::Admin)] {
        let mut cursor = String::new();
        let mut seen = 0;
        loop {
            let page = api.get(&format!("{path}?limit=3{cursor}"), who).await;
            page.is(200, "");
            let items = page.body["items"].as_array().unwrap();
            seen += items.iter().filter(|item| item["product_id"] == "catalog-1").count();
            let Some(next) = page.body["next_cursor"].as_str() else { break };
            cursor = format!("&cursor={next}");
        }
        assert_eq!(seen, 1, "{path}");
    }

    // It is retired: its page, orders and ledger stay.
    patch(json!({"version": 3, "status": "archived"})).await.is(200, "");
    let started = tokio::time::Instant::now();
    let listed = async |path: &str, who| {
        let page = api.get(&format!("{path}?limit=100"), who).await;
        page.is(200, "").body["items"].as_array().unwrap().iter().any(|item| item["product_id"] == "catalog-1")
    };
    let archived = async || api.get("/products/catalog-1", Who::Nobody).await.is(200, "").body["status"] == "archived";
    while listed("/products", Who::Nobody).await || !archived().await {
        assert!(started.elapsed().as_secs() < 5, "both may be a second old, and no more");
    }
    api.reserve("alice", "catalog-1-archived", &[("catalog-1", 1)]).await.is(409, "product_not_on_sale");
    api.get("/admin/products/catalog-1/ledger", Who::Admin).await.is(200, "");
    api.confirm("alice", &held.id(), Some("pay_archived")).await.is(200, "");
    api.raw(
        Method::POST,
        "/admin/products",
        Who::Admin,
        &[],
        Some(
            json!({
                "product_id": "catalog-1", "name": "Another", "price_minor": 1, "currency": "EUR", "total": 1,
            })
            .to_string(),
        ),
    )
    .await
    .is(409, "product_exists");
}

pub(crate) async fn stock_is_adjusted_once_with_a_reason(api: Api) {
    api.product("adjusted", 4, json!({})).await;
    api.reserve("alice", "adjusted", &[("adjusted", 3)]).await.is(201, "");
    let adjust = async |key: &str, body: serde_json::Value| {
        let path = "/admin/products/adjusted/stock";
        api.raw(Method::POST, path, Who::Admin, &[("idempotency-key", key)], Some(body.to_string())).await
    };
    let delivery = json!({"delta": 10, "reason": "delivery", "reference": "PO-7", "expected_total": 4});
    let first = adjust("k1", delivery.clone()).await;
    first.is(200, "");
    assert_eq!((&first.body["total_after"], &first.body["actor"]), (&json!(14), &json!("root")));
    let again = adjust("k1", delivery).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    adjust("k1", json!({"delta": 11, "reason": "delivery"})).await.is(422, "idempotency_key_reused");
    adjust("k2", json!({"delta": -2, "reason": "broken"})).await.is(200, "");
    // Three are held: nine are free.
    let short = adjust("k3", json!({"delta": -10, "reason": "lost"})).await;
    short.is(409, "insufficient_stock");
    assert_eq!(short.body["lines"][0]["available"], 9);
    let book = api.book("adjusted").await;
    assert_eq!((book.available, book.held, book.total), (9, 3, 12));
    let ledger = api.get("/admin/products/adjusted/ledger", Who::Admin).await;
    let deltas: Vec<_> = ledger.body["items"].as_array().unwrap().iter().map(|entry| entry["delta"].clone()).collect();
    assert_eq!(deltas.len(), 3);
    assert!(deltas.contains(&json!(4)) && deltas.contains(&json!(10)) && deltas.contains(&json!(-2)));
}
