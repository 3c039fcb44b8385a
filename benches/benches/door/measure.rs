//! How long calls take: on a schedule, or as many as there can be.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::Client;

/// Longer than this is told as this.
const LONGEST_US: u64 = 60_000_000;

/// What was found.
pub(crate) struct Figures {
    /// Calls per second that were answered.
    pub(crate) rate: f64,
    /// From when a call was due, or was made, to its end.
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Figures {
    fn of(mut times: Vec<Duration>, length: Duration) -> Self {
        let mut histogram = Histogram::<u64>::new_with_max(LONGEST_US, 3).expect("a histogram");
        let answered = times.len();
        times.drain(..).for_each(|time| histogram.saturating_record(time.as_micros() as u64));
        let ms = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        Self { rate: answered as f64 / length.as_secs_f64(), p50_ms: ms(0.5), p99_ms: ms(0.99) }
    }
}

/// Makes a call each time that one is due, whatever became of those before.
pub(crate) async fn open_loop(client: &Client, rate: f64, length: Duration) -> Figures {
    let (client, runtime) = (client.clone(), Handle::current());
    let (sender, mut ended) = mpsc::unbounded_channel(); // bounded by rate and length
    // A thread sleeps more exactly than the runtime's timers, which know milliseconds.
    let schedule = std::thread::spawn(move || {
        let start = Instant::now();
        for number in 0..(rate * length.as_secs_f64()) as u64 {
            let due = start + Duration::from_secs_f64(number as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            let (client, sender) = (client.clone(), sender.clone());
            runtime.spawn(async move {
                client.call().await;
                // The receiver waits for all of them.
                let _ = sender.send(due.elapsed());
            });
        }
        start.elapsed()
    });
    let mut times = Vec::new();
    while let Some(time) = ended.recv().await {
        times.push(time);
    }
    Figures::of(times, schedule.join().expect("no panic"))
}

/// Keeps so many calls under way.
pub(crate) async fn closed_loop(client: &Client, in_flight: usize, length: Duration) -> Figures {
    let end = Instant::now() + length;
    let client = Arc::new(client.clone());
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let client = client.clone();
        callers.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                client.call().await;
                times.push(begun.elapsed());
            }
            times
        });
    }
    Figures::of(callers.join_all().await.into_iter().flatten().collect(), length)
}
