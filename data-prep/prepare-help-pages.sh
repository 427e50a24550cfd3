#!/usr/bin/env bash
# Pages of the embedded LibreOffice help with their applications, as data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" "$root/data-prep/prepare_help_pages.py" "$@"
