//! The walls of isolation: which stand on this host, and what to do where one does not.

use std::fs;
use std::process::{Command, Stdio};

use hutong_ipc::shim::{LANDLOCK_LEAST, Wall};
use hutong_ipc::warden::Wanted;

use crate::cgroup::Cgroups;
use crate::trial::Trial;
use crate::{egress, sys};

/// Looks at the host; makes a throwaway sandbox to see whether one can be made.
pub fn examine(cgroups: &Cgroups) -> Vec<Wanted> {
    let root = sys::effective_uid() == 0;
    let mut walls = vec![ids(root)];
    walls.extend(sandbox_walls());
    for (controller, what) in [
        ("memory", "an app cannot use more memory than its cap"),
        ("cpu", "an app cannot use more processor time than its cap"),
        ("pids", "an app cannot start more processes than its cap"),
    ] {
        walls.push(caps(cgroups, controller, what, root));
    }
    walls.push(way_out(root));
    walls.extend(docker_forward());
    walls
}

fn wall(name: &str, what: &str, found: Result<String, (String, String)>) -> Wanted {
    let stands = found.is_ok();
    let (found, remedy) = match found {
        Ok(found) => (found, String::new()),
        Err(pair) => pair,
    };
    Wanted {
        wall: name.into(),
        what: what.into(),
        stands,
        found,
        remedy,
    }
}

fn ids(root: bool) -> Wanted {
    let found = if root {
        Ok("65,536 ids for each app; control and gateway have ids of their own".into())
    } else {
        Err((
            format!("everything runs as uid {}", sys::effective_uid()),
            "run `hutong serve` as root; it keeps that for the warden alone".into(),
        ))
    };
    wall("ids", "each app has user ids of its own", found)
}

fn caps(cgroups: &Cgroups, controller: &str, what: &str, root: bool) -> Wanted {
    let found = match cgroups.caps(controller) {
        Some(version) => Ok(format!("cgroup {version}")),
        None if root => Err((
            format!("no writable {controller} controller"),
            format!(
                "boot with cgroup v2 and its {controller} controller (systemd does so), or mount the v1 one below /sys/fs/cgroup"
            ),
        )),
        None => Err((
            "an ordinary user may not make cgroups".into(),
            "run `hutong serve` as root".into(),
        )),
    };
    wall(controller, what, found)
}

/// Builds one sandbox with all its walls and runs a program in it; then tries them one by one.
fn sandbox_walls() -> Vec<Wanted> {
    let full = probe(&[]);
    let each: [(&str, &str, Option<Wall>); 4] = [
        (
            "root",
            "an app sees an allow-list of the host's files only",
            Some(Wall::Root),
        ),
        ("pid", "an app sees its own processes only", Some(Wall::Pid)),
        (
            "net",
            "an app has a network of its own; no port is open outside",
            Some(Wall::Net),
        ),
        (
            "seccomp",
            "dangerous system calls are refused",
            Some(Wall::Seccomp),
        ),
    ];
    let mut walls: Vec<Wanted> = each
        .into_iter()
        .map(|(name, what, without)| {
            let found = match &full {
                Ok(()) => Ok("stands".to_owned()),
                // Guilty is the one without which the rest can be built.
                Err(reason) if probe(without.as_slice()).is_ok() => Err((
                    reason.clone(),
                    "use Linux 5.12 or later, with user namespaces allowed (user.max_user_namespaces > 0, kernel.unprivileged_userns_clone = 1), not inside a restricted container".to_owned(),
                )),
                Err(reason) => Err((reason.clone(), NO_SANDBOX.to_owned())),
            };
            wall(name, what, found)
        })
        .collect();
    walls.push(second_wall(&full));
    walls
}

const NO_SANDBOX: &str = "no sandbox can be made here at all; see the reason";

/// It stands behind the others: a kernel without it is told of, and is no reason not to serve.
fn second_wall(full: &Result<(), String>) -> Wanted {
    let abi = sys::landlock_abi();
    let found = match full {
        Ok(()) if abi >= 6 => Ok(format!("Landlock, ABI {abi}")),
        Ok(()) if abi >= LANDLOCK_LEAST => Ok(format!(
            "Landlock, ABI {abi}: for files; for signals and abstract sockets from ABI 6 on (Linux 6.12)"
        )),
        Ok(()) => Ok(
            "not in this kernel (Linux 5.19 with Landlock has it): the first walls stand alone"
                .to_owned(),
        ),
        Err(reason) if probe(&[Wall::Landlock]).is_ok() => Err((
            reason.clone(),
            "boot without it: leave `landlock` out of the kernel's parameter `lsm=`".to_owned(),
        )),
        Err(reason) => Err((reason.clone(), NO_SANDBOX.to_owned())),
    };
    let what = "where another wall has a hole, files and processes of the host are still denied";
    wall("landlock", what, found)
}

fn probe(without: &[Wall]) -> Result<(), String> {
    Trial::start(without, &["/usr/bin/true"], None).map(drop)
}

fn way_out(root: bool) -> Wanted {
    let what = "apps with egress reach the internet, or what they list, only: not the host, not private networks by themselves";
    let tools = egress::tool("nft", "nftables").and_then(|_| egress::tool("ip", "iproute2"));
    let found = match (root, tools) {
        (true, Ok(_)) => Ok("nftables; bridge and rules are made when an app asks".into()),
        (true, Err(reason)) => Err((reason, "apt install nftables iproute2".into())),
        (false, _) => Err((
            "an ordinary user may not make bridges; apps with egress do not start".into(),
            "run `hutong serve` as root".into(),
        )),
    };
    wall("egress", what, found)
}

/// Docker sets the FORWARD policy to drop, which no table of ours can lift.
fn docker_forward() -> Option<Wanted> {
    let nft = egress::tool("nft", "nftables").ok()?;
    let chain = |name: &str| {
        let output = Command::new(&nft)
            .args(["list", "chain", "ip", "filter", name])
            .env_clear()
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        output.map_or_else(
            |_| String::new(),
            |output| String::from_utf8_lossy(&output.stdout).into_owned(),
        )
    };
    if !chain("FORWARD").contains("policy drop") {
        return None;
    }
    // What may pass there is decided by our own chain, which comes before it.
    let passes = chain("DOCKER-USER");
    let both = ["iifname", "oifname"].iter().all(|way| {
        let is_ours =
            |line: &str| line.contains(&format!("{way} \"ht*\"")) && line.ends_with("accept");
        passes.lines().any(|line| is_ours(line.trim()))
    });
    let found = if both {
        Ok("the FORWARD chain drops by default, and lets our bridge through".into())
    } else {
        Err((
            "the FORWARD chain drops by default (Docker does that)".into(),
            "nft 'insert rule ip filter DOCKER-USER iifname \"ht*\" accept; insert rule ip filter DOCKER-USER oifname \"ht*\" accept'".into(),
        ))
    };
    let what = "the host's firewall lets the traffic of apps with egress through";
    Some(wall("forward", what, found))
}

/// Lines for a person: one wall each.
pub fn missing(walls: &[Wanted]) -> Vec<&Wanted> {
    walls.iter().filter(|wall| !wall.stands).collect()
}

/// Whether the kernel has user namespaces at all; quick, for messages.
pub fn has_user_namespaces() -> bool {
    fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .is_ok_and(|text| text.trim().parse::<u64>().is_ok_and(|count| count > 0))
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    use super::*;

    /// As root; each says whether it got out. Arguments: a process, and an abstract socket that listens.
    const TRIES: &str = r"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def write(folder):
    path = '%s/hutong-landlock-%d' % (folder, os.getpid())
    open(path, 'w').close()
    os.unlink(path)
def mount():
    # Whoever may mount is told that there is no such file system.
    if libc.mount(b'none', b'/', b'no-such', 0, None) and ctypes.get_errno() != 19:
        raise OSError(ctypes.get_errno(), 'mount')
def connect():
    with socket.socket(socket.AF_UNIX) as line:
        line.connect('\0' + sys.argv[2])
tries = {
    'read': lambda: open('/etc/shadow').read(),
    'list': lambda: os.listdir('/root'),
    'root': lambda: os.listdir('/'),
    'mount': mount,
    'signal': lambda: os.kill(int(sys.argv[1]), 0),
    'connect': connect,
}
for folder in ['/etc', '/root', '/tmp', '/usr']:
    tries['write' + folder] = lambda folder=folder: write(folder)
for name, attempt in tries.items():
    try:
        attempt()
        print(name, 'out')
    except OSError as error:
        print(name, 'held:', error)
";

    /// What root tries in a sandbox without these walls: (name, whether it got out), and all that was said.
    fn tried(without: &[Wall], socket: &str) -> (Vec<(String, bool)>, String) {
        let pid = std::process::id().to_string();
        let argv = ["/usr/bin/python3", "-c", TRIES, &pid, socket];
        let trial = Trial::start(without, &argv, None).expect("a sandbox");
        let said = trial.output(std::time::Duration::from_secs(60));
        let lines = said.lines().filter_map(|line| line.split_once(' '));
        let results = lines
            .map(|(name, how)| (name.to_owned(), how == "out"))
            .collect();
        (results, said)
    }

    #[test]
    fn landlock_holds_where_no_other_wall_stands() {
        let abi = sys::landlock_abi();
        if sys::effective_uid() != 0 || abi < LANDLOCK_LEAST {
            assert!(std::env::var_os("CI").is_none(), "CI must not skip this");
            println!("skipped: root and Landlock are needed");
            return;
        }
        let name = format!("hutong-landlock-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a name");
        let _listens = UnixListener::bind_addr(&address).expect("an abstract socket");
        let others = [Wall::Root, Wall::Pid, Wall::Net, Wall::User, Wall::Seccomp];
        let (held, said) = tried(&others, &name);
        assert_eq!(held.len(), 10, "{said}");
        for (try_, out) in held {
            let knows = abi >= 6 || !["signal", "connect"].contains(&try_.as_str());
            assert_eq!(out, !knows, "{try_}: {said}");
        }
        // A try that fails without any wall would show nothing.
        let none = [others.as_slice(), &[Wall::Landlock]].concat();
        let (free, said) = tried(&none, &name);
        assert_eq!(free.len(), 10, "{said}");
        assert!(free.iter().all(|(_, out)| *out), "{said}");
    }
}
