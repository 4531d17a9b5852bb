#!/usr/bin/env bash
# Kubernetes: the gate as one Job for each shard. Copy docs/ci/kubernetes/ to ci/kubernetes/ of the repository that has suites/,
# baselines/ and gates/; build the image (Containerfile), make the volume and the secret (setup.yaml). Then, where kubectl may
# make Jobs (the Role in setup.yaml is enough), by hand or as a step of any CI:
#
#   gate.sh          # a new run
#   gate.sh RUN      # goes on with one that was cut off
#
# Exit status: that of the gate (1 not releasable, 2 wrong use, 3 shards are missing); for a releasable build that of the
# comparison with the last release (1 slower, 2 wrong use, 3 not enough evidence). 5: Kubernetes did not run the plan or the merge.
# Everything is kept on the volume, in runs/RUN: run.json, junit.xml, summary.md, report.html, compare.*, the logs of all shards.
set -euo pipefail

image=registry.example/llamaperf:1.1.0 # <- what is judged: built from Containerfile
last_release=1.0.0                     # <- a version of TensorRT-LLM that is in the history
hours=20                               # <- for everything, waiting for GPUs included

run=${1:-$(date --utc +%Y%m%d-%H%M%S)}
[[ $run =~ ^[a-z0-9-]{1,40}$ ]] || { echo "$run is no name of a run" >&2; exit 2; }
here=$(dirname "$0")
deadline=$((SECONDS + hours * 3600))

rendered() { sed -e "s|{{IMAGE}}|$image|g" -e "s|{{RUN}}|$run|g" -e "s|{{LAST_RELEASE}}|$last_release|g" "$here/$1"; }

# Jobs of the run that have not ended; $1 chooses by more labels.
unfinished() {
    kubectl get jobs --selector "llamaperf/run=$run$1" --output json |
        jq '[.items[] | select(any(.status.conditions[]?; (.type == "Complete" or .type == "Failed") and .status == "True") | not)] | length'
}

ended() {
    local left=1 failures=0
    while [ "$left" -gt 0 ]; do
        [ "$SECONDS" -lt "$deadline" ] || { echo "$left jobs have not ended in time" >&2; return 1; }
        sleep 20
        if left=$(unfinished "$1"); then
            failures=0
        else # the API server may be away for a while
            left=1 failures=$((failures + 1))
            [ "$failures" -lt 30 ] || return 1
        fi
    done
}

# One gate at a time. Whatever ends this script, no Job keeps a GPU.
[ "$(kubectl get jobs --selector llamaperf/run --output name | wc -l)" -eq 0 ] ||
    { echo "another gate is running: kubectl get jobs -l llamaperf/run" >&2; exit 2; }
trap 'kubectl delete jobs --selector "llamaperf/run=$run" --wait=false' EXIT

echo "run $run"
plan=$(rendered plan.yaml | kubectl create --output name --filename -)
ended ""
kubectl logs "$plan" --container plan
jobs=$(kubectl logs "$plan" --container jobs) || exit 5
kubectl wait --for condition=complete --timeout 0 "$plan" || { echo "no plan: $jobs" >&2; exit 5; }

while read -r wave; do
    [ -n "$wave" ] || continue # every shard has results
    kubectl create --filename - <<<"$wave"
    ended ",llamaperf/part=shard" || break # what is missing is named by the merge
done <<<"$jobs"

kubectl delete jobs --selector "llamaperf/run=$run,llamaperf/part=shard" --wait=true
deadline=$((SECONDS + 3600))
merge=$(rendered merge.yaml | kubectl create --output name --filename -)
ended ""
kubectl logs "$merge"
status=$(kubectl get pods --selector "job-name=${merge#*/}" \
    --output 'jsonpath={.items[0].status.containerStatuses[0].state.terminated.exitCode}')
exit "${status:-5}"
