#!/usr/bin/env bash
# Proves `scalebench submit` against a real Slurm: a cluster of this one host, controller and daemon started here and ended
# at the end. An array of shards is submitted; one shard is told to stop (SIGTERM), then the node fails with every process of
# every running job killed, and all of it is queued again; the merge waits for all. A second submission runs against Slurm's
# time limit, and of a third a shard is cancelled by hand. Images, manifests and results.csv must equal those of one process byte
# for byte each time.
#
# usage: scripts/slurm_proof.sh [--install] [EXPERIMENT.yaml [sweep options]]
#   --install: first `apt-get install slurm-wlm munge`
#   default: experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
# Needs root (munge and Slurm's daemons), slurm-wlm 22.05 or later, and target/release/scalebench or $SCALEBENCH.
set -euo pipefail
cd "$(dirname "$0")/.."
scalebench=${SCALEBENCH:-$PWD/target/release/scalebench}
if [ "${1-}" = --install ]; then
    shift
    # The packages' own start-up scripts want a configuration, and a cluster is started below.
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge
fi
if [ $# -eq 0 ]; then
    set -- experiments/quick.yaml --set images=6 --set sampler.steps=4 --set reference.images=16
fi
for program in sbatch squeue scontrol slurmctld slurmd munged mungekey "$scalebench"; do
    command -v "$program" >/dev/null || { echo "$program: not found; expected slurm-wlm and munge (--install) and a release build" >&2; exit 2; }
done
[ "$(id -u)" -eq 0 ] || { echo "expected to run as root: slurmd starts jobs for users" >&2; exit 2; }

export RAYON_NUM_THREADS=1
shards=3
host=$(hostname -s)
work=$(mktemp -d)
chmod 755 "$work"
daemons=()
finish() {
    status=$?
    for pid in "${daemons[@]}"; do kill "$pid" 2>/dev/null || true; done
    if [ $status -eq 0 ]; then
        rm -rf "$work"
    else
        echo "failed; what was left is in $work" >&2
        tail -n 30 "$work"/*.log "$work"/run*/slurm/*.log 2>/dev/null >&2 || true
    fi
}
trap finish EXIT

# The cluster: its own key, ports and folders, so that it meets no other.
mkdir -m 700 "$work/munge"
mkdir "$work/state" "$work/spool"
mungekey --create --keyfile "$work/munge/key"
munged --foreground --force --key-file "$work/munge/key" --socket "$work/munge.socket" --pid-file "$work/munge/pid" \
    --log-file "$work/munge/log" --seed-file "$work/munge/seed" >"$work/munged.log" 2>&1 &
daemons+=($!)
export SLURM_CONF=$work/slurm.conf
cat >"$SLURM_CONF" <<CONF
ClusterName=proof
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
# Requeued jobs wait until their old credential has expired: two minutes unless told otherwise.
AuthInfo=socket=$work/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldPort=16817
SlurmdPort=16818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_min_interval=100000
ReturnToService=2
KillWait=3
SlurmdTimeout=300
MinJobAge=3600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES State=UP
CONF
# Starts a daemon and waits until a command succeeds.
start() {
    local log=$1 ready=$2
    shift 2
    "$@" >>"$work/$log" 2>&1 &
    daemons+=($!)
    for _ in $(seq 100); do
        if eval "$ready" >/dev/null 2>&1; then return; fi
        sleep 0.2
    done
    echo "$1 does not answer" >&2
    exit 1
}
start slurmctld.log "scontrol ping | grep -q UP" slurmctld -D
start slurmd.log '[ "$(sinfo -h -o %T)" = idle ]' slurmd -D
slurmctld -V

start_ns=$(date +%s%N)
"$scalebench" sweep "$@" --out "$work/whole" >/dev/null 2>&1
echo "one process: $((($(date +%s%N) - start_ns) / 1000000)) ms"

run="$work/run of 'shards'"
submitted=$("$scalebench" submit "$@" --engine slurm --array $shards --cpus-per-task 1 --out "$run")
echo "$submitted"
array=$(sed -n 's/^shards: job \([0-9]*\).*/\1/p' <<<"$submitted")
merge=$(sed -n 's/^merge: job \([0-9]*\).*/\1/p' <<<"$submitted")

images() { find "$run/cells" -path '*/images/*.png' -not -name '.*' 2>/dev/null | wc -l; }
state() { squeue -h -r -j "$1" -o %T 2>/dev/null || true; }
restarts() { scontrol show job "$1" | sed -n 's/.*Restarts=\([0-9]*\).*/\1/p'; }
# Waits, at most two minutes, until a command succeeds.
until_true() {
    for _ in $(seq 1200); do
        if eval "$1"; then return; fi
        sleep 0.1
    done
    echo "waited in vain for: $1" >&2
    squeue -r >&2
    exit 1
}

until_true '[ "$(images)" -ge 3 ]'
echo "$(images) images: task 0 is told to stop"
scancel --batch --signal=TERM "${array}_0"
until_true '[ "$(restarts "${array}_0")" -ge 1 ]'
grep -q '^stopped: told to stop by SIGTERM' "$run/slurm/${array}_0.log"
echo "task 0 has queued itself again"

until_true '[ "$(state "$array" | grep -c RUNNING)" -ge 1 ] && [ "$(images)" -ge 8 ]'
echo "$(images) images, $(state "$array" | grep -c RUNNING) tasks running: the node fails"
slurmd_pid=${daemons[-1]}
unset 'daemons[-1]'
kill -KILL "$slurmd_pid"
wait "$slurmd_pid" 2>/dev/null || true
# Everything of the jobs dies, as by a power cut: first their keepers, who would tell the controller, then shells and sweeps.
of_jobs=()
keepers=()
for process in /proc/[0-9]*; do
    if grep -qz "^SLURM_CONF=$SLURM_CONF$" "$process/environ" 2>/dev/null && grep -qz '^SLURM_JOB_ID=' "$process/environ"; then
        of_jobs+=("${process#/proc/}")
        parent=$(sed -n 's/^PPid:\s*//p' "$process/status")
        if grep -q slurmstepd "/proc/$parent/comm"; then keepers+=("$parent"); fi
    fi
done
kill -KILL "${keepers[@]}"
kill -KILL "${of_jobs[@]}"
scontrol update nodename="$host" state=down reason=proof
until_true '[ "$(state "$array" | grep -c RUNNING)" -eq 0 ]'
[ "$(state "$merge")" = PENDING ]
survived=$(images)
start slurmd.log "scontrol update nodename=$host state=resume; sinfo -h -o %T | grep -qx -e idle -e mixed -e allocated" slurmd -D
echo "the node is back; $survived images survived"

# Waits until none of these jobs is left. Every image needs its time, so this waits longer.
until_done() {
    for _ in $(seq 6000); do
        [ -n "$(state "$1")" ] || return 0
        sleep 0.1
    done
    echo "not done in ten minutes: $1" >&2
    squeue -r >&2
    exit 1
}
# Prints how jobs ended, and fails unless all have completed.
check_completed() {
    local job found
    for job in "$@"; do
        found=$(scontrol show job "$job")
        echo "job $job: $(grep -o 'JobState=[A-Z_]*' <<<"$found"), $(grep -o 'Restarts=[0-9]*' <<<"$found")"
        grep -q 'JobState=COMPLETED' <<<"$found"
    done
}
compared() { (cd "$1" && find . \( -name '*.png' -o -name results.csv -o -name manifest.jsonl \) -print | sort); }
# Fails unless a run has the bytes of the one process.
check_identical() {
    local file
    compared "$work/whole" >"$work/whole.list"
    compared "$1" >"$work/run.list"
    diff "$work/whole.list" "$work/run.list"
    while read -r file; do
        cmp "$work/whole/$file" "$1/$file"
    done <"$work/whole.list"
    if find "$1" -name '*.tmp*' | grep .; then
        echo "temporary files are left over" >&2
        exit 1
    fi
    echo "identical: $(wc -l <"$work/whole.list") files"
}
until_done "$array,$merge"
check_completed "${array}_0" "${array}_1" "${array}_2" "$merge"
check_identical "$run"

# Slurm's own time limit: a minute, of which a job is told 45 s before (and, as Slurm looks twice a minute, up to 30 s earlier).
# One job has all images to make, so it must be told, finish its image, and be queued again as often as it takes.
echo
run="$work/run to the limit"
submitted=$("$scalebench" submit "$@" --engine slurm --array 1 --cpus-per-task 1 --time 1 --grace 45 --out "$run")
echo "$submitted"
array=$(sed -n 's/^shards: job \([0-9]*\).*/\1/p' <<<"$submitted")
merge=$(sed -n 's/^merge: job \([0-9]*\).*/\1/p' <<<"$submitted")
until_done "$array,$merge"
check_completed "${array}_0" "$merge"
[ "$(restarts "${array}_0")" -ge 1 ]
echo "told to stop by the time limit: $(grep -c '^stopped: told to stop by SIGTERM' "$run/slurm/${array}_0.log") times"
[ "$(grep -c '^stopped: told to stop by SIGTERM' "$run/slurm/${array}_0.log")" -eq "$(restarts "${array}_0")" ]
check_identical "$run"

# A plain scancel, by which a person ends a shard: it stays ended, the merge does not run, and to submit again makes the rest.
echo
run="$work/run that is cancelled"
submitted=$("$scalebench" submit "$@" --engine slurm --array 2 --cpus-per-task 1 --out "$run")
echo "$submitted"
array=$(sed -n 's/^shards: job \([0-9]*\).*/\1/p' <<<"$submitted")
merge=$(sed -n 's/^merge: job \([0-9]*\).*/\1/p' <<<"$submitted")
until_true '[ "$(images)" -ge 4 ]'
echo "$(images) images: task 0 is cancelled"
scancel "${array}_0"
until_done "$array"
# Longer than a requeued job waits, so that one would be seen.
sleep 15
for job in "${array}_0" "${array}_1"; do
    found=$(scontrol show job "$job")
    echo "job $job: $(grep -o 'JobState=[A-Z_]*' <<<"$found"), $(grep -o 'Restarts=[0-9]*' <<<"$found")"
done
scontrol show job "${array}_0" | grep -q 'JobState=CANCELLED'
scontrol show job "${array}_0" | grep -q 'Restarts=0'
[ ! -e "$run/results.csv" ]
[ "$(state "$merge")" = PENDING ]
echo "merge: $(squeue -h -j "$merge" -o '%T, %r')"
scancel "$merge"
kept=$(images)
submitted=$("$scalebench" submit "$@" --engine slurm --array 2 --cpus-per-task 1 --out "$run")
echo "submitted again, with $kept images: $(tr '\n' ' ' <<<"$submitted")"
array=$(sed -n 's/^shards: job \([0-9]*\).*/\1/p' <<<"$submitted")
merge=$(sed -n 's/^merge: job \([0-9]*\).*/\1/p' <<<"$submitted")
until_done "$array,$merge"
check_completed "${array}_0" "${array}_1" "$merge"
check_identical "$run"
