from __future__ import annotations

# pytest finds fixtures by their names in a conftest.
from tests.support.kube_fixtures import keyferry_image, node

__all__ = ["keyferry_image", "node"]
