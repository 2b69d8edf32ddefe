//! What the functions log and measure.
#![expect(clippy::expect_used, clippy::panic, reason = "for tests: a broken line is a failed test")]

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use holdfast_aws::{log, metrics};
use holdfast_store::measure::{self, Kind};
use serde_json::Value;

/// All that is logged in this process.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    /// Starts capturing, in the format of the functions. It captures the whole process, since tracing decides once for
    /// all threads whether there is a subscriber. So call it once; it includes the lines of other tests.
    pub fn capture() -> Self {
        let log = Self::default();
        let writer = log.clone();
        log::init_for_test(move || writer.clone());
        let writer = log.clone();
        metrics::init_with("test".to_owned(), move |line| writer.append(format!("{line}\n").as_bytes()));
        log
    }

    fn append(&self, bytes: &[u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
    }

    /// The log as it was written.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }

    /// The log line by line, as JSON.
    pub fn lines(&self) -> Vec<Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap_or_default()).collect()
    }

    /// What was measured, as CloudWatch reads it: each metric, the value of its label or "", and the numbers of one line.
    ///
    /// # Panics
    /// If a line is not in the embedded metric format, or has a metric that is not listed.
    #[track_caller]
    pub fn measured(&self) -> Vec<(String, String, Vec<u64>)> {
        let mut found = Vec::new();
        for line in self.lines().into_iter().filter(|line| !line["_aws"].is_null()) {
            assert!(line["_aws"]["Timestamp"].is_i64(), "{line}");
            for directive in list(&line["_aws"]["CloudWatchMetrics"]) {
                assert_eq!(directive["Namespace"], metrics::NAMESPACE, "{line}");
                let dimensions: Vec<&str> =
                    list(&directive["Dimensions"][0]).iter().map(|name| name.as_str().unwrap_or_default()).collect();
                assert_eq!((dimensions[0], &line[metrics::STACK]), (metrics::STACK, &"test".into()), "{line}");
                let label = dimensions.get(1).copied();
                let value = label.map(|label| line[label].as_str().expect("a value")).unwrap_or_default();
                for described in list(&directive["Metrics"]) {
                    let metric = measure::ALL.iter().find(|metric| described["Name"] == metric.name);
                    let metric = metric.unwrap_or_else(|| panic!("{described} is not listed"));
                    let unit = if metric.kind == Kind::Count { "Count" } else { "Milliseconds" };
                    assert_eq!((label, &described["Unit"]), (metric.label, &unit.into()), "{line}");
                    let numbers = &line[metric.name];
                    let numbers = numbers.as_u64().map_or_else(
                        || list(numbers).iter().map(|number| number.as_u64().expect("a number")).collect(),
                        |one| vec![one],
                    );
                    assert!((1..=100).contains(&numbers.len()), "{line}");
                    found.push((metric.name.to_owned(), value.to_owned(), numbers));
                }
            }
        }
        found
    }

    /// Checks that each of these was measured: a metric, and the value of its label or "".
    ///
    /// # Panics
    /// If one was not; as [`Log::measured`].
    #[track_caller]
    pub fn has_measured(&self, expected: &[(&str, &str)]) {
        let measured = self.measured();
        for (metric, label) in expected {
            let found = measured.iter().any(|(name, value, _)| (name.as_str(), value.as_str()) == (*metric, *label));
            assert!(found, "{metric} {label}: {measured:?}");
        }
    }

    /// Checks that none of these was logged.
    ///
    /// # Panics
    /// If one was.
    #[track_caller]
    pub fn is_free_of(&self, secrets: &[&str]) {
        let log = self.text();
        assert!(!log.is_empty(), "nothing was logged at all");
        for secret in secrets {
            assert!(!log.contains(secret), "{secret} is in the log:\n{log}");
        }
    }
}

#[track_caller]
fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap_or_else(|| panic!("no list: {value}"))
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
