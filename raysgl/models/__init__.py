"""Models: where checkpoints are, what their config says, architectures, and how weights get into them.

`checkpoint`, `hf_config` and `registry` import no torch (the ingress and `raysgl check` use them); `loader.load_model` does.
"""

from raysgl.models.checkpoint import Checkpoint, resolve
from raysgl.models.hf_config import HFConfig, ModelError

__all__ = ["Checkpoint", "HFConfig", "ModelError", "resolve"]
