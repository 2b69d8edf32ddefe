//! The stack in three parts, for those who run an emulator and `cargo lambda watch` themselves:
//!
//! 1. [`create`] makes the resources of template.yaml and writes an env file with the functions' variables;
//! 2. `cargo lambda watch --env-file FILE` serves the functions, at the routes of the root Cargo.toml;
//! 3. [`triggers`] fires due schedules and delivers messages of queues.
//!
//! `cargo local up` is the same in one command, with a gateway before `watch` and functions that are started again.
//!
//! Invariant: the env file is the record of its resources. They are made under the stack's name in it, used again by the
//! next [`create`], and deleted with it by [`delete`].

use crate::app::{App, Around};
use crate::aws::Clients;
use crate::bootstrap::Resources;
use crate::emulator::Choice;
use crate::env_file::{self, Variables};
use crate::error::{Context, Error, Result};
use crate::functions::Spec;
use crate::gateway::Upstream;
use crate::paths::{self, shown};
use crate::progress::Step;
use crate::runner::{self, Runner};
use crate::template::Scope;
use crate::token::Signer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time limit of a trigger's call: the first one waits until Cargo has compiled the function.
const CALL: Duration = Duration::from_secs(600);
/// The variable that names the stack.
const STACK: &str = "HOLDFAST_STACK";
/// Before the name of a parameter that differs from its default.
const PARAMETER: &str = "HOLDFAST_PARAMETER_";

/// What the env file says of itself.
const COMMENTS: [&str; 2] = [
    "Variables of the functions for `cargo lambda watch --env-file`, written by `cargo local resources`.",
    "It is also the record of the resources: to delete them, `cargo local resources --delete`.",
];

/// What to make.
#[derive(Clone, Debug)]
pub struct Request {
    /// The emulator. `None`: the one that the env file names.
    pub endpoint: Option<String>,
    /// The env file.
    pub env_file: PathBuf,
    /// Template parameters that differ from their defaults, or from those of the env file.
    pub parameters: BTreeMap<String, String>,
}

/// Resources at an emulator, as an env file records them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The stack's name, which every resource's name starts with.
    pub stack: String,
    /// The emulator.
    pub endpoint_url: String,
    /// The region.
    pub region: String,
    /// Template parameters that differ from their defaults.
    pub parameters: BTreeMap<String, String>,
}

/// The env file where no other is named.
///
/// # Errors
/// Its folder cannot be made.
pub fn default_env_file() -> Result<PathBuf> {
    Ok(paths::local("")?.join("holdfast.env"))
}

/// Makes the resources that are missing and writes the env file.
///
/// # Errors
/// The emulator refuses one, or the env file is of resources at another one. What was made for a new file is deleted.
pub async fn create(request: Request) -> Result<Record> {
    let Request { endpoint, env_file, parameters } = request;
    let before = env_file::read(&env_file)?.map(|variables| Record::of(&variables, &env_file)).transpose()?;
    let is_new = before.is_none();
    let record = Record::next(before, endpoint, parameters, &env_file)?;
    Choice::Endpoint(record.endpoint_url.clone()).check(None).await?;
    let (app, clients, mut resources) = record.open()?;
    if is_new {
        // Before anything is made: what an interrupted start leaves behind is found again.
        env_file::write(&env_file, &COMMENTS, &record.variables())?;
    }
    let step = Step::start("making the table, queues and schedule group of template.yaml");
    let made = match resources.create(&app.template, &clients).await {
        Ok(()) => record.write(&app, &resources, &env_file),
        Err(error) => Err(error),
    };
    if let Err(error) = made {
        if is_new && resources.delete(&clients).await {
            // Nothing is left to be recorded. If it cannot be removed, the next start uses it.
            let _ = std::fs::remove_file(&env_file);
        }
        return Err(error);
    }
    step.done(&record.stack);
    Ok(record)
}

/// Deletes the resources of an env file, and the file.
///
/// # Errors
/// There is no such file, its emulator does not answer, or a resource cannot be deleted.
pub async fn delete(env_file: &Path) -> Result<Record> {
    let record = Record::read(env_file)?;
    let hint = || format!("if that emulator is gone, its resources are too: delete {}", shown(env_file));
    let answers = Choice::Endpoint(record.endpoint_url.clone()).check(None).await;
    answers.map_err(|why| Error::new(format!("{why}; {}", hint())))?;
    let (app, clients, mut resources) = record.open()?;
    resources.name_all(&app.template, &clients).await?;
    if !resources.delete(&clients).await {
        return Err(Error::new(format!("not all resources of {} could be deleted", record.stack)));
    }
    std::fs::remove_file(env_file).context(|| format!("cannot delete {}", env_file.display()))?;
    Ok(record)
}

/// Starts to play the triggers of an env file's resources for the functions that `watch` serves at `invoke_address`.
///
/// # Errors
/// There is no such file, or a resource is not there.
pub async fn triggers(env_file: &Path, invoke_address: &str) -> Result<Runner> {
    let record = Record::read(env_file)?;
    let (app, clients, mut resources) = record.open()?;
    resources.find(&app.template, &clients).await.map_err(|why| {
        let again = format!("`cargo local resources --env-file {}` makes what is missing", shown(env_file));
        Error::new(format!("{why}; {again}"))
    })?;
    let upstream = Upstream::new(invoke_address.to_owned(), CALL)?;
    Ok(Runner::start(app.work(&resources, &clients, &upstream)?, &runner::Options::default()))
}

impl Record {
    /// Reads an env file.
    ///
    /// # Errors
    /// It is not there, or not one that [`create`] wrote.
    pub fn read(env_file: &Path) -> Result<Self> {
        let variables = env_file::read(env_file)?.ok_or_else(|| {
            Error::new(format!("there is no {}: `cargo local resources --endpoint URL` makes it", shown(env_file)))
        })?;
        Self::of(&variables, env_file)
    }

    fn of(variables: &Variables, env_file: &Path) -> Result<Self> {
        let value = |name: &str| {
            let missing = || Error::new(format!("{} does not say {name}", shown(env_file)));
            variables.get(name).cloned().ok_or_else(missing)
        };
        let parameter =
            |(name, value): (&String, &String)| Some((name.strip_prefix(PARAMETER)?.to_owned(), value.clone()));
        Ok(Self {
            stack: value(STACK)?,
            endpoint_url: value("AWS_ENDPOINT_URL")?,
            region: value("AWS_REGION")?,
            parameters: variables.iter().filter_map(parameter).collect(),
        })
    }

    /// What is to be there next. A parameter keeps its value until it is given another one.
    fn next(
        before: Option<Self>,
        endpoint: Option<String>,
        parameters: BTreeMap<String, String>,
        env_file: &Path,
    ) -> Result<Self> {
        match (before, endpoint) {
            (Some(before), Some(endpoint)) if endpoint != before.endpoint_url => Err(Error::new(format!(
                "{file} is of resources at {}: name another file for {endpoint} (--env-file), or delete those first \
                 (cargo local resources --delete --env-file {file})",
                before.endpoint_url,
                file = shown(env_file)
            ))),
            (Some(mut before), _) => {
                before.parameters.extend(parameters);
                Ok(before)
            }
            (None, Some(endpoint_url)) => {
                let region = Clients::new(&endpoint_url).region;
                Ok(Self { stack: format!("holdfast-{:08x}", fastrand::u32(..)), endpoint_url, region, parameters })
            }
            (None, None) => Err(Error::new(format!(
                "there is no {} yet: name the emulator, as in `--endpoint http://127.0.0.1:4566`",
                shown(env_file)
            ))),
        }
    }

    fn open(&self) -> Result<(App, Clients, Resources)> {
        let scope = Scope {
            stack: self.stack.clone(),
            region: self.region.clone(),
            parameters: self.parameters.clone(),
            resources: BTreeMap::new(),
        };
        let app = App::load(&scope)?;
        Ok((app, Clients::in_region(&self.endpoint_url, self.region.clone()), Resources::new(scope)))
    }

    fn write(&self, app: &App, resources: &Resources, env_file: &Path) -> Result<()> {
        let signer = Signer::load()?;
        let specs = app.specs(
            resources,
            &Around {
                endpoint_url: &self.endpoint_url,
                region: &self.region,
                own_access_keys: false,
                key_set: signer.key_set(),
                environment: &BTreeMap::new(),
            },
        )?;
        let mut variables = union(&specs)?;
        variables.extend(self.variables());
        env_file::write(env_file, &COMMENTS, &variables)
    }

    /// The record itself, as [`Record::of`] reads it.
    fn variables(&self) -> Variables {
        let parameters = self.parameters.iter().map(|(name, value)| (format!("{PARAMETER}{name}"), value));
        let own = [(STACK, &self.stack), ("AWS_ENDPOINT_URL", &self.endpoint_url), ("AWS_REGION", &self.region)];
        let own = own.map(|(name, value)| (name.to_owned(), value));
        parameters.chain(own).map(|(name, value)| (name, value.clone())).collect()
    }

    /// What to do next, for a person.
    pub fn next_steps(&self, env_file: &Path) -> String {
        let Self { stack, endpoint_url, .. } = self;
        let file = shown(env_file);
        format!(
            "
The resources of {stack} are at {endpoint_url}; the functions' variables are in {file}.

Next, in {}, each in a terminal of its own:

  cargo lambda watch --env-file {file} --invoke-address 127.0.0.1
  cargo local triggers --env-file {file}

The API is then at http://127.0.0.1:9000; the first request to each function waits until it is compiled.

  cargo local token --sub NAME [--role ROLE]
  cargo lambda invoke expire --invoke-address 127.0.0.1 --data-file events/expire/sweep.json
  cargo local resources --delete --env-file {file}
",
            paths::workspace().display()
        )
    }
}

/// The variables of all functions together: `cargo lambda watch` gives each function the same ones.
fn union(specs: &[Spec]) -> Result<Variables> {
    let mut all: BTreeMap<&str, (&str, &str)> = BTreeMap::new();
    for spec in specs {
        for (name, value) in &spec.environment {
            let (other, before) = *all.entry(name).or_insert((&spec.name, value));
            if before != value {
                return Err(Error::new(format!(
                    "the functions {other} and {} want different values of {name} ({before:?} and {value:?}), and `cargo \
                     lambda watch` gives all functions the same: use `cargo local up`",
                    spec.name
                )));
            }
        }
    }
    Ok(all.into_iter().map(|(name, (_, value))| (name.to_owned(), value.to_owned())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn spec(name: &str, environment: &[(&str, &str)]) -> Spec {
        Spec { name: name.to_owned(), environment: parameters(environment), memory_mb: 128, probe: None }
    }

    #[test]
    fn functions_share_their_variables_unless_they_differ() {
        let reserve = spec("reserve", &[("TABLE", "t"), ("SLOT", "10")]);
        let confirm = spec("confirm", &[("TABLE", "t"), ("QUEUE", "q")]);
        let all = union(&[reserve.clone(), confirm]).unwrap();
        assert_eq!(all, parameters(&[("QUEUE", "q"), ("SLOT", "10"), ("TABLE", "t")]));
        let why = union(&[reserve, spec("expire", &[("SLOT", "20")])]).unwrap_err().to_string();
        for part in ["reserve", "expire", "SLOT", "\"10\"", "\"20\""] {
            assert!(why.contains(part), "{why}");
        }
    }

    #[test]
    fn the_same_file_is_the_same_stack() {
        let file = Path::new("holdfast.env");
        let first = Record::next(None, Some("http://a:1".to_owned()), parameters(&[("A", "1")]), file).unwrap();
        let next = |endpoint: Option<&str>, given: &[(&str, &str)]| {
            Record::next(Some(first.clone()), endpoint.map(str::to_owned), parameters(given), file)
        };
        assert_eq!(next(None, &[]).unwrap(), first);
        assert_eq!(next(Some("http://a:1"), &[]).unwrap(), first);
        let changed = next(None, &[("A", "2"), ("B", "3")]).unwrap();
        assert_eq!((&changed.stack, changed.parameters), (&first.stack, parameters(&[("A", "2"), ("B", "3")])));
        let why = next(Some("http://b:1"), &[]).unwrap_err().to_string();
        assert!(why.contains("http://a:1") && why.contains("--delete"), "{why}");
        let why = Record::next(None, None, BTreeMap::new(), file).unwrap_err().to_string();
        assert!(why.contains("--endpoint"), "{why}");
    }

    #[test]
    fn a_record_is_read_from_the_variables() {
        let file = Path::new("holdfast.env");
        let mut variables = parameters(&[
            ("HOLDFAST_STACK", "holdfast-1"),
            ("AWS_ENDPOINT_URL", "http://a:1"),
            ("AWS_REGION", "r"),
            ("HOLDFAST_PARAMETER_RolesClaim", "roles"),
            ("TABLE_NAME", "t"),
        ]);
        let record = Record::of(&variables, file).unwrap();
        assert_eq!(Record::of(&record.variables(), file).unwrap(), record);
        assert_eq!((record.stack.as_str(), record.region.as_str()), ("holdfast-1", "r"));
        assert_eq!(record.parameters, parameters(&[("RolesClaim", "roles")]));
        variables.remove(STACK);
        assert!(Record::of(&variables, file).unwrap_err().to_string().contains("HOLDFAST_STACK"));
    }
}
