//! Whole directories of pages: created, replaced, set aside. Each change is durable when the function
//! returns, and after a crash either done or not done, once `settle` has run.
//!
//! Names beside `<dir>`: `<dir>.new` is being created and means nothing; `<dir>.old` is being replaced, and
//! is the live one while `<dir>` is missing; `<dir>.unreadable-<n>` are for the operator. A snapshot is
//! staged in a directory of the caller's choice, which means nothing after a crash.

use std::{
    ffi::OsString,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(suffix);
    PathBuf::from(name)
}

/// Makes the names in the directory that holds `path` durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

/// Makes everything below `path` durable.
pub(super) fn sync_tree(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        for child in fs::read_dir(path)? {
            sync_tree(&child?.path())?;
        }
    }
    File::open(path)?.sync_all()
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Finishes or undoes what a crash interrupted. Must be called before `dir` is opened.
pub(super) fn settle(dir: &Path) -> io::Result<()> {
    let old = beside(dir, ".old");
    if old.exists() {
        if dir.exists() {
            remove_if_present(&old)?;
        } else {
            fs::rename(&old, dir)?;
            sync_parent(dir)?;
        }
    }
    remove_if_present(&beside(dir, ".new"))
}

/// Creates `dir`, filled by `fill`, so that after a crash it is whole or missing.
pub(super) fn create(dir: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::create_dir_all(parent)?;
        sync_parent(parent)?;
    }
    let new = beside(dir, ".new");
    fill(&new)?;
    sync_tree(&new)?;
    fs::rename(&new, dir)?;
    sync_parent(dir)
}

/// Puts the directory `staged` in the place of `live`, which may be missing. Both must be closed, and must
/// have the same parent. After a crash `live` is the old or the new one when it is opened; once this returns
/// Ok it is the new one for good. Until then nothing may be purged that only the new one makes superfluous.
pub(crate) fn replace(live: &Path, staged: &Path) -> io::Result<()> {
    sync_tree(staged)?;
    let old = beside(live, ".old");
    remove_if_present(&old)?;
    if live.exists() {
        fs::rename(live, &old)?;
        // A crash here leaves no `live`: `settle` brings the old one back.
        sync_parent(live)?;
    }
    fs::rename(staged, live)?;
    sync_parent(live)?;
    remove_if_present(&old)
}

/// Renames an unreadable directory to a free `<dir>.unreadable-<n>`, and returns that name.
pub(crate) fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let free = (1_u32..).map(|n| beside(dir, &format!(".unreadable-{n}"))).find(|path| !path.exists());
    let aside = free.expect("there are fewer than 4 Gi directories");
    match fs::rename(dir, &aside) {
        // It was renamed before, and what should have followed did not happen.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    sync_parent(dir)?;
    Ok(aside)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn make(path: &Path, content: &str) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join("content"), content).unwrap();
    }

    fn content(path: &Path) -> String {
        fs::read_to_string(path.join("content")).unwrap()
    }

    #[test]
    fn every_crash_point_of_a_replacement_settles_to_old_or_new() {
        let parent = TempDir::new().unwrap();
        let (live, staged) = (parent.path().join("pages"), parent.path().join("staged"));
        let old = beside(&live, ".old");
        // Before the second rename.
        make(&old, "old");
        make(&staged, "new");
        settle(&live).unwrap();
        assert_eq!(content(&live), "old");
        // Before the old one is removed.
        make(&old, "older");
        settle(&live).unwrap();
        assert_eq!((content(&live).as_str(), old.exists()), ("old", false));
        // Creation interrupted.
        make(&beside(&live, ".new"), "half");
        settle(&live).unwrap();
        assert!(!beside(&live, ".new").exists());
        // Not interrupted.
        replace(&live, &staged).unwrap();
        assert_eq!((content(&live).as_str(), old.exists(), staged.exists()), ("new", false, false));
    }

    #[test]
    fn unreadable_directories_do_not_overwrite_each_other() {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("pages");
        for n in 1..4 {
            make(&dir, &n.to_string());
            let aside = set_aside(&dir).unwrap();
            assert_eq!(aside, parent.path().join(format!("pages.unreadable-{n}")));
            assert_eq!(content(&aside), n.to_string());
        }
    }
}
