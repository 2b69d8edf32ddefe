//! `cargo local demo`.

use holdfast_local::demo::{self, Pace};
use holdfast_local::stack::Options;

use crate::api::Api;

/// Beside other tests the race takes several times as long, so the tickets are held longer.
const BUSY: Pace = Pace { ticket_hold_seconds: 75 };

pub(crate) async fn the_demo_passes(_: Api) {
    let mut printed = Vec::new();
    let options = Options { proxy: None, ..crate::options() };
    let passed = demo::play(options, BUSY, |line| printed.push(line.to_owned())).await;
    let printed = printed.join("\n");
    assert!(passed.unwrap_or_else(|error| panic!("{error}\n{printed}")), "{printed}");
    for awaited in [
        "waiting for 85 holds to expire, about ",
        "waiting for their schedules to release them, about ",
        "The order of the print is cancelled, and the print is sold again",
    ] {
        assert!(printed.contains(awaited), "{awaited}: {printed}");
    }
}
