"""Upload of a run's export to the Hugging Face hub."""

from __future__ import annotations

import re
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError

from jaxft.engine.trained import Which
from jaxft.errors import UserError
from jaxft.export.export import export

REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def push(run: Path, repo: str, which: Which = "best", public: bool = False) -> str:
    """Export a run with its model card, upload the folder, and return the address of the commit.

    Args:
        run: the run folder.
        repo: `ORG/NAME` on the hub; made if it is not there.
        which: `best`, `last`, or a step.
        public: whether a new repository is public. One that exists stays as it is.

    Raises:
        UserError: the name is invalid, there is no token, the run cannot be exported, or the hub
            refuses or cannot be reached.
    """
    if not REPO.fullmatch(repo):
        raise UserError(f"'{repo}' is not the name of a repository.", "Write ORG/NAME.")
    token = huggingface_hub.get_token()
    if token is None:
        raise UserError(
            "There is no token for the Hugging Face hub.",
            "Run `hf auth login`, or set HF_TOKEN to a token that may write.",
        )
    folder = export(run, None, which)
    api = huggingface_hub.HfApi(token=token)
    try:
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=str(folder), commit_message=f"Upload {run.name} with jaxft"
        )
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        raise UserError(f"The hub refused to store {repo}: {reason.rstrip('.')}.") from None
    except OSError as error:
        raise UserError(
            f"{repo} could not be uploaded: the hub is out of reach ({type(error).__name__}).",
            f"Check the network and HF_HUB_OFFLINE; the export is in {folder}.",
        ) from None
    return str(commit.commit_url)
