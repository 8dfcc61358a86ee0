"""The public names: each is there, typed, and imported only when it is asked for."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxft

INIT = Path(jaxft.__file__)


def test_every_name_is_there_and_imported_for_type_checkers_too():
    """Three lists of the same names, of which a type checker reads the first."""
    tree = ast.parse(INIT.read_text())
    (checked,) = (node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == jaxft._MODULES
    assert sorted(typed) == sorted(jaxft.__all__) == sorted(dir(jaxft))
    for name in jaxft.__all__:
        assert getattr(jaxft, name).__doc__, name


@pytest.mark.parametrize("call", [jaxft.train, jaxft.plan, lambda one: jaxft.study(one, {})])
def test_a_path_in_place_of_a_config_is_refused(call):
    with pytest.raises(jaxft.UserError, match=r"the config is a str\. Pass jaxft\.load_config"):
        call("mine.yaml")


def test_a_study_of_nothing_is_refused():
    config = jaxft.load_config(INIT.parents[1] / "configs" / "sentiment.yaml")
    with pytest.raises(jaxft.UserError, match="no key is varied"):
        jaxft.study(config, {})


def test_the_package_says_that_it_is_typed():
    assert (INIT.parent / "py.typed").exists()
    assert '"py.typed"' in (INIT.parents[1] / "pyproject.toml").read_text()


def test_importing_jaxft_imports_no_jax():
    program = "import sys, jaxft; print(sorted({'jax', 'optax', 'pydantic'} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
