//! Says in the words of the API why JSON or a query does not fit what a route takes. Serde says it in the words of Rust
//! (`invalid type: map, expected u64`), and names no field.

use serde::de::{DeserializeOwned, IgnoredAny};
use serde_path_to_error::{Path, Segment};

use crate::Problem;
use crate::input::Object;

/// The longest name of a field that is repeated to the caller, in characters.
const MAX_NAME: usize = 100;

/// Parses a body: a JSON object in UTF-8.
pub(crate) fn parse_body<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let text = str::from_utf8(body).map_err(|_| Problem::invalid("body", "must be UTF-8"))?;
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: Result<Object<T>, _> = serde_path_to_error::deserialize(&mut json);
    let Object(value) = parsed.map_err(|error| {
        let (path, error) = (error.path().clone(), error.into_inner());
        // serde_json also calls it bad syntax where a number is in the place of one of several words.
        let is_json = || serde_json::from_str::<IgnoredAny>(text).is_ok();
        if error.is_data() || is_json() { misfit(&path, "body", &error.to_string()) } else { not_json(&error) }
    })?;
    json.end().map_err(|error| not_json(&error))?;
    Ok(value)
}

fn not_json(error: &serde_json::Error) -> Problem {
    Problem::invalid("body", &format!("is not valid JSON at line {}, column {}", error.line(), error.column()))
}

/// Parses a query: percent-encoded UTF-8.
pub(crate) fn parse_query<T: DeserializeOwned>(query: &str) -> Result<T, Problem> {
    if percent_encoding::percent_decode_str(query).decode_utf8().is_err() {
        return Err(Problem::invalid("query", "must be percent-encoded UTF-8"));
    }
    let pairs = serde_urlencoded::Deserializer::new(form_urlencoded::parse(query.as_bytes()));
    serde_path_to_error::deserialize(pairs).map_err(|error| misfit(error.path(), "query", &error.inner().to_string()))
}

/// The problem of a value at `path` of the `whole` that Serde refuses with `message`.
fn misfit(path: &Path, whole: &str, message: &str) -> Problem {
    // Data errors of serde_json end with the position.
    let message = message.rsplit_once(" at line ").map_or(message, |(message, _)| message);
    // The path of a field that must not be there, or is missing, is that of the object around it.
    for (prefix, rule) in [
        ("missing field `", "is required"),
        ("unknown field `", "is not a field of this request"),
        ("duplicate field `", "must not be given twice"),
    ] {
        if let Some((name, rest)) = message.strip_prefix(prefix).and_then(|rest| rest.split_once('`')) {
            let field = within(path, name);
            let known = rest.strip_prefix(", expected ").filter(|known| known.contains('`'));
            let known = known.map(|known| format!("; known: {}", known.trim_start_matches("one of ").replace('`', "")));
            return Problem::invalid(&field, &format!("{rule}{}", known.unwrap_or_default()));
        }
    }
    let field = if path.iter().len() == 0 { whole.to_owned() } else { path.to_string() };
    Problem::invalid(&field, &rule(&field, message))
}

/// The path of a field of the object at `path`, whose name may be the caller's own.
fn within(path: &Path, name: &str) -> String {
    let name = name.char_indices().nth(MAX_NAME).map_or(name, |(end, _)| &name[..end]);
    // Serde reports an unknown or a duplicate field when it has read its name, so the path may already end with it.
    let ends_with_it = matches!(path.iter().next_back(), Some(Segment::Map { key }) if key == name);
    match path.iter().len() {
        0 => name.to_owned(),
        _ if ends_with_it => path.to_string(),
        _ => format!("{path}.{name}"),
    }
}

/// What a value must be, from Serde's message about it.
fn rule(field: &str, message: &str) -> String {
    if let Some((_, variants)) =
        message.strip_prefix("unknown variant `").and_then(|rest| rest.rsplit_once("`, expected "))
    {
        return format!("must be {}", variants.replace('`', "").replace("one of ", "one of: "));
    }
    let types = ["invalid type: ", "invalid value: ", "invalid length "];
    if let Some((found, expected)) =
        types.iter().find_map(|prefix| message.strip_prefix(prefix)).and_then(|rest| rest.rsplit_once(", expected "))
    {
        let wanted = wanted(expected);
        return match found_kind(found) {
            Some(found) => format!("must be {wanted}, not {found}"),
            None => format!("must be {wanted}"),
        };
    }
    if message == "expected value" {
        return "must be one of the documented values".to_owned();
    }
    // The messages of Rust's integers, for the text of a query.
    if message.contains("digit found in string") || message.contains("integer from empty string") {
        return "must be a whole number".to_owned();
    }
    if message.starts_with("number too ") || message == "number out of range" {
        return "must be a smaller number".to_owned();
    }
    // The domain's own rule, which begins with the field's name.
    let name = field.rsplit('.').next().unwrap_or(field);
    message.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(message).to_owned()
}

/// What Serde expects, by the names that it gives to types.
fn wanted(expected: &str) -> &str {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a JSON number" | "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a sequence" => "an array",
        "a map" => "an object",
        "a string" | "str" | "string" => "a string",
        other if other.starts_with("struct ") => "an object",
        other if other.contains("variant") || other.starts_with("enum ") => "one of the documented values",
        _ => "of another type",
    }
}

/// What Serde found, without the value itself.
fn found_kind(found: &str) -> Option<&'static str> {
    let kinds = [
        ("null", "null"),
        ("unit", "null"),
        ("boolean", "a boolean"),
        ("integer", "this number"),
        ("floating point", "this number"),
        ("number", "this number"),
        ("string", "a string"),
        ("sequence", "an array"),
        ("map", "an object"),
    ];
    kinds.iter().find(|(prefix, _)| found.starts_with(prefix)).map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_domain::{HoldSeconds, ProductId, ProductStatus, Status};
    use serde::Deserialize;
    use serde_json::Value;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Body {
        lines: Vec<Object<Line>>,
        note: Option<String>,
        status: Option<ProductStatus>,
        hold_seconds: Option<HoldSeconds>,
        delta: Option<i64>,
        flag: Option<bool>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Line {
        product_id: ProductId,
        quantity: serde_json::Number,
        count: Option<u32>,
    }

    fn told(problem: Option<Problem>) -> (String, String) {
        let problem = problem.expect("it does not fit");
        let field = problem.members.get("field").and_then(Value::as_str).expect("a field").to_owned();
        (field.clone(), problem.detail.strip_prefix(&format!("{field}: ")).expect("the field first").to_owned())
    }

    #[test]
    fn a_body_that_does_not_fit_is_explained_by_field() {
        let lines = |line: &str| format!(r#"{{"lines":[{{"product_id":"a","quantity":1}},{line}]}}"#);
        for (body, field, rule) in [
            ("{}", "lines", "is required"),
            ("[]", "body", "must be an object, not an array"),
            ("null", "body", "must be an object, not null"),
            (r#""x""#, "body", "must be an object, not a string"),
            (r#"{"lines":"#, "body", "is not valid JSON at line 1, column 9"),
            (r#"{"lines":[]} x"#, "body", "is not valid JSON at line 1, column 14"),
            (r#"{"lines":[1e999]}"#, "lines[0]", "must be a smaller number"),
            (r#"{"lines":{}}"#, "lines", "must be an array, not an object"),
            (r#"{"lines":[],"lines":[]}"#, "lines", "must not be given twice"),
            (r#"{"lines":[],"note":1}"#, "note", "must be a string, not this number"),
            (r#"{"lines":[],"flag":"yes"}"#, "flag", "must be true or false, not a string"),
            (r#"{"lines":[],"delta":1.5}"#, "delta", "must be a whole number, not this number"),
            (r#"{"lines":[],"delta":{}}"#, "delta", "must be a whole number, not an object"),
            (r#"{"lines":[],"status":"sold"}"#, "status", "must be one of: on_sale, paused, archived"),
            (r#"{"lines":[],"status":1}"#, "status", "must be one of the documented values"),
            (r#"{"lines":[],"hold_seconds":1}"#, "hold_seconds", "must be a whole number from 10 to 3600"),
            (&lines("[]"), "lines[1]", "must be an object, not an array"),
            (&lines(r#"{"product_id":"b"}"#), "lines[1].quantity", "is required"),
            (
                &lines(r#"{"product_id":"b","quantity":1,"price":1}"#),
                "lines[1].price",
                "is not a field of this request; known: product_id, quantity, count",
            ),
            (&lines(r#"{"product_id":"b","quantity":"1"}"#), "lines[1].quantity", "must be a number, not a string"),
            (
                &lines(r#"{"product_id":"b","quantity":1,"count":-1}"#),
                "lines[1].count",
                "must be a whole number from 0, not this number",
            ),
            (
                &lines(r#"{"product_id":"in put","quantity":1}"#),
                "lines[1].product_id",
                "must be 1 to 64 of A-Z a-z 0-9 _ -",
            ),
        ] {
            let problem = told(parse_body::<Body>(body.as_bytes()).err());
            assert_eq!((problem.0.as_str(), problem.1.as_str()), (field, rule), "{body}");
        }
        let problem = told(parse_body::<Body>(b"{\"note\":\"\xff\"}").err());
        assert_eq!((problem.0.as_str(), problem.1.as_str()), ("body", "must be UTF-8"));
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "only parsed")]
    struct Asked {
        status: Option<Status>,
        limit: Option<u32>,
        product_id: Option<ProductId>,
    }

    #[test]
    fn a_query_that_does_not_fit_is_explained_by_parameter() {
        for (query, field, rule) in [
            ("limit=x", "limit", "must be a whole number"),
            ("limit=", "limit", "must be a whole number"),
            ("limit=-1", "limit", "must be a whole number"),
            ("limit=99999999999", "limit", "must be a smaller number"),
            ("limit=1&limit=2", "limit", "must not be given twice"),
            ("status=sold", "status", "must be one of: held, confirmed, cancelled, expired"),
            ("colour=red", "colour", "is not a field of this request; known: status, limit, product_id"),
            ("product_id=in+put", "product_id", "must be 1 to 64 of A-Z a-z 0-9 _ -"),
            ("product_id=%ff", "query", "must be percent-encoded UTF-8"),
        ] {
            let problem = told(parse_query::<Asked>(query).err());
            assert_eq!((problem.0.as_str(), problem.1.as_str()), (field, rule), "{query}");
        }
        assert!(parse_query::<Asked>("limit=1&status=held").is_ok());
    }
}
