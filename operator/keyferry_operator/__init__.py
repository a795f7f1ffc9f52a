"""The Kubernetes operator of Keyferry: an adapter over the engine in `keyferry`."""
