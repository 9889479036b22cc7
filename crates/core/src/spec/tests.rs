use super::Strategy;
use super::*;
use proptest::prelude::proptest;

fn errors(text: &str) -> String {
    parse("hutong.toml", text)
        .expect_err("a mistake")
        .to_string()
}

#[test]
fn a_small_file_has_good_defaults() {
    let spec = parse("t", "name = 'web'\ncommand = 'python3 \"my app.py\"'\n").expect("good");
    assert_eq!(
        spec.run,
        Run::Command(vec!["python3".into(), "my app.py".into()])
    );
    assert_eq!((spec.port, spec.instances, spec.caps.pids), (8080, 1, 128));
    assert_eq!(spec.caps.memory_bytes, 256 << 20);
    assert_eq!(spec.strategy, Strategy::Rolling);
    assert_eq!(spec.egress, Egress::None);
    let spec = parse("t", "name='a'\ncommand=['x']\ndata=true").expect("good");
    assert_eq!(spec.strategy, Strategy::Recreate);
}

#[test]
fn every_mistake_has_its_place_and_its_remedy() {
    insta::assert_snapshot!(errors("name = 'web'\ncomand = 'x'\n"), @"hutong.toml:2:1: unknown key `comand`; did you mean `command`?");
    insta::assert_snapshot!(errors("name = 'web'\ncommand='x'\n[limits]\nmem = 1\n"), @"hutong.toml:4:1: unknown key `mem`; did you mean `memory`?");
    insta::assert_snapshot!(errors("name = 'web\n"), @"hutong.toml:1:12: invalid literal string, expected `'`");
    insta::assert_snapshot!(errors("name = 'Web'\nport = 70000\n[limits]\nmemory = '12'\ncpu = 900\n[health]\ninterval='5'"), @r#"
    hutong.toml:1:8: a name has lower-case letters, digits and '-' only, and neither begins nor ends with '-'
    hutong.toml:1:8: nothing to run: add `command = ["python3", "app.py"]` or `static = "dist"`
    hutong.toml:2:8: a port is 1 to 65535, not 70000
    hutong.toml:4:10: `12` is not a size; write for instance 256M or 1.5G
    hutong.toml:5:7: limits.cpu is 0.01 to 256 cores
    hutong.toml:7:10: `5` is not a time; write for instance 500ms, 30s or 5m
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='npm i && npm start'"), @r#"hutong.toml:2:9: no shell runs the command, so `&&` would be a plain word; use ["sh", "-c", "…"] if you want one"#);
    insta::assert_snapshot!(errors("name='a'\nstatic='../x'\ndomains=['http://a.b', 'a.b', 'a.b/']\n[env]\nPORT=1\n'a b'='c'"), @r#"
    hutong.toml:2:8: `static` names a folder below the app's own, such as "dist"
    hutong.toml:3:10: `http://a.b`: leave out the scheme and write for instance shop.example.com or shop.example.com/api
    hutong.toml:3:31: `a.b` is listed twice
    hutong.toml:5:1: `PORT` is set by Hutong itself
    hutong.toml:6:1: `a b` cannot name an environment variable; use letters, digits and '_'
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\ndata=true\ninstances=3"), @"hutong.toml:4:11: data has a single writer: leave instances at 1, or name a strategy if several instances may share /data");
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\nstrategy='green'"), @"hutong.toml:3:10: unknown variant `green`, expected one of `rolling`, `recreate`, `blue-green`, `canary`, `ab`");
    insta::assert_snapshot!(errors("command='x'"), @"hutong.toml:1:1: missing field `name`");
}

#[test]
fn the_leak_guard_is_on_and_workers_inherit_it() {
    let guards = |limits: &str, own: &str| {
        let text = format!("name='a'\ncommand='x'\n{limits}\n[workers.w]\ncommand='y'\n{own}");
        let spec = parse("t", &text).expect("good");
        (spec.caps.leak_guard, spec.workers["w"].caps.leak_guard)
    };
    assert_eq!(guards("", ""), (true, true));
    assert_eq!(guards("limits.leak_guard=false", ""), (false, false));
    assert_eq!(guards("", "limits.leak_guard=false"), (true, false));
}

#[test]
fn the_schema_knows_every_key() {
    let schema = json_schema();
    assert_eq!(schema["required"], serde_json::json!(["name"]));
    for key in ["name", "command", "static", "limits", "health", "share"] {
        assert!(schema["properties"].get(key).is_some(), "{key}");
    }
    assert_eq!(schema["additionalProperties"], false);
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "(?s).{0,200}") {
        let _ = parse("t", &text);
    }

    #[test]
    fn no_odd_value_makes_it_panic(key in "(name|port|command|static|env|limits|domains|share|egress)", value in r#"(-?[0-9]{1,20}|"[^"\\]{0,20}"|\[\]|\{\}|\["[^"\\]{0,9}"\]|true|1979-05-27)"#) {
        let _ = parse("t", &format!("name='a'\n{key} = {value}\n"));
    }
}

#[test]
fn mistakes_about_traffic_have_their_place() {
    insta::assert_snapshot!(errors("name='a'\nupstream=['uwsgi://127.0.0.1:1', 'ftp://1.1.1.1:2', 'http://example.com:80', {url='http://127.0.0.1:3', weight=0}, '127.0.0.1:1']\ninstances=2\n"), @r#"
    hutong.toml:2:34: `ftp://` is not spoken; there are http://, h2c://, uwsgi:// and fastcgi://
    hutong.toml:2:53: `http://example.com:80` is no address; write for instance http://127.0.0.1:8001
    hutong.toml:2:78: a weight is 1 to 100
    hutong.toml:2:116: 127.0.0.1:1 is listed twice
    hutong.toml:3:11: only an app with a `command` has instances
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\nprotocol='uwsgi'\n[health]\npath='/'\n[balance]\nmethod='random'\nby='ip'\nmax_requests=-1\n"), @r#"
    hutong.toml:5:6: health.path goes with HTTP/1 only; without it an open port is enough
    hutong.toml:7:8: `random` is no way to balance; there are "least", "round-robin", "sticky" and "hash"
    hutong.toml:8:4: `by` goes with method = "hash"
    hutong.toml:9:14: balance.max_requests is 0 to 1048576, not -1
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\n[traffic]\nrate='5'\nburst=3\nburst_per_ip=4\nallow=['10.1.2.3/8', 'x']\n[[traffic.route]]\npath='a'\n[[traffic.route]]\npath='/b'\nclass='core'\n"), @r#"
    hutong.toml:4:6: `5` is no rate; write for instance 50/s or 100/m
    hutong.toml:6:14: a burst goes with a rate
    hutong.toml:7:8: "10.1.2.3/8": write 10.0.0.0/8
    hutong.toml:7:22: "x": write an address or a network, such as 192.0.2.1, 10.0.0.0/8 or 2001:db8::/32
    hutong.toml:9:6: the path `a` must begin with '/'
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\nprotocol='fastcgi'\n[fastcgi]\nroot='/var/www'\nindex='../x.php'\n[traffic]\nban={after=0, for='1s'}\nmax_body='lots'"), @r#"
    hutong.toml:5:6: fastcgi.root names a folder below the app's own, such as "public"
    hutong.toml:6:7: fastcgi.index names a script below fastcgi.root, such as "index.php"
    hutong.toml:8:12: ban.after is 1 to 1000000, not 0
    hutong.toml:9:10: `lots` is not a size; write for instance 256M or 1.5G
    "#);
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\nstatic='y'\nupstream=[]"), @r#"
    hutong.toml:4:10: an app has `command`, `static` or `upstream`, one of them
    hutong.toml:4:10: an app has 1 to 64 upstreams
    "#);
}

#[test]
fn traffic_is_read_as_it_is_meant() {
    let text = "name='a'\nupstream=['uwsgi://127.0.0.1:1', {url='[::1]:2', weight=3}]\n[balance]\nmethod='hash'\nby='header:X-User'\n[traffic]\nrate='100/m'\nrate_per_ip='20/s'\nburst_per_ip=5\n[[traffic.route]]\npath='/a'\n[[traffic.route]]\npath='/a/b'\nclass='core'\nresponse='800ms'";
    let spec = parse("t", text).expect("good");
    let Run::Upstream(list) = &spec.run else {
        panic!("{:?}", spec.run)
    };
    assert_eq!((list[0].protocol, list[0].weight), (Protocol::Uwsgi, 1));
    assert_eq!((list[1].protocol, list[1].weight), (Protocol::Http, 3));
    assert_eq!(
        spec.balance.method,
        Method::Hash(HashKey::Header("x-user".into()))
    );
    let rate = |interval_ns, burst| Some(Rate { interval_ns, burst });
    assert_eq!(spec.traffic.rules.rate, rate(600_000_000, 2));
    assert_eq!(spec.traffic.rules.rate_per_ip, rate(50_000_000, 5));
    // The longest path first: that is how they are looked for.
    let routes: Vec<&str> = spec
        .traffic
        .routes
        .iter()
        .map(|route| route.prefix.as_str())
        .collect();
    assert_eq!(routes, ["/a/b", "/a"]);
    assert_eq!(spec.traffic.routes[0].class, Class::Core);
    assert_eq!(
        spec.traffic.routes[0].response,
        Some(Duration::from_millis(800))
    );
    assert!(spec.traffic.compress && spec.balance.eject);
}

#[test]
fn workers_and_timed_jobs_are_read() {
    let text = "name='a'\ncommand='x'\n[limits]\nmemory='64M'\n[workers.mail]\ncommand='w'\ninstances=2\n[workers.mail.limits]\npids=9\n[cron.report]\ncommand=['r', 'all']\nschedule='30 3 * * *'\nzone='Asia/Shanghai'\n[release]\ncommand='m'\n";
    let spec = parse("t", text).expect("good");
    let mail = &spec.workers["mail"];
    let caps = (mail.caps.memory_bytes, mail.caps.pids);
    assert_eq!((mail.instances, caps), (2, (64 << 20, 9)));
    let report = &spec.cron["report"];
    assert_eq!(report.command, ["r", "all"]);
    assert_eq!(report.schedule.zone(), "Asia/Shanghai");
    assert!(!report.overlap);
    let spec = parse("t", "name='a'\n[cron.x]\ncommand='r'\nschedule='@daily'").expect("good");
    assert_eq!(spec.run, Run::Background);
    insta::assert_snapshot!(errors("name='a'\nstatic='.'\n[workers.Mail]\ncommand='x'\n[cron.web]\ncommand=''\nschedule='x'\n[cron.b]\ncommand='c'\nschedule='0 3 * * *'\nzone='Peking'"), @r#"
    hutong.toml:3:10: `workers` goes with `command`; give these programs an app of their own
    hutong.toml:3:10: `Mail` cannot name a process: lower-case letters and digits, a letter first, at most 16 characters, and not one of web, run, release, build
    hutong.toml:5:7: `web` cannot name a process: lower-case letters and digits, a letter first, at most 16 characters, and not one of web, run, release, build
    hutong.toml:7:10: `x` is no cron expression such as "0 3 * * *" (minute hour day month weekday): Pattern must have 5 fields when seconds are disallowed
    hutong.toml:8:7: `cron` goes with `command`; give these programs an app of their own
    hutong.toml:11:6: `Peking` is no time zone; write for instance Asia/Shanghai or UTC
    "#);
    insta::assert_snapshot!(errors("name='a'\ndomains=['a.b']\n[workers.mail]\ncommand='x'\ninstances=0"), @r"
    hutong.toml:2:10: `domains` goes with `command`: nothing of this app would answer
    hutong.toml:5:11: the number of instances is 1 to 64, not 0
    ");
}

#[test]
fn scaling_is_read() {
    let spec = parse("t", "name='a'\ncommand='x'\n[scale]\nmax=8").expect("good");
    let scale = spec.scale.expect("there is one");
    assert_eq!((spec.instances, spec.most_instances()), (1, 8));
    assert_eq!(spec.show_instances(), "1 to 8");
    assert_eq!(
        (scale.min, scale.max, scale.cpu, scale.requests),
        (1, 8, 60, 32)
    );
    assert_eq!(scale.cooldown, Duration::from_secs(60));
    let shared = "name='a'\ncommand='x'\ndata=true\nstrategy='rolling'\n[scale]\nmin=2\nmax=2";
    assert_eq!(parse("t", shared).expect("good").instances, 2);
    assert!(parse("t", "name='a'\ncommand='x'\ndata=true\n[scale]\nmax=1").is_ok());
    insta::assert_snapshot!(errors("name='a'\nstatic='.'\ninstances=2\n[scale]\nmin=5\nmax=3\ncpu=101\nrequests=0\ncooldown='1d'"), @r"
    hutong.toml:3:11: `instances` is a fixed number; with `[scale]` leave it out and set scale.min and scale.max
    hutong.toml:3:11: only an app with a `command` has instances
    hutong.toml:5:5: scale.min is above scale.max
    hutong.toml:6:5: `scale` goes with `command`: nothing else has instances
    hutong.toml:7:5: scale.cpu is 1 to 100, not 101
    hutong.toml:8:10: scale.requests is 1 to 1000000, not 0
    hutong.toml:9:10: must be 1s to 1h0m
    ");
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\n[scale]\nmin=0\nmax=65"), @r"
    hutong.toml:4:5: scale.min is 1 to 64, not 0
    hutong.toml:5:5: scale.max is 1 to 64, not 65
    ");
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\ndata=true\n[scale]\nmax=2"), @"hutong.toml:5:5: data has a single writer: leave instances at 1, or name a strategy if several instances may share /data");
    insta::assert_snapshot!(errors("name='a'\nimage='x'\n[scale]\nmax=7"), @"hutong.toml:2:7: an app from an image has at most 6 instances, workers among them, not 7");
    assert!(errors("name='a'\ncommand='x'\n[scale]\nmin=2").contains("missing field `max`"));
}

#[test]
fn hours_are_read() {
    let start = "name='a'\ncommand='x'\ndomains=['a.b']\n[sleep]\nafter='1m'\n";
    let with = |more: &str| format!("{start}{more}");
    let text = with("wake=['45 7 * * 1-5', '@daily']\ndown=['23:00-06:00']\nzone='Asia/Shanghai'");
    let spec = parse("t", &text).expect("good");
    assert_eq!(spec.wake.len(), 2);
    assert_eq!(spec.wake[0].zone(), "Asia/Shanghai");
    // 2026-11-22, at midnight.
    let midnight = 1_795_276_800_000;
    let until = spec.down.expect("there are some").down_until(midnight);
    assert_eq!(until, Some(midnight + 6 * 3_600_000));
    let spec = parse("t", start).expect("good");
    assert!(spec.wake.is_empty() && spec.down.is_none());
    insta::assert_snapshot!(errors(&with("wake=['0 7 * * *', 'x']\ndown=['23-06', '01:00-02:00']")), @r#"
    hutong.toml:6:20: `x` is no cron expression such as "0 3 * * *" (minute hour day month weekday): Pattern must have 5 fields when seconds are disallowed
    hutong.toml:7:7: `23-06` is no part of the day; write for instance 23:00-06:00
    "#);
    insta::assert_snapshot!(errors(&with("down=['00:00-12:00', '12:00-24:00']")), @"hutong.toml:6:7: this leaves no time of the day; `hutong stop` stops an app for good");
    insta::assert_snapshot!(errors(&with("zone='UTC'")), @"hutong.toml:6:6: `zone` goes with `wake` or `down`");
    insta::assert_snapshot!(errors(&with("zone='Peking'\nwake=['x']")), @"hutong.toml:6:6: `Peking` is no time zone; write for instance Asia/Shanghai or UTC");
}

#[test]
fn an_image_has_a_driver_and_may_be_put_in_place_of_another() {
    let image = |text: &str| parse("t", text).expect("good").image.expect("an image");
    let silent = image("name='a'\nimage='x:1'");
    assert_eq!(silent.runs_on(true), ImageDriver::Docker);
    assert_eq!(silent.runs_on(false), ImageDriver::Sandbox);
    let said = image("name='a'\nimage='x:1'\ndriver='sandbox'\ninstances=20");
    assert_eq!(said.runs_on(true), ImageDriver::Sandbox);
    let ours = image("name='a'\nimage='hutong.local/team/x:1'");
    assert_eq!(
        (ours.local(), ours.runs_on(true)),
        (Some("team/x:1"), ImageDriver::Sandbox)
    );
    assert!(
        errors("name='a'\ncommand='x'\ndriver='docker'").contains("`driver` goes with `image`")
    );
    for text in [
        "name='a'\nimage='old:1'\nport=80\n",
        "name='a'\n[env]\nA='1'\n",
    ] {
        let text = with_image(text, "new:2").expect("good");
        assert_eq!(image(&text).reference, "new:2", "{text}");
    }
    let engine = errors("name='a'\nimage='hutong.local/x'\ndriver='docker'");
    assert!(engine.contains("no engine has the images"), "{engine}");
    assert!(with_image("name='a'", "no image").is_err());
    assert_eq!(with_port("name='a'\nport=80\n", 90), None);
    let text = with_port("name='a'\nimage='x'\n", 90).expect("none was said");
    assert_eq!(parse("t", &text).expect("good").port, 90);
    // Another image's is its own, and what its owner wrote is as it was.
    let again = with_port(&text, 91).expect("none was said");
    assert_eq!(parse("t", &again).expect("good").port, 91);
    for text in [&text, &again] {
        assert_eq!(without_port(text), "name='a'\nimage='x'\n");
        let other = with_image(text, "y").expect("good");
        assert_eq!(other, "name='a'\nimage=\"y\"\n");
    }
    for own in ["port = 90\nname='a'\n", "port = 90 # ours\n", "x", ""] {
        assert_eq!(without_port(own), own);
    }
}
