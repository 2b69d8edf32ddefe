//! What one product takes on AWS, by a model: nothing here measures, and each assumption is printed with the result.
//!
//! Environments serve requests that arrive at random; each environment takes those who wait for the product into one
//! transaction, as `holdfast_store` does, on its home shard. A transaction is refused if another one is on that shard; the
//! environment moves to another home then, and its requests back off and go again. A sweep beside them releases overdue holds of
//! the same product.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::path::Path;

use crate::Result;
use crate::report::{self, Axis};

/// The time of a transaction: this much, and this much for each of its items, in microseconds.
const CALL_US: f64 = 18_000.0;
const ITEM_US: f64 = 300.0;
/// How many times the median the slowest hundredth takes.
const P99_TIMES: f64 = 3.5;
/// The most actions of a transaction on reservations and limits: of 100, some are on shards.
const MOST: usize = 97;
/// The longest backoff after a first conflict and after any, in microseconds: as in `holdfast_store`. It doubles in between.
const BACKOFF_US: (u64, u64) = (8_000, 200_000);
/// What a sweep does, as in `holdfast_store`: its holds in a transaction, its transactions at once, each on a shard of its own, and
/// how long it rests after each, in microseconds, if there is no other shard to go to.
const SWEPT: usize = 49;
const SWEEPERS: usize = 2;
const REST_US: u64 = 5_000;
/// How long a history is, and how much of its start is not counted, in microseconds.
const LENGTH_US: u64 = 6_000_000;
const WARM_UP_US: u64 = 2_000_000;
/// After this long a request fails.
const DEADLINE_US: u64 = 8_000_000;

/// A situation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Situation {
    /// Requests for the product, each second.
    pub(crate) rate: u32,
    /// Environments of `reserve`.
    pub(crate) environments: usize,
    /// The most requests that one environment serves at once.
    pub(crate) at_once: usize,
    /// Shards of the product.
    pub(crate) shards: usize,
    /// Whether its customers' units are counted: another action of each reservation.
    pub(crate) limited: bool,
    /// Whether a sweep releases overdue holds meanwhile, of which there are more than it can release.
    pub(crate) swept: bool,
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Forecast {
    /// Reservations that were made, each second.
    pub(crate) made: f64,
    /// The time from a request to its answer, in milliseconds: of half of them, and of all but a hundredth.
    pub(crate) p50_ms: f64,
    /// See `p50_ms`.
    pub(crate) p99_ms: f64,
    /// Reservations of one transaction.
    pub(crate) group: f64,
    /// The part of all transactions that was refused.
    pub(crate) refused: f64,
    /// Write units of the table for each reservation, with those of refused transactions.
    pub(crate) units: f64,
    /// Overdue holds that were released, each second.
    pub(crate) released: f64,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Arrives,
    /// A group of this environment has ended; `true` if it was applied.
    Ends(usize, bool),
    /// The backoff of a refused group of this environment is over.
    Again(usize),
}

#[derive(Debug, Default)]
struct Environment {
    home: usize,
    /// When each of those who wait came.
    waiting: Vec<u64>,
    /// The group in flight, or in its backoff.
    group: Vec<u64>,
    busy: bool,
    /// Conflicts one after another.
    conflicts: u32,
}

/// Plays a situation. The same seed gives the same forecast.
#[expect(clippy::cast_precision_loss, reason = "a model of counts far below 2^53")]
pub(crate) fn forecast(of: Situation, seed: u64) -> Forecast {
    let mut random = fastrand::Rng::with_seed(seed);
    let sigma = P99_TIMES.ln() / 2.326_347_9;
    let mut queue = BinaryHeap::new();
    let mut environments: Vec<Environment> = (0..of.environments)
        .map(|_| Environment { home: random.usize(0..of.shards), ..Environment::default() })
        .collect();
    // The transactions of a sweep, after the environments of `reserve`.
    let sweepers = if of.swept { SWEEPERS.min(of.shards) } else { 0 };
    environments.extend((0..sweepers).map(|home| Environment { home, ..Environment::default() }));
    let mut taken = vec![false; of.shards];
    let actions = if of.limited { 2 } else { 1 };
    let mut outside: Vec<u64> = Vec::new();
    let (mut times, mut groups, mut refused, mut units, mut released) = (Vec::new(), 0_u64, 0_u64, 0.0, 0_usize);
    let mut number = 0_u64;
    let mut push = |queue: &mut BinaryHeap<Reverse<(u64, u64, Event)>>, at: u64, event: Event| {
        number += 1;
        queue.push(Reverse((at, number, event)));
    };
    push(&mut queue, 0, Event::Arrives);
    (0..sweepers).for_each(|sweeper| push(&mut queue, 0, Event::Again(of.environments + sweeper)));
    while let Some(Reverse((now, _, event))) = queue.pop() {
        if now >= LENGTH_US {
            break;
        }
        let counts = now >= WARM_UP_US;
        let start = match event {
            Event::Arrives => {
                // Poisson arrivals.
                let gap = -(1.0 - random.f64()).ln() * 1e6 / f64::from(of.rate);
                push(&mut queue, now + whole(gap).max(1), Event::Arrives);
                // The environment with the fewest requests, as a load balancer tries to; among equals, any.
                let first = random.usize(0..of.environments);
                let load = |n: &usize| environments[*n].waiting.len() + environments[*n].group.len();
                let least = (0..of.environments).map(|n| (n + first) % of.environments).min_by_key(load).unwrap_or(0);
                if load(&least) < of.at_once {
                    environments[least].waiting.push(now);
                    Some(least)
                } else {
                    outside.push(now);
                    None
                }
            }
            Event::Ends(which, applied) => {
                let environment = &mut environments[which];
                let sweeper = which.checked_sub(of.environments);
                if counts && sweeper.is_none() {
                    units += 2.0 * (environment.group.len() * actions + 1) as f64;
                }
                if applied {
                    environment.conflicts = 0;
                    taken[environment.home] = false;
                    if sweeper.is_some() {
                        released += if counts { SWEPT } else { 0 };
                        environment.home = (environment.home + sweepers) % of.shards;
                        if of.shards <= SWEEPERS {
                            push(&mut queue, now + REST_US, Event::Again(which));
                            continue;
                        }
                    } else if counts {
                        groups += 1;
                        times.extend(environment.group.iter().map(|came| now - came));
                    }
                    let room = if sweeper.is_some() { 0 } else { environment.group.len().min(outside.len()) };
                    environment.waiting.extend(outside.drain(..room));
                    environment.group.clear();
                    environment.busy = false;
                    Some(which)
                } else {
                    if sweeper.is_none() {
                        refused += u64::from(counts);
                        environment.home = random.usize(0..of.shards);
                    }
                    let most = (BACKOFF_US.0 << environment.conflicts.min(10)).min(BACKOFF_US.1);
                    environment.conflicts += 1;
                    push(&mut queue, now + random.u64(0..=most), Event::Again(which));
                    None
                }
            }
            Event::Again(which) => {
                let environment = &mut environments[which];
                // They go again together with those who came meanwhile.
                let group = std::mem::take(&mut environment.group);
                environment.waiting.splice(0..0, group);
                environment.busy = false;
                Some(which)
            }
        };
        let Some(which) = start else { continue };
        let environment = &mut environments[which];
        if which >= of.environments {
            environment.group = vec![now; SWEPT];
            environment.waiting.clear();
        } else if environment.busy || environment.waiting.is_empty() {
            continue;
        } else {
            let members = environment.waiting.len().min(MOST / actions);
            environment.group = environment.waiting.drain(..members).collect();
        }
        environment.busy = true;
        let items = (environment.group.len() * actions + 1) as f64;
        let slow = (sigma * normal(&mut random)).exp();
        let free = !std::mem::replace(&mut taken[environment.home], true);
        // A refusal does not write: it takes the time of the call alone.
        let time = if free { (CALL_US + ITEM_US * items) * slow } else { CALL_US * slow };
        push(&mut queue, now + whole(time), Event::Ends(which, free));
        outside.retain(|came| now - came < DEADLINE_US);
    }
    times.sort_unstable();
    let nth = |part: f64| usize::try_from(whole(times.len() as f64 * part)).unwrap_or(usize::MAX);
    let at = |part: f64| times.get(nth(part)).map_or(f64::NAN, |&us| us as f64 / 1e3);
    let seconds = (LENGTH_US - WARM_UP_US) as f64 / 1e6;
    let made = times.len() as f64;
    Forecast {
        made: made / seconds,
        p50_ms: at(0.5),
        p99_ms: at(0.99),
        group: made / groups.max(1) as f64,
        refused: refused as f64 / (refused + groups).max(1) as f64,
        units: units / made.max(1.0),
        released: released as f64 / seconds,
    }
}

/// A sample of the standard normal distribution (Box and Muller).
fn normal(random: &mut fastrand::Rng) -> f64 {
    let (radius, angle) = (1.0 - random.f64(), random.f64());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "microseconds of a model, never negative")]
fn whole(us: f64) -> u64 {
    us.round() as u64
}

/// The situations of the table: requests a second, environments, requests at once, shards, whether there is a limit, and whether a
/// sweep releases holds meanwhile.
const SITUATIONS: [(u32, usize, usize, usize, bool, bool); 22] = [
    // Plain Lambda: one request at a time, as many environments as the account may have.
    (20, 1_000, 1, 1, false, false),
    (200, 1_000, 1, 8, false, false),
    (400, 1_000, 1, 16, false, false),
    (1_600, 1_000, 1, 64, false, false),
    // Several requests an environment.
    (1_000, 1, 64, 1, false, false),
    (1_000, 1, 64, 1, true, false),
    (5_000, 8, 8, 8, false, false),
    (5_000, 8, 64, 8, false, false),
    (5_000, 8, 64, 8, true, false),
    (10_000, 8, 64, 16, false, false),
    (10_000, 16, 8, 16, false, false),
    (10_000, 16, 64, 16, false, false),
    (10_000, 16, 128, 16, true, false),
    (10_000, 16, 64, 8, false, false),
    (10_000, 32, 64, 16, false, false),
    (20_000, 32, 64, 64, false, false),
    // Beside a sweep.
    (20, 1_000, 1, 1, true, true),
    (40, 1_000, 1, 2, true, true),
    (400, 1_000, 1, 16, true, true),
    (1_600, 1_000, 1, 64, true, true),
    (500, 1, 64, 1, true, true),
    (10_000, 16, 128, 16, true, true),
];

/// The forecasts of all situations, and what the model assumes, as text.
pub(crate) fn table() -> String {
    let mut text = format!(
        "A model, not a measurement. It assumes:\n\
         - a transaction takes {} ms and {} ms an item at the median, {P99_TIMES} times that at the 99th percentile\n\
         - while it is on a shard, another one on that shard is refused, and billed; its environment moves to another shard, and \
         waits at most {} ms, doubled with each conflict up to {} ms\n\
         - requests arrive at random and go to the environment with the fewest; they are for one line, and a transaction takes \
         at most {MOST} actions on reservations and limits\n\
         - a sweep makes {SWEEPERS} transactions at once, of {SWEPT} holds each, and rests for {} ms after each if there is no other shard\n\
         - the indexes and the quotas of the account have room: see docs/limits.md\n\n\
         requests/s  environments  at once  shards  limit  sweep |  made/s  p50 ms  p99 ms  a group  refused  table WU  \
         released/s\n",
        CALL_US / 1e3,
        ITEM_US / 1e3,
        BACKOFF_US.0 / 1_000,
        BACKOFF_US.1 / 1_000,
        REST_US / 1_000,
    );
    let yes = |so| if so { "yes" } else { "no" };
    for (rate, environments, at_once, shards, limited, swept) in SITUATIONS {
        let Forecast { made, p50_ms, p99_ms, group, refused, units, released } =
            forecast(Situation { rate, environments, at_once, shards, limited, swept }, 1);
        text += &format!(
            "{rate:>10}  {environments:>12}  {at_once:>7}  {shards:>6}  {:>5}  {:>5} |  {made:>6.0}  {p50_ms:>6.0}  \
             {p99_ms:>6.0}  {group:>7.1}  {:>5.0} %  {units:>8.2}  {released:>10.0}\n",
            yes(limited),
            yes(swept),
            refused * 100.0
        );
    }
    text
}

/// Draws the 99th percentile over the requests of a second, for products of several sizes, as far as nearly all requests are
/// served.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn plot(path: &Path) -> Result<()> {
    let curves = [
        ("16 shards, plain Lambda", 1_000, 1, 16),
        ("64 shards, plain Lambda", 1_000, 1, 64),
        ("1 shard, 1 environment of 64 requests", 1, 64, 1),
        ("8 shards, 8 environments of 64 requests", 8, 64, 8),
        ("16 shards, 16 environments of 64 requests", 16, 64, 16),
        ("64 shards, 32 environments of 64 requests", 32, 64, 64),
    ];
    let curves = curves.map(|(title, environments, at_once, shards)| {
        // A tenth of a power of ten from one to the next.
        let rates = (20..=46).map(|step| f64::from(step) / 10.0);
        let at = |power: f64| {
            let rate = u32::try_from(whole(10_f64.powf(power))).unwrap_or(u32::MAX);
            let of = Situation { rate, environments, at_once, shards, limited: false, swept: false };
            let found = forecast(of, 1);
            // Arrivals in four seconds are random: three standard deviations.
            let served = found.made > f64::from(rate) - 1.5 * f64::from(rate).sqrt();
            served.then_some((power, found.p99_ms))
        };
        (title.to_owned(), rates.map_while(at).collect())
    });
    let name = |power: &f64| format!("{:.0}", 10_f64.powf(*power));
    let rates = Axis { desc: "requests a second for one product", range: 2.0..4.6, labels: 3, name: &name };
    report::draw(path, "99th percentile of a reserve on AWS, by the model", &rates, curves.to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_environments_sell_ten_thousand_a_second_on_sixteen_shards() {
        let of = Situation { rate: 10_000, environments: 16, at_once: 128, shards: 16, limited: false, swept: false };
        let found = forecast(of, 1);
        assert_eq!(found, forecast(of, 1), "the same seed, another forecast");
        assert!(found.made > 9_800.0 && found.units * found.made < 24_000.0, "{found:?}");
        // More environments than shards refuse one another, and one request at a time sells hardly anything.
        assert!(forecast(Situation { shards: 8, ..of }, 1).refused > 0.1);
        let plain = forecast(Situation { environments: 50, at_once: 1, rate: 2_000, ..of }, 1);
        assert!(plain.made < 1_000.0 && plain.units > 4.0, "{plain:?}");
    }

    #[test]
    fn reserves_have_their_turn_beside_a_sweep() {
        let of = Situation { rate: 20, environments: 1_000, at_once: 1, shards: 1, limited: true, swept: true };
        for of in [of, Situation { rate: 40, shards: 2, ..of }, Situation { rate: 400, shards: 16, ..of }] {
            let found = forecast(of, 1);
            assert!(found.made > 0.9 * f64::from(of.rate) && found.p99_ms < 4_000.0, "{of:?}: {found:?}");
            assert!(found.released > 100.0, "{of:?}: {found:?}");
        }
    }

    #[test]
    fn a_lone_request_takes_a_transaction_of_two_items() {
        let lone =
            forecast(Situation { rate: 5, environments: 1, at_once: 8, shards: 1, limited: false, swept: false }, 1);
        assert!((lone.p50_ms - 18.6).abs() < 4.0 && (lone.group - 1.0).abs() < 0.2, "{lone:?}");
    }
}
