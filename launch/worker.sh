#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each TPU VM, over ssh:
#   bash launch/worker.sh install [--extra=tpu,gcs]           a Python with the package, in .venv
#   bash launch/worker.sh start [OPTION …] -- TRAINER'S ARGUMENTS
#     --restarts=10  --resume  --env=KEY=VALUE (again and again)   as in launch/restart.sh; a run that goes on here stays
#   bash launch/worker.sh status                              prints: worker-status running, ended CODE, lost or absent
#   bash launch/worker.sh follow [--new]                      the log, from its beginning (or its end) and as it grows
#   bash launch/worker.sh stop [--grace_s=180]                SIGTERM, waits until the state is saved, kills it after that time
# --dry_run prints the commands.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/options.sh"
source "$HERE/environment.sh"

EXTRA=tpu,gcs RESTARTS=10 GRACE_S=180 RESUME="" NEW="" DRY_RUN="" WORKDIR="" ENV=()
RUN="$ROOT/.run"
LOG="$RUN/log"
STATUS_FILE="$RUN/status"
UV_URL=https://astral.sh/uv/install.sh # brings a Python where the image's is too old

has_venv() { is_new_enough "$1" && "$1" -c 'import ensurepip, venv' 2>/dev/null; }

# PYTHON for prepare_environment: one that is here, or one fetched.
choose_python() {
  local candidate
  for candidate in python3.13 python3.12 python3.11 python3; do
    if has_venv "$candidate"; then
      export PYTHON="$candidate"
      return
    fi
  done
  [[ -x "$HOME/.local/bin/uv" ]] || curl -LsSf "$UV_URL" | sh || fail "no Python >= 3.11 here, and $UV_URL cannot be had" \
    "give this machine access to the internet (an external address or Cloud NAT), or an image with Python 3.12"
  "$HOME/.local/bin/uv" python install 3.12
  PYTHON="$("$HOME/.local/bin/uv" python find 3.12)"
  export PYTHON
}

install() {
  if [[ -n "$DRY_RUN" ]]; then
    echo "# choose_python; prepare_environment $EXTRA   (see launch/environment.sh)"
    return
  fi
  "$PYTHON_IN_VENV" -c '' 2>/dev/null || choose_python
  prepare_environment "$EXTRA"
  echo "installed on $(hostname)"
}

# Prints running, "ended CODE", lost (it ran, and neither ended nor is there) or absent.
current_status() {
  local word number
  [[ -f "$STATUS_FILE" ]] || { echo absent && return; }
  read -r word number < "$STATUS_FILE" || true
  if [[ "$word" == running ]]; then
    if tr '\0' ' ' < "/proc/$number/cmdline" 2>/dev/null | grep -q restart.sh; then echo running; else echo lost; fi
  else
    echo "$word $number"
  fi
}

start() {
  local command i
  read_trainer
  check_environment
  command=(bash "$HERE/restart.sh" "--workdir=$WORKDIR" "--restarts=$RESTARTS" "--status_file=$STATUS_FILE"
    ${RESUME:+--resume} -- ${ENV[@]+env "${ENV[@]}"}
    "$PYTHON_IN_VENV" -m swerl_jax.main "${TRAINER[@]}")
  if [[ -n "$DRY_RUN" ]]; then
    quoted "${command[@]}"
    return
  fi
  if [[ "$(current_status)" == running ]]; then
    echo "already running on $(hostname)"
    return
  fi
  mkdir -p "$RUN"
  rm -f "$STATUS_FILE"
  cd "$ROOT"
  setsid nohup "${command[@]}" >> "$LOG" 2>&1 < /dev/null &
  for ((i = 0; i < 100; i++)); do
    [[ ! -s "$STATUS_FILE" ]] || break
    sleep 0.1
  done
  echo "started on $(hostname)"
}

stop() {
  local word number started="$SECONDS"
  if [[ "$(current_status)" == running ]]; then
    read -r word number < "$STATUS_FILE"
    say "telling the $word process $number to save and stop"
    execute kill -TERM "$number"
    while [[ -z "$DRY_RUN" && "$(current_status)" == running && $((SECONDS - started)) -lt "$GRACE_S" ]]; do sleep 1; done
    if [[ -z "$DRY_RUN" && "$(current_status)" == running ]]; then
      say "it did not stop within $GRACE_S s: killed"
      kill -KILL -- "-$number"
      echo "ended 137" > "$STATUS_FILE"
    fi
  fi
  echo "worker-status $(current_status)"
}

COMMAND="${1:---help}"
[[ $# -eq 0 ]] || shift
[[ "$COMMAND" != --help ]] || { show_help && exit 0; }
parse_options "extra restarts grace_s" "env" "new resume dry_run" "$@"
[[ -z "$NEW" ]] || FROM=0
case "$COMMAND" in
  install | start | stop) "$COMMAND" ;;
  status) echo "worker-status $(current_status)" ;;
  follow) mkdir -p "$RUN" && touch "$LOG" && exec tail -n "${FROM:-+1}" -F "$LOG" ;;
  *) refuse "'$COMMAND' is not one of install, start, status, follow, stop" ;;
esac
