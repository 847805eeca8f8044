//! The text of an order, as it is written to `.torchfs/schedule` or kept in a file: docs/schedule.md is its definition.

use super::schedule::{EpochOrder, PathList};
use crate::error::{Error, Kind, Result};
use serde::Deserialize;
use std::borrow::Cow;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The first line, if it is a JSON object.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Header {
    epoch: Option<u64>,
    folder: Option<String>,
    rank: u32,
    world_size: Option<u32>,
    workers: usize,
    batch_size: usize,
}

impl EpochOrder {
    /// Reads the text of an order. One that does not say which epoch it is of is of `epoch`. Paths may begin with `mountpoint`. `None`
    /// if it has only empty lines, which forgets all orders.
    ///
    /// # Errors
    /// `InvalidInput`, with the line that is wrong.
    pub fn parse(text: &[u8], mountpoint: Option<&Path>, epoch: u64) -> Result<Option<EpochOrder>> {
        let text = std::str::from_utf8(text).map_err(|error| {
            let line = text[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count() + 1;
            wrong(line, "is not UTF-8; files with such names are announced by index: see docs/schedule.md")
        })?;
        // Some editors begin a file with a byte order mark.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = text.split('\n').map(without_return).zip(1..).filter(|(line, _)| !line.is_empty()).peekable();
        let header = match lines.next_if(|(line, _)| line.starts_with('{')) {
            Some((line, number)) => {
                serde_json::from_str(line).map_err(|error| wrong(number, &format!("is no header: {error}")))?
            }
            None if lines.peek().is_none() => return Ok(None),
            None => Header::default(),
        };
        let epoch = header.epoch.unwrap_or(epoch);
        let order = match header.folder {
            Some(folder) => {
                // The path was text, and so is what is left of it.
                let folder = String::from_utf8_lossy(within(folder.as_bytes(), mountpoint)).into_owned();
                EpochOrder::indices(epoch, folder, lines.map(index).collect::<Result<_>>()?)
            }
            None => {
                let mut paths = PathList::default();
                for line in lines {
                    paths.push(within(path(line)?.as_bytes(), mountpoint));
                }
                EpochOrder::paths(epoch, paths)
            }
        };
        let order = order.with_rank(header.rank, header.world_size.unwrap_or(1))?;
        Ok(Some(order.with_workers(header.workers, header.batch_size)))
    }
}

/// A line as editors on Windows end it.
fn without_return(line: &str) -> &str {
    line.strip_suffix('\r').unwrap_or(line)
}

fn wrong(line: usize, what: &str) -> Error {
    Error::new(Kind::InvalidInput, format!("line {line} {what}"))
}

fn index((line, number): (&str, usize)) -> Result<u32> {
    if !line.bytes().all(|byte| byte.is_ascii_digit()) {
        let what = "the header names a folder, so each line is a number from 0";
        return Err(wrong(number, &format!("is no index: '{}'; {what}", shortly(line))));
    }
    // One that is past the end of any list is unknown, as one is that is past the end of this.
    Ok(line.parse().unwrap_or(u32::MAX))
}

fn path((line, number): (&str, usize)) -> Result<Cow<'_, str>> {
    match line.as_bytes()[0] {
        b'"' => {
            let parsed: std::result::Result<String, _> = serde_json::from_str(line);
            parsed.map(Cow::Owned).map_err(|error| wrong(number, &format!("is no JSON string: {error}")))
        }
        b'{' => Err(wrong(number, "begins with { and is not the first; a path that does is written as a JSON string")),
        _ => Ok(Cow::Borrowed(line)),
    }
}

/// A path from the mountpoint on, if it is below it.
fn within<'a>(path: &'a [u8], mountpoint: Option<&Path>) -> &'a [u8] {
    let below = |mountpoint: &Path| path.strip_prefix(mountpoint.as_os_str().as_bytes());
    mountpoint.and_then(below).filter(|rest| rest.first().is_none_or(|&byte| byte == b'/')).unwrap_or(path)
}

fn shortly(line: &str) -> String {
    const SHOWN_MAX: usize = 60;
    if line.chars().count() <= SHOWN_MAX {
        line.to_owned()
    } else {
        line.chars().take(SHOWN_MAX).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Option<EpochOrder>> {
        EpochOrder::parse(text.as_bytes(), Some(Path::new("/mnt/torchfs")), 7)
    }

    fn shown(text: &str) -> String {
        format!("{:?}", parse(text).expect("is understood").expect("is no empty text"))
    }

    #[test]
    fn a_plain_list_of_paths_is_of_the_next_epoch() {
        let order = EpochOrder::paths(7, vec!["b/2".to_owned(), "./a/1".to_owned(), "/c".to_owned(), "c d".to_owned()]);
        assert_eq!(shown("b/2\n\n./a/1\n/mnt/torchfs/c\nc d"), format!("{order:?}"));
    }

    #[test]
    fn a_header_says_what_the_lines_are() {
        let order = EpochOrder::indices(3, "train", vec![2, 0, u32::MAX]).with_rank(1, 4).expect("a rank");
        let text = r#"{"epoch": 3, "folder": "train", "rank": 1, "world_size": 4, "workers": 2, "batch_size": 8}"#;
        assert_eq!(
            shown(&format!("{text}\n2\n0\n99999999999999999999999\n")),
            format!("{:?}", order.with_workers(2, 8))
        );
        let order = EpochOrder::paths(9, vec!["{x}\n".to_owned(), "\"".to_owned()]);
        assert_eq!(shown("{\"epoch\": 9}\n\"{x}\\n\"\n\"\\\"\"\n"), format!("{order:?}"));
    }

    #[test]
    fn a_folder_may_be_named_as_programs_name_it() {
        for (folder, meant) in [("/mnt/torchfs/train", "/train"), ("/mnt/torchfs", ""), ("train", "train")] {
            let order = EpochOrder::indices(7, meant.to_owned(), vec![1]);
            assert_eq!(shown(&format!("{{\"folder\": \"{folder}\"}}\n1\n")), format!("{order:?}"));
        }
    }

    #[test]
    fn lines_may_end_as_on_windows() {
        let order = EpochOrder::paths(3, vec!["a b".to_owned(), "c\r".to_owned()]);
        assert_eq!(shown("\u{feff}{\"epoch\": 3}\r\na b\r\n\r\n\"c\\r\"\r\n"), format!("{order:?}"));
        assert!(parse("\u{feff}\r\n").expect("is understood").is_none());
    }

    #[test]
    fn an_empty_text_is_no_order() {
        for text in ["", "\n", "\n\n"] {
            assert!(parse(text).expect("is understood").is_none(), "{text:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, line, what) in [
            ("{\"epochs\": 3}\na\n", 1, "unknown field `epochs`"),
            ("{\"epoch\": -3}\n", 1, "is no header"),
            ("{nonsense\n", 1, "is no header"),
            ("a\n{\"epoch\": 3}\n", 2, "is not the first"),
            ("a\n\n\"b\n", 3, "is no JSON string"),
            ("{\"folder\": \"\"}\n1\nx1\n", 3, "'x1'"),
            ("{\"folder\": \"\"}\n-1\n", 2, "'-1'"),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), Kind::InvalidInput, "{text}");
            let message = error.to_string();
            assert!(message.contains(&format!("line {line} ")) && message.contains(what), "{message}");
        }
        let error = EpochOrder::parse(b"a\nb\n\xff\n", None, 0).expect_err("is not UTF-8");
        assert!(error.to_string().contains("line 3 "), "{error}");
        assert_eq!(
            parse("{\"rank\": 4, \"world_size\": 4}\na\n").expect_err("no such rank").kind(),
            Kind::InvalidInput
        );
    }

    #[test]
    fn only_what_is_below_the_mountpoint_is_taken_from_there() {
        let mountpoint = Some(Path::new("/mnt/torchfs"));
        assert_eq!(within(b"/mnt/torchfs/a", mountpoint), b"/a");
        assert_eq!(within(b"/mnt/torchfs2/a", mountpoint), b"/mnt/torchfs2/a");
        assert_eq!(within(b"/mnt/torchfs", mountpoint), b"");
        assert_eq!(within(b"/a", None), b"/a");
    }
}
