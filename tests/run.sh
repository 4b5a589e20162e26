#!/usr/bin/env bash
# Runs the tests; sets everything up the first time. From any directory:
#   bash tests/run.sh                  the fast tier; installs the TPU's compiler, too (0.2 GB to load), where there is one
#   bash tests/run.sh --slow           both tiers (SLOW=1 does the same); installs torch to compare with, and gcsfs
#   bash tests/run.sh --curate         those that need Apache Beam, in an environment of their own (.venv-curate)
#   bash tests/run.sh -k chat -x       everything else goes to pytest (-n 0: in one process)
# As many processes as cores share the fast tier, at most four: most of its time goes into compiling, on one core each. The
# slow tier starts processes of its own and compares with torch: one test after the other.
# Fails where no test ran, and with CI=true where a test was skipped that the machine could have run.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/environment.sh"

if [[ "${1:-}" == --curate ]]; then
  use_venv .venv-curate
  prepare_environment curate,test
  cd "$ROOT"
  exec "$PYTHON_IN_VENV" -m pytest tests/test_curate_beam.py "${@:2}"
fi
case " $* ${SLOW:-0} " in
  *" --slow "* | *" 1 "*)
    prepare_environment test,parity,tpu,gcs
    shared=(--numprocesses 0)
    ;;
  *)
    tpu=,tpu # its compiler plans two layers
    [[ "$(uname -sm)" == "Linux x86_64" ]] || tpu=""
    prepare_environment "test$tpu"
    shared=(--numprocesses auto --maxprocesses 4 --dist worksteal)
    ;;
esac
cd "$ROOT"
exec "$PYTHON_IN_VENV" -m pytest "${shared[@]}" "$@"
