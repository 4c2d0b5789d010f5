//! `startjob`: places the call of a request right away, without queue or operator.

use std::io::Write;

use anyhow::Context;

use super::manifest::{JobFlags, operator_only};
use crate::job::JobDefaults;
use crate::policy::Trunks;
use crate::runner::Runner;

/// Creates the Job of a request right away, without the queue
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Startjob {
    #[command(flatten)]
    pub job: JobFlags,
}

/// Starts the Job, and writes its name and namespace to `out`. Running it again with the same `--id` and request is
/// harmless.
///
/// # Errors
/// [`super::request_flags::RequestError`] when the request is invalid, and [`crate::runner::StartError`] when the Job
/// was not started. Without a request nothing is started: a sample would call somebody.
pub async fn run(
    command: &Startjob,
    defaults: &JobDefaults,
    trunks: &Trunks,
    runner: &dyn Runner,
    out: &mut (impl Write + Send),
    notes: &mut (impl Write + Send),
) -> anyhow::Result<()> {
    let request = command.job.request.read()?.context("no request; pass --dest and --text or --wav, or --data")?;
    let operator_only = operator_only(&request.parsed.spec);
    let order = command.job.order(request.parsed, trunks, defaults)?;
    if !operator_only.is_empty() {
        writeln!(notes, "Ignored, since only the operator uses it: {}.", operator_only.join(", "))?;
    }
    runner.start(&order).await.with_context(|| format!("Job {} was not started", order.name()))?;
    writeln!(out, "Job {} started in namespace {}", order.name(), runner.info().namespace)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Mutex;

    use async_trait::async_trait;
    use clap::Parser;
    use futures::stream::BoxStream;

    use super::*;
    use crate::call::PodRef;
    use crate::commands::manifest::only_trunk;
    use crate::job::samples::defaults;
    use crate::job::{JobOrder, ObservedJob};
    use crate::runner::{Observation, RunnerError, RunnerInfo, StartError};

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        startjob: Startjob,
    }

    /// A runner that only notes what it is told to start.
    struct Notebook {
        info: RunnerInfo,
        started: Mutex<Vec<JobOrder>>,
    }

    #[async_trait]
    impl Runner for Notebook {
        fn info(&self) -> &RunnerInfo {
            &self.info
        }

        async fn start(&self, order: &JobOrder) -> Result<(), StartError> {
            self.started.lock().unwrap().push(order.clone());
            Ok(())
        }

        async fn check(&self) -> Result<String, RunnerError> {
            unreachable!("startjob only starts")
        }

        async fn find(&self, _: &str) -> Result<Option<ObservedJob>, RunnerError> {
            unreachable!("startjob only starts")
        }

        async fn lift_gate(&self, _: &PodRef) -> Result<(), RunnerError> {
            unreachable!("startjob only starts")
        }

        async fn log(&self, _: &str, _: Option<&PodRef>) -> Result<String, RunnerError> {
            unreachable!("startjob only starts")
        }

        async fn release(&self, _: &str) -> Result<(), RunnerError> {
            unreachable!("startjob only starts")
        }

        async fn stop(&self, _: &str) -> Result<(), RunnerError> {
            unreachable!("startjob only starts")
        }

        fn observe(&self) -> BoxStream<'static, Observation> {
            unreachable!("startjob only starts")
        }
    }

    async fn start(args: &[&str]) -> (anyhow::Result<String>, Vec<JobOrder>) {
        let info = RunnerInfo {
            kind: "notebook",
            cluster: "here".to_owned(),
            namespace: "sipstuff".to_owned(),
            has_gates: true,
            address: "paper".to_owned(),
        };
        let runner = Notebook { info, started: Mutex::default() };
        let cli = Cli::try_parse_from([&["startjob"], args].concat()).unwrap();
        let (mut out, mut notes) = (Vec::new(), Vec::new());
        let result = run(&cli.startjob, &defaults(), &only_trunk(&defaults()), &runner, &mut out, &mut notes).await;
        (result.map(|()| String::from_utf8(out).unwrap()), runner.started.into_inner().unwrap())
    }

    #[tokio::test]
    async fn a_request_starts_one_job_that_removes_itself() {
        let (said, started) =
            start(&["--id", "a", "--dest", "1", "--text", "x", "--sip-password", "p", "my/image:1"]).await;
        let [order] = &started[..] else { panic!("{} Jobs", started.len()) };
        assert_eq!(said.unwrap(), format!("Job {} started in namespace sipstuff\n", order.name()));
        assert_eq!(order.job.spec.as_ref().unwrap().ttl_seconds_after_finished, Some(3600));
        assert_eq!(order.passwords.keys().collect::<Vec<_>>(), ["SIP_PASSWORD"]);
    }

    #[tokio::test]
    async fn nothing_is_dialled_without_a_valid_request() {
        for args in [&[][..], &["my/image:1"], &["--dest", "1"]] {
            let (said, started) = start(args).await;
            assert!(said.is_err() && started.is_empty(), "{args:?}");
        }
    }
}
