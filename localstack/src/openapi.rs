//! The API description (OpenAPI 3.1): merged from the descriptions of the functions into the file that `catalog` serves.
//! The functions never import one another, so this happens here.
//!
//! What many operations share is added here, once:
//! - problems that follow from an operation's input (a token, a body, an `Idempotency-Key`, an id in the path), with the
//!   text of [`holdfast_http::codes`]; an operation names only its own (`x-problems`);
//! - `If-None-Match`, `ETag`, `Cache-Control` and 304 for cacheable operations (`x-cached`).

use crate::error::{Context as _, Error, Result};
use crate::paths;
use holdfast_http::codes::{self, CODES, Code, MemberValue};
use holdfast_http::examples;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use utoipa::OpenApi as _;

/// The introduction for readers.
/// The parts are folded, so that a page that shows the description begins with the operations.
const INTRODUCTION: &str = "\
A customer reserves units, then confirms the reservation (it becomes the order), cancels it, or lets it expire.

<details><summary>Tokens, retries, bodies, lists</summary>

**Tokens.** Operations with a padlock require `Authorization: Bearer <token>`. Customers can read and change their own \
reservations only; another customer's is 404. A shop's back end, with the role `service`, sends the customer that it acts \
for as `customer_id`, and can do what that customer can. Operations under `/admin` require the role `admin`; with the role \
`auditor`, `GET` is allowed. Those of the tag `Console` are public.

**Retries.** A `POST` request with an `Idempotency-Key` can be retried unchanged, with the same key: it has its effect \
once. Confirming and cancelling are idempotent without a key.

**Bodies** are JSON in UTF-8, at most 65,536 bytes. Unknown fields are refused. Responses may get new fields. Amounts are \
whole numbers of the currency's minor unit (`currency_exponent` is its number of decimals). Whole numbers are written \
without a fraction: `1`, not `1.0`. Times are RFC 3339; responses use UTC with three decimals.

**Query parameters** that an operation does not define are refused if it requires a token, and ignored otherwise.

**Guests.** Customers without an account have no token. The shop's back end acts for them with a `customer_id` that begins \
with `guest:`. A token whose `sub` begins with `guest:` is refused, so a guest is never a signed-in user.

**Lists** return `items` and `next_cursor`. Send the cursor, with the other parameters unchanged, to get the next page.

</details>

<details><summary>Problems</summary>

Every error is `application/problem+json` (RFC 9457). Branch on `code`; `type` is `urn:holdfast:problem:<code>`. A refused \
request has changed nothing, except that a payment that must be refunded was recorded. API Gateway answers some requests \
itself, with `{\"message\": ...}`: invalid tokens (401), its own throttle (429), a function that failed or did not respond \
(500, 503).
";

const TAGS: [(&str, &str); 9] = [
    ("Products", "Products and their stock. Public."),
    ("Reservations", "Create, read, extend, change, cancel and confirm reservations. For customers."),
    ("Orders", "Confirmed reservations. For customers."),
    ("Admin: products", "Products and their stock. For administrators."),
    ("Admin: reservations", "All customers' reservations and orders. For administrators."),
    ("Admin: failed confirmations", "Payments that did not become an order. For administrators."),
    ("Admin: actions", "What administrators did. For administrators."),
    ("Console", "A page that uses the operations for administrators. Public."),
    ("API description", "This description. Public."),
];

/// Statuses that API Gateway answers itself on a known route: an invalid token, its throttle, a function that failed, its
/// time limit.
const GATEWAY: [&str; 4] = ["401", "429", "500", "503"];

/// The file that `catalog` serves.
pub fn path() -> PathBuf {
    paths::workspace().join("functions/catalog/openapi.json")
}

/// The file's expected text.
///
/// # Errors
/// See [`document`].
pub fn text() -> Result<String> {
    // Sorted, so that the file does not depend on serde_json's map.
    let text = serde_json::to_string_pretty(&sorted(document()?));
    Ok(text.context(|| "cannot write the description".into())? + "\n")
}

/// The whole description.
///
/// # Errors
/// Two functions describe one schema or path differently, or an operation names an unknown problem.
pub fn document() -> Result<Value> {
    let mut paths = Map::new();
    let mut schemas = Map::new();
    for part in [
        catalog::Description::openapi(),
        reserve::Description::openapi(),
        confirm::Description::openapi(),
        admin::Description::openapi(),
    ] {
        let mut part = serde_json::to_value(part).context(|| "a function's description".into())?;
        for (path, operations) in take_object(&mut part["paths"]) {
            let known = paths.entry(path.clone()).or_insert_with(|| json!({}));
            for (method, operation) in operations.as_object().into_iter().flatten() {
                if known.get(method).is_some() {
                    return Err(Error::new(format!("{method} {path} is described twice")));
                }
                known[method] = operation.clone();
            }
        }
        for (name, schema) in take_object(&mut part["components"]["schemas"]) {
            if schemas.get(&name).is_some_and(|known| *known != schema) {
                return Err(Error::new(format!("the schema {name} has two meanings")));
            }
            schemas.insert(name, schema);
        }
    }
    name_pages(&mut paths, &mut schemas);
    let bodies_without_needs: BTreeSet<String> = schemas
        .iter()
        .filter(|(_, schema)| schema.get("required").is_none())
        .map(|(name, _)| format!("#/components/schemas/{name}"))
        .collect();
    for (path, operations) in &mut paths {
        for (method, operation) in operations.as_object_mut().into_iter().flatten() {
            // An empty body counts as `{}`.
            if let Some(schema) = operation.pointer("/requestBody/content/application~1json/schema/$ref")
                && bodies_without_needs.contains(schema.as_str().unwrap_or_default())
            {
                operation["requestBody"]["required"] = false.into();
            }
            describe_caching(operation);
            describe_headers(operation);
            describe_problems(method, path, operation)?;
            describe_request_id(operation);
        }
    }
    // The macro cannot express it.
    schemas["AdjustStock"]["properties"]["delta"]["not"] = json!({"const": 0});
    for code in CODES {
        schemas.insert(schema_name(code), problem_schema(code));
    }
    schemas.insert("Shortage".to_owned(), shortage());
    schemas.insert("CurrentPrice".to_owned(), current_price());
    schemas.insert(
        "GatewayMessage".to_owned(),
        json!({
            "type": "object",
            "description": "API Gateway's own response, if the request did not reach Holdfast or Holdfast did not respond.",
            "properties": {"message": {"type": "string"}},
            "required": ["message"],
        }),
    );
    let tags: Vec<_> = TAGS.iter().map(|(name, meaning)| json!({"name": name, "description": meaning})).collect();
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Holdfast",
            "summary": "Holds stock for a short time while a customer pays, and never sells what is not there.",
            "description": format!("{INTRODUCTION}\n{}\n</details>\n", table_of_problems()),
            "version": env!("CARGO_PKG_VERSION"),
            "license": {"name": "MIT OR Apache-2.0", "identifier": "MIT OR Apache-2.0"},
        },
        "servers": [{"url": "/", "description": "The API that serves this description."}],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {
                "type": "http",
                "scheme": "bearer",
                "bearerFormat": "JWT",
                "description": "An access token of the API's OpenID Connect issuer. On the local stack: \
                                `cargo local token --sub NAME`.",
            }},
        },
    }))
}

/// Names a page of reservations `ReservationPage`, with a reference for its items. (The macro names a generic type
/// `Page_Reservation`, and inlines the item.)
fn name_pages(paths: &mut Map<String, Value>, schemas: &mut Map<String, Value>) {
    let items: Vec<String> = schemas.keys().filter_map(|name| name.strip_prefix("Page_")).map(str::to_owned).collect();
    for item in items {
        let (old, new) = (format!("Page_{item}"), format!("{item}Page"));
        if let Some(mut page) = schemas.remove(&old) {
            page["properties"]["items"]["items"] = reference(&item);
            schemas.insert(new.clone(), page);
        }
        for operation in paths.values_mut().flat_map(|operations| operations.as_object_mut().into_iter().flatten()) {
            for (_, answer) in operation.1["responses"].as_object_mut().into_iter().flatten() {
                if let Some(schema) = answer.pointer_mut("/content/application~1json/schema")
                    && *schema == reference(&old)
                {
                    *schema = reference(&new);
                }
            }
        }
    }
}

fn reference(schema: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{schema}")})
}

/// Adds `If-None-Match`, 304, and the headers of both responses to an operation that is marked as cacheable.
fn describe_caching(operation: &mut Value) {
    if operation.as_object_mut().and_then(|fields| fields.remove("x-cached")).is_none() {
        return;
    }
    let parameter = json!({
        "name": "If-None-Match", "in": "header", "required": false, "schema": {"type": ["string", "null"]},
        "description": "The `ETag` of a cached response.",
    });
    match &mut operation["parameters"] {
        Value::Array(parameters) => parameters.push(parameter),
        none => *none = json!([parameter]),
    }
    let text = json!({"type": "string"});
    let headers = json!({
        "ETag": header("Version of the response.", &text),
        "Cache-Control": header("How long the response may be cached.", &text),
    });
    operation["responses"]["200"]["headers"] = headers.clone();
    operation["responses"]["304"] = json!({"description": "Not modified.", "headers": headers});
}

/// Says which headers are always present, and what their values are.
fn describe_headers(operation: &mut Value) {
    let answers = operation["responses"].as_object_mut().into_iter().flatten();
    let headers = answers.filter_map(|(_, answer)| answer.get_mut("headers")?.as_object_mut());
    for (name, header) in headers.flatten() {
        header["required"] = (name != "Idempotent-Replayed").into();
        if name == "Idempotent-Replayed" {
            header["schema"]["enum"] = json!(["true"]);
        }
    }
}

/// Adds the problems of an operation to its responses.
fn describe_problems(method: &str, path: &str, operation: &mut Value) -> Result<()> {
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut take = |name: &str| operation.as_object_mut().and_then(|fields| fields.remove(name));
    let (own, is_static) = (take("x-problems"), take("x-static").is_some());
    named.extend(own.iter().flat_map(|own| own.as_array().into_iter().flatten()).filter_map(as_text));
    // The size of the body is checked before routing.
    named.insert("payload_too_large".to_owned());
    // Files in the binary cannot fail.
    if !is_static {
        named.extend(implied(method, path, operation).into_iter().map(str::to_owned));
    }

    let mut by_status: BTreeMap<String, Vec<&Code>> = BTreeMap::new();
    for name in &named {
        let code = codes::find(name).ok_or_else(|| Error::new(format!("{path} names an unknown problem: {name}")))?;
        by_status.entry(code.status.as_str().to_owned()).or_default().push(code);
    }
    for (status, codes) in by_status {
        let mut description = String::new();
        for Code { code, meaning, advice, .. } in &codes {
            // Writing to a text cannot fail.
            let _ = writeln!(description, "- `{code}`: {meaning} {advice}");
        }
        let one_of: Vec<Value> = codes.iter().map(|code| reference(&schema_name(code))).collect();
        let schema = match one_of.as_slice() {
            [one] => one.clone(),
            several => {
                let mapping = codes.iter().zip(several).map(|(code, one)| (code.code, one["$ref"].clone()));
                let mapping: BTreeMap<_, _> = mapping.collect();
                json!({"oneOf": several, "discriminator": {"propertyName": "code", "mapping": mapping}})
            }
        };
        let mut answer = json!({
            "description": description.trim_end(),
            "content": {"application/problem+json": {"schema": schema}},
        });
        let gateway = GATEWAY.contains(&status.as_str());
        if gateway {
            // Many generated clients read every response of a status by the schema of its first media type: this one.
            let either = [&[reference("GatewayMessage")], one_of.as_slice()].concat();
            answer["content"]["application/json"] = json!({"schema": {"oneOf": either}});
        }
        let text = json!({"type": "string"});
        if status == "401" {
            answer["headers"]["WWW-Authenticate"] =
                header("The kind of token that is required, and what is wrong with the one that was sent.", &text);
        }
        if status == "415" {
            answer["headers"]["Accept-Encoding"] = header("The accepted encoding: `identity`.", &text);
        }
        if codes.iter().any(|code| code.members.iter().any(|member| member.name == "retry_after_seconds")) {
            answer["headers"]["Retry-After"] =
                header("Seconds to wait before a retry.", &json!({"type": "integer", "minimum": 1}));
            // The gateway does not send it.
            answer["headers"]["Retry-After"]["required"] = (!gateway).into();
        }
        operation["responses"][status] = answer;
    }
    Ok(())
}

/// Adds `X-Request-Id` to every response. Those of API Gateway itself do not have it.
fn describe_request_id(operation: &mut Value) {
    for (status, answer) in operation["responses"].as_object_mut().into_iter().flatten() {
        let id = &mut answer["headers"]["X-Request-Id"];
        *id = header("The id of the request in the logs.", &json!({"type": "string"}));
        id["required"] = (!GATEWAY.contains(&status.as_str())).into();
    }
}

/// The problems that follow from what an operation takes.
fn implied(method: &str, path: &str, operation: &Value) -> Vec<&'static str> {
    let parameters = || operation["parameters"].as_array().into_iter().flatten();
    let takes = |what: &str, value: &str| parameters().any(|parameter| parameter[what] == value);
    let mut codes = Vec::new();
    if operation.get("requestBody").is_some() {
        codes.extend(["invalid_request", "unsupported_content_encoding"]);
    }
    // Public routes ignore unknown parameters.
    if takes("in", "query") || operation.get("security").is_some() {
        codes.push("invalid_request");
    }
    if takes("name", "Idempotency-Key") {
        codes.extend(["idempotency_key_missing", "idempotency_key_invalid"]);
    }
    if operation.get("security").is_some() {
        codes.push("unauthenticated");
    }
    // A route for admins, or one where only a service may name a customer.
    if operation.get("security").is_some() {
        codes.push("forbidden");
    }
    // Customers' requests that change something are rate limited.
    if operation.get("security").is_some() && method != "get" && !path.starts_with("/admin") {
        codes.push("rate_limited");
    }
    for parameter in parameters().filter(|parameter| parameter["in"] == "path") {
        // An id that is not UTF-8 is refused before the handler.
        codes.push("route_not_found");
        codes.push(match parameter["name"].as_str() {
            Some("product_id") => "product_not_found",
            Some("reservation_id" | "order_id") => "reservation_not_found",
            _ => "failed_confirmation_not_found",
        });
    }
    codes.extend(["internal_error", "unavailable"]);
    codes
}

fn header(description: &str, schema: &Value) -> Value {
    json!({"description": description, "schema": schema, "required": true})
}

/// `insufficient_stock`: `InsufficientStockProblem`.
fn schema_name(code: &Code) -> String {
    let words = code.code.split('_').map(|word| {
        let (first, rest) = word.split_at(1);
        first.to_uppercase() + rest
    });
    words.collect::<String>() + "Problem"
}

fn problem_schema(code: &Code) -> Value {
    let fixed = |value: Value| json!({"type": if value.is_u64() { "integer" } else { "string" }, "const": value});
    let mut properties = json!({
        "type": fixed(format!("urn:holdfast:problem:{}", code.code).into()),
        "title": {"type": "string", "description": "The code as text."},
        "status": fixed(code.status.as_u16().into()),
        "detail": {"type": "string", "description": "An explanation for people. The text may change."},
        "code": fixed(code.code.into()),
        "request_id": {"type": "string", "description": "The id of the request in the logs."},
    });
    let mut required = vec!["type", "title", "status", "detail", "code", "request_id"];
    for member in code.members {
        let kind = match member.value {
            MemberValue::ProductId => reference("ProductId"),
            MemberValue::Text => json!({"type": "string"}),
            MemberValue::Time => reference("Time"),
            MemberValue::TimeOrNull => json!({"oneOf": [{"type": "null"}, reference("Time")]}),
            MemberValue::Count => json!({"type": "integer", "format": "int64", "minimum": 0}),
            MemberValue::Flag => json!({"type": "boolean"}),
            MemberValue::Shortages => {
                json!({"type": "array", "minItems": 1, "items": reference("Shortage")})
            }
            MemberValue::Prices => json!({"type": "array", "minItems": 1, "items": reference("CurrentPrice")}),
            MemberValue::Reservation => reference("Reservation"),
        };
        properties[member.name] = kind;
        properties[member.name]["description"] = member.meaning.into();
        if !member.optional {
            required.push(member.name);
        }
    }
    let Code { meaning, advice, .. } = code;
    let examples: Vec<Value> = examples::bodies().into_iter().filter(|body| body["code"] == code.code).collect();
    json!({
        "type": "object", "description": format!("{meaning} {advice}"), "properties": properties, "required": required,
        "examples": examples,
    })
}

fn shortage() -> Value {
    json!({
        "type": "object",
        "description": "A line with too few available units.",
        "properties": {
            "product_id": reference("ProductId"),
            "requested": {"type": "integer", "format": "int64", "minimum": 1, "description": "Units requested."},
            "available": {
                "type": "integer", "format": "int64", "minimum": 0, "description": "Units available.",
            },
        },
        "required": ["product_id", "requested", "available"],
    })
}

fn current_price() -> Value {
    json!({
        "type": "object",
        "description": "A product with its price now.",
        "properties": {"product_id": reference("ProductId"), "unit_price_minor": reference("Price")},
        "required": ["product_id", "unit_price_minor"],
    })
}

/// The table of problems, as Markdown.
fn table_of_problems() -> String {
    let mut table = String::from("| status | code | meaning | what to do |\n|---|---|---|---|\n");
    for Code { code, status, meaning, advice, .. } in CODES {
        let status = status.as_u16();
        let _ = writeln!(table, "| {status} | `{code}` | {meaning} | {advice} |");
    }
    table
}

fn as_text(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn take_object(value: &mut Value) -> Map<String, Value> {
    match value.take() {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let fields: BTreeMap<String, Value> = map.into_iter().map(|(name, value)| (name, sorted(value))).collect();
            Value::Object(fields.into_iter().collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        other => other,
    }
}
