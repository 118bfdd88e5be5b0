#!/usr/bin/env python3
"""Builds GCC's test programs as PE programs and runs each by `lstar run`.

Usage: run_gcc.py DIR [--lstar PATH] [--engine translator|interpreter] [--cpu MODEL] [--only TEXT] [--jobs N]

DIR is what fetch_gcc.sh has filled; built programs are kept in DIR/built. A test passes when its program exits with 0.
Results are compared with gcc_expected.tsv beside this file (name, result, reason): the exit status is 1 when a test
that is not listed fails, or one that is listed passes.
"""

import argparse
import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent
COMPILER = "x86_64-w64-mingw32-gcc"
BUILD_LIMIT = 120  # seconds
RUN_LIMIT = 60

# Extensions that lstar does not advertise.
FOREIGN = re.compile(r"avx512|avx10|\bamx|avx5124|avx512er|gfni|keylocker|\bkl\b|widekl|\bwaitpkg|uintr|\bxop\b|\bfma4\b|\btbm\b|\blwp\b|hreset|serialize|tsxldtrk|avxvnni|avxifma|avxneconvert|\brtm\b|cldemote|ptwrite|shstk|\bcet\b|clzero|mwaitx|enqcmd|movdir|raoint|prefetchi|\buser_msr\b", re.I)
# What a Windows program has not.
UNIX_ONLY = {"ia32", "fork", "mmap", "pthread", "fpic", "pie", "sysv", "ucontext_h", "sigsetjmp", "alarm", "cet", "fopenmp", "lp64", "fstack_protector_enabled"}


class Test:
    def __init__(self, kind, path, root):
        self.kind, self.path = kind, path
        self.name = f"{kind}/{path.relative_to(root)}"
        self.text = path.read_text(errors="replace")
        self.options, self.skip = [], None
        self.read_directives()

    def read_directives(self):
        for options in re.findall(r'dg-(?:additional-)?options\s+\{?\s*"([^"]*)"(?:\s*\{[^}]*\b(?:ia32)\b[^}]*\})?', self.text):
            self.options += options.split()
        if self.kind == "i386":
            do = re.search(r"dg-do\s+run([^\n]*)", self.text)
            if not do:
                self.skip = "no run test"
                return
            target = do.group(1)
            if re.search(r"target\s*\{?\s*(\*-\*-linux|ia32|lp64\b)", target) or "linux" in target and "mingw" not in target:
                self.skip = "for another target"
                return
            if FOREIGN.search(self.path.name) or any(FOREIGN.search(option) for option in self.options):
                self.skip = "an extension that is not advertised"
                return
        for needed in re.findall(r"dg-require-effective-target\s+(\w+)", self.text):
            if FOREIGN.search(needed):
                self.skip = "an extension that is not advertised"
            elif needed in UNIX_ONLY:
                self.skip = f"needs {needed}"
        if re.search(r"dg-require-(fork|mmap|alias|ifunc|profiling|weak|visibility)", self.text):
            self.skip = self.skip or "needs something that PE has not"


def tests(root):
    for kind in ("execute", "i386"):
        for path in sorted((root / kind).rglob("*.c")):
            yield Test(kind, path, root / kind)


def build(test, root):
    """The built program, or why there is none."""
    out = root / "built" / (test.name.replace("/", "_") + ".exe")
    if out.exists():
        return out, None
    out.parent.mkdir(exist_ok=True)
    part = out.with_suffix(".part.exe")
    options = ["-O2", *test.options] if test.kind == "execute" else (test.options or ["-O2"])
    command = [COMPILER, "-w", *options, "-o", str(part), str(test.path), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_LIMIT, cwd=test.path.parent)
    except subprocess.TimeoutExpired:
        return None, "the compiler does not end"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
        return None, "does not build: " + (lines[0].split(": ", 1)[-1][:100] if lines else "?")
    part.rename(out)
    return out, None


def run(test, root, arguments):
    """Result (pass, fail, skip) and details."""
    if test.skip:
        return "skip", test.skip
    program, problem = build(test, root)
    if problem:
        return "skip", problem
    command = [arguments.lstar, "run", "--engine", arguments.engine, "--cpu", arguments.cpu, "--timeout", str(RUN_LIMIT)]
    # Some tests write files.
    folder = root / "run" / test.name.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    command += ["--rw", str(program)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=RUN_LIMIT + 30, stdin=subprocess.DEVNULL, cwd=folder)
    except subprocess.TimeoutExpired:
        return "fail", "does not end"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if done.returncode == 0:
        return "pass", ""
    text = done.stderr.decode(errors="replace").strip().splitlines()
    detail = next((line for line in text if "crash" in line or "not implemented" in line), text[0] if text else "")
    return "fail", f"status {done.returncode} {detail[:160]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--lstar", default=str(HERE.parents[1] / "target/release/lstar"))
    parser.add_argument("--engine", default="translator")
    parser.add_argument("--cpu", default="host")
    parser.add_argument("--only", default="")
    parser.add_argument("--jobs", type=int, default=2)
    arguments = parser.parse_args()
    if not shutil.which(COMPILER):
        sys.exit(f"run_gcc.py: no {COMPILER} (Debian: gcc-mingw-w64-x86-64)")
    root = arguments.dir.resolve()
    expected = {}
    for line in (HERE / "gcc_expected.tsv").read_text().splitlines():
        if line and not line.startswith("#"):
            name, reason = line.split("\t", 1)
            expected[name] = reason
    chosen = [test for test in tests(root) if arguments.only in test.name]
    counts, surprises, skips = {"pass": 0, "fail": 0, "skip": 0}, [], {}
    with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
        for number, (test, (result, detail)) in enumerate(
            zip(chosen, pool.map(lambda test: run(test, root, arguments), chosen)), 1
        ):
            counts[result] += 1
            if result == "skip":
                skips[detail.split(": ")[0]] = skips.get(detail.split(": ")[0], 0) + 1
            elif result == "fail":
                known = test.name in expected
                print(f"\n{'known' if known else 'FAIL'} {test.name}: {detail}", flush=True)
                if not known:
                    surprises.append(test.name)
            elif test.name in expected:
                print(f"\nPASS that was expected to fail: {test.name}", flush=True)
                surprises.append(test.name)
            print(f"\r{number}/{len(chosen)}", end="", file=sys.stderr, flush=True)
    print(f"\n{counts['pass']} passed, {counts['fail']} failed, {counts['skip']} skipped of {len(chosen)} ({arguments.engine})")
    for reason, count in sorted(skips.items(), key=lambda item: -item[1]):
        print(f"  skipped {count}: {reason}")
    print(f"{len(surprises)} results differ from gcc_expected.tsv")
    sys.exit(1 if surprises else 0)


if __name__ == "__main__":
    main()
