//! The first words that a new user hears when something is wrong: of `conntest`, `/readyz`, and about settings.

use std::time::Duration;

use crate::support::cli::run;
use crate::support::process::Scratch;
use crate::support::{NatsOptions, NatsServer, Operator, OperatorOptions, eventually, get_json};

/// A server with these lines in its configuration, beside those of the fixture.
async fn nats_with(config: &str) -> NatsServer {
    NatsServer::start_with(NatsOptions { config: config.to_owned(), ..Default::default() }).await
}

/// `conntest` with a local runner.
async fn conntest(env: &[(&str, &str)]) -> (Option<i32>, String) {
    let scratch = Scratch::new("state");
    let state = scratch.join("state");
    let local = [("RUNNER", "local"), ("STATE_DIR", state.to_str().unwrap())];
    let done = run(&["conntest"], &[&local[..], env].concat()).await;
    (done.code, done.text())
}

const USERS: &str = "authorization { users = [ {user: ann, password: \"s3@cret\"} ] }";

#[tokio::test]
async fn conntest_says_what_a_power_loss_may_lose() {
    let table = [
        ("", Some("every 2m: a power loss may lose")),
        ("sync_interval: 5s", Some("every 5s: a power loss may lose")),
        ("sync_interval: always", None),
    ];
    for (jetstream, warning) in table {
        let options = NatsOptions { jetstream: jetstream.to_owned(), ..Default::default() };
        let nats = NatsServer::start_with(options).await;
        let monitoring = nats.monitoring_url();
        let (code, said) = conntest(&[("NATS_URL", &nats.url()), ("NATS_MONITORING_URL", &monitoring)]).await;
        assert_eq!(code, Some(0), "{said}");
        let warned = said.lines().find_map(|line| line.strip_prefix("warning nats: "));
        assert_eq!(warned.is_some(), warning.is_some(), "{said}");
        assert!(warned.unwrap_or_default().contains(warning.unwrap_or_default()), "{said}");
    }
    let nats = NatsServer::start().await;
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(0) && said.contains("acknowledges: set NATS_MONITORING_URL"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &nats.url()), ("NATS_MONITORING_URL", "http://127.0.0.1:1")]).await;
    assert!(code == Some(0) && said.contains("NATS_MONITORING_URL http://127.0.0.1:1: "), "{said}");
}

#[tokio::test]
async fn conntest_says_that_credentials_are_refused_and_uses_those_of_the_address() {
    let nats = nats_with(USERS).await;
    let with = |credentials: &str| nats.url().replace("nats://", &format!("nats://{credentials}@"));
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(1) && said.contains("asks for credentials, and none are set"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &with("ann:wr0ng"))]).await;
    assert!(code == Some(1) && said.contains("refuses these credentials: check the user in NATS_URL"), "{said}");
    assert!(!said.contains("wr0ng") && !said.contains("does not answer"), "{said}");
    let (code, said) = conntest(&[("NATS_URL", &with("ann:s3%40cret"))]).await;
    assert!(code == Some(0) && said.contains("ok      nats"), "{said}");
    let set = [("NATS_URL", &*with("ann:wr0ng")), ("NATS_USER", "ann"), ("NATS_PASSWORD", "s3@cret")];
    assert_eq!(conntest(&set).await.0, Some(0), "variables go before the address");
}

#[tokio::test]
async fn conntest_says_that_jetstream_is_off_and_names_each_address_once() {
    let options = NatsOptions { without_jetstream: true, ..Default::default() };
    let nats = NatsServer::start_with(options).await;
    let (code, said) = conntest(&[("NATS_URL", &nats.url())]).await;
    assert!(code == Some(1) && said.contains("JetStream is off on this server: start it with `-js`"), "{said}");
    let (_, away) = conntest(&[("NATS_URL", "nats://127.0.0.1:1")]).await;
    for (said, address) in [(said, nats.url()), (away, "nats://127.0.0.1:1".to_owned())] {
        assert_eq!(said.matches(&*address).count(), 1, "{said}");
    }
}

#[tokio::test]
async fn serve_names_what_is_wrong_with_nats_in_readyz_and_gives_up_refused_credentials_after_a_minute() {
    let nats = nats_with(USERS).await;
    let scratch = Scratch::new("state");
    let options = OperatorOptions::local(&nats, &scratch.join("state"));
    let mut operator = Operator::start_unready(options).await;
    eventually("readyz says why", Duration::from_secs(10), async || {
        get_json(&operator.admin(), "/readyz").await.text.contains("asks for credentials")
    })
    .await;
    let status = operator.wait(Duration::from_secs(90)).await;
    assert_eq!(status.code(), Some(1));
    let log = operator.log();
    assert!(log.contains("has refused this operator for 60s") && log.contains("asks for credentials"), "{log}");
}

#[tokio::test]
async fn readyz_says_what_a_power_loss_may_lose() {
    let nats = NatsServer::start().await;
    let scratch = Scratch::new("state");
    let options = OperatorOptions::local(&nats, &scratch.join("state"));
    let operator = Operator::start(options.env("NATS_MONITORING_URL", nats.monitoring_url())).await;
    eventually("readyz says it", Duration::from_secs(10), async || {
        let ready = get_json(operator.base(), "/readyz").await;
        ready.status == 200 && ready.text.contains("connected; nats-server syncs every 2m: a power loss may lose")
    })
    .await;
}

#[tokio::test]
async fn all_bad_settings_are_named_at_once() {
    let bad = [
        ("MAX_ACTIVE_CALLS", "many"),
        ("PORT", "65536"),
        ("JOB_TEMPLATE_FILE", "/nowhere.yaml"),
        ("LOG_FORMAT", "xml"),
        ("NATS_MONITORING_URL", "http://ann:s3cret@nats:8222"),
    ];
    let done = run(&["dumpjob", "--nats-replicas", "9", "--host=nowhere"], &bad).await;
    let (code, err) = (done.code, done.stderr);
    assert_eq!(code, Some(2), "{err}");
    for (variable, _) in bad {
        assert_eq!(err.matches(&format!("error: {variable}")).count(), 1, "{variable} in {err}");
    }
    assert!(err.contains("--nats-replicas") && err.contains("--host") && !err.contains("s3cret"), "{err}");
    // A flag goes before its variable, however bad that is.
    let done = run(&["--port", "0", "dumpjob", "--dest", "1", "--text", "x"], &[("PORT", "x")]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
}
