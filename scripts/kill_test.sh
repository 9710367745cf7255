#!/usr/bin/env bash
# Runs a small sweep undisturbed, then again with SIGKILL at ten random moments, and compares
# results.csv and every PNG byte for byte.
#
# usage: scripts/kill_test.sh [EXPERIMENT.yaml [sweep options]]
#   default: experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
set -euo pipefail
cd "$(dirname "$0")/.."
scalebench=${SCALEBENCH:-target/release/scalebench}
if [ $# -eq 0 ]; then
    set -- experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

start=$(date +%s%N)
"$scalebench" sweep "$@" --out "$work/whole" >/dev/null
milliseconds=$((($(date +%s%N) - start) / 1000000))
echo "undisturbed: $milliseconds ms"

# On average ten interrupted runs get through five sixths of the work.
for kill in $(seq 10); do
    wait_ms=$(((RANDOM * 32768 + RANDOM) % (milliseconds / 6 + 1)))
    "$scalebench" sweep "$@" --out "$work/killed" >/dev/null 2>&1 &
    pid=$!
    sleep "$(printf '%d.%03d' $((wait_ms / 1000)) $((wait_ms % 1000)))"
    kill -KILL "$pid" 2>/dev/null && outcome=killed || outcome="had ended"
    wait "$pid" 2>/dev/null || true
    images=$(find "$work/killed" -path '*/images/*.png' -not -name '.*' 2>/dev/null | wc -l)
    echo "run $kill: $outcome after $wait_ms ms, $images images there"
done
"$scalebench" sweep "$@" --out "$work/killed" >/dev/null

compared() { (cd "$1" && find . \( -name '*.png' -o -name results.csv -o -name manifest.jsonl \) -print | sort); }
compared "$work/whole" >"$work/whole.list"
compared "$work/killed" >"$work/killed.list"
diff "$work/whole.list" "$work/killed.list"
while read -r file; do
    cmp "$work/whole/$file" "$work/killed/$file"
done <"$work/whole.list"
if find "$work/killed" -name '*.tmp*' | grep .; then
    echo "temporary files are left over" >&2
    exit 1
fi
echo "identical: $(wc -l <"$work/whole.list") files"
