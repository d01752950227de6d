"""Who may start us: what is registered with Prefect, and clients of its API."""
