//! Accounts: what each tenant's turns consumed and cost since the process began.
//!
//! All workers share them behind a lock that is held for one addition, or while they are copied. They end with the process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use turnflow_state::{Completion, TenantId};

/// Most tenants with an account of their own; what others spend goes to one account for all of them.
pub const ACCOUNTS_MAX: usize = 65_536;

/// What turns consumed and cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// Turns that were answered.
    pub turns: u64,
    /// Those of them that a cache answered.
    pub hits: u64,
    /// Tokens that tiers read for them.
    pub input_tokens: u64,
    /// Tokens that tiers wrote for them.
    pub output_tokens: u64,
    /// What that cost, in millionths of the configured currency.
    pub cost_micros: u64,
    /// What the same tokens would have cost by the large tier alone.
    pub large_cost_micros: u64,
    /// What it cost to answer anew and to audit, in the background.
    pub background_cost_micros: u64,
}

/// The accounts of all tenants; clones share them.
#[derive(Clone, Debug, Default)]
pub struct Accounts(Arc<Mutex<HashMap<Option<TenantId>, Account>>>);

impl Accounts {
    /// Books an answered turn.
    pub(crate) fn book(&self, tenant: &TenantId, completion: &Completion) {
        self.with(tenant, |account| {
            account.turns += 1;
            account.hits += u64::from(completion.verdict.level.is_hit());
            account.input_tokens += u64::from(completion.usage.input_tokens);
            account.output_tokens += u64::from(completion.usage.output_tokens);
            account.cost_micros += completion.cost_micros;
            account.large_cost_micros += completion.large_cost_micros;
        });
    }

    /// Books what was spent in the background.
    pub(crate) fn book_background(&self, tenant: &TenantId, cost_micros: u64) {
        self.with(tenant, |account| account.background_cost_micros += cost_micros);
    }

    /// The accounts now, in the order of their tenants; None stands for the tenants beyond [`ACCOUNTS_MAX`].
    #[must_use]
    pub fn read(&self) -> Vec<(Option<TenantId>, Account)> {
        let mut accounts: Vec<_> = self.lock().iter().map(|(tenant, account)| (tenant.clone(), *account)).collect();
        accounts.sort_by(|(a, _), (b, _)| a.cmp(b));
        accounts
    }

    fn with(&self, tenant: &TenantId, book: impl FnOnce(&mut Account)) {
        let mut accounts = self.lock();
        let name = Some(tenant.clone());
        let has_room = accounts.len() < ACCOUNTS_MAX || accounts.contains_key(&name);
        book(accounts.entry(name.filter(|_| has_room)).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Option<TenantId>, Account>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use turnflow_state::{CacheLevel, StageLatencies, Tier, Usage, Verdict};

    use super::*;

    fn tenant(name: &str) -> TenantId {
        TenantId::new(name).expect("an id")
    }

    /// A turn that was answered at this level.
    fn completion(level: CacheLevel) -> Completion {
        let is_hit = level.is_hit();
        let verdict = Verdict {
            level,
            entry: None,
            similarity: None,
            question: None,
            origin: None,
            refreshed: false,
            age_ms: None,
            reason: String::new(),
            evidence: None,
            route: None,
        };
        Completion {
            text: String::new(),
            tier: Tier::Extractive,
            grounded: true,
            sources: Vec::new(),
            usage: if is_hit { Usage::default() } else { Usage { input_tokens: 100, output_tokens: 10 } },
            cost_micros: if is_hit { 0 } else { 7 },
            large_cost_micros: if is_hit { 0 } else { 70 },
            verdict,
            latency: StageLatencies::default(),
            total_us: 0,
        }
    }

    #[test]
    fn each_tenant_has_an_account_that_clones_share() {
        let accounts = Accounts::default();
        let clone = accounts.clone();
        for level in [CacheLevel::Miss, CacheLevel::Exact, CacheLevel::Bypass] {
            clone.book(&tenant("b"), &completion(level));
        }
        accounts.book_background(&tenant("b"), 5);
        accounts.book(&tenant("a"), &completion(CacheLevel::Semantic));
        let a = Account { turns: 1, hits: 1, ..Account::default() };
        let b = Account {
            turns: 3,
            hits: 1,
            input_tokens: 200,
            output_tokens: 20,
            cost_micros: 14,
            large_cost_micros: 140,
            background_cost_micros: 5,
        };
        assert_eq!(accounts.read(), [(Some(tenant("a")), a), (Some(tenant("b")), b)], "in the order of their names");
    }

    #[test]
    fn tenants_beyond_the_most_share_one_account() {
        let accounts = Accounts::default();
        for number in 0..ACCOUNTS_MAX + 2 {
            accounts.book_background(&tenant(&format!("t{number}")), 1);
        }
        // Who has an account keeps it.
        accounts.book_background(&tenant("t0"), 1);
        let read = accounts.read();
        assert_eq!(read.len(), ACCOUNTS_MAX + 1);
        assert_eq!((&read[0].0, read[0].1.background_cost_micros), (&None, 2));
        assert_eq!(
            read.iter().find(|(name, _)| *name == Some(tenant("t0"))).map(|(_, of)| of.background_cost_micros),
            Some(2)
        );
    }
}
