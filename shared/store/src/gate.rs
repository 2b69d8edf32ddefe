//! Where requests of one kind wait for one another, so that they share a call.
//!
//! One call of a kind is in flight at a time. Whoever comes meanwhile waits; when it has ended, one of them forms the next
//! group, of all who fit, and every member drives its call. Nothing runs on its own, since Lambda freezes that.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use aws_sdk_dynamodb::error::SdkError;
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, Shared};
use holdfast_domain::ProductId;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, oneshot};

use crate::error::{Seen, watch};
use crate::{Error, lock};

/// How long a call keeps others of its kind waiting: longer than nearly all calls take, so that one that hangs does not
/// stop a sale.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// What DynamoDB answered, for every member of a group.
pub(crate) type Answer<T, E> = Seen<Result<T, SdkError<E, HttpResponse>>>;

/// A group's call.
pub(crate) type Call<T, E> = Shared<BoxFuture<'static, Arc<Answer<T, E>>>>;

/// A group's right to be the one in flight.
pub(crate) type Turn = OwnedSemaphorePermit;

/// With whom a request may share a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Company {
    /// With those of which nothing is known: not tried yet, or stopped by reasons of their own.
    Untried,
    /// With those that another member stopped, or their only shard: nothing is known against any of them.
    Innocent,
    /// With nobody: its last group was refused as a whole, so that nobody knows because of whom.
    Nobody,
}

/// A request that waits for its turn.
pub(crate) struct Waiting<E, M> {
    entry: E,
    company: Company,
    membership: oneshot::Sender<Result<M, Error>>,
}

/// Where requests of one kind wait: `E` is what one asks for, `M` its part in a group.
pub(crate) struct Gate<E, M> {
    turn: Arc<Semaphore>,
    waiting: Mutex<VecDeque<Waiting<E, M>>>,
}

/// The members of a group, each with how it is told its part.
pub(crate) type Picked<E, M> = Vec<(E, oneshot::Sender<Result<M, Error>>)>;

/// Whether a request fits into a group.
pub(crate) enum Fit {
    Member,
    /// Into a later one, perhaps.
    Later,
    /// Into none, as it is.
    Never,
}

impl<E, M> Default for Gate<E, M> {
    fn default() -> Self {
        Self { turn: Arc::new(Semaphore::new(1)), waiting: Mutex::default() }
    }
}

impl<E, M> Gate<E, M> {
    /// Waits until `form` has made the entry a member of a group; `None` if it was left out. `form` gets all who wait, and
    /// must either take the first of them or leave it out.
    pub(crate) async fn join(
        &self,
        entry: E,
        company: Company,
        form: impl Fn(Turn, &mut VecDeque<Waiting<E, M>>),
    ) -> Result<Option<M>, Error> {
        let (membership, mut mine) = oneshot::channel();
        let request = Waiting { entry, company, membership };
        match company {
            Company::Untried => lock(&self.waiting).push_back(request),
            // It has waited before.
            Company::Innocent | Company::Nobody => lock(&self.waiting).push_front(request),
        }
        loop {
            let turn = tokio::select! {
                biased;
                mine = &mut mine => return mine.ok().transpose(),
                Ok(turn) = self.turn.clone().acquire_owned() => turn,
            };
            // Whoever is ready to join comes along.
            tokio::task::yield_now().await;
            let mut waiting = lock(&self.waiting);
            // Those who have given up.
            waiting.retain(|request| !request.membership.is_closed());
            form(turn, &mut waiting);
        }
    }
}

/// Takes those who wait and fit into a group, in their order.
pub(crate) fn pick<E, M>(
    waiting: &mut VecDeque<Waiting<E, M>>,
    mut fits: impl FnMut(&mut E) -> Result<Fit, Error>,
) -> Picked<E, M> {
    let Some(company) = waiting.front().map(|first| first.company) else { return Vec::new() };
    let mut picked = Vec::new();
    for mut request in std::mem::take(waiting) {
        if request.company != company || company == Company::Nobody && !picked.is_empty() {
            waiting.push_back(request);
            continue;
        }
        match fits(&mut request.entry) {
            Ok(Fit::Member) => picked.push((request.entry, request.membership)),
            Ok(Fit::Later) => waiting.push_back(request),
            Ok(Fit::Never) => {}
            // Whoever gave up in this moment does not hear it.
            Err(error) => _ = request.membership.send(Err(error)),
        }
    }
    picked
}

/// The call, for all members. The next group forms when it has ended, or takes too long.
pub(crate) fn share<T, E>(turn: Turn, call: BoxFuture<'static, Result<T, SdkError<E, HttpResponse>>>) -> Call<T, E>
where
    T: Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    let call = async move {
        let mut call = pin!(watch(call));
        tokio::select! {
            biased;
            seen = &mut call => return Arc::new(seen),
            () = tokio::time::sleep(PATIENCE) => drop(turn),
        }
        Arc::new(call.await)
    };
    call.boxed().shared()
}

/// Where requests that would read the same of a product take turns: what one reads serves all who wait.
#[derive(Debug, Default)]
pub(crate) struct Turns(Mutex<HashMap<ProductId, Arc<tokio::sync::Mutex<()>>>>);

impl Turns {
    /// Waits until no other request is at it, or one takes long. Also returns whether there was another one.
    pub(crate) async fn wait(&self, product: &ProductId) -> (Option<OwnedMutexGuard<()>>, bool) {
        let turn = {
            let mut turns = lock(&self.0);
            // Those that nobody waits for.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            turns.entry(product.clone()).or_default().clone()
        };
        match turn.clone().try_lock_owned() {
            Ok(turn) => (Some(turn), false),
            Err(_) => (tokio::time::timeout(PATIENCE, turn.lock_owned()).await.ok(), true),
        }
    }
}
