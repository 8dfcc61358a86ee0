"""Compiled programs in a bucket serve every host of a pod, and those that come in its place."""

import json
import os
import signal

import pytest

from jaxft.launch.supervise import PEER_LOST
from tests.support.bucket_server import serve
from tests.support.launch import cache, ended, events, launch_hosts, write_config  # noqa: F401
from tests.support.tiny import tiny_config

pytestmark = pytest.mark.usefixtures("cache", "ended")
BUCKET = "pod"
# The program is not what is looked at, and several processes compile it.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
SECONDS = "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"


def compiled(server):
    """Names of the programs in the bucket, without the hash of each."""
    names = [name for name in server.objects[BUCKET] if name.endswith("-cache")]
    return sorted(name.removeprefix("programs/").rsplit("-", 2)[0] for name in names)


@pytest.mark.full
def test_the_second_start_of_a_killed_run_compiles_no_step(tmp_path):
    config = tiny_config(
        tmp_path,
        data={"batch_size": 24},
        train={"length": 8, "log_every": 1},
        checkpoint={"every": 2},
    )
    file, run = write_config(config, tmp_path / "c.yaml"), tmp_path / "runs" / "tiny"
    with serve(BUCKET) as server:
        places = {"JAX_COMPILATION_CACHE_DIR": f"gs://{BUCKET}/programs", SECONDS: "0"}
        variables = {**server.environment(), **places, **QUICK}
        hosts = launch_hosts(tmp_path, 2, "train", file, **variables)
        hosts[0].until(lambda: any(event["step"] >= 5 for event in events(run, "train")))
        os.kill(hosts[1].child(), signal.SIGKILL)
        assert [host.end(60) for host in hosts] == [PEER_LOST, 128 + signal.SIGKILL]
        before = compiled(server)
        assert "jit_step" in before, before
        hosts = launch_hosts(tmp_path, 2, "train", file, "--resume", **variables)
        assert [host.end() for host in hosts] == [0, 0], hosts[0].said
        new = compiled(server)
        for name in before:
            new.remove(name)
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
    assert not new
