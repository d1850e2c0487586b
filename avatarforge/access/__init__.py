"""Access control: API keys, tickets, signed links and rate limits."""
