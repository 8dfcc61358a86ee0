"""The export story: a run as a Hugging Face folder that `transformers` loads."""

from __future__ import annotations

import json
from pathlib import Path

from jaxft.device.distributed import is_first, processes
from jaxft.engine.trained import ADAPTER, Trained, Which, open_trained
from jaxft.errors import UserError
from jaxft.export.card import CARD_MARK, checkpoint_name, model_card
from jaxft.export.sentences import write_sentence_files
from jaxft.models.adapters.low_rank import is_adapter
from jaxft.models.load_adapters import check_vocabulary, save_adapter
from jaxft.models.model import Model
from jaxft.models.weights.export import to_tensors
from jaxft.runs.folder import RUN_FILE
from jaxft.storage.files import place, resolved, write_atomic
from jaxft.storage.outputs import check_output, write_output


def export(
    run: Path, out: Path | None = None, which: Which = "best", adapter: bool = False
) -> Path:
    """Write a run's model: config, weights, tokenizer or image processor, and a model card.

    Parameters that never trained are written byte for byte as their checkpoint had them; an
    adapter is taken into the kernels that it is beside. Of several processes the first writes.

    Args:
        run: the run folder.
        out: the folder to write, new, empty or with an earlier export; when None, `RUN/export`,
            or `RUN/adapter` of an adapter.
        which: `best`, `last`, or a step.
        adapter: write the adapter, and the head that trained beside it, alone, as PEFT does.

    Returns:
        The folder.

    Raises:
        UserError: it is no run, or has no such checkpoint; or no adapter that PEFT could hold;
            the folder holds something else.
    """
    trained = open_trained(run, which, spread=True)
    if adapter:
        return _export_adapter(trained, out)
    model = trained.task.in_units(trained.model)
    folder = place(trained.run.export) if out is None else place(out)
    if not is_first():
        _read_whole(model)
        return folder
    # RUN/export is jaxft's, also one of a version that left no mark.
    own = resolved(folder) == resolved(trained.run.export)
    mark = b"" if own else CARD_MARK
    check_output(folder / "README.md", mark, "--out")
    card = model_card(trained)  # what it reads may be damaged
    model.save(folder, overwrite=own)
    write_output(folder / "README.md", card, mark, "--out")
    if trained.task.searches == "texts":
        write_sentence_files(trained, folder)
    files = trained.task.export_files(trained.model, trained.label_names)
    for name, content in files.items():
        write_atomic(folder / name, json.dumps(content, indent=2) + "\n")
    return folder


def _export_adapter(trained: Trained, out: Path | None) -> Path:
    if processes() > 1:
        raise UserError("An adapter is written by one process.", "Start it on one host.")
    model = trained.task.in_units(trained.model)
    if model.adapted is None:
        raise UserError(
            f"{trained.run.path}: the run has no adapter to export.",
            "Leave --adapter out.",
        )
    also = [n for n in trained.table.trainable if not is_adapter(n)]
    if model.dense is not None and (own := model.dense.leaves.keys() & set(also)):
        raise UserError(
            f"PEFT cannot store '{min(own)}', which was trained too and is behind the encoder.",
            "Export the whole model, without --adapter.",
        )
    about = trained.run.read_json(RUN_FILE)
    check_vocabulary(about.get("base", {}).get("grown", False))  # the run's copy has all words
    folder = place(trained.run.path / ADAPTER) if out is None else out
    base = checkpoint_name(about["checkpoint"]).partition("@")[0]
    return save_adapter(model, folder, base, also)


def _read_whole(model: Model) -> None:
    """Take part in the save of the first process, for which every parameter is gathered."""
    merged = model.merged()
    params, names, loaded = merged.params, merged.hf_names, merged.matching.loaded
    for _ in to_tensors(params, merged.dense.without(names) if merged.dense else names, loaded):
        continue
    if merged.dense is not None:
        merged.dense.stored(params, loaded)
