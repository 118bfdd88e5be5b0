//! The console, when the host's standard streams are a terminal: `\Device\ConDrv`.
//!
//! kernelbase opens ends of the device (`Connection`, `CurrentIn`, `CurrentOut`) and speaks to them in control codes;
//! names and numbers are those of Wine 10's `include/wine/condrv.h`. The terminal itself edits lines and echoes while
//! ENABLE_LINE_INPUT is set; otherwise it delivers keys as they are pressed. What is on the screen is not kept, so nothing
//! can be read back from it or scrolled; only the cursor is followed (`screen`), from the place where the run began.

mod keys;
mod pages;
mod screen;

use std::collections::VecDeque;
use std::time::Duration;

use super::StdStream;
use super::host::TerminalMode;
use super::info::Bytes;
use super::status_of_io;
use super::transfer::Completion;
use crate::kernel::Kernel;
use crate::object::{Body, ObjectId};
use crate::service::{Call, Outcome};
use crate::status::Status;
use crate::user_ptr::UserBuffer;
use crate::wait::Wait;
use keys::KeyRecord;
use screen::Screen;

/// An end of the console that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleEnd {
    /// What a process holds to belong to the console.
    Connection,
    /// Input.
    Input,
    /// Output.
    Output,
}

/// Control codes.
mod code {
    const READ: u32 = 1;
    const WRITE: u32 = 2;
    const fn of(function: u32, access: u32) -> u32 {
        0x50 << 16 | access << 14 | function << 2
    }
    pub const GET_MODE: u32 = of(0, READ);
    pub const SET_MODE: u32 = of(1, WRITE);
    pub const READ_CONSOLE: u32 = of(10, READ);
    pub const READ_FILE: u32 = of(11, READ);
    pub const READ_INPUT: u32 = of(12, READ);
    pub const WRITE_INPUT: u32 = of(13, WRITE);
    pub const PEEK: u32 = of(14, READ);
    pub const GET_INPUT_INFO: u32 = of(15, READ);
    pub const SET_INPUT_INFO: u32 = of(16, WRITE);
    pub const GET_TITLE: u32 = of(17, READ);
    pub const SET_TITLE: u32 = of(18, WRITE);
    pub const BEEP: u32 = of(20, 0);
    pub const FLUSH: u32 = of(21, 0);
    pub const GET_WINDOW: u32 = of(22, 0);
    pub const GET_INPUT_COUNT: u32 = of(25, READ);
    pub const WRITE_CONSOLE: u32 = of(30, WRITE);
    pub const WRITE_FILE: u32 = of(31, WRITE);
    pub const WRITE_OUTPUT: u32 = of(33, WRITE);
    pub const GET_OUTPUT_INFO: u32 = of(34, READ);
    pub const SET_OUTPUT_INFO: u32 = of(35, WRITE);
    pub const ACTIVATE: u32 = of(36, WRITE);
    pub const FILL_OUTPUT: u32 = of(37, WRITE);
}

/// ENABLE_PROCESSED_INPUT, ENABLE_LINE_INPUT, ENABLE_ECHO_INPUT, ENABLE_VIRTUAL_TERMINAL_INPUT.
const PROCESSED_INPUT: u32 = 1;
const LINE_INPUT: u32 = 2;
const ECHO_INPUT: u32 = 4;
const VT_INPUT: u32 = 0x200;
/// ENABLE_VIRTUAL_TERMINAL_PROCESSING.
const VT_PROCESSING: u32 = 4;
/// Most bytes of input of a control code: bounds what a guest makes the host allocate.
const MAX_INPUT: u32 = 1 << 20;
/// Most events that may wait to be read when a guest puts in its own.
const MAX_RECORDS: usize = 0x1_0000;

/// What is asked of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reading {
    /// UTF-16 text.
    Text,
    /// Text in the input's code page.
    Bytes,
    /// INPUT_RECORDs.
    Records,
}

/// The state of the console.
#[derive(Debug)]
pub struct Console {
    /// Where output goes, if any stream of output is the terminal.
    output: Option<StdStream>,
    input_mode: u32,
    output_mode: u32,
    input_page: u32,
    output_page: u32,
    title: Vec<u8>,
    /// Bytes from the terminal that are no whole character yet.
    undecoded: Vec<u8>,
    /// Characters that have been typed and not read.
    text: VecDeque<u16>,
    /// The same as events.
    records: VecDeque<KeyRecord>,
    /// The terminal is gone, or its user has said that input ends.
    ended: bool,
    screen: Screen,
}

impl Console {
    /// A console whose output goes to that stream.
    #[must_use]
    pub fn new(output: Option<StdStream>) -> Self {
        /// What a new console has: everything for lines, and the flags about mouse and insertion.
        const INPUT_MODE: u32 = 0x1F7;
        const OUTPUT_MODE: u32 = 3;
        const OEM_PAGE: u32 = 437;
        Self {
            output,
            input_mode: INPUT_MODE,
            output_mode: OUTPUT_MODE,
            input_page: OEM_PAGE,
            output_page: OEM_PAGE,
            title: Vec::new(),
            undecoded: Vec::new(),
            text: VecDeque::new(),
            records: VecDeque::new(),
            ended: false,
            screen: Screen::default(),
        }
    }

    /// How the terminal must be set for a reading.
    fn terminal_mode(&self, reading: Reading) -> TerminalMode {
        let has = |flag| self.input_mode & flag != 0;
        let lines = reading != Reading::Records && has(LINE_INPUT);
        TerminalMode { lines, echo: lines && has(ECHO_INPUT), signals: has(PROCESSED_INPUT) }
    }

    /// Takes in what the terminal has delivered.
    fn accept(&mut self, bytes: &[u8], reading: Reading) {
        self.undecoded.extend_from_slice(bytes);
        let text = pages::take_utf8(&mut self.undecoded);
        if reading == Reading::Records {
            self.records.extend(keys::records(&text, self.input_mode & VT_INPUT != 0));
        } else if self.terminal_mode(reading).lines {
            self.text.extend(text.replace('\n', "\r\n").encode_utf16());
        } else {
            self.text.extend(text.encode_utf16());
        }
    }

    /// Keys that were taken in as events are text to those who read text.
    fn records_to_text(&mut self) {
        self.text.extend(self.records.drain(..).filter(|key| key.down).map(|key| key.character).filter(|&c| c != 0));
    }

    /// What a reading gets of what there is, `length` bytes at most.
    fn take(&mut self, reading: Reading, length: usize) -> Vec<u8> {
        match reading {
            Reading::Records => {
                let count = self.records.len().min(length / KeyRecord::SIZE);
                self.records.drain(..count).flat_map(KeyRecord::to_bytes).collect()
            }
            Reading::Text => {
                let count = self.text.len().min(length / 2);
                self.text.drain(..count).flat_map(u16::to_le_bytes).collect()
            }
            Reading::Bytes => pages::take_encoded(&mut self.text, self.input_page, length),
        }
    }

    fn has(&self, reading: Reading) -> bool {
        if reading == Reading::Records { !self.records.is_empty() } else { !self.text.is_empty() }
    }
}

impl Kernel {
    fn console(&mut self) -> Result<&mut Console, Status> {
        self.console.as_mut().ok_or(Status::INVALID_HANDLE)
    }

    /// Whether reading from the console would not wait.
    pub fn console_ready(&mut self) -> bool {
        let waiting = |console: &Console| console.has(Reading::Text) || console.has(Reading::Records) || console.ended;
        self.console.as_ref().is_some_and(waiting) || self.host.wait_for_input(Some(Duration::ZERO))
    }

    /// Takes in what has been typed, for someone who looks without waiting.
    fn poll_console(&mut self) -> Result<(), Status> {
        let mode = self.console()?.terminal_mode(Reading::Records);
        self.host.set_terminal(mode);
        if self.host.wait_for_input(Some(Duration::ZERO)) {
            self.fill_console(Reading::Records)?;
        }
        Ok(())
    }

    fn fill_console(&mut self, reading: Reading) -> Result<(), Status> {
        let mut bytes = [0; 4096];
        let read = self.host.read(&mut bytes).map_err(|error| status_of_io(&error))?;
        let console = self.console()?;
        console.ended = read == 0;
        console.accept(&bytes[..read], reading);
        Ok(())
    }

    /// Writes text to the terminal and follows the cursor.
    fn write_console(&mut self, text: &str) -> Result<(), Status> {
        let size = self.host.terminal_size();
        let console = self.console()?;
        console.screen.resize(size);
        let shown = match console.output_mode & VT_PROCESSING {
            // Without it an escape is a character like others: an arrow.
            0 => text.replace('\x1b', "\u{2190}"),
            _ => text.to_owned(),
        };
        console.screen.follow(&shown);
        let Some(stream) = console.output else { return Ok(()) };
        self.host.write(stream, shown.as_bytes()).map_err(|error| status_of_io(&error))
    }

    /// Writes what only the terminal understands.
    fn command_terminal(&mut self, sequence: &str) -> Result<(), Status> {
        let Some(stream) = self.console()?.output else { return Ok(()) };
        self.host.write(stream, sequence.as_bytes()).map_err(|error| status_of_io(&error))
    }

    /// NtWriteFile on the console: text in the output's code page.
    pub(super) fn write_console_bytes(&mut self, data: &[u8]) -> Result<(), Status> {
        let page = self.console()?.output_page;
        let text = pages::decode(data, page);
        self.write_console(&text)
    }
}

/// Which end of the console a file object is.
pub fn end_of(kernel: &Kernel, id: ObjectId) -> Option<ConsoleEnd> {
    match kernel.objects.body(id) {
        Ok(Body::File(file)) => match file.kind {
            super::FileKind::Console(end) => Some(end),
            _ => None,
        },
        _ => None,
    }
}

/// NtReadFile on the console.
pub(super) fn read_file(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    end: ConsoleEnd,
    completion: Completion,
    buffer: UserBuffer,
) -> Result<Outcome, Status> {
    if end != ConsoleEnd::Input {
        return Err(Status::INVALID_DEVICE_REQUEST);
    }
    read(call, id, Reading::Bytes, completion, buffer)
}

/// Reads; other threads run while nothing has been typed.
fn read(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    reading: Reading,
    completion: Completion,
    buffer: UserBuffer,
) -> Result<Outcome, Status> {
    let mode = call.kernel.console()?.terminal_mode(reading);
    call.kernel.host.set_terminal(mode);
    call.kernel.objects.reference(id);
    let wait = Wait::until("console input", move |kernel, _| kernel.console_ready().then_some(Status::SUCCESS));
    Ok(Outcome::Wait(wait.on_host().then(move |call, _| {
        let result = finish_read(call, id, reading, completion, buffer);
        call.kernel.objects.dereference(id);
        call.kernel.reap();
        match result {
            Ok(true) => Outcome::Return(Status::SUCCESS),
            // Half a character, or somebody else was faster.
            Ok(false) => read(call, id, reading, completion, buffer).unwrap_or_else(Outcome::Return),
            Err(status) => Outcome::Return(status),
        }
    })))
}

/// Whether there was something to finish the reading with.
fn finish_read(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    reading: Reading,
    completion: Completion,
    buffer: UserBuffer,
) -> Result<bool, Status> {
    if reading != Reading::Records {
        call.kernel.console()?.records_to_text();
    }
    if !call.kernel.console()?.has(reading) {
        call.kernel.fill_console(reading)?;
    }
    let console = call.kernel.console()?;
    let length = usize::try_from(buffer.length).unwrap_or(usize::MAX).min(MAX_INPUT as usize);
    let ended = std::mem::take(&mut console.ended);
    if !console.has(reading) && !ended {
        return Ok(false);
    }
    let bytes = console.take(reading, length);
    if ended && bytes.is_empty() && reading == Reading::Records {
        // Without a terminal there are no events any more; text just ends.
        console.ended = true;
        return Err(Status::PIPE_BROKEN);
    }
    buffer.write(call, &bytes)?;
    completion.finish(call, id, Status::SUCCESS, bytes.len() as u64)?;
    Ok(true)
}

/// The `index`th 32-bit number of a control code's input.
fn word(input: &[u8], index: usize) -> Result<u32, Status> {
    let bytes = input.get(index * 4..index * 4 + 4).ok_or(Status::INVALID_PARAMETER)?;
    Ok(bytes.iter().rev().fold(0, |value, &byte| value << 8 | u32::from(byte)))
}

fn units(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// A control code.
pub(super) fn control(
    call: &mut Call<'_, '_>,
    id: ObjectId,
    end: ConsoleEnd,
    completion: Completion,
    code: u32,
    input: UserBuffer,
    output: UserBuffer,
) -> Result<Outcome, Status> {
    if input.length > u64::from(MAX_INPUT) {
        return Err(Status::INVALID_PARAMETER);
    }
    let input = input.read(call)?;
    let answer = match end {
        ConsoleEnd::Input => {
            let reading = match code {
                code::READ_CONSOLE => Some(Reading::Text),
                code::READ_FILE => Some(Reading::Bytes),
                code::READ_INPUT => Some(Reading::Records),
                _ => None,
            };
            if let Some(reading) = reading {
                return read(call, id, reading, completion, output);
            }
            input_control(call.kernel, code, &input, output.length)?
        }
        ConsoleEnd::Output => output_control(call.kernel, code, &input)?,
        ConsoleEnd::Connection => None,
    };
    let answer = match answer {
        Some(answer) => answer,
        None => common_control(call.kernel, code, &input, output.length)?,
    };
    let written = output.write_truncated(call, &answer)?;
    completion.finish(call, id, Status::SUCCESS, written)?;
    Ok(Outcome::Return(Status::SUCCESS))
}

/// Codes that every end answers. What there is no answer to: lists of processes, events for other processes.
fn common_control(kernel: &mut Kernel, code: u32, input: &[u8], room: u64) -> Result<Vec<u8>, Status> {
    Ok(match code {
        code::GET_INPUT_INFO => {
            let console = kernel.console()?;
            Bytes::default().u32s(&[console.input_page, console.output_page]).0
        }
        code::SET_INPUT_INFO => {
            let (mask, pages) = (word(input, 0)?, [word(input, 1)?, word(input, 2)?]);
            let console = kernel.console()?;
            if mask & 1 != 0 {
                console.input_page = pages[0];
            }
            if mask & 2 != 0 {
                console.output_page = pages[1];
            }
            Vec::new()
        }
        code::GET_TITLE => {
            let title = &kernel.console()?.title;
            let mut answer = Bytes::default().u32s(&[(title.len() / 2) as u32]).bytes(title).0;
            answer.truncate(usize::try_from(room).unwrap_or(usize::MAX));
            answer
        }
        code::SET_TITLE => {
            let text = String::from_utf16_lossy(&units(input));
            let shown: String = text.chars().filter(|character| !character.is_control()).collect();
            kernel.console()?.title = input.to_vec();
            kernel.command_terminal(&format!("\x1b]0;{shown}\x07"))?;
            Vec::new()
        }
        code::BEEP => {
            kernel.command_terminal("\x07")?;
            Vec::new()
        }
        // There is no window.
        code::GET_WINDOW => vec![0; 4],
        _ => return Err(Status::NOT_SUPPORTED),
    })
}

fn input_control(kernel: &mut Kernel, code: u32, input: &[u8], room: u64) -> Result<Option<Vec<u8>>, Status> {
    Ok(Some(match code {
        code::GET_MODE => kernel.console()?.input_mode.to_le_bytes().into(),
        code::SET_MODE => {
            let mode = word(input, 0)?;
            // Echo is part of editing lines.
            if mode & (ECHO_INPUT | LINE_INPUT) == ECHO_INPUT {
                return Err(Status::INVALID_PARAMETER);
            }
            kernel.console()?.input_mode = mode;
            Vec::new()
        }
        code::WRITE_INPUT => {
            let records: Vec<_> = input.chunks_exact(KeyRecord::SIZE).filter_map(KeyRecord::from_bytes).collect();
            let queue = &mut kernel.console()?.records;
            if queue.len() + records.len() > MAX_RECORDS {
                return Err(Status::INSUFFICIENT_RESOURCES);
            }
            queue.extend(records);
            Vec::new()
        }
        code::PEEK => {
            kernel.poll_console()?;
            let count = usize::try_from(room).unwrap_or(usize::MAX) / KeyRecord::SIZE;
            kernel.console()?.records.iter().take(count).copied().flat_map(KeyRecord::to_bytes).collect()
        }
        code::GET_INPUT_COUNT => {
            kernel.poll_console()?;
            (kernel.console()?.records.len() as u32).to_le_bytes().into()
        }
        code::FLUSH => {
            kernel.poll_console()?;
            let console = kernel.console()?;
            console.records.clear();
            console.text.clear();
            Vec::new()
        }
        _ => return Ok(None),
    }))
}

fn output_control(kernel: &mut Kernel, code: u32, input: &[u8]) -> Result<Option<Vec<u8>>, Status> {
    Ok(Some(match code {
        code::GET_MODE => kernel.console()?.output_mode.to_le_bytes().into(),
        code::SET_MODE => {
            kernel.console()?.output_mode = word(input, 0)?;
            Vec::new()
        }
        code::WRITE_CONSOLE => {
            kernel.write_console(&String::from_utf16_lossy(&units(input)))?;
            Vec::new()
        }
        code::WRITE_FILE => {
            kernel.write_console_bytes(input)?;
            Vec::new()
        }
        code::GET_OUTPUT_INFO => {
            let size = kernel.host.terminal_size();
            let screen = &mut kernel.console()?.screen;
            screen.resize(size);
            screen.information()
        }
        code::SET_OUTPUT_INFO => {
            let size = kernel.host.terminal_size();
            let screen = &mut kernel.console()?.screen;
            screen.resize(size);
            let sequence = screen.change(input)?;
            kernel.command_terminal(&sequence)?;
            Vec::new()
        }
        // There is one screen only.
        code::ACTIVATE => Vec::new(),
        code::FILL_OUTPUT => {
            let (sequence, count) = kernel.console()?.screen.fill(input)?;
            kernel.command_terminal(&sequence)?;
            count.to_le_bytes().into()
        }
        code::WRITE_OUTPUT => {
            let (sequence, answer) = kernel.console()?.screen.write(input)?;
            kernel.command_terminal(&sequence)?;
            answer
        }
        _ => return Ok(None),
    }))
}
