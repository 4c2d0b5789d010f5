//! The canonical form of a request, for its fingerprint: two requests are the same when their forms are. Apart from the
//! types, since it must outlive changes to them: what is recorded of a call is compared with what a later version makes.
//!
//! JSON with sorted names and defaults filled in. What is absent is left out rather than null, so that a version with one
//! more optional field knows the calls of the one before. Passwords, which may be rotated between a publish and its retry,
//! are left out, and so is the id.

use serde::ser::{Serialize, SerializeMap, Serializer};

use super::request::DEFAULT_RETRY_DELAY;
use super::spec::{CallSpec, SipSettings};
use super::{OnUnknown, Priority, RedialOn};

/// The form of what is asked for.
pub(super) fn form(spec: &CallSpec) -> Vec<u8> {
    serde_json::to_vec(&Asked(spec)).expect("numbers, strings and maps of strings are JSON")
}

struct Asked<'a>(&'a CallSpec);

impl Serialize for Asked<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        // Every field by name, so that a new one does not compile until it has its place here.
        let CallSpec {
            announcement,
            batch,
            dest,
            inter_delay,
            max_attempts: _,
            metadata,
            node_selector,
            not_after,
            not_before,
            on_unknown,
            post_delay,
            pre_delay,
            priority,
            record,
            redial_on: _,
            repeat,
            retry_delay,
            sip,
            sip_secret,
            stt_data_dir,
            stt_language,
            stt_model,
            timeout,
            transcribe,
            trunk,
            tts_data_dir,
            tts_model,
            tts_sample_rate,
            verbose,
            wait_for_silence,
        } = self.0;
        // A set, whatever its order was.
        let redialled = RedialOn::all().filter(|reason| self.0.redials(*reason));
        let mut form = serializer.serialize_map(None)?;
        form.serialize_entry("announcement", announcement)?;
        given(&mut form, "batch", batch)?;
        form.serialize_entry("dest", dest)?;
        form.serialize_entry("inter_delay", inter_delay)?;
        form.serialize_entry("max_attempts", &self.0.max_attempts())?;
        form.serialize_entry("metadata", metadata)?;
        given(&mut form, "node_selector", node_selector)?;
        given(&mut form, "not_after", not_after)?;
        given(&mut form, "not_before", not_before)?;
        // The default is left out: calls that were recorded before the field existed keep their fingerprint.
        given(&mut form, "on_unknown", &(*on_unknown != OnUnknown::Hold).then_some(on_unknown))?;
        form.serialize_entry("post_delay", post_delay)?;
        form.serialize_entry("pre_delay", pre_delay)?;
        given(&mut form, "priority", &(*priority != Priority::Normal).then_some(priority))?;
        given(&mut form, "record", record)?;
        form.serialize_entry("redial_on", &redialled.collect::<Vec<_>>())?;
        form.serialize_entry("repeat", repeat)?;
        form.serialize_entry("retry_delay", &retry_delay.unwrap_or(DEFAULT_RETRY_DELAY))?;
        form.serialize_entry("sip", &Account(sip))?;
        given(&mut form, "sip_secret", sip_secret)?;
        given(&mut form, "stt_data_dir", stt_data_dir)?;
        given(&mut form, "stt_language", stt_language)?;
        given(&mut form, "stt_model", stt_model)?;
        form.serialize_entry("timeout", timeout)?;
        form.serialize_entry("transcribe", transcribe)?;
        given(&mut form, "trunk", trunk)?;
        given(&mut form, "tts_data_dir", tts_data_dir)?;
        given(&mut form, "tts_model", tts_model)?;
        given(&mut form, "tts_sample_rate", tts_sample_rate)?;
        form.serialize_entry("verbose", verbose)?;
        given(&mut form, "wait_for_silence", wait_for_silence)?;
        form.end()
    }
}

struct Account<'a>(&'a SipSettings);

impl Serialize for Account<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let SipSettings {
            ice_enabled,
            keepalive_sec,
            password: _,
            port,
            public_address,
            server,
            srtp,
            stun_servers,
            tls_verify,
            transport,
            turn_password: _,
            turn_server,
            turn_transport,
            turn_username,
            user,
        } = self.0;
        let mut form = serializer.serialize_map(None)?;
        given(&mut form, "ice_enabled", ice_enabled)?;
        given(&mut form, "keepalive_sec", keepalive_sec)?;
        given(&mut form, "port", port)?;
        given(&mut form, "public_address", public_address)?;
        given(&mut form, "server", server)?;
        given(&mut form, "srtp", srtp)?;
        given(&mut form, "stun_servers", stun_servers)?;
        given(&mut form, "tls_verify", tls_verify)?;
        given(&mut form, "transport", transport)?;
        given(&mut form, "turn_server", turn_server)?;
        given(&mut form, "turn_transport", turn_transport)?;
        given(&mut form, "turn_username", turn_username)?;
        given(&mut form, "user", user)?;
        form.end()
    }
}

fn given<M: SerializeMap, T: Serialize>(form: &mut M, name: &str, value: &Option<T>) -> Result<(), M::Error> {
    value.as_ref().map_or(Ok(()), |value| form.serialize_entry(name, value))
}
