"""TLS towards the API server, as a kubeconfig or the pod's service account has it."""

from __future__ import annotations

import base64
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import kopf


def tls_context(info: kopf.ConnectionInfo) -> ssl.SSLContext:
    """Return the TLS context that a kubeconfig, or the pod's service account, asks for."""
    context = ssl.create_default_context(
        cafile=str(info.ca_path) if info.ca_path else None, cadata=_decoded(info.ca_data) if info.ca_data else None
    )
    if info.certificate_path and info.private_key_path:
        context.load_cert_chain(str(info.certificate_path), str(info.private_key_path))
    elif info.certificate_data and info.private_key_data:
        with tempfile.TemporaryDirectory() as directory:  # the ssl module reads files only
            certificate, key = Path(directory) / "tls.crt", Path(directory) / "tls.key"
            certificate.write_text(_decoded(info.certificate_data))
            key.touch(0o600)
            key.write_text(_decoded(info.private_key_data))
            context.load_cert_chain(certificate, key)
    return context


def _decoded(data: str | bytes) -> str:
    """Return PEM text that a kubeconfig holds in base64."""
    raw = data if isinstance(data, bytes) else data.encode()
    return raw.decode() if b"-----BEGIN" in raw else base64.b64decode(raw).decode()
