//! `GET /metrics`: what the api knows, as OpenMetrics text. The gauges are read at scrape time, so that nothing has to
//! be updated on the hot path.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::api::{Api, BreakerState, QueueState, TrunkState};
use crate::call::Status;

/// Media type of the answer (OpenMetrics 1.0).
pub(super) const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    status: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TrunkLabel {
    trunk: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CheckLabel {
    check: &'static str,
}

/// All metrics as of now.
pub(super) fn text(api: &Api) -> String {
    let mut registry = Registry::with_prefix("sipstuff");
    calls(&mut registry, api);
    checks(&mut registry, api);
    if let Some(state) = api.queue_state() {
        queue(&mut registry, state);
    }
    trunks(&mut registry, &api.trunks().unwrap_or_default());
    let mut text = String::new();
    // Writing into a String cannot fail.
    let _ = encode(&mut text, &registry);
    text
}

fn calls(registry: &mut Registry, api: &Api) {
    let family = Family::<StatusLabel, Gauge>::default();
    registry.register("calls", "Calls in the index, by status", family.clone());
    for status in Status::ALL {
        set(&family.get_or_create(&StatusLabel { status: status.as_str() }), api.count_of(status) as u64);
    }
}

fn checks(registry: &mut Registry, api: &Api) {
    let family = Family::<CheckLabel, Gauge>::default();
    registry.register("ready", "1 if a dependency of the operator is ready", family.clone());
    for check in api.readiness() {
        set(&family.get_or_create(&CheckLabel { check: check.name }), u64::from(check.ready));
    }
}

fn queue(registry: &mut Registry, state: QueueState) {
    let QueueState { backlog, in_progress, max_in_progress, paused, .. } = state;
    let mut gauge = |name: &str, help: &str, value: u64| {
        let gauge = Gauge::<i64>::default();
        set(&gauge, value);
        registry.register(name, help, gauge);
    };
    gauge("queue_backlog", "Calls waiting to be dialled", backlog);
    gauge("queue_in_progress", "Calls in progress, across all replicas", in_progress);
    gauge(
        "queue_max_in_progress",
        "Maximum number of calls in progress at once",
        u64::try_from(max_in_progress).unwrap_or(0),
    );
    gauge("queue_paused", "1 while dialling is paused", u64::from(paused));
}

fn trunks(registry: &mut Registry, states: &[TrunkState]) {
    let mut family = |name: &str, help: &str, value: fn(&TrunkState) -> u64| {
        let family = Family::<TrunkLabel, Gauge>::default();
        registry.register(name, help, family.clone());
        for state in states {
            set(&family.get_or_create(&TrunkLabel { trunk: state.name.clone() }), value(state));
        }
    };
    family("trunk_in_progress", "Calls in progress, by trunk, across all replicas", |state| state.in_progress);
    family("trunk_max_in_progress", "Maximum number of calls in progress at once, by trunk", |state| state.max_active);
    family("trunk_waiting", "Calls waiting for a trunk before any other", |state| state.waiting);
    family(
        "trunk_breaker_open",
        "1 while nothing is dialled on a trunk, since its breaker is open or half open",
        |state| u64::from(state.breaker.state != BreakerState::Closed),
    );
}

fn set(gauge: &Gauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_and_check_has_its_gauge() {
        let text = text(&Api::default());
        for status in Status::ALL {
            assert!(text.contains(&format!("sipstuff_calls{{status=\"{status}\"}} 0\n")), "{text}");
        }
        assert!(text.contains("sipstuff_ready{check=\"nats\"} 0\n") && text.ends_with("# EOF\n"), "{text}");
    }
}
