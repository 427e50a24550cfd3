#!/usr/bin/env bash
# Average the last checkpoints of a run into a model to decode with. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec "$python" -m luna_tools.training.average "$@"
