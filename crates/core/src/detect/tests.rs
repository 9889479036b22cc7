use super::*;

fn listing(files: &[(&str, &str)]) -> Listing {
    let mut listing = Listing::default();
    for (path, text) in files {
        listing.add(path, text.len() as u64, || Some(text.as_bytes().to_vec()));
    }
    listing
}

fn plan(files: &[(&str, &str)]) -> Plan {
    detect(&listing(files), 8080, false).expect("recognised")
}

fn refusal(files: &[(&str, &str)]) -> String {
    let refused = detect(&listing(files), 8080, false).expect_err("refused");
    refused.problems().to_string()
}

fn command(plan: &Plan) -> String {
    match &plan.program {
        Program::Command(words) => words.join(" "),
        other => panic!("no command: {other:?}"),
    }
}

fn steps(plan: &Plan) -> Vec<String> {
    plan.steps
        .iter()
        .map(|step| step.command.join(" "))
        .collect()
}

#[test]
fn flask_by_what_is_listed() {
    let app = ("app.py", "from flask import Flask\napp = Flask(__name__)\n");
    let own = plan(&[app, ("requirements.txt", "Flask==3.0\n")]);
    assert_eq!(
        command(&own),
        "flask --app app run --host 0.0.0.0 --port 8080"
    );
    assert!(own.because.iter().any(|line| line.contains("development")));
    assert!(own.steps[1].network && !own.steps[0].network);
    let gunicorn = plan(&[app, ("requirements.txt", "flask\ngunicorn>=22 # server\n")]);
    assert_eq!(command(&gunicorn), "gunicorn --bind 0.0.0.0:8080 app:app");
    let factory = plan(&[
        ("shop/__init__.py", "def create_app():\n    pass\n"),
        ("requirements.txt", "flask\nwaitress\n"),
    ]);
    assert_eq!(
        command(&factory),
        "waitress-serve --listen 0.0.0.0:8080 --call shop:create_app"
    );
}

#[test]
fn fastapi_needs_a_server() {
    let main = (
        "main.py",
        "import fastapi\napi: fastapi.FastAPI = fastapi.FastAPI()\n",
    );
    let good = plan(&[main, ("requirements.txt", "fastapi\nuvicorn[standard]\n")]);
    assert_eq!(
        command(&good),
        "uvicorn --host 0.0.0.0 --port 8080 main:api"
    );
    let standard = plan(&[main, ("requirements.txt", "fastapi[standard]\n")]);
    assert!(command(&standard).starts_with("uvicorn"));
    let both = plan(&[
        main,
        (
            "pyproject.toml",
            "[project]\nname='x'\ndependencies=['fastapi', 'gunicorn', 'uvicorn']\n",
        ),
    ]);
    assert!(command(&both).starts_with("gunicorn -k uvicorn.workers"));
    assert!(steps(&both)[1].ends_with("fastapi gunicorn uvicorn"));
    assert_eq!(
        refusal(&[main, ("requirements.txt", "fastapi\n")]),
        "requirements.txt:1:1: lists no server for the ASGI application: add uvicorn"
    );
}

#[test]
fn django_with_its_static_files() {
    let files = [
        ("manage.py", ""),
        ("shop/wsgi.py", ""),
        ("shop/settings.py", "STATIC_ROOT = 'static'\n"),
        ("requirements.txt", "Django>=5\ngunicorn\n"),
    ];
    let found = plan(&files);
    assert_eq!(
        command(&found),
        "gunicorn --bind 0.0.0.0:8080 shop.wsgi:application"
    );
    assert!(steps(&found)[2].ends_with("collectstatic --noinput"));
    let refused = refusal(&[("manage.py", ""), ("requirements.txt", "flask\n")]);
    assert!(refused.contains("Django is not among"), "{refused}");
}

#[test]
fn python_from_the_folder_alone_needs_no_network() {
    let found = plan(&[
        ("app.py", "print(1)"),
        (
            "requirements.txt",
            "# ours\n--no-index\n./wheels/hello-1.0-py3-none-any.whl\n",
        ),
    ]);
    assert_eq!(command(&found), "python app.py");
    assert!(found.steps.iter().all(|step| !step.network));
    assert_eq!(command(&plan(&[("main.py", "")])), "python3 main.py");
    let broken = refusal(&[("pyproject.toml", "[project\n")]);
    assert!(broken.starts_with("pyproject.toml:1:"), "{broken}");
    let poetry = refusal(&[(
        "pyproject.toml",
        "[tool.poetry]\nname='x'\n[tool.poetry.dependencies]\nflask='*'\n",
    )]);
    assert!(poetry.contains("[build-system]"), "{poetry}");
}

const LOCK: &str = r#"{"lockfileVersion": 3, "packages": {}}"#;

#[test]
fn node_servers() {
    let package = r#"{"scripts": {"start": "node server.js"}, "dependencies": {"express": "4"}}"#;
    let lock = r#"{"packages": {"x": {"resolved": "https://registry.npmjs.org/x.tgz"}}}"#;
    let found = plan(&[("package.json", package), ("package-lock.json", lock)]);
    assert_eq!(command(&found), "node server.js");
    assert!(steps(&found)[0].contains("npm ci") && steps(&found)[0].contains("--omit=dev"));
    assert!(found.steps[0].network);
    let shell = plan(&[("package.json", r#"{"scripts": {"start": "A=1 node x.js"}}"#)]);
    assert_eq!(command(&shell), "npm run --silent start");
    let bare = plan(&[("package.json", "{}"), ("index.js", "")]);
    assert_eq!(
        (command(&bare), bare.steps.len()),
        ("node index.js".into(), 0)
    );
}

#[test]
fn front_ends_become_files() {
    for (package, folder, spa) in [
        (
            r#"{"scripts": {"build": "vite build"}, "devDependencies": {"vite": "5"}}"#,
            "dist",
            true,
        ),
        (
            r#"{"scripts": {"build": "react-scripts build", "start": "react-scripts start"}, "dependencies": {"react-scripts": "5"}}"#,
            "build",
            true,
        ),
        (
            r#"{"scripts": {"build": "node make.js --to out"}}"#,
            "out",
            false,
        ),
    ] {
        let found = plan(&[("package.json", package), ("pnpm-lock.yaml", "")]);
        let folder = folder.to_owned();
        assert_eq!(found.program, Program::Static { folder, spa }, "{package}");
        assert!(steps(&found)[0].starts_with("pnpm install"));
        assert_eq!(steps(&found)[1], "pnpm run build");
    }
    let next = r#"{"scripts": {"build": "next build"}, "dependencies": {"next": "15"}}"#;
    let files = [
        ("package.json", next),
        ("yarn.lock", "# yarn\n__metadata:\n"),
    ];
    let server = plan(&files);
    assert_eq!(command(&server), "next start -p 8080");
    assert!(steps(&server)[0].contains("--immutable"));
    let export = [
        files[0],
        files[1],
        ("next.config.mjs", "export default { output: 'export' }"),
    ];
    let folder = "out".to_owned();
    assert_eq!(
        plan(&export).program,
        Program::Static { folder, spa: false }
    );
}

#[test]
fn node_that_is_not_understood_says_where() {
    let broken = refusal(&[("package.json", "{\n  \"scripts\": {,\n}")]);
    assert!(broken.starts_with("package.json:2:"), "{broken}");
    let lock = refusal(&[("package.json", "{}"), ("package-lock.json", "{")]);
    assert!(lock.starts_with("package-lock.json:1:"), "{lock}");
    let two = [
        ("package.json", "{}"),
        ("package-lock.json", LOCK),
        ("yarn.lock", ""),
    ];
    assert!(refusal(&two).starts_with("yarn.lock:1:1: there is package-lock.json, too"));
    let said = r#"{"packageManager": "yarn@1.22.0", "scripts": {"start": "node x"}}"#;
    let told = plan(&[("package.json", said), two[1], two[2]]);
    assert!(steps(&told)[0].starts_with("yarn install"));
    let none = refusal(&[("package.json", r#"{"dependencies": {"x": "1"}}"#)]);
    assert!(none.contains("no lock file"), "{none}");
    let nothing = refusal(&[("package.json", r#"{"scripts": {"build": "make"}}"#)]);
    assert!(nothing.contains("static = "), "{nothing}");
    assert!(refusal(&[("package.json", "[]")]).contains("no JSON object"));
}

#[test]
fn go_rust_and_java() {
    let go = plan(&[
        ("go.mod", "module example.com/x\n\ngo 1.22\n"),
        ("cmd/web/main.go", "package main\n"),
        ("lib.go", "package x\n"),
    ]);
    assert_eq!(command(&go), "/app/.hutong/app");
    assert!(steps(&go)[0].ends_with("./cmd/web") && !go.steps[0].network);
    assert!(refusal(&[("go.mod", "module x\n"), ("a.go", "package x\n")]).contains("package main"));
    let rust = plan(&[
        (
            "Cargo.toml",
            "[package]\nname = 'shop'\nversion = '1.0.0'\n",
        ),
        (
            "Cargo.lock",
            "version = 4\n\n[[package]]\nname = \"shop\"\n",
        ),
        ("src/main.rs", ""),
    ]);
    assert_eq!(command(&rust), "/app/.hutong/bin/shop");
    assert!(steps(&rust)[0].ends_with("--locked") && !rust.steps[0].network);
    let several = refusal(&[
        ("Cargo.toml", "[package]\nname = 'shop'\n"),
        ("src/main.rs", ""),
        ("src/bin/other.rs", ""),
    ]);
    assert!(several.contains("default-run"), "{several}");
    let pom = "<?xml version='1.0'?>\n<!-- x --><project>\n <parent><version>3.2</version></parent>\n <artifactId>shop</artifactId>\n</project>";
    let java = plan(&[("pom.xml", pom)]);
    assert!(command(&java).ends_with("-jar /app/target/shop-3.2.jar"));
    let war = "<project><artifactId>a</artifactId><version>1</version><packaging>war</packaging></project>";
    assert!(refusal(&[("pom.xml", war)]).contains("makes a war"));
    let odd = "<project><artifactId>a</artifactId><version>${revision}</version></project>";
    assert!(refusal(&[("pom.xml", odd)]).contains("<finalName>"));
    let broken = refusal(&[("pom.xml", "<project>\n  <a></b>\n</project>")]);
    assert!(broken.starts_with("pom.xml:2:6: </b>"), "{broken}");
}

#[test]
fn sites_dockerfiles_and_what_nobody_knows() {
    let site = plan(&[("index.html", "")]);
    let folder = String::new();
    assert_eq!(site.program, Program::Static { folder, spa: false });
    let docker = [("Dockerfile", "FROM scratch"), ("package.json", "{")];
    let found = detect(&listing(&docker), 8080, true).expect("a Dockerfile");
    assert_eq!(found.program, Program::Dockerfile("Dockerfile".into()));
    assert!(refusal(&docker[..1]).contains("no container engine"));
    assert!(refusal(&[("composer.json", "{}")]).contains("PHP"));
    assert!(refusal(&[("README", "")]).starts_with("hutong.toml:1:1: nothing to run"));
    let two = refusal(&[("go.mod", ""), ("requirements.txt", "")]);
    assert!(
        two.contains("requirements.txt says Python and go.mod says Go"),
        "{two}"
    );
}

#[test]
fn a_file_that_is_too_long_is_not_guessed_at() {
    let mut files = Listing::default();
    files.add("package.json", MAX_TEXT + 1, || {
        panic!("it must not be read")
    });
    let refused = detect(&files, 8080, false).expect_err("too long");
    assert!(refused.message.contains("over 1M"), "{}", refused.message);
    // A long lock file is nothing odd.
    files = listing(&[(
        "package.json",
        r#"{"scripts": {"start": "node a"}, "dependencies": {"a": "1"}}"#,
    )]);
    files.add("package-lock.json", 5 << 20, || {
        panic!("it must not be read")
    });
    let found = detect(&files, 8080, false).expect("recognised");
    assert!(found.steps[0].network);
}

#[test]
fn a_front_end_beside_a_server_is_built_first() {
    let found = plan(&[
        ("manage.py", ""),
        ("shop/wsgi.py", ""),
        ("requirements.txt", "django\ngunicorn\n"),
        ("package.json", r#"{"scripts": {"build": "vite build"}}"#),
        ("package-lock.json", LOCK),
    ]);
    assert!(steps(&found)[0].starts_with("npm ci"));
    assert_eq!(steps(&found)[1], "npm run build");
    assert_eq!(found.caches, ["pip", "npm"]);
}

#[test]
fn procfiles_say_how_it_runs() {
    let found = plan(&[
        ("requirements.txt", ""),
        ("Procfile", "worker: x\nweb: gunicorn -b :$PORT shop:app\n"),
    ]);
    assert_eq!(command(&found), "gunicorn -b :8080 shop:app");
    let shell = plan(&[("Procfile", "web: a && b\n")]);
    assert_eq!(command(&shell), "sh -c a && b");
    assert!(refusal(&[("Procfile", "x: y\nweb: 'a\n")]).starts_with("Procfile:2:1"));
}

#[test]
fn what_is_missing_is_written_into_the_configuration() {
    let files = [
        ("app.py", "from flask import Flask\nweb = Flask('x')\n"),
        ("requirements.txt", "flask\ngunicorn\n"),
    ];
    let text = "name = 'shop'\nport = 9000\n\n[limits]\nmemory = '64M'\n";
    let done = complete("hutong.toml", text, false, || listing(&files)).expect("complete");
    let run = spec::Run::Command(words("gunicorn --bind 0.0.0.0:9000 app:web"));
    assert_eq!(done.spec.run, run);
    let build = done.spec.build.clone().expect("steps");
    assert_eq!((build.steps.len(), build.installs), (2, false));
    assert!(done.spec.caps.memory_bytes == 64 << 20);
    // Once written, nothing is detected any more.
    let again = complete("hutong.toml", &done.text, false, || panic!("not asked"));
    assert_eq!(again.expect("complete").spec, done.spec);
    // What its owner says, wins.
    let own = "name = 'shop'\nbuild.command = 'make'\n";
    let own = complete("hutong.toml", own, false, || listing(&files)).expect("complete");
    assert_eq!(own.spec.build.expect("one").steps[0].command, ["make"]);
    let said = complete("hutong.toml", "name='a'\ncommand='x'", false, || {
        panic!("not asked")
    });
    assert!(said.expect("complete").plan.is_none());
    // Mistakes are where the owner wrote them.
    let wrong = complete("hutong.toml", "name = 'a'\nport = 0\n", false, || {
        listing(&files)
    });
    let wrong = wrong.expect_err("a port").to_string();
    assert!(wrong.starts_with("hutong.toml:2:8: "), "{wrong}");
    let docker = complete("hutong.toml", "name = 'a'\n", true, || {
        listing(&[("Dockerfile", "FROM scratch\n")])
    });
    let image = docker.expect("complete").spec.image.expect("an image");
    assert_eq!(image.dockerfile.expect("built").path, "Dockerfile");
}

#[test]
fn all_texts_together_are_bounded() {
    let mut files = Listing::default();
    let big = vec![b'x'; MAX_TEXT as usize];
    for number in 0..16 {
        files.add(&format!("a{number:02}.py"), MAX_TEXT, || Some(big.clone()));
    }
    files.add("package.json", 2, || panic!("it must not be read"));
    let refused = detect(&files, 8080, false).expect_err("too much");
    assert!(refused.message.contains("too much"), "{}", refused.message);
}

#[test]
fn a_pom_is_no_way_to_fill_the_memory() {
    let long = format!("<project><{}>x", "n".repeat(300));
    assert!(refusal(&[("pom.xml", &long)]).contains("name is too long"));
    let many = "<a>x</a>".repeat(10_000);
    let pom = format!(
        "<project>{many}<artifactId>a</artifactId><version>1</version><build><finalName>b</finalName><finalName>c</finalName></build></project>"
    );
    let found = plan(&[("pom.xml", &pom)]);
    assert!(command(&found).ends_with("target/b.jar"));
}

#[test]
fn node_servers_beside_builders() {
    let of = |package: &str| plan(&[("package.json", package), ("package-lock.json", LOCK)]);
    let nuxt = of(r#"{"scripts": {"build": "nuxt build"}, "dependencies": {"nuxt": "3"}}"#);
    assert_eq!(command(&nuxt), "node .output/server/index.mjs");
    let kit = r#"{"scripts": {"build": "vite build"}, "devDependencies": {"vite": "5", "@sveltejs/kit": "2", "@sveltejs/adapter-node": "5"}}"#;
    assert_eq!(command(&of(kit)), "node build");
    let remix = r#"{"scripts": {"build": "remix vite:build", "start": "remix-serve build/server/index.js"}, "dependencies": {"vite": "5", "@remix-run/node": "2"}}"#;
    assert_eq!(command(&of(remix)), "remix-serve build/server/index.js");
    let other = r#"{"scripts": {"build": "vite build", "start": "bun run.js"}, "devDependencies": {"vite": "5"}}"#;
    assert_eq!(command(&of(other)), "bun run.js");
    let dev = of(
        r#"{"scripts": {"build": "vite build", "start": "cross-env A=1 vite --host"}, "devDependencies": {"vite": "5"}}"#,
    );
    assert!(matches!(dev.program, Program::Static { .. }));
    let before = of(r#"{"scripts": {"prestart": "node a.js", "start": "node b.js"}}"#);
    assert_eq!(command(&before), "npm run --silent start");
    let berry = plan(&[
        ("package.json", r#"{"scripts": {"start": "node b.js"}}"#),
        ("yarn.lock", "# yarn\n__metadata:\n"),
    ]);
    assert_eq!(command(&berry), "yarn run start");
}

#[test]
fn build_is_a_folder_only_where_it_is_written_to() {
    let of = |script: &str| {
        let package = format!(r#"{{"scripts": {{"build": "{script}"}}}}"#);
        detect(&listing(&[("package.json", &package)]), 8080, false)
    };
    for script in ["tool build", "node build.js", "turbo run build"] {
        assert!(of(script).is_err(), "{script}");
    }
    for script in [
        "tool -o build",
        "tool --outdir=build",
        "cp -r src/ ./build/",
        "tool build/x.js",
    ] {
        let folder = "build".to_owned();
        let found = of(script).expect(script);
        assert_eq!(
            found.program,
            Program::Static { folder, spa: false },
            "{script}"
        );
    }
}

#[test]
fn what_is_said_of_spa_is_not_said_twice() {
    let package = r#"{"scripts": {"build": "vite build"}, "devDependencies": {"vite": "5"}}"#;
    let files = [("package.json", package), ("package-lock.json", LOCK)];
    for said in ["false", "true"] {
        let text = format!("name = 'a'\nspa = {said}\n");
        let done = complete("hutong.toml", &text, false, || listing(&files)).expect("complete");
        assert_eq!(done.text.matches("spa =").count(), 1);
    }
}

#[test]
fn requirements_of_requirements() {
    let app = ("app.py", "from flask import Flask\napp = Flask(__name__)\n");
    let found = plan(&[
        app,
        ("requirements.txt", "-r requirements/base.txt\n"),
        ("requirements/base.txt", "flask\ngunicorn # server\n"),
    ]);
    assert_eq!(command(&found), "gunicorn --bind 0.0.0.0:8080 app:app");
    assert!(found.steps[1].network);
    let local = plan(&[
        app,
        ("requirements.txt", "-r other.txt\n"),
        ("other.txt", "--no-index\n./flask-3.0-py3-none-any.whl\n"),
    ]);
    assert!(!local.steps[1].network);
    let poetry = refusal(&[(
        "pyproject.toml",
        "[build-system]\nrequires=[]\n[tool.poetry]\npackage-mode=false\n[tool.poetry.dependencies]\nflask='*'\n",
    )]);
    assert!(poetry.contains("package-mode"), "{poetry}");
}

#[test]
fn go_files_that_are_left_out_are_no_programs() {
    let found = plan(&[
        ("go.mod", "module x\n"),
        ("gen.go", "//go:build ignore\n\npackage main\n"),
        ("cmd/web/main.go", "package main\n"),
    ]);
    assert!(steps(&found)[0].ends_with("./cmd/web"));
}
