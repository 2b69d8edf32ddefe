//! From a seed to a plan: which products there are, who does what, and how often which fault occurs. (One list of
//! situations, hence the length.)
//!
//! A plan is data. Removing parts of it leaves the rest as it was, so that a failing history can be shrunk.

use std::collections::BTreeSet;

use crate::faults::Fault;

/// One action of a customer or an admin.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    /// Reserves with the customer's `key`-th key; requests with one key may have different bodies.
    Reserve { key: u8, body: Vec<(usize, u32)> },
    /// Takes a step, and all of `then` at once when there is an answer.
    Then { first: Box<Step>, then: Vec<Step> },
    /// Confirms the reservation of that key, with the `payment`-th payment for it if any; from [`SHARED`] on, a payment
    /// is for several reservations.
    Confirm { key: u8, payment: Option<u8> },
    /// Cancels it.
    Cancel { key: u8 },
    /// The shop's back end gives the order of that key back; its units go back on sale, or leave the stock.
    GiveBack { key: u8, restock: bool },
    /// Extends it.
    Extend { key: u8, seconds: u32 },
    /// Gives the hold of that key these lines.
    ChangeLines { key: u8, body: Vec<(usize, u32)> },
    /// The shop's back end hands the hold of that key to another customer.
    HandOver { key: u8, to: String },
    /// Reads it.
    Get { key: u8 },
    /// Lists the customer's own reservations, or orders.
    List { orders: bool },
    /// Reads a product.
    Look { product: usize },
    /// Tries to confirm, cancel, extend and read another customer's reservation.
    Trespass { victim: String, key: u8 },
    /// The shop's back end confirms the reservation of that key with the right payment, but names another customer.
    Mistake { key: u8, payment: u8, instead: String },
    /// Waits until this many milliseconds after the hold of that key ends, as far as the customer knows, and then takes
    /// all these steps at once.
    AroundExpiry { key: u8, offset_ms: i64, then: Vec<Step> },
    /// Waits for the next full ten seconds, so that several actors act at the same time.
    Meet { then: Vec<Step> },
    /// An admin creates a product that did not exist at the start.
    Make { product: usize },
    /// An admin adjusts the stock, with the admin's `key`-th key.
    Adjust { key: u8, product: usize, delta: i64, expecting: bool },
    /// An admin changes a product.
    Change { product: usize, what: Change },
    /// An admin lists failed confirmations, and then retries, resolves or redrives, or does nothing.
    Failed { then: Settle },
    /// An admin reads a ledger.
    Audit { ledger: usize },
    /// An admin searches for reservations.
    Find { search: Search },
    /// An admin releases the hold that a customer made with that key.
    Release { victim: String, key: u8 },
    /// An admin releases all holds of a product.
    ReleaseAll { product: usize },
}

impl Step {
    fn then(self, then: Vec<Step>) -> Step {
        Step::Then { first: Box::new(self), then }
    }
}

/// What an admin searches for: reservations for which all of this holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Search {
    pub(crate) customer: Option<String>,
    /// Whose payment, for which key, and its number.
    pub(crate) payment: Option<(String, u8, u8)>,
    pub(crate) status: Option<&'static str>,
    pub(crate) product: Option<usize>,
    /// When it was made, in milliseconds after the start of the history: at the first of these times or later, and before
    /// the second.
    pub(crate) made: Option<(i64, i64)>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Change {
    Price(u64),
    Limit(Option<u32>),
    Pause,
    Archive,
    OnSale,
    Hold(u32),
    Name(u32),
    /// In milliseconds after the start of the history.
    SaleEnds(Option<i64>),
    LatePayment(u32),
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Settle {
    Nothing,
    Retry,
    Resolve,
    Redrive,
}

/// What an actor does at one moment: all steps at once.
#[derive(Debug, Clone)]
pub(crate) struct Moment {
    /// Its number in the plan, by which a smaller plan keeps or omits it.
    pub(crate) number: usize,
    /// How long the actor waits before it.
    pub(crate) wait_ms: u64,
    pub(crate) steps: Vec<Step>,
    /// The number of retries after no answer.
    pub(crate) patience: u32,
}

/// A customer or an admin. The first actor is an admin.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub(crate) name: String,
    pub(crate) admin: bool,
    /// Whether the shop's back end sends their requests.
    pub(crate) served: bool,
    pub(crate) moments: Vec<Moment>,
    /// What they do after the long pause.
    pub(crate) afterwards: Vec<Moment>,
}

#[derive(Debug, Clone)]
pub(crate) struct ProductPlan {
    pub(crate) id: String,
    pub(crate) total: u64,
    pub(crate) shards: u32,
    pub(crate) hold_seconds: u32,
    pub(crate) limit: Option<u32>,
    /// Whether each customer's units are counted; they are not if there will never be a limit.
    pub(crate) counted: bool,
    /// How long after a hold's end a payment may make an order of it; the API's default if absent.
    pub(crate) late_payment_seconds: Option<u32>,
    pub(crate) price_minor: u64,
    pub(crate) currency: &'static str,
    /// When the sale starts and ends, in milliseconds after the start of the history.
    pub(crate) sale: (Option<i64>, Option<i64>),
    /// Whether it is created while faults are injected, and not before.
    pub(crate) late: bool,
}

/// The whole plan.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) products: Vec<ProductPlan>,
    pub(crate) actors: Vec<Actor>,
    pub(crate) per_mille: [u32; Fault::ALL.len()],
    /// The long pause before the replays: minutes, hours or weeks.
    pub(crate) pause_seconds: u64,
    /// How long an outage lasts, if there is one.
    pub(crate) away_ms: u64,
    /// The rate limit on a customer's changes, if any: requests per second, and burst.
    pub(crate) rate: Option<(u32, u32)>,
    /// The numbers of partitions of the index `due`, of products and of baskets. Rarely more than one, since each is queried
    /// again and again.
    pub(crate) due_partitions: (u32, u32),
    /// How many requests one environment of `reserve` serves at once.
    pub(crate) at_once: usize,
    /// Whether some environments write new items as in layout 1, as during an upgrade. The others write them as in layout 2.
    pub(crate) mixed_layouts: bool,
    /// Whether the table is away for a while, so that confirmations wait in the queue, and somebody asks meanwhile.
    pub(crate) waits: bool,
}

/// The part of a plan that is played: everything, unless a smaller history is searched for or replayed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The moments that are played; all if absent.
    pub moments: Option<BTreeSet<usize>>,
    /// The kinds of faults that may occur; all if absent.
    pub faults: Option<BTreeSet<Fault>>,
}

/// The least duration of a long outage.
pub(crate) const HOUR_MS: u64 = 3_600_000;
/// The number of the key of a customer's first hold that is made for one moment.
const FRESH: u8 = 10;
/// What is added to such a key for a second hold.
const AGAIN: u8 = 20;
/// The number of a customer's first payment for several reservations.
pub(crate) const SHARED: u8 = 100;
/// Longer than an ended reservation is kept, in seconds.
pub(crate) const WEEKS: u64 = 32 * 86_400;

impl Plan {
    pub(crate) fn of(seed: u64, part: &Part) -> Self {
        let mut random = fastrand::Rng::with_seed(seed);
        // Drawn apart, so that the rest of a plan is the same with a crowd and without.
        let mut apart = fastrand::Rng::with_seed(!seed);
        let at_once = if apart.u32(0..4) == 0 { 8 } else { 1 };
        let mut products = products(&mut random);
        if at_once > 1 {
            // For some of the crowd.
            products[0].total += apart.u64(0..=6);
        }
        let mut per_mille = troubles(&mut random, part);
        let mut number = 0;
        let customers = random.usize(2..=4);
        let served: Vec<bool> = (0..customers).map(|_| random.u32(0..6) == 0).collect();
        // A back end acts for customers, and for guests, who have no token of their own.
        let name =
            |n: usize| if served[n] && n.is_multiple_of(2) { format!("guest:{n}") } else { format!("customer-{n}") };
        let names: Vec<String> = (0..customers).map(name).collect();
        let mut actors = vec![admin("admin", &names, &mut random, &products, &mut number)];
        if random.u32(0..3) == 0 {
            actors.push(admin("admin-2", &names, &mut random, &products, &mut number));
        }
        let makers = actors.len();
        for product in (0..products.len()).filter(|&product| products[product].late) {
            // By either admin, or by both at once.
            for actor in actors.iter_mut().take(random.usize(1..=makers)) {
                let moment = Moment {
                    number,
                    wait_ms: random.u64(0..8_000),
                    steps: vec![Step::Make { product }],
                    patience: random.u32(0..4),
                };
                number += 1;
                actor.moments.insert(0, moment);
            }
        }
        for (n, &served) in served.iter().enumerate() {
            let plan = customer(n, &names, &mut random, &products, &mut number);
            actors.push(Actor { served, ..plan });
        }
        if at_once > 1 {
            actors.extend((0..apart.usize(4..=8)).map(|n| passer_by(n, &mut apart, &products, &mut number)));
        }
        if apart.u32(0..6) == 0 {
            // Enough shards for environments to share their looks.
            products[0].shards = products[0].shards.max(4);
            products[0].total = products[0].total.min(apart.u64(1..=2));
            actors.extend((0..apart.usize(2..=3)).map(|n| in_line(n, &mut apart, &mut number)));
        }
        // Drawn apart as well, and last.
        let mut upgrade = fastrand::Rng::with_seed(seed.wrapping_add(1) << 32);
        let mixed_layouts = upgrade.u32(0..6) == 0;
        if mixed_layouts {
            actors.push(during_a_sweep(&mut upgrade, &products, &mut number));
        }
        let mut waiting = fastrand::Rng::with_seed(seed.wrapping_add(2) << 32);
        let waits = waiting.u32(0..12) == 0 && part.faults.as_ref().is_none_or(|kept| kept.contains(&Fault::Away));
        if waits {
            per_mille[Fault::Away as usize] = 1;
            actors.push(who_waits(&mut waiting, &mut number));
        }
        if let Some(kept) = &part.moments {
            for actor in &mut actors {
                actor.moments.retain(|moment| kept.contains(&moment.number));
                actor.afterwards.retain(|moment| kept.contains(&moment.number));
            }
        }
        let pause_seconds = [0, 0, 660, 25 * 3_600, WEEKS][random.usize(0..5)];
        // After weeks, everything that may go wrong then is likely: deletions by TTL, and writes whose token is
        // forgotten.
        if pause_seconds == WEEKS && random.bool() {
            for (fault, rate) in [(Fault::Ttl, 1_000), (Fault::LateCopy, 700)] {
                if part.faults.as_ref().is_none_or(|kept| kept.contains(&fault)) {
                    per_mille[fault as usize] = rate;
                }
            }
        }
        // Shorter than any client's retries; for minutes; or so long that every client gives up, which costs thousands
        // of calls.
        let hour = random.u64(HOUR_MS..HOUR_MS + 600_000);
        let long = random.u32(0..40);
        let away_ms = [random.u64(500..40_000), random.u64(60_000..600_000), hour]
            [if long == 0 { 2 } else { usize::from(long < 11) }];
        let away_ms = if waits { away_ms.min(40_000) } else { away_ms };
        let rate = (random.u32(0..8) == 0).then(|| (random.u32(1..=3), random.u32(1..=4)));
        let due_partitions = if random.u32(0..4) == 0 { (4, 2) } else { (1, 1) };
        Self {
            seed,
            products,
            actors,
            per_mille,
            pause_seconds,
            away_ms,
            rate,
            due_partitions,
            at_once,
            mixed_layouts,
            waits,
        }
    }

    /// The kinds of faults that this plan has.
    pub(crate) fn faults(&self) -> BTreeSet<Fault> {
        Fault::ALL.into_iter().filter(|&fault| self.per_mille[fault as usize] > 0).collect()
    }

    /// The numbers of all moments.
    pub(crate) fn moments(&self) -> BTreeSet<usize> {
        let all = self.actors.iter().flat_map(|actor| actor.moments.iter().chain(&actor.afterwards));
        all.map(|moment| moment.number).collect()
    }
}

fn products(random: &mut fastrand::Rng) -> Vec<ProductPlan> {
    // Rarely, since it takes time: products with more shards than one transaction can take from.
    if random.u32(0..60) == 0 {
        let crumbs =
            |n: usize| ProductPlan { total: 64, shards: 64, ..product(n, 2, &mut fastrand::Rng::with_seed(7)) };
        return (0..2).map(crumbs).collect();
    }
    let count = random.usize(1..=3);
    (0..count).map(|n| product(n, count, random)).collect()
}

fn product(n: usize, count: usize, random: &mut fastrand::Rng) -> ProductPlan {
    let total = random.u64(1..=9);
    let shards = if random.u32(0..12) == 0 { random.u32(4..=12) } else { random.u32(1..=3) };
    let sale = match random.u32(0..12) {
        0 => (Some(random.i64(-5_000..25_000)), None),
        1 => (None, Some(random.i64(1_000..40_000))),
        2 => {
            let starts = random.i64(-5_000..20_000);
            (Some(starts), Some(starts + random.i64(1_000..30_000)))
        }
        _ => (None, None),
    };
    let limit = [None, Some(2), Some(4)][random.usize(0..3)];
    ProductPlan {
        id: format!("p{n}"),
        // Few units, so that customers compete for them.
        total,
        shards,
        hold_seconds: [10, 10, 15, 30][random.usize(0..4)],
        limit,
        counted: limit.is_some() || random.u32(0..4) > 0,
        late_payment_seconds: [None, None, Some(0), Some(random.u32(1..60))][random.usize(0..4)],
        price_minor: random.u64(1..5_000),
        currency: if count > 1 && random.u32(0..8) == 0 { "JPY" } else { "EUR" },
        sale,
        late: random.u32(0..8) == 0,
    }
}

fn troubles(random: &mut fastrand::Rng, part: &Part) -> [u32; Fault::ALL.len()] {
    let mut per_mille = [0; Fault::ALL.len()];
    // One history in eight has no faults at all; in the others each kind is present or not, so that none hides another.
    let quiet = random.u32(0..8) == 0;
    for fault in Fault::ALL {
        let rates = fault.rates();
        let rate = rates[random.usize(0..rates.len())];
        let there = random.u32(0..3) == 0;
        let kept = part.faults.as_ref().is_none_or(|kept| kept.contains(&fault));
        if there && kept && !quiet {
            per_mille[fault as usize] = rate;
        }
    }
    per_mille
}

fn body(random: &mut fastrand::Rng, products: &[ProductPlan]) -> Vec<(usize, u32)> {
    let lines = random.usize(1..=products.len());
    let mut chosen: Vec<usize> = (0..products.len()).collect();
    random.shuffle(&mut chosen);
    chosen.truncate(lines);
    let quantity = |product: usize, random: &mut fastrand::Rng| {
        if products[product].shards == 64 { random.u32(20..=55) } else { random.u32(1..=3) }
    };
    chosen.into_iter().map(|product| (product, quantity(product, random))).collect()
}

fn customer(
    n: usize,
    names: &[String],
    random: &mut fastrand::Rng,
    products: &[ProductPlan],
    number: &mut usize,
) -> Actor {
    let keys = random.u8(1..=3);
    let bodies: Vec<_> = (0..keys).map(|_| body(random, products)).collect();
    let moments = random.usize(3..=7);
    let reserve = |random: &mut fastrand::Rng, key: u8, other: bool| {
        let body = if other { body(random, products) } else { bodies[usize::from(key)].clone() };
        Step::Reserve { key, body }
    };
    // To other lines, or to those of its first request, which is number `first`.
    let change = |random: &mut fastrand::Rng, first: u8, key: u8| {
        let same = random.u32(0..5) == 0;
        let body = if same { bodies[usize::from(first)].clone() } else { body(random, products) };
        Step::ChangeLines { key, body }
    };
    // Other lines may not be there; fewer units of these always are.
    let fewer = |key: u8, body: &[(usize, u32)]| {
        let body = body.iter().map(|&(product, quantity)| (product, quantity.div_ceil(2))).collect();
        Step::ChangeLines { key, body }
    };
    let hand_over = |random: &mut fastrand::Rng, key: u8| {
        // To any other: there are at least two.
        let to = (n + random.usize(1..names.len())) % names.len();
        Step::HandOver { key, to: names[to].clone() }
    };
    // Something that happens to a hold while another request changes it.
    let beside = |random: &mut fastrand::Rng, key: u8| match random.u32(0..10) {
        0 | 1 => Step::Confirm { key, payment: Some(random.u8(0..2)) },
        2 => Step::Confirm { key, payment: None },
        3 => Step::Cancel { key },
        4 => Step::Extend { key, seconds: random.u32(10..31) },
        5 | 6 => change(random, 0, key),
        7 => hand_over(random, key),
        8 => Step::Release { victim: names[n].clone(), key },
        _ => Step::ReleaseAll { product: random.usize(0..products.len()) },
    };
    let moment = |random: &mut fastrand::Rng, number: &mut usize, steps: Vec<Step>| {
        *number += 1;
        let wait_ms = [0, random.u64(0..50), random.u64(0..3_000), random.u64(0..15_000)][random.usize(0..4)];
        Moment { number: *number - 1, wait_ms, steps, patience: random.u32(0..4) }
    };
    let mut all = Vec::new();
    for at in 0..u8::try_from(moments).unwrap_or_default() {
        let key = random.u8(0..keys);
        let payment = random.bool().then(|| random.u8(0..2));
        let first = at == 0 || random.u32(0..3) == 0;
        let steps = if first {
            let mut steps = vec![reserve(random, key, false)];
            match random.u32(0..6) {
                0 => steps.push(reserve(random, key, false)),
                1 => steps.push(reserve(random, key, true)),
                2 => {
                    let another = random.u8(0..keys);
                    steps.push(reserve(random, another, false));
                }
                _ => {}
            }
            steps
        } else {
            let confirm = Step::Confirm { key, payment };
            let pay = |n| Step::Confirm { key, payment: Some(n) };
            let extend = |random: &mut fastrand::Rng| Step::Extend { key, seconds: random.u32(10..31) };
            match random.u32(0..37) {
                0..=3 => vec![confirm],
                4 => vec![confirm, Step::Cancel { key }],
                5 => vec![confirm, Step::Confirm { key, payment: Some(random.u8(0..2)) }],
                6 => vec![confirm.clone(), confirm],
                7 => vec![Step::Cancel { key }],
                8 => vec![extend(random), extend(random)],
                9 => vec![extend(random), confirm],
                10 => {
                    let other = random.u32(0..4) == 0;
                    vec![reserve(random, key, other)]
                }
                11 => vec![Step::Get { key }, Step::List { orders: random.bool() }],
                12 => vec![Step::Look { product: random.usize(0..products.len()) }],
                13 => {
                    vec![Step::Trespass { victim: names[random.usize(0..names.len())].clone(), key: random.u8(0..3) }]
                }
                14 | 15 | 20..=22 => {
                    let then = vec![extend(random)];
                    vec![Step::AroundExpiry { key, offset_ms: random.i64(-6_000..200), then }]
                }
                // Late, and twice: with one payment, or with two.
                16 => {
                    let then = vec![pay(0), pay(random.u8(0..2))];
                    let then = if random.bool() { vec![Step::Meet { then }] } else { then };
                    vec![Step::AroundExpiry { key, offset_ms: random.i64(0..70_000), then }]
                }
                // Two reservations, paid together.
                18 => {
                    let pay = |key| Step::Confirm { key, payment: Some(SHARED) };
                    let both = vec![pay(key), pay(random.u8(0..keys))];
                    match random.u32(0..3) {
                        0 => vec![Step::AroundExpiry { key, offset_ms: random.i64(-6_000..40_000), then: both }],
                        _ => both,
                    }
                }
                // Confirmed without a payment, and then paid twice.
                17 => {
                    let then = vec![pay(0), pay(1)];
                    vec![Step::Confirm { key, payment: None }, Step::AroundExpiry { key, offset_ms: -8_000, then }]
                }
                // Given back; at the same time as something else of the same order.
                24 => vec![Step::GiveBack { key, restock: random.bool() }, confirm],
                25 => {
                    let give_back = Step::GiveBack { key, restock: random.bool() };
                    let and =
                        [give_back.clone(), Step::Cancel { key }, pay(random.u8(0..2))][random.usize(0..3)].clone();
                    vec![
                        confirm,
                        Step::AroundExpiry { key, offset_ms: random.i64(-6_000..2_000), then: vec![give_back, and] },
                    ]
                }
                // A new hold, with other lines at once; at the same time as something else of it, or another change.
                26 | 27 => {
                    let key = FRESH + at;
                    let offset_ms = random.i64(-6_000..1_000);
                    let body = body(random, products);
                    let change = [fewer(key, &body), change(random, 0, key)];
                    let [first, _] = change.clone();
                    let then = match random.u32(0..4) {
                        0 => change.to_vec(),
                        1 => {
                            let then = vec![Step::Confirm { key, payment: Some(0) }];
                            let [_, second] = change;
                            vec![second, Step::AroundExpiry { key, offset_ms: offset_ms * 2, then }]
                        }
                        2 => vec![first, beside(random, key)],
                        _ => {
                            let then = vec![first, beside(random, key)];
                            vec![Step::AroundExpiry { key, offset_ms, then }]
                        }
                    };
                    vec![Step::Reserve { key, body }.then(then)]
                }
                // Handed to another customer, who goes on with it.
                28 => vec![hand_over(random, key), beside(random, key)],
                29 => {
                    let key = FRESH + at;
                    let mut then = vec![hand_over(random, key), beside(random, key)];
                    if random.bool() {
                        then = vec![Step::AroundExpiry { key, offset_ms: random.i64(-6_000..1_000), then }];
                    }
                    vec![Step::Reserve { key, body: body(random, products) }.then(then)]
                }
                // Released by an admin, before or after its end, and paid all the same.
                30 => {
                    let then = vec![Step::Release { victim: names[n].clone(), key }, beside(random, key)];
                    vec![Step::AroundExpiry { key, offset_ms: random.i64(-8_000..70_000), then }]
                }
                31 => {
                    let then = vec![pay(random.u8(0..2))];
                    vec![
                        Step::Release { victim: names[n].clone(), key },
                        Step::AroundExpiry { key, offset_ms: random.i64(-6_000..40_000), then },
                    ]
                }
                // An order without a payment that is given back while one is attached.
                32 => {
                    let key = FRESH + at;
                    let then =
                        vec![Step::GiveBack { key, restock: random.bool() }, Step::Confirm { key, payment: Some(0) }];
                    let order = Step::Confirm { key, payment: None }.then(then);
                    vec![Step::Reserve { key, body: body(random, products) }.then(vec![order])]
                }
                33 | 34 => vec![sold_out(random, products, FRESH + at)],
                // Handed over, or paid late by an environment whose clock is ahead, while its lines change.
                35 => {
                    let key = FRESH + at;
                    let body = body(random, products);
                    let then = vec![hand_over(random, key), fewer(key, &body)];
                    vec![Step::Reserve { key, body }.then(then)]
                }
                36 => {
                    let key = FRESH + at;
                    let body = body(random, products);
                    let late = |random: &mut fastrand::Rng| {
                        let then = vec![pay(0)];
                        Step::AroundExpiry { key, offset_ms: random.i64(0..120), then }
                    };
                    let then = vec![fewer(key, &body), late(random), late(random)];
                    let around = Step::AroundExpiry { key, offset_ms: random.i64(-150..20), then };
                    vec![Step::Reserve { key, body }.then(vec![around])]
                }
                // Paid, and confirmed in another customer's name.
                23 => {
                    let instead = names[random.usize(0..names.len())].clone();
                    let then = vec![Step::Mistake { key, payment: 0, instead }];
                    vec![Step::AroundExpiry { key, offset_ms: random.i64(-6_000..70_000), then }]
                }
                _ => {
                    let then = vec![confirm];
                    vec![Step::AroundExpiry { key, offset_ms: random.i64(-6_000..7_000), then }]
                }
            }
        };
        let steps = if random.u32(0..4) == 0 { vec![Step::Meet { then: steps }] } else { steps };
        all.push(moment(random, number, steps));
    }
    let afterwards = (0..random.usize(0..=3))
        .map(|at| {
            let key = random.u8(0..keys);
            let steps = match random.u32(0..8) {
                // Everything once more, unchanged.
                0..=2 if at == 0 => (0..keys).map(|key| reserve(random, key, false)).collect(),
                0..=2 => vec![reserve(random, key, false)],
                3 => vec![reserve(random, key, true)],
                4 => vec![Step::Confirm { key, payment: random.bool().then(|| random.u8(0..2)) }],
                5 if random.bool() => vec![Step::Cancel { key }],
                5 => vec![Step::GiveBack { key, restock: random.bool() }],
                // A hold that has ended long ago: released, and paid; or changed.
                6 => {
                    let release = Step::Release { victim: names[n].clone(), key };
                    vec![release, Step::Confirm { key, payment: Some(random.u8(0..2)) }]
                }
                _ if random.bool() => vec![change(random, key, key)],
                _ => vec![hand_over(random, key)],
            };
            moment(random, number, steps)
        })
        .collect();
    Actor { name: names[n].clone(), admin: false, served: false, moments: all, afterwards }
}

/// A customer takes all units of a product, lets the hold end, and takes them again with another key. Then the first hold
/// is paid late, as the other is cancelled: by copies of the payment at once; or by one that is refused, retried by an
/// admin, and given back as soon as it is an order.
fn sold_out(random: &mut fastrand::Rng, products: &[ProductPlan], key: u8) -> Step {
    let product = random.usize(0..products.len());
    let plan = &products[product];
    let all = u32::try_from(plan.total).unwrap_or(u32::MAX).min(plan.limit.unwrap_or(u32::MAX));
    let (other, all) = (key + AGAIN, vec![(product, all)]);
    let (pay, cancel) = (Step::Confirm { key, payment: Some(0) }, Step::Cancel { key: other });
    let again = random.i64(200..3_000);
    // In the next moments.
    let soon = |random: &mut fastrand::Rng, within_ms: i64, step: Step| {
        let offset_ms = again + random.i64(100..within_ms);
        Step::AroundExpiry { key, offset_ms, then: vec![step] }
    };
    let then = if random.bool() {
        let mut then = vec![soon(random, 500, cancel)];
        then.extend((0..4).map(|_| soon(random, 700, pay.clone())));
        then
    } else {
        let mut then = vec![Step::Failed { then: Settle::Retry }];
        then.extend((0..12).map(|_| soon(random, 4_000, Step::GiveBack { key, restock: true })));
        vec![pay.then(vec![cancel.then(then)])]
    };
    let then = vec![Step::Reserve { key: other, body: all.clone() }.then(then)];
    Step::Reserve { key, body: all }.then(vec![Step::AroundExpiry { key, offset_ms: again, then }])
}

/// One search in two has one filter only.
fn search(names: &[String], random: &mut fastrand::Rng, products: &[ProductPlan]) -> Search {
    let only = random.bool().then(|| random.u32(0..6));
    let has = |at: u32, random: &mut fastrand::Rng| match only {
        Some(only) => only == at,
        None => random.u32(0..3) == 0,
    };
    let name = |random: &mut fastrand::Rng| names[random.usize(0..names.len())].clone();
    let from = random.i64(-5_000..60_000);
    Search {
        customer: has(0, random).then(|| name(random)),
        payment: has(1, random).then(|| {
            let number = [0, 1, SHARED][random.usize(0..3)];
            (name(random), random.u8(0..3), number)
        }),
        status: has(2, random).then(|| ["held", "expired", "cancelled", "confirmed"][random.usize(0..4)]),
        product: has(3, random).then(|| random.usize(0..products.len())),
        made: has(4, random).then(|| (from, from + random.i64(1..60_000))),
    }
}

/// One of a crowd that comes at the same instants, so that an environment has several of them at once.
fn passer_by(n: usize, random: &mut fastrand::Rng, products: &[ProductPlan], number: &mut usize) -> Actor {
    let wanted = |random: &mut fastrand::Rng| {
        // Most want the same.
        if random.u32(0..4) == 0 { body(random, products) } else { vec![(0, random.u32(1..=2))] }
    };
    let mut moment = |random: &mut fastrand::Rng| {
        let reserve = Step::Reserve { key: 0, body: wanted(random) };
        let mut then = vec![match random.u32(0..6) {
            0 => reserve.clone().then(vec![Step::Cancel { key: 0 }]),
            1 | 2 => reserve.clone().then(vec![Step::Confirm { key: 0, payment: Some(0) }]),
            _ => reserve.clone(),
        }];
        match random.u32(0..6) {
            // The same request twice, or another one with another key.
            0 => then.push(reserve),
            1 => then.push(Step::Reserve { key: 1, body: wanted(random) }),
            _ => {}
        }
        *number += 1;
        let wait_ms = [0, random.u64(0..12_000)][random.usize(0..2)];
        Moment { number: *number - 1, wait_ms, steps: vec![Step::Meet { then }], patience: random.u32(0..4) }
    };
    let moments = (0..random.usize(1..=2)).map(|_| moment(random)).collect();
    Actor { name: format!("passer-by-{n}"), admin: false, served: false, moments, afterwards: Vec::new() }
}

/// One of a few who ask again and again for a product that is nearly always sold out, and give back what they had.
fn in_line(n: usize, random: &mut fastrand::Rng, number: &mut usize) -> Actor {
    let mut had = None;
    let moments = (0..8).map(|key: u8| {
        // What is given back is free for a while, until the next one asks.
        let step = match had.take().filter(|_| random.u32(0..3) > 0) {
            Some(key) => Step::Cancel { key },
            None => {
                had = Some(key);
                Step::Reserve { key, body: vec![(0, 1)] }
            }
        };
        *number += 1;
        Moment { number: *number - 1, wait_ms: random.u64(300..4_000), steps: vec![step], patience: random.u32(0..4) }
    });
    let moments = moments.collect();
    Actor { name: format!("in-line-{n}"), admin: false, served: false, moments, afterwards: Vec::new() }
}

/// A customer whose confirmations are accepted while the table is away, and who asks what has become of the holds when they are
/// over, before the queue delivers.
fn who_waits(random: &mut fastrand::Rng, number: &mut usize) -> Actor {
    let moments = (0..2_u8).map(|at| {
        let hold = |n: u8, random: &mut fastrand::Rng| {
            let key = 2 * at + n;
            let body = vec![(0, 1)];
            let ask = match random.u32(0..5) {
                0 | 1 => Step::Cancel { key },
                2 => Step::Confirm { key, payment: None },
                3 => Step::Confirm { key, payment: Some(0) },
                _ => Step::ChangeLines { key, body: vec![(0, 2)] },
            };
            let confirm = Step::Confirm { key, payment: None };
            let confirm = Step::AroundExpiry { key, offset_ms: random.i64(-9_500..-500), then: vec![confirm] };
            let ask = Step::AroundExpiry { key, offset_ms: random.i64(100..40_000), then: vec![ask] };
            Step::Reserve { key, body }.then(vec![confirm, ask])
        };
        *number += 1;
        let steps = (0..2).map(|n| hold(n, random)).collect();
        Moment { number: *number - 1, wait_ms: random.u64(0..6_000), steps, patience: random.u32(0..3) }
    });
    let moments = moments.collect();
    Actor { name: "who-waits".to_owned(), admin: false, served: false, moments, afterwards: Vec::new() }
}

/// An admin who changes products while the first sweep moves them: it comes after a minute.
fn during_a_sweep(random: &mut fastrand::Rng, products: &[ProductPlan], number: &mut usize) -> Actor {
    let moments = (0..12).map(|key: u8| {
        let wait_ms = if key == 0 { random.u64(59_900..60_200) } else { random.u64(0..150) };
        let step = |product: usize, random: &mut fastrand::Rng| match random.u32(0..5) {
            0 => Step::Change { product, what: Change::Price(random.u64(1..5_000)) },
            n => Step::Adjust { key, product, delta: if n == 1 { -1 } else { 1 }, expecting: n == 2 },
        };
        let steps = (0..products.len()).map(|product| step(product, random)).collect();
        *number += 1;
        Moment { number: *number - 1, wait_ms, steps, patience: random.u32(0..3) }
    });
    let moments = moments.collect();
    Actor { name: "admin-3".to_owned(), admin: true, served: false, moments, afterwards: Vec::new() }
}

fn admin(
    name: &str,
    names: &[String],
    random: &mut fastrand::Rng,
    products: &[ProductPlan],
    number: &mut usize,
) -> Actor {
    let step = |random: &mut fastrand::Rng| {
        let product = random.usize(0..products.len());
        match random.u32(0..16) {
            0..=3 => {
                let delta = [-3, -1, 1, 4][random.usize(0..4)];
                let adjust = Step::Adjust { key: random.u8(0..3), product, delta, expecting: random.u32(0..3) == 0 };
                if random.bool() { Step::Meet { then: vec![adjust] } } else { adjust }
            }
            4..=7 => {
                let what = match random.u32(0..9) {
                    0 | 1 => Change::Price(random.u64(1..5_000)),
                    2 => Change::Limit([None, Some(1), Some(3)][random.usize(0..3)]),
                    3 => [Change::Pause, Change::Pause, Change::Archive][random.usize(0..3)],
                    4 => Change::OnSale,
                    5 => Change::Name(random.u32(0..3)),
                    7 => Change::LatePayment([0, 20, 86_400][random.usize(0..3)]),
                    // Later than any sale starts.
                    6 => Change::SaleEnds(random.bool().then(|| random.i64(26_000..60_000))),
                    _ => Change::Hold([10, 20][random.usize(0..2)]),
                };
                Step::Change { product, what }
            }
            8..=10 => Step::Failed {
                then: [Settle::Nothing, Settle::Retry, Settle::Resolve, Settle::Redrive][random.usize(0..4)],
            },
            11 if random.bool() => Step::Audit { ledger: product },
            11 | 12 => Step::Find { search: search(names, random, products) },
            13 | 14 => {
                let release =
                    Step::Release { victim: names[random.usize(0..names.len())].clone(), key: random.u8(0..3) };
                if random.bool() { Step::Meet { then: vec![release] } } else { release }
            }
            _ if random.bool() => Step::ReleaseAll { product },
            _ => Step::Meet { then: vec![Step::ReleaseAll { product }] },
        }
    };
    let mut moment = |random: &mut fastrand::Rng| {
        let mut steps = vec![step(random)];
        if random.u32(0..4) == 0 {
            // The same again, or something else, at the same time.
            match (random.u32(0..3), &steps[0]) {
                // Twice, and reversed meanwhile: the total is what it was.
                (0, Step::Adjust { key, product, delta, .. }) => {
                    let back = Step::Adjust { key: (key + 1) % 3, product: *product, delta: -delta, expecting: false };
                    steps.extend([steps[0].clone(), back]);
                }
                (0 | 1, first) => steps.push(first.clone()),
                _ => steps.push(step(random)),
            }
        }
        *number += 1;
        Moment { number: *number - 1, wait_ms: random.u64(0..12_000), steps, patience: random.u32(0..3) }
    };
    let moments = (0..random.usize(0..=5)).map(|_| moment(random)).collect();
    let afterwards = (0..random.usize(0..=1)).map(|_| moment(random)).collect();
    Actor { name: name.to_owned(), admin: true, served: false, moments, afterwards }
}
