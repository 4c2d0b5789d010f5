//! The state directory as a whole: who uses it, its identity, and where folders are created and removed.
//!
//! `operator.lock` · `identity` · `jobs/<job>/` · `new/` (folders that are not claims yet) · `trash/` (folders on
//! their way out). A folder enters and leaves `jobs` by one rename, so it is never seen half made.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use super::folder::{About, Folder, open_lock, sync_folder};
use super::secrets::SecretsError;

/// How often, and after which pauses, to try for the lock: an operator that is shutting down may still hold it.
const HANDOVER_TRIES: u32 = 20;
const HANDOVER_PAUSE: Duration = Duration::from_millis(50);

/// Why the local runner cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another operator uses the state directory.
    #[error("the state directory {0} is in use by another operator; give each one its own STATE_DIR")]
    InUse(String),
    /// The state directory cannot be used.
    #[error("cannot use the state directory {0}: {1}")]
    StateDir(String, io::Error),
    /// `LOCAL_CALLER` is not a command.
    #[error("LOCAL_CALLER `{0}` cannot be split into words; accepted: a command in shell syntax with balanced quotes")]
    Caller(String),
    /// The secrets file cannot be used.
    #[error(transparent)]
    Secrets(#[from] SecretsError),
    /// A bug.
    #[error("opening the local runner panicked: {0}")]
    Panicked(String),
}

impl OpenError {
    pub(super) fn panicked(error: tokio::task::JoinError) -> Self {
        Self::Panicked(error.to_string())
    }
}

/// The state directory, locked by this process until this is dropped.
#[derive(Debug)]
pub(super) struct StateDir {
    path: PathBuf,
    serial: AtomicU64,
    _held: File,
}

impl StateDir {
    /// Creates the directory if it is missing, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, OpenError> {
        let wrap = |error| OpenError::StateDir(path.display().to_string(), error);
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(wrap)?;
        let held = hold(path)?;
        // Supervisors may have another working directory.
        let path = path.canonicalize().map_err(wrap)?;
        let dir = Self { path, serial: AtomicU64::new(0), _held: held };
        dir.tidy().map_err(wrap)?;
        Ok(dir)
    }

    fn tidy(&self) -> io::Result<()> {
        for name in ["new", "trash"] {
            let path = self.path.join(name);
            if path.try_exists()? {
                fs::remove_dir_all(&path)?;
            }
            fs::create_dir(&path)?;
        }
        DirBuilder::new().recursive(true).create(self.path.join("jobs"))
    }

    /// Whether a file can be written.
    pub(super) fn probe(&self) -> io::Result<()> {
        let path = self.unique("new", "probe");
        fs::write(&path, b"probe")?;
        fs::remove_file(path)
    }

    /// The identity of this machine's state, created with the directory.
    pub(super) fn identity(&self) -> io::Result<String> {
        let path = self.path.join("identity");
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => return Ok(text.trim().to_owned()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let identity = format!("local-{}", uuid::Uuid::now_v7().simple());
        let draft = self.path.join("new").join("identity");
        fs::write(&draft, format!("{identity}\n"))?;
        File::open(&draft)?.sync_all()?;
        fs::rename(&draft, path)?;
        sync_folder(&self.path)?;
        Ok(identity)
    }

    pub(super) fn folder(&self, job: &str) -> Folder {
        Folder::at(self.path.join("jobs").join(job))
    }

    /// Names of all Jobs that have a folder.
    pub(super) fn jobs(&self) -> io::Result<Vec<String>> {
        let entries = fs::read_dir(self.path.join("jobs"))?;
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
    }

    /// Claims the name of a Job: returns its folder and the lock, acquired, or `None` when the folder exists. The
    /// rename is the claim, since it fails where a folder that is not empty exists.
    pub(super) fn claim(&self, job: &str, about: &About) -> io::Result<Option<(Folder, File)>> {
        let draft = Folder::at(self.unique("new", job));
        fs::create_dir(draft.path())?;
        draft.write_about(about)?;
        let lock = draft.acquire_lock()?;
        let folder = self.folder(job);
        match fs::rename(draft.path(), folder.path()) {
            Ok(()) => Ok(Some((folder, lock))),
            Err(error) if already_exists(&error) => fs::remove_dir_all(draft.path()).map(|()| None),
            Err(error) => Err(error),
        }
    }

    /// Removes a folder; does nothing when it is gone.
    pub(super) fn discard(&self, job: &str) -> io::Result<()> {
        let trash = self.unique("trash", job);
        match fs::rename(self.folder(job).path(), &trash) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => fs::remove_dir_all(&trash),
        }
    }

    fn unique(&self, parent: &str, job: &str) -> PathBuf {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        self.path.join(parent).join(format!("{job}.{serial}"))
    }
}

fn hold(path: &Path) -> Result<File, OpenError> {
    let wrap = |error| OpenError::StateDir(path.display().to_string(), error);
    let file = open_lock(&path.join("operator.lock")).map_err(wrap)?;
    for _ in 0..HANDOVER_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => thread::sleep(HANDOVER_PAUSE),
            Err(TryLockError::Error(error)) => return Err(wrap(error)),
        }
    }
    Err(OpenError::InUse(path.display().to_string()))
}

fn already_exists(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists)
}
