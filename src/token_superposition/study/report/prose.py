"""The report's words after the numbers: what was trained, what it shows, how to run it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from token_superposition.study.arms import Arm
from token_superposition.study.report.facts import Report, num_seeds, ratio, recovery_steps, unit
from token_superposition.study.report.numbering import table_number
from token_superposition.study.report.numbers import (
    count,
    count_in_words,
    decimal,
    interval,
    plain,
    plural,
    signed,
)
from token_superposition.study.report.sweep import runs_words, tuned_caveats
from token_superposition.study.report.tables import arm_heading
from token_superposition.study.report.verdict import BYTE_CAVEAT, ENOUGH_SEEDS


def what_was_trained(report: Report) -> str:
    """Model, data, settings and arms, in sentences."""
    arms = "".join(
        f"<li>{arm_heading(index, arm['name'])}: {escape(_schedule(arm))}</li>"
        for index, arm in enumerate(report["arms"])
    )
    config = report["model"].get("config") or {}
    shape = (
        "<details><summary>Model configuration</summary>"
        f"<pre>{escape(json.dumps(config, indent=2, ensure_ascii=False, default=str))}</pre></details>"
        if config
        else ""
    )
    words = f"<p>{_model(report)} {_data(report)}</p><p>{_settings(report)}</p>"
    return f'{words}<ul class="arms">{arms}</ul>{shape}'


def _model(report: Report) -> str:
    model, seeds = report["model"], num_seeds(report)
    arms = len(report["arms"])
    runs = f"{plural(arms, 'arm')} × {plural(seeds, 'seed')}"
    start, shared = "trained from scratch", "initialisation"
    if model.get("init_from"):
        start = f"gone on with from the trained model <code>{escape(plain(model['init_from']['path']))}</code>"
        shared = "its weights"
    return (
        f"A {escape(plain(model['architecture']))} model of {count_in_words(model['parameters'])} parameters, {start} "
        f"{plural(arms * seeds, 'time')} ({runs}){runs_words(report)}. Arms share {shared}, "
        "validation set, batch and optimizer; they cannot share the order of the data, which they read at different "
        "rates."
    )


def _data(report: Report) -> str:
    data = report["data"]
    kind = "bytes" if data["tokenizer"] == "bytes" else f"tokens of {escape(plain(data['tokenizer']))}"
    size = f"{count_in_words(data['train_bytes'])} bytes of text"
    if data["tokenizer"] != "bytes":
        size = f"{count_in_words(data['train_tokens'])} tokens, {size}"
    return (
        f"The text is <code>{escape(plain(data['path']))}</code>: {size}, read as {kind}. Final losses are taken on "
        f"{count(data['validation_tokens_used'])} validation tokens."
    )


def _settings(report: Report) -> str:
    s: Mapping[str, Any] = report["settings"]
    positions = s["batch_size"] * s["sequence_length"]
    swept = (report.get("sweep") or {}).get("keys", [])
    arms_table = table_number(report, "arms")
    rates = {arm.get("learning_rate", s["learning_rate"]) for arm in report["arms"]}

    def unless_swept(key: str, text: str) -> str:
        return f"as in Table {arms_table}" if f"train.{key}" in swept else text

    rate = plain(s["learning_rate"]) if len(rates) == 1 else f"as in Table {arms_table}"
    warmup = unless_swept("warmup_ratio", f"over {plural(s['warmup_steps'], 'step')}")
    decay = unless_swept("decay_ratio", f"over the last {count(s['decay_steps'])}")
    words = (
        f"Each run takes {count(s['total_steps'])} optimizer steps of {plural(s['batch_size'], 'row')} × "
        f"{plural(s['sequence_length'], 'position')} ({count(positions)} positions a step) with AdamW: peak learning "
        f"rate {rate}, warm-up {warmup}, linear decay {decay}, weight decay "
        f"{unless_swept('weight_decay', plain(s['weight_decay']))}. It computes in "
        f"{plain(s.get('dtype'))} on {plain(s.get('device'))}"
    )
    threads = s.get("num_threads")
    return escape(words + (f" with {plural(threads, 'thread')}." if isinstance(threads, int) else "."))


def _schedule(arm: Arm) -> str:
    if not arm["switch_step"]:
        return "next-token training throughout."
    parts = []
    for stage in arm["stages"]:
        steps = plural(stage["steps"], "step")
        if stage["bag_size"] == 1:
            parts.append(f"next-token training for {steps}")
        else:
            how = f"{plain(stage['mode'])} mode, {plain(stage['slot_weights'])} slot weights".replace("_", "-")
            parts.append(f"bags of {stage['bag_size']} tokens for {steps} ({how})")
    if recovery_steps(arm) == 0:
        parts.append("no next-token training at the end, so its loss is not that of a finished model")
    return ", then ".join(parts) + "."


def what_it_shows(report: Report) -> str:
    """What the numbers are evidence for, and what they are not."""
    items = [_equal_compute(report), *_others(report), *_caveats(report)]
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def _equal_compute(report: Report) -> str:
    off = [a["name"] for a in report["arms"] if abs((ratio(report, a, "flops") or 1) - 1) >= 0.01]
    if off:
        names = ", ".join(f"“{escape(name)}”" for name in off)
        return f"<b>Not at equal compute:</b> {names} did not take the baseline’s FLOPs."
    return (
        "<b>Equal compute: measured.</b> Every arm takes the same steps, positions and FLOPs. FLOPs are counted, not "
        "timed: a bag costs what a token costs."
    )


def _others(report: Report) -> list[str]:
    reasons = report.get("reasons") or {}
    lines = []
    for key, title in (("equal_data", "Equal data"), ("iso_loss", "Equal loss (speed-up)")):
        result = report.get(key)
        if result is None:
            reason = reasons.get(key) or "no reason was recorded"
            lines.append(f"<b>{title}: not measured,</b> because {escape(reason)}.")
        else:
            lines.append(f"<b>{title}:</b> {escape(_result(result, unit(report)))}.")
    lines[0] += " In the paper superposition loses at equal data: it buys compute with data."
    return lines


def _result(result: Mapping[str, Any], loss_unit: str) -> str:
    """A measured comparison of a later version: its number, interval and basis."""
    words = []
    if "delta_nats" in result:
        words.append(f"{signed(result['delta_nats'])} {loss_unit}")
    if "speedup" in result:
        words.append(f"{decimal(result['speedup'], 2)} times less compute")
    if result.get("confidence_interval"):
        words.append(f"interval {interval(result['confidence_interval'])}")
    if result.get("basis"):
        words.append(str(result["basis"]))
    return ", ".join(words) or "see report.json"


def _caveats(report: Report) -> list[str]:
    seeds = num_seeds(report)
    lines = [
        *tuned_caveats(report),
        "<b>One scale.</b> It holds for this model, this text and this number of steps. The best bag size and share "
        "move with them, and in the paper the gain shrinks as training gets longer.",
        "<b>One kind of loss.</b> All curves and numbers here are next-token validation loss, in the superposition "
        "phase too. The training loss of that phase is another quantity and is not comparable with it.",
    ]
    if report["model"].get("init_from"):
        lines.insert(
            0,
            "<b>A trained model.</b> Every run began with the same weights, so seeds differ in the order of the data "
            "only. What is known of superposition is about training from scratch; that it helps a model that is "
            "trained already, there is no evidence.",
        )
    if seeds == 1:
        lines.append("<b>One seed.</b> There is no interval, so nothing here separates the method from luck.")
    else:
        few = "" if seeds >= ENOUGH_SEEDS else f" Five seeds are what a headline needs; this has {seeds}."
        lines.append(f"<b>Intervals</b> are paired t over {plural(seeds, 'seed')}.{few}")
    if report["data"]["tokenizer"] == "bytes":
        lines.append(f"<b>Bytes.</b> {escape(BYTE_CAVEAT)}")
    return lines


def how_to_reproduce(report: Report) -> str:
    """The command, and what lies beside the page."""
    seeds = num_seeds(report)
    command = report.get("command") or f"tst compare CONFIG.yaml --seeds {seeds} --out FOLDER"
    return (
        f"<pre>{escape(command)}</pre>"
        "<p>Beside this page lie <code>report.json</code>, which has every number shown here, and for every run "
        f"<code>runs/ARM/{'SETTING/' if report.get('sweep') else ''}seed-N.yaml</code>, its whole configuration, with "
        "which <code>tst train</code> repeats it "
        "alone. On one CPU, with the same number of threads, the result is the same bit for bit.</p>"
    )
