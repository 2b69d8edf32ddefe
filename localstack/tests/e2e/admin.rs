//! Products and stock.

use holdfast_local::token::Role;
use reqwest::Method;
use serde_json::json;

use crate::api::{Answer, Api, Who};

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
        assert!(started.elapsed().as_secs() < 5, "both may be two seconds old, and no more");
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
    let again = adjust("k1", delivery.clone()).await;
    assert_eq!((again.status, &again.body), (200, &first.body));
    assert_eq!(again.headers["idempotent-replayed"], "true");
    adjust("k1", json!({"delta": 11, "reason": "delivery"})).await.is(422, "idempotency_key_reused");
    // The key belongs to the product: another admin who sends the same delivery gets the first one's entry.
    let token = api.stack.token("second-admin", Role::Admin).unwrap();
    let other = async |body: &serde_json::Value| {
        let (path, headers) = ("/admin/products/adjusted/stock", [("idempotency-key", "k1")]);
        api.raw(Method::POST, path, Who::Token(&token), &headers, Some(body.to_string())).await
    };
    assert_eq!(other(&delivery).await.is(200, "").body, first.body);
    other(&json!({"delta": 11, "reason": "delivery"})).await.is(422, "idempotency_key_reused");
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

pub(crate) async fn reservations_are_found_by_payment_customer_product_status_and_time(api: Api) {
    for id in ["found-a", "found-b"] {
        api.product(id, 20, json!({})).await;
    }
    // A payment for two orders of one customer, and one for another's.
    let first = api.reserve("found-alice", "first", &[("found-a", 1)]).await;
    let second = api.reserve("found-alice", "second", &[("found-b", 1), ("found-a", 1)]).await;
    let third = api.reserve("found-bob", "third", &[("found-a", 1)]).await;
    let fourth = api.reserve("found-alice", "fourth", &[("found-b", 1)]).await;
    let fifth = api.reserve("found-carol", "fifth", &[("found-a", 1)]).await;
    for (who, reservation, payment) in [
        ("found-alice", &first, "pay_split_basket"),
        ("found-alice", &second, "pay_split_basket"),
        ("found-bob", &third, "pay_found_bob"),
    ] {
        api.confirm(who, &reservation.is(201, "").id(), Some(payment)).await.is(200, "");
    }
    // One that is given back is still found by its payment.
    let body = json!({"reason": "changed her mind", "restock": true, "customer_id": "found-alice"});
    api.post(&format!("/orders/{}/cancel", first.id()), Who::Service("shop"), body).await.is(200, "");

    let made_at = |made: &Answer| made.is(201, "").body["created_at"].as_str().unwrap().to_owned();
    let [at_first, at_second, at_fourth, at_fifth] = [&first, &second, &fourth, &fifth].map(made_at);
    let all = [&first, &second, &third, &fourth].map(Answer::id);
    // The newest first.
    for (query, expected) in [
        ("payment_reference=pay_split_basket".to_owned(), &[1, 0][..]),
        ("payment_reference=pay_found_bob".to_owned(), &[2]),
        ("payment_reference=pay_unknown".to_owned(), &[]),
        ("payment_reference=pay_split_basket&status=cancelled".to_owned(), &[0]),
        ("payment_reference=pay_split_basket&product_id=found-b".to_owned(), &[1]),
        ("payment_reference=pay_split_basket&customer_id=found-bob".to_owned(), &[]),
        (format!("payment_reference=pay_split_basket&from={at_second}"), &[1]),
        ("customer_id=found-alice".to_owned(), &[3, 1, 0]),
        ("customer_id=found-alice&status=held".to_owned(), &[3]),
        ("customer_id=found-alice&product_id=found-a".to_owned(), &[1, 0]),
        (format!("customer_id=found-alice&to={at_fourth}"), &[1, 0]),
        ("customer_id=found-nobody".to_owned(), &[]),
        // Of all customers, of whom other tests have many more. `from` is included, `to` is not.
        (format!("product_id=found-a&from={at_first}&to={at_fifth}"), &[2, 1, 0]),
        (format!("product_id=found-a&status=confirmed&from={at_first}&to={at_fifth}"), &[2, 1]),
        (format!("product_id=found-b&from={at_second}&to={at_fourth}"), &[1]),
        (format!("product_id=found-b&from={at_fourth}&to={at_fifth}"), &[3]),
    ] {
        for limit in [1, 100] {
            let found = api.listed(&format!("/admin/reservations?{query}&limit={limit}")).await;
            let found: Vec<_> = found.iter().map(|item| item["reservation_id"].as_str().unwrap()).collect();
            let expected: Vec<_> = expected.iter().map(|&n: &usize| all[n].as_str()).collect();
            assert_eq!(found, expected, "{query}, by {limit}");
        }
    }
    let given_back = api.listed("/admin/reservations?payment_reference=pay_split_basket&status=cancelled").await;
    assert_eq!(
        (&given_back[0]["customer_id"], &given_back[0]["cancel_reason"]),
        (&json!("found-alice"), &json!("changed her mind"))
    );
    let of_product = api.listed("/admin/reservations?product_id=found-a&limit=100").await;
    assert_eq!(of_product.len(), 4, "{of_product:#?}");
    let page = api.get("/admin/reservations?limit=100", Who::Admin).await;
    let made = page.is(200, "").body["items"].as_array().unwrap().iter().map(|item| item["created_at"].as_str());
    // Times in this form sort like text.
    assert!(made.is_sorted_by(|newer, older| newer >= older), "{page:#?}");
    for field in ["from", "to"] {
        let wrong = api.get(&format!("/admin/reservations?{field}=yesterday"), Who::Admin).await;
        assert_eq!(wrong.is(400, "invalid_request").body["field"], field);
    }
    let turned = format!("/admin/reservations?from={at_fourth}&to={at_second}");
    assert_eq!(api.get(&turned, Who::Admin).await.is(400, "invalid_request").body["field"], "to");
}

pub(crate) async fn what_admins_do_is_written_down(api: Api) {
    let made = api.product("acted", 4, json!({})).await;
    let adjust = async |key: &str, body: serde_json::Value| {
        let path = "/admin/products/acted/stock";
        api.raw(Method::POST, path, Who::Admin, &[("idempotency-key", key)], Some(body.to_string())).await
    };
    let delivery = json!({"delta": 10, "reason": "delivery", "reference": null});
    let added = adjust("k1", delivery.clone()).await;
    // Sent again: it is there, and says that it changed nothing.
    let again = adjust("k1", delivery.clone()).await;
    again.is(200, "");
    let lost = json!({"delta": -15, "reason": "lost"});
    let refused = adjust("k2", lost.clone()).await;
    refused.is(409, "insufficient_stock");
    // What is invalid is not in it.
    adjust("k3", json!({"delta": 0, "reason": "nothing"})).await.is(400, "invalid_request");
    let changed = api.patch("acted", 1, json!({"max_per_customer": null, "sale_ends_at": null})).await;
    let held = api.reserve("actor", "acted", &[("acted", 2)]).await;
    let order = api.reserve("actor", "acted-order", &[("acted", 1)]).await;
    api.confirm("actor", &order.id(), Some("pay_acted")).await.is(200, "");
    let reason = json!({"reason": "event called off"});
    let released = api.release(&held.id(), "event called off").await;
    let all_released = api.release_holds("acted", "event called off").await;
    let back = json!({"reason": "event called off", "restock": true});
    let given_back = api.post(&format!("/admin/orders/{}/cancel", order.id()), Who::Admin, back.clone()).await;

    let given_back_again = api
        .post(&format!("/admin/orders/{}/cancel", order.id()), Who::Admin, json!({"reason": "twice", "restock": false}))
        .await;
    let with = |mut detail: serde_json::Value, key: &str| {
        detail["idempotency_key"] = key.into();
        detail
    };

    let of = async |target: &str| api.listed(&format!("/admin/actions?target={target}&limit=2")).await;
    let product = [
        (&all_released, "release_holds", reason.clone(), "200"),
        (&changed, "change_product", json!({"version": 1, "max_per_customer": null, "sale_ends_at": null}), "200"),
        (&refused, "adjust_stock", with(lost, "k2"), "409 insufficient_stock"),
        (&again, "adjust_stock", with(delivery.clone(), "k1"), "200 unchanged"),
        (&added, "adjust_stock", with(delivery, "k1"), "200"),
        (
            &made,
            "create_product",
            json!({"product_id": "acted", "name": "acted", "price_minor": 2_500, "currency": "EUR", "total": 4}),
            "201",
        ),
    ];
    let (held_id, order_id) = (held.id(), order.id());
    let mut ids = Vec::new();
    for (target, expected) in [
        ("acted", &product[..]),
        (&held_id, &[(&released, "release_reservation", reason.clone(), "200")]),
        (
            &order_id,
            &[
                (&given_back_again, "cancel_order", json!({"reason": "twice", "restock": false}), "200 unchanged"),
                (&given_back, "cancel_order", back.clone(), "200"),
            ],
        ),
        ("acted-by-nobody", &[]),
    ] {
        let listed = of(target).await;
        assert_eq!(listed.len(), expected.len(), "{listed:#?}");
        for (action, (answer, name, detail, outcome)) in listed.iter().zip(expected) {
            let shown = (&action["action"], &action["detail"], &action["outcome"], &action["actor"]);
            assert_eq!(shown, (&json!(name), detail, &json!(outcome), &json!("root")), "{action}");
            assert_eq!(action["request_id"].as_str(), answer.headers["x-request-id"].to_str().ok(), "{action}");
            ids.push(action["action_id"].as_str().unwrap().to_owned());
        }
    }
    // The list of all is read from an index; other tests act meanwhile.
    let started = tokio::time::Instant::now();
    loop {
        let all = api.listed("/admin/actions?limit=100").await;
        let all: Vec<_> = all.iter().map(|action| action["action_id"].as_str().unwrap()).collect();
        if ids.iter().all(|id| all.contains(&id.as_str())) {
            break;
        }
        assert!(started.elapsed().as_secs() < 5, "{ids:?} are not all in {all:?}");
    }
    for query in ["target=a%20b", "actor=root", "limit=0", "cursor=x"] {
        api.get(&format!("/admin/actions?{query}"), Who::Admin).await.is(400, "invalid_request");
    }
    api.raw(Method::DELETE, "/admin/actions", Who::Admin, &[], None).await.is(405, "method_not_allowed");
}

pub(crate) async fn a_cancelled_reservation_says_when_and_by_whom(api: Api) {
    api.product("ended", 3, json!({})).await;
    let by_customer = api.reserve("ended-alice", "a", &[("ended", 1)]).await;
    let by_admin = api.reserve("ended-alice", "b", &[("ended", 1)]).await;
    let cancelled = api.cancel("ended-alice", &by_customer.id()).await;
    assert!(cancelled.is(200, "").body["cancelled_at"].is_string() && cancelled.body["cancel_reason"].is_null());
    // Who did it is for admins.
    assert_eq!(cancelled.body.get("cancelled_by"), None);
    api.release(&by_admin.id(), "event called off").await.is(200, "");
    for (id, by) in [(by_customer.id(), "customer"), (by_admin.id(), "root")] {
        let read = api.get(&format!("/admin/reservations/{id}"), Who::Auditor).await;
        assert_eq!((&read.is(200, "").body["cancelled_by"], read.body["cancelled_at"].is_string()), (&json!(by), true));
    }
}

pub(crate) async fn failed_confirmations_are_found_by_their_reservation(api: Api) {
    api.product("failed-of", 3, json!({})).await;
    let held = api.reserve("failed-alice", "a", &[("failed-of", 1)]).await.id();
    let other = api.reserve("failed-alice", "b", &[("failed-of", 1)]).await.id();
    for id in [&held, &other] {
        api.cancel("failed-alice", id).await.is(200, "");
        for payment in ["pay_failed_of_1", "pay_failed_of_2"] {
            api.confirm("failed-alice", id, Some(payment)).await.is(409, "refund_required");
        }
    }
    api.owed("pay_failed_of_1").await;
    let looking = async {
        loop {
            // Also while another test takes them in.
            let found = api.listed(&format!("/admin/failed-confirmations?reservation_id={held}&limit=1")).await;
            assert!(found.iter().all(|failed| failed["reservation_id"] == held.as_str()), "{found:#?}");
            if found.len() == 2 {
                return;
            }
            assert!(found.len() < 2, "{found:#?}");
        }
    };
    tokio::time::timeout(crate::api::PATIENCE, looking).await.expect("two failed confirmations");
    let wrong = api.get("/admin/failed-confirmations?reservation_id=rsv_x", Who::Admin).await;
    assert_eq!(wrong.is(400, "invalid_request").body["field"], "reservation_id");
}

/// For every route under `/admin` of the description, so also for one that is new.
pub(crate) async fn an_auditor_reads_everything_and_changes_nothing(api: Api) {
    let text = std::fs::read_to_string(holdfast_local::openapi::path()).unwrap();
    let description: serde_json::Value = serde_json::from_str(&text).unwrap();
    let (reservation, failed) = (format!("rsv_{}", "a".repeat(52)), format!("fc_{}", "a".repeat(52)));
    let (mut reads, mut changes) = (0, 0);
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            if !path.starts_with("/admin/") || operation.get("security").is_none() {
                continue;
            }
            let path = path.replace("{product_id}", "audited").replace("{failed_confirmation_id}", &failed);
            let path = path.replace("{reservation_id}", &reservation).replace("{order_id}", &reservation);
            let method: Method = method.to_uppercase().parse().unwrap();
            let reading = method == Method::GET;
            let answer = api.raw(method.clone(), &path, Who::Auditor, &[], None).await;
            if reading {
                reads += 1;
                assert!(!matches!(answer.status, 401 | 403), "{method} {path}: {answer:#?}");
            } else {
                changes += 1;
                let refused = answer.is(403, "forbidden");
                assert!(refused.body["detail"].as_str().unwrap().contains("auditor"), "{method} {path}: {answer:#?}");
            }
            // Others may do neither.
            api.raw(method, &path, Who::Customer("alice"), &[], None).await.is(403, "forbidden");
        }
    }
    assert!(reads >= 6 && changes >= 9, "{reads} reads and {changes} changes");
    // Elsewhere an auditor is a customer like any other.
    api.get("/reservations", Who::Auditor).await.is(200, "");
    assert!(api.listed("/admin/actions?target=audited&limit=100").await.is_empty());
}
