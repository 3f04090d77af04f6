"""A copy of the code that a job will run: the git repository of the working directory, as its files are now.

`CODE/files` holds the last commit with all changes that are not committed, and new files that git does not ignore;
`CODE/code.patch` the difference from that commit, `CODE/code.json` what it was made of. All comes from one git tree, written into
objects of its own, so that the patch and the files agree and the repository is only read.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.git import git, head, own_index
from launcher.secrets import held_in, values
from trainer.config import RefusedError, UserError
from trainer.rundir import write_atomically

LARGEST = 5_000_000  # bytes of a new file; what is larger is data
MOST_FILES, MOST_BYTES = 5_000, 100_000_000  # new files in all
_NO_CODE = "runs or data, not code"
_LISTED = 1_000  # names of a kind in code.json


@dataclass(frozen=True)
class Code:
    """The working directory, the `top` of its repository (none without one) and the folder of the snapshot, made or not."""

    here: Path
    top: Path | None
    folder: Path
    skip: tuple[Path, ...] = ()

    @property
    def files(self) -> Path:
        return self.folder / "files"

    @property
    def work(self) -> Path:
        """Where the job works: the working directory's place in the snapshot; without a repository the working directory."""
        return self.here if self.top is None else self.files / self.here.relative_to(self.top)

    def moved(self, path: Path) -> Path:
        """A file's place in the snapshot; the path itself where it is not of the repository, or ignored by git."""
        real = path.resolve()
        if self.top is None or not real.is_relative_to(self.top) or not real.is_file():
            return path
        if any(real.is_relative_to(folder) for folder in self.no_code()):
            return path  # in a run folder: of another snapshot
        inner = Path(os.fsdecode(git(real.parent, "rev-parse", "--show-toplevel").removesuffix(b"\n")))
        if inner != self.top and not git(real.parent, "rev-parse", "--show-superproject-working-tree").strip():
            return path  # a repository of its own, which is no submodule
        listed = git(real.parent, "ls-files", "-z", "-c", "-o", "--exclude-standard", "--", f":(literal){real.name}")
        return self.files / real.relative_to(self.top) if listed else path

    def no_code(self) -> list[Path]:
        """The folders of the repository whose new files are no code."""
        top = self.top
        return [folder for folder in self.skip if top is not None and folder != top and folder.is_relative_to(top)]

    def record(self) -> dict[str, Any]:
        """code.json of the snapshot that is there; empty without one."""
        try:
            found = json.loads((self.folder / "code.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}


@dataclass
class _Contents:
    """What goes into a snapshot; `left_out` says of each path why."""

    tree: str = ""
    patch: bytes = b""
    changed: list[str] = field(default_factory=list)
    untracked: list[str] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)
    links: list[dict[str, str]] = field(default_factory=list)
    submodules: dict[str, str] = field(default_factory=dict)


def look(here: Path, folder: Path, skip: Sequence[Path] = ()) -> Code:
    """Find the repository of a working directory; nothing is written. `skip`: paths whose new files are no code (runs, data).

    Raises RefusedError with git's words when there is a repository that git does not read.
    """
    here = here.resolve()
    try:
        top = os.fsdecode(git(here, "rev-parse", "--show-toplevel").removesuffix(b"\n"))
    except FileNotFoundError:
        return Code(here, None, folder)
    except RefusedError as error:
        if "not a git repository" in str(error) or "must be run in a work tree" in str(error):
            return Code(here, None, folder)
        raise
    return Code(here, Path(top), folder, tuple(path.resolve() for path in skip))


def take(code: Code) -> dict[str, Any]:
    """Make the snapshot, in place of one that is there; returns its record. It appears at once or not at all."""
    assert code.top is not None
    for old in code.folder.parent.glob(f".{code.folder.name}-*"):
        shutil.rmtree(old, ignore_errors=True)  # of a submission that was killed
    temporary = code.folder.with_name(f".{code.folder.name}-{secrets.token_hex(4)}")
    try:
        (temporary / "files").mkdir(parents=True)
        contents = _collect(code.top, code.no_code(), temporary / "files", "")
        (temporary / "files" / code.here.relative_to(code.top)).mkdir(parents=True, exist_ok=True)
        record = _record(code, contents)
        (temporary / "code.patch").write_bytes(contents.patch)
        write_atomically(temporary / "code.json", json.dumps(record, indent=1) + "\n")
        if code.folder.exists():
            code.folder.rename(code.folder.with_name(f"{temporary.name}-old"))
        temporary.rename(code.folder)
    except OSError as error:
        raise RefusedError(f"the code cannot be copied into {code.folder}: {error}") from None
    finally:
        for leftover in (temporary, code.folder.with_name(f"{temporary.name}-old")):
            shutil.rmtree(leftover, ignore_errors=True)
    return record


def tree(code: Code) -> str:
    """What identifies the code as it is now: equal to the `tree` of a snapshot of the same files."""
    assert code.top is not None
    return _collect(code.top, code.no_code(), None, "").tree


def told(record: dict[str, Any]) -> str:
    """A snapshot in one sentence."""
    revision = f"revision {str(record['revision'])[:12]}" if record.get("revision") else "no commit yet"
    parts = [f"{len(record[key])} {word}" for key, word in (("changed", "changed"), ("untracked", "new")) if record.get(key)]
    text = revision + (f" with {' and '.join(parts)} files" if parts else "")
    left = [str(one["path"]) for one in record.get("left_out", []) if one["why"] != _NO_CODE]
    more = f" and {len(left) - 3} more" if len(left) > 3 else ""
    return text + (f"; left out: {', '.join(left[:3])}{more} (code.json says why)" if left else "")


def _record(code: Code, contents: _Contents) -> dict[str, Any]:
    assert code.top is not None
    try:
        branch = os.fsdecode(git(code.top, "symbolic-ref", "--short", "-q", "HEAD").strip())
    except RefusedError:  # no branch is checked out
        branch = None
    return {
        "revision": head(code.top), "branch": branch, "tree": contents.tree, "top": str(code.top),
        "folder": str(code.here.relative_to(code.top)), "time": round(time.time(), 3), "changed": contents.changed[:_LISTED],
        "untracked": contents.untracked[:_LISTED], "left_out": contents.left_out[:_LISTED], "links": contents.links[:_LISTED],
        "submodules": contents.submodules,
    }  # fmt: skip


def _collect(top: Path, skip: Sequence[Path], into: Path | None, prefix: str) -> _Contents:
    """The contents of a repository (below `prefix` of the outer one, if it is a submodule), and its files, if `into` is given."""
    with tempfile.TemporaryDirectory(prefix="graft-git-") as scratch:
        found, environment = _Contents(), own_index(top, Path(scratch))

        def ask(*words: str, stdin: bytes = b"") -> bytes:
            return git(top, *words, environment=environment, stdin=stdin)

        ask("add", "-u", "--", ":/")
        new = _untracked(top, skip, prefix, found)
        ask("update-index", "--add", "-z", "--stdin", stdin=b"".join(os.fsencode(name) + b"\0" for name in new))
        found.untracked = [prefix + name for name in new]
        base = head(top) or os.fsdecode(ask("hash-object", "-t", "tree", os.devnull).strip())
        against = ("diff-index", "--cached", "--no-renames", "--ignore-submodules=all", base)
        names = [os.fsdecode(name) for name in ask(*against, "--name-only", "-z").split(b"\0") if name]
        found.changed = [prefix + name for name in names if name not in set(new)]
        found.patch = ask(*against, "-p", "--binary", "--full-index", "--no-ext-diff", "--no-textconv",
                          f"--src-prefix=a/{prefix}", f"--dst-prefix=b/{prefix}")  # fmt: skip
        name = held_in(found.patch, values())
        if name is not None:
            raise RefusedError(
                f"the changes in {top} that are not committed hold the value of ${name}, and the code is copied into the run "
                "folder; keep secrets in files of yours outside of the repository, such as ~/.netrc"
            )
        found.tree = os.fsdecode(ask("write-tree").strip())
        if into is not None:
            ask("checkout-index", "--all", "--force", "--quiet", f"--prefix={into}/")
        entries = [line.partition(b"\t") for line in ask("ls-files", "--stage", "-z").split(b"\0") if line]
        for facts, _, raw in entries:
            path = os.fsdecode(raw)
            if facts.startswith(b"120000"):
                _link(top, path, into, prefix, found)
            elif facts.startswith(b"160000"):
                _submodule(top, path, skip, into, prefix, found)
    return found


def _untracked(top: Path, skip: Sequence[Path], prefix: str, found: _Contents) -> list[str]:
    """The new files that go in, from the top of the repository; those that do not are noted with the reason."""
    names = [os.fsdecode(name) for name in git(top, "ls-files", "-z", "-o", "--exclude-standard").split(b"\0") if name]
    taken: list[str] = []
    noted: set[Path] = set()
    size, hidden = 0, values()
    for name in names:
        path = top / name
        folder = next((folder for folder in skip if path.is_relative_to(folder)), None)
        if folder is not None:
            if folder not in noted and folder.is_relative_to(top):
                noted.add(folder)
                found.left_out.append({"path": prefix + str(folder.relative_to(top)), "why": _NO_CODE})
            continue
        why = _unfit(path, hidden)
        if not why and (len(taken) >= MOST_FILES or size + path.lstat().st_size > MOST_BYTES):
            why = f"more than {MOST_FILES:,} new files, or {MOST_BYTES // 1_000_000} MB of them; commit what is code"
        if why:
            found.left_out.append({"path": prefix + name, "why": why})
        else:
            taken.append(name)
            size += path.lstat().st_size
    return taken


def _unfit(path: Path, hidden: dict[str, str]) -> str:
    """Why a new file stays out of a snapshot; empty when it goes in."""
    try:
        facts = path.lstat()
        if stat.S_ISDIR(facts.st_mode):
            return "a repository of its own"
        if stat.S_ISLNK(facts.st_mode):
            return ""
        if not stat.S_ISREG(facts.st_mode):
            return "not a plain file"
        if facts.st_size > LARGEST:
            return f"larger than {LARGEST // 1_000_000} MB; commit it if it is code"
        name = held_in(path.read_bytes(), hidden)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return f"holds the value of ${name}" if name else ""


def _link(top: Path, path: str, into: Path | None, prefix: str, found: _Contents) -> None:
    """A link within the repository leads into the snapshot; one that leaves it goes on to lead where it led, and is noted."""
    source = into / path if into is not None else top / path
    if not source.is_symlink():  # where git writes links as plain files
        return
    target = source.readlink()
    meant = Path(os.path.normpath((top / path).parent / target))
    if meant.is_relative_to(top):
        if into is not None and target.is_absolute():
            source.unlink()
            source.symlink_to(os.path.relpath(into / meant.relative_to(top), source.parent))
        return
    found.links.append({"path": prefix + path, "target": str(meant)})
    if into is not None and not target.is_absolute():
        source.unlink()
        source.symlink_to(meant)


def _submodule(top: Path, path: str, skip: Sequence[Path], into: Path | None, prefix: str, found: _Contents) -> None:
    """A submodule's files stand in the snapshot as in the working directory; one that is not checked out is noted."""
    inner = top / path
    if not (inner / ".git").exists():
        found.left_out.append({"path": prefix + path, "why": "a submodule that is not checked out: git submodule update --init"})
        return
    part = _collect(inner, skip, None if into is None else into / path, f"{prefix}{path}/")
    found.tree += f"+{part.tree}"
    found.patch += part.patch
    found.submodules.update({prefix + path: head(inner) or "", **part.submodules})
    for ours, theirs in ((found.changed, part.changed), (found.untracked, part.untracked)):
        ours += theirs
    for said, more in ((found.left_out, part.left_out), (found.links, part.links)):
        said += more


def needed(code: Code, path: Path) -> None:
    """Refuse when a file that the run needs was left out of its snapshot."""
    if path.is_relative_to(code.files) and not path.is_file():
        name = str(path.relative_to(code.files))
        why = [one["why"] for one in code.record().get("left_out", []) if one["path"] == name]
        raise UserError(f"{name} is not in the snapshot of the code" + (f": {why[0]}" if why else ""))


def kept(folder: Path) -> Code:
    """The snapshot that is there, as it was taken."""
    code = Code(Path("/"), None, folder)
    record = code.record()
    top = Path(record["top"])
    return Code(top / record["folder"], top, folder)
