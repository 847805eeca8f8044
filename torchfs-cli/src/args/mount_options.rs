//! The options of a mount as fstab(5) and `mount -o` write them, and the command line that mount(8) gives to a helper.

use super::{CacheSize, Mount};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use torchfs_core::Error;
use torchfs_core::cache::policy::Eviction;
use torchfs_core::prefetch::Prefetch;

/// One word of `-o`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MountWord {
    /// `ro`, `rw`
    ReadOnly(bool),
    /// `allow_other`, `noallow_other`
    AllowOther(bool),
    /// `cache_dir=DIR`
    CacheDir(PathBuf),
    /// `cache_size=SIZE`
    CacheSize(CacheSize),
    /// `eviction=POLICY`
    Eviction(Eviction),
    /// `prefetch=POLICY`
    Prefetch(Prefetch),
    /// `passthrough`, `nopassthrough`
    Passthrough(bool),
    /// `awake`, `noawake`
    Awake(bool),
    /// Words for mount(8) and its relatives, not for the file system.
    NotOurs,
}

/// What mount(8), systemd and fstab(5) may leave in an option list, and what every mount here is anyway.
const NOT_OURS: &[&str] = &[
    "defaults",
    "auto",
    "noauto",
    "user",
    "nouser",
    "users",
    "owner",
    "group",
    "nofail",
    "_netdev",
    "dev",
    "nodev",
    "suid",
    "nosuid",
    "exec",
    "noexec",
    "async",
    "atime",
    "noatime",
    "relatime",
    "norelatime",
    "diratime",
    "nodiratime",
    "default_permissions",
];

impl FromStr for MountWord {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let (name, value) = word.split_once('=').map_or((word, None), |(name, value)| (name, Some(value)));
        match (name, value) {
            ("ro", None) => Ok(MountWord::ReadOnly(true)),
            ("rw", None) => Ok(MountWord::ReadOnly(false)),
            ("allow_other", None) => Ok(MountWord::AllowOther(true)),
            ("noallow_other", None) => Ok(MountWord::AllowOther(false)),
            ("passthrough", None) => Ok(MountWord::Passthrough(true)),
            ("nopassthrough", None) => Ok(MountWord::Passthrough(false)),
            ("awake", None) => Ok(MountWord::Awake(true)),
            ("noawake", None) => Ok(MountWord::Awake(false)),
            ("cache_dir", Some(dir)) if !dir.is_empty() => Ok(MountWord::CacheDir(dir.into())),
            ("cache_size", Some(size)) => size.parse().map(MountWord::CacheSize),
            ("eviction", Some(name)) => name.parse().map(MountWord::Eviction).map_err(|error: Error| error.to_string()),
            ("prefetch", Some(name)) => name.parse().map(MountWord::Prefetch).map_err(|error: Error| error.to_string()),
            _ if NOT_OURS.contains(&word) || name.starts_with("x-") || name.starts_with("comment") => {
                Ok(MountWord::NotOurs)
            }
            _ => {
                let known = "ro, rw, allow_other, noallow_other, cache_dir=DIR, cache_size=SIZE, eviction=POLICY";
                Err(format!("known are {known}, prefetch=POLICY, passthrough, nopassthrough, awake and noawake"))
            }
        }
    }
}

impl Mount {
    /// Where the cache is to be, if anybody said. The last word counts, here and below.
    pub fn cache_dir(&self) -> Option<&Path> {
        let word = self.last(|word| if let MountWord::CacheDir(dir) = word { Some(dir.as_path()) } else { None });
        word.or(self.cache_dir.as_deref())
    }

    /// How much the cache may hold.
    pub fn cache_size(&self) -> CacheSize {
        let word = self.last(|word| if let MountWord::CacheSize(size) = word { Some(*size) } else { None });
        word.unwrap_or(self.cache_size)
    }

    /// What leaves a full cache first.
    pub fn eviction(&self) -> Eviction {
        let word = self.last(|word| if let MountWord::Eviction(eviction) = word { Some(*eviction) } else { None });
        word.unwrap_or(self.eviction)
    }

    /// What is fetched ahead.
    pub fn prefetch(&self) -> Prefetch {
        let word = self.last(|word| if let MountWord::Prefetch(prefetch) = word { Some(*prefetch) } else { None });
        word.unwrap_or(self.prefetch)
    }

    /// Whether it takes no writes.
    pub fn is_read_only(&self) -> bool {
        self.last(|word| if let MountWord::ReadOnly(only) = word { Some(*only) } else { None }).unwrap_or(false)
    }

    /// Whether the kernel may read cached files by itself.
    pub fn passes_through(&self) -> bool {
        self.last(|word| if let MountWord::Passthrough(passes) = word { Some(*passes) } else { None }).unwrap_or(true)
    }

    /// Whether idle processors may be kept from being halted.
    pub fn keeps_awake(&self) -> bool {
        self.last(|word| if let MountWord::Awake(awake) = word { Some(*awake) } else { None }).unwrap_or(true)
    }

    /// Whether other users may use it, if anybody said.
    pub fn allow_other(&self) -> Option<bool> {
        self.last(|word| if let MountWord::AllowOther(allow) = word { Some(*allow) } else { None })
    }

    fn last<'a, T>(&'a self, is: impl Fn(&'a MountWord) -> Option<T>) -> Option<T> {
        self.options.iter().rev().find_map(is)
    }
}

/// The command line that means what mount(8) asks of its helper: `mount.fuse.torchfs METAS MOUNTPOINT [-sfnv] [-o OPTIONS]
/// [-t TYPE]`. `None` if the program was not called by such a name.
pub fn helper(words: &[OsString]) -> Option<Vec<OsString>> {
    let name = Path::new(words.first()?).file_name()?.to_str()?;
    if !name.starts_with("mount.") {
        return None;
    }
    let mut line: Vec<OsString> = ["torchfs", "--quiet", "mount", "--background"].map(OsString::from).to_vec();
    let mut places = Vec::new();
    let mut words = words[1..].iter();
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("-o") => line.extend([OsString::from("-o"), words.next().cloned().unwrap_or_default()]),
            Some("-t" | "-N") => drop(words.next()),
            Some("-f") => line.push("--fake".into()),
            Some("-s" | "-n" | "-v") => {}
            _ => places.push(word),
        }
    }
    let mut places = places.into_iter();
    if let Some(metas) = places.next() {
        line.extend([OsStr::new("--meta").to_owned(), metas.clone()]);
    }
    line.push("--".into());
    line.extend(places.cloned());
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::super::{Cli, Global, Verb};
    use super::*;
    use clap::Parser;

    fn mount(words: &[&str]) -> Result<(Global, Mount), clap::Error> {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        let cli = Cli::try_parse_from(helper(&words).unwrap_or(words))?;
        let Verb::Mount(mount) = cli.verb else { panic!("{:?}", cli.verb) };
        Ok((cli.global, mount))
    }

    #[test]
    fn words_say_the_same_as_flags_and_the_last_one_counts() {
        let (_, plain) = mount(&["torchfs", "mount", "/m"]).expect("parses");
        assert_eq!((plain.is_read_only(), plain.allow_other(), plain.cache_dir()), (false, None, None));
        let words = "ro,noatime,_netdev,x-systemd.automount,allow_other,cache_dir=/c,cache_size=1G,rw";
        let (_, given) = mount(&["torchfs", "mount", "--cache-dir", "/other", "-o", words, "/m"]).expect("parses");
        assert_eq!((given.is_read_only(), given.allow_other()), (false, Some(true)));
        assert_eq!((given.cache_dir(), given.cache_size()), (Some(Path::new("/c")), CacheSize::Bytes(1 << 30)));
        assert!(plain.passes_through() && plain.keeps_awake());
        let words = "cache_size=25%,eviction=lfu,prefetch=history,nopassthrough,noawake";
        let (_, given) = mount(&["torchfs", "mount", "--eviction", "fifo", "-o", words, "/m"]).expect("parses");
        assert!(!given.passes_through() && !given.keeps_awake());
        assert_eq!((given.cache_size(), given.eviction()), (CacheSize::Percent(25), Eviction::Lfu));
        assert_eq!((plain.prefetch(), given.prefetch()), (Prefetch::Auto, Prefetch::History));
        let (sizes, words) = (
            ["cache_size=much", "cache_size=10", "cache_size=0%", "cache_size=101%"],
            ["read_only", "ro=1", "cache_dir="],
        );
        for bad in sizes.into_iter().chain(words).chain(["eviction=mru", "prefetch=oracle"]) {
            let error = mount(&["torchfs", "mount", "-o", bad, "/m"]).expect_err(bad).to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn called_as_a_helper_it_mounts_in_the_background() {
        let line = ["/sbin/mount.fuse.torchfs", "a:1,b:1", "/m", "-n", "-o", "rw,noallow_other", "-t", "fuse.torchfs"];
        let (global, given) = mount(&line).expect("parses");
        assert_eq!(global.meta, ["a:1", "b:1"]);
        assert!(global.quiet && given.background && given.mountpoint == Path::new("/m"));
        assert_eq!(given.allow_other(), Some(false));
        assert!(!given.fake && mount(&["mount.fuse.torchfs", "a:1", "/m", "-f"]).expect("parses").1.fake);
        assert!(mount(&["mount.fuse.torchfs", "a:1"]).is_err(), "no mountpoint");
    }
}
