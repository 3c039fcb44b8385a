//! Which device a model runs on: the CPU, or a GPU through wgpu.
//!
//! Contract: a device is tried out in a child process before it is used here, because a bad driver does not return an
//! error: it panics on a thread of its own, or ends the process. What cannot be used is replaced by the CPU, with a
//! warning that says why. `auto` takes a GPU only, never a software driver; who wants that names it.
//!
//! The child is this program again, with an argument of its own: `main` calls [`probe_main`] before anything else.
//! What a GPU's kernels are tuned to is kept as long as the process lives, and no longer: keeping it in files would bring a database
//! engine along. So every start tunes anew, and whoever runs a model there lets it read something before anybody waits. What drivers
//! keep of compiled kernels is theirs.

use std::fmt;
use std::io::Read;
use std::process::{Child, Command, ExitCode, Stdio};
use std::str::FromStr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use burn::tensor::Device;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;

/// The first argument of the child process.
const ARGUMENT: &str = "--probe-device";
/// What the child's answer begins with; drivers write to the same streams.
const ANSWER: &str = "turnflow-device ";
/// A driver that takes longer than this for four numbers is no use; a software driver takes some seconds, and more beside
/// other work.
const PROBE_TIME_MAX: Duration = Duration::from_secs(120);
/// Between two looks at whether the child has ended.
const POLL_TIME: Duration = Duration::from_millis(10);
/// Bytes kept of each of the child's streams, the last: its answer, and what it died of, come after all that drivers print.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// Bytes read of a stream at a time.
const READ_BYTES: usize = 4 * 1024;

/// Where a model shall run: `cpu`, `wgpu`, `wgpu:N` or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The CPU.
    #[default]
    Cpu,
    /// The first GPU, else a software driver.
    Wgpu,
    /// The adapter with this number, from 0, in the order that wgpu lists them.
    WgpuAt(usize),
    /// The first GPU, else the CPU.
    Auto,
}

/// A device that was tried out.
#[derive(Clone, Debug)]
pub struct TriedDevice {
    /// The device.
    pub device: Device,
    /// Its name, for people.
    pub name: String,
    /// Whether it is reached through wgpu.
    pub wgpu: bool,
    /// Whether a GPU is behind it; without one, wgpu computes on the CPU, slowly.
    pub gpu: bool,
    /// Whether it computes in half precision.
    pub half: bool,
    /// Why it is not the one that was asked for.
    pub fallback: Option<String>,
}

/// What the child found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Found {
    /// Place among the adapters that wgpu lists.
    index: usize,
    name: String,
    gpu: bool,
    half: bool,
}

impl DeviceChoice {
    /// Tries the device out, and takes the CPU where it cannot be used. Takes seconds where a GPU is tried.
    ///
    /// To be called before the first use of any GPU in this process.
    ///
    /// # Errors
    /// [`ModelError::Device`] when a GPU is asked for by name and this build has none.
    pub fn resolve(self) -> Result<TriedDevice, ModelError> {
        if self == Self::Cpu || (self == Self::Auto && !cfg!(feature = "wgpu")) {
            return Ok(TriedDevice::cpu(None));
        }
        if !cfg!(feature = "wgpu") {
            let reason = "this build has no GPU support; build it with the feature wgpu".to_owned();
            return Err(ModelError::Device { device: self.to_string(), reason });
        }
        let found = std::env::current_exe().map_err(|error| format!("this program cannot start itself: {error}"));
        let found = found.and_then(|program| {
            let mut command = Command::new(program);
            command.arg(ARGUMENT).arg(self.to_string());
            ask(&mut command, PROBE_TIME_MAX)
        });
        Ok(found.and_then(|found| opened(&found)).unwrap_or_else(|reason| self.fall_back(reason)))
    }

    fn fall_back(self, reason: String) -> TriedDevice {
        if self == Self::Auto {
            tracing::info!(reason, "running on the CPU");
        } else {
            tracing::warn!(device = %self, reason, "the device cannot be used, running on the CPU");
        }
        TriedDevice::cpu(Some(reason))
    }
}

impl TriedDevice {
    fn cpu(fallback: Option<String>) -> Self {
        Self { device: Device::flex(), name: "CPU".to_owned(), wgpu: false, gpu: false, half: false, fallback }
    }
}

impl FromStr for DeviceChoice {
    type Err = ModelError;

    fn from_str(text: &str) -> Result<Self, ModelError> {
        let unknown = || ModelError::Device {
            device: text.to_owned(),
            reason: "expected cpu, wgpu, wgpu:N (N from 0) or auto".to_owned(),
        };
        match text.split_once(':') {
            None if text == "cpu" => Ok(Self::Cpu),
            None if text == "wgpu" => Ok(Self::Wgpu),
            None if text == "auto" => Ok(Self::Auto),
            Some(("wgpu", number)) => number.parse().map(Self::WgpuAt).map_err(|_| unknown()),
            _ => Err(unknown()),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Wgpu => f.write_str("wgpu"),
            Self::WgpuAt(number) => write!(f, "wgpu:{number}"),
            Self::Auto => f.write_str("auto"),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = ModelError;

    fn try_from(text: String) -> Result<Self, ModelError> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> Self {
        choice.to_string()
    }
}

/// The child's part: tries a device out and ends, when this process was started for that; else none.
///
/// `main` calls it first. It prints its answer on standard output.
#[must_use]
pub fn probe_main() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let choice = arguments.next().unwrap_or_default().to_string_lossy().parse::<DeviceChoice>();
    let found = choice.map_err(|error| error.to_string()).and_then(try_out);
    println!("{}", answer(&found));
    Some(ExitCode::SUCCESS)
}

fn answer(found: &Result<Found, String>) -> String {
    // A driver may have left a line unfinished. A result of plain text always has its JSON, and without it the parent knows
    // that something is wrong.
    format!("\n{ANSWER}{}", serde_json::to_string(found).unwrap_or_default())
}

/// Runs the child and reads its answer.
fn ask(command: &mut Command, time_max: Duration) -> Result<Found, String> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let start = Instant::now();
    let mut child = command.spawn().map_err(|error| format!("no process could be started to try it out: {error}"))?;
    let (output, errors) = (Heard::listen(child.stdout.take()), Heard::listen(child.stderr.take()));
    let end = wait(&mut child, time_max)?;
    let left = || time_max.saturating_sub(start.elapsed());
    if let Some(json) = answered(&output.until(left(), |output| answered(output).is_some())) {
        return serde_json::from_str(&json).unwrap_or_else(|error| Err(format!("its answer is no JSON: {error}")));
    }
    let errors = errors.until(left(), |_| false);
    let mut lines = errors.lines().map(str::trim).filter(|line| !line.is_empty());
    // The message of a panic is on the line after its place.
    let said = lines.clone().skip_while(|line| !line.contains("panicked at")).nth(1).or_else(|| lines.next_back());
    let said = said.map_or_else(String::new, |line| format!(": {line}"));
    Err(format!("the process that tried it out ended with {end}{said}"))
}

/// The answer in what a child printed, once its line is whole.
fn answered(output: &str) -> Option<String> {
    let mut lines = output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
    lines.find_map(|line| line.strip_prefix(ANSWER)).map(str::to_owned)
}

fn wait(child: &mut Child, time_max: Duration) -> Result<std::process::ExitStatus, String> {
    let start = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if start.elapsed() < time_max => std::thread::sleep(POLL_TIME),
            result => {
                let _gone = child.kill().and_then(|()| child.wait());
                return Err(match result {
                    Err(error) => format!("the process that tried it out is lost: {error}"),
                    Ok(_) => format!("it did not answer within {time_max:?}"),
                });
            }
        }
    }
}

/// What comes from a stream, read by a thread of its own up to its end: a child whose stream is not read is held up, and one
/// whose stream is closed dies of it. Processes that the child started may keep the stream open when it is gone, so nobody
/// waits for that thread.
#[derive(Default)]
struct Heard {
    /// The last bytes, and whether they are all that come.
    state: Mutex<(Vec<u8>, bool)>,
    changed: Condvar,
}

impl Heard {
    fn listen(stream: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let heard = Arc::new(Self::default());
        let hearing = Arc::clone(&heard);
        std::thread::spawn(move || {
            let mut buffer = [0; READ_BYTES];
            if let Some(mut stream) = stream {
                loop {
                    match stream.read(&mut buffer) {
                        Ok(0) => break,
                        Ok(bytes) => hearing.note(&buffer[..bytes], false),
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        // What cannot be read is missing in the answer, and that is told.
                        Err(_) => break,
                    }
                }
            }
            hearing.note(&[], true);
        });
        heard
    }

    fn note(&self, bytes: &[u8], is_all: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.extend_from_slice(bytes);
        let too_many = state.0.len().saturating_sub(OUTPUT_BYTES_MAX);
        state.0.drain(..too_many);
        state.1 = is_all;
        self.changed.notify_all();
    }

    /// What was heard when it is all, or enough, or the time is over.
    fn until(&self, time_max: Duration, is_enough: impl Fn(&str) -> bool) -> String {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |state: &mut (Vec<u8>, bool)| !state.1 && !is_enough(&text(&state.0));
        let (state, _) =
            self.changed.wait_timeout_while(state, time_max, goes_on).unwrap_or_else(PoisonError::into_inner);
        text(&state.0)
    }
}

#[cfg(not(feature = "wgpu"))]
fn try_out(choice: DeviceChoice) -> Result<Found, String> {
    Err(format!("this build has no GPU support, and cannot try {choice}"))
}

#[cfg(not(feature = "wgpu"))]
fn opened(found: &Found) -> Result<TriedDevice, String> {
    Err(format!("this build has no GPU support, and cannot use {}", found.name))
}

#[cfg(feature = "wgpu")]
use gpu::{opened, try_out};

#[cfg(feature = "wgpu")]
mod gpu {
    //! What touches the drivers.

    use burn::tensor::{DType, Device, DeviceType, Tensor};
    use cubecl_runtime::config::autotune::AutotuneLevel;
    use cubecl_runtime::config::{CubeClRuntimeConfig, RuntimeConfig};

    use super::{DeviceChoice, Found, TriedDevice};

    /// Chooses an adapter and squares four numbers on it.
    pub(super) fn try_out(choice: DeviceChoice) -> Result<Found, String> {
        // This is not worth tuning for.
        configure(false);
        let adapters = Device::enumerate(DeviceType::Wgpu);
        let described = |index: usize| {
            let identity = adapters[index].identity();
            let name = identity.as_ref().map_or_else(|| "an adapter without a name".to_owned(), |it| it.name.clone());
            (name, identity.is_some_and(|identity| identity.physical.is_some()))
        };
        let first_gpu = || (0..adapters.len()).find(|&index| described(index).1);
        let none = || format!("there is no GPU among {} adapters", adapters.len());
        let index = match choice {
            DeviceChoice::Cpu => return Err("the CPU needs no trial".to_owned()),
            DeviceChoice::WgpuAt(number) if number < adapters.len() => number,
            DeviceChoice::WgpuAt(_) => return Err(format!("there are {} adapters, counted from 0", adapters.len())),
            DeviceChoice::Wgpu if adapters.is_empty() => return Err(none()),
            DeviceChoice::Wgpu => first_gpu().unwrap_or(0),
            DeviceChoice::Auto => first_gpu().ok_or_else(none)?,
        };
        let (name, gpu) = described(index);
        let device = &adapters[index];
        // Number by number: a product of matrices would be tuned first.
        let numbers = Tensor::<1>::from_data([1.0_f32, 2.0, 3.0, 4.0], (device, DType::F32));
        let squares = (numbers.clone() * numbers).try_into_data().map_err(|error| format!("{name}: {error:?}"))?;
        let squares: Vec<f32> = squares.try_to_vec().map_err(|error| format!("{name}: {error:?}"))?;
        if squares != [1.0, 4.0, 9.0, 16.0] {
            return Err(format!("{name} computes {squares:?} where [1, 4, 9, 16] is right"));
        }
        let half = device.supports_dtype(DType::F16);
        Ok(Found { index, name, gpu, half })
    }

    /// Opens the adapter that the child has tried.
    pub(super) fn opened(found: &Found) -> Result<TriedDevice, String> {
        configure(found.gpu);
        let adapters = Device::enumerate(DeviceType::Wgpu);
        let device = adapters.get(found.index).cloned().ok_or_else(|| format!("{} is gone", found.name))?;
        if !found.gpu {
            tracing::warn!(driver = found.name, "wgpu has a software driver only, slower than the CPU by itself");
        }
        let name = found.name.clone();
        Ok(TriedDevice { device, name, wgpu: true, gpu: found.gpu, half: found.half, fallback: None })
    }

    /// How much tuning there is: a software driver takes a minute to compile what is compared.
    fn configure(gpu: bool) {
        let mut config = CubeClRuntimeConfig::default().override_from_env();
        if !gpu {
            config.autotune.level = AutotuneLevel::Minimal;
            config.autotune.bench.min_samples = 1;
            config.autotune.bench.max_samples = 1;
        }
        if !CubeClRuntimeConfig::try_set(config) {
            tracing::debug!("a device is in use already, tuning stays as it is");
        }
    }
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
