# Sourced by the scripts beside it: makes the environment where needed, and names its interpreter and the checkout.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
case ${1:-} in
  -h | --help) python=python3 ;; # help needs no environment
  *)
    bash "$root/scripts/setup.sh"
    python=$(cd "$root" && cd "${VENV:-.venv}/bin" && pwd)/python
    ;;
esac
