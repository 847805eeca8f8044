//! The file `node` of a data folder: whose it is, which of its lives this is, and what was heard of the peers. Pure but for
//! [`Identity::write`].

use super::{MetaId, Place};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use torchfs_core::folder::replace_file;
use torchfs_core::{Error, Kind, Result};

pub(super) const FILE: &str = "node";
const TITLE: &str = "torchfs metadata node";

/// The version of everything in the folder: this file, the log, the state, the snapshots.
const FORMAT: u32 = 1;

/// Most starts that are remembered. They are few unless a peer is away for long; a peer that has missed more than these
/// takes the folder for a copy, which costs the node its vote until it has caught up.
const STARTS_MAX: usize = 64;

/// What the file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) id: MetaId,
    pub(super) members: BTreeSet<MetaId>,
    /// Drawn when the folder is made, and again when it turns out to be a copy.
    pub(super) incarnation: u128,
    /// Whether the node may vote.
    pub(super) admitted: bool,
    /// Where the folder was at its last start; unknown in a folder of an older release.
    pub(super) place: Option<Place>,
    /// One number for each start of this incarnation that not every peer is known to have heard of, and for the one before
    /// those; the last one is the present.
    pub(super) starts: Vec<u128>,
    pub(super) met: BTreeMap<MetaId, Acquaintance>,
}

/// What was heard of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acquaintance {
    /// Its first incarnation.
    pub(super) incarnation: u128,
    /// Its latest start, the only one that is listened to.
    pub(super) start: Option<u128>,
}

impl Identity {
    pub(super) fn new(id: MetaId, members: BTreeSet<MetaId>, place: Place) -> Self {
        let (incarnation, starts) = (rand::random(), vec![rand::random()]);
        Identity { id, members, incarnation, admitted: false, place: Some(place), starts, met: BTreeMap::new() }
    }

    /// A process begins in the folder.
    pub(super) fn start(&mut self) {
        self.starts.push(rand::random());
        let excess = self.starts.len().saturating_sub(STARTS_MAX);
        self.starts.drain(..excess);
    }

    /// Another node than before, as far as its peers are concerned: what it held may be old. What it heard of its peers may be
    /// old too, but for their first incarnations.
    pub(super) fn renew(&mut self) {
        self.incarnation = rand::random();
        self.admitted = false;
        self.starts = vec![rand::random()];
        self.met.values_mut().for_each(|peer| peer.start = None);
    }

    fn render(&self) -> String {
        let admitted = if self.admitted { "yes" } else { "no" };
        let mut body = format!(
            "{TITLE}\nformat {FORMAT}\nid {}\nmembers {}\nincarnation {:032x}\nadmitted {admitted}\n",
            self.id,
            super::list(&self.members),
            self.incarnation
        );
        if let Some(place) = &self.place {
            let born = place.born_ns.map_or(String::new(), |born| format!(" {born}"));
            body.push_str(&format!("place {}{born}\n", place.inode));
        }
        self.starts.iter().for_each(|start| body.push_str(&format!("start {start:032x}\n")));
        for (peer, Acquaintance { incarnation, start }) in &self.met {
            let start = start.map_or(String::new(), |start| format!(" {start:032x}"));
            body.push_str(&format!("met {peer} {incarnation:032x}{start}\n"));
        }
        let checksum = crc32c::crc32c(body.as_bytes());
        format!("{body}checksum {checksum:08x}\n")
    }

    /// Reads what a file says. One written before there were incarnations is of a node that has voted.
    pub(super) fn parse(text: &str, folder: &Path) -> Result<Self> {
        let damaged = || {
            let path = folder.join(FILE);
            let message = format!("{} is damaged: empty the folder and let the node join anew", path.display());
            Error::new(Kind::Corrupt, message)
        };
        let value = |name| values(text, name).next();
        if text.lines().next() != Some(TITLE) {
            return Err(damaged());
        }
        let format: u32 = value("format").and_then(|format| format.parse().ok()).ok_or_else(damaged)?;
        if format != FORMAT {
            let message = format!(
                "data folder {} has format version {format}, this program reads {FORMAT}: use the version that wrote it",
                folder.display()
            );
            return Err(Error::new(Kind::Protocol, message));
        }
        let end = text.rfind("checksum ").ok_or_else(damaged)?;
        if text[end..] != format!("checksum {:08x}\n", crc32c::crc32c(&text.as_bytes()[..end])) {
            return Err(damaged());
        }
        let incarnation = value("incarnation").map_or_else(|| Some(rand::random()), hex);
        let identity = || {
            Some(Identity {
                id: number(value("id")?)?,
                members: value("members")?.split(' ').map(number).collect::<Option<_>>()?,
                incarnation: incarnation?,
                admitted: value("admitted").is_none_or(|admitted| admitted == "yes"),
                place: value("place").map(place).map_or(Some(None), |place| place.map(Some))?,
                starts: values(text, "start").map(hex).collect::<Option<_>>()?,
                met: values(text, "met").map(acquaintance).collect::<Option<_>>()?,
            })
        };
        identity().ok_or_else(damaged)
    }

    /// Writes the file, so that it is whole and on disk or as it was.
    pub(super) fn write(&self, folder: &Path) -> Result<()> {
        replace_file(&folder.join(FILE), &folder.join(aside()), self.render().as_bytes())
    }
}

/// Where it is written at first.
pub(super) fn aside() -> PathBuf {
    Path::new(FILE).with_extension("tmp")
}

fn values<'a>(text: &'a str, name: &str) -> impl Iterator<Item = &'a str> {
    text.lines().filter_map(move |line| line.strip_prefix(name)?.strip_prefix(' '))
}

fn number(text: &str) -> Option<MetaId> {
    text.parse().map(MetaId).ok()
}

fn hex(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok()
}

fn place(text: &str) -> Option<Place> {
    let (inode, born) = text.split_once(' ').map_or((text, None), |(inode, born)| (inode, Some(born)));
    let born_ns = born.map(|born| born.parse().ok()).map_or(Some(None), |born| born.map(Some))?;
    Some(Place { inode: inode.parse().ok()?, born_ns })
}

fn acquaintance(text: &str) -> Option<(MetaId, Acquaintance)> {
    let mut words = text.split(' ');
    let (peer, incarnation) = (number(words.next()?)?, hex(words.next()?)?);
    let start = words.next().map(hex).map_or(Some(None), |start| start.map(Some))?;
    Some((peer, Acquaintance { incarnation, start }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(place: Place) -> Identity {
        let mut identity = Identity::new(MetaId(2), [1, 2, 3].map(MetaId).into(), place);
        identity.start();
        identity.met.insert(MetaId(1), Acquaintance { incarnation: 7, start: Some(9) });
        identity.met.insert(MetaId(3), Acquaintance { incarnation: 8, start: None });
        identity
    }

    #[test]
    fn what_is_written_is_read() {
        for born_ns in [None, Some(1_795_347_200_467_602_032)] {
            let identity = sample(Place { inode: 12, born_ns });
            assert_eq!(Identity::parse(&identity.render(), Path::new("/x")).expect("parses"), identity);
        }
    }

    #[test]
    fn damage_of_any_byte_is_noticed() {
        let text = sample(Place { inode: 12, born_ns: None }).render();
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 1;
            let error =
                Identity::parse(&String::from_utf8(bytes).expect("text"), Path::new("/x")).expect_err("damaged");
            assert!(matches!(error.kind(), Kind::Corrupt | Kind::Protocol), "byte {at}: {error}");
        }
    }

    #[test]
    fn starts_are_bounded_and_a_renewed_folder_has_one() {
        let mut identity = sample(Place { inode: 12, born_ns: None });
        let first = identity.starts[0];
        (0..2 * STARTS_MAX).for_each(|_| identity.start());
        assert_eq!(identity.starts.len(), STARTS_MAX);
        assert!(!identity.starts.contains(&first));
        let before = identity.clone();
        identity.renew();
        assert_ne!(identity.incarnation, before.incarnation);
        assert!(identity.starts.len() == 1 && !before.starts.contains(&identity.starts[0]));
        assert_eq!(identity.met[&MetaId(1)], Acquaintance { incarnation: 7, start: None });
    }
}
