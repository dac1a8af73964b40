"""The UNet of a guided step, as the flags for it run it: python -m benchmarks.guidance --device cuda

A UNet of Stable Diffusion 2.1's layout with random weights predicts for one view, conditional and unconditional, without
gradients: plain, with --cudnn_benchmark, with --tf32 (float32 alone), and compiled as --compile_guidance does. With --tiny the
widths are cut down, for a CPU. Compiling takes a minute or more for each mode.
"""

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks import timing
from guidance.diffusion.loader import compile_network, require_diffusers
from nerf.core.script import Parser, run

FULL = {"block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20)}
TINY = {"block_out_channels": (32, 32, 32, 32), "cross_attention_dim": 16, "attention_head_dim": 2}
COMPILED = ("default", "reduce-overhead")  # --compile_guidance


@contextlib.contextmanager
def settings(tf32: bool = False, cudnn_benchmark: bool = False) -> Iterator[None]:
    """What the flags of these names set, for a block."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.benchmark = cudnn_benchmark
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.benchmark = before[1]


def unet(arguments: argparse.Namespace) -> torch.nn.Module:
    """A UNet with the same random weights at every call."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(arguments.device):
        made = UNet2DConditionModel(
            sample_size=64, use_linear_projection=True, norm_num_groups=32, **(TINY if arguments.tiny else FULL)
        )
    made = made.to(arguments.dtype).requires_grad_(False).eval()
    return made.to(memory_format=torch.channels_last) if arguments.device.startswith("cuda") else made


def contenders(arguments: argparse.Namespace) -> dict[str, Callable[[], Tensor]]:
    """Each way to run the UNet, checked against the plain one."""
    device, dtype = torch.device(arguments.device), arguments.dtype
    network, size = unet(arguments), 8 if arguments.tiny else 64
    noisy = torch.randn(2, 4, size, size, device=device, dtype=dtype)
    text = torch.randn(2, 77, network.config.cross_attention_dim, device=device, dtype=dtype)
    t = torch.tensor([500, 500], device=device)

    def run(which: torch.nn.Module, **flags: bool) -> Callable[[], Tensor]:
        @torch.no_grad()
        def predict() -> Tensor:
            with settings(**flags):
                return which(noisy, t, encoder_hidden_states=text, return_dict=False)[0]

        return predict

    chosen = {"plain": run(network)}
    if device.type == "cuda":
        chosen["--cudnn_benchmark"] = run(network, cudnn_benchmark=True)
        if dtype == torch.float32:
            chosen["--tf32"] = run(network, tf32=True)
    for mode in () if arguments.no_compile else COMPILED:
        compiled = unet(arguments)
        compile_network(compiled, mode, device)
        chosen[f"--compile_guidance {mode}"] = run(compiled)
    expected = chosen["plain"]().float()
    for name, work in chosen.items():
        alike = torch.cosine_similarity(work().float().flatten(), expected.flatten(), dim=0)
        assert alike > 0.999, f"{name}: expected the plain prediction, got one of cosine {alike:.4f}"
    return chosen


def main() -> None:
    """Run the comparison and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="narrow layers and 8x8 latents")
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--float32", action="store_true", help="weights in float32; half precision on a GPU otherwise")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    require_diffusers()
    half = arguments.device.startswith("cuda") and not arguments.float32
    arguments.dtype = torch.float16 if half else torch.float32
    timing.prepare(arguments)
    timings = timing.compare(contenders(arguments), arguments.rounds, arguments.device)
    title = f"UNet of Stable Diffusion 2.1{', cut down' if arguments.tiny else ''}, 2 predictions, {arguments.dtype}"
    print(timing.table(title, timings, "plain"))
    timing.save(arguments.json, arguments.device, {title: timings})


if __name__ == "__main__":
    sys.exit(run(main))
