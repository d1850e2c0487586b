"""Real servers of our own for tests and benchmarks, each in a temporary folder on a free port."""
