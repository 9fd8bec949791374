"""How it is computed: samplers, memory, several processes, the optimizer,
GGUF files, the log, the benchmark.
"""
