//! The rate limit per customer, applied before a request is handled.
//!
//! - It counts requests that change something: a read costs less than counting it, and API Gateway's own throttle applies
//!   to all requests.
//! - It counts customers only. Services and admins belong to the shop, and one service acts for all customers.
//! - It fails open: if the table does not respond in time, the request is handled. Failing closed would refuse payments
//!   that `confirm` could still queue.
//! - But if the item that counts a customer is throttled, the customer is refused: only their own requests write to it.
//! - A refusal is cached until its time is over, so that a flood of requests by one customer costs each environment one
//!   call per admitted request.

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

use crate::budgets::RATE_LIMIT_BUDGET;
use crate::{Caller, Problem};

/// Cached refusals. Beyond that, those whose time is over are removed.
const MAX_CACHED: usize = 1_000;

/// Counts requests per customer.
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

    /// How long the customer has to wait; `None` if the request is admitted.
    async fn wait(&self, customer: &CustomerId) -> Option<Duration> {
        let now = self.clock.now();
        let cached = self.refusals().get(customer).copied();
        if let Some(until) = cached.filter(|&until| until > now) {
            return Some(millis(until.as_millis() - now.as_millis()));
        }
        match self.store.admit(customer, self.limit, now, Deadline::after(RATE_LIMIT_BUDGET)).await {
            Ok(Admitted::Yes) => None,
            Ok(Admitted::RetryAfter(wait)) => {
                // Rounded down: the cache must not refuse a request that the table would admit.
                let wait_millis = i64::try_from(wait.as_millis()).unwrap_or(i64::MAX);
                let until = Timestamp::from_millis(now.as_millis().saturating_add(wait_millis));
                let mut refusals = self.refusals();
                if refusals.len() >= MAX_CACHED {
                    refusals.retain(|_, until| *until > now);
                }
                refusals.insert(customer.clone(), until);
                Some(wait)
            }
            Err(error) => {
                tracing::warn!(%error, "rate limit not checked; the request is admitted");
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

/// Adds the limiter, if there is one, to `router`. Call it before [`serve`](crate::serve).
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
    let (mut parts, body) = request.into_parts();
    let caller = Caller::verified(&mut parts);
    let request = Request::from_parts(parts, body);
    // Without a caller the handler refuses the request.
    if let Some(caller) = caller.ok().filter(|caller| !caller.service && !caller.admin)
        && let Some(wait) = limiter.wait(&caller.id).await
    {
        return Problem::rate_limited(wait).into_response();
    }
    next.run(request).await
}
