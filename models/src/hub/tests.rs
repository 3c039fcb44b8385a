//! Pulling from a server that plays the hub.

use std::cell::RefCell;
use std::fs;

use super::server::{COMMIT, HubServer, Plan};
use super::*;
use crate::error::chain;
use crate::pull::Progress;
use crate::weights::ModelHome;

const PARTS: [&str; 2] = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"];
const TOKEN: &str = "hf_0123456789";

fn bytes(length: usize, salt: usize) -> Vec<u8> {
    (0..length).map(|place| (place * 31 + place / 256 + salt) as u8).collect()
}

/// A repository in one file, with things that nobody needs.
fn single() -> Plan {
    let files = vec![
        ("README.md", b"# A model".to_vec()),
        ("config.json", b"{\"model_type\": \"llama\"}".to_vec()),
        ("model.safetensors", bytes(1000, 0)),
        ("pytorch_model.bin", bytes(10, 1)),
        ("tokenizer.json", b"{}".to_vec()),
        ("generation_config.json", b"{}".to_vec()),
    ];
    Plan { files, ..Plan::default() }
}

/// A repository whose weights are in two files.
fn split() -> Plan {
    let index = serde_json::json!({"weight_map": {"a": PARTS[0], "b": PARTS[1], "c": PARTS[0]}}).to_string();
    let mut plan = single();
    plan.files.retain(|(name, _)| *name != "model.safetensors");
    plan.files.push(("model.safetensors.index.json", index.into_bytes()));
    plan.files.extend([(PARTS[0], bytes(700, 2)), (PARTS[1], bytes(300, 3))]);
    plan
}

struct Place {
    _dir: tempfile::TempDir,
    home: ModelHome,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        Self { home: ModelHome::new(dir.path()), _dir: dir }
    }

    fn pull(&self, server: &HubServer) -> Result<Installed, String> {
        self.pull_as(server, None)
    }

    fn pull_as(&self, server: &HubServer, token: Option<Secret>) -> Result<Installed, String> {
        let hub = Hub::impatient(&server.endpoint, token);
        install(&hub, &self.home, "org/name", "main", &|_| {}).map_err(|error| {
            chain(&error).replace(&server.endpoint, "HUB").replace(&self.folder().display().to_string(), "DIR")
        })
    }

    fn folder(&self) -> std::path::PathBuf {
        self.home.checkpoint_dir("org/name").expect("a name")
    }

    /// Everything in the folder, folders with a slash.
    fn content(&self) -> Vec<String> {
        let name = |entry: fs::DirEntry| {
            let slash = if entry.path().is_dir() { "/" } else { "" };
            format!("{}{slash}", entry.file_name().display())
        };
        let mut names: Vec<_> = fs::read_dir(self.folder()).expect("a folder").flatten().map(name).collect();
        names.sort();
        names
    }
}

#[test]
fn what_a_decoder_needs_is_pulled_once() {
    for (plan, weights) in [(single(), &["model.safetensors"][..]), (split(), &PARTS)] {
        let server = HubServer::start(plan.clone());
        let place = Place::new();
        let heard = RefCell::new(Vec::new());
        let progress = |progress: Progress<'_>| {
            if let Progress::Bytes { file, done, total } = progress {
                heard.borrow_mut().push((file.to_owned(), done, total));
            }
        };
        let hub = Hub::impatient(&server.endpoint, None);
        let installed = install(&hub, &place.home, "org/name", "main", &progress).expect("pulled");
        assert_eq!((installed.repository.as_str(), installed.commit.as_str()), ("org/name", COMMIT));
        let mut expected = vec!["config.json", "generation_config.json", "tokenizer.json", "turnflow.json"];
        expected.extend(weights);
        expected.extend((weights.len() > 1).then_some("model.safetensors.index.json"));
        expected.sort_unstable();
        assert_eq!(place.content(), expected, "and nothing else stays");
        for (name, content) in plan.files.iter().filter(|(name, _)| expected.contains(name)) {
            assert_eq!(&fs::read(place.folder().join(name)).expect("there"), content, "{name}");
        }
        assert!(heard.into_inner().contains(&(
            weights[0].to_owned(),
            plan_size(&plan, weights[0]),
            plan_size(&plan, weights[0])
        )));
        installed.verify(&|_| {}).expect("intact");
        assert_eq!(super::installed(&place.home).expect("a list"), std::slice::from_ref(&installed));
        server.requests();
        assert_eq!(place.pull(&server), Ok(installed));
        assert_eq!(server.fetched(), Vec::<String>::new(), "the second time nothing is fetched");
    }
}

fn plan_size(plan: &Plan, name: &str) -> u64 {
    plan.files.iter().find(|(file, _)| *file == name).map_or(0, |(_, content)| content.len() as u64)
}

#[test]
fn a_download_that_is_cut_goes_on() {
    let server = HubServer::start(Plan { cuts: vec![400, 250, 0, 0], failures: vec![], ..single() });
    let place = Place::new();
    place.pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    let weights: Vec<_> = server.fetched().into_iter().filter(|file| file.starts_with("model.")).collect();
    let [whole, first, second] = ["", " bytes=400-", " bytes=650-"].map(|range| format!("model.safetensors{range}"));
    assert_eq!(weights, [whole, first, second.clone(), second.clone(), second]);
}

#[test]
fn the_next_pull_goes_on_where_one_gave_up() {
    let server = HubServer::start(Plan { cuts: vec![400, 0, 0, 0, 0], ..single() });
    let place = Place::new();
    let error = place.pull(&server).expect_err("four attempts get no further");
    assert!(error.starts_with("cannot download HUB/org/name/resolve/"), "{error}");
    assert_eq!(place.content(), [".partial/"], "nothing has its final name");
    assert_eq!(installed(&place.home).expect("a list"), []);
    server.requests();
    place.pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    assert_eq!(server.fetched(), ["model.safetensors bytes=400-"]);
}

#[test]
fn a_download_that_hardly_gets_further_ends() {
    let server = HubServer::start(Plan { cuts: vec![1; 500], ..single() });
    let error = Place::new().pull(&server).expect_err("a byte with each attempt");
    assert!(error.starts_with("cannot download HUB/org/name/resolve/"), "{error}");
    let attempts = server.fetched().iter().filter(|file| file.starts_with("model.")).count();
    assert_eq!(attempts as u64, ATTEMPTS_FILE_MAX);
}

#[test]
fn a_hub_that_has_never_answered_is_not_asked_twice() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let connections = std::thread::spawn(move || {
        // Each is closed without a word; the last one ends the count.
        listener.incoming().flatten().take_while(|stream| !is_last(stream)).count()
    });
    fn is_last(mut stream: &std::net::TcpStream) -> bool {
        let mut first = [0];
        stream.read_exact(&mut first).is_ok() && first == *b"E"
    }
    let dir = tempfile::tempdir().expect("a folder");
    let place = FilePlace { repository: "org/name", revision: COMMIT, file: "model.safetensors" };
    let hub = Hub::impatient(&endpoint, None);
    let error = hub.download(&place, 10, &dir.path().join("file"), &|_| {}).expect_err("nobody answers");
    assert!(matches!(error, ModelError::Download { .. }), "{error}");
    let mut last = std::net::TcpStream::connect(endpoint.trim_start_matches("http://")).expect("it listens");
    last.write_all(b"END").expect("sent");
    assert_eq!(connections.join().expect("no panic"), 1);
}

#[test]
fn a_server_that_knows_no_ranges_sends_it_all_again() {
    let server = HubServer::start(Plan { cuts: vec![400], ignores_ranges: true, ..single() });
    Place::new().pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    let server = HubServer::start(Plan { cuts: vec![400], shifts_ranges: true, ..single() });
    let error = Place::new().pull(&server).expect_err("the wrong bytes");
    assert!(error.ends_with(NOT_PARTIAL), "{error}");
}

#[test]
fn failures_that_pass_are_waited_for() {
    let server = HubServer::start(Plan { failures: vec![503, 429, 500], ..single() });
    Place::new().pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    let server = HubServer::start(Plan { failures: vec![403], ..single() });
    let error = Place::new().pull(&server).expect_err("a refusal is final");
    assert_eq!(error, format!("HUB/org/name/resolve/{COMMIT}/config.json: HTTP status 403: Forbidden"));
    assert_eq!(server.fetched().len(), 1);
}

#[test]
fn a_file_that_is_not_what_the_hub_says() {
    let wrong = |name, content: Vec<u8>| Plan { swapped: vec![(name, content)], ..single() };
    for (name, content, expected) in [
        ("model.safetensors", bytes(1000, 9), "model.safetensors has SHA-256 "),
        ("config.json", b"{\"model_type\": \"LLAMA\"}".to_vec(), "config.json has SHA-1 "),
        ("model.safetensors", bytes(2000, 0), "model.safetensors has 1001 bytes, expected 1000"),
        ("model.safetensors", bytes(900, 0), "model.safetensors has 900 bytes, expected 1000"),
    ] {
        let server = HubServer::start(wrong(name, content));
        let place = Place::new();
        let error = place.pull(&server).expect_err(expected);
        assert!(error.contains(expected), "{error:?} should contain {expected:?}");
        assert_eq!(place.content(), [".partial/"]);
        // It is not continued: with the right content the next pull does well.
        let server = HubServer::start(single());
        place.pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    }
}

#[test]
fn a_gate_wants_a_token_that_goes_nowhere_else() {
    let server = HubServer::start(Plan { token: Some(TOKEN), ..single() });
    let place = Place::new();
    let error = place.pull(&server).expect_err("gated");
    assert!(error.contains("HTTP status 401: Access to model org/name is restricted, None"), "{error}");
    let dir = tempfile::tempdir().expect("a folder");
    let secret = |text: &str| {
        fs::write(dir.path().join("token"), text).expect("written");
        Secret::from_file(&dir.path().join("token")).expect("a token")
    };
    let error = place.pull_as(&server, Some(secret("hf_another"))).expect_err("gated");
    assert!(error.contains("is restricted, Some(\"Bearer [secret]\")"), "{error}");
    server.requests();
    place.pull_as(&server, Some(secret(TOKEN))).expect("pulled");
    for asked in server.requests() {
        assert_eq!(asked.authorization.is_some(), !asked.path.starts_with("/elsewhere/"), "{asked:?}");
        assert_eq!(asked.encoding.as_deref(), Some("identity"), "{asked:?}");
    }
    // Another port of the same host may be somebody else's.
    let other = HubServer::start(single());
    let server = HubServer::start(Plan { token: Some(TOKEN), elsewhere: Some(other.endpoint.clone()), ..single() });
    Place::new().pull_as(&server, Some(secret(TOKEN))).expect("pulled");
    let asked = other.requests();
    assert!(!asked.is_empty() && asked.iter().all(|asked| asked.authorization.is_none()), "{asked:?}");
    // Within the hub it is needed after a redirect too.
    let server = HubServer::start(Plan { token: Some(TOKEN), redirects_within: true, ..single() });
    Place::new().pull_as(&server, Some(secret(TOKEN))).expect("pulled").verify(&|_| {}).expect("intact");
    assert!(server.requests().iter().any(|asked| asked.path == "/within/model.safetensors"));
    assert!(!format!("{:?}", Hub::new(&server.endpoint, Some(secret(TOKEN)))).contains(TOKEN));
}

#[test]
fn what_is_not_there() {
    let server = HubServer::start(single());
    let place = Place::new();
    let hub = Hub::impatient(&server.endpoint, None);
    let pull = |name, revision| install(&hub, &place.home, name, revision, &|_| {}).map_err(|error| chain(&error));
    let error = pull("org/name", "v9").expect_err("no such revision");
    assert!(error.ends_with("/revision/v9?blobs=true: HTTP status 404: Invalid revision"), "{error}");
    pull("org/other", "main").expect_err("no such repository");
    assert_eq!(pull("name", "main"), Err("\"name\" is no name of a model on the hub, expected ORG/NAME".to_owned()));
    let mut plan = single();
    plan.files.retain(|(name, _)| *name != "model.safetensors");
    let server = HubServer::start(plan);
    let error = place.pull(&server).expect_err("no safetensors");
    assert!(error.starts_with("cannot pull org/name: it has neither model.safetensors nor "), "{error}");
}

#[test]
fn another_commit_replaces_what_it_changes() {
    let place = Place::new();
    place.pull(&HubServer::start(split())).expect("pulled");
    let mut plan = single();
    plan.files.iter_mut().filter(|(name, _)| *name == "config.json").for_each(|(_, content)| content.push(b'\n'));
    let server = HubServer::start(plan);
    place.pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    assert_eq!(server.fetched(), ["config.json", "model.safetensors"]);
    let left: Vec<_> = place.content().into_iter().filter(|name| name.contains("model")).collect();
    assert_eq!(left, ["model.safetensors"], "what the new commit does not have is gone");
}

#[test]
fn a_pull_that_ended_between_its_files_is_not_taken_for_whole() {
    let place = Place::new();
    let first = place.pull(&HubServer::start(split())).expect("pulled");
    assert_eq!(Installed::read_whole(&place.folder()).expect("whole"), Some(first));
    // A folder in the way of a file: the pull ends after some have their names.
    fs::create_dir(place.folder().join("model.safetensors")).expect("made");
    let mut plan = single();
    plan.files.iter_mut().filter(|(name, _)| *name == "config.json").for_each(|(_, content)| content.push(b'\n'));
    let server = HubServer::start(plan);
    place.pull(&server).expect_err("a folder cannot be replaced");
    assert!(fs::read(place.folder().join("config.json")).expect("there").ends_with(b"\n"), "of the new commit");
    let error = Installed::read_whole(&place.folder()).expect_err("of two commits").to_string();
    assert!(error.contains("has not come to its end"), "{error}");
    fs::remove_dir(place.folder().join("model.safetensors")).expect("removed");
    let whole = place.pull(&server).expect("pulled");
    assert_eq!(Installed::read_whole(&place.folder()).expect("whole"), Some(whole));
    let left: Vec<_> = place.content().into_iter().filter(|name| name.contains("model")).collect();
    assert_eq!(left, ["model.safetensors"], "what only the first commit has is gone");
}

#[test]
fn a_record_is_not_believed() {
    let dir = tempfile::tempdir().expect("a folder");
    let check = |name: &str, size: u64, is_sound: bool| {
        let file = serde_json::json!({"name": name, "size": size, "checksum": {"sha256": "a".repeat(64)}});
        let files = vec![file; 2];
        let record = serde_json::json!({"repository": "a/b", "revision": "main", "commit": COMMIT, "files": files});
        fs::write(dir.path().join("turnflow.json"), record.to_string()).expect("written");
        let read = Installed::read(dir.path()).map(|installed| installed.expect("a record").bytes());
        assert_eq!(read.ok(), is_sound.then(|| 2 * size), "{name} {size}");
    };
    check("a.safetensors", 7, true);
    check("1_Pooling/config.json", 7, true);
    for name in ["../a", "/etc/passwd", "a/..", "a/b/c", "a/", "..", ""] {
        check(name, 7, false);
    }
    check("a.safetensors", u64::MAX, false);
}

#[test]
fn two_pulls_at_once_are_one() {
    let place = Place::new();
    let server = HubServer::start(single());
    let hub = Hub::impatient(&server.endpoint, None);
    let second = RefCell::new(None);
    let progress = |progress: Progress<'_>| {
        if matches!(progress, Progress::Bytes { .. }) && second.borrow().is_none() {
            let error = install(&hub, &place.home, "org/name", "main", &|_| {}).expect_err("one at a time");
            second.replace(Some(error.to_string()));
        }
    };
    install(&hub, &place.home, "org/name", "main", &progress).expect("pulled");
    assert_eq!(second.into_inner().as_deref(), Some("cannot pull org/name: it is being pulled by another process"));
}

#[test]
fn damage_is_found() {
    let place = Place::new();
    let installed = place.pull(&HubServer::start(single())).expect("pulled");
    let path = place.folder().join("model.safetensors");
    fs::write(&path, bytes(1000, 1)).expect("written");
    installed.check_sizes().expect("the sizes are right");
    assert!(installed.verify(&|_| {}).expect_err("altered").to_string().contains("has SHA-256"));
    fs::write(&path, bytes(999, 0)).expect("written");
    assert!(installed.check_sizes().expect_err("shorter").to_string().ends_with("has 999 bytes, expected 1000"));
    fs::remove_file(&path).expect("removed");
    installed.check_sizes().expect_err("gone");
    let server = HubServer::start(single());
    place.pull(&server).expect("pulled").verify(&|_| {}).expect("intact");
    assert_eq!(server.fetched(), ["model.safetensors"]);
}
