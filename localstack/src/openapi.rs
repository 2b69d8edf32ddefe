//! The API's description (OpenAPI 3.1): put together from what each function says of itself, and kept in the file that
//! `catalog` serves. The functions never import one another, so somebody above them has to do it.
//!
//! An operation names only the problems that are its own (`x-problems`). Those that follow from what it takes - a
//! token, a body, an `Idempotency-Key`, an id in its path - are added here, each with the text of
//! [`holdfast_http::codes`].

use crate::error::{Context as _, Error, Result};
use crate::paths;
use holdfast_http::codes::{self, CODES, Code, MemberValue};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use utoipa::OpenApi as _;

/// What a reader must know before the first call.
const INTRODUCTION: &str = "\
**Tokens.** Where an operation has a padlock, send `Authorization: Bearer <token>`. A customer sees and changes their \
own reservations only: another's is 404. A shop's back end, with the role `service`, names the customer that it acts \
for as `customer_id`, and then meets what that customer would. What is under `/admin` needs the role `admin`.

**Sending again.** `POST` requests with an `Idempotency-Key` may be sent again after a lost answer, word for word and \
with the same key: the effect comes once. Confirming and cancelling may be repeated as they are.

**Bodies** are JSON in UTF-8, at most 65,536 bytes. Unknown fields are refused. Answers may get new fields. Money is in \
whole minor units (`currency_exponent` says how many decimals they are); a whole number is written without a fraction: \
`1`, not `1.0`. Times are RFC 3339; answers give them in UTC, always with three decimals.

**Query parameters** that an operation does not name are refused, but where no token is needed: there they are ignored.

**Guests.** Whoever buys without an account has no token. The shop's back end acts for them under a `customer_id` of its \
own making that begins with `guest:`. No token's `sub` may begin so, so a guest never is somebody who signed up.

**Lists** answer `items` and `next_cursor`. Give the cursor back, with the same other parameters, for the next page.

## Problems

Every refusal is `application/problem+json` (RFC 9457). Branch on `code`; `type` is `urn:holdfast:problem:<code>`. After \
a refusal nothing has changed, but that a payment was written down where a refund is owed. API Gateway answers \
some requests itself, with `{\"message\": ...}`: wrong tokens (401), its own throttle (429), a function that failed \
or never answered (500, 503).
";

const TAGS: [(&str, &str); 6] = [
    ("Products", "What there is, and how much of it. For anyone."),
    ("Reservations", "Hold, look, extend, cancel, confirm. For customers."),
    ("Orders", "Confirmed reservations. For customers."),
    ("Admin: products", "Products, their stock, and everybody's reservations. For administrators."),
    ("Admin: failed confirmations", "Payments that are no order. For administrators."),
    ("This description", "For anyone."),
];

/// Statuses that API Gateway answers by itself on a known route, in its own words: a token that it refuses, its throttle,
/// a function that failed, its time limit.
const GATEWAY: [&str; 4] = ["401", "429", "500", "503"];

/// The file that `catalog` serves.
pub fn path() -> PathBuf {
    paths::workspace().join("functions/catalog/openapi.json")
}

/// The file's text as it should be.
///
/// # Errors
/// See [`document`].
pub fn text() -> Result<String> {
    // Sorted, whatever map serde_json was built with: the same description is always the same file.
    let text = serde_json::to_string_pretty(&sorted(document()?));
    Ok(text.context(|| "cannot write the description".into())? + "\n")
}

/// The whole description.
///
/// # Errors
/// Two functions say different things of one schema or path, or an operation names a problem that there is not.
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
            describe_headers(operation);
            describe_problems(method, path, operation)?;
        }
    }
    // The macro has no word for it.
    schemas["AdjustStock"]["properties"]["delta"]["not"] = json!({"const": 0});
    for code in CODES {
        schemas.insert(schema_name(code), problem_schema(code));
    }
    schemas.insert("Shortage".to_owned(), shortage());
    schemas.insert(
        "GatewayMessage".to_owned(),
        json!({
            "type": "object",
            "description": "API Gateway's own answer, given before the request reached Holdfast or after it gave up.",
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
            "description": INTRODUCTION.to_owned() + "\n" + &table_of_problems(),
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

/// A page of reservations is a `ReservationPage`, whose items are what `Reservation` says. (The macro of a generic type
/// writes `Page_Reservation`, and the item out in full.)
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

/// Which headers come always, and what the values look like.
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

/// Puts the problems of an operation among its answers.
fn describe_problems(method: &str, path: &str, operation: &mut Value) -> Result<()> {
    let mut named: BTreeSet<String> = BTreeSet::new();
    let mut take = |name: &str| operation.as_object_mut().and_then(|fields| fields.remove(name));
    let (own, is_static) = (take("x-problems"), take("x-static").is_some());
    named.extend(own.iter().flat_map(|own| own.as_array().into_iter().flatten()).filter_map(as_text));
    // A body is measured before anybody looks at the path.
    named.insert("payload_too_large".to_owned());
    // What is part of the binary asks nobody, and cannot fail.
    if !is_static {
        named.extend(implied(method, path, operation).into_iter().map(str::to_owned));
    }

    let mut by_status: BTreeMap<String, Vec<&Code>> = BTreeMap::new();
    for name in &named {
        let code = codes::find(name).ok_or_else(|| Error::new(format!("{path} names no problem: {name}")))?;
        by_status.entry(code.status.to_string()).or_default().push(code);
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
            // Many generated clients read every answer of a status by the schema of its first media type: this one.
            let either = [&[reference("GatewayMessage")], one_of.as_slice()].concat();
            answer["content"]["application/json"] = json!({"schema": {"oneOf": either}});
        }
        if status == "401" {
            answer["headers"]["WWW-Authenticate"] =
                header("What kind of token is asked for.", &json!({"type": "string"}));
        }
        if codes.iter().any(|code| code.members.iter().any(|member| member.name == "retry_after_seconds")) {
            answer["headers"]["Retry-After"] =
                header("After how many seconds to try again.", &json!({"type": "integer", "minimum": 1}));
            // The gateway knows no better time.
            answer["headers"]["Retry-After"]["required"] = (!gateway).into();
        }
        operation["responses"][status] = answer;
    }
    Ok(())
}

/// The problems that follow from what an operation takes.
fn implied(method: &str, path: &str, operation: &Value) -> Vec<&'static str> {
    let parameters = || operation["parameters"].as_array().into_iter().flatten();
    let takes = |what: &str, value: &str| parameters().any(|parameter| parameter[what] == value);
    let mut codes = Vec::new();
    if operation.get("requestBody").is_some() {
        codes.push("invalid_request");
    }
    // What is public ignores parameters that it does not know.
    if takes("in", "query") || operation.get("security").is_some() {
        codes.push("invalid_request");
    }
    if takes("name", "Idempotency-Key") {
        codes.extend(["idempotency_key_missing", "idempotency_key_invalid"]);
    }
    if operation.get("security").is_some() {
        codes.push("unauthenticated");
    }
    // An admin's route, or one that lets a service name a customer.
    if operation.get("security").is_some() {
        codes.push("forbidden");
    }
    // What changes something is counted, where it is a customer's.
    if operation.get("security").is_some() && method != "get" && !path.starts_with("/admin") {
        codes.push("rate_limited");
    }
    for parameter in parameters().filter(|parameter| parameter["in"] == "path") {
        // An id that is not UTF-8 is refused before anybody asks what it stands for.
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
        "title": {"type": "string", "description": "The code in words."},
        "status": fixed(code.status.into()),
        "detail": {"type": "string", "description": "What happened, for a person. Its words may change."},
        "code": fixed(code.code.into()),
        "request_id": {"type": "string", "description": "Names the request in the logs."},
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
        };
        properties[member.name] = kind;
        properties[member.name]["description"] = member.meaning.into();
        if !member.optional {
            required.push(member.name);
        }
    }
    let Code { meaning, advice, .. } = code;
    json!({
        "type": "object", "description": format!("{meaning} {advice}"), "properties": properties, "required": required,
    })
}

fn shortage() -> Value {
    json!({
        "type": "object",
        "description": "A line that cannot be served.",
        "properties": {
            "product_id": reference("ProductId"),
            "requested": {"type": "integer", "format": "int64", "minimum": 1, "description": "Units asked for."},
            "available": {
                "type": "integer", "format": "int64", "minimum": 0, "description": "Units free when last counted.",
            },
        },
        "required": ["product_id", "requested", "available"],
    })
}

/// All problems, for people.
fn table_of_problems() -> String {
    let mut table = String::from("| status | code | what it means | what to do |\n|---|---|---|---|\n");
    for Code { code, status, meaning, advice, .. } in CODES {
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
