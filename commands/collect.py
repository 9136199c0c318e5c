"""The ``collect`` command: simulated episodes of chosen quality as a LeRobot data set."""

import argparse
from collections.abc import Sequence

from ..envs.collect import collect_dataset


def run(options: argparse.Namespace, rest: Sequence[str]) -> int:
    """Collect episodes, write them, and print a summary.

    Raises:
        ValueError: If an option makes no sense for the task.
        FileExistsError: If the output folder holds anything.
        OSError: If it cannot be written.
    """
    report = collect_dataset(
        env=options.env,
        out=options.out,
        episodes=options.episodes,
        seed=options.seed,
        quality=parse_quality(options.quality),
        frames=options.frames,
        image_size=options.image_size,
        cameras=options.camera,
        split=options.split,
        horizon=options.horizon,
        noise=options.noise,
        frames_every=options.frames_every,
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
