#!/usr/bin/env bash
# Train classifiers of long texts and compare them, or classify texts. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.classification.command "$@"
