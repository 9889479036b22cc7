//! Which variables are secrets: they do not go into `hutong.toml`, which is part of every release.

/// Words that a secret's name has, wherever they stand in it.
const WORDS: [&str; 6] = [
    "PASSWORD",
    "PASSWD",
    "PASSPHRASE",
    "SECRET",
    "TOKEN",
    "CREDENTIAL",
];

/// Whether a variable is kept out of the file. Rather one too many than one too few.
pub(crate) fn is_secret(key: &str, value: &str) -> bool {
    if value.is_empty() {
        return false;
    }
    let key = key.to_ascii_uppercase();
    let by_word = WORDS.iter().any(|word| key.contains(word));
    let by_part = key.split(|c: char| !c.is_ascii_alphanumeric()).any(|part| {
        part.ends_with("KEY") || part.ends_with("KEYS") || part == "PWD" || part == "PASS"
    });
    by_word || by_part || has_password(value)
}

/// `scheme://user:password@host`.
fn has_password(value: &str) -> bool {
    let Some((_, rest)) = value.split_once("://") else {
        return false;
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    authority
        .rsplit_once('@')
        .and_then(|(user, _)| user.split_once(':'))
        .is_some_and(|(_, password)| !password.is_empty())
}

/// Whether a command has what looks like a secret in it: everybody on the machine may read it.
pub(crate) fn in_command(words: &[String]) -> bool {
    words.iter().any(|word| {
        let lower = word.to_ascii_lowercase();
        let is_option = lower.starts_with('-')
            && ["pass", "secret", "token"]
                .iter()
                .any(|part| lower.contains(part));
        is_option || has_password(word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_tell() {
        for key in [
            "DB_PASSWORD",
            "mysql_root_password",
            "SECRET",
            "GITHUB_TOKEN",
            "API_KEY",
            "apiKey",
            "SSH_KEYS",
            "DB_PASS",
        ] {
            assert!(is_secret(key, "x"), "{key}");
        }
        for key in ["NODE_ENV", "KEYBOARD", "PASSENGER", "PORT"] {
            assert!(!is_secret(key, "x"), "{key}");
        }
        assert!(is_secret("DATABASE_URL", "postgres://me:pw@db:5432/x"));
        assert!(!is_secret("DATABASE_URL", "postgres://me@db/x:y@z"));
        assert!(!is_secret("DB_PASSWORD", ""));
    }

    #[test]
    fn commands_may_have_them_too() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(in_command(&words("redis-server --requirepass x")));
        assert!(in_command(&words("x --db=mysql://a:b@c/d")));
        assert!(!in_command(&words("gunicorn -b 0.0.0.0:80 app")));
    }
}
