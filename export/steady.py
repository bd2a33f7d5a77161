"""Norms that stay exact in a runtime that adds long sums with one accumulator.

onnxruntime-web's InstanceNormalization and ReduceMean add thousands of float32 numbers in that way; a network's output
is then off by 2e-6 to 6e-6, in native runtimes by 4e-7. Means of rows, and then the mean of these, are as exact there
as in native runtimes.
"""

from __future__ import annotations

import math

from onnx import GraphProto, NodeProto, helper, shape_inference

from fastdiff.export.graph import IR_VERSION, OPSET, Graph


def steady_norms(graph: GraphProto) -> GraphProto:
    """The graph with each InstanceNormalization of known size as single operators, and its means in two stages."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    known = {info.name: info.type.tensor_type.shape for info in inferred}
    g = Graph("steady/")
    for node in graph.node:
        shape = known.get(node.input[0]) if node.op_type == "InstanceNormalization" else None
        size = shape.dim[2].dim_value if shape is not None and len(shape.dim) == 3 else 0
        if size:
            _take_apart(g, node, size)
        else:
            g.nodes.append(node)
    made = g.finish(graph.name, graph.input, graph.output)
    made.initializer.extend(graph.initializer)
    return made


def _take_apart(g: Graph, node: NodeProto, size: int) -> None:
    """x (B, G, size): (x - mean) / sqrt(var + eps) scale + bias, biased variance."""
    x, scale, bias = node.input
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    rows = next(k for k in range(math.isqrt(size), 0, -1) if size % k == 0)

    def mean(value: str) -> str:
        return g("ReduceMean", g("ReduceMean", value, g.constant([3])), g.constant([2]))

    def spread(value: str) -> str:  # (G,) → (G, 1, 1)
        return g("Unsqueeze", value, g.constant([1, 2]))

    parts = g("Reshape", x, g.constant([0, 0, rows, size // rows]))
    centred = g("Sub", parts, mean(parts))
    deviation = g("Sqrt", g("Add", mean(g("Mul", centred, centred)), g.constant(epsilon, "float32")))
    normed = g("Add", g("Mul", centred, g("Div", spread(scale), deviation)), spread(bias))
    g.nodes.append(helper.make_node("Reshape", [normed, g.constant([0, 0, size])], [node.output[0]], name=node.name))
