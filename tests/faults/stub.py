"""A stand-in for the W&B server on loopback: as much of its protocol as init, resume, log and finish need."""

from __future__ import annotations

import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

# deaf: rows are neither taken nor answered; swallow: half of them are taken, and the client never hears of it
Behaviour = Literal["ok", "error", "slow", "unauthorised", "deaf", "swallow"]


class Stub(ThreadingHTTPServer):
    """Keeps the history rows of each run by the offset they were sent with, and the summary.

    `changed`: rows that came again at the same offset and were not the same.
    """

    daemon_threads = True

    def __init__(self, behaviour: Behaviour = "ok", port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.behaviour = behaviour
        self.histories: dict[str, dict[int, dict[str, Any]]] = {}
        self.summaries: dict[str, dict[str, Any]] = {}
        self.ids: set[str] = set()
        self.changed: list[dict[str, Any]] = []
        self.heard = threading.Event()  # rows came in, or any request that is not answered as it should be
        self.config = ""
        self.requests: list[str] = []
        self.stopping = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def history(self) -> dict[int, dict[str, Any]]:
        """The rows of the only run."""
        assert len(self.histories) <= 1
        return next(iter(self.histories.values()), {})

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The points in the order of the rows of the only run; each is there, and none came again changed."""
        history = self.history
        assert sorted(history) == list(range(len(history)))
        assert self.changed == []
        return [_values(history[index]) for index in sorted(history)]

    @property
    def summary(self) -> dict[str, Any]:
        assert len(self.summaries) <= 1
        return next(iter(self.summaries.values()), {})

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
            bucket = self._bucket(variables["name"]) if variables["name"] in self.ids else None
            return {"model": {"id": "m", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": bucket}}
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
            rows = len(self.histories.get(variables["name"], {}))
            bucket |= {"project": project, "historyLineCount": rows}
            return {"upsertBucket": {"bucket": bucket, "inserted": not rows}}
        if operation == "CreateRunFiles":
            files = [{"name": f, "uploadUrl": f"{self.url}/upload/{f}"} for f in variables["files"]]
            return {"createRunFiles": {"runID": "Yg==", "uploadHeaders": [], "files": files}}
        return {}

    def take(self, run: str, files: dict[str, Any]) -> None:
        """Lines of a run's files, each at its offset."""
        history = self.histories.setdefault(run, {})
        for name, part in files.items():
            for index, line in enumerate(part["content"]):
                if name == "wandb-history.jsonl":
                    row = json.loads(line)
                    if _values(history.setdefault(part["offset"] + index, row)) != _values(row):
                        self.changed.append(row)
                elif name == "wandb-summary.json":
                    self.summaries.setdefault(run, {}).update(json.loads(line))

    def _bucket(self, run: str) -> dict[str, Any]:
        rows = [row for _, row in sorted(self.histories.get(run, {}).items())]
        return {
            "id": "Yg==", "name": run, "displayName": "n", "config": "{}", "tags": [],
            "wandbConfig": '{"t": {}}', "historyLineCount": len(rows), "eventsLineCount": 0, "logLineCount": 0,
            "eventsTail": "[]",
            "historyTail": json.dumps([json.dumps(rows[-1])] if rows else []),
            "summaryMetrics": json.dumps(self.summaries.get(run, {})),
        }  # fmt: skip


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """What a point of the record said, without wandb's own facts and the names of pictures."""
    return {key: value for key, value in row.items() if not key.startswith("_") and not isinstance(value, dict)}


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
        stream = self.path.endswith("/file_stream")
        files = (json.loads(body).get("files") or {}) if stream else {}
        told = "wandb-history.jsonl" in files
        if told or stub.behaviour in ("error", "slow"):
            stub.heard.set()
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
        elif stream:
            if told and stub.behaviour == "swallow":
                rows = files["wandb-history.jsonl"]
                files = {"wandb-history.jsonl": {**rows, "content": rows["content"][: len(rows["content"]) // 2]}}
            if not told or stub.behaviour != "deaf":
                stub.take(self.path.split("/")[-2], files)
            if told and stub.behaviour in ("deaf", "swallow"):
                stub.stopping.wait(30)
                self.close_connection = True
                return
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
