//! The application that template.yaml declares: its functions, each with its variables, and what calls them.
//!
//! `cargo local up` and the three parts of a bare `cargo lambda watch` run the same one.

use crate::aws::{CREDENTIAL, Clients};
use crate::bootstrap::Resources;
use crate::error::{Context, Error, Result};
use crate::functions::Spec;
use crate::gateway::Upstream;
use crate::paths;
use crate::routes::Routes;
use crate::runner::{Delivery, Work};
use crate::template::{Function, RecurringSchedule, Scope, Template};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The template, and the functions that it declares.
pub struct App {
    /// The template.
    pub template: Template,
    /// Its functions.
    pub functions: Vec<Function>,
}

/// What is around the functions on this machine.
#[derive(Debug)]
pub struct Around<'a> {
    /// Where their AWS calls go.
    pub endpoint_url: &'a str,
    /// Their region.
    pub region: &'a str,
    /// Whether each signs with an access key id that is its own name, so that the endpoint can tell them apart.
    pub own_access_keys: bool,
    /// The key set that verifies local tokens.
    pub key_set: &'a str,
    /// Variables for every function, over those of the template.
    pub environment: &'a BTreeMap<String, String>,
}

impl App {
    /// Reads template.yaml.
    ///
    /// # Errors
    /// It cannot be read, or has no such parameters.
    pub fn load(scope: &Scope) -> Result<Self> {
        let template = Template::load(&paths::workspace().join("template.yaml"))?;
        template.check_parameters(&scope.parameters)?;
        let functions = template.functions(scope)?;
        Ok(Self { template, functions })
    }

    /// The functions' names, which are those of their binaries.
    pub fn names(&self) -> BTreeSet<String> {
        self.functions.iter().map(|function| function.binary.clone()).collect()
    }

    /// The routes of the HTTP API.
    ///
    /// # Errors
    /// See [`Routes::load`].
    pub async fn routes(&self, scope: &Scope) -> Result<Routes> {
        Routes::load(&self.template, scope, &self.functions).await
    }

    /// What each function needs to run, as the template deploys it.
    ///
    /// # Errors
    /// A variable cannot be resolved, or is not the template's to set.
    pub fn specs(&self, resources: &Resources, around: &Around<'_>) -> Result<Vec<Spec>> {
        let recurring = self.template.recurring_schedules(&resources.scope)?;
        self.functions.iter().map(|function| self.spec(resources, function, &recurring, around)).collect()
    }

    fn spec(
        &self,
        resources: &Resources,
        function: &Function,
        recurring: &[RecurringSchedule],
        around: &Around<'_>,
    ) -> Result<Spec> {
        let mut environment = self.template.environment(&resources.scope, function)?;
        let own = [
            ("AWS_ENDPOINT_URL", around.endpoint_url),
            ("AWS_REGION", around.region),
            ("AWS_DEFAULT_REGION", around.region),
            ("AWS_ACCESS_KEY_ID", if around.own_access_keys { &function.binary } else { CREDENTIAL }),
            ("AWS_SECRET_ACCESS_KEY", CREDENTIAL),
            ("HOLDFAST_LOCAL_KEY_SET", around.key_set),
        ];
        for (name, value) in own {
            let before = environment.insert(name.to_owned(), value.to_owned());
            if before.is_some_and(|before| before != value) {
                return Err(Error::new(format!(
                    "template.yaml sets {name} for {}, which only the local stack may",
                    function.id
                )));
            }
        }
        environment.extend(around.environment.clone());
        // A function without routes is called with what its schedule would give it: there is nothing to do yet.
        let scheduled = recurring.iter().find(|schedule| schedule.function == function.binary);
        let probe: Option<Value> = match scheduled {
            Some(schedule) if !function.http => {
                Some(serde_json::from_str(&schedule.input).context(|| format!("the input of {}", schedule.id))?)
            }
            _ => None,
        };
        Ok(Spec { name: function.binary.clone(), environment, memory_mb: function.memory_mb, probe })
    }

    /// What the runner plays: schedules and queues that call the functions at `upstream`.
    ///
    /// # Errors
    /// A schedule cannot be played locally, or a queue is not there.
    pub fn work(&self, resources: &Resources, clients: &Clients, upstream: &Upstream) -> Result<Work> {
        Ok(Work {
            clients: clients.clone(),
            upstream: upstream.clone(),
            groups: resources.groups.values().cloned().collect(),
            recurring: self.template.recurring_schedules(&resources.scope)?,
            deliveries: self.deliveries(resources)?,
        })
    }

    fn deliveries(&self, resources: &Resources) -> Result<Vec<Delivery>> {
        let mut deliveries = Vec::new();
        for function in &self.functions {
            for trigger in &function.queues {
                let queue = resources.queue(&trigger.queue)?;
                deliveries.push(Delivery {
                    id: trigger.queue.clone(),
                    url: queue.url.clone(),
                    arn: queue.arn.clone(),
                    function: function.binary.clone(),
                    batch_size: trigger.batch_size,
                    partial_failures: trigger.partial_failures,
                });
            }
        }
        Ok(deliveries)
    }
}
