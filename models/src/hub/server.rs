//! A server on loopback that plays the hub, for tests: lists, redirects, ranges, and everything that can go wrong with them.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::{Digest as _, Sha1};
use sha2::Sha256;

pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What a hub holds and how it misbehaves.
#[derive(Clone, Default)]
pub(crate) struct Plan {
    /// Names and contents. Those of weights are told with a SHA-256, the others with Git's name.
    pub(crate) files: Vec<(&'static str, Vec<u8>)>,
    /// What is sent in place of a file that was listed.
    pub(crate) swapped: Vec<(&'static str, Vec<u8>)>,
    /// How many bytes of each response with weights are sent before the connection is cut; none: all.
    pub(crate) cuts: Vec<usize>,
    /// Files are redirected to within the hub, which wants its token there too.
    pub(crate) redirects_within: bool,
    /// Where files are redirected to in place of another name of the hub's host.
    pub(crate) elsewhere: Option<String>,
    /// Ranges are not understood: the whole file is sent.
    pub(crate) ignores_ranges: bool,
    /// Ranges are understood wrongly: the answer begins elsewhere.
    pub(crate) shifts_ranges: bool,
    /// The token without which nobody is let in.
    pub(crate) token: Option<&'static str>,
    /// Statuses that the first requests for files get.
    pub(crate) failures: Vec<u16>,
}

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    pub(crate) encoding: Option<String>,
}

pub(crate) struct HubServer {
    pub(crate) endpoint: String,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
}

impl HubServer {
    pub(crate) fn start(plan: Plan) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (stopped, told, place) = (Arc::clone(&stop), Arc::clone(&asked), endpoint.clone());
        std::thread::spawn(move || {
            let mut plan = plan;
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let asked = read(&stream);
                told.lock().expect("no panic").push(asked.clone());
                let _client_is_gone = answer(&mut plan, &place, &asked, &stream);
            }
        });
        Self { endpoint, asked, stop }
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        std::mem::take(&mut *self.asked.lock().expect("no panic"))
    }

    /// Paths and ranges of the requests since the last call for the files themselves.
    pub(crate) fn fetched(&self) -> Vec<String> {
        let told = |asked: Asked| {
            let file = asked.path.strip_prefix("/elsewhere/")?.to_owned();
            Some(asked.range.map_or(file.clone(), |range| format!("{file} {range}")))
        };
        self.requests().into_iter().filter_map(told).collect()
    }
}

impl Drop for HubServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _wake_up = TcpStream::connect(self.endpoint.trim_start_matches("http://"));
    }
}

fn read(stream: &TcpStream) -> Asked {
    let lines = BufReader::new(stream).lines().map_while(Result::ok);
    let lines: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let header = |name: &str| {
        let value = |line: &String| {
            line.split_once(": ").filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, v)| v.to_owned())
        };
        lines.iter().find_map(value)
    };
    let path = lines.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default().to_owned();
    Asked { path, range: header("range"), authorization: header("authorization"), encoding: header("accept-encoding") }
}

fn answer(plan: &mut Plan, endpoint: &str, asked: &Asked, mut stream: &TcpStream) -> std::io::Result<()> {
    let mut reply = |status: &str, headers: &str, length: usize, body: &[u8]| {
        let head = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body))
    };
    let is_let_in = plan.token.is_none_or(|token| asked.authorization == Some(format!("Bearer {token}")));
    let within = asked.path.strip_prefix("/within/").filter(|_| is_let_in);
    if let Some(name) = asked.path.strip_prefix("/elsewhere/").or(within) {
        if !plan.failures.is_empty() {
            return reply(&format!("{} Failing", plan.failures.remove(0)), "", 0, b"");
        }
        let swapped = plan.swapped.iter().find(|(file, _)| *file == name);
        let (_, content) = swapped.or_else(|| plan.files.iter().find(|(file, _)| *file == name)).expect("a known file");
        let from = asked.range.as_deref().filter(|_| !plan.ignores_ranges).map(|range| {
            range
                .strip_prefix("bytes=")
                .and_then(|range| range.strip_suffix('-'))
                .expect("an open range")
                .parse()
                .expect("a number")
        });
        let from: Option<usize> = from.map(|from: usize| if plan.shifts_ranges { from - 1 } else { from });
        let rest = content.get(from.unwrap_or(0)..).unwrap_or_default();
        let is_cut = name.ends_with(".safetensors") && !plan.cuts.is_empty();
        let sent = if is_cut { &rest[..plan.cuts.remove(0).min(rest.len())] } else { rest };
        return match from {
            None => reply("200 OK", "", rest.len(), sent),
            Some(from) if from >= content.len() => reply("416 Range Not Satisfiable", "", 0, b""),
            Some(from) => {
                let range = format!("Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
                reply("206 Partial Content", &range, rest.len(), sent)
            }
        };
    }
    if !is_let_in {
        let words = format!("X-Error-Message: Access to model org/name is restricted, {:?}\r\n", asked.authorization);
        return reply("401 Unauthorized", &words, 0, b"");
    }
    if asked.path == "/api/models/org/name/revision/main?blobs=true" {
        let body = list(plan).to_string();
        return reply("200 OK", "Content-Type: application/json\r\n", body.len(), body.as_bytes());
    }
    match asked.path.strip_prefix(&format!("/org/name/resolve/{COMMIT}/")) {
        Some(name) if plan.redirects_within => reply("302 Found", &format!("Location: /within/{name}\r\n"), 0, b""),
        Some(name) => {
            let other = plan.elsewhere.clone().unwrap_or_else(|| endpoint.replace("127.0.0.1", "localhost"));
            reply("302 Found", &format!("Location: {other}/elsewhere/{name}\r\n"), 0, b"")
        }
        None => reply("404 Not Found", "", 29, b"{\"error\":\"Invalid revision\"}\n"),
    }
}

fn list(plan: &Plan) -> serde_json::Value {
    let file = |(name, content): &(&str, Vec<u8>)| {
        if name.ends_with(".safetensors") {
            let sha256 = format!("{:x}", Sha256::digest(content));
            return json!({"rfilename": name, "size": content.len(), "blobId": "f".repeat(40), "lfs": {"sha256": sha256, "size": content.len(), "pointerSize": 134}});
        }
        let blob = Sha1::new().chain_update(format!("blob {}\0", content.len())).chain_update(content).finalize();
        json!({"rfilename": name, "size": content.len(), "blobId": format!("{blob:x}")})
    };
    json!({"id": "org/name", "sha": COMMIT, "siblings": plan.files.iter().map(file).collect::<Vec<_>>()})
}
