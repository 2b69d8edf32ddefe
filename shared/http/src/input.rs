//! What callers send: parsed, and within its limits, or a problem.

use axum::body::to_bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{StatusCode, Uri, request::Parts};
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

/// A JSON body, whatever its `Content-Type` says: the API speaks nothing else, so the header could only be wrong. An
/// empty one counts as `{}`: it is refused where a field is needed.
///
/// It says all that there is to say: such a request takes no query, see [`NoQuery`].
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        no_query(request.uri())?;
        let body = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| Problem::too_long())?;
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

/// The query string. On routes with a token `T` refuses what it does not know (`deny_unknown_fields`): a parameter that
/// was misspelled would otherwise do nothing, and nobody would notice. Public pages are linked from anywhere, and links
/// are given parameters by those who pass them on (`utm_source`): there `T` ignores them.
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

/// No query: for routes that take neither a query nor a body.
#[derive(Debug, Clone, Copy)]
pub struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        no_query(&parts.uri).map(|()| Self)
    }
}

fn no_query(uri: &Uri) -> Result<(), Problem> {
    let query = axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri);
    let query = query.map_err(|error| Problem::invalid_request(error.body_text()))?;
    match query.0.first() {
        Some((name, _)) => Err(Problem::invalid_request(format!("this request takes no query parameter: {name}"))),
        None => Ok(()),
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::try_from_uri(&parts.uri);
        query.map(|query| Self(query.0)).map_err(|error| Problem::invalid_request(error.body_text()))
    }
}

/// The `Idempotency-Key` header, of the draft draft-ietf-httpapi-idempotency-key-header: a structured field's string,
/// `"8e03978e"`. Most clients send it bare, and so may they: `"k"` and `k` are the same key.
///
/// A bare key has no comma. API Gateway hands two headers over as one with a comma between, and a request with two keys
/// has none that could be relied on.
#[derive(Debug, Clone)]
pub struct Key(pub IdempotencyKey);

impl Key {
    /// The key that a header's value carries.
    pub(crate) fn parse(value: &str) -> Option<IdempotencyKey> {
        let text = match value.strip_prefix('"') {
            Some(quoted) => unquoted(quoted)?,
            None if value.contains(',') => return None,
            None => value.to_owned(),
        };
        IdempotencyKey::try_from(text).ok()
    }
}

/// The text of a structured field's string (RFC 9651), whose opening quote is gone already. Its closing quote must be the
/// end: the header takes no parameters.
fn unquoted(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut signs = quoted.chars();
    loop {
        match signs.next()? {
            '"' => return signs.next().is_none().then_some(text),
            '\\' => text.push(signs.next().filter(|sign| matches!(sign, '"' | '\\'))?),
            sign => text.push(sign),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            return Err(Problem::new(
                StatusCode::BAD_REQUEST,
                "idempotency_key_missing",
                "this request needs an Idempotency-Key header",
            ));
        };
        let key = value.to_str().ok().filter(|_| values.next().is_none()).and_then(Self::parse);
        key.map(Self).ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "idempotency_key_invalid",
                "one Idempotency-Key of 1 to 255 printable ASCII characters with no blank at either end is needed; one with a \
                 comma must be quoted",
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
    T::try_from(text).map_err(|_| Problem::not_found(code))
}

/// For a field that may be absent (leave it), `null` (take it away) or given.
///
/// # Errors
/// Whatever the value's own type refuses.
pub fn some<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use serde_json::Value;

    #[tokio::test]
    async fn a_request_with_a_body_takes_no_query() {
        for (uri, fine) in [("/", true), ("/?", true), ("/?&", true), ("/?a", false), ("/?a=1", false), ("/?=", false)]
        {
            let request = || Request::builder().uri(uri).body(Body::from("{}")).unwrap();
            let body = Json::<Value>::from_request(request(), &()).await;
            let (mut parts, _) = request().into_parts();
            let none = NoQuery::from_request_parts(&mut parts, &()).await;
            for refused in [body.err(), none.err()] {
                assert_eq!(refused.map(|problem| problem.code), (!fine).then_some("invalid_request"), "{uri}");
            }
        }
    }

    async fn key(values: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::builder();
        for value in values {
            request = request.header("Idempotency-Key", *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        Key::from_request_parts(&mut parts, &()).await.map(|key| key.0.into()).map_err(|problem| problem.code)
    }

    #[tokio::test]
    async fn a_key_is_the_same_bare_and_as_the_drafts_quoted_string() {
        for (value, meant) in [
            ("8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            (r#""8e03978e-40d5-43dd-bc93-6894a57f9324""#, "8e03978e-40d5-43dd-bc93-6894a57f9324"),
            (r#""a,b""#, "a,b"),
            (r#""a\"b\\c""#, r#"a"b\c"#),
            (r#"a"b"#, r#"a"b"#),
            ("a b;c=1", "a b;c=1"),
        ] {
            assert_eq!(key(&[value]).await.as_deref(), Ok(meant), "{value}");
        }
        let longest = "k".repeat(255);
        assert_eq!(key(&[&format!("\"{longest}\"")]).await, Ok(longest));
    }

    #[tokio::test]
    async fn no_key_and_what_is_none_are_told_apart() {
        assert_eq!(key(&[]).await, Err("idempotency_key_missing"));
        let too_long = "k".repeat(256);
        for value in [
            "",
            r#""""#,
            r#"""#,
            r#""a"#,
            r#""a"b"#,
            r#""a";b=1"#,
            r#""a\n""#,
            r#""a\"#,
            "a,b",
            "a, b",
            "a\tb",
            " ",
            "a ",
            " a",
            r#"" a""#,
            r#""a ""#,
            &too_long,
        ] {
            assert_eq!(key(&[value]).await, Err("idempotency_key_invalid"), "{value:?}");
        }
        // Two headers: as they are, and as API Gateway joins them.
        for values in [&["a", "b"][..], &["a", "a"], &["a,b"], &["a,a"], &[r#""a","b""#]] {
            assert_eq!(key(values).await, Err("idempotency_key_invalid"), "{values:?}");
        }
    }
}
