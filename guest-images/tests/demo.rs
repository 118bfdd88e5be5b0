//! The demonstration program on the Windows 7 kernel image, with its services played by this test.

mod support;

use lstar_arch::{CpuModel, Gpr, GuestMemory, Privilege, Segment, SegmentIndex};
use lstar_guest_images::ntdll::{ntdll, win32u, windows7_service_number};
use lstar_guest_images::{GateId, KernelConfig, KernelImage, demo, map_pe};
use support::{Machine, Stop};

const STACK: u64 = 0x2000_0000;
const STACK_SIZE: u64 = 0x1_0000;
const TEB: u64 = 0x3000_0000;
const PEB: u64 = 0x3000_2000;
const PARAMETERS: u64 = 0x3000_3000;
const STDOUT: u64 = 0x24;
const FILE: u64 = 0x28;

fn map_image(machine: &mut Machine, file: &[u8], user: bool) {
    let image = map_pe(file).expect("a PE image");
    for piece in &image.pieces {
        let bytes = image.read(piece.rva, piece.size).expect("inside the image");
        machine.ram.map(image.base + u64::from(piece.rva), bytes, piece.protection.write, user);
    }
}

fn read(machine: &mut Machine, address: u64, length: u64) -> Vec<u8> {
    let mut bytes = vec![0; length as usize];
    machine.ram.read(address, &mut bytes, Privilege::User).expect("readable by the program");
    bytes
}

/// An argument as the service sees it, counted from 1.
fn argument(machine: &mut Machine, number: u64) -> u64 {
    match number {
        1 => machine.reg(Gpr::Rcx),
        2 => machine.reg(Gpr::Rdx),
        3 => machine.reg(Gpr::R8),
        4 => machine.reg(Gpr::R9),
        _ => machine.u64(machine.reg(Gpr::Rsp) + number * 8),
    }
}

#[test]
fn the_demo_does_what_it_says() {
    let kernel = KernelImage::build(&KernelConfig::windows7()).expect("the kernel builds");
    let demo = demo::demo().expect("the demonstration builds");
    let mut machine = Machine::new(CpuModel::INTEL);
    map_image(&mut machine, &kernel.pe, false);
    for image in [&demo, &ntdll().expect("ntdll builds"), &win32u().expect("win32u builds")] {
        map_image(&mut machine, &image.pe, true);
    }
    machine.ram.map(STACK, vec![0; STACK_SIZE as usize], true, true);
    machine.ram.map(TEB, vec![0; 0x4000], true, true);
    machine.set_u64(TEB + 0x60, PEB);
    machine.set_u64(PEB + 0x20, PARAMETERS);
    machine.set_u64(PARAMETERS + 0x28, STDOUT);
    machine.cpu.rip = kernel.entry;
    assert_eq!(machine.run(), Stop::Gate(GateId::KernelStart as u32));
    let thread = kernel.address_of("KiInitialThread").expect("a thread");
    machine.set_u64(thread + u64::from(kernel.fast_path.thread.teb), TEB);

    let cpu = &mut machine.cpu;
    cpu.cpl = 3;
    *cpu.segment_mut(SegmentIndex::Cs) = Segment::flat_code64(0x33, 3);
    *cpu.segment_mut(SegmentIndex::Ss) = Segment::flat_data(0x2B, 3);
    cpu.kernel_gs_base = kernel.fast_path.kpcr;
    cpu.segment_mut(SegmentIndex::Gs).base = TEB;
    cpu.rflags = 0x202;
    cpu.rip = demo.entry.expect("an entry point");
    cpu.set_reg(Gpr::Rsp, STACK + STACK_SIZE - 0x108);

    let (mut calls, mut file, mut output) = (Vec::new(), Vec::new(), Vec::new());
    let number = |name: &str| windows7_service_number(name).expect("a known service");
    loop {
        let Stop::Gate(id) = machine.run() else { panic!("halted") };
        if id == GateId::ConvertToGuiThread as u32 {
            machine.set_reg(Gpr::Rax, 0);
            continue;
        }
        calls.push(id);
        let handle = argument(&mut machine, 1);
        let (io_status, buffer) = (argument(&mut machine, 5), argument(&mut machine, 6));
        let length = argument(&mut machine, 7) & 0xFFFF_FFFF;
        if id == number("NtCreateFile") {
            let attributes = argument(&mut machine, 3);
            let name = machine.u64(attributes + 0x10);
            let bytes = machine.u64(name) & 0xFFFF;
            let path = machine.u64(name + 8);
            let path: Vec<u16> =
                read(&mut machine, path, bytes).chunks(2).map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            assert_eq!(String::from_utf16_lossy(&path), demo::FILE_PATH);
            assert_eq!(argument(&mut machine, 8) as u32, 5, "FILE_OVERWRITE_IF");
            assert_eq!(argument(&mut machine, 9) as u32, 0x60);
            machine.set_u64(handle, FILE);
        } else if id == number("NtWriteFile") {
            let bytes = read(&mut machine, buffer, length);
            let target = if handle == STDOUT { &mut output } else { &mut file };
            target.extend(bytes);
        } else if id == number("NtReadFile") {
            assert_eq!(handle, FILE);
            machine.ram.write(buffer, &file, Privilege::User).expect("writable");
            machine.set_u64(io_status + 8, file.len() as u64);
        } else if id == number("NtTerminateProcess") {
            assert_eq!((handle, argument(&mut machine, 2) as u32), (u64::MAX, 0));
            break;
        }
        machine.set_reg(Gpr::Rax, 0);
    }
    let names =
        ["NtCreateFile", "NtWriteFile", "NtReadFile", "NtClose", "NtWriteFile", "NtUserGetThreadState", "NtWriteFile"];
    let mut expected: Vec<u32> = names.into_iter().map(number).collect();
    expected.push(number("NtTerminateProcess"));
    assert_eq!(calls, expected);
    assert_eq!(String::from_utf8_lossy(&output), demo::expected_output());
}
