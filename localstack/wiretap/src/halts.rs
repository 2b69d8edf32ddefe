//! Freezes and stops the emulator.

use holdfast_local::emulator::{Emulator, Ministack};
use holdfast_local::error::{Error, Result};
use rustix::process::Signal;
use std::time::Duration;

/// How long ministack may take to write its state and end.
const HALT: Duration = Duration::from_secs(20);

/// Makes an emulator unreachable for a while. Only a ministack that the stack started can be halted.
pub trait Halts {
    /// Suspends its process (SIGSTOP): connections stay open, and nothing is answered.
    ///
    /// # Errors
    /// It cannot be halted, or does not run.
    fn freeze(&self) -> impl Future<Output = Result<()>>;

    /// Ends [`Halts::freeze`]. Requests that arrived meanwhile are executed now, even if nobody waits for them.
    ///
    /// # Errors
    /// It cannot be halted, or does not run.
    fn thaw(&self) -> impl Future<Output = Result<()>>;

    /// Stops its process: connections are refused. It writes its state first, so that no response is undone.
    ///
    /// # Errors
    /// It cannot be halted, does not keep its state, or does not end by itself.
    fn halt(&self) -> impl Future<Output = Result<()>>;

    /// Ends [`Halts::halt`]: it continues with its state.
    ///
    /// # Errors
    /// It cannot be halted or started.
    fn restart(&self) -> impl Future<Output = Result<()>>;
}

impl Halts for Emulator {
    async fn freeze(&self) -> Result<()> {
        ministack(self)?.signal(Signal::STOP).await
    }

    async fn thaw(&self) -> Result<()> {
        ministack(self)?.signal(Signal::CONT).await
    }

    async fn halt(&self) -> Result<()> {
        let ministack = ministack(self)?;
        if !ministack.keeps_state() {
            return Err(Error::new("this ministack would lose its state"));
        }
        let mut process = ministack.take_process().await.ok_or_else(|| Error::new("ministack does not run"))?;
        process.signal(Signal::TERM);
        // One that does not end in time is killed as it is dropped.
        let ended = tokio::time::timeout(HALT, process.wait()).await;
        ended.map_err(|_| Error::new(format!("ministack did not end within {HALT:?}")))?.map(drop)
    }

    async fn restart(&self) -> Result<()> {
        ministack(self)?.run().await
    }
}

fn ministack(emulator: &Emulator) -> Result<&Ministack> {
    emulator.ministack().ok_or_else(|| Error::new("only a ministack that the stack started can be halted"))
}
