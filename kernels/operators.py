"""(prototype) the operators that passes put in, as plain references."""

import torch
import torch.nn.functional as F

lib = torch.library.Library("fastdiff", "FRAGMENT")


def _act(x, name):
    if name is None:
        return x
    if name == "gelu_tanh":
        return F.gelu(x, approximate="tanh")
    return {"gelu": F.gelu, "silu": F.silu, "relu": F.relu}[name](x)


def group_norm_reference(x, groups, weight, bias, eps, after):
    return _act(F.group_norm(x, groups, weight, bias, eps), after)


def convolution_reference(x, weight, bias, stride, padding, dilation, groups, added, after, residual):
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if added is not None:
        y = y + added
    y = _act(y, after)
    return y if residual is None else y + residual


lib.define("group_norm(Tensor x, int groups, Tensor? weight, Tensor? bias, float eps, str? after) -> Tensor")
lib.impl("group_norm", group_norm_reference, "CompositeExplicitAutograd")
lib.define(
    "convolution(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding, int[] dilation, int groups, "
    "Tensor? added, str? after, Tensor? residual) -> Tensor"
)
lib.impl("convolution", convolution_reference, "CompositeExplicitAutograd")
group_norm = torch.ops.fastdiff.group_norm.default
convolution = torch.ops.fastdiff.convolution.default
