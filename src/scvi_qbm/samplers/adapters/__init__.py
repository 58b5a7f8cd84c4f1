"""Other people's samplers and machines; what they import stands here alone."""
