//! A reference model of a reservation and of an adjustment: what requests, one after another, do to them according to
//! docs/api.md. (With the model's own tests, hence the length.)
//!
//! It does not see the table or the functions: only each request, its caller, its time and its answer. The answers
//! about one reservation, or about one adjustment's key, must be linearizable: some sequential order of the requests
//! explains all of them, and in it no request comes before one that was answered before it was sent. A request without
//! an answer may have been applied at any time, or never. The last request of that order is a read of the table when
//! nothing runs any more.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::rc::Rc;

use serde_json::Value;

use crate::books::SKEW_MS;
use crate::judge::{Reply, shown, wanted};

/// A request about one reservation or adjustment. Ticks give the order where milliseconds do not.
#[derive(Debug, Clone)]
pub(crate) struct Request<A> {
    /// In whose name it was sent: the customer's, even if a service acts for them; or the admin's.
    pub(crate) who: String,
    pub(crate) act: A,
    pub(crate) sent: u64,
    /// The answer, with its tick and its time; absent if there was none.
    pub(crate) answered: Option<(u64, i64, Reply)>,
}

/// The state machine of a reservation or of an adjustment.
trait Machine {
    type State: Hash + Eq;
    type Act;
    /// The states that a request with this answer may lead to; none if it cannot have this answer.
    fn answers(&self, state: &Self::State, request: &Request<Self::Act>, reply: &Reply) -> Vec<Self::State>;
    /// The states that a request may lead to if it was sent before and may be applied at any time. `open`: its answer
    /// is still to come.
    fn haunts(&self, state: &Self::State, request: &Request<Self::Act>, open: bool) -> Vec<Self::State>;
    /// Whether a request may be applied after its answer, or although there is none.
    fn lingers(&self, request: &Request<Self::Act>) -> bool {
        let unclear = |reply: &Reply| reply.status == 202 || !reply.clear();
        request.answered.as_ref().is_none_or(|(_, _, reply)| unclear(reply))
    }
    /// The states that the passage of time may lead to.
    fn ages(&self, state: &Self::State, now: i64) -> Vec<Self::State>;
}

/// Beyond this number of possible explanations the search is given up.
const MOST_WAYS: usize = 50_000;

/// The search was given up: it proves nothing, either way. Each run says how often that happened.
#[derive(Debug)]
pub(crate) struct GivenUp;

/// The index of the first answer that no order explains.
fn unexplained<M: Machine>(
    machine: &M,
    first: M::State,
    requests: &[Request<M::Act>],
) -> Result<Option<usize>, GivenUp> {
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        events.push((request.sent, at, false));
        events.extend(request.answered.as_ref().map(|(tick, ..)| (*tick, at, true)));
    }
    events.sort_unstable();
    let first = Rc::new(first);
    let mut known =
        Known { states: vec![Rc::clone(&first)], numbers: HashMap::from([(first, 0)]), after: HashMap::new() };
    // Each way is the number of its state, and which of the open requests have been applied: a bit for each.
    let mut ways = vec![(0, 0_u128)];
    let (mut asked, mut haunting) = (Vec::new(), Vec::new());
    for (_, at, is_answer) in events {
        let request = &requests[at];
        if !is_answer {
            if request.answered.is_some() {
                let free = (0..u128::BITS).find(|bit| asked.iter().all(|(_, other)| bit != other)).ok_or(GivenUp)?;
                asked.push((at, free));
            }
            if machine.lingers(request) {
                haunting.push(at);
            }
            continue;
        }
        let Some((_, now, _)) = &request.answered else { continue };
        let bit_of = |asked: &[(usize, u32)], at| asked.iter().find(|(of, _)| *of == at).map_or(0, |(_, bit)| 1 << bit);
        let own = bit_of(&asked, at);
        let mut todo = ways;
        let mut seen: HashSet<_> = todo.iter().copied().collect();
        let mut explained = HashSet::new();
        while let Some((state, done)) = todo.pop() {
            if done & own != 0 {
                explained.insert((state, done & !own));
                continue;
            }
            let mut go_on = |state, done| {
                if seen.insert((state, done)) {
                    todo.push((state, done));
                }
            };
            for &(other, bit) in asked.iter().filter(|(_, bit)| done & (1 << bit) == 0) {
                let Some((_, _, reply)) = &requests[other].answered else { continue };
                let answers = |state: &_| machine.answers(state, &requests[other], reply);
                known.after(state, Step::Answer(other), answers).iter().for_each(|&next| go_on(next, done | 1 << bit));
            }
            for &ghost in &haunting {
                let open = bit_of(&asked, ghost) & !done != 0;
                let haunts = |state: &_| machine.haunts(state, &requests[ghost], open);
                known.after(state, Step::Haunt(ghost, open), haunts).iter().for_each(|&next| go_on(next, done));
            }
            let ages = |state: &_| machine.ages(state, *now);
            known.after(state, Step::Age(*now), ages).iter().for_each(|&next| go_on(next, done));
            if seen.len() > MOST_WAYS {
                return Err(GivenUp);
            }
        }
        if explained.is_empty() {
            return Ok(Some(at));
        }
        ways = explained.into_iter().collect();
        asked.retain(|(other, _)| *other != at);
    }
    Ok(None)
}

/// What may happen to a state: a request by its index is answered, or is applied without an answer (which is still to
/// come if `true`), or it is this time.
#[derive(PartialEq, Eq, Hash)]
enum Step {
    Answer(usize),
    Haunt(usize, bool),
    Age(i64),
}

/// The states met so far, by their numbers, and which may follow each: many ways lead through the same ones.
struct Known<S> {
    states: Vec<Rc<S>>,
    numbers: HashMap<Rc<S>, usize>,
    after: HashMap<(usize, Step), Vec<usize>>,
}

impl<S: Hash + Eq> Known<S> {
    fn after(&mut self, state: usize, step: Step, follow: impl Fn(&S) -> Vec<S>) -> &[usize] {
        let Self { states, numbers, after } = self;
        after.entry((state, step)).or_insert_with(|| {
            let next = follow(&states[state]).into_iter().map(Rc::new);
            let number = |state: Rc<S>| {
                *numbers.entry(state).or_insert_with_key(|state| {
                    states.push(Rc::clone(state));
                    states.len() - 1
                })
            };
            next.map(number).collect()
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Status {
    None,
    Held,
    Expired,
    Cancelled,
    Confirmed,
}

/// A request about a reservation.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    Reserve(Vec<(String, u64)>),
    Confirm(Option<String>),
    Extend,
    Cancel,
    /// The hold gets these lines.
    ChangeLines(Vec<(String, u64)>),
    /// The shop hands the hold to this customer.
    HandOver(String),
    /// An admin releases the hold.
    Release,
    /// An admin releases all holds of this product: this one may be among them.
    ReleaseAll(String),
    /// The shop gives an order back.
    GiveBack,
    /// A customer's read, of one reservation or as part of a list; with `order`, only of an order.
    Get {
        order: bool,
    },
    /// An admin's read, which shows every customer's.
    Look,
    /// An admin retries a failed confirmation.
    Retry(Option<String>),
    /// An admin resolves a failed confirmation.
    Resolve(Option<String>),
    /// DynamoDB's TTL deletes a reservation that has ended.
    CleanUp,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Reservation {
    status: Status,
    /// Its customer, and those before.
    owner: String,
    formerly: BTreeSet<String>,
    /// The lines of the request that made it, by which a repetition is told from another request.
    first: Option<Vec<(String, u64)>>,
    lines: Option<Vec<(String, u64)>>,
    /// When it was made, if known.
    made: Option<i64>,
    /// The earliest end of the hold that the answers so far allow.
    until: i64,
    paid: Option<String>,
    late: bool,
    /// Whether it was an order that was given back.
    given_back: bool,
    /// Whether it was a hold that an admin released.
    released: bool,
    owed: BTreeSet<String>,
    /// Deleted by DynamoDB's TTL: then even a write that was answered long ago may arrive again.
    cleaned_up: bool,
    /// An admin has resolved it without a payment, or an answer said that it has ended: requests without a payment
    /// until that tick do not confirm it any more.
    closed: u64,
}

impl Reservation {
    fn none() -> Self {
        let owed = BTreeSet::new();
        Self {
            status: Status::None,
            owner: String::new(),
            formerly: BTreeSet::new(),
            first: None,
            lines: None,
            made: None,
            until: i64::MIN,
            paid: None,
            late: false,
            given_back: false,
            released: false,
            owed,
            cleaned_up: false,
            closed: 0,
        }
    }

    /// A new hold in its place. The notes `owed` and `closed` are kept.
    fn held(&self, owner: &str, lines: &[(String, u64)]) -> Self {
        let Self { owed, cleaned_up, closed, .. } = self.clone();
        let (first, lines) = (Some(lines.to_vec()), Some(lines.to_vec()));
        let held = Self { status: Status::Held, owner: owner.to_owned(), first, lines, ..Self::none() };
        Self { owed, cleaned_up, closed, ..held }
    }

    /// Whether there is one for this customer.
    fn is_of(&self, customer: &str) -> bool {
        self.status != Status::None && self.owner == customer
    }

    /// Whether it may be confirmed in this customer's name: the owner's, or that of the guest who was.
    fn may_be_confirmed_for(&self, customer: &str) -> bool {
        let guest = customer.starts_with("guest:") && self.formerly.contains(customer);
        self.status != Status::None && (self.owner == customer || guest)
    }

    /// The hold with these lines.
    fn with(&self, lines: &[(String, u64)]) -> Self {
        Self { lines: Some(lines.to_vec()), ..self.clone() }
    }

    /// The hold of another customer.
    fn handed(&self, to: &str) -> Self {
        let mut handed = Self { owner: to.to_owned(), ..self.clone() };
        handed.formerly.insert(self.owner.clone());
        handed
    }

    /// As it is once an admin releases it; `None` for an order.
    fn let_go(&self) -> Option<Self> {
        match self.status {
            Status::Held | Status::Expired => Some(Self { released: true, ..self.is(Status::Cancelled) }),
            Status::Cancelled => Some(self.clone()),
            Status::None | Status::Confirmed => None,
        }
    }

    fn is(&self, status: Status) -> Self {
        Self { status, ..self.clone() }
    }

    fn owes(&self, payment: &str) -> Self {
        let mut owing = self.clone();
        owing.owed.insert(payment.to_owned());
        owing
    }

    /// Ended, as an answer at that tick says.
    fn ended(&self, tick: u64) -> Self {
        Self { closed: self.closed.max(tick), ..self.is(Status::Expired) }
    }

    fn order(&self, payment: Option<&String>, late: bool) -> Self {
        Self { status: Status::Confirmed, paid: payment.cloned(), late, ..self.clone() }
    }

    /// As it is once an order is given back: its payment is owed back.
    fn returned(&self) -> Option<Self> {
        if self.status != Status::Confirmed {
            return (self.given_back).then(|| self.clone());
        }
        let returned = Self { given_back: true, ..self.is(Status::Cancelled) };
        Some(self.paid.as_ref().map_or(returned.clone(), |paid| returned.owes(paid)))
    }

    /// The same for a read. It ends nothing: a hold may be over by the reader's clock and not by another's.
    fn seen(&self, body: &Value) -> Option<Self> {
        if body["status"] == "expired" && self.status == Status::Held {
            return Some(self.is(Status::Expired).told(body)?.is(Status::Held));
        }
        self.told(body)
    }

    /// The same, with what an answer shows of it; `None` if the answer contradicts it.
    fn told(&self, body: &Value) -> Option<Self> {
        let status = match body["status"].as_str()? {
            "held" => Status::Held,
            "expired" => Status::Expired,
            "cancelled" => Status::Cancelled,
            "confirmed" => Status::Confirmed,
            _ => return None,
        };
        let (made, until, lines) = (shown(&body["created_at"])?, shown(&body["expires_at"])?, wanted(body));
        let same = self.status == status
            // Only admins are told.
            && body["customer_id"].as_str().is_none_or(|owner| owner == self.owner)
            && self.made.is_none_or(|known| known == made)
            && self.lines.as_ref().is_none_or(|known| *known == lines)
            && until >= self.until
            && body["cancel_reason"].is_string() == (self.given_back || self.released)
            && (status != Status::Cancelled || body["confirmed_at"].is_string() == self.given_back)
            && body["payment_reference"].as_str() == self.paid.as_deref()
            && body["confirmed_late"] == self.late;
        same.then(|| Self { made: Some(made), until, lines: Some(lines), ..self.clone() })
    }
}

struct Reservations;

impl Reservations {
    /// What a confirmation may do, whatever its answer.
    fn confirm(state: &Reservation, payment: Option<&String>, closed: bool) -> Vec<Reservation> {
        let mut after = Vec::new();
        match (state.status, payment) {
            (_, Some(payment)) if state.owed.contains(payment) => {}
            (Status::None, _) | (Status::Cancelled, None) => {}
            (Status::Cancelled, Some(payment)) => after.push(state.owes(payment)),
            // Late, but with its units still held; or in time.
            (Status::Held, _) if !closed => {
                after.extend([state.order(payment, false), state.order(payment, true)]);
                // Too late even for a payment.
                after.extend(payment.map(|payment| state.is(Status::Expired).owes(payment)));
            }
            (Status::Expired, _) if !closed => {
                after.push(state.order(payment, true));
                after.extend(payment.map(|payment| state.owes(payment)));
            }
            (Status::Confirmed, Some(payment)) => match &state.paid {
                None => after.push(state.order(Some(payment), state.late)),
                Some(known) if known == payment => {}
                Some(_) => after.push(state.owes(payment)),
            },
            _ => {}
        }
        after
    }
}

impl Machine for Reservations {
    type State = Reservation;
    type Act = Act;

    fn answers(&self, state: &Reservation, request: &Request<Act>, reply: &Reply) -> Vec<Reservation> {
        if !reply.clear() {
            return vec![state.clone()];
        }
        let (body, code, who) = (&reply.body, reply.code(), request.who.as_str());
        let tick = request.answered.as_ref().map_or(0, |(tick, ..)| *tick);
        let (own, payable) = (state.is_of(who), state.may_be_confirmed_for(who));
        let stays = |so: bool| if so { vec![state.clone()] } else { Vec::new() };
        let ended = |there: bool, so: bool| match (state.status, code) {
            (_, "reservation_not_found") => stays(!there),
            _ if !there => Vec::new(),
            (Status::Confirmed, "already_confirmed") => stays(so),
            (Status::Cancelled, "reservation_cancelled") => stays(true),
            // Once reported, it stays so.
            (Status::Held | Status::Expired, "hold_expired") => vec![state.ended(tick)],
            _ => Vec::new(),
        };
        match &request.act {
            // For anybody but its customer there is no such reservation.
            Act::Extend | Act::Cancel | Act::ChangeLines(_) | Act::GiveBack | Act::Get { .. } if !own => {
                stays(code == "reservation_not_found")
            }
            Act::Reserve(lines) => match (state.status, reply.status) {
                (Status::None, 201) => state.held(who, lines).told(body).into_iter().collect(),
                (Status::None, _) if matches!(code, "idempotency_key_reused" | "hold_transferred") => Vec::new(),
                (Status::None, status) => stays(status >= 400),
                (_, 409) if code == "hold_transferred" => stays(!own && state.first.as_ref() == Some(lines)),
                (_, 201) => {
                    let same = own && state.first.as_ref().is_none_or(|known| known == lines);
                    // The problem says that the hold has ended, and that the customer may reserve again.
                    let over = body["status"] == "expired";
                    let seen = if over { state.ended(tick).told(body) } else { state.seen(body) };
                    let ends = !over || matches!(state.status, Status::Held | Status::Expired);
                    seen.filter(|_| same && ends).into_iter().collect()
                }
                (_, 422) => stays(code == "idempotency_key_reused" && state.first.as_ref() != Some(lines)),
                _ => Vec::new(),
            },
            Act::Confirm(payment) => match (reply.status, code, payment) {
                (200, ..) if !payable => Vec::new(),
                (200, ..) => {
                    let again = state.status == Status::Confirmed
                        && payment.as_ref().is_none_or(|payment| state.paid.as_ref() == Some(payment));
                    // A confirmation without a payment whose caller waits never confirms a hold that has ended.
                    let closed = payment.is_none() && (state.status == Status::Expired || request.sent < state.closed);
                    let after = if again { stays(true) } else { Self::confirm(state, payment.as_ref(), closed) };
                    after.iter().filter_map(|after| after.told(body)).collect()
                }
                (202, ..) => stays(true),
                (409, "refund_required", Some(payment)) => match state.status {
                    _ if !payable => Vec::new(),
                    _ if state.owed.contains(payment) => stays(true),
                    Status::Held | Status::Expired => vec![state.ended(tick).owes(payment)],
                    Status::Cancelled => vec![state.owes(payment)],
                    Status::None | Status::Confirmed => Vec::new(),
                },
                (409, "already_confirmed", Some(payment)) => {
                    let ordered = payable && state.status == Status::Confirmed;
                    let other = ordered && state.paid.as_ref().is_some_and(|paid| paid != payment);
                    if other { vec![state.owes(payment)] } else { Vec::new() }
                }
                (404, _, Some(_)) => stays(!payable),
                (404 | 409 | 410, _, None) => ended(payable, false),
                _ => Vec::new(),
            },
            Act::Extend => match reply.status {
                200 => state.told(body).filter(|state| state.status == Status::Held).into_iter().collect(),
                409 if code == "extension_limit_reached" => stays(state.status == Status::Held),
                _ => ended(own, true),
            },
            Act::Cancel => match reply.status {
                200 => {
                    let cancels = matches!(state.status, Status::Held | Status::Cancelled);
                    let cancelled = cancels.then(|| state.is(Status::Cancelled));
                    cancelled.and_then(|cancelled| cancelled.told(body)).into_iter().collect()
                }
                409 if code == "reservation_cancelled" => Vec::new(),
                _ => ended(own, true),
            },
            Act::ChangeLines(wanted) => match (reply.status, code) {
                (200, _) if state.status == Status::Held => state.with(wanted).told(body).into_iter().collect(),
                (200, _) => Vec::new(),
                (_, "reservation_not_found" | "hold_expired" | "reservation_cancelled" | "already_confirmed") => {
                    ended(own, true)
                }
                // Something else that it cannot have: that changes nothing.
                _ => stays(state.status == Status::Held),
            },
            Act::HandOver(to) => {
                // By an earlier request.
                let done = state.is_of(to) && state.formerly.contains(who);
                match (reply.status, code) {
                    (200, _) if own && state.status == Status::Held => {
                        state.handed(to).told(body).into_iter().collect()
                    }
                    (200, _) if done => state.seen(body).into_iter().collect(),
                    (200, _) => Vec::new(),
                    (_, "customer_limit_reached") => stays(own && state.status == Status::Held),
                    _ => ended(own || done, true),
                }
            }
            Act::Release => match (reply.status, state.status, code) {
                (200, ..) => state.let_go().and_then(|let_go| let_go.told(body)).into_iter().collect(),
                (_, Status::None, "reservation_not_found") | (_, Status::Confirmed, "already_confirmed") => stays(true),
                _ => Vec::new(),
            },
            // Its answer says nothing about a single hold.
            Act::ReleaseAll(_) => stays(true),
            Act::Look => match reply.status {
                200 => state.seen(body).into_iter().collect(),
                _ => stays(state.status == Status::None),
            },
            Act::GiveBack => match reply.status {
                200 => state.returned().and_then(|returned| returned.told(body)).into_iter().collect(),
                _ => stays(state.status != Status::Confirmed && !state.given_back),
            },
            Act::Get { order } => match reply.status {
                200 => state.seen(body).into_iter().collect(),
                _ => stays(*order && state.status != Status::Confirmed && !state.given_back),
            },
            Act::Retry(payment) => {
                let mut lifted = state.clone();
                if let Some(payment) = payment.as_ref().filter(|_| reply.status == 202) {
                    lifted.owed.remove(payment);
                }
                vec![lifted]
            }
            // Without a reservation there is nothing to note it on, so nothing knows of it later (an assumption of
            // docs/reliability.md).
            Act::Resolve(_) if state.status == Status::None => stays(true),
            Act::Resolve(payment) => match (reply.status, payment) {
                (200, Some(payment)) => {
                    let own = state.status == Status::Confirmed && state.paid.as_ref() == Some(payment);
                    if own { Vec::new() } else { vec![state.owes(payment)] }
                }
                (200, None) => vec![Reservation { closed: state.closed.max(request.sent), ..state.clone() }],
                _ => stays(true),
            },
            Act::CleanUp => {
                // No payment that is owed back is forgotten with it: a reservation with one is not deleted.
                let over = matches!(state.status, Status::Expired | Status::Cancelled);
                let gone = Reservation { closed: state.closed, cleaned_up: true, ..Reservation::none() };
                if over { vec![gone] } else { Vec::new() }
            }
        }
    }

    fn haunts(&self, state: &Reservation, request: &Request<Act>, open: bool) -> Vec<Reservation> {
        let clear = request.answered.as_ref().map(|(_, _, reply)| reply).filter(|reply| reply.clear());
        let who = request.who.as_str();
        let own = state.is_of(who);
        // Repeated until it is answered: a try whose answer was lost may have been followed by another request's. What is refused
        // had no effect.
        let repeated = clear.is_none_or(|reply| open && reply.status == 200);
        // After a clean-up it may arrive again, once a copy of the first request has made the hold again.
        let late_copy = state.cleaned_up && clear.is_some_and(|reply| reply.status == 200);
        let tries = own && state.status == Status::Held && (repeated || late_copy);
        // One that was answered may arrive again too, and finds no hold but the one that it ended.
        let ended = |after: Option<Reservation>| {
            let after = match clear {
                Some(reply) => after.filter(|_| late_copy).and_then(|after| after.told(&reply.body)),
                None => after,
            };
            after.into_iter().collect()
        };
        match &request.act {
            Act::Reserve(lines) if state.status == Status::None => match clear {
                // A try whose answer was lost made it; a later try shows what has become of it since.
                Some(reply) if !state.cleaned_up => {
                    let ended = matches!(reply.body["status"].as_str(), Some("confirmed" | "cancelled" | "expired"));
                    let changed = reply.status == 201 && (ended || wanted(&reply.body) != *lines);
                    if !open || !changed && reply.code() != "hold_transferred" {
                        return Vec::new();
                    }
                    vec![Reservation { made: shown(&reply.body["created_at"]), ..state.held(who, lines) }]
                }
                _ => vec![state.held(who, lines)],
            },
            Act::Confirm(_) if !state.may_be_confirmed_for(who) => Vec::new(),
            // An earlier try of its own may have made the order that was given back before it was answered.
            Act::Confirm(payment) if clear.is_some_and(of_cancelled) => {
                let mut made = if open { Self::confirm(state, payment.as_ref(), false) } else { Vec::new() };
                made.retain(|after| after.status == Status::Confirmed);
                made
            }
            Act::Confirm(payment) => {
                let queued = request.answered.as_ref().is_some_and(|(_, _, reply)| reply.status == 202);
                let closed = queued && payment.is_none() && request.sent < state.closed;
                Self::confirm(state, payment.as_ref(), closed)
            }
            Act::Cancel if own && state.status == Status::Held => ended(Some(state.is(Status::Cancelled))),
            Act::ChangeLines(wanted) if tries => vec![state.with(wanted)],
            Act::HandOver(to) if tries => vec![state.handed(to)],
            Act::Release if matches!(state.status, Status::Held | Status::Expired) => ended(state.let_go()),
            Act::ReleaseAll(product) if state.status == Status::Held => {
                let has = state.lines.iter().flatten().any(|(id, _)| id == product);
                if has { state.let_go().into_iter().collect() } else { Vec::new() }
            }
            Act::GiveBack if own && state.status == Status::Confirmed => state.returned().into_iter().collect(),
            // A retry re-queues the confirmation.
            Act::Retry(payment) => {
                let mut lifted = state.clone();
                payment.iter().for_each(|payment| _ = lifted.owed.remove(payment));
                let mut after =
                    Self::confirm(&lifted, payment.as_ref(), payment.is_none() && request.sent < state.closed);
                after.push(lifted);
                after
            }
            Act::Resolve(_) if state.status == Status::None => Vec::new(),
            Act::Resolve(Some(payment)) => vec![state.owes(payment)],
            Act::Resolve(None) => vec![Reservation { closed: state.closed.max(request.sent), ..state.clone() }],
            _ => Vec::new(),
        }
    }

    fn lingers(&self, request: &Request<Act>) -> bool {
        let unclear = |reply: &Reply| reply.status == 202 || !reply.clear();
        let unclear = request.answered.as_ref().is_none_or(|(_, _, reply)| unclear(reply));
        // "Not found" says nothing about a reservation that is made later (docs/api.md, "Refunds").
        let not_found = request.answered.as_ref().is_some_and(|(_, _, reply)| reply.status == 404);
        let not_found = not_found || request.answered.as_ref().is_some_and(|(_, _, reply)| of_cancelled(reply));
        unclear
            || matches!(
                request.act,
                Act::Reserve(_) | Act::Cancel | Act::ChangeLines(_) | Act::HandOver(_) | Act::Release
            )
            || not_found && matches!(request.act, Act::Confirm(_))
    }

    fn ages(&self, state: &Reservation, now: i64) -> Vec<Reservation> {
        if state.status == Status::Held && state.until <= now + SKEW_MS {
            return vec![state.is(Status::Expired)];
        }
        Vec::new()
    }
}

/// Whether a confirmation was refused as one of a cancelled reservation may be.
fn of_cancelled(reply: &Reply) -> bool {
    matches!(reply.code(), "refund_required" | "reservation_cancelled")
}

/// The index of the first answer about a reservation that no order of the requests explains.
pub(crate) fn reservation(requests: &[Request<Act>]) -> Result<Option<usize>, GivenUp> {
    unexplained(&Reservations, Reservation::none(), requests)
}

/// An adjustment's body, and its ledger entry if known.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Adjusted {
    body: String,
    entry: Option<String>,
}

struct Adjustments;

impl Machine for Adjustments {
    type State = Option<Adjusted>;
    type Act = Value;

    fn answers(&self, state: &Self::State, request: &Request<Value>, reply: &Reply) -> Vec<Self::State> {
        let body = request.act.to_string();
        let entry = reply.body["entry_id"].as_str().map(str::to_owned);
        let so = match (state, reply.status) {
            _ if !reply.clear() => true,
            (None, 200) => return vec![Some(Adjusted { body, entry })],
            (Some(done), 200)
                if done.body == body && done.entry.as_ref().is_none_or(|known| Some(known) == entry.as_ref()) =>
            {
                return vec![Some(Adjusted { body, entry })];
            }
            (Some(done), 422) => done.body != body,
            (None, 404 | 409) => true,
            _ => false,
        };
        if so { vec![state.clone()] } else { Vec::new() }
    }

    fn haunts(&self, state: &Self::State, request: &Request<Value>, _: bool) -> Vec<Self::State> {
        let done = || Some(Adjusted { body: request.act.to_string(), entry: None });
        if state.is_none() { vec![done()] } else { Vec::new() }
    }

    fn ages(&self, _: &Self::State, _: i64) -> Vec<Self::State> {
        Vec::new()
    }
}

/// The index of the first answer to a copy of an adjustment that no order of the copies explains.
pub(crate) fn adjustment(requests: &[Request<Value>]) -> Result<Option<usize>, GivenUp> {
    unexplained(&Adjustments, None, requests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn reservation(requests: &[Request<Act>]) -> Option<usize> {
        super::reservation(requests).unwrap()
    }

    fn adjustment(requests: &[Request<Value>]) -> Option<usize> {
        super::adjustment(requests).unwrap()
    }

    fn reply(status: u64, body: Value) -> Reply {
        Reply { status, body }
    }

    /// A customer's requests, with the ticks at which they were sent and answered.
    fn asked<A>(requests: Vec<(A, u64, u64, Reply)>) -> Vec<Request<A>> {
        requests.into_iter().map(|request| by("alice", request)).collect()
    }

    fn by<A>(who: &str, (act, sent, tick, reply): (A, u64, u64, Reply)) -> Request<A> {
        Request { who: who.to_owned(), act, sent, answered: Some((tick, 1_763_700_010_000, reply)) }
    }

    fn shows(status: &str, payment: Option<&str>, late: bool) -> Reply {
        let body = json!({
            "status": status, "created_at": "2025-11-21T04:40:00Z", "expires_at": "2025-11-21T04:40:10Z",
            "lines": [{ "product_id": "p", "quantity": 1 }], "payment_reference": payment, "confirmed_late": late,
        });
        reply(if status == "held" { 201 } else { 200 }, body)
    }

    fn refused(status: u64, code: &str) -> Reply {
        reply(status, json!({ "code": code }))
    }

    fn reserved() -> (Act, u64, u64, Reply) {
        (Act::Reserve(vec![("p".to_owned(), 1)]), 1, 2, shows("held", None, false))
    }

    fn pays() -> Act {
        Act::Confirm(Some("pay".to_owned()))
    }

    #[test]
    fn a_refund_beside_an_order_of_the_same_payment_is_never_explained() {
        let refund = |sent, tick| (pays(), sent, tick, refused(409, "refund_required"));
        let order = |sent, tick| (pays(), sent, tick, shows("confirmed", Some("pay"), true));
        for two in [[refund(3, 4), order(5, 6)], [refund(3, 6), order(4, 5)], [order(3, 4), refund(5, 6)]] {
            let requests = asked([vec![reserved()], two.to_vec()].concat());
            assert!(reservation(&requests).is_some(), "{requests:?}");
        }
        // An admin retried it in between.
        let retried = (Act::Retry(Some("pay".to_owned())), 5, 6, reply(202, json!({})));
        assert_eq!(reservation(&asked(vec![reserved(), refund(3, 4), retried, order(7, 8)])), None);
    }

    #[test]
    fn what_somebody_was_told_is_over_is_neither_held_nor_confirmed_without_a_payment() {
        let over = || (Act::Extend, 3, 4, refused(410, "hold_expired"));
        for (act, reply) in [
            (Act::Get { order: false }, reply(200, shows("held", None, false).body)),
            (Act::Cancel, shows("cancelled", None, false)),
            (pays(), shows("confirmed", Some("pay"), false)),
        ] {
            assert!(reservation(&asked(vec![reserved(), over(), (act, 5, 6, reply)])).is_some());
        }
        assert_eq!(
            reservation(&asked(vec![reserved(), over(), (pays(), 5, 6, shows("confirmed", Some("pay"), true))])),
            None
        );
    }

    #[test]
    fn once_it_was_told_that_it_has_ended_no_queued_confirmation_without_a_payment_makes_an_order() {
        let waits = |sent, tick| (Act::Confirm(None), sent, tick, reply(202, json!({ "status": "queued" })));
        let look = |sent, tick, late| (Act::Get { order: false }, sent, tick, shows("confirmed", None, late));
        assert_eq!(reservation(&asked(vec![reserved(), waits(3, 4), look(7, 8, true)])), None);
        for told in [
            (Act::Cancel, 5, 6, refused(410, "hold_expired")),
            (Act::Extend, 5, 6, refused(410, "hold_expired")),
            (pays(), 5, 6, refused(409, "refund_required")),
        ] {
            assert!(reservation(&asked(vec![reserved(), waits(3, 4), told, look(7, 8, true)])).is_some());
        }
        let again = (Act::Confirm(None), 5, 6, shows("confirmed", None, true));
        let over = (Act::Extend, 3, 4, refused(410, "hold_expired"));
        assert!(reservation(&asked(vec![reserved(), over, again])).is_some());
    }

    #[test]
    fn after_a_clean_up_late_copies_may_repeat_what_was_answered_and_nothing_else() {
        let gone = (Act::CleanUp, 5, 6, reply(200, json!({})));
        let (wanted, ..) = reserved();
        let again = |reply| (wanted.clone(), 7, 8, reply);
        for (act, reason) in [(Act::Cancel, None), (Act::Release, Some("event called off"))] {
            let mut body = shows("cancelled", None, false).body;
            body["cancel_reason"] = reason.into();
            let cancelled = |status| reply(status, body.clone());
            let mut other = cancelled(201);
            other.body["created_at"] = "2025-12-23T04:40:00Z".into();
            let end = (act, 3, 4, cancelled(200));
            let told = |reply: Reply| reservation(&asked(vec![reserved(), end.clone(), gone.clone(), again(reply)]));
            assert_eq!(told(cancelled(201)), None);
            assert_eq!(told(other), Some(3));
        }
    }

    #[test]
    fn a_reservation_may_change_between_a_try_whose_answer_was_lost_and_the_answer() {
        let queued = (Act::Confirm(None), 1, 3, reply(202, json!({ "status": "queued" })));
        let (wanted, ..) = reserved();
        let replay = (wanted, 2, 4, reply(201, shows("confirmed", None, false).body));
        assert_eq!(reservation(&asked(vec![queued, replay.clone()])), None);
        assert_eq!(reservation(&asked(vec![replay])), Some(0));
    }

    fn two() -> Vec<(String, u64)> {
        vec![("p".to_owned(), 2)]
    }

    fn with_two(status: u64) -> Reply {
        let mut body = shows("held", None, false).body;
        body["lines"][0]["quantity"] = 2.into();
        reply(status, body)
    }

    #[test]
    fn after_a_change_of_lines_the_first_request_is_answered_with_the_present_lines() {
        let change = |sent, tick| (Act::ChangeLines(two()), sent, tick, with_two(200));
        let (wanted, ..) = reserved();
        let again = |reply| (wanted.clone(), 5, 6, reply);
        let told = |reply| reservation(&asked(vec![reserved(), change(3, 4), again(reply)]));
        assert_eq!(told(with_two(201)), None);
        assert_eq!(told(shows("held", None, false)), Some(2));
        // The lines that it has now are not those of its key.
        let other = (Act::Reserve(two()), 5, 6, refused(422, "idempotency_key_reused"));
        assert_eq!(reservation(&asked(vec![reserved(), change(3, 4), other])), None);
        // What was refused has changed nothing, and what has ended is not changed.
        let short = (Act::ChangeLines(two()), 3, 4, refused(409, "insufficient_stock"));
        let look = |sent, tick, body| (Act::Get { order: false }, sent, tick, reply(200, body));
        assert_eq!(
            reservation(&asked(vec![reserved(), short.clone(), look(5, 6, shows("held", None, false).body)])),
            None
        );
        assert_eq!(reservation(&asked(vec![reserved(), short, look(5, 6, with_two(200).body)])), Some(2));
        let cancel = (Act::Cancel, 3, 4, reply(200, shows("cancelled", None, false).body));
        assert_eq!(reservation(&asked(vec![reserved(), cancel, change(5, 6)])), Some(2));
    }

    #[test]
    fn changes_of_lines_at_once_come_one_after_another() {
        let three = {
            let mut reply = with_two(200);
            reply.body["lines"][0]["quantity"] = 3.into();
            reply
        };
        let changes = |last: &Reply| {
            asked(vec![
                reserved(),
                (Act::ChangeLines(two()), 3, 5, with_two(200)),
                (Act::ChangeLines(vec![("p".to_owned(), 3)]), 4, 6, three.clone()),
                (Act::Get { order: false }, 7, 8, last.clone()),
            ])
        };
        for last in [with_two(200), three.clone()] {
            assert_eq!(reservation(&changes(&last)), None);
        }
        assert_eq!(reservation(&changes(&reply(200, shows("held", None, false).body))), Some(3));
    }

    #[test]
    fn a_hold_that_was_handed_over_is_the_new_customers_and_may_be_paid_in_the_guests_name() {
        let held = || reply(200, shows("held", None, false).body);
        let not_found = || refused(404, "reservation_not_found");
        let handed = |sent, tick| by("guest:a", (Act::HandOver("bob".to_owned()), sent, tick, held()));
        let get = |who: &str, reply| by(who, (Act::Get { order: false }, 5, 6, reply));
        let (wanted, ..) = reserved();
        let replay = |reply| by("guest:a", (wanted.clone(), 5, 6, reply));
        let after = |request| reservation(&[by("guest:a", reserved()), handed(3, 4), request]);
        assert_eq!(after(get("bob", held())), None);
        assert_eq!(after(get("guest:a", not_found())), None);
        assert_eq!(after(get("guest:a", held())), Some(2));
        assert_eq!(after(get("bob", not_found())), Some(2));
        assert_eq!(after(handed(5, 6)), None);
        assert_eq!(after(replay(refused(409, "hold_transferred"))), None);
        assert_eq!(after(replay(shows("held", None, false))), Some(2));
        assert_eq!(
            after(by("guest:a", (Act::Cancel, 5, 6, reply(200, shows("cancelled", None, false).body)))),
            Some(2)
        );
        for (who, explained) in [("guest:a", true), ("bob", true), ("carol", false)] {
            let paid = by(who, (pays(), 5, 6, shows("confirmed", Some("pay"), false)));
            assert_eq!(after(paid).is_none(), explained, "{who}");
        }
        // After a clean-up, copies of both requests may arrive again: then the key is that of a hold that was handed over.
        let gone = [
            by("bob", (Act::Cancel, 5, 6, reply(200, shows("cancelled", None, false).body))),
            by("", (Act::CleanUp, 7, 8, reply(200, json!({})))),
        ];
        let (wanted, ..) = reserved();
        let again = by("guest:a", (wanted, 9, 10, refused(409, "hold_transferred")));
        let all = [by("guest:a", reserved()), handed(3, 4)].into_iter().chain(gone).chain([again]);
        assert_eq!(reservation(&all.collect::<Vec<_>>()), None);
        // Before, it is the first customer's.
        let early = by("bob", (Act::Extend, 3, 4, not_found()));
        assert_eq!(reservation(&[by("guest:a", reserved()), early, handed(5, 6)]), None);
        // A user who hands it to another user has nothing to do with it any more.
        let users = [by("alice", reserved()), by("alice", (Act::HandOver("bob".to_owned()), 3, 4, held()))];
        let paid = by("alice", (pays(), 5, 6, shows("confirmed", Some("pay"), false)));
        assert_eq!(reservation(&[users.as_slice(), &[paid]].concat()), Some(2));
    }

    #[test]
    fn what_an_admin_has_released_never_becomes_an_order() {
        let mut body = shows("cancelled", None, false).body;
        body["cancel_reason"] = "event called off".into();
        let released = || by("admin", (Act::Release, 3, 4, reply(200, body.clone())));
        let after =
            |act: Act, told| reservation(&[by("alice", reserved()), released(), by("alice", (act, 5, 6, told))]);
        assert_eq!(after(pays(), refused(409, "refund_required")), None);
        assert_eq!(after(Act::Confirm(None), refused(409, "reservation_cancelled")), None);
        assert_eq!(after(pays(), shows("confirmed", Some("pay"), true)), Some(2));
        assert_eq!(after(Act::Cancel, reply(200, body.clone())), None);
        // Also if it had expired, and whoever releases all holds of its product.
        let expired = by("alice", (Act::Extend, 3, 4, refused(410, "hold_expired")));
        let late = by("admin", (Act::Release, 5, 6, reply(200, body.clone())));
        assert_eq!(reservation(&[by("alice", reserved()), expired, late]), None);
        for (product, explained) in [("p", true), ("other", false)] {
            let all = Request { who: String::new(), act: Act::ReleaseAll(product.to_owned()), sent: 3, answered: None };
            let look = by("admin", (Act::Look, 5, 6, reply(200, body.clone())));
            assert_eq!(reservation(&[by("alice", reserved()), all, look]).is_none(), explained, "{product}");
        }
    }

    #[test]
    fn copies_of_an_adjustment_have_one_outcome() {
        let body = json!({ "delta": 5 });
        let made = |sent, tick, entry: &str| (body.clone(), sent, tick, reply(200, json!({ "entry_id": entry })));
        let no = |sent, tick| (body.clone(), sent, tick, refused(409, "version_mismatch"));
        assert_eq!(adjustment(&asked(vec![no(1, 2), made(3, 4, "e"), made(5, 6, "e")])), None);
        // Concurrent, and the refusal is answered first.
        assert_eq!(adjustment(&asked(vec![made(1, 4, "e"), no(2, 3)])), None);
        assert_eq!(adjustment(&asked(vec![made(1, 2, "e"), no(3, 4)])), Some(1));
        assert_eq!(adjustment(&asked(vec![made(1, 2, "e"), made(3, 4, "other")])), Some(1));
        let other = (json!({ "delta": 6 }), 3, 4, refused(422, "idempotency_key_reused"));
        assert_eq!(adjustment(&asked(vec![made(1, 2, "e"), other.clone()])), None);
        assert_eq!(adjustment(&asked(vec![other])), Some(0));
    }
}
