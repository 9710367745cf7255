#!/usr/bin/env bash
# Disks that are full or cannot be written to, under a sweep, nightly, report and what writes single files. Needs Linux and the right to
# mount a tmpfs (root, or user namespaces).
#
# usage: scripts/faults.sh [EXPERIMENT.yaml [sweep options]]
#   default: the smallest checkpoint of the tests, 3 images a cell
set -euo pipefail
cd "$(dirname "$0")/.."
if [ -z "${IN_NAMESPACE:-}" ]; then
    exec env IN_NAMESPACE=1 unshare "$([ "$(id -u)" = 0 ] && echo -m || echo -Urm)" "$0" "$@"
fi
scalebench=${SCALEBENCH:-$PWD/target/release/scalebench}
work=$(mktemp -d)
trap 'cd /; umount -l "$work/disk" 2>/dev/null || true; rm -rf "$work"' EXIT
mkdir "$work/disk"
export XDG_CACHE_HOME=$work/cache HF_HUB_OFFLINE=1
if [ $# -eq 0 ]; then
    . scripts/tiny_experiment.sh
    tiny_experiment "$work/tiny.yaml"
    set -- "$work/tiny.yaml"
fi

fresh() {
    umount "$work/disk" 2>/dev/null || true
    mount -t tmpfs -o "size=$1" none "$work/disk"
}
# Fills the disk but for $1 KiB.
fill() {
    local free
    free=$(df --output=avail -k "$work/disk" | tail -1)
    [ "$free" -le "$1" ] || head -c $(((free - $1) * 1024)) /dev/zero >"$work/disk/ballast"
}
# The program's status and one error, with the file and what the system said.
status() {
    local found=0
    "$@" >"$work/out" 2>"$work/err" || found=$?
    errors=$(grep -c '^error: ' "$work/err" || true)
    error=$(grep '^error: ' "$work/err" | sed "s|$work/disk/||; s|$work/||" || true)
    echo "$found"
}
same() { for file in $(cd "$work/whole" && find . -name '*.png' -o -name results.csv -o -name manifest.jsonl -o -name '*.safetensors'); do
    case $file in ./report/*) ;; *) cmp "$work/whole/$file" "$1/$file" ;; esac; done; }
fail() { echo "FAILED: $*" >&2; cat "$work/err" >&2; exit 1; }

echo '# Disks that are full, or that cannot be written to'
echo
echo '`scripts/faults.sh`: a tmpfs with so much free space, the command, then the same command with space enough. Every failure is status 2 and'
echo 'one line; nothing with a final name is less than whole (`verify`, and the bytes of an undisturbed run), no temporary file is left.'
echo
"$scalebench" sweep "$@" --out "$work/whole" >/dev/null 2>&1
need=$(du -sk "$work/whole" | cut -f1)

echo '## A full disk under `sweep`'
echo
echo '| free KiB | status | what it says |'
echo '| ---: | ---: | --- |'
declare -A kinds
last=
step=4
for ((free = 0; free <= need + 64; free += step)); do
    fresh 64m
    fill "$free"
    found=$(status "$scalebench" sweep "$@" --out "$work/disk/run")
    errors=$(grep -c '^error: ' "$work/err" || true)
    error=$(grep '^error: ' "$work/err" | sed "s|$work/disk/||; s|$work/||" | tail -1 || true)
    if [ "$found" = 0 ]; then
        echo "| $free | 0 | finished |"
        break
    fi
    [ "$found" = 2 ] && [ "$errors" = 1 ] || fail "$free KiB: status $found, $errors errors"
    [ -z "$(find "$work/disk" -name '*.tmp*')" ] || fail "$free KiB: temporary files are left: $(find "$work/disk" -name '*.tmp*')"
    # Every image that has its name is whole.
    for image in $(find "$work/disk/run" -path '*/images/*.png' 2>/dev/null); do cmp "$image" "$work/whole/${image#"$work/disk/run/"}"; done
    kind=$(sed -E 's/[0-9a-f]{32}/…/; s/[0-9]{6}/N/' <<<"$error")
    # The next write may fail from one page to the next, a long one at many.
    step=20
    [ "$kind" != "$last" ] || continue
    last=$kind
    [ -z "${kinds[$kind]:-}" ] || continue
    echo "| $free | $found | ${error#error: } |"
    kinds[$kind]=1
    step=4
    rm -f "$work/disk/ballast"
    "$scalebench" sweep "$@" --out "$work/disk/run" >/dev/null 2>&1
    same "$work/disk/run"
    "$scalebench" verify "$work/disk/run" >/dev/null || fail "$free KiB: verify"
done
echo
echo "${#kinds[@]} different writes failed; after each the same command made the run of an undisturbed one."
echo

echo '## A full disk under other commands'
echo
echo '| command | status | what it says |'
echo '| --- | ---: | --- |'
checkpoint=$PWD/crates/generation/tests/data/models/tiny-sd15
network=$PWD/crates/runner/tests/data/tiny-inception
images=$work/whole/cells/tiny/1x-direct-inf/images
try() {
    local shown=$1 target=$2
    shift 2
    fresh 8m
    fill 0
    local found
    found=$(status "$@")
    error=$(grep '^error: ' "$work/err" | sed "s|$work/disk/||; s|$work/||" | tail -1 || true)
    [ "$found" = 2 ] || fail "$shown: status $found"
    [ -z "$(find "$work/disk" -type f -not -name ballast -not -name '.*.lock' -not -name .lock -size +0)" ] || fail "$shown: left $(find "$work/disk" -type f)"
    [ ! -e "$work/disk/$target" ] || [ -d "$work/disk/$target" ] || fail "$shown: $target is there"
    echo "| \`$shown\` | $found | ${error#error: } |"
}
d=$work/disk
try 'generate --out' a.png "$scalebench" generate --checkpoint "$checkpoint" --prompt x --size 64x64 --steps 1 --out "$d/a.png"
try 'generate --trace' a.safetensors "$scalebench" generate --checkpoint "$checkpoint" --prompt x --size 64x64 --steps 1 --out "$work/a.png" --trace "$d/a.safetensors"
try 'features --out' a.safetensors "$scalebench" features --images "$images" --extractor "$network" --out "$d/a.safetensors"
try 'features --out (npz)' a.npz "$scalebench" features --images "$images" --extractor "$network" --out "$d/a.npz"
try 'stats --out' a.npz "$scalebench" stats "$images" --extractor "$network" --out "$d/a.npz"
try 'disperse --out' a.safetensors "$scalebench" disperse --out "$d/a.safetensors"
try 'dataset --png' a "$scalebench" dataset --split train --png --views 2 --out "$d/a"
try 'dataset' a "$scalebench" dataset --split train --size 8 --out "$d/a"
try 'reconstruct' a "$scalebench" reconstruct --checkpoint "$checkpoint" --images "$images" --out "$d/a"
try 'jobs --out' a.csv "$scalebench" jobs "$1" --out "$d/a.csv"
try 'man' a "$scalebench" man "$d/a"
try 'compare --junit' a.xml "$scalebench" compare "$work/whole" "$work/whole" --junit "$d/a.xml"
try 'unpack' a "$scalebench" unpack "$d/a"
try 'nightly' a "$scalebench" nightly "$@" --history "$d/a"
rm "$d/ballast"
"$scalebench" nightly "$@" --history "$d/a" >/dev/null 2>"$work/err" || fail "nightly, with space again"
fresh 8m
cp -r "$work/whole" "$d/run"
rm -r "$d/run/report"
fill 0
found=$(status "$scalebench" report "$d/run")
[ "$found" = 2 ] || fail "report: status $found"
echo "| \`report\` | $found | $(grep '^error: ' "$work/err" | sed "s|$work/disk/||") |" | sed 's/error: //'
echo

echo '## A directory that cannot be written to'
echo
echo '| command | status | what it says |'
echo '| --- | ---: | --- |'
fresh 64m
cp -r "$work/whole" "$d/run"
mount -o remount,ro "$d"
for command in sweep report; do
    case $command in
        sweep) found=$(status "$scalebench" sweep "$@" --out "$d/run") ;;
        report) found=$(status "$scalebench" report "$d/run") ;;
    esac
    [ "$found" = 2 ] || fail "$command: status $found"
    echo "| \`$command\` | $found | $(grep '^error: ' "$work/err" | sed "s|$work/disk/||; s/^error: //") |"
done
for command in verify status results; do
    found=$(status "$scalebench" "$command" "$d/run")
    [ "$found" = 0 ] || fail "$command: status $found"
    echo "| \`$command\` | $found | as if it could be |"
done
mount -o remount,rw "$d"
same "$d/run"
echo

echo '## A loss of power'
echo
if command -v strace >/dev/null; then
    fresh 64m
    strace -f -y -qq -e trace=fsync,fdatasync,rename,renameat,renameat2 -o "$work/trace" "$scalebench" sweep "$@" --out "$d/run" >/dev/null 2>&1
    # Of every name that was given: its content was on the disk before, and its folder afterwards.
    python3 - "$work/trace" "$d/run" <<'PYTHON'
import re, sys
synced, pending, given, bad = set(), [], 0, []
for line in open(sys.argv[1]):
    if match := re.search(r"f(?:data)?sync\(\d+<([^>]+)>.*= 0", line):
        path = match.group(1)
        synced.add(path)
        pending = [name for name in pending if name.rsplit("/", 1)[0] != path]
    elif match := re.search(r'rename(?:at2?)?\((?:AT_FDCWD(?:<[^>]*>)?, )?"([^"]+)", (?:AT_FDCWD(?:<[^>]*>)?, )?"([^"]+)".*= 0', line):
        before, after = match.groups()
        if not after.startswith(sys.argv[2]):
            continue
        given += 1
        if before not in synced:
            bad.append(after)
        synced.discard(before)
        pending.append(after)
if bad or pending or not given:
    sys.exit(f"not on the disk before they had their names: {bad}; folders not on the disk: {pending}; names: {given}")
print(f"A sweep under `strace`: {given} files got their final names by rename, each after an `fsync` of its content and before one of its folder.")
print("What a disk does with that cannot be tested here; what is guaranteed on which file systems: `experiments/README.md`, the run directory.")
PYTHON
else
    echo 'No strace here: not looked at.'
fi
