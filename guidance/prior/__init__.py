"""The embedded priors: small diffusion models conditioned on text or a picture, and the captioned shapes they were trained on.

How to use the weights folder (diffusers layout: ``model_index.json``, ``unet/``, ``text_encoder/``, ``tokenizer/``,
``scheduler/``, and perhaps ``detail/`` and ``geometry/``) together with ``somnia.json``, which describes its input::

    {"space": "pixels", "size": 64, "unshuffle": 8, "camera": "vector8+rays", "camera_dim": 8, "ray_channels": 13,
     "guidance_scale": 7.5}

* **Space.** RGB images of 64x64 pixels in [-1, 1] (``2 * srgb - 1``), packed by
  ``torch.nn.functional.pixel_unshuffle(image, unshuffle)`` to [B, 192, 8, 8] and unpacked by ``pixel_shuffle``. There
  is no VAE. (8x8 patches cost half of what 4x4 patches cost and learnt as much per sample.) Render at 64x64, or resize to
  it (area, or antialiased bilinear) before packing.
* **Noise schedule.** ``scheduler/`` holds alphas_cumprod; ``x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise`` in the packed
  space (packing only permutes values, so noise can be added before or after it).
* **Camera.** ``guidance.prior.camera.condition(polar, azimuth, radius, fovy) -> [B, 8]`` (degrees, scene units) goes
  into the UNet as ``class_labels``; ``guidance.prior.camera.ray_map(pose [B, 3, 4] or [B, 4, 4], fovy [B], size=8) ->
  [B, 13, 8, 8]`` (size = size / unshuffle of ``somnia.json``) is concatenated to the packed noisy image as extra input
  channels. Zeros in both mean "camera unknown". In classifier-free guidance the unconditional input keeps the camera; only
  the text is dropped (prompt ``""``).
* **Call.** ``unet(cat([x_t packed, ray_map], 1), t, encoder_hidden_states=text, class_labels=condition).sample`` is the
  packed **x_0** prediction (``prediction_type`` is ``"sample"``). If there is a folder ``detail/``,
  ``guidance.prior.detail.refine`` then adds the details that the patches blur, to each prediction under its own conditions.
  ``geometry/`` says what x_t shows as depth, normals and coverage (``guidance.prior.geometry.predict``).
  From x_0: ``eps = (x_t - sqrt(abar_t) x_0) / sqrt(1 - abar_t)``. Classifier-free guidance combines x_0 predictions, which
  are then clamped to [-1, 1].
* **Text.** ``text_encoder(**tokenizer(prompt, padding="max_length", max_length=16, truncation=True,
  return_tensors="pt")).last_hidden_state`` -> [B, 16, 64]. Prompts have **no view words**. Parse the user's prompt by
  ``guidance.prior.captions.parse`` first: it binds colours to parts, and says what cannot be had.
* **Range.** Trained with cameras that look at the origin, in the ranges of ``guidance/prior/camera.py``, at any azimuth; the
  object fills a ball of radius 0.5. Backgrounds: uniform colours, often white. Shading: flat albedo or lambertian with the
  light near the camera.

The folder ``view_weights/`` holds a prior conditioned on a reference image and a pose relative to it, with ``encoder/`` in the
place of text encoder and tokenizer. Its ``somnia.json`` adds ``"reference_channels": 256``: behind the ray map, the UNet takes
the reference (colour over white, then coverage, both in [-1, 1]) packed like the noisy image. What becomes of the reference and
of the pose is in ``view_model``.

The folder ``multiview_weights/`` holds what the multi-view prior changes of the text-conditioned one: its attention blocks, by
the names of the UNet's tensors. See ``multiview_model``.

The modules: ``pixels`` (what all share as guidance), ``guidance``, ``view_guidance`` and ``multiview_guidance`` (score
distillation from each), ``view_words`` (what a view word stands for), ``perfect`` (true pictures in its place, for
``benchmarks/ceiling.py``), ``description`` (``somnia.json``), ``camera``, ``captions``, ``vocabulary``, ``spelling``,
``grammar`` and ``replies`` (words), ``kinds``, ``primitives`` and ``shapes`` (signed distances), ``render`` (sphere
tracing), ``degrade`` (defects of an unfinished mesh), ``dataset``, ``view_dataset``, ``multiview_dataset`` and
``geometry_dataset``, ``references`` (the held-out pictures), ``benchmark`` (the prompts that are measured), ``classifier``
(which caption explains a picture best), ``model``, ``view_model`` and ``multiview_model`` (build, save, load), ``detail``,
``geometry``, ``training`` (what the training of all has in common), ``workers`` (processes that prepare batches),
``comparison`` (old weights and new ones), and what runs with ``python -m``: ``train``, ``train_detail``, ``train_gpu``,
``train_view``, ``train_multiview``, ``train_geometry``, ``diagnose``, ``diagnose_view``, ``diagnose_multiview`` and
``diagnose_geometry``.
"""

from pathlib import Path

IMAGE_SIZE = 64
UNSHUFFLE = 8
GRID_SIZE = IMAGE_SIZE // UNSHUFFLE
IMAGE_CHANNELS = 3 * UNSHUFFLE**2
TEXT_DIM, TINY_TEXT_DIM = 64, 32  # channels of the text embeddings; the second in tests
WEIGHTS = Path(__file__).parent / "weights"
VIEW_WEIGHTS = Path(__file__).parent / "view_weights"  # of the view-conditioned prior, see view_model.py
MULTIVIEW_WEIGHTS = Path(__file__).parent / "multiview_weights"  # what the multi-view prior changes, see multiview_model.py
