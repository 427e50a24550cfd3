#!/usr/bin/env bash
# Pages of the embedded LibreOffice help with their applications, as data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.classification.prepare_help_pages "$@"
