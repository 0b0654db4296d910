//! Whole directories of pages: created, replaced, set aside, put back. Each change is durable when the function
//! returns, and after a crash either done or not done, once `settle` has run.
//!
//! Names beside `<dir>`: `<dir>.new` is being created and means nothing; `<dir>.old` is being replaced, and
//! is the live one while `<dir>` is missing. `<dir>.unreadable-<n>` could not be read once, and is tried
//! again when there is nothing better; `<dir>.distrusted-<n>` is only for the operator. A snapshot is staged
//! in a directory of the caller's choice, which means nothing after a crash.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(dir);
    name.push(suffix);
    PathBuf::from(name)
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Makes the names in the directory that holds `path` durable.
fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(parent(path))?.sync_all()
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
    fs::create_dir_all(parent(dir))?;
    sync_parent(parent(dir))?;
    let new = beside(dir, ".new");
    fill(&new)?;
    sync_tree(&new)?;
    fs::rename(&new, dir)?;
    sync_parent(dir)
}

/// Puts the directory `staged` in the place of `live`, which may be missing. Both must be closed, and must
/// have the same parent. After a crash `live` is the old or the new one when it is opened; once this returns
/// Ok it is the new one for good. Until then nothing may be purged that only the new one makes superfluous.
///
/// What the system may refuse for want of something comes before the first change, so that after such an
/// error nothing is changed and it may be tried again.
pub(crate) fn replace(live: &Path, staged: &Path) -> io::Result<()> {
    sync_tree(staged)?;
    let old = beside(live, ".old");
    remove_if_present(&old)?;
    let parent = File::open(parent(live))?;
    if live.exists() {
        fs::rename(live, &old)?;
        // A crash here leaves no `live`: `settle` brings the old one back.
        parent.sync_all()?;
    }
    fs::rename(staged, live)?;
    parent.sync_all()?;
    if let Err(error) = remove_if_present(&old) {
        // It means nothing any more, and is removed when `live` is opened again.
        tracing::warn!(%error, "replaced pages could not be removed yet");
    }
    Ok(())
}

/// Whether there is a directory to open, perhaps after `settle`.
pub(super) fn is_there(dir: &Path) -> io::Result<bool> {
    Ok(dir.try_exists()? || beside(dir, ".old").try_exists()?)
}

/// Why a directory is not used any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Aside {
    /// It could not be read. It may be put back.
    Unreadable,
    /// It differs from what a majority has, and must never be used again.
    Distrusted,
}

impl Aside {
    fn suffix(self) -> &'static str {
        match self {
            Aside::Unreadable => ".unreadable-",
            Aside::Distrusted => ".distrusted-",
        }
    }
}

/// The directories that were set aside, with their numbers: those with the highest numbers last.
fn numbered(dir: &Path, aside: Aside) -> io::Result<Vec<(u32, PathBuf)>> {
    let prefix = beside(dir, aside.suffix());
    let Some(prefix) = prefix.file_name().and_then(OsStr::to_str) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::read_dir(parent(dir))? {
        let entry = entry?;
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

/// The directories that were set aside as unreadable, the newest first.
pub(crate) fn unreadable(dir: &Path) -> io::Result<Vec<PathBuf>> {
    Ok(numbered(dir, Aside::Unreadable)?.into_iter().rev().map(|(_, path)| path).collect())
}

/// Everything that was set aside.
pub(crate) fn all_aside(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let distrusted = numbered(dir, Aside::Distrusted)?.into_iter().map(|(_, path)| path);
    Ok(unreadable(dir)?.into_iter().chain(distrusted).collect())
}

/// Renames a directory that is not to be used to a free `<dir>.unreadable-<n>` or `<dir>.distrusted-<n>`,
/// and returns that name. The newest has the highest number.
pub(crate) fn set_aside(dir: &Path, aside: Aside) -> io::Result<PathBuf> {
    let last = numbered(dir, aside)?.last().map_or(0, |(number, _)| *number);
    let aside = beside(dir, &format!("{}{}", aside.suffix(), last.saturating_add(1)));
    let parent = File::open(parent(dir))?;
    match fs::rename(dir, &aside) {
        // It was renamed before, and what should have followed did not happen.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        renamed => renamed?,
    }
    parent.sync_all()?;
    Ok(aside)
}

/// Puts a closed directory that was set aside in the place of `dir`, which must be missing.
pub(crate) fn put_back(aside: &Path, dir: &Path) -> io::Result<()> {
    let parent = File::open(parent(dir))?;
    fs::rename(aside, dir)?;
    parent.sync_all()
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
    fn what_is_set_aside_keeps_its_name_and_the_newest_comes_first() {
        let parent = TempDir::new().unwrap();
        let dir = parent.path().join("pages");
        let named = |name: &str| parent.path().join(name);
        for n in 1..12 {
            make(&dir, &n.to_string());
            let aside = set_aside(&dir, Aside::Unreadable).unwrap();
            assert_eq!(aside, named(&format!("pages.unreadable-{n}")));
            assert_eq!(content(&aside), n.to_string());
        }
        // A number that is free again is not given to a newer one.
        fs::remove_dir_all(named("pages.unreadable-3")).unwrap();
        make(&dir, "12");
        assert_eq!(set_aside(&dir, Aside::Unreadable).unwrap(), named("pages.unreadable-12"));
        make(&dir, "another");
        assert_eq!(set_aside(&dir, Aside::Distrusted).unwrap(), named("pages.distrusted-1"));
        let found = unreadable(&dir).unwrap();
        assert_eq!(found.len(), 11);
        assert_eq!(found[..2], [named("pages.unreadable-12"), named("pages.unreadable-11")]);
        assert_eq!(all_aside(&dir).unwrap().len(), 12);
        assert!(!is_there(&dir).unwrap());
        put_back(&found[0], &dir).unwrap();
        assert_eq!((content(&dir).as_str(), unreadable(&dir).unwrap().len()), ("12", 10));
        assert!(is_there(&dir).unwrap());
    }
}
