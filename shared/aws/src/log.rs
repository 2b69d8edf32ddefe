//! The functions' log: JSON, an object a line, or text for people on a terminal. docs/logs.md lists every message and
//! field.

use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::Duration;

use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config;

/// Begins to log to standard output, at the level of `AWS_LAMBDA_LOG_LEVEL` (Lambda sets it from the function's logging
/// configuration) or `RUST_LOG`; `INFO` by default.
pub fn init() {
    let level = parse_level(config::log_level().as_deref(), !cfg!(debug_assertions));
    if std::io::stdout().is_terminal() {
        tracing_subscriber::fmt().with_target(false).with_max_level(level).compact().init();
    } else {
        init_json(level, std::io::stdout);
    }
}

/// As [`init`] outside of a terminal, for a test that reads what was logged.
pub fn init_for_test(writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    init_json(LevelFilter::INFO, writer);
}

fn init_json(level: LevelFilter, writer: impl for<'a> MakeWriter<'a> + Send + Sync + 'static) {
    let log = tracing_subscriber::fmt().with_target(false).with_max_level(level).with_writer(writer);
    // The innermost span only: it names the request or the message, and there is one on every line.
    log.json().flatten_event(true).with_current_span(true).with_span_list(false).init();
}

/// In a release at most `INFO`: below it, the runtime and the SDK log whole requests, with tokens and payments.
fn parse_level(text: Option<&str>, release: bool) -> LevelFilter {
    let level = level_of(text);
    if release { level.min(LevelFilter::INFO) } else { level }
}

fn level_of(text: Option<&str>) -> LevelFilter {
    match text.map(str::trim).filter(|text| !text.is_empty()) {
        // Lambda has a level above ERROR; nothing here logs at it.
        Some(fatal) if fatal.eq_ignore_ascii_case("fatal") => LevelFilter::ERROR,
        Some(text) => text.parse().unwrap_or(LevelFilter::INFO),
        None => LevelFilter::INFO,
    }
}

/// The name of this function, as its log lines give it. Empty outside of Lambda.
pub fn function() -> &'static str {
    static NAME: LazyLock<String> = LazyLock::new(config::function_name);
    &NAME
}

/// The id of the trace that an invocation belongs to, from Lambda's header `Root=1-...;Parent=...;Sampled=0`.
pub fn trace_id(header: Option<&str>) -> Option<&str> {
    header?.split(';').find_map(|part| part.strip_prefix("Root="))
}

/// The span of an event that is not an HTTP request: names the function, the invocation's id and its trace on each line.
pub fn event(request_id: &str, trace: Option<&str>) -> tracing::Span {
    tracing::info_span!("event", function = function(), request_id, trace_id = trace_id(trace))
}

/// The span of a message from a queue: also names the message, and its reservation once [`reservation`] is called.
pub fn message(request_id: &str, trace: Option<&str>, message_id: Option<&str>) -> tracing::Span {
    let (function, trace_id) = (function(), trace_id(trace));
    tracing::info_span!("message", function, request_id, trace_id, message_id, reservation_id = tracing::field::Empty)
}

/// A duration in milliseconds, as `duration_ms` and the metrics give it.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Adds the reservation's id to the following log lines of this request or message.
pub fn reservation(id: &impl std::fmt::Display) {
    tracing::Span::current().record("reservation_id", tracing::field::display(id));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_named_by_its_root() {
        let root = "1-5759e988-bd862e3fe1be46a994272793";
        for header in [format!("Root={root};Parent=53995c3f42cd8ad8;Sampled=1"), format!("Self=1-2-3;Root={root}")] {
            assert_eq!(trace_id(Some(&header)), Some(root));
        }
        assert_eq!((trace_id(None), trace_id(Some("x"))), (None, None));
    }

    #[test]
    fn a_level_is_read_as_lambda_writes_it_and_anything_else_is_info() {
        for (text, level) in [
            (None, LevelFilter::INFO),
            (Some("DEBUG"), LevelFilter::DEBUG),
            (Some("trace"), LevelFilter::TRACE),
            (Some("warn"), LevelFilter::WARN),
            (Some("FATAL"), LevelFilter::ERROR),
            (Some("holdfast=debug,info"), LevelFilter::INFO),
            (Some(""), LevelFilter::INFO),
        ] {
            assert_eq!(parse_level(text, false), level, "{text:?}");
            assert!(parse_level(text, true) <= LevelFilter::INFO, "{text:?}");
        }
    }
}
