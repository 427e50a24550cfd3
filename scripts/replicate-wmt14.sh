#!/usr/bin/env bash
# WMT14 English-German from the archives to the table: data, training, evaluation. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec "$python" -m luna_tools.replicate "$@"
