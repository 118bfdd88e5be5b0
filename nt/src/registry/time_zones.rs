//! Time zones for `Software\Microsoft\Windows NT\CurrentVersion\Time Zones`: the common ones with today's rules.

use super::{Registry, value_type};
use crate::registry::KeyId;
use crate::status::Status;
use crate::strings::utf16_bytes;

/// When a change falls: month, day of the week (0: Sunday), which one of the month (5: the last), hour.
type Change = (u16, u16, u16, u16);

/// Changes to standard and to daylight time.
type Changes = Option<(Change, Change)>;

/// A zone: name without "Standard Time", minutes that UTC is ahead, changes, display.
type Zone = (&'static str, i32, Changes, &'static str);

/// A year in which a zone had other rules: minutes that UTC was ahead, what daylight time adds to that, changes.
type Year = (u32, i32, i32, Changes);

/// On a Sunday.
const fn sunday(month: u16, which: u16, hour: u16) -> Change {
    (month, 0, which, hour)
}

const EUROPE_WEST: Changes = Some((sunday(10, 5, 2), sunday(3, 5, 1)));
const EUROPE_CENTRAL: Changes = Some((sunday(10, 5, 3), sunday(3, 5, 2)));
const EUROPE_EAST: Changes = Some((sunday(10, 5, 4), sunday(3, 5, 3)));
const NORTH_AMERICA: Changes = Some((sunday(11, 1, 2), sunday(3, 2, 2)));

const ZONES: &[Zone] = &[
    ("Hawaiian", 600, None, "(UTC-10:00) Hawaii"),
    ("Alaskan", 540, NORTH_AMERICA, "(UTC-09:00) Alaska"),
    ("Pacific", 480, NORTH_AMERICA, "(UTC-08:00) Pacific Time (US & Canada)"),
    ("US Mountain", 420, None, "(UTC-07:00) Arizona"),
    ("Mountain", 420, NORTH_AMERICA, "(UTC-07:00) Mountain Time (US & Canada)"),
    ("Easter Island", 360, Some(((4, 6, 1, 22), (9, 6, 1, 22))), "(UTC-06:00) Easter Island"),
    ("Central", 360, NORTH_AMERICA, "(UTC-06:00) Central Time (US & Canada)"),
    ("SA Pacific", 300, None, "(UTC-05:00) Bogota, Lima, Quito, Rio Branco"),
    ("Eastern", 300, NORTH_AMERICA, "(UTC-05:00) Eastern Time (US & Canada)"),
    ("Atlantic", 240, NORTH_AMERICA, "(UTC-04:00) Atlantic Time (Canada)"),
    ("Argentina", 180, None, "(UTC-03:00) City of Buenos Aires"),
    ("E. South America", 180, None, "(UTC-03:00) Brasilia"),
    ("Greenland", 120, Some(((10, 6, 5, 23), (3, 6, 5, 22))), "(UTC-02:00) Greenland"),
    ("GMT", 0, EUROPE_WEST, "(UTC+00:00) Dublin, Edinburgh, Lisbon, London"),
    ("W. Europe", -60, EUROPE_CENTRAL, "(UTC+01:00) Amsterdam, Berlin, Bern, Rome, Stockholm, Vienna"),
    ("Central Europe", -60, EUROPE_CENTRAL, "(UTC+01:00) Belgrade, Bratislava, Budapest, Ljubljana, Prague"),
    ("Romance", -60, EUROPE_CENTRAL, "(UTC+01:00) Brussels, Copenhagen, Madrid, Paris"),
    ("Central European", -60, EUROPE_CENTRAL, "(UTC+01:00) Sarajevo, Skopje, Warsaw, Zagreb"),
    ("GTB", -120, EUROPE_EAST, "(UTC+02:00) Athens, Bucharest"),
    ("FLE", -120, EUROPE_EAST, "(UTC+02:00) Helsinki, Kyiv, Riga, Sofia, Tallinn, Vilnius"),
    ("Egypt", -120, Some(((10, 4, 5, 23), (4, 5, 5, 0))), "(UTC+02:00) Cairo"),
    ("South Africa", -120, None, "(UTC+02:00) Harare, Pretoria"),
    ("Turkey", -180, None, "(UTC+03:00) Istanbul"),
    ("Russian", -180, None, "(UTC+03:00) Moscow, St. Petersburg"),
    ("Arabian", -240, None, "(UTC+04:00) Abu Dhabi, Muscat"),
    ("India", -330, None, "(UTC+05:30) Chennai, Kolkata, Mumbai, New Delhi"),
    ("Altai", -420, None, "(UTC+07:00) Barnaul, Gorno-Altaysk"),
    ("SE Asia", -420, None, "(UTC+07:00) Bangkok, Hanoi, Jakarta"),
    ("China", -480, None, "(UTC+08:00) Beijing, Chongqing, Hong Kong, Urumqi"),
    ("Singapore", -480, None, "(UTC+08:00) Kuala Lumpur, Singapore"),
    ("W. Australia", -480, None, "(UTC+08:00) Perth"),
    ("Tokyo", -540, None, "(UTC+09:00) Osaka, Sapporo, Tokyo"),
    ("Korea", -540, None, "(UTC+09:00) Seoul"),
    ("E. Australia", -600, None, "(UTC+10:00) Brisbane"),
    ("AUS Eastern", -600, Some((sunday(4, 1, 3), sunday(10, 1, 2))), "(UTC+10:00) Canberra, Melbourne, Sydney"),
    ("New Zealand", -720, Some((sunday(4, 1, 3), sunday(9, 5, 2))), "(UTC+12:00) Auckland, Wellington"),
];

/// Zones whose rules were others in earlier years, as far as anybody still asks for them.
const EARLIER: &[(&str, &[Year])] = &[
    (
        "Altai",
        &[
            // Until the 27th of March an hour less.
            (2016, -420, 60, Some((sunday(3, 5, 2), (1, 5, 1, 0)))),
            (2017, -420, DAYLIGHT, None),
        ],
    ),
    (
        "Easter Island",
        &[
            (2014, 360, DAYLIGHT, Some(((4, 6, 5, 22), (9, 6, 1, 22)))),
            (2015, 300, DAYLIGHT, None),
            (2016, 360, DAYLIGHT, Some(((5, 6, 2, 22), (8, 6, 2, 22)))),
            (2017, 360, DAYLIGHT, Some(((5, 6, 2, 22), (8, 6, 2, 22)))),
            (2018, 360, DAYLIGHT, Some(((5, 6, 2, 22), (8, 6, 2, 22)))),
            (2019, 360, DAYLIGHT, Some(((4, 6, 1, 22), (9, 6, 1, 22)))),
        ],
    ),
    (
        "Egypt",
        &[
            (2013, -120, DAYLIGHT, None),
            (2014, -120, DAYLIGHT, Some(((9, 4, 5, 23), (5, 4, 3, 23)))),
            (2015, -120, DAYLIGHT, None),
            (2016, -120, DAYLIGHT, None),
            (2022, -120, DAYLIGHT, None),
            (2023, -120, DAYLIGHT, Some(((10, 4, 5, 23), (4, 5, 5, 0)))),
        ],
    ),
    (
        "Greenland",
        &[
            (2015, 180, DAYLIGHT, Some(((10, 6, 4, 23), (3, 6, 5, 22)))),
            (2016, 180, DAYLIGHT, Some(((10, 6, 5, 23), (3, 6, 5, 22)))),
            (2017, 180, DAYLIGHT, Some(((10, 6, 5, 23), (3, 6, 5, 22)))),
            (2022, 180, DAYLIGHT, Some(((10, 6, 5, 23), (3, 6, 5, 22)))),
            (2024, 120, DAYLIGHT, Some(((10, 6, 5, 23), (3, 6, 5, 22)))),
        ],
    ),
];

/// Minutes that daylight time adds to the bias; zones without it have it in their data, too.
const DAYLIGHT: i32 = -60;

/// REG_TZI_FORMAT: biases, then the changes as SYSTEMTIMEs without a year.
fn tzi(bias: i32, daylight_bias: i32, changes: Changes) -> Vec<u8> {
    let mut bytes: Vec<u8> = [bias, 0, daylight_bias].map(i32::to_le_bytes).concat();
    let (standard, daylight) = changes.unwrap_or_default();
    for (month, weekday, which, hour) in [standard, daylight] {
        bytes.extend([0, month, weekday, which, hour, 0, 0, 0].map(u16::to_le_bytes).concat());
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
        registry.set_value(key, "TZI", value_type::BINARY, tzi(*bias, DAYLIGHT, *changes), now)?;
    }
    for (name, years) in EARLIER {
        let key = registry.create_all(zones, &format!("{name} Standard Time\\Dynamic DST"), now)?;
        let number = |year: &Year| year.0.to_le_bytes().to_vec();
        for (name, year) in [("FirstEntry", years.first()), ("LastEntry", years.last())] {
            registry.set_value(key, name, value_type::DWORD, year.map(number).unwrap_or_default(), now)?;
        }
        for (year, bias, daylight_bias, changes) in *years {
            let rules = tzi(*bias, *daylight_bias, *changes);
            registry.set_value(key, &year.to_string(), value_type::BINARY, rules, now)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_have_the_registry_s_layout() {
        let eastern = tzi(300, DAYLIGHT, NORTH_AMERICA);
        assert_eq!(eastern.len(), 44);
        assert_eq!(eastern[..12], [300i32, 0, -60].map(i32::to_le_bytes).concat());
        // The first Sunday of November at two.
        assert_eq!(eastern[12..28], [0u16, 11, 0, 1, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
        assert_eq!(tzi(-540, DAYLIGHT, None)[12..], [0; 32]);
    }
}
