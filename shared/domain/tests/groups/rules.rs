//! How requests wait in an environment, how a group of them forms, what DynamoDB makes of it, and how its members read that.
use std::collections::VecDeque;

use holdfast_domain::shards;

pub(crate) const ENVIRONMENTS: usize = 2;
pub(crate) const SHARDS: usize = 2;
pub(crate) const CUSTOMERS: usize = 4;
pub(crate) const KEYS: usize = 4;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bug {
    /// Nothing: the protocol as it is.
    None,
    /// A group takes the units of all its members but the last from a shard.
    OneShareTooFew,
    /// A group takes without `available >= :sum`.
    WithoutUnits,
    /// A group puts its reservations without `attribute_not_exists`.
    PutAgain,
    /// A group counts its members' units without asking for their limits.
    OverLimit,
    /// A customer is in a group twice, and so is the item of the customer's limit.
    CustomerTwice,
    /// A member reads the reasons of the next member.
    ReasonsOfAnother,
    /// A member reads the reasons of all.
    ReasonsOfAll,
    /// A member without a reason of its own does not go again.
    ForgetInnocent,
    /// A member of a group for which a shard had too few units is refused, without looking whether it alone would fit.
    RefuseForSum,
    /// Another transaction on the shard is taken for too few units.
    RefuseForConflict,
    /// Too few units in the cache are enough for a refusal.
    RefuseByCache,
    /// A refusal for too few units does not ask whether the reservation exists.
    RefuseWithoutAsking,
    /// A request whose answer was lost is refused like others, though its hold may still be made.
    RefuseAfterLost,
    /// A request whose answer was lost goes again under another key.
    SecondKey,
    /// A request whose answer was lost calls a hold its own that a copy has made.
    ClaimOfAnother,
    /// What a shard had when it had too few units is not remembered.
    ForgetStock,
    /// Whoever is the first to wait and finds too few units waits on.
    WaitForUnits,
}

/// What is asked for. Requests with the same key are copies of one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub(crate) customer: usize,
    pub(crate) key: usize,
    pub(crate) units: u8,
}

pub(crate) const fn wish(customer: usize, key: usize, units: u8) -> Wish {
    Wish { customer, key, units }
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) about: &'static str,
    pub(crate) stock: [u8; SHARDS],
    pub(crate) shards: usize,
    /// How many units each customer may have.
    pub(crate) limit: u8,
    pub(crate) wishes: &'static [Wish],
    /// Those that differ by name only, in pairs.
    pub(crate) alike: &'static [(usize, usize)],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Answer {
    /// A hold was made for this request.
    Reserved {
        key: usize,
    },
    /// There was one already.
    Replayed {
        key: usize,
    },
    InsufficientStock,
    LimitReached,
    /// Nobody knows: try again. A client would come with the same key, like a copy.
    Unavailable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Phase {
    Absent,
    Waiting,
    InCall,
    /// By the cache there are too few units: the shards are read at one instant.
    Looking,
    /// There were too few. Whether the reservation exists is read last.
    Asking,
    /// A member over its limit: that is read again, together with the reservation.
    Checking,
    Told(Answer),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Company {
    Untried,
    Innocent,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Request {
    pub(crate) phase: Phase,
    pub(crate) environment: usize,
    pub(crate) company: Company,
    /// A call of it lost its answer.
    pub(crate) ambiguous: bool,
    pub(crate) second_key: bool,
    /// Since it came, at some instant, it had no reservation, and too few units were free: then it may be told so.
    pub(crate) was_short: bool,
    /// The same, of its customer's limit.
    pub(crate) was_over: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Environment {
    pub(crate) cached: [Option<u8>; SHARDS],
    pub(crate) home: usize,
    pub(crate) waiting: VecDeque<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Member {
    pub(crate) request: usize,
    pub(crate) key: usize,
    pub(crate) takes: [u8; SHARDS],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Progress {
    /// It is the one in flight: whoever comes waits.
    Turn,
    /// It takes too long, and holds up nobody any more.
    Hanging,
    /// Nobody listens any more. It may still be applied.
    Adrift,
}

/// A group's transaction on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Call {
    pub(crate) environment: usize,
    pub(crate) progress: Progress,
    pub(crate) members: Vec<Member>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    None,
    Condition,
    Conflict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Reservation {
    pub(crate) maker: usize,
    pub(crate) takes: [u8; SHARDS],
    pub(crate) ended: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) available: [i8; SHARDS],
    pub(crate) counted: [u8; CUSTOMERS],
    /// Those from [`KEYS`] on are made under a second key, which only a bug does.
    pub(crate) reservations: [Option<Reservation>; 2 * KEYS],
    pub(crate) requests: Vec<Request>,
    pub(crate) environments: [Environment; ENVIRONMENTS],
    pub(crate) calls: Vec<Call>,
    /// A call hung or met another transaction, or a request gave up: once is enough.
    pub(crate) mishap: bool,
    /// A hold ended: once is enough.
    pub(crate) ended: bool,
    /// An answer that was not true.
    pub(crate) untrue: Option<Answer>,
}

pub(crate) struct Groups {
    pub(crate) world: &'static World,
    pub(crate) bug: Bug,
}

impl Request {
    pub(crate) fn is_answered(&self) -> bool {
        matches!(self.phase, Phase::Told(_))
    }
}

impl Reservation {
    pub(crate) fn units(&self) -> u8 {
        self.takes.iter().sum()
    }
}

impl State {
    pub(crate) fn free(&self) -> i8 {
        self.available.iter().sum()
    }

    /// Whether the member has not given up.
    pub(crate) fn hears(&self, member: &Member) -> bool {
        self.requests[member.request].phase == Phase::InCall
    }

    /// The sum over all holds; `of` gets the key of each.
    pub(crate) fn held(&self, of: impl Fn(usize, &Reservation) -> u8) -> u8 {
        let holds = self.reservations.iter().enumerate().filter_map(|(at, found)| Some((at, found.as_ref()?)));
        holds.filter(|(_, found)| !found.ended).map(|(at, found)| of(at, found)).sum()
    }
}

impl Groups {
    pub(crate) fn over_limit(&self, state: &State, wish: Wish) -> bool {
        state.counted[wish.customer] + wish.units > self.world.limit
    }

    pub(crate) fn customer_of(&self, key: usize) -> usize {
        self.world.wishes.iter().find(|wish| wish.key == key % KEYS).map_or(0, |wish| wish.customer)
    }

    /// The key of the reservation that a request has, whoever made it.
    pub(crate) fn own(&self, state: &State, request: usize) -> Option<usize> {
        let key = self.world.wishes[request].key;
        let key = if state.requests[request].second_key { key + KEYS } else { key };
        state.reservations[key].map(|_| key)
    }

    /// The units that it takes from each shard.
    fn choose(&self, units: u8, cached: &[Option<u8>; SHARDS], home: usize) -> Option<[u8; SHARDS]> {
        let known: Vec<Option<u64>> = cached[..self.world.shards].iter().map(|units| units.map(u64::from)).collect();
        let mut takes = [0; SHARDS];
        for take in shards::choose(units.into(), &known, u32::try_from(home).ok()?)? {
            takes[take.shard as usize] = u8::try_from(take.units).ok()?;
        }
        Some(takes)
    }

    /// Answers a request, and notes whether that is true.
    pub(crate) fn tell(&self, state: &mut State, request: usize, answer: Answer) {
        let asked = &mut state.requests[request];
        let wish = self.world.wishes[request];
        let has = |key: usize, mine: bool| {
            let right = |found: Reservation| found.units() == wish.units && (found.maker == request) == mine;
            key % KEYS == wish.key && state.reservations[key].is_some_and(right)
        };
        let is_true = match answer {
            Answer::Reserved { key } => has(key, true),
            Answer::Replayed { key } => has(key, false),
            Answer::InsufficientStock => asked.was_short,
            Answer::LimitReached => asked.was_over,
            Answer::Unavailable => true,
        };
        // What it knew is forgotten, so that states are the same that differ in nothing else.
        let (environment, company) = (0, Company::Untried);
        let (phase, second_key) = (Phase::Told(answer), asked.second_key);
        *asked =
            Request { phase, environment, company, ambiguous: false, second_key, was_short: false, was_over: false };
        if !is_true {
            state.untrue = Some(answer);
        }
    }

    /// Refuses, unless a call that lost its answer may still make the hold.
    pub(crate) fn refuse(&self, state: &mut State, request: usize, refusal: Answer) {
        let unknown = state.requests[request].ambiguous && self.bug != Bug::RefuseAfterLost;
        self.tell(state, request, if unknown { Answer::Unavailable } else { refusal });
    }

    /// Answers with the reservation that exists. If its own lost call has made it, that is the first answer.
    pub(crate) fn replay(&self, state: &mut State, request: usize, key: usize) {
        let made_by_this = |found: Reservation| found.maker == request || self.bug == Bug::ClaimOfAnother;
        let first = state.requests[request].ambiguous && state.reservations[key].is_some_and(made_by_this);
        self.tell(state, request, if first { Answer::Reserved { key } } else { Answer::Replayed { key } });
    }

    /// Waits for the next group, or finds that there are too few units, as far as is known.
    pub(crate) fn go_again(&self, state: &mut State, request: usize) {
        let asked = &mut state.requests[request];
        let environment = &mut state.environments[asked.environment];
        if self.choose(self.world.wishes[request].units, &environment.cached, environment.home).is_none() {
            if self.bug == Bug::RefuseByCache {
                return self.refuse(state, request, Answer::InsufficientStock);
            }
            asked.phase = Phase::Looking;
            return;
        }
        asked.phase = Phase::Waiting;
        match asked.company {
            Company::Untried => environment.waiting.push_back(request),
            Company::Innocent => environment.waiting.push_front(request),
        }
    }

    /// Forms a group of those who wait and fit, in their order.
    pub(crate) fn form(&self, state: &mut State, at: usize) {
        let environment = &mut state.environments[at];
        let (mut cached, home) = (environment.cached, environment.home);
        let mut members: Vec<Member> = Vec::new();
        let mut left_out = Vec::new();
        let waiting = std::mem::take(&mut environment.waiting);
        let company = waiting.front().map(|&first| state.requests[first].company);
        for request in waiting {
            let asked = &mut state.requests[request];
            let wish = self.world.wishes[request];
            let same_customer = |other: &Member| self.world.wishes[other.request].customer == wish.customer;
            let twice = members.iter().any(same_customer) && self.bug != Bug::CustomerTwice;
            if Some(asked.company) != company || twice {
                environment.waiting.push_back(request);
                continue;
            }
            let Some(takes) = self.choose(wish.units, &cached, home) else {
                // Whoever finds too few units as the first finds too few in the next group as well.
                if members.is_empty() && self.bug != Bug::WaitForUnits {
                    left_out.push(request);
                } else {
                    environment.waiting.push_back(request);
                }
                continue;
            };
            let shards = u8::try_from(self.world.shards).unwrap_or(1);
            let guess = self.world.stock.iter().sum::<u8>().div_ceil(shards);
            for (units, taken) in cached.iter_mut().zip(takes).filter(|(_, taken)| *taken > 0) {
                *units = Some(units.unwrap_or(guess).saturating_sub(taken));
            }
            asked.phase = Phase::InCall;
            let key = if asked.second_key { wish.key + KEYS } else { wish.key };
            members.push(Member { request, key, takes });
        }
        if !members.is_empty() {
            state.calls.push(Call { environment: at, progress: Progress::Turn, members });
        }
        left_out.into_iter().for_each(|request| self.go_again(state, request));
    }

    /// The units that a group takes from each shard.
    fn sums(&self, members: &[Member]) -> [i8; SHARDS] {
        let counted = if self.bug == Bug::OneShareTooFew { members.len().max(2) - 1 } else { members.len() };
        let mut sums = [0; SHARDS];
        for member in &members[..counted] {
            sums.iter_mut().zip(member.takes).for_each(|(sum, taken)| *sum += taken.cast_signed());
        }
        sums
    }

    /// What DynamoDB says to a group's transaction by its conditions: for each member of its reservation and of its
    /// customer's limit, then of each shard.
    pub(crate) fn reasons(&self, state: &State, members: &[Member]) -> Vec<Reason> {
        let failed = |failed: bool| if failed { Reason::Condition } else { Reason::None };
        let mut reasons = Vec::new();
        for member in members {
            let wish = self.world.wishes[member.request];
            reasons.push(failed(state.reservations[member.key].is_some() && self.bug != Bug::PutAgain));
            reasons.push(failed(self.over_limit(state, wish) && self.bug != Bug::OverLimit));
        }
        let short = |(sum, available)| failed(sum > available && self.bug != Bug::WithoutUnits);
        reasons.extend(self.sums(members).into_iter().zip(state.available).map(short));
        reasons
    }

    /// Applies a group's transaction, or says why not.
    pub(crate) fn apply(&self, state: &mut State, members: &[Member]) -> Result<(), Vec<Reason>> {
        let reasons = self.reasons(state, members);
        if reasons.iter().any(|reason| *reason != Reason::None) {
            return Err(reasons);
        }
        for member in members {
            let Wish { customer, units, .. } = self.world.wishes[member.request];
            state.counted[customer] += units;
            state.reservations[member.key] =
                Some(Reservation { maker: member.request, takes: member.takes, ended: false });
        }
        state.available.iter_mut().zip(self.sums(members)).for_each(|(available, sum)| *available -= sum);
        Ok(())
    }

    /// The members of a call hear its answer. If another transaction was on a shard, `home` is the new one.
    pub(crate) fn hear(&self, state: &mut State, call: &Call, answer: Result<(), Vec<Reason>>, home: usize) {
        let environment = &mut state.environments[call.environment];
        let Err(reasons) = answer else {
            for member in &call.members {
                for (units, taken) in environment.cached.iter_mut().zip(member.takes) {
                    *units = units.map(|units| units.saturating_sub(taken));
                }
            }
            for member in &call.members {
                if state.hears(member) {
                    self.tell(state, member.request, Answer::Reserved { key: member.key });
                }
            }
            return;
        };
        for (shard, reason) in reasons[2 * call.members.len()..].iter().enumerate() {
            match reason {
                Reason::Condition if self.bug != Bug::ForgetStock => {
                    environment.cached[shard] = Some(state.available[shard].max(0).cast_unsigned());
                }
                Reason::Conflict => environment.home = home,
                _ => {}
            }
        }
        for at in 0..call.members.len() {
            if state.hears(&call.members[at]) {
                self.read_reasons(state, &call.members, at, &reasons);
            }
        }
    }

    /// A member reads its own reasons.
    fn read_reasons(&self, state: &mut State, members: &[Member], at: usize, reasons: &[Reason]) {
        let Member { request, takes, .. } = members[at];
        let next = (at + 1) % members.len();
        let read = match self.bug {
            Bug::ReasonsOfAnother => next..next + 1,
            Bug::ReasonsOfAll => 0..members.len(),
            _ => at..at + 1,
        };
        let any = |offset: usize, reason: Reason| read.clone().find(|of| reasons[2 * of + offset] == reason);
        let of_shards = reasons[2 * members.len()..].iter().zip(takes).filter(|(_, taken)| *taken > 0);
        let of_shards: Vec<Reason> = of_shards.map(|(reason, _)| *reason).collect();
        if let Some(of) = any(0, Reason::Condition) {
            return self.replay(state, request, members[of].key);
        }
        let stopped_on_its_own = read.clone().any(|of| reasons[2 * of..2 * of + 2] != [Reason::None; 2]);
        let stopped_on_a_shard = of_shards.iter().any(|reason| *reason != Reason::None);
        // Whoever takes from several shards meets others on them again and again.
        let innocent = !stopped_on_its_own && (!stopped_on_a_shard || of_shards.len() == 1);
        state.requests[request].company = if innocent { Company::Innocent } else { Company::Untried };
        // Where the reservation may exist, the limit is not enough for a refusal.
        if any(0, Reason::Conflict).is_none() && any(1, Reason::Condition).is_some() {
            state.requests[request].phase = Phase::Checking;
            return;
        }
        match self.bug {
            Bug::ForgetInnocent if !stopped_on_its_own && !stopped_on_a_shard => {}
            Bug::RefuseForSum if of_shards.contains(&Reason::Condition) => {
                self.refuse(state, request, Answer::InsufficientStock);
            }
            Bug::RefuseForConflict if of_shards.contains(&Reason::Conflict) => {
                self.refuse(state, request, Answer::InsufficientStock);
            }
            _ => self.go_again(state, request),
        }
    }
}
