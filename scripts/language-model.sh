#!/usr/bin/env bash
# Train language models on the embedded corpus, measure their perplexity, let them write. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
reuse_memory
exec "$python" -m luna_tools.language_model.command "$@"
