"""Certificates for one run: whoever does not hold them cannot speak to its Dask scheduler.

A Dask scheduler runs the code of whoever reaches its port. All processes of one aggregation share one self-signed
certificate that is its own authority; it lies in a folder of mode 700 and is valid for a few days.
"""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

CERTIFICATE, KEY = "cert.pem", "key.pem"
_DAYS = 7


def make_certificates(folder: Path) -> None:
    """Write certificate and key, readable by this user only; the folder must be new."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    folder.mkdir(mode=0o700, parents=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sparsehpc")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # An hour of slack: clocks of nodes need not agree.
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.PEM))
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / KEY, key.private_bytes(*private))


def security(folder: Path) -> Any:
    """Settings of ``distributed`` that speak TLS only, with the certificates of a folder on both sides."""
    from distributed.security import Security

    files = {"cert": str(folder / CERTIFICATE), "key": str(folder / KEY)}
    roles = {f"tls_{role}_{what}": path for role in ("scheduler", "worker", "client") for what, path in files.items()}
    return Security(require_encryption=True, tls_ca_file=str(folder / CERTIFICATE), **roles)


def _write(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
