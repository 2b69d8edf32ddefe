//! `cargo local`: Holdfast on one machine. The library's documentation says how.

use clap::{Args, CommandFactory as _, Parser, Subcommand};
use holdfast_local::admin_cli;
use holdfast_local::audit;
use holdfast_local::bare;
use holdfast_local::bench;
use holdfast_local::demo;
use holdfast_local::emulator::{Choice, endpoint};
use holdfast_local::error::{Context as _, Result};
use holdfast_local::fuzz;
use holdfast_local::openapi;
use holdfast_local::paths::shown;
use holdfast_local::runner::Event;
use holdfast_local::running::Running;
use holdfast_local::simulate;
use holdfast_local::stack::{Options, Stack};
use holdfast_local::token::{Role, Signer, subject};
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::broadcast::error::RecvError;

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
    /// Makes the table, queues and schedule group at an emulator, for a `cargo lambda watch` of your own
    Resources(ResourcesArgs),
    /// Fires due schedules and delivers queue messages to a `cargo lambda watch` of your own, until Ctrl-C
    Triggers {
        /// The env file of `cargo local resources` [default: target/local/holdfast.env]
        #[arg(long, value_name = "FILE")]
        env_file: Option<PathBuf>,
        /// Where `cargo lambda watch` listens
        #[arg(long, value_name = "URL", value_parser = endpoint, default_value = "http://127.0.0.1:9000")]
        invoke_address: String,
    },
    /// Runs the functions in a deterministic simulation with faults, seed by seed; exits with 1 if a promise is broken
    #[command(after_help = simulate::OPTIONS)]
    Simulate {
        /// Optimise the simulator as a whole: minutes more to build, and worth it for runs of hours
        #[arg(long)]
        fast: bool,
        /// Options of the simulator, see below
        #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measures the functions under load, optimised, over a DynamoDB in memory; exits with 1 if a unit is sold twice
    #[command(after_help = bench::OPTIONS)]
    Bench {
        /// Options of the benchmark, see below
        #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
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
    /// Audits every product of a table, also in AWS; exits with 1 if its books do not agree
    #[command(after_help = audit::CREDENTIALS)]
    Audit {
        /// The table [default: that of the running `cargo local up`]
        #[arg(long, value_name = "NAME")]
        table: Option<String>,
        /// The AWS emulator that has the table [default: AWS]
        #[arg(long, value_name = "URL", value_parser = endpoint, requires = "table")]
        endpoint: Option<String>,
        /// Only this product
        #[arg(long, value_name = "ID")]
        product: Option<String>,
        /// Look at most this often while the table is in use
        #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(2..=100))]
        looks: u16,
        /// Where the books do not agree, write an entry to the ledger that makes them right, and set the total to it, in
        /// this person's name
        #[arg(long, value_name = "WHO")]
        write_compensation: Option<String>,
    },
    /// Calls the admin API of any stack: a command for each operation, see `cargo local admin --help`
    #[command(disable_help_flag = true)]
    Admin {
        /// An operation of the API, and its options
        #[arg(value_name = "ARGUMENTS", trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Prints a token for the local API
    Token {
        /// Subject of the token: the customer
        #[arg(long, value_parser = subject)]
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
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: Option<String>,
    /// A parameter of template.yaml, such as CorsAllowOrigins=http://localhost:5173; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, String)>,
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

#[derive(Args)]
struct ResourcesArgs {
    /// The AWS emulator; needed for a new env file only
    #[arg(long, value_name = "URL", value_parser = endpoint)]
    endpoint: Option<String>,
    /// Where the functions' variables are written. An existing file's resources are used again
    /// [default: target/local/holdfast.env]
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
    /// A parameter of template.yaml, such as CustomerRateLimit=5; may be repeated, and is kept in the env file
    #[arg(long, value_name = "NAME=VALUE", value_parser = parameter)]
    parameter: Vec<(String, String)>,
    /// Delete the resources of the env file, and the file
    #[arg(long, conflicts_with_all = ["endpoint", "parameter"])]
    delete: bool,
}

fn parameter(text: &str) -> std::result::Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE, such as CustomerRateLimit=5")?;
    Ok((name.to_owned(), value.to_owned()))
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
            parameters: args.parameter.into_iter().collect(),
            ..Self::default()
        }
    }
}

/// The exit code of a program that was ended by SIGINT.
const INTERRUPTED: u8 = 130;

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Resources(args) => unless_stopped(resources(args)).await.map(|ended| verdict(ended.map(|()| true))),
        Command::Triggers { env_file, invoke_address } => triggers(env_file, &invoke_address).await,
        Command::Simulate { arguments, .. } if simulate::asks_for_help(&arguments) => help("simulate"),
        Command::Simulate { fast, arguments } => simulate::run(fast, &arguments),
        Command::Bench { arguments } if simulate::asks_for_help(&arguments) => help("bench"),
        Command::Bench { arguments } => bench::run(&arguments),
        Command::Fuzz { target, minutes, input } => {
            unless_stopped(fuzz::run(fuzz::Options { target, minutes, input })).await.map(verdict)
        }
        Command::Audit { table, endpoint, product, looks, write_compensation } => {
            let options = audit::Options { table, endpoint, product, looks: looks.into(), write_compensation };
            unless_stopped(audit::run(options, &mut std::io::stdout())).await.map(verdict)
        }
        Command::Admin { arguments } => {
            unless_stopped(admin_cli::run(&arguments, &mut std::io::stdout())).await.map(verdict)
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

async fn resources(args: ResourcesArgs) -> Result<()> {
    let env_file = args.env_file.map_or_else(bare::default_env_file, Ok)?;
    if args.delete {
        let record = bare::delete(&env_file).await?;
        println!("the resources of {} at {} and {} are deleted", record.stack, record.endpoint_url, shown(&env_file));
        return Ok(());
    }
    let parameters = args.parameter.into_iter().collect();
    let record =
        bare::create(bare::Request { endpoint: args.endpoint, env_file: env_file.clone(), parameters }).await?;
    println!("{}", record.next_steps(&env_file));
    Ok(())
}

async fn triggers(env_file: Option<PathBuf>, invoke_address: &str) -> Result<ExitCode> {
    let env_file = env_file.map_or_else(bare::default_env_file, Ok)?;
    let runner = bare::triggers(&env_file, invoke_address).await?;
    let mut events = runner.events();
    println!("playing the triggers of {} for the functions at {invoke_address}, until Ctrl-C", shown(&env_file));
    let tell = async {
        let mut last = None;
        loop {
            match events.recv().await {
                // Once a second while an emulator is away.
                Ok(event @ Event::EmulatorFailed { .. }) if last.as_ref() == Some(&event) => {}
                Ok(event) => {
                    println!("{event}");
                    last = Some(event);
                }
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    };
    tokio::select! {
        stopped = stop_signal() => stopped?,
        () = tell => {}
    }
    runner.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// The help of a command whose options are those of another program.
fn help(command: &str) -> Result<ExitCode> {
    let mut cli = Cli::command();
    cli.build();
    let help = cli.find_subcommand_mut(command).map(clap::Command::render_help);
    println!("{}", help.map(|help| help.to_string()).unwrap_or_default());
    Ok(ExitCode::SUCCESS)
}

async fn up(options: Options) -> Result<ExitCode> {
    let Some(mut stack) = unless_stopped(Stack::start(options)).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let running = Running::of(&stack)?;
    running.record()?;
    println!("{}{}", greeting(&stack)?, tries(stack.api_url()));
    // Ctrl-C is the normal way to end it.
    let broken = tokio::select! {
        stopped = stop_signal() => stopped.map(|()| None)?,
        why = stack.ended() => Some(why),
    };
    if let Some(why) = &broken {
        eprintln!("error: {why}");
    }
    eprintln!("stopping ...");
    running.forget();
    stack.stop().await;
    eprintln!("stopped");
    Ok(if broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn greeting(stack: &Stack) -> Result<String> {
    let api = stack.api_url();
    Ok(format!(
        "
Holdfast is running. Ctrl-C stops it and deletes its data.

  API        {api}
  docs       {api}/docs
  console    {api}/admin
  emulator   {}   (table {})
  logs       {}
             {}

Tokens, valid for 12 hours, of a customer, of the shop's back end (it confirms) and of an admin
(more: cargo local token --sub NAME [--role ROLE]):

  export CAROL={}
  export SHOP={}
  export ADMIN={}
",
        stack.endpoint_url(),
        stack.table()?,
        shown(&stack.logs().functions),
        shown(&stack.logs().watch),
        stack.token("carol", Role::Customer)?,
        stack.token("shop", Role::Service)?,
        stack.token("root", Role::Admin)?,
    ))
}

/// Commands to try. Their customer, product and key are not those of README.md's walk-through, which may follow.
fn tries(api: &str) -> String {
    format!(
        "
Try:

  curl -s {api}/admin/products -H \"Authorization: Bearer $ADMIN\" -H 'Content-Type: application/json' \\
    -d '{{\"product_id\":\"tea\",\"name\":\"Tea\",\"price_minor\":450,\"currency\":\"EUR\",\"total\":10}}'
  curl -s {api}/products
  curl -s {api}/reservations -H \"Authorization: Bearer $CAROL\" -H 'Idempotency-Key: carol-1' \\
    -H 'Content-Type: application/json' -d '{{\"lines\":[{{\"product_id\":\"tea\",\"quantity\":2}}]}}'
  curl -s {api}/reservations -H \"Authorization: Bearer $CAROL\"
  curl -s {api}/reservations/RESERVATION_ID/confirm -H \"Authorization: Bearer $SHOP\" \\
    -H 'Content-Type: application/json' -d '{{\"payment_reference\":\"pay-1\",\"customer_id\":\"carol\"}}'
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> std::result::Result<Command, String> {
        let words = ["cargo local"].into_iter().chain(line.split(' '));
        Cli::try_parse_from(words).map(|cli| cli.command).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn parameters_are_repeated_and_half_a_url_is_refused() {
        let line = "up --parameter CorsAllowOrigins=http://localhost:5173 --parameter RolesClaim=a=b";
        let Ok(Command::Up(args)) = parse(line) else { panic!("{line}") };
        let parameters = Options::from(args).parameters;
        assert_eq!(parameters["CorsAllowOrigins"], "http://localhost:5173");
        assert_eq!(parameters["RolesClaim"], "a=b");
        for (line, part) in [
            ("up --parameter CorsAllowOrigins", "NAME=VALUE"),
            ("up --endpoint 127.0.0.1:4566", "such as http://127.0.0.1:4566"),
            ("resources --endpoint localhost:4566", "such as http://127.0.0.1:4566"),
            ("resources --delete --endpoint http://127.0.0.1:4566", "cannot be used with"),
            ("token --sub guest:1", "guests"),
        ] {
            let why = parse(line).err().unwrap_or_default();
            assert!(why.contains(part), "{line}: {why}");
        }
    }

    #[test]
    fn the_admins_arguments_are_passed_on() {
        for line in ["admin --help", "admin listAllReservations --status held", "admin --api http://x createProduct -h"]
        {
            let Ok(Command::Admin { arguments }) = parse(line) else { panic!("{line}") };
            assert_eq!(format!("admin {}", arguments.join(" ")), line);
        }
    }

    #[test]
    fn the_simulators_arguments_are_passed_on() {
        let Ok(Command::Simulate { fast, arguments }) = parse("simulate --fast --seeds 3 --tally") else { panic!() };
        assert_eq!((fast, arguments.join(" ").as_str()), (true, "--seeds 3 --tally"));
        let Ok(Command::Simulate { fast, arguments }) = parse("simulate --seeds 3 --fast") else { panic!() };
        assert_eq!((fast, arguments.join(" ").as_str()), (false, "--seeds 3 --fast"));
        let help = parse("simulate --help").err().unwrap_or_default();
        assert!(help.contains("--fast") && help.contains("--planted"), "{help}");
    }

    #[test]
    fn what_up_suggests_does_not_collide_with_the_walk_through() {
        let readme = std::fs::read_to_string(holdfast_local::paths::workspace().join("README.md")).unwrap();
        let tries = tries("http://127.0.0.1:3000");
        for start in ["Idempotency-Key: ", "\"product_id\":\"", "Bearer $C"] {
            let used: Vec<&str> =
                tries.split(start).skip(1).filter_map(|rest| rest.split(['\'', '"']).next()).collect();
            assert!(!used.is_empty(), "{start}");
            for used in used {
                assert!(!readme.contains(&format!("{start}{used}")), "{start}{used}");
            }
        }
    }
}
