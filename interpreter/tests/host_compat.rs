//! Compatibility mode against the host processor: 32-bit instructions, executed there behind a far jump to Linux's 32-bit
//! code segment.
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
#![expect(unsafe_code, reason = "generated code runs on the host processor, faults included")]

mod support;

use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use iced_x86::{Code, Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, OpKind, Register, RflagsBits};
use lstar_arch::cpuid::Features;
use lstar_arch::{CpuModel, CpuState, DescriptorTable, Rflags, Segment, SegmentIndex};
use lstar_interpreter::{Interpreter, Outcome};
use support::Paged;

/// Where everything lies, within the reach of 32-bit code.
const CODE: u32 = 0x5100_0000;
const DATA: u32 = 0x5200_0000;
const DATA_SIZE: u32 = 0x2000;
const STACK: u32 = 0x5300_0000;
const STACK_SIZE: u32 = 0x1000;
/// Registers of the guest and of the host; far from the sums of a data address and a power of two.
const CONTEXT: u32 = 0x6B00_0000;
/// Code that enters and leaves.
const GLUE: u32 = 0x6D00_0000;
const LEAVE: u32 = GLUE + 0x800;
/// Where the interpreter finds the segments that Linux has; beyond what 32-bit code reaches.
const GDT: u64 = 0xFFFF_8000_0000_0000;
const USER_DATA: u16 = 0x2B;
const USER_CODE32: u16 = 0x23;
const USER_CODE64: u16 = 0x33;

/// EAX to EDI, EFLAGS.
type Registers = [u32; 9];

static SIGNAL: AtomicI32 = AtomicI32::new(0);
static FAULT_EIP: AtomicU32 = AtomicU32::new(0);

extern "C" fn on_fault(signal: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel hands a valid context to the handler; CONTEXT is mapped while the handler is installed.
    unsafe {
        let registers = &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        SIGNAL.store(signal, Ordering::Relaxed);
        FAULT_EIP.store(registers[libc::REG_RIP as usize] as u32, Ordering::Relaxed);
        // As if the code had left at the fault.
        registers[libc::REG_RIP as usize] = i64::from(LEAVE);
        registers[libc::REG_CSGSFS as usize] = registers[libc::REG_CSGSFS as usize] & !0xFFFF | i64::from(USER_CODE64);
        registers[libc::REG_EFL as usize] &= !0x100;
    }
}

/// The host's side: fixed mappings and the way in and out.
struct Host;

impl Host {
    fn new() -> Self {
        let rwx = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        for (address, size) in
            [(CODE, 0x1000), (DATA, DATA_SIZE), (STACK, STACK_SIZE), (CONTEXT, 0x1000), (GLUE, 0x1000)]
        {
            // SAFETY: a fresh mapping that replaces nothing.
            let mapped = unsafe {
                libc::mmap(
                    address as usize as *mut _,
                    size as usize,
                    rwx,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
                    -1,
                    0,
                )
            };
            assert_eq!(mapped as u64, u64::from(address));
        }
        use iced_x86::code_asm::*;
        let low = [eax, ecx, edx, ebx, esp, ebp, esi, edi];
        let saved = [rbx, rbp, r12, r13, r14, r15];
        let context = |offset: u32| u64::from(CONTEXT + offset);
        let mut a = CodeAssembler::new(64).expect("assembler");
        let mut enter = || -> Result<Vec<u8>, iced_x86::IcedError> {
            for register in saved {
                a.push(register)?;
            }
            a.mov(qword_ptr(context(64)), rsp)?;
            a.mov(eax, u32::from(USER_DATA))?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            a.push(qword_ptr(context(128)))?;
            a.popfq()?;
            for (index, register) in low.into_iter().enumerate() {
                a.mov(register, dword_ptr(context(4 * index as u32)))?;
            }
            a.jmp(fword_ptr(context(72)))?;
            a.assemble(u64::from(GLUE))
        };
        let enter = enter().expect("glue");
        let mut a = CodeAssembler::new(64).expect("assembler");
        let mut leave = || -> Result<Vec<u8>, iced_x86::IcedError> {
            for (index, register) in low.into_iter().enumerate() {
                a.mov(dword_ptr(context(4 * index as u32)), register)?;
            }
            a.mov(rsp, qword_ptr(context(64)))?;
            a.pushfq()?;
            a.pop(qword_ptr(context(128)))?;
            a.cld()?;
            a.xor(eax, eax)?;
            a.mov(ds, eax)?;
            a.mov(es, eax)?;
            for register in saved.into_iter().rev() {
                a.pop(register)?;
            }
            a.ret()?;
            a.assemble(u64::from(LEAVE))
        };
        let leave = leave().expect("glue");
        // SAFETY: the mappings are ours; the handler has the signature that SA_SIGINFO asks for; the alternate stack
        // lives as long as the process.
        unsafe {
            std::ptr::copy_nonoverlapping(enter.as_ptr(), GLUE as usize as *mut u8, enter.len());
            std::ptr::copy_nonoverlapping(leave.as_ptr(), LEAVE as usize as *mut u8, leave.len());
            let stack: &'static mut [u8] = Box::leak(vec![0; 1 << 16].into_boxed_slice());
            let stack = libc::stack_t { ss_sp: stack.as_mut_ptr().cast(), ss_flags: 0, ss_size: stack.len() };
            assert_eq!(libc::sigaltstack(&raw const stack, std::ptr::null_mut()), 0);
            let mut action: libc::sigaction = std::mem::zeroed();
            let handler: extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) = on_fault;
            action.sa_sigaction = handler as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            for signal in [libc::SIGFPE, libc::SIGSEGV, libc::SIGILL, libc::SIGBUS, libc::SIGTRAP] {
                assert_eq!(libc::sigaction(signal, &raw const action, std::ptr::null_mut()), 0);
            }
        }
        Self
    }

    /// Executes `code` and comes back behind it or at its fault: the signal and EIP of that.
    fn run(&self, code: &[u8], registers: &mut Registers, data: &mut [u8], stack: &mut [u8]) -> Option<(i32, u32)> {
        let mut bytes = code.to_vec();
        // jmp far 33:LEAVE
        bytes.push(0xEA);
        bytes.extend(LEAVE.to_le_bytes());
        bytes.extend(USER_CODE64.to_le_bytes());
        SIGNAL.store(0, Ordering::Relaxed);
        // SAFETY: all areas are mapped and large enough; the glue keeps the C calling convention, and whatever the code
        // does within its areas, it comes back at LEAVE, by itself or by the handler.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), CODE as usize as *mut u8, bytes.len());
            std::ptr::copy_nonoverlapping(data.as_ptr(), DATA as usize as *mut u8, data.len());
            std::ptr::copy_nonoverlapping(stack.as_ptr(), STACK as usize as *mut u8, stack.len());
            let context = CONTEXT as usize as *mut u32;
            std::ptr::copy_nonoverlapping(registers.as_ptr(), context, 8);
            context.add(32).cast::<u64>().write(u64::from(registers[8]));
            context.add(18).write(CODE);
            context.add(19).cast::<u16>().write(USER_CODE32);
            let enter: extern "C" fn() = std::mem::transmute(GLUE as usize);
            enter();
            std::ptr::copy_nonoverlapping(context, registers.as_mut_ptr(), 8);
            registers[8] = context.add(32).read();
            std::ptr::copy_nonoverlapping(DATA as usize as *const u8, data.as_mut_ptr(), data.len());
            std::ptr::copy_nonoverlapping(STACK as usize as *const u8, stack.as_mut_ptr(), stack.len());
        }
        let signal = SIGNAL.load(Ordering::Relaxed);
        (signal != 0).then(|| (signal, FAULT_EIP.load(Ordering::Relaxed)))
    }
}

/// The interpreter's side.
fn interpret(code: &[u8], registers: &mut Registers, data: &mut [u8], stack: &mut [u8]) -> Option<(i32, u32)> {
    let mut memory = Paged::default();
    memory.map(CODE.into(), 1, true, true);
    memory.map(DATA.into(), u64::from(DATA_SIZE / 0x1000), true, true);
    memory.map(STACK.into(), 1, true, true);
    memory.poke(CODE.into(), code);
    memory.poke(DATA.into(), data);
    memory.poke(STACK.into(), stack);
    memory.map(GDT, 1, true, false);
    for (selector, descriptor) in [
        (USER_CODE32, 0x00CF_FB00_0000_FFFF),
        (USER_DATA, 0x00CF_F300_0000_FFFF),
        (USER_CODE64, 0x0020_FB00_0000_0000u64),
    ] {
        memory.poke(GDT + u64::from(selector & !7), &descriptor.to_le_bytes());
    }
    memory.accept_modifications();
    let mut model = CpuModel::AMD;
    model.features = model.features.union(Features::all());
    let mut cpu = CpuState::new(model);
    cpu.cpl = 3;
    cpu.gdtr = DescriptorTable { base: GDT, limit: 0x7F };
    *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code32(USER_CODE32, 3);
    for index in [SegmentIndex::Ss, SegmentIndex::Ds, SegmentIndex::Es] {
        *cpu.segment_mut(index) = Segment::flat_data(USER_DATA, 3);
    }
    for index in [SegmentIndex::Fs, SegmentIndex::Gs] {
        *cpu.segment_mut(index) = Segment::default();
    }
    cpu.rip = CODE.into();
    for (full, half) in cpu.gpr.iter_mut().zip(registers.iter()).take(8) {
        *full = (*half).into();
    }
    cpu.rflags = u64::from(registers[8]) | 0x202;
    let mut interpreter = Interpreter::new();
    let end = u64::from(CODE) + code.len() as u64;
    let mut fault = None;
    for _ in 0..10_000 {
        if cpu.rip == end {
            break;
        }
        match interpreter.step(&mut cpu, &mut memory) {
            Outcome::Retired | Outcome::Call | Outcome::Return => {}
            Outcome::CodeModified => memory.accept_modifications(),
            Outcome::Exception(exception) => {
                // What Linux makes of each vector.
                let signal = match exception.vector as u8 {
                    0 | 16 | 19 => libc::SIGFPE,
                    1 | 3 => libc::SIGTRAP,
                    6 => libc::SIGILL,
                    12 | 17 => libc::SIGBUS,
                    _ => libc::SIGSEGV,
                };
                fault = Some((signal, cpu.rip as u32));
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    for (half, full) in registers.iter_mut().zip(&cpu.gpr).take(8) {
        *half = *full as u32;
    }
    registers[8] = cpu.rflags as u32;
    for (start, bytes) in [(DATA, data), (STACK, stack)] {
        for (address, byte) in (u64::from(start)..).zip(bytes) {
            [*byte] = memory.peek(address);
        }
    }
    fault
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn register(&mut self) -> u32 {
        match self.below(8) {
            0..=2 => DATA + 0x800 + (self.below(0x1000) as u32 & !3),
            3 => self.below(16) as u32,
            4 => 0u32.wrapping_sub(self.below(16) as u32),
            5 => 1 << self.below(32),
            _ => self.next() as u32,
        }
    }
}

fn defined(insn: &Instruction) -> u32 {
    let table = [
        (RflagsBits::OF, Rflags::OF),
        (RflagsBits::SF, Rflags::SF),
        (RflagsBits::ZF, Rflags::ZF),
        (RflagsBits::AF, Rflags::AF),
        (RflagsBits::CF, Rflags::CF),
        (RflagsBits::PF, Rflags::PF),
    ];
    let undefined = insn.rflags_undefined();
    let status = Rflags::STATUS.bits() | Rflags::DF.bits();
    table
        .into_iter()
        .filter(|(bit, _)| undefined & bit != 0)
        .fold(status as u32, |all, (_, flag)| all & !(flag.bits() as u32))
}

/// Runs one case on both; a description of the difference.
fn compare(host: &Host, random: &mut Random, code: &[u8], insn: &Instruction) -> Option<String> {
    let mut start: Registers = std::array::from_fn(|_| random.register());
    start[4] = STACK + 0x800 + (random.below(64) as u32) * 4;
    start[8] = (random.next() as u32) & 0x4D5 | 0x202;
    let mut data: Vec<u8> = (0..DATA_SIZE).map(|_| random.next() as u8).collect();
    let mut stack: Vec<u8> = (0..STACK_SIZE).map(|_| random.next() as u8).collect();
    let (mut other, mut other_data, mut other_stack) = (start, data.clone(), stack.clone());
    let (mut right, mut wrong) = (start, start);
    let a = host.run(code, &mut right, &mut data, &mut stack);
    let b = interpret(code, &mut wrong, &mut other_data, &mut other_stack);
    let flags = if a.is_some() { 0 } else { defined(insn) };
    right[8] &= flags;
    wrong[8] &= flags;
    other[8] &= 0xCD5;
    if a == b && right == wrong && data == other_data && stack == other_stack {
        return None;
    }
    let bytes: Vec<String> = code.iter().map(|byte| format!("{byte:02x}")).collect();
    Some(format!(
        "{insn} ({}) from {other:x?}:\n  host        {a:x?} {right:x?}\n  interpreter {b:x?} {wrong:x?}\n  memory equal: {} {}\n",
        bytes.join(" "),
        data == other_data,
        stack == other_stack
    ))
}

/// What cannot be compared: the host's kernel would see it, or what it gives depends on the host.
fn excluded(insn: &Instruction) -> bool {
    use Mnemonic as M;
    let system = insn.is_privileged()
        || matches!(
            insn.mnemonic(),
            M::Sysenter
                | M::Syscall
                | M::Int
                | M::Into
                | M::Int1
                | M::Rdtsc
                | M::Rdtscp
                | M::Rdpmc
                | M::Cpuid
                | M::Rdrand
                | M::Rdseed
        )
        || matches!(
            insn.mnemonic(),
            M::Sgdt | M::Sidt | M::Sldt | M::Str | M::Smsw | M::Lar | M::Lsl | M::Verr | M::Verw
        )
        || matches!(
            insn.mnemonic(),
            M::Xgetbv | M::Rdpkru | M::Wrpkru | M::Rdpid | M::Rdfsbase | M::Xbegin | M::Xabort | M::Xtest
        );
    // RF, AC, ID and TF concern the test program itself.
    let flags = matches!(insn.mnemonic(), M::Popf | M::Popfd | M::Pushf | M::Pushfd | M::Iret | M::Iretd);
    let ports =
        matches!(insn.mnemonic(), M::In | M::Out | M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd);
    let segments = (0..insn.op_count())
        .any(|i| insn.op_kind(i) == OpKind::Register && insn.op_register(i).is_segment_register())
        || matches!(insn.mnemonic(), M::Lds | M::Les | M::Lss | M::Lfs | M::Lgs);
    let override_ = matches!(insn.segment_prefix(), Register::FS | Register::GS);
    // Vectors and x87 have tests of their own, and their registers are not loaded here.
    let vectors = (0..insn.op_count()).any(|i| {
        let register = insn.op_register(i);
        insn.op_kind(i) == OpKind::Register
            && (register.is_vector_register()
                || register.is_mm()
                || register.is_st()
                || register.is_k()
                || register.is_tmm()
                || register.is_bnd())
    }) || insn.cpuid_features().iter().any(|feature| {
        use iced_x86::CpuidFeature as F;
        !matches!(
            feature,
            F::INTEL8086
                | F::INTEL8086_ONLY
                | F::INTEL186
                | F::INTEL286
                | F::INTEL386
                | F::INTEL486
                | F::CMOV
                | F::CX8
                | F::BMI1
                | F::BMI2
                | F::LZCNT
                | F::POPCNT
                | F::ADX
                | F::MOVBE
                | F::MULTIBYTENOP
                | F::PAUSE
        )
    });
    system || flags || ports || segments || override_ || vectors || insn.lock_prefix_is_odd()
}

trait Odd {
    fn lock_prefix_is_odd(&self) -> bool;
}

impl Odd for Instruction {
    /// Repeated strings run long over unmapped memory; they have tests of their own.
    fn lock_prefix_is_odd(&self) -> bool {
        self.is_string_instruction() && (self.has_rep_prefix() || self.has_repne_prefix())
    }
}

#[test]
fn instructions_do_what_the_host_does() {
    let host = Host::new();
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let mut wrong = Vec::new();
    let mut kinds = std::collections::BTreeSet::new();
    let mut done = 0;
    while done < 60_000 && wrong.len() < 12 {
        let mut bytes = [0u8; 15];
        bytes.fill_with(|| random.next() as u8);
        // Prefixes now and then, and the 16-bit address size more often than by chance.
        match random.below(6) {
            0 => bytes[0] = 0x67,
            1 => bytes[0] = 0x66,
            _ => {}
        }
        let mut decoder = Decoder::with_ip(32, &bytes, CODE.into(), DecoderOptions::AMD);
        let insn = decoder.decode();
        if insn.is_invalid() || excluded(&insn) || insn.flow_control() != FlowControl::Next {
            continue;
        }
        kinds.insert(insn.code());
        done += 1;
        wrong.extend(compare(&host, &mut random, &bytes[..insn.len()], &insn));
    }
    // Those that only 32-bit code has, and control transfers within it, by hand. Not INT1: under hypervisors that watch
    // debug exceptions it seems to fault instead of to trap.
    let code = CODE.to_le_bytes();
    let far = |at: u8| {
        let mut bytes = vec![0x9A, code[0] + at, code[1], code[2], code[3], 0x23, 0];
        bytes.extend([0x90; 3]);
        bytes
    };
    let fixed: Vec<Vec<u8>> = vec![
        vec![0x27],
        vec![0x2F],
        vec![0x37],
        vec![0x3F],
        vec![0xD4, 0x0A],
        vec![0xD4, 0x00],
        vec![0xD5, 0x0A],
        vec![0xD5, 0x10],
        vec![0xD6],
        vec![0x60],
        vec![0x61],
        vec![0x66, 0x60],
        vec![0x66, 0x61],
        vec![0x62, 0x03],
        vec![0x66, 0x62, 0x03],
        vec![0x63, 0xC8],
        vec![0x63, 0x0B],
        vec![0xCE],
        vec![0x82, 0xC0, 0x7F],
        vec![0x06],
        vec![0x0E],
        vec![0x16],
        vec![0x1E],
        vec![0x66, 0x1E],
        // push ds; pop es and the like: selectors that exist.
        vec![0x1E, 0x07],
        vec![0x16, 0x1F],
        vec![0x66, 0x1E, 0x66, 0x07],
        // call +0; ret to behind it: pop eax.
        vec![0xE8, 0, 0, 0, 0, 0x58],
        vec![0xE8, 1, 0, 0, 0, 0x90, 0x58],
        // push target; ret 8.
        vec![0x68, code[0] + 8, code[1], code[2], code[3], 0xC2, 8, 0],
        far(7),
        // push cs; push target; retf.
        vec![0x0E, 0x68, code[0] + 7, code[1], code[2], code[3], 0xCB],
        // pushfd; push cs; push target; iretd.
        vec![0x9C, 0x0E, 0x68, code[0] + 8, code[1], code[2], code[3], 0xCF],
        vec![0x9C, 0x58, 0x25, 0xD5, 0x0C, 0, 0],
        vec![0xE3, 0],
        vec![0x67, 0xE3, 0],
        vec![0xE2, 0],
        vec![0x67, 0xE2, 0],
        vec![0xC8, 8, 0, 0],
        vec![0xC8, 8, 0, 3],
        vec![0x66, 0xC8, 8, 0, 2],
        vec![0xC9],
        vec![0xA0, 0, 8, 0, 0x52],
        vec![0xA3, 0, 8, 0, 0x52],
        vec![0xCC],
        vec![0x0F, 0x0B],
    ];
    for code in &fixed {
        let insn = Decoder::with_ip(32, code, CODE.into(), DecoderOptions::AMD).decode();
        for _ in 0..300 {
            wrong.extend(compare(&host, &mut random, code, &insn).filter(|_| wrong.len() < 20));
        }
        kinds.insert(insn.code());
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(kinds.len() > 300, "{} encodings", kinds.len());
    assert!(kinds.contains(&Code::Arpl_rm16_r16) && kinds.contains(&Code::Salc));
}
