#!/usr/bin/env bash
# Kills processes (SIGKILL) at random moments, a hundred times, and compares what is left with what an undisturbed run makes, byte for byte:
#
#   40  of two concurrent shards of a sweep, of which the killed one is started again
#   25  sweeps of a run of which images, features or results were taken away, so that the kills fall into scoring and reporting as well
#   20  nightly runs of one history
#   15  reports
#
# What ended before it was killed must have succeeded.
#
# usage: scripts/kill_test.sh [EXPERIMENT.yaml [sweep options]]
#   default: the smallest checkpoint of the tests, 12 images
set -euo pipefail
cd "$(dirname "$0")/.."
scalebench=${SCALEBENCH:-$PWD/target/release/scalebench}
work=$(mktemp -d)
pids=()
finish() {
    status=$?
    [ $status -eq 0 ] || tail -n 30 "$work/stderr" >&2
    for pid in "${pids[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
    rm -rf "$work"
}
trap finish EXIT
export XDG_CACHE_HOME=$work/cache HF_HUB_OFFLINE=1 RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-1}
shown="$*"
if [ $# -eq 0 ]; then
    . scripts/tiny_experiment.sh
    tiny_experiment "$work/tiny.yaml"
    set -- "$work/tiny.yaml" --set images=12
    shown='the smallest checkpoint of the tests, 12 images'
fi

# A number from 0 to below $1.
below() { echo $(((RANDOM * 32768 + RANDOM) % ($1 + 1))); }
pause() { sleep "$(printf '%d.%03d' $(($1 / 1000)) $(($1 % 1000)))"; }
now() { echo $(($(date +%s%N) / 1000000)); }
say() { printf '%s\n' "$*"; }

# Images, manifests, features and results: everything that is a function of the experiment alone.
compared() { (cd "$1" && find . \( -name '*.png' -o -name results.csv -o -name manifest.jsonl -o -name '*.safetensors' \) -not -path './report/*' -print | sort); }
same() {
    compared "$work/whole" >"$work/whole.list"
    compared "$1" >"$work/other.list"
    diff "$work/whole.list" "$work/other.list"
    while read -r file; do cmp "$work/whole/$file" "$1/$file"; done <"$work/whole.list"
    if find "$1" -name '*.tmp*' | grep .; then
        echo "temporary files are left over" >&2
        exit 1
    fi
}

# Ends a process of ours; whether it was still there. One that had ended must have succeeded.
ended_by_kill() {
    local status=0
    kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || status=$?
    case $status in
        137) return 0 ;;
        0) return 1 ;;
        *)
            echo "status $status" >&2
            exit 1
            ;;
    esac
}

# Kills the command after a random part of $1 milliseconds; whether it was still there.
killed_within() {
    local limit=$1 alive=1
    shift
    "$@" >/dev/null 2>>"$work/stderr" &
    pids=($!)
    # More of them early, where commands make room for what they write.
    pause "$(below "$(below "$limit")")"
    ended_by_kill "${pids[0]}" && alive=0
    pids=()
    return $alive
}

start=$(now)
"$scalebench" sweep "$@" --out "$work/whole" >/dev/null 2>>"$work/stderr"
whole=$(($(now) - start))
say '# A hundred kills'
say
say '`scripts/kill_test.sh`: SIGKILL at random moments; afterwards images, manifests, features and results are compared byte for byte with those of an'
say 'undisturbed sweep, and no temporary file may be left. What was not killed in time must have succeeded.'
say
say "- undisturbed sweep: $shown; $whole ms"

# Two shards.
begin() {
    "$scalebench" sweep "$@" --out "$work/killed" --shard "$shard/2" >/dev/null 2>>"$work/stderr" &
    pids[shard]=$!
}
for shard in 0 1; do begin "$@"; done
kill=0
while [ $kill -lt 40 ]; do
    # On average the kills spread over the half of that time that both shards need on two cores, and what they lose.
    pause "$(below $((whole / 20)))"
    shard=$((RANDOM % 2))
    # One that had ended is begun again, which makes nothing, and does not count.
    if ended_by_kill "${pids[shard]}"; then kill=$((kill + 1)); fi
    begin "$@"
done
for shard in 0 1; do wait "${pids[shard]}"; done
pids=()
# Whichever shard found all images has made the results; this clears up and changes nothing.
results=$(sha256sum "$work/killed/results.csv")
"$scalebench" sweep "$@" --out "$work/killed" >/dev/null 2>>"$work/stderr"
sha256sum --check --quiet <<<"$results"
same "$work/killed"
say "- 40 kills of two shards: identical, $(wc -l <"$work/whole.list") files"

# One process, with something to do in every part of a sweep.
kill=0 again=0
while [ $kill -lt 25 ]; do
    case $((RANDOM % 3)) in
        0) rm -rf "$work/killed/features" ;;
        1) find "$work/killed/cells" -name '00000[12].png' -delete ;;
        2) rm -rf "$work/killed/report" "$work/killed"/results.* "$work/killed/checksums.b3" ;;
    esac
    if killed_within "$whole" "$scalebench" sweep "$@" --out "$work/killed"; then kill=$((kill + 1)); else again=$((again + 1)); fi
done
"$scalebench" sweep "$@" --out "$work/killed" >/dev/null 2>>"$work/stderr"
same "$work/killed"
"$scalebench" verify "$work/killed" >/dev/null
say "- 25 kills of a sweep that goes on (and $again that had ended): identical, verify finds it whole"

# A history: whatever is killed, its table can be read and its accepted run is whole.
nightly() { "$scalebench" nightly "$1" "${@:2}" --history "$work/history" --no-speed --no-memory; }
kill=0 again=0
while [ $kill -lt 20 ]; do
    if killed_within $((whole * 3 / 2)) "$scalebench" nightly "$@" --history "$work/history" --no-speed --no-memory; then
        kill=$((kill + 1))
    else
        again=$((again + 1))
    fi
done
nightly "$@" >/dev/null 2>>"$work/stderr"
same "$work/history/latest"
"$scalebench" verify "$work/history/latest" >/dev/null
cmp "$work/whole/results.csv" "$work/history/accepted/results.csv"
"$scalebench" compare "$work/history/accepted" "$work/history/latest" --no-speed --no-memory >/dev/null
say "- 20 kills of nightly (and $again that had ended): the accepted run and the latest are those of an undisturbed one"

# The report, which is made from the rest.
report() { "$scalebench" report "$1" >/dev/null 2>>"$work/stderr"; }
report "$work/killed"
before=$(cd "$work/killed/report" && sha256sum -- *)
start=$(now)
report "$work/killed"
took=$(($(now) - start))
kill=0
while [ $kill -lt 15 ]; do
    if killed_within $((took + took / 4)) "$scalebench" report "$work/killed"; then kill=$((kill + 1)); fi
done
report "$work/killed"
(cd "$work/killed/report" && sha256sum --check --quiet <<<"$before")
"$scalebench" sweep "$@" --out "$work/killed" >/dev/null 2>>"$work/stderr"
same "$work/killed"
say "- 15 kills of report: the same report"
