#!/usr/bin/env bash
# Make parallel text of your own ready for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.parallel.prepare_corpus "$@"
