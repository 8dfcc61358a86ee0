"""Files of a repository on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence

import huggingface_hub
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from jaxft.errors import UserError


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
        raise UserError(f"{where} is neither a folder nor a repository on the hub.") from None
    except LocalEntryNotFoundError:
        raise UserError(
            f"{where} is neither a folder nor in the hub's cache, and the hub is out of reach.",
            "Check the spelling and the network (HF_HUB_OFFLINE is honored).",
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise UserError(f"{where} could not be fetched from the hub ({error}).") from None
