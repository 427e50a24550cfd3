#!/usr/bin/env bash
# Train, translate and score on the embedded English-German corpus. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.quickstart.command "$@"
