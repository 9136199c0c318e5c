"""Environments by ID: what registers them, and what is said when there is none."""

import contextlib
import sys
import warnings
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import pytest

from guerdon.envs.gym_tasks.building import build_environment, layers, quiet, time_limit


def test_packages_are_imported_for_their_ids():
    assert build_environment("FetchReach-v4").spec is not None
    env = build_environment("gym_pusht/PushT-v0", {"obs_type": "pixels"})
    assert env.render_mode == "rgb_array" and env.observation_space.shape == (96, 96, 3)
    assert not any(isinstance(layer, gymnasium.wrappers.TimeLimit) for layer in layers(env))


def test_a_module_before_a_colon_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "own_registering.py").write_text(
        "import gymnasium\nprint('hello')\n"
        "gymnasium.register('OwnPendulum-v0', 'gymnasium.envs.classic_control.pendulum:PendulumEnv')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert build_environment("own_registering:OwnPendulum-v0").spec is not None
    del gymnasium.registry["OwnPendulum-v0"]
    sys.modules.pop("own_registering")


@pytest.mark.parametrize(
    ("identifier", "error", "says"),
    [
        (
            "FetchReech-v4",
            ValueError,
            "gymnasium/FetchReech-v4 is not registered.*did you mean gymnasium/FetchReach-v4",
        ),
        ("gym_pusht/PushT-v7", ValueError, "versioned environments: .*did you mean gymnasium/gym_pusht/PushT-v0"),
        ("nobody/Nothing-v0", ValueError, "is not registered: Namespace nobody not found.*gymnasium/<module>:<ID>"),
        (
            "nobody:Nothing-v0",
            ModuleNotFoundError,
            "No module named 'nobody': install the package that registers Nothing",
        ),
        ("FetchReach-v1", ModuleNotFoundError, "needs a package that is not installed: .*mujoco_py"),
        ("a b", ValueError, "gymnasium/a b is not registered"),
    ],
)
def test_ids_that_cannot_be_built_say_why(identifier, error, says):
    with pytest.raises(error, match=says):
        build_environment(identifier)


class Old:
    """Class of the old gym package, as far as Gymnasium looks."""

    metadata: ClassVar[dict[str, Any]] = {"render.modes": ["human"]}


def test_an_environment_of_the_old_package_is_named():
    old: Any = Old
    gymnasium.register("guerdon_test/Old-v0", entry_point=old)
    with pytest.raises(ValueError, match=r"guerdon_test/Old-v0 is no gymnasium.Env: .*old gym package: wrap it"):
        build_environment("guerdon_test/Old-v0")
    with pytest.raises(ValueError, match=r"cannot be built with \{'size': 3\}"):
        build_environment("guerdon_test/Old-v0", {"size": 3})
    del gymnasium.registry["guerdon_test/Old-v0"]


def test_quiet_drops_notices_and_lets_errors_pass(capsys):
    with pytest.raises(KeyError), quiet():
        print("notice")
        print("notice", file=sys.stderr)
        warnings.warn("old", stacklevel=1)
        raise KeyError("passes")
    assert capsys.readouterr() == ("", "")
    with contextlib.suppress(UserWarning), pytest.raises(UserWarning):  # warnings are errors again
        warnings.warn("old", stacklevel=1)


def test_a_time_limit_is_read_and_lifted():
    env = gymnasium.make("FetchReach-v4", disable_env_checker=True)
    assert time_limit(env) == 50
    env.reset(seed=0)
    assert not any(env.step(env.action_space.sample())[3] for _ in range(51))
    env.close()
