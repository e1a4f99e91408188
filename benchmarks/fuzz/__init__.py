"""Coverage-guided fuzzing of everything that reads what a client sends, one target a reader (``benchmarks.fuzz``)."""
