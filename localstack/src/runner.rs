//! Plays the cloud's triggers (one file for schedules and queues, which share the reporter). No emulator can call a
//! function of `cargo lambda watch`, so the runner fires due schedules and delivers messages of queues.
//!
//! Invariants:
//! - **A schedule fires at least once**, as EventBridge's do. One that was seen is remembered, so it fires even if the
//!   emulator deletes it first: ministack fires one-time schedules itself, without a function, and deletes them then.
//!   (LocalStack keeps them and never fires them.) The list is read every second and ministack looks every ten, so a
//!   schedule that is made more than a second ahead of its time is always seen; Holdfast's are made ten ahead.
//! - **A message is deleted only when the function took it**: not when the call failed, and not when the function
//!   names it among `batchItemFailures`. It comes back when its visibility timeout is over: the one that the function set
//!   for it, or the queue's own. After the queue's `maxReceiveCount` the emulator itself moves it to the dead-letter
//!   queue.

use crate::aws::Clients;
use crate::error::chain;
use crate::gateway::Upstream;
use crate::template::{RecurringSchedule, function_name};
use aws_sdk_scheduler::operation::delete_schedule::DeleteScheduleError;
use aws_sdk_scheduler::operation::get_schedule::{GetScheduleError, GetScheduleOutput};
use aws_sdk_scheduler::types::{ActionAfterCompletion, ScheduleState};
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName,
};
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;
use time::format_description::well_known::{Iso8601, Rfc3339};
use time::{OffsetDateTime, PrimitiveDateTime};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

/// How often the schedules are listed, and so the precision with which they fire. EventBridge's is a minute.
const LIST_EVERY: Duration = Duration::from_secs(1);
/// ministack gives one page and no token for the next, so the page must hold all. (EventBridge's limit is 100.)
const PAGE: i32 = 1_000;
/// The longest that one receive waits for a message: SQS's own limit.
const LONG_POLL_SECONDS: i32 = 20;
/// The first and the longest pause between attempts of a failed call.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// EventBridge's own limits where a schedule sets none.
const MOST_RETRIES: i32 = 185;
const LONGEST_RETRY_SECONDS: i32 = 86_400;

/// Which of the cloud's triggers to play. A test can disable one to do it by hand.
#[derive(Clone, Debug)]
pub struct Options {
    /// One-time schedules, from the emulator.
    pub one_time_schedules: bool,
    /// Recurring schedules, from the template.
    pub recurring_schedules: bool,
    /// Messages, from the queues that call functions.
    pub queues: bool,
    /// The delay of a failed message, in place of the one that the function set. `None`: as the function set it, or the
    /// queue's visibility timeout.
    pub visibility_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self { one_time_schedules: true, recurring_schedules: true, queues: true, visibility_timeout: None }
    }
}

/// A queue that calls a function.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The queue's name in the template.
    pub id: String,
    /// The queue.
    pub url: String,
    /// The queue's ARN, which the function sees.
    pub arn: String,
    /// The function.
    pub function: String,
    /// The most messages in one call.
    pub batch_size: i32,
    /// Whether the function reports single failures.
    pub partial_failures: bool,
}

/// What the runner did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A schedule's function succeeded.
    Fired {
        /// The schedule's name, or its id in the template for a recurring one.
        schedule: String,
        /// The function.
        function: String,
        /// Number of calls.
        attempts: u32,
    },
    /// A call for a schedule failed. It will be retried.
    FireFailed {
        /// The schedule's name.
        schedule: String,
        /// Why.
        why: String,
    },
    /// A schedule failed for good; its input went to its dead-letter queue if it has one.
    GivenUp {
        /// The schedule's name.
        schedule: String,
    },
    /// A schedule of a kind that the runner cannot play. It will not fire.
    Unplayable {
        /// The schedule's name.
        schedule: String,
        /// Why.
        why: String,
    },
    /// A function took messages.
    Delivered {
        /// The queue's name in the template.
        queue: String,
        /// The messages that it took, which are deleted.
        taken: Vec<String>,
        /// The messages that it reported as failed, which come back.
        failed: Vec<String>,
    },
    /// A call with messages failed. All of them come back.
    DeliveryFailed {
        /// The queue's name in the template.
        queue: String,
        /// The messages.
        messages: Vec<String>,
        /// Why.
        why: String,
    },
    /// A call to the emulator failed. It will be retried.
    EmulatorFailed {
        /// What and why.
        why: String,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fired { schedule, function, attempts } => {
                write!(f, "schedule {schedule} fired: {function} succeeded at attempt {attempts}")
            }
            Self::FireFailed { schedule, why } => write!(f, "schedule {schedule} failed and will be retried: {why}"),
            Self::GivenUp { schedule } => write!(f, "schedule {schedule} failed for good"),
            Self::Unplayable { schedule, why } => write!(f, "schedule {schedule} cannot be played: {why}"),
            Self::Delivered { queue, taken, failed } => {
                write!(f, "{queue}: {} messages delivered, {} reported as failed", taken.len(), failed.len())
            }
            Self::DeliveryFailed { queue, messages, why } => {
                write!(f, "{queue}: {} messages could not be delivered: {why}", messages.len())
            }
            Self::EmulatorFailed { why } => write!(f, "the emulator failed: {why}"),
        }
    }
}

/// How often each thing was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Schedules whose function took the event.
    pub fired: u64,
    /// Messages that were taken.
    pub messages_taken: u64,
    /// Messages that came back.
    pub messages_failed: u64,
}

/// Runs until stopped or dropped.
pub struct Runner {
    tasks: JoinSet<()>,
    reporter: Reporter,
}

/// What the runner acts on.
pub struct Work {
    /// The emulator.
    pub clients: Clients,
    /// The functions.
    pub upstream: Upstream,
    /// The schedule groups to watch.
    pub groups: Vec<String>,
    /// The template's recurring schedules.
    pub recurring: Vec<RecurringSchedule>,
    /// The queues that call functions.
    pub deliveries: Vec<Delivery>,
}

impl Runner {
    /// Starts to play the jobs that `options` names.
    pub fn start(work: Work, options: &Options) -> Self {
        let reporter =
            Reporter { events: broadcast::channel(1_024).0, counters: watch::channel(Counters::default()).0 };
        let mut tasks = JoinSet::new();
        let Work { clients, upstream, groups, recurring, deliveries } = work;
        let firing = Firing { clients: clients.clone(), upstream: upstream.clone(), reporter: reporter.clone() };
        if options.one_time_schedules {
            for group in groups {
                tasks.spawn(watch_group(firing.clone(), group));
            }
        }
        if options.recurring_schedules {
            for schedule in recurring {
                tasks.spawn(recur(firing.clone(), schedule));
            }
        }
        if options.queues {
            for delivery in deliveries {
                let queue = QueueLoop {
                    clients: clients.clone(),
                    upstream: upstream.clone(),
                    reporter: reporter.clone(),
                    visibility_timeout: options.visibility_timeout,
                    delivery,
                };
                tasks.spawn(queue.run());
            }
        }
        Self { tasks, reporter }
    }

    /// Everything from now on.
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.reporter.events.subscribe()
    }

    /// The counters, and every change of them.
    pub fn counters(&self) -> watch::Receiver<Counters> {
        self.reporter.counters.subscribe()
    }

    /// Stops at once. A call that is under way is cut off, as if the cloud had lost it: at least once, not exactly.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }
}

#[derive(Clone)]
struct Reporter {
    events: broadcast::Sender<Event>,
    counters: watch::Sender<Counters>,
}

impl Reporter {
    fn report(&self, event: Event) {
        let count = |messages: &[String]| u64::try_from(messages.len()).unwrap_or(u64::MAX);
        self.counters.send_if_modified(|counters| {
            match &event {
                Event::Fired { .. } => counters.fired += 1,
                Event::Delivered { taken, failed, .. } => {
                    counters.messages_taken += count(taken);
                    counters.messages_failed += count(failed);
                }
                Event::DeliveryFailed { messages, .. } => counters.messages_failed += count(messages),
                Event::FireFailed { .. }
                | Event::GivenUp { .. }
                | Event::Unplayable { .. }
                | Event::EmulatorFailed { .. } => return false,
            }
            true
        });
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

// Schedules

#[derive(Clone)]
struct Firing {
    clients: Clients,
    upstream: Upstream,
    reporter: Reporter,
}

/// A one-time schedule as it was when it was read.
#[derive(Clone, Debug)]
struct Planned {
    group: String,
    name: String,
    arn: String,
    due: OffsetDateTime,
    function: String,
    input: String,
    delete: bool,
    retries: i32,
    retry_seconds: i32,
    dead_letter_arn: Option<String>,
    fired: bool,
}

/// A name may be used again once its schedule is gone, and a schedule may be changed: the moment tells them apart.
type Key = (String, i128);

/// What reading a schedule came to.
enum Read {
    Planned(Planned),
    /// Gone meanwhile, or disabled.
    Nothing,
    /// It will never fire here.
    Unplayable(String),
    /// To be read again.
    Failed(String),
}

async fn watch_group(firing: Firing, group: String) {
    let mut known: BTreeMap<Key, Planned> = BTreeMap::new();
    // Those that cannot be played are named once.
    let mut refused: BTreeSet<Key> = BTreeSet::new();
    // Dropped with this task: a retry does not outlive the runner.
    let mut fires = JoinSet::new();
    let mut tick = tokio::time::interval(LIST_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        while fires.try_join_next().is_some() {}
        match firing.list(&group).await {
            Ok(listed) => {
                let now = OffsetDateTime::now_utc();
                // One that is gone before its time was deleted on purpose. One that is gone after it was deleted by
                // an emulator that believes to have fired it.
                known.retain(|key, planned| listed.contains(key) || (now >= planned.due && !planned.fired));
                refused.retain(|key| listed.contains(key));
                for key in listed {
                    if known.contains_key(&key) || refused.contains(&key) {
                        continue;
                    }
                    match firing.read(&group, &key.0).await {
                        Read::Planned(planned) => {
                            known.insert(key, planned);
                        }
                        Read::Nothing => {}
                        Read::Unplayable(why) => {
                            firing.reporter.report(Event::Unplayable { schedule: key.0.clone(), why });
                            refused.insert(key);
                        }
                        Read::Failed(why) => firing.reporter.report(Event::EmulatorFailed { why }),
                    }
                }
            }
            Err(why) => firing.reporter.report(Event::EmulatorFailed { why }),
        }
        let now = OffsetDateTime::now_utc();
        for planned in known.values_mut().filter(|planned| !planned.fired && planned.due <= now) {
            planned.fired = true;
            fires.spawn(firing.clone().fire_once(planned.clone()));
        }
    }
}

impl Firing {
    async fn list(&self, group: &str) -> Result<BTreeSet<Key>, String> {
        let mut listed = BTreeSet::new();
        let mut next = None;
        loop {
            let page = self
                .clients
                .scheduler
                .list_schedules()
                .group_name(group)
                .max_results(PAGE)
                .set_next_token(next)
                .send()
                .await
                .map_err(|error| format!("cannot list the schedules of {group}: {}", chain(&error)))?;
            for schedule in page.schedules {
                let moment = schedule.last_modification_date.or(schedule.creation_date);
                listed.extend(schedule.name.map(|name| (name, moment.map_or(0, |date| date.as_nanos()))));
            }
            next = page.next_token.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok(listed);
            }
        }
    }

    async fn read(&self, group: &str, name: &str) -> Read {
        let read = match self.clients.scheduler.get_schedule().group_name(group).name(name).send().await {
            Ok(read) if read.state == Some(ScheduleState::Disabled) => return Read::Nothing,
            Ok(read) => read,
            Err(error) if error.as_service_error().is_some_and(GetScheduleError::is_resource_not_found_exception) => {
                return Read::Nothing;
            }
            Err(error) => return Read::Failed(format!("cannot read the schedule {name}: {}", chain(&error))),
        };
        planned(group, name, read).map_or_else(Read::Unplayable, Read::Planned)
    }

    async fn fire_once(self, planned: Planned) {
        if !self.fire(&planned).await {
            self.reporter.report(Event::GivenUp { schedule: planned.name.clone() });
            if let Some(arn) = &planned.dead_letter_arn {
                self.dead_letter(arn, &planned).await;
            }
        }
        if planned.delete {
            let client = &self.clients.scheduler;
            let deleted = client.delete_schedule().group_name(&planned.group).name(&planned.name).send().await;
            if let Err(error) = deleted
                && !error.as_service_error().is_some_and(DeleteScheduleError::is_resource_not_found_exception)
            {
                let why = format!("cannot delete the schedule {}: {}", planned.name, chain(&error));
                self.reporter.report(Event::EmulatorFailed { why });
            }
        }
    }

    /// Calls until the function takes the event; false once the retry policy is used up.
    async fn fire(&self, planned: &Planned) -> bool {
        let since = tokio::time::Instant::now();
        let longest = Duration::from_secs(u64::try_from(planned.retry_seconds).unwrap_or(0));
        let mut pause = FIRST_PAUSE;
        let mut attempts = 0_u32;
        loop {
            attempts += 1;
            let event = scheduled_event(&planned.input, planned.due, &planned.arn, attempts);
            match self.upstream.invoke(&planned.function, &event).await {
                Ok(_) => {
                    let (schedule, function) = (planned.name.clone(), planned.function.clone());
                    self.reporter.report(Event::Fired { schedule, function, attempts });
                    return true;
                }
                Err(why) => {
                    let (schedule, why) = (planned.name.clone(), why.to_string());
                    self.reporter.report(Event::FireFailed { schedule, why });
                }
            }
            if i64::from(attempts) > i64::from(planned.retries) || since.elapsed() + pause > longest {
                return false;
            }
            // A back-off between attempts, as EventBridge makes it.
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn dead_letter(&self, arn: &str, planned: &Planned) {
        let name = arn.rsplit(':').next().unwrap_or_default();
        let sent = async {
            let queue = self.clients.sqs.get_queue_url().queue_name(name).send().await.map_err(|e| chain(&e))?;
            let message = self.clients.sqs.send_message().set_queue_url(queue.queue_url).message_body(&planned.input);
            message.send().await.map_err(|e| chain(&e))
        };
        if let Err(why) = sent.await {
            let why = format!("the input of the schedule {} is lost, {name} did not take it: {why}", planned.name);
            self.reporter.report(Event::EmulatorFailed { why });
        }
    }
}

async fn recur(firing: Firing, schedule: RecurringSchedule) {
    // The first time after one interval, as EventBridge counts a rate from the schedule's creation.
    let mut tick = tokio::time::interval_at(tokio::time::Instant::now() + schedule.every, schedule.every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let planned = Planned {
            group: String::new(),
            name: schedule.id.clone(),
            arn: String::new(),
            due: OffsetDateTime::now_utc(),
            function: schedule.function.clone(),
            input: schedule.input.clone(),
            delete: false,
            retries: 2,
            // The next one comes soon enough.
            retry_seconds: i32::try_from(schedule.every.as_secs()).unwrap_or(i32::MAX),
            dead_letter_arn: None,
            fired: true,
        };
        if !firing.fire(&planned).await {
            firing.reporter.report(Event::GivenUp { schedule: planned.name });
        }
    }
}

fn planned(group: &str, name: &str, read: GetScheduleOutput) -> Result<Planned, String> {
    if read.schedule_expression_timezone.as_deref().is_some_and(|zone| zone != "UTC") {
        return Err("its time zone is not UTC".to_owned());
    }
    let expression = read.schedule_expression.as_deref().unwrap_or_default();
    let due = at(expression).ok_or_else(|| format!("{expression:?} is not at(yyyy-mm-ddThh:mm:ss)"))?;
    let target = read.target.ok_or("it has no target")?;
    let function = function_name(&target.arn).ok_or("its target is not a function")?.to_owned();
    let policy = target.retry_policy;
    Ok(Planned {
        group: group.to_owned(),
        name: name.to_owned(),
        arn: read.arn.unwrap_or_default(),
        due,
        function,
        input: target.input.unwrap_or_else(|| "{}".to_owned()),
        delete: read.action_after_completion == Some(ActionAfterCompletion::Delete),
        retries: policy.as_ref().and_then(|policy| policy.maximum_retry_attempts).unwrap_or(MOST_RETRIES),
        retry_seconds: policy.and_then(|policy| policy.maximum_event_age_in_seconds).unwrap_or(LONGEST_RETRY_SECONDS),
        dead_letter_arn: target.dead_letter_config.and_then(|config| config.arn),
        fired: false,
    })
}

/// The input with EventBridge Scheduler's context attributes filled in.
fn scheduled_event(input: &str, due: OffsetDateTime, arn: &str, attempt: u32) -> Value {
    let filled = input
        .replace("<aws.scheduler.scheduled-time>", &due.format(&Rfc3339).unwrap_or_default())
        .replace("<aws.scheduler.schedule-arn>", arn)
        .replace("<aws.scheduler.execution-id>", &format!("{:016x}", fastrand::u64(..)))
        .replace("<aws.scheduler.attempt-number>", &attempt.to_string());
    // An input that is not JSON reaches a function as a JSON string.
    serde_json::from_str(&filled).unwrap_or(Value::String(filled))
}

/// `at(2026-11-21T10:00:00)`, in UTC.
fn at(expression: &str) -> Option<OffsetDateTime> {
    let moment = expression.trim().strip_prefix("at(")?.strip_suffix(')')?;
    Some(PrimitiveDateTime::parse(moment.trim(), &Iso8601::DEFAULT).ok()?.assume_utc())
}

// Queues

struct QueueLoop {
    clients: Clients,
    upstream: Upstream,
    reporter: Reporter,
    visibility_timeout: Option<Duration>,
    delivery: Delivery,
}

impl QueueLoop {
    async fn run(self) {
        let mut pause = FIRST_PAUSE;
        loop {
            match self.receive().await {
                Ok(messages) => {
                    pause = FIRST_PAUSE;
                    if !messages.is_empty() {
                        self.deliver(&messages).await;
                    }
                }
                Err(why) => {
                    self.reporter.report(Event::EmulatorFailed { why });
                    // The emulator may be starting again: asking without a pause would keep it from that.
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    async fn receive(&self) -> Result<Vec<Message>, String> {
        let received = self
            .clients
            .sqs
            .receive_message()
            .queue_url(&self.delivery.url)
            .max_number_of_messages(self.delivery.batch_size)
            .wait_time_seconds(LONG_POLL_SECONDS)
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .message_attribute_names("All")
            .send()
            .await
            .map_err(|error| format!("cannot receive from {}: {}", self.delivery.id, chain(&error)))?;
        Ok(received.messages.unwrap_or_default())
    }

    async fn deliver(&self, messages: &[Message]) {
        let ids: Vec<String> = messages.iter().filter_map(|message| message.message_id.clone()).collect();
        let queue = self.delivery.id.clone();
        let event = sqs_event(messages, &self.delivery.arn, &self.clients.region);
        let failed = match self.upstream.invoke(&self.delivery.function, &event).await {
            Ok(answer) if self.delivery.partial_failures => failures(&answer, &ids),
            Ok(_) => Ok(BTreeSet::new()),
            Err(why) => Err(why.to_string()),
        };
        let failed = match failed {
            Ok(failed) => failed,
            Err(why) => {
                self.hasten(messages, &ids).await;
                self.reporter.report(Event::DeliveryFailed { queue, messages: ids, why });
                return;
            }
        };
        let (failed, taken): (Vec<String>, Vec<String>) = ids.into_iter().partition(|id| failed.contains(id));
        self.delete(messages, &taken).await;
        self.hasten(messages, &failed).await;
        self.reporter.report(Event::Delivered { queue, taken, failed });
    }

    /// Brings messages that failed back sooner than the function asked, where the options say so.
    async fn hasten(&self, messages: &[Message], failed: &[String]) {
        let Some(timeout) = self.visibility_timeout else { return };
        let seconds = i32::try_from(timeout.as_secs()).unwrap_or(i32::MAX);
        let entries: Vec<_> = messages
            .iter()
            .filter(|message| message.message_id.as_ref().is_some_and(|id| failed.contains(id)))
            .filter_map(|message| {
                ChangeMessageVisibilityBatchRequestEntry::builder()
                    .set_id(message.message_id.clone())
                    .set_receipt_handle(message.receipt_handle.clone())
                    .visibility_timeout(seconds)
                    .build()
                    .ok()
            })
            .collect();
        if entries.is_empty() {
            return;
        }
        let request = self.clients.sqs.change_message_visibility_batch().queue_url(&self.delivery.url);
        // They come back all the same, only later.
        if let Err(error) = request.set_entries(Some(entries)).send().await {
            let why = format!("cannot bring messages of {} back: {}", self.delivery.id, chain(&error));
            self.reporter.report(Event::EmulatorFailed { why });
        }
    }

    async fn delete(&self, messages: &[Message], taken: &[String]) {
        let entries: Vec<_> = messages
            .iter()
            .filter(|message| message.message_id.as_ref().is_some_and(|id| taken.contains(id)))
            .filter_map(|message| {
                DeleteMessageBatchRequestEntry::builder()
                    .set_id(message.message_id.clone())
                    .set_receipt_handle(message.receipt_handle.clone())
                    .build()
                    .ok()
            })
            .collect();
        if entries.is_empty() {
            return;
        }
        let deleted = self
            .clients
            .sqs
            .delete_message_batch()
            .queue_url(&self.delivery.url)
            .set_entries(Some(entries))
            .send()
            .await;
        // They come again: a function must bear that anyway.
        if let Err(error) = deleted {
            let why = format!("cannot delete messages of {}: {}", self.delivery.id, chain(&error));
            self.reporter.report(Event::EmulatorFailed { why });
        }
    }
}

/// The messages that a function reports as failed. Lambda takes a report that it cannot read, or that names a message
/// of no such id, for a failure of the whole batch.
fn failures(answer: &Value, ids: &[String]) -> Result<BTreeSet<String>, String> {
    let reported = match &answer["batchItemFailures"] {
        Value::Null => return Ok(BTreeSet::new()),
        Value::Array(reported) => reported,
        _ => return Err("batchItemFailures is not a list".to_owned()),
    };
    let mut failed = BTreeSet::new();
    for item in reported {
        match item["itemIdentifier"].as_str() {
            Some(id) if ids.iter().any(|known| known == id) => failed.insert(id.to_owned()),
            other => return Err(format!("batchItemFailures names {other:?}, which is not in the batch")),
        };
    }
    Ok(failed)
}

/// The event that Lambda makes of a batch.
fn sqs_event(messages: &[Message], arn: &str, region: &str) -> Value {
    let records = messages.iter().map(|message| {
        let attributes: Map<String, Value> =
            message.attributes.iter().flatten().map(|(name, value)| (name.as_str().to_owned(), json!(value))).collect();
        let own: Map<String, Value> = message
            .message_attributes
            .iter()
            .flatten()
            .map(|(name, value)| {
                let entry = json!({ "stringValue": value.string_value, "dataType": value.data_type });
                (name.clone(), entry)
            })
            .collect();
        json!({
            "messageId": message.message_id,
            "receiptHandle": message.receipt_handle,
            "body": message.body,
            "attributes": attributes,
            "messageAttributes": own,
            "md5OfBody": message.md5_of_body,
            "eventSource": "aws:sqs",
            "eventSourceARN": arn,
            "awsRegion": region,
        })
    });
    json!({ "Records": records.collect::<Vec<_>>() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moment(text: &str) -> OffsetDateTime {
        OffsetDateTime::parse(text, &Rfc3339).unwrap()
    }

    #[test]
    fn one_time_expressions_are_read_as_utc() {
        assert_eq!(at("at(2026-11-21T10:00:30)"), Some(moment("2026-11-21T10:00:30Z")));
        assert_eq!(at("rate(1 minute)"), None);
        assert_eq!(at("at(tomorrow)"), None);
    }

    #[test]
    fn context_attributes_are_filled_in() {
        let due = moment("2026-11-21T10:00:30Z");
        let input = r#"{"slot":"<aws.scheduler.scheduled-time>","try":<aws.scheduler.attempt-number>}"#;
        let event = scheduled_event(input, due, "arn", 3);
        assert_eq!(event, json!({ "slot": "2026-11-21T10:00:30Z", "try": 3 }));
        assert_eq!(scheduled_event("plain", due, "arn", 1), json!("plain"));
    }

    #[test]
    fn a_report_of_failures_is_believed_only_if_it_can_be_read() {
        let ids = ["a".to_owned(), "b".to_owned()];
        assert_eq!(failures(&json!({}), &ids), Ok(BTreeSet::new()));
        assert_eq!(failures(&Value::Null, &ids), Ok(BTreeSet::new()));
        let one = json!({ "batchItemFailures": [{ "itemIdentifier": "b" }] });
        assert_eq!(failures(&one, &ids), Ok(BTreeSet::from(["b".to_owned()])));
        for wrong in [json!("c"), json!(""), Value::Null] {
            assert!(failures(&json!({ "batchItemFailures": [{ "itemIdentifier": wrong }] }), &ids).is_err());
        }
        assert!(failures(&json!({ "batchItemFailures": "b" }), &ids).is_err());
    }

    #[test]
    fn a_batch_becomes_the_event_that_lambda_makes() {
        let message = Message::builder()
            .message_id("m1")
            .receipt_handle("r1")
            .body("{}")
            .md5_of_body("99914b932bd37a50b983c5e7c90ae93b")
            .attributes(MessageSystemAttributeName::ApproximateReceiveCount, "2")
            .build();
        let event = sqs_event(&[message], "arn:q", "us-east-1");
        assert_eq!(
            event,
            json!({ "Records": [{
                "messageId": "m1",
                "receiptHandle": "r1",
                "body": "{}",
                "attributes": { "ApproximateReceiveCount": "2" },
                "messageAttributes": {},
                "md5OfBody": "99914b932bd37a50b983c5e7c90ae93b",
                "eventSource": "aws:sqs",
                "eventSourceARN": "arn:q",
                "awsRegion": "us-east-1",
            }] })
        );
    }
}
