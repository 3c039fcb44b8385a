//! A peer that is measured beside: a process of a Python script, which answers a line with a line.

#![expect(clippy::expect_used, reason = "a bench may fail loudly")]
#![expect(clippy::print_stdout, reason = "a bench says why a peer is missing")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A process of a script beside the benches. It is told to end when this is dropped.
#[derive(Debug)]
pub struct Peer {
    process: Child,
    questions: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Peer {
    /// None where Python has no such peer, which is said. `arguments` begin with the peer's name.
    ///
    /// # Panics
    /// When there is no such Python.
    #[must_use]
    pub fn start(python: &str, script: &str, arguments: &[&str]) -> Option<Self> {
        let mut process = Command::new(python)
            .arg(format!("{}/benches/{script}", env!("CARGO_MANIFEST_DIR")))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a Python");
        let (questions, answers) = (process.stdin.take().expect("piped"), process.stdout.take().expect("piped"));
        let mut peer = Self { process, questions, answers: BufReader::new(answers) };
        let greeting = peer.line();
        if greeting != "ready" {
            println!("{}: {greeting}", arguments[0]);
            return None;
        }
        Some(peer)
    }

    /// Asks something, and waits for the answer.
    ///
    /// # Panics
    /// When the peer is gone.
    pub fn ask(&mut self, question: &str) -> String {
        writeln!(self.questions, "{question}").and_then(|()| self.questions.flush()).expect("a peer that listens");
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("an answer");
        line.trim().to_owned()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _gone_already = writeln!(self.questions).and_then(|()| self.questions.flush());
        let _ended = self.process.wait();
    }
}
