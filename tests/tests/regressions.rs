//! Bugs that differential testing found, on every engine: the smallest program of each. The expectations are the host
//! processor's results.

use lstar_tests::differential::campaign::all_engines;
use lstar_tests::differential::regression::{Case, Expect};
use lstar_tests::differential::{Ending, X87};

const fn exception(vector: u8, error_code: u32, cr2: u64) -> Expect {
    Expect::Ending(Ending::Exception { vector, error_code, cr2 })
}

const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const SIMD: u8 = 19;
/// 1.0 in an x87 register.
const ONE: u128 = 0x3FFF_8000_0000_0000_0000;

const CASES: &[Case] = &[
    Case {
        name: "CMPS with two bad addresses faults at the destination",
        code: &[
            0xA6, // cmpsb
        ],
        gpr: &[(6, 0x10_0000), (7, 0xF5)],
        expected: &[exception(PAGE_FAULT, 4, 0xF5)],
        ..Case::EMPTY
    },
    Case {
        name: "a register that the instruction of a final helper overwrites is stored before",
        code: &[
            0x0F, 0x8C, 0x05, 0x00, 0x00, 0x00, // jl near ptr 000000001000000Bh
            0x66, 0xF3, 0xA7, // repe cmpsw
            0xD3, 0xF0, // sal eax,cl
            0xED, // in eax,dx
        ],
        undefined: 0x810,
        gpr: &[(0, 0x3f)],
        rflags: 0x282,
        expected: &[Expect::Register(0, 0x3f)],
        ..Case::EMPTY
    },
    Case {
        name: "of two faults of CMPS that of the second operand is reported",
        code: &[
            0xA6, // cmpsb
        ],
        gpr: &[(7, 0xf5)],
        expected: &[exception(PAGE_FAULT, 4, 0xf5)],
        ..Case::EMPTY
    },
    Case {
        name: "an ignored ES override leaves RBP a stack reference",
        code: &[
            0x26, 0x66, 0x0F, 0xBA, 0x6D, 0xE7, 0xBF, // bts word ptr es:[rbp-19h],0BFh
        ],
        gpr: &[(5, 0xFFFF_7FFF_FFFF_FFFE)],
        expected: &[exception(STACK_FAULT, 0, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "an ignored SS override makes no stack reference",
        code: &[
            0x36, 0xF2, 0x4C, 0x0F, 0x38, 0xF1, 0x1E, // crc32 r11,qword ptr ss:[rsi]
        ],
        gpr: &[(6, 0xFFFF_7FFF_FFFF_FFFE)],
        expected: &[exception(GENERAL_PROTECTION, 0, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "a read-modify-write across a read-only page and none faults at the first byte",
        code: &[
            0x44, 0x21, 0x13, // and [rbx],r10d
        ],
        gpr: &[(3, 0x2000_2FFE)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_2FFE)],
        ..Case::EMPTY
    },
    Case {
        name: "the privilege check of LLDT goes before its memory access",
        code: &[
            0x4A, 0x0F, 0x00, 0x54, 0xAF, 0xB0, // lldt word ptr [rdi+r13*4-50h]
        ],
        expected: &[exception(GENERAL_PROTECTION, 0, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "the privilege check of LMSW goes before its memory access",
        code: &[
            0x4A, 0x0F, 0x01, 0x34, 0xAF, // lmsw word ptr [rdi+r13*4]
        ],
        expected: &[exception(GENERAL_PROTECTION, 0, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "CLDEMOTE is a hint",
        code: &[
            0x45, 0x0F, 0x1C, 0x04, 0x24, // cldemote byte ptr [r12]
        ],
        expected: &[Expect::Ending(Ending::Finished)],
        ..Case::EMPTY
    },
    Case {
        name: "PREFETCHIT0 is a hint",
        code: &[
            0x66, 0x42, 0x0F, 0x18, 0x7C, 0xED, 0x70, // prefetchit0 [rbp+r13*8+70h]
        ],
        expected: &[Expect::Ending(Ending::Finished)],
        ..Case::EMPTY
    },
    Case {
        name: "adding zero to a read-only page faults",
        code: &[
            0x66, 0x83, 0x07, 0x00, // add word ptr [rdi],0
        ],
        gpr: &[(7, 0x2000_2BC0)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_2BC0), Expect::Flags(0)],
        ..Case::EMPTY
    },
    Case {
        name: "storing what was just loaded to a read-only page faults",
        code: &[
            0x48, 0x8B, 0x03, // mov rax,[rbx]
            0x48, 0x89, 0x03, // mov [rbx],rax
        ],
        gpr: &[(3, 0x2000_2000)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_2000), Expect::Rip(0x1000_0003)],
        ..Case::EMPTY
    },
    Case {
        name: "of two stores to the same read-only place the first faults",
        code: &[
            0x89, 0x03, // mov [rbx],eax
            0x89, 0x0B, // mov [rbx],ecx
        ],
        gpr: &[(3, 0x2000_2000)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_2000), Expect::Rip(0x1000_0000)],
        ..Case::EMPTY
    },
    Case {
        name: "an unused load faults",
        code: &[
            0x48, 0x8B, 0x03, // mov rax,[rbx]
            0x31, 0xC0, // xor eax,eax
        ],
        gpr: &[(3, 0x2000_4000)],
        expected: &[exception(PAGE_FAULT, 4, 0x2000_4000), Expect::Rip(0x1000_0000)],
        ..Case::EMPTY
    },
    Case {
        name: "a CMPXCHG that writes back the same value faults on a read-only page",
        code: &[
            0xF0, 0x48, 0x0F, 0xB1, 0x47, 0x21, // lock cmpxchg [rdi+21h],rax
        ],
        gpr: &[(7, 0x2000_1FDC)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_2000), Expect::Register(0, 0), Expect::Flags(0)],
        ..Case::EMPTY
    },
    Case {
        name: "a double shift by zero of a read-only page faults",
        code: &[
            0x26, 0x48, 0x0F, 0xA4, 0x8E, 0x43, 0x02, 0x00, 0x00, 0x80, // shld [rsi+243h],rcx,80h
        ],
        gpr: &[(6, 0x2000_1FEA)],
        expected: &[exception(PAGE_FAULT, 7, 0x2000_222D)],
        ..Case::EMPTY
    },
    Case {
        name: "flags survive a MOV to a control register that faults",
        code: &[
            0x78, 0x00, // js behind
            0x41, 0x0F, 0x22, 0xC0, // mov cr0,r8
        ],
        rflags: 0x242,
        expected: &[exception(GENERAL_PROTECTION, 0, 0), Expect::Flags(0x40)],
        ..Case::EMPTY
    },
    Case {
        name: "MAXSS takes denormals for zeros when MXCSR says so",
        code: &[
            0xF3, 0x41, 0x0F, 0x5F, 0xD4, // maxss xmm2,xmm12
        ],
        mxcsr: 0x3FE3,
        xmm: &[(12, 0x24)],
        expected: &[Expect::Vector(2, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "MINSD of a register with itself takes a denormal for zero when MXCSR says so",
        code: &[
            0xF2, 0x0F, 0x5D, 0xC9, // minsd xmm1,xmm1
        ],
        mxcsr: 0xDFFE,
        xmm: &[(1, 0x1F_12A1)],
        expected: &[Expect::Vector(1, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "an exception that LDMXCSR unmasks is raised in code that follows elsewhere",
        code: &[
            0x0F, 0xAE, 0x13, // ldmxcsr [rbx]
            0x48, 0x8D, 0x05, 0x03, 0x00, 0x00, 0x00, // lea rax,[behind]
            0xFF, 0xE0, // jmp rax
            0xCC, // int3
            0xF3, 0x0F, 0x58, 0xC1, // behind: addss xmm0,xmm1
        ],
        gpr: &[(3, 0x2000_0800)],
        xmm: &[(0, 0x7FA0_0000)],
        patches: &[(0x2000_0800, 0x1F00)],
        expected: &[exception(SIMD, 0, 0), Expect::Rip(0x1000_000D)],
        ..Case::EMPTY
    },
    Case {
        name: "a jump to the last address of all faults there",
        code: &[
            0xFF, 0xE1, // jmp rcx
        ],
        gpr: &[(1, u64::MAX)],
        expected: &[Expect::Rip(u64::MAX)],
        ..Case::EMPTY
    },
    Case {
        name: "an unmasked invalid operation raises #XM",
        code: &[
            0xF3, 0x0F, 0x58, 0xC1, // addss xmm0,xmm1
        ],
        mxcsr: 0x1F00,
        xmm: &[(0, 0x7FA0_0000)],
        expected: &[exception(SIMD, 0, 0), Expect::Rip(0x1000_0000)],
        ..Case::EMPTY
    },
    Case {
        name: "an FXRSTOR64 operand that is neither canonical nor aligned is not canonical",
        code: &[
            0x4A, 0x0F, 0xAE, 0x4C, 0x2D, 0x37, // fxrstor64 [rbp+r13+37h]
        ],
        gpr: &[(13, 0x94E8_B31C_6D2F_D558)],
        expected: &[exception(STACK_FAULT, 0, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "MAXSD of one denormal, taken for zero, is zero at a fault behind it, too",
        code: &[
            0xF2, 0x0F, 0x5F, 0xDB, // maxsd xmm3,xmm3
            0x74, 0x06, // je short +6
            0xC4, 0xC2, 0x5D, 0x3F, 0x24, 0x24, // vpmaxud ymm4,ymm4,[r12]
        ],
        mxcsr: 0x1FDA,
        xmm: &[(3, 0x2A)],
        expected: &[Expect::Vector(3, 0)],
        ..Case::EMPTY
    },
    Case {
        name: "CVTSI2SS of a constant rounds as MXCSR says",
        code: &[
            0x4C, 0x8D, 0x05, 0x3A, 0x00, 0x00, 0x00, // lea r8,[rip+3Ah]
            0xF3, 0x49, 0x0F, 0x2A, 0xD0, // cvtsi2ss xmm2,r8
        ],
        mxcsr: 0x5FA0,
        expected: &[Expect::Vector(2, 0x4D80_0003)],
        ..Case::EMPTY
    },
    Case {
        name: "the first eight of ten bytes fault before the others are found to be non-canonical",
        code: &[
            0x42, 0xDB, 0xAC, 0x2E, 0xC0, 0xFF, 0xFF, 0xFF, // fld tbyte ptr [rsi+r13-40h]
        ],
        gpr: &[(6, 0x8000_0000_0000), (13, 0x38)],
        ..Case::EMPTY
    },
    Case {
        name: "so they do in a store",
        code: &[
            0x42, 0xDB, 0x7C, 0x2D, 0xA0, // fstp tbyte ptr [rbp+r13-60h]
        ],
        gpr: &[(5, 0x8000_0000_0000), (13, 0x58)],
        x87: X87 { registers: [ONE; 8], control: 0x37F, status: 0, valid: 0xFF },
        ..Case::EMPTY
    },
    Case {
        name: "F2XM1 of 1 says that it was rounded up",
        code: &[
            0xD9, 0xF0, // f2xm1
        ],
        x87: X87 { registers: [ONE; 8], control: 0x37F, status: 0, valid: 0xFF },
        ..Case::EMPTY
    },
    Case {
        name: "PACKSSDW of MMX registers",
        code: &[
            0x0F, 0x6B, 0xCA, // packssdw mm1,mm2
        ],
        x87: X87 {
            registers: [0, 0x7FFF_FFFF_FFFF_0000, 0x0000_1234_8000_0000, 0, 0, 0, 0, 0],
            control: 0x37F,
            status: 0x3800,
            valid: 0,
        },
        expected: &[Expect::X87(X87 {
            registers: [0, 0xFFFF_1234_8000_7FFF_8000, 0x0000_1234_8000_0000, 0, 0, 0, 0, 0],
            control: 0x37F,
            status: 0,
            valid: 0xFF,
        })],
        ..Case::EMPTY
    },
];

#[test]
fn found_bugs_stay_fixed() {
    let mut engines = all_engines().expect("engines");
    let wrong: String = CASES.iter().map(|case| case.check(&mut engines)).collect();
    assert!(wrong.is_empty(), "\n{wrong}");
}
