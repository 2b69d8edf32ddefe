//! Audits: planted inconsistencies are found, a table in use raises no alarm, and the terminal has both.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use futures_util::future::{join, join_all};
use holdfast_local::stack::{Options, Stack};
use holdfast_local::token::Role;
use holdfast_local::{admin_cli, audit, paths};
use holdfast_store::keys::{self, Key};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::{Api, Who};

/// How long the table is in use while it is audited.
const IN_USE: Duration = Duration::from_secs(20);
const CUSTOMERS: usize = 30;

type Item = HashMap<String, AttributeValue>;

/// A stack of its own: nothing else changes its table.
async fn own_stack() -> (Arc<Stack>, Api) {
    let options = Options { proxy: None, ..crate::options() };
    let stack = Arc::new(Stack::start(options).await.unwrap_or_else(|error| panic!("{error}")));
    let api = Api::new(&stack);
    (stack, api)
}

async fn end(stack: Arc<Stack>, api: Api) {
    drop(api);
    Arc::into_inner(stack).unwrap().stop().await;
}

/// The audit of a product by the API.
async fn audited(api: &Api, product: &str) -> Value {
    let answer = api.get(&format!("/admin/products/{product}/audit"), Who::Admin).await;
    let body = answer.is(200, "").body.clone();
    assert_eq!(body["complete"], true, "{body:#}");
    body
}

/// Kind and place of what an audit found.
fn places(audit: &Value) -> BTreeSet<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let found = audit["findings"].as_array().unwrap().iter();
    found.map(|found| (text(&found["kind"]), text(&found["where"]))).collect()
}

/// The audit of a whole table from the terminal: whether the books agree, and what it says.
async fn from_terminal(stack: &Stack, write_compensation: Option<&str>) -> (bool, String) {
    let options = audit::Options {
        table: Some(stack.table().unwrap().to_owned()),
        endpoint: Some(stack.endpoint_url().to_owned()),
        product: None,
        looks: 3,
        write_compensation: write_compensation.map(str::to_owned),
    };
    let mut said = Vec::new();
    let agree = audit::run(options, &mut said).await.unwrap();
    (agree, String::from_utf8(said).unwrap())
}

/// One item of a table, read and written behind the functions' back.
struct Behind<'a>(&'a Stack);

impl Behind<'_> {
    async fn read(&self, key: &Key) -> Option<Item> {
        let request = self.0.clients().dynamodb.get_item().table_name(self.0.table().unwrap()).consistent_read(true);
        request.set_key(Some(key.item())).send().await.unwrap().item
    }

    async fn write(&self, key: &Key, item: Option<Item>) {
        let (client, table) = (&self.0.clients().dynamodb, self.0.table().unwrap());
        match item {
            Some(item) => drop(client.put_item().table_name(table).set_item(Some(item)).send().await.unwrap()),
            None => drop(client.delete_item().table_name(table).set_key(Some(key.item())).send().await.unwrap()),
        }
    }
}

fn number(item: &Item, name: &str) -> i64 {
    item[name].as_n().unwrap().parse().unwrap()
}

fn add(item: &mut Option<Item>, name: &str, delta: i64) {
    let item = item.as_mut().unwrap();
    let changed = number(item, name) + delta;
    item.insert(name.to_owned(), AttributeValue::N(changed.to_string()));
}

pub(crate) async fn ten_planted_inconsistencies_are_found(_: Api) {
    let (stack, api) = own_stack().await;
    let behind = Behind(&stack);
    api.product("planted", 60, json!({"max_per_customer": 9, "shards": 2, "hold_seconds": 3_600})).await;
    let held = api.reserve("alice", "held", &[("planted", 3)]).await.is(201, "").id();
    let order = api.reserve("bob", "order", &[("planted", 4)]).await.is(201, "").id();
    api.confirm("bob", &order, Some("pay_planted")).await.is(200, "");
    let gone = api.reserve("carol", "gone", &[("planted", 1)]).await.is(201, "").id();
    api.cancel("carol", &gone).await.is(200, "");
    for (key, delta) in [("k1", 10), ("k2", -5)] {
        let body = json!({"delta": delta, "reason": "counted"}).to_string();
        let path = "/admin/products/planted/stock";
        api.raw(Method::POST, path, Who::Admin, &[("idempotency-key", key)], Some(body)).await.is(200, "");
    }
    let ledger = api.get("/admin/products/planted/ledger", Who::Admin).await;
    let entry = |n: usize| ledger.body["items"][n]["entry_id"].as_str().unwrap().to_owned();
    // The newest first: -5, 10, 60.
    let (last, middle) = (entry(0), entry(1));

    let healthy = audited(&api, "planted").await;
    assert_eq!((&healthy["consistent"], &healthy["in_progress"]), (&json!(true), &json!(false)), "{healthy:#}");
    let units =
        ["total", "available", "held", "sold", "ledger_total", "checked_reservations"].map(|name| &healthy[name]);
    assert_eq!(units, [65, 58, 3, 4, 65, 3].map(Value::from).each_ref());
    let (agree, said) = from_terminal(&stack, None).await;
    assert!(agree && said.contains("agree"), "{said}");

    let product = || "planted".try_into().unwrap();
    let reservation = |id: &str| keys::reservation(&id.try_into().unwrap());
    let limit = keys::limit(&product(), &"alice".try_into().unwrap());
    let shard = |n| keys::shard(&product(), n);
    type Plant = fn(&mut Option<Item>);
    type Named<'a> = (&'a str, &'a str);
    #[rustfmt::skip]
    let planted: [(&str, Key, Plant, &[Named<'_>]); 10] = [
        ("a shard's units off by one", shard(0), |shard| add(shard, "available", -1), &[("units", "planted")]),
        ("a lost shard", shard(1), |shard| *shard = None, &[("units", "planted"), ("shard", "1")]),
        ("units of a hold given back twice", shard(0), |shard| add(shard, "available", 3), &[("units", "planted")]),
        ("a missing entry", keys::ledger(&product(), &middle), |entry| *entry = None,
            &[("ledger", "planted"), ("ledger", &last)]),
        ("an entry with another total", keys::ledger(&product(), &middle), |entry| add(entry, "total_after", 7),
            &[("ledger", &middle)]),
        ("a total without an entry", keys::product(&product()), |product| add(product, "total", 1),
            &[("units", "planted"), ("ledger", "planted")]),
        ("a limit too high", limit.clone(), |limit| add(limit, "units", 2), &[("limit", "alice")]),
        ("a limit too low", limit.clone(), |limit| add(limit, "units", -1), &[("limit", "alice")]),
        ("a deleted order", reservation(&order), |order| *order = None, &[("units", "planted")]),
        ("a hold that is not in the index", reservation(&held), |hold| {
            let hold = hold.as_mut().unwrap();
            hold.remove(keys::DUE_KEY);
            hold.remove(keys::DUE_AT);
        }, &[("reservation", &held)]),
    ];
    for (name, key, plant, expected) in planted {
        let before = behind.read(&key).await;
        let mut changed = before.clone();
        plant(&mut changed);
        behind.write(&key, changed).await;
        let found = audited(&api, "planted").await;
        let expected: BTreeSet<_> = expected.iter().map(|&(kind, place)| (kind.to_owned(), place.to_owned())).collect();
        assert_eq!((&found["consistent"], places(&found)), (&json!(false), expected), "{name}: {found:#}");
        let (agree, said) = from_terminal(&stack, None).await;
        assert!(!agree && said.contains("DRIFT"), "{name}: {said}");
        // Only the table itself still knows that Bob had an order.
        assert_eq!(said.contains("limit of customer bob: expected 0, found 4"), name == "a deleted order", "{said}");
        behind.write(&key, before).await;
        let repaired = audited(&api, "planted").await;
        assert_eq!(
            (&repaired["consistent"], places(&repaired)),
            (&json!(true), BTreeSet::new()),
            "{name}: {repaired:#}"
        );
    }

    // What belongs to nobody.
    let ghost = keys::limit(&product(), &"zoe".try_into().unwrap());
    let mut item: Item = ghost.item();
    item.insert("units".to_owned(), AttributeValue::N("1".to_owned()));
    behind.write(&ghost, Some(item)).await;
    let (agree, said) = from_terminal(&stack, None).await;
    assert!(!agree && said.contains("limit of customer zoe: expected 0, found 1"), "{said}");
    behind.write(&ghost, None).await;

    // A compensation: where it makes the books right, and not where it cannot.
    let before = behind.read(&shard(1)).await;
    behind.write(&shard(1), None).await;
    let (agree, said) = from_terminal(&stack, Some("olga")).await;
    assert!(!agree && said.contains("planted: no entry was written") && said.contains("shard 1"), "{said}");
    behind.write(&shard(1), before).await;
    let mut lossy = behind.read(&shard(0)).await;
    add(&mut lossy, "available", -2);
    behind.write(&shard(0), lossy).await;
    let (agree, said) = from_terminal(&stack, Some("olga")).await;
    assert!(agree && said.contains("wrote -2 to the ledger; the total was 65 and is 63"), "{said}");
    let compensated = audited(&api, "planted").await;
    assert_eq!((&compensated["consistent"], &compensated["ledger_total"]), (&json!(true), &json!(63)));
    let ledger = api.get("/admin/products/planted/ledger?limit=1", Who::Admin).await;
    let entry = &ledger.is(200, "").body["items"][0];
    assert_eq!((&entry["reason"], &entry["actor"]), (&json!("audit: compensates drift"), &json!("olga")));
    let actions = api.get("/admin/actions?target=planted&limit=1", Who::Admin).await;
    let action = &actions.is(200, "").body["items"][0];
    assert_eq!((&action["action"], &action["actor"]), (&json!("compensate_drift"), &json!("olga")));
    assert_eq!((&action["detail"]["delta"], &action["outcome"]), (&json!(-2), &json!("200")));
    let products = api.get("/admin/products", Who::Admin).await;
    let last = &products.is(200, "").body["items"][0]["last_audit"];
    assert!(last["audited_at"].as_str() <= compensated["server_time"].as_str() && last["consistent"] == true, "{last}");
    let public = api.get("/products/planted", Who::Nobody).await;
    assert!(public.is(200, "").body.get("last_audit").is_none());
    api.get("/admin/products/planted-not/audit", Who::Admin).await.is(404, "product_not_found");
    api.get("/admin/products/planted/audit?limit=1", Who::Admin).await.is(400, "invalid_request");
    end(stack, api).await;
}

pub(crate) async fn a_table_in_use_raises_no_alarm(_: Api) {
    let (stack, api) = own_stack().await;
    for product in ["used-a", "used-b"] {
        api.product(product, 400, json!({"max_per_customer": 200, "hold_seconds": 10})).await;
    }
    let (until, busy) = (Instant::now() + IN_USE, AtomicUsize::new(CUSTOMERS));
    let customer = async |n: usize| {
        let who = format!("user-{n}");
        for round in 0.. {
            if Instant::now() >= until {
                break;
            }
            let lines = [("used-a", 1 + u32::try_from(round % 3).unwrap()), ("used-b", 1)];
            let lines = &lines[..1 + (n + round) % 2];
            let made = api.reserve(&who, &format!("k{round}"), lines).await;
            if made.status != 201 {
                continue;
            }
            match (n + round) % 5 {
                0 => drop(api.cancel(&who, &made.id()).await),
                1 => drop(api.change(&who, &made.id(), &[("used-b", 2)]).await),
                // It expires.
                2 => {}
                end => {
                    let order = api.confirm(&who, &made.id(), Some(&format!("pay_{n}_{round}"))).await;
                    if end == 4 && order.status == 200 {
                        let body = json!({"reason": "sent back", "restock": n.is_multiple_of(2), "customer_id": who});
                        api.post(&format!("/orders/{}/cancel", made.id()), Who::Service("shop"), body).await;
                    }
                }
            }
        }
        busy.fetch_sub(1, Ordering::SeqCst);
    };
    let auditor = async {
        let mut audits = 0;
        while busy.load(Ordering::SeqCst) > 0 {
            for product in ["used-a", "used-b"] {
                // Under this load some audits get no answer in time.
                let answer = api.get(&format!("/admin/products/{product}/audit"), Who::Admin).await;
                if answer.status != 503 {
                    let body = &answer.is(200, "").body;
                    assert_eq!(body["findings"], json!([]), "{body:#}");
                    audits += usize::from(body["complete"] == true);
                }
            }
            let (agree, said) = from_terminal(&stack, None).await;
            assert!(agree, "{said}");
        }
        audits
    };
    let (_, audits) = join(join_all((0..CUSTOMERS).map(customer)), auditor).await;
    assert!(audits > 0, "no audit was complete");
    // Once the holds have ended, it is certain.
    let started = Instant::now();
    for product in ["used-a", "used-b"] {
        loop {
            let body = audited(&api, product).await;
            assert_eq!(body["findings"], json!([]), "{body:#}");
            if body["in_progress"] == false && body["held"] == 0 {
                break;
            }
            assert!(started.elapsed() < crate::api::PATIENCE, "{body:#}");
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    let (agree, said) = from_terminal(&stack, None).await;
    assert!(agree && !said.contains("in use"), "{said}");
    end(stack, api).await;
}

pub(crate) async fn the_admin_api_from_a_terminal(api: Api) {
    let token = paths::local("").unwrap().join(format!("test-token-{}", std::process::id()));
    std::fs::write(&token, api.stack.token("root", Role::Admin).unwrap()).unwrap();
    let run = async |line: &str| {
        let mut arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        arguments.extend(["--api", api.stack.api_url(), "--token-file", token.to_str().unwrap()].map(str::to_owned));
        let mut said = Vec::new();
        let succeeded = admin_cli::run(&arguments, &mut said).await.unwrap_or_else(|error| panic!("{line}: {error}"));
        (succeeded, String::from_utf8(said).unwrap())
    };
    let rows = |said: &str| -> Vec<Value> { said.lines().map(|line| serde_json::from_str(line).unwrap()).collect() };
    let create = "createProduct --product-id term --name Terminal --price-minor 900 --currency EUR --total 9";
    let (succeeded, said) = run(create).await;
    assert!(succeeded && rows(&said)[0]["available"] == 9, "{said}");
    assert!(!run(create).await.0, "it exists");
    let (succeeded, said) = run("adjustStock term --delta -2 --reason broken --idempotency-key k1").await;
    assert!(succeeded && rows(&said)[0]["total_after"] == 7, "{said}");
    assert!(run("changeProduct term --version 1 --max-per-customer 3").await.0);

    let mut made = Vec::new();
    for key in ["a", "b", "c"] {
        made.push(api.reserve("term-alice", key, &[("term", 1)]).await.is(201, "").id());
    }
    let (_, said) = run("listAllReservations --product-id term --status held --limit 1").await;
    assert_eq!(rows(&said).len(), 1, "{said}");
    let (_, said) = run("listAllReservations --product-id term --status held --limit 1 --all").await;
    assert_eq!(rows(&said).len(), 3, "{said}");
    let (_, said) = run("listAllReservations --product-id term --table").await;
    assert!(said.starts_with("can_be_") || said.contains("reservation_id"), "{said}");
    assert_eq!(said.lines().count(), 4, "{said}");
    let (succeeded, said) = run(&format!("releaseReservation {} --reason mistake", made[0])).await;
    assert!(succeeded && rows(&said)[0]["status"] == "cancelled", "{said}");
    let (succeeded, said) = run("auditProduct term").await;
    assert!(succeeded && rows(&said)[0]["findings"] == json!([]), "{said}");
    assert!(!run("getAnyReservation rsv_x").await.0, "there is none");

    // Two payments that cannot buy what was released: retried, they fail again; then they are refunded.
    for payment in ["pay_term_1", "pay_term_2"] {
        api.confirm("term-alice", &made[0], Some(payment)).await.is(409, "refund_required");
        api.owed(payment).await;
    }
    let bulk = format!("--reservation-id {} --reason refund_required", made[0]);
    let (succeeded, said) = run(&format!("retryAllFailed {bulk}")).await;
    let outcomes: Vec<_> = rows(&said).iter().map(|row| row["outcome"].clone()).collect();
    assert!(!succeeded);
    assert_eq!(outcomes, ["failed again: refund_required"; 2].map(Value::from), "{said}");
    let (succeeded, said) = run(&format!("resolveAllFailed {bulk} --note refunded")).await;
    assert!(succeeded && rows(&said).iter().all(|row| row["outcome"] == "resolved"), "{said}");
    assert_eq!(rows(&said).len(), 2);
    for payment in ["pay_term_1", "pay_term_2"] {
        assert_eq!(api.failed(payment).await[0]["note"], "refunded");
    }
    std::fs::remove_file(&token).unwrap();
}
