"""API keys: which there are, whose a request brings, and what an endpoint asks for.

Keys come from the settings `api_key` and `admin_api_key`, and from `api_key_file`, which is read again when it changes. Only
digests are kept, so that no key can get into a log or an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import time
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import yaml
from pydantic import Field, SecretStr, ValidationError, model_validator
from starlette.datastructures import Headers

from raysgl.api.errors import ApiError
from raysgl.config import ServerConfig, Settings, explain

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the file is looked at, while requests come."""


class Access(Enum):
    """Who may call an endpoint, once there are keys."""

    OPEN = "open"
    KEY = "key"
    ADMIN_OPTIONAL = "admin-optional"
    """The admin key; where there is none, any key."""
    ADMIN = "admin"


@dataclass(frozen=True)
class Key:
    """One caller. Limits are for the whole server; None: no limit, or all models."""

    name: str
    admin: bool = False
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    models: frozenset[str] | None = None

    def allows(self, model: str) -> bool:
        return self.models is None or model in self.models


class KeyEntry(Settings):
    """A key in `api_key_file`."""

    name: str = Field(pattern=r"^[\w.@-]{1,64}$", description="what logs call it")
    key: SecretStr | None = Field(None, min_length=1, description="the key itself")
    sha256: str | None = Field(None, pattern=r"^[0-9a-fA-F]{64}$", description="instead of the key, its SHA-256 in hex")
    admin: bool = Field(False, description="may call every endpoint")
    requests_per_minute: int | None = Field(None, ge=1, description="requests that generate or compute")
    tokens_per_minute: int | None = Field(None, ge=1, description="prompt and answer tokens")
    max_concurrent: int | None = Field(None, ge=1, description="requests at a time")
    models: list[str] | None = Field(None, description="the only models that it may use")

    @model_validator(mode="after")
    def _one_of(self) -> KeyEntry:
        if (self.key is None) == (self.sha256 is None):
            raise ValueError("needs either key or sha256")
        return self

    def digest(self) -> bytes:
        return bytes.fromhex(self.sha256) if self.sha256 else _digest(self.key.get_secret_value().encode())


class KeyFile(Settings):
    """All of `api_key_file`."""

    keys: list[KeyEntry] = Field(description="the keys")

    @model_validator(mode="after")
    def _unique(self) -> KeyFile:
        for what, values in (
            ("name", [entry.name for entry in self.keys]),
            ("key", [entry.digest() for entry in self.keys]),
        ):
            if len(set(values)) < len(values):
                raise ValueError(f"two keys have the same {what}")
        return self


def read_key_file(path: str) -> dict[bytes, Key]:
    """SHA-256 -> key. ValueError or OSError with what is wrong, which names no key."""
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError):
        raise ValueError(f"api_key_file {path} is neither YAML nor JSON") from None
    try:
        entries = KeyFile.model_validate(data).keys
    except ValidationError as error:
        raise ValueError(f"api_key_file {path}: {explain(error, KeyFile)}") from None
    return {entry.digest(): _key(entry) for entry in entries}


def _key(entry: KeyEntry) -> Key:
    return Key(
        entry.name,
        entry.admin,
        entry.requests_per_minute,
        entry.tokens_per_minute,
        entry.max_concurrent,
        None if entry.models is None else frozenset(entry.models),
    )


class KeyRing:
    """All keys of a server. Raises what is wrong with the file when it is made; later it keeps the keys it has."""

    def __init__(self, settings: ServerConfig):
        self._fixed: dict[bytes, Key] = {}
        for secret, key in ((settings.api_key, Key("api_key")), (settings.admin_api_key, Key("admin_api_key", admin=True))):
            if secret is not None:
                self._fixed[_digest(secret.get_secret_value().encode())] = key
        self._path = settings.api_key_file
        self._keys = dict(self._fixed)
        self._seen: tuple[int, ...] | None = None
        self._problem = ""
        self._looked_at = time.monotonic()
        if self._path is not None:
            self._seen = self._stamp()
            self._use(read_key_file(self._path))
        self._has_admin = any(key.admin for key in self._keys.values())

    @property
    def used(self) -> bool:
        """Whether there are keys at all. An empty file lets nobody in; without a file and keys everybody is."""
        return bool(self._keys) or self._path is not None

    def authorize(self, access: Access, headers: Headers) -> Key | None:
        """The caller's key; None where there are no keys, or none is asked for. ApiError 401 or 403."""
        if access is Access.OPEN or not self.used:
            return None
        self._look()
        key = self._find(headers)
        if access is Access.ADMIN and not self._has_admin:
            raise _forbidden("This endpoint needs the admin key, and the server has none (setting admin_api_key)")
        if not key.admin and (access is Access.ADMIN or access is Access.ADMIN_OPTIONAL and self._has_admin):
            raise _forbidden("This endpoint needs the admin key")
        return key

    def _find(self, headers: Headers) -> Key:
        scheme, _, presented = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            presented = headers.get("x-api-key", "")
        presented = presented.strip()
        if not presented:
            raise _unauthorized("Send your API key as Authorization: Bearer KEY, or as x-api-key: KEY", "missing_api_key")
        digest = _digest(presented.encode("latin-1"))
        found = None
        for known, key in self._keys.items():  # all of them, so that the time says nothing
            if hmac.compare_digest(known, digest):
                found = key
        if found is None:
            raise _unauthorized("The API key is not valid", "invalid_api_key")
        return found

    # ---------------------------------------------------------------- the file

    def _look(self) -> None:
        """Read the file again if it is another one than before."""
        if self._path is None or time.monotonic() - self._looked_at < LOOK_S:
            return
        self._looked_at = time.monotonic()
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen = stamp
                self._use(read_key_file(self._path))
                log.info("api_key_file %s was read again: %d keys", self._path, len(self._keys))
            self._problem = ""
        except (OSError, ValueError) as error:
            if str(error) != self._problem:
                log.error("the API keys stay as they were: %s", error)
            self._problem = str(error)

    def _stamp(self) -> tuple[int, ...]:
        stat = os.stat(self._path)
        return (stat.st_mtime_ns, stat.st_size, stat.st_ino)

    def _use(self, keys: dict[bytes, Key]) -> None:
        self._keys = keys | self._fixed
        self._has_admin = any(key.admin for key in self._keys.values())


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _unauthorized(message: str, code: str) -> ApiError:
    return ApiError(401, message, code=code, headers=((b"www-authenticate", b"Bearer"),))


def _forbidden(message: str) -> ApiError:
    return ApiError(403, message, code="insufficient_permissions")
