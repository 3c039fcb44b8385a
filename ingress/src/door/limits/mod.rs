//! How much a caller may do: requests and tokens a minute, turns and streams at once, money a day; for each key and for each tenant.
//!
//! What a call needs is taken of all its limits or of none. What it costs is known when it has its answer: at first it is charged an
//! estimate, and the rest when it ends, so that the next one waits for it; what it has not cost comes back. So a limit can be overrun by
//! what is under way, and no further.
//!
//! The state is in memory. It ends with the process, and holds what is not as new, of keys and tenants that have a limit: those that called
//! within the day at most, and there are no more keys than their file may hold.

mod meter;
mod rate;

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use turnflow_pipeline::{CallerLimits, Config, Price};
use turnflow_state::{TenantId, wait_text};

use self::meter::{Meter, Moment};
use crate::keys::{KeyId, KeyLimits};

/// Meters that are kept before those that are as new are looked for.
const METERS_SWEPT_FROM: usize = 1_024;

/// What can be limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Requests,
    Tokens,
    Turns,
    Streams,
    Budget,
}

impl Limit {
    const ALL: [Self; 5] = [Self::Requests, Self::Tokens, Self::Turns, Self::Streams, Self::Budget];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::Turns => "turns",
            Self::Streams => "streams",
            Self::Budget => "budget",
        }
    }
}

/// So much of everything that can be limited; as a quota, 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// In a minute.
    pub(crate) requests: u64,
    /// In a minute.
    pub(crate) tokens: u64,
    /// At once.
    pub(crate) turns: u64,
    /// At once.
    pub(crate) streams: u64,
    /// On a day, in millionths of the currency.
    pub(crate) micros: u64,
}

impl Amounts {
    const fn of(&self, limit: Limit) -> u64 {
        match limit {
            Limit::Requests => self.requests,
            Limit::Tokens => self.tokens,
            Limit::Turns => self.turns,
            Limit::Streams => self.streams,
            Limit::Budget => self.micros,
        }
    }

    /// What a quota limits.
    fn limits(&self) -> impl Iterator<Item = Limit> {
        Limit::ALL.into_iter().filter(|&limit| self.of(limit) > 0)
    }
}

impl From<CallerLimits> for Amounts {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a budget is checked to be a number that is not negative and not too large"
    )]
    fn from(limits: CallerLimits) -> Self {
        let CallerLimits { requests_per_minute, tokens_per_minute, turns_in_flight, streams, budget_per_day } = limits;
        Self {
            requests: requests_per_minute.into(),
            tokens: tokens_per_minute.into(),
            turns: turns_in_flight.into(),
            streams: streams.into(),
            // A budget that is there is not rounded to none.
            micros: (budget_per_day * 1e6).ceil() as u64,
        }
    }
}

/// Whose a limit is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Holder {
    Key(KeyId),
    Tenant(TenantId),
}

impl Holder {
    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Key(_) => "key",
            Self::Tenant(_) => "tenant",
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Key(key) => write!(f, "key {key}"),
            Self::Tenant(tenant) => write!(f, "tenant {tenant}"),
        }
    }
}

/// A limit that keeps a call out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exceeded {
    pub(crate) limit: Limit,
    pub(crate) holder: Holder,
    pub(crate) quota: u64,
    /// When the same call may come in at the soonest, in milliseconds.
    pub(crate) retry_after_ms: u64,
}

impl Exceeded {
    /// What is allowed.
    pub(crate) fn allowed(&self) -> String {
        let quota = self.quota;
        match self.limit {
            Limit::Requests => format!("{quota} requests a minute"),
            Limit::Tokens => format!("{quota} tokens a minute"),
            Limit::Turns => format!("{quota} turns at once"),
            Limit::Streams => format!("{quota} streams at once"),
            #[expect(clippy::cast_precision_loss, reason = "a budget is checked to be below 2^53")]
            Limit::Budget => format!("a budget of {} a day", quota as f64 / 1e6),
        }
    }
}

impl fmt::Display for Exceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (allowed, wait) = (self.allowed(), wait_text(self.retry_after_ms));
        write!(f, "the {} has used what it is allowed, {allowed}; try again in {wait}", self.holder)
    }
}

/// How a limit stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Standing {
    pub(crate) limit: Limit,
    /// What kind of holder: `key` or `tenant`.
    pub(crate) holder: &'static str,
    pub(crate) quota: u64,
    pub(crate) left: u64,
    /// How long until all of it is there again, where time brings it back.
    pub(crate) until_whole: Option<Duration>,
}

/// What keys and tenants may do, and what they have used of it.
#[derive(Debug)]
pub(crate) struct Limiter {
    began: Instant,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    key: CallerLimits,
    tenant: CallerLimits,
    price: Price,
    meters: HashMap<Holder, Meter>,
    /// Meters at which those that are as new are looked for.
    sweep_at: usize,
}

impl Table {
    fn meter(&mut self, holder: &Holder, now: Moment) -> &mut Meter {
        if self.meters.len() >= self.sweep_at.max(METERS_SWEPT_FROM) {
            self.meters.retain(|_, meter| !meter.is_idle(now));
            // So that it costs little for each meter that is made.
            self.sweep_at = 2 * self.meters.len();
        }
        self.meters.entry(holder.clone()).or_default()
    }
}

impl Limiter {
    /// Limits nobody.
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { began: Instant::now(), table: Mutex::default() })
    }

    /// Has the limits of this configuration count from now on.
    pub(crate) fn set(&self, config: &Config) {
        let mut table = self.lock();
        (table.key, table.tenant) = (config.gateway.limits.key, config.gateway.limits.tenant);
        table.price = config.tier.price;
    }

    /// What limits a caller.
    pub(crate) fn account(self: &Arc<Self>, key: Option<(&KeyId, &KeyLimits)>, tenant: &TenantId) -> Account {
        let table = self.lock();
        let of_key = key.map(|(id, own)| (Holder::Key(id.clone()), own.over(table.key).into()));
        let of_tenant = (Holder::Tenant(tenant.clone()), table.tenant.into());
        let holders = of_key.into_iter().chain([of_tenant]);
        let holders = holders.filter(|(_, quota): &(Holder, Amounts)| quota.limits().next().is_some()).collect();
        Account { limiter: Arc::clone(self), holders, price: table.price }
    }

    fn now(&self) -> Moment {
        let utc = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Moment { up: self.began.elapsed(), utc }
    }

    /// A table whose other user panicked between two meters is still a whole table.
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What limits a caller: the limits as they are now, of its key and of its tenant.
#[derive(Clone, Debug)]
pub(crate) struct Account {
    limiter: Arc<Limiter>,
    holders: Vec<(Holder, Amounts)>,
    /// What a token costs before it is known what wrote it.
    price: Price,
}

impl Account {
    /// What tokens cost, as far as that is known beforehand.
    pub(crate) const fn price(&self) -> Price {
        self.price
    }

    /// Takes what a call needs, of all limits or of none.
    pub(crate) fn take(self, need: Amounts) -> Result<Charge, Exceeded> {
        let now = self.limiter.now();
        self.take_at(need, now)
    }

    fn take_at(self, need: Amounts, now: Moment) -> Result<Charge, Exceeded> {
        let mut table = self.limiter.lock();
        let mut longest: Option<(Duration, Exceeded)> = None;
        for (holder, quota) in &self.holders {
            let Some((limit, wait)) = table.meter(holder, now).wait(quota, &need, now) else { continue };
            if longest.as_ref().is_none_or(|(longest, _)| wait > *longest) {
                // Not before its time.
                let retry_after_ms = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
                let exceeded = Exceeded { limit, holder: holder.clone(), quota: quota.of(limit), retry_after_ms };
                longest = Some((wait, exceeded));
            }
        }
        if let Some((_, exceeded)) = longest {
            return Err(exceeded);
        }
        for (holder, quota) in &self.holders {
            table.meter(holder, now).take(quota, &need, now);
        }
        drop(table);
        Ok(Charge(Bill { account: self, taken: need, at: now }))
    }

    /// How all limits stand.
    pub(crate) fn standings(&self) -> Vec<Standing> {
        let now = self.limiter.now();
        let table = self.limiter.lock();
        let mut standings = Vec::new();
        for (holder, quota) in &self.holders {
            let meter = table.meters.get(holder).copied().unwrap_or_default();
            standings.extend(quota.limits().map(|limit| Standing {
                limit,
                holder: holder.kind(),
                quota: quota.of(limit),
                left: meter.left(limit, quota.of(limit), now),
                until_whole: meter.until_whole(limit, now),
            }));
        }
        standings
    }
}

/// What was taken for a call. Dropping it gives its places back, and nothing else.
#[derive(Debug)]
pub(crate) struct Charge(Bill);

/// What a call was charged before it was known what it costs. It outlives the call's places where that is known later.
#[derive(Clone, Debug)]
pub(crate) struct Bill {
    account: Account,
    taken: Amounts,
    at: Moment,
}

impl Charge {
    /// What it is settled with.
    pub(crate) const fn bill(&self) -> &Bill {
        &self.0
    }
}

impl Bill {
    /// Tells, once, what the call has cost in the end, in tokens and in millionths of the currency.
    pub(crate) fn settle(&self, tokens: u64, micros: u64) {
        let now = self.account.limiter.now();
        let cost = Amounts { tokens, micros, ..self.taken };
        let mut table = self.account.limiter.lock();
        for (holder, quota) in &self.account.holders {
            table.meter(holder, now).settle(quota, (&self.taken, self.at), &cost, now);
        }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let Bill { account, taken, .. } = &self.0;
        if taken.turns + taken.streams == 0 {
            return;
        }
        let mut table = account.limiter.lock();
        for (holder, _) in &account.holders {
            table.meters.entry(holder.clone()).or_default().leave(taken);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("valid id")
    }

    fn key(name: &str) -> KeyId {
        name.parse().expect("a name")
    }

    fn limiter(key: CallerLimits, tenant: CallerLimits) -> Arc<Limiter> {
        let limiter = Limiter::new();
        let mut config = Config::defaults();
        (config.gateway.limits.key, config.gateway.limits.tenant) = (key, tenant);
        limiter.set(&config);
        limiter
    }

    fn requests(requests_per_minute: u32) -> CallerLimits {
        CallerLimits { requests_per_minute, ..CallerLimits::default() }
    }

    const fn at(second: u64) -> Moment {
        Moment { up: Duration::from_secs(second), utc: Duration::from_secs(1_000_000 + second) }
    }

    const ONE: Amounts = Amounts { requests: 1, tokens: 0, turns: 0, streams: 0, micros: 0 };

    #[test]
    fn a_tenants_keys_share_its_limits_and_each_has_its_own() {
        let limiter = limiter(requests(2), requests(3));
        let own = KeyLimits { requests_per_minute: Some(0), ..KeyLimits::default() };
        let take = |name: &str, own: &KeyLimits, second: u64| {
            let taken = limiter.account(Some((&key(name), own)), &tenant("t")).take_at(ONE, at(second));
            taken.map(drop).map_err(|exceeded| (exceeded.holder, exceeded.quota, exceeded.retry_after_ms))
        };
        let (a, b) = ("aaaaaaaa", "bbbbbbbb");
        let none = KeyLimits::default();
        assert_eq!([take(a, &none, 0), take(a, &none, 0)], [Ok(()), Ok(())]);
        assert_eq!(take(a, &none, 0), Err((Holder::Key(key(a)), 2, 30_000)));
        assert_eq!(take(b, &own, 0), Ok(()), "a refused call took nothing of the tenant's");
        assert_eq!(take(b, &own, 0), Err((Holder::Tenant(tenant("t")), 3, 20_000)));
        assert_eq!(take(b, &own, 20), Ok(()));
    }

    #[test]
    fn places_are_free_again_when_a_call_ends() {
        let limits = CallerLimits { turns_in_flight: 1, streams: 1, ..CallerLimits::default() };
        let limiter = limiter(limits, CallerLimits::default());
        let take =
            |need: Amounts| limiter.account(Some((&key("aaaaaaaa"), &KeyLimits::default())), &tenant("t")).take(need);
        let turn = Amounts { turns: 1, ..Amounts::default() };
        let held = take(turn).expect("free");
        assert_eq!(take(turn).expect_err("taken").limit, Limit::Turns);
        assert_eq!(take(Amounts { streams: 1, ..turn }).expect_err("taken").limit, Limit::Turns);
        let stream = take(Amounts { streams: 1, ..Amounts::default() }).expect("free: nothing was taken before");
        drop(held);
        assert_eq!(take(Amounts { streams: 1, ..turn }).expect_err("taken").limit, Limit::Streams);
        drop((stream, take(turn).expect("free again")));
    }

    #[test]
    fn meters_that_are_as_new_are_dropped() {
        let limiter = limiter(CallerLimits::default(), requests(60));
        for second in 0..100_000 {
            let account = limiter.account(None, &tenant(&format!("t{second}")));
            account.take_at(ONE, at(second)).expect("its first");
            assert!(limiter.lock().meters.len() <= METERS_SWEPT_FROM);
        }
        let free = super::tests::limiter(CallerLimits::default(), CallerLimits::default());
        free.account(None, &tenant("t")).take(ONE).expect("no limit");
        assert!(free.lock().meters.is_empty(), "who has no limit has no meter");
    }

    #[test]
    fn what_is_exceeded_is_told_in_full() {
        let exceeded = |limit, quota| {
            Exceeded { limit, holder: Holder::Tenant(tenant("shop")), quota, retry_after_ms: 1_500 }.to_string()
        };
        assert_eq!(
            exceeded(Limit::Requests, 60),
            "the tenant shop has used what it is allowed, 60 requests a minute; try again in 1.5 s"
        );
        assert!(exceeded(Limit::Budget, 2_500_000).contains(", a budget of 2.5 a day;"));
    }
}
