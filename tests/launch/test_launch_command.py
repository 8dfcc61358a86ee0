"""`jaxft launch`: what runs on which host, its exit codes, and its end by a signal."""

import os
import shlex
import signal
import subprocess
import sys
import time

import pytest

from jaxft.cli.main import main
from jaxft.launch import hosts
from jaxft.launch.hosts import commands_of, run_on

FAKE_SSH = """#!/bin/sh
echo "$3" >> "$HOSTS_FILE"
exec sh -c "$4"
"""


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """An ssh that runs its command here; the file with the hosts that it was given."""
    script = tmp_path / "bin" / "ssh"
    script.parent.mkdir()
    script.write_text(FAKE_SSH)
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOSTS_FILE", str(tmp_path / "hosts"))
    return tmp_path / "hosts"


def test_a_dry_run_prints_what_runs_on_which_host(capsys, tmp_path, monkeypatch, ssh):
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    words = ["train", "c.yaml", "run.name=a b", "--resume"]
    assert main(["launch", "--hosts", "me@one,two", "--port", "9000", "--dry-run", *words]) == 0
    lines = capsys.readouterr().out.splitlines()
    for number, (host, line) in enumerate(zip(["me@one", "two"], lines, strict=True)):
        assert shlex.split(line) == [
            f"{host}:",
            *("cd", str(folder), "&&", "exec", "env", "JAX_COORDINATOR_ADDRESS=one:9000"),
            *("JAX_NUM_PROCESSES=2", f"JAX_PROCESS_ID={number}"),
            *(sys.executable, "-m", "jaxft", *words),
        ]
    assert not ssh.exists()


@pytest.mark.parametrize(
    ("named", "sentence"),
    [
        ("one,,two", "--hosts: '' is not the name of a host"),
        ("one,-oProxyCommand=x", "'-oProxyCommand=x' is not the name of a host"),
        ("one,two,one", "--hosts: one is named twice"),
    ],
)
def test_hosts_that_are_none(named, sentence, capsys):
    assert main(["launch", "--hosts", named, "--dry-run", "train", "c.yaml"]) == 2
    assert sentence in capsys.readouterr().err


def test_the_first_bad_exit_code_is_the_commands(ssh):
    commands = {"one": "cd / && exec true", "two": "cd / && exec sh -c 'exit 75'"}
    assert run_on(commands) == 75
    assert sorted(ssh.read_text().split()) == ["one", "two"]
    assert run_on({"one": "cd / && exec true"}) == 0


def test_the_processes_know_their_places(ssh, tmp_path, monkeypatch):
    """Each gets its number, as a process that jaxft starts reads it."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\necho "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES" > {tmp_path}/$3\n')
    script.chmod(0o755)
    commands = commands_of(["one", "two"], ["said"])
    for number, (host, command) in enumerate(commands.items()):
        assert run_on({host: command}) == 0
        assert (tmp_path / "said").read_text() == f"{number} of 2\n"


def test_a_signal_lets_all_stop(ssh, tmp_path):
    """Each process gets SIGTERM once, and its exit code is that of the command."""
    line = f"trap 'echo stopped > {tmp_path}/$0; exit 143' TERM; echo > {tmp_path}/up-$0; "
    line += "while :; do sleep 0.05; done"
    commands = {name: shlex.join(["exec", "sh", "-c", line, name]) for name in ("a", "b")}
    code = f"import sys\nfrom jaxft.launch.hosts import run_on\nsys.exit(run_on({commands!r}))"
    launcher = subprocess.Popen([sys.executable, "-c", code])
    end = time.monotonic() + 60
    while not all((tmp_path / f"up-{name}").exists() for name in commands):
        assert time.monotonic() < end
        time.sleep(0.05)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 143
    assert all((tmp_path / name).read_text() == "stopped\n" for name in commands)
    assert hosts.SSH[0] == "ssh"
