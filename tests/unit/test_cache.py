"""`graft cache`: what is listed, and what is removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import cache
from tests.trainers import ROOT
from trainer.config import UserError

DAY = 86400


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three folders, unused for 0, 10 and 40 days, and something that is none."""
    for days, key in ((0, "aa11"), (10, "aa22"), (40, "bb33")):
        folder = tmp_path / "features" / key
        folder.mkdir(parents=True)
        about = {"what": "512 bfloat16 at 'fc'", "made": "2026-01-02 03:04:05", "by": "pets"}
        (folder / "about.json").write_text(json.dumps(about))
        (folder / "x.rows").write_bytes(bytes(1000 * (days + 1)))
        os.utime(folder, (time.time() - days * DAY,) * 2)
    (tmp_path / "features" / "bb33" / "about.json").write_text("{")
    os.utime(tmp_path / "features" / "bb33", (time.time() - 40 * DAY,) * 2)
    (tmp_path / "features" / "else").mkdir()
    return tmp_path / "features"


def test_what_is_listed_and_chosen(root: Path) -> None:
    found = cache.find([], root, None)
    assert [one.key for one in found] == ["bb33", "aa22", "aa11"]
    assert [round(one.unused / DAY) for one in found] == [40, 10, 0]
    assert found[1].what == "512 bfloat16 at 'fc'"
    assert found[0].what == "?", "a damaged note is no reason not to list it"
    assert 11_000 < found[1].bytes < 11_500
    assert [one.key for one in cache.find(["aa"], root, None)] == ["aa22", "aa11"]
    assert [one.key for one in cache.find([], root, 20)] == ["bb33"]
    with pytest.raises(UserError, match="hold nothing 'cc'"):
        cache.find(["cc"], root, None)
    assert cache.find([], root / "none", None) == []


def test_what_is_removed(root: Path) -> None:
    def graft(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launcher", "cache", "--path", str(root), *words], capture_output=True, text=True, timeout=60,
            check=False, env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(root)},
        )  # fmt: skip

    refused = graft("--remove")
    assert refused.returncode == 2
    assert "--remove wants keys, or --older DAYS" in refused.stderr
    assert [one["key"] for one in json.loads(graft("--json").stdout)] == ["bb33", "aa22", "aa11"]
    assert "bb33" in graft("--older", "20", "--remove").stdout
    assert sorted(path.name for path in root.iterdir()) == ["aa11", "aa22", "else"]
    assert "0.0 MB removed" in graft("aa1", "--remove").stdout
    assert sorted(path.name for path in root.iterdir()) == ["aa22", "else"]
