//! What `make bench` runs: the operator's release build beside the client libraries it is built on. Absolute figures are this
//! machine's; ratios carry over, so both sides are measured in the same run, taking turns.
//!
//! | part | what |
//! |---|---|
//! | [`api`] | `POST /call` beside a raw JetStream publish with ack |
//! | [`admission`] | requests recorded and queued beside the bare steps; how soon one is heard of behind a backlog |
//! | [`sync`] | `POST /call` and publishes on a server that syncs before it acknowledges, beside one that does not |
//! | [`jobs`] | queue → Job beside raw `kube` creates of the same Jobs |
//! | [`ends`] | calls whose pods end: rate, what they cost the API server, and how soon an end is told |
//! | [`view`] | rebuild of the job view beside the raw ordered consumer; its memory; pages of `GET /jobs` |
//! | [`memory`] | the operator's memory, idle and with a thousand running calls |
//!
//! [`load`] makes load and keeps the samples, [`report`] is what comes out.

mod admission;
mod api;
mod ends;
mod jobs;
mod load;
mod memory;
mod report;
mod requests;
#[path = "../../tests/support/mod.rs"]
#[allow(dead_code, unused_imports, unreachable_pub, missing_docs, clippy::unwrap_used)]
mod support;
mod sync;
mod view;

use std::process::ExitCode;

use self::report::Report;

const HELP: &str =
    "make bench ARGS='[api] [admission[=N]] [sync] [jobs[=N]] [ends[=N]] [view[=N]] [memory[=N]] [rounds=N]'

  api       POST /call beside a raw JetStream publish
  admission=N  N requests recorded and queued, beside the bare steps (default 50000)
  sync      both on a server with `sync_interval: always`, beside one without
  jobs=N    queue to Job beside raw creates, N Jobs in a round (default 1000)
  ends=N    N calls whose pods end, beside raw creates of such Jobs (default 5000)
  view=N    rebuild, memory and pages of the job view with N calls (default 100000)
  memory=N  the operator's memory, idle and with N running calls (default 1000)
  rounds=N  how often the two sides take turns (default 5; in `view` at most 3, in `ends` 2)

Without a part: all of them.";

/// What was asked for.
#[derive(Debug, Clone)]
struct Wanted {
    api: bool,
    admission: Option<usize>,
    sync: bool,
    jobs: Option<usize>,
    ends: Option<usize>,
    view: Option<usize>,
    memory: Option<usize>,
    rounds: usize,
}

fn main() -> ExitCode {
    // `cargo bench` adds `--bench`.
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [api::BARE_HANDLER, nats_url] = arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        runtime().block_on(api::serve_bare_handler(nats_url));
        return ExitCode::SUCCESS;
    }
    match Wanted::parse(&arguments) {
        Ok(wanted) => runtime().block_on(measure(wanted)),
        Err(mistake) => {
            eprintln!("{mistake}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime")
}

async fn measure(wanted: Wanted) -> ExitCode {
    let Wanted { api, admission, sync, jobs, ends, view, memory, rounds } = wanted;
    let mut report = Report::begin();
    if api {
        report.take("api", api::measure(rounds)).await;
    }
    if let Some(count) = admission {
        report.take("admission", admission::measure(rounds.min(3), count)).await;
    }
    if sync {
        report.take("sync", sync::measure(rounds)).await;
    }
    if let Some(count) = jobs {
        report.take("jobs", jobs::measure(rounds, count)).await;
    }
    if let Some(count) = ends {
        report.take("ends", ends::measure(rounds.min(2), count)).await;
    }
    if let Some(count) = view {
        report.take("view", view::measure(rounds.min(3), count)).await;
    }
    if let Some(count) = memory {
        report.take("memory", memory::measure(count)).await;
    }
    report.end()
}

impl Wanted {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut wanted = Self {
            api: false,
            admission: None,
            sync: false,
            jobs: None,
            ends: None,
            view: None,
            memory: None,
            rounds: 5,
        };
        for argument in arguments {
            let (name, number) = argument.split_once('=').map_or((argument.as_str(), None), |(n, v)| (n, Some(v)));
            let number = |default| match number.map(str::parse) {
                None => Ok(default),
                Some(Ok(number)) if number > 0 => Ok(number),
                Some(_) => Err(format!("`{argument}`: not a number above 0")),
            };
            match name {
                "api" => wanted.api = true,
                "admission" => wanted.admission = Some(number(admission::COUNT)?),
                "sync" => wanted.sync = true,
                "jobs" => wanted.jobs = Some(number(jobs::COUNT)?),
                "ends" => wanted.ends = Some(number(ends::COUNT)?),
                "view" => wanted.view = Some(number(view::COUNT)?),
                "memory" => wanted.memory = Some(number(memory::COUNT)?),
                "rounds" => wanted.rounds = number(wanted.rounds)?,
                _ => return Err(format!("`{argument}` is no part of the benchmarks")),
            }
        }
        Ok(wanted.or_everything())
    }

    fn or_everything(self) -> Self {
        match &self {
            Self {
                api: false,
                admission: None,
                sync: false,
                jobs: None,
                ends: None,
                view: None,
                memory: None,
                rounds,
            } => Self {
                api: true,
                admission: Some(admission::COUNT),
                sync: true,
                jobs: Some(jobs::COUNT),
                ends: Some(ends::COUNT),
                view: Some(view::COUNT),
                memory: Some(memory::COUNT),
                rounds: *rounds,
            },
            _ => self,
        }
    }
}
