//! The metrics of a function, as lines of CloudWatch's embedded metric format on standard output, beside the log.
//! CloudWatch makes the metrics of them, so that no call of AWS and no permission is needed.
//!
//! What is measured, and under which names: [`holdfast_store::measure`].
//!
//! By hand, because the crates for it (`metrics_cloudwatch_embedded`, `metrique`) collect for the whole process. There,
//! the numbers of invocations that run at once would mix, as they do in the simulator and in tests; the first one also
//! drops what exceeds 100 values, and writes a line for each label.

use std::collections::BTreeMap;
use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;

use aws_sdk_dynamodb::config::interceptors::{
    BeforeSerializationInterceptorContextRef, FinalizerInterceptorContextRef,
};
use aws_sdk_dynamodb::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_dynamodb::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint;
use aws_smithy_runtime_api::client::orchestrator::Metadata;
use aws_smithy_types::config_bag::{Storable, StoreReplace};
use holdfast_store::measure::{self, Kind, Metric, Numbers};
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::config::{self, ConfigError};
use crate::{clock, log};

/// The namespace in CloudWatch.
pub const NAMESPACE: &str = "Holdfast";
/// The dimension of every metric.
pub const STACK: &str = "stack";
/// The most values of a metric in one line.
const MAX_VALUES: usize = 100;

struct Sink {
    stack: String,
    write: Box<dyn Fn(&str) + Send + Sync>,
}

static SINK: OnceLock<Sink> = OnceLock::new();

/// Begins to write metrics to standard output, unless that is a terminal. They are those of the stack `STACK_NAME`.
///
/// # Errors
/// [`ConfigError`] if the variable is missing.
pub fn init() -> Result<(), ConfigError> {
    let stack = config::stack_name()?;
    if !std::io::stdout().is_terminal() {
        // Nobody can be told that standard output is closed.
        init_with(stack, |line| _ = writeln!(std::io::stdout(), "{line}"));
    }
    Ok(())
}

/// Begins to write metrics by `write`, a line at a time.
pub fn init_with(stack: String, write: impl Fn(&str) + Send + Sync + 'static) {
    _ = SINK.set(Sink { stack, write: Box::new(write) });
}

/// Awaits the work of an invocation, and writes what was measured meanwhile.
pub async fn measured<T>(work: impl Future<Output = T>) -> T {
    let (output, numbers) = measure::collect(work).await;
    if let Some(Sink { stack, write }) = SINK.get() {
        let now = clock::system().now().as_millis();
        lines(&numbers).iter().for_each(|line| write(&document(stack, now, line).to_string()));
    }
    output
}

/// What one line has of each metric: the value of its label, and its numbers.
type Line<'a> = BTreeMap<Metric, (Option<&'a str>, &'a [u64])>;

/// Distributes the numbers over as few lines as possible. In one line, a metric occurs once, and a label has one value.
fn lines(numbers: &Numbers) -> Vec<Line<'_>> {
    let mut lines: Vec<Line<'_>> = Vec::new();
    for ((metric, value), all) in numbers {
        let value = value.as_deref();
        for some in all.chunks(MAX_VALUES) {
            let fits = |line: &&mut Line<'_>| {
                let same_label = |(other, (theirs, _)): (&Metric, &(Option<&str>, &[u64]))| {
                    other.label != metric.label || *theirs == value
                };
                !line.contains_key(metric) && line.iter().all(same_label)
            };
            match lines.iter_mut().find(fits) {
                Some(line) => _ = line.insert(*metric, (value, some)),
                None => lines.push(BTreeMap::from([(*metric, (value, some))])),
            }
        }
    }
    lines
}

/// A line in the embedded metric format
/// (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html>).
fn document(stack: &str, now_ms: i64, line: &Line<'_>) -> Value {
    let mut document = Map::from_iter([(STACK.to_owned(), json!(stack))]);
    let mut by_label: BTreeMap<Option<&str>, Vec<Value>> = BTreeMap::new();
    for (metric, (value, numbers)) in line {
        let unit = match metric.kind {
            Kind::Count => "Count",
            Kind::Millis => "Milliseconds",
        };
        by_label.entry(metric.label).or_default().push(json!({ "Name": metric.name, "Unit": unit }));
        document.insert(metric.name.to_owned(), if let [one] = numbers { json!(one) } else { json!(numbers) });
        if let (Some(label), Some(value)) = (metric.label, value) {
            document.insert(label.to_owned(), json!(value));
        }
    }
    let directives = by_label.into_iter().map(|(label, metrics)| {
        let dimensions: Vec<&str> = [STACK].into_iter().chain(label).collect();
        json!({ "Namespace": NAMESPACE, "Dimensions": [dimensions], "Metrics": metrics })
    });
    let about = json!({ "Timestamp": now_ms, "CloudWatchMetrics": directives.collect::<Vec<_>>() });
    document.insert("_aws".to_owned(), about);
    Value::Object(document)
}

/// Measures each call of AWS, with the SDK's own retries. A call that is given up at its deadline has no duration.
#[derive(Debug)]
pub(crate) struct Calls;

#[derive(Debug)]
struct Started(Instant);

impl Storable for Started {
    type Storer = StoreReplace<Self>;
}

#[dyn_dispatch_hint]
impl Intercept for Calls {
    fn name(&self) -> &'static str {
        "Calls"
    }

    fn read_before_execution(
        &self,
        _: &BeforeSerializationInterceptorContextRef<'_>,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(Started(Instant::now()));
        Ok(())
    }

    fn read_after_execution(
        &self,
        _: &FinalizerInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if let (Some(call), Some(Started(at))) = (config.load::<Metadata>(), config.load::<Started>()) {
            measure::note_by(measure::CALL_LATENCY, call.name(), log::millis(at.elapsed()));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(noted: &[(Metric, &str, &[u64])]) -> Numbers {
        let one = |(metric, label, numbers): &(Metric, &str, &[u64])| {
            ((*metric, metric.label.map(|_| (*label).to_owned())), numbers.to_vec())
        };
        noted.iter().map(one).collect()
    }

    #[test]
    fn a_request_is_one_line_with_a_directive_for_each_set_of_dimensions() {
        let noted = numbers(&[
            (measure::RESERVED, "", &[1]),
            (measure::CONFLICTS, "", &[2]),
            (measure::LATENCY, "POST /reservations", &[14]),
            (measure::CALL_LATENCY, "TransactWriteItems", &[4, 5]),
        ]);
        let lines = lines(&noted);
        assert_eq!(lines.len(), 1);
        let directive = |dimensions: Value, metrics: Value| json!({ "Namespace": "Holdfast", "Dimensions": [dimensions], "Metrics": metrics });
        let count = |name: &str| json!({ "Name": name, "Unit": "Count" });
        let millis = |name: &str| json!([{ "Name": name, "Unit": "Milliseconds" }]);
        let expected = json!({
            "_aws": { "Timestamp": 1_700_000_000_000_i64, "CloudWatchMetrics": [
                directive(json!(["stack"]), json!([count("conflicts"), count("reserved")])),
                directive(json!(["stack", "call"]), millis("call_latency")),
                directive(json!(["stack", "operation"]), millis("latency")),
            ] },
            "stack": "shop", "reserved": 1, "conflicts": 2,
            "operation": "POST /reservations", "latency": 14, "call": "TransactWriteItems", "call_latency": [4, 5],
        });
        assert_eq!(document("shop", 1_700_000_000_000, &lines[0]), expected);
    }

    #[test]
    fn a_label_with_several_values_and_more_values_than_a_line_takes_need_more_lines() {
        let many: Vec<u64> = (0..250).collect();
        let noted = numbers(&[
            (measure::EXPIRED, "", &[250]),
            (measure::RELEASE_LAG, "", &many),
            (measure::REFUSED, "sold_out", &[1]),
            (measure::FAILED, "unavailable", &[1]),
            (measure::CALL_LATENCY, "Query", &[1]),
            (measure::CALL_LATENCY, "GetItem", &[1]),
        ]);
        let lines = lines(&noted);
        assert_eq!(lines.len(), 3, "{lines:?}");
        let mut written = Numbers::new();
        for line in &lines {
            let document = document("shop", 0, line);
            for directive in document["_aws"]["CloudWatchMetrics"].as_array().unwrap() {
                assert!(directive["Metrics"].as_array().unwrap().len() <= 100);
                for dimension in directive["Dimensions"][0].as_array().unwrap() {
                    assert!(document[dimension.as_str().unwrap()].is_string(), "{document}");
                }
            }
            for (metric, (value, numbers)) in line {
                assert!(numbers.len() <= MAX_VALUES);
                written.entry((*metric, value.map(str::to_owned))).or_default().extend(*numbers);
            }
        }
        assert_eq!(written, noted, "nothing is lost");
    }
}
