"""Keep a study in the repository: its file, its report, and of each run all but the weights.

    python benchmarks/keep_results.py STUDY.yaml FOLDER results/NAME --data data/python

FOLDER is what `tst compare STUDY.yaml --out FOLDER` wrote. With the same data prepared at `--data`,
`tst compare results/NAME/study.yaml --out results/NAME` goes on from there: what is done is not trained again. Paths of
this machine are replaced by those two.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml

RUN_FILES = ("config.yaml", "run.json", "metrics.jsonl", "summary.json", "diverged.json")


def main() -> None:
    """Copy, replacing paths."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="where the data is to be prepared, from the repository's root")
    options = parser.parse_args()
    data = yaml.safe_load(options.study.read_text())["data"]["path"]
    replaced = {
        str(Path(data).resolve()): options.data,
        data: options.data,
        str(options.folder): str(options.out),
        str(options.study): str(options.out / "study.yaml"),
    }
    runs = [file for name in RUN_FILES for file in options.folder.glob(f"runs/**/{name}")]
    for file in [options.study, options.folder / "report.json", *runs]:
        name = Path("study.yaml") if file == options.study else file.relative_to(options.folder)
        text = file.read_text(encoding="utf-8")
        for old, new in replaced.items():
            text = text.replace(old, new)
        target = options.out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
