"""Loopback endpoints for workloads. Lean: neither pydantic nor typer nor rich, so that a sidecar can afford them."""
