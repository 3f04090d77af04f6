"""A stand-in for the W&B server on loopback: as much of its protocol as init, resume, log and finish need."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

Behaviour = Literal["ok", "error", "slow", "unauthorised"]


class Stub(ThreadingHTTPServer):
    """Keeps history rows by the offset they were sent with, the run ids, and the summary."""

    daemon_threads = True

    def __init__(self, behaviour: Behaviour = "ok") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.behaviour = behaviour
        self.history: dict[int, dict[str, Any]] = {}
        self.summary: dict[str, Any] = {}
        self.ids: set[str] = set()
        self.config = ""
        self.requests: list[str] = []
        self.stopping = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in mid-request is expected here."""

    def close(self) -> None:
        self.stopping.set()
        self.shutdown()
        self.server_close()

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        project = {"id": "cA==", "name": "p", "entity": {"id": "ZQ==", "name": "e"}}
        if operation == "Viewer":
            return {"viewer": {"id": "dg==", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        if operation == "RunResumeStatus":
            if not self.ids:
                return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": None}}
            return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": self._bucket()}}
        if operation == "UpsertBucket":
            self.ids.add(variables["name"])
            self.config = variables.get("config") or self.config
            bucket = {
                "id": "Yg==",
                "name": variables["name"],
                "displayName": "n",
                "description": "",
                "config": "{}",
                "sweepName": "",
            }
            bucket |= {"project": project, "historyLineCount": len(self.history)}
            return {"upsertBucket": {"bucket": bucket, "inserted": not self.history}}
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "Yg==", "uploadHeaders": [], "files": files}}
        return {}

    def _bucket(self) -> dict[str, Any]:
        rows = [self.history[k] for k in sorted(self.history)]
        return {
            "id": "Yg==", "name": next(iter(self.ids)), "displayName": "n", "config": "{}", "tags": [],
            "wandbConfig": '{"t": {}}', "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(rows[-1])] if rows else []), "summaryMetrics": json.dumps(self.summary),
        }  # fmt: skip


class _Handler(BaseHTTPRequestHandler):
    server: Stub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _reply(self, value: Any, code: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        stub = self.server
        if stub.behaviour == "slow":
            stub.stopping.wait(30)
            self.close_connection = True
        elif stub.behaviour == "error":
            self._reply({"error": "broken"}, 500)
        elif stub.behaviour == "unauthorised":
            self._reply({"errors": [{"message": "permission denied"}]}, 401)
        elif self.path.endswith("/graphql"):
            said = json.loads(body)
            found = re.search(r"(?:query|mutation)\s+(\w+)", said["query"])
            operation = found[1] if found else ""
            stub.requests.append(operation)
            self._reply({"data": stub.answer(operation, said.get("variables") or {})})
        elif self.path.endswith("/file_stream"):
            for name, part in (json.loads(body).get("files") or {}).items():
                for index, line in enumerate(part["content"]):
                    if name == "wandb-history.jsonl":
                        stub.history[part["offset"] + index] = json.loads(line)
                    elif name == "wandb-summary.json":
                        stub.summary |= json.loads(line)
            self._reply({"exitcode": None, "limits": {}})
        else:
            self._reply({})

    do_GET = do_POST = do_PUT = _handle  # noqa: N815 (the names that http.server calls)


def wait_for(done: Any, timeout: float) -> bool:
    """Whether `done()` came true in time."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if done():
            return True
        time.sleep(0.05)
    return False
