//! Settings: every one is a flag with an environment variable, typed here at the edge. Nothing below reads the environment.

use std::{
    collections::BTreeMap, fmt::Display, net::IpAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration,
};

use clap::{Args, ValueEnum};
use secrecy::SecretString;

use crate::{
    job::{JobDefaults, build::parse_template},
    queue::{Names, NatsSettings, StreamSettings},
};

/// Where a pod finds the namespace of its service account.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";
/// The namespace when nothing names one.
const DEFAULT_NAMESPACE: &str = "sipstuff";
/// A record must outlive the longest call: 600 s × 100, and its delays.
const SHORTEST_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// Shorter than a few heartbeats, a restart would give calls up that still run.
const SHORTEST_ORPHAN_AFTER: Duration = Duration::from_secs(120);

/// All settings.
#[derive(Debug, Clone, Args)]
pub struct Settings {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub nats: NatsArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub queue: QueueArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub runner: RunnerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub job: JobArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub http: HttpArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub log: LogArgs,
}

/// How to reach NATS.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "NATS")]
pub struct NatsArgs {
    /// Address of nats-server 2.12 or newer; several, separated by commas
    #[arg(long, env = "NATS_URL", default_value = "nats://127.0.0.1:4222", global = true, hide_env_values = true)]
    pub nats_url: String,
    /// Credentials file (JWT and seed)
    #[arg(long, env = "NATS_CREDS_FILE", global = true, value_name = "FILE")]
    pub nats_creds_file: Option<PathBuf>,
    /// File with an nkey seed
    #[arg(long, env = "NATS_NKEY_FILE", global = true, value_name = "FILE")]
    pub nats_nkey_file: Option<PathBuf>,
    /// User name, with NATS_PASSWORD
    #[arg(long, env = "NATS_USER", global = true, requires = "nats_password")]
    pub nats_user: Option<String>,
    /// Password of NATS_USER
    #[arg(long, env = "NATS_PASSWORD", global = true, hide_env_values = true)]
    pub nats_password: Option<SecretString>,
    /// Token
    #[arg(long, env = "NATS_TOKEN", global = true, hide_env_values = true)]
    pub nats_token: Option<SecretString>,
    /// PEM file of the certificate authority; asks for TLS
    #[arg(long, env = "NATS_CA_FILE", global = true, value_name = "FILE")]
    pub nats_ca_file: Option<PathBuf>,
    /// PEM file of a client certificate, with NATS_KEY_FILE
    #[arg(long, env = "NATS_CERT_FILE", global = true, value_name = "FILE")]
    pub nats_cert_file: Option<PathBuf>,
    /// PEM file of the client certificate's key
    #[arg(long, env = "NATS_KEY_FILE", global = true, value_name = "FILE")]
    pub nats_key_file: Option<PathBuf>,
}

/// The queue and the status log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Queue")]
pub struct QueueArgs {
    /// Most calls in progress at once, over all replicas (1 to 100000)
    #[arg(long, env = "MAX_ACTIVE_CALLS", default_value_t = 100, global = true, value_parser = whole(1_u32..=100_000))]
    pub max_active_calls: u32,
    /// Most calls begun per second, over all replicas, evenly spaced; fractions allowed. 0: no limit
    #[arg(long, env = "CALLS_PER_SECOND", default_value = "0", global = true, value_parser = rate)]
    pub calls_per_second: f64,
    /// How long another cluster must not have been heard of until the calls that it had claimed are given up; at least 120 s
    #[arg(long, env = "ORPHAN_AFTER", default_value = "18h", global = true, value_parser = orphan_after)]
    pub orphan_after: Duration,
    /// How long a call's records are kept after its last change, or after the moment it waits for; at least 24h
    #[arg(long, env = "STATUS_RETENTION", default_value = "72h", global = true, value_parser = retention)]
    pub status_retention: Duration,
    /// Copies of each stream in a NATS cluster (1 to 5)
    #[arg(long, env = "NATS_REPLICAS", default_value_t = 1, global = true, value_parser = whole(1_u8..=5))]
    pub nats_replicas: u8,
    /// Most messages in the queue; it refuses more. -1: no limit
    #[arg(long, env = "QUEUE_MAX_MESSAGES", default_value_t = 1_000_000, global = true, allow_negative_numbers = true, value_parser = whole(-1_i64..=i64::MAX))]
    pub queue_max_messages: i64,
    /// Most bytes in the queue; it refuses more. -1: no limit
    #[arg(long, env = "QUEUE_MAX_BYTES", default_value_t = -1, global = true, allow_negative_numbers = true, value_parser = whole(-1_i64..=i64::MAX))]
    pub queue_max_bytes: i64,
}

/// Where Jobs run.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Runner")]
pub struct RunnerArgs {
    /// Where Jobs run; by default kubernetes in a cluster or with a kubeconfig
    #[arg(long, env = "RUNNER", global = true, value_enum)]
    pub runner: Option<RunnerKind>,
    /// Identity among the clusters and machines that share the queue; by default the UID of the Job namespace, or one kept in
    /// STATE_DIR
    #[arg(long, env = "CLUSTER_NAME", global = true, value_parser = not_empty)]
    pub cluster_name: Option<String>,
    /// Local runner: folder of state and logs; by default sipstuff-operator under the user's state directory
    #[arg(long, env = "STATE_DIR", global = true, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Local runner: command in place of `python3 -m sipstuff.cli`
    #[arg(long, env = "LOCAL_CALLER", global = true, value_name = "COMMAND")]
    pub local_caller: Option<String>,
    /// Local runner: file of NAME=VALUE lines that stands for the credentials Secret
    #[arg(long, env = "LOCAL_SECRETS_FILE", global = true, value_name = "FILE")]
    pub local_secrets_file: Option<PathBuf>,
}

/// The runners there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RunnerKind {
    /// Jobs of a Kubernetes cluster.
    Kubernetes,
    /// Processes of this machine.
    Local,
}

/// What every Job has in common.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Jobs")]
pub struct JobArgs {
    /// Namespace of the Jobs; by default the service account's, else sipstuff
    #[arg(long, env = "JOB_NAMESPACE", global = true, value_parser = namespace_name)]
    pub job_namespace: Option<String>,
    /// Image of the caller
    #[arg(long, env = "JOB_IMAGE", default_value = "xomoxcc/somestuff:latest", global = true, value_parser = not_empty)]
    pub job_image: String,
    /// Secret with SIP_SERVER, SIP_USER, SIP_PASSWORD and the like, used for what a request does not give
    #[arg(long, env = "SIP_SECRET_NAME", default_value = "sip-credentials", global = true, value_parser = secret_name)]
    pub sip_secret_name: String,
    /// Seconds that a finished Job is kept once its outcome is recorded
    #[arg(long, env = "JOB_TTL_SECONDS", default_value_t = 3600, global = true, value_parser = whole(0_i32..=i32::MAX))]
    pub job_ttl_seconds: i32,
    /// How often Kubernetes starts a failed pod again within one attempt
    #[arg(long, env = "JOB_BACKOFF_LIMIT", default_value_t = 0, global = true, value_parser = whole(0_i32..=i32::MAX))]
    pub job_backoff_limit: i32,
    /// Whether pods use the host's network, as SIP behind NAT often needs
    #[arg(long, env = "JOB_HOST_NETWORK", default_value = "true", global = true, value_parser = truth, value_name = "BOOL", action = clap::ArgAction::Set)]
    pub job_host_network: bool,
    /// Seconds added to the longest the conversation can last; together they are the Job's deadline
    #[arg(long, env = "JOB_DEADLINE_MARGIN_SECONDS", default_value_t = 600, global = true, value_parser = whole(0_u32..=86_400))]
    pub job_deadline_margin_seconds: u32,
    /// YAML or JSON file with a partial Job, merged over every Job (resources, tolerations, pull secrets …)
    #[arg(long, env = "JOB_TEMPLATE_FILE", global = true, value_name = "FILE")]
    pub job_template_file: Option<PathBuf>,
    /// Directory of the hosts with text-to-speech models
    #[arg(long, env = "PIPER_DATA_DIR", global = true, value_name = "DIR")]
    pub piper_data_dir: Option<String>,
    /// Directory of the hosts with speech-to-text models
    #[arg(long, env = "WHISPER_DATA_DIR", global = true, value_name = "DIR")]
    pub whisper_data_dir: Option<String>,
    /// Directory of the hosts for recordings
    #[arg(long, env = "RECORDING_DIR", global = true, value_name = "DIR")]
    pub recording_dir: Option<String>,
    /// User id of the caller's process
    #[arg(long, env = "RUN_AS_USER", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub run_as_user: Option<i64>,
    /// Group id of the caller's process
    #[arg(long, env = "RUN_AS_GROUP", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub run_as_group: Option<i64>,
    /// Group id of the volumes
    #[arg(long, env = "FS_GROUP", global = true, value_parser = whole(0..=i64::from(u32::MAX)))]
    pub fs_group: Option<i64>,
    /// Labels of the nodes that may run Jobs, `key=value,key2=value2`; a request's `node_selector` replaces it
    #[arg(long, env = "NODE_SELECTOR", global = true, value_parser = selector, value_name = "K=V,…")]
    pub default_node_selector: Option<Selector>,
}

/// `nodeSelector` of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selector(pub BTreeMap<String, String>);

/// The HTTP API.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "HTTP")]
pub struct HttpArgs {
    /// Address to listen on. The API has no authentication yet: let only trusted networks reach it
    #[arg(long, env = "HOST", default_value = "127.0.0.1", global = true, value_parser = address)]
    pub host: IpAddr,
    /// Port to listen on; 0 for a free one
    #[arg(long, env = "PORT", default_value_t = 8080, global = true, value_parser = whole(0_u16..=u16::MAX))]
    pub port: u16,
}

/// The log.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// What is logged: a level, or `target=level` pairs separated by commas
    #[arg(long, env = "RUST_LOG", default_value = "info", global = true, value_parser = log_filter)]
    pub rust_log: String,
    /// How it is written
    #[arg(long, env = "LOG_FORMAT", default_value = "text", global = true, value_enum)]
    pub log_format: LogFormat,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

/// A setting that is not what it must be, found after the command line was read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct BadSetting(String);

impl NatsArgs {
    /// As the queue takes them.
    pub fn settings(&self) -> NatsSettings {
        let Self {
            nats_url,
            nats_creds_file,
            nats_nkey_file,
            nats_user,
            nats_password,
            nats_token,
            nats_ca_file,
            nats_cert_file,
            nats_key_file,
        } = self.clone();
        NatsSettings {
            url: nats_url,
            creds_file: nats_creds_file,
            nkey_file: nats_nkey_file,
            user: nats_user,
            password: nats_password,
            token: nats_token,
            ca_file: nats_ca_file,
            cert_file: nats_cert_file,
            key_file: nats_key_file,
        }
    }
}

impl QueueArgs {
    /// As the queue takes them.
    pub fn settings(&self) -> StreamSettings {
        let Self {
            max_active_calls,
            calls_per_second: _,
            orphan_after: _,
            status_retention: _,
            nats_replicas,
            queue_max_messages,
            queue_max_bytes,
        } = *self;
        StreamSettings {
            names: Names::default(),
            replicas: usize::from(nats_replicas),
            queue_max_messages,
            queue_max_bytes,
            max_active_calls: i64::from(max_active_calls),
        }
    }
}

impl JobArgs {
    /// As the Job builder takes them.
    ///
    /// # Errors
    /// [`BadSetting`]: the template file cannot be read or is no partial Job; the text names the variable and the file.
    pub fn defaults(&self) -> Result<JobDefaults, BadSetting> {
        let Self {
            job_namespace,
            job_image,
            sip_secret_name,
            job_ttl_seconds,
            job_backoff_limit,
            job_host_network,
            job_deadline_margin_seconds,
            job_template_file,
            piper_data_dir,
            whisper_data_dir,
            recording_dir,
            run_as_user,
            run_as_group,
            fs_group,
            default_node_selector,
        } = self.clone();
        let template = job_template_file.map(|path| {
            let named = |error: String| BadSetting(format!("JOB_TEMPLATE_FILE {}: {error}", path.display()));
            let text = std::fs::read_to_string(&path).map_err(|error| named(error.to_string()))?;
            parse_template(&text).map_err(named)
        });
        Ok(JobDefaults {
            namespace: job_namespace.unwrap_or_else(own_namespace),
            image: job_image,
            sip_secret_name,
            ttl_seconds: job_ttl_seconds,
            backoff_limit: job_backoff_limit,
            host_network: job_host_network,
            piper_data_dir,
            whisper_data_dir,
            recording_dir,
            run_as_user,
            run_as_group,
            fs_group,
            node_selector: default_node_selector.unwrap_or_default().0,
            deadline_margin: job_deadline_margin_seconds,
            template: template.transpose()?,
        })
    }
}

fn own_namespace() -> String {
    let text = std::fs::read_to_string(NAMESPACE_FILE).unwrap_or_default();
    let name = text.trim();
    if name.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { name.to_owned() }
}

/// A whole number in a range.
fn whole<T>(range: RangeInclusive<T>) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| {
        let number = text.trim().parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("accepted: a whole number from {} to {}", range.start(), range.end()))
    }
}

fn address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| "accepted: an IP address, such as 127.0.0.1, 0.0.0.0 or ::".to_owned())
}

fn not_empty(text: &str) -> Result<String, String> {
    if text.trim().is_empty() { Err("accepted: any text but an empty one".to_owned()) } else { Ok(text.to_owned()) }
}

fn truth(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("accepted: true, 1, yes, on, false, 0, no, off".to_owned()),
    }
}

fn retention(text: &str) -> Result<Duration, String> {
    at_least(text, SHORTEST_RETENTION)
}

fn orphan_after(text: &str) -> Result<Duration, String> {
    at_least(text, SHORTEST_ORPHAN_AFTER)
}

/// A duration as a setting or flag has it: seconds, or a span such as `7d12h`, where a day has 24 hours.
///
/// # Errors
/// What is accepted, when it is none or shorter than `least`.
pub fn at_least(text: &str, least: Duration) -> Result<Duration, String> {
    let seconds = || {
        let span: jiff::Span = text.parse().ok()?;
        span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).ok().map(|duration| duration.as_secs())
    };
    let duration = text.parse::<i64>().ok().or_else(seconds).and_then(|seconds| u64::try_from(seconds).ok());
    duration.map(Duration::from_secs).filter(|duration| *duration >= least).ok_or_else(|| {
        format!("accepted: seconds, or a duration such as 90s, 10m, 72h or 7d12h; at least {} s", least.as_secs())
    })
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().ok().filter(|rate| *rate == 0.0 || (0.001..=10_000.0).contains(rate));
    rate.ok_or_else(|| "accepted: 0 for no limit, or 0.001 to 10000".to_owned())
}

fn namespace_name(text: &str) -> Result<String, String> {
    let is_label = crate::call::validate::names::is_subdomain(text) && text.len() <= 63 && !text.contains('.');
    let accepted = "accepted: a DNS label: at most 63 lower-case letters, digits and dashes, no dash at an end";
    if is_label { Ok(text.to_owned()) } else { Err(accepted.to_owned()) }
}

fn secret_name(text: &str) -> Result<String, String> {
    let accepted = "accepted: a DNS subdomain: at most 253 lower-case letters, digits, dashes and dots";
    if crate::call::validate::names::is_subdomain(text) { Ok(text.to_owned()) } else { Err(accepted.to_owned()) }
}

fn selector(text: &str) -> Result<Selector, String> {
    use crate::call::validate::names::{is_label_key, is_label_value};
    let pair = |entry: &str| {
        let (key, value) =
            entry.split_once('=').ok_or_else(|| format!("`{entry}` has no `=`; accepted: key=value,key2=value2"))?;
        match (is_label_key(key.trim()), is_label_value(value.trim())) {
            (true, true) => Ok((key.trim().to_owned(), value.trim().to_owned())),
            (false, _) => Err(format!("`{key}` is no label key of Kubernetes")),
            (_, false) => Err(format!("`{value}` is no label value of Kubernetes")),
        }
    };
    let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
    entries.map(pair).collect::<Result<_, String>>().map(Selector)
}

fn log_filter(text: &str) -> Result<String, String> {
    match text.parse::<tracing_subscriber::EnvFilter>() {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(format!("{error}; accepted: off, error, warn, info, debug, trace, or target=level pairs")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_true_and_false_are_those_of_the_seed_and_their_opposites() {
        for word in ["true", "1", "yes", "YES", "on"] {
            assert_eq!(truth(word), Ok(true), "{word}");
        }
        for word in ["false", "0", "no", "off"] {
            assert_eq!(truth(word), Ok(false), "{word}");
        }
        assert!(truth("maybe").is_err());
    }

    #[test]
    fn a_retention_is_a_duration_of_at_least_a_day() {
        assert_eq!(retention("72h"), Ok(Duration::from_secs(72 * 3600)));
        assert_eq!(retention("7d"), Ok(Duration::from_secs(7 * 86_400)));
        assert_eq!(retention("86400"), Ok(Duration::from_secs(86_400)));
        for text in ["", "1h", "-72h", "soon", "-1"] {
            assert!(retention(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_entry_without_an_equals_sign_is_named() {
        assert_eq!(selector("a=b, c=").map(|selector| selector.0.len()), Ok(2));
        assert!(selector("a=b,oops").is_err_and(|error| error.contains("oops")));
    }
}
