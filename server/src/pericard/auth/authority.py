"""Finds the principal behind a credential: in the site's tokens, and in its policy if it has one."""

from __future__ import annotations

from pericard.auth.certificate import PROXIED, Certificate
from pericard.auth.policy import PolicyFile
from pericard.auth.principal import Principal, not_valid
from pericard.auth.tokens import TokenFile


class Authority:
    """Who may, for one site.

    Attributes:
        tokens: the site's tokens.
        policy: the site's policy, or None: then a token may what it was made for.
        trust: digest of the authorities that vouch for client certificates now; empty if none does.
    """

    def __init__(self, tokens: TokenFile, policy: PolicyFile | None = None) -> None:
        """Take the site's tokens and its policy."""
        self.tokens = tokens
        self.policy = policy
        self.trust = ""

    def certificate(self, certificate: Certificate) -> Principal:
        """The principal behind the certificate of a connection; asked at every request of it.

        Raises:
            Unauthenticated: it stands for none, ended, or those who vouched for it do not count any more.
        """
        believed = certificate.trust == PROXIED or (self.trust and certificate.trust == self.trust)
        if self.policy is None or not believed:
            raise not_valid()
        return self.policy.current.of_certificate(certificate)

    def bearer(self, token: str) -> Principal:
        """The principal that a bearer token stands for.

        Raises:
            Unauthenticated: it stands for none; the caller cannot tell why.
        """
        if self.policy is not None and "." in token:  # no token of the site's has one
            return self.policy.current.of_jwt(token)
        own = self.tokens.authenticate(token)
        return own if self.policy is None else self.policy.current.of_token(own)
