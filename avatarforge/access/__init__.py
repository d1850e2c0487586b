"""Who may come in: API keys, tickets, signed links and the rates at which they may ask."""
