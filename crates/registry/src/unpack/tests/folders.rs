//! Layers in folders of their own.

use super::*;

fn layers() -> (tempfile::TempDir, Layers) {
    let dir = tempfile::tempdir().expect("tempdir");
    let layers = Layers::open(dir.path()).expect("open");
    (dir, layers)
}

#[test]
fn a_layer_is_unpacked_once_and_there_whole_or_not_at_all() {
    let (dir, layers) = layers();
    let tar = Tar::default().file("a", "1").folder("b/").end();
    let diff_id = sha256(&tar);
    let options = Options::default();
    let mut budget = Budget::new(&options.bounds);
    let packed = gzip(&tar);
    let unpacked = layers
        .unpack(&diff_id, packed.as_slice(), &options, &mut budget)
        .expect("good");
    assert_eq!(unpacked.entries, 2);
    let path = layers.path(&diff_id);
    assert_eq!(fs::read_to_string(path.join("a")).expect("read"), "1");
    let meta = fs::metadata(&path).expect("there");
    assert_eq!(meta.permissions().mode() & 0o777, 0o755);
    // Not read again.
    let again = layers.unpack(&diff_id, &b"broken"[..], &options, &mut budget);
    assert_eq!(again.expect("there"), Unpacked::default());
    let wrong = sha256(b"another");
    let result = layers.unpack(&wrong, packed.as_slice(), &options, &mut budget);
    assert!(matches!(result, Err(UnpackError::Mismatch { .. })));
    assert!(!layers.has(&wrong) && layers.has(&diff_id));
    let count = fs::read_dir(dir.path()).expect("read").count();
    assert_eq!(count, 1, "nothing is left of the failure");
}

#[test]
fn layers_that_are_not_kept_go_with_what_a_kill_left() {
    let (dir, layers) = layers();
    let options = Options::default();
    let mut digests = Vec::new();
    for name in ["one", "two"] {
        let tar = Tar::default()
            .add(With {
                kind: EntryType::Directory,
                path: b"closed/",
                mode: 0o000,
                ..With::default()
            })
            .file("closed/x", name)
            .end();
        let digest = sha256(&tar);
        let mut budget = Budget::new(&options.bounds);
        layers
            .unpack(&digest, tar.as_slice(), &options, &mut budget)
            .expect("good");
        digests.push(digest);
    }
    fs::create_dir(dir.path().join(".new-0123")).expect("mkdir");
    fs::write(dir.path().join(".new-0123/half"), "x").expect("write");
    fs::create_dir(dir.path().join(".gone-0123")).expect("mkdir");
    fs::create_dir(dir.path().join("somebody-elses")).expect("mkdir");
    assert_eq!(layers.sweep(&digests[..1]).expect("swept"), 1);
    assert!(layers.has(&digests[0]) && !layers.has(&digests[1]));
    let count = fs::read_dir(dir.path()).expect("read").count();
    assert_eq!(count, 2, "the kept layer, and what is not ours");
}

#[test]
fn the_same_layer_may_be_unpacked_by_many_at_once() {
    let (dir, layers) = layers();
    let mut tar = Tar::default();
    for number in 0..50 {
        tar = tar.file(&format!("f{number}"), "x");
    }
    let tar = tar.end();
    let diff_id = sha256(&tar);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let options = Options::default();
                let mut budget = Budget::new(&options.bounds);
                layers
                    .unpack(&diff_id, tar.as_slice(), &options, &mut budget)
                    .expect("good");
            });
        }
        scope.spawn(|| {
            for _ in 0..10 {
                layers.sweep(std::slice::from_ref(&diff_id)).expect("swept");
            }
        });
    });
    let count = fs::read_dir(layers.path(&diff_id)).expect("read").count();
    assert_eq!(count, 50);
    assert_eq!(fs::read_dir(dir.path()).expect("read").count(), 1);
}
