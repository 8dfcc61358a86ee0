"""`make demo` from a clean clone, as a newcomer types it."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.full
def test_make_demo_from_a_clean_clone(tmp_path):
    clone = tmp_path / "jaxft"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    done = subprocess.run(["make", "demo"], cwd=clone, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    run = clone / "runs" / "sentiment"
    result = json.loads((run / "result.json").read_text())
    assert result["metrics"]["accuracy"] >= 0.80
    assert max(result["baselines"].values()) < 0.80
    assert (run / "export" / "model.safetensors").is_file()
    for said in ("runs/sentiment/result.json", "runs/sentiment/export", "report.html"):
        assert said in done.stdout
