"""Laws are judged by their results, never by how long a shared machine took for an example."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("parley", deadline=None)
settings.load_profile("parley")
