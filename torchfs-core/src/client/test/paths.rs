//! Operations on paths.

use super::Rig;
use crate::error::Kind;
use crate::meta::FileKind;

#[tokio::test]
async fn folders_files_and_links_by_path() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    client.mkdir_all("/a/b/c").await.expect("made");
    client.mkdir_all("a/b/c/").await.expect("is there");
    client.write_file("/a/b/file", "text").await.expect("written");
    client.symlink("b/file", "/a/link").await.expect("link");
    client.link("/a/b/file", "/a/hard").await.expect("hard link");
    assert_eq!(client.read_file("a/link").await.expect("read"), "text");
    assert_eq!(client.read_link("/a/link").await.expect("target"), b"b/file");
    assert_eq!(client.lstat("/a/link").await.expect("lstat").kind, FileKind::Symlink);
    assert_eq!(client.stat("/a/hard").await.expect("stat").nlink, 2);
    client.rename("/a/b/file", "/a/b/c/moved").await.expect("renamed");
    client.write_file("/a/b/c/other", "other").await.expect("written");
    client.rename("/a/b/c/other", "/a/b/c/moved").await.expect("replaced");
    assert_eq!(client.read_file("/a/b/c/moved").await.expect("read"), "other");
    let names: Vec<String> =
        client.list("/a").await.expect("list").iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(names, ["b", "hard", "link"]);
    client.unlink("/a/link").await.expect("unlinked");
    assert_eq!(client.rmdir("/a/b").await.expect_err("full").kind(), Kind::NotEmpty);
}

#[tokio::test]
async fn errors_name_the_path_and_have_the_right_kind() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    client.mkdir("/d").await.expect("made");
    client.write_file("/f", "").await.expect("written");
    let missing = client.stat("/d/x").await.expect_err("missing");
    assert_eq!(missing.to_string(), "/d/x: no such file");
    let cases = [
        (client.open("/d").await.expect_err("folder"), Kind::IsDirectory),
        (client.write_file("/d", "x").await.expect_err("folder"), Kind::IsDirectory),
        (client.mkdir("/d").await.expect_err("there"), Kind::Exists),
        (client.mkdir_all("/f/x").await.expect_err("a file on the way"), Kind::NotDirectory),
        (client.mkdir("/x/y").await.expect_err("nothing above"), Kind::NotFound),
        (client.unlink("/d").await.expect_err("folder"), Kind::IsDirectory),
        (client.rmdir("/f").await.expect_err("file"), Kind::NotDirectory),
        (client.unlink("/").await.expect_err("root"), Kind::IsDirectory),
        (client.read_link("/f").await.expect_err("no link"), Kind::InvalidInput),
        (client.remove_all("/nothing").await.expect_err("missing"), Kind::NotFound),
    ];
    for (error, kind) in cases {
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.to_string().starts_with('/'), "{error}");
    }
}

#[tokio::test]
async fn remove_all_takes_a_whole_tree_of_any_depth_and_width() {
    let rig = Rig::new().await;
    let client = rig.client().await;
    let deep: String = (0..60).map(|level| format!("/d{level}")).collect();
    client.mkdir_all(format!("/t{deep}")).await.expect("made");
    for number in 0..1500 {
        client.write_file(format!("/t/d0/{number}"), "").await.expect("written");
    }
    client.symlink("/elsewhere", "/t/link").await.expect("link");
    client.write_file("/keep", "kept").await.expect("written");
    assert_eq!(client.remove_all("/t").await.expect("removed"), 1 + 60 + 1500 + 1);
    let left: Vec<String> = client.list("/").await.expect("list").iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(left, ["keep"]);
    assert_eq!(client.remove_all("/keep").await.expect("a file"), 1);
}
