//! `cargo local`: Holdfast on one machine. The library's documentation says how.

use clap::{Args, Parser, Subcommand};
use holdfast_local::demo;
use holdfast_local::emulator::Choice;
use holdfast_local::error::{Context as _, Result};
use holdfast_local::fuzz;
use holdfast_local::openapi;
use holdfast_local::paths::shown;
use holdfast_local::simulate;
use holdfast_local::stack::{Options, Stack};
use holdfast_local::token::{Role, Signer};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(name = "cargo local", bin_name = "cargo local", version, about = "Holdfast on one machine")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Plays a sale from start to end on real components and checks the books; exits with 1 if a check fails
    Demo(StackArgs),
    /// Runs the stack until Ctrl-C, to try it by hand
    Up(StackArgs),
    /// Runs the functions in a deterministic simulation with faults, seed by seed (--help for more)
    #[command(disable_help_flag = true)]
    Simulate {
        /// Arguments of the simulator
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        arguments: Vec<String>,
    },
    /// Fuzzes the parsers of external input with libFuzzer; exits with 1 if a promise is broken
    Fuzz {
        /// One of shared/fuzz/targets [default: all, in turn]
        target: Option<String>,
        /// Minutes per target
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
        minutes: u32,
        /// Runs this input once, for example one that broke a promise
        #[arg(long, value_name = "FILE", conflicts_with = "minutes")]
        input: Option<PathBuf>,
    },
    /// Prints a token for the local API
    Token {
        /// Subject of the token: the customer
        #[arg(long)]
        sub: String,
        /// Role of the token
        #[arg(long, value_enum, default_value = "customer")]
        role: Role,
    },
    /// Regenerates the API description (functions/catalog/openapi.json)
    Openapi,
}

#[derive(Args)]
struct StackArgs {
    /// The AWS emulator to start
    #[arg(long, value_enum, default_value = "ministack", conflicts_with = "endpoint")]
    emulator: Emulator,
    /// Use the AWS emulator that is already running at this URL; its other resources are not touched
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
    /// Port of the API on 127.0.0.1 [default: any free port]
    #[arg(long)]
    port: Option<u16>,
    /// Port of the emulator on 127.0.0.1 [default: any free port]
    #[arg(long, conflicts_with = "endpoint")]
    emulator_port: Option<u16>,
    /// Processes of each function: Lambda's environments, each serving one request at a time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=32))]
    concurrency: u16,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Emulator {
    /// A Python package, installed into target/local; without Docker
    Ministack,
    /// localstack/compose.yaml; requires Docker
    Localstack,
}

impl From<StackArgs> for Options {
    fn from(args: StackArgs) -> Self {
        let emulator = match (args.endpoint, args.emulator) {
            (Some(url), _) => Choice::Endpoint(url),
            (None, Emulator::Ministack) => Choice::Ministack,
            (None, Emulator::Localstack) => Choice::LocalStack,
        };
        Self {
            emulator,
            port: args.port,
            emulator_port: args.emulator_port,
            concurrency: usize::from(args.concurrency),
            ..Self::default()
        }
    }
}

/// The exit code of a program that was ended by SIGINT.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Simulate { arguments } => simulate::run(&arguments),
        Command::Fuzz { target, minutes, input } => {
            unless_stopped(fuzz::run(fuzz::Options { target, minutes, input })).await.map(verdict)
        }
        Command::Token { sub, role } => token(&sub, role),
        Command::Openapi => write_description(),
        Command::Up(args) => up(args.into()).await,
        Command::Demo(args) => unless_stopped(demo::run(args.into())).await.map(verdict),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error}");
        ExitCode::FAILURE
    })
}

/// The exit code: `None` if it was interrupted.
fn verdict(ended: Option<bool>) -> ExitCode {
    match ended {
        Some(true) => ExitCode::SUCCESS,
        Some(false) => ExitCode::FAILURE,
        None => ExitCode::from(INTERRUPTED),
    }
}

/// Runs `work` until it ends, or returns `None` on Ctrl-C or SIGTERM. Its processes end when it is dropped.
async fn unless_stopped<T>(work: impl Future<Output = Result<T>>) -> Result<Option<T>> {
    tokio::select! {
        outcome = work => outcome.map(Some),
        stopped = stop_signal() => {
            stopped?;
            eprintln!("stopped");
            Ok(None)
        }
    }
}

async fn stop_signal() -> Result<()> {
    let listen = |kind| signal(kind).context(|| "cannot listen for signals".into());
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn token(sub: &str, role: Role) -> Result<ExitCode> {
    println!("{}", Signer::load()?.token(sub, role)?);
    Ok(ExitCode::SUCCESS)
}

fn write_description() -> Result<ExitCode> {
    let path = openapi::path();
    std::fs::write(&path, openapi::text()?).context(|| format!("cannot write {}", path.display()))?;
    println!("{}", shown(&path));
    Ok(ExitCode::SUCCESS)
}

async fn up(options: Options) -> Result<ExitCode> {
    let Some(stack) = unless_stopped(Stack::start(options)).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    greet(&stack)?;
    // Ctrl-C is the normal way to end it.
    stop_signal().await?;
    eprintln!("stopping ...");
    stack.stop().await;
    eprintln!("stopped");
    Ok(ExitCode::SUCCESS)
}

fn greet(stack: &Stack) -> Result<()> {
    let api = stack.api_url();
    println!(
        "
Holdfast is running. Stop it with Ctrl-C.

  API        {api}
  emulator   {}   (table {})
  logs       {}
             {}

Tokens, valid for 12 hours (more: cargo local token --sub NAME --role customer|service|admin):

  export ALICE={}
  export ADMIN={}

Try:

  curl -s {api}/admin/products -H \"Authorization: Bearer $ADMIN\" -H 'Content-Type: application/json' \\
    -d '{{\"product_id\":\"tea\",\"name\":\"Tea\",\"price_minor\":450,\"currency\":\"EUR\",\"total\":10}}'
  curl -s {api}/products
  curl -s {api}/reservations -H \"Authorization: Bearer $ALICE\" -H 'Idempotency-Key: basket-1' \\
    -H 'Content-Type: application/json' -d '{{\"lines\":[{{\"product_id\":\"tea\",\"quantity\":2}}]}}'
  curl -s {api}/reservations -H \"Authorization: Bearer $ALICE\"
  curl -s {api}/reservations/RESERVATION_ID/confirm -H \"Authorization: Bearer $ALICE\" \\
    -H 'Content-Type: application/json' -d '{{\"payment_reference\":\"pay-1\"}}'
",
        stack.endpoint_url(),
        stack.table()?,
        shown(&stack.logs().functions),
        shown(&stack.logs().watch),
        stack.token("alice", Role::Customer)?,
        stack.token("root", Role::Admin)?,
    );
    Ok(())
}
