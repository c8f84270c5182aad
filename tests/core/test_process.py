"""float32 products keep float32's precision whoever forms them; the switch is put back; which processors it is for."""

from pathlib import Path

import pytest
import torch

from ctrlrl.core import process

MATMUL = torch.backends.mkldnn.matmul
ZEN_5 = {"vendor_id": "AuthenticAMD", "cpu family": "26", "flags": "fpu avx2 avx512f avx512_bf16"}


@pytest.fixture
def cpuinfo(monkeypatch):
    """Calls with facts -> what is found of a processor that tells them, of two cores."""

    def found(facts: dict[str, str] | None) -> bool:
        if facts is None:
            monkeypatch.setattr(Path, "read_text", lambda self: (_ for _ in ()).throw(OSError("no such file")))
        else:
            core = "".join(f"{name}\t: {value}\n" for name, value in facts.items())
            monkeypatch.setattr(Path, "read_text", lambda self: f"{core}\n{core}\n")
        return process._wide_amd.__wrapped__()

    return found


def test_products_within_an_update_have_float32s_precision():
    torch.manual_seed(0)
    for n, k, m in ((256, 256, 256), (64, 750, 1), (7, 17, 64)):
        x, w, b = torch.randn(n, k), torch.randn(m, k), torch.randn(m)
        exact = b.double() + x.double() @ w.double().T
        size = b.double().abs() + x.double().abs() @ w.double().T.abs()
        with process.wide_products():
            found = torch.addmm(b, x, w.T), torch.baddbmm(b, x.unsqueeze(0), w.T.unsqueeze(0))[0]
        assert all(((y - exact).abs() / size).max() < 1e-6 for y in found)


def test_the_switch_is_put_back_and_a_choice_of_ones_own_stays(monkeypatch):
    monkeypatch.setattr(process, "_wide_amd", lambda: True)
    seen = []

    def product():
        with process.wide_products():
            seen.append(MATMUL.fp32_precision)
            torch.zeros(2, 3) @ torch.zeros(2, 3)

    try:
        for own in ("none", "ieee"):
            MATMUL.fp32_precision = own
            with pytest.raises(RuntimeError):
                product()
            assert MATMUL.fp32_precision == own
    finally:
        MATMUL.fp32_precision = "none"
    assert seen == ["bf16", "ieee"]


def test_which_processors_it_is_for(cpuinfo):
    assert cpuinfo(ZEN_5)
    assert not cpuinfo(ZEN_5 | {"cpu family": "25"}), "Zen 4: no faster"
    assert not cpuinfo(ZEN_5 | {"flags": "fpu avx2 avx512f amx_bf16 amx_tile"}), "would form bfloat16 products"
    assert not cpuinfo(ZEN_5 | {"flags": "fpu avx2"})
    assert not cpuinfo(ZEN_5 | {"vendor_id": "GenuineIntel"})
    assert not cpuinfo({"processor": "0", "Features": "fp asimd"}), "ARM"
    assert not cpuinfo(None)
