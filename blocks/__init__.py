"""Whom we talk to: one typed Prefect Block per outside system."""
