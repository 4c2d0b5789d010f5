//! Secrets: a password reaches the caller, and is not in anything else that can be read.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use crate::support::http::{http_client, send};
use crate::support::{
    Operator, PATIENCE, Setup, cli, delete, eventually, get_json, in_seconds, name_of, post_call, with,
};

const PASSWORD: &str = "correct-horse-$(HOME)-battery";
/// It would be expanded, were it not escaped.
const TEXT: &str = "$(SIP_PASSWORD) $HOME $$";
const ID: &str = "secret";

fn body() -> serde_json::Value {
    json!({"id": ID, "dest": "1", "text": TEXT, "sip_password": PASSWORD, "turn_password": PASSWORD})
}

/// An operator that logs everything, by which a call with passwords was placed; and what HTTP answered.
async fn placed(setup: &Setup) -> (Operator, String) {
    let operator = Operator::start(setup.options().env("RUST_LOG", "trace")).await;
    let answer = post_call(operator.base(), &body()).await.text;
    setup.events.final_of(ID, PATIENCE).await;
    (operator, answer)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_reaches_the_caller_and_a_dollar_is_spoken() {
    let setup = Setup::kubernetes(0.3).await;
    placed(&setup).await;
    let [start] = &setup.node().starts()[..] else { panic!("one start") };
    assert_eq!((&*start.env["SIP_PASSWORD"], &*start.env["SIP_TURN_PASSWORD"]), (PASSWORD, PASSWORD));
    assert!(start.argv.windows(2).any(|pair| pair == ["--text", TEXT]), "{:?}", start.argv);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_in_one_secret_that_belongs_to_the_job() {
    let setup = Setup::kubernetes(0.3).await;
    placed(&setup).await;
    let secrets = setup.namespace().api::<Secret>().list(&Default::default()).await.unwrap().items;
    let [secret] = &secrets[..] else { panic!("{} Secrets", secrets.len()) };
    assert_eq!(secret.metadata.owner_references.as_ref().unwrap()[0].name, name_of(ID));
}

/// All output of an operator, as one text: its log, the Jobs, the status log, events, and answers about a call.
async fn everything(setup: &Setup, operator: &Operator, id: &str) -> String {
    let mut all = operator.log();
    all += &serde_json::to_string(&setup.namespace().api::<Job>().list(&Default::default()).await.unwrap()).unwrap();
    all += &serde_json::to_string(&setup.history(id).await).unwrap();
    for path in ["/jobs".to_owned(), format!("/jobs/{id}"), "/readyz".to_owned()] {
        all += &get_json(operator.base(), &path).await.text;
    }
    for heard in setup.events.heard() {
        all += &format!("{:?}{}", heard.headers, serde_json::to_string(&heard.event).unwrap());
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_in_no_job_event_log_error_or_answer() {
    let setup = Setup::kubernetes(0.3).await;
    let (operator, mut all) = placed(&setup).await;
    let conflict = with(body(), json!({"text": "another"}));
    all += &post_call(operator.base(), &conflict).await.text;
    setup.publish(&[], with(conflict, json!({"sip_port": 0})).to_string()).await;
    setup.queue_empties().await;

    all += &everything(&setup, &operator, ID).await;
    assert!(all.contains("SIP_PASSWORD"), "the Job refers to it");
    for secret in [PASSWORD, "correct-horse", &data_encoding::BASE64.encode(PASSWORD.as_bytes())] {
        let shown = all.find(secret).map(|at| &all[at.saturating_sub(300)..at + 100]);
        assert_eq!(shown, None, "{secret}");
    }
}

#[tokio::test]
async fn no_answer_of_http_contains_a_password_not_even_a_refusal() {
    const SECRET: &str = "hunter2-hunter2";
    let setup = Setup::local(0.0).await;
    let operator = setup.operator().await;
    let good = with(body(), json!({"text": "x", "sip_password": SECRET, "turn_password": SECRET}));
    let bad = with(good.clone(), json!({"dest": ""}));
    let wrong_type = with(good.clone(), json!({"sip_password": [SECRET]}));
    let conflict = with(good.clone(), json!({"text": "Something else"}));
    let mut cut = good.to_string();
    cut.pop();
    let broken = send(http_client().post(format!("{}/call", operator.base())).body(cut)).await;
    let mut texts = vec![broken.text];
    for body in [&good, &bad, &wrong_type, &conflict] {
        texts.push(post_call(operator.base(), body).await.text);
    }
    texts.push(get_json(operator.base(), &format!("/jobs/{ID}")).await.text);
    for text in texts {
        assert!(!text.contains(SECRET), "{text}");
    }
}

const SETTING: &str = "hunter2-hunter2";

#[tokio::test]
async fn no_password_of_the_settings_is_logged() {
    let setup = Setup::local(0.0).await;
    let url = format!("nats://ann:{SETTING}@127.0.0.1:{}", setup.nats.port());
    let options = setup.options().nats_url(url).env("NATS_USER", "ann").env("RUST_LOG", "trace");
    let mut operator = Operator::start(options.env("NATS_PASSWORD", SETTING).env("NATS_TOKEN", SETTING)).await;
    operator.terminate(Duration::from_secs(10)).await;
    let log = operator.log();
    assert!(log.contains("NATS_URL") && log.contains("(set)"), "the banner says what is set: {log}");
    does_not_contain_the_setting(&log);
}

#[tokio::test]
async fn no_command_prints_a_password_of_the_settings() {
    let setup = Setup::local(0.0).await;
    let url = format!("nats://ann:{SETTING}@127.0.0.1:{}", setup.nats.port());
    let env = [("NATS_URL", &*url), ("NATS_PASSWORD", SETTING), ("NATS_TOKEN", SETTING)];
    for args in [&["--help"][..], &["serve", "--help"], &["conntest"], &["settings"], &["dumpjob", "--port", "x"]] {
        does_not_contain_the_setting(&cli::run(args, &env).await.text());
    }
}

#[tokio::test]
async fn an_error_about_a_setting_does_not_print_the_password_in_it() {
    let invalid = [("NATS_URL", "nats://ann:hunter2-hunter2@no such host:x"), ("RUNNER", "local")];
    does_not_contain_the_setting(&cli::run(&["conntest"], &invalid).await.text());
}

fn does_not_contain_the_setting(text: &str) {
    let at = text.find(SETTING);
    assert_eq!(at.map(|at| &text[at.saturating_sub(200)..at]), None);
}

/// All that waits for a call: requests, calls in the queue and the window, timers.
const STREAMS: [&str; 4] = ["SIP_CALLS", "SIP_QUEUE", "SIP_DIAL", "SIP_SCHEDULE"];

async fn messages_with_the_password(setup: &Setup) -> usize {
    let mut count = 0;
    for name in STREAMS {
        let stream = setup.js.get_stream(name).await.unwrap();
        for sequence in 1..=stream.cached_info().state.last_sequence {
            if let Ok(message) = stream.get_raw_message(sequence).await {
                count += usize::from(String::from_utf8_lossy(&message.payload).contains(PASSWORD));
            }
        }
    }
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_leaves_the_queue_and_every_timer_with_a_cancel_of_the_batch() {
    let setup = Setup::local(0.1).await;
    assert_eq!(setup.command(&["pause"]).await.code, Some(0));
    let operator = setup.operator().await;
    for (id, begin) in [("queued", None), ("scheduled", Some(in_seconds(1800)))] {
        let more = json!({"id": id, "batch": "march", "not_before": begin, "not_after": in_seconds(3600)});
        assert_eq!(post_call(operator.base(), &with(body(), more)).await.status, 202);
    }
    eventually("both wait", PATIENCE, async || messages_with_the_password(&setup).await == 2).await;
    assert_eq!(delete(operator.base(), "/jobs?batch=march").await.json["cancelled"], 2);
    eventually("nothing is left", PATIENCE, async || messages_with_the_password(&setup).await == 0).await;
}
