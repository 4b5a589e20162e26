# shellcheck shell=bash
# Sourced by the scripts that a person starts: `prepare_environment [EXTRA]` leaves, in $PYTHON_IN_VENV, a Python that
# has the package (editable) and its dependencies. It makes or reuses .venv in the repository root (another one behind
# `use_venv NAME`) and installs again only where setup.py or the Python changed. PYTHON=/path/to/python chooses the Python
# that .venv is made with.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PYTHON_IN_VENV="$VENV/bin/python"

# Another environment in the repository root, for an extra that must not share one with the rest.
use_venv() {
  VENV="$ROOT/$1"
  PYTHON_IN_VENV="$VENV/bin/python"
}

fail() {
  printf 'error: %s\n' "$1" >&2
  [[ $# -lt 2 ]] || printf '       %s\n' "${@:2}" >&2
  exit 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
  local candidate
  for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14}; do
    if is_new_enough "$candidate"; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.11 found (tried: ${PYTHON:-python3 and python3.11 to python3.14})" \
    "install one, or name it: PYTHON=/path/to/python bash $0"
}

make_venv() {
  local python
  python="$(find_python)" || exit 1
  "$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module" "on Debian and Ubuntu: apt install python3-venv; then run this again"
  echo "making $VENV with $("$python" --version)"
  "$python" -m venv --clear "$VENV" || fail "$python could not make $VENV; the lines above say why"
}

prepare_environment() {
  local extra="${1:-}" stamp wanted
  "$PYTHON_IN_VENV" -c '' 2>/dev/null || make_venv
  is_new_enough "$PYTHON_IN_VENV" ||
    fail "$VENV holds $("$PYTHON_IN_VENV" --version), needed is 3.11 or newer" "remove it and run this again: rm -r $VENV"
  stamp="$VENV/installed${extra:+-$extra}"
  wanted="$(cat "$ROOT/setup.py" "$ROOT/launch/environment.sh" | cksum) $("$PYTHON_IN_VENV" --version) $ROOT"
  [[ -f "$stamp" && "$(cat "$stamp")" == "$wanted" ]] && return
  echo "installing swerl_jax${extra:+[$extra]} into $VENV (a minute or two, only this time)"
  "$PYTHON_IN_VENV" -m pip install --quiet --disable-pip-version-check --editable "$ROOT${extra:+[$extra]}" ||
    fail "the installation failed; the lines above say why, and running this again resumes it"
  echo "$wanted" > "$stamp" # last: an interrupted installation is done again
}
