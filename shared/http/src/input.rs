//! Extractors that parse and check a request's input, or refuse it with a problem.

use axum::body::{Bytes, to_bytes};
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::{Uri, header, request::Parts};
use holdfast_domain::{IdempotencyKey, Invalid};
use holdfast_store::Cursor;
use serde::de::{DeserializeOwned, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Ref, Required};

use crate::codes::Code;
use crate::misfit::{parse_body, parse_query};
use crate::{Problem, schema};

/// The longest body.
pub const MAX_BODY_BYTES: usize = 64 * 1024;

/// A JSON body. `Content-Type` is ignored, since the API accepts nothing else. An empty body counts as `{}`.
///
/// A request with a body takes no query parameters, see [`NoQuery`].
#[derive(Debug, Clone, Copy)]
pub struct Json<T>(pub T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        parse_body(&read_body(request).await?).map(Self)
    }
}

/// A JSON body, and the same as it was sent, for the log of what admins do: a field that is new is in the log, too.
#[derive(Debug, Clone)]
pub struct Recorded<T> {
    /// The body.
    pub body: T,
    /// Every field that was sent.
    pub detail: Value,
}

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Recorded<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let bytes = read_body(request).await?;
        Ok(Self { body: parse_body(&bytes)?, detail: parse_body(&bytes)? })
    }
}

/// The body of a request that takes no query. An empty one is `{}`.
async fn read_body(request: Request) -> Result<Bytes, Problem> {
    no_query(request.uri())?;
    // No client has to compress 64 KB; and what is decompressed may have any size.
    let encoding = request.headers().get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Problem::content_encoding());
    }
    let body = to_bytes(request.into_body(), MAX_BODY_BYTES).await.map_err(|_| Problem::too_large())?;
    Ok(if body.is_empty() { Bytes::from_static(b"{}") } else { body })
}

/// A struct that must be a JSON object. Serde also reads a struct from an array of its fields in the order of their
/// declaration, which is not part of the contract.
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

/// Query parameters. On routes with a token, `T` denies unknown fields, so that a misspelled parameter is noticed. On
/// public routes `T` ignores them, because others add parameters to links (`utm_source`).
#[derive(Debug, Clone, Copy)]
pub struct Query<T>(pub T);

/// No query parameters: for routes that take neither a query nor a body.
#[derive(Debug, Clone, Copy)]
pub struct NoQuery;

impl<S: Sync> FromRequestParts<S> for NoQuery {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        no_query(&parts.uri).map(|()| Self)
    }
}

fn no_query(uri: &Uri) -> Result<(), Problem> {
    let query: Vec<(String, String)> = parse_query(uri.query().unwrap_or_default())?;
    match query.first() {
        Some((name, _)) => Err(Problem::invalid(name, "is not a parameter of this request; it takes none")),
        None => Ok(()),
    }
}

impl<S: Sync, T: DeserializeOwned> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parse_query(parts.uri.query().unwrap_or_default()).map(Self)
    }
}

/// The `Idempotency-Key` header of draft-ietf-httpapi-idempotency-key-header: a structured field string, `"8e03978e"`.
/// Most clients send it unquoted, which is accepted: `"k"` and `k` are the same key.
///
/// An unquoted key must not contain a comma: API Gateway joins two headers with one, and a request with two keys is
/// refused.
#[derive(Debug, Clone)]
pub struct Key(pub IdempotencyKey);

impl Key {
    /// Parses the header's value.
    pub(crate) fn parse(value: &str) -> Option<IdempotencyKey> {
        let text = match value.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None if value.contains(',') => return None,
            None => value.to_owned(),
        };
        IdempotencyKey::try_from(text).ok()
    }
}

/// Parses the rest of a structured field string (RFC 9651) after its opening quote. Nothing may follow the closing quote:
/// the header takes no parameters.
fn unquote(quoted: &str) -> Option<String> {
    let mut text = String::with_capacity(quoted.len());
    let mut chars = quoted.chars();
    loop {
        match chars.next()? {
            '"' => return chars.next().is_none().then_some(text),
            '\\' => text.push(chars.next().filter(|c| matches!(c, '"' | '\\'))?),
            c => text.push(c),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Key {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let mut values = parts.headers.get_all("idempotency-key").iter();
        let Some(value) = values.next() else {
            return Err(Problem::key_missing());
        };
        let key = value.to_str().ok().filter(|_| values.next().is_none()).and_then(Self::parse);
        key.map(Self).ok_or_else(Problem::key_invalid)
    }
}

impl IntoParams for Key {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let meaning = "A key for this request, chosen by the caller. The same request with the same key has its effect \
                       once, however often it is sent; a different request needs a new key.";
        let key = ParameterBuilder::new().name("Idempotency-Key").parameter_in(ParameterIn::Header);
        let key = key.required(Required::True).description(Some(meaning));
        vec![key.schema(Some(Ref::from_schema_name("IdempotencyKey"))).example(Some("basket-1".into())).build()]
    }
}

/// `limit` and `cursor`, as every list takes them.
#[derive(Debug, Clone, Default, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Maximum number of items on the page. Default: 50.
    #[param(minimum = 1, maximum = 100)]
    limit: Option<u32>,
    #[param(value_type = Option<schema::Cursor>)]
    cursor: Option<String>,
}

impl ListQuery {
    /// For a list that takes more parameters than these.
    pub fn new(limit: Option<u32>, cursor: Option<String>) -> Self {
        Self { limit, cursor }
    }

    /// The maximum number of items on the page: 1 to 100, 50 by default.
    ///
    /// # Errors
    /// The limit is out of range.
    pub fn limit(&self) -> Result<u32, Problem> {
        match self.limit.unwrap_or(50) {
            limit @ 1..=100 => Ok(limit),
            _ => Err(Invalid::new("limit", "must be a whole number from 1 to 100").into()),
        }
    }

    /// Where the page starts.
    ///
    /// # Errors
    /// The cursor was not issued by this API.
    pub fn cursor(&self) -> Result<Option<Cursor>, Problem> {
        Ok(self.cursor.as_deref().map(Cursor::decode).transpose()?)
    }
}

/// An id in a path.
///
/// # Errors
/// The problem `not_found`, as if nothing had this id: no id that is not valid was ever issued.
pub fn path_id<T: TryFrom<String>>(text: String, not_found: &'static Code) -> Result<T, Problem> {
    T::try_from(text).map_err(|_| Problem::not_found(not_found))
}

/// Deserializes a field that may be absent (`None`), null (`Some(None)`) or a value.
///
/// # Errors
/// Those of the value's type.
pub fn nullable<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;

    #[tokio::test]
    async fn a_request_with_a_body_takes_no_query() {
        for (uri, fine) in [("/", true), ("/?", true), ("/?&", true), ("/?a", false), ("/?a=1", false), ("/?=", false)]
        {
            let request = || Request::builder().uri(uri).body(Body::from("{}")).unwrap();
            let body = Json::<Value>::from_request(request(), &()).await;
            let (mut parts, _) = request().into_parts();
            let none = NoQuery::from_request_parts(&mut parts, &()).await;
            for refused in [body.err(), none.err()] {
                assert_eq!(refused.map(|problem| problem.code.code), (!fine).then_some("invalid_request"), "{uri}");
            }
        }
    }

    async fn key(values: &[&str]) -> Result<String, &'static str> {
        let mut request = Request::builder();
        for value in values {
            request = request.header("Idempotency-Key", *value);
        }
        let (mut parts, ()) = request.body(()).unwrap().into_parts();
        Key::from_request_parts(&mut parts, &()).await.map(|key| key.0.into()).map_err(|problem| problem.code.code)
    }

    #[tokio::test]
    async fn a_quoted_key_equals_the_unquoted_one() {
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
    async fn a_missing_key_and_an_invalid_one_have_different_codes() {
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
        // Two headers: separate, and as API Gateway joins them.
        for values in [&["a", "b"][..], &["a", "a"], &["a,b"], &["a,a"], &[r#""a","b""#]] {
            assert_eq!(key(values).await, Err("idempotency_key_invalid"), "{values:?}");
        }
    }
}
