"""The documentation's commands and programs do what it says: each is run, the long ones with few steps."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, TrainingArguments

from tests.in_process import little_python, train_here
from token_superposition.cli import main

pytestmark = pytest.mark.docs

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
USE_A_RUN = ("exporting.md", "evaluating.md", "generating.md")  # and take runs/small for granted
GO_ON = (*USE_A_RUN, "comparing.md")  # whose programs use what their commands made
SMALL = ["--train.batch_size", "2", "--logging.validation_tokens", "2000"]
SMALL += ["--logging.interim_validation_tokens", "1000", "--quiet"]
SHORT = ["--train.total_steps", "12", *SMALL]
SHARE = 25  # of its steps, where the lengths of runs have to fit each other


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page: Path) -> list[str]:
    return [line for block in blocks(page, "bash") for line in block.splitlines() if line.startswith("tst ")]


def shorten(words: list[str]) -> list[str]:
    """The same command on few steps and one seed."""
    more = {
        "train": SHORT,
        "compare": ["--seeds", "1", *SHORT],
        "eval": ["--max-tokens", "4000", "--quiet"],
        "generate": ["--max-new-tokens", "20"],
        "bench": ["--bag-sizes", "1,2", *([] if "--find-batch" in words else ["--steps", "1"]), "--quiet"],
    }
    if "--guard" in words:
        (config,) = (ROOT / word for word in words if word.endswith(".yaml"))
        steps = yaml.safe_load(config.read_text())["train"]["total_steps"]
        more["train"] = ["--train.total_steps", str(steps // SHARE), *SMALL]
    if "--budgets" in words:
        more["compare"] += ["--budgets", "10,12"]
    return [*words, *more.get(words[1], [])]


def run(words: list[str], workplace: Path) -> None:
    """A `tst` command, in its folder."""
    said = io.StringIO()
    with contextlib.chdir(workplace), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(words[1:])
        except SystemExit as stop:  # --schema, --help
            code = stop.code
    assert code == 0, f"{shlex.join(words)}\n{said.getvalue()}"


def run_programs(page: Path) -> None:
    for program in blocks(page, "python"):
        space = names_of_the_readme() if page.name == "README.md" else {}
        for long, short in (("20_000", "20"), ("1024", "32"), ("batch_size=32", "batch_size=4")):
            program = program.replace(long, short) if space else program
        exec(compile(program, str(page), "exec"), space)


def names_of_the_readme() -> dict[str, object]:
    """What the programs of the README take for granted: a model, its configuration, arguments, rows and a corpus."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    ids = torch.randint(0, 64, (20_000,), generator=torch.Generator().manual_seed(0))
    arguments = TrainingArguments("trained", max_steps=4, report_to=[], use_cpu=True, save_strategy="no")
    rows = [{"input_ids": row, "labels": row} for row in ids.view(-1, 40)]
    return {
        "config": config,
        "ids": ids,
        "model": LlamaForCausalLM(config),
        "rows": rows,
        "training_arguments": arguments,
    }


@pytest.fixture(autouse=True)
def one_process() -> Iterator[None]:
    """What a command sets for its process is put back: the next test shares it."""
    yield
    torch.use_deterministic_algorithms(False)
    torch.set_num_threads(1)


PREPARE = "tst prepare my-text/ --out data/mine --quiet"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the documentation speaks of, and data/mine prepared."""
    folder = furnish(tmp_path_factory.mktemp("prepared"))
    run(shlex.split(PREPARE), folder)
    return folder


@pytest.fixture(scope="session")
def trained(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, with runs/small trained."""
    folder = tmp_path_factory.mktemp("trained")
    shutil.copytree(prepared, folder, dirs_exist_ok=True)
    run(shorten(shlex.split("tst train configs/small.yaml")), folder)
    return folder


def furnish(tmp_path: Path) -> Path:
    """A folder with the files that the documentation speaks of."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `parquet` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet", reason="the extra `parquet` is not installed")
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    text = "".join(f"It was line {number}, and the {number % 7}th of its kind.\n" for number in range(3000))
    for name in ("my-text", "notes"):
        (tmp_path / name).mkdir()
        for number in range(30):
            (tmp_path / name / f"{number}.txt").write_text(f"{name} {number}\n{text[: 5000 + number]}")
    (tmp_path / "handbook.md").write_text(f"# Handbook\n{text[:400]}")
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"body": f"{number} {text[:900]}"}) + "\n" for number in range(40))
    table = pyarrow.table({"body": [f"row {number}" for number in range(40)]})
    parquet.write_table(table, tmp_path / "more.parquet")
    (tmp_path / "dumps").mkdir()
    rows = "".join(f'{number},"page {number}: {text[:600]}"\n' for number in range(40))
    (tmp_path / "dumps" / "2026.csv").write_text(f"id,text\n{rows}")
    (tmp_path / "my-tasks").mkdir()
    (task,) = blocks(ROOT / "docs" / "evaluating.md", "yaml")
    (tmp_path / "my-tasks" / "capitals.yaml").write_text(task)
    question = {"question": "The capital of France is", "choices": [" Paris", " Rome"], "answer": 0}
    (tmp_path / "my-tasks" / "capitals.jsonl").write_text(f"{json.dumps(question)}\n" * 4)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_commands_run(
    page: Path, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = request.getfixturevalue("trained" if page.name in USE_A_RUN else "prepared")
    workplace = tmp_path / "workplace"
    made_here = ("data",) if page.name in ("README.md", "data.md") else ()  # by the commands of the page
    shutil.copytree(start, workplace, ignore=shutil.ignore_patterns(*made_here))
    train_here(monkeypatch)
    little_python(monkeypatch)
    for command in commands(page):
        if not command.startswith("tst demo"):  # which tests/test_cli.py runs from end to end
            run(shorten(shlex.split(command, comments=True)), workplace)
    if page.name in GO_ON:  # their programs go on from what their commands made
        monkeypatch.chdir(workplace)
        run_programs(page)


PROGRAMS = [page for page in PAGES if blocks(page, "python") and page.name not in GO_ON]


@pytest.mark.parametrize("page", PROGRAMS, ids=lambda page: page.name)
def test_programs_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_programs(page)


def side(diff: str, sign: str) -> str:
    """The program before (-) or after (+) a diff."""
    return "\n".join(line[1:] for line in diff.splitlines() if line[:1] in ("", " ", sign))


DIFFS = dict(zip(("plain", "accelerate"), blocks(ROOT / "docs" / "loop.md", "diff"), strict=True))


@pytest.mark.parametrize("sign", ["+", "-"])
@pytest.mark.parametrize("name", DIFFS)
def test_both_sides_of_a_diff_run(name: str, sign: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ordinary loop, and the same with superposition; tests/integrations/test_loop.py checks what it computes."""
    if name == "accelerate":
        pytest.importorskip("accelerate", reason="the extra `trainer` is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(side(DIFFS[name], sign), f"loop.md, {name} ({sign})", "exec"), {})
    assert (tmp_path / "trained" / "model.safetensors").exists()
    assert sum(line.startswith("+") for line in DIFFS[name].splitlines()) <= 10


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "configs" / "README.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_make_targets_of_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^make ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "test" in named
    for target in named:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE)
