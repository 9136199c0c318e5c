"""The pages do what they say: their Python runs, and their links lead somewhere."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("docs", "examples", "benchmarks")
PAGES = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")

# A block that starts with the comment `# rewards/name.py` is that module of guerdon, relative imports included; the
# other blocks of a page share one namespace, in order.
RUNNER = r"""
import importlib.util, json, re, sys, types
from pathlib import Path

page = types.ModuleType("__main__")
sys.modules["__main__"] = page
for number, block in enumerate(json.load(sys.stdin), 1):
    place = re.match(r"# ((?:\w+/)+\w+)\.py\n", block)
    if place and not place[1].startswith("tests/"):
        name = "guerdon." + place[1].replace("/", ".")
        path = Path(f"block_{number}.py").resolve()
        path.write_text(block)
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        continue
    known = set(vars(page))
    exec(compile(block, f"<block {number}>", "exec"), vars(page))
    for test in [name for name in vars(page) if name.startswith("test_") and name not in known]:
        vars(page)[test]()
"""


def blocks(page: Path) -> list[str]:
    return FENCE.findall(page.read_text())


def run_blocks(code: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", RUNNER]
    return subprocess.run(command, input=json.dumps(code), cwd=folder, capture_output=True, text=True, timeout=120)


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=name)
def test_python_blocks_run(page, tmp_path):
    done = run_blocks(blocks(page), tmp_path)
    assert done.returncode == 0, f"a Python block of {name(page)} fails:\n{done.stdout}\n{done.stderr}"


def test_the_runner_notices_failures(tmp_path):
    block = "def test_it():\n    assert 1 + 1 == 3\n"
    assert run_blocks([block], tmp_path).returncode != 0
    assert run_blocks(["x = 1\n", "assert x == 1\n"], tmp_path).returncode == 0


def test_the_recipe_for_a_reward_model_is_a_module_and_its_test():
    """What makes the recipe trustworthy: `test_python_blocks_run` runs exactly these two."""
    module, test = blocks(ROOT / "CONTRIBUTING.md")[:2]
    assert module.startswith("# rewards/")
    assert test.startswith("# tests/rewards/")
    assert "check_reward_model(" in test


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    broken: list[str] = []
    for link in LINK.findall(text):
        if "://" in link or link.startswith("mailto:"):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        missing = not target.exists() or not target.is_relative_to(ROOT)
        if missing or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_every_page_of_the_docs_is_listed():
    listed = LINK.findall((ROOT / "docs" / "index.md").read_text())
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert pages - set(listed) == set()


CONFIG = re.compile(r"--config (?:configs/)?([\w./-]+)")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_configurations_named_in_a_command_exist(page):
    found = [
        match for match in CONFIG.findall(page.read_text()) if not match.partition("/")[0].isupper()
    ]  # RUN/config.yaml
    named = {Path(match).name.removesuffix(".yaml") for match in found}
    assert named <= {path.stem for path in (ROOT / "configs").glob("*.yaml")}
