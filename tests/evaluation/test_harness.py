"""lm-evaluation-harness, offline, on a task of our own: its figure is the one counted by hand."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from token_superposition.errors import UserError
from token_superposition.evaluation.harness import load_tasks, run_tasks
from token_superposition.evaluation.load import UsableModel

QUESTIONS: list[dict[str, Any]] = [
    {"question": f"{number}: the", "choices": [" tea", " hat", f" {'rest'[: number % 4 + 1]}"], "answer": number % 3}
    for number in range(12)
]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    harness = pytest.importorskip("lm_eval.tasks", reason="the extra `eval` is not installed")
    # Without the harness's own thousands of tasks, which take seconds to list.
    monkeypatch.setattr(harness, "TaskManager", functools.partial(harness.TaskManager, include_defaults=False))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for module in ("datasets.config", "huggingface_hub.constants"):
        monkeypatch.setattr(f"{module}.HF_HUB_OFFLINE", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with one task and its data."""
    path = tmp_path / "tasks"
    path.mkdir()
    (path / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    task = {
        "task": "small_questions",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(path / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    (path / "small_questions.yaml").write_text(yaml.safe_dump(task))
    return path


def log_likelihood(model: Any, context: str, continuation: str) -> float:
    ids = torch.tensor([list((context + continuation).encode())])
    with torch.no_grad():
        log_p = model(ids[:, :-1]).logits.log_softmax(-1)
    per_token = log_p.gather(-1, ids[:, 1:, None]).squeeze()
    return float(per_token[-len(continuation.encode()) :].sum())


def test_its_accuracy_is_the_one_counted_by_hand(loaded: UsableModel, folder: Path) -> None:
    right = 0
    for each in QUESTIONS:
        likely = [log_likelihood(loaded.model, each["question"], choice) for choice in each["choices"]]
        right += likely.index(max(likely)) == each["answer"]
    found = load_tasks(["small_questions"], include_path=folder, quiet=True)
    scores = run_tasks(loaded, found, quiet=True)
    assert set(scores) == {"small_questions"}
    assert scores["small_questions"]["acc"] == pytest.approx(right / len(QUESTIONS))
    assert scores["small_questions"]["samples"] == len(QUESTIONS)
    assert "acc_stderr" in scores["small_questions"]


def test_a_task_that_does_not_exist(folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no task 'small_question'; did you mean 'small_questions'\?"):
        load_tasks(["small_question"], include_path=folder, quiet=True)
    with pytest.raises(UserError, match=r"--include-path: .*nowhere is not a folder"):
        load_tasks(["small_questions"], include_path=folder / "nowhere", quiet=True)


def test_data_that_is_missing_is_one_line(folder: Path) -> None:
    (folder / "questions.jsonl").unlink()
    with pytest.raises(UserError, match="--tasks small_questions: cannot be loaded") as caught:
        load_tasks(["small_questions"], include_path=folder, quiet=True)
    assert "\n" not in str(caught.value)


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)  # noqa: ARG005
    with pytest.raises(UserError, match=r"pip install 'token-superposition\[eval\]'"):
        load_tasks(["arc_easy"])
