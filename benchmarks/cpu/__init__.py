"""The native engine against llama.cpp, the `rwkv` package and the limits of the machine: ``__main__.py``."""
