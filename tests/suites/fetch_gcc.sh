#!/bin/sh
# Fetches GCC 12's test programs from Debian's source package, with apt's own tools and the machine's own mirrors.
# Usage: fetch_gcc.sh DIR. Afterwards DIR/execute and DIR/i386 hold them.
#
# Taken: gcc.c-torture/execute, those files whose `cksum` of the file name is even, and the run tests of
# gcc.target/i386 that need neither AVX-512 nor AMX. Nothing of it is part of this repository.
set -eu
dir=${1:?usage: fetch_gcc.sh DIR}
package=gcc-12
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
[ -f "$dir/complete" ] && exit 0
command -v apt-get >/dev/null || {
    echo "fetch_gcc.sh: apt-get is needed (Debian or a derivative)" >&2
    exit 2
}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/source" "$work/parts"

# The machine's own Debian sources, as sources of source packages.
for file in /etc/apt/sources.list.d/*.sources; do
    [ -f "$file" ] && grep -q 'URIs:.*debian' "$file" &&
        sed 's/^Types:.*/Types: deb-src/' "$file" >"$work/parts/$(basename "$file")"
done
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ -f "$file" ] && grep -q '^deb .*debian' "$file" &&
        sed -n 's/^deb \(.*debian.*\)$/deb-src \1/p' "$file" >"$work/parts/$(basename "$file")"
done
apt() {
    apt-get -qq -o Dir::Etc::SourceList=/dev/null -o Dir::Etc::SourceParts="$work/parts" \
        -o Dir::State::Lists="$work/lists" -o Dir::Cache::Archives="$work/archives" \
        -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root "$@"
}
apt update
cd "$work/source"
apt source --download-only "$package" 2>/dev/null
outer=$(ls "$work/source"/*.orig.tar.* | grep -v '\.asc$' | head -n 1)
[ -f "$outer" ] || {
    echo "fetch_gcc.sh: the source package of $package has no original tarball" >&2
    exit 1
}
# Debian packs the tarball of the release into one of its own.
inner=$(tar -tf "$outer" | grep -E '/gcc-[0-9.]+(-dfsg)?\.tar\.(xz|gz|bz2)$' | head -n 1)
mkdir "$work/tree"
wanted='*/gcc/testsuite/gcc.c-torture/execute/* */gcc/testsuite/gcc.target/i386/*'
set -f
if [ -n "$inner" ]; then
    tar -xf "$outer" -C "$work" "$inner"
    rm -f "$outer"
    # shellcheck disable=SC2086
    tar -xf "$work/$inner" -C "$work/tree" --wildcards $wanted
else
    # shellcheck disable=SC2086
    tar -xf "$outer" -C "$work/tree" --wildcards $wanted
fi
set +f
suite=$(find "$work/tree" -type d -name testsuite | head -n 1)
rm -rf "$dir/execute" "$dir/i386"
mkdir -p "$dir/execute" "$dir/i386"
for file in $(cd "$suite/gcc.c-torture/execute" && find . -name '*.c' | sed 's|^\./||' | sort); do
    name=$(basename "$file")
    sum=$(printf '%s' "$name" | cksum | cut -d' ' -f1)
    [ $((sum % 2)) -eq 0 ] || continue
    mkdir -p "$dir/execute/$(dirname "$file")"
    cp "$suite/gcc.c-torture/execute/$file" "$dir/execute/$file"
done
# Headers that tests share.
(cd "$suite/gcc.c-torture/execute" && find . -name '*.h' | while read -r file; do
    mkdir -p "$dir/execute/$(dirname "$file")"
    cp "$file" "$dir/execute/$file"
done)
cp "$suite"/gcc.target/i386/*.h "$suite"/gcc.target/i386/*.inc "$dir/i386/"
# All sources: tests include one another. Which of them are run is decided by run_gcc.py.
cp "$suite"/gcc.target/i386/*.c "$dir/i386/"
touch "$dir/complete"
