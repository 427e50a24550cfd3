#!/usr/bin/env bash
# ListOps of the long-range arena, made anew, as data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.classification.prepare_listops "$@"
