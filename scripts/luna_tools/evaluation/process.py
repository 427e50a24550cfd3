"""fairseq-generate or fairseq-interactive as generate.sh starts it: with models that take texts of any length.

The first word says which of them it is; the others are its options. It knows --bf16 too: fairseq's own turns on what is
for TPUs, and leaves the model in float32."""

import importlib
import sys
from typing import Any


def main() -> None:
    name = sys.argv.pop(1)
    bf16 = "--bf16" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--bf16"]
    import fairseq_luna  # noqa: F401, I001  before fairseq, whose importing alone has every library log its debug messages
    from fairseq import checkpoint_utils

    from fairseq_luna.generation.loading import lift_limits

    load = checkpoint_utils.load_model_ensemble

    def loaded(*args: Any, **options: Any) -> tuple:
        models, cfg = load(*args, **options)
        for model in models:
            lift_limits(model)
            if bf16:
                model.bfloat16()
        return models, cfg

    checkpoint_utils.load_model_ensemble = loaded
    importlib.import_module(f"fairseq_cli.{name}").cli_main()


if __name__ == "__main__":
    main()
