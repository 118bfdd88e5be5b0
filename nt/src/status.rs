//! NTSTATUS values, by name.
//!
//! One table makes the constants and the names that traces and crash reports print.

use std::fmt;

/// An NTSTATUS: what a service leaves in EAX.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Status(pub u32);

impl Status {
    /// Severity success or informational, as NT_SUCCESS tests it.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 < 0x8000_0000
    }

    /// Severity error, as NT_ERROR tests it (warnings are neither success nor error).
    #[must_use]
    pub const fn is_error(self) -> bool {
        self.0 >= 0xC000_0000
    }
}

macro_rules! statuses {
    ($($name:ident = $value:literal,)*) => {
        #[expect(missing_docs, reason = "the NT names say it all")]
        impl Status {
            $(pub const $name: Self = Self($value);)*

            /// The name without its `STATUS_` prefix, when the value is known.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                #[expect(unreachable_patterns, reason = "STATUS_WAIT_0 and STATUS_SUCCESS are one value")]
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// The status of a name, with or without its `STATUS_` prefix, in any case.
            #[must_use]
            pub fn by_name(name: &str) -> Option<Self> {
                let name = name.to_ascii_uppercase();
                match name.strip_prefix("STATUS_").unwrap_or(&name) {
                    $(stringify!($name) => Some(Self($value)),)*
                    _ => None,
                }
            }
        }
    };
}

statuses! {
    SUCCESS = 0x0000_0000,
    WAIT_0 = 0x0000_0000,
    ABANDONED_WAIT_0 = 0x0000_0080,
    USER_APC = 0x0000_00C0,
    ALERTED = 0x0000_0101,
    TIMEOUT = 0x0000_0102,
    PENDING = 0x0000_0103,
    REPARSE = 0x0000_0104,
    MORE_ENTRIES = 0x0000_0105,
    NOT_ALL_ASSIGNED = 0x0000_0106,
    SOME_NOT_MAPPED = 0x0000_0107,
    NOTIFY_CLEANUP = 0x0000_010B,
    NOTIFY_ENUM_DIR = 0x0000_010C,
    OBJECT_NAME_EXISTS = 0x4000_0000,
    THREAD_WAS_SUSPENDED = 0x4000_0001,
    IMAGE_NOT_AT_BASE = 0x4000_0003,
    IMAGE_MACHINE_TYPE_MISMATCH = 0x4000_000E,
    NO_YIELD_PERFORMED = 0x4000_0024,
    GUARD_PAGE_VIOLATION = 0x8000_0001,
    DATATYPE_MISALIGNMENT = 0x8000_0002,
    BREAKPOINT = 0x8000_0003,
    SINGLE_STEP = 0x8000_0004,
    BUFFER_OVERFLOW = 0x8000_0005,
    NO_MORE_FILES = 0x8000_0006,
    NO_MORE_EAS = 0x8000_0012,
    NO_MORE_ENTRIES = 0x8000_001A,
    DEVICE_BUSY = 0x8000_0011,
    UNSUCCESSFUL = 0xC000_0001,
    NOT_IMPLEMENTED = 0xC000_0002,
    FREE_VM_NOT_AT_BASE = 0xC000_009F,
    MEMORY_NOT_ALLOCATED = 0xC000_00A0,
    MAPPED_FILE_SIZE_ZERO = 0xC000_011E,
    INVALID_ADDRESS = 0xC000_0141,
    FILE_INVALID = 0xC000_0098,
    PARTIAL_COPY = 0x8000_000D,
    PORT_NOT_SET = 0xC000_0353,
    INVALID_INFO_CLASS = 0xC000_0003,
    INFO_LENGTH_MISMATCH = 0xC000_0004,
    ACCESS_VIOLATION = 0xC000_0005,
    IN_PAGE_ERROR = 0xC000_0006,
    INVALID_HANDLE = 0xC000_0008,
    INVALID_CID = 0xC000_000B,
    INVALID_PARAMETER = 0xC000_000D,
    NO_SUCH_DEVICE = 0xC000_000E,
    NO_SUCH_FILE = 0xC000_000F,
    INVALID_DEVICE_REQUEST = 0xC000_0010,
    END_OF_FILE = 0xC000_0011,
    NO_MEMORY = 0xC000_0017,
    CONFLICTING_ADDRESSES = 0xC000_0018,
    NOT_MAPPED_VIEW = 0xC000_0019,
    UNABLE_TO_FREE_VM = 0xC000_001A,
    UNABLE_TO_DELETE_SECTION = 0xC000_001B,
    INVALID_SYSTEM_SERVICE = 0xC000_001C,
    ILLEGAL_INSTRUCTION = 0xC000_001D,
    INVALID_LOCK_SEQUENCE = 0xC000_001E,
    INVALID_VIEW_SIZE = 0xC000_001F,
    INVALID_FILE_FOR_SECTION = 0xC000_0020,
    ALREADY_COMMITTED = 0xC000_0021,
    ACCESS_DENIED = 0xC000_0022,
    BUFFER_TOO_SMALL = 0xC000_0023,
    OBJECT_TYPE_MISMATCH = 0xC000_0024,
    NONCONTINUABLE_EXCEPTION = 0xC000_0025,
    INVALID_DISPOSITION = 0xC000_0026,
    NOT_COMMITTED = 0xC000_002D,
    INVALID_PARAMETER_MIX = 0xC000_0030,
    OBJECT_NAME_INVALID = 0xC000_0033,
    OBJECT_NAME_NOT_FOUND = 0xC000_0034,
    OBJECT_NAME_COLLISION = 0xC000_0035,
    OBJECT_PATH_INVALID = 0xC000_0039,
    OBJECT_PATH_NOT_FOUND = 0xC000_003A,
    OBJECT_PATH_SYNTAX_BAD = 0xC000_003B,
    SHARING_VIOLATION = 0xC000_0043,
    SECTION_TOO_BIG = 0xC000_0040,
    PORT_DISCONNECTED = 0xC000_0037,
    INVALID_PAGE_PROTECTION = 0xC000_0045,
    MUTANT_NOT_OWNED = 0xC000_0046,
    SEMAPHORE_LIMIT_EXCEEDED = 0xC000_0047,
    SECTION_NOT_IMAGE = 0xC000_0049,
    SUSPEND_COUNT_EXCEEDED = 0xC000_004A,
    THREAD_IS_TERMINATING = 0xC000_004B,
    SECTION_PROTECTION = 0xC000_004E,
    EAS_NOT_SUPPORTED = 0xC000_004F,
    FILE_LOCK_CONFLICT = 0xC000_0054,
    LOCK_NOT_GRANTED = 0xC000_0055,
    DELETE_PENDING = 0xC000_0056,
    PRIVILEGE_NOT_HELD = 0xC000_0061,
    NO_TOKEN = 0xC000_007C,
    DEBUGGER_INACTIVE = 0xC000_0354,
    NO_IMPERSONATION_TOKEN = 0xC000_005C,
    NO_SUCH_LOGON_SESSION = 0xC000_005F,
    NO_EAS_ON_FILE = 0xC000_0052,
    RANGE_NOT_LOCKED = 0xC000_007E,
    DISK_FULL = 0xC000_007F,
    SECTION_NOT_EXTENDED = 0xC000_0087,
    INVALID_IMAGE_FORMAT = 0xC000_007B,
    ARRAY_BOUNDS_EXCEEDED = 0xC000_008C,
    FLOAT_DENORMAL_OPERAND = 0xC000_008D,
    FLOAT_DIVIDE_BY_ZERO = 0xC000_008E,
    FLOAT_INEXACT_RESULT = 0xC000_008F,
    FLOAT_INVALID_OPERATION = 0xC000_0090,
    FLOAT_OVERFLOW = 0xC000_0091,
    FLOAT_STACK_CHECK = 0xC000_0092,
    FLOAT_UNDERFLOW = 0xC000_0093,
    INTEGER_DIVIDE_BY_ZERO = 0xC000_0094,
    INTEGER_OVERFLOW = 0xC000_0095,
    PRIVILEGED_INSTRUCTION = 0xC000_0096,
    INSUFFICIENT_RESOURCES = 0xC000_009A,
    MEDIA_WRITE_PROTECTED = 0xC000_00A2,
    INSTANCE_NOT_AVAILABLE = 0xC000_00AB,
    PIPE_NOT_AVAILABLE = 0xC000_00AC,
    INVALID_PIPE_STATE = 0xC000_00AD,
    PIPE_BUSY = 0xC000_00AE,
    PIPE_DISCONNECTED = 0xC000_00B0,
    PIPE_CLOSING = 0xC000_00B1,
    PIPE_CONNECTED = 0xC000_00B2,
    PIPE_LISTENING = 0xC000_00B3,
    PIPE_EMPTY = 0xC000_00D9,
    ILLEGAL_FUNCTION = 0xC000_00AF,
    IO_TIMEOUT = 0xC000_00B5,
    FILE_IS_A_DIRECTORY = 0xC000_00BA,
    QUOTA_EXCEEDED = 0xC000_0044,
    NOT_SUPPORTED = 0xC000_00BB,
    NOT_SAME_DEVICE = 0xC000_00D4,
    FILE_RENAMED = 0xC000_00D5,
    DIRECTORY_NOT_EMPTY = 0xC000_0101,
    NOT_A_DIRECTORY = 0xC000_0103,
    PROCESS_IS_TERMINATING = 0xC000_010A,
    CANNOT_DELETE = 0xC000_0121,
    FILE_CLOSED = 0xC000_0128,
    COMMITMENT_LIMIT = 0xC000_012D,
    INVALID_IMAGE_NOT_MZ = 0xC000_012F,
    INVALID_IMAGE_PROTECT = 0xC000_0130,
    INVALID_IMAGE_WIN_16 = 0xC000_0131,
    PIPE_BROKEN = 0xC000_014B,
    UNHANDLED_EXCEPTION = 0xC000_0144,
    DLL_NOT_FOUND = 0xC000_0135,
    ENTRYPOINT_NOT_FOUND = 0xC000_0139,
    CONTROL_C_EXIT = 0xC000_013A,
    DLL_INIT_FAILED = 0xC000_0142,
    MAPPED_ALIGNMENT = 0xC000_0220,
    NOT_FOUND = 0xC000_0225,
    CANCELLED = 0xC000_0120,
    STACK_OVERFLOW = 0xC000_00FD,
    BAD_STACK = 0xC000_0028,
    INVALID_UNWIND_TARGET = 0xC000_0029,
    KEY_DELETED = 0xC000_017C,
    TIMER_RESOLUTION_NOT_SET = 0xC000_0245,
    CHILD_MUST_BE_VOLATILE = 0xC000_0181,
    NAME_TOO_LONG = 0xC000_0106,
    NOT_A_REPARSE_POINT = 0xC000_0275,
    STOPPED_ON_SYMLINK = 0x8000_002D,
    INVALID_DEVICE_STATE = 0xC000_0184,
    IO_DEVICE_ERROR = 0xC000_0185,
    INVALID_PARAMETER_1 = 0xC000_00EF,
    INVALID_PARAMETER_2 = 0xC000_00F0,
    INVALID_PARAMETER_3 = 0xC000_00F1,
    INVALID_PARAMETER_4 = 0xC000_00F2,
    INVALID_PARAMETER_5 = 0xC000_00F3,
    INVALID_PARAMETER_6 = 0xC000_00F4,
    INVALID_PARAMETER_7 = 0xC000_00F5,
    INVALID_PARAMETER_8 = 0xC000_00F6,
    INVALID_PARAMETER_9 = 0xC000_00F7,
    INVALID_PARAMETER_10 = 0xC000_00F8,
    FLOAT_MULTIPLE_FAULTS = 0xC000_02B4,
    FLOAT_MULTIPLE_TRAPS = 0xC000_02B5,
    HANDLE_NOT_CLOSABLE = 0xC000_0235,
    TOO_MANY_LINKS = 0xC000_0265,
    STACK_BUFFER_OVERRUN = 0xC000_0409,
    INVALID_CRUNTIME_PARAMETER = 0xC000_0417,
    ASSERTION_FAILURE = 0xC000_0420,
    HEAP_CORRUPTION = 0xC000_0374,
    CONNECTION_REFUSED = 0xC000_0236,
    DEVICE_NOT_READY = 0xC000_00A3,
    INVALID_CONNECTION = 0xC000_0140,
    ADDRESS_ALREADY_ASSOCIATED = 0xC000_0238,
    INVALID_ADDRESS_COMPONENT = 0xC000_0207,
    CONNECTION_RESET = 0xC000_020D,
    NETWORK_UNREACHABLE = 0xC000_023C,
    HOST_UNREACHABLE = 0xC000_023D,
    CONNECTION_ACTIVE = 0xC000_023B,
    CONNECTION_ABORTED = 0xC000_0241,
    NETWORK_BUSY = 0xC000_00BF,
    TOO_MANY_OPENED_FILES = 0xC000_011F,
    NOT_SAME_OBJECT = 0xC000_01AC,
    REQUEST_ABORTED = 0xC000_0240,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "STATUS_{name}"),
            None => write!(f, "{:#010x}", self.0),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} ({:#010x})", self.0)
    }
}

impl From<lstar_arch::PageFault> for Status {
    fn from(_: lstar_arch::PageFault) -> Self {
        Self::ACCESS_VIOLATION
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn severities_and_names() {
        assert!(Status::SUCCESS.is_success() && Status::IMAGE_NOT_AT_BASE.is_success());
        assert!(!Status::BUFFER_OVERFLOW.is_success() && !Status::BUFFER_OVERFLOW.is_error());
        assert!(Status::ACCESS_VIOLATION.is_error());
        assert_eq!(Status::ACCESS_VIOLATION.to_string(), "STATUS_ACCESS_VIOLATION");
        assert_eq!(Status(0xC123_4567).to_string(), "0xc1234567");
        assert_eq!(Status::by_name("status_access_denied"), Some(Status::ACCESS_DENIED));
        assert_eq!(Status::by_name("NO_SUCH_NAME"), None);
    }
}
