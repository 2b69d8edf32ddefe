//! The life of a hold, by every way that it can end.

use reqwest::Method;
use serde_json::json;

use crate::api::{Api, Who};

pub(crate) async fn a_hold_becomes_an_order(api: Api) {
    api.product("order-a", 10, json!({"name": "Order A", "price_minor": 1_999})).await;
    api.product("order-b", 10, json!({"name": "Order B", "price_minor": 1})).await;
    let held = api.reserve("alice", "order-1", &[("order-b", 1), ("order-a", 1), ("order-a", 1)]).await;
    held.is(201, "");
    let id = held.id();
    assert_eq!(held.headers["location"], format!("/reservations/{id}"));
    assert_eq!(held.body["status"], "held");
    assert_eq!((&held.body["total_price_minor"], &held.body["currency"]), (&json!(3_999), &json!("EUR")));
    let line = json!({"product_id": "order-a", "quantity": 2, "name": "Order A", "unit_price_minor": 1_999});
    assert_eq!(held.body["lines"][0], line);
    let left = held.body["expires_in_seconds"].as_i64().unwrap();
    assert!((595..=600).contains(&left), "{left}");
    api.stock_becomes("order-a", (8, 2, 0)).await;

    // Not an order yet.
    api.get(&format!("/orders/{id}"), Who::Customer("alice")).await.is(404, "reservation_not_found");
    let order = api.confirm("alice", &id, Some("pay_1")).await;
    order.is(200, "");
    assert_eq!(order.body["status"], "confirmed");
    assert_eq!(order.body["payment_reference"], "pay_1");
    assert_eq!(order.body["confirmed_late"], false);
    assert_eq!(order.body["expires_in_seconds"], 0);
    api.stock_becomes("order-a", (8, 0, 2)).await;
    for payment in [Some("pay_1"), None] {
        let again = api.confirm("alice", &id, payment).await;
        again.is(200, "");
        assert_eq!(again.body["confirmed_at"], order.body["confirmed_at"]);
    }
    for path in [format!("/orders/{id}"), format!("/reservations/{id}")] {
        let got = api.get(&path, Who::Customer("alice")).await;
        assert_eq!((got.status, &got.body["status"]), (200, &json!("confirmed")));
    }
    let other = api.confirm("alice", &id, Some("pay_2")).await;
    other.is(409, "already_confirmed");
    assert_eq!(other.body["refund_required"], true);
    api.cancel("alice", &id).await.is(409, "already_confirmed");
    let extend = json!({"hold_seconds": 60});
    api.post(&format!("/reservations/{id}/extend"), Who::Customer("alice"), extend).await.is(409, "already_confirmed");
    assert_eq!(api.book("order-a").await.sold, 2);
}

pub(crate) async fn an_unconfirmed_hold_expires_by_its_schedule_and_is_released_once(api: Api) {
    api.product("expiring", 9, json!({"hold_seconds": 10})).await;
    let left = api.reserve("alice", "left", &[("expiring", 2)]).await.id();
    let bought = api.reserve("bob", "bought", &[("expiring", 3)]).await.id();
    api.confirm("bob", &bought, Some("pay_b")).await.is(200, "");
    api.stock_becomes("expiring", (4, 2, 3)).await;
    let last = api.reserve("carol", "last", &[("expiring", 1)]).await;
    api.until_expired(|| async { api.book("expiring").await.available == 6 }).await;

    // The event comes again, late, for another slot, and beside itself; and the order stays an order.
    let slot = json!({"kind": "slot", "slot": 1_763_700_000});
    let (slot, sweep) = (&slot, &json!({"kind": "sweep"}));
    let again = [slot, slot, sweep, slot, sweep].map(|event| api.stack.invoke("expire", event));
    for released in futures_util::future::join_all(again).await {
        assert_eq!(released.unwrap()["complete"], true);
    }
    let book = api.book("expiring").await;
    assert_eq!((book.available, book.held, book.sold), (6, 0, 3));
    for (who, id) in [("alice", left), ("carol", last.id())] {
        let ended = api.get(&format!("/reservations/{id}"), Who::Customer(who)).await;
        assert_eq!(ended.body["status"], "expired");
        let (key, units) = if who == "alice" { ("left", 2) } else { ("last", 1) };
        let same_cart = api.reserve(who, key, &[("expiring", units)]).await;
        assert_eq!(same_cart.is(409, "hold_ended").body["reservation"]["status"], "expired");
        assert_eq!(same_cart.body["reservation"]["reservation_id"], id.as_str());
        api.confirm(who, &id, None).await.is(410, "hold_expired");
        api.cancel(who, &id).await.is(410, "hold_expired");
    }
}

pub(crate) async fn a_hold_can_be_extended_up_to_its_cap(api: Api) {
    api.product("extended", 5, json!({"hold_seconds": 20})).await;
    let held = api.reserve("alice", "extended", &[("extended", 1)]).await;
    let path = format!("/reservations/{}/extend", held.id());
    let extend = async |seconds: u32| api.post(&path, Who::Customer("alice"), json!({"hold_seconds": seconds})).await;
    let shorter = extend(10).await;
    shorter.is(200, "");
    assert_eq!(shorter.body["expires_at"], held.body["expires_at"], "a hold is never made shorter");
    let longer = extend(50).await;
    longer.is(200, "");
    assert!(longer.body["expires_in_seconds"].as_i64().unwrap() > 45);
    let too_long = extend(61).await;
    too_long.is(409, "extension_limit_reached");
    assert!(too_long.body["latest"].is_string());
    // The first schedule comes and must leave it alone.
    api.until_overdue(&held).await;
    api.stack.invoke("expire", &json!({"kind": "sweep"})).await.unwrap();
    let still = api.get(&format!("/reservations/{}", held.id()), Who::Customer("alice")).await;
    assert_eq!(still.body["status"], "held");
    api.confirm("alice", &held.id(), None).await.is(200, "");
    assert_eq!(api.book("extended").await.sold, 1);
}

pub(crate) async fn a_hold_can_be_cancelled_more_than_once(api: Api) {
    api.product("cancelled", 2, json!({})).await;
    let id = api.reserve("alice", "cancelled", &[("cancelled", 2)]).await.id();
    let sold_out = api.reserve("bob", "cancelled", &[("cancelled", 1)]).await;
    sold_out.is(409, "insufficient_stock");
    assert_eq!(sold_out.body["lines"], json!([{"product_id": "cancelled", "requested": 1, "available": 0}]));
    for _ in 0..2 {
        assert_eq!(api.cancel("alice", &id).await.is(200, "").body["status"], "cancelled");
        assert_eq!(api.book("cancelled").await.available, 2);
    }
    api.confirm("alice", &id, None).await.is(409, "reservation_cancelled");
    api.confirm("alice", &id, Some("pay_1")).await.is(409, "refund_required");
    // What is free again can be had: at the latest when "sold out" is forgotten, after a second.
    let started = tokio::time::Instant::now();
    while api.reserve("bob", "again", &[("cancelled", 1)]).await.status != 201 {
        assert!(started.elapsed().as_secs() < 5, "still sold out");
    }
}

pub(crate) async fn a_late_payment_is_accepted_while_units_are_available(api: Api) {
    api.product("late", 3, json!({"hold_seconds": 10})).await;
    let id = api.reserve("alice", "late", &[("late", 2)]).await.id();
    api.until_expired(|| async { api.book("late").await.available == 3 }).await;
    api.confirm("alice", &id, None).await.is(410, "hold_expired");
    for _ in 0..2 {
        let order = api.confirm("alice", &id, Some("pay_1")).await;
        order.is(200, "");
        assert_eq!((&order.body["status"], &order.body["confirmed_late"]), (&json!("confirmed"), &json!(true)));
    }
    let book = api.book("late").await;
    assert_eq!((book.available, book.sold), (1, 2));
}

pub(crate) async fn paid_late_and_gone_is_a_failed_confirmation_that_an_admin_settles(api: Api) {
    api.product("gone", 1, json!({"hold_seconds": 10})).await;
    let id = api.reserve("alice", "gone", &[("gone", 1)]).await.id();
    api.until_expired(|| async { api.book("gone").await.available == 1 }).await;
    let bobs = api.reserve("bob", "gone", &[("gone", 1)]).await;
    bobs.is(201, "");
    api.confirm("bob", &bobs.id(), None).await.is(200, "");
    // The customer asks again and again; it is one failed confirmation.
    for _ in 0..3 {
        api.confirm("alice", &id, Some("pay_gone")).await.is(409, "refund_required");
    }
    let failed = api.failed("pay_gone").await;
    assert_eq!(failed.len(), 1, "{failed:#?}");
    assert_eq!((&failed[0]["reason"], &failed[0]["customer_id"]), (&json!("refund_required"), &json!("alice")));
    let path = format!("/admin/failed-confirmations/{}", failed[0]["failed_confirmation_id"].as_str().unwrap());

    // A retry cannot help: it comes back open.
    api.post(&format!("{path}/retry"), Who::Admin, json!({})).await.is(202, "");
    let back = async {
        loop {
            if api.failed("pay_gone").await[0]["state"] == "open" {
                return;
            }
        }
    };
    tokio::time::timeout(crate::api::PATIENCE, back).await.expect("the retry never came back");

    api.post(&format!("{path}/resolve"), Who::Admin, json!({"note": ""})).await.is(400, "invalid_request");
    let resolved = api.post(&format!("{path}/resolve"), Who::Admin, json!({"note": "refunded re_1"})).await;
    resolved.is(200, "");
    assert_eq!((&resolved.body["state"], &resolved.body["settled_by"]), (&json!("resolved"), &json!("root")));
    api.post(&format!("{path}/resolve"), Who::Admin, json!({"note": "again"})).await.is(409, "already_settled");
    api.post(&format!("{path}/retry"), Who::Admin, json!({})).await.is(409, "already_settled");
    assert_eq!(api.book("gone").await.sold, 1);
}

pub(crate) async fn lists_show_the_customers_own(api: Api) {
    api.product("listed", 50, json!({})).await;
    let mut ids = Vec::new();
    for n in 0..5 {
        ids.push(api.reserve("lister", &format!("k{n}"), &[("listed", 1)]).await.id());
    }
    api.reserve("other-lister", "k", &[("listed", 1)]).await.is(201, "");
    api.cancel("lister", &ids[0]).await.is(200, "");
    api.confirm("lister", &ids[1], None).await.is(200, "");
    let list = async |path: &str| {
        let (mut seen, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = api.get(&format!("{path}{cursor}"), Who::Customer("lister")).await;
            page.is(200, "");
            let items = page.body["items"].as_array().unwrap();
            assert!(items.len() <= 2);
            seen.extend(items.iter().map(|item| item["reservation_id"].as_str().unwrap().to_owned()));
            let Some(next) = page.body["next_cursor"].as_str() else { return seen };
            cursor = format!("&cursor={next}");
        }
    };
    ids.reverse();
    assert_eq!(list("/reservations?limit=2").await, ids, "the newest first");
    assert_eq!(list("/reservations?limit=2&status=held").await, ids[..3]);
    assert_eq!(list("/reservations?limit=2&status=cancelled").await, ids[4..]);
    assert_eq!(list("/orders?limit=2").await, ids[3..4]);
    let all = api.listed("/admin/reservations?product_id=listed&status=held&limit=100").await;
    let owners: Vec<_> = all.iter().map(|item| item["customer_id"].clone()).collect();
    assert_eq!(owners.len(), 4);
    assert!(owners.contains(&json!("other-lister")));
    let theirs = api.raw(Method::GET, "/reservations?cursor=AAAA", Who::Customer("lister"), &[], None).await;
    theirs.is(400, "invalid_request");
}
