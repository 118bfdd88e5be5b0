//! The demonstration program, `demo.exe`: a file written and read back, a GUI-table call, a CPU-bound loop.
//!
//! It prints what it read back and a checksum ([`expected_output`]) and exits with 0, or with the first failing
//! service's status. It calls `ntdll` and `win32u` by imports that are bound in advance.

use iced_x86::code_asm::*;
use object::pe;

use crate::assemble::{Piece, at};
use crate::ntdll::{ntdll, win32u};
use crate::pe::{ImportSection, PeImage, Section, SectionKind};
use crate::{BuildError, UserImage};

/// Base of `demo.exe`.
pub const DEMO_BASE: u64 = 0x1_4000_0000;
/// The file that the program creates, as an NT path.
pub const FILE_PATH: &str = r"\??\C:\demo.txt";
/// What it writes there and prints.
pub const FILE_TEXT: &str = "Hello from user mode: created, written, read back and closed by NT system calls.\r\n";
const CHECKSUM_PREFIX: &str = "Checksum of the CPU-bound loop: ";

/// Iterations of the CPU-bound loop, of a dozen instructions each.
const ITERATIONS: u32 = 8_000_000;
/// Initial state of the xorshift generator.
const SEED: u64 = 0x9E37_79B9_7F4A_7C15;
/// Counters that the loop updates.
const TABLE_WORDS: usize = 256;

const TEXT: u64 = DEMO_BASE + 0x1000;
const IMPORTS_RVA: u32 = 0x2000;
const DATA: u64 = DEMO_BASE + 0x3000;

// In `.data`: structures as the services expect them, then buffers.
const PATH_STRING: u64 = DATA;
const OBJECT_ATTRIBUTES: u64 = DATA + 0x10;
const IO_STATUS_BLOCK: u64 = DATA + 0x40;
const FILE_HANDLE: u64 = DATA + 0x50;
const STDOUT_HANDLE: u64 = DATA + 0x58;
const BYTE_OFFSET: u64 = DATA + 0x60;
const PATH: u64 = DATA + 0x80;
const TEXT_TO_WRITE: u64 = DATA + 0x100;
const READ_BUFFER: u64 = DATA + 0x200;
const READ_BUFFER_SIZE: u32 = 0x200;
const CHECKSUM_LINE: u64 = DATA + 0x400;
const TABLE: u64 = DATA + 0x800;
const DATA_SIZE: usize = 0x800 + TABLE_WORDS * 8;

/// GENERIC_READ | GENERIC_WRITE | SYNCHRONIZE.
const DESIRED_ACCESS: u32 = 0xC010_0000;
const FILE_ATTRIBUTE_NORMAL: i32 = 0x80;
const FILE_OVERWRITE_IF: i32 = 5;
/// FILE_SYNCHRONOUS_IO_NONALERT | FILE_NON_DIRECTORY_FILE.
const CREATE_OPTIONS: i32 = 0x60;
const OBJ_CASE_INSENSITIVE: u32 = 0x40;
const TEB_PEB: u32 = 0x60;
const PEB_PROCESS_PARAMETERS: i32 = 0x20;
const PARAMETERS_STANDARD_OUTPUT: i32 = 0x28;
/// Home slots and seven stack arguments, keeping RSP aligned in a function that pushed nothing.
const FRAME: i32 = 0x68;

const IMPORTED: [&str; 5] = ["NtCreateFile", "NtWriteFile", "NtReadFile", "NtClose", "NtTerminateProcess"];
const IMPORTED_GUI: &str = "NtUserGetThreadState";

/// What the program prints.
#[must_use]
pub fn expected_output() -> String {
    format!("{FILE_TEXT}{CHECKSUM_PREFIX}{:016x}\r\n", expected_checksum())
}

fn expected_checksum() -> u64 {
    let mut table = [0u64; TABLE_WORDS];
    let mut x = SEED;
    let mut sum = 0u64;
    for _ in 0..ITERATIONS {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        let word = &mut table[usize::from(x as u8)];
        *word = word.wrapping_add(x);
        sum = sum.rotate_left(5) ^ *word;
    }
    sum
}

/// Builds `demo.exe`.
///
/// # Errors
/// If the assembler or the PE writer fails.
pub fn demo() -> Result<UserImage, BuildError> {
    let (ntdll, win32u) = (ntdll()?, win32u()?);
    let bound = |image: &UserImage, name: &'static str| (name, image.address_of(name).unwrap_or_default());
    let imports = ImportSection::new(
        IMPORTS_RVA,
        &[
            (ntdll.name, IMPORTED.iter().map(|name| bound(&ntdll, name)).collect()),
            (win32u.name, vec![bound(&win32u, IMPORTED_GUI)]),
        ],
    );
    let code = code(&imports)?.finish(TEXT)?;
    let section = |name, kind, address: u64, bytes| Section { name, kind, rva: (address - DEMO_BASE) as u32, bytes };
    let pe = PeImage {
        dll: false,
        subsystem: pe::IMAGE_SUBSYSTEM_WINDOWS_CUI,
        base: DEMO_BASE,
        entry_rva: (TEXT - DEMO_BASE) as u32,
        export_name: None,
        exports: Vec::new(),
        imports: Some(imports.directory),
        import_addresses: Some(imports.addresses),
        sections: vec![
            section(".text", SectionKind::Code, TEXT, code.bytes),
            section(".idata", SectionKind::Data, DEMO_BASE + u64::from(IMPORTS_RVA), imports.bytes),
            section(".data", SectionKind::Data, DATA, data()),
        ],
    }
    .write()?;
    Ok(UserImage { name: "demo.exe", pe, base: DEMO_BASE, entry: Some(TEXT), symbols: code.symbols })
}

fn data() -> Vec<u8> {
    let mut data = vec![0; DATA_SIZE];
    let mut put = |address: u64, bytes: &[u8]| {
        let offset = (address - DATA) as usize;
        data[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    let path: Vec<u8> = FILE_PATH.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // UNICODE_STRING: Length, MaximumLength in bytes, Buffer.
    put(PATH_STRING, &(path.len() as u16).to_le_bytes());
    put(PATH_STRING + 2, &(path.len() as u16).to_le_bytes());
    put(PATH_STRING + 8, &PATH.to_le_bytes());
    // OBJECT_ATTRIBUTES: Length, RootDirectory, ObjectName, Attributes, two security pointers.
    put(OBJECT_ATTRIBUTES, &0x30u32.to_le_bytes());
    put(OBJECT_ATTRIBUTES + 0x10, &PATH_STRING.to_le_bytes());
    put(OBJECT_ATTRIBUTES + 0x18, &OBJ_CASE_INSENSITIVE.to_le_bytes());
    put(PATH, &path);
    put(TEXT_TO_WRITE, FILE_TEXT.as_bytes());
    put(CHECKSUM_LINE, CHECKSUM_PREFIX.as_bytes());
    data
}

fn code(imports: &ImportSection) -> Result<Piece, BuildError> {
    let import = |name: &str| qword_ptr(at(DEMO_BASE + u64::from(imports.slot(name))));
    let mut a = Piece::new()?;
    let mut transfer = a.create_label();
    let mut checksum = a.create_label();
    let mut fail = a.create_label();

    a.mark("main")?;
    a.sub(rsp, FRAME)?;
    a.lea(rcx, at(FILE_HANDLE))?;
    a.mov(edx, DESIRED_ACCESS)?;
    a.lea(r8, at(OBJECT_ATTRIBUTES))?;
    a.lea(r9, at(IO_STATUS_BLOCK))?;
    a.xor(eax, eax)?;
    a.mov(qword_ptr(rsp + 0x20), rax)?;
    a.mov(dword_ptr(rsp + 0x28), FILE_ATTRIBUTE_NORMAL)?;
    a.mov(dword_ptr(rsp + 0x30), eax)?;
    a.mov(dword_ptr(rsp + 0x38), FILE_OVERWRITE_IF)?;
    a.mov(dword_ptr(rsp + 0x40), CREATE_OPTIONS)?;
    a.mov(qword_ptr(rsp + 0x48), rax)?;
    a.mov(dword_ptr(rsp + 0x50), eax)?;
    a.call(import("NtCreateFile"))?;
    a.test(eax, eax)?;
    a.js(fail)?;

    let file_offset = Some(BYTE_OFFSET);
    a.mov(rcx, qword_ptr(at(FILE_HANDLE)))?;
    transfer_arguments(&mut a, TEXT_TO_WRITE, file_offset)?;
    a.mov(r8d, FILE_TEXT.len() as u32)?;
    a.mov(rax, import("NtWriteFile"))?;
    a.call(transfer)?;
    a.mov(rcx, qword_ptr(at(FILE_HANDLE)))?;
    transfer_arguments(&mut a, READ_BUFFER, file_offset)?;
    a.mov(r8d, READ_BUFFER_SIZE)?;
    a.mov(rax, import("NtReadFile"))?;
    a.call(transfer)?;
    a.mov(rcx, qword_ptr(at(FILE_HANDLE)))?;
    a.call(import("NtClose"))?;
    a.test(eax, eax)?;
    a.js(fail)?;

    a.mov(rax, qword_ptr(TEB_PEB).gs())?;
    a.mov(rax, qword_ptr(rax + PEB_PROCESS_PARAMETERS))?;
    a.mov(rcx, qword_ptr(rax + PARAMETERS_STANDARD_OUTPUT))?;
    a.mov(qword_ptr(at(STDOUT_HANDLE)), rcx)?;
    // IO_STATUS_BLOCK.Information is what NtReadFile has read.
    transfer_arguments(&mut a, READ_BUFFER, None)?;
    a.mov(r8d, dword_ptr(at(IO_STATUS_BLOCK + 8)))?;
    a.mov(rax, import("NtWriteFile"))?;
    a.call(transfer)?;

    a.xor(ecx, ecx)?;
    a.call(import(IMPORTED_GUI))?;

    a.call(checksum)?;
    a.mov(rcx, qword_ptr(at(STDOUT_HANDLE)))?;
    transfer_arguments(&mut a, CHECKSUM_LINE, None)?;
    a.mov(r8d, CHECKSUM_PREFIX.len() as u32 + 18)?;
    a.mov(rax, import("NtWriteFile"))?;
    a.call(transfer)?;
    a.xor(eax, eax)?;
    a.mark_label("exit", &mut fail)?;
    a.mov(edx, eax)?;
    a.mov(rcx, -1i64)?;
    a.call(import("NtTerminateProcess"))?;
    a.int3()?;

    // NtReadFile or NtWriteFile (RAX) of R8D bytes at RDX on handle RCX, at the LARGE_INTEGER R9.
    a.mark_label("transfer", &mut transfer)?;
    let mut done = a.create_label();
    a.sub(rsp, FRAME)?;
    a.lea(r10, at(IO_STATUS_BLOCK))?;
    a.mov(qword_ptr(rsp + 0x20), r10)?;
    a.mov(qword_ptr(rsp + 0x28), rdx)?;
    a.mov(dword_ptr(rsp + 0x30), r8d)?;
    a.mov(qword_ptr(rsp + 0x38), r9)?;
    a.xor(edx, edx)?;
    a.xor(r8d, r8d)?;
    a.xor(r9d, r9d)?;
    a.mov(qword_ptr(rsp + 0x40), rdx)?;
    a.call(rax)?;
    a.test(eax, eax)?;
    a.jns(done)?;
    a.mov(edx, eax)?;
    a.mov(rcx, -1i64)?;
    a.call(import("NtTerminateProcess"))?;
    a.set_label(&mut done)?;
    a.add(rsp, FRAME)?;
    a.ret()?;

    a.mark_label("checksum", &mut checksum)?;
    cpu_bound_loop(&mut a)?;
    Ok(a)
}

/// RDX = buffer, R9 = byte offset (NULL: the file's own position).
fn transfer_arguments(a: &mut Piece, buffer: u64, offset: Option<u64>) -> Result<(), BuildError> {
    a.lea(rdx, at(buffer))?;
    match offset {
        Some(address) => a.lea(r9, at(address))?,
        None => a.xor(r9d, r9d)?,
    }
    Ok(())
}

/// Computes the checksum and writes it in hexadecimal behind the prefix.
fn cpu_bound_loop(a: &mut Piece) -> Result<(), BuildError> {
    let mut next = a.create_label();
    let mut digit = a.create_label();
    let mut decimal = a.create_label();
    a.mov(rax, SEED)?;
    a.xor(edx, edx)?;
    a.lea(r8, at(TABLE))?;
    a.mov(ecx, ITERATIONS)?;
    a.set_label(&mut next)?;
    for (left, count) in [(true, 13), (false, 7), (true, 17)] {
        a.mov(r9, rax)?;
        if left {
            a.shl(r9, count)?;
        } else {
            a.shr(r9, count)?;
        }
        a.xor(rax, r9)?;
    }
    a.movzx(r9d, al)?;
    a.mov(r10, qword_ptr(r8 + r9 * 8))?;
    a.add(r10, rax)?;
    a.mov(qword_ptr(r8 + r9 * 8), r10)?;
    a.rol(rdx, 5)?;
    a.xor(rdx, r10)?;
    a.dec(ecx)?;
    a.jne(next)?;

    a.lea(r8, at(CHECKSUM_LINE + CHECKSUM_PREFIX.len() as u64))?;
    a.mov(ecx, 16)?;
    a.set_label(&mut digit)?;
    a.rol(rdx, 4)?;
    a.mov(eax, edx)?;
    a.and(eax, 0xF)?;
    a.lea(r9d, rax + i32::from(b'0'))?;
    a.cmp(eax, 9)?;
    a.jbe(decimal)?;
    a.lea(r9d, rax + (i32::from(b'a') - 10))?;
    a.set_label(&mut decimal)?;
    a.mov(byte_ptr(r8), r9b)?;
    a.inc(r8)?;
    a.dec(ecx)?;
    a.jne(digit)?;
    a.mov(word_ptr(r8), 0x0A0D)?;
    a.ret()?;
    Ok(())
}
