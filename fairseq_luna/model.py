"""The Luna Transformer as fairseq knows it: registration, building, checkpoints."""

from typing import Any, Dict, List, Optional

import torch
from fairseq.models import (
    FairseqEncoderDecoderModel,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from .checks import checked
from .config import ARCHITECTURES, LunaTransformerConfig
from .decoder import LunaDecoder
from .encoder import LunaEncoder
from .inference import prepare_products
from .layerdrop import forget_unread_norms, prune_layers
from .quant_noise import add_noise
from .reference_names import rename_reference_parameters


@register_model("luna_transformer", dataclass=LunaTransformerConfig)
class LunaTransformerModel(FairseqEncoderDecoderModel):
    """Sequence-to-sequence Transformer with Luna attention throughout (arXiv 2106.01540)."""

    inference_precision = "fp32"
    layers_to_keep: Dict[str, Optional[List[int]]] = {"encoder": None, "decoder": None}

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
        cutoffs = cfg.adaptive_softmax_cutoff
        if cutoffs is not None and cutoffs[-1] > len(target):
            raise ValueError(
                f"--adaptive-softmax-cutoff {','.join(map(str, cutoffs))} goes beyond the target's dictionary of "
                f"{len(target)} words; end at a smaller one."
            )
        build_embedding = TransformerModelBase.build_embedding
        encoder_embed = decoder_embed = build_embedding(cfg, source, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        if not cfg.share_all_embeddings:
            decoder_embed = build_embedding(cfg, target, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        model = cls(LunaEncoder(cfg, source, encoder_embed), LunaDecoder(cfg, target, decoder_embed))
        model.inference_precision = cfg.inference_precision
        model.layers_to_keep = {"encoder": cfg.encoder_layers_to_keep, "decoder": cfg.decoder_layers_to_keep}
        if cfg.quant_noise_pq > 0:
            for stack in (model.encoder.layers, model.encoder.memory, model.decoder.layers):
                if stack is not None:
                    add_noise(stack, cfg.quant_noise_pq, cfg.quant_noise_pq_block_size)
        return model

    def prepare_for_inference_(self, cfg: Any) -> None:
        """Called by fairseq before generating; leaves out what this generation does not read.

        That is the attention, where no alignment and no replacement of unknown words is asked for:
        whoever reads it all the same sets `model.decoder.need_attn = True` afterwards.

        Args:
            cfg: fairseq's whole configuration.

        Raises:
            ValueError: if --inference-precision does not suit the device or a --fp16 model.
        """
        super().prepare_for_inference_(cfg)
        asked = getattr(cfg, "generation", None)
        self.decoder.need_attn = bool(getattr(asked, "print_alignment", None)) or (
            getattr(asked, "replace_unk", None) is not None
        )
        weight, precision = self.decoder.embed_tokens.weight, self.inference_precision
        if weight.device.type == "cpu" and weight.dtype == torch.float32:
            # the encoder's products run once a sentence, too seldom for another layout in memory to pay
            prepare_products(self.decoder if precision == "fp32" else self, precision)
        elif precision != "fp32":
            raise ValueError(
                f"--inference-precision {precision} is for generation on a CPU from weights in float32, but they are "
                f"{str(weight.dtype)[6:]} on {weight.device.type}; leave it out."
            )

    def load_state_dict(
        self, state_dict: Dict[str, Tensor], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """As fairseq's, which would prune layers by the settings: `upgrade_state_dict_named` has done so by then."""
        return super().load_state_dict(state_dict, strict)

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str) -> None:
        """Called by fairseq on loading: accepts checkpoints of the authors' implementation, and
        of other fairseq versions."""
        own = self.state_dict()
        prune_layers(state_dict, self.layers_to_keep)
        rename_reference_parameters(state_dict, own.keys())
        if any(self.layers_to_keep.values()):
            forget_unread_norms(state_dict, own)
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
