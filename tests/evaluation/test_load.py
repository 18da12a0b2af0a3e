"""Loading: the newest whole checkpoint, nothing half trained by accident, nothing of a stranger run or unpickled."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tests.evaluation.conftest import CPU
from token_superposition.errors import UserError
from token_superposition.evaluation.export import export
from token_superposition.evaluation.load import load_model
from token_superposition.schedule import Schedule
from token_superposition.training.config import parse_config
from token_superposition.training.trainer import Trainer


def refusal(path: Path, **options: bool) -> str:
    with pytest.raises(UserError) as caught:
        load_model(path, device=CPU, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy of the export, to be spoilt."""
    return Path(shutil.copytree(exported, tmp_path / "folder"))


def spoil(checkpoint: Path) -> None:
    file = checkpoint / "tensors" / "__0_0.distcp"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


# A run.


def test_a_run_s_model_is_the_trained_one(done_run: Path) -> None:
    config = parse_config(yaml.safe_load((done_run / "config.yaml").read_text()))
    trainer = Trainer(config, config.schedule())
    trainer.load(done_run / "checkpoints" / "step-0000012")
    trained = trainer.model.model.state_dict()
    loaded = load_model(done_run, device=CPU)
    assert loaded.warnings == []
    assert not loaded.model.training
    weights = loaded.model.state_dict()
    assert set(weights) == set(trained)
    assert all(torch.equal(weights[name], trained[name]) for name in trained)
    origin = loaded.origin
    assert origin is not None
    assert (origin.step, origin.total_steps, origin.phase) == (12, 12, "recovery")
    assert Schedule.from_dicts(origin.stages) == config.schedule()


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(done_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(done_run, tmp_path / "run"))
    spoil(run / "checkpoints" / "step-0000012")
    loaded = load_model(run, device=CPU)
    assert loaded.origin is not None
    assert loaded.origin.step == 9
    assert "step-0000012" in loaded.warnings[0]
    assert loaded.warnings[0].endswith("using the previous checkpoint")
    assert "not finished (step 9 of 12)" in loaded.warnings[1]
    for checkpoint in (run / "checkpoints").iterdir():
        (checkpoint / "manifest.json").unlink()
    assert "every checkpoint is damaged" in refusal(run)


def test_a_superposed_model_is_refused_until_one_insists(superposed_run: Path, tmp_path: Path) -> None:
    """Trap 16 of the design: of a run, and of what was exported from it."""
    line = refusal(superposed_run)
    assert "step 6 of 12" in line
    assert line.endswith("use --allow-superposed")
    assert "not meaningful" in load_model(superposed_run, device=CPU, allow_superposed=True).warnings[0]
    with pytest.raises(UserError, match="--allow-superposed"):
        export(superposed_run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(superposed_run, tmp_path / "out", allow_superposed=True)
    assert refusal(tmp_path / "out").endswith("use --allow-superposed")
    assert load_model(tmp_path / "out", device=CPU, allow_superposed=True).warnings
    assert "Not a finished model" in (tmp_path / "out" / "README.md").read_text()


def test_a_run_in_recovery_is_usable_and_says_so(unfinished_run: Path) -> None:
    (warning,) = load_model(unfinished_run, device=CPU).warnings
    assert "step 9 of 12" in warning


def test_what_is_no_run_or_not_yet_one(done_run: Path, tmp_path: Path) -> None:
    assert "no such folder" in refusal(tmp_path / "nowhere")
    assert "neither a run" in refusal(tmp_path)
    run = Path(shutil.copytree(done_run, tmp_path / "run"))
    (run / "tokenizer.json").unlink()
    assert "has no tokenizer.json" in refusal(run)
    shutil.copy(done_run / "tokenizer.json", run)
    for text in ("train: {", "train: {}\n", "- a\n"):
        (run / "config.yaml").write_text(text)
        assert "config.yaml: " in refusal(run)
        assert "edited" in refusal(run)
    shutil.copy(done_run / "config.yaml", run)
    shutil.rmtree(run / "checkpoints")
    assert "no checkpoint yet" in refusal(run)


# A folder.


def test_a_folder_s_model_is_the_run_s(done_run: Path, exported: Path) -> None:
    ours, theirs = (load_model(path, device=CPU) for path in (done_run, exported))
    assert theirs.origin == ours.origin
    assert theirs.context_length == ours.context_length == 16
    ids_BL = torch.arange(16)[None]
    assert torch.equal(theirs.model(ids_BL).logits, ours.model(ids_BL).logits)


def test_a_pickle_is_never_loaded(folder: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (Path(folder / "sprung"),))  # type: ignore[return-value]

    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    assert "no .safetensors weights (pickled weights are not loaded)" in refusal(folder)
    assert not (folder / "sprung").exists()


def test_code_in_a_folder_is_not_run_unasked(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "stranger", "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "code.py").write_text(f"open({str(folder / 'sprung')!r}, 'w')\n")
    assert refusal(folder).endswith("allow it with --trust-remote-code")
    assert not (folder / "sprung").exists()


def test_a_spoilt_folder_is_one_line(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    save_file(
        {key: value for key, value in weights.items() if key != name}, folder / "model.safetensors", {"format": "pt"}
    )
    assert f"weights lack '{name}'" in refusal(folder)
    (folder / "model.safetensors").write_bytes(b"no weights")
    assert "cannot be loaded" in refusal(folder)
    (folder / "config.json").write_text("{}")
    assert "cannot be loaded" in refusal(folder)
    (folder / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refusal(folder)


def test_an_export_whose_past_cannot_be_read_is_refused(folder: Path) -> None:
    for text in ("{", "[]", '{"format": "x", "version": 1}'):
        (folder / "token_superposition.json").write_text(text)
        assert "export the run again" in refusal(folder)


def test_evaluation_imports_neither_the_training_loop_nor_studies() -> None:
    code = """
import pkgutil, sys, importlib, token_superposition.evaluation as layer
for module in pkgutil.iter_modules(layer.__path__):
    importlib.import_module(f"token_superposition.evaluation.{module.name}")
higher = ("token_superposition.training.trainer", "token_superposition.training.loop", "token_superposition.study")
print([name for name in sys.modules if name.startswith(higher)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
