"""`tpu/jobset.yaml` against the structure that JobSet publishes, and what it starts."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from jaxft.cli.main import ALONE, TOGETHER
from jaxft.launch.supervise import PEER_LOST
from jaxft.launch.team import COMPUTATION_FAILED

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "tests" / "support" / "jobset.json").read_text())


@pytest.fixture
def jobset():
    return yaml.safe_load((ROOT / "tpu" / "jobset.yaml").read_text())


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


def test_it_has_the_structure_of_a_jobset(jobset):
    jsonschema.Draft7Validator(SCHEMA).validate(jobset)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda job: job.update(paralellism=4),
        lambda job: job["template"]["spec"]["containers"][0].pop("name"),
        lambda job: job["podFailurePolicy"]["rules"][0].update(onExitCodes={"values": "2"}),
    ],
)
def test_a_mistake_in_it_is_one(jobset, spoil):
    spoil(job_of(jobset))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft7Validator(SCHEMA).validate(jobset)


def test_it_starts_a_run_that_resumes_on_every_chip_of_the_slice(jobset):
    job = job_of(jobset)
    (container,) = job["template"]["spec"]["containers"]
    command, config, *words = container["args"]
    assert command == "train"
    assert command not in ALONE | TOGETHER
    assert "--resume" in words
    keys = [word.partition("=")[0] for word in words if "=" in word]
    assert keys == ["run.dir"]
    topology = job["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container["resources"]["limits"]["google.com/tpu"]
    assert job["parallelism"] == job["completions"] == rows * columns // chips
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    assert config.startswith(mounts["config"])


def test_only_a_mistake_of_the_user_ends_it(jobset):
    (rule,) = job_of(jobset)["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [2]
    assert not {PEER_LOST, COMPUTATION_FAILED} & set(rule["onExitCodes"]["values"])
    assert job_of(jobset)["backoffLimit"] == 0, "a lost host ends its job, and JobSet starts all"
