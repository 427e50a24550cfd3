#!/usr/bin/env bash
# The tests, with all their set-up.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/test.sh [--stock | --check] [arguments for pytest]

Sets up the environment where needed (scripts/setup.sh), then runs ruff, mypy and the whole suite on two cores.

  --stock   the tests marked `stock` alone, with stock fairseq 0.12.2 on Python 3.8, in an environment of their own
  --check   ruff and mypy alone

Examples:
  bash scripts/test.sh tests/test_functional.py -k causal
  PYTHON=python3.12 VENV=.venv-312 bash scripts/test.sh
  STOCK_PYTHON=python3.9 bash scripts/test.sh --stock
EOF
}

leg=main
case ${1:-} in
  --stock) leg=stock && shift ;;
  --check) leg=check && shift ;;
  -h | --help) usage; exit ;;
esac

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $leg = stock ]; then
  bash scripts/setup.sh --stock
  bin=${STOCK_VENV:-.venv-stock}/bin
  set -- -m stock "$@"
else
  bash scripts/setup.sh
  bin=${VENV:-.venv}/bin
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  "$bin/mypy"
fi
[ $leg != check ] || exit 0

# Two single-threaded workers beat one with two threads: most tests start a process of their own.
# Tests of one file stay together, for the sake of what they share.
export OMP_NUM_THREADS=1
exec "$bin/python" -m pytest -n 2 --dist loadfile --durations 10 "$@"
