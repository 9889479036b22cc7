//! The power goes in the middle of a deploy: what control and the warden write is recorded (strace(1)), and
//! every prefix of it is put on a disk of its own and started. Twice: with all that was written, and with
//! only what had been flushed, which is all that a disk owes us (a file that was not flushed is there, and
//! empty).
#![cfg(feature = "full")]
// Its tables go into docs/reliability.md.
#![allow(clippy::print_stdout)]

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use hutong_testkit::crash::write_body;
use hutong_testkit::server::{Server, python_app};
use hutong_testkit::visitor::get;
use hutong_testkit::{eventually, is_root};

#[derive(Debug)]
enum Op {
    Mkdir(PathBuf, u32),
    /// Made, or emptied, or both.
    Open(PathBuf, bool, u32),
    /// At an offset; none is the end.
    Write(PathBuf, Option<u64>, Vec<u8>),
    Truncate(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Unlink(PathBuf),
    Rmdir(PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, Option<u32>, Option<u32>),
    Symlink(String, PathBuf),
    Sync(PathBuf),
    SyncAll,
}

/// Text in strace's `\x2f` form, as it stands between `open` and `close`.
fn decode(text: &str) -> Vec<u8> {
    let hex = text.split("\\x").skip(1);
    hex.filter_map(|pair| u8::from_str_radix(pair.get(..2)?, 16).ok())
        .collect()
}

fn path_of(text: &str) -> PathBuf {
    String::from_utf8(decode(text))
        .expect("paths are UTF-8")
        .into()
}

/// The argument's path: of a descriptor (`5<\x2f…>`) or a string, which may be below a descriptor's.
fn argument(arguments: &[&str], index: usize) -> PathBuf {
    let text = arguments[index];
    if let Some((_, inside)) = text.split_once('<') {
        return path_of(inside.trim_end_matches('>'));
    }
    let path = path_of(text);
    if path.is_absolute() || index == 0 {
        return path;
    }
    argument(arguments, index - 1).join(path)
}

fn octal(text: &str) -> u32 {
    u32::from_str_radix(text.trim_start_matches('0'), 8).unwrap_or(0)
}

/// What strace wrote down of one thread's call, as operations below `root`.
fn parse(line: &str, root: &Path) -> Option<Op> {
    let (name, rest) = line.split_once('(')?;
    let (inside, result) = rest.rsplit_once(") = ").or_else(|| {
        // A resumed call has its result behind many blanks.
        let (inside, result) = rest.rsplit_once(" = ")?;
        Some((inside.trim_end().trim_end_matches(')'), result))
    })?;
    if result.starts_with('-') {
        return None;
    }
    let arguments: Vec<&str> = inside.split(", ").collect();
    let path = |index| Some(argument(&arguments, index)).filter(|path| path.starts_with(root));
    let id = |text: &str| text.parse::<u32>().ok();
    let number = |text: &str| text.parse::<u64>().ok();
    Some(match name {
        "mkdir" => Op::Mkdir(path(0)?, octal(arguments[1])),
        "mkdirat" => Op::Mkdir(path(1)?, octal(arguments[2])),
        "openat" => {
            let flags = arguments[2];
            let (makes, empties) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            if !makes && !empties {
                return None;
            }
            Op::Open(
                path(1)?,
                empties,
                arguments.get(3).map_or(0o644, |mode| octal(mode)),
            )
        }
        "write" => Op::Write(path(0)?, None, decode(arguments[1])),
        "pwrite64" => Op::Write(path(0)?, Some(number(arguments[3])?), decode(arguments[1])),
        "ftruncate" => Op::Truncate(path(0)?, number(arguments[1])?),
        "rename" => Op::Rename(path(0)?, path(1)?),
        "renameat" | "renameat2" => Op::Rename(path(1)?, path(3)?),
        "unlink" => Op::Unlink(path(0)?),
        "unlinkat" if arguments[2].contains("REMOVEDIR") => Op::Rmdir(path(1)?),
        "unlinkat" => Op::Unlink(path(1)?),
        "rmdir" => Op::Rmdir(path(0)?),
        "chmod" | "fchmod" => Op::Chmod(path(0)?, octal(arguments[1])),
        "fchmodat" => Op::Chmod(path(1)?, octal(arguments[2])),
        "chown" | "lchown" | "fchown" => Op::Chown(path(0)?, id(arguments[1]), id(arguments[2])),
        "fchownat" => Op::Chown(path(1)?, id(arguments[2]), id(arguments[3])),
        "symlink" => Op::Symlink(String::from_utf8(decode(arguments[0])).ok()?, path(1)?),
        "fsync" | "fdatasync" => Op::Sync(path(0)?),
        "syncfs" => Op::SyncAll,
        "writev" | "pwritev" | "sendfile" | "copy_file_range" | "fallocate" | "linkat" | "link" => {
            path(0)?;
            panic!("a call that this test does not know: {line}");
        }
        _ => return None,
    })
}

/// Every operation, in the order in which the calls returned.
fn read_log(text: &str, root: &Path) -> Vec<Op> {
    let mut unfinished = std::collections::HashMap::new();
    let mut ops = Vec::new();
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else {
            continue;
        };
        let call = call.trim_start();
        if let Some(begun) = call.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread.to_owned(), begun.to_owned());
            continue;
        }
        let whole = match call
            .strip_prefix("<... ")
            .and_then(|rest| rest.split_once(" resumed>"))
        {
            Some((_, rest)) => format!("{}{rest}", unfinished.remove(thread).unwrap_or_default()),
            None => call.to_owned(),
        };
        ops.extend(parse(&whole, root));
    }
    ops
}

/// Whether what the `index`-th operation wrote is flushed within the first `count`.
fn is_flushed(ops: &[Op], index: usize, count: usize) -> bool {
    let Op::Write(written, ..) = &ops[index] else {
        return true;
    };
    ops[index..count].iter().any(|later| match later {
        Op::Sync(path) => path == written,
        Op::SyncAll => true,
        _ => false,
    })
}

/// Does to `disk` what was done to `root`.
fn replay(ops: &[Op], count: usize, lossy: bool, root: &Path, disk: &Path) {
    let here = |path: &Path| disk.join(path.strip_prefix(root).expect("below the root"));
    // Whoever owns the folder made the file: the warden gives away what it makes for others.
    let adopt = |path: &Path| {
        let parent = fs::metadata(path.parent().expect("a parent")).expect("there");
        lchown(path, Some(parent.uid()), Some(parent.uid())).expect("chown");
    };
    for (index, op) in ops[..count].iter().enumerate() {
        match op {
            Op::Mkdir(path, mode) => {
                fs::create_dir(here(path)).expect("mkdir");
                let mode = fs::Permissions::from_mode(mode & !0o022);
                fs::set_permissions(here(path), mode).expect("chmod");
                adopt(&here(path));
            }
            Op::Open(path, empties, mode) => {
                let fresh = !here(path).exists();
                let mut options = OpenOptions::new();
                options
                    .write(true)
                    .create(true)
                    .truncate(*empties)
                    .open(here(path))
                    .expect("open");
                if fresh {
                    let mode = fs::Permissions::from_mode(mode & !0o022);
                    fs::set_permissions(here(path), mode).expect("chmod");
                    adopt(&here(path));
                }
            }
            Op::Write(path, at, data) => {
                if lossy && !is_flushed(ops, index, count) {
                    continue;
                }
                let file = OpenOptions::new()
                    .write(true)
                    .open(here(path))
                    .expect("open");
                let at = at.unwrap_or_else(|| file.metadata().expect("stat").len());
                file.write_all_at(data, at).expect("write");
            }
            Op::Truncate(path, length) => {
                let file = OpenOptions::new()
                    .write(true)
                    .open(here(path))
                    .expect("open");
                file.set_len(*length).expect("truncate");
            }
            Op::Rename(from, to) => fs::rename(here(from), here(to)).expect("rename"),
            Op::Unlink(path) => fs::remove_file(here(path)).expect("unlink"),
            Op::Rmdir(path) => fs::remove_dir(here(path)).expect("rmdir"),
            Op::Chmod(path, mode) => {
                fs::set_permissions(here(path), fs::Permissions::from_mode(*mode)).expect("chmod");
            }
            Op::Chown(path, uid, gid) => lchown(here(path), *uid, *gid).expect("chown"),
            Op::Symlink(to, path) => symlink(to, here(path)).expect("symlink"),
            Op::Sync(_) | Op::SyncAll => {}
        }
    }
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp")
        .arg("-a")
        .arg(from.join("."))
        .arg(to)
        .status();
    assert!(copied.expect("cp").success());
}

/// A folder for a server: others may pass through, as on a real one.
fn disk() -> tempfile::TempDir {
    tempfile::Builder::new()
        .prefix("hutong-test-")
        .tempdir()
        .expect("tempdir")
}

#[test]
fn every_prefix_of_a_deploys_writes_is_the_old_or_the_new_state() {
    if !is_root() {
        return;
    }
    let app = python_app("one", "data = true", "old");
    let server = Server::start();
    server.deploy(app.path());
    server.ok(&["env", "set", "one", "KEY=value"]);
    eventually("nothing is written any more", 20, || {
        server.run(&["doctor", "--leaks"]).status.success()
    });
    let root = server.data.path().to_owned();
    let base = disk();
    copy(&root, base.path());
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut strace = Command::new("strace")
        .args(["-f", "-y", "-xx", "-s", "99999999", "-o"])
        .arg(log.path())
        .args(["-e", "trace=openat,write,pwrite64,writev,pwritev,ftruncate,rename,renameat,renameat2,unlink,unlinkat,mkdir,mkdirat,rmdir,chmod,fchmod,fchmodat,chown,fchown,fchownat,lchown,link,linkat,symlink,fsync,fdatasync,syncfs,fallocate,sendfile,copy_file_range"])
        .args(["-p", &server.pid().to_string(), "-p", &server.role("control").to_string()])
        .stderr(std::process::Stdio::null())
        .spawn()
        .expect("strace");
    let traced = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.contains(&format!("TracerPid:\t{}\n", strace.id()))
    };
    let control = server.role("control");
    eventually("strace is there", 20, || {
        traced(server.pid()) && traced(control)
    });
    write_body(app.path(), "new");
    server.deploy(app.path());
    eventually("the old instance is gone and taken in", 30, || {
        server.app("one")["instances"]
            .as_array()
            .is_some_and(|list| list.len() == 1)
            && server.run(&["doctor", "--leaks"]).status.success()
    });
    let interrupt = rustix::process::Pid::from_child(&strace);
    rustix::process::kill_process(interrupt, rustix::process::Signal::INT).expect("strace ends");
    strace.wait().expect("strace");
    drop(server);
    let ops = read_log(&fs::read_to_string(log.path()).expect("the log"), &root);
    println!("{} operations", ops.len());
    assert!(ops.len() > 40, "{ops:?}");

    let mut seen = [0, 0];
    for lossy in [false, true] {
        for count in 0..=ops.len() {
            let disk = disk();
            copy(base.path(), disk.path());
            // Memory of SQLite's, made anew at every start.
            let _ = fs::remove_file(disk.path().join("control/state.db-shm"));
            replay(&ops, count, lossy, &root, disk.path());
            let last = format!(
                "lossy {lossy}, {count}: {:?}",
                count.checked_sub(1).map(|n| &ops[n])
            );
            let last = &last[..last.len().min(300)];
            let server = Server::start_in(disk, &[]);
            eventually(&format!("it serves ({last})"), 30, || {
                let app = server.app("one");
                app["deploying"].is_null() && app["instances"][0]["state"] == "healthy"
            });
            let body = get(&server.http, "one.test", "/").text();
            assert!(body == "old" || body == "new", "{last}: {body}");
            seen[usize::from(body == "new")] += 1;
            let env = server.ok(&["exec", "one", "--", "printenv", "KEY"]);
            assert_eq!(env.trim(), "value", "{last}");
            let releases = server.json(&["releases", "one"]);
            let active: Vec<_> = releases
                .as_array()
                .expect("a list")
                .iter()
                .filter(|release| release["state"] == "active")
                .collect();
            assert_eq!(active.len(), 1, "{last}: {releases}");
            if count % 10 == 0 {
                server.deploy(app.path());
                assert_eq!(get(&server.http, "one.test", "/").text(), "new", "{last}");
            }
        }
    }
    println!(
        "{} prefixes, twice: {} old, {} new",
        ops.len() + 1,
        seen[0],
        seen[1]
    );
    assert!(seen[0] > 0 && seen[1] > 0);
}
