"""Keyferry keeps the tokens of workloads fresh."""

__version__ = "0.1.0"
