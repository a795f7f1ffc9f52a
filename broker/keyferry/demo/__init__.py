"""A small OAuth authorization server for the loopback: what `keyferry demo` talks to.

`token_service` decides and remembers (no I/O), `endpoints` maps requests to it, `issuer` listens.
"""
