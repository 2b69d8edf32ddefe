//! Rules that must hold for every deployment, checked on template.yaml as SAM expands it. (One table of rules and their
//! breaches, hence the length.)
//!
//! A rule returns its violations. [`breaches`] shows that each rule catches its breach.

use std::collections::BTreeSet;

use holdfast_aws::metrics;
use holdfast_aws::queues::retry_delay;
use holdfast_http::SERVICE_SCOPE;
use holdfast_local::template::references;
use holdfast_store::{keys, measure};
use holdfast_testkit::database::projection;
use serde_json::{Map, Value, json};

/// The one function whose routes need no token.
const PUBLIC: &str = "CatalogFunction";
/// Another one's routes that need none: those of a page without data.
const PAGE: [&str; 3] = ["/admin", "/admin/console/config.json", "/admin/console/{file}"];
/// The minimum time in seconds that a confirmation is retried: an outage may last a few hours.
const LONGEST_OUTAGE: u64 = 6 * 3_600;

/// A template that SAM has expanded.
#[derive(Clone)]
pub(crate) struct Expanded {
    pub(crate) root: Value,
}

/// What a rule found.
pub(crate) type Findings = Vec<String>;
type Rule = fn(&Expanded) -> Findings;

/// All rules, by name.
pub(crate) const RULES: [(&str, Rule); 14] = [
    ("each_function_logs_to_a_group_of_its_own_that_forgets", logs),
    ("each_role_is_one_functions_own_and_names_what_it_may", roles),
    ("a_queue_that_drives_a_function_gives_it_time_and_a_way_out", event_sources),
    ("what_nobody_waits_for_ends_in_a_dead_letter_queue", asynchronous),
    ("each_dead_letter_queue_has_an_alarm", alarms),
    ("the_table_survives_mistakes", table),
    ("what_is_stored_is_encrypted", encryption),
    ("nothing_of_the_local_stack_can_be_deployed", deployed_only),
    ("only_the_catalog_is_open_to_anyone", tokens),
    ("what_is_looked_for_through_an_index_is_found_there", indexes),
    ("the_catalog_reads_nothing_of_customers", leading_keys),
    ("sign_in_keeps_secrets_and_gives_none_away", sign_in),
    ("only_a_parameter_reserves_concurrency", concurrency),
    ("what_goes_wrong_raises_an_alarm", watched),
];

impl Expanded {
    fn of<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let resources = self.root["Resources"].as_object();
        resources
            .into_iter()
            .flatten()
            .filter(move |(_, resource)| resource["Type"] == kind)
            .map(|(id, r)| (id.as_str(), &r["Properties"]))
    }

    fn is(&self, id: &str, kind: &str) -> bool {
        self.root["Resources"][id]["Type"] == kind
    }

    /// The resource of one kind that a value refers to, if it refers to exactly one.
    fn one(&self, value: &Value, kind: &str) -> Option<String> {
        let mut ids = references(value).into_iter().filter(|id| self.is(id, kind));
        ids.next().filter(|_| ids.next().is_none())
    }

    fn properties(&self, id: &str) -> &Value {
        &self.root["Resources"][id]["Properties"]
    }

    fn functions(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.of("AWS::Lambda::Function")
    }

    /// The function that a value refers to, itself or by one of its aliases.
    fn function(&self, value: &Value) -> Option<String> {
        self.one(value, "AWS::Lambda::Function").or_else(|| {
            let alias = self.one(value, "AWS::Lambda::Alias")?;
            self.one(&self.properties(&alias)["FunctionName"], "AWS::Lambda::Function")
        })
    }

    /// The statements of a role's own policies.
    fn statements(&self, role: &str) -> Vec<&Value> {
        let policies = self.properties(role)["Policies"].as_array();
        // Also those under a condition.
        let policies =
            policies.into_iter().flatten().map(|policy| policy.get("Fn::If").map_or(policy, |cases| &cases[1]));
        let documents = policies.map(|policy| &policy["PolicyDocument"]["Statement"]);
        documents.flat_map(|statements| statements.as_array().into_iter().flatten()).collect()
    }

    /// Whether a role allows an action on the very resource that `resource` names.
    fn allows(&self, role: &str, action: &str, resource: &Value) -> bool {
        self.statements(role).into_iter().any(|statement| {
            statement["Effect"] == "Allow"
                && list(&statement["Action"]).contains(&&json!(action))
                && list(&statement["Resource"]).contains(&resource)
        })
    }

    /// Whether a parameter decides which of two values it is.
    fn is_decided_by(&self, value: &Value, parameter: &str) -> bool {
        let condition = value["Fn::If"][0].as_str().unwrap_or_default();
        references(&self.root["Conditions"][condition]).contains(parameter)
    }

    fn trusts(&self, role: &str, service: &str) -> bool {
        let statements = self.properties(role)["AssumeRolePolicyDocument"]["Statement"].as_array();
        statements
            .into_iter()
            .flatten()
            .any(|statement| list(&statement["Principal"]["Service"]).contains(&&json!(service)))
    }

    /// The queues that something gives up into.
    fn dead_letter_queues(&self) -> BTreeSet<String> {
        let redrives = self.of("AWS::SQS::Queue").map(|(_, queue)| &queue["RedrivePolicy"]["deadLetterTargetArn"]);
        let schedules =
            self.of("AWS::Scheduler::Schedule").map(|(_, schedule)| &schedule["Target"]["DeadLetterConfig"]);
        let calls =
            self.of("AWS::Lambda::EventInvokeConfig").map(|(_, config)| &config["DestinationConfig"]["OnFailure"]);
        redrives.chain(schedules).chain(calls).filter_map(|value| self.one(value, "AWS::SQS::Queue")).collect()
    }
}

/// A value, or each of a list of them.
fn list(value: &Value) -> Vec<&Value> {
    value.as_array().map_or_else(|| vec![value], |values| values.iter().collect())
}

fn logs(template: &Expanded) -> Findings {
    let (mut findings, mut seen) = (Vec::new(), BTreeSet::new());
    for (id, function) in template.functions() {
        let Some(group) = template.one(&function["LoggingConfig"]["LogGroup"], "AWS::Logs::LogGroup") else {
            findings.push(format!("{id} logs to no group of the template"));
            continue;
        };
        if template.properties(&group)["RetentionInDays"].is_null() {
            findings.push(format!("{group} keeps its lines for ever"));
        }
        if !seen.insert(group.clone()) {
            findings.push(format!("{id} shares {group} with another function"));
        }
    }
    for (id, stage) in template.of("AWS::ApiGatewayV2::Stage") {
        match template.one(&stage["AccessLogSettings"]["DestinationArn"], "AWS::Logs::LogGroup") {
            None => findings.push(format!("a request that reaches no function leaves no line of {id}")),
            Some(group) if template.properties(&group)["RetentionInDays"].is_null() => {
                findings.push(format!("{group} keeps its lines for ever"));
            }
            Some(_) => {}
        }
    }
    findings
}

fn roles(template: &Expanded) -> Findings {
    let (mut findings, mut seen) = (Vec::new(), BTreeSet::new());
    for (id, function) in template.functions() {
        let Some(role) = template.one(&function["Role"], "AWS::IAM::Role") else {
            findings.push(format!("{id} has no role of the template"));
            continue;
        };
        if !template.trusts(&role, "lambda.amazonaws.com") {
            findings.push(format!("{role} cannot be taken on by Lambda"));
        }
        if !seen.insert(role.clone()) {
            findings.push(format!("{id} shares {role} with another function"));
        }
    }
    for (role, properties) in template.of("AWS::IAM::Role") {
        // CodeDeploy's role is made by SAM, with the policy that AWS keeps for it.
        if template.trusts(role, "codedeploy.amazonaws.com") {
            continue;
        }
        if !properties["ManagedPolicyArns"].is_null() {
            findings.push(format!("{role} takes what a managed policy gives"));
        }
        for statement in template.statements(role) {
            for action in list(&statement["Action"]) {
                if action.as_str().is_none_or(|action| action.contains('*')) {
                    findings.push(format!("{role} may {action}"));
                }
            }
            // X-Ray has no resources.
            if list(&statement["Action"])
                .iter()
                .all(|action| action.as_str().is_some_and(|a| a.starts_with("xray:Put")))
            {
                continue;
            }
            for resource in list(&statement["Resource"]) {
                // A wildcard is only allowed at the end of a name that begins with a resource of the template.
                let named = !references(resource).is_empty();
                if !named || resource.to_string().replace("/*\"", "\"").contains('*') {
                    findings.push(format!("{role} may act on {resource}"));
                }
            }
        }
    }
    findings
}

fn event_sources(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, mapping) in template.of("AWS::Lambda::EventSourceMapping") {
        let mut wrong = |what: &str| findings.push(format!("{id}: {what}"));
        let (Some(queue), Some(function)) =
            (template.one(&mapping["EventSourceArn"], "AWS::SQS::Queue"), template.function(&mapping["FunctionName"]))
        else {
            wrong("its queue or its function is none of the template");
            continue;
        };
        let (queue, properties) = (template.properties(&queue), template.properties(&function));
        let timeout = properties["Timeout"].as_u64().unwrap_or(3);
        // https://docs.aws.amazon.com/lambda/latest/dg/services-sqs-configure.html: at least six times.
        if queue["VisibilityTimeout"].as_u64().unwrap_or(30) < 6 * timeout {
            wrong("the queue shows a message again before its function has had six times its timeout");
        }
        if mapping["ScalingConfig"]["MaximumConcurrency"].is_null() {
            wrong("nothing limits how many of the function the queue drives");
        }
        if !list(&mapping["FunctionResponseTypes"]).contains(&&json!("ReportBatchItemFailures")) {
            wrong("one bad message sends the whole batch back");
        }
        let dead = &queue["RedrivePolicy"]["deadLetterTargetArn"];
        match template.one(dead, "AWS::SQS::Queue") {
            Some(dead) => {
                let kept = |queue: &Value| queue["MessageRetentionPeriod"].as_u64().unwrap_or(345_600);
                // A message keeps its first time when it moves: a shorter retention would lose it at once.
                if kept(template.properties(&dead)) <= kept(queue) {
                    wrong("the dead-letter queue forgets as soon as the queue itself");
                }
                // Ten is SQS's own.
                let receives = queue["RedrivePolicy"]["maxReceiveCount"].as_u64().unwrap_or(10);
                let receives = u32::try_from(receives).unwrap_or(u32::MAX);
                // The function sets the delay behind each receive but the last, behind which the message moves.
                if delays(1..receives) < LONGEST_OUTAGE {
                    wrong("the queue gives up before a service that was away for hours is back");
                }
                // Whatever else delays a message, such as a function that is switched off, has as long again.
                if 2 * delays(1..receives.saturating_add(1)) > kept(queue) {
                    wrong("the queue may forget a message before its tries are over");
                }
            }
            None => wrong("the queue has no dead-letter queue"),
        }
        let role = template.one(&properties["Role"], "AWS::IAM::Role").unwrap_or_default();
        for action in ["sqs:DeleteMessage", "sqs:GetQueueAttributes", "sqs:ReceiveMessage"] {
            if !template.allows(&role, action, &mapping["EventSourceArn"]) {
                wrong(&format!("{role} does not allow {action}, by which Lambda polls"));
            }
        }
        if !template.allows(&role, "sqs:ChangeMessageVisibility", &mapping["EventSourceArn"]) {
            wrong(&format!("{role} does not allow the function to say when a message that failed comes back"));
        }
    }
    if template.of("AWS::Lambda::EventSourceMapping").next().is_none() {
        findings.push("no queue drives a function: confirmations would wait for ever".to_owned());
    }
    findings
}

/// How many seconds a message stays away behind these receives together.
fn delays(receives: std::ops::Range<u32>) -> u64 {
    // Past a thousand, which is SQS's limit, there is nothing to add up.
    receives.take(1_000).map(|nth| retry_delay(nth).as_secs()).sum()
}

fn asynchronous(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    // Recurring schedules are in the template; `reserve` creates the others with its variables.
    let mut targets = Vec::new();
    for (id, schedule) in template.of("AWS::Scheduler::Schedule") {
        let target = &schedule["Target"];
        if target["RetryPolicy"].is_null() {
            findings.push(format!("{id} retries as long as Scheduler pleases"));
        }
        targets.push((id.to_owned(), &target["Arn"], &target["RoleArn"], &target["DeadLetterConfig"]["Arn"]));
    }
    if targets.is_empty() {
        findings.push("no recurring schedule: a lost one-time schedule would hold units for ever".to_owned());
    }
    for (id, function) in template.functions() {
        let variables = &function["Environment"]["Variables"];
        if !variables["SCHEDULE_ROLE_ARN"].is_null() {
            let [arn, role, dead] =
                ["EXPIRE_FUNCTION_ARN", "SCHEDULE_ROLE_ARN", "SCHEDULE_DLQ_ARN"].map(|name| &variables[name]);
            targets.push((format!("{id}'s schedules"), arn, role, dead));
        }
    }
    for (id, arn, role, dead) in targets {
        let mut wrong = |what: String| findings.push(format!("{id}: {what}"));
        let Some(function) = template.function(arn) else {
            wrong("the target is no function of the template".to_owned());
            continue;
        };
        let Some(role) = template.one(role, "AWS::IAM::Role") else {
            wrong("the role is none of the template".to_owned());
            continue;
        };
        if !template.trusts(&role, "scheduler.amazonaws.com") {
            wrong(format!("{role} cannot be taken on by Scheduler"));
        }
        if !template.allows(&role, "lambda:InvokeFunction", arn) {
            wrong(format!("{role} does not allow to call the target"));
        }
        if template.one(dead, "AWS::SQS::Queue").is_none() {
            wrong("a call that failed for good goes nowhere".to_owned());
        }
        if !template.allows(&role, "sqs:SendMessage", dead) {
            wrong(format!("{role} does not allow to send to the dead-letter queue"));
        }
        // Scheduler calls and is done: what fails after that is Lambda's to keep.
        let config = template
            .of("AWS::Lambda::EventInvokeConfig")
            .find(|(_, config)| template.function(&config["FunctionName"]).as_ref() == Some(&function));
        let destination = config.map(|(_, config)| &config["DestinationConfig"]["OnFailure"]["Destination"]);
        match destination.filter(|destination| template.one(destination, "AWS::SQS::Queue").is_some()) {
            None => wrong(format!("{function} is called without waiting, and its failures go nowhere")),
            Some(destination) => {
                let role = template.one(&template.properties(&function)["Role"], "AWS::IAM::Role").unwrap_or_default();
                if !template.allows(&role, "sqs:SendMessage", destination) {
                    wrong(format!("{role} does not allow Lambda to keep a failed event"));
                }
            }
        }
    }
    findings
}

fn alarms(template: &Expanded) -> Findings {
    let watched = |queue: &str, metric: &str| {
        template.of("AWS::CloudWatch::Alarm").any(|(_, alarm)| {
            alarm["MetricName"] == metric
                && references(&alarm["Dimensions"]).contains(queue)
                && references(&alarm["AlarmActions"]).contains("AlarmTopicArn")
        })
    };
    // A function may empty the queue before its messages are counted.
    let emptied = |queue: &str| {
        let arn = json!({"Fn::GetAtt": [queue, "Arn"]});
        template.of("AWS::IAM::Role").any(|(role, _)| template.allows(role, "sqs:ReceiveMessage", &arn))
    };
    let mut findings = Vec::new();
    for queue in template.dead_letter_queues() {
        if !watched(&queue, "ApproximateNumberOfMessagesVisible") {
            findings.push(format!("nobody hears that something lies in {queue}"));
        }
        if emptied(&queue) && !watched(&queue, "NumberOfMessagesReceived") {
            findings.push(format!("nobody hears that something was taken out of {queue}"));
        }
    }
    findings
}

/// Each function, each queue with a function behind it, and what only the functions can count has an alarm, which tells
/// somebody and is of this stack.
fn watched(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    let of = |namespace: &str, metric: &str, resource: &str| {
        template.of("AWS::CloudWatch::Alarm").any(|(_, alarm)| {
            alarm["Namespace"] == namespace
                && alarm["MetricName"] == metric
                && references(&alarm["Dimensions"]).contains(resource)
                // Those of a canary only stop the deployment.
                && references(&alarm["AlarmActions"]).contains("AlarmTopicArn")
        })
    };
    for (id, _) in template.functions() {
        for metric in ["Errors", "Throttles"].into_iter().filter(|metric| !of("AWS/Lambda", metric, id)) {
            findings.push(format!("nobody hears of the {metric} of {id}"));
        }
    }
    for (id, mapping) in template.of("AWS::Lambda::EventSourceMapping") {
        let queue = template.one(&mapping["EventSourceArn"], "AWS::SQS::Queue").unwrap_or_default();
        if !of("AWS/SQS", "ApproximateAgeOfOldestMessage", &queue) {
            findings.push(format!("nobody hears that messages wait for {id}"));
        }
    }
    let needed =
        [measure::OPEN_FAILED_CONFIRMATIONS, measure::SWEEPS, measure::RELEASE_LAG, measure::THROTTLES, measure::DRIFT];
    for metric in needed.iter().filter(|metric| !of(metrics::NAMESPACE, metric.name, "AWS::StackName")) {
        findings.push(format!("nobody hears of {}", metric.name));
    }
    for (id, alarm) in template.of("AWS::CloudWatch::Alarm") {
        let own = alarm["Namespace"] == metrics::NAMESPACE;
        if own && alarm["Dimensions"] != json!([{"Name": metrics::STACK, "Value": {"Ref": "AWS::StackName"}}]) {
            findings.push(format!("{id} is not of this stack"));
        }
        if alarm["MetricName"] == measure::SWEEPS.name && alarm["TreatMissingData"] != "breaching" {
            findings.push(format!("{id} does not see that there was no sweep"));
        }
    }
    findings
}

fn table(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, table) in template.of("AWS::DynamoDB::Table") {
        let mut wrong = |what: &str| findings.push(format!("{id}: {what}"));
        if table["PointInTimeRecoverySpecification"]["PointInTimeRecoveryEnabled"] != true {
            wrong("no point-in-time recovery");
        }
        if !template.is_decided_by(&table["DeletionProtectionEnabled"], "DeletionProtection") {
            wrong("deletion protection does not follow its parameter");
        }
        for policy in ["DeletionPolicy", "UpdateReplacePolicy"] {
            if template.root["Resources"][id][policy] != "Retain" {
                wrong(&format!("{policy} does not retain it"));
            }
        }
    }
    if template.root["Parameters"]["DeletionProtection"]["Default"] != "true" {
        findings.push("deletion protection is off unless asked for".to_owned());
    }
    findings
}

/// The indexes exist, with their keys; and a role that changes stock may query overdue holds, which are
/// released before anything is refused for want of units.
fn indexes(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, table) in template.of("AWS::DynamoDB::Table") {
        let wanted = keys::INDEXES.map(|index| {
            let (hash, range) = (index.partition_key, index.sort_key);
            json!({
                "IndexName": index.name,
                "KeySchema": [
                    {"AttributeName": hash, "KeyType": "HASH"}, {"AttributeName": range, "KeyType": "RANGE"},
                ],
                "Projection": projection(&index),
            })
        });
        let has = |wanted: &Value| {
            list(&table["GlobalSecondaryIndexes"])
                .into_iter()
                .any(|index| ["IndexName", "KeySchema", "Projection"].iter().all(|name| index[*name] == wanted[*name]))
        };
        for missing in wanted.iter().filter(|wanted| !has(wanted)) {
            findings.push(format!("{id} has no index {missing}"));
        }
        // The stack's own, or the one that a parameter names.
        let other = "arn:${AWS::Partition}:dynamodb:${AWS::Region}:${AWS::AccountId}:table/${ExistingTableName}";
        let table = json!({"Fn::If": ["HasOwnTable", {"Fn::GetAtt": [id, "Arn"]}, {"Fn::Sub": other}]});
        let due = json!({"Fn::Sub": ["${Arn}/index/due", { "Arn": table }]});
        for (role, _) in template.of("AWS::IAM::Role") {
            let changes = template.statements(role).into_iter().any(|statement| {
                list(&statement["Action"]).contains(&&json!("dynamodb:UpdateItem"))
                    && references(&statement["Resource"]).contains(id)
            });
            if changes && !template.allows(role, "dynamodb:UpdateItem", &table) {
                findings.push(format!("{role} may not change the table that a parameter names"));
            }
            if changes && !template.allows(role, "dynamodb:Query", &due) {
                findings.push(format!("{role} changes stock, and may not look for holds that are overdue"));
            }
        }
    }
    findings
}

fn encryption(template: &Expanded) -> Findings {
    // DynamoDB encrypts every table; by which key is a parameter's to say.
    let tables = template
        .of("AWS::DynamoDB::Table")
        .filter(|(_, table)| !template.is_decided_by(&table["SSESpecification"], "TableKeyArn"));
    let queues = template.of("AWS::SQS::Queue").filter(|(_, queue)| queue["SqsManagedSseEnabled"] != true);
    tables.chain(queues).map(|(id, _)| format!("{id} is not encrypted as it should be")).collect()
}

fn deployed_only(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, function) in template.functions() {
        for (name, value) in function["Environment"]["Variables"].as_object().into_iter().flatten() {
            if name.contains("LOCAL") || name.contains("TEST") {
                findings.push(format!("{id} is given {name}"));
            }
            if name == "AWS_ENDPOINT_URL" && *value != endpoint_by_parameter() {
                findings.push(format!("{id} is given an endpoint that no parameter switches off"));
            }
        }
    }
    if template.root["Parameters"]["AwsEndpointUrl"]["Default"] != "" {
        findings.push("the functions would not call AWS unless asked to".to_owned());
    }
    findings
}

fn endpoint_by_parameter() -> Value {
    json!({"Fn::If": ["HasAwsEndpointUrl", {"Ref": "AwsEndpointUrl"}, {"Ref": "AWS::NoValue"}]})
}

fn tokens(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    let mut routes = 0;
    for (_, api) in template.of("AWS::ApiGatewayV2::Api") {
        for (path, operations) in api["Body"]["paths"].as_object().into_iter().flatten() {
            for (method, operation) in operations.as_object().into_iter().flatten() {
                routes += 1;
                let called = references(&operation["x-amazon-apigateway-integration"]["uri"]);
                let public = called.iter().any(|id| id == PUBLIC || id.starts_with(&format!("{PUBLIC}Alias")));
                let public = public || (method == "get" && PAGE.contains(&path.as_str()));
                let checked = list(&operation["security"]).iter().any(|scheme| scheme.get("Jwt").is_some());
                if !public && !checked {
                    findings.push(format!("{method} {path} asks for no token"));
                }
            }
        }
    }
    if routes == 0 {
        findings.push("the API has no routes".to_owned());
    }
    findings
}

/// The catalog answers anybody, so it can only read products, stock and the index of holds, and write what it shows.
fn leading_keys(template: &Expanded) -> Findings {
    let readable = [keys::CATALOG, "PRODUCT#*", "STOCK#*", "VIEW#*", "DUE#*"];
    let role = template.one(&template.properties(PUBLIC)["Role"], "AWS::IAM::Role").unwrap_or_default();
    let mut findings = Vec::new();
    for statement in template.statements(&role) {
        let named = list(&statement["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"]);
        for action in list(&statement["Action"]).into_iter().filter_map(Value::as_str) {
            let reads = ["dynamodb:BatchGetItem", "dynamodb:GetItem", "dynamodb:Query"].contains(&action);
            let limited = named.iter().all(|key| key.as_str().is_some_and(|key| readable.contains(&key)));
            let writes = action == "dynamodb:UpdateItem" && named == [&json!("VIEW#*")];
            if action.starts_with("dynamodb:") && !(reads && limited && !named.is_empty() || writes) {
                findings.push(format!("{role} may {action} of {named:?}"));
            }
        }
    }
    findings
}

/// The user pool tells nobody who has an account, a page has no secret, and only a back end's client gets its scope.
fn sign_in(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, pool) in template.of("AWS::Cognito::UserPool") {
        let mut wrong = |what: &str| findings.push(format!("{id}: {what}"));
        if !pool["UsernameAttributes"].is_null() || pool["AliasAttributes"] != json!(["email"]) {
            wrong("signing up tells who has an account, or nobody signs in with an address");
        }
        if !references(&pool["UserPoolTier"]).contains("UserPoolTier") {
            wrong("its tier is the one that Cognito gives to new pools");
        }
        if pool["MfaConfiguration"] == "OFF" || pool["EnabledMfas"] != json!(["SOFTWARE_TOKEN_MFA"]) {
            wrong("an admin cannot use an authenticator app");
        }
        if !template.is_decided_by(&pool["EmailConfiguration"], "EmailSender") {
            wrong("no parameter says who sends its codes");
        }
    }
    let accepted = template.of("AWS::ApiGatewayV2::Api").flat_map(|(_, api)| references(&api["Body"]["components"]));
    let accepted: BTreeSet<String> = accepted.collect();
    for (id, client) in template.of("AWS::Cognito::UserPoolClient") {
        let mut wrong = |what: &str| findings.push(format!("{id}: {what}"));
        let flows = list(&client["AllowedOAuthFlows"]);
        let is_back_end = flows == [&json!("client_credentials")];
        if flows.contains(&&json!("implicit")) {
            wrong("a token would be in a page's URL");
        }
        if client["GenerateSecret"] != is_back_end {
            wrong("a page has a secret, or a back end has none");
        }
        if list(&client["AllowedOAuthScopes"]).contains(&&json!(SERVICE_SCOPE)) != is_back_end {
            wrong("a user gets a back end's scope, or a back end does not");
        }
        if client["PreventUserExistenceErrors"] != "ENABLED" {
            wrong("it tells who has an account");
        }
        if !accepted.contains(id) {
            wrong("the API refuses its tokens");
        }
    }
    let scopes = template.of("AWS::Cognito::UserPoolResourceServer").flat_map(|(_, server)| {
        let of_server = |scope: &Value| format!("{}/{}", text(&server["Identifier"]), text(&scope["ScopeName"]));
        list(&server["Scopes"]).into_iter().map(of_server).collect::<Vec<_>>()
    });
    if !scopes.into_iter().any(|scope| scope == SERVICE_SCOPE) {
        findings.push(format!("nothing defines the scope {SERVICE_SCOPE}"));
    }
    findings
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// What one function reserves, all others of the account lose: a new account could not deploy it.
fn concurrency(template: &Expanded) -> Findings {
    let mut findings = Vec::new();
    for (id, parameter) in [("CatalogFunction", "CatalogConcurrency"), ("ConfirmFunction", "ConfirmConcurrency")] {
        if !template.is_decided_by(&template.properties(id)["ReservedConcurrentExecutions"], parameter) {
            findings.push(format!("{parameter} does not decide what {id} reserves"));
        }
        if template.root["Parameters"][parameter]["Default"] != 0 {
            findings.push(format!("{parameter} reserves without being asked"));
        }
    }
    findings
}

/// The rule, the name of the breach, and the change of the template.
type Breach = (&'static str, &'static str, fn(&mut Value));

/// The breaches of each rule.
pub(crate) fn breaches() -> Vec<Breach> {
    fn of<'a>(root: &'a mut Value, id: &str) -> &'a mut Value {
        &mut root["Resources"][id]["Properties"]
    }
    fn without(value: &mut Value, name: &str) {
        let removed = value.as_object_mut().and_then(|map: &mut Map<String, Value>| map.remove(name));
        assert!(removed.is_some(), "there is no {name} to remove");
    }
    fn statement<'a>(root: &'a mut Value, role: &str, action: &str) -> &'a mut Value {
        let statements = of(root, role)["Policies"][0]["PolicyDocument"]["Statement"].as_array_mut().unwrap();
        statements.iter_mut().find(|statement| list(&statement["Action"]).contains(&&json!(action))).unwrap()
    }
    fn mapping(root: &mut Value) -> &mut Value {
        let resources = root["Resources"].as_object_mut().unwrap().values_mut();
        let mut mappings = resources.filter(|resource| resource["Type"] == "AWS::Lambda::EventSourceMapping");
        &mut mappings.next().unwrap()["Properties"]
    }
    const LOGS: &str = RULES[0].0;
    const ROLES: &str = RULES[1].0;
    const SOURCES: &str = RULES[2].0;
    const ASYNCHRONOUS: &str = RULES[3].0;
    const ALARMS: &str = RULES[4].0;
    const TABLE: &str = RULES[5].0;
    const ENCRYPTION: &str = RULES[6].0;
    const DEPLOYED: &str = RULES[7].0;
    const TOKENS: &str = RULES[8].0;
    const INDEXES: &str = RULES[9].0;
    const LEADING_KEYS: &str = RULES[10].0;
    const SIGN_IN: &str = RULES[11].0;
    const CONCURRENCY: &str = RULES[12].0;
    const WATCHED: &str = RULES[13].0;
    vec![
        (LOGS, "no group", |t| without(of(t, "ExpireFunction"), "LoggingConfig")),
        (LOGS, "no retention", |t| without(of(t, "AdminLogGroup"), "RetentionInDays")),
        (LOGS, "a shared group", |t| {
            of(t, "AdminFunction")["LoggingConfig"]["LogGroup"] = json!({"Ref": "ExpireLogGroup"});
        }),
        (LOGS, "an API without a log", |t| {
            let mut resources = t["Resources"].as_object_mut().unwrap().values_mut();
            let stage = resources.find(|resource| resource["Type"] == "AWS::ApiGatewayV2::Stage").unwrap();
            without(&mut stage["Properties"], "AccessLogSettings");
        }),
        (ROLES, "any resource under a condition", |t| {
            of(t, "AdminRole")["Policies"][1]["Fn::If"][1]["PolicyDocument"]["Statement"][0]["Action"] =
                json!("s3:GetObject");
        }),
        (ROLES, "a shared role", |t| of(t, "AdminFunction")["Role"] = json!({"Fn::GetAtt": ["ReserveRole", "Arn"]})),
        (ROLES, "any action", |t| statement(t, "ReserveRole", "dynamodb:PutItem")["Action"] = json!("dynamodb:*")),
        (ROLES, "any resource", |t| statement(t, "ReserveRole", "dynamodb:PutItem")["Resource"] = json!("*")),
        (ROLES, "any table", |t| {
            statement(t, "ReserveRole", "dynamodb:PutItem")["Resource"] =
                json!({"Fn::Sub": "arn:aws:dynamodb:${AWS::Region}:${AWS::AccountId}:table/*-${AWS::StackName}"});
        }),
        (ROLES, "a managed policy", |t| {
            of(t, "ExpireRole")["ManagedPolicyArns"] =
                json!(["arn:aws:iam::aws:policy/service-role/AWSLambdaBasicExecutionRole"]);
        }),
        (ROLES, "another service's role", |t| {
            of(t, "ExpireRole")["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] =
                json!("ec2.amazonaws.com");
        }),
        (SOURCES, "shown again too soon", |t| of(t, "ConfirmationsQueue")["VisibilityTimeout"] = json!(59)),
        (SOURCES, "a longer function", |t| of(t, "ConfirmFunction")["Timeout"] = json!(11)),
        (SOURCES, "any concurrency", |t| without(mapping(t), "ScalingConfig")),
        (SOURCES, "whole batches", |t| without(mapping(t), "FunctionResponseTypes")),
        (SOURCES, "no dead-letter queue", |t| without(of(t, "ConfirmationsQueue"), "RedrivePolicy")),
        (SOURCES, "a forgetful dead-letter queue", |t| {
            without(of(t, "FailedConfirmationsQueue"), "MessageRetentionPeriod");
        }),
        (SOURCES, "a quick end", |t| of(t, "ConfirmationsQueue")["RedrivePolicy"]["maxReceiveCount"] = json!(28)),
        (SOURCES, "tries without an end", |t| {
            of(t, "ConfirmationsQueue")["RedrivePolicy"]["maxReceiveCount"] = json!(1_000);
        }),
        (SOURCES, "a short memory", |t| of(t, "ConfirmationsQueue")["MessageRetentionPeriod"] = json!(21_600)),
        (SOURCES, "no permission to delay", |t| {
            statement(t, "ConfirmRole", "sqs:ChangeMessageVisibility")["Action"] = json!("sqs:GetQueueUrl");
        }),
        (SOURCES, "no permission to poll", |t| {
            statement(t, "ConfirmRole", "sqs:DeleteMessage")["Action"] =
                json!(["sqs:DeleteMessage", "sqs:GetQueueAttributes"]);
        }),
        (SOURCES, "no event source", |t| {
            t["Resources"].as_object_mut().unwrap().retain(|_, r| r["Type"] != "AWS::Lambda::EventSourceMapping");
        }),
        (ASYNCHRONOUS, "a schedule without a way out", |t| {
            without(&mut of(t, "SweepSchedule")["Target"], "DeadLetterConfig");
        }),
        (ASYNCHRONOUS, "no sweep", |t| without(&mut t["Resources"], "SweepSchedule")),
        (ASYNCHRONOUS, "a role that Scheduler cannot take on", |t| {
            of(t, "ScheduleRole")["AssumeRolePolicyDocument"]["Statement"][0]["Principal"]["Service"] =
                json!("lambda.amazonaws.com");
        }),
        (ASYNCHRONOUS, "a role that may not call", |t| {
            statement(t, "ScheduleRole", "lambda:InvokeFunction")["Action"] = json!("lambda:GetFunction");
        }),
        (ASYNCHRONOUS, "a role for another function", |t| {
            statement(t, "ScheduleRole", "lambda:InvokeFunction")["Resource"] =
                json!({"Fn::GetAtt": ["ConfirmFunction", "Arn"]});
        }),
        (ASYNCHRONOUS, "a role that may not give up", |t| {
            statement(t, "ScheduleRole", "sqs:SendMessage")["Action"] = json!("sqs:GetQueueUrl");
        }),
        (ASYNCHRONOUS, "failures of expire that go nowhere", |t| {
            t["Resources"].as_object_mut().unwrap().retain(|_, r| r["Type"] != "AWS::Lambda::EventInvokeConfig");
        }),
        (ASYNCHRONOUS, "failures of expire that Lambda may not keep", |t| {
            statement(t, "ExpireRole", "sqs:SendMessage")["Action"] = json!("sqs:GetQueueUrl");
        }),
        (ALARMS, "no alarm", |t| without(&mut t["Resources"], "ScheduleFailuresAlarm")),
        (ALARMS, "no alarm where a function empties the queue", |t| {
            without(&mut t["Resources"], "FailedConfirmationsArrivedAlarm");
        }),
        (ALARMS, "an alarm that tells nobody", |t| without(of(t, "FailedConfirmationsAlarm"), "AlarmActions")),
        (WATCHED, "crashes that nobody hears of", |t| without(&mut t["Resources"], "AdminErrorsAlarm")),
        (WATCHED, "throttles that nobody hears of", |t| without(&mut t["Resources"], "ConfirmThrottlesAlarm")),
        (WATCHED, "payments that wait unseen", |t| without(&mut t["Resources"], "QueuedConfirmationsAlarm")),
        (WATCHED, "a metric that nobody writes", |t| of(t, "ReleaseLagAlarm")["MetricName"] = json!("lag")),
        (WATCHED, "alarms of all stacks", |t| of(t, "OpenFailedConfirmationsAlarm")["Dimensions"] = json!([])),
        (WATCHED, "sweeps that are not missed", |t| {
            of(t, "SweepsAlarm")["TreatMissingData"] = json!("notBreaching");
        }),
        (WATCHED, "drift that tells nobody", |t| without(of(t, "DriftAlarm"), "AlarmActions")),
        (TABLE, "no recovery", |t| without(of(t, "Table"), "PointInTimeRecoverySpecification")),
        (TABLE, "no protection", |t| of(t, "Table")["DeletionProtectionEnabled"] = json!(false)),
        (TABLE, "protection off by default", |t| t["Parameters"]["DeletionProtection"]["Default"] = json!("false")),
        (TABLE, "deleted with the stack", |t| t["Resources"]["Table"]["DeletionPolicy"] = json!("Delete")),
        (INDEXES, "no index of failed confirmations", |t| {
            of(t, "Table")["GlobalSecondaryIndexes"]
                .as_array_mut()
                .unwrap()
                .retain(|index| index["IndexName"] != "failed");
        }),
        (INDEXES, "an index by something else", |t| {
            of(t, "Table")["GlobalSecondaryIndexes"][2]["KeySchema"][1]["AttributeName"] = json!("created_at");
        }),
        (INDEXES, "an index without what a release needs", |t| {
            of(t, "Table")["GlobalSecondaryIndexes"][0]["Projection"] = json!({"ProjectionType": "KEYS_ONLY"});
        }),
        (INDEXES, "late payments that look for nothing", |t| {
            statement(t, "ConfirmRole", "dynamodb:Query")["Action"] = json!("dynamodb:GetItem");
        }),
        (INDEXES, "a permission for the stack's own table only", |t| {
            statement(t, "ExpireRole", "dynamodb:UpdateItem")["Resource"] = json!({"Fn::GetAtt": ["Table", "Arn"]});
        }),
        (ENCRYPTION, "a key of its own", |t| {
            of(t, "Table")["SSESpecification"] = json!({"SSEEnabled": true});
        }),
        (ENCRYPTION, "a plain queue", |t| of(t, "ScheduleFailuresQueue")["SqsManagedSseEnabled"] = json!(false)),
        (DEPLOYED, "a local key set", |t| {
            of(t, "AdminFunction")["Environment"]["Variables"]["HOLDFAST_LOCAL_KEY_SET"] = json!("{}");
        }),
        (DEPLOYED, "an endpoint by default", |t| {
            t["Parameters"]["AwsEndpointUrl"]["Default"] = json!("http://127.0.0.1:4566");
        }),
        (DEPLOYED, "an endpoint for good", |t| {
            of(t, "AdminFunction")["Environment"]["Variables"]["AWS_ENDPOINT_URL"] = json!({"Ref": "AwsEndpointUrl"});
        }),
        (TOKENS, "an open route", |t| {
            without(&mut of(t, "Api")["Body"]["paths"]["/reservations"]["post"], "security");
        }),
        (LEADING_KEYS, "any item", |t| without(statement(t, "CatalogRole", "dynamodb:GetItem"), "Condition")),
        (LEADING_KEYS, "reservations", |t| {
            statement(t, "CatalogRole", "dynamodb:BatchGetItem")["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"] =
                json!(["STOCK#*", "HOLD#*"]);
        }),
        (LEADING_KEYS, "writes of stock", |t| {
            statement(t, "CatalogRole", "dynamodb:UpdateItem")["Condition"]["ForAllValues:StringLike"]["dynamodb:LeadingKeys"] =
                json!(["VIEW#*", "STOCK#*"]);
        }),
        (LEADING_KEYS, "a scan", |t| {
            statement(t, "CatalogRole", "dynamodb:BatchGetItem")["Action"] = json!("dynamodb:Scan");
        }),
        (SIGN_IN, "addresses as usernames", |t| of(t, "UserPool")["UsernameAttributes"] = json!(["email"])),
        (SIGN_IN, "no aliases", |t| without(of(t, "UserPool"), "AliasAttributes")),
        (SIGN_IN, "any tier", |t| without(of(t, "UserPool"), "UserPoolTier")),
        (SIGN_IN, "no second factor", |t| of(t, "UserPool")["MfaConfiguration"] = json!("OFF")),
        (SIGN_IN, "always Cognitos sender", |t| without(of(t, "UserPool"), "EmailConfiguration")),
        (SIGN_IN, "a client that tells", |t| without(of(t, "ConsoleClient"), "PreventUserExistenceErrors")),
        (SIGN_IN, "a secret in a page", |t| of(t, "ConsoleClient")["GenerateSecret"] = json!(true)),
        (SIGN_IN, "a back end without a secret", |t| of(t, "ServiceClient")["GenerateSecret"] = json!(false)),
        (SIGN_IN, "a token in a URL", |t| {
            of(t, "ConsoleClient")["AllowedOAuthFlows"] = json!(["code", "implicit"]);
        }),
        (SIGN_IN, "users that are services", |t| {
            of(t, "ConsoleClient")["AllowedOAuthScopes"] = json!(["openid", "holdfast/service"]);
        }),
        (SIGN_IN, "another scope", |t| of(t, "ResourceServer")["Identifier"] = json!("shop")),
        (SIGN_IN, "a client that the API refuses", |t| {
            let scheme = &mut of(t, "Api")["Body"]["components"]["securitySchemes"]["Jwt"];
            scheme["x-amazon-apigateway-authorizer"]["jwtConfiguration"]["audience"] =
                json!([{"Ref": "UserPoolClient"}, {"Ref": "ServiceClient"}]);
        }),
        (CONCURRENCY, "some for good", |t| of(t, "ConfirmFunction")["ReservedConcurrentExecutions"] = json!(100)),
        (CONCURRENCY, "some by default", |t| t["Parameters"]["CatalogConcurrency"]["Default"] = json!(100)),
    ]
}
