//! Time zones for `Software\Microsoft\Windows NT\CurrentVersion\Time Zones`: the common ones with today's rules.

use super::{Registry, value_type};
use crate::registry::KeyId;
use crate::status::Status;
use crate::strings::utf16_bytes;

/// When a change falls: month, week (5: the last one), hour of its Sunday.
type Change = (u16, u16, u16);

/// A zone: name without "Standard Time", minutes that UTC is ahead, changes to standard and to daylight time, display.
type Zone = (&'static str, i32, Option<(Change, Change)>, &'static str);

const EUROPE_WEST: Option<(Change, Change)> = Some(((10, 5, 2), (3, 5, 1)));
const EUROPE_CENTRAL: Option<(Change, Change)> = Some(((10, 5, 3), (3, 5, 2)));
const EUROPE_EAST: Option<(Change, Change)> = Some(((10, 5, 4), (3, 5, 3)));
const NORTH_AMERICA: Option<(Change, Change)> = Some(((11, 1, 2), (3, 2, 2)));

const ZONES: &[Zone] = &[
    ("Hawaiian", 600, None, "(UTC-10:00) Hawaii"),
    ("Alaskan", 540, NORTH_AMERICA, "(UTC-09:00) Alaska"),
    ("Pacific", 480, NORTH_AMERICA, "(UTC-08:00) Pacific Time (US & Canada)"),
    ("US Mountain", 420, None, "(UTC-07:00) Arizona"),
    ("Mountain", 420, NORTH_AMERICA, "(UTC-07:00) Mountain Time (US & Canada)"),
    ("Central", 360, NORTH_AMERICA, "(UTC-06:00) Central Time (US & Canada)"),
    ("SA Pacific", 300, None, "(UTC-05:00) Bogota, Lima, Quito, Rio Branco"),
    ("Eastern", 300, NORTH_AMERICA, "(UTC-05:00) Eastern Time (US & Canada)"),
    ("Atlantic", 240, NORTH_AMERICA, "(UTC-04:00) Atlantic Time (Canada)"),
    ("Argentina", 180, None, "(UTC-03:00) City of Buenos Aires"),
    ("E. South America", 180, None, "(UTC-03:00) Brasilia"),
    ("GMT", 0, EUROPE_WEST, "(UTC+00:00) Dublin, Edinburgh, Lisbon, London"),
    ("W. Europe", -60, EUROPE_CENTRAL, "(UTC+01:00) Amsterdam, Berlin, Bern, Rome, Stockholm, Vienna"),
    ("Central Europe", -60, EUROPE_CENTRAL, "(UTC+01:00) Belgrade, Bratislava, Budapest, Ljubljana, Prague"),
    ("Romance", -60, EUROPE_CENTRAL, "(UTC+01:00) Brussels, Copenhagen, Madrid, Paris"),
    ("Central European", -60, EUROPE_CENTRAL, "(UTC+01:00) Sarajevo, Skopje, Warsaw, Zagreb"),
    ("GTB", -120, EUROPE_EAST, "(UTC+02:00) Athens, Bucharest"),
    ("FLE", -120, EUROPE_EAST, "(UTC+02:00) Helsinki, Kyiv, Riga, Sofia, Tallinn, Vilnius"),
    ("South Africa", -120, None, "(UTC+02:00) Harare, Pretoria"),
    ("Turkey", -180, None, "(UTC+03:00) Istanbul"),
    ("Russian", -180, None, "(UTC+03:00) Moscow, St. Petersburg"),
    ("Arabian", -240, None, "(UTC+04:00) Abu Dhabi, Muscat"),
    ("India", -330, None, "(UTC+05:30) Chennai, Kolkata, Mumbai, New Delhi"),
    ("SE Asia", -420, None, "(UTC+07:00) Bangkok, Hanoi, Jakarta"),
    ("China", -480, None, "(UTC+08:00) Beijing, Chongqing, Hong Kong, Urumqi"),
    ("Singapore", -480, None, "(UTC+08:00) Kuala Lumpur, Singapore"),
    ("W. Australia", -480, None, "(UTC+08:00) Perth"),
    ("Tokyo", -540, None, "(UTC+09:00) Osaka, Sapporo, Tokyo"),
    ("Korea", -540, None, "(UTC+09:00) Seoul"),
    ("E. Australia", -600, None, "(UTC+10:00) Brisbane"),
    ("AUS Eastern", -600, Some(((4, 1, 3), (10, 1, 2))), "(UTC+10:00) Canberra, Melbourne, Sydney"),
    ("New Zealand", -720, Some(((4, 1, 3), (9, 5, 2))), "(UTC+12:00) Auckland, Wellington"),
];

/// REG_TZI_FORMAT: biases, then the changes as SYSTEMTIMEs without a year.
fn tzi(bias: i32, changes: Option<(Change, Change)>) -> Vec<u8> {
    let daylight_bias = if changes.is_some() { -60 } else { 0 };
    let mut bytes: Vec<u8> = [bias, 0, daylight_bias].map(i32::to_le_bytes).concat();
    let (standard, daylight) = changes.unwrap_or_default();
    for (month, week, hour) in [standard, daylight] {
        bytes.extend([0, month, 0, week, hour, 0, 0, 0].map(u16::to_le_bytes).concat());
    }
    bytes
}

/// Adds the zones below their common key.
pub(super) fn add(registry: &mut Registry, zones: KeyId, now: i64) -> Result<(), Status> {
    let text = |text: &str| {
        let mut bytes = utf16_bytes(text);
        bytes.extend([0, 0]);
        bytes
    };
    for (name, bias, changes, display) in ZONES {
        let standard = format!("{name} Standard Time");
        let key = registry.create_all(zones, &standard, now)?;
        registry.set_value(key, "Display", value_type::SZ, text(display), now)?;
        registry.set_value(key, "Dlt", value_type::SZ, text(&format!("{name} Daylight Time")), now)?;
        registry.set_value(key, "Std", value_type::SZ, text(&standard), now)?;
        registry.set_value(key, "TZI", value_type::BINARY, tzi(*bias, *changes), now)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_the_registry_s_layout() {
        let eastern = tzi(300, NORTH_AMERICA);
        assert_eq!(eastern.len(), 44);
        assert_eq!(eastern[..12], [300i32, 0, -60].map(i32::to_le_bytes).concat());
        // The first Sunday of November at two.
        assert_eq!(eastern[12..28], [0u16, 11, 0, 1, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        assert_eq!(tzi(-540, None)[8..], [0; 36]);
    }
}
