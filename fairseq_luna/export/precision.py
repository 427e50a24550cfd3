"""Precisions that graphs are stored and computed in."""

from pathlib import Path
from typing import Any

PRECISIONS = "fp32", "int8"


def save(graph: Any, path: Path, precision: str) -> None:
    """Write a graph.

    Args:
        graph: of onnx, in fp32.
        path: of the file.
        precision: fp32; or int8, which keeps the weights of products as whole numbers of 8 bits, with a scale for each
            column, and finds a scale for what they are multiplied with as it comes.
    """
    import onnx

    if precision == "fp32":
        onnx.save(graph, str(path))
        return
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(
        folded(graph),
        str(path),
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
    )


def folded(graph: Any) -> Any:
    """A graph in which weights that are transposed before a product are stored so: others are not quantised."""
    import onnx
    from onnx import numpy_helper

    weights = {each.name: each for each in graph.graph.initializer}
    for node in list(graph.graph.node):
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next((list(each.ints) for each in node.attribute if each.name == "perm"), None)
            moved = numpy_helper.to_array(weights[node.input[0]]).transpose(order).copy()
            graph.graph.initializer.append(numpy_helper.from_array(moved, node.output[0]))
            graph.graph.node.remove(node)
    onnx.checker.check_model(graph)
    return graph
