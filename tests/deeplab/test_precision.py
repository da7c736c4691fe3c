"""What a network computes in where that is left to the device."""

import pytest
import torch

from deeplab.cli.shared.network import torch_precision
from deeplab.errors import InputError
from deeplab.model import deeplab_v2_small
from deeplab.precision import chosen, computes_bfloat16
from deeplab.predict import Predictor
from deeplab.training.step import autocast_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.mark.parametrize("has", [True, False])
def test_auto_is_bfloat16_where_the_device_computes_in_it(has: bool, monkeypatch) -> None:
    asked = []

    def of_gpu(including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return has

    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: has)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", of_gpu)
    for device in (CPU, CUDA):
        assert computes_bfloat16(device) is has
        assert chosen("auto", device) == (torch.bfloat16 if has else torch.float32)
        assert chosen(torch.float16, device) == torch.float16
        assert autocast_dtype("auto", device) == (torch.bfloat16 if has else None)
    assert asked
    assert not any(asked)
    assert Predictor(deeplab_v2_small(3), precision="auto").dtype == chosen("auto", CPU)
    assert Predictor(deeplab_v2_small(3)).dtype == torch.float32


def test_without_onednn_a_processor_does_not_compute_in_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: False)
    assert chosen("auto", CPU) == torch.float32
    assert chosen("auto", torch.device("meta")) == torch.float32


def test_the_option_names_the_precision() -> None:
    assert torch_precision("auto") == "auto"
    assert torch_precision("bfloat16") == torch.bfloat16
    with pytest.raises(InputError, match="--precision half must be float32, bfloat16, float16 or"):
        torch_precision("half")
    with pytest.raises(ValueError, match=r"precision must be .* not 'half'"):
        chosen("half", CPU)  # type: ignore[arg-type]
