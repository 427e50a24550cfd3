#!/usr/bin/env bash
# Translate text, line for line, with a model of quickstart.sh or train.sh, or several. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.evaluation.translate "$@"
