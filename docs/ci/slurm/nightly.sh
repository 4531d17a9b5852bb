#!/usr/bin/env bash
# Slurm: one night's gate, on as many nodes as are free. Copy docs/ci/slurm/ to ci/slurm/ of the repository that has suites/,
# baselines/ and gates/, clone that on a file system that all nodes have, and start this by scrontab, or by hand:
#
#   nightly.sh               # the gate of today; after an interruption on the same day it goes on
#   nightly.sh 2026-11-22    # goes on with that of another day
#
# Exit status: that of the gate (1 not releasable, 2 wrong use, 3 shards are missing); for a releasable build that of the
# comparison with the last release (1 slower, 2 wrong use, 3 not enough evidence).
# Each night leaves runs/DAY: run.json, junit.xml, summary.md, report.html, compare.*, and the logs of all shards and jobs.
set -euo pipefail

shared=/shared/llamaperf # <- a folder that all nodes have
trtllm=1.1.0             # <- what is judged
last_release=1.0.0       # <- a version of TensorRT-LLM that is in the history
# <- a file that nobody else may read: postgresql+psycopg://USER:PASSWORD@HOST/DATABASE
history=~/.config/llamaperf/history

day=${1:-$(date --utc +%F)}
[[ $day =~ ^[0-9]{4}-[0-9]{2}-[0-9]{2}$ ]] || { echo "$day is no day: write 2026-11-22" >&2; exit 2; }
run=$shared/runs/$day
environment=$shared/environments/$trtllm
export HF_HOME=$shared/huggingface HF_HUB_OFFLINE=1 LLAMAPERF_CACHE=$shared/checkpoints
cd "$shared/repository"
mkdir -p "$shared/runs" "$shared/environments"

# Not two at once, whoever started them.
exec {lock}>"$shared/runs/lock"
flock --nonblock "$lock" || { echo "another gate is running: squeue --me" >&2; exit 2; }

# TensorRT-LLM's wheels, and this project as it stands in the repository, once for each version. The mark says that all is there.
# pip has to know where NVIDIA's wheels are: PIP_EXTRA_INDEX_URL, or pip's configuration, as TensorRT-LLM's guide says.
if [ ! -e "$environment/complete" ]; then
    python3 -m venv --clear "$environment"
    "$environment/bin/pip" install --quiet --editable \
        ".[tensorrt-llm,accuracy,report,postgresql]" "tensorrt-llm==$trtllm"
    touch "$environment/complete"
fi
PATH=$environment/bin:$PATH

[ -e "$run/manifest.json" ] || llamaperf plan suites/ --gpu h200 --gate --results "$run"
gate=0
llamaperf run --on slurm --profile ci/slurm/slurm.yaml "$run" || gate=$?
case $gate in
    2) exit 2 ;;                            # nothing ran
    3) llamaperf merge "$run" || gate=$? ;; # after an interruption: what is missing is named
esac

LLAMAPERF_HISTORY=$(cat "$history")
export LLAMAPERF_HISTORY
past=0
llamaperf compare "$last_release" "$run" --json "$run/compare.json" --markdown "$run/compare.md" || past=$?
llamaperf history import "$run" || past=2
llamaperf report "$run" || past=2

[ "$gate" -eq 0 ] || exit "$gate"
exit "$past"
