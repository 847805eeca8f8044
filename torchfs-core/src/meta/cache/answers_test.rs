use super::*;
use crate::error::Kind;
use crate::ids::Version;
use crate::meta::{FileKind, Timestamp};

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
