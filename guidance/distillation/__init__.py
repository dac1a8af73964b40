"""Score distillation without a model: from any denoiser to a gradient on images.

``schedule`` has the noise levels and what predictions mean, ``times`` which timestep a step looks at, ``mixing``
classifier-free guidance, ``methods`` every method on one page (SDS, SJC, VSD, CSD, NFSD, ISM, SDI) and their registry,
``inversion`` the DDIM inversion that some of them use, ``query`` what they are given, ``gradient`` how a gradient becomes a
loss.
"""

from guidance.distillation.gradient import Distilled, bounded, diagnosis, finite_images, inject
from guidance.distillation.methods import METHODS, Method, sds_gradient
from guidance.distillation.mixing import classifier_free, rescale_cfg, rescale_std
from guidance.distillation.query import Conditioned, Learned, Query, Tuning, paired
from guidance.distillation.schedule import (
    PREDICTION_TYPES,
    WEIGHTINGS,
    Denoiser,
    Mixer,
    NoiseSchedule,
    predict_x0,
    timestep_weight,
)
from guidance.distillation.times import T_SCHEDULES, TimestepSchedule, sample_timesteps

__all__ = [
    "METHODS",
    "PREDICTION_TYPES",
    "T_SCHEDULES",
    "WEIGHTINGS",
    "Conditioned",
    "Denoiser",
    "Distilled",
    "Learned",
    "Method",
    "Mixer",
    "NoiseSchedule",
    "Query",
    "TimestepSchedule",
    "Tuning",
    "bounded",
    "classifier_free",
    "diagnosis",
    "finite_images",
    "inject",
    "paired",
    "predict_x0",
    "rescale_cfg",
    "rescale_std",
    "sample_timesteps",
    "sds_gradient",
    "timestep_weight",
]
