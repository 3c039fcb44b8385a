//! Blocks: which sequence may use which part of the memory for keys and values, and which parts several share.
//!
//! Contract: a block is held by as many sequences as have [taken](Blocks::take) or [found](Blocks::find) it and not
//! [released](Blocks::release) it. A block that is not published belongs to one sequence alone. One that is published holds
//! exactly the tokens that it was published with, at the places that it was published for, and nobody writes to it; when
//! nobody holds it any more it is kept, and found again, until its place is needed. The least recently used goes first, the
//! end of a sequence before its beginning.
//!
//! A prefix is found by a hash of all tokens up to the end of each of its whole blocks, and verified by the tokens
//! themselves, as in vLLM (Kwon et al. 2023, "Efficient Memory Management for Large Language Model Serving with
//! PagedAttention"). Nothing here knows what is in a block.

use std::collections::{BTreeMap, HashMap};

/// Hash of all tokens up to the end of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Chain([u8; 32]);

impl Chain {
    fn then(self, tokens: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }
}

/// What a published block holds.
#[derive(Debug)]
struct Content {
    before: Chain,
    chain: Chain,
    tokens: Box<[u32]>,
}

#[derive(Debug, Default)]
struct Slot {
    holders: usize,
    content: Option<Content>,
    /// When it was last released; its key among the idle ones.
    released: u64,
}

/// How often prefixes were found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Tokens of prompts that were looked up.
    pub(crate) tokens_asked: u64,
    /// Those of them that were there.
    pub(crate) tokens_found: u64,
    /// Published blocks that had to make room.
    pub(crate) evicted: u64,
}

/// The blocks of a fixed memory.
#[derive(Debug)]
pub(crate) struct Blocks {
    block_tokens: usize,
    sharing: bool,
    slots: Vec<Slot>,
    /// Blocks that hold nothing.
    free: Vec<u32>,
    /// Published blocks that nobody holds, by when they were released.
    idle: BTreeMap<u64, u32>,
    published: HashMap<Chain, u32>,
    releases: u64,
    /// How often all was forgotten.
    forgotten: u64,
    shares: Shares,
}

/// The blocks of one sequence, in order, and how far they are published.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) blocks: Vec<u32>,
    /// Blocks from the start whose chain is known: they are found or published.
    chained: usize,
    chain: Chain,
    /// How often all was forgotten before it began.
    forgotten: u64,
}

impl Table {
    /// Tokens that its found and published blocks hold.
    pub(crate) const fn tokens_chained(&self, block_tokens: usize) -> usize {
        self.chained * block_tokens
    }
}

impl Blocks {
    /// All blocks free.
    ///
    /// # Panics
    /// When there are none, or they hold nothing.
    pub(crate) fn new(blocks: usize, block_tokens: usize, sharing: bool) -> Self {
        assert!(blocks > 0 && block_tokens > 0, "{blocks} blocks of {block_tokens} tokens");
        let count = u32::try_from(blocks).unwrap_or(u32::MAX);
        Self {
            block_tokens,
            sharing,
            slots: (0..count).map(|_| Slot::default()).collect(),
            // The first block is taken first.
            free: (0..count).rev().collect(),
            idle: BTreeMap::new(),
            published: HashMap::new(),
            releases: 0,
            forgotten: 0,
            shares: Shares::default(),
        }
    }

    /// All blocks that there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Blocks that can be taken.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that nobody holds and that are kept because they may be found.
    pub(crate) fn kept(&self) -> usize {
        self.idle.len()
    }

    pub(crate) const fn shares(&self) -> Shares {
        self.shares
    }

    /// Blocks that so many tokens need.
    pub(crate) const fn needed(&self, tokens: usize) -> usize {
        tokens.div_ceil(self.block_tokens)
    }

    /// Counts a prompt whose prefix is looked up.
    pub(crate) fn count(&mut self, asked: usize, found: usize) {
        self.shares.tokens_asked += asked as u64;
        self.shares.tokens_found += found as u64;
    }

    /// Continues a table with the published blocks that hold the next tokens of its sequence, all of which are given; they
    /// take the place of those that it has there. Gives how many were found.
    ///
    /// The last token is never found, because a sequence has to read at least one to go on.
    pub(crate) fn find(&mut self, table: &mut Table, tokens: &[u32]) -> usize {
        if table.blocks.is_empty() {
            table.forgotten = self.forgotten;
        }
        let before = table.chained;
        let whole = tokens.len().saturating_sub(1) / self.block_tokens;
        while self.shares_with(table) && table.chained < whole {
            let own = &tokens[table.chained * self.block_tokens..][..self.block_tokens];
            let chain = table.chain.then(own);
            let Some(block) = self.lookup(table.chain, chain, own) else { break };
            self.share(table, block);
            (table.chained, table.chain) = (table.chained + 1, chain);
        }
        table.chained - before
    }

    /// Whether what a table holds may be shared, and it may hold what others share.
    fn shares_with(&self, table: &Table) -> bool {
        self.sharing && table.forgotten == self.forgotten
    }

    fn lookup(&self, before: Chain, chain: Chain, tokens: &[u32]) -> Option<u32> {
        let &block = self.published.get(&chain)?;
        let content = self.slots[block as usize].content.as_ref()?;
        (content.before == before && *content.tokens == *tokens).then_some(block)
    }

    /// Puts a published block behind the chained ones of a table.
    fn share(&mut self, table: &mut Table, block: u32) {
        self.hold(block);
        match table.blocks.get_mut(table.chained) {
            Some(place) => {
                let unused = std::mem::replace(place, block);
                self.let_go(unused);
            }
            None => table.blocks.push(block),
        }
    }

    /// Appends a block that nobody else has to a table; false when all are held.
    pub(crate) fn take(&mut self, table: &mut Table) -> bool {
        let Some(block) = self.free.pop().or_else(|| self.evict()) else { return false };
        self.slots[block as usize].holders = 1;
        table.blocks.push(block);
        true
    }

    /// Publishes the whole blocks of a table whose tokens, the first `computed` of a sequence, are in them. Where another
    /// sequence was faster, its block takes the place of this one's.
    pub(crate) fn publish(&mut self, table: &mut Table, tokens: &[u32], computed: usize) {
        while self.shares_with(table) && (table.chained + 1) * self.block_tokens <= computed {
            let own = &tokens[table.chained * self.block_tokens..][..self.block_tokens];
            let (before, chain) = (table.chain, table.chain.then(own));
            match self.lookup(before, chain, own) {
                Some(block) => self.share(table, block),
                None => {
                    let block = table.blocks[table.chained];
                    debug_assert_eq!(self.slots[block as usize].holders, 1, "block {block} is nobody else's");
                    self.published.insert(chain, block);
                    self.slots[block as usize].content = Some(Content { before, chain, tokens: own.into() });
                }
            }
            (table.chained, table.chain) = (table.chained + 1, chain);
        }
    }

    /// Forgets what is published, so that none of it is found again: what is in it may be wrong. Whoever holds it keeps it, and
    /// publishes and finds nothing more, because that would rest on it.
    pub(crate) fn forget(&mut self) {
        self.forgotten += 1;
        self.published.clear();
        self.slots.iter_mut().for_each(|slot| slot.content = None);
        self.free.extend(std::mem::take(&mut self.idle).into_values());
    }

    /// Gives back all blocks of a table.
    pub(crate) fn release(&mut self, table: &mut Table) {
        // The end of a sequence is of no use without its beginning, so it makes room first.
        std::mem::take(table).blocks.into_iter().rev().for_each(|block| self.let_go(block));
    }

    fn hold(&mut self, block: u32) {
        let slot = &mut self.slots[block as usize];
        if slot.holders == 0 {
            self.idle.remove(&slot.released);
        }
        slot.holders += 1;
    }

    fn let_go(&mut self, block: u32) {
        let slot = &mut self.slots[block as usize];
        debug_assert!(slot.holders > 0, "block {block} is held by nobody");
        slot.holders -= 1;
        if slot.holders > 0 {
            return;
        }
        if slot.content.is_some() {
            self.releases += 1;
            slot.released = self.releases;
            self.idle.insert(self.releases, block);
        } else {
            self.free.push(block);
        }
    }

    fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        if let Some(content) = self.slots[block as usize].content.take() {
            self.published.remove(&content.chain);
            self.shares.evicted += 1;
        }
        Some(block)
    }
}

#[cfg(test)]
#[path = "blocks_tests.rs"]
mod tests;
