"""What the adapters do on a GPU, for a machine that has one. Minutes; needs nothing but the repository.

    python tests/gpu/adapters.py [--only in_place trainer sharded] [--device cuda] [--size gpu]

A small Llama learns made-up text through each adapter, in both phases, and is held against the core: `SuperposedLM` in
a bare loop on the very batches, in float32. `in_place` is a loop of one's own around a model that takes bags where it
stands, `trainer` is Hugging Face Trainer, each in float32, in bfloat16, compiled, and with Liger's patches; `sharded`
is FSDP2 on every GPU there is (`sharded.py`). What is not installed is skipped, with the reason.

While little is learnt, the loss on wrong targets is much like the loss on the right ones. So the weights' updates, from
the first step to the last, must point the same way too. The last line of output is the result, as JSON; the exit code
is 1 where a check failed. On the CPU the tests run it at toy size.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

from tests.integrations.runs import SIZES, Recorded, Size, adamw, core_losses, llama, losses, optimizer_options
from token_superposition import split_inputs_and_targets
from token_superposition.models.patch import bags_accepted

BAG_SIZE = 4
KINDS = ("float32", "bfloat16", "compiled", "liger")
# Of the losses, relative, and of the cosine between the updates of the weights.
TOLERANCES = {"float32": (1e-4, 0.99), "bfloat16": (2e-2, 0.95), "compiled": (1e-3, 0.98), "liger": (1e-3, 0.98)}


class Trained(NamedTuple):
    """A run's losses, and what it added to the weights, as one vector."""

    losses: list[float]
    update: Tensor


def text(size: Size, num_tokens: int) -> Tensor:
    """A text of 200 made-up words."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, size.vocab_size, (200, 4), generator=generator)
    return words[torch.randint(0, 200, (num_tokens // 4 + 1,), generator=generator)].flatten()[:num_tokens]


def updated(model: nn.Module, size: Size) -> Tensor:
    """Weights now less weights at first."""
    first = torch.cat([parameter.detach().flatten() for parameter in llama(size).parameters()])
    return torch.cat([parameter.detach().float().cpu().flatten() for parameter in model.parameters()]) - first


def core(steps: list[Any], size: Size, device: torch.device) -> Trained:
    """What everything is held against."""
    model = llama(size).to(device)
    found = core_losses(steps, model, adamw(model, size))
    return Trained(found, updated(model, size))


def in_place_batches(size: Size, device: torch.device) -> list[dict[str, Tensor]]:
    """Bags for the first half of the steps, then plain rows."""
    tokens = text(size, size.num_steps * size.rows_per_step * BAG_SIZE * (size.length + 1)).to(device)
    found = []
    for step, part in enumerate(tokens.chunk(size.num_steps)):
        if step < size.num_steps // 2:
            ids, labels = split_inputs_and_targets(part.view(size.rows_per_step, -1), BAG_SIZE)
        else:
            ids = labels = part[: size.rows_per_step * size.length].view(size.rows_per_step, -1)
        found.append({"input_ids": ids, "labels": labels})
    return found


def in_place(kind: str, batches: list[dict[str, Tensor]], size: Size, device: torch.device) -> Trained:
    """A loop of one's own."""
    model = llama(size).to(device)
    optimizer = adamw(model, size)
    found = []
    with bags_accepted(model):
        if kind == "liger":
            from liger_kernel.transformers import _apply_liger_kernel_to_instance

            _apply_liger_kernel_to_instance(model=model)
        call: Any = torch.compile(model, backend=compiler(device)) if kind == "compiled" else model
        for batch in batches:
            with torch.autocast(device.type, torch.bfloat16, enabled=kind == "bfloat16"):
                loss = call(**batch).loss
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            found.append(loss.item())
    return Trained(found, updated(model, size))


def compiler(device: torch.device) -> str:
    """On the CPU the tests look at what is traced, not at what a compiler makes of it."""
    return "inductor" if device.type == "cuda" else "eager"


def trainer(kind: str, size: Size, device: torch.device) -> tuple[Trained, list[Any]]:
    """Hugging Face Trainer; also returns the batches it was trained on."""
    from transformers import TrainingArguments

    from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer

    class Recording(Recorded, SuperpositionTrainer):
        pass

    options = {
        "float32": {},
        "bfloat16": {"bf16": True},
        "compiled": {"torch_compile": True, "torch_compile_backend": compiler(device)},
        "liger": {"use_liger_kernel": True},
    }[kind]
    rows = text(size, size.num_steps * size.rows_per_step * BAG_SIZE * size.length).split(size.length)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            max_steps=size.num_steps,
            per_device_train_batch_size=size.rows_per_step,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=device.type == "cpu",
            **optimizer_options(size),
            **options,
        )
        args._n_gpu = 1  # where there are more, they are for `sharded`
        run: Any = Recording(
            model=llama(size),
            args=args,
            train_dataset=[{"input_ids": row, "labels": row} for row in rows],
            superposition=SuperpositionArguments(bag_size=BAG_SIZE, superposition_ratio=0.5),
        )
        run.train()
    return Trained(losses(run), updated(run.model, size)), [[batch] for batch in run.seen]


def sharded(size_name: str, device: torch.device) -> dict[str, Any]:
    """What `sharded.py` finds, in as many processes as there are GPUs (two on the CPU)."""
    there = torch.cuda.device_count() if device.type == "cuda" else 2
    num_processes = str(min(there, SIZES[size_name].rows_per_step))
    if missing("accelerate"):
        command = ["torch.distributed.run", "--standalone", "--nproc-per-node", num_processes]
    else:
        command = ["accelerate.commands.launch", "--num_processes", num_processes, "--num_machines", "1"]
        command += ["--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "report.json")
        command = [sys.executable, "-m", *command, str(Path(__file__).with_name("sharded.py")), str(out)]
        command += ["--size", size_name, "--device", device.type]
        command += ["--ways", "root"] if missing("accelerate") else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return {"processes": int(num_processes), **json.loads(out.read_text())}


def missing(package: str) -> str | None:
    """Why what needs a package is skipped."""
    return None if importlib.util.find_spec(package) else f"{package} is not installed"


def compare(kind: str, found: Trained, expected: Trained) -> dict[str, Any]:
    """How far a run is from the core, and whether that is near enough."""
    far = apart(found.losses, expected.losses)
    cosine = nn.functional.cosine_similarity(found.update.double(), expected.update.double(), dim=0).item()
    most, least = TOLERANCES[kind]
    return {
        "outcome": "passed" if far <= most and cosine >= least else "failed",
        "losses": found.losses,
        "core": expected.losses,
        "losses_apart": far,
        "losses_apart_at_most": most,
        "cosine_of_updates": cosine,
        "cosine_at_least": least,
    }


def apart(found: list[float], expected: list[float]) -> float:
    """The largest relative difference of two runs' losses."""
    return max(abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True))


class Checks:
    """Runs checks one after the other, says how each went, and keeps it."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, Any]] = {}

    def run(self, name: str, check: Callable[[], dict[str, Any]], skipped: str | None) -> None:
        start = time.perf_counter()
        torch.backends.cuda.matmul.allow_tf32 = False  # accelerate turns it on for whatever follows a compiled model
        if skipped:
            result: dict[str, Any] = {"outcome": "skipped", "reason": skipped}
        else:
            try:
                with contextlib.redirect_stdout(sys.stderr):  # what the Trainer says
                    result = check()
            except Exception as error:  # the next check may still tell something
                result = {"outcome": "failed", "reason": f"{type(error).__name__}: {error}"}
        result["seconds"] = round(time.perf_counter() - start, 1)
        self.results[name] = result
        told = {k: v for k, v in result.items() if k in ("reason", "losses_apart", "cosine_of_updates", "seconds")}
        print(f"{name}: {result['outcome']} {told}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=("in_place", "trainer", "sharded"))
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=SIZES, default="gpu")
    given = parser.parse_args()
    wanted, size, device = (
        given.only or ["in_place", "trainer", "sharded"],
        SIZES[given.size],
        torch.device(given.device),
    )
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no GPU is to be seen here; --device cpu --size toy runs the same checks without one")
    checks, start = Checks(), time.perf_counter()
    no_liger = missing("liger_kernel") or ("Liger's kernels need a GPU" if device.type == "cpu" else None)

    if "in_place" in wanted:
        batches = in_place_batches(size, device)
        expected = core([[batch] for batch in batches], size, device)
        for kind in KINDS:
            checks.run(
                f"in_place, {kind}",
                lambda kind=kind: compare(kind, in_place(kind, batches, size, device), expected),
                no_liger if kind == "liger" else None,
            )
    if "trainer" in wanted:
        known: dict[str, Trained] = {}  # every kind is trained on the same batches: the core is asked once

        def check_trainer(kind: str) -> dict[str, Any]:
            found, steps = trainer(kind, size, device)
            if "core" not in known:
                known["core"] = core(steps, size, device)
            return compare(kind, found, known["core"])

        for kind in KINDS:
            reason = missing("accelerate") or (no_liger if kind == "liger" else None)
            checks.run(f"trainer, {kind}", lambda kind=kind: check_trainer(kind), reason)
    if "sharded" in wanted:

        def check_sharded() -> dict[str, Any]:
            report = sharded(given.size, device)
            far = [apart(w["losses"], w["unsharded"]) for w in report.values() if isinstance(w, dict)]
            same = all(way["same_keys"] for way in report.values() if isinstance(way, dict))
            return {"outcome": "passed" if same and max(far) <= 1e-4 else "failed", "losses_apart": max(far), **report}

        checks.run("sharded", check_sharded, None)

    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "size": given.size,
        "versions": {name: version(name) for name in ("torch", "transformers", "accelerate", "liger_kernel")},
        "seconds": round(time.perf_counter() - start, 1),
        "checks": checks.results,
    }
    print(json.dumps(result))
    return int(any(check["outcome"] == "failed" for check in checks.results.values()))


def version(package: str) -> str | None:
    """Of an installed package."""
    if missing(package):
        return None
    from importlib.metadata import version as installed

    return installed(package)


if __name__ == "__main__":
    sys.exit(main())
