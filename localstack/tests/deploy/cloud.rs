//! template.yaml, built and deployed: `sam build`, `sam deploy` to an emulator that enforces the roles, and calls of the
//! deployed functions by name.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use holdfast_local::aws::{CREDENTIAL, Clients};
use holdfast_local::emulator::Emulator;
use holdfast_local::gateway::free_port;
use holdfast_local::paths;
use holdfast_local::process::Keeper;
use holdfast_local::progress::Step;
use holdfast_local::tools;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::sync::Mutex;

use crate::rules::Expanded;

/// How long anything that will happen may take to happen: a sweep comes every minute, and the emulator looks for due
/// schedules every ten seconds. Nothing waits this long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(150);
/// Neither logs nor queues of the emulator announce anything, so they are asked at this interval.
const LOOK: Duration = Duration::from_millis(500);

const STACK: &str = "holdfast-deploy-test";
const REGION: &str = "us-east-1";

/// What differs from the template's defaults beside processor and endpoint: no issuer is given, so the stack makes a
/// user pool of its own, with all that can be had of it.
const PARAMETERS: [&str; 4] = [
    "DeletionProtection=false",
    "UserPoolDomainPrefix=holdfast-deploy-test",
    "ConsoleUrl=https://console.shop.example",
    "EmailSender=no-reply@shop.example",
];

/// The SAM CLI and all that it calls.
pub(crate) struct Sam {
    program: PathBuf,
    path: std::ffi::OsString,
    keeper: Arc<Keeper>,
    /// Both processors' builds ask it for a target; it does so one at a time.
    rustup: Mutex<()>,
}

/// A processor that functions are built for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    X86,
    Arm,
}

impl Architecture {
    /// That of this machine: what is built for it can be run here.
    pub(crate) fn here() -> Self {
        if cfg!(target_arch = "aarch64") { Self::Arm } else { Self::X86 }
    }

    /// As the template's parameter `Architecture` names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "arm64",
        }
    }

    fn target(self) -> &'static str {
        match self {
            Self::X86 => "x86_64-unknown-linux-gnu",
            Self::Arm => "aarch64-unknown-linux-gnu",
        }
    }

    /// `e_machine` of an ELF file (<https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html>).
    pub(crate) fn elf_machine(self) -> u16 {
        match self {
            Self::X86 => 62,
            Self::Arm => 183,
        }
    }
}

impl Sam {
    /// Installs what is missing.
    pub(crate) async fn ready(keeper: &Arc<Keeper>) -> Self {
        let program = tools::ensure(tools::SAM, keeper).await.unwrap_or_else(|error| panic!("{error}"));
        let mut folders = Vec::new();
        // Zig first: cargo-lambda finds it by way of the first `python3`.
        for tool in [tools::ZIG, tools::CARGO_LAMBDA] {
            let tool = tools::ensure(tool, keeper).await.unwrap_or_else(|error| panic!("{error}"));
            folders.push(tool.parent().expect("a folder").to_path_buf());
        }
        let own = std::env::var_os("PATH").unwrap_or_default();
        folders.extend(std::env::split_paths(&own));
        Self {
            program,
            path: std::env::join_paths(folders).expect("a PATH"),
            keeper: Arc::clone(keeper),
            rustup: Mutex::default(),
        }
    }

    /// template.yaml as SAM expands it.
    pub(crate) async fn expand(&self, parameters: &[&str]) -> Expanded {
        let output = Command::new(self.program.with_file_name("python"))
            .current_dir(paths::workspace())
            .args(["localstack/tools/expand.py", "template.yaml"])
            .args(parameters)
            .stdin(Stdio::null())
            .output()
            .await
            .expect("Python");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Expanded { root: serde_json::from_slice(&output.stdout).expect("JSON") }
    }

    /// Builds functions for one processor, as a release, all or `only` one; the folder holds `<logical id>/bootstrap` for each.
    pub(crate) async fn build(&self, architecture: Architecture, only: Option<&str>) -> PathBuf {
        let step = Step::start(format!(
            "sam build for {} (minutes: each function with link-time optimisation)",
            architecture.name()
        ));
        let folder = paths::local("deploy").unwrap().join(architecture.name());
        {
            let _alone = self.rustup.lock().await;
            let mut rustup = Command::new("rustup");
            rustup.args(["target", "add", architecture.target()]);
            self.run(&mut rustup, "rustup", &[]).await;
        }
        let build_dir = folder.display().to_string();
        let parameter = format!("Architecture={}", architecture.name());
        // A target directory for each: link-time optimisation uses one core, and Cargo builds in one directory at a time.
        let target = folder.with_extension("target").display().to_string();
        // The function's id comes first: `--parameter-overrides` takes every word that follows.
        let options = ["--build-dir", &build_dir, "--parameter-overrides", &parameter];
        let build: Vec<&str> = ["build"].into_iter().chain(only).chain(options).collect();
        let name = format!("sam-build-{}", architecture.name());
        self.sam(&name, &build, &[("CARGO_TARGET_DIR", &target)]).await;
        step.done(&paths::shown(&folder));
        folder
    }

    async fn sam(&self, name: &str, arguments: &[&str], environment: &[(&str, &str)]) {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        self.run(&mut command, name, environment).await;
    }

    /// Runs to the end, and tells on failure how its log ends.
    async fn run(&self, command: &mut Command, name: &str, environment: &[(&str, &str)]) {
        let path = paths::local("logs").unwrap().join(format!("deploy-test.{name}.log"));
        let log = File::create(&path).unwrap();
        command
            .current_dir(paths::workspace())
            .env("PATH", &self.path)
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_ACCESS_KEY_ID", CREDENTIAL)
            .env("AWS_SECRET_ACCESS_KEY", CREDENTIAL)
            .env_remove("AWS_PROFILE")
            .env("SAM_CLI_TELEMETRY", "0")
            .env("__SAM_CLI_APP_DIR", paths::local("sam").unwrap())
            .envs(environment.iter().copied())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let mut group = self.keeper.spawn(name, command).unwrap_or_else(|error| panic!("{error}"));
        let status = group.wait().await.unwrap();
        if !status.success() {
            let said = std::fs::read_to_string(&path).unwrap();
            let lines: Vec<&str> = said.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            panic!("{name} failed ({status}); {} ends:\n{end}", paths::shown(&path));
        }
    }
}

/// An answer of a deployed function to an event of API Gateway.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u64,
    pub(crate) body: Value,
}

impl Answer {
    #[track_caller]
    pub(crate) fn is(&self, status: u64) -> &Value {
        assert_eq!(self.status, status, "{self:#?}");
        &self.body
    }
}

/// The deployed stack.
pub(crate) struct Cloud {
    pub(crate) clients: Clients,
    outputs: BTreeMap<String, String>,
    http: reqwest::Client,
    emulator: Emulator,
}

impl Cloud {
    /// Deploys what was built in `folder` to an emulator that is new.
    pub(crate) async fn deploy(sam: &Sam, folder: &Path, architecture: Architecture, keeper: &Arc<Keeper>) -> Self {
        let log = paths::local("logs").unwrap().join("deploy-test.emulator.log");
        let emulator = Emulator::start_cloud(free_port().unwrap(), &log, keeper).await;
        let emulator = emulator.unwrap_or_else(|error| panic!("{error}"));
        let endpoint = emulator.url().to_owned();
        let step = Step::start("sam deploy to the emulator");
        let template = folder.join("template.yaml").display().to_string();
        let own = [format!("Architecture={}", architecture.name()), format!("AwsEndpointUrl={endpoint}")];
        let mut arguments = vec![
            "deploy",
            "--template-file",
            &template,
            "--stack-name",
            STACK,
            "--resolve-s3",
            "--no-confirm-changeset",
            "--capabilities",
            "CAPABILITY_IAM",
            "--no-progressbar",
            "--parameter-overrides",
        ];
        arguments.extend(PARAMETERS);
        arguments.extend(own.iter().map(String::as_str));
        sam.sam("sam-deploy", &arguments, &[("AWS_ENDPOINT_URL", &endpoint)]).await;
        let mut cloud = Self {
            clients: Clients::new(&endpoint),
            outputs: BTreeMap::new(),
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            emulator,
        };
        cloud.outputs = cloud.describe().await;
        cloud.bridge_the_schedule_group(&sam.expand(&PARAMETERS).await).await;
        step.done(STACK);
        cloud
    }

    /// The emulator checks CreateSchedule and GetSchedule against the group `default`, whatever group the request names, so the
    /// template's own permissions, which are for its own group, do not match there. Where the template has them, this grants
    /// the same for the name that the emulator looks at; where one of them is missing, nothing.
    async fn bridge_the_schedule_group(&self, template: &Expanded) {
        let (role, actions) = ("ReserveRole", ["scheduler:CreateSchedule", "scheduler:GetSchedule"]);
        let policies = template.root["Resources"][role]["Properties"]["Policies"].to_string();
        if !actions.iter().all(|action| policies.contains(&format!("\"{action}\""))) {
            return;
        }
        let configuration = self.configuration("ReserveFunction").await;
        let name = configuration["Role"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let policy = json!({"Version": "2012-10-17", "Statement": [{
            "Effect": "Allow", "Action": actions, "Resource": format!("arn:aws:scheduler:{REGION}:*:schedule/default/*"),
        }]});
        let form = [
            ("Action", "PutRolePolicy"),
            ("Version", "2010-05-08"),
            ("RoleName", &name),
            ("PolicyName", "emulator-takes-every-group-for-default"),
            ("PolicyDocument", &policy.to_string()),
        ];
        let body = form.iter().map(|(name, value)| format!("{name}={}", encoded(value))).collect::<Vec<_>>().join("&");
        let request = self.request(reqwest::Method::POST, "iam", "/");
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// A function's configuration, by its name in the template, as GetFunctionConfiguration answers it.
    pub(crate) async fn configuration(&self, function: &str) -> Value {
        let path = format!("/2015-03-31/functions/{}/configuration", self.output(&format!("{function}Name")));
        self.request(reqwest::Method::GET, "lambda", &path).send().await.unwrap().json().await.unwrap()
    }

    /// The stack's outputs, from CloudFormation's own answer: flat pairs of `OutputKey` and `OutputValue` in XML.
    async fn describe(&self) -> BTreeMap<String, String> {
        let request = self.request(reqwest::Method::POST, "cloudformation", "/");
        let body = format!("Action=DescribeStacks&Version=2010-05-15&StackName={STACK}");
        let request = request.header("content-type", "application/x-www-form-urlencoded").body(body);
        let xml = request.send().await.unwrap().text().await.unwrap();
        let text = |tag: &str| -> Vec<String> {
            let (open, close) = (format!("<{tag}>"), format!("</{tag}>"));
            let parts = xml.split(&open).skip(1);
            parts.filter_map(|part| Some(part.split_once(&close)?.0.to_owned())).collect()
        };
        text("OutputKey").into_iter().zip(text("OutputValue")).collect()
    }

    /// An output of the stack.
    pub(crate) fn output(&self, name: &str) -> &str {
        self.outputs.get(name).unwrap_or_else(|| panic!("no output {name} among {:?}", self.outputs))
    }

    /// The functions, by their names in the template.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &str> {
        let names = self.outputs.keys().filter_map(|name| name.strip_suffix("Name"));
        names.filter(|name| name.ends_with("Function"))
    }

    /// A request by the root credentials, whose signature the emulator does not check.
    fn request(&self, method: reqwest::Method, service: &str, path: &str) -> reqwest::RequestBuilder {
        let signature = format!(
            "AWS4-HMAC-SHA256 Credential={CREDENTIAL}/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0"
        );
        self.http.request(method, format!("{}{path}", self.emulator.url())).header("authorization", signature)
    }

    /// Calls a function by its name in the template, as Invoke does.
    pub(crate) async fn invoke(&self, function: &str, event: &Value) -> Value {
        let name = self.output(&format!("{function}Name"));
        // The version that callers reach, not the one that was uploaded last.
        let path = format!("/2015-03-31/functions/{name}:live/invocations");
        let request = self.request(reqwest::Method::POST, "lambda", &path).body(event.to_string());
        let response = request.send().await.unwrap();
        let failed = response.headers().get("x-amz-function-error").cloned();
        let answer: Value = response.json().await.unwrap();
        assert_eq!(failed, None, "{function}: {answer}");
        answer
    }

    /// The same, where it answers to API Gateway.
    pub(crate) async fn http(&self, function: &str, event: &Value) -> Answer {
        let answer = self.invoke(function, event).await;
        let body = answer["body"].as_str().unwrap_or_default();
        Answer {
            status: answer["statusCode"].as_u64().unwrap_or_else(|| panic!("no status: {answer}")),
            body: serde_json::from_str(body).unwrap_or_else(|_| json!(body)),
        }
    }

    /// What a function has logged.
    pub(crate) async fn log(&self, function: &str) -> Vec<String> {
        let group = format!("/aws/lambda/{STACK}-{function}");
        let (mut lines, mut token) = (Vec::new(), Value::Null);
        loop {
            let mut body = json!({ "logGroupName": group });
            if !token.is_null() {
                body["nextToken"] = token;
            }
            let request = self
                .request(reqwest::Method::POST, "logs", "/")
                .header("x-amz-target", "Logs_20140328.FilterLogEvents")
                .header("content-type", "application/x-amz-json-1.1");
            let page: Value = request.body(body.to_string()).send().await.unwrap().json().await.unwrap();
            let events = page["events"].as_array().unwrap_or_else(|| panic!("no log of {function}: {page}"));
            lines.extend(events.iter().filter_map(|event| event["message"].as_str().map(str::to_owned)));
            token = page["nextToken"].clone();
            if token.is_null() {
                return lines;
            }
        }
    }

    /// Waits until `look` finds something.
    pub(crate) async fn until<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        let looking = async {
            let mut pause = tokio::time::interval(LOOK);
            loop {
                pause.tick().await;
                if let Some(found) = look().await {
                    return found;
                }
            }
        };
        tokio::time::timeout(PATIENCE, looking).await.unwrap_or_else(|_| panic!("within {PATIENCE:?} never: {what}"))
    }

    /// Calls an operation of Cognito's user pools, by the root credentials or, as its users do, by none.
    pub(crate) async fn cognito(&self, by_root: bool, operation: &str, body: Value) -> (u16, Value) {
        let request = if by_root {
            self.request(reqwest::Method::POST, "cognito-idp", "/")
        } else {
            self.http.post(self.emulator.url())
        };
        let request = request
            .header("x-amz-target", format!("AWSCognitoIdentityProviderService.{operation}"))
            .header("content-type", "application/x-amz-json-1.1");
        let answer = request.body(body.to_string()).send().await.unwrap();
        let status = answer.status().as_u16();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// An access token for a client of the user pool, by the client's own secret.
    pub(crate) async fn client_credentials(&self, client: &str, scope: &str) -> (u16, Value) {
        let body = json!({"UserPoolId": self.output("UserPoolId"), "ClientId": client});
        let (status, described) = self.cognito(true, "DescribeUserPoolClient", body).await;
        assert_eq!(status, 200, "{described}");
        let secret = described["UserPoolClient"]["ClientSecret"].as_str();
        let request = self.http.post(format!("{}/oauth2/token", self.emulator.url()));
        let request = request.basic_auth(client, secret).header("content-type", "application/x-www-form-urlencoded");
        let form = format!("grant_type=client_credentials&scope={}", encoded(scope));
        let answer = request.body(form).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    /// The keys by which anybody can check the tokens of the stack's user pool.
    pub(crate) async fn user_pool_keys(&self) -> Value {
        let url = format!("{}/{}/.well-known/jwks.json", self.emulator.url(), self.output("UserPoolId"));
        self.http.get(url).send().await.unwrap().json().await.unwrap()
    }

    pub(crate) async fn stop(self) {
        self.emulator.stop().await;
    }
}

/// A value of a form, by the rules of `application/x-www-form-urlencoded`.
fn encoded(value: &str) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._*".contains(byte);
    value.bytes().map(|byte| if plain(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
