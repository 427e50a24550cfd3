#!/usr/bin/env bash
# Which sentences of the embedded corpus make up which page of the help, for prepare-help-pages.sh. `--help` tells more.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.help.index "$@"
