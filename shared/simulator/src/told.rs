//! The lines of the history for calls to AWS.

use serde_json::Value;

use crate::dynamo;
use crate::faults::Fault;
use crate::world::{Answer, Call, World};

impl World {
    pub(crate) fn said(&self, who: &str, call: &Call, fate: Option<Fault>, answer: &Answer) {
        let at = self.at();
        let mut state = self.lock();
        let (outcome, body) = match answer {
            Answer::Of(status, body) => (status.to_string(), Some(body)),
            Answer::Broken => ("connection broken".to_owned(), None),
            Answer::Silence => ("no answer".to_owned(), None),
        };
        let mut about: Vec<String> =
            dynamo::places(&call.operation, &call.request).into_iter().map(|(pk, sk)| short(&pk, &sk)).collect();
        if about.is_empty() {
            about.extend(subject(call));
        }
        let reasons = body.map(reasons).unwrap_or_default();
        let fate = fate.map(|fate| format!(" [{fate}]")).unwrap_or_default();
        state
            .history
            .note(at, format_args!("{who} {} {} -> {outcome}{reasons}{fate}", call.operation, about.join(" ")));
        state.history.digest_json(&call.request);
        if let Some(body) = body {
            state.history.digest_json(body);
        }
    }
}

fn reasons(body: &Value) -> String {
    let kind = body["__type"].as_str().and_then(|kind| kind.rsplit('#').next());
    match (body["CancellationReasons"].as_array(), kind) {
        (Some(reasons), _) => {
            let codes: Vec<&str> = reasons.iter().filter_map(|reason| reason["Code"].as_str()).collect();
            format!(" cancelled: {}", codes.join(", "))
        }
        (None, Some(kind)) => format!(" {kind}"),
        (None, None) => String::new(),
    }
}

/// A key as the history shows it, shortened.
fn short(pk: &str, sk: &str) -> String {
    let tail = |text: &str| text.get(..16).unwrap_or(text).to_owned();
    match pk.split_once('#') {
        Some(("HOLD", id)) => format!("HOLD#{}", tail(id)),
        Some(("LEDGER" | "ADJUST", _)) => tail(pk),
        Some(_) => pk.to_owned(),
        None => format!("{pk}/{}", tail(sk)),
    }
}

fn subject(call: &Call) -> Option<String> {
    let text = |member: &str| call.request[member].as_str().map(str::to_owned);
    match call.operation.as_str() {
        "GetItem" => Some(short(call.request["Key"]["pk"]["S"].as_str()?, call.request["Key"]["sk"]["S"].as_str()?)),
        "Query" | "Scan" => text("IndexName"),
        "SendMessage" => Some(format!("{} {}", text("QueueUrl")?.rsplit('/').next()?, text("MessageBody")?)),
        "ReceiveMessage" | "DeleteMessage" | "ChangeMessageVisibility" => {
            Some(text("QueueUrl")?.rsplit('/').next()?.to_owned())
        }
        "CreateSchedule" => text("Name"),
        _ => None,
    }
}
