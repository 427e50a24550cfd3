#!/usr/bin/env bash
# Parallel text out of Debian's packages, as plain files for prepare-corpus.sh. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.debian.command "$@"
