//! The protocol by itself, in every order that there is: three customers, two shards of one unit each, and whatever can
//! become of a request on its way.
//!
//! An action here is what one DynamoDB write does, under the condition that shared/store gives it; what a function has
//! read before it writes stays true for it, however old it is. So every delay, every duplicate and every crash is in it:
//! what was read may be acted upon at any later time, any number of times, or never. Each environment has a clock of its
//! own: around a hold's end, some say that it is over and some that it is not.
//!
//! That the conditions are needed is shown by leaving each out: then the checker must find an order that goes wrong.
use stateright::{Checker, Model, Property};
use std::collections::BTreeSet;

const CUSTOMERS: usize = 3;
const SHARDS: usize = 2;
/// What only one of them does, since three doing everything would be more orders than can be looked at: this one's ended
/// hold is cleaned up, and the key used again.
const CLEANED_UP: usize = 0;
/// This one cancels.
const CANCELLING: usize = 1;
/// This one extends.
const EXTENDING: usize = 2;

/// What is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    /// Nothing: the protocol as it is.
    None,
    /// Reserve puts the reservation without `attribute_not_exists`.
    ReserveTwice,
    /// Reserve takes without `available >= :q`.
    ReserveWithoutUnits,
    /// A release does not ask whether the hold is still held.
    ReleaseWhateverItIs,
    /// A release does not ask whether the hold is the very one that was read (`created_at`).
    ReleaseAnother,
    /// A release does not ask the time again.
    ReleaseExtended,
    /// The end of the hold and the units are two writes, and a crash may come between them.
    ReleaseInTwoSteps,
    /// A confirmation does not ask whether the hold is still held.
    ConfirmWhateverItIs,
    /// A late confirmation of a hold that nobody has released does not ask whether that is still so.
    ConfirmLateWhateverItIs,
    /// A late confirmation takes units without asking whether the reservation has ended.
    RetakeWhateverItIs,
    /// A late confirmation of an ended hold takes no units.
    RetakeNothing,
    /// A late confirmation takes units that are not there.
    RetakeWithoutUnits,
    /// Only holds that ended may be cleaned up (`ttl`): here a held one is.
    CleanUpHolds,
}

const BUGS: [Bug; 12] = [
    Bug::ReserveTwice,
    Bug::ReserveWithoutUnits,
    Bug::ReleaseWhateverItIs,
    Bug::ReleaseAnother,
    Bug::ReleaseExtended,
    Bug::ReleaseInTwoSteps,
    Bug::ConfirmWhateverItIs,
    Bug::ConfirmLateWhateverItIs,
    Bug::RetakeWhateverItIs,
    Bug::RetakeNothing,
    Bug::RetakeWithoutUnits,
    Bug::CleanUpHolds,
];

/// Where the clocks of the environments are, as seen from a hold's end: they differ by seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Time {
    /// All say that there is time left.
    Left,
    /// Some say so.
    Around,
    /// None does.
    Over,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Status {
    Held,
    Confirmed,
    Ended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Reservation {
    status: Status,
    shard: usize,
    /// `created_at`: distinguishes a hold from a later one under the same key.
    created: u8,
    time: Time,
    extended: bool,
}

/// A hold as somebody read it who is about to release it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Read {
    customer: usize,
    shard: usize,
    created: u8,
    /// By its owner, who may cancel while there is time left.
    cancel: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct State {
    available: [i8; SHARDS],
    reservations: [Option<Reservation>; CUSTOMERS],
    /// How many holds this key had: one may be cleaned up, and another made.
    made: [u8; CUSTOMERS],
    read: BTreeSet<Read>,
    /// A confirmation was accepted in time: it is in a function, or in the queue.
    accepted: [bool; CUSTOMERS],
    /// A payment came late: the hold that its function read.
    late: [Option<u8>; CUSTOMERS],
    /// An order ceased to be one: its customer may have been told of it.
    order_lost: bool,
    /// A hold was taken away while all clocks said that there was time left.
    taken_early: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Reserve { customer: usize, shard: usize },
    Pass { customer: usize },
    Extend { customer: usize },
    Read(Read),
    Release(Read),
    ReleaseStatus(Read),
    Accept { customer: usize },
    Confirm { customer: usize },
    PayLate { customer: usize },
    ConfirmLate { customer: usize },
    Retake { customer: usize, shard: usize },
    CleanUp { customer: usize },
}

struct Protocol(Bug);

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State {
            available: [1; SHARDS],
            reservations: [None; CUSTOMERS],
            made: [0; CUSTOMERS],
            read: BTreeSet::new(),
            accepted: [false; CUSTOMERS],
            late: [None; CUSTOMERS],
            order_lost: false,
            taken_early: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for customer in 0..CUSTOMERS {
            for shard in 0..SHARDS {
                actions.push(Action::Reserve { customer, shard });
                actions.push(Action::Retake { customer, shard });
            }
            actions.extend([Action::Confirm { customer }, Action::ConfirmLate { customer }]);
            if customer == CLEANED_UP {
                actions.push(Action::CleanUp { customer });
            }
            let Some(reservation) = state.reservations[customer] else { continue };
            let held = reservation.status == Status::Held;
            if held {
                actions.push(Action::Pass { customer });
                if customer == EXTENDING {
                    actions.push(Action::Extend { customer });
                }
                if reservation.time < Time::Over {
                    actions.push(Action::Accept { customer });
                }
                let read = |cancel| Read { customer, shard: reservation.shard, created: reservation.created, cancel };
                if reservation.time > Time::Left {
                    actions.push(Action::Read(read(false)));
                }
                if reservation.time < Time::Over && customer == CANCELLING {
                    actions.push(Action::Read(read(true)));
                }
            }
            if reservation.time > Time::Left && reservation.status != Status::Confirmed {
                actions.push(Action::PayLate { customer });
            }
        }
        for &read in &state.read {
            actions.push(Action::Release(read));
            if self.0 == Bug::ReleaseInTwoSteps {
                actions.push(Action::ReleaseStatus(read));
            }
        }
    }

    /// `None` where the write's condition does not hold: nothing changes.
    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let bug = self.0;
        let mut next = state.clone();
        match action {
            Action::Reserve { customer, shard } => {
                let exists = state.reservations[customer].is_some();
                if (exists && bug != Bug::ReserveTwice)
                    || state.made[customer] > 1
                    || (state.available[shard] < 1 && bug != Bug::ReserveWithoutUnits)
                {
                    return None;
                }
                next.available[shard] -= 1;
                let created = state.made[customer];
                next.made[customer] += 1;
                next.reservations[customer] =
                    Some(Reservation { status: Status::Held, shard, created, time: Time::Left, extended: false });
            }
            Action::Pass { customer } => {
                let reservation = next.reservations[customer].as_mut()?;
                reservation.time = match reservation.time {
                    Time::Left => Time::Around,
                    Time::Around => Time::Over,
                    Time::Over => return None,
                };
            }
            Action::Extend { customer } => {
                let reservation = next.reservations[customer].as_mut()?;
                if reservation.extended || reservation.time == Time::Over {
                    return None;
                }
                (reservation.time, reservation.extended) = (Time::Left, true);
            }
            Action::Read(read) => {
                if !next.read.insert(read) {
                    return None;
                }
            }
            Action::Release(read) | Action::ReleaseStatus(read) => {
                let reservation = next.reservations[read.customer].as_mut()?;
                let held = reservation.status == Status::Held || bug == Bug::ReleaseWhateverItIs;
                let same = reservation.created == read.created || bug == Bug::ReleaseAnother;
                let over = read.cancel || reservation.time > Time::Left || bug == Bug::ReleaseExtended;
                if !(held && same && over) {
                    return None;
                }
                // Without the condition it would go on for ever.
                if bug == Bug::ReleaseWhateverItIs && state.available.iter().sum::<i8>() > 2 {
                    return None;
                }
                next.taken_early |= !read.cancel && reservation.time == Time::Left;
                reservation.status = Status::Ended;
                if matches!(action, Action::Release(_)) {
                    next.available[read.shard] += 1;
                }
            }
            Action::Accept { customer } => {
                if std::mem::replace(&mut next.accepted[customer], true) {
                    return None;
                }
            }
            Action::Confirm { customer } => {
                let reservation = next.reservations[customer].as_mut()?;
                let held = reservation.status == Status::Held || bug == Bug::ConfirmWhateverItIs;
                if !state.accepted[customer] || !held || reservation.status == Status::Confirmed {
                    return None;
                }
                reservation.status = Status::Confirmed;
            }
            Action::PayLate { customer } => {
                let created = next.reservations[customer]?.created;
                if next.late[customer].replace(created) == Some(created) {
                    return None;
                }
            }
            Action::ConfirmLate { customer } => {
                let reservation = next.reservations[customer].as_mut()?;
                let held = reservation.status == Status::Held || bug == Bug::ConfirmLateWhateverItIs;
                if state.late[customer] != Some(reservation.created) || !held || reservation.status == Status::Confirmed
                {
                    return None;
                }
                reservation.status = Status::Confirmed;
            }
            Action::Retake { customer, shard } => {
                let reservation = next.reservations[customer].as_mut()?;
                let ended = reservation.status == Status::Ended || bug == Bug::RetakeWhateverItIs;
                let enough = state.available[shard] >= 1 || bug == Bug::RetakeWithoutUnits;
                if state.late[customer] != Some(reservation.created) || !ended || !(enough || bug == Bug::RetakeNothing)
                {
                    return None;
                }
                if bug == Bug::RetakeWithoutUnits && state.available[shard] < 0 {
                    return None;
                }
                reservation.status = Status::Confirmed;
                reservation.shard = shard;
                if bug != Bug::RetakeNothing {
                    next.available[shard] -= 1;
                }
            }
            Action::CleanUp { customer } => {
                let reservation = next.reservations[customer].take()?;
                let may = reservation.status == Status::Ended
                    || (bug == Bug::CleanUpHolds && reservation.status == Status::Held);
                if !may {
                    return None;
                }
            }
        }
        let order = |found: &Option<Reservation>| found.is_some_and(|found| found.status == Status::Confirmed);
        let pairs = state.reservations.iter().zip(&next.reservations);
        next.order_lost |= pairs.into_iter().any(|(before, after)| order(before) && !order(after));
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("each shard's unit is available, held or sold: once", |_, state: &State| {
                (0..SHARDS).all(|shard| {
                    let mine = |found: &&Reservation| found.shard == shard && found.status != Status::Ended;
                    let taken = state.reservations.iter().flatten().filter(mine).count();
                    usize::try_from(state.available[shard]).is_ok_and(|available| available + taken == 1)
                })
            }),
            Property::always("an order stays one", |_, state: &State| !state.order_lost),
            Property::always("no hold is taken away before its time", |_, state: &State| !state.taken_early),
            // That the model goes where it should.
            Property::sometimes("both units are sold", |_, state: &State| {
                state.reservations.iter().flatten().filter(|found| found.status == Status::Confirmed).count() == 2
            }),
            Property::sometimes("a late payment gets another unit than it held", |_, state: &State| {
                (0..CUSTOMERS).any(|customer| {
                    state.reservations[customer].is_some_and(|found| {
                        let other = |read: &Read| read.customer == customer && read.shard != found.shard;
                        found.status == Status::Confirmed && state.read.iter().any(other)
                    })
                })
            }),
            Property::sometimes("a key is used again after its first hold was cleaned up", |_, state: &State| {
                state.reservations.iter().flatten().any(|found| found.created == 1)
            }),
        ]
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

#[test]
fn every_order_of_events_keeps_the_promises() {
    let checker = Protocol(Bug::None).checker().threads(threads()).spawn_bfs().join();
    println!("{} states, all that there are", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn every_condition_is_needed() {
    for bug in BUGS {
        let checker = Protocol(bug).checker().threads(threads()).target_max_depth(14).spawn_bfs().join();
        let broken = checker.discoveries().into_keys().find(|name| {
            // The others are found in good orders too.
            !name.starts_with("both") && !name.starts_with("a late") && !name.starts_with("a key")
        });
        match broken {
            Some(promise) => println!("{bug:?}: broken: {promise}"),
            None => panic!("{bug:?} breaks nothing, in {} states", checker.unique_state_count()),
        }
    }
}
