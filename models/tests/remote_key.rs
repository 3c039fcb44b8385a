//! The key of a remote tier goes into its requests and nowhere else: not into logs, errors, answers or debug output. Over TLS, with a
//! certificate authority of one's own.

#![expect(clippy::expect_used, reason = "helpers of tests fail loudly too")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, unbounded};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata, Subscriber, span};
use turnflow_models::{Lane, PromptConfig, RemoteConfig, RemoteTier, TierHandle, TierRequest};

const KEY: &str = "sk-proj-0123456789abcdef";

/// Keeps every field of everything that is logged, at every level.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<String>>);

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        write!(self.0, "{field}={value:?} ").expect("memory");
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        attributes.record(&mut Fields(&mut self.0.lock().expect("no panic")));
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, record: &span::Record<'_>) {
        record.record(&mut Fields(&mut self.0.lock().expect("no panic")));
    }

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, event: &Event<'_>) {
        event.record(&mut Fields(&mut self.0.lock().expect("no panic")));
    }

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// A server that speaks TLS, tells each request's head, and answers with these responses in turn. The last is the certificate
/// of the authority that vouches for it, in PEM.
fn serve(responses: Vec<String>) -> (String, Receiver<String>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(["localhost".to_owned()]).expect("a name");
    let certificate = params.signed_by(&key, &authority).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("PKCS #8");
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a certificate");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (told, heads) = unbounded();
    std::thread::spawn(move || {
        let mut responses = responses.into_iter();
        for stream in listener.incoming().flatten() {
            let session = rustls::ServerConnection::new(Arc::clone(&config)).expect("a session");
            let mut stream = BufReader::new(rustls::StreamOwned::new(session, stream));
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if stream.read_line(&mut head).map_or(true, |read| read == 0) {
                    break;
                }
            }
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
            let _whole = stream.read_exact(&mut vec![0; length]);
            let _the_test_is_over = told.send(head);
            let Some(response) = responses.next() else { return };
            let _client_is_gone = stream.get_mut().write_all(response.as_bytes());
            stream.get_mut().conn.send_close_notify();
            let _sent = stream.get_mut().flush();
        }
    });
    (format!("https://localhost:{port}/v1"), heads, authority.pem())
}

fn prompt(instructions: &str) -> PromptConfig {
    PromptConfig {
        prompt_tokens_max: 1000,
        history_tokens_max: 100,
        answer_tokens_max: 64,
        instructions: instructions.to_owned(),
        unknown_text: "No idea.".to_owned(),
    }
}

fn ask(tier: &TierHandle) -> Vec<String> {
    let (events, heard) = unbounded();
    let pieces = events.clone();
    let on_delta = Box::new(move |piece| pieces.send(piece).expect("the test listens"));
    let done = Box::new(move |result: Result<_, _>| {
        events.send(format!("{result:?}")).expect("the test listens");
    });
    let request = TierRequest::new("?", Arc::from([1.0]), Vec::new());
    tier.submit(Lane::New, request, on_delta, done).expect("a free place");
    heard.iter().collect()
}

#[test]
fn the_key_is_sent_and_never_shown() {
    let recorder = Recorder::default();
    tracing::subscriber::set_global_default(recorder.clone()).expect("the only one");
    let error = |status: &str, body: &str| {
        format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let stream = |events: &str| {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: text/event-stream\r\n\r\n{events}")
    };
    // Where an error is cut off, half a key must not stay.
    let long = format!("{}{KEY}", " ".repeat(16 * 1024 - KEY.len() / 2));
    let hidden = KEY.replace('-', "\\u002d");
    let (base_url, heads, authority) = serve(vec![
        error("401 Unauthorized", &format!("{{\"error\": {{\"message\": \"Incorrect API key provided: {KEY}.\"}}}}")),
        error("500 Whatever", &format!("bad Bearer {KEY}")),
        error("400 Bad Request", &long),
        stream(&format!("data: {{\"error\": {{\"message\": \"key {KEY} is out of money\"}}}}\n\n")),
        stream(&format!("data: rubbish with {KEY}\n\n")),
        error(&format!("404 {KEY}"), ""),
        // More is announced than comes: what came is cut off, in the middle of the key.
        format!("HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 900\r\n\r\nkey {}", &KEY[..KEY.len() - 3]),
        error("400 Bad Request", &format!("{{\"error\": {{\"message\": \"key {hidden}.\"}}}}")),
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {KEY}\r\nContent-Length: 0\r\n\r\n"),
        stream(&format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"My key is {KEY}.\"}}}}]}}\n\ndata: [DONE]\n\n"
        )),
        stream(&format!(
            "data: {{\"choices\":[{{\"delta\":{{\"content\":\"In pieces {}\"}}}}]}}\n\n\
             data: {{\"choices\":[{{\"delta\":{{\"content\":\"{}!\"}}}}]}}\n\ndata: [DONE]\n\n",
            &KEY[..14],
            &KEY[14..]
        )),
    ]);
    let dir = tempfile::tempdir().expect("a folder");
    let (path, ca) = (dir.path().join("key"), dir.path().join("ca.pem"));
    std::fs::write(&path, format!("{KEY}\n")).expect("a file");
    std::fs::write(&ca, authority).expect("a file");
    let mut config = RemoteConfig::new(base_url, "m");
    (config.key_file, config.ca_file, config.retries_max) = (Some(path), Some(ca), 0);
    (config.breaker_failures, config.first_token_ms_max) = (100, 10_000);
    let prompt = prompt("Answer.");
    let mut shown = format!("{config:?}");
    let tier = RemoteTier::start(config, prompt, "", "en").expect("a tier");
    let health = tier.health();
    write!(shown, "{tier:?} {tier:#?}").expect("memory");
    let tier = TierHandle::new(tier);
    write!(shown, "{tier:?} {}", tier.identity()).expect("memory");
    let outcomes: Vec<_> = (0..11).map(|_| ask(&tier)).collect();
    write!(shown, "{outcomes:#?} {health:?}").expect("memory");

    for (number, head) in heads.try_iter().take(11).enumerate() {
        assert!(head.contains(&format!("authorization: Bearer {KEY}\r\n")), "request {number}: {head}");
    }
    let expected = [
        "HTTP status 401: Incorrect API key provided: [secret].",
        "HTTP status 500: bad Bearer [secret]",
        "status: 400",
        "the server reports an error: key [secret] is out of money",
        "an event is rubbish with [secret]: ",
        "status: 404",
        "HTTP status 400: key",
        "HTTP status 400: key [secret].",
        "the content type is \\\"[secret]\\\", expected",
        "My key is [secret].",
        "In pieces [secret]!",
    ];
    let logged = recorder.0.lock().expect("no panic").clone();
    for (outcome, expected) in outcomes.iter().zip(expected) {
        let told = format!("{outcome:?} {logged}");
        assert!(told.contains(expected), "{expected:?} in {told}");
    }
    assert!(logged.contains("gave no answer: HTTP status 401"), "the log is heard: {logged}");
    assert!(logged.contains("a remote server tells no usage: it is estimated"), "{logged}");
    for (place, text) in [("log", &logged), ("output", &shown)] {
        assert!(!text.contains(&KEY[..12]), "the {place} holds the key, or half of it: {text}");
    }
    assert_eq!(health.stats().ended.answered, 2);
}

#[test]
fn an_authority_that_is_not_known_is_not_trusted() {
    let (base_url, _heads, _authority) = serve(vec![]);
    let mut config = RemoteConfig::new(base_url, "m");
    config.retries_max = 0;
    let prompt = prompt("");
    let start = |config: &RemoteConfig| RemoteTier::start(config.clone(), prompt.clone(), "", "en");
    let told = ask(&TierHandle::new(start(&config).expect("a tier")));
    assert!(told[0].contains("Connect") && told[0].contains("UnknownIssuer"), "{told:?}");
    let key = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(key.path(), KeyPair::generate().expect("a key").serialize_pem()).expect("written");
    config.ca_file = Some(key.path().to_owned());
    let error = start(&config).expect_err("no certificate in it");
    assert!(error.to_string().starts_with("cannot parse "), "{error}");
}
