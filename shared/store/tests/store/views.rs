//! What the catalogue shows: how old, by whom it is read, and at what cost.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_dynamodb::types::{AttributeValue, Put, TransactWriteItem};
use futures_util::future::{join, join_all};
use holdfast_domain::{
    CustomerId, HoldSeconds, IdempotencyKey, Product, ProductChange, Refusal, Reservation, ReservationId, Stock,
};
use holdfast_store::{Error, Shown, Store, keys};
use holdfast_testkit::fixtures::{
    NOW, TABLE, basket, client, product, product_id, reserve, soon, stocked, store, table,
};
use holdfast_testkit::wire::{Call, Fault, Wire};
use serde_json::json;

async fn look(store: &Store) -> Shown {
    store.product_with_stock(&product_id("tee"), soon()).await.unwrap()
}

/// What of its units a reader sees: available and reserved.
async fn units(store: &Store) -> (u64, u64) {
    let Stock { available, reserved, .. } = look(store).await.stock;
    (available, reserved)
}

async fn hold(store: &Store, key: &str, units: u32) -> Reservation {
    reserve(store, &basket("alice", key, &[("tee", units)]), NOW).await.unwrap().reservation
}

async fn tee(shards: u32) -> (Wire, [Store; 3]) {
    let wire = table();
    stocked(&wire, &[product("cap", 5, 1), product("tee", 10, shards)]).await;
    let stores = [1, 2, 3].map(|seed| store(&wire, seed));
    (wire, stores)
}

fn is_refresh(call: &Call) -> bool {
    call.operation == "UpdateItem" && call.request["UpdateExpression"].as_str().unwrap().contains("#parts")
}

fn is_search(call: &Call) -> bool {
    call.operation == "Query" && call.request["IndexName"] == "due"
}

#[tokio::test(start_paused = true)]
async fn readers_see_the_stock_of_the_last_second_and_read_it_once_for_all_of_them() {
    let (wire, [one, two, shop]) = tee(2).await;
    let both = async |store: &Store| {
        let page = store.products_with_stock(10, None, soon()).await.unwrap();
        let ids: Vec<_> = page.items.iter().map(|shown| shown.product.product_id.as_str()).collect();
        assert_eq!(ids, ["cap", "tee"]);
        assert_eq!(page.items[1], look(store).await);
        page.items.iter().map(|shown| (shown.stock.available, shown.stock.reserved)).collect::<Vec<_>>()
    };
    assert_eq!(both(&one).await, [(5, 0), (10, 0)]);
    hold(&shop, "k", 3).await;
    wire.take_calls();
    tokio::time::advance(Duration::from_millis(900)).await;
    assert_eq!(both(&one).await, [(5, 0), (10, 0)]);
    assert!(wire.take_calls().is_empty());
    // Another environment reads what the first one has found: the page, and the views of its products.
    assert_eq!(both(&two).await, [(5, 0), (10, 0)]);
    let calls = wire.take_calls();
    assert_eq!(calls.iter().map(|call| call.operation.as_str()).collect::<Vec<_>>(), ["Query", "BatchGetItem"]);
    let eventual = [&calls[0].request["ConsistentRead"], &calls[1].request["RequestItems"][TABLE]["ConsistentRead"]];
    assert_eq!(eventual, [&json!(false), &json!(false)]);
    // It remembers that until it is a second old, and not for a second of its own.
    tokio::time::advance(Duration::from_millis(100)).await;
    assert_eq!(both(&two).await, [(5, 0), (7, 3)]);
    // Lambda froze it for a second, with its monotonic clock; or its wall clock was set back.
    for (n, step) in [(1, 1_000), (2, -1)] {
        hold(&shop, &format!("k{n}"), 1).await;
        wire.step_clock(step);
        assert_eq!(both(&two).await, [(5, 0), (7 - n, 3 + n)], "{step}");
    }
    let missing = two.product_with_stock(&product_id("none"), soon()).await.unwrap_err();
    assert!(matches!(missing, Error::Refused(Refusal::ProductNotFound { .. })));
}

#[tokio::test(start_paused = true)]
async fn of_many_environments_one_refreshes() {
    let (wire, [shop, ..]) = tee(4).await;
    let readers: Vec<Store> = (10..60).map(|seed| store(&wire, seed)).collect();
    look(&readers[0]).await;
    hold(&shop, "k", 3).await;
    tokio::time::advance(Duration::from_millis(1_500)).await;
    wire.take_calls();
    let shown = join_all(readers.iter().map(look)).await;
    let calls = wire.take_calls();
    assert_eq!(calls.iter().filter(|call| is_refresh(call)).count(), 1);
    assert_eq!(calls.iter().filter(|call| is_search(call)).count(), 4 * 2 + 16);
    // The others did not wait: they saw what it was before, with its age.
    let now = wire.clock().now();
    let new = shown.iter().filter(|shown| shown.stock.reserved == 3).count();
    assert!((1..10).contains(&new), "{new}");
    assert!(shown.iter().all(|shown| shown.stock_at == if shown.stock.reserved == 3 { now } else { NOW }));
    // And see the new one a moment later.
    tokio::time::advance(Duration::from_millis(50)).await;
    assert!(join_all(readers.iter().map(units)).await.into_iter().all(|units| units == (7, 3)));
}

#[tokio::test(start_paused = true)]
async fn an_environment_that_is_frozen_while_it_refreshes_delays_nobody_and_overwrites_nothing() {
    let (wire, [frozen, reader, shop]) = tee(1).await;
    look(&frozen).await;
    hold(&shop, "k", 3).await;
    let gate = wire.gate(|call| call.operation == "Query");
    tokio::time::advance(Duration::from_secs(1)).await;
    let (late, ()) = join(look(&frozen), async {
        gate.arrived().await;
        // As long as another environment refreshes it, and does not take too long.
        wire.take_calls();
        assert_eq!(units(&reader).await, (10, 0));
        tokio::time::advance(Duration::from_millis(499)).await;
        assert_eq!(units(&reader).await, (10, 0));
        assert!(wire.take_calls().iter().all(|call| call.operation == "BatchGetItem"), "nothing is written");
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(units(&reader).await, (7, 3));
        hold(&shop, "k2", 2).await;
        tokio::time::advance(Duration::from_millis(1_000)).await;
        assert_eq!(units(&reader).await, (5, 5));
        gate.open();
    })
    .await;
    assert_eq!(late.stock_at, NOW.plus_seconds(1));
    assert_eq!(units(&store(&wire, 9)).await, (5, 5), "a view that was read before was written last");
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_one_that_never_comes_back_is_waited_for_and_then_ignored() {
    let (wire, [frozen, reader, shop]) = tee(1).await;
    look(&frozen).await;
    hold(&shop, "k", 3).await;
    tokio::time::advance(Duration::from_millis(2_500)).await;
    let gate = wire.gate(|call| call.operation == "Query");
    tokio::select! {
        _ = look(&frozen) => panic!("it is frozen"),
        () = gate.arrived() => {}
    }
    // What there is is too old to be shown, so the reader waits for a refresh, for a while.
    let began = tokio::time::Instant::now();
    assert_eq!(units(&reader).await, (7, 3));
    assert!(began.elapsed() < Duration::from_millis(600), "{:?}", began.elapsed());
    // A lease from a clock that is ahead is none.
    tokio::time::advance(Duration::from_millis(2_500)).await;
    let key = keys::view(&product_id("tee"));
    let ahead = AttributeValue::N(wire.clock().now().plus_seconds(3_600).as_millis().to_string());
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    let request = request.update_expression("SET lease = :ahead").expression_attribute_values(":ahead", ahead);
    request.send().await.unwrap();
    let began = tokio::time::Instant::now();
    hold(&shop, "k2", 1).await;
    assert_eq!(units(&reader).await, (6, 4));
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_takes_long_is_shown_only_to_those_who_asked_before_it_ended() {
    let (wire, [reader, shop, _]) = tee(1).await;
    let gate = wire.gate(|call| call.operation == "Query");
    let waiting = join(look(&reader), look(&reader));
    let (both, ()) = join(waiting, async {
        gate.arrived().await;
        tokio::time::advance(Duration::from_millis(1_999)).await;
        hold(&shop, "k", 3).await;
        tokio::time::advance(Duration::from_millis(2)).await;
        wire.take_calls();
        gate.open();
    })
    .await;
    // Both waited for one refresh.
    assert_eq!((both.0.stock_at, both.1.stock_at), (NOW, NOW));
    assert_eq!(wire.take_calls().iter().filter(|call| is_refresh(call)).count(), 1);
    let shown = look(&reader).await;
    assert_eq!((shown.stock_at, shown.stock.reserved), (wire.clock().now(), 3));
}

/// Holds are not counted in time: only those that are over are found.
fn no_count(call: &Call) -> Option<Fault> {
    let counts = is_search(call) && call.request["ExpressionAttributeValues"][":until"].is_null();
    counts.then_some(Fault::Silence)
}

#[tokio::test(start_paused = true)]
async fn all_holds_that_are_over_are_found_on_short_pages_too() {
    let (wire, [reader, shop, _]) = tee(1).await;
    for key in ["k1", "k2", "k3"] {
        hold(&shop, key, 2).await;
    }
    wire.step_clock(600_000);
    wire.shorten_pages();
    wire.script(no_count);
    assert_eq!(units(&reader).await, (10, 0));
}

#[tokio::test(start_paused = true)]
async fn a_count_by_a_clock_that_is_ahead_is_no_count() {
    let (wire, [ahead, reader, shop]) = tee(1).await;
    hold(&shop, "k", 3).await;
    // By this clock the hold is over.
    wire.step_clock(604_000);
    assert_eq!(units(&ahead).await, (10, 0));
    wire.step_clock(-10_000);
    wire.script(no_count);
    let shown = look(&reader).await;
    assert_eq!((shown.stock.available, shown.stock.sold, shown.reserved_at.as_millis()), (7, 3, 0));
    wire.clear_faults();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(units(&reader).await, (7, 3));
}

#[tokio::test(start_paused = true)]
async fn units_count_by_the_clock() {
    let wire = table();
    let short = |id: &str| Product { hold_seconds: HoldSeconds::MIN, ..product(id, 10, 2) };
    stocked(&wire, &[short("cap"), short("tee")]).await;
    let (reader, shop) = (store(&wire, 1), store(&wire, 2));
    let mut made = Vec::new();
    for second in 0..30 {
        // Each hold ends ten seconds later. Nobody releases them.
        if second % 7 == 0 {
            let (key, lines) = (format!("k{second}"), [("tee", 1), ("cap", 1)]);
            // A basket in between.
            let lines = &lines[..1 + usize::from(second == 14)];
            reserve(&shop, &basket("alice", &key, lines), wire.clock().now()).await.unwrap();
            made.push(second);
        }
        let held = made.iter().filter(|&&at| second < at + 10).count() as u64;
        assert_eq!(units(&reader).await, (10 - held, held), "after {second} s");
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_hold_with_other_lines_is_found_when_it_ends() {
    let (wire, [reader, shop, _]) = tee(2).await;
    let held = hold(&shop, "k", 2).await;
    tokio::time::advance(Duration::from_secs(595)).await;
    assert_eq!(units(&reader).await, (8, 2));
    // It goes to a partition of baskets, where nothing ended soon.
    super::changes::change_at(&shop, &held, &[("tee", 3)], wire.clock().now()).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(units(&reader).await, (7, 3));
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(units(&reader).await, (10, 0));
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_shared_is_read_all_the_same() {
    for fault in [Fault::Throttled, Fault::AccessDenied, Fault::LostBefore] {
        let (wire, [one, two, shop]) = tee(2).await;
        wire.script(move |call| {
            let view = call.operation == "UpdateItem" && call.request["Key"]["pk"]["S"] == "VIEW#tee";
            view.then_some(fault)
        });
        assert_eq!(units(&one).await, (10, 0), "{fault:?}");
        hold(&shop, "k", 3).await;
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!((units(&one).await, units(&two).await), ((7, 3), (7, 3)), "{fault:?}");
    }
    // A view that another version of this program has written.
    let (wire, [one, two, _]) = tee(2).await;
    look(&one).await;
    let key = keys::view(&product_id("tee"));
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    let request = request.update_expression("SET parts = :other");
    let other = AttributeValue::S("of another form".to_owned());
    request.expression_attribute_values(":other", other).send().await.unwrap();
    assert_eq!(units(&two).await, (10, 0));
    wire.take_calls();
    assert_eq!(units(&store(&wire, 6)).await, (10, 0));
    assert_eq!(wire.take_calls().len(), 1, "it is written again");
    // One from a clock that is ahead is not shown as what it is not, and gives way.
    let ahead = AttributeValue::N(wire.clock().now().plus_seconds(60).as_millis().to_string());
    let request = client(&wire).update_item().table_name(TABLE).set_key(Some(key.item()));
    let request = request.update_expression("SET read_at = :ahead").expression_attribute_values(":ahead", ahead);
    request.send().await.unwrap();
    let [three, four] = [7, 8].map(|seed| store(&wire, seed));
    assert_eq!(look(&three).await.stock_at, wire.clock().now());
    wire.take_calls();
    assert_eq!(look(&four).await.stock_at, wire.clock().now());
    assert_eq!(wire.take_calls().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_unknown_product_writes_nothing() {
    let (wire, [reader, ..]) = tee(2).await;
    wire.take_calls();
    reader.product_with_stock(&product_id("none"), soon()).await.unwrap_err();
    let calls = wire.take_calls();
    assert!(calls.iter().all(|call| call.operation.contains("Get")), "{calls:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_change_is_shown_after_a_second() {
    let (_, [reader, admin, _]) = tee(2).await;
    look(&reader).await;
    let change = ProductChange { price_minor: Some(7), ..ProductChange::default() };
    admin.change_product(&product_id("tee"), 1, change, soon()).await.unwrap();
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(look(&reader).await.product.price_minor, 7);
}

fn customer() -> CustomerId {
    CustomerId::try_from("alice").unwrap()
}

/// Writes this many holds of one unit like the one that is there, as they are after many requests.
async fn copy_hold(wire: &Wire, copies: usize) {
    wire.take_calls();
    look(&store(wire, 2)).await;
    // All partitions of the product are searched at first.
    let searched = wire.take_calls().into_iter().filter(is_search);
    let searched =
        searched.map(|call| call.request["ExpressionAttributeValues"][":key"]["S"].as_str().unwrap().to_owned());
    let own: Vec<String> = searched.filter(|due| due.starts_with("DUE#P")).collect();
    assert_eq!(own.len(), 32);
    let id = |n: usize| ReservationId::derive(&customer(), &IdempotencyKey::try_from(format!("copy-{n}")).unwrap());
    let first = ReservationId::derive(&customer(), &IdempotencyKey::try_from("k").unwrap());
    let request = client(wire).get_item().table_name(TABLE).set_key(Some(keys::reservation(&first).item()));
    let item = request.send().await.unwrap().item.unwrap();
    let total = AttributeValue::N(copies.to_string());
    let request = client(wire).update_item().table_name(TABLE).set_key(Some(keys::product(&product_id("tee")).item()));
    let request = request
        .update_expression("ADD #total :copies")
        .expression_attribute_names("#total", "total")
        .expression_attribute_values(":copies", total);
    request.send().await.unwrap();
    let numbers: Vec<usize> = (0..copies).collect();
    for chunk in numbers.chunks(100) {
        let requests = chunk.iter().map(|&n| {
            let mut copy: HashMap<String, AttributeValue> = item.clone();
            copy.extend(keys::reservation(&id(n)).item());
            copy.insert("reservation_id".to_owned(), AttributeValue::S(id(n).to_string()));
            // They end one after another, over ten minutes.
            let ends = NOW.as_millis() + 3_000 + i64::try_from(n * 600_000 / copies).unwrap();
            copy.insert("due_at".to_owned(), AttributeValue::N(ends.to_string()));
            copy.insert("due_key".to_owned(), AttributeValue::S(own[n % own.len()].clone()));
            let put = Put::builder().table_name(TABLE).set_item(Some(copy)).build().unwrap();
            TransactWriteItem::builder().put(put).build()
        });
        client(wire).transact_write_items().set_transact_items(Some(requests.collect())).send().await.unwrap();
    }
}

/// The units that these calls consumed, of the table and of the index.
fn consumed(wire: &Wire, calls: Vec<Call>) -> f64 {
    let units = calls.into_iter().map(|mut call| {
        if call.operation != "UpdateItem" {
            // Reads do not ask for it: carry them out again.
            call.request["ReturnConsumedCapacity"] = "INDEXES".into();
            let (status, answer) = wire.send(&call.operation, &call.request);
            assert_eq!(status, 200, "{answer}");
            call.response = Some(answer);
        }
        let (table, index) = call.consumed();
        table + index
    });
    units.sum()
}

/// The units a second of 1,000,000 requests an hour, distributed to 100 environments, of one product with 16 shards.
async fn units_a_second(holds: usize) -> f64 {
    let wire = table();
    stocked(&wire, &[product("tee", 100_000, 16)]).await;
    if holds > 0 {
        hold(&store(&wire, 1), "k", 1).await;
        copy_hold(&wire, holds - 1).await;
        // Whoever comes first counts them all.
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let readers: Vec<Store> = (10..110).map(|seed| store(&wire, seed)).collect();
    assert_eq!(look(&readers[0]).await.stock.reserved, holds as u64);
    let mut all = 0.0;
    for second in 0..8 {
        tokio::time::advance(Duration::from_secs(1)).await;
        wire.take_calls();
        for _ in 0..3 {
            join_all(readers.iter().map(look)).await;
        }
        let units = consumed(&wire, wire.take_calls());
        eprintln!("{holds} holds, second {second}: {units}");
        all += units;
    }
    all / 8.0
}

#[tokio::test(start_paused = true)]
async fn twenty_thousand_holds_cost_readers_what_none_cost() {
    let (none, many) = (units_a_second(0).await, units_a_second(20_000).await);
    eprintln!("read and write units a second: {none} without holds, {many} with 20,000");
    assert!(many < 1.15 * none && many < 105.0, "{none}, {many}");
}
