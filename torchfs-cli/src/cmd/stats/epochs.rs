//! `torchfs stats --epochs`: what each epoch found in the cache, and what training waited for.

use crate::output::{self, count_text, micros_text, size_text, table};
use std::io::{self, Write};
use torchfs_core::cache::EpochStats;

/// Below this part of its time an epoch counts as not having waited.
const IDLE_PART: f64 = 0.01;

/// Below this one that is not bound by storage.
const SMALL_PART: f64 = 0.1;

/// Waits this long are not for bytes to arrive, but for somebody who is not there.
const LONG_US: u64 = 500_000;

/// A line for each epoch, and for the last whole one what it means.
pub fn write(out: &mut impl Write, epochs: &[EpochStats]) -> io::Result<()> {
    let Some(last) = last_whole(epochs) else {
        writeln!(out, "no file was opened to be read yet")?;
        return Ok(());
    };
    let head = ["epoch", "opens", "hits", "late", "missed", "wasted", "from storage", "waited", "half", "99 %", "took"];
    let mut rows = table(&head, ">>>>>>>>>>>");
    for epoch in epochs {
        rows.add_row([
            epoch.epoch.map_or("-".to_owned(), |number| number.to_string()),
            count_text(epoch.opens),
            hits_text(epoch),
            count_text(epoch.late),
            count_text(epoch.misses),
            count_text(epoch.wasted),
            size_text(epoch.storage_bytes),
            micros_text(epoch.stall_us),
            // These are known to a fifth, upwards: no wait is longer than all together.
            micros_text(epoch.stall_p50_us.min(epoch.stall_us)),
            micros_text(epoch.stall_p99_us.min(epoch.stall_us)),
            micros_text(epoch.duration_ms * 1000),
        ]);
    }
    output::write_table(out, &rows)?;
    writeln!(out)?;
    writeln!(out, "{}", verdict(last))
}

fn hits_text(epoch: &EpochStats) -> String {
    if epoch.opens == 0 {
        return "-".to_owned();
    }
    format!("{:.2} %", epoch.hits as f64 * 100.0 / epoch.opens as f64)
}

/// The last one of whose order at least half was opened; what no order names, if it is as much as that.
fn last_whole(epochs: &[EpochStats]) -> Option<&EpochStats> {
    let is_half = |epoch: &EpochStats, of: u64| epoch.opens > 0 && epoch.opens.saturating_mul(2) >= of;
    let announced = epochs.iter().rposition(|epoch| epoch.epoch.is_some() && is_half(epoch, epoch.entries));
    let (at, opens) = announced.map_or((0, 0), |at| (at, epochs[at].opens));
    let other = epochs[at..].iter().rfind(|epoch| epoch.epoch.is_none() && is_half(epoch, opens));
    other.or(announced.map(|at| &epochs[at])).or(epochs.last())
}

/// What a person should conclude.
fn verdict(epoch: &EpochStats) -> String {
    let name =
        epoch.epoch.map_or("what was opened without an announced order".to_owned(), |epoch| format!("epoch {epoch}"));
    let took_us = epoch.duration_ms * 1000;
    // As time, because several readers wait at once, and nobody knows how many there are.
    let (took, waited) = (micros_text(took_us), micros_text(epoch.stall_us));
    let part = epoch.stall_us as f64 / took_us.max(1) as f64;
    if part < IDLE_PART {
        let waited = if epoch.stall_us == 0 { "nothing".to_owned() } else { format!("{waited} of {took}") };
        return format!("{name} waited {waited} for storage: compute-bound, faster storage would not help");
    }
    let all = format!("{name} waited {waited} for storage, all readers together, and took {took}");
    if part < SMALL_PART {
        return format!("{all}: mostly compute-bound, faster storage would save that at most");
    }
    let why = if epoch.stall_us / epoch.stalls.max(1) >= LONG_US {
        "what it waited for took so long that a node or the network must have been away: see `torchfs status`"
    } else if epoch.epoch.is_none() {
        "no announced order names these files, so only what can be guessed is fetched before it is opened: see docs/schedule.md"
    } else if epoch.late >= epoch.misses {
        "files are opened faster than they arrive: a larger cache leaves less to fetch, more nodes or a faster network bring it sooner"
    } else {
        "most files it waited for were not fetched ahead: is the announced order the one in which they are opened, and are its \
         workers and batch_size those of the loader?"
    };
    format!("{all}: storage-bound; {why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const EPOCH: EpochStats = EpochStats {
        epoch: Some(3),
        entries: 2000,
        opens: 2000,
        hits: 1990,
        misses: 2,
        late: 8,
        wasted: 0,
        storage_bytes: 96 << 20,
        stall_us: 50_000,
        stalls: 10,
        stall_p50_us: 4_000,
        stall_p99_us: 9_000,
        duration_ms: 10_000,
    };

    fn shown(epochs: &[EpochStats]) -> String {
        let mut out = Vec::new();
        write(&mut out, epochs).expect("writes to memory");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn each_epoch_has_a_line_and_the_last_a_verdict() {
        let text = shown(&[EpochStats { epoch: None, opens: 0, ..EPOCH }, EPOCH]);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[1].trim_start().starts_with("- ") && lines[2].trim_start().starts_with("3 "), "{text}");
        assert!(
            lines[2].contains("99.50 %") && lines[2].contains("96.0 MiB") && lines[2].contains("50.0 ms"),
            "{text}"
        );
        assert!(lines[4].starts_with("epoch 3 waited 50.0 ms of 10.0 s for storage: compute-bound"), "{text}");
        assert!(shown(&[]).starts_with("no file was opened"));
    }

    #[test]
    fn the_verdict_says_what_would_help() {
        let slow = EpochStats { stall_us: 3_400_000, ..EPOCH };
        for (epoch, what) in [
            (EpochStats { stall_us: 0, ..EPOCH }, "waited nothing for storage"),
            (
                slow,
                "waited 3.4 s for storage, all readers together, and took 10.0 s: storage-bound; files are opened faster",
            ),
            (EpochStats { stall_us: 200_000, ..EPOCH }, "and took 10.0 s: mostly compute-bound"),
            (EpochStats { stalls: 2, ..slow }, "must have been away"),
            (EpochStats { misses: 500, ..slow }, "is the announced order the one"),
            (EpochStats { epoch: None, ..slow }, "no announced order names these files"),
        ] {
            assert!(verdict(&epoch).contains(what), "{}", verdict(&epoch));
        }
    }

    #[test]
    fn no_wait_is_longer_than_all_together() {
        let text = shown(&[EpochStats { stall_us: 16_900, stalls: 1, stall_p50_us: 20_500, ..EPOCH }]);
        assert!(text.contains("16.9 ms  16.9 ms") && !text.contains("20.5 ms"), "{text}");
    }

    #[test]
    fn the_verdict_is_of_the_last_whole_epoch() {
        let number = |number, opens, entries| EpochStats { epoch: Some(number), opens, entries, ..EPOCH };
        let other = |opens| EpochStats { epoch: None, opens, entries: 0, ..EPOCH };
        for (epochs, of) in [
            (vec![number(0, 9000, 9000), number(1, 9000, 9000), number(2, 29, 9000)], Some(1)),
            (vec![number(0, 9000, 9000), number(1, 1200, 1200)], Some(1)),
            (vec![number(0, 9000, 9000), other(29)], Some(0)),
            (vec![other(45_000), number(0, 9000, 9000)], Some(0)),
            (vec![number(0, 9000, 9000), other(9000)], None),
            (vec![other(45_000), number(0, 29, 9000)], None),
            (vec![number(0, 29, 9000)], Some(0)),
            (vec![other(3)], None),
        ] {
            assert_eq!(last_whole(&epochs).expect("one is").epoch, of, "{epochs:?}");
        }
        assert!(last_whole(&[]).is_none());
    }
}
