//! Which process asks. The kernel names the thread; close(2) needs to know the process, because a child that inherits a
//! descriptor and closes it, as every fork(2) with exec(3) does, must not publish what its parent is in the middle of
//! writing.

use std::fs;

/// The thread that made a request; 0 if the kernel could not tell, as for pages written back later or for a caller in
/// another process namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(pub u32);

impl Caller {
    /// Whether the kernel could tell it.
    pub fn is_known(self) -> bool {
        self.0 != 0
    }

    /// The process of the thread, `None` if that cannot be told. The thread waits for the answer to its request, so it is
    /// still there.
    pub fn process(self) -> Option<u32> {
        if self.0 == 0 {
            return None;
        }
        let status = fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        status.lines().find_map(|line| line.strip_prefix("Tgid:"))?.trim().parse().ok()
    }
}

/// The processes that opened a file for writing, or wrote to it.
#[derive(Debug, Default)]
pub struct Writers {
    latest: Option<Caller>,
    processes: Vec<u32>,
    /// Some of them could not be told.
    unknown: bool,
}

impl Writers {
    /// Adds one. Only the first request of a row by the same thread costs a lookup.
    pub fn add(&mut self, caller: Caller) {
        if self.latest == Some(caller) {
            return;
        }
        self.latest = Some(caller);
        match caller.process() {
            Some(process) if !self.processes.contains(&process) => self.processes.push(process),
            Some(_) => {}
            None => self.unknown = true,
        }
    }

    /// Whether a process is, or may be, one of them.
    pub fn may_include(&self, caller: Caller) -> bool {
        self.unknown
            || self.latest == Some(caller)
            || caller.process().is_none_or(|process| self.processes.contains(&process))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn this_thread() -> Caller {
        let link = fs::read_link("/proc/thread-self").expect("proc");
        Caller(link.file_name().and_then(|name| name.to_str()).expect("a number").parse().expect("a number"))
    }

    #[test]
    fn threads_of_one_process_are_one_writer() {
        let mut writers = Writers::default();
        writers.add(this_thread());
        assert!(writers.may_include(this_thread()));
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(writers.may_include(this_thread())));
        });
        // The first process of the machine has not written here.
        assert!(!writers.may_include(Caller(1)));
    }

    #[test]
    fn who_cannot_be_told_may_be_anybody() {
        let mut writers = Writers::default();
        writers.add(this_thread());
        assert!(writers.may_include(Caller(0)));
        assert!(!writers.may_include(Caller(1)));
        writers.add(Caller(0));
        assert!(writers.may_include(Caller(1)));
    }
}
