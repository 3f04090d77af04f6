"""What the program of an export says of a picture: the lines that differ from task to task."""

from __future__ import annotations

import re
from dataclasses import dataclass

from trainer.config.task import Task
from trainer.config.tasks.multi import Config as Multi
from trainer.config.tasks.multilabel import Config as MultiLabel
from trainer.spec import Output


@dataclass(frozen=True)
class Words:
    """`about`: what the program gives; `constants`: names that stand at its top; `tell`: the function that says a picture's."""

    about: str
    constants: str
    tell: str


_CLASS = '''def {name}(logits):
    """The class and its probability."""
    probability, index = logits.softmax(1).max(1)
    return [{constant}[int(index)], f"{{float(probability):.6f}}"]
'''
_LABELS = '''def {name}(logits):
    """The labels from the threshold on, with their probabilities."""
    shares = zip({constant}, logits[0].sigmoid().tolist())
    return [", ".join(f"{{name}} {{share:.6f}}" for name, share in shares if share >= {threshold!r})]
'''
_VALUES = '''def {name}(logits):
    """The numbers, in the units of the data."""
    return [f"{{name}} {{value:.7g}}" for name, value in zip({constant}, logits[0].tolist())]
'''
_SAY = {"class": _CLASS, "labels": _LABELS, "values": _VALUES}
_SEVERAL = '''def tell(logits):
    """What each head says, after its name."""
    parts = logits.split({widths}, dim=1)
    said = [{said}]
    return [text for name, tell_one, part in said for text in (f"{{name}}:", *tell_one(part))]
'''


def words(task: Task, outputs: tuple[Output, ...]) -> Words:
    """The lines for a task's outputs."""
    if len(outputs) == 1 and not outputs[0].name:
        output = outputs[0]
        constant = {"class": "CLASSES", "labels": "LABELS", "values": "VALUES"}[output.kind]
        return Words(about(outputs), f"{constant} = {list(output.labels)!r}", _say("tell", constant, output, task))
    constants = [f"{_constant(output.name)}_{number} = {list(output.labels)!r}" for number, output in enumerate(outputs)]
    names = [line.partition(" = ")[0] for line in constants]
    functions = [
        _say(f"tell_{number}", name, output, task) for number, (name, output) in enumerate(zip(names, outputs, strict=True))
    ]
    said = ", ".join(f"({output.name!r}, tell_{number}, parts[{number}])" for number, output in enumerate(outputs))
    several = _SEVERAL.format(widths=[len(output.labels) for output in outputs], said=said)
    return Words(about(outputs), "\n".join(constants), "\n\n".join([*functions, several]))


def _constant(name: str) -> str:
    """A name for the program, of a head's name, which may be anything."""
    return re.sub(r"[^A-Z0-9_]", "_", f"HEAD_{name.upper()}")


def about(outputs: tuple[Output, ...]) -> str:
    """What a network with these outputs gives, in a few words."""
    return ", ".join((f"{output.name}: " if output.name else "") + _given(output) for output in outputs)


def _given(output: Output) -> str:
    count = len(output.labels)
    if output.kind == "class":
        return f"one of {count} classes"
    if output.kind == "labels":
        return f"those of {count} labels that it has"
    return "one number" if count == 1 else f"{count} numbers"


def threshold(task: Task, output: Output) -> float:
    """The probability from which on a label is said to be there."""
    if isinstance(task, Multi):
        task = (task.heads or {}).get(output.name, MultiLabel())
    return task.threshold if isinstance(task, MultiLabel) else MultiLabel().threshold


def _say(name: str, constant: str, output: Output, task: Task) -> str:
    return _SAY[output.kind].format(name=name, constant=constant, threshold=threshold(task, output))
