//! The resources of template.yaml on an emulator: created at the start, deleted at the end.
//!
//! Invariants: every name starts with the stack's name, which is unique, so that several stacks can share an endpoint; and
//! created resources are recorded, so that they are deleted even if creating the rest fails.

use crate::aws::Clients;
use crate::error::{Context, Error, Result};
use crate::template::{ACCOUNT, Attributes, Resource, Scope, Table, Template, references};
use aws_sdk_dynamodb::error::SdkError;
use aws_sdk_dynamodb::operation::create_table::CreateTableError;
use aws_sdk_dynamodb::operation::delete_table::DeleteTableError;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, GlobalSecondaryIndex, KeySchemaElement, KeyType, Projection, ProjectionType,
    ScalarAttributeType, TableStatus, TimeToLiveSpecification,
};
use aws_sdk_scheduler::operation::create_schedule_group::CreateScheduleGroupError;
use aws_sdk_scheduler::operation::delete_schedule_group::DeleteScheduleGroupError;
use aws_sdk_sqs::operation::create_queue::CreateQueueError;
use aws_sdk_sqs::operation::delete_queue::DeleteQueueError;
use aws_sdk_sqs::operation::get_queue_url::GetQueueUrlError;
use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

/// How long a table may take to become active.
const TABLE_READY: Duration = Duration::from_secs(60);
/// How often that is asked. An emulator is ready at once or within a moment; there is nothing to subscribe to.
const TABLE_POLL: Duration = Duration::from_millis(100);

/// Properties of a queue that an emulator has no use for: names are the stack's, keys and tags the cloud's.
const QUEUE_PROPERTIES_LEFT_OUT: [&str; 5] =
    ["QueueName", "Tags", "KmsMasterKeyId", "KmsDataKeyReusePeriodSeconds", "SqsManagedSseEnabled"];

/// What was made, and what the template's references to it resolve to.
#[derive(Debug)]
pub struct Resources {
    /// Resolves the template's values.
    pub scope: Scope,
    /// Tables: logical id to name.
    pub tables: BTreeMap<String, String>,
    /// Queues: logical id to URL and ARN.
    pub queues: BTreeMap<String, Queue>,
    /// Schedule groups: logical id to name.
    pub groups: BTreeMap<String, String>,
}

/// What becomes of a resource that is not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    IsMade,
    IsAnError,
}

/// A queue on the emulator.
#[derive(Clone, Debug)]
pub struct Queue {
    /// Where to reach it.
    pub url: String,
    /// How others refer to it.
    pub arn: String,
}

impl Resources {
    /// Nothing yet.
    pub fn new(scope: Scope) -> Self {
        Self { scope, tables: BTreeMap::new(), queues: BTreeMap::new(), groups: BTreeMap::new() }
    }

    /// The name of the table.
    ///
    /// # Errors
    /// The template has not exactly one.
    pub fn table(&self) -> Result<&str> {
        let mut tables = self.tables.values();
        match (tables.next(), tables.next()) {
            (Some(table), None) => Ok(table),
            _ => Err(Error::new("template.yaml does not have exactly one table")),
        }
    }

    /// A queue by its name in the template.
    ///
    /// # Errors
    /// The template has none of that name.
    pub fn queue(&self, id: &str) -> Result<&Queue> {
        self.queues.get(id).ok_or_else(|| Error::new(format!("template.yaml has no queue {id}")))
    }

    /// Makes every table, queue and schedule group of the template, or uses the one of its name that is there. Each is
    /// known here as soon as it is made, so that [`Resources::delete`] finds it however this ends.
    ///
    /// # Errors
    /// The endpoint refuses one, or the template holds what cannot be resolved.
    pub async fn create(&mut self, template: &Template, clients: &Clients) -> Result<()> {
        self.resolve(template, clients, Missing::IsMade).await
    }

    /// Looks up what [`Resources::create`] made in a stack of the same name.
    ///
    /// # Errors
    /// One of them is not there.
    pub async fn find(&mut self, template: &Template, clients: &Clients) -> Result<()> {
        self.resolve(template, clients, Missing::IsAnError).await
    }

    async fn resolve(&mut self, template: &Template, clients: &Clients, missing: Missing) -> Result<()> {
        self.name_the_rest(template)?;
        for resource in template.resources(&self.scope, "AWS::DynamoDB::Table")? {
            if missing == Missing::IsMade {
                self.create_table(template, clients, &resource).await?;
            }
            self.look_up_table(clients, resource.id).await?;
        }
        for resource in template.resources(&self.scope, "AWS::Scheduler::ScheduleGroup")? {
            if missing == Missing::IsMade {
                self.create_group(clients, resource.id).await?;
            }
            self.look_up_group(clients, resource.id).await?;
        }
        self.resolve_queues(template, clients, missing).await
    }

    /// Names everything that [`Resources::create`] makes, whether it is there or not, so that [`Resources::delete`]
    /// deletes it.
    ///
    /// # Errors
    /// The endpoint does not answer.
    pub async fn name_all(&mut self, template: &Template, clients: &Clients) -> Result<()> {
        for resource in template.resources(&self.scope, "AWS::DynamoDB::Table")? {
            self.tables.insert(resource.id.to_owned(), self.name(resource.id));
        }
        for resource in template.resources(&self.scope, "AWS::Scheduler::ScheduleGroup")? {
            self.groups.insert(resource.id.to_owned(), self.name(resource.id));
        }
        for resource in template.resources(&self.scope, "AWS::SQS::Queue")? {
            let name = self.name(resource.id);
            match clients.sqs.get_queue_url().queue_name(&name).send().await {
                Ok(found) => {
                    let queue = Queue { url: found.queue_url.unwrap_or_default(), arn: String::new() };
                    self.queues.insert(resource.id.to_owned(), queue);
                }
                Err(error) if error.as_service_error().is_some_and(GetQueueUrlError::is_queue_does_not_exist) => {}
                Err(error) => return Err(error).context(|| format!("cannot look up the queue {name}")),
            }
        }
        Ok(())
    }

    /// What functions, roles and log groups answer when they are referred to. They are not made: functions run beside
    /// the emulator, under the names of their binaries, and write to a file; and no emulator checks a role.
    fn name_the_rest(&mut self, template: &Template) -> Result<()> {
        for function in template.functions(&self.scope)? {
            let arn = format!("arn:aws:lambda:{}:{ACCOUNT}:function:{}", self.scope.region, function.binary);
            if let Some(alias) = function.alias {
                self.know(&format!("{}.Alias", function.id), format!("{arn}:{alias}"), []);
            }
            self.know(&function.id, function.binary.clone(), [("Arn", arn)]);
        }
        let roles = template.resources(&self.scope, "AWS::IAM::Role")?;
        let roles: Vec<String> = roles.into_iter().map(|role| role.id.to_owned()).collect();
        for id in roles {
            let name = self.name(&id);
            let arn = format!("arn:aws:iam::{ACCOUNT}:role/{name}");
            self.know(&id, name, [("Arn", arn)]);
        }
        for group in template.resources(&self.scope, "AWS::Logs::LogGroup")? {
            let name = template
                .resolve(&self.scope, &group.properties["LogGroupName"])
                .map_err(|why| Error::new(format!("log group {}: {why}", group.id)))?;
            let name = name.as_str().map_or_else(|| self.name(group.id), str::to_owned);
            // As in CloudFormation: the wildcard covers the streams of the group.
            let arn = format!("arn:aws:logs:{}:{ACCOUNT}:log-group:{name}:*", self.scope.region);
            self.know(group.id, name, [("Arn", arn)]);
        }
        Ok(())
    }

    async fn create_table(&mut self, template: &Template, clients: &Clients, resource: &Resource<'_>) -> Result<()> {
        let name = self.name(resource.id);
        let wrong = || format!("table {} of the template", resource.id);
        let properties = template.resolve(&self.scope, resource.properties)?;
        let table: Table = serde_json::from_value(properties).context(wrong)?;
        if table.billing_mode.as_deref() != Some("PAY_PER_REQUEST") {
            return Err(Error::new(format!("{}: only BillingMode PAY_PER_REQUEST is made locally", wrong())));
        }
        let attributes = table.attribute_definitions.iter().map(|attribute| {
            AttributeDefinition::builder()
                .attribute_name(&attribute.attribute_name)
                .attribute_type(ScalarAttributeType::from(attribute.attribute_type.as_str()))
                .build()
        });
        let indexes = table.global_secondary_indexes.iter().map(|index| {
            let left = Some(index.projection.non_key_attributes.clone()).filter(|names| !names.is_empty());
            let kind = ProjectionType::from(index.projection.projection_type.as_str());
            GlobalSecondaryIndex::builder()
                .index_name(&index.index_name)
                .set_key_schema(Some(key(&index.key_schema)?))
                .projection(Projection::builder().projection_type(kind).set_non_key_attributes(left).build())
                .build()
        });
        let indexes: Vec<_> = indexes.collect::<std::result::Result<_, _>>().context(wrong)?;
        let made = clients
            .dynamodb
            .create_table()
            .table_name(&name)
            .billing_mode(BillingMode::PayPerRequest)
            .set_attribute_definitions(Some(attributes.collect::<std::result::Result<_, _>>().context(wrong)?))
            .set_key_schema(Some(key(&table.key_schema).context(wrong)?))
            .set_global_secondary_indexes(Some(indexes).filter(|indexes| !indexes.is_empty()))
            .send()
            .await;
        match made {
            Ok(_) => self.tables.insert(resource.id.to_owned(), name.clone()),
            Err(error) if error.as_service_error().is_some_and(CreateTableError::is_resource_in_use_exception) => {
                return Ok(());
            }
            Err(error) => {
                return Err(error).context(|| format!("cannot make the table {name} at {}", clients.endpoint_url));
            }
        };
        until_active(clients, &name).await?;
        if let Some(ttl) = table.time_to_live_specification {
            let specification =
                TimeToLiveSpecification::builder().attribute_name(ttl.attribute_name).enabled(ttl.enabled);
            clients
                .dynamodb
                .update_time_to_live()
                .table_name(&name)
                .time_to_live_specification(specification.build().context(wrong)?)
                .send()
                .await
                .context(|| format!("cannot set the time to live of the table {name}"))?;
        }
        Ok(())
    }

    async fn look_up_table(&mut self, clients: &Clients, id: &str) -> Result<()> {
        let name = self.name(id);
        let arn = until_active(clients, &name).await?;
        self.tables.insert(id.to_owned(), name.clone());
        self.know(id, name, [("Arn", arn)]);
        Ok(())
    }

    async fn create_group(&mut self, clients: &Clients, id: &str) -> Result<()> {
        let name = self.name(id);
        match clients.scheduler.create_schedule_group().name(&name).send().await {
            Ok(_) => {
                self.groups.insert(id.to_owned(), name);
                Ok(())
            }
            Err(error) if error.as_service_error().is_some_and(CreateScheduleGroupError::is_conflict_exception) => {
                Ok(())
            }
            Err(error) => {
                Err(error).context(|| format!("cannot make the schedule group {name} at {}", clients.endpoint_url))
            }
        }
    }

    async fn look_up_group(&mut self, clients: &Clients, id: &str) -> Result<()> {
        let name = self.name(id);
        let found = clients.scheduler.get_schedule_group().name(&name).send().await;
        let found = found.context(|| format!("cannot read the schedule group {name} at {}", clients.endpoint_url))?;
        self.groups.insert(id.to_owned(), name.clone());
        self.know(id, name, [("Arn", found.arn.unwrap_or_default())]);
        Ok(())
    }

    /// A queue after the queues that it refers to: its dead-letter queue must exist first.
    async fn resolve_queues(&mut self, template: &Template, clients: &Clients, missing: Missing) -> Result<()> {
        let scope = self.scope.clone();
        let mut waiting = template.resources(&scope, "AWS::SQS::Queue")?;
        while !waiting.is_empty() {
            let ids: Vec<&str> = waiting.iter().map(|queue| queue.id).collect();
            let free = |queue: &Resource<'_>| {
                let needed = references(queue.properties);
                !ids.iter().any(|id| needed.contains(*id))
            };
            let (ready, later): (Vec<_>, Vec<_>) = waiting.into_iter().partition(free);
            if ready.is_empty() {
                return Err(Error::new(format!("the queues {} refer to one another in a ring", ids.join(", "))));
            }
            for queue in ready {
                if missing == Missing::IsMade {
                    self.create_queue(template, clients, &queue).await?;
                }
                self.look_up_queue(clients, queue.id).await?;
            }
            waiting = later;
        }
        Ok(())
    }

    async fn create_queue(&mut self, template: &Template, clients: &Clients, resource: &Resource<'_>) -> Result<()> {
        let name = self.name(resource.id);
        let properties = template
            .resolve(&self.scope, resource.properties)
            .map_err(|why| Error::new(format!("queue {}: {why}", resource.id)))?;
        // CloudFormation's names for a queue's properties are those of the API's attributes.
        let attributes: HashMap<QueueAttributeName, String> = properties
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| !QUEUE_PROPERTIES_LEFT_OUT.contains(&name.as_str()))
            .map(|(name, value)| (QueueAttributeName::from(name.as_str()), plain(value)))
            .collect();
        let made = clients.sqs.create_queue().queue_name(&name).set_attributes(Some(attributes)).send().await;
        match made {
            Ok(made) => {
                let queue = Queue { url: made.queue_url.unwrap_or_default(), arn: String::new() };
                self.queues.insert(resource.id.to_owned(), queue);
                Ok(())
            }
            // With other attributes than the template's of today.
            Err(error) if error.as_service_error().is_some_and(CreateQueueError::is_queue_name_exists) => Ok(()),
            Err(error) => Err(error).context(|| format!("cannot make the queue {name} at {}", clients.endpoint_url)),
        }
    }

    async fn look_up_queue(&mut self, clients: &Clients, id: &str) -> Result<()> {
        let name = self.name(id);
        let found = clients.sqs.get_queue_url().queue_name(&name).send().await;
        let found = found.context(|| format!("cannot look up the queue {name} at {}", clients.endpoint_url))?;
        let url = found.queue_url.ok_or_else(|| Error::new(format!("the queue {name} has no URL")))?;
        let arn = clients
            .sqs
            .get_queue_attributes()
            .queue_url(&url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await
            .context(|| format!("cannot read the queue {name}"))?
            .attributes
            .and_then(|mut attributes| attributes.remove(&QueueAttributeName::QueueArn))
            .ok_or_else(|| Error::new(format!("the queue {name} does not tell its ARN")))?;
        self.queues.insert(id.to_owned(), Queue { url: url.clone(), arn: arn.clone() });
        self.know(id, url.clone(), [("Arn", arn), ("QueueName", name), ("QueueUrl", url)]);
        Ok(())
    }

    /// Deletes all that was made, and returns whether nothing is left. What cannot be deleted is named on stderr.
    pub async fn delete(&mut self, clients: &Clients) -> bool {
        let mut all = true;
        for name in std::mem::take(&mut self.tables).into_values() {
            let deleted = clients.dynamodb.delete_table().table_name(&name).send().await;
            all &= is_gone(&name, deleted, DeleteTableError::is_resource_not_found_exception);
        }
        for queue in std::mem::take(&mut self.queues).into_values() {
            let deleted = clients.sqs.delete_queue().queue_url(&queue.url).send().await;
            all &= is_gone(&queue.url, deleted, DeleteQueueError::is_queue_does_not_exist);
        }
        for name in std::mem::take(&mut self.groups).into_values() {
            let deleted = clients.scheduler.delete_schedule_group().name(&name).send().await;
            all &= is_gone(&name, deleted, DeleteScheduleGroupError::is_resource_not_found_exception);
        }
        all
    }

    fn name(&self, id: &str) -> String {
        format!("{}-{id}", self.scope.stack)
    }

    fn know<const N: usize>(&mut self, id: &str, reference: String, attributes: [(&str, String); N]) {
        let attributes = attributes.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        self.scope.resources.insert(id.to_owned(), Attributes { reference, attributes });
    }
}

fn is_gone<T, E, R>(
    name: &str,
    deleted: std::result::Result<T, SdkError<E, R>>,
    was_not_there: impl Fn(&E) -> bool,
) -> bool
where
    E: std::error::Error + 'static,
    R: std::fmt::Debug,
{
    match deleted {
        Ok(_) => true,
        Err(error) if error.as_service_error().is_some_and(was_not_there) => true,
        Err(error) => {
            eprintln!("{name} could not be deleted: {}", crate::error::chain(&error));
            false
        }
    }
}

fn key(
    elements: &[crate::template::KeyElement],
) -> std::result::Result<Vec<KeySchemaElement>, aws_sdk_dynamodb::error::BuildError> {
    let element = |element: &crate::template::KeyElement| {
        KeySchemaElement::builder()
            .attribute_name(&element.attribute_name)
            .key_type(KeyType::from(element.key_type.as_str()))
            .build()
    };
    elements.iter().map(element).collect()
}

/// Waits until a table is active; its ARN.
async fn until_active(clients: &Clients, name: &str) -> Result<String> {
    let active = async {
        let mut probe = tokio::time::interval(TABLE_POLL);
        loop {
            probe.tick().await;
            let read = clients.dynamodb.describe_table().table_name(name).send().await;
            let read = read.context(|| format!("cannot read the table {name} at {}", clients.endpoint_url))?;
            let Some(table) = read.table else { continue };
            if table.table_status == Some(TableStatus::Active) {
                return Ok(table.table_arn.unwrap_or_default());
            }
        }
    };
    let late = |_| Error::new(format!("the table {name} did not become active within {TABLE_READY:?}"));
    tokio::time::timeout(TABLE_READY, active).await.map_err(late)?
}

/// An attribute's value: scalars as text, policies as JSON text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call without the alias would reach a version that is not in service, and the role would not allow it.
    #[test]
    fn callers_of_expire_call_its_alias_and_are_allowed_to() {
        let template = Template::load(&crate::paths::workspace().join("template.yaml")).unwrap();
        let scope = Scope {
            stack: "s".to_owned(),
            region: "r".to_owned(),
            parameters: BTreeMap::new(),
            resources: BTreeMap::new(),
        };
        let mut resources = Resources::new(scope);
        resources.name_the_rest(&template).unwrap();
        let properties = |kind: &str, id: &str| {
            let found = template.resources(&resources.scope, kind).unwrap();
            found.into_iter().find(|resource| resource.id == id).unwrap().properties
        };
        let statements = &properties("AWS::IAM::Role", "ScheduleRole")["Policies"][0]["PolicyDocument"]["Statement"];
        let calls = statements.as_array().unwrap().iter().find(|allowed| allowed["Action"] == "lambda:InvokeFunction");
        let reserve = properties("AWS::Serverless::Function", "ReserveFunction");
        for (what, value) in [
            ("the sweep", &properties("AWS::Scheduler::Schedule", "SweepSchedule")["Target"]["Arn"]),
            ("a slot's schedule", &reserve["Environment"]["Variables"]["EXPIRE_FUNCTION_ARN"]),
            ("what the role allows", &calls.unwrap()["Resource"]),
        ] {
            let arn = template.resolve(&resources.scope, value).unwrap();
            assert_eq!(arn, format!("arn:aws:lambda:r:{ACCOUNT}:function:expire:live"), "{what}");
        }
    }
}
