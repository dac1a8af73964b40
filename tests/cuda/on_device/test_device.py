"""What a program on the fake device is refused, and what it is seen to wait for."""

import pytest
import torch

import extension
from tests.helpers.fake_cuda import waits
from tests.helpers.fake_cuda.tensor import CudaTensor, DeviceError
from tests.helpers.fake_cuda.waits import SynchronizationError


def kinds(action):
    """What the host waits for in ``action``."""
    with waits.record() as seen:
        action()
    return {wait.kind for wait in seen.waits}


@pytest.fixture
def x():
    """Three numbers on the device."""
    return torch.arange(3, dtype=torch.float32, device="cuda")


def test_a_tensor_says_that_it_is_on_the_device(x):
    assert x.device == torch.device("cuda:0") and x.is_cuda and not x.is_cpu and isinstance(x, CudaTensor)
    assert (x + 1).is_cuda and x[1:].is_cuda and torch.zeros_like(x).is_cuda and x.new_zeros(2).is_cuda
    assert torch.nn.Linear(3, 2).to("cuda").weight.is_cuda
    assert torch.equal(x.cpu(), torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize(
    "mixed",
    [
        lambda x: x + torch.ones(3),
        lambda x: torch.cat([x, torch.ones(3)]),
        lambda x: torch.ones(2, 3) @ x,
        lambda x: torch.where(x > 1, x, torch.zeros(3)),
        lambda x: x.add_(torch.ones(3)),
    ],
)
def test_tensors_of_two_devices_are_refused(x, mixed):
    with pytest.raises(DeviceError, match="on the same device"):
        mixed(x)


def test_numbers_of_the_host_are_let_in_as_on_cuda(x):
    assert (x * torch.tensor(2.0)).is_cuda and (x + 1.5).is_cuda


def test_the_host_s_array_of_a_device_tensor_is_refused(x):
    with pytest.raises(TypeError, match="cuda:0"):
        x.numpy()


def test_a_generator_of_the_other_device_is_refused(x):
    with pytest.raises(DeviceError, match="'cuda' device type for generator but found 'cpu'"):
        torch.rand(3, generator=torch.Generator(), device="cuda")
    with pytest.raises(DeviceError, match="'cpu' device type for generator but found 'cuda'"):
        torch.rand(3, generator=torch.Generator("cuda"))
    assert torch.rand(3, generator=torch.Generator("cuda").manual_seed(1), device="cuda").is_cuda


def test_memory_that_nobody_has_written_shows(x):
    assert torch.empty(3, device="cuda").isnan().all() and torch.empty_like(x).isnan().all() and x.new_empty(2).isnan().all()
    assert (torch.empty(3, dtype=torch.int32, device="cuda") > 1 << 30).all()


@pytest.mark.parametrize(
    ("kind", "action"),
    [
        ("item", lambda x: x[0].item()),
        ("item", lambda x: bool(x.isfinite().all())),
        ("item", lambda x: float(x.sum())),
        ("tolist", lambda x: x.tolist()),
        ("copy to the host", lambda x: x.cpu()),
        ("copy to the host", lambda x: x.to("cpu")),
        ("copy to the host", lambda x: torch.empty(3).copy_(x)),
        ("nonzero", lambda x: x.nonzero()),
        ("nonzero", lambda x: torch.where(x > 0)),
        ("index by a mask", lambda x: x[x > 0]),
        ("repeat_interleave", lambda x: x.repeat_interleave(x.long())),
        ("unique", lambda x: x.unique()),
        ("copy to the device", lambda x: torch.ones(3).cuda()),
        ("copy to the device", lambda x: torch.tensor([1.0], device="cuda")),
        ("copy to the device of memory that is not pinned", lambda x: torch.ones(3).to("cuda", non_blocking=True)),
        ("copy to the device of an index or a value", lambda x: x[torch.tensor([0, 1])]),
        ("torch.cuda.synchronize", lambda x: torch.cuda.synchronize()),
        ("stream", lambda x: torch.cuda.current_stream().synchronize()),
    ],
)
def test_every_kind_of_wait_is_seen(x, kind, action):
    assert kind in kinds(lambda: action(x))


@pytest.mark.parametrize(
    "action",
    [
        lambda x: (x * 2).sum(),
        lambda x: torch.where(x > 0, x, 0.0),
        lambda x: x.repeat_interleave(2),
        lambda x: torch.ones(3, pin_memory=True).to("cuda", non_blocking=True),
        lambda x: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
        lambda x: torch.zeros(3, device="cuda").uniform_(),
        lambda x: x.clone().requires_grad_().square().sum().backward(),
        lambda x: torch.nn.functional.normalize(x, dim=0),
    ],
)
def test_what_nobody_waits_for_is_no_wait(x, action):
    assert kinds(lambda: action(x)) == set()


def test_a_wait_has_the_line_and_the_function_that_caused_it(x):
    with waits.record() as seen:
        x.sum().item()
    (wait,) = seen.waits
    assert wait.path == "tests/cuda/on_device/test_device.py" and wait.line > 0
    assert seen.by_function() == {("test_a_wait_has_the_line_and_the_function_that_caused_it", "item"): 1}
    assert seen.operations["sum"] == 1


def test_waits_can_be_forbidden(x):
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(SynchronizationError, match="item"):
            x.sum().item()
        torch.cuda.synchronize()  # an explicit wait is allowed
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_copy_to_pinned_memory_arrives_with_its_event_and_not_before(x):
    host = torch.zeros(3, pin_memory=True)
    host.copy_(x, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    assert host.isnan().all() and not event.query()
    event.synchronize()
    assert host.tolist() == [0.0, 1.0, 2.0] and event.query()


def test_pinned_memory_is_not_written_to_before_the_copy_from_it_has_been_waited_for(x):
    host = torch.ones(3, pin_memory=True)
    there, event = host.to("cuda", non_blocking=True), torch.cuda.Event()
    event.record()
    host[1] = 5.0
    with pytest.raises(DeviceError, match="was written to while a copy to the device was reading it"):
        event.synchronize()
    there = host.to("cuda", non_blocking=True)
    event.record()
    event.synchronize()
    host[1] = 6.0  # the copy is over
    torch.cuda.synchronize()
    assert there.tolist() == [1.0, 5.0, 1.0]


def test_memory_of_the_host_is_refused_by_a_kernel_of_the_device(x):
    double = x.double()
    increment = extension.kernel("extension", "extension_increment", x.device)
    with pytest.raises(DeviceError, match="extension_increment_cuda: argument 0"):
        increment(torch.zeros(3, dtype=torch.float64), double, 3)
    with waits.record() as seen:
        increment(double, double, 3)
    assert double.tolist() == [1.0, 2.0, 3.0] and seen.kernels == {"extension_increment": 1}


def test_half_precision_is_chosen_by_autocast_and_its_gradients_are_scaled(x):
    layer = torch.nn.Linear(3, 2, device="cuda")
    optimizer, scaler = torch.optim.SGD(layer.parameters(), lr=0.1), torch.amp.GradScaler("cuda", init_scale=8.0)
    with torch.autocast("cuda", torch.float16):
        out = layer(x)
    assert out.dtype == torch.float16 and scaler.is_enabled()
    scaler.scale(out.float().sum()).backward()
    assert layer.bias.grad.tolist() == [8.0, 8.0]
    assert {"item"} <= kinds(lambda: scaler.step(optimizer))
    assert layer.bias.grad.tolist() == [1.0, 1.0]
