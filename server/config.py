"""ServerConfig: everything the gateway is told at start, resolved once.

Defaults < `parley.toml` < environment (`PARLEY_…`) < flags.
"""

from __future__ import annotations

import sys
from ipaddress import ip_address
from pathlib import Path  # pydantic reads the annotations
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from streaming.errors import ParleyError

if TYPE_CHECKING:
    from collections.abc import Mapping

MIB = 1024 * 1024
DEFAULT_FILE = Path("parley.toml")

# In the environment a list is written with commas; in the file it is a list.
Words = Annotated[tuple[str, ...], NoDecode]
Secrets = Annotated[tuple[SecretStr, ...], NoDecode]


class ConfigFault(ParleyError):
    """A setting cannot be used; the message names it, never its value."""


class ServerConfig(BaseSettings):
    """Settings of the gateway. Durations in seconds."""

    model_config = SettingsConfigDict(
        env_prefix="PARLEY_", frozen=True, extra="forbid", hide_input_in_errors=True
    )

    # ---- where
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_self_signed: bool = False
    backlog: int = Field(64, ge=1)
    """Connections the kernel holds for us: small, so that it meters a storm."""

    # ---- the workers
    model: str = ""
    """Checkpoint folder or hub name."""
    num_workers: int = Field(1, ge=1)
    worker_args: Words = ()
    """Handed to every worker; see `python -m streaming.engine --help`."""
    worker_command: Words = (sys.executable, "-m", "streaming.engine")
    """What is started with the socket's path and the arguments; a stand-in for tests and benchmarks."""
    worker_socket_dir: Path | None = None
    """Of mode 0700; None makes one."""
    load_limit_s: float = 600
    tick_missing_s: float = 5
    """Without a sign of life for so long a worker takes no new sessions …"""
    tick_lost_s: float = 15
    """… and for so long it is stopped."""
    step_stuck_s: float = 20
    """Work waits and no step ends for so long: stopped too."""
    abort_grace_s: float = 5
    """Between asking for stacks (SIGABRT) and SIGKILL."""
    max_failed_starts: int = Field(5, ge=1)
    failed_start_window_s: float = 600
    max_restart_delay_s: float = 30

    # ---- who may enter
    api_keys: Secrets = ()
    """`key` or `name=key` or `name=sha256:<hex of the key's hash>`."""
    api_keys_file: Path | None = None
    """One key a line, as above; read again when it changes. Who leaves the file is hung up on."""
    secret_key: SecretStr | None = None
    """Signs short-lived client secrets; None makes one, so that they end with the process."""
    allow_query_key: bool = False
    origins: Words = ()
    """Pages of other hosts that may connect, as `https://example.com`."""
    trusted_proxies: Words = ()
    """Addresses whose `X-Forwarded-For` is believed."""
    let_everyone_on_the_network_in: bool = False
    """Serve other machines without any key."""
    strict_model_names: bool = False

    # ---- how many and how fast
    max_sessions: int | None = Field(None, ge=1)
    sessions_per_worker: int | None = Field(None, ge=1)
    """None leaves a quarter of the worker's lanes to transcripts and side conversations."""
    sessions_per_address: int | None = Field(None, ge=1)
    sessions_per_key: int | None = Field(None, ge=1)
    handshakes_per_s: float = Field(200, gt=0)
    handshakes_per_s_per_address: float = Field(50, gt=0)
    failed_keys_per_minute: float = Field(10, gt=0)
    max_lateness_s: float = Field(5, gt=0)
    """Nobody new is let in while a reply has been due for so long on every worker."""
    max_memory_part: float = Field(0.85, gt=0, le=1)
    max_message_bytes: int = Field(24 * MIB, ge=1024)
    inbound_bytes_per_s: float = Field(4 * MIB, gt=0)
    max_inbound_bytes: int = Field(32 * MIB, ge=1024)
    """Not handled yet, per session; then reading stops. Also the burst above the rate."""
    slow_consumer_s: float = Field(60, gt=0)
    session_limit_s: float = Field(3600, gt=0)
    idle_limit_s: float = Field(900, gt=0)
    header_limit_s: float = Field(10, gt=0)
    ping_interval_s: float = Field(20, gt=0)
    ping_timeout_s: float = Field(40, gt=0)
    close_limit_s: float = Field(5, gt=0)
    drain_s: float = Field(60, ge=0)

    # ---- the rest
    instructions: str | None = None
    """System prompt of sessions that bring none; None: the checkpoint's own."""
    demo: bool = True
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @field_validator(
        "worker_args", "worker_command", "api_keys", "origins", "trusted_proxies", mode="before"
    )
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value

    @model_validator(mode="after")
    def _check(self) -> ServerConfig:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together; give both or neither")
        if self.tls_cert is not None and self.tls_self_signed:
            raise ValueError("tls_self_signed makes its own certificate; leave tls_cert out")
        if not (self.is_loopback or self.has_keys or self.let_everyone_on_the_network_in):
            raise ValueError(
                f"host {self.host} can be reached from other machines and there is no key: anyone could use this "
                "server, its GPU and its microphone page. Give --api-key KEY (or PARLEY_API_KEYS, or an "
                "api_keys_file), or listen on 127.0.0.1; --let-everyone-on-the-network-in overrides this"
            )
        return self

    @property
    def is_loopback(self) -> bool:
        return is_loopback(self.host)

    @property
    def has_keys(self) -> bool:
        return bool(self.api_keys) or self.api_keys_file is not None

    @property
    def has_tls(self) -> bool:
        return self.tls_cert is not None or self.tls_self_signed


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host` (a name or an address, as it stands in a URL or not)."""
    if host.lower() == "localhost":
        return True
    try:
        return ip_address(host.strip("[]").partition("%")[0]).is_loopback
    except ValueError:
        return False


def load_config(flags: Mapping[str, Any], file: Path | None = None) -> ServerConfig:
    """Resolve the settings; `file` None reads `parley.toml` if there is one. Flags that are None were not given.

    Raises:
        ConfigFault: names every setting that cannot be used.
    """
    if file is not None and not file.is_file():
        raise ConfigFault(f"{file} does not exist")

    class FromFile(ServerConfig):
        model_config = SettingsConfigDict(toml_file=file or DEFAULT_FILE)

    given = {name: value for name, value in flags.items() if value is not None}
    try:
        return FromFile(**given)
    except ValidationError as error:
        found = error.errors(include_input=False, include_context=False, include_url=False)
        raise ConfigFault("; ".join(map(_sentence, found))) from None
    except ValueError as error:  # TOML that is none
        raise ConfigFault(f"{file or DEFAULT_FILE} cannot be read: {error}") from None


def _sentence(error: Mapping[str, Any]) -> str:
    message = str(error["msg"]).removeprefix("Value error, ")
    path = ".".join(map(str, error["loc"]))
    return f"{path}: {message}" if path else message
