"""jaxft: fine-tune Hugging Face checkpoints in JAX, layer by layer, and back to Hugging Face.

The Python face: `load`, `train`, `plan`, `study`, `Run` and `Study`. Each is imported when first
asked for, so that `import jaxft` and `jaxft --help` stay quick.
"""

from importlib import import_module

_FACE = {
    "load": "jaxft.models.load",
    "Model": "jaxft.models.load",
    "train": "jaxft.training.story",
    "Run": "jaxft.training.story",
    "plan": "jaxft.planning.plan",
    "study": "jaxft.studies.study",
    "Study": "jaxft.studies.study",
    "load_config": "jaxft.config.load",
    "parse_config": "jaxft.config.load",
    "UserError": "jaxft.errors",
}
__all__ = sorted(_FACE)


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module 'jaxft' has no attribute '{name}'")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return __all__
