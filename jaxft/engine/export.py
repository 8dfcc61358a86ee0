"""The export story: a run as a Hugging Face folder that `transformers` loads."""

from __future__ import annotations

from pathlib import Path

from jaxft.engine.card import model_card
from jaxft.engine.trained import Which, open_trained
from jaxft.files import write_atomic


def export(run: Path, out: Path | None = None, which: Which = "best") -> Path:
    """Write a run's model: config, weights, tokenizer or image processor, and a model card.

    Parameters that never trained are written byte for byte as their checkpoint had them.

    Args:
        run: the run folder.
        out: the folder to write; `RUN/export` when None.
        which: `best`, `last`, or a step.

    Returns:
        The folder.

    Raises:
        UserError: it is no run, or has no such checkpoint.
    """
    trained = open_trained(run, which)
    folder = trained.model.save(Path(trained.run.export) if out is None else out)
    write_atomic(folder / "README.md", model_card(trained))
    return folder
