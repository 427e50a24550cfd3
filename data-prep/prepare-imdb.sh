#!/usr/bin/env bash
# Film reviews with their sentiment, as bytes, as data for fairseq-train. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/../scripts/env.sh"
exec "$python" -m luna_data.classification.prepare_imdb "$@"
