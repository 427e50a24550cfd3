#!/usr/bin/env bash
# The tests, with all their set-up.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/test.sh [--stock | --check] [--all] [arguments for pytest]

Sets up the environment where needed (scripts/setup.sh). Then runs ruff, mypy and the tests on two cores.

  --all     the tests marked `release` too: all that a release needs, which takes some 16 minutes
  --stock   only the tests marked `stock`, with stock fairseq 0.12.2 on Python 3.8, in an environment of their own
  --check   only ruff and mypy

Examples:
  bash scripts/test.sh tests/ops/test_functional.py -k causal
  bash scripts/test.sh --all tests/scripts/test_train.py
  PYTHON=python3.12 VENV=.venv-312 bash scripts/test.sh
  STOCK_PYTHON=python3.9 bash scripts/test.sh --stock --all
EOF
}

leg=main all=
while true; do
  case ${1:-} in
    --stock) leg=stock ;;
    --check) leg=check ;;
    --all) all=yes ;;
    -h | --help) usage && exit ;;
    *) break ;;
  esac
  shift
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [ $leg = stock ]; then
  bash scripts/setup.sh --stock
  bin=${STOCK_VENV:-.venv-stock}/bin
  marked="stock and not release"
  [ ! $all ] || marked=stock
  set -- -m "$marked" "$@"
else
  bash scripts/setup.sh
  bin=${VENV:-.venv}/bin
  "$bin/ruff" check .
  "$bin/ruff" format --check .
  "$bin/mypy"
  [ $all ] || set -- -m "not release" "$@"
fi
[ $leg != check ] || exit 0

# Many tests start a process of their own, and some wait for one to end: three workers of one thread keep two cores busy.
# Tests of one file stay together, for the sake of what they share.
export OMP_NUM_THREADS=1
exec "$bin/python" -m pytest -n 3 --dist loadfile --durations 10 "$@"
