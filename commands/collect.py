"""The ``collect`` command: simulated episodes of chosen quality, or of a policy, as a LeRobot data set."""

import argparse
import importlib
from collections.abc import Sequence

from ..envs.collect import collect_dataset
from ..envs.quality import POLICY


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Collect episodes, write them, and print a summary.

    Raises:
        ValueError: If an option makes no sense for the task, or the policy is not for this task.
        FileExistsError: If the output folder holds anything.
        OSError: If it cannot be written.
    """
    actor = None
    if options.policy is not None:
        # imported by name and only here, so that collecting without a policy needs none
        actor = importlib.import_module(".collect_policy", __package__).open_actor(options)
    elif options.encoder is not None:
        raise ValueError("--encoder makes the features that a policy reads: name it with --policy DIR")
    elif options.deterministic is not None:
        raise ValueError("--sampled and --deterministic say how a policy acts: name it with --policy DIR")
    quality = POLICY if actor is not None and options.quality == "mixed" else options.quality
    report = collect_dataset(
        env=options.env,
        out=options.out,
        episodes=options.episodes,
        seed=options.seed,
        quality=parse_quality(quality),
        frames=options.frames,
        image_size=options.image_size,
        cameras=options.camera,
        split=options.split,
        horizon=options.horizon,
        noise=options.noise,
        frames_every=options.frames_every,
        actor=actor,
    )
    print("\n".join(report.lines()))
    return 0


def parse_quality(text: str) -> str | dict[str, float]:
    """Parse the name of a quality, or shares of several, such as ``expert=0.5,random=0.5``.

    Raises:
        ValueError: If a share is no number.
    """
    if "=" not in text:
        return text
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise ValueError(f"--quality {text}: expected shares such as expert=0.5,random=0.5") from None
    return shares
