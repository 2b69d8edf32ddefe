//! What the roles of template.yaml allow, decided as IAM decides it.
//!
//! It supports only as much of IAM's policy language as the template uses: `Allow` and `Deny`, actions and resources
//! with `*` and `?`, and the conditions on `iam:PassedToService` and `dynamodb:LeadingKeys`. Invariant: anything else in a
//! role or policy is an error that names it, so that no decision is based on half a policy.
//!
//! See <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic.html>. A policy engine
//! would only say what is allowed, and not what is allowed without need.

use crate::calls::Need;
use holdfast_local::error::{Context, Error, Result};
use holdfast_local::template::{Resource, Scope, Template};
use serde::Deserialize;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Properties of a role that do not affect what it allows.
const ROLE_PROPERTIES_LEFT_OUT: [&str; 6] =
    ["AssumeRolePolicyDocument", "Description", "MaxSessionDuration", "Path", "RoleName", "Tags"];
/// Resources that add to a role from outside. They are not read here, so there must be none.
const POLICIES_APART: [&str; 3] = ["AWS::IAM::ManagedPolicy", "AWS::IAM::Policy", "AWS::IAM::RolePolicy"];
/// Properties of a function that would create or change its role.
const ROLE_IN_FUNCTION: [&str; 3] = ["Policies", "PermissionsBoundary", "AssumeRolePolicyDocument"];

/// What a function may do.
#[derive(Debug)]
pub struct Role {
    /// Its logical id.
    pub id: String,
    statements: Vec<Statement>,
}

/// One action, or pattern of actions, that a role allows on one resource, or pattern of resources, and there on the
/// items of one pattern of partition keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant<'a> {
    /// Such as `dynamodb:PutItem`.
    pub action: &'a str,
    /// The ARN.
    pub resource: &'a str,
    /// Only for roles that are passed to one of these services; `None` without a condition.
    passed_to: Option<&'a [String]>,
    /// Only for items with such a partition key; `None` without a condition.
    leading_key: Option<&'a str>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Policy {
    policy_name: String,
    policy_document: Document,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Document {
    version: String,
    statement: Vec<Statement>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields)]
struct Statement {
    #[serde(default, rename = "Sid")]
    _sid: Option<String>,
    effect: Effect,
    action: OneOrMany,
    resource: OneOrMany,
    #[serde(default)]
    condition: Option<Condition>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
enum Effect {
    Allow,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Condition {
    #[serde(rename = "StringEquals")]
    string_equals: Option<StringEquals>,
    #[serde(rename = "ForAllValues:StringLike")]
    all_like: Option<AllLike>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StringEquals {
    #[serde(rename = "iam:PassedToService")]
    passed_to_service: OneOrMany,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AllLike {
    #[serde(rename = "dynamodb:LeadingKeys")]
    leading_keys: OneOrMany,
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

impl Statement {
    fn grants(&self) -> impl Iterator<Item = Grant<'_>> {
        let condition = self.condition.as_ref();
        let passed_to = condition.and_then(|condition| condition.string_equals.as_ref());
        let passed_to = passed_to.map(|equals| equals.passed_to_service.as_slice());
        let leading_keys = condition.and_then(|condition| condition.all_like.as_ref());
        let leading_keys: Vec<Option<&str>> = leading_keys.map_or_else(
            || vec![None],
            |like| like.leading_keys.as_slice().iter().map(|key| Some(key.as_str())).collect(),
        );
        let pairs = self.action.as_slice().iter().flat_map(|action| {
            self.resource.as_slice().iter().map(move |resource| (action.as_str(), resource.as_str()))
        });
        pairs.flat_map(move |(action, resource)| {
            let grant = move |leading_key| Grant { action, resource, passed_to, leading_key };
            leading_keys.clone().into_iter().map(grant)
        })
    }

    fn meets(&self, need: &Need) -> bool {
        self.grants().any(|grant| grant.covers(need))
    }
}

impl Role {
    fn read(id: &str, properties: &Value) -> Result<Self> {
        let named = |why: String| Error::new(format!("role {id}: {why}"));
        let mut statements = Vec::new();
        for (name, value) in properties.as_object().into_iter().flatten() {
            if ROLE_PROPERTIES_LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            if name != "Policies" {
                return Err(named(format!("its property {name} is not understood")));
            }
            let policies: Vec<Policy> = serde_json::from_value(value.clone())
                .context(|| "its policies are not understood".into())
                .map_err(|why| named(why.to_string()))?;
            for Policy { policy_name, policy_document } in policies {
                if policy_document.version != "2012-10-17" {
                    return Err(named(format!("policy {policy_name} is not of the version 2012-10-17")));
                }
                statements.extend(policy_document.statement);
            }
        }
        let role = Self { id: id.to_owned(), statements };
        let all = role.statements.iter().flat_map(Statement::grants);
        let texts = all.flat_map(|grant| [Some(grant.action), Some(grant.resource), grant.leading_key]);
        let variable = texts.flatten().find(|text| text.contains("${"));
        match variable {
            Some(text) => Err(named(format!("the policy variable in {text:?} is not understood"))),
            None => Ok(role),
        }
    }

    /// Whether `need` is allowed by some statement, and denied by none.
    pub fn allows(&self, need: &Need) -> bool {
        let met = |effect| self.statements.iter().any(|statement| statement.effect == effect && statement.meets(need));
        met(Effect::Allow) && !met(Effect::Deny)
    }

    /// Everything that it allows, each action, resource and pattern of keys separately.
    pub fn grants(&self) -> impl Iterator<Item = Grant<'_>> {
        self.statements.iter().filter(|statement| statement.effect == Effect::Allow).flat_map(Statement::grants)
    }

    /// What it allows and none of `needs` used.
    pub fn unused<'a>(&'a self, needs: &BTreeSet<Need>) -> Vec<Grant<'a>> {
        self.grants().filter(|grant| !needs.iter().any(|need| grant.covers(need))).collect()
    }
}

impl Grant<'_> {
    /// Whether it allows `need`.
    pub fn covers(&self, need: &Need) -> bool {
        // Names of actions are case-insensitive; those of resources are not.
        let action = matches(&self.action.to_ascii_lowercase(), &need.action.to_ascii_lowercase());
        let passed = |services: &[String]| need.passed_to_service.as_ref().is_some_and(|to| services.contains(to));
        // As IAM has it for all values, a call that names no key is not held back.
        let led = |pattern: &str| need.leading_key.as_ref().is_none_or(|key| matches(pattern, key));
        let resource = matches(self.resource, &need.resource);
        action && resource && self.passed_to.is_none_or(passed) && self.leading_key.is_none_or(led)
    }

    /// Whether it has a wildcard, so that calls cannot show whether all of it is needed.
    pub fn is_wide(&self) -> bool {
        [self.action, self.resource].iter().any(|text| text.contains(['*', '?']))
    }
}

impl fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.action, self.resource)?;
        self.leading_key.iter().try_for_each(|key| write!(f, " of {key}"))
    }
}

/// The role of each function, by the function's binary.
///
/// # Errors
/// A function has no role of its own, a role cannot be resolved, or something in it is not understood.
pub fn roles(template: &Template, scope: &Scope) -> Result<BTreeMap<String, Role>> {
    for kind in POLICIES_APART {
        if let Some(policy) = template.resources(scope, kind)?.first() {
            return Err(Error::new(format!("{}: a policy apart from its role is not understood", policy.id)));
        }
    }
    let declared = template.resources(scope, "AWS::IAM::Role")?;
    let mut roles = BTreeMap::new();
    for function in template.functions(scope)? {
        let wrong = |why: &str| Error::new(format!("function {}: {why}", function.id));
        let functions = template.resources(scope, "AWS::Serverless::Function")?;
        let properties = functions.iter().find(|other| other.id == function.id).map(|found| found.properties);
        let properties = properties.ok_or_else(|| wrong("it is not in the template"))?;
        if let Some(name) = ROLE_IN_FUNCTION.iter().find(|name| !properties[**name].is_null()) {
            return Err(wrong(&format!(
                "its property {name} is not understood: a function's permissions belong into its role"
            )));
        }
        let arn = template.resolve(scope, &properties["Role"]).map_err(|why| wrong(&why.to_string()))?;
        let has_arn = |role: &&Resource<'_>| {
            scope.resources.get(role.id).and_then(|known| known.attributes.get("Arn")).is_some_and(|own| arn == *own)
        };
        let role = declared.iter().find(has_arn).ok_or_else(|| wrong("its role is not in the template"))?;
        let resolved = template.resolve(scope, role.properties);
        let resolved = resolved.map_err(|why| Error::new(format!("role {}: {why}", role.id)))?;
        roles.insert(function.binary, Role::read(role.id, &resolved)?);
    }
    Ok(roles)
}

/// Whether `text` matches `pattern`, in which `*` is any text and `?` any one character.
fn matches(pattern: &str, text: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return same(pattern, text) };
    let Some(left) = take(first, text) else { return false };
    // The star matches any text: take the shortest after which the rest matches.
    left.char_indices().map(|(at, _)| at).chain([left.len()]).any(|at| matches(rest, &left[at..]))
}

/// Whether `text` matches a pattern without stars.
fn same(pattern: &str, text: &str) -> bool {
    take(pattern, text).is_some_and(str::is_empty)
}

/// The rest of `text` after a prefix that matches a pattern without stars.
fn take<'a>(pattern: &str, text: &'a str) -> Option<&'a str> {
    let mut left = text.chars();
    pattern.chars().all(|wanted| left.next().is_some_and(|c| wanted == '?' || wanted == c)).then_some(left.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_local::template::Attributes;
    use serde_json::json;

    fn need(action: &str, resource: &str) -> Need {
        Need { action: action.to_owned(), resource: resource.to_owned(), passed_to_service: None, leading_key: None }
    }

    fn of(key: &str) -> Need {
        Need { leading_key: Some(key.to_owned()), ..need("dynamodb:GetItem", "arn:table/T") }
    }

    fn passing(resource: &str, service: &str) -> Need {
        Need { passed_to_service: Some(service.to_owned()), ..need("iam:PassRole", resource) }
    }

    fn policies(statements: Value) -> Value {
        let document = json!({"Version": "2012-10-17", "Statement": statements});
        json!({ "AssumeRolePolicyDocument": {}, "Policies": [{"PolicyName": "p", "PolicyDocument": document}] })
    }

    fn role(statements: Value) -> Role {
        Role::read("R", &policies(statements)).unwrap()
    }

    #[test]
    fn only_what_a_statement_names_is_allowed() {
        let role = role(json!([
            {"Effect": "Allow", "Action": ["dynamodb:GetItem", "dynamodb:Query"], "Resource": "arn:table/T"},
            {"Sid": "Index", "Effect": "Allow", "Action": "dynamodb:Query", "Resource": ["arn:table/T/index/a"]},
        ]));
        assert!(role.allows(&need("dynamodb:GetItem", "arn:table/T")));
        assert!(role.allows(&need("dynamodb:Query", "arn:table/T/index/a")));
        assert!(role.allows(&need("DynamoDB:getitem", "arn:table/T")), "an action's capitals mean nothing");
        for (action, resource) in [
            ("dynamodb:PutItem", "arn:table/T"),
            ("dynamodb:GetItem", "arn:table/T/index/a"),
            ("dynamodb:Query", "arn:table/T/index/b"),
            ("dynamodb:Query", "arn:table/t"),
            ("dynamodb:GetItem", "arn:table/T2"),
        ] {
            assert!(!role.allows(&need(action, resource)), "{action} {resource}");
        }
    }

    #[test]
    fn a_denial_outranks_what_is_allowed() {
        let role = role(json!([
            {"Effect": "Deny", "Action": "dynamodb:Delete*", "Resource": "*"},
            {"Effect": "Allow", "Action": "dynamodb:*", "Resource": "arn:table/T"},
        ]));
        assert!(role.allows(&need("dynamodb:PutItem", "arn:table/T")));
        assert!(!role.allows(&need("dynamodb:DeleteItem", "arn:table/T")));
        assert_eq!(role.grants().count(), 1, "a denial grants nothing");
    }

    #[test]
    fn a_role_is_passed_only_to_the_service_that_the_condition_names() {
        let condition = json!({"StringEquals": {"iam:PassedToService": "scheduler.amazonaws.com"}});
        let role = role(
            json!([{"Effect": "Allow", "Action": "iam:PassRole", "Resource": "arn:role/r", "Condition": condition}]),
        );
        assert!(role.allows(&passing("arn:role/r", "scheduler.amazonaws.com")));
        assert!(!role.allows(&passing("arn:role/r", "lambda.amazonaws.com")));
        assert!(!role.allows(&passing("arn:role/other", "scheduler.amazonaws.com")));
        assert!(!role.allows(&need("iam:PassRole", "arn:role/r")), "a key that the request does not have");
    }

    #[test]
    fn only_items_of_the_keys_that_the_condition_names_are_allowed() {
        let condition = json!({"ForAllValues:StringLike": {"dynamodb:LeadingKeys": ["CATALOG", "STOCK#*"]}});
        let statement = json!({"Effect": "Allow", "Action": "dynamodb:GetItem", "Resource": "arn:table/T"});
        let mut conditional = statement.clone();
        conditional["Condition"] = condition;
        let limited = role(json!([conditional]));
        for (key, allowed) in [("CATALOG", true), ("STOCK#", true), ("CATALOGS", false), ("HOLD#", false)] {
            assert_eq!(limited.allows(&of(key)), allowed, "{key}");
            assert!(role(json!([statement])).allows(&of(key)), "without a condition: {key}");
        }
        let unused: Vec<String> =
            limited.unused(&BTreeSet::from([of("CATALOG")])).iter().map(ToString::to_string).collect();
        assert_eq!(unused, ["dynamodb:GetItem on arn:table/T of STOCK#*"]);
    }

    #[test]
    fn what_no_call_took_is_unused() {
        let role = role(json!([
            {"Effect": "Allow", "Action": ["a:Read", "a:Write"], "Resource": ["arn:x", "arn:y/*"]},
            {"Effect": "Deny", "Action": "a:Drop", "Resource": "*"},
        ]));
        let needs = BTreeSet::from([need("a:Read", "arn:x"), need("a:Write", "arn:y/1"), need("a:Drop", "arn:x")]);
        let unused: Vec<String> = role.unused(&needs).iter().map(ToString::to_string).collect();
        assert_eq!(unused, ["a:Read on arn:y/*", "a:Write on arn:x"]);
        assert!(role.unused(&needs)[0].is_wide() && !role.unused(&needs)[1].is_wide());
    }

    #[test]
    fn stars_and_question_marks_stand_for_characters() {
        for (pattern, text) in [
            ("*", ""),
            ("*", "anything:at/all"),
            ("a*", "a"),
            ("schedule/g/*", "schedule/g/slot-1"),
            ("*:t*e/*", "arn:table/T"),
            ("a*b*c", "abbcbc"),
            ("slot-?", "slot-1"),
            ("?*", "é"),
        ] {
            assert!(matches(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("", "a"),
            ("a", "ab"),
            ("schedule/g/*", "schedule/h/slot-1"),
            ("a*b*c", "acb"),
            ("slot-?", "slot-"),
            ("slot-?", "slot-12"),
            ("*x", "xy"),
        ] {
            assert!(!matches(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn what_is_not_understood_is_named() {
        let statement = |more: Value| {
            let mut statement = json!({"Effect": "Allow", "Action": "a:B", "Resource": "arn:x"});
            statement.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            policies(json!([statement]))
        };
        let of_condition = |condition: Value| statement(json!({ "Condition": condition }));
        let of_version = |version: &str| {
            let document = json!({"Version": version, "Statement": []});
            json!({"Policies": [{"PolicyName": "p", "PolicyDocument": document}]})
        };
        for (properties, named) in [
            (json!({"ManagedPolicyArns": ["arn:aws:iam::aws:policy/AdministratorAccess"]}), "ManagedPolicyArns"),
            (json!({"PermissionsBoundary": "arn:b"}), "PermissionsBoundary"),
            (statement(json!({"NotAction": "a:C"})), "NotAction"),
            (statement(json!({"NotResource": "arn:y"})), "NotResource"),
            (statement(json!({"Effect": "Perhaps"})), "Perhaps"),
            (statement(json!({"Resource": "arn:${aws:username}"})), "${aws:username}"),
            (of_condition(json!({"StringLike": {"iam:PassedToService": "*"}})), "StringLike"),
            (of_condition(json!({"StringEquals": {"aws:SourceVpc": "v"}})), "aws:SourceVpc"),
            (of_condition(json!({"ForAllValues:StringLike": {"dynamodb:Attributes": "pk"}})), "dynamodb:Attributes"),
            (of_condition(json!({"ForAllValues:StringLike": {"dynamodb:LeadingKeys": "${aws:x}"}})), "${aws:x}"),
            (policies(json!([{"Effect": "Allow", "Action": "a:B"}])), "Resource"),
            (of_version("2008-10-17"), "2012-10-17"),
        ] {
            let why = Role::read("TheRole", &properties).unwrap_err().to_string();
            assert!(why.contains(named) && why.contains("TheRole"), "{why}");
        }
    }

    const TEMPLATE: &str = r#"
Resources:
  ReserveFunction:
    Type: AWS::Serverless::Function
    Properties: { CodeUri: functions/reserve, Role: !GetAtt ReserveRole.Arn }
  ReserveRole:
    Type: AWS::IAM::Role
    Properties:
      Policies:
        - PolicyName: p
          PolicyDocument:
            Version: "2012-10-17"
            Statement: [{ Effect: Allow, Action: "a:B", Resource: !Sub "${Table.Arn}/index/x" }]
"#;

    fn scope() -> Scope {
        let known = |arn: &str| Attributes {
            reference: String::new(),
            attributes: BTreeMap::from([("Arn".to_owned(), arn.to_owned())]),
        };
        Scope {
            stack: "s".to_owned(),
            region: "r".to_owned(),
            parameters: BTreeMap::new(),
            resources: BTreeMap::from([
                ("Table".to_owned(), known("arn:t")),
                ("ReserveRole".to_owned(), known("arn:role/s-ReserveRole")),
            ]),
        }
    }

    #[test]
    fn a_function_has_the_role_that_it_refers_to() {
        let roles = roles(&Template::parse(TEMPLATE).unwrap(), &scope()).unwrap();
        assert_eq!(roles["reserve"].id, "ReserveRole");
        assert!(roles["reserve"].allows(&need("a:B", "arn:t/index/x")));
    }

    #[test]
    fn permissions_that_stand_elsewhere_are_refused() {
        for (from, to, named) in [
            ("Role: !GetAtt ReserveRole.Arn", "Policies: [AmazonDynamoDBFullAccess]", "Policies"),
            ("Role: !GetAtt ReserveRole.Arn", "Role: arn:aws:iam::1:role/other", "role"),
            (", Role: !GetAtt ReserveRole.Arn", "", "role"),
            ("Resources:", "Resources:\n  More: { Type: \"AWS::IAM::Policy\" }", "More"),
        ] {
            let template = Template::parse(&TEMPLATE.replace(from, to)).unwrap();
            let why = roles(&template, &scope()).unwrap_err().to_string();
            assert!(why.contains(named), "{why}");
        }
    }
}
