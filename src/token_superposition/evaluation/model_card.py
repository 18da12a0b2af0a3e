"""The model card of an export: the results of the run and their limits."""

from __future__ import annotations

from typing import Any

from token_superposition.data.manifest import loss_warning
from token_superposition.evaluation.evaluate import ENOUGH_TOKENS
from token_superposition.schedule import Schedule, describe_slot_weights
from token_superposition.training.provenance import Origin

_PAPER = "[arXiv 2605.06546](https://arxiv.org/abs/2605.06546)"


def model_card(
    name: str,
    origin: Origin,
    figures: dict[str, Any],
    config: dict[str, Any],
    *,
    tokenizer_class: str = "AutoTokenizer",
) -> str:
    """The README.md of an exported model.

    Args:
        name: name of the model.
        origin: how the model was trained.
        figures: values of the run, from the export.
        config: the exported config.json.
        tokenizer_class: the class of transformers that loads the tokenizer correctly.
    """
    sections = [
        f"# {name}",
        *_notices(origin),
        f"A base language model ({figures['architecture']}, {figures['parameters']:,} parameters), "
        f"{_how(origin, figures)} It is an ordinary model of its family; loading it needs no additional code.",
        "\n".join(
            ["| | |", "|---|---|", *(f"| {label} | {value} |" for label, value in _rows(origin, figures, config))]
        ),
        _usage(tokenizer_class),
        "\n".join(["## What to know", "", *(f"- {remark}" for remark in _remarks(origin, figures))]),
    ]
    return _HEADER + "\n\n".join(sections) + "\n"


_HEADER = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- token-superposition
---

"""


def _notices(origin: Origin) -> list[str]:
    if origin.phase == "superposition":
        return [
            f"> **Not a finished model.** This is {origin.words}, in the superposition phase: it was trained to "
            "predict bags of tokens, and its next-token predictions are not meaningful."
        ]
    if origin.step < origin.total_steps:
        return [f"> **Training not finished.** This is {origin.words}."]
    return []


def _how(origin: Origin, figures: dict[str, Any]) -> str:
    begun = "pre-trained from scratch"
    if origin.init_from is not None:
        begun = f"trained from the weights of {_before(origin.init_from)},"
    if figures["bag_size"] == 1:
        return f"{begun} by ordinary next-token training."
    return (
        f"{begun} with Token-Superposition Training ({_PAPER}): up to step {figures['switch_step']:,} it was trained "
        f"on bags of up to {figures['bag_size']} tokens, then on next tokens."
    )


def _before(init_from: dict[str, Any]) -> str:
    """The model that a run started from, and the earlier models as far as they are known."""
    words, origin = f"`{init_from['path']}`", init_from["origin"]
    if origin is None:
        return words
    past = Origin(**origin)
    bag_size = Schedule.from_dicts(past.stages).bag_size
    words += f" ({past.words} {'without superposition' if bag_size == 1 else f'with bags of up to {bag_size} tokens'})"
    return words if past.init_from is None else f"{words}, itself trained from {_before(past.init_from)}"


def _rows(origin: Origin, figures: dict[str, Any], config: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("architecture", f"{figures['architecture']}, weights in {config.get('dtype', 'float32')}"),
        ("parameters", f"{figures['parameters']:,}"),
        ("tokenizer", f"{origin.tokenizer}, vocabulary {config['vocab_size']}"),
        ("optimizer steps", f"{origin.step:,} of {origin.total_steps:,}, seed {figures['seed']}"),
        ("stages", "; ".join(_stages(origin.stages))),
        ("largest bag size", f"{figures['bag_size']}"),
        ("switch to next tokens", f"step {figures['switch_step']:,}"),
        ("positions per row", f"{origin.sequence_length:,}"),
        ("positions computed", f"{figures['positions']:,}"),
        ("raw tokens read", f"{figures['raw_tokens']:,}"),
    ]
    if figures["unique_raw_tokens"] is not None:
        rows.append(("unique raw tokens", f"{figures['unique_raw_tokens']:,}"))
    rows.append(("training FLOPs", f"{figures['flops']:.2e}"))
    if figures["validation_loss"] is not None:
        when = "" if figures["validation_step"] == origin.step else f", at step {figures['validation_step']:,}"
        tokens = f"on {figures['validation_tokens']:,} tokens{when}"
        rows.append(("validation loss", f"{figures['validation_loss']:.4f} nats per token, {tokens}"))
        loss = loss_warning(figures.get("text_lost"))
        rows.append(("", f"{figures['bits_per_byte']:.4f} bits per byte of text{f' ({loss})' if loss else ''}"))
    if figures["data_fingerprint"] is not None:
        rows.append(("training data", f"fingerprint `{figures['data_fingerprint'][:16]}`"))
    return rows


def _stages(stages: list[dict[str, Any]]) -> list[str]:
    words, start = [], 0
    for stage in stages:
        end = start + stage["steps"]
        what = "next tokens"
        if stage["bag_size"] > 1:
            what = (
                f"bags of {stage['bag_size']} ({stage['mode']}, {describe_slot_weights(stage['slot_weights'])} weights)"
            )
        words.append(f"{what} in steps {start:,} to {end - 1:,}")
        start = end
    return words


def _usage(tokenizer_class: str) -> str:
    return f"""```python
from transformers import AutoModelForCausalLM, {tokenizer_class}

tokenizer = {tokenizer_class}.from_pretrained("path/to/this/folder")
model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")
inputs = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=40)[0]))
```"""


def _remarks(origin: Origin, figures: dict[str, Any]) -> list[str]:
    remarks = [
        "It is a base model. It continues text like its training text. It does not follow instructions. Nothing was "
        "done to make its text safe or true, and it can repeat passages of its training text.",
        "The validation text was held out from the training data; the loss on other text can differ.",
    ]
    tokens = figures["validation_tokens"]
    if tokens is not None and tokens < ENOUGH_TOKENS:
        remarks.append(
            f"The validation used {tokens:,} tokens; results on fewer than {ENOUGH_TOKENS:,} tokens are noisy."
        )
    if origin.init_from is not None:
        remarks.append(
            f"Steps, tokens, FLOPs and results are those of this run alone; they exclude the earlier training of "
            f"`{origin.init_from['path']}`."
        )
        if figures["bag_size"] > 1:
            remarks.append("There is no evidence that superposition helps a model that is already trained.")
    if figures["bag_size"] > 1:
        remarks.append(
            "One model does not show whether superposition helped: compare it with a baseline of the same FLOPs. "
            f"The run read {figures['raw_tokens'] / figures['positions']:.2f} raw tokens per computed position."
        )
    remarks.append(f"It was trained on rows of {origin.sequence_length:,} positions; longer texts were not tested.")
    if origin.tokenizer == "bytes":
        remarks.append(
            "Its tokens are bytes of UTF-8. Compare it with subword models by bits per byte, not by loss per token."
        )
    return remarks
