//! `cargo local simulate`: plays many seeds, with progress, a summary, and what is needed to replay one that fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use clap::Parser;
use holdfast_simulator::planted::{self, Planted};
use holdfast_simulator::{Fault, Outcome, Part, PerFault, history, seconds, shrink};
use indicatif::{ProgressBar, ProgressStyle};

/// Every call to AWS allocates hundreds of small pieces of JSON and of configuration.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    name = "cargo local simulate",
    bin_name = "cargo local simulate",
    about = "Plays seeds: the real functions in a world where everything goes wrong; exits 1 if a promise is broken"
)]
struct Cli {
    /// Number of seeds
    #[arg(long, default_value_t = 1_000)]
    seeds: u64,
    /// The first seed
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run for this many hours instead of a number of seeds
    #[arg(long)]
    hours: Option<f64>,
    /// Number of threads
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    threads: u8,
    /// Play only these moments of the plan, as a failing seed prints them
    #[arg(long, value_delimiter = ',')]
    moments: Option<Vec<usize>>,
    /// Inject only these kinds of faults, or `none`
    #[arg(long, value_delimiter = ',', value_parser = fault)]
    faults: Option<Vec<Option<Fault>>>,
    /// Print the whole history of each seed
    #[arg(long)]
    history: bool,
    /// Continue after a failure, say at once which seed broke a promise, and list them at the end
    #[arg(long)]
    tally: bool,
    /// Plant a bug, by its name, or `all`: play seeds until each is caught
    #[arg(long)]
    planted: Option<String>,
}

fn fault(name: &str) -> Result<Option<Fault>, String> {
    match name {
        "none" => Ok(None),
        name => Fault::named(name).map(Some).ok_or_else(|| {
            let names: Vec<&str> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("must be `none`, or of: {}", names.join(", "))
        }),
    }
}

#[derive(Default)]
struct Summary {
    histories: u64,
    calls: u64,
    groups: u64,
    looks: u64,
    lines: u64,
    checks: u64,
    given_up: u64,
    injected: PerFault,
    failed: Option<(u64, Outcome)>,
    /// The seeds that broke each promise.
    broken: BTreeMap<&'static str, BTreeSet<u64>>,
    /// Whole minutes of progress that were logged.
    minutes: u64,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let part = Part {
        moments: cli.moments.as_ref().map(|moments| moments.iter().copied().collect()),
        faults: cli.faults.as_ref().map(|faults| faults.iter().copied().flatten().collect::<BTreeSet<_>>()),
    };
    match cli.planted.as_deref() {
        Some("all") => catch_all(&cli, &part),
        Some(name) => match Planted::named(name) {
            Some(planted) => play(&cli, &part, Some(planted)),
            None => {
                let names: Vec<&str> = planted::ALL.iter().map(|planted| planted.name).collect();
                eprintln!("error: no planted bug {name}; there are: {}", names.join(", "));
                ExitCode::FAILURE
            }
        },
        None => play(&cli, &part, None),
    }
}

/// Plays all seeds, or until a promise is broken.
fn play(cli: &Cli, part: &Part, planted: Option<&'static Planted>) -> ExitCode {
    let began = Instant::now();
    let summary = seeds(cli, part, planted, began);
    let elapsed = began.elapsed();
    println!("{}", told(&summary, elapsed));
    if cli.tally && !summary.broken.is_empty() {
        for (promise, seeds) in &summary.broken {
            let first: Vec<String> = seeds.iter().take(12).map(u64::to_string).collect();
            println!("  {:>10} {promise}: seeds {}", seeds.len(), first.join(", "));
        }
        return ExitCode::FAILURE;
    }
    let Some((seed, outcome)) = summary.failed else {
        println!("no promise was broken");
        return ExitCode::SUCCESS;
    };
    let violation = outcome.violation.clone();
    eprintln!("seed {seed} breaks a promise: looking for a smaller history ...");
    let smaller = shrink(seed, part, planted, outcome);
    let lines = &smaller.outcome.history;
    let from = if cli.history { 0 } else { lines.len().saturating_sub(150) };
    println!("\nthe smallest history found ({} tries), {} lines:\n", smaller.tries, lines.len());
    if from > 0 {
        println!("  ... (--history shows all)");
    }
    lines[from..].iter().for_each(|line| println!("  {line}"));
    if let Some(violation) = smaller.outcome.violation.as_ref().or(violation.as_ref()) {
        println!("\nbroken: {} at {}\n{}", violation.invariant, seconds(violation.at_ms), violation.detail);
    }
    println!("\nseed {seed}; again, and only this:\n\n  cargo local simulate {}", smaller.arguments(seed, planted));
    ExitCode::FAILURE
}

fn seeds(cli: &Cli, part: &Part, planted: Option<&'static Planted>, began: Instant) -> Summary {
    let limit = cli.hours.map(|hours| Duration::from_secs_f64((hours * 3_600.0).max(0.0)));
    let bar = match limit {
        Some(limit) => ProgressBar::new(limit.as_secs()),
        None => ProgressBar::new(cli.seeds),
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {percent}% [{elapsed}, {eta} left] {msg}") {
        bar.set_style(style);
    }
    let (next, stop) = (AtomicU64::new(cli.from), AtomicBool::new(false));
    let all = Mutex::new(Summary::default());
    let over = |seed: u64| match limit {
        Some(limit) => began.elapsed() >= limit,
        None => seed >= cli.from.saturating_add(cli.seeds),
    };
    std::thread::scope(|scope| {
        for _ in 0..cli.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) || over(seed) {
                        break;
                    }
                    let outcome = history(seed, part, planted);
                    if cli.history {
                        bar.suspend(|| outcome.history.iter().for_each(|line| println!("{line}")));
                    }
                    let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
                    all.histories += 1;
                    all.calls += outcome.calls;
                    all.groups += outcome.groups;
                    all.looks += outcome.looks;
                    all.lines += outcome.lines as u64;
                    all.checks += outcome.checks;
                    all.given_up += outcome.given_up;
                    all.injected.iter_mut().zip(outcome.injected).for_each(|(sum, new)| *sum += new);
                    bar.set_position(limit.map_or(all.histories, |_| began.elapsed().as_secs()));
                    bar.set_message(format!("{} seeds, {} calls to AWS", all.histories, all.calls));
                    let minutes = began.elapsed().as_secs() / 60;
                    if minutes > all.minutes && !std::io::stderr().is_terminal() {
                        all.minutes = minutes;
                        eprintln!("{minutes} min: {} seeds, {} calls to AWS", all.histories, all.calls);
                    }
                    if let Some(violation) = &outcome.violation {
                        if cli.tally {
                            bar.suspend(|| eprintln!("seed {seed} breaks {}", violation.invariant));
                        }
                        all.broken.entry(violation.invariant).or_default().insert(seed);
                    }
                    let first = all.failed.as_ref().is_none_or(|(other, _)| seed < *other);
                    if outcome.violation.is_some() && first {
                        all.failed = Some((seed, outcome));
                        stop.store(!cli.tally, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    bar.finish_and_clear();
    all.into_inner().unwrap_or_else(PoisonError::into_inner)
}

fn told(summary: &Summary, elapsed: Duration) -> String {
    let Summary { histories, calls, groups, looks, lines, checks, given_up, injected, .. } = summary;
    let rate = |count: u64| {
        #[expect(clippy::cast_precision_loss, reason = "a rate for people to read")]
        let count = count as f64;
        count / elapsed.as_secs_f64().max(0.001)
    };
    let faults: Vec<String> = Fault::ALL
        .iter()
        .map(|&fault| (fault, injected[fault as usize]))
        .filter(|(_, count)| *count > 0)
        .map(|(fault, count)| format!("  {count:>10} {fault}"))
        .collect();
    let total: u64 = injected.iter().sum();
    format!(
        "{histories} histories in {:.0} s ({:.1} a second): {calls} calls to AWS ({groups} of them made several \
         reservations, and {looks} told other environments that a product is sold out or not), {lines} steps, {checks} checks; \
         the reference model gave up {given_up} times\n\
         {total} faults injected:\n{}",
        elapsed.as_secs_f64(),
        rate(*histories),
        faults.join("\n")
    )
}

/// Plants each bug, and plays seeds until a promise is broken.
fn catch_all(cli: &Cli, part: &Part) -> ExitCode {
    let (next, caught) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..cli.threads {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some(planted) = planted::ALL.get(at) else { break };
                    let mut found = None;
                    for seed in cli.from..cli.from.saturating_add(cli.seeds) {
                        if let Some(violation) = history(seed, part, Some(planted)).violation {
                            found = Some((violation.invariant, seed - cli.from + 1));
                            break;
                        }
                    }
                    match found {
                        Some((invariant, seeds)) => eprintln!("{}: {invariant} after {seeds}", planted.name),
                        None => eprintln!("{}: NOT CAUGHT", planted.name),
                    }
                    caught.lock().unwrap_or_else(PoisonError::into_inner).push((at, found));
                }
            });
        }
    });
    let mut caught = caught.into_inner().unwrap_or_else(PoisonError::into_inner);
    caught.sort_by_key(|(at, _)| *at);
    println!("| planted bug | the mistake | caught by | seeds |\n|---|---|---|---|");
    for (at, found) in &caught {
        let planted = &planted::ALL[*at];
        let (invariant, seeds) = found.map_or(("**nothing**", cli.seeds), |found| found);
        println!("| `{}` | {} | `{invariant}` | {seeds} |", planted.name, planted.what);
    }
    let escaped = caught.iter().filter(|(_, found)| found.is_none()).count();
    println!("\n{} of {} caught", caught.len() - escaped, caught.len());
    if escaped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
