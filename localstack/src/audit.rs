//! `cargo local audit`: whether the books of every product of a table agree, read from the table itself.
//!
//! It scans the table, so that it finds what no index shows: limits, shards and ledgers of nobody. That costs two consistent
//! reads of the whole table for each look. It writes nothing, unless it is told to.

use crate::aws::Clients;
use crate::error::{Context as _, Error, Result};
use crate::progress::Step;
use crate::running::Running;
use holdfast_aws::clock;
use holdfast_aws::config::Environment;
use holdfast_domain::audit::{Audit, Compensation, Kind, Verdict};
use holdfast_domain::{Clock, ProductId};
use holdfast_store::{Deadline, Intent, Store, TableAudit};
use serde_json::json;
use std::io::Write;
use std::time::Duration;

/// The help about AWS.
pub const CREDENTIALS: &str = "\
For a table in AWS, the variables AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if they are temporary,
AWS_SESSION_TOKEN must be set. With a profile of the AWS CLI:

  eval \"$(aws configure export-credentials --profile NAME --format env)\"

It needs dynamodb:Scan, GetItem, BatchGetItem and Query on the table; --write-compensation also PutItem and UpdateItem.";

/// Time for one scan or look. Nobody waits for more, and a large table takes minutes.
const LIMIT: Duration = Duration::from_secs(3_600);
/// Time between two looks at a table in use.
const PAUSE: Duration = Duration::from_secs(2);
/// What to audit.
#[derive(Clone, Debug)]
pub struct Options {
    /// The table; that of the running stack if `None`.
    pub table: Option<String>,
    /// The emulator that has the table; AWS if `None`.
    pub endpoint: Option<String>,
    /// Only this product.
    pub product: Option<String>,
    /// The most looks.
    pub looks: usize,
    /// Who compensates drift in the ledger; `None`: it is only reported.
    pub write_compensation: Option<String>,
}

/// Audits, writes the report to `out`, and returns whether the books agree.
///
/// # Errors
/// The table cannot be read, or there is no such product.
pub async fn run(options: Options, out: &mut impl Write) -> Result<bool> {
    let only = options.product.as_deref().map(ProductId::try_from).transpose().context(|| "--product".into())?;
    let (clock, (client, table)) = (clock::system(), find(&options)?);
    let store = Store::new(client, &table, clock.clone());
    let mut audit = look(&store, only.as_ref(), options.looks).await?;
    if only.is_some() && audit.products().next().is_none() {
        return Err(Error::new(format!("{table} has no such product")));
    }
    write(out, &report(&table, &audit))?;
    let mut agree = agrees(&audit);
    if let Some(actor) = options.write_compensation.as_deref().filter(|_| !agree) {
        for one in audit.products() {
            write(out, &compensate(&store, &audit, one, actor, &clock).await?)?;
        }
        audit = look(&store, only.as_ref(), options.looks).await?;
        write(out, &report(&table, &audit))?;
        agree = agrees(&audit);
    }
    Ok(agree)
}

/// The client and the name of the table.
fn find(options: &Options) -> Result<(aws_sdk_dynamodb::Client, String)> {
    match (&options.endpoint, &options.table) {
        (Some(endpoint), Some(table)) => Ok((Clients::new(endpoint).dynamodb, table.clone())),
        (None, Some(table)) => {
            let environment = Environment::read().context(|| "AWS is not configured".into())?;
            Ok((environment.dynamodb(), table.clone()))
        }
        (_, None) => {
            let running = Running::read()?.ok_or_else(|| {
                Error::new("no `cargo local up` is running: name the table with --table, and its --endpoint unless it is in AWS")
            })?;
            Ok((Clients::new(&running.endpoint_url).dynamodb, running.table))
        }
    }
}

/// Looks until nothing is moving that could make a difference, but at most `looks` times.
async fn look(store: &Store, only: Option<&ProductId>, looks: usize) -> Result<TableAudit> {
    let step = Step::start("auditing the table");
    let mut audit = TableAudit::new(only.cloned());
    let mut items = 0;
    for n in 1..=looks {
        if n > 1 {
            step.detail("looking again, since units are moving or something is off");
            tokio::time::sleep(PAUSE).await;
        }
        let cannot = || "cannot read the table".to_owned();
        store.scan_for(&mut audit, Deadline::after(LIMIT)).await.context(cannot)?;
        store.look_for(&mut audit, Deadline::after(LIMIT)).await.context(cannot)?;
        items = store.scan_for(&mut audit, Deadline::after(LIMIT)).await.context(cannot)?;
        if audit.is_final() {
            break;
        }
    }
    step.done(&format!("{items} items"));
    Ok(audit)
}

fn verdicts(audit: &TableAudit) -> impl Iterator<Item = (&Audit, Verdict)> {
    audit.products().filter_map(|one| Some((one, one.verdict()?)))
}

fn agrees(audit: &TableAudit) -> bool {
    audit.unreadable().is_empty() && verdicts(audit).all(|(_, verdict)| verdict.is_consistent())
}

/// The table for a person.
fn report(table: &str, audit: &TableAudit) -> String {
    let width = audit.products().map(|one| one.product().as_str().len()).max().unwrap_or(0).max("product".len());
    let mut text = format!(
        "\n{table}\n\n  {:<width$} {:>10} {:>10} {:>10} {:>10} {:>10}  books\n",
        "product", "total", "available", "held", "sold", "ledger"
    );
    for (one, verdict) in verdicts(audit) {
        let Verdict { total, available, held, sold, ledger_total, .. } = verdict;
        let books = match (verdict.findings.is_empty(), verdict.in_progress) {
            _ if verdict.findings.is_empty() && verdict.suspected => {
                "maybe DRIFT: one look found something; audit again"
            }
            (true, false) => "agree",
            (true, true) => "in use: nothing is off but what may be moving; audit again",
            (false, false) => "DRIFT",
            (false, true) => "DRIFT, and in use",
        };
        let id = one.product();
        let line =
            format!("  {id:<width$} {total:>10} {available:>10} {held:>10} {sold:>10} {ledger_total:>10}  {books}\n");
        text.push_str(&line);
    }
    for (one, verdict) in verdicts(audit) {
        for found in verdict.findings {
            let place = match found.kind {
                Kind::Units => String::new(),
                Kind::Ledger if found.place == one.product().as_str() => String::new(),
                Kind::Ledger => format!(" entry {}", found.place),
                Kind::Limit => format!(" of customer {}", found.place),
                Kind::Shard | Kind::Reservation => format!(" {}", found.place),
            };
            let (kind, expected, is) = (found.kind.as_str(), found.expected, found.found);
            text.push_str(&format!("\n  {}: {kind}{place}: expected {expected}, found {is}", one.product()));
        }
    }
    for (reservation, why) in audit.unreadable() {
        text.push_str(&format!("\n  reservation {reservation} cannot be read: {why}"));
    }
    text.trim_end().to_owned() + "\n"
}

/// Writes the entry that makes a product's books right; what was done, in words.
async fn compensate(store: &Store, table: &TableAudit, audit: &Audit, actor: &str, clock: &Clock) -> Result<String> {
    let id = audit.product();
    let compensation = match table.compensation(audit) {
        Ok(None) => return Ok(String::new()),
        Err(why) => return Ok(format!("\n  {id}: no entry was written: {why}\n")),
        Ok(Some(compensation)) => compensation,
    };
    let Compensation { total_seen, total_after, delta, .. } = compensation;
    // Like every change of an admin: in the log of actions before it is made, and its outcome afterwards.
    let intent = Intent {
        actor: actor.to_owned(),
        action: "compensate_drift".to_owned(),
        target: id.to_string(),
        detail: json!({ "delta": delta, "expected_total": total_seen, "total_after": total_after }),
        request_id: "cargo local audit".to_owned(),
    };
    let cannot = || format!("cannot write to the ledger of {id}");
    let begun = store.begin_action(intent, clock.now(), Deadline::after(LIMIT)).await.context(cannot)?;
    let written = store.compensate(id, compensation, actor, clock.now(), Deadline::after(LIMIT)).await;
    let written = written.context(cannot)?;
    let outcome = if written { "200" } else { "409 unchanged" };
    let recorded = store.finish_action(&begun, outcome, Deadline::after(LIMIT)).await;
    // What was written, was written all the same.
    let unrecorded = recorded
        .map_or_else(|error| format!("  its outcome is not in the log of actions: {error}\n"), |()| String::new());
    let done = if written {
        format!("\n  {id}: wrote {delta:+} to the ledger; the total was {total_seen} and is {total_after}\n")
    } else {
        format!(
            "\n  {id}: no entry was written: the books have changed meanwhile, or another run has written it; audit again\n"
        )
    };
    Ok(done + &unrecorded)
}

fn write(out: &mut impl Write, text: &str) -> Result<()> {
    out.write_all(text.as_bytes()).context(|| "cannot write the report".into())
}
