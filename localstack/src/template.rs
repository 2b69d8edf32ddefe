//! template.yaml, read as CloudFormation reads it. (Parser, resolver and their tests share one vocabulary, hence the length.)
//!
//! Short tags (`!Ref`) are turned into their long form (`{"Ref": ..}`) at once; everything after that works on plain
//! JSON. Invariant: a value is resolved as CloudFormation would resolve it, or it is an error that names what cannot be
//! resolved. Nothing is skipped silently.

use crate::error::{Context, Error, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The default account of emulators.
pub const ACCOUNT: &str = "000000000000";

/// The whole template.
#[derive(Debug)]
pub struct Template {
    root: Value,
}

/// What a template's values are resolved against: a stack by name, its parameters, and the resources made so far.
#[derive(Clone, Debug)]
pub struct Scope {
    /// The stack's name; physical names start with it.
    pub stack: String,
    /// The region, as in `AWS::Region`.
    pub region: String,
    /// Parameters that differ from the template's defaults.
    pub parameters: BTreeMap<String, String>,
    /// What `Ref` and `Fn::GetAtt` answer, by logical id; also by the names that SAM gives to what it makes of a resource
    /// (`ExpireFunction.Alias`).
    pub resources: BTreeMap<String, Attributes>,
}

/// What a resource answers when it is referred to.
#[derive(Clone, Debug, Default)]
pub struct Attributes {
    /// `Ref`.
    pub reference: String,
    /// `Fn::GetAtt`, by attribute.
    pub attributes: BTreeMap<String, String>,
}

/// A resource of the template, unresolved.
#[derive(Debug)]
pub struct Resource<'a> {
    /// Its logical id.
    pub id: &'a str,
    /// Its properties.
    pub properties: &'a Value,
}

/// A Lambda function as it runs locally.
#[derive(Clone, Debug)]
pub struct Function {
    /// Its logical id.
    pub id: String,
    /// The binary of the workspace that it is built from; locally also its name.
    pub binary: String,
    /// Its memory, which the runtime is told.
    pub memory_mb: u64,
    /// The alias by which it is called, if it has one.
    pub alias: Option<String>,
    /// Its own variables over those of `Globals`, unresolved.
    environment: Map<String, Value>,
    /// Whether the HTTP API calls it.
    pub http: bool,
    /// Queues that call it.
    pub queues: Vec<QueueTrigger>,
}

/// A queue that calls a function.
#[derive(Clone, Debug)]
pub struct QueueTrigger {
    /// The queue's logical id.
    pub queue: String,
    /// The most messages in one call.
    pub batch_size: i32,
    /// Whether the function reports which messages failed (`ReportBatchItemFailures`).
    pub partial_failures: bool,
}

/// A recurring schedule that calls a function.
#[derive(Clone, Debug)]
pub struct RecurringSchedule {
    /// Its logical id.
    pub id: String,
    /// How often.
    pub every: std::time::Duration,
    /// The binary of the function that it calls.
    pub function: String,
    /// The event.
    pub input: String,
}

/// `AWS::DynamoDB::Table`, as far as an emulator can be told. Backups, encryption and protection are the cloud's own.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Table {
    /// The attributes that keys are made of.
    pub attribute_definitions: Vec<AttributeDefinition>,
    /// The table's key.
    pub key_schema: Vec<KeyElement>,
    /// Its indexes.
    #[serde(default)]
    pub global_secondary_indexes: Vec<Index>,
    /// Which items expire by themselves.
    pub time_to_live_specification: Option<TimeToLive>,
    /// On demand is the only one that is made here.
    pub billing_mode: Option<String>,
}

/// An attribute that a key is made of.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct AttributeDefinition {
    /// Its name.
    pub attribute_name: String,
    /// `S`, `N` or `B`.
    pub attribute_type: String,
}

/// One part of a key.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct KeyElement {
    /// The attribute.
    pub attribute_name: String,
    /// `HASH` or `RANGE`.
    pub key_type: String,
}

/// A global secondary index.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Index {
    /// Its name.
    pub index_name: String,
    /// Its key.
    pub key_schema: Vec<KeyElement>,
    /// What it holds beside keys.
    pub projection: Projection,
}

/// What an index holds beside keys.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Projection {
    /// `ALL`, `KEYS_ONLY` or `INCLUDE`.
    pub projection_type: String,
    /// For `INCLUDE`: what.
    #[serde(default)]
    pub non_key_attributes: Vec<String>,
}

/// Which items expire by themselves.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct TimeToLive {
    /// The attribute that says when.
    pub attribute_name: String,
    /// Whether they do.
    pub enabled: bool,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// The file cannot be read, or is not YAML.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))?;
        Self::parse(&text).map_err(|error| Error::new(format!("{}: {error}", path.display())))
    }

    /// Reads a template from its text.
    ///
    /// # Errors
    /// The text is not YAML.
    pub fn parse(text: &str) -> Result<Self> {
        let yaml: serde_norway::Value = serde_norway::from_str(text).context(|| "it is not YAML".into())?;
        Ok(Self { root: long_form(yaml)? })
    }

    /// Checks parameters that are given: their names, and the values for which the template lists or bounds them. Its
    /// patterns are CloudFormation's to check.
    ///
    /// # Errors
    /// The template has no such parameter, or does not allow the value.
    pub fn check_parameters(&self, given: &BTreeMap<String, String>) -> Result<()> {
        let declared = self.root["Parameters"].as_object().cloned().unwrap_or_default();
        for (name, value) in given {
            let rules = declared.get(name).ok_or_else(|| {
                let names: Vec<&str> = declared.keys().map(String::as_str).collect();
                Error::new(format!("template.yaml has no parameter {name}; it has {}", names.join(", ")))
            })?;
            if let Some(rule) = broken_rule(rules, value) {
                return Err(Error::new(format!("the parameter {name} must be {rule}, not {value:?}")));
            }
        }
        Ok(())
    }

    /// The resources of one type that exist in `scope`, by logical id.
    ///
    /// # Errors
    /// A resource's condition cannot be resolved.
    pub fn resources(&self, scope: &Scope, kind: &str) -> Result<Vec<Resource<'_>>> {
        let mut found = Vec::new();
        for (id, resource) in self.root["Resources"].as_object().into_iter().flatten() {
            if resource["Type"] != kind {
                continue;
            }
            if let Some(condition) = resource["Condition"].as_str()
                && !self.condition(scope, condition)?
            {
                continue;
            }
            found.push(Resource { id, properties: &resource["Properties"] });
        }
        Ok(found)
    }

    /// The functions, each with its own variables over those of `Globals`.
    ///
    /// # Errors
    /// A function does not say what it is built from, or an event of it cannot be played locally.
    pub fn functions(&self, scope: &Scope) -> Result<Vec<Function>> {
        let shared = &self.root["Globals"]["Function"];
        let mut functions = Vec::new();
        for Resource { id, properties } in self.resources(scope, "AWS::Serverless::Function")? {
            let wrong = |what: &str| Error::new(format!("function {id}: {what}"));
            let mut environment = Map::new();
            for side in [shared, properties] {
                environment.extend(side["Environment"]["Variables"].as_object().cloned().unwrap_or_default());
            }
            let binary = self.root["Resources"][id]["Metadata"]["BuildProperties"]["Binary"]
                .as_str()
                .or_else(|| properties["CodeUri"].as_str().and_then(|uri| Path::new(uri).file_name()?.to_str()))
                .ok_or_else(|| wrong("neither Metadata.BuildProperties.Binary nor CodeUri names its binary"))?;
            let memory = [properties, shared].into_iter().find_map(|side| side["MemorySize"].as_u64());
            let alias = [properties, shared].into_iter().find_map(|side| side["AutoPublishAlias"].as_str());
            let (mut http, mut queues) = (false, Vec::new());
            for (name, event) in properties["Events"].as_object().into_iter().flatten() {
                match event["Type"].as_str().unwrap_or_default() {
                    // `cargo lambda watch` routes these by the table in the root Cargo.toml.
                    "HttpApi" => http = true,
                    "SQS" => queues.push(queue_trigger(&event["Properties"]).map_err(|why| wrong(&why.to_string()))?),
                    other => return Err(wrong(&format!("its event {name} of type {other} cannot be played locally"))),
                }
            }
            functions.push(Function {
                id: id.to_owned(),
                binary: binary.to_owned(),
                // Lambda's own default.
                memory_mb: memory.unwrap_or(128),
                alias: alias.map(str::to_owned),
                environment,
                http,
                queues,
            });
        }
        Ok(functions)
    }

    /// A function's variables, as the deployed function would have them.
    ///
    /// # Errors
    /// A value cannot be resolved.
    pub fn environment(&self, scope: &Scope, function: &Function) -> Result<BTreeMap<String, String>> {
        let mut variables = BTreeMap::new();
        for (name, value) in &function.environment {
            let resolved = self
                .resolve(scope, value)
                .map_err(|why| Error::new(format!("variable {name} of {}: {why}", function.id)))?;
            if !resolved.is_null() {
                variables.insert(name.clone(), text(&resolved));
            }
        }
        Ok(variables)
    }

    /// The recurring schedules. One-time schedules are the functions' own business.
    ///
    /// # Errors
    /// A schedule recurs in a way, or calls something, that cannot be played locally.
    pub fn recurring_schedules(&self, scope: &Scope) -> Result<Vec<RecurringSchedule>> {
        let mut schedules = Vec::new();
        for Resource { id, properties } in self.resources(scope, "AWS::Scheduler::Schedule")? {
            let resolved =
                self.resolve(scope, properties).map_err(|why| Error::new(format!("schedule {id}: {why}")))?;
            if resolved["State"] == "DISABLED" {
                continue;
            }
            let expression = resolved["ScheduleExpression"].as_str().unwrap_or_default();
            let every = rate(expression).ok_or_else(|| {
                Error::new(format!("schedule {id}: only rate(..) can be played locally, not {expression:?}"))
            })?;
            let arn = resolved["Target"]["Arn"].as_str().unwrap_or_default();
            let function = function_name(arn)
                .ok_or_else(|| Error::new(format!("schedule {id}: its target {arn:?} is not a function")))?;
            let input = resolved["Target"]["Input"].as_str().unwrap_or("{}");
            schedules.push(RecurringSchedule {
                id: id.to_owned(),
                every,
                function: function.to_owned(),
                input: input.to_owned(),
            });
        }
        Ok(schedules)
    }

    /// A value with every intrinsic function in it resolved; `Null` for `AWS::NoValue`.
    ///
    /// # Errors
    /// It holds an intrinsic or a reference that cannot be resolved; the error names it.
    pub fn resolve(&self, scope: &Scope, value: &Value) -> Result<Value> {
        if let Some((name, argument)) = intrinsic(value) {
            return self.call(scope, name, argument);
        }
        match value {
            Value::Object(map) => {
                let mut resolved = Map::new();
                for (key, value) in map {
                    let value = self.resolve(scope, value)?;
                    if !value.is_null() {
                        resolved.insert(key.clone(), value);
                    }
                }
                Ok(Value::Object(resolved))
            }
            Value::Array(list) => {
                let mut resolved = Vec::new();
                for value in list {
                    let value = self.resolve(scope, value)?;
                    if !value.is_null() {
                        resolved.push(value);
                    }
                }
                Ok(Value::Array(resolved))
            }
            plain => Ok(plain.clone()),
        }
    }

    fn call(&self, scope: &Scope, name: &str, argument: &Value) -> Result<Value> {
        let wrong = || Error::new(format!("{name} {argument} is not understood"));
        match name {
            "Ref" => self.reference(scope, argument.as_str().ok_or_else(wrong)?),
            "Fn::GetAtt" => {
                let (id, attribute) = get_att(argument).ok_or_else(wrong)?;
                let known = scope.resources.get(id).and_then(|resource| resource.attributes.get(attribute));
                known
                    .map(|value| json!(value))
                    .ok_or_else(|| Error::new(format!("!GetAtt {id}.{attribute} cannot be resolved locally")))
            }
            "Fn::Sub" => match argument {
                Value::String(pattern) => self.substitute(scope, pattern, &Map::new()),
                Value::Array(parts) => match parts.as_slice() {
                    [Value::String(pattern), Value::Object(own)] => self.substitute(scope, pattern, own),
                    _ => Err(wrong()),
                },
                _ => Err(wrong()),
            },
            "Fn::Join" => {
                let [Value::String(separator), list] = argument.as_array().ok_or_else(wrong)?.as_slice() else {
                    return Err(wrong());
                };
                let list = self.resolve(scope, list)?;
                let parts: Vec<String> = list.as_array().ok_or_else(wrong)?.iter().map(text).collect();
                Ok(json!(parts.join(separator)))
            }
            "Fn::Split" => {
                let [Value::String(separator), joined] = argument.as_array().ok_or_else(wrong)?.as_slice() else {
                    return Err(wrong());
                };
                let joined = self.resolve(scope, joined)?;
                Ok(joined.as_str().ok_or_else(wrong)?.split(separator.as_str()).collect())
            }
            "Fn::If" => {
                let [Value::String(condition), yes, no] = argument.as_array().ok_or_else(wrong)?.as_slice() else {
                    return Err(wrong());
                };
                self.resolve(scope, if self.condition(scope, condition)? { yes } else { no })
            }
            other => Err(Error::new(format!("the intrinsic function {other} is not known to the local stack"))),
        }
    }

    fn reference(&self, scope: &Scope, name: &str) -> Result<Value> {
        let value = match name {
            "AWS::Region" => scope.region.clone(),
            "AWS::AccountId" => ACCOUNT.to_owned(),
            "AWS::Partition" => "aws".to_owned(),
            "AWS::StackName" => scope.stack.clone(),
            "AWS::URLSuffix" => "amazonaws.com".to_owned(),
            "AWS::NoValue" => return Ok(Value::Null),
            _ => {
                if let Some(resource) = scope.resources.get(name) {
                    resource.reference.clone()
                } else if let Some(parameter) = scope.parameters.get(name) {
                    parameter.clone()
                } else {
                    let default = &self.root["Parameters"][name]["Default"];
                    if default.is_null() {
                        return Err(Error::new(format!("!Ref {name} cannot be resolved locally")));
                    }
                    text(default)
                }
            }
        };
        Ok(json!(value))
    }

    /// `${Name}`, `${Resource.Attribute}`, `${Function.Alias}` and, to write one literally, `${!Name}`.
    fn substitute(&self, scope: &Scope, pattern: &str, own: &Map<String, Value>) -> Result<Value> {
        let mut result = String::new();
        let mut rest = pattern;
        while let Some((before, after)) = rest.split_once("${") {
            let (name, tail) = after
                .split_once('}')
                .ok_or_else(|| Error::new(format!("!Sub {pattern:?} has a ${{ without its }}")))?;
            result.push_str(before);
            if let Some(literal) = name.strip_prefix('!') {
                result.push_str(&format!("${{{literal}}}"));
            } else if let Some(value) = own.get(name) {
                result.push_str(&text(&self.resolve(scope, value)?));
            } else if name.contains('.') && !scope.resources.contains_key(name) {
                result.push_str(&text(&self.call(scope, "Fn::GetAtt", &json!(name))?));
            } else {
                result.push_str(&text(&self.reference(scope, name)?));
            }
            rest = tail;
        }
        result.push_str(rest);
        Ok(json!(result))
    }

    fn condition(&self, scope: &Scope, name: &str) -> Result<bool> {
        let condition = &self.root["Conditions"][name];
        if condition.is_null() {
            return Err(Error::new(format!("the condition {name} is not defined")));
        }
        self.holds(scope, condition)
    }

    fn holds(&self, scope: &Scope, condition: &Value) -> Result<bool> {
        let wrong = || Error::new(format!("the condition {condition} is not understood"));
        let (name, argument) = intrinsic(condition).ok_or_else(wrong)?;
        match (name, argument.as_array().map(Vec::as_slice)) {
            ("Condition", _) => self.condition(scope, argument.as_str().ok_or_else(wrong)?),
            ("Fn::Equals", Some([left, right])) => {
                Ok(text(&self.resolve(scope, left)?) == text(&self.resolve(scope, right)?))
            }
            ("Fn::Not", Some([inner])) => Ok(!self.holds(scope, inner)?),
            ("Fn::And", Some(parts)) => parts.iter().try_fold(true, |all, part| Ok(all && self.holds(scope, part)?)),
            ("Fn::Or", Some(parts)) => parts.iter().try_fold(false, |any, part| Ok(any || self.holds(scope, part)?)),
            _ => Err(wrong()),
        }
    }
}

/// The rule of a parameter that a value breaks.
fn broken_rule(rules: &Value, value: &str) -> Option<String> {
    if let Some(allowed) = rules["AllowedValues"].as_array() {
        let allowed: Vec<String> = allowed.iter().map(text).collect();
        return (!allowed.iter().any(|one| one == value)).then(|| format!("one of {}", allowed.join(", ")));
    }
    if rules["Type"] != "Number" {
        return None;
    }
    let (least, most) = (rules["MinValue"].as_f64(), rules["MaxValue"].as_f64());
    let fits = |number: f64| least.is_none_or(|least| number >= least) && most.is_none_or(|most| number <= most);
    if value.parse().is_ok_and(fits) {
        return None;
    }
    let bound = |what: &str, bound: Option<f64>| bound.map(|bound| format!(" of {what} {bound}")).unwrap_or_default();
    let (least, most) = (bound("at least", least), bound("at most", most));
    let and = if least.is_empty() || most.is_empty() { "" } else { " and" };
    Some(format!("a number{least}{and}{most}"))
}

/// The logical ids that a value refers to, parameters among them.
pub fn references(value: &Value) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    collect(value, &mut found);
    found
}

fn collect(value: &Value, found: &mut BTreeSet<String>) {
    match intrinsic(value) {
        Some(("Ref", Value::String(name))) => {
            // `ExpireFunction.Alias` is made of the resource ExpireFunction.
            found.extend(name.split('.').next().map(str::to_owned));
        }
        Some(("Fn::GetAtt", argument)) => found.extend(get_att(argument).map(|(id, _)| id.to_owned())),
        Some(("Fn::Sub", argument)) => {
            let pattern = argument.as_str().or_else(|| argument[0].as_str()).unwrap_or_default();
            let names = pattern.split("${").skip(1).filter_map(|part| part.split(['}', '.']).next());
            found.extend(names.map(str::to_owned));
            collect(&argument[1], found);
        }
        _ => match value {
            Value::Object(map) => map.values().for_each(|value| collect(value, found)),
            Value::Array(list) => list.iter().for_each(|value| collect(value, found)),
            _ => {}
        },
    }
}

/// The name of the function that an ARN names, with or without an alias.
pub(crate) fn function_name(arn: &str) -> Option<&str> {
    let (_, name) = arn.split_once(":function:")?;
    name.split(':').next().filter(|name| !name.is_empty())
}

fn queue_trigger(properties: &Value) -> Result<QueueTrigger> {
    let queue = references(&properties["Queue"])
        .into_iter()
        .next()
        .ok_or_else(|| Error::new("its SQS event does not refer to a queue of the template"))?;
    let reports = properties["FunctionResponseTypes"]
        .as_array()
        .is_some_and(|types| types.iter().any(|kind| kind == "ReportBatchItemFailures"));
    // Ten is what Lambda takes where nothing is said, and the most that one receive gives.
    let batch_size = properties["BatchSize"].as_i64().unwrap_or(10).clamp(1, 10);
    Ok(QueueTrigger { queue, batch_size: i32::try_from(batch_size).unwrap_or(10), partial_failures: reports })
}

/// `rate(5 minutes)`.
fn rate(expression: &str) -> Option<std::time::Duration> {
    let inner = expression.trim().strip_prefix("rate(")?.strip_suffix(')')?;
    let (number, unit) = inner.trim().split_once(' ')?;
    let seconds = match unit.trim().trim_end_matches('s') {
        "minute" => 60,
        "hour" => 3_600,
        "day" => 86_400,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(seconds).filter(|&every| every > 0).map(std::time::Duration::from_secs)
}

fn get_att(argument: &Value) -> Option<(&str, &str)> {
    match argument {
        Value::String(path) => path.split_once('.'),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(id), Value::String(attribute)] => Some((id, attribute)),
            _ => None,
        },
        _ => None,
    }
}

/// `{"Ref": ..}`, `{"Fn::..": ..}`, `{"Condition": ".."}`. A policy's `Condition` holds a map and is none of these.
fn intrinsic(value: &Value) -> Option<(&str, &Value)> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    let (name, argument) = map.iter().next()?;
    let known = name == "Ref" || name.starts_with("Fn::") || (name == "Condition" && argument.is_string());
    known.then_some((name.as_str(), argument))
}

/// A scalar as CloudFormation writes it into a string.
fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// YAML with tags to JSON with long names.
fn long_form(yaml: serde_norway::Value) -> Result<Value> {
    use serde_norway::Value as Yaml;
    Ok(match yaml {
        Yaml::Null => Value::Null,
        Yaml::Bool(flag) => json!(flag),
        Yaml::Number(number) => serde_json::to_value(&number).context(|| format!("the number {number}"))?,
        Yaml::String(text) => json!(text),
        Yaml::Sequence(list) => Value::Array(list.into_iter().map(long_form).collect::<Result<_>>()?),
        Yaml::Mapping(map) => {
            let mut object = Map::new();
            for (key, value) in map {
                // Keys of mappings such as event ids may be numbers in YAML.
                object.insert(text(&long_form(key)?), long_form(value)?);
            }
            Value::Object(object)
        }
        Yaml::Tagged(tagged) => {
            let tag = tagged.tag.to_string();
            let tag = tag.trim_start_matches('!');
            let name = if matches!(tag, "Ref" | "Condition") { tag.to_owned() } else { format!("Fn::{tag}") };
            json!({ name: long_form(tagged.value)? })
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEMPLATE: &str = r#"
Parameters:
  LogLevel: { Type: String, Default: info }
  Issuer: { Type: String, Default: "" }
  Slot: { Type: Number, Default: 10 }
Conditions:
  HasIssuer: !Not [!Equals [!Ref Issuer, ""]]
Globals:
  Function:
    MemorySize: 512
    Environment:
      Variables:
        TABLE: !Ref Table
        LOG: !Ref LogLevel
Resources:
  Table: { Type: "AWS::DynamoDB::Table", Properties: {} }
  Queue:
    Type: AWS::SQS::Queue
    Properties:
      RedrivePolicy: { deadLetterTargetArn: !GetAtt Dead.Arn, maxReceiveCount: 5 }
  Dead: { Type: "AWS::SQS::Queue", Properties: {} }
  Extra: { Type: "AWS::SQS::Queue", Condition: HasIssuer, Properties: {} }
  ConfirmFunction:
    Type: AWS::Serverless::Function
    Metadata: { BuildMethod: rust-cargolambda, BuildProperties: { Binary: confirm } }
    Properties:
      CodeUri: .
      Environment:
        Variables:
          LOG: debug
          SLOT: !Ref Slot
          MAYBE: !If [HasIssuer, !Ref Issuer, !Ref "AWS::NoValue"]
          NAMES: !Sub ["${Pre}-${AWS::StackName}-${Dead.Arn}-${!kept}", { Pre: !Join ["+", [a, !Ref "AWS::Region"]] }]
      Events:
        Http: { Type: HttpApi }
        Retry: { Type: SQS, Properties: { Queue: !GetAtt Queue.Arn, BatchSize: 5, FunctionResponseTypes: [ReportBatchItemFailures] } }
  Sweep:
    Type: AWS::Scheduler::Schedule
    Properties:
      ScheduleExpression: rate(1 minute)
      Target: { Arn: !Ref ConfirmFunction.Alias, Input: '{"kind":"sweep"}' }
"#;

    fn scope() -> Scope {
        let attributes = |reference: &str, arn: &str| Attributes {
            reference: reference.to_owned(),
            attributes: BTreeMap::from([("Arn".to_owned(), arn.to_owned())]),
        };
        Scope {
            stack: "s".to_owned(),
            region: "us-east-1".to_owned(),
            parameters: BTreeMap::new(),
            resources: BTreeMap::from([
                ("Table".to_owned(), attributes("s-Table", "arn:t")),
                ("Dead".to_owned(), attributes("http://dead", "arn:d")),
                ("ConfirmFunction".to_owned(), attributes("confirm", "arn:aws:lambda:r:a:function:confirm")),
                ("ConfirmFunction.Alias".to_owned(), attributes("arn:aws:lambda:r:a:function:confirm:live", "")),
            ]),
        }
    }

    #[test]
    fn a_function_has_its_own_variables_over_the_shared_ones() {
        let template = Template::parse(TEMPLATE).unwrap();
        let mut scope = scope();
        let function = template.functions(&scope).unwrap().remove(0);
        assert_eq!((function.binary.as_str(), function.memory_mb), ("confirm", 512));
        assert_eq!(function.queues.len(), 1);
        assert_eq!((function.queues[0].queue.as_str(), function.queues[0].batch_size), ("Queue", 5));
        assert!(function.queues[0].partial_failures);
        let variables = template.environment(&scope, &function).unwrap();
        let expected =
            [("LOG", "debug"), ("NAMES", "a+us-east-1-s-arn:d-${kept}"), ("SLOT", "10"), ("TABLE", "s-Table")];
        assert_eq!(variables, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        scope.parameters.insert("Issuer".to_owned(), "https://issuer".to_owned());
        assert_eq!(template.environment(&scope, &function).unwrap()["MAYBE"], "https://issuer");
    }

    #[test]
    fn a_conditional_resource_exists_only_where_its_condition_holds() {
        let template = Template::parse(TEMPLATE).unwrap();
        let mut scope = scope();
        let ids = |scope: &Scope| {
            let found = template.resources(scope, "AWS::SQS::Queue").unwrap();
            found.iter().map(|resource| resource.id.to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&scope), ["Dead", "Queue"]);
        scope.parameters.insert("Issuer".to_owned(), "https://issuer".to_owned());
        assert_eq!(ids(&scope), ["Dead", "Extra", "Queue"]);
    }

    #[test]
    fn an_unknown_parameter_or_a_value_that_is_not_allowed_is_refused() {
        let template = Template::load(&crate::paths::workspace().join("template.yaml")).unwrap();
        let refused = |name: &str, value: &str| {
            let given = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            template.check_parameters(&given).err().map(|error| error.to_string())
        };
        assert_eq!(refused("CorsAllowOrigins", "http://localhost:5173"), None);
        assert_eq!(refused("CustomerRateLimit", "5"), None);
        assert_eq!(refused("DeletionProtection", "false"), None);
        let unknown = refused("CorsOrigins", "*").unwrap();
        assert!(unknown.contains("CorsOrigins") && unknown.contains("CorsAllowOrigins, "), "{unknown}");
        let why = refused("CustomerRateLimit", "many").unwrap();
        assert_eq!(
            why,
            "the parameter CustomerRateLimit must be a number of at least 0 and of at most 10000, not \"many\""
        );
        assert!(refused("ApiRateLimit", "-1").unwrap().contains("a number of at least 0, not"));
        assert!(refused("DeletionProtection", "no").unwrap().contains("one of true, false"));
    }

    #[test]
    fn what_cannot_be_resolved_is_named() {
        let template = Template::parse(TEMPLATE).unwrap();
        let fails = |yaml: &str| {
            let value = long_form(serde_norway::from_str(yaml).unwrap()).unwrap();
            template.resolve(&scope(), &value).unwrap_err().to_string()
        };
        assert!(fails("!Ref Nobody").contains("!Ref Nobody"));
        assert!(fails("!GetAtt Table.StreamArn").contains("Table.StreamArn"));
        assert!(fails("!Select [0, [a]]").contains("Fn::Select"));
        assert!(fails("!Sub \"${Table\"").contains("${"));
    }

    #[test]
    fn a_recurring_schedule_names_its_function() {
        let template = Template::parse(TEMPLATE).unwrap();
        let schedule = template.recurring_schedules(&scope()).unwrap().remove(0);
        assert_eq!((schedule.function.as_str(), schedule.every.as_secs()), ("confirm", 60));
        assert_eq!(rate("rate(5 minutes)").map(|every| every.as_secs()), Some(300));
        assert_eq!(rate("rate(0 minutes)"), None);
        assert_eq!(rate("cron(0 0 * * ? *)"), None);
    }

    #[test]
    fn an_alias_is_referred_to_through_its_function() {
        let template = Template::parse(TEMPLATE).unwrap();
        let value = |yaml: &str| long_form(serde_norway::from_str(yaml).unwrap()).unwrap();
        for yaml in ["!Ref ConfirmFunction.Alias", "!Sub \"${ConfirmFunction.Alias}\""] {
            let alias = template.resolve(&scope(), &value(yaml)).unwrap();
            assert_eq!(alias, "arn:aws:lambda:r:a:function:confirm:live", "{yaml}");
            assert_eq!(references(&value(yaml)), BTreeSet::from(["ConfirmFunction".to_owned()]), "{yaml}");
        }
        let why = template.resolve(&scope(), &value("!Ref Table.Alias")).unwrap_err().to_string();
        assert!(why.contains("!Ref Table.Alias"), "{why}");

        let alias = |text: &str| Template::parse(text).unwrap().functions(&scope()).unwrap().remove(0).alias;
        let shared = TEMPLATE.replace("    MemorySize: 512\n", "    AutoPublishAlias: live\n");
        assert_eq!(alias(TEMPLATE), None);
        assert_eq!(alias(&shared).as_deref(), Some("live"));
        let own = shared.replace("      CodeUri: .\n", "      CodeUri: .\n      AutoPublishAlias: own\n");
        assert_eq!(alias(&own).as_deref(), Some("own"));
    }

    #[test]
    fn a_functions_arn_names_it_with_and_without_an_alias() {
        assert_eq!(function_name("arn:aws:lambda:r:1:function:expire"), Some("expire"));
        assert_eq!(function_name("arn:aws:lambda:r:1:function:expire:live"), Some("expire"));
        assert_eq!(function_name("arn:aws:lambda:r:1:function:"), None);
        assert_eq!(function_name("arn:aws:sqs:r:1:expire"), None);
    }

    /// SAM publishes a version when the template's text changes, not when a parameter does, and Lambda publishes none of
    /// a function that did not change: so the description of the version has to name the parameters that the function's
    /// variables are made of, and no other.
    #[test]
    fn a_version_is_described_by_the_parameters_that_its_function_reads() {
        let template = Template::load(&crate::paths::workspace().join("template.yaml")).unwrap();
        let shared = &template.root["Globals"]["Function"]["Environment"];
        let functions = template.resources(&scope(), "AWS::Serverless::Function").unwrap();
        assert_eq!(functions.len(), 5);
        for Resource { id, properties } in functions {
            let mut read = parameters(&template, shared);
            read.extend(parameters(&template, &properties["Environment"]));
            // Versions have it too.
            read.extend(parameters(&template, &template.root["Globals"]["Function"]["Tracing"]));
            assert_eq!(parameters(&template, &properties["VersionDescription"]), read, "{id}");
            assert_eq!(properties["AutoPublishAliasAllProperties"], true, "{id}");
        }
    }

    /// The parameters that a value depends on, those of its conditions among them.
    fn parameters(template: &Template, value: &Value) -> BTreeSet<String> {
        let mut found = references(value);
        match value {
            Value::Object(map) => {
                for (name, inner) in map {
                    if name == "Fn::If" {
                        let condition = inner[0].as_str().unwrap();
                        found.extend(parameters(template, &template.root["Conditions"][condition]));
                    }
                    found.extend(parameters(template, inner));
                }
            }
            Value::Array(list) => list.iter().for_each(|inner| found.extend(parameters(template, inner))),
            _ => {}
        }
        found.retain(|name| template.root["Parameters"].get(name).is_some());
        found
    }

    #[test]
    fn references_are_found_at_any_depth() {
        let template = Template::parse(TEMPLATE).unwrap();
        let queues = template.resources(&scope(), "AWS::SQS::Queue").unwrap();
        let queue = queues.iter().find(|resource| resource.id == "Queue").unwrap();
        assert_eq!(references(queue.properties), BTreeSet::from(["Dead".to_owned()]));
    }
}
