"""Kaiwu: the sampler (adapter), its jobs, and the worker in the interpreter of the SDK."""
