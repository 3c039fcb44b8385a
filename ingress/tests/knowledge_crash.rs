//! `kill -9` while the knowledge base is written, a hundred times on one store: what was acknowledged is there, store and
//! index agree, and no cached answer outlives the text that it was made from.
//!
//! Every round starts `turnflow serve` on what the rounds before left, checks that, then writes and asks until the
//! process is killed, after a seeded number of acknowledged writes: see [`Moment`]. The number of workers is another one
//! after each restart, so that cached answers come back at other workers than those that kept them.
//!
//! `TURNFLOW_TEST_SEED` repeats the decisions, not how the processes interleave. It says nothing of a machine that loses
//! power: what a killed process has handed to the kernel survives it.

#![expect(clippy::expect_used, reason = "a test may fail loudly")]

#[expect(dead_code, reason = "runs the binary in its own way")]
mod binary;
mod support;

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::task::spawn_blocking;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use turnflow::grpc::proto::conversations_client::ConversationsClient;
use turnflow::grpc::proto::knowledge_base_client::KnowledgeBaseClient;
use turnflow::grpc::proto::{
    Article, CacheLevel, DeleteRequest, Done, GetRequest, SearchRequest, TurnName, UpsertRequest,
};

use binary::turnflow;
use support::{TEST_MAX, ask, bounded, turn};

const KILLS: u64 = 100;
/// Most writes that are acknowledged before a kill.
const WRITES_MAX: u64 = 4;
/// Longest time between what a kill follows and the kill, in microseconds: about what a synced write takes.
const DELAY_US_MAX: u64 = 1_000;
const ASKERS: u64 = 2;

/// An article that is written again and again, and what is asked about it. The rest of the shop stays as it is.
struct Subject {
    name: &'static str,
    title: &'static str,
    /// What the article says, in front of its code.
    says: &'static str,
    questions: [&'static str; 2],
}

const SUBJECTS: [Subject; 5] = [
    Subject {
        name: "kettle",
        title: "Rapid kettle: repair code",
        says: "The repair code of the Rapid kettle is",
        questions: ["What is the repair code of the Rapid kettle?", "What's the repair code for the Rapid kettle?"],
    },
    Subject {
        name: "voucher",
        title: "Voucher of the month",
        says: "The voucher of the month for green tea is",
        questions: ["What is the voucher of the month for green tea?", "What's the voucher of the month on green tea?"],
    },
    Subject {
        name: "hotline",
        title: "Night hotline: extension",
        says: "The extension of the night hotline is",
        questions: ["What is the extension of the night hotline?", "What's the extension for the night hotline?"],
    },
    Subject {
        name: "gate",
        title: "Gate for lorries",
        says: "Lorries enter the warehouse through the gate named",
        questions: [
            "Through which gate do lorries enter the warehouse?",
            "Through which gate do lorries come into the warehouse?",
        ],
    },
    Subject {
        name: "recipe",
        title: "Bread recipe of the week",
        says: "The bread recipe of the week for the skillet is",
        questions: [
            "What is the bread recipe of the week for the skillet?",
            "Which is the bread recipe of the week for the skillet?",
        ],
    },
];

impl Subject {
    /// Article and version, as answers repeat them.
    fn text(&self, version: u64) -> String {
        format!("{} {}", self.says, self.code(version))
    }

    fn code(&self, version: u64) -> String {
        format!("{}-{version}.", self.name)
    }

    fn put(&self, version: u64, now: State) -> UpsertRequest {
        let (id, title, body) = (self.name.to_owned(), self.title.to_owned(), self.text(version));
        let article = Article { id, title, body, version: Some(version), ..Article::default() };
        UpsertRequest { article: Some(article), expected_version: Some(now.expected()), dry_run: false }
    }
}

/// Articles and versions that a text names.
fn codes(text: &str) -> Vec<(usize, u64)> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '-');
    let code = |word: &str| {
        let (name, version) = word.rsplit_once('-')?;
        Some((SUBJECTS.iter().position(|subject| subject.name == name)?, version.parse().ok()?))
    };
    words.filter_map(code).collect()
}

/// An article's version, and whether that is its deletion.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct State {
    version: u64,
    is_there: bool,
}

impl State {
    fn expected(self) -> u64 {
        if self.is_there { self.version } else { 0 }
    }
}

type States = [State; SUBJECTS.len()];

/// What the tasks of a round know of each other.
#[derive(Default)]
struct Round {
    number: u64,
    acknowledged: [AtomicU64; SUBJECTS.len()],
    begun: [AtomicU64; SUBJECTS.len()],
    /// The greatest version that was told to anybody: all of them were when the round began.
    told: [AtomicU64; SUBJECTS.len()],
    /// Set before the kill, so that nothing may fail while it is not.
    is_killed: AtomicBool,
}

/// What was written when the process was killed.
struct Written {
    acknowledged: States,
    /// The write that was not acknowledged.
    cut: (usize, State),
    /// Whether it was begun before the kill.
    in_the_midst: bool,
}

/// When a process is killed, once some writes were acknowledged.
#[derive(Debug)]
enum Moment {
    /// After this time: what the last of them made invalid is on its way out of the store.
    AtOnce(Duration),
    /// After so many hundredths of the time that the last of them took: somewhere in the next one.
    Percent(u32),
    /// This time after the store's log got the next text: before that is acknowledged.
    InStore(Duration),
}

/// What the writer tells the killer.
#[derive(PartialEq)]
enum Mark {
    /// A text begins to be written; the code that it has.
    Begun(String),
    Acknowledged,
}

/// Shows that the rounds met what they are meant to meet.
#[derive(Debug, Default)]
struct Tally {
    /// Kills while a write was under way.
    in_the_midst: u64,
    /// Writes that are there though they were not acknowledged.
    written_unacknowledged: u64,
    /// Those of them that replaced a text which somebody had been told.
    outdating: u64,
    answers: u64,
    /// Answers that a restart did not take from the caches.
    survived_exact: u64,
    survived_semantic: u64,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn store_index_and_caches_agree_after_every_kill_9() {
    let seed = std::env::var("TURNFLOW_TEST_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(|| RandomState::new().hash_one("seed") % 1_000_000);
    eprintln!("TURNFLOW_TEST_SEED={seed}");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let (mut random, mut tally) = (Random(seed), Tally::default());
    let mut left: Option<(Written, Arc<Round>)> = None;
    for number in 0..=KILLS {
        left = bounded(async {
            let began = Instant::now();
            let server = Server::start(dir.path(), 1 + number % 3).await;
            let started = began.elapsed();
            let channel = server.channel().await;
            let found = check(channel.clone(), number, left.as_ref(), &mut tally).await;
            let checked = began.elapsed();
            let next = if number < KILLS {
                Some(write_and_kill(server, channel, number, found, &mut random).await)
            } else {
                None
            };
            eprintln!(
                "round {number}: up after {started:?}, checked after {checked:?}, killed after {:?}",
                began.elapsed()
            );
            next
        })
        .await;
    }
    eprintln!("{tally:?}");
    assert!(tally.in_the_midst > 0, "no write was cut: {tally:?}");
    assert!(tally.written_unacknowledged > 0, "no kill came between store and acknowledgement: {tally:?}");
    assert!(tally.outdating > 0, "no kill came between store and invalidation: {tally:?}");
    assert!(tally.survived_exact > 0, "no cached answer survived: {tally:?}");
}

/// Checks what a kill left, and gives what the store holds.
async fn check(channel: Channel, number: u64, left: Option<&(Written, Arc<Round>)>, tally: &mut Tally) -> States {
    let mut found = States::default();
    let mut shop = KnowledgeBaseClient::new(channel.clone());
    for (at, state) in found.iter_mut().enumerate() {
        *state = state_of(&mut shop, at).await;
        let expected = left.map_or_else(State::default, |(written, _)| written.acknowledged[at]);
        let cut = left.map(|(written, _)| written.cut).filter(|cut| *cut == (at, *state));
        let name = SUBJECTS[at].name;
        assert!(
            *state == expected || cut.is_some(),
            "round {number}: {name} is {state:?}, acknowledged was {expected:?}"
        );
        if let (Some((_, round)), Some(_)) = (left, cut) {
            tally.written_unacknowledged += 1;
            let was_told = expected.is_there && round.told[at].load(Ordering::Relaxed) == expected.version;
            tally.outdating += u64::from(was_told);
        }
        search_agrees(&mut shop, at, *state).await;
    }
    tally.in_the_midst += u64::from(left.is_some_and(|(written, _)| written.in_the_midst));
    for (at, done) in ask_all(&channel, number).await {
        let context = || format!("round {number}: a question about {} is answered {done:?}", SUBJECTS[at].name);
        let codes = codes(&done.text);
        let is_current = |(about, version): &(usize, u64)| found[*about] == State { version: *version, is_there: true };
        assert!(codes.iter().all(is_current), "{}, there is {found:?}", context());
        let is_told = codes.iter().any(|(about, _)| *about == at);
        assert_eq!(is_told, found[at].is_there, "{}, there is {found:?}", context());
        count_survivor(&done, number, tally);
    }
    found
}

/// Asks every question once, the second one about a subject after the first.
async fn ask_all(channel: &Channel, number: u64) -> Vec<(usize, Done)> {
    let asking = (0..SUBJECTS.len()).map(|at| {
        let mut customer = ConversationsClient::new(channel.clone());
        tokio::spawn(async move {
            let mut answers = Vec::new();
            for (which, question) in SUBJECTS[at].questions.into_iter().enumerate() {
                let turn = turn(&format!("{number}-check-{at}-{which}"), "1", question);
                answers.push((at, ask(&mut customer, turn).await.expect("answered")));
            }
            answers
        })
    });
    let mut answers = Vec::new();
    for asked in asking.collect::<Vec<_>>() {
        answers.extend(asked.await.expect("answered"));
    }
    answers
}

fn count_survivor(done: &Done, number: u64, tally: &mut Tally) {
    tally.answers += 1;
    let verdict = done.verdict.as_ref().expect("a verdict");
    // Conversations begin with the number of their round.
    let asked_in = |origin: &TurnName| origin.conversation_id.split('-').next().and_then(|round| round.parse().ok());
    let origin: Option<u64> = verdict.origin.as_ref().and_then(asked_in);
    if origin.is_some_and(|origin| origin < number) {
        match verdict.level() {
            CacheLevel::Exact => tally.survived_exact += 1,
            CacheLevel::Semantic => tally.survived_semantic += 1,
            level => unreachable!("an earlier answer with {level:?}"),
        }
    }
}

async fn state_of(shop: &mut KnowledgeBaseClient<Channel>, at: usize) -> State {
    let subject = &SUBJECTS[at];
    match shop.get(GetRequest { id: subject.name.to_owned() }).await {
        Ok(response) => {
            let article = response.into_inner().article.expect("an article");
            let version = article.version.expect("a version");
            assert_eq!((article.title.as_str(), article.body), (subject.title, subject.text(version)));
            State { version, is_there: true }
        }
        Err(status) => {
            assert_eq!(status.code(), Code::NotFound, "{status:?}");
            // What it would become tells what it was.
            let mut put = subject.put(1, State::default());
            put.article.as_mut().expect("an article").version = None;
            let forecast = shop.upsert(UpsertRequest { dry_run: true, ..put }).await.expect("a forecast").into_inner();
            State { version: forecast.version - 1, is_there: false }
        }
    }
}

/// A search finds the article in the version that the store holds and in no other.
async fn search_agrees(shop: &mut KnowledgeBaseClient<Channel>, at: usize, state: State) {
    let subject = &SUBJECTS[at];
    let request = SearchRequest { query: subject.text(state.version), k: 100 };
    let chunks = shop.search(request).await.expect("found").into_inner().chunks;
    let found: Vec<_> = chunks.iter().filter(|chunk| chunk.article_id == subject.name).collect();
    let found: Vec<_> = found.iter().map(|chunk| (chunk.version, chunk.text.clone())).collect();
    let expected = state.is_there.then(|| (state.version, subject.text(state.version)));
    assert_eq!(found, Vec::from_iter(expected), "{state:?}");
}

/// Writes and asks until the process has been killed.
async fn write_and_kill(
    server: Server,
    channel: Channel,
    number: u64,
    found: States,
    random: &mut Random,
) -> (Written, Arc<Round>) {
    let versions = || found.map(|state| AtomicU64::new(state.version));
    let round = Round { number, acknowledged: versions(), begun: versions(), told: versions(), ..Round::default() };
    let round = Arc::new(round);
    let (mark, marks) = mpsc::channel();
    let writes = 1 + random.below(WRITES_MAX);
    let moment = Moment::draw(random);
    let writer = write(KnowledgeBaseClient::new(channel.clone()), round.clone(), found, random.fork(), mark);
    let writer = tokio::spawn(writer);
    let askers: Vec<_> = (0..ASKERS)
        .map(|asker| {
            let customer = ConversationsClient::new(channel.clone());
            tokio::spawn(keep_asking(customer, round.clone(), asker, random.fork()))
        })
        .collect();
    let killed = round.clone();
    let killer = spawn_blocking(move || {
        eprintln!("round {number}: to be killed after {writes} writes, {moment:?}");
        let came = moment.wait(writes, &marks, &server.data);
        killed.is_killed.store(true, Ordering::SeqCst);
        server.kill();
        came
    });
    let came = killer.await.expect("killed");
    let written = writer.await.expect("every write is right until the kill");
    came.expect("the writer goes on");
    for asker in askers {
        asker.await.expect("every answer is right until the kill");
    }
    (written, round)
}

impl Moment {
    fn draw(random: &mut Random) -> Self {
        let delay = Duration::from_micros(random.below(DELAY_US_MAX));
        match random.below(3) {
            0 => Self::AtOnce(delay),
            1 => Self::Percent(random.below(120).try_into().expect("small")),
            _ => Self::InStore(delay),
        }
    }

    /// Waits for so many acknowledgements and then for the moment. What is slept is drawn, and waits for nothing.
    fn wait(self, writes: u64, marks: &mpsc::Receiver<Mark>, data: &Path) -> Result<(), mpsc::RecvTimeoutError> {
        let (mut last, mut took, mut acknowledged) = (Instant::now(), Duration::ZERO, 0);
        while acknowledged < writes {
            if matches!(marks.recv_timeout(TEST_MAX)?, Mark::Acknowledged) {
                acknowledged += 1;
                (took, last) = (last.elapsed(), Instant::now());
            }
        }
        let delay = match self {
            Self::AtOnce(delay) => delay,
            Self::Percent(percent) => took * percent / 100,
            Self::InStore(delay) => {
                let code = loop {
                    if let Mark::Begun(code) = marks.recv_timeout(TEST_MAX)? {
                        break code;
                    }
                };
                let mut log = Log::open(data);
                // In vain when the code is cut by a block's end; then the write is acknowledged, or fails.
                while marks.try_recv() == Err(mpsc::TryRecvError::Empty) && !log.has_got(&code) {
                    std::thread::yield_now();
                }
                delay
            }
        };
        std::thread::sleep(delay);
        Ok(())
    }
}

/// The end of the store's write-ahead log, from when it was opened.
struct Log {
    file: File,
    got: Vec<u8>,
}

impl Log {
    fn open(data: &Path) -> Self {
        let files = fs::read_dir(data).expect("a folder").map(|entry| entry.expect("a file").path());
        let newest = files.filter(|path| path.extension().is_some_and(|extension| extension == "log")).max();
        let mut file = File::open(newest.expect("a log")).expect("readable");
        file.seek(SeekFrom::End(0)).expect("a file that can be sought in");
        Self { file, got: Vec::new() }
    }

    fn has_got(&mut self, text: &str) -> bool {
        self.file.read_to_end(&mut self.got).expect("readable");
        self.got.windows(text.len()).any(|bytes| bytes == text.as_bytes())
    }
}

async fn write(
    mut shop: KnowledgeBaseClient<Channel>,
    round: Arc<Round>,
    mut states: States,
    mut random: Random,
    mark: mpsc::Sender<Mark>,
) -> Written {
    loop {
        let at = random.index(SUBJECTS.len());
        let (subject, now) = (&SUBJECTS[at], states[at]);
        let next = State { version: now.version + 1, is_there: !now.is_there || random.below(4) > 0 };
        round.begun[at].store(next.version, Ordering::SeqCst);
        let in_the_midst = !round.is_killed.load(Ordering::SeqCst);
        let result: Result<u64, Status> = if next.is_there {
            let _ = mark.send(Mark::Begun(subject.code(next.version)));
            shop.upsert(subject.put(next.version, now)).await.map(|response| response.into_inner().version)
        } else {
            let request =
                DeleteRequest { id: subject.name.to_owned(), expected_version: Some(now.version), dry_run: false };
            shop.delete(request).await.map(|response| response.into_inner().version)
        };
        match result {
            Ok(version) => {
                assert_eq!(version, next.version);
                states[at] = next;
                round.acknowledged[at].store(version, Ordering::SeqCst);
                // Who counts may have heard enough.
                let _ = mark.send(Mark::Acknowledged);
            }
            Err(status) => {
                assert!(round.is_killed.load(Ordering::SeqCst), "round {}: {status:?}", round.number);
                return Written { acknowledged: states, cut: (at, next), in_the_midst };
            }
        }
    }
}

/// Asks the same questions again and again. No answer is older than what was acknowledged before it was asked for.
async fn keep_asking(mut customer: ConversationsClient<Channel>, round: Arc<Round>, asker: u64, mut random: Random) {
    let number = round.number;
    for count in 0_u64.. {
        let question = SUBJECTS[random.index(SUBJECTS.len())].questions[random.index(2)];
        let oldest: Vec<u64> = round.acknowledged.iter().map(|version| version.load(Ordering::SeqCst)).collect();
        let turn = turn(&format!("{number}-{asker}-{count}"), "1", question);
        let done = match ask(&mut customer, turn).await {
            Ok(done) => done,
            Err(status) => {
                assert!(round.is_killed.load(Ordering::SeqCst), "round {number}: {status:?}");
                return;
            }
        };
        for (at, version) in codes(&done.text) {
            let newest = round.begun[at].load(Ordering::SeqCst);
            assert!((oldest[at]..=newest).contains(&version), "round {number}: {done:?}, {oldest:?}");
            round.told[at].fetch_max(version, Ordering::Relaxed);
        }
    }
}

/// A process; it is killed when it is dropped.
struct Server {
    process: Child,
    address: String,
    data: PathBuf,
    stderr: PathBuf,
}

impl Server {
    async fn start(dir: &Path, workers: u64) -> Self {
        let file = |name: &str| dir.join(name);
        let (config, data, stderr) = (file("turnflow.toml"), file("data"), file("stderr.txt"));
        fs::write(&config, format!("[workers]\nthreads = {workers}\n")).expect("written");
        let mut process = turnflow()
            .args(["serve", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--sample", "--json", "--data"])
            .args([data.as_os_str(), "--config".as_ref(), config.as_os_str()])
            .stdout(Stdio::piped())
            .stderr(File::create(&stderr).expect("a file"))
            .spawn()
            .expect("turnflow starts");
        let mut stdout = BufReader::new(process.stdout.take().expect("a pipe"));
        let mut server = Self { process, address: String::new(), data, stderr };
        // Ends at the latest when the process does.
        let line = spawn_blocking(move || {
            let mut line = String::new();
            stdout.read_line(&mut line).map(|_| line)
        });
        let line = line.await.expect("no panic").expect("text");
        let announced: Option<Value> = serde_json::from_str(&line).ok();
        let address = announced.as_ref().and_then(|announced| announced["listening"].as_str());
        server.address = address.unwrap_or_else(|| unreachable!("not listening: {}", server.said())).to_owned();
        server
    }

    async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).expect("a URL");
        endpoint.tcp_nodelay(true).connect().await.expect("the server listens")
    }

    fn said(&self) -> String {
        fs::read_to_string(&self.stderr).expect("text")
    }

    fn kill(mut self) {
        self.process.kill().expect("SIGKILL");
        let status = self.process.wait().expect("an end");
        let said = self.said();
        assert!(status.code().is_none(), "it ended by itself: {status}\n{said}");
        assert!(!["ERROR", "WARN", "panicked"].iter().any(|word| said.contains(word)), "{said}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// SplitMix64, for numbers that follow from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("less than a length")
    }

    fn fork(&mut self) -> Self {
        Self(self.next())
    }
}
