"""The ``labels`` command: training samples, exactly as training would draw them, as a picture to check."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from rich.console import Console
from rich.table import Table

from ..core.batch import TrajectoryBatch
from ..datasets.label_sheet import describe, draw_sheet
from ..datasets.labels import KINDS
from ..datasets.module import EpisodeData
from ..datasets.opening import open_dataset
from .fit import resolve_config, tidy

_THUMBNAIL = 96
"""Shorter side of the frames on the sheet, in pixels."""


def run(data: Path | None, config: str | None, rest: Sequence[str], show: int, seed: int | None, out: Path) -> int:
    """Draw samples, count the kinds and how much of each target is known, and write the sheet.

    Args:
        data: Folder of a data set, to be drawn from with the default labels.
        config: YAML file whose ``data`` section says how to draw instead.
        rest: Overrides of that section, such as ``--data.init_args.path DIR``.
        show: Samples to draw.
        seed: Of the draws; None takes the one of the section.
        out: The PNG to write.

    Returns:
        0.

    Raises:
        ValueError: If neither or both of data and config are given, or something of them makes no sense.
    """
    if (data is None) == (config is None):
        raise ValueError("expected --data DIR, or --config FILE.yaml with a data section: one of them")
    if show < 1:
        raise ValueError(f"--show {show}: expected at least one sample")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {out.parent} to write {out.name} into")
    module = _of_folder(cast(Path, data), seed) if config is None else _of_config(config, rest, seed)
    module.setup("fit")
    samples = [sample for sample, _ in zip(_rows(module), range(show), strict=False)]
    draw_sheet(samples, out)
    _print(samples)
    print(out)
    return 0


def _of_folder(data: Path, seed: int | None) -> EpisodeData:
    cameras = open_dataset(str(data)).cameras
    return EpisodeData(
        str(data), cameras=cameras[:1], frame_size=_THUMBNAIL if cameras else None, seed=0 if seed is None else seed
    )


def _of_config(config: str, rest: Sequence[str], seed: int | None) -> EpisodeData:
    """The data section of a configuration, reading frames even where training would read cached features."""
    with resolve_config(config).open() as file:
        section = cast(dict[str, Any], yaml.safe_load(file) or {}).get("data")
    if section is None:
        raise ValueError(f"{config} has no data section: expected a configuration of `guerdon fit`")
    parser = ArgumentParser(exit_on_error=False, prog="guerdon labels")
    parser.add_subclass_arguments(EpisodeData, "data", required=True)
    try:
        parsed = cast(Any, parser.parse_args(list(rest), namespace=parser.parse_object({"data": section})))
        arguments = parsed.data.init_args
        arguments.encoder, arguments.cache = None, None
        arguments.frame_size = (arguments.frame_size or _THUMBNAIL) if arguments.cameras else None
        if seed is not None:
            arguments.seed = seed
        return cast(EpisodeData, cast(Any, parser.instantiate_classes(parsed)).data)
    except (ArgumentError, ValueError) as error:
        raise ValueError(tidy(str(error))) from error


def _rows(module: EpisodeData) -> Iterator[TrajectoryBatch]:
    """Training samples one by one, epoch after epoch."""
    loader = module.train_dataloader()
    epoch = 0
    while True:
        cast(Any, loader.sampler).set_epoch(epoch)
        for batch in loader:
            yield from (batch[row] for row in range(len(batch)))
        epoch += 1


def _print(samples: Sequence[TrajectoryBatch]) -> None:
    kinds = Counter(describe(sample) for sample in samples)
    table = Table("kind", "samples", "progress known", "success known", "ends at progress")
    for kind in (k for k in KINDS if kinds[k]):
        chosen = [s for s in samples if describe(s) == kind]
        known = [_known(chosen, name) for name in ("progress", "success")]
        ends = [float(s.labels["progress"].values[0, int(s.observed[0].sum()) - 1]) for s in chosen if _ends_known(s)]
        mean = f"{sum(ends) / len(ends):.2f}" if ends else "unknown"
        table.add_row(kind, str(kinds[kind]), *known, mean)
    Console().print(table)


def _known(samples: Sequence[TrajectoryBatch], name: str) -> str:
    made = sum(int(s.observed.sum()) for s in samples)
    return f"{sum(int(s.labels[name].valid.sum()) for s in samples) / max(made, 1):.0%}"


def _ends_known(sample: TrajectoryBatch) -> bool:
    return bool(sample.labels["progress"].valid[0, int(sample.observed[0].sum()) - 1])
