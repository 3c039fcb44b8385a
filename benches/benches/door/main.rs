//! What the front door costs: answers from the exact cache over gRPC and HTTP, beside a bare echo on tonic and on axum, and how
//! those who ask fare beside many who do not.
//!
//! ```text
//! cargo bench -p turnflow-benches --bench door [-- SECONDS]
//! ```
//!
//! The server and the echo are processes of their own, so that memory is theirs alone; the echo answers every call with what
//! Turnflow answered, and looks at nothing. Calls carry a key, and the server has limits that they never reach. Each figure is taken
//! twice, one after the other: at a rate, on a schedule that waits for nothing, from when a call was due; and as many as there can be, with a
//! fixed number under way. "Refused" is a turn without a text, which passes the key, the limits and the checks, and nothing behind
//! them.
//!
//! Then: memory and the times of those who ask at 100 a second beside 10,000 streams on which nothing happens, and beside 1,000
//! readers that do not read their answers.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "its output is its result")]

mod child;
mod client;
mod crowd;
mod measure;

use std::time::Duration;

use self::child::{Child, Role};
use self::client::{Call, Client};
use self::measure::{Figures, closed_loop, open_loop};

/// Calls per second.
const RATES: [f64; 2] = [100.0, 1_000.0];
/// Calls under way, where as many are made as there can be.
const IN_FLIGHT: usize = 64;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let Some(role) = args.first().and_then(|arg| Role::named(arg)) {
        return child::run(role);
    }
    // Cargo passes `--bench`.
    let seconds = args.iter().find_map(|arg| arg.parse().ok()).unwrap_or(10.0);
    let length = Duration::from_secs_f64(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let (on_disk, in_memory) = (Child::start(Role::OnDisk), Child::start(Role::InMemory));
        let over_grpc = Client::connect(&in_memory, Call::Grpc).await.call().await;
        let over_http = Client::connect(&in_memory, Call::Http).await.call().await;
        let echo = Child::start_with(Role::Echo, &over_grpc.beside(over_http));
        println!("{:<34}  {:>12}  {:>9}  {:>9}  {:>9}", "", "calls/s", "p50 ms", "p99 ms", "x echo");
        for call in [Call::Grpc, Call::Http] {
            compare(call, &echo, &on_disk, &in_memory, length).await;
        }
        drop((on_disk, echo));
        crowd::measure(in_memory, length).await;
    });
}

/// One kind of call, to the echo and to the servers.
async fn compare(call: Call, echo: &Child, on_disk: &Child, in_memory: &Child, length: Duration) {
    let name = call.name();
    let subjects = [
        (format!("{name}: echo"), echo, call),
        (format!("{name}: exact hit, store in memory"), in_memory, call),
        (format!("{name}: exact hit, store on disk"), on_disk, call),
        (format!("{name}: refused"), in_memory, call.refused()),
    ];
    for rate in RATES {
        for (name, child, call) in &subjects {
            let client = Client::connect(child, *call).await;
            print(name, &open_loop(&client, rate, length).await, None);
        }
    }
    let mut of_echo = None;
    for (name, child, call) in &subjects {
        let client = Client::connect(child, *call).await;
        let figures = closed_loop(&client, IN_FLIGHT, length).await;
        print(name, &figures, Some(figures.rate / *of_echo.get_or_insert(figures.rate)));
    }
}

fn print(name: &str, figures: &Figures, ratio: Option<f64>) {
    let Figures { rate, p50_ms, p99_ms } = figures;
    let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
    println!("{name:<34}  {rate:>12.0}  {p50_ms:>9.2}  {p99_ms:>9.2}  {ratio:>9}");
}
