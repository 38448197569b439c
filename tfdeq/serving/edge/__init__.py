"""Files for small devices, such as phones: models converted for LiteRT and ONNX, and their answers."""
