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
    assert_eq!((spec.port, spec.instances, spec.pids), (8080, 1, 128));
    assert_eq!(spec.memory_bytes, 256 << 20);
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
    insta::assert_snapshot!(errors("name='a'\ncommand='x'\nstrategy='canary'"), @"hutong.toml:3:10: unknown variant `canary`, expected `rolling` or `recreate`");
    insta::assert_snapshot!(errors("command='x'"), @"hutong.toml:1:1: missing field `name`");
}

#[test]
fn the_schema_knows_every_key() {
    let schema = json_schema();
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
    fn no_odd_value_makes_it_panic(key in "(name|port|command|static|env|limits|domains|share)", value in r#"(-?[0-9]{1,20}|"[^"\\]{0,20}"|\[\]|\{\}|\["[^"\\]{0,9}"\]|true|1979-05-27)"#) {
        let _ = parse("t", &format!("name='a'\n{key} = {value}\n"));
    }
}
