//! Binary arithmetic (SDM vol. 1, 5.1.2): addition, subtraction, comparison, multiplication, division.

use iced_x86::Mnemonic;
use lstar_arch::cpuid::Features;
use lstar_arch::{Exception, Gpr, GuestMemory};

use crate::exec::{Exec, Op};
use crate::flags::{self, AF, CF, CF_BIT, OF, OF_BIT, STATUS, mask, sign_extend};

pub(crate) fn add<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    let (result, status) = flags::add(a, b, 0, ex.size(0));
    ex.write(0, result)?;
    ex.set_status(status);
    Ok(())
}

pub(crate) fn adc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    let (result, status) = flags::add(a, b, ex.cpu.rflags & CF, ex.size(0));
    ex.write(0, result)?;
    ex.set_status(status);
    Ok(())
}

pub(crate) fn sub<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    let (result, status) = flags::sub(a, b, 0, ex.size(0));
    ex.write(0, result)?;
    ex.set_status(status);
    Ok(())
}

pub(crate) fn sbb<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read_destination()?, ex.read(1)?);
    let (result, status) = flags::sub(a, b, ex.cpu.rflags & CF, ex.size(0));
    ex.write(0, result)?;
    ex.set_status(status);
    Ok(())
}

pub(crate) fn cmp<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (a, b) = (ex.read(0)?, ex.read(1)?);
    let (_, status) = flags::sub(a, b, 0, ex.size(0));
    ex.set_status(status);
    Ok(())
}

pub(crate) fn inc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (result, status) = flags::add(ex.read_destination()?, 1, 0, ex.size(0));
    ex.write(0, result)?;
    ex.set_flags(STATUS & !CF, status);
    Ok(())
}

pub(crate) fn dec<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (result, status) = flags::sub(ex.read_destination()?, 1, 0, ex.size(0));
    ex.write(0, result)?;
    ex.set_flags(STATUS & !CF, status);
    Ok(())
}

pub(crate) fn neg<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let (result, status) = flags::sub(0, ex.read_destination()?, 0, ex.size(0));
    ex.write(0, result)?;
    ex.set_status(status);
    Ok(())
}

/// ADCX and ADOX: an addition that carries through one flag only.
pub(crate) fn adx<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    ex.require(Features::ADX)?;
    let (flag, bit) = if ex.decoded.mnemonic == Mnemonic::Adcx { (CF, CF_BIT) } else { (OF, OF_BIT) };
    let (a, b) = (ex.read(0)?, ex.read(1)?);
    let (result, status) = flags::add(a, b, ex.cpu.rflags >> bit & 1, ex.size(0));
    ex.write(0, result)?;
    ex.set_flags(flag, (status & CF) << bit);
    Ok(())
}

/// Reads the accumulator pair that multiplication and division use: AX, DX:AX, EDX:EAX or RDX:RAX.
fn wide_accumulator<M: GuestMemory>(ex: &Exec<'_, M>, size: u8) -> u128 {
    let (rax, rdx) = (ex.cpu.reg(Gpr::Rax), ex.cpu.reg(Gpr::Rdx));
    match size {
        1 => u128::from(rax & 0xFFFF),
        _ => u128::from(rdx & mask(size)) << (8 * u32::from(size)) | u128::from(rax & mask(size)),
    }
}

fn set_accumulator_pair<M: GuestMemory>(ex: &mut Exec<'_, M>, low: u64, high: u64, size: u8) {
    if size == 1 {
        ex.set_register(Gpr::Rax, low & 0xFF | (high & 0xFF) << 8, 2);
    } else {
        ex.set_register(Gpr::Rax, low, size);
        ex.set_register(Gpr::Rdx, high, size);
    }
}

/// MUL. SF, ZF, AF and PF are undefined and left alone.
pub(crate) fn mul<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let a = ex.cpu.reg(Gpr::Rax) & mask(size);
    let product = u128::from(a) * u128::from(ex.read(0)?);
    let high = (product >> (8 * u32::from(size))) as u64;
    set_accumulator_pair(ex, product as u64, high, size);
    ex.set_flags(CF | OF, if high != 0 { CF | OF } else { 0 });
    Ok(())
}

/// IMUL with one, two or three operands.
pub(crate) fn imul<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let signed = |value: u64| i128::from(sign_extend(value, size) as i64);
    let product = match ex.insn.op_count() {
        1 => signed(ex.cpu.reg(Gpr::Rax)) * signed(ex.read(0)?),
        2 => signed(ex.read(0)?) * signed(ex.read(1)?),
        _ => signed(ex.read(1)?) * signed(ex.read(2)?),
    };
    if ex.insn.op_count() == 1 {
        set_accumulator_pair(ex, product as u64, (product >> (8 * u32::from(size))) as u64, size);
    } else {
        ex.write(0, product as u64)?;
    }
    ex.set_flags(CF | OF, if product != signed(product as u64) { CF | OF } else { 0 });
    Ok(())
}

/// DIV: #DE for a zero divisor and for a quotient that does not fit. All status flags are undefined and left alone.
pub(crate) fn div<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let divisor = u128::from(ex.read(0)?);
    let dividend = wide_accumulator(ex, size);
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
        return Err(Exception::DE);
    };
    if quotient > u128::from(mask(size)) {
        return Err(Exception::DE);
    }
    set_accumulator_pair(ex, quotient as u64, remainder as u64, size);
    Ok(())
}

pub(crate) fn idiv<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let size = ex.size(0);
    let divisor = i128::from(sign_extend(ex.read(0)?, size) as i64);
    let unused = 128 - 16 * u32::from(size);
    let dividend = (wide_accumulator(ex, size) << unused) as i128 >> unused;
    let (Some(quotient), Some(remainder)) = (dividend.checked_div(divisor), dividend.checked_rem(divisor)) else {
        return Err(Exception::DE);
    };
    if quotient != i128::from(sign_extend(quotient as u64, size) as i64) {
        return Err(Exception::DE);
    }
    set_accumulator_pair(ex, quotient as u64, remainder as u64, size);
    Ok(())
}

/// SALC, which no manual of Intel's has: AL becomes the carry, repeated.
pub(crate) fn salc<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = if ex.cpu.rflags & CF != 0 { 0xFF } else { 0 };
    ex.set_register(Gpr::Rax, value, 1);
    Ok(())
}

/// The decimal adjustments of compatibility mode (SDM vol. 1, 5.1.3).
pub(crate) fn decimal<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let ax = ex.cpu.reg(Gpr::Rax) & 0xFFFF;
    let (al, ah) = (ax & 0xFF, ax >> 8);
    let (carry, adjust) = (ex.cpu.rflags & CF != 0, ex.cpu.rflags & AF != 0);
    let low_adjust = al & 15 > 9 || adjust;
    let high_adjust = al > 0x99 || carry;
    match ex.decoded.mnemonic {
        Mnemonic::Daa | Mnemonic::Das => {
            let delta = u64::from(low_adjust) * 6 + u64::from(high_adjust) * 0x60;
            let subtract = ex.decoded.mnemonic == Mnemonic::Das;
            let result = if subtract { al.wrapping_sub(delta) } else { al + delta } & 0xFF;
            let borrow = subtract && low_adjust && al < 6;
            ex.set_register(Gpr::Rax, result, 1);
            let carries = if high_adjust || borrow { CF } else { 0 } | if low_adjust { AF } else { 0 };
            ex.set_flags(STATUS & !OF, carries | flags::szp(result, 1));
        }
        Mnemonic::Aaa | Mnemonic::Aas => {
            let delta = if low_adjust { 0x106 } else { 0 };
            let result = if ex.decoded.mnemonic == Mnemonic::Aaa { ax + delta } else { ax.wrapping_sub(delta) };
            ex.set_register(Gpr::Rax, result & 0xFF0F, 2);
            ex.set_flags(CF | AF, u64::from(low_adjust) * (CF | AF));
        }
        Mnemonic::Aam => {
            let radix = u64::from(ex.insn.immediate8());
            let (Some(quotient), Some(remainder)) = (al.checked_div(radix), al.checked_rem(radix)) else {
                return Err(Exception::DE);
            };
            ex.set_register(Gpr::Rax, quotient << 8 | remainder, 2);
            ex.set_flags(STATUS & !(OF | AF | CF), flags::szp(remainder, 1));
        }
        _ => {
            let result = (al + ah * u64::from(ex.insn.immediate8())) & 0xFF;
            ex.set_register(Gpr::Rax, result, 2);
            ex.set_flags(STATUS & !(OF | AF | CF), flags::szp(result, 1));
        }
    }
    Ok(())
}
