"""What a W&B server is asked without wandb's client: how much of a run it has. One small request, so that polling is cheap."""

from __future__ import annotations

import base64
import http.client
import json
import os
import urllib.error
import urllib.request
from dataclasses import dataclass
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from trainer.config import GraftError, UserError

# The question with which wandb's client itself opens a run with `resume`.
_STATUS = """query RunResumeStatus($project: String, $entity: String, $name: String!) {
  model(name: $project, entityName: $entity) { bucket(name: $name, missingOk: true) { historyLineCount summaryMetrics } }
}"""


def api_key(base_url: str) -> str | None:
    """The API key for the server: from WANDB_API_KEY or the netrc file, as wandb looks for it; none if there is none."""
    if os.environ.get("WANDB_API_KEY"):
        return os.environ["WANDB_API_KEY"]
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        if name and (path := Path(name).expanduser()).is_file():
            try:
                found = netrc(str(path)).authenticators(urlsplit(base_url).hostname or "")
            except (NetrcParseError, OSError):
                return None
            return found[2] if found else None
    return None


@dataclass(frozen=True)
class Known:
    """What the server has of a run: its rows, and its summary."""

    rows: int
    summary: dict[str, Any]


class Server:
    """A W&B server and the key for it. Raises UserError when there is no key."""

    def __init__(self, base_url: str) -> None:
        self.url = base_url.rstrip("/")
        host = urlsplit(base_url).hostname or base_url
        key = api_key(base_url)
        if key is None:
            raise UserError(
                f"there is no API key for W&B at {host}: `wandb login` writes one into ~/.netrc, or set WANDB_API_KEY"
            )
        self._authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()

    def known(self, settings: dict[str, Any], run_id: str, timeout: float) -> Known:
        """What the server has of a run. Raises GraftError when it does not say, UserError when it refuses the key."""
        variables = {"project": settings["project"], "entity": settings["entity"], "name": run_id}
        request = urllib.request.Request(
            f"{self.url}/graphql", json.dumps({"query": _STATUS, "variables": variables}).encode(),
            {"Content-Type": "application/json", "Authorization": self._authorization, "User-Agent": "graft"},
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                said = json.loads(answer.read())
            bucket = ((said.get("data") or {}).get("model") or {}).get("bucket")
            if bucket is None:
                if said.get("errors"):
                    raise GraftError(f"W&B at {self.url} answered: {said['errors'][0].get('message')}")
                return Known(0, {})
            return Known(int(bucket["historyLineCount"] or 0), json.loads(bucket.get("summaryMetrics") or "{}"))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UserError(f"W&B at {self.url} refuses the API key ({error.code}); `wandb login --relogin`") from None
            raise GraftError(f"W&B at {self.url} answered {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:  # URLError and time-outs are OSErrors
            raise GraftError(f"W&B at {self.url} is out of reach: {getattr(error, 'reason', error)}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise GraftError(f"W&B at {self.url} gave no answer that can be read: {error}") from None
