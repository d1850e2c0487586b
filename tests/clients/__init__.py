"""Clients that nobody here wrote, from their registries, as their own documentation shows them."""
