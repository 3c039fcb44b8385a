//! A headless Chromium, driven by its DevTools protocol: JSON over two pipes, so that neither a port nor a library is needed, and the browser
//! ends when the test does.
//!
//! Waits for what happens in the page, not for a time. Everything that a page complains of is kept, violations of its content security
//! policy among it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time for anything that is waited for; a test that takes longer fails.
const WAIT_MAX: Duration = Duration::from_secs(60);
/// What the browser is called, on the platforms that tests run on.
const NAMES: [&str; 4] =
    ["chromium", "chromium-browser", "google-chrome", "/Applications/Chromium.app/Contents/MacOS/Chromium"];

/// One page of a browser of its own.
pub(crate) struct Page {
    browser: Child,
    commands: ChildStdin,
    messages: Receiver<Value>,
    session: String,
    calls: u64,
    /// What happened and nobody has waited for yet.
    events: Vec<Value>,
    complaints: Vec<String>,
    _profile: TempDir,
}

impl Page {
    /// Starts a browser with an empty page.
    pub(crate) fn open() -> Self {
        let name = NAMES.into_iter().find(|name| Command::new(name).arg("--version").output().is_ok());
        let name = name.expect("Chromium is installed: apt-get install chromium");
        let profile = tempfile::tempdir().expect("a folder");
        // The browser reads commands from descriptor 3 and writes to 4.
        let run = format!(
            "exec {name} --headless=new --remote-debugging-pipe --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
             --user-data-dir={} about:blank 3<&0 4>&1 0</dev/null 1>/dev/null",
            profile.path().display()
        );
        let mut browser = Command::new("sh")
            .args(["-c", &run])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a browser");
        let commands = browser.stdin.take().expect("a pipe");
        let mut lines = BufReader::new(browser.stdout.take().expect("a pipe"));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            let mut line = Vec::new();
            while lines.read_until(0, &mut line).is_ok_and(|read| read > 0) {
                let message = serde_json::from_slice(line.strip_suffix(b"\0").unwrap_or(&line)).expect("JSON");
                line.clear();
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let (session, events, complaints) = (String::new(), Vec::new(), Vec::new());
        let mut page = Self { browser, commands, messages, session, calls: 0, events, complaints, _profile: profile };
        let made = page.call("Target.createTarget", json!({ "url": "about:blank" }));
        let attached = page.call("Target.attachToTarget", json!({ "targetId": made["targetId"], "flatten": true }));
        page.session = attached["sessionId"].as_str().expect("a session").to_owned();
        for domain in ["Page", "Runtime", "Log", "Audits"] {
            page.call(&format!("{domain}.enable"), json!({}));
        }
        page
    }

    /// Does something by the protocol; gives what comes of it.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut command = json!({ "id": self.calls, "method": method });
        command["params"] = params;
        if !self.session.is_empty() {
            command["sessionId"] = json!(self.session);
        }
        self.commands.write_all(format!("{command}\0").as_bytes()).expect("the browser runs");
        loop {
            let message = self.next();
            if message["id"] == self.calls {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }

    /// What the browser says next; events are kept.
    fn next(&mut self) -> Value {
        let message = self.messages.recv_timeout(WAIT_MAX).expect("the browser answers in time");
        if message["id"].is_null() {
            self.complaints.extend(complaint(&message));
            self.events.push(message.clone());
        }
        message
    }

    /// Does something that leads to another page, and waits until that is there.
    pub(crate) fn leading(&mut self, act: impl FnOnce(&mut Self)) {
        let is_loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        self.events.retain(|event| !is_loaded(event));
        act(self);
        while !self.events.iter().any(is_loaded) {
            self.next();
        }
    }

    pub(crate) fn go(&mut self, url: &str) {
        self.leading(|page| {
            page.call("Page.navigate", json!({ "url": url }));
        });
    }

    /// The value of an expression in the page; one that is a promise is waited for.
    pub(crate) fn value(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "awaitPromise": true, "returnByValue": true });
        let evaluated = self.call("Runtime.evaluate", params);
        assert!(evaluated["exceptionDetails"].is_null(), "{expression}: {evaluated}");
        evaluated["result"]["value"].clone()
    }

    /// Waits until something holds in the page, which looks again whenever anything in it changes.
    pub(crate) fn until(&mut self, holds: &str) {
        let looking = format!(
            "new Promise((resolve, reject) => {{
                const watcher = new MutationObserver(look);
                function look() {{ if ({holds}) {{ watcher.disconnect(); resolve(); }} }}
                watcher.observe(document, {{ subtree: true, childList: true, attributes: true, characterData: true }});
                setTimeout(() => reject(new Error('not in time: ' + document.body.innerText)), {});
                look();
            }})",
            WAIT_MAX.as_millis() / 2
        );
        self.value(&looking);
    }

    /// The text of what a selector finds first.
    pub(crate) fn text(&mut self, selector: &str) -> String {
        let text = self.value(&format!("document.querySelector({selector:?})?.innerText ?? null"));
        text.as_str().unwrap_or_else(|| panic!("nothing is {selector}")).to_owned()
    }

    /// Presses with the mouse what a selector finds first.
    pub(crate) fn press(&mut self, selector: &str) {
        let place = self.value(&format!(
            "(() => {{ const found = document.querySelector({selector:?}); found.scrollIntoView({{ block: 'center' }});
               const {{ x, y, width, height }} = found.getBoundingClientRect(); return [x + width / 2, y + height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let params = json!({ "type": kind, "x": place[0], "y": place[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Writes into a field, in place of what is there.
    pub(crate) fn write(&mut self, selector: &str, text: &str) {
        self.value(&format!(
            "(() => {{ const field = document.querySelector({selector:?}); field.focus(); field.select(); }})()"
        ));
        self.call("Input.insertText", json!({ "text": text }));
    }

    pub(crate) fn enter(&mut self) {
        for kind in ["keyDown", "keyUp"] {
            let params =
                json!({ "type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r" });
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    /// How the page looks: its width in pixels, and whether it is dark.
    pub(crate) fn looks(&mut self, width: u32, is_dark: bool) {
        let size = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600 });
        self.call("Emulation.setDeviceMetricsOverride", size);
        let scheme = json!({ "name": "prefers-color-scheme", "value": if is_dark { "dark" } else { "light" } });
        self.call("Emulation.setEmulatedMedia", json!({ "features": [scheme] }));
    }

    /// A picture of the whole page.
    pub(crate) fn picture(&mut self, path: &Path) {
        let taken = self.call("Page.captureScreenshot", json!({ "captureBeyondViewport": true }));
        let encoded = taken["data"].as_str().expect("a picture");
        let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).expect("Base64");
        std::fs::write(path, bytes).expect("written");
    }

    /// What the page has complained of since it was last asked.
    pub(crate) fn complaints(&mut self) -> Vec<String> {
        // What was said before this call came is here after it.
        self.value("0");
        std::mem::take(&mut self.complaints)
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.browser.kill();
        let _ = self.browser.wait();
    }
}

/// What is wrong, if an event tells of something.
fn complaint(event: &Value) -> Option<String> {
    let params = &event["params"];
    let is_bad = |level: &Value| matches!(level.as_str(), Some("error" | "warning" | "assert"));
    match event["method"].as_str()? {
        "Runtime.exceptionThrown" | "Audits.issueAdded" => Some(params.to_string()),
        "Runtime.consoleAPICalled" if is_bad(&params["type"]) => Some(params["args"].to_string()),
        "Log.entryAdded" if is_bad(&params["entry"]["level"]) => Some(params["entry"]["text"].to_string()),
        _ => None,
    }
}
