//! The keys and values that a freshly set-up machine has, as far as start-up code and common programs read them.

use super::{CreateOptions, KeyId, LINK_VALUE, Registry, value_type};
use crate::status::Status;
use crate::strings::utf16_bytes;

/// Data of a built-in value.
#[derive(Clone, Copy, Debug)]
enum Data {
    /// REG_SZ.
    Text(&'static str),
    /// REG_EXPAND_SZ.
    Expand(&'static str),
    /// REG_DWORD.
    Number(u32),
    /// REG_BINARY.
    Bytes(&'static [u8]),
    /// REG_MULTI_SZ.
    Texts(&'static [&'static str]),
    /// REG_LINK: the key is a symbolic link.
    Link(&'static str),
}

use Data::{Bytes, Expand, Link, Number, Text, Texts};

impl Data {
    fn encode(self) -> (u32, Vec<u8>) {
        let terminated = |text: &str| {
            let mut bytes = utf16_bytes(text);
            bytes.extend([0, 0]);
            bytes
        };
        match self {
            Self::Text(text) => (value_type::SZ, terminated(text)),
            Self::Expand(text) => (value_type::EXPAND_SZ, terminated(text)),
            Self::Number(number) => (value_type::DWORD, number.to_le_bytes().to_vec()),
            Self::Bytes(bytes) => (value_type::BINARY, bytes.to_vec()),
            // Not terminated.
            Self::Link(target) => (value_type::LINK, utf16_bytes(target)),
            Self::Texts(texts) => {
                let mut bytes: Vec<u8> = texts.iter().flat_map(|text| terminated(text)).collect();
                bytes.extend([0, 0]);
                (value_type::MULTI_SZ, bytes)
            }
        }
    }
}

/// Key of the current user below `\Registry\User`.
pub const USER_SID: &str = "S-1-5-21-0-0-0-1000";

/// REG_TZI_FORMAT without daylight saving: bias 0, daylight bias as given, no transition dates.
const fn fixed_zone(daylight_bias: i32) -> [u8; 44] {
    let mut bytes = [0; 44];
    let bias = daylight_bias.to_le_bytes();
    let mut i = 0;
    while i < 4 {
        bytes[8 + i] = bias[i];
        i += 1;
    }
    bytes
}

type KeyTable = &'static [(&'static str, &'static [(&'static str, Data)])];

/// `\Registry\Machine`.
const MACHINE: KeyTable = &[
    ("Hardware\\Description\\System\\CentralProcessor\\0", &[]),
    ("Software\\Classes\\.exe", &[("", Text("exefile"))]),
    ("Software\\Classes\\.txt", &[("", Text("txtfile"))]),
    ("Software\\Classes\\CLSID", &[]),
    ("Software\\Classes\\Interface\\{00000000-0000-0000-C000-000000000046}", &[("", Text("IUnknown"))]),
    ("Software\\Classes\\Interface\\{00020400-0000-0000-C000-000000000046}", &[("", Text("IDispatch"))]),
    ("Software\\Classes\\exefile", &[("", Text("Application"))]),
    ("Software\\Classes\\txtfile", &[("", Text("Text Document"))]),
    ("Software\\Classes\\Wow6432Node\\CLSID", &[]),
    ("Software\\Classes\\Wow6432Node\\Interface\\{00000000-0000-0000-C000-000000000046}", &[("", Text("IUnknown"))]),
    ("Software\\Wow6432Node\\Classes", &[(LINK_VALUE, Link("\\Registry\\Machine\\Software\\Classes\\Wow6432Node"))]),
    ("Software\\Microsoft\\Cryptography", &[("MachineGuid", Text("00000000-0000-4000-8000-000000000001"))]),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider\\Microsoft Base Cryptographic Provider v1.0",
        &[
            ("Image Path", Text("C:\\windows\\system32\\rsaenh.dll")),
            ("Signature", Bytes(&[0xDE, 0xAD, 0xBE, 0xEF])),
            ("Type", Number(1)),
        ],
    ),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider\\Microsoft Enhanced Cryptographic Provider v1.0",
        &[
            ("Image Path", Text("C:\\windows\\system32\\rsaenh.dll")),
            ("Signature", Bytes(&[0xDE, 0xAD, 0xBE, 0xEF])),
            ("Type", Number(1)),
        ],
    ),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider\\Microsoft Enhanced RSA and AES Cryptographic Provider",
        &[
            ("Image Path", Text("C:\\windows\\system32\\rsaenh.dll")),
            ("Signature", Bytes(&[0xDE, 0xAD, 0xBE, 0xEF])),
            ("Type", Number(24)),
        ],
    ),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider\\Microsoft Strong Cryptographic Provider",
        &[
            ("Image Path", Text("C:\\windows\\system32\\rsaenh.dll")),
            ("Signature", Bytes(&[0xDE, 0xAD, 0xBE, 0xEF])),
            ("Type", Number(1)),
        ],
    ),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider Types\\Type 001",
        &[
            ("Name", Text("Microsoft Enhanced Cryptographic Provider v1.0")),
            ("TypeName", Text("RSA Full (Signature and Key Exchange)")),
        ],
    ),
    (
        "Software\\Microsoft\\Cryptography\\Defaults\\Provider Types\\Type 024",
        &[
            ("Name", Text("Microsoft Enhanced RSA and AES Cryptographic Provider")),
            ("TypeName", Text("RSA Full and AES")),
        ],
    ),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion",
        &[
            ("ProgramFilesDir", Text("C:\\Program Files")),
            ("ProgramFilesDir (x86)", Text("C:\\Program Files (x86)")),
            ("ProgramFilesPath", Expand("%ProgramFiles%")),
            ("ProgramW6432Dir", Text("C:\\Program Files")),
            ("CommonFilesDir", Text("C:\\Program Files\\Common Files")),
            ("CommonFilesDir (x86)", Text("C:\\Program Files (x86)\\Common Files")),
            ("CommonW6432Dir", Text("C:\\Program Files\\Common Files")),
        ],
    ),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion\\Explorer\\Shell Folders",
        &[("Common AppData", Text("C:\\ProgramData"))],
    ),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion\\Explorer\\User Shell Folders",
        &[("Common AppData", Expand("%ProgramData%"))],
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion",
        &[
            ("CurrentBuild", Text("19043")),
            ("CurrentBuildNumber", Text("19043")),
            ("CurrentMajorVersionNumber", Number(10)),
            ("CurrentMinorVersionNumber", Number(0)),
            ("CurrentType", Text("Multiprocessor Free")),
            ("CurrentVersion", Text("6.3")),
            ("EditionID", Text("Professional")),
            ("InstallationType", Text("Client")),
            ("ProductName", Text("Windows 10 Pro")),
            ("RegisteredOrganization", Text("")),
            ("RegisteredOwner", Text("")),
            ("SystemRoot", Text("C:\\windows")),
        ],
    ),
    ("Software\\Microsoft\\Windows NT\\CurrentVersion\\IniFileMapping", &[]),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\ProfileList",
        &[
            ("ProfilesDirectory", Expand("C:\\users")),
            ("ProgramData", Expand("C:\\ProgramData")),
            ("Public", Expand("C:\\users\\Public")),
        ],
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\ProfileList\\S-1-5-21-0-0-0-1000",
        &[("ProfileImagePath", Expand("C:\\users\\user"))],
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\Time Zones\\Greenwich Standard Time",
        &[
            ("Display", Text("(UTC+00:00) Monrovia, Reykjavik")),
            ("Dlt", Text("Greenwich Daylight Time")),
            ("Std", Text("Greenwich Standard Time")),
            ("TZI", Bytes(&fixed_zone(0))),
        ],
    ),
    (
        "Software\\Microsoft\\Windows NT\\CurrentVersion\\Time Zones\\UTC",
        &[
            ("Display", Text("(UTC) Coordinated Universal Time")),
            ("Dlt", Text("Coordinated Universal Time")),
            ("Std", Text("Coordinated Universal Time")),
            ("TZI", Bytes(&fixed_zone(0))),
        ],
    ),
    ("System\\CurrentControlSet\\Control\\ComputerName\\ActiveComputerName", &[("ComputerName", Text("LSTAR"))]),
    ("System\\CurrentControlSet\\Control\\ComputerName\\ComputerName", &[("ComputerName", Text("LSTAR"))]),
    ("System\\CurrentControlSet\\Control\\FileSystem", &[("LongPathsEnabled", Number(0))]),
    ("System\\CurrentControlSet\\Control\\Lsa", &[]),
    (
        "System\\CurrentControlSet\\Control\\Nls\\CodePage",
        &[("ACP", Text("1252")), ("MACCP", Text("10000")), ("OEMCP", Text("437"))],
    ),
    (
        "System\\CurrentControlSet\\Control\\Nls\\Language",
        &[("Default", Text("0409")), ("InstallLanguage", Text("0409"))],
    ),
    ("System\\CurrentControlSet\\Control\\Nls\\Locale", &[("", Text("00000409"))]),
    // The sort version whose tables sortdefault.nls holds.
    ("System\\CurrentControlSet\\Control\\Nls\\Sorting\\Ids", &[("", Text("{00000001-57EE-1E5C-00B4-D0000BB1E11E}"))]),
    ("System\\CurrentControlSet\\Control\\Nls\\Sorting\\Versions", &[]),
    (
        "System\\CurrentControlSet\\Control\\ProductOptions",
        &[("ProductType", Text("WinNT")), ("ProductSuite", Texts(&["Terminal Server"]))],
    ),
    ("System\\CurrentControlSet\\Control\\SecurityProviders", &[("SecurityProviders", Text("credssp.dll"))]),
    ("System\\CurrentControlSet\\Control\\Session Manager", &[]),
    (
        "System\\CurrentControlSet\\Control\\Session Manager\\Environment",
        &[
            ("ComSpec", Expand("%SystemRoot%\\system32\\cmd.exe")),
            ("NUMBER_OF_PROCESSORS", Text("1")),
            ("OS", Text("Windows_NT")),
            ("Path", Expand("%SystemRoot%\\system32;%SystemRoot%")),
            ("PATHEXT", Text(".COM;.EXE;.BAT;.CMD")),
            ("PROCESSOR_ARCHITECTURE", Text("AMD64")),
            ("TEMP", Expand("%SystemRoot%\\TEMP")),
            ("TMP", Expand("%SystemRoot%\\TEMP")),
            ("windir", Expand("%SystemRoot%")),
        ],
    ),
    (
        "System\\CurrentControlSet\\Control\\TimeZoneInformation",
        &[
            ("ActiveTimeBias", Number(0)),
            ("Bias", Number(0)),
            ("DaylightBias", Number(-60i32 as u32)),
            ("DaylightName", Text("Greenwich Daylight Time")),
            ("StandardBias", Number(0)),
            ("StandardName", Text("Greenwich Standard Time")),
            ("TimeZoneKeyName", Text("Greenwich Standard Time")),
        ],
    ),
    ("System\\CurrentControlSet\\Control\\Windows", &[("CSDVersion", Number(0)), ("CSDReleaseType", Number(0))]),
    (
        "System\\CurrentControlSet\\Services\\Tcpip\\Parameters",
        &[("Domain", Text("")), ("Hostname", Text("lstar")), ("NV Hostname", Text("lstar"))],
    ),
];

/// `\Registry\User\<SID>`.
const USER: KeyTable = &[
    ("AppEvents", &[]),
    ("Console", &[]),
    (
        "Control Panel\\International",
        &[
            ("iCalendarType", Text("1")),
            ("iCountry", Text("1")),
            ("iCurrDigits", Text("2")),
            ("iCurrency", Text("0")),
            ("iDate", Text("0")),
            ("iDigits", Text("2")),
            ("iFirstDayOfWeek", Text("6")),
            ("iFirstWeekOfYear", Text("0")),
            ("iLZero", Text("1")),
            ("iMeasure", Text("1")),
            ("iNegCurr", Text("0")),
            ("iNegNumber", Text("1")),
            ("iPaperSize", Text("1")),
            ("iTime", Text("0")),
            ("iTimePrefix", Text("0")),
            ("iTLZero", Text("0")),
            ("Locale", Text("00000409")),
            ("LocaleName", Text("en-US")),
            ("NumShape", Text("1")),
            ("s1159", Text("AM")),
            ("s2359", Text("PM")),
            ("sCountry", Text("United States")),
            ("sCurrency", Text("$")),
            ("sDate", Text("/")),
            ("sDecimal", Text(".")),
            ("sGrouping", Text("3;0")),
            ("sLanguage", Text("ENU")),
            ("sList", Text(",")),
            ("sLongDate", Text("dddd, MMMM d, yyyy")),
            ("sMonDecimalSep", Text(".")),
            ("sMonGrouping", Text("3;0")),
            ("sMonThousandSep", Text(",")),
            ("sNativeDigits", Text("0123456789")),
            ("sNegativeSign", Text("-")),
            ("sPositiveSign", Text("")),
            ("sShortDate", Text("M/d/yyyy")),
            ("sShortTime", Text("h:mm tt")),
            ("sThousand", Text(",")),
            ("sTime", Text(":")),
            ("sTimeFormat", Text("h:mm:ss tt")),
            ("sYearMonth", Text("MMMM, yyyy")),
        ],
    ),
    ("Environment", &[]),
    ("Software\\Classes", &[]),
    ("Software\\Microsoft\\Windows\\CurrentVersion", &[]),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion\\Explorer\\Shell Folders",
        &[
            ("AppData", Text("C:\\users\\user\\AppData\\Roaming")),
            ("Local AppData", Text("C:\\users\\user\\AppData\\Local")),
        ],
    ),
    (
        "Software\\Microsoft\\Windows\\CurrentVersion\\Explorer\\User Shell Folders",
        &[
            ("AppData", Expand("%USERPROFILE%\\AppData\\Roaming")),
            ("Local AppData", Expand("%USERPROFILE%\\AppData\\Local")),
        ],
    ),
    ("Volatile Environment", &[]),
];

fn create_link(registry: &mut Registry, base: KeyId, path: &str, now: i64) -> Result<KeyId, Status> {
    let (parent, name) = path.rsplit_once('\\').unwrap_or(("", path));
    let parent = registry.create_all(base, parent, now)?;
    let options = CreateOptions { link: true, ..CreateOptions::default() };
    Ok(registry.create(parent, name, options, now)?.0)
}

/// A registry with the built-in keys, stamped with system time `now`.
pub fn registry(now: i64) -> Result<Registry, Status> {
    let mut registry = branches(now)?;
    let none = |_: &str| false;
    fill(&mut registry, now, &none)?;
    Ok(registry)
}

/// A registry of its branches alone.
pub(super) fn branches(now: i64) -> Result<Registry, Status> {
    let mut registry = Registry::new();
    for branch in ["Machine", "User"] {
        registry.create_all(registry.root(), branch, now)?;
    }
    Ok(registry)
}

/// Keys that Windows makes at each start, so that no hive holds them, and one that older versions lack.
const MADE_AT_START: [&str; 4] = [
    "Hardware\\Description\\System\\CentralProcessor\\0",
    "System\\CurrentControlSet\\Control\\ComputerName\\ActiveComputerName",
    "System\\CurrentControlSet\\Control\\Nls\\Sorting\\Ids",
    "Volatile Environment",
];

/// Adds the built-in keys. `is_loaded` says of a branch (`Machine\Software`) whether a hive has given it: then only what no
/// hive holds is added, where it is missing.
pub(super) fn fill(registry: &mut Registry, now: i64, is_loaded: &dyn Fn(&str) -> bool) -> Result<(), Status> {
    let root = registry.root();
    let user = format!("User\\{USER_SID}");
    registry.create_all(root, &format!("{user}_Classes"), now)?;
    for (base, table) in [("Machine", MACHINE), (user.as_str(), USER), ("User\\.Default", USER)] {
        let base_key = registry.create_all(root, base, now)?;
        for (path, values) in table {
            let branch = match base {
                "Machine" => format!("Machine\\{}", path.split('\\').next().unwrap_or_default()),
                user => user.to_owned(),
            };
            let loaded = is_loaded(&branch);
            if loaded && (!MADE_AT_START.contains(path) || registry.open(base_key, path).is_ok()) {
                continue;
            }
            let key = match values.first() {
                Some((_, Data::Link(_))) => create_link(registry, base_key, path, now)?,
                _ => registry.create_all(base_key, path, now)?,
            };
            for (name, data) in *values {
                let (kind, bytes) = data.encode();
                registry.set_value(key, name, kind, bytes, now)?;
            }
        }
    }
    if !is_loaded("Machine\\Software") {
        const ZONES: &str = "Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion\\Time Zones";
        let zones = registry.create_all(root, ZONES, now)?;
        super::time_zones::add(registry, zones, now)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_up_keys_are_there() {
        let registry = registry(7).unwrap();
        let root = registry.root();
        for path in [
            "Machine\\System\\CurrentControlSet\\Control\\Session Manager",
            "MACHINE\\SOFTWARE\\MICROSOFT\\WINDOWS NT\\CURRENTVERSION\\TIME ZONES\\GREENWICH STANDARD TIME",
            "User\\S-1-5-21-0-0-0-1000\\Control Panel\\International",
        ] {
            assert!(registry.open(root, path).is_ok(), "{path}");
        }
        let key = registry.open(root, "Machine\\Software\\Microsoft\\Windows NT\\CurrentVersion").unwrap();
        let value = registry.key(key).unwrap().value("currentbuildnumber").unwrap();
        assert_eq!((value.kind, value.data.as_slice()), (1, b"1\09\x000\x004\x003\0\0\0".as_slice()));
        let options = registry.open(root, "Machine\\System\\CurrentControlSet\\Control\\ProductOptions").unwrap();
        let suite = registry.key(options).unwrap().value("ProductSuite").unwrap();
        assert_eq!((suite.kind, suite.data.len()), (7, 34));
    }
}
