"""Under what conditions the result holds: what was trained, what the report does not show, how to run it again."""

from __future__ import annotations

from token_superposition.formatting import count, count_in_words, plain, plural
from token_superposition.schedule import describe_slot_weights
from token_superposition.study.report.facts import why_seconds_differ
from token_superposition.study.report.model import Report
from token_superposition.study.report.parts import Arm, SeedRun, quoted
from token_superposition.study.report.tuning import runs_words, untuned_sentence
from token_superposition.study.report.verdict import Row


def what_was_trained(report: Report) -> list[Row]:
    """Model, data, settings and runs."""
    return [
        Row("Model", _model(report)),
        Row("Text", _data(report)),
        Row("Runs", _runs(report)),
        Row("Settings", _settings(report)),
        Row("Shared by the arms", _shared(report)),
    ]


def _model(report: Report) -> str:
    model = report.model
    start = "trained from scratch"
    if model.init_from:
        start = f"continued from the trained model {plain(model.init_from.get('path'))}"
    return f"{plain(model.architecture)}, {count_in_words(model.parameters)} parameters, {start}."


def _data(report: Report) -> str:
    data = report.data
    kind = "bytes" if data.tokenizer == "bytes" else f"tokens of {plain(data.tokenizer)}"
    size = f"{count_in_words(data.train_bytes)} bytes of text"
    if data.tokenizer != "bytes":
        size = f"{count_in_words(data.train_tokens)} tokens, {size}"
    return (
        f"{plain(data.path)}: {size}, read as {kind}. Final losses use {count(data.validation_tokens_used)} validation "
        "tokens."
    )


def _runs(report: Report) -> str:
    lengths = len(report.compared_steps)
    counted = [plural(len(report.arms), "arm"), *([f"{lengths} budgets"] if lengths > 1 else [])]
    words = " × ".join([*counted, plural(report.num_seeds, "seed")])
    more = sum(len(b.seeds) for b in report.baseline.all_budgets if b.kind != "budget")
    words += f", and the baseline {plural(more, 'time')} for equal data" if more else ""
    text = f"Trained {plural(len(_all_runs(report)), 'time')} ({words}){runs_words(report)}."
    once = " Steps that several runs share were trained once." if report.has_budgets else ""
    return text + once + _skipped(report)


def _all_runs(report: Report) -> list[SeedRun]:
    return [run for arm in report.arms for budget in arm.all_budgets for run in budget.seeds]


def _skipped(report: Report) -> str:
    """Which runs skipped steps: they have learned from fewer batches than the others."""
    found = [
        quoted(arm.name)
        + (f" at {count(budget.total_steps)} steps" if report.has_budgets else "")
        + f", seed {run.seed}: {count(run.skipped_steps)}"
        for arm in report.arms
        for budget in arm.all_budgets
        for run in budget.seeds
        if run.skipped_steps
    ]
    return f" Steps skipped because a loss or a gradient was not finite: {'; '.join(found)}." if found else ""


def _settings(report: Report) -> str:
    s = report.settings
    swept = report.sweep.keys if report.sweep else ()

    def unless_swept(key: str, text: str) -> str:
        return "as swept" if f"train.{key}" in swept else text

    rates = {b.learning_rate or s.learning_rate for arm in report.arms for b in arm.all_budgets}
    rate = plain(s.learning_rate) if len(rates) == 1 else "as in the tables"
    *others, last = map(count, report.compared_steps)
    steps = f"{', '.join(others)} or {last}" if others else last
    longer = report.equal_data_steps
    steps += f" (for equal data {', '.join(map(count, longer))})" if longer else ""
    decay = f"over the last {count(s.decay_steps)}"
    if report.has_budgets:
        decay = f"over the last {100 * s.decay_steps / s.total_steps:.3g}% of the steps"
    optimizer = {"adamw": "AdamW", "muon": "Muon"}.get(s.optimizer, s.optimizer)
    warmup = unless_swept("warmup_ratio", f"over {plural(s.warmup_steps, 'step')}")
    text = (
        f"{steps} optimizer steps of {plural(s.batch_size, 'row')} × {plural(s.sequence_length, 'position')} "
        f"({count(s.batch_size * s.sequence_length)} positions per step) with {optimizer}: peak learning rate {rate}, "
        f"warm-up {warmup}, linear decay {unless_swept('decay_ratio', decay)}, weight decay "
        f"{unless_swept('weight_decay', plain(s.weight_decay))}; {plain(s.dtype)} on {plain(s.device)}"
    )
    differ = why_seconds_differ(report.arms)
    if differ:
        return f"{text}. Seconds are not compared: {differ}."
    return text + (f" with {plural(s.num_threads, 'thread')}." if s.num_threads is not None else ".")


def _shared(report: Report) -> str:
    start = "the weights" if report.model.init_from else "initialisation"
    others = "every setting but those listed as an arm’s own" if any(a.changed for a in report.arms) else "optimizer"
    return f"{start[:1].upper()}{start[1:]}, validation set, batch and {others}; not the order of the data."


def arm_words(arm: Arm) -> str:
    """An arm's stages and what it changes besides superposition."""
    parts = []
    for stage in arm.stages:
        steps = plural(stage.steps, "step")
        if stage.bag_size == 1:
            parts.append(f"next-token training for {steps}")
        else:
            how = f"{plain(stage.mode)} mode, {describe_slot_weights(stage.slot_weights)} slot weights".replace(
                "_", "-"
            )
            parts.append(f"bags of {stage.bag_size} tokens for {steps} ({how})")
    if not arm.switch_step:
        parts = ["next-token training throughout"]
    elif arm.recovery_steps == 0:
        parts.append("no next-token training at the end, so its loss is not that of a finished model")
    keys = [f"{key} {plain(value)}" for key, value in arm.changed.items()]
    return ", then ".join(parts) + "." + (f" Its own settings: {', '.join(keys)}." if keys else "")


def limits(report: Report) -> list[Row]:
    """What the numbers are evidence for, and what they are not."""
    off = [a.name for a in report.arms if abs((report.ratio(a, "flops") or 1) - 1) >= 0.01]
    same = "Every arm takes the same steps, positions and FLOPs. FLOPs are counted, not timed."
    if off:
        same = f"Not at equal compute: {', '.join(map(quoted, off))} did not take the baseline’s FLOPs."
    rows = [Row("Compute", same), Row("Learning rate", untuned_sentence(report))]
    if report.iso_loss and report.iso_loss.basis:
        basis = report.iso_loss.basis
        rows.append(Row("Speed-up", f"{basis[:1].upper()}{basis[1:]}."))
    if report.model.init_from:
        rows.append(
            Row(
                "A trained model",
                "Every run began with the same trained weights, so seeds differ in the order of the data only. "
                "Superposition was studied in training from scratch; there is no evidence that it helps a model that "
                "is trained already.",
            )
        )
    return [
        *rows,
        Row(
            "One scale",
            "The result holds for this model, this text and this number of steps. The best bag size and ratio depend "
            "on them, and in the paper the gain shrinks in longer training.",
        ),
        Row(
            "One kind of loss",
            "All curves and numbers are next-token validation losses, in the superposition phase too. The training "
            "loss of that phase cannot be compared with them.",
        ),
    ]


def files(report: Report) -> str:
    """Where the configuration of each run is."""
    arm = f"runs/ARM/{'SETTING/' if report.sweep else ''}"
    if report.has_budgets:
        place = f"{arm}STEPS-steps/seed-N/config.yaml ({arm}seed-N/config.yaml for a run first trained alone)"
    else:
        place = f"{arm}seed-N/config.yaml"
    text = f"Each run is repeated by its {place} with tst train, and report.json has all numbers."
    changed = any(run.first_total_steps not in (None, run.steps) for run in _all_runs(report))
    if changed:
        text += " This does not hold for a run that was made longer or shorter after its start."
    return text
