"""The site: its generated pages are current, its links lead somewhere, its lists are complete."""

import ast
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

import jaxft
from docs import reference_pages
from docs.site_hooks import examples_page, notebook_page, on_page_markdown
from jaxft.config.keys import describe_keys
from jaxft.errors import UserError

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def test_the_reference_pages_are_up_to_date():
    assert reference_pages.main(["--check"]) == 0, "make docs"


def test_a_reference_page_that_is_stale_is_seen_and_mended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(reference_pages, "FOLDER", tmp_path / "docs" / "reference")
    (tmp_path / "docs" / "reference").mkdir(parents=True)
    assert reference_pages.main(["--check"]) == 1
    assert "docs/reference/config.md is out of date: make docs" in capsys.readouterr().out
    assert reference_pages.main([]) == 0
    assert reference_pages.main(["--check"]) == 0
    with pytest.raises(UserError, match="no option"):
        reference_pages.main(["--chekc"])


def test_every_key_and_every_command_is_on_its_page():
    keys, commands = reference_pages.keys_page(), reference_pages.commands_page()
    assert [key.name for key in describe_keys() if f"| `{key.name}` |" not in keys] == []
    assert "| `optimizer.lr` | number | `5e-05` |" in keys
    assert "## task.kind=dpo" in keys
    assert "| `--resume` | Continue from the run's last checkpoint. |" in commands
    assert "## jaxft data describe" in commands


def test_every_public_name_is_on_the_page_of_the_api():
    page = (DOCS / "reference/api.md").read_text()
    assert sorted(re.findall(r"^::: jaxft\.(\w+)", page, re.MULTILINE)) == sorted(jaxft.__all__)


def test_links_beyond_the_docs_lead_to_pages_of_the_site():
    text = "[a](../SECURITY.md#limits) [b](../configs/ner.yaml) `[c](../x.py)` [d](runs.md) "
    page = SimpleNamespace(file=SimpleNamespace(src_uri="data.md"))
    there = "[a](project/SECURITY.md#limits) [b](reference/configs.md#neryaml) "
    assert on_page_markdown(text, page, None, None) == f"{there}`[c](../x.py)` [d](runs.md) "
    page.file.src_uri = "project/CHANGELOG.md"
    assert on_page_markdown("[a](docs/pods.md)", page, None, None) == "[a](../pods.md)"
    page.file.src_uri = "reference/api.md"
    assert on_page_markdown("[a](../../README.md)", page, None, None) == "[a](../index.md)"
    assert "\n## ner.yaml\n" in examples_page()
    page.file.src_uri = "index.md"
    there = "[a](notebooks/tpu.md)"
    assert on_page_markdown("[a](../notebooks/tpu.ipynb)", page, None, None) == there


def test_a_notebook_is_a_page_of_its_texts_and_its_code():
    page = notebook_page(ROOT / "notebooks/tpu.ipynb")
    assert page.startswith("# A TPU VM (v5e-8) from nothing\n")
    assert "\n```python\n!jaxft plan reviews_tpu.yaml --topology v5e:2x4\n```\n" in page


def test_a_link_to_a_file_without_a_page_is_a_warning(caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="data.md"))
    assert on_page_markdown("[a](../Makefile)", page, None, None) == "[a](../Makefile)"
    assert "docs/data.md links to ../Makefile" in caplog.text


def messages() -> str:
    """Every text in the package's source, one a line; what is filled in is `…`."""
    lines = []
    for path in (ROOT / "jaxft").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [n.value if isinstance(n, ast.Constant) else "…" for n in node.values]
                lines.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                lines.append(node.value)
    return "\n".join(lines)


def test_every_message_of_the_page_on_troubleshooting_is_one_of_jaxft():
    page = (DOCS / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(quoted) > 30
    source = messages()
    assert [text for text in quoted if text not in source] == []


def test_readme_is_short_and_its_tables_are_on_the_site():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    figures = (DOCS / "figures.md").read_text()
    commands = re.findall(r"`(python -m benchmarks\.\w+)[^`]*`", text)
    assert [command for command in commands if command not in figures] == []
