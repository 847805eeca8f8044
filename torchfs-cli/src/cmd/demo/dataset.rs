//! The files that the demo copies in and compares with: the user's, or images that it makes.

use super::images;
use super::stop::Stop;
use crate::exit::{Exit, Failure, Outcome};
use crate::output::{count_text, size_text};
use std::io;
use std::path::{Path, PathBuf};
use torchfs_core::IoContext;

/// A folder of files. It is only read.
#[derive(Debug)]
pub struct Dataset {
    pub root: PathBuf,
    /// Regular files, by path below the root, in byte order.
    pub files: Vec<FileEntry>,
    pub bytes: u64,
    made: bool,
}

/// A file of the dataset.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileEntry {
    pub path: PathBuf,
    pub bytes: u64,
}

impl Dataset {
    /// The user's folder, or a new one below `folder`.
    pub async fn find_or_make(dir: Option<&Path>, folder: &Path, stop: &Stop) -> Outcome<Dataset> {
        let made = dir.is_none();
        let root = match dir {
            Some(dir) => dir.canonicalize().io(|| dir.display().to_string())?,
            None => folder.join("images"),
        };
        if !made && folder.canonicalize().is_ok_and(|folder| folder.starts_with(&root)) {
            let message = format!("{} holds the temporary folder {}", root.display(), folder.display());
            return Err(Failure::usage(message).hint("set TMPDIR to a folder outside of the dataset"));
        }
        let stop = stop.clone();
        let work = move || {
            if made {
                images::make(&root, &stop)?;
            }
            Dataset::scan(root, made)
        };
        let found = tokio::task::spawn_blocking(work).await;
        found.unwrap_or_else(|error| Err(Failure::new(Exit::Failed, error.to_string())))
    }

    fn scan(root: PathBuf, made: bool) -> Outcome<Dataset> {
        if !root.is_dir() {
            let message = format!("{} is not a folder", root.display());
            return Err(Failure::new(Exit::WrongType, message));
        }
        let mut files = Vec::new();
        scan_below(&root, &mut files).io(|| format!("read {}", root.display()))?;
        files.sort_unstable();
        if files.is_empty() {
            return Err(Failure::usage(format!("{} has no files", root.display())));
        }
        for file in &mut files {
            if let Ok(below) = file.path.strip_prefix(&root) {
                file.path = below.to_owned();
            }
        }
        let bytes = files.iter().map(|file| file.bytes).sum();
        Ok(Dataset { root, files, bytes, made })
    }

    /// One line for a person.
    pub fn description(&self) -> String {
        let what = if self.made { "made for this demo".to_owned() } else { self.root.display().to_string() };
        format!("{} files, {} ({what})", count_text(self.files.len() as u64), size_text(self.bytes))
    }
}

/// Links are not followed, so there are no loops and nothing is read twice.
fn scan_below(root: &Path, files: &mut Vec<FileEntry>) -> io::Result<()> {
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.is_file() {
                files.push(FileEntry { path: entry.path(), bytes: metadata.len() });
            }
        }
    }
    Ok(())
}
