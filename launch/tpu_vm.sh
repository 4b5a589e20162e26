#!/usr/bin/env bash
# Trains on Cloud TPU VMs, asked for as a queued resource. Runs on a machine of yours that has gcloud:
#   bash launch/tpu_vm.sh run --name=N --project=P --zone=Z --topology=v5p:4x4x8 -- --config=configs/70b.py --workdir=gs://BUCKET/RUN
# or step by step, each with the same --name, --project, --zone and --topology:
#   create    asks for the slice (--spot, --reserved, --create_flag=--FLAG=VALUE for more of gcloud's)
#   wait      until it is there (--wait_s=SECONDS at most, 0: without end)
#   install   copies this checkout to all workers and installs it there (--extra=tpu,gcs)
#   start     starts the trainer on all workers; its arguments follow --
#   log       streams the log of worker 0
#   status    the slice's state and each worker's
#   stop      SIGTERM on all workers: state is saved, the run ends
#   resume    goes on with the run: starts it, after asking for the slice again where it was preempted; then as run
#   delete    gives the slice back
# run does create, wait, install and start, streams the log until the run ends, starts workers again that were lost, and after a
# preemption asks for the slice again and goes on with the run.
#   --topology=VERSION:SHAPE[:xSLICES]   v5p:4x4x8, v6e:16x16:x2, v5e:2x4 …
#   --restarts=10       starts again on a worker before it gives up (launch/restart.sh)
#   --recreations=10    slices asked for again after a preemption
#   --poll_s=120        between two looks at the slice and its workers
#   --setup=COMMAND     install: first run on all workers, also on those of a slice asked for again; mounts a file system, say
#   --env=KEY=VALUE     for the trainer, again and again
#   --ssh_flag=--FLAG   for gcloud … ssh and scp, for example --internal-ip
#   --delete_after      run, resume: give the slice back when the run is over, however it ended
#   --dry_run           print the commands; needs no gcloud
# Ends with 0 (finished), 2 (a setting is wrong), 75 (stopped, state saved), or the code that the trainer last died of.
# --workdir, data and models may be in a bucket (gs://…); else they must be on a file system that all hosts share.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/options.sh"
source "$HERE/topology.sh"

NAME="" PROJECT="" ZONE="" TOPOLOGY="" EXTRA=tpu,gcs RESTARTS=10 RECREATIONS=10 POLL_S=120 WAIT_S=0 SETUP="" WORKDIR=""
SPOT="" RESERVED="" DELETE_AFTER="" DRY_RUN="" ENV=() CREATE_FLAG=() SSH_FLAG=() TRAINER=()
REMOTE=swerl_jax # the checkout's directory on a worker, below its home
FOLLOWER="" IS_FOLLOWED="" STOPPED_BEFORE="" REVIVALS=0
MAX_RECREATION_WAIT_S=1800

queue() { execute gcloud compute tpus queued-resources "$@" "--project=$PROJECT" "--zone=$ZONE"; }

nodes() {
  local i
  if [[ "$SLICES" == 1 ]]; then
    echo "$NAME"
  else
    for ((i = 0; i < SLICES; i++)); do echo "$NAME-$i"; done
  fi
}

# on_workers WHICH NODE COMMAND: a shell command on workers (all, or a number) of one slice.
on_workers() {
  execute gcloud compute tpus tpu-vm ssh "$2" "--project=$PROJECT" "--zone=$ZONE" "--worker=$1" \
    ${SSH_FLAG[@]+"${SSH_FLAG[@]}"} "--command=$3"
}

# of_worker WORD …: launch/worker.sh there, as a shell command.
of_worker() { quoted bash "$REMOTE/launch/worker.sh" "$@"; }

# everywhere WORD …: the same on all workers of all slices.
everywhere() {
  local node code=0
  for node in $(nodes); do on_workers all "$node" "$(of_worker "$@")" || code=$?; done
  return "$code"
}

create() {
  local place=("--node-id=$NAME")
  [[ "$SLICES" == 1 ]] || place=("--node-count=$SLICES" "--node-prefix=$NAME")
  queue create "$NAME" "--accelerator-type=$ACCELERATOR_TYPE" "--runtime-version=$RUNTIME_VERSION" "${place[@]}" \
    ${SPOT:+--spot} ${RESERVED:+--reserved} ${CREATE_FLAG[@]+"${CREATE_FLAG[@]}"}
}

# ACTIVE, WAITING_FOR_RESOURCES, PROVISIONING, SUSPENDED, FAILED …, or NONE; "" where there was no answer.
state() {
  local answer
  if answer="$(queue describe "$NAME" '--format=value(state.state)' 2>&1)"; then
    grep -E '^[A-Z_]+$' <<< "$answer" | tail -n 1
  elif [[ "$answer" == *NOT_FOUND* || "$answer" == *"not found"* ]]; then
    echo NONE
  fi
}

wait_for_slice() {
  local started="$SECONDS" now last=""
  if [[ -n "$DRY_RUN" ]]; then
    echo "# until it prints ACTIVE:"
    queue describe "$NAME" '--format=value(state.state)'
    return
  fi
  while :; do
    now="$(state 2>/dev/null)"
    [[ -z "$now" || "$now" == "$last" ]] || say "$NAME is $now after $((SECONDS - started)) s"
    last="${now:-$last}"
    case "$now" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING | NONE)
        say "$NAME will not become active; why: gcloud compute tpus queued-resources describe $NAME --zone=$ZONE"
        return 1
        ;;
    esac
    [[ "$WAIT_S" == 0 || $((SECONDS - started)) -lt "$WAIT_S" ]] ||
      refuse "$NAME is not active after $WAIT_S s" "wait longer (--wait_s, or the sub-command wait), or give it up (delete)"
    sleep "$POLL_S"
  done
}

install() {
  local archive=/tmp/swerl_jax.tar.gz node command
  command="${SETUP:+$SETUP && }mkdir -p $REMOTE && tar -xzf swerl_jax.tar.gz -C $REMOTE"
  command="$command && $(of_worker install "--extra=$EXTRA")"
  execute tar -C "$HERE/.." --exclude=./.git --exclude=./.venv --exclude=./.run --exclude=./runs --exclude=__pycache__ \
    "--exclude=*.egg-info" -czf "$archive" . || return
  for node in $(nodes); do
    execute gcloud compute tpus tpu-vm scp "$archive" "$node:swerl_jax.tar.gz" "--project=$PROJECT" "--zone=$ZONE" \
      --worker=all ${SSH_FLAG[@]+"${SSH_FLAG[@]}"} || return
    on_workers all "$node" "$command" || return
  done
}

# start [--resume]: workers on which the run goes on stay as they are.
start() {
  local setting settings=()
  for setting in ${ENV[@]+"${ENV[@]}"}; do settings+=("--env=$setting"); done
  everywhere start "--restarts=$RESTARTS" "$@" ${settings[@]+"${settings[@]}"} -- "${TRAINER[@]}"
}

log() { on_workers 0 "$(nodes | head -n 1)" "$(of_worker follow "$@")"; }

# Streams worker 0's log beside the rest: the first time from its beginning, after a broken connection what is new.
follow() {
  [[ -z "$FOLLOWER" ]] || ! kill -0 "$FOLLOWER" 2>/dev/null || return 0
  set -m # a process group of its own, which unfollow ends
  log ${IS_FOLLOWED:+--new} < /dev/null &
  FOLLOWER=$!
  set +m
  IS_FOLLOWED=1
}

unfollow() {
  [[ -z "$FOLLOWER" ]] || kill -TERM -- "-$FOLLOWER" 2>/dev/null || true
  FOLLOWER=""
}

delete() { queue delete "$NAME" --force --quiet; }

# One line a worker: running, "ended CODE", lost or absent.
worker_statuses() { everywhere status 2>/dev/null | sed -n 's/^worker-status //p'; }

# verdict STATUSES: finished, running, lost, stopped, wrong (a setting), "gave_up CODE", or unknown.
verdict() {
  local line words=() codes="" lost="" running=""
  while IFS= read -r line; do
    [[ -z "$line" ]] || words+=("$line")
    case "$line" in
      running) running=1 ;;
      lost | absent) lost=1 ;;
      "ended 0" | "ended $EXIT_STOPPED") ;;
      ended*) codes="${line#ended }" ;;
    esac
    [[ "$line" != "ended $EXIT_CONFIGURATION" ]] || { echo wrong && return; }
  done <<< "$1"
  if [[ "${#words[@]}" -lt $((SLICES * HOSTS)) ]]; then
    echo unknown
  elif [[ -n "$codes" ]]; then
    echo "gave_up $codes"
  elif [[ "$1" != *"ended $EXIT_STOPPED"* && -z "$lost$running" ]]; then
    echo finished
  elif [[ -z "$lost$running" ]]; then
    echo stopped
  elif [[ -n "$lost" || "$1" == *"ended $EXIT_STOPPED"* ]]; then
    echo lost # on some hosts: after a reboot, for example
  else
    echo running
  fi
}

leave() {
  unfollow
  say "$2"
  if [[ -n "$DELETE_AFTER" ]]; then
    delete || say "$NAME could not be deleted: it still costs; try: bash $0 delete --name=$NAME --project=$PROJECT --zone=$ZONE"
  else
    say "$NAME is still yours and costs; give it back: bash $0 delete --name=$NAME --project=$PROJECT --zone=$ZONE"
  fi
  exit "$1"
}

# After a preemption: the same slice again, and the run goes on.
recreate() {
  local count wait_s="$POLL_S"
  unfollow
  IS_FOLLOWED="" # a new machine begins a new log
  for ((count = 1; count <= RECREATIONS; count++)); do
    say "asking for $NAME again ($count of $RECREATIONS)"
    [[ "$(state)" == NONE ]] || delete || true
    if create && wait_for_slice && install && start --resume; then
      RECREATIONS=$((RECREATIONS - count))
      return
    fi
    say "that did not work; the next attempt is in $wait_s s"
    sleep "$wait_s"
    wait_s=$((2 * wait_s < MAX_RECREATION_WAIT_S ? 2 * wait_s : MAX_RECREATION_WAIT_S))
  done
  leave 1 "$NAME was preempted and could not be had again; go on later: bash $0 resume …"
}

# Starts the trainer again where it neither runs nor ended: after a reboot, for example.
revive() {
  REVIVALS=$((REVIVALS + 1))
  [[ "$REVIVALS" -le "$RESTARTS" ]] || leave 1 "workers were lost $REVIVALS times; see the log"
  say "a worker was lost; starting it again ($REVIVALS of $RESTARTS)"
  start --resume || say "not all workers could be reached"
}

judge() {
  local found
  found="$(verdict "$(worker_statuses)")"
  case "$found" in
    finished) leave 0 "the run is finished" ;;
    wrong) everywhere stop || true && leave "$EXIT_CONFIGURATION" "a setting is wrong; not tried again. The log says which" ;;
    gave_up*) everywhere stop || true && leave "${found#gave_up }" "a worker gave up with code ${found#gave_up }" ;;
    lost) revive ;;
    stopped) [[ -z "$STOPPED_BEFORE" ]] || leave "$EXIT_STOPPED" "the run was stopped, its state is saved" ;;
    unknown) say "not all workers answer; asking again in $POLL_S s" ;;
  esac
  STOPPED_BEFORE=""
  [[ "$found" != stopped ]] || STOPPED_BEFORE=1 # twice: a preemption stops all workers, too, and is seen a little later
}

# Until the run ends.
supervise() {
  local now
  if [[ -n "$DRY_RUN" ]]; then
    log
    echo "# meanwhile, every $POLL_S s, until all workers have ended:"
    queue describe "$NAME" '--format=value(state.state)'
    everywhere status
    [[ -z "$DELETE_AFTER" ]] || delete
    return
  fi
  trap unfollow EXIT
  trap 'say "no longer watching $NAME; the run goes on there (see status, log, stop, resume, delete)"; exit 130' INT TERM
  while :; do
    follow
    sleep "$POLL_S"
    now="$(state 2>/dev/null)"
    case "$now" in
      ACTIVE) judge ;;
      SUSPENDING | SUSPENDED | FAILED | DELETING | NONE) say "$NAME is $now: preempted or taken back" && recreate ;;
    esac
  done
}

resume() {
  if [[ -n "$DRY_RUN" ]]; then
    echo "# where the slice is not ACTIVE any more:"
    delete && create && wait_for_slice && install
    echo "# in any case:"
    start --resume
  elif [[ "$(state)" == ACTIVE ]]; then
    start --resume
  else
    recreate
  fi
  supervise
}

run() {
  create
  wait_for_slice
  install
  start
  supervise
}

status() {
  queue describe "$NAME" '--format=value(state.state)'
  everywhere status
}

check() {
  local number
  need name "what the slice is called, for example --name=swerl"
  need project "the Google Cloud project that pays"
  need zone "the zone, for example --zone=us-east5-a; see cloud.google.com/tpu/docs/regions-zones"
  for number in restarts recreations poll_s wait_s; do need_number "$number"; done
  case "$COMMAND" in
    delete | wait) ;;
    *)
      need topology "the slice, for example --topology=v5p:4x4x8"
      read_topology "$TOPOLOGY"
      ;;
  esac
  case "$COMMAND" in
    run | start | resume)
      read_trainer
      check_environment
      case "$((SLICES * HOSTS)):$WORKDIR" in
        1:* | *://*) ;;
        *) say "note: $((SLICES * HOSTS)) hosts must share $WORKDIR, and a preemption takes a VM's own disk with it" ;;
      esac
      ;;
  esac
  need_tool gcloud https://cloud.google.com/sdk/docs/install
}

COMMAND="${1:---help}"
[[ $# -eq 0 ]] || shift
case "$COMMAND" in
  --help | -h) show_help && exit 0 ;;
  create | wait | install | start | log | status | stop | resume | delete | run) ;;
  *) refuse "'$COMMAND' is not a sub-command" "they are run, create, wait, install, start, log, status, stop, resume, delete" ;;
esac
parse_options "name project zone topology extra restarts recreations poll_s wait_s setup" "env create_flag ssh_flag" \
  "spot reserved delete_after dry_run" "$@"
check
case "$COMMAND" in
  wait) wait_for_slice ;;
  stop) everywhere stop ;;
  *) "$COMMAND" ;;
esac
