"""What the tests of bad input share: a small world (text, data, a run that is done, a study that is done), and a
judge of what the command line said."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, settings

from token_superposition.cli import main
from token_superposition.study.compare import load_study
from token_superposition.training import logger, loop
from token_superposition.training.config import load_config
from token_superposition.training.trainer import Trainer

# In CI the same few examples every time. By hand: TST_FUZZ=100 python -m pytest tests/test_fuzz_*.py
TIMES = int(os.environ.get("TST_FUZZ", "0"))
STEPS = 2


def examples(number: int) -> settings:
    """Settings for a test of so many examples."""
    return settings(
        max_examples=number * max(TIMES, 1),
        derandomize=not TIMES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str


def tst(*arguments: object) -> Said:
    """Run the command in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, on shapes that make little sense
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:  # --help
            code = int(stop.code or 0)
    return Said(code, out.getvalue(), err.getvalue())


def judged(*arguments: object) -> Said:
    """The same, and it must have been answered as the contract says: done, refused in one line, or diverged."""
    said = tst(*arguments)
    complaints = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert said.code in (0, 1, 2, 130), said
    if said.code in (1, 2):
        assert len(complaints) == 1, said
        assert said.err.splitlines()[-1] == complaints[0], said
        assert said.out == "", said
    if said.code == 1:
        assert "diverged" in said.err, said
    return said


def refused(*arguments: object) -> str:
    """The one line that a wrong input is refused with."""
    said = tst(*arguments)
    assert said.code == 2, said
    assert said.out == ""
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1, said.err
    return said.err.strip()


class World:
    """Text, a prepared folder, a run and a study that are done, all tiny; and a place for what is tried.

    Attributes:
        base: the run's configuration, nested.
        text, data, run, study: folders.
        work: a folder for whatever an example writes; `clean` empties it.
    """

    def __init__(self, folder: Path) -> None:
        self.work = folder / "work"
        self.text, self.data, self.run, self.study = (folder / name for name in ("text", "data", "run", "study"))
        self.text.mkdir()
        generator = np.random.default_rng(0)
        words = ["".join(generator.choice(list("etaoinshrdlu"), size)) for size in generator.integers(2, 9, 60)]
        for number in range(40):
            (self.text / f"{number:02d}.txt").write_text(" ".join(generator.choice(words, 100)))
        assert tst("prepare", self.text, "--out", self.data, "--quiet").code == 0
        self.base: dict[str, Any] = {
            "data": {"path": str(self.data)},
            "model": {
                "architecture": "llama",
                "config": {
                    "hidden_size": 16,
                    "intermediate_size": 32,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "max_position_embeddings": 64,
                    "tie_word_embeddings": True,
                },
            },
            "superposition": {"bag_size": 2, "ratio": 0.5},
            "train": {
                "total_steps": STEPS,
                "sequence_length": 16,
                "batch_size": 4,
                "micro_batch_size": 2,
                "learning_rate": 1e-2,
                "device": "cpu",
                "num_threads": 1,
            },
            "logging": {"log_interval": 1, "validation_tokens": 64, "checkpoint_interval": 1},
        }
        self.config = folder / "run.yaml"
        self.config.write_text(yaml.safe_dump(self.base))
        assert tst("train", self.config, "--out", self.run, "--quiet").code == 0
        for name, config in load_study(self.config, {}).arms.items():
            place = self.study / "runs" / name
            place.mkdir(parents=True)
            loop.train(config, place / "seed-0", quiet=True)
        assert tst("compare", self.config, "--out", self.study, "--quiet").code == 0
        assert load_config(self.config).train.total_steps == STEPS

    def clean(self) -> Path:
        """An empty folder for one example; what is tried is named inside it."""
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir()
        return self.work

    def copied(self, folder: Path) -> Path:
        """A fresh copy of one of the folders, to be damaged."""
        return Path(shutil.copytree(folder, self.clean() / folder.name))

    def changed(self, dotted: str, value: Any) -> Path:
        """A configuration's file with one key set."""
        values = copy.deepcopy(self.base)
        place = values
        *above, last = dotted.split(".")
        for key in above:
            place = place.setdefault(key, {})
        place[last] = value
        return self.written(yaml.safe_dump(values))

    def written(self, text: str) -> Path:
        """A configuration's file with that text."""
        file = self.clean() / "bad.yaml"
        file.write_text(text, encoding="utf-8")
        return file


@contextlib.contextmanager
def few_steps() -> Iterator[None]:
    """Runs stop, as by Ctrl-C, where they would go on past a few steps; and their machine is not measured."""
    step = Trainer.step

    def limited(self: Trainer, batch: Any) -> Any:
        if batch.step >= STEPS:
            raise KeyboardInterrupt
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", limited)
        patch.setattr(logger, "matrix_peak", lambda *_: 1e9)
        yield
