"""A convolution whose weight gradient is fast on CPUs with bf16 units, and safe on those with AVX2."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

# With fewer input channels torch's strided 1×1 convolution is not used on a CPU. With 2 to 6 in channels_last, its
# weight gradient in torch 2.15 writes outside its memory on a CPU with AVX2 and without AVX-512 (seen on AMD Zen 3).
NARROW = 8
# Pixels of the output up to which a product over patches was faster than oneDNN's kernel: three to five times on one
# core of a Xeon with AMX, for 64 to 256 channels. At 8² the two are level.
SMALL = 16


class Conv2d(nn.Conv2d):
    """`torch.nn.Conv2d`, which on a CPU in bf16 autocast computes the weight gradient of small maps by one product.

    The gradient is the same to the rounding of bf16. On a CPU a strided 1×1 convolution of few channels picks its
    pixels first, and has no stride then. Everywhere else the module is torch's.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and self._skips_pixels() and self.in_channels < NARROW:
            x = x[..., :: self.stride[0], :: self.stride[1]]
            return F.conv2d(x, self.weight, self.bias, groups=self.groups)
        if not (x.device.type == "cpu" and torch.is_grad_enabled() and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        if torch.get_autocast_dtype("cpu") is not torch.bfloat16 or not self._small(x.shape[-2:]):
            return super().forward(x)
        bias = None if self.bias is None else self.bias.bfloat16()
        return _ByPatches.apply(x.bfloat16(), self.weight.bfloat16(), bias, self.stride, self.padding)

    def _skips_pixels(self) -> bool:
        return self.kernel_size == (1, 1) and self.padding == (0, 0) and self.stride != (1, 1)

    def _small(self, size: torch.Size) -> bool:
        if self.groups > 1 or self.dilation != (1, 1) or self.padding_mode != "zeros" or isinstance(self.padding, str):
            return False
        shape = zip(size, self.kernel_size, self.stride, self.padding, strict=True)
        height, width = ((n + 2 * pad - kernel) // stride + 1 for n, kernel, stride, pad in shape)
        return height * width <= SMALL


class _ByPatches(torch.autograd.Function):
    """A convolution whose weight gradient is the product of the output's gradient and the patches of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = conv2d_input(x.shape, weight, grad, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x, weight.shape, grad, ctx.stride, ctx.padding)
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3))
        return grad_x, grad_weight, grad_bias, None, None


def _weight_gradient(
    x: Tensor, shape: torch.Size, grad: Tensor, stride: tuple[int, int], padding: tuple[int, int]
) -> Tensor:
    out_channels, channels, height, width = shape
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    seen = padded.unfold(1, height, stride[0]).unfold(2, width, stride[1])  # (B, h, w, C, height, width)
    patches = seen.permute(0, 1, 2, 4, 5, 3).reshape(-1, height * width * channels)
    product = grad.permute(0, 2, 3, 1).reshape(-1, out_channels).t() @ patches
    return product.view(out_channels, height, width, channels).permute(0, 3, 1, 2)
