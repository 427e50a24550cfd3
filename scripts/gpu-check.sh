#!/usr/bin/env bash
# Tests and measures the plugin on a GPU, within minutes. `--help` lists the parts.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# A machine with a GPU often brings its own torch, and no network to set up another.
if python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; then
  python=python3
  export PYTHONPATH="$root/scripts${PYTHONPATH:+:$PYTHONPATH}"
else
  source "$root/scripts/env.sh"
fi
exec "$python" -m luna_tools.benchmark.gpu_check "$@"
