#!/usr/bin/env bash
# Train by a YAML of configs/ on all GPUs of this machine, or of several. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.training.command "$@"
