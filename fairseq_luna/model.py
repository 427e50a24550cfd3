"""The Luna Transformer as fairseq knows it: registration, building, checkpoints."""

from typing import Any, Dict

import torch
from fairseq.models import (
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from .config import ARCHITECTURES, LunaTransformerConfig, checked
from .decoder import LunaDecoder
from .encoder import LunaEncoder
from .inference import prepare_products
from .reference_names import rename_reference_parameters


@register_model("luna_transformer", dataclass=LunaTransformerConfig)
class LunaTransformerModel(FairseqEncoderDecoderModel):
    """Sequence-to-sequence Transformer with Luna attention throughout (arXiv 2106.01540)."""

    inference_precision = "fp32"
    full_context_alignment = False  # fairseq looks here whether alignments need a pass of their own

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LunaTransformerModel":
        """Builds the model for a translation task.

        Args:
            cfg: settings, see `LunaTransformerConfig`.
            task: a fairseq task with a source and a target dictionary.

        Raises:
            ValueError: if the settings make no model, or do not suit the task.
        """
        source, target = task.source_dictionary, task.target_dictionary
        cfg = checked(cfg)
        if getattr(getattr(task, "cfg", None), "left_pad_target", False) is True:
            raise ValueError(
                "--left-pad-target True does not go with Luna, whose causal mean counts from the "
                "first target position; leave it at its default, False."
            )
        if cfg.share_all_embeddings and source != target:
            raise ValueError(
                f"--share-all-embeddings needs one dictionary, but the source has {len(source)} "
                f"words and the target {len(target)} others; prepare the data with "
                "--joined-dictionary, or use --share-decoder-input-output-embed."
            )
        build_embedding = TransformerModelBase.build_embedding
        encoder_embed = decoder_embed = build_embedding(cfg, source, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        if not cfg.share_all_embeddings:
            decoder_embed = build_embedding(cfg, target, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        model = cls(LunaEncoder(cfg, source, encoder_embed), LunaDecoder(cfg, target, decoder_embed))
        model.inference_precision = cfg.inference_precision
        model.full_context_alignment = cfg.full_context_alignment
        if getattr(getattr(task, "cfg", None) or getattr(task, "args", None), "load_alignments", False):
            model.decoder.need_attn = True  # the criterion reads it
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Any, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        """As `LunaDecoder.forward`, whose arguments it takes, of a source (B, m) and a target (B, n).

        With --full-context-alignment the attention, if asked for, is that of a second pass of the decoder.
        """
        encoder_out = self.encoder(src_tokens, src_lengths)
        x, extra = self.decoder(prev_output_tokens, encoder_out, **kwargs)
        if self.full_context_alignment and extra["attn"][0] is not None:
            kwargs.update(features_only=True, full_context_alignment=True)
            extra["attn"] = self.decoder(prev_output_tokens, encoder_out, **kwargs)[1]["attn"]
        return x, extra

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq before generating; leaves out what this generation does not read.

        That is the attention, in a command that does not show it. A program may read it in every
        hypothesis: what fairseq loads for one (`from_pretrained`) has the configuration of the training,
        which names no --path. One that reads none sets `model.decoder.need_attn = False` afterwards.

        Args:
            cfg: fairseq's whole configuration.

        Raises:
            ValueError: if --inference-precision does not suit the device or a --fp16 model.
        """
        super().prepare_for_inference_(cfg)
        asked, command = (getattr(cfg, part, None) for part in ("generation", "common_eval"))
        self.decoder.need_attn = (
            getattr(command, "path", None) is None
            or bool(getattr(asked, "print_alignment", None))
            or getattr(asked, "replace_unk", None) is not None
            or bool(getattr(asked, "score_reference", False))  # other models of an ensemble have it
        )
        self.encoder.keeps_all_packs = False
        weight, precision = self.decoder.output_projection.weight, self.inference_precision
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            # the encoder's products run once a sentence, too seldom for another layout in memory to pay
            prepare_products(self.decoder if precision == "fp32" else self, precision)
        elif precision != "fp32":
            raise ValueError(
                f"--inference-precision {precision} is for generation on a CPU from weights in float32, but they are "
                f"{str(weight.dtype)[6:]} on {weight.device.type}; leave it out."
            )

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str) -> None:
        """Called by fairseq on loading: accepts checkpoints of the authors' implementation, and
        of other fairseq versions."""
        own = self.state_dict()
        rename_reference_parameters(state_dict, own.keys())
        for key in (f"{side}.embed_positions._float_tensor" for side in ("encoder", "decoder")):
            # fairseq 0.12.2 keeps the dtype of its sinusoids in a buffer, later ones do not
            if key in own:
                state_dict.setdefault(key, own[key])
        shifts = [key for key in own if key.endswith("bias.shift")]
        if not any(key in state_dict for key in shifts):  # centres were not always learned
            state_dict.update((key, torch.zeros_like(own[key])) for key in shifts)
        super().upgrade_state_dict_named(state_dict, name)


def _register(arch: str, settings: Dict[str, Any]) -> None:
    @register_model_architecture("luna_transformer", arch)
    def set_defaults(args: Any) -> None:
        for key, value in settings.items():
            setattr(args, key, getattr(args, key, value))


for _arch, _settings in ARCHITECTURES.items():
    # registering the model has registered the architecture of its name
    if _arch != "luna_transformer":
        _register(_arch, _settings)
