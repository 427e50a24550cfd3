# Sourced by the scripts beside it: makes the environment where needed, and names its interpreter and the checkout.
# shellcheck shell=bash
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=''
for argument in "$@"; do
  case $argument in
    --) break ;;
    -h | --help) python=$(bash "$root/scripts/setup.sh" --which) ;; # help needs no environment
  esac
done
if [ ! "$python" ]; then
  bash "$root/scripts/setup.sh"
  python=$(cd "$root" && cd "${VENV:-.venv}/bin" && pwd)/python
fi

# where the packages luna_tools and luna_data are
export PYTHONPATH="$root/scripts:$root/data-prep${PYTHONPATH:+:$PYTHONPATH}"

# glibc gives big blocks of memory back to the kernel at once and gets them anew, page by page: a third of the time of
# a training step on a CPU. With these it keeps them.
reuse_memory() {
  export MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_-0}" MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_-100000000000}"
}
