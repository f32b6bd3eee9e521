"""A kernel is started without Triton's binder: never the variant of another call, and on the device
and stream of the moment."""

import itertools
from types import SimpleNamespace
from unittest import mock

import minimind_kernels as K
import pytest
import torch
from kernel_rows import INTERPRETED, typical_row
from minimind_kernels import backend

triton = pytest.importorskip("triton")
from minimind_kernels.triton_impl import config, launch  # noqa: E402
from triton import language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import make_backend  # noqa: E402
from triton.runtime import driver  # noqa: E402
from triton.runtime.jit import create_function_from_signature  # noqa: E402

pytestmark = [
    pytest.mark.skipif(INTERPRETED, reason="the interpreter has no variants"),
    pytest.mark.skipif(bool(torch.version.hip), reason="ROCm keeps Triton's own launch"),
]


@triton.jit(do_not_specialize=["num_rows"])
def kernel(
    x_ptr, y_ptr, num_rows, stride, strides, eps, WIDTH: tl.constexpr, HAS_Y: tl.constexpr
):  # fmt: skip
    pass


MEMORY = torch.zeros(64)

CALL = {
    "x_ptr": MEMORY, "y_ptr": MEMORY[16:], "num_rows": 48, "stride": 32, "strides": (32, 3),
    "eps": 1e-5, "WIDTH": 2, "HAS_Y": False,
}  # fmt: skip

OTHERS = {
    "x_ptr": (MEMORY.half(), MEMORY.bfloat16(), MEMORY.int(), MEMORY[1:], MEMORY[2:]),
    "y_ptr": (MEMORY.half(), MEMORY[17:], MEMORY[18:]),
    "num_rows": (1 << 31, 1 << 62, 1 << 63, -(1 << 40)),
    "stride": (1, True, 33, 1 << 31, 1 << 32, 1 << 63, 2.0),
    "strides": ((1, 3), (32, 16), (33, 3), (32, 1), (32, 1 << 32), (32, 3, 3), (32,)),
    "eps": (1, 16, 3, True),
    "WIDTH": (1, True, 4, 2.0, None),
    "HAS_Y": (True, 0, None),
}
"""Values that Triton compiles apart from CALL's and, mostly, from each other."""

ALIKE = {
    "x_ptr": MEMORY[32:], "num_rows": 1, "eps": 0.5,
}  # fmt: skip
"""Values that it compiles alike."""


@pytest.fixture(scope="module")
def keys():
    """Gives, of a call with some values changed, the key and all that Triton specialises by."""
    read = launch._reader(kernel)
    made_for = make_backend(GPUTarget("cuda", 90, 32))
    bind = create_function_from_signature(kernel.signature, kernel.params, made_for)

    def both(changed):
        arguments = CALL | changed
        bound, specialization, _ = bind(**arguments)
        # A constexpr is compiled in with its type.
        specialization = [
            (*one, repr(value)) if one[0] == "constexpr" else one
            for one, value in zip(specialization, bound.values(), strict=True)
        ]
        return read(0, 4, **arguments)[0], repr(specialization)

    return both


def test_calls_that_triton_compiles_apart_have_keys_apart(keys):
    single = [{name: value} for name, values in OTHERS.items() for value in values]
    double = [a | b for a, b in itertools.combinations(single[::3], 2)]
    seen = {}
    for changed in ({}, *single, *double):
        key, specialization = keys(changed)
        assert seen.setdefault(key, specialization) == specialization, changed
        assert (specialization == keys({})[1]) == (not changed), changed


def test_calls_that_triton_compiles_alike_share_a_key(keys):
    assert keys(ALIKE) == keys({})


class Recorded(triton.JITFunction):
    """Compiles nothing, and says what it was asked for."""

    def run(self, *, grid, warmup, **arguments):
        self.said.append(("compiled", grid, arguments))
        number = len(self.said)
        return SimpleNamespace(
            function=f"function {number}", packed_metadata="metadata",
            run=lambda *what: self.said.append(("ran", *what)),
        )  # fmt: skip


@pytest.fixture
def gpu(monkeypatch):
    """Two devices, of which `now` is the current one, with a stream of its own each."""
    gpu = SimpleNamespace(now=0)
    gpu.get_current_device = lambda: gpu.now
    gpu.get_current_stream = lambda device: f"stream {device}"
    monkeypatch.setattr(type(driver), "active", property(lambda _: gpu))
    return gpu


@pytest.fixture
def recorded():
    found = Recorded(kernel.fn, do_not_specialize=["num_rows"])
    found.said = []
    yield found
    launch._runs.pop(found.fn, None)


def start(recorded, grid=(3,), num_warps=4, **changed):
    recorded.said.clear()
    launch.launch(recorded, grid, num_warps, **CALL | changed)
    return recorded.said


def test_a_call_of_a_known_kind_is_started_without_triton(recorded, gpu):
    first = start(recorded)
    assert first == [("compiled", (3,), CALL | {"num_warps": 4})]
    x, y = (MEMORY[i:].data_ptr() for i in (32, 16))
    assert start(recorded, (5, 6), **ALIKE) == [
        ("ran", 5, 6, 1, "stream 0", "function 1", "metadata", None, None, None,
         x, y, 1, 32, (32, 3), 0.5, 2, False)
    ]  # fmt: skip


@pytest.mark.parametrize("changed", [{"num_warps": 8}, {"HAS_Y": True}, {"stride": 1}], ids=str)
def test_another_kind_is_compiled_once(recorded, gpu, changed):
    start(recorded)
    said = [start(recorded, **changed)[0][0] for _ in range(2)] + [start(recorded)[0][0]]
    assert said == ["compiled", "ran", "ran"]


def test_each_device_has_its_own_variants_and_stream(recorded, gpu):
    start(recorded)
    gpu.now = 1
    assert start(recorded)[0][0] == "compiled"
    assert start(recorded)[0][4] == "stream 1"
    gpu.now = 0
    assert start(recorded)[0][4] == "stream 0"


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_a_profiler_is_told_by_triton(recorded, gpu, hook):
    start(recorded)
    with mock.patch.object(getattr(triton.knobs.runtime, hook), "calls", [print]):
        assert start(recorded)[0][0] == "compiled"
    assert start(recorded)[0][0] == "ran"


def test_an_empty_grid_starts_nothing(recorded, gpu):
    assert start(recorded, (3, 0)) == []


@pytest.mark.parametrize("op", K.OPS.values(), ids=K.OPS)
def test_the_names_of_parameters_say_which_are_tensors(op, monkeypatch):
    launches = []
    monkeypatch.setattr(backend, "use_triton", lambda *_, **__: True)
    with launch.watch(lambda *what: launches.append(what), config.Device("sm_90", 132)):
        case = op.tested_case(torch.float32, "meta", **typical_row(op))
        outputs = case.ours(*case.inputs)
        if not case.uniform_grad:
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            torch.autograd.backward(outputs, [torch.empty_like(o) for o in outputs])
    assert launches or op.name == "linear_token_loss"
    for started, _, _, arguments in launches:
        assert {p.name for p in started.params} == set(arguments)
        for name, value in arguments.items():
            assert isinstance(value, torch.Tensor) == name.endswith("_ptr"), (started, name)
            hash(value)
