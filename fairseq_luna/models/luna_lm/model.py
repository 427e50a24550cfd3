"""The Luna language model as fairseq knows it: registration, building, checkpoints."""

from argparse import ArgumentParser
from typing import Any

from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import FairseqLanguageModel, register_model
from fairseq.models.transformer import Embedding

from ...modules.linear import prepare_for_generation
from ...modules.quant_noise import add_noise
from ..checkpoints import LoadsPruned
from ..checks import check_cutoffs
from ..registration import register
from .checks import checked
from .config import CONFIGS, LunaLanguageModelConfig
from .decoder import LunaLMDecoder


@register_model("luna_lm", dataclass=LunaLanguageModelConfig)
class LunaLanguageModel(LoadsPruned, FairseqLanguageModel):
    """A language model of Luna's causal attention alone, whose P is learned (arXiv 2106.01540, section 3.3)."""

    arch = "luna_lm"
    inference_precision = "fp32"

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Called by fairseq: adds the flags of all settings, without defaults."""
        gen_parser_from_dataclass(parser, LunaLanguageModelConfig(), delete_default=True)

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaLanguageModel":
        """Builds the model for a language modeling task.

        Args:
            cfg: settings, see `LunaLanguageModelConfig`.
            task: a fairseq task with a dictionary of what it reads and one of what it predicts.

        Raises:
            ValueError: if the settings make no model, or do not suit the task.
        """
        read, predicted = task.source_dictionary, task.target_dictionary
        cfg = checked(cfg)
        check_cutoffs(cfg.adaptive_softmax_cutoff, predicted)
        shared = cfg.share_decoder_input_output_embed and cfg.adaptive_softmax_cutoff is None
        if shared and len(read) != len(predicted):
            raise ValueError(
                f"--share-decoder-input-output-embed needs one dictionary, but {len(read)} words are read and "
                f"{len(predicted)} predicted; leave --output-dictionary-size out, or the sharing."
            )
        embed_tokens = Embedding(len(read), cfg.decoder_embed_dim, read.pad())
        model = cls(LunaLMDecoder(cfg, predicted, embed_tokens))
        model.cfg = cfg
        model.inference_precision = cfg.inference_precision
        model.layers_to_keep = {"decoder": cfg.decoder_layers_to_keep}
        if cfg.quant_noise_pq > 0:
            for stack in (model.decoder.layers, model.decoder.pack_queries):
                add_noise(stack, cfg.quant_noise_pq, cfg.quant_noise_pq_block_size)
        return model

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq before generating.

        Args:
            cfg: fairseq's whole configuration.

        Raises:
            ValueError: if --inference-precision does not suit the device or a --fp16 model.
        """
        super().prepare_for_inference_(cfg)
        prepare_for_generation(self, self.decoder.embed_tokens.weight, self.inference_precision)


for _arch, _config in CONFIGS.items():
    register(_arch, _config, LunaLanguageModel, globals())
