//! IAM: the permissions of template.yaml's roles against those that the functions needed in this run.
//!
//! With less, a deployed function would fail although its tests pass; with more, a compromised function could do more than
//! it needs.

use std::sync::Arc;

use holdfast_local::stack::Stack;
use holdfast_local::template::ACCOUNT;
use holdfast_wiretap::Tapped as _;
use libtest_mimic::{Completion, Trial};

/// A permission that is needed although no call shows it.
struct Exception<'a> {
    function: &'a str,
    action: &'static str,
    resource: String,
    why: &'static str,
}

/// What AWS does with a function's role, and no emulator does.
fn done_by_aws(stack: &Stack) -> Result<Vec<Exception<'_>>, String> {
    let mut exceptions = Vec::new();
    for function in stack.roles().keys() {
        let (region, name) = (&stack.clients().region, stack.name());
        for action in ["logs:CreateLogStream", "logs:PutLogEvents"] {
            exceptions.push(Exception {
                function,
                action,
                resource: format!("arn:aws:logs:{region}:{ACCOUNT}:log-group:/aws/lambda/{name}-{function}:*"),
                why: "Lambda writes what the function prints",
            });
        }
    }
    let queue = |id| stack.queue(id).map(|queue| queue.arn.clone()).map_err(|error| error.to_string());
    for action in ["sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"] {
        exceptions.push(Exception {
            function: "confirm",
            action,
            resource: queue("ConfirmationsQueue")?,
            why: "the event source polls the queue",
        });
    }
    exceptions.push(Exception {
        function: "expire",
        action: "sqs:SendMessage",
        resource: queue("ScheduleFailuresQueue")?,
        why: "Lambda sends the event of a call that failed for good",
    });
    Ok(exceptions)
}

/// Where a wildcard is as narrow as it can be. (function, action, why)
const WIDE: [(&str, &str, &str); 1] =
    [("reserve", "scheduler:CreateSchedule", "a slot's schedule is named by its time, which no policy knows")];

/// What the whole run comes to; `complete` says that every test ran, and passed.
pub(crate) fn trials(stack: Option<&Arc<Stack>>, complete: bool) -> Vec<Trial> {
    let (calls, roles) = (stack.cloned(), stack.cloned());
    vec![
        Trial::test("permissions::every_call_is_allowed", move || {
            Ok(every_call_is_allowed(calls.as_deref().ok_or("no stack")?)?)
        }),
        Trial::ignorable_test("permissions::what_is_allowed_is_needed", move || {
            if !complete {
                // Permissions of skipped tests would look unused.
                return Ok(Completion::ignored_with("not every test ran and passed"));
            }
            what_is_allowed_is_needed(roles.as_deref().ok_or("no stack")?)?;
            Ok(Completion::Completed)
        }),
    ]
}

/// No function asked for what its role does not allow.
pub(crate) fn every_call_is_allowed(stack: &Stack) -> Result<(), String> {
    let recorded = stack.recorder().ok_or("nothing was recorded")?.recorded();
    let mut wrong: Vec<String> =
        recorded.not_understood.iter().map(|why| format!("a call is not understood: {why}")).collect();
    for (function, needs) in &recorded.needs {
        let role = stack.roles().get(function).ok_or_else(|| format!("{function} has no role"))?;
        let refused = needs.iter().filter(|need| !role.allows(need));
        wrong.extend(refused.map(|need| format!("{function} needs {need}, and {} does not allow it", role.id)));
    }
    none(wrong)
}

/// No role allows what its function did not ask for.
fn what_is_allowed_is_needed(stack: &Stack) -> Result<(), String> {
    let recorded = stack.recorder().ok_or("nothing was recorded")?.recorded();
    let mut exceptions = done_by_aws(stack)?;
    let mut wrong = Vec::new();
    for (function, role) in stack.roles() {
        let unused = role.unused(recorded.needs.get(function).unwrap_or(&Default::default()));
        for grant in role.grants() {
            let before = exceptions.len();
            exceptions.retain(|but| {
                (but.function, but.action, but.resource.as_str()) != (function, grant.action, grant.resource)
                    || !unused.contains(&grant)
            });
            if exceptions.len() < before {
                continue;
            }
            if unused.contains(&grant) {
                wrong.push(format!("{} allows {grant}, and {function} never needed it", role.id));
            } else if grant.is_wide() && !WIDE.iter().any(|wide| (wide.0, wide.1) == (function, grant.action)) {
                wrong.push(format!("{} allows {grant}: a wildcard, of which {function} cannot need all", role.id));
            }
        }
    }
    // An unnecessary exception would hide the next mistake.
    wrong.extend(exceptions.iter().map(|but| {
        let Exception { function, action, resource, why } = but;
        format!("the exception for {function}, {action} on {resource} ({why}), excepts nothing")
    }));
    let is_there = |wide: &&(&str, &str, &str)| {
        let role = stack.roles().get(wide.0);
        role.is_some_and(|role| role.grants().any(|grant| grant.action == wide.1 && grant.is_wide()))
    };
    wrong.extend(WIDE.iter().filter(|wide| !is_there(wide)).map(|(function, action, why)| {
        format!("the exception for {function}, {action} on anything ({why}), excepts nothing")
    }));
    none(wrong)
}

fn none(wrong: Vec<String>) -> Result<(), String> {
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}
