"""The report of a comparison: its dictionary, as `report.json`, and the page made from it, `report.html`.

The dictionary is the contract between what trains and what tells. Its keys:

    schema_version   1, or 2 with budgets; what only 2 has is marked *
    title, created   text; ISO date
    command          optional: the command that made it
    model            architecture, parameters, config; optional: init_from, what all runs went on from: path,
                     weights (their checksum), origin (how it was trained, or null); null for fresh weights
    data             path, tokenizer, train_tokens, train_bytes, validation_tokens_used, text_lost
                     (share of the characters that the tokenizer lost; bits per byte are too low if it is large)
    settings         total_steps, batch_size (rows), sequence_length (latent positions), learning_rate,
                     warmup_steps, decay_steps, weight_decay, device, dtype; optional: optimizer, decay_ratio,
                     final_learning_rate_ratio, num_threads (null where runs had different numbers of them)
    arms             a list, the baseline first; each
        name, mode, slot_weights, bag_size, ratio, learning_rate
        stages       bag_size, steps, mode, slot_weights of each
        switch_step  the first next-token step; 0 for the baseline
        seeds        a list; each has seed, final_validation_loss, bits_per_byte, steps, positions, raw_tokens,
                     unique_raw_tokens, flops, wall_seconds, peak_memory_bytes, and `curve`: a list of
                     step, phase, bag_size, flops, raw_tokens, validation_loss; optional: machine, shared_steps (trained
                     once for several runs), num_threads, skipped_steps
                     (whose loss or gradient was no number), first_total_steps (what it was started with; others than
                     `steps` where it was made longer or shorter on its way)
        budgets*     optional: all that the arm was trained at, the shortest first: total_steps, kind (`budget`, or
                     `equal_data` for the baseline at the raw tokens another arm reads), stages, switch_step, ratio,
                     learning_rate, seeds (as above). The arm's own seeds are those of the longest `budget`
    runs_at_once     optional: how many runs were trained at a time
    cost             optional: hours, and money where a price was given; see `study.prices.cost_of`
    equal_flops      at the longest budget, of the best arm (which decides the most: `study.significance`): baseline,
                     arm (names), delta_nats (mean over seeds of arm minus baseline; below zero is better),
                     confidence_interval ([low, high] or null), confidence_level, deltas (one a seed), reason (null,
                     or why there is no interval)
    equal_flops_all  the same of every arm but the baseline, in a list; optional with two arms
    sweep            only where each arm was tuned: keys, values (of each key), num_seeds, arms: a list; each
        name         the arm's
        settings     a list; each has values (by key), seeds (seed, final_validation_loss, diverged),
                     mean_validation_loss (null where a seed diverged), diverged_when_compared (seeds)
        best         the values chosen, which the arm was compared at
        at_edge      of the keys whose best ends their range: `lowest` or `highest`
        budgets*     optional, a list: total_steps of every budget, and its arms as these, which are the longest's
        total_steps* in their place, where all budgets take what was best at this one
    equal_data       null, or of the best arm, as equal_flops, its baseline being the one that read as much text; and
                     total_steps of that baseline, raw_tokens
    equal_data_all*  the same of every arm that has it
    iso_loss         null, or the speed-up of the best arm at the baseline's final loss: an entry of
    iso_loss_all*    every speed-up; see `study.speedup.iso_loss_all`. In seconds where all runs had as many threads
    switch*          spike and crossing of every superposition arm; see `study.loss_spike.switch_facts`
    reasons          why equal_data and iso_loss are null, by key

Losses are next-token, in nats a token. A seed's numbers may be null where they were not recorded, and its
curve empty. `facts` and `budgets` read the dictionary, `numbers` and `numbering` write numbers, `verdict` and
`findings` find the words; `curves`, `scale`, `marks`, `figure`, `budget_figure`, `gap_figure`, `sweep_figure` and
`strip` draw; `tables`, `budget_tables`, `sweep`, `prose` and `page` lay it out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from token_superposition.files import write_json, write_text
from token_superposition.study.report.headline import Verdict, verdict
from token_superposition.study.report.page import render_html
from token_superposition.study.significance import Outcome

__all__ = ["Outcome", "Verdict", "render_html", "verdict", "write_report"]


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write `report.json` and `report.html` into a folder, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", report)
    write_text(folder / "report.html", render_html(report))
