//! Seeds: they are reproducible, none breaks a promise, and the promises catch planted bugs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use holdfast_simulator::planted::{self, Planted};
use holdfast_simulator::{Part, history, seconds, shrink};

/// Number of seeds in an ordinary run of the tests. Longer runs: `cargo local simulate`.
const SEEDS: u64 = 60;

#[test]
fn no_seed_breaks_a_promise() {
    let (next, groups, looks) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let play = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                break;
            }
            let outcome = history(seed, &Part::default(), None);
            groups.fetch_add(outcome.groups, Ordering::Relaxed);
            looks.fetch_add(outcome.looks, Ordering::Relaxed);
            if let Some(violation) = outcome.violation {
                let lines = &outcome.history[outcome.history.len().saturating_sub(40)..];
                panic!(
                    "{}\n\nseed {seed} breaks {} at {}: {}\n\n  cargo local simulate --from {seed} --seeds 1",
                    lines.join("\n"),
                    violation.invariant,
                    seconds(violation.at_ms),
                    violation.detail
                );
            }
        }
    };
    thread::scope(|scope| {
        let two = [scope.spawn(play), scope.spawn(play)];
        for one in two {
            if let Err(panic) = one.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    // Otherwise nothing of what can go wrong in a group, or with a look for others, was tried.
    assert!(groups.into_inner() >= SEEDS / 4, "hardly any transaction made several reservations");
    assert!(looks.into_inner() >= SEEDS / 4, "hardly any environment looked at the shards for others");
}

#[test]
fn the_same_seed_gives_the_same_history_byte_for_byte() {
    let play =
        |seeds: std::ops::Range<u64>| seeds.map(|seed| history(seed, &Part::default(), None)).collect::<Vec<_>>();
    let once = play(0..12);
    // On another thread, after other seeds: nothing may leak from one history into another.
    let again = thread::spawn(move || {
        history(999, &Part::default(), None);
        play(0..12)
    });
    for (seed, (one, other)) in once.iter().zip(again.join().unwrap()).enumerate() {
        for (line, other) in one.history.iter().zip(&other.history) {
            assert_eq!(line, other, "seed {seed}");
        }
        assert_eq!((one.digest, one.history.len()), (other.digest, other.history.len()), "seed {seed}");
    }
    assert_ne!(once[0].digest, once[1].digest);
}

/// Number of seeds for each planted bug.
const SEEDS_OF_A_BUG: u64 = 90;

/// Planted bugs that need more seeds: `cargo local simulate --planted all` plays them.
const RARE: [&str; 29] = [
    "confirm-without-time",
    "group-reads-the-item-of-another",
    "search-dated-later",
    "retake-without-status",
    "written-off-without-entry",
    "confirm-with-what-was-given-back",
    "released-by-whoever-it-was",
    "changed-and-takes-more-than-there-is",
    "given-back-without-status",
    "retrying-for-ever",
    "changed-though-ended",
    "late-with-the-lines-that-were-read",
    "handed-over-as-it-was-read",
    "handed-over-though-ended",
    "given-back-though-paid-since",
    "settled-though-given-back",
    "reserve-without-version-condition",
    "expiry-checked-only-on-read",
    "confirm-without-owner",
    "extend-without-status",
    "extend-on-old-news",
    "refund-noted-whatever-it-is",
    "closed-and-not-remembered",
    "told-and-not-closed",
    "refunded-and-not-closed",
    "late-payer-loses",
    "adjust-without-key",
    "moved-as-it-was-read",
    "changed-and-not-found",
];

#[test]
fn planted_bugs_are_caught() {
    let left = Mutex::new(planted::ALL.iter().filter(|planted| !RARE.contains(&planted.name)));
    let next = || left.lock().unwrap().next();
    let play = || {
        let mut escaped = Vec::new();
        while let Some(planted) = next() {
            let caught = |seed| history(seed, &Part::default(), Some(planted)).violation.is_some();
            if !(0..SEEDS_OF_A_BUG).any(caught) {
                escaped.push(planted.name);
            }
        }
        escaped
    };
    let escaped = thread::scope(|scope| [scope.spawn(play), scope.spawn(play)].map(|one| one.join().unwrap()).concat());
    assert!(escaped.is_empty(), "no promise saw {escaped:?}");
}

#[test]
fn a_planted_bug_is_caught_by_the_promise_that_it_breaks() {
    for (name, invariant) in [
        ("reserve-without-stock-condition", "nothing_negative"),
        ("reserve-in-two-steps", "every_unit_is_somewhere"),
        ("restore-twice", "every_unit_is_somewhere"),
        ("trusts-the-environment", "no_hold_without_its_reminder"),
        ("confirmed-stays-due", "index_due_has_the_holds"),
        ("changed-and-payable-for-longer", "a_change_of_lines_is_whole"),
        ("reserve-says-yes", "answers_are_the_table"),
        ("done-and-not-written-down", "every_admin_action_is_written_down"),
        ("written-down-without-outcome", "every_admin_action_is_written_down"),
    ] {
        let planted = Planted::named(name).unwrap();
        let mut violations = (0..60).filter_map(|seed| history(seed, &Part::default(), Some(planted)).violation);
        // In some histories another promise breaks first.
        assert!(violations.any(|violation| violation.invariant == invariant), "{name}");
    }
}

#[test]
fn a_failing_history_is_made_smaller_and_still_fails() {
    let planted = Planted::named("restore-twice").unwrap();
    let (seed, failed) = (0..60)
        .map(|seed| (seed, history(seed, &Part::default(), Some(planted))))
        .find(|(_, outcome)| outcome.violation.is_some())
        .unwrap();
    let whole = failed.history.len();
    let smaller = shrink(seed, &Part::default(), Some(planted), failed);
    assert!(smaller.outcome.history.len() < whole, "{} of {whole} lines", smaller.outcome.history.len());
    let again = history(seed, &smaller.part, Some(planted));
    assert_eq!(again.violation, smaller.outcome.violation);
    assert_eq!(again.digest, smaller.outcome.digest);
    assert!(again.violation.is_some());
    assert!(smaller.arguments(seed, Some(planted)).contains("--planted restore-twice"));
}
