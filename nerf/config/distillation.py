"""Options of score distillation: the method, its weight and timesteps, and the numbers of single methods."""

from dataclasses import dataclass

from nerf.config.limits import FRACTION
from nerf.config.parser import RUN, Group, option
from nerf.core.ranges import above, between, each, ordered

METHODS = ("sds", "sjc", "vsd", "csd", "nfsd", "ism", "sdi")  # all but the first have a preset of their published settings
T_SCHEDULES = ("uniform", "linear", "sqrt", "dreamtime")


@dataclass(frozen=True)
class DistillationConfig(Group):
    """How a diffusion model guides: part of the options of guidance."""

    distillation: str = option(
        "sds", "method of score distillation (docs/distillation.md)", choices=METHODS, extensible=True, kept=RUN
    )
    guidance_rescale: tuple[float, ...] = option(
        (0.0,),
        "CFG rescale (Lin et al. 2023): share of the guided prediction that gets the standard deviation of the conditional one",
        check=FRACTION,
        each=1,
    )
    guidance_weighting: tuple[str, ...] = option(
        ("sds",),
        "w(t) of score distillation: sds is sigma^2, uniform 1, fantasia alpha sigma^2, x0 sigma / alpha",
        choices=("sds", "uniform", "fantasia", "x0"),
        each=1,
    )
    guidance_anneal: tuple[float, ...] = option(
        (0.0,),
        "linear decrease of the CFG scale towards 1 over the run (0: constant, 1: ends at 1)",
        check=FRACTION,
        each=1,
    )
    t_range: tuple[float, ...] = option(
        (0.02, 0.98), "range of diffusion timesteps, as fractions of the schedule", check=ordered(0, 1, "fractions"), each=2
    )
    t_anneal: tuple[float, ...] = option(
        (0.0,),
        "uniform: linear decrease of the upper end of --t_range towards the lower over the run (0: constant, 1: to the lower)",
        check=FRACTION,
        each=1,
    )
    t_anneal_low: tuple[float, ...] = option(
        (0.0,),
        "the same of the lower end, which begins this share of the width of --t_range higher and ends at its place",
        check=FRACTION,
        each=1,
    )
    anneal_span: tuple[float, ...] = option(
        (0.0, 1.0),
        "part of the run, as fractions, over which --t_anneal, --t_anneal_low and --guidance_anneal act",
        check=ordered(0, 1, "fractions"),
        each=2,
    )
    t_schedule: str = option(
        "uniform",
        "diffusion timesteps: at random in --t_range, or falling through it over the run, the same for all views",
        choices=T_SCHEDULES,
    )
    debias_gradient: tuple[float, float] = option(
        (0.0, 0.0),
        "D-SDS: bound on each element of the gradient at the encoded image, at the start and at the end (0 0: none)",
        check=ordered(0, 1e6, "bounds"),
    )
    debias_prompt: str | None = option(
        None,
        "D-SDS: folder of a masked language model (BERT); words that contradict a view are left out of its prompt",
        path=True,
    )
    csd_negative: float = option(
        0.5, "CSD: share of the negative prompt in what is subtracted, reached half-way through the run", check=between(0, 10)
    )
    ism_interval: tuple[int, int] = option(
        (100, 50),
        "ISM: timesteps between the two that are compared, at the start and after 0.3 of the run",
        check=each(between(1, 1000)),
    )
    ism_stride: int = option(200, "ISM: timesteps of one step of the inversion", check=between(1, 1000))
    sdi_steps: int = option(10, "SDI: steps of an inversion over the whole schedule", check=between(1, 1000))
    sdi_scale: float = option(-7.5, "SDI: guidance scale of the inversion", check=between(-1000, 1000))
    sdi_eta: float = option(0.3, "SDI: noise of the inversion, as a share of DDPM's", check=between(0, 1))
    lora_rank: int = option(4, "VSD: rank of the LoRA", check=between(1, 1024), kept=RUN)
    lora_lr: float = option(1e-4, "VSD: learning rate of the LoRA", check=above(0, 1))
