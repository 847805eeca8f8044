//! Opens from a text file: a path per line, its bytes after a tab, an empty line between epochs.

use crate::exit::{Failure, Outcome};
use crate::output::printable;
use std::collections::BTreeMap;
use torchfs_core::cache::CacheKey;
use torchfs_core::prefetch::{DataFile, Dataset};
use torchfs_core::sim::Workload;
use torchfs_core::{InodeId, Version};

/// The files by path, in the order of a listing, with their bytes if a line has said so.
type Files<'a> = BTreeMap<&'a [u8], Option<u64>>;

/// Reads a trace. Files of which no line tells the bytes have `bytes`.
pub fn parse(text: &[u8], bytes: u64) -> Outcome<Workload> {
    if text.contains(&0) {
        let hint = "`torchfs trace record` makes a recording; in a text each line is a path";
        return Err(Failure::usage("is neither a recording of a mount nor a text with paths").hint(hint));
    }
    let (mut files, mut epochs) = (Files::new(), vec![Vec::new()]);
    for (number, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let path =
            note(&mut files, line).map_err(|message| Failure::usage(format!("line {}: {message}", number + 1)))?;
        match epochs.last_mut() {
            Some(opened) if !path.is_empty() => opened.push(path),
            Some(opened) if !opened.is_empty() => epochs.push(Vec::new()),
            _ => {}
        }
    }
    epochs.retain(|epoch| !epoch.is_empty());
    let listed = files.iter().enumerate().map(|(at, (_, &given))| {
        let key = CacheKey { ino: InodeId(at as u64 + 1), version: Version(1) };
        DataFile { key, bytes: given.unwrap_or(bytes) }
    });
    let dataset = Dataset::new(listed.collect())?;
    let index: BTreeMap<&[u8], u32> = files.keys().zip(0..).map(|(&path, at)| (path, at)).collect();
    let orders = epochs.iter().map(|epoch| epoch.iter().filter_map(|path| index.get(path).copied()).collect());
    Ok(Workload::of_orders(dataset, orders.collect())?)
}

/// Notes the file of a line; answers its path.
fn note<'a>(files: &mut Files<'a>, line: &'a [u8]) -> Result<&'a [u8], String> {
    let tab = line.iter().rposition(|&byte| byte == b'\t');
    let (path, given) = match tab {
        Some(tab) => {
            let number = std::str::from_utf8(&line[tab + 1..]).ok().and_then(|digits| digits.trim().parse().ok());
            let wrong = || format!("'{}' is no number of bytes after the tab", printable(&line[tab + 1..]));
            (&line[..tab], Some(number.ok_or_else(wrong)?))
        }
        None => (line, None),
    };
    if path.is_empty() {
        return if tab.is_some() { Err("there is no path before the tab".to_owned()) } else { Ok(path) };
    }
    let known = files.entry(path).or_default();
    match (*known, given) {
        (Some(known), Some(given)) if known != given => {
            return Err(format!("{} has {given} bytes here and {known} before", printable(path)));
        }
        (None, Some(_)) => *known = given,
        _ => {}
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::Exit;

    #[test]
    fn epochs_are_separated_by_empty_lines() {
        let workload = parse(b"/b\t30\r\n/a\n\n\n/a\n/b\t30\n/c\\ d\n\n", 7).expect("parses");
        let sizes: Vec<u64> = workload.dataset().files().iter().map(|file| file.bytes).collect();
        assert_eq!(sizes, [7, 30, 7], "listed by path");
        let opened: Vec<&[u32]> = workload.epochs().iter().map(|epoch| &epoch.opened[..]).collect();
        assert_eq!(opened, [&[1, 0][..], &[0, 1, 2]]);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, said) in [
            (&b"/a\n/b\tmany\n"[..], "line 2: 'many' is no number of bytes"),
            (b"/a\t1\n/a\t2\n", "line 2: /a has 2 bytes here and 1 before"),
            (b"\t5\n", "line 1: there is no path"),
            (b"\n\n", "no file"),
            (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is neither a recording"),
        ] {
            let failure = parse(text, 1).expect_err(said);
            assert_eq!(failure.exit, Exit::Usage);
            assert!(failure.message.contains(said), "{failure:?}");
        }
    }
}
