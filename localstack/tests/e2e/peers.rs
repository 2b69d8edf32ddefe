//! Known bugs of other reservation services, by number. Case 3 is in `crash`; cases 4 and 8 are in
//! `outages`, and with every kind of fault in the tests of the functions `confirm` and `reserve`.

use futures_util::future::{join, join_all};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, Who};
use crate::races::counts;

pub(crate) async fn peer_case_1_confirm_after_expiry_is_refused(api: Api) {
    api.product("peer-1", 1, json!({"hold_seconds": 10})).await;
    let held = api.reserve("alice", "k", &[("peer-1", 1)]).await;
    api.until_overdue(&held).await;
    // Whether it has been released or not.
    api.confirm("alice", &held.id(), None).await.is(410, "hold_expired");
    api.stack.invoke("expire", &json!({"kind": "sweep"})).await.unwrap();
    api.confirm("alice", &held.id(), None).await.is(410, "hold_expired");
    let book = api.book("peer-1").await;
    assert_eq!((book.available, book.sold), (1, 0));
    api.reserve("bob", "k", &[("peer-1", 1)]).await.is(201, "");
}

pub(crate) async fn peer_case_2_confirm_races_expiry(api: Api) {
    api.product("peer-2", 60, json!({"hold_seconds": 10, "shards": 2})).await;
    let callers: Vec<String> = (0..40).map(|n| format!("peer-2-{n}")).collect();
    let held = join_all(callers.iter().map(|caller| api.reserve(caller, "k", &[("peer-2", 1)]))).await;
    api.until_overdue(held.last().unwrap()).await;
    // Half of them pay, twice; half confirm without a payment; and expire runs, several times, beside them.
    let api = &api;
    let confirms = callers.iter().zip(&held).enumerate().flat_map(|(n, (caller, held))| {
        let payment = (n % 2 == 0).then_some("pay_1");
        let id = held.id();
        [id.clone(), id].map(|id| async move { api.confirm(caller, &id, payment).await })
    });
    let sweep = json!({"kind": "sweep"});
    let sweeps = join_all((0..6).map(|_| api.stack.invoke("expire", &sweep)));
    let (confirmed, swept) = join(join_all(confirms), sweeps).await;
    assert!(swept.iter().all(Result::is_ok), "{swept:?}");
    for (n, pair) in confirmed.chunks(2).enumerate() {
        for answer in pair {
            let expected = if n % 2 == 0 { (200, "") } else { (410, "hold_expired") };
            assert_eq!((answer.status, answer.code()), expected, "{answer:#?}");
        }
    }
    api.stack.invoke("expire", &sweep).await.unwrap();
    let book = api.book("peer-2").await;
    assert_eq!((book.available, book.held, book.sold), (40, 0, 20));
}

pub(crate) async fn peer_case_5_quantities_and_ids_cannot_be_abused(api: Api) {
    api.product("peer-5", 10, json!({})).await;
    let quantities =
        ["-50", "0", "0.5", "1.5", "1e3", "1001", "4294967296", "18446744073709551616", "-0", "-9223372036854775808"];
    for quantity in quantities {
        let body = format!(r#"{{"lines":[{{"product_id":"peer-5","quantity":{quantity}}}]}}"#);
        let key = [("idempotency-key", "peer-5")];
        let answer = api.raw(Method::POST, "/reservations", Who::Customer("alice"), &key, Some(body)).await;
        answer.is(422, "invalid_quantity");
    }
    assert_eq!(api.book("peer-5").await.available, 10);
    // A key that looks like another item's key is an ordinary key.
    let keys =
        ["peer-5", "STOCK#peer-5#0", "HOLD#x", "PRODUCT#peer-5", "LIMIT#peer-5#alice", "k#", "é".trim_matches('é')];
    for key in keys.iter().filter(|key| !key.is_empty()) {
        api.reserve("alice", key, &[("peer-5", 1)]).await.is(201, "");
    }
    let book = api.book("peer-5").await;
    assert_eq!((book.available, book.held), (4, 6));
}

pub(crate) async fn peer_case_6_anothers_key_or_id_gives_nothing(api: Api) {
    api.product("peer-6", 10, json!({})).await;
    let alices = api.reserve("alice", "shared-key", &[("peer-6", 1)]).await;
    let bobs = api.reserve("bob", "shared-key", &[("peer-6", 2)]).await;
    assert_ne!(alices.id(), bobs.id());
    assert!(!bobs.headers.contains_key("idempotent-replayed"));
    let id = alices.id();
    let mallory = Who::Customer("mallory");
    api.get(&format!("/reservations/{id}"), mallory).await.is(404, "reservation_not_found");
    api.get(&format!("/orders/{id}"), mallory).await.is(404, "reservation_not_found");
    api.confirm("mallory", &id, Some("pay_m")).await.is(404, "reservation_not_found");
    api.cancel("mallory", &id).await.is(404, "reservation_not_found");
    api.change("mallory", &id, &[("peer-6", 9)]).await.is(404, "reservation_not_found");
    let extend = json!({"hold_seconds": 60});
    api.post(&format!("/reservations/{id}/extend"), mallory, extend).await.is(404, "reservation_not_found");
    assert_eq!(api.get(&format!("/reservations/{id}"), Who::Customer("alice")).await.body["status"], "held");
    assert_eq!(api.book("peer-6").await.held, 3);
}

pub(crate) async fn peer_case_7_nobody_makes_themselves_admin(api: Api) {
    api.product("peer-7", 1, json!({})).await;
    let routes = [
        (Method::POST, "/admin/products"),
        (Method::GET, "/admin/products"),
        (Method::PATCH, "/admin/products/peer-7"),
        (Method::POST, "/admin/products/peer-7/stock"),
        (Method::GET, "/admin/products/peer-7/ledger"),
        (Method::GET, "/admin/products/peer-7/audit"),
        (Method::POST, "/admin/products/peer-7/release-holds"),
        (Method::GET, "/admin/reservations"),
        (Method::GET, "/admin/reservations/rsv_x"),
        (Method::POST, "/admin/reservations/rsv_x/release"),
        (Method::POST, "/admin/orders/rsv_x/cancel"),
        (Method::GET, "/admin/failed-confirmations"),
        (Method::POST, "/admin/failed-confirmations/redrive"),
        (Method::POST, "/admin/failed-confirmations/fc_x/retry"),
        (Method::POST, "/admin/failed-confirmations/fc_x/resolve"),
    ];
    // Signed with an unknown key, whatever its header says.
    let forged = "eyJhbGciOiJub25lIiwia2lkIjoibG9jYWwifQ.eyJzdWIiOiJtYWxsb3J5IiwiY29nbml0bzpncm91cHMiOlsiYWRtaW4iXX0.";
    for (method, path) in routes {
        let body = Some(r#"{"delta":1000000,"role":"admin"}"#.to_owned());
        for (who, status, code) in [
            (Who::Nobody, 401, "unauthenticated"),
            (Who::Token("x"), 401, "unauthenticated"),
            (Who::Token(forged), 401, "unauthenticated"),
            (Who::Customer("mallory"), 403, "forbidden"),
        ] {
            let headers = [("idempotency-key", "k"), ("x-amzn-request-context", r#"{"authorizer":{"jwt":{}}}"#)];
            api.raw(method.clone(), path, who, &headers, body.clone()).await.is(status, code);
        }
    }
    for path in ["/reservations", "/orders"] {
        let answer = api.get(path, Who::Nobody).await;
        answer.is(401, "unauthenticated");
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
    }
    assert_eq!(api.book("peer-7").await.total, 1);
}

pub(crate) async fn peer_case_9_contention_is_no_error_while_stock_remains(api: Api) {
    // One shard: everybody wants the same item at the same time, and there is enough for all.
    api.product("peer-9", 200, json!({"shards": 1})).await;
    let callers: Vec<String> = (0..200).map(|n| format!("peer-9-{n}")).collect();
    let answers = join_all(callers.iter().map(|caller| api.reserve(caller, "k", &[("peer-9", 1)]))).await;
    let counted: Vec<(u16, Value, usize)> =
        counts(&answers).into_iter().map(|((status, code), count)| (status, json!(code), count)).collect();
    assert_eq!(counted, [(201, json!(""), 200)]);
    assert_eq!(api.book("peer-9").await.held, 200);
}
