//! Logical instructions (SDM vol. 1, 5.1.4). AF is undefined after AND, OR, XOR and TEST; processors clear it.

use lstar_arch::GuestMemory;

use crate::exec::{Exec, Op};
use crate::flags::szp;

pub(crate) fn and<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let result = ex.read_destination()? & ex.read(1)?;
    finish(ex, result)
}

pub(crate) fn or<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let result = ex.read_destination()? | ex.read(1)?;
    finish(ex, result)
}

pub(crate) fn xor<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let result = ex.read_destination()? ^ ex.read(1)?;
    finish(ex, result)
}

#[inline]
fn finish<M: GuestMemory>(ex: &mut Exec<'_, M>, result: u64) -> Op {
    ex.write(0, result)?;
    ex.set_status(szp(result, ex.size(0)));
    Ok(())
}

pub(crate) fn test<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let result = ex.read(0)? & ex.read(1)?;
    ex.set_status(szp(result, ex.size(0)));
    Ok(())
}

/// NOT changes no flags.
pub(crate) fn not<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    let value = ex.read_destination()?;
    ex.write(0, !value)
}
