//! Whether a power loss may lose what NATS has acknowledged, as `conntest` and `/readyz` report it. For information
//! only: nothing waits for it, and nothing is refused because of it.

use std::time::Duration;

use jiff::SignedDuration;

use crate::api::Api;
use crate::config::MonitoringUrls;
use crate::nats::monitoring::{self, MonitoringError, Sync};

/// How often the server is asked: it may be restarted with another configuration.
const EVERY: Duration = Duration::from_secs(60);

/// What is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durability {
    /// False only when every server syncs before it acknowledges.
    pub is_warning: bool,
    /// In words.
    pub text: String,
}

/// Asks the servers, if their monitoring addresses are known.
pub async fn ask(urls: Option<&MonitoringUrls>) -> Durability {
    match urls {
        Some(MonitoringUrls(urls)) => words(monitoring::sync_of(urls).await),
        None => Durability {
            is_warning: true,
            text: "it is not known whether nats-server syncs before it acknowledges: set NATS_MONITORING_URL to its \
                   monitoring port (`http_port`, such as http://nats:8222)"
                .to_owned(),
        },
    }
}

fn words(answer: Result<Sync, MonitoringError>) -> Durability {
    let (is_warning, text) = match answer {
        Ok(Sync::Always) => (false, "nats-server syncs before it acknowledges".to_owned()),
        Ok(Sync::Every(interval)) => (true, interval_words(interval)),
        Err(error) => (
            true,
            format!("it is not known whether nats-server syncs before it acknowledges: NATS_MONITORING_URL {error}"),
        ),
    };
    Durability { is_warning, text }
}

fn interval_words(interval: Duration) -> String {
    let interval = SignedDuration::try_from(interval).unwrap_or(SignedDuration::MAX);
    format!(
        "nats-server syncs every {interval:#}: a power loss may lose calls acknowledged in that time; set `jetstream {{ \
         sync_interval: always }}` in its configuration"
    )
}

/// Keeps what `/readyz` reports up to date, and logs each change.
pub async fn watch(urls: Option<MonitoringUrls>, api: Api) {
    let mut last = None;
    loop {
        let now = ask(urls.as_ref()).await;
        if last.as_ref() != Some(&now) {
            api.set_nats_remark(Some(now.text.clone()));
            match now.is_warning && urls.is_some() {
                true => tracing::warn!("{}", now.text),
                false => tracing::info!("{}", now.text),
            }
            last = Some(now);
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_warning_that_says_what_to_set() {
        let Durability { is_warning, text } = words(Ok(Sync::Every(Duration::from_secs(120))));
        assert!(
            is_warning && text.contains("every 2m: a power loss") && text.contains("sync_interval: always"),
            "{text}"
        );
        assert!(!words(Ok(Sync::Always)).is_warning);
    }

    #[tokio::test]
    async fn without_an_address_it_is_not_known_and_the_text_says_what_to_set() {
        let Durability { is_warning, text } = ask(None).await;
        assert!(is_warning && text.contains("NATS_MONITORING_URL"), "{text}");
    }
}
