"""Which outcome labels look wrong? Episodes where a reward model and the recorded success disagree most.

    guerdon score --model RUN/model --data DATASET --out SCORES
    python examples/doubtful_labels.py --data DATASET --scores SCORES

Worth a look in the report: a mislabelled episode, or one that fools the model. Episodes without a label or without a
score are counted, never judged.
"""

import argparse
import math
from pathlib import Path

from rich.console import Console
from rich.table import Table

from guerdon import BadEpisodeError, open_dataset, read_scores


def recorded_outcomes(data: Path) -> dict[int, float]:
    """Success by episode; episodes without a label are left out."""
    dataset = open_dataset(data)
    found: dict[int, float] = {}
    for place in range(len(dataset)):
        try:
            episode = dataset[place]
        except BadEpisodeError:
            continue  # it has no score either, and is counted there
        if episode.success is not None:
            found[episode.index] = episode.success
    return found


def main() -> None:
    """Print the disagreements, the largest first."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--scores", type=Path, required=True)
    parser.add_argument("--show", type=int, default=10)
    options = parser.parse_args()
    outcomes = recorded_outcomes(options.data)
    scored = read_scores(options.scores).episodes
    said = {e.index: e.last("success") for e in scored if e.usable and not math.isnan(e.last("success"))}
    both = sorted(said.keys() & outcomes.keys(), key=lambda i: -abs(said[i] - outcomes[i]))
    table = Table("episode", "recorded", "model says", "disagreement")
    for index in both[: options.show]:
        gap = abs(said[index] - outcomes[index])
        table.add_row(str(index), f"{outcomes[index]:.2f}", f"{said[index]:.2f}", f"{gap:.2f}")
    console = Console()
    console.print(table)
    console.print(
        f"{len(both)} episodes compared; {len(scored) - len(said)} without a score, "
        f"{len(said.keys() - outcomes.keys())} without a label"
    )


if __name__ == "__main__":
    main()
