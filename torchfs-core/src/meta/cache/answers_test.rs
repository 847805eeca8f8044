use super::*;
use crate::error::Kind;
use crate::ids::Version;
use crate::meta::{IfExists, NewInode, NewKind, Timestamp};

fn name(text: &str) -> Name {
    Name::new(text).expect("a name")
}

fn attr(ino: u64) -> Attr {
    let time = Timestamp::default();
    Attr {
        ino: InodeId(ino),
        kind: FileKind::File,
        mode: 0o644,
        nlink: 1,
        uid: 0,
        gid: 0,
        size: ino * 10,
        allocated: 0,
        atime: time,
        mtime: time,
        ctime: time,
        version: Version(1),
        rdev: 0,
        xattr_bytes: 0,
        profile: None,
    }
}

pub fn entry(text: &str) -> DirEntry {
    DirEntry { name: name(text), attr: attr(9), target: None, extents: Vec::new() }
}

fn remembering() -> Answers {
    let mut answers = Answers::default();
    answers.forget_all();
    answers
}

fn lookup(text: &str) -> MetaQuery {
    MetaQuery::Lookup { parent: InodeId(1), name: name(text) }
}

fn found(ino: u64) -> Result<MetaAnswer> {
    Ok(MetaAnswer::Attr(attr(ino)))
}

fn learn(answers: &mut Answers, query: &MetaQuery, answer: Result<MetaAnswer>) {
    answers.learn(answers.now(), query.clone(), &answer);
    assert_eq!(answers.answer(query), Some(answer));
}

#[test]
fn nothing_is_kept_as_long_as_nobody_watches() {
    let mut answers = Answers::default();
    answers.learn(answers.now(), lookup("a"), &found(7));
    assert_eq!(answers.answer(&lookup("a")), None);
}

#[test]
fn a_lookup_hangs_on_the_name_and_on_the_inode() {
    let mut answers = remembering();
    for change in [Change::Name(InodeId(1), name("a")), Change::Inode(InodeId(7))] {
        learn(&mut answers, &lookup("a"), found(7));
        learn(&mut answers, &lookup("b"), found(8));
        answers.forget([&change]);
        assert_eq!(answers.answer(&lookup("a")), None, "{change:?}");
        assert_eq!(answers.answer(&lookup("b")), Some(found(8)));
    }
    learn(&mut answers, &lookup("a"), found(7));
    assert_eq!(answers.answer(&MetaQuery::Attr(InodeId(7))), Some(found(7)), "its parts answer other questions");
}

#[test]
fn an_answer_that_was_under_way_when_its_subject_changed_does_not_count() {
    let mut answers = remembering();
    let asked = answers.now();
    answers.forget([&Change::Inode(InodeId(7))]);
    answers.learn(asked, lookup("a"), &found(7));
    assert_eq!(answers.answer(&lookup("a")), None);
    let asked = answers.now();
    answers.forget_all();
    answers.learn(asked, lookup("a"), &found(7));
    assert_eq!(answers.answer(&lookup("a")), None);
}

#[test]
fn that_something_is_not_there_is_remembered_and_a_failure_is_not() {
    let mut answers = remembering();
    learn(&mut answers, &lookup("a"), Err(Error::new(Kind::NotFound, "none")));
    // The folder may not have been there, or none.
    answers.forget([&Change::Inode(InodeId(1))]);
    assert_eq!(answers.answer(&lookup("a")), None);
    answers.learn(answers.now(), lookup("a"), &Err(Error::new(Kind::Timeout, "no answer")));
    assert_eq!(answers.answer(&lookup("a")), None);
    let xattr = MetaQuery::Xattr { ino: InodeId(7), name: XattrName::new("user.a").expect("a name") };
    learn(&mut answers, &xattr, Err(Error::new(Kind::NoAttribute, "none")));
    learn(&mut answers, &MetaQuery::Xattrs(InodeId(7)), Ok(MetaAnswer::Names(vec![])));
    answers.forget([&Change::Inode(InodeId(7))]);
    assert_eq!(answers.answer(&xattr), None);
    assert_eq!(answers.answer(&MetaQuery::Xattrs(InodeId(7))), None);
}

#[test]
fn a_page_hangs_on_its_folder_and_on_what_is_in_it() {
    let mut answers = remembering();
    let page = MetaQuery::List { ino: InodeId(1), after: None, limit: 100, extents: false };
    let entry = |text: &str, ino| DirEntry { name: name(text), attr: attr(ino), target: None, extents: vec![] };
    let listing = Listing { entries: vec![entry("a", 7), entry("b", 8)], stripes: vec![], more: true };
    for change in [Change::Inode(InodeId(1)), Change::Inode(InodeId(8))] {
        learn(&mut answers, &page, Ok(MetaAnswer::Listing(listing.clone())));
        assert_eq!(answers.answer(&lookup("b")), Some(found(8)), "a page answers lookups");
        answers.forget([&change]);
        assert_eq!(answers.answer(&page), None);
    }
    let with_extents = MetaQuery::List { ino: InodeId(1), after: None, limit: 100, extents: true };
    answers.learn(answers.now(), with_extents.clone(), &Ok(MetaAnswer::Listing(listing)));
    assert_eq!(answers.answer(&with_extents), None);
}

#[test]
fn content_and_attributes_of_an_open_are_of_one_moment() {
    let mut answers = remembering();
    let open = MetaQuery::Open(InodeId(7));
    learn(&mut answers, &open, Ok(MetaAnswer::Opened(attr(7), Content::default())));
    answers.forget([&Change::Inode(InodeId(7))]);
    learn(&mut answers, &MetaQuery::Attr(InodeId(7)), found(7));
    assert_eq!(answers.answer(&open), None, "the content is of an earlier moment");
    learn(&mut answers, &MetaQuery::Parent(InodeId(3)), found(1));
    learn(&mut answers, &MetaQuery::ReadLink(InodeId(9)), Ok(MetaAnswer::Bytes(b"to".to_vec())));
}

#[test]
fn what_changes_with_more_than_inodes_and_names_is_not_kept() {
    let mut answers = remembering();
    let profile = MetaQuery::Profile(InodeId(1));
    let answer = Ok(MetaAnswer::Profile(crate::layout::Profile::DEFAULT, true));
    answers.learn(answers.now(), profile.clone(), &answer);
    assert_eq!(answers.answer(&profile), None);
    assert_eq!(answers.answer(&MetaQuery::FsStat), None);
}

#[test]
fn it_is_bounded_and_keeps_what_is_used() {
    let mut answers = remembering();
    let target = |ino| MetaQuery::ReadLink(InodeId(ino));
    let large = || Ok(MetaAnswer::Bytes(vec![0; 1 << 20]));
    learn(&mut answers, &target(0), large());
    for ino in 1..3 * (BYTES_MAX >> 20) as u64 {
        learn(&mut answers, &target(ino), large());
        assert!(answers.answer(&target(0)).is_some(), "it is asked for all the time, at {ino}");
        let kept = answers.young.len() + answers.old.len();
        assert!(kept << 20 <= BYTES_MAX, "{kept} MiB");
    }
    assert_eq!(answers.answer(&target(1)), None);
    let too_large = Ok(MetaAnswer::Bytes(vec![0; BYTES_MAX]));
    answers.learn(answers.now(), target(1), &too_large);
    assert_eq!(answers.answer(&target(1)), None);
}

fn create(parent: u64, text: &str) -> MetaOp {
    let inode = NewInode { kind: NewKind::File, mode: 0o644, uid: 0, gid: 0, mtime: None };
    MetaOp::Create { parent: InodeId(parent), name: name(text), inode, if_exists: IfExists::Fail, content: None }
}

fn unlink(parent: u64, text: &str) -> MetaOp {
    MetaOp::Unlink { parent: InodeId(parent), name: name(text) }
}

fn named(ino: u64, folder: u64) -> MetaReply {
    MetaReply::Named { attr: attr(ino), folder: Attr { kind: FileKind::Directory, ..attr(folder) } }
}

fn lookup_in(parent: u64, text: &str) -> MetaQuery {
    MetaQuery::Lookup { parent: InodeId(parent), name: name(text) }
}

/// Whether a lookup is answered with this inode, that there is nothing, or not at all.
fn leads_to(answers: &mut Answers, parent: u64, text: &str) -> Option<Option<u64>> {
    match answers.answer(&lookup_in(parent, text))? {
        Ok(MetaAnswer::Attr(attr)) => Some(Some(attr.ino.0)),
        Err(error) if error.kind() == Kind::NotFound => Some(None),
        other => panic!("{other:?}"),
    }
}

/// A folder 5 that this client made.
fn with_folder() -> Answers {
    let mut answers = remembering();
    let folder = Attr { kind: FileKind::Directory, size: 0, ..attr(5) };
    answers.done(answers.now(), &create(1, "folder"), &MetaReply::Named { attr: folder, folder: attr(1) });
    answers
}

#[test]
fn the_answer_to_an_operation_is_as_good_as_one_to_a_question() {
    let mut answers = with_folder();
    assert_eq!(leads_to(&mut answers, 1, "folder"), Some(Some(5)));
    assert_eq!(leads_to(&mut answers, 5, "a"), Some(None));
    assert_eq!(leads_to(&mut answers, 1, "a"), None, "that folder is not new");
    answers.done(answers.now(), &create(5, "a"), &named(7, 5));
    assert_eq!(leads_to(&mut answers, 5, "a"), Some(Some(7)));
    assert_eq!(leads_to(&mut answers, 5, "b"), Some(None));
    let folder = answers.answer(&MetaQuery::Attr(InodeId(5))).expect("is known");
    assert_eq!(folder, Ok(MetaAnswer::Attr(Attr { kind: FileKind::Directory, ..attr(5) })));
    answers.done(answers.now(), &unlink(5, "a"), &named(7, 5));
    assert_eq!(leads_to(&mut answers, 5, "a"), None);
    assert_eq!(leads_to(&mut answers, 5, "b"), Some(None));
}

#[test]
fn what_came_between_an_operation_and_its_answer_makes_it_worthless() {
    for change in [Change::Inode(InodeId(5)), Change::Inode(InodeId(7)), Change::Name(InodeId(5), name("a"))] {
        let mut answers = with_folder();
        let sent = answers.now();
        answers.forget([&change]);
        answers.done(sent, &create(5, "a"), &named(7, 5));
        let of_folder = change == Change::Inode(InodeId(5));
        assert_eq!(leads_to(&mut answers, 5, "a").is_some(), of_folder, "{change:?}: the name and the file only");
        assert_eq!(answers.answer(&MetaQuery::Attr(InodeId(5))).is_none(), of_folder, "{change:?}");
        assert_eq!(leads_to(&mut answers, 5, "b").is_none(), of_folder, "{change:?}");
    }
}

#[test]
fn a_batch_tells_what_is_so_at_its_end() {
    let mut answers = with_folder();
    let ops = vec![create(5, "a"), create(5, "b"), unlink(5, "a"), create(5, "c")];
    let failed = Err(Error::new(Kind::Exists, "'c' exists"));
    let replies = vec![Ok(named(7, 5)), Ok(named(8, 5)), Ok(named(7, 5)), failed];
    answers.done(answers.now(), &MetaOp::Batch(ops), &MetaReply::Batch(replies));
    assert_eq!(leads_to(&mut answers, 5, "a"), None);
    assert_eq!(leads_to(&mut answers, 5, "b"), Some(Some(8)));
    assert_eq!(leads_to(&mut answers, 5, "d"), Some(None));
}

#[test]
fn a_folder_that_was_listed_to_its_end_lacks_all_other_names() {
    let mut answers = remembering();
    let page = |after: Option<&str>, names: &[&str], more| {
        let query = MetaQuery::List { ino: InodeId(1), after: after.map(name), limit: 2, extents: false };
        let entries = names.iter().map(|text| entry(text)).collect();
        (query, Ok(MetaAnswer::Listing(Listing { entries, stripes: Vec::new(), more })))
    };
    let (first, second) = (page(None, &["b", "d"], true), page(Some("d"), &["f"], false));
    answers.learn(answers.now(), first.0.clone(), &first.1);
    assert_eq!(["a", "c", "e"].map(|text| leads_to(&mut answers, 1, text)), [Some(None), Some(None), None]);
    // Another made a name while the second page was asked for.
    let asked = answers.now();
    answers.forget([&Change::Inode(InodeId(1)), &Change::Name(InodeId(1), name("a"))]);
    answers.learn(asked, second.0.clone(), &second.1);
    assert_eq!(["a", "c", "e", "g"].map(|text| leads_to(&mut answers, 1, text)), [None; 4]);
    // A second page tells nothing of what is before it.
    answers.learn(answers.now(), second.0.clone(), &second.1);
    assert_eq!(["a", "c", "e", "g"].map(|text| leads_to(&mut answers, 1, text)), [None; 4]);
    answers.learn(answers.now(), first.0, &first.1);
    answers.learn(answers.now(), second.0, &second.1);
    assert_eq!(["a", "c", "e", "g"].map(|text| leads_to(&mut answers, 1, text)), [Some(None); 4]);
}
