//! The wire model of a call request: what the JSON Schema is generated from, and what a checked request is decoded into.
//! The types and the descriptions are here; ranges and patterns are stated once, in [`super::validate::fields`], from
//! where both the schema and the validator have them. What must be there is [`super::validate`]'s to say.

use std::collections::BTreeMap;
use std::fmt;

use jiff::Timestamp;
use schemars::JsonSchema;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, Serializer};

use super::validate::fields;
use super::{OnUnknown, Priority, RedialOn};

/// Seconds to wait for an answer when a request does not say.
pub const DEFAULT_TIMEOUT: u32 = 60;
/// How often the announcement is played when a request does not say.
pub const DEFAULT_REPEAT: u32 = 1;
/// Attempts in all when neither the request nor the operator's configuration says.
pub const DEFAULT_MAX_ATTEMPTS: u32 = 1;
/// Seconds before the second attempt when neither the request nor the operator's configuration says.
pub const DEFAULT_RETRY_DELAY: u32 = 300;

/// A request for one SIP phone call, as it arrives on `sip.calls` or by `POST /call`. Required: `dest` and exactly one of
/// `text` and `wav`. An optional field that is `null` is absent. Unknown fields and keys that are
/// given more than once are refused.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(transform = fields::state_rules)]
pub struct CallRequest {
    /// Who the call is, at most 128 characters without control characters: the same id and the same request is the same call,
    /// however often it is sent. Without it the `Nats-Msg-Id` header, the `Idempotency-Key` header (HTTP) or a fresh id counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Callee: a phone number or a SIP URI. Required.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dest: Option<String>,
    /// What is said, by text to speech: at most 10,000 characters, with line breaks (`\n`) and tabs as the
    /// only control characters.
    /// Exactly one of `text` and `wav`; an empty one is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Path, inside the call's container, of the WAV file that is played. Exactly one of `text` and `wav`; an empty one is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wav: Option<String>,
    /// Seconds to wait for an answer, 1 to 600; default 60.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = DEFAULT_TIMEOUT))]
    pub timeout: Option<u32>,
    /// Seconds between the answer and the announcement, 0 to 30; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub pre_delay: Option<f64>,
    /// Seconds between two repetitions of the announcement, 0 to 30; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub inter_delay: Option<f64>,
    /// Seconds between the announcement and hanging up, 0 to 30; default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = 0))]
    pub post_delay: Option<f64>,
    /// Seconds of silence on the callee's side to wait for before speaking, 0 to 30; absent: does not wait.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_for_silence: Option<f64>,
    /// How often the announcement is played, 1 to 100; default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = DEFAULT_REPEAT))]
    pub repeat: Option<u32>,
    /// Piper model for text to speech; absent: the caller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts_model: Option<String>,
    /// Sample rate of the synthesised speech in Hz, 0 to 48000; absent: the caller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts_sample_rate: Option<u32>,
    /// Folder of the Piper models, inside the call's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tts_data_dir: Option<String>,
    /// Whisper model for speech to text; absent: the caller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stt_model: Option<String>,
    /// Language that is transcribed, such as `de`; absent: the caller's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stt_language: Option<String>,
    /// Folder of the Whisper models, inside the call's container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stt_data_dir: Option<String>,
    /// Path of the recording, inside the call's container; absent: the call is not recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Whether the recording is transcribed; only with `record`; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub transcribe: Option<bool>,
    /// Whether the caller logs more; default false.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = false))]
    pub verbose: Option<bool>,
    /// SIP server: host name or address; absent: from the credentials Secret, as every other `sip_` and network field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_server: Option<String>,
    /// Port of the SIP server, 1 to 65535.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_port: Option<u16>,
    /// User name of the SIP account.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_user: Option<String>,
    /// Password of the SIP account. It is in the queued message, so prefer `sip_secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_password: Option<Password>,
    /// Transport of the signalling: `udp`, `tcp` or `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_transport: Option<String>,
    /// Encryption of the media: `disabled`, `optional` or `mandatory`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_srtp: Option<String>,
    /// Whether the certificate of the SIP server is verified (transport `tls`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_tls_verify: Option<bool>,
    /// STUN servers as `host:port`, separated by commas.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stun_servers: Option<String>,
    /// Whether ICE is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ice_enabled: Option<bool>,
    /// TURN server as `host:port`; given, TURN is used.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_server: Option<String>,
    /// User name at the TURN server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_username: Option<String>,
    /// Password at the TURN server. It is in the queued message, so prefer `sip_secret`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_password: Option<Password>,
    /// Transport to the TURN server: `udp`, `tcp` or `tls`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_transport: Option<String>,
    /// Seconds between keep-alive packets, 0 to 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_sec: Option<u32>,
    /// Address that is announced to the SIP server, for a caller behind NAT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub public_address: Option<String>,
    /// Labels that the node of the call's pod must have (Kubernetes `nodeSelector`); replaces the operator's default, and
    /// `{}` clears it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<BTreeMap<String, String>>,
    /// Name of the batch that the call belongs to, a Kubernetes label value of 1 to 63 characters: a filter for lists, events
    /// and cancels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<String>,
    /// The requester's own data, echoed in every status event: at most 16 entries, keys of 1 to 64 characters, values of
    /// at most 256 characters.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
    /// The call is not dialled before this moment (RFC 3339 with offset, such as `2027-01-31T09:00:00+01:00`), at most 366 days
    /// from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Timestamp>,
    /// The call is not dialled after this moment (RFC 3339 with offset), later than `not_before` and at most 366 days from now: it
    /// ends `expired` instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Timestamp>,
    /// Attempts in all, 1 to 10; absent: the operator's default, which is 1 unless configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_attempts: Option<u32>,
    /// Seconds before the second attempt, 1 to 86400, doubled before each further one and spread a little; absent: the
    /// operator's default, which is 300 unless configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retry_delay: Option<u32>,
    /// What the call is dialled again after while attempts are left: any of the outcomes `busy`, `no_answer`, `congestion`, `network`,
    /// which are also the default, and `heard:none` and `heard:part`, for a call that was answered and hung up on before the announcement began,
    /// or before its first end. Other outcomes never redial: a person or the number plan has said no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redial_on: Option<Vec<RedialOn>>,
    /// What follows an attempt whose end was lost (its node, pod or cluster is gone), so that the callee may have been called:
    /// `hold`, the default, ends the call; `redial` dials again while attempts are left.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("default" = "hold"))]
    pub on_unknown: Option<OnUnknown>,
    /// How urgent the call is beside others that wait: `urgent` is dialled before `normal`, the default, and that before `bulk`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", extend("default" = "normal"))]
    pub priority: Option<Priority>,
    /// Name of the trunk that dials the call, one of the operator's `TRUNKS_FILE`; absent: the trunks of the longest prefix of
    /// `dest` among its routes, one after the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trunk: Option<String>,
    /// Name of an existing Secret with the SIP credentials (keys such as `SIP_PASSWORD`), in the namespace of the Jobs; replaces
    /// the operator's own for this call.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sip_secret: Option<String>,
}

/// A password on its way in: shows itself only when it is serialised, since the queue's message must carry it.
#[derive(Clone, Default, Deserialize, JsonSchema)]
#[serde(from = "String")]
#[schemars(with = "String")]
pub struct Password(SecretString);

impl Password {
    /// Takes a password.
    pub fn new(text: impl Into<String>) -> Self {
        Self(SecretString::from(text.into()))
    }

    /// Hands it to whoever keeps it from now on.
    pub fn into_secret(self) -> SecretString {
        self.0
    }
}

impl From<String> for Password {
    fn from(text: String) -> Self {
        Self::new(text)
    }
}

impl PartialEq for Password {
    fn eq(&self, other: &Self) -> bool {
        self.0.expose_secret() == other.0.expose_secret()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

impl Serialize for Password {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.0.expose_secret())
    }
}
