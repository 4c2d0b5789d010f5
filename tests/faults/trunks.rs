//! Trunks under faults: however replicas and nats-server fail, no trunk is ever above its channels, counted from the outside by when the
//! callers ran.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use sipstuff_operator::call::Status;

use crate::support::process::Scratch;
use crate::support::{Operator, Setup, request, with};

const TRUNKS: [(&str, usize); 3] = [("berlin", 3), ("bonn", 7), ("world", 20)];
const CALLS: usize = 2000;

#[tokio::test(flavor = "multi_thread")]
async fn no_trunk_is_ever_above_its_channels_whatever_fails() {
    let setup = Setup::local(0.1).await;
    let files = Scratch::new("trunks");
    let trunks = TRUNKS
        .map(|(name, max_active)| json!({"name": name, "secret": format!("sip-{name}"), "max_active": max_active}));
    let routes: Vec<Value> =
        TRUNKS.iter().enumerate().map(|(n, (name, _))| json!({"prefix": n.to_string(), "trunks": [name]})).collect();
    std::fs::write(files.join("trunks.yaml"), json!({"trunks": trunks, "routes": routes}).to_string()).unwrap();
    let accounts = TRUNKS.map(|(name, _)| format!("[sip-{name}]\nSIP_SERVER=pbx\nSIP_USER={name}\nSIP_PASSWORD=x\n"));
    std::fs::write(files.join("secrets"), accounts.concat()).unwrap();
    let options = |setup: &Setup, machine: &str| {
        setup
            .options_of_machine(machine)
            .env("TRUNKS_FILE", files.join("trunks.yaml").display())
            .env("LOCAL_SECRETS_FILE", files.join("secrets").display())
            .env("RUST_LOG", "info")
    };
    let [mut one, two] = [Operator::start(options(&setup, "one")).await, Operator::start(options(&setup, "two")).await];
    for number in 0..CALLS {
        // As many for each trunk as it has channels.
        let trunk = match number % 30 {
            0..3 => 0,
            3..10 => 1,
            _ => 2,
        };
        let id = json!({"id": format!("call-{number}")});
        setup.publish(&[], with(request(&format!("{trunk}0"), "a"), id).to_string()).await;
        if number == CALLS / 2 {
            one = one.restart().await;
        }
    }
    setup.nats.kill();
    setup.nats.restart().await;
    one.freeze();
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    one.signal(nix::sys::signal::Signal::SIGCONT);
    let one = one.restart().await;
    for number in 0..CALLS {
        let end = setup.end_of(&format!("call-{number}")).await;
        assert!(matches!(end.status, Status::Succeeded), "{end:?}");
    }
    let most = most_at_once(&setup);
    for (name, channels) in TRUNKS {
        assert!(most[name] <= channels, "{name} has {channels} channels, and {} calls at once", most[name]);
    }
    assert!(most["world"] > 7, "the limits are those of the trunks: {most:?}");
    setup.queue_empties().await;
    drop((one, two));
}

/// How many callers of each account ran at once, at most, by their own notes of when they began and ended.
fn most_at_once(setup: &Setup) -> BTreeMap<String, usize> {
    let mut moments: Vec<(Timestamp, bool, String)> = setup
        .notes()
        .into_iter()
        .map(|note| {
            let time = note["time"].as_str().expect("a time").parse().expect("a timestamp");
            (time, note["event"] == "start", note["user"].as_str().expect("an account").to_owned())
        })
        .collect();
    moments.sort();
    let (mut now, mut most) = (BTreeMap::<String, usize>::new(), BTreeMap::<String, usize>::new());
    for (_, begins, user) in moments {
        let count = now.entry(user.clone()).or_default();
        *count = if begins { *count + 1 } else { *count - 1 };
        let peak = most.entry(user).or_default();
        *peak = (*peak).max(*count);
    }
    most
}
