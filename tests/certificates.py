"""Certificates as an operator would have them: a signing one and the authority that made it."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
    generate_private_key,
)


@dataclass(frozen=True, kw_only=True)
class Files:
    """PEM files, as the settings `provenance.*` name them."""

    chain: Path
    key: Path
    root: Path
    root_key: Path


def write_certificates(folder: Path, *, days: int = 30) -> Files:
    """A chain whose first certificate is good until `days` from now; below 0 it has run out."""
    root_key, key = _key("root"), _key("signer")
    root = _certificate("Test Authority", root_key.public_key(), root_key, authority=True, days=365)
    leaf = _certificate("Test Signer", key.public_key(), root_key, authority=False, days=days)
    files = Files(
        chain=folder / "chain.pem",
        key=folder / "key.pem",
        root=folder / "root.pem",
        root_key=folder / "root-key.pem",
    )
    files.chain.write_bytes(_pem(leaf) + _pem(root))
    files.root.write_bytes(_pem(root))
    for path, private in ((files.key, key), (files.root_key, root_key)):
        path.write_bytes(
            private.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return files


@cache
def _key(of: str) -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def _certificate(
    name: str,
    public_key: EllipticCurvePublicKey,
    signed_by: EllipticCurvePrivateKey,
    *,
    authority: bool,
    days: int,
) -> x509.Certificate:
    """With the extensions that C2PA's certificate profile asks for."""
    now = datetime.now(UTC)
    usage = dict.fromkeys(
        (
            "content_commitment",
            "key_encipherment",
            "data_encipherment",
            "key_agreement",
            "encipher_only",
            "decipher_only",
        ),
        False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .issuer_name(_named("Test Authority"))
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=60))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signed_by.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, **usage
            ),
            critical=True,
        )
    )
    if not authority:
        purposes = x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        builder = builder.add_extension(purposes, critical=False)
    return builder.sign(signed_by, hashes.SHA256())


def _named(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "AvatarForge's tests"),
            x509.NameAttribute(x509.NameOID.COMMON_NAME, name),
        ]
    )


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
