"""From a run file and overrides to a Run, and back to a resolved file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from trainer.config.absolute import absolute
from trainer.config.base import Kind, kinds
from trainer.config.errors import UserError, nearest
from trainer.config.run import Run
from trainer.config.task import Task
from trainer.config.yamlfile import Document, Loc, override, read, unparse

_TYPES = {
    "int_type": "a whole number", "int_from_float": "a whole number", "float_type": "a number",
    "bool_type": "true or false", "string_type": "text", "list_type": "a list", "dict_type": "a section with keys of its own",
    "model_type": "a section with keys of its own", "model_attributes_type": "a section with keys of its own",
    "tuple_type": "a list", "none_required": "null", "dataclass_type": "an amount such as '5 epochs'",
}  # fmt: skip
_WRONG_TYPE = (*_TYPES, "literal_error")


def load(path: Path, overrides: Iterable[str] = ()) -> Run:
    """Read, override, check and resolve a run file; paths in it become absolute, from the working directory.

    Raises UserError that names the file, the line, the key and the nearest valid name.
    """
    document = read(path)
    for assignment in overrides:
        override(document, assignment)
    return check(document)


def resolved(path: Path, overrides: Iterable[str] = ()) -> Run:
    """`load` of a run file that `dump` wrote, maybe in an earlier version: what it does not say is as it was then."""
    document = read(path)
    task = document.value.get("task")
    known = kinds("trainer.config.tasks").get(str(task.get("kind"))) if isinstance(task, dict) else None
    if isinstance(task, dict) and known is not None and issubclass(known, Task):
        document.value["task"] = {**known.before, **task}
    for assignment in overrides:
        override(document, assignment)
    return check(document)


def check(document: Document) -> Run:
    """The run that a parsed run file describes; its paths become absolute. Raises UserError with one line for every mistake."""
    try:
        run = Run.model_validate(document.value)
    except ValidationError as error:
        raise UserError(explain(error, document)) from None
    return absolute(run, Path.cwd())


def explain(error: ValidationError, document: Document, model: type[BaseModel] = Run) -> str:
    """One line for every mistake, each with its place; what several members of a union say of one value becomes one line.

    `model` is what the document was checked against.
    """
    mistakes: dict[Loc, list[Any]] = {}
    for mistake in error.errors():
        mistakes.setdefault(_written(mistake["loc"], document.value, missing=mistake["type"] == "missing"), []).append(mistake)
    lines: list[str] = []
    for loc, said in mistakes.items():
        if len(said) > 1 or said[0]["type"] in _WRONG_TYPE:
            # a section that was tried and failed inside speaks for itself; that it is not a word either says nothing
            if isinstance(said[0]["input"], dict) and any(deeper[: len(loc)] == loc != deeper for deeper in mistakes):
                continue
            said = [m for m in said if m["type"] not in _WRONG_TYPE][:1] or said
        dotted = ".".join(str(part) for part in loc)
        sentence = _sentence(dotted, said[0], document, loc, model) if len(said) == 1 else _alternatives(dotted, said)
        lines.append(f"{document.where(loc)}: {sentence}")
    return "\n".join(lines)


def _alternatives(dotted: str, said: list[Any]) -> str:
    """One sentence for a value that fits no member of a union."""
    words = [name for m in said if m["type"] == "literal_error" for name in _names(m["ctx"]["expected"])]
    wanted = [*dict.fromkeys([*words, *(_TYPES[m["type"]] for m in said if m["type"] in _TYPES)])]
    given = said[0]["input"]
    # a short list of words is shown in full, so only a near name is worth adding
    near = nearest(given, words) if isinstance(given, str) else ""
    return f"'{dotted}' must be {_or(wanted)}, not {_shown(given)}{near if 'did you mean' in near else ''}"


def _or(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _names(expected: str) -> list[str]:
    return [name.strip(" '") for name in expected.replace(" or ", ", ").split(",")]


def _sentence(dotted: str, mistake: Any, document: Document, loc: Loc, model: type[BaseModel]) -> str:
    kind, given = mistake["type"], mistake.get("input")
    context = mistake.get("ctx", {})
    if kind == "extra_forbidden":
        return f"unknown key '{dotted}'{nearest(str(loc[-1]), _fields(model, document.value, loc[:-1]))}"
    if kind == "missing":
        return f"'{dotted}' is missing"
    if kind == "union_tag_not_found":
        return f"'{dotted}.kind' is missing; known: {', '.join(_tags(model, document.value, loc))}"
    if kind in ("union_tag_invalid", "literal_error"):
        names = _names(context.get("expected_tags") or context["expected"])
        at = dotted + ".kind" if kind == "union_tag_invalid" else dotted
        value = context.get("tag", given)
        near = nearest(str(value), names) or "; known: " + ", ".join(names)
        return f"'{at}' is {_shown(value)}{near}"
    if kind in _TYPES:
        hint = ""
        if kind == "bool_type" and isinstance(given, str) and given.lower() in ("no", "off", "n"):
            hint = "; write false"
        elif kind == "bool_type" and isinstance(given, str) and given.lower() in ("yes", "on", "y"):
            hint = "; write true"
        elif kind == "string_type" and isinstance(given, int | float):
            hint = f'; write "{given}" with quotes if text is meant'
        elif kind.startswith("model") and isinstance(given, str) and "kind" in _fields(model, document.value, loc):
            hint = f"; write {dotted}: {{kind: {given}}}"
        return f"'{dotted}' must be {_TYPES[kind]}, not {_shown(given)}{hint}"
    message = mistake["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    message = message[0].lower() + message[1:]
    return f"'{dotted}' is {_shown(given)}: {message}" if loc else message


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return "a section"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _written(loc: Loc, value: Any, *, missing: bool) -> Loc:
    """The part of pydantic's location that stands in the file: without the names of union members."""
    kept: list[str | int] = []
    for index, part in enumerate(loc):
        known: Any = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
        if part in known:
            value = value[part]
        elif not (missing and index == len(loc) - 1):
            continue
        kept.append(part)
    return tuple(kept)


def _fields(model: type[BaseModel], value: Any, loc: Loc) -> list[str]:
    """The keys that are valid in a section, for suggestions."""
    return [name for found in _sections(model, value, loc)[:1] for name in found.model_fields]


def _tags(model: type[BaseModel], value: Any, loc: Loc) -> list[str]:
    """The kinds that a section without one could have."""
    return [str(found.model_fields["kind"].default) for found in _sections(model, value, loc) if "kind" in found.model_fields]


def _sections(model: type[BaseModel], value: Any, loc: Loc) -> list[type[BaseModel]]:
    """What a place in a document may hold: of several kinds of a section the one that stands there, where it is known."""
    found, named = [model], False  # named: the next part is a name of the user's own
    for part in loc:
        value = value.get(part) if isinstance(value, dict) else None
        if not named:
            field = next((one.model_fields[str(part)] for one in found if str(part) in one.model_fields), None)
            found = _models(field.annotation) if field is not None else []
            types = () if field is None else (field.annotation, *get_args(field.annotation))
            named = any(get_origin(one) is dict for one in types)
        else:
            named = False
        kind = value.get("kind") if isinstance(value, dict) and not named else None
        found = [one for one in found if "kind" in one.model_fields and one.model_fields["kind"].default == kind] or found
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The sections that a type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for part in get_args(annotation) for model in _models(part)]


def dump(run: Run) -> str:
    """The resolved run file: every default written out; `load` gives the same Run again."""
    return unparse(run.model_dump(mode="json"))


def schema(model: type[BaseModel] = Run) -> dict[str, Any]:
    """The JSON schema of a run file, or of another file that is checked against `model`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """The values of nested sections by dotted key."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
    return {prefix[:-1]: value}


_FREE = ("parallel.", "resources.", "track.", "checkpoint.every", "checkpoint.keep", "data.workers", "train.micro_batch",
         "evaluate.batch", "evaluate.show", "data.max_bad", "data.cache.path", "data.cache.max_gb", "task.samples.",
         "task.fidelity.")  # fmt: skip


def learnt(run: Run) -> dict[str, Any]:
    """The settings, by dotted key, that decide what a run learns; its name is none of them.

    Those at their default are left out, so that a later version with more settings finds the same; of a section that is chosen
    by its kind, the kind stays.
    """
    kept = flat(run.model_dump(mode="json", exclude_defaults=True, exclude={"name"}))
    kept |= {f"{name}.kind": section.kind for name, section in run if isinstance(section, Kind)}
    if "data.sampling" in kept or any(key.startswith("data.sampling.") for key in kept):
        kept.pop("data.sampling", None)
        kept["data.sampling.kind"] = run.data.sampling.kind
    if (pairs := getattr(run.task, "pairs", None)) is not None:
        kept["task.pairs.kind"] = pairs.kind
    if not run.losses.plain:
        kept["losses.balance.kind"] = run.losses.balance.kind
        kept |= {f"losses.add.{name}.kind": loss.kind for name, loss in run.losses.add.items()}
    adapt = run.model.adapt
    made_of = {"": adapt.layers, **{f"heads.{name}.": one.layers for name, one in adapt.heads.items()}}
    kept |= {f"model.adapt.{head}layers.kind": layers.kind for head, layers in made_of.items() if layers is not None}
    return {key: value for key, value in kept.items() if not free(key)}


def free(key: str) -> bool:
    """Whether a setting (or a whole section) may change between attempts, since it changes nothing that is learnt."""
    return f"{key}.".startswith(_FREE)


def resumed(old: Run, new: Run) -> Run:
    """The run file of a run that goes on: what is chosen by itself stays as it was."""
    return new.model_copy(update={"task": new.task.resumed(old.task)})


def changes(old: Run, new: Run) -> list[str]:
    """`key: old -> new` for each setting that would change what is learnt; the rest may change freely between attempts."""
    new = resumed(old, new)
    before, after = (flat(run.model_dump(mode="json")) for run in (old, new))
    return [
        f"{key}: {json.dumps(before.get(key))} -> {json.dumps(after.get(key))}"
        for key in {**before, **after}
        if before.get(key) != after.get(key)
        and not free(key)
        # whether features are kept where that changes nothing
        and not (key == "data.cache.kind" and {before.get(key), after.get(key)} == {"auto", "none"})
    ]
