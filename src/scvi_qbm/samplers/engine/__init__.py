"""What samplers, prior and log Z share: chains, kernels, random numbers."""
