//! Java: a Maven project becomes a jar that is run.

use super::{Plan, Program, Refusal, Seen, Step, words};

pub(super) fn detect(seen: &Seen<'_>) -> Result<Plan, Refusal> {
    let text = seen.files.needed("pom.xml")?;
    let pom = Pom::read(text)?;
    let wrong = |message: &str| Refusal::at("pom.xml", message);
    let packaging = pom.get("project/packaging").unwrap_or("jar");
    if packaging != "jar" {
        return Err(wrong(&format!(
            "makes a {packaging}, which is no program by itself: package a jar that can be run, or set `command` and [build] in hutong.toml"
        )));
    }
    let quarkus = text.contains("<artifactId>quarkus-maven-plugin</artifactId>");
    let jar = match (quarkus, pom.get("project/build/finalName")) {
        (true, _) => "target/quarkus-app/quarkus-run.jar".to_owned(),
        (false, Some(name)) => format!("target/{name}.jar"),
        (false, None) => {
            let artifact = pom
                .get("project/artifactId")
                .ok_or_else(|| wrong("says no <artifactId>"))?;
            let version = pom
                .get("project/version")
                .or_else(|| pom.get("project/parent/version"))
                .ok_or_else(|| wrong("says no <version>"))?;
            format!("target/{artifact}-{version}.jar")
        }
    };
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._/-+".contains(&byte);
    if !jar.bytes().all(plain) {
        return Err(wrong(&format!(
            "the jar's name `{jar}` is made of properties: set <finalName> in <build>, such as <finalName>app</finalName>"
        )));
    }
    let mut because = vec![format!("pom.xml: a Maven project that makes {jar}")];
    if text.contains("<artifactId>spring-boot-maven-plugin</artifactId>") {
        because.push("spring-boot-maven-plugin: the jar holds what it needs".into());
    } else if !quarkus && !text.contains("<mainClass>") {
        because.push(
            "no plugin that makes the jar executable was seen: `java -jar` needs a Main-Class"
                .into(),
        );
    }
    let maven = match seen.files.has("mvnw") {
        true => "sh mvnw",
        false => "mvn",
    };
    let line =
        format!("{maven} -B -ntp -Dmaven.repo.local=/cache/m2 -Dmaven.test.skip=true package");
    let run = format!("java -XX:MaxRAMPercentage=70 -jar /app/{jar}");
    let mut run = words(&run);
    if text.contains("spring-boot") {
        run.push(format!("--server.port={}", seen.port));
    }
    Ok(Plan {
        language: "Java",
        because,
        steps: vec![Step::new(&line, true)],
        program: Program::Command(seen.web.clone().unwrap_or(run)),
        caches: vec!["m2"],
    })
}

/// Texts of the elements that are asked for by their path, the first of each; enough of XML for that.
struct Pom<'a>(Vec<(&'static str, &'a str)>);

/// What is asked for.
const ASKED: [&str; 5] = [
    "project/packaging",
    "project/build/finalName",
    "project/artifactId",
    "project/version",
    "project/parent/version",
];

/// The longest name of an element, in bytes.
const MAX_NAME: usize = 256;

/// Elements within each other.
const MAX_DEPTH: usize = 64;

impl<'a> Pom<'a> {
    fn read(text: &'a str) -> Result<Self, Refusal> {
        let mut found: Vec<(&'static str, &'a str)> = Vec::new();
        let mut open: Vec<&str> = Vec::new();
        let mut rest = text;
        let mut seen_project = false;
        let wrong = |rest: &str, message: String| {
            let before = &text[..text.len() - rest.len()];
            Refusal {
                line: before.matches('\n').count() + 1,
                column: before
                    .rsplit('\n')
                    .next()
                    .map_or(1, |l| l.chars().count() + 1),
                ..Refusal::at("pom.xml", message)
            }
        };
        while let Some(start) = rest.find('<') {
            let content = rest[..start].trim();
            let is_open = |path: &&&str| path.split('/').eq(open.iter().copied());
            if !content.is_empty()
                && let Some(path) = ASKED.iter().find(is_open)
                && !found.iter().any(|(at, _)| at == path)
            {
                found.push((*path, content));
            }
            rest = &rest[start..];
            let skip = [
                ("<!--", "-->"),
                ("<?", "?>"),
                ("<![CDATA[", "]]>"),
                ("<!", ">"),
            ];
            if let Some((_, end)) = skip.iter().find(|(begin, _)| rest.starts_with(begin)) {
                let length = rest
                    .find(end)
                    .ok_or_else(|| wrong(rest, format!("`{end}` is missing")))?;
                rest = &rest[length + end.len()..];
                continue;
            }
            let end = rest
                .find('>')
                .ok_or_else(|| wrong(rest, "a tag does not end".into()))?;
            let tag = &rest[1..end];
            if let Some(name) = tag.strip_prefix('/') {
                let name = name.trim();
                if open.pop() != Some(name) {
                    return Err(wrong(rest, format!("</{name}> ends what did not begin")));
                }
            } else if !tag.ends_with('/') {
                let name = tag.split_whitespace().next().unwrap_or_default();
                if open.len() >= MAX_DEPTH {
                    return Err(wrong(rest, "the elements are too deep".into()));
                }
                if name.len() > MAX_NAME {
                    return Err(wrong(rest, "an element's name is too long".into()));
                }
                seen_project |= open.is_empty() && name == "project";
                open.push(name);
            }
            rest = &rest[end + 1..];
        }
        if let Some(left) = open.last() {
            return Err(wrong(rest, format!("<{left}> does not end")));
        }
        if !seen_project {
            return Err(Refusal::at(
                "pom.xml",
                "is no Maven project: <project> is missing",
            ));
        }
        Ok(Pom(found))
    }

    fn get(&self, path: &str) -> Option<&'a str> {
        let found = self.0.iter().find(|(at, _)| *at == path);
        found.map(|(_, text)| *text)
    }
}
