//! Input files of the jobs, made in an empty folder.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::{jobs, repository};

fn write(directory: &Path, name: &str, text: &str) {
    fs::write(directory.join(name), text).expect("input file");
}

fn copy(directory: &Path, name: &str) {
    fs::copy(repository("tests/programs/inputs").join(name), directory.join(name)).expect("input file");
}

/// A generator of numbers for inputs: the same in every run.
fn numbers(mut state: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    })
}

/// No files.
pub fn nothing(_: &Path) {}

/// A style sheet.
pub fn styles(directory: &Path) {
    copy(directory, "in.css");
}

/// The lines of `words.txt`.
pub fn lines() -> impl Iterator<Item = String> {
    (0..20_000u32).map(|line| {
        let word = match line.wrapping_mul(2_654_435_761) >> 29 {
            3 => "STATUS_HIT",
            5 => "STATUS9",
            _ => "nothing",
        };
        format!("line {line} {word} end")
    })
}

/// 20,000 lines of text.
pub fn words(directory: &Path) {
    let text: String = lines().map(|line| line + "\n").collect();
    write(directory, "words.txt", &text);
}

/// Functions in the C file: 5,000 lines.
const FUNCTIONS: u32 = 833;

/// A C file of 5,000 badly set lines.
pub fn big_c_file(directory: &Path) {
    let mut text = "#include <stdio.h>\n\n".to_owned();
    for n in 0..FUNCTIONS {
        let k = n % 17;
        text += &format!(
            "int   f{n} ( int a,int b ){{\n  if(a>b){{ for(int i=0;i<{k};++i)  {{ a+=b*i  ; }} }}\n else\n {{ return \
             a-b;}}\n  /* comment {n} */ return a +{n};}}\nstatic const char*t{n}[]={{\"a\",\"b\" , \"c\"}};\n"
        );
    }
    write(directory, "big.c", &text);
}

/// The same file as clang-format sets it.
pub fn formatted_c_file() -> String {
    let mut text = "#include <stdio.h>\n\n".to_owned();
    for n in 0..FUNCTIONS {
        let k = n % 17;
        text += &format!(
            "int f{n}(int a, int b) {{\n  if (a > b) {{\n    for (int i = 0; i < {k}; ++i) {{\n      a += b * i;\n    \
             }}\n  }} else {{\n    return a - b;\n  }}\n  /* comment {n} */ return a + {n};\n}}\nstatic const char \
             *t{n}[] = {{\"a\", \"b\", \"c\"}};\n"
        );
    }
    text
}

/// A Zig file that is badly set and has errors.
pub fn zig(directory: &Path) {
    let text = "const std = @import(\"std\");\npub fn   main() !void { var x:u32=1; _ = x;\n std.debug.print(\"hi \
                {d}\\n\", .{x}); }\n";
    write(directory, "a.zig", text);
}

/// A Python file with findings.
pub fn python(directory: &Path) {
    let text = "import os,sys\ndef f(x, y = []):\n  l = 1\n  print( x )\n  try:\n    return y\n  except:\n    \
                pass\nclass a: pass\n";
    write(directory, "a.py", text);
}

/// Two JavaScript modules.
pub fn modules(directory: &Path) {
    let text = "import {x} from './m.js';\nconsole.log(x+1, [1,2,3].map(v=>v*2));\nexport const y = async()=>{ await \
                x; }\n";
    write(directory, "in.js", text);
    write(directory, "m.js", "export const x = 41; export const unused = 3;\n");
}

/// A shell script with findings.
pub fn shell(directory: &Path) {
    let text = "#!/bin/sh\nfor f in $(ls *.txt); do\n echo $f\ndone\nif [ $x == 1 ]; then echo \"a\"; fi\ncd foo\n";
    write(directory, "a.sh", text);
}

/// A JavaScript program: hash, big integers, a sort that is worth compiling, a timer.
pub fn script(directory: &Path) {
    let text = "
const fs = require('fs'), crypto = require('crypto');
function out(s) { fs.writeSync(1, s + '\\n'); }
out(crypto.createHash('sha256').update('hello').digest('hex'));
out((2n ** 200n % 1000007n).toString());
let a = [];
for (let i = 0; i < 100000; i++) a.push((i * 7919) % 100003);
a.sort((x, y) => x - y);
out(String(a[500]));
setTimeout(() => { out('timer'); }, 20);
";
    write(directory, "script.js", text);
}

/// A text with typing errors.
pub fn typos(directory: &Path) {
    copy(directory, "typos.txt");
}

/// A TOML file that is badly set.
pub fn toml(directory: &Path) {
    copy(directory, "a.toml");
}

/// A justfile.
pub fn justfile(directory: &Path) {
    copy(directory, "justfile");
}

/// A shell script that is badly set.
pub fn unformatted_shell(directory: &Path) {
    copy(directory, "format.sh");
}

/// A workflow with findings.
pub fn workflow(directory: &Path) {
    copy(directory, "workflow.yml");
}

/// A TypeScript program with a type error.
pub fn typescript(directory: &Path) {
    copy(directory, "a.ts");
}

/// A Dockerfile with findings.
pub fn dockerfile(directory: &Path) {
    copy(directory, "Dockerfile");
}

/// A protocol buffer's definition.
pub fn message(directory: &Path) {
    copy(directory, "message.proto");
}

/// A C file with findings.
pub fn c_file(directory: &Path) {
    copy(directory, "a.c");
}

/// A style sheet with variables, nesting and a loop.
pub fn scss(directory: &Path) {
    copy(directory, "a.scss");
}

/// A picture of 64 by 64 pixels in many colours, in stored (not compressed) PNG blocks.
pub fn picture(directory: &Path) {
    const SIDE: usize = 64;
    let mut rows = Vec::new();
    for y in 0..SIDE {
        rows.push(0);
        for x in 0..SIDE {
            rows.extend([x * 4, y * 4, x * y].map(|value| value as u8));
        }
    }
    let length = u16::try_from(rows.len()).expect("one block");
    let mut stream = vec![0x78, 1, 1];
    stream.extend(length.to_le_bytes());
    stream.extend((!length).to_le_bytes());
    stream.extend(&rows);
    let (mut low, mut high) = (1u32, 0u32);
    for byte in &rows {
        low = (low + u32::from(*byte)) % 65_521;
        high = (high + low) % 65_521;
    }
    stream.extend((high << 16 | low).to_be_bytes());

    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |name: &[u8], data: &[u8]| {
        png.extend((data.len() as u32).to_be_bytes());
        let body = [name, data].concat();
        let crc = body.iter().fold(u32::MAX, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0xEDB8_8320 })
        });
        png.extend(&body);
        png.extend((!crc).to_be_bytes());
    };
    let side = (SIDE as u32).to_be_bytes();
    chunk(b"IHDR", &[&side[..], &side, &[8, 2, 0, 0, 0]].concat());
    chunk(b"IDAT", &stream);
    chunk(b"IEND", &[]);
    fs::write(directory.join("a.png"), png).expect("input file");
}

/// Names of all files below a folder, in order.
pub fn files_below(root: &Path) -> Vec<String> {
    fn walk(root: &Path, below: &str, names: &mut Vec<String>) {
        for entry in fs::read_dir(root.join(below)).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.path().is_dir() {
                walk(root, &path, names);
            }
            names.push(path);
        }
    }
    let mut names = Vec::new();
    walk(root, "", &mut names);
    names.sort();
    names
}

/// A tree of files with text, repetition, noise and nothing in them, of fixed times.
pub fn tree(directory: &Path) {
    let root = directory.join("tree");
    for folder in ["a/b", "c", "empty"] {
        fs::create_dir_all(root.join(folder)).expect("folder");
    }
    let text: String = lines().take(5_000).map(|line| line + "\r\n").collect();
    let noise: Vec<u8> = numbers(1).take(50_000).map(|number| number as u8).collect();
    let files: [(&str, Vec<u8>); 6] = [
        ("text.txt", text.into_bytes()),
        ("a/noise.bin", noise),
        ("a/b/zeros.bin", vec![0; 100_000]),
        ("a/b/one.bin", vec![1]),
        ("c/none", Vec::new()),
        ("c/Ünïcode näme.txt", b"name".to_vec()),
    ];
    for (name, bytes) in files {
        fs::write(root.join(name), bytes).expect("input file");
    }
    // From the innermost to the outermost, since creating entries changes a folder's time.
    let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let names = files_below(&root);
    for (number, name) in names.iter().enumerate().rev() {
        let file = fs::File::open(root.join(name)).expect("entry");
        file.set_modified(start + Duration::from_secs(number as u64)).expect("time");
    }
    fs::File::open(&root).and_then(|folder| folder.set_modified(start)).expect("time");
}

/// The tree, packed by a native 7-Zip if there is one, else by the guest; kept beside as `original`.
pub fn archive(directory: &Path) {
    tree(directory);
    let arguments = ["a", "archive.7z", "tree"];
    match jobs::native_7z() {
        Some(program) => jobs::native(program, directory, &arguments).expect("native 7-Zip"),
        None => {
            let packing = jobs::JOBS.iter().find(|job| job.name == "7za-add").expect("the job");
            let output = crate::lstar(packing, directory, "run", &[]);
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
        }
    }
    fs::rename(directory.join("tree"), directory.join("original")).expect("folder");
}
