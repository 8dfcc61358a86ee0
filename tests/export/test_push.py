"""`jaxft push` against a stand-in of the hub's server on this machine."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from jaxft.cli.main import main

CARD = "---\ntags:\n- jaxft\n---\n\n# spam\n\naccuracy 0.98\n"


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's API that an upload uses; files are stored in `server.files`."""

    def do_POST(self):
        if self.headers.get("transfer-encoding") == "chunked":
            body = b""
            while count := int(self.rfile.readline(), 16):
                body += self.rfile.read(count)
                self.rfile.readline()
            self.rfile.readline()
        else:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/api/validate-yaml":
            self.reply({"errors": [], "warnings": []})
        elif self.headers.get("authorization") != "Bearer hf_writes":
            self.reply({"error": "Invalid token"}, 401)
        elif self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.reply({"url": f"{self.server.address}/me/spam"})
        elif self.path.endswith("/preupload/main"):
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular"} for f in files]
            self.reply({"files": [mode | {"shouldIgnore": False} for mode in modes]})
        elif self.path.split("?")[0].endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
            url = f"{self.server.address}/me/spam/commit/{'a' * 40}"
            self.reply({"commitUrl": url, "commitOid": "a" * 40, "success": True})
        else:
            self.reply({"error": f"not found: {self.path}"}, 404)

    def do_GET(self):
        self.reply({"id": "me/spam", "siblings": [], "sha": "a" * 40, "private": True})

    def reply(self, content, status=200):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A running stand-in, an export that is there, and a token."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.files, server.created = {}, []
    server.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("jaxft.export.push.export", lambda run, out, which: folder)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", server.address)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_writes")
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_export_with_its_card_is_uploaded_privately(hub, capsys):
    assert main(["push", "runs/spam", "me/spam"]) == 0
    assert capsys.readouterr().out.strip() == f"{hub.address}/me/spam/commit/{'a' * 40}"
    assert hub.files == {"README.md": CARD.encode(), "model.safetensors": b"weights"}
    [created] = hub.created
    made = (created["organization"], created["name"], created["visibility"])
    assert made == ("me", "spam", "private")


def test_public_only_where_it_is_asked_for(hub):
    assert main(["push", "runs/spam", "me/spam", "--public"]) == 0
    assert hub.created[0]["visibility"] == "public"


def refused(capsys, *words):
    assert main(["push", "runs/spam", *words]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err


def test_a_token_that_may_not_write_is_one_sentence(hub, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_reads")
    assert "The hub refused to store me/spam: Invalid token" in refused(capsys, "me/spam")
    assert not hub.files


def test_without_a_token_nothing_is_exported(hub, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.setattr("jaxft.export.push.export", None)
    message = refused(capsys, "me/spam")
    assert "no token for the Hugging Face hub. Run `hf auth login`, or set HF_TOKEN" in message


@pytest.mark.parametrize("name", ["spam", "me/spam/x", "me/", "../spam"])
def test_a_name_that_is_no_repository(name, hub, capsys):
    assert "is not the name of a repository. Write ORG/NAME." in refused(capsys, name)
