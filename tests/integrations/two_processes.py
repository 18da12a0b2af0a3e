"""Started by `accelerate launch` in the test: trains, and the first process writes down its losses."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import tiny_model
from tests.integrations.runs import Streaming, rows
from token_superposition.integrations.transformers import SuperpositionArguments, SuperpositionTrainer


def main(out: str, kind: str) -> None:
    run = SuperpositionTrainer(
        model=tiny_model("llama", tied=True),
        args=TrainingArguments(
            output_dir=out,
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=1e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=Streaming() if kind == "stream" else rows(),
        superposition=SuperpositionArguments(bag_size=2, superposition_ratio=0.5),
    )
    run.train()
    if run.is_world_process_zero():
        lines = [line for line in run.state.log_history if "loss" in line]
        Path(out, "lines.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main(*sys.argv[1:])
