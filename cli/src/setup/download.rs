//! Downloads Wine with apt's own tools: nothing is installed, and the machine's package state is not touched.
//!
//! apt runs with a private configuration (own lists, cache, source list, no dpkg status). The mirror's address, and
//! with it proxies and access rules, is the machine's own; only the suite differs, so that an older Debian gets a Wine
//! that is new enough. Only the DLLs are used, which need no newer C library.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::sources::{Source, debian_mirror, parse_deb822, parse_list};
use super::wine::{Origin, recognise};

/// The Debian release whose Wine is used: the first with Wine 10.
const SUITE: &str = "trixie";
/// Packages: Wine's DLLs, and the zlib that Debian's user32.dll imports.
const PACKAGES: [&str; 2] = ["libwine:amd64", "libz-mingw-w64"];
/// Where the second package keeps its DLL.
const ZLIB: &str = "usr/x86_64-w64-mingw32/lib/zlib1.dll";
/// Debian's archive keys, where its keyring package puts them.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// What was downloaded and unpacked.
#[derive(Clone, Debug)]
pub struct Download {
    /// The DLLs.
    pub origin: Origin,
    /// DLLs from other packages.
    pub extra: Vec<PathBuf>,
    /// Bytes of the packages.
    pub bytes: u64,
    /// File names of the packages.
    pub packages: Vec<String>,
}

/// What a download is doing.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Fetching the package index.
    Index,
    /// Fetching packages: bytes so far and in total.
    Fetch(u64, u64),
    /// Unpacking.
    Unpack,
}

/// Downloads into `folder`, which must exist and be empty.
pub fn download(folder: &Path, progress: &mut dyn FnMut(Step)) -> Result<Download> {
    let mirror = mirror()?;
    let apt = Apt::configure(folder, &mirror)?;

    progress(Step::Index);
    apt.run(apt.command(&["update"]), "update the package index", &mut || progress(Step::Index))?;

    let mut list = apt.command(&["--print-uris", "download"]);
    list.args(PACKAGES);
    let listed = apt.run(list, "look up the packages", &mut || {})?;
    let total = listed.lines().filter_map(size_of).sum();
    let mut get = apt.command(&["download"]);
    get.args(PACKAGES);
    let debs = apt.folder.join("deb");
    let partial = apt.folder.join("cache/archives/partial");
    apt.run(get, "download the packages", &mut || {
        progress(Step::Fetch(folder_size(&debs) + folder_size(&partial), total));
    })?;

    let unpacked = folder.join("unpacked");
    let mut packages = Vec::new();
    for entry in fs::read_dir(&debs).with_context(|| format!("cannot read {}", debs.display()))? {
        let path = entry?.path();
        progress(Step::Unpack);
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(&path).arg(&unpacked);
        apt.run(command, "unpack the packages", &mut || progress(Step::Unpack))?;
        packages.push(path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    }
    packages.sort();
    Ok(Download { origin: recognise(&unpacked)?, extra: vec![unpacked.join(ZLIB)], bytes: total, packages })
}

/// The Debian archive that this machine uses.
fn mirror() -> Result<Source> {
    let mut sources = Vec::new();
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        let mut more: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        more.sort();
        files.extend(more);
    }
    for file in files {
        let text = fs::read_to_string(&file).unwrap_or_default();
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("list") => sources.extend(parse_list(&text)),
            Some("sources") => sources.extend(parse_deb822(&text)),
            _ => {}
        }
    }
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .filter(|_| release.lines().any(|line| line == "ID=debian"));
    match debian_mirror(&sources, codename) {
        Some(source) => Ok(source.clone()),
        None => bail!(
            "cannot download Wine: no Debian archive among the sources in /etc/apt; install Wine 9 or newer and run \
             `lstar setup` again, or name a copy of C:\\Windows with `lstar setup --from DIR`"
        ),
    }
}

/// Bytes of one package in the output of `apt-get --print-uris download`: `'uri' file size hash`.
fn size_of(line: &str) -> Option<u64> {
    line.strip_prefix('\'')?.split_once("' ")?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes of the plain files in a folder.
fn folder_size(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(fs::Metadata::is_file).map(|metadata| metadata.len()).sum()
}

/// apt with a private configuration.
struct Apt {
    folder: PathBuf,
    configuration: PathBuf,
}

impl Apt {
    fn configure(folder: &Path, mirror: &Source) -> Result<Self> {
        let folder = folder.join("apt");
        for part in ["lists/partial", "cache/archives/partial", "deb"] {
            let part = folder.join(part);
            fs::create_dir_all(&part).with_context(|| format!("cannot create {}", part.display()))?;
        }
        let keys = match &mirror.signed_by {
            Some(keys) => keys.clone(),
            None if Path::new(KEYRING).is_file() => KEYRING.into(),
            None => bail!("cannot verify a download: {KEYRING} is missing; install debian-archive-keyring"),
        };
        let write = |name: &str, text: &str| -> Result<PathBuf> {
            let path = folder.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        write("sources.list", &format!("deb [arch=amd64 signed-by={keys}] {} {SUITE} main\n", mirror.uri))?;
        write("status", "")?;
        let configuration = write("apt.conf", &configuration(&folder))?;
        Ok(Self { folder, configuration })
    }

    /// `apt-get` in the folder for packages.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.args(["-q", "-y"]).args(arguments).current_dir(self.folder.join("deb"));
        command
    }

    /// Runs a command to its end, calling `progress` now and then, and returns its output.
    fn run(&self, mut command: Command, purpose: &str, progress: &mut dyn FnMut()) -> Result<String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let log = self.folder.join("errors");
        let output = self.folder.join("output");
        command
            .env("APT_CONFIG", &self.configuration)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(fs::File::create(&output).with_context(|| format!("cannot write {}", output.display()))?)
            .stderr(fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?);
        let mut child = match command.spawn() {
            Ok(child) => KilledOnDrop(child),
            Err(error) => bail!(
                "cannot {purpose}: cannot run {name} ({error}); install Wine 9 or newer and run `lstar setup` again, or \
                 name a copy of C:\\Windows with `lstar setup --from DIR`"
            ),
        };
        let status = loop {
            if let Some(status) = child.0.try_wait().with_context(|| format!("cannot wait for {name}"))? {
                break status;
            }
            super::check_interrupt()?;
            progress();
            thread::sleep(Duration::from_millis(50));
        };
        if !status.success() {
            let errors = fs::read_to_string(&log).unwrap_or_default();
            let reason = errors.lines().rev().find(|line| line.starts_with("E:")).or_else(|| errors.lines().last());
            bail!("cannot {purpose}: {name}: {}; check the network and /etc/apt", reason.unwrap_or("it failed").trim());
        }
        fs::read_to_string(&output).with_context(|| format!("cannot read {}", output.display()))
    }
}

struct KilledOnDrop(Child);

impl Drop for KilledOnDrop {
    fn drop(&mut self) {
        // Both fail harmlessly when it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// apt's settings: everything it writes stays in `folder`.
fn configuration(folder: &Path) -> String {
    let settings: BTreeMap<&str, PathBuf> = BTreeMap::from([
        ("Dir::State::lists", folder.join("lists")),
        ("Dir::State::status", folder.join("status")),
        ("Dir::Cache", folder.join("cache")),
        ("Dir::Etc::sourcelist", folder.join("sources.list")),
        ("Dir::Etc::sourceparts", "/dev/null".into()),
        ("Dir::Etc::preferencesparts", "/dev/null".into()),
        ("APT::Architecture", "amd64".into()),
        ("APT::Sandbox::User", "root".into()),
        ("Acquire::Languages", "none".into()),
    ]);
    let mut text: String = settings.iter().map(|(key, value)| format!("{key} \"{}\";\n", value.display())).collect();
    text.push_str("APT::Architectures { \"amd64\"; };\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_package_sizes() {
        let line = "'http://m.example/pool/libwine_10.0_amd64.deb' libwine_10.0_amd64.deb 110123456 SHA256:00ff";
        assert_eq!(size_of(line), Some(110_123_456));
        assert_eq!(size_of("Reading package lists..."), None);
    }

    #[test]
    fn the_configuration_keeps_everything_in_its_folder() {
        let text = configuration(Path::new("/data/apt"));
        assert!(text.contains("Dir::State::lists \"/data/apt/lists\";\n"));
        assert!(text.contains("Dir::Etc::sourceparts \"/dev/null\";\n"));
    }
}
