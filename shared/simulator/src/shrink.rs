//! The smallest part of a failing history that still breaks the same promise.

use std::collections::BTreeSet;

use crate::faults::Fault;
use crate::plan::{Part, Plan};
use crate::planted::Planted;
use crate::run::{Outcome, history};

/// The maximum number of histories that a search plays.
const MOST_TRIES: usize = 200;

/// The result of shrinking a failing history.
#[derive(Debug)]
pub struct Smaller {
    /// The part of the plan.
    pub part: Part,
    /// Its outcome.
    pub outcome: Outcome,
    /// Number of histories that were played to find it.
    pub tries: usize,
}

impl Smaller {
    /// The arguments of the command that replays it.
    #[must_use]
    pub fn arguments(&self, seed: u64, planted: Option<&Planted>) -> String {
        let mut arguments = format!("--from {seed} --seeds 1");
        if let Some(moments) = &self.part.moments {
            let moments: Vec<String> = moments.iter().map(usize::to_string).collect();
            arguments = format!("{arguments} --moments {}", moments.join(","));
        }
        if let Some(faults) = &self.part.faults {
            let faults: Vec<&str> = faults.iter().map(|fault| fault.name()).collect();
            let faults = if faults.is_empty() { "none".to_owned() } else { faults.join(",") };
            arguments = format!("{arguments} --faults {faults}");
        }
        planted.map_or(arguments.clone(), |planted| format!("{arguments} --planted {}", planted.name))
    }
}

/// Removes kinds of faults, and then moments, as long as the same promise is still broken.
#[must_use]
pub fn shrink(seed: u64, part: &Part, planted: Option<&'static Planted>, failed: Outcome) -> Smaller {
    let Some(violation) = failed.violation.clone() else {
        return Smaller { part: part.clone(), outcome: failed, tries: 0 };
    };
    let plan = Plan::of(seed, part);
    let mut search = Search { seed, planted, invariant: violation.invariant, tries: 0, best: failed };
    let mut faults: BTreeSet<Fault> = plan.faults();
    let mut moments: BTreeSet<usize> = plan.moments();

    for fault in faults.clone() {
        let without: BTreeSet<Fault> = faults.iter().copied().filter(|&other| other != fault).collect();
        if search.fails(&Part { moments: Some(moments.clone()), faults: Some(without.clone()) }) {
            faults = without;
        }
    }
    let mut size = moments.len().div_ceil(2);
    while size > 0 && search.tries < MOST_TRIES {
        let all: Vec<usize> = moments.iter().copied().collect();
        for chunk in all.chunks(size) {
            let without: BTreeSet<usize> = moments.iter().copied().filter(|moment| !chunk.contains(moment)).collect();
            if search.fails(&Part { moments: Some(without.clone()), faults: Some(faults.clone()) }) {
                moments = without;
            }
        }
        size /= 2;
    }
    let part = Part { moments: Some(moments), faults: Some(faults) };
    // Played once more, even if nothing could be removed: what is printed is what the command replays.
    let outcome = history(seed, &part, planted);
    let (part, outcome) = if outcome.violation.is_some() { (part, outcome) } else { (Part::default(), search.best) };
    Smaller { part, outcome, tries: search.tries }
}

struct Search {
    seed: u64,
    planted: Option<&'static Planted>,
    invariant: &'static str,
    tries: usize,
    best: Outcome,
}

impl Search {
    fn fails(&mut self, part: &Part) -> bool {
        if self.tries >= MOST_TRIES {
            return false;
        }
        self.tries += 1;
        let outcome = history(self.seed, part, self.planted);
        let fails = outcome.violation.as_ref().is_some_and(|violation| violation.invariant == self.invariant);
        if fails {
            self.best = outcome;
        }
        fails
    }
}
