//! One history, from its seed to its end.

use std::collections::BTreeSet;
use std::time::Duration;

use dynoxide::Database;
use futures_util::future::join_all;
use holdfast_domain::ProductStatus::Archived;
use holdfast_domain::{Reservation, Timestamp};
use holdfast_testkit::fixtures::{CONFIRMATIONS, TABLE};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use crate::books::{BOUND_MS, Violation};
use crate::clients::{Client, Reply};
use crate::cloud::{Cloud, Function};
use crate::dynamo::{self, databases};
use crate::events::{poll, schedule, sweep};
use crate::faults::{Fault, Faults, PerFault};
use crate::judge::shown;
use crate::past::SHOWN_MS;
use crate::plan::{Actor, HOUR_MS, Part, Plan, ProductPlan, WEEKS};
use crate::planted::Planted;
use crate::world::{Service, State, World, millis};

/// The outcome of one history.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The digest of everything that happened, byte for byte.
    pub digest: u64,
    /// Calls to AWS.
    pub calls: u64,
    /// Of these, transactions that made several reservations.
    pub groups: u64,
    /// The looks at the shards of a product that is sold out that were made for several environments.
    pub looks: u64,
    /// Number of lines of the history: requests, events, messages and calls.
    pub lines: usize,
    /// Injected faults by kind.
    pub injected: PerFault,
    /// Number of single checks of promises.
    pub checks: u64,
    /// How often the reference model gave up: too many orders of the requests could explain the answers.
    pub given_up: u64,
    /// The first broken promise.
    pub violation: Option<Violation>,
    /// What happened, line by line.
    pub history: Vec<String>,
}

/// Plays the history of a seed, or a part of it.
///
/// # Panics
/// If there is no runtime or no database.
#[expect(clippy::expect_used, reason = "for tests: without a runtime or a database there is no history")]
pub fn history(seed: u64, part: &Part, planted: Option<&'static Planted>) -> Outcome {
    fastrand::seed(seed);
    let plan = Plan::of(seed, part);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let story = async { play(&plan, databases().expect("a database"), planted).await };
    tokio::task::LocalSet::new().block_on(&runtime.expect("a runtime"), story)
}

async fn play(plan: &Plan, databases: (Database, Database), planted: Option<&'static Planted>) -> Outcome {
    let mut random = fastrand::Rng::with_seed(plan.seed ^ 0x5eed);
    let faults = Faults { per_mille: plan.per_mille, on: false, injected: [0; Fault::ALL.len()] };
    let (made, to_fire) = mpsc::unbounded_channel();
    let world = World::new(random.fork(), faults, databases, made, planted);
    let cloud = Cloud::new(world.clone(), plan);
    world.note(format_args!("seed {}", plan.seed));

    let story = async {
        let clients: Vec<Client<'_>> =
            plan.actors.iter().map(|actor| Client::new(&cloud, actor, &plan.products)).collect();
        open(&clients[0], &plan.products).await;
        world.lock().faults.on = true;
        trouble(&world, plan, &mut random);
        join_all(clients.iter().map(|client| client.live(&client.actor.moments))).await;
        if plan.actors.iter().any(|actor| !actor.afterwards.is_empty()) && plan.pause_seconds > 0 {
            pause(&world, plan.pause_seconds).await;
            join_all(clients.iter().map(|client| client.live(&client.actor.afterwards))).await;
        }
        calm(&world, &cloud, &clients, plan).await;
    };
    tokio::select! {
        biased;
        () = world.broken() => {}
        () = async { tokio::join!(schedule(&cloud, to_fire), sweep(&cloud), poll(&cloud)); } => {}
        () = story => {}
    }
    let mut state = world.lock();
    Outcome {
        digest: state.history.digest,
        calls: state.calls,
        groups: state.groups,
        looks: state.looks,
        lines: state.history.lines.len(),
        injected: state.faults.injected,
        checks: state.books.checks,
        given_up: state.books.given_up,
        violation: state.books.violation().cloned(),
        history: std::mem::take(&mut state.history.lines),
    }
}

/// Creates the products through the API, before any fault.
async fn open(admin: &Client<'_>, products: &[ProductPlan]) {
    for product in products.iter().filter(|product| !product.late) {
        let reply = admin.make(product, 0).await;
        expect(admin, reply.as_ref().is_some_and(|reply| reply.status == 201), "answers_once_faults_stop", || {
            format!("{reply:?}")
        });
    }
}

fn expect(client: &Client<'_>, holds: bool, invariant: &'static str, detail: impl FnOnce() -> String) {
    client.cloud.world.expect(holds, invariant, detail);
}

/// Faults besides those of single calls: an outage, an unreadable message in the queue.
fn trouble(world: &World, plan: &Plan, random: &mut fastrand::Rng) {
    let now = world.now();
    let mut state = world.lock();
    if plan.per_mille[Fault::Away as usize] > 0 {
        let service = [Service::Dynamo, Service::Sqs, Service::Scheduler][random.usize(0..3)];
        let service = if plan.waits { Service::Dynamo } else { service };
        let from = now + random.i64(0..20_000);
        // Scheduler a whole day where others are away for an hour, since nothing waits for it.
        let hours = if service == Service::Scheduler && plan.away_ms >= HOUR_MS { 24 } else { 1 };
        state.away = Some((service, from, from + hours * i64::try_from(plan.away_ms).unwrap_or_default()));
    }
    if plan.per_mille[Fault::Poison as usize] > 0 {
        let bodies = ["", "{}", "not json", r#"{"reservation_id":"rsv_x"}"#, r#"{"reservation_id":1,"customer":[]}"#];
        let body = bodies[random.usize(0..bodies.len())];
        let State { queues, faults, promises, .. } = &mut *state;
        queues.send(CONFIRMATIONS, body, now);
        world.posted();
        promises.poison.insert(body.to_owned());
        faults.injected[Fault::Poison as usize] += 1;
    }
}

/// A long time without requests. If it is longer than minutes, sweeps do not run: they would do nothing but take time
/// to simulate. DynamoDB's TTL does.
async fn pause(world: &World, seconds: u64) {
    world.note(format_args!("nobody does anything for {seconds} s"));
    sleep(Duration::from_secs(seconds)).await;
    if seconds < WEEKS {
        return;
    }
    let now = world.now();
    let mut state = world.lock();
    let due: Vec<dynamo::Place> = state
        .books
        .items
        .iter()
        .filter(|(_, item)| item["ttl"].as_i64().is_some_and(|ttl| ttl * 1_000 <= now))
        .map(|(place, _)| place.clone())
        .collect();
    for place in due {
        let State { faults, random, .. } = &mut *state;
        if !faults.strikes(random, Fault::Ttl) {
            continue;
        }
        // Now, or while clients come back.
        let delay = [0, random.u64(0..20_000)][random.usize(0..2)];
        let later = world.clone();
        drop(state);
        world.start(async move {
            sleep(millis(delay)).await;
            clean_up(&later, place);
        });
        state = world.lock();
    }
    state.queues.forget(now);
    drop(state);
    world.copies_arrive();
}

/// DynamoDB's TTL deletes an item, unless it has been replaced meanwhile.
fn clean_up(world: &World, place: dynamo::Place) {
    let now = world.now();
    let mut state = world.lock();
    let due = |item: &Value| item["ttl"].as_i64().is_some_and(|ttl| ttl * 1_000 <= now);
    if !state.books.items.get(&place).is_some_and(due) {
        return;
    }
    dynamo::carry_out(&state.database, "DeleteItem", &json!({ "TableName": TABLE, "Key": dynamo::key(&place) }));
    if let Some(id) = place.0.strip_prefix("HOLD#") {
        state.promises.cleaned_up.insert(id.to_owned());
        state.promises.extended.remove(id);
        let id = id.to_owned();
        state.history.note(world.at(), format_args!("DynamoDB cleans up {id}"));
    }
    world.written(&mut state, vec![place], now, None);
}

/// Faults have stopped: everything must now complete.
async fn calm(world: &World, cloud: &Cloud, clients: &[Client<'_>], plan: &Plan) {
    let back_at = world.lock().away.map(|(_, _, back_at)| back_at).filter(|_| plan.away_ms >= HOUR_MS);
    if let Some(back_at) = back_at {
        // No fault is lifted early: clients that gave up come back when the outage is over.
        sleep(millis(u64::try_from(back_at - world.now()).unwrap_or_default())).await;
    }
    {
        let mut state = world.lock();
        (state.faults.on, state.away) = (false, None);
        state.books.calm_at = Some(world.now());
    }
    world.note(format_args!("faults stop"));
    // Wait for what is in flight.
    while world.busy() {
        sleep(millis(1_000)).await;
    }
    for product in &plan.products {
        let there = world.lock().books.current(&product.id).is_some();
        if !there {
            let reply = clients[0].make(product, 0).await;
            let made = reply.as_ref().is_some_and(|reply| reply.status == 201);
            expect(&clients[0], made, "answers_once_faults_stop", || format!("{reply:?}"));
        }
    }
    let answered = join_all(clients.iter().map(Client::insist)).await;
    for (client, answered) in clients.iter().zip(answered) {
        expect(client, answered, "answers_once_faults_stop", || {
            format!("{} paid, and nobody says that it arrived", client.actor.name)
        });
    }
    for client in clients {
        let answered = client.repeat().await;
        expect(client, answered, "answers_once_faults_stop", || format!("{} asked once more", client.actor.name));
    }
    drain(world, &clients[0]).await;
    redrive(world, &clients[0]).await;
    holds_end(world).await;
    give_back(world, clients).await;
    ask_for_everything(world, clients, &plan.products).await;
    let nobody =
        Actor { name: "customer-9".to_owned(), admin: false, served: false, moments: vec![], afterwards: vec![] };
    let newcomer = Client::new(cloud, &nobody, &plan.products);
    let reply = newcomer.ask(0, Function::Reserve, "GET", "/reservations", None, None).await;
    let empty = reply.as_ref().is_some_and(|reply| reply.body["items"].as_array().is_some_and(Vec::is_empty));
    expect(&newcomer, empty, "only_the_owner", || format!("{reply:?}"));
    same_as_the_table(world);
    explained(world);
}

/// Checks that the reference model explains all answers, and the final state of the table.
fn explained(world: &World) {
    let now = world.now();
    let mut state = world.lock();
    let mut journal = std::mem::take(&mut state.books.journal);
    let (wrong, given_up) = journal.at_rest(&state.books, now);
    state.books.given_up = given_up;
    state.books.expect(now, wrong.is_empty(), "the_model_explains_every_answer", || wrong.join("\n"));
}

/// Checks that every queue drains: once failed messages have come back, and an admin has listed, each message is
/// settled or a failed confirmation.
async fn drain(world: &World, admin: &Client<'_>) {
    // A message that has just failed is hidden for 15 minutes.
    let until = Instant::now() + Duration::from_secs(20 * 60);
    let waiting = || world.lock().queues.of(CONFIRMATIONS).next().is_some();
    while waiting() && Instant::now() < until {
        sleep(millis(5_000)).await;
    }
    let mut looks = 0;
    while looks == 0 || (!world.lock().drained() && looks < 4) {
        looks += 1;
        // Longer than a failed message is hidden, and than a call may take to arrive: a payment that was refused with
        // 404 may become an order of a hold made meanwhile, and the look settles its failed confirmation.
        sleep(millis(31_000)).await;
        let reply = admin.ask(1, Function::Admin, "GET", "/admin/failed-confirmations", None, None).await;
        expect(admin, reply.is_some_and(|reply| reply.status == 200), "answers_once_faults_stop", String::new);
    }
    let left: Vec<String> = world.lock().queues.messages.iter().map(|m| format!("{} {}", m.queue, m.body)).collect();
    expect(admin, left.is_empty(), "every_queue_drains", || format!("{left:?}"));
}

/// Confirmations that used up their receives are redriven, by two admins at once: now each is confirmed or refused.
async fn redrive(world: &World, admin: &Client<'_>) {
    let unanswered = world.lock().books.failed_confirmations().any(|(_, failed)| {
        failed["reason"] == "not_confirmed" && failed["state"] != "confirmed" && failed["state"] != "resolved"
    });
    if unanswered {
        let path = "/admin/failed-confirmations/redrive";
        let press = || admin.ask(0, Function::Admin, "POST", path, None, None);
        let (one, two) = tokio::join!(press(), press());
        for reply in [one, two] {
            let right = reply.as_ref().is_some_and(|reply| reply.status == 202);
            expect(admin, right, "answers_once_faults_stop", || format!("{reply:?}"));
        }
        drain(world, admin).await;
    }
    let now = world.now();
    world.lock().books.failed_at_rest(now);
}

/// Units are free now that were not when somebody paid too late. An admin resolves these payments as refunded; at the
/// same time, and afterwards, their customers confirm again.
async fn give_back(world: &World, clients: &[Client<'_>]) {
    let open = world.lock().books.failed_confirmations().any(|(_, failed)| failed["state"] == "open");
    if !open {
        return;
    }
    let pay_again = || join_all(clients.iter().map(Client::pay_again));
    let (given_back, _) = tokio::join!(clients[0].give_everything_back(), pay_again());
    expect(&clients[0], given_back, "answers_once_faults_stop", || "an admin's word has no answer".to_owned());
    pay_again().await;
    drain(world, &clients[0]).await;
    // What is open now was not resolved yet, whichever customer was named.
    let given_back = clients[0].give_everything_back().await;
    expect(&clients[0], given_back, "answers_once_faults_stop", || "an admin's word has no answer".to_owned());
    let now = world.now();
    world.lock().books.failed_at_rest(now);
}

/// Checks that every hold ends within its bound.
async fn holds_end(world: &World) {
    let last = world.lock().books.held().map(|hold| hold.expires_at.as_millis()).max();
    let now = world.now();
    let Some(last) = last else { return };
    let wait = u64::try_from(last.max(now) + BOUND_MS - now).unwrap_or_default();
    sleep_until(Instant::now() + millis(wait)).await;
    let held: Vec<String> = world.lock().books.held().map(|hold| format!("{hold:?}")).collect();
    world.expect(held.is_empty(), "every_hold_ends_within_its_bound", || format!("still held: {held:?}"));
}

/// Checks that the API shows what the table holds, when nothing changes any more.
async fn ask_for_everything(world: &World, clients: &[Client<'_>], products: &[ProductPlan]) {
    // The catalogue may be two seconds old, by the clock of the environment that read it.
    sleep(millis(SHOWN_MS.unsigned_abs())).await;
    for product in products {
        let path = format!("/products/{}", product.id);
        let reply = clients[0].ask(0, Function::Catalog, "GET", &path, None, None).await;
        let Some(reply) = answered(&clients[0], reply) else { return };
        let number = |name: &str| reply.body[name].as_i64().unwrap_or(-1);
        let (free, sold) = (number("available"), number("sold"));
        let sum = free + number("reserved") + sold == number("total");
        expect(&clients[0], sum && number("reserved") == 0, "the_catalogue_is_right", || format!("{reply:?}"));
        let right = world.lock().books.free(&product.id) == free;
        expect(&clients[0], right, "the_catalogue_is_right", || format!("{reply:?}"));
    }
    let admin = &clients[0];
    let ids = |of: &dyn Fn(&Reservation) -> bool| -> Vec<String> {
        world.lock().books.reservations.iter().filter(|(_, found)| of(found)).map(|(id, _)| id.clone()).collect()
    };
    same_list(admin, Function::Admin, "/admin/reservations", "reservation_id", ids(&|_| true)).await;
    for client in clients.iter().filter(|client| !client.actor.admin) {
        let path = format!("/admin/reservations?customer_id={}", client.actor.name);
        let own = ids(&|found| found.customer.as_str() == client.actor.name);
        same_list(admin, Function::Admin, &path, "reservation_id", own).await;
    }
    let payments: BTreeSet<String> = {
        let state = world.lock();
        let paid = state.books.reservations.values().filter_map(|found| found.payment_reference.as_ref());
        paid.map(ToString::to_string).collect()
    };
    // Not all of them, since each takes time to simulate.
    for payment in payments.iter().take(3) {
        let path = format!("/admin/reservations?payment_reference={payment}");
        let paid = |found: &Reservation| found.payment_reference.as_ref().is_some_and(|own| own.as_str() == payment);
        same_list(admin, Function::Admin, &path, "reservation_id", ids(&paid)).await;
    }
    let failed = world.lock().books.failed_confirmations().map(|(id, _)| id.clone()).collect();
    same_list(admin, Function::Admin, "/admin/failed-confirmations", "failed_confirmation_id", failed).await;
    let all: Vec<String> = products.iter().map(|product| product.id.clone()).collect();
    let archived = |id: &String| world.lock().books.current(id).is_some_and(|facts| facts.status == Archived);
    let on_show = all.iter().filter(|id| !archived(id)).cloned().collect();
    same_list(admin, Function::Admin, "/admin/products", "product_id", all).await;
    same_list(admin, Function::Catalog, "/products", "product_id", on_show).await;
    for product in products {
        let partition = format!("LEDGER#{}", product.id);
        let from = (partition.clone(), String::new());
        let entries = |state: &State| {
            let all = state.books.items.range(from.clone()..).take_while(|(place, _)| place.0 == partition);
            all.map(|(place, _)| place.1.clone()).collect()
        };
        let entries = entries(&world.lock());
        let path = format!("/admin/products/{}/ledger", product.id);
        same_list(admin, Function::Admin, &path, "entry_id", entries).await;
    }
    let actions = {
        let state = world.lock();
        let all = state.books.items.keys().filter(|(pk, _)| pk.starts_with("ACTION#"));
        all.map(|(_, id)| id.clone()).collect()
    };
    same_list(admin, Function::Admin, "/admin/actions", "action_id", actions).await;
    for client in clients.iter().filter(|client| !client.actor.admin) {
        let own = |found: &Reservation| found.customer.as_str() == client.actor.name;
        let orders = ids(&|found| own(found) && found.was_ordered());
        same_list(client, Function::Reserve, "/orders", "reservation_id", orders).await;
        same_list(client, Function::Reserve, "/reservations", "reservation_id", ids(&own)).await;
    }
}

/// Checks that a list of the API, page by page, has exactly these ids.
async fn same_list(client: &Client<'_>, function: Function, path: &str, id: &str, mut expected: Vec<String>) {
    let (mut listed, mut made) = (Vec::new(), Vec::new());
    // Some lists in small pages, the others in large ones: every page takes time to simulate.
    let limit = match path {
        "/orders" => 1,
        "/admin/reservations" => 5,
        _ => 100,
    };
    let sign = if path.contains('?') { '&' } else { '?' };
    let mut page = format!("{path}{sign}limit={limit}");
    loop {
        let reply = client.ask(0, function, "GET", &page, None, None).await;
        let Some(reply) = answered(client, reply) else { return };
        let items = reply.body["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        listed.extend(items.iter().filter_map(|item| item[id].as_str().map(str::to_owned)));
        made.extend(items.iter().filter_map(|item| shown(&item["created_at"])));
        match reply.body["next_cursor"].as_str() {
            Some(cursor) => page = format!("{path}{sign}limit={limit}&cursor={cursor}"),
            None => break,
        }
    }
    let newest_first = id != "reservation_id" || made.is_sorted_by(|one, next| one >= next);
    expect(client, newest_first, "the_lists_are_the_table", || format!("{path}: {listed:?} made at {made:?}"));
    listed.sort();
    expected.sort();
    expect(client, listed == expected, "the_lists_are_the_table", || format!("{path}: {listed:?}, has {expected:?}"));
}

fn answered(client: &Client<'_>, reply: Option<Reply>) -> Option<Reply> {
    let right = reply.as_ref().is_some_and(|reply| reply.status == 200);
    expect(client, right, "answers_once_faults_stop", || format!("{reply:?}"));
    reply.filter(|_| right)
}

/// Checks that the books, which followed every write, hold what the table holds.
fn same_as_the_table(world: &World) {
    let state = world.lock();
    let request = json!({ "TableName": TABLE, "ConsistentRead": true });
    let answer = dynamo::carry_out(&state.database, "Scan", &request).map(|(_, body)| body).unwrap_or_default();
    let items: Vec<Value> = answer["Items"].as_array().into_iter().flatten().map(dynamo::plain_item).collect();
    let same = items.len() == state.books.items.len()
        && items.iter().all(|item| {
            let place = |name: &str| item[name].as_str().unwrap_or_default().to_owned();
            state.books.items.get(&(place("pk"), place("sk"))) == Some(item)
        });
    drop(state);
    world.expect(same, "the_books_follow_the_table", || format!("{} items", items.len()));
}

/// A time of the history in a readable form.
#[must_use]
pub fn seconds(at_ms: i64) -> String {
    let began = holdfast_testkit::fixtures::NOW;
    let at = Timestamp::from_millis(at_ms - began.as_millis());
    format!("{}.{:03} s", at.as_seconds(), at.as_millis().rem_euclid(1_000))
}
