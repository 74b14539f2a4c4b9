"""What all that ask others over HTTP have in common: whom they trust, and words for failures."""

from __future__ import annotations

import ssl

from .errors import ConfigError


def trust(ca_file: str) -> ssl.SSLContext:
    """Certificates of the system's authorities, or of those in a file.  Raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=ca_file or None)
    except OSError as error:
        raise ConfigError(
            ca_file, f"holds no certificates of authorities: {error.strerror or error}"
        ) from error


def why(error: Exception) -> str:
    """Why there is no answer, for people; an OSError or an HTTPException."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
