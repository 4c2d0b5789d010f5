//! Trunks: routes, limits and accounts of each, their breakers, and changing them while calls are dialled.

use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};
use sipstuff_operator::call::{Outcome, Status, StatusEvent};
use sipstuff_operator::policy::Alert;

use crate::support::process::Scratch;
use crate::support::{
    Operator, OperatorOptions, PATIENCE, Setup, accepted, delete, eventually, eventually_some, get_json, in_seconds,
    post_call, request, with,
};

/// A setup with a file of trunks and one with their accounts.
struct Trunks {
    setup: Setup,
    files: Scratch,
}

impl Trunks {
    async fn new(seconds: f32, trunks: &str) -> Self {
        let this = Self { setup: Setup::local(seconds).await, files: Scratch::new("trunks") };
        this.set_trunks(trunks);
        this.set_passwords(&[("berlin", "right"), ("bonn", "right"), ("world", "right")]);
        this
    }

    fn set_trunks(&self, trunks: &str) {
        // As a ConfigMap is: a file is there as a whole or not at all.
        std::fs::write(self.file("new"), trunks).unwrap();
        std::fs::rename(self.file("new"), self.file("trunks.yaml")).unwrap();
    }

    fn set_passwords(&self, passwords: &[(&str, &str)]) {
        let section = |(name, password): &(&str, &str)| {
            format!("[sip-{name}]\nSIP_SERVER=pbx\nSIP_USER={name}\nSIP_PASSWORD={password}\n")
        };
        std::fs::write(self.file("new"), passwords.iter().map(section).collect::<String>()).unwrap();
        std::fs::rename(self.file("new"), self.file("secrets")).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.join(name)
    }

    fn options(&self) -> OperatorOptions {
        self.options_of_machine("state")
    }

    fn options_of_machine(&self, name: &str) -> OperatorOptions {
        self.setup
            .options_of_machine(name)
            .env("TRUNKS_FILE", self.file("trunks.yaml").display())
            .env("LOCAL_SECRETS_FILE", self.file("secrets").display())
            .env("SIMULATE_PASSWORD", "right")
    }

    async fn publish(&self, id: &str, dest: &str, fields: Value) {
        let call = with(request(dest, id), json!({"id": id}));
        self.setup.publish(&[], with(call, fields).to_string()).await;
    }

    /// Runs `trunks` with these arguments.
    async fn command(&self, arguments: &[&str]) -> String {
        let file = self.file("trunks.yaml").display().to_string();
        let all = [&["--trunks-file", &file, "trunks"], arguments].concat();
        let finished = self.setup.command(&all).await;
        assert_eq!(finished.code, Some(0), "{arguments:?}: {}", finished.text());
        finished.text()
    }

    /// The trunks that a call was claimed on, in order.
    async fn claimed_on(&self, id: &str) -> Vec<String> {
        let history = self.setup.history(id).await;
        history.into_iter().filter(|event| event.status == Status::Pending).filter_map(|event| event.trunk).collect()
    }
}

fn trunk(name: &str, max_active: u32) -> Value {
    json!({"name": name, "secret": format!("sip-{name}"), "max_active": max_active})
}

fn file(trunks: &[Value], routes: &Value) -> String {
    json!({"trunks": trunks, "routes": routes}).to_string()
}

async fn state_of(operator: &Operator, trunk: &str) -> Value {
    let answer = get_json(operator.base(), "/trunks").await;
    let states = answer.json.as_array().cloned().unwrap_or_default();
    states.into_iter().find(|state| state["name"] == trunk).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_longest_prefix_or_the_request_names_the_trunk_whose_account_dials() {
    let routes = json!([{"prefix": "+49", "trunks": ["bonn"]}, {"prefix": "+4930", "trunks": ["berlin"]}]);
    let trunks = Trunks::new(0.1, &file(&[trunk("berlin", 3), trunk("bonn", 3)], &routes)).await;
    let operator = Operator::start(trunks.options()).await;
    for (id, dest, fields, expected) in [
        ("prefix", "+49 30 123", json!({}), "berlin"),
        ("shorter", "+49228123", json!({}), "bonn"),
        ("named", "+4930123", json!({"trunk": "bonn"}), "bonn"),
    ] {
        trunks.publish(id, dest, fields).await;
        let end = trunks.setup.end_of(id).await;
        assert_eq!((end.status, end.trunk.as_deref()), (Status::Succeeded, Some(expected)), "{id}");
    }
    assert_eq!((trunks.setup.calls_by("berlin"), trunks.setup.calls_by("bonn")), (1, 2));

    for (fields, field) in [(json!({"trunk": "paris"}), "trunk"), (json!({"dest": "+1"}), "dest")] {
        let refused = post_call(operator.base(), &with(request("+49", "a"), fields.clone())).await;
        assert_eq!((refused.status.as_u16(), &refused.json["errors"][0]["field"]), (409, &json!(field)), "{refused:?}");
        let id = format!("refused-{field}");
        trunks.publish(&id, "+49", fields).await;
        let end = trunks.setup.end_of(&id).await;
        assert_eq!(end.status, Status::Rejected);
        assert!(end.reason.unwrap().contains(&format!("{field}: ")));
    }
    assert_eq!(trunks.setup.dead_letters().await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_is_dumped_has_the_account_of_its_trunk() {
    let routes = json!([{"prefix": "+49", "trunks": ["bonn", "berlin"]}]);
    let trunks = Trunks::new(0.1, &file(&[trunk("berlin", 3), trunk("bonn", 3)], &routes)).await;
    let file = trunks.file("trunks.yaml").display().to_string();
    let dump = async |more: &[&str]| {
        let all = [&["--trunks-file", &file, "dumpjob", "--text", "a"], more].concat();
        trunks.setup.command(&all).await
    };
    assert!(dump(&["--dest", "+49"]).await.text().contains("name: sip-bonn"));
    assert!(
        dump(&["--data", r#"{"dest": "1", "text": "a", "trunk": "berlin"}"#]).await.text().contains("name: sip-berlin")
    );
    let refused = dump(&["--dest", "+1"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.text().contains("no route leads to this destination"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread")]
async fn no_trunk_is_ever_above_its_channels_and_each_keeps_its_pace() {
    let routes = json!([{"prefix": "1", "trunks": ["berlin"]}, {"prefix": "2", "trunks": ["bonn"]}]);
    let bonn = with(trunk("bonn", 20), json!({"calls_per_second": 5}));
    let trunks = Trunks::new(0.5, &file(&[trunk("berlin", 3), bonn], &routes)).await;
    let replica = |name| Operator::start(trunks.options_of_machine(name));
    let _operators = [replica("one").await, replica("two").await];
    for number in 0..24 {
        trunks.publish(&format!("berlin-{number}"), "1", json!({})).await;
        trunks.publish(&format!("bonn-{number}"), "2", json!({})).await;
    }
    let is_final = |events: &[StatusEvent]| events.iter().filter(|event| event.is_final).count() == 48;
    trunks.setup.events.until("all have ended", PATIENCE, is_final).await;
    let (mut active, mut most, mut claimed) = (0_i32, 0, Vec::new());
    let mut heard: Vec<StatusEvent> = trunks.setup.events.heard().into_iter().map(|heard| heard.event).collect();
    heard.sort_by_key(|event| event.time);
    for event in heard {
        match (event.trunk.as_deref(), event.status) {
            (Some("berlin"), Status::Pending) => active += 1,
            (Some("berlin"), _) if event.is_final => active -= 1,
            (Some("bonn"), Status::Pending) => claimed.push(event.time),
            _ => {}
        }
        most = most.max(active);
    }
    assert_eq!(most, 3, "berlin has three channels, and uses them");
    let span = claimed.last().unwrap().duration_since(claimed[0]).as_secs_f64();
    assert!((4.5..6.0).contains(&span), "24 calls at 5 per second took {span} s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_password_burns_no_list_and_the_other_trunk_dials_it() {
    const CALLS: usize = 1000;
    let trunks = Trunks::new(0.02, &file(&[trunk("berlin", 20), trunk("bonn", 20)], &json!([]))).await;
    trunks.set_passwords(&[("berlin", "wrong"), ("bonn", "right")]);
    let mut alerts = trunks.setup.client.subscribe("sip.alert").await.unwrap();
    let operator = Operator::start(trunks.options().env("BREAKER_FAILURES", 5)).await;
    for number in 0..CALLS {
        trunks.publish(&format!("call-{number}"), "+49", json!({})).await;
    }
    trunks.publish("held", "+49", json!({"trunk": "berlin"})).await;
    for number in 0..CALLS {
        assert_eq!(trunks.setup.end_of(&format!("call-{number}")).await.status, Status::Succeeded);
    }
    let dialled = trunks.setup.calls_by("berlin");
    assert!((5..=6).contains(&dialled), "{dialled} calls were dialled with the wrong password");
    let alert: Alert = {
        let message = futures::StreamExt::next(&mut alerts).await.unwrap();
        serde_json::from_slice(&message.payload).unwrap()
    };
    assert_eq!((alert.trunk.as_str(), alert.faults.len()), ("berlin", 5), "{alert:?}");
    assert!(alert.faults.iter().all(|fault| fault.outcome == Outcome::Auth));
    let state = state_of(&operator, "berlin").await;
    assert_eq!((&state["breaker"]["state"], &state["max_active"]), (&json!("open"), &json!(20)), "{state}");
    let metrics = get_json(operator.base(), "/metrics").await.text;
    assert!(metrics.contains("sipstuff_trunk_breaker_open{trunk=\"berlin\"} 1"), "{metrics}");
    assert!(trunks.command(&["list"]).await.contains("open"));

    // Nobody does anything but mend the password: after a minute a call probes the trunk.
    trunks.set_passwords(&[("berlin", "right"), ("bonn", "right")]);
    let end = trunks.setup.end_of("held").await;
    assert_eq!((end.status, end.trunk.as_deref()), (Status::Succeeded, Some("berlin")), "{end:?}");
    eventually("the breaker is closed", PATIENCE, async || {
        state_of(&operator, "berlin").await["breaker"]["state"] == "closed"
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_number_that_its_trunk_refuses_while_it_works_for_others_is_final() {
    let trunks = Trunks::new(0.05, &file(&[trunk("berlin", 3)], &json!([]))).await;
    let operator = Operator::start(trunks.options().env("BREAKER_FAILURES", 2)).await;
    trunks.publish("good", "+49", json!({})).await;
    assert_eq!(trunks.setup.end_of("good").await.status, Status::Succeeded);
    trunks.publish("forbidden", "+49403", json!({})).await;
    let end = trunks.setup.end_of("forbidden").await;
    assert_eq!((end.outcome, end.attempt, end.faults), (Some(Outcome::Auth), 2, 2), "{end:?}");
    // A number alone says nothing of the trunk, however often it is refused.
    assert_eq!(state_of(&operator, "berlin").await["breaker"]["state"], "closed");
}

/// Nobody else is there to show whether the trunk works, so each sees the fault of the other.
#[tokio::test(flavor = "multi_thread")]
async fn numbers_that_a_quiet_trunk_refuses_end_when_patience_does() {
    let trunks = Trunks::new(0.05, &file(&[trunk("berlin", 3)], &json!([]))).await;
    let options = trunks.options().env("BREAKER_FAILURES", 5).env("FAULT_PATIENCE", "1s");
    let _operator = Operator::start(options).await;
    trunks.publish("forbidden", "+49403", json!({})).await;
    trunks.publish("full", "+49503", json!({})).await;
    for (id, outcome) in [("forbidden", Outcome::Auth), ("full", Outcome::Congestion)] {
        let end = trunks.setup.end_of(id).await;
        assert_eq!((end.outcome, end.attempt), (Some(outcome), 2), "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_its_trunk_has_no_room_for_goes_to_the_next_one_at_once() {
    let trunks = Trunks::new(0.05, &file(&[trunk("berlin", 3), trunk("bonn", 3)], &json!([]))).await;
    let _operator = Operator::start(trunks.options()).await;
    trunks.publish("full", "+49503", json!({})).await;
    eventually("it was tried on both", PATIENCE, async || trunks.claimed_on("full").await.len() >= 2).await;
    let history = trunks.setup.history("full").await;
    let claims: Vec<&StatusEvent> = history.iter().filter(|event| event.status == Status::Pending).collect();
    assert_eq!((claims[0].trunk.as_deref(), claims[1].trunk.as_deref()), (Some("berlin"), Some("bonn")));
    assert!(claims[1].time.duration_since(claims[0].time).as_secs_f64() < 4.0, "it does not wait: {history:?}");
    trunks.publish("declined", "+49603", json!({"max_attempts": 3})).await;
    assert_eq!(trunks.setup.end_of("declined").await.outcome, Some(Outcome::Declined));
    assert_eq!(trunks.claimed_on("declined").await, ["berlin"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_trunk_that_was_opened_by_hand_is_not_dialled_on_until_it_is_closed() {
    let trunks = Trunks::new(0.1, &file(&[trunk("berlin", 3), trunk("bonn", 3)], &json!([]))).await;
    let operator = Operator::start(trunks.options()).await;
    trunks.command(&["open", "berlin", "--why", "the provider moves"]).await;
    eventually("every replica knows", PATIENCE, async || {
        state_of(&operator, "berlin").await["breaker"]["reason"] == "the provider moves"
    })
    .await;
    trunks.publish("held", "+49", json!({"trunk": "berlin"})).await;
    trunks.publish("other", "+49", json!({})).await;
    let end = trunks.setup.end_of("other").await;
    assert_eq!(end.trunk.as_deref(), Some("bonn"));
    assert_eq!(trunks.setup.statuses("held").await, [Status::Queued]);
    let unknown = trunks.setup.command(&["trunks", "close", "paris"]).await;
    assert_eq!(unknown.code, Some(1));
    assert!(unknown.text().contains("unknown trunk `paris`"), "{}", unknown.text());
    trunks.command(&["close", "berlin"]).await;
    assert_eq!(trunks.setup.end_of("held").await.trunk.as_deref(), Some("berlin"));
}

#[tokio::test(flavor = "multi_thread")]
async fn trunks_are_added_resized_and_removed_while_calls_are_dialled_and_none_is_lost() {
    let trunks = Trunks::new(1.0, &file(&[trunk("berlin", 1), trunk("bonn", 1)], &json!([]))).await;
    let operator = Operator::start(trunks.options()).await;
    let ids: Vec<String> = (0..12).map(|number| format!("call-{number}")).collect();
    for id in &ids {
        trunks.publish(id, "+49", json!({})).await;
    }
    trunks.publish("held", "+49", json!({"trunk": "berlin", "priority": "bulk"})).await;
    trunks.setup.becomes("call-0", Status::Running).await;

    // A file that is not valid changes nothing.
    trunks.set_trunks("trunks: [{name: berlin, secret: s, max_active: 0}]");
    eventually("the error is told", PATIENCE, async || operator.log().contains("trunks[0].max_active")).await;

    trunks.set_trunks(&file(&[trunk("bonn", 4), trunk("world", 4)], &json!([])));
    for id in &ids {
        assert_eq!(trunks.setup.end_of(id).await.status, Status::Succeeded, "{id}");
        assert_eq!(trunks.setup.calls_with(id), 1, "{id}");
    }
    let state = eventually_some("a trunk that is gone is shown while something waits for it", PATIENCE, async || {
        let state = state_of(&operator, "bonn").await;
        (state["max_active"] == 4).then_some(state)
    })
    .await;
    assert_eq!(state["removed"], false);
    assert_eq!(trunks.setup.statuses("held").await, [Status::Queued], "no other trunk may dial it");
    let again = Timestamp::now();
    trunks.set_trunks(&file(&[trunk("berlin", 1), trunk("bonn", 4)], &json!([])));
    let end = trunks.setup.end_of("held").await;
    assert_eq!(end.trunk.as_deref(), Some("berlin"));
    assert!(end.created_at.unwrap() > again);
    accepted(&operator, &with(request("+49", "last"), json!({"id": "last"}))).await;
    assert_eq!(trunks.setup.end_of("last").await.status, Status::Succeeded);
    trunks.setup.queue_empties().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_of_a_trunk_is_cancelled_and_nothing_of_another() {
    let routes = json!([{"prefix": "1", "trunks": ["berlin", "bonn"]}, {"prefix": "2", "trunks": ["bonn"]}]);
    let trunks = Trunks::new(20.0, &file(&[trunk("berlin", 1), trunk("bonn", 1)], &routes)).await;
    let operator = Operator::start(trunks.options()).await;
    for (id, dest, status) in [("runs", "1", Status::Running), ("other", "2", Status::Running)] {
        trunks.publish(id, dest, json!({})).await;
        trunks.setup.becomes(id, status).await;
    }
    trunks.publish("waits", "1", json!({})).await;
    trunks.publish("later", "1", json!({"not_before": in_seconds(3600)})).await;
    trunks.publish("other-waits", "2", json!({})).await;
    trunks.setup.becomes("other-waits", Status::Queued).await;
    let cancelled = delete(operator.base(), "/trunks/berlin/jobs").await;
    assert_eq!(cancelled.status.as_u16(), 202);
    assert_eq!((&cancelled.json["cancelled"], &cancelled.json["cancelling"]), (&json!(2), &json!(1)), "{cancelled:?}");
    for id in ["runs", "waits", "later"] {
        assert_eq!(trunks.setup.end_of(id).await.status, Status::Cancelled, "{id}");
    }
    assert_eq!(trunks.setup.statuses("other-waits").await, [Status::Queued]);
    assert_eq!(delete(operator.base(), "/trunks/b.n/jobs").await.status.as_u16(), 422);
}

/// The state of a breaker is in the bucket, so it outlasts whoever dials.
#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_outlasts_a_restart_and_the_bucket_that_it_is_in() {
    let trunks = Trunks::new(0.1, &file(&[trunk("berlin", 3)], &json!([]))).await;
    let operator = Operator::start(trunks.options()).await;
    trunks.command(&["open", "berlin", "--why", "the provider moves"]).await;
    let is_open = async |operator: &Operator| state_of(operator, "berlin").await["breaker"]["state"] == "open";
    eventually("it is open", PATIENCE, async || is_open(&operator).await).await;
    trunks.setup.js.delete_key_value("SIP_OPERATOR").await.unwrap();
    let key = async || trunks.setup.js.get_key_value("SIP_OPERATOR").await.ok()?.get("breaker.berlin").await.ok()?;
    eventually_some("the key is there again", PATIENCE, key).await;
    let operator = operator.restart().await;
    eventually("it is still open", PATIENCE, async || is_open(&operator).await).await;
    trunks.publish("held", "+49", json!({})).await;
    trunks.setup.becomes("held", Status::Queued).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(trunks.setup.statuses("held").await, [Status::Queued]);
    trunks.command(&["close", "berlin"]).await;
    assert_eq!(trunks.setup.end_of("held").await.status, Status::Succeeded);
}
