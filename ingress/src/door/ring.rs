//! The keys that a server knows, and the thread that follows their file.
//!
//! It is the file that [`crate::keys`] writes. The thread looks at it twice a second, and with the same look for keys whose time is over. A
//! file that is gone or cannot be read leaves the keys that were known, and one that was emptied leaves none; neither opens a door, since from
//! the first key on one is needed.

use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;

use crate::keys::{KeyFiles, KeyId, KeyRecord, KeyState, KeysError, Pepper, Stamp, key_id};

/// How often the file is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The keys that are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    keys: HashMap<KeyId, KeyRecord>,
    /// There where there is a key.
    pepper: Option<Pepper>,
    is_needed: bool,
}

impl Ring {
    /// The keys of the file; a pepper that is `known` already serves where it cannot be read any more, or is another one, so that a revocation is not missed.
    fn load(files: &KeyFiles, known: Option<Pepper>) -> Result<Self, KeysError> {
        let records = files.load()?;
        let is_needed = !records.is_empty();
        let pepper = is_needed.then(|| files.pepper_of(&records).or_else(|error| known.ok_or(error))).transpose()?;
        let keys = records.into_iter().map(|record| (record.id.clone(), record)).collect();
        Ok(Self { keys, pepper, is_needed })
    }

    /// Whether calls need a key.
    pub(super) const fn is_needed(&self) -> bool {
        self.is_needed
    }

    /// The key with this name, whether or not it counts.
    pub(super) fn get(&self, id: &KeyId) -> Option<&KeyRecord> {
        self.keys.get(id)
    }

    /// The first of the keys that took each other's place until this one did: what one has used, no other has again.
    pub(super) fn first<'a>(&'a self, key: &'a KeyId) -> &'a KeyId {
        let before = |key: &&'a KeyId| self.keys.get(*key)?.predecessor.as_ref();
        // No more steps than there are keys, whatever the file says.
        std::iter::successors(Some(key), before).take(self.keys.len()).last().unwrap_or(key)
    }

    /// The key with this text, if it counts.
    pub(super) fn find(&self, text: Option<&str>, now: Timestamp) -> Result<&KeyRecord, Denied> {
        let text = text.ok_or(Denied::NoKey)?;
        let record = key_id(text).and_then(|id| self.keys.get(&id));
        let pepper = self.pepper.as_ref().ok_or(Denied::Unknown)?;
        // An unknown name costs the same hash and the same comparison, which takes as long for every two hashes.
        let hash = pepper.hash(text);
        let kept = record.map_or(blake3::Hash::from_bytes([0; blake3::OUT_LEN]), |record| record.hash);
        let record = record.filter(|_| hash == kept).ok_or(Denied::Unknown)?;
        self.denies(Some(&record.id), now).map_or(Ok(record), Err)
    }

    /// Why a key that was let in may not call now, or a caller without one.
    pub(super) fn denies(&self, key: Option<&KeyId>, now: Timestamp) -> Option<Denied> {
        let Some(key) = key else { return self.is_needed.then_some(Denied::NoKey) };
        match self.keys.get(key).map(|record| record.state(now)) {
            Some(KeyState::Valid) => None,
            Some(KeyState::Expired) => Some(Denied::Expired),
            Some(KeyState::Revoked) => Some(Denied::Revoked),
            None => Some(Denied::Unknown),
        }
    }
}

/// Why somebody is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Denied {
    NoKey,
    Unknown,
    Expired,
    Revoked,
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoKey => "there is no key",
            Self::Unknown => "the key is none of ours",
            Self::Expired => "the key has expired",
            Self::Revoked => "the key is revoked",
        })
    }
}

/// Follows a file of keys until nobody hears of them any more.
///
/// # Errors
/// When the file is there and cannot be used, or was there once.
pub(super) fn follow(files: KeyFiles) -> Result<watch::Receiver<Ring>, KeysError> {
    let (mut follower, ring) = Follower::new(files)?;
    if !ring.borrow().is_needed {
        // A server that comes back must not let in whom it kept out before.
        follower.files.check_gone()?;
    }
    let follow = move || {
        while !follower.ring.is_closed() {
            std::thread::sleep(LOOK_EVERY);
            follower.look(Timestamp::now());
        }
    };
    std::thread::Builder::new().name("turnflow-keys".to_owned()).spawn(follow).map_err(KeysError::Thread)?;
    Ok(ring)
}

/// Looks at the file of the keys.
pub(super) struct Follower {
    files: KeyFiles,
    ring: watch::Sender<Ring>,
    /// The file that the keys are from.
    loaded: Option<Stamp>,
    /// The file that the log was told of: once is enough.
    complained: Option<Option<Stamp>>,
    /// When keys were last looked at for their end.
    looked: Timestamp,
}

impl Follower {
    /// Reads the file, and gives the keys to whoever is to hear of them.
    pub(super) fn new(files: KeyFiles) -> Result<(Self, watch::Receiver<Ring>), KeysError> {
        // Before it is read, so that a change meanwhile is seen.
        let loaded = files.stamp();
        let (ring, heard) = watch::channel(Ring::load(&files, None)?);
        Ok((Self { files, ring, loaded, complained: None, looked: Timestamp::now() }, heard))
    }

    /// Looks at the file, and for keys whose time is over.
    pub(super) fn look(&mut self, now: Timestamp) {
        let stamp = self.files.stamp();
        if stamp != self.loaded {
            self.load(stamp);
        }
        let since = std::mem::replace(&mut self.looked, now);
        let ended = |record: &KeyRecord| record.expires.is_some_and(|expires| since < expires && expires <= now);
        if self.ring.borrow().keys.values().any(ended) {
            // Wakes those who wait for their key's end.
            self.ring.send_modify(|_| {});
        }
    }

    /// Takes the keys from the file as it is now. One that cannot be used leaves those that were, and from then on one is needed.
    fn load(&mut self, stamp: Option<Stamp>) {
        let was_needed = self.ring.borrow().is_needed;
        let pepper = self.ring.borrow().pepper.clone();
        match Ring::load(&self.files, pepper) {
            // A file that is gone, as one that cannot be read.
            Ok(_) if stamp.is_none() && was_needed => self.complain(stamp, "it is not there"),
            Ok(next) => {
                (self.loaded, self.complained) = (stamp, None);
                tracing::info!(keys = next.keys.len(), "the keys have changed");
                self.ring.send_replace(Ring { is_needed: was_needed || next.is_needed, ..next });
            }
            Err(error) => {
                self.complain(stamp, &format!("{:#}", anyhow::Error::from(error)));
                self.ring.send_if_modified(|ring| !std::mem::replace(&mut ring.is_needed, true));
            }
        }
    }

    fn complain(&mut self, stamp: Option<Stamp>, why: &str) {
        if self.complained.replace(stamp) != Some(stamp) {
            let path = self.files.path().display();
            tracing::error!("the file of the keys, {path}, cannot be used, so those stand that were known: {why}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use turnflow_pipeline::Config;
    use turnflow_state::TenantId;

    use super::*;
    use crate::keys::{KeyLimits, NewKey, Scope};

    #[test]
    fn keys_that_name_each_other_as_predecessor_are_followed_to_an_end() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = KeyFiles::new(&Config::defaults().gateway, dir.path()).expect("files");
        let wanted = NewKey {
            tenant: TenantId::new("shop").expect("valid id"),
            scopes: BTreeSet::from([Scope::Chat]),
            name: None,
            expires: None,
            limits: KeyLimits::default(),
        };
        let [first, second] = [0, 1].map(|_| files.create(wanted.clone(), Timestamp::now()).expect("made").1.id);
        let text = fs::read_to_string(files.path()).expect("a file");
        let linked = [(&first, &second), (&second, &first)].iter().fold(text, |text, (id, before)| {
            let link = format!("{{\"predecessor\":\"{before}\",\"id\":\"{id}\"");
            text.replacen(&format!("{{\"id\":\"{id}\""), &link, 1)
        });
        fs::write(files.path(), linked).expect("written");
        let ring = Ring::load(&files, None).expect("usable");
        assert!([&first, &second].contains(&ring.first(&first)), "the search ends");
    }
}
