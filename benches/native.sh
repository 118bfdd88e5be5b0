#!/bin/bash
# Wall time of real programs under lstar and under native Wine, side by side, as ratios of medians.
#
# Usage: native.sh PROGRAMS [RUNS]
#   PROGRAMS  the folder that tests/programs/fetch.sh filled
#   RUNS      runs of each (5)
# Environment:
#   LSTAR     the lstar program (target/release/lstar)
#   WINE      the command that starts a Windows program natively (wine); words are split, so that it can be a chroot. It is
#             started in a scratch folder below SCRATCH and must see that folder and PROGRAMS under the same names, unless
#   WINE_CD   says how the scratch folder is called there, and WINE_PROGRAMS how PROGRAMS is
#   SCRATCH   where scratch folders are made (the system's temporary folder)
set -euo pipefail
programs=$(cd "${1:?usage: native.sh PROGRAMS [RUNS]}" && pwd)
runs=${2:-5}
here=$(cd "$(dirname "$0")" && pwd)
lstar=${LSTAR:-$here/../target/release/lstar}
read -r -a wine <<<"${WINE:-wine}"
work=$(mktemp -d ${SCRATCH:+-p "$SCRATCH"})
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
wine_cd=${WINE_CD:+$WINE_CD/$(basename "$work")}
wine_cd=${wine_cd:-$work}
wine_programs=${WINE_PROGRAMS:-$programs}
export WINEDEBUG=-all

inputs=$here/../tests/programs/inputs
cp "$inputs"/* "$work"
seq 1 200000 | awk '{ print "line", $1, ($1 % 97 ? "nothing" : "STATUS_HIT") }' >"$work/words.txt"
for n in $(seq 1 700); do
    printf 'int   f%d ( int a,int b ){\n  if(a>b){ for(int i=0;i<7;++i)  { a+=b*i  ; } }\n else\n { return a-b;}\n  /* c */ return a +%d;}\n' "$n" "$n"
done >"$work/big.c"
printf 'const c = require("crypto"); let s = 0n; for (let i = 0n; i < 20000n; i++) s += i * i; console.log(String(s), c.createHash("sha256").update("x").digest("hex"));\n' >"$work/script.js"

median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
seconds() {
    local start end
    start=$(date +%s%N)
    "$@" >/dev/null 2>&1 </dev/null || true
    end=$(date +%s%N)
    echo "$(((end - start) / 1000000))"
}
under_lstar() { (cd "$work" && "$lstar" run --rw --timeout 600 "$programs/$1" "${@:2}"); }
under_wine() { "${wine[@]}" sh -c 'cd "$1" && shift && exec "$@"' sh "$wine_cd" $WINE_LOADER "$wine_programs/$1" "${@:2}"; }
# With WINE a plain Wine, a shell on this side changes the folder; in a chroot the shell is the chroot's.
WINE_LOADER=${WINE_LOADER:-}
if [ -z "$WINE_LOADER" ]; then
    WINE_LOADER="${wine[*]}"
    wine=(env)
fi

printf '%-24s %10s %10s %8s\n' job 'lstar ms' 'native ms' ratio
job() {
    local name=$1 theirs=() ours=()
    shift
    seconds under_wine "$@" >/dev/null
    seconds under_lstar "$@" >/dev/null
    for _ in $(seq "$runs"); do
        theirs+=("$(seconds under_wine "$@")")
        ours+=("$(seconds under_lstar "$@")")
    done
    local l n
    l=$(printf '%s\n' "${ours[@]}" | median)
    n=$(printf '%s\n' "${theirs[@]}" | median)
    printf '%-24s %10d %10d %8s\n' "$name" "$l" "$n" "$(awk -v l="$l" -v n="$n" 'BEGIN { printf "%.2f", l / (n ? n : 1) }')"
}
job hello hello.exe
job ninja-version ninja.exe --version
job lightningcss lightningcss.exe --minify in.css
job ripgrep ripgrep.exe -c STATUS words.txt
job 7za-test 7za.exe b -mmt1 1 -md18
job clang-format clang-format.exe big.c
job cmake-sha256sum cmake/bin/cmake.exe -E sha256sum words.txt
job shellcheck shellcheck.exe format.sh
job esbuild esbuild.exe a.ts --minify
job typos typos.exe typos.txt
job ffmpeg ffmpeg.exe -f lavfi -i testsrc=duration=1:size=160x120:rate=10 -f md5 -
job node node/node.exe script.js
