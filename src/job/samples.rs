//! Calls and configurations for the tests of this folder.

use std::collections::BTreeMap;

pub(crate) use super::unconfigured::defaults;
use crate::call::spec::{Announcement, SipSettings};
use crate::call::{Call, CallId, CallSpec, Fingerprint, OnUnknown, Priority};

/// The smallest valid request.
pub(crate) fn spec() -> CallSpec {
    CallSpec {
        dest: "+4930123456".to_owned(),
        announcement: Announcement::Text("Hello".to_owned()),
        timeout: 60,
        pre_delay: 0.0,
        inter_delay: 0.0,
        post_delay: 0.0,
        wait_for_silence: None,
        repeat: 1,
        tts_model: None,
        tts_sample_rate: None,
        tts_data_dir: None,
        stt_model: None,
        stt_language: None,
        stt_data_dir: None,
        record: None,
        transcribe: false,
        verbose: false,
        sip: SipSettings::default(),
        node_selector: None,
        batch: None,
        metadata: BTreeMap::new(),
        not_before: None,
        not_after: None,
        max_attempts: None,
        retry_delay: None,
        redial_on: None,
        on_unknown: OnUnknown::default(),
        priority: Priority::default(),
        trunk: None,
        sip_secret: None,
    }
}

pub(crate) fn call(spec: CallSpec) -> Call {
    let id = CallId::parse("order 4711").expect("a short text is an id");
    Call { name: id.name(), id, fingerprint: Fingerprint::of(b"any"), spec, traceparent: None }
}
