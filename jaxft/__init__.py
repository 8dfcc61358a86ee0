"""jaxft: fine-tune Hugging Face checkpoints in JAX, layer by layer, and back to Hugging Face.

The public names. Each is imported when first asked for, so that `import jaxft` and `jaxft --help`
stay quick. A run by its config: `train`, `plan`, `study`. A loop of one's own: `load`,
`layer_table`, `optimizer`, `init_state`, `make_step`, `batches`, `trained`; see docs/loop.md.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxft.config.load import Config, load_config, parse_config
    from jaxft.device.mesh import make_mesh
    from jaxft.engine.cost import count_flops
    from jaxft.engine.state import TrainState
    from jaxft.engine.trained import Run
    from jaxft.errors import UserError
    from jaxft.inference.predict import predict
    from jaxft.layerwise.groups import Group
    from jaxft.layerwise.table import LayerTable
    from jaxft.loop.batches import TextBatches, batches
    from jaxft.loop.recipe import layer_table, optimizer
    from jaxft.loop.step import LoopState, init_state, make_step, trained
    from jaxft.models.adapters.low_rank import Adapter
    from jaxft.models.load import load
    from jaxft.models.model import Model
    from jaxft.planning.plan import Plan, plan
    from jaxft.studies.study import Study, study
    from jaxft.training.story import train

_MODULES = {
    "Adapter": "jaxft.models.adapters.low_rank",
    "Config": "jaxft.config.load",
    "Group": "jaxft.layerwise.groups",
    "LayerTable": "jaxft.layerwise.table",
    "LoopState": "jaxft.loop.step",
    "Model": "jaxft.models.model",
    "Plan": "jaxft.planning.plan",
    "Run": "jaxft.engine.trained",
    "Study": "jaxft.studies.study",
    "TextBatches": "jaxft.loop.batches",
    "TrainState": "jaxft.engine.state",
    "UserError": "jaxft.errors",
    "batches": "jaxft.loop.batches",
    "count_flops": "jaxft.engine.cost",
    "init_state": "jaxft.loop.step",
    "layer_table": "jaxft.loop.recipe",
    "load": "jaxft.models.load",
    "load_config": "jaxft.config.load",
    "make_mesh": "jaxft.device.mesh",
    "make_step": "jaxft.loop.step",
    "optimizer": "jaxft.loop.recipe",
    "parse_config": "jaxft.config.load",
    "plan": "jaxft.planning.plan",
    "predict": "jaxft.inference.predict",
    "study": "jaxft.studies.study",
    "train": "jaxft.training.story",
    "trained": "jaxft.loop.step",
}
__all__ = [
    "Adapter",
    "Config",
    "Group",
    "LayerTable",
    "LoopState",
    "Model",
    "Plan",
    "Run",
    "Study",
    "TextBatches",
    "TrainState",
    "UserError",
    "batches",
    "count_flops",
    "init_state",
    "layer_table",
    "load",
    "load_config",
    "make_mesh",
    "make_step",
    "optimizer",
    "parse_config",
    "plan",
    "predict",
    "study",
    "train",
    "trained",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'jaxft' has no attribute '{name}'")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
