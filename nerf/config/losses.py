"""Options of the losses: their weights, and the forms of those that have several."""

from dataclasses import dataclass

from nerf.config.limits import FAR, WEIGHT
from nerf.config.parser import Group, option
from nerf.config.ramps import Weight
from nerf.core.ranges import above, between


@dataclass(frozen=True)
class LossConfig(Group):
    """Loss weights (0: off; a number, or a ramp FROM:TO:STEPS, FROM:TO:FIRST:LAST, where steps may be shares as 50%)"""

    lambda_entropy: Weight = option(1e-3, "entropy of opacity, mean over rays", check=WEIGHT)
    lambda_opacity: Weight = option(0.0, "opacity penalty: mean squared opacity of the rays", check=WEIGHT)
    lambda_orient: Weight = option(1e-2, "orientation loss: visible normals face the camera", check=WEIGHT)
    lambda_tv: Weight = option(0.0, "total variation of the hash grid", check=WEIGHT)
    lambda_wd: Weight = option(0.0, "weight decay of the hash grid", check=WEIGHT)
    lambda_2d_normal_smooth: Weight = option(0.0, "smoothness of the rendered normal image", check=WEIGHT)
    lambda_3d_normal_smooth: Weight = option(0.0, "smoothness of normals in space", check=WEIGHT)
    lambda_rgb: Weight = option(1000.0, "RGB loss of photographs and known views", check=WEIGHT)
    lambda_mask: Weight = option(500.0, "mask loss of photographs and known views with alpha", check=WEIGHT)
    lambda_normal: Weight = option(0.0, "normal loss of known views, and of photographs in the mesh stage", check=WEIGHT)
    lambda_depth: Weight = option(10.0, "correlation of the depth of known views with _depth.png", check=WEIGHT)
    lambda_prior_depth: Weight = option(
        0.0, "embedded prior: distance from the depth that its geometry network expects, scene units", check=WEIGHT
    )
    lambda_prior_normal: Weight = option(
        0.0, "embedded prior: 1 - cosine to the normals that its geometry network expects", check=WEIGHT
    )
    lambda_mesh_normal: Weight = option(0.5, "mesh stage: normal consistency of adjacent triangles", check=WEIGHT)
    lambda_mesh_laplacian: Weight = option(0.5, "mesh stage: Laplacian smoothness of the vertices", check=WEIGHT)
    mesh_laplacian: str = option("uniform", "mesh stage: weights of the Laplacian", choices=("uniform", "cotangent"))
    lambda_mesh_sign: Weight = option(
        0.01, "mesh stage: cross entropy of SDF signs across grid edges (nvdiffrec)", check=WEIGHT
    )
    rgb_loss: str = option("mse", "RGB loss of photographs and known views", choices=("mse", "l1", "smooth_l1", "huber"))
    mask_loss: str = option("mse", "mask loss: mean squared error, or binary cross entropy", choices=("mse", "bce"))
    lambda_eikonal: Weight = option(0.1, "signed distance: its gradient has length one (eikonal)", check=WEIGHT)
    eikonal_points: int = option(
        1024, "random points of the box that the eikonal loss looks at beside the samples", check=between(0, 2**24)
    )
    lambda_sparsity: Weight = option(0.0, "signed distance: few samples near a surface", check=WEIGHT)
    lambda_off_surface: Weight = option(0.0, "signed distance: no surface at random points of the box", check=WEIGHT)
    sparsity_scale: float = option(100.0, "of those two: exp(-scale |distance|), per scene unit", check=above(0, FAR))
    lambda_curvature: Weight = option(0.0, "signed distance: curvature of the level sets", check=WEIGHT)
    curvature: str = option(
        "angle",
        "form of the curvature loss: mean |Laplacian|, or angle between the normals of near points of a tangent plane",
        choices=("laplacian", "angle"),
    )
    lambda_distortion: Weight = option(
        0.0, "distortion of the weights along each ray (Mip-NeRF 360): one compact surface", check=WEIGHT
    )
    lambda_distortion_bg: Weight = option(0.0, "distortion of a background that is marched", check=WEIGHT)
    lambda_points: Weight = option(0.0, "signed distance: zero at the points of the reconstruction (COLMAP)", check=WEIGHT)
