//! What is told: a table with a row for each server, case and number of connections, the same as JSON, and as a plot.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use hdrhistogram::Histogram;
use plotters::prelude::*;
use serde::Serialize;

use crate::Result;
use crate::cloud::Counts;
use crate::load::Measured;

/// What one run has measured.
#[derive(Debug)]
pub(crate) struct Sample {
    pub(crate) measured: Measured,
    /// Processor time of the server, of the database's process, and of this one. `None` if it is not known.
    pub(crate) server_cpu: Option<Duration>,
    pub(crate) database_cpu: Option<Duration>,
    pub(crate) load_cpu: Duration,
    /// What was called.
    pub(crate) counts: Option<Counts>,
    /// Units that were sold and not there.
    pub(crate) oversold: u64,
}

/// The runs of one server, case and number of connections.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) server: String,
    pub(crate) case: &'static str,
    pub(crate) connections: usize,
    pub(crate) samples: Vec<Sample>,
}

/// The figures of one run, or the medians of several. Absent where they are not known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Figures {
    requests_per_second: Option<f64>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    p999_ms: Option<f64>,
    first_second_p99_ms: Option<f64>,
    server_cpu_ms_per_request: Option<f64>,
    database_cpu_ms_per_request: Option<f64>,
    /// The processor time of the load itself, in percent of one core.
    load_cpu_percent: Option<f64>,
    table_write_units_per_request: Option<f64>,
    index_write_units_per_request: Option<f64>,
    read_units_per_request: Option<f64>,
}

/// The columns: a heading, the number of decimals, and the figure.
type Column = (&'static str, usize, fn(&Figures) -> Option<f64>);

const COLUMNS: [Column; 11] = [
    ("requests/s", 0, |figures| figures.requests_per_second),
    ("p50 ms", 1, |figures| figures.p50_ms),
    ("p99 ms", 1, |figures| figures.p99_ms),
    ("p99.9 ms", 1, |figures| figures.p999_ms),
    ("p99 1st s", 1, |figures| figures.first_second_p99_ms),
    ("server CPU ms", 3, |figures| figures.server_cpu_ms_per_request),
    ("db CPU ms", 3, |figures| figures.database_cpu_ms_per_request),
    ("load CPU %", 0, |figures| figures.load_cpu_percent),
    ("table WU", 2, |figures| figures.table_write_units_per_request),
    ("index WU", 2, |figures| figures.index_write_units_per_request),
    ("RU", 2, |figures| figures.read_units_per_request),
];

#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn float(number: u64) -> f64 {
    number as f64
}

impl Sample {
    fn figures(&self) -> Figures {
        let Measured { latencies, first_second, elapsed, .. } = &self.measured;
        let requests = float(self.measured.requests()).max(1.0);
        let cpu = |time: Option<Duration>| time.map(|time| time.as_secs_f64() * 1_000.0 / requests);
        let units = self.counts.as_ref().map(|counts| counts.units);
        let seconds = elapsed.as_secs_f64().max(0.001);
        Figures {
            requests_per_second: Some(requests / seconds),
            p50_ms: Some(millis_at(latencies, 0.5)),
            p99_ms: Some(millis_at(latencies, 0.99)),
            p999_ms: Some(millis_at(latencies, 0.999)),
            first_second_p99_ms: Some(millis_at(first_second, 0.99)),
            server_cpu_ms_per_request: cpu(self.server_cpu),
            database_cpu_ms_per_request: cpu(self.database_cpu),
            load_cpu_percent: Some(self.load_cpu.as_secs_f64() / seconds * 100.0),
            table_write_units_per_request: units.map(|units| units.table_writes / requests),
            index_write_units_per_request: units.map(|units| units.index_writes / requests),
            read_units_per_request: units.map(|units| units.reads / requests),
        }
    }
}

fn millis_at(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    float(histogram.value_at_quantile(quantile)) / 1_000.0
}

impl Row {
    /// The medians over the runs, figure by figure.
    fn medians(&self) -> Figures {
        let all: Vec<Figures> = self.samples.iter().map(Sample::figures).collect();
        let of = |figure: fn(&Figures) -> Option<f64>| median(all.iter().filter_map(figure).collect());
        Figures {
            requests_per_second: of(|figures| figures.requests_per_second),
            p50_ms: of(|figures| figures.p50_ms),
            p99_ms: of(|figures| figures.p99_ms),
            p999_ms: of(|figures| figures.p999_ms),
            first_second_p99_ms: of(|figures| figures.first_second_p99_ms),
            server_cpu_ms_per_request: of(|figures| figures.server_cpu_ms_per_request),
            database_cpu_ms_per_request: of(|figures| figures.database_cpu_ms_per_request),
            load_cpu_percent: of(|figures| figures.load_cpu_percent),
            table_write_units_per_request: of(|figures| figures.table_write_units_per_request),
            index_write_units_per_request: of(|figures| figures.index_write_units_per_request),
            read_units_per_request: of(|figures| figures.read_units_per_request),
        }
    }

    /// Units that were sold and not there, in all runs.
    pub(crate) fn oversold(&self) -> u64 {
        self.samples.iter().map(|sample| sample.oversold).sum()
    }

    /// The answers of all runs, by status and code.
    fn answers(&self) -> BTreeMap<&str, u64> {
        let mut answers = BTreeMap::new();
        for (answer, count) in self.samples.iter().flat_map(|sample| &sample.measured.answers) {
            *answers.entry(answer.as_str()).or_default() += count;
        }
        answers
    }

    /// Calls a request by name, over all runs; `None` if they are not known.
    fn calls(&self) -> Option<BTreeMap<&str, f64>> {
        let requests = self.samples.iter().map(|sample| sample.measured.requests()).sum();
        let mut calls: BTreeMap<&str, u64> = BTreeMap::new();
        for sample in &self.samples {
            for (name, count) in &sample.counts.as_ref()?.calls {
                *calls.entry(name).or_default() += count;
            }
        }
        Some(calls.into_iter().map(|(name, count)| (name, float(count) / float(requests).max(1.0))).collect())
    }

    fn latencies(&self) -> Result<Histogram<u64>> {
        let mut all = Measured::new()?;
        for sample in &self.samples {
            all.merge(&sample.measured)?;
        }
        Ok(all.latencies)
    }

    fn title(&self) -> String {
        format!("{}, {}, {} connections", self.server, self.case, self.connections)
    }
}

/// The median; of an even number, the mean of the two in the middle.
pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { (values[middle - 1] + upper) / 2.0 })
}

/// How many times as much `ours` is as `theirs`; `None` if one is not known, or theirs is nothing.
fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    theirs.filter(|theirs| *theirs > 0.0).and_then(|theirs| ours.map(|ours| ours / theirs))
}

/// The table, then what is not in it: answers, calls and, of a comparison, ratios.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut lines = vec![["server", "case", "conns"].map(str::to_owned).to_vec()];
    lines[0].extend(COLUMNS.iter().map(|(heading, ..)| (*heading).to_owned()));
    lines[0].push("oversold".to_owned());
    for row in rows {
        let medians = row.medians();
        let mut line = vec![row.server.clone(), row.case.to_owned(), row.connections.to_string()];
        line.extend(COLUMNS.iter().map(|(_, decimals, figure)| shown(figure(&medians), *decimals)));
        line.push(row.oversold().to_string());
        lines.push(line);
    }
    for pair in rows.windows(2) {
        let [ours, theirs] = pair else { continue };
        if (ours.case, ours.connections) != (theirs.case, theirs.connections) {
            continue;
        }
        let (of_ours, of_theirs) = (ours.medians(), theirs.medians());
        let mut line =
            vec![format!("{} / {}", ours.server, theirs.server), ours.case.to_owned(), ours.connections.to_string()];
        line.extend(COLUMNS.iter().map(|(_, _, figure)| shown(ratio(figure(&of_ours), figure(&of_theirs)), 2)));
        line.push("-".to_owned());
        lines.push(line);
    }
    let mut text = aligned(&lines);
    for row in rows {
        _ = writeln!(text, "\n{}, all runs:", row.title());
        let answers = row.answers().into_iter().map(|(answer, count)| format!("{count} x {answer}"));
        _ = writeln!(text, "  answers: {}", answers.collect::<Vec<_>>().join(", "));
        if let Some(calls) = row.calls() {
            let calls = calls.into_iter().map(|(name, calls)| format!("{calls:.4} {name}"));
            _ = writeln!(text, "  calls a request: {}", calls.collect::<Vec<_>>().join(", "));
        }
    }
    text
}

fn shown(figure: Option<f64>, decimals: usize) -> String {
    figure.map_or_else(|| "-".to_owned(), |figure| format!("{figure:.decimals$}"))
}

/// Names to the left, numbers to the right.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.iter().map(Vec::len).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns)
        .map(|column| lines.iter().filter_map(|line| line.get(column)).map(String::len).max().unwrap_or_default())
        .collect();
    let mut text = String::new();
    for line in lines {
        let cells = line.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| {
            if column < 2 { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
        });
        _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  "));
    }
    text
}

#[derive(Serialize)]
struct RowDocument<'a> {
    server: &'a str,
    case: &'a str,
    connections: usize,
    medians: Figures,
    runs: Vec<Figures>,
    answers: BTreeMap<&'a str, u64>,
    calls_per_request: Option<BTreeMap<&'a str, f64>>,
    oversold: u64,
}

/// Writes the figures of all runs.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn write_json(path: &Path, load_average: &str, rows: &[Row]) -> Result<()> {
    let rows: Vec<RowDocument<'_>> = rows
        .iter()
        .map(|row| RowDocument {
            server: &row.server,
            case: row.case,
            connections: row.connections,
            medians: row.medians(),
            runs: row.samples.iter().map(Sample::figures).collect(),
            answers: row.answers(),
            calls_per_request: row.calls(),
            oversold: row.oversold(),
        })
        .collect();
    let document = serde_json::json!({ "load_average": load_average, "rows": rows });
    Ok(std::fs::write(path, serde_json::to_string_pretty(&document)? + "\n")?)
}

/// Draws the latency of each row by percentile, all its runs together. Both axes are logarithmic: each step to the right is a
/// tenth of the requests before.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn plot(path: &Path, rows: &[Row]) -> Result<()> {
    /// The percentiles at 0, 1, 2, ... nines.
    const NINES: [&str; 5] = ["0", "90", "99", "99.9", "99.99"];
    const LAST: f64 = 4.0;
    let mut curves = Vec::new();
    for row in rows {
        let latencies = row.latencies()?;
        // The number of requests bounds the percentiles that are known: of a thousand, the 99.9th.
        let known = float(latencies.len()).max(1.0).log10().min(LAST);
        let at = |step: u32| {
            let nines = known * f64::from(step) / 200.0;
            (nines, millis_at(&latencies, 1.0 - 10_f64.powf(-nines)).max(0.001))
        };
        curves.push((row.title(), (0..=200).map(at).collect::<Vec<_>>()));
    }
    let nines = |at: &f64| {
        NINES
            .iter()
            .zip(0_u8..)
            .find(|(_, n)| (at - f64::from(*n)).abs() < 0.01)
            .map_or("", |(name, _)| name)
            .to_owned()
    };
    let percentiles = Axis { desc: "percentile", range: 0.0..LAST, labels: NINES.len(), name: &nines };
    draw(path, "Latency by percentile", &percentiles, curves)
}

/// What a plot has from left to right.
pub(crate) struct Axis<'a> {
    pub(crate) desc: &'a str,
    pub(crate) range: std::ops::Range<f64>,
    pub(crate) labels: usize,
    pub(crate) name: &'a dyn Fn(&f64) -> String,
}

/// Draws milliseconds, on a logarithmic scale, as a curve for each title.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn draw(
    path: &Path,
    caption: &str,
    across: &Axis<'_>,
    curves: Vec<(String, Vec<(f64, f64)>)>,
) -> Result<()> {
    let wrong = |error: &dyn std::fmt::Display| format!("cannot draw {}: {error}", path.display());
    let millis = curves.iter().flat_map(|(_, curve)| curve).map(|(_, millis)| *millis);
    let (least, most) = millis.fold((f64::MAX, 0.0_f64), |(least, most), one| (least.min(one), most.max(one)));
    let area = SVGBackend::new(path, (960, 540)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| wrong(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .caption(caption, ("sans-serif", 22))
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(across.range.clone(), (least * 0.8..most * 1.25).log_scale())
        .map_err(|error| wrong(&error))?;
    chart
        .configure_mesh()
        .x_labels(across.labels)
        .x_label_formatter(&across.name)
        .x_desc(across.desc)
        .y_desc("ms")
        .draw()
        .map_err(|error| wrong(&error))?;
    for (index, (title, curve)) in curves.into_iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let series =
            chart.draw_series(LineSeries::new(curve, colour.stroke_width(2))).map_err(|error| wrong(&error))?;
        series.label(title).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(2)));
    }
    let labels = chart.configure_series_labels().position(SeriesLabelPosition::UpperLeft).border_style(BLACK).draw();
    labels.map_err(|error| wrong(&error))?;
    Ok(area.present().map_err(|error| wrong(&error))?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Units;

    fn sample(requests: u64, seconds: f64, calls: u64) -> Sample {
        let mut measured = Measured::new().unwrap();
        for n in 1..=requests {
            measured.latencies.record(n * 1_000).unwrap();
        }
        measured.answers = [("201".to_owned(), requests)].into();
        measured.elapsed = Duration::from_secs_f64(seconds);
        let units = Units { table_writes: 4.0 * float(requests), index_writes: 3.0 * float(requests), reads: 0.0 };
        Sample {
            measured,
            server_cpu: Some(Duration::from_millis(200)),
            database_cpu: None,
            load_cpu: Duration::from_millis(100),
            counts: Some(Counts { calls: [("Query".to_owned(), calls)].into(), units }),
            oversold: 1,
        }
    }

    fn row(server: &str, samples: Vec<Sample>) -> Row {
        Row { server: server.to_owned(), case: "plenty", connections: 10, samples }
    }

    #[test]
    fn figures_are_per_request() {
        let figures = sample(100, 2.0, 50).figures();
        assert_eq!(figures.requests_per_second, Some(50.0));
        assert_eq!((figures.p50_ms, figures.server_cpu_ms_per_request), (Some(50.015), Some(2.0)));
        assert_eq!((figures.database_cpu_ms_per_request, figures.load_cpu_percent), (None, Some(5.0)));
        let units = (figures.table_write_units_per_request, figures.index_write_units_per_request);
        assert_eq!(units, (Some(4.0), Some(3.0)));
    }

    #[test]
    fn a_row_has_the_medians_of_its_runs_and_the_calls_and_answers_of_all() {
        let row = row("a", vec![sample(100, 1.0, 100), sample(100, 4.0, 0), sample(200, 4.0, 100)]);
        assert_eq!(row.medians().requests_per_second, Some(50.0));
        assert_eq!(row.medians().database_cpu_ms_per_request, None);
        assert_eq!(row.calls().unwrap(), [("Query", 0.5)].into());
        assert_eq!((row.answers(), row.oversold()), ([("201", 400)].into(), 3));
        assert_eq!(row.latencies().unwrap().len(), 400);
        assert_eq!((median(vec![]), median(vec![3.0, 1.0])), (None, Some(2.0)));
    }

    #[test]
    fn a_comparison_has_ratios_of_what_both_have() {
        assert_eq!(
            (ratio(Some(3.0), Some(2.0)), ratio(Some(3.0), Some(0.0)), ratio(None, Some(2.0))),
            (Some(1.5), None, None)
        );
        let mut theirs = sample(100, 4.0, 0);
        theirs.counts = None;
        let text = table(&[row("a", vec![sample(100, 2.0, 0)]), row("b", vec![theirs])]);
        let ratios = text.lines().find(|line| line.starts_with("a / b")).unwrap();
        let cells: Vec<&str> = ratios.split_whitespace().skip(3).collect();
        assert_eq!(
            cells,
            ["plenty", "10", "2.00", "1.00", "1.00", "1.00", "-", "1.00", "-", "2.00", "-", "-", "-", "-"]
        );
    }

    #[test]
    fn a_plot_has_a_curve_for_each_row() {
        let path = std::env::temp_dir().join(format!("holdfast-bench-{}.svg", std::process::id()));
        let rows = [row("ours", vec![sample(100, 1.0, 0)]), row("theirs", vec![sample(1_000, 1.0, 0)])];
        plot(&path, &rows).unwrap();
        let drawn = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        for text in ["ours, plenty, 10 connections", "theirs, plenty", "99.9", "percentile"] {
            assert!(drawn.contains(text), "{text}");
        }
    }
}
