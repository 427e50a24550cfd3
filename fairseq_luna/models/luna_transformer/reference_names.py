"""Parameter names of the authors' implementation, and what they are called here.

What the source alone decides of their decoder lives in our encoder (`memory.SourceMemory`), the
rest is renamed. Their fixed positions are computed here, and norms that nothing reads are gone.
"""

import re
from typing import Collection, Dict, Optional

from torch import Tensor

_ENCODER_LAYER = {
    "self_attn.pq_proj": "self_attn.pack.query",
    "self_attn.pc_proj": "self_attn.pack.key_value.both",
    "self_attn.pk_proj": "self_attn.pack.key_value.key",
    "self_attn.pv_proj": "self_attn.pack.key_value.value",
    "self_attn.c_proj": "self_attn.key_value.both",
    "self_attn.k_proj": "self_attn.key_value.key",
    "self_attn.v_proj": "self_attn.key_value.value",
    "self_attn.q_proj": "self_attn.unpack.query",
    "self_attn.out_proj": "self_attn.unpack.out",
    "self_attn_layer_norm": "self_attn_residual.layer_norm",
    "self_atten_proj_layer_norm": "packed_residual.layer_norm",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    "final_layer_norm": "ffn_residual.layer_norm",
}

_DECODER_LAYER = {
    "self_attn.pc_proj": "self_attn.pack_key",
    "self_attn.c_proj": "self_attn.key_value.both",
    "self_attn.k_proj": "self_attn.key_value.key",
    "self_attn.v_proj": "self_attn.key_value.value",
    "self_attn.q_proj": "self_attn.query",
    "self_attn.out_proj": "self_attn.out",
    "self_attn_layer_norm": "self_attn_residual.layer_norm",
    "encoder_attn.q_proj": "cross_attn.query",
    "encoder_attn.out_proj": "cross_attn.out",
    "encoder_attn_layer_norm": "cross_attn_residual.layer_norm",
    "fc1": "ffn.fc1",
    "fc2": "ffn.fc2",
    "final_layer_norm": "ffn_residual.layer_norm",
}

_MEMORY_LAYER = {
    "self_attn.pq_proj": "causal_query",
    "encoder_attn.pq_proj": "pack.query",
    "encoder_attn.pc_proj": "pack.key_value.both",
    "encoder_attn.pk_proj": "pack.key_value.key",
    "encoder_attn.pv_proj": "pack.key_value.value",
    "encoder_attn.c_proj": "key_value.both",
    "encoder_attn.k_proj": "key_value.key",
    "encoder_attn.v_proj": "key_value.value",
    "encoder_atten_proj_layer_norm": "residual.layer_norm",
}

# module name with N for the layer's number -> ours, or None where we have no such thing
NAMES: Dict[str, Optional[str]] = {
    "encoder.version": None,
    "decoder.version": None,
    "encoder.projected_embeddings": "encoder.packed_embedding",
    "encoder.projected_positions": None,
    "encoder.layernorm_embedding": "encoder.embed_norm",
    "encoder.layernorm_porjected_embedding": "encoder.packed_norm",  # spelt so
    "decoder.layernorm_embedding": "decoder.embed_norm",
    "encoder.proj_layer_norm": "encoder.packed_layer_norm",
    "decoder.proj_layer_norm": None,
    **{f"encoder.layers.N.{k}": f"encoder.layers.N.{v}" for k, v in _ENCODER_LAYER.items()},
    **{f"decoder.layers.N.{k}": f"decoder.layers.N.{v}" for k, v in _DECODER_LAYER.items()},
    **{f"decoder.layers.N.{k}": f"encoder.memory.layers.N.{v}" for k, v in _MEMORY_LAYER.items()},
}


def rename_reference_parameters(state_dict: Dict[str, Tensor], known: Collection[str]) -> None:
    """Renames the authors' parameters in place; a checkpoint of ours is left as it is.

    Args:
        state_dict: parameters by name.
        known: our own parameter names. A norm that we do without, since nothing reads it, is
            dropped; every other unknown name stays for `load_state_dict` to complain about.
    """
    if "encoder.projected_embeddings" not in state_dict:
        return
    for name in list(state_dict):
        module, _, kind = name.rpartition(".")
        if kind not in ("weight", "bias"):
            module, kind = name, ""
        layer = re.search(r"\.layers\.(\d+)\.", module)
        key = re.sub(r"\.layers\.\d+\.", ".layers.N.", module)
        if key not in NAMES:
            continue
        value, renamed = state_dict.pop(name), NAMES[key]
        if renamed is None:
            continue
        renamed = renamed.replace(".N.", f".{layer.group(1)}.") if layer else renamed
        renamed = f"{renamed}.{kind}" if kind else renamed
        if renamed in known or not key.endswith("encoder_atten_proj_layer_norm"):
            state_dict[renamed] = value
