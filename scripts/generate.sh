#!/usr/bin/env bash
# Translate a subset of a run's data with its model, or with those of several runs. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.evaluation.generate "$@"
