//! The DNS providers against a server that answers as they do, from what their manuals show.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use hutong_acme::dns::{Error, Provider};
use hutong_acme::http::Client;
use hutong_acme::secret::Secret;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const NAME: &str = "_acme-challenge.x.example.com";
const VALUE: &str = "gfj9Xq...Rg85nM";

/// Gives its answers in turn, one per connection, and keeps what it was asked.
struct Fake {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    async fn start(answers: &[(u16, &str)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answers: Vec<(u16, String)> = answers
            .iter()
            .map(|(status, body)| (*status, (*body).to_owned()))
            .collect();
        let noted = asked.clone();
        tokio::spawn(async move {
            for (status, body) in answers {
                let (mut stream, _) = listener.accept().await.expect("a visitor");
                let request = read(&mut stream).await;
                noted.lock().expect("unpoisoned").push(request);
                let answer = format!(
                    "HTTP/1.1 {status} X\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
                    body.len()
                );
                // Whoever has heard enough may hang up.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        Fake { address, asked }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn endpoint(&self) -> Option<String> {
        Some(self.url())
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("unpoisoned").clone()
    }
}

/// A whole request: its head, and as much as the head announces.
async fn read(stream: &mut TcpStream) -> String {
    let mut all = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = stream.read(&mut buffer).await.expect("a request");
        assert!(read > 0, "the request is cut off");
        all.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&all).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n")
            && body.len() >= announced(head)
        {
            return text;
        }
    }
}

fn announced(head: &str) -> usize {
    head.to_ascii_lowercase()
        .lines()
        .find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok())
        .unwrap_or(0)
}

/// The machine's roots are of no use here, but they may be missing in a container.
fn client() -> Client {
    let key = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(vec!["ca.example".to_owned()]).expect("a name");
    let root = params.self_signed(&key).expect("a root").pem();
    Client::new(Some(&root)).expect("a client")
}

#[tokio::test]
async fn cloudflare() {
    let fake = Fake::start(&[
        (200, r#"{"success":true,"errors":[],"result":[]}"#),
        (
            200,
            r#"{"success":true,"errors":[],"result":[{"id":"z1","name":"example.com"}]}"#,
        ),
        (200, r#"{"success":true,"errors":[],"result":{"id":"r1"}}"#),
        (200, r#"{"result":{"id":"r1"}, "success":true}"#),
    ])
    .await;
    let provider = Provider::Cloudflare {
        token: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let client = client();
    let record = provider.present(&client, NAME, VALUE).await.unwrap();
    assert_eq!((record.zone.as_str(), record.id.as_str()), ("z1", "r1"));
    provider.clean_up(&client, &record).await.unwrap();
    let asked = fake.asked();
    assert!(asked[0].starts_with("GET /zones?name=x.example.com "));
    assert!(asked[0].contains("Bearer hush"));
    assert!(asked[1].starts_with("GET /zones?name=example.com "));
    assert!(asked[2].starts_with("POST /zones/z1/dns_records "));
    assert!(asked[2].contains(r#""content":"\"gfj9Xq...Rg85nM\"""#));
    assert!(asked[3].starts_with("DELETE /zones/z1/dns_records/r1 "));
}

#[tokio::test]
async fn cloudflare_finds_what_a_cut_off_attempt_left() {
    let found = format!(
        r#"{{"success":true,"result":[{{"id":"r1","content":"other"}},{{"id":"r2","content":"\"{VALUE}\""}}]}}"#
    );
    let fake = Fake::start(&[
        (200, r#"{"success":true,"result":[{"id":"z1","name":"x.example.com"}]}"#),
        (
            400,
            r#"{"success":false,"errors":[{"code":81058,"message":"An identical record already exists."}]}"#,
        ),
        (200, found.as_str()),
    ])
    .await;
    let provider = Provider::Cloudflare {
        token: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let record = provider.present(&client(), NAME, VALUE).await.unwrap();
    assert_eq!(record.id, "r2");
}

#[tokio::test]
async fn alidns() {
    let fake = Fake::start(&[
        (200, r#"{"TotalCount":0,"Domains":{"Domain":[]}}"#),
        (
            200,
            r#"{"TotalCount":1,"Domains":{"Domain":[{"DomainName":"example.com","PunyCode":"example.com"}]}}"#,
        ),
        (200, r#"{"RequestId":"1","RecordId":"9999985"}"#),
        (200, r#"{"RequestId":"2","RecordId":"9999985"}"#),
    ])
    .await;
    let provider = Provider::Alidns {
        key_id: "LTAI".to_owned(),
        key_secret: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let client = client();
    let record = provider.present(&client, NAME, VALUE).await.unwrap();
    assert_eq!(record.id, "9999985");
    provider.clean_up(&client, &record).await.unwrap();
    let asked = fake.asked();
    assert!(asked[0].starts_with("POST /?KeyWord=x.example.com&SearchMode=EXACT "));
    assert!(asked[0].contains("x-acs-action: DescribeDomains"));
    assert!(asked[0].contains("ACS3-HMAC-SHA256 Credential=LTAI,"));
    assert!(asked[2].starts_with(
        "POST /?DomainName=example.com&RR=_acme-challenge.x&Type=TXT&Value=gfj9Xq...Rg85nM "
    ));
    assert!(asked[3].starts_with("POST /?RecordId=9999985 "));
    assert!(asked[3].contains("x-acs-action: DeleteDomainRecord"));
    assert!(asked.iter().all(|request| !request.contains("hush")));
}

#[tokio::test]
async fn dnspod() {
    let nothing =
        r#"{"Response":{"Error":{"Code":"ResourceNotFound.NoDataOfDomain","Message":"none"}}}"#;
    let fake = Fake::start(&[
        (200, nothing),
        (
            200,
            r#"{"Response":{"DomainList":[{"Name":"anexample.com"},{"Name":"example.com"}]}}"#,
        ),
        (200, r#"{"Response":{"RecordId":162,"RequestId":"1"}}"#),
        (200, r#"{"Response":{"RequestId":"2"}}"#),
    ])
    .await;
    let provider = Provider::Dnspod {
        secret_id: "AKID".to_owned(),
        secret_key: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let client = client();
    let record = provider.present(&client, NAME, VALUE).await.unwrap();
    assert_eq!(
        (record.zone.as_str(), record.id.as_str()),
        ("example.com", "162")
    );
    provider.clean_up(&client, &record).await.unwrap();
    let asked = fake.asked();
    assert!(asked[0].contains("x-tc-action: DescribeDomainList"));
    assert!(asked[0].contains("TC3-HMAC-SHA256 Credential=AKID/"));
    assert!(asked[2].contains(r#""SubDomain":"_acme-challenge.x""#));
    assert!(asked[3].contains(r#""RecordId":162"#));
    assert!(asked.iter().all(|request| !request.contains("hush")));
}

#[tokio::test]
async fn a_stranger_s_name_has_no_zone() {
    let fake = Fake::start(&[
        (200, r#"{"success":true,"result":[]}"#),
        (200, r#"{"success":true,"result":[]}"#),
    ])
    .await;
    let provider = Provider::Cloudflare {
        token: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let error = provider.present(&client(), NAME, VALUE).await.unwrap_err();
    assert!(matches!(error, Error::NoZone { .. }), "{error}");
}

#[tokio::test]
async fn a_refusal_is_told_and_the_token_is_not() {
    let fake = Fake::start(&[(
        403,
        r#"{"success":false,"errors":[{"code":10000,"message":"Authentication error"}]}"#,
    )])
    .await;
    let provider = Provider::Cloudflare {
        token: Secret::new("hush"),
        endpoint: fake.endpoint(),
    };
    let error = provider.present(&client(), NAME, VALUE).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Cloudflare refuses: Authentication error (10000)"
    );
    assert!(!format!("{error:?}").contains("hush"));
}

#[tokio::test]
async fn webhook() {
    let fake = Fake::start(&[(204, ""), (500, "no such\nzone")]).await;
    let provider = Provider::Webhook {
        url: format!("{}/hook", fake.url()),
        bearer: Some(Secret::new("hush")),
    };
    let client = client();
    let record = provider.present(&client, NAME, VALUE).await.unwrap();
    let error = provider.clean_up(&client, &record).await.unwrap_err();
    assert_eq!(error.to_string(), "the webhook refuses: no such zone (500)");
    let asked = fake.asked();
    assert!(asked[0].starts_with("POST /hook "));
    assert!(asked[0].contains("Bearer hush"));
    assert!(asked[0].contains(r#""action":"present""#));
    assert!(asked[1].contains(r#""action":"cleanup""#));
    assert!(asked[1].contains(VALUE));
}

#[tokio::test]
async fn an_endless_answer_is_cut_off() {
    let long = "x".repeat(2 * 1024 * 1024);
    let fake = Fake::start(&[(200, long.as_str())]).await;
    let provider = Provider::Webhook {
        url: fake.url(),
        bearer: None,
    };
    let error = provider.present(&client(), NAME, VALUE).await.unwrap_err();
    assert!(error.to_string().contains("more than 1 MiB"), "{error}");
}

#[tokio::test]
async fn whom_nobody_answers_is_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let provider = Provider::Webhook {
        url: format!("http://{address}/secret-path"),
        bearer: None,
    };
    let error = provider.present(&client(), NAME, VALUE).await.unwrap_err();
    assert!(
        error.to_string().starts_with("127.0.0.1 cannot be reached"),
        "{error}"
    );
    assert!(!error.to_string().contains("secret-path"));
}
