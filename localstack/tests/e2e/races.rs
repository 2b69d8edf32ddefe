//! Many at once.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::api::{Answer, Api};

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
