#!/usr/bin/env bash
# Train, translate and score several models side by side, and report. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.study.command "$@"
