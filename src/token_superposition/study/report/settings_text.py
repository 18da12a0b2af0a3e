"""The report's words after the numbers: what was trained, what it shows, how to run it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from token_superposition.formatting import (
    count,
    count_in_words,
    plain,
    plural,
)
from token_superposition.schedule import describe_slot_weights
from token_superposition.study.arms import Arm, budgets, quoted, why_seconds_differ
from token_superposition.study.report.budget_facts import compared_steps, equal_data_steps, has_budgets, reference_steps
from token_superposition.study.report.facts import Report, num_seeds, ratio, recovery_steps
from token_superposition.study.report.findings import equal_data_sentences, speedup_sentences
from token_superposition.study.report.headline import BYTE_CAVEAT
from token_superposition.study.report.next_step import ENOUGH_SEEDS
from token_superposition.study.report.numbering import table_number
from token_superposition.study.report.tables import arm_heading
from token_superposition.study.report.tuning_section import runs_words, tuned_caveats


def what_was_trained(report: Report) -> str:
    """Model, data, settings and arms, in sentences."""
    arms = "".join(
        f"<li>{arm_heading(index, arm['name'])}: {escape(_schedule(arm) + _changed(arm))}</li>"
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
    if has_budgets(report):
        same = "; at other budgets they take the same shares" if _same_shares(report) else ""
        words += f"<p>The stages of {count(reference_steps(report))} steps{same}:</p>"
    return f'{words}<ul class="arms">{arms}</ul>{shape}'


def _model(report: Report) -> str:
    model = report["model"]
    start, shared = "trained from scratch", "initialisation"
    if model.get("init_from"):
        start = f"gone on with from the trained model <code>{escape(plain(model['init_from']['path']))}</code>"
        shared = "its weights"
    runs = sum(len(budget["seeds"]) for arm in report["arms"] for budget in budgets(arm))
    others = "optimizer"
    if any(arm.get("changed") for arm in report["arms"]):
        others = "every setting but those that are listed below as an arm’s own"
    once = " Runs that begin alike share their beginning, which was trained once." if has_budgets(report) else ""
    return (
        f"A {escape(plain(model['architecture']))} model of {count_in_words(model['parameters'])} parameters, {start} "
        f"{plural(runs, 'time')} ({_runs(report)}){runs_words(report)}.{once} Arms share {shared}, "
        f"validation set, batch and {others}; they cannot share the order of the data, which they read at different "
        "rates."
    )


def _same_shares(report: Report) -> bool:
    """Whether every budget of an arm spends the same share of its steps on superposition, to a step or so."""
    shares = [[budget["ratio"] for budget in budgets(arm)] for arm in report["arms"]]
    return all(max(each) - min(each) < 0.01 for each in shares)


def _changed(arm: Arm) -> str:
    """What an arm changes besides its superposition; nothing, mostly."""
    keys = [f"{key} {plain(value)}" for key, value in (arm.get("changed") or {}).items()]
    return f" Of its own it has {', '.join(keys)}." if keys else ""


def _runs(report: Report) -> str:
    arms, seeds, lengths = len(report["arms"]), num_seeds(report), len(compared_steps(report))
    counted = f"{plural(arms, 'arm')}{f' × {lengths} budgets' if lengths > 1 else ''} × {plural(seeds, 'seed')}"
    more = sum(len(b["seeds"]) for b in budgets(report["arms"][0]) if b["kind"] != "budget")
    return counted + (f", and the baseline {plural(more, 'time')} for equal data" if more else "")


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
    rates_table = table_number(report, "budgets") if has_budgets(report) else arms_table
    rates = {budget.get("learning_rate") or s["learning_rate"] for arm in report["arms"] for budget in budgets(arm)}

    def unless_swept(key: str, text: str) -> str:
        return f"as in Table {arms_table}" if f"train.{key}" in swept else text

    rate = plain(s["learning_rate"]) if len(rates) == 1 else f"as in Table {rates_table}"
    warmup = unless_swept("warmup_ratio", f"over {plural(s['warmup_steps'], 'step')}")
    decay = unless_swept("decay_ratio", _decay(report))
    optimizer = {"adamw": "AdamW", "muon": "Muon"}.get(s.get("optimizer", "adamw"), s.get("optimizer"))
    words = (
        f"Each run takes {_lengths(report)} optimizer steps of {plural(s['batch_size'], 'row')} × "
        f"{plural(s['sequence_length'], 'position')} ({count(positions)} positions a step) with {optimizer}: "
        f"peak learning rate {rate}, warm-up {warmup}, linear decay {decay}, weight decay "
        f"{unless_swept('weight_decay', plain(s['weight_decay']))}. It computes in "
        f"{plain(s.get('dtype'))} on {plain(s.get('device'))}"
    )
    differ, threads = why_seconds_differ(report["arms"]), s.get("num_threads")
    if differ:
        return escape(f"{words}. Seconds are not compared: {differ}.")
    return escape(words + (f" with {plural(threads, 'thread')}." if isinstance(threads, int) else "."))


def _lengths(report: Report) -> str:
    """`4,000`, or `1,000, 2,000 or 4,000 (for equal data 5,200)`."""
    *others, last = map(count, compared_steps(report))
    words = f"{', '.join(others)} or {last}" if others else last
    longer = equal_data_steps(report)
    return words + (f" (for equal data {', '.join(map(count, longer))})" if longer else "")


def _decay(report: Report) -> str:
    s = report["settings"]
    if not has_budgets(report):
        return f"over the last {count(s['decay_steps'])}"
    return f"over the last {100 * s['decay_steps'] / s['total_steps']:.3g}% of the steps"


def _schedule(arm: Arm) -> str:
    if not arm["switch_step"]:
        return "next-token training throughout."
    parts = []
    for stage in arm["stages"]:
        steps = plural(stage["steps"], "step")
        if stage["bag_size"] == 1:
            parts.append(f"next-token training for {steps}")
        else:
            mode, weights = plain(stage["mode"]), describe_slot_weights(stage["slot_weights"])
            how = f"{mode} mode, {weights} slot weights".replace("_", "-")
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
    for key, title, found in (
        ("equal_data", "Equal data", equal_data_sentences(report)),
        ("iso_loss", "Equal loss (speed-up)", speedup_sentences(report) if report.get("iso_loss") else []),
    ):
        if found:
            lines.append(f"<b>{title}: measured.</b> {escape(' '.join(found))}")
        else:
            reason = reasons.get(key) or "no reason was recorded"
            lines.append(f"<b>{title}: not measured,</b> because {escape(reason)}.")
    lines[0] += " In the paper superposition loses at equal data: it buys compute with data."
    if report.get("iso_loss"):
        lines[1] += f" {escape(report['iso_loss']['basis'][:1].upper() + report['iso_loss']['basis'][1:])}."
    return lines


def _caveats(report: Report) -> list[str]:
    seeds = num_seeds(report)
    lines = [
        *_skipped(report),
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


def _skipped(report: Report) -> list[str]:
    """Which runs left steps out: they have learned from fewer batches than the others."""
    several = has_budgets(report)
    found = [
        f"{escape(quoted(arm['name']))}"
        + (f" at {count(budget['total_steps'])} steps" if several else "")
        + f", seed {run['seed']}: {count(run['skipped_steps'])}"
        for arm in report["arms"]
        for budget in budgets(arm)
        for run in budget["seeds"]
        if run.get("skipped_steps")
    ]
    if not found:
        return []
    return [
        "<b>Skipped steps.</b> Where a loss or a gradient was no finite number, the step was left out, weights and "
        f"optimizer as they were: {'; '.join(found)}. A method that does so more often than the other is less stable."
    ]


def how_to_reproduce(report: Report) -> str:
    """The command, and what lies beside the page."""
    seeds = num_seeds(report)
    command = report.get("command") or f"tst compare CONFIG.yaml --seeds {seeds} --out FOLDER"
    arm = f"runs/ARM/{'SETTING/' if report.get('sweep') else ''}"
    place = f"<code>{arm}seed-N/config.yaml</code>"
    if any(len(budgets(each)) > 1 for each in report["arms"]):
        place = f"<code>{arm}STEPS-steps/seed-N/config.yaml</code> ({place} where it was trained as the only budget)"
    runs = [run for each in report["arms"] for budget in budgets(each) for run in budget["seeds"]]
    but = ""
    if any(run.get("first_total_steps") not in (None, run["steps"]) for run in runs):
        but = " Not so a run that was made longer or shorter on its way: it kept a switch and a warm-up of before."
    return (
        f"<pre>{escape(command)}</pre>"
        "<p>Beside this page lie <code>report.json</code>, which has every number shown here, and for every run "
        f"{place}, its whole configuration. <code>tst train</code> repeats the run from that file alone, into another "
        f"folder (<code>--out</code>); on one CPU the result is the same bit for bit.{but}</p>"
    )
