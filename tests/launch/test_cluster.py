"""Which process of how many one is, who is there, and who was the first to end."""

import os
import signal
import socket
import threading
import time

import pytest

from jaxft.cli.main import main
from jaxft.errors import UserError, opening
from jaxft.launch.cluster import Cluster, find_cluster, join_seconds
from jaxft.launch.roll import Member, answer_roll, call_roll
from jaxft.launch.team import STOPPED, End, cause, join
from tests.support.launch import free_ports

HOST = socket.gethostname()
ADDRESS = "10.0.0.2:8476"
GIVEN = {
    "JAX_COORDINATOR_ADDRESS": ADDRESS,
    "JAX_NUM_PROCESSES": "4",
    "JAX_PROCESS_ID": "3",
}


@pytest.fixture
def alone(monkeypatch):
    """A place for a cluster on this machine, whose roll is called for a second."""
    coordinator, supervisor = free_ports(2)
    monkeypatch.setenv("JAXFT_SUPERVISOR_PORT", str(supervisor))
    monkeypatch.setenv("JAXFT_JOIN_SECONDS", "1")
    return f"127.0.0.1:{coordinator}"


# -------------------------------------------------------------------------------- which one


def test_one_process_is_no_cluster():
    assert find_cluster(environment={}) is None
    assert find_cluster(processes=1, environment={}) is None
    assert find_cluster(ADDRESS, 1, 0, {}) is None
    assert find_cluster(environment={"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None
    assert find_cluster(environment={"TPU_WORKER_HOSTNAMES": "localhost"}) is None


def test_flags_go_before_the_environment():
    assert find_cluster(environment=GIVEN) == Cluster(ADDRESS, 4, 3)
    assert find_cluster("[::1]:80", 8, 0, GIVEN) == Cluster("[::1]:80", 8, 0)
    two = GIVEN | {"JAX_LOCAL_DEVICE_IDS": "0,2"}
    assert find_cluster(environment=two) == Cluster(ADDRESS, 4, 3, (0, 2))
    assert find_cluster(environment=Cluster(ADDRESS, 4, 3, (0, 2)).environment()).devices == (0, 2)


def test_slurm_and_open_mpi_are_asked(monkeypatch):
    slurm = {
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NODELIST": "node[1-2]",
        "SLURM_STEP_NUM_NODES": "2",
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "0",
    }
    mpi = {
        "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    }
    for name in (*slurm, *mpi):
        monkeypatch.delenv(name, raising=False)
    with monkeypatch.context() as patch:
        for name, value in slurm.items():
            patch.setenv(name, value)
        found = find_cluster(environment=slurm)
    assert (found.processes, found.process, found.devices) == (2, 1, None), "a task a node: all"
    assert found.address.startswith("node1:")
    for name, value in mpi.items():
        monkeypatch.setenv(name, value)
    found = find_cluster(environment=mpi)
    assert (found.processes, found.process, found.devices) == (2, 1, (1,)), "two a node: one each"
    assert found.address.startswith("10.96.0.1:")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"JAX_PROCESS_ID": ""}, "this process's number is missing"),
        ({"JAX_NUM_PROCESSES": "", "JAX_PROCESS_ID": ""}, "processes and this process's number is"),
        (
            {"JAX_PROCESS_ID": "4"},
            "There is no process 4 among 4 processes. They are numbered from 0",
        ),
        ({"JAX_PROCESS_ID": "-1"}, "JAX_PROCESS_ID must be a whole number, not '-1'."),
        ({"JAX_NUM_PROCESSES": "0", "JAX_PROCESS_ID": "0"}, "at least 1, not 0."),
        (
            {"JAX_COORDINATOR_ADDRESS": "host"},
            "The coordinator's address must be HOST:PORT, not 'host'",
        ),
        ({"JAX_COORDINATOR_ADDRESS": "host:0"}, "HOST:PORT, not 'host:0'"),
        ({"JAX_COORDINATOR_ADDRESS": "host:99999"}, "HOST:PORT, not 'host:99999'"),
        ({"JAX_LOCAL_DEVICE_IDS": "0-3"}, "must be numbers separated by commas, not '0-3'."),
    ],
)
def test_what_makes_no_sense_is_one_sentence(changed, said):
    with pytest.raises(UserError) as caught:
        find_cluster(environment=GIVEN | changed)
    assert said in " ".join(str(caught.value).split())


def test_seconds_to_join_are_a_number(monkeypatch):
    assert join_seconds() == 60
    monkeypatch.setenv("JAXFT_JOIN_SECONDS", "soon")
    with pytest.raises(
        UserError, match="JAXFT_JOIN_SECONDS must be a number of seconds, not 'soon'"
    ):
        join_seconds()


# --------------------------------------------------------------------------------- the roll


def together(*clusters, ended=(), seconds=1.0):
    """What the parents of some processes come to: who ended the run, or what was refused."""
    came = {}

    def one(number, cluster):
        try:
            with join(cluster, seconds) as team:
                for end in ended:
                    if end.process == cluster.process and end.code is not None:
                        team.tell(end)
                if any(end.process == cluster.process and end.code is None for end in ended):
                    return  # as one that dies
                team.wait()
                came[number] = team.first
        except UserError as error:
            came[number] = str(error)

    threads = [threading.Thread(target=one, args=pair) for pair in enumerate(clusters)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it hangs"
    return came


def of(address, processes):
    return [Cluster(address, processes, process) for process in range(processes)]


def test_who_is_missing_is_said_to_all(alone):
    first, _, third, _ = of(alone, 4)
    came = together(first, third)
    said = f"Processes 1, 3 of 4 did not start within 1 s; here: 0 on {HOST}, 2 on {HOST}."
    assert came == {0: said, 1: said}


def test_another_number_of_processes_is_said_to_all(alone):
    came = together(Cluster(alone, 2, 0), Cluster(alone, 3, 1))
    said = f"Process 1 on {HOST} was started with 3 processes, and process 0 on {HOST} with 2."
    assert came == {0: said, 1: said}


def test_one_that_is_started_twice_is_said_to_all(alone):
    came = together(Cluster(alone, 3, 0), Cluster(alone, 3, 1), Cluster(alone, 3, 1))
    assert len(set(came.values())) == 1
    assert came[0].startswith(f"Process 1 was started twice: on {HOST} (")


def test_who_calls_without_a_name_is_let_be(alone):
    def knock():
        for _ in range(100):
            try:
                with socket.create_connection(("127.0.0.1", supervisor), timeout=1) as line:
                    line.sendall(b"GET / HTTP/1.1\r\n\r\n")
                return
            except OSError:
                time.sleep(0.01)

    supervisor = int(os.environ["JAXFT_SUPERVISOR_PORT"])
    thread = threading.Thread(target=knock)
    thread.start()
    came = together(*of(alone, 2), ended=[End(0, 0, ""), End(1, 0, "")], seconds=10)
    thread.join()
    assert came == {0: None, 1: None}


def test_a_coordinator_that_is_not_there_is_one_sentence_and_no_hang(alone, tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text(
        "run: {name: a}\nmodel: {checkpoint: x}\ntask: {kind: text_classification}\n"
        "data: {train: 'csv:a.csv', eval: 'csv:b.csv', batch_size: 8}\n"
    )
    began = time.monotonic()
    words = ["--coordinator", alone, "--processes", "2", "--process-id", "1"]
    assert main(["train", str(config), *words]) == 2
    assert time.monotonic() - began < 10
    said = capsys.readouterr().err
    assert said.startswith(
        f"jaxft: Process 1 on {HOST} could not reach process 0 at 127.0.0.1, port"
    )
    assert "Connection refused. Is it running, and is the port open between the hosts?" in said


def test_a_port_that_is_taken_is_one_sentence(alone, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setenv("JAXFT_SUPERVISOR_PORT", str(port))
        came = together(Cluster(alone, 2, 0))
    assert came[0].startswith(f"Process 0 cannot listen on port {port}: Address already in use.")


# ------------------------------------------------------------------------- how it all ended


KILLED = End(2, -9, "was killed by signal 9 (SIGKILL)")
LOST = [End(process, -6, "lost touch with the others", (2,)) for process in (0, 1, 3)]


def test_all_that_end_well_end_well(alone):
    ends = [End(0, 0, ""), End(1, STOPPED, ""), End(2, 0, "")]
    assert together(*of(alone, 3), ended=ends) == {0: None, 1: None, 2: None}


def test_the_one_that_was_killed_is_named_to_all(alone):
    came = together(*of(alone, 4), ended=[*LOST, KILLED])
    assert came == dict.fromkeys(range(4), KILLED)


@pytest.mark.slow
def test_a_parent_that_is_gone_is_named_to_the_others(alone):
    gone = End(1, None, "is gone with its parent")
    assert together(*of(alone, 3), ended=[gone]) == {0: gone, 2: gone}
    first = End(0, None, "is gone with its parent")
    assert together(*of(alone, 3), ended=[first]) == {1: first, 2: first}


@pytest.mark.parametrize("silent", [0, 1])
def test_a_parent_that_is_silent_has_stopped_answering(silent, alone, monkeypatch):
    """Its connections stay open, as those of a stopped process do."""
    monkeypatch.setattr("jaxft.launch.team.ALIVE_SECONDS", 0.1)
    monkeypatch.setattr("jaxft.launch.team.SILENT_SECONDS", 1.0)
    monkeypatch.setattr("jaxft.launch.team.SETTLE_CONSEQUENCE", 0.1)
    clusters, over = of(alone, 3), threading.Event()

    def stop():
        roll = call_roll if silent == 0 else answer_roll
        _, lines = roll(clusters[silent], 10)
        over.wait(60)
        for line in lines.values() if silent == 0 else [lines]:
            line.close()

    thread = threading.Thread(target=stop)
    thread.start()
    others = [cluster for cluster in clusters if cluster.process != silent]
    came = together(*others, seconds=10)
    over.set()
    thread.join()
    assert came == dict.fromkeys((0, 1), End(silent, None, "stopped answering"))


def test_the_cause_is_told_from_what_follows_from_it():
    wrong = End(3, 2, "ended: No such file.")
    crashed = End(1, 1, "ended with exit code 1")
    gone = End(0, None, "is gone with its parent")

    def culprit(*ends):
        return cause({end.process: end for end in ends}).process

    assert culprit(*LOST[:2], KILLED) == 2
    assert culprit(LOST[0], crashed) == 1
    assert culprit(wrong, crashed, gone) == 3
    assert culprit(gone, LOST[1]) == 0
    silent = cause({end.process: end for end in LOST})
    assert (silent.process, silent.why) == (2, "stopped answering"), "whom all of them blame"


def test_an_end_is_fine_where_it_was_asked_for():
    assert End(0, 0, "").fine
    assert End(0, 128 + signal.SIGTERM, "").fine
    assert not End(0, -signal.SIGTERM, "").fine
    assert str(Member(3, 4, "host-3", 17)) == "process 3 on host-3"
    assert opening(str(Member(3, 4, "GPU-3", 17))) == "Process 3 on GPU-3"
