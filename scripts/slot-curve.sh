#!/usr/bin/env bash
# Quality and speed of a model by its tokens per slot. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.evaluation.slot_curve "$@"
