"""Options of a run, in groups: each field is a command-line flag with its type, default, help and check.

Defaults are those of stable-dreamfusion except where docs/flags.md gives another and why. Upper bounds are far above any
useful value; they catch typing errors and overflows. Every number has both bounds, which --help gives. Angles are degrees,
lengths scene units. Others are beside this file: prompts and
photographs in ``inputs.py`` and ``photographs.py``, methods of score distillation in ``distillation.py``, losses in
``losses.py``, signed distances in ``surface.py``, backgrounds in ``background.py``, the mesh in ``mesh.py``, the viewer in
``viewer.py``.
"""

import re
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

from nerf.config.background import BackgroundConfig
from nerf.config.distillation import DistillationConfig
from nerf.config.limits import (
    AXES,
    AZIMUTH,
    BOUND,
    FAR,
    FOV,
    FRACTION,
    LENGTH,
    MOST,
    MOST_LEVELS,
    POLAR,
    POSITIVE_LENGTH,
    SIZE,
    SIZE_OR_NONE,
    STEPS,
    WEIGHT,
)
from nerf.config.parser import RUN, Group, option, value_of
from nerf.config.stages import DMTET, STAGE_KINDS
from nerf.config.surface import SDF_BACKBONES, SurfaceConfig
from nerf.core.ranges import SEED, Check, above, between, even, ordered, power_of_two
from nerf.core.words import expected_words

STAGES = tuple(STAGE_KINDS)  # of a run, in their order
# Consecutive stages, short runs first: what --stages accepts.
STAGE_RUNS = tuple(STAGES[i : i + n] for n in range(1, len(STAGES) + 1) for i in range(len(STAGES) - n + 1))
DEVICE = Check(lambda v: re.fullmatch(r"auto|cpu|cuda(:\d+)?", v) is not None, "auto, cpu, cuda or cuda:N")
# Extinction per scene unit at the surface of an object, as in stable-dreamfusion (its density_thresh): 0.1 units of it
# let exp(-1) of the light through. One value for every run, fixed before any shape was measured.
SURFACE_DENSITY = 10.0
CKPT_WORDS = ("latest", "best", "latest_model", "scratch")  # what --ckpt accepts beside a file


@dataclass(frozen=True)
class Zero123Config(Group):
    """Zero123: part of the options of guidance."""

    zero123: str = option(
        "auto",
        "weights of zero123: folder, .ckpt, hub id, zero123-xl or stable-zero123, or embedded; auto takes what is there",
        kept=RUN,
        path=True,
    )
    zero123_ckpt: str = option(
        "pretrained/zero123/zero123-xl.ckpt", "the .ckpt that --zero123 auto takes first", kept=RUN, path=True
    )
    zero123_grad_scale: str = option(
        "angle",
        "factor of a view's gradient from zero123: angle grows from 0 at the nearest picture to 1 opposite of it, None is 1",
        choices=("angle", "None"),
    )


@dataclass(frozen=True)
class GuidanceConfig(DistillationConfig, Zero123Config):
    """Guidance by diffusion models (several values: one for each model in the order of --guidance)"""

    guidance: tuple[str, ...] = option(
        ("SD",),
        "guidance models",
        choices=("SD", "SDXL", "IF", "zero123", "clip", "MVDream", "ImageDream"),
        extensible=True,
        kept=RUN,
    )
    sd_version: str = option(
        "auto",
        "weights of the diffusion model: auto takes 2.1, 2.0 or 1.5 if one is on this machine, else the embedded prior",
        choices=("auto", "embedded", "1.5", "2.0", "2.1"),
        kept=RUN,
    )
    mvdream: str = option(
        "auto",
        "weights of MVDream: auto takes the published ones (--hf_keys), embedded the small multi-view prior of few words",
        choices=("auto", "embedded"),
        kept=RUN,
    )
    hf_key: str | None = option(
        None,
        "diffusers folder, checkpoint file (.safetensors, .ckpt) or hub id, in place of --sd_version; without SD, of the first "
        "model that takes one",
        kept=RUN,
        path=True,
    )
    hf_keys: tuple[str, ...] = option(
        (),
        "weights of each model: NAME=FOLDER, FILE or HUB_ID, as in clip=openai/clip-vit-large-patch14; with the name SDXL_vae "
        "another codec for SDXL, as madebyollin/taesdxl; with tokenizer CLIP's, which a checkpoint file lacks",
        kept=RUN,
    )
    prediction_type: str = option(
        "auto",
        "what SD and SDXL predict; auto: as their weights say, or as a checkpoint file of Stable Diffusion 2 answers to noise",
        choices=("auto", "epsilon", "v_prediction"),
        kept=RUN,
    )
    IF: bool = option(False, "DeepFloyd IF in place of Stable Diffusion: --guidance IF")
    guidance_weights: tuple[float, ...] = option(
        (1.0,), "weight of each model's loss, a factor of --lambda_guidance", check=WEIGHT, each=1
    )
    guidance_scale: tuple[float, ...] = option((100.0,), "classifier-free guidance (CFG) scale", check=between(0, 1e6), each=1)
    prior_detail: bool = option(True, "embedded prior: refine its x0 estimates with the detail network, for a fifth more time")
    prior_views: str = option(
        "camera",
        "what the embedded prior is told of a view: its camera, view words as Stable Diffusion is (--perpneg), or nothing",
        choices=("camera", "words", "none"),
        kept=RUN,
    )
    angle_front: float = option(
        90.0,
        "view words: azimuth that counts as front, degrees; at its borders front and side have equal weights",
        check=between(20, 160),
    )
    angle_overhead: float = option(
        30.0,
        "view words: polar angle at which overhead and the others have equal weights; bottom mirrors it",
        check=between(10, 80),
    )
    lambda_guidance: float = option(1.0, "weight of the guidance loss", check=WEIGHT)
    perpneg: bool = option(False, "Perp-Neg: negative prompts of the other views, perpendicular to the positive one")
    negative_w: float = option(-2.0, "Perp-Neg: weight of the negative prompts, useful from 0 to -4", check=between(-100, 0))
    front_decay_factor: float = option(
        2.0, "Perp-Neg: decay of the negative weight near the front view", check=between(0, 1000)
    )
    side_decay_factor: float = option(10.0, "Perp-Neg: decay of the negative weight near the side view", check=between(0, 1000))
    vram_O: bool = option(False, "offload the diffusion model to main memory and slice its VAE: less GPU memory, slower")
    compile_guidance: str = option(
        "none",
        "torch.compile of the diffusion model's UNet: default fuses its operations, reduce-overhead also replays them as a "
        "CUDA graph, which helps where launches bound it (batch 1); the first step then takes a minute or more",
        choices=("none", "default", "reduce-overhead"),
    )
    clip_crops: int = option(4, "clip: random crops of each view in a step (0: the whole picture)", check=between(0, 64))
    save_guidance: bool = option(False, "write the images that the guidance receives and predicts to guidance/")
    save_guidance_interval: int = option(10, "steps between two images of --save_guidance", check=STEPS)

    def of(self, name: str) -> Any:
        """The options as one of the guidance models sees them; one that ``--guidance`` does not name sees those of the first.

        Returns:
            A record with every option of this group; those that belong to each model hold the value of this one alone, a
            number or a word, or a tuple of several.
        """
        index = self.guidance.index(name) if name in self.guidance else 0
        values = {field.name: value_of(field, getattr(self, field.name), index) for field in fields(self)}
        return SimpleNamespace(**values)


@dataclass(frozen=True)
class CameraConfig(Group):
    """Training cameras (degrees; polar 0 is above, azimuth 0 the front)"""

    batch_size: int = option(1, "views per step", check=between(1, 256))
    w: int = option(64, "render width while training", check=SIZE)
    h: int = option(64, "render height while training", check=SIZE)
    radius_range: tuple[float, float] = option(
        (3.0, 3.5), "camera distance from the origin", check=ordered(1e-3, FAR, "distances")
    )
    theta_range: tuple[float, float] = option(
        (45.0, 105.0), "polar angle of the camera", check=ordered(0, 180, "angles in degrees")
    )
    phi_range: tuple[float, float] = option(
        (-180.0, 180.0), "azimuth of the camera", check=ordered(-360, 360, "angles in degrees")
    )
    fovy_range: tuple[float, float] = option(
        (10.0, 30.0), "vertical field of view", check=ordered(0.1, 170, "angles in degrees")
    )
    default_radius: float = option(3.2, "camera distance of the default view (turntable, six views)", check=POSITIVE_LENGTH)
    default_polar: float = option(90.0, "polar angle of the default view", check=POLAR)
    default_azimuth: float = option(0.0, "azimuth of the default view", check=AZIMUTH)
    default_fovy: float = option(20.0, "vertical field of view of the default view", check=FOV)
    half_size_ratio: float = option(
        0.0, "fraction of the run, from its start, that renders at half of --w and --h", check=FRACTION
    )
    jitter_pose: bool = option(False, "add noise to the training cameras")
    jitter_center: float = option(0.2, "width of the uniform noise of the camera position", check=LENGTH)
    jitter_target: float = option(0.2, "standard deviation of the look-at target", check=LENGTH)
    jitter_up: float = option(0.02, "standard deviation of the up vector", check=between(0, 100))
    uniform_sphere_rate: float = option(0.0, "fraction of views sampled uniformly on the sphere", check=FRACTION)
    progressive_view: bool = option(False, "start near the default view and widen the camera ranges during training")
    progressive_view_init_ratio: float = option(
        0.2, "fraction of the camera ranges at the start of --progressive_view", check=FRACTION
    )


@dataclass(frozen=True)
class NetworkConfig(Group):
    """Networks: part of the options of the field."""

    backbone: str = option(
        "grid",
        "grid: multiresolution hash grid and a small MLP; vanilla: frequency encoding and a larger MLP, on torch alone; "
        "grid_tcnn: the grid of tiny-cuda-nn, where that is installed; grid_taichi: the grid in Taichi; sdf: signed distance "
        "(NeuS) on a hash grid; sdf_vanilla: the same with the MLP of NeuS",
        choices=("grid", "vanilla", "grid_tcnn", "grid_taichi", *SDF_BACKBONES),
        extensible=True,
        kept=RUN,
    )
    bound: float = option(1.0, "half the side of the scene's bounding box [-bound, bound]^3", check=BOUND, kept=RUN)
    density_activation: str = option("exp", "density activation", choices=("exp", "softplus"), kept=RUN)
    density_thresh: float = option(
        SURFACE_DENSITY,
        "occupancy threshold on the density (the mean density of the grid if that is lower)",
        check=above(0, 1e9),
    )
    density_bias: float = option(
        0.0, "bias of the raw density, before its activation, at initialisation", check=between(-100, 100), kept=RUN
    )
    blob_density: float = option(5.0, "raw density at the centre of the initial blob", check=between(-1000, 1000), kept=RUN)
    blob_radius: float = option(0.2, "radius of the initial blob", check=between(1e-3, FAR), kept=RUN)
    normals: str = option(
        "analytic",
        "normals of the density: analytic gradient, or central finite differences (six queries)",
        choices=("analytic", "finite"),
    )
    progressive_level: bool = option(False, "coarse to fine: enable the levels of the encoder progressively")
    levels: int = option(16, "levels of the hash grid", flag="grid_levels", check=between(1, MOST_LEVELS), kept=RUN)
    level_dim: int = option(2, "features per level of the hash grid", flag="grid_features", check=power_of_two(1, 8), kept=RUN)
    base_resolution: int = option(
        16, "resolution of the coarsest level of the hash grid", flag="grid_coarsest", check=between(2, 4096), kept=RUN
    )
    finest_resolution: int = option(
        2048, "resolution of the finest level of the hash grid", flag="grid_finest", check=between(2, 2**19), kept=RUN
    )
    log2_hashmap_size: int = option(
        19,
        "log2 of the maximum number of entries of a level of the hash grid",
        flag="grid_log2",
        check=between(3, 26),
        kept=RUN,
    )
    hidden: int = option(64, "hidden width of the MLP", check=between(1, 4096), kept=RUN)
    layers: int = option(3, "layers of the MLP, including the output layer", check=between(1, 32), kept=RUN)


@dataclass(frozen=True)
class FieldConfig(SurfaceConfig, BackgroundConfig, NetworkConfig):
    """Field (the NeRF's networks)"""


@dataclass(frozen=True)
class RenderConfig(Group):
    """Rendering"""

    cuda_ray: bool = option(False, "accelerated render path: ray marching with an occupancy grid, on CPU and GPU", kept=RUN)
    taichi_ray: bool = option(False, "--cuda_ray with the operations on rays in Taichi")
    backend: str = option(
        "auto",
        "what runs the kernels: native code for the device, Taichi, or plain torch; auto: the first that works",
        choices=("auto", "cuda", "cpu", "taichi", "torch"),
        extensible=True,
    )
    max_steps: int = option(1024, "maximum number of samples per ray, accelerated path", check=between(1, 2**16))
    num_steps: int = option(64, "coarse samples per ray, plain path", check=between(1, 4096))
    upsample_steps: int = option(32, "fine samples per ray (sample_pdf), plain path", check=between(0, 4096))
    update_extra_interval: int = option(16, "steps between two updates of the occupancy grid", check=STEPS)
    max_ray_batch: int = option(
        0,
        "rays per chunk outside training; lower it if memory runs out (0: 4096 on a CPU, up to 262144 on a GPU)",
        check=between(0, 2**24),
    )
    dt_gamma: float = option(
        0.0, "exponential stepping of the ray march: step growth with distance (0: uniform steps)", check=FRACTION
    )
    min_near: float = option(0.01, "near plane: minimum distance of a sample from the camera", check=LENGTH)
    grid_size: int = option(128, "resolution of the occupancy grid", check=power_of_two(8, 512), kept=RUN)


@dataclass(frozen=True)
class ScheduleConfig(Group):
    """Schedule of a guided run"""

    latent_iter_ratio: float = option(
        0.2, "fraction of the run, from its start, that renders normals as latents (warm-up)", check=FRACTION
    )
    albedo_iter_ratio: float = option(0.0, "fraction of the run up to which shading is albedo only", check=FRACTION)
    albedo_rate: float = option(0.0, "probability of albedo shading after --albedo_iter_ratio", check=FRACTION)
    background_textures: float = option(
        0.0,
        "share of the steps with plain backgrounds that have noise, checkerboards or random waves instead (Dream Fields)",
        check=FRACTION,
    )
    min_ambient_ratio: float = option(0.1, "minimum ambient light of lambertian shading", check=FRACTION)
    max_ambient_ratio: float = option(1.0, "maximum ambient light of lambertian shading", check=FRACTION)
    textureless_ratio: float = option(0.2, "probability of textureless shading among shaded views", check=FRACTION)
    exp_start_iter: int | None = option(None, "step at which the schedule begins [0]", check=between(0, MOST))
    exp_end_iter: int | None = option(None, "step at which the schedule ends [--iters]", check=STEPS)


@dataclass(frozen=True)
class OptimConfig(Group):
    """Optimisation"""

    iters: int = option(10_000, "training steps", check=STEPS)
    lr: float = option(
        1e-3, "learning rate of the networks; the hash grid uses 10 times this, and adan 5 times both", check=between(0, 10)
    )
    lr_decay: float = option(1.0, "learning-rate factor at the last step, reached exponentially", check=between(1e-6, 1))
    optim: str = option("adan", "optimizer", choices=("adan", "adam"), kept=RUN)
    grad_clip: float = option(
        -1.0, "gradient clipping: maximum absolute value of each element (0 or less: off)", check=between(-1, 1e9)
    )
    grad_clip_rgb: float = option(-1.0, "gradient clipping at the rendered image (0 or less: off)", check=between(-1e9, 1e9))
    fp16: bool = option(False, "mixed precision on CUDA, half-precision diffusion weights")
    bf16: bool = option(False, "mixed precision with bfloat16, without loss scaling")
    ema_decay: float = option(
        0.9995, "decay per step of the exponential moving average of the weights (0: off)", check=between(0, 0.999999)
    )


@dataclass(frozen=True)
class OutputConfig(Group):
    """Output"""

    workspace: str = option("workspace", "folder of the run", path=True)
    test: bool = option(False, "do not train: write the turntable video, and the mesh with --save_mesh")
    six_views: bool = option(False, "do not train: write six images from fixed views")
    save_mesh: bool = option(False, "write the textured mesh at the end")
    mcubes_resolution: int = option(256, "marching-cubes resolution", check=between(8, 1024))
    mesh_threshold: float = option(
        SURFACE_DENSITY, "density of the level set that marching cubes extracts", check=between(1e-6, 1e9)
    )
    mesh_smooth: float = option(
        0.0, "Gaussian smoothing of the density before marching cubes, sigma in cells (0: none)", check=between(0, 16)
    )
    decimate_target: int = option(
        50_000, "maximum number of triangles after decimation (0 or less: no decimation)", check=between(-MOST, MOST)
    )
    decimate_error: float = option(
        0.0,
        "maximum distance between the meshes before and after decimation, scene units; may keep more triangles (0: no limit)",
        check=LENGTH,
    )
    texture_size: int = option(1024, "texture resolution in pixels", check=between(16, 4096))
    texture_supersample: int = option(1, "supersampling: each texel averages N x N colours", check=between(1, 4))
    normal_map: bool = option(False, "bake the normals of the mesh before decimation into a tangent-space normal map")
    roughness: float = option(1.0, "roughness of the mesh material", check=FRACTION)
    metallic: float = option(0.0, "metallic factor of the mesh material", check=FRACTION)
    mesh_ply: bool = option(False, "also write the mesh as PLY with vertex colours")
    export_frame: str = option(
        "object",
        "coordinate frame of the mesh: object is +Y up and +Z front, source that of --data",
        choices=("object", "source"),
    )
    W: int = option(800, "width of validation and test images (0: as the photographs)", check=SIZE_OR_NONE)
    H: int = option(800, "height of validation and test images (0: as the photographs)", check=SIZE_OR_NONE)
    videos: tuple[str, ...] = option(
        ("rgb", "depth"), "videos to write; albedo is rgb without light", choices=("rgb", "depth", "normal", "albedo")
    )
    unlit: bool = option(False, "show objects in their plain colours, without light (photographs always are)")
    camera_path: str | None = option(
        None,
        "JSON file of a camera path in nerfstudio's format, along which the test video is rendered; its world is that of "
        "--data, or the scene's without --data",
        path=True,
    )
    eval_interval: int = option(10, "epochs between two validations", check=STEPS)
    test_interval: int = option(100, "epochs between two test videos; one is always written at the end", check=STEPS)
    dataset_size_train: int = option(100, "steps per epoch", check=between(1, 10**6))
    dataset_size_valid: int = option(
        8, "views per validation: rendered, or held-out photographs that are measured, evenly chosen", check=between(1, 10_000)
    )
    eval_views: int | None = option(
        None,
        "held-out photographs that are measured at the end, evenly chosen (0: all) [all; on a CPU up to 20 megapixels of them]",
        check=between(0, 10**6),
    )
    dataset_size_test: int = option(100, "frames of the turntable video", check=between(1, 10_000))
    preview_interval: int = option(100, "steps between two preview images", check=STEPS)
    checkpoint_seconds: float = option(
        120.0, "seconds between two checkpoints; one is always written at the end", check=above(0, 1e9)
    )
    keep_checkpoints: int = option(2, "number of newest checkpoints to keep", check=between(1, 10_000))


@dataclass(frozen=True)
class RuntimeConfig(Group):
    """Runtime"""

    O: bool = option(False, "preset: --fp16 --cuda_ray --save_mesh")  # noqa: E741
    O2: bool = option(False, "preset: --fp16 --backbone vanilla --progressive_level --lr_decay 0.1 --save_mesh")
    seed: int | None = option(
        None,
        "random seed; if not given, one is drawn and stored in config.json",
        check=SEED,
        kept=RUN,
    )
    ckpt: str = option(
        "latest",
        "checkpoint to resume: latest, best, latest_model (weights only), scratch (start over), or a checkpoint file",
        path=True,
    )
    device: str = option("auto", "auto, cpu, cuda or cuda:N; auto takes a GPU if there is one", check=DEVICE)
    tf32: bool = option(False, "CUDA: products of float32 matrices in TF32, faster and with 10 bits of mantissa instead of 23")
    cudnn_benchmark: bool = option(
        False,
        "CUDA: take the fastest of cuDNN's algorithms for each size of a convolution, which may be another one in each run",
    )
    threads: int = option(0, "CPU threads (0: as many as there are cores)", check=between(0, 1024))
    minutes: float = option(
        0.0,
        "time limit of the training of a stage in minutes, resumed runs included; then save and write the results (0: none)",
        check=between(0, 1e7),
    )
    profile: int = option(
        0,
        "write a torch profiler trace (Chrome JSON) of N steps to profile/, after a few warm-up steps (0: off)",
        check=between(0, 10_000),
    )


@dataclass(frozen=True)
class DmtetConfig(Group):
    """Mesh stage"""

    dmtet: bool = option(False, "only the mesh stage: the same as --stages dmtet")
    stages: tuple[str, ...] = option(
        ("nerf",),
        "stages of the run, in one workspace: nerf, dmtet, or nerf,dmtet",
        choices=STAGES,
        check=Check(lambda v: v in STAGE_RUNS, expected_words([",".join(run) for run in STAGE_RUNS])),
    )
    tet_grid_size: int = option(
        128,
        "resolution of the tetrahedral grid",
        check=even(4, 512),
        kept=DMTET.name,
    )
    init_with: str = option(
        "",
        "initialisation of the mesh: a workspace, a checkpoint, a stable-dreamfusion df.pth, or a mesh (OBJ, GLB, glTF, PLY); "
        "by default the NeRF of the workspace, else a ball",
        path=True,
    )
    lock_geo: bool = option(
        False,
        "freeze the geometry and train the texture only; a mesh file as --init_with keeps its vertices, triangles and uv",
    )
    init_up: str = option("y", "axis of the mesh file of --init_with that points up; write --init_up=-z", choices=AXES)
    init_front: str = option("z", "axis of the mesh file of --init_with that points to its front", choices=AXES)
    init_colors: bool = option(True, "begin with the colours of the mesh file of --init_with, where it has some")
    dmtet_reso_scale: float = option(
        8.0, "render size of the mesh stage, as a multiple of --w and --h", check=between(0.125, 64)
    )
    dmtet_iters: int = option(0, "training steps of the mesh stage (0: --iters)", check=between(0, MOST))
    lr_distance: float = option(0.02, "learning rate of the SDF values, in grid cells", check=between(0, 10))
    lr_offset: float = option(
        0.02, "learning rate of the vertex offsets (deformation), in half grid cells", check=between(0, 10)
    )
    coarse_sdf_grids: int = option(
        0,
        "coarser grids added to the SDF values, each at half the resolution of the next finer one",
        check=between(0, 8),
        kept=DMTET.name,
    )
    lr_coarse_sdf: float = option(0.03, "learning rate of the coarse SDF grids, in grid cells", check=between(0, 10))
