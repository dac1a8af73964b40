"""The multi-view prior: attention over linked views, what it changes of the text-conditioned prior, and its file."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from guidance.diffusion.multiview import JointAttention
from guidance.prior import model, multiview_model
from guidance.prior.multiview_model import LinkedAttention, build, change, changes, join, load, save
from nerf.core.errors import UserError


def layer(heads=2):
    """A self-attention layer of diffusers with random weights."""
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=16, heads=heads, dim_head=8).double()


def tokens(groups=2, frames=4, seed=1):
    return torch.randn(groups * frames, 5, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def attended(attn, x, offset, frames=4):
    """The output of a layer with linked attention of this offset."""
    linked = LinkedAttention(attn.heads, frames).double()
    torch.nn.init.constant_(linked.offset, offset)
    attn.set_processor(linked)
    return attn(x)


def test_without_an_offset_it_is_the_joint_attention_of_mvdream():
    attn, x = layer(), tokens()
    out = attended(attn, x, 0.0)
    attn.set_processor(JointAttention(4))
    torch.testing.assert_close(out, attn(x))


def test_a_low_offset_and_single_views_are_plain_self_attention():
    attn, x = layer(), tokens()
    expected = attn(x)
    torch.testing.assert_close(attended(attn, x, -1e4), expected)
    torch.testing.assert_close(attended(attn, x, 0.0, frames=1), expected)
    assert (attended(attn, x, 0.0) - expected).abs().max() > 1e-3


def test_groups_do_not_see_each_other_and_the_order_of_views_does_not_matter():
    attn, x = layer(), tokens()
    out = attended(attn, x, -1.0)
    torch.testing.assert_close(attended(attn, x[:4], -1.0), out[:4])
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(attended(attn, x[:4][order], -1.0), out[:4][order])


def test_gradients_of_tokens_and_offset_are_exact():
    linked = LinkedAttention(2, 2).double()
    x = torch.randn(1, 6, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_()

    def out(x, offset):
        return torch.func.functional_call(Attend(linked), {"linked.offset": offset}, (x,))

    assert torch.autograd.gradcheck(out, (x, linked.offset))


class Attend(torch.nn.Module):
    """Linked attention as a function of its tokens."""

    def __init__(self, linked):
        super().__init__()
        self.linked = linked

    def forward(self, x):
        return self.linked.attend(x, 0.5 * x, x.flip(1), 2)


def predictions(prior, text, count=4):
    """x_0 for random inputs under one text embedding."""
    generator = torch.Generator().manual_seed(3)
    noisy, ray = torch.randn(count, 192, 8, 8, generator=generator), torch.randn(count, 13, 8, 8, generator=generator)
    camera = torch.randn(count, 8, generator=generator)
    with torch.no_grad():
        return prior.predict(noisy, torch.full((count,), 700), text.expand(count, -1, -1), camera, ray)


def test_a_new_one_predicts_for_single_views_what_the_text_conditioned_prior_does(prior_folder):
    base, prior = model.load(prior_folder), build(prior_folder)
    base.detail = None
    text = base.encode_text(["a red car"]).detach()
    join(prior.unet, False)
    alone, expected = predictions(prior, text), predictions(base, text)
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)
    join(prior.unet, True)
    torch.testing.assert_close(predictions(prior, text), expected, rtol=0.2, atol=0.1)
    assert (predictions(prior, text) - expected).abs().max() > 1e-5


def test_what_is_saved_are_the_attention_blocks_and_the_words_alone(prior_folder, multiview_changes, tmp_path):
    prior, base = load(multiview_changes, prior_folder), model.load(prior_folder)
    save(prior, tmp_path, {"steps": 1})
    tensors = load_file(tmp_path / multiview_model.FILE)
    assert '"steps": 1' in (tmp_path / "recipe.json").read_text()
    assert all(".attentions." in name and value.dtype == torch.float16 for name, value in tensors.items())
    assert sum(name.endswith("attn1.processor.offset") for name in tensors) == len(multiview_model.self_attention(prior.unet))
    theirs = dict(base.unet.named_parameters())
    differ = {
        name for name, value in prior.unet.named_parameters() if name not in theirs or not torch.equal(value, theirs[name])
    }
    assert differ == set(tensors)
    again = load(tmp_path, prior_folder)
    for (name, value), other in zip(changes(prior.unet).items(), changes(again.unet).values(), strict=True):
        torch.testing.assert_close(value, other, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.parametrize("damage", ["missing", "bytes", "tensor", "shape", "further"])
def test_a_file_that_does_not_fit_is_refused_in_one_sentence(prior_folder, multiview_changes, tmp_path, damage):
    path = tmp_path / multiview_model.FILE
    tensors = load_file(multiview_changes / multiview_model.FILE)
    name = next(name for name in tensors if name.endswith("to_q.weight"))
    if damage == "tensor":
        del tensors[name]
    elif damage == "shape":
        tensors[name] = tensors[name][:1].contiguous()
    elif damage == "further":
        tensors["further"] = torch.zeros(1)
    if damage == "bytes":
        path.write_bytes(b"no tensors")
    elif damage != "missing":
        save_file(tensors, path)
    words = "cannot be read" if damage in ("missing", "bytes") else "does not fit the text-conditioned prior"
    with pytest.raises(UserError, match=words):
        change(model.load(prior_folder).unet, tmp_path)
