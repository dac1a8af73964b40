"""MVDream and ImageDream as guidance, on tiny random models in each published layout."""

import math
import shutil

import pytest
import torch

from guidance.base import CameraRequirements, Conditions, ImageCondition
from guidance.diffusion import ldm, multiview, multiview_parts
from guidance.diffusion.multiview import camera_numbers, check_linked, link_frames
from guidance.diffusion.single_file import TensorFile
from guidance.mvdream_utils import GREYS, ImageDream, MVDream, Options, background_of, group_mixer
from nerf.core.cameras import orbit
from nerf.core.errors import UserError
from nerf.core.streams import Stream
from nerf.core.structs import Control
from tests.guidance.camera_models import FOLDERS, picture, tiny_tensors, write_original
from tests.guidance.models import PROMPT, T_RANGE, gradient, image_of, views_at
from tests.helpers.parts import part_of

NAMES = ("MVDream", "ImageDream")
CLASSES = {"MVDream": MVDream, "ImageDream": ImageDream}


@pytest.fixture(scope="module")
def originals(tmp_path_factory):
    """The original file of each model."""
    return {name: write_original(tmp_path_factory.mktemp("multiview") / name, name.lower()) for name in NAMES}


@pytest.fixture(scope="module")
def models(multiview_folders):
    return {name: prepared(CLASSES[name](multiview_folders[name])) for name in NAMES}


def prepared(model, text=PROMPT, image=None):
    model.prepare(Conditions(text, images=(image or picture(),)))
    return model


def linked(start=10.0, groups=1, polar=75.0):
    """Whole groups of four views."""
    azimuth = torch.cat([start + 30.0 * g + torch.arange(4) * 90.0 for g in range(groups)])
    return orbit(polar, azimuth, 3.2, 20.0, 64, 64)


# ---- joint attention ----


class Dense:
    """A multi-view UNet in plain torch, straight from the original code's tensors and names, in float64. F frames a group."""

    def __init__(self, tensors, frames, image_tokens=0):
        self.tensors = {name: tensor.double() for name, tensor in tensors.items()}
        self.frames, self.image_tokens = frames, image_tokens

    def has(self, name):
        return f"{name}.weight" in self.tensors

    def linear(self, x, name):
        bias = self.tensors.get(f"{name}.bias")
        out = x @ self.tensors[f"{name}.weight"].T
        return out if bias is None else out + bias

    def conv(self, x, name, stride=1):
        weight = self.tensors[f"{name}.weight"]
        return torch.nn.functional.conv2d(x, weight, self.tensors[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def group_norm(self, x, name, eps=1e-5):
        return torch.nn.functional.group_norm(x, 32, self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"], eps)

    def layer_norm(self, x, name):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"])

    def attend(self, q, k, v):
        heads = max(q.shape[-1] // 64, 1)
        q, k, v = (y.reshape(*y.shape[:2], heads, -1).permute(0, 2, 1, 3) for y in (q, k, v))
        weights = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), -1)
        return (weights @ v).permute(0, 2, 1, 3).flatten(2)

    def block(self, x, text, name):
        x = self.group_norm(hidden := x, f"{name}.norm", 1e-6)
        height, width = x.shape[2:]
        x = self.linear(x.flatten(2).transpose(1, 2), f"{name}.proj_in")
        inner = f"{name}.transformer_blocks.0"
        y = self.layer_norm(x, f"{inner}.norm1")
        y = y.reshape(-1, self.frames * height * width, y.shape[-1])  # the views of a group, one after the other
        y = self.attend(*(self.linear(y, f"{inner}.attn1.to_{n}") for n in "qkv"))
        x = x + self.linear(y, f"{inner}.attn1.to_out.0").reshape(x.shape)
        y = self.layer_norm(x, f"{inner}.norm2")
        words = text[:, : text.shape[1] - self.image_tokens]
        query = self.linear(y, f"{inner}.attn2.to_q")
        y = self.attend(query, self.linear(words, f"{inner}.attn2.to_k"), self.linear(words, f"{inner}.attn2.to_v"))
        if self.image_tokens:
            image = text[:, -self.image_tokens :]
            y = y + self.attend(query, *(self.linear(image, f"{inner}.attn2.to_{n}_ip") for n in "kv"))
        x = x + self.linear(y, f"{inner}.attn2.to_out.0")
        y, gate = self.linear(self.layer_norm(x, f"{inner}.norm3"), f"{inner}.ff.net.0.proj").chunk(2, -1)
        x = x + self.linear(y * torch.nn.functional.gelu(gate), f"{inner}.ff.net.2")
        x = self.linear(x, f"{name}.proj_out").transpose(1, 2).unflatten(2, (height, width))
        return x + hidden

    def resnet(self, x, emb, name):
        silu = torch.nn.functional.silu
        y = self.conv(silu(self.group_norm(x, f"{name}.in_layers.0")), f"{name}.in_layers.2")
        y = y + self.linear(silu(emb), f"{name}.emb_layers.1")[..., None, None]
        y = self.conv(silu(self.group_norm(y, f"{name}.out_layers.0")), f"{name}.out_layers.3")
        return y + (self.conv(x, f"{name}.skip_connection") if self.has(f"{name}.skip_connection") else x)

    def layers(self, x, emb, text, name):
        for index in range(3):
            one = f"{name}.{index}"
            if self.has(f"{one}.in_layers.2"):
                x = self.resnet(x, emb, one)
            elif self.has(f"{one}.proj_in"):
                x = self.block(x, text, one)
            elif self.has(f"{one}.op"):
                x = self.conv(x, f"{one}.op", stride=2)
            elif self.has(f"{one}.conv"):
                x = self.conv(x.repeat_interleave(2, -1).repeat_interleave(2, -2), f"{one}.conv")
            elif self.has(one):
                x = self.conv(x, one)
        return x

    def __call__(self, x, t, text, camera):
        silu = torch.nn.functional.silu
        width = self.tensors["time_embed.0.weight"].shape[1]
        angle = t[:, None] * torch.exp(-math.log(10000) * torch.arange(width // 2, dtype=torch.float64) / (width // 2))
        emb = self.linear(silu(self.linear(torch.cat([angle.cos(), angle.sin()], 1), "time_embed.0")), "time_embed.2")
        emb = emb + self.linear(silu(self.linear(camera, "camera_embed.0")), "camera_embed.2")
        skips = []
        for i in range(12):
            x = self.layers(x, emb, text, f"input_blocks.{i}")
            skips.append(x)
        x = self.layers(x, emb, text, "middle_block")
        for i in range(12):
            x = self.layers(torch.cat([x, skips.pop()], 1), emb, text, f"output_blocks.{i}")
        return self.conv(silu(self.group_norm(x, "out.0")), "out.2")


def unet_of(tensors, frames, image_tokens, folder):
    """diffusers' UNet with joint attention, float64."""
    torch.save(tensors, folder / "unet.pt")
    change = lambda unet: link_frames(unet, frames, image_tokens)  # noqa: E731
    return ldm.load_unet(TensorFile(folder / "unet.pt"), lambda w: max(w // 64, 1), 8, torch.float64, ldm.UNET, change)


@pytest.mark.parametrize(("layout", "frames", "tokens"), [("mvdream", 4, 0), ("imagedream", 5, 4)])
def test_unet_equals_a_dense_implementation_in_plain_torch(tmp_path, layout, frames, tokens):
    tensors = tiny_tensors(layout)
    unet = unet_of(tensors, frames, tokens, tmp_path)
    dense = Dense({n.removeprefix(ldm.UNET): t for n, t in tensors.items() if n.startswith(ldm.UNET)}, frames, tokens)
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    rows = 2 * frames
    x, text, camera, t = random(rows, 4, 8, 8), random(rows, 5 + tokens, 64), random(rows, 16), torch.full((rows,), 321)
    with torch.no_grad():
        ours = unet(x, t, encoder_hidden_states=text, class_labels=camera).sample
        theirs = dense(x, t, text, camera)
    assert ours.std() > 0.1
    # diffusers computes the sine of the timestep in single precision.
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_every_view_sees_every_other_of_its_group_and_no_view_of_another(models):
    model, views = models["MVDream"], linked(groups=2)
    noisy, t = torch.randn(8, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((8,), 500)
    predict = model.denoiser(views)
    changed = noisy.clone()
    changed[2] += 1
    with torch.no_grad():
        difference = (predict(changed, t) - predict(noisy, t)).abs().amax((0, 2, 3, 4))
    assert (difference[:4] > 1e-4).all() and difference[4:].max() < 1e-5


def test_permuting_the_views_permutes_the_predictions(models):
    model, views = models["MVDream"], linked()
    noisy, t = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.full((4,), 500)
    order = torch.tensor([1, 2, 3, 0])  # a turn by a quarter: still linked
    with torch.no_grad():
        plain, permuted = model.denoiser(views)(noisy, t), model.denoiser(views[order])(noisy[order], t)
    torch.testing.assert_close(permuted, plain[:, order], rtol=1e-4, atol=1e-5)


def test_each_view_is_told_its_own_camera(models):
    model, noisy, t = models["MVDream"], torch.randn(1, 4, 8, 8).repeat(4, 1, 1, 1), torch.full((4,), 500)
    with torch.no_grad():
        out = model.denoiser(linked())(noisy, t)[1]
    assert (out[1:] - out[:1]).abs().amax((1, 2, 3)).min() > 1e-3


# ---- cameras ----


def original_camera(elevation, azimuth):
    """The 16 numbers of a camera as the published code makes them, step by step in numpy's place."""
    e, a = math.radians(elevation), math.radians(azimuth)
    position = torch.tensor([math.cos(e) * math.sin(a), math.sin(e), math.cos(e) * math.cos(a)], dtype=torch.float64)
    forward = -position / position.norm()
    right = torch.linalg.cross(forward, torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64))
    right = right / right.norm()
    up = torch.linalg.cross(right, forward)
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, 0], pose[:3, 1], pose[:3, 2], pose[:3, 3] = right, up / up.norm(), -forward, position
    pose[2] *= -1  # OpenGL's axes to Blender's
    return pose[[0, 2, 1, 3]].flatten()


def test_cameras_are_those_of_the_published_code():
    views = orbit(
        torch.tensor([75.0, 75.0, 60.0]), torch.tensor([0.0, 90.0, -100.0]), torch.tensor([3.0, 1.5, 4.0]), 20.0, 8, 8
    )
    expected = torch.stack([original_camera(15, 0), original_camera(15, 90), original_camera(30, -100)]).float()
    torch.testing.assert_close(camera_numbers(views), expected, rtol=1e-5, atol=1e-5)


def test_cameras_are_turned_so_that_the_picture_is_the_front():
    torch.testing.assert_close(camera_numbers(views_at(130), front=40.0), camera_numbers(views_at(90)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("views", "words"),
    [
        (views_at(0, 90, 180), "groups of 4 views at once, got 3"),
        (views_at(0, 90, 180, 260), "azimuths 0, 90, 180, -100"),
        (views_at(0, 270, 180, 90), "a quarter turn apart"),
        (orbit(torch.tensor([75.0, 75.0, 75.0, 70.0]), torch.arange(4) * 90.0, 3.2, 20.0, 64, 64), "one polar angle"),
        (orbit(75.0, torch.arange(4) * 90.0, torch.tensor([3.2, 3.2, 3.2, 3.0]), 20.0, 64, 64), "radius"),
        (orbit(75.0, torch.arange(4) * 90.0, 3.2, torch.tensor([20.0, 25.0, 20.0, 20.0]), 64, 64), "field of view"),
    ],
)
def test_views_of_cameras_that_are_not_linked_are_refused(models, views, words):
    with pytest.raises(UserError, match=words):
        models["MVDream"].loss(image_of(len(views)), views, part_of("guided"), Control(T_RANGE))


def test_linked_views_are_accepted_at_any_start_and_in_several_groups():
    check_linked(linked(start=-170.0, groups=3), "MVDream")


def test_it_asks_for_four_linked_square_views(models):
    assert models["MVDream"].requirements() == CameraRequirements(square=True, linked_views=4)


# ---- the gradient ----


def test_latent_gradient_is_the_x0_residual_with_one_rescale_for_the_four_views(models):
    model, part, views = models["MVDream"], part_of("guided", space="latent", seed=5), linked(groups=2)
    image = image_of(8, 8, channels=4)
    t = torch.randint(20, 981, (2,), generator=part.random.generator(Stream.DIFFUSION_TIME)).repeat_interleave(4)
    noise = torch.randn(8, 4, 8, 8, generator=part.random.generator(Stream.DIFFUSION_NOISE))
    abar = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)[t].reshape(8, 1, 1, 1)
    latent = 2 * image - 1
    noisy = abar.sqrt() * latent + (1 - abar).sqrt() * noise
    with torch.no_grad():
        eps = model.denoiser(views)(noisy, t)
    guided = eps[0] + 50 * (eps[1] - eps[0])
    x0, plain = ((noisy - (1 - abar).sqrt() * e) / abar.sqrt() for e in (guided, eps[1]))
    for group in (slice(0, 4), slice(4, 8)):
        factor = plain[group].std() / x0[group].std()
        x0[group] = 0.5 * factor * x0[group] + 0.5 * x0[group]
    expected = 2 * (latent - x0) / 8
    torch.testing.assert_close(
        gradient(model, image, views, part), expected, rtol=5e-3, atol=5e-3 * float(expected.abs().max())
    )


def test_the_views_of_a_group_have_one_timestep(models):
    x = torch.zeros(8, 4, 8, 8)
    seen = set()
    for seed in range(5):
        t, _, _ = models["MVDream"].distiller.draw(x, part_of("guided", seed=seed), Control(T_RANGE), Options())
        assert len(set(t[:4].tolist())) == 1 and len(set(t[4:].tolist())) == 1
        seen |= set(t.tolist())
    assert len(seen) > 5  # groups and steps differ


def test_the_rescaling_keeps_the_colours_of_the_views_against_each_other():
    generator = torch.Generator().manual_seed(0)
    predictions = torch.randn(2, 8, 4, 8, 8, generator=generator) * torch.rand(8, 1, 1, 1, generator=generator)
    guided, rescaled = group_mixer(5.0, 0.0)(predictions), group_mixer(5.0, 1.0)(predictions)
    for group in (slice(0, 4), slice(4, 8)):
        ratio = rescaled[group] / guided[group]
        torch.testing.assert_close(ratio, ratio[:1, :1, :1, :1].expand_as(ratio), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(rescaled[group].std(), predictions[1, group].std())


@pytest.mark.parametrize("name", NAMES)
def test_gradient_reaches_every_pixel_through_the_vae(models, name):
    grad = gradient(models[name], image_of(4, 48), linked())
    assert torch.isfinite(grad).all() and (grad != 0).float().mean() > 0.99


@pytest.mark.parametrize("name", NAMES)
def test_same_part_gives_the_same_loss(models, name):
    model = models[name]
    first, second = (model.loss(image_of(4), linked(), part_of("guided", seed=3), Control(T_RANGE)).loss for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", NAMES)
def test_scale_one_needs_no_unconditional_prediction(models, name):
    model, seen = models[name], []
    hook = model.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    near, exact = (gradient(model, image_of(4), linked(), scale=s, options=Options(rescale=0.0)) for s in (1.00001, 1.0))
    hook.remove()
    frames = 5 if name == "ImageDream" else 4
    assert seen == [2 * frames, frames]
    torch.testing.assert_close(near, exact, rtol=1e-2, atol=1e-2)


def test_another_prompt_gives_another_gradient(multiview_folders, models):
    other = prepared(MVDream(multiview_folders["MVDream"]), "a blue chair")
    pair = [gradient(m, image_of(4), linked()) for m in (models["MVDream"], other)]
    assert not torch.allclose(*pair, rtol=1e-2)


# ---- the picture of ImageDream ----


def test_the_picture_is_a_fifth_frame_without_noise_and_camera(models, monkeypatch):
    model, seen = models["ImageDream"], {}

    def record(x, t, encoder_hidden_states, class_labels, return_dict):
        seen.update(x=x, t=t, text=encoder_hidden_states, camera=class_labels)
        return (torch.arange(len(x)).float().reshape(-1, 1, 1, 1).expand_as(x),)

    monkeypatch.setattr(model, "unet", record)
    noisy, t = torch.randn(8, 4, 8, 8), torch.tensor([3] * 4 + [7] * 4)
    out = model.denoiser(linked(groups=2), torch.full((8, 3, 64, 64), 0.26))(noisy, t)
    frames = seen["x"].unflatten(0, (2, 2, 5))  # conditions, groups, frames
    assert torch.equal(frames[0, :, :4].flatten(0, 1), noisy) and torch.equal(frames[1, :, :4].flatten(0, 1), noisy)
    assert (frames[0, :, 4] == 0).all() and torch.equal(frames[1, 1, 4], model.latents[GREYS.index(0.25)])
    cameras = seen["camera"].unflatten(0, (2, 2, 5))
    assert (cameras[:, :, 4] == 0).all() and torch.equal(cameras[0, :, :4].flatten(0, 1), camera_numbers(linked(groups=2)))
    assert seen["t"].tolist() == ([3] * 5 + [7] * 5) * 2
    tokens = seen["text"][:, -model.tokens.shape[1] :].unflatten(0, (2, 10))
    assert torch.equal(tokens[0, 3], model.no_tokens) and torch.equal(tokens[1, 3], model.tokens[1])
    assert torch.equal(seen["text"][:10, :77], model.text[:1].expand(10, -1, -1))  # the negative prompt first
    assert out[..., 0, 0, 0].tolist() == [[0, 1, 2, 3, 5, 6, 7, 8], [10, 11, 12, 13, 15, 16, 17, 18]]


def test_image_tokens_are_those_of_the_last_layer_but_one(models, multiview_folders):
    model = models["ImageDream"]
    encoder = model.parts.image_encoder()
    from guidance.diffusion import clip_image

    pixels = clip_image.preprocess(clip_image.over(picture().image, 1.0), 28)
    states = []
    hook = encoder.encoder.layers[-2].register_forward_hook(
        lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out)
    )
    encoder(pixels)
    hook.remove()
    torch.testing.assert_close(model.parts.resampler(states[0])[0], model.tokens[-1], rtol=1e-3, atol=1e-4)


def test_background_is_that_of_the_render():
    image = torch.zeros(2, 3, 8, 8)
    image[:, :, 1:-1, 1:-1] = 0.9  # the object
    image[1] += 0.5
    torch.testing.assert_close(background_of(image), torch.full((3,), 0.25))


def test_azimuth_of_the_picture_is_the_front(multiview_folders):
    model = ImageDream(multiview_folders["ImageDream"])
    here = gradient(prepared(model), image_of(4), linked(20.0))
    there = gradient(prepared(model, image=picture(azimuth=70.0)), image_of(4), linked(90.0))
    torch.testing.assert_close(there, here, rtol=1e-2, atol=1e-2)


def test_imagedream_takes_exactly_one_square_picture_and_needs_no_words(multiview_folders):
    model = ImageDream(multiview_folders["ImageDream"])
    with pytest.raises(UserError, match="takes one picture, got 0"):
        model.prepare(Conditions("a car"))
    with pytest.raises(UserError, match="takes one picture, got 2"):
        model.prepare(Conditions(images=(picture(), picture(azimuth=90.0))))
    with pytest.raises(UserError, match="takes a square picture, got 40 x 32"):
        model.prepare(Conditions(images=(ImageCondition(torch.rand(4, 32, 40)),)))
    prepared(model, text=None)


def test_mvdream_needs_a_prompt(multiview_folders):
    with pytest.raises(UserError, match="MVDream needs a prompt"):
        MVDream(multiview_folders["MVDream"]).prepare(Conditions(None))


# ---- layouts ----


@pytest.mark.parametrize("name", NAMES)
def test_original_file_and_folder_are_one_model(originals, models, name):
    original, folder = CLASSES[name](originals[name]), models[name]
    for ours, theirs in ((original.unet, folder.unet), (original.vae, folder.vae)):
        assert all(torch.equal(t, theirs.state_dict()[n]) for n, t in ours.state_dict().items())
    prepared(original)
    assert torch.equal(original.text, folder.text)
    if name == "ImageDream":
        assert torch.equal(original.tokens, folder.tokens)
    assert original.distiller.codec.size == 256


@pytest.mark.parametrize("name", NAMES)
def test_published_file_lists_are_complete(multiview_folders, name):
    image = name == "ImageDream"
    assert multiview_parts.missing(FOLDERS[name]["files"], image) is None
    made = {
        path.relative_to(multiview_folders[name]).as_posix() for path in multiview_folders[name].rglob("*") if path.is_file()
    }
    assert set(FOLDERS[name]["files"]) - made == set()


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler", "image_encoder"])
def test_a_folder_that_lacks_a_part_is_refused_by_name(multiview_folders, tmp_path, part):
    folder = shutil.copytree(multiview_folders["ImageDream"], tmp_path / "broken")
    shutil.rmtree(folder / part)
    with pytest.raises(UserError, match=f"lacks .*{part}"):
        ImageDream(folder)


def test_the_weights_of_one_are_refused_as_the_other(multiview_folders):
    with pytest.raises(UserError, match=r"of ImageDream, which needs a picture; give --guidance ImageDream"):
        MVDream(multiview_folders["ImageDream"])
    with pytest.raises(UserError, match="lacks image_encoder/config.json"):
        ImageDream(multiview_folders["MVDream"])


def test_a_unet_without_cameras_is_refused(tmp_path):
    tensors = {name: tensor for name, tensor in tiny_tensors("mvdream").items() if "camera_embed" not in name}
    torch.save(tensors, tmp_path / "sd.pt")
    with pytest.raises(UserError, match="lacks model.diffusion_model.camera_embed.0.weight, so it is not of MVDream"):
        MVDream(tmp_path / "sd.pt")


def test_an_original_file_without_a_tokenizer_beside_it_says_what_to_do(originals, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    shutil.copy(originals["MVDream"], tmp_path / "mvdream.pt")
    with pytest.raises(UserError, match="holds no tokenizer; put the folder tokenizer/"):
        MVDream(tmp_path / "mvdream.pt")


# ---- further ----


def test_samples_are_images_of_the_views(models):
    images = models["MVDream"].sample(linked(), 4, torch.Generator().manual_seed(0), steps=2, scale=7.5)
    assert images.shape == (4, 3, 64, 64) and 0 <= images.min() and images.max() <= 1


def test_debug_images_show_what_the_model_saw(models):
    debug = models["ImageDream"].loss(image_of(4), linked(), part_of("guided"), Control(T_RANGE), debug=True).debug
    assert {name: tuple(image.shape) for name, image in debug.items()} == dict.fromkeys(
        ("image", "noisy", "x0"), (4, 3, 64, 64)
    )


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_same_on_every_device(multiview_folders, models, device, name):
    other = prepared(CLASSES[name](multiview_folders[name], device, vram_O=True))
    image, views = image_of(4).to(device), linked().to(device)
    expected = gradient(models[name], image.cpu(), views.to("cpu"))
    torch.testing.assert_close(
        gradient(other, image, views).cpu(), expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())
    )


def test_attention_of_views_is_exact_for_any_number_of_heads():
    q, k, v = (torch.randn(2, n, 12, dtype=torch.float64) for n in (5, 7, 7))
    for heads in (1, 3):
        parts = [x.reshape(2, -1, heads, 12 // heads).transpose(1, 2) for x in (q, k, v)]
        expected = torch.softmax(parts[0] @ parts[1].transpose(-1, -2) / math.sqrt(12 // heads), -1) @ parts[2]
        torch.testing.assert_close(multiview.attention(q, k, v, heads), expected.transpose(1, 2).flatten(2))
