"""``keyferry sidecar``: keeps the token files and loopback endpoints of one pod fresh, from the broker API.

Lean, for it runs beside every workload: no kopf, pydantic, Kubernetes client, typer or rich, and no HTTP library but
where endpoints are served.
"""
