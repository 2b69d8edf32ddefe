//! Many at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::{join, join_all};
use serde_json::{Value, json};

use crate::api::{Answer, Api, Who};

pub(crate) fn counts(answers: &[Answer]) -> BTreeMap<(u16, String), usize> {
    let mut counts = BTreeMap::new();
    for answer in answers {
        *counts.entry((answer.status, answer.code().to_owned())).or_default() += 1;
    }
    counts
}

pub(crate) async fn two_hundred_callers_for_the_last_unit(api: Api) {
    api.product("last-unit", 1, json!({})).await;
    let callers: Vec<String> = (0..200).map(|n| format!("racer-{n}")).collect();
    let answers = join_all(callers.iter().map(|caller| api.reserve(caller, "k", &[("last-unit", 1)]))).await;
    let expected = [((201, String::new()), 1), ((409, "insufficient_stock".to_owned()), 199)];
    assert_eq!(counts(&answers), BTreeMap::from(expected));
    let book = api.book("last-unit").await;
    assert_eq!((book.available, book.held), (0, 1));
    // The one who holds it is never told that it is gone.
    let winner = answers.iter().position(|answer| answer.status == 201).unwrap();
    let again = api.reserve(&callers[winner], "k", &[("last-unit", 1)]).await;
    again.is(201, "");
    assert_eq!(again.id(), answers[winner].id());
}

pub(crate) async fn the_same_request_fifty_times_at_once(api: Api) {
    // A single unit: every repetition meets an empty shard too, and must not say so.
    api.product("fifty", 1, json!({})).await;
    let answers = join_all((0..50).map(|_| api.reserve("alice", "fifty", &[("fifty", 1)]))).await;
    assert_eq!(counts(&answers), BTreeMap::from([((201, String::new()), 50)]));
    let timeless = |answer: &Answer| {
        let mut body = answer.body.clone();
        // What depends on when it was asked, and only that.
        for member in ["server_time", "expires_in_seconds"] {
            body[member] = Value::Null;
        }
        body
    };
    assert!(answers.iter().all(|answer| timeless(answer) == timeless(&answers[0])));
    let replayed = answers.iter().filter(|answer| answer.headers.contains_key("idempotent-replayed")).count();
    assert_eq!(replayed, 49);
    assert_eq!(api.book("fifty").await.held, 1);
}

pub(crate) async fn several_lines_all_or_nothing_under_contention(api: Api) {
    // Everybody wants one of each, in any order, and there are fewer of the one than of the other.
    api.product("pair-a", 20, json!({"shards": 2})).await;
    api.product("pair-b", 7, json!({"shards": 2})).await;
    let lines = [[("pair-a", 1), ("pair-b", 1)], [("pair-b", 1), ("pair-a", 1)]];
    let callers: Vec<String> = (0..60).map(|n| format!("pair-{n}")).collect();
    let answers = join_all(callers.iter().enumerate().map(|(n, caller)| api.reserve(caller, "k", &lines[n % 2]))).await;
    let expected = [((201, String::new()), 7), ((409, "insufficient_stock".to_owned()), 53)];
    assert_eq!(counts(&answers), BTreeMap::from(expected));
    let (a, b) = (api.book("pair-a").await, api.book("pair-b").await);
    assert_eq!((a.available, a.held, b.available, b.held), (13, 7, 0, 7));
}

pub(crate) async fn an_order_is_given_back_beside_its_own_payment_and_another(api: Api) {
    for round in 0..8 {
        let product = format!("back-{round}");
        api.product(&product, 1, json!({"max_per_customer": 1})).await;
        let id = api.reserve("alice", &product, &[(&product, 1)]).await.id();
        let (own, other) = (format!("pay_own_{round}"), format!("pay_other_{round}"));
        api.confirm("alice", &id, Some(&own)).await.is(200, "");
        let body = json!({"reason": "changed her mind", "restock": true, "customer_id": "alice"});
        let path = format!("/orders/{id}/cancel");
        let (given_back, again, paid_twice) = futures_util::join!(
            api.post(&path, Who::Service("shop"), body),
            join_all((0..3).map(|_| api.confirm("alice", &id, Some(&own)))),
            api.confirm("alice", &id, Some(&other)),
        );
        assert_eq!(given_back.is(200, "").body["status"], "cancelled");
        // Each of the others came before it or after it.
        for copy in &again {
            assert!(matches!((copy.status, copy.code()), (200, "") | (409, "refund_required")), "{copy:#?}");
        }
        let code = paid_twice.code();
        assert!(matches!((paid_twice.status, code), (409, "already_confirmed" | "refund_required")), "{paid_twice:#?}");
        assert!(code == "refund_required" || paid_twice.body["refund_required"] == true, "{paid_twice:#?}");

        let order = api.get(&format!("/orders/{id}"), Who::Customer("alice")).await;
        assert_eq!(order.is(200, "").body["status"], "cancelled");
        for payment in [&own, &other] {
            api.confirm("alice", &id, Some(payment)).await.is(409, "refund_required");
            // Once each, however often they were sent.
            let owed = api.owed(payment).await;
            assert_eq!((owed.len(), &owed[0]["state"]), (1, &json!("open")), "{owed:#?}");
        }
        let book = api.book(&product).await;
        assert_eq!((book.available, book.held, book.sold), (1, 0, 0));
        // And the limit.
        api.reserve("alice", &format!("{product}-again"), &[(&product, 1)]).await.is(201, "");
    }
}

pub(crate) async fn all_holds_are_released_while_customers_confirm_and_extend(api: Api) {
    const CUSTOMERS: usize = 16;
    for round in 0..4 {
        let (product, beside) = (format!("off-{round}"), format!("off-beside-{round}"));
        api.product(&product, 40, json!({"shards": 2})).await;
        api.product(&beside, 40, json!({"shards": 2})).await;
        let customers: Vec<String> = (0..CUSTOMERS).map(|n| format!("off-{round}-{n}")).collect();
        let lines = [(product.as_str(), 2), (beside.as_str(), 1)];
        let held = join_all(customers.iter().map(|customer| api.reserve(customer, "k", &lines))).await;
        let ids: Vec<String> = held.iter().map(|held| held.is(201, "").id()).collect();
        let payment = |n: usize| format!("pay_off_{round}_{n}");
        let acts = join_all(customers.iter().zip(&ids).enumerate().map(async |(n, (customer, id))| match n % 4 {
            0 | 1 => api.confirm(customer, id, Some(&payment(n))).await,
            2 => api.confirm(customer, id, None).await,
            _ => {
                let extend = json!({"hold_seconds": 900});
                api.post(&format!("/reservations/{id}/extend"), Who::Customer(customer), extend).await
            }
        }));
        // Two admins at once.
        let releases = join_all((0..2).map(|_| api.release_holds(&product, "event called off")));
        let (mut released, acted) = join(releases, acts).await;
        // What has changed while it was read may be left: once more, now that nobody acts.
        released.push(api.release_holds(&product, "event called off").await);
        assert_eq!(released.last().unwrap().is(200, "").body["complete"], true);

        let mut orders = 0;
        for (n, (answer, id)) in acted.iter().zip(&ids).enumerate() {
            let ended = if n % 4 < 2 { "refund_required" } else { "reservation_cancelled" };
            assert!(answer.status == 200 || answer.code() == ended, "{answer:#?}");
            // An order stays an order; whatever else was held, also if it was extended, is released.
            let ordered = answer.status == 200 && n % 4 < 3;
            orders += i64::from(ordered);
            let now = api.get(&format!("/admin/reservations/{id}"), Who::Admin).await;
            let (status, why) =
                if ordered { ("confirmed", Value::Null) } else { ("cancelled", json!("event called off")) };
            assert_eq!((&now.is(200, "").body["status"], &now.body["cancel_reason"]), (&json!(status), &why), "{n}");
            if !ordered {
                api.confirm(&customers[n], id, Some(&payment(n))).await.is(409, "refund_required");
            }
        }
        // Each was released once, with all its units.
        let sum = |member: &str| -> i64 {
            released.iter().map(|answer| answer.is(200, "").body[member].as_i64().unwrap()).sum()
        };
        let cancelled = i64::try_from(CUSTOMERS).unwrap() - orders;
        assert_eq!((sum("released_holds"), sum("released_units")), (cancelled, 3 * cancelled));
        for (id, units) in [(&product, 2), (&beside, 1)] {
            let book = api.book(id).await;
            assert_eq!((book.available, book.held, book.sold), (40 - units * orders, 0, units * orders), "{id}");
        }
    }
}

pub(crate) async fn baskets_are_changed_as_their_holds_end(api: Api) {
    const CUSTOMERS: usize = 8;
    for id in ["ends-a", "ends-b"] {
        api.product(id, 60, json!({"hold_seconds": 10, "shards": 2})).await;
    }
    let api = &api;
    let customers: Vec<String> = (0..CUSTOMERS).map(|n| format!("ends-{n}")).collect();
    let baskets = [&[("ends-a", 3)][..], &[("ends-a", 1), ("ends-b", 2)], &[("ends-b", 1)]];
    let changing = Cell::new(CUSTOMERS);
    let change = async |customer: &String| {
        let mut last = api.reserve(customer, "k", &[("ends-a", 2)]).await;
        let id = last.is(201, "").id();
        let seconds = last.body["expires_in_seconds"].as_u64().unwrap();
        // Nothing announces that a hold is about to end: half a second before it does.
        tokio::time::sleep(Duration::from_millis(seconds * 1_000 - 500)).await;
        let mut turn = baskets.iter().cycle();
        let ended = loop {
            let answer = api.change(customer, &id, turn.next().unwrap()).await;
            if answer.status != 200 {
                break answer;
            }
            last = answer;
        };
        changing.set(changing.get() - 1);
        ended.is(410, "hold_expired");
        last
    };
    let sweeping = async {
        while changing.get() > 0 {
            api.stack.invoke("expire", &json!({"kind": "sweep"})).await.unwrap();
        }
    };
    let (last, ()) = join(join_all(customers.iter().map(change)), sweeping).await;
    for (customer, last) in customers.iter().zip(&last) {
        let now = api.get(&format!("/reservations/{}", last.id()), Who::Customer(customer)).await;
        assert_eq!((&now.is(200, "").body["status"], &now.body["lines"]), (&json!("expired"), &last.body["lines"]));
        assert_eq!(now.body["expires_at"], last.body["expires_at"]);
        api.change(customer, &last.id(), &[("ends-b", 1)]).await.is(410, "hold_expired");
    }
    let (a, b) = (api.book("ends-a").await, api.book("ends-b").await);
    assert_eq!((a.available, a.held, b.available, b.held), (60, 0, 60, 0), "released once, with what they had at last");

    // A late payment takes what was last held.
    let paid = join_all(
        customers
            .iter()
            .zip(&last)
            .map(|(customer, last)| async move { api.confirm(customer, &last.id(), Some("pay_ends")).await }),
    );
    let mut sold = BTreeMap::from([("ends-a", 0), ("ends-b", 0)]);
    for (order, last) in paid.await.iter().zip(&last) {
        assert_eq!(
            (&order.is(200, "").body["confirmed_late"], &order.body["lines"]),
            (&json!(true), &last.body["lines"])
        );
        for line in order.body["lines"].as_array().unwrap() {
            *sold.get_mut(line["product_id"].as_str().unwrap()).unwrap() += line["quantity"].as_i64().unwrap();
        }
    }
    for (id, sold) in sold {
        let book = api.book(id).await;
        assert_eq!((book.available, book.held, book.sold), (60 - sold, 0, sold), "{id}");
    }
}

pub(crate) async fn a_product_is_archived_while_it_is_reserved(api: Api) {
    for round in 0..4 {
        let product = format!("retired-{round}");
        api.product(&product, 60, json!({"shards": 4})).await;
        let held = Cell::new(0);
        let customers: Vec<String> = (0..60).map(|n| format!("retired-{round}-{n}")).collect();
        let reserves = join_all(customers.iter().map(async |customer| {
            let answer = api.reserve(customer, "k", &[(&product, 1)]).await;
            held.set(held.get() + i64::from(answer.status == 201));
            answer
        }));
        let archive = async {
            // In the middle of it.
            while held.get() < 4 {
                tokio::task::yield_now().await;
            }
            let archived = api.patch(&product, 1, json!({"status": "archived"})).await;
            // From now on nobody reserves it.
            let late = api.reserve("retired-late", &product, &[(&product, 1)]).await;
            late.is(409, "product_not_on_sale");
            archived
        };
        let (answers, archived) = join(reserves, archive).await;
        assert_eq!(archived.is(200, "").body["status"], "archived");
        for answer in &answers {
            let (status, code) = (answer.status, answer.code());
            assert!(matches!((status, code), (201, "") | (409, "product_not_on_sale")), "{answer:#?}");
        }
        let book = api.book(&product).await;
        assert_eq!((book.available, book.held, book.sold), (60 - held.get(), held.get(), 0));
        // A hold that was there before is sold all the same, and the others are released.
        let first = answers.iter().position(|answer| answer.status == 201).unwrap();
        api.confirm(&customers[first], &answers[first].id(), Some("pay_retired")).await.is(200, "");
        let released = api.release_holds(&product, "no longer made").await;
        assert_eq!(released.is(200, "").body["released_holds"], held.get() - 1);
        let book = api.book(&product).await;
        assert_eq!((book.available, book.held, book.sold), (59, 0, 1));
    }
}
