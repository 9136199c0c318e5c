"""Seconds of an update of the ALOE critic, with and without keeping the next chunks of the current policy.

    python benchmarks/critic_step.py

The policy is a small flow: a perceptron of three layers of 256 units, asked ten times for a chunk (Euler steps). An
update draws 256 transitions, values the logged chunks, samples the policy where they end, and moves critic and target.
Three ways to get the next chunks take turns, update by update, so that a machine that slows down slows all of them:
drawn every time; kept; kept for 20 updates. Seconds are those of the processor (one thread), which a busy machine
changes less than those of the clock; both are in the JSON, and ratios are between neighbours in time.

Three critics: small ones of states (perceptrons as Q-chunking has them, and a transformer), and the one of the paper (6
layers of width 256, 8 heads, chunks of 50 steps, 3 cameras, K = 2), the latter for a handful of updates, because a CPU
needs seconds for one. Its camera features are stored ones of width 1152, as those of a frozen encoder are. The policy
has the same small network there: what pi0.5 would cost is not measured.
"""

import os
import time
from dataclasses import replace
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from common import command_line, spread, write_result
from guerdon.backbones.vision import VisionEncoder
from guerdon.core.batch import Decision, End, Observation, RewardEstimates, Sampled, TrajectoryBatch
from guerdon.core.interfaces import Policy
from guerdon.critics.action import ActionCritic
from guerdon.critics.logged import LoggedChunks
from guerdon.critics.networks import ChunkNetwork, ChunkPerceptron, ChunkTransformer
from guerdon.critics.observations import CriticInputs
from guerdon.policies.proposer import PolicyProposer

TRANSITIONS, REFRESH, PASSES, CAMERAS, FEATURES = 256, 20, 10, ("top", "left", "right"), 1152
WAYS = ("drawn every time", "kept", f"kept for {REFRESH} updates")


class SmallFlow(Policy):
    """Turns noise into a chunk in ten Euler steps along the velocity of a perceptron (t = 1 noise, t = 0 data)."""

    def __init__(self, state_size: int, action_size: int, horizon: int) -> None:
        super().__init__()
        self.horizon, self.execute, self.action_size = horizon, horizon, action_size
        sizes = [state_size + horizon * action_size + 1, 256, 256, 256]
        layers: list[nn.Module] = []
        for inner, outer in pairwise(sizes):
            layers += [nn.Linear(inner, outer), nn.SiLU()]
        self.network = nn.Sequential(*layers, nn.Linear(256, horizon * action_size))

    @torch.no_grad()
    def act(
        self, observation: Observation, deterministic: bool = False, generator: torch.Generator | None = None
    ) -> Decision:
        """Integrate from noise."""
        points = len(observation.state)
        chunk = torch.randn(points, self.horizon * self.action_size, generator=generator)
        for step in range(PASSES):
            time_left = torch.full((points, 1), 1 - step / PASSES)
            chunk = chunk - self.network(torch.cat([observation.state, chunk, time_left], 1)) / PASSES
        return Decision(
            chunk=chunk.unflatten(1, (self.horizon, self.action_size)), executed=torch.full((points,), self.horizon)
        )


class Stored(VisionEncoder):
    """Stands for an encoder whose features were stored: it names them and is never run."""

    name, width, trainable = "stored", FEATURES, False


def trajectories(rows: int, steps: int, state: int, actions: int, cameras: bool) -> TrajectoryBatch:
    """Random trajectories that end in success."""
    draw = torch.Generator().manual_seed(0)
    every = torch.arange(steps + 1).expand(rows, -1)
    features = {
        f"stored/{camera}": Sampled(values=torch.randn(rows, steps + 1, FEATURES, generator=draw), step=every)
        for camera in (CAMERAS if cameras else ())
    }
    return TrajectoryBatch(
        state=torch.randn(rows, steps + 1, state, generator=draw),
        actions=torch.randn(rows, steps, actions, generator=draw),
        mask=torch.ones(rows, steps, dtype=torch.bool),
        end=torch.full((rows,), int(End.SUCCESS)),
        features=features,
    )


class Timed(PolicyProposer):
    """Adds up the seconds that proposing takes, keeping included."""

    seconds = 0.0

    def forward(self, batch: TrajectoryBatch, rows: Tensor, steps: Tensor, n: int) -> Tensor:
        """Propose, and look at the clock."""
        started = time.process_time()
        chunks = super().forward(batch, rows, steps, n)
        self.seconds += time.process_time() - started
        return chunks


def update(
    critic: ActionCritic,
    optimizer: torch.optim.Optimizer,
    batch: TrajectoryBatch,
    rewards: RewardEstimates,
    proposer: PolicyProposer,
    draw: torch.Generator,
) -> tuple[float, float]:
    """One update on transitions drawn anew; returns its seconds by the processor and by the clock."""
    chosen = torch.randperm(batch.mask.numel(), generator=draw)[:TRANSITIONS]
    weight = torch.zeros(batch.mask.numel())
    weight[chosen] = 1.0
    started, clock = time.process_time(), time.perf_counter()
    loss = critic.loss(replace(batch, weight=weight.view(batch.mask.shape)), rewards, proposer)["loss"]
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_([p for p in critic.parameters() if p.requires_grad], 1.0)
    optimizer.step()
    critic.after_step()
    return time.process_time() - started, time.perf_counter() - clock


def measure(
    critic: ActionCritic, policy: SmallFlow, batch: TrajectoryBatch, updates: int, warm: int
) -> dict[str, object]:
    """Take turns; the first ``warm`` rounds fill what is kept and are not counted."""
    proposers = {
        WAYS[0]: Timed(policy, keep=0),
        WAYS[1]: Timed(policy),
        WAYS[2]: Timed(policy, refresh_every=REFRESH),
    }
    critic.fit_scales(batch)
    optimizer = torch.optim.AdamW([p for p in critic.parameters() if p.requires_grad], lr=3e-5, betas=(0.9, 0.95))
    rewards = RewardEstimates(rewards=torch.full_like(batch.weight, -0.01), valid=batch.mask)
    # what is kept after a long run, without its updates: everything once
    rows, steps = torch.ones(len(batch), batch.mask.shape[1] + 1, dtype=torch.bool).nonzero(as_tuple=True)
    proposers[WAYS[1]](batch, rows, steps, critic.target_samples)
    draws = {way: torch.Generator().manual_seed(1) for way in WAYS}  # all see the same transitions
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    clocks: dict[str, list[float]] = {way: [] for way in WAYS}
    asking: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(warm + updates):
        if number == warm:
            for proposer in proposers.values():
                proposer.hits, proposer.misses = 0, 0
        for way in WAYS[number % 3 :] + WAYS[: number % 3]:
            proposer = proposers[way]
            proposer.seconds = 0.0
            took, clock = update(critic, optimizer, batch, rewards, proposer, draws[way])
            if number >= warm:
                seconds[way].append(took)
                clocks[way].append(clock)
                asking[way].append(proposer.seconds)
    found: dict[str, object] = {}
    for way in WAYS:
        ratios = [a / b for a, b in zip(seconds[WAYS[0]], seconds[way], strict=True)]
        proposer = proposers[way]
        found[way] = {
            "seconds": spread(seconds[way]),
            "clock_seconds": spread(clocks[way]),
            "proposing_seconds": spread(asking[way]),
            "times_faster_than_drawn": spread(ratios),
            "answered_from_kept": proposer.hits / max(1, proposer.hits + proposer.misses),
        }
    return found


def settings(quick: bool) -> list[dict[str, object]]:
    """List what is measured: a critic, a policy and trajectories for each setting."""
    networks = {
        "perceptrons": ChunkPerceptron(24, 4, horizon=8, hidden=(256, 256, 256)),
        "transformer": ChunkTransformer(24, 4, horizon=8, width=64, layers=2, heads=4),
    }
    listed: list[dict[str, object]] = [
        {
            "name": f"{name}, {samples} next chunk{'s' * (samples > 1)}",
            "samples": samples,
            "updates": 9 if quick else 60,
            "warm": 3 if quick else 2 * REFRESH,
            "critic": network,
            "policy": SmallFlow(24, 4, 8),
            "batch": trajectories(16, 120, 24, 4, cameras=False),
        }
        for name, network in networks.items()
        for samples in (1, 4)
    ]
    if not quick:
        network = ChunkTransformer(
            32, 14, horizon=50, width=256, layers=6, heads=8, reads=CriticInputs(cameras=CAMERAS, encoder=Stored())
        )
        listed.append(
            {
                "name": "the paper's size",
                "samples": 1,
                "updates": 3,
                "warm": 1,
                "critic": network,
                "policy": SmallFlow(32, 14, 50),
                "batch": trajectories(8, 120, 32, 14, cameras=True),
            }
        )
    return listed


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = command_line(__doc__, "critic_step")
    parser.add_argument("--quick", action="store_true", help="a few updates of the small critic")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    results: dict[str, object] = {
        "device": "cpu, 1 thread",
        "torch": torch.__version__,
        "transitions": TRANSITIONS,
        "passes_of_the_policy": PASSES,
        "load_before": os.getloadavg()[0],
        "note": "processor seconds; the machine was busy with other work, and the ways took turns: compare ratios",
    }
    table = Table(
        "critic", "next chunks", "CPU s per update", "range", "of it proposing", "times faster", "range", "kept"
    )
    for setting in settings(arguments.quick):
        critic, policy, batch = setting["critic"], setting["policy"], setting["batch"]
        assert isinstance(critic, ChunkNetwork) and isinstance(policy, SmallFlow)
        assert isinstance(batch, TrajectoryBatch)
        samples, updates, warm = (int(str(setting[name])) for name in ("samples", "updates", "warm"))
        aloe = ActionCritic(critic, target_samples=samples, logged=LoggedChunks(across_replans=True))
        aloe.logged._warned = True  # random actions are open-loop: there is nothing to warn of
        found = measure(aloe, policy, batch, updates, warm)
        size = sum(p.numel() for p in critic.parameters())
        results[str(setting["name"])] = {"updates": updates, "parameters": size, **found}
        for way, figures in found.items():
            assert isinstance(figures, dict)
            took, faster = figures["seconds"], figures["times_faster_than_drawn"]
            table.add_row(
                str(setting["name"]),
                way,
                f"{took['median']:.4f}",
                f"{took['low']:.4f}-{took['high']:.4f}",
                f"{figures['proposing_seconds']['median'] / took['median']:.0%}",
                f"{faster['median']:.2f}",
                f"{faster['low']:.2f}-{faster['high']:.2f}",
                f"{figures['answered_from_kept']:.0%}",
            )
    results["load_after"] = os.getloadavg()[0]
    Console(width=140).print(table)
    write_result(arguments.out, results)


if __name__ == "__main__":
    main()
