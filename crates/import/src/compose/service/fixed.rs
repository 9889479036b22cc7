//! Keys whose answer is the same for every service.

use crate::tree::{Node, flag};

pub(super) const PAUSES: &str =
    "what ends is started again, with pauses that grow from 0.2 s to a minute";

/// Keys whose answer is the same for every service: whether Hutong does what they ask for, and how.
pub(super) fn fixed(key: &str, value: &Node) -> Option<(bool, &'static str)> {
    let is_on = value.text().and_then(flag) == Some(true);
    Some(match key {
        "cap_drop" => (true, "an app has no capability (with allow_root eight)"),
        "read_only" => (
            true,
            "an image is always read-only, but for /tmp, /run and /data",
        ),
        "init" => (true, "what ends is looked after"),
        "security_opt"
            if value
                .texts()
                .iter()
                .all(|(_, text)| text.starts_with("no-new-privileges")) =>
        {
            (true, "no new privileges: always so")
        }
        "privileged" if !is_on => (true, "always so"),
        "cap_add"
        | "privileged"
        | "devices"
        | "device_cgroup_rules"
        | "gpus"
        | "security_opt"
        | "userns_mode"
        | "cgroup"
        | "cgroup_parent"
        | "pid"
        | "ipc"
        | "uts"
        | "credential_spec" => (
            false,
            "an app gets no more of the machine than every app does",
        ),
        "logging" => (
            false,
            "output is kept for each app, in four files of 8 MB: `hutong logs`",
        ),
        "extra_hosts" | "external_links" => (
            false,
            "an app reaches neither the server nor private addresses by itself: `links` and `upstream` say who calls whom",
        ),
        "dns" | "dns_search" | "dns_opt" | "domainname" | "mac_address" => {
            (false, "names are looked up by Hutong's resolver")
        }
        "ulimits" => (
            false,
            "an app has at most 65,536 open files, and no core dumps",
        ),
        "sysctls" => (
            false,
            "an app does not change the kernel's settings; ports below 1024 are allowed",
        ),
        "shm_size" => (
            false,
            "memory that programs share counts against limits.memory",
        ),
        "stop_signal" => (
            false,
            "it gets the signal that its image names, else SIGTERM",
        ),
        "working_dir" => (
            false,
            "the image's own, or the folder that `container.mount` names",
        ),
        "tty" | "stdin_open" | "attach" => (
            false,
            "nothing stands on standard input; `hutong exec` has a terminal",
        ),
        "platform" | "runtime" | "isolation" | "storage_opt" => (false, "the engine decides"),
        "secrets" | "configs" => (
            false,
            "there are no files of this kind: secrets are variables (`hutong env set`), other files go into the image or the app's folder",
        ),
        "volumes_from" => (false, "no app sees another one's data"),
        "group_add" => (false, "an app has the groups that its image says"),
        "mem_reservation" | "memswap_limit" | "mem_swappiness" | "oom_kill_disable"
        | "oom_score_adj" | "cpu_shares" | "cpu_period" | "cpu_quota" | "cpu_rt_runtime"
        | "cpu_rt_period" | "cpuset" | "cpu_count" | "cpu_percent" | "blkio_config" => {
            (false, "`limits` has memory, cpu and pids; there is no swap")
        }
        "develop" => (false, "`hutong deploy --watch` deploys after each change"),
        "post_start" | "pre_stop" => (
            false,
            "nothing is run beside a program's start and end; `release` runs before a release serves",
        ),
        "annotations" | "label_file" => (false, "labels of others mean nothing here"),
        "provider" | "models" | "use_api_socket" => (false, "it is of Docker's own"),
        _ => return None,
    })
}
