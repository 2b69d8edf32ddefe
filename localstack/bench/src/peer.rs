//! Another reservation service under the same load, for a comparison within one run.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::{HeaderName, HeaderValue, Method, header};
use hyper::body::Bytes;
use tokio::process::Command;

use crate::Result;
use crate::load::{Call, Connections, Measured, Pace, Script, numbers};

/// The other service, as the command line describes it.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) name: String,
    pub(crate) url: String,
    request: Arc<Template>,
    reset: Option<String>,
    /// The processes whose processor time counts as the server's.
    pub(crate) processes: Vec<u32>,
    /// Requests so far: no two runs have a number in common.
    sent: AtomicUsize,
}

/// A request with placeholders: `{n}` is its number, `{customer}` its customer.
#[derive(Debug, Clone)]
struct Template {
    path: String,
    headers: Vec<(String, String)>,
    body: String,
    /// The first number of the run.
    first: usize,
}

impl Peer {
    /// The service NAME=URL, asked by POST to `path` with these headers, each K=V or `K: V`, and this body.
    ///
    /// # Errors
    /// An argument is not of its form.
    pub(crate) fn new(
        named: &str,
        path: &str,
        headers: &[String],
        body: &str,
        reset: Option<String>,
        processes: Vec<u32>,
    ) -> Result<Self> {
        let (name, url) = named.split_once('=').ok_or("--against: write NAME=URL")?;
        let header = |text: &String| {
            let parts = text.split_once(['=', ':']).ok_or("--header: write K=V")?;
            Ok((parts.0.trim().to_owned(), parts.1.trim().to_owned()))
        };
        let headers = headers.iter().map(header).collect::<Result<_>>()?;
        let request = Arc::new(Template { path: path.to_owned(), headers, body: body.to_owned(), first: 0 });
        let (name, url) = (name.to_owned(), url.trim_end_matches('/').to_owned());
        Ok(Self { name, url, request, reset, processes, sent: AtomicUsize::new(1) })
    }

    /// Gives it `units` of stock, by its command: `{units}` in it is their number. What it prints is not shown.
    ///
    /// # Errors
    /// The command fails.
    pub(crate) async fn reset(&self, units: u64) -> Result<()> {
        let Some(command) = &self.reset else { return Ok(()) };
        let command = command.replace("{units}", &units.to_string());
        let status = Command::new("sh").arg("-c").arg(&command).stdout(Stdio::null()).status().await?;
        if status.success() { Ok(()) } else { Err(format!("--reset failed ({status}): {command}").into()) }
    }

    /// Sends `requests`, of which some repeat earlier ones.
    ///
    /// # Errors
    /// The template makes no request.
    pub(crate) async fn load(
        &self,
        connections: &mut Connections,
        requests: usize,
        replays_percent: u8,
        pace: Pace,
    ) -> Result<Measured> {
        let first = self.sent.fetch_add(requests, Ordering::Relaxed);
        let script = Arc::new(Template { first, ..(*self.request).clone() });
        connections.run(script, numbers(requests, replays_percent), pace).await
    }
}

impl Template {
    fn fill(&self, text: &str, number: usize) -> String {
        let number = (self.first + number).to_string();
        text.replace("{customer}", &format!("customer-{number}")).replace("{n}", &number)
    }
}

impl Script for Template {
    fn call(&self, number: usize, step: usize) -> Result<Option<Call>> {
        if step > 0 {
            return Ok(None);
        }
        let mut headers = vec![(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))];
        for (name, value) in &self.headers {
            headers.push((HeaderName::try_from(name.as_str())?, HeaderValue::try_from(self.fill(value, number))?));
        }
        let (path, body) = (self.fill(&self.path, number), Bytes::from(self.fill(&self.body, number)));
        Ok(Some(Call { method: Method::POST, path, headers, body }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        let body = r#"{"order": {n}, "who": "{customer}", "items": [{"id": "a", "count": {}}]}"#;
        let headers = ["Idempotency-Key=key-{n}=x".to_owned(), "X-Who: {customer}".to_owned()];
        Peer::new("other=http://127.0.0.1:1/", "/orders/{n}", &headers, body, None, Vec::new()).unwrap()
    }

    #[test]
    fn placeholders_are_filled_everywhere_and_other_braces_stay() {
        let script = Template { first: 100, ..(*peer().request).clone() };
        let call = script.call(7, 0).unwrap().unwrap();
        assert_eq!(call.path, "/orders/107");
        assert_eq!(call.body, r#"{"order": 107, "who": "customer-107", "items": [{"id": "a", "count": {}}]}"#);
        let values: Vec<_> = call.headers.iter().skip(1).map(|(name, value)| (name.as_str(), value)).collect();
        assert_eq!(
            values,
            [
                ("idempotency-key", &HeaderValue::from_static("key-107=x")),
                ("x-who", &HeaderValue::from_static("customer-107"))
            ]
        );
        assert!(script.call(7, 1).unwrap().is_none());
    }

    #[test]
    fn a_service_has_a_name_and_a_url() {
        assert_eq!((peer().name.as_str(), peer().url.as_str()), ("other", "http://127.0.0.1:1"));
        assert!(Peer::new("http://127.0.0.1:1", "/", &[], "", None, Vec::new()).is_err());
        assert!(Peer::new("a=http://b:1", "/", &["x".to_owned()], "", None, Vec::new()).is_err());
    }

    #[tokio::test]
    async fn a_reset_that_fails_is_an_error() {
        let reset = |command: &str| Peer { reset: Some(command.to_owned()), ..peer() };
        assert!(reset("[ {units} = 100 ]").reset(100).await.is_ok());
        assert!(reset("[ {units} = 100 ]").reset(99).await.is_err());
        assert!(peer().reset(1).await.is_ok());
    }
}
