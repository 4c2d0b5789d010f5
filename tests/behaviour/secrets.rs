//! Secrets: a password reaches the caller, and is not in anything else that can be read.

use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Secret;
use serde_json::json;

use crate::support::http::{http_client, send};
use crate::support::{Operator, PATIENCE, Setup, cli, get_json, name_of, post_call, with};

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
