#!/bin/sh
# Downloads the real programs that the tests run, from the registries their makers publish them in, and builds our own.
# Usage: fetch.sh DIR [NAME...]. A program ends as DIR/NAME.exe, one that needs its folder as DIR/NAME/ with all of it;
# versions and hashes: programs.tsv beside this file.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
dir=${1:?usage: fetch.sh DIR [NAME...]}
shift
mkdir -p "$dir"
dir=$(cd "$dir" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

grep -v '^#' "$here/programs.tsv" | while IFS='	' read -r name registry package version sha executable folder built_with; do
    if [ $# -gt 0 ]; then
        case " $* " in *" $name "*) ;; *) continue ;; esac
    fi
    case $folder in
    -) [ -f "$dir/$name.exe" ] && continue ;;
    *) [ -f "$dir/$name/$executable" ] && continue ;;
    esac
    echo "fetching $name $version" >&2
    mkdir -p "$work/$name/out"
    case $registry in
    pypi)
        python3 -m pip download --quiet --disable-pip-version-check --platform win_amd64 --only-binary=:all: --no-deps \
            --dest "$work/$name" "$package==$version"
        file=$(ls "$work/$name"/*.whl)
        ;;
    npm)
        (cd "$work/$name" && npm pack --silent "$package@$version" >/dev/null)
        file=$(ls "$work/$name"/*.tgz)
        ;;
    esac
    echo "$sha  $file" | sha256sum --check --quiet || {
        echo "fetch.sh: $file is not the file that programs.tsv names: not using it" >&2
        exit 1
    }
    case $file in
    *.whl) python3 -m zipfile -e "$file" "$work/$name/out" ;;
    *.tgz) tar -xzf "$file" -C "$work/$name/out" ;;
    esac
    case $folder in
    -) mv "$work/$name/out/$executable" "$dir/$name.exe" ;;
    *)
        # Complete or not at all: the folder appears by its last rename.
        rm -rf "$dir/$name.part" "$dir/$name"
        mv "$work/$name/out/$folder" "$dir/$name.part"
        mv "$dir/$name.part" "$dir/$name"
        ;;
    esac
    rm -rf "$work/$name"
done

for name in hello services processes console network limits loads registry; do
    if [ "$dir/$name.exe" -nt "$here/$name.c" ]; then
        continue
    fi
    if command -v x86_64-w64-mingw32-gcc >/dev/null; then
        x86_64-w64-mingw32-gcc -O2 -s -o "$dir/$name.exe" "$here/$name.c" -lws2_32 -lmswsock -lbcrypt -ladvapi32 -lntdll -lpsapi
    else
        echo "fetch.sh: no x86_64-w64-mingw32-gcc (Debian: gcc-mingw-w64-x86-64): $name.exe not built" >&2
        exit 1
    fi
done
