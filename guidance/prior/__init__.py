"""The embedded prior: a tiny text-and-camera conditioned diffusion model, and the captioned shapes it was trained on.

Contract for whoever runs the weights folder (diffusers layout: ``model_index.json``, ``unet/``, ``text_encoder/``,
``tokenizer/``, ``scheduler/``, and perhaps ``detail/``) together with ``somnia.json``, which says how the input is prepared::

    {"space": "pixels", "size": 64, "unshuffle": 8, "camera": "vector8+rays", "camera_dim": 8, "ray_channels": 13,
     "guidance_scale": 7.5}

* **Space.** Images are RGB at 64x64, values in [-1, 1] (``2 * srgb - 1``), packed by
  ``torch.nn.functional.pixel_unshuffle(image, unshuffle)`` to [B, 192, 8, 8] and unpacked by ``pixel_shuffle``. There
  is no VAE. (8x8 patches cost half of what 4x4 patches cost and learnt as much from a sample.) Render at 64x64, or
  resize to it (area or bilinear, antialiased) before packing.
* **Noise.** ``scheduler/`` holds the cumulative products; ``x_t = sqrt(a_t) x_0 + sqrt(1 - a_t) noise`` in the packed
  space (packing only moves values, so noising before or after it is the same).
* **Camera.** ``guidance.prior.camera.condition(polar, azimuth, radius, fovy) -> [B, 8]`` (degrees, scene units) goes
  into the UNet as ``class_labels``; ``guidance.prior.camera.ray_map(pose [B, 3, 4] or [B, 4, 4], fovy [B], size=8) ->
  [B, 13, 8, 8]`` (size = size / unshuffle of ``somnia.json``) is concatenated to the packed noisy image as extra input
  channels. Zeros in both mean "camera unknown". In classifier-free guidance both branches keep the camera; only the
  text is dropped (prompt ``""``).
* **Call.** ``unet(cat([x_t packed, ray_map], 1), t, encoder_hidden_states=text, class_labels=condition).sample`` is the
  estimate of **x_0**, packed (``prediction_type`` is ``"sample"``). If there is a folder ``detail/``,
  ``guidance.prior.detail.sharpen`` then adds what the patches blur, to each branch under its own conditions. From x_0:
  ``eps = (x_t - sqrt(a_t) x_0) / sqrt(1 - a_t)``. Guidance mixes the two branches in x_0, then clamp to [-1, 1].
* **Text.** ``text_encoder(**tokenizer(prompt, padding="max_length", max_length=16, truncation=True,
  return_tensors="pt")).last_hidden_state`` -> [B, 16, 64]. Prompts carry **no view words**. Pass what the user typed
  through ``guidance.prior.captions.parse`` first: it unifies spellings, and names unknown words with their neighbours.
* **Range.** Trained for cameras that look at the origin: radius 3.0 to 3.5, fovy 18 to 24 degrees, polar 30 to 105,
  any azimuth; the object fills a ball of radius 0.5. Backgrounds: plain colours, often white. Shading: flat albedo or
  lambertian with the light near the camera.

The modules: ``camera``, ``captions``, ``shapes`` (signed distances), ``render`` (sphere tracing), ``wear`` (what an
unfinished mesh does to a picture), ``dataset``, ``model`` (build, save, load), ``detail``, ``train``, ``train_detail`` and
``diagnose`` (the last three run with ``python -m``).
"""

from pathlib import Path

IMAGE_SIZE = 64
UNSHUFFLE = 8
GRID_SIZE = IMAGE_SIZE // UNSHUFFLE
IMAGE_CHANNELS = 3 * UNSHUFFLE**2
TEXT_DIM, TINY_TEXT_DIM = 64, 32  # width of the states of words; the second in tests
WEIGHTS = Path(__file__).parent / "weights"
