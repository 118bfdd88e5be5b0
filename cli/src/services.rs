//! `lstar services`: which system services are implemented, from the declarations themselves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use comfy_table::{Table, presets};
use lstar_guest_images::{MappedImage, map_pe};
use lstar_nt::kernel::SERVICE_TABLES;
use lstar_nt::service::Service;
use serde_json::json;

use crate::args::Services;
use crate::kd::Fault;
use crate::kd::image::{Image, Memory};
use crate::setup;

/// A service of a system root or of lstar.
struct Row {
    name: String,
    /// Its number in the system root's DLL.
    number: Option<u32>,
    declaration: Option<&'static Service>,
}

/// Runs the command.
pub fn run(args: &Services) -> Result<u8> {
    // Without a system root there are still the declarations; a root that was asked for must be there.
    let numbers = match setup::system_root(args.system_root.as_deref()) {
        Ok(root) => service_numbers(&root)?,
        Err(error) if args.system_root.is_some() => return Err(error),
        Err(_) => BTreeMap::new(),
    };
    let mut rows: Vec<Row> = SERVICE_TABLES
        .iter()
        .flat_map(|table| table.iter())
        .map(|service| Row {
            name: service.name.to_owned(),
            number: numbers.get(service.name).copied(),
            declaration: Some(service),
        })
        .collect();
    let implemented = rows.len();
    let declared: std::collections::HashSet<&str> =
        SERVICE_TABLES.iter().flat_map(|table| table.iter()).map(|service| service.name).collect();
    let missing = numbers.iter().filter(|(name, _)| !declared.contains(name.as_str()));
    rows.extend(missing.map(|(name, number)| Row { name: name.clone(), number: Some(*number), declaration: None }));
    rows.sort_by(|a, b| (a.number.unwrap_or(u32::MAX), &a.name).cmp(&(b.number.unwrap_or(u32::MAX), &b.name)));
    let total = rows.len();
    rows.retain(|row| !args.missing || row.declaration.is_none());

    if args.json {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "number": row.number,
                    "implemented": row.declaration.is_some(),
                    "parameters": row.declaration.map(|service| {
                        service.parameters.iter().map(|parameter| parameter.name).collect::<Vec<_>>()
                    }),
                })
            })
            .collect();
        println!("{}", json!({ "implemented": implemented, "total": total, "services": rows }));
        return Ok(0);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(["number", "service", "arguments", "what it does"]);
    for row in &rows {
        let (arguments, what) = match row.declaration {
            Some(service) => {
                let what = service.doc.lines().next().unwrap_or_default().trim();
                (service.parameters.len().to_string(), what.to_owned())
            }
            None => (String::new(), "(not implemented)".to_owned()),
        };
        let number = row.number.map_or_else(String::new, |number| format!("{number:x}h"));
        table.add_row([number, row.name.clone(), arguments, what]);
    }
    for line in table.lines() {
        println!("{}", line.trim_end());
    }
    println!();
    if numbers.is_empty() {
        println!("{implemented} services implemented");
    } else {
        println!("{implemented} services implemented, {} of this system root are not", total - implemented);
    }
    Ok(0)
}

/// An image file as memory at its preferred base.
struct FileImage(MappedImage);

impl Memory for FileImage {
    fn read(&self, address: u64, buf: &mut [u8]) -> Result<(), Fault> {
        let rva = address.checked_sub(self.0.base).and_then(|rva| u32::try_from(rva).ok());
        let bytes = rva.zip(u32::try_from(buf.len()).ok()).and_then(|(rva, length)| self.0.read(rva, length));
        let bytes = bytes.filter(|bytes| bytes.len() == buf.len()).ok_or(Fault(address))?;
        buf.copy_from_slice(&bytes);
        Ok(())
    }
}

/// Numbers of the services that a system root's DLLs have stubs for, by name.
fn service_numbers(root: &Path) -> Result<BTreeMap<String, u32>> {
    let mut numbers = BTreeMap::new();
    let Some(system32) = setup::system32_of(root) else { return Ok(numbers) };
    for name in ["ntdll.dll", "win32u.dll"] {
        let Some(path) = crate::inspect::find_entry(&system32, name) else { continue };
        let file = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mapped = map_pe(&file).with_context(|| format!("cannot read {}", path.display()))?;
        let memory = FileImage(mapped);
        let Some(image) = Image::at(&memory, memory.0.base) else { continue };
        for (address, name) in image.exports(&memory).1 {
            // `mov r10,rcx; mov eax,number`; Zw names are the same stubs once more.
            let stub = name.starts_with("Nt") && memory.u32(address) == Ok(0xB8D1_8B4C);
            if let (true, Ok(number)) = (stub, memory.u32(address.wrapping_add(4))) {
                numbers.insert(name, number);
            }
        }
    }
    Ok(numbers)
}
