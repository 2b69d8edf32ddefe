//! The API description is complete and consistent, as far as a test without a running stack can tell. The end-to-end tests
//! compare each response with it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]

use holdfast_http::codes::CODES;
use holdfast_local::routes::Routes;
use holdfast_local::template::{Scope, Template};
use holdfast_local::{openapi, paths};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

fn committed() -> Value {
    serde_json::from_str(&std::fs::read_to_string(openapi::path()).unwrap()).unwrap()
}

/// Every operation, with its method and path.
fn operations(description: &Value) -> Vec<(String, &Value)> {
    let mut all = Vec::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            all.push((format!("{} {path}", method.to_uppercase()), operation));
        }
    }
    all
}

/// Visits every value at any depth, with its path.
fn walk<'a>(value: &'a Value, place: &str, visit: &mut impl FnMut(&str, &'a Value)) {
    visit(place, value);
    match value {
        Value::Object(fields) => fields.iter().for_each(|(name, field)| walk(field, &format!("{place}/{name}"), visit)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(n, item)| walk(item, &format!("{place}/{n}"), visit));
        }
        _ => {}
    }
}

#[test]
fn the_committed_description_is_up_to_date() {
    let file = std::fs::read_to_string(openapi::path()).unwrap();
    assert!(file == openapi::text().unwrap(), "functions/catalog/openapi.json is not up to date: cargo local openapi");
}

#[tokio::test]
async fn every_route_is_described_and_nothing_else() {
    let template = Template::load(&paths::workspace().join("template.yaml")).unwrap();
    let (parameters, resources) = (BTreeMap::new(), BTreeMap::new());
    let scope = Scope { stack: "s".to_owned(), region: "r".to_owned(), parameters, resources };
    let functions = template.functions(&scope).unwrap();
    let routes = Routes::load(&template, &scope, &functions).await.unwrap();
    let routes: BTreeSet<String> = routes.iter().map(|route| format!("{} {}", route.method, route.path)).collect();
    let description = committed();
    let described: BTreeSet<String> = operations(&description).into_iter().map(|(name, _)| name).collect();
    assert_eq!(described, routes);
}

#[test]
fn every_reference_resolves_and_every_schema_is_valid_and_used() {
    let description = committed();
    let mut used = BTreeSet::new();
    walk(&description, "", &mut |place, value| {
        let Some(reference) = value["$ref"].as_str() else { return };
        let target = reference.strip_prefix('#').unwrap_or_else(|| panic!("{place}: {reference}"));
        assert!(description.pointer(target).is_some(), "{place}: {reference}");
        used.insert(reference.to_owned());
    });
    for (name, schema) in description["components"]["schemas"].as_object().unwrap() {
        jsonschema::meta::validate(schema).unwrap_or_else(|error| panic!("{name}: {error}"));
        // The one problem that no described operation answers with.
        let used = used.contains(&format!("#/components/schemas/{name}")) || name == "MethodNotAllowedProblem";
        assert!(used, "nothing uses {name}");
    }
}

#[test]
fn operations_have_names_descriptions_and_a_successful_response() {
    let description = committed();
    let tags: BTreeSet<&str> =
        description["tags"].as_array().unwrap().iter().map(|tag| tag["name"].as_str().unwrap()).collect();
    let mut ids = BTreeSet::new();
    for (name, operation) in operations(&description) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{name}");
        for words in ["summary", "description"] {
            assert!(operation[words].as_str().is_some_and(|words| !words.is_empty()), "{name} has no {words}");
        }
        let tag = operation["tags"][0].as_str().unwrap();
        assert!(tags.contains(tag), "{name}: {tag}");
        let answers = operation["responses"].as_object().unwrap();
        assert!(answers.keys().any(|status| status.starts_with('2')), "{name}");
        // Operations that require a token say so; the others are public.
        let open = ["Products", "API description", "Console"].contains(&tag);
        assert_eq!(operation["security"].is_array(), !open, "{name}");
    }
}

#[test]
fn every_problem_has_a_description_a_schema_and_an_operation() {
    let description = committed();
    let introduction = description["info"]["description"].as_str().unwrap();
    let all = serde_json::to_string(&description["paths"]).unwrap();
    for code in CODES {
        let row = format!("| {} | `{}` | {} | {} |\n", code.status.as_u16(), code.code, code.meaning, code.advice);
        assert!(introduction.contains(&row), "{}", code.code);
        let urn = format!("urn:holdfast:problem:{}", code.code);
        let schemas = description["components"]["schemas"].as_object().unwrap();
        let (name, _) = schemas.iter().find(|(_, schema)| schema["properties"]["type"]["const"] == urn).unwrap();
        let named = all.contains(&format!("#/components/schemas/{name}\""));
        // A method that a path does not answer to has no operation.
        assert_eq!(named, code.code != "method_not_allowed", "{}", code.code);
    }
}

/// docs/api.md has the same table.
#[test]
fn the_problem_table_of_the_documentation_is_up_to_date() {
    let page = std::fs::read_to_string(paths::workspace().join("docs/api.md")).unwrap();
    // The description has no sections to link to.
    let without_link = |row: &str| match row.split_once(" See [") {
        Some((before, link)) if link.contains("](#") => format!("{before} |"),
        _ => row.to_owned(),
    };
    let rows: Vec<String> = page
        .lines()
        .skip_while(|line| *line != "| status | code | what to do |")
        .skip(2)
        .take_while(|line| line.starts_with('|'))
        .map(without_link)
        .collect();
    let wanted: Vec<String> =
        CODES.iter().map(|code| format!("| {} | `{}` | {} |", code.status.as_u16(), code.code, code.advice)).collect();
    assert_eq!(rows, wanted);
}

#[test]
fn examples_match_their_schemas() {
    let description = committed();
    let validator = |schema: &Value| {
        let mut whole = description.clone();
        whole.as_object_mut().unwrap().extend(schema.as_object().unwrap().clone());
        jsonschema::options().should_validate_formats(true).build(&whole).unwrap()
    };
    let mut seen = 0;
    walk(&description, "", &mut |place, value| {
        if place.contains("/properties/") {
            return;
        }
        let schema = if value["schema"].is_object() { &value["schema"] } else { value };
        for example in value["examples"].as_array().into_iter().flatten().chain(value.get("example")) {
            let outcome = validator(schema).validate(example).map_err(|error| error.to_string());
            assert_eq!(outcome, Ok(()), "{place}: {example}");
            seen += 1;
        }
    });
    assert!(seen >= 20, "{seen}");
    for (name, operation) in operations(&description) {
        if let Some(body) = operation.pointer("/requestBody/content/application~1json") {
            assert!(body.get("example").is_some(), "{name} has no example");
        }
    }
}
