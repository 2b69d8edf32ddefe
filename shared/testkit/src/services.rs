//! SQS and EventBridge Scheduler in memory, as far as the functions use them.

use serde_json::{Value, json};

/// A schedule.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Its group.
    pub group: String,
    /// Its name.
    pub name: String,
    /// Such as `at(2025-11-21T04:50:00)`.
    pub expression: String,
    /// The whole request.
    pub request: Value,
}

#[derive(Debug)]
struct Message {
    queue: String,
    /// The server that stores it: SQS has many, here there are two.
    server: usize,
    receipt: String,
    body: String,
    hidden: bool,
    /// Number of receives.
    receives: u32,
}

/// Both services. A queue exists as soon as it is named.
#[derive(Debug, Default)]
pub(crate) struct Services {
    messages: Vec<Message>,
    sent: usize,
    /// Receives that did not wait.
    short_polls: usize,
    schedules: Vec<Schedule>,
}

impl Services {
    /// The answer to a call, or `None` if the operation is of another service.
    pub(crate) fn carry_out(&mut self, operation: &str, request: &Value) -> Option<(u16, Value)> {
        let named = || (text(request, "QueueUrl"), text(request, "ReceiptHandle"));
        Some(match operation {
            "SendMessage" => {
                let body = text(request, "MessageBody");
                if body.is_empty() {
                    let message = "a message has at least one character";
                    return Some((
                        400,
                        json!({ "__type": "com.amazonaws.sqs#InvalidParameterValue", "message": message }),
                    ));
                }
                (200, self.send(&text(request, "QueueUrl"), &body))
            }
            "ReceiveMessage" => (200, self.receive(request)),
            "DeleteMessage" => {
                let (queue, receipt) = named();
                self.messages.retain(|message| message.queue != queue || message.receipt != receipt);
                (200, json!({}))
            }
            "ChangeMessageVisibility" => {
                let (queue, receipt) = named();
                let hidden = request["VisibilityTimeout"] != 0;
                let of = |message: &&mut Message| message.queue == queue && message.receipt == receipt;
                self.messages.iter_mut().filter(of).for_each(|message| message.hidden = hidden);
                (200, json!({}))
            }
            "CreateSchedule" => self.create_schedule(request),
            // Only ever for one that does not exist.
            "GetSchedule" => (404, json!({ "__type": "ResourceNotFoundException", "Message": "there is none" })),
            _ => return None,
        })
    }

    pub(crate) fn send(&mut self, queue: &str, body: &str) -> Value {
        self.sent += 1;
        let receipt = format!("message-{}", self.sent);
        let answer = json!({ "MessageId": receipt });
        let (queue, body, server) = (queue.to_owned(), body.to_owned(), self.sent % 2);
        self.messages.push(Message { queue, server, receipt, body, hidden: false, receives: 0 });
        answer
    }

    fn receive(&mut self, request: &Value) -> Value {
        let queue = text(request, "QueueUrl");
        let most = request["MaxNumberOfMessages"].as_u64().and_then(|most| most.try_into().ok()).unwrap_or(1);
        // A receive that does not wait is answered by some of the servers, even if others have messages.
        let waits = request["WaitTimeSeconds"].as_u64().is_some_and(|seconds| seconds > 0);
        let asked = (!waits).then(|| {
            self.short_polls += 1;
            self.short_polls % 2
        });
        let visible = self.messages.iter_mut().filter(|message| {
            message.queue == queue && !message.hidden && asked.is_none_or(|server| message.server == server)
        });
        let received = visible.take(most).map(|message| {
            message.hidden = true;
            message.receives += 1;
            json!({
                "MessageId": message.receipt, "ReceiptHandle": message.receipt, "Body": message.body,
                "Attributes": { "ApproximateReceiveCount": message.receives.to_string() },
            })
        });
        json!({ "Messages": received.collect::<Vec<_>>() })
    }

    fn create_schedule(&mut self, request: &Value) -> (u16, Value) {
        let schedule = Schedule {
            group: text(request, "GroupName"),
            name: text(request, "Name"),
            expression: text(request, "ScheduleExpression"),
            request: request.clone(),
        };
        if self.schedules.iter().any(|other| (&other.group, &other.name) == (&schedule.group, &schedule.name)) {
            return (409, json!({ "__type": "ConflictException", "Message": "it exists already" }));
        }
        let arn = format!("arn:aws:scheduler:us-east-1:123456789012:schedule/{}/{}", schedule.group, schedule.name);
        self.schedules.push(schedule);
        (200, json!({ "ScheduleArn": arn }))
    }

    pub(crate) fn messages(&self, queue: &str) -> Vec<String> {
        let messages = self.messages.iter().filter(|message| message.queue == queue);
        messages.map(|message| message.body.clone()).collect()
    }

    pub(crate) fn show_messages(&mut self) {
        self.messages.iter_mut().for_each(|message| message.hidden = false);
    }

    pub(crate) fn schedules(&self) -> Vec<Schedule> {
        self.schedules.clone()
    }
}

fn text(request: &Value, member: &str) -> String {
    request[member].as_str().unwrap_or_default().to_owned()
}
