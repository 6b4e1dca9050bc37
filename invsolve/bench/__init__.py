"""Benchmarks: pictures, tasks and what came of them."""
