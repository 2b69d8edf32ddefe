//! HTTP as every function speaks it: who calls, what they may send, and how a refusal looks.
//!
//! - [`Caller`], [`Admin`]: the verified caller, as an argument of a handler
//! - [`Json`], [`Query`], [`Key`]: input, parsed and within its limits
//! - [`Problem`]: the one place where a refusal becomes a status; [`codes`]: what is promised of each
//! - [`serve`]: what surrounds every router
//! - [`schema`]: the domain's values in the API's description

mod caller;
pub mod codes;
mod input;
mod problem;
pub mod schema;
mod serve;
mod view;

pub use caller::{Admin, Authenticator, Caller, LOCAL_AUDIENCE, LOCAL_ISSUER, Role};
pub use input::{Json, Key, ListQuery, MAX_BODY_BYTES, Object, Query, path_id, some};
pub use problem::Problem;
pub use serve::{about_reservation, serve};
pub use view::{ApiTime, List, ProductView, ReservationView};
