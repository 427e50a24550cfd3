"""What all models do when a checkpoint is loaded."""

from typing import Any, Dict, List, Optional

from torch import Tensor

from .pruning import prune_layers


class LoadsPruned:
    """Beside a fairseq model: leaves out layers on loading, and takes checkpoints of other fairseq versions."""

    layers_to_keep: Dict[str, Optional[List[int]]] = {}

    def load_state_dict(
        self, state_dict: Dict[str, Tensor], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """As fairseq's, which would prune layers by the settings: `upgrade_state_dict_named` has done so by then."""
        return super().load_state_dict(state_dict, strict)  # type: ignore[misc]

    def upgrade_state_dict_named(self, state_dict: Dict[str, Tensor], name: str) -> None:
        """Called by fairseq on loading, before anything is compared."""
        prune_layers(state_dict, self.layers_to_keep)
        for key, value in self.state_dict().items():  # type: ignore[attr-defined]
            # fairseq 0.12.2 keeps the dtype of its sinusoids in a buffer, later ones do not
            if key.endswith(".embed_positions._float_tensor"):
                state_dict.setdefault(key, value)
        super().upgrade_state_dict_named(state_dict, name)  # type: ignore[misc]
