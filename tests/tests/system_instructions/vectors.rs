//! What a system switches off for vector instructions: CR0.EM and TS, CR4.OSFXSR and OSXSAVE, XCR0 (SDM vol. 1, 13.3; vol. 2,
//! 2.4).

use iced_x86::code_asm::*;

use crate::bench::Expect::{Fault, Next};
use crate::bench::Level::User;
use crate::bench::*;

const NM: u8 = 7;

/// XSETBV with x87 and SSE state alone.
const XCR0_WITHOUT_AVX: Code = |a| {
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.mov(eax, 3)?;
    a.xsetbv()
};
const NO_OSXSAVE: Code = |a| {
    a.mov(rax, cr4)?;
    a.and(rax, !(1 << 18))?;
    a.mov(cr4, rax)
};
const NO_OSFXSR: Code = |a| {
    a.mov(rax, cr4)?;
    a.and(rax, !(1 << 9))?;
    a.mov(cr4, rax)
};
const TASK_SWITCHED: Code = |a| {
    a.mov(rax, cr0)?;
    a.or(rax, 1 << 3)?;
    a.mov(cr0, rax)
};
const EMULATED: Code = |a| {
    a.mov(rax, cr0)?;
    a.or(rax, 1 << 2)?;
    a.mov(cr0, rax)
};

const AVX: Code = |a| a.vaddps(xmm1, xmm2, xmm3);
const AVX2: Code = |a| a.vpaddd(ymm1, ymm2, ymm3);
const SSE: Code = |a| a.addps(xmm1, xmm2);
const MMX: Code = |a| a.paddb(mm1, mm2);
const X87: Code = |a| a.fld1();
/// VEX-encoded, but on general-purpose registers.
const BMI: Code = |a| a.andn(eax, ecx, edx);

#[test]
fn states_that_are_switched_off() {
    run(&[
        row("AVX", User, AVX, Next),
        row("AVX2", User, AVX2, Next),
        row("AVX without its part of XCR0", User, AVX, Fault(UD, None)).boot(XCR0_WITHOUT_AVX),
        row("AVX2 without AVX's part of XCR0", User, AVX2, Fault(UD, None)).boot(XCR0_WITHOUT_AVX),
        row("SSE without AVX's part of XCR0", User, SSE, Next).boot(XCR0_WITHOUT_AVX),
        row("BMI without AVX's part of XCR0", User, BMI, Next).boot(XCR0_WITHOUT_AVX),
        row("AVX without OSXSAVE", User, AVX, Fault(UD, None)).boot(NO_OSXSAVE),
        row("SSE without OSXSAVE", User, SSE, Next).boot(NO_OSXSAVE),
        row("BMI without OSXSAVE", User, BMI, Next).boot(NO_OSXSAVE),
        row("SSE without OSFXSR", User, SSE, Fault(UD, None)).boot(NO_OSFXSR),
        row("MMX without OSFXSR", User, MMX, Next).boot(NO_OSFXSR),
        row("AVX with TS", User, AVX, Fault(NM, None)).boot(TASK_SWITCHED),
        row("SSE with TS", User, SSE, Fault(NM, None)).boot(TASK_SWITCHED),
        row("MMX with TS", User, MMX, Fault(NM, None)).boot(TASK_SWITCHED),
        row("x87 with TS", User, X87, Fault(NM, None)).boot(TASK_SWITCHED),
        row("BMI with TS", User, BMI, Next).boot(TASK_SWITCHED),
        row("SSE with EM", User, SSE, Fault(UD, None)).boot(EMULATED),
        row("MMX with EM", User, MMX, Fault(UD, None)).boot(EMULATED),
        row("x87 with EM", User, X87, Fault(NM, None)).boot(EMULATED),
    ]);
}
