//! What a layer is made of, and how layers lie over each other.

use std::sync::Arc;

use super::*;

#[test]
fn files_folders_and_links_are_as_the_layer_says() {
    let root = root();
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let layer = Tar::default()
        .add(With {
            kind: EntryType::Directory,
            path: b"./",
            mode: 0o711,
            ..With::default()
        })
        .folder("etc/")
        .add(With {
            path: b"./etc/passwd",
            content: b"root:x:0:0",
            mode: 0o640,
            mtime: 1_234_567_890,
            ..With::default()
        })
        .symlink("etc/mtab", "/proc/mounts")
        .symlink("up", "../../../etc/passwd")
        .hard_link("copy", "/etc/passwd")
        .file("/absolute", "below the root")
        .file("without/parents/file", "x")
        .pax(&[("path", long.as_bytes()), ("mtime", b"77.5")])
        .file("short", "long name");
    let unpacked = root.apply(layer).expect("good");
    assert_eq!((unpacked.entries, unpacked.notes.len()), (9, 0));
    assert_eq!(root.read("etc/passwd"), "root:x:0:0");
    assert_eq!(root.mode("etc/passwd"), 0o640);
    assert_eq!(root.mode(""), 0o711);
    assert_eq!(root.mode("without/parents"), 0o755);
    assert_eq!(root.read("absolute"), "below the root");
    assert_eq!(root.read(&long), "long name");
    let meta = |path: &str| fs::symlink_metadata(root.path.join(path)).expect("there");
    assert_eq!(meta("etc/passwd").mtime(), 1_234_567_890);
    assert_eq!(meta("etc").mtime(), 1_000_000_000, "set behind its files");
    assert_eq!(meta(&long).mtime(), 77);
    assert_eq!(meta("copy").ino(), meta("etc/passwd").ino());
    let link = |path: &str| fs::read_link(root.path.join(path)).expect("a link");
    assert_eq!(link("etc/mtab"), Path::new("/proc/mounts"));
    assert_eq!(link("up"), Path::new("../../../etc/passwd"));
    root.is_tight();
}

#[test]
fn gzip_zstd_and_plain_archives_are_told_apart() {
    let tar = Tar::default().file("a", "content").end();
    let diff_id = sha256(&tar);
    let (first, second) = tar.split_at(700);
    let members = [gzip(first), gzip(second)].concat();
    let zstd = zstd::encode_all(tar.as_slice(), 1).expect("zstd");
    let mut skippable = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, b'x', b'y', b'z'];
    skippable.extend_from_slice(&zstd);
    for packed in [tar.clone(), gzip(&tar), members, zstd, skippable] {
        let root = root();
        let options = Options::default();
        let mut budget = Budget::new(&options.bounds);
        let handle = File::open(&root.path).expect("open");
        let packed = packed.as_slice();
        let unpacked = apply(&handle, packed, Some(&diff_id), &options, &mut budget);
        assert_eq!(unpacked.expect("good").bytes, tar.len() as u64);
        assert_eq!(root.read("a"), "content");
    }
}

#[test]
fn the_archive_must_have_the_digest_that_the_image_says() {
    let options = Options::default();
    let tar = Tar::default().file("a", "content").end();
    let padded = [tar.as_slice(), &[0; 512]].concat();
    for (diff_id, good) in [
        (sha256(&padded), true),
        (Digest::of(Algorithm::Sha512, &padded), true),
        (sha256(&tar), false),
        (sha256(b"x"), false),
    ] {
        let root = root();
        let mut budget = Budget::new(&options.bounds);
        let handle = File::open(&root.path).expect("open");
        let packed = padded.as_slice();
        let result = apply(&handle, packed, Some(&diff_id), &options, &mut budget);
        match result {
            Ok(_) => assert!(good),
            Err(UnpackError::Mismatch { found, .. }) => {
                assert!(!good);
                assert_eq!(found, sha256(&padded), "all of it counts, padding too");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_layer_over_another_changes_replaces_and_hides() {
    let root = root();
    let base = Tar::default()
        .folder("keep/")
        .file("keep/a", "1")
        .file("gone", "1")
        .folder("gone-too/")
        .file("gone-too/x", "1")
        .file("was-file", "1")
        .folder("was-folder/")
        .file("was-folder/x", "1")
        .symlink("was-link", "keep");
    root.apply(base).expect("base");
    let next = Tar::default()
        .folder("keep/")
        .file("keep/.wh.missing", "")
        .file("keep/b", "2")
        .file(".wh.gone", "")
        .file(".wh.gone-too", "")
        .folder("was-file/")
        .file("was-file/y", "2")
        .file("was-folder", "2")
        .folder("was-link/")
        .file("was-link/z", "2");
    root.apply(next).expect("next");
    assert_eq!(root.read("keep/a"), "1");
    assert_eq!(root.read("keep/b"), "2");
    assert_eq!(root.read("was-file/y"), "2");
    assert_eq!(root.read("was-folder"), "2");
    assert_eq!(root.read("was-link/z"), "2");
    assert!(!root.has("keep/z"), "written through a link");
    assert!(!root.has("gone") && !root.has("gone-too"));
    assert!(!root.has("keep/.wh.missing") && !root.has("keep/missing"));
}

#[test]
fn an_opaque_folder_hides_what_was_there_wherever_in_the_layer_it_is_said() {
    for first in [true, false] {
        let root = root();
        let base = Tar::default().file("a/b/c/bar", "1").file("a/x", "1");
        root.apply(base).expect("base");
        let opaque = |tar: Tar| tar.file("a/.wh..wh..opq", "");
        let mut next = Tar::default().folder("a/");
        if first {
            next = opaque(next);
        }
        next = next.folder("a/b/").folder("a/b/c/").file("a/b/c/foo", "2");
        if !first {
            next = opaque(next);
        }
        root.apply(next).expect("next");
        assert_eq!(root.read("a/b/c/foo"), "2");
        assert!(!root.has("a/b/c/bar") && !root.has("a/x"), "{first}");
        assert!(!root.has("a/.wh..wh..opq"));
    }
}

#[test]
fn a_whiteout_hides_nothing_of_its_own_layer() {
    let root = root();
    root.apply(Tar::default().file("a/old", "1")).expect("base");
    let next = Tar::default()
        .file("f", "2")
        .file(".wh.f", "")
        .file("a/new", "2")
        .file(".wh.a", "");
    root.apply(next).expect("next");
    assert_eq!(root.read("f"), "2");
    assert_eq!(root.read("a/new"), "2");
    assert!(!root.has("a/old"));
}

#[test]
fn for_overlayfs_whiteouts_become_devices_and_attributes() {
    let root = root();
    if !has_attributes(&root.path) {
        return;
    }
    let layer = Tar::default()
        .file(".wh.missing", "")
        .file("deep/er/.wh.x", "")
        .file("a/.wh..wh..opq", "")
        .file("a/new", "1")
        .file(".wh.replaced", "")
        .folder("replaced/")
        .file("both/own", "1")
        .file(".wh.both", "")
        .file("plain", "1")
        .file(".wh.plain", "");
    root.put(&layer.end(), &overlay()).expect("good");
    assert!(is_whiteout(&root.path.join("missing")));
    assert!(is_whiteout(&root.path.join("deep/er/x")));
    assert!(is_opaque(&root.path.join("a")));
    assert_eq!(root.read("a/new"), "1");
    assert!(is_opaque(&root.path.join("replaced")));
    assert!(is_opaque(&root.path.join("both")));
    assert_eq!(root.read("both/own"), "1");
    assert_eq!(root.read("plain"), "1");
    assert!(!is_opaque(&root.path.join("deep")));
}

#[test]
fn the_last_of_entries_with_one_name_counts_and_writes_through_nothing() {
    let root = root();
    let layer = Tar::default()
        .file("f", "first")
        .hard_link("same", "f")
        .file("f", "second")
        .symlink("l", "same")
        .file("l", "a file now")
        .folder("d/")
        .file("d/x", "1")
        .file("d", "a file now")
        .file("e", "1")
        .folder("e/")
        .file("e/x", "2")
        .hard_link("same", "same");
    root.apply(layer).expect("good");
    assert_eq!(root.read("f"), "second");
    assert_eq!(root.read("same"), "first");
    assert_eq!(root.read("l"), "a file now");
    assert_eq!(root.read("d"), "a file now");
    assert_eq!(root.read("e/x"), "2");
}

#[test]
fn folders_may_be_closed_and_are_filled_all_the_same() {
    let root = root();
    let closed = |path: &'static str| With {
        kind: EntryType::Directory,
        path: path.as_bytes(),
        mode: 0o500,
        mtime: 5,
        ..With::default()
    };
    let layer = Tar::default()
        .add(closed("a/"))
        .add(closed("a/b/"))
        .file("a/b/c", "1");
    root.apply(layer).expect("base");
    assert_eq!((root.mode("a"), root.mode("a/b")), (0o500, 0o500));
    root.apply(Tar::default().file("a/b/d", "2")).expect("next");
    assert_eq!(root.read("a/b/d"), "2");
    assert_eq!((root.mode("a"), root.mode("a/b")), (0o500, 0o500));
    let meta = fs::metadata(root.path.join("a/b")).expect("there");
    assert_eq!(meta.mtime(), 5, "the next layer does not speak of it");
    root.apply(Tar::default().file(".wh.a", "")).expect("last");
    assert!(!root.has("a"));
}

#[test]
fn owners_are_mapped_and_strangers_refused() {
    let map: MapIds = Arc::new(|user: u32, group: u32| {
        (user < 10).then(|| (user + first_id(), group + first_id()))
    });
    let options = Options {
        owners: Owners::Mapped(map),
        ..Options::default()
    };
    let with = |ids| {
        Tar::default()
            .add(With {
                path: b"f",
                ids,
                ..With::default()
            })
            .end()
    };
    let root = root();
    if is_root() {
        root.put(&with((5, 6)), &options).expect("mapped");
        let meta = fs::metadata(root.path.join("f")).expect("there");
        assert_eq!((meta.uid(), meta.gid()), (5 + first_id(), 6 + first_id()));
    } else {
        println!("skipped: root is needed");
    }
    says(root.put(&with((10, 0)), &options), "10:0");
    says(root.put(&with((1 << 40, 0)), &options), "nobody is here");
    let odd: MapIds = Arc::new(|_: u32, _: u32| Some((u32::MAX, 0)));
    let options = Options {
        owners: Owners::Mapped(odd),
        ..Options::default()
    };
    says(root.put(&with((0, 0)), &options), "nobody is here");
}

/// Where the test's ids begin.
fn first_id() -> u32 {
    200_000
}

fn is_root() -> bool {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::metadata(dir.path()).expect("there").uid() == 0
}

#[test]
fn setuid_bits_go_unless_they_are_wanted() {
    let layer = || {
        Tar::default()
            .add(With {
                path: b"su",
                mode: 0o6755,
                ..With::default()
            })
            .add(With {
                kind: EntryType::Directory,
                path: b"tmp/",
                mode: 0o1777,
                ..With::default()
            })
            .end()
    };
    let root = root();
    let unpacked = root.put(&layer(), &Options::default()).expect("good");
    assert_eq!(root.mode("su"), 0o755);
    assert_eq!(root.mode("tmp"), 0o1777);
    assert!(unpacked.notes[0].contains("setuid"), "{unpacked:?}");
    let options = Options {
        set_id: SetId::Keep,
        ..Options::default()
    };
    let root = super::root();
    let unpacked = root.put(&layer(), &options).expect("good");
    assert_eq!(root.mode("su"), 0o6755);
    assert!(unpacked.notes.is_empty());
}

#[test]
fn what_is_left_out_is_said() {
    let root = root();
    let layer = Tar::default()
        .link(EntryType::Char, "dev/null", "")
        .link(EntryType::Block, "dev/sda", "")
        .link(EntryType::Fifo, "pipe", "")
        .link(EntryType::new(b'V'), "volume", "")
        .file(".wh..wh.plnk", "")
        .file(".wh..wh.orph/x", "")
        .pax(&[
            ("SCHILY.xattr.security.capability", b"\x01\0\0\x02\n=\n\xff"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
        ])
        .file("ping", "1")
        .pax(&[("LIBARCHIVE.xattr.user.note", b"eA==")])
        .file("noted", "2");
    let notes = root.apply(layer).expect("good").notes;
    let text = notes.join("\n");
    for (what, first) in [
        ("devices were left out", "`dev/null` and 1 more"),
        ("named pipes were left out", "`pipe`"),
        ("unknown types", "`volume`"),
        ("aufs", "`.wh..wh.plnk` and 1 more"),
        ("security.capability", "`ping`"),
        ("extended attributes", "`noted`"),
    ] {
        assert!(text.contains(what) && text.contains(first), "{text}");
    }
    assert_eq!(root.read("ping"), "1");
    assert!(!root.has("dev") && !root.has("pipe") && !root.has("volume"));
    if has_attributes(&root.path) {
        assert!(!is_opaque(&root.path.join("ping")));
    }
}
