"""Device, precision, seeds, shares, signals and the lock on a run folder."""

import copy
import itertools
import os
import socket
import sys

import forked
import pytest
import torch

from aavae.errors import UserError
from aavae.runtime import processes, randomness
from aavae.runtime.device import make_deterministic, pick_device, pick_precision
from aavae.runtime.processes import Processes
from aavae.runtime.randomness import generator_for, seed_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def same_torch_settings_afterwards():
    precision, deterministic = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.set_float32_matmul_precision(precision)
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = benchmark


@pytest.fixture
def no_accelerator(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


# ---- Device and precision -----------------------------------------------------------------------------------------


def test_auto_is_the_cpu_where_there_is_nothing_else(no_accelerator):
    assert pick_device("auto") == CPU == pick_device("cpu")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cuda", "device=cuda was asked for, but torch sees 0 CUDA devices here; try device=cpu"),
        ("cuda:3", "device=cuda:3 was asked for"),
        ("mps", "device=mps was asked for"),
        ("gpu", "must be auto, cpu, cuda, cuda:N or mps, not 'gpu'"),
        ("meta", "not 'meta'"),
        ("", "not ''"),
        (None, "device must be auto"),
    ],
)
def test_a_device_that_is_not_there_gets_one_clear_message(no_accelerator, name, words):
    with pytest.raises(UserError, match=words):
        pick_device(name)


def test_auto_precision_on_a_cpu_is_float32():
    picked = pick_precision("auto", CPU)
    assert (picked.name, picked.dtype) == ("fp32", None)
    with picked.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


def test_bf16_computes_in_bf16_and_needs_no_scaler():
    picked = pick_precision("bf16", CPU)
    with picked.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
    assert not picked.scaler().is_enabled()


@pytest.mark.parametrize(("bf16", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_auto_on_cuda_is_bf16_where_it_has_it_and_else_fp16_with_a_scaler(monkeypatch, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: bf16)
    tf32 = torch.backends.cudnn.allow_tf32
    picked = pick_precision("auto", torch.device("cuda"))
    torch.backends.cudnn.allow_tf32 = tf32
    assert picked.dtype == expected


@pytest.mark.parametrize("name", ["fp16", "tf32"])
def test_what_needs_cuda_says_so(name):
    with pytest.raises(UserError, match=f"precision={name} needs a CUDA device; on cpu use fp32 or bf16"):
        pick_precision(name, CPU)


def test_an_unknown_precision_is_told_the_known_ones():
    with pytest.raises(UserError, match="one of auto, fp32, tf32, bf16, fp16, not 'bf17'"):
        pick_precision("bf17", CPU)


def test_fp32_means_full_float32_products_whatever_was_set_before():
    torch.set_float32_matmul_precision("medium")
    pick_precision("fp32", CPU)
    assert torch.get_float32_matmul_precision() == "highest"


def test_deterministic_refuses_kernels_that_are_not(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    make_deterministic()
    assert torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


# ---- Seeds --------------------------------------------------------------------------------------------------------


def test_a_seed_depends_on_every_key():
    keys = [(seed, what, step) for seed in range(3) for what in ("noise", "augmentation") for step in range(50)]
    keys += [(0, "noise"), (0, "noise", 0, 0), ("0", "noise", 0)]
    assert len({seed_for(*k) for k in keys}) == len(keys)


def test_seeds_are_what_torch_accepts_and_the_same_in_every_process():
    seeds = [seed_for(0, "noise", step) for step in range(100)]
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_for(0, "noise", 1) == 2376061928063757211  # no PYTHONHASHSEED; a change breaks every resume


def test_the_cpu_s_generator_keeps_the_lower_half_of_a_seed():
    """What `seed_for` says of collisions; torch's own documentation does not."""
    seed = seed_for(0, "noise", 1)
    full, low, high = (torch.Generator().manual_seed(s) for s in (seed, seed % 2**32, seed >> 32))
    assert torch.equal(torch.rand(9, generator=full), torch.rand(9, generator=low))
    assert not torch.equal(torch.rand(9, generator=low), torch.rand(9, generator=high))


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_many_uniform_numbers_are_drawn_where_they_are_needed(device, monkeypatch):
    asked = {}

    class Generator:
        def __init__(self, device):
            self.device = device

        def manual_seed(self, seed):
            asked["generator"] = (self.device.type, seed)
            return self

    generator = generator_for(0, "diagnostics", 1)
    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "rand", lambda shape, generator, device: asked.update(drawn=(shape, device.type)))
    randomness.uniform((2, 3), generator, torch.device(device))
    assert asked == {"generator": (device, seed_for(0, "diagnostics", 1)), "drawn": ((2, 3), device)}


def test_on_a_cpu_they_are_the_generator_s_own():
    drawn = randomness.uniform((2, 3), generator_for(0, "x"), CPU)
    assert torch.equal(drawn, torch.rand(2, 3, generator=generator_for(0, "x")))


def test_draws_are_a_function_of_their_keys_alone():
    first = torch.randn(5, generator=generator_for(0, "noise", 7))
    torch.manual_seed(99)
    torch.randn(100)
    assert torch.equal(first, torch.randn(5, generator=generator_for(0, "noise", 7)))
    assert not torch.equal(first, torch.randn(5, generator=generator_for(0, "noise", 8)))


def test_making_a_generator_leaves_the_global_one_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    generator_for(1, 2, 3)
    assert torch.equal(torch.rand(1), expected)


# ---- Processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_shares_cover_the_batch_once_in_order(world):
    rows = [list(range(12))[Processes(rank, world).share(12)] for rank in range(world)]
    assert list(itertools.chain(*rows)) == list(range(12)) and len({len(r) for r in rows}) == 1


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match="batch_size=10 does not divide among 4 processes"):
        Processes(0, 4).share(10)


def test_alone_there_is_nobody_to_talk_to(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes.processes(CPU) as alone:
        alone.wait()
        assert alone.leads and alone.any(True) and not alone.any(False)
    assert not torch.distributed.is_initialized()


def _decided(rank: int, port: int, answers) -> None:
    with forked.joined(rank, port) as both:
        decided = (
            both.any(rank == 1),
            both.any(False),
            both.largest(rank),
            both.average(torch.tensor(2.0 * rank)).item(),
        )
        answers.put((*decided, copy.deepcopy(both) is both))


def test_two_processes_decide_the_same():
    assert forked.pair(_decided) == [(True, False, 1, 1.0, True)] * 2


def _given_a_seed_each(rank: int, port: int, answers) -> None:
    sys.argv = ["aavae-train", f"seed={rank}"]  # srun sh -c 'aavae-train seed=$SLURM_PROCID'
    try:
        with forked.joined(rank, port):
            answers.put("joined")
    except UserError as error:
        answers.put((str(error), getattr(error, "said", False)))


def test_two_processes_with_different_commands_are_refused_once():
    assert sorted(forked.pair(_given_a_seed_each)) == [(processes.UNLIKE, False), (processes.UNLIKE, True)]


def test_processes_that_do_not_find_each_other_say_where_they_looked(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        describes = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        for name, value in describes.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UserError, match=f"cannot reach the others at 127.0.0.1:{port}"), processes.processes(CPU):
            pass
