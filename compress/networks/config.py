"""What every network config has in common."""

from __future__ import annotations

import msgspec


class NetworkConfig(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind"
):
    """Which network to build; the subclass and its ``kind`` say which."""
