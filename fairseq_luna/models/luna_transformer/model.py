"""The Luna Transformer as fairseq knows it: registration, building, checkpoints."""

from argparse import ArgumentParser
from typing import Any, Dict, Optional

import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import FairseqEncoderDecoderModel, register_model
from fairseq.models.transformer import TransformerModelBase
from torch import Tensor

from ...modules.linear import prepare_for_generation
from ...modules.quant_noise import add_noise
from ...modules.slot_info import SlotInfo
from ..checkpoints import LoadsPruned
from ..checks import check_cutoffs
from ..pruning import forget_unread_norms, prune_layers
from ..registration import register
from ..static_pass import Inputs
from ..training_graphs import Stack, TrainingGraphs, renewed, trains
from .architectures import CONFIGS, FORMER_CONFIGS
from .checks import checked
from .config import LunaTransformerConfig
from .decoder import LunaDecoder
from .memory import LunaTransformerEncoder
from .reference_names import rename_reference_parameters


@register_model("luna_transformer", dataclass=LunaTransformerConfig)
class LunaTransformerModel(LoadsPruned, FairseqEncoderDecoderModel):
    """Sequence-to-sequence Transformer with Luna attention throughout (arXiv 2106.01540)."""

    arch = "luna_transformer"
    inference_precision = "fp32"
    full_context_alignment = False  # fairseq looks here whether alignments need a pass of their own
    graphs: Optional[TrainingGraphs] = None  # of its training

    @classmethod
    def add_args(cls, parser: ArgumentParser) -> None:
        """Called by fairseq: adds the flags of all settings, without defaults.

        They are the same for every architecture. Made from the settings of one that is pre-norm, fairseq's
        --encoder-normalize-before would switch that off.
        """
        gen_parser_from_dataclass(parser, LunaTransformerConfig(), delete_default=True)

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
        settings = getattr(task, "cfg", None) or getattr(task, "args", None)  # of older tasks
        if getattr(settings, "left_pad_target", False) is True:
            raise ValueError(
                "--left-pad-target does not go with Luna, whose causal mean counts from the first target position; "
                "leave it out."
            )
        if cfg.share_all_embeddings and source != target:
            raise ValueError(
                f"--share-all-embeddings needs one dictionary, but the source has {len(source)} "
                f"words and the target {len(target)} others; prepare the data with "
                "--joined-dictionary, or use --share-decoder-input-output-embed."
            )
        check_cutoffs(cfg.adaptive_softmax_cutoff, target)
        build_embedding = TransformerModelBase.build_embedding
        encoder_embed = decoder_embed = build_embedding(cfg, source, cfg.encoder_embed_dim, cfg.encoder_embed_path)
        if not cfg.share_all_embeddings:
            decoder_embed = build_embedding(cfg, target, cfg.decoder_embed_dim, cfg.decoder_embed_path)
        model = cls(LunaTransformerEncoder(cfg, source, encoder_embed), LunaDecoder(cfg, target, decoder_embed))
        model.cfg = cfg
        model.inference_precision = cfg.inference_precision
        model.full_context_alignment = cfg.full_context_alignment
        if getattr(settings, "load_alignments", False):
            model.decoder.need_attn = model.encoder.packs_in_training = True  # the criterion reads it
        model.layers_to_keep = {"encoder": cfg.encoder_layers_to_keep, "decoder": cfg.decoder_layers_to_keep}
        if cfg.quant_noise_pq > 0:
            for stack in (model.encoder.layers, model.encoder.memory, model.decoder.layers):
                if stack is not None:
                    add_noise(stack, cfg.quant_noise_pq, cfg.quant_noise_pq_block_size)
        return model

    def forward(self, src_tokens: Tensor, src_lengths: Any, prev_output_tokens: Tensor, **kwargs: Any) -> Any:
        """As `LunaDecoder.forward`, whose arguments it takes, of a source (B, m) and a target (B, n).

        In training by CUDA graphs (models/training_graphs.py) there are no `inner_states`.
        With --full-context-alignment the attention, if asked for, is that of a second pass of the decoder.
        """
        features = None if kwargs.keys() - {"features_only"} else self.replay(src_tokens, prev_output_tokens)
        if features is not None:
            features_only = kwargs.get("features_only", False)
            return (features if features_only else self.decoder.output_layer(features)), {"attn": [None]}
        encoder_out = self.encoder(src_tokens, src_lengths)
        x, extra = self.decoder(prev_output_tokens, encoder_out, **kwargs)
        if self.full_context_alignment and extra["attn"][0] is not None:
            kwargs.update(features_only=True, full_context_alignment=True)
            extra["attn"] = self.decoder(prev_output_tokens, encoder_out, **kwargs)[1]["attn"]
        return x, extra

    def replay(self, source: Tensor, target: Tensor) -> Optional[Tensor]:
        """Features (B, n, D) of a batch in training by a graph; None where there is none, or more than them is read."""
        encoder, decoder = self.encoder, self.decoder
        asked = bool(decoder.need_attn) or encoder.packs_in_training
        if asked or not (encoder.captured and trains(self, encoder, decoder)):
            return None
        self.graphs = renewed(self.graphs, self.stack())
        return None if self.graphs is None else self.graphs.features(source, target)

    def stack(self) -> Stack:
        """What is captured of a training: all layers."""
        encoder, decoder = self.encoder, self.decoder

        def enter(source: Tensor, target: Tensor) -> Inputs:
            x, packed, padding, slots = encoder.enter(source)
            return [x, packed, decoder.embed(target, None), padding, *slots]

        def carry(x: Tensor, packed: Optional[Tensor], y: Tensor, padding: Tensor, *slots: Optional[Tensor]) -> Tensor:
            encoded = encoder.carry(x, packed, padding, SlotInfo(*slots))
            features, _, _ = decoder.carry(y, encoder.source_of(encoded, padding))
            return features

        parts = [part for part in (encoder.memory, decoder.layers, decoder.layer_norm) if part is not None]
        return Stack(encoder.parts() + parts, enter, carry, [encoder.dictionary, decoder.dictionary])

    def _apply(self, *args: Any, **kwargs: Any) -> "LunaTransformerModel":
        self.graphs = None  # with the memory of the weights that were there
        return super()._apply(*args, **kwargs)

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
        self.encoder.keeps_all_packs, self.decoder.uses_graphs = False, True
        # in float32 the encoder's products run once a sentence, too seldom for another layout in memory to pay
        whole = self.inference_precision != "fp32"
        prepare_for_generation(
            self if whole else self.decoder, self.decoder.embed_tokens.weight, self.inference_precision
        )

    def __prepare_scriptable__(self) -> "LunaTransformerModel":
        """Called by torch.jit.script, which has no types for what this model's operators hand to each other."""
        raise NotImplementedError(
            f"torch.jit.script does not take a {self.arch}: export a trained model as ONNX by scripts/export.sh."
        )

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str) -> None:
        """Called by fairseq on loading: accepts checkpoints of the authors' implementation, too."""
        own = self.state_dict()
        prune_layers(state_dict, self.layers_to_keep)  # while the layers have the authors' names
        rename_reference_parameters(state_dict, own.keys())
        if any(self.layers_to_keep.values()):
            forget_unread_norms(state_dict, own)
        shifts = [key for key in own if key.endswith("bias.shift")]
        if not any(key in state_dict for key in shifts):  # centres were not always learned
            state_dict.update((key, torch.zeros_like(own[key])) for key in shifts)
        # softmax attention did not always have what makes it local; with zeros it is as it was
        for key, value in own.items():
            if key.endswith((".self_attn.bias.sharpness", ".self_attn.bias.shift", ".self_attn.decaying")):
                state_dict.setdefault(key, torch.zeros_like(value))
        super().upgrade_state_dict_named(state_dict, name)


for _arch, _config in {**CONFIGS, **FORMER_CONFIGS}.items():
    register(_arch, _config, LunaTransformerModel, globals())
