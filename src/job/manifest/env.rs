//! The caller's environment: what the request sets, a reference to the credentials Secret for what it does not, and the
//! call's own Secret for passwords. A password never becomes a value here.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{EnvVar, EnvVarSource, SecretKeySelector};
use secrecy::SecretString;

use super::literal;
use super::pod::host_directories;
use crate::call::Call;
use crate::call::spec::SipSettings;
use crate::job::JobDefaults;

/// Variable, and key in a Secret, of the account's password.
pub const SIP_PASSWORD: &str = "SIP_PASSWORD";
/// Variable, and key in a Secret, of the TURN password.
pub const SIP_TURN_PASSWORD: &str = "SIP_TURN_PASSWORD";

/// Variable of the trace that the call belongs to, under the name that OpenTelemetry has for it.
const TRACEPARENT: &str = "TRACEPARENT";

/// Where a variable comes from.
enum Source {
    /// The request says it in clear.
    Request(String),
    /// The request says it, and the call's own Secret holds it.
    Password,
    /// The request does not say it: the credentials Secret may.
    Credentials,
}

/// The environment of the container of the Job `job`.
pub(super) fn environment(call: &Call, job: &str, defaults: &JobDefaults) -> Vec<EnvVar> {
    let spec = &call.spec;
    let credentials = spec.sip_secret.as_deref().unwrap_or(&defaults.sip_secret_name);
    let mut variables: Vec<EnvVar> = sip_variables(&spec.sip)
        .into_iter()
        .map(|(name, source)| match source {
            Source::Request(value) => value_of(name, &value),
            Source::Password => key_of(name, job, None),
            Source::Credentials => key_of(name, credentials, Some(true)),
        })
        .collect();
    if spec.sip.turn_server.is_some() {
        variables.push(value_of("SIP_TURN_ENABLED", "true"));
    }
    variables.extend(call.traceparent.as_ref().map(|traceparent| value_of(TRACEPARENT, traceparent.as_str())));
    variables.extend(host_directories(defaults).map(|directory| value_of(directory.variable, directory.mount_path)));
    variables
}

/// The passwords of a request by variable, which is also their key in the call's own Secret.
pub(super) fn passwords(sip: &SipSettings) -> BTreeMap<String, SecretString> {
    [(SIP_PASSWORD, &sip.password), (SIP_TURN_PASSWORD, &sip.turn_password)]
        .into_iter()
        .filter_map(|(variable, password)| Some((variable.to_owned(), password.clone()?)))
        .collect()
}

/// Whether the call itself decides a built variable, so that no template may say otherwise.
pub(super) fn is_decided_by_call(variable: &EnvVar, job: &str) -> bool {
    let secret = variable.value_from.as_ref().and_then(|from| from.secret_key_ref.as_ref());
    let is_ours = variable.name.starts_with("SIP_") || variable.name == TRACEPARENT;
    is_ours && secret.is_none_or(|secret| secret.name == job)
}

/// In the order of the contract.
fn sip_variables(sip: &SipSettings) -> [(&'static str, Source); 15] {
    [
        ("SIP_SERVER", given(&sip.server)),
        ("SIP_PORT", given(&sip.port)),
        ("SIP_USER", given(&sip.user)),
        (SIP_PASSWORD, hidden(&sip.password)),
        ("SIP_TRANSPORT", given(&sip.transport)),
        ("SIP_SRTP", given(&sip.srtp)),
        ("SIP_TLS_VERIFY_SERVER", given(&sip.tls_verify)),
        ("SIP_STUN_SERVERS", given(&sip.stun_servers)),
        ("SIP_ICE_ENABLED", given(&sip.ice_enabled)),
        ("SIP_TURN_SERVER", given(&sip.turn_server)),
        ("SIP_TURN_USERNAME", given(&sip.turn_username)),
        (SIP_TURN_PASSWORD, hidden(&sip.turn_password)),
        ("SIP_TURN_TRANSPORT", given(&sip.turn_transport)),
        ("SIP_KEEPALIVE_SEC", given(&sip.keepalive_sec)),
        ("SIP_PUBLIC_ADDRESS", given(&sip.public_address)),
    ]
}

fn given(setting: &Option<impl ToString>) -> Source {
    setting.as_ref().map_or(Source::Credentials, |value| Source::Request(value.to_string()))
}

fn hidden(password: &Option<SecretString>) -> Source {
    if password.is_some() { Source::Password } else { Source::Credentials }
}

fn value_of(name: &str, value: &str) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(literal(value)), value_from: None }
}

/// A key of a Secret, named like the variable. An optional one may be missing; the pod waits for any other.
fn key_of(name: &str, secret: &str, optional: Option<bool>) -> EnvVar {
    let reference = SecretKeySelector { name: secret.to_owned(), key: name.to_owned(), optional };
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource { secret_key_ref: Some(reference), ..EnvVarSource::default() }),
    }
}
