"""The public face of the package: lazy at run time, typed for tools.

`python tests/test_public_names.py` writes the typed block of the root's `__init__.py` anew.
"""

import ast
import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import guerdon
from guerdon.core.interfaces import Component

ROOT = Path(__file__).resolve().parents[1]
HEAD = "if TYPE_CHECKING:\n"
END = "\n__all__ = "


def typed_block() -> str:
    """Imports of every public name and sub-package, for type checkers, as ruff formats them."""
    lines = [f"    from . import {room} as {room}" for room in sorted(guerdon._ROOMS)]
    lines += [
        f"    from .{module} import {name} as {name}"
        for module in sorted(set(guerdon._PUBLIC.values()))
        for name in sorted(n for n, m in guerdon._PUBLIC.items() if m == module)
    ]
    return "    # written by `python tests/test_public_names.py`\n" + "\n".join(lines) + "\n"


def written() -> tuple[str, str, str]:
    """The root's source around the typed block."""
    source = (ROOT / "__init__.py").read_text()
    before, _, rest = source.partition(HEAD)
    block, _, after = rest.partition(END)
    return before + HEAD, block, END + after


def test_the_typed_block_is_that_of_the_table():
    assert written()[1] == typed_block(), "run `python tests/test_public_names.py`"


@pytest.mark.parametrize("name", [n for n in guerdon.__all__ if n != "__version__"])
def test_a_public_name_is_the_one_it_says(name):
    value = getattr(guerdon, name)
    assert getattr(value, "__name__", name) == name
    assert name in dir(guerdon)


def test_names_are_grouped_by_job():
    grouped = [name for names in guerdon.names_by_job().values() for name in names]
    assert sorted(grouped) == sorted(set(guerdon.__all__) - {"__version__"})
    assert {"EpisodeData", "LabelFactory", "RewardTraining"} <= set(
        guerdon.names_by_job()["Train reward models and critics on logged episodes"]
    )


def test_every_component_is_public():
    """Saved components and configurations name classes by the root, so that files may move."""
    missing: list[str] = []
    for path in sorted(ROOT.glob("[a-z]*/**/*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        if parts[0] in ("tests", "benchmarks", "examples", "docs", "testing", "build") or parts[-1] == "__init__":
            continue
        module = importlib.import_module(".".join(("guerdon", *parts)))
        for name, value in vars(module).items():
            own = inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
            if own and issubclass(value, Component) and getattr(guerdon, name, None) is not value:
                missing.append(f"{module.__name__}.{name}")
    assert not missing


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("room", guerdon._ROOMS)
def test_a_sub_package_needs_no_import_of_its_own(room):
    assert run(f"import guerdon; print(guerdon.{room}.__name__)") == f"guerdon.{room}"


def test_an_unknown_name_answers_with_the_nearest_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'RewardModle'; did you mean RewardModel"):
        guerdon.RewardModle
    with pytest.raises(AttributeError, match=r"did you mean ProgressReward"):
        guerdon.progressreward
    with pytest.raises(AttributeError, match=r"'qqqq'; dir\(guerdon\) lists the public names"):
        guerdon.qqqq
    assert not hasattr(guerdon, "RewardModle")


SCRIPT = """
from guerdon import LabelFactory, ProgressReward, load_component, open_dataset, score_dataset

model = ProgressReward(state_size=2)
reveal_type(model)
reveal_type(model.causal)
reveal_type(open_dataset("data").fps)
score_dataset(model, "data", "scores", batch_size=2)
ProgressReward(state_size="two")
import guerdon
reveal_type(guerdon.core.__name__)
"""


@pytest.mark.slow
def test_type_checkers_know_the_public_names(tmp_path):
    site = tmp_path / "site"
    site.mkdir()
    (site / "guerdon").symlink_to(ROOT, target_is_directory=True)
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(site)], "include": ["script.py"]}))
    command = [Path(sys.executable).with_name("pyright"), "--outputjson", "--pythonpath", sys.executable]
    said = json.loads(subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300).stdout)
    messages = said["generalDiagnostics"]
    errors = [m["message"] for m in messages if m["severity"] == "error"]
    assert len(errors) == 1 and "state_size" in errors[0], errors
    revealed = [re.findall('is "(.*)"', m["message"])[0] for m in messages if m["severity"] == "information"]
    assert revealed == ["ProgressReward", "bool", "float", "str"]


def test_the_root_imports_nothing_at_its_top():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


if __name__ == "__main__":
    before, _, after = written()
    (ROOT / "__init__.py").write_text(before + typed_block() + after)
