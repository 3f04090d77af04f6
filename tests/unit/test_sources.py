"""Listings from real folders and files: what is listed, how it is split, and what is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trainer.config import GraftError, RefusedError, UserError
from trainer.config.run import Data
from trainer.config.sources import Item, Listing, Splits, open_source, open_splits
from trainer.config.targets import Target


def tree(root: Path, **counts: int) -> Path:
    """A folder of classes; listing needs the names alone, so the files hold their own name."""
    for name, count in counts.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (root / name / f"{index:03d}.jpg").write_text(name * (index + 1))
    return root


def splits(train: Path, val: Path | str | None = None, seed: int = 0, **keys: object) -> Splits:
    source = f"folder:{val}" if isinstance(val, Path) else val
    return open_splits(Data.model_validate({"train": f"folder:{train}", "val": source, **keys}), seed)


def refused(call: object, *words: str, kind: type[GraftError] = UserError) -> None:
    assert callable(call)
    with pytest.raises(kind) as caught:
        call()
    for word in words:
        assert word in str(caught.value)


def by_class(listing: Listing) -> dict[str, int]:
    return dict(zip(listing.classes, listing.counts(), strict=True))


def test_listing_needs_no_torch_and_no_numpy(tmp_path: Path) -> None:
    tree(tmp_path, a=2, b=2)
    code = (
        "import sys; from trainer.config.sources import open_source;"
        f"open_source('digits:0-4'); open_source('folder:{tmp_path}');"
        "sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'sklearn', 'PIL')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- folder


def test_folder_lists_images_at_any_depth_and_nothing_else(tmp_path: Path) -> None:
    for name in (
        "b/1.JPG",
        "b/deep/er/2.webp",
        "a/3.tiff",
        "a/.hidden.jpg",
        "a/.git/x.jpg",
        "a/notes.txt",
        ".cache/x.jpg",
        "loose.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    listing = open_source(f"folder:{tmp_path}")
    assert listing.classes == ("a", "b")
    assert listing.items == (Item("a/3.tiff", 0), Item("b/1.JPG", 1), Item("b/deep/er/2.webp", 1))


def test_folder_follows_links_but_not_in_circles(tmp_path: Path) -> None:
    data = tree(tmp_path / "elsewhere", a=2)
    root = tree(tmp_path / "root", b=1)
    (root / "a").symlink_to(data / "a")
    (data / "a" / "again").symlink_to(data / "a")
    assert by_class(open_source(f"folder:{root}")) == {"a": 2, "b": 1}


def test_images_need_no_classes_where_nobody_looks_at_them(tmp_path: Path) -> None:
    root = tmp_path / "loose"
    for name in ("b.png", "a.png", "deep/er/c.jpg", "deep/.hidden.png", "notes.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x")
    loose = open_source(f"folder:{root}", looks_at="nothing")
    assert [item.key for item in loose.items] == ["a.png", "b.png", "deep/er/c.jpg"]
    assert loose.classes == ("images",)
    assert open_source("digits:0-4/val", looks_at="nothing").counts() == [178]
    data = Data(train=f"folder:{root}", val="split:0.4", min_per_class=1)
    found = open_splits(data, 0, looks_at="nothing")
    assert found.val is not None
    assert len(found.train.items) + len(found.val.items) == 3
    refused(
        lambda: open_splits(Data(train=f"folder:{root / 'deep' / 'er'}"), 0), "no class folders", "1 images lie directly in it"
    )
    chosen = open_splits(Data(train="digits:0-9/train", val="digits:0-9/val", classes=["3", "7"]), 0, looks_at="nothing")
    assert chosen.val is not None
    plain = open_splits(Data(train="digits:0-9/train", val="digits:0-9/val", classes=["3", "7"]), 0)
    assert plain.val is not None
    assert [item.key for item in chosen.train.items] == [item.key for item in plain.train.items]
    assert [item.key for item in chosen.val.items] == [item.key for item in plain.val.items]
    (tmp_path / "empty").mkdir()
    refused(lambda: open_source(f"folder:{tmp_path / 'empty'}", looks_at="nothing"), "no image in it or below it")


def test_folder_mistakes_are_named(tmp_path: Path) -> None:
    root = tree(tmp_path / "clothing", hat=1, shoes=1)
    refused(lambda: open_source(f"folder:{tmp_path / 'clothign'}"), "no such folder", "did you mean 'clothing'?")
    refused(lambda: open_source(f"folder:{root / 'hat' / '000.jpg'}"), "not a folder")
    refused(lambda: open_source(f"folder:{root / 'hat'}"), "no class folders", "1 images lie directly in it")
    refused(lambda: open_source(f"folder:{tmp_path / 'no' / 'where'}"), "nor is there")
    refused(lambda: open_source("folder:"), "folder:PATH")
    (root / "skirt").mkdir()
    refused(lambda: open_source(f"folder:{root}"), "class 'skirt' is empty")
    tree(tmp_path / "all" / "train", a=1), tree(tmp_path / "all" / "test", a=1)
    refused(lambda: open_source(f"folder:{tmp_path / 'all'}"), "look like splits", f"write folder:{tmp_path / 'all' / 'train'}")


def test_unknown_scheme() -> None:
    refused(lambda: open_source("foldr:x"), "unknown data source 'foldr'", "did you mean 'folder'?")
    refused(lambda: open_source("/data/x"), "unknown data source '/data/x'", "folder:PATH")


# --- csv


def table(folder: Path, text: str, images: tuple[str, ...] = ("a.jpg", "b.jpg", "sub/c.jpg")) -> str:
    for name in images:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    (folder / "rows.csv").write_bytes(text.encode())
    return f"csv:{folder / 'rows.csv'}"


@pytest.mark.parametrize("text", ["path,class\n", "\ufeffpath;note;class\n", "id\tclass\tpath\r\n"])
def test_csv_finds_columns_and_separator(tmp_path: Path, text: str) -> None:
    header = text.strip("\ufeff\r\n")
    separator = next(c for c in ";\t," if c in header)
    columns = header.split(separator)
    rows = [{"path": "sub/c.jpg", "class": "x y"}, {"path": "./a.jpg", "class": "z"}]
    body = "\n\n".join(separator.join(row.get(c, "-") for c in columns) for row in rows)
    listing = open_source(table(tmp_path, text + body))
    assert (listing.classes, listing.items) == (("x y", "z"), (Item("a.jpg", 1), Item("sub/c.jpg", 0)))
    assert listing.root == tmp_path


def test_csv_columns_by_name_and_numbers_in_order(tmp_path: Path) -> None:
    source = table(tmp_path, 'my image,grade\na.jpg,10\nb.jpg,9\n"sub/c.jpg",-1\n')
    listing = open_source(source + "?image=my+image&label=grade")
    assert listing.classes == ("-1", "9", "10")
    refused(lambda: open_source(source + "?image=my+image&lable=grade"), "unknown 'lable'", "did you mean 'label'")
    refused(lambda: open_source(source), "row 1", "no column image or path or file or filename", "my image, grade")


@pytest.mark.parametrize(
    ("rows", "words", "kind"),
    [
        ("a.jpg,x\nno.jpg,y", ("row 3", "no such file: no.jpg"), UserError),
        ("a.jpg,x\n\nb.jpg, ", ("row 4", "label of 'b.jpg' is empty"), UserError),
        (",x", ("row 2", "path is empty"), UserError),
        ("a.jpg", ("row 2", "1 columns", "header has 2"), UserError),
        ("a.jpg,x\nb.jpg,x\n./a.jpg,y", ("row 4", "labelled 'y'", "'x' in row 2"), UserError),
        ("sub,x", ("row 2", "not a file"), UserError),
        ("a.jpg,x\n../secret.jpg,y", ("row 3", "leaves"), RefusedError),
        ("sub/../../secret.jpg,y", ("row 2", "leaves"), RefusedError),
        ("/etc/hostname,y", ("row 2", "absolute"), RefusedError),
        ("link.jpg,y", ("row 2", "link that leaves", "secret.jpg"), RefusedError),
        ("out/secret.jpg,y", ("row 2", "link that leaves"), RefusedError),
        ("dangling.jpg,y", ("row 2",), GraftError),
        ("a.jpg,x\n'a\x00.jpg',y", ("row 3",), UserError),
        ('a.jpg,x\n"b.jpg,y', ("row 3",), UserError),
        ("", ("no rows",), UserError),
    ],
)
def test_csv_rows_are_named(tmp_path: Path, rows: str, words: tuple[str, ...], kind: type[GraftError]) -> None:
    (tmp_path / "secret.jpg").write_text("s")
    folder = tmp_path / "data"
    source = table(folder, "image,label\n" + rows)
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "out").symlink_to(tmp_path)
    (folder / "dangling.jpg").symlink_to(tmp_path / "nothing")
    refused(lambda: open_source(source), "rows.csv", *words, kind=kind)


def test_csv_links_inside_are_fine_and_repeated_rows_count_once(tmp_path: Path) -> None:
    source = table(tmp_path, "image,label\nlink.jpg,x\nb.jpg,y\nb.jpg,y\n")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "a.jpg")
    assert by_class(open_source(source)) == {"x": 1, "y": 1}


def test_csv_file_mistakes(tmp_path: Path) -> None:
    source = table(tmp_path, "image,label\na.jpg,x\n")
    refused(lambda: open_source(source.replace("rows", "row")), "no such CSV file", "rows.csv")
    (tmp_path / "rows.csv").write_bytes(b"image,label\na.jpg,\xff\n")
    refused(lambda: open_source(source), "not UTF-8")


# --- digits


def test_digits_subsets_are_disjoint_and_whole() -> None:
    whole = open_source("digits")
    assert (len(whole.items), whole.classes) == (1797, tuple("0123456789"))
    train, val = open_source("digits:/train"), open_source("digits:/val")
    assert sorted([*train.items, *val.items], key=lambda i: int(i.key)) == list(whole.items)
    assert val.counts() == [count // 5 for count in whole.counts()]
    some = open_source("digits:7,1-2/val")
    assert some.classes == ("1", "2", "7")
    names = {item.key: whole.classes[item.label] for item in whole.items}
    assert all(names[item.key] == some.classes[item.label] for item in some.items)


@pytest.mark.parametrize("rest", ["10", "4-0", "a", "1,,2", "0-4/vall", "/"])
def test_digits_mistakes(rest: str) -> None:
    refused(lambda: open_source(f"digits:{rest}"), f"digits:{rest}")


# --- splits


def test_validation_is_matched_by_name(tmp_path: Path) -> None:
    """A plain class-per-folder reader numbers each folder by itself: here every later label would shift."""
    train = tree(tmp_path / "train", ant=3, bee=3, cat=3)
    val = tree(tmp_path / "val", bee=1, cat=2, ant=1)
    both = splits(train, val)
    assert both.val is not None
    assert both.val.classes == both.train.classes == ("ant", "bee", "cat")
    assert all(item.key.startswith(both.val.classes[item.label]) for item in both.val.items)
    (val / "ant" / "000.jpg").unlink()
    (val / "ant").rmdir()
    refused(lambda: splits(train, val), "data.val", "class 'ant' has no validation image")
    two = splits(train, val, classes=["cat", "bee"])
    assert two.val is not None
    assert by_class(two.train) == {"cat": 3, "bee": 3}
    assert by_class(two.val) == {"cat": 2, "bee": 1}
    assert two.train.classes == ("cat", "bee")
    tree(val, ant=1, cow=1)
    refused(lambda: splits(train, val), "class 'cow' is not in data.train", "data.classes")


def test_named_classes(tmp_path: Path) -> None:
    train = tree(tmp_path / "train", ant=3, bee=3)
    refused(lambda: splits(train, classes=["ant", "be"]), "'be' is not in data.train", "did you mean 'bee'?")
    refused(lambda: splits(train, classes=["ant", "ant"]), "'ant' twice")
    refused(lambda: splits(train, classes=["ant"]), "only one class, 'ant'")
    refused(lambda: splits(train, classes=[]), "data.classes is empty")
    source = open_source(f"folder:{train}", [Target("", "class", ("cow", "bee", "ant"))])
    assert by_class(source) == {"cow": 0, "bee": 3, "ant": 3}
    refused(lambda: open_source(f"folder:{train}", [Target("", "class", ("ant", "beet"))]), "class 'bee'", "did you mean 'beet'?")


def test_too_few_images(tmp_path: Path) -> None:
    train = tree(tmp_path / "train", ant=3, bee=1)
    refused(lambda: splits(train), "class 'bee' has 1 training image, fewer than data.min_per_class 2")
    assert splits(train, min_per_class=1).train.counts() == [3, 1]
    refused(lambda: splits(train, "split:0.5", min_per_class=1), "class 'bee' has 1 image")
    tree(train, ant=5, bee=2)
    refused(lambda: splits(train, "split:0.5"), "class 'bee' has 1 training image after 1 of 2 were held back")


def test_training_samples_are_not_measured(tmp_path: Path) -> None:
    train = tree(tmp_path / "train", ant=3, bee=3)
    refused(lambda: splits(train, train), "same source")
    (tmp_path / "alias").symlink_to(train)
    refused(lambda: splits(train, tmp_path / "alias"), "6 of its 6 samples are also in data.train", "ant/000.jpg")
    refused(lambda: open_splits(Data(train="digits:0-4/train", val="digits:0-4"), 0), "also in data.train")
    assert open_splits(Data(train="digits:0-4/train", val="digits:0-4/val"), 0).val is not None


@pytest.mark.parametrize("share", ["0", "1", "1.5", "-0.1", "x", "", "nan"])
def test_share_of_a_hold_out(tmp_path: Path, share: str) -> None:
    train = tree(tmp_path, ant=3, bee=3)
    refused(lambda: splits(train, f"split:{share}"), "split:0.2")


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 2**32 - 1), per_class=st.none() | st.integers(1, 9))
def test_hold_out_is_a_stratified_function_of_seed_and_key(
    tmp_path: Path, share: float, seed: int, per_class: int | None
) -> None:
    train = tree(tmp_path, ant=2, bee=11, cat=30)
    keys = {"min_per_class": 1, "per_class": per_class}
    both = splits(train, f"split:{share}", seed, **keys)
    assert both.val is not None
    kept, held = ({item.key for item in part.items} for part in (both.train, both.val))
    assert not kept & held
    for total, left, out in zip((2, 11, 30), both.train.counts(), both.val.counts(), strict=True):
        assert 1 <= out <= total - 1
        assert abs(out - share * total) <= 1
        assert left == min(total - out, per_class or total)
    assert both == splits(train, f"split:{share}", seed, **keys)
    more = splits(train, f"split:{share}", seed, min_per_class=1)
    assert kept <= {item.key for item in more.train.items}


def test_another_seed_holds_others_back(tmp_path: Path) -> None:
    train = tree(tmp_path, ant=20, bee=20)
    assert len({splits(train, "split:0.5", seed).train.items for seed in range(5)}) == 5


# --- fingerprint


def test_fingerprint_sees_what_changed_and_not_where_it_lies(tmp_path: Path) -> None:
    root = tree(tmp_path / "one", ant=3, bee=3)
    first = open_source(f"folder:{root}").fingerprint()
    moved = root.rename(tmp_path / "two")
    assert open_source(f"folder:{moved}").fingerprint() == first
    seen = {first}
    for change in (
        lambda: (moved / "ant" / "000.jpg").write_text("longer than it was"),
        lambda: (moved / "ant" / "000.jpg").rename(moved / "ant" / "9.jpg"),
        lambda: (moved / "bee" / "000.jpg").unlink(),
        lambda: (moved / "bee").rename(moved / "wasp"),
    ):
        change()
        seen.add(open_source(f"folder:{moved}").fingerprint())
    assert len(seen) == 5
    listing = open_source(f"folder:{moved}")
    (moved / "ant" / "9.jpg").unlink()
    assert listing.fingerprint() not in seen
    assert len({open_source(f"digits:{rest}").fingerprint() for rest in ("", "0-4", "0-4/val", "5-9/val")}) == 4


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    root = tree(tmp_path, ant=2, bee=2)
    (Path(os.fsdecode(os.fsencode(root / "ant") + b"/\xff.jpg"))).write_text("x")
    listing = open_source(f"folder:{root}")
    assert listing.counts() == [3, 2]
    assert listing.fingerprint() == open_source(f"folder:{root}").fingerprint()
    assert splits(root, "split:0.4", min_per_class=1).val is not None
