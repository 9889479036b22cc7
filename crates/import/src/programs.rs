//! Commands that ran on the machine itself, made fit for a sandbox: its folder is `/app` there.

/// The port that a command names: `--port 80`, `-b 127.0.0.1:80`, `:80`.
pub(crate) fn port(words: &[String]) -> Option<u16> {
    let options = ["--port", "-p", "--http-port", "--listen-port", "-port"];
    for (index, word) in words.iter().enumerate().skip(1) {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word.as_str(), words.get(index + 1).map(String::as_str)),
        };
        if options.contains(&name)
            && let Some(port) = value
                .and_then(|value| value.parse::<u16>().ok())
                .filter(|port| *port > 0)
        {
            return Some(port);
        }
        let address = word
            .split_once('=')
            .map_or(word.as_str(), |(_, value)| value);
        if let Some(port) = of_address(address) {
            return Some(port);
        }
    }
    None
}

/// The port of an address on which a program listens.
pub(crate) fn of_address(text: &str) -> Option<u16> {
    let (host, port) = text.rsplit_once(':')?;
    let hosts = [
        "",
        "*",
        "0.0.0.0",
        "127.0.0.1",
        "localhost",
        "[::]",
        "[::1]",
        "::",
        "::1",
    ];
    let host = host.rsplit("//").next().unwrap_or_default();
    let port = port.parse().ok().filter(|port: &u16| *port > 0)?;
    hosts.contains(&host).then_some(port)
}

/// Paths below the program's folder are paths below `/app`; what is said of the others.
pub(crate) fn at_home(words: Vec<String>, folder: Option<&str>) -> (Vec<String>, Vec<String>) {
    let mut remarks = Vec::new();
    let folder = folder
        .map(|folder| folder.trim_end_matches('/'))
        .filter(|folder| !folder.is_empty());
    let mut moved: Vec<String> = words
        .into_iter()
        .map(|word| match folder {
            Some(folder) => moved(&word, folder),
            None => word,
        })
        .collect();
    let program = moved.first().cloned().unwrap_or_default();
    if let Some(name) = of_venv(&program) {
        remarks.push(format!(
            "{program} becomes {name}: what requirements.txt lists is installed when the app is deployed"
        ));
        if let Some(first) = moved.first_mut() {
            *first = name;
        }
    } else if program.starts_with('/')
        && !["/usr/", "/bin/", "/sbin/", "/app/"]
            .iter()
            .any(|seen| program.starts_with(seen))
    {
        remarks.push(format!(
            "{program} is not seen inside: programs come from below /usr, or along with the app's folder"
        ));
    }
    let is_elsewhere = |word: &String| {
        let value = word.rsplit('=').next().unwrap_or_default();
        ["/home/", "/opt/", "/srv/", "/var/", "/root/", "/mnt/"]
            .iter()
            .any(|folder| value.starts_with(folder))
    };
    if let Some(word) = moved.iter().skip(1).find(|word| is_elsewhere(word)) {
        remarks.push(format!(
            "{word} is a path of the machine: inside there are /app (read-only), /data and /tmp"
        ));
    }
    (moved, remarks)
}

/// A word with `/app` in place of the folder, also behind `=`.
pub(crate) fn moved(word: &str, folder: &str) -> String {
    let (begin, path) = match word.split_once('=') {
        Some((begin, path)) if path.starts_with('/') => (format!("{begin}="), path),
        _ => (String::new(), word),
    };
    match path.strip_prefix(folder) {
        Some("") => format!("{begin}/app"),
        Some(rest) if rest.starts_with('/') => format!("{begin}/app{rest}"),
        _ => word.to_owned(),
    }
}

/// What a program of a virtual environment is called.
fn of_venv(program: &str) -> Option<String> {
    let (before, name) = program.rsplit_once("/bin/")?;
    let folder = before.rsplit('/').next().unwrap_or_default();
    let is_venv = ["venv", ".venv", "env", "virtualenv", ".env"].contains(&folder);
    (is_venv && !name.contains('/')).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn ports_are_found_in_commands() {
        for (text, wanted) in [
            ("gunicorn -b 127.0.0.1:8000 shop.wsgi", Some(8000)),
            ("gunicorn --bind=0.0.0.0:9000 x", Some(9000)),
            ("node server.js --port 3000", Some(3000)),
            ("uvicorn main:app --port=5000", Some(5000)),
            ("caddy file-server --listen :2015", Some(2015)),
            ("node app.js", None),
            ("x --redis db.example.com:6379", None),
            ("8080", None),
        ] {
            assert_eq!(port(&words(text)), wanted, "{text}");
        }
    }

    #[test]
    fn the_folder_is_app_inside() {
        let (moved, remarks) = at_home(
            words(
                "/srv/shop/venv/bin/gunicorn -c /srv/shop/conf.py --chdir=/srv/shop /srv/shopping",
            ),
            Some("/srv/shop/"),
        );
        assert_eq!(
            moved,
            words("gunicorn -c /app/conf.py --chdir=/app /srv/shopping")
        );
        assert_eq!(remarks.len(), 2);
        let (moved, remarks) = at_home(words("/usr/bin/node app.js"), None);
        assert_eq!(moved, words("/usr/bin/node app.js"));
        assert!(remarks.is_empty());
        let (_, remarks) = at_home(words("/opt/x/run"), None);
        assert!(remarks[0].contains("not seen inside"));
    }
}
