//! Walks a stack by the unwind information of the images in guest memory (Microsoft x64 calling convention,
//! "x64 exception handling": RUNTIME_FUNCTION, UNWIND_INFO).

use super::Fault;
use super::image::{Image, Memory};
use super::symbols::Symbols;

/// Frames at most.
const MOST_FRAMES: usize = 64;
/// Chained UNWIND_INFOs of one function at most.
const MOST_CHAINS: usize = 32;
/// Quadwords that are searched for a return address where there is no unwind information.
const SCAN: u64 = 64;

/// Registers that a walk needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// Instruction pointer.
    pub rip: u64,
    /// General-purpose registers in encoding order.
    pub gpr: [u64; 16],
}

const RSP: usize = 4;

impl Context {
    fn rsp(&self) -> u64 {
        self.gpr[RSP]
    }
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Where it executes (a return address, except in the first frame).
    pub rip: u64,
    /// Stack pointer in it.
    pub rsp: u64,
    /// Where it returns to; 0 when unknown.
    pub return_address: u64,
}

/// Walks from a register state to the outermost frame that can be found.
pub fn walk(memory: &dyn Memory, symbols: &Symbols, start: Context) -> Vec<Frame> {
    let mut frames = Vec::new();
    let mut context = start;
    while frames.len() < MOST_FRAMES {
        let mut frame = Frame { rip: context.rip, rsp: context.rsp(), return_address: 0 };
        let caller = unwind(memory, symbols, context, frames.is_empty());
        if let Ok(Some(caller)) = caller {
            frame.return_address = caller.rip;
        }
        frames.push(frame);
        match caller {
            // A caller's frame lies above; anything else is no frame.
            Ok(Some(caller)) if caller.rip != 0 && caller.rsp() > context.rsp() => context = caller,
            _ => break,
        }
    }
    frames
}

/// The caller's registers; `None` when `context` is outside all modules and nothing on the stack looks like a caller.
fn unwind(memory: &dyn Memory, symbols: &Symbols, context: Context, innermost: bool) -> Result<Option<Context>, Fault> {
    let module = symbols.module_at(context.rip);
    let table = module
        .and_then(|module| Image::at(memory, module.base))
        .and_then(|image| image.directory(memory, 3).map(|(address, size)| (image.range().start, address, size / 12)));
    let Some((base, address, count)) = table else {
        return scan(memory, symbols, context, innermost);
    };
    // Behind a call that does not return, a return address can be the next function's first byte.
    let offset = if innermost { context.rip } else { context.rip.wrapping_sub(1) };
    let rva = u32::try_from(offset.wrapping_sub(base)).unwrap_or(u32::MAX);
    match find(memory, address, count, rva)? {
        Some(function) => virtual_unwind(memory, base, function, rva, context).map(Some),
        // A leaf: it has not moved RSP.
        None => pop_return(memory, context).map(Some),
    }
}

/// The RUNTIME_FUNCTION (begin, end, unwind RVA) that covers `rva`.
fn find(memory: &dyn Memory, table: u64, count: u32, rva: u32) -> Result<Option<[u32; 3]>, Fault> {
    let (mut low, mut high) = (0, count);
    while low < high {
        let middle = low + (high - low) / 2;
        let at = table.wrapping_add(12 * u64::from(middle));
        let function = [memory.u32(at)?, memory.u32(at.wrapping_add(4))?, memory.u32(at.wrapping_add(8))?];
        if rva < function[0] {
            high = middle;
        } else if rva >= function[1] {
            low = middle + 1;
        } else {
            return Ok(Some(function));
        }
    }
    Ok(None)
}

fn pop_return(memory: &dyn Memory, mut context: Context) -> Result<Context, Fault> {
    context.rip = memory.number(context.rsp(), 8)?;
    context.gpr[RSP] = context.rsp().wrapping_add(8);
    Ok(context)
}

/// Undoes a function's prologue as far as it has executed.
fn virtual_unwind(
    memory: &dyn Memory,
    base: u64,
    function: [u32; 3],
    rva: u32,
    mut context: Context,
) -> Result<Context, Fault> {
    let mut info = base.wrapping_add(u64::from(function[2]));
    // Chained parts have executed their prologues wholly.
    let mut executed = rva.wrapping_sub(function[0]);
    for _ in 0..MOST_CHAINS {
        let header = memory.u32(info)?;
        let chained = header >> 3 & 4 != 0;
        let count = header >> 16 & 0xFF;
        let frame_register = (header >> 24 & 0xF) as usize;
        let frame_offset = u64::from(header >> 28) * 16;
        let slot = |index: u32| memory.number(info.wrapping_add(4 + 2 * u64::from(index)), 2);
        let wide = |index: u32| -> Result<u64, Fault> { Ok(slot(index)? | slot(index + 1)? << 16) };
        let mut index = 0;
        while index < count {
            let code = slot(index)?;
            let (offset, operation, argument) = (code as u32 & 0xFF, code >> 8 & 0xF, (code >> 12) as usize);
            let done = offset <= executed;
            let size = match operation {
                0 => {
                    if done {
                        context.gpr[argument] = memory.number(context.rsp(), 8)?;
                        context.gpr[RSP] = context.rsp().wrapping_add(8);
                    }
                    1
                }
                1 => {
                    let (bytes, size) = if argument == 0 { (slot(index + 1)? * 8, 2) } else { (wide(index + 1)?, 3) };
                    if done {
                        context.gpr[RSP] = context.rsp().wrapping_add(bytes);
                    }
                    size
                }
                2 => {
                    if done {
                        context.gpr[RSP] = context.rsp().wrapping_add(argument as u64 * 8 + 8);
                    }
                    1
                }
                3 => {
                    if done {
                        context.gpr[RSP] = context.gpr[frame_register].wrapping_sub(frame_offset);
                    }
                    1
                }
                4 | 5 => {
                    let (offset, size) = if operation == 4 { (slot(index + 1)? * 8, 2) } else { (wide(index + 1)?, 3) };
                    if done {
                        context.gpr[argument] = memory.number(context.rsp().wrapping_add(offset), 8)?;
                    }
                    size
                }
                6 | 8 => 2,
                7 | 9 => 3,
                _ => {
                    // A machine frame: RIP, CS, RFLAGS, RSP, SS, with an error code below it if the argument is 1.
                    let frame = context.rsp().wrapping_add(argument as u64 * 8);
                    context.rip = memory.number(frame, 8)?;
                    context.gpr[RSP] = memory.number(frame.wrapping_add(24), 8)?;
                    return Ok(context);
                }
            };
            index += size;
        }
        if !chained {
            return pop_return(memory, context);
        }
        let next = info.wrapping_add(4 + 2 * u64::from(count.next_multiple_of(2)));
        info = base.wrapping_add(u64::from(memory.u32(next.wrapping_add(8))?));
        executed = u32::MAX;
    }
    pop_return(memory, context)
}

/// Without unwind information: the next quadword on the stack that points behind a call inside a module.
fn scan(
    memory: &dyn Memory,
    symbols: &Symbols,
    mut context: Context,
    innermost: bool,
) -> Result<Option<Context>, Fault> {
    if symbols.modules().is_empty() || !innermost && symbols.module_at(context.rip).is_none() {
        return Ok(None);
    }
    for index in 0..SCAN {
        let at = context.rsp().wrapping_add(8 * index);
        let value = memory.number(at, 8)?;
        if symbols.module_at(value).is_some() && follows_call(memory, value) {
            context.rip = value;
            context.gpr[RSP] = at.wrapping_add(8);
            return Ok(Some(context));
        }
    }
    Ok(None)
}

/// Whether the bytes before an address can be a call: E8 rel32, or FF /2 in any of its lengths.
fn follows_call(memory: &dyn Memory, address: u64) -> bool {
    let byte = |back: u64| memory.number(address.wrapping_sub(back), 1).unwrap_or(0);
    byte(5) == 0xE8 || [2, 3, 4, 6, 7].iter().any(|back| byte(*back) == 0xFF && byte(back - 1) >> 3 & 7 == 2)
}

#[cfg(test)]
mod tests {
    use super::super::symbols::{Module, SymbolSource};
    use super::*;

    const BASE: u64 = 0x1_4000_0000;
    const STACK: u64 = 0x20_0000;

    /// An image of 2000h bytes at `BASE` and a stack of 400h bytes.
    struct Fake {
        image: Vec<u8>,
        stack: Vec<u8>,
    }

    impl Memory for Fake {
        fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
            for (base, bytes) in [(BASE, &self.image), (STACK, &self.stack)] {
                let start = address.wrapping_sub(base);
                if start < bytes.len() as u64 {
                    let source = bytes.get(start as usize..start as usize + buf.len()).ok_or(Fault(address))?;
                    buf.copy_from_slice(source);
                    return Ok(());
                }
            }
            Err(Fault(address))
        }
    }

    fn fake() -> (Fake, Symbols) {
        let mut image = vec![0; 0x2000];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3C, &0x80u32.to_le_bytes());
        put(0x80, b"PE\0\0");
        put(0x98, &0x20Bu16.to_le_bytes());
        put(0x98 + 56, &0x2000u32.to_le_bytes());
        put(0x98 + 112 + 24, &0x1800u32.to_le_bytes());
        put(0x98 + 112 + 28, &24u32.to_le_bytes());
        // inner 1000h..1020h: push rbx (at 2), sub rsp,20h (at 6). outer 1100h..1120h: push rbp (at 1), mov rbp,rsp.
        for (at, function) in [(0x1800, [0x1000u32, 0x1020, 0x1900]), (0x180C, [0x1100, 0x1120, 0x1910])] {
            for (index, value) in function.iter().enumerate() {
                put(at + 4 * index, &value.to_le_bytes());
            }
        }
        put(0x1900, &[1, 6, 2, 0, 6, 0x32, 2, 0x30]);
        put(0x1910, &[1, 4, 2, 5, 4, 0x03, 1, 0x50]);
        let mut symbols = Symbols::default();
        symbols.add(Module::new("app", "app.exe", BASE..BASE + 0x2000, SymbolSource::Export, vec![]));
        (Fake { image, stack: vec![0; 0x400] }, symbols)
    }

    fn put(fake: &mut Fake, address: u64, value: u64) {
        let at = (address - STACK) as usize;
        fake.stack[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    #[test]
    fn undoes_prologues() {
        let (mut fake, symbols) = fake();
        let rsp = STACK + 0x100;
        put(&mut fake, rsp + 0x20, 0x7777); // rbx
        put(&mut fake, rsp + 0x28, BASE + 0x1110); // return into outer
        put(&mut fake, STACK + 0x180, 0x8888); // rbp
        put(&mut fake, STACK + 0x188, 0x1234); // outer's return: outside
        let mut context = Context { rip: BASE + 0x1010, ..Context::default() };
        context.gpr[RSP] = rsp;
        context.gpr[5] = STACK + 0x180;
        let frames = walk(&fake, &symbols, context);
        assert_eq!(
            frames[..2],
            [
                Frame { rip: BASE + 0x1010, rsp, return_address: BASE + 0x1110 },
                Frame { rip: BASE + 0x1110, rsp: rsp + 0x30, return_address: 0x1234 },
            ]
        );
        // In the middle of the prologue: RBX is pushed, the locals are not there yet.
        context.rip = BASE + 0x1002;
        put(&mut fake, rsp, 0x7777);
        put(&mut fake, rsp + 8, BASE + 0x1110);
        assert_eq!(walk(&fake, &symbols, context)[0].return_address, BASE + 0x1110);
        // Before it: a leaf so far.
        context.rip = BASE + 0x1000;
        put(&mut fake, rsp, BASE + 0x1111);
        assert_eq!(walk(&fake, &symbols, context)[0].return_address, BASE + 0x1111);
    }

    #[test]
    fn ends_on_garbage() {
        let (mut fake, symbols) = fake();
        fake.image[0x1900..0x1A00].fill(0xFF);
        let mut context = Context { rip: BASE + 0x1010, ..Context::default() };
        for rsp in [0, STACK, STACK + 0x3FC, u64::MAX - 3] {
            context.gpr[RSP] = rsp;
            assert!(walk(&fake, &symbols, context).len() <= MOST_FRAMES);
        }
    }
}
