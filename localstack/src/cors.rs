//! CORS. API Gateway answers preflights and adds the headers; the local gateway does the same, by the template's
//! `CorsConfiguration`.

use crate::error::{Context as _, Error, Result};
use crate::template::{Scope, Template};
use axum::http::{HeaderName, HeaderValue, Method};
use serde_json::Value;
use std::str::FromStr;
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// The layer for the gateway; `None` if the template allows no origin.
///
/// # Errors
/// The template says what the local stack does not understand.
pub fn layer(template: &Template, scope: &Scope) -> Result<Option<CorsLayer>> {
    for api in template.resources(scope, "AWS::Serverless::HttpApi")? {
        let cors = template.resolve(scope, &api.properties["CorsConfiguration"])?;
        let origins: Vec<HeaderValue> = list(&cors["AllowOrigins"])?;
        if origins.is_empty() {
            continue;
        }
        let everybody = origins.iter().any(|origin| origin == "*");
        let layer = CorsLayer::new()
            .allow_origin(if everybody { AllowOrigin::any() } else { AllowOrigin::list(origins) })
            .allow_methods(list::<Method>(&cors["AllowMethods"])?)
            .allow_headers(list::<HeaderName>(&cors["AllowHeaders"])?)
            .expose_headers(list::<HeaderName>(&cors["ExposeHeaders"])?)
            .max_age(Duration::from_secs(cors["MaxAge"].as_u64().unwrap_or_default()));
        return Ok(Some(layer));
    }
    Ok(None)
}

fn list<T: FromStr>(value: &Value) -> Result<Vec<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let entries = value.as_array().into_iter().flatten().filter(|entry| *entry != "");
    let parse = |entry: &Value| {
        let text = entry.as_str().ok_or_else(|| Error::new(format!("the CORS entry {entry} is no text")))?;
        text.parse().context(|| format!("the CORS entry {text}"))
    };
    entries.map(parse).collect()
}
