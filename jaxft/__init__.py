"""jaxft: fine-tune Hugging Face checkpoints in JAX, layer by layer, and back to Hugging Face.

The Python face: `load`, `train`, `plan`, `study`, `Run` and `Study`. Each is imported when first
asked for, so that `import jaxft` and `jaxft --help` stay quick.
"""

from importlib import import_module

_FACE = {
    "load": "jaxft.models.registry",
    "Model": "jaxft.models.registry",
    "train": "jaxft.engine.train",
    "Run": "jaxft.engine.train",
    "plan": "jaxft.engine.plan",
    "study": "jaxft.engine.study",
    "Study": "jaxft.engine.study",
    "load_config": "jaxft.config",
    "parse_config": "jaxft.config",
    "UserError": "jaxft.errors",
}
__all__ = sorted(_FACE)


def __getattr__(name: str):
    if name not in _FACE:
        raise AttributeError(f"module 'jaxft' has no attribute '{name}'")
    return getattr(import_module(_FACE[name]), name)


def __dir__() -> list[str]:
    return __all__
