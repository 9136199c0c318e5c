"""``guerdon evaluate`` and ``guerdon score`` with critics: tiny ones, on the reach task, through the real commands."""

import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from guerdon.cli import main
from guerdon.core.hub import save_component
from guerdon.critics.action import ActionCritic
from guerdon.critics.networks import ChunkPerceptron
from guerdon.critics.value import ValueCritic
from guerdon.datasets.collate import collate
from guerdon.datasets.opening import open_dataset
from guerdon.evaluation.critics.logs import LogReader
from guerdon.pages.report import write_report
from guerdon.policies.gaussian import GaussianPolicy
from guerdon.policies.proposer import PolicyProposer
from guerdon.rewards.observation_encoder import ObservationEncoder
from guerdon.rewards.progress import ProgressReward
from guerdon.rewards.step_cost import StepCost
from guerdon.scoring import dataset as scoring
from guerdon.scoring.dataset import score_dataset
from guerdon.scoring.parts import write_part
from guerdon.scoring.scores import read_scores

pytestmark = [pytest.mark.xdist_group("cli"), pytest.mark.slow]
QUICK = ["--states", "6", "--rollouts", "2", "--candidates", "3"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Data made by the command, and saved critics, a policy and a reward, none of them trained."""
    folder = tmp_path_factory.mktemp("critics")
    assert main(
        ["collect", "--env", "mujoco/reach", "--episodes", "8", "--out", str(folder / "logs"), "--states-only",
         "--quality", "expert=0.5,random=0.5"]
    ) == 0  # fmt: skip
    torch.manual_seed(0)
    dataset = open_dataset(folder / "logs")
    batch = collate([dataset[i] for i in range(len(dataset))])
    action = ActionCritic(ChunkPerceptron(12, 3, horizon=4, members=2, hidden=(16,)), gamma=0.95, value_samples=2)
    action.fit_scales(batch)
    policy = GaussianPolicy(12, 3, horizon=4, execute=4, hidden=(8,))
    policy.inputs.fit(batch.observe(*batch.mask.nonzero(as_tuple=True)))
    value = ValueCritic(12, hidden=(8,), gamma=0.95)
    value.fit_scales(batch)
    for name, component in (
        ("action", action),
        ("value", value),
        ("policy", policy),
        ("reward", ProgressReward(state_size=12, observer=ObservationEncoder(width=8, layers=1, heads=2))),
        ("cost", StepCost(failure_cost=20.0, scale=20.0, gamma=0.95)),
    ):
        save_component(component, folder / name)
    return folder


@pytest.fixture
def run(place, tmp_path, monkeypatch, capsys):
    """A command on the saved things; its output, or its error line."""
    monkeypatch.chdir(tmp_path)

    def call(command, model, *rest, fails=False):
        arguments = [command, "--model", str(place / model), "--data", str(place / "logs"), *rest]
        code = main([str(place / a[1:]) if a.startswith("@") else a for a in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        assert code == (2 if fails else 0), said.err
        if not fails:
            return said.out
        lines = [line for line in said.err.splitlines() if line.startswith("guerdon: error:")]
        assert len(lines) == 1, said.err
        return lines[0]

    return call


def test_evaluate_along_the_logs(run, place, tmp_path):
    text = run("evaluate", "action", "--policy", "@policy", "--json", "a.json")
    for words in ("ActionCritic", "8 episodes", "V end − max before", "rank corr.", "TD residual", "ensemble of 2"):
        assert words in text
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["kind"] == "critic" and found["rolled_out"] is None
    counts = found["counts"]
    assert counts["episodes"] == 8 == counts["success"] + counts["failure"] + counts["unknown"]
    dataset = open_dataset(place / "logs")
    assert counts["steps"] == sum(dataset[i].steps for i in range(8)) == counts["known"]
    assert set(found["residuals"]) == {"0", "3"}  # experts and random walkers
    assert found["gamma"] == 0.95 and found["spanning"] is None
    # the weights again, from the values in a score file: V of the same proposals, Q of the same chunks
    run("score", "action", "--policy", "@policy", "--out", "s", "--terminating", "success,failure,time_limit,takeover")
    advantage = np.concatenate([(e.q - e.value)[:-1] for e in read_scores("s").episodes])
    assert np.isfinite(advantage).all() and len(advantage) == counts["steps"]
    weight = np.exp(np.clip(advantage / advantage.std(), -math.log(20), math.log(20)))
    share = weight.sum() ** 2 / (len(weight) * np.square(weight).sum())
    assert found["weight_share"] == pytest.approx(share, abs=0.05) and 0 < share < 1  # other noise in V
    assert f"would rest on {found['weight_share']:.0%} of them" in " ".join(text.split())


def test_figures_are_those_of_the_critic_on_the_logs(run, tmp_path, place):
    """Everything again, step by step, from the saved value critic."""
    run("evaluate", "value", "--json", "v.json", "--failure-cost", "30", "--scale", "2")
    found = json.loads((tmp_path / "v.json").read_text())
    critic, dataset = ValueCritic.from_pretrained(place / "value"), open_dataset(place / "logs")
    starts, ends, predicted, returns, residuals = {1.0: [], 0.0: []}, {1.0: [], 0.0: []}, [], [], []
    for i in range(8):
        episode = dataset[i]
        with torch.no_grad():
            v = critic(collate([episode])).v[0].double().numpy()
        assert episode.success is not None
        paid = np.full(episode.steps, -0.5)
        paid[-1] = 0.0 if episode.success else -15.0  # 0 on a success, −30/2 at the time limit
        tail = 0.0
        for t in reversed(range(episode.steps)):
            tail = paid[t] + 0.95 * tail
            returns.append(tail)
            predicted.append(v[t])
            residuals.append(paid[t] + 0.95 * (v[t + 1] if t + 1 < episode.steps else 0.0) - v[t])
        starts[episode.success].append(v[0])
        ends[episode.success].append(v[episode.steps - 1])
    for name, success in (("success", 1.0), ("failure", 0.0)):
        assert found["along"][name]["v_start"] == pytest.approx(np.mean(starts[success]), rel=1e-4)
        assert found["along"][name]["v_end"] == pytest.approx(np.mean(ends[success]), rel=1e-4)
    slope, intercept = np.polyfit(predicted, returns, 1)
    line = found["v"]["calibration"]
    assert (line["slope"], line["intercept"]) == pytest.approx((slope, intercept), rel=1e-3)
    assert line["mean_error"] == pytest.approx(np.mean(predicted) - np.mean(returns), rel=1e-4)
    rms = math.sqrt(sum(r["rms"] ** 2 * r["n"] for r in found["residuals"].values()) / len(residuals))
    assert rms == pytest.approx(np.sqrt(np.square(residuals).mean()), rel=1e-4)
    assert found["q"] is None and found["members"] == 0 and found["member_correlation"] is None


def test_a_saved_step_cost_is_the_same_as_its_options(run, tmp_path):
    run("evaluate", "value", "--json", "a.json", "--reward", "@cost")
    run("evaluate", "value", "--json", "b.json", "--failure-cost", "20", "--scale", "20")
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert one["v"] == other["v"] and one["residuals"] == other["residuals"]


def test_time_limits_that_do_not_terminate_leave_their_returns_unknown(run, tmp_path):
    run("evaluate", "value", "--json", "v.json", "--terminating", "success")
    counts = json.loads((tmp_path / "v.json").read_text())["counts"]
    assert 0 < counts["known"] < counts["steps"]


def test_rolled_out_again(run, tmp_path, place):
    text = run("evaluate", "action", "--policy", "@policy", "--env", "mujoco/reach", *QUICK, "--json", "a.json")
    for words in ("return rolled out again", "chunk-ranking AUC", "first observations", "mujoco/reach: 6 states of 3"):
        assert words in text
    found = json.loads((tmp_path / "a.json").read_text())["rolled_out"]
    assert (found["states"], found["episodes"], found["rollouts"], found["candidates"]) == (6, 3, 2, 3)
    assert found["tail"] == "failure" and found["over_estimation"]["n"] == 3
    assert found["v_calibration"]["n"] == found["q_calibration"]["n"] == 6
    again = run("evaluate", "action", "--policy", "@policy", "--env", "mujoco/reach", *QUICK, "--json", "b.json")
    assert again == text and json.loads((tmp_path / "b.json").read_text())["rolled_out"] == found


def test_what_is_missing_or_does_not_fit_is_said(run):
    assert "name it with --policy DIR" in run("evaluate", "action", fails=True)
    assert "name it with --policy DIR" in run("score", "action", "--out", "s", fails=True)
    assert "with a policy: name it with --policy" in run("evaluate", "value", "--env", "mujoco/reach", fails=True)
    text = run("evaluate", "value", "--policy", "@policy", "--env", "metaworld/push-v3", fails=True)
    assert "none of 8 episodes is from metaworld/push-v3 (8 are from other tasks" in text
    assert "did you mean" in run("evaluate", "value", "--policy", "@policy", "--env", "mujoco/rech", fails=True)
    assert "--against is for reward models" in run("evaluate", "value", "--against", "@value", fails=True)
    assert "--policy is for critics" in run("evaluate", "reward", "--policy", "@policy", fails=True)
    assert "expected a reward model or a critic" in run("evaluate", "policy", fails=True)
    text = run("evaluate", "value", "--policy", "@policy", "--env", "mujoco/reach", "--env", "mujoco/reach", fails=True)
    assert "a critic is evaluated in one task" in text
    assert "--env is for critics and policies" in run("evaluate", "reward", "--env", "mujoco/reach", fails=True)
    assert "holds a ValueCritic: expected a policy" in run("evaluate", "value", "--policy", "@value", fails=True)
    assert "is a reward model" in run("score", "reward", "--policy", "@policy", "--out", "s", fails=True)
    assert "would change another one" in run("evaluate", "value", "--reward", "@cost", "--scale", "2", fails=True)
    text = run("evaluate", "value", "--reward", "@reward", "--policy", "@policy", "--env", "mujoco/reach", fails=True)
    assert "needs a reward that is known while a simulation runs" in text
    assert "'won' is no end" in run("evaluate", "value", "--terminating", "won", fails=True)


def test_scores_of_a_critic_are_its_values(run, place, tmp_path):
    text = run("score", "action", "--policy", "@policy", "--out", "s", "--batch-size", "8")
    assert "8 of 8 episodes scored" in text
    scores = read_scores("s")
    critic = ActionCritic.from_pretrained(place / "action")
    dataset = open_dataset(place / "logs")
    for scored in scores.episodes:
        episode = dataset[scored.index]
        with torch.no_grad():
            q = critic.pessimistic(critic.logged_q(collate([episode])))[0].numpy()
        assert np.allclose(scored.q[: episode.steps], q[: episode.steps], atol=1e-5) and np.isnan(scored.q[-1])
        assert np.isnan(scored.progress).all() and np.isnan(scored.reward).all()
        # a success has no future and so no value; a time limit has
        assert np.isnan(scored.value[-1]) == bool(episode.success) and np.isfinite(scored.value[:-1]).all()
    assert scores.metadata["policy_hash"] and scores.metadata["model"].endswith("action")
    again = run("score", "action", "--policy", "@policy", "--out", "t")
    assert again.splitlines()[0] == text.splitlines()[0]


def test_scores_know_which_ends_the_reward_of_the_run_prices(place, tmp_path):
    """Trained with time limits that end values, a critic has none after one; and the last chunks are shown whole."""
    for name, source in (("model", "action"), ("reward", "cost")):
        shutil.copytree(place / source, tmp_path / "run" / name)
    proposer = PolicyProposer(GaussianPolicy.from_pretrained(place / "policy"))
    given = {"device": "cpu", "proposer": proposer, "progress_bar": False}
    dataset = open_dataset(place / "logs")
    critic, reward = ActionCritic.from_pretrained(place / "action"), StepCost.from_pretrained(place / "cost")
    reader = LogReader(critic, reward, dataset, [1, 2, 3, 4], proposer)
    judged = {one.episode: one for one in reader.values(range(8), {})}
    for folder in ("run", "run/model"):
        score_dataset(tmp_path / folder, place / "logs", tmp_path / "s", overwrite=True, **given)
        for scored in read_scores(tmp_path / "s").episodes:
            one = judged[scored.index]
            assert one.q is not None
            assert np.isnan(scored.value[-1]) and np.allclose(scored.q[:-1], one.q, atol=1e-5)
    score_dataset(place / "action", place / "logs", tmp_path / "t", **given)  # no reward beside it: time limits go on
    late = [e for e in read_scores(tmp_path / "t").episodes if not dataset[e.index].success]
    assert late and all(np.isfinite(e.value[-1]) for e in late)
    pairs = [(e.q[:-1], judged[e.index].q) for e in late]
    assert any(theirs is not None and not np.allclose(mine, theirs, atol=1e-3) for mine, theirs in pairs)
    with pytest.raises(ValueError, match="another run"):
        score_dataset(place / "action", place / "logs", tmp_path / "t", terminating=["success"], **given)


def test_a_run_that_goes_on_gives_the_same_values(place, tmp_path, monkeypatch):
    def proposer(seed=0):
        return PolicyProposer(GaussianPolicy.from_pretrained(place / "policy"), seed=seed)

    def score(folder, seed=0):
        return score_dataset(
            place / "action", place / "logs", tmp_path / folder, part_size=3, progress_bar=False, device="cpu",
            proposer=proposer(seed),
        )  # fmt: skip

    score("a")
    written: list[object] = []

    def interrupted(table, file):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(write_part(table, file))

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(scoring, "write_part", interrupted)
        score("b")
    assert score("b").resumed == 6
    one, other = (read_scores(tmp_path / name).table for name in ("a", "b"))
    assert one["value"].equals(other["value"])
    with pytest.raises(ValueError, match=r"another run \(policy: "):
        score("a", seed=1)


def test_files_of_before_there_were_critics_open(run, tmp_path):
    run("score", "reward", "--out", "s")
    file = tmp_path / "s" / "scores.parquet"
    table = pq.read_table(file)
    assert table["value"].null_count == table["q"].null_count == len(table)
    pq.write_table(table.drop_columns(["value", "q"]), file)
    scores = read_scores("s")
    assert all(np.isnan(e.value).all() and len(e.value) == len(e.seconds) for e in scores.episodes)
    assert "Reward report" in write_report("s", tmp_path / "page.html").read_text()


def test_the_report_draws_values_and_marks_falls_of_failures(run, tmp_path):
    run("score", "action", "--policy", "@policy", "--out", "s")
    page = write_report("s", tmp_path / "page.html", episodes=8).read_text()
    assert "Value report" in page and "Highest final value" in page
    episodes = read_scores("s").episodes
    assert page.count('aria-label="value over time"') == len(episodes)
    assert page.count('class="fall"') == sum(not np.isnan(e.value[-1]) for e in episodes)  # those at the time limit
    assert "neither progress nor success" not in page
    assert "policy hash" in page
    run("evaluate", "action", "--policy", "@policy", "--json", "e.json")
    with pytest.raises(ValueError, match=r"e\.json holds metrics of a critic, which the report does not draw"):
        write_report("s", tmp_path / "page.html", evaluation="e.json")


def test_the_reward_of_a_run_is_taken_from_beside_its_critic(place, tmp_path, run, capsys):
    whole = tmp_path / "run"
    for name, source in (("model", "action"), ("reward", "cost")):
        shutil.copytree(place / source, whole / name)
    for named in (whole, whole / "model"):
        said = run("evaluate", named, "--policy", "@policy")
        assert f"{whole / 'reward'}: StepCost(failure_cost=20, scale=20, gamma=0.95)" in " ".join(said.split())
    assert main(["inspect", str(whole)]) == 0
    assert "the reward that its values are sums of" in " ".join(capsys.readouterr().out.split())
    given = run("evaluate", whole, "--policy", "@policy", "--failure-cost", "5", "--scale", "10")
    assert "−5 at a failure, over 10" in " ".join(given.split())
