//! One process at a time has a shard of a run directory: temporary names and what is removed at the start rest on it.
//!
//! The lock is the system's (`flock`), so that it ends with its process, however that ends. NFS passes it on to its server, unless it
//! was mounted with `nolock` or `local_lock`; where there are no locks at all, a note says so.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::host::machine;
use crate::run::progress::{self, Event};
use crate::run::shard::Shard;

/// Held for as long as it lives.
pub(crate) struct Lock(Option<File>);

fn path(folder: &Path, shard: Shard) -> PathBuf {
    folder.join(format!(".{}of{}.lock", shard.index, shard.count))
}

/// The shard that is written `0of4` in names of files.
pub(crate) fn named(text: &str) -> Option<Shard> {
    let (index, count) = text.split_once("of")?;
    Some(Shard { index: index.parse().ok()?, count: count.parse().ok()? })
}

/// Takes a shard of the run in `folder`, which is made if it is not there; an error says who has it.
pub(crate) fn take(folder: &Path, shard: Shard) -> Result<Lock> {
    let path = path(folder, shard);
    let open = || {
        fs::create_dir_all(folder)?;
        OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)
    };
    let mut file = open().with_context(|| format!("cannot write {}", path.display()))?;
    // Whoever starts looks for a moment at the locks of others, see `is_taken`.
    let mut found = file.try_lock();
    for _ in 0..5 {
        if !matches!(found, Err(TryLockError::WouldBlock)) {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        found = file.try_lock();
    }
    match found {
        Ok(()) => (),
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // Whoever took it may not have written who he is yet.
            let _ = file.read_to_string(&mut holder);
            let holder = if holder.is_empty() { "another process" } else { holder.trim() };
            let expected = "expected one at a time; wait for it, give this one another --out, or share the images by --shard";
            bail!("{}: {holder} is at work on shard {shard} of this run; {expected}", folder.display());
        }
        Err(TryLockError::Error(error)) => {
            let text = format!("{}: no locks here ({error}); see to it that no other process works on the same shard", path.display());
            progress::say(&Event::Note { text: &text });
            return Ok(Lock(None));
        }
    }
    let holder = format!("process {} on {}\n", std::process::id(), machine::host());
    // Only for the message above.
    let _ = file.set_len(0).and_then(|()| file.write_all(holder.as_bytes()));
    Ok(Lock(Some(file)))
}

/// Whether a process is at work on a shard.
pub(crate) fn is_taken(folder: &Path, shard: Shard) -> bool {
    File::open(path(folder, shard)).is_ok_and(|file| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock)))
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            // Nobody has it from here on; closing it would do the same.
            let _ = file.set_len(0).and_then(|()| file.unlock());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_has_one_process() {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (Shard { index: 0, count: 2 }, Shard { index: 1, count: 2 });
        let held = take(dir.path(), first).unwrap();
        let message = take(dir.path(), first).err().unwrap().to_string();
        let expected = format!("process {} on ", std::process::id());
        assert!(message.contains(&expected) && message.contains("is at work on shard 0/2"), "{message}");
        let _other = take(dir.path(), second).unwrap();
        assert!(is_taken(dir.path(), first) && is_taken(dir.path(), second) && !is_taken(dir.path(), Shard::WHOLE));
        drop(held);
        assert!(!is_taken(dir.path(), first));
        take(dir.path(), first).unwrap();
    }
}
