"""Client certificates: the names that one bears, as the policy writes them.

A chain was verified by TLS before; here only the certificate itself is read. Names are compared whole, each with its
kind before it, so that a common name that looks like a host is none: ``uri:…``, ``dns:…``, ``email:…`` of the subject's
alternative names, and ``subject:…``, the whole subject by RFC 4514.
"""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes

_KINDS: tuple[tuple[str, type[x509.UniformResourceIdentifier | x509.DNSName | x509.RFC822Name]], ...] = (
    ("uri", x509.UniformResourceIdentifier),
    ("dns", x509.DNSName),
    ("email", x509.RFC822Name),
)


#: What stands for the authorities of a proxy, which verified a certificate itself.
PROXIED = "proxy"


class Certificate(NamedTuple):
    """A certificate that a peer proved to have the key of.

    Attributes:
        names: that it bears.
        fingerprint: SHA-256 of it, in hex.
        begins: Unix seconds.
        ends: Unix seconds.
        trust: digest of the authorities by which it was verified; other ones, and it is looked at no more.
    """

    names: tuple[str, ...]
    fingerprint: str
    begins: float
    ends: float
    trust: str = ""


def read(data: bytes, *, trust: str) -> Certificate | None:
    """What a certificate says; None if it cannot be read, and then it says nothing.

    Args:
        data: the certificate, as DER or as one PEM block.
        trust: digest of the authorities by which it was verified.
    """
    try:
        pem = data.startswith(b"-----")
        found = x509.load_pem_x509_certificate(data) if pem else x509.load_der_x509_certificate(data)
        names = [f"subject:{found.subject.rfc4514_string()}"] if found.subject.rdns else []
        for extension in found.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                for kind, named in _KINDS:
                    values = extension.value.get_values_for_type(named)
                    names += [f"{kind}:{value.lower() if kind == 'dns' else value}" for value in values]
        begins, ends = found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp()
        return Certificate(tuple(names), found.fingerprint(hashes.SHA256()).hex(), begins, ends, trust)
    except (ValueError, TypeError, OverflowError, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        return None
