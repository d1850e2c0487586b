"""Webhooks: the word of a job's end, signed, on its way to the address that the client gave."""
