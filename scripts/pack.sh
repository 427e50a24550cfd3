#!/usr/bin/env bash
# Put all that translating with a trained model needs into one file, to hand on. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec "$python" -m luna_tools.evaluation.pack "$@"
