//! What the guide shows is what comes out.

mod common;

use common::{app, input, made};

/// The text of the guide below a heading, up to the next one.
fn section<'a>(guide: &'a str, heading: &str) -> &'a str {
    let begin = guide
        .find(heading)
        .unwrap_or_else(|| panic!("{heading} is gone"));
    let rest = &guide[begin + heading.len()..];
    let end = rest.find("\n##").unwrap_or(rest.len());
    &rest[..end]
}

fn blocks(section: &str) -> Vec<String> {
    let parts: Vec<&str> = section.split("```").collect();
    let code = parts.iter().skip(1).step_by(2);
    code.map(|code| {
        code.split_once('\n')
            .map_or("", |(_, code)| code)
            .to_owned()
    })
    .collect()
}

#[test]
fn the_examples_of_the_guide_come_out_as_shown() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide.md");
    let guide = std::fs::read_to_string(path).expect("the guide");
    for (heading, file, name) in [
        (
            "### From Docker Compose\n",
            "docker-compose.yml",
            "shop-web",
        ),
        ("### From nginx\n", "api.conf", "api"),
        ("### From PM2\n", "ecosystem.config.js", "api"),
        ("### From systemd\n", "miniapp-a.service", "miniapp-a"),
    ] {
        let blocks = blocks(section(&guide, heading));
        let outcome = made(&[input(file, &blocks[0])]);
        let without_first = |text: &str| text.split_once('\n').map(|(_, rest)| rest.to_owned());
        assert_eq!(
            without_first(&app(&outcome, name).toml),
            without_first(&blocks[1]),
            "{heading}"
        );
    }
}
