"""Folders of checkpoints: of a repository on the Hugging Face hub, or inside a package."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jaxft.errors import NEAR, UserError, did_you_mean, nearest


def download(repo: str, revision: str | None, patterns: Sequence[str], cache: str | None) -> str:
    """Return the folder of a hub snapshot that holds the files of `patterns`.

    Raises:
        UserError: there is no such repository or revision, or no way to reach it.
    """
    where = f"model.checkpoint: '{repo}'" + (f" at revision '{revision}'" if revision else "")
    try:
        return huggingface_hub.snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), cache_dir=cache
        )
    except GatedRepoError:
        raise UserError(f"{where} needs a log-in.", "Run `hf auth login`.") from None
    except RevisionNotFoundError:
        raise UserError(f"{where} is not on the hub: no such revision.") from None
    except RepositoryNotFoundError:
        sentence = f"{where} is neither a folder nor a repository on the hub."
        raise UserError(sentence, _near_folder(repo)) from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{where} is neither a folder nor in the hub's cache, and the hub is out of reach.",
            _near_folder(repo) or _offline_hint(),
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{where} could not be fetched from the hub ({error}).") from None


def _offline_hint() -> str:
    """Return what to check where the hub is out of reach."""
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return "Check the spelling, or unset HF_HUB_OFFLINE, which keeps jaxft off the network."
    return "Check the spelling and the network."


def _near_folder(name: str) -> str:
    """Return a hint with a local folder that has nearly a checkpoint's name; empty if none."""
    path = Path(name)
    if not path.parent.is_dir():
        return ""
    folders = [one.name for one in path.parent.iterdir() if one.is_dir()]
    close = nearest(path.name, folders, cutoff=NEAR)
    return f"Did you mean the folder '{path.parent / close[0]}'?" if close else ""


def package_folder(checkpoint: str) -> Path:
    """Return the folder of `package:module/path`, found without running the package.

    Raises:
        UserError: there is no such package, or no such folder in it.
    """
    top, _, inside = checkpoint.removeprefix("package:").partition("/")
    if not top.isidentifier() or ".." in Path(inside).parts or Path(inside).is_absolute():
        raise UserError(
            f"model.checkpoint: '{checkpoint}' is not a path inside a package.",
            "Write package:module/path, with a top-level module and no '..'.",
        )
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"model.checkpoint: no package '{top}' is installed.", "Install it with pip."
        )
    for location in spec.submodule_search_locations:
        root = Path(location).resolve()
        folder = (root / inside).resolve()
        if folder.is_dir():
            if not folder.is_relative_to(root):
                raise UserError(f"model.checkpoint: '{checkpoint}' leads out of the package.")
            return folder
    folders = [path.name for path in root.iterdir() if path.is_dir()]
    raise UserError(
        f"model.checkpoint: the package '{top}' has no folder '{inside}'.",
        did_you_mean(inside, folders),
    )
