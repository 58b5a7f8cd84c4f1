"""Comparisons: methods (AnnData in, embedding out) and the demo."""
