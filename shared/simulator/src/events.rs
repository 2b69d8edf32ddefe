//! What invokes the functions besides requests: schedules, the recurring sweep, the queue's event source.

use holdfast_testkit::fixtures::CONFIRMATIONS;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{sleep, sleep_until};

use crate::cloud::{Cloud, Function};
use crate::faults::Fault;
use crate::services::{Delivery, Made};
use crate::world::{State, millis};

/// The period of the sweep, as in template.yaml.
const SWEEP_MS: u64 = 60_000;

/// Scheduler: one-time schedules fire up to a minute late, and sometimes twice, later, or never.
pub(crate) async fn schedule(cloud: &Cloud, mut to_fire: mpsc::UnboundedReceiver<Made>) {
    while let Some(Made { name, at_ms, input }) = to_fire.recv().await {
        let world = &cloud.world;
        let now = world.now();
        let (delays, completed) = {
            let mut state = world.lock();
            let State { random, faults, .. } = &mut *state;
            let wait = u64::try_from(at_ms - now).unwrap_or_default();
            let mut fires = wait + random.u64(0..60_000);
            if faults.strikes(random, Fault::EventLate) {
                fires += random.u64(60_000..600_000);
            }
            let mut delays = vec![fires];
            if faults.strikes(random, Fault::EventTwice) {
                delays.push(fires + random.u64(0..90_000));
            }
            if faults.strikes(random, Fault::EventLost) {
                delays.clear();
            }
            (delays, fires)
        };
        for delay in delays {
            let (cloud, input, name) = (cloud.clone(), input.clone(), name.clone());
            world.start(async move {
                sleep(millis(delay)).await;
                cloud.world.note(format_args!("schedule {name} fires"));
                // An event that fails is retried twice.
                for _ in 0..3 {
                    if cloud.invoke(Function::Expire, input.clone()).await.is_some() {
                        break;
                    }
                    sleep(millis(60_000)).await;
                }
            });
        }
        let (after, world) = (millis(completed), world.clone());
        crate::world::go(async move {
            sleep(after).await;
            world.lock().schedules.completed(&name);
        });
    }
}

/// The recurring sweep.
pub(crate) async fn sweep(cloud: &Cloud) {
    let world = &cloud.world;
    loop {
        // Without holds and dead letters a sweep finds nothing, and weeks of such sweeps would take long to simulate.
        while !world.lock().something_to_sweep(world.now()) {
            world.something().await;
        }
        sleep_until(world.next(SWEEP_MS)).await;
        let lost = {
            let mut state = world.lock();
            let State { random, faults, .. } = &mut *state;
            faults.strikes(random, Fault::SweepLost)
        };
        if lost {
            continue;
        }
        let cloud = cloud.clone();
        world.start(async move {
            cloud.invoke(Function::Expire, json!({ "kind": "sweep" })).await;
        });
    }
}

/// The queue's event source: passes batches to `confirm`, and deletes the messages that succeeded.
pub(crate) async fn poll(cloud: &Cloud) {
    let world = &cloud.world;
    loop {
        let Some(visible_at) = world.lock().queues.next_visible(CONFIRMATIONS) else {
            world.mail().await;
            continue;
        };
        let hidden_ms = u64::try_from(visible_at - world.now()).unwrap_or_default();
        if hidden_ms > 0 {
            // Wait until it is visible, or another message is sent.
            tokio::select! {
                biased;
                () = world.mail() => continue,
                () = sleep(millis(hidden_ms)) => {}
            }
        }
        let wait = world.lock().random.u64(100..3_000);
        sleep(millis(wait)).await;
        let now = world.now();
        let batch = {
            let mut state = world.lock();
            let State { queues, random, faults, .. } = &mut *state;
            let most = random.usize(1..=10);
            queues.receive(CONFIRMATIONS, (most, true), now, random, faults)
        };
        // SQS may have moved a message to the dead-letter queue instead.
        world.swept();
        if batch.is_empty() {
            continue;
        }
        let cloud = cloud.clone();
        world.start(async move { deliver(&cloud, batch).await });
    }
}

async fn deliver(cloud: &Cloud, batch: Vec<Delivery>) {
    let records: Vec<Value> = batch
        .iter()
        .map(|delivery| {
            json!({
                "messageId": delivery.id, "receiptHandle": delivery.receipt, "body": delivery.body,
                "attributes": {
                    "ApproximateReceiveCount": delivery.receives.to_string(),
                    "SentTimestamp": delivery.sent_at.to_string(),
                }, "messageAttributes": {},
                "eventSource": "aws:sqs", "eventSourceARN": "arn:aws:sqs:us-east-1:123456789012:confirmations",
                "awsRegion": "us-east-1",
            })
        })
        .collect();
    let world = &cloud.world;
    let ids: Vec<String> =
        batch.iter().map(|delivery| format!("{} (receive {})", delivery.id, delivery.receives)).collect();
    world.note(format_args!("the queue delivers {}", ids.join(", ")));
    let Some(answer) = cloud.invoke(Function::Confirm, json!({ "Records": records })).await else { return };
    world.note(format_args!("the batch is answered with {answer}"));
    let mut state = world.lock();
    for delivery in &batch {
        let failed = answer["batchItemFailures"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|failure| failure["itemIdentifier"] == delivery.id.as_str());
        let State { queues, random, faults, .. } = &mut *state;
        // If the deletion is lost, the message is delivered again.
        if !failed && !faults.strikes(random, Fault::MessageTwice) {
            queues.delete(&delivery.receipt);
        }
    }
    drop(state);
    world.check_promises();
}
