//! Node: which package manager, whether there is something to build, and whether files or a program come of it.

use serde_json::Value;

use super::{Plan, Program, Refusal, Seen, Step, json, needs_shell, words};

/// How packages are installed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Manager {
    Npm,
    Pnpm,
    Yarn,
    YarnBerry,
}

impl Manager {
    fn name(self) -> &'static str {
        match self {
            Manager::Npm => "npm",
            Manager::Pnpm => "pnpm",
            Manager::Yarn | Manager::YarnBerry => "yarn",
        }
    }

    /// `builds`: what only a build needs is installed, too.
    fn install(self, builds: bool) -> &'static str {
        match (self, builds) {
            (Manager::Npm, true) => "npm ci --no-audit --no-fund --no-update-notifier",
            (Manager::Npm, false) => "npm ci --no-audit --no-fund --no-update-notifier --omit=dev",
            (Manager::Pnpm, true) => "pnpm install --frozen-lockfile",
            (Manager::Pnpm, false) => "pnpm install --frozen-lockfile --prod",
            (Manager::Yarn, true) => "yarn install --frozen-lockfile --non-interactive",
            (Manager::Yarn, false) => {
                "yarn install --frozen-lockfile --non-interactive --production"
            }
            (Manager::YarnBerry, _) => "yarn install --immutable",
        }
    }
}

/// What `package.json` says that matters here.
struct Package {
    all: Value,
}

impl Package {
    fn read(seen: &Seen<'_>) -> Result<Self, Refusal> {
        let all = json("package.json", seen.files.needed("package.json")?)?;
        if !all.is_object() {
            return Err(Refusal::at("package.json", "is no JSON object"));
        }
        Ok(Package { all })
    }

    fn script(&self, name: &str) -> Option<&str> {
        let script = self.all.get("scripts")?.get(name)?.as_str()?.trim();
        (!script.is_empty()).then_some(script)
    }

    fn depends_on(&self, name: &str) -> bool {
        ["dependencies", "devDependencies"].iter().any(|kind| {
            self.all
                .get(kind)
                .is_some_and(|all| all.get(name).is_some())
        })
    }

    /// On any package whose name begins so.
    fn depends_on_any(&self, prefix: &str) -> bool {
        ["dependencies", "devDependencies"]
            .iter()
            .filter_map(|kind| self.all.get(kind)?.as_object())
            .any(|all| all.keys().any(|name| name.starts_with(prefix)))
    }

    fn has_dependencies(&self) -> bool {
        ["dependencies", "devDependencies", "optionalDependencies"]
            .iter()
            .filter_map(|kind| self.all.get(kind)?.as_object())
            .any(|all| !all.is_empty())
    }
}

/// Installing, and what it is told by.
struct Install {
    manager: Manager,
    lock: Option<&'static str>,
    network: bool,
}

const LOCKS: [(&str, Manager); 4] = [
    ("package-lock.json", Manager::Npm),
    ("npm-shrinkwrap.json", Manager::Npm),
    ("pnpm-lock.yaml", Manager::Pnpm),
    ("yarn.lock", Manager::Yarn),
];

fn install(seen: &Seen<'_>, package: &Package) -> Result<Install, Refusal> {
    let files = seen.files;
    for foreign in ["bun.lockb", "bun.lock"] {
        if files.has(foreign) && !LOCKS.iter().any(|(lock, _)| files.has(lock)) {
            return Err(Refusal::at(
                foreign,
                "Bun is not built by itself: set `command` and [build] in hutong.toml, or add a lock file of npm, pnpm or yarn",
            ));
        }
    }
    let said = package.all.get("packageManager").and_then(Value::as_str);
    let said = said.and_then(|text| text.split('@').next());
    let there = LOCKS.iter().filter(|(lock, _)| files.has(lock));
    let mut locks: Vec<(&'static str, Manager)> = there.copied().collect();
    if let Some(said) = said {
        let fits: Vec<_> = locks
            .iter()
            .filter(|(_, manager)| manager.name() == said)
            .copied()
            .collect();
        if let ([], Some((lock, _))) = (fits.as_slice(), locks.first()) {
            return Err(Refusal::at(
                "package.json",
                format!(
                    "`packageManager` says {said}, and the lock file there is {lock}: commit the one of {said}"
                ),
            ));
        }
        locks = fits;
    }
    if let [(one, first), (other, second), ..] = locks[..]
        && first != second
    {
        return Err(Refusal::at(
            other,
            format!(
                "there is {one}, too, and the two may say different versions: delete one of them, or set `packageManager` in package.json"
            ),
        ));
    }
    let Some((lock, mut manager)) = locks.first().copied() else {
        if package.has_dependencies() {
            return Err(Refusal::at(
                "package.json",
                "lists dependencies, and there is no lock file beside it that says which versions: run `npm install` and deploy package-lock.json too",
            ));
        }
        return Ok(Install {
            manager: Manager::Npm,
            lock: None,
            network: false,
        });
    };
    let text = files.text(lock);
    if manager == Manager::Yarn && text.is_some_and(|text| text.contains("\n__metadata:")) {
        manager = Manager::YarnBerry;
    }
    let network = match (manager, text) {
        (Manager::Npm, Some(text)) => {
            json(lock, text)?;
            text.contains("\"resolved\": \"http") || text.contains("\"resolved\":\"http")
        }
        _ => package.has_dependencies(),
    };
    Ok(Install {
        manager,
        lock: Some(lock),
        network,
    })
}

/// What a build leaves behind.
enum Output {
    Folder {
        folder: String,
        spa: bool,
        why: String,
    },
    Program,
}

pub(super) fn detect(seen: &Seen<'_>) -> Result<Plan, Refusal> {
    let package = Package::read(seen)?;
    let install = install(seen, &package)?;
    let mut because = vec!["package.json: a Node package".to_owned()];
    let builds = package.script("build").is_some();
    let steps = steps(&install, &package, &mut because);
    let output = match builds && seen.web.is_none() {
        true => output(seen, &package)?,
        false => Output::Program,
    };
    let program = match output {
        Output::Folder { folder, spa, why } => {
            because.push(why);
            Program::Static { folder, spa }
        }
        Output::Program => match program(seen, &package, install.manager, &mut because) {
            Some(command) => Program::Command(command),
            None => match super::site::detect(seen) {
                Some(site) if !builds => {
                    because.extend(site.because);
                    site.program
                }
                _ => return Err(nothing_to_run(builds)),
            },
        },
    };
    Ok(Plan {
        language: "Node",
        because,
        steps,
        program,
        caches: vec![install.manager.name()],
    })
}

/// A front end beside a server in another language: it is built before.
pub(super) fn build_beside(seen: &Seen<'_>, plan: &mut Plan) -> Result<(), Refusal> {
    let package = Package::read(seen)?;
    if package.script("build").is_none() {
        return Ok(());
    }
    let install = install(seen, &package)?;
    plan.because
        .push("package.json: a front end that is built before".into());
    let mut all = steps(&install, &package, &mut plan.because);
    all.append(&mut plan.steps);
    plan.steps = all;
    plan.caches.push(install.manager.name());
    Ok(())
}

fn steps(install: &Install, package: &Package, because: &mut Vec<String>) -> Vec<Step> {
    let builds = package.script("build").is_some();
    let name = install.manager.name();
    let mut steps = Vec::new();
    if let Some(lock) = install.lock {
        because.push(format!("{lock}: {name} installs exactly these versions"));
        steps.push(Step::new(install.manager.install(builds), install.network));
    }
    if let Some(script) = package.script("build") {
        because.push(format!("its script `build` ({script}) is run"));
        steps.push(Step::new(&format!("{name} run build"), false));
    }
    steps
}

/// Packages of servers: with one of these, files alone are not the app.
const SERVERS: [&str; 8] = [
    "express",
    "fastify",
    "koa",
    "hono",
    "@hapi/hapi",
    "@nestjs/core",
    "next",
    "nuxt",
];

/// Packages that build a folder of files: the folder, and whether its paths are the browser's affair.
const BUILDERS: [(&str, &str, bool); 11] = [
    ("react-scripts", "build", true),
    ("@vue/cli-service", "dist", true),
    ("gatsby", "public", false),
    ("@docusaurus/core", "build", false),
    ("@11ty/eleventy", "_site", false),
    ("vitepress", ".vitepress/dist", false),
    ("astro", "dist", false),
    ("vite", "dist", true),
    ("parcel", "dist", true),
    ("rollup", "dist", true),
    ("webpack", "dist", true),
];

fn output(seen: &Seen<'_>, package: &Package) -> Result<Output, Refusal> {
    let files = seen.files;
    let config = |names: &[&str]| {
        names
            .iter()
            .find_map(|name| files.text(name))
            .unwrap_or_default()
    };
    let folder = |folder: &str, spa, why: String| Output::Folder {
        folder: folder.to_owned(),
        spa,
        why,
    };
    let says = |text: &str, key: &str, value: &str| {
        let compact: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        ["'", "\"", "`"]
            .iter()
            .any(|quote| compact.contains(&format!("{key}:{quote}{value}{quote}")))
    };
    if package.depends_on("next") {
        let text = config(&["next.config.js", "next.config.mjs", "next.config.ts"]);
        return Ok(match says(text, "output", "export") {
            true => folder("out", false, "Next exports files into out/".into()),
            false => Output::Program,
        });
    }
    if package.depends_on("nuxt") {
        let generates = package
            .script("build")
            .unwrap_or_default()
            .contains("generate");
        return Ok(match generates {
            true => folder(
                ".output/public",
                false,
                "Nuxt generates files into .output/public/".into(),
            ),
            false => Output::Program,
        });
    }
    if package.depends_on("@sveltejs/kit") {
        return Ok(match package.depends_on("@sveltejs/adapter-static") {
            true => folder("build", false, "SvelteKit writes files into build/".into()),
            false => Output::Program,
        });
    }
    if ["@remix-run/", "@react-router/"]
        .iter()
        .any(|scope| package.depends_on_any(scope))
    {
        return Ok(Output::Program);
    }
    if package.depends_on("astro") {
        let text = config(&["astro.config.mjs", "astro.config.ts"]);
        if says(text, "output", "server") {
            return Ok(Output::Program);
        }
    }
    if package.depends_on("@angular/core") && files.has("angular.json") {
        let path = angular_output(files.needed("angular.json")?)?;
        let why = format!("angular.json: the files are built into {path}");
        return Ok(folder(&path, true, why));
    }
    let serves = SERVERS.iter().any(|name| package.depends_on(name));
    if serves && package.script("start").is_some() {
        return Ok(Output::Program);
    }
    let builder = BUILDERS.iter().find(|(name, ..)| package.depends_on(name));
    let starts_program = package.script("start").is_some_and(|start| {
        !builder.is_some_and(|(name, ..)| start.split("&&").any(|part| runs(part, name)))
    });
    match builder {
        Some((name, place, spa)) if !starts_program => Ok(folder(
            place,
            *spa,
            format!("{name} builds files into {place}/"),
        )),
        _ if package.script("start").is_some() => Ok(Output::Program),
        _ => {
            let script = package.script("build").unwrap_or_default();
            match ["dist", "build", "out", "public"]
                .iter()
                .find(|place| names_folder(script, place))
            {
                Some(place) => Ok(folder(
                    place,
                    false,
                    format!("the script `build` names {place}/"),
                )),
                None => Err(nothing_to_run(true)),
            }
        }
    }
}

/// Whether the program that a line begins with is a builder's own, such as its server for development.
fn runs(line: &str, builder: &str) -> bool {
    let before = ["cross-env", "env", "npx"];
    let real = line
        .split_whitespace()
        .find(|word| !before.contains(word) && !word.contains('=') && !word.starts_with('-'));
    let own = match builder {
        "@vue/cli-service" => "vue-cli-service",
        "@docusaurus/core" => "docusaurus",
        "@11ty/eleventy" => "eleventy",
        other => other,
    };
    real.is_some_and(|word| word == own || (own == "webpack" && word == "webpack-dev-server"))
}

/// Whether a script names a folder as that which it writes to. `build` is a word of many commands, so it counts only
/// behind an option, or as part of a path.
fn names_folder(script: &str, place: &str) -> bool {
    let mut before = "";
    for word in script.split_whitespace() {
        let word = word.trim_matches(['"', '\'', ';']);
        let (option, value) = match word.split_once('=') {
            Some((option, value)) if word.starts_with('-') => (option, value),
            _ => (before, word),
        };
        let plain = value.trim_start_matches("./");
        let first = plain.split('/').next().unwrap_or_default();
        let writes = ["-o", "-d", "-D", "--to", "--dir", "--dest"].contains(&option)
            || option.starts_with("--out");
        if first == place && (place != "build" || writes || value.contains('/')) {
            return true;
        }
        before = word;
    }
    false
}

fn nothing_to_run(builds: bool) -> Refusal {
    let message = match builds {
        true => {
            "has a script `build`, and neither a `start` nor a known tool that says where its output is: set `static = \"dist\"` in hutong.toml, or add a script `start`"
        }
        false => {
            "has neither a script `start` nor `build`, and there is no server.js, index.js, app.js or index.html: add a script `start`, or set `command` in hutong.toml"
        }
    };
    Refusal::at("package.json", message)
}

/// Where the first project's build puts its files.
fn angular_output(text: &str) -> Result<String, Refusal> {
    let config = json("angular.json", text)?;
    let project = config
        .get("projects")
        .and_then(Value::as_object)
        .and_then(|projects| projects.iter().next());
    let Some((name, project)) = project else {
        return Err(Refusal::at("angular.json", "has no project"));
    };
    let build = project.get("architect").or_else(|| project.get("targets"));
    let build = build.and_then(|targets| targets.get("build"));
    let builder = build.and_then(|build| build.get("builder")?.as_str());
    let output = build.and_then(|build| build.get("options")?.get("outputPath"));
    let base = match output {
        Some(Value::String(path)) => path.clone(),
        Some(Value::Object(path)) => {
            let base = path.get("base").and_then(Value::as_str);
            base.map_or_else(|| format!("dist/{name}"), str::to_owned)
        }
        _ => format!("dist/{name}"),
    };
    let base = base.trim_start_matches("./").trim_end_matches('/');
    Ok(match builder {
        // The newer builder keeps what the browser gets apart.
        Some(builder) if builder.ends_with(":application") => format!("{base}/browser"),
        _ => base.to_owned(),
    })
}

/// What is run for visitors.
fn program(
    seen: &Seen<'_>,
    package: &Package,
    manager: Manager,
    because: &mut Vec<String>,
) -> Option<Vec<String>> {
    if let Some(web) = &seen.web {
        because.push("Procfile: `web` is run".into());
        return Some(web.clone());
    }
    if let Some(start) = package.script("start") {
        because.push(format!("its script `start` ({start}) is run"));
        // There may be no node_modules: yarn says where packages lie.
        if manager == Manager::YarnBerry {
            return Some(words("yarn run start"));
        }
        // Without a shell and npm between, signals reach the program itself.
        let alone = package.script("prestart").is_none() && !needs_shell(start);
        let direct = alone.then(|| shell_words::split(start).ok()).flatten();
        return Some(match direct {
            Some(command) if !command.is_empty() => command,
            _ => words("npm run --silent start"),
        });
    }
    if package.depends_on("next") {
        because.push("Next: `next start` is run".into());
        return Some(words(&format!("next start -p {}", seen.port)));
    }
    if package.depends_on("@sveltejs/adapter-node") {
        because.push("SvelteKit: its own server is run".into());
        return Some(words("node build"));
    }
    if package.depends_on("nuxt") {
        because.push("Nuxt: its own server is run".into());
        return Some(words("node .output/server/index.mjs"));
    }
    let main = package.all.get("main").and_then(Value::as_str);
    let main = main.map(|main| main.trim_start_matches("./"));
    let file = main
        .into_iter()
        .chain(["server.js", "index.js", "app.js", "main.js"])
        .find(|name| seen.files.has(name))?;
    because.push(format!("{file} is run"));
    Some(vec!["node".into(), file.to_owned()])
}
