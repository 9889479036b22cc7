//! Failpoints: named steps at which a test has a process killed, held, or its write refused. They are in
//! debug builds only; in a release build every call here is empty.
//!
//! A test makes a folder and gives its path to the server as `HUTONG_FAIL`. Every step that is reached adds a
//! line `role name` to its file `hits`. Its file `armed` holds `role name count action`: the process that
//! reaches that step for the count-th time takes the file away and acts:
//!
//! - `kill`: SIGKILL to itself;
//! - `hold`: makes the file `held` and waits for the file `go`, while the test does what it likes;
//! - `eio`, `enospc`: the step fails with that error, where it can fail;
//! - `hang`: nothing happens for five seconds.

/// The variable that names the folder; passed on to every process of ours.
pub const VARIABLE: &str = "HUTONG_FAIL";

/// A step that cannot fail.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    let _ = active::reached(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// A step that may fail, as a write to disk does.
#[inline]
pub fn fallible(name: &str) -> std::io::Result<()> {
    #[cfg(debug_assertions)]
    return active::reached(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        Ok(())
    }
}

/// This process is in another role than its command line says: a forked child.
#[inline]
pub fn set_role(role: &'static str) {
    #[cfg(debug_assertions)]
    active::set_role(role);
    #[cfg(not(debug_assertions))]
    let _ = role;
}

/// The variable and its value, for a child whose environment is cleared.
pub fn environment() -> Option<(&'static str, std::ffi::OsString)> {
    if cfg!(debug_assertions) {
        Some((VARIABLE, std::env::var_os(VARIABLE)?))
    } else {
        None
    }
}

#[cfg(debug_assertions)]
mod active {
    use std::fs::{self, OpenOptions};
    use std::io::{self, Write};
    use std::path::PathBuf;
    use std::sync::{Mutex, OnceLock};
    use std::time::Duration;

    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    static ROLE: Mutex<Option<String>> = Mutex::new(None);

    pub fn set_role(role: &'static str) {
        if let Ok(mut held) = ROLE.lock() {
            *held = Some(role.to_owned());
        }
    }

    fn role() -> String {
        let Ok(mut held) = ROLE.lock() else {
            return String::new();
        };
        held.get_or_insert_with(|| {
            let mut words = std::env::args();
            let name = words.next().unwrap_or_default();
            let verb = words.next().unwrap_or_default();
            match name.strip_prefix("hutong ") {
                Some(role) => role.to_owned(),
                None if name.starts_with("hutong-shim") => "shim".to_owned(),
                None if verb == "serve" => "warden".to_owned(),
                None => "cli".to_owned(),
            }
        })
        .clone()
    }

    pub fn reached(name: &str) -> io::Result<()> {
        let folder = FOLDER.get_or_init(|| std::env::var_os(super::VARIABLE).map(PathBuf::from));
        let Some(folder) = folder else {
            return Ok(());
        };
        let here = format!("{} {name}", role());
        let hits = OpenOptions::new().append(true).open(folder.join("hits"));
        if let Ok(mut hits) = hits {
            let _ = hits.write_all(format!("{here}\n").as_bytes());
        }
        let armed = folder.join("armed");
        let Ok(text) = fs::read_to_string(&armed) else {
            return Ok(());
        };
        let wanted = text
            .trim()
            .strip_prefix(&here)
            .and_then(|rest| rest.strip_prefix(' '));
        let Some((count, action)) = wanted.and_then(|rest| rest.split_once(' ')) else {
            return Ok(());
        };
        let count: usize = count.parse().unwrap_or(1);
        if times(folder, &here) < count {
            return Ok(());
        }
        // Whoever takes the file away acts; several may be at the same step.
        if fs::rename(&armed, folder.join("taken")).is_err() {
            return Ok(());
        }
        match action {
            "kill" => {
                let _ = rustix::process::kill_process(
                    rustix::process::getpid(),
                    rustix::process::Signal::KILL,
                );
            }
            "hold" => {
                let _ = fs::write(folder.join("held"), here);
                for _ in 0..10_000 {
                    if folder.join("go").exists() {
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            "eio" => {
                return Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::IO.raw_os_error(),
                ));
            }
            "enospc" => {
                return Err(io::Error::from_raw_os_error(
                    rustix::io::Errno::NOSPC.raw_os_error(),
                ));
            }
            "hang" => std::thread::sleep(Duration::from_secs(5)),
            _ => {}
        }
        Ok(())
    }

    fn times(folder: &std::path::Path, here: &str) -> usize {
        let hits = fs::read_to_string(folder.join("hits")).unwrap_or_default();
        hits.lines().filter(|line| *line == here).count()
    }
}
