//! The HTTP routes, which are defined twice: in template.yaml for API Gateway, and in the root Cargo.toml for
//! `cargo lambda watch`.
//!
//! Invariant: both are equal, or the stack does not start: a route in only one of them would work in one place only.

use crate::error::{Context, Error, Result};
use crate::process::cargo;
use crate::template::{Function, Scope, Template};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Stdio;
use tokio::process::Command;

/// One method of one path.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// As in `/products/{product_id}`.
    pub path: String,
    /// In capitals.
    pub method: String,
    /// The binary that serves it.
    pub function: String,
}

/// All routes of the API.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    known: BTreeSet<Route>,
    otherwise: Option<String>,
}

impl Routes {
    /// The template's routes, if Cargo.toml's are the same.
    ///
    /// # Errors
    /// They differ, or cannot be read.
    pub async fn load(template: &Template, scope: &Scope, functions: &[Function]) -> Result<Self> {
        let declared = of_template(template, scope, functions)?;
        let watched = of_metadata(&metadata().await?)?;
        let show = |routes: Vec<&Route>| {
            let lines = routes.iter().map(|route| format!("{} {} -> {}", route.method, route.path, route.function));
            lines.collect::<Vec<_>>().join(", ")
        };
        let only_template: Vec<&Route> = declared.difference(&watched).collect();
        let only_watch: Vec<&Route> = watched.difference(&declared).collect();
        if !only_template.is_empty() {
            return Err(Error::new(format!(
                "template.yaml has routes that are missing from [workspace.metadata.lambda.watch.router] in Cargo.toml: {}",
                show(only_template)
            )));
        }
        if !only_watch.is_empty() {
            return Err(Error::new(format!(
                "[workspace.metadata.lambda.watch.router] in Cargo.toml has routes that are missing from template.yaml: {}",
                show(only_watch)
            )));
        }
        Ok(Self { known: declared, otherwise: default_function(template, scope, functions)? })
    }

    /// These routes, each of a method, a path and a function.
    #[cfg(test)]
    pub(crate) fn of(routes: &[[&str; 3]], otherwise: Option<&str>) -> Self {
        let route = |[method, path, function]: &[&str; 3]| Route {
            path: (*path).to_owned(),
            method: (*method).to_owned(),
            function: (*function).to_owned(),
        };
        Self { known: routes.iter().map(route).collect(), otherwise: otherwise.map(str::to_owned) }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Route> {
        self.known.iter()
    }

    /// Whether API Gateway would know this request.
    pub fn know(&self, method: &str, path: &str) -> bool {
        self.known.iter().any(|route| route.method == method && matches(&route.path, path))
    }

    /// The function behind the route `$default`, which serves what no other route knows. `watch` has no such route.
    pub fn otherwise(&self) -> Option<&str> {
        self.otherwise.as_deref()
    }
}

/// Whether a path matches a pattern such as `/products/{id}`: a variable matches one segment, which is not empty.
pub fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(variable), Some(segment)) if variable.starts_with('{') && !segment.is_empty() => {}
            (Some(fixed), Some(segment)) if fixed == segment => {}
            _ => return false,
        }
    }
}

fn of_template(template: &Template, scope: &Scope, functions: &[Function]) -> Result<BTreeSet<Route>> {
    let mut routes = BTreeSet::new();
    for resource in template.resources(scope, "AWS::Serverless::Function")? {
        let binary = functions.iter().find(|function| function.id == resource.id).map(|function| &function.binary);
        for (name, event) in resource.properties["Events"].as_object().into_iter().flatten() {
            if event["Type"] != "HttpApi" {
                continue;
            }
            if is_default(event) {
                continue;
            }
            let text = |field: &str| event["Properties"][field].as_str();
            let (Some(path), Some(method), Some(function)) = (text("Path"), text("Method"), binary) else {
                return Err(Error::new(format!("the event {name} of {} has no path or no method", resource.id)));
            };
            routes.insert(Route { path: path.to_owned(), method: method.to_uppercase(), function: function.clone() });
        }
    }
    Ok(routes)
}

/// SAM makes the route `$default` of an event that names neither path nor method.
fn is_default(event: &Value) -> bool {
    event["Properties"]["Path"].is_null() && event["Properties"]["Method"].is_null()
}

fn default_function(template: &Template, scope: &Scope, functions: &[Function]) -> Result<Option<String>> {
    for resource in template.resources(scope, "AWS::Serverless::Function")? {
        let mut events = resource.properties["Events"].as_object().into_iter().flat_map(serde_json::Map::values);
        if events.any(|event| event["Type"] == "HttpApi" && is_default(event)) {
            let function = functions.iter().find(|function| function.id == resource.id);
            return Ok(function.map(|function| function.binary.clone()));
        }
    }
    Ok(None)
}

fn of_metadata(metadata: &Value) -> Result<BTreeSet<Route>> {
    let mut routes = BTreeSet::new();
    let router = &metadata["metadata"]["lambda"]["watch"]["router"];
    for (path, targets) in router.as_object().into_iter().flatten() {
        for target in targets.as_array().into_iter().flatten() {
            let (Some(method), Some(function)) = (target["method"].as_str(), target["function"].as_str()) else {
                return Err(Error::new(format!("Cargo.toml's route {path} has no method or no function")));
            };
            routes.insert(Route { path: path.clone(), method: method.to_uppercase(), function: function.to_owned() });
        }
    }
    Ok(routes)
}

async fn metadata() -> Result<Value> {
    let cannot = || "cannot read the workspace's metadata".to_owned();
    let output = Command::from(cargo())
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stdin(Stdio::null())
        .output()
        .await
        .context(cannot)?;
    if !output.status.success() {
        return Err(Error::new(format!("{}: {}", cannot(), String::from_utf8_lossy(&output.stderr).trim())));
    }
    serde_json::from_slice(&output.stdout).context(cannot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::paths;
    use serde_json::json;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn template_and_cargo_have_the_same_routes() {
        let template = Template::load(&paths::workspace().join("template.yaml")).unwrap();
        let scope = Scope {
            stack: "s".to_owned(),
            region: "r".to_owned(),
            parameters: BTreeMap::new(),
            resources: BTreeMap::new(),
        };
        let functions = template.functions(&scope).unwrap();
        let routes = Routes::load(&template, &scope, &functions).await.unwrap();
        assert!(routes.know("GET", "/products"));
        assert_eq!(routes.otherwise(), Some("catalog"));
    }

    #[test]
    fn a_variable_is_one_segment() {
        let routes = Routes {
            otherwise: None,
            known: of_metadata(&json!({ "metadata": { "lambda": { "watch": { "router": {
            "/products/{product_id}": [{ "method": "get", "function": "catalog" }],
            "/products/{product_id}/stock": [{ "method": "POST", "function": "admin" }],
        } } } } }))
            .unwrap(),
        };
        assert!(routes.know("GET", "/products/tea"));
        assert!(routes.know("POST", "/products/tea/stock"));
        for (method, path) in
            [("POST", "/products/tea"), ("GET", "/products/"), ("GET", "/products"), ("GET", "/products/tea/x")]
        {
            assert!(!routes.know(method, path), "{method} {path}");
        }
    }
}
