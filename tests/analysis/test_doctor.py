"""`jaxft doctor`: each fault is found where it is made, and the exit code says so."""

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from jaxft.analysis import doctor
from jaxft.cli.main import main
from jaxft.device.libtpu import libtpu_mismatch
from jaxft.report import browser

ROOT = Path(__file__).parents[2]
GOOD = {"jax": "0.10.2", "jaxlib": "0.10.2", "flax": "0.12.8", "optax": "0.2.8"}


def found_in(findings):
    return {(one.name, one.state) for one in findings}


def test_this_machine_is_looked_at_and_left_alone(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    runs = tmp_path / "a" / "runs"
    assert main(["doctor", "--dir", str(runs), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sound"]
    said = {one["name"]: one for one in found["findings"]}
    assert said["devices"]["message"] == "8 x cpu (cpu)."
    assert said["versions"]["state"] == "ok"
    assert said[f"folder {runs}"]["message"] == "It can be written to, listed and deleted from."
    assert said["hub"]["message"].startswith("HF_HUB_OFFLINE")
    assert not (tmp_path / "a").exists()
    assert main(["doctor", "--dir", str(runs)]) == 0
    assert "written to, listed" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_to_is_exit_code_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "file").write_text("")
    assert main(["doctor", "--dir", str(tmp_path / "file")]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "It cannot be written to" in said
    assert "Check its permissions" in said


@pytest.mark.parametrize(
    ("needed", "change", "said"),
    [
        ((), {}, None),
        (("jax>=0.10.2",), {"jax": "0.9.0", "jaxlib": "0.9.0", "flax": "0.11"}, "jax 0.9.0 is not"),
        (("grain>=0.2",), {"grain": None}, "grain is not installed"),
        ((), {"jaxlib": "0.10.1"}, "jax 0.10.2 and jaxlib 0.10.1 are not from the same release"),
        ((), {"flax": "0.10.0"}, "jax 0.10.2 with flax 0.10.0: older flax"),
        ((), {"jinja2": "3.1.4"}, "its sandbox, in which chat templates run, is insecure"),
        (("torch>=9; extra == 'dev'",), {}, None),
        ((), {"libtpu": "0.0.1"}, "libtpu 0.0.1 is installed, and jax 0.10.2 pins libtpu==0.0."),
    ],
)
def test_versions_that_do_not_go_together(needed, change, said):
    findings = list(doctor.versions(needed, (GOOD | change).get))
    if said is None:
        assert found_in(findings) == {("versions", "ok")}
    else:
        assert said in findings[0].message
        assert findings[0].state == "wrong"


def test_a_mismatch_of_the_tpu_compiler_has_the_command_that_mends_it():
    pinned = SpecifierSet("==0.0.42.*")
    for version in ("0.0.42.1", "0.0.42", None):
        assert libtpu_mismatch({"libtpu": version, "jax": "0.10.2"}.get, pinned) is None
    fault, mend = libtpu_mismatch({"libtpu": "0.0.52", "jax": "0.10.2"}.get, pinned)
    assert fault == "libtpu 0.0.52 is installed, and jax 0.10.2 pins libtpu==0.0.42.*."
    assert mend == "Install it: pip install 'libtpu==0.0.42.*'"
    versions = GOOD | {"libtpu": "0.0.1"}
    assert next(iter(doctor.versions((), versions.get))).mend.startswith("Install it: pip install")


def test_the_compiler_of_plans_is_the_one_that_jax_pins():
    """A libtpu of today beside an older jax compiles until the program's text is read."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (plan,) = map(Requirement, asked["optional-dependencies"]["plan"])
    (jax,) = (one for one in map(Requirement, asked["dependencies"]) if one.name == "jax")
    assert (plan.name, plan.extras, plan.specifier) == ("jax", {"tpu"}, jax.specifier)
    (compiler,) = (one for one in map(Requirement, requires("jax")) if one.name == "libtpu")
    assert compiler.marker.evaluate({"extra": "tpu"})
    assert any(one.operator == "==" for one in compiler.specifier)


def test_a_look_that_fails_is_a_finding():
    def fails():
        raise RuntimeError("the TPU is\nin use")
        yield

    (finding,) = doctor._guarded("devices", fails)
    assert finding == doctor.Finding("devices", "wrong", "RuntimeError: the TPU is in use")
    assert not doctor.Diagnosis((finding,)).sound


def test_little_room_is_a_warning(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "FULL_DISK", 1e18)
    monkeypatch.setattr(doctor, "LITTLE_MEMORY", 1e18)
    assert [one.state for one in doctor.disk(str(tmp_path))] == ["warning"]
    assert [one.state for one in doctor.memory()] == ["warning"]
    monkeypatch.setattr(browser, "BROWSERS", ("no-such-browser",))
    assert [one.state for one in doctor.browser()] == ["warning"]


def test_a_hub_that_is_not_there_is_a_warning():
    (finding,) = doctor.hub({"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert finding.state == "warning"
    assert "cannot be reached" in finding.message


def test_a_password_in_the_hubs_address_is_not_shown():
    (finding,) = doctor.hub({"HF_ENDPOINT": "http://me:secret@127.0.0.1:9"})
    assert "http://127.0.0.1:9 cannot be reached" in finding.message
    assert "secret" not in str(finding)


# -------------------------------------------------------------------------------- the terminal


def test_help_imports_neither_a_config_nor_jax():
    """`jaxft --help` is quick by what it does not import; times are not tested."""
    code = """
import sys
import tomllib
from importlib.metadata import requires
from pathlib import Path
from jaxft.cli.main import main
assert main(["--help"]) == 0
heavy = {"jax", "numpy", "pydantic", "yaml", "plotly", "pyarrow"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "doctor" in done.stdout


def test_shells_complete_commands():
    words = {"_JAXFT_COMPLETE": "complete_bash", "COMP_WORDS": "jaxft doc", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "jaxft"], capture_output=True, text=True, env={**os.environ, **words}
    )
    assert done.stdout.split() == ["doctor"], done.stderr


def test_no_color_is_honoured(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    for value, coloured in (("", True), ("1", False)):
        monkeypatch.setenv("NO_COLOR", value)
        assert main(["doctor"]) == 0
        assert ("\x1b[32m" in capsys.readouterr().out) == coloured
