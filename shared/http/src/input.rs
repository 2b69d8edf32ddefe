//! What callers send: parsed, and within its limits, or a problem.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{StatusCode, request::Parts};
use holdfast_domain::{IdempotencyKey, Invalid};
use holdfast_store::Cursor;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use crate::{Problem, schema};

/// The longest body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// A JSON body. An empty one counts as `{}`: it is refused where a field is needed.
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let body = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "payload_too_large", "the body must not exceed 65536 bytes")
        })?;
        let text: &[u8] = if body.is_empty() { b"{}" } else { &body };
        // The error's text names the caller's own fields and positions, nothing of ours.
        let object = serde_json::from_slice(text).map_err(|error| Problem::invalid_request(error.to_string()))?;
        let Object(value) = object;
        Ok(Self(value))
    }
}

/// A struct that must be written as a JSON object. Serde's structs read an array of their fields too, in the order in
/// which they are declared: an order that is no part of the contract.
#[derive(Debug, Clone, Copy)]
pub struct Object<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        T::deserialize(MapOnly(deserializer)).map(Self)
    }
}

struct MapOnly<D>(D);

impl<'de, D: Deserializer<'de>> Deserializer<'de> for MapOnly<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.0.deserialize_map(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// The query string.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(|error| Problem::invalid_request(error.body_text()))
    }
}

/// The `Idempotency-Key` header.
#[derive(Debug, Clone)]
pub struct Key(pub IdempotencyKey);

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let Some(value) = parts.headers.get("idempotency-key") else {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "idempotency_key_missing",
                "this request needs an Idempotency-Key header",
            ));
        };
        let key = value.to_str().ok().and_then(|text| IdempotencyKey::try_from(text).ok());
        key.map(Self).ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "idempotency_key_invalid",
                "Idempotency-Key must have 1 to 255 printable ASCII characters",
            )
        })
    }
}

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let meaning = "The caller's own name for this attempt. The same request with the same key has its effect once, \
                       however often it is sent; another request needs another key.";
        let key = ParameterBuilder::new().name("Idempotency-Key").parameter_in(ParameterIn::Header);
        let key = key.required(Required::True).description(Some(meaning));
        vec![key.schema(Some(Ref::from_schema_name("IdempotencyKey"))).build()]
    }
}

/// `limit` and `cursor`, as every list takes them.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// The most items of the page. 50 unless given.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

impl ListQuery {
    /// Made of its parts, where a list takes more than these.
    pub fn new(limit: Option<u32>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// How many items a page has: 1 to 100, 50 unless given.
    pub fn limit(&self) -> Result<u32, Problem> {
        match self.limit.unwrap_or(50) {
            limit @ 1..=100 => Ok(limit),
            _ => Err(Invalid::new("limit", "must be a whole number from 1 to 100").into()),
        }
    }

    /// Where the page starts.
    pub fn cursor(&self) -> Result<Option<Cursor>, Problem> {
        Ok(self.cursor.as_deref().map(Cursor::decode).transpose()?)
    }
}

/// An id in a path. One that could never have been given is one that is not there.
pub fn path_id<T: TryFrom<String>>(text: String, code: &'static str) -> Result<T, Problem> {
    T::try_from(text).map_err(|_| Problem::new(StatusCode::NOT_FOUND, code, "there is nothing of that id"))
}

/// For a field that may be absent (leave it), `null` (take it away) or given.
///
/// # Errors
/// Whatever the value's own type refuses.
pub fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}
