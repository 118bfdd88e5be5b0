//! The kernel image against the article's listings and against independent readers of PE files and machine code.

use std::collections::HashMap;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Mnemonic, OpKind};
use lstar_guest_images::{Build, GateId, KernelConfig, KernelImage, MappedImage, ServiceEntry, map_pe};
use object::read::{ExportTarget, NameOrOrdinal};
use object::{Object, ObjectSection};

fn config(build: Build) -> KernelConfig {
    let mut services = vec![None; 0x60];
    services[0x0C] = Some(ServiceEntry::new("NtClose", 1));
    services[0x40] = Some(ServiceEntry::new("NtContinue", 2));
    services[0x52] = Some(ServiceEntry::new("NtCreateFile", 11));
    let shadow_services = vec![Some(ServiceEntry::new("NtUserGetThreadState", 1)), None];
    KernelConfig { build, services, shadow_services }
}

struct Kernel {
    image: KernelImage,
    mapped: MappedImage,
}

impl Kernel {
    fn new(config: &KernelConfig) -> Self {
        let image = KernelImage::build(config).expect("the kernel builds");
        let mapped = map_pe(&image.pe).expect("the kernel is a PE image");
        Self { image, mapped }
    }

    fn symbol(&self, name: &str) -> u64 {
        self.image.address_of(name).unwrap_or_else(|| panic!("no symbol {name}"))
    }

    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        self.mapped.read((address - self.image.base) as u32, length as u32).expect("inside the image")
    }

    fn u64(&self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().expect("eight bytes"))
    }

    fn i32(&self, address: u64) -> i32 {
        i32::from_le_bytes(self.bytes(address, 4).try_into().expect("four bytes"))
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    (0..digits.len()).step_by(2).map(|at| u8::from_str_radix(&digits[at..at + 2], 16).expect("hex")).collect()
}

/// Every listing of kernel code in the article.
const LISTINGS: [(&str, u64, &str); 5] = [
    (
        "KiSystemCall64",
        0xFFFF_F800_03E7_BEC0,
        "0f01f8 654889242510000000 65488b2425a8010000 6a2b 65ff342510000000 4153 6a33 51",
    ),
    (
        "KiSystemCall32",
        0xFFFF_F800_03E7_BC00,
        "0f01f8 654889242510000000 65488b2425a8010000 6a2b 65ff342510000000 4153 6a23 51",
    ),
    ("ZwCreateFile", 0xFFFF_F800_03E7_5F00, "488bc4 fa 4883ec10 50 9c 6a10 488d05dd270000 50 b852000000 e9225f0000"),
    (
        "KiServiceInternal",
        0xFFFF_F800_03E7_BE40,
        "4883ec08 55 4881ec58010000 488dac2480000000 48899dc0000000 4889bdc8000000 4889b5d0000000 fb
         65488b1c2588010000 0f0d8bd8010000 0fb6bbf6010000 40887da8 c683f601000000 4c8b93d8010000 4c8995b8000000
         4c8d1d3d010000 41ffe3",
    ),
    ("KiServiceLinkage", 0xFFFF_F800_03E7_86F0, "c3"),
];

#[test]
fn the_articles_listings_hold_byte_for_byte() {
    let kernel = Kernel::new(&config(Build::Windows7));
    for (name, address, listing) in LISTINGS {
        let listing = hex(listing);
        assert_eq!(kernel.symbol(name), address, "{name}");
        assert_eq!(kernel.bytes(address, listing.len()), listing, "{name}");
    }
    assert_eq!(kernel.symbol("KiSystemServiceStart"), 0xFFFF_F800_03E7_BFDE);
}

#[test]
fn every_build_keeps_the_addresses() {
    let kernel = Kernel::new(&config(Build::Windows11));
    for (name, address, _) in LISTINGS {
        assert_eq!(kernel.symbol(name), address, "{name}");
    }
    assert_eq!(kernel.symbol("KiSystemServiceStart"), 0xFFFF_F800_03E7_BFDE);
}

#[test]
fn create_file_keeps_its_address_whatever_its_number() {
    let mut services = vec![None; 0x300];
    services[0x21] = Some(ServiceEntry::new("NtCreateFile", 11));
    services[0x52] = Some(ServiceEntry::new("NtOther", 2));
    services[0x2FF] = Some(ServiceEntry::new("NtLast", 2));
    let kernel = Kernel::new(&KernelConfig { services, ..KernelConfig::default() });
    assert_eq!(kernel.symbol("ZwCreateFile"), 0xFFFF_F800_03E7_5F00);
    for (name, number) in [("ZwCreateFile", 0x21), ("ZwOther", 0x52), ("ZwLast", 0x2FF)] {
        let code = kernel.bytes(kernel.symbol(name), 0x19);
        assert_eq!(code[..4], [0x48, 0x8B, 0xC4, 0xFA], "{name}");
        assert_eq!(code[0x14], 0xB8, "{name}");
        assert_eq!(code[0x15..], u32::to_le_bytes(number), "{name}");
    }
}

#[test]
fn an_independent_reader_accepts_the_file_and_finds_the_exports() {
    let kernel = Kernel::new(&config(Build::Windows7));
    let file = object::File::parse(&*kernel.image.pe).expect("object parses it");
    assert_eq!(file.relative_address_base(), kernel.image.base);
    assert_eq!(file.entry(), kernel.symbol("KiSystemStartup"));
    let names: Vec<_> = file.sections().map(|section| section.name().expect("name").to_owned()).collect();
    assert_eq!(names, [".text", "PAGE", ".data", ".edata"]);
    let mut exports = HashMap::new();
    for export in file.exports().expect("export directory") {
        let export = export.expect("export");
        if let (NameOrOrdinal::Name(name), ExportTarget::Address { address }) = (export.name(), export.target()) {
            exports.insert(String::from_utf8_lossy(name).into_owned(), address);
        }
    }
    for symbol in &kernel.image.symbols {
        assert!(exports.contains_key(&symbol.name), "{} is not exported", symbol.name);
    }
    assert_eq!(exports["KiSystemCall64"], 0xFFFF_F800_03E7_BEC0);
    assert_eq!(exports["KeServiceDescriptorTable"], kernel.symbol("KeServiceDescriptorTable"));
}

#[test]
fn service_tables_decode_to_their_stubs() {
    let config = config(Build::Windows7);
    let kernel = Kernel::new(&config);
    let native = kernel.symbol("KeServiceDescriptorTable");
    let shadow = kernel.symbol("KeServiceDescriptorTableShadow");
    assert_eq!(kernel.bytes(native, 0x20), kernel.bytes(shadow, 0x20), "both start with the native table");
    assert_eq!(kernel.bytes(native + 0x20, 0x20), [0; 0x20], "the native table has no GUI services");
    for (table, descriptor, services) in [(0u32, shadow, &config.services), (1, shadow + 0x20, &config.shadow_services)]
    {
        let base = kernel.u64(descriptor);
        assert_eq!(kernel.u64(descriptor + 0x10), services.len() as u64);
        let counts = kernel.u64(descriptor + 0x18);
        for (index, service) in services.iter().enumerate() {
            let entry = kernel.i32(base + index as u64 * 4);
            let target = base.wrapping_add_signed(i64::from(entry >> 4));
            let Some(service) = service else {
                assert_eq!(target, kernel.symbol("KiInvalidSystemService"));
                continue;
            };
            assert_eq!(target, kernel.symbol(&service.name));
            assert_eq!(entry & 0xF, i32::from(service.stack_arguments));
            assert_eq!(kernel.bytes(counts + index as u64, 1), [service.stack_arguments * 8]);
            let id = index as u32 | table << 12;
            let mut stub = vec![0xB8];
            stub.extend(id.to_le_bytes());
            stub.extend([0x0F, 0x01, 0xC1]);
            assert_eq!(kernel.bytes(target, 8), stub);
            assert_eq!(kernel.bytes(target + 8, 1) == [0xC3], service.name != "NtContinue");
            assert!(kernel.image.fast_path.gate_stubs.contains(&target));
        }
    }
}

#[test]
fn the_argument_copy_is_eight_bytes_an_argument() {
    let kernel = Kernel::new(&config(Build::Windows7));
    let start = kernel.symbol("KiSystemServiceCopyStart");
    let end = kernel.symbol("KiSystemServiceCopyEnd");
    assert_eq!(end - start, 14 * 8);
    for count in 1..=14u8 {
        let code = kernel.bytes(end - u64::from(count) * 8, 8);
        assert_eq!(code, [0x48, 0x8B, 0x46, count * 8, 0x48, 0x89, 0x47, count * 8]);
    }
    assert_eq!(kernel.bytes(end, 3), [0x41, 0xFF, 0xD2], "call r10");
    assert_eq!(kernel.image.fast_path.service_return, end + 3);
}

/// Follows all code of a section from its symbols: it must decode, and each direct branch must hit an instruction.
#[test]
fn all_code_decodes_and_branches_stay_inside() {
    for build in [Build::Windows7, Build::Windows11] {
        let kernel = Kernel::new(&config(build));
        let data = kernel.symbol("KiBootStack");
        let mut starts = HashMap::new();
        let mut targets = Vec::new();
        for symbol in kernel.image.symbols.iter().filter(|symbol| symbol.address < data) {
            let code = kernel.bytes(symbol.address, symbol.size as usize);
            let mut decoder = Decoder::with_ip(64, &code, symbol.address, DecoderOptions::NONE);
            let mut last = FlowControl::Next;
            while decoder.can_decode() {
                let instruction = decoder.decode();
                if instruction.mnemonic() == Mnemonic::Int3 {
                    break;
                }
                assert!(!instruction.is_invalid(), "{} at {:#x}", symbol.name, instruction.ip());
                starts.insert(instruction.ip(), symbol.name.clone());
                if instruction.op0_kind() == OpKind::NearBranch64 {
                    targets.push((symbol.name.clone(), instruction.near_branch_target()));
                }
                last = instruction.flow_control();
            }
            // A symbol's code ends in a jump or return, or runs on into the next symbol.
            let next = symbol.address + symbol.size;
            let runs_on = kernel.image.symbols.iter().any(|other| other.address == next);
            assert!(
                runs_on
                    || matches!(
                        last,
                        FlowControl::Return | FlowControl::UnconditionalBranch | FlowControl::IndirectBranch
                    ),
                "{} falls off its end",
                symbol.name
            );
        }
        for (from, target) in targets {
            assert!(starts.contains_key(&target), "{from} branches to {target:#x}");
        }
    }
}

#[test]
fn the_idt_leads_to_the_handlers() {
    let kernel = Kernel::new(&config(Build::Windows7));
    let idt = kernel.symbol("KiIdt");
    for (vector, handler, privilege, ist) in [
        (0u64, "KiDivideErrorFault", 0, 0),
        (1, "KiDebugTrapOrFault", 0, 0),
        (2, "KiNmiInterrupt", 0, 2),
        (3, "KiBreakpointTrap", 3, 0),
        (8, "KiDoubleFaultAbort", 0, 1),
        (13, "KiGeneralProtectionFault", 0, 0),
        (14, "KiPageFault", 0, 0),
        (0x29, "KiRaiseSecurityCheckFailure", 3, 0),
        (0x2D, "KiDebugServiceTrap", 3, 0),
        (0x2E, "KiSystemService", 3, 0),
    ] {
        let (low, high) = (kernel.u64(idt + vector * 16), kernel.u64(idt + vector * 16 + 8));
        let target = low & 0xFFFF | (low >> 48) << 16 | high << 32;
        assert_eq!(target, kernel.symbol(handler), "{handler}");
        assert_eq!(low >> 16 & 0xFFFF, 0x10, "{handler}");
        assert_eq!(low >> 40 & 0xFF, 0x8E | privilege << 5, "{handler}");
        assert_eq!(low >> 32 & 7, ist, "{handler}");
    }
    assert_eq!(kernel.u64(idt + 0x80 * 16), 0, "no gate");
}

#[test]
fn descriptor_tables_and_pcr_agree() {
    let kernel = Kernel::new(&config(Build::Windows7));
    let (gdt, tss, pcr) = (kernel.symbol("KiGdt"), kernel.symbol("KiTss"), kernel.symbol("KiInitialPCR"));
    let (low, high) = (kernel.u64(gdt + 0x40), kernel.u64(gdt + 0x48));
    assert_eq!(low >> 16 & 0xFF_FFFF | (low >> 56) << 24 | high << 32, tss);
    assert_eq!(low & 0xFFFF, 0x67);
    assert_eq!(kernel.u64(kernel.symbol("KiGdtRegister") + 2), gdt);
    assert_eq!(kernel.u64(kernel.symbol("KiIdtRegister") + 2), kernel.symbol("KiIdt"));
    let stack = kernel.image.symbols.iter().find(|symbol| symbol.name == "KiBootStack").expect("boot stack");
    assert!(stack.size >= 24 * 1024);
    assert_eq!(kernel.u64(pcr + 0x1A8), stack.address + stack.size);
    assert_eq!(kernel.u64(tss + 4), stack.address + stack.size);
    assert_eq!(kernel.u64(pcr + 0x188), kernel.symbol("KiInitialThread"));
    assert_eq!(kernel.u64(pcr + 0x18), pcr);
}

#[test]
fn tables_that_do_not_fit_are_refused() {
    let too_many = KernelConfig { services: vec![None; 0x1001], ..KernelConfig::default() };
    assert!(KernelImage::build(&too_many).is_err());
    let too_wide = KernelConfig { services: vec![Some(ServiceEntry::new("NtWide", 19))], ..KernelConfig::default() };
    assert!(KernelImage::build(&too_wide).is_err());
    let full = KernelConfig {
        services: (0..0x1000).map(|n| Some(ServiceEntry::new(format!("NtService{n}"), 18))).collect(),
        shadow_services: (0..0x1000).map(|n| Some(ServiceEntry::new(format!("NtUser{n}"), 4))).collect(),
        ..KernelConfig::default()
    };
    KernelImage::build(&full).expect("full tables fit");
}

#[test]
fn gate_ids_are_distinct_from_service_ids() {
    for gate in GateId::ALL {
        assert!(gate as u32 & 0x8000_0000 != 0);
        assert_eq!(GateId::from_id(gate as u32), Some(gate));
    }
    assert_eq!(GateId::from_id(0x1052), None);
}
