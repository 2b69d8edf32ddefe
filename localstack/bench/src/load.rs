//! The load: keep-alive connections, each with one request at a time, and what was measured with them.
//!
//! Closed loop: a connection sends its next request when it has the answer. Open loop: requests are due at a constant rate,
//! whatever the answers; a request that finds no free connection waits, and its latency counts from when it was due, so that a
//! server that stalls is not asked less for it ("coordinated omission").

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, Method, Request, StatusCode, Uri, header};
use hdrhistogram::Histogram;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::Result;

/// After this time there is no answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The timer's resolution. A request of the open loop is sent up to this much early rather than late, and counts from then.
const TICK: Duration = Duration::from_millis(1);
/// The requests of a warm-up, for each connection.
pub(crate) const WARM_UP: usize = 5;
/// What is counted for a request without an answer.
pub(crate) const NO_ANSWER: &str = "no answer";

/// When requests are sent.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Pace {
    /// Requests a second, whatever the answers; `None`: each when a connection is free.
    pub(crate) rate: Option<f64>,
    /// After this time no more are sent.
    pub(crate) limit: Option<Duration>,
}

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path and query.
    pub(crate) path: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) body: Bytes,
}

/// What is asked of a server.
pub(crate) trait Script: Send + Sync {
    /// The request of this number, at this step: a number's steps follow one another, until one is not successful or there
    /// is none. Equal numbers give equal requests.
    ///
    /// # Errors
    /// Something in it is not allowed in HTTP.
    fn call(&self, number: usize, step: usize) -> Result<Option<Call>>;
}

/// An answer, as far as anybody reads it.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    replayed: bool,
    pub(crate) body: Bytes,
}

impl Reply {
    /// The status, and what Holdfast says in addition.
    fn name(&self) -> String {
        let status = self.status.as_u16();
        if self.replayed {
            return format!("{status} replayed");
        }
        let problem = || serde_json::from_slice::<serde_json::Value>(&self.body).ok();
        let code = if self.status.is_success() { None } else { problem() };
        match code.as_ref().and_then(|problem| problem["code"].as_str()) {
            Some(code) => format!("{status} {code}"),
            None => status.to_string(),
        }
    }
}

/// What was measured. Latencies are in microseconds.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    pub(crate) latencies: Histogram<u64>,
    /// The latencies of requests that were sent, or due, within the first second.
    pub(crate) first_second: Histogram<u64>,
    /// The number of each answer, by status and code.
    pub(crate) answers: BTreeMap<String, u64>,
    /// The numbers whose first request was successful.
    pub(crate) accepted: BTreeSet<usize>,
    /// From the first request to the last answer.
    pub(crate) elapsed: Duration,
}

impl Measured {
    pub(crate) fn new() -> Result<Self> {
        // Microseconds up to a minute, with three digits.
        let histogram = Histogram::new_with_bounds(1, 60_000_000, 3)?;
        Ok(Self {
            first_second: histogram.clone(),
            latencies: histogram,
            answers: BTreeMap::new(),
            accepted: BTreeSet::new(),
            elapsed: Duration::ZERO,
        })
    }

    /// The number of requests.
    pub(crate) fn requests(&self) -> u64 {
        self.answers.values().sum()
    }

    fn record(&mut self, latency: Duration, first_second: bool, answer: String) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latencies.saturating_record(micros);
        if first_second {
            self.first_second.saturating_record(micros);
        }
        *self.answers.entry(answer).or_default() += 1;
    }

    /// Adds what another connection, or another run, has measured.
    pub(crate) fn merge(&mut self, other: &Self) -> Result<()> {
        self.latencies.add(&other.latencies)?;
        self.first_second.add(&other.first_second)?;
        for (answer, count) in &other.answers {
            *self.answers.entry(answer.clone()).or_default() += count;
        }
        self.accepted.extend(&other.accepted);
        self.elapsed = self.elapsed.max(other.elapsed);
        Ok(())
    }
}

/// A keep-alive connection, opened again after a failure.
pub(crate) struct Connection {
    authority: String,
    open: Option<Open>,
}

struct Open {
    sender: SendRequest<Full<Bytes>>,
    /// Moves the bytes, as long as this is not dropped.
    _driver: JoinSet<()>,
}

impl Connection {
    /// Opens a connection to a URL such as `http://127.0.0.1:3000`.
    ///
    /// # Errors
    /// It is no such URL, or nobody listens there.
    pub(crate) async fn to(url: &str) -> Result<Self> {
        let uri: Uri = url.parse()?;
        let plain = uri.scheme_str() == Some("http");
        let authority = uri.authority().filter(|authority| plain && authority.port().is_some());
        let authority = authority.ok_or_else(|| format!("{url}: write it as http://127.0.0.1:3000"))?.to_string();
        let open = Open::to(&authority).await.map_err(|error| format!("{url}: {error}"))?;
        Ok(Self { authority, open: Some(open) })
    }

    /// Sends a request and waits for the whole answer; `None` without one. The next request gets a new connection then.
    pub(crate) async fn send(&mut self, call: Call) -> Result<Option<Reply>> {
        let mut request = Request::builder().method(call.method).uri(call.path).body(Full::new(call.body))?;
        request.headers_mut().insert(header::HOST, self.authority.parse()?);
        request.headers_mut().extend(call.headers);
        match timeout(TIMEOUT, self.exchange(request)).await {
            Ok(Ok(reply)) => Ok(Some(reply)),
            Ok(Err(_)) | Err(_) => {
                self.open = None;
                Ok(None)
            }
        }
    }

    async fn exchange(&mut self, request: Request<Full<Bytes>>) -> Result<Reply> {
        // The server may have closed it meanwhile.
        let mut open = match self.open.take().filter(|open| !open.sender.is_closed()) {
            Some(open) => open,
            None => Open::to(&self.authority).await?,
        };
        open.sender.ready().await?;
        let (head, body) = open.sender.send_request(request).await?.into_parts();
        let body = body.collect().await?.to_bytes();
        self.open = Some(open);
        Ok(Reply { status: head.status, replayed: head.headers.contains_key("idempotent-replayed"), body })
    }
}

impl Open {
    async fn to(authority: &str) -> Result<Self> {
        let stream = TcpStream::connect(authority).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await?;
        let mut driver = JoinSet::new();
        // How it ends, the request says.
        driver.spawn(async { _ = connection.await });
        Ok(Self { sender, _driver: driver })
    }
}

/// Open connections to one server.
pub(crate) struct Connections(Vec<Connection>);

impl Connections {
    /// Opens this many.
    ///
    /// # Errors
    /// See [`Connection::to`].
    pub(crate) async fn open(url: &str, count: usize) -> Result<Self> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Connection::to(url).await?);
        }
        Ok(Self(connections))
    }

    /// Sends a few requests over each connection.
    ///
    /// # Errors
    /// As [`Connections::run`].
    pub(crate) async fn warm_up(&mut self, script: Arc<dyn Script>) -> Result<()> {
        let count = self.0.len() * WARM_UP;
        self.run(script, numbers(count, 0), Pace::default()).await.map(drop)
    }

    /// Sends the requests of these numbers, in this order, over all connections: at this rate a second, or each when a
    /// connection is free.
    ///
    /// # Errors
    /// The script makes no request that can be sent.
    pub(crate) async fn run(&mut self, script: Arc<dyn Script>, numbers: Arc<[usize]>, pace: Pace) -> Result<Measured> {
        let next = Arc::new(AtomicUsize::new(0));
        let began = Instant::now();
        let mut workers = JoinSet::new();
        for connection in self.0.drain(..) {
            let turn = Turn { script: script.clone(), numbers: numbers.clone(), next: next.clone(), pace, began };
            workers.spawn(turn.take(connection));
        }
        let mut all = Measured::new()?;
        while let Some(worker) = workers.join_next().await {
            let (connection, measured) = worker??;
            all.merge(&measured)?;
            self.0.push(connection);
        }
        Ok(all)
    }
}

/// One connection's part of a run.
struct Turn {
    script: Arc<dyn Script>,
    numbers: Arc<[usize]>,
    /// The place of the next request, of all connections.
    next: Arc<AtomicUsize>,
    pace: Pace,
    began: Instant,
}

impl Turn {
    async fn take(self, mut connection: Connection) -> Result<(Connection, Measured)> {
        let mut measured = Measured::new()?;
        loop {
            let place = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&number) = self.numbers.get(place) else { break };
            let mut since = self.due(place).await;
            if self.pace.limit.is_some_and(|limit| self.began.elapsed() > limit) {
                break;
            }
            for step in 0.. {
                let Some(call) = self.script.call(number, step)? else { break };
                let reply = connection.send(call).await?;
                let answer = reply.as_ref().map_or_else(|| NO_ANSWER.to_owned(), Reply::name);
                let first_second = since.duration_since(self.began) < Duration::from_secs(1);
                measured.record(since.elapsed(), first_second, answer);
                if !reply.is_some_and(|reply| reply.status.is_success()) {
                    break;
                }
                if step == 0 {
                    measured.accepted.insert(number);
                }
                since = Instant::now();
            }
            measured.elapsed = self.began.elapsed();
        }
        Ok((connection, measured))
    }

    /// Waits until the request at this place is due; from when its latency counts.
    async fn due(&self, place: usize) -> Instant {
        let Some(rate) = self.pace.rate else { return Instant::now() };
        #[expect(clippy::cast_precision_loss, reason = "there are not that many requests")]
        let due = self.began + Duration::from_secs_f64(place as f64 / rate);
        sleep_until(due - TICK).await;
        due.min(Instant::now())
    }
}

/// Which request each one is: its own, or for this percentage an earlier one again, with the same key and body. The earlier
/// one may still be running, as when somebody presses a button twice.
pub(crate) fn numbers(requests: usize, replays_percent: u8) -> Arc<[usize]> {
    // The same ones in each run.
    let mut random = fastrand::Rng::with_seed(1);
    let mut numbers = Vec::with_capacity(requests);
    for number in 0..requests {
        let again = number > 0 && random.u8(0..100) < replays_percent;
        numbers.push(if again { numbers[random.usize(0..number)] } else { number });
    }
    numbers.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::post;

    #[test]
    fn percentiles_of_merged_parts_are_those_of_the_whole() {
        let (mut whole, mut parts) = (Measured::new().unwrap(), Measured::new().unwrap());
        for part in 0..4_u64 {
            let mut one = Measured::new().unwrap();
            // Each has latencies of its own, so that a mean of percentiles would be another number.
            for n in 0..250_u64 {
                let latency = Duration::from_micros(1 + part * 10_000 + n);
                for measured in [&mut one, &mut whole] {
                    measured.record(latency, part == 0, "201".to_owned());
                }
            }
            one.accepted = [1, usize::try_from(part).unwrap()].into();
            parts.merge(&one).unwrap();
        }
        for quantile in [0.0, 0.5, 0.99, 0.999, 1.0] {
            assert_eq!(parts.latencies.value_at_quantile(quantile), whole.latencies.value_at_quantile(quantile));
        }
        assert_eq!(parts.latencies.value_at_quantile(0.5) / 100, 102);
        assert_eq!((parts.latencies.len(), parts.first_second.len(), parts.requests()), (1_000, 250, 1_000));
        assert_eq!(parts.accepted, [0, 1, 2, 3].into());
    }

    #[test]
    fn replays_repeat_earlier_numbers_and_only_these() {
        assert_eq!(*numbers(4, 0), [0, 1, 2, 3]);
        let some = numbers(10_000, 10);
        let again = some.iter().enumerate().filter(|(place, number)| place != *number);
        assert!((900..1_100).contains(&again.clone().count()));
        assert!(again.clone().all(|(place, &number)| number < place && some[number] == number));
    }

    /// Two steps of each number; the first one of 3 is refused.
    struct Two;

    impl Script for Two {
        fn call(&self, number: usize, step: usize) -> Result<Option<Call>> {
            let headers = vec![(HeaderName::from_static("number"), number.into())];
            let path = if step == 0 && number == 3 { "/refused" } else { "/accepted" };
            let call = Call { method: Method::POST, path: path.to_owned(), headers, body: Bytes::new() };
            Ok((step < 2).then_some(call))
        }
    }

    async fn serve() -> (String, JoinSet<()>) {
        let refused = async || (StatusCode::CONFLICT, r#"{"code":"sold_out"}"#);
        let accepted = async |headers: HeaderMap| {
            ([("idempotent-replayed", "true")], headers["number"].clone()).1.len().to_string()
        };
        let router = Router::new().route("/refused", post(refused)).route("/accepted", post(accepted));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move { axum::serve(listener, router).await.unwrap() });
        (url, server)
    }

    #[tokio::test]
    async fn every_request_is_sent_once_and_a_refusal_ends_its_steps() {
        let (url, _server) = serve().await;
        let mut connections = Connections::open(&url, 3).await.unwrap();
        let measured = connections.run(Arc::new(Two), numbers(10, 0), Pace::default()).await.unwrap();
        assert_eq!(measured.answers, [("200".to_owned(), 18), ("409 sold_out".to_owned(), 1)].into());
        assert_eq!(measured.accepted.len(), 9);
        assert!(!measured.accepted.contains(&3));
    }

    #[tokio::test]
    async fn the_open_loop_keeps_its_rate_and_ends_in_time() {
        let (url, _server) = serve().await;
        let mut connections = Connections::open(&url, 3).await.unwrap();
        let pace = Pace { rate: Some(250.0), ..Pace::default() };
        let measured = connections.run(Arc::new(Two), numbers(50, 0), pace).await.unwrap();
        assert!(measured.elapsed >= Duration::from_millis(190), "{:?}", measured.elapsed);
        let pace = Pace { limit: Some(Duration::from_millis(100)), ..pace };
        let measured = connections.run(Arc::new(Two), numbers(50, 0), pace).await.unwrap();
        assert!((1..40).contains(&measured.accepted.len()), "{:?}", measured.answers);
    }

    #[tokio::test]
    async fn a_server_that_is_gone_gives_no_answer() {
        let (url, server) = serve().await;
        let mut connections = Connections::open(&url, 1).await.unwrap();
        drop(server);
        // It closes its connections by itself.
        let open = |connection: &Connection| connection.open.as_ref().is_some_and(|open| !open.sender.is_closed());
        while connections.0.iter().any(open) {
            tokio::task::yield_now().await;
        }
        let measured = connections.run(Arc::new(Two), numbers(2, 0), Pace::default()).await.unwrap();
        assert_eq!(measured.answers, [(NO_ANSWER.to_owned(), 2)].into());
    }
}
