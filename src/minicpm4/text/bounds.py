"""How long a text may be. Apart, for commands that only read one."""

MAX_TEXT_BYTES = 64 << 20
