"""Deletes what is no longer kept."""
