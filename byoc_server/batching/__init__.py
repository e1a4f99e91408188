"""Forming batches of concurrent requests. Knows neither HTTP nor ONNX Runtime."""
