# shellcheck shell=bash disable=SC2034 # what the scripts that source it use
# Sourced by the launch scripts: their options, what they say, and how they print or run a command.
# A script sets DRY_RUN="" and its own variables first, then calls parse_options.

EXIT_CONFIGURATION=2 # what the trainer and these scripts end with when a setting is wrong; never tried again
EXIT_STOPPED=75      # stopped before its end, with its state saved; to be gone on with

shopt -u patsub_replacement 2>/dev/null || true # from bash 5.2 on, & in a replacement would mean what was replaced

say() { printf 'launch: %s\n' "$*" >&2; }

# refuse MESSAGE [HINT …]: a setting is wrong.
refuse() {
  printf 'error: %s\n' "$1" >&2
  [[ $# -lt 2 ]] || printf '       %s\n' "${@:2}" >&2
  exit "$EXIT_CONFIGURATION"
}

# The first comment of the script that was started.
show_help() { awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' "$0"; }

# quoted WORD …: one line that any POSIX shell reads back as these words.
quoted() {
  local word line="" quote="'\\''"
  for word in "$@"; do
    case "$word" in
      "" | *[!A-Za-z0-9_@%+=:,./-]*) word="'${word//\'/$quote}'" ;;
    esac
    line="$line${line:+ }$word"
  done
  printf '%s\n' "$line"
}

# execute WORD …: runs the command and says so; with --dry_run only prints it.
execute() {
  if [[ -n "$DRY_RUN" ]]; then
    quoted "$@"
  else
    say "$(quoted "$@")"
    "$@"
  fi
}

# need_tool NAME WHERE: the command-line tool is here, or nothing is to be run.
need_tool() {
  [[ -n "$DRY_RUN" ]] || command -v "$1" >/dev/null ||
    refuse "$1 is not installed" "get it: $2" "or see what would be run, without it: add --dry_run"
}

# need NAME WHAT: the option --NAME was given (its value is in the variable of that name in capitals).
need() {
  local variable
  variable="$(upper "$1")"
  [[ -n "${!variable}" ]] || refuse "--$1 is missing: $2" "usage: bash $0 --help"
}

need_number() {
  local variable
  variable="$(upper "$1")"
  case "${!variable}" in
    "" | *[!0-9]*) refuse "--$1 is '${!variable}'; needed is a whole number" ;;
  esac
}

upper() { printf '%s' "$1" | tr '[:lower:]' '[:upper:]'; }

# parse_options "VALUED …" "LISTED …" "FLAGS …" "$@": --KEY=VALUE sets KEY in capitals, or appends to that array where it may
# be given again and again; --FLAG sets it to 1. What follows -- is left in TRAINER.
parse_options() {
  local valued=" $1 " listed=" $2 " flags=" $3 " argument key
  shift 3
  TRAINER=()
  while [[ $# -gt 0 ]]; do
    argument="$1"
    shift
    key="${argument#--}"
    key="${key%%=*}"
    case "$argument" in
      --help | -h) show_help && exit 0 ;;
      --)
        TRAINER=("$@")
        return
        ;;
      --*=*)
        case "$listed$valued" in
          *" $key "*) ;;
          *) refuse "--$key is not an option that takes a value" "usage: bash $0 --help" ;;
        esac
        if [[ "$listed" == *" $key "* ]]; then
          eval "$(upper "$key")+=(\"\${argument#*=}\")" # the name is one of our own list
        else
          printf -v "$(upper "$key")" '%s' "${argument#*=}"
        fi
        ;;
      --*)
        case "$listed$valued" in
          *" $key "*) refuse "--$key needs a value: --$key=VALUE" ;;
        esac
        [[ "$flags" == *" $key "* ]] ||
          refuse "--$key is not an option" "the trainer's own follow after --, as in: bash $0 … -- --config=…"
        printf -v "$(upper "$key")" '%s' 1
        ;;
      *) refuse "unexpected '$argument'" "options look like --key=value; the trainer's own follow after --" ;;
    esac
  done
}

# read_trainer: checks what follows --, and leaves the run's directory in WORKDIR.
read_trainer() {
  local argument previous="" config=""
  WORKDIR=""
  for argument in ${TRAINER[@]+"${TRAINER[@]}"}; do
    case "$argument" in
      --workdir=* | -workdir=*) WORKDIR="${argument#*=}" ;;
      --config=* | -config=*) config="${argument#*=}" ;;
      --resume | -resume) refuse "--resume is this script's to give" "begin again with its own --resume, or 'resume'" ;;
    esac
    case "$previous" in
      --workdir | -workdir) WORKDIR="$argument" ;;
      --config | -config) config="$argument" ;;
    esac
    previous="$argument"
  done
  [[ -n "$config" ]] || refuse "the trainer has no config" "give it after --, as in: bash $0 … -- --config=configs/8b.py"
  [[ -n "$WORKDIR" ]] ||
    refuse "the trainer has no --workdir" "a launched run needs one to be gone on with: bash $0 … -- --workdir=gs://BUCKET/RUN"
  check_directory
}

# check_directory: WORKDIR is a path, or in a bucket.
check_directory() {
  [[ "$WORKDIR" != *://* || "$WORKDIR" == gs://?* ]] || refuse "--workdir=$WORKDIR is no place for a run" \
    "needed is a directory that all hosts share, or gs://BUCKET/RUN: checkpoints are written nowhere else"
}

# check_environment: every --env is KEY=VALUE.
check_environment() {
  local setting
  for setting in ${ENV[@]+"${ENV[@]}"}; do
    case "$setting" in
      [A-Za-z_]*=*) ;;
      *) refuse "--env=$setting is not KEY=VALUE" ;;
    esac
  done
}
