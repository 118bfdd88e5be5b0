//! What translated code tells the helpers that execute x87 instructions.

use lstar_arch::SegmentIndex;

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What an x87 instruction does.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Operation { $($(#[$doc])* $name,)* }

        impl Operation {
            /// All operations, indexed by their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

operations! {
    /// Nothing, but it checks that the x87 may be used (FNOP, WAIT).
    Nothing,
    /// Pushes the source.
    Load,
    /// Copies ST(0) to a register, or converts it for a store.
    Store,
    /// As `Store` to an integer, truncating.
    StoreTruncated,
    /// Exchanges ST(0) with a register.
    Exchange,
    /// FCMOVcc; the operand's value is the condition.
    ConditionalMove,
    /// FADD and its like.
    Add,
    /// FMUL and its like.
    Multiply,
    /// FSUB and its like.
    Subtract,
    /// FSUBR and its like.
    SubtractReverse,
    /// FDIV and its like.
    Divide,
    /// FDIVR and its like.
    DivideReverse,
    /// FCOM and its like.
    Compare,
    /// FUCOM and its like.
    CompareUnordered,
    /// FCOMI and its like.
    CompareFlags,
    /// FUCOMI and its like.
    CompareFlagsUnordered,
    /// FTST.
    Test,
    /// FXAM.
    Examine,
    /// FCHS.
    ChangeSign,
    /// FABS.
    Absolute,
    /// FSQRT.
    SquareRoot,
    /// FRNDINT.
    Round,
    /// FSCALE.
    Scale,
    /// FPREM.
    Remainder,
    /// FPREM1.
    RemainderNearest,
    /// FXTRACT.
    Extract,
    /// F2XM1.
    Exponential,
    /// FYL2X.
    Logarithm,
    /// FYL2XP1.
    LogarithmOfNext,
    /// FPTAN.
    Tangent,
    /// FPATAN.
    ArcTangent,
    /// FSIN.
    Sine,
    /// FCOS.
    Cosine,
    /// FSINCOS.
    SineCosine,
    /// FLD1.
    One,
    /// FLDZ.
    Zero,
    /// FLDPI.
    Pi,
    /// FLDL2E.
    Log2E,
    /// FLDL2T.
    Log2Ten,
    /// FLDLG2.
    LogTwo,
    /// FLDLN2.
    LnTwo,
    /// FINCSTP.
    Increment,
    /// FDECSTP.
    Decrement,
    /// FFREE and FFREEP.
    Free,
    /// FNCLEX.
    ClearExceptions,
    /// FNINIT.
    Initialise,
    /// FLDCW.
    LoadControl,
}

macro_rules! sources {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The other operand.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Source { $($(#[$doc])* $name,)* }

        impl Source {
            /// All kinds, indexed by their numbers.
            pub const ALL: &[Self] = &[$(Self::$name),*];
        }
    };
}

sources! {
    /// A register, or none.
    Register,
    /// A single in memory.
    F32,
    /// A double in memory.
    F64,
    /// A word integer in memory.
    I16,
    /// A doubleword integer in memory.
    I32,
    /// A quadword integer in memory.
    I64,
    /// An extended value in memory; its upper 16 bits are the upper ones of the descriptor.
    F80,
}

/// An instruction, packed for a helper's argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// The operation.
    pub operation: Operation,
    /// Kind of the source or, for stores, of the destination.
    pub source: Source,
    /// Index of the destination register.
    pub destination: u8,
    /// Index of the source register.
    pub register: u8,
    /// How many registers are popped.
    pub pops: u8,
    /// The opcode that is recorded; `None` for control instructions, which record nothing.
    pub opcode: Option<u16>,
    /// The segment of the memory operand, if there is one.
    pub segment: Option<SegmentIndex>,
}

/// By number.
const SEGMENTS: [SegmentIndex; 6] = {
    use SegmentIndex as S;
    [S::Es, S::Cs, S::Ss, S::Ds, S::Fs, S::Gs]
};

/// Where the upper bits of an extended operand are.
pub const HIGH_SHIFT: u32 = 48;

impl Descriptor {
    /// As an argument.
    #[must_use]
    pub fn pack(self) -> u64 {
        let opcode = self.opcode.map_or(0, |opcode| u64::from(opcode) << 1 | 1);
        let segment = self.segment.map_or(0, |segment| segment as u64 + 1);
        self.operation as u64
            | (self.source as u64) << 8
            | u64::from(self.destination) << 12
            | u64::from(self.register) << 16
            | u64::from(self.pops) << 20
            | segment << 24
            | opcode << 28
    }

    /// From an argument; `None` if no [`Descriptor::pack`] made it.
    #[inline]
    #[must_use]
    pub fn unpack(bits: u64) -> Option<Self> {
        let segment = match bits >> 24 & 15 {
            0 => None,
            number => Some(*SEGMENTS.get(number as usize - 1)?),
        };
        Some(Self {
            operation: *Operation::ALL.get(usize::from(bits as u8))?,
            source: *Source::ALL.get((bits >> 8 & 15) as usize)?,
            destination: (bits >> 12 & 7) as u8,
            register: (bits >> 16 & 7) as u8,
            pops: (bits >> 20 & 3) as u8,
            opcode: (bits >> 28 & 1 != 0).then_some((bits >> 29 & 0x7FF) as u16),
            segment,
        })
    }
}
