"""Measures the engine, in process or behind HTTP, on traffic of mixed sizes."""
