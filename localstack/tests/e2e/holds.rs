//! Holds that are released by an admin, change their lines, or are handed to another customer.

use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, Who};

const SHOP: Who<'static> = Who::Service("shop");

/// The products and units of a reservation.
fn lines(reservation: &Answer) -> Vec<(&str, u64)> {
    let lines = reservation.body["lines"].as_array().unwrap_or_else(|| panic!("no lines: {reservation:?}"));
    lines.iter().map(|line| (line["product_id"].as_str().unwrap(), line["quantity"].as_u64().unwrap())).collect()
}

pub(crate) async fn an_admin_releases_a_hold_and_no_payment_makes_an_order_of_it(api: Api) {
    api.product("released", 5, json!({"max_per_customer": 2})).await;
    api.product("released-late", 2, json!({"hold_seconds": 10})).await;
    let overdue = api.reserve("bob", "released", &[("released-late", 1)]).await;
    let expired = api.reserve("carol", "released", &[("released-late", 1)]).await;
    let id = api.reserve("alice", "released", &[("released", 2)]).await.id();
    let path = format!("/admin/reservations/{id}/release");
    let why = json!({"reason": "event called off"});
    for who in [Who::Customer("alice"), SHOP] {
        api.post(&path, who, why.clone()).await.is(403, "forbidden");
    }
    for reason in ["", " ", "\n"] {
        assert_eq!(api.release(&id, reason).await.is(400, "invalid_request").body["field"], "reason");
    }
    let unknown = format!("rsv_{}", "a".repeat(52));
    api.release(&unknown, "event called off").await.is(404, "reservation_not_found");

    let released = api.release(&id, "event called off").await;
    let shown = &released.is(200, "").body;
    assert_eq!((&shown["status"], &shown["customer_id"]), (&json!("cancelled"), &json!("alice")));
    assert_eq!((&shown["cancel_reason"], &shown["restocked"]), (&json!("event called off"), &json!(true)));
    // The first reason stays.
    let again = api.release(&id, "another reason").await;
    for member in ["status", "cancelled_at", "cancel_reason"] {
        assert_eq!(again.is(200, "").body[member], shown[member], "{member}");
    }
    let book = api.book("released").await;
    assert_eq!((book.available, book.held), (5, 0));
    // The limit is free again.
    let second = api.reserve("alice", "released-2", &[("released", 2)]).await.id();
    let gone = api.reserve("alice", "released", &[("released", 2)]).await;
    assert_eq!(gone.is(409, "hold_ended").body["reservation"]["cancel_reason"], "event called off");
    // It was never an order, and nothing makes it one.
    api.get(&format!("/orders/{id}"), Who::Customer("alice")).await.is(404, "reservation_not_found");
    api.confirm("alice", &id, None).await.is(409, "reservation_cancelled");
    api.confirm("alice", &id, Some("pay_released")).await.is(409, "refund_required");
    api.change("alice", &id, &[("released", 1)]).await.is(409, "reservation_cancelled");
    let extend = json!({"hold_seconds": 600});
    api.post(&format!("/reservations/{id}/extend"), Who::Customer("alice"), extend)
        .await
        .is(409, "reservation_cancelled");
    assert_eq!(api.cancel("alice", &id).await.is(200, "").body["status"], "cancelled");
    let owed = api.owed("pay_released").await;
    assert_eq!((owed.len(), &owed[0]["reason"], &owed[0]["state"]), (1, &json!("refund_required"), &json!("open")));
    // An order is given back instead.
    api.confirm("alice", &second, Some("pay_order")).await.is(200, "");
    let order = api.release(&second, "event called off").await;
    assert_eq!(order.is(409, "already_confirmed").body["refund_required"], false);
    let book = api.book("released").await;
    assert_eq!((book.available, book.held, book.sold), (3, 0, 2));

    // A hold whose time is over, released or not: without this, a late payment would be accepted.
    api.until_overdue(&expired).await;
    let read = api.get(&format!("/reservations/{}", expired.id()), Who::Customer("carol")).await;
    assert_eq!(read.is(200, "").body["status"], "expired");
    for (who, ended) in [("bob", overdue), ("carol", expired)] {
        let closed = api.release(&ended.id(), "event called off").await;
        assert_eq!(closed.is(200, "").body["status"], "cancelled", "{closed:?}");
        api.confirm(who, &ended.id(), Some("pay_late")).await.is(409, "refund_required");
    }
    let book = api.book("released-late").await;
    assert_eq!((book.available, book.held, book.sold), (2, 0, 0));
}

pub(crate) async fn an_admin_releases_all_holds_of_a_product(api: Api) {
    api.product("called-off", 20, json!({})).await;
    api.product("beside", 20, json!({})).await;
    let mixed = api.reserve("alice", "called-off", &[("called-off", 2), ("beside", 1)]).await.id();
    let bobs = api.reserve("bob", "called-off", &[("called-off", 3)]).await.id();
    let order = api.reserve("carol", "called-off", &[("called-off", 1)]).await.id();
    api.confirm("carol", &order, Some("pay_called_off")).await.is(200, "");
    let other = api.reserve("dave", "called-off", &[("beside", 2)]).await.id();
    let cancelled = api.reserve("erin", "called-off", &[("called-off", 4)]).await.id();
    api.cancel("erin", &cancelled).await.is(200, "");

    let path = "/admin/products/called-off/release-holds";
    for who in [Who::Customer("alice"), SHOP] {
        api.post(path, who, json!({"reason": "event called off"})).await.is(403, "forbidden");
    }
    assert_eq!(api.release_holds("called-off", "").await.is(400, "invalid_request").body["field"], "reason");
    api.release_holds("no-such-product", "event called off").await.is(404, "product_not_found");
    // Nobody holds more of it meanwhile.
    api.patch("called-off", 1, json!({"status": "archived"})).await.is(200, "");
    for (holds, units) in [(2, 6), (0, 0)] {
        let released = api.release_holds("called-off", "event called off").await;
        let expected = json!({"released_holds": holds, "released_units": units, "complete": true});
        assert_eq!(released.is(200, "").body, expected);
    }
    for (who, id) in [("alice", &mixed), ("bob", &bobs)] {
        let ended = api.get(&format!("/reservations/{id}"), Who::Customer(who)).await;
        assert_eq!(ended.is(200, "").body["status"], "cancelled");
        assert_eq!(
            (&ended.body["cancel_reason"], &ended.body["restocked"]),
            (&json!("event called off"), &json!(true))
        );
        let payment = format!("pay_{who}_called_off");
        api.confirm(who, id, Some(&payment)).await.is(409, "refund_required");
        assert_eq!(api.owed(&payment).await[0]["state"], "open");
    }
    for (id, status) in [(&order, "confirmed"), (&other, "held"), (&cancelled, "cancelled")] {
        let kept = api.get(&format!("/admin/reservations/{id}"), Who::Admin).await;
        assert_eq!((&kept.is(200, "").body["status"], &kept.body["cancel_reason"]), (&json!(status), &Value::Null));
    }
    let (off, beside) = (api.book("called-off").await, api.book("beside").await);
    assert_eq!((off.available, off.held, off.sold), (19, 0, 1));
    assert_eq!((beside.available, beside.held), (18, 2));
}

pub(crate) async fn a_basket_is_changed_while_it_is_held(api: Api) {
    api.product("changed-a", 10, json!({})).await;
    api.product("changed-b", 10, json!({"price_minor": 1_000})).await;
    api.product("changed-last", 1, json!({})).await;
    api.product("changed-limited", 10, json!({"max_per_customer": 2})).await;
    api.product("changed-usd", 10, json!({"currency": "USD"})).await;
    let held = api.reserve("alice", "changed", &[("changed-a", 2)]).await;
    let id = held.id();
    let books = async || {
        let (a, b) = (api.book("changed-a").await, api.book("changed-b").await);
        [(a.available, a.held), (b.available, b.held)]
    };
    // More, fewer, one product more, another product.
    for (wanted, total, expected) in [
        (&[("changed-a", 4)][..], 10_000, [(6, 4), (10, 0)]),
        (&[("changed-a", 1)], 2_500, [(9, 1), (10, 0)]),
        (&[("changed-b", 2), ("changed-a", 1)], 4_500, [(9, 1), (8, 2)]),
        (&[("changed-b", 1), ("changed-b", 2)], 3_000, [(10, 0), (7, 3)]),
    ] {
        let changed = api.change("alice", &id, wanted).await;
        assert_eq!(changed.is(200, "").body["total_price_minor"], total);
        for same in ["reservation_id", "status", "created_at", "expires_at"] {
            assert_eq!(changed.body[same], held.body[same], "{same}");
        }
        assert_eq!(books().await, expected, "{wanted:?}");
        // Once more: nothing changes.
        let again = api.change("alice", &id, wanted).await;
        assert_eq!(again.is(200, "").body["lines"], changed.body["lines"]);
        assert_eq!(books().await, expected, "{wanted:?}");
    }

    // What cannot be had changes nothing.
    let before = api.get(&format!("/reservations/{id}"), Who::Customer("alice")).await;
    let short = api.change("alice", &id, &[("changed-b", 1), ("changed-last", 2)]).await;
    let last = json!([{"product_id": "changed-last", "requested": 2, "available": 1}]);
    assert_eq!(short.is(409, "insufficient_stock").body["lines"], last);
    let limited = api.change("alice", &id, &[("changed-limited", 3)]).await;
    assert_eq!(limited.is(409, "customer_limit_reached").body["max_per_customer"], 2);
    for (wanted, status, code) in [
        (&[("no-such-product", 1)][..], 404, "product_not_found"),
        (&[("changed-a", 1), ("changed-usd", 1)], 422, "currency_mismatch"),
        (&[("changed-usd", 1)], 422, "currency_mismatch"),
        (&[("changed-b", 0)], 422, "invalid_quantity"),
        (&[], 400, "invalid_request"),
    ] {
        api.change("alice", &id, wanted).await.is(status, code);
    }
    let path = format!("/reservations/{id}/lines");
    let one = |product: &str| json!({"lines": [{"product_id": product, "quantity": 1}]});
    api.put(&path, Who::Customer("mallory"), one("changed-a")).await.is(404, "reservation_not_found");
    api.put(&path, SHOP, one("changed-a")).await.is(400, "invalid_request");
    let after = api.get(&format!("/reservations/{id}"), Who::Customer("alice")).await;
    assert_eq!((&after.body["lines"], lines(&after)), (&before.body["lines"], vec![("changed-b", 3)]));
    assert_eq!(books().await, [(10, 0), (7, 3)]);

    // The limit follows the lines.
    let service = json!({"lines": [{"product_id": "changed-limited", "quantity": 2}], "customer_id": "alice"});
    assert_eq!(lines(api.put(&path, SHOP, service).await.is(200, "")), [("changed-limited", 2)]);
    api.reserve("alice", "changed-limit", &[("changed-limited", 1)]).await.is(409, "customer_limit_reached");
    api.change("alice", &id, &[("changed-b", 3)]).await.is(200, "");
    api.reserve("alice", "changed-limit", &[("changed-limited", 2)]).await.is(201, "");

    // A line that shrinks keeps its price, also while the product is paused. One that grows gets today's, for all units.
    api.patch("changed-b", 1, json!({"price_minor": 1_200, "status": "paused"})).await.is(200, "");
    let fewer = api.change("alice", &id, &[("changed-b", 1)]).await;
    assert_eq!(fewer.is(200, "").body["total_price_minor"], 1_000);
    api.change("alice", &id, &[("changed-b", 2)]).await.is(409, "product_not_on_sale");
    api.patch("changed-b", 2, json!({"status": "on_sale"})).await.is(200, "");
    let seen = async |price: u64| {
        let body = json!({"lines": [{"product_id": "changed-b", "quantity": 2, "unit_price_minor": price}]});
        // An environment may refuse for what it knew a second ago, and no longer.
        let started = tokio::time::Instant::now();
        loop {
            let answer = api.put(&path, Who::Customer("alice"), body.clone()).await;
            if answer.code() != "product_not_on_sale" || started.elapsed().as_secs() >= 5 {
                return answer;
            }
        }
    };
    let told = json!([{"product_id": "changed-b", "unit_price_minor": 1_200}]);
    assert_eq!(seen(1_000).await.is(409, "price_changed").body["lines"], told);
    assert_eq!(seen(1_200).await.is(200, "").body["total_price_minor"], 2_400);
    assert_eq!(books().await, [(10, 0), (8, 2)]);

    // The key is that of the first request, and shows what the hold has become.
    let replayed = api.reserve("alice", "changed", &[("changed-a", 2)]).await;
    assert_eq!((replayed.is(201, "").id(), lines(&replayed)), (id.clone(), vec![("changed-b", 2)]));
    assert_eq!(replayed.headers["idempotent-replayed"], "true");
    let order = api.confirm("alice", &id, Some("pay_changed")).await;
    assert_eq!((&order.is(200, "").body["total_price_minor"], lines(&order)), (&json!(2_400), vec![("changed-b", 2)]));
    api.change("alice", &id, &[("changed-b", 1)]).await.is(409, "already_confirmed");
    let book = api.book("changed-b").await;
    assert_eq!((book.available, book.held, book.sold), (8, 0, 2));
}

pub(crate) async fn a_guests_hold_is_handed_to_their_account(api: Api) {
    api.product("handed", 10, json!({"max_per_customer": 2})).await;
    let reserve = async |customer: &str, key: &str, quantity: u32| {
        let body = json!({"lines": [{"product_id": "handed", "quantity": quantity}], "customer_id": customer});
        api.raw(Method::POST, "/reservations", SHOP, &[("idempotency-key", key)], Some(body.to_string())).await
    };
    let held = reserve("guest:handed", "handed", 2).await;
    let id = held.is(201, "").id();
    let path = format!("/reservations/{id}/transfer");
    let pair = |from: &str, to: &str| json!({"customer_id": from, "to_customer_id": to});
    let transfer = async |from: &str, to: &str| api.post(&path, SHOP, pair(from, to)).await;
    for who in [Who::Customer("hana"), Who::Admin] {
        api.post(&path, who, pair("guest:handed", "hana")).await.is(403, "forbidden");
    }
    let nobody = transfer("guest:handed", "guest:handed").await;
    assert_eq!(nobody.is(400, "invalid_request").body["field"], "to_customer_id");
    transfer("guest:another", "hana").await.is(404, "reservation_not_found");

    // She has one already: three would be too many.
    let hers = reserve("hana", "handed", 1).await;
    let refused = transfer("guest:handed", "hana").await;
    assert_eq!(refused.is(409, "customer_limit_reached").body["max_per_customer"], 2);
    api.cancel("hana", &hers.is(201, "").id()).await.is(200, "");
    for _ in 0..2 {
        let handed = transfer("guest:handed", "hana").await;
        for same in ["reservation_id", "status", "lines", "created_at", "expires_at", "total_price_minor"] {
            assert_eq!(handed.is(200, "").body[same], held.body[same], "{same}");
        }
        let book = api.book("handed").await;
        assert_eq!((book.available, book.held), (8, 2));
    }
    // It is hers alone; the key stays with the hold.
    let reservation = format!("/reservations/{id}");
    api.get(&reservation, Who::Customer("hana")).await.is(200, "");
    api.get(&format!("{reservation}?customer_id=guest:handed"), SHOP).await.is(404, "reservation_not_found");
    transfer("guest:handed", "another").await.is(404, "reservation_not_found");
    let of_guest = api.get("/reservations?customer_id=guest:handed", SHOP).await;
    assert_eq!(of_guest.is(200, "").body["items"], json!([]));
    let of_hana = api.get("/reservations?status=held", Who::Customer("hana")).await;
    assert_eq!(of_hana.is(200, "").body["items"][0]["reservation_id"], id.as_str());
    reserve("guest:handed", "handed", 2).await.is(409, "hold_transferred");
    reserve("guest:handed", "handed", 1).await.is(422, "idempotency_key_reused");
    // The limits follow: hers is used up, the guest's is free.
    reserve("hana", "handed-2", 1).await.is(409, "customer_limit_reached");
    let next = reserve("guest:handed", "handed-2", 2).await.is(201, "").id();
    let extended =
        api.post(&format!("{reservation}/extend"), Who::Customer("hana"), json!({"hold_seconds": 900})).await;
    extended.is(200, "");
    assert_eq!(lines(&api.change("hana", &id, &[("handed", 1)]).await), [("handed", 1)]);

    // The payment was begun before the login.
    let order = api.confirm("guest:handed", &id, Some("pay_handed")).await;
    assert_eq!(order.is(200, "").body["status"], "confirmed");
    api.confirm("hana", &id, Some("pay_handed")).await.is(200, "");
    api.confirm("another", &id, Some("pay_another")).await.is(404, "reservation_not_found");
    api.get(&format!("/orders/{id}"), Who::Customer("hana")).await.is(200, "");
    api.get(&format!("/orders/{id}?customer_id=guest:handed"), SHOP).await.is(404, "reservation_not_found");
    let path = format!("/reservations/{id}/transfer");
    api.post(&path, SHOP, pair("hana", "another")).await.is(409, "already_confirmed");
    api.release(&next, "event called off").await.is(200, "");
    let path = format!("/reservations/{next}/transfer");
    api.post(&path, SHOP, pair("guest:handed", "hana")).await.is(409, "reservation_cancelled");
    let book = api.book("handed").await;
    assert_eq!((book.available, book.held, book.sold), (9, 0, 1));
}
