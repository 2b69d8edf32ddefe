//! What all HTTP handlers share: callers, input, problems, views.
//!
//! - [`Caller`], [`Customer`], [`Admin`], [`Reader`]: the verified caller, as an argument of a handler
//! - [`Json`], [`Recorded`], [`Query`], [`Key`]: input, parsed and checked
//! - [`cached`](fn@cached): cacheable responses; [`Files`]: a page's files
//! - [`limited`]: the rate limit per customer
//! - [`Problem`]: the one place where a refusal becomes a response; [`codes`]: the table of problems
//! - [`budgets`]: how long things may take
//! - [`serve`]: the layers around every router
//! - [`schema`]: the domain's values in the API description

pub mod budgets;
mod cached;
mod caller;
pub mod codes;
mod event;
pub mod examples;
mod files;
mod input;
mod limit;
#[cfg(feature = "local-sign-in")]
mod local_sign_in;
mod misfit;
mod problem;
pub mod schema;
mod serve;
mod view;

pub use cached::{cached, etag_matches};
pub use caller::{Admin, Authenticator, Caller, Customer, Reader, SERVICE_SCOPE};
pub use event::handle;
pub use files::Files;
pub use input::{Json, Key, ListQuery, MAX_BODY_BYTES, NoQuery, Object, Query, Recorded, nullable, path_id};
pub use limit::{Limiter, limited};
#[cfg(feature = "local-sign-in")]
pub use local_sign_in::{LOCAL_AUDIENCE, LOCAL_ISSUER};
pub use problem::Problem;
pub use serve::{Named, Outcome, serve};
pub use view::{ApiTime, List, ProductView, ReservationView};
