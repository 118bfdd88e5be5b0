//! From mnemonic to the function that implements it.

use iced_x86::Mnemonic;
use lstar_arch::{Exception, GuestMemory};

use crate::exec::{Exec, Op};
use crate::{arithmetic, avx, bit, bmi, control_flow, data_transfer, logic, shift, sse, string, system, x87, xsave};

/// What [`execute`] returns when there is no implementation: #UD, marked by DR6 bits that no #UD has. A value of its own
/// would keep the implementations' results from being passed on in place.
pub(crate) const UNIMPLEMENTED: Exception = Exception { dr6: u64::MAX, ..Exception::UD };

/// Executes one instruction.
pub(crate) fn execute<M: GuestMemory>(ex: &mut Exec<'_, M>) -> Op {
    use Mnemonic as M;
    match ex.decoded.mnemonic {
        M::Mov | M::Movzx => data_transfer::mov(ex),
        M::Movsx | M::Movsxd => data_transfer::movsx(ex),
        M::Movbe => data_transfer::movbe(ex),
        M::Bswap => data_transfer::bswap(ex),
        M::Lea => data_transfer::lea(ex),
        M::Xchg => data_transfer::xchg(ex),
        M::Xadd => data_transfer::xadd(ex),
        M::Cmpxchg => data_transfer::cmpxchg(ex),
        M::Cmpxchg8b => data_transfer::cmpxchg8b(ex),
        M::Cmpxchg16b => data_transfer::cmpxchg16b(ex),
        M::Push => data_transfer::push(ex),
        M::Pop => data_transfer::pop(ex),
        M::Pusha | M::Pushad => data_transfer::pusha(ex),
        M::Popa | M::Popad => data_transfer::popa(ex),
        M::Enter => data_transfer::enter(ex),
        M::Leave => data_transfer::leave(ex),
        M::Cbw | M::Cwde | M::Cdqe => data_transfer::cbw(ex),
        M::Cwd | M::Cdq | M::Cqo => data_transfer::cwd(ex),
        M::Xlatb => data_transfer::xlat(ex),
        M::Lahf => data_transfer::lahf(ex),
        M::Sahf => data_transfer::sahf(ex),
        M::Clc | M::Stc | M::Cmc | M::Cld | M::Std => data_transfer::flag(ex),
        M::Cmova | M::Cmovae | M::Cmovb | M::Cmovbe | M::Cmove | M::Cmovg | M::Cmovge | M::Cmovl => {
            data_transfer::cmovcc(ex)
        }
        M::Cmovle | M::Cmovne | M::Cmovno | M::Cmovnp | M::Cmovns | M::Cmovo | M::Cmovp | M::Cmovs => {
            data_transfer::cmovcc(ex)
        }
        M::Seta | M::Setae | M::Setb | M::Setbe | M::Sete | M::Setg | M::Setge | M::Setl => data_transfer::setcc(ex),
        M::Setle | M::Setne | M::Setno | M::Setnp | M::Setns | M::Seto | M::Setp | M::Sets => data_transfer::setcc(ex),

        M::Add => arithmetic::add(ex),
        M::Adc => arithmetic::adc(ex),
        M::Sub => arithmetic::sub(ex),
        M::Sbb => arithmetic::sbb(ex),
        M::Cmp => arithmetic::cmp(ex),
        M::Inc => arithmetic::inc(ex),
        M::Dec => arithmetic::dec(ex),
        M::Neg => arithmetic::neg(ex),
        M::Adcx | M::Adox => arithmetic::adx(ex),
        M::Mul => arithmetic::mul(ex),
        M::Imul => arithmetic::imul(ex),
        M::Div => arithmetic::div(ex),
        M::Idiv => arithmetic::idiv(ex),
        M::Daa | M::Das | M::Aaa | M::Aas | M::Aam | M::Aad => arithmetic::decimal(ex),

        M::And => logic::and(ex),
        M::Or => logic::or(ex),
        M::Xor => logic::xor(ex),
        M::Test => logic::test(ex),
        M::Not => logic::not(ex),

        M::Shl | M::Sal | M::Shr | M::Sar => shift::shift(ex),
        M::Rol | M::Ror => shift::rotate(ex),
        M::Rcl | M::Rcr => shift::rotate_carry(ex),
        M::Shld | M::Shrd => shift::double_shift(ex),

        M::Bt | M::Bts | M::Btr | M::Btc => bit::bit_test(ex),
        M::Bsf | M::Bsr => bit::bit_scan(ex),
        M::Tzcnt => bit::tzcnt(ex),
        M::Lzcnt => bit::lzcnt(ex),
        M::Popcnt => bit::popcnt(ex),
        M::Crc32 => bit::crc32(ex),

        M::Andn => bmi::andn(ex),
        M::Blsi | M::Blsmsk | M::Blsr => bmi::lowest_bit(ex),
        M::Bextr => bmi::bextr(ex),
        M::Bzhi => bmi::bzhi(ex),
        M::Mulx => bmi::mulx(ex),
        M::Pdep => bmi::pdep(ex),
        M::Pext => bmi::pext(ex),
        M::Rorx | M::Sarx | M::Shlx | M::Shrx => bmi::shift(ex),

        M::Movsb | M::Movsw | M::Movsq => string::movs(ex),
        M::Movsd if ex.insn.is_string_instruction() => string::movs(ex),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => string::stos(ex),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => string::lods(ex),
        M::Cmpsb | M::Cmpsw | M::Cmpsq => string::cmps(ex),
        M::Cmpsd if ex.insn.is_string_instruction() => string::cmps(ex),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => string::scas(ex),
        M::Insb | M::Insw | M::Insd | M::Outsb | M::Outsw | M::Outsd | M::In | M::Out => string::port(ex),

        M::Jmp => control_flow::jmp(ex),
        M::Call => control_flow::call(ex),
        M::Ret => control_flow::ret(ex),
        M::Ja | M::Jae | M::Jb | M::Jbe | M::Je | M::Jg | M::Jge | M::Jl => control_flow::jcc(ex),
        M::Jle | M::Jne | M::Jno | M::Jnp | M::Jns | M::Jo | M::Jp | M::Js => control_flow::jcc(ex),
        M::Loop | M::Loope | M::Loopne => control_flow::loop_cc(ex),
        M::Jcxz | M::Jecxz | M::Jrcxz => control_flow::jrcxz(ex),
        M::Int3 => control_flow::int3(ex),
        M::Int1 => control_flow::int1(ex),
        M::Into => control_flow::into(ex),
        M::Bound => control_flow::bound(ex),
        // The driver hands the vector out when the instruction has retired.
        M::Int => Ok(()),

        M::Nop | M::Pause | M::Endbr32 | M::Endbr64 | M::Lfence | M::Sfence | M::Mfence => data_transfer::nop(ex),
        M::Prefetchnta | M::Prefetcht0 | M::Prefetcht1 | M::Prefetcht2 | M::Prefetch | M::Prefetchw => {
            data_transfer::nop(ex)
        }
        M::Prefetchwt1 | M::Prefetchit0 | M::Prefetchit1 | M::Cldemote | M::Reservednop => data_transfer::nop(ex),
        M::Clflush | M::Clflushopt | M::Clwb => data_transfer::clflush(ex),
        M::Clzero => data_transfer::clzero(ex),
        // Shadow stacks are offered by no model: their instructions are NOPs or undefined (SDM vol. 1, 17.2).
        M::Rdsspd | M::Rdsspq => data_transfer::nop(ex),
        M::Incsspd | M::Incsspq | M::Saveprevssp | M::Rstorssp | M::Setssbsy | M::Clrssbsy => Err(Exception::UD),
        M::Wrssd | M::Wrssq | M::Wrussd | M::Wrussq => Err(Exception::UD),
        M::Ud0 | M::Ud1 | M::Ud2 => Err(Exception::UD),

        M::Syscall | M::Sysret | M::Sysretq | M::Sysenter | M::Sysexit | M::Sysexitq => system::fast_call(ex),
        M::Swapgs | M::Cli | M::Sti | M::Rdmsr | M::Wrmsr | M::Rdtsc | M::Rdtscp | M::Rdpmc => system::implicit(ex),
        M::Xgetbv | M::Xsetbv | M::Clts | M::Invd | M::Wbinvd | M::Invlpg | M::Hlt | M::Cpuid => system::implicit(ex),
        M::Pushf | M::Pushfd | M::Pushfq => system::pushf(ex),
        M::Popf | M::Popfd | M::Popfq => system::popf(ex),
        M::Iret | M::Iretd | M::Iretq => system::iret(ex),
        M::Retf => system::far_return(ex),
        M::Lds | M::Les | M::Lfs | M::Lgs | M::Lss => system::load_far(ex),
        M::Lgdt | M::Lidt | M::Sgdt | M::Sidt => system::descriptor_table(ex),
        M::Lldt | M::Ltr | M::Verr | M::Verw | M::Lmsw => system::selector_source(ex),
        M::Sldt | M::Str | M::Smsw | M::Rdpid => system::store_system_value(ex),
        M::Lar | M::Lsl => system::inspect_selector(ex),
        M::Rdfsbase | M::Rdgsbase | M::Wrfsbase | M::Wrgsbase => system::segment_base(ex),
        M::Rdrand | M::Rdseed => system::random(ex),
        M::Vmcall => system::vmcall(ex),
        // Virtualization, SMAP and monitoring are offered by no model.
        M::Vmmcall | M::Vmlaunch | M::Vmresume | M::Vmxoff | M::Vmrun | M::Clac | M::Stac | M::Monitor | M::Mwait => {
            Err(Exception::UD)
        }

        _ => sse::execute(ex)
            .or_else(|| avx::execute(ex))
            .or_else(|| xsave::execute(ex))
            .or_else(|| x87::execute(ex))
            .unwrap_or(Err(UNIMPLEMENTED)),
    }
}
