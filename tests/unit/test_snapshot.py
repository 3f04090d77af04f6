"""The copy of the code: what goes in, what stays out, and that it is what the working directory was."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from launcher import snapshot
from launcher.snapshot import Code, look, needed, take, told, tree
from trainer.config import RefusedError, UserError


def git(folder: Path, *words: str) -> str:
    settings = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", *settings, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "nets").mkdir(parents=True)
    (folder / "nets" / "small.py").write_text("A = 1\n")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "old.py").write_text("gone\n")
    (folder / ".gitignore").write_text("*.log\nruns/\n")
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def code_of(repo: Path, here: Path | None = None, *skip: Path) -> Code:
    folder = repo / "runs" / "x"
    folder.mkdir(parents=True, exist_ok=True)
    return look(here or repo, folder / "code", skip)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file below a folder: mode and bytes (a link: what it says)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsdecode(path.relative_to(folder))
        if path.is_symlink():
            found[name] = (0, os.fsencode(path.readlink()))
        elif path.is_file() and ".git" not in path.parts:
            found[name] = (path.stat().st_mode & 0o111, path.read_bytes())
    return found


def test_the_files_are_those_of_the_working_directory_and_follow_from_revision_and_patch(repo: Path, tmp_path: Path) -> None:
    (repo / "nets" / "small.py").write_text("A = 2\n")
    (repo / "old.py").unlink()
    (repo / "staged.py").write_text("S = 1\n")
    git(repo, "add", "staged.py")
    (repo / "new \n -rf 'x'.py").write_text("N = 1\n")
    (repo / "-dash.py").write_text("D = 1\n")
    (repo / os.fsdecode(b"latin-\xe9.bin")).write_bytes(bytes(range(256)))
    (repo / "train.log").write_text("not code")
    code = code_of(repo)
    before = git(repo, "status", "--porcelain"), (repo / ".git" / "index").read_bytes(), git(repo, "count-objects")
    record = take(code)
    assert before == (git(repo, "status", "--porcelain"), (repo / ".git" / "index").read_bytes(), git(repo, "count-objects"))
    files = contents(code.files)
    there = {n: v for n, v in contents(repo).items() if not n.startswith(("runs/", ".git/")) and n != "train.log"}
    assert files == there
    assert (files["run.sh"][0], files["-dash.py"][1], "old.py" in files) == (0o111, b"D = 1\n", False)
    assert record["revision"] == git(repo, "rev-parse", "HEAD").strip()
    assert record["branch"] == "main"
    assert record["changed"] == ["nets/small.py", "old.py", "staged.py"]
    assert len(record["untracked"]) == 3
    assert record == json.loads((code.folder / "code.json").read_text()) == code.record()
    assert told(record).endswith("with 3 changed and 3 new files")

    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(repo), str(again))
    git(again, "apply", "--binary", str(code.folder / "code.patch"))
    assert {n: v for n, v in contents(again).items() if not n.startswith(".git/")} == files


def test_the_tree_tells_whether_the_code_changed(repo: Path) -> None:
    code = code_of(repo)
    assert take(code)["tree"] == tree(code)
    (repo / "nets" / "small.py").write_text("A = 3\n")
    assert code.record()["tree"] != tree(code)
    assert (code.files / "nets" / "small.py").read_text() == "A = 1\n", "the copy stays what it was"
    take(code)
    assert (code.files / "nets" / "small.py").read_text() == "A = 3\n"
    assert [path.name for path in code.folder.parent.iterdir()] == ["code"], "nothing temporary is left"


def test_a_file_that_changed_in_the_second_of_its_commit_is_seen(repo: Path) -> None:
    """As many bytes in the same second as those that git knows: the time of the index alone tells that it may not be sure."""
    file, code = repo / "nets" / "small.py", code_of(repo)
    time.sleep(1 - time.time() % 1)
    file.write_text("A = 2\n")
    subprocess.run(["git", "-C", str(repo), "commit", "-qam", "two"], check=True)
    file.write_text("A = 3\n")
    time.sleep(1 - time.time() % 1)
    take(code)
    assert (code.files / "nets" / "small.py").read_text() == "A = 3\n"


def test_a_folder_below_the_top_is_where_the_job_works(repo: Path) -> None:
    code = code_of(repo, repo / "nets")
    take(code)
    assert code.work == code.files / "nets"
    assert (code.work / "small.py").is_file()
    (repo / "empty").mkdir()
    bare = code_of(repo, repo / "empty")
    take(bare)
    assert bare.work.is_dir()


def test_paths_of_the_repository_are_moved_and_others_are_not(repo: Path, tmp_path: Path) -> None:
    (repo / "mine.py").write_text("")
    (repo / "ignored.log").write_text("")
    (tmp_path / "else.py").write_text("")
    code = code_of(repo)
    for name in ("nets/small.py", "mine.py"):
        assert code.moved(repo / name) == code.files / name
    (repo / "other").mkdir()
    git(repo / "other", "init", "-q")
    (repo / "other" / "a.py").write_text("")
    for path in (repo / "ignored.log", repo / "other" / "a.py", tmp_path / "else.py", repo / "none.py"):
        assert code.moved(path) == path


def test_a_file_in_another_snapshot_stays_where_it_is(repo: Path) -> None:
    (repo / ".gitignore").write_text("")
    code = code_of(repo, None, repo / "runs")
    other = repo / "runs" / "sweep" / "code" / "files" / "nets.py"
    other.parent.mkdir(parents=True)
    other.write_text("")
    assert code.moved(other) == other
    around = code_of(repo, None, repo.parent, repo)
    assert around.moved(repo / "old.py") == around.files / "old.py", "runs may lie around the repository"
    assert take(around)["left_out"] == []


def test_what_is_no_code_is_left_out_and_named(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "LARGEST", 100)
    monkeypatch.setenv("MY_TOKEN", "hush-hush-1234")
    (repo / "large.bin").write_bytes(b"x" * 101)
    (repo / ".env").write_text("MY_TOKEN=hush-hush-1234")
    (repo / "images").mkdir()
    (repo / "images" / "a.png").write_bytes(b"")
    os.mkfifo(repo / "pipe")
    (repo / "other").mkdir()
    git(repo / "other", "init", "-q")
    code = code_of(repo, None, repo / "images")
    record = take(code)
    assert {one["path"]: one["why"].split(";")[0] for one in record["left_out"]} == {
        "large.bin": "larger than 0 MB", ".env": "holds the value of $MY_TOKEN", "images": "runs or data, not code",
        "other/": "a repository of its own",
    }  # fmt: skip
    assert set(contents(code.files)) == {".gitignore", "nets/small.py", "old.py", "run.sh"}
    assert "hush-hush" not in "".join(path.read_text() for path in code.folder.rglob("*") if path.is_file())
    with pytest.raises(UserError, match=r"large\.bin is not in the snapshot of the code: larger than"):
        needed(code, code.files / "large.bin")


def test_a_secret_in_changes_is_refused_and_nothing_is_left(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    (repo / "old.py").write_text("key = '0123456789abcdef'\n")
    code = code_of(repo)
    with pytest.raises(RefusedError, match=r"hold the value of \$WANDB_API_KEY"):
        take(code)
    assert list(code.folder.parent.iterdir()) == []


def test_many_new_files_are_bounded(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "MOST_FILES", 3)
    for number in range(5):
        (repo / f"n{number}.py").write_text("")
    record = take(code_of(repo))
    assert (len(record["untracked"]), len(record["left_out"])) == (3, 2)


def test_links_lead_where_they_led_and_never_back_into_the_repository(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (repo / "inside").symlink_to("nets/small.py")
    (repo / "absolute").symlink_to(repo / "nets" / "small.py")
    (repo / "nets" / "out").symlink_to("../../data")
    (repo / "etc").symlink_to("/etc")
    (repo / "dangling").symlink_to("nowhere")
    git(repo, "add", "inside", "nets/out")
    code = code_of(repo)
    record = take(code)
    links = {name: (code.files / name).readlink() for name in ("inside", "absolute", "nets/out", "etc", "dangling")}
    assert links == {
        "inside": Path("nets/small.py"), "absolute": Path("nets/small.py"), "nets/out": tmp_path / "data",
        "etc": Path("/etc"), "dangling": Path("nowhere"),
    }  # fmt: skip
    assert {one["path"]: one["target"] for one in record["links"]} == {"nets/out": str(tmp_path / "data"), "etc": "/etc"}


def test_submodules_are_copied_as_they_are(repo: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    git(inner, "init", "-q")
    (inner / "layer.py").write_text("L = 1\n")
    git(inner, "add", "-A")
    git(inner, "commit", "-q", "-m", "inner")
    git(repo, "submodule", "add", "-q", str(inner), "lib/inner")
    git(repo, "submodule", "add", "-q", str(inner), "lib/absent")
    git(repo, "commit", "-q", "-m", "submodules")
    git(repo, "submodule", "deinit", "-q", "-f", "lib/absent")
    (repo / "lib" / "inner" / "layer.py").write_text("L = 2\n")
    code = code_of(repo)
    record = take(code)
    assert (code.files / "lib" / "inner" / "layer.py").read_text() == "L = 2\n"
    assert record["changed"] == ["lib/inner/layer.py"]
    assert record["submodules"] == {"lib/inner": git(inner, "rev-parse", "HEAD").strip()}
    assert "+++ b/lib/inner/layer.py" in (code.folder / "code.patch").read_text()
    assert record["left_out"][0]["path"] == "lib/absent"
    assert code.moved(repo / "lib" / "inner" / "layer.py") == code.files / "lib" / "inner" / "layer.py"


def test_without_a_repository_or_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    bare = look(tmp_path, tmp_path / "code")
    assert (bare.top, bare.work, bare.moved(tmp_path / "a.py")) == (None, tmp_path, tmp_path / "a.py")
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("first")
    first = look(tmp_path, tmp_path / "code")
    record = take(first)
    assert (record["revision"], record["untracked"]) == (None, ["a.py"])
    assert (first.files / "a.py").read_text() == "first"


def test_a_repository_that_git_does_not_read_is_refused(repo: Path) -> None:
    (repo / ".git" / "config").write_text("[broken\n")
    with pytest.raises(RefusedError, match=r"git rev-parse in .*bad config"):
        code_of(repo)


def test_what_a_killed_submission_left_is_cleaned_away(repo: Path) -> None:
    code = code_of(repo)
    (code.folder.parent / ".code-dead" / "files").mkdir(parents=True)
    (code.folder.parent / ".code-dead-old").mkdir()
    take(code)
    assert [path.name for path in code.folder.parent.iterdir()] == ["code"]


def test_a_worktree_and_hostile_settings_of_git_change_nothing(
    repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / 'work "tree": 1'
    git(repo, "worktree", "add", "-q", "-b", "other", str(other))
    hook = repo / ".git" / "hooks" / "post-index-change"
    hook.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    hook.chmod(0o755)
    for key, value in (("diff.noprefix", "true"), ("diff.external", f"touch {tmp_path}/ran"), ("core.autocrlf", "input")):
        git(repo, "config", key, value)
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nowhere"))
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "nowhere"))
    (other / "nets" / "small.py").write_text("A = 9\n")
    code = look(other, tmp_path / "code")
    take(code)
    assert (code.files / "nets" / "small.py").read_text() == "A = 9\n"
    assert "+++ b/nets/small.py" in (code.folder / "code.patch").read_text()
    assert not (tmp_path / "ran").exists()


def test_keys_of_the_users_netrc_stay_out(repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A home that is a repository holds the file itself, another repository perhaps a copy."""
    monkeypatch.setenv("HOME", str(repo))
    monkeypatch.delenv("NETRC", raising=False)
    (repo / ".netrc").write_text("machine api.wandb.ai login user password 0123456789abcdef0123\n")
    record = take(code_of(repo))
    assert {one["path"]: one["why"] for one in record["left_out"]}[".netrc"] == "holds the value of $HOME/.netrc (api.wandb.ai)"
    assert not (repo / "runs" / "x" / "code" / "files" / ".netrc").exists()
    (repo / "run.sh").write_text("wandb login 0123456789abcdef0123\n")
    with pytest.raises(RefusedError, match=r"hold the value of \$HOME/.netrc \(api.wandb.ai\)"):
        take(code_of(repo))
