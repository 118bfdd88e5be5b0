#!/usr/bin/env python3
"""Runs Wine's own test suites under lstar (or natively under Wine) and keeps the table of results.

  wine.py run DIR [MODULE[:TEST]...]     run tests, print a line for each; --native PROGRAM runs them under that Wine
  wine.py check DIR [--ci]               run those of the table and fail where a row has become worse
  wine.py update DIR                     run everything and write the table and the document

DIR holds what wine-build.sh made. The table, wine.tsv beside this file, says for each test what native Wine 8.0, whose
tests they are, and native Wine 10, whose DLLs lstar runs, pass, and what lstar passes. "Passed" counts the assertions that held, the processes that a test starts included.
"""
import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
TABLE = HERE / "wine.tsv"
DOCUMENT = ROOT / "docs" / "wine-tests.md"
MODULES = ["ntdll", "kernel32", "kernelbase", "msvcrt", "ucrtbase", "advapi32"]
SUMMARY = re.compile(
    rb"tests executed \((\d+) marked as todo(?:, (\d+) as flaky)?, (\d+) failures?\), (\d+) skipped")
EXECUTED = re.compile(rb"(\d+) tests executed \(")


class Result:
    """What one test printed."""

    def __init__(self, output, ended):
        self.executed = sum(int(m) for m in EXECUTED.findall(output))
        counts = SUMMARY.findall(output)
        self.todo = sum(int(m[0]) for m in counts)
        self.failed = sum(int(m[2]) for m in counts)
        self.skipped = sum(int(m[3]) for m in counts)
        # What was expected to fail in Wine of that release and holds is no failure.
        held = output.count(b"Test succeeded inside todo block")
        self.failed = max(0, self.failed - held)
        self.passed = max(0, self.executed - self.todo - self.failed - held) + held
        self.seconds = 0.0
        self.ended = ended if ended else ("" if counts else "no summary")

    def __str__(self):
        text = f"{self.passed} passed, {self.failed} failed, {self.todo} todo, {self.skipped} skipped"
        return f"{text} ({self.ended})" if self.ended else text


def run_one(args, module, test):
    """Runs one test in a folder of its own."""
    program = Path(args.dir).resolve() / f"{module}_test.exe"
    work = Path(tempfile.mkdtemp(prefix="lstar-suite-"))
    try:
        shutil.copy(program, work / program.name)
        if args.native:
            command = [args.native, program.name, test]
        else:
            command = [str(Path(args.lstar).resolve()), "run", "--rw", "--timeout", str(args.timeout), *args.option, program.name, test]
        environment = dict(os.environ, WINEDEBUG="-all")
        log = work / "log"
        ended = ""
        code = None
        started = time.monotonic()
        with log.open("wb") as stream:
            child = subprocess.Popen(command, cwd=work, stdin=subprocess.DEVNULL, stdout=stream,
                                     stderr=subprocess.STDOUT, env=environment, start_new_session=True)
            try:
                code = child.wait(args.timeout + 20)
                if code < 0:
                    ended = f"ended by signal {-code}"
            except subprocess.TimeoutExpired:
                os.killpg(child.pid, 9)
                child.wait()
                ended = "timeout"
        seconds = time.monotonic() - started
        output = log.read_bytes()
        if args.logs:
            folder = Path(args.logs)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{module}-{test}.log").write_bytes(output)
        result = Result(output, ended)
        # A status of 124 can also be a count of failures.
        if result.ended == "no summary" and code == 124:
            result.ended = "timeout"
        result.seconds = seconds
        return result
    finally:
        shutil.rmtree(work, ignore_errors=True)


def tests_of(args, module):
    """Names of a module's tests."""
    source = Path(args.dir) / f"{module}.tests"
    return source.read_text().split()


def run_all(args, wanted):
    """Runs tests, several at a time, and prints each result as it comes."""
    results = {}
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        futures = {pool.submit(run_one, args, *test): test for test in wanted}
        for future in concurrent.futures.as_completed(futures):
            test = futures[future]
            results[test] = future.result()
            print(f"{test[0]}:{test[1]}: {results[test]}", flush=True)
    return results


def read_table():
    """Rows of the table: (module, test) -> [native 8, native 10, passed, failed, skipped, ci]."""
    rows = {}
    for line in TABLE.read_text().splitlines():
        if line and not line.startswith("#"):
            module, test, native8, native10, passed, failed, skipped, ci = line.split("\t")
            rows[module, test] = [native8, native10, int(passed), int(failed), int(skipped), ci]
    return rows


def write_table(rows):
    """Writes the table and the document that shows it."""
    head = ("# module, test, assertions that native Wine 8.0 and Wine 10 pass (- where unknown), that lstar passes, fails, skips;\n"
            "# ci: checked in every run of CI; slow: only by `wine.py check` without --ci\n")
    with TABLE.open("w") as out:
        out.write(head)
        for (module, test), row in sorted(rows.items(), key=order):
            out.write("\t".join([module, test, *map(str, row)]) + "\n")
    DOCUMENT.parent.mkdir(exist_ok=True)
    with DOCUMENT.open("w") as out:
        out.write("# Wine's test suites under lstar\n\nThe test programs of Wine 8.0, built with mingw-w64, on the DLLs of "
                  "Wine 10. Passed counts assertions that held; *native* is what Wine 8.0\nand Wine 10 "
                  "pass on the same machine (the latter where it was measured). Some of them pass a number of assertions\nthat depends "
                  "on the machine's speed, on how many environment variables there are (msvcrt environ), keys in the registry\n"
                  "(ntdll reg), or processes, threads and handles in the system (ntdll info). What fails in kernel32 heap, kernel32\n"
                  "virtual and ntdll rtl fails on native Wine 10, too, which is newer than these tests. Written by\n"
                  "`tests/suites/wine.py update`; CI fails when a row becomes worse.\n\n"
                  "| test | Wine 8.0 | Wine 10 | lstar passes | fails | skips |\n|---|---:|---:|---:|---:|---:|\n")
        for (module, test), row in sorted(rows.items(), key=order):
            out.write(f"| {module} {test} | {row[0]} | {row[1]} | {row[2]} | {row[3]} | {row[4]} |\n")
        known = [(row[2], [int(n) for n in row[:2] if n != "-"]) for row in rows.values() if row[:2] != ["-", "-"]]
        reached = sum(passed >= min(natives) for passed, natives in known)
        out.write(f"\n{reached} of {len(known)} tests pass at least as many assertions as native Wine 8.0 or 10.\n")


def order(item):
    (module, test), _ = item
    return MODULES.index(module), test


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "check", "update"])
    parser.add_argument("dir")
    parser.add_argument("tests", nargs="*")
    parser.add_argument("--native", help="run under this Wine instead of lstar")
    parser.add_argument("--release", choices=["8", "10"], default="8", help="whose column `update --native` writes")
    parser.add_argument("--lstar", default=str(ROOT / "target" / "release" / "lstar"))
    parser.add_argument("--option", action="append", default=[], help="further option of `lstar run`")
    parser.add_argument("--timeout", type=int, default=60, help="seconds for one test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--logs", help="folder to keep the output in")
    parser.add_argument("--ci", action="store_true", help="only the rows marked ci")
    args = parser.parse_args()
    wanted = []
    for name in args.tests or MODULES:
        module, _, test = name.partition(":")
        wanted += [(module, test)] if test else [(module, test) for test in tests_of(args, module)]
    if args.command == "run":
        run_all(args, wanted)
        return 0
    rows = read_table() if TABLE.exists() else {}
    if args.command == "update":
        results = run_all(args, wanted)
        for key, result in results.items():
            row = rows.setdefault(key, ["-", "-", 0, 0, 0, "slow"])
            if args.native:
                row[int(args.release == "10")] = "-" if result.ended and args.release == "10" else str(result.passed)
            else:
                row[2:5] = [result.passed, result.failed, result.skipped]
                # One that ends early or takes long says little in every run.
                row[5] = "slow" if result.ended or result.seconds > 20 else "ci"
        write_table(rows)
        return 0
    wanted = [key for key in wanted if key in rows and (not args.ci or rows[key][5] == "ci")]
    worse = []
    for key, result in run_all(args, wanted).items():
        row = rows[key]
        if result.passed < row[2] or (result.failed > row[3] and result.passed <= row[2]):
            worse.append(f"{key[0]}:{key[1]}: expected {row[2]} passed, {row[3]} failed; got {result}")
    for line in worse:
        print(f"worse: {line}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
