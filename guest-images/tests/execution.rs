//! The kernel's code, executed: start-up, system calls and their exits, faults, as user code sees them.

mod support;

use lstar_arch::{CpuModel, Gpr, Segment, SegmentIndex};
use lstar_guest_images::layout::ktrap_frame as frame;
use lstar_guest_images::programs::syscall_loop;
use lstar_guest_images::{Build, GateId, KernelConfig, KernelImage, ServiceEntry, map_pe};
use support::{Machine, Stop};

const USER_CODE: u64 = 0x1000_0000;
const USER_STACK: u64 = 0x2000_0000;
const STACK_SIZE: u64 = 0x1_0000;
const TEB: u64 = 0x3000_0000;
/// RSP of the user code: room for stack arguments above it.
const USER_RSP: u64 = USER_STACK + STACK_SIZE - 0x200;

const CREATE_FILE: u32 = 0x52;
const CLOSE: u32 = 0x0C;
const CONTINUE: u32 = 0x40;
/// As many stack arguments as can be copied.
const WIDE: u32 = 0x30;
const GUI: u32 = 0x1000;

struct Kernel {
    machine: Machine,
    image: KernelImage,
}

fn config(build: Build) -> KernelConfig {
    let mut services = vec![None; 0x60];
    for (number, name, arguments) in
        [(CLOSE, "NtClose", 1), (CREATE_FILE, "NtCreateFile", 11), (CONTINUE, "NtContinue", 2), (WIDE, "NtWide", 18)]
    {
        services[number as usize] = Some(ServiceEntry::new(name, arguments));
    }
    let shadow_services = vec![Some(ServiceEntry::new("NtUserGetThreadState", 5))];
    KernelConfig { build, services, shadow_services }
}

impl Kernel {
    /// A booted kernel, stopped at the KernelStart gate.
    fn boot(build: Build) -> Self {
        let image = KernelImage::build(&config(build)).expect("the kernel builds");
        let mut machine = Machine::new(CpuModel::INTEL);
        let mapped = map_pe(&image.pe).expect("a PE image");
        for piece in &mapped.pieces {
            let bytes = mapped.read(piece.rva, piece.size).expect("inside the image");
            machine.ram.map(mapped.base + u64::from(piece.rva), bytes, piece.protection.write, false);
        }
        machine.ram.map(USER_CODE, vec![0xCC; 0x1000], true, true);
        machine.ram.map(USER_STACK, vec![0; STACK_SIZE as usize], true, true);
        machine.ram.map(TEB, vec![0; 0x2000], true, true);
        machine.cpu.rip = image.entry;
        assert_eq!(machine.run(), Stop::Gate(GateId::KernelStart as u32));
        let mut kernel = Self { machine, image };
        let thread = kernel.thread();
        let offsets = build.thread_offsets();
        kernel.machine.set_u64(thread + u64::from(offsets.teb), TEB);
        kernel.machine.set_u8(thread + u64::from(offsets.previous_mode), 1);
        kernel
    }

    fn symbol(&self, name: &str) -> u64 {
        self.image.address_of(name).unwrap_or_else(|| panic!("no symbol {name}"))
    }

    fn thread(&self) -> u64 {
        self.symbol("KiInitialThread")
    }

    /// Puts `code` at the user code page and the processor there, at CPL 3, as a first IRETQ would.
    fn enter_user(&mut self, code: &[u8]) {
        self.machine.set_code(USER_CODE, code);
        let cpu = &mut self.machine.cpu;
        if cpu.cpl == 0 {
            // SWAPGS of the first exit.
            cpu.kernel_gs_base = cpu.segment(SegmentIndex::Gs).base;
            cpu.segment_mut(SegmentIndex::Gs).base = TEB;
        }
        cpu.cpl = 3;
        *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(0x33, 3);
        *cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(0x2B, 3);
        cpu.rip = USER_CODE;
        cpu.rflags = 0x202;
        for register in Gpr::ALL {
            cpu.set_reg(register, 0xA000_0000_0000_0000 | register as u64);
        }
        for (index, xmm) in cpu.xmm.iter_mut().enumerate() {
            *xmm = [0xB000 | index as u64, 0xC000 | index as u64];
        }
        cpu.mxcsr = 0x1FA0;
        cpu.set_reg(Gpr::Rsp, USER_RSP);
    }

    /// The stub of a service number, followed by whatever lies there.
    fn call(&mut self, number: u32) {
        let mut stub = vec![0x4C, 0x8B, 0xD1, 0xB8];
        stub.extend(number.to_le_bytes());
        stub.extend([0x0F, 0x05, 0xC3]);
        self.enter_user(&stub);
    }

    fn frame(&self) -> u64 {
        self.machine.reg(Gpr::Rbp) - 0x80
    }

    fn field(&mut self, offset: u32) -> u64 {
        let frame = self.frame();
        self.machine.u64(frame + u64::from(offset))
    }

    fn set_frame(&mut self, base: u64, offset: u32, value: u64) {
        self.machine.set_u64(base + u64::from(offset), value);
    }
}

/// Behind SYSCALL in the stub.
const RETURN: u64 = USER_CODE + 10;

fn initial(register: Gpr) -> u64 {
    0xA000_0000_0000_0000 | register as u64
}

#[test]
fn start_up_loads_the_machine() {
    let mut kernel = Kernel::boot(Build::Windows7);
    let cpu = &kernel.machine.cpu;
    assert_eq!(cpu.star, 0x0023_0010_0000_0000);
    assert_eq!(cpu.lstar, 0xFFFF_F800_03E7_BEC0);
    assert_eq!(cpu.cstar, 0xFFFF_F800_03E7_BC00);
    assert_eq!(cpu.fmask, 0x4700);
    assert_eq!(cpu.efer & 0xD01, 0xD01);
    assert_eq!(cpu.segment(SegmentIndex::Gs).base, kernel.symbol("KiInitialPCR"));
    assert_eq!(cpu.segment(SegmentIndex::Cs).selector, 0x10);
    assert_eq!(cpu.segment(SegmentIndex::Ss).selector, 0x18);
    assert_eq!(cpu.tr.base, kernel.symbol("KiTss"));
    assert_eq!(cpu.idtr.base, kernel.symbol("KiIdt"));
    assert_eq!(cpu.gdtr.base, kernel.symbol("KiGdt"));
    // Nobody starts a thread: the idle loop.
    assert_eq!(kernel.machine.run(), Stop::Halt);
    assert_ne!(kernel.machine.cpu.rflags & 0x200, 0);
}

#[test]
fn a_system_call_reaches_its_service_with_its_arguments_and_returns() {
    for build in [Build::Windows7, Build::Windows11] {
        let mut kernel = Kernel::boot(build);
        kernel.call(CREATE_FILE);
        for argument in 0..7 {
            kernel.machine.set_u64(USER_RSP + 0x28 + argument * 8, 0x500 + argument);
        }
        assert_eq!(kernel.machine.run(), Stop::Gate(CREATE_FILE));

        let machine = &mut kernel.machine;
        assert_eq!(machine.cpu.cpl, 0);
        assert_ne!(machine.cpu.rflags & 0x200, 0, "services run with interrupts on");
        for register in [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9, Gpr::R12, Gpr::R15] {
            assert_eq!(machine.reg(register), initial(register), "{register:?}");
        }
        for argument in 0..7 {
            let slot = machine.reg(Gpr::Rsp) + 0x28 + argument * 8;
            assert_eq!(machine.u64(slot), 0x500 + argument, "argument {}", argument + 5);
        }
        assert_eq!(machine.cpu.mxcsr, 0x1F80, "the kernel has its own MXCSR");
        assert_eq!(machine.reg(Gpr::Rbx), kernel.thread());
        for (offset, value) in [
            (frame::RAX, u64::from(CREATE_FILE)),
            (frame::RCX, initial(Gpr::Rcx)),
            (frame::RDX, initial(Gpr::Rdx)),
            (frame::R8, initial(Gpr::R8)),
            (frame::R9, initial(Gpr::R9)),
            (frame::RBX, initial(Gpr::Rbx)),
            (frame::RDI, initial(Gpr::Rdi)),
            (frame::RSI, initial(Gpr::Rsi)),
            (frame::RBP, initial(Gpr::Rbp)),
            (frame::RSP, USER_RSP),
            (frame::RIP, RETURN),
            (frame::SEG_CS, 0x33),
            (frame::SEG_SS, 0x2B),
            (frame::EFLAGS, 0x202),
            (frame::XMM0, 0xB000),
            (frame::XMM5, 0xB005),
        ] {
            assert_eq!(kernel.field(offset), value, "frame + {offset:#x}");
        }
        assert_eq!(kernel.field(frame::PREVIOUS_MODE) >> 24, 0x1FA0 << 8 | 2, "MxCsr and ExceptionActive");
        let (thread, offsets) = (kernel.thread(), build.thread_offsets());
        let frame_address = kernel.frame();
        assert_eq!(kernel.machine.u64(thread + u64::from(offsets.trap_frame)), frame_address);
        assert_eq!(kernel.machine.u64(thread + u64::from(offsets.first_argument)), initial(Gpr::Rcx));
        assert_eq!(kernel.machine.u64(thread + u64::from(offsets.system_call_number)) as u32, CREATE_FILE);
        assert_eq!(frame_address % 16, 0);

        kernel.machine.set_reg(Gpr::Rax, 0xC000_0034);
        assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
        let machine = &kernel.machine;
        assert_eq!(machine.cpu.cpl, 3);
        assert_eq!(machine.cpu.segment(SegmentIndex::Gs).base, TEB);
        assert_eq!(machine.cpu.mxcsr, 0x1FA0);
        assert_eq!(machine.cpu.rflags, 0x202);
        let r9_left = if build == Build::Windows7 { initial(Gpr::Rbp) } else { 0 };
        for (register, value) in [
            (Gpr::Rax, 0xC000_0034),
            (Gpr::Rcx, RETURN),
            (Gpr::R11, 0x202),
            (Gpr::Rdx, 0),
            (Gpr::R10, 0),
            (Gpr::R8, USER_RSP),
            (Gpr::R9, r9_left),
            (Gpr::Rsp, USER_RSP),
        ] {
            assert_eq!(machine.reg(register), value, "{register:?}");
        }
        for register in [Gpr::Rbx, Gpr::Rbp, Gpr::Rsi, Gpr::Rdi, Gpr::R12, Gpr::R13, Gpr::R14, Gpr::R15] {
            assert_eq!(machine.reg(register), initial(register), "{register:?}");
        }
        for index in 0..16 {
            let expected = if index < 6 { [0, 0] } else { [0xB000 | index as u64, 0xC000 | index as u64] };
            assert_eq!(machine.cpu.xmm[index], expected, "XMM{index}");
        }
    }
}

#[test]
fn fourteen_stack_arguments_arrive_and_spare_the_frame() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(WIDE);
    for argument in 0..14 {
        kernel.machine.set_u64(USER_RSP + 0x28 + argument * 8, 0x700 + argument);
    }
    assert_eq!(kernel.machine.run(), Stop::Gate(WIDE));
    for argument in 0..14 {
        let slot = kernel.machine.reg(Gpr::Rsp) + 0x28 + argument * 8;
        assert_eq!(kernel.machine.u64(slot), 0x700 + argument);
    }
    assert_eq!(kernel.field(frame::RAX), u64::from(WIDE));
    kernel.machine.set_reg(Gpr::Rax, 0);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
}

#[test]
fn bad_numbers_are_refused() {
    for number in [0x60, 0xFFF, 0x2000 | 0x777, 0] {
        let mut kernel = Kernel::boot(Build::Windows7);
        kernel.call(number);
        assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN), "{number:#x}");
        assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC000_001C, "{number:#x}");
        assert_eq!(kernel.machine.reg(Gpr::Rbx), initial(Gpr::Rbx));
        assert_eq!(kernel.machine.reg(Gpr::Rsi), initial(Gpr::Rsi));
    }
}

#[test]
fn bits_above_twelve_select_nothing() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(0x2000 | CLOSE);
    assert_eq!(kernel.machine.run(), Stop::Gate(CLOSE));
}

#[test]
fn the_first_gui_call_converts_the_thread() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(GUI);
    kernel.machine.set_u64(USER_RSP + 0x28, 0x55);
    assert_eq!(kernel.machine.run(), Stop::Gate(GateId::ConvertToGuiThread as u32));
    kernel.machine.set_reg(Gpr::Rax, 0);
    assert_eq!(kernel.machine.run(), Stop::Gate(GUI), "the call is repeated");
    for register in [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9] {
        assert_eq!(kernel.machine.reg(register), initial(register), "{register:?}");
    }
    let slot = kernel.machine.reg(Gpr::Rsp) + 0x28;
    assert_eq!(kernel.machine.u64(slot), 0x55);
    kernel.machine.set_reg(Gpr::Rax, 7);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    // The next one finds a GUI thread; with a GDI batch it flushes first.
    kernel.call(GUI);
    kernel.machine.set_u64(TEB + 0x1740, 3);
    assert_eq!(kernel.machine.run(), Stop::Gate(GateId::GdiFlush as u32));
    assert_eq!(kernel.machine.run(), Stop::Gate(GUI));
    for register in [Gpr::Rcx, Gpr::Rdx, Gpr::R8, Gpr::R9] {
        assert_eq!(kernel.machine.reg(register), initial(register), "{register:?}");
    }
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    // A GUI thread with a bad GUI number.
    kernel.call(GUI | 0x500);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC000_001C);
}

#[test]
fn a_failed_conversion_answers_from_the_table() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(GUI);
    assert_eq!(kernel.machine.run(), Stop::Gate(GateId::ConvertToGuiThread as u32));
    kernel.machine.set_reg(Gpr::Rax, 0xC000_0017);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 0);
}

#[test]
fn an_unreadable_user_stack_fails_the_call_only() {
    for rsp in [0x5000_0000, 0xFFFF_F800_0000_0000, 0x0000_9000_0000_0000, 0x7FE_FFFF_FFF0] {
        let mut kernel = Kernel::boot(Build::Windows7);
        kernel.call(CREATE_FILE);
        kernel.machine.set_reg(Gpr::Rsp, rsp);
        let gate = GateId::CopyFault as u32;
        assert_eq!(kernel.machine.run(), Stop::Gate(gate), "{rsp:#x}");
        assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN), "{rsp:#x}");
        assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC000_0005, "{rsp:#x}");
        assert_eq!(kernel.machine.reg(Gpr::Rsp), rsp);
        assert_eq!(kernel.machine.reg(Gpr::Rdi), initial(Gpr::Rdi));
        // And the kernel still works.
        kernel.call(CLOSE);
        assert_eq!(kernel.machine.run(), Stop::Gate(CLOSE));
    }
}

#[test]
fn a_copy_fault_that_is_resolved_is_retried() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(CREATE_FILE);
    kernel.machine.set_reg(Gpr::Rsp, 0x5000_0000);
    assert_eq!(kernel.machine.run(), Stop::Gate(GateId::CopyFault as u32));
    let frame_address = kernel.machine.reg(Gpr::Rdx);
    assert_eq!(kernel.machine.u64(frame_address + u64::from(frame::FAULT_ADDRESS)) >> 12, 0x5_0000);
    kernel.machine.ram.map(0x5000_0000, vec![0x11; 0x1000], true, true);
    kernel.machine.set_reg(Gpr::Rax, 0);
    assert_eq!(kernel.machine.run(), Stop::Gate(CREATE_FILE));
    let slot = kernel.machine.reg(Gpr::Rsp) + 0x28;
    assert_eq!(kernel.machine.u64(slot), 0x1111_1111_1111_1111);
}

#[test]
fn an_unreadable_teb_fails_a_gui_call_only() {
    let mut kernel = Kernel::boot(Build::Windows7);
    let thread = kernel.thread();
    kernel.machine.set_u64(thread + 0x100, 0x80);
    kernel.machine.set_u64(thread + 0xB8, 0x6000_0000);
    kernel.call(GUI);
    assert_eq!(kernel.machine.run(), Stop::Gate(GateId::CopyFault as u32));
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC000_0005);
}

#[test]
fn pending_user_apcs_are_delivered_at_exit() {
    for changed in [false, true] {
        let mut kernel = Kernel::boot(Build::Windows7);
        let thread = kernel.thread();
        kernel.call(CLOSE);
        assert_eq!(kernel.machine.run(), Stop::Gate(CLOSE));
        kernel.machine.set_u8(thread + 0x7A, 1);
        kernel.machine.set_reg(Gpr::Rax, 0xC0);
        assert_eq!(kernel.machine.run(), Stop::Gate(GateId::DeliverApc as u32));
        assert_eq!(kernel.machine.reg(Gpr::Rcx), thread);
        let base = kernel.machine.reg(Gpr::Rdx);
        assert_eq!(base, kernel.frame());
        assert_eq!(kernel.field(frame::RAX), 0xC0);
        kernel.set_frame(base, frame::RIP, USER_CODE + 0x100);
        kernel.set_frame(base, frame::RCX, 0x1234);
        kernel.machine.set_reg(Gpr::Rax, changed.into());
        assert_eq!(kernel.machine.run_to(USER_CODE + 0x100), Stop::At(USER_CODE + 0x100));
        assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC0);
        assert_eq!(kernel.machine.reg(Gpr::Rcx), if changed { 0x1234 } else { USER_CODE + 0x100 });
        assert_eq!(kernel.machine.cpu.cpl, 3);
        assert_eq!(kernel.machine.cpu.segment(SegmentIndex::Gs).base, TEB);
    }
}

#[test]
fn continue_restores_every_register() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(CONTINUE);
    assert_eq!(kernel.machine.run(), Stop::Gate(CONTINUE));
    let base = kernel.frame();
    let volatile = [
        (frame::RAX, Gpr::Rax),
        (frame::RCX, Gpr::Rcx),
        (frame::RDX, Gpr::Rdx),
        (frame::R8, Gpr::R8),
        (frame::R9, Gpr::R9),
        (frame::R10, Gpr::R10),
        (frame::R11, Gpr::R11),
        (frame::RBX, Gpr::Rbx),
        (frame::RSI, Gpr::Rsi),
        (frame::RDI, Gpr::Rdi),
        (frame::RBP, Gpr::Rbp),
    ];
    for (offset, register) in volatile {
        kernel.set_frame(base, offset, 0x7000 + register as u64);
    }
    kernel.set_frame(base, frame::XMM3, 0x3333);
    kernel.set_frame(base, frame::RIP, USER_CODE + 0x200);
    kernel.set_frame(base, frame::RSP, USER_RSP - 0x100);
    kernel.set_frame(base, frame::EFLAGS, 0x247);
    kernel.machine.set_reg(Gpr::Rax, 0);
    assert_eq!(kernel.machine.run_to(USER_CODE + 0x200), Stop::At(USER_CODE + 0x200));
    for (_, register) in volatile {
        assert_eq!(kernel.machine.reg(register), 0x7000 + register as u64, "{register:?}");
    }
    assert_eq!(kernel.machine.cpu.xmm[3][0], 0x3333);
    assert_eq!(kernel.machine.cpu.rflags, 0x247);
    assert_eq!(kernel.machine.reg(Gpr::Rsp), USER_RSP - 0x100);
    // When it fails, it returns like any service.
    kernel.call(CONTINUE);
    assert_eq!(kernel.machine.run(), Stop::Gate(CONTINUE));
    kernel.machine.set_reg(Gpr::Rax, 0xC000_0005);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 0xC000_0005);
}

#[test]
fn exceptions_arrive_at_the_gate_and_resume_with_every_register() {
    for (code, vector, error, rip) in [
        (&[0xF7, 0xF1][..], 0u64, 0, USER_CODE),
        (&[0xCC], 3, 0, USER_CODE + 1),
        (&[0x0F, 0x0B], 6, 0, USER_CODE),
        (&[0xFA], 13, 0, USER_CODE),
        (&[0x48, 0x8B, 0x04, 0x25, 0, 0, 0, 0x40], 14, 4, USER_CODE),
        (&[0xCD, 0x29], 0x29, 0, USER_CODE + 2),
        (&[0xCD, 0x2D], 0x2D, 0, USER_CODE + 2),
        (&[0xCD, 0x80], 13, 0x80 * 8 + 2, USER_CODE),
    ] {
        let mut kernel = Kernel::boot(Build::Windows7);
        kernel.enter_user(code);
        kernel.machine.cpu.set_reg(Gpr::Rcx, 0);
        assert_eq!(kernel.machine.run(), Stop::Gate(GateId::Exception as u32), "vector {vector:#x}");
        assert_eq!(kernel.machine.reg(Gpr::Rcx), vector);
        assert_eq!(kernel.machine.cpu.mxcsr, 0x1F80);
        let base = kernel.machine.reg(Gpr::Rdx);
        assert_eq!(kernel.frame(), base);
        assert_eq!(kernel.field(frame::RIP), rip, "vector {vector:#x}");
        assert_eq!(kernel.field(frame::ERROR_CODE), error, "vector {vector:#x}");
        assert_eq!(kernel.field(frame::RSP), USER_RSP);
        assert_eq!(kernel.field(frame::RBP), initial(Gpr::Rbp));
        assert_eq!(kernel.field(frame::R11), initial(Gpr::R11));
        assert_eq!(kernel.field(frame::PREVIOUS_MODE) & 0xFF, 1);
        if vector == 14 {
            assert_eq!(kernel.field(frame::FAULT_ADDRESS), 0x4000_0000);
        }
        kernel.set_frame(base, frame::RIP, USER_CODE + 0x80);
        assert_eq!(kernel.machine.run_to(USER_CODE + 0x80), Stop::At(USER_CODE + 0x80));
        for register in Gpr::ALL {
            let expected = match register {
                Gpr::Rsp => USER_RSP,
                Gpr::Rcx => 0,
                _ => initial(register),
            };
            assert_eq!(kernel.machine.reg(register), expected, "vector {vector:#x}: {register:?}");
        }
        for index in 0..16 {
            assert_eq!(kernel.machine.cpu.xmm[index], [0xB000 | index as u64, 0xC000 | index as u64]);
        }
        assert_eq!(kernel.machine.cpu.mxcsr, 0x1FA0);
        assert_eq!(kernel.machine.cpu.segment(SegmentIndex::Gs).base, TEB);
        assert_eq!(kernel.machine.cpu.cpl, 3);
    }
}

#[test]
fn int_2e_is_a_system_call_too() {
    let mut kernel = Kernel::boot(Build::Windows7);
    let mut stub = vec![0x4C, 0x8B, 0xD1, 0xB8];
    stub.extend(CREATE_FILE.to_le_bytes());
    stub.extend([0xCD, 0x2E, 0xC3]);
    kernel.enter_user(&stub);
    kernel.machine.set_u64(USER_RSP + 0x28, 0x99);
    assert_eq!(kernel.machine.run(), Stop::Gate(CREATE_FILE));
    assert_eq!(kernel.machine.reg(Gpr::Rcx), initial(Gpr::Rcx));
    let slot = kernel.machine.reg(Gpr::Rsp) + 0x28;
    assert_eq!(kernel.machine.u64(slot), 0x99);
    kernel.machine.set_reg(Gpr::Rax, 5);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 5);
    assert_eq!(kernel.machine.cpu.cpl, 3);
    assert_eq!(kernel.machine.cpu.segment(SegmentIndex::Gs).base, TEB);
}

#[test]
fn zw_calls_from_the_kernel_keep_the_callers_frame_and_mode() {
    let mut kernel = Kernel::boot(Build::Windows7);
    kernel.call(CLOSE);
    assert_eq!(kernel.machine.run(), Stop::Gate(CLOSE));
    let (thread, outer) = (kernel.thread(), kernel.frame());
    // Inside NtClose: call ZwCreateFile.
    let rsp = kernel.machine.reg(Gpr::Rsp);
    let back = kernel.machine.cpu.rip;
    let inner_rsp = rsp - 0x70 - (rsp - 0x70) % 16 - 8;
    kernel.machine.set_u64(inner_rsp, back);
    kernel.machine.set_u64(inner_rsp + 0x28, 0xABC);
    kernel.machine.set_reg(Gpr::Rsp, inner_rsp);
    kernel.machine.set_reg(Gpr::Rcx, 0x1111);
    kernel.machine.cpu.rip = kernel.symbol("ZwCreateFile");
    let outer_rbp = kernel.machine.reg(Gpr::Rbp);
    assert_eq!(kernel.machine.run(), Stop::Gate(CREATE_FILE));
    assert_ne!(kernel.frame(), outer);
    assert_eq!(kernel.machine.reg(Gpr::Rcx), 0x1111);
    assert_eq!(kernel.machine.u64(thread + 0x1F0) >> 48 & 0xFF, 0, "PreviousMode is kernel");
    assert_eq!(kernel.field(frame::TRAP_FRAME), outer);
    assert_eq!(kernel.field(frame::SEG_CS) & 0xFFFF, 0x10);
    assert_eq!(kernel.field(frame::RIP), kernel.symbol("KiServiceLinkage"));
    let slot = kernel.machine.reg(Gpr::Rsp) + 0x28;
    assert_eq!(kernel.machine.u64(slot), 0xABC);
    kernel.machine.set_reg(Gpr::Rax, 0x77);
    assert_eq!(kernel.machine.run_to(back), Stop::At(back));
    assert_eq!(kernel.machine.reg(Gpr::Rax), 0x77);
    assert_eq!(kernel.machine.reg(Gpr::Rsp), inner_rsp + 8);
    assert_eq!(kernel.machine.reg(Gpr::Rbp), outer_rbp);
    assert_eq!(kernel.machine.u64(thread + 0x1F0) >> 48 & 0xFF, 1, "PreviousMode is restored");
    assert_eq!(kernel.machine.u64(thread + 0x1D8), outer);
    kernel.machine.set_reg(Gpr::Rsp, rsp);
    assert_eq!(kernel.machine.run_to(RETURN), Stop::At(RETURN));
}

#[test]
fn a_rewritten_table_entry_takes_effect() {
    let mut kernel = Kernel::boot(Build::Windows7);
    let table = kernel.symbol("KiServiceTable");
    let hook = kernel.symbol("NtWide");
    let entry = (hook.wrapping_sub(table) as u32) << 4;
    let pair = kernel.machine.u64(table + u64::from(CLOSE) * 4);
    kernel.machine.set_u64(table + u64::from(CLOSE) * 4, pair & !0xFFFF_FFFF | u64::from(entry));
    kernel.call(CLOSE);
    assert_eq!(kernel.machine.run(), Stop::Gate(WIDE));
}

#[test]
fn the_loop_of_system_calls_counts_them() {
    let mut kernel = Kernel::boot(Build::Windows7);
    let program = syscall_loop(CLOSE).expect("the loop assembles");
    kernel.enter_user(&program.code);
    kernel.machine.set_reg(Gpr::Rcx, 5);
    kernel.machine.set_u64(USER_RSP, USER_CODE + 0x800);
    for _ in 0..5 {
        assert_eq!(kernel.machine.run(), Stop::Gate(CLOSE));
        kernel.machine.set_reg(Gpr::Rax, 0);
    }
    assert_eq!(kernel.machine.run_to(USER_CODE + 0x800), Stop::At(USER_CODE + 0x800));
    assert_eq!(kernel.machine.reg(Gpr::Rax), (program.expected)(5));
}
