//! How the kernel does the input and output of an open file: through its page cache, straight on a file of our cache
//! (passthrough), or by asking for every byte.
//!
//! The kernel (fs/fuse/iomode.c) allows one of the first two for a node at a time, and passthrough only to one file, for all handles:
//! who is not to read that file needs another [node](crate::node). We learn of a close after the kernel has done with it, so
//! what is counted here is at least what the kernel counts.

use fuser::BackingId;
use std::fs::File;
use std::io;
use std::sync::Arc;
use torchfs_core::Version;

/// How one handle is read and written.
#[derive(Clone, Debug)]
pub enum IoMode {
    /// Through the page cache.
    Cached,
    /// The kernel reads this version from a local file, without us.
    Passthrough(Arc<BackingId>),
    /// Every read and write comes to us, while a writer has another version in the page cache.
    Direct,
}

/// A whole file in the local cache that the kernel could read by itself.
#[derive(Debug)]
pub struct Whole {
    pub file: Arc<File>,
}

/// How the open handles of one node are read and written.
#[derive(Debug, Default)]
pub struct IoModes {
    cached: usize,
    /// The version that the handles through the page cache read, if there are any: pages of two would mix.
    cached_version: Option<Version>,
    passthrough: usize,
    backing: Option<(Version, Arc<BackingId>)>,
}

impl IoModes {
    /// Chooses for one more handle of `version` and counts it. `whole` is there if the handle only reads and its content is in a local
    /// file; `register` tells the kernel of that file. If it cannot be told, the answer holds the reason. `None` if others read a local
    /// file that this handle is not to read.
    pub fn choose(
        &mut self,
        version: Version,
        whole: Option<Whole>,
        register: impl FnOnce(&File) -> io::Result<BackingId>,
    ) -> Option<(IoMode, Option<io::Error>)> {
        Some(match (&self.backing, whole) {
            (Some((of, backing)), Some(_)) if *of == version => {
                self.passthrough += 1;
                (IoMode::Passthrough(backing.clone()), None)
            }
            (Some(_), _) => return None,
            (None, Some(whole)) if self.cached == 0 => match register(&whole.file) {
                Ok(backing) => {
                    let backing = Arc::new(backing);
                    self.backing = Some((version, backing.clone()));
                    self.passthrough += 1;
                    (IoMode::Passthrough(backing), None)
                }
                Err(error) => (self.cached(version), Some(error)),
            },
            (None, _) => (self.cached(version), None),
        })
    }

    fn cached(&mut self, version: Version) -> IoMode {
        if self.cached > 0 && self.cached_version != Some(version) {
            return IoMode::Direct;
        }
        self.cached += 1;
        self.cached_version = Some(version);
        IoMode::Cached
    }

    /// Which version the handles read from a local file, if they do.
    pub fn backing_version(&self) -> Option<Version> {
        self.backing.as_ref().map(|(version, _)| *version)
    }

    /// Which version the kernel has of it, in its page cache or a local file.
    pub fn version(&self) -> Option<Version> {
        self.backing_version().or(self.cached_version.filter(|_| self.cached > 0))
    }

    /// This mount committed a version, and all handles read it from now on.
    pub fn committed(&mut self, version: Version) {
        self.cached_version = Some(version);
    }

    /// A handle was closed.
    pub fn closed(&mut self, mode: &IoMode) {
        match mode {
            IoMode::Cached => self.cached -= 1,
            IoMode::Passthrough(_) => {
                self.passthrough -= 1;
                if self.passthrough == 0 {
                    self.backing = None;
                }
            }
            IoMode::Direct => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(_: &File) -> io::Result<BackingId> {
        Err(io::Error::from_raw_os_error(1))
    }

    fn whole() -> Option<Whole> {
        Some(Whole { file: Arc::new(tempfile::tempfile().expect("file")) })
    }

    #[test]
    fn what_the_kernel_refuses_goes_through_the_page_cache() {
        let mut modes = IoModes::default();
        let (mode, reason) = modes.choose(Version(1), whole(), refused).expect("chosen");
        assert!(matches!(mode, IoMode::Cached) && reason.is_some());
        // A second handle is not tried: the kernel allows one way at a time.
        let (second, reason) = modes.choose(Version(1), whole(), |_| panic!("not asked")).expect("chosen");
        assert!(matches!(second, IoMode::Cached) && reason.is_none());
        modes.closed(&mode);
        modes.closed(&second);
        assert!(
            modes.choose(Version(1), whole(), refused).expect("chosen").1.is_some(),
            "idle again, so it is tried again"
        );
    }

    #[test]
    fn two_versions_never_share_the_page_cache() {
        let mut modes = IoModes::default();
        let (old, _) = modes.choose(Version(1), None, refused).expect("chosen");
        let (new, _) = modes.choose(Version(2), None, refused).expect("chosen");
        assert!(matches!((&old, &new), (IoMode::Cached, IoMode::Direct)));
        modes.closed(&old);
        assert!(matches!(modes.choose(Version(2), None, refused).expect("chosen").0, IoMode::Cached));
        // After a commit of this mount all its handles read what was committed.
        modes.committed(Version(3));
        assert!(matches!(modes.choose(Version(3), None, refused).expect("chosen").0, IoMode::Cached));
        assert!(matches!(modes.choose(Version(2), None, refused).expect("chosen").0, IoMode::Direct));
        modes.closed(&new);
    }
}
