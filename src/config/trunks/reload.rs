//! Reads `TRUNKS_FILE` again when it changes. It looks at the content every two seconds: a ConfigMap is swapped by a symbolic link
//! in another folder, which watches of the file system miss.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{LiveTrunks, parse, read};
use crate::config::BadSetting;
use crate::policy::Trunks;
use crate::policy::routes::Difference;

/// How often it looks.
const EVERY: Duration = Duration::from_secs(2);

/// What keeps the trunks as their file says.
pub struct Reload {
    path: PathBuf,
    /// What was read last: the same again is not told again, be it good or bad.
    seen: Result<String, String>,
    trunks: watch::Sender<Arc<Trunks>>,
}

impl Reload {
    /// Reads the file for the first time.
    ///
    /// # Errors
    /// [`BadSetting`] with everything that is wrong with it.
    pub fn open(path: PathBuf) -> Result<(LiveTrunks, Self), BadSetting> {
        let named = |error: String| BadSetting(format!("TRUNKS_FILE {}: {error}", path.display()));
        let text = read(&path).map_err(named)?;
        let trunks = parse(&text).map_err(|error| named(error.to_string()))?;
        let (sender, receiver) = watch::channel(Arc::new(trunks));
        Ok((receiver, Self { path, seen: Ok(text), trunks: sender }))
    }

    /// Looks until `stop`. A file that is not good changes nothing.
    pub async fn run(mut self, stop: CancellationToken) {
        while stop.run_until_cancelled(tokio::time::sleep(EVERY)).await.is_some() {
            let path = self.path.clone();
            match tokio::task::spawn_blocking(move || read(&path)).await {
                Ok(found) => {
                    let taken = self.take(found);
                    log(&self.path, taken);
                }
                Err(error) => tracing::error!(%error, "TRUNKS_FILE could not be looked at"),
            }
        }
    }

    /// Takes what was found in the file.
    fn take(&mut self, found: Result<String, String>) -> Taken {
        if found == self.seen {
            return Taken::Same;
        }
        self.seen = found;
        let parsed = match &self.seen {
            Ok(text) => parse(text).map_err(|error| error.to_string()),
            Err(error) => Err(error.clone()),
        };
        match parsed {
            Ok(trunks) => {
                let difference = self.trunks.borrow().difference(&trunks);
                if !difference.is_empty() {
                    self.trunks.send_replace(Arc::new(trunks));
                }
                Taken::Good(difference)
            }
            Err(error) => Taken::Bad(error),
        }
    }
}

/// What came of a look.
#[derive(Debug, PartialEq)]
enum Taken {
    /// Nothing: it is what was found before.
    Same,
    /// In force from now on.
    Good(Difference),
    /// What was in force before still is.
    Bad(String),
}

fn log(path: &Path, taken: Taken) {
    let path = path.display();
    match taken {
        Taken::Same => {}
        Taken::Good(difference) if difference.is_empty() => {
            tracing::info!(%path, "TRUNKS_FILE has changed and says the same as what is in force");
        }
        Taken::Good(Difference { added, removed, resized, changed, routes }) => {
            let named = |names: Vec<String>| (!names.is_empty()).then(|| names.join(", "));
            tracing::info!(
                %path,
                added = named(added),
                removed = named(removed),
                resized = named(resized),
                changed = named(changed),
                routes = routes.then_some("changed"),
                "TRUNKS_FILE has changed and is in force"
            );
        }
        Taken::Bad(error) => {
            tracing::error!(%path, error, "TRUNKS_FILE is not valid: the trunks stay as they are until it is mended");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::fs;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    const ONE: &str = "trunks: [{name: a, secret: s, max_active: 3}]\n";
    const TWO: &str = "trunks: [{name: a, secret: s, max_active: 7}, {name: b, secret: s, max_active: 1}]\n";

    /// A ConfigMap as the kubelet mounts it: the file is a link into `..data`, a link to a folder, which is swapped.
    struct ConfigMap {
        folder: TempDir,
        versions: u32,
    }

    impl ConfigMap {
        fn with(text: &str) -> Self {
            let folder = tempfile::tempdir().unwrap();
            symlink("..data/trunks.yaml", folder.path().join("trunks.yaml")).unwrap();
            let mut map = Self { folder, versions: 0 };
            map.set(text);
            map
        }

        fn set(&mut self, text: &str) {
            self.versions += 1;
            let version = format!("..version-{}", self.versions);
            fs::create_dir(self.folder.path().join(&version)).unwrap();
            fs::write(self.folder.path().join(&version).join("trunks.yaml"), text).unwrap();
            symlink(version, self.folder.path().join("..new")).unwrap();
            fs::rename(self.folder.path().join("..new"), self.folder.path().join("..data")).unwrap();
        }

        fn file(&self) -> PathBuf {
            self.folder.path().join("trunks.yaml")
        }
    }

    fn names(trunks: &LiveTrunks) -> Vec<String> {
        trunks.borrow().iter().map(|trunk| trunk.name.clone()).collect()
    }

    #[test]
    fn a_good_file_is_in_force_at_once_and_a_bad_one_changes_nothing_and_is_told_once() {
        let mut map = ConfigMap::with(ONE);
        let (mut trunks, mut reload) = Reload::open(map.file()).unwrap();
        let look = |reload: &mut Reload| {
            let found = read(&reload.path);
            reload.take(found)
        };
        assert_eq!(look(&mut reload), Taken::Same);

        map.set("trunks: [{name: a, secret: s, max_active: 0}]\n");
        let Taken::Bad(error) = look(&mut reload) else { panic!("a bad file") };
        assert!(error.starts_with("line 1, trunks[0].max_active: 0 is not valid"), "{error}");
        assert_eq!(look(&mut reload), Taken::Same);
        fs::remove_file(map.file()).unwrap();
        assert!(matches!(look(&mut reload), Taken::Bad(_)));
        assert_eq!(look(&mut reload), Taken::Same);
        assert!(!trunks.has_changed().unwrap());

        symlink("..data/trunks.yaml", map.file()).unwrap();
        map.set(ONE);
        assert_eq!(look(&mut reload), Taken::Good(Difference::default()), "mended, and as it was");
        assert!(!trunks.has_changed().unwrap());

        map.set(TWO);
        let difference = Difference {
            added: vec!["b".to_owned()],
            resized: vec!["a: 3 to 7".to_owned()],
            routes: true,
            ..Difference::default()
        };
        assert_eq!(look(&mut reload), Taken::Good(difference));
        assert!(trunks.has_changed().unwrap());
        assert_eq!(names(&trunks), ["a", "b"]);
        trunks.mark_unchanged();

        map.set("trunks: [{name: b, secret: s, max_active: 1}]\n");
        assert!(matches!(look(&mut reload), Taken::Good(difference) if difference.removed == ["a"]));
        assert_eq!(names(&trunks), ["b"]);
    }

    #[tokio::test]
    async fn it_looks_by_itself_until_it_is_stopped() {
        let mut map = ConfigMap::with(ONE);
        let (mut trunks, reload) = Reload::open(map.file()).unwrap();
        let stop = CancellationToken::new();
        let running = tokio::spawn(reload.run(stop.clone()));
        map.set(TWO);
        tokio::time::timeout(Duration::from_secs(30), trunks.changed()).await.unwrap().unwrap();
        assert_eq!(names(&trunks), ["a", "b"]);
        stop.cancel();
        running.await.unwrap();
    }

    #[test]
    fn a_file_that_is_not_good_at_the_start_is_an_error_with_its_name() {
        let map = ConfigMap::with("trunks: []\n");
        let error = Reload::open(map.file()).err().unwrap().to_string();
        assert!(error.starts_with("TRUNKS_FILE ") && error.contains("has no trunk"), "{error}");
    }
}
