"""Runs on several ranks: equal to one process, whole after every mishap, and continued on any number of ranks."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from tests.training.distributed_worker import Job, write_jobs
from token_superposition.errors import UserError
from token_superposition.training.checkpoint import newest_checkpoint, read_state
from token_superposition.training.metrics import read_metrics
from token_superposition.training.parallel import Layout, check_batch_divides, choose_layout
from token_superposition.training.parallel_config import ParallelConfig

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "ddp-2": (2, {"mode": "ddp"}),
    "ddp-3": (3, {"mode": "ddp"}),
    "fsdp-2": (2, {"mode": "fsdp"}),
    "fsdp-4": (4, {"mode": "fsdp"}),
    "hsdp-4": (4, {"mode": "hsdp", "shard": 2}),
}
# Without dropout, whose random numbers depend on the rank.
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64} | dict.fromkeys(
    ("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0
)


def do(jobs: list[Job], folder: Path) -> None:
    """Do the jobs in one new program."""
    file = folder / "jobs.json"
    write_jobs(jobs, file)
    variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "tests.training.distributed_worker", str(file)]
    done = subprocess.run(program, env=variables, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr


def trained(job: Job) -> dict[str, Any]:
    """The summary of a run whose ranks all finished."""
    for outcome in job.outcomes:
        assert "summary" in outcome, outcome
    summary: dict[str, Any] = job.outcomes[0]["summary"]
    return summary


def losses(job: Job) -> torch.Tensor:
    return torch.tensor([line["loss"] for line in read_metrics(Path(job.folder) / "metrics.jsonl") if "loss" in line])


def validations(job: Job) -> list[float]:
    lines = read_metrics(Path(job.folder) / "metrics.jsonl")
    return [line["validation_loss"] for line in lines if "validation_loss" in line]


def tensors(job: Job) -> dict[str, torch.Tensor]:
    """The tensors of the newest checkpoint, by name."""
    newest, complaints = newest_checkpoint(Path(job.folder) / "checkpoints")
    assert newest is not None
    assert not complaints
    flat: dict[str, torch.Tensor] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(f"{prefix}.{key}", below)
        elif isinstance(value, torch.Tensor):
            flat[prefix] = value

    walk("", _load_state_dict_from_keys(checkpoint_id=newest / "tensors"))
    return flat


def farthest(one: Job, other: Job) -> float:
    """The largest difference between the tensors of two newest checkpoints."""
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    return max((ours[name].double() - theirs[name].double()).abs().max().item() for name in ours)


def plan(run: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A configuration of 12 rows per step, which 2, 3 and 4 ranks can share."""
    values = copy.deepcopy(run)
    values["train"] |= {"batch_size": 12, "sequence_length": 8, "learning_rate": 3e-3, "warmup_ratio": 0.1, **train}
    values["logging"] |= {"checkpoint_interval": 1000, "validation_interval": 1000, "interim_validation_tokens": 600}
    return values


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def run(small_run: dict[str, Any]) -> dict[str, Any]:
    return small_run


def with_layout(values: dict[str, Any], layout: dict[str, Any], **train: Any) -> dict[str, Any]:
    return {**values, "train": {**values["train"], "parallel": layout, **train}}


def test_ranks_train_what_one_process_trains(run: dict[str, Any], tmp_path: Path) -> None:
    # float64 GPT-2, because the norms of Llama go through float32 whatever the dtype of the weights.
    values = plan(run, total_steps=200)
    values["logging"]["log_interval"] = 20
    values["model"] = {"architecture": "gpt2", "config": GPT2}
    alone = Job(str(tmp_path / "alone"), values, double=True)
    shared = {
        name: Job(str(tmp_path / name), with_layout(values, layout), ranks=ranks, double=True)
        for name, (ranks, layout) in LAYOUTS.items()
    }
    do([alone, *shared.values()], tmp_path)
    assert trained(alone)["steps"] == 200
    for name, job in shared.items():
        summary = trained(job)
        assert summary["parallel"] == name.split("-")[0]
        assert farthest(alone, job) < 1e-9, name
        assert validations(job) == pytest.approx(validations(alone), abs=1e-9), name


def test_ranks_train_a_llama_in_float32(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=30, micro_batch_size=3, dtype="float32")
    alone = Job(str(tmp_path / "alone"), values)
    names = ("ddp-2", "fsdp-2", "fsdp-4")
    shared = {n: Job(str(tmp_path / n), with_layout(values, LAYOUTS[n][1]), ranks=LAYOUTS[n][0]) for n in names}
    do([alone, *shared.values()], tmp_path)
    trained(alone)
    for name, job in shared.items():
        trained(job)
        torch.testing.assert_close(losses(job), losses(alone), rtol=1e-6, atol=0, msg=name)
        assert validations(job)[0] == validations(alone)[0], "the first validation is of equal weights, so equal bits"


def test_ragged_bags_and_micro_batches(run: dict[str, Any], tmp_path: Path) -> None:
    # Targets that are ignored are spread unevenly over the ranks, so a mean of means would differ in the third digit.
    values = plan(run, total_steps=20, z_loss=1e-3)
    values["model"] = {"architecture": "gpt2", "config": GPT2}
    values["data"] |= {"bag_boundary": "document", "attention_boundary": "document"}
    values["superposition"] |= {"bag_size": 3, "slot_weights": "power_law:1"}
    alone = Job(str(tmp_path / "alone"), values, double=True)
    small = with_layout(values, {"mode": "fsdp"}, micro_batch_size=3)
    shared = [
        Job(str(tmp_path / "fsdp"), small, ranks=2, double=True),
        Job(str(tmp_path / "ddp"), with_layout(values, {"mode": "ddp"}, micro_batch_size=2), ranks=3, double=True),
    ]
    do([alone, *shared], tmp_path)
    trained(alone)
    for job in shared:
        trained(job)
        assert farthest(alone, job) < 1e-12


def test_experts_and_muon(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=20, micro_batch_size=3)
    experts = copy.deepcopy(values)
    experts["model"] = {
        "architecture": "qwen3_moe",
        "config": {
            "hidden_size": 16, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
            "num_experts_per_tok": 2, "max_position_embeddings": 64, "output_router_logits": True,
        },
    }  # fmt: skip
    muon = plan(run, total_steps=20, optimizer="muon")
    muon["model"] = {"architecture": "gpt2", "config": GPT2}
    jobs = {
        (name, kind): Job(
            str(tmp_path / f"{name}-{kind}"),
            values if kind == "alone" else with_layout(values, LAYOUTS[kind][1]),
            ranks=1 if kind == "alone" else LAYOUTS[kind][0],
            double=name == "muon",
        )
        for name, values in (("experts", experts), ("muon", muon))
        for kind in ("alone", "fsdp-2", "ddp-2")
    }
    do(list(jobs.values()), tmp_path)
    for (name, kind), job in jobs.items():
        trained(job)
        alone = jobs[name, "alone"]
        torch.testing.assert_close(losses(job), losses(alone), rtol=1e-6, atol=0, msg=f"{name} {kind}")
    assert farthest(jobs["muon", "alone"], jobs["muon", "fsdp-2"]) < 1e-9


def test_a_run_continues_on_another_number_of_ranks(run: dict[str, Any], tmp_path: Path) -> None:
    # The switch is at step 12: the run stops before it, at it and after it.
    values = plan(run, total_steps=24)
    values["model"] = {"architecture": "gpt2", "config": GPT2}
    alone = Job(str(tmp_path / "whole"), values, double=True)
    folder = str(tmp_path / "moved")
    moved = [
        Job(folder, with_layout(values, {"mode": "fsdp"}), ranks=2, double=True, stop_after=11),
        Job(folder, with_layout(values, {"mode": "hsdp", "shard": 2}), ranks=4, double=True, stop_after=12),
        Job(folder, values, ranks=1, double=True, stop_after=14),
        Job(folder, with_layout(values, {"mode": "ddp"}), ranks=3, double=True),
    ]
    same = [
        Job(str(tmp_path / "same"), with_layout(values, {"mode": "fsdp"}), ranks=2, double=True, stop_after=stop)
        for stop in (12, None)
    ]
    whole = Job(str(tmp_path / "two"), with_layout(values, {"mode": "fsdp"}), ranks=2, double=True)
    do([alone, *moved, *same, whole], tmp_path)
    assert trained(moved[-1])["steps"] == 24
    assert farthest(alone, moved[-1]) < 1e-12
    assert farthest(whole, same[-1]) == 0, "the same number of ranks gives the same bits"
    assert losses(whole).tolist() == losses(same[-1]).tolist()


def test_mishaps(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=8, parallel={"mode": "ddp", "timeout_seconds": 5})
    values["logging"]["checkpoint_interval"] = 2
    made = {
        kind: Job(str(tmp_path / kind), values, ranks=2, mishap=[kind, rank, 3])
        for kind, rank in (
            ("kill", 1), ("hang", 1), ("signal", 1), ("twice", 0), ("nan", 1), ("nans", 1), ("data", 1), ("batch", 1),
        )
    }  # fmt: skip
    made["nans"].values["train"] = {**values["train"], "max_skipped_steps": 2}
    full = Job(str(tmp_path / "full"), values, ranks=2, mishap=["full", 1, 4])
    again = Job(str(tmp_path / "kill"), values, ranks=2)
    do([*made.values(), full], tmp_path)

    for kind in ("kill", "hang"):  # the other rank ends with one line, and the checkpoint before is whole
        first = made[kind].outcomes[0]
        assert first["kind"] == "PeerError", first
        assert newest_checkpoint(Path(made[kind].folder) / "checkpoints")[1] == []
    do([again], tmp_path)
    assert trained(again)["steps"] == 8

    for kind in ("signal", "twice"):  # one checkpoint after the same step on all ranks
        assert [outcome["kind"] for outcome in made[kind].outcomes] == ["StoppedError"] * 2
        newest, _ = newest_checkpoint(Path(made[kind].folder) / "checkpoints")
        assert newest is not None
        assert read_state(newest)["step"] == 4

    assert trained(made["nan"])["skipped_steps"] == 1
    for outcome in made["nans"].outcomes:
        assert (outcome["kind"], outcome["of_all"]) == ("TrainingDivergedError", True)
    assert (Path(made["nans"].folder) / "diverged.json").exists()

    for kind, key in (("data", "data.path"), ("batch", "train.learning_rate")):
        for outcome in made[kind].outcomes:
            assert (outcome["kind"], outcome["of_all"]) == ("UserError", True)
            assert key in outcome["error"]
        assert not Path(made[kind].folder).exists(), "nothing is written"

    assert trained(full)["steps"] == 8, "a full disk on one rank is a warning"
    assert "No space left" in Path(f"{full.folder}-stderr-0").read_text()
    assert "step-0000004" not in {path.name for path in (Path(full.folder) / "checkpoints").iterdir()}


def test_a_changed_bit_in_the_file_of_any_rank_is_found(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=8)
    values["logging"]["checkpoint_interval"] = 3
    job = Job(str(tmp_path / "run"), with_layout(values, {"mode": "fsdp"}), ranks=2, stop_after=7)
    do([job], tmp_path)
    newest, _ = newest_checkpoint(Path(job.folder) / "checkpoints")
    assert newest is not None
    file = next((newest / "tensors").glob("__1_*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    finished = Job(job.folder, job.values, ranks=2)
    do([finished], tmp_path)
    assert trained(finished)["steps"] == 8
    assert file.name in Path(f"{job.folder}-stderr-0").read_text()


def test_a_trained_model_is_sharded(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=4)
    trained_first = Job(str(tmp_path / "first"), values)
    further = {**values, "model": {"init_from": trained_first.folder}}
    alone = Job(str(tmp_path / "alone"), further)
    shared = Job(str(tmp_path / "shared"), with_layout(further, {"mode": "fsdp"}), ranks=2)
    do([trained_first, alone, shared], tmp_path)
    assert trained(shared)["init_from"] == trained(alone)["init_from"]
    assert validations(shared)[0] == validations(alone)[0]


def test_only_rank_0_holds_the_whole_model(run: dict[str, Any], tmp_path: Path) -> None:
    values = plan(run, total_steps=1, batch_size=2)
    del values["superposition"]
    values["model"]["config"] |= {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8}
    values["logging"] |= {"interim_validation_tokens": 8, "validation_tokens": 8}
    job = Job(str(tmp_path / "run"), with_layout(values, {"mode": "fsdp"}), ranks=2, mishap=["memory", 1, 0])
    do([job], tmp_path)
    num_bytes = 4 * trained(job)["parameters"]
    assert num_bytes > 80e6
    assert job.outcomes[1]["memory_growth"][0] < 0.8 * num_bytes


def test_rows_that_do_not_divide_name_what_divides() -> None:
    with pytest.raises(UserError, match="1 or 2 or 5 or 10 processes"):
        check_batch_divides(10, None, 4)
    with pytest.raises(UserError, match="use 1 or 2 or 3 or 6"):
        check_batch_divides(12, 4, 2)
    check_batch_divides(12, 3, 2)


@pytest.mark.parametrize(
    ("values", "size", "fits", "layout"),
    [
        ({}, 1, True, Layout("single")),
        ({}, 4, True, Layout("ddp", 4, 1)),
        ({}, 4, False, Layout("fsdp", 1, 4)),
        ({"mode": "hsdp"}, 8, True, Layout("hsdp", 2, 4)),
        ({"mode": "hsdp", "replicate": 4}, 8, True, Layout("hsdp", 4, 2)),
    ],
)
def test_layouts(values: dict[str, Any], size: int, fits: bool, layout: Layout) -> None:
    assert choose_layout(ParallelConfig(**values), size, per_machine=4, fits=fits) == layout


@pytest.mark.parametrize("values", [{"mode": "hsdp", "shard": 3}, {"mode": "ddp", "shard": 2}, {"shard": 3}])
def test_layouts_that_do_not_multiply_to_the_processes(values: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"train\.parallel"):
        choose_layout(ParallelConfig(**values), 8, per_machine=8, fits=False)
