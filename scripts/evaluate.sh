#!/usr/bin/env bash
# Average, translate and score: from a trained run to its figures and table. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.evaluation.evaluate "$@"
