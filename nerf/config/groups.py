"""Every option of a run, in groups: each field is a command-line flag with its type, default, help and check.

A default differs from the peer's only where docs/flags.md says why. Angles are degrees, lengths scene units.
"""

import re
from dataclasses import dataclass
from math import inf

from nerf.config.parser import Check, Group, above, at_least, between, option, ordered, power_of_two

SIZE = between(1, 8192)
FRACTION = between(0, 1)
STAGES = ("nerf", "dmtet")  # of a run, in their order
DEVICE = Check(lambda v: re.fullmatch(r"auto|cpu|cuda(:\d+)?", v) is not None, "auto, cpu, cuda or cuda:N")
KNOWN = "training from image prompts"


@dataclass(frozen=True)
class PromptConfig(Group):
    """What to make"""

    text: str | None = option(None, "the prompt, in quotes", fixed=True)
    negative: str = option("", "what the picture should not be", fixed=True)
    image: str | None = option(None, "a picture to start from, RGBA", unbuilt=KNOWN)
    image_config: str | None = option(None, "a CSV of several pictures", unbuilt=KNOWN)
    known_view_interval: int = option(4, "every N-th step trains the pictures of --image", check=at_least(1), unbuilt=KNOWN)
    known_view_scale: float = option(1.5, "render size of the known view, times --w and --h", check=above(0), unbuilt=KNOWN)
    known_view_noise_scale: float = option(2e-3, "camera noise of the known view", check=at_least(0), unbuilt=KNOWN)


@dataclass(frozen=True)
class DataConfig(Group):
    """Posed photographs"""

    data: str | None = option(None, "folder of posed photographs: transforms.json, a COLMAP model or NeuS cameras", fixed=True)
    num_rays: int = option(4096, "random rays per step", check=between(1, 2**22))
    holdout: int = option(
        8, "every N-th photograph is kept for the test if the data has no split (0 none)", check=at_least(0), fixed=True
    )
    downscale: int = option(1, "shrink the photographs by this factor on loading", check=between(1, 64), fixed=True)
    data_background: str = option(
        "random",
        "colour behind photographs with alpha while training; tests use white unless black is asked for",
        choices=("random", "white", "black"),
    )


@dataclass(frozen=True)
class GuidanceConfig(Group):
    """Guidance by a diffusion model"""

    guidance: tuple[str, ...] = option(
        ("SD",),
        "what judges the renders",
        choices=("SD", "IF", "zero123", "clip"),
        unbuilt=("IF", "zero123", "clip"),
        fixed=True,
    )
    sd_version: str = option(
        "auto",
        "which weights: auto takes 2.1, 2.0 or 1.5 if already on this machine, else the embedded prior",
        choices=("auto", "embedded", "1.5", "2.0", "2.1"),
        fixed=True,
    )
    hf_key: str | None = option(None, "a diffusers folder or hub id, in place of --sd_version", fixed=True)
    IF: bool = option(False, "DeepFloyd IF in place of Stable Diffusion", unbuilt="DeepFloyd IF guidance")
    guidance_scale: float = option(100.0, "classifier-free guidance scale", check=at_least(0))
    guidance_rescale: float = option(0.0, "share by which guided colours get back the spread of plain ones", check=FRACTION)
    guidance_weighting: str = option(
        "sds", "weight of a diffusion time: sigma^2, 1, or alpha sigma^2", choices=("sds", "uniform", "fantasia")
    )
    guidance_anneal: float = option(
        0.0,
        "how far the guidance scale has come to 1, the plain prompt, at the last step (0 not at all, 1 all the way)",
        check=FRACTION,
    )
    prior_detail: bool = option(True, "embedded prior: sharpen its estimates pixel by pixel, a fifth more time")
    t_range: tuple[float, float] = option((0.02, 0.98), "diffusion times, as fractions", check=ordered(0, 1, "fractions"))
    t_anneal: float = option(
        0.0,
        "how far the upper end of --t_range has come down towards the lower at the last step (0 not at all, 1 all the way)",
        check=FRACTION,
    )
    angle_front: float = option(
        90.0,
        "view words: degrees of azimuth that count as front; where they end, front and side weigh the same",
        check=between(20, 160),
    )
    angle_overhead: float = option(
        30.0,
        "view words: polar angle at which overhead and the others weigh the same; bottom mirrors it",
        check=between(10, 80),
    )
    lambda_guidance: float = option(1.0, "weight of the guidance", check=at_least(0))
    perpneg: bool = option(False, "Perp-Neg: push away from the wrong view words")
    negative_w: float = option(-2.0, "Perp-Neg: weight of the wrong view words, 0 to -4", check=between(-100, 0))
    front_decay_factor: float = option(2.0, "Perp-Neg: decay near the front", check=at_least(0))
    side_decay_factor: float = option(10.0, "Perp-Neg: decay near the side", check=at_least(0))
    vram_O: bool = option(False, "less memory for the diffusion model, somewhat slower")
    save_guidance: bool = option(False, "write what the guidance sees and predicts to guidance/")
    save_guidance_interval: int = option(10, "steps between two of them", check=at_least(1))
    zero123_config: str = option(
        "./pretrained/zero123/sd-objaverse-finetune-c_concat-256.yaml", "zero123 model file", unbuilt="zero123 guidance"
    )
    zero123_ckpt: str = option("pretrained/zero123/zero123-xl.ckpt", "zero123 weights", unbuilt="zero123 guidance")
    zero123_grad_scale: str = option("angle", "zero123 gradient scale", choices=("angle", "None"), unbuilt="zero123 guidance")


@dataclass(frozen=True)
class CameraConfig(Group):
    """Cameras (degrees; polar 0 is above, azimuth 0 the front)"""

    batch_size: int = option(1, "views per step", check=between(1, 256))
    w: int = option(64, "render width while training", check=SIZE)
    h: int = option(64, "render height while training", check=SIZE)
    radius_range: tuple[float, float] = option((3.0, 3.5), "distance of the camera", check=ordered(1e-3, inf, "distances"))
    theta_range: tuple[float, float] = option((45.0, 105.0), "polar angle", check=ordered(0, 180, "angles in degrees"))
    phi_range: tuple[float, float] = option((-180.0, 180.0), "azimuth", check=ordered(-360, 360, "angles in degrees"))
    fovy_range: tuple[float, float] = option(
        (10.0, 30.0), "vertical field of view", check=ordered(0.1, 170, "angles in degrees")
    )
    default_radius: float = option(3.2, "distance of the default view (video, six views)", check=above(0))
    default_polar: float = option(90.0, "polar angle of the default view", check=between(0, 180))
    default_azimuth: float = option(0.0, "azimuth of the default view", check=between(-360, 360))
    default_fovy: float = option(20.0, "vertical field of view of the default view", check=between(0.1, 170))
    half_size_ratio: float = option(0.0, "first part of the run that renders at half of --w and --h", check=FRACTION)
    jitter_pose: bool = option(False, "jitter the cameras")
    jitter_center: float = option(0.2, "jitter of the position", check=at_least(0))
    jitter_target: float = option(0.2, "jitter of the point looked at", check=at_least(0))
    jitter_up: float = option(0.02, "jitter of the up direction", check=at_least(0))
    uniform_sphere_rate: float = option(0.0, "share of views drawn evenly over the sphere", check=FRACTION)
    progressive_view: bool = option(False, "start near the default view and widen the ranges")
    progressive_view_init_ratio: float = option(0.2, "share of the ranges at the start", check=FRACTION)


@dataclass(frozen=True)
class FieldConfig(Group):
    """Field"""

    backbone: str = option(
        "grid",
        "hash grid with a small MLP, or frequencies with a larger one",
        choices=("grid", "vanilla", "grid_tcnn", "grid_taichi"),
        unbuilt=("grid_tcnn", "grid_taichi"),
        fixed=True,
    )
    bound: float = option(1.0, "half the side of the scene's box", check=between(1e-3, 128), fixed=True)
    bg_radius: float = option(1.4, "above 0: a learned background; 0 or less: a plain one", fixed=True)
    density_activation: str = option("exp", "activation of the density", choices=("exp", "softplus"), fixed=True)
    density_thresh: float = option(10.0, "density above which a cell counts as occupied, at most", check=above(0))
    density_bias: float = option(0.0, "raw density of a young field away from the blob", fixed=True)
    blob_density: float = option(5.0, "height of the starting blob", fixed=True)
    blob_radius: float = option(0.2, "radius of the starting blob", check=above(0), fixed=True)
    normals: str = option(
        "analytic", "surface normals: derivative of the density, or six differences", choices=("analytic", "finite")
    )
    progressive_level: bool = option(False, "start with the coarse levels of the encoder and add the fine ones")
    levels: int = option(16, "levels of the grid", flag="grid_levels", check=between(1, 32), fixed=True)
    level_dim: int = option(2, "features per level: 1, 2, 4 or 8", flag="grid_features", check=power_of_two(1, 8), fixed=True)
    base_resolution: int = option(
        16, "cells along a side, coarsest level", flag="grid_coarsest", check=between(1, 4096), fixed=True
    )
    finest_resolution: int = option(
        2048, "cells along a side, finest level", flag="grid_finest", check=between(1, 2**19), fixed=True
    )
    log2_hashmap_size: int = option(
        19, "log2 of the entries of a level, at most", flag="grid_log2", check=between(4, 26), fixed=True
    )
    hidden: int = option(64, "width of the MLP", check=between(1, 4096), fixed=True)
    layers: int = option(3, "layers of the MLP, the last included", check=between(1, 32), fixed=True)


@dataclass(frozen=True)
class RenderConfig(Group):
    """Rendering"""

    cuda_ray: bool = option(False, "accelerated path: march through an occupancy grid, on the CPU too", fixed=True)
    taichi_ray: bool = option(False, "accelerated path in Taichi", unbuilt="the Taichi render path")
    backend: str = option(
        "auto", "rung of the native kernels", choices=("auto", "cuda", "cpu", "torch", "taichi"), unbuilt=("taichi",)
    )
    max_steps: int = option(1024, "samples on a ray at most, accelerated path", check=between(1, 2**16))
    num_steps: int = option(64, "coarse samples on a ray, plain path", check=between(1, 4096))
    upsample_steps: int = option(32, "fine samples on a ray, plain path", check=between(0, 4096))
    update_extra_interval: int = option(16, "steps between two refreshes of the occupancy grid", check=at_least(1))
    max_ray_batch: int = option(
        4096, "rays rendered at once outside training; lower it if memory runs out", check=between(1, 2**24)
    )
    dt_gamma: float = option(0.0, "step length grows with distance by this factor", check=FRACTION)
    min_near: float = option(0.01, "nothing is seen closer than this", check=at_least(0))
    grid_size: int = option(128, "cells along a side of the occupancy grid", check=power_of_two(8, 512), fixed=True)


@dataclass(frozen=True)
class ScheduleConfig(Group):
    """Schedule of a guided run"""

    latent_iter_ratio: float = option(0.2, "first part of the run, in latent space", check=FRACTION)
    albedo_iter_ratio: float = option(0.0, "then up to this part, plain albedo", check=FRACTION)
    albedo_rate: float = option(0.0, "share of the views after that that are plain albedo too", check=FRACTION)
    min_ambient_ratio: float = option(0.1, "ambient light, at least", check=FRACTION)
    textureless_ratio: float = option(0.2, "share of shaded views without texture", check=FRACTION)
    exp_start_iter: int | None = option(None, "step at which the schedule begins [0]", check=at_least(0))
    exp_end_iter: int | None = option(None, "step at which the schedule ends [--iters]", check=at_least(1))


@dataclass(frozen=True)
class OptimConfig(Group):
    """Optimisation"""

    iters: int = option(10_000, "training steps", check=between(1, 10**9))
    lr: float = option(
        1e-3, "learning rate of the networks; the grid gets 10 times this, and adan 5 times both", check=between(0, 10)
    )
    lr_decay: float = option(1.0, "factor on the learning rate at the last step", check=between(1e-6, 1))
    optim: str = option("adan", "optimizer", choices=("adan", "adam"), fixed=True)
    grad_clip: float = option(-1.0, "clip each element of the gradient (below 0: off)")
    grad_clip_rgb: float = option(-1.0, "clip the gradient at the rendered image (below 0: off)")
    fp16: bool = option(False, "mixed precision on CUDA, half-precision diffusion weights")
    bf16: bool = option(False, "the same with bfloat16, which needs no loss scale")
    ema_decay: float = option(0.9995, "moving average of the weights, per step (0: off)", check=between(0, 0.999999))


@dataclass(frozen=True)
class LossConfig(Group):
    """Weights of the regularisers (0: off)"""

    lambda_entropy: float = option(1e-3, "surfaces rather than fog", check=at_least(0))
    lambda_opacity: float = option(0.0, "little in the way", check=at_least(0))
    lambda_orient: float = option(1e-2, "visible surface faces the camera", check=at_least(0))
    lambda_tv: float = option(0.0, "total variation of the grid", check=at_least(0))
    lambda_wd: float = option(0.0, "weight decay of the grid", check=at_least(0))
    lambda_2d_normal_smooth: float = option(0.0, "smooth picture of the normals", check=at_least(0))
    lambda_3d_normal_smooth: float = option(0.0, "smooth normals in space", check=at_least(0))
    lambda_rgb: float = option(1000.0, "photographs and known views: colour", check=at_least(0))
    lambda_mask: float = option(500.0, "photographs and known views: alpha as a mask", check=at_least(0))
    lambda_normal: float = option(0.0, "photographs with normals, in the mesh stage: normals", check=at_least(0))
    lambda_depth: float = option(10.0, "known views: depth", check=at_least(0), unbuilt=KNOWN)
    lambda_mesh_normal: float = option(0.5, "mesh stage: neighbouring triangles face alike", check=at_least(0))
    lambda_mesh_laplacian: float = option(0.5, "mesh stage: vertices lie amid their neighbours", check=at_least(0))
    mesh_laplacian: str = option("uniform", "mesh stage: weights of the Laplacian", choices=("uniform", "cotangent"))
    lambda_mesh_sign: float = option(0.01, "mesh stage: few changes of the sign of the distance", check=at_least(0))


@dataclass(frozen=True)
class OutputConfig(Group):
    """What is written"""

    workspace: str = option("workspace", "folder of the run")
    test: bool = option(False, "train nothing: write the turntable video, and the mesh with --save_mesh")
    six_views: bool = option(False, "train nothing: write six still views")
    save_mesh: bool = option(False, "write the textured mesh at the end")
    mcubes_resolution: int = option(256, "marching-cubes cells along a side", check=between(8, 1024))
    mesh_threshold: float = option(10.0, "density that counts as surface in the mesh", check=above(0))
    mesh_smooth: float = option(
        0.0, "smoothing of the density before the mesh is cut, in marching-cubes cells (0 none)", check=between(0, 16)
    )
    decimate_target: int = option(50_000, "triangles of the mesh, at most (0 or less: all)")
    decimate_error: float = option(
        0.0, "how far decimation may move the surface, scene units; it keeps triangles for that (0: any)", check=at_least(0)
    )
    texture_size: int = option(1024, "side of the texture in pixels", check=between(16, 4096))
    texture_supersample: int = option(1, "a texel is the mean of so many colours each way", check=between(1, 4))
    normal_map: bool = option(False, "write the normals of the mesh before decimation as a tangent-space picture")
    roughness: float = option(1.0, "roughness of the mesh's material", check=FRACTION)
    metallic: float = option(0.0, "metalness of the mesh's material", check=FRACTION)
    mesh_ply: bool = option(False, "write the mesh as PLY with vertex colours as well")
    export_frame: str = option(
        "object", "axes of the mesh: object is +Y up and +Z front, source those of --data", choices=("object", "source")
    )
    W: int = option(800, "width of validation and test pictures", check=SIZE)
    H: int = option(800, "height of validation and test pictures", check=SIZE)
    eval_interval: int = option(10, "epochs between two validations", check=at_least(1))
    test_interval: int = option(100, "epochs between two test videos; the last epoch always writes one", check=at_least(1))
    dataset_size_train: int = option(100, "steps of an epoch", check=between(1, 10**6))
    dataset_size_valid: int = option(8, "pictures of a validation", check=between(1, 10_000))
    dataset_size_test: int = option(100, "pictures of the turntable", check=between(1, 10_000))
    preview_interval: int = option(100, "steps between two small previews", check=at_least(1))
    checkpoint_seconds: float = option(120.0, "seconds between two checkpoints; the end always writes one", check=above(0))
    keep_checkpoints: int = option(2, "newest checkpoints kept", check=between(1, 10_000))


@dataclass(frozen=True)
class RuntimeConfig(Group):
    """Running"""

    O: bool = option(False, "preset: --fp16 --cuda_ray --save_mesh")  # noqa: E741
    O2: bool = option(False, "preset: --fp16 --backbone vanilla --progressive_level --lr_decay 0.1 --save_mesh")
    seed: int | None = option(
        None,
        "seed of everything random; without one it is drawn and written down",
        check=between(0, 2**31 - 1),
        fixed=True,
    )
    ckpt: str = option(
        "latest",
        "where to go on: latest, best, latest_model (weights only), scratch (start over), or a checkpoint file",
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one", check=DEVICE)
    threads: int = option(0, "CPU threads (0: as many as there are cores)", check=between(0, 1024))
    minutes: float = option(0.0, "stop training after this long, save, and write the results (0: no limit)", check=at_least(0))


@dataclass(frozen=True)
class DmtetConfig(Group):
    """Mesh stage"""

    dmtet: bool = option(False, "the mesh stage alone: the same as --stages dmtet")
    stages: tuple[str, ...] = option(
        ("nerf",),
        "what the run goes through in one workspace: nerf, dmtet, or nerf,dmtet",
        choices=STAGES,
        check=Check(lambda v: v in (STAGES[:1], STAGES[1:], STAGES), "nerf, dmtet or nerf,dmtet"),
    )
    tet_grid_size: int = option(
        128,
        "layers of the tetrahedral grid along a side",
        check=Check(lambda v: 4 <= v <= 512 and v % 2 == 0, "an even number between 4 and 512"),
        fixed=True,
    )
    init_with: str = option(
        "",
        "where the mesh starts: a workspace, a checkpoint, a stable-dreamfusion df.pth, or a mesh (OBJ, GLB, glTF, PLY); "
        "without it the NeRF of the workspace, else a ball",
    )
    lock_geo: bool = option(False, "keep the shape, train the texture")
    dmtet_reso_scale: float = option(8.0, "render size of the mesh stage, times --w and --h", check=between(0.125, 64))
    dmtet_iters: int = option(0, "training steps of the mesh stage (0: as --iters)", check=between(0, 10**9))
    lr_distance: float = option(0.02, "learning rate of the distances, in grid cells", check=between(0, 10))
    lr_offset: float = option(0.02, "learning rate of the vertex offsets, in half cells", check=between(0, 10))
    lattices: int = option(
        0,
        "coarser lattices that move patches of the mesh as one, each half as fine as the one before",
        check=between(0, 8),
        fixed=True,
    )
    lr_lattices: float = option(0.03, "learning rate of each of them, in grid cells", check=between(0, 10))


@dataclass(frozen=True)
class GuiConfig(Group):
    """Window"""

    gui: bool = option(False, "open a window", unbuilt="the window")
    radius: float = option(5.0, "distance of its camera", unbuilt="the window")
    fovy: float = option(20.0, "its vertical field of view", unbuilt="the window")
    light_theta: float = option(60.0, "its light, polar angle", unbuilt="the window")
    light_phi: float = option(0.0, "its light, azimuth", unbuilt="the window")
    max_spp: int = option(1, "samples it gathers on a pixel", unbuilt="the window")
    dont_override_stuff: bool = option(False, "", refused="nothing overrides what you type, so it has nothing to do")


GROUPS: dict[str, type[Group]] = {
    "prompt": PromptConfig,
    "data": DataConfig,
    "guidance": GuidanceConfig,
    "camera": CameraConfig,
    "field": FieldConfig,
    "render": RenderConfig,
    "schedule": ScheduleConfig,
    "optim": OptimConfig,
    "loss": LossConfig,
    "output": OutputConfig,
    "runtime": RuntimeConfig,
    "dmtet": DmtetConfig,
    "gui": GuiConfig,
}
