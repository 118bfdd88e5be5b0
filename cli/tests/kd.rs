//! The debugger's commands on the embedded image: what they print and what they do.

use std::process::{Command, Stdio};

use lstar_cli::kd::shell::Shell;
use lstar_cli::kd::target::Target;
use lstar_nt::io::host::CapturedHost;
use lstar_runtime::MachineConfig;

fn shell() -> Shell {
    Shell::new(
        Target::embedded(MachineConfig::default(), Box::<CapturedHost>::default()).expect("the embedded image boots"),
    )
}

/// Runs commands and compares all that they print.
fn check(shell: &mut Shell, session: &[(&str, &str)]) {
    for (command, expected) in session {
        assert_eq!(shell.execute(command).trim_end(), *expected, "{command}");
    }
}

#[test]
fn memory_can_be_shown_and_changed() {
    check(
        &mut shell(),
        &[
            (
                "db nt!KiSystemCall64 L12",
                "fffff800`03e7bec0  0f 01 f8 65 48 89 24 25-10 00 00 00 65 48 8b 24  ...eH.$%....eH.$\n\
                 fffff800`03e7bed0  25 a8                                            %.",
            ),
            ("eq nt!KiSystemCall32 1122334455667788", ""),
            ("dd nt!KiSystemCall32 L2", "fffff800`03e7bc00  55667788 11223344"),
            ("dw nt!KiSystemCall32 L1", "fffff800`03e7bc00  7788"),
            ("eb nt!KiSystemCall32 48 69 0", ""),
            ("da nt!KiSystemCall32", "fffff800`03e7bc00  \"Hi\""),
            ("ew nt!KiSystemCall32 48 69 0", ""),
            ("du nt!KiSystemCall32", "fffff800`03e7bc00  \"Hi\""),
            ("eb nt!KiSystemCall32 100", "Overflow error: 100 does not fit 1 bytes"),
            ("eq nt!KiSystemCall32 nt!KiSystemCall64+3", ""),
            ("dps nt!KiSystemCall32 L1", "fffff800`03e7bc00  fffff800`03e7bec3 nt!KiSystemCall64+0x3"),
            ("db 10 L4", "00000000`00000010  ?? ?? ?? ??                                      ????"),
            ("eb 10 1", "Memory access error at 00000000`00000010"),
            ("db 0 L999999999", "Range error: at most L100000"),
        ],
    );
}

#[test]
fn registers_and_msrs_can_be_shown_and_changed() {
    check(
        &mut shell(),
        &[
            ("r rbx=1234; r rbx; r bl", "rbx=0000000000001234\nbl=0000000000000034"),
            ("? @rbx*2", "Evaluate expression: 9320 = 00000000`00002468"),
            ("r nothing", "Bad register error at 'nothing'"),
            ("wrmsr c0000082 fffff800`03e7bc00; rdmsr c0000082", "msr[c0000082] = fffff800`03e7bc00"),
            ("rdmsr 12345678", "no such msr"),
            ("wrmsr c0000082 8000000000000000", "msr[c0000082] does not exist or does not take 80000000`00000000"),
            ("r cr0", "cr0=0000000080050033"),
        ],
    );
}

#[test]
fn a_system_call_can_be_followed_into_the_kernel_and_back() {
    let mut shell = shell();
    let user = shell.execute("r cs");
    assert_eq!(user, "cs=0000000000000033\n", "the first thread is about to run");
    check(
        &mut shell,
        &[
            ("bp ntdll!NtCreateFile; bl", " 0 e 00000000`76f50400 0001 (0001) ntdll!NtCreateFile"),
            ("g", "Breakpoint 0 hit\nntdll!NtCreateFile:\n00000000`76f50400 4c8bd1          mov     r10,rcx"),
            (
                "t 2",
                "ntdll!NtCreateFile+0x3:\n00000000`76f50403 b852000000      mov     eax,52h\n\
                     ntdll!NtCreateFile+0x8:\n00000000`76f50408 0f05            syscall",
            ),
            ("t", "nt!KiSystemCall64:\nfffff800`03e7bec0 0f01f8          swapgs"),
            ("r cs, rcx, eax", "cs=0000000000000010\nrcx=0000000076f5040a\neax=0000000000000052"),
            ("? @$pcr - nt!KiInitialPCR", "Evaluate expression: 0 = 00000000`00000000"),
            (
                "ba w8 @$thread+1d8; g",
                "Breakpoint 1 hit\nnt!KiSystemServiceStart+0x7:\n\
                                       fffff800`03e7bfe5 89c7            mov     edi,eax",
            ),
            (
                "dt nt!_KTRAP_FRAME poi(@$thread+1d8) Rip SegCs",
                "   +0x168 Rip              : 0x76f5040a\n   +0x170 SegCs            : 0x33",
            ),
            ("bc *; g ntdll!NtCreateFile+a", "ntdll!NtCreateFile+0xa:\n00000000`76f5040a c3              ret"),
            ("ba w3 1000", "Syntax error: ba e|w|r SIZE ADDRESS, with a SIZE of 1, 2, 4 or 8"),
            ("ba w8 1001", "Data breakpoint must be aligned to its size, 8"),
            ("bc 7", "No breakpoint 7"),
        ],
    );
    let stack = shell.execute("k 2");
    assert!(stack.lines().nth(1).is_some_and(|line| line.ends_with("ntdll!NtCreateFile+0xa")), "{stack}");
    assert!(shell.execute("p").starts_with("demo"), "back in the program");
}

#[test]
fn the_kernels_structures_are_shown() {
    let mut shell = shell();
    check(
        &mut shell,
        &[
            (
                "dt KTHREAD @$thread TrapFrame Prev*",
                "   +0x1d8 TrapFrame        : (null) _KTRAP_FRAME\n   +0x1f6 PreviousMode     : 1 ''",
            ),
            ("dt nt!_KTRAP_FRAME Rip", "nt!_KTRAP_FRAME\n   +0x168 Rip              : Uint8B"),
            ("dt _NONE", "Symbol _NONE not found; known types: _KPCR, _KTHREAD, _KTRAP_FRAME"),
        ],
    );
    let tables = shell.execute("!ssdt createf");
    assert!(tables.contains("   52h  fffff800`"), "{tables}");
    assert!(tables.contains("         11  nt!NtCreateFile\n"), "{tables}");
    let tables = shell.execute("!ssdt");
    assert!(tables.contains(" 1000h  fffff800`"), "the shadow table's first service: {tables}");
    assert_eq!(shell.execute("eb nt!KeServiceDescriptorTable ff ff ff ff ff ff ff ff; !ssdt").lines().count(), 3);
    let symbols = shell.execute("x nt!KiSystemCall*");
    assert_eq!(symbols.lines().count(), 2, "{symbols}");
}

#[test]
fn nonsense_is_answered_with_one_line() {
    let mut shell = shell();
    for command in [
        "foo",
        "u",
        "u nt!",
        "uf",
        "uf 0",
        "db zz",
        "bp",
        "ba",
        "ba w",
        "ba w8",
        "ba é8 0",
        "x",
        "dt",
        "rdmsr",
        "wrmsr 1",
        "? 1 +",
        "g zz",
        "t -1",
        "k x y",
        "lm \"",
        "r =",
        "r rax=",
        "ln 0",
        "!ssdt zzz",
        "q extra",
        "\u{1F600}",
    ] {
        let output = shell.execute(command);
        assert!(output.lines().count() <= 10, "{command}: {output}");
    }
}

#[test]
fn the_program_reads_commands_from_everywhere() {
    let run = |arguments: &[&str], input: &str| {
        use std::io::Write as _;
        let mut child = Command::new(env!("CARGO_BIN_EXE_lstar"))
            .arg("kd")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("lstar starts");
        child.stdin.take().expect("stdin").write_all(input.as_bytes()).expect("input");
        let output = child.wait_with_output().expect("lstar ends");
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned(), output.stderr)
    };
    let expected = "kd> rdmsr c0000084\nmsr[c0000084] = 00000000`00004700\n";
    assert_eq!(run(&["-c", "rdmsr c0000084"], "").1, expected);
    assert_eq!(run(&[], "rdmsr c0000084\n\nq\nrdmsr c0000084\n").1, format!("{expected}kd> q\n"));
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), "rdmsr c0000084\n").expect("commands");
    assert_eq!(run(&["-f", &file.path().to_string_lossy()], "").1, expected);
    let (status, _, errors) = run(&["-f", "/no/such/file"], "");
    assert_eq!(status, Some(2));
    assert_eq!(String::from_utf8_lossy(&errors).lines().count(), 1);
}
