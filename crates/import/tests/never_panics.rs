//! Whatever bytes come, nothing panics: what is written is good, or a mistake has its place.

use hutong_import::{Input, Kind, Options, import};
use proptest::prelude::*;

fn try_all(kind: Kind, path: &str, text: &str) {
    let input = Input {
        path: path.to_owned(),
        folder: "shop".to_owned(),
        text: text.to_owned(),
        asked: true,
    };
    let options = Options {
        kind: Some(kind),
        ..Options::default()
    };
    match import(&[input], &options) {
        Ok(outcome) => {
            for app in outcome.apps {
                assert!(hutong_core::spec::parse("hutong.toml", &app.toml).is_ok());
            }
        }
        Err(mistakes) => {
            for mistake in mistakes.list {
                assert!(mistake.at.line >= 1 && mistake.at.column >= 1);
            }
        }
    }
}

const KINDS: [(Kind, &str); 9] = [
    (Kind::Compose, "compose.yml"),
    (Kind::Traefik, "traefik.yml"),
    (Kind::Traefik, "traefik.toml"),
    (Kind::Nginx, "nginx.conf"),
    (Kind::Systemd, "a.service"),
    (Kind::Uwsgi, "uwsgi.ini"),
    (Kind::Pm2, "ecosystem.config.js"),
    (Kind::Pm2, "pm2.yml"),
    (Kind::Procfile, "Procfile"),
];

/// Words that mean something in one of the files.
const WORDS: &str = "(services:|  a:|    image: |x|    ports: |\\['80:80'\\]|    volumes: |    labels: |traefik[.]http[.]routers[.]a[.]rule=Host[(]`a`[)]|    environment: |[{]A: b[}]|    command: |    deploy: |http:|  routers:|server [{]|[}]|listen 80;|server_name a[.]test;|location / [{]|proxy_pass http://127[.]0[.]0[.]1:1;|root /x;|return 301 |allow 1;|deny all;|upstream a [{]|\\[Service\\]|ExecStart=|MemoryMax=|Environment=|\\[uwsgi\\]|socket = :1|module.exports = |[{]|\\[|\\]|apps: |script: |web: |, |\n|\n|\n| |'|\"|[$]|%|&|[*]|:|;|1|-)";

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_of_any_kind(text in "(?s).{0,300}") {
        for (kind, path) in KINDS {
            try_all(kind, path, &text);
        }
    }

    #[test]
    fn any_words_of_any_kind(words in proptest::collection::vec(WORDS, 0..60)) {
        let text = words.concat();
        for (kind, path) in KINDS {
            try_all(kind, path, &text);
        }
    }

    #[test]
    fn any_file_with_some_of_it_gone(at in 0_usize..4000, length in 1_usize..200, which in 0_usize..6) {
        const FILES: [(Kind, &str, &str); 6] = [
            (Kind::Compose, "docker-compose.yml", include_str!("fixtures/own/shop/docker-compose.yml")),
            (Kind::Traefik, "traefik.yml", include_str!("fixtures/own/s2/traefik/config/traefik.yml")),
            (Kind::Nginx, "n.conf", include_str!("fixtures/own/s4-weighted/hsheng-mall-backend.conf")),
            (Kind::Uwsgi, "uwsgi.ini", include_str!("fixtures/own/s4/uwsgi.ini")),
            (Kind::Pm2, "ecosystem.config.js", include_str!("fixtures/own/pm2/ecosystem.config.js")),
            (Kind::Systemd, "a.service", include_str!("fixtures/own/s0/miniapp-a.service")),
        ];
        let (kind, path, text) = FILES[which];
        let kept: String = text
            .chars()
            .enumerate()
            .filter(|(index, _)| !(at..at + length).contains(index))
            .map(|(_, c)| c)
            .collect();
        try_all(kind, path, &kept);
    }
}

#[test]
fn bytes_that_repeat_do_not_take_long() {
    for (kind, path) in KINDS {
        for text in [
            "[", "{", "(", "a: ", "- ", "\"", "$", "${", "&a [*a", "server {", "a;", "%(", "\\\n",
            "-\n", "? ",
        ] {
            try_all(kind, path, &text.repeat(4000));
        }
    }
}
