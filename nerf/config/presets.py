"""The presets in one table: flag -> value. A preset fills only what the user neither typed nor gave in a file.

``O`` and ``O2`` are flags; ``photographs`` applies with ``--data``, ``image`` with ``--image`` or ``--image_config`` and
``image text`` if there is a prompt in words too, one named after a method with ``--distillation``, one named after a guidance
model or the kind of its weights (``embedded``) where that guides, and those of a stage (``StageKind.presets``) in that stage
alone. Later ones override earlier ones. How the numbers of the embedded prior were chosen is in docs/benchmarks/README.md.
"""

from typing import Any

from nerf.config.distillation import METHODS

# The gradient of the embedded priors sums over all pixels of a batch, and would outweigh what a picture knows: with the
# weights of stable-dreamfusion the view of the picture stays below 14 dB, with these it passes 22 dB in 200 short steps.
_EMBEDDED_IMAGE = {"lambda_rgb": 20000.0, "lambda_mask": 10000.0, "lambda_depth": 200.0}

PRESETS: dict[str, dict[str, Any]] = {
    "O": {"fp16": True, "cuda_ray": True, "save_mesh": True},
    "O2": {"fp16": True, "backbone": "vanilla", "progressive_level": True, "lr_decay": 0.1, "save_mesh": True},
    # Random rays from photographs: no diffusion model, so no latent warm-up and no initial blob; Adam as in Instant NGP.
    "photographs": {
        "cuda_ray": True,
        "iters": 3000,
        "num_rays": 4096,
        "lr": 1e-2,
        "lr_decay": 0.1,
        "optim": "adam",
        "bg_radius": -1.0,
        "blob_density": 0.0,
        # Cells finer than what the photographs resolve explain each of them by its own haze: with 2048, the default, fox at
        # half size is 17.0 dB after 300 steps and 20.9 dB with 512; lego 23.5 dB after 200 steps, and 24.5 dB with 1024.
        "grid_finest": 1024,
        "lambda_rgb": 1.0,
        "lambda_mask": 0.0,
        "lambda_entropy": 0.0,
        "lambda_orient": 0.0,
        "latent_iter_ratio": 0.0,
        "ema_decay": 0.99,
        "W": 0,
        "H": 0,
        "dataset_size_test": 60,
    },
    # Photographs in the wild: several patches a step, each of one photograph, of which the encoder sees the whole. Validation
    # views of lego in other lights behind occluders after 600 steps: 24.7 dB with lights that depend on the place, 25.4 dB with
    # global ones, 26.0 dB where besides no colour depends on the direction.
    "wild": {"appearance": "encoder", "occluders": "mask", "patch_grid": 16, "diffuse_share": 0.5},
    # Whether most of a pixel's neighbours stand out can be told where they are neighbours.
    "wild robust": {"patch_grid": 16, "patch_scale": 0.0},
    # A signed distance costs more samples a ray: as many patches as its samples leave.
    "sdf wild": {"num_rays": 256},
    # What every signed distance has: one hidden layer behind the hash grid, and an occupancy threshold in opacities of a step.
    "sdf": {"layers": 2, "density_thresh": 0.3},
    # A surface from photographs with masks, on a CPU in minutes: first a few levels of the grid, rays that follow the samples.
    "neus": {
        "preset": "neus",
        "iters": 4000,
        "num_rays": 128,
        "ray_samples": 16384,
        "lr": 1e-2,
        "lr_decay": 0.05,
        "sharpness_lr": 0.2,
        "max_steps": 512,
        # By absolute differences what covers few pixels is learned late: lego has 23.6 dB after 700 steps, and 25.3 by squares.
        "rgb_loss": "mse",
        "lambda_rgb": 10.0,
        "mask_loss": "bce",
        "lambda_mask": 0.1,
        "lambda_eikonal": 0.1,
        "grid_levels": 12,
        "grid_finest": 512,
        "grid_log2": 18,
        "level_start": 4,
        "level_span": 0.25,
        "cos_anneal": 0.25,
        "grid_size": 64,
        "mcubes_resolution": 256,
    },
    # Coarse cells first, whose gradient reaches as far as the poses are wrong (BARF, sec. 3.2).
    "refined poses": {"progressive_level": True},
    # A picture alone: zero123 guides, at the scale it was published with. The numbers are those of stable-dreamfusion but for
    # lambda_orient, which counts per ray here and per sample there (docs/flags.md), and the background: a constant one, as
    # the models that know the object from a picture were trained on plain backgrounds.
    "image": {
        "guidance": ("zero123",),
        "guidance_scale": 5.0,
        "bg_radius": -1.0,
        "lambda_3d_normal_smooth": 10.0,
        "lambda_entropy": 1.0,
        "lambda_orient": 0.03,
        "latent_iter_ratio": 0.0,
        "albedo_iter_ratio": 0.0,
        "progressive_view": True,
        "progressive_level": True,
    },
    # A picture and words: low noise levels, so that the words agree with what the picture shows.
    "image text": {
        "guidance": ("SD", "clip"),
        "guidance_scale": 10.0,
        "t_range": (0.2, 0.6),
        "known_view_interval": 2,
        "lambda_3d_normal_smooth": 20.0,
    },
    # Methods of distillation as they were published, for Stable Diffusion; docs/distillation.md says where.
    "sjc": {"guidance_scale": 100.0, "guidance_weighting": "uniform", "t_range": (0.01, 0.97)},
    "vsd": {"guidance_scale": 7.5, "t_range": (0.02, 0.98), "t_anneal": 0.5, "anneal_span": (0.5, 0.5)},
    "csd": {"guidance_weighting": "uniform", "t_range": (0.02, 0.98), "t_anneal": 0.5, "anneal_span": (0.5, 0.5)},
    "nfsd": {"guidance_scale": 7.5, "t_range": (0.02, 0.98)},
    "ism": {
        "guidance_scale": 7.5,
        "guidance_weighting": "x0",
        "t_range": (0.02, 0.98),
        "t_anneal": 0.5,
        "lambda_guidance": 0.1,
    },
    "sdi": {"guidance_scale": 7.5, "guidance_weighting": "x0", "t_schedule": "linear", "t_range": (0.25, 0.98)},
    # Distillation from the embedded prior on a CPU in minutes: low initial density, low guidance scale, small grid.
    "embedded": {
        "iters": 500,
        "batch_size": 4,
        "w": 64,
        "h": 64,
        "half_size_ratio": 0.5,
        "optim": "adam",
        "lr": 8e-3,
        "lr_decay": 0.02,
        "ema_decay": 0.995,
        # A high guidance scale forms the shape; a low one at the end prevents saturated colours.
        "guidance_scale": 8.0,
        "guidance_anneal": 0.8,
        # A hash grid of 64 cells cannot represent what the detail network adds: no better on average, and a tenth more time.
        "prior_detail": False,
        "t_range": (0.02, 0.98),
        "t_anneal": 0.8,
        "radius_range": (3.0, 3.5),
        "fovy_range": (18.0, 24.0),
        # Score distillation judges the views to 112 degrees; those below show undersides to the geometry network.
        "theta_range": (30.0, 130.0),
        # Of the size of the gradient of distillation, which sums over all pixels; the loss is a mean over rays.
        "lambda_prior_depth": 5000.0,
        "latent_iter_ratio": 0.0,
        "albedo_iter_ratio": 0.0,
        # The prior was not trained on textureless renders: it treats one as fog of the wrong colour and removes the object.
        "textureless_ratio": 0.0,
        "lambda_entropy": 30.0,
        "bound": 0.6,
        "density_bias": -2.5,
        "blob_density": 4.5,
        "bg_radius": -1.0,
        "grid_levels": 6,
        # Coarse cells extend the density of the visible shell into the core and the underside: solid rather than hollow.
        "grid_coarsest": 8,
        "grid_finest": 64,
        "grid_log2": 17,
        "max_steps": 256,
        "grid_size": 64,
        "W": 512,
        "H": 512,
        "dataset_size_test": 48,
        "mcubes_resolution": 128,
        # Higher thresholds leave holes in undersides, lower ones thicken legs.
        "mesh_threshold": 7.0,
        "mesh_smooth": 1.5,
        "fill_hidden": True,
        # Distilled surfaces are crumpled at the scale of a few cells, which a light shows at once.
        "mesh_denoise": 0.1,
        "decimate_target": 20_000,
        "texture_size": 1024,
    },
    # The regularisers were weighed for the gradient of SDS: lambda_guidance gives the gradient of each method about its norm
    # (12 in the mean over four views of a sharp and of a blurred car, from the first step to the last).
    "sjc embedded": {"lambda_guidance": 0.3},
    "vsd embedded": {"anneal_span": (0.0, 1.0)},
    "csd embedded": {"lambda_guidance": 25.0, "anneal_span": (0.0, 1.0)},
    "nfsd embedded": {"lambda_guidance": 0.4},
    "ism embedded": {"lambda_guidance": 0.3},
    "sdi embedded": {"lambda_guidance": 0.35, "t_range": (0.25, 0.98)},
    # What users of Zero123 have settled on: a lower scale than for text, as the picture says much more.
    "zero123": {"guidance_scale": 5.0},
    # The recipe of threestudio. Timesteps fall from 0.7-0.98 to 0.3-0.8 between its steps 50 and 200 of 600; the picture itself
    # weighs more than the guidance. Its camera is 3.8 units away with a lens of 20 degrees; the object is as large here.
    "stable zero123": {
        "iters": 600,
        "batch_size": 8,
        "w": 128,
        "h": 128,
        "half_size_ratio": 0.33,
        "guidance_scale": 3.0,
        "t_range": (0.3, 0.98),
        "t_anneal": 0.265,
        "t_anneal_low": 0.588,
        "anneal_span": (0.08, 0.33),
        "guidance_weights": 0.1,
        "lambda_rgb": 500.0,
        "lambda_mask": 50.0,
        "textureless_ratio": 0.05,
        "optim": "adam",
        "lr": 1e-2,
        "radius_range": (3.8, 3.8),
        "fovy_range": (20.0, 20.0),
        "dmtet_reso_scale": 4.0,
        "default_radius": 3.8,
        "default_polar": 85.0,
    },
    # The recipe of its authors (arXiv 2308.16512, appendix): the x0 residual with the standard deviations of the four views
    # rescaled together, a high scale, timesteps from 0.98 down to 0.02-0.5 during the first 80 % of the run. Its cameras see
    # a height of 0.8 to 1.0 of the object's ball, at elevations of 0 to 30 degrees; radius and lens give the same here.
    "MVDream": {
        "iters": 10000,
        "batch_size": 4,
        "w": 256,
        "h": 256,
        "half_size_ratio": 0.5,
        "guidance_scale": 50.0,
        "guidance_rescale": 0.5,
        "guidance_weighting": "x0",
        "t_range": (0.02, 0.98),
        "t_anneal": 0.5,
        "t_anneal_low": 1.0,
        "anneal_span": (0.0, 0.8),
        "radius_range": (3.0, 3.5),
        "fovy_range": (30.0, 30.0),
        "theta_range": (60.0, 90.0),
        "default_fovy": 30.0,
        "dmtet_reso_scale": 2.0,
        "uniform_sphere_rate": 0.0,
        "latent_iter_ratio": 0.0,
    },
    # The loss of CLIP is at most 2 and that of score distillation thousands; 10 is stable-dreamfusion's factor.
    "clip": {"guidance_weights": 10.0},
    # CLIP alone, as Dream Fields: textured backgrounds, colours without shading, a penalty on opacity, no latent warm-up.
    "clip alone": {
        "latent_iter_ratio": 0.0,
        "bg_radius": -1.0,
        "background_textures": 1.0,
        "albedo_iter_ratio": 1.0,
        "lambda_opacity": 0.5,
        "batch_size": 4,
    },
    "embedded image": _EMBEDDED_IMAGE,
    # There is a surface from the first step on (Magic3D, sec. 4.2): low noise levels, no regularisers against fog, no latent
    # warm-up.
    "dmtet": {
        "t_range": (0.02, 0.50),
        "t_anneal": 0.0,
        "t_anneal_low": 0.0,
        "latent_iter_ratio": 0.0,
        "albedo_iter_ratio": 0.0,
        "half_size_ratio": 0.0,
        "progressive_view": False,
        "progressive_level": False,
        "lambda_entropy": 0.0,
        "lambda_orient": 0.0,
        "lambda_opacity": 0.0,
        "lambda_eikonal": 0.0,
        "lambda_curvature": 0.0,
    },
    "dmtet photographs": {
        "iters": 400,
        "batch_size": 4,
        "w": 256,
        "h": 256,
        "dmtet_reso_scale": 1.0,
        "tet_grid_size": 64,
        "lambda_mask": 2.0,
        "lambda_normal": 1.0,
        "lambda_mesh_normal": 0.05,
        "lambda_mesh_laplacian": 0.05,
        "lr_decay": 0.1,
        "lr_distance": 0.05,
    },
    # What a mesh file looks like already is worth keeping: low noise levels only, from its own shape and colours.
    "dmtet mesh file": {"t_range": (0.02, 0.4), "t_anneal": 0.5, "mesh_denoise": 0.0},
    # Colours for a surface that stays as it is, and that nothing looks at. As they begin as one grey, noise levels begin at the
    # top. They come down early, because at high ones a model paints its background where its own object would end.
    "dmtet painted": {
        "t_range": (0.02, 0.98),
        "t_anneal": 0.8,
        "anneal_span": (0.0, 0.6),
        "lambda_mask": 0.0,
        "lambda_normal": 0.0,
        "lambda_depth": 0.0,
        "lambda_mesh_normal": 0.0,
        "lambda_mesh_laplacian": 0.0,
        "coarse_sdf_grids": 0,
        "mesh_denoise": 0.0,
    },
    # The render is large already, and the surface has left the monocular depth behind that gave it its first shape.
    "dmtet image": {"known_view_scale": 1.0, "lambda_normal": 0.0, "lambda_depth": 0.0},
    "dmtet image text": {"t_range": (0.2, 0.5)},
    # The prior sees 64x64 pixels, averaged from a render of twice that. The coarse SDF grids move whole parts of the surface
    # (eaves, tiers, wings); the values of the fine grid change little beyond the smoothing. A grid below a resolution of 128
    # loses detail that the NeRF has.
    "dmtet embedded": {
        "iters": 200,
        "batch_size": 4,
        "tet_grid_size": 128,
        "dmtet_reso_scale": 2.0,
        # High noise levels move whole parts first; low ones with the detail network then refine the outlines. The guidance
        # scale is low: a high one thickens legs, and 1 gave worse shapes of the house's eaves and the table.
        "t_range": (0.02, 0.85),
        "t_anneal": 0.85,
        "guidance_scale": 1.5,
        "guidance_anneal": 0.0,
        "prior_detail": True,
        "lr": 1e-2,
        "lr_decay": 0.1,
        "coarse_sdf_grids": 3,
        "lr_coarse_sdf": 0.03,
        "lr_distance": 0.01,
        "lr_offset": 0.01,
        # The gradient of distillation sums over thousands of pixels, so these weights are large.
        "lambda_mesh_normal": 60.0,
        "lambda_mesh_laplacian": 20.0,
    },
}

# Where photographs disagree, as those of real scenes do, absolute differences follow what most of them show.
_ABSOLUTE = {"rgb_loss": "l1", "lambda_rgb": 1.0}
# Without masks a background model stands behind the object, and nothing says where it ends. The first sphere must leave some
# of the background to be seen, so the box is what the cameras see in common, not what holds them; and the background must
# explain it at once, or the surface grows until it hides whatever is not explained yet, and a surface everywhere is a fog.
PRESETS["unmasked"] = {
    "background": "contracted",
    "background_lr": 1.0,
    "background_bias": -1.0,
    "scene_scale": "seen",
    "lambda_mask": 0.0,
}
# A step costs twice as much with the background; half as many take a little longer than those of neus.
PRESETS["neus-unmasked"] = PRESETS["neus"] | _ABSOLUTE | PRESETS["unmasked"] | {"preset": "neus-unmasked", "iters": 2000}
# Under the embedded prior the gradient of distillation sums over all pixels, so the weight is large; photographs make a surface
# sharp by themselves and words do not, so the sharpness follows a schedule.
PRESETS["sdf embedded"] = {
    "sharpness": "scheduled",
    "sharpness_start": 20.0,
    "sharpness_end": 100.0,
    "sdf_radius": 0.5,
    "lambda_eikonal": 100.0,
    "level_start": 3,
    "level_span": 0.5,
    "mesh_smooth": 0.0,
    "mesh_denoise": 0.0,
}
# Real scenes with more time: finite differences whose reach shrinks with the levels, curvature at first, levels one by one.
PRESETS["neuralangelo"] = (
    PRESETS["neus"]
    | _ABSOLUTE
    | {
        "preset": "neuralangelo",
        "sdf_gradient": "taps4",
        "level_span": 0.6,
        "lambda_curvature": "0:1e-4:5%",
        "curvature": "laplacian",
    }
)
# The embedded prior without its geometry network, which has to be told the camera.
_NO_GEOMETRY: dict[str, Any] = {"lambda_prior_depth": 0.0, "theta_range": (30.0, 105.0)}
# The view-conditioned prior: the small model's numbers with those of a picture. The prior knows every view from the start, so
# the views need not spread from the picture's.
PRESETS["embedded view"] = (
    PRESETS["embedded"]
    | _EMBEDDED_IMAGE
    | _NO_GEOMETRY
    | {
        "guidance_scale": 3.0,
        "lambda_3d_normal_smooth": 0.0,
        "progressive_view": False,
        "progressive_level": False,
    }
)
# Names that mark a run, for the presets of its mesh stage: what a mesh file is started with for.
MESH_FILES = MESH_FILE, PAINTED = "mesh file", "painted"
PRESETS |= dict.fromkeys(MESH_FILES, {})
PRESETS["embedded untold"] = _NO_GEOMETRY
# The multi-view prior is the embedded one with other attention.
_EMBEDDED = ("embedded", "embedded untold", "dmtet embedded", *(f"{method} embedded" for method in METHODS[1:]))
PRESETS |= {f"{name} multiview": PRESETS[name] for name in _EMBEDDED}
PRESETS["dmtet embedded view"] = PRESETS["dmtet embedded"] | {"lambda_rgb": 1000.0, "lambda_mask": 500.0}

# MVDream for a picture: a lower scale, nearer cameras, near the horizon (arXiv 2312.02201).
PRESETS["ImageDream"] = PRESETS["MVDream"] | {
    "iters": 12500,
    "guidance_scale": 5.0,
    "guidance_rescale": 0.2,
    "anneal_span": (0.0, 0.64),
    "fovy_range": (23.0, 24.0),
    "theta_range": (85.0, 90.0),
    "default_fovy": 23.5,
}

# Presets of one guidance model: of its name, of the kind of its weights, or of its name and "alone" where no other guides.
# Their values of options that belong to each model (``parser.option(each=...)``) are its own.
GUIDANCE_OF: dict[str, str] = {
    "sdf embedded": "SD",
    "embedded image": "SD",
    "embedded view": "zero123",
    "dmtet embedded view": "zero123",
    "clip": "clip",
    "clip alone": "clip",
    "zero123": "zero123",
    "stable zero123": "zero123",
    "MVDream": "MVDream",
    "ImageDream": "ImageDream",
}
GUIDANCE_OF |= {name: "SD" for name in _EMBEDDED} | {f"{name} multiview": "MVDream" for name in _EMBEDDED}

# Preset of a model -> of the kind of weights for which it does not apply, as it is a recipe for far larger ones.
IN_PLACE = {"MVDream": "embedded multiview"}

# What a preset is called in the log.
REASONS: dict[str, str] = {
    "dmtet": "the mesh stage",
    "dmtet photographs": "the mesh stage of --data",
    "dmtet image": "the mesh stage of --image",
    "dmtet image text": "the mesh stage of --image and --text",
    "mesh file": "a mesh file",
    "painted": "--lock_geo",
    "dmtet mesh file": "the mesh stage of a mesh file",
    "dmtet painted": "the mesh stage of --lock_geo with a mesh file",
    "dmtet embedded": "the mesh stage under the embedded prior",
    "dmtet embedded view": "the mesh stage under the embedded view-conditioned prior",
    "O": "-O",
    "O2": "-O2",
    "photographs": "--data",
    "sdf": "a signed distance",
    "sdf embedded": "a signed distance under the embedded prior",
    "neus": "--preset neus",
    "neus-unmasked": "--preset neus-unmasked",
    "neuralangelo": "--preset neuralangelo",
    "unmasked": "photographs without masks",
    "wild": "--wild",
    "wild robust": "--occluders robust",
    "sdf wild": "--wild",
    "refined poses": "--refine_poses",
    "image": "--image",
    "image text": "--image and --text",
    "embedded": "the embedded prior",
    "embedded image": "the embedded prior beside --image",
    "embedded untold": "--prior_views",
    "embedded view": "the embedded view-conditioned prior",
    "zero123": "Zero123",
    "stable zero123": "Stable Zero123",
    "MVDream": "MVDream",
    "ImageDream": "ImageDream",
    "clip": "CLIP",
    "clip alone": "CLIP without another guidance",
}
REASONS |= {method: f"--distillation {method}" for method in METHODS[1:]}
REASONS |= {f"{method} embedded": f"--distillation {method} under the embedded prior" for method in METHODS[1:]}
REASONS |= {f"{name} multiview": REASONS[name].replace("embedded", "embedded multi-view") for name in _EMBEDDED}
