//! A server on loopback that follows a script, for tests: each request that comes in gets the next step, on whichever connection.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// What to do with one request.
pub(crate) type Step = Box<dyn FnOnce(&mut Exchange) + Send>;

/// What came in.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Number of the connection, from 0.
    pub(crate) connection: usize,
    /// Request line and headers.
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The way to answer one request.
pub(crate) struct Exchange {
    stream: TcpStream,
    is_over: bool,
}

impl Exchange {
    /// Sends bytes as they are. False when the client is gone.
    pub(crate) fn raw(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(bytes.as_ref()).is_ok()
    }

    /// A whole response.
    pub(crate) fn reply(&mut self, status: u16, headers: &str, body: &str) {
        self.raw(format!("HTTP/1.1 {status} Whatever\r\n{headers}Content-Length: {}\r\n\r\n{body}", body.len()));
    }

    /// Begins a stream of events.
    pub(crate) fn begin(&mut self) {
        self.raw(
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n",
        );
    }

    /// Sends a piece of the stream. False when the client is gone.
    pub(crate) fn piece(&mut self, text: impl AsRef<[u8]>) -> bool {
        let text = text.as_ref();
        let mut chunk = format!("{:x}\r\n", text.len()).into_bytes();
        chunk.extend_from_slice(text);
        chunk.extend_from_slice(b"\r\n");
        self.raw(chunk)
    }

    /// Sends a piece of the answer.
    pub(crate) fn delta(&mut self, text: &str) -> bool {
        self.piece(delta(text))
    }

    /// Ends the stream.
    pub(crate) fn end(&mut self) {
        self.raw("0\r\n\r\n");
    }

    /// Answers properly with these pieces.
    pub(crate) fn answer(&mut self, pieces: &[&str]) {
        self.begin();
        pieces.iter().for_each(|piece| assert!(self.delta(piece), "the client listens"));
        self.piece(ending(11, 7));
        self.end();
    }

    /// Closes the connection.
    pub(crate) fn cut(&mut self) {
        let _already_gone = self.stream.shutdown(Shutdown::Both);
        self.is_over = true;
    }

    /// Waits until the client closes the connection.
    pub(crate) fn wait_for_close(&mut self) {
        let mut rest = [0; 1024];
        while self.stream.read(&mut rest).is_ok_and(|read| read > 0) {}
        self.is_over = true;
    }
}

/// An event with a piece of the answer.
pub(crate) fn delta(text: &str) -> String {
    let event = serde_json::json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]});
    format!("data: {event}\n\n")
}

/// The last events of an answer.
pub(crate) fn ending(input_tokens: u32, output_tokens: u32) -> String {
    let finish = serde_json::json!({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]});
    let usage = serde_json::json!({"prompt_tokens": input_tokens, "completion_tokens": output_tokens});
    let usage = serde_json::json!({"choices": [], "usage": usage});
    format!("data: {finish}\n\ndata: {usage}\n\ndata: [DONE]\n\n")
}

/// The server; it stops listening when it is dropped.
pub(crate) struct ScriptedServer {
    address: std::net::SocketAddr,
    /// Every request, in the order in which they came.
    pub(crate) asked: Receiver<Asked>,
    stop: Arc<AtomicBool>,
}

impl ScriptedServer {
    /// Starts with these steps. What comes beyond them is cut off.
    pub(crate) fn start(steps: Vec<Step>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        let (told, asked) = unbounded();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let steps = Arc::new(Mutex::new(steps.into_iter()));
        std::thread::spawn(move || {
            for (connection, stream) in listener.incoming().flatten().enumerate() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (steps, told) = (Arc::clone(&steps), told.clone());
                std::thread::spawn(move || serve(connection, &stream, &steps, &told));
            }
        });
        Self { address, asked, stop }
    }

    /// The base address for a client.
    pub(crate) fn url(&self) -> String {
        format!("http://{}/v1", self.address)
    }

    /// How many requests came, with what they said.
    pub(crate) fn requests(&self) -> Vec<Asked> {
        self.asked.try_iter().collect()
    }
}

impl Drop for ScriptedServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _wake_up = TcpStream::connect(self.address);
    }
}

fn serve(connection: usize, stream: &TcpStream, steps: &Mutex<std::vec::IntoIter<Step>>, told: &Sender<Asked>) {
    let mut reader = BufReader::new(stream.try_clone().expect("a second handle"));
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head).map_or(true, |read| read == 0) {
                return;
            }
        }
        let length =
            head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned));
        let mut body = vec![0; length.map_or(0, |length| length.trim().parse().expect("a number"))];
        reader.read_exact(&mut body).expect("a whole request");
        let body = String::from_utf8(body).expect("UTF-8");
        let _the_test_is_over = told.send(Asked { connection, head, body });
        let step = steps.lock().expect("no panic").next();
        let mut exchange = Exchange { stream: stream.try_clone().expect("a second handle"), is_over: false };
        match step {
            Some(step) => step(&mut exchange),
            None => exchange.cut(),
        }
        if exchange.is_over {
            return;
        }
    }
}
