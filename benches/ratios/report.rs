//! What comes out: a table for people, and a file of JSON whose keys stay the same from one version to the next.

use std::fs;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::ExitCode;

use futures::FutureExt;
use jiff::Timestamp;
use serde::Serialize;

use super::load::Latency;

/// What is expected of a figure.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Expected {
    AtLeast(f64),
    AtMost(f64),
}

/// One side of a comparison.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Side {
    pub(crate) value: f64,
    #[serde(flatten)]
    pub(crate) latency: Option<Latency>,
}

/// One thing that was measured.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Row {
    /// Names it for ever, such as `api.32`.
    pub(crate) key: String,
    pub(crate) what: String,
    /// Of both sides' values.
    pub(crate) unit: &'static str,
    pub(crate) operator: Side,
    pub(crate) raw: Option<Side>,
    /// Operator by raw: the median over the rounds, each of which has both.
    pub(crate) ratio: Option<f64>,
    /// Of the ratio, or of the operator's value where there is none.
    pub(crate) expected: Option<Expected>,
}

#[derive(Debug, Serialize)]
struct Machine {
    cores: usize,
    os: &'static str,
    arch: &'static str,
}

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: &'static str,
    time: Timestamp,
    machine: Machine,
    rows: Vec<Row>,
    /// Parts that could not be measured.
    broken: Vec<&'static str>,
}

impl Row {
    /// Both sides, by rounds: pairs of operator and raw.
    pub(crate) fn of_rounds(key: String, what: String, unit: &'static str, rounds: &[(f64, f64)]) -> Self {
        let side = |value: f64| Side { value, latency: None };
        Self {
            key,
            what,
            unit,
            operator: side(median(rounds.iter().map(|round| round.0))),
            raw: Some(side(median(rounds.iter().map(|round| round.1)))),
            ratio: Some(median(rounds.iter().map(|(operator, raw)| operator / raw))),
            expected: None,
        }
    }

    /// A figure of the operator's own.
    pub(crate) fn alone(key: impl Into<String>, what: impl Into<String>, unit: &'static str, value: f64) -> Self {
        let operator = Side { value, latency: None };
        Self { key: key.into(), what: what.into(), unit, operator, raw: None, ratio: None, expected: None }
    }

    pub(crate) fn expect(mut self, expected: Expected) -> Self {
        self.expected = Some(expected);
        self
    }

    pub(crate) fn latencies(mut self, operator: Latency, raw: Option<Latency>) -> Self {
        self.operator.latency = Some(operator);
        if let Some(side) = &mut self.raw {
            side.latency = raw;
        }
        self
    }

    fn is_met(&self) -> bool {
        let value = self.ratio.unwrap_or(self.operator.value);
        match self.expected {
            Some(Expected::AtLeast(least)) => value >= least,
            Some(Expected::AtMost(most)) => value <= most,
            None => true,
        }
    }

    fn cells(&self) -> [String; 7] {
        let latency = |side: Option<Side>| side.and_then(|side| side.latency).map(|latency| latency.to_string());
        let expected = match self.expected {
            Some(Expected::AtLeast(least)) => format!("≥ {least}"),
            Some(Expected::AtMost(most)) => format!("≤ {most}"),
            None => String::new(),
        };
        [
            format!("{} [{}]", self.what, self.unit),
            figure(self.operator.value),
            self.raw.map(|raw| figure(raw.value)).unwrap_or_default(),
            self.ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default(),
            if self.is_met() { expected } else { format!("{expected} MISSED") },
            latency(Some(self.operator)).unwrap_or_default(),
            latency(self.raw).unwrap_or_default(),
        ]
    }
}

impl Report {
    pub(crate) fn begin() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let machine = Machine { cores, os: std::env::consts::OS, arch: std::env::consts::ARCH };
        let version = env!("CARGO_PKG_VERSION");
        Self { version, time: Timestamp::now(), machine, rows: Vec::new(), broken: Vec::new() }
    }

    /// Waits for a part. One that panics is noted, and the others are measured all the same.
    pub(crate) async fn take(&mut self, part: &'static str, rows: impl Future<Output = Vec<Row>>) {
        match AssertUnwindSafe(rows).catch_unwind().await {
            Ok(rows) => self.rows.extend(rows),
            Err(_) => self.broken.push(part),
        }
    }

    /// Tells people and writes the file. A missed expectation is no failure: only what could not be measured is.
    pub(crate) fn end(self) -> ExitCode {
        self.print();
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("bench").join("ratios.json");
        let text = serde_json::to_string_pretty(&self).expect("names and numbers");
        let written =
            fs::create_dir_all(path.parent().expect("a file in a folder")).and_then(|()| fs::write(&path, text));
        match written {
            Ok(()) => println!("\nwritten to {}", path.display()),
            Err(error) => eprintln!("{} could not be written: {error}", path.display()),
        }
        if self.broken.is_empty() {
            return ExitCode::SUCCESS;
        }
        eprintln!("could not be measured: {}", self.broken.join(", "));
        ExitCode::FAILURE
    }

    fn print(&self) {
        let head = ["", "operator", "raw", "ratio", "expected", "p50 / p99 ms", "raw p50 / p99 ms"].map(str::to_owned);
        let lines: Vec<[String; 7]> = std::iter::once(head).chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        println!("\nsipstuff-operator {} at {:.0}, {} cores\n", self.version, self.time, self.machine.cores);
        for line in &lines {
            let first = format!("{:<1$}", line[0], width(0));
            let rest = (1..7).map(|column| format!("{:>1$}", line[column], width(column)));
            println!("{}", std::iter::once(first).chain(rest).collect::<Vec<_>>().join("  "));
        }
    }
}

/// The middle one; of an even number, the higher of the two.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn figure(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}
