"""Products by oneDNN: where they are taken, and that they are what PyTorch computes."""

from __future__ import annotations

import pytest
import torch
from small_models import small_model
from torch import nn

from canvas_asr import products
from canvas_asr.cpu_layers import quicken
from canvas_asr.products import MIN_ROWS, RowsLinear, VocabularyLinear, product, quicken_linears

needs_onednn = pytest.mark.skipif(not products._has_onednn(), reason="oneDNN is for x86 processors here")


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the products that PyTorch computes by itself."""
    counted: list[int] = []
    stock = nn.functional.linear

    def count(x: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        counted.append(len(x))
        return stock(x, *others)

    monkeypatch.setattr(nn.functional, "linear", count)
    return counted


@needs_onednn
@torch.no_grad()
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 1, 24)])
def test_a_product_is_what_pytorch_computes(bias: torch.Tensor | None, taken: list[int]) -> None:
    x, weight = torch.randn(3, 50, 40), torch.randn(24, 40)
    expected = x @ weight.mT + (0 if bias is None else bias)
    torch.testing.assert_close(product(x, weight, bias), expected, atol=1e-5, rtol=1e-4)
    strided = weight.mT.contiguous().mT
    torch.testing.assert_close(product(x[:, ::2], strided, bias), expected[:, ::2], atol=1e-5, rtol=1e-4)
    assert not taken


@pytest.mark.parametrize(
    "why", ["few rows", "gradients", "mixed types", "another type", "no oneDNN", "compiled", "none"]
)
def test_elsewhere_pytorch_computes_it_as_before(
    why: str, taken: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, weight = torch.randn(8, 40), torch.randn(24, 40)
    if why == "another type":
        x, weight = x.bfloat16(), weight.bfloat16()
    if why == "no oneDNN":
        monkeypatch.setattr(products, "_has_onednn", lambda: False)
    if why == "compiled":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    with torch.set_grad_enabled(why == "gradients"), torch.autocast("cpu", enabled=why == "mixed types"):
        found = product(x[:0] if why == "none" else x, weight, min_rows=9 if why == "few rows" else 1)
    assert found.shape == (0 if why == "none" else 8, 24)
    assert taken or why == "none"


@needs_onednn
def test_quickened_layers_compute_and_train_as_before(taken: list[int]) -> None:
    torch.manual_seed(0)
    stock = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4, bias=False))
    quick = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 4, bias=False))
    quick.load_state_dict(stock.state_dict())
    quicken_linears(quick)
    assert [type(layer) for layer in quick] == [RowsLinear, nn.GELU, nn.Linear]
    x = torch.randn(MIN_ROWS, 16)
    with torch.no_grad():
        torch.testing.assert_close(quick(x), stock(x), atol=1e-6, rtol=1e-5)
    assert len(taken) == 3  # two of the stock layers', one of a layer without a bias
    for layers in (stock, quick):
        layers(x).square().mean().backward()
    for name, parameter in stock.named_parameters():
        assert torch.equal(parameter.grad, quick.get_parameter(name).grad)


def test_the_output_layer_stays_tied() -> None:
    backbone = small_model().backbone
    quicken(backbone)
    assert type(backbone.lm_head) is VocabularyLinear
    assert backbone.lm_head.weight is backbone.model.decoder.embed_tokens.weight
