//! The engine with a model that does arithmetic on ids, panics on demand, and waits at a gate.

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

use super::*;
use crate::tokenizer::testing::tiny;

/// A vector is the text's number of word pieces. Waits for the gate before each pass, panics where `[UNK]` leads a text.
pub(crate) struct Counting {
    tokenizer: TextTokenizer,
    gate: Receiver<()>,
    passes: Sender<Vec<usize>>,
}

const UNKNOWN: u32 = 1;

impl BatchModel for Counting {
    fn tokenizer(&self) -> &TextTokenizer {
        &self.tokenizer
    }

    fn dimension(&self) -> usize {
        1
    }

    fn forward(&self, rows: &[&[u32]]) -> Result<Vec<Arc<[f32]>>, ModelError> {
        self.passes.send(rows.iter().map(|row| row.len()).collect()).expect("the test listens");
        let _open = self.gate.recv();
        assert!(rows.iter().all(|row| row[1] != UNKNOWN), "unknown word");
        Ok(rows.iter().map(|row| Arc::from([row.len() as f32])).collect())
    }
}

/// A handle, the gate (drop it to open) and the sizes of the passes.
fn counting(config: &EncoderConfig) -> (EncoderHandle, Sender<()>, Receiver<Vec<usize>>) {
    remembering(config, 0)
}

fn remembering(config: &EncoderConfig, memo_bytes: usize) -> (EncoderHandle, Sender<()>, Receiver<Vec<usize>>) {
    let (open, gate) = bounded(0);
    let (passes, seen) = unbounded();
    let handle =
        start(Counting { tokenizer: tiny(), gate, passes }, Default::default(), config, memo_bytes).expect("a thread");
    (handle, open, seen)
}

type Outcome = Result<Vec<f32>, String>;

fn submit(handle: &EncoderHandle, texts: &[&str]) -> Result<Receiver<Outcome>, Rejected<EncodeJob>> {
    let (sender, receiver) = unbounded();
    let done: EncodeDone = Box::new(move |result| {
        let outcome = result.map(|vectors| vectors.iter().map(|vector| vector[0]).collect());
        sender.send(outcome.map_err(|error| error.to_string())).expect("the test listens");
    });
    handle
        .submit(Lane::New, InputType::Query, texts.iter().map(|text| (*text).to_owned()).collect(), done)
        .map(|()| receiver)
}

fn outcome(receiver: &Receiver<Outcome>) -> Outcome {
    let mut all: Vec<Outcome> = receiver.iter().collect();
    assert_eq!(all.len(), 1, "done is called exactly once");
    all.remove(0)
}

#[test]
fn what_waits_travels_together() {
    let (handle, open, passes) = counting(&EncoderConfig::default());
    let first = submit(&handle, &["known"]).expect("free");
    assert_eq!(passes.recv().expect("alone when idle"), [3]);
    let waiting = [&["known known"][..], &["", "known known known"], &["known"]]
        .map(|texts| submit(&handle, texts).expect("free"));
    assert_eq!(handle.queued(), 3);
    drop(open);
    assert_eq!(outcome(&first), Ok(vec![3.0]));
    let results = waiting.map(|receiver| outcome(&receiver));
    assert_eq!(results, [Ok(vec![4.0]), Ok(vec![2.0, 5.0]), Ok(vec![3.0])]);
    assert_eq!(passes.recv().expect("one pass for all"), [2, 3, 4, 5]);
    let stats = handle.stats();
    assert_eq!((stats.batches, stats.texts, stats.tokens, stats.failed_batches), (2, 5, 17, 0));
    assert_eq!(stats.batch_sizes[..4], [1, 0, 1, 0]);
}

#[test]
fn a_pass_keeps_to_the_budget() {
    let config = EncoderConfig { queue_max: 64, batch_tokens_max: 6, batch_texts_max: 4, ..EncoderConfig::default() };
    let (handle, open, passes) = counting(&config);
    drop(open);
    let texts = ["known", "", "known known known known known", "known"];
    assert_eq!(outcome(&submit(&handle, &texts).expect("free")), Ok(vec![3.0, 2.0, 7.0, 3.0]));
    let passes: Vec<_> = passes.try_iter().collect();
    assert_eq!(passes, [vec![2, 3], vec![3], vec![7]]);
}

#[test]
fn what_is_remembered_is_not_encoded_again() {
    let (handle, open, passes) = remembering(&EncoderConfig::default(), 1 << 20);
    drop(open);
    let ask = |texts: &[&str]| outcome(&submit(&handle, texts).expect("free"));
    assert_eq!(ask(&["known", "known known"]), Ok(vec![3.0, 4.0]));
    // Each in its place: the second text is the only new one.
    assert_eq!(ask(&["known known", "", "known"]), Ok(vec![4.0, 2.0, 3.0]));
    assert_eq!(ask(&["", "known"]), Ok(vec![2.0, 3.0]));
    assert_eq!(passes.try_iter().collect::<Vec<_>>(), [vec![3, 4], vec![2]]);
    assert_eq!(handle.stats().texts, 3);
    // A text that failed is tried again.
    for _ in 0..2 {
        assert!(ask(&["what"]).is_err());
    }
    assert_eq!(passes.try_iter().count(), 2);
}

#[test]
fn a_panic_fails_its_batch_only() {
    let config = EncoderConfig { queue_max: 64, batch_tokens_max: 100, batch_texts_max: 1, ..EncoderConfig::default() };
    let (handle, open, _passes) = counting(&config);
    drop(open);
    let bad = submit(&handle, &["known", "what"]).expect("free");
    let good = submit(&handle, &["known"]).expect("free");
    assert_eq!(outcome(&bad), Err("panic in the encoder: unknown word".to_owned()));
    assert_eq!(outcome(&good), Ok(vec![3.0]));
    assert_eq!(handle.stats().failed_batches, 1);
}

#[test]
fn a_full_queue_gives_the_job_back() {
    let config = EncoderConfig { queue_max: 2, ..EncoderConfig::default() };
    let (handle, open, passes) = counting(&config);
    let first = submit(&handle, &["known"]).expect("free");
    passes.recv().expect("under way");
    let waiting = ["known", "known"].map(|text| submit(&handle, &[text]).expect("free"));
    let rejected = submit(&handle, &["back"]).expect_err("full");
    assert_eq!(rejected.job.texts, ["back"]);
    assert_eq!(rejected.to_string(), "the queue of encoder is full: 2 jobs wait");
    let many = vec!["x"; JOB_TEXTS_MAX + 1];
    assert!(matches!(submit(&handle, &many).expect_err("too many").error, ModelError::TooManyTexts { .. }));
    // What was taken is served, although the last handle is gone.
    drop((handle, open));
    for receiver in [first].iter().chain(&waiting) {
        assert_eq!(outcome(receiver), Ok(vec![3.0]));
    }
}

#[test]
fn the_last_handle_ends_the_thread() {
    let (handle, _open, passes) = counting(&EncoderConfig::default());
    let clone = handle.clone();
    drop(handle);
    assert_eq!(clone.encode_blocking(InputType::Query, vec![]).expect("nothing to do").len(), 0);
    drop(clone);
    // The model is dropped with its thread, and with it the sender.
    assert!(passes.recv().is_err());
}

#[test]
fn blocking_goes_batch_by_batch() {
    let config = EncoderConfig { queue_max: 1, batch_tokens_max: 100, batch_texts_max: 2, ..EncoderConfig::default() };
    let (handle, open, passes) = counting(&config);
    drop(open);
    let texts = ["", "known", "", "known known", ""].map(str::to_owned).to_vec();
    let vectors = handle.encode_blocking(InputType::Query, texts).expect("encodes");
    assert_eq!(vectors.iter().map(|vector| vector[0]).collect::<Vec<_>>(), [2.0, 3.0, 2.0, 4.0, 2.0]);
    assert_eq!(passes.try_iter().map(|pass| pass.len()).collect::<Vec<_>>(), [2, 2, 1]);
    assert_eq!(outcome(&submit(&handle, &[]).expect("free")), Ok(vec![]));
    let error = handle.encode_blocking(InputType::Query, vec!["what".to_owned()]).expect_err("panics");
    assert!(matches!(*error, ModelError::Panicked { .. }));
}

#[test]
fn size_classes_by_table() {
    let classes = [0, 1, 2, 3, 4, 5, 8, 9, 64, 65, 128, 129, 5_000].map(size_class);
    assert_eq!(classes, [0, 0, 1, 2, 2, 3, 3, 4, 6, 7, 7, 8, 8]);
}
