//! Deterministic simulation: Holdfast's real functions in a simulated AWS, driven by one seed.
//!
//! The handlers, the store and the AWS SDKs are the real ones; only the wire is fake. Behind it are dynoxide for
//! DynamoDB, and models of SQS and EventBridge Scheduler that behave as badly as AWS allows. Time is simulated: the
//! runtime's clock is paused, and advances only when every task waits. The order of tasks, and which calls are lost,
//! delayed, duplicated or killed, is drawn from the seed: the same seed gives the same history, byte for byte.
//!
//! - `plan`: what the actors do, from a seed; `faults`: what goes wrong
//! - `world`: AWS behind the wire; `services`, `table`, `dynamo`: its SQS, Scheduler and DynamoDB; `told`: its calls in
//!   the history
//! - `cloud`: environments of the functions, killed, frozen and started cold
//! - `events`: what invokes the functions besides requests: schedules, the sweep, the queue
//! - `clients`: customers and admins
//! - `books`, `promises`: what must always hold, checked after every write; `past`: earlier states of the table
//! - `judge`: whether one answer was true; `journal`, `model`: whether all answers together are consistent
//! - `run`: one history from start to end; `shrink`: the smallest part of a failing history that still fails
//! - [`planted`]: bugs that the promises must catch

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
