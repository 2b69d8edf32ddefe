//! `cargo local up`: it ends when a part ends.

use holdfast_local::stack::{Options, Stack};
use rustix::process::{Pid, Signal, kill_process_group};

use crate::api::{Api, PATIENCE};

pub(crate) async fn the_end_of_a_part_is_noticed(_: Api) {
    let options = Options { proxy: None, concurrency: 1, ..crate::options() };
    let mut stack = Stack::start(options).await.unwrap();
    let watch = i32::try_from(stack.watch_id().unwrap()).ok().and_then(Pid::from_raw).unwrap();
    kill_process_group(watch, Signal::KILL).unwrap();
    let why = tokio::time::timeout(PATIENCE, stack.ended()).await.expect("the end of watch");
    assert!(why.contains("cargo lambda watch ended (signal: 9"), "{why}");

    let emulator = stack.emulator().unwrap();
    // An emulator that others use is not ended here.
    if let Some(ministack) = emulator.ministack() {
        ministack.signal(Signal::KILL).await.unwrap();
        let why = tokio::time::timeout(PATIENCE, emulator.ended()).await.expect("the end of ministack");
        assert!(why.contains("ministack ended (signal: 9"), "{why}");
    }
    stack.stop().await;
}
