//! Holds every answer that a test gets against the API's description: its status, its headers, and its body to the last
//! field. What the description does not know fails the test that saw it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, OnceLock};

use holdfast_http::codes::CODES;
use holdfast_local::openapi;
use holdfast_local::routes::matches;
use jsonschema::Validator;
use libtest_mimic::{Completion, Trial};
use serde_json::{Value, json};

use crate::api::Answer;

/// Headers that belong to an answer's meaning. Others (a date, a length) are the transport's.
const HEADERS: [&str; 9] = [
    "accept-encoding",
    "x-request-id",
    "cache-control",
    "etag",
    "idempotent-replayed",
    "location",
    "retry-after",
    "www-authenticate",
    "content-disposition",
];

/// Answers that no test of this run can get, each with the test that shows it.
const ELSEWHERE: [(&str, &str); 1] =
    [("internal_error", "shared/http/src/serve.rs: a handler that panics; nothing that a caller sends makes one")];

/// What was answered so far: operation, status, and the problem's code.
static MET: Mutex<BTreeSet<(String, String, String)>> = Mutex::new(BTreeSet::new());

struct Description {
    document: Value,
    /// By the place of the schema in the document.
    validators: BTreeMap<String, Validator>,
}

/// The description as it is served, but that no object in it takes a field that it does not name. It promises clients
/// that fields may come; it must name them when they do.
fn description() -> &'static Description {
    static DESCRIPTION: OnceLock<Description> = OnceLock::new();
    DESCRIPTION.get_or_init(|| {
        let text = std::fs::read_to_string(openapi::path()).unwrap();
        let mut document: Value = serde_json::from_str(&text).unwrap();
        for schema in document["components"]["schemas"].as_object_mut().unwrap().values_mut() {
            if schema["type"] == "object" {
                schema["additionalProperties"] = false.into();
            }
        }
        let mut validators = BTreeMap::new();
        for (path, operations) in document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                for (status, answer) in operation["responses"].as_object().unwrap() {
                    for (kind, content) in answer["content"].as_object().into_iter().flatten() {
                        let mut schema = json!({"components": document["components"]});
                        schema.as_object_mut().unwrap().extend(content["schema"].as_object().unwrap().clone());
                        let validator = jsonschema::options().should_validate_formats(true).build(&schema).unwrap();
                        validators.insert(format!("{method} {path} {status} {kind}"), validator);
                    }
                }
            }
        }
        Description { document, validators }
    })
}

/// The path of the description that a request's path is of. A fixed segment outranks a variable.
fn described_path(document: &Value, path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or_default();
    let paths = document["paths"].as_object().unwrap();
    paths.keys().filter(|pattern| matches(pattern, path)).min_by_key(|pattern| pattern.matches('{').count()).cloned()
}

/// Checks an answer.
///
/// # Panics
/// Where it is not as described.
pub(crate) fn check(method: &str, path: &str, answer: &Answer) {
    let Description { document, validators } = description();
    let method = method.to_lowercase();
    let Some(known) = described_path(document, path) else { return };
    let operation = &document["paths"][&known][&method];
    if operation.is_null() {
        // The path has no such method: no operation describes it, but its code is one of the list.
        MET.lock().unwrap().insert((String::new(), answer.status.to_string(), answer.code().to_owned()));
        return;
    }
    let what = format!("{method} {path:.200}: {answer:#?}");
    let described = &operation["responses"][answer.status.to_string()];
    assert!(described.is_object(), "status {} is not in the description\n{what}", answer.status);

    let of_meaning = answer.headers.keys().filter(|name| HEADERS.contains(&name.as_str()));
    // Header names have no case.
    let header = |name: &str| {
        let mut headers = described["headers"].as_object().into_iter().flatten();
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, header)| header)
    };
    for name in of_meaning {
        let header = header(name.as_str()).unwrap_or_else(|| panic!("the header {name} is not described\n{what}"));
        let value = answer.headers[name].to_str().unwrap();
        let value = match header["schema"]["type"].as_str() {
            Some("integer") => serde_json::from_str(value).unwrap_or(Value::from(value)),
            _ => Value::from(value),
        };
        assert!(jsonschema::is_valid(&header["schema"], &value), "the header {name} is not as described\n{what}");
    }
    for (name, header) in described["headers"].as_object().into_iter().flatten() {
        let there = answer.headers.contains_key(name.as_str());
        let from_gateway = answer.headers.get("content-type").is_some_and(|kind| kind == "application/json");
        assert!(
            there || header["required"] == false || (answer.status >= 400 && from_gateway),
            "the header {name} is missing\n{what}"
        );
    }

    let kinds = described["content"].as_object();
    let operation_id = operation["operationId"].as_str().unwrap_or_default().to_owned();
    MET.lock().unwrap().insert((operation_id, answer.status.to_string(), answer.code().to_owned()));
    let Some(kind) = answer.headers.get("content-type") else {
        assert!(kinds.is_none(), "the answer has no content-type\n{what}");
        return;
    };
    let kind = kind.to_str().unwrap().split(';').next().unwrap().trim();
    let validator = validators.get(&format!("{method} {known} {} {kind}", answer.status));
    let validator = validator.unwrap_or_else(|| panic!("{kind} is not in the description\n{what}"));
    let errors: Vec<String> =
        validator.iter_errors(&answer.body).map(|error| format!("{error} at {}", error.instance_path())).collect();
    assert!(errors.is_empty(), "not as described: {errors:#?}\n{what}");
}

/// Whether the run met what the description promises: each operation's own success and refusals, and every code.
/// `complete` says that every test ran, and passed.
pub(crate) fn trial(complete: bool) -> Trial {
    Trial::ignorable_test("described::every_answer_was_met", move || {
        if !complete {
            return Ok(Completion::ignored_with("not every test ran and passed"));
        }
        let met = MET.lock().unwrap();
        let mut never = Vec::new();
        for (path, operations) in description().document["paths"].as_object().unwrap() {
            for (method, operation) in operations.as_object().unwrap() {
                let id = operation["operationId"].as_str().unwrap();
                for status in
                    operation["responses"].as_object().unwrap().keys().filter(|status| status < &&"400".to_owned())
                {
                    if !met.iter().any(|(known, answered, _)| known == id && answered == status) {
                        never.push(format!("{status} of {method} {path}"));
                    }
                }
            }
        }
        for code in CODES {
            let elsewhere = ELSEWHERE.iter().any(|(known, _)| *known == code.code);
            if elsewhere == met.iter().any(|(_, _, known)| known == code.code) {
                never.push(format!(
                    "{} {}{}",
                    code.status.as_u16(),
                    code.code,
                    if elsewhere { ", which was met after all" } else { "" }
                ));
            }
        }
        if never.is_empty() { Ok(Completion::Completed) } else { Err(format!("never answered: {never:#?}").into()) }
    })
}
