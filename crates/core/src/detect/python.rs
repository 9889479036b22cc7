//! Python: a virtual environment in the release with what requirements.txt or pyproject.toml lists, and the server that
//! they list, or the framework's own.

use super::{Plan, Program, Refusal, Seen, Step, toml_of, words};

const VENV: &str = "python3 -m venv /app/.venv";
const PIP: &str = "/app/.venv/bin/python -m pip install --no-input --disable-pip-version-check --no-warn-script-location";

/// What a project needs, and what installs that.
#[derive(Default)]
struct Needs {
    /// Names of packages, as PyPI normalises them.
    names: Vec<String>,
    steps: Vec<Step>,
}

impl Needs {
    fn has(&self, name: &str) -> bool {
        self.names.iter().any(|known| known == name)
    }
}

pub(super) fn detect(seen: &Seen<'_>) -> Result<Plan, Refusal> {
    let mut because = Vec::new();
    let mut needs = needs(seen, &mut because)?;
    let mut steps = vec![Step::new(VENV, false)];
    steps.append(&mut needs.steps);
    let command = match &seen.web {
        Some(web) => {
            because.push("Procfile: `web` is run".into());
            web.clone()
        }
        None => program(seen, &needs, &mut because, &mut steps)?,
    };
    Ok(Plan {
        language: "Python",
        because,
        steps,
        program: Program::Command(command),
        caches: vec!["pip"],
    })
}

/// A program that needs nothing: no list of packages is beside it.
pub(super) fn lone_script(seen: &Seen<'_>) -> Option<Plan> {
    let command = match &seen.web {
        Some(web) => web.clone(),
        None => vec!["python3".into(), script(seen)?.to_owned()],
    };
    let because = match &seen.web {
        Some(_) => "Procfile: `web` is run".to_owned(),
        None => format!("{}: a Python program that needs no packages", command[1]),
    };
    Some(Plan {
        language: if seen.web.is_some() {
            "Procfile"
        } else {
            "Python"
        },
        because: vec![because],
        steps: Vec::new(),
        program: Program::Command(command),
        caches: Vec::new(),
    })
}

fn script(seen: &Seen<'_>) -> Option<&'static str> {
    ["main.py", "app.py", "server.py", "run.py"]
        .into_iter()
        .find(|name| seen.files.has(name))
}

fn needs(seen: &Seen<'_>, because: &mut Vec<String>) -> Result<Needs, Refusal> {
    let files = seen.files;
    let mut needs = Needs::default();
    if files.has("requirements.txt") {
        let text = files.needed("requirements.txt")?;
        let mut local = true;
        for (index, line) in text.lines().enumerate() {
            let line = line.split(" #").next().unwrap_or_default().trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if line.contains('\0') {
                return Err(Refusal {
                    line: index + 1,
                    ..Refusal::at(
                        "requirements.txt",
                        "holds a NUL character: is it UTF-16? Save it as UTF-8",
                    )
                });
            }
            let Some(other) = included(line) else {
                local &= is_local(line);
                needs.names.extend(package_name(line));
                continue;
            };
            // One more file, and no further: enough to know what is there.
            let Some(text) = files.text(other) else {
                local = false;
                continue;
            };
            for line in text.lines() {
                let line = line.split(" #").next().unwrap_or_default().trim();
                if !line.is_empty() && !line.starts_with('#') {
                    local &= is_local(line);
                    needs.names.extend(package_name(line));
                }
            }
        }
        because.push(match local {
            true => "requirements.txt: packages that are in the folder".to_owned(),
            false => "requirements.txt: packages for pip".to_owned(),
        });
        needs
            .steps
            .push(Step::new(&format!("{PIP} -r requirements.txt"), !local));
        return Ok(needs);
    }
    if !files.has("pyproject.toml") {
        return Ok(needs);
    }
    let project = toml_of("pyproject.toml", files.needed("pyproject.toml")?)?;
    let poetry = project.get("tool").and_then(|tool| tool.get("poetry"));
    let table = project.get("project");
    let listed = table
        .and_then(|table| table.get("dependencies"))
        .and_then(toml::Value::as_array);
    let listed: Vec<String> = listed
        .into_iter()
        .flatten()
        .filter_map(|one| one.as_str().map(str::to_owned))
        .collect();
    needs
        .names
        .extend(listed.iter().filter_map(|line| package_name(line)));
    let poetrys = poetry
        .and_then(|poetry| poetry.get("dependencies"))
        .and_then(toml::Value::as_table);
    needs
        .names
        .extend(poetrys.into_iter().flatten().map(|(name, _)| normal(name)));
    // Such a project is only a list of packages, and pip cannot install it.
    let no_package = poetry
        .and_then(|poetry| poetry.get("package-mode"))
        .and_then(toml::Value::as_bool)
        == Some(false);
    let installs = project.contains_key("build-system") && (table.is_some() || poetry.is_some());
    if installs && !no_package {
        because.push("pyproject.toml: pip installs the project".into());
        needs.steps.push(Step::new(&format!("{PIP} ."), true));
    } else if no_package && listed.is_empty() {
        return Err(Refusal::at(
            "pyproject.toml",
            "says `package-mode = false`, so that pip cannot install it: export a requirements.txt (`poetry export`), or list the packages in [project]",
        ));
    } else if poetry.is_some() && !no_package {
        return Err(Refusal::at(
            "pyproject.toml",
            "is Poetry's, and has no [build-system] by which pip could install it: `poetry init` writes one, or export a requirements.txt",
        ));
    } else if !listed.is_empty() {
        because.push("pyproject.toml: packages for pip".into());
        let network = !listed.iter().all(|line| is_local(line));
        let mut step = Step::new(PIP, network);
        // Words of one command, so nothing in them is an option or for a shell.
        if let Some(odd) = listed.iter().find(|line| line.starts_with('-')) {
            return Err(Refusal::at(
                "pyproject.toml",
                format!("`{odd}` in project.dependencies is no package"),
            ));
        }
        step.command.extend(listed);
        needs.steps.push(step);
    } else {
        because.push("pyproject.toml: no packages".into());
    }
    Ok(needs)
}

/// The file that a line of requirements.txt takes in.
fn included(line: &str) -> Option<&str> {
    let rest = line
        .strip_prefix("--requirement")
        .or_else(|| line.strip_prefix("-r"))?;
    let path = rest.trim_start_matches(['=', ' ', '\t']).trim();
    Some(path.trim_start_matches("./"))
}

/// Whether a line of requirements.txt needs nothing but the folder.
fn is_local(line: &str) -> bool {
    line.starts_with("./")
        || line.starts_with("--no-index")
        || line.starts_with("--find-links")
        || line.starts_with("file:")
        || line.contains("@ file:")
}

/// The package that a requirement names, normalised; none for options, files and addresses.
fn package_name(line: &str) -> Option<String> {
    let line = line.trim();
    if line.starts_with(['-', '.', '/']) || line.starts_with("file:") {
        // A wheel's name begins with its package's.
        let file = line.rsplit('/').next()?;
        let wheel = file.strip_suffix(".whl")?;
        return Some(normal(wheel.split('-').next()?));
    }
    let end = line
        .find(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)))
        .unwrap_or(line.len());
    let name = &line[..end];
    (!name.is_empty()).then(|| normal(name))
}

fn normal(name: &str) -> String {
    name.to_ascii_lowercase().replace(['_', '.'], "-")
}

fn program(
    seen: &Seen<'_>,
    needs: &Needs,
    because: &mut Vec<String>,
    steps: &mut Vec<Step>,
) -> Result<Vec<String>, Refusal> {
    let files = seen.files;
    let port = seen.port;
    if files.has("manage.py") {
        if !needs.has("django") {
            return Err(Refusal::at(
                "manage.py",
                "Django is not among the packages that requirements.txt or pyproject.toml list: add it there",
            ));
        }
        return django(seen, needs, because, steps);
    }
    if let Some((module, name)) = application(seen, &["FastAPI", "Starlette", "Quart", "Litestar"])
    {
        because.push(format!("{name} in {module}: an ASGI application"));
        let place = format!("{module}:{name}");
        let line = if needs.has("gunicorn") && needs.has("uvicorn") {
            format!("gunicorn -k uvicorn.workers.UvicornWorker --bind 0.0.0.0:{port} {place}")
        } else if needs.has("hypercorn") && !needs.has("uvicorn") {
            format!("hypercorn --bind 0.0.0.0:{port} {place}")
        } else if needs.has("uvicorn") || needs.has("fastapi") && !is_bare_fastapi(seen) {
            format!("uvicorn --host 0.0.0.0 --port {port} {place}")
        } else {
            return Err(Refusal::at(
                listed_in(seen),
                "lists no server for the ASGI application: add uvicorn",
            ));
        };
        return Ok(words(&line));
    }
    if let Some((module, name)) = application(seen, &["Flask", "Bottle"]) {
        because.push(format!("{name} in {module}: a WSGI application"));
        return Ok(wsgi(needs, because, &format!("{module}:{name}"), port).unwrap_or_else(|| {
            because.push(
                "no gunicorn, waitress or uwsgi is listed, so Flask's own server is run, which is for development".into(),
            );
            words(&format!("flask --app {module} run --host 0.0.0.0 --port {port}"))
        }));
    }
    if needs.has("flask")
        && let Some(module) = factory(seen)
    {
        because.push(format!("create_app in {module}: a WSGI application"));
        let place = format!("{module}:create_app()");
        return Ok(wsgi(needs, because, &place, port).unwrap_or_else(|| {
            words(&format!(
                "flask --app {module} run --host 0.0.0.0 --port {port}"
            ))
        }));
    }
    if let Some(file) = script(seen) {
        because.push(format!("{file} is run"));
        return Ok(vec!["python".into(), file.to_owned()]);
    }
    Err(Refusal::at(
        listed_in(seen),
        "is there, and no program: no manage.py, no FastAPI or Flask application in the folder or one below it, no main.py, app.py, server.py or run.py; set `command` in hutong.toml",
    ))
}

fn listed_in(seen: &Seen<'_>) -> &'static str {
    match seen.files.has("requirements.txt") {
        true => "requirements.txt",
        false => "pyproject.toml",
    }
}

/// FastAPI brings uvicorn only as `fastapi[standard]`.
fn is_bare_fastapi(seen: &Seen<'_>) -> bool {
    let text = ["requirements.txt", "pyproject.toml"]
        .iter()
        .find_map(|name| seen.files.text(name))
        .unwrap_or_default();
    !(text.contains("fastapi[standard]") || text.contains("fastapi[all]"))
}

fn wsgi(needs: &Needs, because: &mut Vec<String>, place: &str, port: u16) -> Option<Vec<String>> {
    let (server, line) = if needs.has("gunicorn") {
        (
            "gunicorn",
            format!("gunicorn --bind 0.0.0.0:{port} {place}"),
        )
    } else if needs.has("waitress") {
        let call = if place.ends_with("()") { "--call " } else { "" };
        let place = place.trim_end_matches("()");
        (
            "waitress",
            format!("waitress-serve --listen 0.0.0.0:{port} {call}{place}"),
        )
    } else if needs.has("uwsgi") && !place.ends_with("()") {
        let line = format!("uwsgi --http 0.0.0.0:{port} --master --need-app -w {place}");
        ("uwsgi", line)
    } else {
        return None;
    };
    because.push(format!("{server} is listed, so it serves"));
    Some(words(&line))
}

fn django(
    seen: &Seen<'_>,
    needs: &Needs,
    because: &mut Vec<String>,
    steps: &mut Vec<Step>,
) -> Result<Vec<String>, Refusal> {
    let files = seen.files;
    let port = seen.port;
    because.push("manage.py: a Django project".into());
    let settings = files
        .own_paths()
        .filter(|path| path.ends_with("settings.py"))
        .filter_map(|path| files.text(path))
        .any(|text| text.lines().any(|line| line.starts_with("STATIC_ROOT")));
    if settings {
        because.push("STATIC_ROOT is set, so static files are collected".into());
        steps.push(Step::new(
            "/app/.venv/bin/python manage.py collectstatic --noinput",
            false,
        ));
    }
    let module = |name: &str| {
        let suffix = format!("/{name}.py");
        let found: Vec<&str> = files
            .own_paths()
            .filter_map(|path| path.strip_suffix(&suffix))
            .collect();
        found
    };
    let only = |name: &'static str| match module(name).as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(format!(
            "{}.{name}:application",
            one.replace('/', ".")
        ))),
        several => Err(Refusal::at(
            "manage.py",
            format!(
                "there are several {name}.py, in {}: set `command` in hutong.toml",
                several.join(", ")
            ),
        )),
    };
    if let Some(place) = only("wsgi")?
        && let Some(command) = wsgi(needs, because, &place, port)
    {
        return Ok(command);
    }
    if (needs.has("uvicorn") || needs.has("daphne"))
        && let Some(place) = only("asgi")?
    {
        return Ok(words(&match needs.has("uvicorn") {
            true => format!("uvicorn --host 0.0.0.0 --port {port} {place}"),
            false => format!("daphne -b 0.0.0.0 -p {port} {place}"),
        }));
    }
    because.push(
        "no gunicorn, waitress, uwsgi, uvicorn or daphne is listed, so Django's own server is run, which is for development".into(),
    );
    Ok(words(&format!(
        "python manage.py runserver --noreload 0.0.0.0:{port}"
    )))
}

/// `NAME = Class(` at the beginning of a line: the module, and the name.
fn application(seen: &Seen<'_>, classes: &[&str]) -> Option<(String, String)> {
    modules(seen).find_map(|(module, text)| {
        text.lines().find_map(|line| {
            let (name, value) = line.split_once('=')?;
            // `app: FastAPI = FastAPI()`
            let name = name.split(':').next()?.trim_end();
            let plain = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let called = value.trim_start();
            let called = called.split('(').next()?.rsplit('.').next()?.trim();
            (plain && value.contains('(') && classes.contains(&called))
                .then(|| (module.clone(), name.to_owned()))
        })
    })
}

fn factory(seen: &Seen<'_>) -> Option<String> {
    modules(seen).find_map(|(module, text)| {
        let made = text.lines().any(|line| line.starts_with("def create_app("));
        made.then_some(module)
    })
}

/// Modules of the folder and one below it, the likely ones first.
fn modules<'a>(seen: &'a Seen<'_>) -> impl Iterator<Item = (String, &'a str)> {
    let likely = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or_default();
        let known = ["main.py", "app.py", "wsgi.py", "server.py", "__init__.py"];
        let place = known.iter().position(|one| *one == name);
        (path.matches('/').count(), place.unwrap_or(known.len()))
    };
    let mut paths: Vec<&str> = seen
        .files
        .own_paths()
        .filter(|path| path.ends_with(".py") && !path.contains("test"))
        .filter(|path| {
            path.bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_/.".contains(&byte))
        })
        .collect();
    paths.sort_by_key(|path| likely(path));
    paths.into_iter().filter_map(move |path| {
        let text = seen.files.text(path)?;
        let module = path.trim_end_matches(".py").trim_end_matches("/__init__");
        Some((module.replace('/', "."), text))
    })
}
