//! Round trips, cuts at every byte, and damage.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

fn items() -> impl Strategy<Value = Item> {
    let number = || prop_oneof![Just(0u64), 0u64..1000, any::<u64>()];
    let time = || number().prop_map(Duration::from_nanos);
    let op = (0..Op::ALL.len()).prop_map(|at| Op::ALL[at]);
    let record = (op, time(), time(), any::<u32>(), [number(), number(), number(), number(), number()], any::<u16>());
    let record = record.prop_map(|(op, began, took, thread, [ino, handle, offset, len, result], errno)| {
        Item::Op(Record { op, began, took, thread, ino: InodeId(ino), handle, offset, len, result, errno })
    });
    let name = vec(1u8..=255, 1..255).prop_filter_map("a name", |bytes| Name::new(bytes).ok());
    let name = (number(), number(), name).prop_map(|(ino, parent, name)| Item::Name {
        ino: InodeId(ino),
        parent: InodeId(parent),
        name,
    });
    prop_oneof![8 => record, 2 => name, 1 => time().prop_map(Item::Mark), 1 => number().prop_map(Item::Lost)]
}

fn encoded(items: &[Item]) -> Vec<u8> {
    let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH + Duration::from_secs(7));
    items.iter().for_each(|item| encoder.add(item));
    encoder.take()
}

/// The entries, whether the end is missing, and how it went wrong.
fn decoded(bytes: &[u8]) -> (Vec<Item>, bool, Option<Error>) {
    let mut reader = match Reader::new(bytes) {
        Ok(reader) => reader,
        Err(error) => return (Vec::new(), false, Some(error)),
    };
    let mut found = Vec::new();
    loop {
        match reader.next() {
            Ok(Some(item)) => found.push(item),
            Ok(None) => return (found, reader.is_torn(), None),
            Err(error) => return (found, reader.is_torn(), Some(error)),
        }
    }
}

/// Without names that say again what was said last of their inode.
fn told_once(items: &[Item]) -> Vec<Item> {
    let mut last = HashMap::new();
    let is_new = |item: &&Item| match item {
        Item::Name { ino, parent, name } => last.insert(*ino, (*parent, name.clone())) != Some((*parent, name.clone())),
        _ => true,
    };
    items.iter().filter(is_new).cloned().collect()
}

proptest! {
    #[test]
    fn what_was_written_is_read(items in vec(items(), 0..60), parts in 1usize..5) {
        let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
        let mut bytes = Vec::new();
        for part in items.chunks(items.len().div_ceil(parts).max(1)) {
            part.iter().for_each(|item| encoder.add(item));
            bytes.extend(encoder.take());
        }
        bytes.extend(encoder.take());
        let (found, is_torn, error) = decoded(&bytes);
        prop_assert!(error.is_none() && !is_torn, "{error:?}");
        prop_assert_eq!(found, told_once(&items));
    }

    #[test]
    fn cut_anywhere_it_is_read_up_to_the_last_whole_entry(items in vec(items(), 0..12)) {
        let (bytes, items) = (encoded(&items), told_once(&items));
        let mut longest = 0;
        for end in HEADER_BYTES..bytes.len() {
            let (found, is_torn, error) = decoded(&bytes[..end]);
            prop_assert!(error.is_none(), "{error:?}");
            prop_assert_eq!(is_torn, end > HEADER_BYTES);
            prop_assert_eq!(&found[..], &items[..found.len()]);
            prop_assert!(found.len() >= longest, "more bytes never hold fewer entries");
            longest = found.len();
        }
        prop_assert!(longest + 1 >= items.len(), "only the last entry is lost with the last byte");
    }

    #[test]
    fn a_changed_byte_is_found(items in vec(items(), 1..20), at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = encoded(&items);
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let (found, is_torn, error) = decoded(&bytes);
        // A longer or shorter length of the only chunk looks like a missing end, and then the rest is still what it was.
        let in_length = (HEADER_BYTES..HEADER_BYTES + 4).contains(&at);
        prop_assert!(error.is_some() || (in_length && is_torn), "byte {at}: {found:?}");
        prop_assert!(found.is_empty() || in_length, "nothing of a damaged chunk is believed");
    }

    #[test]
    fn anything_after_a_good_beginning_ends(garbage in vec(any::<u8>(), 0..300)) {
        let (_, is_torn, error) = decoded(&[&header(5)[..], &garbage].concat());
        prop_assert!(garbage.is_empty() || is_torn || error.is_some_and(|error| error.kind() == Kind::Corrupt));
    }
}

#[test]
fn what_is_no_trace_is_told_from_damage_and_from_another_version() {
    let of = |bytes: &[u8]| decoded(bytes).2.expect("not readable");
    for bytes in [&b""[..], b"TFS", b"/data/a.png\n/data/b.png\n/data/c.png\n"] {
        assert_eq!(of(bytes).kind(), Kind::InvalidInput);
        assert!(of(bytes).to_string().contains("trace record"), "{}", of(bytes));
    }
    let mut newer = header(1);
    newer[8] = 2;
    assert_eq!(of(&newer).kind(), Kind::Protocol);
    assert!(of(&newer).to_string().contains("format 2"), "{}", of(&newer));
    assert_eq!(of(&header(1)[..20]).kind(), Kind::Corrupt);
}

#[test]
fn zeros_that_a_crash_left_at_the_end_are_a_missing_end() {
    let items = [Item::Lost(5)];
    let (found, is_torn, error) = decoded(&[encoded(&items), vec![0; 4096]].concat());
    assert_eq!((found.as_slice(), is_torn, error.is_none()), (&items[..], true, true));
}

#[test]
fn a_file_of_format_1_stays_readable() {
    let fixture = [
        b"TFSTRACE\x01\0\0\0".as_slice(),
        &[4, 37, 135, 227],
        &7_000_000u64.to_le_bytes(),
        &[20, 0, 0, 0],
        &[124, 40, 127, 198],
        // /a is inode 300; it is opened by thread 9 after 1 us, within 200 ns, as handle 4, and is 128 bytes long.
        &[1, 0xac, 0x02, 1, 1, b'a'],
        &[17, 0xd0, 0x0f, 0xc8, 0x01, 9, 0xac, 0x02, 4, 0, 0, 0x80, 0x01, 0],
        &[0],
    ]
    .concat();
    let (began, took) = (Duration::from_micros(1), Duration::from_nanos(200));
    let open = Record { began, took, thread: 9, ino: InodeId(300), handle: 4, result: 128, ..Record::of(Op::Open) };
    let name = Name::new("a").expect("a name");
    let items = [Item::Name { ino: InodeId(300), parent: InodeId::ROOT, name }, Item::Op(open)];
    assert_eq!(encoded(&items), fixture[..fixture.len() - 1]);
    let (found, is_torn, _) = decoded(&fixture);
    assert_eq!((&found[..], is_torn), (&items[..], true));
}

#[test]
fn a_long_trace_is_read_a_chunk_at_a_time_and_takes_few_bytes_for_each_operation() {
    let mut encoder = Encoder::new(SystemTime::UNIX_EPOCH);
    let mut time = Duration::ZERO;
    for number in 0..30_000u64 {
        time += Duration::from_micros(50);
        let (op, ino) = (if number % 2 == 0 { Op::Open } else { Op::Release }, InodeId(100_000 + number % 2000));
        let (took, thread) = (Duration::from_micros(30), 4_194_000);
        encoder.add(&Item::Op(Record {
            began: time,
            took,
            thread,
            ino,
            handle: number / 2,
            result: 65_536,
            ..Record::of(op)
        }));
    }
    let bytes = encoder.take();
    assert!(bytes.len() / 30_000 <= 24, "{} bytes for each", bytes.len() / 30_000);
    assert_eq!(decoded(&bytes).0.len(), 30_000);
}
