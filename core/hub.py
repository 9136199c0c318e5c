"""Saving of components as folders of ``component.json`` and ``model.safetensors``, and opening them; no pickle.

The JSON holds ``{"class_path", "init_args"}`` recursively. Weights are safetensors. A frozen published backbone is
written as name and revision only. Whatever comes from outside is checked before a class is imported or a weight loaded.
"""

import hashlib
import importlib
import inspect
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from .files import short_hash
from .moved import first_names, public_path, renew, warn_of_old_names
from .sizes import require_sizes

SPEC, WEIGHTS, FORMAT = "component.json", "model.safetensors", 2
_READABLE = (1, 2)  # 1 named classes by their modules
_METADATA = {"format": "pt"}  # of the weights file, and so part of its hash
_RESERVED = ({"class_path", "init_args"}, {"same_as"})  # how a component, and one met before, stand in the JSON


def is_component(value: object) -> bool:
    """Return whether a value is a module that remembers its constructor's arguments."""
    return isinstance(value, nn.Module) and "init_args" in value.__dict__


def class_path(cls: type) -> str:
    """Return the importable path of a class: from the root (``guerdon.ProgressReward``) where it is public.

    Raises:
        ValueError: If the class is defined inside a function or a class, where nothing could import it again.
    """
    path = public_path(cls)
    if "." in cls.__qualname__:
        where = "a function" if "<locals>" in path else "a class"
        raise ValueError(f"{path} is defined inside {where}: move it to the top of a module to save it")
    return path


def describe(component: nn.Module, _seen: dict[int, str] | None = None, _at: str = "") -> dict[str, Any]:
    """Write a component's class and constructor arguments as JSON-able values; one used twice is written once."""
    seen = {} if _seen is None else _seen
    if id(component) in seen:
        return {"same_as": seen[id(component)]}
    seen[id(component)] = _at
    args = cast(dict[str, Any], component.__dict__["init_args"])
    return {
        "class_path": class_path(type(component)),
        "init_args": {k: _describe_value(v, seen, f"{_at}.{k}".lstrip(".")) for k, v in args.items()},
    }


def _describe_value(value: Any, seen: dict[int, str], at: str) -> Any:
    if is_component(value):
        return describe(value, seen, at)
    if isinstance(value, Mapping):
        entries = cast(Mapping[Any, Any], value)
        if not all(isinstance(k, str) for k in entries) or set(entries) in _RESERVED:
            raise TypeError(
                f"argument {at!r}: expected a dictionary with text as keys (and not exactly class_path and init_args, "
                f"or same_as), got the keys {list(entries)}"
            )
        return {k: _describe_value(v, seen, f"{at}.{k}") for k, v in entries.items()}
    if isinstance(value, list | tuple):
        return [_describe_value(v, seen, f"{at}.{i}") for i, v in enumerate(cast(Sequence[Any], value))]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"argument {at!r} is {value}: JSON has no such number; use None or a finite number")
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"argument {at!r} is a {type(value).__name__}: a component's constructor takes JSON-able values "
        "(numbers, text, lists, dictionaries) or other components"
    )


def _frozen_prefixes(component: nn.Module) -> tuple[str, ...]:
    # under every name it goes by: members of an ensemble share one
    modules = component.named_modules(remove_duplicate=False)
    names = [n for n, m in modules if getattr(m, "frozen_reference", False) is True]
    return tuple(f"{n}." if n else "" for n in names)


def _weights(component: nn.Module) -> dict[str, Tensor]:
    frozen = _frozen_prefixes(component)
    weights: dict[str, Tensor] = {}
    for name, value in component.state_dict().items():
        if frozen and name.startswith(frozen):
            continue
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{name}: expected only tensors in the state of {type(component).__name__}")
        # a copy each: safetensors refuses tensors that share memory
        weights[name] = value.detach().cpu().contiguous().clone()
    return weights


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_component(component: nn.Module, path: str | Path) -> None:
    """Write a component to a folder; either the whole folder is there afterwards or the old one still is.

    Raises:
        TypeError: If the module is no component, or an argument cannot be written as JSON.
        ValueError: If a class cannot be imported by name, an argument is not finite, or a size is not known yet.
        FileExistsError: If the path holds anything but a saved component: replacing the folder would delete it.
        OSError: If the folder cannot be written.
    """
    _require_component(component)
    folder = Path(path).absolute()
    if folder.is_dir():
        if folder.samefile(Path.cwd()):
            raise FileExistsError(f"{folder} is the working directory, which saving would replace: name a folder in it")
        held = {entry.name for entry in folder.iterdir()}
        if held and SPEC not in held:
            raise FileExistsError(f"{folder} exists and holds no component: choose another folder, or remove it")
        if other := sorted(held - {SPEC, WEIGHTS}):
            raise FileExistsError(
                f"{folder} holds {other[0]!r} next to a component, which saving would delete: choose another folder"
            )
    elif folder.exists():
        raise FileExistsError(f"{folder} is a file: choose a folder")
    spec = describe(component)
    weights = _weights(component)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    except OSError as error:
        raise OSError(
            f"cannot write {folder}: {error.strerror or error}; choose a folder that can be written"
        ) from error
    try:
        save_file(weights, fresh / WEIGHTS, metadata=_METADATA)
        record = {"format": FORMAT, "guerdon_version": _version(), "weights_sha256": _sha256(fresh / WEIGHTS)} | spec
        (fresh / SPEC).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")
        fresh.chmod(0o755)
        _replace_folder(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _replace_folder(fresh: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(fresh, folder)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
    os.rename(folder, old / "folder")
    try:
        os.rename(fresh, folder)
    except OSError:
        os.rename(old / "folder", folder)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _version() -> str:
    return cast(str, importlib.import_module(__name__.partition(".")[0]).__version__)


def component_hash(path: str | Path) -> str:
    """Return the content hash of a saved component: class, arguments and weights, as 16 hexadecimal digits.

    Raises:
        FileNotFoundError: If the folder holds no component.
        ValueError: If its description is not one of ours.
    """
    return _content_hash(read_spec(Path(path)))


def hash_component(component: nn.Module) -> str:
    """Compute the content hash that a component has once it is saved, without writing a file.

    It equals `component_hash` of the folder that `save_component` would write now. Weights of frozen published
    backbones are left out, as they are when saving.

    Raises:
        TypeError: If the module is no component, or an argument cannot be written as JSON.
        ValueError: If a class cannot be imported by name, an argument is not finite, or a size is not known yet.
    """
    _require_component(component)
    content = save(_weights(component), metadata=_METADATA)
    return _content_hash(describe(component) | {"weights_sha256": hashlib.sha256(content).hexdigest()})


def _content_hash(spec: Mapping[str, Any]) -> str:
    return short_hash(first_names({k: spec[k] for k in ("class_path", "init_args", "weights_sha256")}))


def _require_component(component: nn.Module) -> None:
    if not is_component(component):
        raise TypeError(f"expected a guerdon component, got a {type(component).__name__}")
    require_sizes(component)


def read_spec(folder: Path) -> dict[str, Any]:
    """Read and check ``component.json``.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If it is not one of ours.
    """
    file = folder / SPEC
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} holds no {SPEC}: expected a folder written by save_pretrained or `guerdon fit` "
            "(its path is the last line that prints), or the name of a hub repository"
        )
    try:
        spec = json.loads(file.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; the copy did not finish?") from error
    wanted = {"format": int, "class_path": str, "init_args": dict, "weights_sha256": str}
    for key, kind in wanted.items():
        if not isinstance(spec, dict) or not isinstance(cast(dict[str, Any], spec).get(key), kind):
            raise ValueError(f"{file}: expected {key!r} as {kind.__name__}; this is not a component guerdon wrote")
    if spec["format"] not in _READABLE:
        known = " and ".join(map(str, _READABLE))
        raise ValueError(f"{file} has format {spec['format']}, this version of guerdon reads {known}")
    return cast(dict[str, Any], spec)


def load_component(
    path_or_repo: str | Path, revision: str | None = None, trust: bool = False, known: tuple[type, ...] = ()
) -> nn.Module:
    """Open a saved component from a folder, or from the Hugging Face hub if the name is no folder here.

    Args:
        path_or_repo: A folder, or a repository ``owner/name``.
        revision: Commit, branch or tag on the hub.
        trust: Allow classes outside guerdon, which runs their code.
        known: Classes the caller already has and so trusts.

    Raises:
        FileNotFoundError: If there is no such folder and no such repository can be reached.
        PermissionError: If the component names a class outside guerdon and ``trust`` is False.
        ValueError: If description or weights are damaged or do not fit the class.
    """
    folder = Path(path_or_repo)
    if not folder.exists() and _is_repo(str(path_or_repo)):
        try:
            folder = Path(huggingface_hub.snapshot_download(str(path_or_repo), revision=revision))
        except (OSError, HFValidationError) as error:  # every error of the network or the hub is an OSError
            raise FileNotFoundError(
                f"{path_or_repo} is no folder here, and no repository of that name could be fetched from the hub: "
                f"{error}"
            ) from error
    spec = read_spec(folder)
    weights_file = folder / WEIGHTS
    if not weights_file.is_file():
        raise FileNotFoundError(f"{folder} holds {SPEC} but no {WEIGHTS}: copy the whole folder")
    if _sha256(weights_file) != spec["weights_sha256"]:
        raise ValueError(f"{weights_file} is not the file {SPEC} was written with: it is cut short or was replaced")
    importable = {class_path(c): c for c in known if "." not in c.__qualname__}
    spec, old = renew(spec)
    warn_of_old_names(str(folder / SPEC), old, "Open it and save it again with save_pretrained to renew it.")
    component = _build(spec, trust, importable, {}, "")
    try:
        weights = load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} cannot be read: {error}") from error
    _load_weights(component, weights, folder)
    return component.eval()


def _is_repo(name: str) -> bool:
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and " " not in name


def _build(spec: dict[str, Any], trust: bool, known: dict[str, type], built: dict[str, Any], at: str) -> nn.Module:
    cls = _find_class(str(spec["class_path"]), trust, known)
    args = {
        k: _build_value(v, trust, known, built, f"{at}.{k}".lstrip("."))
        for k, v in cast(dict[str, Any], spec["init_args"]).items()
    }
    renewed = getattr(cls, "renewed", dict)  # a class of one's own may be any module
    try:
        component = cls(**renewed(args))
    except TypeError as error:
        raise ValueError(f"{spec['class_path']} does not take the saved arguments: {error}") from error
    built[at] = component
    return cast(nn.Module, component)


def _build_value(value: Any, trust: bool, known: dict[str, type], built: dict[str, Any], at: str) -> Any:
    if isinstance(value, dict):
        entries = cast(dict[str, Any], value)
        if set(entries) == {"class_path", "init_args"} and isinstance(entries["init_args"], dict):
            return _build(entries, trust, known, built, at)
        if set(entries) == {"same_as"}:
            if entries["same_as"] not in built:
                raise ValueError(f"argument {at!r} is the same as {entries['same_as']!r}, which is not there")
            return built[str(entries["same_as"])]
        return {k: _build_value(v, trust, known, built, f"{at}.{k}") for k, v in entries.items()}
    if isinstance(value, list):
        return [_build_value(v, trust, known, built, f"{at}.{i}") for i, v in enumerate(cast(list[Any], value))]
    return value


def _find_class(path: str, trust: bool, known: dict[str, type]) -> type:
    if path in known:
        return known[path]
    package = __name__.partition(".")[0]
    if not trust and not path.startswith(f"{package}."):
        raise PermissionError(
            f"this component is of the class {path}, which is not part of {package}: opening it would run that code. "
            "Pass trust=True if you know where the folder comes from"
        )
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        if path.startswith(f"{package}."):
            nearest = cast(Callable[[str], str], importlib.import_module(package).nearest)
            raise ValueError(f"cannot find {path}{nearest(name)}") from error
        raise ValueError(
            f"cannot find {path}: {error}; install the package that defines it, or name the folder it lies in: "
            "PYTHONPATH=FOLDER"
        ) from error
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise ValueError(f"{path} is not a component")
    return cls


def _load_weights(component: nn.Module, weights: dict[str, Tensor], folder: Path) -> None:
    expected = {k: tuple(v.shape) for k, v in _weights(component).items()}
    got = {k: tuple(v.shape) for k, v in weights.items()}
    try:  # modules rename weights of earlier versions on the way
        kept = component.load_state_dict(weights, strict=False)
        wrong = sorted([*(k for k in kept.missing_keys if k in expected), *kept.unexpected_keys])
    except RuntimeError:  # a weight of another shape
        wrong = sorted(k for k in expected.keys() | got.keys() if expected.get(k) != got.get(k))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{folder}: weights do not fit {type(component).__name__}: {len(wrong)} differ, first {name!r}: "
            f"expected {expected.get(name, 'nothing')}, got {got.get(name, 'nothing')}"
        )


def push_component(component: nn.Module, repo_id: str, private: bool = True) -> str:
    """Save a component and upload the folder to the hub; returns the commit's address."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "component"
        save_component(component, folder)
        api = huggingface_hub.HfApi()
        api.create_repo(repo_id, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder))


__all__ = [
    "class_path",
    "component_hash",
    "hash_component",
    "load_component",
    "push_component",
    "read_spec",
    "save_component",
]
