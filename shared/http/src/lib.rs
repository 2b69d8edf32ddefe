//! HTTP as every function speaks it: who calls, what they may send, and how a refusal looks.
//!
//! - [`Caller`], [`Customer`], [`Admin`]: the verified caller, as an argument of a handler
//! - [`Json`], [`Query`], [`Key`]: input, parsed and within its limits
//! - [`cached`](fn@cached): answers that callers may keep
//! - [`limited`]: how often a customer may ask
//! - [`Problem`]: the one place where a refusal becomes a status; [`codes`]: what is promised of each
//! - [`serve`]: what surrounds every router
//! - [`schema`]: the domain's values in the API's description

mod cached;
mod caller;
pub mod codes;
mod event;
mod input;
mod limit;
mod problem;
pub mod schema;
mod serve;
mod view;

pub use cached::{cached, knows};
pub use caller::{Admin, Authenticator, Caller, Customer, LOCAL_AUDIENCE, LOCAL_ISSUER};
pub use event::handle;
pub use input::{Json, Key, ListQuery, MAX_BODY_BYTES, NoQuery, Object, Query, path_id, some};
pub use limit::{Limiter, limited};
pub use problem::Problem;
pub use serve::{about_reservation, serve};
pub use view::{ApiTime, List, ProductView, ReservationView};
