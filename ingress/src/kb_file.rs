//! Reads knowledge bases from files: JSONL with one article per line, and folders of Markdown files with one article each.
//!
//! A line of JSONL has `id`, and `title` or `body` or both, and optionally `version` and `metadata`; other fields are
//! ignored. What a Markdown file holds is told in [`markdown`]. A link that leads out of its folder is a bad item: nobody meant
//! that to be read. A bad item is named with file and line, and whoever reads decides whether to go on:
//! [`ArticleReader`] does, [`read_articles`] does not, since half a knowledge base answers worse than an error message.

pub mod markdown;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::Deserialize;
use turnflow_pipeline::{ArticleDraft, DraftContent};
use turnflow_state::{ArticleId, Limits};

use crate::lines::{BadLine, LINE_BYTES_MAX, Lines, parse_line};

/// Reads all articles of a file or folder.
///
/// # Errors
/// When it cannot be read, or the first [`BadLine`] naming file and line.
pub fn read_articles(path: &Path, limits: &Limits) -> anyhow::Result<Vec<ArticleDraft>> {
    ArticleReader::open(&[path.to_owned()], limits)?.read_all(&path.display().to_string())
}

/// Reads all articles from the JSONL of `reader`, which is called `name` in messages.
///
/// # Errors
/// As [`read_articles`].
pub fn parse_articles(
    reader: impl BufRead + 'static,
    name: &str,
    limits: &Limits,
) -> anyhow::Result<Vec<ArticleDraft>> {
    let mut articles = ArticleReader::over(VecDeque::new(), limits);
    articles.open = Some(Lines::new(Box::new(reader), name));
    articles.read_all(name)
}

/// An article and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The article.
    pub draft: ArticleDraft,
    /// The file as the user named it.
    pub file: Arc<str>,
    /// The line on which the article begins, from 1.
    pub line: u64,
}

/// Articles of files and folders, one at a time.
pub struct ArticleReader {
    article_bytes_max: usize,
    sources: VecDeque<Source>,
    /// The JSONL file that is being read.
    open: Option<Lines<Box<dyn BufRead>>>,
    /// Where each article was given.
    places: HashMap<ArticleId, (Arc<str>, u64)>,
}

/// A file that is still to be read.
enum Source {
    Jsonl(PathBuf, File),
    /// With the id of the article if it does not name itself.
    Markdown(PathBuf, Option<String>),
    /// What a folder has in place of a Markdown file.
    Link(PathBuf),
}

impl ArticleReader {
    /// Articles of these files and folders, in this order; those of a folder in the order of their names.
    ///
    /// # Errors
    /// When a file or folder cannot be opened.
    pub fn open(paths: &[PathBuf], limits: &Limits) -> anyhow::Result<Self> {
        let mut sources = VecDeque::new();
        for path in paths {
            let cannot = || format!("cannot open the knowledge base {}", path.display());
            if path.metadata().with_context(cannot)?.is_dir() {
                let files = markdown_files(path).with_context(cannot)?;
                sources.extend(files.into_iter().filter_map(|file| source(file, path)));
            } else if is_markdown(path) {
                let id = default_id(path, path.parent().unwrap_or(Path::new("")));
                sources.push_back(Source::Markdown(path.clone(), id));
            } else {
                let file = File::open(path).with_context(cannot)?;
                sources.push_back(Source::Jsonl(path.clone(), file));
            }
        }
        Ok(Self::over(sources, limits))
    }

    fn over(sources: VecDeque<Source>, limits: &Limits) -> Self {
        Self { article_bytes_max: limits.article_bytes_max, sources, open: None, places: HashMap::new() }
    }

    /// How many articles there may be: lines of JSONL files and Markdown files. None when a file cannot be read twice,
    /// such as a pipe.
    #[must_use]
    pub fn estimate(&self) -> Option<u64> {
        let lines = |source: &Source| match source {
            Source::Jsonl(path, file) => {
                if !file.metadata().ok()?.is_file() {
                    return None;
                }
                let bytes = BufReader::new(File::open(path).ok()?).bytes();
                Some(bytes.filter(|byte| matches!(byte, Ok(b'\n'))).count() as u64)
            }
            Source::Markdown(..) | Source::Link(_) => Some(1),
        };
        self.sources.iter().map(lines).sum()
    }

    /// The next article; None at the end.
    ///
    /// # Errors
    /// The outer error is the file system's and final; the inner one is about this article alone.
    pub fn next_article(&mut self) -> anyhow::Result<Option<Result<Given, BadLine>>> {
        loop {
            if let Some(lines) = &mut self.open {
                let file = lines.file().clone();
                match lines.next_line().with_context(|| format!("cannot read {file}"))? {
                    Some(Err(bad)) => return Ok(Some(Err(bad))),
                    Some(Ok((line, text))) => {
                        let parsed = parse_article(&text).map_err(|reason| BadLine::new(&file, line, reason));
                        return Ok(Some(parsed.and_then(|draft| self.check(Given { draft, file, line }))));
                    }
                    None => self.open = None,
                }
            }
            match self.sources.pop_front() {
                None => return Ok(None),
                Some(Source::Jsonl(path, file)) => {
                    let reader: Box<dyn BufRead> = Box::new(BufReader::new(file));
                    self.open = Some(Lines::new(reader, &path.display().to_string()));
                }
                Some(Source::Markdown(path, id)) => {
                    let read = read_markdown(&path, id.as_deref());
                    return Ok(Some(read.and_then(|given| self.check(given))));
                }
                Some(Source::Link(path)) => {
                    let reason = if path.exists() {
                        "a link that leads out of the folder; to import what it leads to, name that"
                    } else {
                        "a link that leads nowhere"
                    };
                    return Ok(Some(Err(BadLine::new(&path.display().to_string().into(), 1, reason))));
                }
            }
        }
    }

    fn read_all(mut self, name: &str) -> anyhow::Result<Vec<ArticleDraft>> {
        let mut drafts = Vec::new();
        while let Some(article) = self.next_article()? {
            drafts.push(article?.draft);
        }
        anyhow::ensure!(!drafts.is_empty(), "{name} holds no articles");
        Ok(drafts)
    }

    fn check(&mut self, given: Given) -> Result<Given, BadLine> {
        let Given { draft, file, line } = &given;
        let bad = |reason: String| BadLine::new(file, *line, reason);
        check_content(draft, self.article_bytes_max).map_err(bad)?;
        if let Some((file, line)) = self.places.get(&draft.id) {
            return Err(bad(format!("article {} was already given at {file}:{line}", draft.id)));
        }
        self.places.insert(draft.id.clone(), (file.clone(), *line));
        Ok(given)
    }
}

#[derive(Deserialize)]
struct RawArticle {
    id: String,
    #[serde(default)]
    title: Option<String>,
    #[serde(default)]
    body: Option<String>,
    #[serde(default)]
    version: Option<u64>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

fn parse_article(text: &str) -> Result<ArticleDraft, String> {
    let RawArticle { id, title, body, version, metadata } = parse_line(text)?;
    let id = ArticleId::new(&id).map_err(|error| error.to_string())?;
    let (title, body) = (title.unwrap_or_default(), body.unwrap_or_default());
    let content = Some(DraftContent { title, body, metadata, version });
    Ok(ArticleDraft { id, content, expected_version: None })
}

/// The pipeline checks this as well. Here the message names the line, and no article is too large to be sent.
fn check_content(draft: &ArticleDraft, bytes_max: usize) -> Result<(), String> {
    let Some(content) = &draft.content else { return Ok(()) };
    let id = &draft.id;
    content.check_version().map_err(|error| format!("article {id}: {error}"))?;
    let DraftContent { title, body, metadata, .. } = content;
    if title.trim().is_empty() && body.trim().is_empty() {
        return Err(format!("article {id} has neither a title nor a body"));
    }
    let notes: usize = metadata.iter().map(|(name, value)| name.len() + value.len()).sum();
    let bytes = title.len() + body.len() + notes;
    if bytes > bytes_max {
        return Err(format!("article {id} of {bytes} bytes, at most {bytes_max} are allowed"));
    }
    Ok(())
}

fn read_markdown(path: &Path, id: Option<&str>) -> Result<Given, BadLine> {
    let file: Arc<str> = path.display().to_string().into();
    let bad = |line: u64, reason: String| BadLine::new(&file, line, reason);
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(LINE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| bad(1, format!("cannot be read: {error}")))?;
    if bytes.len() > LINE_BYTES_MAX {
        return Err(bad(1, format!("file of more than {LINE_BYTES_MAX} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        bad(valid.iter().filter(|&&byte| byte == b'\n').count() as u64 + 1, "not UTF-8".to_owned())
    })?;
    let draft = markdown::parse(&text, id).map_err(|fault| bad(fault.line, fault.reason))?;
    Ok(Given { draft, file, line: 1 })
}

fn is_markdown(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md"))
}

/// What there is to read of a file of a folder. Nobody meant a link out of it to be read, nor one to what is hidden.
fn source(file: PathBuf, folder: &Path) -> Option<Source> {
    let id = default_id(&file, folder);
    if !file.is_symlink() {
        return Some(Source::Markdown(file, id));
    }
    match place_in(folder, &file) {
        None => Some(Source::Link(file)),
        Some(place) => (!is_hidden(&place)).then_some(Source::Markdown(file, id)),
    }
}

/// Where in a folder a file of it is, when links are followed; None when it is elsewhere.
fn place_in(folder: &Path, file: &Path) -> Option<PathBuf> {
    let (file, folder) = (file.canonicalize().ok()?, folder.canonicalize().ok()?);
    file.strip_prefix(folder).ok().map(Path::to_owned)
}

/// Whether a file is hidden there. Not by a folder with two dots: a cluster swaps those behind links to what it mounts.
fn is_hidden(place: &Path) -> bool {
    let begins = |part: &OsStr, with: &str| part.as_encoded_bytes().starts_with(with.as_bytes());
    let hides = |folder: &OsStr| begins(folder, ".") && !begins(folder, "..");
    place.file_name().is_some_and(|name| begins(name, "."))
        || place.parent().is_some_and(|folders| folders.iter().any(hides))
}

/// The Markdown files of a folder and of the folders in it, and links to such files, in the order of their names. What is hidden is
/// passed over, and so are links to folders: they may lead in a circle.
fn markdown_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let path = entry.path();
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            if entry.file_type()?.is_dir() {
                folders.push(path);
            } else if is_markdown(&path) && (path.is_file() || !path.exists()) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The path within its folder, without the extension and with `/` between its parts. None when it is not Unicode.
fn default_id(file: &Path, folder: &Path) -> Option<String> {
    let relative = file.strip_prefix(folder).unwrap_or(file).with_extension("");
    let parts: Option<Vec<&str>> = relative.iter().map(|part| part.to_str()).collect();
    Some(parts?.join("/"))
}

#[cfg(test)]
mod tests {
    use turnflow_pipeline::Config;

    use super::*;

    fn limits() -> Limits {
        Limits { article_bytes_max: 40, ..Config::defaults().limits }
    }

    fn read(text: &'static str) -> Result<Vec<(String, Option<u64>)>, String> {
        let articles = parse_articles(text.as_bytes(), "kb.jsonl", &limits()).map_err(|error| format!("{error:#}"))?;
        let version = |draft: &ArticleDraft| draft.content.as_ref().and_then(|content| content.version);
        Ok(articles.iter().map(|draft| (draft.id.to_string(), version(draft))).collect())
    }

    #[test]
    fn articles_and_their_faults() {
        let check = |text: &'static str, expected: Result<&[(&str, Option<u64>)], &str>| {
            let expected = expected
                .map(|articles| articles.iter().map(|&(id, version)| (id.to_owned(), version)).collect::<Vec<_>>())
                .map_err(str::to_owned);
            assert_eq!(read(text), expected, "{text}");
        };
        check(r#"{"id":"a","title":"T"}"#, Ok(&[("a", None)]));
        check(
            "{\"id\":\"a\",\"body\":\"B\",\"version\":7,\"facts\":[1]}\n\n{\"id\":\"b\",\"title\":\"T\"}\n",
            Ok(&[("a", Some(7)), ("b", None)]),
        );
        check(r#"{"id":"a","title":"T","metadata":{"by":"Ada"}}"#, Ok(&[("a", None)]));
        check(r#"{"title":"T"}"#, Err("kb.jsonl:1: missing field `id` (column 13)"));
        check(r#"{"id":"","title":"T"}"#, Err("kb.jsonl:1: empty article id"));
        check(r#"{"id":"a","title":" "}"#, Err("kb.jsonl:1: article a has neither a title nor a body"));
        check(
            r#"{"id":"a","title":"T","version":0}"#,
            Err("kb.jsonl:1: article a: 0 is no version, 1 to 9007194959773696 can be given, or none"),
        );
        check(
            r#"{"id":"a","title":"T","version":18446744073709551615}"#,
            Err(
                "kb.jsonl:1: article a: 18446744073709551615 is no version, 1 to 9007194959773696 can be given, or none",
            ),
        );
        check(
            "{\"id\":\"a\",\"title\":\"T\"}\n{\"id\":\"a\",\"title\":\"U\"}",
            Err("kb.jsonl:2: article a was already given at kb.jsonl:1"),
        );
        check(
            r#"{"id":"a","body":"twenty bytes of body","metadata":{"note":"seventeen of note"}}"#,
            Err("kb.jsonl:1: article a of 41 bytes, at most 40 are allowed"),
        );
        check("\n\n", Err("kb.jsonl holds no articles"));
    }

    #[test]
    fn files_and_folders_are_read_in_order_and_bad_items_are_passed_over() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let write = |name: &str, text: &[u8]| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().expect("a folder")).expect("made");
            fs::write(&path, text).expect("written");
            path
        };
        let lines = write("kb.jsonl", b"{\"id\":\"x\",\"title\":\"X\"}\nnonsense\n{\"id\":\"y\",\"title\":\"Y\"}\n");
        write("pages/b.md", b"# B\nsecond");
        write("pages/a/deep.md", b"---\ntitle: Deep\n---\nfirst");
        write("pages/c.MD", b"good\nbad \xFF");
        write("pages/notes.txt", b"no article");
        write("pages/again.md", b"---\nid: y\n---\nagain");
        let pages = dir.path().join("pages");
        let link = |to: &str, from: &str| std::os::unix::fs::symlink(to, pages.join(from)).expect("a link");
        link(&write("outside.md", b"secret").display().to_string(), "d.md");
        link("nowhere.md", "h.md");
        // As a cluster mounts what it keeps: the folder behind is swapped.
        write("pages/..2026/e.md", b"third");
        link("..2026", "..data");
        link("..data/e.md", "e.md");
        write("pages/.draft.md", b"hidden");
        link(".draft.md", "f.md");
        write("pages/.git/g.md", b"hidden");
        link(".git/g.md", "g.md");

        let mut reader = ArticleReader::open(&[lines, pages.clone()], &limits()).expect("they are there");
        assert_eq!(reader.estimate(), Some(3 + 7));
        let (mut ids, mut bad) = (Vec::new(), Vec::new());
        while let Some(article) = reader.next_article().expect("readable") {
            match article {
                Ok(given) => ids.push(given.draft.id.to_string()),
                Err(error) => bad.push(error.to_string().replace(&dir.path().display().to_string(), "")),
            }
        }
        assert_eq!(ids, ["x", "y", "a/deep", "b", "e"]);
        let again = format!("/pages/again.md:1: article y was already given at {}/kb.jsonl:3", dir.path().display());
        let again = again.replace(&dir.path().display().to_string(), "");
        let link = bad.pop().expect("one more");
        assert!(link.starts_with("/pages/h.md:1: a link that leads nowhere"), "{link}");
        let link = bad.pop().expect("one more");
        assert!(link.starts_with("/pages/d.md:1: a link that leads out of the folder"), "{link}");
        assert_eq!(bad, ["/kb.jsonl:2: not a JSON object", &again, "/pages/c.MD:2: not UTF-8"]);

        let single = read_articles(&pages.join("b.md"), &limits()).expect("one article");
        assert_eq!(single[0].id.as_str(), "b");
        let error = ArticleReader::open(&[dir.path().join("no.jsonl")], &limits()).err().expect("not there");
        assert!(format!("{error:#}").starts_with("cannot open the knowledge base "), "{error:#}");
    }
}
