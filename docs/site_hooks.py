"""The pages of the site that lie elsewhere in the repository, and the links to them.

MkDocs calls `on_files` and `on_page_markdown` (`hooks` in mkdocs.yml). A page in docs/ links to
files beyond docs/ by relative paths, so that its links work in the repository too; here these
become links to the pages that the site has of those files.
"""

from __future__ import annotations

import json
import logging
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# File of the repository -> page of the site.
PAGES = {
    "CHANGELOG.md": "project/CHANGELOG.md",
    "CONTRIBUTING.md": "project/CONTRIBUTING.md",
    "SECURITY.md": "project/SECURITY.md",
    "tpu/README.md": "tpu/README.md",
}
EXAMPLES = "reference/configs.md"
NOTEBOOKS = {
    f"notebooks/{path.name}": f"notebooks/{path.stem}.md"
    for path in sorted((ROOT / "notebooks").glob("*.ipynb"))
}
LINK = re.compile(r"(\]\(|(?:src|href)=\")((?!\w+:|#|/)[^)\s#\"]+)(#[^)\s\"]*)?(?=[)\"])")
CODE = re.compile(r"(^```.*?^```|`[^`\n]*`)", re.DOTALL | re.MULTILINE)
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages whose source lies outside docs/."""
    for source, page in PAGES.items():
        content = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    for source, page in NOTEBOOKS.items():
        files.append(File.generated(config, page, content=notebook_page(ROOT / source)))
    files.append(File.generated(config, EXAMPLES, content=examples_page()))
    return files


def notebook_page(path: Path) -> str:
    """Return a notebook as a page: its texts, and its code in blocks."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text)
    parts.insert(1, f"This page is `notebooks/{path.name}`, which the tests run.")
    return "\n\n".join(parts) + "\n"


def examples_page() -> str:
    """Return the page with every config of configs/, each under a heading of its file's name."""
    intro = (
        "# Configs\n\nThe configs that come with jaxft, complete; `configs/` has them as files.\n"
    )
    parts = [
        f"\n## {path.name}\n\n```yaml\n{path.read_text(encoding='utf-8').rstrip()}\n```\n"
        for path in sorted((ROOT / "configs").glob("*.yaml"))
    ]
    return intro + "".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return the page with its links to files outside docs/ turned into links within the site."""
    uri = page.file.src_uri
    if uri.startswith("from/"):  # two scripts side by side need the width of the table of contents
        page.meta["hide"] = ["toc"]
    source = next((path for path, name in PAGES.items() if name == uri), f"docs/{uri}")
    pieces = CODE.split(markdown)
    pieces[::2] = [
        LINK.sub(lambda match: _mended(match, source, uri), text) for text in pieces[::2]
    ]
    return "".join(pieces)


def _mended(match: re.Match[str], source: str, uri: str) -> str:
    """Return one link of the page `uri`, whose source is the file `source`, for the site."""
    before, target, anchor = match[1], match[2], match[3] or ""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if path.startswith("docs/"):
        there = path.removeprefix("docs/")
    elif path in PAGES or path in NOTEBOOKS:
        there = (PAGES | NOTEBOOKS)[path]
    elif path == "configs" or path.startswith("configs/"):
        there = EXAMPLES
        anchor = f"#{posixpath.basename(path).replace('.', '')}" if path != "configs" else ""
    elif path == "README.md":
        there = "index.md"
    else:
        log.warning("%s links to %s, which is not part of the site", source, target)
        return match[0]
    return f"{before}{posixpath.relpath(there, posixpath.dirname(uri) or '.')}{anchor}"
