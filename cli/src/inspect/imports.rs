//! Finds out whether the DLLs a program needs at load time exist.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::{Purpose, inspect};

/// A DLL that cannot be found or used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingImport {
    /// Its name as the importer spells it.
    pub name: String,
    /// File name of the image that asks for it.
    pub importer: String,
    /// What is wrong with the file that was found; `None` when there is none.
    pub problem: Option<String>,
}

/// Looks up `name` in `folder` as Windows would: without regard to case.
#[must_use]
pub fn find_entry(folder: &Path, name: &str) -> Option<PathBuf> {
    let exact = folder.join(name);
    if exact.exists() {
        return Some(exact);
    }
    fs::read_dir(folder)
        .ok()?
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().eq_ignore_ascii_case(name))
        .map(|entry| entry.path())
}

/// Whether the guest's API-set map answers for this name instead of a file.
fn is_api_set(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    name.starts_with("api-") || name.starts_with("ext-")
}

/// DLLs that `program` needs, directly or through DLLs beside it, and that none of the `folders` has.
///
/// The program's own folder is searched first. DLLs that come from elsewhere (the system root) are taken as complete.
#[must_use]
pub fn missing_imports(program: &Path, imports: &[String], folders: &[PathBuf]) -> Vec<MissingImport> {
    let own = program.parent().unwrap_or(Path::new("."));
    let mut missing = Vec::new();
    let mut seen = HashSet::new();
    let file_name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut queue: Vec<(String, String)> = imports.iter().map(|name| (file_name(program), name.clone())).collect();
    while let Some((importer, name)) = queue.pop() {
        if is_api_set(&name) || !seen.insert(name.to_ascii_lowercase()) {
            continue;
        }
        let name = if name.contains('.') { name } else { format!("{name}.dll") };
        if let Some(path) = find_entry(own, &name) {
            match inspect(&path, Purpose::Library) {
                Ok(inspection) => queue.extend(inspection.imports.into_iter().map(|next| (file_name(&path), next))),
                Err(problem) => missing.push(MissingImport { name, importer, problem: Some(problem.to_string()) }),
            }
        } else if !folders.iter().any(|folder| find_entry(folder, &name).is_some()) {
            missing.push(MissingImport { name, importer, problem: None });
        }
    }
    missing.sort_by(|a, b| a.name.cmp(&b.name));
    missing
}
