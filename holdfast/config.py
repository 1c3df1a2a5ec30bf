"""Every setting, typed, with its unit in its name and its default.

One `Config` configures a supervisor. It can be built in code, or read from a URL, a TOML file or
the environment by `holdfast.settings`. Values are checked when it is built: a `ConfigError` names
the field.
"""

from __future__ import annotations

import msgspec

from holdfast.errors import ConfigError
from holdfast.model import Durability

__all__ = [
    "ActorConfig",
    "Config",
    "JanitorConfig",
    "Limits",
    "RestartConfig",
    "RetentionConfig",
    "WatchConfig",
    "WriterConfig",
]


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A group of settings. Numbers must be positive unless the section says otherwise."""

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if not value > 0 and name not in _MAY_BE_ZERO:
                raise ConfigError(name, f"must be above 0, not {value}")
            if not 0 <= value < _FAR_TOO_MUCH:
                raise ConfigError(name, f"must be finite and not negative, not {value}")


_FAR_TOO_MUCH = 1e15
_MAY_BE_ZERO = frozenset({"linger_s", "max_restarts", "ring_events", "jitter"})


class Limits(_Section, frozen=True, kw_only=True):
    """What one call may carry. Past a limit: `LimitExceeded`, before anything is written."""

    max_key_bytes: int = 1_024
    max_value_bytes: int = 1 << 20
    max_state_keys: int = 10_000
    max_state_bytes: int = 16 << 20
    """All keys and values of one session."""
    max_event_bytes: int = 1 << 20
    max_unit_events: int = 10_000
    """Events in one atomic unit."""
    max_unit_bytes: int = 16 << 20
    """Keys, values and events in one atomic unit."""
    max_metadata_bytes: int = 16 << 10
    max_name_bytes: int = 512
    """An event's stream or type, an owner."""
    max_sessions: int | None = None
    """Live sessions in the store; checked at create against a count at most `JanitorConfig.interval_s` old."""


class ActorConfig(_Section, frozen=True, kw_only=True):
    """Mailboxes, and how many sessions are hot at once."""

    mailbox_units: int = 10_000
    mailbox_bytes: int = 32 << 20
    max_dirty_bytes: int = 256 << 20
    """Bytes in all mailboxes together."""
    max_hot_sessions: int = 10_000
    max_hot_bytes: int = 512 << 20
    """State, and events for subscribers, held in memory for all hot sessions together."""
    idle_s: float = 300.0
    """An actor unused for so long is passivated."""
    ring_events: int = 256
    """Recent events held per session while it has a subscriber."""
    max_hydrations: int = 1_000
    """Sessions being loaded at once."""
    overload_wait_s: float = 5.0
    """How long a call waits at a full bound before `Overloaded`."""


class WriterConfig(_Section, frozen=True, kw_only=True):
    """How the lanes flush mailboxes to the backend."""

    lanes: int | None = None
    """Flushes in flight at once; None: what the backend prefers."""
    linger_s: float = 0.0
    """Wait so long for company before a flush. Natural batching rarely needs it."""
    max_batch_sessions: int = 500
    max_batch_bytes: int = 4 << 20
    max_session_units: int = 1_000
    """Units of one session in one flush, so that a busy session does not starve the others."""
    commit_timeout_s: float = 15.0
    """A commit that takes longer is given up; its outcome is then found out."""
    retry_for_s: float = 20.0
    """How long a flush is tried again on passing errors before its callers get `Unavailable`."""
    backoff_initial_s: float = 0.02
    backoff_max_s: float = 2.0
    breaker_failures: int = 5
    """Failed attempts in a row that open the breaker: new work is then refused at once."""
    breaker_cooldown_s: float = 1.0
    """How long an open breaker waits before it lets one attempt through."""
    read_timeout_s: float = 15.0


class RetentionConfig(_Section, frozen=True, kw_only=True):
    """How much of a session's event log is kept. The oldest go first; a write never fails for it."""

    max_events: int | None = 10_000
    """Exact: reads never show more."""
    max_event_age_s: float | None = None
    """Enforced by each pass of the trimmer."""
    max_event_bytes: int | None = None
    """Enforced by each pass of the trimmer."""
    interval_s: float = 30.0


class JanitorConfig(_Section, frozen=True, kw_only=True):
    """Expiry, touches and passivation."""

    interval_s: float = 60.0
    """Between two passes over the expired sessions. Each wait varies by ``jitter``."""
    jitter: float = 0.2
    batch: int = 500
    """Sessions removed in one transaction."""
    touch_interval_s: float = 1.0
    """Reads' touches are written at most so late (sooner for short TTLs)."""


class WatchConfig(_Section, frozen=True, kw_only=True):
    """Commits of other instances, for sessions that have a subscriber here.

    Only for stores that cannot tell of every one: each such session is polled, at once more often
    where there is news, and ever more rarely where there is none.
    """

    poll_min_s: float = 0.02
    poll_max_s: float = 1.0


class RestartConfig(_Section, frozen=True, kw_only=True):
    """Restart intensity: more than ``max_restarts`` within ``within_s`` and the part gives up."""

    max_restarts: int = 5
    within_s: float = 60.0
    backoff_initial_s: float = 0.05
    backoff_max_s: float = 5.0


class Config(_Section, frozen=True, kw_only=True):
    """All settings of one supervisor."""

    durability: Durability | None = None
    """Of writes that name none; None: the best the backend has, up to "disk"."""
    ttl_s: float | None = 1_800.0
    """Of sessions created without one; None: they do not expire."""
    lifetime_s: float | None = None
    """Absolute lifetime of sessions created without one."""
    background: bool = True
    """False (serverless): no janitor, trimmer, passivator or watcher runs."""
    drain_timeout_s: float = 30.0
    limits: Limits = msgspec.field(default_factory=Limits)
    actors: ActorConfig = msgspec.field(default_factory=ActorConfig)
    writer: WriterConfig = msgspec.field(default_factory=WriterConfig)
    retention: RetentionConfig = msgspec.field(default_factory=RetentionConfig)
    janitor: JanitorConfig = msgspec.field(default_factory=JanitorConfig)
    watch: WatchConfig = msgspec.field(default_factory=WatchConfig)
    restart: RestartConfig = msgspec.field(default_factory=RestartConfig)
