//! `torchfs ls`: folders as ls(1) shows them, or as JSON.

mod owners;

use super::connect;
use crate::args::{Global, Ls, Remote};
use crate::exit::{Failure, Outcome, Tally};
use crate::output::{self, Names, json, mode_text, short_time_text};
use owners::Owners;
use std::io::{self, Write};
use torchfs_core::Client;
use torchfs_core::meta::{Attr, FileKind};

/// One line of a listing.
struct Line {
    name: Vec<u8>,
    path: Remote,
    attr: Attr,
    target: Option<Vec<u8>>,
}

pub async fn run(global: &Global, args: Ls) -> Outcome {
    let client = connect(global).await?;
    let mut tally = Tally::new("ls");
    let mut printer = Printer::new(&args);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for path in &args.paths {
        match line_for(&client, path, &args).await {
            Ok(line) if line.attr.kind == FileKind::Directory => folders.push(path.clone()),
            Ok(line) => files.push(line),
            Err(failure) => tally.note(Err(failure.context(path)))?,
        }
    }
    if !files.is_empty() {
        printer.section(None, &files)?;
    }
    printer.titles = args.recursive || args.paths.len() > 1;
    // A stack, so that a folder's subfolders follow it directly.
    folders.reverse();
    while let Some(folder) = folders.pop() {
        match entries(&client, &folder).await {
            Ok(lines) => {
                printer.section(Some(&folder), &lines)?;
                if args.recursive {
                    let below = lines.into_iter().filter(|line| line.attr.kind == FileKind::Directory);
                    folders.extend(below.map(|line| line.path).rev());
                }
            }
            Err(failure) => tally.note(Err(failure.context(&folder)))?,
        }
    }
    printer.finish()?;
    tally.finish()
}

/// What was named on the command line: a link to a folder shows the folder, unless `-l` asks about the link itself.
async fn line_for(client: &Client, path: &Remote, args: &Ls) -> Outcome<Line> {
    let mut attr = client.lstat(path.bytes()).await?;
    let mut target = None;
    if attr.kind == FileKind::Symlink {
        target = Some(client.meta().read_link(attr.ino).await?);
        if !args.long || path.names_folder() {
            attr = client.stat(path.bytes()).await.unwrap_or(attr);
        }
    }
    Ok::<_, Failure>(Line { name: path.bytes().to_vec(), path: path.clone(), attr, target })
}

async fn entries(client: &Client, folder: &Remote) -> Outcome<Vec<Line>> {
    let entries = client.list(folder.bytes()).await?;
    let line = |entry: torchfs_core::meta::DirEntry| Line {
        name: entry.name.as_bytes().to_vec(),
        path: folder.join(entry.name.as_bytes()),
        attr: entry.attr,
        target: entry.target,
    };
    Ok(entries.into_iter().map(line).collect())
}

/// Writes sections as they come, or collects them for JSON.
struct Printer {
    out: io::BufWriter<io::StdoutLock<'static>>,
    names: Names,
    long: bool,
    titles: bool,
    sections: usize,
    owners: Owners,
    json: Option<Vec<json::Entry>>,
}

impl Printer {
    fn new(args: &Ls) -> Self {
        Printer {
            out: output::stdout(),
            names: Names::for_stdout(),
            long: args.long,
            titles: false,
            sections: 0,
            owners: Owners::default(),
            json: args.json.then(Vec::new),
        }
    }

    fn section(&mut self, folder: Option<&Remote>, lines: &[Line]) -> io::Result<()> {
        if let Some(entries) = &mut self.json {
            let entry = |line: &Line| json::Entry::new(line.path.bytes(), &line.attr, line.target.as_deref());
            entries.extend(lines.iter().map(entry));
            return Ok(());
        }
        if self.sections > 0 {
            writeln!(self.out)?;
        }
        self.sections += 1;
        if let Some(folder) = folder
            && self.titles
        {
            self.out.write_all(&self.names.bytes(folder.bytes()))?;
            writeln!(self.out, ":")?;
        }
        if self.long {
            self.long_lines(lines)?
        } else {
            self.short_lines(lines)?
        }
        // Seen as it comes, as long trees take a while.
        self.out.flush()
    }

    fn short_lines(&mut self, lines: &[Line]) -> io::Result<()> {
        for line in lines {
            self.out.write_all(&self.names.bytes(&line.name))?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn long_lines(&mut self, lines: &[Line]) -> io::Result<()> {
        let rows: Vec<[String; 4]> = lines.iter().map(|line| self.long_columns(&line.attr)).collect();
        let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
        let widths = [width(0), width(1), width(2), width(3)];
        for (line, [links, owner, group, size]) in lines.iter().zip(&rows) {
            let [a, b, c, d] = widths;
            let mode = mode_text(line.attr.kind, line.attr.mode);
            let time = short_time_text(line.attr.mtime);
            write!(self.out, "{mode} {links:>a$} {owner:<b$} {group:<c$} {size:>d$} {time} ")?;
            self.out.write_all(&self.names.bytes(&line.name))?;
            if let Some(target) = &line.target
                && line.attr.kind == FileKind::Symlink
            {
                self.out.write_all(b" -> ")?;
                self.out.write_all(&self.names.bytes(target))?;
            }
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    fn long_columns(&self, attr: &Attr) -> [String; 4] {
        let size = match attr.kind {
            FileKind::CharDevice | FileKind::BlockDevice => {
                format!("{},{}", rustix::fs::major(attr.rdev.into()), rustix::fs::minor(attr.rdev.into()))
            }
            _ => attr.size.to_string(),
        };
        [attr.nlink.to_string(), self.owners.user(attr.uid), self.owners.group(attr.gid), size]
    }

    fn finish(mut self) -> io::Result<()> {
        if let Some(entries) = &self.json {
            json::write(&mut self.out, entries)?;
        }
        self.out.flush()
    }
}
