//! Invalid input gets the documented problem and changes nothing.

use data_encoding::BASE64URL_NOPAD;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Api, Who};

/// A request, and the expected problem.
struct Case {
    what: &'static str,
    method: Method,
    path: String,
    who: Who<'static>,
    key: Option<String>,
    body: Option<String>,
    status: u16,
    code: &'static str,
}

fn case(
    what: &'static str,
    method: Method,
    path: &str,
    who: Who<'static>,
    body: Value,
    problem: (u16, &'static str),
) -> Case {
    let (status, code) = problem;
    let body = if body.is_null() { None } else { Some(body.to_string()) };
    Case { what, method, path: path.to_owned(), who, key: Some("bad-input".to_owned()), body, status, code }
}

pub(crate) async fn every_field_at_its_limits_and_past_them(api: Api) {
    const ALICE: Who<'static> = Who::Customer("alice");
    const SHOP: Who<'static> = Who::Service("shop");
    const INVALID: (u16, &str) = (400, "invalid_request");
    api.product("input", 10, json!({"max_per_customer": 3})).await;
    api.product("input-usd", 10, json!({"currency": "USD"})).await;
    api.product("input-paused", 10, json!({"status": "paused"})).await;
    api.product("input-early", 10, json!({"sale_starts_at": "2999-01-01T00:00:00Z"})).await;
    api.product("input-over", 10, json!({"sale_ends_at": "2001-01-01T00:00:00Z"})).await;
    let unknown = format!("rsv_{}", "a".repeat(52));

    let mut cases = Vec::new();
    let line = |id: &str, quantity: Value| json!({"lines": [{"product_id": id, "quantity": quantity}]});
    let one = line("input", json!(1));
    let mut reserve =
        |what, body: Value, problem| cases.push(case(what, Method::POST, "/reservations", ALICE, body, problem));
    reserve("no lines", json!({"lines": []}), INVALID);
    reserve("no body", Value::Null, INVALID);
    reserve("an array", json!([]), INVALID);
    reserve("an array of the fields", json!([[{"product_id": "input", "quantity": 1}]]), INVALID);
    reserve("a line as an array of its fields", json!({"lines": [["input", 1]]}), INVALID);
    reserve("lines of another type", json!({"lines": "input"}), INVALID);
    reserve("a quantity of another type", line("input", json!("1")), INVALID);
    reserve("a quantity of null", line("input", Value::Null), INVALID);
    reserve("an unknown field", json!({"lines": [{"product_id": "input", "quantity": 1}], "price_minor": 0}), INVALID);
    reserve(
        "an unknown field in a line",
        json!({"lines": [{"product_id": "input", "quantity": 1, "price_minor": 1}]}),
        INVALID,
    );
    reserve("a missing quantity", json!({"lines": [{"product_id": "input"}]}), INVALID);
    reserve("a malformed product id", line("in put", json!(1)), INVALID);
    reserve("an over-long product id", line(&"a".repeat(65), json!(1)), INVALID);
    reserve("21 lines", json!({"lines": vec![json!({"product_id": "input", "quantity": 1}); 21]}), INVALID);
    reserve(
        "duplicates that exceed together",
        json!({"lines": vec![json!({"product_id": "input", "quantity": 1_000}); 2]}),
        (422, "invalid_quantity"),
    );
    reserve("an unknown product", line("no-such", json!(1)), (404, "product_not_found"));
    reserve(
        "two currencies",
        json!({"lines": [{"product_id": "input", "quantity": 1}, {"product_id": "input-usd", "quantity": 1}]}),
        (422, "currency_mismatch"),
    );
    reserve("a paused product", line("input-paused", json!(1)), (409, "product_not_on_sale"));
    reserve("a sale that is to come", line("input-early", json!(1)), (409, "sale_not_open"));
    reserve("a sale that is over", line("input-over", json!(1)), (409, "sale_not_open"));
    reserve("more than the limit", line("input", json!(4)), (409, "customer_limit_reached"));
    for (what, key, code) in [
        ("no key", None, "idempotency_key_missing"),
        ("an empty key", Some(String::new()), "idempotency_key_invalid"),
        ("an over-long key", Some("k".repeat(256)), "idempotency_key_invalid"),
        ("a key with a blank at its end", Some("\"k \"".to_owned()), "idempotency_key_invalid"),
    ] {
        cases.push(Case { key, ..case(what, Method::POST, "/reservations", ALICE, one.clone(), (400, code)) });
    }
    for (what, body, problem) in [
        ("not JSON", "{\"lines\":".to_owned(), INVALID),
        ("nothing but a NUL", "\u{0}".to_owned(), INVALID),
        ("a number past any range", r#"{"lines":[{"product_id":"input","quantity":1e999}]}"#.to_owned(), INVALID),
        (
            "64 KB and a byte",
            format!("{{\"lines\":[],\"x\":\"{}\"}}", "x".repeat(65_536 - 18)),
            (413, "payload_too_large"),
        ),
        ("a megabyte", "x".repeat(1_000_000), (413, "payload_too_large")),
    ] {
        cases.push(Case { body: Some(body), ..case(what, Method::POST, "/reservations", ALICE, Value::Null, problem) });
    }

    for id in ["x", "rsv_x", "..%2f..", &unknown, &unknown.to_uppercase(), "%00", &"a".repeat(2_000)] {
        let missing = (404, "reservation_not_found");
        cases.push(case(
            "get a reservation that is not there",
            Method::GET,
            &format!("/reservations/{id}"),
            ALICE,
            Value::Null,
            missing,
        ));
        cases.push(case("cancel it", Method::DELETE, &format!("/reservations/{id}"), ALICE, Value::Null, missing));
        cases.push(case(
            "confirm it",
            Method::POST,
            &format!("/reservations/{id}/confirm"),
            SHOP,
            json!({"payment_reference": "p", "customer_id": "alice"}),
            // A payment is recorded for an id only if a reservation can have it.
            if id == unknown { missing } else { INVALID },
        ));
        cases.push(case(
            "extend it",
            Method::POST,
            &format!("/reservations/{id}/extend"),
            ALICE,
            json!({"hold_seconds": 60}),
            missing,
        ));
        cases.push(case(
            "change its lines",
            Method::PUT,
            &format!("/reservations/{id}/lines"),
            ALICE,
            one.clone(),
            missing,
        ));
        cases.push(case(
            "hand it to another",
            Method::POST,
            &format!("/reservations/{id}/transfer"),
            SHOP,
            json!({"customer_id": "alice", "to_customer_id": "bob"}),
            missing,
        ));
        cases.push(case(
            "release it",
            Method::POST,
            &format!("/admin/reservations/{id}/release"),
            Who::Admin,
            json!({"reason": "x"}),
            missing,
        ));
    }
    for body in [
        json!({}),
        json!({"lines": []}),
        json!({"lines": [["input", 1]]}),
        json!({"lines": vec![json!({"product_id": "input", "quantity": 1}); 21]}),
        json!({"lines": [{"product_id": "input", "quantity": 1, "price_minor": 1}]}),
        json!({"lines": [{"product_id": "input", "quantity": 1, "unit_price_minor": -1}]}),
        json!({"lines": [{"product_id": "input", "quantity": 1}], "hold_seconds": 60}),
    ] {
        let lines = format!("/reservations/{unknown}/lines");
        cases.push(case("lines that cannot be", Method::PUT, &lines, ALICE, body, INVALID));
    }
    for body in [
        json!({"customer_id": "alice"}),
        json!({"to_customer_id": "bob"}),
        json!({"customer_id": "alice", "to_customer_id": ""}),
        json!({"customer_id": "alice", "to_customer_id": "bob "}),
        json!({"customer_id": "alice", "to_customer_id": "alice"}),
        json!({"customer_id": "alice", "to_customer_id": "bob", "reason": "login"}),
    ] {
        let transfer = format!("/reservations/{unknown}/transfer");
        cases.push(case("a transfer that cannot be", Method::POST, &transfer, SHOP, body, INVALID));
    }
    for path in [format!("/admin/reservations/{unknown}/release"), "/admin/products/input/release-holds".to_owned()] {
        for body in [json!({}), json!({"reason": "\u{200b}"}), json!({"reason": "x".repeat(201)}), json!({"why": "x"})]
        {
            cases.push(case("a release without a reason", Method::POST, &path, Who::Admin, body, INVALID));
        }
    }
    for id in ["no-such", "a%20b"] {
        let path = format!("/admin/products/{id}/release-holds");
        let missing = (404, "product_not_found");
        cases.push(case("release a product", Method::POST, &path, Who::Admin, json!({"reason": "x"}), missing));
    }
    let confirm = format!("/reservations/{unknown}/confirm");
    for mut body in [
        json!({"payment_reference": ""}),
        json!({"payment_reference": "x".repeat(256)}),
        json!({"payment_reference": 1}),
        json!({"payment_reference": "é"}),
        json!({"payment_reference": "pay_1 "}),
        json!({"payment_reference": " pay_1"}),
        json!({"payment_reference": " "}),
        json!({"paid": true}),
    ] {
        body["customer_id"] = "alice".into();
        cases.push(case("an invalid payment reference", Method::POST, &confirm, SHOP, body, INVALID));
    }
    for seconds in [json!(9), json!(3_601), json!(-1), json!(10.5), json!("60"), json!(1e18), Value::Null] {
        let extend = format!("/reservations/{unknown}/extend");
        cases.push(case(
            "an invalid extension",
            Method::POST,
            &extend,
            ALICE,
            json!({"hold_seconds": seconds}),
            INVALID,
        ));
    }
    for query in ["limit=0", "limit=101", "limit=x", "limit=-1", "status=sold", "cursor=%21", "cursor=e30", "page=2"] {
        cases.push(case(
            "a list that cannot be",
            Method::GET,
            &format!("/reservations?{query}"),
            ALICE,
            Value::Null,
            INVALID,
        ));
    }
    for query in ["limit=0", "limit=101", "cursor=x"] {
        for path in [
            "/products",
            "/orders",
            "/admin/products",
            "/admin/reservations",
            "/admin/failed-confirmations",
            "/admin/products/input/ledger",
        ] {
            cases.push(case(
                "a list that cannot be",
                Method::GET,
                &format!("{path}?{query}"),
                Who::Admin,
                Value::Null,
                INVALID,
            ));
        }
    }
    for query in [
        "payment_reference=",
        "payment_reference=pay_1%20",
        "customer_id=",
        "status=sold",
        "product_id=a%20b",
        "from=2026-01-01",
        "to=1763700000000",
        "since=2026-01-01T00:00:00Z",
    ] {
        let path = format!("/admin/reservations?{query}");
        cases.push(case("a search that cannot be", Method::GET, &path, Who::Admin, Value::Null, INVALID));
    }
    // Cursors that could be, but of another list, of another type or too long for a key.
    let cursor = |key: Value| BASE64URL_NOPAD.encode(key.to_string().as_bytes());
    let longest = format!("SPRODUCT#{}", "a".repeat(1_024));
    for (path, key) in [
        ("/products", json!({"pk": "SFAILED", "sk": "Sfc_x"})),
        ("/products", json!({"pk": "SCATALOG", "sk": "SOTHER"})),
        ("/products", json!({"pk": "SCATALOG", "sk": "N5"})),
        ("/products", json!({"pk": "SCATALOG", "sk": longest})),
        ("/admin/products", json!({"pk": "SLEDGER#input", "sk": "S01M7YEVF14SFM3QJ869M98QS76"})),
        ("/admin/products/input/ledger", json!({"pk": "SCATALOG", "sk": "SPRODUCT#input"})),
        ("/admin/failed-confirmations", json!({"pk": "SCATALOG", "sk": "SPRODUCT#input"})),
        ("/admin/reservations", json!({"pk": "N1", "sk": "SHOLD"})),
        ("/admin/reservations", json!({"created_at": "N1", "pk": "SCATALOG"})),
        ("/admin/reservations", json!({"created_at": "S1", "pk": "SHOLD#x"})),
        ("/orders", json!({"created_at": "N1", "pk": "SCATALOG"})),
        ("/orders", json!({"customer": "Salice", "created_at": "N1", "pk": "SHOLD#x", "sk": "SHOLD"})),
        ("/orders", json!({"customer": "Sroot", "created_at": "S1", "pk": "SHOLD#x", "sk": "SHOLD"})),
        ("/orders", json!({"customer": "Sroot", "created_at": "N1", "pk": "SCATALOG", "sk": "SHOLD"})),
    ] {
        let path = format!("{path}?cursor={}", cursor(key));
        cases.push(case("a cursor of another list", Method::GET, &path, Who::Admin, Value::Null, INVALID));
    }
    let product = |change: Value| {
        let mut body =
            json!({"product_id": "input-new", "name": "New", "price_minor": 1, "currency": "EUR", "total": 1});
        body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        body
    };
    for change in [
        json!({"product_id": ""}),
        json!({"product_id": "a b"}),
        json!({"product_id": "a".repeat(65)}),
        json!({"name": ""}),
        json!({"name": "   "}),
        json!({"name": "\u{a0}\u{3000}"}),
        json!({"name": "\u{200b}"}),
        json!({"name": "a\nb"}),
        json!({"name": "n".repeat(201)}),
        json!({"price_minor": -1}),
        json!({"price_minor": 0.5}),
        json!({"price_minor": 100_000_000_001_u64}),
        json!({"currency": "eur"}),
        json!({"currency": "EURO"}),
        json!({"currency": "XYZ"}),
        json!({"currency": "XAU"}),
        json!({"currency": "XXX"}),
        json!({"currency": "HRK"}),
        json!({"late_payment_seconds": -1}),
        json!({"late_payment_seconds": 2_592_001}),
        json!({"total": -1}),
        json!({"total": 1_000_000_001}),
        json!({"shards": 0}),
        json!({"shards": 65}),
        json!({"hold_seconds": 9}),
        json!({"hold_seconds": 3_601}),
        json!({"max_per_customer": 0}),
        json!({"status": "gone"}),
        json!({"sale_starts_at": "tomorrow"}),
        // The year 10000 in UTC, which no answer could show.
        json!({"sale_ends_at": "9999-12-31T23:59:59-01:00"}),
        json!({"sale_starts_at": "2030-01-02T00:00:00Z", "sale_ends_at": "2030-01-01T00:00:00Z"}),
        json!({"version": 7}),
    ] {
        cases.push(case(
            "a product that cannot be",
            Method::POST,
            "/admin/products",
            Who::Admin,
            product(change),
            INVALID,
        ));
    }
    let no_currency = api.post("/admin/products", Who::Admin, product(json!({"currency": "XYZ"}))).await;
    assert_eq!(no_currency.is(400, "invalid_request").body["field"], "currency");
    let line = json!({"lines": [{"product_id": "input", "quantity": 1}, {"product_id": "input"}]}).to_string();
    let key = ("idempotency-key", "bad-input");
    let no_quantity = api.raw(Method::POST, "/reservations", ALICE, &[key], Some(line.clone())).await;
    no_quantity.is(400, "invalid_request");
    assert_eq!(no_quantity.body["detail"], "lines[1].quantity: is required");
    let compressed = [key, ("content-encoding", "gzip")];
    let compressed = api.raw(Method::POST, "/reservations", ALICE, &compressed, Some(line)).await;
    assert_eq!(compressed.is(415, "unsupported_content_encoding").headers["accept-encoding"], "identity");
    cases.push(case(
        "a product that exists",
        Method::POST,
        "/admin/products",
        Who::Admin,
        product(json!({"product_id": "input"})),
        (409, "product_exists"),
    ));
    let mut patch =
        |what, path: &str, body: Value, problem| cases.push(case(what, Method::PATCH, path, Who::Admin, body, problem));
    patch("a change without a version", "/admin/products/input", json!({"price_minor": 1}), INVALID);
    patch(
        "a change on another version",
        "/admin/products/input",
        json!({"version": 2, "price_minor": 1}),
        (409, "version_mismatch"),
    );
    patch("a change of the total", "/admin/products/input", json!({"version": 1, "total": 1}), INVALID);
    patch("a change past a limit", "/admin/products/input", json!({"version": 1, "name": ""}), INVALID);
    patch(
        "a change of nothing that is there",
        "/admin/products/no-such",
        json!({"version": 1}),
        (404, "product_not_found"),
    );
    patch("a malformed id", "/admin/products/a%20b", json!({"version": 1}), (404, "product_not_found"));
    let mut adjust = |what, body: Value, problem| {
        cases.push(case(what, Method::POST, "/admin/products/input/stock", Who::Admin, body, problem));
    };
    adjust("no reason", json!({"delta": 1}), INVALID);
    adjust("an empty reason", json!({"delta": 1, "reason": ""}), INVALID);
    adjust("a reason of blanks", json!({"delta": 1, "reason": "  "}), INVALID);
    adjust("a reference that nobody sees", json!({"delta": 1, "reason": "x", "reference": "\u{2060}"}), INVALID);
    adjust("nothing to adjust", json!({"delta": 0, "reason": "x"}), INVALID);
    adjust("a fraction", json!({"delta": 0.5, "reason": "x"}), INVALID);
    adjust("a huge delta", json!({"delta": 1e300, "reason": "x"}), INVALID);
    adjust("past the highest total", json!({"delta": 1_000_000_000, "reason": "x"}), INVALID);
    adjust("more than there is", json!({"delta": -11, "reason": "x"}), (409, "insufficient_stock"));
    adjust(
        "another total than expected",
        json!({"delta": 1, "reason": "x", "expected_total": 11}),
        (409, "version_mismatch"),
    );
    cases.push(Case {
        key: None,
        ..case(
            "no key",
            Method::POST,
            "/admin/products/input/stock",
            Who::Admin,
            json!({"delta": 1, "reason": "x"}),
            (400, "idempotency_key_missing"),
        )
    });
    for id in ["x", "fc_x", &format!("fc_{}", "a".repeat(52))] {
        let missing = (404, "failed_confirmation_not_found");
        cases.push(case(
            "retry what is not there",
            Method::POST,
            &format!("/admin/failed-confirmations/{id}/retry"),
            Who::Admin,
            json!({}),
            missing,
        ));
        cases.push(case(
            "resolve what is not there",
            Method::POST,
            &format!("/admin/failed-confirmations/{id}/resolve"),
            Who::Admin,
            json!({"note": "x"}),
            missing,
        ));
    }
    cases.push(case(
        "a product that is not there",
        Method::GET,
        "/products/no-such",
        Who::Nobody,
        Value::Null,
        (404, "product_not_found"),
    ));
    cases.push(case(
        "a malformed product id",
        Method::GET,
        "/products/a%20b",
        Who::Nobody,
        Value::Null,
        (404, "product_not_found"),
    ));

    for case in &cases {
        let key = case.key.as_deref().map(|key| ("idempotency-key", key));
        let answer = api.raw(case.method.clone(), &case.path, case.who, key.as_slice(), case.body.clone()).await;
        assert_eq!(
            (answer.status, answer.code()),
            (case.status, case.code),
            "{}: {} {:.200} {:.300?}\n{answer:#?}",
            case.what,
            case.method,
            case.path,
            case.body
        );
        answer.is(case.status, case.code);
    }
    for id in ["input", "input-usd", "input-paused", "input-early", "input-over"] {
        let book = api.book(id).await;
        assert_eq!((book.available, book.total), (10, 10), "{id}");
    }
    assert_eq!(api.get("/products/input", Who::Nobody).await.body["version"], 1);

    // And at the limits, all of it goes through.
    let longest = "k".repeat(255);
    api.reserve("alice", &longest, &[("input", 3)]).await.is(201, "");
    let reused = api.reserve("alice", &longest, &[("input", 2)]).await;
    reused.is(422, "idempotency_key_reused");
    api.product(
        &"i".repeat(64),
        1_000_000_000,
        json!({"name": "ü".repeat(200), "price_minor": 100_000_000_000_u64, "shards": 64, "hold_seconds": 3_600, "max_per_customer": 1_000}),
    )
    .await;
    let most = api.reserve("alice", "most", &[(&"i".repeat(64), 1_000)]).await;
    most.is(201, "");
    assert_eq!(most.body["total_price_minor"], 100_000_000_000_000_u64);
}

pub(crate) async fn events_with_missing_fields(api: Api) {
    api.product("events", 5, json!({})).await;
    api.reserve("alice", "events", &[("events", 2)]).await.is(201, "");
    // `expire` looks at the clock, not at the event.
    for event in [
        json!({}),
        json!([]),
        json!("x"),
        json!(null),
        json!({"kind": "slot"}),
        json!({"kind": "other"}),
        json!({"slot": "x"}),
    ] {
        let released = api.stack.invoke("expire", &event).await;
        assert!(released.is_ok(), "{event}: {released:?}");
    }
    // `confirm` sends unreadable messages to the dead-letter queue, except an empty one, which no queue accepts: it reports
    // that one as failed. A failed message without an id fails the batch.
    let record =
        |id: &str, body: &str| json!({"messageId": id, "receiptHandle": "r", "body": body, "eventSource": "aws:sqs"});
    let bad = ["", "{}", "null", "[]", "not json", r#"{"reservation_id":"x","customer":"a","requested_at_ms":0}"#];
    let records: Vec<_> = bad.iter().enumerate().map(|(n, body)| record(&format!("m{n}"), body)).collect();
    let answer = api.stack.invoke("confirm", &json!({ "Records": records })).await.unwrap();
    assert_eq!(answer["batchItemFailures"], json!([{"itemIdentifier": "m0"}]), "{answer}");
    let (mut kept, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = api.get(&format!("/admin/failed-confirmations?state=open{cursor}"), Who::Admin).await;
        page.is(200, "");
        kept.extend(page.body["items"].as_array().unwrap().clone());
        let Some(next) = page.body["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    for body in &bad[1..] {
        let found = kept.iter().find(|failed| failed["unreadable_message"] == *body);
        assert_eq!(found.map(|failed| &failed["reason"]), Some(&json!("unreadable")), "{body}: {kept:#?}");
    }
    assert!(api.stack.invoke("confirm", &json!({"Records": [{"body": ""}]})).await.is_err());
    assert!(api.stack.invoke("confirm", &json!({"Records": "x"})).await.is_err());
    let empty = api.stack.invoke("confirm", &json!({"Records": []})).await.unwrap();
    assert_eq!(empty["batchItemFailures"], json!([]));
    let book = api.book("events").await;
    assert_eq!((book.available, book.held), (3, 2));
    // After all this the functions still work.
    api.reserve("alice", "events", &[("events", 2)]).await.is(201, "");
}
