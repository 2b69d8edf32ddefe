//! For the end-to-end tests: a proxy between the functions and the emulator, and control of the emulator.
//!
//! - [`recorder`]: records the functions' AWS calls, and refuses some as if a service were away
//! - [`calls`]: the permissions that a call requires; [`iam`]: those that the roles of template.yaml allow
//! - [`Halts`]: freezes and stops the emulator
//!
//! A stack has one if [`Options::proxy`](holdfast_local::stack::Options::proxy) is a [`Wiretap`].

pub mod calls;
mod halts;
pub mod iam;
pub mod recorder;

pub use halts::Halts;

use calls::Names;
use futures_util::future::BoxFuture;
use holdfast_local::error::{Error, Result};
use holdfast_local::stack::{Deployed, Proxy, Stack};
use recorder::Recorder;
use std::any::Any;
use std::collections::BTreeMap;
use std::sync::OnceLock;

/// A recorder for the stack that starts it, and the roles to compare the calls with.
#[derive(Default)]
pub struct Wiretap {
    running: OnceLock<(Recorder, BTreeMap<String, iam::Role>)>,
}

impl std::fmt::Debug for Wiretap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Wiretap")
    }
}

impl Proxy for Wiretap {
    fn start<'a>(&'a self, deployed: Deployed<'a>) -> BoxFuture<'a, Result<String>> {
        Box::pin(async move {
            let Deployed { template, resources, endpoint_url, functions } = deployed;
            let roles = iam::roles(template, &resources.scope)?;
            let recorder = Recorder::start(endpoint_url, Names::new(resources)?, functions).await?;
            let url = recorder.url().to_owned();
            self.running.set((recorder, roles)).map_err(|_| Error::new("a wiretap serves one stack"))?;
            Ok(url)
        })
    }
}

/// The wiretap of a stack.
pub trait Tapped {
    /// The recorder, if the stack has one.
    fn recorder(&self) -> Option<&Recorder>;

    /// What each function's role allows, by the function's name; empty without a recorder.
    fn roles(&self) -> &BTreeMap<String, iam::Role>;
}

impl Tapped for Stack {
    fn recorder(&self) -> Option<&Recorder> {
        running(self).map(|(recorder, _)| recorder)
    }

    fn roles(&self) -> &BTreeMap<String, iam::Role> {
        static NONE: BTreeMap<String, iam::Role> = BTreeMap::new();
        running(self).map_or(&NONE, |(_, roles)| roles)
    }
}

fn running(stack: &Stack) -> Option<&(Recorder, BTreeMap<String, iam::Role>)> {
    let proxy: &dyn Any = stack.proxy()?;
    proxy.downcast_ref::<Wiretap>()?.running.get()
}
