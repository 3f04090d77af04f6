"""Sources that say more of an image than one class: what is read, matched and split, and what is refused with its row."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pictures import TAGS, pictures
from trainer.config import UserError
from trainer.config.data import Data
from trainer.config.sampling import expected, rates
from trainer.config.sources import Listing, Splits, open_source, open_splits
from trainer.config.targets import Facts
from trainer.data import ImageDataset
from trainer.spec import InputSpec

NAN = math.nan


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("pictures"))


def splits(source: str, **keys: Any) -> Splits:
    return open_splits(Data.model_validate({"train": source, **keys}), 0)


def refused(source: str, *words: str, **keys: Any) -> None:
    with pytest.raises(UserError) as caught:
        splits(source, **keys)
    for word in words:
        assert word in str(caught.value)


def written(folder: Path, text: str) -> str:
    """A csv with rows whose pictures are there; its source."""
    lines = text.strip().splitlines()
    for line in lines[1:]:
        (folder / line.split(",")[0]).write_bytes(b"x")
    (folder / "rows.csv").write_text("\n".join(lines))
    return f"csv:{folder}/rows.csv"


def values(listing: Listing) -> list[tuple[float, ...]]:
    return [item.values for item in listing.items]


def same(found: list[tuple[float, ...]], wanted: list[tuple[float, ...]]) -> None:
    np.testing.assert_array_equal(np.array(found), np.array(wanted))


# --- csv


def test_names_columns_of_0_and_1_and_numbers(tmp_path: Path) -> None:
    source = written(tmp_path, "image,tags,a,b,age\nx.png,red; big,1,,3.5\ny.png,,0,true,\nz.png,big|old,1.0,0,-2e3")
    tags = open_source(source + "?labels=tags")
    assert tags.targets[0].labels == ("big", "old", "red")
    assert tags.classes == ()
    same(values(tags), [(1, 0, 1), (0, 0, 0), (1, 1, 0)])
    two = open_source(source + "?labels=a,b")
    assert (two.targets[0].name, two.targets[0].labels) == ("labels", ("a", "b"))
    same(values(two), [(1, NAN), (0, 1), (1, 0)])
    ages = open_source(source + "?value=age")
    same(values(ages), [(3.5,), (NAN,), (-2000,)])
    assert [item.label for item in ages.items] == [-1, -1, -1]
    known = ages.facts.targets[0]
    assert known.known == (2,)
    assert [*known.mean, *known.std] == pytest.approx([-998.25, np.std([3.5, -2000])])
    assert Facts.from_json(json.loads(json.dumps(two.facts.as_json()))) == two.facts


def test_several_targets_are_put_side_by_side(rows: Path) -> None:
    listing = open_source(f"csv:{rows}?value=at:size,shade&label=kind&labels=tags&labels=flaws:framed,tilted")
    assert [(t.name, t.kind, t.width) for t in listing.targets] == [
        ("kind", "class", 1), ("tags", "labels", 3), ("flaws", "labels", 2), ("at", "values", 2),
    ]  # fmt: skip
    assert listing.classes == ("bar", "dot", "ring")
    assert listing.items[8].label == -1
    assert math.isnan(listing.items[8].values[0])
    first = listing.items[0].values
    assert first[0] == listing.items[0].label == 0
    assert sum(listing.counts()) == 86
    assert [t.known for t in listing.facts.targets] == [(86,), (96, 96, 96), (77, 96), (83, 96)]
    two = open_source(f"csv:{rows}?label=kind,tilted&value=size")
    assert [(t.name, t.kind) for t in two.targets] == [("kind", "class"), ("tilted", "class"), ("size", "values")]


def test_a_name_with_a_comma_or_a_colon_is_a_column(tmp_path: Path) -> None:
    source = written(tmp_path, 'image,"a,b",dc:age\nx.png,1,4\ny.png,2,5')
    assert open_source(source + "?value=dc:age").targets[0].labels == ("dc:age",)
    assert [t.name for t in open_source(source + "?value=both:a,b&value=old:dc:age").targets] == ["both", "old"]


BAD = [
    ("?value=age", "x.png,1\ny.png,seven", ("row 3", "'age' is 'seven'", "write a number")),
    ("?value=age", "x.png,1\ny.png,nan", ("row 3", "'age' is 'nan'")),
    ("?value=age", "x.png,1\ny.png,1_0", ("row 3", "'age' is '1_0'")),
    ("?value=age", "x.png,\ny.png,", ("the column 'age' is empty in every row",)),
    ("?value=age", "x.png,4\ny.png,4\nz.png,", ("the value 'age' is 4 in all 2 training images",)),
    ("?value=age", "x.png,1000000\ny.png,1000001", ("hardly tell apart", "subtract 1e+06")),
    ("?labels=age", "x.png,red|red\ny.png,big", ("row 2", "names the label 'red' twice")),
    ("?labels=age", "x.png,red||big\ny.png,big", ("row 2", "a label is empty")),
    ("?labels=age", "x.png,\ny.png,", ("the column 'age' has no label in any row",)),
    ("?labels=age", "x.png,1\ny.png,0", ("read as names of labels and has only 0 and 1", "label=age")),
    ("?labels=age,image", "x.png,1\ny.png,0", ("row 2", "'image' is 'x.png'; write 1")),
    ("?labels=age,age", "x.png,1\ny.png,0", ("names a column twice",)),
    ("?labels=agee", "x.png,1\ny.png,0", ("row 1", "no column 'agee'", "did you mean 'age'", "it has image, age")),
    ("?value=age&value=age", "x.png,1\ny.png,0", ("two targets are called 'age'", "value=NAME:age")),
    ("?label=x:image,age", "x.png,1\ny.png,0", ("gives one name to",)),
    ("?label=age", "x.png,\ny.png,0", ("row 2", "the label of 'x.png' is empty")),
    ("?value=age", "x.png,1\nx.png,2", ("row 3", "'x.png' is said to be something else than in row 2")),
    ("?labels=age", "x.png,red\ny.png,big\nz.png,big", ("label 'red' of 'age' has 1 training image", "min_per_class 2")),
    ("?label=age,image", "x.png,1\ny.png,1", ("only one class of 'age', '1'",)),
]  # fmt: skip


@pytest.mark.parametrize(("query", "text", "words"), BAD)
def test_mistakes_are_named_with_their_row(tmp_path: Path, query: str, text: str, words: tuple[str, ...]) -> None:
    refused(written(tmp_path, "image,age\n" + text) + query, *words)


def test_other_sources_refuse_the_keys_by_name(tmp_path: Path) -> None:
    for source in (f"folder:{tmp_path}?labels=tags", "digits:0-4?value=age", f"torchvision:CIFAR10?root={tmp_path}&labels=tags"):
        refused(source, "says one class of an image and has no '?", "csv:FILE?image=COLUMN&")


# --- validation, splits, sampling


def test_validation_is_matched_by_target_and_label(tmp_path: Path, rows: Path) -> None:
    query = "?label=kind&labels=tags&labels=two:bright,framed&value=size"
    header = "image,kind,tags,framed,bright,size\n"
    other = written(tmp_path, header + "a.png,dot,framed,1,0,12\nb.png,ring,,,1,\nc.png,bar,tilted|bright,0,0,11")
    found = splits(f"csv:{rows}{query}", val=f"{other}?value=size&labels=two:framed,bright&labels=tags&label=kind")
    assert found.val is not None
    assert found.val.targets == found.train.targets
    same(values(found.val), [(1, 0, 1, 0, 0, 1, 12), (2, 0, 0, 0, 1, NAN, NAN), (0, 1, 0, 1, 0, 0, 11)])
    assert [item.label for item in found.val.items] == [1, 2, 0]
    partial = written(tmp_path, "image,kind,size\na.png,ring,1\nb.png,dot,2")  # to be measured: without bars, numbered otherwise
    asked = open_source(f"{partial}?label=kind&value=size", open_source(f"csv:{rows}?label=kind&value=size").targets)
    assert [(item.label, item.values) for item in asked.items] == [(2, (2, 1)), (1, (1, 2))]
    train = f"csv:{rows}?labels=tags"
    wrong = [
        (train, "image,tags\na.png,framd\nb.png,bright", "?labels=tags", "label 'framd' of 'tags' (in a.png) is not in"),
        (train, "image,tags\na.png,framed", "?labels=more:tags", "data.val: it must say 'tags' and says 'more'"),
        (train, "image,tags,n\na.png,x,1", "?label=tags&value=n", "'tags' is read as one class and must be labels"),
        (f"csv:{rows}?value=size", "image,size,n\na.png,1,1", "?value=size,n", "it also says 'n'"),
        (f"csv:{rows}?labels=bright,framed,tilted", "image,bright,framed\na.png,1,1\nb.png,0,0", "?labels=bright,framed",
         "no column for the label 'tilted'"),
        (f"csv:{rows}?label=kind&value=size", "image,kind,size\na.png,dot,1\nb.png,bar,2", "?label=kind&value=size",
         "class 'ring' of 'kind' has no validation image"),
    ]  # fmt: skip
    for source, text, query, words in wrong:
        refused(source, words, val=written(tmp_path, text) + query)


def test_labels_are_spread_over_folds_and_shares(rows: Path) -> None:
    source = f"csv:{rows}?labels=tags"
    whole = open_source(source).facts.targets[0].counts
    keys: list[str] = []
    for number in range(1, 5):
        val = splits(source, val=f"fold:{number}/4").val
        assert val is not None
        keys += [item.key for item in val.items]
        for count, total in zip(val.facts.targets[0].counts, whole, strict=True):
            assert abs(count - total / 4) <= 4
    assert sorted(keys) == [item.key for item in open_source(source).items]
    held = splits(source, val="split:0.25").val
    assert held is not None
    assert all(abs(n - total / 4) <= 4 for n, total in zip(held.facts.targets[0].counts, whole, strict=True))
    some = splits(source, fraction=0.5).train.items
    assert {item.key for item in splits(source, fraction=0.2).train.items} < {item.key for item in some}
    assert len(some) == pytest.approx(48, abs=2)


def test_choices_of_classes_work_or_say_why_not(rows: Path) -> None:
    found = splits(f"csv:{rows}?labels=tags", classes=["tilted", "bright"], val="split:0.25")
    assert found.train.targets[0].labels == ("tilted", "bright")
    plain = {item.key: item.values for item in open_source(f"csv:{rows}?labels=tags").items}
    assert all(item.values == (plain[item.key][2], plain[item.key][0]) for item in found.train.items)
    refused(f"csv:{rows}?labels=tags", "'brihgt' is not in data.train; did you mean 'bright'", classes=["brihgt", "tilted"])
    several = f"csv:{rows}?label=kind&value=size"
    refused(several, "several things (kind, size) of an image", classes=["dot", "ring"])
    refused(f"csv:{rows}?value=size", "data.train says numbers of an image", classes=["dot"])
    refused(several, "data.per_class counts the images of a class", "data.fraction", per_class=2)


def test_samples_without_a_class_are_split_and_sampled_too(rows: Path) -> None:
    source = f"csv:{rows}?label=kind&value=size"
    found = splits(source, val="split:0.25")
    assert found.val is not None
    assert sum(item.label == -1 for item in found.val.items) == 2
    assert found.val.counts() == [8, 8, 6]
    data = Data.model_validate({"train": source, "sampling": {"kind": "balanced"}})
    train = open_source(source)
    often = rates(train, data)
    assert often is not None
    assert sum(often) == pytest.approx(96)
    assert expected(train, often) == pytest.approx([24, 24, 24])
    with pytest.raises(UserError, match=r"data\.train has no classes"):
        rates(open_source(f"csv:{rows}?value=size"), data)


def test_the_fingerprint_covers_values(tmp_path: Path) -> None:
    prints = set()
    for text in ("x.png,1,2\ny.png,3,4", "x.png,1,2\ny.png,3,5", "x.png,1,2\ny.png,3,"):
        prints.add(open_source(written(tmp_path, f"image,a,b\n{text}") + "?value=a,b").fingerprint())
    prints.add(open_source(f"csv:{tmp_path}/rows.csv?value=b,a").fingerprint())
    assert len(prints) == 4


def test_batches_carry_the_values(rows: Path) -> None:
    data = Data(train=f"csv:{rows}?label=kind&value=size")
    listing = open_source(data.train)
    dataset = ImageDataset(listing, data, InputSpec(1, 8, (0.5,), (0.25,)), train=True, seed=0)
    batch = dataset.fetch([(0, 8), (0, 1), (0, 6)])
    assert batch.labels.tolist() == [-1, 1, 0]
    assert batch.values is not None
    wanted = torch.tensor([listing.items[index].values for index in (8, 1, 6)])
    torch.testing.assert_close(batch.values, wanted, equal_nan=True, rtol=0, atol=0)
    moved = batch.to(torch.device("cpu"), InputSpec(1, 8, (0.5,), (0.25,))).values
    assert moved is not None
    torch.testing.assert_close(moved, wanted, equal_nan=True, rtol=0, atol=0)


# --- hf and webdataset


def test_hf_reads_lists_columns_and_numbers(tmp_path: Path) -> None:
    import datasets
    from datasets import ClassLabel, Features, Sequence, Value

    image = [Image.new("L", (4, 4), n) for n in range(4)]
    columns = {
        "image": image, "kind": ["b", "a", None, "b"], "tags": [[0, 2], [], [1], [2]], "words": [["x"], ["x", "y"], [], None],
        "on": [True, False, None, True], "off": [0, 1, 1, None], "age": [1.5, None, 3.0, float("nan")], "n": [1, 2, 3, 4],
    }  # fmt: skip
    features = Features({
        "image": datasets.Image(), "kind": Value("string"), "tags": Sequence(ClassLabel(names=["r", "g", "b"])),
        "words": Sequence(Value("string")), "on": Value("bool"), "off": Value("int8"), "age": Value("float32"),
        "n": Value("int64"),
    })  # fmt: skip
    datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / "d")
    source = f"hf:{tmp_path}/d"
    query = "?label=kind&labels=tags&labels=words&labels=both:on,off&value=age&value=n"
    listing = open_source(source + query)
    assert [t.labels for t in listing.targets] == [("a", "b"), ("r", "g", "b"), ("x", "y"), ("on", "off"), ("age",), ("n",)]
    same(
        values(listing),
        [
            (1, 1, 0, 1, 1, 0, 1, 0, 1.5, 1),
            (0, 0, 0, 0, 1, 1, 0, 1, NAN, 2),
            (NAN, 0, 1, 0, 0, 0, NAN, 1, 3, 3),
            (1, 0, 0, 1, NAN, NAN, 1, NAN, NAN, 4),
        ],
    )
    refused(source + "?value=kind", "arrow:0", "'kind' is 'b'; write a number")
    refused(source + "?labels=n", "arrow:0", "'n' is 1; write the names of labels")
    refused(source + "?labels=tags,n", "'tags' is '[0, 2]'; write 1")
    refused(source + "?label=tags", "not one class")


def test_webdataset_reads_fields(tmp_path: Path) -> None:
    import webdataset

    said: list[dict[str, Any]] = [
        {"kind": "b", "tags": ["x", "y"], "meta": {"age": 3}}, {"kind": "a", "tags": "y", "meta": {}},
        {"tags": [], "meta": {"age": 4.5}},
    ]  # fmt: skip
    with webdataset.TarWriter(str(tmp_path / "s.tar")) as out:
        for index, one in enumerate(said):
            out.write({"__key__": f"{index:04d}", "png": Image.new("L", (4, 4), index), "json": one})
    source = f"webdataset:{tmp_path}/s.tar"
    listing = open_source(source + "?label=json.kind&labels=json.tags&value=json.meta.age")
    assert [(t.name, t.labels) for t in listing.targets] == [("kind", ("a", "b")), ("tags", ("x", "y")), ("age", ("age",))]
    same(values(listing), [(1, 1, 1, 3), (0, 0, 1, NAN), (NAN, 0, 0, 4.5)])
    refused(source + "?value=json.kind&label=cls", "several members", "json.FIELD")
    refused(source + "?label=json.kind", "the json of '0002' has no 'kind'")
    refused(source + "?value=json.kind", "sample '0000'", "'json.kind' is 'b'; write a number")


def test_the_made_up_pictures_have_every_tag() -> None:
    assert tuple(sorted(TAGS)) == TAGS, "so that names and columns come in one order"
