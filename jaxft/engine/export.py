"""The export story: a run as a Hugging Face folder that `transformers` loads."""

from __future__ import annotations

from pathlib import Path

from jaxft.engine.trained import Which, open_trained


def export(run: Path, out: Path | None = None, which: Which = "best") -> Path:
    """Write a run's model: config, weights and tokenizer.

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
    return trained.model.save(Path(trained.run.export) if out is None else out)
