"""How a step is computed: what is worked out again is the same to the bit, layouts and kernels change no file and no name, and
what cannot be had is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as safe
from torch import nn

from tests.trainers import ROOT, run_file
from trainer.checkpoint.staging import StagedFile
from trainer.config import UserError
from trainer.config.compute import words
from trainer.config.load import load
from trainer.config.optimizers import SGD, Adam, AdamW, Optimizer
from trainer.config.parallel import Parallel
from trainer.config.run import Train
from trainer.optim import build_optimizer, pack, unpack
from trainer.runtime import compiled
from trainer.runtime.computing import Computing
from trainer.runtime.hardware import channels_last
from trainer.runtime.recompute import recompute
from trainer.spec import ParamGroup

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def torch_settings() -> Iterator[None]:
    """Compiled code and its settings do not outlive a test."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    with dynamo.patch(), inductor.patch():
        yield
    torch._dynamo.reset()


def computing(kind: str = "ddp", uncompiled: str | None = None, **train: Any) -> Computing:
    return Computing(Train(**train), Parallel(), kind, CPU, lambda value: [value], uncompiled)


def stateful() -> nn.Sequential:
    """Blocks that draw random numbers and change buffers: running statistics, and the vectors of a power iteration."""
    torch.manual_seed(0)
    spectral = nn.utils.parametrizations.spectral_norm
    blocks = [
        nn.Sequential(spectral(nn.Conv2d(4, 4, 3, padding=1)), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5)) for _ in range(3)
    ]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 36, 2))


def after(network: nn.Module) -> dict[str, torch.Tensor]:
    """Loss, gradients and state after two passes, the second one's loss gone back through twice."""
    images = torch.linspace(-1, 1, 8 * 4 * 36).view(8, 4, 6, 6)
    found = {}
    for step in range(2):
        torch.manual_seed(step)
        loss = network(images).square().mean()
        loss.backward(retain_graph=step == 1)
        found[f"loss{step}"], found[f"next{step}"] = loss.detach(), torch.rand(1)
    loss.backward()
    found |= {f"{name}.grad": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return found | {name: value.clone() for name, value in network.state_dict().items()}


def test_what_is_worked_out_again_is_the_same_to_the_bit() -> None:
    plain, again = stateful(), stateful()
    for block in list(again)[:3]:
        recompute(block)
    calls = []
    again.get_submodule("1.1").register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    expected, found = after(plain), after(again)
    assert list(expected) == list(found)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert len(calls) == 5, "two passes, and one more for each time that the gradients were taken"
    with torch.no_grad():
        again.eval()
        again(torch.zeros(1, 4, 6, 6))
    assert len(calls) == 6, "nothing twice where no gradient is taken"


PROGRAM = """
import torch
from torch import nn
from trainer.memory import Memory
from trainer.runtime.recompute import recompute

def peak(again):
    layers = [layer for _ in range(4) for layer in (nn.Conv2d(8, 8, 1), nn.Sigmoid(), nn.Tanh(), nn.Sigmoid())]
    blocks = nn.Sequential(*[nn.Sequential(*layers[place : place + 4]) for place in range(0, 16, 4)])
    for block in blocks if again else ():
        recompute(block)
    images = torch.ones(8, 8, 128, 128)  # 4 MiB, as each of the 16 layers gives
    memory = Memory(torch.device("cpu"))
    blocks(images).mean().backward()
    return memory.peak()

torch.set_num_threads(1)
peak(True)  # its imports
print(peak(True), peak(False))
"""


def test_less_memory_is_taken() -> None:
    """Of four blocks of four layers, the input of each and the layers of one, against all."""
    environment = {"MALLOC_MMAP_THRESHOLD_": "65536", "PATH": ""}  # what is let go of goes back at once
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, capture_output=True, text=True, check=True, env=environment)
    again, plain = (int(value) >> 20 for value in done.stdout.split())
    assert plain > 12 * 4, "all that three layers of each block give is kept"
    assert again < 0.75 * plain


def convolutions() -> nn.Sequential:
    """In two dimensions, and in three."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Unflatten(1, (1, 4)), nn.Conv3d(1, 2, (2, 3, 3)), nn.Flatten(), nn.Linear(2 * 3 * 16, 3)
    )


def test_channels_last_reaches_no_file() -> None:
    network, other = convolutions(), convolutions()
    assert channels_last(network, True, CPU)
    assert not channels_last(other, "auto", CPU), "on GPUs alone"
    assert [p.stride() for p in network[0].parameters()] == [(18, 1, 6, 2), (1,)]
    assert network.get_parameter("2.weight").is_contiguous(), "of other dimensions: left as it is"
    found: list[dict[str, torch.Tensor]] = []
    for one in (network, other):
        torch.manual_seed(0)
        named = list(one.named_parameters())
        optimizer = build_optimizer(AdamW(lr=1e-2), [ParamGroup(named)])
        for _ in range(3):
            optimizer.zero_grad()
            one(torch.linspace(-1, 1, 4 * 128).view(4, 2, 8, 8)).square().mean().backward()
            optimizer.step()
        tensors, values = pack(optimizer, {p: n for n, p in named})
        state = {**one.state_dict(), **tensors}
        file = StagedFile(state)
        file.copy(state)
        found.append(safe(bytes(file.data)))
        again = build_optimizer(AdamW(lr=1e-2), [ParamGroup(named)])
        unpack(again, dict(named), {n: found[-1][n] for n in tensors}, values)
        for _, parameter in named:
            kept, held = optimizer.state[parameter]["exp_avg"], again.state[parameter]["exp_avg"]
            assert kept.stride() == held.stride() == parameter.stride()
            assert torch.equal(kept, held)
    assert set(found[0]) == set(found[1])
    assert all(torch.allclose(found[0][n], found[1][n], atol=1e-5) for n in found[0])
    with pytest.raises(UserError, match="2-d convolutions, and the network has none"):
        channels_last(nn.Linear(2, 2), True, CPU)


@pytest.mark.parametrize("config", [SGD(lr=0.1), Adam(lr=0.1), AdamW(lr=0.1)], ids=lambda config: config.kind)
def test_one_kernel_moves_as_many_do(config: Optimizer) -> None:
    """And each goes on with the state of the other."""
    found = []
    for first, then in ((False, False), (True, True), (True, False), (False, True)):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(33))
        optimizer = build_optimizer(config, [ParamGroup([("it", parameter)])], fused=first)
        for step in range(6):
            if step == 3:
                tensors, values = pack(optimizer, {parameter: "it"})
                optimizer = build_optimizer(config, [ParamGroup([("it", parameter)])], fused=then)
                unpack(optimizer, {"it": parameter}, tensors, values)
            parameter.grad = torch.randn(33)
            optimizer.step()
        assert optimizer.param_groups[0]["fused"] is (True if then else None)
        found.append(parameter.detach())
    assert all(torch.allclose(found[0], other, atol=1e-6) for other in found[1:])


SOFT = {"teacher": {"source": "torchvision:resnet18", "weights": "best"}, "add": {"soft": {"kind": "logits"}}}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"train": {"precision": "fp8"}}, "fp8 is not built: it puts layers of torchao or Transformer Engine"),
    ({"train": {"compile": "whole", "checkpointing": True}}, "whole leaves no blocks for train.checkpointing to work out"),
    ({"train": {"compile": "blocks"}, "parallel": {"kind": "zero3"}}, "does not go with parallel.kind: zero3, which gathers"),
    ({"train": {"compile": "whole"}, "parallel": {"kind": "fsdp"}}, "fsdp, which gathers block by block; write blocks"),
    ({"train": {"checkpointing": True}, "parallel": {"kind": "zero3"}}, "between the passes of a block; write fsdp, or zero2"),
    ({"train": {"channels_last": True}, "parallel": {"kind": "fsdp"}}, "holds weights in flat rows; leave it out"),
    ({"train": {"fused": True}, "optimizer": {"kind": "prodigy"}}, "in one kernel, and not optimizer.kind: prodigy; leave it"),
    ({"train": {"fused": True}, "parallel": {"kind": "zero2", "offload": "cpu"}}, "parallel.offload keeps on the host"),
]

for name in ("match", "gradnorm", "adatask"):
    losses = {**SOFT, "balance": {"kind": name}}
    REFUSED += [
        (
            {"train": {"clip": None, "compile": "blocks"}, "losses": losses},
            f"{name}, which goes back through the network several",
        ),
        ({"train": {"clip": None, "precision": "fp16"}, "losses": losses}, f"{name} takes gradients that fp16 does not scale"),
    ]


@pytest.mark.parametrize(("sections", "said"), REFUSED)
def test_what_does_not_go_together_is_refused(tmp_path: Path, sections: dict[str, Any], said: str) -> None:
    path = run_file(tmp_path)
    run = json.loads(path.read_text())
    for name, values in sections.items():
        run[name] = values if name == "optimizer" else {**run.get(name, {}), **values}
    path.write_text(json.dumps(run))
    with pytest.raises(UserError) as error:
        load(path)
    assert said in " ".join(str(error.value).split())


def test_a_plan_says_how_it_computes(tmp_path: Path) -> None:
    train = {"checkpointing": True, "compile": "auto", "precision": "bf16"}
    run = load(run_file(tmp_path, train=train))
    again = "blocks worked out again in the backward pass"
    assert words(run, "cpu") == f"bf16, not compiled (a CPU, where it gains little), {again}"
    assert words(run, "cuda") == (
        f"bf16, tf32 where the GPU has it, channels last where windows overlap, compiled by blocks where torch can, {again}, "
        "fused optimizer"
    )
    assert words(load(run_file(tmp_path)), "cpu") == "fp32"


def test_what_a_cpu_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"tf32 needs a GPU of compute capability 8[.]0 or later, and a CPU has none"):
        computing(tf32=True)
    left_open = computing(compile="auto", channels_last="auto", fused="auto", tf32="auto")
    left_open.around(nn.Linear(2, 2), nn.Linear(2, 2), [])
    assert left_open.told == {
        "precision": "fp32", "tf32": False, "channels_last": False, "compile": "none (a CPU, where it gains little)",
        "checkpointing": False, "fused": False,
    }  # fmt: skip

    def without(*_: Any) -> Any:
        raise RuntimeError("No working C++ compiler found\nin a long list")

    monkeypatch.setattr(compiled, "BACKEND", without)
    network = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(UserError, match=r"whole needs what torch cannot find or use here \(.*No working C\+\+ compiler found"):
        computing(compile="whole").around(network, network, list(network))


def test_several_networks_are_compiled_by_one_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: what torch can do is tried once, and no network takes back what was said or set for another."""
    import torch._dynamo.config as dynamo

    tried: list[torch.device] = []

    def lacks(device: torch.device) -> str:
        tried.append(device)
        return ""

    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "lacks", lacks)

    def on_gpu(uncompiled: str | None) -> Computing:
        one = computing(compile="auto", channels_last=False, uncompiled=uncompiled)
        monkeypatch.setattr(one, "_device", torch.device("cuda"))
        return one

    single, several = nn.Linear(2, 2), nn.Sequential(*[nn.Linear(2, 2) for _ in range(3)])
    one = on_gpu(None)
    one.around(single, single, [])
    assert one.told["compile"] == "none (no blocks)"
    one.around(several, several, list(several))
    assert one.told["compile"] == "blocks"
    limit = dynamo.recompile_limit
    for units in ([], [single]):
        one.around(single, single, units)
    assert one.told["compile"] == "blocks"
    assert dynamo.recompile_limit > limit, "room for the blocks of all networks"
    assert len(tried) == 1
    none = on_gpu("losses.balance: gradnorm")
    for network in (several, single):
        none.around(network, network, [network])
    assert none.told["compile"] == "none (losses.balance: gradnorm)"
    assert len(tried) == 1


def test_what_cannot_be_done_with_a_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    monkeypatch.setattr(compiled, "_VARIANTS", 2)
    for asked in ({"checkpointing": True}, {"compile": "blocks"}):
        with pytest.raises(UserError, match="blocks"):
            computing(**asked).around(nn.Linear(2, 2), nn.Linear(2, 2), [])
    network = nn.Sequential(nn.Sequential(nn.Linear(2, 2)))
    network.get_submodule("0.0").register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"a loss looks at '0[.]0'; take one of them off, or let the loss look at '0'"):
        computing(compile="blocks", checkpointing=True).around(network, network, list(network))

    class Counts(nn.Module):
        calls = 0

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return values * self.calls

    counts = Counts()
    computing(compile="whole").around(counts, counts, [])
    assert [counts(torch.ones(1)).item() for _ in range(2)] == [1, 2]
    with pytest.raises(UserError, match="'the network' is compiled again and again"):
        counts(torch.ones(1))
