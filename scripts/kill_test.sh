#!/usr/bin/env bash
# Runs a small sweep undisturbed in one process, then as two concurrent shards of which one is killed (SIGKILL) at a random
# moment and started again, twenty times, and compares results.csv, the manifests and every PNG byte for byte.
#
# usage: scripts/kill_test.sh [EXPERIMENT.yaml [sweep options]]
#   default: experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
set -euo pipefail
cd "$(dirname "$0")/.."
scalebench=${SCALEBENCH:-target/release/scalebench}
if [ $# -eq 0 ]; then
    set -- experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
fi
kills=20
# FID's sums depend on the number of threads in their last bits.
export RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-1}
work=$(mktemp -d)
pids=()
finish() {
    status=$?
    [ $status -eq 0 ] || tail -n 30 "$work/stderr" >&2
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT

start=$(date +%s%N)
"$scalebench" sweep "$@" --out "$work/whole" >/dev/null 2>&1
milliseconds=$((($(date +%s%N) - start) / 1000000))
echo "undisturbed: $milliseconds ms"

images() { find "$work/killed" -path '*/images/*.png' -not -name '.*' 2>/dev/null | wc -l; }
begin() {
    "$scalebench" sweep "$@" --out "$work/killed" --shard "$shard/2" >/dev/null 2>>"$work/stderr" &
    pids[shard]=$!
}
for shard in 0 1; do begin "$@"; done
# On average the kills spread over the half of that time that both shards need on two cores, and what they lose.
kill=0
while [ $kill -lt $kills ]; do
    wait_ms=$(((RANDOM * 32768 + RANDOM) % (milliseconds / kills + 1)))
    sleep "$(printf '%d.%03d' $((wait_ms / 1000)) $((wait_ms % 1000)))"
    shard=$((RANDOM % 2))
    # One that had ended is begun again, which makes nothing, and does not count.
    if kill -KILL "${pids[shard]}" 2>/dev/null; then
        kill=$((kill + 1))
        echo "$kill: shard $shard killed after another $wait_ms ms, $(images) images there"
    fi
    wait "${pids[shard]}" 2>/dev/null || true
    begin "$@"
done
for shard in 0 1; do wait "${pids[shard]}"; done
pids=()
# Whichever shard found all images has made the results; this clears up and changes nothing.
results=$(sha256sum "$work/killed/results.csv")
"$scalebench" sweep "$@" --out "$work/killed" >/dev/null 2>&1
sha256sum --check --quiet <<<"$results"

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
