//! What a guest program sees around itself: drives, current folder, its own path.
//!
//! C: is the system root, copy-on-write: what the guest writes there is forgotten. Folders given by `--mount` come
//! next. The current folder, unless it lies in one of these, becomes the first free drive from D:, and so does the
//! program's folder. Nothing else of the host is visible.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::args::{GuestArgs, Mount, MountMode};
use crate::inspect::{ImageProblem, Purpose, inspect, missing_imports};
use crate::setup;

/// A guest about to be started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Surroundings {
    /// Drives, C: first.
    pub mounts: Vec<Mount>,
    /// The program as the guest names it.
    pub program: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// The guest's current folder.
    pub current_folder: String,
    /// Variables that differ from the default environment.
    pub variables: Vec<(String, String)>,
}

impl Surroundings {
    /// Arranges drives for what the command line says, and checks the program and its DLLs.
    pub fn arrange(args: &GuestArgs, program: &[OsString]) -> Result<Self> {
        let Some((program, arguments)) = program.split_first() else {
            bail!("no program is given; name an x64 Windows .exe");
        };
        let mut drives = Drives::default();
        for mount in &args.mount {
            drives.add(mount.clone())?;
        }
        if drives.folder('C').is_none() {
            let root = setup::system_root(args.system_root.as_deref())?;
            drives.add(Mount { drive: 'C', folder: root, mode: MountMode::CopyOnWrite })?;
        } else if args.system_root.is_some() {
            bail!("--system-root and --mount C: exclude each other; the system root is drive C:");
        }
        let root = drives.folder('C').map(Path::to_path_buf).unwrap_or_default();
        setup::system_root(Some(&root))?;

        let current = match &args.cwd {
            Some(folder) => folder.clone(),
            None => std::env::current_dir().context("cannot tell the current folder; name one with --cwd")?,
        };
        let mode = if args.rw { MountMode::ReadWrite } else { MountMode::ReadOnly };
        let current_folder = drives.name_or_mount(&current, mode).context("cannot use the current folder")?;

        let host = find_program(program, &drives)
            .and_then(|host| check_program(&host, &drives, &current).map(|()| host))
            .with_context(|| format!("cannot run {}", Path::new(program).display()))?;
        let host = fs::canonicalize(&host).with_context(|| format!("cannot run {}", host.display()))?;
        let (Some(folder), Some(file)) = (host.parent(), host.file_name()) else {
            bail!("cannot run {}: it has no folder", host.display());
        };
        let folder = drives.name_or_mount(folder, MountMode::ReadOnly).context("cannot use the program's folder")?;
        let program = format!("{}\\{}", folder.trim_end_matches('\\'), component(file)?);

        let arguments = arguments.iter().map(|argument| match argument.to_str() {
            Some(text) => Ok(text.to_owned()),
            None => bail!("the argument {} is not valid UTF-8; Windows programs take Unicode", argument.display()),
        });
        Ok(Self {
            program,
            arguments: arguments.collect::<Result<_>>()?,
            current_folder,
            variables: args.env.clone(),
            mounts: drives.0,
        })
    }
}

/// Drives in order of preference.
#[derive(Debug, Default)]
struct Drives(Vec<Mount>);

impl Drives {
    fn folder(&self, drive: char) -> Option<&Path> {
        self.0.iter().find(|mount| mount.drive == drive).map(|mount| mount.folder.as_path())
    }

    fn add(&mut self, mut mount: Mount) -> Result<()> {
        if self.folder(mount.drive).is_some() {
            bail!("drive {}: is given twice; choose another letter", mount.drive);
        }
        mount.folder = fs::canonicalize(&mount.folder)
            .with_context(|| format!("cannot mount {} as {}:", mount.folder.display(), mount.drive))?;
        if !mount.folder.is_dir() {
            bail!("cannot mount {} as {}: it is not a folder", mount.folder.display(), mount.drive);
        }
        self.0.push(mount);
        Ok(())
    }

    /// The guest's name of a host folder on the drive that is nearest to it.
    fn name(&self, folder: &Path) -> Result<Option<String>> {
        let nearest = self
            .0
            .iter()
            .filter_map(|mount| Some((mount, folder.strip_prefix(&mount.folder).ok()?)))
            .min_by_key(|(_, rest)| rest.components().count());
        let Some((mount, rest)) = nearest else { return Ok(None) };
        let mut name = format!("{}:\\", mount.drive);
        for (index, part) in rest.components().enumerate() {
            let Component::Normal(part) = part else { continue };
            if index != 0 {
                name.push('\\');
            }
            name.push_str(&component(part)?);
        }
        Ok(Some(name))
    }

    /// The guest's name of a host folder, which is mounted if no drive holds it.
    fn name_or_mount(&mut self, folder: &Path, mode: MountMode) -> Result<String> {
        let folder = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
        if let Some(name) = self.name(&folder)? {
            return Ok(name);
        }
        let Some(drive) = ('D'..='Z').find(|drive| self.folder(*drive).is_none()) else {
            bail!("every drive letter is taken; leave out a --mount");
        };
        self.add(Mount { drive, folder, mode })?;
        Ok(format!("{drive}:\\"))
    }

    /// The host's name of a guest path such as `C:\windows\notepad.exe`, if it is one and the drive exists.
    fn host_path(&self, path: &str) -> Option<PathBuf> {
        let mut characters = path.chars();
        let drive = characters.next()?.to_ascii_uppercase();
        let rest = characters.as_str().strip_prefix(':')?;
        let mut host = self.folder(drive)?.to_path_buf();
        for part in rest.strip_prefix(['\\', '/'])?.split(['\\', '/']).filter(|part| !part.is_empty()) {
            // Paths that climb out of the drive lead nowhere.
            if part == ".." {
                return None;
            }
            host = crate::inspect::find_entry(&host, part).unwrap_or_else(|| host.join(part));
        }
        Some(host)
    }
}

/// A file name that Windows can spell.
fn component(name: &OsStr) -> Result<String> {
    match name.to_str() {
        Some(name) if !name.contains(['\\', ':', '*', '?', '"', '<', '>', '|']) => Ok(name.to_owned()),
        _ => bail!("the name {} cannot be spelled in Windows; rename it", Path::new(name).display()),
    }
}

/// The program's file: a host path, with `.exe` added if only that exists, or a guest path.
fn find_program(program: &OsStr, drives: &Drives) -> Result<PathBuf> {
    let host = Path::new(program);
    if host.exists() {
        return Ok(host.to_path_buf());
    }
    let mut with_extension = program.to_os_string();
    with_extension.push(".exe");
    let candidates = [Some(with_extension.into()), program.to_str().and_then(|path| drives.host_path(path))];
    match candidates.into_iter().flatten().find(|path: &PathBuf| path.is_file()) {
        Some(path) => Ok(path),
        // The usual reasons, in the usual words.
        None => match inspect(host, Purpose::Program) {
            Err(problem) => Err(problem.into()),
            Ok(_) => Err(ImageProblem::NotFound.into()),
        },
    }
}

/// Checks that the program can run: its file, and that the DLLs it imports exist.
fn check_program(program: &Path, drives: &Drives, current: &Path) -> Result<()> {
    let inspection = inspect(program, Purpose::Program)?;
    let mut folders = vec![current.to_path_buf()];
    if let Some(root) = drives.folder('C') {
        folders.extend(setup::system32_of(root));
        folders.extend(crate::inspect::find_entry(root, "windows"));
    }
    let missing = missing_imports(program, &inspection.imports, &folders);
    let Some(first) = missing.first() else { return Ok(()) };
    if let Some(problem) = &first.problem {
        bail!("{} (which {} imports): {problem}", first.name, first.importer);
    }
    let names: Vec<&str> = missing.iter().map(|import| import.name.as_str()).collect();
    bail!(
        "{} imports {}, found neither beside the program nor in the system root; put it beside the program",
        first.importer,
        names.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use lstar_guest_images::{demo, ntdll};

    /// A system root with the embedded DLLs under the names that are essential, and a program beside it.
    fn scratch() -> tempfile::TempDir {
        let scratch = tempfile::tempdir().expect("scratch folder");
        let system32 = scratch.path().join("root/windows/system32");
        fs::create_dir_all(&system32).expect("folders");
        fs::create_dir_all(scratch.path().join("job/inner")).expect("folders");
        let ntdll = ntdll::ntdll().expect("ntdll").pe;
        for name in ["ntdll", "kernel32", "kernelbase", "msvcrt", "bcryptprimitives"] {
            fs::write(system32.join(format!("{name}.dll")), &ntdll).expect("dll");
        }
        fs::write(system32.join("win32u.dll"), ntdll::win32u().expect("win32u").pe).expect("dll");
        fs::write(scratch.path().join("job/demo.exe"), demo::demo().expect("demo").pe).expect("program");
        scratch
    }

    fn arrange(scratch: &Path, options: &[&str], program: &str) -> Result<Surroundings> {
        use clap::Parser;
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            guest: GuestArgs,
            #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
            program: Vec<OsString>,
        }
        let root = scratch.join("root").display().to_string();
        let mut words = vec!["lstar".to_owned()];
        words.extend(options.iter().map(|word| word.replace("@", &scratch.display().to_string())));
        if !options.iter().any(|word| word.starts_with("C:=")) {
            words.extend(["--system-root".to_owned(), root]);
        }
        words.push(program.replace("@", &scratch.display().to_string()));
        words.extend(["--version", "-x"].map(String::from));
        let line = Line::parse_from(words);
        Surroundings::arrange(&line.guest, &line.program)
    }

    #[test]
    fn drives_follow_from_the_command_line() {
        let scratch = scratch();
        let at = |path: &str| scratch.path().canonicalize().expect("scratch").join(path);
        let plan = arrange(scratch.path(), &["--cwd", "@/job/inner"], "@/job/demo.exe").expect("arranged");
        assert_eq!((plan.program.as_str(), plan.current_folder.as_str()), (r"E:\demo.exe", r"D:\"));
        assert_eq!(plan.arguments, ["--version", "-x"]);
        let drives: Vec<_> = plan.mounts.iter().map(|m| (m.drive, m.folder.clone(), m.mode)).collect();
        assert_eq!(
            drives,
            [
                ('C', at("root"), MountMode::CopyOnWrite),
                ('D', at("job/inner"), MountMode::ReadOnly),
                ('E', at("job"), MountMode::ReadOnly),
            ]
        );

        let plan = arrange(scratch.path(), &["--cwd", "@/job", "--rw"], "@/job/demo").expect("arranged");
        assert_eq!(plan.program, r"D:\demo.exe");
        assert_eq!(plan.mounts[1].mode, MountMode::ReadWrite);

        let options = ["--mount", "X:=@:rw", "--cwd", "@/job/inner"];
        let plan = arrange(scratch.path(), &options, "@/job/demo.exe").expect("arranged");
        assert_eq!((plan.program.as_str(), plan.current_folder.as_str()), (r"X:\job\demo.exe", r"X:\job\inner"));
        assert_eq!(plan.mounts.len(), 2);

        let options = ["--mount", "X:=@", "--cwd", "@/job"];
        let plan = arrange(scratch.path(), &options, r"x:\JOB\Demo.exe").expect("a guest path");
        assert_eq!(plan.program, r"X:\job\demo.exe");
    }

    #[test]
    fn what_cannot_be_arranged_is_explained_in_one_line() {
        let scratch = scratch();
        fs::write(scratch.path().join("job/text.exe"), "hello").expect("file");
        fs::write(scratch.path().join("job/a:b.exe"), demo::demo().expect("demo").pe).expect("file");
        for (options, program, expected) in [
            (&["--cwd", "@/job"][..], "@/job/absent.exe", "there is no such file"),
            (&["--cwd", "@/job"], "@/job", "it is a folder"),
            (&["--cwd", "@/job"], "@/job/text.exe", "a text file"),
            (&["--cwd", "@/job"], "@/job/a:b.exe", "cannot be spelled in Windows"),
            (&["--cwd", "@/nowhere"], "@/job/demo.exe", "No such file"),
            (&["--mount", "D:=@/nowhere"], "@/job/demo.exe", "cannot mount"),
            (&["--mount", "D:=@", "--mount", "D:=@"], "@/job/demo.exe", "given twice"),
            (&["--mount", "C:=@/job"], "@/job/demo.exe", "has no windows/system32"),
            (&["--mount", "X:=@/job", "--cwd", "@/job"], r"X:\..\secret.exe", "there is no such file"),
        ] {
            let error = arrange(scratch.path(), options, program).expect_err(program);
            let text = format!("{error:#}");
            assert!(text.contains(expected) && !text.contains('\n'), "{program}: {text}");
        }
        fs::remove_file(scratch.path().join("root/windows/system32/win32u.dll")).expect("remove");
        let error = arrange(scratch.path(), &["--cwd", "@/job"], "@/job/demo.exe").expect_err("missing DLL");
        assert!(format!("{error:#}").contains("imports win32u.dll"), "{error:#}");
        fs::remove_dir_all(scratch.path().join("root/windows")).expect("remove");
        let error = arrange(scratch.path(), &["--cwd", "@/job"], "@/job/demo.exe").expect_err("missing root");
        assert!(format!("{error:#}").contains("no windows/system32"), "{error:#}");
    }
}
