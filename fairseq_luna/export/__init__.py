"""A trained translation model as ONNX: what `fairseq_luna.onnx` translates with, without torch and without fairseq."""
