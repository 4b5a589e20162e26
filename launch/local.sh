#!/usr/bin/env bash
# Runs the main job on this machine's CPU; sets everything up the first time. From any directory:
#   bash launch/local.sh                            configs/tiny.py
#   bash launch/local.sh --config.KEY=VALUE …       the same with other values, --workdir=DIR, --resume, --dry_run
#   bash launch/local.sh --config=configs/NAME.py   another config
#   PYTHON=/path/to/python bash launch/local.sh     makes .venv with that Python (3.11 or newer)
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}" # spares the complaints of a TPU's compiler that the tests installed
cd "$ROOT"
case " $* " in
  *" --config="* | *" --config "*) ;;
  *) set -- --config=configs/tiny.py "$@" ;;
esac
exec "$PYTHON_IN_VENV" -m swerl_jax.main "$@"
