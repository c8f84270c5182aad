"""What README and docs/ say must exist: links and their headings, the names behind equations, the words of commands."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDER = re.compile(r"\.\.\.|=NAME\b|=KEY\b|\bKEY=")


def anchors(page: Path) -> set[str]:
    """GitHub's names of a page's headings."""
    heads = [line.lstrip("# ") for line in page.read_text().splitlines() if re.match(r"#+ ", line)]
    return {re.sub(r"[^\w\- ]", "", head).strip().lower().replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_relative_link_leads_to_a_file_and_a_heading(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http://", "https://")):
            file, _, anchor = link.partition("#")
            target = page.parent / file if file else page
            assert target.exists(), f"{page.name}: {link} does not exist"
            assert not anchor or anchor in anchors(target), f"{page.name}: {link}: no such heading"


@cache
def names(file: Path) -> set[str]:
    """Functions, classes, `Class.method`s, constants and the words of a table (`TABLE = {"word": function}`)."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{child.name}" for child in node.body if isinstance(child, ast.FunctionDef)}
        if isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.Dict):
            found |= {str(key.value) for key in node.keys if isinstance(key, ast.Constant)}
    return found


def references(text: str) -> list[tuple[str, str]]:
    """("algos/td3.py", "target") and ("algos/td3.py", "step") of "`algos/td3.py: target`, `step`"."""
    found = []
    for file, first, more in re.findall(r"`((?:\w+/)*\w+\.py): ([\w.]+)(?:\([^`]*)?`((?:,? `[\w.]+`)*)", text):
        found += [(file, first), *((file, name) for name in re.findall(r"`([\w.]+)`", more))]
    return [(file, name) for file, name in found if not name.endswith(".py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_every_file_and_name_beside_an_equation_exists(page):
    for file, name in references(page.read_text()):
        path = next((p for p in (ROOT / "ctrlrl" / file, ROOT / file) if p.exists()), None)
        assert path is not None, f"{page.name}: {file} does not exist"
        assert name in names(path), f"{page.name}: {file} has no {name}"


def test_references_are_found_with_the_names_that_follow():
    row = "| y | `algos/td3.py: target`, `step` | `core/update.py: Target(tau)` and `functional/returns.py` |"
    assert references(row) == [("algos/td3.py", "target"), ("algos/td3.py", "step"), ("core/update.py", "Target")]


def train_commands(text: str) -> list[str]:
    text = re.sub(r"\\\n\s*", " ", text)
    inline = [" ".join(code.split()) for code in re.findall(r"(?<!`)`(ctrlrl train [^`]+)`(?!`)", text)]
    lines = re.findall(r"^(?: {4}|\$ )?(ctrlrl train [^\n`]+)", text, flags=re.MULTILINE)
    return [command.split(" # ")[0].split(" && ")[0] for command in inline + lines]


def composed(words: list[str]) -> None:
    """The words laid over their schemas without Hydra, which takes a fifth of a second a command; ValueError else."""
    from omegaconf import OmegaConf

    from ctrlrl import settings
    from ctrlrl.config import DataConfig, TrainConfig, env_config_with
    from ctrlrl.registry import ALGORITHMS, RECORDED, TOKEN_METHODS, env_settings, lookup

    said = dict(word.split("=", 1) for word in words)
    preset = said.pop("experiment", "none")
    assert preset in ("auto", "none", *settings.presets()), f"unknown experiment={preset}"
    algo = said.pop("algo", preset.split("/")[0] if preset.split("/")[0] in ALGORITHMS else "ppo")
    data = said.pop("data", "none")
    usual = RECORDED if data != "none" and algo in TOKEN_METHODS else "pendulum"
    groups = {"algo": algo, "env": said.pop("env", usual), "data": data}
    for group, name in groups.items():
        assert name in settings.GROUPS[group], f"unknown {group}={name}"
    env = env_config_with(env_settings(groups["env"]))
    schema = OmegaConf.structured(TrainConfig(algo=lookup(ALGORITHMS, algo, "algorithm").config(), env=env()))
    schema.data = OmegaConf.structured(DataConfig())
    judged = [f"env.{key.removeprefix('eval.env.')}={value}" for key, value in said.items() if "eval.env." in key]
    learned = [f"{key}={value}" for key, value in said.items() if "eval.env." not in key]
    OmegaConf.merge(schema, OmegaConf.from_dotlist([*judged, *learned]))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_the_words_of_every_training_command_are_known(page):
    for command in train_commands(page.read_text()):
        words = shlex.split(command)[2:]
        if not PLACEHOLDER.search(command) and not any(word.startswith(("--", "run.resume=")) for word in words):
            try:
                composed(words)
            except Exception as error:
                pytest.fail(f"{page.name}: {command}: {str(error).splitlines()[0]}")


@pytest.mark.parametrize("word", ["algo=pop", "env=halfchetah", "experiment=ppo/moon", "algo.lerning_rate=1", "seed=x"])
def test_a_mistyped_word_of_a_command_is_found(word):
    with pytest.raises(Exception, match=re.escape(word.split("=")[0].split(".")[-1])):
        composed([word])


def test_the_code_on_extending_runs_as_it_stands(tmp_path, monkeypatch):
    from ctrlrl.registry import ALGORITHMS

    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for number, block in enumerate(blocks):
            (tmp_path / f"extending_{number}.py").write_text(block)
            made = import_module(f"extending_{number}")
            assert made.model.num_timesteps >= 1_024
        loaded = made.SquarePPO.load("square_ppo")
        assert loaded.cfg.ratio_penalty == 2.0
    finally:
        ALGORITHMS.pop("square_ppo", None)
