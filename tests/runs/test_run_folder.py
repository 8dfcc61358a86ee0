"""A run's folder is made, resumed and replaced without ever losing one by mistake."""

import json
import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

from jaxft.device.process import environment
from jaxft.errors import UserError
from jaxft.runs.folder import check_run, create_run, open_run
from jaxft.storage import files
from jaxft.studies.folder import check_study

CONFIG = {"run": {"name": "a"}, "optimizer": {"lr": 5e-5}, "groups": [{"name": "köpf"}]}


def create(folder, config=CONFIG, *, resume=False, overwrite=False, **facts):
    return create_run(config, "a", folder, resume=resume, overwrite=overwrite, facts=facts)


def content(folder: pathlib.Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


def test_a_new_run_is_complete_and_reads_back(tmp_path):
    facts = environment() | {"command": ["jaxft", "train"], "steps": 12}
    with create_run(CONFIG, "a", tmp_path, resume=True, overwrite=False, facts=facts) as run:
        assert not run.resumed
        assert run.path == tmp_path / "a"
    again = open_run(tmp_path / "a")
    assert again.config() == CONFIG
    about = again.read_json("run.json")
    assert {"name", "state", "started", "versions", "devices", "host"} <= set(about)
    assert (about["name"], about["state"], about["steps"]) == ("a", "running", 12)
    assert {"jaxft", "jax", "flax", "optax", "orbax-checkpoint", "python"} <= set(about["versions"])
    assert about["devices"]["platform"] == "cpu"
    assert about["devices"]["count"] == 8
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", about["started"])


def test_a_run_that_is_there_is_not_touched_without_a_flag(tmp_path):
    create(tmp_path, step=1).close()
    (tmp_path / "a" / "metrics.jsonl").write_text("{}\n")
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"a already holds a run\. Add --resume .* --overwrite"):
        create(tmp_path, step=2)
    with pytest.raises(UserError, match="exclude each other"):
        create(tmp_path, resume=True, overwrite=True)
    assert content(tmp_path) == before


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
def test_a_folder_with_something_else_is_not_touched_by_any_flag(tmp_path, flags):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"is not empty and holds no run .* neither --resume"):
        create(tmp_path, **flags)
    assert content(tmp_path) == before


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match="a is a file"):
        create(tmp_path)


def test_resume_keeps_the_first_facts_and_adds_its_own(tmp_path):
    with create(tmp_path, steps=10, host="one") as run:
        run.update(state="stopped")
    changed = {**CONFIG, "optimizer": {"lr": 1e-5}}
    with create(tmp_path, changed, resume=True, steps=99, host="two") as run:
        assert run.resumed
        assert run.config() == changed
        about = run.read_json("run.json")
    assert (about["steps"], about["host"], about["state"]) == (10, "one", "running")
    assert [(entry["steps"], entry["host"]) for entry in about["resumed"]] == [(99, "two")]


def leave_half_written(file):
    """What a kill within `write_atomic` leaves."""
    with files.written_aside(file) as aside:
        aside.write_text("{")
    file.rename(aside)


@pytest.mark.parametrize("flags", [{}, {"resume": True}, {"overwrite": True}])
@pytest.mark.parametrize("half", ["run.lock.owner", "config.yaml", "run.json"])
def test_a_kill_before_the_run_was_made_is_in_no_starts_way(tmp_path, half, flags):
    (tmp_path / "a").mkdir()
    for name in ("config.yaml", "run.lock", "run.lock.owner"):
        (tmp_path / "a" / name).write_text("")
    leave_half_written(tmp_path / "a" / half)
    assert not check_run("a", tmp_path, **{"resume": False, "overwrite": False} | flags)
    with create(tmp_path, **flags, steps=1) as run:
        assert not run.resumed
        assert run.config() == CONFIG


def test_what_another_left_half_written_is_not_taken_for_a_runs(tmp_path):
    (tmp_path / "a").mkdir()
    leave_half_written(tmp_path / "a" / "thesis.tex")
    with pytest.raises(UserError, match="is not empty and holds no run"):
        create(tmp_path, overwrite=True)


def test_overwrite_sets_the_old_run_aside_until_the_new_one_is_saved(tmp_path):
    create(tmp_path, steps=1).close()
    (tmp_path / "a" / "result.json").write_text("{}")
    with create(tmp_path, overwrite=True, steps=2) as run:
        (old,) = (path for path in tmp_path.iterdir() if path.name != "a")
        assert re.fullmatch(r"a\.old-\d{4}-\d\d-\d\dT\d{6}Z", old.name)
        assert (old / "result.json").exists()
        assert not (run.path / "result.json").exists()
        assert not run.resumed
    with create(tmp_path, resume=True) as run:  # killed before its first save, and resumed
        run.discard_old()
        assert os.listdir(tmp_path) == ["a"]
        run.discard_old()
    assert open_run(tmp_path / "a").read_json("run.json")["steps"] == 2


FOREIGN = ["../thesis/run", "{}/thesis/run", "b", "b.old-2026-01-01T000000Z", "", ".", 5, True, []]
FOREIGN += ["a.old-x", "a.old-2026-01-01T000000Z/../b", "a.old-2026-01-01T000000Z\n", {"a": 1}]


@pytest.mark.parametrize("old", FOREIGN)
def test_a_run_file_that_would_delete_another_folder_is_refused(tmp_path, old):
    folder = tmp_path / "runs"
    for path in (tmp_path / "thesis" / "run", folder / "b", folder / "b.old-2026-01-01T000000Z"):
        path.mkdir(parents=True)
        (path / "run.json").write_text("{}")
        (path / "thesis.tex").write_text("years of work")
    with create(folder) as run:
        old = old.format(tmp_path) if isinstance(old, str) else old
        run.update(replaces=old, state="stopped")
        before = content(tmp_path)
        with pytest.raises(UserError, match=r"run\.json: .* is not a run that this one replaced"):
            run.discard_old()
        assert content(tmp_path) == before
    before = content(tmp_path)
    with pytest.raises(UserError, match=r"Set 'replaces' to null; nothing was deleted"):
        create(folder, resume=True)
    assert content(tmp_path) == before


def test_a_link_in_place_of_the_old_run_is_refused(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "run.json").write_text("{}")
    with create(tmp_path) as run:
        (tmp_path / "a.old-2026-01-01T000000Z").symlink_to(tmp_path / "thesis")
        run.update(replaces="a.old-2026-01-01T000000Z")
        before = content(tmp_path)
        with pytest.raises(UserError, match="is not a run that this one replaced"):
            run.discard_old()
        assert content(tmp_path) == before


def test_a_link_is_refused_before_it_would_be_replaced(tmp_path):
    create(tmp_path / "scratch").close()
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "a").symlink_to(tmp_path / "scratch" / "a")
    before = content(tmp_path)
    with pytest.raises(
        UserError, match=r"runs/a is a symbolic link, which --overwrite does not replace"
    ):
        create(tmp_path / "runs", overwrite=True)
    assert content(tmp_path) == before
    create(tmp_path / "runs", resume=True).close()


def test_overwrite_where_nothing_is_makes_a_run(tmp_path):
    with create(tmp_path, overwrite=True) as run:
        run.discard_old()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("flag", ["resume", "overwrite"])
def test_a_run_in_which_a_process_trains_is_left_alone(tmp_path, flag):
    code = """
        import sys, time
        from jaxft.runs.folder import create_run
        run = create_run({}, "a", sys.argv[1], resume=False, overwrite=False, facts={})
        print("running", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout.readline() == "running\n"
        before = content(tmp_path)
        with pytest.raises(UserError, match=rf"is in use by process {training.pid} on "):
            create(tmp_path, **{flag: True})
        assert content(tmp_path) == before
        training.kill()
    create(tmp_path, **{flag: True}).close()


@pytest.mark.parametrize("name", ["", "..", "a/b", "../a", "a.old-2026"])
def test_a_name_is_a_folders_name(tmp_path, name):
    with pytest.raises(UserError, match=r"run\.name: "):
        check_run(name, tmp_path, resume=False, overwrite=False)


def test_a_folder_that_is_no_run_names_the_runs_near_it(tmp_path):
    create(tmp_path / "runs").close()
    with pytest.raises(UserError, match=r"runs is not a run folder.* Runs in it: a\."):
        open_run(tmp_path / "runs")
    with pytest.raises(UserError, match=r"There is no run folder .*b\. `jaxft train"):
        open_run(tmp_path / "runs" / "b")
    with pytest.raises(UserError, match="There is no run folder"):
        open_run(tmp_path / "nowhere" / "b")


@pytest.mark.parametrize(
    ("name", "facts", "sentence"),
    [
        ("run.json", {"labels": 5}, "labels: Input should be a valid list"),
        ("run.json", {"labels": ["a", 5]}, "labels.1: Input should be a valid string"),
        ("run.json", {"base": 5}, "base: Input should be a valid dictionary"),
        ("run.json", {"data": 5}, "data: Input should be a valid list"),
        ("run.json", {"data": [{"labels": {"a": "x"}}]}, "data.0.labels.a: Input should be"),
        ("run.json", [], "its content: Input should be a valid dictionary"),
        ("result.json", {"metrics": {"loss": "x"}}, "metrics.loss: Input should be a valid number"),
    ],
)
def test_values_of_another_type_are_named(tmp_path, name, facts, sentence):
    run = create(tmp_path)
    run.close()
    (run.path / "digests.json").unlink()  # as it may be in a run folder of somebody else
    (run.path / name).write_text(json.dumps(facts))
    with pytest.raises(UserError) as caught:
        open_run(run.path).read_json(name)
    assert f"{run.path / name} does not have the format that jaxft writes" in str(caught.value)
    assert sentence in str(caught.value)


def test_a_config_with_aliases_is_refused_and_none_is_written(tmp_path):
    shared = [1, 2]
    run = create(tmp_path, {"run": {"name": "a"}, "one": shared, "two": shared})
    run.close()
    assert open_run(run.path).config()["two"] == shared
    (run.path / "digests.json").unlink()
    for text in ("a: &a [x]\nb: [*a, *a]", "a: &a {b: *a}"):
        (run.path / "config.yaml").write_text(text)
        with pytest.raises(UserError, match=r"config\.yaml is not YAML: an alias \(\*a\)"):
            open_run(run.path).config()


def test_broken_files_of_a_run_are_named(tmp_path):
    run = create(tmp_path)
    run.close()
    with pytest.raises(UserError, match=r"a has no result\.json"):
        run.read_json("result.json")
    (run.path / "digests.json").unlink()
    (run.path / "result.json").write_text('{"half')
    with pytest.raises(UserError, match=r"result\.json is not JSON"):
        run.read_json("result.json")
    (run.path / "config.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"config\.yaml is not YAML"):
        run.config()


def test_json_is_written_whole_and_never_as_nan(tmp_path):
    with create(tmp_path) as run:
        run.write_json("result.json", {"metrics": {"accuracy": 0.5}, "note": "schön"})
        with pytest.raises(ValueError, match="not JSON compliant"):
            run.write_json("result.json", {"accuracy": float("nan")})
        assert json.loads((run.path / "result.json").read_text())["note"] == "schön"


def test_a_study_that_is_a_link_is_refused_before_it_would_be_replaced(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "scratch" / "study.json").write_text("{}")
    (tmp_path / "a").symlink_to(tmp_path / "scratch")
    with pytest.raises(
        UserError, match=r"a is a symbolic link, which --overwrite does not replace"
    ):
        check_study("a", tmp_path, resume=False, overwrite=True)
    assert check_study("a", tmp_path, resume=True, overwrite=False)


# --------------------------------------------------------------------- digests, and what is left


def test_a_changed_file_is_named_and_a_folder_without_digests_opens(tmp_path):
    with create(tmp_path, labels=["a", "b"]) as run:
        run.write_json("result.json", {"split": "eval", "step": 3})
    again = open_run(run.path)
    assert again.read_json("result.json")["step"] == 3
    (run.path / "result.json").write_text('{"split": "eval", "step": 4}')
    (run.path / "config.yaml").write_text("run: {name: b}\n")
    for read in (lambda: again.read_json("result.json"), again.config):
        with pytest.raises(UserError, match=r"is damaged.* Restore it .* delete .*digests\.json"):
            read()
    (run.path / "digests.json").unlink()
    assert again.read_json("result.json")["step"] == 4


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"sha256": "0", "files": {}}', None])
def test_damaged_digests_are_a_sentence(tmp_path, content):
    create(tmp_path).close()
    path = tmp_path / "a" / "digests.json"
    path.unlink()
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UserError, match=r"digests\.json is damaged\. Restore it from a copy, or"):
        open_run(tmp_path / "a").config()


def test_a_process_killed_between_digest_and_file_leaves_no_damage(tmp_path, monkeypatch):
    create(tmp_path, steps=1).close()
    with monkeypatch.context() as patch:
        write = files.write_atomic

        def killed(path, content):
            if pathlib.Path(path).name != "digests.json":
                raise KeyboardInterrupt
            write(path, content)

        patch.setattr(files, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            open_run(tmp_path / "a").update(state="finished")
    run = open_run(tmp_path / "a")
    assert run.read_json("run.json")["state"] == "running"
    for state in ("stopped", "finished"):
        run.update(state=state)
        assert open_run(tmp_path / "a").read_json("run.json")["state"] == state


def test_a_run_that_a_killed_overwrite_set_aside_is_put_back(tmp_path):
    create(tmp_path, steps=1).close()
    (tmp_path / "a").rename(tmp_path / "a.old-2026-01-01T000000Z")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.lock").write_text("")
    with pytest.raises(UserError, match="a already holds a run"):
        create(tmp_path, steps=2)
    assert os.listdir(tmp_path) == ["a"]
    assert open_run(tmp_path / "a").read_json("run.json")["steps"] == 1


def test_an_overwrite_that_cannot_begin_puts_the_old_run_back(tmp_path, monkeypatch):
    create(tmp_path, steps=1).close()

    def full(path, content):
        raise UserError("Cannot write: No space left on device.")

    monkeypatch.setattr("jaxft.runs.digests.files.write_atomic", full)
    with pytest.raises(UserError, match="No space left"):
        create(tmp_path, overwrite=True, steps=2)
    assert os.listdir(tmp_path) == ["a"]
    assert open_run(tmp_path / "a").read_json("run.json")["steps"] == 1


def test_a_run_that_fails_says_so_and_where_the_old_one_is(tmp_path):
    create(tmp_path, steps=1).close()
    with pytest.raises(MemoryError) as caught, create(tmp_path, overwrite=True, steps=2):
        raise MemoryError
    (old,) = (path.name for path in tmp_path.iterdir() if path.name != "a")
    assert caught.value.__notes__ == [
        f"The run that this one was to replace is in {tmp_path / old}."
    ]
    assert open_run(tmp_path / "a").read_json("run.json")["state"] == "failed"


def test_runs_replaced_before_their_first_save_are_deleted_together(tmp_path, monkeypatch):
    for second in range(3):
        moment = f"2026-01-01T00:00:0{second}Z"
        monkeypatch.setattr("jaxft.runs.kinds.utc_now", lambda moment=moment: moment)
        create(tmp_path, overwrite=True, steps=second).close()
    assert len(os.listdir(tmp_path)) == 3
    with create(tmp_path, resume=True) as run:
        run.discard_old()
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("content", ["{}", '{"state": "done"}', "[]", "half"])
def test_a_run_file_of_something_else_is_not_overwritten(tmp_path, content):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "run.json").write_text(content)
    (tmp_path / "a" / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match=r"run\.json is not one that jaxft writes, so --overwrite"):
        create(tmp_path, overwrite=True)
    assert (tmp_path / "a" / "thesis.tex").read_text() == "years of work"


def test_half_written_files_go_at_the_next_start_and_nothing_else(tmp_path):
    create(tmp_path).close()
    (tmp_path / "a" / "base").mkdir()
    for folder in (tmp_path / "a", tmp_path / "a" / "base"):
        (folder / ".run.json.0123456789abcdef.tmp").write_text("{")
        (folder / "notes.tmp").write_text("mine")
    create(tmp_path, resume=True).close()
    names = [path.name for path in tmp_path.rglob("*.tmp")]
    assert names == ["notes.tmp", "notes.tmp"]
