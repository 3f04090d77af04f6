"""The run file: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from launcher.submit import _no_code
from trainer.config import Run, UserError, changes, dump, load, schema
from trainer.rundir import RunDir

BASE = """\
name: clothing
model: {source: "torchvision:vgg16"}
strategy: {kind: head}
data: {train: "folder:clothing/train"}
optimizer: {kind: adam, lr: 1e-3}
"""
EXAMPLE = """\
name: clothing-vgg16
task:      {kind: classify, class_weights: balanced, label_smoothing: 0.1}
model:     {source: "torchvision:vgg16", weights: IMAGENET1K_V1, adapt: {in_channels: 3, image_size: 224}}
strategy:  {kind: head}
data:      {train: "folder:clothing/train", val: "folder:clothing/validation"}
optimizer: {kind: adam, lr: 1e-3}
schedule:  {kind: cosine, warmup: 0.05}
train:     {epochs: 10, global_batch: 64, micro_batch: auto, precision: bf16, seed: 0}
parallel:  {kind: ddp}
evaluate:  {every: 1 epoch}
checkpoint: {every: 10 min, keep: 3, best: val/accuracy}
track:     {wandb: {project: clothing}}
resources: {nodes: 1, gpus_per_node: 8, time: "4:00:00"}
"""
DEMO = Path(__file__).resolve().parents[2] / "launcher" / "demo"


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(BASE)
    return Path("run.yaml")


def message(file: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(file, overrides)
    assert error.value.code == 2
    return str(error.value)


def test_the_example_loads_and_its_paths_become_absolute(file: Path) -> None:
    file.write_text(EXAMPLE)
    run = load(file)
    assert run.data.train == f"folder:{Path.cwd()}/clothing/train"
    assert run.optimizer.lr == 0.001
    assert run.resources.time == "4:00:00"
    assert run.checkpoint.every.value == 600
    assert run.checkpoint.every.unit == "second"


def test_every_source_is_found_from_any_directory(file: Path) -> None:
    file.write_text(EXAMPLE)
    classified = load(file, ["evaluate.source=csv:old.csv?label=kind"])
    assert classified.sources["evaluate.source"] == f"csv:{Path.cwd()}/old.csv?label=kind"
    task = "task={kind: diffusion, prior: {data: 'folder:../dogs?label=kind', classes: [dog]}}"
    run = load(file, [task, "data.train=folder:shots", "data.val=split:0.1", "checkpoint.best=val/loss"])
    dogs = f"folder:{Path.cwd().parent}/dogs?label=kind"
    assert run.sources == {"data.train": f"folder:{Path.cwd()}/shots", "data.val": "split:0.1", "task.prior.data": dogs}
    folder = RunDir(Path("runs/x").absolute())
    assert {Path.cwd() / "shots", Path.cwd().parent / "dogs"} <= set(_no_code(run, folder)), "no code of a snapshot"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("train.epcohs=3", "unknown key 'train.epcohs'; did you mean 'epochs'?"),
        ("trian.epochs=3", "unknown key 'trian'; did you mean 'train' or 'track'?"),
        ("optimizer={kind: adm, lr: 1}", "'optimizer.kind' is 'adm'; did you mean 'adam' or 'adamw'?"),
        ("strategy={kind: haed}", "'strategy.kind' is 'haed'; did you mean 'head'?"),
        ("strategy=head", "'strategy' must be a section with keys of its own, not 'head'; write strategy: {kind: head}"),
        ("strategy={}", "'strategy.kind' is missing; known: biases, blocks, full, gradual, head, lora, norms, probe"),
        ("optimizer={kind: sgd}", "'optimizer.lr' is missing"),
        ("optimizer.betas=[0.9]", "'optimizer.betas.1' is missing"),
        ("optimizer.lr=fast", "'optimizer.lr' must be a number, not 'fast'"),
        ("optimizer.lr=-1", "'optimizer.lr' is -1: must be greater than 0"),
        ("optimizer.lr=.nan", "'optimizer.lr' is nan: must be a finite number"),
        ("train.epochs=.inf", "'train.epochs' is inf: must be a finite number"),
        ("train.deterministic=no", "'train.deterministic' must be true or false, not 'no'; write false"),
        ("train.deterministic=yes", "'train.deterministic' must be true or false, not 'yes'; write true"),
        ("train.micro_batch=x", "'train.micro_batch' must be auto or a whole number, not 'x'"),
        ("train.micro_batch=atuo", "'train.micro_batch' must be auto or a whole number, not 'atuo'; did you mean 'auto'?"),
        ("train.micro_batch=0", "'train.micro_batch' is 0: must be at least 1"),
        ("parallel.processes=2.5", "'parallel.processes' must be auto or a whole number, not 2.5"),
        ("train=null", "'train' must be a section with keys of its own, not null"),
        ("data.normalize=foo",
         "'data.normalize' must be auto, imagenet, half, none or a section with keys of its own, not 'foo'"),
        ("data.normalize={mean: [1]}", "'data.normalize.std' is missing"),
        ("data.normalize={mean: [1], std: [x]}", "'data.normalize.std.0' must be a number, not 'x'"),
        ("data.normalize={mean: [0.5], std: [0.5]}",
         "data.normalize has 1 means and 1 deviations for model.adapt.in_channels 3"),
        ("model.args={a: {b: 1}}",
         "'model.args.a' must be true or false, a whole number, a number, text or a list, not a section"),
        ("schedule={kind: linear, warmup: 1.5}",
         "'schedule.warmup' is 1.5: write a share of the training from 0 to below 1, or an amount such as '5 epochs'"),
        ("schedule={kind: linear, warmup: 10 min}",
         "'schedule.warmup' is '10 min': a time does not fit here; write '1 epoch', '500 steps', '20000 samples'"),
        ("evaluate.every=10 bananas", "'evaluate.every' is '10 bananas': write a number and a unit, such as '1 epoch', "
         "'500 steps', '20000 samples' or '10 min'"),
        ("resources.time=12:30",
         "'resources.time' is '12:30': write hours:minutes:seconds, such as 4:00:00, or days-hours:minutes:seconds"),
        ("data.classes=[1, cat]", """'data.classes.0' must be text, not 1; write "1" with quotes if text is meant"""),
        ("checkpoint.best=accuracy", "'checkpoint.best' is 'accuracy': write a metric of the evaluation, such as val/accuracy, "
         "val/f1 or val/loss"),
    ],
)  # fmt: skip
def test_one_mistake_is_one_line_with_its_place(file: Path, override: str, said: str) -> None:
    place = "run.yaml" if said.startswith("data.normalize has") else f"override '{override}'"
    assert message(file, override) == f"{place}: {said}"


def test_each_mistake_in_a_file_is_named_with_its_line(file: Path) -> None:
    file.write_text(BASE + "train:\n  epochs: ten\n  global_bach: 3\n")
    assert message(file).splitlines() == [
        "run.yaml:7: 'train.epochs' must be a number, not 'ten'",
        "run.yaml:8: unknown key 'train.global_bach'; did you mean 'global_batch'?",
    ]


def test_a_duplicate_key_is_named_with_both_lines(file: Path) -> None:
    file.write_text(BASE + "train:\n  epochs: 3\n  seed: 1\n  epochs: 4\n")
    assert message(file) == "run.yaml:9: the key 'train.epochs' stands twice (first in line 7); keep one"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-4", 1e-4), ("1E3", 1000.0), ("5", 5), ("0x10", 16), ("1_000", 1000), ("12:30", "12:30"), ("0123", "0123"), ("no", "no"),
     ("yes", "yes"), ("on", "on"), ("true", True), ("null", None), ("2024-01-01", "2024-01-01"), ("'5'", "5"), (".5", 0.5)],
)  # fmt: skip
def test_a_plain_value_is_what_it_looks_like(file: Path, text: str, value: Any) -> None:
    given = load(file, [f"model.args={{x: {text}}}"]).model.args["x"]
    assert given == value
    assert type(given) is type(value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n", "run.yaml:1: anchors (&) and aliases (*) are not allowed"),
        ("name: !!python/object/apply:os.system [touch ran]\n", "run.yaml:1: the tag"),
        ("name: !!str 5\n", "run.yaml:1: the tag"),
        ("name: {<<: {a: 1}}\n", "run.yaml:1: merge keys (<<) are not allowed"),
        ("[" * 5000, "run.yaml:1: nested too deeply; at most 20 levels"),
        ("a: " * 50, "run.yaml"),
        ("- " * 5000, "run.yaml:1: nested too deeply"),
        ("a: " + "{a: " * 25 + "1" + "}" * 25, "run.yaml:1: nested too deeply; at most 20 levels"),
        ("# " + "x" * 1_000_001, "run.yaml: 1,000,003 characters; a run file has at most 1,000,000"),
        ("name: [1, 2\nmodel: 3\n", "run.yaml:2: not valid YAML"),
        ("- name\n", "run.yaml:1: a run file is a mapping"),
        ("just words\n", "run.yaml:1: a run file is a mapping"),
        ("", "run.yaml: the file is empty"),
        ("? [a, b]\n: 1\n", "run.yaml:1: a key must be a plain word"),
        ("a: 1\n---\nb: 2\n", "run.yaml"),
        ("name: \x07\n", "run.yaml"),
    ],
)
def test_what_yaml_allows_and_a_run_file_does_not_is_refused_at_once(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    began = time.monotonic()
    assert message(file).startswith(said)
    assert time.monotonic() - began < 1
    assert not Path("ran").exists()


def test_a_file_that_is_no_text_or_not_there(file: Path) -> None:
    file.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as a run file" in message(file)
    assert message(Path("rum.yaml")) == "rum.yaml: no such run file; did you mean 'run.yaml'?"
    assert "cannot be read as a run file" in message(Path.cwd())


@pytest.mark.parametrize("name", ["a\nb", "a;b", "$(touch x)", "../x", "a/b", "", "-x", ".x", "a b", "x" * 101, "ä", "a\x00"])
def test_a_name_that_could_become_a_path_or_a_command_is_refused(file: Path, name: str) -> None:
    escaped = name.encode("unicode_escape").decode()
    assert "1 to 100 letters, digits" in message(file, f'name="{escaped}"')


@pytest.mark.parametrize("override", ["train.epochs", "=3", "train..epochs=3", ".a=1"])
def test_an_override_is_key_and_value(file: Path, override: str) -> None:
    assert "write key=value, such as train.epochs=5" in message(file, override)


def test_overrides_replace_values_and_whole_sections(file: Path) -> None:
    run = load(file, ["optimizer={kind: sgd, lr: 0.5}", "optimizer.momentum=0.5", "train.clip=1"])
    assert (run.optimizer.kind, run.optimizer.lr, run.train.clip) == ("sgd", 0.5, 1.0)
    assert "'name' is 'clothing', not a section" in message(file, "name.first=x")


def test_changes_names_what_is_learnt_differently_and_nothing_else(file: Path) -> None:
    run = load(file)
    free = load(file, ["parallel.processes=4", "data.workers=0", "checkpoint.keep=1", "track.every=1", "train.micro_batch=2"])
    assert changes(run, free) == []
    assert changes(run, load(file, ["optimizer.lr=0.5", "train.epochs=3"])) == [
        "optimizer.lr: 0.001 -> 0.5",
        "train.epochs: 10.0 -> 3.0",
    ]


amounts = st.builds("{} {}".format, st.integers(1, 10_000), st.sampled_from(["epochs", "steps", "samples"]))
positive = st.floats(1e-12, 1e12)
share = st.floats(0, 1, exclude_max=True)
text = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=30)
runs = st.fixed_dictionaries(
    {
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
        "model": st.fixed_dictionaries(
            {"source": text.filter(lambda t: not t.startswith("python:")).map("torchvision:{}".format)},
            optional={
                "args": st.dictionaries(text, st.one_of(st.booleans(), st.integers(), positive, text, st.none()), max_size=3)
            },
        ),
        "strategy": st.sampled_from([{"kind": "head"}, {"kind": "full"}]),
        "data": st.fixed_dictionaries(
            {"train": text.map("digits:{}".format)},
            optional={"classes": st.none() | st.lists(text), "normalize": st.just("half"), "max_bad": st.integers(0, 9)},
        ),
        "optimizer": st.one_of(
            st.fixed_dictionaries(
                {"kind": st.just("sgd"), "lr": positive}, optional={"momentum": share, "nesterov": st.booleans()}
            ),
            st.fixed_dictionaries({"kind": st.just("adamw"), "lr": positive}, optional={"betas": st.tuples(share, share)}),
        ),
    },
    optional={
        "schedule": st.one_of(
            st.fixed_dictionaries({"kind": st.sampled_from(["cosine", "linear", "constant"]), "warmup": share | amounts}),
            st.fixed_dictionaries({"kind": st.just("step"), "every": amounts}, optional={"gamma": st.just(0.5)}),
        ),
        "train": st.fixed_dictionaries(
            {"epochs": positive}, optional={"micro_batch": st.just("auto") | st.integers(1, 99), "clip": st.none() | positive}
        ),
        "evaluate": st.fixed_dictionaries({"every": amounts | st.just("2.5 min"), "at_start": st.booleans()}),
        "track": st.just({"wandb": {"tags": ["no", "1e3", "12:30", "a: b", "#"]}}),
    },
)


@given(runs)
@settings(max_examples=60, deadline=None)
def test_a_resolved_run_is_the_same_run(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    file = tmp_path_factory.getbasetemp() / "resolved.yaml"
    run = Run.model_validate(values)
    file.write_text(dump(run), encoding="utf-8")
    again = load(file)
    assert again == run
    assert dump(again) == dump(run)
    assert changes(run, again) == []


@pytest.mark.parametrize("name", ["pretrain", "head", "full", "scratch", "draw-pretrain", "draw", "draw-scratch"])
def test_the_demos_run_files_load_and_fit_the_schema(name: str) -> None:
    run = load(DEMO / f"{name}.yaml")
    assert run.name == f"demo-{name}"
    assert run.model.adapt.in_channels == 1


def test_the_schema_takes_what_loads_and_refuses_what_does_not(file: Path) -> None:
    from trainer.config.yamlfile import parse

    validator = Draft202012Validator(schema())
    Draft202012Validator.check_schema(schema())
    for source in [EXAMPLE, BASE, *(path.read_text() for path in DEMO.glob("*.yaml"))]:
        assert [error.message for error in validator.iter_errors(parse(source, "x").value)] == []
    for wrong in ["train: {epcohs: 3}", "train: {epochs: ten}", "task: {kind: x}", "train: {global_batch: 0}"]:
        assert list(validator.iter_errors(parse(BASE + wrong, "x").value)), wrong
    file.write_text(dump(load(file)))
    assert [error.message for error in validator.iter_errors(parse(file.read_text(), "x").value)] == []


def test_numbers_keep_their_value_through_the_resolved_file(file: Path) -> None:
    for value in (1e-300, 5e-324, 1.7976931348623157e308, 0.1, math.pi, 1e22, 123456789.123456789):
        run = load(file, [f"optimizer.lr={value!r}"])
        Path("again.yaml").write_text(dump(run))
        assert load(Path("again.yaml")).optimizer.lr == value
