from __future__ import annotations

import pytest

# kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
ENDS_EARLY = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
