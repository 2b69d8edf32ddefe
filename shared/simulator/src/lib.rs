//! Holdfast's functions, as they are, in a world that one seed decides.
//!
//! The handlers, the store and the AWS SDKs are the real ones; the wire is the only fake. Behind it is dynoxide for
//! DynamoDB, and models of SQS and EventBridge Scheduler that behave as badly as AWS allows. Time stops except for
//! the runtime's own clock, which moves when everybody waits. Who goes first, what is lost, delayed, doubled or killed,
//! is drawn from the seed: the same seed gives the same history, byte for byte.
//!
//! - `plan`: from a seed to who does what; `faults`: what goes wrong
//! - `world`: the far side of the wire; `services`, `table`, `dynamo`: SQS, Scheduler, DynamoDB behind it; `told`: how
//!   the history tells of it
//! - `cloud`: environments of the functions, killed, frozen and started cold
//! - `events`: what calls them by itself: schedules, the sweep, the queue
//! - `clients`: customers and admins
//! - `books`, `promises`: what must always hold, checked after every write; `past`: the table as it was
//! - `judge`: whether an answer was true; `journal`, `model`: whether all answers together can be
//! - `run`: one history from start to end; `shrink`: the smallest part of it that still fails
//! - [`planted`]: bugs that must be caught

mod books;
mod clients;
mod cloud;
mod dynamo;
mod events;
mod faults;
mod history;
mod journal;
mod judge;
mod model;
mod past;
mod plan;
pub mod planted;
mod promises;
mod run;
mod services;
mod shrink;
mod table;
mod told;
mod world;

pub use books::Violation;
pub use faults::{Fault, PerFault};
pub use plan::Part;
pub use run::{Outcome, history, seconds};
pub use shrink::{Smaller, shrink};
