//! What is known of an exception that ends a process: registers and a stack trace.

use std::fmt;

use lstar_arch::Gpr;
use lstar_runtime::AddressSpace;

use crate::context::UserContext;
use crate::exception::ExceptionRecord;
use crate::kernel::Kernel;
use crate::memory::MemoryManager;
use crate::status::Status;
use crate::thread::ThreadId;
use crate::user_ptr::GuestValue;

/// Frames that a stack trace shows at most.
const MAX_FRAMES: usize = 64;
/// Index of the exception directory (.pdata) in an image.
const EXCEPTION_DIRECTORY: usize = 3;

/// A code address with its module, when it lies in one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CodeAddress {
    /// The address.
    pub address: u64,
    /// File name of the image and offset from its base.
    pub module: Option<(String, u64)>,
}

impl fmt::Display for CodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module {
            Some((name, offset)) => write!(f, "{:#018x} {name}+{offset:#x}", self.address),
            None => write!(f, "{:#018x}", self.address),
        }
    }
}

/// The exception that was dispatched last.
#[derive(Clone, Debug)]
pub struct LastException {
    /// Thread that raised it.
    pub thread: ThreadId,
    /// The record.
    pub record: ExceptionRecord,
    /// Registers at that point.
    pub user: UserContext,
}

/// A crash, ready to be told.
#[derive(Clone, Debug)]
pub struct CrashReport {
    /// Thread that raised it.
    pub thread: ThreadId,
    /// The exception's status.
    pub code: Status,
    /// Where.
    pub address: CodeAddress,
    /// The record's parameters: of an access violation the kind (0 read, 1 write, 8 execute) and the address.
    pub parameters: Vec<u64>,
    /// Registers.
    pub registers: UserContext,
    /// Return addresses, innermost first, beginning with the faulting instruction.
    pub stack: Vec<CodeAddress>,
}

impl Kernel {
    /// Tells an exception, with the stack as it is now.
    #[must_use]
    pub fn crash_report(&self, space: &AddressSpace, exception: &LastException) -> CrashReport {
        let locate = |address: u64| CodeAddress {
            address,
            module: self.memory.module_at(address).map(|(base, name)| (name.to_owned(), address - base)),
        };
        let record = &exception.record;
        let count = (record.parameter_count as usize).min(record.parameters.len());
        CrashReport {
            thread: exception.thread,
            code: Status(record.code),
            address: locate(record.address),
            parameters: record.parameters[..count].to_vec(),
            registers: exception.user.clone(),
            stack: stack_trace(&self.memory, space, &exception.user).into_iter().map(locate).collect(),
        }
    }
}

impl fmt::Display for CrashReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "exception {} ({:#010x}) at {} in thread {:#x}", self.code, self.code.0, self.address, self.thread)?;
        match (self.code, self.parameters.as_slice()) {
            (Status::ACCESS_VIOLATION | Status::GUARD_PAGE_VIOLATION | Status::STACK_OVERFLOW, [kind, address, ..]) => {
                let verb = match kind {
                    0 => "reading",
                    1 => "writing",
                    8 => "executing",
                    _ => "accessing",
                };
                writeln!(f, ", {verb} {address:#018x}")?;
            }
            (_, []) => writeln!(f)?,
            (_, parameters) => writeln!(f, ", parameters {parameters:#x?}")?,
        }
        const NAMES: [&str; 16] = [
            "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
            "r15",
        ];
        for (row, registers) in self.registers.gpr.chunks(4).enumerate() {
            for (column, value) in registers.iter().enumerate() {
                write!(f, " {:>3}={value:016x}", NAMES[row * 4 + column])?;
            }
            writeln!(f)?;
        }
        writeln!(f, " rip={:016x} efl={:08x}", self.registers.rip, self.registers.rflags)?;
        writeln!(f, "stack trace:")?;
        for (index, entry) in self.stack.iter().enumerate() {
            writeln!(f, " #{index:<2} {entry}")?;
        }
        Ok(())
    }
}

fn read<T: GuestValue>(space: &AddressSpace, address: u64) -> Option<T> {
    let mut bytes = vec![0; T::SIZE];
    space.read_unchecked(address, &mut bytes).ok()?;
    Some(T::from_bytes(&bytes))
}

/// Walks the stack by the images' unwind information.
#[must_use]
pub fn stack_trace(memory: &MemoryManager, space: &AddressSpace, user: &UserContext) -> Vec<u64> {
    let mut gpr = user.gpr;
    let mut rip = user.rip;
    let mut trace = vec![rip];
    while trace.len() < MAX_FRAMES {
        let sp = gpr[Gpr::Rsp as usize];
        let Some(return_address) = unwind(memory, space, rip, &mut gpr) else { break };
        // A frame that does not shrink the stack would never end; so would a chain of null addresses.
        if return_address == 0 || gpr[Gpr::Rsp as usize] <= sp {
            break;
        }
        rip = return_address;
        trace.push(rip);
    }
    trace
}

crate::guest_struct! {
    /// RUNTIME_FUNCTION.
    struct RuntimeFunction: 0xC {
        begin @ 0: u32,
        end @ 4: u32,
        unwind @ 8: u32,
    }
}

/// Undoes one frame and returns its return address. A function without unwind information is a leaf.
fn unwind(memory: &MemoryManager, space: &AddressSpace, rip: u64, gpr: &mut [u64; 16]) -> Option<u64> {
    let function = memory.section_at(rip).and_then(|(base, section)| {
        let (rva, size) = section.image()?.directory(EXCEPTION_DIRECTORY)?;
        let target = u32::try_from(rip - base).ok()?;
        Some((base, target, find_function(space, base + u64::from(rva), size / 12, target)?))
    });
    if let Some((base, target, function)) = function {
        undo_prologue(space, base, target, function, gpr)?;
    }
    let sp = gpr[Gpr::Rsp as usize];
    gpr[Gpr::Rsp as usize] = sp.wrapping_add(8);
    read(space, sp)
}

fn find_function(space: &AddressSpace, table: u64, count: u32, target: u32) -> Option<RuntimeFunction> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let function: RuntimeFunction = read(space, table + u64::from(middle) * 12)?;
        if target < function.begin {
            high = middle;
        } else if target >= function.end {
            low = middle + 1;
        } else {
            return Some(function);
        }
    }
    None
}

/// Unwind operations of the x64 exception-handling format.
fn undo_prologue(
    space: &AddressSpace,
    base: u64,
    target: u32,
    mut function: RuntimeFunction,
    gpr: &mut [u64; 16],
) -> Option<()> {
    const CHAINED: u8 = 4;
    const MAX_CHAIN: usize = 32;
    let mut within = Some(target.checked_sub(function.begin)?);
    for _ in 0..MAX_CHAIN {
        let info = base + u64::from(function.unwind & !1);
        let [flags, _, count, frame]: [u8; 4] = read(space, info)?;
        let codes: Vec<u16> = (0..u64::from(count)).map_while(|index| read(space, info + 4 + index * 2)).collect();
        let slot = |index: usize| u64::from(codes.get(index).copied().unwrap_or(0));
        let wide = |index: usize| slot(index) | slot(index + 1) << 16;
        let frame_register = usize::from(frame & 15);
        let mut index = 0;
        while index < codes.len() {
            let [offset, operation] = codes[index].to_le_bytes();
            let argument = usize::from(operation >> 4);
            let done = within.is_none_or(|within| u32::from(offset) <= within);
            let sp = gpr[Gpr::Rsp as usize];
            let (slots, sp) = match operation & 15 {
                0 => {
                    if done {
                        gpr[argument] = read(space, sp)?;
                    }
                    (1, sp.wrapping_add(8))
                }
                1 if argument == 0 => (2, sp.wrapping_add(slot(index + 1) * 8)),
                1 => (3, sp.wrapping_add(wide(index + 1))),
                2 => (1, sp.wrapping_add(argument as u64 * 8 + 8)),
                3 => (1, gpr[frame_register].wrapping_sub(u64::from(frame >> 4) * 16)),
                4 | 5 => {
                    let far = operation & 15 == 5;
                    let at = if far { wide(index + 1) } else { slot(index + 1) * 8 };
                    if done {
                        gpr[argument] = read(space, sp.wrapping_add(at))?;
                    }
                    (if far { 3 } else { 2 }, sp)
                }
                6 | 8 => (2, sp),
                7 | 9 => (3, sp),
                10 => (1, read(space, sp.wrapping_add(0x18 + argument as u64 * 8))?),
                _ => return None,
            };
            if done {
                gpr[Gpr::Rsp as usize] = sp;
            }
            index += slots;
        }
        if flags >> 3 & CHAINED == 0 {
            return Some(());
        }
        function = read(space, info + 4 + u64::from(count).div_ceil(2) * 4)?;
        within = None;
    }
    None
}
