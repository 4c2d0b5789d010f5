//! What an operator finds in its state directory when it starts.

use std::time::SystemTime;

use k8s_openapi::api::batch::v1::Job;
use tokio::sync::broadcast;

use super::{CHANGES, Entry, Fleet, Known, Stop, observed, waiting};
use crate::call::{CallId, Fingerprint};
use crate::job::{ANNOTATION_ATTEMPT, ANNOTATION_FINGERPRINT, ANNOTATION_ID, Observed};
use crate::runner::StartError;
use crate::runner::local::LocalSettings;
use crate::runner::local::folder::About;
use crate::runner::local::state_dir::{OpenError, StateDir};

/// What a folder means to an operator that did not create it.
enum Found {
    /// Nobody was called and nobody will be: as if it had never been claimed.
    Nothing,
    /// An attempt, and when it was settled.
    Attempt(Box<Entry>, Option<SystemTime>),
}

impl Fleet {
    /// Locks the state directory and reads every folder in it; also returns the directory's identity.
    pub(in crate::runner::local) fn open(settings: LocalSettings) -> Result<(Self, String), OpenError> {
        let caller = settings.caller.as_deref().map(words).transpose()?;
        let dir = StateDir::lock(&settings.state_dir)?;
        let wrap = |error| OpenError::StateDir(settings.state_dir.display().to_string(), error);
        let identity = dir.identity().map_err(wrap)?;
        let known = adopt(&dir, settings.ttl).map_err(wrap)?;
        let (changes, _) = broadcast::channel(CHANGES);
        let fleet = Self {
            dir,
            caller,
            settings,
            known: known.into(),
            changes,
            wake: Default::default(),
            removing: Default::default(),
        };
        fleet.secrets()?;
        // So that the first full list includes what has ended meanwhile.
        fleet.poll();
        Ok((fleet, identity))
    }
}

fn words(caller: &str) -> Result<Vec<String>, OpenError> {
    shlex::split(caller).filter(|words| !words.is_empty()).ok_or_else(|| OpenError::Caller(caller.to_owned()))
}

fn adopt(dir: &StateDir, ttl: std::time::Duration) -> std::io::Result<Known> {
    let mut known = Known::default();
    for job in dir.jobs()? {
        match find(dir, &job) {
            Ok(Found::Nothing) => dir.discard(&job)?,
            Ok(Found::Attempt(entry, settled)) => {
                match (&entry.observed.state, settled) {
                    (Observed::Ended(_), Some(since)) => known.expiring.push_back((since + ttl, job.clone())),
                    (Observed::Ended(_), None) => {}
                    _ => drop(known.live.insert(job.clone())),
                }
                known.jobs.insert(job, *entry);
            }
            // It is kept: what cannot be read may have been a call.
            Err(error) => {
                tracing::error!(job, %error, "cannot read the folder of an attempt; it is kept, and its name stays in use")
            }
        }
    }
    known.expiring.make_contiguous().sort();
    Ok(known)
}

fn find(dir: &StateDir, job: &str) -> std::io::Result<Found> {
    let folder = dir.folder(job);
    // Checked first: what a supervisor leaves behind is complete only once it is gone.
    let is_gone = folder.supervisor_is_gone()?;
    let exit = folder.exit()?.filter(|_| is_gone);
    if is_gone && exit.is_none() && !folder.was_launched()? {
        return Ok(Found::Nothing);
    }
    let is_stopped = folder.is_stopped()?;
    if is_stopped && exit.as_ref().is_some_and(|exit| !exit.succeeded()) {
        return Ok(Found::Nothing);
    }
    let state = match (exit, folder.started()?) {
        (Some(exit), _) => Observed::Ended(exit.into()),
        (None, Some(started)) => Observed::Running { started_at: started.at },
        (None, None) => waiting(),
    };
    let about = folder.about()?.ok_or(std::io::ErrorKind::NotFound)?;
    let settled = folder.settled()?;
    let observed = observed(job, about, state, settled.is_some());
    let stop = is_stopped.then(Stop::default);
    Ok(Found::Attempt(Box::new(Entry { observed, supervisor: None, stop }), settled))
}

/// The name of a Job, if it is valid as the name of a folder, and the attempt in its annotations.
pub(super) fn about_of(job: &Job) -> Result<(&str, About), StartError> {
    let refused = |what: &str| StartError::Refused(format!("the Job has no valid {what}"));
    let is_label = |name: &&str| {
        (1..=63).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
    };
    let name = job.metadata.name.as_deref().filter(is_label).ok_or_else(|| refused("name"))?;
    let annotation = |key: &str| job.metadata.annotations.as_ref()?.get(key).map(String::as_str);
    let about = About {
        id: annotation(ANNOTATION_ID).and_then(|id| CallId::parse(id).ok()).ok_or_else(|| refused(ANNOTATION_ID))?,
        attempt: annotation(ANNOTATION_ATTEMPT)
            .and_then(|attempt| attempt.parse().ok())
            .ok_or_else(|| refused(ANNOTATION_ATTEMPT))?,
        fingerprint: annotation(ANNOTATION_FINGERPRINT)
            .map(Fingerprint::from_annotation)
            .ok_or_else(|| refused(ANNOTATION_FINGERPRINT))?,
    };
    Ok((name, about))
}
