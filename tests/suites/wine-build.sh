#!/bin/sh
# Builds the test programs of Wine's own test suites as Windows programs, with mingw-w64.
# Usage: wine-build.sh DIR. Each module ends as DIR/MODULE_test.exe; what was built already is kept.
#
# The source package (LGPL) comes from this machine's own Debian mirror by apt's own tools, with a private configuration:
# neither the machine's package lists nor its sources change. Nothing of it is kept in this repository.
set -eu
dir=${1:?usage: wine-build.sh DIR}
suite=bookworm
package=wine
# The release whose tests the expected table was made with.
version=8.0~repack-4
modules="ntdll kernel32 kernelbase msvcrt ucrtbase advapi32"
cross=x86_64-w64-mingw32

mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$dir/build
source=$work/wine-8.0

missing=
for module in $modules; do [ -f "$dir/${module}_test.exe" ] || missing="$missing $module"; done
[ -n "$missing" ] || exit 0

for tool in gcc widl; do
    command -v $cross-$tool >/dev/null || {
        echo "wine-build.sh: no $cross-$tool (Debian: gcc-mingw-w64-x86-64, mingw-w64-tools)" >&2
        exit 1
    }
done

fetch() {
    apt=$work/apt
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
    : >"$apt/status"
    mirror=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' |
        awk '$2 == "main" && $1 ~ /\/debian\/$/ { print $1; exit }')
    [ -n "$mirror" ] || {
        echo "wine-build.sh: apt's sources name no Debian archive (or \`apt-get update\` never ran)" >&2
        exit 1
    }
    echo "deb-src [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" >"$apt/sources.list"
    cat >"$apt/apt.conf" <<CONF
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Etc::sourcelist "$apt/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Sandbox::User "root";
Acquire::Languages "none";
CONF
    (
        APT_CONFIG=$apt/apt.conf
        export APT_CONFIG
        cd "$work"
        apt-get -qq update
        # Only what its signed index names is accepted: apt checks the hashes.
        apt-get -qq source --download-only "$package=$version"
        tar -xJf wine_*.orig.tar.xz
    )
}
mkdir -p "$work"
[ -f "$source/include/wine/test.h" ] || fetch

# The headers that Wine generates from interface definitions, as far as the tests' includes go.
interfaces() {
    [ -d "$work/idl" ] && return
    mkdir -p "$work/idl.new"
    for idl in "$source"/include/*.idl; do
        $cross-widl -I "$source/include" -h -H "$work/idl.new/$(basename "$idl" .idl).h" "$idl" 2>/dev/null || :
    done
    mv "$work/idl.new" "$work/idl"
}

# An import library of what a module exports, by Wine's own list.
import_library() {
    [ -f "$work/lib$1.a" ] && return
    awk -v module="$1" '
        BEGIN { print "LIBRARY " module ".dll"; print "EXPORTS" }
        /^[@0-9]/ {
            arch = ""; private = 0; i = 3
            while ($i ~ /^-/) {
                if ($i ~ /^-arch=/) arch = substr($i, 7)
                if ($i == "-private" || $i == "-noname") private = 1
                i++
            }
            ours = arch ~ /x86_64|win64/
            if (arch ~ /^!/) ours = !ours
            if ($2 == "stub" || private || (arch != "" && !ours)) next
            name = $i; sub(/\(.*/, "", name)
            if (seen[name]++) next
            print "  \"" name "\"" ($2 == "extern" ? " DATA" : "")
        }' "$source/dlls/$1/$1.spec" >"$work/$1.def"
    $cross-dlltool -m i386:x86-64 -d "$work/$1.def" -l "$work/lib$1.a"
}

# Flags as Wine's own build gives them: its headers, its C run-time headers, private declarations visible.
flags_of() {
    echo "-O2 -w -fno-strict-aliasing -D__WINESRC__ -D__WINE_PE_BUILD" \
        "-I$source/dlls/$1/tests -I$source/include/msvcrt -I$source/include -I$work/idl" \
        "$([ "$1" = ucrtbase ] && echo "-D_UCRT -fno-builtin" || echo "-D_MSVCR_VER=0")"
}

# The part of a C run-time library that is linked statically: start-up code and a few functions.
static_library() {
    [ -f "$work/lib$1-static.a" ] && return
    mkdir -p "$work/$1-static"
    case $1 in ucrtbase) extra="$source/dlls/ucrtbase/printf.c" ;; *) extra= ;; esac
    for file in $extra $(grep -l 'pragma makedep implib' "$source"/dlls/msvcrt/*.c) "$source/dlls/winecrt0/setjmp.c"; do
        case $1/$file in */*winmain.c | */*wmain.c | ucrtbase/*/iob.c) continue ;; esac
        $cross-gcc $(flags_of "$1") -I"$source/dlls/msvcrt" -c -o "$work/$1-static/$(basename "$file" .c).o" "$file"
    done
    $cross-ar rcs "$work/lib$1-static.a" "$work/$1-static"/*.o
}

# A DLL that a test carries as a resource: name in $2 (a .c and a .spec).
test_dll() {
    exports=$(awk '/^@/ { print $3 }' "$source/dlls/$1/tests/$2.spec" | sed 's/(.*//')
    { echo "LIBRARY $2.dll"; echo EXPORTS; for name in $exports; do echo "  $name"; done; } >"$work/$1/$2.def"
    $cross-gcc $(flags_of "$1") -shared -nostdlib -Wl,-e,DllMain -o "$work/$1/$2.dll" \
        "$source/dlls/$1/tests/$2.c" "$work/$1/$2.def" -L"$work" -lmsvcrt -lkernel32 -lgcc
    echo "$2.dll TESTDLL \"$work/$1/$2.dll\"" >>"$work/$1/all.rc"
}

build() {
    module=$1
    tests=$source/dlls/$module/tests
    out=$work/$module
    rm -rf "$out"
    mkdir -p "$out"
    : >"$out/all.rc"
    for rc in "$tests"/*.rc; do [ -f "$rc" ] && echo "#include \"$rc\"" >>"$out/all.rc"; done
    names=
    for file in "$tests"/*.c; do
        name=$(basename "$file" .c)
        if [ -f "$tests/$name.spec" ]; then test_dll "$module" "$name"; else names="$names $name"; fi
    done
    {
        echo '#define STANDALONE'
        echo '#include <windows.h>'
        echo '#include "wine/test.h"'
        for name in $names; do echo "extern void func_$name(void);"; done
        echo 'const struct test winetest_testlist[] = {'
        for name in $names; do echo "    { \"$name\", func_$name },"; done
        echo '    { 0, 0 } };'
    } >"$out/testlist.c"
    case $module in ucrtbase) crt=ucrtbase ;; *) crt=msvcrt ;; esac
    {
        for name in $names; do echo "$tests/$name.c"; done
        echo "$out/testlist.c"
    } | xargs -P "$(nproc)" -I'{}' sh -c '
        '"$cross-gcc $(flags_of "$module")"' -c -o "'"$out"'/$(basename "$1" .c).o" "$1" ||
            { echo "wine-build.sh: cannot compile $1" >&2; exit 255; }' sh '{}'
    resources=
    if [ -s "$out/all.rc" ]; then
        $cross-windres -I "$source/include" -I "$source/include/msvcrt" -I "$tests" -D__WINE_PE_BUILD -DRC_INVOKED \
            --preprocessor-arg=-w --codepage=65001 -o "$out/resources.res.o" "$out/all.rc"
        resources=$out/resources.res.o
    fi
    $cross-gcc -nostartfiles -nodefaultlibs -Wl,-e,mainCRTStartup -Wl,--subsystem,console \
        -o "$out/${module}_test.exe" "$out"/*.o -L"$work" -l$crt-static -l$crt -luser32 -ladvapi32 \
        -lkernel32 -lntdll -lole32 -luuid -l$crt-static -l$crt -lgcc
    $cross-strip -s "$out/${module}_test.exe"
    echo $names >"$dir/$module.tests"
    mv "$out/${module}_test.exe" "$dir/${module}_test.exe"
}

interfaces
for library in msvcrt ucrtbase ntdll kernel32 advapi32; do import_library $library; done
for library in msvcrt ucrtbase; do static_library $library; done
for module in $missing; do
    echo "building ${module}_test.exe" >&2
    build "$module"
done
