"""A Hugging Face hub on the loopback: the few routes that downloading a model asks for."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class Hub:
    """One repository.

    Attributes:
        files: its files.
        repo: its id.
        licence: what its card says.
        cut: file name -> bytes after which the connection breaks, once.
        held: set when a connection is about to break; it waits for `go` first.
        asked: (method, path, Range header) of every request.
        lies: name -> SHA-256 that the hub claims instead of the true one.
    """

    files: dict[str, bytes]
    repo: str = "owner/tiny-model"
    licence: str | None = "mit"
    cut: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)
    lies: dict[str, str] = field(default_factory=dict)
    held: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)
    endpoint: str = ""

    def info(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.files.items():
            entry: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest()}
            if name.endswith(".safetensors"):
                digest = self.lies.get(name, hashlib.sha256(data).hexdigest())
                entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        card = {} if self.licence is None else {"license": self.licence}
        return {
            "id": self.repo,
            "modelId": self.repo,
            "sha": COMMIT,
            "siblings": siblings,
            "cardData": card,
            "tags": [],
        }


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub whose repository holds the files of `folder`."""
    hub = Hub({path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            hub.asked.append((self.command, path, self.headers.get("Range")))
            if re.fullmatch(rf"/api/models/{hub.repo}(/revision/(main|{COMMIT}))?", path):
                return self.answer(200, json.dumps(hub.info()).encode(), {"Content-Type": "application/json"})
            if re.fullmatch(rf"/api/models/{hub.repo}/tree/{COMMIT}", path):
                tree = [
                    {"type": "file", "path": s["rfilename"], "size": s["size"], "oid": s["blobId"]}
                    | (
                        {"lfs": {"oid": s["lfs"]["sha256"], "size": s["size"], "pointerSize": 130}}
                        if "lfs" in s
                        else {}
                    )
                    for s in hub.info()["siblings"]
                ]
                return self.answer(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            match = re.fullmatch(rf"/{hub.repo}/resolve/{COMMIT}/(.+)", path)
            if match and match[1] in hub.files:
                return self.file(match[1])
            code = "RevisionNotFound" if f"/api/models/{hub.repo}/revision/" in path else "RepoNotFound"
            return self.answer(404, b"{}", {"X-Error-Code": code})

        def file(self, name: str) -> None:
            data = hub.files[name]
            headers = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                "Accept-Ranges": "bytes",
            }
            status, start = 200, 0
            if match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                status, start = 206, int(match[1])
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.answer(status, data[start:], headers, hub.cut.pop(name, None) if self.command == "GET" else None)

        def answer(self, status: int, body: bytes, headers: dict[str, str], cut: int | None = None) -> None:
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(body[:cut])
            if cut is not None:
                self.wfile.flush()
                hub.held.set()
                hub.go.wait(60)
                with suppress(OSError):  # the other side may be gone
                    self.connection.shutdown(socket.SHUT_RDWR)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
