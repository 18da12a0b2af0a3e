"""Hugging Face folders of every family on the page: read, built anew and filled, the model is the folder's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.models.families import FAMILIES, Family, make
from token_superposition.errors import UserError
from token_superposition.models.pretrained import load_weights, quiet_transformers, read_config
from token_superposition.models.size_limits import bytes_kept
from token_superposition.models.spec import ModelSpec


def written(family: Family, folder: Path) -> Path:
    """A family's model in bfloat16, as most are handed on."""
    with quiet_transformers():
        model: Any = make(family).to(torch.bfloat16)
        model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_built_anew_and_filled_it_is_the_folder_s(family: Family, tmp_path: Path) -> None:
    folder = written(family, tmp_path / "folder")
    architecture, keys = read_config(folder)
    assert architecture == family.model_type
    ours: Any = ModelSpec(architecture, keys, vocab_size=320, eos_id=256).build(seed=1)
    load_weights(ours, folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    theirs = stock.state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.state_dict().items())
    ids_BL = torch.arange(10)[None]
    assert torch.equal(ours.eval()(ids_BL).logits, stock(ids_BL).logits)


def test_a_configuration_that_changes_on_the_way_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No family is known to do that; one that did would train as another model without a word."""
    folder = written(FAMILIES["Llama"], tmp_path / "folder")
    resolved = ModelSpec.resolved

    def forgetful(spec: ModelSpec) -> Any:
        return resolved(replace(spec, config={**spec.config, "rms_norm_eps": 1e-3}))

    monkeypatch.setattr(ModelSpec, "resolved", forgetful)
    with pytest.raises(UserError, match=r"its config\.json has rms_norm_eps 1e-06, which becomes 0\.001"):
        read_config(folder)


def test_weights_beside_weights_count_twice() -> None:
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    assert (bytes_kept(cuda), bytes_kept(cuda, loading=True)) == (4, 8)
    assert bytes_kept(cpu) == bytes_kept(cpu, loading=True) == 16
