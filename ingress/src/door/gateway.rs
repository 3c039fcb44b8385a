//! Who calls, by the key that comes with a call, and whether the key still counts.
//!
//! The keys are those that [`super::ring`] knows. What is revoked ends within a second, open streams included. As long as there is no key,
//! everybody is one tenant. From the first key on every call needs one, for as long as the server runs.
//!
//! Whatever is wrong with a key, callers hear the same. The log tells what it is, and the name of the key, never its text.

use std::sync::Arc;

use axum::http::{HeaderMap, header};
use jiff::Timestamp;
use tokio::sync::watch;
use turnflow_pipeline::{Config, TlsConfig};
use turnflow_state::TenantId;

use super::limits::{Account, Amounts, Charge, Limiter};
use super::ring::{Ring, follow};
use super::tls::Tls;
use super::{Refusal, TlsError, Traffic};
use crate::keys::{KeyFiles, KeyId, KeysError, Scope, key_id};

/// Where clients of other services put a key.
const OTHER_HEADERS: [&str; 2] = ["api-key", "x-api-key"];

/// Knows who calls, and counts what comes.
#[derive(Clone, Debug)]
pub struct Gateway {
    ring: watch::Receiver<Ring>,
    /// Who calls without a key.
    keyless: TenantId,
    traffic: Traffic,
    limiter: Arc<Limiter>,
    /// What TLS is spoken with, where it is.
    tls: Option<Tls>,
}

/// Who calls.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    pub(crate) tenant: TenantId,
    /// None for everybody, as long as there is no key.
    key: Option<KeyId>,
    ring: watch::Receiver<Ring>,
    limiter: Arc<Limiter>,
}

impl Gateway {
    /// Lets everybody in, as this tenant, and limits nobody yet.
    #[must_use]
    pub fn keyless(tenant: TenantId) -> Self {
        let (traffic, limiter) = (Traffic::default(), Limiter::new());
        Self { ring: watch::channel(Ring::default()).1, keyless: tenant, traffic, limiter, tls: None }
    }

    /// Follows a file of keys until the gateway and its copies are gone. Without any key, everybody is `keyless`. Nobody is limited yet.
    ///
    /// # Errors
    /// When the file is there and cannot be used.
    pub fn open(files: KeyFiles, keyless: TenantId) -> Result<Self, KeysError> {
        Ok(Self { ring: follow(files)?, ..Self::keyless(keyless) })
    }

    /// The same, with TLS spoken on both ports where the configuration says so.
    ///
    /// # Errors
    /// When a file that it names is not what it has to be.
    pub fn with_tls(self, config: &TlsConfig) -> Result<Self, TlsError> {
        Ok(Self { tls: Tls::open(config)?, ..self })
    }

    /// What TLS is spoken with.
    pub(crate) const fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Has the limits of this configuration count from now on, here and in all copies.
    pub fn limit(&self, config: &Config) {
        self.limiter.set(config);
    }

    /// Whether calls need a key.
    #[must_use]
    pub fn needs_key(&self) -> bool {
        self.ring.borrow().is_needed()
    }

    /// What came through the door.
    pub(crate) const fn traffic(&self) -> &Traffic {
        &self.traffic
    }

    /// Who calls, by the headers of a call, when that one may do this.
    pub(crate) fn caller(&self, headers: &HeaderMap, scope: Scope) -> Result<Caller, Refusal> {
        let (ring, text) = (self.ring.borrow(), key_of(headers));
        if !ring.is_needed() {
            return Ok(self.known(self.keyless.clone(), None));
        }
        let record = ring.find(text, Timestamp::now()).map_err(|denied| {
            let key = text.and_then(key_id).map(tracing::field::display);
            tracing::info!(key, "a call was refused: {denied}");
            Refusal::Unauthenticated
        })?;
        if !record.allows(scope) {
            tracing::info!(key = %record.id, "a call was refused: the key has no scope {}", scope.as_str());
            return Err(Refusal::Forbidden { scope: scope.as_str() });
        }
        Ok(self.known(record.tenant.clone(), Some(record.id.clone())))
    }

    fn known(&self, tenant: TenantId, key: Option<KeyId>) -> Caller {
        Caller { tenant, key, ring: self.ring.clone(), limiter: Arc::clone(&self.limiter) }
    }
}

impl Caller {
    /// Whether the caller may still call.
    pub(crate) fn may_call(&self) -> bool {
        self.ring.borrow().denies(self.key.as_ref(), Timestamp::now()).is_none()
    }

    /// Resolves when the caller may call no more, and never as long as it may. Cancel-safe.
    pub(crate) async fn ended(&self) {
        let mut ring = self.ring.clone();
        let has_ended = ring.wait_for(|ring| ring.denies(self.key.as_ref(), Timestamp::now()).is_some()).await.is_ok();
        if !has_ended {
            // Nobody follows any keys.
            return std::future::pending().await;
        }
        tracing::info!(key = self.key.as_ref().map(tracing::field::display), "a call ends with its key");
    }

    /// Whether it may still call, for this too.
    pub(crate) fn may(&self, scope: Scope) -> bool {
        let ring = self.ring.borrow();
        let allows = |id: &KeyId| ring.get(id).is_some_and(|record| record.allows(scope));
        ring.denies(self.key.as_ref(), Timestamp::now()).is_none() && self.key.as_ref().is_none_or(allows)
    }

    /// Whether it may still call.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let Some(denied) = self.ring.borrow().denies(self.key.as_ref(), Timestamp::now()) else { return Ok(()) };
        tracing::info!(key = self.key.as_ref().map(tracing::field::display), "a call was refused: {denied}");
        Err(Refusal::Unauthenticated)
    }

    /// What limits it: what its key allows now, and its tenant.
    pub(crate) fn account(&self) -> Account {
        let ring = self.ring.borrow();
        let record = self.key.as_ref().and_then(|id| ring.get(id));
        self.limiter.account(record.map(|record| (ring.first(&record.id), &record.limits)), &self.tenant)
    }

    /// Takes what a call needs of what the caller may do.
    pub(crate) fn take(&self, need: Amounts) -> Result<Charge, Refusal> {
        Ok(self.account().take(need)?)
    }

    /// Counts a request.
    pub(crate) fn request(&self) -> Result<(), Refusal> {
        self.take(Amounts { requests: 1, ..Amounts::default() }).map(drop)
    }
}

/// The text of the key that comes with a call.
fn key_of(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then_some(key.trim());
    }
    OTHER_HEADERS.into_iter().find_map(|name| headers.get(name))?.to_str().ok().map(str::trim)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::door::ring::Follower;
    use crate::keys::{Key, KeyLimits, NewKey};

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid id")
    }

    fn files(dir: &Path) -> KeyFiles {
        KeyFiles::new(&Config::defaults().gateway, dir).expect("files")
    }

    fn create(files: &KeyFiles, scope: Scope, expires: Option<Timestamp>) -> (Key, KeyId) {
        let wanted = NewKey {
            tenant: tenant("shop"),
            scopes: BTreeSet::from([scope]),
            name: None,
            expires,
            limits: KeyLimits::default(),
        };
        let (key, record) = files.create(wanted, Timestamp::now()).expect("made");
        (key, record.id)
    }

    /// A ring that is followed by hand.
    struct Followed {
        gateway: Gateway,
        follower: Follower,
    }

    impl Followed {
        fn start(files: &KeyFiles) -> Self {
            let (follower, ring) = Follower::new(files.clone()).expect("usable");
            Self { gateway: Gateway { ring, ..Gateway::keyless(tenant("anybody")) }, follower }
        }

        fn look(&mut self) {
            self.follower.look(Timestamp::now());
        }

        fn call(&self, key: Option<&str>, scope: Scope) -> Result<Caller, Refusal> {
            let headers = key.map(|key| (header::AUTHORIZATION, format!("Bearer {key}").parse().expect("a header")));
            self.gateway.caller(&headers.into_iter().collect(), scope)
        }
    }

    #[test]
    fn a_key_comes_in_one_of_three_headers() {
        let check = |name: &'static str, value: &str, expected: Option<&str>| {
            let headers = HeaderMap::from_iter([(name.parse().expect("a name"), value.parse().expect("a header"))]);
            assert_eq!(key_of(&headers), expected, "{name}: {value}");
        };
        check("authorization", "Bearer k", Some("k"));
        check("authorization", "bearer  k ", Some("k"));
        check("authorization", "Basic k", None);
        check("authorization", "k", None);
        check("api-key", "k", Some("k"));
        check("x-api-key", "k", Some("k"));
        check("x-key", "k", None);
    }

    #[test]
    fn from_the_first_key_on_every_call_needs_one_that_counts() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let mut followed = Followed::start(&files);
        assert_eq!(followed.call(None, Scope::Admin).expect("no key is needed").tenant, tenant("anybody"));
        let (key, id) = create(&files, Scope::Kb, None);
        followed.look();
        let denied = |key: Option<&str>| followed.call(key, Scope::Kb).err() == Some(Refusal::Unauthenticated);
        assert_eq!(followed.call(Some(key.reveal()), Scope::Kb).expect("a key").tenant, tenant("shop"));
        let forbidden = followed.call(Some(key.reveal()), Scope::Chat).expect_err("another scope");
        assert_eq!(forbidden, Refusal::Forbidden { scope: "chat" });
        assert!(denied(None) && denied(Some("")) && denied(Some("none")));
        assert!(denied(Some(&format!("{}x", key.reveal()))) && denied(Some(&format!("tf_{id}_"))));

        let caller = followed.call(Some(key.reveal()), Scope::Kb).expect("a key");
        assert_eq!(caller.check(), Ok(()));
        let (admin, _) = create(&files, Scope::Admin, None);
        files.revoke(&id, Timestamp::now()).expect("revoked");
        followed.look();
        let admin = followed.call(Some(admin.reveal()), Scope::Chat).expect("an admin may do everything of its tenant");
        assert!(admin.may(Scope::Admin) && !admin.may(Scope::Operator));
        let (operator, _) = create(&files, Scope::Operator, None);
        followed.look();
        assert!(followed.call(Some(operator.reveal()), Scope::Operator).is_ok());
        for of_tenant in [Scope::Chat, Scope::Kb, Scope::Admin] {
            assert!(followed.call(Some(operator.reveal()), of_tenant).is_err(), "{of_tenant:?}");
        }
        assert!(followed.call(Some(key.reveal()), Scope::Kb).is_err());
        assert_eq!(caller.check(), Err(Refusal::Unauthenticated), "nor may who was let in before");
    }

    #[test]
    fn a_file_that_cannot_be_used_leaves_the_keys_and_opens_no_door() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let mut followed = Followed::start(&files);
        std::fs::write(files.path(), "broken\n").expect("written");
        followed.look();
        assert!(followed.call(None, Scope::Chat).is_err(), "somebody meant to have keys");
        std::fs::remove_file(files.path()).expect("removed");
        let (key, _) = create(&files, Scope::Chat, None);
        followed.look();
        let good = std::fs::read(files.path()).expect("a file");
        for text in ["broken\n", "{}\n"] {
            std::fs::write(files.path(), text).expect("written");
            followed.look();
            assert!(followed.call(Some(key.reveal()), Scope::Chat).is_ok(), "{text}");
        }
        std::fs::remove_file(files.path()).expect("removed");
        followed.look();
        assert!(followed.call(Some(key.reveal()), Scope::Chat).is_ok(), "a file that is gone");
        std::fs::write(files.path(), "").expect("written");
        followed.look();
        assert!(followed.call(Some(key.reveal()), Scope::Chat).is_err(), "there are no keys any more");
        assert!(followed.call(None, Scope::Chat).is_err(), "one is needed all the same");
        std::fs::write(files.path(), good).expect("written");
        followed.look();
        assert!(followed.call(Some(key.reveal()), Scope::Chat).is_ok());

        std::fs::write(files.path(), "broken\n").expect("written");
        assert!(Gateway::open(files.clone(), tenant("anybody")).is_err(), "no server starts with it");
        std::fs::remove_file(files.path()).expect("removed");
        let error =
            Gateway::open(files, tenant("anybody")).expect_err("nor without the keys that there were").to_string();
        assert!(error.starts_with("there were keys, as "), "{error}");
    }

    #[test]
    fn a_revocation_is_seen_without_the_pepper() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let (key, id) = create(&files, Scope::Chat, None);
        let mut followed = Followed::start(&files);
        std::fs::write(dir.path().join("keys.pepper"), "x".repeat(32)).expect("written");
        let error = Gateway::open(files.clone(), tenant("anybody")).expect_err("no server starts with it").to_string();
        assert!(error.contains(&format!("key {id} was hashed with another secret")), "{error}");
        std::fs::remove_file(dir.path().join("keys.pepper")).expect("removed");
        files.revoke(&id, Timestamp::now()).expect("revoked");
        followed.look();
        assert!(followed.call(Some(key.reveal()), Scope::Chat).is_err());
    }

    #[test]
    fn a_key_that_takes_the_place_of_another_goes_on_with_what_is_left_of_its_limits() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let (key, id) = create(&files, Scope::Chat, None);
        let mut followed = Followed::start(&files);
        let mut config = Config::defaults();
        config.gateway.limits.key.requests_per_minute = 3;
        followed.gateway.limit(&config);
        let request = |followed: &Followed, key: &Key| {
            followed.call(Some(key.reveal()), Scope::Chat).expect("it counts").request().is_ok()
        };
        assert!(request(&followed, &key));
        let rotate =
            |id: &KeyId| files.rotate(id, jiff::SignedDuration::from_hours(1), Timestamp::now()).expect("rotated");
        let (second, record) = rotate(&id);
        let ((third, _), (sibling, _)) = (rotate(&record.id), rotate(&id));
        followed.look();
        assert!(request(&followed, &third) && request(&followed, &sibling));
        let spent = [&key, &second, &third, &sibling].map(|key| request(&followed, key));
        assert_eq!(spent, [false; 4], "four of them share three");
        let (other, _) = create(&files, Scope::Chat, None);
        followed.look();
        assert!(request(&followed, &other));
    }

    #[tokio::test]
    async fn a_caller_ends_with_its_key() {
        let dir = tempfile::tempdir().expect("a folder");
        let files = files(dir.path());
        let mut followed = Followed::start(&files);
        let anybody = followed.call(None, Scope::Chat).expect("no key is needed");
        let soon = Timestamp::now() + Duration::from_secs(3);
        let ((short, _), (long, id)) = (create(&files, Scope::Chat, Some(soon)), create(&files, Scope::Chat, None));
        followed.look();
        anybody.ended().await;
        let [short, long] = [short, long].map(|key| followed.call(Some(key.reveal()), Scope::Chat).expect("a key"));
        let looking = async {
            loop {
                tokio::time::sleep(Duration::from_millis(20)).await;
                followed.look();
            }
        };
        tokio::select! {
            () = looking => {}
            () = long.ended() => panic!("it has no end"),
            () = short.ended() => assert!(Timestamp::now() >= soon),
        }
        files.revoke(&id, Timestamp::now()).expect("revoked");
        followed.look();
        long.ended().await;
    }
}
