#!/usr/bin/env bash
# Nightly runs one after the other in one history, small ones: whether memory, open files or results creep.
#
# usage: scripts/soak.sh [RUNS [EXPERIMENT.yaml [nightly options]]]
#   default: 50 runs of the smallest checkpoint of the tests, one method, 3 images, 2 steps
set -euo pipefail
cd "$(dirname "$0")/.."
scalebench=${SCALEBENCH:-$PWD/target/release/scalebench}
runs=${1:-50}
shift || true
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export XDG_CACHE_HOME=$work/cache HF_HUB_OFFLINE=1 RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-1}
if [ $# -eq 0 ]; then
    . scripts/tiny_experiment.sh
    tiny_experiment "$work/tiny.yaml"
    set -- "$work/tiny.yaml"
fi
echo '# Fifty nights'
echo
echo "\`scripts/soak.sh $runs\`: nightly runs in one history. \`peak\`: the process' largest resident memory; \`files\`: most files open at a time;"
echo '`results`: the first digits of the digest of `results.csv`.'
echo
echo '| run | status | seconds | peak MiB | files | results | history KiB |'
echo '| ---: | ---: | ---: | ---: | ---: | --- | ---: |'
first=
for ((run = 1; run <= runs; run++)); do
    start=$(date +%s%N)
    "$scalebench" nightly "$@" --history "$work/history" --no-speed --no-memory >/dev/null 2>"$work/err" &
    pid=$!
    peak=0 files=0
    while kill -0 $pid 2>/dev/null; do
        kib=$(awk '/^VmHWM:/ { print $2 }' /proc/$pid/status 2>/dev/null || true)
        [ -z "$kib" ] || peak=$((kib > peak ? kib : peak))
        n=$(ls /proc/$pid/fd 2>/dev/null | wc -l || true)
        files=$((n > files ? n : files))
        sleep 0.02
    done
    status=0
    wait $pid || status=$?
    [ $status -eq 0 ] || { cat "$work/err" >&2; exit 1; }
    seconds=$((($(date +%s%N) - start) / 10000000))
    results=$(sha256sum <"$work/history/latest/results.csv" | cut -c1-12)
    first=${first:-$results}
    [ "$results" = "$first" ] || { echo "other results" >&2; exit 1; }
    history=$(du -sk "$work/history" | cut -f1)
    echo "| $run | $status | $((seconds / 100)).$(printf '%02d' $((seconds % 100))) | $((peak / 1024)) | $files | $results | $history |"
    # The night's name is its second.
    sleep 1.1
done
