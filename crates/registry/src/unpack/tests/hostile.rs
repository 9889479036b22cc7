//! What a hostile layer tries, and a broken one.

use std::time::Instant;

use super::*;

#[test]
fn paths_that_leave_the_root_are_refused() {
    for path in [
        "../outside/evil",
        "a/../../outside/evil",
        "./..",
        "..",
        "/../outside/evil",
        "a/..",
    ] {
        let root = root();
        says(root.apply(Tar::default().file(path, "x")), "does not stay");
        says(root.apply(Tar::default().folder(path)), "does not stay");
        let whiteout = path.rsplit_once('/').map_or("..", |(folder, _)| folder);
        let whiteout = format!("{whiteout}/.wh.file");
        if whiteout.contains("..") {
            says(root.apply(Tar::default().file(&whiteout, "")), "does not");
        }
        let long = Tar::default().pax(&[("path", path.as_bytes())]);
        says(root.apply(long.file("innocent", "x")), "does not stay");
        root.is_tight();
    }
}

#[test]
fn whiteouts_of_what_is_no_name_are_refused() {
    for options in [Options::default(), overlay()] {
        for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
            let root = root();
            let layer = Tar::default().file(name, "").end();
            says(root.put(&layer, &options), "names nothing");
            root.is_tight();
        }
        let root = root();
        let layer = Tar::default().file(".wh.a/b", "x").end();
        says(root.put(&layer, &options), "below a whiteout");
    }
}

#[test]
fn nothing_is_written_below_a_link() {
    for target in ["../outside", "/", "sub", "."] {
        for options in [Options::default(), overlay()] {
            let root = root();
            let absolute = root.outside.to_string_lossy().into_owned();
            let target = if target == "/" {
                absolute.as_str()
            } else {
                target
            };
            let base = Tar::default().folder("sub/").symlink("link", target);
            root.put(&base.end(), &options).expect("a link is data");
            for layer in [
                Tar::default().file("link/evil", "x"),
                Tar::default().file("link/deeper/evil", "x"),
                Tar::default().folder("link/evil/"),
                Tar::default().symlink("link/evil", "x"),
                Tar::default().file("link/.wh.file", ""),
                Tar::default().file("link/.wh..wh..opq", ""),
                Tar::default()
                    .file("mine", "x")
                    .hard_link("link/evil", "mine"),
                Tar::default().hard_link("mine", "link/file"),
            ] {
                says(root.put(&layer.end(), &options), "below");
            }
            // In one layer, as CVE after CVE had it.
            let layer = Tar::default()
                .symlink("again", target)
                .file("again/evil", "x");
            says(root.put(&layer.end(), &options), "below");
            assert!(!root.has("sub/evil"));
            root.is_tight();
        }
    }
}

#[test]
fn a_folder_in_place_of_a_link_is_a_folder() {
    let root = root();
    let layer = Tar::default()
        .symlink("link", "../outside")
        .folder("link/")
        .file("link/mine", "x");
    root.apply(layer).expect("good");
    assert_eq!(root.read("link/mine"), "x");
    root.is_tight();
}

#[test]
fn hard_links_lead_to_files_of_the_layer_only() {
    let root = root();
    let outside = root.outside.join("file");
    for target in [
        "../outside/file",
        "a/../../outside/file",
        &outside.to_string_lossy(),
        "missing",
        "missing/file",
        "folder",
        "",
        "/",
    ] {
        let layer = Tar::default().folder("folder/").hard_link("stolen", target);
        assert!(root.apply(layer).is_err(), "{target}");
        assert!(!root.has("stolen"));
    }
    // A link's other name is the link, not what it points to.
    let layer = Tar::default()
        .symlink("link", "../outside/file")
        .hard_link("other", "link")
        .file("other", "written");
    root.apply(layer).expect("good");
    assert_eq!(root.read("other"), "written");
    root.is_tight();
}

#[test]
fn a_whiteout_is_no_file_to_link_to() {
    let root = root();
    let layer = Tar::default().file(".wh.x", "").hard_link("y", "x");
    says(root.put(&layer.end(), &overlay()), "no file of the layer");
}

#[test]
fn ten_gigabytes_of_zeros_in_ten_megabytes_end_early() {
    // One member of gzip for each 16 MB, all the same bytes.
    const MEMBER: u64 = 16 << 20;
    const MEMBERS: u64 = 640;
    let mut header = Header::new_gnu();
    header.set_path("zeros").expect("short");
    header.set_size(MEMBERS * MEMBER);
    header.set_mode(0o644);
    header.set_cksum();
    let mut packed = gzip(header.as_bytes());
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder
        .write_all(&vec![0; MEMBER as usize])
        .expect("memory");
    let member = encoder.finish().expect("memory");
    for _ in 0..MEMBERS {
        packed.extend_from_slice(&member);
    }
    assert!(packed.len() < 16 << 20, "{}", packed.len());
    let options = Options {
        bounds: Bounds {
            bytes: 32 << 20,
            ..Bounds::default()
        },
        ..Options::default()
    };
    let root = root();
    let began = Instant::now();
    let error = root.put(&packed, &options).expect_err("too large");
    let UnpackError::TooLarge {
        bound,
        packed: read,
        came,
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(bound, 32 << 20);
    assert!(came > bound && came < bound + (1 << 20), "{came}");
    assert!(read < packed.len() as u64 / 10, "{read} were read");
    assert!(began.elapsed().as_secs() < 60);
    let size = fs::metadata(root.path.join("zeros")).expect("there").len();
    assert!(size <= bound);
}

#[test]
fn the_bounds_are_of_the_whole_image() {
    let options = Options {
        bounds: Bounds {
            bytes: 10_000,
            entries: 5,
            ..Bounds::default()
        },
        ..Options::default()
    };
    let root = root();
    let handle = File::open(&root.path).expect("open");
    let mut budget = Budget::new(&options.bounds);
    let layer = |names: &[&str]| {
        let tar = names.iter().fold(Tar::default(), |t, n| t.file(n, "x"));
        tar.end()
    };
    let mut put = |layer: Vec<u8>| apply(&handle, layer.as_slice(), None, &options, &mut budget);
    put(layer(&["a", "b"])).expect("two");
    put(layer(&["c", "d"])).expect("four");
    says(put(layer(&["e", "f"])), "over 5 entries");
    let mut budget = Budget::new(&options.bounds);
    let mut put = |layer: Vec<u8>| apply(&handle, layer.as_slice(), None, &options, &mut budget);
    let big = Tar::default().file("big", &"x".repeat(5_000)).end();
    put(big.clone()).expect("one");
    says(put(big), "over its bound");
}

#[test]
fn paths_are_bounded() {
    let root = root();
    let long = "x/".repeat(1_001) + "x";
    let deep = "x/".repeat(100) + "x";
    let name = "x".repeat(256);
    for (path, what) in [
        (&long, "too long"),
        (&deep, "too deep"),
        (&name, "too long"),
    ] {
        let layer = Tar::default().pax(&[("path", path.as_bytes())]);
        says(root.apply(layer.file("x", "x")), what);
    }
    let layer = Tar::default().pax(&[("path", b"a\0b")]);
    root.apply(layer.file("x", "1")).expect("ends at the zero");
    assert_eq!(root.read("a"), "1");
    let deep = "x/".repeat(98) + "x";
    let layer = Tar::default().pax(&[("path", deep.as_bytes())]);
    root.apply(layer.file("x", "deep")).expect("good");
    assert_eq!(root.read(&deep), "deep");
    root.apply(Tar::default().file(".wh.x", "")).expect("gone");
    assert!(!root.has("x"));
}

#[test]
fn a_hundred_thousand_files_are_no_matter() {
    const COUNT: usize = 100_000;
    let mut layer = Tar::default();
    for number in 0..COUNT {
        layer = layer.file(&format!("d{}/f{number}", number % 100), "");
    }
    let root = root();
    let unpacked = root.apply(layer).expect("good");
    assert_eq!(unpacked.entries, COUNT as u64);
    let count = |folder: &str| fs::read_dir(root.path.join(folder)).expect("read").count();
    assert_eq!((count("d0"), count("d99"), count("")), (1_000, 1_000, 100));
    let next = (0..100).fold(Tar::default(), |t, n| t.file(&format!(".wh.d{n}"), ""));
    root.apply(next).expect("next");
    assert_eq!(count(""), 0);
}

#[test]
fn broken_archives_are_refused() {
    let good = Tar::default().file("a", &"x".repeat(2_000)).end();
    let mut wrong = good.clone();
    wrong[0] = b'b';
    says(root().put(&wrong, &Options::default()), "checksum");
    let text = "not an archive at all, but long enough to be a header ".repeat(20);
    says(root().put(text.as_bytes(), &Options::default()), "checksum");
    for cut in [100, 511, 513, 1_000, 2_300] {
        let result = root().put(&good[..cut], &Options::default());
        assert!(result.is_err(), "cut at {cut}");
        let packed = gzip(&good);
        let cut = packed.len() * cut / good.len();
        let result = root().put(&packed[..cut], &Options::default());
        assert!(result.is_err(), "gzip cut at {cut}");
    }
    let empty = root().put(b"", &Options::default()).expect("no entries");
    assert_eq!(empty.entries, 0);
    let cases: [(&[u8], &str); 8] = [
        (b"x", "not understood"),
        (b"0 path=a\n", "not understood"),
        (b"3 \n", "not understood"),
        (b"99999999999999999999 path=a\n", "not understood"),
        (b"9 path=ab", "not understood"),
        (b"12 size=-10\n", "not understood"),
        (b"21 GNU.sparse.major=1\n", "not understood"),
        (b"22 GNU.sparse.major=1\n", "sparse"),
    ];
    for (records, what) in cases {
        let layer = Tar::default().add(With {
            kind: EntryType::XHeader,
            path: b"pax",
            content: records,
            ..With::default()
        });
        let shown = String::from_utf8_lossy(records).into_owned();
        let error = root().apply(layer.file("a", "1")).expect_err(&shown);
        assert!(error.to_string().contains(what), "{shown:?}: {error}");
    }
    let sparse = Tar::default().link(EntryType::GNUSparse, "a", "");
    says(root().apply(sparse), "sparse");
    let nameless = Tar::default().file("", "x");
    says(root().apply(nameless), "no name");
}

#[test]
fn headers_may_not_ask_for_memory() {
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(8 << 30);
    header.set_cksum();
    says(
        root().put(header.as_bytes(), &Options::default()),
        "too long",
    );
    header.set_entry_type(EntryType::XHeader);
    header.set_cksum();
    says(
        root().put(header.as_bytes(), &Options::default()),
        "too long",
    );
    let mut layer = Tar::default();
    for _ in 0..20 {
        layer = layer.pax(&[("comment", b"again")]);
    }
    says(root().apply(layer.file("a", "x")), "too many headers");
}

#[test]
fn sizes_that_make_no_sense_end_it() {
    let layer = Tar::default().pax(&[("size", b"18446744073709551615")]);
    let error = root().apply(layer.file("a", "x")).expect_err("cut off");
    assert!(matches!(error, UnpackError::Source(_)), "{error}");
    // Of a link, the size is nothing; what follows is the next header.
    let mut header = Header::new_gnu();
    header.set_path("link").expect("short");
    header.set_link_name("x").expect("short");
    header.set_entry_type(EntryType::Symlink);
    header.set_size(512);
    header.set_cksum();
    let layer = Tar(header.as_bytes().to_vec()).file("next", "1").end();
    let root = root();
    root.put(&layer, &Options::default()).expect("good");
    assert_eq!(root.read("next"), "1");
}
