//! Reminders: one-time schedules that call `expire` when holds may have ended.
//!
//! One schedule serves all holds that end within a slot of some seconds. It is named after its slot, so creating it
//! twice is a conflict, and a conflict is success. It is created before the hold; a schedule whose hold was never made finds
//! nothing to do. It only reminds: the clock decides whether a hold has ended. If Scheduler refuses it or takes long, the hold
//! is made without it, and the sweep of each minute releases it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aws_sdk_scheduler::Client;
use aws_sdk_scheduler::operation::create_schedule::CreateScheduleError;
use aws_sdk_scheduler::operation::get_schedule::GetScheduleError;
use aws_sdk_scheduler::types::{
    ActionAfterCompletion, DeadLetterConfig, FlexibleTimeWindow, FlexibleTimeWindowMode, RetryPolicy,
    Target as ScheduleTarget,
};
use holdfast_domain::{Clock, Timestamp};
use holdfast_store::{PATIENCE, ReadTime};
use serde::{Deserialize, Serialize};
use time::macros::format_description;

use crate::Unanswered;

/// How many slots an environment remembers: one hour, the longest hold, at the default length.
const MAX_REMEMBERED_SLOTS: usize = 360;

/// The call.
const CREATE: &str = "CreateSchedule";
/// How long a hold waits for its schedule.
const LONGEST: Duration = Duration::from_secs(1);
/// How long none is created after Scheduler failed, in milliseconds, so that not every hold waits for it.
const PAUSE_MS: i64 = 10_000;

/// The input of `expire`. It is only logged: `expire` always releases what is overdue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reminder {
    /// A slot has ended.
    Slot {
        /// Its end, in seconds since the epoch.
        slot: i64,
    },
    /// The recurring safety net.
    Sweep,
}

/// What the schedules call, and with which role.
#[derive(Debug, Clone)]
pub struct Target {
    /// The schedule group.
    pub group: String,
    /// The function `expire`.
    pub function_arn: String,
    /// The role that Scheduler assumes to call it.
    pub role_arn: String,
    /// The queue for calls that failed for good.
    pub dead_letter_arn: String,
}

/// The schedules of the group.
#[derive(Debug)]
pub struct Schedules {
    client: Client,
    target: Target,
    slot_seconds: i64,
    made: Mutex<BTreeSet<i64>>,
    /// Held by the request that creates a schedule, for all that wait.
    turn: tokio::sync::Mutex<()>,
    clock: Clock,
    /// When Scheduler failed last.
    failed: Mutex<Option<ReadTime>>,
}

impl Schedules {
    /// Schedules for slots of `slot_seconds`. `clock` measures the pause after a failure.
    pub fn new(client: Client, target: Target, slot_seconds: i64, clock: Clock) -> Self {
        let (made, turn, failed) = (Mutex::default(), tokio::sync::Mutex::default(), Mutex::default());
        Self { client, target, slot_seconds: slot_seconds.max(1), made, turn, clock, failed }
    }

    /// The end of the slot that contains `at`, in seconds since the epoch: at `at` or after it.
    fn slot(&self, at: Timestamp) -> i64 {
        let seconds = at.plus_seconds(1).as_millis().saturating_sub(1).div_euclid(1_000);
        seconds.saturating_add(self.slot_seconds - 1).div_euclid(self.slot_seconds) * self.slot_seconds
    }

    /// Makes sure that `expire` will be called at `at` or a little later. Makes no call if this environment has created
    /// the schedule of that slot before, or if Scheduler failed within the last ten seconds. Takes at most 1.25 s.
    ///
    /// # Errors
    /// [`Unanswered`] if Scheduler refused, or did not answer in time: the schedule may exist.
    pub async fn ensure(&self, at: Timestamp) -> Result<(), Unanswered> {
        let slot = self.slot(at);
        if let Some(known) = self.known(slot) {
            return known;
        }
        let _turn = tokio::time::timeout(PATIENCE, self.turn.lock()).await;
        // What the request before this one has found.
        if let Some(known) = self.known(slot) {
            return known;
        }
        let late = |_| Err(Unanswered { during: CREATE, detail: "no answer in time".to_owned() });
        if let Err(error) = tokio::time::timeout(LONGEST, self.create(slot)).await.unwrap_or_else(late) {
            *lock(&self.failed) = Some(ReadTime::now(&self.clock));
            return Err(error);
        }
        let mut made = lock(&self.made);
        made.insert(slot);
        while made.len() > MAX_REMEMBERED_SLOTS {
            made.pop_first();
        }
        Ok(())
    }

    /// Opens the connection to Scheduler and prepares the client, by a question for a schedule that never exists.
    pub(crate) async fn connect(&self) -> Result<(), Unanswered> {
        match self.client.get_schedule().group_name(&self.target.group).name("connection").send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(GetScheduleError::is_resource_not_found_exception) => {
                Ok(())
            }
            Err(error) => Err(Unanswered::new("GetSchedule", &error)),
        }
    }

    /// The outcome for a slot without a call, if this environment knows it.
    fn known(&self, slot: i64) -> Option<Result<(), Unanswered>> {
        if lock(&self.made).contains(&slot) {
            return Some(Ok(()));
        }
        let failed = lock(&self.failed).is_some_and(|at| at.within(PAUSE_MS, &self.clock));
        failed.then(|| Err(Unanswered { during: CREATE, detail: "it failed a moment ago".to_owned() }))
    }

    async fn create(&self, slot: i64) -> Result<(), Unanswered> {
        let wrong = |error: &(dyn std::error::Error + 'static)| Unanswered::new(CREATE, error);
        let at = time::OffsetDateTime::from_unix_timestamp(slot).map_err(|error| wrong(&error))?;
        let at = at
            .format(format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]"))
            .map_err(|error| wrong(&error))?;
        let input = serde_json::to_string(&Reminder::Slot { slot }).map_err(|error| wrong(&error))?;
        let target = ScheduleTarget::builder()
            .arn(&self.target.function_arn)
            .role_arn(&self.target.role_arn)
            .input(input)
            .dead_letter_config(DeadLetterConfig::builder().arn(&self.target.dead_letter_arn).build())
            // The recurring sweep runs every minute: a reminder that is an hour late is of no use.
            .retry_policy(RetryPolicy::builder().maximum_event_age_in_seconds(3_600).maximum_retry_attempts(10).build())
            .build()
            .map_err(|error| wrong(&error))?;
        let window = FlexibleTimeWindow::builder().mode(FlexibleTimeWindowMode::Off).build();
        let request = self
            .client
            .create_schedule()
            .group_name(&self.target.group)
            .name(format!("slot-{slot}"))
            .schedule_expression(format!("at({at})"))
            .flexible_time_window(window.map_err(|error| wrong(&error))?)
            .target(target)
            // Otherwise a finished one-time schedule stays, and counts towards the quota.
            .action_after_completion(ActionAfterCompletion::Delete);
        match request.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.as_service_error().is_some_and(CreateScheduleError::is_conflict_exception) => Ok(()),
            Err(error) => Err(wrong(&error)),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn a_slot_ends_at_or_after_the_hold_and_less_than_a_slot_later() {
        let target =
            Target { group: "g".into(), function_arn: "f".into(), role_arn: "r".into(), dead_letter_arn: "d".into() };
        let client = Environment::of_emulator("us-east-1", "http://127.0.0.1:9").scheduler();
        let schedules = Schedules::new(client, target, 10, crate::clock::system());
        for (millis, slot) in [(0, 0), (1, 10), (999, 10), (1_000, 10), (10_000, 10), (10_001, 20), (19_999, 20)] {
            assert_eq!(schedules.slot(Timestamp::from_millis(millis)), slot, "{millis}");
        }
    }

    #[test]
    fn a_reminder_has_the_shape_that_the_template_sends() {
        assert_eq!(serde_json::to_string(&Reminder::Sweep).unwrap(), r#"{"kind":"sweep"}"#);
        assert_eq!(serde_json::to_string(&Reminder::Slot { slot: 20 }).unwrap(), r#"{"kind":"slot","slot":20}"#);
    }
}
