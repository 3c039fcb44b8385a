//! Blocks against a plain model: a memory that knows of each block which tokens were written to it.

use proptest::prelude::*;

use super::*;

const BLOCK_TOKENS: usize = 2;
const BLOCKS: usize = 7;

#[derive(Clone, Debug)]
enum Step {
    /// A sequence begins with these tokens.
    Begin(Vec<u32>),
    /// One of them reads so many more.
    Read(usize, usize),
    /// One of them looks again for what others have read meanwhile.
    Adopt(usize),
    /// One of them ends.
    End(usize),
    /// What is published is forgotten.
    Forget,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // Two different tokens, so that prefixes meet often.
    let tokens = proptest::collection::vec(0..2_u32, 1..10);
    let step = prop_oneof![
        tokens.prop_map(Step::Begin),
        (any::<usize>(), 1..5_usize).prop_map(|(who, count)| Step::Read(who, count)),
        any::<usize>().prop_map(Step::Adopt),
        any::<usize>().prop_map(Step::End),
        Just(Step::Forget),
    ];
    proptest::collection::vec(step, 1..120)
}

struct Sequence {
    tokens: Vec<u32>,
    read: usize,
    table: Table,
}

/// What stands in memory: for each token of a block, all the tokens of its sequence up to it.
type Memory = Vec<[Vec<u32>; BLOCK_TOKENS]>;

struct Model {
    blocks: Blocks,
    memory: Memory,
    sequences: Vec<Sequence>,
}

impl Model {
    fn new(sharing: bool) -> Self {
        let memory = vec![Default::default(); BLOCKS];
        Self { blocks: Blocks::new(BLOCKS, BLOCK_TOKENS, sharing), memory, sequences: Vec::new() }
    }

    fn apply(&mut self, step: Step) {
        let who = |who: usize, of: usize| (of > 0).then(|| who % of);
        match step {
            Step::Begin(tokens) => {
                let mut table = Table::default();
                let found = self.blocks.find(&mut table, &tokens);
                self.sequences.push(Sequence { tokens, read: found * BLOCK_TOKENS, table });
            }
            Step::Read(index, count) => {
                let Some(index) = who(index, self.sequences.len()) else { return };
                self.read(index, count);
            }
            Step::Adopt(index) => {
                let Some(index) = who(index, self.sequences.len()) else { return };
                let sequence = &mut self.sequences[index];
                if sequence.read.is_multiple_of(BLOCK_TOKENS)
                    && sequence.read == sequence.table.tokens_chained(BLOCK_TOKENS)
                {
                    sequence.read += BLOCK_TOKENS * self.blocks.find(&mut sequence.table, &sequence.tokens);
                }
            }
            Step::End(index) => {
                let Some(index) = who(index, self.sequences.len()) else { return };
                let mut sequence = self.sequences.swap_remove(index);
                self.blocks.release(&mut sequence.table);
            }
            Step::Forget => {
                self.blocks.forget();
                assert_eq!((self.blocks.kept(), self.blocks.published.len()), (0, 0));
            }
        }
    }

    fn read(&mut self, index: usize, count: usize) {
        let sequence = &mut self.sequences[index];
        let until = (sequence.read + count).min(sequence.tokens.len());
        while sequence.table.blocks.len() < self.blocks.needed(until) {
            let available = self.blocks.available();
            let taken = self.blocks.take(&mut sequence.table);
            assert_eq!(taken, available > 0, "a block is there when one is available");
            if !taken {
                return;
            }
        }
        for place in 0..until {
            let slot = &mut self.memory[sequence.table.blocks[place / BLOCK_TOKENS] as usize][place % BLOCK_TOKENS];
            if place < sequence.read {
                assert_eq!(*slot, sequence.tokens[..=place], "what was read before is still there");
            } else {
                *slot = sequence.tokens[..=place].to_vec();
            }
        }
        sequence.read = until;
        self.blocks.publish(&mut sequence.table, &sequence.tokens, until);
    }

    fn check(&self, sharing: bool) {
        let blocks = &self.blocks;
        let mut holders = [0; BLOCKS];
        for sequence in &self.sequences {
            for (place, &block) in sequence.table.blocks.iter().enumerate() {
                holders[block as usize] += 1;
                let whole = (place + 1) * BLOCK_TOKENS <= sequence.read;
                assert!(whole || blocks.slots[block as usize].holders == 1, "what is written to has one holder");
            }
        }
        for (block, slot) in blocks.slots.iter().enumerate() {
            assert_eq!(slot.holders, holders[block], "holders of block {block}");
        }
        let held = holders.iter().filter(|&&count| count > 0).count();
        assert_eq!(held + blocks.available(), BLOCKS, "no block is lost");
        let mut unheld: Vec<u32> = blocks.free.iter().chain(blocks.idle.values()).copied().collect();
        unheld.sort_unstable();
        unheld.dedup();
        assert_eq!(unheld.len(), blocks.available(), "no block is there twice");
        assert!(unheld.iter().all(|&block| holders[block as usize] == 0), "what is held is not given out");
        assert!(sharing || blocks.published.is_empty());
        let contents = blocks.slots.iter().filter(|slot| slot.content.is_some()).count();
        assert_eq!(contents, blocks.published.len());
        for (chain, &block) in &blocks.published {
            let content = blocks.slots[block as usize].content.as_ref().expect("published");
            assert_eq!(content.chain, *chain);
            let is_reachable = content.before == Chain::default() || blocks.published.contains_key(&content.before);
            assert!(is_reachable, "the beginning of what is kept is kept");
        }
    }
}

proptest! {
    #[test]
    fn no_block_is_lost_given_twice_or_overwritten(steps in steps(), sharing: bool) {
        let mut model = Model::new(sharing);
        for step in steps {
            model.apply(step);
            model.check(sharing);
        }
        (0..model.sequences.len()).for_each(|_| model.apply(Step::End(0)));
        model.check(sharing);
        prop_assert_eq!(model.blocks.available(), BLOCKS);
    }
}

#[test]
fn a_prefix_is_found_until_its_place_is_needed() {
    let mut model = Model::new(true);
    let prefix = vec![1, 2, 3, 4, 5];
    model.apply(Step::Begin(prefix.clone()));
    model.apply(Step::Read(0, 5));
    model.apply(Step::End(0));
    assert_eq!((model.blocks.available(), model.blocks.kept()), (BLOCKS, 2), "the half block is not kept");
    for (tokens, found) in
        [(vec![1, 2, 3, 4, 9], 4), (vec![1, 2, 3, 4], 2), (vec![1, 2, 9, 4, 5], 2), (vec![2, 1, 3], 0)]
    {
        model.apply(Step::Begin(tokens));
        assert_eq!(model.sequences[0].read, found);
        model.apply(Step::End(0));
    }
    // Six blocks of others leave room for one of the prefix: its beginning.
    model.apply(Step::Begin((10..22).collect()));
    model.apply(Step::Read(0, 12));
    model.apply(Step::Begin(prefix));
    assert_eq!((model.sequences[1].read, model.blocks.shares().evicted), (2, 1));
    model.check(true);
}

#[test]
fn two_that_read_the_same_at_once_share_from_where_one_waited() {
    let mut model = Model::new(true);
    for _ in 0..2 {
        model.apply(Step::Begin(vec![1, 2, 3, 4, 5]));
    }
    model.apply(Step::Read(0, 5));
    model.apply(Step::Read(1, 2));
    assert_eq!(model.sequences[0].table.blocks[0], model.sequences[1].table.blocks[0], "what both read is kept once");
    model.apply(Step::Adopt(1));
    assert_eq!(model.sequences[1].read, 4);
    assert_eq!(model.sequences[0].table.blocks[1], model.sequences[1].table.blocks[1]);
    model.check(true);
}
