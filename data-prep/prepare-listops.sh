#!/usr/bin/env bash
# ListOps of the long-range arena, made anew, as data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" "$root/data-prep/prepare_listops.py" "$@"
