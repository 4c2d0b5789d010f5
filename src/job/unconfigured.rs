//! [`JobDefaults`] for tests and benchmarks, written out once. The library's tests and `tests/support` both take this file in as
//! a module of their own, since a test of the library is no user of it, and what only tests need is not made public for the
//! others. So `super` is whoever takes it in.

use std::collections::BTreeMap;

use super::JobDefaults;

/// The default of `JOB_HANG_UP_COMMAND`, as words.
const HANG_UP: [&str; 3] = ["python3", "-c", "import os,signal;os.kill(1,signal.SIGINT)"];

/// The operator without any configuration.
pub(crate) fn defaults() -> JobDefaults {
    JobDefaults {
        namespace: "sipstuff".to_owned(),
        image: "xomoxcc/somestuff:latest".to_owned(),
        sip_secret_name: "sip-credentials".to_owned(),
        ttl_seconds: 3600,
        backoff_limit: 0,
        host_network: true,
        piper_data_dir: None,
        whisper_data_dir: None,
        recording_dir: None,
        run_as_user: None,
        run_as_group: None,
        fs_group: None,
        node_selector: BTreeMap::new(),
        start_seconds: 600,
        deadline_margin: 600,
        hang_up: Some(HANG_UP.map(str::to_owned).to_vec()),
        pod_gate: true,
        template: None,
    }
}
