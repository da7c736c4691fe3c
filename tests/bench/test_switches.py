import pytest
import switches
import torch


def test_all_switches_are_on_inside_and_as_before_afterwards() -> None:
    def breaks_inside() -> None:
        with switches.tuned():
            assert set(switches.state().values()) == {True}
            raise RuntimeError("broken")

    before = switches.state()
    with pytest.raises(RuntimeError, match="broken"):
        breaks_inside()
    assert switches.state() == before


@pytest.mark.parametrize("enabled", [True, False])
def test_cudnn_is_off_inside_and_as_before_afterwards(enabled: bool) -> None:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = enabled
    try:
        with switches.without_cudnn():
            assert not torch.backends.cudnn.enabled
        assert torch.backends.cudnn.enabled is enabled
    finally:
        torch.backends.cudnn.enabled = before
