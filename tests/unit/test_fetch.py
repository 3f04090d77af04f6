"""`graft fetch`: from a loopback server into the cache, broken off and gone on with; and what `submit` can know of it."""

from __future__ import annotations

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from torchvision import models

from launcher.fetch import missing
from trainer.config import Run, UserError, load
from trainer.fetch import fetch

CONTENT = bytes(range(256)) * 12_000
HASH = hashlib.sha256(CONTENT).hexdigest()[:8]
# The command in a process that can be killed, with the published address on loopback.
HERE = """
import sys
from torchvision import models
type(models.SqueezeNet1_1_Weights.DEFAULT).url = sys.argv.pop(1)
from trainer.commands import main
sys.exit(main(sys.argv[1:]))
"""


class Files(http.server.ThreadingHTTPServer):
    """Serves CONTENT at every path, from where Range says; `ends_after` bytes it breaks off or, with `hangs`, falls silent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = CONTENT
        self.ends_after: int | None = None
        self.hangs = False
        self.ranges: list[str | None] = []
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def url(self, sha256: str = HASH) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/squeezenet1_1-{sha256}.pth"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Files

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        body = self.server.content[start:]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: self.server.ends_after])
        self.wfile.flush()
        if self.server.hangs:
            self.server.closing.wait(20)


@pytest.fixture
def server() -> Iterator[Files]:
    files = Files()
    yield files
    files.closing.set()
    files.shutdown()
    files.server_close()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch.hub's checkpoints; all caches are below a folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def file_of(folder: Path, weights: str = "DEFAULT", data: str = "digits") -> Path:
    file = folder / "run.yaml"
    model = {"source": "torchvision:squeezenet1_1", "weights": weights}
    said = {"name": "r", "task": {"kind": "classify"}, "model": model, "strategy": {"kind": "full"}, "data": {"train": data}}
    said |= {"optimizer": {"kind": "adam", "lr": 0.001}, "train": {"epochs": 1, "global_batch": 8}}
    file.write_text(json.dumps(said))
    return file


def run_of(folder: Path, weights: str = "DEFAULT", data: str = "digits") -> Run:
    return load(file_of(folder, weights, data), [])


def published(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setattr(type(models.SqueezeNet1_1_Weights.DEFAULT), "url", url)


def test_fetched_once_and_mended_when_it_is_damaged(
    server: Files, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    published(monkeypatch, server.url())
    run, file = run_of(tmp_path), cache / f"squeezenet1_1-{HASH}.pth"
    assert "graft fetch" in missing(run)[0]
    assert fetch(run) == 0
    assert file.read_bytes() == CONTENT
    said = capsys.readouterr().out
    assert "fetched, 3.1 MB in" in said
    assert "/s" in said
    assert "data.train: 1,797 samples" in said
    assert missing(run) == []
    assert fetch(run) == 0
    assert len(server.ranges) == 1
    assert "here and whole" in capsys.readouterr().out

    file.write_bytes(CONTENT[:-1])
    assert "is not what was fetched" in missing(run)[0]
    assert fetch(run) == 0
    assert file.read_bytes() == CONTENT
    file.write_bytes(CONTENT[:-1] + b"\0")  # of the right size, which only the hash tells
    assert fetch(run) == 0
    assert file.read_bytes() == CONTENT
    assert "is damaged" in capsys.readouterr().out
    assert "not fetched into this cache" in missing(run, {**os.environ, "TORCH_HOME": "/elsewhere"})[0]


def test_killed_in_the_middle_it_goes_on(server: Files, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.ends_after, server.hangs = 2_000_000, True
    command = [sys.executable, "-c", HERE, server.url(), "fetch", str(file_of(tmp_path))]
    part = cache / f".squeezenet1_1-{HASH}.pth.part"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 30
        while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.kill()
    kept = part.stat().st_size
    assert 0 < kept < len(CONTENT)
    assert not part.with_name(f"squeezenet1_1-{HASH}.pth").exists()
    server.ends_after, server.hangs = None, False
    published(monkeypatch, server.url())
    assert fetch(run_of(tmp_path)) == 0
    assert server.ranges == [None, f"bytes={kept}-"]
    assert part.with_name(f"squeezenet1_1-{HASH}.pth").read_bytes() == CONTENT
    assert not part.exists()


def test_a_part_of_another_file_is_thrown_away(
    server: Files, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    published(monkeypatch, server.url())
    cache.mkdir(parents=True)
    (cache / f".squeezenet1_1-{HASH}.pth.part").write_bytes(b"x" * 1000)
    assert fetch(run_of(tmp_path)) == 0
    assert (cache / f"squeezenet1_1-{HASH}.pth").read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-", None]


def test_what_cannot_be_fetched_is_said_and_leaves_nothing(
    server: Files, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = run_of(tmp_path)
    published(monkeypatch, server.url("00000000"))
    with pytest.raises(UserError, match="sha256 does not begin with 00000000"):
        fetch(run)
    assert not list(cache.glob("squeezenet*"))
    published(monkeypatch, server.url())
    server.ends_after = 1000
    with pytest.raises(UserError, match="the same command goes on"):
        fetch(run)
    assert not list(cache.glob("squeezenet*"))
    published(monkeypatch, f"http://127.0.0.1:9/squeezenet1_1-{HASH}.pth")
    with pytest.raises(UserError, match=f"refused.*where there is a network.*put squeezenet1_1-{HASH}.pth from .* into {cache}"):
        fetch(run)
    assert missing(run) != []


def test_an_architecture_needs_no_weights(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of generators and autoencoders as well, which are no repositories of a hub."""
    file = file_of(tmp_path)
    said = json.loads(file.read_text())
    for kind, source in (("translate", "UNet2DModel"), ("diffusion", "UNet2DModel"), ("autoencoder", "AutoencoderKL")):
        said |= {"task": {"kind": kind, **({"pairs": "small"} if kind == "translate" else {})}}
        said["losses"] = {"weights": {"kl": 1e-6}} if kind == "autoencoder" else {}
        said["model"] = {"source": f"diffusers:{source}"}
        file.write_text(json.dumps(said))
        assert fetch(load(file, [])) == 0, capsys.readouterr().err
        assert f"diffusers:{source}: no weights to fetch" in capsys.readouterr().out


def test_own_weights_and_data_are_looked_at(cache: Path, tmp_path: Path) -> None:
    weights, images = tmp_path / "own.pt", tmp_path / "images"
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        (images / name).write_bytes(b"12345")
    file = file_of(tmp_path, str(weights), f"folder:{images}")
    words = [sys.executable, "-m", "launcher", "fetch", str(file), "--runs", str(tmp_path / "runs")]
    assert "own.pt" in missing(load(file, []))[0]
    with pytest.raises(UserError, match="no such file"):
        fetch(load(file, []))
    weights.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        fetch(load(file, []))
    weights.write_bytes(b"123")
    assert missing(load(file, [])) == []
    done = subprocess.run(words, capture_output=True, text=True, timeout=40, check=False)
    assert done.returncode == 0, done.stderr
    assert "here, 3 B" in done.stdout
    assert "data.train: 4 samples, 20 B" in done.stdout
    assert not (tmp_path / "runs").exists()
