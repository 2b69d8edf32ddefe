//! Seeds, again and again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a panic is how a test fails")]

use holdfast_simulator::{Part, history};

#[test]
fn measure() {
    let from: u64 = std::env!("CARGO_PKG_VERSION_MAJOR").parse().unwrap();
    let began = std::time::Instant::now();
    let (mut calls, mut lines, mut checks) = (0, 0, 0);
    for seed in from..from + 8 {
        let outcome = history(seed, &Part::default(), None);
        println!("{seed} {:?}", began.elapsed());
        (calls, lines, checks) = (calls + outcome.calls, lines + outcome.lines, checks + outcome.checks);
        if let Some(violation) = outcome.violation {
            for line in outcome.history.iter().rev().take(60).rev() {
                println!("{line}");
            }
            println!("seed {seed}: {violation:?}");
        }
    }
    println!("{:?} {calls} calls {lines} lines {checks} checks", began.elapsed());
}
