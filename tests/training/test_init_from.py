"""Going on from a trained model: the weights are the folder's, the run needs the folder no more, nothing is guessed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file

from tests.conftest import small_run_on
from tests.training.runs import TINY, go, go_until, going_on, numbers, stranger, weights
from token_superposition.data.dataset import TokenDataset
from token_superposition.errors import UserError
from token_superposition.evaluation.export import export
from token_superposition.evaluation.load import load_model
from token_superposition.training.config import parse_config
from token_superposition.training.dry_run import dry_run
from token_superposition.training.init_from import NO_EVIDENCE
from token_superposition.training.run import Run
from token_superposition.training.run_folder import RunFolder
from token_superposition.training.trainer import Trainer


def stock_loss(folder: Path, data: str, length: int, rows: int) -> float:
    """The next-token loss of what stock transformers makes of a folder, on the data's first validation rows."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.from_numpy(TokenDataset.open(data, "validation").read(0, rows * length + 1).astype(np.int64))
    with torch.no_grad():
        logits = model(input_ids=ids[:-1].view(rows, length)).logits
    return float(F.cross_entropy(logits.flatten(0, 1).double(), ids[1:]))


def refused(values: dict[str, Any], folder: Path, **overrides: Any) -> str:
    """The line that a run is refused with; nothing of it stays."""
    with pytest.raises(UserError) as caught:
        go(values, folder, **overrides)
    assert not folder.exists()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def base(small_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ours that is done."""
    folder = tmp_path_factory.mktemp("base") / "run"
    go(small_run_on(small_data), folder)
    return folder


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports") / "base"
    export(base, folder)
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    return stranger(tmp_path / "stranger")


# The weights.


@pytest.fixture(params=["run", "export", "bfloat16 export", "stranger", "tied stranger in bfloat16"])
def source(request: pytest.FixtureRequest, base: Path, exported: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A folder to go on from, and one that stock transformers reads as the same model."""
    folder = tmp_path / "source"
    if request.param == "run":
        return Path(shutil.copytree(base, folder)), exported
    if request.param == "export":
        return (Path(shutil.copytree(exported, folder)),) * 2
    if request.param == "bfloat16 export":
        export(base, folder, dtype="bfloat16")
        return folder, folder
    if request.param == "stranger":
        return (stranger(folder),) * 2
    return (stranger(folder, torch.bfloat16, tied=True),) * 2


def test_the_first_loss_is_that_of_the_model_in_stock_transformers(
    source: tuple[Path, Path], small_run: dict[str, Any], tmp_path: Path
) -> None:
    folder, stock = source
    summary = go(going_on(small_run, folder), tmp_path / "run")
    first = numbers(tmp_path / "run")[0]
    assert (first["step"], first["init_from"], first["raw_tokens"]) == (0, str(folder), 0)
    assert first["validation_loss"] == pytest.approx(stock_loss(stock, small_run["data"]["path"], 16, 16), rel=1e-6)
    assert all("init_from" not in line for line in numbers(tmp_path / "run")[1:])
    # What is counted is this run's.
    assert summary["raw_tokens"] == 12 * 4 * 16 * 1.5
    assert summary["init_from"]["path"] == str(folder)


def test_the_run_carries_what_the_folder_said(foreign: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    said = dry_run(parse_config(going_on(small_run, foreign)), tmp_path / "run")
    go(going_on(small_run, foreign), tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert said["config"] == stored
    model = stored["model"]
    assert (model["architecture"], model["init_from"]) == ("llama", str(foreign))
    kept = {key: value for key, value in TINY.items() if not key.endswith("_token_id") and key != "rope_theta"}
    assert kept.items() <= model["config"].items()
    assert model["config"]["rope_parameters"]["rope_theta"] == 5000.0
    go(stored, tmp_path / "again")
    assert numbers(tmp_path / "again") == numbers(tmp_path / "run")
    # A padding id would freeze a row; the end of a document is the data's.
    assert not any(key.endswith("_token_id") for key in model["config"])
    shutil.rmtree(foreign)
    config = load_model(tmp_path / "run", device=torch.device("cpu")).model.config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (256, 256, None)


def test_an_initialisation_s_scale_does_not_touch_them(base: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    values = going_on(small_run, base)
    go(values, tmp_path / "run", train__learning_rate=1e-30, train__weight_decay=0.0)
    before, after = weights(base), weights(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert "remove it" in refused(values, tmp_path / "other", model__scale_residual_init=True)


def test_every_row_of_the_embedding_is_trained(foreign: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    """The folder's padding id is an id like others here; its row would have no gradient."""
    config = parse_config(going_on(small_run, foreign))
    run = Run.open(RunFolder(tmp_path / "run"), config)
    model: Any = Trainer(run.config, run.schedule, run.corpora, run.source).model.model
    assert model.get_input_embeddings().padding_idx is None


# Without the folder.


@pytest.mark.parametrize("kind", ["run", "stranger"])
def test_a_killed_run_goes_on_bit_for_bit_without_the_folder(
    kind: str, base: Path, small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "source"
    _ = shutil.copytree(base, folder) if kind == "run" else stranger(folder, torch.bfloat16)
    values = going_on(small_run, folder)
    whole = go(values, tmp_path / "whole")
    go_until(7, values, tmp_path / "killed", monkeypatch)
    shutil.rmtree(folder)
    killed = go(values, tmp_path / "killed")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "killed")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert killed["init_from"] == whole["init_from"]
    assert go(values, tmp_path / "killed") == killed  # a run that is done says so again
    with pytest.raises(UserError, match=f"model.init_from '{folder}', but the value is now '{base}'"):
        go(going_on(small_run, base), tmp_path / "killed")
    with pytest.raises(UserError, match=f"model.init_from '{folder}', but the value is now None"):
        go(small_run, tmp_path / "killed")
    with pytest.raises(UserError, match=r"model\.config\.hidden_size: 17 contradicts"):
        go(values, tmp_path / "killed", model__config={"hidden_size": 17})
    if kind == "run":
        with pytest.raises(UserError, match=r"model\.init_from None, but the value is now"):
            go(values, base)


def test_a_run_killed_before_its_first_checkpoint_begins_again(
    foreign: Path, small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = going_on(small_run, foreign)
    go(values, tmp_path / "whole")
    go_until(2, values, tmp_path / "killed", monkeypatch)
    go(values, tmp_path / "killed")
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    go_until(2, values, tmp_path / "lost", monkeypatch)
    shutil.rmtree(foreign)
    with pytest.raises(UserError, match="no such folder"):
        go(values, tmp_path / "lost")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_comes_of_it_is_exported_and_loads_in_stock_transformers(
    dtype: str, exported: Path, small_run: dict[str, Any], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    source = Path(shutil.copytree(exported, tmp_path / "source"))
    go(going_on(small_run, source), tmp_path / "run")
    shutil.rmtree(source)
    export(tmp_path / "run", tmp_path / "out", dtype=dtype)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ids_BL = torch.arange(16)[None]
    ours = load_model(tmp_path / "run", device=torch.device("cpu")).model
    for parameter in ours.parameters():
        parameter.data = parameter.data.to(getattr(torch, dtype)).float()
    assert torch.equal(stock(ids_BL).logits, ours(ids_BL).logits)
    # And once more, from what came of it; its past is all there.
    go(going_on(small_run, tmp_path / "out"), tmp_path / "next", superposition={"bag_size": 1})
    export(tmp_path / "next", tmp_path / "last")
    card = " ".join((tmp_path / "last" / "README.md").read_text().split())
    past = "(step 12 of 12 with bags of up to 2 tokens)"
    assert (
        f"trained from the weights of `{tmp_path / 'out'}` {past}, itself trained from `{source}` {past}, by "
        "ordinary next-token training."
    ) in card
    assert "results are those of this run alone" in card
    assert "no evidence" not in card
    assert "pre-trained from scratch" not in card
    assert "no evidence that superposition helps" in " ".join((tmp_path / "out" / "README.md").read_text().split())
    assert "pre-trained from scratch with Token-Superposition" in (exported / "README.md").read_text()


# What is said.


def test_what_is_known_is_said_when_it_starts(
    foreign: Path, exported: Path, small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(going_on(small_run, foreign), tmp_path / "run")
    said = capsys.readouterr().err
    assert f"warning: {NO_EVIDENCE}\n" in said
    assert "docs/continuing.md" in NO_EVIDENCE
    assert (Path(__file__).parents[2] / "docs" / "continuing.md").exists()
    assert f"the tokenizer of {foreign} is unknown" in said
    warnings = dry_run(parse_config(going_on(small_run, foreign)), tmp_path / "other")["warnings"]
    assert NO_EVIDENCE in warnings
    assert len(warnings) == 2
    # Without superposition, and where the tokenizer is known, there is nothing to say.
    plain = going_on({**small_run, "superposition": {}}, exported)
    assert dry_run(parse_config(plain), tmp_path / "other")["warnings"] == []
    assert dry_run(parse_config(small_run), tmp_path / "other")["warnings"] == []


# What is refused.


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("architecture", "gpt2", "model.architecture: 'gpt2' contradicts {}, which is 'llama'"),
        ("config", {"hidden_size": 64}, "model.config.hidden_size: 64 contradicts {}, which has 32"),
        ("config", {"rope_theta": 1e4}, "model.config.rope_theta: 10000.0 contradicts {}, which has 5000.0"),
        ("config", {"attention_dropout": 0.1}, "model.config.attention_dropout: 0.1 contradicts {}, which has 0.0"),
        ("config", {"pad_token_id": 5}, "model.config.pad_token_id: 5 contradicts {}, which has None"),
        ("config", {"hiden_size": 32}, "model.config.hiden_size: llama has no such key; did you mean 'hidden_size'"),
    ],
)
def test_keys_that_contradict(
    key: str, value: Any, said: str, foreign: Path, small_run: dict[str, Any], tmp_path: Path
) -> None:
    line = refused(going_on(small_run, foreign, **{key: value}), tmp_path / "run")
    assert said.format(foreign) in line


def test_keys_that_agree_are_fine(foreign: Path, base: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    config = {"hidden_size": 32, "rope_theta": 5000.0, "rope_parameters": {"rope_theta": 5000.0}, "eos_token_id": 256}
    go(going_on(small_run, foreign, architecture="llama", config=config), tmp_path / "run")
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["config"]
    assert "rope_theta" not in stored  # the folder's keys, not the user's
    go(going_on(small_run, base, **small_run["model"]), tmp_path / "other")


def rewritten(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    values = json.loads(file.read_text())
    change(values)
    file.write_text(json.dumps(values))


def without(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        del tensors[name]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return change


def with_tensor(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, name: tensor}, folder / "model.safetensors", {"format": "pt"})

    return change


def in_config(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder / "config.json", lambda config: config.update(values))


def as_pickle(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (without(DOWN), f"its weights lack '{DOWN}' and do not fit"),
        (without("lm_head.weight"), "its weights lack 'lm_head.weight'"),
        (with_tensor("score.weight", torch.ones(2, 32)), "its weights have 'score.weight', which llama does not"),
        (with_tensor(DOWN, torch.ones(32, 47)), f"its weight '{DOWN}' has the shape [32, 47], but its"),
        (with_tensor(DOWN, torch.full((32, 48), math.inf)), f"its weight '{DOWN}' holds values that are NaN"),
        (in_config(tie_word_embeddings=True), "to another weight, but the two differ"),
        (in_config(hidden_size=36), "has the shape"),
        (in_config(num_hidden_layers=3), "its weights lack 'model.layers.2"),
        (in_config(num_hidden_layers=1), "which llama does not have"),
        (in_config(num_hidden_layers=10**9), "is too large (the maximum is"),
        (in_config(vocab_size=200), "has a vocabulary of 200 ids, but tokenizer 'bytes' of the data has 257"),
        (in_config(model_type="lama"), "cannot be loaded"),
        (in_config(model_type="bert"), "its weights lack 'bert."),
        (in_config(model_type="t5"), "model.architecture: 't5' is not a causal language model"),
        (in_config(quantization_config={"quant_method": "fp8"}), "its weights are quantized and cannot be trained"),
        (in_config(model_type="own", auto_map={"AutoConfig": "code.C"}), "code from the folder; training"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot be loaded"),
        (lambda folder: (folder / "config.json").unlink(), "is neither a run (no config.yaml) nor a"),
        (lambda folder: (folder / "adapter_config.json").write_text("{}"), "is an adapter for another model"),
        (as_pickle, "has no .safetensors weights (pickled weights are not loaded); if you trust the weights"),
        (cut, "cannot be loaded"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no weights"), "cannot be loaded"),
    ],
)  # fmt: skip
def test_a_spoilt_folder_is_one_line(
    spoil: Callable[[Path], Any], said: str, foreign: Path, small_run: dict[str, Any], tmp_path: Path
) -> None:
    spoil(foreign)
    line = refused(going_on(small_run, foreign), tmp_path / "run")
    assert line.startswith("model.init_from: ")
    assert said in line


@pytest.fixture
def too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("token_superposition.models.size_limits.available_memory", lambda: 10_000)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))


@pytest.mark.usefixtures("too_small")
def test_a_model_too_large_is_not_even_loaded(foreign: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    assert "this machine has" in refused(going_on(small_run, foreign), tmp_path / "run")


def test_rows_longer_than_its_positions(foreign: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    line = refused(going_on(small_run, foreign), tmp_path / "run", train__sequence_length=65)
    assert "train.sequence_length: 65 is more than the model's max_position_embeddings of 64; lower it" in line


def test_a_model_that_still_predicts_bags(base: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    run = Path(shutil.copytree(base, tmp_path / "superposed"))
    (run / "summary.json").unlink()
    for checkpoint in (run / "checkpoints").iterdir():
        if int(checkpoint.name[5:]) > 6:
            shutil.rmtree(checkpoint)
    export(run, tmp_path / "export", allow_superposed=True)
    for folder in (run, tmp_path / "export"):
        line = refused(going_on(small_run, folder), tmp_path / "run")
        assert "step 6 of 12) is still in the superposition phase" in line
        assert line.endswith("then start from the finished run")


def test_a_run_in_recovery_is_taken_and_said(
    base: Path, small_run: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(base, tmp_path / "unfinished"))
    shutil.rmtree(run / "checkpoints" / "step-0000012")
    summary = go(going_on(small_run, run), tmp_path / "run")
    assert "the training of this model is not finished (step 9 of 12)" in capsys.readouterr().err
    assert summary["init_from"]["origin"]["step"] == 9
    damaged = Path(shutil.copytree(base, tmp_path / "damaged"))
    (damaged / "checkpoints" / "step-0000012" / "manifest.json").unlink()
    go(going_on(small_run, damaged), tmp_path / "other")
    said = capsys.readouterr().err
    assert "step-0000012: has no readable manifest.json, so it is incomplete; using the previous checkpoint" in said


def test_another_tokenizer(exported: Path, small_run: dict[str, Any], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "folder"))
    file = folder / "token_superposition.json"
    rewritten(file, lambda values: values["origin"].update(tokenizer="llama-3", fingerprint="f" * 64))
    line = refused(going_on(small_run, folder), tmp_path / "run")
    assert (
        f"{folder} was trained with tokenizer 'llama-3' (ffffffffffff), but the data was prepared with 'bytes'" in line
    )
    for key, value in (("step", "x"), ("init_from", {"path": "x", "origin": {}}), ("stages", [])):
        shutil.copy(exported / "token_superposition.json", file)
        rewritten(file, lambda values, key=key, value=value: values["origin"].update({key: value}))
        assert "export the run again" in refused(going_on(small_run, folder), tmp_path / "run")


def test_what_is_no_folder(small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing is to be fetched"))
    for name in ("runs/shakespear", "no/such/folder", "gpt2", "~/x"):
        line = refused(going_on(small_run, Path(name)), tmp_path / "run")
        assert line.startswith(f"model.init_from: {Path(name).expanduser()}: no such folder, and no model of that name")
    (tmp_path / "file").write_text("")
    assert "is a file" in refused(going_on(small_run, tmp_path / "file"), tmp_path / "run")
    assert "no whole" not in refused(going_on(small_run, tmp_path), tmp_path / "run")


def test_a_model_downloaded_before_goes_by_its_name(
    small_run: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache" / "models--somebody--tiny"
    stranger(cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("nothing is to be fetched"))
    summary = go(going_on(small_run, Path("somebody/tiny")), tmp_path / "run")
    assert summary["init_from"]["path"] == "somebody/tiny"


def test_configurations_of_older_versions(small_run: dict[str, Any], tmp_path: Path) -> None:
    """What transformers 4 wrote of rotary embeddings is not lost on the way into config.yaml."""
    folder = stranger(tmp_path / "old")
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling["original_max_position_embeddings"] = 32

    def age(config: dict[str, Any]) -> None:
        del config["rope_parameters"]
        config.update(rope_theta=300.0, rope_scaling=scaling, torch_dtype="float32", unsloth_version="1")

    rewritten(folder / "config.json", age)
    go(going_on(small_run, folder), tmp_path / "run")
    first = numbers(tmp_path / "run")[0]["validation_loss"]
    assert first == pytest.approx(stock_loss(folder, small_run["data"]["path"], 16, 16), rel=1e-6)
    stored = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["config"]
    assert stored["rope_parameters"] == {**scaling, "rope_theta": 300.0}
    assert "unsloth_version" not in stored
    rope = load_model(tmp_path / "run", device=torch.device("cpu")).model.config.rope_parameters
    assert rope == {**scaling, "rope_theta": 300.0}


def test_it_needs_a_text(small_run: dict[str, Any], tmp_path: Path) -> None:
    assert "model.init_from: the path is empty" in refused({**small_run, "model": {"init_from": ""}}, tmp_path / "run")
