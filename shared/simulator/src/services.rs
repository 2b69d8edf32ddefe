//! SQS and EventBridge Scheduler at their worst: at-least-once delivery, in any order, late.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use holdfast_testkit::fixtures::{CONFIRMATIONS, FAILED};
use serde_json::{Value, json};

use crate::faults::{Fault, Faults};

/// The settings of the queues are those of the stack's template.
static TEMPLATE: &str = include_str!("../../../template.yaml");
/// The visibility timeout of the confirmations queue in template.yaml.
const CONFIRMATIONS_VISIBILITY_MS: i64 = 60_000;
/// SQS's default visibility timeout, which the dead-letter queue has.
const DEFAULT_VISIBILITY_MS: i64 = 30_000;
/// How long the confirmations queue keeps a message.
const RETENTION_MS: i64 = 4 * 86_400_000;
/// How long the dead-letter queue keeps a message, counted from when it was first sent, to whichever queue.
const FAILED_RETENTION_MS: i64 = 14 * 86_400_000;

/// After this many receives a message moves to the dead-letter queue.
static MOST_RECEIVES: LazyLock<u32> = LazyLock::new(|| {
    let line = TEMPLATE.lines().find_map(|line| line.trim().strip_prefix("maxReceiveCount:"));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(u32::MAX)
});

/// A message in a queue.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    pub(crate) id: String,
    pub(crate) queue: String,
    pub(crate) body: String,
    receipt: String,
    visible_at: i64,
    receives: u32,
    sent_at: i64,
    /// When it arrived in its current queue.
    pub(crate) arrived_at: i64,
}

impl Message {
    fn forgotten(&self, now: i64) -> bool {
        let kept_ms = if self.queue == CONFIRMATIONS { RETENTION_MS } else { FAILED_RETENTION_MS };
        now - self.sent_at >= kept_ms
    }
}

/// A received message.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) id: String,
    pub(crate) body: String,
    pub(crate) receipt: String,
    pub(crate) receives: u32,
    pub(crate) sent_at: i64,
}

/// All queues.
#[derive(Debug, Default)]
pub(crate) struct Queues {
    pub(crate) messages: Vec<Message>,
    made: u64,
}

impl Queues {
    pub(crate) fn send(&mut self, queue: &str, body: &str, now: i64) -> String {
        self.made += 1;
        let id = format!("m{}", self.made);
        self.messages.push(Message {
            id: id.clone(),
            queue: queue.to_owned(),
            body: body.to_owned(),
            receipt: String::new(),
            visible_at: now,
            receives: 0,
            sent_at: now,
            arrived_at: now,
        });
        id
    }

    /// Deletes messages whose retention period is over.
    pub(crate) fn forget(&mut self, now: i64) {
        self.messages.retain(|message| !message.forgotten(now));
    }

    /// When the next message of a queue becomes visible; `None` if the queue is empty.
    pub(crate) fn next_visible(&self, queue: &str) -> Option<i64> {
        self.of(queue).map(|message| message.visible_at).min()
    }

    /// Up to `most` of the visible messages, in random order. A receive without long polling asks only some of the
    /// servers, and may miss any message.
    pub(crate) fn receive(
        &mut self,
        queue: &str,
        (most, waits): (usize, bool),
        now: i64,
        random: &mut fastrand::Rng,
        faults: &mut Faults,
    ) -> Vec<Delivery> {
        let hidden_ms = if queue == CONFIRMATIONS { CONFIRMATIONS_VISIBILITY_MS } else { DEFAULT_VISIBILITY_MS };
        self.forget(now);
        let mut visible: Vec<usize> = (0..self.messages.len())
            .filter(|&at| self.messages[at].queue == queue && self.messages[at].visible_at <= now)
            .collect();
        random.shuffle(&mut visible);
        visible.truncate(most);
        if !waits && !visible.is_empty() && faults.strikes(random, Fault::ShortPoll) {
            let seen = random.usize(0..visible.len());
            visible.truncate(seen);
        }
        let mut received = Vec::new();
        for at in visible {
            self.made += 1;
            let receipt = format!("r{}", self.made);
            let twice = faults.strikes(random, Fault::MessageTwice);
            let message = &mut self.messages[at];
            if queue == CONFIRMATIONS && message.receives >= *MOST_RECEIVES {
                FAILED.clone_into(&mut message.queue);
                (message.visible_at, message.arrived_at, message.receives) = (now, now, 0);
                // A receipt is one of the queue that gave it.
                message.receipt.clear();
                continue;
            }
            message.receives += 1;
            message.receipt.clone_from(&receipt);
            // A duplicate delivery is a message that was not hidden.
            message.visible_at = if twice { now } else { now + hidden_ms };
            let Message { id, body, receives, sent_at, .. } = message.clone();
            received.push(Delivery { id, body, receipt, receives, sent_at });
        }
        received
    }

    /// Deletes the message whose latest receive gave this receipt; an older receipt deletes nothing.
    pub(crate) fn delete(&mut self, receipt: &str) {
        self.messages.retain(|message| message.receipt != receipt);
    }

    /// Hides the message with this receipt for that long from now. Returns whether there is one.
    fn hide(&mut self, receipt: &str, seconds: i64, now: i64) -> bool {
        let mut found = false;
        for message in self.messages.iter_mut().filter(|message| message.receipt == receipt) {
            message.visible_at = now + seconds * 1_000;
            found = true;
        }
        found
    }

    pub(crate) fn of<'a>(&'a self, queue: &'a str) -> impl Iterator<Item = &'a Message> {
        self.messages.iter().filter(move |message| message.queue == queue)
    }

    /// Whether a long poll has to go on waiting.
    pub(crate) fn would_wait(&self, request: &Value, now: i64) -> bool {
        let queue = request["QueueUrl"].as_str().unwrap_or_default();
        request["WaitTimeSeconds"].as_u64().is_some_and(|seconds| seconds > 0)
            && !self.of(queue).any(|message| message.visible_at <= now)
    }

    /// Executes an operation of SQS; `None` for any other.
    pub(crate) fn carry_out(
        &mut self,
        operation: &str,
        request: &Value,
        now: i64,
        random: &mut fastrand::Rng,
        faults: &mut Faults,
    ) -> Option<(u16, Value)> {
        let text = |member: &str| request[member].as_str().unwrap_or_default();
        Some(match operation {
            "SendMessage" => (200, json!({ "MessageId": self.send(text("QueueUrl"), text("MessageBody"), now) })),
            "ReceiveMessage" => {
                let most = request["MaxNumberOfMessages"].as_u64().and_then(|most| most.try_into().ok()).unwrap_or(1);
                let waits = request["WaitTimeSeconds"].as_u64().is_some_and(|seconds| seconds > 0);
                let received = self.receive(text("QueueUrl"), (most, waits), now, random, faults).into_iter();
                let messages = received.map(|delivery| {
                    json!({ "MessageId": delivery.id, "ReceiptHandle": delivery.receipt, "Body": delivery.body })
                });
                (200, json!({ "Messages": messages.collect::<Vec<_>>() }))
            }
            "DeleteMessage" => {
                self.delete(text("ReceiptHandle"));
                (200, json!({}))
            }
            "ChangeMessageVisibility" => {
                let seconds = request["VisibilityTimeout"].as_i64().unwrap_or_default();
                if self.hide(text("ReceiptHandle"), seconds, now) {
                    (200, json!({}))
                } else {
                    (400, json!({ "__type": "com.amazonaws.sqs#MessageNotInflight", "message": "it is gone" }))
                }
            }
            "ChangeMessageVisibilityBatch" => {
                let entries = request["Entries"].as_array().into_iter().flatten();
                let (mut done, mut failed) = (Vec::new(), Vec::new());
                for entry in entries {
                    let receipt = entry["ReceiptHandle"].as_str().unwrap_or_default();
                    if self.hide(receipt, entry["VisibilityTimeout"].as_i64().unwrap_or_default(), now) {
                        done.push(json!({ "Id": entry["Id"] }));
                    } else {
                        failed.push(json!({ "Id": entry["Id"], "Code": "MessageNotInflight", "SenderFault": true }));
                    }
                }
                (200, json!({ "Successful": done, "Failed": failed }))
            }
            _ => return None,
        })
    }
}

/// One-time schedules.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    /// The names of pending schedules.
    waiting: BTreeSet<String>,
    /// The times of all schedules ever created, in seconds since the epoch.
    pub(crate) made: BTreeSet<i64>,
}

/// A schedule that was just created.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) name: String,
    pub(crate) at_ms: i64,
    pub(crate) input: Value,
}

impl Schedules {
    /// Executes `CreateSchedule`.
    pub(crate) fn create(&mut self, request: &Value) -> ((u16, Value), Option<Made>) {
        let name = request["Name"].as_str().unwrap_or_default().to_owned();
        let refused = |code: &str| ((400, json!({ "__type": code, "Message": "no" })), None);
        let Some(at) = request["ScheduleExpression"].as_str().and_then(seconds_of) else {
            return refused("ValidationException");
        };
        if request["ActionAfterCompletion"] != "DELETE" {
            return refused("ValidationException");
        }
        if !self.waiting.insert(name.clone()) {
            return ((409, json!({ "__type": "ConflictException", "Message": "it exists already" })), None);
        }
        self.made.insert(at);
        let input = request["Target"]["Input"].as_str().and_then(|input| serde_json::from_str(input).ok());
        let made = Made { name: name.clone(), at_ms: at * 1_000, input: input.unwrap_or_default() };
        ((200, json!({ "ScheduleArn": format!("arn:aws:scheduler:::schedule/holds/{name}") })), Some(made))
    }

    /// Deletes a schedule that has fired.
    pub(crate) fn completed(&mut self, name: &str) {
        self.waiting.remove(name);
    }
}

/// The time of `at(yyyy-mm-ddThh:mm:ss)`, in seconds since the epoch.
fn seconds_of(expression: &str) -> Option<i64> {
    let text = expression.strip_prefix("at(")?.strip_suffix(')')?;
    let mut parts = text.split(['-', 'T', ':']).map(str::parse::<i64>);
    let mut next = || parts.next()?.ok();
    let (year, month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?, next()?);
    // Days from the civil calendar, with years that start in March.
    let shifted = if month > 2 { year } else { year - 1 };
    let era = shifted.div_euclid(400);
    let of_era = shifted - era * 400;
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3_600 + minute * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queues_are_those_of_the_template() {
        assert!((1..=1_000).contains(&*MOST_RECEIVES), "{}", *MOST_RECEIVES);
        for (text, value) in [
            ("VisibilityTimeout: ", CONFIRMATIONS_VISIBILITY_MS),
            ("MessageRetentionPeriod: ", RETENTION_MS),
            ("MessageRetentionPeriod: ", FAILED_RETENTION_MS),
        ] {
            let line = format!("{text}{}", value / 1_000);
            assert!(TEMPLATE.contains(&line), "{line}");
        }
    }

    #[test]
    fn a_message_is_forgotten_after_four_days_or_fourteen_from_when_it_was_sent() {
        const DAY: i64 = 86_400_000;
        let mut queues = Queues::default();
        queues.send(CONFIRMATIONS, "a", 0);
        queues.send(FAILED, "b", 0);
        let left = |queues: &Queues| queues.messages.iter().map(|message| message.body.clone()).collect::<Vec<_>>();
        queues.forget(4 * DAY - 1);
        assert_eq!(left(&queues), ["a", "b"]);
        queues.forget(4 * DAY);
        assert_eq!(left(&queues), ["b"]);
        queues.forget(14 * DAY);
        assert_eq!(left(&queues), [""; 0]);
    }

    #[test]
    fn a_receive_that_does_not_wait_may_miss_a_message_and_one_that_waits_does_not() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut faults = Faults { per_mille: [0; Fault::ALL.len()], on: true, injected: [0; Fault::ALL.len()] };
        faults.per_mille[Fault::ShortPoll as usize] = 1_000;
        let mut queues = Queues::default();
        queues.send(FAILED, "a", 0);
        let mut receive = |wait: Value| {
            let request = json!({ "QueueUrl": FAILED, "MaxNumberOfMessages": 10, "WaitTimeSeconds": wait });
            let answer = queues.carry_out("ReceiveMessage", &request, 0, &mut random, &mut faults);
            answer.unwrap().1["Messages"].as_array().unwrap().len()
        };
        assert_eq!(receive(Value::Null), 0);
        assert_eq!(receive(1.into()), 1);
    }

    #[test]
    fn a_message_is_hidden_for_as_long_as_its_receiver_says() {
        let mut random = fastrand::Rng::with_seed(1);
        let mut faults = Faults { per_mille: [0; Fault::ALL.len()], on: false, injected: [0; Fault::ALL.len()] };
        let mut queues = Queues::default();
        queues.send(CONFIRMATIONS, "a", 0);
        let delivery = queues.receive(CONFIRMATIONS, (1, true), 0, &mut random, &mut faults).remove(0);
        let hide = json!({ "QueueUrl": CONFIRMATIONS, "ReceiptHandle": delivery.receipt, "VisibilityTimeout": 900 });
        let answer = queues.carry_out("ChangeMessageVisibility", &hide, 1_000, &mut random, &mut faults);
        assert_eq!(answer.unwrap().0, 200);
        assert_eq!(queues.next_visible(CONFIRMATIONS), Some(901_000));
        let stale = json!({ "QueueUrl": CONFIRMATIONS, "ReceiptHandle": "r0", "VisibilityTimeout": 900 });
        let answer = queues.carry_out("ChangeMessageVisibility", &stale, 1_000, &mut random, &mut faults);
        assert_eq!(answer.unwrap().0, 400);
    }

    #[test]
    fn an_expression_names_its_second() {
        for (expression, seconds) in [
            ("at(1970-01-01T00:00:00)", 0),
            ("at(2025-11-21T04:40:00)", 1_763_700_000),
            ("at(2024-02-29T23:59:59)", 1_709_251_199),
        ] {
            assert_eq!(seconds_of(expression), Some(seconds), "{expression}");
        }
        assert_eq!(seconds_of("rate(1 minute)"), None);
    }
}
