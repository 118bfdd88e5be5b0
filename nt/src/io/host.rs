//! The way out of the guest beside its disks: standard streams, the wall clock, entropy.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FileType;

use super::terminal;

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StdStream {
    /// Standard input.
    Input,
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// What the host has connected a standard stream to.
#[derive(Debug)]
pub enum StreamType {
    /// A pipe, a socket.
    Pipe,
    /// A terminal: the guest's console.
    Terminal,
    /// The null device.
    Null,
    /// A file.
    File(File),
}

/// How a terminal treats input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TerminalMode {
    /// It lets its user edit lines, and delivers whole ones.
    pub lines: bool,
    /// It shows what is typed.
    pub echo: bool,
    /// Ctrl-C interrupts the run instead of being a character.
    pub signals: bool,
}

/// What the guest reaches outside of its memory and its volumes.
pub trait Host: std::fmt::Debug {
    /// Reads from standard input; 0 bytes: its end.
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize>;
    /// Writes all of `data` to a stream.
    fn write(&mut self, stream: StdStream, data: &[u8]) -> std::io::Result<()>;
    /// What a stream is connected to.
    fn stream_type(&mut self, _stream: StdStream) -> StreamType {
        StreamType::Pipe
    }
    /// Bytes of standard input that can be read without waiting; `None`: its end is reached.
    fn input_available(&mut self) -> Option<usize> {
        Some(0)
    }
    /// Waits until a read from standard input would not wait, `limit` at most; says whether it would not.
    fn wait_for_input(&mut self, _limit: Option<Duration>) -> bool {
        true
    }
    /// What to poll for standard input together with other descriptors; `None`: it is always ready.
    fn input_descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Columns and rows of the terminal.
    fn terminal_size(&mut self) -> Option<(u16, u16)> {
        None
    }
    /// Sets the terminal that standard input is.
    fn set_terminal(&mut self, _mode: TerminalMode) {}
    /// Wall-clock time in 100 ns units since 1601 (NT system time).
    fn system_time(&mut self) -> i64;
    /// Fills `buf` with random bytes.
    fn entropy(&mut self, buf: &mut [u8]);
}

/// 1601-01-01 to 1970-01-01 in 100 ns units.
pub const UNIX_EPOCH: i64 = 116_444_736_000_000_000;

/// The real machine. Output is unbuffered, as a Windows pipe is.
#[derive(Debug, Default)]
pub struct SystemHost;

impl Drop for SystemHost {
    fn drop(&mut self) {
        terminal::restore();
    }
}

impl Host for SystemHost {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        // Past the buffer of the standard library, which would hide from the host what it has read ahead.
        Ok(rustix::io::retry_on_intr(|| rustix::io::read(rustix::stdio::stdin(), &mut *buf))?)
    }

    fn stream_type(&mut self, stream: StdStream) -> StreamType {
        let descriptor = match stream {
            StdStream::Input => rustix::stdio::stdin(),
            StdStream::Output => rustix::stdio::stdout(),
            StdStream::Error => rustix::stdio::stderr(),
        };
        let Ok(stat) = rustix::fs::fstat(descriptor) else { return StreamType::Pipe };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => match descriptor.try_clone_to_owned() {
                Ok(copy) => StreamType::File(File::from(copy)),
                Err(_) => StreamType::Pipe,
            },
            FileType::CharacterDevice if rustix::termios::isatty(descriptor) => StreamType::Terminal,
            FileType::CharacterDevice => StreamType::Null,
            _ => StreamType::Pipe,
        }
    }

    fn input_available(&mut self) -> Option<usize> {
        let stdin = rustix::stdio::stdin();
        let available = rustix::io::ioctl_fionread(stdin).unwrap_or(0);
        let ended = available == 0 && self.wait_for_input(Some(Duration::ZERO));
        (!ended).then(|| usize::try_from(available).unwrap_or(usize::MAX))
    }

    fn wait_for_input(&mut self, limit: Option<Duration>) -> bool {
        let stdin = rustix::stdio::stdin();
        let limit = limit.and_then(|limit| Timespec::try_from(limit).ok());
        let mut descriptors = [PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN)];
        // A poll that fails must not keep the read from telling why.
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut descriptors, limit.as_ref())).is_ok_and(|n| n > 0)
    }

    fn input_descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(rustix::stdio::stdin())
    }

    fn terminal_size(&mut self) -> Option<(u16, u16)> {
        terminal::size()
    }

    fn set_terminal(&mut self, mode: TerminalMode) {
        terminal::set(mode);
    }

    fn write(&mut self, stream: StdStream, data: &[u8]) -> std::io::Result<()> {
        match stream {
            StdStream::Error => std::io::stderr().lock().write_all(data),
            StdStream::Output | StdStream::Input => {
                let mut out = std::io::stdout().lock();
                out.write_all(data)?;
                out.flush()
            }
        }
    }

    fn system_time(&mut self) -> i64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        UNIX_EPOCH + i64::try_from(since.as_nanos() / 100).unwrap_or(i64::MAX - UNIX_EPOCH)
    }

    fn entropy(&mut self, buf: &mut [u8]) {
        let filled = std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(buf));
        if filled.is_err() {
            // Without a source the bytes are only unpredictable enough to differ between runs.
            let mut state = self.system_time() as u64 | 1;
            for byte in buf {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = state as u8;
            }
        }
    }
}

/// When the guest's clock starts unless it follows the host: 2026-01-01, 00:00 UTC, as system time.
pub const START_TIME: i64 = UNIX_EPOCH + 1_767_225_600 * 10_000_000;

/// SplitMix64: bytes that follow from a seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SeededEntropy(pub u64);

impl SeededEntropy {
    /// The next bytes.
    pub fn fill(&mut self, buf: &mut [u8]) {
        for chunk in buf.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = self.0;
            z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
            let bytes = (z ^ z >> 31).to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// The real machine's streams with a clock and an entropy that are the same in every run.
#[derive(Debug)]
pub struct DeterministicHost {
    streams: SystemHost,
    entropy: SeededEntropy,
}

impl DeterministicHost {
    /// Entropy follows from `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { streams: SystemHost, entropy: SeededEntropy(seed) }
    }
}

impl Host for DeterministicHost {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.streams.read(buf)
    }
    fn stream_type(&mut self, stream: StdStream) -> StreamType {
        self.streams.stream_type(stream)
    }
    fn input_available(&mut self) -> Option<usize> {
        self.streams.input_available()
    }
    fn wait_for_input(&mut self, limit: Option<Duration>) -> bool {
        self.streams.wait_for_input(limit)
    }
    fn input_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.streams.input_descriptor()
    }
    fn terminal_size(&mut self) -> Option<(u16, u16)> {
        self.streams.terminal_size()
    }
    fn set_terminal(&mut self, mode: TerminalMode) {
        self.streams.set_terminal(mode);
    }
    fn write(&mut self, stream: StdStream, data: &[u8]) -> std::io::Result<()> {
        self.streams.write(stream, data)
    }
    fn system_time(&mut self) -> i64 {
        START_TIME
    }
    fn entropy(&mut self, buf: &mut [u8]) {
        self.entropy.fill(buf);
    }
}

/// A host without a world: given input, captured output, a fixed clock, counted entropy.
#[derive(Debug, Default)]
pub struct CapturedHost {
    /// What standard input yields.
    pub input: std::collections::VecDeque<u8>,
    /// What was written to standard output.
    pub output: Vec<u8>,
    /// What was written to standard error.
    pub error: Vec<u8>,
    /// System time.
    pub time: i64,
    /// The streams are a terminal.
    pub terminal: bool,
    entropy: SeededEntropy,
}

impl Host for CapturedHost {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.input.read(buf)
    }
    fn stream_type(&mut self, _stream: StdStream) -> StreamType {
        if self.terminal { StreamType::Terminal } else { StreamType::Pipe }
    }
    fn terminal_size(&mut self) -> Option<(u16, u16)> {
        self.terminal.then_some((80, 25))
    }
    fn input_available(&mut self) -> Option<usize> {
        Some(self.input.len()).filter(|length| *length != 0)
    }
    fn write(&mut self, stream: StdStream, data: &[u8]) -> std::io::Result<()> {
        match stream {
            StdStream::Error => self.error.extend_from_slice(data),
            _ => self.output.extend_from_slice(data),
        }
        Ok(())
    }
    fn system_time(&mut self) -> i64 {
        self.time
    }
    fn entropy(&mut self, buf: &mut [u8]) {
        self.entropy.fill(buf);
    }
}
