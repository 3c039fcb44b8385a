//! The file of the keys, its log, and the pepper: one JSON object per line, read whole and written whole.
//!
//! A change holds a lock on the log, so that of two writers neither undoes the other's. It writes the keys aside, then what was done to
//! the log, and then puts the keys in their place: a reader sees all of a change or nothing, and no change is without its line in
//! the log. A line whose change then failed is possible, and harmless.
//!
//! The files lie in the store's folder unless configured. Its parent may be one that everybody can write to, such as `/tmp`.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tempfile::NamedTempFile;
use turnflow_pipeline::GatewayConfig;
use turnflow_state::TenantId;

use super::record::link_old;
use super::secret::{draw_id, secret};
use super::{Key, KeyId, KeyLimits, KeyRecord, KeyState, KeysError, PEPPER_ENV, Pepper, Scope};

const FILE_NAME: &str = "keys.jsonl";
/// Keys that a file may hold, revoked ones included.
const KEYS_MAX: usize = 100_000;

/// Where keys are kept.
#[derive(Clone, Debug)]
pub struct KeyFiles {
    keys: PathBuf,
    pepper_file: PathBuf,
    /// The pepper from the environment.
    pepper: Option<Pepper>,
}

/// What somebody wants a key to be.
#[derive(Clone, Debug)]
pub struct NewKey {
    /// Whose it is.
    pub tenant: TenantId,
    /// What it may be used for.
    pub scopes: BTreeSet<Scope>,
    /// What it is called.
    pub name: Option<String>,
    /// From when on it counts no more.
    pub expires: Option<Timestamp>,
    /// What it may do at most, where that is not as configured.
    pub limits: KeyLimits,
}

/// When the file was changed, and its length: tells one state of it from another.
pub(crate) type Stamp = (SystemTime, u64);

/// A line of the log.
#[derive(Serialize)]
struct Entry {
    time: Timestamp,
    action: &'static str,
    key: KeyId,
    tenant: TenantId,
    /// The key that takes its place.
    #[serde(skip_serializing_if = "Option::is_none")]
    successor: Option<KeyId>,
    /// What the environment says of who did it.
    user: String,
    /// What the operating system says.
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
}

impl KeyFiles {
    /// Where the configuration says, or in the store's folder; the pepper may come from the environment.
    ///
    /// # Errors
    /// [`KeysError::PepperShort`].
    pub fn new(config: &GatewayConfig, data_dir: &Path) -> Result<Self, KeysError> {
        let named = |path: &Path, otherwise: PathBuf| {
            if path.as_os_str().is_empty() { otherwise } else { path.to_owned() }
        };
        let keys = named(&config.keys, data_dir.join(FILE_NAME));
        let pepper_file = named(&config.pepper_file, keys.with_extension("pepper"));
        let pepper = std::env::var_os(PEPPER_ENV).filter(|secret| !secret.is_empty());
        let pepper = pepper.map(|secret| Pepper::new(secret.as_encoded_bytes(), PEPPER_ENV)).transpose()?;
        Ok(Self { keys, pepper_file, pepper })
    }

    /// The file of the keys.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.keys
    }

    /// The files that a backup has a copy of, with its names for them: the keys and their log, and never the pepper.
    pub(crate) fn kept(&self) -> [(PathBuf, &'static str); 2] {
        [(self.keys.clone(), FILE_NAME), (self.log(), "keys-audit.jsonl")]
    }

    /// The file of the secret that keys are hashed with.
    pub(crate) fn pepper_file(&self) -> &Path {
        &self.pepper_file
    }

    /// The keys; none where there is no file.
    ///
    /// # Errors
    /// When the file cannot be read, or a line of it is no key.
    pub fn load(&self) -> Result<Vec<KeyRecord>, KeysError> {
        let text = match fs::read_to_string(&self.keys) {
            Ok(text) => text,
            Err(error) if is_absent(&error) => return Ok(Vec::new()),
            Err(source) => return Err(KeysError::Read { path: self.keys.clone(), source }),
        };
        let mut ids = HashSet::new();
        let mut records = Vec::new();
        for (line, text) in (1..).zip(text.lines()).filter(|(_, text)| !text.trim().is_empty()) {
            let wrong = |message: String| KeysError::Line { path: self.keys.clone(), line, message };
            let record: KeyRecord = serde_json::from_str(text).map_err(|error| wrong(format!("no key: {error}")))?;
            if !ids.insert(record.id.clone()) {
                return Err(wrong(format!("key {} is there twice", record.id)));
            }
            record.limits.check().map_err(|message| wrong(format!("limits.{message}")))?;
            records.push(record);
        }
        if records.len() > KEYS_MAX {
            return Err(KeysError::TooMany(records.len()));
        }
        link_old(&mut records);
        Ok(records)
    }

    /// The secret that keys are hashed with.
    ///
    /// # Errors
    /// When it is neither in the environment nor in its file.
    pub fn pepper(&self) -> Result<Pepper, KeysError> {
        if let Some(pepper) = &self.pepper {
            return Ok(pepper.clone());
        }
        let path = self.pepper_file.clone();
        match fs::read(&path) {
            Ok(secret) => Pepper::new(secret, path.display().to_string()),
            Err(error) if is_absent(&error) => Err(KeysError::PepperMissing { path }),
            Err(source) => Err(KeysError::Read { path, source }),
        }
    }

    /// The secret that these keys are hashed with.
    ///
    /// # Errors
    /// When it is not there, or is another one.
    pub fn pepper_of(&self, records: &[KeyRecord]) -> Result<Pepper, KeysError> {
        let pepper = self.pepper()?;
        let id = pepper.id();
        let fits = |record: &KeyRecord| record.revoked.is_some() || record.pepper.as_ref().is_none_or(|of| *of == id);
        let Some(record) = records.iter().find(|record| !fits(record)) else { return Ok(pepper) };
        let from_environment = self.pepper.as_ref().map(|_| PEPPER_ENV.to_owned());
        let place = from_environment.unwrap_or_else(|| self.pepper_file.display().to_string());
        Err(KeysError::PepperWrong { key: record.id.clone(), place })
    }

    /// Whether there were keys once, as their log tells, though there is none now.
    pub(crate) fn check_gone(&self) -> Result<(), KeysError> {
        let log = self.log();
        let has_entries = fs::metadata(&log).is_ok_and(|about| about.len() > 0);
        if has_entries { Err(KeysError::Gone { path: self.keys.clone(), log }) } else { Ok(()) }
    }

    pub(crate) fn stamp(&self) -> Option<Stamp> {
        let about = fs::metadata(&self.keys).ok()?;
        Some((about.modified().ok()?, about.len()))
    }

    /// Makes a key; with the first one, the pepper is made where there is none.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn create(&self, wanted: NewKey, now: Timestamp) -> Result<(Key, KeyRecord), KeysError> {
        self.change(now, |records| {
            let (key, record) = self.draw(records, wanted, now)?;
            records.push(record.clone());
            Ok(((key, record.clone()), "create", record, None))
        })
    }

    /// Revokes a key; one that was revoked stays as it was.
    ///
    /// # Errors
    /// When there is no such key, or the files cannot be read or written.
    pub fn revoke(&self, id: &KeyId, now: Timestamp) -> Result<KeyRecord, KeysError> {
        self.change(now, |records| {
            let record = find(records, id)?;
            record.revoked.get_or_insert(now);
            Ok((record.clone(), "revoke", record.clone(), None))
        })
    }

    /// Makes a key that may do what another one may, for as long; the other one counts for `overlap` more. One that was rotated before may be
    /// rotated again, for whoever has lost its successor.
    ///
    /// # Errors
    /// When there is no such key, it is not valid any more, or the files cannot be read or written.
    pub fn rotate(&self, id: &KeyId, overlap: SignedDuration, now: Timestamp) -> Result<(Key, KeyRecord), KeysError> {
        let end = now.checked_add(overlap)?;
        self.change(now, |records| {
            if let state @ (KeyState::Expired | KeyState::Revoked) = find(records, id)?.state(now) {
                return Err(KeysError::NotValid { id: id.clone(), state });
            }
            let lifetime = lifetime(records, id);
            let old = find(records, id)?;
            let expires = lifetime.map(|lifetime| now.checked_add(lifetime)).transpose()?;
            old.expires = Some(old.expires.map_or(end, |expires| expires.min(end)));
            let old = old.clone();
            let wanted = NewKey {
                tenant: old.tenant.clone(),
                scopes: old.scopes.clone(),
                name: old.name.clone(),
                expires,
                limits: old.limits,
            };
            let (key, record) = self.draw(records, wanted, now)?;
            let record = KeyRecord { predecessor: Some(id.clone()), ..record };
            records.push(record.clone());
            Ok(((key, record.clone()), "rotate", old, Some(record.id)))
        })
    }

    fn draw(&self, records: &[KeyRecord], wanted: NewKey, now: Timestamp) -> Result<(Key, KeyRecord), KeysError> {
        if records.len() >= KEYS_MAX {
            return Err(KeysError::TooMany(records.len()));
        }
        let pepper = match self.pepper_of(records) {
            Err(KeysError::PepperMissing { .. }) if records.is_empty() => self.new_pepper()?,
            found => found?,
        };
        let mut id = draw_id()?;
        while records.iter().any(|record| record.id == id) {
            id = draw_id()?;
        }
        let key = Key::draw(&id)?;
        let NewKey { tenant, scopes, name, expires, limits } = wanted;
        let (hash, pepper) = (pepper.hash(key.reveal()), Some(pepper.id()));
        Ok((
            key,
            KeyRecord {
                id,
                tenant,
                scopes,
                name,
                limits,
                created: now,
                expires,
                revoked: None,
                predecessor: None,
                successor: None,
                pepper,
                hash,
            },
        ))
    }

    fn new_pepper(&self) -> Result<Pepper, KeysError> {
        let path = &self.pepper_file;
        let text = secret()?;
        let mut aside = aside(path)?;
        let written = writeln!(aside, "{text}").and_then(|()| aside.as_file().sync_all());
        // Not over one that somebody else has made meanwhile.
        let placed = written.and_then(|()| aside.persist_noclobber(path).map_err(|error| error.error));
        placed.and_then(|_| sync_folder(path)).map_err(|source| KeysError::Write { path: path.clone(), source })?;
        self.pepper()
    }

    /// Changes the file. `edit` says what comes of it, and for the log what was done to which key, and which takes its place.
    fn change<T>(
        &self,
        now: Timestamp,
        edit: impl FnOnce(&mut Vec<KeyRecord>) -> Result<(T, &'static str, KeyRecord, Option<KeyId>), KeysError>,
    ) -> Result<T, KeysError> {
        let mut log = self.locked_log()?;
        let mut records = self.load()?;
        let (done, action, KeyRecord { id: key, tenant, .. }, successor) = edit(&mut records)?;
        let failed = |source: io::Error| KeysError::Write { path: self.keys.clone(), source };
        let mut aside = aside(&self.keys)?;
        let owner_before = File::open(&self.keys).ok().and_then(|file| owner(&file));
        if let (Some(owner), Some(writer)) = (owner_before, owner(aside.as_file()))
            && owner != writer
        {
            return Err(KeysError::Foreign { path: self.keys.clone(), owner, writer });
        }
        for record in &records {
            writeln!(aside, "{}", line(record).map_err(failed)?).map_err(failed)?;
        }
        aside.as_file().sync_all().map_err(failed)?;
        let entry = Entry { time: now, action, key, tenant, successor, user: user(), uid: owner(aside.as_file()) };
        let logged = line(&entry).and_then(|entry| writeln!(log, "{entry}")).and_then(|()| log.sync_all());
        logged.map_err(|source| KeysError::Write { path: self.log(), source })?;
        aside.persist(&self.keys).map_err(|error| failed(error.error))?;
        sync_folder(&self.keys).map_err(failed)?;
        Ok(done)
    }

    /// The log, which nobody else has until it is dropped.
    fn locked_log(&self) -> Result<File, KeysError> {
        let path = self.log();
        let folder = path.parent().map_or(Ok(()), fs::create_dir_all);
        let opened = folder.and_then(|()| OpenOptions::new().append(true).create(true).open(&path));
        let locked = opened.and_then(|file| file.lock().map(|()| file));
        locked.map_err(|source| KeysError::Write { path, source })
    }

    /// `keys-audit.jsonl`, where the keys are in `keys.jsonl`.
    fn log(&self) -> PathBuf {
        let stem = self.keys.file_stem().unwrap_or_default().to_string_lossy();
        self.keys.with_file_name(format!("{stem}-audit.jsonl"))
    }
}

fn find<'a>(records: &'a mut [KeyRecord], id: &KeyId) -> Result<&'a mut KeyRecord, KeysError> {
    records.iter_mut().find(|record| record.id == *id).ok_or_else(|| KeysError::Unknown(id.clone()))
}

/// How long a key was made to count; None for as long as it is not revoked. One that was rotated expires sooner than it was made to, so that a
/// successor that was not tells. The file has keys in the order in which they were made.
fn lifetime(records: &[KeyRecord], id: &KeyId) -> Option<SignedDuration> {
    let key = records.iter().find(|record| record.id == *id)?;
    let last =
        records.iter().fold(key, |last, next| if next.predecessor.as_ref() == Some(&last.id) { next } else { last });
    last.expires.map(|expires| expires.duration_since(last.created))
}

/// Whether there is no such file, nor could be.
fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

fn line(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)?)
}

/// A file that takes another one's place once it is complete. Only its owner may read it.
fn aside(path: &Path) -> Result<NamedTempFile, KeysError> {
    let folder = folder_of(path);
    let made = fs::create_dir_all(folder).and_then(|()| NamedTempFile::new_in(folder));
    made.map_err(|source| KeysError::Write { path: path.to_owned(), source })
}

/// A file that was put in its place is there for good once its folder is written.
fn sync_folder(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder_of(path))?.sync_all() } else { Ok(()) }
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn user() -> String {
    let named = ["SUDO_USER", "USER", "LOGNAME", "USERNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    named.unwrap_or_else(|| "unknown".to_owned())
}

/// The number of the user who made this file, which is this process's.
#[cfg(unix)]
fn owner(file: &File) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().ok().map(|about| about.uid())
}

/// There is no such number.
#[cfg(not(unix))]
fn owner(_: &File) -> Option<u32> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> KeyFiles {
        KeyFiles { keys: dir.join(FILE_NAME), pepper_file: dir.join("keys.pepper"), pepper: None }
    }

    fn wanted(expires: Option<Timestamp>) -> NewKey {
        let tenant = TenantId::new("t").expect("valid id");
        NewKey { tenant, scopes: BTreeSet::from([Scope::Chat]), name: None, expires, limits: KeyLimits::default() }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn keys_are_made_rotated_and_revoked_and_the_log_tells_it() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(&dir.path().join("new"));
        assert_eq!(files.load().expect("no file"), []);
        let (first_key, first) = files.create(wanted(Some(at(1_000))), at(100)).expect("made");
        assert!(files.pepper().expect("made").hash(first_key.reveal()) == first.hash);
        let (_, second) = files.rotate(&first.id, SignedDuration::from_secs(50), at(200)).expect("rotated");
        assert_eq!((second.expires, second.scopes), (Some(at(1_100)), BTreeSet::from([Scope::Chat])));
        let states = |now: i64| files.load().expect("keys").iter().map(|key| key.state(at(now))).collect::<Vec<_>>();
        assert_eq!(states(249), [KeyState::Valid, KeyState::Valid]);
        assert_eq!(states(250), [KeyState::Expired, KeyState::Valid]);
        let refused = files.rotate(&first.id, SignedDuration::ZERO, at(250)).expect_err("expired").to_string();
        assert_eq!(refused, format!("key {} is expired", first.id));
        files.revoke(&second.id, at(300)).expect("revoked");
        assert_eq!(files.revoke(&second.id, at(400)).expect("still").revoked, Some(at(300)));
        assert_eq!(states(301), [KeyState::Expired, KeyState::Revoked]);

        let kept = [FILE_NAME, "keys-audit.jsonl"].map(|name| fs::read_to_string(dir.path().join("new").join(name)));
        let [keys, log] = kept.map(|text| text.expect("a file"));
        let actions: Vec<String> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON")["action"].to_string())
            .collect();
        assert_eq!(actions, ["\"create\"", "\"rotate\"", "\"revoke\"", "\"revoke\""]);
        let secret = first_key.reveal().rsplit_once(&format!("{}_", first.id)).expect("a secret").1;
        assert!(!keys.contains(secret) && !log.contains(secret), "a secret is kept");
    }

    #[test]
    fn of_writers_at_once_none_is_lost() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..5).for_each(|_| drop(files.create(wanted(None), at(0)).expect("made"))));
            }
        });
        assert_eq!(files.load().expect("keys").len(), 20);
    }

    #[test]
    fn who_takes_the_place_of_a_key_counts_as_long_however_often_it_is_rotated() {
        let check = |expires: Option<i64>, expected: [Option<i64>; 3]| {
            let dir = tempfile::tempdir().expect("a folder");
            let files = files(dir.path());
            let (_, first) = files.create(wanted(expires.map(at)), at(0)).expect("made");
            let rotate = |id: &KeyId, now: i64| {
                let (_, record) = files.rotate(id, SignedDuration::from_secs(100), at(now)).expect("rotated");
                record
            };
            let second = rotate(&first.id, 10);
            let found = [rotate(&first.id, 20), rotate(&second.id, 30), rotate(&first.id, 40)];
            assert_eq!(found.map(|record| record.expires), expected.map(|expires| expires.map(at)));
        };
        check(None, [None; 3]);
        check(Some(1_000), [Some(1_020), Some(1_030), Some(1_040)]);
    }

    #[test]
    fn files_of_before_name_the_key_that_took_a_place() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let [first, second] = [0, 1].map(|now| files.create(wanted(Some(at(1_000))), at(now)).expect("made").1.id);
        let text = fs::read_to_string(files.path()).expect("a file");
        let link = format!("{{\"successor\":\"{second}\",\"id\":\"{first}\"");
        fs::write(files.path(), text.replacen(&format!("{{\"id\":\"{first}\""), &link, 1)).expect("written");
        let links = || files.load().expect("keys").into_iter().map(|key| key.predecessor).collect::<Vec<_>>();
        assert_eq!(links(), [None, Some(first.clone())]);
        let (_, third) = files.rotate(&first, SignedDuration::ZERO, at(10)).expect("rotated");
        assert_eq!(links(), [None, Some(first.clone()), Some(first)]);
        assert_eq!(third.expires, Some(at(1_009)), "as long as its sibling, from now on");
        assert!(!fs::read_to_string(files.path()).expect("a file").contains("successor"));
    }

    #[cfg(unix)]
    #[test]
    fn only_the_owner_may_read_the_files() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().expect("a folder");
        files(dir.path()).create(wanted(None), at(0)).expect("made");
        for name in [FILE_NAME, "keys.pepper"] {
            let mode = fs::metadata(dir.path().join(name)).expect("a file").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
    }

    #[test]
    fn what_is_no_key_is_named_by_its_line() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        files.create(wanted(None), at(0)).expect("made");
        let good = fs::read_to_string(files.path()).expect("a file");
        let check = |text: String, expected: &str| {
            fs::write(files.path(), text).expect("written");
            let error = files.load().expect_err("wrong").to_string();
            assert!(error.starts_with(&format!("{}{expected}", files.path().display())), "{error}");
        };
        check(format!("{good}\n{{}}\n"), ":3: no key: missing field `id`");
        check(format!("{good}{good}"), ":2: key ");
        check(good.replace("\"chat\"", "\"fly\""), ":1: no key: unknown variant `fly`");
        check(good.replace("\"created\"", "\"made\""), ":1: no key: unknown field `made`");

        fs::write(files.path(), &good).expect("written");
        fs::write(dir.path().join("keys.pepper"), "x".repeat(32)).expect("written");
        let error = files.create(wanted(None), at(0)).expect_err("another pepper").to_string();
        assert!(
            error.contains("was hashed with another secret than the one in") && error.contains("keys.pepper"),
            "{error}"
        );
        fs::remove_file(dir.path().join("keys.pepper")).expect("removed");
        // Another one would make the keys that are there worthless.
        let error = files.create(wanted(None), at(0)).expect_err("no pepper").to_string();
        assert!(error.contains("there are keys, but") && error.contains("keys.pepper"), "{error}");
    }
}
