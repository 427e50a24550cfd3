#!/usr/bin/env bash
# Makes the environment that every other script runs in. Safe to run twice, twice at once, and after any interruption.
set -euo pipefail

usage() {
  cat <<'EOF'
usage: bash scripts/setup.sh [--stock] [--which]

Installs the tested set of versions (constraints.txt) and this package, editable, into a virtual environment.
Does nothing when that is done. Reports on stderr; pip's output goes to setup.log in the environment.

  --stock   the environment for the tests with stock fairseq 0.12.2, on Python 3.8
  --which   only print the interpreter that a new environment would be made with

Variables (relative paths start from the checkout):
  PYTHON    the interpreter, Python 3.8 to 3.12 (default: the first that runs of python3.11, python3.12, python3,
            python3.10, python3.9, python3.8, those that pyenv holds included)
  VENV      the folder of the environment (default: .venv)
  STOCK_PYTHON, STOCK_VENV   the same for --stock (default: python3.8, .venv-stock)
EOF
}

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

stock='' which=''
for arg in "$@"; do
  case $arg in
    --stock) stock=1 ;;
    --which) which=1 ;;
    -h | --help) usage; exit ;;
    *) usage >&2; die "unknown argument '$arg'" ;;
  esac
done

cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset PYTHONPATH PYTHONHOME # pip would take what lies there for installed
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 PIP_PROGRESS_BAR=off PIP_USER=0

if [ "$stock" ]; then
  name=STOCK_PYTHON asked=${STOCK_PYTHON:-} venv=${STOCK_VENV:-.venv-stock} newest=3.10 candidates=3.8 wanted=3.8
else
  name=PYTHON asked=${PYTHON:-} venv=${VENV:-.venv} newest=3.12 candidates='3.11 3.12 3 3.10 3.9 3.8' wanted='3.8 to 3.12'
fi
stamp=$venv/setup.done log=$venv/setup.log lock=$venv/setup.lock

# The full path of an interpreter, or a line that says why it will not do.
probe() {
  "$1" - "$newest" <<'EOF'
import sys

version, newest = sys.version_info[:2], tuple(map(int, sys.argv[1].split(".")))
if not (3, 8) <= version <= newest:
    sys.exit("it is Python %d.%d, which is not 3.8 to %d.%d" % (version + newest))
try:
    import ensurepip, venv
except ImportError:
    sys.exit("it has no venv module (on Debian: apt-get install python%d.%d-venv)" % version)
print(sys.executable)
EOF
}

choose_python() {
  local version candidate answer
  if [ "$asked" ]; then
    command -v "$asked" >/dev/null || die "$name=$asked cannot be used: there is no such program"
    answer=$(probe "$asked" 2>&1) || die "$name=$asked cannot be used: ${answer%%$'\n'*}"
    echo "$answer"
    return
  fi
  # each is run, since pyenv's shims may be there and fail
  for version in $candidates; do
    for candidate in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3; do
      probe "$candidate" 2>/dev/null && return
    done
  done
  die "no Python $wanted was found that runs: install one with its venv module, or name it by $name=..."
}

# What an environment depends on: interpreter, place and pinned versions.
fingerprint() {
  "$1" -I - "$PWD" "$venv" setup.py constraints.txt <<'EOF' 2>/dev/null
import hashlib, os, sys

root, venv, *files = sys.argv[1:]
parts = [sys.version, root, os.path.abspath(venv)] + [open(name, encoding="utf-8").read() for name in files]
print(hashlib.sha256("\0".join(parts).encode()).hexdigest())
EOF
}

is_done() {
  local want
  want=$(cat "$stamp" 2>/dev/null) && [ "$want" ] || return 1
  [ "$want" = "$(fingerprint "$venv/bin/python")" ] || return 1
  [ -z "$asked" ] || [ "$want" = "$(fingerprint "$asked")" ]
}

# The lock goes with the open file, so a killed setup holds it no longer than the pip that it may have left behind.
take_lock() {
  exec 9>>"$lock"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)' 2>/dev/null && return
  say "another setup is at work in $venv, waiting for it"
  "$python" -c 'import fcntl; fcntl.flock(9, fcntl.LOCK_EX)'
}

step() {
  local what=$1 start=$SECONDS lines
  shift
  touch "$log"
  lines=$(wc -l <"$log")
  printf 'setup: %s ... ' "$what" >&2
  if "$@" >>"$log" 2>&1; then
    echo "$((SECONDS - start)) s$(tail -n "+$((lines + 1))" "$log" | downloaded)" >&2
  else
    echo "failed" >&2
    explain
    exit 1
  fi
}

# How much pip has downloaded, by its own words: "Downloading NAME.whl (12.3 MB)".
downloaded() {
  awk '/^ *Downloading .*\([0-9.]+ [kMG]B\)$/ {
    size = substr($(NF - 1), 2); megabytes += $NF == "kB)" ? size / 1000 : $NF == "GB)" ? size * 1000 : size
  }
  END { if (megabytes) printf ", %.0f MB downloaded", megabytes }'
}

explain() {
  say "the last lines of $log:"
  tail -n 12 "$log" | sed 's/^/  /' >&2
  if grep -qi 'no space left' "$log"; then
    say "The disk is full: make room (3 GB will do for a CPU, 10 GB for a GPU), then run this again."
  elif grep -qiE 'name resolution|establish a new connection|network is unreachable|proxyerror|timed out' "$log"; then
    say "The package index cannot be reached: check the network (and pip's proxy settings), then run this again."
  elif grep -qiE 'no matching distribution|conflicting dependencies' "$log"; then
    say "The package index has no such version for this Python and machine: try another Python by $name=..."
  else
    say "Mend what the log names, then run this again: it starts afresh."
  fi
}

if [ "$which" ]; then
  choose_python
  exit
fi
is_done && exit

python=$(choose_python)
if [ -L "$venv" ]; then # perhaps to the environment of another checkout, which would be removed
  die "$venv is a link to $(readlink "$venv"), which is not up to date for this checkout: remove the link, or choose another folder by ${name/PYTHON/VENV}=..."
fi
if [ -e "$venv" ] && [ ! -e "$lock" ] && [ "$(ls -A "$venv")" ]; then
  die "$venv is there but was not made by this script: move it away, or choose another folder by ${name/PYTHON/VENV}=..."
fi
mkdir -p "$venv"
take_lock
is_done && exit

if [ -e "$venv/pyvenv.cfg" ]; then say "$venv is unfinished or out of date: removing it"; fi
find "$venv/" -mindepth 1 -maxdepth 1 ! -name setup.lock -exec rm -rf {} +
if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  sizes='3 GB to download, 5.5 GB on disk (0.7 and 2.5 GB where pip finds a torch for CPUs)'
else
  sizes='0.9 GB to download, 2 GB on disk'
fi
say "torch, fairseq and what they need take about $sizes"
# with the pip that Python brings: below 3.11 that is older than 24.1, which refuses the metadata of omegaconf 2.0
pip=("$venv/bin/python" -m pip install --constraint constraints.txt)
step "making $venv with $("$python" --version)" "$python" -m venv "$venv"
step "installing torch" "${pip[@]}" torch
step "installing fairseq, fairseq_luna and what they need" "${pip[@]}" --editable ".[fairseq,dev,plot,export]"
# last and at once, so that no interruption leaves it on half an environment
fingerprint "$venv/bin/python" >"$stamp.new"
mv "$stamp.new" "$stamp"
say "done in $SECONDS s: $venv is ready"
