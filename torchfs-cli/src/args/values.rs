//! Values of flags and arguments: [`Remote`] paths, [`Size`]s, and the metadata nodes of `--peers`.

use super::Peers;
use clap::builder::{OsStringValueParser, TypedValueParser, ValueParserFactory};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::str::FromStr;
use torchfs_core::MetaId;

/// A file to draw into: its name promises nothing but SVG.
pub fn svg_file() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().try_map(|text| {
        let path = PathBuf::from(text);
        match path.extension() {
            Some(suffix) if suffix.eq_ignore_ascii_case("svg") => Ok(path),
            _ => Err("it is drawn as SVG: name a file that ends in .svg"),
        }
    })
}

/// A path in TorchFS: begins with `/`, may hold any bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    path: Vec<u8>,
    names_folder: bool,
}

impl Remote {
    /// Takes a path. A `/` at the end is remembered as "this is a folder".
    ///
    /// # Errors
    /// What is wrong with it, for a person.
    pub fn parse(text: &OsStr) -> Result<Remote, String> {
        let bytes = text.as_bytes();
        if bytes.first() != Some(&b'/') {
            let text = text.to_string_lossy();
            return Err(format!("a path in TorchFS begins with '/': write /{text}"));
        }
        let end = bytes.iter().rposition(|&byte| byte != b'/').map_or(1, |at| at + 1);
        Ok(Remote { path: bytes[..end].to_vec(), names_folder: bytes.len() > end || end == 1 })
    }

    /// A path that is known to begin with `/`.
    pub fn from_bytes(path: Vec<u8>) -> Remote {
        Remote { path, names_folder: false }
    }

    /// Its bytes, without a `/` at the end.
    pub fn bytes(&self) -> &[u8] {
        &self.path
    }

    /// Whether it was written with a `/` at the end.
    pub fn names_folder(&self) -> bool {
        self.names_folder
    }

    /// Its last component, if that is a name.
    pub fn file_name(&self) -> Option<&OsStr> {
        let name = self.path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        (!matches!(name, b"" | b"." | b"..")).then(|| OsStr::from_bytes(name))
    }

    /// What is before the last `/`.
    pub fn parent(&self) -> Remote {
        let end = self.path.iter().rposition(|&byte| byte == b'/').unwrap_or(0).max(1);
        Remote::from_bytes(self.path[..end].to_vec())
    }

    /// The path of an entry in this folder.
    pub fn join(&self, name: &[u8]) -> Remote {
        let mut path = self.path.clone();
        if path != b"/" {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Remote::from_bytes(path)
    }
}

/// For messages: bytes that are not UTF-8 are replaced, control characters escaped.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::output::printable(&self.path))
    }
}

impl ValueParserFactory for Remote {
    type Parser = clap::builder::ValueParser;

    fn value_parser() -> Self::Parser {
        OsStringValueParser::new().try_map(|text: OsString| Remote::parse(&text)).into()
    }
}

/// A number of bytes: `123`, `10G` and `10GiB` (binary), `10GB` (decimal), `1.5T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a size: write bytes, or a number with K, M, G, T (binary) or KB, MB, GB, TB");
        let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let unit = unit.trim_start().to_ascii_lowercase();
        let (letter, base) = match unit.strip_suffix("ib") {
            Some(letter) => (letter, 1024u64),
            None => match unit.strip_suffix('b') {
                Some(letter) => (letter, 1000),
                None => (unit.as_str(), 1024),
            },
        };
        let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == letter).ok_or_else(wrong)?;
        let factor = base.pow(power as u32);
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Size).ok_or_else(wrong);
        }
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
        if bytes < u64::MAX as f64 { Ok(Size(bytes as u64)) } else { Err(wrong()) }
    }
}

/// How much a cache may hold: a [`Size`], or `25%` of its disk or, where there is none, of all files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheSize {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the disk, or of the files.
    Percent(u8),
}

impl CacheSize {
    /// In bytes, of a disk or of files of so many.
    pub fn of(self, whole_bytes: u64) -> u64 {
        match self {
            CacheSize::Bytes(bytes) => bytes,
            CacheSize::Percent(percent) => (u128::from(whole_bytes) * u128::from(percent) / 100) as u64,
        }
    }
}

/// As it is parsed.
impl fmt::Display for CacheSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CacheSize::Bytes(bytes) => write!(f, "{bytes}"),
            CacheSize::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl FromStr for CacheSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match CacheSize::parse(text, "a disk")? {
            // A number alone is bytes, and who forgot the unit would lose what is cached.
            CacheSize::Bytes(bytes @ 1..BLOCK_BYTES) => Err(format!(
                "{bytes} bytes are less than a block of a disk: write {bytes}GiB, {bytes}MiB or a part of the disk as 25%"
            )),
            size => Ok(size),
        }
    }
}

/// What a file takes of most disks at least.
const BLOCK_BYTES: u64 = 4096;

impl CacheSize {
    fn parse(text: &str, whole: &str) -> Result<Self, String> {
        let Some(number) = text.strip_suffix('%') else {
            return text.parse().map(|Size(bytes)| CacheSize::Bytes(bytes));
        };
        match number.trim_end().parse() {
            Ok(percent @ 1..=100) => Ok(CacheSize::Percent(percent)),
            _ => Err(format!("'{text}' is no part of {whole}: write 1% to 100%")),
        }
    }

    /// Parses one of which a part is one of all files.
    pub fn of_files(text: &str) -> Result<Self, String> {
        CacheSize::parse(text, "all files")
    }
}

/// Parses `1=ADDR,2=ADDR,...`.
pub fn peers(text: &str) -> Result<Peers, String> {
    let mut peers = Peers::new();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let parsed = part.split_once('=').and_then(|(id, addr)| Some((id.parse().ok()?, addr)));
        let Some((id @ 1u64.., addr)) = parsed else {
            return Err(format!("'{part}' is not ID=HOST:PORT"));
        };
        address(addr)?;
        if peers.insert(MetaId(id), addr.to_owned()).is_some() {
            return Err(format!("metadata node {id} is named twice"));
        }
    }
    if peers.is_empty() { Err("no metadata node is named".to_owned()) } else { Ok(peers) }
}

/// Checks the form of a `HOST:PORT`.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn address(text: &str) -> Result<(), String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(()),
        _ => Err(format!("'{text}' is not an address: write HOST:PORT")),
    }
}
