"""Reads what faulthandler writes: where in its Python code a process is."""

from __future__ import annotations

import re

_THREAD = re.compile(r"^(?:Current thread|Thread) 0x(?P<id>[0-9a-f]+)")
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\S+) in (?P<function>.*)$')
_ENGINE = "torch/autograd/graph.py"  # where the backward pass leaves Python
_OWN_BACKWARD = "torch/autograd/function.py"  # where it comes back, for a function written in Python
_MEETINGS = (_ENGINE, "torch/distributed/", "torch/nn/parallel/distributed.py", "deepspeed/", "trainer/runtime/")


def innermost(text: str, main: int) -> list[str]:
    """The frames of the main thread, the innermost first: `/path/file.py:12 in function`.

    Where the main thread waits for the backward pass, which on GPUs runs Python functions in threads of its own, those of the
    thread that runs one.
    """
    threads = _threads(text)
    frames = threads.get(main, [])
    if frames and _ENGINE in frames[0]:
        frames = next((found for found in threads.values() if any(_OWN_BACKWARD in frame for frame in found)), frames)
    return frames


def waits(frames: list[str]) -> bool:
    """Whether the innermost frame (of `innermost`) is one in which a rank waits for others."""
    return bool(frames) and any(place in frames[0] for place in _MEETINGS)


def shown(frames: list[str], *, most: int = 4) -> str:
    """The innermost frame and the next ones that are not torch's own, each with the last folder of its path."""
    kept = [frame for number, frame in enumerate(frames) if not number or "/torch/" not in frame]
    return " < ".join("/".join(frame.split("/")[-2:]) for frame in kept[:most])


def _threads(text: str) -> dict[int, list[str]]:
    """By thread id its frames, the innermost first; of a thread that was written twice the last."""
    threads: dict[int, list[str]] = {}
    frames: list[str] = []
    for line in text.splitlines():
        if head := _THREAD.match(line):
            frames = threads[int(head["id"], 16)] = []
        elif frame := _FRAME.match(line):
            frames.append(f"{frame['file']}:{frame['line']} in {frame['function']}")
    return threads
