#!/usr/bin/env bash
# Runs a training command and goes on with it when it dies. The other launch scripts start it on every host:
#   bash launch/restart.sh --workdir=DIR [OPTION …] -- COMMAND …
#     --workdir=DIR        the run's directory, or gs://BUCKET/RUN; a run that has begun there is gone on with (--resume)
#     --restarts=10        how often it is started again
#     --first_wait_s=10    before the first restart; twice as long before each following one
#     --max_wait_s=300     but at most this long: as long as the others wait for it when they join
#     --resume             go on with the run from the first start
#     --status_file=FILE   keeps "running PID", at the end "ended CODE"
#     --dry_run            print the command
# What the command's exit code means:
#   0     finished; or, where the run has begun and has no new table.md, stopped by SIGTERM with its state saved
#   2     a setting is wrong: never tried again (nor is 126 or 127, a command that cannot be started)
#   134   jax's runtime aborted it because a peer died; as any other code: tried again
# Ends with 0 (finished), 2 (a setting is wrong), 75 (SIGTERM came; state saved where the lines above say so), or the code
# that the last attempt died of. In a Kubernetes JobSet or a requeued Slurm job, earlier attempts are counted in.
set -euo pipefail
HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
source "$HERE/options.sh"

WORKDIR="" RESTARTS=10 FIRST_WAIT_S=10 MAX_WAIT_S=300 RESUME="" STATUS_FILE="" DRY_RUN=""
ATTEMPT="${JOBSET_RESTART_ATTEMPT:-${SLURM_RESTART_COUNT:-0}}" # earlier attempts of this job
BEGUN_NAME=config.json # the trainer writes it when all is set up
TABLE_NAME=table.md    # and this last
UNKNOWN=unknown        # a version of a file in a bucket that does not answer
VERSION_IN_BUCKET='import sys; from swerl_jax.data import files; print(files.state(sys.argv[1]) if files.exists(sys.argv[1]) else "")'
PYTHON=(python3) # or all that is before -m in the command
SIGNALS=0 CHILD="" STATUS=0 TABLE_BEFORE=""

# SIGTERM or Ctrl-C: passed on to the command, which then saves; nothing is started any more.
# shellcheck disable=SC2329 # a trap calls it
on_signal() {
  SIGNALS=$((SIGNALS + 1))
  say "told to stop${CHILD:+; the command has been told, too}"
  [[ -z "$CHILD" ]] || kill -TERM "$CHILD" 2>/dev/null || true
}

note_status() { [[ -z "$STATUS_FILE" ]] || echo "$*" > "$STATUS_FILE"; }

# What tells one version of the file $1 of the run from another; empty: there is none.
version_of() {
  case "$WORKDIR" in
    *://*) "${PYTHON[@]}" -c "$VERSION_IN_BUCKET" "$WORKDIR/$1" || echo "$UNKNOWN" ;;
    *) stat -c '%i %Y %Z' "$WORKDIR/$1" 2>/dev/null || true ;;
  esac
}

# Leaves in PYTHON how a command runs Python: "env A=b python -m module …".
find_python() {
  local i
  for ((i = 1; i <= $#; i++)); do
    [[ "${!i}" != -m ]] || { PYTHON=("${@:1:i-1}") && return; }
  done
}

meaning() {
  case "$1" in
    1) echo "an error, which its last lines tell" ;;
    134) echo "a peer died or did not answer, and jax's runtime aborted this process" ;;
    137) echo "it was killed: out of memory, or its machine is going away" ;;
    143) echo "SIGTERM ended it before it could save" ;;
    *) if [[ "$1" -gt 128 ]]; then echo "signal $(($1 - 128)) ended it"; else echo "an error"; fi ;;
  esac
}

# wait_s N: seconds before the N-th restart.
wait_s() {
  local seconds="$FIRST_WAIT_S" i
  for ((i = 1; i < $1 && seconds < MAX_WAIT_S; i++)); do seconds=$((2 * seconds)); done
  echo $((seconds < MAX_WAIT_S ? seconds : MAX_WAIT_S))
}

# Waits for the process $1, through signals; its exit code is left in STATUS.
await() {
  local seen
  while :; do
    seen="$SIGNALS" STATUS=0
    wait "$1" || STATUS=$?
    [[ "$SIGNALS" != "$seen" ]] || return 0
  done
}

pause() {
  [[ "$1" -gt 0 && "$SIGNALS" == 0 ]] || return 0
  sleep "$1" &
  wait $! || kill $! 2>/dev/null || true # a signal ends the pause
}

# The command once, with --resume where it is to go on; sets STATUS.
attempt() {
  local arguments=("$@") begun="$RESUME"
  [[ "$TABLE_BEFORE" != *"$UNKNOWN"* ]] || TABLE_BEFORE="$(version_of "$TABLE_NAME")"
  if [[ "$ATTEMPT" -gt 0 && -z "$RESUME" ]]; then
    begun="$(version_of "$BEGUN_NAME")"
    if [[ "$begun" == *"$UNKNOWN"* ]]; then # to begin anew, or to go on with nothing, would both be wrong
      say "$WORKDIR does not answer whether the run has begun"
      STATUS=1
      return 0
    fi
  fi
  [[ -z "$begun" ]] || arguments+=(--resume)
  "${arguments[@]}" &
  CHILD=$!
  [[ "$SIGNALS" == 0 ]] || kill -TERM "$CHILD" # it came just before
  await "$CHILD"
  CHILD=""
}

# Exit code 0 does not yet say that the run is at its end: the trainer also exits so after SIGTERM, here or on a peer.
# Where that cannot be seen it is gone on with: a finished run then only ends once more.
is_finished() {
  local begun table
  begun="$(version_of "$BEGUN_NAME")"
  table="$(version_of "$TABLE_NAME")"
  [[ "$begun$table$TABLE_BEFORE" != *"$UNKNOWN"* && (-z "$begun" || "$table" != "$TABLE_BEFORE") ]]
}

finish() {
  say "$2"
  note_status "ended $1"
  exit "$1"
}

# After an attempt: ends where nothing is to be tried again, and returns where something is.
judge() {
  case "$STATUS" in
    0) ! is_finished || finish 0 "finished" ;;
    "$EXIT_CONFIGURATION") finish "$STATUS" "a setting is wrong (the lines above say which); not tried again" ;;
    126 | 127) finish "$EXIT_CONFIGURATION" "the command cannot be started (code $STATUS); not tried again" ;;
  esac
  if [[ "$SIGNALS" -gt 0 ]]; then
    requeue
    [[ "$STATUS" == 0 ]] || finish "$EXIT_STOPPED" "stopped; the command ended with code $STATUS: $(meaning "$STATUS")"
    finish "$EXIT_STOPPED" "stopped before the end of the run, its state is saved"
  fi
}

# A Slurm job that was stopped, by its time limit say, takes its place in the queue again.
requeue() {
  [[ -n "${SLURM_JOB_ID:-}" && -n "${REQUEUE_WHEN_STOPPED:-}" && "$ATTEMPT" -lt "$RESTARTS" ]] || return 0
  note_status "ended $EXIT_STOPPED"
  scontrol requeue "$SLURM_JOB_ID" || say "the job could not be queued again"
}

main() {
  local started seconds
  find_python "$@"
  TABLE_BEFORE="$(version_of "$TABLE_NAME")"
  if [[ "$ATTEMPT" -gt 0 ]]; then
    seconds="$(wait_s "$ATTEMPT")"
    say "this job was started $ATTEMPT times before; beginning in $seconds s"
    pause "$seconds"
  fi
  while [[ "$SIGNALS" == 0 ]]; do
    started="$SECONDS"
    attempt "$@"
    judge
    if [[ "$STATUS" == 0 ]]; then
      say "stopped with its state saved after $((SECONDS - started)) s, but not told to here: a peer was"
      STATUS="$EXIT_STOPPED"
    else
      say "ended with code $STATUS after $((SECONDS - started)) s: $(meaning "$STATUS")"
    fi
    [[ "$RESTARTS" -gt 0 ]] || finish "$STATUS" "not started again here; what started this decides"
    [[ "$ATTEMPT" -lt "$RESTARTS" ]] || finish "$STATUS" "given up after $RESTARTS restarts"
    ATTEMPT=$((ATTEMPT + 1))
    seconds="$(wait_s "$ATTEMPT")"
    say "going on with the run in $seconds s (restart $ATTEMPT of $RESTARTS)"
    pause "$seconds"
    [[ "$STATUS" != "$EXIT_STOPPED" ]] || ! is_finished || finish 0 "finished"
  done
  finish "$EXIT_STOPPED" "stopped while waiting; the state last saved is kept"
}

trap on_signal TERM INT
parse_options "workdir restarts first_wait_s max_wait_s status_file" "" "resume dry_run" "$@"
need workdir "the run's directory"
for number in restarts first_wait_s max_wait_s; do need_number "$number"; done
[[ "${#TRAINER[@]}" -gt 0 ]] || refuse "there is no command" "give it after --"
check_directory
if [[ -n "$DRY_RUN" ]]; then
  quoted "${TRAINER[@]}" ${RESUME:+--resume}
  exit 0
fi
note_status "running $$"
main "${TRAINER[@]}"
