"""A CUDA device that is not there, so that the CUDA kernels and what surrounds them are tested without a GPU.

:mod:`builder` compiles the CUDA sources as C++ against the runtime in include/, which runs the threads of a kernel on the
CPU, forward, reversed or shuffled. :mod:`device` makes torch believe in one GPU; a tensor there is a
:class:`tensor.CudaTensor`, whose storage is in main memory. :mod:`plugin` selects both in a process of its own:

    python -m pytest -p tests.helpers.fake_cuda.plugin tests/raymarching

A program on the fake device is refused what CUDA refuses: operations between tensors of two devices, host memory in a kernel,
a generator of the other device. Memory that nobody has written holds NaN or large integers, a copy to pinned memory arrives
when its event is waited for and not before, and every wait of the host is recorded with the line that caused it.

What it does not show: speed, memory limits, races between threads that shuffling does not reveal (``make sanitize`` looks for
those), compilation by nvcc (tests/extension/test_cuda_sources.py), and CUDA's own list of operations under autocast.
"""
