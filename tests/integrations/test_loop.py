"""The loops of docs/loop.md: what they compute in one process, and in two through accelerate."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")

from tests.test_docs import DIFFS, ROOT, side
from token_superposition import SuperposedLM

WEIGHED = 'loss = output.loss * output.weight_sum / accelerator.reduce(output.weight_sum, "mean")'
RAGGED = f"""
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import LlamaConfig, LlamaForCausalLM
from token_superposition import SuperposedLM, split_inputs_and_targets

accelerator = Accelerator()
set_seed(0)
config = LlamaConfig(vocab_size=67, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
model = LlamaForCausalLM(config)
superposed, optimizer = accelerator.prepare(SuperposedLM(model), torch.optim.AdamW(model.parameters(), lr=1e-2))
for bag_size in (4, 1):
    inputs, targets = split_inputs_and_targets(torch.randint(0, 67, (4, bag_size * 17)), bag_size)
    targets = targets.clone()  # it shares its memory with the inputs
    targets[1, 3:] = -100  # a document's end: of the second process's targets, half are ignored
    targets[3, :, 1:] = -100
    mine = slice(accelerator.process_index, None, accelerator.num_processes)
    output = superposed(inputs[mine], targets[mine])
    {WEIGHED}
    accelerator.backward(loss)
    norm = accelerator.clip_grad_norm_(superposed.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    mean_of_means = accelerator.reduce(output.loss.detach(), "mean")
    accelerator.print(accelerator.reduce(loss.detach(), "mean").item(), norm.item(), mean_of_means.item())
"""


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also where there is a GPU."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.chdir(tmp_path)


def in_one_process(program: str, capsys: pytest.CaptureFixture[str]) -> list[list[float]]:
    """The numbers of each line that a program prints."""
    exec(compile(program, "loop", "exec"), {})
    return numbers(capsys.readouterr().out)


def in_two_processes(program: str, folder: Path) -> list[list[float]]:
    """The same of two processes, of which the first prints."""
    script = folder / "loop.py"
    script.write_text(program)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return numbers(done.stdout)


def numbers(printed: str) -> list[list[float]]:
    return [[float(word) for word in line.split()] for line in printed.splitlines()]


def saved(folder: Path) -> dict[str, Tensor]:
    """A program's model, kept when the next program writes over the file."""
    return {name: value.clone() for name, value in load_file(folder / "trained" / "model.safetensors").items()}


def test_with_accelerate_the_loop_computes_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Alone, and as two processes with half of the rows each: the losses, and the model at the end."""
    plain: list[float] = []
    forward = SuperposedLM.forward

    def keep(self: SuperposedLM, *arguments: Any) -> Any:
        output = forward(self, *arguments)
        if self.training and torch.is_grad_enabled():
            plain.append(output.loss.item())
        return output

    with monkeypatch.context() as patched:
        patched.setattr(SuperposedLM, "forward", keep)
        torch.manual_seed(0)
        exec(compile(side(DIFFS["plain"], "+"), "loop", "exec"), {})
    weights = [saved(tmp_path)]
    program, found = side(DIFFS["accelerate"], "+"), []
    for run in (lambda: in_one_process(program, capsys), lambda: in_two_processes(program, tmp_path)):
        printed = run()
        assert [line[0] for line in printed] == list(range(20))
        found.append([line[1] for line in printed])
        weights.append(saved(tmp_path))
    assert len(plain) == 20
    alone, of_two = found
    assert alone == plain
    assert of_two == pytest.approx(plain, rel=1e-5)
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value)
        torch.testing.assert_close(weights[2][name], value, rtol=0, atol=1e-4)  # of steps of 1e-3


def test_processes_whose_weights_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The documentation's line makes loss and gradient those of the whole batch; the mean of the means is not."""
    assert f"    {WEIGHED}\n" in (ROOT / "docs" / "loop.md").read_text(encoding="utf-8")
    alone, of_two = in_one_process(RAGGED, capsys), in_two_processes(RAGGED, tmp_path)
    assert len(alone) == 2
    for (loss, norm, _), (expected_loss, expected_norm, _) in zip(of_two, alone, strict=True):
        assert loss == pytest.approx(expected_loss, rel=1e-5)
        assert norm == pytest.approx(expected_norm, rel=1e-5)
    assert of_two[0][2] != pytest.approx(alone[0][2], rel=1e-4)
