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
