#!/usr/bin/env bash
# Write a trained model as ONNX, to translate without torch and fairseq. `--help` lists the options.
set -euo pipefail
source "$(dirname "$0")/env.sh"
exec "$python" -m luna_tools.evaluation.export "$@"
