//! `cargo local bench`: load on the real functions, with latencies, processor time, calls to AWS and the units that DynamoDB
//! would bill.
//!
//! ```text
//! this process: load  ->  server: catalog, reserve, confirm  ->  cloud: DynamoDB in memory, Scheduler, SQS
//! ```
//!
//! Each run has processes of its own, and so an empty table and a cold cache of products. Before it is measured, all
//! connections are opened and each sends a few requests for another product. After it, the whole table is read: no unit may be
//! sold twice.
//!
//! - [`cases`]: what is asked; [`load`]: by how many connections, and what is measured
//! - [`server`], [`cloud`]: the other two processes; [`process`]: their start and their processor time
//! - [`peer`]: another service under the same load
//! - [`cold`]: how long a new environment takes to its first answer
//! - [`report`]: what is printed
//! - [`model`]: what it would be on AWS, by a model

mod cases;
mod cloud;
mod cold;
mod load;
mod model;
mod peer;
mod process;
mod report;
mod server;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderValue, Method, header};
use clap::{Parser, Subcommand};
use holdfast_aws::clock;
use holdfast_aws::config::Environment;
use holdfast_domain::Product;
use holdfast_store::{Deadline, Store};
use holdfast_testkit::fixtures::{TABLE, books_of};
use hyper::body::Bytes;
use serde_json::{Value, json};

/// The database allocates thousands of small pieces for a large transaction.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use cases::{Caller, Case, HERD_UNITS, Phase, Plan};
use cloud::Counts;
use cold::Program;
use load::{Call, Connection, Connections, Measured, Pace, WARM_UP, numbers};
use peer::Peer;
use process::{Child, cpu, load_average};
use report::{Row, Sample};

/// What could not be done. A person reads it; nothing here depends on which error it is.
type Error = Box<dyn std::error::Error + Send + Sync>;
type Result<T> = std::result::Result<T, Error>;

/// Time of one call of this process to the table.
const SETUP: Duration = Duration::from_secs(10);
/// How long the public reads may be cached, and a little more.
const CACHED: Duration = Duration::from_millis(1_200);

#[derive(Parser)]
#[command(name = "cargo local bench", bin_name = "cargo local bench", args_conflicts_with_subcommands = true)]
#[command(about = "Puts load on the real functions, over a DynamoDB in memory; exits with 1 if a unit is sold twice")]
struct Cli {
    /// One of the processes that a run starts.
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

#[derive(Subcommand)]
enum Role {
    /// The AWS of a run
    #[command(hide = true)]
    Cloud {
        #[arg(long, default_value_t = 0)]
        call_ms: u64,
        #[arg(long)]
        conflicts: bool,
        /// Serve over TLS as well, with a certificate that is written to this file
        #[arg(long)]
        certificate: Option<PathBuf>,
    },
    /// The functions
    #[command(hide = true)]
    Server {
        #[arg(long)]
        sweeps: bool,
    },
}

#[derive(clap::Args)]
struct Options {
    /// The cases
    #[arg(long, value_enum, value_delimiter = ',', default_value = "herd,plenty")]
    case: Vec<Case>,
    /// Numbers of connections, each with one request at a time
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "100", value_parser = at_least_one)]
    connections: Vec<usize>,
    /// Requests of a run
    #[arg(long, value_name = "N", default_value = "10000", value_parser = at_least_one)]
    requests: usize,
    /// The longest time of a run, in seconds: after that no more requests are sent
    #[arg(long, value_name = "S", default_value_t = 60)]
    seconds: u64,
    /// Runs of each case; the table has their medians
    #[arg(long, value_name = "N", default_value = "3", value_parser = at_least_one)]
    runs: usize,
    /// Send requests at this rate a second, whatever the answers; latencies count from when a request was due
    #[arg(long, value_name = "R", value_parser = rate)]
    rate: Option<f64>,
    /// Let this percentage of the requests repeat an earlier one, with its key
    #[arg(long, value_name = "PERCENT", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=99))]
    replays: u8,
    /// Units of the product of herd and plenty [default: 100 of herd; of plenty as many as there are requests]
    #[arg(long, value_name = "N")]
    units: Option<u64>,
    /// Delay each answer of DynamoDB by this time: in AWS a transaction takes some 10 ms
    #[arg(long, value_name = "MS", default_value_t = 0, conflicts_with = "url")]
    call_ms: u64,
    /// Refuse a transaction while another one is on one of its items, as DynamoDB does; needs --call-ms
    #[arg(long, requires = "call_ms")]
    conflicts: bool,
    /// Measure nothing, and print by a model what one product would take on AWS
    #[arg(long)]
    model: bool,
    /// Measure how long a new environment takes to its first reservation, over TLS
    #[arg(long)]
    cold: bool,
    /// Shares of a core for its requests, below 1 as root; 1 is without a limit, as is its start
    #[arg(long, value_name = "SHARE", value_delimiter = ',', default_value = "1,0.15", value_parser = share, requires = "cold")]
    cores: Vec<f64>,
    /// Start this other program for Lambda as well, with the same variables; may be repeated
    #[arg(long, value_name = "NAME=COMMAND", value_parser = beside, requires = "cold")]
    beside: Vec<Program>,
    /// The release of `reserve`; `cargo local bench` builds it
    #[arg(long, value_name = "FILE", default_value = "target/release/reserve")]
    program: PathBuf,
    /// Write all figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the latencies by percentile, as SVG; with --model, those of the model by requests a second
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Load the Holdfast that runs at this URL, such as that of `cargo local up`
    #[arg(long, value_name = "URL", requires = "service_token", requires = "admin_token")]
    url: Option<String>,
    /// A token of the role `service` for --url; `cargo local bench` makes it
    #[arg(long, value_name = "TOKEN")]
    service_token: Option<String>,
    /// A token of the role `admin` for --url; `cargo local bench` makes it
    #[arg(long, value_name = "TOKEN")]
    admin_token: Option<String>,
    /// Load this other service as well, in turn, for the cases herd and plenty
    #[arg(long, value_name = "NAME=URL", requires = "body")]
    against: Option<String>,
    /// Path of its requests (POST). {n} is a unique number, {customer} a customer, also in --header and --body
    #[arg(long, value_name = "PATH", default_value = "/", requires = "against")]
    path: String,
    /// A header of its requests; may be repeated
    #[arg(long, value_name = "K=V", requires = "against")]
    header: Vec<String>,
    /// The body of its requests
    #[arg(long, value_name = "TEMPLATE", requires = "against")]
    body: Option<String>,
    /// A command that gives it its stock before each run; {units} is how many
    #[arg(long, value_name = "COMMAND", requires = "against")]
    reset: Option<String>,
    /// Its processes, whose processor time is counted
    #[arg(long, value_name = "PID", value_delimiter = ',', requires = "against")]
    pids: Vec<u32>,
}

fn at_least_one(text: &str) -> std::result::Result<usize, String> {
    text.parse().ok().filter(|number| *number > 0).ok_or_else(|| "must be a whole number of at least 1".to_owned())
}

fn rate(text: &str) -> std::result::Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.1..=1_000_000.0).contains(rate));
    rate.ok_or_else(|| "must be a number from 0.1 to 1000000".to_owned())
}

fn share(text: &str) -> std::result::Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.05..=1.0).contains(share));
    share.ok_or_else(|| "must be a number from 0.05 to 1".to_owned())
}

fn beside(text: &str) -> std::result::Result<Program, String> {
    let (name, command) = text.split_once('=').ok_or_else(|| "must be NAME=COMMAND".to_owned())?;
    Ok(Program { name: name.to_owned(), command: command.to_owned() })
}

fn main() -> ExitCode {
    let Cli { role, options } = Cli::parse();
    let done = match role {
        _ if options.model => {
            print!("{}", model::table());
            options.plot.as_deref().map_or(Ok(()), model::plot).map(|()| true)
        }
        Some(Role::Cloud { call_ms, conflicts, certificate }) => {
            let options = cloud::Options { delay: Duration::from_millis(call_ms), conflicts };
            on_all_cores(cloud::run(options, certificate.as_deref())).map(|()| true)
        }
        Some(Role::Server { sweeps }) => on_all_cores(server::run(sweeps)).map(|()| true),
        // One thread: the load must leave the processor to what is measured.
        None => tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(Error::from)
            .and_then(|runtime| runtime.block_on(bench(&options))),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn on_all_cores(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(work)
}

/// Whether nothing was oversold.
async fn bench(options: &Options) -> Result<bool> {
    let peer = options.peer()?;
    let load_average = load_average();
    println!("load average at the start: {load_average}");
    if options.cold {
        let own = Program { name: "reserve".to_owned(), command: options.program.display().to_string() };
        let programs: Vec<Program> = std::iter::once(own).chain(options.beside.clone()).collect();
        return cold::run(&programs, &options.cores, options.runs).await.map(|()| true);
    }
    let mut rows = Vec::new();
    for &case in &options.case {
        for &connections in &options.connections {
            let row =
                |server: &str| Row { server: server.to_owned(), case: case.name(), connections, samples: Vec::new() };
            let mut ours = row("holdfast");
            let mut theirs =
                peer.as_ref().filter(|_| matches!(case, Case::Herd | Case::Plenty)).map(|peer| row(&peer.name));
            for run in 1..=options.runs {
                // In turn, so that both meet the same machine.
                ours.samples.push(options.sample(case, connections).await?);
                if let (Some(peer), Some(theirs)) = (&peer, &mut theirs) {
                    theirs.samples.push(options.sample_of_peer(peer, case, connections).await?);
                }
                eprintln!("{}, {connections} connections: run {run} of {}", case.name(), options.runs);
            }
            rows.extend(std::iter::once(ours).chain(theirs));
        }
    }
    println!("\n{}", report::table(&rows));
    if let Some(path) = &options.json {
        report::write_json(path, &load_average, &rows)?;
    }
    if let Some(path) = &options.plot {
        report::plot(path, &rows)?;
    }
    let fine = rows.iter().filter(|row| row.server == "holdfast").all(|row| row.oversold() == 0);
    if !fine {
        eprintln!("error: units were sold twice");
    }
    Ok(fine)
}

impl Options {
    fn peer(&self) -> Result<Option<Peer>> {
        let Some(named) = &self.against else { return Ok(None) };
        let body = self.body.as_deref().unwrap_or_default();
        Peer::new(named, &self.path, &self.header, body, self.reset.clone(), self.pids.clone()).map(Some)
    }

    fn pace(&self) -> Pace {
        Pace { rate: self.rate, limit: Some(Duration::from_secs(self.seconds)) }
    }

    fn plan(&self, case: Case, caller: Caller) -> Arc<Plan> {
        let run = format!("{:08x}", fastrand::u32(..));
        let units = self.units.unwrap_or(if case == Case::Herd { HERD_UNITS } else { self.requests as u64 });
        Arc::new(Plan { case, run, requests: self.requests, units, caller })
    }

    async fn sample(&self, case: Case, connections: usize) -> Result<Sample> {
        match (&self.url, &self.service_token, &self.admin_token) {
            (Some(url), Some(service), Some(admin)) => {
                let plan = self.plan(case, Caller::Service(service.clone()));
                self.sample_of_url(&plan, url.trim_end_matches('/'), admin, connections).await
            }
            _ => self.sample_of_own(&self.plan(case, Caller::Verified), connections).await,
        }
    }

    /// A run in processes of its own.
    async fn sample_of_own(&self, plan: &Arc<Plan>, connections: usize) -> Result<Sample> {
        let call_ms = self.call_ms.to_string();
        let arguments = ["cloud", "--call-ms", &call_ms, "--conflicts"];
        let cloud = Child::start(&arguments[..if self.conflicts { 4 } else { 3 }], &[])?;
        let variables = [server::VARIABLES, &[("AWS_ENDPOINT_URL", cloud.url.as_str())]].concat();
        let arguments: &[&str] = if plan.case == Case::Life { &["server", "--sweeps"] } else { &["server"] };
        let server = Child::start(arguments, &variables)?;

        let dynamodb = Environment::of_emulator("us-east-1", &cloud.url).dynamodb();
        let store = Store::new(dynamodb.clone(), TABLE, clock::system());
        for product in plan.products() {
            store.create_product(&product, "bench", clock::system().now(), Deadline::after(SETUP)).await?;
        }
        let mut connections = Connections::open(&server.url, connections).await?;
        self.prepare(plan, &mut connections).await?;

        let used = || Ok::<_, Error>((cpu(&[server.id()])?, cpu(&[cloud.id()])?, cpu(&[std::process::id()])?));
        let before = (counts(&cloud.url).await?, used()?);
        let measured = self.measure(plan, &mut connections).await?;
        let after = (used()?, counts(&cloud.url).await?);

        // It would move units while they are counted.
        drop(server);
        let books = books_of(&dynamodb, TABLE).await;
        for (product, books) in &books {
            if !books.balance() {
                return Err(format!("the books of {product} do not agree: {books:?}").into());
            }
        }
        let oversold = books.values().map(|books| (books.held + books.sold).saturating_sub(books.total)).sum();
        let ((server_before, database_before, load_before), (server_cpu, database_cpu, load_cpu)) = (before.1, after.0);
        Ok(Sample {
            measured,
            server_cpu: Some(server_cpu.saturating_sub(server_before)),
            database_cpu: Some(database_cpu.saturating_sub(database_before)),
            load_cpu: load_cpu.saturating_sub(load_before),
            counts: Some(after.1.since(&before.0)),
            oversold,
        })
    }

    /// A run on a Holdfast that is running, with products of its own. What it sold is in the answers and in the catalogue.
    async fn sample_of_url(&self, plan: &Arc<Plan>, url: &str, admin: &str, connections: usize) -> Result<Sample> {
        let mut other = Connection::to(url).await?;
        for product in plan.products() {
            let created = other.send(create(&product, admin)?).await?.ok_or("no answer to a new product")?;
            if !created.status.is_success() {
                return Err(
                    format!("a new product: {} {}", created.status, String::from_utf8_lossy(&created.body)).into()
                );
            }
        }
        let mut connections = Connections::open(url, connections).await?;
        self.prepare(plan, &mut connections).await?;
        let load_before = cpu(&[std::process::id()])?;
        let measured = self.measure(plan, &mut connections).await?;
        let load_cpu = cpu(&[std::process::id()])?.saturating_sub(load_before);
        // Nothing tells when a public read is newer than the last sale.
        tokio::time::sleep(CACHED).await;
        let mut oversold = 0;
        for product in plan.products() {
            let path = format!("/products/{}", product.product_id);
            let call = Call { method: Method::GET, path, headers: Vec::new(), body: Bytes::new() };
            let stock: Value = serde_json::from_slice(&other.send(call).await?.ok_or("no answer to a read")?.body)?;
            let units = |name: &str| stock[name].as_u64().ok_or_else(|| format!("a product without {name}: {stock}"));
            oversold += (units("reserved")? + units("sold")?).saturating_sub(units("total")?);
        }
        Ok(Sample { measured, server_cpu: None, database_cpu: None, load_cpu, counts: None, oversold })
    }

    async fn prepare(&self, plan: &Arc<Plan>, connections: &mut Connections) -> Result<()> {
        connections.warm_up(plan.script(Phase::WarmUp)).await?;
        let wanted = plan.prepared();
        let prepared = connections.run(plan.script(Phase::Prepare), numbers(wanted, 0), Pace::default()).await?;
        if prepared.accepted.len() == wanted {
            Ok(())
        } else {
            Err(format!("holds before the run: {:?}", prepared.answers).into())
        }
    }

    async fn measure(&self, plan: &Arc<Plan>, connections: &mut Connections) -> Result<Measured> {
        connections.run(plan.script(Phase::Measure), numbers(self.requests, self.replays), self.pace()).await
    }

    async fn sample_of_peer(&self, peer: &Peer, case: Case, connections: usize) -> Result<Sample> {
        let units = self.plan(case, Caller::Verified).units;
        peer.reset(units).await?;
        let mut warm = Connections::open(&peer.url, connections).await?;
        peer.load(&mut warm, connections * WARM_UP, 0, Pace::default()).await?;
        drop(warm);
        peer.reset(units).await?;
        // The command may have started the service again.
        let mut connections = Connections::open(&peer.url, connections).await?;
        let used = || {
            let server = if peer.processes.is_empty() { None } else { Some(cpu(&peer.processes)?) };
            Ok::<_, Error>((server, cpu(&[std::process::id()])?))
        };
        let before = used()?;
        let measured = peer.load(&mut connections, self.requests, self.replays, self.pace()).await?;
        let after = used()?;
        // Its answers are all that is known of its stock.
        let oversold = (measured.accepted.len() as u64).saturating_sub(units);
        let server_cpu = after.0.zip(before.0).map(|(after, before)| after.saturating_sub(before));
        let load_cpu = after.1.saturating_sub(before.1);
        Ok(Sample { measured, server_cpu, database_cpu: None, load_cpu, counts: None, oversold })
    }
}

async fn counts(url: &str) -> Result<Counts> {
    let call = Call { method: Method::GET, path: "/counts".to_owned(), headers: Vec::new(), body: Bytes::new() };
    let reply = Connection::to(url).await?.send(call).await?.ok_or("the cloud does not answer")?;
    Ok(serde_json::from_slice(&reply.body)?)
}

/// The request that makes a product.
fn create(product: &Product, admin: &str) -> Result<Call> {
    let body = json!({
        "product_id": product.product_id, "name": product.name, "price_minor": product.price_minor,
        "currency": product.currency, "total": product.total, "hold_seconds": product.hold_seconds,
        "max_per_customer": product.max_per_customer,
    });
    let headers = vec![
        (header::AUTHORIZATION, HeaderValue::try_from(format!("Bearer {admin}"))?),
        (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
    ];
    Ok(Call { method: Method::POST, path: "/admin/products".to_owned(), headers, body: body.to_string().into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn lists_are_split_and_a_comparison_needs_a_body() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' ')).map(|cli| cli.options);
        let options =
            parse("bench --case herd,life --connections 100,500 --pids 1,2 --against a=http://b:1 --body {}").unwrap();
        assert_eq!((options.case, options.connections), (vec![Case::Herd, Case::Life], vec![100, 500]));
        assert_eq!(options.pids, [1, 2]);
        for line in ["bench --against a=http://b:1", "bench --url http://b:1", "bench --requests 0", "bench --rate 0"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert_eq!(parse("bench").unwrap().case, [Case::Herd, Case::Plenty]);
    }
}
