"""The GPU: ``python -m benchmarks.gpu``. ``parts.py`` says what is measured; each group has its file."""
