#!/bin/sh
# Wall time and memory of real programs and of loads, under lstar and under native Wine, in turns; writes docs/native.md.
# Fails when a job is beyond the limits that document names.
#
# Usage: native.sh PROGRAMS [RUNS]
#   PROGRAMS  the folder that tests/programs/fetch.sh filled
#   RUNS      timed runs of each job (5); loads are run once
# Environment:
#   LSTAR_NATIVE_WINE  the loader (wine; Debian's /usr/lib/wine/wine64 spares a shell script's time)
#   LSTAR_NATIVE_ROOT  a root folder that it is started in by chroot; PROGRAMS must be below it
#   LSTAR_TEST_JOBS    names of jobs, separated by commas: these only, and nothing is written
set -eu
LSTAR_TEST_PROGRAMS=$(cd "${1:?usage: native.sh PROGRAMS [RUNS]}" && pwd)
LSTAR_NATIVE_RUNS=${2:-5}
export LSTAR_TEST_PROGRAMS LSTAR_NATIVE_RUNS
cd "$(dirname "$0")/.."
exec cargo test --release --workspace --test real_programs -- --ignored --nocapture beside_native_wine
