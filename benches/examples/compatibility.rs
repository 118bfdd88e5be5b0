//! Prints, for small 32-bit functions, the least times on the host, the translator and the interpreter, and their ratios:
//! `cargo run --release -p lstar_benches --example compatibility`. On the host they run behind a far call to Linux's 32-bit
//! code segment.
#![expect(unsafe_code, reason = "runs guest code on the host processor for comparison")]

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use lstar_arch::{CpuModel, Gpr, Segment, SegmentIndex};
use lstar_runtime::{Engine, GateAction, Machine, MachineConfig, Protection, Registers, ServiceGate, Vcpu, VmExit};

/// The function; below it, on the host, the way in.
const CODE: u64 = 0x5000_0000;
const GLUE: u64 = CODE + 0x800;
/// `hlt`, which ends a run in the guest; `retf`, which ends one on the host.
const RETURN: u64 = CODE + 0xF00;
const DATA: u64 = 0x5100_0000;
const DATA_SIZE: u64 = 0x10_0000;
const STACK: u64 = 0x5200_0000;
const STACK_SIZE: u64 = 0x10_0000;
const CODE32: u16 = 0x23;
const USER_DATA: u16 = 0x2B;
const ROUNDS: usize = 7;

/// Name, argument, code: `n` in ECX, the result in EAX.
type Function = (&'static str, u32, fn(&mut CodeAssembler) -> Result<(), IcedError>);

const FUNCTIONS: [Function; 4] =
    [("calls", 27, fibonacci), ("sieve", 40, sieve), ("sorting", 2500, sort), ("strings", 60_000, strings)];

/// Recursion with frames and arguments on the stack.
fn fibonacci(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let (mut function, mut small) = (a.create_label(), a.create_label());
    a.push(ecx)?;
    a.call(function)?;
    a.pop(ecx)?;
    a.ret()?;
    a.set_label(&mut function)?;
    a.push(ebp)?;
    a.mov(ebp, esp)?;
    a.push(esi)?;
    a.mov(eax, dword_ptr(ebp + 8))?;
    a.cmp(eax, 2)?;
    a.jb(small)?;
    a.dec(eax)?;
    a.push(eax)?;
    a.call(function)?;
    a.add(esp, 4)?;
    a.mov(esi, eax)?;
    a.mov(eax, dword_ptr(ebp + 8))?;
    a.sub(eax, 2)?;
    a.push(eax)?;
    a.call(function)?;
    a.add(esp, 4)?;
    a.add(eax, esi)?;
    a.set_label(&mut small)?;
    a.pop(esi)?;
    a.leave()?;
    a.ret()
}

/// Primes below 64 Ki, `n` times.
fn sieve(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const LIMIT: u32 = 0x1_0000;
    let [mut again, mut number, mut strike, mut next] = std::array::from_fn(|_| a.create_label());
    a.set_label(&mut again)?;
    a.push(ecx)?;
    a.mov(edi, DATA as u32)?;
    a.mov(ecx, LIMIT / 4)?;
    a.mov(eax, 0x0101_0101)?;
    a.rep().stosd()?;
    a.xor(eax, eax)?;
    a.mov(edx, 2)?;
    a.set_label(&mut number)?;
    a.cmp(byte_ptr(DATA + edx), 0)?;
    a.je(next)?;
    a.inc(eax)?;
    a.lea(ecx, dword_ptr(edx + edx))?;
    a.cmp(ecx, LIMIT)?;
    a.jae(next)?;
    a.set_label(&mut strike)?;
    a.mov(byte_ptr(DATA + ecx), 0)?;
    a.add(ecx, edx)?;
    a.cmp(ecx, LIMIT)?;
    a.jb(strike)?;
    a.set_label(&mut next)?;
    a.inc(edx)?;
    a.cmp(edx, LIMIT)?;
    a.jb(number)?;
    a.pop(ecx)?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.ret()
}

/// Fills an array with noise and sorts it by insertion; the result is a sum over it.
fn sort(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let [mut fill, mut outer, mut inner, mut place, mut sum] = std::array::from_fn(|_| a.create_label());
    a.mov(ebx, DATA as u32)?;
    a.mov(esi, ecx)?;
    a.mov(eax, 12345)?;
    a.xor(edx, edx)?;
    a.set_label(&mut fill)?;
    a.imul_3(eax, eax, 0x41C6_4E6D)?;
    a.add(eax, 12345)?;
    a.mov(dword_ptr(ebx + edx * 4), eax)?;
    a.inc(edx)?;
    a.cmp(edx, esi)?;
    a.jb(fill)?;
    a.mov(edx, 1)?;
    a.set_label(&mut outer)?;
    a.mov(eax, dword_ptr(ebx + edx * 4))?;
    a.mov(ecx, edx)?;
    a.set_label(&mut inner)?;
    a.mov(edi, dword_ptr(ebx + ecx * 4 - 4))?;
    a.cmp(edi, eax)?;
    a.jbe(place)?;
    a.mov(dword_ptr(ebx + ecx * 4), edi)?;
    a.dec(ecx)?;
    a.jne(inner)?;
    a.set_label(&mut place)?;
    a.mov(dword_ptr(ebx + ecx * 4), eax)?;
    a.inc(edx)?;
    a.cmp(edx, esi)?;
    a.jb(outer)?;
    a.xor(eax, eax)?;
    a.set_label(&mut sum)?;
    a.dec(edx)?;
    a.lea(eax, dword_ptr(eax + eax * 2))?;
    a.xor(eax, dword_ptr(ebx + edx * 4))?;
    a.test(edx, edx)?;
    a.jne(sum)?;
    a.ret()
}

/// Formats numbers as text and adds up the hashes of that, through pointers in memory.
fn strings(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let [mut again, mut digit, mut hash] = std::array::from_fn(|_| a.create_label());
    a.xor(edi, edi)?;
    a.mov(dword_ptr(DATA), 0)?;
    a.set_label(&mut again)?;
    a.mov(dword_ptr(DATA + 4), ecx)?;
    a.lea(esi, dword_ptr(DATA + 64))?;
    a.mov(byte_ptr(esi), 0)?;
    a.mov(eax, ecx)?;
    a.mov(ebx, 10)?;
    a.set_label(&mut digit)?;
    a.xor(edx, edx)?;
    a.div(ebx)?;
    a.add(dl, 0x30)?;
    a.dec(esi)?;
    a.mov(byte_ptr(esi), dl)?;
    a.test(eax, eax)?;
    a.jne(digit)?;
    a.mov(eax, 0x811C_9DC5u32)?;
    a.set_label(&mut hash)?;
    a.movzx(edx, byte_ptr(esi))?;
    a.inc(esi)?;
    a.xor(eax, edx)?;
    a.imul_3(eax, eax, 0x0100_0193)?;
    a.cmp(byte_ptr(esi), 0)?;
    a.jne(hash)?;
    a.add(edi, eax)?;
    a.mov(ecx, dword_ptr(DATA + 4))?;
    a.dec(ecx)?;
    a.jne(again)?;
    a.mov(eax, edi)?;
    a.ret()
}

fn assemble(bits: u32, address: u64, code: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut a = CodeAssembler::new(bits).expect("assembler");
    code(&mut a).expect("instructions");
    a.assemble(address).expect("code")
}

struct NoGate;

impl ServiceGate for NoGate {
    fn service(&mut self, _: &mut Vcpu<'_>) -> GateAction {
        GateAction::Stop
    }
}

fn machine(engine: Engine, code: &[u8]) -> Machine {
    let config = MachineConfig { engine, model: CpuModel::V3, memory_limit: 1 << 30, ..MachineConfig::default() };
    let mut machine = Machine::new(config).expect("machine");
    let memory = machine.memory();
    memory.map(CODE, 0x1000, Protection::RX).expect("code");
    memory.map(DATA, DATA_SIZE, Protection::RW).expect("data");
    memory.map(STACK, STACK_SIZE, Protection::RW).expect("stack");
    memory.write_unchecked(CODE, code).expect("code");
    memory.write_unchecked(RETURN, &[0xF4]).expect("code");
    machine
}

fn call(machine: &mut Machine, n: u32) -> u32 {
    let mut vcpu = machine.vcpu();
    vcpu.enter_user_mode(0x33, USER_DATA);
    *vcpu.state_mut().segment_mut(SegmentIndex::Cs) = Segment::flat_code32(CODE32, 3);
    for segment in [SegmentIndex::Ds, SegmentIndex::Es] {
        vcpu.set_data_segment(segment, USER_DATA, u32::MAX);
    }
    // As Windows has it.
    vcpu.set_data_segment(SegmentIndex::Fs, 0x53, 0xFFF);
    let top = STACK + STACK_SIZE - 64;
    vcpu.set_reg(Gpr::Rsp, top);
    vcpu.set_reg(Gpr::Rcx, n.into());
    vcpu.set_rip(CODE);
    vcpu.memory.write_unchecked(top, &(RETURN as u32).to_le_bytes()).expect("stack");
    let exit = machine.run(&mut NoGate, u64::MAX);
    assert_eq!((exit, machine.vcpu().rip()), (VmExit::Shutdown, RETURN), "the function returns");
    machine.vcpu().reg(Gpr::Rax) as u32
}

/// Maps the areas in this process.
fn map_native() {
    for (start, size) in [(CODE, 0x1000), (DATA, DATA_SIZE), (STACK, STACK_SIZE)] {
        let protection = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: MAP_FIXED_NOREPLACE never touches what exists.
        let at = unsafe { libc::mmap(start as *mut libc::c_void, size as usize, protection, flags, -1, 0) };
        assert_eq!(at as u64, start, "the addresses are free");
    }
}

/// Puts a function and the way in to where the host executes them.
fn load_native(code: &[u8]) {
    const SAVED: u64 = CODE + 0xE00;
    let glue = assemble(64, GLUE, |a| {
        let saved = [rbx, rbp, r12, r13, r14, r15];
        for register in saved {
            a.push(register)?;
        }
        a.mov(qword_ptr(SAVED), rsp)?;
        a.mov(eax, u32::from(USER_DATA))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ecx, edi)?;
        a.mov(esp, (STACK + STACK_SIZE - 64) as u32)?;
        a.call(fword_ptr(SAVED + 16))?;
        a.mov(rsp, qword_ptr(SAVED))?;
        for register in saved.into_iter().rev() {
            a.pop(register)?;
        }
        a.ret()
    });
    let back = assemble(32, RETURN, |a| {
        a.call(CODE)?;
        a.retf()
    });
    let entry = [&(RETURN as u32).to_le_bytes()[..], &CODE32.to_le_bytes()].concat();
    for (address, bytes) in [(CODE, code), (GLUE, &glue), (RETURN, &back), (SAVED + 16, &entry)] {
        // SAFETY: within the page that `map_native` has mapped.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    }
}

fn call_native(n: u32) -> u32 {
    // SAFETY: the glue keeps the C calling convention; the function behind it works in the mapped areas.
    unsafe {
        let function: extern "sysv64" fn(u32) -> u32 = std::mem::transmute(GLUE);
        function(n)
    }
}

/// Processor time of this thread in seconds.
fn time(call: impl FnOnce() -> u32) -> (f64, u32) {
    let now = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let start = now();
    let result = std::hint::black_box(call());
    (now() - start, result)
}

fn main() {
    map_native();
    println!(
        "{:10} {:>10} {:>10} {:>7} {:>12} {:>10}",
        "function", "native ms", "lstar ms", "ratio", "interp. ms", "speed-up"
    );
    for (name, n, code) in FUNCTIONS {
        let code = assemble(32, CODE, code);
        load_native(&code);
        let mut translated = machine(Engine::Translator, &code);
        let (interpreted_time, expected) = time(|| call(&mut machine(Engine::Interpreter, &code), n));
        for n in [3, 5, 20, n, n] {
            call(&mut translated, n.max(2));
        }
        let mut least = [f64::INFINITY; 2];
        for _ in 0..ROUNDS {
            let runs = [time(|| call_native(n)), time(|| call(&mut translated, n))];
            for (least, (time, result)) in least.iter_mut().zip(runs) {
                assert_eq!(result, expected, "{name}");
                *least = least.min(time);
            }
        }
        let [native, translated_time] = least;
        println!(
            "{name:10} {:10.3} {:10.3} {:7.2} {:12.3} {:9.1}x",
            native * 1e3,
            translated_time * 1e3,
            translated_time / native,
            interpreted_time * 1e3,
            interpreted_time / translated_time,
        );
    }
}
