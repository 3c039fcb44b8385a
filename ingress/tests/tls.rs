//! TLS on both ports: who is let in, what those hear who are not, certificates that change while streams are open, and clients that never
//! shake hands.

#![expect(clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod announced;
mod authority;
mod binary;
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::Arc;

use axum::body::Bytes;
use axum::http::Method;
use jiff::Timestamp;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use turnflow::cli::AccessArgs;
use turnflow::grpc::client::{Access, Keyed};
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::keys::{KeyFiles, KeyLimits, NewKey, Scope};
use turnflow_pipeline::Config;
use turnflow_state::TenantId;

use self::announced::announced;
use self::authority::{Authority, Pair};
use self::binary::{finish, sample, turnflow};
use self::support::http::HttpClient;
use self::support::{TestServer, bounded, converse_request, turn};

const DELIVERY: &str = "How long does standard delivery take?";

/// An authority with a server's certificate, and a second authority that has nothing to do with it.
struct Parties {
    dir: TempDir,
    authority: Authority,
    stranger: Authority,
    server: Pair,
}

impl Parties {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let [authority, stranger] = ["authority", "stranger"].map(|name| Authority::new(dir.path(), name));
        let server = authority.vouch_for("server");
        Self { dir, authority, stranger, server }
    }

    async fn serve(&self, adjust: impl FnOnce(&mut Config)) -> TestServer {
        let Pair { certificate, key } = self.server.clone();
        TestServer::start(|config| {
            (config.server.tls.cert_file, config.server.tls.key_file) = (certificate, key);
            adjust(config);
        })
        .await
    }
}

async fn connect(access: AccessArgs, address: SocketAddr) -> Result<Keyed, String> {
    Access::from(access).connect(&format!("https://{address}")).await.map_err(|error| error.to_string())
}

/// The status of a request over HTTPS, or why there is none.
async fn ready(client: rustls::ClientConfig, address: SocketAddr) -> Result<u16, String> {
    let client = HttpClient::secure(address, client);
    client.try_begin(Method::GET, "/ready", &[], Bytes::new()).await.map(|response| response.status().as_u16())
}

/// The certificate that a new connection is shown.
async fn shown(authority: &Authority, address: SocketAddr) -> CertificateDer<'static> {
    let connector = TlsConnector::from(Arc::new(authority.client(None)));
    let socket = TcpStream::connect(address).await.expect("the server listens");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = connector.connect(name, socket).await.expect("the server shakes hands");
    stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_trusts_the_authority_is_served_on_both_ports() {
    bounded(async {
        let parties = Parties::new();
        let origins = vec!["https://shop.example".to_owned()];
        let server = parties.serve(|config| config.server.grpc_web_origins = origins).await;
        let (authority, stranger) = (&parties.authority, &parties.stranger);
        connect(authority.access(None), server.address).await.expect("trusted");
        let error = connect(stranger.access(None), server.address).await.expect_err("not trusted");
        assert!(error.contains("UnknownIssuer"), "{error}");
        assert_eq!(ready(authority.client(None), server.http).await, Ok(200));
        let error = ready(stranger.client(None), server.http).await.expect_err("not trusted");
        assert!(error.contains("UnknownIssuer"), "{error}");

        // Pages that a browser came upon under a name of their own are kept out as ever.
        let client = HttpClient::secure(server.http, authority.client(None));
        let foreign = client.send(Method::GET, "/v1/models", &[("host", "evil.example")], Bytes::new()).await;
        assert_eq!(foreign.error().1, "wrong_host");
        assert_eq!(client.ask(DELIVERY, &[]).await.status, 200);
        // A page that calls the other port.
        let page = HttpClient::secure(server.address, authority.client(None));
        let (path, headers) = ("/turnflow.v1.KnowledgeBase/List", [("content-type", "application/grpc-web+proto")]);
        assert_eq!(page.begin(Method::POST, path, &headers, vec![0; 5]).await.status(), 200);
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_speaks_no_tls_is_told_so() {
    bounded(async {
        let parties = Parties::new();
        let server = parties.serve(|_| {}).await;
        let error = Access::default().connect(&server.address.to_string()).await.expect_err("TLS is wanted");
        assert!(error.to_string().contains("where the server speaks TLS, call it with https://"), "{error}");
        // Whatever a library makes of it, the server tells, in a frame of type 7.
        let mut socket = TcpStream::connect(server.address).await.expect("the server listens");
        socket.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.expect("sent");
        let mut told = Vec::new();
        socket.read_to_end(&mut told).await.expect("told");
        assert_eq!((told[3], told[9 + 3]), (4, 7), "{told:?}");
        assert!(told.ends_with(b"this port speaks TLS, so call it with https://"), "{told:?}");
        let reply = HttpClient::new(server.http).get("/ready").await;
        assert_eq!(reply.error(), (400, "tls_required".to_owned(), None));
        let reply = HttpClient::new(server.address).get("/ready").await;
        assert_eq!((reply.status, reply.body.as_str()), (400, "this port speaks TLS, so call it with https://\n"));
        // A client over TLS that does not say which protocol it speaks, and speaks HTTP/1.1.
        let reply = HttpClient::secure(server.address, parties.authority.client(None)).get("/ready").await;
        assert!(reply.status == 400 && reply.body.contains("this port speaks gRPC, over HTTP/2"), "{reply:?}");
        server.stop().await;

        // And the other way round.
        let server = TestServer::start(|_| {}).await;
        let error = connect(parties.authority.access(None), server.address).await.expect_err("there is no TLS");
        assert!(error.starts_with(&format!("cannot connect to https://{}: ", server.address)), "{error}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_need_the_right_certificate_where_one_is_wanted() {
    bounded(async {
        let parties = Parties::new();
        let (authority, stranger) = (&parties.authority, &parties.stranger);
        let (own, foreign) = (authority.vouch_for("client"), stranger.vouch_for("foreign"));
        for required in [true, false] {
            let server = parties
                .serve(|config| {
                    config.server.tls.client_ca_file = authority.file.clone();
                    config.server.tls.client_required = required;
                })
                .await;
            connect(authority.access(Some(&own)), server.address).await.expect("the right one");
            assert_eq!(ready(authority.client(Some(&own)), server.http).await, Ok(200));
            let error = connect(authority.access(Some(&foreign)), server.address).await.expect_err("a wrong one");
            assert!(error.contains("UnknownCA"), "{error}");
            ready(authority.client(Some(&foreign)), server.http).await.expect_err("a wrong one");
            let without = connect(authority.access(None), server.address).await;
            let without_http = ready(authority.client(None), server.http).await;
            if required {
                let error = without.expect_err("none");
                assert!(error.contains("CertificateRequired"), "{error}");
                without_http.expect_err("none");
            } else {
                without.expect("none is needed");
                assert_eq!(without_http, Ok(200));
            }
            server.stop().await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_changes_the_certificate_and_no_open_stream() {
    bounded(async {
        let parties = Parties::new();
        let (authority, path) = (&parties.authority, parties.dir.path().join("turnflow.toml"));
        let Pair { certificate, key } = &parties.server;
        let write = |more: &str| {
            let quiet = "[refresh]\nenabled = false\n[audit]\nenabled = false\n";
            let tls = format!("[server.tls]\ncert-file = {certificate:?}\nkey-file = {key:?}\n");
            fs::write(&path, format!("{quiet}{tls}{more}")).expect("written");
        };
        write("");
        let server = TestServer::start(|config| *config = Config::load(Some(&path)).expect("valid")).await;
        let client = HttpClient::secure(server.http, authority.client(None));
        let reload = async || client.send(Method::POST, "/admin/reload", &[], Bytes::new()).await;

        server.gate.set_open(false);
        let connection = connect(authority.access(None), server.address).await.expect("trusted");
        let (asking, requests) = tokio::sync::mpsc::channel(1);
        let mut conversations = ConversationsClient::new(connection);
        let mut open = conversations.converse(ReceiverStream::new(requests)).await.expect("open").into_inner();
        asking.send(converse_request(turn("a", "1", DELIVERY))).await.expect("open");
        server.gate.arrived(1).await;

        let first = shown(authority, server.address).await;
        assert_eq!(
            (shown(authority, server.http).await, reload().await.json()),
            (first.clone(), json!({ "changed": [] }))
        );
        authority.vouch_for("server");
        assert_eq!(shown(authority, server.address).await, first, "nobody has asked for it yet");
        let changed = reload().await.json();
        assert_eq!(changed["changed"][0]["key"], "server.tls", "{changed}");
        let second = shown(authority, server.address).await;
        assert!(second != first && shown(authority, server.http).await == second);

        // A file that cannot be used changes nothing, nor does what else has changed.
        fs::write(certificate, "no certificate").expect("written");
        write("[policy]\ndelta = 0.02\n");
        let refused = reload().await;
        assert_eq!(refused.error(), (409, "wrong_certificate".to_owned(), None));
        assert!(refused.body.contains("server.crt holds no certificate in PEM"), "{refused:?}");
        assert_eq!((shown(authority, server.address).await, server.pipeline.config().policy.delta), (second, 0.01));
        fs::write(&path, "[refresh]\nenabled = false\n[audit]\nenabled = false\n").expect("written");
        let refused = reload().await;
        assert_eq!(refused.error().1, "needs_restart");
        assert!(refused.body.contains("server.tls.cert-file"), "{refused:?}");

        server.gate.set_open(true);
        drop(asking);
        let mut heard = String::new();
        while let Some(event) = open.message().await.expect("the stream lives on") {
            heard += &format!("{event:?}");
        }
        assert!(heard.contains("Done("), "{heard}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_shakes_hands_holds_up_nobody_and_is_cut_off() {
    bounded(async {
        let parties = Parties::new();
        let silent = async |address: SocketAddr| {
            let mut socket = TcpStream::connect(address).await.expect("the server listens");
            // The beginning of a record, and no more.
            socket.write_all(&[22, 3, 1]).await.expect("sent");
            socket
        };
        // As good as for ever.
        let server = parties.serve(|config| config.server.tls.handshake_wait_ms = 3_600_000).await;
        let held = [silent(server.address).await, silent(server.http).await];
        connect(parties.authority.access(None), server.address).await.expect("nobody waits for the silent one");
        assert_eq!(ready(parties.authority.client(None), server.http).await, Ok(200));
        drop(held);
        server.stop().await;

        let server = parties
            .serve(|config| {
                config.server.tls.handshake_wait_ms = 300;
                config.http.connections_max = 1;
            })
            .await;
        // The only place is the silent one's until it is cut off.
        let mut held = silent(server.http).await;
        assert_eq!(ready(parties.authority.client(None), server.http).await, Ok(200));
        assert_eq!(held.read(&mut [0; 64]).await.ok().filter(|read| *read > 0), None, "it is cut off");
        let mut held = silent(server.address).await;
        assert_eq!(held.read(&mut [0; 64]).await.ok().filter(|read| *read > 0), None, "it is cut off");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_the_page_stays_on_tls() {
    bounded(async {
        let parties = Parties::new();
        let files = KeyFiles::new(&Config::defaults().gateway, parties.dir.path()).expect("files");
        let (tenant, scopes) = (TenantId::new("default").expect("valid id"), BTreeSet::from([Scope::Admin]));
        let wanted = NewKey { tenant, scopes, name: None, expires: None, limits: KeyLimits::default() };
        let (key, _) = files.create(wanted, Timestamp::now()).expect("made");
        let server = parties.serve(|config| config.gateway.keys = files.path().to_owned()).await;
        let origin = format!("https://{}", server.http);
        let headers = [("origin", origin.as_str()), ("content-type", "application/x-www-form-urlencoded")];
        let client = HttpClient::secure(server.http, parties.authority.client(None));
        let reply = client.send(Method::POST, "/ui/login", &headers, format!("key={}", key.reveal())).await;
        let cookie = reply.header("set-cookie").expect("a session");
        assert!(reply.status == 303 && cookie.ends_with("; Secure"), "{reply:?}");
        server.stop().await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_speaks_tls_and_warns_of_keys_in_the_clear() {
    bounded(async {
        let parties = Parties::new();
        let server = parties.serve(|_| {}).await;
        let list = move |endpoint: String, more: Vec<String>| {
            tokio::task::spawn_blocking(move || {
                finish(turnflow().args(["kb", "list", "--endpoint", &endpoint]).args(more))
            })
        };
        let address = format!("https://localhost:{}", server.address.port());
        let trusting = vec!["--ca-file".to_owned(), parties.authority.file.display().to_string()];
        let (code, stdout, _) = list(address.clone(), trusting).await.expect("no panic");
        assert!(code == 0 && stdout.contains("delivery-times"), "{stdout}");
        let (code, _, stderr) = list(address.clone(), Vec::new()).await.expect("no panic");
        assert!(code == 1 && stderr.contains("UnknownIssuer") && stderr.contains("--ca-file"), "{stderr}");
        let wrong = vec!["--ca-file".to_owned(), sample("articles.jsonl").display().to_string()];
        let (code, _, stderr) = list(address.clone(), wrong).await.expect("no panic");
        assert!(code == 1 && stderr.contains("articles.jsonl holds no certificate in PEM"), "{stderr}");
        let half = vec!["--client-cert".to_owned(), parties.authority.file.display().to_string()];
        let (code, _, stderr) = list(address, half).await.expect("no panic");
        assert!(
            code == 1 && stderr.contains("needs its private key: --client-key, or TURNFLOW_CLIENT_KEY"),
            "{stderr}"
        );
        server.stop().await;

        let server = TestServer::start(|_| {}).await;
        for (host, expected) in [("127.0.0.1", false), ("0.0.0.0", true)] {
            let key = vec!["--key".to_owned(), "tf_some".to_owned()];
            let (_, _, stderr) = list(format!("{host}:{}", server.address.port()), key).await.expect("no panic");
            assert_eq!(stderr.contains("in the clear"), expected, "{stderr}");
            assert!(!stderr.contains("tf_some"), "{stderr}");
        }
        // A variable stands for all servers; an option of the same value is meant for this one.
        let endpoint = format!("http://127.0.0.1:{}", server.address.port());
        for (given, expected) in [(&[][..], 0), (&["--ca-file", "ca.pem"], 1)] {
            let mut command = turnflow();
            // Half of a pair, and one that stands for nothing.
            command.env("TURNFLOW_CLIENT_KEY", "key.pem").env("TURNFLOW_CLIENT_CERT", "");
            command.env("TURNFLOW_CA_FILE", "ca.pem").args(["kb", "list", "--endpoint", &endpoint]).args(given);
            let (code, _, stderr) = tokio::task::block_in_place(|| finish(&mut command));
            assert_eq!(code, expected);
            assert_eq!(stderr.contains("--ca-file would not be used"), expected == 1, "{stderr}");
        }
        server.stop().await;
    })
    .await;
}

#[test]
fn a_check_tells_of_a_certificate_that_waits_for_a_reload() {
    let parties = Parties::new();
    let (path, data) = (parties.dir.path().join("turnflow.toml"), parties.dir.path().join("data"));
    let (Pair { certificate, key }, authority) = (&parties.server, &parties.authority.file);
    let tls = format!("cert-file = {certificate:?}\nkey-file = {key:?}\nclient-ca-file = {authority:?}\n");
    let listen = "listen = \"127.0.0.1:0\"\n";
    fs::write(&path, format!("[server]\n{listen}[http]\n{listen}[server.tls]\n{tls}")).expect("written");
    let with_files = |command: &str| {
        let mut turnflow = turnflow();
        turnflow.args([command, "--config"]).arg(&path).arg("--data").arg(&data);
        turnflow
    };
    let mut server = with_files("serve").arg("--json").stdout(Stdio::piped()).spawn().expect("turnflow starts");
    announced(&mut server);
    let as_read = finish(&mut with_files("check"));
    parties.authority.vouch_for("server");
    let renewed = finish(&mut with_files("check"));
    fs::write(&path, format!("[server]\n{listen}[http]\n{listen}")).expect("written");
    let without = finish(&mut with_files("check"));
    server.kill().expect("it runs");
    server.wait().expect("an end");
    let expected = [
        "runs with these ports and certificates",
        "at a reload, another certificate is shown, that of server.tls.cert-file",
        "at a restart with these settings, TLS is switched off",
    ];
    for ((code, stdout, _), expected) in [as_read, renewed, without].into_iter().zip(expected) {
        assert!(
            code == 0 && stdout.contains(&format!("ok  server       process {}: {expected}\n", server.id())),
            "{stdout}"
        );
    }
}

#[test]
fn a_server_does_not_start_with_certificates_that_cannot_be_used() {
    let parties = Parties::new();
    let other = parties.authority.vouch_for("other");
    let path = parties.dir.path().join("turnflow.toml");
    let (certificate, key) = (&parties.server.certificate, &other.key);
    fs::write(&path, format!("[server.tls]\ncert-file = {certificate:?}\nkey-file = {key:?}\n")).expect("written");
    let mut serve = turnflow();
    serve.args(["serve", "--listen", "127.0.0.1:0", "--http", "off", "--config"]).arg(&path);
    let (code, _, stderr) = finish(serve.arg("--data").arg(parties.dir.path()));
    assert_eq!(code, 64);
    assert!(stderr.contains("other.key is not the private key of the certificate in "), "{stderr}");
    assert!(stderr.contains("turnflow.toml:3: server.tls.key-file = "), "{stderr}");
}
