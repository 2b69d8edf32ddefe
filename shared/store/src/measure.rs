//! What one invocation did, in numbers: every metric by name, and where its numbers are collected. Any layer notes them;
//! `holdfast_aws::metrics` writes them. docs/operations.md says what each one means.
//!
//! No product and no customer is a label: each value of a label is a metric of its own, and costs like one.

use std::cell::RefCell;
use std::collections::BTreeMap;

/// A metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Metric {
    /// Its name. One of an outcome has the outcome's name in the log.
    pub name: &'static str,
    /// What its numbers are.
    pub kind: Kind,
    /// The label that it is counted by, beside the stack.
    pub label: Option<&'static str>,
}

/// What a metric's numbers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A number of events, added up over the invocation.
    Count,
    /// Durations in milliseconds, each kept.
    Millis,
}

macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:ident $(by $label:literal)?;)*) => {
        $(
            #[allow(missing_docs, reason = "docs/operations.md has them, and a test compares")]
            pub const $constant: Metric =
                Metric { name: $name, kind: Kind::$kind, label: metrics!(@label $($label)?) };
        )*
        /// Every metric.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
    (@label) => { None };
    (@label $label:literal) => { Some($label) };
}

metrics! {
    RESERVED = "reserved", Count;
    REPLAYED = "replayed", Count;
    REFUSED = "refused", Count by "code";
    FAILED = "failed", Count by "code";
    CONFIRMED = "confirmed", Count;
    CONFIRMED_LATE = "confirmed_late", Count;
    QUEUED = "queued", Count;
    EXPIRED = "expired", Count;
    GIVEN_BACK = "given_back", Count;
    RELEASE_LAG = "release_lag", Millis;
    UNSCHEDULED = "unscheduled", Count;
    SWEEPS = "sweeps", Count;
    OPEN_FAILED_CONFIRMATIONS = "open_failed_confirmations", Count;
    DRIFT = "drift", Count;
    CONFLICTS = "conflicts", Count;
    THROTTLES = "throttles", Count;
    RETRIES = "retries", Count;
    LATENCY = "latency", Millis by "operation";
    CALL_LATENCY = "call_latency", Millis by "call";
}

/// The metric that counts an outcome of a request, if there is one.
pub fn of_outcome(outcome: &str) -> Option<Metric> {
    let outcomes = [RESERVED, REPLAYED, REFUSED, FAILED, CONFIRMED, CONFIRMED_LATE, QUEUED];
    outcomes.into_iter().find(|metric| metric.name == outcome)
}

/// The numbers of one invocation, by metric and the value of its label.
pub type Numbers = BTreeMap<(Metric, Option<String>), Vec<u64>>;

tokio::task_local! {
    static NUMBERS: RefCell<Numbers>;
}

/// Notes a number of a metric without a label.
pub fn note(metric: Metric, number: u64) {
    note_by(metric, "", number);
}

/// Notes a number of a metric; `label` is left out if it has none. Outside of [`collect`] nothing is noted.
pub fn note_by(metric: Metric, label: &str, number: u64) {
    _ = NUMBERS.try_with(|numbers| {
        let mut numbers = numbers.borrow_mut();
        let noted = numbers.entry((metric, metric.label.map(|_| label.to_owned()))).or_default();
        match noted.first_mut().filter(|_| metric.kind == Kind::Count) {
            Some(sum) => *sum += number,
            None => noted.push(number),
        }
    });
}

/// Awaits `work`, and returns what was noted meanwhile.
pub async fn collect<T>(work: impl Future<Output = T>) -> (T, Numbers) {
    let collected = async {
        let output = work.await;
        (output, NUMBERS.with(RefCell::take))
    };
    NUMBERS.scope(RefCell::default(), collected).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn counts_add_up_by_label_and_durations_are_kept() {
        let ((), numbers) = collect(async {
            note(RESERVED, 1);
            note(RESERVED, 2);
            note(RELEASE_LAG, 7);
            note(RELEASE_LAG, 7);
            for code in ["sold_out", "sold_out", "rate_limited"] {
                note_by(REFUSED, code, 1);
            }
            note_by(RESERVED, "no label of it", 1);
        })
        .await;
        let by = |code: &str| Some(code.to_owned());
        let expected = [
            ((RESERVED, None), vec![4]),
            ((RELEASE_LAG, None), vec![7, 7]),
            ((REFUSED, by("sold_out")), vec![2]),
            ((REFUSED, by("rate_limited")), vec![1]),
        ];
        assert_eq!(numbers, BTreeMap::from(expected));
        // Outside of it, nothing is collected, and nothing fails.
        note(RESERVED, 1);
        assert!(collect(async {}).await.1.is_empty());
    }

    #[test]
    fn names_are_unique() {
        let names: std::collections::BTreeSet<&str> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len());
        assert_eq!((of_outcome("queued"), of_outcome("drift")), (Some(QUEUED), None));
    }
}
