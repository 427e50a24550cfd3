#!/usr/bin/env bash
# Translate text, line for line, with a model that quickstart.sh trained. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" "$root/scripts/translate.py" "$@"
