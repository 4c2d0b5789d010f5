//! Status events as other programs read them.

use crate::support::{PATIENCE, Setup, request_of};

#[tokio::test(flavor = "multi_thread")]
async fn every_status_event_is_a_cloud_event() {
    let setup = Setup::local(0.2).await;
    let _operator = setup.operator().await;
    setup.publish(&[], request_of("cloud").to_string()).await;
    setup.events.final_of("cloud", PATIENCE).await;
    let heard = setup.events.heard();
    assert_eq!(heard.len(), 4);
    for heard in heard {
        let header = |name: &str| heard.headers.get(name).unwrap_or_else(|| panic!("no {name}")).as_str().to_owned();
        let event = &heard.event;
        assert_eq!((header("ce-specversion"), header("content-type")), ("1.0".into(), "application/json".into()));
        assert_eq!(header("ce-id"), format!("{}/{}", event.name, event.revision));
        assert_eq!(header("ce-type"), format!("sipstuff.call.{}", event.status));
        assert_eq!((header("ce-subject"), header("ce-time")), (event.name.to_string(), event.time.to_string()));
        let source = if event.attempt == 0 { "/sipstuff-operator" } else { "/sipstuff-operator/local-" };
        assert!(header("ce-source").starts_with(source));
        assert_eq!(heard.subject, "sip.status");
        assert_eq!(header("Nats-Subject"), format!("sip.status.{}", event.name));
        for server_side in ["Nats-Sequence", "Nats-Last-Sequence"] {
            header(server_side).parse::<u64>().unwrap();
        }
    }
}
