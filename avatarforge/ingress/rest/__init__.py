"""The REST API: its routes, responses and documentation."""
