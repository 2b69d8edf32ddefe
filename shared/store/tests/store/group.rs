//! Group commit: who shares a call, and that nobody pays for what another one sends.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use holdfast_domain::{Basket, Product};
use holdfast_store::{Deadline, Error, Reserved, Store};
use holdfast_testkit::fixtures::{NOW, basket, books, limited, product, reserve, stocked, store, table};
use holdfast_testkit::wire::{Call, Fault, Gate, Wire};

/// `total` units of `tee` on `shards` shards, and an environment that has sold one of them.
async fn warm(total: u64, shards: u32) -> (Wire, Store) {
    shop(limited(product("tee", total, shards), 3)).await
}

async fn shop(tee: Product) -> (Wire, Store) {
    let wire = table();
    stocked(&wire, &[tee]).await;
    let store = store(&wire, 1);
    reserve(&store, &basket("warm-up", "k", &[("tee", 1)]), NOW).await.unwrap();
    wire.take_calls();
    (wire, store)
}

fn one(who: &str) -> Basket {
    basket(who, "k", &[("tee", 1)])
}

/// What this many customers want, one unit each.
fn customers(count: usize) -> Vec<Basket> {
    (0..count).map(|n| one(&format!("customer-{n}"))).collect()
}

/// The first transaction waits at this gate, so that whoever comes next gathers behind it.
fn hold_up(wire: &Wire) -> Arc<Gate> {
    wire.gate(|call| call.operation == "TransactWriteItems")
}

/// Reserves all of these: the first is on its way when the others come.
async fn together(wire: &Wire, store: &Store, baskets: &[Basket]) -> Vec<Result<Reserved, Error>> {
    let gate = hold_up(wire);
    let (first, others) = baskets.split_first().unwrap();
    let others = async {
        gate.arrived().await;
        let open = async {
            // Everybody has gathered by then: nothing else is ready to run.
            for _ in 0..100 {
                tokio::task::yield_now().await;
            }
            gate.open();
        };
        tokio::join!(join_all(others.iter().map(|basket| reserve(store, basket, NOW))), open).0
    };
    let (first, mut answers) = tokio::join!(reserve(store, first, NOW), others);
    answers.insert(0, first);
    answers
}

fn transactions(calls: &[Call]) -> Vec<&Call> {
    calls.iter().filter(|call| call.operation == "TransactWriteItems").collect()
}

fn code(answer: &Result<Reserved, Error>) -> &str {
    match answer {
        Ok(reserved) if reserved.replayed => "replayed",
        Ok(_) => "reserved",
        Err(Error::Refused(refusal)) => refusal.code(),
        Err(_) => "failed",
    }
}

#[tokio::test(start_paused = true)]
async fn a_read_of_the_product_that_hangs_keeps_nobody_else_waiting_for_long() {
    let wire = table();
    stocked(&wire, &[product("tee", 10, 1)]).await;
    let store = store(&wire, 1);
    wire.fail("BatchGetItem", 1, Fault::Silence);
    let began = tokio::time::Instant::now();
    let (ann, bob) = (one("ann"), one("bob"));
    let first = reserve(&store, &ann, NOW);
    let second = async {
        let answer = reserve(&store, &bob, NOW).await;
        (answer, began.elapsed())
    };
    let (_, (answer, took)) = tokio::join!(first, second);
    assert_eq!(code(&answer), "reserved");
    assert!(took < Duration::from_millis(300), "{took:?}");
}

#[tokio::test]
async fn those_who_come_meanwhile_share_one_transaction() {
    let (wire, store) = warm(1_000, 2).await;
    let baskets = customers(41);
    let answers = together(&wire, &store, &baskets).await;
    assert!(answers.iter().all(|answer| code(answer) == "reserved"), "{answers:?}");
    let calls = wire.take_calls();
    let sizes: Vec<usize> = calls.iter().map(|call| call.transaction_keys().len()).collect();
    // The lone first one: the reservation, a shard, a limit. Then forty of them, and one update of the shard.
    assert_eq!(sizes, [3, 81]);
    let shard = |key: &String| key.starts_with("STOCK#");
    assert_eq!(calls[1].transaction_keys().iter().filter(|key| shard(key)).count(), 1);
    // The reservation and the limit are two units each, and the shard is two for all of them.
    assert_eq!(calls[1].consumed().0, 40.0 * 4.0 + 2.0, "{:?}", calls[1].response);
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (1_000 - 42, 42));
    let (wire, store) = shop(product("tee", 1_000, 2)).await;
    together(&wire, &store, &baskets).await;
    assert_eq!(wire.take_calls()[1].consumed().0, 40.0 * 2.0 + 2.0, "without a limit");
}

#[tokio::test]
async fn a_group_has_at_most_the_actions_of_a_transaction() {
    let (wire, store) = warm(1_000, 2).await;
    let baskets = customers(120);
    let answers = together(&wire, &store, &baskets).await;
    assert!(answers.iter().all(|answer| code(answer) == "reserved"), "{answers:?}");
    let calls = wire.take_calls();
    let sizes: Vec<usize> = calls.iter().map(|call| call.transaction_keys().len()).collect();
    assert_eq!(sizes.iter().sum::<usize>(), 120 * 2 + sizes.len(), "{sizes:?}");
    assert!(sizes.iter().all(|&size| size <= 100) && sizes.len() == 4, "{sizes:?}");
}

#[tokio::test]
async fn replays_and_limits_drop_out_alone_and_the_others_go_again_once() {
    let (wire, store) = warm(1_000, 2).await;
    // What another environment did: Rita has her hold, and Lena all that she may have.
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    reserve(&other, &one("rita"), NOW).await.unwrap();
    reserve(&other, &basket("lena", "first", &[("tee", 3)]), NOW).await.unwrap();
    wire.take_calls();
    let mut baskets = customers(11);
    baskets.insert(3, one("rita"));
    baskets.insert(7, one("lena"));
    let answers = together(&wire, &store, &baskets).await;
    let codes: Vec<&str> = answers.iter().map(code).collect();
    assert_eq!((codes[3], codes[7]), ("replayed", "customer_limit_reached"), "{codes:?}");
    assert_eq!(codes.iter().filter(|&&code| code == "reserved").count(), 11, "{codes:?}");
    let calls = wire.take_calls();
    // The first one, the group that Rita and Lena stopped, and the others.
    assert_eq!(transactions(&calls).len(), 3, "{calls:?}");
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (1_000 - 1 - 1 - 3 - 11, 16));
}

#[tokio::test]
async fn a_flood_of_replays_delays_others_once() {
    let (wire, store) = warm(1_000, 2).await;
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    reserve(&other, &one("rita"), NOW).await.unwrap();
    wire.take_calls();
    // Rita sends hers again and again, each when the last one was answered; nobody's transaction but hers is in her way.
    let flood = async {
        for _ in 0..40 {
            assert_eq!(code(&reserve(&store, &one("rita"), NOW).await), "replayed");
        }
    };
    let others = customers(10);
    let others = async {
        let answers = join_all(others.iter().map(|basket| reserve(&store, basket, NOW))).await;
        assert!(answers.iter().all(|answer| code(answer) == "reserved"), "{answers:?}");
        wire.take_calls()
    };
    let (calls, ()) = tokio::join!(others, flood);
    let of_others = |call: &&Call| call.transaction_keys().iter().filter(|key| key.starts_with("HOLD#")).count() > 1;
    let stopped = |call: &&Call| call.response.as_ref().is_some_and(|body| body["CancellationReasons"].is_array());
    let groups: Vec<&Call> = transactions(&calls).into_iter().filter(of_others).collect();
    assert!(groups.iter().filter(|call| stopped(call)).count() <= 1, "{groups:?}");
}

#[tokio::test]
async fn one_customer_is_once_in_a_group_and_holds_up_nobody_else() {
    let (wire, store) = warm(1_000, 2).await;
    let mut baskets = vec![one("first")];
    // Two of Max's own that reach his limit together, and the same request twice.
    baskets.extend([basket("max", "a", &[("tee", 2)]), basket("max", "b", &[("tee", 2)])]);
    baskets.extend([one("nina"), one("nina")]);
    baskets.extend(customers(5));
    let answers = together(&wire, &store, &baskets).await;
    let codes: Vec<&str> = answers.iter().map(code).collect();
    assert_eq!(codes[1..5], ["reserved", "customer_limit_reached", "reserved", "replayed"], "{codes:?}");
    assert!(codes[5..].iter().all(|&code| code == "reserved"), "{codes:?}");
    let calls = wire.take_calls();
    for call in transactions(&calls) {
        let mut keys = call.transaction_keys();
        let all = keys.len();
        keys.sort();
        keys.dedup();
        assert_eq!(keys.len(), all, "an item twice: {keys:?}");
    }
    // Of everybody else, all are in the first group.
    assert_eq!(transactions(&calls)[1].transaction_keys().len(), 7 * 2 + 1, "{calls:?}");
    let tee = books(&wire).await["tee"];
    assert_eq!(tee.held, 1 + 1 + 2 + 1 + 5);
}

#[tokio::test]
async fn a_lost_answer_of_a_group_is_one_hold_and_the_first_answer_for_each() {
    let (wire, store) = warm(1_000, 2).await;
    let baskets = customers(8);
    let mut seen = 0;
    wire.script(move |call| {
        seen += usize::from(call.operation == "TransactWriteItems");
        // The second one, which is the group: applied, and no try of the SDK has an answer.
        (call.operation == "TransactWriteItems" && (2..5).contains(&seen)).then_some(Fault::LostAfter)
    });
    let answers = together(&wire, &store, &baskets).await;
    assert!(answers.iter().all(|answer| code(answer) == "reserved"), "{answers:?}");
    assert_eq!(books(&wire).await["tee"].held, 9);
}

#[tokio::test]
async fn a_group_that_is_refused_as_a_whole_is_tried_one_by_one() {
    let (wire, store) = warm(1_000, 2).await;
    let baskets = customers(6);
    // As if one of them made the request invalid: nobody else fails because of it.
    wire.script(|call| {
        let keys = call.transaction_keys();
        let bad = keys.len() > 3;
        (call.operation == "TransactWriteItems" && bad).then_some(Fault::AccessDenied)
    });
    let answers = together(&wire, &store, &baskets).await;
    assert!(answers.iter().all(|answer| code(answer) == "reserved"), "{answers:?}");
    assert_eq!(books(&wire).await["tee"].held, 7);
}

#[tokio::test]
async fn whoever_gives_up_takes_nobody_along() {
    let (wire, store) = warm(1_000, 2).await;
    let (gate, store) = (hold_up(&wire), Arc::new(store));
    let request = |who: &'static str| {
        let store = store.clone();
        #[expect(clippy::disallowed_methods, reason = "for tests: a caller that goes away is a task that is aborted")]
        tokio::spawn(async move { reserve(&store, &one(who), NOW).await })
    };
    let sent = request("gives up while the call is on its way");
    gate.arrived().await;
    let waits = request("gives up before it is in a group");
    let stays = request("stays");
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    sent.abort();
    waits.abort();
    assert_eq!(code(&stays.await.unwrap()), "reserved");
    let tee = books(&wire).await["tee"];
    assert_eq!((tee.available, tee.held), (998, 2));
}

#[tokio::test(start_paused = true)]
async fn a_deadline_is_each_ones_own() {
    let (wire, store) = warm(1_000, 2).await;
    let gate = hold_up(&wire);
    let ensure = |_| async { Ok(()) };
    let (short, long) = (one("short"), one("long"));
    let (hurried, patient) = (
        store.reserve(&short, NOW, Deadline::after(Duration::from_millis(900)), ensure),
        store.reserve(&long, NOW, Deadline::after(Duration::from_secs(8)), ensure),
    );
    let began = tokio::time::Instant::now();
    let hurried = async {
        let answer = hurried.await;
        assert_eq!((code(&answer), began.elapsed().as_millis()), ("failed", 900));
        gate.open();
    };
    let (answer, ()) = tokio::join!(patient, hurried);
    assert_eq!(code(&answer), "reserved");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_does_not_stop_a_sale() {
    let (wire, store) = warm(1_000, 2).await;
    let gate = hold_up(&wire);
    let mut hangs = true;
    wire.script(move |call| {
        let first = call.operation == "TransactWriteItems" && std::mem::take(&mut hangs);
        first.then_some(Fault::Silence)
    });
    let (one, two) = (one("unlucky"), one("lucky"));
    let began = tokio::time::Instant::now();
    let unlucky = async {
        let answer = reserve(&store, &one, NOW).await;
        (answer, began.elapsed())
    };
    let lucky = async {
        gate.arrived().await;
        gate.open();
        let answer = reserve(&store, &two, NOW).await;
        (answer, began.elapsed())
    };
    let ((unlucky, late), (lucky, soon)) = tokio::join!(unlucky, lucky);
    assert_eq!((code(&unlucky), code(&lucky)), ("reserved", "reserved"));
    assert!(soon < Duration::from_millis(300) && late >= Duration::from_secs(2), "{soon:?} {late:?}");
}

#[tokio::test]
async fn a_herd_that_finds_nothing_shares_its_looks() {
    let (wire, store) = warm(10, 2).await;
    let baskets = customers(200);
    let answers = together(&wire, &store, &baskets).await;
    let count = |wanted: &str| answers.iter().filter(|answer| code(answer) == wanted).count();
    assert_eq!((count("reserved"), count("insufficient_stock")), (9, 191));
    let calls = wire.take_calls();
    let of = |operation: &str| calls.iter().filter(|call| call.operation == operation).count();
    // All shards are read once, overdue holds are searched for once; each one's own key is read in a group.
    // Two partitions for each of two shards, and those of baskets.
    assert!(of("TransactWriteItems") <= 4 && of("BatchGetItem") <= 3 && of("Query") <= 2 * 20, "{calls:?}");
    assert!(of("TransactGetItems") <= 6, "{}", of("TransactGetItems"));
    let keys = |call: &Call| call.request["TransactItems"].as_array().map_or(0, Vec::len);
    let largest = calls.iter().filter(|call| call.operation == "TransactGetItems").map(keys).max();
    assert!(largest.is_some_and(|keys| (50..=100).contains(&keys)), "{largest:?}");
}

#[tokio::test]
async fn a_key_that_is_being_written_delays_only_its_own_look() {
    let (wire, store) = warm(1, 1).await;
    let _ = reserve(&store, &one("first"), NOW).await.unwrap_err();
    wire.take_calls();
    // Of the reads of two or more keys, the first meets a conflict on one of them.
    let mut met = false;
    wire.script(move |call| {
        let keys = call.request["TransactItems"].as_array().map_or(0, Vec::len);
        let meets = call.operation == "TransactGetItems" && keys > 1 && !met;
        met |= meets;
        meets.then_some(Fault::ConflictAt(1))
    });
    let baskets = customers(20);
    let answers = join_all(baskets.iter().map(|basket| reserve(&store, basket, NOW))).await;
    assert!(answers.iter().all(|answer| code(answer) == "insufficient_stock"), "{answers:?}");
    let calls = wire.take_calls();
    assert!(calls.iter().all(|call| call.operation == "TransactGetItems"), "{calls:?}");
    assert!(calls.len() <= 4, "{calls:?}");
}

#[tokio::test]
async fn nobody_is_told_sold_out_because_of_units_that_were_counted_twice() {
    let (wire, store) = shop(product("tee", 7, 1)).await;
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    // Her transaction is applied when the shards are read, and its answer comes afterwards.
    let gate = wire.gate_after(|call| call.operation == "TransactWriteItems");
    let alice = basket("alice", "k", &[("tee", 3)]);
    let late = async {
        gate.arrived().await;
        let refused = reserve(&store, &basket("greedy", "k", &[("tee", 7)]), NOW).await;
        assert_eq!(code(&refused), "insufficient_stock");
        gate.open();
    };
    let (answer, ()) = tokio::join!(reserve(&store, &alice, NOW), late);
    assert_eq!(code(&answer), "reserved");
    // Three are free, whatever this environment has subtracted.
    assert_eq!(code(&reserve(&store, &basket("bob", "k", &[("tee", 3)]), NOW).await), "reserved");
    assert_eq!(code(&reserve(&other, &one("carol"), NOW).await), "insufficient_stock");
    assert_eq!(books(&wire).await["tee"].available, 0);
}

#[tokio::test(start_paused = true)]
async fn a_search_that_takes_long_keeps_nobody_waiting() {
    let (wire, store) = shop(product("tee", 3, 1)).await;
    let other = holdfast_testkit::fixtures::store(&wire, 2);
    let held = reserve(&other, &basket("alice", "k", &[("tee", 2)]), NOW).await.unwrap().reservation;
    // The environment has learned that nothing is free; then Alice gives hers back.
    assert_eq!(code(&reserve(&store, &one("early"), NOW).await), "insufficient_stock");
    other.cancel(&held.reservation_id, &held.customer, NOW, holdfast_testkit::fixtures::soon()).await.unwrap();
    tokio::time::advance(Duration::from_secs(2)).await;
    let gate = wire.gate(|call| call.operation == "Query");
    let greedy = basket("greedy", "k", &[("tee", 50)]);
    let began = tokio::time::Instant::now();
    let modest = async {
        gate.arrived().await;
        assert_eq!(code(&reserve(&store, &one("modest"), NOW).await), "reserved");
        assert!(began.elapsed() < Duration::from_millis(400), "{:?}", began.elapsed());
        gate.open();
    };
    let (answer, ()) = tokio::join!(reserve(&store, &greedy, NOW), modest);
    assert_eq!(code(&answer), "insufficient_stock");
}
