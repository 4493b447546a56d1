//! The folder that holds everything the all-in-one keeps, held by one process at a time.

use std::{
    fs::{self, File, TryLockError},
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
};

use tbmq_service::shell::Misconfigured;

/// An existing data folder that no other process uses. The operating system ends the hold when the process ends,
/// however it does.
#[derive(Debug)]
pub(crate) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder if it is not there, for its owner only, and takes hold of it. Does not wait.
    pub(crate) fn open(path: &Path) -> Result<Self, Misconfigured> {
        let unusable = |what: &str, error: std::io::Error| {
            Misconfigured::new(format!("{what} data directory {} (TBMQ_DATA_DIR): {error}", path.display()))
        };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true);
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder.create(path).map_err(|error| unusable("can't create", error))?;
        let path = path.canonicalize().map_err(|error| unusable("can't find", error))?;
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("lock"))
            .map_err(|error| unusable("can't write to", error))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                // Who it is helps; that it is somebody is enough.
                lock.take(64).read_to_string(&mut holder).ok();
                let holder = holder.trim();
                let holder = if holder.is_empty() { String::new() } else { format!(" (process {holder})") };
                return Err(Misconfigured::new(format!(
                    "data directory {} is in use by another tbmq{holder}; give this one another --data-dir",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(unusable("can't lock", error)),
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(|error| unusable("can't write to", error))?;
        Ok(Self { path, _lock: lock })
    }

    /// Where the embedded bus keeps its log.
    pub(crate) fn bus(&self) -> PathBuf {
        self.path.join("bus")
    }

    /// Where clients' sessions are kept that outlive their connections.
    pub(crate) fn sessions(&self) -> PathBuf {
        self.path.join("sessions")
    }

    /// The control plane's SQLite database.
    pub(crate) fn database(&self) -> PathBuf {
        self.path.join("control.db")
    }

    /// The key that secrets are sealed with when none is configured.
    pub(crate) fn secrets_key(&self) -> PathBuf {
        self.path.join("secrets.key")
    }

    /// Writes that key, for its owner only. It is there as a whole or not at all.
    pub(crate) fn write_secrets_key(&self, key: &str) -> std::io::Result<()> {
        let unfinished = self.path.join("secrets.key.new");
        let mut options = File::options();
        options.create(true).truncate(true).write(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(&unfinished)?;
        writeln!(file, "{key}")?;
        file.sync_all()?;
        fs::rename(&unfinished, self.secrets_key())?;
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_can_not_share_a_folder_and_the_second_is_told_who_holds_it() {
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("a/b");
        let first = DataDir::open(&path).unwrap();
        let text = DataDir::open(&path).unwrap_err().to_string();
        assert!(text.contains("is in use by another tbmq"), "{text}");
        assert!(text.contains(&format!("(process {})", std::process::id())), "{text}");
        drop(first);
        DataDir::open(&path).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_new_folder_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let path = parent.path().join("data");
        let _held = DataDir::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[cfg(unix)]
    #[test]
    fn the_key_of_secrets_is_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let held = DataDir::open(parent.path()).unwrap();
        held.write_secrets_key("a:b").unwrap();
        assert_eq!(fs::read_to_string(held.secrets_key()).unwrap(), "a:b\n");
        assert_eq!(fs::metadata(held.secrets_key()).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_can_not_be_made_is_a_bad_configuration() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = DataDir::open(&file.path().join("x")).unwrap_err().to_string();
        assert!(text.starts_with("can't create data directory"), "{text}");
    }
}
