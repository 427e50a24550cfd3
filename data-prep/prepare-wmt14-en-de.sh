#!/usr/bin/env bash
# WMT14 English-German, from the archives to data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.parallel.prepare_wmt14 "$@"
