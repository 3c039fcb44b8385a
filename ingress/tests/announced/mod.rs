//! What a server in a process of its own says when its ports are open.

use std::io::{BufRead as _, BufReader};
use std::process::Child;

use serde_json::Value;

/// Waits for the announcement of `serve --json`, whose stdout is piped: the addresses that it listens on.
pub(crate) fn announced(server: &mut Child) -> Value {
    let mut line = String::new();
    BufReader::new(server.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
    serde_json::from_str(&line).expect("JSON")
}
