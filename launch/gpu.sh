#!/usr/bin/env bash
# Trains on GPUs: on all of this machine's, or with --slurm on several nodes. Sets everything up the first time.
#   bash launch/gpu.sh -- --config=configs/8b.py --workdir=runs/8b …
#   bash launch/gpu.sh --slurm --nodes=4 --gpus_per_node=8 -- --config=configs/70b.py --workdir=/shared/70b …
# Options:
#   --restarts=10             starts again before it gives up (launch/restart.sh), in Slurm also after the time limit
#   --resume                  go on with the run in --workdir
#   --env=KEY=VALUE           for the trainer, again and again
#   --dry_run                 print the command; installs nothing, needs no Slurm
#   --slurm                   submit a job: one process a node, which holds all of its GPUs
#   --nodes=1 --gpus_per_node=8 --name=swerl_jax    of the job
#   --stop_early_s=120        before its time limit the job saves, and queues itself again
#   --sbatch_flag=--FLAG=VALUE   more of sbatch's, again and again: --partition, --time, --account, --cpus-per-task …
# In Slurm this checkout, and --workdir unless it is gs://BUCKET/RUN, must be on a file system that all nodes share.
# PYTHON=/path/to/python chooses the Python that .venv is made with. Ends with 0 (finished), 2 (a setting is wrong), 75 (stopped, state saved), or the trainer's code.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/options.sh"
source "$HERE/environment.sh"

RESTARTS=10 RESUME="" SLURM="" NODES=1 GPUS_PER_NODE=8 NAME=swerl_jax STOP_EARLY_S=120 DRY_RUN="" WORKDIR=""
ENV=() SBATCH_FLAG=() TRAINER=()

# 0,1,…: jax gives a Slurm process one GPU unless it is told which.
device_ids() {
  local i ids=0
  for ((i = 1; i < GPUS_PER_NODE; i++)); do ids="$ids,$i"; done
  echo "$ids"
}

one_node() {
  local command=(bash "$HERE/restart.sh" "${OPTIONS[@]}" -- ${ENV[@]+env "${ENV[@]}"} "${TRAIN[@]}")
  if [[ -n "$DRY_RUN" ]]; then
    quoted "${command[@]}"
  else
    exec "${command[@]}"
  fi
}

slurm() {
  local job
  job="$(quoted exec env REQUEUE_WHEN_STOPPED=1 bash "$HERE/restart.sh" "${OPTIONS[@]}" -- \
    srun --kill-on-bad-exit=1 env "JAX_LOCAL_DEVICE_IDS=$(device_ids)" ${ENV[@]+"${ENV[@]}"} "${TRAIN[@]}")"
  execute sbatch "--job-name=$NAME" "--nodes=$NODES" --ntasks-per-node=1 "--gpus-per-node=$GPUS_PER_NODE" \
    --requeue --open-mode=append "--signal=B:TERM@$STOP_EARLY_S" "--chdir=$ROOT" \
    ${SBATCH_FLAG[@]+"${SBATCH_FLAG[@]}"} "--wrap=$job"
}

[[ $# -gt 0 ]] || set -- --help
parse_options "restarts nodes gpus_per_node name stop_early_s" "env sbatch_flag" "slurm resume dry_run" "$@"
for number in restarts nodes gpus_per_node stop_early_s; do need_number "$number"; done
[[ "$NODES" -ge 1 && "$GPUS_PER_NODE" -ge 1 ]] || refuse "--nodes and --gpus_per_node must be at least 1"
[[ "$NODES" == 1 || -n "$SLURM" ]] || refuse "--nodes=$NODES needs --slurm" "without it, all GPUs of this machine are used"
read_trainer
check_environment
[[ -z "$SLURM" ]] || need_tool sbatch "your cluster's login node has it"
if [[ -n "$DRY_RUN" ]]; then
  echo "# prepare_environment gpu,gcs   (see launch/environment.sh)"
else
  prepare_environment gpu,gcs
fi
cd "$ROOT"
OPTIONS=("--workdir=$WORKDIR" "--restarts=$RESTARTS" ${RESUME:+--resume})
TRAIN=("$PYTHON_IN_VENV" -m swerl_jax.main "${TRAINER[@]}")
if [[ -n "$SLURM" ]]; then slurm; else one_node; fi
