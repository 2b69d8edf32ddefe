//! HTTP as every function speaks it: who calls, what they may send, and how a refusal looks.
//!
//! - [`Caller`], [`Customer`], [`Admin`]: the verified caller, as an argument of a handler
//! - [`Json`], [`Query`], [`Key`]: input, parsed and within its limits
//! - [`cached`](fn@cached): answers that callers may keep
//! - [`limited`]: how often a customer may ask
//! - [`Problem`]: the one place where a refusal becomes a status
//! - [`serve`]: what surrounds every router

mod cached;
mod caller;
mod input;
mod limit;
mod problem;
mod serve;
mod view;

pub use cached::cached;
pub use caller::{Admin, Authenticator, Caller, Customer, LOCAL_AUDIENCE, LOCAL_ISSUER};
pub use input::{Json, Key, ListQuery, MAX_BODY_BYTES, Object, Query, path_id, some};
pub use limit::{Limiter, limited};
pub use problem::Problem;
pub use serve::{about_reservation, serve};
pub use view::{ApiTime, List, ProductView, ReservationView};
