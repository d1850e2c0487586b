"""How many Stable Diffusion replicas there should be: by backlog, measured in seconds of work."""
