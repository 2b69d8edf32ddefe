//! Group commit by itself, in every order that there is: reserves that wait in one environment share a transaction, two
//! environments compete for the same units, and each request must get an answer that is true.
//!
//! As in `protocol.rs`, an action is what one call to DynamoDB does, or what an environment does without one. Between a
//! group's forming and its transaction anything may happen, so what it was formed by may be out of date. One mishap may
//! come at any time: a call hangs (others form groups meanwhile; then it ends, or loses its answer, and is applied at any
//! later time or never), or meets another transaction, or a request gives up. And one hold ends.
//!
//! Where units come from is chosen by the code itself, `holdfast_domain::shards`. How requests wait, how a group forms and
//! how a member reads a cancelled one is written here again, after `shared/store/src/gate.rs`, `group.rs` and `reserve.rs`.
//! Not in it: several products, a product that changes, a group that is throttled or refused as a whole, conditions that
//! are evaluated at different instants, and a refusal that is remembered.
//!
//! That the rules are needed is shown by breaking each: then the checker must find an order that goes wrong, or on and on.

mod rules;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};

use rules::*;
use stateright::{Checker, Expectation, HasDiscoveries, Model, Property};

/// With these an order goes wrong.
const BUGS: [Bug; 15] = [
    Bug::OneShareTooFew,
    Bug::WithoutUnits,
    Bug::PutAgain,
    Bug::OverLimit,
    Bug::CustomerTwice,
    Bug::ReasonsOfAnother,
    Bug::ReasonsOfAll,
    Bug::ForgetInnocent,
    Bug::RefuseForSum,
    Bug::RefuseForConflict,
    Bug::RefuseByCache,
    Bug::RefuseWithoutAsking,
    Bug::RefuseAfterLost,
    Bug::SecondKey,
    Bug::ClaimOfAnother,
];

/// With these an order never ends.
const ENDLESS: [Bug; 2] = [Bug::ForgetStock, Bug::WaitForUnits];

/// Several small worlds instead of a large one, which would have more orders than can be looked at.
const WORLDS: [World; 4] = [
    World {
        about: "too few units for all, one of whom asks twice",
        stock: [2, 0],
        shards: 1,
        limit: 9,
        wishes: &[wish(0, 0, 1), wish(0, 0, 1), wish(1, 1, 1), wish(2, 2, 1)],
        alike: &[(0, 1), (2, 3)],
    },
    World {
        about: "a copy, and another key over the customer's limit",
        stock: [2, 0],
        shards: 1,
        limit: 1,
        wishes: &[wish(0, 0, 1), wish(0, 0, 1), wish(0, 1, 1), wish(1, 2, 1)],
        alike: &[(0, 1)],
    },
    World {
        about: "two shards, and one who needs both",
        stock: [1, 1],
        shards: 2,
        limit: 9,
        wishes: &[wish(0, 0, 2), wish(1, 1, 1), wish(2, 2, 1)],
        alike: &[(1, 2)],
    },
    World {
        about: "groups of three, and too few units for the fourth",
        stock: [3, 0],
        shards: 1,
        limit: 9,
        wishes: &[wish(0, 0, 1), wish(1, 1, 1), wish(2, 2, 1), wish(3, 3, 1)],
        alike: &[(0, 1), (1, 2), (2, 3)],
    },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Come {
        request: usize,
        environment: usize,
    },
    Form {
        environment: usize,
    },
    Hang {
        call: usize,
    },
    /// The members hear nothing, and try again.
    Lose {
        call: usize,
    },
    /// The SDK sends it again, and gets the answer; unless it was applied, the first one is still on its way.
    SendAgain {
        call: usize,
    },
    Arrive {
        call: usize,
    },
    /// It meets another transaction at this position. What the conditions of the others say is reported, or not.
    Conflict {
        call: usize,
        position: usize,
        home: usize,
        reported: bool,
    },
    /// It has waited too long.
    GiveUp {
        request: usize,
    },
    Look {
        request: usize,
    },
    Ask {
        request: usize,
    },
    Check {
        request: usize,
    },
    End {
        key: usize,
    },
}

impl Model for Groups {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let request = Request {
            phase: Phase::Absent,
            environment: 0,
            company: Company::Untried,
            ambiguous: false,
            second_key: false,
            was_short: false,
            was_over: false,
        };
        let environment = |home| Environment { cached: [None; SHARDS], home, waiting: VecDeque::new() };
        let state = |home| State {
            available: self.world.stock.map(u8::cast_signed),
            counted: [0; CUSTOMERS],
            reservations: [None; 2 * KEYS],
            requests: vec![request.clone(); self.world.wishes.len()],
            environments: [environment(0), environment(home)],
            calls: Vec::new(),
            mishap: false,
            ended: false,
            untrue: None,
        };
        (0..self.world.shards).map(state).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let wishes = self.world.wishes;
        let absent = |request: usize| state.requests[request].phase == Phase::Absent;
        let none_came = (0..wishes.len()).all(absent);
        for request in 0..wishes.len() {
            match state.requests[request].phase {
                // Of those that differ by name only, the first comes first; and the first of all to the first environment.
                Phase::Absent => {
                    if self.world.alike.iter().all(|&(one, other)| other != request || !absent(one)) {
                        let environments = 0..if none_came { 1 } else { ENVIRONMENTS };
                        actions.extend(environments.map(|environment| Action::Come { request, environment }));
                    }
                }
                Phase::Looking => actions.push(Action::Look { request }),
                Phase::Asking => actions.push(Action::Ask { request }),
                Phase::Checking => actions.push(Action::Check { request }),
                Phase::Waiting | Phase::InCall if !state.mishap => actions.push(Action::GiveUp { request }),
                Phase::Waiting | Phase::InCall | Phase::Told(_) => {}
            }
        }
        for (environment, found) in state.environments.iter().enumerate() {
            let in_flight = |call: &Call| call.environment == environment && call.progress == Progress::Turn;
            if !found.waiting.is_empty() && !state.calls.iter().any(in_flight) {
                actions.push(Action::Form { environment });
            }
        }
        for (call, Call { progress, members, .. }) in state.calls.iter().enumerate() {
            actions.push(Action::Arrive { call });
            match progress {
                Progress::Turn if !state.mishap => actions.push(Action::Hang { call }),
                Progress::Hanging => actions.extend([Action::Lose { call }, Action::SendAgain { call }]),
                _ => {}
            }
            if *progress != Progress::Adrift && !state.mishap {
                for position in 0..2 * members.len() + self.world.shards {
                    let homes = if position < 2 * members.len() { 1 } else { self.world.shards };
                    for home in 0..homes {
                        let conflict = |reported| Action::Conflict { call, position, home, reported };
                        actions.extend([conflict(false), conflict(true)]);
                    }
                }
            }
        }
        if !state.ended {
            actions
                .extend((0..2 * KEYS).filter(|&key| state.reservations[key].is_some()).map(|key| Action::End { key }));
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Come { request, environment } => {
                next.requests[request].environment = environment;
                self.go_again(&mut next, request);
            }
            Action::Form { environment } => self.form(&mut next, environment),
            Action::Hang { call } => {
                next.mishap = true;
                next.calls[call].progress = Progress::Hanging;
            }
            Action::Lose { call } => {
                next.calls[call].progress = Progress::Adrift;
                for &Member { request, .. } in state.calls[call].members.iter().filter(|member| state.hears(member)) {
                    next.requests[request].ambiguous = true;
                    next.requests[request].second_key = self.bug == Bug::SecondKey;
                    self.go_again(&mut next, request);
                }
            }
            Action::Arrive { call } | Action::SendAgain { call } => {
                let mut call = next.calls.remove(call);
                let answer = self.apply(&mut next, &call.members);
                let again = matches!(action, Action::SendAgain { .. });
                for member in call.members.iter().filter(|member| again && state.hears(member)) {
                    next.requests[member.request].ambiguous = true;
                }
                let applied = answer.is_ok();
                if call.progress != Progress::Adrift {
                    self.hear(&mut next, &call, answer, 0);
                }
                if again && !applied {
                    call.progress = Progress::Adrift;
                    next.calls.push(call);
                }
            }
            Action::Conflict { call, position, home, reported } => {
                let call = next.calls.remove(call);
                let shard = position.checked_sub(2 * call.members.len());
                if shard.is_some_and(|shard| call.members.iter().all(|member| member.takes[shard] == 0)) {
                    return None;
                }
                let mut reasons = self.reasons(state, &call.members);
                if !reported {
                    reasons.fill(Reason::None);
                }
                reasons[position] = Reason::Conflict;
                next.mishap = true;
                self.hear(&mut next, &call, Err(reasons), home);
            }
            Action::GiveUp { request } => {
                next.mishap = true;
                next.environments.iter_mut().for_each(|one| one.waiting.retain(|waiting| *waiting != request));
                self.tell(&mut next, request, Answer::Unavailable);
            }
            Action::Look { request } => {
                let units = state.available.map(|units| u8::try_from(units).unwrap_or(0));
                let asked = &mut next.requests[request];
                next.environments[asked.environment].cached = units.map(Some);
                if units.iter().sum::<u8>() >= self.world.wishes[request].units {
                    self.go_again(&mut next, request);
                } else if self.bug == Bug::RefuseWithoutAsking {
                    self.refuse(&mut next, request, Answer::InsufficientStock);
                } else {
                    asked.phase = Phase::Asking;
                }
            }
            Action::Ask { request } => match self.own(state, request) {
                Some(key) => self.replay(&mut next, request, key),
                None => self.refuse(&mut next, request, Answer::InsufficientStock),
            },
            Action::Check { request } => match self.own(state, request) {
                Some(key) => self.replay(&mut next, request, key),
                None if self.over_limit(state, self.world.wishes[request]) => {
                    self.refuse(&mut next, request, Answer::LimitReached);
                }
                None => self.go_again(&mut next, request),
            },
            Action::End { key } => {
                let found = next.reservations[key].as_mut()?;
                found.ended = true;
                next.ended = true;
                next.counted[self.customer_of(key)] -= found.units();
                next.available.iter_mut().zip(found.takes).for_each(|(units, taken)| *units += taken.cast_signed());
            }
        }
        next.calls.sort();
        let free = next.free();
        for request in 0..next.requests.len() {
            let wish = self.world.wishes[request];
            let none = self.own(&next, request).is_none();
            let over = self.over_limit(&next, wish);
            let asked = &mut next.requests[request];
            if asked.phase != Phase::Absent && !asked.is_answered() {
                asked.was_short |= none && free < wish.units.cast_signed();
                asked.was_over |= none && over;
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each shard's units are available or held, once", |model: &Self, state: &State| {
                (0..SHARDS).all(|shard| {
                    let available = u8::try_from(state.available[shard]);
                    let held = state.held(|_, found| found.takes[shard]);
                    available.is_ok_and(|available| available + held == model.world.stock[shard])
                })
            }),
            Property::always(
                "each customer's units are counted, and within the limit",
                |model: &Self, state: &State| {
                    (0..CUSTOMERS).all(|customer| {
                        let held =
                            state.held(|key, found| if model.customer_of(key) == customer { found.units() } else { 0 });
                        state.counted[customer] == held && held <= model.world.limit
                    })
                },
            ),
            Property::always("a request takes units once", |_, state: &State| {
                (0..KEYS).all(|key| state.reservations[key].is_none() || state.reservations[key + KEYS].is_none())
            }),
            Property::always("whoever is told of a hold has it", |_, state: &State| {
                !matches!(state.untrue, Some(Answer::Reserved { .. } | Answer::Replayed { .. }))
            }),
            Property::always("a refusal was true while it was asked for", |_, state: &State| {
                !matches!(state.untrue, Some(Answer::InsufficientStock | Answer::LimitReached))
            }),
            Property::always("nothing is made for whoever was refused", |_, state: &State| {
                let refused = [Answer::InsufficientStock, Answer::LimitReached].map(Phase::Told);
                state.reservations.iter().flatten().all(|found| !refused.contains(&state.requests[found.maker].phase))
            }),
            Property::always("no group has an item twice", |model: &Self, state: &State| {
                state.calls.iter().all(|call| {
                    let count = |customer| {
                        call.members.iter().filter(|one| model.world.wishes[one.request].customer == customer).count()
                    };
                    (0..CUSTOMERS).all(|customer| count(customer) <= 1)
                })
            }),
            Property::always("no order ends while a request waits", |model: &Self, state: &State| {
                state.requests.iter().all(Request::is_answered) || can_go_on(model, state)
            }),
            Property::sometimes("three share a transaction", |_, state: &State| {
                state.calls.iter().any(|call| call.members.len() > 2)
            }),
            Property::sometimes("those that another stopped wait together", |_, state: &State| {
                let innocent = |request: &&usize| state.requests[**request].company == Company::Innocent;
                state.environments.iter().any(|one| one.waiting.iter().filter(innocent).count() > 1)
            }),
            Property::sometimes("a hold is made though its request has given up", |_, state: &State| {
                let given_up =
                    |found: &Reservation| state.requests[found.maker].phase == Phase::Told(Answer::Unavailable);
                state.reservations.iter().flatten().any(given_up)
            }),
            Property::sometimes("a hold has units of both shards", |_, state: &State| {
                state.reservations.iter().flatten().any(|found| !found.takes.contains(&0))
            }),
            Property::sometimes("a copy gets the same hold, and another key meets the limit", |_, state: &State| {
                state.requests.iter().any(|one| matches!(one.phase, Phase::Told(Answer::Replayed { .. })))
                    && state.requests.iter().any(|one| one.phase == Phase::Told(Answer::LimitReached))
            }),
            Property::sometimes("all are answered, one of them that too few units are left", |_, state: &State| {
                let count = |phase| state.requests.iter().filter(|one| one.phase == phase).count();
                count(Phase::Told(Answer::InsufficientStock)) == 1 && state.requests.iter().all(Request::is_answered)
            }),
        ]
    }
}

/// Whether anything comes next; that a request may give up does not count.
fn can_go_on(model: &Groups, state: &State) -> bool {
    let mut actions = Vec::new();
    model.actions(state, &mut actions);
    actions.retain(|action| !matches!(action, Action::GiveUp { .. }));
    actions.into_iter().any(|action| model.next_state(state, action).is_some())
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// How many steps the longest order of events has from here on; `None` if there is one without an end, in which a state
/// comes again. `known` are the states that were looked at, and those on the way here.
fn longest(model: &Groups, state: &State, known: &mut HashMap<u64, Option<usize>>) -> Option<usize> {
    let at = BuildHasherDefault::<DefaultHasher>::default().hash_one(state);
    if let Some(steps) = known.get(&at) {
        return *steps;
    }
    known.insert(at, None);
    let mut steps = 0;
    for (_, next) in model.next_steps(state) {
        steps = steps.max(1 + longest(model, &next, known)?);
    }
    known.insert(at, Some(steps));
    Some(steps)
}

fn longest_of_all(model: &Groups) -> Option<usize> {
    let mut known = HashMap::new();
    let mut steps = 0;
    for state in model.init_states() {
        steps = steps.max(longest(model, &state, &mut known)?);
    }
    Some(steps)
}

#[test]
fn every_order_of_events_gives_true_answers() {
    let mut happened = BTreeSet::new();
    for world in &WORLDS {
        let checker = Groups { world, bug: Bug::None }.checker().threads(threads()).spawn_bfs().join();
        println!("{}: {} states, all that there are", world.about, checker.unique_state_count());
        for property in checker.model().properties() {
            match property.expectation {
                Expectation::Sometimes => happened.extend(checker.discovery(property.name).map(|_| property.name)),
                _ => checker.assert_no_discovery(property.name),
            }
        }
    }
    // That the model goes where it should.
    let model = Groups { world: &WORLDS[0], bug: Bug::None };
    for property in model.properties() {
        let sometimes = property.expectation == Expectation::Sometimes;
        assert!(!sometimes || happened.contains(property.name), "never: {}", property.name);
    }
}

/// And none ends while a request waits, as a property says: each request gets its answer, whatever the order.
#[test]
fn every_order_of_events_ends() {
    for world in &WORLDS {
        match longest_of_all(&Groups { world, bug: Bug::None }) {
            Some(steps) => println!("{}: at most {steps} steps", world.about),
            None => panic!("{}: an order without an end", world.about),
        }
    }
}

#[test]
fn every_rule_is_needed() {
    for bug in BUGS {
        let broken = WORLDS.iter().find_map(|world| {
            let checker = Groups { world, bug }.checker().threads(threads());
            let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
            let promises =
                checker.model().properties().into_iter().filter(|one| one.expectation == Expectation::Always);
            let broken: Vec<_> =
                promises.filter(|one| checker.discovery(one.name).is_some()).map(|one| one.name).collect();
            (!broken.is_empty()).then(|| format!("{} ({})", broken.join("; "), world.about))
        });
        match broken {
            Some(broken) => println!("{bug:?}: broken: {broken}"),
            None => panic!("{bug:?} breaks nothing"),
        }
    }
    for bug in ENDLESS {
        let endless = WORLDS.iter().find(|world| longest_of_all(&Groups { world, bug }).is_none());
        match endless {
            Some(world) => println!("{bug:?}: no end ({})", world.about),
            None => panic!("{bug:?}: every order ends"),
        }
    }
}
