"""Videos show the episodes that were evaluated."""

from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from guerdon.core.sizes import DataSizes
from guerdon.envs import reach
from guerdon.envs.render import NO_BACKEND
from guerdon.evaluation.policies.outcomes import outcome_of
from guerdon.evaluation.policies.playing import PART, TaskFacts, play_part, read_task
from guerdon.evaluation.policies.setting import OpenedPolicy, PlaySetting
from guerdon.evaluation.policies.videos import Filming, check_filming, film
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.rollouts.frames import RolloutFrames
from guerdon.policies.rollouts.pool import WorkerPool

SETTING = PlaySetting(horizon=3, sampled=True)
FACTS = TaskFacts(
    env="mujoco/reach",
    sizes=DataSizes(name="mujoco/reach", state_size=12, action_size=3),
    contexts=(),
    fps=25.0,
    cameras=("front",),
    draws=True,
)


@pytest.fixture
def drawn(monkeypatch):
    """Pictures whose brightness is the number of the step, drawn without OpenGL; their sizes are returned."""
    sizes = []

    def render(self, camera=None, size=(96, 96)):
        sizes.append(size)
        return np.full((3, *size), 40 + int(1000 * self._data.time) % 200, np.uint8)

    monkeypatch.setattr(reach.Reach, "render", render)
    return sizes


@pytest.fixture
def opened():
    torch.manual_seed(0)
    return OpenedPolicy(policy=GaussianPolicy(12, 3, hidden=(8,)).eval(), identity={"path": "it"})


def evaluated(opened, count, setting=SETTING):
    facts = read_task("mujoco/reach", count, setting, [opened])
    found = []
    with WorkerPool(setting.of(facts.env), 1, 0, [facts.sizes]) as pool:
        for number in range(-(-count // PART)):
            pieces = play_part(pool, opened.policy, facts.contexts, number, setting)
            found += [outcome_of(p, "model", facts.env, number * PART + k, (0, 0)) for k, p in enumerate(pieces)]
    return facts, found


def test_the_first_starts_are_filmed_beyond_one_part_too(drawn, opened, tmp_path):
    facts, outcomes = evaluated(opened, PART + 3)
    written = film(facts, SETTING, {"model": opened}, outcomes, Filming(folder=tmp_path, count=PART + 1))
    assert len(written) == PART + 1 and written[-1].name.startswith(f"model-{PART:03d}-")
    for path, outcome in zip(written, outcomes, strict=False):
        assert path.stem.endswith("success" if outcome.success else "failure")
        with av.open(str(path)) as container:
            shown = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
        assert len(shown) == outcome.steps + 1 and shown == sorted(shown) and shown[0] < shown[-1] - 20


def test_what_the_policy_sees_is_filmed(drawn, opened, tmp_path):
    setting = replace(SETTING, frames=RolloutFrames(cameras=["top"], image_size=64))
    facts, outcomes = evaluated(opened, 1, setting)
    film(facts, setting, {"model": opened}, outcomes, Filming(folder=tmp_path, count=1))
    assert set(drawn) == {(64, 64)}


def test_an_episode_that_comes_out_otherwise_is_an_error(drawn, opened, tmp_path):
    facts, outcomes = evaluated(opened, 1)
    wrong = [replace(outcomes[0], steps=outcomes[0].steps + 1)]
    with pytest.raises(RuntimeError, match="start 0: filmed with success False after 3 steps, evaluated with False af"):
        film(facts, SETTING, {"model": opened}, wrong, Filming(folder=tmp_path, count=1))


def test_what_cannot_be_filmed_is_refused():
    check_filming([FACTS])
    with pytest.raises(ValueError, match="has no camera"):
        check_filming([FACTS, replace(FACTS, cameras=())])
    with pytest.raises(ValueError, match="need OpenGL") as caught:
        check_filming([replace(FACTS, draws=False)])
    assert NO_BACKEND in str(caught.value)
