"""Google Cloud Storage on this machine: as much of its JSON interface as gcsfs and TensorStore ask for.

An object is its bytes and a generation, which every write makes anew; reads and writes may ask for one (`ifGenerationMatch`).
Without credentials, batches, copies, versions and pages of a listing.
"""

import base64
import contextlib
import functools
import http.server
import itertools
import json
import re
import threading
import urllib.parse

import fsspec
import google_crc32c

_OBJECT = re.compile(r"/(?:download/|upload/)?storage/v1/b/(?P<bucket>[^/]+)(?:/o(?:/(?P<name>.+))?)?")


class Bucket:
    """A server with one bucket, "bucket"; `objects` is what it holds: name → (bytes, generation).

    Attributes:
      environment: variables that send whoever speaks to Google Cloud Storage here.
    """

    def __init__(self):
        self.objects, self.uploads, self.generations, self.lock = {}, {}, itertools.count(1), threading.Lock()
        server = _Server(("127.0.0.1", 0), _Handler)
        server.bucket = self
        self.address = f"http://127.0.0.1:{server.server_port}"
        self.environment = {
            "STORAGE_EMULATOR_HOST": self.address, "TENSORSTORE_GCS_HTTP_URL": self.address, "FSSPEC_GS_TOKEN": "anon",
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # TensorStore would ask the machine for credentials
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false"}  # and gcsfs, again and again
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def write(self, name, content, wanted=None):
        """The object as it is described; None where there is another generation than the one that is wanted (0: none)."""
        with self.lock:
            if wanted is not None and int(wanted) != self.objects.get(name, (b"", 0))[1]:
                return None
            self.objects[name] = (content, next(self.generations))
        return self.describe(name)

    def describe(self, name):
        content, generation = self.objects[name]
        checksum = base64.b64encode(google_crc32c.Checksum(content).digest()).decode()
        return {"kind": "storage#object", "name": name, "bucket": "bucket", "size": str(len(content)), "crc32c": checksum,
                "generation": str(generation), "metageneration": "1", "updated": "2026-01-01T00:00:00.000Z"}


@functools.cache
def _server():
    return Bucket()  # one a process: its clients remember where it is


def play(monkeypatch):
    """An empty bucket for the test and the processes that it starts."""
    bucket = _server()
    bucket.objects.clear()
    for name, value in bucket.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(fsspec.config.conf, "gs", {"token": "anon"})  # as FSSPEC_GS_TOKEN says to a new process
    return bucket


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # a client opens as many connections as it has files


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def handle(self):
        with contextlib.suppress(ConnectionError):  # gcsfs asks twice and hears only who answers first
            super().handle()

    def do_GET(self):
        bucket, name, query = self._read()
        if bucket is None:
            return self._answer(404)
        if name is None:
            return self._answer(200, self._listing(query) if "/o" in self.path else {"name": "bucket"})
        if name not in self.server.bucket.objects:
            return self._answer(404)
        if "alt" not in query:
            return self._answer(200, self.server.bucket.describe(name))
        content, generation = self.server.bucket.objects[name]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._answer(412)
        if query.get("ifGenerationNotMatch") == str(generation):
            return self._answer(304)
        return self._send_content(content, {"x-goog-generation": str(generation)})

    def do_POST(self):
        bucket, name, query = self._read()
        kind, wanted = query.get("uploadType"), query.get("ifGenerationMatch")
        if bucket is None or kind is None:
            return self._answer(404)
        if kind == "media":
            return self._written(query["name"], self.body, wanted)
        if kind == "multipart":  # the description, then the content, behind a blank line each
            about, content = (part.split(b"\n\n", 1)[1] for part in self.body.split(b"--==0==")[1:3])
            return self._written(json.loads(about)["name"], content.removesuffix(b"\n"), wanted)
        if "upload_id" not in query:  # a resumable one begins
            upload = str(next(self.server.bucket.generations))
            self.server.bucket.uploads[upload] = (json.loads(self.body or b"{}").get("name") or query["name"], b"", wanted)
            path = f"/upload/storage/v1/b/bucket/o?uploadType=resumable&upload_id={upload}"
            return self._answer(200, {}, {"Location": f"{self.server.bucket.address}{path}"})
        name, before, wanted = self.server.bucket.uploads[query["upload_id"]]
        content = before + self.body
        if not self.headers.get("Content-Range", "").endswith(f"/{len(content)}"):
            self.server.bucket.uploads[query["upload_id"]] = (name, content, wanted)
            return self._answer(308, None, {"Range": f"bytes=0-{len(content) - 1}"})
        return self._written(name, content, wanted)

    do_PUT = do_POST

    def do_DELETE(self):
        _, name, query = self._read()
        generation = self.server.bucket.objects.get(name, (b"", 0))[1]
        if query.get("ifGenerationMatch", str(generation)) != str(generation):
            return self._answer(412)
        return self._answer(404 if self.server.bucket.objects.pop(name, None) is None else 204)

    def _read(self):
        """(bucket or None, object or None, parameters); the body is kept."""
        path, _, query = self.path.partition("?")
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        found = _OBJECT.fullmatch(path)
        if found is None or found["bucket"] != "bucket":
            return None, None, {}
        return "bucket", found["name"] and urllib.parse.unquote(found["name"]), dict(urllib.parse.parse_qsl(query))

    def _listing(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, prefixes = [], set()
        for name in sorted(self.server.bucket.objects.copy()):
            if not name.startswith(prefix) or not query.get("startOffset", "") <= name < query.get("endOffset", "\U0010ffff"):
                continue
            below = name[len(prefix):].partition(delimiter)[1] if delimiter else ""
            if below:
                prefixes.add(prefix + name[len(prefix):].partition(delimiter)[0] + delimiter)
            else:
                items.append(self.server.bucket.describe(name))
        return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}

    def _written(self, name, content, wanted):
        about = self.server.bucket.write(name, content, wanted)
        return self._answer(200 if about else 412, about)

    def _send_content(self, content, headers):
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return self._answer(200, content, headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content)), len(content) - 1)
        if first >= len(content):
            return self._answer(416)
        return self._answer(206, content[first:last + 1], headers | {"Content-Range": f"bytes {first}-{last}/{len(content)}"})

    def _answer(self, code, content=None, headers=()):
        body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass
