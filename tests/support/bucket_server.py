"""A small Google Cloud Storage on this machine: what gcsfs, TensorStore and Google's client ask.

The JSON API's objects: list, read (whole or a range), write (at once, multipart, resumable), copy,
move and delete, with its conditions on generations. https://cloud.google.com/storage/docs/json_api
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import google_crc32c

OBJECT = re.compile(r"(?:/download)?/storage/v1/b/([^/]+)/o/([^/]+)")
MOVED = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(rewriteTo/b/[^/]+|moveTo)/o/([^/]+)")
UPLOAD = re.compile(r"/upload/storage/v1/b/([^/]+)/o")
LIST = re.compile(r"/storage/v1/b/([^/]+)/o")
BUCKET = re.compile(r"/storage/v1/b/([^/]+)")


class Buckets(ThreadingHTTPServer):
    """The server: `objects` is bucket -> name -> (content, generation).

    A bucket in `closed` refuses all, one in `read_only` what changes it.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, *names):
        self.objects = {name: {} for name in names}
        self.closed, self.read_only = set(), set()
        self.uploads, self.lock, self.generation = {}, threading.Lock(), 1000
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        """A client that asks twice at once lets the slower answer go."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)

    def environment(self):
        """What makes the three libraries ask this server, and no other."""
        return {
            "STORAGE_EMULATOR_HOST": self.address,
            "TENSORSTORE_GCS_HTTP_URL": self.address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "FSSPEC_GCS_TOKEN": "anon",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # that speaks gRPC
        }

    def put(self, bucket, name, content):
        with self.lock:
            self.generation += 1
            self.objects[bucket][name] = (content, self.generation)


@contextlib.contextmanager
def serve(*names):
    """A server with these buckets, in threads of this process."""
    with Buckets(*names) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server
        finally:
            server.shutdown()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        if os.environ.get("BUCKET_LOG"):
            print(self.command, self.path, *_, flush=True)

    def do_GET(self):
        self.answer(self.get)

    def do_POST(self):
        self.answer(self.post)

    def do_PUT(self):
        self.answer(self.post)

    def do_DELETE(self):
        self.answer(self.delete)

    def answer(self, act):
        parts = urlsplit(self.path)
        self.place, self.query = parts.path, {k: v[-1] for k, v in parse_qs(parts.query).items()}
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = re.search(r"/b/([^/]+)", self.place)
        bucket = unquote(found[1]) if found else ""
        refused = self.server.closed | (self.server.read_only if self.command != "GET" else set())
        if bucket not in self.server.objects:
            self.refuse(404, "The specified bucket does not exist.")
        elif bucket in refused:
            self.refuse(403, "The caller does not have storage.objects access.")
        else:
            self.names = self.server.objects[bucket]
            self.bucket = bucket
            act()

    def refuse(self, code, message):
        self.send(code, {"error": {"code": code, "message": message}})

    def send(self, code, content=b"", **headers):
        if isinstance(content, dict):
            content, headers["Content_Type"] = json.dumps(content).encode(), "application/json"
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def about(self, name):
        content, generation = self.names[name]
        crc = google_crc32c.Checksum(content).digest()
        return {
            "kind": "storage#object",
            "name": name,
            "bucket": self.bucket,
            "size": str(len(content)),
            "generation": str(generation),
            "metageneration": "1",
            "etag": str(generation),
            "updated": "2026-01-01T00:00:00.000Z",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "md5Hash": base64.b64encode(hashlib.md5(content).digest()).decode(),
            "crc32c": base64.b64encode(crc).decode(),
        }

    def get(self):
        if found := OBJECT.fullmatch(self.place):
            self.read(unquote(found[2]))
        elif LIST.fullmatch(self.place):
            self.list()
        elif BUCKET.fullmatch(self.place):
            self.send(200, {"kind": "storage#bucket", "name": self.bucket, "location": "HERE"})
        else:
            self.refuse(400, f"unknown: {self.place}")

    def read(self, name):
        if name not in self.names:
            self.refuse(404, f"No such object: {name}")
            return
        content, generation = self.names[name]
        if self.query.get("ifGenerationNotMatch") == str(generation):
            self.send(304, x_goog_generation=generation)
            return
        if self.query.get("alt") != "media":
            self.send(200, self.about(name))
            return
        told = {"x_goog_generation": generation, "x_goog_stored_content_length": len(content)}
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self.send(200, content, **told)
            return
        first, last = asked.groups()
        start = int(first) if first else max(0, len(content) - int(last))
        stop = min(int(last) + 1, len(content)) if first and last else len(content)
        if start >= len(content):
            self.refuse(416, "no such range")
            return
        told["Content_Range"] = f"bytes {start}-{stop - 1}/{len(content)}"
        self.send(206, content[start:stop], **told)

    def list(self):
        prefix, cut = self.query.get("prefix", ""), self.query.get("delimiter")
        start, end = self.query.get("startOffset", ""), self.query.get("endOffset")
        items, prefixes = [], set()
        for name in sorted(self.names):
            if not name.startswith(prefix) or name < start or (end and name >= end):
                continue
            inside = name[len(prefix) :]
            if cut and cut in inside:
                prefixes.add(prefix + inside[: inside.index(cut) + 1])
            else:
                items.append(self.about(name))
        self.send(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)})

    def post(self):
        if found := MOVED.fullmatch(self.place):
            self.move(unquote(found[2]), unquote(found[4]), keep=found[3] != "moveTo")
        elif UPLOAD.fullmatch(self.place):
            self.upload()
        else:
            self.refuse(400, f"unknown: {self.place}")

    def move(self, name, to, keep):
        if name not in self.names:
            self.refuse(404, f"No such object: {name}")
            return
        self.server.put(self.bucket, to, self.names[name][0])
        if not keep:
            del self.names[name]
        about = self.about(to)
        self.send(200, {"done": True, "resource": about} if keep else about)

    def upload(self):
        kind = self.query["uploadType"]
        if kind == "media":
            self.write(self.query["name"], self.body)
        elif kind == "multipart":
            boundary = re.search(r'boundary="?([^";]+)', self.headers["Content-Type"])[1].encode()
            about, data = self.body.split(b"--" + boundary)[1:3]
            split = re.compile(rb"\r?\n\r?\n")
            name = json.loads(split.split(about, maxsplit=1)[1])["name"]
            self.write(name, split.split(data, maxsplit=1)[1].removesuffix(b"\n"))
        elif "upload_id" not in self.query:
            name = self.query.get("name") or json.loads(self.body)["name"]
            number = str(len(self.server.uploads))
            self.server.uploads[number] = (name, bytearray())
            there = f"{self.server.address}{self.place}?uploadType=resumable&upload_id={number}"
            self.send(200, {}, Location=there)
        else:
            name, content = self.server.uploads[self.query["upload_id"]]
            content += self.body
            whole = self.headers["Content-Range"].rpartition("/")[2]
            if whole == str(len(content)):
                self.write(name, bytes(content))
            else:
                self.send(308, Range=f"bytes=0-{len(content) - 1}")

    def write(self, name, content):
        there = self.names[name][1] if name in self.names else 0
        wanted = self.query.get("ifGenerationMatch")
        if wanted is not None and int(wanted) != there:
            self.refuse(412, "another generation")
            return
        self.server.put(self.bucket, name, content)
        self.send(200, self.about(name))

    def delete(self):
        name = unquote(OBJECT.fullmatch(self.place)[2])
        wanted = self.query.get("ifGenerationMatch")
        if name not in self.names:
            self.refuse(404, f"No such object: {name}")
        elif wanted is not None and int(wanted) != self.names[name][1]:
            self.refuse(412, "another generation")
        else:
            del self.names[name]
            self.send(204)
