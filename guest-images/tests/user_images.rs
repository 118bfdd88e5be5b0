//! ntdll, win32u and the demonstration program as PE files, and the PE reader on bad input.

use lstar_guest_images::ntdll::{WINDOWS7_GUI_SERVICES, WINDOWS7_SERVICES, ntdll, win32u, windows7_service_number};
use lstar_guest_images::{ImageError, KernelConfig, KernelImage, UserImage, demo, map_pe};
use object::Object;
use object::read::ExportTarget;
use object::read::pe::{ImageThunkData, PeFile64};

fn bytes(image: &UserImage, address: u64, length: u32) -> Vec<u8> {
    let mapped = map_pe(&image.pe).expect("a PE image");
    mapped.read((address - image.base) as u32, length).expect("inside the image")
}

#[test]
fn create_file_is_the_articles_stub() {
    let ntdll = ntdll().expect("ntdll builds");
    for name in ["NtCreateFile", "ZwCreateFile"] {
        assert_eq!(ntdll.address_of(name), Some(0x76F5_0400), "{name}");
    }
    let stub = [0x4C, 0x8B, 0xD1, 0xB8, 0x52, 0, 0, 0, 0x0F, 0x05, 0xC3];
    assert_eq!(bytes(&ntdll, 0x76F5_0400, 11), stub);
}

#[test]
fn stubs_carry_their_numbers() {
    for (image, services, first) in [
        (ntdll().expect("ntdll builds"), &WINDOWS7_SERVICES[..], 0u32),
        (win32u().expect("win32u builds"), &WINDOWS7_GUI_SERVICES[..], 0x1000),
    ] {
        for (number, (name, _)) in (first..).zip(services) {
            let address = image.address_of(name).expect("a stub");
            let mut stub = vec![0x4C, 0x8B, 0xD1, 0xB8];
            stub.extend(number.to_le_bytes());
            stub.extend([0x0F, 0x05, 0xC3]);
            assert_eq!(bytes(&image, address, 11), stub, "{name}");
            assert_eq!(windows7_service_number(name), Some(number));
        }
    }
}

#[test]
fn an_independent_reader_finds_every_export() {
    for image in [ntdll().expect("ntdll builds"), win32u().expect("win32u builds")] {
        let file = object::File::parse(&*image.pe).expect("object parses it");
        let mut count = 0;
        for export in file.exports().expect("exports") {
            let export = export.expect("export");
            let object::read::NameOrOrdinal::Name(name) = export.name() else { panic!("unnamed export") };
            let name = String::from_utf8_lossy(name).into_owned();
            let ExportTarget::Address { address } = export.target() else { panic!("{name} is forwarded") };
            assert_eq!(image.address_of(&name), Some(address), "{name}");
            count += 1;
        }
        assert_eq!(count, image.symbols.len());
    }
}

#[test]
fn demo_imports_are_bound_to_the_stubs() {
    let demo = demo::demo().expect("the demonstration builds");
    let (ntdll, win32u) = (ntdll().expect("ntdll builds"), win32u().expect("win32u builds"));
    let file = PeFile64::parse(&*demo.pe).expect("object parses it");
    assert_eq!(Some(file.entry()), demo.entry);
    let table = file.import_table().expect("import directory").expect("imports");
    let mut modules = Vec::new();
    let mut descriptors = table.descriptors().expect("descriptors");
    while let Some(descriptor) = descriptors.next().expect("descriptor") {
        let module = table.name(descriptor.name.get(object::LittleEndian)).expect("module name");
        let image =
            [&ntdll, &win32u].into_iter().find(|image| image.name.as_bytes() == module).expect("a known module");
        modules.push(image.name);
        let mut names = table.thunks(descriptor.original_first_thunk.get(object::LittleEndian)).expect("names");
        let mut slot = demo.base + u64::from(descriptor.first_thunk.get(object::LittleEndian));
        while let Some(thunk) = names.next::<object::pe::ImageNtHeaders64>().expect("thunk") {
            assert!(!thunk.is_ordinal());
            let (_, name) = table.hint_name(thunk.address()).expect("name");
            let expected = image.address_of(&String::from_utf8_lossy(name)).expect("an exported name");
            assert_eq!(bytes(&demo, slot, 8), expected.to_le_bytes());
            slot += 8;
        }
    }
    assert_eq!(modules, ["ntdll.dll", "win32u.dll"]);
}

#[test]
fn the_windows7_kernel_serves_the_stubs() {
    let config = KernelConfig::windows7();
    assert_eq!(config.services[0x52].as_ref().map(|service| service.stack_arguments), Some(7));
    assert_eq!(config.services[0x0C].as_ref().map(|service| service.stack_arguments), Some(0));
    let kernel = KernelImage::build(&config).expect("the kernel builds");
    assert_eq!(kernel.address_of("ZwCreateFile"), Some(0xFFFF_F800_03E7_5F00));
    assert!(kernel.address_of("NtUserGetThreadState").is_some());
}

#[test]
fn malformed_images_are_errors() {
    let demo = demo::demo().expect("the demonstration builds");
    assert_eq!(map_pe(b""), Err(ImageError::NotPe));
    assert_eq!(map_pe(b"#!/bin/sh"), Err(ImageError::NotPe));
    assert_eq!(map_pe(b"MZ"), Err(ImageError::Truncated("the DOS header")));
    let nt = u32::from_le_bytes(demo.pe[0x3C..0x40].try_into().expect("four bytes")) as usize;
    let mut arm64 = demo.pe.clone();
    arm64[nt + 4..nt + 6].copy_from_slice(&0xAA64u16.to_le_bytes());
    assert_eq!(map_pe(&arm64), Err(ImageError::Machine(0xAA64)));
    let mut pe32 = demo.pe.clone();
    pe32[nt + 24..nt + 26].copy_from_slice(&0x10Bu16.to_le_bytes());
    assert_eq!(map_pe(&pe32), Err(ImageError::NotPe32Plus));
}

/// Every truncation, and every header byte at a few values: an error or an image whose pieces lie inside it.
#[test]
fn no_input_makes_the_reader_panic() {
    let demo = demo::demo().expect("the demonstration builds");
    for length in 0..demo.pe.len().min(0x600) {
        assert!(map_pe(&demo.pe[..length]).is_err(), "{length} bytes");
    }
    for at in 0..0x400 {
        for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
            let mut file = demo.pe.clone();
            file[at] = value;
            let Ok(image) = map_pe(&file) else { continue };
            let mut free = 0;
            for piece in &image.pieces {
                assert!(piece.rva >= free && piece.bytes.len() as u64 <= u64::from(piece.size));
                free = piece.rva + piece.size;
            }
            assert!(free <= image.size);
            assert_eq!(
                image.read(0, image.size.min(0x8000)).map(|bytes| bytes.len() as u32),
                Some(image.size.min(0x8000))
            );
        }
    }
}

#[test]
fn the_demo_prints_its_text_and_a_checksum() {
    let output = demo::expected_output();
    assert!(output.starts_with(demo::FILE_TEXT));
    assert!(output.ends_with("\r\n"));
}
