"""Tokens per second and peak memory of a VLA policy on BLIP-2, frozen and with LoRA, with random weights.

    python benchmarks/vla_memory.py --size tiny                    # two cores, a minute
    python benchmarks/vla_memory.py --size 2.7b --device cuda      # one GPU; writes 7.5 GB to --folder first

A checkpoint of that size is written with random weights and opened as a published one. Sizes: tiny (for tests), 125m
(ViT of 12 layers of width 768, OPT 125M) and 2.7b (Salesforce/blip2-opt-2.7b: ViT-g, Q-Former, OPT 2.7B). The
tokeniser is a small one, so an instruction of a few words has some more tokens than with the published one.

Every way runs in a process of its own, --steps times after one warm-up: ``act`` decides; ``frozen`` clones with a
frozen backbone that encodes every picture anew; ``cached`` the same out of the cache; ``lora`` clones with low-rank
updates of rank 8 of q_proj and v_proj; ``lora, checkpointed`` keeps only the inputs of layers for the backward pass.
Tokens are those of the prompts, pictures included. Peak memory is what torch allocated on a GPU, and the resident
memory of the process on a CPU, loading included.
"""

import multiprocessing
import resource
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table
from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

from common import command_line, write_result
from guerdon.backbones.latent_cache import LatentCache
from guerdon.backbones.lora import LoRA
from guerdon.backbones.vlm import VLM
from guerdon.backbones.vlm_tokens import VLMBackbone
from guerdon.core.batch import Observation
from guerdon.policies.vla import VLAPolicy
from guerdon.testing.vlm_checkpoints import tiny_vlm

Way = Literal["act", "frozen", "cached", "lora", "lora, checkpointed"]
WAYS: tuple[Way, ...] = ("act", "frozen", "cached", "lora", "lora, checkpointed")
INSTRUCTION = "open the drawer and push the red block to the left"
VISION = {
    "125m": {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "2.7b": {},  # the defaults are those of ViT-g
}
TEXT = {
    "125m": {"hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
    "2.7b": {"hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32, "num_attention_heads": 32},
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is measured."""

    folder: str
    device: str
    dtype: Literal["float32", "bfloat16"]
    batch: int
    steps: int


def write_checkpoint(size: str, folder: Path) -> None:
    """Write a BLIP-2 of a size with random weights, in bfloat16, with the tokeniser of the tiny one."""
    if size == "tiny":
        tiny_vlm(folder, "blip2")
        return
    with tempfile.TemporaryDirectory() as parent:
        tiny = tiny_vlm(Path(parent) / "tiny", "blip2")
        small: Any = Blip2Config.from_pretrained(tiny)
        processor: Any = Blip2Processor.from_pretrained(tiny)
    text: dict[str, Any] = {**TEXT[size], "model_type": "opt", "vocab_size": 50304, "max_position_embeddings": 2048}
    text |= {"word_embed_proj_dim": text["hidden_size"], "pad_token_id": small.text_config.pad_token_id}
    text |= {"bos_token_id": small.text_config.bos_token_id, "eos_token_id": small.text_config.eos_token_id}
    config = Blip2Config(vision_config=VISION[size], text_config=text, image_token_index=small.image_token_id)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model: Any = Blip2ForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(torch.float32)
    model.save_pretrained(folder)
    pictures = BlipImageProcessor(size={"height": 224, "width": 224})
    Blip2Processor(pictures, processor.tokenizer, num_query_tokens=config.num_query_tokens).save_pretrained(folder)


def measure(way: Way, setting: Setting) -> dict[str, float]:
    """Measure one way in this process."""
    torch.manual_seed(0)
    device = torch.device(setting.device)
    lora = LoRA(rank=8, targets=["q_proj", "v_proj"]) if way.startswith("lora") else None
    checkpointed = way == "lora, checkpointed"
    vlm = VLM(setting.folder, dtype=setting.dtype, lora=lora, gradient_checkpointing=checkpointed)
    policy = VLAPolicy(VLMBackbone(vlm, ["eye"]), action_size=7, cache=LatentCache() if way == "cached" else None)
    policy.to(device).train(way != "act")
    frames = torch.randint(0, 256, (setting.batch, 3, 128, 128), dtype=torch.uint8)
    seen = Observation(
        state=torch.zeros(setting.batch, 0), frames={"eye": frames}, instructions=(INSTRUCTION,) * setting.batch
    )
    chunk = torch.randn(setting.batch, 1, 7, device=device)
    mask = torch.ones(setting.batch, 1, dtype=torch.bool, device=device)
    learning = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, 1e-4)

    def step() -> None:
        if way == "act":
            policy.act(seen)
            return
        optimizer.zero_grad()
        policy.imitation_loss(seen, chunk, mask).mean().backward()
        optimizer.step()

    step()  # the warm-up also fills the cache
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(setting.steps):
        step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - start) / setting.steps
    with torch.no_grad():
        tokens = int(policy.eval().backbone(seen[0]).mask.sum()) * setting.batch
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resident
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "peak_bytes": float(peak),
        "weights": float(sum(p.numel() for p in policy.parameters())),
        "learning": float(sum(p.numel() for p in learning)),
    }


def main() -> None:
    """Write the checkpoint, measure every way, print a table, and write JSON."""
    parser = command_line(__doc__, "vla_memory")
    parser.add_argument("--size", choices=["tiny", *TEXT], default="tiny")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], help="default: float32 on a CPU, else bfloat16")
    parser.add_argument("--batch", type=int, default=8, help="observations in a minibatch; default: %(default)s")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each way; default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, help="where the checkpoint is written and kept; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as parent:
        folder = options.folder or Path(parent) / options.size
        if not folder.exists():
            write_checkpoint(options.size, folder)
        dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
        setting = Setting(
            folder=str(folder), device=options.device, dtype=dtype, batch=options.batch, steps=options.steps
        )
        results: dict[str, dict[str, float]] = {}
        for way in WAYS:
            with multiprocessing.get_context("spawn").Pool(1) as own:
                results[way] = own.apply(measure, (way, setting))
    table = Table("way", "ms a step", "tokens/s", "peak GB", "M weights", "M learning")
    for way, found in results.items():
        table.add_row(
            way,
            f"{1e3 * found['seconds']:.1f}",
            f"{found['tokens_per_second']:,.0f}",
            f"{found['peak_bytes'] / 1e9:.2f}",
            f"{found['weights'] / 1e6:,.2f}",
            f"{found['learning'] / 1e6:,.2f}",
        )
    Console().print(table)
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "CPU"
    write_result(
        options.out, {"size": options.size, "device": name, "batch": options.batch, "dtype": dtype, "ways": results}
    )


if __name__ == "__main__":
    main()
