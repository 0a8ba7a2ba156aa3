"""Shared protocol of the stage scripts: text, data, artifacts, fake-quantization, export, measuring."""
