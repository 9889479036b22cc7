use super::*;
use flate2::Compression;
use flate2::write::GzEncoder;

fn pack(entries: &[(&str, tar::EntryType, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        // Written raw: the library would refuse to make hostile names.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if kind.is_symlink() || kind.is_hard_link() {
            header.set_link_name("/etc/passwd").expect("short");
        }
        header.set_cksum();
        builder.append(&header, *content).expect("append");
    }
    builder.into_inner().expect("tar").finish().expect("gzip")
}

fn digest_of(entries: &[(&str, &[u8])]) -> String {
    let mut digest = TreeDigest::default();
    for (path, content) in entries {
        digest.add(path, false, Sha256::digest(content).into());
    }
    digest.finish()
}

fn attempt(bytes: &[u8], claimed: &str, bound: u64) -> Result<(), String> {
    let dir = tempfile::tempdir().expect("tempdir");
    let result = unpack(bytes, dir.path(), claimed, bound, None).map_err(|e| e.to_string());
    let left: Vec<_> = fs::read_dir(dir.path()).expect("read").flatten().collect();
    assert_eq!(left.len(), usize::from(result.is_ok()), "{left:?}");
    result
}

use tar::EntryType;

#[test]
fn a_good_archive_becomes_a_tree() {
    let claimed = digest_of(&[("a.txt", b"hello"), ("sub/b", b"x")]);
    let bytes = pack(&[
        ("sub/", EntryType::Directory, b""),
        ("./a.txt", EntryType::Regular, b"hello"),
        ("sub/b", EntryType::Regular, b"x"),
    ]);
    assert_eq!(attempt(&bytes, &claimed, 1 << 20), Ok(()));
    let wrong = attempt(&bytes, &"0".repeat(64), 1 << 20).expect_err("mismatch");
    assert!(wrong.contains("digest"), "{wrong}");
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    for (name, kind, says) in [
        ("../evil", EntryType::Regular, "does not stay inside"),
        ("a/../../evil", EntryType::Regular, "does not stay inside"),
        ("/etc/evil", EntryType::Regular, "absolute"),
        ("link", EntryType::Symlink, "symbolic link"),
        ("hard", EntryType::Link, "hard link"),
        ("dev", EntryType::Char, "device"),
        ("blk", EntryType::Block, "device"),
        ("pipe", EntryType::Fifo, "named pipe"),
    ] {
        let reason = attempt(&pack(&[(name, kind, b"")]), "x", 1 << 20).expect_err(name);
        assert!(reason.contains(says), "{name}: {reason}");
    }
    let twice = pack(&[
        ("a", EntryType::Regular, b"1"),
        ("a", EntryType::Regular, b"2"),
    ]);
    assert!(
        attempt(&twice, "x", 1 << 20)
            .expect_err("twice")
            .contains("twice")
    );
}

#[test]
fn cut_oversized_and_exploding_uploads_are_refused() {
    let content = vec![7; 100_000];
    let bytes = pack(&[("a", EntryType::Regular, &content)]);
    let cut = attempt(&bytes[..bytes.len() / 2], "x", 1 << 20).expect_err("cut");
    assert!(cut.contains("cut off"), "{cut}");
    // 100 kB out of a few hundred bytes: over four times the bound of 1,000.
    let bomb = attempt(&bytes, "x", 1000).expect_err("bomb");
    assert!(bomb.contains("over the bound"), "{bomb}");
    let large = attempt(&bytes, "x", 10).expect_err("large");
    assert!(large.contains("over the bound"), "{large}");
    let none = attempt(b"", "x", 10).expect_err("nothing");
    assert!(none.contains("cut off"), "{none}");
}

fn plain(entries: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_path(name).expect("short");
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        if kind.is_symlink() {
            header.set_link_name(content).expect("short");
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, io::empty()).expect("append");
        } else {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).expect("append");
        }
    }
    builder.into_inner().expect("tar")
}

fn export(bytes: &[u8], max: u64) -> Result<(String, usize, bool), String> {
    let dir = tempfile::tempdir().expect("tempdir");
    let result = unpack_plain(bytes, dir.path(), max, None, &|| Ok(()), || Ok(()));
    let found = result.map_err(|error| error.to_string())?;
    assert!(found.is_new);
    let linked = dir.path().join(&found.digest).join("b/link");
    let is_plain = fs::symlink_metadata(linked).is_ok_and(|found| found.is_file());
    Ok((found.digest, found.files, is_plain))
}

#[test]
fn links_inside_become_files_and_others_are_refused() {
    let file = ("a", EntryType::Regular, "hello");
    let linked = |target| plain(&[file, ("b/link", EntryType::Symlink, target)]);
    let (_, files, is_plain) = export(&linked("../a"), 1 << 20).expect("good");
    assert_eq!((files, is_plain), (2, true));
    for (target, says) in [
        ("../../etc/passwd", "out of the tree"),
        ("/etc/passwd", "out of the tree"),
        ("../b", "no file of the same tree"),
        ("link", "too many others"),
        ("none", "no file of the same tree"),
    ] {
        let error = export(&linked(target), 1 << 20).expect_err(target);
        assert!(error.contains(says), "{target}: {error}");
    }
    // Many links to one large file are as large.
    let large = "x".repeat(4000);
    let names: Vec<String> = (0..20).map(|n| format!("l{n}")).collect();
    let mut entries = vec![("a", EntryType::Regular, large.as_str())];
    entries.extend(names.iter().map(|n| (n.as_str(), EntryType::Symlink, "a")));
    assert!(export(&plain(&entries), 1 << 20).is_ok());
    let error = export(&plain(&entries), 40_000).expect_err("too large");
    assert!(error.contains("over the bound"), "{error}");
}

#[test]
fn what_is_cut_off_gets_no_name() {
    let dir = tempfile::tempdir().expect("tempdir");
    let bytes = plain(&[("a", EntryType::Regular, "hello")]);
    let failed = || Err(UnpackError::Bad("git ended with 128".into()));
    for bytes in [&bytes[..], &bytes[..600], &[]] {
        let room = || Ok::<(), String>(());
        let result = unpack_plain(bytes, dir.path(), 1 << 20, None, &room, failed);
        let error = result.expect_err("failed");
        assert!(error.to_string().contains("128"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
    }
}

#[test]
fn a_disk_that_fills_up_ends_it() {
    let dir = tempfile::tempdir().expect("tempdir");
    let large = "x".repeat(ASK_EVERY as usize);
    let bytes = plain(&[("a", EntryType::Regular, &large)]);
    let full = || Err("the disk is full".to_owned());
    let result = unpack_plain(&bytes[..], dir.path(), 1 << 30, None, &full, || Ok(()));
    let error = result.expect_err("no room");
    assert_eq!(error.to_string(), "the disk is full");
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 0);
}

#[test]
fn a_tree_that_goes_has_no_name_any_more() {
    let dir = tempfile::tempdir().expect("tempdir");
    fs::create_dir(dir.path().join("d")).expect("mkdir");
    let gone = take_away(dir.path(), "d").expect("there");
    assert!(gone.is_dir() && !dir.path().join("d").exists());
    assert_eq!(take_away(dir.path(), "d"), None);
    sweep(dir.path());
    assert!(!gone.exists());
}
