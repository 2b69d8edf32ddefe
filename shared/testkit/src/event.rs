//! Events as they reach a function, from the files in `events/`, and the function's answers.
#![expect(clippy::expect_used, reason = "for tests: a broken event is a failed test")]

use std::fs;
use std::path::PathBuf;

use lambda_http::request::LambdaRequest;
use lambda_http::{Adapter, Context, IntoResponse, LambdaEvent, Request, Service};
use serde_json::{Value, json};

/// Internals that no caller may read: calls, services, addresses, and the texts of injected faults.
const INSIDE: [&str; 12] = [
    "dynamo",
    "sqs",
    "amazon",
    "arn:",
    "http",
    "slot-",
    "item",
    "message",
    "dispatch",
    "a fault",
    "never came",
    "holdfast",
];

/// The headers with which Lambda's runtime API hands out an event.
pub fn invocation(request_id: &str) -> [(&'static str, String); 3] {
    [
        ("lambda-runtime-aws-request-id", request_id.to_owned()),
        // In the year 2100.
        ("lambda-runtime-deadline-ms", "4102444800000".to_owned()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:function".to_owned()),
    ]
}

/// The names of a function's event files, without `.json`.
pub fn names(function: &str) -> Vec<String> {
    let files = fs::read_dir(folder(function)).expect("the function's events");
    let mut names: Vec<String> = files
        .map(|file| file.expect("a file").path())
        .map(|path| path.file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// One event file, such as `reserve/create`.
pub fn event(name: &str) -> Value {
    let path = folder(name).with_extension("json");
    serde_json::from_str(&fs::read_to_string(path).expect("an event")).expect("JSON")
}

fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../events").join(name)
}

/// The same event with another method and path.
pub fn at(mut event: Value, method: &str, path: &str) -> Value {
    event["rawPath"] = path.into();
    event["requestContext"]["http"]["path"] = path.into();
    event["requestContext"]["http"]["method"] = method.into();
    event
}

/// The same event by another caller, as the authorizer names them.
pub fn by(mut event: Value, customer: &str) -> Value {
    event["requestContext"]["authorizer"]["jwt"]["claims"]["sub"] = customer.into();
    event
}

/// The same event by a caller with this role, as the authorizer passes Cognito's groups on.
pub fn in_role(mut event: Value, role: &str) -> Value {
    event["requestContext"]["authorizer"]["jwt"]["claims"]["cognito:groups"] = format!("[{role}]").into();
    event
}

/// The same event with this query.
pub fn with_query(mut event: Value, query: &str) -> Value {
    event["rawQueryString"] = query.into();
    event
}

/// The same event with another body.
pub fn with_body(mut event: Value, body: impl ToString) -> Value {
    event["body"] = body.to_string().into();
    event
}

/// The same event with another header.
pub fn with_header(mut event: Value, name: &str, value: &str) -> Value {
    event["headers"][name] = value.into();
    event
}

/// The answer of a router to an event, through the runtime's adapter.
pub async fn send<S, R, E>(router: S, event: Value) -> Answer
where
    S: Service<Request, Response = R, Error = E>,
    S::Future: Send + 'static,
    R: IntoResponse + 'static,
    E: std::fmt::Debug,
{
    let request: LambdaRequest = serde_json::from_value(event).expect("an event of API Gateway's");
    let answer = Adapter::from(router).call(LambdaEvent::new(request, Context::default())).await;
    Answer::of(serde_json::to_value(answer.expect("an answer")).expect("JSON"))
}

/// A function's answer to API Gateway.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u64,
    /// The body.
    pub body: Value,
    whole: Value,
}

impl Answer {
    /// The answer in a function's output.
    pub fn of(whole: Value) -> Self {
        assert_eq!(whole["isBase64Encoded"], false, "an answer is text: {whole}");
        let body = serde_json::from_str(whole["body"].as_str().unwrap_or_default()).unwrap_or_default();
        Self { status: whole["statusCode"].as_u64().unwrap_or_default(), body, whole }
    }

    /// A header of it.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.whole["headers"][name].as_str().or_else(|| self.whole["multiValueHeaders"][name][0].as_str())
    }

    /// Checks that it is this problem, complete and without internals, and returns its body.
    ///
    /// # Panics
    /// If it is not.
    #[track_caller]
    pub fn problem(self, status: u64, code: &str) -> Value {
        assert_eq!((self.status, &self.body["code"]), (status, &json!(code)), "{:?}", self.whole);
        assert_eq!(self.header("content-type"), Some("application/problem+json"), "{:?}", self.whole);
        assert_eq!(self.body["status"], status);
        assert_eq!(self.body["type"], format!("urn:holdfast:problem:{code}"));
        assert!(self.body["request_id"].as_str().is_some_and(|id| !id.is_empty()), "{:?}", self.whole);
        if status >= 500 {
            let text = self.body.to_string().to_lowercase().replace("urn:holdfast:", "");
            for inside in INSIDE {
                assert!(!text.contains(inside), "{inside:?} is from inside: {text}");
            }
        }
        if status == 503 {
            assert!(self.header("retry-after").is_some(), "{:?}", self.whole);
        }
        self.body
    }
}
