"""Files are whole or not there; a lock names who holds it."""

import io
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from PIL import Image

from jaxft.errors import UserError
from jaxft.storage import files, outputs


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "deep" / "a.json"
    files.write_atomic(path, "first")
    files.write_atomic(path, "zweites: ü".encode())
    assert path.read_text(encoding="utf-8") == "zweites: ü"
    assert os.listdir(path.parent) == ["a.json"]


def test_what_is_written_has_the_mode_that_the_umask_leaves(tmp_path):
    code = """
        import os, sys
        from jaxft.storage import files
        os.umask(0o027)
        with files.written_aside(sys.argv[1]) as aside:
            aside.unlink()  # as a library that writes by renaming
            os.close(os.open(aside, os.O_CREAT | os.O_WRONLY, 0o600))
        print(oct(os.stat(sys.argv[1]).st_mode & 0o777))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "a")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0o640\n", "")


def test_a_link_that_was_laid_in_wait_is_not_followed(tmp_path, monkeypatch):
    victim, shared = tmp_path / "victim", tmp_path / "shared"
    victim.write_text("mine")
    shared.mkdir()
    (shared / f".page.html.{os.getpid()}.tmp").symlink_to(victim)
    files.write_atomic(shared / "page.html", "page")
    assert victim.read_text() == "mine"
    assert not (shared / "page.html").is_symlink()
    monkeypatch.setattr(files.secrets, "token_hex", lambda count: "guessed")
    (shared / ".page.html.guessed.tmp").symlink_to(victim)
    with pytest.raises(UserError, match=r"Cannot write .*page\.html: File exists"):
        files.write_atomic(shared / "page.html", "again")
    assert victim.read_text() == "mine"
    assert (shared / "page.html").read_text() == "page"


def make_link(path):
    (path.parent / "led_to").write_text("mine")
    path.symlink_to(path.parent / "led_to")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (make_link, "a is a symbolic link, which jaxft neither follows nor replaces. Name the"),
        (lambda path: path.symlink_to("nowhere"), "a is a symbolic link"),
        (lambda path: os.mkfifo(path), "a is a device, a pipe or a socket"),
        (lambda path: path.mkdir(), "a is a folder"),
    ],
    ids=["link", "link to nothing", "pipe", "folder"],
)
def test_only_a_regular_file_is_replaced(make, said, tmp_path):
    make(tmp_path / "a")
    before = os.lstat(tmp_path / "a")
    there = sorted(os.listdir(tmp_path))
    with pytest.raises(UserError, match=said):
        files.write_atomic(tmp_path / "a", "new")
    after = os.lstat(tmp_path / "a")
    assert (after.st_ino, after.st_mode) == (before.st_ino, before.st_mode)
    assert sorted(os.listdir(tmp_path)) == there
    if (tmp_path / "led_to").exists():
        assert (tmp_path / "led_to").read_text() == "mine"


def test_a_device_is_not_replaced():
    with pytest.raises(UserError, match=r"/dev/null is a device, a pipe or a socket"):
        files.check_regular(Path("/dev/null"))


def test_an_output_replaces_only_an_earlier_one(tmp_path):
    path = tmp_path / "out.html"
    page = outputs.HTML_MARK + b">first"
    outputs.write_output(path, page, outputs.HTML_MARK, "--out")
    outputs.write_output(path, page + b" and second", outputs.HTML_MARK, "--out")
    assert path.read_bytes() == page + b" and second"
    path.write_text("<html>mine</html>")
    with pytest.raises(UserError, match=r"--out: .*out\.html exists and was not written"):
        outputs.write_output(path, page, outputs.HTML_MARK, "--out")
    assert path.read_text() == "<html>mine</html>"


def test_a_marked_png_is_the_same_picture(tmp_path):
    image = Image.radial_gradient("L")
    plain = io.BytesIO()
    image.save(plain, "PNG", icc_profile=bytes(10_000))
    (tmp_path / "a.png").write_bytes(outputs.marked_png(plain.getvalue()))
    assert outputs.has_mark(tmp_path / "a.png", outputs.PNG_MARK)
    with Image.open(tmp_path / "a.png") as again:
        again.load()
        assert again.info["Software"] == "jaxft"
        assert again.tobytes() == image.tobytes()


def write_half(path):
    with files.written_aside(path) as aside:
        aside.write_text("half of the n")
        assert path.read_text() == "old"
        raise KeyboardInterrupt


def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a"
    files.write_atomic(path, "old")

    with pytest.raises(KeyboardInterrupt):
        write_half(path)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_one_sentence(tmp_path):
    path = tmp_path / "a"
    code = """
        import resource, sys
        from jaxft.storage import files
        from jaxft.errors import UserError
        files.write_atomic(sys.argv[1], "old")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            files.write_atomic(sys.argv[1], "n" * 5000)
        except UserError as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(path)], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == (f"Cannot write {path}: File too large.\n", "")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=r"Cannot write .*: (Not a directory|File exists)"):
        files.write_atomic(tmp_path / "a" / "b", "")


def test_a_folder_is_committed_by_its_marker(tmp_path):
    assert not files.is_committed(tmp_path / "new")
    files.write_atomic(tmp_path / "new" / "data", "1")
    assert not files.is_committed(tmp_path / "new")
    files.commit(tmp_path / "new")
    assert files.is_committed(tmp_path / "new")


def test_sha256_is_that_of_the_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files.sha256(tmp_path / "a") == expected


HOLDER = """
import sys, time
from jaxft.storage import files
with files.lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_lock_names_the_process_that_holds_it_and_dies_with_it(tmp_path):
    path = tmp_path / "run" / "run.lock"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=rf"{path.parent} is in use by process {holder.pid} on "),
            files.lock(path),
        ):
            pytest.fail("two processes hold one lock")
        holder.kill()
    with files.lock(path):
        assert f"process {os.getpid()} on" in (tmp_path / "run" / "run.lock.owner").read_text()
    assert not (tmp_path / "run" / "run.lock.owner").exists()


def test_a_lock_is_waited_for(tmp_path):
    path = tmp_path / "lock"
    code = HOLDER.replace("60", "0.5")
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        with files.lock(path, timeout=30):
            assert holder.wait(timeout=30) == 0


def test_an_error_under_a_lock_lets_go_of_it(tmp_path):
    with pytest.raises(ValueError, match="the work failed"), files.lock(tmp_path / "lock"):
        raise ValueError("the work failed")
    with files.lock(tmp_path / "lock"):
        assert (tmp_path / "lock.owner").exists()


def test_a_folder_that_may_not_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"Cannot lock .*file/run: Not a directory\."),
        files.lock(tmp_path / "file" / "run" / "run.lock"),
    ):
        pytest.fail("a lock in a file")


def test_the_cache_folder_is_the_users_own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("JAXFT_CACHE", raising=False)
    assert files.cache_dir() == tmp_path / "xdg" / "jaxft"
    assert files.cache_dir().stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("JAXFT_CACHE", str(tmp_path / "chosen"))
    assert files.cache_dir() == tmp_path / "chosen"
    monkeypatch.delenv("JAXFT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert files.cache_dir() == tmp_path / "home" / ".cache" / "jaxft"


def test_buckets_are_told_from_folders(tmp_path):
    assert files.is_bucket("gs://bucket/run")
    assert not files.is_bucket(tmp_path)
    assert files.place("gs://bucket/run").name == "run"
    assert str(files.place("gs://bucket/run") / "a") == "gs://bucket/run/a"
    assert type(files.place(str(tmp_path))) is type(tmp_path)
    assert files.resolved(tmp_path / "b" / ".." / "a") == tmp_path / "a"


@pytest.mark.parametrize(
    "address",
    [
        "http://example.org/rows.csv",
        "file:///etc/passwd",
        "memory://rows.csv",
        "zip://model::evil.zip",
        "simplecache::gs://bucket/rows.csv",
        "gs://bucket/rows.csv::file:///etc/passwd",
        "://",
    ],
)
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(UserError, match=r"neither a local path nor a path in a bucket\..*gs://"):
        files.is_bucket(address)
    with pytest.raises(UserError, match="neither a local path"):
        files.place(address)


def test_a_path_is_inside_with_its_links_followed(tmp_path):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "out").symlink_to(tmp_path)
    (folder / "in").symlink_to(folder / "sub")
    files.check_inside(folder / "in" / "a", folder, "in/a")
    for name in (".", "sub/..", "..", "../folder2/a", "out/a", "/etc/passwd"):
        with pytest.raises(UserError, match=f"'{name}' leads outside its folder"):
            files.check_inside(folder / name, folder, name)


def test_outputs_lie_apart_from_what_they_are_made_of(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "links").mkdir()
    (tmp_path / "photos" / "x.png").write_text("x")
    (tmp_path / "links" / "x.png").symlink_to("../photos/x.png")
    for inputs, folder in (
        (["photos/x.png"], "photos"),
        (["./photos/x.png"], tmp_path / "links" / ".." / "photos"),
        (["links/x.png"], "photos"),
        (["links/x.png"], "links"),
        (["photos"], "photos"),
        (["photos"], "photos/deep"),
        (["other.png", "photos"], "photos/new"),
    ):
        with pytest.raises(UserError, match=r"--annotate: .* holds the input "):
            outputs.check_apart(folder, inputs, "--annotate")
    outputs.check_apart("drawn", ["photos/x.png", "photos", "x" * 5000, "a text"], "--annotate")
    outputs.check_apart("photos", ["links"], "--annotate")
    outputs.check_apart(".", ["a text, such as one of a path that is not there"], "--annotate")


def test_names_of_outputs_are_distinct():
    taken = set()
    names = [outputs.distinct_name(stem, ".png", taken) for stem in ("x", "x", "X", "x-2", "y")]
    assert names == ["x.png", "x-2.png", "X-3.png", "x-2-2.png", "y.png"]
