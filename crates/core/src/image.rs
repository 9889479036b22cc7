//! What an image says of how it wants to be run, as text: its user, the signal that stops it. Understood in one way or
//! refused, because whoever reads it otherwise might run it as root.

/// What an image's own words say of whom it runs as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ImageUser {
    Number(u32, u32),
    /// Only the image's /etc/passwd says which number.
    Named(String),
}

impl ImageUser {
    /// `USER` of an image: `""`, `1000`, `1000:1000`, `node`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (user, group) = text.split_once(':').unwrap_or((text, ""));
        let odd = || format!("the image's user `{text}` is not understood; set `user = \"app\"`");
        let group = match group {
            "" => None,
            text => Some(number(text).ok_or_else(odd)?),
        };
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
        match (user, number(user)) {
            ("", _) => Ok(ImageUser::Number(0, 0)),
            (_, Some(uid)) => Ok(ImageUser::Number(uid, group.unwrap_or(0))),
            (name, None)
                if group.is_none()
                    && name.bytes().all(plain)
                    && name.as_bytes()[0].is_ascii_alphabetic() =>
            {
                Ok(ImageUser::Named(name.to_owned()))
            }
            _ => Err(odd()),
        }
    }

    /// Whether it is root, or says nothing.
    pub fn is_root(text: &str) -> bool {
        matches!(Self::parse(text), Ok(ImageUser::Number(0, _)))
    }
}

/// A decimal number, and nothing else: what others would make of anything odder is their own affair.
fn number(text: &str) -> Option<u32> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

/// A line of passwd(5): user and group. Nothing if any line is odd or the name is there twice: somebody else might read
/// it another way.
pub fn find_user(passwd: &str, name: &str) -> Option<(u32, u32)> {
    let mut found = None;
    for line in passwd.lines().filter(|line| !line.is_empty()) {
        let fields: Vec<&str> = line.split(':').collect();
        let [user, _, uid, gid, _, _, _] = fields[..] else {
            return None;
        };
        if user.trim() != user {
            return None;
        }
        let ids = number(uid).zip(number(gid))?;
        if user == name && found.replace(ids).is_some() {
            return None;
        }
    }
    found
}

/// `STOPSIGNAL` of an image: `SIGQUIT`, `QUIT`, `3`, `SIGRTMIN+3`; its number on Linux.
pub fn stop_signal(text: &str) -> Option<i32> {
    const NAMES: [(&str, i32); 14] = [
        ("HUP", 1),
        ("INT", 2),
        ("QUIT", 3),
        ("ABRT", 6),
        ("KILL", 9),
        ("USR1", 10),
        ("USR2", 12),
        ("PIPE", 13),
        ("ALRM", 14),
        ("TERM", 15),
        ("CONT", 18),
        ("TSTP", 20),
        ("WINCH", 28),
        ("PWR", 30),
    ];
    const FIRST_REALTIME: u32 = 34;
    const LAST: u32 = 64;
    if let Some(number) = number(text) {
        return (1..=LAST).contains(&number).then_some(number as i32);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(rest) = name.strip_prefix("RTMIN") {
        let more = match rest {
            "" => 0,
            rest => number(rest.strip_prefix('+')?)?,
        };
        let number = FIRST_REALTIME.checked_add(more)?;
        return (number <= LAST).then_some(number as i32);
    }
    let known = NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, number)| *number)
}

/// The port that an image says it listens on, of entries such as `80/tcp`: the lowest of TCP.
pub fn exposed_port<'a>(entries: impl IntoIterator<Item = &'a str>) -> Option<u16> {
    let tcp = entries.into_iter().filter_map(|entry| {
        let (port, protocol) = entry.split_once('/').unwrap_or((entry, "tcp"));
        let port = number(port).and_then(|port| u16::try_from(port).ok())?;
        (protocol.eq_ignore_ascii_case("tcp") && port > 0).then_some(port)
    });
    tcp.min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_of_images_are_read() {
        for root in ["", "0", "0:0", "0:1000", "00"] {
            assert!(ImageUser::is_root(root), "{root}");
        }
        assert_eq!(ImageUser::parse("1000"), Ok(ImageUser::Number(1000, 0)));
        assert_eq!(ImageUser::parse("1000:20"), Ok(ImageUser::Number(1000, 20)));
        assert_eq!(
            ImageUser::parse("node"),
            Ok(ImageUser::Named("node".into()))
        );
        for odd in [
            "-0",
            "+0",
            "0x0",
            "node:staff",
            " 0",
            "4294967296",
            "a b",
            "-a",
            ":",
            "1:",
        ] {
            let parsed = ImageUser::parse(odd);
            assert!(
                parsed.is_err() || matches!(parsed, Ok(ImageUser::Number(0 | 1, 0))),
                "{odd}: {parsed:?}"
            );
        }
        for odd in ["-0", "+0", "0x0", " 0"] {
            assert!(ImageUser::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn a_passwd_that_two_may_read_differently_is_not_read() {
        let good =
            "root:x:0:0:root:/root:/bin/sh\nnode:x:1000:1001::/:/bin/sh\ntoor:x:0:0::/:/bin/sh\n";
        assert_eq!(find_user(good, "node"), Some((1000, 1001)));
        assert_eq!(find_user(good, "toor"), Some((0, 0)));
        assert_eq!(find_user(good, "nobody"), None);
        for odd in [
            "evil:x:x:0::/:/\n",
            "evil\n",
            " evil:x:0:0::/:/\n",
            "node:x:0:0::/:/\n",
        ] {
            assert_eq!(find_user(&format!("{odd}{good}"), "node"), None, "{odd}");
        }
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
        ] {
            assert_eq!(stop_signal(text), Some(number), "{text}");
        }
        for odd in ["", "0", "65", "SIG", "SIGNO", "SIGRTMIN+40", "-9", "RTMIN3"] {
            assert_eq!(stop_signal(odd), None, "{odd}");
        }
    }

    #[test]
    fn the_lowest_port_of_tcp_counts() {
        assert_eq!(exposed_port(["8080/tcp", "53/udp", "80"]), Some(80));
        assert_eq!(
            exposed_port(["53/udp", "0/tcp", "x/tcp", "99999/tcp"]),
            None
        );
    }
}
