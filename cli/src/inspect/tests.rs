//! Bad files, each made from one good image by a single change.

use super::*;

/// As [`inspect`], for bytes at hand.
fn inspect_bytes(bytes: &[u8], purpose: Purpose) -> Result<Inspection, ImageProblem> {
    let read_at = |buf: &mut [u8], offset: u64| {
        buf.copy_from_slice(&bytes[offset as usize..][..buf.len()]);
        Ok(())
    };
    inspect_file(&File { read_at: &read_at, length: bytes.len() as u64 }, purpose)
}

/// A minimal PE32+ program: headers, one section of code at 1000h with an import directory for `KERNEL32.dll`.
fn good() -> Vec<u8> {
    let mut file = vec![0; 0x400];
    let put = |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(&mut file, 0, b"MZ");
    put(&mut file, 0x3C, &0x80u32.to_le_bytes());
    put(&mut file, 0x80, b"PE\0\0");
    put(&mut file, 0x84, &MACHINE_AMD64.to_le_bytes());
    put(&mut file, 0x86, &1u16.to_le_bytes());
    put(&mut file, 0x94, &240u16.to_le_bytes());
    put(&mut file, 0x96, &0x22u16.to_le_bytes());
    let optional = 0x98;
    put(&mut file, optional, &MAGIC_PE32_PLUS.to_le_bytes());
    for (offset, value) in [(16, 0x1000u32), (32, 0x1000), (36, 0x200), (56, 0x2000), (60, 0x200), (108, 16)] {
        put(&mut file, optional + offset, &value.to_le_bytes());
    }
    put(&mut file, optional + 24, &0x1_4000_0000u64.to_le_bytes());
    put(&mut file, optional + 68, &3u16.to_le_bytes());
    put(&mut file, optional + 112 + 8, &0x1040u32.to_le_bytes());
    put(&mut file, optional + 112 + 12, &40u32.to_le_bytes());
    let section = optional + 240;
    put(&mut file, section, b".text");
    for (offset, value) in [(8, 0x200u32), (12, 0x1000), (16, 0x200), (20, 0x200)] {
        put(&mut file, section + offset, &value.to_le_bytes());
    }
    put(&mut file, 0x200, &[0xC3]);
    put(&mut file, 0x240 + 12, &0x1080u32.to_le_bytes());
    put(&mut file, 0x280, b"KERNEL32.dll\0");
    file
}

fn changed(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut file = good();
    file[at..at + bytes.len()].copy_from_slice(bytes);
    file
}

fn verdict(file: &[u8]) -> String {
    inspect_bytes(file, Purpose::Program).expect_err("a bad file").to_string()
}

#[test]
fn accepts_a_minimal_program() {
    let inspection = inspect_bytes(&good(), Purpose::Program).expect("good image");
    assert_eq!(inspection.imports, ["KERNEL32.dll"]);
    assert_eq!((inspection.image_base, inspection.image_size, inspection.dll), (0x1_4000_0000, 0x2000, false));
}

#[test]
fn names_what_is_wrong() {
    let optional = 0x98;
    let cases: &[(&str, Vec<u8>, &str)] = &[
        ("empty", vec![], "an empty file"),
        ("text", b"hello, world\n".to_vec(), "a text file"),
        ("script", b"#!/bin/sh\n".to_vec(), "a script"),
        ("elf", b"\x7fELF\x02\x01".to_vec(), "ELF"),
        ("zip", b"PK\x03\x04....".to_vec(), "ZIP"),
        ("noise", vec![0xFE, 0xDC, 0, 1, 2, 3], "no MZ header"),
        ("dos", changed(0x80, b"ABCD"), "a DOS program"),
        ("16-bit", changed(0x80, b"NE\0\0"), "16-bit Windows"),
        ("x86", changed(0x84, &[0x4C, 0x01]), "32-bit x86"),
        ("arm64", changed(0x84, &[0x64, 0xAA]), "ARM64"),
        ("alien", changed(0x84, &[0x34, 0x12]), "0x1234"),
        ("pe32 magic", changed(optional, &[0x0B, 0x01]), "PE32+"),
        ("not linked", changed(0x96, &[0x20, 0]), "not mark it executable"),
        ("no sections", changed(0x86, &[0, 0]), "0 sections"),
        ("many sections", changed(0x86, &[0xFF, 0xFF]), "65535 sections"),
        ("alignment", changed(optional + 32, &[3, 0, 0, 0]), "section alignment 0x3"),
        ("no size", changed(optional + 56, &[0; 4]), "image size 0x0"),
        ("odd base", changed(optional + 24, &[1]), "image base"),
        ("entry outside", changed(optional + 16, &[0, 0, 0, 0x7F]), "entry point 0x7f000000"),
        ("no entry", changed(optional + 16, &[0; 4]), "without entry point"),
        ("section outside", changed(0x188 + 12, &[0, 0, 0xFF, 0x7F]), "beyond the image"),
        ("section cut", changed(0x188 + 20, &[0, 0, 1, 0]), "truncated: section .text"),
        ("directory outside", changed(optional + 112 + 12, &[0, 0, 0, 0x7F]), "data directory 1"),
        ("import in no section", changed(optional + 112 + 8, &[0, 0x0C, 0, 0]), "in no section"),
        ("dll", changed(0x96, &[0x22, 0x20]), "a DLL"),
        ("driver", changed(optional + 68, &[1, 0]), "a driver"),
        ("efi", changed(optional + 68, &[10, 0]), "firmware"),
    ];
    for (name, file, expected) in cases {
        let text = verdict(file);
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!text.contains('\n'), "{name}: one line");
    }
}

#[test]
fn recognises_intermediate_code() {
    let mut file = good();
    let directory = 0x98 + 112 + 14 * 8;
    file[directory..directory + 4].copy_from_slice(&0x1100u32.to_le_bytes());
    file[directory + 4..directory + 8].copy_from_slice(&72u32.to_le_bytes());
    file[0x300 + 16] = 1;
    assert!(matches!(inspect_bytes(&file, Purpose::Program), Err(ImageProblem::DotNet)));
    file[0x300 + 16] = 0;
    assert!(inspect_bytes(&file, Purpose::Program).is_ok(), "mixed-mode images have native code");
}

#[test]
fn every_truncation_is_refused_without_panicking() {
    let file = good();
    for length in 0..file.len() {
        let result = inspect_bytes(&file[..length], Purpose::Program);
        assert!(result.is_err(), "{length} bytes");
    }
}

#[test]
fn no_single_changed_byte_makes_it_panic() {
    for at in 0..0x300 {
        for value in [0x00, 0x01, 0x7F, 0x80, 0xFF] {
            let _ = inspect_bytes(&changed(at, &[value]), Purpose::Program);
        }
    }
}

#[test]
fn files_that_cannot_be_opened() {
    let folder = std::env::temp_dir();
    assert!(matches!(inspect(&folder.join("lstar-no-such-file.exe"), Purpose::Program), Err(ImageProblem::NotFound)));
    assert!(matches!(inspect(&folder, Purpose::Program), Err(ImageProblem::Folder)));
}

#[test]
fn missing_dlls_are_listed_with_who_needs_them() {
    let folder = std::env::temp_dir().join(format!("lstar-imports-{}", std::process::id()));
    std::fs::create_dir_all(folder.join("system32")).expect("scratch folder");
    let program = folder.join("program.exe");
    std::fs::write(&program, good()).expect("program");
    // plugin.dll beside the program imports KERNEL32, which the system folder has under another spelling.
    std::fs::write(folder.join("Plugin.DLL"), changed(0x96, &[0x22, 0x20])).expect("dll");
    std::fs::write(folder.join("broken.dll"), b"MZ").expect("dll");
    std::fs::write(folder.join("system32/kernel32.dll"), good()).expect("dll");
    let imports: Vec<String> =
        ["KERNEL32.dll", "plugin.dll", "broken.dll", "absent.dll", "api-ms-win-core-file-l1-1-0.dll"]
            .map(String::from)
            .to_vec();
    let missing = missing_imports(&program, &imports, &[folder.join("system32")]);
    std::fs::remove_dir_all(&folder).expect("clean up");
    let names: Vec<_> = missing.iter().map(|import| (import.name.as_str(), import.problem.is_some())).collect();
    assert_eq!(names, [("absent.dll", false), ("broken.dll", true)]);
    assert_eq!(missing[0].importer, "program.exe");
}
