//! The structure tables: well formed, and as the facts that they were taken from.

use lstar_guest_images::Build;
use lstar_guest_images::layout::{kpcr, ktrap_frame};

#[test]
fn fields_ascend_without_overlap() {
    for build in [Build::Windows7, Build::Windows11] {
        for structure in build.structures() {
            let mut free = 0;
            let mut container = 0;
            for field in structure.fields {
                // "ApcState.UserApcPending" and the like lie inside or behind the structure named before them.
                assert!(field.offset >= free || field.name.contains('.') && field.offset < container, "{}", field.name);
                free = field.offset + if field.name.contains('.') { 0 } else { field.ty.size() };
                container = container.max(free);
            }
            assert!(container <= structure.size, "{}", structure.name);
        }
    }
}

#[test]
fn offsets_are_the_known_ones() {
    let offset = |build: Build, name: &str| build.kthread().field(name).map(|field| field.offset);
    for (name, windows7, windows11) in [
        ("ThreadFlags", 0x100, 0x78),
        ("TrapFrame", 0x1D8, 0x90),
        ("PreviousMode", 0x1F6, 0x232),
        ("SystemCallNumber", 0x1F8, 0x80),
        ("Teb", 0xB8, 0xF0),
    ] {
        assert_eq!(offset(Build::Windows7, name), Some(windows7), "{name}");
        assert_eq!(offset(Build::Windows11, name), Some(windows11), "{name}");
    }
    assert_eq!(ktrap_frame::LAYOUT.size, 0x190);
    assert_eq!((ktrap_frame::RBX, ktrap_frame::TRAP_FRAME, ktrap_frame::RIP), (0x140, 0x138, 0x168));
    assert_eq!((kpcr::USER_RSP, kpcr::CURRENT_THREAD, kpcr::RSP_BASE), (0x10, 0x188, 0x1A8));
}

#[test]
fn field_types_read_like_windbg() {
    let field = |name: &str| ktrap_frame::LAYOUT.field(name).map(|field| field.ty.to_string());
    assert_eq!(field("Rip").as_deref(), Some("Uint8B"));
    assert_eq!(field("Xmm0").as_deref(), Some("_M128A"));
    let pointer = Build::Windows7.kthread().field("TrapFrame").map(|field| field.ty.to_string());
    assert_eq!(pointer.as_deref(), Some("Ptr64 _KTRAP_FRAME"));
}
