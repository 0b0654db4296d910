//! What the system can refuse a node without saying anything against its data: descriptors, memory, threads,
//! space, permission, the device. Only a failed checksum, a missing file, or a structure that cannot be is
//! damage.
//!
//! sled wraps errors, which loses their codes, and may panic with an error in its text. So the text is
//! searched too.
//!
//! A device that fails (EIO) counts as a refusal as well. It does not say that the content is wrong, it may
//! be an outage of the storage that all nodes have in common, and nothing should be written to it.

use std::{fmt, io};

/// What the system did not give.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// File descriptors, of this process or of the whole system.
    Descriptors,
    /// Memory.
    Memory,
    /// Another thread or process; or a lock that another process holds.
    Threads,
    /// Space on the disk.
    Space,
    /// Permission.
    Permission,
    /// The device.
    Device,
    /// Something else.
    Other,
}

/// How an error's number appears in its text, and in its debug form.
const IN_TEXTS: [&str; 2] = ["os error ", "Os { code: "];

impl Want {
    /// What was refused; None if this is not a refusal of the system.
    pub fn of(error: &io::Error) -> Option<Want> {
        match error.raw_os_error() {
            Some(code) => Want::of_code(code),
            None => Want::of_kind(error.kind()).or_else(|| Want::in_text(&error.to_string())),
        }
    }

    /// What was refused according to the first number of a refusal in a text.
    pub fn in_text(text: &str) -> Option<Want> {
        let codes = IN_TEXTS.iter().flat_map(|before| text.split(before).skip(1));
        let number = |rest: &str| {
            let digits = rest.find(|char: char| !char.is_ascii_digit()).unwrap_or(rest.len());
            rest[..digits].parse().ok()
        };
        codes.filter_map(number).find_map(Want::of_code)
    }

    fn of_kind(kind: io::ErrorKind) -> Option<Want> {
        match kind {
            io::ErrorKind::OutOfMemory => Some(Want::Memory),
            io::ErrorKind::WouldBlock => Some(Want::Threads),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(Want::Space),
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => Some(Want::Permission),
            _ => None,
        }
    }

    fn of_code(code: i32) -> Option<Want> {
        match code {
            libc::EMFILE | libc::ENFILE => Some(Want::Descriptors),
            libc::ENOMEM => Some(Want::Memory),
            libc::EAGAIN => Some(Want::Threads),
            libc::ENOSPC | libc::EDQUOT => Some(Want::Space),
            libc::EACCES | libc::EPERM | libc::EROFS => Some(Want::Permission),
            libc::EIO | libc::ENXIO | libc::ENODEV | libc::ESTALE | libc::ETIMEDOUT => Some(Want::Device),
            // What is there is not what should be there.
            libc::ENOENT | libc::ENOTDIR | libc::EISDIR | libc::EEXIST | libc::ENOTEMPTY => None,
            libc::EINVAL | libc::ELOOP | libc::ENAMETOOLONG | libc::EILSEQ => None,
            _ => Some(Want::Other),
        }
    }

    /// Whether it may be there again in a moment, without anybody's help: others give up what they have.
    pub fn may_pass(self) -> bool {
        matches!(self, Want::Descriptors | Want::Memory | Want::Threads)
    }
}

impl fmt::Display for Want {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Want::Descriptors => "file descriptors",
            Want::Memory => "memory",
            Want::Threads => "threads, or a lock that another process holds",
            Want::Space => "space on the disk",
            Want::Permission => "permission",
            Want::Device => "an answer from the device",
            Want::Other => "something that it needs",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_known_by_code_kind_and_text() {
        for (code, want) in [
            (libc::EMFILE, Want::Descriptors),
            (libc::ENFILE, Want::Descriptors),
            (libc::ENOMEM, Want::Memory),
            (libc::EAGAIN, Want::Threads),
            (libc::ENOSPC, Want::Space),
            (libc::EDQUOT, Want::Space),
            (libc::EACCES, Want::Permission),
            (libc::EPERM, Want::Permission),
            (libc::EROFS, Want::Permission),
            (libc::EIO, Want::Device),
            (libc::EBUSY, Want::Other),
        ] {
            let error = || io::Error::from_raw_os_error(code);
            assert_eq!(Want::of(&error()), Some(want), "{}", error());
            // As sled wraps it, as other code of sled's formats it, and as a panic tells it.
            let wrapped = io::Error::new(error().kind(), format!("src/heap.rs:790: pages: {}", error()));
            assert_eq!(Want::of(&wrapped), Some(want), "{wrapped}");
            let other = io::Error::other(format!("unable to spawn a thread: {:?}", error()));
            assert_eq!(Want::of(&other), Some(want), "{other}");
            let panicked = format!("called `Result::unwrap()` on an `Err` value: {:?}", error());
            assert_eq!(Want::in_text(&panicked), Some(want), "{panicked}");
        }
        for (kind, want) in [
            (io::ErrorKind::OutOfMemory, Want::Memory),
            (io::ErrorKind::StorageFull, Want::Space),
            (io::ErrorKind::QuotaExceeded, Want::Space),
            (io::ErrorKind::PermissionDenied, Want::Permission),
            (io::ErrorKind::ReadOnlyFilesystem, Want::Permission),
        ] {
            assert_eq!(Want::of(&kind.into()), Some(want), "{kind}");
        }
    }

    #[test]
    fn what_is_missing_or_cannot_be_is_no_refusal() {
        for code in [libc::ENOENT, libc::ENOTDIR, libc::EISDIR, libc::EEXIST, libc::EINVAL] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(Want::of(&error), None, "{error}");
            assert_eq!(Want::in_text(&format!("cannot read: {error:?}: {error}")), None, "{error}");
        }
        for kind in [io::ErrorKind::InvalidData, io::ErrorKind::UnexpectedEof, io::ErrorKind::NotFound] {
            assert_eq!(Want::of(&kind.into()), None, "{kind}");
        }
        for text in ["crc mismatch", "os error", "os error x", "os error 99999999999", "a page: [0b, 18]"] {
            assert_eq!(Want::in_text(text), None, "{text}");
        }
    }

    #[test]
    fn only_what_others_give_up_may_pass() {
        let passing = [Want::Descriptors, Want::Memory, Want::Threads];
        assert!(passing.into_iter().all(Want::may_pass));
        let lasting = [Want::Space, Want::Permission, Want::Device, Want::Other];
        assert!(!lasting.into_iter().any(Want::may_pass));
    }
}
