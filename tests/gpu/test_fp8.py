"""FP8 pieces against the same products in bf16 and fp32."""

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("one_process")]


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found.float() - expected.float()).norm() / expected.float().norm()).item()


def test_head_in_fp8():
    """The head's output and both of its gradients are those of the product, but for e4m3's and e5m2's rounding."""
    from latxa_megatron.model.fp8 import Fp8Head
    from latxa_megatron.model.gpt import build_model
    from latxa_megatron.model.layout import Layout, Precision
    from latxa_megatron.model.llama import LlamaShape

    shape = LlamaShape(2, 256, 512, 4, 2, 64, 1024, 512, 1e-5, 1e4, None, False)
    model = build_model(shape, Layout(), Precision(fp8="tensorwise", fp8_head=True))[0]
    head = model.output_layer
    assert isinstance(head, Fp8Head)
    head.fuse_wgrad_accumulation = False  # there is no main_grad here
    x = torch.randn(128, 1, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn(128, 1, 1024, device="cuda", dtype=torch.bfloat16)
    out, bias = head(x)
    out.backward(dy)
    assert bias is None
    weight = head.weight.float()
    assert 1e-4 < relative(out, x.float() @ weight.t()) < 5e-2
    assert 1e-4 < relative(x.grad, dy.float() @ weight) < 1e-1
    assert 1e-4 < relative(head.weight.grad, dy.float().flatten(0, 1).t() @ x.float().flatten(0, 1)) < 1e-1


def test_flat_weights_are_cast_as_before(monkeypatch):
    import transformer_engine_torch as tex
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Quantizer

    from latxa_megatron.model import fp8

    weight = torch.randn(1 << 20, device="cuda")
    quantizer = Float8Quantizer(torch.full((1,), 100.0, device="cuda"), torch.empty(1, device="cuda"), tex.DType.kFloat8E4M3)
    expected, found = (quantizer(torch.zeros_like(weight)) for _ in range(2))
    fp8._update_quantized(quantizer, weight, expected)
    seen = []
    real = fp8._update_quantized
    monkeypatch.setattr(fp8, "_update_quantized", lambda *a, **k: seen.append(a[0].columnwise_usage) or real(*a, **k))
    fp8._without_transpose(quantizer, weight, found)
    assert seen == [False]
    assert torch.equal(found._data, expected._data)
    assert found._data.any()
    assert quantizer.columnwise_usage


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weight_gradient_is_added_into_the_buffer(dtype):
    import fused_weight_gradient_mlp_cuda as fused

    add = fused.wgrad_gemm_accum_fp32 if dtype == torch.float32 else fused.wgrad_gemm_accum_fp16
    x = torch.randn(64, 1, 128, device="cuda", dtype=torch.bfloat16)
    dy = torch.randn(64, 1, 256, device="cuda", dtype=torch.bfloat16)
    total = torch.randn(256, 128, device="cuda", dtype=dtype)
    expected = total.float() + dy.float().flatten(0, 1).t() @ x.float().flatten(0, 1)
    add(x, dy, total)
    assert relative(total, expected) < (1e-6 if dtype == torch.float32 else 1e-2)
