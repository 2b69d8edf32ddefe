//! The limit on each customer's requests, before anything else is done for them.
//!
//! - It counts what changes something. To read costs less than to count would, and API Gateway's own throttle, which
//!   counts all requests together, stands before both.
//! - It counts customers. A service and an admin are the shop's own, and one service speaks for all customers.
//! - It fails open: where the table does not say in time, the request goes on. A limit that failed closed would turn a
//!   payment away that `confirm` could still put into its queue, and a table that is away admits little anyway.
//! - But where the customer's own count is throttled, they are refused: nobody else writes to it, so it is their flood
//!   that keeps it from being counted, and the more they send the less it would hold them.
//! - A refusal is remembered until its time is over, so that a herd of one customer's requests costs each environment
//!   one call for each request that will be admitted, and no more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use holdfast_aws::clock::Clock;
use holdfast_domain::{CustomerId, RateLimit, Timestamp};
use holdfast_store::{Admitted, Deadline, Store};

use crate::{Authenticator, Problem};

/// How long the count may take. With it, a handler that uses up its own budget still answers in time.
const BUDGET: Duration = Duration::from_secs(1);
/// How many refusals are remembered. Past that, those whose time is over are forgotten.
const REMEMBERED: usize = 1_000;

/// What counts the requests.
pub struct Limiter {
    store: Store,
    clock: Clock,
    limit: RateLimit,
    refused_until: Mutex<HashMap<CustomerId, Timestamp>>,
}

impl Limiter {
    /// Counts in `store`.
    pub fn new(store: Store, clock: Clock, limit: RateLimit) -> Self {
        Self { store, clock, limit, refused_until: Mutex::default() }
    }

    /// For how long the customer has to wait, if they do.
    async fn wait(&self, customer: &CustomerId) -> Option<Duration> {
        let now = self.clock.now();
        let remembered = self.refusals().get(customer).copied();
        if let Some(until) = remembered.filter(|&until| until > now) {
            return Some(millis(until.as_millis() - now.as_millis()));
        }
        match self.store.admit(customer, self.limit, now, Deadline::after(BUDGET)).await {
            Ok(Admitted::Yes) => None,
            Ok(Admitted::RetryAfter(wait)) => {
                // Rounded down: nobody is refused from memory whom the table would admit.
                let wait_millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                let until = Timestamp::from_millis(now.as_millis().saturating_add(wait_millis));
                let mut refusals = self.refusals();
                if refusals.len() >= REMEMBERED {
                    refusals.retain(|_, until| *until > now);
                }
                refusals.insert(customer.clone(), until);
                Some(wait)
            }
            Err(error) => {
                tracing::warn!(%error, "the request is not counted, and goes on");
                None
            }
        }
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, HashMap<CustomerId, Timestamp>> {
        self.refused_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn millis(millis: i64) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or_default())
}

/// The routes of `router` with the limit before them; without one, just the routes. To go inside of
/// [`serve`](crate::serve).
pub fn limited(router: Router, limiter: Option<Limiter>) -> Router {
    match limiter {
        Some(limiter) => router.route_layer(from_fn_with_state(Arc::new(limiter), limit)),
        None => router,
    }
}

async fn limit(State(limiter): State<Arc<Limiter>>, request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let caller = parts.extensions.get::<Authenticator>().and_then(|authenticator| authenticator.caller(&parts));
    let request = Request::from_parts(parts, body);
    // Nobody that can be believed: the handler says so.
    if let Some(caller) = caller.filter(|caller| !caller.service && !caller.admin)
        && let Some(wait) = limiter.wait(&caller.id).await
    {
        return Problem::rate_limited(wait).into_response();
    }
    next.run(request).await
}
