//! What integrators rely on: roles, tokens, limits, cacheable responses, and problems on every route.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use data_encoding::BASE64URL_NOPAD;
use futures_util::future::join_all;
use holdfast_http::{LOCAL_AUDIENCE, LOCAL_ISSUER};
use holdfast_local::openapi;
use holdfast_local::stack::{Options, Stack};
use holdfast_local::token::Signer;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::{Answer, Api, Who};
use crate::races::counts;

const SHOP: Who<'static> = Who::Service("shop-back-end");

pub(crate) async fn only_a_service_acts_for_customers(api: Api) {
    api.product("served", 10, json!({})).await;
    let lines = json!([{"product_id": "served", "quantity": 2}]);
    let create = async |who: Who<'_>, body: &Value| {
        api.raw(Method::POST, "/reservations", who, &[("idempotency-key", "served")], Some(body.to_string())).await
    };
    let named = json!({"lines": lines, "customer_id": "alice"});
    let held = create(SHOP, &named).await;
    held.is(201, "");
    let id = held.id();
    // It is Alice's own, under Alice's own key.
    let hers = create(Who::Customer("alice"), &json!({ "lines": lines })).await;
    assert_eq!((hers.status, hers.id()), (201, id.clone()));
    assert_eq!(hers.headers["idempotent-replayed"], "true");

    let nobody_named = create(SHOP, &json!({ "lines": lines })).await;
    nobody_named.is(400, "invalid_request");
    assert_eq!(nobody_named.body["field"], "customer_id");
    for who in [Who::Customer("alice"), Who::Customer("mallory"), Who::Admin] {
        create(who, &named).await.is(403, "forbidden");
        api.get("/reservations?customer_id=alice", who).await.is(403, "forbidden");
        api.get(&format!("/reservations/{id}?customer_id=alice"), who).await.is(403, "forbidden");
    }

    let path = format!("/reservations/{id}");
    let extend = |customer: &str| json!({"hold_seconds": 900, "customer_id": customer});
    let confirm = |customer: &str| json!({"payment_reference": "pay_1", "customer_id": customer});
    api.get(&path, SHOP).await.is(400, "invalid_request");
    api.get(&format!("{path}?customer_id=bob"), SHOP).await.is(404, "reservation_not_found");
    api.get(&format!("{path}?customer_id=alice"), SHOP).await.is(200, "");
    api.post(&format!("{path}/extend"), SHOP, extend("bob")).await.is(404, "reservation_not_found");
    api.post(&format!("{path}/extend"), SHOP, extend("alice")).await.is(200, "");
    let own = json!({"payment_reference": "pay_1"});
    let alice = Who::Customer("alice");
    api.post(&format!("{path}/confirm"), alice, own).await.is(403, "confirmation_not_allowed");
    api.post(&format!("{path}/confirm"), SHOP, confirm("bob")).await.is(404, "reservation_not_found");
    api.post(&format!("{path}/confirm"), SHOP, confirm("alice")).await.is(200, "");
    for (list, customer, count) in [("reservations", "alice", 1), ("orders", "alice", 1), ("orders", "nobody-yet", 0)] {
        let page = api.get(&format!("/{list}?customer_id={customer}&limit=100"), SHOP).await;
        page.is(200, "");
        let ids = page.body["items"].as_array().unwrap().iter().filter(|item| item["reservation_id"] == id.as_str());
        assert_eq!(ids.count(), count, "{list} of {customer}");
    }
    api.get(&format!("/orders/{id}?customer_id=alice"), SHOP).await.is(200, "");
    let cancel = async |customer: &str| {
        api.raw(Method::DELETE, &format!("{path}?customer_id={customer}"), SHOP, &[], None).await
    };
    cancel("bob").await.is(404, "reservation_not_found");
    cancel("alice").await.is(409, "already_confirmed");
    // A service is not an admin.
    api.get("/admin/products", SHOP).await.is(403, "forbidden");
    let book = api.book("served").await;
    assert_eq!((book.available, book.sold), (8, 2));
}

/// A token of these claims and this header, signed with this key.
fn token(header: &Header, claims: &Value, key: &EncodingKey) -> String {
    jsonwebtoken::encode(header, claims, key).unwrap()
}

pub(crate) async fn an_invalid_token_is_a_401(api: Api) {
    let key_set: Value = serde_json::from_str(Signer::load().unwrap().key_set()).unwrap();
    let key = &key_set["keys"][0];
    let secret = BASE64URL_NOPAD.decode(key["k"].as_str().unwrap().as_bytes()).unwrap();
    let (ours, other) =
        (EncodingKey::from_secret(&secret), EncodingKey::from_secret(b"any other key at all, of 32 bytes"));
    let header = |algorithm| Header { kid: key["kid"].as_str().map(str::to_owned), ..Header::new(algorithm) };
    let hs256 = header(Algorithm::HS256);
    #[expect(clippy::disallowed_methods, reason = "the functions verify a token's expiry by the wall clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": LOCAL_ISSUER, "aud": LOCAL_AUDIENCE, "sub": "alice", "exp": now + 600});
    let but = |name: &str, value: Value| {
        let mut claims = claims.clone();
        claims[name] = value;
        claims
    };
    let nobody = api.get("/reservations", Who::Nobody).await;
    assert_eq!(nobody.is(401, "unauthenticated").headers["www-authenticate"], "Bearer");
    let good = token(&hs256, &claims, &ours);
    api.get("/reservations", Who::Token(&good)).await.is(200, "");

    let unsigned = {
        let part = |json: Value| BASE64URL_NOPAD.encode(json.to_string().as_bytes());
        let admin = but("cognito:groups", json!(["admin"]));
        format!("{}.{}.", part(json!({"alg": "none", "typ": "JWT", "kid": key["kid"]})), part(admin))
    };
    let claiming_rs256 = {
        let (_, rest) = good.split_once('.').unwrap();
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": key["kid"]}).to_string();
        format!("{}.{rest}", BASE64URL_NOPAD.encode(header.as_bytes()))
    };
    let promoted = {
        // The claims of an admin under the signature of a customer.
        let parts: Vec<&str> = good.split('.').collect();
        let admin = but("cognito:groups", json!(["admin"])).to_string();
        format!("{}.{}.{}", parts[0], BASE64URL_NOPAD.encode(admin.as_bytes()), parts[2])
    };
    for (what, wrong) in [
        // A minute of grace for clocks that differ is what jsonwebtoken and API Gateway give.
        ("expired", token(&hs256, &but("exp", json!(now - 120)), &ours)),
        ("of another issuer", token(&hs256, &but("iss", json!("https://evil.example")), &ours)),
        ("for another audience", token(&hs256, &but("aud", json!("another-api")), &ours)),
        ("without a subject", token(&hs256, &but("sub", json!("")), &ours)),
        ("not good before tomorrow", token(&hs256, &but("nbf", json!(now + 86_400)), &ours)),
        (
            "with a header that must be understood",
            token(&Header { crit: Some(vec!["urn:example:shop".to_owned()]), ..hs256.clone() }, &claims, &ours),
        ),
        ("of a guest", token(&hs256, &but("sub", json!("guest:alice")), &ours)),
        ("of a subject with a blank behind it", token(&hs256, &but("sub", json!("alice ")), &ours)),
        ("unsigned", unsigned),
        ("signed with another key", token(&hs256, &claims, &other)),
        ("signed by another algorithm", token(&header(Algorithm::HS512), &claims, &ours)),
        ("said to be signed by another algorithm", claiming_rs256),
        ("of an unknown key", token(&Header { kid: Some("x".to_owned()), ..hs256.clone() }, &claims, &ours)),
        ("altered", promoted),
        ("no token", "x".to_owned()),
    ] {
        for path in ["/reservations", "/orders", "/admin/products"] {
            let answer = api.get(path, Who::Token(&wrong)).await;
            assert_eq!((answer.status, answer.code()), (401, "unauthenticated"), "a token {what}, {path}");
            answer.is(401, "unauthenticated");
            let why = if what == "expired" { "the token has expired" } else { "the token is not valid for this API" };
            let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{why}\"");
            assert_eq!(
                (&answer.body["detail"], answer.headers["www-authenticate"].to_str().unwrap()),
                (&json!(why), &*challenge)
            );
        }
        let body = json!({"lines": [{"product_id": "none", "quantity": 1}]}).to_string();
        let key = [("idempotency-key", "k")];
        let answer = api.raw(Method::POST, "/reservations", Who::Token(&wrong), &key, Some(body)).await;
        assert_eq!((answer.status, answer.code()), (401, "unauthenticated"), "a token {what}");
    }
}

pub(crate) async fn a_nested_list_gives_no_roles_and_a_guest_cannot_sign_in(api: Api) {
    let key_set: Value = serde_json::from_str(Signer::load().unwrap().key_set()).unwrap();
    let key = &key_set["keys"][0];
    let ours = EncodingKey::from_secret(&BASE64URL_NOPAD.decode(key["k"].as_str().unwrap().as_bytes()).unwrap());
    let header = Header { kid: key["kid"].as_str().map(str::to_owned), ..Header::new(Algorithm::HS256) };
    let bearer = |roles: Value| {
        let claims = json!({"iss": LOCAL_ISSUER, "aud": LOCAL_AUDIENCE, "sub": "alice", "exp": 4_102_444_800_u64});
        let mut claims = claims.as_object().unwrap().clone();
        claims.insert("cognito:groups".to_owned(), roles);
        token(&header, &claims.into(), &ours)
    };
    for (roles, gets_in) in [
        (json!(["x", "admin", "y"]), true),
        (json!([["x", "admin", "y"]]), false),
        (json!([["x"], "admin"]), false),
        (json!(["x", 1, "admin"]), false),
        (json!({"admin": ["admin"]}), false),
        (json!("[[x admin y]]"), false),
        (json!(r#"["x","admin","y"]"#), false),
    ] {
        let answer = api.get("/admin/products?limit=1", Who::Token(&bearer(roles.clone()))).await;
        assert_eq!(answer.status, if gets_in { 200 } else { 403 }, "{roles}: {answer:?}");
    }

    // Only a shop's back end names guests.
    api.product("guests", 5, json!({})).await;
    let body = json!({"lines": [{"product_id": "guests", "quantity": 1}], "customer_id": "guest:alice"}).to_string();
    let made = api.raw(Method::POST, "/reservations", SHOP, &[("idempotency-key", "guest")], Some(body)).await;
    made.is(201, "");
    let path = format!("/reservations/{}", made.id());
    api.get(&format!("{path}?customer_id=guest:alice"), SHOP).await.is(200, "");
    api.get(&path, Who::Customer("alice")).await.is(404, "reservation_not_found");
    api.get(&path, Who::Customer("guest:alice")).await.is(401, "unauthenticated");
}

/// Every operation of the description, with a parameter that none of them has.
pub(crate) async fn unknown_parameters_are_refused_except_on_public_routes(api: Api) {
    api.product("walked", 5, json!({})).await;
    let text = std::fs::read_to_string(openapi::path()).unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let unknown = "utm_source=x&_=1&utm_source=y";
    let (mut public, mut refused) = (0, 0);
    for (pattern, operations) in document["paths"].as_object().unwrap() {
        let path = pattern.replace("{product_id}", "walked").replace("console/{file}", "console/console.js");
        let path = path.replace("{file}", "page.js").replace(['{', '}'], "");
        for (method, operation) in operations.as_object().unwrap() {
            let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
            let ask = async |query: &str, who: Who<'_>| {
                let body = [Method::POST, Method::PUT, Method::PATCH].contains(&method).then(|| "{}".to_owned());
                let path = format!("{path}{query}");
                api.raw(method.clone(), &path, who, &[("idempotency-key", "walked")], body).await
            };
            if operation.get("security").is_none() {
                let answer = ask(&format!("?{unknown}"), Who::Nobody).await;
                assert_eq!((answer.status, answer.code()), (200, ""), "{method} {path}");
                public += 1;
                continue;
            }
            let who = if path.starts_with("/admin") { Who::Admin } else { Who::Customer("walker") };
            let answer = ask(&format!("?{unknown}"), who).await;
            answer.is(400, "invalid_request");
            assert!(answer.body["detail"].as_str().unwrap().contains("utm_source"), "{method} {path}: {answer:?}");
            // Authentication comes before validation.
            ask(&format!("?{unknown}"), Who::Nobody).await.is(401, "unauthenticated");
            refused += 1;
        }
    }
    assert!(public >= 5 && refused >= 15, "{public} public, {refused} others");
    let page = api.get(&format!("/products?limit=1&{unknown}"), Who::Nobody).await;
    assert_eq!(page.body["items"].as_array().unwrap().len(), 1);
    api.get("/products?limit=0", Who::Nobody).await.is(400, "invalid_request");
}

pub(crate) async fn prices_have_an_exponent_and_times_three_decimals(api: Api) {
    for (currency, exponent) in [("JPY", 0), ("EUR", 2), ("KWD", 3)] {
        let id = format!("in-{currency}");
        let more = json!({"currency": currency, "sale_starts_at": "2020-01-01T00:00:00.06+01:00"});
        let made = api.product(&id, 5, more).await;
        assert_eq!(made.body["sale_starts_at"], "2019-12-31T23:00:00.060Z");
        let read = api.get(&format!("/products/{id}"), Who::Nobody).await;
        let held = api.reserve("alice", &id, &[(&id, 1)]).await;
        held.is(201, "");
        for shown in [&made, &read, &held] {
            assert_eq!(
                (&shown.body["currency"], &shown.body["currency_exponent"]),
                (&json!(currency), &json!(exponent))
            );
        }
        for time in ["created_at", "expires_at", "server_time"] {
            // Of a thousand milliseconds a hundred end with a zero: each answer of the whole run is held against the
            // description, which says the same.
            assert_eq!(held.body[time].as_str().unwrap().len(), "2026-11-21T07:06:41.060Z".len(), "{time}: {held:?}");
        }
    }
}

pub(crate) async fn a_limit_that_is_set_later_counts_what_was_bought_before(api: Api) {
    let limit = |version: u64, limit: Value| json!({"version": version, "max_per_customer": limit});
    let change = async |id: &str, body: Value| {
        api.raw(Method::PATCH, &format!("/admin/products/{id}"), Who::Admin, &[], Some(body.to_string())).await
    };
    let made = api.product("limited-later", 20, json!({})).await;
    // The deployment's limit, since none was said.
    assert_eq!((&made.body["max_per_customer"], &made.body["counts_per_customer"]), (&json!(10), &json!(true)));
    let bought = api.reserve("alice", "later-1", &[("limited-later", 5)]).await;
    bought.is(201, "");
    api.confirm("alice", &bought.id(), Some("pay_later")).await.is(200, "");
    change("limited-later", limit(1, json!(2))).await.is(200, "");
    let sixth = api.reserve("alice", "later-2", &[("limited-later", 1)]).await;
    assert_eq!(sixth.is(409, "customer_limit_reached").body["max_per_customer"], 2);
    api.reserve("bob", "later-1", &[("limited-later", 2)]).await.is(201, "");
    change("limited-later", limit(2, json!(6))).await.is(200, "");
    api.reserve("alice", "later-3", &[("limited-later", 1)]).await.is(201, "");
    api.reserve("alice", "later-4", &[("limited-later", 1)]).await.is(409, "customer_limit_reached");

    // A product that was created without counting refuses a limit.
    let never = api.product("limited-never", 20, json!({"max_per_customer": null, "late_payment_seconds": 0})).await;
    assert_eq!((&never.body["counts_per_customer"], &never.body["late_payment_seconds"]), (&json!(false), &json!(0)));
    api.reserve("alice", "never-1", &[("limited-never", 5)]).await.is(201, "");
    let refused = change("limited-never", limit(1, json!(2))).await;
    assert_eq!(refused.is(400, "invalid_request").body["field"], "max_per_customer");
    let changed = change("limited-never", json!({"version": 1, "late_payment_seconds": 60})).await;
    assert_eq!(changed.is(200, "").body["late_payment_seconds"], 60);
}

pub(crate) async fn an_unknown_route_is_a_problem(api: Api) {
    for (method, path, status, code) in [
        (Method::GET, "/nowhere", 404, "route_not_found"),
        (Method::POST, "/nowhere", 404, "route_not_found"),
        (Method::GET, "/products/a/b", 404, "route_not_found"),
        (Method::GET, "/admin/nowhere", 404, "route_not_found"),
        (Method::POST, "/products", 405, "method_not_allowed"),
        (Method::PUT, "/reservations", 405, "method_not_allowed"),
        (Method::PATCH, "/reservations/rsv_x/confirm", 405, "method_not_allowed"),
        (Method::POST, "/reservations/rsv_x/lines", 405, "method_not_allowed"),
        (Method::PUT, "/reservations/rsv_x/transfer", 405, "method_not_allowed"),
        (Method::GET, "/admin/products/x/release-holds", 405, "method_not_allowed"),
        (Method::DELETE, "/admin/products/x", 405, "method_not_allowed"),
    ] {
        for who in [Who::Nobody, Who::Customer("alice"), Who::Token("x")] {
            let answer = api.raw(method.clone(), path, who, &[], None).await;
            assert_eq!((answer.status, answer.code()), (status, code), "{method} {path}: {answer:?}");
            answer.is(status, code);
            let allow = answer.headers.get("allow").and_then(|allow| allow.to_str().ok()).unwrap_or_default();
            assert_eq!(allow.is_empty(), status == 404, "{method} {path}: {allow:?}");
            assert!(!allow.contains(method.as_str()), "{method} {path}: {allow}");
        }
    }
    let long = || Some("x".repeat(65_537));
    let unknown = format!("rsv_{}", "a".repeat(52));
    for (method, path, who) in [
        (Method::POST, "/reservations".to_owned(), Who::Customer("alice")),
        (Method::POST, format!("/reservations/{unknown}/confirm"), Who::Customer("alice")),
        (Method::POST, format!("/reservations/{unknown}/extend"), Who::Customer("alice")),
        (Method::PUT, format!("/reservations/{unknown}/lines"), Who::Customer("alice")),
        (Method::POST, format!("/reservations/{unknown}/transfer"), SHOP),
        (Method::POST, format!("/orders/{unknown}/cancel"), SHOP),
        (Method::POST, "/admin/products".to_owned(), Who::Admin),
        (Method::PATCH, "/admin/products/x".to_owned(), Who::Admin),
        (Method::POST, "/admin/products/x/stock".to_owned(), Who::Admin),
        (Method::POST, "/admin/products/x/release-holds".to_owned(), Who::Admin),
        (Method::POST, format!("/admin/reservations/{unknown}/release"), Who::Admin),
        (Method::POST, format!("/admin/orders/{unknown}/cancel"), Who::Admin),
        (Method::POST, "/admin/failed-confirmations/fc_x/resolve".to_owned(), Who::Admin),
        (Method::POST, "/admin/failed-confirmations/fc_x/retry".to_owned(), Who::Admin),
        (Method::POST, "/nowhere".to_owned(), Who::Nobody),
    ] {
        let headers = [("idempotency-key", "long")];
        api.raw(method.clone(), &path, who, &headers, long()).await.is(413, "payload_too_large");
        if !path.ends_with("/retry") && path != "/nowhere" {
            let broken = Some("{\"a\":".to_owned());
            api.raw(method, &path, who, &headers, broken).await.is(400, "invalid_request");
        }
    }
}

pub(crate) async fn two_keys_are_refused_and_a_quoted_key_is_accepted(api: Api) {
    api.product("keys", 5, json!({})).await;
    let body = || Some(json!({"lines": [{"product_id": "keys", "quantity": 1}]}).to_string());
    let create = async |keys: &[&str]| -> Answer {
        let headers: Vec<(&str, &str)> = keys.iter().map(|key| ("idempotency-key", *key)).collect();
        api.raw(Method::POST, "/reservations", Who::Customer("alice"), &headers, body()).await
    };
    create(&[]).await.is(400, "idempotency_key_missing");
    for two in [&["keys-a", "keys-b"][..], &["keys-a", "keys-a"], &["keys-a,keys-b"]] {
        create(two).await.is(400, "idempotency_key_invalid");
    }
    let first = create(&["keys-a"]).await;
    first.is(201, "");
    let quoted = create(&["\"keys-a\""]).await;
    assert_eq!((quoted.status, quoted.id()), (201, first.id()));
    assert_eq!(quoted.headers["idempotent-replayed"], "true");
    assert_eq!(api.book("keys").await.held, 1);
}

pub(crate) async fn an_unchanged_product_is_a_304(api: Api) {
    api.product("tagged", 5, json!({})).await;
    let get =
        async |tag: &str| api.raw(Method::GET, "/products/tagged", Who::Nobody, &[("if-none-match", tag)], None).await;
    let first = get("\"none\"").await;
    first.is(200, "");
    let tag = first.headers["etag"].to_str().unwrap();
    let same = get(tag).await;
    assert_eq!((same.status, &same.body), (304, &json!("")));
    assert_eq!(
        (&same.headers["etag"], &same.headers["cache-control"]),
        (&first.headers["etag"], &first.headers["cache-control"])
    );
    assert_eq!(api.get("/products", Who::Nobody).await.headers["cache-control"], "public, max-age=1");
    // Others change the list all the time: any copy at all.
    let any = api.raw(Method::GET, "/products", Who::Nobody, &[("if-none-match", "*")], None).await;
    assert_eq!((any.status, &any.body), (304, &json!("")));

    api.reserve("alice", "tagged", &[("tagged", 1)]).await.is(201, "");
    // Each environment may be a second behind.
    let started = tokio::time::Instant::now();
    let changed = loop {
        let answer = get(tag).await;
        if answer.status != 304 {
            break answer;
        }
        assert!(started.elapsed() < Duration::from_secs(5), "it is the old answer still");
    };
    assert_eq!((changed.status, &changed.body["available"]), (200, &json!(4)));
    assert_ne!(changed.headers["etag"], first.headers["etag"]);
}

pub(crate) async fn concurrent_requests_of_a_customer_stay_within_their_limit(api: Api) {
    api.product("per-customer", 100, json!({"max_per_customer": 5})).await;
    let keys: Vec<String> = (0..60).map(|n| format!("herd-{n}")).collect();
    let answers = join_all(keys.iter().map(|key| api.reserve("greedy", key, &[("per-customer", 1)]))).await;
    let counted = counts(&answers);
    assert_eq!(counted.get(&(201, String::new())), Some(&5), "{counted:?}");
    assert_eq!(counted.get(&(409, "customer_limit_reached".to_owned())), Some(&55), "{counted:?}");
    assert_eq!(api.book("per-customer").await.held, 5);
}

pub(crate) async fn a_rate_limited_customer_gets_429_with_retry_after(_: Api) {
    // A stack of its own: the limit is a parameter of the template, and would meet every other test.
    let parameters = [("CustomerRateLimit", "1"), ("CustomerRateBurst", "4"), ("ConfirmedBy", "customer")];
    let parameters = parameters.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let stack =
        Arc::new(Stack::start(Options { parameters, ..crate::options() }).await.unwrap_or_else(|e| panic!("{e}")));
    let api = Api::new(&stack);
    api.product("rated", 100, json!({})).await;
    let started = tokio::time::Instant::now();
    let keys: Vec<String> = (0..40).map(|n| format!("rated-{n}")).collect();
    let answers = join_all(keys.iter().map(|key| api.reserve("hasty", key, &[("rated", 1)]))).await;
    let passed = started.elapsed().as_secs();
    let made = answers.iter().filter(|answer| answer.status == 201).count() as u64;
    assert!((4..=5 + passed).contains(&made), "{made} in {passed} s");
    let refused = answers.iter().find(|answer| answer.status != 201).expect("nobody was refused");
    refused.is(429, "rate_limited");
    let wait = refused.body["retry_after_seconds"].as_u64().unwrap();
    assert_eq!(refused.headers["retry-after"], wait.to_string().as_str());
    assert!(answers.iter().all(|answer| matches!(answer.status, 201 | 429)), "{:?}", counts(&answers));
    assert_eq!(api.book("rated").await.held, i64::try_from(made).unwrap());

    // Other customers and reads are not limited; and waiting for `Retry-After` is enough.
    api.reserve("patient", "rated", &[("rated", 1)]).await.is(201, "");
    api.get("/reservations", Who::Customer("hasty")).await.is(200, "");
    // Both functions that serve customers count in the same place.
    let unknown = format!("rsv_{}", "a".repeat(52));
    let refused = loop {
        let pays = json!({ "payment_reference": "pay_1" });
        let answer = api.post(&format!("/reservations/{unknown}/confirm"), Who::Customer("hasty"), pays).await;
        if answer.status == 429 {
            break answer;
        }
        answer.is(404, "reservation_not_found");
    };
    refused.is(429, "rate_limited");
    tokio::time::sleep(Duration::from_secs(refused.body["retry_after_seconds"].as_u64().unwrap())).await;
    api.reserve("hasty", "rated-at-last", &[("rated", 1)]).await.is(201, "");
    drop(api);
    Arc::into_inner(stack).expect("nobody else has the stack").stop().await;
}

pub(crate) async fn only_pages_of_allowed_origins_may_call(api: Api) {
    let ours = "https://shop.example";
    let preflight = async |api: &Api, origin: &str, path: &str| {
        let asks = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type,idempotency-key,if-none-match"),
        ];
        api.raw(Method::OPTIONS, path, Who::Nobody, &asks, None).await
    };
    let get = async |api: &Api, origin: &str| {
        api.raw(Method::GET, "/products", Who::Nobody, &[("origin", origin)], None).await
    };
    let allowed = |answer: &Answer| answer.headers.get("access-control-allow-origin").cloned();
    // By default there is no such origin.
    assert_eq!(allowed(&preflight(&api, ours, "/reservations").await), None);
    assert_eq!(allowed(&get(&api, ours).await), None);

    let parameters = [("CorsAllowOrigins".to_owned(), format!("{ours},https://other.example"))].into();
    let options = Options { parameters, concurrency: 1, ..crate::options() };
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    for path in ["/reservations", "/admin/products", "/nowhere"] {
        let answer = preflight(&api, ours, path).await;
        assert!(matches!(answer.status, 200 | 204), "{path}: {answer:?}");
        assert_eq!(answer.headers["access-control-allow-origin"], ours, "{path}");
        for (name, wanted) in [
            ("access-control-allow-methods", &["GET", "POST", "PUT", "PATCH", "DELETE"][..]),
            (
                "access-control-allow-headers",
                &["authorization", "content-type", "idempotency-key", "if-none-match"][..],
            ),
        ] {
            let given = answer.headers[name].to_str().unwrap().to_owned();
            assert!(
                wanted.iter().all(|wanted| given.split(',').any(|given| given.trim() == *wanted)),
                "{name}: {given}"
            );
        }
    }
    for (origin, lets_in) in [(ours, true), ("https://other.example", true), ("https://evil.example", false)] {
        assert_eq!(allowed(&preflight(&api, origin, "/reservations").await).is_some(), lets_in, "{origin}");
        let answer = get(&api, origin).await;
        assert_eq!(answer.status, 200);
        assert_eq!(allowed(&answer).is_some(), lets_in, "{origin}");
    }
    let exposed = get(&api, ours).await.headers["access-control-expose-headers"].to_str().unwrap().to_owned();
    for name in ["location", "idempotent-replayed", "retry-after", "etag"] {
        assert!(exposed.split(',').any(|exposed| exposed.trim() == name), "{name}: {exposed}");
    }
    drop(api);
    Arc::into_inner(stack).expect("nobody else has the stack").stop().await;
}
