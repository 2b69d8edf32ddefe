//! Responses about money and stock that a shop acts on: regression tests of bugs in the running service.

use std::time::Duration;

use futures_util::future::join_all;
use holdfast_domain::{CustomerId, IdempotencyKey, ReservationId};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, Who};

pub(crate) async fn copies_of_one_late_payment_have_one_answer(api: Api) {
    let products: Vec<String> = (0..8).map(|n| format!("copies-{n}")).collect();
    join_all(products.iter().map(async |id| {
        api.product(id, 1, json!({"hold_seconds": 10})).await;
        let held = api.reserve("alice", id, &[(id, 1)]).await;
        api.until_overdue(&held).await;
        // Released, so that each copy has to take a unit.
        api.stack.invoke("expire", &json!({"kind": "sweep"})).await.unwrap();
        let held = held.id();
        let copies = join_all((0..4).map(|_| api.confirm("alice", &held, Some("pay_1")))).await;
        copies.iter().for_each(|copy| _ = copy.is(200, ""));
        assert_eq!(api.book(id).await.sold, 1);
    }))
    .await;
}

pub(crate) async fn a_refusal_of_a_payment_stays_even_if_units_are_released(api: Api) {
    api.product("final", 1, json!({"hold_seconds": 10})).await;
    let alices = api.reserve("alice", "final", &[("final", 1)]).await;
    api.until_overdue(&alices).await;
    let bobs = api.reserve("bob", "final", &[("final", 1)]).await;
    bobs.is(201, "");
    api.confirm("alice", &alices.id(), Some("pay_final")).await.is(409, "refund_required");
    api.cancel("bob", &bobs.id()).await.is(200, "");
    // The provider sends its webhook again.
    api.confirm("alice", &alices.id(), Some("pay_final")).await.is(409, "refund_required");
    let book = api.book("final").await;
    assert_eq!((book.available, book.sold), (1, 0));
}

pub(crate) async fn overdue_holds_block_nothing(api: Api) {
    let limited = json!({"hold_seconds": 10, "max_per_customer": 1});
    api.product("overdue-a", 2, limited).await;
    api.product("overdue-b", 10, json!({"hold_seconds": 10, "shards": 2})).await;
    api.product("overdue-c", 1, json!({"hold_seconds": 10})).await;
    let late = api.reserve("alice", "overdue-c", &[("overdue-c", 1)]).await;
    api.reserve("alice", "overdue-a", &[("overdue-a", 1)]).await.is(201, "");
    api.until_overdue(&late).await;
    // Bob's hold of the same unit is over too when alice's payment arrives.
    let bobs = api.reserve("bob", "overdue-c", &[("overdue-c", 1)]).await;
    bobs.is(201, "");
    api.reserve("alice", "overdue-a2", &[("overdue-a", 1)]).await.is(201, "");
    let last = api.reserve("alice", "overdue-b", &[("overdue-b", 4)]).await;
    api.until_overdue(&last).await;
    let shown = api.get("/admin/products?limit=100", Who::Admin).await;
    let shown = shown.body["items"].as_array().unwrap().iter().find(|item| item["product_id"] == "overdue-b").cloned();
    let shown = shown.unwrap();
    assert_eq!((&shown["available"], &shown["reserved"], &shown["sold"]), (&json!(10), &json!(0), &json!(0)));
    // The catalogue shows what was read within two seconds.
    let public = loop {
        let shown = api.get("/products/overdue-b", Who::Nobody).await;
        if shown.is(200, "").body["stock_at"].as_str() >= last.body["expires_at"].as_str() {
            break shown.body;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_eq!((&public["available"], &public["reserved"], &public["sold"]), (&json!(10), &json!(0), &json!(0)));
    adjust(&api, "overdue-b", "k", json!({"delta": -10, "reason": "lost"})).await.is(200, "");
    api.confirm("alice", &late.id(), Some("pay_1")).await.is(200, "");
}

pub(crate) async fn copies_of_one_adjustment_have_one_answer(api: Api) {
    for (n, more) in [json!({"delta": 5, "expected_total": 5}), json!({"delta": -5})].into_iter().enumerate() {
        let id = format!("adjusted-once-{n}");
        api.product(&id, 5, json!({})).await;
        let mut body = more;
        body["reason"] = "counted".into();
        let copies = join_all((0..6).map(|_| adjust(&api, &id, "k", body.clone()))).await;
        for copy in &copies {
            copy.is(200, "");
            assert_eq!(copy.body, copies[0].body);
        }
        assert_eq!(api.book(&id).await.total, [10, 0][n]);
    }
}

pub(crate) async fn fragmented_stock_of_two_products_is_sold_together(api: Api) {
    for id in ["crumbs-a", "crumbs-b"] {
        api.product(id, 64, json!({"shards": 64, "max_per_customer": null})).await;
    }
    api.reserve("alice", "crumbs", &[("crumbs-a", 50), ("crumbs-b", 50)]).await.is(201, "");
    assert_eq!((api.book("crumbs-a").await.held, api.book("crumbs-b").await.held), (50, 50));
    let short = api.reserve("bob", "crumbs", &[("crumbs-a", 50), ("crumbs-b", 50)]).await;
    short.is(409, "insufficient_stock");
    assert_eq!(short.body["lines"][0]["available"], 14);
}

pub(crate) async fn a_payment_without_a_reservation_is_recorded(api: Api) {
    let key = IdempotencyKey::try_from("paid-first").unwrap();
    let nothing = ReservationId::derive(&CustomerId::try_from("alice").unwrap(), &key).to_string();
    api.confirm("alice", &nothing, Some("pay_nothing")).await.is(404, "reservation_not_found");
    let found = api.failed("pay_nothing").await;
    assert_eq!(found.len(), 1);
    assert_eq!((&found[0]["reason"], &found[0]["reservation_id"]), (&json!("reservation_not_found"), &json!(nothing)));
    // An admin resolves it. A hold that is made afterwards knows of it once the admin repeats that.
    let path = format!("/admin/failed-confirmations/{}/resolve", found[0]["failed_confirmation_id"].as_str().unwrap());
    let resolve = async || api.post(&path, Who::Admin, json!({"note": "refunded"})).await;
    let first = resolve().await;
    assert_eq!(first.is(200, "").body["state"], "resolved");
    api.product("paid-first", 2, json!({})).await;
    let made = api.reserve("alice", "paid-first", &[("paid-first", 1)]).await;
    assert_eq!(made.is(201, "").id(), nothing);
    assert_eq!(resolve().await.is(200, "").body, first.body);
    api.confirm("alice", &nothing, Some("pay_nothing")).await.is(409, "refund_required");
}

async fn adjust(api: &Api, id: &str, key: &str, body: Value) -> Answer {
    let path = format!("/admin/products/{id}/stock");
    api.raw(Method::POST, &path, Who::Admin, &[("idempotency-key", key)], Some(body.to_string())).await
}

pub(crate) async fn an_order_is_given_back_and_sold_again(api: Api) {
    api.product("given-back", 1, json!({"max_per_customer": 1})).await;
    let alice = api.reserve("alice", "given-back", &[("given-back", 1)]).await.id();
    let cancel = async |who, body: Value| api.post(&format!("/orders/{alice}/cancel"), who, body).await;
    let by_service = |customer: &str| json!({"reason": "changed her mind", "restock": true, "customer_id": customer});
    let shop = Who::Service("shop");
    cancel(shop, by_service("alice")).await.is(404, "reservation_not_found");
    api.confirm("alice", &alice, Some("pay_given_back")).await.is(200, "");
    cancel(Who::Customer("alice"), by_service("alice")).await.is(403, "forbidden");
    cancel(shop, by_service("bob")).await.is(404, "reservation_not_found");
    for reason in ["", " ", "\n"] {
        let nameless = json!({"reason": reason, "restock": true, "customer_id": "alice"});
        assert_eq!(cancel(shop, nameless).await.is(400, "invalid_request").body["field"], "reason");
    }
    // Beside itself, and beside a copy of the confirmation.
    let (one, two, confirmed) = futures_util::join!(
        cancel(shop, by_service("alice")),
        cancel(shop, by_service("alice")),
        api.confirm("alice", &alice, Some("pay_given_back"))
    );
    for given_back in [one, two] {
        assert_eq!(given_back.is(200, "").body["status"], "cancelled");
        assert_eq!(
            (&given_back.body["cancel_reason"], &given_back.body["restocked"]),
            (&json!("changed her mind"), &json!(true))
        );
    }
    assert!(matches!((confirmed.status, confirmed.code()), (200, _) | (409, "refund_required")), "{confirmed:?}");
    let book = api.book("given-back").await;
    assert_eq!((book.available, book.sold, book.total), (1, 0, 1));
    let order = api.get(&format!("/orders/{alice}"), Who::Customer("alice")).await;
    assert_eq!(order.is(200, "").body["status"], "cancelled");
    // Its payment is owed: an admin resolves it. Sent again, it buys nothing.
    let owed = api.failed("pay_given_back").await;
    assert_eq!((owed.len(), &owed[0]["reason"]), (1, &json!("order_cancelled")));
    let path = format!("/admin/failed-confirmations/{}", owed[0]["failed_confirmation_id"].as_str().unwrap());
    api.post(&format!("{path}/retry"), Who::Admin, json!({})).await.is(409, "reservation_cancelled");
    api.post(&format!("{path}/resolve"), Who::Admin, json!({"note": "refunded"})).await.is(200, "");
    api.confirm("alice", &alice, Some("pay_given_back")).await.is(409, "refund_required");
    // The limit is free again, and the unit is sold again. Then an admin calls the event off: it leaves the stock.
    let again = api.reserve("alice", "given-back-2", &[("given-back", 1)]).await.id();
    api.confirm("alice", &again, None).await.is(200, "");
    let off = json!({"reason": "event called off", "restock": false});
    let path = format!("/admin/orders/{again}/cancel");
    api.post(&path, Who::Customer("alice"), off.clone()).await.is(403, "forbidden");
    assert_eq!(api.post(&path, Who::Admin, off).await.is(200, "").body["customer_id"], "alice");
    let read = api.get(&format!("/admin/reservations/{again}"), Who::Admin).await;
    assert_eq!(
        (&read.is(200, "").body["restocked"], &read.body["cancel_reason"]),
        (&json!(false), &json!("event called off"))
    );
    let book = api.book("given-back").await;
    assert_eq!((book.available, book.sold, book.total), (0, 0, 0));
    let ledger = api.get("/admin/products/given-back/ledger", Who::Admin).await;
    assert_eq!((&ledger.body["items"][0]["delta"], &ledger.body["items"][0]["reference"]), (&json!(-1), &json!(again)));
}
