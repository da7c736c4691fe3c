"""Precisions, overflow and divergence, memory formats, torch.compile."""

import functools
from dataclasses import replace

import pytest
import torch
from tiny_training import FROZEN, SHORT, run

from deeplab.errors import InputError
from deeplab.training import trainer
from deeplab.training.checkpoint import Files, read_state
from deeplab.training.losses import StepLoss
from deeplab.weights import load_model


def test_bfloat16_trains_close_to_float32(pictures):
    full = run(replace(SHORT, steps=10), pictures)
    half = run(replace(SHORT, steps=10, precision="bfloat16"), pictures)
    assert half.loss == pytest.approx(full.loss, rel=0.1)
    assert all(p.dtype == torch.float32 for p in half.model.parameters())


def test_diverging_run_says_so_and_keeps_the_last_good_file(pictures, tmp_path):
    out = tmp_path / "w.safetensors"
    diverging = replace(SHORT, lr=1e30, steps=20)
    for good in (None, replace(SHORT, steps=2)):
        if good is not None:
            run(good, pictures, out, overwrite=True)
        before = out.read_bytes() if out.exists() else None
        with pytest.raises(FloatingPointError, match=r"training diverged; lower lr"):
            run(diverging, pictures, out, overwrite=True)
        assert (out.read_bytes() if out.exists() else None) == before
    load_model(out)


def test_weights_that_overflow_in_the_last_step_never_reach_a_file(pictures, tmp_path):
    out, frozen = tmp_path / "w.safetensors", FROZEN  # whose gradients are large
    run(replace(frozen, steps=1), pictures, out)
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    with pytest.raises(FloatingPointError, match="weights are NaN or Inf after step 0: training"):
        run(replace(frozen, steps=1, lr=3e38), pictures, out, overwrite=True)
    assert {path: path.read_bytes() for path in before} == before
    assert not Files(out).state.exists()


def test_memory_format_changes_no_result(pictures):
    plain = run(replace(SHORT, channels_last=False), pictures)
    assert plain.loss == pytest.approx(run(SHORT, pictures).loss, rel=1e-4)


@pytest.mark.slow
def test_a_compiled_run_is_the_run(pictures, monkeypatch):
    compiled, compile_ = [], torch.compile

    def compile_for_less(module):
        compiled.append(type(module))
        return compile_(module, backend="eager")

    monkeypatch.setattr(torch, "compile", compile_for_less)
    config = replace(SHORT, steps=2, compile=True)
    expected = run(replace(config, compile=False), pictures)
    result = run(config, pictures)
    assert compiled == [StepLoss]
    assert result.loss == pytest.approx(expected.loss, rel=1e-6)


class Overflowing:
    """Lets the steps that it is told overflow: in the network, or on the way back alone."""

    def __init__(self, monkeypatch, steps, backward=False):
        self.steps, self.backward, self.calls, self.forward = steps, backward, 0, StepLoss.forward
        monkeypatch.setattr(StepLoss, "forward", lambda *given: self(*given))

    def __call__(self, step, rgb, labels, mass):
        overflows = self.calls in self.steps
        self.calls += 1
        if overflows and not self.backward:
            rgb = rgb.float() * float("inf")
        loss = self.forward(step, rgb, labels, mass)
        if overflows and self.backward:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss


@pytest.mark.parametrize("backward", [False, True])
def test_a_step_that_overflows_float16_is_skipped_whole(pictures, monkeypatch, tmp_path, backward):
    out = tmp_path / "w.safetensors"
    half = replace(SHORT, precision="float16", policy="step", steps=2)
    before = run(half, pictures).model.state_dict()
    Overflowing(monkeypatch, {2}, backward)
    after = run(replace(half, steps=3), pictures, out)
    assert after.steps == 3
    assert 0 < after.loss < 10
    parameters = dict(after.model.named_parameters())
    for name, tensor in after.model.state_dict().items():
        if name in parameters or not backward:  # a forward pass that is finite may count
            assert torch.equal(tensor, before[name]) or name.endswith("batches_tracked"), name
    assert read_state(Files(out).state)["scaler"]["scale"] == 2.0**15  # half of the first
    load_model(out)


@pytest.mark.parametrize("backward", [False, True])
def test_a_run_that_overflows_float16_in_every_step_ends(pictures, monkeypatch, backward):
    scaler = functools.partial(torch.amp.GradScaler, init_scale=4.0)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    seen = Overflowing(monkeypatch, range(2, 100), backward)
    half = replace(SHORT, precision="float16", steps=100)
    message = r"float16 overflows in every step up to step 4: .*precision=bfloat16"
    with pytest.raises(FloatingPointError, match=message):
        run(half, pictures)
    assert seen.calls == 5  # the scale: 4, 4, 2, 1, a half


@pytest.mark.parametrize(("precision", "dtype"), [("bfloat16", torch.bfloat16), ("float32", None)])
def test_validation_computes_in_the_precision_of_the_run(pictures, monkeypatch, precision, dtype):
    seen, evaluate = [], trainer.evaluate

    def watched(*args, **kwargs):
        enabled = torch.is_autocast_enabled("cpu")
        seen.append(torch.get_autocast_dtype("cpu") if enabled else None)
        return evaluate(*args, **kwargs)

    monkeypatch.setattr(trainer, "evaluate", watched)
    run(replace(SHORT, precision=precision), pictures)
    assert seen == [dtype]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    ],
)
def test_memory_that_is_not_enough_is_said_with_what_to_lower(pictures, monkeypatch, error):
    def refuse(*_):
        raise error

    monkeypatch.setattr(StepLoss, "forward", refuse)
    with pytest.raises(InputError, match="not enough memory for steps of 2 samples of 33 x 33"):
        run(SHORT, pictures)
