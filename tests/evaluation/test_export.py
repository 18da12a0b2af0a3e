"""Export: a folder that stock transformers, new and old, reads as the model that was trained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from tests.evaluation.conftest import CPU
from token_superposition.data.tokenizers import ByteTokenizer
from token_superposition.errors import UserError
from token_superposition.evaluation.export import export, readable_by_older
from token_superposition.evaluation.load import load_model
from token_superposition.training.config import parse_config
from token_superposition.training.loop import train

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}  # no family's default
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**SMALL, **ROPE},
    "qwen3": {**SMALL, **ROPE, "head_dim": 8},
    "gemma2": {**SMALL, **ROPE, "head_dim": 8},
    "qwen3_moe": {**SMALL, **ROPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
}
IDS_BL = torch.arange(48)[None] * 5 % 257


def trained(family: str, small_run: dict[str, Any], folder: Path) -> Path:
    """A run of two steps, one of them superposed."""
    small_run["model"] = {"architecture": family, "config": FAMILIES.get(family, {**SMALL, **ROPE})}
    train(parse_config(small_run, {"train.total_steps": 2}), folder, quiet=True)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_stock_transformers_gives_the_same_logits(family: str, small_run: dict[str, Any], tmp_path: Path) -> None:
    run = trained(family, small_run, tmp_path / "run")
    result = export(run, tmp_path / "out", max_shard_size="30KB")
    assert result["warnings"] == []
    assert sum(name.endswith(".safetensors") for name in result["files"]) > 1
    model, found = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)  # type: ignore[misc]
    assert not any(found.values())
    expected = load_model(run, device=CPU).model(IDS_BL).logits
    assert torch.equal(model.eval()(IDS_BL).logits, expected)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("é<|endoftext|>")["input_ids"][:3] == [195, 169, 60]


def test_a_family_whose_tokenizer_is_replaced_is_said(small_run: dict[str, Any], tmp_path: Path) -> None:
    """transformers 5 reads every folder of Qwen2 with a tokenizer that normalises text."""
    (warning,) = export(trained("qwen2", small_run, tmp_path / "run"), tmp_path / "out")["warnings"]
    assert "use PreTrainedTokenizerFast instead" in warning
    assert "PreTrainedTokenizerFast.from_pretrained" in (tmp_path / "out" / "README.md").read_text()
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out")("e\u0301")["input_ids"] == [101, 204, 129]
    assert load_model(tmp_path / "out", device=CPU).tokenizer("e\u0301")["input_ids"] == [101, 204, 129]


def test_what_the_folder_says(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert config["rope_scaling"] is None
    assert json.loads((exported / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    generation = GenerationConfig.from_pretrained(exported)
    assert generation.eos_token_id == 256
    assert generation.suppress_tokens == list(range(257, 320))  # ids that stand for nothing are never given
    modes = {path.stat().st_mode for path in exported.iterdir()}
    assert len(modes) == 1
    assert "auto_map" not in config


def test_the_card_has_the_run_s_figures(done_run: Path, exported: Path) -> None:
    summary = json.loads((done_run / "summary.json").read_text())
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    for key in ("parameters", "positions", "raw_tokens", "unique_raw_tokens"):
        assert f"{summary[key]:,}" in card
    assert f"{summary['flops']:.2e}" in card
    assert f"{summary['final_validation_loss']:.4f} nats per token, on {summary['validation_tokens']:,} tokens" in card
    assert f"{summary['bits_per_byte']:.4f} bits per byte" in card
    assert "bags of 2 (full, uniform weights) in steps 0 to 5; next tokens in steps 6 to 11" in card
    assert "fewer than 250,000 tokens are noisy" in card
    assert "Not " not in card
    assert str(done_run) not in card
    assert str(done_run.parent) not in json.dumps([path.read_text() for path in exported.glob("*.json")])


def test_the_card_s_program_runs(exported: Path) -> None:
    program = (exported / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    exec(program.replace("path/to/this/folder", str(exported)).replace("max_new_tokens=40", "max_new_tokens=2"), {})


def test_an_unfinished_run_is_exported_as_one(unfinished_run: Path, tmp_path: Path) -> None:
    result = export(unfinished_run, tmp_path / "out")
    assert (result["step"], result["total_steps"], result["phase"]) == (9, 12, "recovery")
    assert result["figures"]["positions"] == 9 * 64
    assert result["figures"]["raw_tokens"] == 6 * 128 + 3 * 64
    assert result["figures"]["unique_raw_tokens"] is None
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Training not finished.** This is step 9 of 12" in card
    assert "on 256 tokens, at step 8" in card


def test_bfloat16_halves_the_folder(done_run: Path, tmp_path: Path) -> None:
    export(done_run, tmp_path / "out", dtype="bfloat16")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    expected = load_model(done_run, device=CPU).model.state_dict()
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, expected[name].to(torch.bfloat16)), name


def test_an_out_that_is_taken(done_run: Path, exported: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="is not empty and has no earlier export"):
        export(done_run, out, overwrite=True)
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    export(done_run, out)
    with pytest.raises(UserError, match=r"has an earlier export; .*\(--overwrite\)"):
        export(done_run, out)
    (tmp_path / "thesis.tex").rename(out / "thesis.tex")
    with pytest.raises(UserError, match=r"has 'thesis.tex' beside the earlier export"):
        export(done_run, out, overwrite=True)
    assert (out / "thesis.tex").exists()
    (out / "thesis.tex").unlink()
    (out / "model.safetensors").write_text("old")
    export(done_run, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == (exported / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="is a file"):
        export(done_run, out / "README.md")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failure_leaves_nothing_behind(done_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="--max-shard-size"):
        export(done_run, tmp_path / "out", max_shard_size="large")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("token_superposition.evaluation.export.replace_folder", full)
    with pytest.raises(UserError, match=r"out: cannot be written \(the disk is full\)"):
        export(done_run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_words_of_older_readers() -> None:
    scaling = {"rope_type": "llama3", "factor": 4.0, "original_max_position_embeddings": 16}
    config = readable_by_older({"model_type": "llama", "rope_parameters": {"rope_theta": 5e5, **scaling}})
    assert (config["rope_theta"], config["rope_scaling"]) == (5e5, scaling)
    layers = {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    config = readable_by_older({"model_type": "gemma3_text", "rope_parameters": layers})
    assert (config["rope_theta"], config["rope_local_base_freq"], config["rope_scaling"]) == (1e6, 1e4, None)
    partial = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}
    config = readable_by_older({"model_type": "gpt_neox", "rope_parameters": partial})
    assert (config["rotary_emb_base"], config["rotary_pct"], config["partial_rotary_factor"]) == (1e4, 0.5, 0.5)
    assert readable_by_older({"model_type": "qwen3_moe", "num_local_experts": 4})["num_experts"] == 4
    assert readable_by_older({"model_type": "gpt2", "dtype": "float32"}) == {
        "model_type": "gpt2",
        "dtype": "float32",
        "torch_dtype": "float32",
    }


# transformers 4, and what it needs in another version than transformers 5; torch and the rest are those here.
OLDER = ["transformers==4.57.6", "tokenizers==0.22.2", "huggingface_hub==0.36.2"]
READ_BY_OLDER = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model.eval()(torch.load(folder + "/ids")).logits
torch.save(logits, folder + "/logits")
generated = model.generate(**tokenizer("a", return_tensors="pt"), max_new_tokens=3)
print(json.dumps({
    "version": transformers.__version__,
    "missing": [str(value) for value in found.values() if value],
    "ids": [tokenizer(text)["input_ids"] for text in texts],
    "texts": [tokenizer.decode(tokenizer(text)["input_ids"]) for text in texts],
    "generated": generated.shape[1],
}))
"""


def test_transformers_4_reads_it(small_run: dict[str, Any], tmp_path: Path) -> None:
    """Trap 21 of the design: the base of the rotary embedding, the tokenizer's class."""
    older, out = tmp_path / "older", tmp_path / "out"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--retries", "1", "--timeout", "15"]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    fetched = subprocess.run(
        [*install, "--target", str(older), *OLDER], env=environment, capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        pytest.skip(f"{OLDER[0]} cannot be installed here: {fetched.stderr.strip().splitlines()[-1:]}")
    run = trained("llama", small_run, tmp_path / "run")
    export(run, out)
    torch.save(IDS_BL, out / "ids")
    texts = ["Plain text.", "  é\u0301 日本 🙂\r\n", "a<|endoftext|>b", "\x00\x7f\u0080"]
    read = subprocess.run(
        [sys.executable, "-c", READ_BY_OLDER, str(out), json.dumps(texts)],
        env={**environment, "PYTHONPATH": str(older), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert read.returncode == 0, read.stderr
    said = json.loads(read.stdout.splitlines()[-1])
    assert said["version"] == OLDER[0].partition("==")[2]
    assert said["missing"] == []
    assert said["ids"] == [ByteTokenizer().encode(text).tolist() for text in texts]
    assert said["texts"] == texts
    assert said["generated"] > 1
    assert torch.equal(torch.load(out / "logits"), load_model(run, device=CPU).model(IDS_BL).logits)
    shutil.rmtree(older)


def test_texts_of_different_lengths_make_a_batch(exported: Path, done_run: Path) -> None:
    """Stock transformers pads them, and continues each as it does alone."""
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported)
    assert tokenizer.pad_token_id == model.generation_config.pad_token_id == tokenizer.eos_token_id
    assert len(tokenizer) <= model.config.vocab_size == load_model(done_run, device=CPU).model.config.vocab_size
    inputs = tokenizer(["a", "bc"], padding=True, return_tensors="pt")
    assert inputs["attention_mask"].sum(dim=1).tolist() == [1, 2]
    together = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    for row, text in enumerate(["a", "bc"]):
        alone = model.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        assert together[row, -6:].tolist()[: alone.shape[1]] == alone[0, len(text) :].tolist()
