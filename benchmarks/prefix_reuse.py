"""Dense scores by a vision-language model: reading every frame once against asking anew for every prefix.

    python benchmarks/prefix_reuse.py [--frames 4 8 16 32 64] [--repeats 3]

A small Qwen2.5-VL and a small SmolVLM with random weights score one episode of T frames after every frame. Both ways
run in turn, ``repeats`` times, in one process with one thread; seconds are the least of each. Pictures are those that
enter the vision tower, counted there.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from common import command_line
from guerdon.backbones.vlm import VLM
from guerdon.core.batch import Sampled, TrajectoryBatch
from guerdon.rewards.frame_windows import FrameWindows
from guerdon.rewards.zero_shot.vlm import CompletionLikelihood
from guerdon.testing.vlm_checkpoints import tiny_vlm

RESULT = Path(__file__).parent / "results" / "prefix_reuse.json"
PIXELS = 64
OPTIONS: dict[str, dict[str, Any]] = {
    "qwen2_5_vl": {"size": {"shortest_edge": 64, "longest_edge": PIXELS**2}},  # 64 tokens a picture
    "smolvlm": {},  # 4 tokens a picture
}


def episode(count: int) -> TrajectoryBatch:
    frames = torch.randint(
        0, 256, (1, count, 3, PIXELS, PIXELS), generator=torch.Generator().manual_seed(count), dtype=torch.uint8
    )
    return TrajectoryBatch(
        actions=torch.zeros(1, count - 1, 1),
        state=torch.zeros(1, count, 1),
        mask=torch.ones(1, count - 1, dtype=torch.bool),
        frames={"video": Sampled(values=frames, step=torch.arange(count)[None])},
        instructions=("open the drawer",),
    )


def count_pictures(vlm: VLM) -> list[int]:
    """Record the number of pictures in a list whenever some enter the vision tower."""
    seen: list[int] = []
    base = vlm.model.base_model
    tower, qwen = (base.visual, True) if hasattr(base, "visual") else (base.vision_model, False)

    def note(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if qwen:
            seen.append(len(kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]))
        else:
            seen.append(len(kwargs["pixel_values"] if "pixel_values" in kwargs else args[0]))

    tower.register_forward_pre_hook(note, with_kwargs=True)
    return seen


def measure(vlm: VLM, counts: list[int], repeats: int) -> list[dict[str, float]]:
    seen = count_pictures(vlm)
    ways = {
        name: CompletionLikelihood(
            vlm, ["video"], min_mass=0.0, reuse=name == "once", frames=FrameWindows(context_frames=8, max_frames=10_000)
        )
        for name in ("once", "anew")
    }
    rows: list[dict[str, float]] = []
    for count in counts:
        batch, row = episode(count), {"frames": float(count)}
        values: dict[str, torch.Tensor] = {}
        for _ in range(repeats):
            for name, model in ways.items():
                seen.clear()
                start = time.perf_counter()
                estimate = model(batch)
                taken = time.perf_counter() - start
                values[name] = torch.stack(list(estimate.terms.values()))  # log-probabilities: nothing is saturated
                row[f"{name}_seconds"] = min(taken, row.get(f"{name}_seconds", float("inf")))
                row[f"{name}_pictures"] = float(sum(seen))
        row["difference"] = float((values["once"] - values["anew"]).abs().max())
        row["ratio"] = row["anew_seconds"] / row["once_seconds"]
        rows.append(row)
        print(
            f"{count:>7} {row['once_pictures']:>9.0f} {row['anew_pictures']:>9.0f} {row['once_seconds']:>9.2f} "
            f"{row['anew_seconds']:>9.2f} {row['ratio']:>7.1f} {row['difference']:>11.1e}"
        )
    return rows


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16, 32, 64])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"width": options.width, "layers": options.layers, "repeats": options.repeats}
    with tempfile.TemporaryDirectory() as place:
        for name, image_options in OPTIONS.items():
            folder = tiny_vlm(
                Path(place) / name,
                "qwen2_5_vl" if name == "qwen2_5_vl" else "smolvlm",
                width=options.width,
                layers=options.layers,
                max_tokens=32_768,
            )
            vlm = VLM(str(folder), image_options=image_options, batch_size=4)
            vlm.check_causal()  # once for a model, before the clock runs
            print(f"{name}\n frames      once      anew      once      anew   ratio  difference")
            print("         pictures  pictures   seconds   seconds              log p")
            results[name] = measure(vlm, options.frames, options.repeats)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
