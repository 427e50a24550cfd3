#!/usr/bin/env bash
# WMT14 English-German, from the archives to data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" "$root/data-prep/prepare_wmt14.py" "$@"
