"""The queue of waiting jobs, their dispatch, and the backends that run them."""
