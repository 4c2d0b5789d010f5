//! What a valid request asks for, with defaults filled in, and what follows from it for dialling.

use std::collections::BTreeMap;

use jiff::Timestamp;
use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use super::request::{
    CallRequest, DEFAULT_MAX_ATTEMPTS, DEFAULT_REPEAT, DEFAULT_RETRY_DELAY, DEFAULT_TIMEOUT, Password,
};
use super::{Fingerprint, Outcome, Priority, RedialOn, canonical};

/// Longest wait before another attempt, in seconds: a day, as for `retry_delay` itself.
const MAX_RETRY_DELAY: u32 = 86_400;

/// What a valid request asks for. Made by [`parse`](super::validate::parse) only.
#[derive(Debug, Clone)]
pub struct CallSpec {
    /// Callee: a number or SIP URI, not empty.
    pub dest: String,
    /// What is played.
    pub announcement: Announcement,
    /// Seconds to wait for an answer, 1 to 600.
    pub timeout: u32,
    /// Seconds, 0 to 30.
    pub pre_delay: f64,
    /// Seconds between repetitions, 0 to 30.
    pub inter_delay: f64,
    /// Seconds, 0 to 30.
    pub post_delay: f64,
    /// Seconds of silence to wait for before speaking, 0 to 30.
    pub wait_for_silence: Option<f64>,
    /// How often the announcement is played, 1 to 100.
    pub repeat: u32,
    /// Text to speech.
    pub tts_model: Option<String>,
    /// Hz, 0 to 48000.
    pub tts_sample_rate: Option<u32>,
    /// Folder of the models.
    pub tts_data_dir: Option<String>,
    /// Speech to text.
    pub stt_model: Option<String>,
    /// Language code.
    pub stt_language: Option<String>,
    /// Folder of the models.
    pub stt_data_dir: Option<String>,
    /// Path of the recording.
    pub record: Option<String>,
    /// Transcribe the recording; only with `record`.
    pub transcribe: bool,
    /// Verbose log of the caller.
    pub verbose: bool,
    /// The account and the network path; what is `None` comes from the credentials Secret.
    pub sip: SipSettings,
    /// Replaces the operator's default; empty clears it.
    pub node_selector: Option<BTreeMap<String, String>>,
    /// A label value (at most 63 characters).
    pub batch: Option<String>,
    /// Echoed in every status event; at most 16 entries.
    pub metadata: BTreeMap<String, String>,
    /// Not dialled before.
    pub not_before: Option<Timestamp>,
    /// Not dialled after: then it ends `expired`.
    pub not_after: Option<Timestamp>,
    /// Attempts in all, 1 to 10; `None` means 1.
    pub max_attempts: Option<u32>,
    /// Seconds before the second attempt, 1 to 86400; doubles with each further one. `None` means 300.
    pub retry_delay: Option<u32>,
    /// What is redialled; `None` means busy, no_answer, congestion, network.
    pub redial_on: Option<Vec<RedialOn>>,
    /// What follows an attempt whose end was lost.
    pub on_unknown: OnUnknown,
    /// How urgent it is beside others that wait.
    pub priority: Priority,
    /// Name of the trunk that dials it; `None`: the routes say.
    pub trunk: Option<String>,
    /// Name of the Secret that replaces `SIP_SECRET_NAME` for this call.
    pub sip_secret: Option<String>,
}

/// What follows an attempt whose end was lost: it may have dialled, and nobody knows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OnUnknown {
    /// The call ends: nobody is called twice.
    #[default]
    Hold,
    /// The call is dialled again while attempts are left.
    Redial,
}

impl OnUnknown {
    /// Both, as a request writes them.
    pub const WORDS: [&'static str; 2] = ["hold", "redial"];
}

/// What the callee hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Announcement {
    /// Spoken by text to speech.
    Text(String),
    /// Path of a WAV file.
    Wav(String),
}

/// Settings of the SIP account and of the network path to it. Every `None` is read from the credentials Secret by the pod.
#[derive(Debug, Clone, Default)]
pub struct SipSettings {
    /// Env `SIP_SERVER`.
    pub server: Option<String>,
    /// Env `SIP_PORT`, 1 to 65535.
    pub port: Option<u16>,
    /// Env `SIP_USER`.
    pub user: Option<String>,
    /// Env `SIP_PASSWORD`; travels in a Secret of the call's own.
    pub password: Option<SecretString>,
    /// Env `SIP_TRANSPORT`: `udp`, `tcp`, `tls`.
    pub transport: Option<String>,
    /// Env `SIP_SRTP`: `disabled`, `optional`, `mandatory`.
    pub srtp: Option<String>,
    /// Env `SIP_TLS_VERIFY_SERVER`.
    pub tls_verify: Option<bool>,
    /// Env `SIP_STUN_SERVERS`.
    pub stun_servers: Option<String>,
    /// Env `SIP_ICE_ENABLED`.
    pub ice_enabled: Option<bool>,
    /// Env `SIP_TURN_SERVER`; given, it also sets `SIP_TURN_ENABLED=true`.
    pub turn_server: Option<String>,
    /// Env `SIP_TURN_USERNAME`.
    pub turn_username: Option<String>,
    /// Env `SIP_TURN_PASSWORD`; travels in a Secret of the call's own.
    pub turn_password: Option<SecretString>,
    /// Env `SIP_TURN_TRANSPORT`: `udp`, `tcp`, `tls`.
    pub turn_transport: Option<String>,
    /// Env `SIP_KEEPALIVE_SEC`, seconds, 0 to 600.
    pub keepalive_sec: Option<u32>,
    /// Env `SIP_PUBLIC_ADDRESS`.
    pub public_address: Option<String>,
}

impl CallSpec {
    /// From a request whose fields are all checked; `None` only if `dest` or the announcement is missing after all.
    pub(super) fn from_checked(mut request: CallRequest) -> Option<Self> {
        let sip = SipSettings::take(&mut request);
        let announcement = request.text.map(Announcement::Text).or(request.wav.map(Announcement::Wav));
        Some(Self {
            dest: request.dest?,
            announcement: announcement?,
            timeout: request.timeout.unwrap_or(DEFAULT_TIMEOUT),
            pre_delay: request.pre_delay.unwrap_or_default(),
            inter_delay: request.inter_delay.unwrap_or_default(),
            post_delay: request.post_delay.unwrap_or_default(),
            wait_for_silence: request.wait_for_silence,
            repeat: request.repeat.unwrap_or(DEFAULT_REPEAT),
            tts_model: request.tts_model,
            tts_sample_rate: request.tts_sample_rate,
            tts_data_dir: request.tts_data_dir,
            stt_model: request.stt_model,
            stt_language: request.stt_language,
            stt_data_dir: request.stt_data_dir,
            record: request.record,
            transcribe: request.transcribe.unwrap_or_default(),
            verbose: request.verbose.unwrap_or_default(),
            sip,
            node_selector: request.node_selector,
            batch: request.batch,
            metadata: request.metadata.unwrap_or_default(),
            not_before: request.not_before,
            not_after: request.not_after,
            max_attempts: request.max_attempts,
            retry_delay: request.retry_delay,
            redial_on: request.redial_on,
            on_unknown: request.on_unknown.unwrap_or_default(),
            priority: request.priority.unwrap_or_default(),
            trunk: request.trunk,
            sip_secret: request.sip_secret,
        })
    }

    /// How many attempts the call may take, 1 to 10.
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(DEFAULT_MAX_ATTEMPTS)
    }

    /// Seconds to wait after an attempt (from 1) that failed: `retry_delay`, doubled for each further attempt, at most
    /// 86,400. Without jitter, which is for whoever schedules.
    pub fn retry_delay_seconds(&self, attempt: u32) -> u32 {
        let doubled = 2_u32.saturating_pow(attempt.saturating_sub(1));
        self.retry_delay.unwrap_or(DEFAULT_RETRY_DELAY).saturating_mul(doubled).min(MAX_RETRY_DELAY)
    }

    /// Whether `redial_on` names this, or all outcomes that it may name are meant.
    pub fn redials(&self, reason: impl Into<RedialOn>) -> bool {
        let reason = reason.into();
        let is_meant = match &self.redial_on {
            Some(reasons) => reasons.contains(&reason),
            None => matches!(reason, RedialOn::Outcome(_)),
        };
        is_meant && reason.may_be_named()
    }

    /// What the call is dialled again after while attempts are left; nothing when there is one attempt only. Outcomes that do not count are
    /// not among them: it is dialled again after them in any case.
    pub fn redialled(&self) -> Vec<RedialOn> {
        let follows_unknown = |reason| reason == Outcome::Unknown.into() && self.on_unknown == OnUnknown::Redial;
        let counts = |reason| !matches!(reason, RedialOn::Outcome(outcome) if !outcome.counts());
        let is_redialled = |reason: &RedialOn| counts(*reason) && (self.redials(*reason) || follows_unknown(*reason));
        RedialOn::all().filter(|reason| self.max_attempts() > 1 && is_redialled(reason)).collect()
    }

    /// Longest that the conversation can last, in whole seconds: ringing, every repetition and every pause. An announcement
    /// counts as long as the timeout, since nobody knows how long it is before it is spoken.
    pub fn longest_conversation(&self) -> u32 {
        let pauses = self.pre_delay + self.post_delay + self.wait_for_silence.unwrap_or_default();
        let rounds =
            f64::from(self.timeout * self.repeat) + self.inter_delay * f64::from(self.repeat.saturating_sub(1));
        // At most 63,060 by the ranges of the fields.
        (pauses + rounds).ceil() as u32
    }

    /// Hash of what is asked for with defaults filled in, so that `60` and an absent timeout are the same; without the id, and
    /// without passwords, which may be rotated between a publish and its retry.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&canonical::form(self))
    }
}

impl SipSettings {
    fn take(request: &mut CallRequest) -> Self {
        Self {
            server: request.sip_server.take(),
            port: request.sip_port,
            user: request.sip_user.take(),
            password: request.sip_password.take().map(Password::into_secret),
            transport: request.sip_transport.take(),
            srtp: request.sip_srtp.take(),
            tls_verify: request.sip_tls_verify,
            stun_servers: request.stun_servers.take(),
            ice_enabled: request.ice_enabled,
            turn_server: request.turn_server.take(),
            turn_username: request.turn_username.take(),
            turn_password: request.turn_password.take().map(Password::into_secret),
            turn_transport: request.turn_transport.take(),
            keepalive_sec: request.keepalive_sec,
            public_address: request.public_address.take(),
        }
    }
}
